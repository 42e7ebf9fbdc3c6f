"""YOLO text files: a line a box or a polygon, in shares of the picture.

    FOLDER/data.yaml  FOLDER/images/train/*  FOLDER/labels/train/*.txt      (without splits: images/*, labels/*.txt)

A share has as many digits as it takes to come back as the pixel that it was. Each picture has a file,
an empty one where it shows no object.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml

from .. import Object, Split
from .._yolo_files import parse_yaml
from ._album import Album, check_names, names_for
from ._reading import WHOLE, part_of

FORMAT = "yolo"
WRITES = "data.yaml with images/train and labels/train"
TARGETS: tuple[str, ...] = ("boxes", "masks")
HOLDS: tuple[str, ...] = ("mask", "order", "unused")
DIGITS = range(6, 18)  # after the point: as other tools write, up to what any share needs


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    for name, split in splits.items():
        images, labels = (folder / kind / part_of(name) for kind in ("images", "labels"))
        labels.mkdir(parents=True)
        for sample, file in zip(split.samples, names_for(split.samples), strict=True):
            album.put(sample, images / file)
            size = album.size(sample)
            lines = [_line(item, size) for item in sample.objects or ()]
            text = labels / Path(file).with_suffix(".txt")
            text.write_text("".join(lines), encoding="utf-8")
    (folder / "data.yaml").write_text(_described(splits), encoding="utf-8")


def _described(splits: Mapping[str, Split]) -> str:
    """The text of data.yaml, without `path`: the folder of the file is what its paths are relative to."""
    entries = {
        "train" if name == WHOLE else name: f"images/{part_of(name)}".rstrip("/") for name in splits
    }
    classes = next(iter(splits.values())).classes
    described = {**entries, "names": dict(enumerate(classes))}
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
    check_names(classes, lambda: parse_yaml(text, "data.yaml").classes, "data.yaml")
    return str(text)


def _line(item: Object, size: tuple[int, int]) -> str:
    height, width = size
    if isinstance(item.segmentation, list):
        (points,) = item.segmentation
        values = [_share(value, height if i % 2 else width) for i, value in enumerate(points)]
    else:
        x0, y0, x1, y1 = item.box
        (x, w), (y, h) = _middle(x0, x1, width), _middle(y0, y1, height)
        values = [x, y, w, h]
    return " ".join([str(item.label), *values]) + "\n"


def _share(value: float, whole: int) -> str:
    """A place in pixels as a share of a side of the picture."""
    texts = [f"{value / whole:.{digits}f}" for digits in DIGITS]
    return next((text for text in texts if float(text) * whole == value), texts[-1])


def _middle(start: float, end: float, whole: int) -> tuple[str, str]:
    """The middle and the length of a side of a box, as shares of the picture's."""
    middle, length = (start + end) / 2 / whole, (end - start) / whole
    texts = [(f"{middle:.{digits}f}", f"{length:.{digits}f}") for digits in DIGITS]
    return next((pair for pair in texts if _ends(*pair, whole) == (start, end)), texts[-1])


def _ends(middle: str, length: str, whole: int) -> tuple[float, float]:
    """Where a side of a box begins and ends, as it is read."""
    at, half = float(middle) * whole, float(length) * whole / 2
    return at - half, at + half
