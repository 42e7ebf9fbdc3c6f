"""Where the pictures of an input lie in it: random crops, scales and mosaics as numbers.

A layout gives a `Place` for each picture. What is seen of the picture is resampled once, and its
annotation follows from the same numbers (`draw`, `move`). So nothing is resampled twice. Differs
from the papers' code in that only; and "segment" pads a picture that is smaller than the input,
where ParC-Net's enlarges it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, clip_boxes_to_image, masks_to_boxes

from ..data import IGNORE, OF_PICTURES
from ..geometry import Place
from ..preprocess import Preprocess
from ..resizing import BEYOND, Interpolation, array_of, interpolated, part_of, tensor_of
from .decode import AnnotatedPicture, Targets
from .randomness import choice, uniform, whole

SIDE = 2.0  # pixels of the input: objects with a shorter side are dropped
WHOLE = 1e-6  # pixels: what rounding takes from a whole number, or adds
VISIBLE = 0.15  # and those of which a smaller share of the area is left
OVERLAPS = (
    0.0,
    0.1,
    0.3,
    0.5,
    0.7,
    0.9,
    1.0,
)  # SSD: least IoU of a crop with an object; 1: no crop


class Part(NamedTuple):
    """One of the pictures that the input shows; they do not overlap."""

    place: Place
    keep: Tensor | None = None  # (n,) bool, objects that stay; None: by what is visible of them


class Layout(Protocol):
    """Where pictures lie in the input."""

    pictures: int = 1  # how many it takes at most

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> list[Part]:
        """The parts of the input, for the first pictures, as many as there are parts."""
        ...

    def plain(self) -> "Layout":
        """What the last epochs of a training use in its place."""
        return self


@dataclass(frozen=True)
class Zoom(Layout):
    """A picture as evaluation sees it, scaled by a random factor, at a random position.

    The factor is from `low` to `high`. With `cover`, factor 1 is where the shorter side fills the
    input, whatever evaluation does.
    """

    preprocess: Preprocess
    low: float = 1.0
    high: float = 1.0
    cover: bool = False

    def scaled(self, picture: AnnotatedPicture, factor: float) -> Place:
        """`picture` in its scale, in whole pixels, at the corner of the input."""
        height, width = self.preprocess.size
        place = self.preprocess.place(picture.height, picture.width)
        if self.cover:
            factor *= max(
                height / (picture.height * place.scale_y), width / (picture.width * place.scale_x)
            )
        rows = max(1, round(picture.height * place.scale_y * factor))
        columns = max(1, round(picture.width * place.scale_x * factor))
        return Place(picture.height, picture.width, rows / picture.height, columns / picture.width)

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> list[Part]:
        height, width = self.preprocess.size
        factor = uniform(self.low, self.high, generator)
        place = self.scaled(pictures[0], factor)
        # Pixels that the picture leaves free, below 0 where it is the larger of the two.
        free_y = height - round(place.height * place.scale_y)
        free_x = width - round(place.width * place.scale_x)
        top = whole(min(0, free_y), max(0, free_y), generator)
        left = whole(min(0, free_x), max(0, free_x), generator)
        return [Part(place._replace(top=top, left=left))]


@dataclass(frozen=True)
class Mosaic(Layout):
    """Four pictures that meet at a random point, seen through a window of a random scale.

    arXiv:2004.10934. The canvas is twice the input's size and the point lies in its middle half;
    only what the window shows is drawn.
    """

    zoom: Zoom
    probability: float = 1.0  # else only the first picture, by `zoom`
    shift: float = 0.1  # of the window, as a share of the input's size, to either side
    pictures = 4

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> list[Part]:
        # There are fewer where files could not be read.
        if len(pictures) < 4 or uniform(0, 1, generator) >= self.probability:
            return self.zoom(pictures, generator)
        factor = uniform(self.zoom.low, self.zoom.high, generator)
        height, width = self.zoom.preprocess.size
        y = self._meeting_point(height, factor, generator)
        x = self._meeting_point(width, factor, generator)
        parts = []
        for index, picture in enumerate(pictures[:4]):
            place = self.zoom.scaled(picture, factor)
            below, right = divmod(index, 2)
            top = y if below else y - round(place.height * place.scale_y)
            left = x if right else x - round(place.width * place.scale_x)
            parts.append(Part(place._replace(top=top, left=left)))
        return parts

    def _meeting_point(self, side: int, factor: float, generator: torch.Generator) -> int:
        """Where they meet in an input of `side` pixels; at an edge, only two of them are seen."""
        of_canvas = factor * uniform(-0.5, 0.5, generator)
        of_window = self.shift * uniform(-1, 1, generator)
        center = 0.5 + of_canvas + of_window
        return min(max(round(side * center), 0), side)

    def plain(self) -> Layout:
        return self.zoom


@dataclass(frozen=True)
class Crop(Layout):
    """SSD's random crop with a least overlap with an object, stretched to the input.

    arXiv:1512.02325. The rule of torchvision's RandomIoUCrop, which tries one crop after the other,
    and so takes three times as long.
    """

    preprocess: Preprocess
    scale: float  # smallest side, as a share of the picture's
    trials: int = 40  # for each choice of a least overlap

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> list[Part]:
        picture = pictures[0]
        boxes = picture.targets.get("boxes", torch.zeros(0, 4))
        crop, keep = self._choose(boxes, picture.height, picture.width, generator)
        height, width = self.preprocess.size
        x0, y0, x1, y1 = to_decode(crop.tolist(), picture, (height, width))
        scale_y, scale_x = height / (y1 - y0), width / (x1 - x0)
        place = Place(picture.height, picture.width, scale_y, scale_x, -y0 * scale_y, -x0 * scale_x)
        return [Part(place, keep)]

    def _choose(
        self, boxes: Tensor, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """A crop (4,) of a picture of this size, in its pixels, and which boxes (n,) it keeps.

        It keeps those of `boxes` (n, 4) that have their center in it; None for all of them.
        """
        whole = torch.tensor([width, height])
        center = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
        while len(boxes) and (overlap := choice(OVERLAPS, generator)) < 1:
            share = torch.rand(self.trials, 2, generator=generator)
            side = torch.floor(whole * (self.scale + (1 - self.scale) * share)).clamp(min=1)
            corner = torch.floor((whole - side) * torch.rand(self.trials, 2, generator=generator))
            crops = torch.cat([corner, corner + side], 1)  # (trials, 4)
            after_corner = (center > crops[:, None, :2]).all(2)
            before_end = (center < crops[:, None, 2:]).all(2)
            inside = after_corner & before_end  # (trials, n)
            best = (box_iou(crops, boxes) * inside).amax(1)
            aspect = side[:, 0] / side[:, 1]
            good = inside.any(1) & (best >= overlap) & (aspect >= 0.5) & (aspect <= 2)
            if good.any():
                first = int(good.byte().argmax())
                return crops[first], inside[first]
        return torch.cat([whole - whole, whole]), None


def to_decode(
    crop: Sequence[float], picture: AnnotatedPicture, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A crop x0, y0, x1, y1 of a picture, at whole pixels of what its decoder shrinks it to.

    `size` (height, width) is that of the input, of which it moves by half a pixel at most.
    """
    x0, y0, x1, y1 = crop
    by = picture.reduction((y1 - y0, x1 - x0), size)
    right, bottom = (
        min(round(x1 / by) * by, picture.width),
        min(round(y1 / by) * by, picture.height),
    )
    return round(x0 / by) * by, round(y0 / by) * by, right, bottom


