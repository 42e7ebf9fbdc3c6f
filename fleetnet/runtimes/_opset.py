"""ONNX files for older runtimes: an earlier operator set than torch's exporter writes, and the earliest IR version.

Torch writes operator sets from 18 on. Most operators of our networks are older and mean the same in
earlier sets; those that do not are rewritten here, one function an operator. What no rule knows is
looked up in ONNX's own schemas: an operator that an earlier set lacks, or has with fewer attributes
or inputs, is an error that names it. Nothing is proven here: `deploy.package` compares the file
with the model.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError
from ._program import quiet

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LOWEST, WRITTEN = 11, 18  # the operator sets that are lowered to, and the one that is lowered
# Attributes that later sets added, with the value that says what earlier sets always do.
ADDED: dict[str, dict[str, int | bytes]] = {
    "ReduceMean": {"noop_with_empty_axes": 0},
    "ReduceMax": {"noop_with_empty_axes": 0},
    "ReduceMin": {"noop_with_empty_axes": 0},
    "ReduceSum": {"noop_with_empty_axes": 0},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "GatherND": {"batch_dims": 0},
    "RoiAlign": {"coordinate_transformation_mode": b"output_half_pixel"},
    "Cast": {"saturate": 1},
    "ArgMax": {"select_last_index": 0},
    "ArgMin": {"select_last_index": 0},
    "Shape": {"start": 0},
    "ScatterND": {"reduction": b"none"},
    "ScatterElements": {"reduction": b"none"},
}
AXES = {
    "ReduceMean": 18,
    "ReduceMax": 18,
    "ReduceMin": 18,
    "ReduceSum": 13,
    "Squeeze": 13,
    "Unsqueeze": 13,
}
Nodes = list["NodeProto"]


class _Graph:
    """What the rules need of the graph around a node."""

    def __init__(self, proto: "ModelProto"):
        self.onnx = import_module("onnx")
        self.graph = proto.graph
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        inferred = self.onnx.shape_inference.infer_shapes(proto).graph
        shaped = [*inferred.value_info, *inferred.input, *inferred.output]
        self.ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in shaped}
        self.ranks |= {tensor.name: len(tensor.dims) for tensor in proto.graph.initializer}

    def values(self, name: str) -> list[int]:
        """Of a constant of whole numbers."""
        if name not in self.constants:
            raise ExportError(
                f"{name!r} is computed while the network runs, and was a constant before"
            )
        return [
            int(value) for value in self.onnx.numpy_helper.to_array(self.constants[name]).ravel()
        ]

    def constant(self, name: str, value: np.ndarray) -> str:
        """The name of a new constant."""
        self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
        self.graph.initializer.append(self.constants[name])
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> "NodeProto":
        return self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)

    def attributes(self, node: "NodeProto") -> dict[str, Any]:
        return {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}


def _without(node: "NodeProto", *names: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _axes_as_attribute(graph: _Graph, node: "NodeProto") -> Nodes:
    """Reductions and squeezes: axes were an attribute."""
    if len(node.input) > 1 and node.input[1]:
        node.attribute.append(graph.onnx.helper.make_attribute("axes", graph.values(node.input[1])))
    del node.input[1:]
    return [node]


def _split(graph: _Graph, node: "NodeProto", opset: int) -> Nodes:
    """Sizes of the parts: an input from 13 on, an attribute before; only 18 knows just their number."""
    attributes = graph.attributes(node)
    if (len(node.input) < 2 or not node.input[1]) and "num_outputs" in attributes:
        shape = _shape_of(graph, node.input[0])
        size = shape[attributes.get("axis", 0)] if shape else 0
        if not size:
            raise ExportError("Split: the size of what is split is not known")
        part = -(-size // len(node.output))
        sizes = [part] * (len(node.output) - 1)
        sizes.append(size - sum(sizes))
        node.input.append(graph.constant(f"{node.output[0]}_sizes", np.array(sizes, np.int64)))
    _without(node, "num_outputs")
    if opset < 13 and len(node.input) > 1:
        node.attribute.append(
            graph.onnx.helper.make_attribute("split", graph.values(node.input[1]))
        )
        del node.input[1:]
    return [node]


def _shape_of(graph: _Graph, name: str) -> list[int]:
    for value in [*graph.graph.value_info, *graph.graph.input]:
        if value.name == name:
            return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return []


def _layer_norm(graph: _Graph, node: "NodeProto") -> Nodes:
    """LayerNormalization is an operator from 17 on; before, its formula."""
    attributes = graph.attributes(node)
    x, weight, out = node.input[0], node.input[1], node.output[0]
    rank = graph.ranks.get(x, 0)
    axis = attributes.get("axis", -1)
    if axis >= 0 and not rank:
        raise ExportError("LayerNormalization: the rank of its input is not known")
    axes = list(range(axis, 0)) if axis < 0 else list(range(axis - rank, 0))
    epsilon = graph.constant(
        f"{out}_epsilon", np.array(attributes.get("epsilon", 1e-5), np.float32)
    )
    name = {
        key: f"{out}_{key}"
        for key in ("mean", "apart", "square", "variance", "safe", "root", "normal", "scaled")
    }
    nodes = [
        graph.node("ReduceMean", [x], name["mean"], axes=axes, keepdims=1),
        graph.node("Sub", [x, name["mean"]], name["apart"]),
        graph.node("Mul", [name["apart"], name["apart"]], name["square"]),
        graph.node("ReduceMean", [name["square"]], name["variance"], axes=axes, keepdims=1),
        graph.node("Add", [name["variance"], epsilon], name["safe"]),
        graph.node("Sqrt", [name["safe"]], name["root"]),
        graph.node("Div", [name["apart"], name["root"]], name["normal"]),
    ]
    if len(node.input) > 2 and node.input[2]:
        nodes.append(graph.node("Mul", [name["normal"], weight], name["scaled"]))
        nodes.append(graph.node("Add", [name["scaled"], node.input[2]], out))
    else:
        nodes.append(graph.node("Mul", [name["normal"], weight], out))
    return nodes


def _hard_swish(graph: _Graph, node: "NodeProto") -> Nodes:
    """HardSwish is an operator from 14 on; before, x * hard sigmoid(x)."""
    gate = f"{node.output[0]}_gate"
    return [
        graph.node("HardSigmoid", [node.input[0]], gate, alpha=1 / 6, beta=0.5),
        graph.node("Mul", [node.input[0], gate], node.output[0]),
    ]


def _comparison(graph: _Graph, node: "NodeProto") -> Nodes:
    """GreaterOrEqual and LessOrEqual are operators from 12 on; before, not the opposite (which differs for NaN)."""
    opposite = f"{node.output[0]}_opposite"
    return [
        graph.node(
            "Less" if node.op_type == "GreaterOrEqual" else "Greater", list(node.input), opposite
        ),
        graph.node("Not", [opposite], node.output[0]),
    ]


def _softmax(graph: _Graph, node: "NodeProto") -> Nodes:
    """Before 13 all dimensions from the axis on were one: the same only for the last."""
    axis, rank = graph.attributes(node).get("axis", -1), graph.ranks.get(node.input[0], 0)
    if axis not in (-1, rank - 1):
        raise ExportError(f"{node.op_type} of an inner dimension")
    if not rank:
        raise ExportError(f"{node.op_type}: the rank of its input is not known")
    _without(node, "axis")
    node.attribute.append(graph.onnx.helper.make_attribute("axis", rank - 1))
    return [node]


def _reshape(graph: _Graph, node: "NodeProto") -> Nodes:
    """Before 14 a size of 0 always copied that of the input: the same where there is none."""
    shape = node.input[1]
    if (
        graph.attributes(node).get("allowzero")
        and shape in graph.constants
        and 0 in graph.values(shape)
    ):
        raise ExportError("Reshape to a size of 0")
    _without(node, "allowzero")
    return [node]


def _resize(graph: _Graph, node: "NodeProto") -> Nodes:
    """Before 13 the region of interest and the scales had to be there, empty where they mean nothing."""
    for place in (1, 2):
        if len(node.input) > place and not node.input[place]:
            node.input[place] = graph.constant(
                f"{node.output[0]}_empty_{place}", np.zeros(0, np.float32)
            )
    return [node]


def _pad(graph: _Graph, node: "NodeProto") -> Nodes:
    """Axes are an input from 18 on; before, all axes are padded."""
    if len(node.input) > 3 and node.input[3]:
        raise ExportError("Pad of some axes")
    return [node]


def _shape(graph: _Graph, node: "NodeProto") -> Nodes:
    """A part of a shape can be asked for from 15 on; before, it is cut out of the whole."""
    attributes, output = graph.attributes(node), node.output[0]
    if "end" not in attributes:
        return [node]
    whole = f"{output}_whole"
    start, end, axis = (
        graph.constant(f"{output}_{name}", np.array([value], np.int64))
        for name, value in (
            ("start", attributes.get("start", 0)),
            ("end", attributes["end"]),
            ("axis", 0),
        )
    )
    return [
        graph.node("Shape", [node.input[0]], whole),
        graph.node("Slice", [whole, start, end, axis], output),
    ]


RULES: dict[
    str, tuple[int, Callable[[_Graph, "NodeProto"], Nodes]]
] = {  # operator -> below which set, and what is done
    **{name: (below, _axes_as_attribute) for name, below in AXES.items()},
    "LayerNormalization": (17, _layer_norm),
    "HardSwish": (14, _hard_swish),
    "GreaterOrEqual": (12, _comparison),
    "LessOrEqual": (12, _comparison),
    "Softmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Pad": (18, _pad),
    "Reshape": (14, _reshape),
    "Resize": (13, _resize),
    "Shape": (15, _shape),
}


def _forget_added(graph: _Graph, node: "NodeProto", opset: int) -> None:
    """Leave out attributes that the set does not have yet, where they say what it does anyway."""
    usual = ADDED.get(node.op_type, {})
    if not usual:
        return
    schema = graph.onnx.defs.get_schema(node.op_type, opset, node.domain)
    said = graph.attributes(node).items()
    _without(
        node,
        *(
            name
            for name, value in said
            if name not in schema.attributes and usual.get(name) == value
        ),
    )


def _check(onnx: ModuleType, node: "NodeProto", opset: int) -> None:
    """Refuse an operator that a set lacks, or has in a lesser form."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except Exception as error:  # onnx's own, for an operator that the set does not have
        raise ExportError(f"it has no operator {node.op_type}") from error
    unknown = [a.name for a in node.attribute if a.name not in schema.attributes]
    if unknown:
        raise ExportError(f"its {node.op_type} has no {', '.join(unknown)}")
    if len(node.input) > schema.max_input:
        raise ExportError(
            f"its {node.op_type} has {schema.max_input} inputs, not {len(node.input)}"
        )


