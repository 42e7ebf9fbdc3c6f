"""ncnn files: they compute what the model computes, name what they cannot hold, and show their layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from test_heads import made, ready
from torch import Tensor, nn
from zoo import image, random_model, randomize

import fleetnet
from fleetnet.data import shapes
from fleetnet.deploy.package import deliver
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.layers import ConvBN, SqueezeExcite
from fleetnet.proof.agreement import bounds
from fleetnet.proof.verify import verify
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, ncnn

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")
SIZE = (64, 96)


class Small(nn.Module):
    """Image (1, 3, H, W) -> a map, and what it says of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.gate = ConvBN(3, 8, 3, stride=2), nn.GELU(), SqueezeExcite(8, 4)
        self.head = nn.Linear(8, 5)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        x = self.gate(self.act(self.stem(picture)))
        return {"map": x, "logits": self.head(x.mean((2, 3))), "best": x.argmax(1)}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return randomize(Small(), 0)


@pytest.fixture(scope="module")
def written(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deliver(
        small, image(9, 14, 1), tmp_path_factory.mktemp("ncnn") / "small.param", "ncnn", None
    ).path


@pytest.mark.parametrize(
    ("name", "precision"),
    [("fasternet_t0", "fp32"), ("repvit_m0_9", "fp16"), ("parc_convnext_xt", "fp32")],
)
def test_classifiers(name: str, precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    done = deliver(
        random_model(name),
        image(*SIZE, 1),
        tmp_path / "model.param",
        "ncnn",
        None,
        precision=precision,
    )
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "golden.npz",
        "model.bin",
        "model.json",
        "model.param",
    ]
    assert done.parity.relative < (1e-5 if precision == "fp32" else 5e-3)
    assert done.parity.top1_agreement == 1
    assert (done.parity.relative > 1e-5) == (precision == "fp16")
    weights = sum(
        p.numel() for p in reparameterize(random_model(name), image(*SIZE, 1)).parameters()
    )
    size = (tmp_path / "model.bin").stat().st_size
    assert size == pytest.approx(weights * (4 if precision == "fp32" else 2), rel=0.05)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["ssd/parcnet_xs", "yolo/fasternet_t0", "deeplabv3/mobileone_s0"])
def test_heads_with_raw_outputs_and_class_maps(name: str, tmp_path: Path):
    embedded = name.startswith("deeplabv3")  # its decode is an argmax, spelled so that ncnn has it
    model, pictures = ready(name, (72, 108), embedded), [shapes.draw(i) for i in range(2)]
    done = fleetnet.export(
        model,
        "ncnn",
        tmp_path / "m.param",
        size=(72, 108),
        embed_decode=embedded,
        pictures=pictures,
    )
    agreement = done.parity.agreement
    if embedded:  # a pixel of two nearly equal classes may have the other one, as in every proof of class maps
        assert agreement.pixels >= bounds(done.parity.tolerance).pixels
    else:
        assert agreement.paired == agreement.boxes > 20
    found = fleetnet.load(done.path).predictions(pictures)
    assert all(len(one.labels.unique()) > 1 if embedded else len(one) for one in found)


@pytest.mark.parametrize(("head", "operator"), [("ssd", "nms"), ("maskrcnn", "roi_align")])
def test_what_ncnn_cannot_hold_is_named(head: str, operator: str, tmp_path: Path):
    model = randomize(made(f"{head}/mobileone_s0"), 0)
    with pytest.raises(
        ExportError, match=f"no operator for .*torchvision.{operator}.* export without the decode"
    ):
        fleetnet.export(model, "ncnn", tmp_path / "m.param", size=(64, 64), embed_decode=True)
    assert not list(tmp_path.iterdir())


def test_what_is_not_one_image_of_float32_is_refused(small: nn.Module, tmp_path: Path):
    for options, example in (({"dynamic": True}, image(9, 14, 1)), ({}, image(9, 14, 2))):
        with pytest.raises(UsageError, match="one image at a time: leave dynamic out"):
            ncnn.export(Request(small, example, tmp_path / "m.param", **options))
    with pytest.raises(UsageError, match=r"the example is torch\.float64"):
        ncnn.export(Request(small, image(9, 14, 1).double(), tmp_path / "m.param"))


