"""List files: a line a picture, `path label`, as PaddleClas and mmpretrain read them; of tags `path 0,1,1`.

FOLDER/train_list.txt  FOLDER/label_list.txt (`number name`)  FOLDER/images/train/*
"""

from collections.abc import Mapping
from pathlib import Path

from .. import Sample, Split
from .._label_lists import parse_names
from ._album import Album, check_names, names_for
from ._reading import WHOLE

FORMAT = "listfile"
WRITES = "train_list.txt and label_list.txt with images/train"
TARGETS: tuple[str, ...] = ("label", "tags")
HOLDS: tuple[str, ...] = ("order", "unused")


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    classes = next(iter(splits.values())).classes
    text = "".join(f"{number} {name}\n" for number, name in enumerate(classes))
    check_names(classes, lambda: parse_names(text, "label_list.txt").names, "label_list.txt")
    (folder / "label_list.txt").write_text(text, encoding="utf-8")
    for part, split in splits.items():
        place = "images" if part == WHOLE else f"images/{part}"
        lines = []
        for sample, file in zip(split.samples, names_for(split.samples), strict=True):
            album.put(sample, folder / place / file)
            lines.append(f"{place}/{file} {_text(sample, len(classes))}".rstrip() + "\n")
        name = "train_list.txt" if part == WHOLE else f"{part}_list.txt"
        (folder / name).write_text("".join(lines), encoding="utf-8")


def _text(sample: Sample, classes: int) -> str:
    """What stands behind the path: the number of the class; of tags 0 or 1 for each class.

    Of a single class that would be the number of a class, so there it is: 0, or nothing.
    """
    if sample.tags is None:
        return str(sample.label)
    if classes == 1:
        return "0" if sample.tags else ""
    return ",".join("1" if label in sample.tags else "0" for label in range(classes))
