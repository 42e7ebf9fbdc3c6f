"""SSDLite: the authors' network to the last digit, anchors, matching, the loss and the way back to boxes."""

import json
import math
from pathlib import Path

import pytest
import torch
from golden import fill
from torch import Tensor
from zoo import image, randomize

from fleetnet.backbones import backbone
from fleetnet.errors import ModelError
from fleetnet.reparam import difference, reparameterize
from fleetnet.tasks import build, ssd
from fleetnet.weights import create_model

GOLDEN = Path(__file__).parent / "golden" / "ssd_parcnet_s_320x320.json"
MAPS = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]  # of an input of 320 x 320
NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def test_the_authors_network_is_computed() -> None:
    golden = json.loads(GOLDEN.read_text())
    state = {
        key: torch.from_numpy(fill.tensor(key, tuple(shape)))
        for key, shape in golden["state"].items()
    }
    model = create_model("ssd/parcnet_s", weights=state).eval()
    assert model.classes == 80
    assert sum(p.numel() for p in model.parameters()) == 5_197_282
    assert model.report.loaded == tuple(model.state_dict())
    with torch.no_grad():
        outputs = model(torch.from_numpy(fill.image(tuple(golden["input_shape"]))))
    for name, expected in zip(("logits", "boxes"), golden["output"].values(), strict=True):
        assert list(outputs[name].shape) == expected["shape"]
        error = (
            (outputs[name].flatten()[expected["index"]] - torch.tensor(expected["value"]))
            .abs()
            .max()
            .item()
        )
        assert error < 2e-4 * expected["std"], (
            f"{name}: {error:.2g} of a deviation of {expected['std']:.2g}"
        )
        assert outputs[name].std().item() == pytest.approx(expected["std"], rel=2e-4)
        assert outputs[name].mean().item() == pytest.approx(
            expected["mean"], abs=2e-4 * expected["std"]
        )


# ---- anchors ---------------------------------------------------------------------------------------------------------


def test_anchors_of_320_pixels() -> None:
    anchors = ssd.make_anchors(MAPS, (320, 320))
    assert anchors.shape == (3232, 4)
    by_hand = {  # center x, center y, width, height
        0: (8, 8, 32, 32),
        1: (8, 8, 51.433, 51.433),  # sqrt(0.1 * 0.258333) * 320
        2: (8, 8, 45.255, 22.627),  # 32 * sqrt(2), 32 / sqrt(2)
        3: (8, 8, 22.627, 45.255),
        4: (8, 8, 55.426, 18.475),  # 32 * sqrt(3), 32 / sqrt(3)
        5: (8, 8, 18.475, 55.426),
        6: (24, 8, 32, 32),  # the next place of the row
        20 * 6: (8, 24, 32, 32),  # the next row
        2400: (16, 16, 82.667, 82.667),  # the first of the second map: 0.258333 * 320
        3228: (160, 160, 285.333, 285.333),  # the last map has four: 0.891667 * 320
        3230: (160, 160, 320, 201.761),  # no side is larger than the input
        3231: (160, 160, 201.761, 320),
    }
    for index, expected in by_hand.items():
        assert anchors[index].tolist() == pytest.approx(expected, abs=2e-3), index


