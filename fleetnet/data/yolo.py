"""YOLO text files: `class cx cy width height` a line, in shares of the picture, or `class x y x y ...` for a polygon.

    root/data.yaml (names, train, val, optional path)  root/images/train/*.jpg  root/labels/train/*.txt

`root` is the folder or its YAML file. The labels of an image are where its path has "labels" for
the last "images"; an image without such a file shows no object, but one of a split has to have it.
Entries of the YAML file are folders of images, or text files that list them, and stay inside of its
folder; without one for val, every tenth image is held back for it. With `kpt_shape` the lines are
poses: the first four values are the box, the keypoints are passed over.
"""

import math
import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import DataError
from ..images import find_images
from . import (
    Notes,
    Object,
    Sample,
    Source,
    Split,
    check_exists,
    check_images,
    few,
    fit_box,
    hold_out,
    inside,
    measured,
    note_turned,
    part_of,
    shorten,
    text_of,
    whole,
)
from ._conventions import by_split
from ._masks import NoMask, check_segmentation

EXPECTS = (
    "ROOT/data.yaml with names, train and val; ROOT/images/train/*.jpg and ROOT/labels/train/*.txt"
)
TARGETS: tuple[str, ...] = ("boxes", "masks")
FALLBACK = False
_SHOWN = reprlib.Repr()  # of values in errors: aliases make some without end
_SHOWN.maxlevel = 3


class _Loader(yaml.SafeLoader):
    """Without merging of keys (`<<`), where few aliases make mappings without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Keep `<<` as a key, which is then refused."""


def detect(root: str, target: str = "boxes") -> bool:
    """True for a YAML file, and for a folder with data.yaml."""
    path = Path(root)
    return os.path.isfile(path / "data.yaml") or (
        os.path.isfile(path) and path.suffix in (".yaml", ".yml")
    )


def load(root: str, split: str | None, target: str = "boxes") -> Split:
    """The samples of a split, by name. Raises `DataError` naming file and line for whatever cannot be used."""
    check_exists(root)
    path = Path(root) / "data.yaml" if os.path.isdir(Path(root)) else Path(root)
    if not os.path.isfile(path):
        raise DataError(f"no data.yaml in {root!r}; expected {EXPECTS}")
    described = parse_yaml(text_of(path), str(path))
    folder = inside(path.parent / described.path, path.parent, f"{path}, path")
    part = part_of(
        split, {name: folder / rows[0] for name, rows in described.entries.items()}, str(path)
    )
    where = f"{path}, {part.there}"
    notes = Notes()
    images = [
        image
        for entry in described.entries[part.there]
        for image in _images(folder, entry, where, notes)
    ]
    images = hold_out(images, part.take)
    files = [_labels(image, path.parent) for image in images]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        ratio = (
            f"{len(missing)} of {len(files)} images have no file of labels, as {str(missing[0])!r}"
        )
        if len(missing) == len(files):
            raise DataError(f"{where}: {ratio}")
        notes.say(f"{where}: {ratio}; they count as images without objects")
    samples = []
    turned: list[Path] = []
    for image, file, id in zip(images, files, _ids(images, folder), strict=True):
        objects: tuple[Object, ...] = ()
        if os.path.isfile(file):
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
    if len(described.classes) < len(described.labels):
        twice = [label for label, count in Counter(described.labels).items() if count > 1]
        notes.say(
            f"{path}: names has {few(described.classes[label] for label in twice)} more than once: "
            "one class each"
        )
    if described.values and notes.read:
        notes.say(
            f"{path}: has kpt_shape, so the lines are poses: their boxes are used, their "
            "keypoints passed over"
        )
    read = ", ".join(str(folder / entry) for entry in described.entries[part.there])
    source = Source(root, "yolo", part.split, f"{path}: {read}", part.take)
    return Split(
        samples, described.classes, notes.lines, source=source, annotations=notes.annotations()
    )


