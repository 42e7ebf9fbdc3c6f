"""Int8: what comes before keeps what a network computes; what is refused leaves nothing; what is given loads."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import randomize

import fleetnet
from fleetnet import checkpoint, cli, int8
from fleetnet.backbones.mobileone import MobileOne
from fleetnet.cli import main
from fleetnet.errors import DataError, ExportError, ModelError, UsageError
from fleetnet.facts import Exported, Facts
from fleetnet.find import find
from fleetnet.geometry import Place
from fleetnet.inputs.dataset import Batch
from fleetnet.int8 import _openvino_kernels
from fleetnet.int8._channels import FIXED, follow
from fleetnet.int8._equalize import equalize
from fleetnet.int8._norms import recalibrate
from fleetnet.int8._prepared import Prepared, calibration, prepare
from fleetnet.int8._search import _steps, quantize
from fleetnet.int8._sensitivity import _rounded, _rounded_weight, sensitivity, sqnr
from fleetnet.parc import ParC
from fleetnet.preprocess import Preprocess
from fleetnet.proof.as_if_trained import as_if_trained, pictures
from fleetnet.reparam import difference, reparameterize
from fleetnet.runtimes import Request
from fleetnet.runtimes._int8 import safe_scales
from fleetnet.tasks import build

CLASSES, SIZE = 4, 24
FACTS = Facts(
    "fasternet_t0",
    "classification",
    "deploy",
    [*"abcd"],
    Preprocess((SIZE, SIZE)),
    output_stride=32,
    exported=Exported(),
)


class Tiny(nn.Module):
    """Every kind of neighbor: ReLU, GELU, a gate, a sum, a depthwise layer, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.expand = nn.Conv2d(24, 48, 1)
        self.project = nn.Conv2d(48, 24, 1, bias=False)
        self.gate = nn.Conv2d(24, 24, 1)
        self.last = nn.Conv2d(24, 32, 1)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x).relu()).relu()
        x = self.pointwise(x)
        x = x + self.project(F.gelu(self.expand(x)))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.classifier(self.last(x).relu())


