"""Which kernels onnxruntime computed a file with, from the graph that it makes of it and its profile.

In an int8 file the fast kernels are those of int8. In a float file they are all products in
float32, but for convolutions of groups that its blocked kernels (NCHWc) do not take, since a group
has several channels, and these are no multiple of the block (16 with AVX-512, 8 with AVX2): x86 has
no others for groups, and computes them one after the other as a product of matrices.
"""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..reading import Fields
from ._cpu import is_x86
from ._kernels import Kernel

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

# Operators with weights, and which of their inputs these are.
WEIGHTED = {
    "Conv": 1,
    "Gemm": 1,
    "MatMul": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "ConvInteger": 1,
    "MatMulInteger": 1,
}
# The same, and what onnxruntime makes of them.
PRODUCTS = WEIGHTED | {
    "FusedConv": 1,
    "FusedGemm": 1,
    "FusedMatMul": 1,
    "QGemm": 3,
    "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1,
    "ConvTranspose": 1,
}
CONVERTING = ("QuantizeLinear", "DequantizeLinear")
BLOCKED = "com.microsoft.nchwc"  # the domain of convolutions whose channels are in blocks
MARKS = re.compile(r"(_nchwc)?(_token_\d+)?$")  # behind the names of nodes that were made anew
RAN = "_kernel_time"  # behind a node's name, in the profile
NUMPY = {"float32": "float", "float16": "float16", "float64": "double", "uint8": "uint8"}
FLOATS = ("float", "float16", "double")


@dataclass(frozen=True)
class _Value:
    """What goes into a node or comes out of it; of a value that nothing is known of, no shape."""

    type: str  # as the profile calls it: "float", "uint8"
    shape: tuple[int, ...]


UNKNOWN = _Value("", ())


@dataclass(frozen=True)
class _Ran:
    """A node of the graph that onnxruntime runs, and what the profile says of it."""

    node: "NodeProto"
    inputs: tuple[_Value, ...]
    outputs: tuple[_Value, ...]
    ms: float  # median of the runs
    at_an_end: bool  # whether it takes the image or gives an output of the file
    layer: str  # of the file
    own_weight: tuple[int, ...]  # the shape of its weight in the file

    @property
    def weight(self) -> _Value | None:
        """What it multiplies by; None of a node without products."""
        index = PRODUCTS.get(self.node.op_type, len(self.inputs))
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def in_int8(self) -> bool:
        """Whether its products are of int8."""
        return self.weight is not None and self.weight.type in ("int8", "uint8")

    @property
    def macs(self) -> int:
        weight, operator = self.weight, self.node.op_type
        if weight is None or not weight.shape:
            return 0
        image, output = self.inputs[0].shape, self.outputs[0].shape
        if "Conv" in operator:  # each weight meets each place once; channels may be padded here
            places = image if operator == "ConvTranspose" else output
            last = _attribute(self.node, "channels_last", 0)
            spatial = places[1:-1] if last else places[2:]
            return places[0] * math.prod(spatial) * math.prod(self.own_weight)
        depth = image[-2 if _attribute(self.node, "transA", 0) else -1]
        return math.prod(output) * depth

    def why_slow(self, *, int8_file: bool) -> str:
        """Why it is outside of the fast kernels; empty inside of them."""
        operator = self.node.op_type
        types = {value.type for value in (*self.inputs, *self.outputs)}
        if operator == "Cast" and "float16" in types:
            return "converts between float16 and float32"
        if "double" in types:
            return "in float64"
        if int8_file:
            return self._why_slow_in_int8()
        groups = _attribute(self.node, "group", 1)
        if "Conv" in operator and groups > 1 and self.node.domain != BLOCKED and is_x86():
            return f"a convolution of {groups} groups outside of the blocked kernels"
        return ""

    def _why_slow_in_int8(self) -> str:
        """What takes or gives a map in floats in a file whose other products are in int8."""
        if self.node.op_type in CONVERTING:
            return "" if self.at_an_end else "converts between int8 and float"
        maps = (self.inputs[0], *self.outputs) if self.inputs else self.outputs
        in_float = any(value.type in FLOATS and len(value.shape) > 1 for value in maps)
        return "in float between layers in int8" if in_float else ""


