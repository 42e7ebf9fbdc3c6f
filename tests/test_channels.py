"""Networks for pictures of one to many channels: built, begun with weights for RGB, trained, exported."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_backbone import offer_tiny
from torch import Tensor, nn

from fleetnet import checkpoint, runtimes
from fleetnet.channels import MOST, names_of, parse_channels
from fleetnet.deploy.export import export
from fleetnet.deploy.predictor import load
from fleetnet.errors import ModelError, UsageError
from fleetnet.find import names
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import reparameterize
from fleetnet.tasks import Model, build
from fleetnet.weights import create_model, load_weights
from fleetnet.weights.adapt import adapted

SIDE = 32
IMAGENET = Preprocess((SIDE, SIDE))
FAMILIES = {  # a network of each, and a number of channels
    "fasternet_t0": 1,
    "mobileone_s0": 5,
    "repvit_m0_6": 2,
    "parcnet_xs": 4,
    "convnext_xt": 5,
    "parc_mobilenetv2": 1,
    "parc_resnet50": 2,
    "timm/resnet10t": 4,
}


def normalized(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Pixels (N, C, H, W) from 0 to 1, in the order of RGB, as a network gets them."""
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (preprocess.mean, preprocess.std))
    return ((pixels.flip(1) if preprocess.channel_order == "BGR" else pixels) - mean) / std


@torch.no_grad()
def for_rgb(name: str) -> Model:
    """A network for RGB whose batch norms do something."""
    torch.manual_seed(0)
    model = build(name, 3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.std())


@pytest.mark.parametrize(
    ("value", "channels"),
    [(4, 4), ("4", 4), ("gray", 1), ("rgb", 3), ("RGBA", 4), (MOST, MOST)],
)
def test_channels_are_a_number_or_a_word(value: int | str, channels: int):
    assert parse_channels(value) == channels


@pytest.mark.parametrize("value", [0, -1, MOST + 1, 2.0, True, "grey", "", None, "3.0"])
def test_other_channels_are_refused(value: object):
    with pytest.raises(UsageError, match="allowed: gray, rgb, rgba, or a number from 1 to 512"):
        parse_channels(value)


def test_channels_have_names():
    assert names_of(2) == ["gray", "channel 2"]
    assert names_of(4) == ["red", "green", "blue", "channel 4"]


@pytest.mark.parametrize(("name", "channels"), FAMILIES.items())
def test_every_family_takes_them(name: str, channels: int):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        model, image = build(name, 3, channels=channels), torch.empty(2, channels, SIDE, SIDE)
        assert model(image).shape == (2, 3)
        deploy = reparameterize(model.eval(), image)
        assert deploy(image).shape == (2, 3)


@pytest.mark.parametrize(("name", "channels"), [("fasternet_t0", 1), ("mobileone_s0", 5)])
def test_every_channel_is_learned_from(name: str, channels: int):
    torch.manual_seed(0)
    model = create_model(name, 3, channels=channels)
    image = torch.randn(2, channels, SIDE, SIDE)
    model(image).square().sum().backward()
    of_image = [p for p in model.backbone.parameters() if p.ndim == 4 and p.shape[1] == channels]
    for gradient in (weight.grad for weight in of_image[:1]):
        assert gradient is not None
        assert (gradient.abs().amax((0, 2, 3)) > 0).all()
    model.eval()
    with torch.no_grad():
        assert relative(reparameterize(model, image)(image), model(image)) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("fasternet_t0", "multi-branch"),
        ("fasternet_t0", "deploy"),
        ("timm/convnext_atto", "multi-branch"),
    ],
)
def test_of_a_gray_picture_gray_and_rgb_make_the_same(name: str, form: str):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    rgb = for_rgb(name)
    rgb = reparameterize(rgb, torch.zeros(1, 3, SIDE, SIDE)) if form == "deploy" else rgb
    gray = create_model(name, weights=rgb.state_dict(), channels="gray").eval()
    pixels = torch.rand(2, 1, SIDE, SIDE)
    expected = rgb(normalized(pixels.expand(-1, 3, -1, -1), IMAGENET))
    assert relative(gray(normalized(pixels, IMAGENET.for_channels(1))), expected) < 1e-5
    assert len(gray.report.adapted) == 2  # the weight, and what takes its constant
    assert "gray is the sum of the three" in gray.report.summary()