def _name_constant_outputs(proto: "ModelProto") -> None:
    """Put a node between a constant, such as ssd's anchors, and the output that it is: converters lose it otherwise."""
    onnx = import_module("onnx")
    outputs = {output.name for output in proto.graph.output}
    for tensor in proto.graph.initializer:
        if tensor.name in outputs:
            name, tensor.name = tensor.name, f"{tensor.name}_constant"
            for node in proto.graph.node:
                node.input[:] = [
                    tensor.name if attributes == name else attributes for attributes in node.input
                ]
            proto.graph.node.append(
                onnx.helper.make_node("Identity", [tensor.name], [name], name=f"{name}/Identity")
            )


HALF = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what is worth it outside of the backbone


def to_half(proto: "ModelProto") -> "ModelProto":
    """The same model with weights and arithmetic in float16, and inputs and outputs in float32 as they were.

    So is what a head does with its numbers: float16 has no pixel 2049, and no NMS.
    """
    converter = import_module("onnxruntime.transformers.float16")
    _name_constant_outputs(proto)
    kept = [
        node.name
        for node in proto.graph.node
        if "backbone." not in node.name and node.op_type not in HALF
    ]
    with quiet():
        half = converter.convert_float_to_float16(proto, keep_io_types=True, node_block_list=kept)
    defined: set[str] = set()
    nodes = []
    # the converter casts a tensor once for each of its users, under one name
    for node in half.graph.node:
        if node.output[0] not in defined:
            nodes.append(node)
        defined.update(node.output)
    del half.graph.node[:]
    half.graph.node.extend(_in_order(nodes))  # the casts are at the end, which ONNX does not allow
    del half.graph.value_info[:]  # some has the types of before
    return half


