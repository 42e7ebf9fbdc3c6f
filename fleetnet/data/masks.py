"""Folders of images and of label maps: an image and the PNG of its labels have the same name.

    root/images/train/*.jpg  root/labels/train/*.png  root/classes.txt      (or without folders for the splits)

The folder of labels may be called labels, masks, semantic or annotations; its class names are one a
line in `FOLDER_classes.txt`, classes.txt, or the only `*classes.txt`. Labels are indices, of gray
or palette PNGs, with 255 for pixels of no known class; or colors, where colors.txt has a line `r g
b name` for each (a class may have several; those named "ignore" or "void" are no class). Gray files
go by colors.txt where all of its colors are gray.

Splits are the folders below images/, or the lists root/train.txt and root/val.txt (a line is an
image, by its name or path, and may name its label map too). Without one for "val" every tenth image
is held back for it.
"""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..images import examine, find_images, hidden, read_labels
from . import (
    IGNORE,
    Notes,
    Sample,
    Source,
    Split,
    check_exists,
    few,
    hold_out,
    measured,
    note_turned,
    parse_classes,
    part_of,
    shorten,
    text_of,
)
from ._conventions import folders_in, split_folders, split_lists

EXPECTS = "ROOT/images/train/*.jpg with ROOT/labels/train/*.png (or masks, semantic, annotations) and ROOT/classes.txt"
TARGETS: tuple[str, ...] = ("semantic",)
FALLBACK = False
_FOLDERS = ("labels", "masks", "semantic", "annotations")
_COLORS = ("colors.txt", "class_colors.txt")
_NO_CLASS = ("ignore", "void")

Colors = dict[tuple[int, int, int], int]


def detect(root: str, target: str = "semantic") -> bool:
    """True for a folder with images and a folder of labels that holds PNGs."""
    return bool(_labels(Path(root)))


def load(root: str, split: str | None, target: str = "semantic") -> Split:
    """The samples of a split, by name; images without labels and labels without an image get a line in `skipped`."""
    check_exists(root)
    path = Path(root)
    labels = _labels(path)
    if not labels:
        raise DataError(f"no images with labels in {root!r}; expected {EXPECTS}")
    classes, colors = _classes(path, labels.name)
    images, notes = path / "images", Notes()
    folders = _folders(images)
    lists = {} if folders else _lists(path)
    part = part_of(split, folders or lists, root)
    source = Source(
        root, "masks", part.split, str((folders or lists).get(part.there, images)), part.take
    )
    if part.there and folders:
        images, labels = folders[part.there], labels / folders[part.there].name
    pairs = _pairs(images, labels, notes)
    if part.there and lists:
        pairs = parse_list(text_of(lists[part.there]), str(lists[part.there]), path, pairs)
    samples = [
        Sample(image, semantic=partial(read, file, image, len(classes), colors))
        for image, file in hold_out(pairs, part.take)
    ]
    return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())


def _pairs(images: Path, labels: Path, notes: Notes) -> list[tuple[Path, Path]]:
    """All images of a folder that have a label map of their name, and it."""
    pictures, left_out = find_images(images)
    notes.lines += left_out
    files = {
        _key(file, labels): file for file in sorted(labels.rglob("*.png")) if not hidden(file.name)
    }
    notes.read = len(files)
    pairs = []
    turned: list[Path] = []
    for picture in pictures:
        file = files.pop(_key(picture, images), None)
        if file:
            # one that cannot be read is named when it is, and changes no split
            measured(picture, Notes(), turned)
            pairs.append((picture, file))
        else:
            notes.say(f"{str(picture)!r}: no labels of that name in {str(labels)!r}")
    note_turned(turned, notes)
    for file in files.values():
        notes.drop(
            "without an image of their name",
            f"{str(file)!r}: no image of that name in {str(images)!r}",
        )
    return pairs


def parse_list(
    text: str, source: str, root: Path, pairs: list[tuple[Path, Path]]
) -> list[tuple[Path, Path]]:
    """The images and label maps that a list of a split names, in its order; a line is `image` or `image labels`."""
    by_name: dict[str, list[tuple[Path, Path]]] = {}
    for pair in pairs:
        for name in _names(pair[0], root):
            by_name.setdefault(name, []).append(pair)
    chosen: dict[Path, Path] = {}
    for n, line in enumerate(text.split("\n"), 1):
        whole = line.strip()
        if not whole:
            continue
        first, _, second = re.sub(r"[\s,]+", " ", whole).partition(" ")
        entry = f"{source}, line {n}: {shorten(whole)!r}"
        name = whole if whole.removeprefix("./") in by_name else first  # a path may have spaces
        named = by_name.get(name.removeprefix("./"), [])
        if len(named) != 1:
            raise DataError(
                f"{entry}: {'several images are' if named else 'no image with labels is'} called so"
            )
        image, labels = named[0]
        if name != whole and root / second != labels and Path(second) != labels:
            raise DataError(f"{entry}: the labels of that image are {str(labels)!r}")
        chosen[image] = labels
    if not chosen:
        raise DataError(f"{source} is empty: no samples")
    return list(chosen.items())


