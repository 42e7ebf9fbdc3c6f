"""Annotations stay on the picture: objects are rectangles of a color of their own, looked for in what comes out."""

import numpy as np
import pytest
import torch

from fleetnet.errors import UsageError
from fleetnet.geometry import Place
from fleetnet.inputs.augment import (
    DEFAULTS,
    Arranged,
    Augmentation,
    Flip,
    InTurn,
    as_input,
    augmentation,
    layout_of,
)
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.layouts import Layout, Part, Zoom
from fleetnet.inputs.mixing import multi_scale
from fleetnet.preprocess import PADDING, Preprocess
from fleetnet.resizing import tensor_of

# (7, 3), of label 0 to 6
COLORS = torch.tensor([[x, y, z] for x in (0, 255) for y in (0, 255) for z in (0, 255)][1:])
PLAIN = {"color_jitter": 0.0}
GENERATOR = torch.default_generator
SETUPS = [
    ((128, 128), "letterbox"),
    ((96, 144), "letterbox"),
    ((96, 144), "stretch"),
    ((144, 96), "crop"),
]


def scene(rectangles: dict[int, tuple[int, int, int, int]], width: int = 220, height: int = 150):
    """A black picture with a rectangle of COLORS[label] for each label, and its targets of every kind."""
    pixels = np.zeros((height, width, 3), np.uint8)
    semantic = torch.full((height, width), 7)
    masks = torch.zeros(len(rectangles), height, width, dtype=torch.uint8)
    for i, (label, (x0, y0, x1, y1)) in enumerate(rectangles.items()):
        pixels[y0:y1, x0:x1] = COLORS[label]
        semantic[y0:y1, x0:x1] = label
        masks[i, y0:y1, x0:x1] = 1
    boxes = torch.tensor([*rectangles.values()], dtype=torch.float32).view(-1, 4)
    labels = torch.tensor([*rectangles], dtype=torch.int64)
    targets = {"boxes": boxes, "labels": labels, "masks": masks, "semantic": semantic}
    return AnnotatedPicture(tensor_of(pixels), targets)


def scenes():
    """Four pictures of different shapes with the seven objects."""
    return [
        scene({0: (20, 15, 70, 60), 1: (120, 70, 190, 140)}),
        scene({2: (10, 80, 60, 190), 3: (70, 20, 110, 70)}, width=130, height=200),
        scene({4: (5, 5, 90, 80), 5: (60, 90, 95, 98)}, width=100, height=100),
        scene({6: (100, 40, 250, 110)}, width=300, height=160),
    ]


def only(items, *keys):
    return [
        AnnotatedPicture(picture, {key: targets[key] for key in keys}) for picture, targets in items
    ]


