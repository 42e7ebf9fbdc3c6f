"""ONNX files for older runtimes: earlier operator sets, the earliest IR version, float16."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fleetnet.deploy.package import deliver
from fleetnet.errors import ExportError
from fleetnet.proof.verify import verify
from fleetnet.runtimes import Request
from fleetnet.runtimes import onnx as runtime
from fleetnet.runtimes._opset import LOWEST, WRITTEN, lower, to_half

# IR version of each operator set, from ONNX's table
EARLIEST = {11: 6, 13: 7, 15: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
SHAPE = (2, 4, 6)


def constants(**values: list[int] | np.ndarray) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(
            value if isinstance(value, np.ndarray) else np.array(value, np.int64), name
        )
        for name, value in values.items()
    ]


WEIGHT = np.linspace(-1, 1, 6, dtype=np.float32)
# what each rule rewrites: nodes of operator set 18 from "x" to "y", and their constants
REWRITTEN = {
    "split in equal parts": (
        [
            helper.make_node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2),
            helper.make_node("Sub", ["a", "b"], ["y"]),
        ],
        [],
    ),
    "split by sizes": (
        [helper.make_node("Split", ["x", "sizes"], ["a", "y"], axis=2)],
        constants(sizes=[1, 5]),
    ),
    "mean": (
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1, noop_with_empty_axes=0)],
        constants(axes=[1, 2]),
    ),
    "sum": (
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        constants(axes=[-1]),
    ),
    "squeeze": (
        [
            helper.make_node("Unsqueeze", ["x", "axes"], ["a"]),
            helper.make_node("Mul", ["a", "a"], ["b"]),
            helper.make_node("Squeeze", ["b", "axes"], ["y"]),
        ],
        constants(axes=[1]),
    ),
    "layer norm": (
        [
            helper.make_node(
                "LayerNormalization", ["x", "weight", "bias"], ["y"], axis=-1, epsilon=1e-3
            )
        ],
        constants(weight=WEIGHT, bias=WEIGHT[::-1].copy()),
    ),
    "layer norm over two dimensions": (
        [helper.make_node("LayerNormalization", ["x", "weight"], ["y"], axis=1, epsilon=1e-3)],
        constants(weight=np.tile(WEIGHT, (4, 1))),
    ),
    "hard swish": ([helper.make_node("HardSwish", ["x"], ["y"])], []),
    "comparison": (
        [
            helper.make_node("GreaterOrEqual", ["x", "zero"], ["a"]),
            helper.make_node("LessOrEqual", ["x", "one"], ["b"]),
            helper.make_node("And", ["a", "b"], ["c"]),
            helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
        ],
        constants(zero=np.zeros((), np.float32), one=np.ones((), np.float32)),
    ),
    "softmax": ([helper.make_node("Softmax", ["x"], ["y"], axis=-1)], []),
    "regions": (  # its default changed with 16
        [
            helper.make_node(
                "RoiAlign",
                ["map", "regions", "batch"],
                ["a"],
                output_height=2,
                output_width=2,
                sampling_ratio=2,
                coordinate_transformation_mode="output_half_pixel",
            ),
            helper.make_node("ReduceMean", ["a"], ["b"], keepdims=0),
            helper.make_node("Add", ["x", "b"], ["y"]),
        ],
        constants(
            map=np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8) ** 2,
            regions=np.array([[1.3, 0.2, 5.1, 6.4]], np.float32),
            batch=[0],
        ),
    ),
    "part of a shape": (
        [
            helper.make_node("Shape", ["x"], ["a"], start=1, end=2),
            helper.make_node("Expand", ["one", "a"], ["b"]),
            helper.make_node("ReduceSum", ["b", "axes"], ["c"], keepdims=1),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        constants(one=np.ones(1, np.float32), axes=[0]),
    ),
    "reshape": (
        [helper.make_node("Reshape", ["x", "shape"], ["y"], allowzero=1)],
        constants(shape=[2, -1]),
    ),
}


def made(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A model of operator set 18 from x (2, 4, 6) to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", WRITTEN)], ir_version=10
    )
    return onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(proto.SerializeToString()))


def computed(proto: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("what", REWRITTEN)
def test_operators_are_rewritten_for_earlier_sets(what):
    expected = computed(made(*REWRITTEN[what]))
    for opset in range(LOWEST, WRITTEN):
        proto = made(*REWRITTEN[what])
        lower(proto, opset)
        assert [entry.version for entry in proto.opset_import] == [opset]
        assert proto.ir_version <= 8
        np.testing.assert_allclose(computed(proto), expected, atol=1e-6, err_msg=f"opset {opset}")


@pytest.mark.parametrize(
    ("nodes", "initializers", "message"),
    [
        (
            [helper.make_node("Mish", ["x"], ["y"], name="stages.1/Mish")],
            [],
            "cannot hold stages.1/Mish: it has no",
        ),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=1)], [], "Softmax of an inner dimension"),
        (
            [helper.make_node("Split", ["x", "x2"], ["a", "y"], axis=2)],
            [],
            "is computed while the network runs",
        ),
    ],
)
def test_what_an_earlier_set_cannot_say_is_named(nodes, initializers, message):
    if message.startswith("is computed"):
        nodes = [helper.make_node("Cast", ["sizes"], ["x2"], to=TensorProto.INT64), *nodes]
        initializers = [numpy_helper.from_array(np.array([1, 5], np.int32), "sizes")]
    with pytest.raises(ExportError, match=message):
        lower(made(nodes, initializers), 11)


@pytest.mark.parametrize("opset", EARLIEST)
def test_a_file_asks_for_the_earliest_version_that_has_its_operators(opset, model, tmp_path):
    image = torch.randn(1, 3, 16, 24)
    path = deliver(model, image, tmp_path / "model.onnx", "onnx", None, opset=opset).path
    proto = onnx.load(path)
    assert proto.ir_version == EARLIEST[opset]
    assert json.loads(path.with_suffix(".json").read_text())["opset"] == opset


def test_float16_halves_weights_and_keeps_float32_at_both_ends(model, tmp_path):
    image = torch.randn(1, 3, 16, 24)
    delivered = deliver(model, image, tmp_path / "model.onnx", "onnx", None, precision="fp16")
    assert 0 < delivered.parity.relative < delivered.parity.tolerance
    proto = onnx.load(delivered.path)
    types = {tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) == 4}
    assert types == {TensorProto.FLOAT16}
    (given,), (output,) = proto.graph.input, proto.graph.output
    assert (
        given.type.tensor_type.elem_type == output.type.tensor_type.elem_type == TensorProto.FLOAT
    )


class Normed(nn.Module):
    """With a layer norm, which sets before 17 have as its formula."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.AvgPool2d(3), nn.Conv2d(8, 8, 1)
        )
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, image):
        return self.linear(self.norm(self.backbone(image).mean((2, 3))))


