"""NNCF, which quantizes OpenVINO's files.

What lies between the layers stays in float, where int8 made nothing faster (measured by
benchmarks/quantize.py and beside it). NNCF gets the extremes as ranges; with its own default, the
mean of those of single images, fasternet_t0 has 20 dB more noise, the others 2 to 7 dB.

Written so that OpenVINO takes its fast kernels (benchmarks/int8_layers.py):

    each map has one scale            NNCF would give depthwise layers one for each channel, for
                                      which neither they nor the layer before have these kernels
    ranges of both signs are centered where that costs little, so that zero is 0: else kernels
                                      correct for it, at borders too
    groups of several channels        are written as one group, with zeros: there are no fast
                                      kernels for groups, neither in int8 nor in float

Of files that were fine-tuned the ranges are those that were learned, and not centered.
"""

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ExportError
from ..reading import to_json
from ..runtimes._int8 import safe_scales
from ..runtimes.openvino import (
    FACTS,
    PRECISION,
    WEIGHTED,
    core,
    integer_weights_of,
    without_telemetry,
)
from ..runtimes.openvino import integer_weights as integer_weights
from . import Write
from ._shared import module_of, quiet

if TYPE_CHECKING:
    from onnx import GraphProto
    from openvino import Model, Node

    from ._fake import FakeQuantized

package = "nncf"
source = "openvino"

KEPT = {*WEIGHTED, "Relu", "MaxPool", "Parameter", "Constant", "Result"}
# The shorter side of a range that is centered, as a share of the longer: maps behind GELU and SiLU,
# which would lose a bit, are not. A half would cost up to 0.4 bits, a third costs up to 0.6.
CENTERED = 1 / 3
# Groups that are joined: a layer holds as many times the bytes. Four layers of 32 groups of four
# channels took 0.36 ms joined and 1.67 as groups, with AMX; more were not measured.
MOST_GROUPS = 32


def _package(name: str) -> ModuleType:
    """NNCF and its parts; `ExportError` with the command where it is missing."""
    try:
        with without_telemetry():
            return import_module(name)
    except ImportError as error:
        raise ExportError(
            "int8 for OpenVINO needs nncf, which is not installed: pip install "
            f"'fleetnet[quantize]' ({error})"
        ) from error


def _network(float_file: Path) -> "Model":
    """The float file, with the weights of depthwise layers as constants.

    They are behind a reshape, where NNCF does not shrink them.
    """
    passes = _package("openvino.passes")
    network = core().read_model(float_file)
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())
    folding.run_passes(network)
    return network


def _joined(weight: np.ndarray) -> np.ndarray:
    """Kernels of groups (G, O, I, ...) as those of one group, (G * O, G * I, ...), with zeros."""
    groups, outputs, inputs, *size = weight.shape
    joined = np.zeros((groups, outputs, groups, inputs, *size), weight.dtype)
    joined[range(groups), :, range(groups)] = weight
    return joined.reshape(groups * outputs, groups * inputs, *size)


def _join_groups(network: "Model", skip: set[str]) -> None:
    """Write convolutions of groups with several channels each as such of one group, in place.

    Those in `skip` stay. In int8, as groups, ParC-Net's take ten times as long as in float.
    """
    opset = import_module("openvino.opset8")
    for node in network.get_ops():
        if module_of(node.get_friendly_name()) in skip or not _has_groups(node):
            continue
        weight = np.array(node.input_value(1).get_node().data)  # (G, O, I, ...)
        if len(weight) > MOST_GROUPS:
            continue
        how = node.get_attributes()
        whole = opset.convolution(
            node.input_value(0),
            opset.constant(_joined(weight)),
            how["strides"],
            how["pads_begin"],
            how["pads_end"],
            how["dilations"],
        )
        whole.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))


def _in_float(network: "Model", skip: set[str]) -> list[str]:
    """The nodes that stay in float: of the modules in `skip`, and groups that were not joined, too."""
    return [
        node.get_friendly_name()
        for node in network.get_ops()
        if node.get_type_name() not in KEPT
        or module_of(node.get_friendly_name()) in skip
        or _has_groups(node)
    ]


def _has_groups(node: "Node") -> bool:
    """Whether it is a convolution of groups of several channels."""
    if node.get_type_name() != "GroupConvolution":
        return False
    _, outputs, inputs, *_ = node.get_input_shape(1)
    return max(outputs, inputs) > 1


def _float_weights(network: "Model") -> dict[str, np.ndarray]:
    """The weights of each layer, as they are before rounding."""
    return {
        node.get_friendly_name(): np.array(node.input_value(1).get_node().data)
        for node in network.get_ops()
        if node.get_type_name() in WEIGHTED
        and node.input_value(1).get_node().get_type_name() == "Constant"
    }


