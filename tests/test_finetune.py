"""Fine-tuning in int8: what torch rounds is what the file rounds, and what was learned is in it."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from support.tiny_backbone import offer_tiny, tiny
from test_quantize import CLASSES, FACTS, SIZE, images, prepared
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import randomize

from fleetnet import checkpoint, cli, runtimes
from fleetnet.backbones.mobileone import Convolution
from fleetnet.backbones.repvit import RepVGGDW
from fleetnet.cli import main
from fleetnet.data import Sample, Split, load
from fleetnet.errors import DataError, ExportError, NotFiniteError, UsageError
from fleetnet.int8 import _finetune
from fleetnet.int8._equalize import equalize
from fleetnet.int8._fake import FakeQuantized, Layer, Merged, _ToSteps, safe_scales
from fleetnet.int8._finetune import FineTuned, Plan, begin, distance, fine_tune
from fleetnet.int8._operators import OPERATORS, steps_of
from fleetnet.int8._prepared import Prepared
from fleetnet.int8._search import missing, quantize
from fleetnet.int8._sensitivity import answers, sqnr
from fleetnet.parc import ParC
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import reparameterize
from fleetnet.runtimes._int8 import overflowing
from fleetnet.runtimes._int8 import safe_scales as safe_scales_of_file
from fleetnet.runtimes.openvino import core

EPOCHS = 8
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "litert": "model.tflite"}


class Backbone(nn.Module):
    """What networks are made of: a gate of two layers, a part convolved beside the rest, GELU, ReLU, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.part = nn.Conv2d(4, 4, 3, 1, 1, bias=False)
        self.expand = nn.Conv2d(16, 32, 1)
        self.project = nn.Conv2d(32, 16, 1)
        self.reduce, self.widen = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        first, rest = x.split((4, 12), 1)
        y = self.project(F.gelu(self.expand(torch.cat((self.part(first), rest), 1))))
        x = x + y
        gate = self.widen(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.depthwise(x * gate).relu()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def pictures(count: int) -> Split:
    """One color and noise each, made as they are asked for."""

    def picture(index: int) -> Image.Image:
        numbers = np.random.default_rng(index)
        noise = numbers.normal(numbers.uniform(40, 215, 3), 40, (SIZE, SIZE, 3))
        return Image.fromarray(noise.clip(0, 255).astype(np.uint8))

    samples = [Sample(lambda i=i: picture(i), label=i % CLASSES) for i in range(count)]
    return Split(samples, FACTS.classes)


@pytest.fixture(scope="module")
def source() -> Prepared:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network().eval()
    backbone = network.backbone
    with torch.no_grad():  # a channel has a hundred times the range of the others, for nothing
        for layer in (backbone.stem, backbone.project):
            layer.weight[5] *= 100
            layer.bias[5] *= 100
        for layer in (backbone.expand, backbone.reduce):
            layer.weight[:, 5] /= 100
        backbone.depthwise.weight[5] /= 100
        network.head[2].weight *= 10
    return prepared(network)


@pytest.fixture(scope="module")
def begun(source: Prepared) -> FakeQuantized:
    return begin(source, set())


def fine_tuned(source: Prepared, begun: FakeQuantized, **settings: Any) -> FineTuned:
    """From the file that was exported and calibrated before."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_finetune, "begin", lambda *_: copy.deepcopy(begun))
        data = settings.pop("data", pictures(64))
        return fine_tune(
            source, data, Plan(**{"epochs": EPOCHS, "rate": 0.1, "seed": 1, **settings})
        )


@pytest.fixture(scope="module")
def tuned(source: Prepared, begun: FakeQuantized) -> FineTuned:
    return fine_tuned(source, begun)


# ---- rounding --------------------------------------------------------------------------------------------------------


def test_scales_of_weights_are_those_of_files() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 1), (5, 2), (7, 36)):
        weight = (
            torch.randn(shape, generator=generator)
            * torch.logspace(-20, 3, len(shape) and shape[0])[:, None]
        )
        expected = safe_scales_of_file(weight.numpy())
        assert torch.allclose(safe_scales(weight), torch.from_numpy(expected), rtol=1e-12)


def composed(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    """The same of single operations, whose rounding is a constant beside the value."""
    steps = x / scale
    steps = steps + (steps.round() - steps).detach()
    return ((steps + zero).clamp(0, 255) - zero) * scale


@pytest.mark.parametrize("zero", [0, 100, 255])
def test_gradients_of_a_rounded_map(zero: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, generator=generator) * 4
    gradient = torch.randn(4, 8, generator=generator)
    made = []
    for function in (_ToSteps.apply, composed):
        own, scale = x.clone().requires_grad_(), torch.tensor(0.0301, requires_grad=True)
        y = function(own, scale, zero)
        y.backward(gradient)
        made.append([y.detach(), own.grad, scale.grad])
    for ours, theirs in zip(*made, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert 0 < (made[0][1] == 0).sum() < x.numel()  # some are beyond the range


@torch.no_grad()
def test_a_layer_is_safe_whatever_it_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in (torch.randn(6, 4, 3, 3, generator=generator), torch.ones(6, 10)):
        layer = Layer(weight, torch.tensor([0.0, 1, -1, 1e4, -1e9, 3]), 0, "scale")
        for moved in (0, 40):
            change = layer.kernel.change
            change.copy_(moved * torch.randn(weight.shape, generator=generator))
            scale = torch.tensor(0.02)
            integers, (rounded, bias) = layer.integers(scale), layer(scale)
            whole = integers.weight.flatten(1).numpy()
            assert overflowing({"layer": whole}) == []
            assert np.abs(whole).max() <= 127
            own = integers.weight_scale.view(-1, *[1] * (weight.ndim - 1))
            assert torch.equal(integers.weight * own, rounded)
            assert torch.equal(integers.bias * integers.bias_scale, bias)
            off = (bias - layer.kernel(scale, None)[1]).abs()
            assert (off <= 0.51 * integers.bias_scale + 1e-6 * bias.abs()).all()


def test_it_begins_where_the_quantizer_ends(begun: FakeQuantized) -> None:
    before = {t.name: onnx.numpy_helper.to_array(t) for t in begun.proto.graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t) for t in begun.to_proto().graph.initializer}
    assert before.keys() == after.keys()
    for name, value in before.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(after[name], value, rtol=1e-6, err_msg=name)
        else:
            assert np.array_equal(after[name], value), name


# ---- what torch computes is what the file computes -------------------------------------------------------------------


def test_everything_with_weights_is_in_int8(begun: FakeQuantized) -> None:
    names = {name.split("/")[0] for name, _ in begun.each_layer()}
    expected = ["stem", "part", "expand", "project", "reduce", "widen", "depthwise"]
    assert names == {*(f"backbone.{name}" for name in expected), "head.2"}


class Sides(nn.Module):
    """What the file holds as the ends of a range, and a layer whose sum is rounded."""

    def __init__(self, cutting: nn.Module) -> None:
        super().__init__()
        self.cutting = cutting
        self.cut, self.added = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(3, 8, 3, 2)
        self.last = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.last(self.cutting(self.cut(x)) + self.added(x)))


@pytest.mark.parametrize(
    "cutting", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.2, 0.2), nn.Hardtanh(-3, 0.1)]
)
def test_what_openvino_does_not_round(cutting: nn.Module) -> None:
    """Maps that no layer takes; but what cuts values off stays."""
    torch.manual_seed(0)
    network = Network()
    network.backbone = Sides(cutting)
    begun = begin(prepared(network.eval()), set())
    by_name = {step.outputs[0]: step.inputs[0] for step in begun.steps}
    left_out = {begun.makers[by_name[name]].name for name in begun.maps_between()}
    assert left_out == {"backbone.added/Conv", "backbone.last/Conv"}
    x = images(4)
    rounded, exact = (
        answers(net.eval(), x) for net in (begun, begun.without(begun.maps_between()))
    )
    assert sqnr(rounded, exact) > 25


class Positioned(nn.Module):
    """What ParC's and ConvNeXt's blocks have: a constant map, a scale a channel, a layer of four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, SIZE // 4, SIZE // 4))
        self.linear = nn.Linear(16, 16)
        self.gamma = nn.Parameter(torch.rand(16, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        return x + self.gamma * self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_constants_and_layers_of_four_dimensions(tmp_path: Path) -> None:
    """onnxruntime rounds constants of sums and products too; they are no layers."""
    torch.manual_seed(0)
    network = Network().eval()
    network.backbone = Positioned()
    begun = begin(prepared(network), set())
    names = {name.split("/")[0] for name, _ in begun.each_layer()}
    assert names == {"backbone.stem", "backbone.linear", "head.2"}
    onnx.save(begun.to_proto(), tmp_path / "int8.onnx")
    run = runtimes.load("onnx", tmp_path / "int8.onnx")
    seen = images(4, 3)
    expected = np.concatenate([run(one.numpy())[0] for one in seen.split(1)])
    outputs = begun(seen)
    (logits,) = outputs.values()
    assert np.abs(logits.detach().numpy() - expected).max() < 0.05 * expected.std()
    logits.square().sum().backward()
    assert all(layer.kernel.change.grad is not None for _, layer in begun.each_layer())


class Circular(nn.Module):
    """Of ParC-Net: a part convolved around the whole picture, and groups of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.groups = nn.Conv2d(16, 16, 3, 1, 1, groups=4)
        self.doubled = nn.Conv2d(16, 32, 3, 1, 1, groups=16)
        self.halved = nn.Conv2d(32, 16, 1, groups=16)
        self.parc = ParC(16, SIZE // 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(self.stem(x)).relu()
        x = self.halved(F.silu(self.doubled(x)))
        return x + self.parc(x)


@pytest.fixture(scope="module")
def circular() -> tuple[Prepared, FineTuned]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network()
    network.backbone = Circular()
    source = prepared(reparameterize(network.eval(), torch.zeros(1, 3, SIZE, SIZE)))
    return source, fine_tune(source, pictures(32), Plan(1, rate=0.1))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_files_with_parc_compute_what_was_trained(
    circular: tuple[Prepared, FineTuned], tmp_path: Path, runtime: str
) -> None:
    source, tuned = circular
    names = {name.split("/")[0] for name, _ in tuned.network.each_layer()}
    assert {"backbone.stem", "backbone.groups", "head.2"} < names
    assert sum("parc" in name for name in names) == 2
    file = quantize(source, runtime, tmp_path / FILES[runtime], max_drop=100, tuned=tuned)
    assert file.macs == 1
    assert file.as_trained.sqnr > 40
    if runtime == "openvino":  # which has no fast kernels for groups of several channels
        nodes = core().read_model(file.path).get_ops()
        groups = [node for node in nodes if node.get_type_name() == "GroupConvolution"]
        assert len(groups) == 3
        assert all(node.get_input_shape(1)[1:3] == [1, 1] for node in groups)


@pytest.mark.parametrize("runtime", FILES)
def test_files_compute_what_was_trained(
    source: Prepared, tuned: FineTuned, tmp_path: Path, runtime: str
) -> None:
    if missing(runtime):
        pytest.skip(missing(runtime))
    file = tmp_path / FILES[runtime]
    done = quantize(source, runtime, file, max_drop=100, tuned=tuned)
    assert done.macs == 1
    assert done.others == done.skipped == []
    assert len(done.attempts) == 1
    assert done.as_trained.agreement >= 0.98
    assert done.as_trained.sqnr > done.sqnr + 10  # nearer to it than that is to the float network
    about = json.loads(done.sidecar.read_text())["int8"]
    assert about["finetuned"]["epochs"] == EPOCHS
    assert about["as_trained"]["agreement"] == done.as_trained.agreement
    assert about["largest_pair"] <= 128


def test_it_learns_what_rounding_lost(
    begun: FakeQuantized, tuned: FineTuned, source: Prepared
) -> None:
    assert tuned.about["losses"][-1] < 0.7 * tuned.about["losses"][0]
    float_answers = answers(source.deployed, source.held)
    before = sqnr(float_answers, answers(begun, source.held))
    after = sqnr(float_answers, answers(tuned.network, source.held))
    assert after > before + 2


def test_one_seed_gives_one_file(source: Prepared, begun: FakeQuantized, tuned: FineTuned) -> None:
    again = fine_tuned(source, begun)
    assert (
        again.network.to_proto().SerializeToString() == tuned.network.to_proto().SerializeToString()
    )
    other = fine_tuned(source, begun, seed=2)
    assert (
        other.network.to_proto().SerializeToString() != tuned.network.to_proto().SerializeToString()
    )


# ---- branches --------------------------------------------------------------------------------------------------------


class Branchy(nn.Module):
    """Sums of branches in chains of ReLU, which equalization changes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            Convolution(3, 8, 3, stride=2),
            Convolution(8, 8, 3, groups=8, count=2, skip=True),
            Convolution(8, 12, 1, count=2),
        )
        self.mixer = RepVGGDW(12, 1, version=2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixer(self.backbone(x)))


@pytest.fixture(scope="module")
def branchy() -> Prepared:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = randomize(Branchy(), 0).train()
    with torch.no_grad():
        for _ in range(40):
            network(images(32, 3))  # for the statistics
        network.eval().head[2].weight *= 10
    source = prepared(network)
    deployed, scales = equalize(reparameterize(network), source.images)
    assert len(scales) == 5  # all that there are
    return dataclasses.replace(source, deployed=deployed, scales=scales)


def test_branches_learn_in_place_of_their_kernels(branchy: Prepared, tmp_path: Path) -> None:
    begun = begin(branchy, set())
    sums = _finetune._sums(branchy.model)
    assert len(sums) == 4
    merged = copy.deepcopy(begun).eval()
    merged.put_branches(sums, branchy.scales)
    merged.eval()
    assert sqnr(answers(begun, branchy.held), answers(merged, branchy.held)) > 40

    tuned = fine_tuned(branchy, begun, branches=True)
    assert tuned.about["losses"][-1] < 0.8 * tuned.about["losses"][0]
    before, after = (dict(one.named_parameters()) for one in (merged, tuned.network))
    branches = [name for name in before if ".branches." in name]
    assert len(branches) > 20
    assert all(not torch.equal(before[name], after[name]) for name in branches)
    assert not any("kernel.change" in name for name in before if "layers.1." in name)
    counts = {
        name: int(value) for name, value in tuned.network.named_buffers() if "num_batches" in name
    }
    # those before, and those of 2 updates in an epoch until half of all
    assert set(counts.values()) == {40 + EPOCHS}
    done = quantize(branchy, "onnx", tmp_path / "model.onnx", max_drop=100, tuned=tuned)
    assert done.as_trained.agreement == 1
    assert done.as_trained.sqnr > done.sqnr + 10
    assert done.macs == 1


def test_branches_that_are_not_there(branchy: Prepared, source: Prepared) -> None:
    with pytest.raises(UsageError, match="network has no sum of branches, as those of MobileOne"):
        _finetune._sums(source.model)
    layer = Layer(torch.randn(12, 1, 3, 3), torch.zeros(12), 0, "scale")
    kernel = Merged(branchy.model.mixer, torch.ones(12), torch.ones(12))
    with pytest.raises(ExportError, match="branches of mixer do not merge to its kernel"):
        layer.put(kernel, "mixer")


# ---- operators -------------------------------------------------------------------------------------------------------

X = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
V = torch.rand(6, generator=torch.Generator().manual_seed(2))
# of each operator: inputs, attributes
EXAMPLES: dict[str, list[tuple[list[object], dict[str, Any]]]] = {
    "Add": [([X, X[:, :, :1]], {})],
    "AveragePool": [
        ([X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ([X], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1] * 4, "count_include_pad": 1}),
    ],
    "BatchNormalization": [([X, V, V, V, V], {"epsilon": 1e-3})],
    "Cast": [([X], {"to": TensorProto.DOUBLE})],
    "Clip": [([X, torch.tensor(0.0), torch.tensor(1.0)], {}), ([X, None, torch.tensor(0.5)], {})],
    "Concat": [([X, X], {"axis": 1}), ([X, X, X], {"axis": -1})],
    "Conv": [
        ([X, W], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ([X, W, V[:4]], {"group": 2, "pads": [0, 1, 2, 3], "dilations": [2, 1]}),
    ],
    "Div": [([X, V.view(1, 6, 1, 1) + 1], {})],
    "Erf": [([X], {})],
    "Exp": [([X], {})],
    "Expand": [([X[:, :, :1], [1, 6, 8, 8]], {})],
    "Flatten": [([X], {}), ([X], {"axis": 2})],
    "Gelu": [([X], {}), ([X], {"approximate": "tanh"})],
    "Gemm": [([X[0, 0], W.view(4, 27)[:, :8], V[:4]], {"transB": 1}), ([X[0, 0], X[0, 1]], {})],
    "GlobalAveragePool": [([X], {})],
    "HardSigmoid": [([X], {"alpha": 1 / 6, "beta": 0.5})],
    "HardSwish": [([X], {})],
    "Identity": [([X], {})],
    "LayerNormalization": [([X, V.repeat(2)[:8], V.repeat(2)[:8]], {"epsilon": 1e-3})],
    "LeakyRelu": [([X], {"alpha": 0.1})],
    "MatMul": [([X, X], {})],
    "MaxPool": [
        ([X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1})
    ],
    "Mul": [([X, X], {})],
    "Pad": [([X, [0, 0, 1, 2, 0, 0, 3, 4]], {}), ([X, [0] * 6 + [1, 1], torch.tensor(2.0)], {})],
    "Pow": [([X, torch.tensor(2.0)], {})],
    "ReduceMean": [([X, [2, 3]], {}), ([X, [1]], {"keepdims": 0})],
    "Relu": [([X], {})],
    "Reshape": [([X, [1, 0, -1]], {})],
    "Resize": [
        ([X, None, None, [1, 6, 20, 13]], {"mode": "linear", "coordinate_transformation_mode": way})
        for way in ("half_pixel", "pytorch_half_pixel", "align_corners")
    ]
    + [
        (
            [X, None, torch.tensor([1.0, 1, 2, 2])],
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        )
    ],
    "Sigmoid": [([X], {})],
    "Slice": [([X, [1, 2], [100, 7], [1, 3], [1, 2]], {}), ([X, [0, -3], [1, -1]], {})],
    "Softmax": [([X], {"axis": 1})],
    "Split": [([X, [2, 4]], {"axis": 1, "outputs": 2}), ([X], {"axis": 2, "num_outputs": 4})],
    "Sqrt": [([X.abs()], {})],
    "Squeeze": [([X, [0]], {})],
    "Sub": [([X, X[:, :1]], {})],
    "Tanh": [([X], {})],
    "Transpose": [([X], {"perm": [0, 2, 3, 1]})],
    "Unsqueeze": [([X, [4, 1]], {})],
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_compute_what_onnxruntime_computes(operator: str) -> None:
    import onnxruntime

    for inputs, attributes in EXAMPLES[operator]:
        attributes = dict(attributes)
        count = attributes.pop("outputs", attributes.get("num_outputs", 1))
        arrays = [None if v is None else np.asarray(v) for v in inputs]
        names = ["" if a is None else f"in{i}" for i, a in enumerate(arrays)]
        outputs = [f"out{i}" for i in range(count)]
        node = helper.make_node(operator, names, outputs, name="node", **attributes)
        fed = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
        kinds = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in fed.items()
        ]
        kind = attributes.get("to", TensorProto.FLOAT)
        made = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph([node], "one", kinds, made)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 9
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        expected = session.run(None, fed)
        (step,) = steps_of(graph)
        ours = OPERATORS[operator](
            step, *(None if a is None else torch.from_numpy(a.copy()) for a in arrays)
        )
        for value, right in zip(
            [ours] if isinstance(ours, Tensor) else ours, expected, strict=True
        ):
            assert value.shape == right.shape
            np.testing.assert_allclose(value.numpy(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["Reshape", "Expand"])
def test_a_leading_one_is_the_batch(operator: str) -> None:
    step = steps_of(
        helper.make_graph([helper.make_node(operator, ["x", "s"], ["y"])], "one", [], [])
    )[0]
    y = OPERATORS[operator](step, X[:, :, :1].expand(5, -1, -1, -1), torch.tensor([1, 6, 1, 8]))
    assert y.shape == (5, 6, 1, 8)


def test_an_output_that_is_the_same_for_every_picture() -> None:
    """As a detector's anchors are."""
    of = helper.make_tensor_value_info
    outputs = [of("y", TensorProto.FLOAT, None), of("anchors", TensorProto.FLOAT, [1, 5, 4])]
    anchors = onnx.numpy_helper.from_array(np.ones((1, 5, 4), np.float32), "anchors")
    node = helper.make_node("Relu", ["image"], ["y"], name="head/Relu")
    inputs = [of("image", TensorProto.FLOAT, [1, 3, 4, 4])]
    graph = helper.make_graph([node], "one", inputs, outputs, [anchors])
    made = FakeQuantized(helper.make_model(graph), graph)(torch.randn(3, 3, 4, 4))
    assert made["y"].shape == (3, 3, 4, 4)
    assert made["anchors"].shape == (3, 5, 4)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_fine_tuned(begun: FakeQuantized, source: Prepared) -> None:
    for values, words in (({"epochs": 0}, "0 epochs"), ({"epochs": 1, "rate": 0.0}, "rate of 0.0")):
        with pytest.raises(
            UsageError, match=f"fine-tuning for .*{words}.*allowed: at least 1 epoch"
        ):
            Plan(**values)
    proto = onnx.ModelProto()
    proto.CopyFrom(begun.proto)
    proto.graph.node.append(helper.make_node("NonZero", ["image"], ["places"], name="head/NonZero"))
    floats = helper.make_graph([], "floats", [], [])
    for name, layer in source.deployed.named_modules():
        for key, value in layer.named_parameters(f"{name}", recurse=False):
            floats.initializer.append(onnx.numpy_helper.from_array(value.detach().numpy(), key))
    with pytest.raises(ExportError, match=r"does not know backbone\.stem\.\w+, which layers may"):
        FakeQuantized(begun.proto, proto.graph)
    with pytest.raises(ExportError, match=r"how to compute NonZero \(head/NonZero\)"):
        FakeQuantized(proto, floats)
    bad = Split(
        [Sample(lambda: (_ for _ in ()).throw(DataError("no picture")), label=0)] * 4, FACTS.classes
    )
    with pytest.raises(DataError, match="no picture could be read to fine-tune on; the first: "):
        fine_tuned(source, begun, data=bad, epochs=1)
    with pytest.raises(NotFiniteError, match=r"diverged: the loss is .* at a rate of 1e\+30 steps"):
        fine_tuned(source, begun, rate=1e30)


def test_how_far_outputs_are_apart() -> None:
    a, b = torch.randn(2, 5, 4).unbind()
    assert distance({"logits": a}, {"logits": a}, "classification") == pytest.approx(0, abs=1e-6)
    expected = (a.softmax(1) * (a.softmax(1) / b.softmax(1)).log()).sum(1).mean()
    assert distance({"logits": b}, {"logits": a}, "classification") == pytest.approx(
        expected.item()
    )
    boxes = {"boxes": a, "scores": 3 * b, "labels": torch.arange(5)}
    own = {"boxes": a.mean().expand_as(a), "scores": 3 * b, "labels": torch.zeros(5)}
    assert distance(own, boxes, "ssd") == pytest.approx(
        (a.var(correction=0) / a.var()).item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("words", "said"), [(["--branches"], "--branches says"), (["--rate", "0.1"], "--rate says")]
)
def test_settings_of_fine_tuning_without_it(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", "--model", "m", "--data", "d", "--to", "onnx", *words]) == 2
    assert said in capsys.readouterr().err


def test_command(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cli.VERBS, "quantize", "write a network in int8")
    offer_tiny(monkeypatch)
    classes = load(str(photos), "train").classes
    file, out = tmp_path / "best.safetensors", tmp_path / "files"
    model = tiny("classification", len(classes)).eval()
    checkpoint.save(file, model, classes=classes, preprocess=Preprocess((32, 32)))
    words = f"quantize --model {file} --data {photos} --to onnx --max-drop 100 --threads 1"
    words += f" --out {out} --finetune 2 --seed 3 --skip backbone.stages.0.* --json"
    assert main(words.split()) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert document["finetuned"]["seed"] == 3
    assert len(document["finetuned"]["losses"]) == 2
    (made,) = document["quantized"]
    assert made["as_trained"]["agreement"] == 1
    assert made["skipped"] == ["backbone.stages.0.0"]
    assert 0 < made["macs_in_int8"] < 1
    assert "fine-tuning in int8 on 24 pictures" in captured.err
    assert "epoch 2 of 2: " in captured.err
    about = json.loads((out / "onnx-int8" / "model.json").read_text())["int8"]
    assert about["finetuned"]["losses"] == document["finetuned"]["losses"]
