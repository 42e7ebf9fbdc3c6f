"""Data: annotated images on disk -> samples. One file is one format.

The file name is what --format takes; `Format` says what the file holds. Samples hold paths and
annotations, no pixels. A `Split` says what was read for it (`source`) and what became of its
annotations (`annotations`).
"""

import math
import os
import re
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
from ..images import examine, hidden
from ..reading import ANNOTATIONS, Member, is_below, read_bytes
from . import _native
from ._conventions import (
    IMAGE_FOLDERS,
    SPLITS,
    USUAL,
    Places,
    children,
    describes_itself,
    files_in,
    folders_in,
    images_in,
    only_folder,
    split_folders,
    split_lists,
    split_of,
)
from ._splits import (
    NoSplit,
    Part,
    files_beside,
    hold_out,
    hold_out_of_each,
    of_other_names,
    part_of,
)

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
SHOWN = 5  # names in a message, where there may be any number
LONGEST_NAME = 1000  # letters of a class
LETTERS = 200  # of a user's own text in a message


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
            return f"no samples{where}; skipped: {self.skipped[0]}" + _more(len(self.skipped) - 1)
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
    root = str(root)
    asked = "boxes" if target == OBJECTS else target
    if masks is not None and format is None:
        # The folder may hold nothing but pictures.
        format = {"semantic": "masks", "masks": "instances", "boxes": "instances"}.get(asked)
    name, place = format_of(root, format, asked)
    elsewhere = Places(*(None if path is None else str(path) for path in (images, masks)))
    _check_places(name, elsewhere)
    kind = kind_for(name, asked) or asked
    with_masks = target == OBJECTS and "masks" in find(name).TARGETS
    loaded = _read(name, place, split, OBJECTS if with_masks else kind, elsewhere)
    if loaded.source is not None and format is None:
        lines = _unused(loaded, loaded.source, Path(place))
        beside = [] if find(name).FALLBACK else _beside(loaded.source, place, name, kind)
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


def _read(name: str, place: str, split: str | None, target: str, elsewhere: Places) -> Split:
    """The samples of a split as the format reads them, or as the folders of the pictures say."""
    if find(name).FALLBACK:
        return find(name).load(place, split, target, elsewhere)
    try:
        loaded = find(name).load(place, split, target, elsewhere)
    except DataError:
        # One file may annotate all pictures, and only their folders say which are for testing.
        parts = _by_folders(name, place, target, elsewhere) if split == "test" else None
        if parts is None or "test" not in parts.groups:
            raise
        return parts.of("test")
    source = loaded.source
    if source is None or not _is_undivided(source, split, place):
        return loaded
    if not _has_other_splits(loaded, _folder_of(place)):
        return loaded
    parts = _by_folders(name, place, target, elsewhere)
    if parts is None:
        return loaded
    return parts.of(
        split or next(name for name in ("val", "test", "train") if name in parts.groups)
    )


def _is_undivided(source: Source, split: str | None, place: str) -> bool:
    """Whether a format read data without splits of their own: a part of ours, or a folder as a whole to measure on."""
    is_whole_folder = split is None and source.split == "all" and os.path.isdir(place)
    return source.take in ("train", "val") or is_whole_folder


def _folder_of(place: str) -> Path:
    return Path(place) if os.path.isdir(place) else Path(place).parent


@dataclass(frozen=True)
class _Parts:
    """Data that one file annotates, by the folders of splits that their pictures lie in."""

    every: Split
    source: Source  # of `every`
    groups: dict[str, list[Sample]]  # split -> its samples; train is there, and another

    def of(self, split: str) -> Split:
        """The samples of a split; where there is no folder for val, every tenth of train's."""
        chosen, take = self.groups.get(split, []), "all"
        if "val" not in self.groups and split in ("train", "val"):
            take = split
            chosen = hold_out(self.groups["train"], take)
        counts = ", ".join(f"{len(group)} {name}" for name, group in self.groups.items())
        files = self.source.files
        line = f"{files}: its pictures lie in folders of splits, which are used: {counts}"
        source = replace(self.source, split=split, take=take, files=f"{files}, pictures of {split}")
        skipped = [line, *self.every.skipped]
        return replace(self.every, samples=chosen, skipped=skipped, source=source)


