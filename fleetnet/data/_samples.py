"""Samples from Python: any iterable of pictures with annotations, and data sets of other libraries.

What is read here ends as the same `Split` that a format gives. Pictures of a data set that can be
asked by number are not kept, but asked for again, so that it may be larger than memory.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ..errors import DataError, UsageError, suggest
from ..images import Source as OfPicture
from ..images import measure, read_labels
from . import IGNORE, Given, Notes, Object, Sample, Split, fit_box, shorten, whole
from ._masks import NoMask, box_around, check_segmentation, mask_of, runs_of
from ._texts import plain

KEYS = ("image", "label", "tags", "boxes", "labels", "masks", "crowd", "map", "id")
Item = Mapping[str, Any]  # what one sample is given as
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Held:
    """A picture that lies in memory."""

    picture: Image.Image | np.ndarray

    def __call__(self) -> OfPicture:
        return self.picture


@dataclass(frozen=True)
class HeldMap:
    """A label map that lies in memory, or in a file."""

    labels: np.ndarray | str | Path
    classes: int
    where: str

    def __call__(self) -> np.ndarray:
        return _map(self.labels, self.classes, self.where)


class Asked(Protocol):
    """A data set that is asked for its items by number."""

    def item(self, index: int) -> Item:
        """A sample with its picture."""


@dataclass(frozen=True)
class Source:
    """A data set that is asked for its items by number, and what makes a sample of an item."""

    items: Any  # with __getitem__ and __len__
    sample: Callable[[Any], object]

    def item(self, index: int) -> Item:
        return _item(self.sample(self.items[index]), index)

    def all(self) -> Iterator[Item]:
        return (self.item(index) for index in range(len(self.items)))


@dataclass(frozen=True)
class Drawn:
    """The picture of an item, which the data set is asked for each time."""

    source: Asked
    index: int

    def __call__(self) -> OfPicture:
        picture: OfPicture = self.source.item(self.index)["image"]
        return picture


@dataclass(frozen=True)
class DrawnMap:
    """The label map of an item, which the data set is asked for each time."""

    source: Asked
    index: int
    classes: int

    def __call__(self) -> np.ndarray:
        item = self.source.item(self.index)
        return _map(item["map"], self.classes, f"sample {self.index}")


class _Row(NamedTuple):
    """A sample before its classes are known: the item without pixels that can be asked for again."""

    image: Path | Held | Drawn
    size: tuple[int, int] | None  # (height, width), where objects need it
    item: Item
    has_map: bool
    number: int  # of the sample


class _Classes(NamedTuple):
    """The classes of all samples."""

    total: int
    labels: Mapping[str, int]  # of each name; of a name that is there twice the first
    flags: bool  # whether tags say 0 or 1 of each class


def from_samples(
    samples: Iterable[Given],
    classes: Sequence[str] | None = None,
    sample: Callable[[Given], object] | None = None,
) -> Split:
    """The split of `fleetnet.data.from_samples`, which says what is taken."""
    by_number = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    source = Source(samples, sample) if sample is not None and by_number else None
    return split_of(source.all() if source else _items(samples, sample), source, classes)


def split_of(
    items: Iterable[Item], source: Asked | None, classes: Sequence[str] | None = None
) -> Split:
    """The split of items with their annotations; pictures that they have none of are asked of `source`."""
    notes = Notes()
    rows = [row for i, item in enumerate(items) if (row := _row(item, i, source, notes))]
    items_of_rows = [row.item for row in rows]
    flags = _are_flags(items_of_rows, None if classes is None else len(classes))
    names = _classes(items_of_rows, classes, any(row.has_map for row in rows), flags)
    labels = {name: i for i, name in reversed([*enumerate(names)])}
    classes_of = _Classes(len(names), labels, flags)
    made = [_sample(row, classes_of, source, notes) for row in rows]
    return Split(made, names, notes.lines, annotations=notes.annotations())


def _items(samples: Iterable[Given], sample: Callable[[Given], object] | None) -> Iterable[Item]:
    for index, value in enumerate(samples):
        yield _item(value if sample is None else sample(value), index)


def _item(value: object, index: int) -> Item:
    """A sample as a mapping; a pair is a picture and its label, or several: its tags."""
    if isinstance(value, tuple) and len(value) == 2:
        value = {"image": value[0], "tags" if are_several(value[1]) else "label": value[1]}
    if not isinstance(value, Mapping) or "image" not in value:
        raise UsageError(
            f"sample {index} is {type(value).__name__}; expected a pair (picture, label), or a "
            f"mapping with image and {', '.join(KEYS[1:])}"
        )
    unknown = next((key for key in value if key not in KEYS), None)
    if unknown is not None:
        raise UsageError(f"sample {index} has {unknown!r}: {suggest(str(unknown), KEYS)}")
    return value


def are_several(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) or getattr(value, "ndim", 0) == 1


def _row(item: Item, index: int, source: Asked | None, notes: Notes) -> _Row | None:
    """What is kept of an item; None, and said, for a picture that cannot be read where its size is needed."""
    picture: Any = item.get("image")
    size = None
    if item.get("boxes") is not None or item.get("masks") is not None:
        try:
            width, height = _size(picture)
        except DataError as error:
            notes.say(f"sample {index}: {error}; left out")
            return None
        size = height, width
    has_map = item.get("map") is not None
    image: Path | Held | Drawn
    if isinstance(picture, str | os.PathLike):
        image = Path(picture)
    elif source is not None:
        image = Drawn(source, index)
    else:
        image = Held(picture)
    large = ("image", "map") if source is not None else ("image",)
    return _Row(image, size, {k: v for k, v in item.items() if k not in large}, has_map, index)


def _size(picture: str | Path | bytes | Image.Image | np.ndarray) -> tuple[int, int]:
    """(width, height) of a picture, upright."""
    return measure(str(picture) if isinstance(picture, os.PathLike) else picture)


def _classes(
    items: Sequence[Item], classes: Sequence[str] | None, maps: bool, flags: bool
) -> list[str]:
    """The names of the classes: as given, else those of the labels, sorted, or their numbers."""
    if classes is not None:
        return [str(name) for name in classes]
    labels = [
        label
        for number, item in enumerate(items)
        for label in (*_labels_of(item), *_tags_of(item, f"sample {number}", flags))
    ]
    if maps or not labels:
        raise UsageError("from_samples needs classes=[...], the names in the order of the labels")
    numbers = [whole(plain(label)) for label in labels if not isinstance(label, str)]
    if not numbers:
        return sorted({str(label) for label in labels})
    if len(numbers) < len(labels) or any(number is None or number < 0 for number in numbers):
        raise UsageError("labels are names or numbers from 0 up, the same kind in all samples")
    return [str(i) for i in range(max(number for number in numbers if number is not None) + 1)]


def _labels_of(item: Item) -> list[object]:
    if item.get("label") is not None:
        return [item["label"]]
    labels = item.get("labels")
    return [] if labels is None else list(labels)


def _are_flags(items: Iterable[Item], total: int | None) -> bool:
    """Whether the tags of all items say 0 or 1 of each of `total` classes, and are no numbers of classes.

    They do where all are 0 or 1 and as many in each item, as many as there are classes; and where
    one of them is a bool or a float, or comes twice in an item. A set has no order to say so by.
    """
    tagged = [item["tags"] for item in items if item.get("tags") is not None]
    if any(isinstance(tags, set | frozenset) for tags in tagged):
        return False
    rows = [[plain(tag) for tag in tags] for tags in tagged if are_several(tags)]
    if any(isinstance(value, str) or value not in (0, 1) for row in rows for value in row):
        return False
    if any(isinstance(value, bool | float) for row in rows for value in row):
        return True
    if any(len(row) > len(set(row)) for row in rows):
        return True
    lengths = {len(row) for row in rows}
    # without one that comes twice, the numbers are 0 and 1, in either order
    return lengths == {2} and total in (None, 2)


def _tags_of(item: Item, where: str, flags: bool, total: int | None = None) -> list[object]:
    """The names or numbers of the classes that an item is tagged with, of `total` classes.

    `flags`: its tags say of each class whether it is there, where there are any. Without a `total`,
    the last of these is then the answer.
    """
    tags = item.get("tags")
    if tags is None:
        return []
    if not are_several(tags):
        raise UsageError(
            f"{where}: tags are {shorten(tags)!r}; expected a list of names or numbers"
        )
    values = [plain(tag) for tag in tags]
    if not values or not flags:
        return values
    if total is None:
        return [len(values) - 1]
    if len(values) != total:
        raise DataError(f"{where}: {len(values)} tags of 0 or 1 for {total} classes")
    return [i for i, value in enumerate(values) if value]


def _label(value: Any, classes: _Classes, where: str) -> int:
    if isinstance(value, str):
        if value not in classes.labels:
            raise DataError(f"{where}: no class {value!r}: {suggest(value, classes.labels)}")
        return classes.labels[value]
    index = whole(plain(value))
    if index is None or not 0 <= index < classes.total:
        raise DataError(
            f"{where}: label is {shorten(value)}; there are {classes.total} classes, so allowed: 0 "
            f"to {classes.total - 1}, or a name"
        )
    return index


def _sample(row: _Row, classes: _Classes, source: Asked | None, notes: Notes) -> Sample:
    where, item = f"sample {row.number}", row.item
    label = item.get("label")
    semantic: HeldMap | DrawnMap | None = None
    if row.has_map and source is not None:
        semantic = DrawnMap(source, row.number, classes.total)
    elif row.has_map:
        semantic = HeldMap(item["map"], classes.total, where)
    return Sample(
        row.image,
        None if label is None else _label(label, classes, where),
        None if row.size is None else _objects(item, row.size, classes, where, notes),
        semantic,
        item.get("id"),
        _tags(item, classes, where),
    )


def _tags(item: Item, classes: _Classes, where: str) -> tuple[int, ...] | None:
    if item.get("tags") is None:
        return None
    tags = _tags_of(item, where, classes.flags, classes.total)
    return tuple(sorted({_label(tag, classes, where) for tag in tags}))


def _objects(
    item: Item, size: tuple[int, int], classes: _Classes, where: str, notes: Notes
) -> tuple[Object, ...]:
    """The objects of a picture of `size` (height, width); what is dropped or cut is noted."""
    labels = _labels_of(item)
    boxes = _rows(item.get("boxes"), len(labels), f"{where}, boxes")
    masks = _rows(item.get("masks"), len(labels), f"{where}, masks")
    crowds = _rows(item.get("crowd"), len(labels), f"{where}, crowd")
    objects = []
    for i, label in enumerate(labels):
        entry = f"{where}, object {i}"
        notes.read += 1
        try:
            mask = None if masks[i] is None else _segmentation(masks[i], size, entry)
        except NoMask as error:
            notes.drop("without a usable mask", f"{entry}: dropped, {error}")
            continue
        box = _covered(mask, size) if boxes[i] is None else _corners(boxes[i], entry)
        fitted = fit_box(box, size, entry, notes)
        if fitted:
            crowd = bool(plain(crowds[i])) if crowds[i] is not None else False
            objects.append(Object(fitted, _label(label, classes, entry), mask, crowd))
    return tuple(objects)


def _rows(values: Iterable[object] | None, count: int, where: str) -> list[Any]:
    """One value for each label, or None for each where there are none."""
    if values is None:
        return [None] * count
    rows = list(values)
    if len(rows) != count:
        raise DataError(f"{where}: {len(rows)} for {count} labels; one for each is expected")
    return rows


def _corners(values: Iterable[float], entry: str) -> Box:
    try:
        x0, y0, x1, y1 = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{entry}: box is {shorten(values)}; expected (x0, y0, x1, y1)") from error
    return x0, y0, x1, y1


def _segmentation(mask: object, size: tuple[int, int], entry: str) -> Any:
    """COCO's form of a mask: an array (height, width), polygons, or run lengths as they are."""
    if not isinstance(mask, list | dict):
        pixels = np.asarray(mask) != 0
        if pixels.shape != size:
            raise DataError(f"{entry}: its mask is {pixels.shape}, the picture {size}")
        mask = {"size": list(size), "counts": runs_of(pixels)}
    check_segmentation(mask, size)
    return mask


def _covered(mask: Any, size: tuple[int, int]) -> Box:
    """The box around a mask."""
    return box_around(mask_of(mask, size))


def _map(value: object, classes: int, where: str) -> np.ndarray:
    """A label map (height, width) uint8, with values below `classes`, or IGNORE."""
    if isinstance(value, str | os.PathLike):
        labels = read_labels(str(value))
    else:
        labels = np.asarray(value)
    if labels.ndim != 2 or labels.dtype.kind not in "biu":
        raise DataError(
            f"{where}: its map is {labels.dtype} of shape {labels.shape}; expected whole numbers "
            "(height, width)"
        )
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORE)]
    if wrong.size:
        raise DataError(
            f"{where}: its map has the value {wrong[0]}; allowed: 0 to {classes - 1}, {IGNORE}"
        )
    return labels.astype(np.uint8)
