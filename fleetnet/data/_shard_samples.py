"""The samples of shards: what their texts say, with classes as numbers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..reading import Fields, Member
from . import (
    Notes,
    Object,
    Sample,
    few,
    fit_box,
    hold_out,
    hold_out_of_each,
    measured,
    note_turned,
    number,
    shorten,
)
from ._conventions import split_of
from ._masks import area_of, why_no_mask
from ._shard_classes import (
    Classes,
    check_lists,
    declared,
    fitted,
    may_count_from_one,
    missing,
    of_labels,
)
from ._shard_index import Index
from ._shard_texts import Label, Told, box_of, label_of_object, label_of_text, parse
from .masks import read as read_map

DISTINCT = 0.5  # share of texts that differ, above which .txt are captions and no names of classes


@dataclass(frozen=True, slots=True)
class Row:
    """A sample of a shard."""

    index: Index
    number: int  # in the shard

    @property
    def entry(self) -> str:
        return f"{self.index.archive.path}: {self.index.keys[self.number]}"

    @property
    def has_picture(self) -> bool:
        return bool(self.index.pictures.place[self.number])

    @property
    def has_map(self) -> bool:
        return bool(self.index.maps.place[self.number])

    @property
    def picture(self) -> Member:
        return self.index.member(self.index.pictures, self.number)

    def text(self, part: str) -> bytes:
        return self.index.texts[part][self.number]

    def told(self) -> Told:
        cls, text = self.text("cls"), self.text("json")
        return parse(cls, text, self.entry) if text else _alone(cls, self.index.archive.path)


class Annotated(NamedTuple):
    """A sample with the classes that it shows, before these are numbered."""

    row: Row
    told: Told
    labels: Sequence[Label]


@lru_cache(maxsize=1 << 12)  # a class has many samples
def _alone(cls: bytes, shard: Path) -> Told:
    """What a `.cls` says where there is no `.json`."""
    return parse(cls, b"", str(shard))


@dataclass
class Reader:
    """Makes samples of the rows of a split."""

    target: str
    split: str  # "all" of data without splits
    files: Sequence[Path]  # the shards of the split
    others: Callable[[], Sequence[Row]]  # the samples of the other splits
    notes: Notes
    turned: list[Member] = field(default_factory=list)  # pictures that EXIF turns

    def samples(self, rows: Sequence[Row], take: str) -> tuple[list[Sample], Classes] | None:
        """The samples with an annotation of the kind, and their classes; `take` as in `Part`.

        None where no sample has one.
        """
        if self.target == "semantic":
            return self._with_maps(rows, take)
        annotated = self._annotated(rows)
        if not annotated:
            return None
        self._say_without(len(rows) - len(annotated), "no annotation of this kind")
        classes = self._classes(annotated)
        numbers: dict[Label, int] = {}
        for one in annotated:
            for label in one.labels:
                if label not in numbers:
                    numbers[label] = classes.index(label, one.row.entry)
        if self.target == "label":
            chosen = hold_out_of_each(annotated, [one.labels[0] for one in annotated], take)
        else:
            chosen = hold_out(annotated, take)
        made = [self._sample(one, numbers) for one in chosen]
        note_turned(self.turned, self.notes)
        return [sample for sample in made if sample is not None], classes

    # ---- which classes a sample shows ----------------------------------------------------------

    def _annotated(self, rows: Sequence[Row]) -> list[Annotated]:
        """The samples that are annotated with the kind; of labels, those of .txt where no other has one."""
        told = [(row, row.told()) for row in rows]
        annotated = [
            Annotated(row, one, labels)
            for row, one in told
            if (labels := self._labels(one, row)) is not None
        ]
        if annotated or self.target not in ("label", "tags"):
            return annotated
        texts = [(row, one, label_of_text(row.text("txt"))) for row, one in told]
        named = [(row, one, text) for row, one, text in texts if text is not None]
        distinct = len({text for _, _, text in named})
        if len(named) < len(rows) or distinct > max(DISTINCT * len(named), 1):
            return []
        return [Annotated(row, one, [text]) for row, one, text in named]

    def _labels(self, told: Told, row: Row) -> Sequence[Label] | None:
        """The classes that the texts of a sample say; None where it is not annotated with the kind."""
        label = [] if told.label is None else [told.label]
        if self.target == "label":
            return label or None
        if self.target == "tags" and told.tags is not None:
            _check_no_flags(told.tags, row)
            return told.tags
        if told.objects is not None:
            return [label_of_object(item, row.entry) for item in told.objects]
        return (label or None) if self.target == "tags" else None

    def _classes(self, annotated: Sequence[Annotated]) -> Classes:
        """The classes that a file names, else those of the texts of all splits."""
        labels = _labels_in(annotated)
        of_file = declared(self._folders(), self.split)
        every = annotated
        if of_file is None or may_count_from_one(labels):
            # 1 and 2 alone may count from 0 or from 1: the other splits have more numbers
            every = [*annotated, *self._annotated(self.others())]
            labels = _labels_in(every)
        where = str(self.files[0].parent)
        if self.target in ("label", "tags"):
            check_lists(labels, of_file.names if of_file else [], where)
        if of_file is not None:
            classes = fitted(of_file, labels)
        else:
            classes = of_labels(labels, _names(every), where)
        line = missing(classes, labels)
        if line:
            self.notes.say(line)
        return classes

    def _folders(self) -> list[Path]:
        """Where a file of class names may lie: beside the shards, or above the folder of a split."""
        folder = self.files[0].parent
        is_of_split = split_of(folder.absolute().name) is not None
        return [folder, folder.absolute().parent] if is_of_split else [folder]

    def _say_without(self, count: int, what: str) -> None:
        if count:
            self.notes.say(f"{self.files[0].parent}: {count} samples have {what}; left out")

    # ---- samples -------------------------------------------------------------------------------

    def _sample(self, one: Annotated, numbers: dict[Label, int]) -> Sample | None:
        if self.target == "label":
            return Sample(one.row.picture, numbers[one.labels[0]], id=one.told.id)
        if self.target == "tags":
            tags = tuple(sorted({numbers[label] for label in one.labels}))
            return Sample(one.row.picture, id=one.told.id, tags=tags)
        picture = one.row.picture
        size = one.told.size or measured(picture, self.notes, self.turned)
        objects = one.told.objects or []
        self.notes.read += len(objects)
        if size is None:
            self.notes.drop("of pictures left out", count=len(objects))
            return None
        labeled = zip(objects, one.labels, strict=True)
        items = [
            self._object(row, numbers[label], size, f"{one.row.entry}, object {i}")
            for i, (row, label) in enumerate(labeled)
        ]
        return Sample(picture, objects=tuple(item for item in items if item), id=one.told.id)

    def _object(self, row: Fields, label: int, size: tuple[int, int], entry: str) -> Object | None:
        """One object; None where it is dropped. `size` is the picture's (height, width)."""
        fitted_box = fit_box(box_of(row, entry), size, entry, self.notes)
        if not fitted_box:
            return None
        mask = row.get("segmentation")
        problem = "" if self.target == "boxes" else why_no_mask(mask, size, entry)
        if problem and self.target == "masks":
            self.notes.drop("without a usable mask", f"{entry}: dropped, {problem}")
            return None
        crowd = row.get("crowd", row.get("iscrowd", 0))
        if not isinstance(crowd, bool) and number(crowd) is None:
            raise DataError(f"{entry}: crowd is {shorten(repr(crowd))}; expected true or false")
        is_crowd = crowd if isinstance(crowd, bool) else number(crowd) != 0
        mask = None if problem or self.target == "boxes" else mask
        return Object(fitted_box, label, mask, is_crowd, area_of(row.get("area")))

    def _with_maps(self, rows: Sequence[Row], take: str) -> tuple[list[Sample], Classes] | None:
        pairs = [(row, row.index.member(row.index.maps, row.number)) for row in rows if row.has_map]
        if not pairs:
            return None
        self._say_without(len(rows) - len(pairs), "no label map")
        classes = declared(self._folders(), self.split)
        if classes is None:
            raise DataError(
                f"no class names beside {few([self.files[0]])}: put them into classes.txt there, one "
                "a line, in the order of the values of the label maps"
            )
        self.notes.read += len(pairs)
        read = partial(read_map, classes=len(classes.names), first=classes.first)
        samples = [
            Sample(row.picture, semantic=partial(read, labels, row.picture), id=row.told().id)
            for row, labels in hold_out(pairs, take)
        ]
        return samples, classes


def _check_no_flags(tags: Sequence[Label], row: Row) -> None:
    """`DataError` for tags that say 0 or 1 of each class: one of them comes twice."""
    if len(tags) > len(set(tags)) and set(tags) <= {0, 1}:
        raise DataError(
            f"{row.entry}: tags are {shorten(tags)}, 0 or 1 for each class; expected the names or "
            "numbers of those that are there"
        )


def _labels_in(annotated: Iterable[Annotated]) -> set[Label]:
    return {label for one in annotated for label in one.labels}


def _names(annotated: Iterable[Annotated]) -> dict[int, str]:
    """The names that texts give to numbers of classes; none where they give one number two names."""
    names: dict[int, str] = {}
    for one in annotated:
        label, name = one.told.label, one.told.name
        if isinstance(label, int) and name is not None and names.setdefault(label, name) != name:
            return {}
    return names
