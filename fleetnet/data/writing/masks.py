"""Label maps beside their images: gray PNGs of class indices, 255 where a pixel is of no known class.

FOLDER/images/train/*  FOLDER/labels/train/*.png  FOLDER/classes.txt      (without splits: images/*, labels/*.png)
"""

from collections.abc import Mapping
from pathlib import Path

from .. import Split
from .._class_files import parse_legend
from ._album import Album, check_names, names_for
from ._maps import write_map
from ._reading import part_of

FORMAT = "masks"
WRITES = "images/train with labels/train/*.png and classes.txt"
TARGETS: tuple[str, ...] = ("semantic",)
HOLDS: tuple[str, ...] = ("order", "unused")


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    classes = next(iter(splits.values())).classes
    text = "".join(f"{name}\n" for name in classes)
    check_names(classes, lambda: parse_legend(text, "classes.txt").names, "classes.txt")
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    for name, split in splits.items():
        part = part_of(name)
        for sample, file in zip(split.samples, names_for(split.samples), strict=True):
            labels = album.label_map(sample)
            if labels is not None:
                album.put(sample, folder / "images" / part / file)
                write_map(labels, folder / "labels" / part / Path(file).with_suffix(".png"))
