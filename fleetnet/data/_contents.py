"""What a split has to learn from: counts by class, before the first step."""

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
                f"{name} {percent(count, self.total + self.ignored)}" for name, count in ranked
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
                percent(self.ignored, self.total + self.ignored)
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
        if place >= len(first) and not suspicious(counts[:classes], int(counts[IGNORE])):
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


def suspicious(counts: np.ndarray, ignored: int) -> bool:
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


def check_lost(split: Split, max_bad: float) -> None:
    """Raise `DataError` where more than a share of a split's annotations fell away while they were read."""
    if text := too_much_lost(split, max_bad):
        raise DataError(text)


def too_much_lost(split: Split, max_bad: float) -> str:
    """What `check_lost` says; "" where enough is left."""
    lost, read = split.annotations.lost(), split.annotations.read
    if lost <= max_bad * read:
        return ""
    first = f". The first: {split.skipped[0]}" if split.skipped else ""
    return (
        f"{named(split)}: {split.annotations}, more than the share of {max_bad:g} that --max-bad "
        f"allows{first}"
    )


def named(split: Split) -> str:
    """What a split is called in a message."""
    return f"{split.source.split} ({split.source})" if split.source else "the split"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3g} %"