@pytest.mark.parametrize(
    "name", ["fasternet_t0", "mobileone_s0"]
)  # one rounds sizes down, the other up
@pytest.mark.parametrize("size", [(64, 96), (100, 72)])
def test_anchors_fit_the_outputs_at_any_size(name: str, size: tuple[int, int]) -> None:
    model = build(f"ssd/{name}", 3).eval()
    with torch.no_grad():
        features = model.backbone(image(*size))
        outputs = model.head(features, size)
    shapes = [tuple(features[i].shape[2:]) for i in (-2, -1)]
    for _ in range(3):
        shapes.append(tuple(-(-side // 2) for side in shapes[-1]))
    count = 6 * sum(height * width for height, width in shapes) + 4
    assert {key: value.shape for key, value in outputs.items()} == {
        "logits": (2, count, 4), "boxes": (2, count, 4), "anchors": (2, count, 4),
    }  # fmt: skip
    height, width = size
    anchors = outputs["anchors"][0]
    assert torch.equal(outputs["anchors"][1], anchors)
    assert anchors[0].tolist() == pytest.approx(
        [width / shapes[0][1] / 2, height / shapes[0][0] / 2, 0.1 * width, 0.1 * height], rel=1e-5
    )
    assert anchors[-1, :2].tolist() == pytest.approx([width / 2, height / 2])


def test_outputs_are_in_the_order_of_the_anchors() -> None:
    """A regression depends on the picture around its own anchor, not on the far corner."""
    model = randomize(build("ssd/fasternet_t0", 2), 0)
    features = [
        torch.zeros(1, c, 64 // s, 96 // s)
        for c, s in zip(model.backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    changed = [f.clone() for f in features]
    changed[2][:, :, 1, 4] += 1  # row 1, column 4 of the first map, 4 x 6
    with torch.no_grad():
        before, after = (model.head(f, (64, 96))["logits"][0] for f in (features, changed))
    rows = (before != after).any(1).nonzero().flatten()
    places = {(int(i) // 6 // 6, int(i) // 6 % 6) for i in rows}
    assert places == {(y, x) for y in (0, 1, 2) for x in (3, 4, 5)}  # 3x3 around it


def test_a_backbone_without_the_strides_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"ssd needs features at strides 16 and 32; .* \[4, 8, 16, 16\]"
    ):
        build("ssd/fasternet_t0", 3, output_stride=16)


# ---- matching --------------------------------------------------------------------------------------------------------


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def slow_match(boxes: list[list[float]], anchors: list[list[float]]) -> dict[int, int]:
    """Anchor -> object, of the positive anchors."""
    corners = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in anchors]
    found: dict[int, int] = {}
    for i, anchor in enumerate(corners):
        values = [overlap(box, anchor) for box in boxes]
        if values and max(values) >= 0.5:
            found[i] = values.index(max(values))
    forced: dict[int, int] = {}
    for j, box in enumerate(boxes):
        values = [overlap(box, anchor) for anchor in corners]
        i = values.index(max(values))
        if i not in forced or values[i] > overlap(boxes[forced[i]], corners[i]):
            forced[i] = j
    return {**found, **forced}


def random_boxes(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.rand(count, 2, generator=generator) ** 2 * size * 0.9 + 2
    corner = torch.rand(count, 2, generator=generator) * (size - sides)
    return torch.cat([corner, corner + sides], 1)


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_a_slow_one(seed: int) -> None:
    anchors = ssd.make_anchors([(4, 6), (2, 3), (1, 2), (1, 1), (1, 1), (1, 1)], (64, 96)).double()
    boxes = random_boxes(6, 64, seed).double()
    index, positive = ssd.match(boxes, anchors)
    expected = slow_match(boxes.tolist(), anchors.tolist())
    assert {i: int(index[i]) for i in positive.nonzero().flatten().tolist()} == expected


def test_of_two_objects_with_one_best_anchor_the_better_has_it() -> None:
    anchors = torch.tensor([[10.0, 10, 10, 10], [80, 80, 10, 10]])
    boxes = torch.tensor([[5.0, 5, 15, 14], [5, 5, 15, 10]])  # overlap 0.9 and 0.5
    for order in ([0, 1], [1, 0]):
        index, positive = ssd.match(boxes[order], anchors)
        assert positive.tolist() == [True, False]
        assert order[int(index[0])] == 0


def test_nothing_matches_nothing() -> None:
    index, positive = ssd.match(NO_BOXES, ssd.make_anchors(MAPS, (320, 320)))
    assert index.shape == positive.shape == (3232,)
    assert not positive.any()


# ---- loss ------------------------------------------------------------------------------------------------------------


def outputs_for(size: int, batch: int, classes: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    anchors = ssd.make_anchors([(4, 4), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1)], (size, size))
    count = len(anchors)
    return {
        "logits": torch.randn(batch, count, classes + 1, generator=generator).requires_grad_(),
        "boxes": torch.randn(batch, count, 4, generator=generator).requires_grad_(),
        "anchors": anchors.expand(batch, -1, -1),
    }


@pytest.mark.parametrize("empty", [False, True])
def test_the_loss_equals_a_slow_one(empty: bool) -> None:
    outputs = outputs_for(64, 2, 3)
    boxes = [random_boxes(3, 64, 1), NO_BOXES if empty else random_boxes(2, 64, 2)]
    labels = [torch.tensor([2, 0, 1]), NO_LABELS if empty else torch.tensor([1, 1])]
    found = ssd.loss(torch.nn.Identity(), outputs, {"boxes": boxes, "labels": labels})
    anchors = outputs["anchors"][0].tolist()
    matches = [ssd.match(b, outputs["anchors"][0]) for b in boxes]
    box_sum = class_sum = count = 0.0
    for n in range(2):
        matched = {i: int(matches[n][0][i]) for i in matches[n][1].nonzero().flatten().tolist()}
        logits = outputs["logits"][n].detach().log_softmax(1)
        negatives = []
        for i, (x, y, w, h) in enumerate(anchors):
            if i not in matched:
                negatives.append(-logits[i, 0].item())
                continue
            x0, y0, x1, y1 = boxes[n][matched[i]].tolist()
            wanted = [
                ((x0 + x1) / 2 - x) / w / 0.1, ((y0 + y1) / 2 - y) / h / 0.1,
                math.log((x1 - x0) / w) / 0.2, math.log((y1 - y0) / h) / 0.2,
            ]  # fmt: skip
            for value, goal in zip(outputs["boxes"][n, i].tolist(), wanted, strict=True):
                d = abs(value - goal)
                box_sum += d * d / 2 if d < 1 else d - 0.5
            class_sum -= logits[i, 1 + int(labels[n][matched[i]])].item()
        learned = max(len(matched), 1)
        class_sum += sum(sorted(negatives, reverse=True)[: 3 * learned])
        count += learned
    assert found["box"].item() == pytest.approx(box_sum / count, rel=1e-4)
    assert found["class"].item() == pytest.approx(class_sum / count, rel=1e-4)


def test_three_negatives_for_each_positive_get_a_gradient() -> None:
    outputs = outputs_for(64, 3, 3)
    boxes = [random_boxes(3, 64, 1), NO_BOXES, random_boxes(1, 64, 5)]
    labels = [torch.tensor([2, 0, 1]), NO_LABELS, torch.tensor([1])]
    sum(
        ssd.loss(torch.nn.Identity(), outputs, {"boxes": boxes, "labels": labels}).values()
    ).backward()
    learned = (outputs["logits"].grad != 0).any(2).sum(1).tolist()
    positive = [int(ssd.match(b, outputs["anchors"][0])[1].sum()) for b in boxes]
    assert positive[0] >= 3
    assert learned == [4 * positive[0], 3, 4 * positive[2]]
    assert (outputs["boxes"].grad != 0).any(2).sum(1).tolist() == positive


@pytest.mark.parametrize("objects", [[0, 0], [2, 0], [1, 1]], ids=str)
def test_every_parameter_gets_a_finite_gradient(objects: list[int]) -> None:
    model = build("ssd/mobileone_s0", 3).train()
    outputs = model(image(64, 96))
    targets = {
        "boxes": [random_boxes(n, 60, 7) for n in objects],
        "labels": [torch.arange(n) for n in objects],
    }
    losses = ssd.loss(model.head, outputs, targets)
    assert all(value.isfinite() for value in losses.values())
    assert losses["class"] > 0
    assert (losses["box"] > 0) == any(objects)
    sum(losses.values()).backward()
    assert not [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert any(p.grad.any() for p in model.backbone.parameters())


def test_boxes_without_area_do_not_break_the_loss() -> None:
    targets = {"boxes": [torch.tensor([[5.0, 5, 5, 30]])], "labels": [torch.tensor([0])]}
    assert all(
        v.isfinite() for v in ssd.loss(torch.nn.Identity(), outputs_for(64, 1, 2), targets).values()
    )


def test_one_small_image_cannot_train() -> None:
    model = build("ssd/fasternet_t0", 3).train()
    with pytest.raises(
        ModelError, match=r"one image of 64x96 leaves ssd one value a channel.* larger images$"
    ):
        model(image(64, 96, batch=1))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert model(image(64, 96, batch=1))["logits"].isfinite().all()


def test_anchors_stay_in_float32_under_autocast() -> None:
    model, pixels = build("ssd/fasternet_t0", 3).eval(), image(96, 520, batch=1)
    with torch.no_grad():
        expected = model(pixels)["anchors"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(pixels)
            (found,) = ssd.decode(outputs, (96, 520))
    assert outputs["boxes"].dtype == torch.bfloat16
    assert outputs["anchors"].dtype == torch.float32
    assert torch.equal(outputs["anchors"], expected)
    (by_hand,) = ssd.decode({name: value.float() for name, value in outputs.items()}, (96, 520))
    assert len(found.boxes)
    assert all(
        torch.equal(getattr(found, name), getattr(by_hand, name))
        for name in ("boxes", "scores", "labels")
    )


# ---- back to boxes ---------------------------------------------------------------------------------------------------


def test_regressions_and_boxes_are_inverse() -> None:
    anchors = ssd.make_anchors(MAPS, (192, 288))
    boxes = random_boxes(len(anchors), 190, 3)
    torch.testing.assert_close(
        ssd.place(ssd.encode(boxes, anchors), anchors), boxes, rtol=1e-4, atol=1e-3
    )


def perfect(
    boxes: Tensor, labels: Tensor, classes: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Outputs of a network that is sure of what it was taught."""
    anchors = ssd.make_anchors([(12, 18), (6, 9), (3, 5), (2, 3), (1, 2), (1, 1)], size)
    index, positive = ssd.match(boxes, anchors)
    label = torch.where(positive, labels[index] + 1, 0)
    logits = 20.0 * torch.nn.functional.one_hot(label, classes + 1)
    return {
        "logits": logits[None],
        "boxes": ssd.encode(boxes[index], anchors)[None],
        "anchors": anchors[None],
    }


def test_what_is_encoded_is_decoded() -> None:
    boxes = torch.tensor(
        [[10.0, 20, 60, 90], [150, 40, 280, 190], [30, 100, 44, 130], [200, 10, 230, 30]]
    )
    labels = torch.tensor([1, 4, 0, 4])
    outputs = perfect(boxes, labels, 5, (192, 288))
    (found,) = ssd.decode(outputs, (192, 288))
    order = found.boxes[:, 0].argsort()
    expected = boxes[:, 0].argsort()
    torch.testing.assert_close(found.boxes[order], boxes[expected], rtol=1e-4, atol=1e-2)
    assert torch.equal(found.labels[order], labels[expected])
    assert (found.scores > 0.99).all()


def test_wild_regressions_stay_finite_and_inside() -> None:
    outputs = outputs_for(64, 1, 2)
    outputs = {**outputs, "boxes": outputs["boxes"].detach() * 1e4}
    (found,) = ssd.decode({k: v.detach() for k, v in outputs.items()}, (64, 64))
    assert len(found.boxes) <= 100
    assert found.boxes.isfinite().all()
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 64


def test_embedded_decoding_finds_the_same() -> None:
    model = randomize(build("ssd/fasternet_t0", 3), 2)
    x = image(64, 96)
    with torch.no_grad():
        inside = ssd.embed(model)(x)
        raw = ssd.decode(model(x), (64, 96))
    assert {key: value.shape for key, value in inside.items()} == {
        "boxes": (2, 100, 4), "scores": (2, 100), "labels": (2, 100),
    }  # fmt: skip
    for one, other in zip(ssd.decode(inside, (64, 96)), raw, strict=True):
        assert len(one)
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_the_deploy_form_computes_the_same() -> None:
    model = randomize(build("ssd/parcnet_xs", 3), 2).double()
    x = image(64, 96, dtype=torch.float64)
    deployed = reparameterize(model, x)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.modules())
    with torch.no_grad():
        _, relative = difference(list(model(x).values()), list(deployed(x).values()))
    assert relative < 1e-9


def test_features_are_chosen_by_stride() -> None:
    for name in ("parcnet_xs", "fasternet_t0", "timm/mobilenetv3_small_100"):
        network = backbone(name)
        head = ssd.head(network, 3)
        assert [network.strides[i] for i in head.index] == [16, 32]
