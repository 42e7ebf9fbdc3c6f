"""YOLO text files: `class cx cy width height` a line, in shares of the picture, or `class x y x y ...` for a polygon.

    root/data.yaml (names, train, val, optional path)  root/images/train/*.jpg  root/labels/train/*.txt

`root` is the folder or its YAML file, of any name, or darknet's obj.data; without either it is a
folder of images with labels, whose class names are in classes.txt. The labels of an image are where
its path has "labels" for the last "images", or beside it; an image without such a file shows no
object, but one of a split has to have it. Entries of the YAML file are folders of images, or text
files that list them; they may lie anywhere, and the end of a path of another machine counts. Without
one for val, every tenth image is held back for it. With `kpt_shape` the lines are poses: the first
four values are the box, the keypoints are passed over.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from . import (
    Notes,
    Object,
    Sample,
    Source,
    Split,
    _yolo_files,
    check_exists,
    few,
    fit_box,
    hold_out,
    measured,
    note_turned,
    part_of,
    shorten,
    text_of,
)
from ._conventions import USUAL, Places, split_of, stored
from ._masks import NoMask, check_segmentation
from ._yolo_files import Data, check_apart, data_of, images_of, labels_elsewhere, labels_of
from ._yolo_files import parse_yaml as parse_yaml

EXPECTS = (
    "ROOT/data.yaml with names, train and val; ROOT/images/train/*.jpg and ROOT/labels/train/*.txt; "
    "or images and labels with classes.txt"
)
TARGETS: tuple[str, ...] = ("boxes", "masks")
FALLBACK = False
PLACES: tuple[str, ...] = ("images",)
PICTURES = 200  # of a split, whose boxes are looked at
LARGEST = 1.5  # value of a box that is a share of the picture; tools round, and cut at its edges


def detect(root: str, target: str = "boxes") -> bool:
    """True for a YAML file or darknet's, and for a folder with one or with images and their labels."""
    return _yolo_files.detect(Path(root))