def images(count: int = 24, seed: int = 0) -> Tensor:
    """Noise around a color of each image, so that images differ behind the pooling."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randn(count, 3, 1, 1, generator=generator)
    return colors + 0.5 * torch.randn(count, 3, SIZE, SIZE, generator=generator)


@torch.no_grad()
def tiny() -> Tiny:
    """Random, with classes that are told apart: no logit leads everywhere."""
    torch.manual_seed(0)
    model = Tiny().eval()
    logits = model(images(200, 1))
    linear = model.classifier[2]
    linear.weight.div_(logits.std(0)[:, None])
    linear.bias.copy_((linear.bias - logits.mean(0)) / logits.std(0))
    return model


@torch.no_grad()
def prepared(model: nn.Module, calibrated_on: Tensor | None = None) -> Prepared:
    """As `prepare` would, of a checkpoint that is always right."""
    seen = images(64, 2)
    logits = model(seen)
    targets = {"label": logits.argmax(1)}
    batches = [
        Batch(
            seen[i : i + 16],
            {"label": targets["label"][i : i + 16]},
            [],
            [*range(16)],
            [Place(SIZE, SIZE)] * 16,
        )
        for i in range(0, 64, 16)
    ]
    calibrated_on = images() if calibrated_on is None else calibrated_on
    return Prepared(
        FACTS,
        model,
        model,
        calibrated_on,
        [*images(4, 7).split(1), *calibrated_on[:4].split(1)],
        seen[:8],
        batches,
        {"top1": 100.0, "loss": 0.0},
        logits,
    )


@torch.no_grad()
def plant(model: Tiny) -> None:
    """A channel of what `depthwise` gives is ten thousand times the others; `pointwise` takes it back."""
    model.depthwise.weight[3] *= 1e4
    model.depthwise.bias[3] *= 1e4
    model.pointwise.weight[:, 3] /= 1e4


# ---- equalization ----------------------------------------------------------------------------------------------------


def test_channels_that_may_be_scaled_together() -> None:
    layers = {one.weight.removesuffix(".weight"): one for one in follow(tiny(), images(1)).layers}
    stream = layers["pointwise"].made
    assert len(set(stream)) == 24
    assert FIXED not in stream
    # A sum and a product with a gate leave a channel what it is, for all that take it.
    for taken in (layers[name].taken for name in ("expand", "gate", "last")):
        assert np.array_equal(taken, stream)
    assert np.array_equal(layers["project"].made, stream)
    # ReLU commutes with a factor; a depthwise layer begins anew; GELU and sigmoid commute with none.
    assert np.array_equal(layers["stem"].made, layers["depthwise"].taken)
    assert not set(layers["depthwise"].made) & set(layers["depthwise"].taken)
    fixed = layers["stem"].taken, layers["expand"].made, layers["gate"].made
    for classes in (*fixed, layers["project"].taken, layers["classifier.2"].made):
        assert set(classes) == {FIXED}


class Residual(nn.Module):
    """A stream whose second channel is a thousand times as large as the others, which nothing hides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            for made in (self.first, self.second):
                made.weight[1] *= 1e3
            for taken in (self.second, self.head):
                taken.weight[:, 1] *= 1e-3

    def stream(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.second(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stream(x)).mean((2, 3))


@torch.no_grad()
def test_equalizing_a_residual_stream() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    equal, scales = equalize(model, images())
    assert set(scales) == {"first", "second", "head"}
    assert (equal(images()) - model(images())).abs().max() < 1e-5 * model(images()).std()

    def spread(network: Residual) -> float:
        ranges = network.stream(images()).abs().amax((0, 2, 3))
        return (ranges.max() / ranges.min()).item()

    assert spread(model) > 300
    assert spread(equal) < 10


@torch.no_grad()
def test_equalizing_changes_nothing_but_the_ranges() -> None:
    model = tiny()
    plant(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    equal, scales = equalize(model, images())
    # all but a layer between GELU and a sum would be: expand takes the stream, project gives it
    assert len(scales) == 8
    x = images(16, 5)
    assert (equal(x) - model(x)).abs().max() < 1e-4 * model(x).std()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def spread(net: nn.Module) -> float:
        ranges = net.depthwise(net.stem(images()).relu()).relu().amax((0, 2, 3))
        return (ranges.max() / ranges[ranges > 0].min()).item()  # a channel may never fire

    assert spread(model) > 1e4
    assert spread(equal) < 1e3
    # what a depthwise layer takes becomes quite equal
    maps = equal.stem(images()).relu().amax((0, 2, 3))
    assert maps.max() / maps.min() < 1.01


@torch.no_grad()
def test_equalizing_a_channel_that_never_fires() -> None:
    model = tiny()
    model.stem.weight[2], model.stem.bias[2] = 0, -1
    equal, _ = equalize(model, images())
    assert torch.equal(equal.stem.weight[2], model.stem.weight[2])
    assert equal.stem.weight.isfinite().all()
    assert (equal(images()) - model(images())).abs().max() < 1e-4 * model(images()).std()


@torch.no_grad()
def test_equalizing_mobileone() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = MobileOne((8, 8, 16, 24, 32), se=(0, 0, 1, 0), branches=2)
            self.head = self.backbone.classifier(CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x)[-1])

    deployed = reparameterize(randomize(Network(), 0), images(1))
    equal, scales = equalize(deployed, images())
    layers = {
        name for name, one in deployed.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)
    }
    # what a gate's second layer takes may never fire, with random weights
    assert not {name for name in layers - set(scales) if not name.endswith("se.expand")}
    x = images(8, 5)
    assert (equal(x) - deployed(x)).abs().max() < 1e-5 * deployed(x).std()


