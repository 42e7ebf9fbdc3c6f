"""List files, as in PaddleClas: one line an image, `relative/path.jpg label`.

    root/train_list.txt  root/val_list.txt  root/label_list.txt (`index name`, optional)

The label is what follows the last space or tab; paths are relative to the list's folder and stay
inside of it. Without a label list, the classes are named by their numbers. `root` may also be one
list file: if "train" or "val" is in its name, the list of the other split is the file beside it
with the other name. Where there is none for "val", every tenth image of each class is held back for
it.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from . import (
    Sample,
    Source,
    Split,
    check_exists,
    few,
    files_beside,
    hold_out,
    part_of,
    shorten,
    text_of,
)
from ._conventions import split_lists

EXPECTS = "ROOT/train_list.txt and val_list.txt with lines `path label`; label_list.txt with lines `index name`"
TARGETS: tuple[str, ...] = ("label",)
FALLBACK = False
LARGEST = 99_999  # label without a label list: a number beyond is a mistake sooner than a class


def detect(root: str, target: str = "label") -> bool:
    """True for a text file, and for a folder with a list of a split."""
    path = Path(root)
    if os.path.isdir(path):
        return bool(_lists(path))
    return os.path.isfile(path) and path.suffix == ".txt"


def load(root: str, split: str | None, target: str = "label") -> Split:
    """The samples of a split, in the order of its list.

    Raises `DataError` naming file and line for a line without a label, a label out of range, a path
    that leaves the folder, and images that do not exist.
    """
    check_exists(root)
    own, there = _named(Path(root))
    part = part_of(split, there, root, own)
    path = there.get(part.there, Path(root))
    folder = path.parent
    rows = parse(text_of(path), str(path))
    if not rows:
        raise DataError(f"{path} is empty: no samples")
    names = _label_list(folder)
    classes = names[1] if names else _numbered(there.get("train", path), path, rows)
    samples: list[Sample] = []
    missing: list[str] = []
    for number, name, label in rows:
        if label >= len(classes):
            declared = names[0] if names else "the list of the train split"
            raise DataError(
                f"{path}, line {number}: label {label} is out of range; {declared} has "
                f"{len(classes)} classes, so labels are 0 to {len(classes) - 1}"
            )
        image = Path(os.path.abspath(folder / name))
        if not image.is_relative_to(
            os.path.abspath(folder)
        ):  # without following links: those are the user's own
            raise DataError(
                f"{path}, line {number}: {shorten(name)!r} is outside of the folder of the list"
            )
        if not os.path.isfile(image):
            missing.append(f"line {number}: {shorten(name)!r}")
        samples.append(Sample(folder / name, label))
    if missing:
        raise DataError(f"{path}: no such image: {few(missing)}")
    source = Source(root, "listfile", part.split, str(path), part.take)
    if part.take == "all":
        return Split(samples, classes, source=source)
    by_class: dict[int | None, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    kept = {id(sample) for group in by_class.values() for sample in hold_out(group, part.take)}
    return Split([sample for sample in samples if id(sample) in kept], classes, source=source)


def parse(text: str, source: str) -> list[tuple[int, str, int]]:
    """(line number, path, label) of each line that is not blank; `source` names the text in errors.

    >>> parse("a b.jpg 0\\nc.jpg\\t1", "list")
    [(1, 'a b.jpg', 0), (2, 'c.jpg', 1)]
    """
    rows = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        match = re.fullmatch(
            r"(.*\S)[ \t]+(\S+)[ \t\r]*", line
        )  # a path may begin with a space and have spaces inside
        if not line.strip():
            continue
        if not match:
            raise DataError(
                f"{source}, line {number}: expected `path label`, found {shorten(line.strip())!r}"
            )
        name, label = match.groups()
        if not re.fullmatch(r"[0-9]{1,18}", label):
            raise DataError(
                f"{source}, line {number}: label {shorten(label)!r} is not a number from 0 up"
            )
        rows.append((number, name, int(label)))
    return rows


def parse_labels(text: str, source: str) -> list[str]:
    """The class names of a label list, in the order of their indices.

    >>> parse_labels("1 polar bear\\n0 cat", "list")
    ['cat', 'polar bear']
    """
    found: dict[int, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9]{1,18})\s+(.+)", line.strip())
        if not match:
            raise DataError(
                f"{source}, line {number}: expected `index name`, found {shorten(line.strip())!r}"
            )
        index = int(match[1])
        if index in found:
            raise DataError(f"{source}, line {number}: index {index} is there twice")
        found[index] = match[2]
    gap = next((i for i in range(len(found)) if i not in found), None)
    if gap is not None or not found:
        raise DataError(
            f"{source}: no line for index {gap or 0}; indices are 0, 1, 2, ... without gaps"
        )
    return [found[i] for i in range(len(found))]


def _lists(folder: Path) -> dict[str, Path]:
    """The lists of splits in a folder."""
    return split_lists(folder, ("_list",))


def _named(root: Path) -> tuple[str, dict[str, Path]]:
    """The split that a named list file is of, or ""; and the lists of the splits that are there."""
    if not os.path.isdir(root):
        return files_beside(root)
    there = _lists(root)
    if not there:
        raise DataError(f"no list file in {str(root)!r}; expected {EXPECTS}")
    return "", there


def _label_list(folder: Path) -> tuple[Path, list[str]] | None:
    files = [folder / "label_list.txt"]
    if not files[0].is_file():
        files = sorted(folder.glob("*label_list.txt"))
    if len(files) > 1:
        raise DataError(f"several label lists: {few(files)}; name the right one label_list.txt")
    return (files[0], parse_labels(text_of(files[0]), str(files[0]))) if files else None


def _numbered(train: Path, path: Path, rows: Sequence[tuple[int, str, int]]) -> list[str]:
    """Class names where nobody gave any: the numbers up to the largest label of the train list, or of this one."""
    if train != path:
        path, rows = train, parse(text_of(train), str(train)) or rows
    number, _, largest = max(rows, key=lambda row: row[2])
    if largest > LARGEST:
        raise DataError(
            f"{path}, line {number}: label {largest} without a label_list.txt that "
            "says there are so many"
        )
    return [str(i) for i in range(largest + 1)]
