"""Data: annotated images on disk -> samples. One file is one format; the file name is what --format takes.

A format has `load(root, split, target) -> Split` and, beside it, a pure `parse` of its text, so that its tests are
tables of strings; `detect(root) -> bool` says whether a folder or file looks like this format, `EXPECTS` says in a line
what it looks for, and `TARGETS` which kinds of annotation it can give. Samples hold paths and annotations, no pixels.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError, UsageError, choose, named_arguments
from ..find import find, names
from ..images import examine
from ..reading import ANNOTATIONS, read_bytes

TARGETS = ("label", "boxes", "masks", "semantic")  # kinds of annotation: of the image, objects, their masks, each pixel
WORDS = {"label": "label of an image", "boxes": "boxes", "masks": "instance masks", "semantic": "label of each pixel"}
IGNORE = 255  # in label maps: a pixel of no known class
SPLITS = ("train", "val", "test", "all")  # "all" is for data without a split of its own: nothing is held out
SPLIT_NAMES = {  # what folders and files of a split are called; the first that is there counts
    "train": ("train",),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test",),
}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Object:
    """One annotated object of a picture."""

    box: tuple[float, float, float, float]  # xyxy, pixels of the picture
    label: int  # class index
    # COCO's: polygons [[x, y, x, y, ...], ...] in pixels, or RLE {"size": [height, width], "counts": str or list}
    segmentation: list[list[float]] | dict[str, Any] | None = None
    crowd: bool = False  # a region with many: not learned from, and neither right nor wrong to find
    area: float | None = None  # square pixels, as annotated; of the mask or box where it is not

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.box
        if not all(math.isfinite(value) for value in self.box) or x1 <= x0 or y1 <= y0:
            raise DataError(f"box is {self.box}; allowed: x0 < x1 and y0 < y1, in pixels")
        if self.label < 0:
            raise DataError(f"label is {self.label}: class indices start at 0")


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it; `image` is a path, or a picklable function that draws it (`shapes`)."""

    image: Path | Callable[[], Image.Image]
    label: int | None = None  # class index, of classification
    objects: tuple[Object, ...] | None = None  # None: not annotated with objects; (): it shows none
    semantic: Callable[[], np.ndarray] | None = None  # reads the label map (height, width) uint8, IGNORE where unknown
    id: int | str | None = None  # of the image in its annotation file

    def __post_init__(self) -> None:
        if self.label is not None and self.label < 0:
            raise DataError(f"label is {self.label} for {self.image}: class indices start at 0")


@dataclass(frozen=True)
class Split:
    """The samples of one split ("train", "val", "test") with the class names that labels index."""

    samples: list[Sample]
    classes: list[str]
    skipped: list[str] = field(default_factory=list)  # one line for each file or entry left out, with the reason
    ids: list[int] | None = None  # category ids of the annotation file, in the order of `classes`

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError("no samples" + (f"; skipped: {self.skipped[0]}" if self.skipped else ""))
        for sample in self.samples:
            labels = [sample.label] if sample.label is not None else [item.label for item in sample.objects or ()]
            for label in labels:
                if label >= len(self.classes):
                    raise DataError(
                        f"label {label} of {sample.image} is out of range: there are {len(self.classes)} classes, "
                        f"so labels are 0 to {len(self.classes) - 1}"
                    )


@named_arguments
def load(root: str, split: str, format: str | None = None, target: str = "label") -> Split:
    """The samples of one split of the data at `root`: a folder, an annotation file, or "shapes".

    `target` is the kind of annotation wanted, one of TARGETS. The format is found out from what is there, unless it is
    named. Raises `UsageError` for an unknown split, target or format, `DataError` for data that are missing, fit no
    format, have no annotation of that kind, or are faulty.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}: {choose(split, SPLITS)}")
    if target not in TARGETS:
        raise UsageError(f"no target {target!r}: {choose(target, TARGETS)}")
    root = str(root)
    formats = names("data")
    able = [name for name in formats if target in find("data", name).TARGETS]
    if format is not None:
        if target not in find("data", format).TARGETS:
            raise UsageError(f"format {format} has no {WORDS[target]}; formats that have: {', '.join(able)}")
        return find("data", format).load(root, split, target)
    # class folders last: they are what remains where no list or annotation file says what the folders mean
    fits = [name for name in formats if name != "folder" and find("data", name).detect(root)]
    fits = [name for name in fits if name in able] or fits[:1]
    if len(fits) > 1:
        raise DataError(f"{root!r} fits several formats: {', '.join(fits)}; choose one with --format")
    if not fits and find("data", "folder").detect(root):
        fits = ["folder"]
    if not fits:
        check_exists(root)
        expected = "".join(f"\n  {name}: {find('data', name).EXPECTS}" for name in able)
        raise DataError(f"{root!r} fits no format. What each expects that has {WORDS[target]}:{expected}")
    if target not in find("data", fits[0]).TARGETS:
        raise DataError(
            f"{root!r} is of the format {fits[0]}, which has no {WORDS[target]}; formats that have: {', '.join(able)}"
        )
    return find("data", fits[0]).load(root, split, target)


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


def inside(path: Path, root: Path, entry: str) -> Path:
    """`path` itself, or `DataError` naming the entry if it is not below `root`; links are the user's own."""
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise DataError(f"{entry}: {str(path)!r} is outside of the data, {str(root)!r}")
    return path


