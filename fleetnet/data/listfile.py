"""List files, as in PaddleClas: one line an image, `relative/path.jpg label`.

    root/train_list.txt  root/val_list.txt  root/label_list.txt (`index name`, optional)

The label is what follows the last space or tab; paths are relative to the list's folder and stay inside of it. Without
a label list, the classes are named by their numbers. `root` may also be one list file: if "train" or "val" is in its
name, the list of the other split is the file beside it with the other name; if not, every tenth image of each class
is held out for "val".
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from . import Sample, Split, check_exists, hold_out, text_of

EXPECTS = "ROOT/train_list.txt and val_list.txt with lines `path label`; label_list.txt with lines `index name`"
TARGETS = ("label",)
_SPLIT = re.compile("(?<![a-z])(train|val|test)(?=list|[^a-z]|$)")  # in val_list and vallist, not in values
LARGEST = 99_999  # label without a label list: a number beyond is a mistake sooner than a class


def detect(root: str) -> bool:
    """True for a text file, and for a folder with a list of a split."""
    path = Path(root)
    if path.is_dir():
        return any((path / f"{split}_list.txt").is_file() for split in ("train", "val", "test"))
    return path.is_file() and path.suffix == ".txt"


def load(root: str, split: str, target: str = "label") -> Split:
    """The samples of a split, in the order of its list.

    Raises `DataError` naming file and line for a line without a label, a label out of range, a path that leaves the
    folder, and images that do not exist.
    """
    check_exists(root)
    path, wanted = _list_of(Path(root), split)
    folder = path.parent
    rows = parse(text_of(path), str(path))
    if not rows:
        raise DataError(f"{path} is empty: no samples")
    names = _label_list(folder)
    classes = names[1] if names else _numbered(path, rows)
    samples: list[Sample] = []
    missing: list[str] = []
    for number, name, label in rows:
        if label >= len(classes):
            source = names[0] if names else "the list of the train split"
            raise DataError(
                f"{path}, line {number}: label {label} is out of range; {source} has {len(classes)} classes, so labels "
                f"are 0 to {len(classes) - 1}"
            )
        image = Path(os.path.abspath(folder / name))
        if not image.is_relative_to(os.path.abspath(folder)):  # without following links: those are the user's own
            raise DataError(f"{path}, line {number}: {name!r} is outside of the folder of the list")
        if not image.is_file():
            missing.append(f"line {number}: {name!r}")
        samples.append(Sample(folder / name, label))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"{path}: no such image: {'; '.join(missing[:5])}{more}")
    if wanted == "all":
        return Split(samples, classes)
    by_class: dict[int | None, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    kept = {id(sample) for group in by_class.values() for sample in hold_out(group, wanted)}
    return Split([sample for sample in samples if id(sample) in kept], classes)


def parse(text: str, source: str) -> list[tuple[int, str, int]]:
    """(line number, path, label) of each line that is not blank; `source` names the text in errors.

    >>> parse("a b.jpg 0\\nc.jpg\\t1", "list")
    [(1, 'a b.jpg', 0), (2, 'c.jpg', 1)]
    """
    rows = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        match = re.fullmatch(r"(.*\S)[ \t]+(\S+)[ \t\r]*", line)  # a path may begin with a space and have spaces inside
        if not line.strip():
            continue
        if not match:
            raise DataError(f"{source}, line {number}: expected `path label`, found {line.strip()!r}")
        name, label = match.groups()
        if not re.fullmatch(r"[0-9]+", label):
            raise DataError(f"{source}, line {number}: label {label!r} is not a number from 0 up")
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
        match = re.fullmatch(r"([0-9]+)\s+(.+)", line.strip())
        if not match:
            raise DataError(f"{source}, line {number}: expected `index name`, found {line.strip()!r}")
        index = int(match[1])
        if index in found:
            raise DataError(f"{source}, line {number}: index {index} is there twice")
        found[index] = match[2]
    gap = next((i for i in range(len(found)) if i not in found), None)
    if gap is not None or not found:
        raise DataError(f"{source}: no line for index {gap or 0}; indices are 0, 1, 2, ... without gaps")
    return [found[i] for i in range(len(found))]


def _list_of(root: Path, split: str) -> tuple[Path, str]:
    """The list file to read, and the part to take of it: "all" unless the file holds every split."""
    if root.is_dir():
        lists = [name for name in ("train", "val", "test") if (root / f"{name}_list.txt").is_file()]
        if not lists:
            raise DataError(f"no list file in {str(root)!r}; expected {EXPECTS}")
        name = "test" if split == "val" and "val" not in lists and "test" in lists else split
        if name not in lists:
            there = ", ".join(f"{x}_list.txt" for x in lists)
            raise DataError(f"no {name}_list.txt in {str(root)!r}; there is {there}")
        return root / f"{name}_list.txt", "all"
    named = _SPLIT.search(root.stem)
    if not named:
        return root, split
    other = root if split == "all" else _beside(root, split)
    if not other.is_file():
        raise DataError(f"{str(root)!r} is the list of {named[0]!r}; the list of {split!r} should be {str(other)!r}")
    return other, "all"


def _beside(path: Path, split: str) -> Path:
    """The list file of another split: with its name where this one has its own."""
    return path.with_name(_SPLIT.sub(split, path.stem, count=1) + path.suffix)


def _label_list(folder: Path) -> tuple[Path, list[str]] | None:
    files = [folder / "label_list.txt"]
    if not files[0].is_file():
        files = sorted(folder.glob("*label_list.txt"))
    if len(files) > 1:
        raise DataError(f"several label lists: {', '.join(map(str, files))}; name the right one label_list.txt")
    return (files[0], parse_labels(text_of(files[0]), str(files[0]))) if files else None


def _numbered(path: Path, rows: Sequence[tuple[int, str, int]]) -> list[str]:
    """Class names where nobody gave any: the numbers up to the largest label of the train list, or of this one."""
    train = _beside(path, "train")
    if train != path and train.is_file():
        path, rows = train, parse(text_of(train), str(train)) or rows
    number, _, largest = max(rows, key=lambda row: row[2])
    if largest > LARGEST:
        raise DataError(f"{path}, line {number}: label {largest} without a label_list.txt that says there are so many")
    return [str(i) for i in range(largest + 1)]
