"""Training augmentations of pictures together with their boxes, masks and label maps.

Every one of them is a choice of where a picture lies in the input, a `Place`: cropping, scaling,
padding and mosaic are one resampling of what will be seen of each picture, and the annotations
follow from the same numbers. So nothing is resampled twice, and the colors are distorted last, at
the input's size. Differs from the papers' code in that only; and "segment" pads a picture that is
smaller than the input, where ParC-Net's enlarges it.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_area, box_iou, clip_boxes_to_image, masks_to_boxes
from torchvision.transforms import v2

from ..data import IGNORE
from ..errors import UsageError, choose
from ..geometry import Place
from ..preprocess import INTERPOLATION, PADDING, Preprocess

SIDE = 2.0  # pixels of the input: objects with a shorter side are dropped
# SSD: least IoU of a crop with an object; 1 is no crop
OVERLAPS = 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0
VISIBLE = 0.15  # and those of which a smaller share of the area is left
Targets = dict[str, Tensor]
Item = tuple[Image.Image, Targets]


class Part(NamedTuple):
    """One of the pictures that the input shows; they do not overlap."""

    place: Place
    keep: Tensor | None = None  # (n,) bool, objects that stay; None: by what is visible of them


Layout = Callable[[Sequence[Item]], list[Part]]  # of the first pictures, as many as it has parts


@dataclass
class Augment:
    """Pictures with annotations -> the network's input with annotations in its pixels.

    Called with [(RGB picture, targets), ...], `pictures` of them (fewer where files could not be
    read, at least one). Targets may hold boxes (n, 4) float32 xyxy in pixels of the picture, labels
    (n,), masks (n, h, w) uint8 or bool, and semantic (h, w) with 255 where unknown. Gives the input
    (3, H, W) float32 and the same keys of what is visible, n may be 0; with masks, boxes are those
    of the masks. Uses the global random states of torch and `random`.
    """

    preprocess: Preprocess
    layout: Layout | None  # None: as evaluation sees a picture
    pictures: int = 1
    flip: float = 0.0  # probability
    colors: Callable[[Image.Image], Image.Image] | None = None
    erasing: float = 0.0  # probability

    def __call__(self, items: Sequence[Item]) -> tuple[Tensor, Targets]:
        height, width = self.preprocess.size
        if self.layout is None:
            parts = [Part(self.preprocess.place(*items[0][0].size[::-1]))]
            canvas = self.preprocess.picture(items[0][0])
        else:
            parts = self.layout(items)
            canvas = Image.new("RGB", (width, height), (PADDING,) * 3)
            for (picture, _), part in zip(items, parts, strict=False):
                _draw(canvas, picture, part, INTERPOLATION[self.preprocess.interpolation])
        found = [
            _move(targets, part, (height, width))
            for (_, targets), part in zip(items, parts, strict=False)
        ]
        targets = {
            key: torch.cat([each[key] for each in found]) for key in found[0] if key != "semantic"
        }
        if "semantic" in found[0]:  # IGNORE outside of each
            targets["semantic"] = reduce(torch.minimum, [each["semantic"] for each in found])
        if random.random() < self.flip:
            canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            targets = _flip(targets, width)
        image = self.preprocess.tensor(self.colors(canvas) if self.colors else canvas)
        return (v2.RandomErasing(self.erasing)(image) if self.erasing else image), targets


def _draw(
    canvas: Image.Image, picture: Image.Image, part: Part, interpolation: Image.Resampling
) -> None:
    """Draw one part of the input; only what is seen of the picture is resampled."""
    place, (x0, y0, x1, y1) = part.place, _seen(part.place, (canvas.height, canvas.width))
    if x1 <= x0 or y1 <= y0:
        return
    left, right = ((x - place.left) / place.scale_x for x in (x0, x1))
    top, bottom = ((y - place.top) / place.scale_y for y in (y0, y1))
    # rounding goes beyond
    box = (max(left, 0.0), max(top, 0.0), min(right, place.width), min(bottom, place.height))
    canvas.paste(picture.resize((x1 - x0, y1 - y0), interpolation, box=box), (x0, y0))


def _seen(place: Place, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels of an input of `size` that show the picture."""
    bottom, right = (
        place.top + place.height * place.scale_y,
        place.left + place.width * place.scale_x,
    )
    return (
        max(0, round(place.left)),
        max(0, round(place.top)),
        min(size[1], round(right)),
        min(size[0], round(bottom)),
    )


