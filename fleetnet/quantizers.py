"""The int8 file of a runtime, from its float file and pictures: onnxruntime's quantizer (QDQ) and NNCF (OpenVINO).

Layers with weights are quantized: weights with a scale per output channel, symmetric; the map that a layer takes with
one scale, asymmetric. The scales of weights are the finest at which no CPU overflows 16 bits (`runtimes/_int8.py`): one
bit less than eight where a channel has two large weights. Gates (squeeze-and-excite) stay in float. What lies between
the layers of a backbone is in int8 for onnxruntime, which else converts back and forth, and in float for OpenVINO,
where int8 made nothing faster (measured by benchmarks/quantize.py and beside it). Accuracy is `quantize`'s concern.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ExportError
from .reading import to_json
from .runtimes._int8 import safe_scales
from .runtimes.openvino import WEIGHTED

# Cut off of both ends together when ranges are chosen for onnxruntime: one value in a hundred thousand. Against the
# extremes themselves the logits have 1.5 dB less noise for parcnet_xs, 1 dB for repvit_m0_9, 0.4 dB for mobileone_s0,
# and 1 dB more for fasternet_t0, which has least. NNCF gets the extremes; with its own default, the mean of those of
# single images, fasternet_t0 has 20 dB more noise, the others 2 to 7 dB.
PERCENTILE = 99.999
# Of ONNX. A ReLU becomes the lower end of the range before it, and the bounds of a Clip (ReLU6) both ends: with the
# convolution's own range in place of that from 0 to 6, EfficientNet-Lite0 lost 6 points of top-1 on photographs.
# Those between are quantized in backbones only: in a head they join boxes of all sizes. With them parcnet_xs (SiLU) is 1.14 times as fast as in float, without 0.76 times;
# fasternet_t0 1.59 and 1.46 times; at 0.2 and 1.1 dB more noise.
WITH_WEIGHTS = ["Conv", "Gemm", "MatMul"]
CLIPPING = ["Relu", "Clip"]
LAYERS = [*WITH_WEIGHTS, *CLIPPING]
BETWEEN = ["Add", "Mul", "Concat", "Split", "Slice", "Sigmoid"]
KEPT = {*WEIGHTED, "Relu", "MaxPool", "Parameter", "Constant", "Result"}  # of OpenVINO

# Layers to leave in float, file, facts -> the layers that are in int8: quantizers leave some in float by themselves.
Write = Callable[[set[str], Path, Mapping[str, object]], set[str]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the quantizers print, log and draw on the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _module(node: str) -> str:
    """The module of a node, which our ONNX files name "backbone.stages.0.conv/Conv"."""
    return node.partition("/")[0]


def _gates(graph: Any, makers: Mapping[str, Any]) -> Iterator[str]:
    """The nodes of gates: products of a map with one number a channel, and what computes that from the map's mean."""
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    def single(name: str) -> bool:
        return name in makers and len(shapes.get(name, ())) == 4 and shapes[name][2:] == [1, 1]

    for node in graph.node:
        inputs = [name for name in node.input if single(name)]
        if node.op_type == "Mul" and len(inputs) == 1 and not single(node.output[0]):
            yield node.name
            while inputs:
                maker = makers[inputs.pop()]
                yield maker.name
                inputs += [name for name in maker.input if single(name)]