@pytest.mark.parametrize("opset", [11, 13, 20])
def test_float16_is_valid_in_every_set(opset, tmp_path):
    torch.manual_seed(0)
    network, image = Normed().eval(), torch.randn(1, 3, 16, 24)
    path = deliver(
        network, image, tmp_path / "model.onnx", "onnx", None, precision="fp16", opset=opset
    ).path
    onnx.checker.check_model(onnx.load(path), full_check=True)


class ConstantOutput(nn.Module):
    """As ssd: one output is a constant, its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.register_buffer("anchors", torch.randn(5, 4) * 300)

    def forward(self, image):
        return {
            "boxes": self.backbone(image).mean((2, 3)),
            "anchors": self.anchors.expand(1, -1, -1),
        }


def test_a_constant_output_survives_float16(tmp_path):
    network, image = ConstantOutput().eval(), torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        runtime.export(
            Request(
                network,
                image,
                tmp_path / "model.onnx",
                outputs=["boxes", "anchors"],
                precision="fp16",
            )
        )
    parity = verify(
        network, runtime.load(tmp_path / "model.onnx"), [image], runtime.tolerances["fp16"]
    )
    assert parity.passed
    assert to_half(onnx.load(tmp_path / "model.onnx")).ByteSize()


class Gated(nn.Module):
    """A channel attention as ParC-Net's: a product with the hard sigmoid of something else; and a hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.reduce = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.gate, self.act = nn.Hardsigmoid(), nn.Hardswish()

    def forward(self, image):
        x = self.act(self.backbone(image))
        return (x * self.gate(6 * self.reduce(x.mean((2, 3), keepdim=True)))).mean((2, 3))


def test_no_product_looks_like_a_hard_swish_that_is_none(tmp_path):
    """OpenCV's reader takes x * HardSigmoid(y) for HardSwish(y): parcnet_xs computed something else there."""
    image = torch.randn(1, 3, 16, 24)
    path = deliver(Gated().eval(), image, tmp_path / "model.onnx", "onnx", None).path
    graph = onnx.load(path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Mul":
            gates = [
                made_by[name]
                for name in node.input
                if name in made_by and made_by[name].op_type == "HardSigmoid"
            ]
            assert all(gate.input[0] in node.input for gate in gates)


def test_opencv_computes_the_same(tmp_path):
    cv2 = pytest.importorskip(
        "cv2", reason="OpenCV is not installed: pip install opencv-python-headless"
    )
    network, image = Gated().eval(), torch.randn(1, 3, 16, 24)
    path = deliver(network, image, tmp_path / "model.onnx", "onnx", None).path
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(image.numpy())
    with torch.no_grad():
        expected = network(image).numpy()
    np.testing.assert_allclose(net.forward(), expected, atol=1e-4 * expected.std())