def _move(targets: Targets, part: Part, size: tuple[int, int]) -> Targets:
    """Annotations of a picture -> of what an input of `size` shows of it."""
    moved: Targets = {}
    if "semantic" in targets:
        moved["semantic"] = _show(targets["semantic"], part.place, size, IGNORE).long()
    if "boxes" not in targets:
        return moved
    placed = part.place.into(targets["boxes"])
    x0, y0, x1, y1 = _seen(part.place, size)
    corner = placed.new_tensor([x0, y0] * 2)
    boxes = clip_boxes_to_image(placed - corner, (max(0, y1 - y0), max(0, x1 - x0))) + corner
    area, whole = box_area(boxes), box_area(placed)
    if "masks" in targets:
        masks = _show(targets["masks"], part.place, size, 0).to(torch.uint8)
        whole = _count(targets["masks"]) * (part.place.scale_x * part.place.scale_y)
        area = _count(masks)
        boxes = torch.zeros_like(boxes)
        # to the last pixel's end
        boxes[area > 0] = masks_to_boxes(masks[area > 0]) + boxes.new_tensor([0, 0, 1, 1])
        moved["masks"] = masks
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= SIDE).all(1) & (area >= VISIBLE * whole)
    keep = keep if part.keep is None else keep & part.keep
    moved |= {"boxes": boxes, "labels": targets["labels"]}
    if keep.all():
        return moved
    return {key: value if key == "semantic" else value[keep] for key, value in moved.items()}


def _count(masks: Tensor) -> Tensor:
    """Pixels of each mask, (n, h, w) -> (n,); NumPy's is 20 times as fast as a sum."""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.float32)


def _show(maps: Tensor, place: Place, size: tuple[int, int], empty: int) -> Tensor:
    """Maps (..., h, w) of a picture -> (..., *size), by the nearest pixel, `empty` where there is no picture."""
    x0, y0, x1, y1 = _seen(place, size)
    shown = maps.new_full((*maps.shape[:-2], *size), empty)
    if x1 > x0 and y1 > y0:
        rows = (
            ((np.arange(y0, y1) + 0.5 - place.top) / place.scale_y)
            .clip(0, place.height - 1)
            .astype(int)
        )
        columns = (
            ((np.arange(x0, x1) + 0.5 - place.left) / place.scale_x)
            .clip(0, place.width - 1)
            .astype(int)
        )
        # NumPy's take is twice as fast as torch's index_select
        shown.numpy()[..., y0:y1, x0:x1] = maps.numpy().take(rows, axis=-2).take(columns, axis=-1)
    return shown


def _flip(targets: Targets, width: int) -> Targets:
    """Mirrored left to right."""
    flipped = {
        key: value.flip(-1) if key in ("masks", "semantic") else value
        for key, value in targets.items()
    }
    if "boxes" in targets:
        x0, y0, x1, y1 = targets["boxes"].unbind(1)
        flipped["boxes"] = torch.stack([width - x1, y0, width - x0, y1], 1)
    return flipped


@dataclass(frozen=True)
class Zoom:
    """A picture as evaluation sees it, scaled by a random factor from `low` to `high`, at a random position.

    With `cover`, factor 1 is where the shorter side fills the input, whatever evaluation does.
    """

    preprocess: Preprocess
    low: float = 1.0
    high: float = 1.0
    cover: bool = False

    def scaled(self, picture: Image.Image, factor: float) -> Place:
        """`picture` in its scale, in whole pixels, at the corner of the input."""
        (height, width), (w, h) = self.preprocess.size, picture.size
        place = self.preprocess.place(h, w)
        if self.cover:
            factor *= max(height / (h * place.scale_y), width / (w * place.scale_x))
        rows, columns = (
            max(1, round(n * s * factor)) for n, s in ((h, place.scale_y), (w, place.scale_x))
        )
        return Place(h, w, rows / h, columns / w)

    def __call__(self, items: Sequence[Item]) -> list[Part]:
        height, width = self.preprocess.size
        place = self.scaled(items[0][0], random.uniform(self.low, self.high))
        free_y, free_x = (
            height - round(place.height * place.scale_y),
            width - round(place.width * place.scale_x),
        )
        top, left = (random.randint(min(0, free), max(0, free)) for free in (free_y, free_x))
        return [Part(place._replace(top=top, left=left))]