def _in_order(nodes: Nodes) -> Nodes:
    """The nodes, each behind those that make its inputs."""
    maker = {output: i for i, node in enumerate(nodes) for output in node.output}
    entered: set[int] = set()
    ordered = []
    for i in range(len(nodes)):
        waiting = [] if i in entered else [i]  # a node, and on it one that it needs, and so on
        entered.add(i)
        while waiting:
            needed = [maker[name] for name in nodes[waiting[-1]].input if name in maker]
            first = next((other for other in needed if other not in entered), None)
            if first is None:
                ordered.append(nodes[waiting.pop()])
            else:
                entered.add(first)
                waiting.append(first)
    return ordered


def lower(proto: "ModelProto", opset: int) -> None:
    """Rewrite a model of operator set `WRITTEN`, in place, as one of an earlier set, `LOWEST` or above.

    Raises `ExportError`, naming the operator and the module it is in, where the earlier set cannot
    say the same.
    """
    onnx = import_module("onnx")
    graph = _Graph(proto)
    nodes: Nodes = []
    for node in list(proto.graph.node):
        kind = node.op_type
        try:
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise ExportError(f"its {kind} holds a graph of its own, which is not lowered")
            _forget_added(graph, node, opset)
            if kind == "Split":
                made = _split(graph, node, opset)
            else:
                below, rule = RULES.get(kind, (0, None))
                made = rule(graph, node) if rule is not None and opset < below else [node]
            for new in made:
                _check(onnx, new, opset)
        except ExportError as error:
            raise ExportError(f"opset {opset} cannot hold {node.name or kind}: {error}") from error
        nodes += made
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = opset
    ask_for_lowest_ir(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (
        Exception
    ) as error:  # onnx's checker and shape inference have errors of their own: of types, above all
        raise ExportError(
            f"opset {opset} cannot hold this model: {str(error).strip().splitlines()[0]}"
        ) from error


def ask_for_lowest_ir(proto: "ModelProto") -> None:
    """Ask for the earliest IR version that has the model's operator sets: older runtimes refuse later ones."""
    onnx = import_module("onnx")
    sets = [entry for entry in proto.opset_import if entry.domain == ""]
    proto.ir_version = onnx.helper.find_min_ir_version_for(sets)