def _quantized(network: "Model", floats: list[str], images: np.ndarray) -> "Model":
    """The network in int8 but for the nodes in `floats`."""
    nncf = _package("nncf")
    estimators = _package("nncf.quantization.range_estimator").RangeEstimatorParametersSet
    advanced = _package("nncf.quantization.advanced_parameters")
    # The correction of biases changed the noise by at most 0.3 dB, either way, in twice the time.
    parameters = advanced.AdvancedQuantizationParameters(
        activations_range_estimator_params=estimators.MINMAX,
        activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
        disable_bias_correction=True,
    )
    with quiet():
        return nncf.quantize(
            network,
            nncf.Dataset(list(images), lambda image: image[None]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=floats, validate=False),
            advanced_parameters=parameters,
        )


def _rewrite_weights(network: "Model", floats: Mapping[str, np.ndarray]) -> None:
    """Round the float weights of each layer anew, to scales that are safe.

    NNCF's own way, `overflow_fix`, costs half of all scales, and leaves out depthwise layers.
    """
    opset = import_module("openvino.opset8")
    for weight in integer_weights_of(network):
        exact = floats[weight.layer].reshape(weight.values.shape)
        scales = safe_scales(weight.rows(exact)).reshape(weight.scales.shape).astype(np.float32)
        values = np.clip(np.round(exact / scales), -127, 127).astype(np.int8)
        for before, array in (
            (weight.constant, values),
            (weight.scaling.input_value(1).get_node(), scales),
        ):
            for target in before.output(0).get_target_inputs():
                target.replace_source_output(opset.constant(array).output(0))


def _center_ranges(network: "Model") -> None:
    """Give maps of both signs ranges around 0, in place, where these are not much longer."""
    opset = import_module("openvino.opset8")
    for node in network.get_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        least, most = (np.array(node.input_value(i).get_node().data) for i in (1, 2))
        longer, shorter = np.maximum(-least, most), np.minimum(-least, most)
        if (shorter < CENTERED * longer).any():
            continue
        step = np.maximum(-least / 128, most / 127)
        for i, end in zip((1, 2, 3, 4), (-128, 127, -128, 127), strict=True):
            node.input(i).replace_source_output(opset.constant(step * end).output(0))


def writer(float_file: Path, images: np.ndarray) -> Write:
    """NNCF collects the ranges anew for every file."""
    _package("nncf")  # said before anything is written

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        network = _network(float_file)
        _join_groups(network, skip)
        exact = _float_weights(network)
        quantized = _quantized(network, _in_float(network, skip), images)
        _rewrite_weights(quantized, exact)
        _center_ranges(quantized)
        return _write(quantized, path, facts)

    return write


def computed(network: "FakeQuantized") -> "FakeQuantized":
    """What no layer takes is not rounded: it stays in float, as in files that NNCF makes.

    OpenVINO computes activations and sums within the layer before them, and so passes over some of
    these roundings whatever a file says; for the others it would compute apart what it can join.
    """
    return network.without(network.maps_between())


def _join_groups_of_file(graph: "GraphProto") -> None:
    """`_join_groups` of a file for onnxruntime, whose weights are integers with their scales."""
    import onnx

    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        groups = [one for one in node.attribute if one.name == "group"]
        pair = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if not groups or pair is None or pair.input[0] not in weights:
            continue
        tensor = weights[pair.input[0]]
        weight, count = onnx.numpy_helper.to_array(tensor), groups[0].i
        outputs, inputs, *size = weight.shape
        if max(outputs // count, inputs) == 1 or not 1 < count <= MOST_GROUPS:
            continue
        joined = _joined(weight.reshape(count, outputs // count, inputs, *size))
        tensor.CopyFrom(onnx.numpy_helper.from_array(joined, tensor.name))
        groups[0].i = 1


def writer_of(network: "FakeQuantized") -> Write:
    """OpenVINO reads pairs of QuantizeLinear and DequantizeLinear itself."""
    import onnx

    _package("openvino")
    proto = network.to_proto()
    _join_groups_of_file(proto.graph)

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        with tempfile.TemporaryDirectory() as folder:
            between = Path(folder) / "model.onnx"
            onnx.save(proto, between)
            return _write(core().read_model(between), path, facts)

    return write


def _write(network: "Model", path: Path, facts: Mapping[str, object]) -> set[str]:
    """Write an int8 file that says these facts; its layers in int8."""
    network.set_rt_info(to_json(facts, ensure_ascii=False), FACTS)
    network.set_rt_info("int8", PRECISION)
    _package("openvino").save_model(network, path, compress_to_fp16=False)
    return {module_of(weight.layer) for weight in integer_weights_of(network)}
