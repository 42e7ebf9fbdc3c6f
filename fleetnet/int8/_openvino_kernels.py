"""Int8 graphs written so that OpenVINO takes its fast kernels, without changing what they compute.

Of the network that NNCF quantizes, and of a file for onnxruntime that was fine-tuned; what each is
worth was measured by benchmarks/int8_layers.py:

    groups of several channels        are written as one group, with zeros: there are no fast
                                      kernels for groups, neither in int8 nor in float
    groups of one channel, which      get each channel as often as they give one from it, by a
    give several                      1x1 layer of ones and zeros, and are depthwise then
    a map joined with parts of it     is rounded before, in whole, and not behind: OpenVINO would
                                      round each part by itself, and cut them in float
    ranges of both signs              are centered where that costs little, so that zero is 0: else
                                      kernels correct for it, at borders too (of NNCF's alone;
                                      those that were fine-tuned are learned)
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from ._shared import module_of

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto
    from openvino import Model, Node

# The shorter side of a range that is centered, as a share of the longer: maps behind GELU and SiLU,
# which would lose a bit, are not. A half would cost up to 0.4 bits, a third costs up to 0.6.
CENTERED = 1 / 3
# Groups that are joined: a layer then holds as many times the bytes, and computes as many times the
# products. Four layers of 32 groups of four channels, 3x3, took 0.36 ms joined and 1.67 as groups,
# with AMX. 1x1 layers of 96, 128 and 160 groups took 0.69, 0.26 and 0.1 ms as groups, with VNNI.
MOST_GROUPS, MOST_GROUPS_1X1 = 32, 256


def _joined(weight: np.ndarray) -> np.ndarray:
    """Kernels of groups (G, O, I, ...) as those of one group, (G * O, G * I, ...), with zeros."""
    groups, outputs, inputs, *size = weight.shape
    joined = np.zeros((groups, outputs, groups, inputs, *size), weight.dtype)
    joined[range(groups), :, range(groups)] = weight
    return joined.reshape(groups * outputs, groups * inputs, *size)


def _repeats(groups: int, outputs: int, dimensions: int) -> np.ndarray:
    """The kernel of one value that gives each channel so many times, (G * O, G, 1, ...)."""
    return np.repeat(np.eye(groups), outputs, 0).reshape(-1, groups, *[1] * dimensions)


def _may_be_joined(groups: int, size: Sequence[int]) -> bool:
    """Whether groups with kernels of a size are faster as one."""
    return groups <= (MOST_GROUPS if max(size, default=1) > 1 else MOST_GROUPS_1X1)


def rewrite_groups(network: "Model", skip: set[str]) -> None:
    """Write convolutions of groups with several channels each by such as have kernels, in place.

    Those in `skip` stay. In int8, as groups, ParC-Net's take ten times as long as in float.
    """
    opset = import_module("openvino.opset8")
    for node in network.get_ops():
        if module_of(node.get_friendly_name()) in skip or not has_groups(node):
            continue
        image, weight = node.input_value(0), np.array(node.input_value(1).get_node().data)
        groups, outputs, inputs, *size = weight.shape  # (G, O, I, ...)
        how = [
            node.get_attributes()[name]
            for name in ("strides", "pads_begin", "pads_end", "dilations")
        ]
        if inputs == 1:
            ones = opset.constant(_repeats(groups, outputs, len(size)).astype(weight.dtype))
            every, none = [1] * len(size), [0] * len(size)
            repeated = opset.convolution(image, ones, every, none, none, every)
            # a module that is called twice has nodes of two names
            repeated.set_friendly_name(f"{node.get_friendly_name()}/Repeat")
            kernels = opset.constant(weight.reshape(groups * outputs, 1, 1, *size))
            whole = opset.group_convolution(repeated, kernels, *how)
        elif _may_be_joined(groups, size):
            whole = opset.convolution(image, opset.constant(_joined(weight)), *how)
        else:
            continue
        whole.set_friendly_name(node.get_friendly_name())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))


def has_groups(node: "Node") -> bool:
    """Whether it is a convolution of groups of several channels."""
    if node.get_type_name() != "GroupConvolution":
        return False
    _, outputs, inputs, *_ = node.get_input_shape(1)
    return max(outputs, inputs) > 1


def center_ranges(network: "Model") -> None:
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


def round_before_joins(network: "Model") -> None:
    """Round a map before it is joined with parts of itself, where what is joined is, in place.

    So ParC extends a map. OpenVINO would round both parts apart, and cut them in float.
    """
    opset = import_module("openvino.opset8")
    for rounding in network.get_ops():
        if rounding.get_type_name() != "FakeQuantize":
            continue
        join = rounding.input_value(0).get_node()
        if join.get_type_name() != "Concat" or len(join.output(0).get_target_inputs()) > 1:
            continue
        parts = [join.input_value(i) for i in range(join.get_input_size())]
        cuts = [part.get_node() for part in parts if _is_cut_alone(part.get_node())]
        uncut = [i for i, part in enumerate(parts) if not _is_cut_alone(part.get_node())]
        wholes = {parts[i] for i in uncut} | {cut.input_value(0) for cut in cuts}
        if len(wholes) != 1:
            continue
        (whole,) = wholes
        ends = [rounding.input_value(i) for i in range(1, 5)]
        levels = rounding.get_attributes()["levels"]
        rounded = opset.fake_quantize(whole, *ends, levels).output(0)
        for taking in (*(cut.input(0) for cut in cuts), *(join.input(i) for i in uncut)):
            taking.replace_source_output(rounded)
        for reader in rounding.output(0).get_target_inputs():
            reader.replace_source_output(join.output(0))


def _is_cut_alone(node: "Node") -> bool:
    """Whether it is a part of a map that one reader takes."""
    is_cut = node.get_type_name() in ("Slice", "StridedSlice")
    return is_cut and len(node.output(0).get_target_inputs()) == 1


# ---- of a file for onnxruntime --------------------------------------------------------------------


def rewrite_groups_of_file(graph: "GraphProto") -> None:
    """`rewrite_groups` of a file for onnxruntime, whose weights are integers with their scales."""
    import onnx

    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        groups = [one for one in node.attribute if one.name == "group"]
        pair = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if not groups or pair is None or pair.input[0] not in tensors:
            continue
        tensor = tensors[pair.input[0]]
        weight, count = onnx.numpy_helper.to_array(tensor), groups[0].i
        outputs, inputs, *size = weight.shape
        outputs //= count
        if count == 1 or max(outputs, inputs) == 1:
            continue
        if inputs == 1:
            kernel = _repeats(count, outputs, len(size))
            _repeat_channels(graph, node, makers[node.input[0]], kernel)
            groups[0].i = count * outputs
        elif _may_be_joined(count, size):
            joined = _joined(weight.reshape(count, outputs, inputs, *size))
            tensor.CopyFrom(onnx.numpy_helper.from_array(joined, tensor.name))
            groups[0].i = 1


def _repeat_channels(
    graph: "GraphProto", layer: "NodeProto", pair: "NodeProto", kernel: np.ndarray
) -> None:
    """Let a layer take what a kernel of ones and zeros gives.

    It is rounded as the layer's map is, which changes nothing. `pair` is the DequantizeLinear whose
    output the layer takes.
    """
    import onnx

    name = f"{layer.name}/Repeat"
    weight, scale_of_weight, zero_of_weight = f"{name}_weight", f"{name}_scale", f"{name}_zero"
    for tensor, value in (
        (weight, kernel.astype(np.int8)),
        (scale_of_weight, np.array(1, np.float32)),
        (zero_of_weight, np.array(0, np.int8)),
    ):
        graph.initializer.append(onnx.numpy_helper.from_array(value, tensor))
    _, scale, zero = pair.input
    make = onnx.helper.make_node
    nodes = [
        make("DequantizeLinear", [weight, scale_of_weight, zero_of_weight], [f"{name}_kernel"]),
        make("Conv", [layer.input[0], f"{name}_kernel"], [f"{name}_map"], name),
        make("QuantizeLinear", [f"{name}_map", scale, zero], [f"{name}_steps"]),
        make("DequantizeLinear", [f"{name}_steps", scale, zero], [f"{name}_out"]),
    ]
    position = list(graph.node).index(layer)
    for node in reversed(nodes):
        graph.node.insert(position, node)
    layer.input[0] = f"{name}_out"


def round_before_joins_of_file(graph: "GraphProto") -> None:
    """`round_before_joins` of a file for onnxruntime, where a pair of nodes rounds a map."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for join in [node for node in graph.node if node.op_type == "Concat"]:
        pair = _pair_behind(join, readers)
        cuts = [
            makers[name]
            for name in join.input
            if name in makers and makers[name].op_type == "Slice" and len(readers[name]) == 1
        ]
        made = {cut.output[0] for cut in cuts}
        wholes = {name for name in join.input if name not in made}
        wholes |= {cut.input[0] for cut in cuts}
        if pair is None or len(wholes) != 1:
            continue
        (whole,) = wholes
        rounding, back = pair
        changed = {join.output[0], rounding.output[0], back.output[0], *made}
        if changed & {output.name for output in graph.output}:
            continue
        rounding.input[0] = whole
        for reader in readers[back.output[0]]:
            _replace_inputs(reader, back.output[0], join.output[0])
        for node in (*cuts, join):
            _replace_inputs(node, whole, back.output[0])
        for node in pair:
            graph.node.remove(node)
        first = min(list(graph.node).index(node) for node in (*cuts, join))
        for node in (back, rounding):
            graph.node.insert(first, node)


def _pair_behind(
    node: "NodeProto", readers: Mapping[str, Sequence["NodeProto"]]
) -> "tuple[NodeProto, NodeProto] | None":
    """The QuantizeLinear and DequantizeLinear that are all that takes a map."""
    chain = [node]
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        taking = readers.get(chain[-1].output[0], ())
        if len(taking) != 1 or taking[0].op_type != operator:
            return None
        chain.append(taking[0])
    return chain[1], chain[2]


def _replace_inputs(node: "NodeProto", before: str, after: str) -> None:
    for i, name in enumerate(node.input):
        if name == before:
            node.input[i] = after