def parse(  # noqa: C901
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
    height, width = size
    objects = []
    for n, line in enumerate(text.split("\n"), 1):
        words, entry = line.split(), f"{source}, line {n}"
        if not words:
            continue
        notes.read += 1
        index, *shares = _numbers(words, entry)
        if not index.is_integer() or not 0 <= index < len(labels):
            raise DataError(
                f"{entry}: class is {shorten(words[0])}; there are {len(labels)} classes, so "
                f"allowed: 0 to {len(labels) - 1}"
            )
        if values and len(shares) == values:
            shares = shares[:4]
        elif values and len(shares) != 4:
            raise DataError(
                f"{entry}: {len(shares)} values after the class; kpt_shape asks for {values}: 4 of "
                f"the box and {values - 4} of keypoints"
            )
        if (
            not all(map(math.isfinite, shares))
            or len(shares) < 4
            or len(shares) == 5
            or len(shares) % 2
        ):
            raise DataError(
                f"{entry}: expected `class cx cy width height` or `class x y x y x y ...`, found "
                f"{shorten(line)!r}"
            )
        xs, ys = [x * width for x in shares[0::2]], [y * height for y in shares[1::2]]
        box = min(xs), min(ys), max(xs), max(ys)
        if len(shares) == 4:
            box = xs[0] - xs[1] / 2, ys[0] - ys[1] / 2, xs[0] + xs[1] / 2, ys[0] + ys[1] / 2
        polygon = None
        if target == "masks":
            polygon = [[value for pair in zip(xs, ys, strict=True) for value in pair]]
            try:
                check_segmentation(polygon, size)
            except NoMask as error:
                reason = str(error) if len(shares) > 4 else "it is a box without a polygon"
                notes.drop("without a usable mask", f"{entry}: dropped, {reason}")
                continue
        fitted = fit_box(box, size, entry, notes)
        if fitted:
            objects.append(Object(fitted, labels[int(index)], polygon))
    return tuple(objects)


def _numbers(words: Sequence[str], entry: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{entry}: expected numbers, found {shorten(' '.join(words))!r}") from error


class Described(NamedTuple):
    """What the YAML file says."""

    classes: list[str]
    labels: list[int]  # of each class index: the same for names that are the same
    entries: dict[str, list[str]]  # split -> its folders of images, or lists of them
    path: str  # the folder that the entries are relative to, itself relative to the file's
    values: int  # of a pose, after the class; 0 where there are no keypoints


def parse_yaml(text: str, source: str) -> Described:
    """What the text of a YAML file says; `source` names it in errors."""
    try:
        given = yaml.load(text, _Loader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a date that there is not is a ValueError
        raise DataError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise DataError(f"{source}: expected names, train and val")
    names = _named(given.get("names"), source)
    if whole(given.get("nc", len(names))) != len(names):
        raise DataError(
            f"{source}: nc is {_SHOWN.repr(given['nc'])}, but there are {len(names)} names"
        )
    classes = list(dict.fromkeys(names))
    keys = {key: key for key in given if isinstance(key, str) and given[key]}
    entries: dict[str, list[str]] = {}
    for split, key in by_split(keys).items():
        rows = given[key] if isinstance(given[key], list) else [given[key]]
        if not all(isinstance(row, str) for row in rows):
            raise DataError(
                f"{source}: {key} is {_SHOWN.repr(given[key])}; expected a path, or a list of them"
            )
        entries[split] = rows
    base = given.get("path") or "."
    if not entries or not isinstance(base, str):
        raise DataError(f"{source}: has no paths under train, val or test")
    return Described(
        classes, [classes.index(name) for name in names], entries, base, _pose(given, source)
    )


def _pose(given: dict[Any, Any], source: str) -> int:
    """The number of values of a pose: 4 of the box, and those of its keypoints; 0 without kpt_shape."""
    shape = given.get("kpt_shape")
    if shape is None:
        return 0
    sides = [whole(side) for side in shape] if isinstance(shape, list) and len(shape) == 2 else []
    points, dimensions = sides if len(sides) == 2 else (None, None)
    if points is None or not 0 < points < 1 << 31 or dimensions not in (2, 3):
        raise DataError(
            f"{source}: kpt_shape is {_SHOWN.repr(shape)}; expected [number of keypoints, 2 or 3]"
        )
    return 4 + points * dimensions


def _named(names: Any, source: str) -> list[str]:
    """The class names, one for each index, as they stand."""
    if isinstance(names, dict):
        by_index = {whole(key): name for key, name in names.items()}
        if len(by_index) == len(names) and set(by_index) == set(range(len(names))):
            names = [by_index[i] for i in range(len(names))]
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, (str, int)) for name in names)
    ):
        shown = _SHOWN.repr(names)
        raise DataError(
            f"{source}: names is {shown}; expected a list of class names, or `0: name` and so on"
        )
    truth = next((name for name in names if isinstance(name, bool)), None)
    if truth is not None:  # and what was written is lost
        word = "yes, on or true" if truth else "no, off or false"
        raise DataError(
            f"{source}: names has {word} without quotes, which YAML takes for {truth}; "
            "put it in quotes"
        )
    return [str(name) for name in names]


def _images(base: Path, entry: str, source: str, notes: Notes) -> Sequence[Path]:
    """The images of one entry of the YAML file: a folder's, or those that a text file lists."""
    place = base / entry
    # as Roboflow writes, from a folder that it does not have
    if not os.path.exists(place) and entry.startswith("../"):
        place = base / entry.removeprefix("../")
    inside(place, base, source)
    if os.path.isdir(place):
        images, left_out = find_images(place)
        notes.lines += left_out
        if not images:
            raise DataError(f"{source}: no images in {str(place)!r}")
        return images
    if not os.path.isfile(place):
        raise DataError(f"{source}: no such file or folder: {shorten(place)!r}")
    lines = [line.strip() for line in text_of(place).split("\n")]
    images = [inside(base / line, base, str(place)) for line in lines if line]
    check_images(images, str(place))
    return images


def _labels(image: Path, root: Path) -> Path:
    """Where the labels of an image are; above the folder `root` of the data, names mean nothing."""
    *folders, name = Path(os.path.relpath(image, root)).parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return root.joinpath(*folders, name).with_suffix(".txt")


def _ids(images: Sequence[Path], root: Path) -> list[str | None]:
    """The name of each image; with its folders below `root` where names repeat, and None where these do as well."""
    paths = [Path(os.path.relpath(image, root)).with_suffix("").as_posix() for image in images]
    stems, whole = Counter(image.stem for image in images), Counter(paths)
    return [
        image.stem if stems[image.stem] == 1 else path if whole[path] == 1 else None
        for image, path in zip(images, paths, strict=True)
    ]
