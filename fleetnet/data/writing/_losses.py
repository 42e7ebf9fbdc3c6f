"""What a format cannot hold of annotations: counted, and taken away before they are written.

What changes what is learned or measured has to be allowed (`lossy`); what can be measured anew, as
the area of a mask, is only said.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import Notes, Object, Split, fit_box
from .._masks import mask_of
from ._album import Album
from ._outlines import outlines_of

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Part:
    """A part of the annotation of an object that a writer may not hold."""

    words: str  # what is lost, behind a number
    change: Callable[
        [Object, Size], Object | None
    ]  # the object without it; the same if it has none
    slight: bool = False  # it is said, and needs no leave


def _without_crowd(item: Object, size: Size) -> Object | None:
    return None if item.crowd else item


def _without_mask(item: Object, size: Size) -> Object:
    return item if item.segmentation is None else replace(item, segmentation=None)


def _outlined(item: Object, size: Size) -> Object:
    """The object with polygons in place of run lengths, if they cover the same pixels."""
    if not isinstance(item.segmentation, dict):
        return item
    mask = mask_of(item.segmentation, size)
    polygons = outlines_of(mask)
    if polygons is None or not np.array_equal(mask_of(polygons, size), mask):
        return item
    return replace(item, segmentation=polygons)


def _without_runs(item: Object, size: Size) -> Object:
    return replace(item, segmentation=None) if isinstance(item.segmentation, dict) else item


def _joined(item: Object, size: Size) -> Object:
    """The object with its polygons as one: lines without width lead from each to the next."""
    parts = item.segmentation
    if not isinstance(parts, list) or len(parts) < 2:
        return item
    whole = [*parts[0], *parts[0][:2]]
    for part in parts[1:]:
        whole += [*part, *part[:2], *parts[0][:2]]
    return replace(item, segmentation=[whole])


def _without_own_box(item: Object, size: Size) -> Object:
    """The object with the box around its polygon, where that is not the annotated one."""
    if not isinstance(item.segmentation, list):
        return item
    points = np.array(item.segmentation[0], float).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    box = fit_box((x0, y0, x1, y1), size, "", Notes())
    if box is None or np.allclose(box, item.box, rtol=0, atol=1e-6):
        return item
    return replace(item, box=box)


def _without_area(item: Object, size: Size) -> Object:
    without = replace(item, area=None)
    return item if item.area in (None, area_of(without, size)) else without


def area_of(item: Object, size: Size) -> float:
    """Square pixels of an object in a picture of `size`: as annotated, else of its mask or its box."""
    if item.area is not None:
        return item.area
    if item.segmentation is not None:
        return float(mask_of(item.segmentation, size).sum())
    x0, y0, x1, y1 = item.box
    return (x1 - x0) * (y1 - y0)


PARTS = {  # in this order: the box is that of the polygon which the others leave
    "crowd": Part("crowds, which are left out", _without_crowd),
    "mask": Part("masks, of which the boxes stay", _without_mask),
    "runs": Part(
        "masks as run lengths, which become polygons around the same pixels", _outlined, True
    ),
    "holes": Part("masks with holes, of which the boxes stay", _without_runs),
    "parts": Part("masks of several polygons, which become one", _joined),
    "box": Part(
        "boxes that are not quite those of their masks, which they become", _without_own_box, True
    ),
    "area": Part("areas as annotated; they are measured anew", _without_area, True),
}

EVERYTHING = (*PARTS, "order", "unused")  # `HOLDS` of a writer that keeps all that there is


def reduced(split: Split, holds: Sequence[str], album: Album) -> tuple[Split, Counter[str]]:
    """The split as a format can hold it that keeps the parts in `holds`, and how much of each is lost."""
    lost: Counter[str] = Counter()
    parts = {name: part for name, part in PARTS.items() if name not in holds}
    samples = [
        replace(sample, objects=_reduced(sample.objects, album.size(sample), parts, lost))
        if sample.objects
        else sample
        for sample in split.samples
    ]
    return replace(split, samples=samples), lost


def _reduced(
    objects: Sequence[Object], size: Size, parts: dict[str, Part], lost: Counter[str]
) -> tuple[Object, ...]:
    kept: list[Object] = []
    for item in objects:
        left: Object | None = item
        for name, part in parts.items():
            changed = part.change(left, size) if left is not None else None
            lost[name] += changed is not left
            left = changed
        if left is not None:
            kept.append(left)
    return tuple(kept)
