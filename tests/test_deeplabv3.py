"""DeepLabV3: the authors' outputs and names, output strides, loss, way back to the picture, metric, deploy form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.fill import image as golden_image
from golden.fill import tensor
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import EXACT, image, randomize

from fleetnet import predictions
from fleetnet.backbones import Implied, parcnet
from fleetnet.errors import ModelError, UsageError
from fleetnet.geometry import Place
from fleetnet.predictions import LabelMap, PixelLogits
from fleetnet.reparam import difference, reparameterize
from fleetnet.tasks import Model, build, deeplabv3

GOLDEN = Path(__file__).parent / "golden" / "deeplabv3_parcnet_s_512x512.json"
TIMM = "timm/mobilenetv3_small_100"
STRUCTURES = [
    *(
        "parcnet_xs",
        "fasternet_t0",
        "repvit_m0_6",
        "mobileone_s0",
        "convnext_xt",
        "parc_convnext_xt",
    ),
    *("parc_resnet50", "parc_mobilenetv2", TIMM),
]
FAMILIES = ["parcnet_xs", "fasternet_t0", "repvit_m0_9", "mobileone_s0", "parc_mobilenetv2", TIMM]
CLASSES = ["sky", "road", "tree"]


def small(name: str, classes: int = 3, **options: bool | int) -> Model:
    torch.manual_seed(0)
    return build(f"deeplabv3/{name}", classes, options={"channels": 16, **options})


def authors_state() -> tuple[dict, dict[str, Tensor]]:
    golden = json.loads(GOLDEN.read_text())
    names = golden["state"].items()
    return golden, {
        name: torch.from_numpy(np.asarray(tensor(name, tuple(shape)))) for name, shape in names
    }


# ---- the network -----------------------------------------------------------------------------------------------------


def test_golden() -> None:
    golden, state = authors_state()
    recognized = deeplabv3.recognize(state)
    implied = recognized.implied
    assert implied.preprocess.channel_order == "BGR"
    assert (implied.output_stride, implied.options) == (16, {"dilate": False})
    assert (recognized.form, recognized.classes) == ("multi-branch", 21)
    model = build("deeplabv3/parcnet_s", 21, output_stride=16, options=implied.options).eval()
    assert sum(p.numel() for p in model.parameters()) == 5_816_397
    model.load_state_dict(deeplabv3.convert(parcnet.convert(state)), strict=True)
    assert deeplabv3.convert(model.state_dict()).keys() == model.state_dict().keys()
    assert deeplabv3.recognize(model.state_dict()).implied == Implied()
    with torch.no_grad():
        logits = model(torch.from_numpy(golden_image(tuple(golden["input_shape"]))))["logits"]
    expected = golden["output"]["output"]
    assert list(logits.shape) == expected["shape"]
    error = (
        (logits.flatten()[expected["index"]] - torch.tensor(expected["value"])).abs().max().item()
    )
    assert error / expected["std"] < 2e-4
    assert logits.mean().item() == pytest.approx(expected["mean"], abs=1e-5 * expected["std"])


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", STRUCTURES)
def test_output_strides(name: str, output_stride: int) -> None:
    with torch.device("meta"):
        model = build(f"deeplabv3/{name}", 4, output_stride=output_stride).eval()
    size = (192, 160)
    features = model.backbone(torch.empty(2, 3, *size, device="meta"))
    assert tuple(features[-1].shape[-2:]) == (192 // output_stride, 160 // output_stride)
    rates = [branch[0].conv.dilation[0] for branch in model.head.aspp.branches]
    assert rates == ([1, 6, 12, 18] if output_stride == 16 else [1, 12, 24, 36])
    assert model.head(features, size)["logits"].shape == (2, 4, *size)


def test_branches_see_as_far_as_their_rates() -> None:
    """One lit place in the feature reaches the places that are 0 or +-rate away, and through the pooling all."""
    aspp = randomize(deeplabv3.ASPP(2, 2, (6, 12, 18)), seed=0)
    dark, lit = torch.zeros(1, 2, 41, 41), torch.zeros(1, 2, 41, 41)
    lit[0, :, 20, 20] = 1
    with torch.no_grad():
        for branch, rate in zip(aspp.branches, (0, 6, 12, 18), strict=True):
            reached = (branch[0](lit) - branch[0](dark)).abs().amax((0, 1)).nonzero()
            assert sorted(set((reached - 20).flatten().tolist())) == sorted({-rate, 0, rate})
        expected = aspp.pooled(lit.mean((2, 3), keepdim=True)).flatten()
        pooled = {}
        aspp.project.register_forward_pre_hook(
            lambda module, args: pooled.update(x=args[0][:, -2:])
        )
        aspp(lit)
    torch.testing.assert_close(pooled["x"], expected.view(1, 2, 1, 1).expand(1, 2, 41, 41))


def test_what_cannot_be_built() -> None:
    with pytest.raises(UsageError, match="output_stride is 32; deeplabv3 allows 8, 16"):
        build("deeplabv3/fasternet_t0", 3, output_stride=32)
    for classes in (1, 256):
        with pytest.raises(ModelError, match=f"classes is {classes}; deeplabv3 allows 2 to 255"):
            build("deeplabv3/fasternet_t0", classes)
    with pytest.raises(UsageError, match="channels is 0"):
        build("deeplabv3/fasternet_t0", 3, options={"channels": 0})


def test_one_image_cannot_train_the_norm_after_pooling() -> None:
    model = small("fasternet_t0")
    one = image(64, 96, batch=1)
    with pytest.raises(ModelError, match=r"use a batch of at least 2$"):
        model(one)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(one)["logits"].shape == (1, 3, 64, 96)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns(name: str) -> None:
    model = small(name, auxiliary=True)
    outputs = model(image(96, 64))
    assert {key: tuple(maps.shape) for key, maps in outputs.items()} == dict.fromkeys(
        ("logits", "auxiliary"), (2, 3, 96, 64)
    )
    truth = torch.randint(0, 3, (2, 96, 64), generator=torch.Generator().manual_seed(0))
    truth[0, :50] = deeplabv3.IGNORE
    losses = deeplabv3.loss(model.head, outputs, {"semantic": truth})
    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # zero gammas hide what is behind them in some backbones, at first
        if parameter_name.startswith("head."):
            assert parameter.grad.abs().sum() > 0, parameter_name
    assert list(model.eval()(image(96, 64))) == ["logits"]


@pytest.mark.parametrize("name", FAMILIES)
def test_deploy_form_is_the_multi_branch_form(name: str) -> None:
    model = randomize(small(name), seed=0).double()
    example = image(96, 64, dtype=torch.float64)
    deploy = reparameterize(model, example)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deploy.head.modules())
    with torch.no_grad():
        assert difference([model(example)["logits"]], [deploy(example)["logits"]])[1] < EXACT


# ---- loss ------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_known_pixels() -> None:
    logits, auxiliary = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    truth = torch.randint(0, 3, (2, 5, 7))
    truth[0, :3], truth[1, 4, 6] = 255, 255
    known = [
        (n, y, x) for n in range(2) for y in range(5) for x in range(7) if truth[n, y, x] != 255
    ]
    expected = [
        np.mean([-F.log_softmax(maps[n, :, y, x], 0)[truth[n, y, x]].item() for n, y, x in known])
        for maps in (logits, auxiliary)
    ]
    losses = deeplabv3.loss(
        nn.Identity(), {"logits": logits, "auxiliary": auxiliary}, {"semantic": truth}
    )
    assert losses["cross_entropy"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["auxiliary"].item() == pytest.approx(0.4 * expected[1], rel=1e-5)


def test_loss_without_a_known_pixel_is_zero() -> None:
    model = small("fasternet_t0", auxiliary=True)
    losses = deeplabv3.loss(
        model.head, model(image(64, 64)), {"semantic": torch.full((2, 64, 64), 255)}
    )
    assert {key: value.item() for key, value in losses.items()} == {
        "cross_entropy": 0,
        "auxiliary": 0,
    }
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# ---- back to the picture ---------------------------------------------------------------------------------------------


def sampled(
    maps: np.ndarray, y: float, x: float, top: int, bottom: int, left: int, right: int
) -> np.ndarray:
    """Logits (C, H, W) at a point, in fractional indices, from its four neighbors in a part of the rows and columns."""
    y, x = min(max(y, top), bottom - 1), min(max(x, left), right - 1)
    value = np.zeros(len(maps))
    for row in {int(np.floor(y)), int(np.ceil(y))}:
        for column in {int(np.floor(x)), int(np.ceil(x))}:
            value += maps[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


PLACES = {  # the place, and the rows and columns of the 24 x 32 input whose centers are of the picture
    "padded above and below": (Place(21, 50, 0.64, 0.64, 5.28, 0.0), (5, 19, 0, 32)),
    "padded left and right": (Place(37, 22, 24 / 37, 24 / 37, 0.0, 8.865), (0, 24, 9, 23)),
    "smaller, not enlarged": (Place(9, 14, 1.0, 1.0, 7.0, 9.0), (7, 16, 9, 23)),
    "stretched": (Place(31, 17, 24 / 31, 32 / 17), (0, 24, 0, 32)),
    "whole": (Place(24, 32), (0, 24, 0, 32)),
}


@pytest.mark.parametrize(("place", "part"), PLACES.values(), ids=PLACES)
def test_restore(
    place: Place, part: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "ROWS", 8)
    top, bottom, left, right = part
    logits = torch.randn(3, 24, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outside = torch.ones(24, 32, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    logits[0, outside] = 1e6  # what the padding is taken for must not matter
    expected = np.zeros((place.height, place.width))
    margin = np.zeros((place.height, place.width))
    for i in range(place.height):
        for j in range(place.width):
            y, x = (
                (i + 0.5) * place.scale_y + place.top - 0.5,
                (j + 0.5) * place.scale_x + place.left - 0.5,
            )
            value = sampled(logits.numpy(), y, x, *part)
            expected[i, j] = value.argmax()
            margin[i, j] = np.diff(np.sort(value))[-1]
    [prediction] = deeplabv3.decode({"logits": logits[None]})
    found = prediction.restore(place).labels
    assert found.dtype == torch.uint8
    sure = margin > 1e-4  # decode makes them float32
    assert sure.mean() > 0.99
    assert np.array_equal(found.numpy()[sure], expected[sure])


def test_restore_is_cutting_and_resizing_where_the_picture_ends_between_pixels() -> None:
    logits = torch.randn(4, 20, 30)
    cut = F.interpolate(
        logits[None, :, 2:17, 5:25], (45, 50), mode="bilinear", align_corners=False
    )[0]
    found = PixelLogits(logits).restore(Place(45, 50, 15 / 45, 20 / 50, 2.0, 5.0)).labels
    assert torch.equal(found.long(), cut.argmax(0))


@pytest.mark.parametrize(("place", "part"), PLACES.values(), ids=PLACES)
def test_restore_of_class_maps(place: Place, part: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = part
    labels = torch.full((24, 32), 200)
    labels[top:bottom, left:right] = torch.randint(0, 9, (bottom - top, right - left))
    expected = torch.tensor([
        [
            labels[
                min(max(int((i + 0.5) * place.scale_y + place.top), top), bottom - 1),
                min(max(int((j + 0.5) * place.scale_x + place.left), left), right - 1),
            ]
            for j in range(place.width)
        ]
        for i in range(place.height)
    ])  # fmt: skip
    [prediction] = deeplabv3.decode({"semantic": labels[None]})
    assert torch.equal(prediction.restore(place).labels.long(), expected)


@pytest.mark.parametrize("chosen", [False, True])
def test_restore_of_a_picture_thinner_than_a_pixel(chosen: bool) -> None:
    logits = torch.zeros(2, 8, 8)
    logits[1, 3] = 1
    maps = LabelMap(logits.argmax(0)) if chosen else PixelLogits(logits)
    found = maps.restore(Place(2, 100, 0.08, 0.08, 3.42, 0.0)).labels
    assert found.shape == (2, 100)
    assert found.all()


def test_embedded_decode_gives_the_same_classes() -> None:
    model = randomize(small("fasternet_t0"), seed=0)
    embedded = deeplabv3.embed(model)
    with torch.no_grad():
        outputs, labels = model(image(64, 96)), embedded(image(64, 96))
    assert labels["semantic"].dtype == torch.int64
    for raw, own in zip(deeplabv3.decode(outputs), deeplabv3.decode(labels), strict=True):
        whole = Place(64, 96)
        found = raw.restore(whole).labels
        assert torch.equal(found, own.restore(whole).labels)
        assert torch.equal(found.long(), raw.logits.argmax(0))


def test_present() -> None:
    prediction = LabelMap(torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.uint8))
    assert prediction.present(CLASSES) == {"road": 0.75, "sky": 0.25}
    assert list(prediction.present(CLASSES)) == ["road", "sky"]
    assert prediction.present(CLASSES, top=1) == {"road": 0.75}
    assert prediction.present(CLASSES, threshold=0.5) == {"road": 0.75}


# ---- metric ----------------------------------------------------------------------------------------------------------


def by_hand(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> dict:
    found = np.concatenate([p.ravel() for p, _ in pairs])
    truth = np.concatenate([t.ravel() for _, t in pairs])
    found, truth = found[truth != 255], truth[truth != 255]
    ious, recalls = [], []
    for label in range(classes):
        union = ((found == label) | (truth == label)).sum()
        ious.append(100 * ((found == label) & (truth == label)).sum() / union if union else None)
        if (truth == label).any():
            recalls.append(100 * (found[truth == label] == label).mean())
    return {
        "mIoU": np.mean([iou for iou in ious if iou is not None]),
        "accuracy": 100 * (found == truth).mean(),
        "mean_accuracy": np.mean(recalls),
        "iou": ious,
        "images": len(pairs),
    }


def test_metric() -> None:
    """Class 3 is only predicted, 4 only in the truth, 5 in neither."""
    draw = np.random.default_rng(0)
    pairs = []
    for size in ((7, 9), (12, 5), (1, 1)):
        found = draw.choice([0, 1, 2, 3], size)
        truth = np.where(draw.random(size) < 0.5, found, draw.choice([0, 1, 2, 4, 255], size))
        pairs.append((found, np.where(truth == 3, 0, truth)))
    metric = deeplabv3.metric("abcdef")
    for some in (pairs[:2], pairs[2:]):
        metric.add(
            [LabelMap(torch.from_numpy(p).to(torch.uint8)) for p, _ in some],
            {"semantic": [torch.from_numpy(t) for _, t in some]},
        )
    result, expected = metric.result(), by_hand(pairs, 6)
    assert next(iter(result)) == "mIoU"
    assert [row["IoU"] for row in result["by_class"]] == result["iou"]
    result = {key: result[key] for key in expected}
    assert expected["iou"][3:] == [0, 0, None]
    assert result.pop("iou")[:5] == pytest.approx(expected.pop("iou")[:5], rel=1e-6)
    assert metric.result()["iou"][5] is None
    assert result == pytest.approx(expected, rel=1e-6)


def test_metric_of_the_truth_is_perfect_and_of_no_known_pixel_none() -> None:
    truth = torch.tensor([[0, 1], [255, 1]])
    metric = deeplabv3.metric(CLASSES)
    metric.add(
        [LabelMap(torch.ones(2, 2, dtype=torch.int64))], {"semantic": [torch.full((2, 2), 255)]}
    )
    figures = ("mIoU", "accuracy", "mean_accuracy", "F1")
    result = metric.result()
    assert [result[key] for key in figures] == [None] * 4
    assert result["iou"] == [None] * 3
    metric.add([LabelMap(torch.tensor([[0, 1], [2, 1]]))], {"semantic": [truth]})
    result = metric.result()
    assert [result[key] for key in figures] == [100] * 4
    assert result["iou"] == [100, 100, None]
    with pytest.raises(ModelError, match=r"the prediction is \(2, 3\), but its label map \(2, 2\)"):
        metric.add([LabelMap(torch.zeros(2, 3, dtype=torch.int64))], {"semantic": [truth]})


def test_it_learns_which_half_is_which() -> None:
    """A picture's left half has one class and its right half another, told apart by color."""
    model = small("fasternet_t0", classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    truth = torch.zeros(4, 64, 64, dtype=torch.int64)
    truth[:2, :, 32:], truth[2:, :32] = 1, 1
    picture = 2 * truth[:, None].float().expand(-1, 3, -1, -1) - 1 + 0.1 * torch.randn(4, 3, 64, 64)
    for _ in range(25):
        optimizer.zero_grad()
        sum(deeplabv3.loss(model.head, model(picture), {"semantic": truth}).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = [p.restore(Place(64, 64)) for p in deeplabv3.decode(model.eval()(picture))]
    metric = deeplabv3.metric(("dark", "bright"))
    metric.add(found, {"semantic": list(truth)})
    assert metric.result()["mIoU"] > 85