def _onnx(float_file: Path, images: np.ndarray) -> Write:
    """onnxruntime's quantizer, calibrated once."""
    import onnx
    from onnxruntime import quantization as tools
    from onnxruntime.quantization.calibrate import PercentileCalibrater

    from .runtimes._opset import ask_for_lowest_ir
    from .runtimes.onnx import KEY

    def network() -> Any:
        return onnx.shape_inference.infer_shapes(onnx.load(float_file))

    def in_float(graph: Any, skip: set[str]) -> set[str]:
        """The nodes of LAYERS and BETWEEN that stay in float."""
        makers = {output: node for node in graph.node for output in node.output}
        found = set(_gates(graph, makers))
        for node in graph.node:
            if node.op_type in BETWEEN and not node.name.startswith(("backbone.", "backbone/")):
                found.add(node.name)
            maker = node if _module(node.name) in skip and node.op_type in LAYERS else None
            while maker is not None:  # what makes the map too: the map would stay rounded as it gives it in int8
                found.add(maker.name)
                maker = makers.get(maker.input[0]) if maker is node or maker.op_type in CLIPPING else None
                maker = maker if maker is not None and maker.op_type in LAYERS + BETWEEN else None
        return found

    class Calibrator(PercentileCalibrater):
        """Only of maps that can be in int8: elsewhere a head may have infinities."""

        def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
            names, infos = super().select_tensors_to_calibrate(model)
            floats = in_float(model.graph, set())
            kinds = LAYERS + BETWEEN
            nodes = [node for node in model.graph.node if node.op_type in kinds and node.name not in floats]
            return names & {name for node in nodes for name in (*node.input, *node.output)}, infos

    class Reader(tools.CalibrationDataReader):
        def __init__(self, part: np.ndarray):
            self.images = iter(part)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    # The histograms of some images are made at once: all feature maps of these are in memory.
    some = max(1, min(16, 16 * 224**2 // (images.shape[2] * images.shape[3])))
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        calibrator = Calibrator(
            float_file, augmented_model_path=str(Path(folder) / "ranges.onnx"), percentile=PERCENTILE
        )
        calibrator.augment_graph()
        calibrator.create_inference_session()
        for i in range(0, len(images), some):
            calibrator.collect_data(Reader(images[i : i + some]))
        ranges = calibrator.compute_data()

    def safe_ranges(graph: Any) -> dict[str, list[dict[str, Any]]]:
        """The range of each channel of each weight, as the quantizer takes it: ±127 times the scale."""
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        ranges: dict[str, list[dict[str, Any]]] = {}
        for node in graph.node:
            if node.op_type not in WITH_WEIGHTS or node.input[1] not in tensors:
                continue
            weight = onnx.numpy_helper.to_array(tensors[node.input[1]])
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axis = 0 if node.op_type == "Conv" or transposed else weight.ndim - 1
            rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
            limits = [float(127 * scale) for scale in safe_scales(rows)]
            ranges[node.input[1]] = [{"axis": axis, "rmin": -limit, "rmax": limit} for limit in limits]
        return ranges

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        model = network()
        with _quiet():
            quantizer = tools.QDQQuantizer(
                model, per_channel=True, reduce_range=False, weight_qType=tools.QuantType.QInt8,
                activation_qType=tools.QuantType.QUInt8, tensors_range=ranges, nodes_to_quantize=[],
                nodes_to_exclude=sorted(in_float(model.graph, skip)), op_types_to_quantize=LAYERS + BETWEEN,
                extra_options={"MatMulConstBOnly": True, "TensorQuantOverrides": safe_ranges(model.graph)},
            )  # fmt: skip
            quantizer.quantize_model()
        proto = quantizer.model.model
        for entry in [entry for entry in proto.metadata_props if entry.key == KEY]:
            proto.metadata_props.remove(entry)
        proto.metadata_props.add(key=KEY, value=to_json(facts, ensure_ascii=False))
        ask_for_lowest_ir(proto)
        onnx.save(proto, path)
        rounded = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
        layers = [node for node in proto.graph.node if node.op_type in WITH_WEIGHTS]
        return {_module(node.name) for node in layers if node.input[1] in rounded}

    return write


def _openvino(float_file: Path, images: np.ndarray) -> Write:
    """NNCF, which collects the ranges anew for every file."""
    from .runtimes.openvino import FACTS, PRECISION, core, integer_weights_of, untold

    try:
        with untold():
            openvino, nncf, passes = map(import_module, ("openvino", "nncf", "openvino.passes"))
            ranges = import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet.MINMAX
            advanced = import_module("nncf.quantization.advanced_parameters").AdvancedQuantizationParameters
    except ImportError as error:
        raise ExportError(
            f"int8 for OpenVINO needs nncf, which is not installed: pip install 'fleetnet[quantize]' ({error})"
        ) from error

    def rewrite_weights(network: Any, floats: Mapping[str, np.ndarray]) -> None:
        """Round the float weights of each layer anew, to scales that are safe.

        NNCF's own way, `overflow_fix`, costs half of all scales, and leaves out depthwise layers.
        """
        opset = import_module("openvino.opset8")
        for weight in integer_weights_of(network):
            exact = floats[weight.layer].reshape(weight.values.shape)
            scales = safe_scales(weight.rows(exact)).reshape(weight.scales.shape).astype(np.float32)
            values = np.clip(np.round(exact / scales), -127, 127).astype(np.int8)
            for before, array in ((weight.constant, values), (weight.scaling.input_value(1).get_node(), scales)):
                for target in before.output(0).get_target_inputs():
                    target.replace_source_output(opset.constant(array).output(0))

    def slow(node: Any) -> bool:
        """Whether int8 is no gain: of groups with several channels ParC-Net's 3x3 ones take ten times as long as in
        float, and most of the network's time."""
        if node.get_type_name() != "GroupConvolution":
            return False
        _, *channels, height, width = node.get_input_shape(1)  # (groups, outputs, inputs, height, width), of a group
        return max(channels) > 1 and height * width > 1

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        network = core().read_model(float_file)
        folding = passes.Manager()  # weights of depthwise layers are behind a reshape, where NNCF does not shrink them
        folding.register_pass(passes.ConstantFolding())
        folding.run_passes(network)
        floats = [
            node.get_friendly_name()
            for node in network.get_ops()
            if node.get_type_name() not in KEPT or _module(node.get_friendly_name()) in skip or slow(node)
        ]
        exact = {
            node.get_friendly_name(): np.array(node.input_value(1).get_node().data)
            for node in network.get_ops()
            if node.get_type_name() in WEIGHTED and node.input_value(1).get_node().get_type_name() == "Constant"
        }
        with _quiet():
            quantized = nncf.quantize(
                network, nncf.Dataset(list(images), lambda image: image[None]),
                subset_size=len(images), preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=nncf.IgnoredScope(names=floats, validate=False),
                # the correction of biases changed the noise by at most 0.3 dB, either way, in twice the time
                advanced_parameters=advanced(activations_range_estimator_params=ranges, disable_bias_correction=True),
            )  # fmt: skip
        rewrite_weights(quantized, exact)
        quantized.set_rt_info(to_json(facts, ensure_ascii=False), FACTS)
        quantized.set_rt_info("int8", PRECISION)
        openvino.save_model(quantized, path, compress_to_fp16=False)
        return {_module(weight.layer) for weight in integer_weights_of(quantized)}

    return write


WRITERS: dict[str, Callable[[Path, np.ndarray], Write]] = {"onnx": _onnx, "openvino": _openvino}
QUANTIZERS = {"onnx": "onnxruntime", "openvino": "nncf"}  # distributions