# What an input shows ------------------------------------------------------------------------------


def draw(
    canvas: Tensor, annotated: AnnotatedPicture, place: Place, interpolation: Interpolation
) -> None:
    """Draw a picture at its place in an input (C, H, W) uint8; only what is seen of it is resampled."""
    x0, y0, x1, y1 = seen(place, (canvas.shape[1], canvas.shape[2]))
    if x1 <= x0 or y1 <= y0:
        return
    canvas[:, y0:y1, x0:x1] = resampled(annotated, place, (x0, y0, x1, y1), interpolation)


def resampled(
    annotated: AnnotatedPicture,
    place: Place,
    part: tuple[int, int, int, int],
    interpolation: Interpolation,
) -> Tensor:
    """A part (x0, y0, x1, y1) of the input, which the picture at its place fills."""
    by = annotated.reduction((1 / place.scale_y, 1 / place.scale_x), (1, 1))
    picture = annotated.shrunk(by)
    x0, y0, x1, y1 = part
    size = y1 - y0, x1 - x0
    scale = place.scale_y * by, place.scale_x * by  # pixels of the input for one of the picture
    height, width = place.height / by, place.width / by  # of the whole
    box = (  # in pixels of the picture; rounding would go beyond it
        max((x0 - place.left) / scale[1], 0.0),
        max((y0 - place.top) / scale[0], 0.0),
        min((x1 - place.left) / scale[1], width),
        min((y1 - place.top) / scale[0], height),
    )
    left, top = round(box[0]), round(box[1])
    if abs(box[0] - left) + abs(box[1] - top) < WHOLE:  # a crop at whole pixels
        # NumPy cuts in a tenth of torch's time
        pixels = array_of(picture)[top : ceil(box[3] - WHOLE), left : ceil(box[2] - WHOLE)]
        crop = tensor_of(pixels)
        exact = size[0] / (box[3] - top), size[1] / (box[2] - left)
        return interpolated(crop, size, interpolation, exact)
    # Else the whole picture would become whole pixels, of which some are seen.
    whole = round(place.height * place.scale_y), round(place.width * place.scale_x)
    corner = y0 - place.top, x0 - place.left
    is_near = whole[0] * whole[1] <= BEYOND * size[0] * size[1]
    if is_near and corner == (int(corner[0]), int(corner[1])):
        resized = interpolated(picture, whole, interpolation, scale)
        y, x = int(corner[0]), int(corner[1])
        return resized[:, y : y + size[0], x : x + size[1]]
    return part_of(picture, box, size, interpolation)


