"""Which kernels OpenVINO computed a file with, from the graph that it makes of it.

Its reference kernels are slow ("ref" in their names). In an int8 file so is what computes a map in
floats, a convolution of groups that is left in float among it.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._kernels import Kernel, macs_of_convolution

if TYPE_CHECKING:
    from openvino import Model, Node, PartialShape

WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
PRODUCTS = ("FullyConnected", "MatMul")  # of matrices, in the graph that runs
WITHOUT_BIASES = "/WithoutBiases"  # behind the name of a convolution whose bias is added apart
INT8, FLOATS = ("i8", "u8"), ("f32", "f16", "bf16")


class _Layer:
    """A layer of the graph that OpenVINO runs, which may be several of the file."""

    def __init__(self, node: "Node", macs: Mapping[str, int]):
        about = node.get_rt_info()

        def said(key: str) -> str:
            return str(about[key].value) if key in about else ""

        self.name = node.get_friendly_name()
        self.kind, self.kernel = said("layerType"), said("primitiveType")
        self.precision = said("runtimePrecision").lower()
        originals = [name for name in said("originalLayersNames").split(",") if name]
        self.macs = sum(macs.get(name, 0) for name in originals)
        if not self.macs and self.kind in PRODUCTS:  # it has another name than in the file
            self.macs = _macs_of_product(node)
        # of several that became one, the one with the most multiply-accumulates
        layer = max(originals, key=lambda name: macs.get(name, 0), default=self.name)
        self.layer = layer.removesuffix(WITHOUT_BIASES)
        shapes = [output.get_partial_shape() for output in node.outputs()]
        self.dimensions = max(map(len, shapes), default=0)

    @property
    def in_int8(self) -> bool:
        """Whether its products are of int8."""
        return self.precision in INT8 and self.macs > 0

    def why_slow(self, *, int8_file: bool) -> str:
        """Why it is outside of the fast kernels; empty inside of them."""
        steps = self.kernel.lower().split("_")
        if "ref" in steps:
            return "a reference kernel"
        if "unknown" in steps:  # what computes nothing: inputs, other names for a shape
            return ""
        if int8_file and self.precision in FLOATS and self.dimensions > 1:
            return "in float between layers in int8"
        return ""


def _shape(sizes: "PartialShape") -> list[int]:
    """Of one image, where the number of images is open."""
    return [size.get_length() if size.is_static else 1 for size in sizes]


def _macs_of(node: "Node") -> int:
    """Multiply-accumulates of a layer with weights, of one image."""
    output = _shape(node.get_output_partial_shape(0))
    first, weight = (_shape(node.get_input_partial_shape(i)) for i in (0, 1))
    if node.get_type_name() == "MatMul":
        depth = first[-2 if node.get_attributes().get("transpose_a") else -1]
        return math.prod(output) * depth
    grouped = node.get_type_name() == "GroupConvolution"  # (groups, channels of one, ...)
    return macs_of_convolution(output, weight, math.prod(weight[: 2 if grouped else 1]))


def _macs_of_product(node: "Node") -> int:
    """Multiply-accumulates of a product of matrices in the graph that runs."""
    output, first = (
        _shape(node.get_output_partial_shape(0)),
        _shape(node.get_input_partial_shape(0)),
    )
    return math.prod(output) * first[-1]


def kernels_of(network: "Model", executed: "Model", times: Mapping[str, float]) -> list[Kernel]:
    """Of a file's network, the graph that OpenVINO runs, and the milliseconds of its layers."""
    macs = {
        node.get_friendly_name(): _macs_of(node)
        for node in network.get_ordered_ops()
        if node.get_type_name() in WEIGHTED
    }
    layers = [_Layer(node, macs) for node in executed.get_ordered_ops()]
    ran = [layer for layer in layers if layer.name in times]
    int8_file = any(layer.in_int8 for layer in ran)
    return [
        Kernel(
            layer.layer,
            f"{layer.kind} ({layer.kernel})",
            layer.macs,
            layer.why_slow(int8_file=int8_file),
            times[layer.name],
        )
        for layer in ran
    ]
