"""What a split has to learn from: counts by class before the first step, and errors where too little is left.

A task that lost its targets looks perfect: its loss falls to zero and its metric has nothing to be
wrong about. So data are refused where most annotations fell away, where nothing is left to learn or
to measure, and where label maps have pixels of no class instead of those of a class that was
declared, as gray masks of 0 and 255 do.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from . import IGNORE, OF_PICTURES, Split, shorten

# label maps that are counted, spread over the split: a second or two, whatever its size
LOOKED_AT = 200
# share of the pixels: from here on, what is of no class may be the class that has none
ABOUND = 0.01
# side of a box in pixels: all boxes below it are shares of the picture rather than pixels
TINY = 1.0


@dataclass(frozen=True)
class Contents:
    """How much of each class a split has."""

    unit: str  # what is counted: "images", "tags", "objects" or "pixels"
    counts: list[int]  # in the order of the classes
    ignored: int = 0  # objects that are crowds, pixels of no class
    tiny: int = 0  # boxes with no side above a pixel
    # pictures: all of them, or of label maps some that are spread over the split
    looked_at: int = 0
    pictures: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts)

    def by_class(self, classes: list[str]) -> dict[str, int]:
        """Class name -> count; a name that is there twice has its index behind it."""
        twice = {name for name, count in Counter(classes).items() if count > 1}
        names = [
            f"{name} ({label})" if name in twice else name for label, name in enumerate(classes)
        ]
        return dict(zip(names, self.counts, strict=True))

    def text(self, classes: list[str], shown: int = 12) -> str:
        """One line: the counts of all classes, or where they are many of the largest and smallest."""
        ranked = sorted(self.by_class(classes).items(), key=lambda item: -item[1])
        if self.unit == "pixels":
            named = [
                f"{name} {_percent(count, self.total + self.ignored)}" for name, count in ranked
            ]
        else:
            named = [f"{name} {count}" for name, count in ranked]
        if len(named) > shown:
            named = [
                *named[: shown // 2],
                f"... ({len(named) - shown} more)",
                *named[-shown // 2 :],
            ]
        ending = ""
        if self.ignored:
            what = (
                _percent(self.ignored, self.total + self.ignored)
                if self.unit == "pixels"
                else self.ignored
            )
            ending = f"; of no class {what}" if self.unit == "pixels" else f"; crowds {what}"
        if self.looked_at < self.pictures:
            ending += f" (in {self.looked_at} label maps of {self.pictures})"
        return ", ".join(shorten(name) for name in named) + ending


def contents_of(split: Split, target: str) -> Contents:
    """Count what a split has of each class.

    Of label maps `LOOKED_AT` are read, spread over the split; the rest only while a class has no
    pixel in them and pixels of no class abound. Maps that cannot be read are left out here; reading
    them in training names them.
    """
    if target == "semantic":
        return _of_maps(split)
    counts = np.zeros(len(split.classes), np.int64)
    pictures = len(split.samples)
    if target in OF_PICTURES:
        for sample in split.samples:
            counts[sample.labels()] += 1
        unit = "tags" if target == "tags" else "images"
        return Contents(unit, counts.tolist(), looked_at=pictures, pictures=pictures)
    crowds = tiny = 0
    for sample in split.samples:
        for item in sample.objects or ():
            x0, y0, x1, y1 = item.box
            tiny += x1 - x0 <= TINY and y1 - y0 <= TINY
            crowds += item.crowd
            counts[item.label] += not item.crowd
    return Contents("objects", counts.tolist(), crowds, tiny, pictures, pictures)


def _of_maps(split: Split) -> Contents:
    pictures, classes = len(split.samples), len(split.classes)
    first = sorted({round(i) for i in np.linspace(0, pictures - 1, min(LOOKED_AT, pictures))})
    rest = sorted(set(range(pictures)) - set(first))
    counts, looked_at = np.zeros(256, np.int64), 0
    for place, index in enumerate([*first, *rest]):
        if place >= len(first) and not _suspicious(counts[:classes], int(counts[IGNORE])):
            break
        semantic = split.samples[index].semantic
        try:
            counts += np.bincount(semantic().ravel(), minlength=256) if semantic is not None else 0
        except DataError:
            continue
        looked_at += 1
    return Contents(
        "pixels", counts[:classes].tolist(), int(counts[IGNORE]), 0, looked_at, pictures
    )


def _suspicious(counts: np.ndarray, ignored: int) -> bool:
    """Whether pixels of no class may be those of a class that has none.

    Only one class has pixels, or a single one has none and it is the first or the last, as white or
    black would be.
    """
    missing = np.flatnonzero(counts == 0).tolist()
    if not missing or not ignored:
        return False
    if len(missing) >= len(counts) - 1:
        return True
    abound = ignored >= ABOUND * (int(counts.sum()) + ignored)
    return abound and len(missing) == 1 and missing[0] in (0, len(counts) - 1)


def check_usable(
    split: Split, contents: Contents, max_bad: float = 0.5, learn: bool = True
) -> None:
    """Raise `DataError` where a split has too little left to learn from, or, without `learn`, to measure on.

    `max_bad` is the largest share of annotations that may have fallen away; with 1 only an empty
    split is refused.
    """
    where = f"{split.source.split} ({split.source})" if split.source else "the split"
    aim = "learn from" if learn else "measure on"
    first = f". The first: {split.skipped[0]}" if split.skipped else ""
    check_lost(split, max_bad)
    if not contents.total:
        what = (
            "pixel of any class" if contents.unit == "pixels" else contents.unit.removesuffix("s")
        )
        crowds = (
            f"; {contents.ignored} crowds do not count"
            if contents.ignored and contents.unit == "objects"
            else ""
        )
        raise DataError(
            f"{where}: nothing to {aim}: no {what} in {contents.pictures} images{crowds}{first}"
        )
    objects = contents.total + contents.ignored
    if contents.unit == "objects" and contents.tiny > max_bad * objects:
        raise DataError(
            f"{where}: {contents.tiny} of {objects} boxes have no side above a pixel, more than "
            f"the share of {max_bad:g} that --max-bad allows. Are they shares of the picture (0 to "
            "1), where this format has pixels?"
        )
    if contents.unit == "tags" and learn and max_bad < 1:
        _check_tags(contents, where)
    if contents.unit in ("objects", "tags") or len(contents.counts) < 2 or max_bad >= 1:
        return
    if contents.unit == "pixels":
        _check_maps(split, contents, where, learn)
    present = [name for name, count in zip(split.classes, contents.counts, strict=True) if count]
    if learn and len(present) == 1:
        raise DataError(
            f"{where}: all {contents.unit} are of the class {shorten(present[0])!r}, so there is "
            f"nothing to tell apart, though {len(contents.counts)} classes are declared; --max-bad "
            "1 takes the data as they are"
        )


def _check_tags(contents: Contents, where: str) -> None:
    """Raise `DataError` where all pictures have the same tags, so that there is no picture without."""
    if set(contents.counts) <= {0, contents.pictures}:
        tags = sum(map(bool, contents.counts))
        raise DataError(
            f"{where}: all {contents.pictures} pictures have the same tags ({tags} of "
            f"{len(contents.counts)} classes), so there is nothing to tell apart; --max-bad 1 takes "
            "the data as they are"
        )


def check_lost(split: Split, max_bad: float) -> None:
    """Raise `DataError` where more than a share of a split's annotations fell away while they were read."""
    lost, read = split.annotations.lost(), split.annotations.read
    if lost > max_bad * read:
        where = f"{split.source.split} ({split.source})" if split.source else "the split"
        first = f". The first: {split.skipped[0]}" if split.skipped else ""
        raise DataError(
            f"{where}: {split.annotations}, more than the share of {max_bad:g} that --max-bad "
            f"allows{first}"
        )


def _check_maps(split: Split, contents: Contents, where: str, learn: bool) -> None:
    counts = np.array(contents.counts)
    missing = [split.classes[i] for i in np.flatnonzero(counts == 0)]
    alone = len(missing) == len(counts) - 1
    if not _suspicious(counts, contents.ignored) or not (alone or learn):
        return
    share = _percent(contents.ignored, contents.total + contents.ignored)
    raise DataError(
        f"{where}: no pixel is of the class {', '.join(map(shorten, missing[:5]))}, but {share} of "
        f"the pixels have the value {IGNORE}, which is of no class and neither learned nor "
        f"measured. If {IGNORE} (white) is meant as a class, write a line `255 255 255 NAME` and "
        "one for each other color into colors.txt, or save the label maps with indices 0, 1, 2, "
        "...; if it is not, --max-bad 1 takes the data as they are"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3g} %"