class Flat(nn.Module):
    """Its linear layer takes the pixels of each channel, not the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, SIZE * SIZE, 1), nn.Linear(SIZE * SIZE, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().flatten(2))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.permute(0, 2, 3, 1)).relu())


@pytest.mark.parametrize(("kind", "count"), [(Flat, 0), (ChannelsLast, 2)])
@torch.no_grad()
def test_equalizing_channels_that_are_not_the_second_dimension(
    kind: type[nn.Module], count: int
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    equal, scales = equalize(model, images())
    assert len(scales) == count
    assert (equal(images()) - model(images())).abs().max() < 1e-5 * model(images()).std()


def test_gelu_lets_nothing_be_scaled() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 1)).eval()
    assert equalize(model, images())[1] == {}


def joined(x: Tensor) -> Tensor:
    return torch.cat([x[:, 4:], x.narrow(1, 0, 4).relu()], 1)


def turned(x: Tensor) -> Tensor:
    """As ParC extends a feature."""
    return torch.cat([x, x.narrow(2, 0, x.shape[2] - 1)], 2)


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second, first], 1) + torch.cat(x.split((2, 6), 1), 1)


def pooled(x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True).expand(x.shape)
    return F.interpolate(F.max_pool2d(x, 3, 2, 1), scale_factor=2) + F.avg_pool2d(x, 3, 1, 1) + mean


def flattened(x: Tensor) -> Tensor:
    return x.flatten(2).view(x.shape).permute(0, 2, 3, 1).permute(0, 3, 1, 2)


def scaled(x: Tensor) -> Tensor:
    return F.leaky_relu(x) * torch.tensor(0.3) - 0.5 * x.relu()


def mixed(x: Tensor) -> Tensor:
    """Of what is joined with channels that cannot be scaled, none are."""
    return torch.cat([x[:, :4], F.gelu(x[:, 4:])], 1)


def compared_to_each_other(x: Tensor) -> Tensor:
    return x.softmax(1)


def with_a_constant(x: Tensor) -> Tensor:
    """Which is no parameter: it stays as it is."""
    return x + torch.arange(8.0).view(8, 1, 1)


def blurred(x: Tensor) -> Tensor:
    """By a kernel that is no parameter."""
    return F.conv2d(x, torch.full((8, 1, 3, 3), 1 / 9), padding=1, groups=8)


def pooled_without_batch(x: Tensor) -> Tensor:
    """As one picture (C, H, W), whose channels are the batch here."""
    return F.avg_pool2d(x.flatten(2), 3, 1, 1).view(x.shape)


def weighed_by_columns(x: Tensor) -> Tensor:
    """The means of channels stand for columns, of which there are as many at one size."""
    return x.mean((2, 3)).repeat(1, x.shape[3] // 8) * F.gelu(x)


def less_all(x: Tensor) -> Tensor:
    """No dimension means all of them."""
    return x - x.mean((), keepdim=True)


def pooled_over_channels(x: Tensor) -> Tensor:
    return F.max_pool2d(x.permute(0, 2, 3, 1), 3, 1, 1).permute(0, 3, 1, 2)


def squared(x: Tensor) -> Tensor:
    return x * x


def moved(x: Tensor) -> Tensor:
    return x + 1.0


def rolled(x: Tensor) -> Tensor:
    """Channels become others."""
    return x.roll(1, 1) + x


WAYS = {
    joined: True, turned: True, halves: True, pooled: True, flattened: True, scaled: True,
    mixed: False, compared_to_each_other: False, pooled_over_channels: False,
    squared: False, moved: False, rolled: False, with_a_constant: False, blurred: False,
    pooled_without_batch: False, weighed_by_columns: False, less_all: False,
}  # fmt: skip


class Way(nn.Module):
    """Something between two layers, the first of which gives channels of unlike ranges."""

    def __init__(self, way: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.first, self.second, self.way = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding=1), way
        self.shift = nn.Parameter(torch.randn(1, 8, size, 1))
        with torch.no_grad():
            self.first.weight *= torch.logspace(-2, 2, 8).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.way(self.first(x) + self.shift))


@pytest.mark.parametrize("size", [24, 8])  # with as many columns as channels, too
@pytest.mark.parametrize(("way", "is_scaled"), list(WAYS.items()))
@torch.no_grad()
def test_what_lies_between_two_layers(
    way: Callable[[Tensor], Tensor], is_scaled: bool, size: int
) -> None:
    torch.manual_seed(0)
    model = Way(way, size).eval()
    equal, scales = equalize(model, images()[..., :size, :size])
    for x in images(4, 5)[..., :size, :size].split(1):
        assert (equal(x) - model(x)).abs().max() < 1e-5 * model(x).std()
    assert bool(scales) == is_scaled
    assert torch.equal(equal.shift, model.shift) != is_scaled


@pytest.mark.parametrize("name", ["repvit_m0_6", "fasternet_t0", "parcnet_xs", "parc_mobilenetv2"])
@torch.no_grad()
def test_equalizing_whole_networks(name: str) -> None:
    torch.manual_seed(0)
    x = pictures((64, 64))
    deployed = reparameterize(as_if_trained(build(name, CLASSES), (64, 64)), x[:1])
    equal, scales = equalize(deployed, x)
    assert len(scales) > 10
    assert difference([deployed(x)], [equal(x)])[1] < 1e-4


# ---- batch norms -----------------------------------------------------------------------------------------------------


def test_recalibrated_norms_have_the_statistics_of_the_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
    ).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = 3 * images(32) + 1
    again = recalibrate(model, x, batch=8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in again.modules())
    assert again[1].momentum == 0.1
    with torch.no_grad():
        # the mean over batches of each batch's mean and variance
        first = [model[0](part) for part in x.split(8)]
        assert torch.allclose(
            again[1].running_mean,
            torch.stack([o.mean((0, 2, 3)) for o in first]).mean(0),
            atol=1e-5,
        )
        variances = torch.stack([o.var((0, 2, 3)) for o in first]).mean(0)
        assert torch.allclose(again[1].running_var, variances, rtol=1e-4)
        # by the batch's own
        seen = [model[4](F.batch_norm(o, None, None, training=True).relu()) for o in first]
        assert torch.allclose(
            again[5].running_mean, torch.stack([o.mean((0, 2, 3)) for o in seen]).mean(0), atol=1e-4
        )
        assert torch.allclose(again(x).mean((0, 2, 3)), torch.zeros(8), atol=0.1)
        assert not torch.allclose(model(x).mean((0, 2, 3)), torch.zeros(8), atol=0.1)


def test_recalibrating_needs_norms_and_images() -> None:
    with pytest.raises(UsageError, match="multi-branch"):
        recalibrate(tiny(), images())
    with pytest.raises(UsageError, match="at least 2"):
        recalibrate(nn.Sequential(nn.BatchNorm2d(3)), images(1))


def test_norms_are_recalibrated_where_that_is_asked_for(tmp_path: Path) -> None:
    """Before they are folded, as the sidecar will say."""
    model = randomize(build("fasternet_t0", CLASSES), 0)
    preprocess = Preprocess((32, 32))
    checkpoint.save(tmp_path / "best.safetensors", model, classes=[*"abcd"], preprocess=preprocess)
    seen = F.interpolate(images(8), preprocess.size)
    labels = {"label": torch.zeros(len(seen), dtype=torch.int64)}
    batches = [Batch(seen, labels, [], [*range(8)], [Place(32, 32)] * len(seen))]
    for asked, norms_of in ((False, model), (True, recalibrate(model, seen))):
        source = prepare(tmp_path, seen, batches, equalizing=False, recalibrating=asked)
        assert source.recalibrated == asked
        with torch.no_grad():
            expected, actual = norms_of(seen), source.deployed(seen)
        assert (actual - expected).abs().max() < 1e-4 * expected.std()


def test_calibration_takes_pictures_from_everywhere() -> None:
    """Data are often sorted by class: the first pictures would be of one."""
    grays = [partial(Image.new, "RGB", (SIZE, SIZE), (gray,) * 3) for gray in range(100)]
    preprocess = Preprocess((SIZE, SIZE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def taken(count: int) -> list[int]:
        pictures = calibration(grays, preprocess, count)  # (N, 3, H, W)
        return [round(255 * picture.mean().item()) for picture in pictures]

    assert taken(10) == [*range(0, 100, 10)]
    assert taken(200) == [*range(100)]


# ---- sensitivity -----------------------------------------------------------------------------------------------------


def test_emulated_rounding() -> None:
    x = images(2) * 3
    low, high = x.min().item(), x.max().item()
    rounded = _rounded(x, low, high)
    assert (rounded - x).abs().max() <= (high - low) / 255 * 0.51
    assert len(rounded.unique()) <= 256
    weight = torch.randn(5, 4, 3, 3) * torch.logspace(-4, 2, 5).view(-1, 1, 1, 1)
    off = (_rounded_weight(weight) - weight).flatten(1).abs().amax(1)
    scales = torch.from_numpy(safe_scales(weight.flatten(1).numpy()))
    assert (off <= 0.51 * scales).all()  # each channel by its own scale
    assert (scales < 2.1 * weight.flatten(1).abs().amax(1) / 127).all()  # seven bits at least


def test_sqnr() -> None:
    a = torch.ones(1, 100).double()
    assert sqnr([a], [a * 1.1]) == pytest.approx(20)
    assert sqnr([a, a], [a, a * 2]) == pytest.approx(0)  # the worst
    assert sqnr([a], [a]) == 200


def test_the_planted_layer_is_the_most_sensitive() -> None:
    model = tiny()
    usual = sensitivity(model, images(8))
    assert [layer.sqnr for layer in usual] == sorted(layer.sqnr for layer in usual)
    assert {layer.name for layer in usual} == {
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)
    } | {"classifier.2"}
    # its two largest weights leave a linear layer of four outputs seven bits
    assert usual[0].sqnr > 17
    plant(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    worst, second, *_ = sensitivity(model, images(8))
    assert worst.name == "pointwise"
    assert worst.sqnr < 10 < 17 < second.sqnr
    assert worst.agreement < 1
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert sensitivity(equalize(model, images())[0], images(8))[0].sqnr > worst.sqnr + 10


def test_how_many_layers_are_tried() -> None:
    assert _steps(0) == [0]
    assert _steps(1) == [0, 1]
    assert _steps(26) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 26]


# ---- files -----------------------------------------------------------------------------------------------------------


def weights(path: Path) -> dict[str, np.ndarray]:
    """The int8 weights of an ONNX file by module, and their number of scales."""
    import onnx

    proto = onnx.load(path)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    scales = {
        n.output[0]: held[n.input[1]] for n in proto.graph.node if n.op_type == "DequantizeLinear"
    }
    whole = {
        n.output[0]: held.get(n.input[0])
        for n in proto.graph.node
        if n.op_type == "DequantizeLinear"
    }
    return {
        node.name.split("/")[0]: (whole[node.input[1]], scales[node.input[1]])
        for node in proto.graph.node
        if node.op_type in ("Conv", "Gemm") and node.input[1] in whole
    }


def test_onnx(tmp_path: Path) -> None:
    source = prepared(tiny())
    done = quantize(
        source,
        "onnx",
        tmp_path / "onnx-int8" / "model.onnx",
        max_drop=10,
        skip=["classifier.*"],
        facts={"source": "x"},
    )
    held = weights(done.path)
    assert set(held) == {"stem", "depthwise", "pointwise", "expand", "project", "last"}
    for name, (values, scales) in held.items():
        assert values.dtype == np.int8, name
        assert scales.shape == (getattr(source.deployed, name).out_channels,), name
    assert done.skipped == ["classifier.2"]
    assert done.others == ["gate"]
    assert 0.9 < done.macs < 1
    assert len(done.attempts) == 1
    assert done.drop == pytest.approx(100 - 100 * done.agreement)  # the checkpoint is always right
    assert done.sqnr > 15

    predictor = fleetnet.load(done.path)
    assert predictor.classes == [*"abcd"]
    about = json.loads(done.sidecar.read_text())
    golden = np.load(done.golden)
    with torch.no_grad():
        expected = source.model(torch.from_numpy(golden["image"]))
    assert np.array_equal(golden["logits"], expected.numpy())  # the model's, not the file's
    off = np.abs(predictor.raw(golden["image"])[0] - golden["logits"]).max() / expected.std().item()
    assert 0 < off < about["golden_tolerance"] == pytest.approx(2 * off)
    assert about["precision"] == "int8"
    assert about["int8"]["calibration"] == {"images": 24, "source": "x"}
    assert about["int8"]["skipped"] == ["classifier.2"]
    assert about["int8"]["float"]["top1"] == 100
    assert about["int8"]["int8"]["top1"] == about["metrics"]["top1"] == done.result["top1"]
    assert about["outputs"] == [{"name": "logits", "shape": [1, CLASSES], "dtype": "float32"}]
    assert sorted(f.name for f in done.path.parent.iterdir()) == [
        "golden.npz",
        "model.json",
        "model.onnx",
    ]


class Timms(nn.Module):
    """As timm has mobile networks: batch norms that the deploy form keeps, and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 32, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.stem(x)))
        x = F.relu6(self.norm2(self.depthwise(x)))
        return self.classifier(F.relu6(self.norm3(self.pointwise(x))))


