"""onnxruntime's quantizer, in the form with pairs of QuantizeLinear and DequantizeLinear (QDQ).

What lies between the layers of a backbone is in int8 too, since onnxruntime would otherwise convert
back and forth (measured by benchmarks/quantize.py and beside it).
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..reading import to_json
from ..runtimes._int8 import safe_scales
from ..runtimes._opset import ask_for_lowest_ir
from ..runtimes.onnx import KEY
from ..runtimes.onnx import integer_weights as integer_weights
from . import Write
from ._shared import module_of, quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto
    from onnxruntime.quantization.calibrate import TensorsData

    from ._fake import FakeQuantized

package = "onnxruntime"
source = "onnx"

# Cut off of both ends together when ranges are chosen: one value in a hundred thousand. Against the
# extremes themselves the logits have 1.5 dB less noise for parcnet_xs, 1 dB for repvit_m0_9, 0.4 dB
# for mobileone_s0, and 1 dB more for fasternet_t0, which has least.
PERCENTILE = 99.999
# A ReLU becomes the lower end of the range before it, and the bounds of a Clip (ReLU6) both ends:
# with the convolution's own range in place of that from 0 to 6, EfficientNet-Lite0 lost 6 points of
# top-1 on photographs. Those between are quantized in backbones only, for in a head they join boxes
# of all sizes. With them parcnet_xs (SiLU) is 1.14 times as fast as in float, without 0.76 times;
# fasternet_t0 1.59 and 1.46 times; at 0.2 and 1.1 dB more noise.
WITH_WEIGHTS = ["Conv", "Gemm", "MatMul"]
CLIPPING = ["Relu", "Clip"]
LAYERS = [*WITH_WEIGHTS, *CLIPPING]
BETWEEN = ["Add", "Mul", "Concat", "Split", "Slice", "Sigmoid"]


def _gates(graph: "GraphProto", makers: Mapping[str, "NodeProto"]) -> Iterator[str]:
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


def _bounds_a_layer(clip: "NodeProto", makers: Mapping[str, "NodeProto"]) -> bool:
    """Whether it is a ReLU6 or the like: other numbers of a head are clipped too, and may be infinite before."""
    maker = makers.get(clip.input[0])
    return maker is not None and maker.op_type in (*WITH_WEIGHTS, "Add")


def _makers(graph: "GraphProto") -> dict[str, "NodeProto"]:
    """The node that makes each tensor, by its name."""
    return {output: node for node in graph.node for output in node.output}


def _layer_and_maker(layer: "NodeProto", makers: Mapping[str, "NodeProto"]) -> Iterator[str]:
    """A layer, and what makes the map that it takes: in int8 that would give a rounded map."""
    node: NodeProto | None = layer
    while node is not None and node.op_type in LAYERS + BETWEEN:
        yield node.name
        if node is not layer and node.op_type not in CLIPPING:
            return
        node = makers.get(node.input[0])


def _in_float(graph: "GraphProto", skip: set[str], gates: bool) -> set[str]:
    """The nodes of LAYERS and BETWEEN that stay in float, with those of the modules in `skip`.

    Gates do too, unless `gates` are to be in int8.
    """
    makers = _makers(graph)
    floats = set() if gates else set(_gates(graph, makers))
    for node in graph.node:
        in_backbone = node.name.startswith(("backbone.", "backbone/"))
        if node.op_type in BETWEEN and not in_backbone:
            floats.add(node.name)
        if node.op_type == "Clip" and not _bounds_a_layer(node, makers):
            floats.add(node.name)
        if node.op_type in LAYERS and module_of(node.name) in skip:
            floats.update(_layer_and_maker(node, makers))
    return floats


def _taken_in_int8(graph: "GraphProto", gates: bool) -> set[str]:
    """The maps that can be in int8: elsewhere a head may have infinities."""
    floats = _in_float(graph, set(), gates)
    nodes = [
        node for node in graph.node if node.op_type in LAYERS + BETWEEN and node.name not in floats
    ]
    return {name for node in nodes for name in (*node.input, *node.output)}


def _ranges(float_file: Path, images: np.ndarray, gates: bool) -> "TensorsData":
    """What onnxruntime's calibration finds out about the maps that can be in int8."""
    from onnxruntime import quantization as tools
    from onnxruntime.quantization.calibrate import PercentileCalibrater

    class Calibrator(PercentileCalibrater):
        def select_tensors_to_calibrate(
            self, model: "ModelProto"
        ) -> tuple[set[str], dict[str, "ValueInfoProto"]]:
            names, infos = super().select_tensors_to_calibrate(model)
            return names & _taken_in_int8(model.graph, gates), infos

    class Reader(tools.CalibrationDataReader):
        def __init__(self, part: np.ndarray):
            self.images = iter(part)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    # The histograms of some images are made at once: all feature maps of these are in memory.
    some = max(1, min(16, 16 * 224**2 // (images.shape[2] * images.shape[3])))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder) / "ranges.onnx")
        calibrator = Calibrator(float_file, augmented_model_path=augmented, percentile=PERCENTILE)
        calibrator.augment_graph()
        calibrator.create_inference_session()
        for i in range(0, len(images), some):
            calibrator.collect_data(Reader(images[i : i + some]))
        return calibrator.compute_data()


def _safe_ranges(graph: "GraphProto") -> dict[str, list[dict[str, int | float]]]:
    """The range of each channel of each weight, as the quantizer takes it: ±127 times the scale."""
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    ranges: dict[str, list[dict[str, int | float]]] = {}
    for node in graph.node:
        if node.op_type not in WITH_WEIGHTS or node.input[1] not in tensors:
            continue
        weight = onnx.numpy_helper.to_array(tensors[node.input[1]])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else weight.ndim - 1
        rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)  # (channels, values)
        limits = [float(127 * scale) for scale in safe_scales(rows)]
        ranges[node.input[1]] = [{"axis": axis, "rmin": -limit, "rmax": limit} for limit in limits]
    return ranges


def _quantized(
    float_file: Path, skip: set[str], ranges: "TensorsData", gates: bool
) -> "ModelProto":
    """The network in int8 but for the modules in `skip`, and gates unless asked for; as protobuf."""
    import onnx
    from onnxruntime import quantization as tools

    model = onnx.shape_inference.infer_shapes(onnx.load(float_file))
    with quiet():
        quantizer = tools.QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=tools.QuantType.QInt8,
            activation_qType=tools.QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(_in_float(model.graph, skip, gates)),
            op_types_to_quantize=LAYERS + BETWEEN,
            extra_options={
                "MatMulConstBOnly": True,
                "TensorQuantOverrides": _safe_ranges(model.graph),
            },
        )
        quantizer.quantize_model()
    return quantizer.model.model