def _names(image: Path, root: Path) -> set[str]:
    """What a list may call an image: its path from the root or from images/, its name, and these without extension."""
    paths = [image.relative_to(root), image.relative_to(root / "images"), Path(image.name)]
    return {name for path in paths for name in (path.as_posix(), path.with_suffix("").as_posix())}


def read(path: Path, image: Path, classes: int, colors: Colors | None = None) -> np.ndarray:
    """The label map of an image: (height, width) uint8, values below `classes`, or IGNORE.

    Raises `DataError` naming both files where their sizes differ, and the file with a value that is
    no class.
    """
    labels = read_labels(path, colors)
    height, width = labels.shape
    actual, orientation = examine(image)
    if actual != (width, height):
        turned = ", turned by its EXIF orientation" if orientation != 1 else ""
        raise DataError(
            f"labels {str(path)!r} are {width}x{height}, their image {str(image)!r} is "
            f"{actual[0]}x{actual[1]}{turned}"
        )
    wrong = labels[(labels >= classes) & (labels != IGNORE)]
    if wrong.size:
        found = f"{wrong.size} pixels have the value {wrong[0]}"
        raise DataError(f"labels {str(path)!r}: {found}; allowed: 0 to {classes - 1}, {IGNORE}")
    return labels


def parse(text: str, source: str) -> tuple[list[str], Colors]:
    """The class names, in order, and the label of each color, from the lines `r g b name` of a color map.

    >>> parse("0 0 0 road\\n9 9 9 void\\n128 0 64 tree", "colors.txt")
    (['road', 'tree'], {(0, 0, 0): 0, (9, 9, 9): 255, (128, 0, 64): 1})
    """
    classes: list[str] = []
    colors: Colors = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\S.*)", line.strip())
        if not match or max(map(int, match.groups()[:3])) > 255:
            raise DataError(
                f"{source}, line {number}: expected `r g b name` with r, g, b up to 255, "
                f"found {shorten(line.strip())!r}"
            )
        color, name = (int(match[1]), int(match[2]), int(match[3])), match[4]
        if color in colors:
            raise DataError(f"{source}, line {number}: color {color} is there twice")
        if name not in classes and name.lower() not in _NO_CLASS:
            classes.append(name)
        colors[color] = IGNORE if name.lower() in _NO_CLASS else classes.index(name)
    if not classes:
        raise DataError(f"{source} is empty: no classes")
    return classes, colors


def _classes(root: Path, folder: str) -> tuple[list[str], Colors | None]:
    file = next((root / name for name in _COLORS if os.path.isfile(root / name)), None)
    colors = parse(text_of(file), str(file)) if file else None
    named = [root / f"{folder}_classes.txt", root / "classes.txt"]
    files = [name for name in named if os.path.isfile(name)][:1] or sorted(
        root.glob("*classes.txt")
    )
    if len(files) > 1:
        raise DataError(
            f"several files of class names: {few(files)}; name the right one {named[0].name}"
        )
    if not colors and not files:
        raise DataError(
            f"no class names in {str(root)!r}: put them into classes.txt, one a line, in the order "
            "of labels"
        )
    classes = colors[0] if colors else parse_classes(text_of(files[0]), str(files[0]))
    if len(classes) > IGNORE:
        raise DataError(
            f"{len(classes)} classes in {str(root)!r}; label maps have at most {IGNORE}"
        )
    return classes, colors[1] if colors else None


def _folders(images: Path) -> dict[str, Path]:
    """The folders of splits below the folder of images; none where other folders beside a single one are as good."""
    folders = folders_in(images)
    there = split_folders(images)
    return {} if len(there) == 1 and len(folders) > 1 else there


def _lists(root: Path) -> dict[str, Path]:
    """The lists of splits beside the folder of images."""
    return split_lists(root, ("", "_list"))


def _labels(root: Path) -> Path | None:
    """The folder of labels: the first of the usual names that holds a PNG."""
    if not os.path.isdir(root / "images"):
        return None
    return next(
        (root / name for name in _FOLDERS if next((root / name).rglob("*.png"), None)), None
    )


def _key(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))
