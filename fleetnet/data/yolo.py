"""YOLO text files: `class cx cy width height` a line, in shares of the picture, or `class x y x y ...` for a polygon.

    root/data.yaml (names, train, val, optional path)  root/images/train/*.jpg  root/labels/train/*.txt

`root` is the folder or its YAML file. The labels of an image are where its path has "labels" for the last "images"; an
image without such a file shows no object. Entries of the YAML file are folders of images, or text files that list
them, and stay inside of its folder.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from ..images import find_images, measure
from . import Object, Sample, Split, check_exists, check_images, fit_box, inside, text_of
from ._masks import NoMask, check_segmentation

EXPECTS = "ROOT/data.yaml with names, train and val; ROOT/images/train/*.jpg and ROOT/labels/train/*.txt"
TARGETS = ("boxes", "masks")
_KEYS = {"train": ("train",), "val": ("val", "valid", "test"), "test": ("test",)}


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
    key = next((key for key in _KEYS.get(split, entries) if key in entries), None)
    if key is None or (split == "all" and len(entries) > 1):
        raise DataError(f"{path} has no entry for {split!r}; there is {', '.join(entries)}")
    skipped: list[str] = []
    images = [image for entry in entries[key] for image in _images(folder, entry, f"{path}, {key}", skipped)]
    samples = []
    for image in images:
        file = _labels(image)
        objects: tuple[Object, ...] = ()
        if file.is_file():
            width, height = measure(image)
            objects = parse(text_of(file), str(file), len(classes), (height, width), target, skipped)
        samples.append(Sample(image, objects=objects, id=image.stem))
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
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise DataError(f"{source}: expected names, train and val")
    classes = _named(given.get("names"), source)
    if given.get("nc", len(classes)) != len(classes):
        raise DataError(f"{source}: nc is {given['nc']}, but there are {len(classes)} names")
    entries: dict[str, list[str]] = {}
    for key in ("train", "val", "valid", "test"):
        value: Any = given.get(key)
        rows = value if isinstance(value, list) else [value]
        if value and not all(isinstance(row, str) for row in rows):
            raise DataError(f"{source}: {key} is {value!r}; expected a path, or a list of them")
        if value:
            entries[key] = rows
    base = given.get("path") or "."
    if not entries or not isinstance(base, str):
        raise DataError(f"{source}: has no paths under train, val or test")
    return classes, entries, base


def _named(names: Any, source: str) -> list[str]:
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        raise DataError(f"{source}: names is {names!r}; expected a list of class names, or `0: name` and so on")
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


def _labels(image: Path) -> Path:
    head, found, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{head}{os.sep}labels{os.sep}{tail}" if found else image).with_suffix(".txt")
