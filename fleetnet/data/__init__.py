"""Data: annotated images on disk -> samples. One file is one format.

The file name is what --format takes; `Format` says what the file holds. Samples hold paths and
annotations, no pixels. A `Split` says what was read for it (`source`) and what became of its
annotations (`annotations`).
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from ..errors import DataError, UsageError, named_arguments, suggest
from ..find import find as find_module
from ..find import names
from ..images import Source as OfPicture
from ..images import examine
from ..reading import Member, is_below
from ._conventions import SPLITS, USUAL, Places
from ._splits import (
    NoSplit,
    Part,
    files_beside,
    hold_out,
    hold_out_of_each,
    of_other_names,
    part_of,
)
from ._texts import NotUtf8, and_more, few, number, parse_classes, shorten, text_of, whole

# kinds of annotation: of the image (one label, or any number of tags), objects, their masks, each
# pixel
TARGETS = "label", "tags", "boxes", "masks", "semantic"
OF_PICTURES = "label", "tags"  # what a whole picture shows, wherever it lies
# Boxes, each with its mask where it has one: for conversions, which lose nothing by it.
OBJECTS = "objects"
WORDS = {
    "label": "label of an image",
    "tags": "tags of an image",
    "boxes": "boxes",
    "masks": "instance masks",
    "semantic": "label of each pixel",
}
# What tags are read from, the first of these that a format gives: objects tell which classes a
# picture shows, and a label is a single tag.
TAGS_FROM = "tags", "boxes", "label"
IGNORE = 255  # in label maps: a pixel of no known class


__all__ = [
    "IGNORE",
    "OBJECTS",
    "OF_PICTURES",
    "SPLITS",
    "TARGETS",
    "USUAL",
    "WORDS",
    "Annotations",
    "Format",
    "NoSplit",
    "NotUtf8",
    "Notes",
    "Object",
    "Part",
    "Places",
    "Sample",
    "Source",
    "Split",
    "check_exists",
    "check_images",
    "few",
    "files_beside",
    "find",
    "fit_box",
    "from_hugging_face",
    "from_samples",
    "from_torchvision",
    "hold_out",
    "hold_out_of_each",
    "inside",
    "is_there",
    "load",
    "measured",
    "note_turned",
    "number",
    "of_other_names",
    "parse_classes",
    "part_of",
    "shorten",
    "text_of",
    "turned_line",
    "whole",
]


@dataclass(frozen=True)
class Object:
    """One annotated object of a picture."""

    box: tuple[float, float, float, float]  # xyxy, pixels of the picture
    label: int  # class index
    # COCO's: polygons [[x, y, x, y, ...], ...] in pixels, or RLE {"size": [height, width],
    # "counts": str or list}
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
    """One image and what is known of it.

    `image` is a path, a member of an archive (`shards`), or a picklable function that gives the
    picture (`shapes`, `from_samples`).
    """

    image: Path | Member | Callable[[], OfPicture]
    label: int | None = None  # class index, of classification
    objects: tuple[Object, ...] | None = None  # None: not annotated with objects; (): it shows none
    # reads the label map (height, width) uint8, IGNORE where unknown
    semantic: Callable[[], np.ndarray] | None = None
    id: int | str | None = None  # of the image in its annotation file
    # class indices, each once and ascending, of multi-label classification; (): none of the classes
    tags: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.label is not None and self.label < 0:
            raise DataError(f"label is {self.label} for {self.image}: class indices start at 0")
        tags = self.tags
        if tags and (list(tags) != sorted(set(tags)) or min(tags) < 0):
            raise DataError(
                f"tags are {self.tags} for {self.image}; allowed: class indices from 0 up, each "
                "once and in ascending order"
            )

    def source(self) -> OfPicture:
        """What `images` reads the picture from; of a function, the picture that it gives now."""
        return self.image() if callable(self.image) else self.image

    def labels(self) -> list[int]:
        """The classes of all that is annotated but pixels: of the picture, else of its objects."""
        if self.tags is not None:
            return list(self.tags)
        if self.label is not None:
            return [self.label]
        return [item.label for item in self.objects or ()]


@dataclass(frozen=True)
class Source:
    """What was read for a split."""

    root: str  # as given
    format: str
    split: str  # "train", "val", "test", or "all" of data without splits
    files: str  # the folder, list or annotation file that was read; several are joined by commas
    # "all" of that, or our own part: "train" without, or "val" only, every tenth; "rest" and
    # "kept", what a run learns from and what it held back
    take: str = "all"

    def __str__(self) -> str:
        part = {
            "train": " without every tenth, held back for val",
            "val": ", every tenth, held back from train",
            "kept": ", those that the run held back",
            "rest": " without those that the run held back",
        }
        return self.files + part.get(self.take, "")


@dataclass(frozen=True)
class Annotations:
    """How many annotations of objects or label maps there were to read, and how many of them fell away, and why."""

    read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> how many
    cut: int = 0  # boxes that left the picture, of which the part inside is kept
    turned: tuple[Path | Member, ...] = ()  # annotated pictures that their EXIF orientation turns
    unreadable: tuple[str, ...] = ()  # of each picture that could not be measured, why

    def lost(self) -> int:
        return sum(self.dropped.values())

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return f"{self.lost()} of {self.read} annotations dropped" + (
            f": {reasons}" if reasons else ""
        )


class Notes:
    """What a format keeps while it reads: a line for each thing left out, and what became of the annotations."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.read = 0  # annotations so far, dropped ones too
        self.dropped: Counter[str] = Counter()  # reason -> how many
        self.cut = 0  # boxes
        self.turned: tuple[Path | Member, ...] = ()
        self.unreadable: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def drop(self, reason: str, line: str | None = None, count: int = 1) -> None:
        """Count annotations as dropped; `reason` is a few words that go on after a number, `line` names the entry."""
        self.dropped[reason] += count
        if line is not None:
            self.lines.append(line)

    def annotations(self) -> Annotations:
        return Annotations(
            self.read, dict(self.dropped), self.cut, self.turned, tuple(self.unreadable)
        )