@torch.no_grad()
def test_a_padded_first_convolution_differs_beside_the_border_alone():
    rgb, gray = for_rgb("repvit_m0_6"), build("repvit_m0_6", 3, channels=1).eval()
    load_weights(gray, rgb.state_dict())
    pixels = torch.rand(1, 1, SIDE, SIDE)
    of_rgb = pixels.expand(-1, 3, -1, -1)
    expected = rgb.backbone.stem[0](normalized(of_rgb, IMAGENET))
    made = gray.backbone.stem[0](normalized(pixels, IMAGENET.for_channels(1)))
    inside = (..., slice(1, -1), slice(1, -1))
    assert relative(made[inside], expected[inside]) < 1e-5
    # Where the means of red, green and blue are equal, nothing is left over.
    alike = replace(IMAGENET, mean=(0.5,) * 3)
    of_alike = adapted(rgb.state_dict(), gray.state_dict(), 1, alike)
    gray.load_state_dict({**rgb.state_dict(), **of_alike.values})
    expected = rgb(normalized(of_rgb, alike))
    assert relative(gray(normalized(pixels, alike.for_channels(1))), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("channels", [4, 5])
def test_with_more_channels_a_network_begins_as_that_for_rgb(channels: int):
    rgb = for_rgb("fasternet_t0")
    more = create_model("fasternet_t0", weights=rgb.state_dict(), channels=channels).eval()
    pixels = torch.rand(2, channels, SIDE, SIDE)
    made = more(normalized(pixels, IMAGENET.for_channels(channels)))
    assert torch.equal(made, rgb(normalized(pixels[:, :3], IMAGENET)))
    assert f"{channels - 3} new begin at zero" in more.report.summary()


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
def test_weights_for_bgr_are_put_in_the_order_of_the_picture(tmp_path: Path, channels: int):
    bgr = replace(IMAGENET, channel_order="BGR")
    rgb = for_rgb("fasternet_t0")
    checkpoint.save(tmp_path / "bgr.safetensors", rgb, classes=list("abc"), preprocess=bgr)
    model = create_model("fasternet_t0", weights=tmp_path / "bgr.safetensors", channels=channels)
    pixels = torch.rand(2, channels, SIDE, SIDE)
    of_rgb = pixels[:, :3] if channels == 4 else pixels.expand(-1, 3, -1, -1)
    assert model.preprocess is not None
    assert model.preprocess.channel_order == "RGB"
    made = model.eval()(normalized(pixels, model.preprocess))
    assert relative(made, rgb(normalized(of_rgb, bgr))) < 1e-5


def test_a_checkpoint_of_four_channels_is_read_as_it_is(tmp_path: Path):
    path, preprocess = tmp_path / "four.safetensors", IMAGENET.for_channels(4)
    four = create_model("fasternet_t0", 3, channels=4)
    checkpoint.save(path, four, classes=list("abc"), preprocess=preprocess)
    read = checkpoint.load(path)
    assert (read.model.channels, read.preprocess) == (4, preprocess)
    again = create_model("fasternet_t0", weights=path)  # without saying how many
    assert again.channels == 4
    assert again.report.adapted == ()
    for key, value in four.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, read.model.state_dict()[key])
    for channels in (3, 1, 5):
        with pytest.raises(ModelError, match=r"of 4 channels, the model for .*--channels 4"):
            create_model("fasternet_t0", weights=path, channels=channels)


def test_a_preprocessing_belongs_to_its_channels(tmp_path: Path):
    with pytest.raises(ModelError, match=r"for 3 channels .* for a model that takes 4"):
        checkpoint.facts(build("fasternet_t0", 2, channels=4), ["a", "b"], IMAGENET)
    with pytest.raises(UsageError, match="channel_order is 'BGR'"):
        Preprocess((8, 8), mean=(0.5,) * 4, std=(1.0,) * 4, channel_order="BGR")
    with pytest.raises(UsageError, match=r"std is .* as many as mean has"):
        Preprocess((8, 8), mean=(0.5,) * 4)


# litert has tests of its own, in the environment that it needs
RUNTIMES = [name for name in names("runtimes") if name not in ("onnx", "litert")]


@pytest.mark.parametrize(
    ("runtime", "channels", "embed"),
    [("onnx", 1, False), ("onnx", 5, True), *((name, 4, False) for name in RUNTIMES)],
)
def test_a_file_takes_the_channels_and_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, channels: int, embed: bool
):
    if away := runtimes.find(runtime).missing() or runtimes.find(runtime).cannot_run():
        pytest.skip(away)
    offer_tiny(monkeypatch)
    model = create_model("tiny", 3, channels=channels).eval()
    preprocess = IMAGENET.for_channels(channels)
    delivered = export(
        model,
        runtime,
        tmp_path / f"model{runtimes.find(runtime).suffix}",
        preprocess=preprocess,
        embed_preprocess=embed,
    )
    assert delivered.parity is not None
    predictor = load(delivered.path, trust=True)
    assert predictor.facts.channels == channels
    assert predictor.facts.file is not None
    assert predictor.facts.file.inputs[0].shape == (1, channels, SIDE, SIDE)
    pixels = torch.randint(0, 256, (1, channels, SIDE, SIDE)).float()
    given = pixels if embed else normalized(pixels / 255, preprocess)
    with torch.no_grad():
        expected = model(normalized(pixels / 255, preprocess))
    assert relative(torch.from_numpy(predictor.raw(given.numpy())[0]), expected) < 1e-3