def _by_folders(name: str, place: str, target: str, elsewhere: Places) -> _Parts | None:
    """The user's own splits where the pictures lie in folders of them; None where they do not.

    One file may annotate pictures of images/train and of images/val: those of val are not learned.
    """
    root = _folder_of(place)
    try:
        every = find(name).load(place, "all", target, elsewhere)
    except DataError:  # there are several parts, each with a file of its own
        return None
    if every.source is None or not _has_other_splits(every, root):
        return None
    groups: dict[str, list[Sample]] = {}
    for sample in every.samples:
        groups.setdefault(_split_above(sample, root) or "train", []).append(sample)
    if "train" not in groups or len(groups) < 2:
        return None
    return _Parts(every, every.source, groups)


def _has_other_splits(loaded: Split, root: Path) -> bool:
    """Whether pictures lie in the folder of a split that has folders of other splits beside it."""
    folders = {sample.image.parent for sample in loaded.samples if isinstance(sample.image, Path)}
    above = {
        place.parent
        for folder in folders
        for place in (folder, *folder.parents)
        if split_of(place.name) and place != root and place.is_relative_to(root)
    }
    return any(len(split_folders(folder)) > 1 for folder in above)


def _unused(loaded: Split, source: Source, root: Path) -> list[str]:
    """A line for a list or folder of the split beside the data that was not read for it."""
    if not os.path.isdir(root):
        return []
    file, lines = split_lists(root).get(source.split), []
    images = [sample.image for sample in loaded.samples if isinstance(sample.image, Path)]
    is_read = file is None or file.name in source.files or not _holds_names(file)
    if file is not None and not is_read and not _lists(file, images):
        lines.append(f"{str(file)!r}: a list that is not used; {source.split} is {source.files}")
    folders = {os.path.abspath(image.parent) for image in images}
    for folder in _folders_of(source.split, root):
        below = os.path.abspath(folder)
        is_used = str(folder) in source.files or any(
            Path(used).is_relative_to(below) for used in folders
        )
        if not is_used:
            lines.append(f"{str(folder)!r}: a folder of images that is not used for {source.split}")
    return lines


def _beside(source: Source, place: str, name: str, target: str) -> list[str]:
    """A line where we hold back a part of the folder of train, and that of val stands beside it."""
    root = Path(os.path.abspath(place))
    if source.take not in ("train", "val") or split_of(root.name) != "train":
        return []
    val = split_folders(root.parent).get("val")
    if val is None or not os.path.isdir(root) or not find(name).detect(str(val), target):
        return []
    return [
        f"{str(val)!r} is beside it and not used: every tenth picture of {place!r} is held back for "
        f"val; to measure on that folder, give --data {str(root.parent)!r}"
    ]


def _folders_of(split: str, root: Path) -> list[Path]:
    """The folders with images in them that are a split's by name: val, images/val and val/images."""
    named = [split_folders(place).get(split) for place in (root, *children(root, IMAGE_FOLDERS))]
    inner = [
        place
        for folder in named
        if folder is not None
        for place in (folder, *children(folder, IMAGE_FOLDERS))
    ]
    return [folder for folder in inner if images_in(folder)]


def _lists(file: Path, images: Sequence[Path]) -> bool:
    """Whether the lines of a file begin with the names of these images, and of no others."""
    try:
        lines = text_of(file).split("\n")
    except DataError:
        return False
    first_words = [re.split(r"[\s,;]", line.strip(), maxsplit=1)[0] for line in lines]
    return {Path(word).stem for word in first_words if word} == {image.stem for image in images}