@dataclass(frozen=True)
class Split:
    """The samples of one split ("train", "val", "test") with the class names that labels index."""

    samples: list[Sample]
    classes: list[str]
    # one line for each file or entry left out, with the reason
    skipped: list[str] = field(default_factory=list)
    ids: list[int] | None = None  # category ids of the annotation file, in the order of `classes`
    # None: not read from data, but put together
    source: Source | None = field(default=None, compare=False)
    annotations: Annotations = field(default=Annotations(), compare=False)
    # those of `skipped` that name a list or folder beside the data which is not used
    unused: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError(self._empty())
        for sample in self.samples:
            for label in sample.labels():
                if label >= len(self.classes):
                    raise DataError(
                        f"label {label} of {sample.image} is out of range: there are "
                        f"{len(self.classes)} classes, so labels are 0 to {len(self.classes) - 1}"
                    )

    def _empty(self) -> str:
        """Why there are no samples, and in what."""
        where = f" for {self.source.split!r} in {self.source}" if self.source else ""
        if self.skipped:
            more = and_more(len(self.skipped) - 1)
            return f"no samples{where}; skipped: {self.skipped[0]}{more}"
        if self.source and self.source.take == "val":
            return f"no samples{where}: it holds too few pictures to hold one back"
        return f"no samples{where}"


class Format(Protocol):
    """What the file of a format holds, all of it at its top level."""

    EXPECTS: str  # what the format looks for, in a line
    TARGETS: tuple[str, ...]  # the kinds of annotation that it can give, of `TARGETS`
    PLACES: tuple[str, ...]  # which of `Places` it reads
    FALLBACK: bool  # whether it is asked only where no other format fits

    def detect(self, root: str, target: str = ...) -> bool:
        """Whether a folder, a file or a word looks like this format, with annotations of the kind `target`."""

    def load(
        self, root: str, split: str | None, target: str = ..., elsewhere: Places = ...
    ) -> Split:
        """The samples of a split with annotations of the kind `target`; see `load` of this table.

        Raises `DataError`, which names file and line, for what is missing or faulty.
        """

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        """What the text of an annotation file says, without reading any other file.

        It is pure, so that its tests are tables of strings.
        """


OneFile = TypeVar("OneFile", Path, Member)
Given = TypeVar("Given")  # what samples are given as, before a function makes items of them


def find(name: str) -> Format:
    """The file of a format; `UsageError` with the nearest name if there is none."""
    return cast(Format, find_module("data", name))