def _attribute(node: "NodeProto", name: str, usual: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), usual)


class _File:
    """The graph in a file, by which the layers are named that onnxruntime makes of it."""

    def __init__(self, graph: "GraphProto"):
        self.makers = {output: node for node in graph.node for output in node.output}
        self.nodes = {node.name: node for node in graph.node}
        self.weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def layer_of(self, ran: "NodeProto") -> "NodeProto | None":
        """The layer with products that a node stands for, with what was merged into it.

        A blocked convolution is named after what it puts out, which may be an activation behind it.
        """
        if ran.op_type not in PRODUCTS:
            return None
        name = MARKS.sub("", ran.name)
        nodes = [self.nodes.get(name), *map(self.makers.get, [name, *ran.output])]
        node = next(filter(None, nodes), None)
        while node is not None and node.op_type not in PRODUCTS:
            node = next(filter(None, map(self.makers.get, node.input)), None)
        return node

    def weight_of(self, node: "NodeProto | None") -> tuple[int, ...] | None:
        """The shape of a layer's weight, behind what makes it of bytes; None where it is unknown."""
        index = PRODUCTS[node.op_type] if node is not None else 0
        if node is None or index >= len(node.input):
            return None
        name, maker = node.input[index], self.makers.get(node.input[index])
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[0]
        return self.weights.get(name)


def kernels_of(
    graph: "GraphProto", events: Sequence[Fields], image: np.ndarray, file: "GraphProto"
) -> list[Kernel]:
    """Of a graph as onnxruntime runs it, with its weights, and the events of the profile.

    `image` is what it was run on, and `file` the graph that it was made of. The first run of the
    profile does not count.
    """
    ran = list(_all_that_ran(graph, events, image, _File(file)))
    int8_file = any(each.in_int8 for each in ran)
    return [
        Kernel(
            each.layer, each.node.op_type, each.macs, each.why_slow(int8_file=int8_file), each.ms
        )
        for each in ran
    ]


def _all_that_ran(
    graph: "GraphProto", events: Sequence[Fields], image: np.ndarray, file: _File
) -> Iterator[_Ran]:
    """The nodes of the graph, with what the profile says of them."""
    watched = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(RAN):
            watched[event["name"].removesuffix(RAN)].append(event)
    values = {tensor.name: _of_tensor(tensor) for tensor in graph.initializer}
    (name,) = (value.name for value in graph.input if value.name not in values)
    values[name] = _Value(NUMPY.get(str(image.dtype), ""), image.shape)
    ends = {name, *(output.name for output in graph.output)}
    for node in graph.node:
        runs = watched[node.name][1:]
        if not runs:
            continue
        outputs = runs[-1]["args"]["output_type_shape"]
        for output, about in zip(filter(None, node.output), outputs, strict=False):
            ((kind, shape),) = about.items()
            values[output] = _Value(kind, tuple(shape))
        inputs = tuple(values.get(each, UNKNOWN) for each in node.input)
        layer, index = file.layer_of(node), PRODUCTS.get(node.op_type, len(inputs))
        padded = inputs[index].shape if index < len(inputs) else ()
        yield _Ran(
            node,
            inputs,
            tuple(values.get(each, UNKNOWN) for each in node.output),
            statistics.median(run["dur"] for run in runs) / 1000,
            not ends.isdisjoint([*node.input, *node.output]),
            node.name if layer is None else layer.name or layer.output[0],
            file.weight_of(layer) or padded,
        )


def _of_tensor(tensor: "TensorProto") -> _Value:
    import onnx

    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()  # "float", "uint8"
    return _Value(name, tuple(tensor.dims))