def _holds_names(file: Path) -> bool:
    """Whether a text file has lines at all."""
    try:
        return os.stat(file).st_size > 0
    except OSError:
        return False


def _split_above(sample: Sample, root: Path) -> str | None:
    """The split that the nearest folder of a picture says, below the root."""
    if not isinstance(sample.image, Path):
        return None
    folders = Path(os.path.relpath(sample.image, root)).parts[:-1]
    return next((split for folder in reversed(folders) if (split := split_of(folder))), None)


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


def format_of(root: str, format: str | None, target: str) -> tuple[str, str]:
    """The format to read with, which can give the target, and the folder: `root`, or the only one in it."""
    formats = names("data")
    able = [name for name in formats if kind_for(name, target)]
    places = _described_first([root, *_folders_too_much(root)])
    if format is not None:
        if format not in able and not kind_for(format, target):
            raise UsageError(
                f"format {format} has no {WORDS[target]}; formats that have: {', '.join(able)}"
            )
        return format, next((place for place in places if _fits(format, place, target)), root)
    unable = ""
    for fallback in (False, True):
        among = [name for name in formats if fallback == find(name).FALLBACK]
        for place in places:
            usable = [name for name in among if name in able and _fits(name, place, target)]
            if not fallback:
                # One that looks for this kind of annotation alone knows it when it sees it.
                usable = [name for name in usable if len(find(name).TARGETS) == 1] or usable
            if len(usable) > 1 and not fallback:
                raise DataError(
                    f"{root!r} fits several formats: {', '.join(usable)}; choose one with --format"
                )
            if usable:
                if fallback:
                    # Folders of a tool's own export look like those of classes.
                    _native.check(root, deep=False)
                return usable[0], place
            others = (name for name in among if name not in able)
            unable = unable or next(
                (name for name in others if _fits(name, place, find(name).TARGETS[0])), ""
            )
    check_exists(root)
    _native.check(root, deep=True)
    if unable and not find(unable).FALLBACK:
        raise DataError(
            f"{root!r} is of the format {unable}, which has no {WORDS[target]}; formats that "
            f"have: {', '.join(able)}{_folder_around(root, able, target)}"
        )
    raise NoFormat(no_format(root, able, f" that has {WORDS[target]}"))


def _folder_around(root: str, able: Iterable[str], target: str) -> str:
    """What to give instead of a file whose folder has what is wanted; "" where it has not."""
    folder = Path(root).parent
    if os.path.isdir(root) or not any(_fits(name, str(folder), target) for name in able):
        return ""
    return f". Its folder has them: give {str(folder)!r} as --data"


class NoFormat(DataError):
    """Nothing is at a place that any format would read."""


def no_format(root: str, able: Iterable[str], which: str = "") -> str:
    """What the formats `able` look for, `which` says which they are, and what is there instead."""
    expected = "".join(f"\n  {name}: {find(name).EXPECTS}" for name in able)
    return (
        f"{root!r} fits no format. What each expects{which}:{expected}\n"
        f"What is there: {_there(root)}{_below(root)}"
    )


def _folders_too_much(root: str) -> list[str]:
    """The only folder in a folder, and the only one in that, up to three: packing and unpacking leave them."""
    inner: list[str] = []
    place: Path | None = Path(root)
    while place is not None and len(inner) < 3:
        try:
            place = only_folder(place)
        except (DataError, OSError, ValueError):  # no folder, or no name of a file
            break
        if place is not None:
            inner.append(str(place))
    return inner


def _described_first(places: list[str]) -> list[str]:
    """The folders with the outermost first that has splits or a description of its own, if any has.

    The one folder too much may be called `data` or `train`: to the folder around it, it looks like
    that of the pictures or of a split, and what it says of its splits would be passed over.
    """
    if len(places) == 1:
        return places
    for place in places:
        if describes_itself(Path(place)):
            return list(dict.fromkeys([place, *places]))
        if _holds_annotations(Path(place)):
            break
    return places