@named_arguments
def load(
    root: str,
    split: str | None,
    format: str | None = None,
    target: str = "label",
    images: str | None = None,
    masks: str | None = None,
) -> Split:
    """The samples of one split of the data at `root`: a folder, an annotation file, or "shapes".

    `split` is one of SPLITS, or None for what there is to measure on: a named file or list itself,
    a folder's "val", else its "test", else all of it. `target` is the kind of annotation wanted,
    one of TARGETS. The format is found out from what is there, unless it is named. `images` and
    `masks` are folders of images and label maps that lie elsewhere. Raises
    `UsageError` for an unknown split, target or format, `DataError` for data that are missing, fit
    no format, have no annotation of that kind, lack the split, or are faulty.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"no split {split!r}: {suggest(split, SPLITS)}")
    if target not in (*TARGETS, OBJECTS):
        raise UsageError(f"no target {target!r}: {suggest(target, TARGETS)}")
    from . import _recognition, _split_folders

    root = str(root)
    asked = "boxes" if target == OBJECTS else target
    if masks is not None and format is None:
        # The folder may hold nothing but pictures.
        format = {"semantic": "masks", "masks": "instances", "boxes": "instances"}.get(asked)
    name, place = _recognition.format_of(root, format, asked)
    elsewhere = Places(*(None if path is None else str(path) for path in (images, masks)))
    _check_places(name, elsewhere)
    kind = kind_for(name, asked) or asked
    with_masks = target == OBJECTS and "masks" in find(name).TARGETS
    loaded = _split_folders.read(name, place, split, OBJECTS if with_masks else kind, elsewhere)
    if loaded.source is not None and format is None:
        lines = _split_folders.unused(loaded, loaded.source, Path(place))
        beside: list[str] = []
        if not find(name).FALLBACK:
            beside = _split_folders.beside(loaded.source, place, name, kind)
        skipped = [*beside, *loaded.skipped, *lines]
        loaded = replace(loaded, skipped=skipped, unused=[*beside, *lines])
    if kind != asked:
        loaded = _tagged(loaded)
    if place == root:
        return loaded
    line = f"{root!r} holds nothing but one folder, so {place!r} is read"
    source = loaded.source and replace(loaded.source, root=root)
    return replace(loaded, skipped=[line, *loaded.skipped], source=source)


def kind_for(name: str, target: str) -> str | None:
    """The kind of annotation that a format is asked for where `target` is wanted; None: it has none."""
    kinds = TAGS_FROM if target == "tags" else (target,)
    return next((kind for kind in kinds if kind in find(name).TARGETS), None)


def _tagged(split: Split) -> Split:
    """The split with the classes of each picture's objects, or its label, as its tags."""
    samples = [
        replace(sample, tags=tuple(sorted(set(sample.labels()))), label=None, objects=None)
        for sample in split.samples
    ]
    return replace(split, samples=samples)


def from_samples(
    samples: Iterable[Given],
    classes: Sequence[str] | None = None,
    sample: Callable[[Given], object] | None = None,
) -> Split:
    """A split of pictures and annotations that Python has, for `fit` and `evaluate`.

    Each of `samples` is a pair (picture, label), a pair (picture, tags), or a mapping with `image`
    and the annotations that there are:

        image   a path, an array (height, width, channels), or a PIL image
        label   of the picture: a name or a number
        tags    of the picture: any number of names or numbers, or 0 or 1 for each class; the same
                in all samples, and pairs of 0 and 1 alone are flags of two classes, unless a set
        boxes   (x0, y0, x1, y1) in pixels, with `labels`, one each; `crowd` may say which are crowds
        masks   of the same objects: bool arrays (height, width), or polygons or run lengths of COCO
        map     the label of each pixel: whole numbers (height, width), or a path; 255 is of no class
        id      of the picture

    `classes` names the labels; without it they are named by the names or numbers that occur.
    `sample` makes such a sample of an item, for data sets of torchvision, Hugging Face and others.
    One that has a length and is asked by number is gone through once for its annotations, and then
    asked again for each picture; worker processes need it to be picklable. The pictures of other
    iterables stay in memory, unless they are paths. Raises `DataError` naming the sample, and
    `UsageError` for what is none.
    """
    from . import _samples

    return _samples.from_samples(samples, classes, sample)


def from_torchvision(dataset: object, classes: Sequence[str] | None = None) -> Split:
    """The split of a data set of torchvision, or of any that gives (picture, target) by number.

    Targets may be a label, tags (a tensor or list), a label map (a picture), or a mapping with
    `boxes` and `labels`. Classes are those that the data set names, unless they are given. Labels
    that it keeps are taken from there, and no picture is decoded for them; ImageFolder and
    CocoDetection give the paths of their files. Of other data sets each item is asked for once.
    Pictures are asked for when they are learned from, by worker processes too, which need the data
    set to be picklable. Raises `UsageError` for a data set with a transform to tensors, and for
    targets that are none of these.
    """
    from . import _wrapped

    return _wrapped.from_torchvision(dataset, classes)


def from_hugging_face(
    dataset: object,
    classes: Sequence[str] | None = None,
    *,
    label: str | None = None,
    boxes: str = "xywh",
) -> Split:
    """The split of a data set of Hugging Face's `datasets`, such as dataset["train"].

    Its columns say what they hold: a picture; a ClassLabel, or a list of them (tags); objects with
    bbox and category, whose `boxes` are a corner with width and height ("xywh") or corners
    ("xyxy"); or a second picture, the label map. `label` names the column where there are several.
    Pictures are read as they are stored, when they are learned from. Raises `UsageError` where the
    columns do not say it, `DataError` where most boxes are outside of their pictures.
    """
    from . import _wrapped

    return _wrapped.from_hugging_face(dataset, classes, label, boxes)