def show(image: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """(H, W, 3), 0 to 255, of an input."""
    assert image.shape[1:] == preprocess.size
    return image.permute(1, 2, 0).int()


def colored(pixels: torch.Tensor, label: int) -> torch.Tensor:
    """(H, W) bool: where the color of `label` is, at least by half."""
    return ((pixels - COLORS[label]).abs() < 127).all(-1)


def extent(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize(("size", "mode"), SETUPS)
@pytest.mark.parametrize("name", DEFAULTS)
def test_boxes_stay_on_their_objects(name, size, mode):
    preprocess = Preprocess(size, mode=mode)
    augment = augmentation(name, preprocess, **PLAIN)
    found = 0
    for value in range(12):
        torch.manual_seed(value)
        pictures = only(scenes(), "boxes", "labels")[: augment.pictures]
        image, targets = as_input(augment, preprocess, pictures)
        assert image.shape == (3, *size)
        assert image.dtype == torch.uint8
        assert targets["boxes"].dtype == torch.float32
        assert targets["labels"].dtype == torch.int64
        pixels = show(image, preprocess)
        for box, label in zip(targets["boxes"], targets["labels"].tolist(), strict=True):
            assert torch.allclose(extent(colored(pixels, label)), box, atol=1.6), (value, label)
            found += 1
        limits = torch.tensor([size[1], size[0]] * 2)
        assert (targets["boxes"] >= 0).all()
        assert (targets["boxes"] <= limits).all()
        assert len(targets["labels"].unique()) == len(targets["labels"])
    assert found >= 12


@pytest.mark.parametrize(("size", "mode"), SETUPS[1:3])
@pytest.mark.parametrize("name", DEFAULTS)
def test_masks_stay_on_their_objects_and_boxes_are_theirs(name, size, mode):
    preprocess = Preprocess(size, mode=mode)
    augment = augmentation(name, preprocess, **PLAIN)
    for value in range(8):
        torch.manual_seed(value)
        pictures = only(scenes(), "boxes", "labels", "masks")[: augment.pictures]
        image, targets = as_input(augment, preprocess, pictures)
        pixels, masks = show(image, preprocess), targets["masks"]
        assert masks.shape == (len(targets["labels"]), *size)
        assert masks.dtype == torch.uint8
        for box, label, mask in zip(
            targets["boxes"], targets["labels"].tolist(), masks.bool(), strict=True
        ):
            assert torch.equal(extent(mask), box)
            color = colored(pixels, label)
            assert (mask & color).sum() >= 0.85 * (mask | color).sum() - 5, (value, label)


@pytest.mark.parametrize(("size", "mode"), SETUPS)
@pytest.mark.parametrize("name", DEFAULTS)
def test_label_maps_stay_on_the_picture_and_padding_is_ignored(name, size, mode):
    preprocess = Preprocess(size, mode=mode)
    augment = augmentation(name, preprocess, **PLAIN, scale=0.3)
    padded = 0
    for value in range(8):
        torch.manual_seed(value)
        pictures = only(scenes(), "semantic")[: augment.pictures]
        image, targets = as_input(augment, preprocess, pictures)
        semantic = targets["semantic"]
        assert set(targets) == {"semantic"}
        assert semantic.shape == size
        assert semantic.dtype == torch.int64
        pixels = show(image, preprocess)
        expected = torch.full(size, 7)
        for label in range(7):
            expected[colored(pixels, label)] = label
        expected[((pixels - PADDING).abs() < 1).all(-1)] = 255
        assert (expected == semantic).float().mean() > 0.97, value
        padded += int((semantic == 255).sum())
    if (name, mode) == ("mosaic", "crop"):  # one of twenty
        return
    assert (padded > 0) == (
        name in ("jitter", "segment", "mosaic") or (name == "none" and mode == "letterbox")
    )


def test_none_is_what_evaluation_sees():
    for mode in ("letterbox", "stretch", "crop"):
        preprocess = Preprocess((96, 144), mode=mode, channel_order="BGR", antialias=False)
        picture, targets = scenes()[1]
        augment = augmentation("none", preprocess, flip=1.0, color_jitter=0.5, scale=0.1)
        image, moved = as_input(augment, preprocess, only(scenes()[1:], "boxes", "labels"))
        assert torch.equal(image, preprocess.pixels(picture))
        if mode != "crop":
            place = preprocess.place(*picture.shape[1:])
            torch.testing.assert_close(moved["boxes"], place.into(targets["boxes"]))


def test_mosaic_shows_objects_of_four_pictures():
    preprocess = Preprocess((192, 288), mode="letterbox")
    augment = augmentation("mosaic", preprocess, scale=1.0)
    assert augment.pictures == 4
    sources = []
    for value in range(20):
        torch.manual_seed(value)
        _, targets = as_input(augment, preprocess, only(scenes(), "boxes", "labels"))
        sources.append({label // 2 for label in targets["labels"].tolist()})
    assert max(map(len, sources)) == 4
    assert sum(map(len, sources)) > 40


def test_mosaic_by_probability():
    preprocess = Preprocess((96, 96), mode="letterbox")
    assert augmentation("mosaic", preprocess, mosaic=0.0).pictures == 1
    augment = augmentation("mosaic", preprocess, mosaic=0.5, scale=1.0)
    torch.manual_seed(0)
    pictures = only(scenes(), "boxes", "labels")
    shown = [set(as_input(augment, preprocess, pictures)[1]["labels"].tolist()) for _ in range(60)]
    # 0, 1 alone: the first picture by itself.
    assert 15 < sum(labels == {0, 1} for labels in shown) < 50
    assert any(labels - {0, 1} for labels in shown)
    _, fewer = as_input(augment, preprocess, pictures[:3])  # a file could not be read
    assert set(fewer["labels"].tolist()) <= {0, 1}


@pytest.mark.parametrize("name", DEFAULTS)
def test_no_objects(name):
    preprocess = Preprocess((64, 96), mode="letterbox")
    augment = augmentation(name, preprocess)
    empty = [scene({})] * augment.pictures
    image, targets = as_input(augment, preprocess, only(empty, "boxes", "labels", "masks"))
    assert image.isfinite().all()
    assert {key: tuple(value.shape) for key, value in targets.items()} == {
        "boxes": (0, 4), "labels": (0,), "masks": (0, 64, 96),
    }  # fmt: skip
    assert targets["labels"].dtype == torch.int64
    assert as_input(augment, preprocess, only(empty))[1] == {}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_seeds_decide(name):
    preprocess = Preprocess((64, 96), mode="letterbox")
    augment = augmentation(name, preprocess, erasing=0.3)
    results = []
    for value in (1, 1, 2):
        torch.manual_seed(value)
        pictures = only(scenes(), "boxes", "labels")[: augment.pictures]
        results.append(as_input(augment, preprocess, pictures))
    (first, boxes), (second, again), (other, _) = results
    assert torch.equal(first, second)
    assert torch.equal(boxes["boxes"], again["boxes"])
    assert torch.equal(first, other) == (name == "none")


class RightHalf(Layout):
    """Of a picture of 200 x 100."""

    def __call__(self, pictures, generator):
        return [Part(Place(100, 200, left=-100))]


@pytest.mark.parametrize("masks", [False, True])
def test_objects_of_which_too_little_is_visible_are_dropped(masks):
    # a window of 100 x 100 on a picture of 200 x 100, from x = 100: of the first object 10 %, of
    # the second 50 %
    picture, targets = scene(
        {0: (11, 10, 110, 40), 1: (80, 60, 120, 90), 2: (150, 50, 151, 90), 3: (0, 0, 9, 9)},
        200,
        100,
    )
    preprocess = Preprocess((100, 100))
    augment = Arranged(preprocess, RightHalf())
    keys = ["boxes", "labels", *(["masks"] if masks else [])]
    _, moved = as_input(augment, preprocess, only([(picture, targets)], *keys))
    assert moved["labels"].tolist() == [1]  # the third is a pixel wide, the last is outside
    assert moved["boxes"].tolist() == [[0, 60, 20, 90]]
    if masks:
        assert moved["masks"].shape == (1, 100, 100)
        assert moved["masks"].sum() == 20 * 30


def test_flip():
    flip = Flip(1.0)
    picture = scene({1: (10, 20, 50, 60)}, width=200, height=100)
    _, moved = as_input(flip, Preprocess((100, 200), mode="stretch"), [picture])
    assert Flip(0.0)([picture], GENERATOR) is picture
    assert moved["boxes"].tolist() == [[150, 20, 190, 60]]
    assert extent(moved["masks"][0].bool()).tolist() == [150, 20, 190, 60]
    assert extent(moved["semantic"] == 1).tolist() == [150, 20, 190, 60]


def test_ssd_crops_overlap_an_object_as_much_as_asked():
    layout = layout_of("ssd", Preprocess((100, 100), mode="stretch"), 0.09, 0.0)
    picture = scene({0: (20, 15, 70, 60), 1: (120, 70, 190, 140)})
    areas = []
    for value in range(60):
        torch.manual_seed(value)
        (part,) = layout([picture], GENERATOR)
        place = part.place
        width, height = 100 / place.scale_x, 100 / place.scale_y
        assert 0.29 * 220 <= width <= 220
        assert 0.29 * 150 <= height <= 150
        assert 0.5 <= width / height <= 2
        assert (part.keep is None) == (width == 220 and height == 150)
        assert -1e-3 <= -place.left / place.scale_x <= 220 - width + 1e-3
        areas.append(width * height / (220 * 150))
        assert part.keep is None or part.keep.any()
    assert min(areas) < 0.3
    assert areas.count(1.0) < 30


def test_ssd_crops_contain_the_centers_of_what_they_keep(monkeypatch):
    monkeypatch.setattr("fleetnet.inputs.layouts.OVERLAPS", (0.6,))
    preprocess = Preprocess((100, 100), mode="stretch")
    layout = layout_of("ssd", preprocess, 0.09, 0.0)
    item = only([scene({0: (20, 15, 120, 110), 1: (125, 20, 210, 140)})], "boxes", "labels")
    boxes, left_out = item[0].targets["boxes"], 0
    for value in range(40):
        torch.manual_seed(value)
        (part,) = layout(item, GENERATOR)
        crop = torch.tensor([-part.place.left, -part.place.top] * 2)
        crop += torch.tensor([0, 0, 100, 100])
        crop /= torch.tensor([part.place.scale_x, part.place.scale_y] * 2)
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((center > crop[:2]) & (center < crop[2:])).all(1)
        corner = torch.minimum(boxes[:, 2:], crop[2:]) - torch.maximum(boxes[:, :2], crop[:2])
        both = corner.clamp(min=0).prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (crop[2:] - crop[:2]).prod() - both
        assert (both / union)[inside].max() >= 0.6
        torch.manual_seed(value)
        _, kept = as_input(Arranged(preprocess, layout), preprocess, item)
        assert kept["labels"].tolist() == inside.nonzero().flatten().tolist()
        left_out += int((both > 0).sum() - inside.sum())
    assert left_out > 3  # seen in part, but with their center outside


def test_zoom_range():
    zoom = Zoom(Preprocess((90, 90), mode="letterbox"), 0.5, 2.0)
    pictures = [scene({})]  # 220 x 150: evaluation shows it 90 pixels wide
    widths = [
        place.width * place.scale_x for _ in range(100) for (place, _) in zoom(pictures, GENERATOR)
    ]
    assert 44 <= min(widths) < 60
    assert 160 < max(widths) <= 181
    segment = layout_of("segment", zoom.preprocess, DEFAULTS["segment"]["scale"], 0.0)
    heights = [
        place.height * place.scale_y
        for _ in range(100)
        for (place, _) in segment(pictures, GENERATOR)
    ]
    assert 67 <= min(heights) < 75
    assert 125 < max(heights) <= 136


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "none"])
def test_settings(name):
    preprocess = Preprocess((64, 64), mode="stretch")
    # Of an aspect that a random crop can have, so that scale 1 is the whole picture.
    picture, _ = scene({0: (20, 15, 70, 60)}, width=200, height=200)

    def made(**settings) -> torch.Tensor:
        still = {"color_jitter": 0.0, "flip": 0.0, "scale": 1.0, "mosaic": 0.0}
        augment = augmentation(name, preprocess, **{**still, **settings})
        return as_input(augment, preprocess, [AnnotatedPicture(picture, {})])[0]

    as_it_is = preprocess.pixels(picture)
    if name != "classify":  # whose crops have a random shape
        assert torch.equal(made(), as_it_is)
        assert (made(flip=1.0).flip(-1).int() - as_it_is).abs().max() <= 5
    mean = torch.tensor([124, 116, 104]).view(3, 1, 1)
    assert (made(erasing=1.0) == mean).all(0).any()
    torch.manual_seed(0)
    assert not all(torch.equal(made(color_jitter=0.5), as_it_is) for _ in range(4))


def test_what_is_not_allowed():
    preprocess = Preprocess((64, 64))
    with pytest.raises(UsageError, match="did you mean 'mosaic'"):
        augmentation("mosaik", preprocess)
    with pytest.raises(UsageError, match="auto_augment is 'trivial'"):
        augmentation("ssd", preprocess, auto_augment="trivial")
    augmentation("ssd", preprocess, auto_augment="none")


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0, 1.3, 1.5, 0.01])
def test_multi_scale(ratio):
    preprocess = Preprocess((96, 144), mode="letterbox")
    augment = augmentation("none", preprocess)
    items = [as_input(augment, preprocess, [item]) for item in [*scenes(), scene({})]]
    images = torch.stack([image for image, _ in items])
    targets = {key: [each[key] for _, each in items] for key in ("boxes", "labels", "masks")}
    targets["semantic"] = torch.stack([each["semantic"] for _, each in items])
    resized, moved = multi_scale(images.float(), targets, ratio)
    size = tuple(max(1, round(side * ratio / 32)) * 32 for side in (96, 144))
    assert resized.shape == (5, 3, *size)
    assert moved["semantic"].shape == (5, *size)
    assert moved["semantic"].dtype == torch.int64
    assert moved["labels"] is targets["labels"]
    assert moved["boxes"][4].shape == (0, 4)
    assert moved["masks"][4].shape == (0, *size)
    for image, boxes, labels, masks, semantic in zip(
        resized, moved["boxes"], moved["labels"], moved["masks"], moved["semantic"], strict=True
    ):
        pixels = image.permute(1, 2, 0)
        assert masks.shape == (len(labels), *size)
        assert masks.dtype == torch.uint8
        for box, label, mask in zip(boxes, labels.tolist(), masks, strict=True):
            if min(box[2] - box[0], box[3] - box[1]) > 3:  # not all of it is edge
                assert torch.allclose(extent(colored(pixels, label)), box, atol=1.6)
                assert torch.allclose(extent(mask.bool()), box, atol=1.01)
                assert torch.equal(semantic == label, mask.bool())


def test_only_the_first_of_several_steps_takes_several_pictures():
    class Four(Augmentation):
        pictures = 4

    assert InTurn(Four(), InTurn()).pictures == 4
    with pytest.raises(UsageError, match=r"Four takes 4 pictures and gets one: .* put it first"):
        InTurn(InTurn(), Four())