def _holds_annotations(folder: Path) -> bool:
    """Whether a file in a folder itself may annotate what is in the folders."""
    files = files_in(folder, ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".tar")
    return any(not file.name.lower().startswith(("readme", "license")) for file in files)


def _fits(name: str, root: str, target: str) -> bool:
    try:
        return find(name).detect(root, kind_for(name, target) or target)
    except (OSError, ValueError):  # a name that no file can have
        return False
    except DataError:  # it is there and faulty, as `load` says
        return True


def _there(root: str) -> str:
    """What a folder holds, in a line: its first folders by name, its files by extension."""
    path = Path(root)
    if not os.path.isdir(path):
        return f"a file with the extension {path.suffix or '(none)'}"
    try:
        entries = sorted(entry for entry in path.iterdir() if not hidden(entry.name))
    except OSError as error:
        raise DataError(f"cannot list folder {root!r}: {error.strerror}") from error
    folders = [entry.name for entry in entries if os.path.isdir(entry)]
    suffixes = Counter(
        entry.suffix.lower() or "(no extension)" for entry in entries if not os.path.isdir(entry)
    )
    files = few([f"{count} {suffix}" for suffix, count in suffixes.most_common()])
    return f"folders: {few(folders) or 'none'}; files: {files or 'none'}"


def _below(root: str) -> str:
    """A line on what each of the first folders in a folder holds."""
    folders = folders_in(Path(root))[:SHOWN] if os.path.isdir(root) else []
    lines = [f"\n  {shorten(folder.name)}: {_there(str(folder))}" for folder in folders]
    return "".join(line for line in lines if "folders: none; files: none" not in line)


def few(items: Iterable[object], shown: int = SHOWN) -> str:
    """The first of some names, and how many more there are: few("abcdefg") -> "a, b, c, d, e and 2 more"."""
    texts = [shorten(item) for item in items]
    return ", ".join(texts[:shown]) + _more(len(texts) - shown)


def shorten(text: object) -> str:
    """A user's own text for a message, without its end where it is long."""
    text = str(text)
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}... ({len(text)} characters)"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


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


class NotUtf8(DataError):
    """A text file in another encoding, which nothing says."""


def text_of(path: Path) -> str:
    """The text of an annotation file in UTF-8, with or without BOM; `DataError` names the line that is not."""
    try:
        data = read_bytes(path, ANNOTATIONS)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotUtf8(
            f"{path}, line {line}: not UTF-8 text; save the file as UTF-8, which Excel calls "
            "`CSV UTF-8` and editors have as `Encoding` when they save"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {shorten(path)!r}: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise DataError(f"cannot read {shorten(path)!r}: {error}") from error


def number(value: object) -> float | None:
    """A number, also one that is written as text ("12", " 1.0"), as some tools do; None for anything else.

    >>> number("12"), number(0.5), number(True), number("x")
    (12.0, 0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # no number, or too large for a float
        return None


def whole(value: object) -> int | None:
    """A whole number, also one that is written as text or as 640.0; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,300}\s*", value):
        return int(value)  # exactly: ids may have more digits than a float
    real = number(value)
    return int(real) if real is not None and real.is_integer() else None


def parse_classes(text: str, source: str) -> list[str]:
    """The class names of a file with one a line.

    A first line `__ignore__`, as in labelme's labels.txt, is no class: it stands for index -1, the
    pixels of none.
    """
    classes = [line.strip() for line in text.split("\n") if line.strip()]
    if classes and classes[0] == "__ignore__":
        classes = classes[1:]
    if not classes:
        raise DataError(f"{source} is empty: no class names")
    strange = next((name for name in classes if "\0" in name or len(name) > LONGEST_NAME), None)
    if strange is not None:
        raise DataError(f"{source}: no class name: {shorten(repr(strange))}; expected one a line")
    twice = next((name for name, count in Counter(classes).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{source}: class {shorten(twice)!r} is there twice")
    return classes


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