@dataclass(frozen=True)
class Mosaic:
    """Four pictures that meet at a random point, seen through a window of a random scale (arXiv:2004.10934).

    The canvas is twice the input's size and the point lies in its middle half; only what the window
    shows is drawn.
    """

    zoom: Zoom
    probability: float = 1.0  # else only the first picture, by `zoom`
    shift: float = 0.1  # of the window, as a share of the input's size, to either side

    def __call__(self, items: Sequence[Item]) -> list[Part]:
        if len(items) < 4 or random.random() >= self.probability:
            return self.zoom(items)
        factor = random.uniform(self.zoom.low, self.zoom.high)
        y, x = (self._meet(side, factor) for side in self.zoom.preprocess.size)
        parts = []
        for index, (picture, _) in enumerate(items[:4]):
            place = self.zoom.scaled(picture, factor)
            below, right = divmod(index, 2)
            top = y if below else y - round(place.height * place.scale_y)
            left = x if right else x - round(place.width * place.scale_x)
            parts.append(Part(place._replace(top=top, left=left)))
        return parts

    def _meet(self, side: int, factor: float) -> int:
        """Where the pictures meet in an input of `side` pixels; at an edge, only two of them are seen."""
        center = 0.5 + factor * random.uniform(-0.5, 0.5) + self.shift * random.uniform(-1, 1)
        return min(max(round(side * center), 0), side)


@dataclass(frozen=True)
class Crop:
    """SSD's random crop with a least overlap with an object, stretched to the input (arXiv:1512.02325).

    The rule of torchvision's RandomIoUCrop, which tries one crop after the other, and so takes
    three times as long.
    """

    preprocess: Preprocess
    scale: float  # smallest side, as a share of the picture's
    trials: int = 40  # for each choice of a least overlap

    def __call__(self, items: Sequence[Item]) -> list[Part]:
        picture, targets = items[0]
        (height, width), (w, h) = self.preprocess.size, picture.size
        crop, keep = self._choose(targets.get("boxes", torch.zeros(0, 4)), h, w)
        x0, y0, x1, y1 = crop.tolist()
        scale_y, scale_x = height / (y1 - y0), width / (x1 - x0)
        return [Part(Place(h, w, scale_y, scale_x, -y0 * scale_y, -x0 * scale_x), keep)]

    def _choose(self, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor | None]:
        """A crop (4,), in pixels of a picture of this size, and which of its boxes (n, 4) have their center in it."""
        whole = torch.tensor([width, height])
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        while len(boxes) and (overlap := random.choice(OVERLAPS)) < 1:
            side = torch.floor(
                whole * (self.scale + (1 - self.scale) * torch.rand(self.trials, 2))
            ).clamp(min=1)
            corner = torch.floor((whole - side) * torch.rand(self.trials, 2))
            crops = torch.cat([corner, corner + side], 1)
            # (trials, n)
            inside = ((center > crops[:, None, :2]) & (center < crops[:, None, 2:])).all(2)
            best = (box_iou(crops, boxes) * inside).amax(1)
            aspect = side[:, 0] / side[:, 1]
            good = inside.any(1) & (best >= overlap) & (aspect >= 0.5) & (aspect <= 2)
            if good.any():
                first = int(good.byte().argmax())
                return crops[first], inside[first]
        return torch.cat([whole - whole, whole]), None


# name -> layout for (preprocess, scale: smallest share of a picture's area, mosaic: probability)
AUGMENT: dict[str, Callable[[Preprocess, float, float], Layout | None]] = {
    "none": lambda preprocess, scale, mosaic: None,
    "ssd": lambda preprocess, scale, mosaic: Crop(preprocess, math.sqrt(scale)),
    "jitter": lambda preprocess, scale, mosaic: Zoom(
        preprocess, math.sqrt(scale), 1 / math.sqrt(scale)
    ),
    "segment": lambda preprocess, scale, mosaic: Zoom(
        preprocess, max(math.sqrt(scale), 0.75), 1 / math.sqrt(scale), cover=True
    ),
    "mosaic": lambda preprocess, scale, mosaic: Mosaic(
        Zoom(preprocess, math.sqrt(scale), 1 / math.sqrt(scale)), mosaic
    ),
}
# what the papers use, where a setting is not given: SSD and DeepLabV3 as ParC-Net trains them
# (arXiv:2203.03952)
DEFAULTS: dict[str, dict[str, float]] = {
    "none": {"flip": 0.0, "color_jitter": 0.0},
    "ssd": {"scale": 0.09, "color_jitter": 0.5},
    "jitter": {"scale": 0.35, "color_jitter": 0.2},
    "segment": {"scale": 1 / 1.5**2, "color_jitter": 0.0},
    "mosaic": {"scale": 0.35, "color_jitter": 0.4, "mosaic": 1.0},
}