def load(root: str, split: str | None, target: str = "boxes", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, by name. Raises `DataError` naming file and line for whatever cannot be used."""
    check_exists(root)
    data = data_of(Path(root))
    if data is None:
        raise DataError(f"no data.yaml and no images with labels in {root!r}; expected {EXPECTS}")
    described, notes = data.described, Notes()
    there = {name: Path(rows[0]) for name, rows in described.entries.items() if name}
    part = part_of(split, there, str(data.file) if there else root)
    check_apart(data, elsewhere.images)
    rows = described.entries[part.there]
    listed: list[_Labeled] = []
    for entry in rows:
        images, folder = images_of(entry, data, part.there, notes, elsewhere.images)
        listed += _labeled(images, folder, data, part.there)
    _check_labels(listed, data, part.there, elsewhere.images)
    samples = _samples(hold_out(listed, part.take), data, part.there, target, notes)
    read = ", ".join(rows)
    source = Source(root, "yolo", part.split, f"{data.file}: {read}", part.take)
    return Split(
        samples, described.classes, notes.lines, source=source, annotations=notes.annotations()
    )


class _Labeled(NamedTuple):
    """An image with the file of its labels; where there is none, the one that is most likely missing."""

    image: Path
    file: Path
    is_there: bool


def _samples(
    listed: Sequence[_Labeled], data: Data, there: str, target: str, notes: Notes
) -> list[Sample]:
    """The samples of images; what is left out is said."""
    described = data.described
    where = f"{data.file}, {there}" if there else str(data.file)
    missing = [one.file for one in listed if not one.is_there]
    if missing:
        ratio = (
            f"{len(missing)} of {len(listed)} images have no file of labels, as {str(missing[0])!r}"
        )
        if len(missing) == len(listed):
            raise DataError(f"{where}: {ratio}")
        notes.say(f"{where}: {ratio}; they count as images without objects")
    samples = []
    turned: list[Path] = []
    ids = _ids([one.image for one in listed], data.bases[0])
    for (image, file, is_there), id in zip(listed, ids, strict=True):
        objects: tuple[Object, ...] = ()
        if is_there:
            text, size = text_of(file), measured(image, notes, turned)
            if size is None:
                lines = len([line for line in text.split("\n") if line.strip()])
                notes.read += lines
                notes.drop("of pictures left out", count=lines)
                continue
            objects = parse(
                text, str(file), described.labels, size, target, notes, described.values
            )
        samples.append(Sample(image, objects=objects, id=id))
    note_turned(turned, notes)
    _check_shares([one.file for one in listed if one.is_there][:PICTURES], where)
    if len(described.classes) < len(described.labels):
        twice = [label for label, count in Counter(described.labels).items() if count > 1]
        notes.say(
            f"{data.file}: names has {few(described.classes[label] for label in twice)} more than "
            "once: one class each"
        )
    if described.values and notes.read:
        notes.say(
            f"{data.file}: has kpt_shape, so the lines are poses: their boxes are used, their "
            "keypoints passed over"
        )
    return samples


def _check_shares(files: Sequence[Path], where: str) -> None:
    """`DataError` where the boxes of all pictures that were looked at are in pixels."""
    rows = [line.split()[1:5] for file in files for line in text_of(file).split("\n")]
    boxes = [[float(value) for value in row] for row in rows if row]
    if boxes and all(max(box) > LARGEST for box in boxes):
        raise DataError(
            f"{where}: all boxes have values above 1, as {boxes[0]} in {str(files[0])!r}; "
            "YOLO's are shares of the picture from 0 to 1. Are they in pixels? Divide x and width "
            "by the picture's width, y and height by its height"
        )


def _labeled(images: Sequence[Path], root: Path, data: Data, split: str) -> list[_Labeled]:
    """Each image below `root` with the file of its labels.

    Images that lie outside of the folder of the data have theirs in it, at the same path. Where
    they may be is found out once for each folder of images.
    """
    folders: dict[Path, list[Path]] = {}
    listed: list[_Labeled] = []
    for image in images:
        if image.parent not in folders:
            likely = labels_of(image, root)
            if root not in data.bases:
                likely += labels_elsewhere(image, root, data.file.parent, split)
            folders[image.parent] = [file.parent for file in likely]
        name, own = f"{image.stem}.txt", folders[image.parent]
        file = next((file for folder in own if (file := stored(folder, name))), None)
        listed.append(_Labeled(image, file or own[0] / name, file is not None))
    return listed


def _check_labels(
    listed: Sequence[_Labeled], data: Data, there: str, elsewhere: str | None
) -> None:
    """`DataError` where pictures of several folders have one file of labels, which lies above these folders."""
    images: dict[Path, Path] = {}  # file of labels -> the image that it is of
    own: dict[Path, bool] = {}  # whether a folder of labels is called as the split
    for image, file, is_there in listed:
        folder = file.parent
        # One in a folder called as that of the image, or as the split, is its own.
        if folder not in own:
            own[folder] = there in [split_of(name) for name in folder.parts[-3:]]
        if own[folder] or folder.name == image.parent.name or not is_there:
            continue
        _check_one(image, images.setdefault(file, image), file)
    if not images:
        return
    for split, rows in data.described.entries.items():
        if split == there or rows == data.described.entries[there]:
            continue
        for entry in rows:
            try:
                paths, base = images_of(entry, data, split, Notes(), elsewhere)
            except DataError:  # said where it is read
                continue
            for image, file, _ in _labeled(paths, base, data, split):
                _check_one(image, images.get(file, image), file)


def _check_one(image: Path, other: Path, file: Path) -> None:
    if image.parent != other.parent and image.stem == other.stem:
        raise DataError(
            f"{str(file)!r} would be of {str(other)!r} and of {str(image)!r}: put the labels into "
            "folders as the images are, labels/train and labels/val"
        )


def parse(
    text: str,
    source: str,
    labels: Sequence[int],
    size: tuple[int, int],
    target: str,
    notes: Notes,
    values: int = 0,
) -> tuple[Object, ...]:
    """The objects of a picture of `size` (height, width); what is dropped or cut is noted.

    `labels` is the label of each class index; `values` is the number of values of a pose after the
    class, 0 where lines are boxes and polygons.
    """
    objects = []
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        entry = f"{source}, line {n}"
        notes.read += 1
        index, shares = _values(line, entry, len(labels), values)
        item = _object(labels[index], shares, size, target, entry, notes)
        if item:
            objects.append(item)
    return tuple(objects)


def _values(line: str, entry: str, classes: int, values: int) -> tuple[int, list[float]]:
    """The class of a line and its values: four of a box, or an even number from six on of a polygon."""
    index, *shares = _numbers(line, entry)
    if not index.is_integer() or not 0 <= index < classes:
        from_one = "; do the files count classes from 1?" if index == classes else ""
        raise DataError(
            f"{entry}: class is {shorten(line.split()[0])}; there are {classes} classes, so "
            f"allowed: 0 to {classes - 1}{from_one}"
        )
    if values and len(shares) == values:
        shares = shares[:4]
    elif values and len(shares) != 4:
        raise DataError(
            f"{entry}: {len(shares)} values after the class; kpt_shape asks for {values}: 4 of "
            f"the box and {values - 4} of keypoints"
        )
    few_or_odd = len(shares) < 4 or len(shares) == 5 or len(shares) % 2
    if few_or_odd or not all(map(math.isfinite, shares)):
        confidence = (
            "; is the last value the confidence of a detector? Annotations have none"
            if len(shares) == 5
            else ""
        )
        raise DataError(
            f"{entry}: expected `class cx cy width height` or `class x y x y x y ...`, found "
            f"{shorten(line)!r}{confidence}"
        )
    return int(index), shares


def _object(
    label: int,
    shares: Sequence[float],
    size: tuple[int, int],
    target: str,
    entry: str,
    notes: Notes,
) -> Object | None:
    """The object of a line; None where it is dropped, which is noted."""
    height, width = size
    xs, ys = [x * width for x in shares[0::2]], [y * height for y in shares[1::2]]
    box = min(xs), min(ys), max(xs), max(ys)
    if len(shares) == 4:
        box = xs[0] - xs[1] / 2, ys[0] - ys[1] / 2, xs[0] + xs[1] / 2, ys[0] + ys[1] / 2
    polygon = None
    if target == "masks" or (target != "boxes" and len(shares) > 4):
        polygon = [[value for pair in zip(xs, ys, strict=True) for value in pair]]
        try:
            check_segmentation(polygon, size)
        except NoMask as error:
            if target == "masks":
                reason = str(error) if len(shares) > 4 else "it is a box without a polygon"
                notes.drop("without a usable mask", f"{entry}: dropped, {reason}")
                return None
            notes.say(f"{entry}: its box alone is used, {error}")
            polygon = None
    fitted = fit_box(box, size, entry, notes)
    return Object(fitted, label, polygon) if fitted else None


def _numbers(line: str, entry: str) -> list[float]:
    words = line.split()
    try:
        return [float(word) for word in words]
    except ValueError as error:
        commas = "; between the values are spaces, not commas" if "," in line else ""
        raise DataError(
            f"{entry}: expected numbers, found {shorten(' '.join(words))!r}{commas}"
        ) from error


def _ids(images: Sequence[Path], root: Path) -> list[str | None]:
    """The name of each image; with its folders below `root` where names repeat, and None where these do as well."""
    paths = [Path(os.path.relpath(image, root)).with_suffix("").as_posix() for image in images]
    stems, whole = Counter(image.stem for image in images), Counter(paths)
    return [
        image.stem if stems[image.stem] == 1 else path if whole[path] == 1 else None
        for image, path in zip(images, paths, strict=True)
    ]