def seen(place: Place, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels of an input of `size` that show the picture."""
    bottom = place.top + place.height * place.scale_y
    right = place.left + place.width * place.scale_x
    return (
        max(0, round(place.left)),
        max(0, round(place.top)),
        min(size[1], round(right)),
        min(size[0], round(bottom)),
    )


def move(targets: Targets, part: Part, size: tuple[int, int]) -> Targets:
    """The annotation of a picture -> of what an input of `size` shows of it.

    Objects of which too little is visible are dropped. Where there are masks, boxes are theirs.
    """
    moved = {key: targets[key] for key in OF_PICTURES if key in targets}
    if "semantic" in targets:
        moved["semantic"] = _shown(targets["semantic"], part.place, size, IGNORE).long()
    if "boxes" not in targets:
        return moved
    placed = part.place.into(targets["boxes"])
    x0, y0, x1, y1 = seen(part.place, size)
    corner = placed.new_tensor([x0, y0] * 2)
    boxes = clip_boxes_to_image(placed - corner, (max(0, y1 - y0), max(0, x1 - x0))) + corner
    objects = {"boxes": boxes, "labels": targets["labels"]}
    area, whole_area = box_area(boxes), box_area(placed)
    if "masks" in targets:
        masks = _shown(targets["masks"], part.place, size, 0).to(torch.uint8)
        whole_area = _pixels(targets["masks"]) * (part.place.scale_x * part.place.scale_y)
        area = _pixels(masks)
        boxes = _boxes_of(masks, area)
        objects = {"masks": masks, "boxes": boxes, "labels": targets["labels"]}
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= SIDE).all(1) & (area >= VISIBLE * whole_area)
    if part.keep is not None:
        keep = keep & part.keep
    if not keep.all():
        objects = {key: value[keep] for key, value in objects.items()}
    return moved | objects


def _boxes_of(masks: Tensor, area: Tensor) -> Tensor:
    """Boxes (n, 4) of masks (n, h, w), to the last pixel's end; zeros where nothing is left."""
    boxes = torch.zeros(len(masks), 4)
    boxes[area > 0] = masks_to_boxes(masks[area > 0]) + boxes.new_tensor([0, 0, 1, 1])
    return boxes


def _pixels(masks: Tensor) -> Tensor:
    """Pixels of each mask, (n, h, w) -> (n,); NumPy's count is 20 times as fast as a sum."""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.float32)


def _shown(maps: Tensor, place: Place, size: tuple[int, int], empty: int) -> Tensor:
    """Maps (..., h, w) of a picture -> (..., *size), by the nearest pixel.

    They are `empty` where there is no picture.
    """
    x0, y0, x1, y1 = seen(place, size)
    shown = maps.new_full((*maps.shape[:-2], *size), empty)
    if x1 > x0 and y1 > y0:
        y = (np.arange(y0, y1) + 0.5 - place.top) / place.scale_y
        x = (np.arange(x0, x1) + 0.5 - place.left) / place.scale_x
        rows = y.clip(0, place.height - 1).astype(int)
        columns = x.clip(0, place.width - 1).astype(int)
        # NumPy's take is twice as fast as torch's index_select.
        shown.numpy()[..., y0:y1, x0:x1] = maps.numpy().take(rows, axis=-2).take(columns, axis=-1)
    return shown


def together(parts: Sequence[Targets]) -> Targets:
    """The annotation of an input from those of its parts, which do not overlap."""
    merged = {
        key: torch.cat([targets[key] for targets in parts])
        for key in parts[0]
        if key not in ("semantic", *OF_PICTURES)
    }
    if "semantic" in parts[0]:  # IGNORE, the highest value, is outside of each part
        merged["semantic"] = reduce(torch.minimum, [targets["semantic"] for targets in parts])
    return merged | {key: parts[0][key] for key in OF_PICTURES if key in parts[0]}


def mirrored(targets: Targets, width: int) -> Targets:
    """The annotation of a picture of this width after it was mirrored left to right."""
    flipped = dict(targets)
    for key in ("masks", "semantic"):
        if key in targets:
            flipped[key] = targets[key].flip(-1)
    if "boxes" in targets:
        x0, y0, x1, y1 = targets["boxes"].unbind(1)
        flipped["boxes"] = torch.stack([width - x1, y0, width - x0, y1], 1)
    return flipped
