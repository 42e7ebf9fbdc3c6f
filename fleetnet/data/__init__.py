"""Data: annotated images on disk -> samples. One file is one format; the file name is what --format takes.

A format has `load(root, split) -> Split` and, beside it, a pure `parse` of its text, so that its tests are tables of
strings; `detect(root) -> bool` says whether a folder or file looks like this format, and `EXPECTS` says in a line what
it looks for. Samples hold paths and annotations, no pixels.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..errors import DataError, UsageError, choose
from ..find import find, names

SPLITS = ("train", "val", "test", "all")  # "all" is for data without a split of its own: nothing is held out
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it; `image` is a path, or a picklable function that draws it (`shapes`)."""

    image: Path | Callable[[], Image.Image]
    label: int | None = None  # class index, of classification

    def __post_init__(self) -> None:
        if self.label is not None and self.label < 0:
            raise DataError(f"label is {self.label} for {self.image}: class indices start at 0")


@dataclass(frozen=True)
class Split:
    """The samples of one split ("train", "val", "test") with the class names that labels index."""

    samples: list[Sample]
    classes: list[str]
    skipped: list[str] = field(default_factory=list)  # one line for each file that was left out, with the reason

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError("no samples" + (f"; skipped: {self.skipped[0]}" if self.skipped else ""))
        for sample in self.samples:
            if sample.label is not None and sample.label >= len(self.classes):
                raise DataError(
                    f"label {sample.label} of {sample.image} is out of range: there are {len(self.classes)} classes, "
                    f"so labels are 0 to {len(self.classes) - 1}"
                )


def load(root: str, split: str, format: str | None = None) -> Split:
    """The samples of one split of the data at `root`: a folder, a list file, or "shapes".

    The format is found out from what is there, unless it is named. Raises `UsageError` for an unknown split or format,
    `DataError` for data that are missing, fit no format, or are faulty.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}: {choose(split, SPLITS)}")
    root = str(root)
    formats = names("data")
    if format is not None:
        return find("data", format).load(root, split)
    # class folders last: they are what remains where no list or annotation file says what the folders mean
    fits = [name for name in formats if name != "folder" and find("data", name).detect(root)]
    if len(fits) > 1:
        raise DataError(f"{root!r} fits several formats: {', '.join(fits)}; choose one with --format")
    if not fits and not find("data", "folder").detect(root):
        check_exists(root)
        expected = "".join(f"\n  {name}: {find('data', name).EXPECTS}" for name in formats)
        raise DataError(f"{root!r} fits no format. What each expects:{expected}")
    return find("data", fits[0] if fits else "folder").load(root, split)


def check_exists(root: str) -> None:
    """Raise `DataError` if nothing is at `root`, with the nearest name that is there."""
    path = Path(root)
    if path.exists():
        return
    place = path.absolute()
    while not place.parent.is_dir():
        place = place.parent
    near = get_close_matches(place.name, sorted(os.listdir(place.parent)), n=1, cutoff=0.5)
    hint = f"; did you mean {str(place.parent / near[0])!r}?" if near else f"; {str(place.parent)!r} is there"
    raise DataError(f"no such file or folder: {root!r}{hint}")


def hold_out(items: Sequence[_T], split: str) -> list[_T]:
    """One class's part of data that come without a split: every tenth item is for "val" and "test", the rest "train".

    The same items give the same parts on every machine. At least one is held out, unless there is only one.
    """
    if split == "all":
        return list(items)
    held = set(range(9, len(items), 10)) or ({len(items) - 1} if len(items) > 1 else set())
    return [item for i, item in enumerate(items) if (i in held) != (split == "train")]