def augmentation(name: str, preprocess: Preprocess, settings: Mapping[str, Any]) -> Augment:
    """One of `AUGMENT` for inputs as `preprocess` makes them.

    `settings` may have, and None is as not given (see DEFAULTS):
        flip          probability of a horizontal flip
        scale         smallest share of a picture's area that fills the input; above 0, 1 for no scaling
        color_jitter  range of brightness, contrast and saturation around 1; 0 for none
        erasing       probability of erasing a rectangle
        mosaic        probability of four pictures in one
    Other keys are of no concern here, but `auto_augment` moves pictures without their boxes: a
    `UsageError`, as is an unknown name. "none" shows what evaluation sees, whatever the settings
    are.
    """
    if name not in AUGMENT:
        raise UsageError(f"no augmentation {name!r}: {choose(name, AUGMENT)}")
    if (settings.get("auto_augment") or "none") != "none" and name != "none":
        raise UsageError(
            f"auto_augment is {settings['auto_augment']!r}; allowed with boxes and masks: none"
        )
    values = {"flip": 0.5, "scale": 1.0, "erasing": 0.0, "mosaic": 0.0} | DEFAULTS[name]
    if name != "none":
        values |= {key: settings[key] for key in values if settings.get(key) is not None}
    layout = AUGMENT[name](preprocess, values["scale"], values["mosaic"])
    pictures = 4 if isinstance(layout, Mosaic) and values["mosaic"] > 0 else 1
    colors = _colors(name, values["color_jitter"])
    return Augment(preprocess, layout, pictures, values["flip"], colors, values["erasing"])


def _colors(name: str, strength: float) -> Callable[[Image.Image], Image.Image] | None:
    """SSD's photometric distortion, at a strength of 0.5 as ParC-Net has it, or plain jitter."""
    if not strength:
        return None
    if name == "ssd":
        around = (max(0.0, 1 - strength), 1 + strength)
        lights = (max(0.0, 1 - 0.4 * strength), 1 + 0.4 * strength)
        hue = min(0.1 * strength, 0.5)
        return v2.RandomPhotometricDistort(lights, around, around, (-hue, hue))
    # no hue: that takes longer than all the rest
    return v2.ColorJitter(strength, strength, strength)


def multi_scale(
    images: Tensor, targets: Mapping[str, Any], ratio: float
) -> tuple[Tensor, dict[str, Any]]:
    """A batch at another size: both sides times `ratio`, in multiples of 32 and at least 32 pixels.

    images (N, 3, H, W); of the targets, boxes (list of (n, 4)) are scaled, masks (list of (n, H,
    W)) and semantic (N, H, W) take the nearest pixel, and the rest stays as it is.
    """
    height, width = images.shape[-2:]
    size = tuple(max(1, round(side * ratio / 32)) * 32 for side in (height, width))
    if size == (height, width):
        return images, dict(targets)
    y, x = size[0] / height, size[1] / width

    def nearest(maps: Tensor) -> Tensor:
        rows, columns = (
            ((torch.arange(n, device=maps.device) + 0.5) / s).long()
            for n, s in zip(size, (y, x), strict=True)
        )
        return maps.index_select(-2, rows).index_select(-1, columns)

    moved = dict(targets)
    if "boxes" in moved:
        moved["boxes"] = [boxes * boxes.new_tensor([x, y, x, y]) for boxes in moved["boxes"]]
    if "masks" in moved:
        moved["masks"] = [nearest(masks) for masks in moved["masks"]]
    if "semantic" in moved:
        moved["semantic"] = nearest(moved["semantic"])
    return F.interpolate(images, size, mode="bilinear", align_corners=False), moved