@torch.no_grad()
def timms(scale: float) -> Timms:
    """With maps before each ReLU6 that are `scale` times as wide as those of a new batch norm."""
    torch.manual_seed(0)
    model = Timms().train()
    for _ in range(30):
        model(images(64, 3))  # for the statistics
    for norm in (model.norm1, model.norm2, model.norm3):
        norm.weight.mul_(scale)
    return model.eval()


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_layers_before_batch_norms_go_by_their_own_names(tmp_path: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("nncf")
    source = prepared(timms(1.0))
    file = tmp_path / f"model{find('runtimes', runtime).suffix}"
    done = quantize(source, runtime, file, max_drop=100)
    assert done.others == []
    assert done.macs == 1
    skipping = quantize(source, runtime, file, max_drop=100, skip=["depthwise"])
    names = {name.split("/")[0] for name in int8.find(runtime).integer_weights(file)}
    assert "depthwise" not in names
    assert names >= {"pointwise", "classifier.2"}
    assert skipping.macs < 1


def test_a_relu6_bounds_the_range_of_the_layer_before_it(tmp_path: Path) -> None:
    """With the layer's own range, ten times as wide, the outputs have 34 dB."""
    done = quantize(prepared(timms(20.0)), "onnx", tmp_path / "model.onnx", max_drop=100)
    assert done.sqnr > 37  # 40


class Levels(Tiny):
    """As Mask R-CNN's head chooses maps: by the logarithm of an area, which of an empty box is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        level = torch.floor(torch.log2(x.mean((2, 3)).relu() * 0)).clamp(2, 5)  # (N, 3), all 2
        return super().forward(x) + level.mean(1, keepdim=True)


def test_infinite_numbers_of_a_head_are_not_calibrated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = quantize(prepared(Levels().eval()), "onnx", tmp_path / "model.onnx", max_drop=100)
    assert done.layers - len(done.others) > 5


def test_openvino(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    from fleetnet.runtimes import openvino

    source = prepared(tiny())
    done = quantize(
        source, "openvino", tmp_path / "openvino-int8" / "model.xml", max_drop=20, skip=["last"]
    )
    constants = [
        n
        for n in openvino.core().read_model(done.path).get_ops()
        if n.get_type_name() == "Constant"
    ]
    whole = [n.get_output_shape(0) for n in constants if n.get_element_type().to_string() == "i8"]
    assert len([shape for shape in whole if np.prod(shape) > 1]) == done.layers - len(
        done.skipped
    ) - len(done.others)
    assert done.skipped == ["last"]
    assert done.others == []  # NNCF knows gates of two layers
    assert done.sqnr > 15
    predictor, about = fleetnet.load(done.path), json.loads(done.sidecar.read_text())
    golden = np.load(done.golden)
    off = np.abs(predictor.raw(golden["image"])[0] - golden["logits"]).max()
    assert off / golden["logits"].std(ddof=1) < about["golden_tolerance"]
    assert about["int8"]["quantizer"] == "nncf"
    names = sorted(f.name for f in done.path.parent.iterdir())
    assert names == ["golden.npz", "model.bin", "model.json", "model.xml"]


def test_how_openvino_s_layers_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of several channels by layers that have kernels, each map with one range.

    It is centered if it has two sides.
    """
    pytest.importorskip("nncf")
    from fleetnet.runtimes import openvino

    layers = {
        "stem": nn.Conv2d(3, 8, 3), "depthwise": nn.Conv2d(8, 8, 3, groups=8), "doubled": nn.Conv2d(8, 16, 3, groups=8),
        "grouped": nn.Conv2d(16, 8, 3, 2, 1, groups=4), "pointwise": nn.Conv2d(8, 8, 1, groups=4),
        "last": nn.Conv2d(8, 5, 1),
    }  # fmt: skip
    modules = nn.Sequential()
    for name, layer in layers.items():
        modules.add_module(name, layer)
        modules.add_module(f"{name}_relu", nn.Identity() if name == "doubled" else nn.ReLU())
    source, file = tmp_path / "float.xml", tmp_path / "int8.xml"
    openvino.export(Request(modules.eval(), images(1), source))
    write = int8.find("openvino").writer(source, images().numpy())

    def nodes(kind: str) -> list[Any]:
        return [n for n in openvino.core().read_model(file).get_ops() if n.get_type_name() == kind]

    def groups() -> list[str]:
        return [n.get_friendly_name().partition("/")[0] for n in nodes("GroupConvolution")]

    assert write(set(), file, {}) == layers.keys()
    assert sorted(groups()) == ["depthwise", "doubled"]
    assert all(node.get_input_shape(1)[1:3] == [1, 1] for node in nodes("GroupConvolution"))
    ranges = [
        [node.input_value(i).get_node().data.item() for i in (1, 2)]
        for node in nodes("FakeQuantize")
    ]
    centered = [least / most for least, most in ranges if least < 0]
    # the image, and what "doubled" makes
    assert (len(ranges), centered) == (7, [pytest.approx(-128 / 127)] * 2)
    assert len({tuple(ends) for ends in ranges}) == 6  # channels are repeated as they are
    exact, actual = (openvino.load(path)(images(1).numpy())[0] for path in (source, file))
    assert sqnr([torch.from_numpy(exact)], [torch.from_numpy(actual)]) > 25
    assert write({"doubled"}, file, {}) == layers.keys() - {"doubled"}
    assert sorted(groups()) == ["depthwise", "doubled"]
    assert write({"grouped"}, file, {}) == layers.keys() - {"grouped"}
    assert sorted(groups()) == ["depthwise", "doubled", "grouped"]
    monkeypatch.setattr(_openvino_kernels, "MOST_GROUPS", 3)
    assert write(set(), file, {}) == layers.keys() - {"grouped"}
    assert sorted(groups()) == ["depthwise", "doubled", "grouped"]


class Doubled(nn.Module):
    """Each channel gives two, in a layer that is called twice and in one of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv1d(16, 5, 1)
        self.twice, self.back = nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 1)
        self.line = nn.Conv1d(8, 16, 3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.back(self.twice(x).relu())
        return self.last(self.line(x.flatten(2))).mean(2)


def test_channels_are_repeated_in_any_layer(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    from fleetnet.runtimes import openvino

    torch.manual_seed(0)
    source, file = tmp_path / "float.xml", tmp_path / "int8.xml"
    openvino.export(Request(Doubled().eval(), images(1), source))
    write = int8.find("openvino").writer(source, images().numpy())
    assert write(set(), file, {}) == {"stem", "twice", "back", "line", "last"}
    exact, actual = (openvino.load(path)(images(1).numpy())[0] for path in (source, file))
    assert sqnr([torch.from_numpy(exact)], [torch.from_numpy(actual)]) > 20


@pytest.mark.parametrize("output", ["joined", "rounded", "part", ""])
def test_joins_that_are_outputs_stay(output: str) -> None:
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("start", 0), ("end", 3), ("axis", 2))]  # fmt: skip
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [128])
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["part"]),
        helper.make_node("Concat", ["x", "part"], ["joined"], axis=2),
        helper.make_node("QuantizeLinear", ["joined", "scale", "zero"], ["steps"]),
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["rounded"]),
        helper.make_node("Relu", ["rounded"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "join",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4])],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [1, 2, 3 if name == "part" else 7]
            )
            for name in ("y", output)
            if name
        ],
        [*ends, scale, zero],
    )
    before = graph.SerializeToString()
    _openvino_kernels.round_before_joins_of_file(graph)
    assert (graph.SerializeToString() == before) == bool(output)
    onnx.checker.check_graph(graph)  # in order, too


def test_maps_that_parc_extends_are_rounded_once(tmp_path: Path) -> None:
    """And not in two parts, which would be cut in float; what is computed stays."""
    pytest.importorskip("nncf")
    from fleetnet.runtimes import openvino

    torch.manual_seed(0)
    parc = nn.Sequential(nn.Conv2d(3, 8, 1), ParC(8, SIZE, crossed=True), nn.Conv2d(8, 5, 1))
    network = reparameterize(randomize(parc, 0).eval(), images(1))
    source, file = tmp_path / "float.xml", tmp_path / "int8.xml"
    openvino.export(Request(network, images(1), source, products=False))
    write = int8.find("openvino").writer(source, images().numpy())

    def answer() -> np.ndarray:
        return openvino.load(file)(images(1).numpy())[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8.find("openvino"), "round_before_joins", lambda network: None)
        write(set(), file, {})
    before = answer()
    write(set(), file, {})
    graph = openvino.core().read_model(file).get_ops()
    joins = [node for node in graph if node.get_type_name() == "Concat"]
    extended = [
        join
        for join in joins
        if any("Slice" in join.input_value(i).get_node().get_type_name() for i in (0, 1))
    ]
    assert len(extended) == 4
    for join in extended:
        (whole,) = (
            join.input_value(i).get_node()
            for i in (0, 1)
            if "Slice" not in join.input_value(i).get_node().get_type_name()
        )
        assert whole.get_type_name() == "FakeQuantize"
        assert join.output(0).get_target_inputs().pop().get_node().get_type_name() != "FakeQuantize"
    assert sqnr([torch.from_numpy(before)], [torch.from_numpy(answer())]) > 60


def test_what_is_between_layers_is_in_int8_in_backbones_only(tmp_path: Path) -> None:
    import onnx

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny()

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    def rounded(model: nn.Module, name: str) -> dict[str, bool]:
        source = tmp_path / f"{name}.float.onnx"
        find("runtimes", "onnx").export(Request(model, images(1), source))
        int8.find("onnx").writer(source, images().numpy())(set(), tmp_path / f"{name}.onnx", {})
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        kept = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
        return {
            n.op_type: n.output[0] in kept for n in nodes if n.op_type in ("Add", "Sigmoid", "Gelu")
        }

    # what GELU gives is taken by a layer; a gate is in float anywhere
    assert rounded(Network().eval(), "backbone") == {"Add": True, "Sigmoid": False, "Gelu": True}
    assert rounded(tiny(), "head") == {"Add": False, "Sigmoid": False, "Gelu": True}


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_the_search_leaves_the_planted_layer_in_float(tmp_path: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("nncf")
    model = tiny()
    plant(model)
    file = tmp_path / f"model.{'onnx' if runtime == 'onnx' else 'xml'}"
    lines: list[str] = []
    done = quantize(prepared(model), runtime, file, max_drop=20, report=lines.append)
    assert done.attempts[0].drop > 40
    assert done.skipped == ["pointwise"]
    assert done.drop <= 20
    assert len(lines) == 3  # a line for each file, and for the measurement
    # what onnxruntime makes in int8 it gives in int8: the map stays whole only if its maker is in
    # float too
    assert done.others == (["depthwise", "gate"] if runtime == "onnx" else [])


@pytest.mark.parametrize(
    "bad", [torch.zeros(8, 3, SIZE, SIZE), images(8) / 100], ids=["black", "faint"]
)
def test_bad_calibration_is_refused(tmp_path: Path, bad: Tensor) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("as before")
    with pytest.raises(
        ExportError, match="was not written: int8 loses more than the 1 points of top1"
    ) as caught:
        quantize(prepared(tiny(), bad), "onnx", file)
    assert caught.value.exit_code == 5
    assert file.read_text() == "as before"
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    assert "0 of 8 layers in float" in str(caught.value)
    assert "2 of 8 layers in float" in str(caught.value)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    source = prepared(tiny())
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        quantize(source, "openvin", tmp_path / "model.xml")
    with pytest.raises(UsageError, match=r"ends in \.onnx, not in \.xml"):
        quantize(source, "onnx", tmp_path / "model.xml")
    with pytest.raises(UsageError, match="no layer 'pointwize' to skip: did you mean 'pointwise'"):
        quantize(source, "onnx", tmp_path / "model.onnx", skip=["pointwize"])
    with pytest.raises(UsageError, match="max_drop is -1"):
        quantize(source, "onnx", tmp_path / "model.onnx", max_drop=-1)
    with pytest.raises(DataError, match="no pictures for the calibration"):
        calibration([], Preprocess((SIZE, SIZE)))
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(ModelError, match="no checkpoint"):
        prepare(tmp_path / "model.onnx", images(), [])


def fails(*_: object) -> Any:
    raise ExportError("this one fails")


def test_command(
    run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cli.VERBS, "quantize", "write a network in int8")
    words = f"quantize --model {run} --data {photos} --to onnx --pictures 16 --max-drop 10 --threads 1 --sensitivity"
    assert main([*words.split(), "--skip", "head.*", "--out", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    document: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
    (made,) = document["quantized"]
    assert document["metric"] == "top1"
    assert len(document["sensitivity"]) == made["layers"]
    assert {"head.classifier.1", "head.classifier.4"} <= set(made["skipped"])
    assert made["drop"] == pytest.approx(document["float"]["top1"] - made["int8"]["top1"])
    assert "calibrating on 16 pictures" in captured.err
    assert (
        main(["eval", "--model", made["path"], "--data", str(photos), "--threads", "1", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["top1"] == made["int8"]["top1"]

    half = tmp_path / "half.safetensors"
    state = load_file(run / "best.safetensors")
    with safe_open(run / "best.safetensors", "pt") as file:
        notes = file.metadata()
    del notes["tensors_sha256"]  # of the tensors as they were
    save_file(
        {key: v.half() if v.is_floating_point() else v for key, v in state.items()}, half, notes
    )
    out = tmp_path / "half"
    words = f"quantize --model {half} --data {photos} --pictures 16 --max-drop 100 --threads 1 --out {out}"
    made_by = int8.find("onnx").writer
    monkeypatch.setattr(int8.find("onnx"), "writer", fails)
    # one is refused, the other is written
    assert main([*words.split(), "--to", "onnx,openvino"]) == 5
    error = capsys.readouterr().err.replace("\n", " ")
    assert "this one fails" in error
    assert "written:" in error
    assert (tmp_path / "half" / "openvino-int8" / "model.xml").exists()
    monkeypatch.setattr(int8.find("onnx"), "writer", made_by)
    monkeypatch.setattr("fleetnet.int8._search.find_spec", lambda name: None)
    assert main([*words.split(), "--to", "openvino"]) == 5
    assert (
        "int8 for openvino needs nncf: pip install 'fleetnet[quantize]'" in capsys.readouterr().err
    )
    monkeypatch.undo()
    monkeypatch.setitem(cli.VERBS, "quantize", "write a network in int8")

    assert main(["quantize", "--model", str(run), "--data", str(photos), "--to", "mnn"]) == 2
    assert "no int8 for the runtime 'mnn'" in capsys.readouterr().err
    black = tmp_path / "black"
    black.mkdir()
    Image.new("RGB", (32, 32)).save(black / "a.png")
    words = f"quantize --model {run} --data {photos} --to onnx --calibrate-on {black} --max-drop 100 --threads 1"
    assert main([*words.split(), "--out", str(tmp_path / "black")]) == 0
    about = json.loads((tmp_path / "black" / "onnx-int8" / "model.json").read_text())
    assert about["int8"]["calibration"] == {"images": 1, "source": str(black)}
