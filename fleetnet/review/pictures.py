"""What the pictures of a split show once they are read: faults, sizes, and annotations that do not fit them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import IGNORE, Split
from ..data._contents import Contents
from ..images import Range
from . import Finding, Level, corners, counted, finding, name_of
from .annotated import unreadable
from .look import Look

WHOLE = 0.95  # of a picture: the part that a box of it all covers
NEARLY_ALL = 0.9  # of the pictures
ENOUGH = 10  # pictures with objects, from which on that means something
FEW_PIXELS = 10
SMALL = 8  # pixels of the input, of the longer side of an object
MANY_SMALL = 0.1  # of the objects


@dataclass(frozen=True)
class Sizes:
    """Smallest, median and largest width, height and ratio of width to height of readable pictures."""

    width: tuple[float, float, float]
    height: tuple[float, float, float]
    ratio: tuple[float, float, float]


def sizes_of(looks: Sequence[Look]) -> Sizes | None:
    """The sizes of pictures; None where none can be read."""
    sizes = np.array([look.size for look in looks if not look.fault], np.float64)  # (n, 2)
    if not len(sizes):
        return None
    height, width = sizes.T
    return Sizes(_range(width), _range(height), _range(width / height))


def _range(values: np.ndarray) -> tuple[float, float, float]:
    return float(values.min()), float(np.median(values)), float(values.max())


def pixels_of(split: Split, looks: Sequence[Look]) -> Contents:
    """What `contents_of` counts in label maps, of all of them."""
    counts = sum((look.pixels for look in looks if look.pixels is not None), np.zeros(256, int))
    read = sum(look.pixels is not None for look in looks)
    of_classes = counts[: len(split.classes)].tolist()
    return Contents("pixels", of_classes, int(counts[IGNORE]), 0, read, len(looks))


def pictures(
    name: str, split: Split, looks: Sequence[Look], size: tuple[int, int], max_bad: float = 0.5
) -> list[Finding]:
    """Findings of one split; `size` is the (height, width) of the network's input."""
    faults = [look.fault for look in looks if look.fault]
    return [
        *unreadable(faults, len(looks), name, max_bad),
        *_boxes(name, split, looks, size, max_bad),
    ]


def few_pixels(train: Split, contents: Contents) -> list[Finding]:
    """Classes with next to no pixel in all label maps of train."""
    counts = contents.by_class(train.classes) if contents.unit == "pixels" else {}
    few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW_PIXELS]
    text = f"train: classes with fewer than {FEW_PIXELS} pixels in all label maps: stray colors?"
    return finding("few-pixels", "warning", text, few, "train")


def deep_values(values: Range | None, why: str) -> list[Finding]:
    """What becomes of pictures of more than 8 bits, which may come out dark elsewhere."""
    if values is None:
        return []
    text = (
        f"{why}: {values[0]:g} to {values[1]:g} becomes 0 to 255 in training and wherever the model "
        "is used (--scale-values)"
    )
    return [Finding("deep-values", "note", text)]


def small_pictures(train: Split, looks: Sequence[Look], size: tuple[int, int]) -> list[Finding]:
    """Where most pictures are far smaller than the (height, width) of the input."""
    sides = [max(look.size) for look in looks if not look.fault]
    small = sum(side < max(size) / 2 for side in sides)
    if small <= len(sides) / 2:
        return []
    text = (
        f"train: {counted(small, 'picture', len(train.samples))} less than half as large as the "
        f"input of {size[1]}x{size[0]}: a smaller --size loses nothing, and is faster"
    )
    return [Finding("small-pictures", "note", text, small, (), "train")]


def _boxes(
    name: str, split: Split, looks: Sequence[Look], size: tuple[int, int], max_bad: float
) -> list[Finding]:
    """Boxes beside their pictures' pixels; of all of a picture; and too small for the input."""
    beyond: list[str] = []
    with_objects = whole = objects = small = 0
    for i, look in enumerate(looks):
        boxes = np.array([one.box for one in split.samples[i].objects or ()])  # (n, 4) xyxy
        if look.fault or not len(boxes):
            continue
        height, width = look.size
        sides = boxes[:, 2:] - boxes[:, :2]
        limit = np.array([width, height])
        leaves = (boxes[:, :2] < -1).any(1) | (boxes[:, 2:] > limit + 1).any(1)
        beyond += [
            f"{name_of(split.samples[i])}: {corners(box)} of {width}x{height}"
            for box in boxes[leaves]
        ]
        with_objects += 1
        whole += bool((sides.prod(1) >= WHOLE * limit.prod()).any())
        objects += len(boxes)
        small += int((sides.max(1) * min(size[1] / width, size[0] / height) < SMALL).sum())
    return [
        *_outside(name, beyond, objects, max_bad),
        *_whole(name, whole, with_objects),
        *_small(name, small, objects, size),
    ]


def _outside(name: str, beyond: list[str], objects: int, max_bad: float) -> list[Finding]:
    text = f"{name}: {counted(len(beyond), 'box', objects)} not inside of the picture"
    level: Level = "error" if len(beyond) > max_bad * objects else "warning"
    return finding("outside", level, text, beyond, name)


def _whole(name: str, whole: int, with_objects: int) -> list[Finding]:
    if with_objects < ENOUGH or whole < NEARLY_ALL * with_objects:
        return []
    text = (
        f"{name}: in {whole} of {with_objects} pictures a box covers all of it: where there is "
        "nothing to locate, train a classifier"
    )
    return [Finding("whole-picture-boxes", "warning", text, whole, (), name)]


def _small(name: str, small: int, objects: int, size: tuple[int, int]) -> list[Finding]:
    if small <= MANY_SMALL * objects:
        return []
    text = (
        f"{name}: {counted(small, 'object', objects)} smaller than {SMALL} pixels in the input of "
        f"{size[1]}x{size[0]}: a larger --size shows more of them"
    )
    return [Finding("small-objects", "note", text, small, (), name)]
