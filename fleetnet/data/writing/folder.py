"""Class folders: the pictures of a class in a folder of its name.

    FOLDER/train/CLASS/*      (without splits: FOLDER/CLASS/*)

Classes are numbered by name, and those without a picture of train are none.
"""

from collections.abc import Mapping
from pathlib import Path

from ...errors import DataError
from ...images import hidden
from .. import Split, shorten
from ._album import Album, names_for
from ._reading import part_of

FORMAT = "folder"
WRITES = "train/CLASS/*"
TARGETS: tuple[str, ...] = ("label",)
HOLDS: tuple[str, ...] = ()
LONGEST = 255  # bytes of a name, in most file systems


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    for name in next(iter(splits.values())).classes:
        _check(name)
    for part, split in splits.items():
        top = folder / part_of(part)
        for label, name in enumerate(split.classes):
            samples = [sample for sample in split.samples if sample.label == label]
            for sample, file in zip(samples, names_for(samples), strict=True):
                album.put(sample, top / name / file)


def _check(name: str) -> None:
    """`DataError` for a class that no folder can be called as, or whose folder would be passed over."""
    wrong = name in ("", ".", "..") or any(sign in name for sign in "/\\\0\n\r")
    try:
        wrong = wrong or len(name.encode()) > LONGEST
    except UnicodeEncodeError:
        wrong = True
    if wrong or hidden(name) or name != name.strip():
        raise DataError(
            f"no folder can be called as the class {shorten(repr(name))}, or it would be passed "
            "over: rename the class, or convert to list"
        )