def _check_places(name: str, elsewhere: Places) -> None:
    """Raise where a folder is named that the format does not read, or that is not there."""
    for key, folder in elsewhere._asdict().items():
        if folder is None:
            continue
        if key not in find(name).PLACES:
            able = [other for other in names("data") if key in find(other).PLACES]
            raise UsageError(f"the format {name} does not read --{key}; formats: {', '.join(able)}")
        check_exists(folder)
        if not os.path.isdir(folder):
            raise DataError(f"--{key} {folder!r} is not a folder")


def is_there(root: str) -> bool:
    """Whether data are named by a path at which they are, which may be a pattern of shards."""
    from ._shard_files import is_pattern

    return os.path.exists(root) or (
        is_pattern(root) and os.path.isdir(os.path.dirname(os.path.abspath(root)))
    )


def check_exists(root: str) -> None:
    """Raise `DataError` if nothing is at `root`, with the nearest name that is there."""
    from ._shard_files import is_glob

    path = Path(root)
    if os.path.exists(path):
        return
    if is_glob(root):
        raise DataError(
            f"no such file: {shorten(root)!r}; several shards are named by their folder, or by a "
            "pattern as train-{000000..000127}.tar"
        )
    place = path.absolute()
    while not os.path.isdir(place.parent):
        place = place.parent
    near = get_close_matches(place.name, sorted(os.listdir(place.parent)), n=1, cutoff=0.5)
    hint = (
        f"; did you mean {str(place.parent / near[0])!r}?"
        if near
        else f"; {str(place.parent)!r} is there"
    )
    raise DataError(f"no such file or folder: {shorten(root)!r}{hint}")


def inside(path: Path, root: Path, entry: str) -> Path:
    """`path` itself, or `DataError` naming the entry if it is not below `root`; links are the user's own."""
    if not is_below(path, root):
        raise DataError(
            f"{shorten(entry)}: {shorten(path)!r} is outside of the data, {str(root)!r}"
        )
    return path


def check_images(paths: Sequence[Path], source: str) -> None:
    """Raise `DataError` naming the first of the images that do not exist."""
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing:
        raise DataError(f"{source}: no such image: {few(missing)}")


def measured(image: OneFile, notes: Notes, turned: list[OneFile]) -> tuple[int, int] | None:
    """(height, width) of an image; None, and said, if it cannot be read.

    An image that its EXIF orientation turns or mirrors is added to `turned`; the size is that of
    the upright picture.
    """
    try:
        (width, height), orientation = examine(image)
    except DataError as error:
        notes.say(f"{error}; left out")
        notes.unreadable.append(str(error))
        return None
    if orientation != 1:
        turned.append(image)
    return height, width


def note_turned(turned: Sequence[Path | Member], notes: Notes) -> None:
    """A line, ahead of the others, on annotated pictures that their EXIF orientation turns or mirrors.

    That their annotations were drawn on the upright picture cannot be seen from the files, where
    the sizes agree.
    """
    notes.turned = tuple(turned)
    if turned:
        notes.lines.insert(0, turned_line(turned))


def turned_line(turned: Sequence[Path | Member]) -> str:
    """What is said of annotated pictures that their EXIF orientation turns or mirrors."""
    if not turned:
        return ""
    pictures, are, their = (
        ("picture", "is", "its") if len(turned) == 1 else ("pictures", "are", "their")
    )
    return (
        f"{len(turned)} {pictures}, as {str(turned[0])!r}, {are} turned or mirrored by {their} "
        f"EXIF orientation: {their} annotations are taken as of the upright picture; check "
        "that they lie right"
    )


def fit_box(
    box: tuple[float, float, float, float], size: tuple[int, int], entry: str, notes: Notes
) -> tuple[float, float, float, float] | None:
    """The part of a box xyxy that is inside of a picture (height, width); None if there is none.

    What is dropped or cut is said. A box that leaves the picture by less than a pixel stays as it
    is: tools round. Raises `DataError` for values that are no numbers.
    """
    if not all(math.isfinite(value) for value in box):
        raise DataError(f"{entry}: box has values that are not finite: {box}")
    x0, y0, x1, y1 = box
    height, width = size
    if x1 <= x0 or y1 <= y0:
        notes.drop(
            "without an area", f"{entry}: dropped, its box is {x1 - x0:g} wide and {y1 - y0:g} high"
        )
        return None
    if x0 > -1 and y0 > -1 and x1 < width + 1 and y1 < height + 1:
        return box
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        line = f"{entry}: dropped, its box {box} is outside of the picture of {width}x{height}"
        notes.drop("outside of the picture", line)
        return None
    notes.cut += 1
    notes.say(
        f"{entry}: its box {box} (x0, y0, x1, y1) leaves the picture of {width}x{height} and is cut"
    )
    return x0, y0, x1, y1