def test_several_outputs_of_several_images_in_order(small: nn.Module, written: Path):
    """An odd size, two images, integers among the outputs; nothing is overwritten by the next call."""
    batch = image(9, 14, 2)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in small(batch).items()}
    run = ncnn.load(written, threads=2)
    found = run(batch.numpy())
    kept = [value.copy() for value in found]
    run(-batch.numpy())
    for name, value, before in zip(expected, found, kept, strict=True):
        assert value.dtype == expected[name].dtype
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
        assert np.array_equal(value, before)


def test_trace_shows_every_layer_by_its_module(small: nn.Module, written: Path):
    deploy, values = reparameterize(small, image(9, 14, 1)), {}
    for name, module in deploy.named_modules():
        module.register_forward_hook(
            lambda _, args, output, name=name: values.__setitem__(name, output)
        )
    with torch.no_grad():
        deploy(image(9, 14, 1))
    layers = ncnn.trace(written)(image(9, 14, 1).numpy())
    shown = [name for name in layers if "/" in name]
    assert shown == [
        "stem/Convolution",
        "gate.reduce/Convolution",
        "gate.expand/Convolution",
        "head/InnerProduct",
    ]
    for name in ("stem/Convolution", "head/InnerProduct"):  # the others have an activation in them
        np.testing.assert_allclose(
            layers[name], values[name.partition("/")[0]][0].numpy(), atol=1e-5
        )
    assert list(layers).index("stem/Convolution") == 0


@pytest.mark.parametrize(("precision", "factor"), [("fp32", -1), ("fp16", 10_000)])
def test_a_changed_weight_is_found(precision: str, factor: int, tmp_path: Path):
    """The largest weight of a convolution in the middle has the other sign; what half precision hides, is too large."""
    model, example = random_model("mobileone_s0"), image(*SIZE, 1)
    deploy = reparameterize(model, example)
    ncnn.export(Request(deploy, example, tmp_path / "m.param", precision=precision))
    conv = deploy.get_submodule("backbone.stages.2.4.branches")
    weight = conv.weight.detach().numpy().ravel()
    content = np.fromfile(tmp_path / "m.bin", np.float32 if precision == "fp32" else np.float16)
    right = verify(model, ncnn.load(tmp_path / "m.param"), [example], ncnn.tolerances[precision])
    before = ncnn.trace(tmp_path / "m.param")(example.numpy())
    (start,) = np.flatnonzero(
        np.isclose(sliding_window_view(content, 8), weight[:8], 1e-3, 1e-6).all(1)
    )
    content[start + np.abs(weight).argmax()] *= factor
    content.tofile(tmp_path / "m.bin")
    wrong = verify(model, ncnn.load(tmp_path / "m.param"), [example], ncnn.tolerances[precision])
    after = ncnn.trace(tmp_path / "m.param")(example.numpy())
    assert right.passed
    assert not wrong.passed
    first = next(name for name in before if not np.array_equal(before[name], after[name]))
    assert first.startswith("backbone.stages.2.4.branches/")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ncnn.MAGIC, "7767518", "not an ncnn file"),
        ("GELU ", "GELU x\nGELU ", "a layer is cut off"),
        ("GELU ", "Gone ", "no layers Gone"),
        (" 2=3 -", " -", "does not say its size"),
    ],
)
def test_damaged_layers(old: str, new: str, message: str, written: Path, tmp_path: Path):
    text = written.read_text()
    assert old in text
    (tmp_path / "m.param").write_text(text.replace(old, new))
    (tmp_path / "m.bin").write_bytes(written.with_suffix(".bin").read_bytes())
    with pytest.raises(ModelError, match=message):
        ncnn.load(tmp_path / "m.param")


def test_missing_and_damaged_weights(written: Path, tmp_path: Path):
    file = tmp_path / "m.param"
    file.write_text(written.read_text())
    with pytest.raises(ModelError, match=r"m\.bin: no such file; an ncnn network is"):
        ncnn.load(file)
    (tmp_path / "m.bin").write_bytes(written.with_suffix(".bin").read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot load this file and the weights"):
        ncnn.load(file)


def test_another_size_is_refused(written: Path):
    with pytest.raises(
        ModelError, match=r"takes images of shape \('N', 3, 9, 14\), got \(1, 3, 9, 16\)"
    ):
        ncnn.load(written)(image(9, 16, 1).numpy())