def _layers_in_int8(graph: "GraphProto") -> set[str]:
    """The modules whose weights are in int8."""
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in WITH_WEIGHTS]
    return {module_of(node.name) for node in layers if node.input[1] in rounded}


def quantized_of(
    float_file: Path, images: np.ndarray, gates: bool = False
) -> Callable[[set[str]], "ModelProto"]:
    """What gives the network in int8 but for the modules that it is given; calibrated once.

    `gates` are in int8 too where that is asked for.
    """
    ranges = _ranges(float_file, images, gates)
    return lambda skip: _quantized(float_file, skip, ranges, gates)


def writer(float_file: Path, images: np.ndarray) -> Write:
    """The quantizer is calibrated once, for all files."""
    quantized = quantized_of(float_file, images)

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        return _write(quantized(skip), path, facts)

    return write


def computed(network: "FakeQuantized") -> "FakeQuantized":
    return network


def writer_of(network: "FakeQuantized") -> Write:
    """It is a file of this quantizer's, with other numbers."""
    proto = network.to_proto()

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        return _write(proto, path, facts)

    return write


def _write(proto: "ModelProto", path: Path, facts: Mapping[str, object]) -> set[str]:
    """Write an int8 file that says these facts; its layers in int8."""
    import onnx

    for entry in [entry for entry in proto.metadata_props if entry.key == KEY]:
        proto.metadata_props.remove(entry)
    proto.metadata_props.add(key=KEY, value=to_json(facts, ensure_ascii=False))
    ask_for_lowest_ir(proto)
    onnx.save(proto, path)
    return _layers_in_int8(proto.graph)
