"""YOLO text files: `class cx cy width height` a line, in shares of the picture, or `class x y x y ...` for a polygon.

    root/data.yaml (names, train, val, optional path)  root/images/train/*.jpg  root/labels/train/*.txt

`root` is the folder or its YAML file. The labels of an image are where its path has "labels" for the last "images"; an
image without such a file shows no object, but one of a split has to have it. Entries of the YAML file are folders of
images, or text files that list them, and stay inside of its folder.
"""

import math
import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from ..images import find_images
from . import (
    SPLIT_NAMES,
    Object,
    Sample,
    Split,
    check_exists,
    check_images,
    fit_box,
    inside,
    measured,
    note_turned,
    text_of,
)
from ._masks import NoMask, check_segmentation

EXPECTS = "ROOT/data.yaml with names, train and val; ROOT/images/train/*.jpg and ROOT/labels/train/*.txt"
TARGETS = ("boxes", "masks")
_SHOWN = reprlib.Repr()  # of values in errors: aliases make some without end
_SHOWN.maxlevel = 3


class _Loader(yaml.SafeLoader):
    """Without merging of keys (`<<`), where few aliases make mappings without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Keep `<<` as a key, which is then refused."""


def detect(root: str) -> bool:
    """True for a YAML file, and for a folder with data.yaml."""
    path = Path(root)
    return (path / "data.yaml").is_file() or (path.is_file() and path.suffix in (".yaml", ".yml"))


def load(root: str, split: str, target: str = "boxes") -> Split:
    """The samples of a split, by name. Raises `DataError` naming file and line for whatever cannot be used."""
    check_exists(root)
    path = Path(root) / "data.yaml" if Path(root).is_dir() else Path(root)
    if not path.is_file():
        raise DataError(f"no data.yaml in {root!r}; expected {EXPECTS}")
    classes, entries, base = parse_yaml(text_of(path), str(path))
    folder = inside(path.parent / base, path.parent, f"{path}, path")
    key = next((key for key in SPLIT_NAMES.get(split, entries) if key in entries), None)
    if key is None or (split == "all" and len(entries) > 1):
        raise DataError(f"{path} has no entry for {split!r}; there is {', '.join(entries)}")
    skipped: list[str] = []
    images = [image for entry in entries[key] for image in _images(folder, entry, f"{path}, {key}", skipped)]
    files = [_labels(image, path.parent) for image in images]
    missing = [file for file in files if not file.is_file()]
    if missing:
        few = f"{len(missing)} of {len(files)} images have no file of labels, as {str(missing[0])!r}"
        if len(missing) == len(files):
            raise DataError(f"{path}, {key}: {few}")
        skipped.append(f"{path}, {key}: {few}; they count as images without objects")
    samples = []
    turned: list[Path] = []
    for image, file, id in zip(images, files, _ids(images, folder), strict=True):
        objects: tuple[Object, ...] = ()
        if file.is_file():
            size = measured(image, skipped, turned)
            if size is None:
                continue
            objects = parse(text_of(file), str(file), len(classes), size, target, skipped)
        samples.append(Sample(image, objects=objects, id=id))
    note_turned(turned, skipped)
    return Split(samples, classes, skipped)


def parse(
    text: str, source: str, classes: int, size: tuple[int, int], target: str, skipped: list[str]
) -> tuple[Object, ...]:
    """The objects of a picture of `size` (height, width); what is dropped or cut is told in lines of `skipped`."""
    height, width = size
    objects = []
    for number, line in enumerate(text.split("\n"), 1):
        words, entry = line.split(), f"{source}, line {number}"
        if not words:
            continue
        try:
            label, *values = map(float, words)
        except ValueError as error:
            raise DataError(f"{entry}: expected numbers, found {line.strip()!r}") from error
        if not label.is_integer() or not 0 <= label < classes:
            raise DataError(
                f"{entry}: class is {words[0]}; there are {classes} classes, so allowed: 0 to {classes - 1}"
            )
        if not all(map(math.isfinite, values)) or len(values) < 4 or len(values) == 5 or len(values) % 2:
            raise DataError(f"{entry}: expected `class cx cy width height` or `class x y x y x y ...`, found {line!r}")
        xs, ys = [x * width for x in values[0::2]], [y * height for y in values[1::2]]
        box = min(xs), min(ys), max(xs), max(ys)
        if len(values) == 4:
            box = xs[0] - xs[1] / 2, ys[0] - ys[1] / 2, xs[0] + xs[1] / 2, ys[0] + ys[1] / 2
        fitted = fit_box(box, size, entry, skipped)
        polygon = None
        if target == "masks":
            polygon = [[value for pair in zip(xs, ys, strict=True) for value in pair]]
            try:
                check_segmentation(polygon, size)
            except NoMask as error:
                skipped.append(f"{entry}: dropped, {error if len(values) > 4 else 'it is a box without a polygon'}")
                continue
        if fitted:
            objects.append(Object(fitted, int(label), polygon))
    return tuple(objects)


def parse_yaml(text: str, source: str) -> tuple[list[str], dict[str, list[str]], str]:
    """Class names, the entries of each split, and the folder they are relative to, itself relative to the file's."""
    try:
        given = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that there is not is a ValueError
        raise DataError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise DataError(f"{source}: expected names, train and val")
    classes = _named(given.get("names"), source)
    if given.get("nc", len(classes)) != len(classes):
        raise DataError(f"{source}: nc is {_SHOWN.repr(given['nc'])}, but there are {len(classes)} names")
    entries: dict[str, list[str]] = {}
    for key in dict.fromkeys(name for names in SPLIT_NAMES.values() for name in names):
        value: Any = given.get(key)
        rows = value if isinstance(value, list) else [value]
        if value and not all(isinstance(row, str) for row in rows):
            raise DataError(f"{source}: {key} is {_SHOWN.repr(value)}; expected a path, or a list of them")
        if value:
            entries[key] = rows
    base = given.get("path") or "."
    if not entries or not isinstance(base, str):
        raise DataError(f"{source}: has no paths under train, val or test")
    return classes, entries, base


def _named(names: Any, source: str) -> list[str]:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        shown = _SHOWN.repr(names)
        raise DataError(f"{source}: names is {shown}; expected a list of class names, or `0: name` and so on")
    truth = next((name for name in names if isinstance(name, bool)), None)
    if truth is not None:  # and what was written is lost
        word = "yes, on or true" if truth else "no, off or false"
        raise DataError(f"{source}: names has {word} without quotes, which YAML takes for {truth}; put it in quotes")
    return [str(name) for name in names]


def _images(base: Path, entry: str, source: str, skipped: list[str]) -> Sequence[Path]:
    """The images of one entry of the YAML file: a folder's, or those that a text file lists."""
    place = base / entry
    if not place.exists() and entry.startswith("../"):  # as Roboflow writes, from a folder that it does not have
        place = base / entry.removeprefix("../")
    inside(place, base, source)
    if place.is_dir():
        images, left_out = find_images(place)
        skipped += left_out
        if not images:
            raise DataError(f"{source}: no images in {str(place)!r}")
        return images
    if not place.is_file():
        raise DataError(f"{source}: no such file or folder: {str(place)!r}")
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
