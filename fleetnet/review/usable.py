"""Whether a split has enough left to learn from, or to measure on.

A task that lost its targets looks perfect: its loss falls to zero and its metric has nothing to be
wrong about. So data are refused where most annotations fell away, where nothing is left to learn or
to measure, and where label maps have pixels of no class instead of those of a class that was
declared, as gray masks of 0 and 255 do.
"""

import numpy as np

from ..data import IGNORE, Split, shorten
from ..data._contents import Contents, named, percent, suspicious, too_much_lost
from . import Finding, enforce


def check_usable(
    split: Split, contents: Contents, max_bad: float = 0.5, learn: bool = True
) -> None:
    """Raise `DataError` where a split has too little left to learn from, or, without `learn`, to measure on.

    `max_bad` is the largest share of annotations that may have fallen away; with 1 only an empty
    split is refused.
    """
    enforce(usable(split, contents, max_bad, learn))


def usable(
    split: Split, contents: Contents, max_bad: float = 0.5, learn: bool = True
) -> list[Finding]:
    """What `check_usable` raises for, as findings, and a warning where annotations fell away."""
    where, part = named(split), split.source.split if split.source else ""
    lost = _lost(split, max_bad, part)
    if not contents.total:
        return [*lost, _nothing(split, contents, where, part, learn)]
    return [
        *lost,
        *_below_a_pixel(contents, max_bad, where, part),
        *(_of_one_class(split, contents, where, part, learn) if max_bad < 1 else ()),
    ]


def _lost(split: Split, max_bad: float, part: str) -> list[Finding]:
    lost = split.annotations.lost()
    if not lost:
        return []
    text = too_much_lost(split, max_bad)
    if text:
        return [Finding("lost-annotations", "error", text, lost, (), part)]
    return [Finding("lost-annotations", "warning", f"{part}: {split.annotations}", lost, (), part)]


def _nothing(split: Split, contents: Contents, where: str, part: str, learn: bool) -> Finding:
    aim = "learn from" if learn else "measure on"
    what = "pixel of any class" if contents.unit == "pixels" else contents.unit.removesuffix("s")
    has_crowds = contents.ignored and contents.unit == "objects"
    crowds = f"; {contents.ignored} crowds do not count" if has_crowds else ""
    text = (
        f"{where}: nothing to {aim}: no {what} in {contents.pictures} images{crowds}{_first(split)}"
    )
    return Finding("nothing-there", "error", text, contents.pictures, (), part)


def _first(split: Split) -> str:
    return f". The first: {split.skipped[0]}" if split.skipped else ""


def _below_a_pixel(contents: Contents, max_bad: float, where: str, part: str) -> list[Finding]:
    objects = contents.total + contents.ignored
    if contents.unit != "objects" or contents.tiny <= max_bad * objects:
        return []
    text = (
        f"{where}: {contents.tiny} of {objects} boxes have no side above a pixel, more than the "
        f"share of {max_bad:g} that --max-bad allows. Are they shares of the picture (0 to 1), "
        "where this format has pixels?"
    )
    return [Finding("boxes-below-a-pixel", "error", text, contents.tiny, (), part)]


def _of_one_class(
    split: Split, contents: Contents, where: str, part: str, learn: bool
) -> list[Finding]:
    """Of several classes that are declared, one has all that there is, or pixels of none abound."""
    if contents.unit == "tags":
        return _same_tags(contents, where, part) if learn else []
    if contents.unit == "objects" or len(contents.counts) < 2:
        return []
    ignored = _ignored(split, contents, where, part, learn) if contents.unit == "pixels" else []
    present = [name for name, count in zip(split.classes, contents.counts, strict=True) if count]
    if ignored or not learn or len(present) > 1:
        return ignored
    text = (
        f"{where}: all {contents.unit} are of the class {shorten(present[0])!r}, so there is "
        f"nothing to tell apart, though {len(contents.counts)} classes are declared; --max-bad 1 "
        "takes the data as they are"
    )
    return [Finding("one-class-only", "error", text, contents.total, (), part)]


def _same_tags(contents: Contents, where: str, part: str) -> list[Finding]:
    """All pictures have the same tags, so that there is no picture without."""
    if not set(contents.counts) <= {0, contents.pictures}:
        return []
    tags = sum(map(bool, contents.counts))
    text = (
        f"{where}: all {contents.pictures} pictures have the same tags ({tags} of "
        f"{len(contents.counts)} classes), so there is nothing to tell apart; --max-bad 1 takes "
        "the data as they are"
    )
    return [Finding("one-class-only", "error", text, contents.total, (), part)]


def _ignored(split: Split, contents: Contents, where: str, part: str, learn: bool) -> list[Finding]:
    counts = np.array(contents.counts)
    missing = [split.classes[i] for i in np.flatnonzero(counts == 0)]
    alone = len(missing) == len(counts) - 1
    if not suspicious(counts, contents.ignored) or not (alone or learn):
        return []
    share = percent(contents.ignored, contents.total + contents.ignored)
    text = (
        f"{where}: no pixel is of the class {', '.join(map(shorten, missing[:5]))}, but {share} of "
        f"the pixels have the value {IGNORE}, which is of no class and neither learned nor "
        f"measured. If {IGNORE} (white) is meant as a class, write a line `255 255 255 NAME` and "
        "one for each other color into colors.txt, or save the label maps with indices 0, 1, 2, "
        "...; if it is not, --max-bad 1 takes the data as they are"
    )
    return [Finding("ignored-class", "error", text, contents.ignored, (), part)]
