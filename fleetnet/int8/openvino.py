"""NNCF, which quantizes OpenVINO's files.

What lies between the layers stays in float, where int8 made nothing faster (measured by
benchmarks/quantize.py and beside it). NNCF gets the extremes as ranges; with its own default, the
mean of those of single images, fasternet_t0 has 20 dB more noise, the others 2 to 7 dB.

Each map has one scale: NNCF would give depthwise layers one for each channel, for which neither
they nor the layer before have OpenVINO's fast kernels. What else is written so that they are taken
is in `_openvino_kernels.py`.
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
from ._openvino_kernels import (
    center_ranges,
    has_groups,
    rewrite_groups,
    rewrite_groups_of_file,
    round_before_joins,
    round_before_joins_of_file,
)
from ._shared import module_of, quiet

if TYPE_CHECKING:
    from openvino import Model

    from ._fake import FakeQuantized

package = "nncf"
source = "openvino"

KEPT = {*WEIGHTED, "Relu", "MaxPool", "Parameter", "Constant", "Result"}


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


def _in_float(network: "Model", skip: set[str]) -> list[str]:
    """The nodes that stay in float: those of the modules in `skip`, and groups that are left."""
    return [
        node.get_friendly_name()
        for node in network.get_ops()
        if node.get_type_name() not in KEPT
        or module_of(node.get_friendly_name()) in skip
        or has_groups(node)
    ]


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


def writer(float_file: Path, images: np.ndarray) -> Write:
    """NNCF collects the ranges anew for every file."""
    _package("nncf")  # said before anything is written

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        network = _network(float_file)
        rewrite_groups(network, skip)
        exact = _float_weights(network)
        quantized = _quantized(network, _in_float(network, skip), images)
        _rewrite_weights(quantized, exact)
        center_ranges(quantized)
        round_before_joins(quantized)
        return _write(quantized, path, facts)

    return write


def computed(network: "FakeQuantized") -> "FakeQuantized":
    """What no layer takes is not rounded: it stays in float, as in files that NNCF makes.

    OpenVINO computes activations and sums within the layer before them, and so passes over some of
    these roundings whatever a file says; for the others it would compute apart what it can join.
    """
    return network.without(network.maps_between())


def writer_of(network: "FakeQuantized") -> Write:
    """OpenVINO reads pairs of QuantizeLinear and DequantizeLinear itself."""
    import onnx

    _package("openvino")
    proto = network.to_proto()
    rewrite_groups_of_file(proto.graph)
    round_before_joins_of_file(proto.graph)

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