def check_images(paths: Sequence[Path], source: str) -> None:
    """Raise `DataError` naming the first of the images that do not exist."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"{source}: no such image: {', '.join(missing[:5])}{more}")


def measured(image: Path, skipped: list[str], turned: list[Path]) -> tuple[int, int] | None:
    """(height, width) of an image; None, with a line in `skipped`, if it cannot be read.

    An image that its EXIF orientation turns or mirrors is added to `turned`; the size is that of the upright picture.
    """
    try:
        (width, height), orientation = examine(image)
    except DataError as error:
        skipped.append(f"{error}; left out")
        return None
    if orientation != 1:
        turned.append(image)
    return height, width


def note_turned(turned: Sequence[Path], skipped: list[str]) -> None:
    """A line in `skipped`, ahead of the others, on annotated pictures that their EXIF orientation turns or mirrors.

    That their annotations were drawn on the upright picture cannot be seen from the files, where the sizes agree.
    """
    if turned:
        pictures, are, their = ("picture", "is", "its") if len(turned) == 1 else ("pictures", "are", "their")
        skipped.insert(
            0,
            f"{len(turned)} {pictures}, as {str(turned[0])!r}, {are} turned or mirrored by {their} EXIF orientation: "
            f"{their} annotations are taken as of the upright picture; check that they lie right",
        )


def text_of(path: Path) -> str:
    """The text of an annotation file in UTF-8, with or without BOM; `DataError` names the line that is not."""
    try:
        data = read_bytes(path, ANNOTATIONS)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from error


def parse_classes(text: str, source: str) -> list[str]:
    """The class names of a file with one a line."""
    classes = [line.strip() for line in text.split("\n") if line.strip()]
    if not classes:
        raise DataError(f"{source} is empty: no class names")
    twice = next((name for i, name in enumerate(classes) if name in classes[:i]), None)
    if twice is not None:
        raise DataError(f"{source}: class {twice!r} is there twice")
    return classes


def fit_box(
    box: tuple[float, float, float, float], size: tuple[int, int], entry: str, skipped: list[str]
) -> tuple[float, float, float, float] | None:
    """The part of a box xyxy that is inside of a picture (height, width); None if there is none.

    What is dropped or cut is told in a line of `skipped`. A box that leaves the picture by less than a pixel stays as
    it is: tools round. Raises `DataError` for values that are no numbers.
    """
    if not all(math.isfinite(value) for value in box):
        raise DataError(f"{entry}: box has values that are not finite: {box}")
    x0, y0, x1, y1 = box
    height, width = size
    if x1 <= x0 or y1 <= y0:
        skipped.append(f"{entry}: dropped, its box is {x1 - x0:g} wide and {y1 - y0:g} high")
        return None
    if x0 > -1 and y0 > -1 and x1 < width + 1 and y1 < height + 1:
        return box
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        skipped.append(f"{entry}: dropped, its box {box} is outside of the picture of {width}x{height}")
        return None
    skipped.append(f"{entry}: its box {box} (x0, y0, x1, y1) leaves the picture of {width}x{height} and is cut")
    return x0, y0, x1, y1


def hold_out(items: Sequence[_T], split: str) -> list[_T]:
    """One class's part of data that come without a split: every tenth item is for "val" and "test", the rest "train".

    The same items give the same parts on every machine. At least one is held out, unless there is only one.
    """
    if split == "all":
        return list(items)
    held = set(range(9, len(items), 10)) or ({len(items) - 1} if len(items) > 1 else set())
    return [item for i, item in enumerate(items) if (i in held) != (split == "train")]
