"""A second look at data before they are learned: what does not make sense, as findings.

    usable      what is left of a split is enough to learn from, or to measure on
    annotated   what the annotations say of themselves, without opening a picture
    copies      pictures that are there twice, exactly or nearly; `prints` tells them
    look        every picture is decoded, in worker processes
    pictures    what that shows
    whole       all of it, of all splits: `fleetnet data check`

Training asks the first three before its first step, and ends for an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..data import Sample
from ..errors import DataError

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = "error", "warning", "note"

# kind -> the levels that it may have. An error makes a training or its figures wrong; a warning is
# worth a look; a note says what may be as it should be.
KINDS: dict[str, tuple[Level, ...]] = {
    "lost-annotations": ("error", "warning"),
    "nothing-there": ("error",),
    "boxes-below-a-pixel": ("error",),
    "ignored-class": ("error",),
    "one-class-only": ("error",),
    "unreadable": ("error", "warning"),
    "outside": ("error", "warning"),
    "left-out": ("warning",),
    "unused": ("warning",),
    "several-labels": ("warning",),
    "turned": ("warning",),
    "empty-class": ("warning",),
    "class-not-learned": ("error", "warning"),
    "class-not-measured": ("note",),
    "alike-names": ("warning",),
    "one-class-dominates": ("warning",),
    "few-examples": ("note",),
    "few-pixels": ("warning",),
    "same-box": ("warning",),
    "same-box-two-classes": ("note",),
    "whole-picture-boxes": ("warning",),
    "shared": ("warning",),
    "shared-nearly": ("warning",),
    "copies": ("note",),
    "copies-nearly": ("note",),
    "labeled-twice": ("warning",),
    "deep-values": ("note",),
    "small-pictures": ("note",),
    "small-objects": ("note",),
}


@dataclass(frozen=True)
class Finding:
    """One thing about data that does not make sense, or that is good to know."""

    kind: str  # of KINDS
    level: Level
    text: str  # a sentence: what it is, and the way out
    count: int = 1  # pictures, objects, classes or files that it is about
    items: tuple[str, ...] = ()  # these by name, where they have names
    split: str = ""  # that it is about; "" for all of them

    def __post_init__(self) -> None:
        if self.level not in KINDS[self.kind]:
            raise ValueError(f"{self.kind} is no {self.level}: {KINDS[self.kind]}")

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "level": self.level,
            "split": self.split,
            "text": self.text,
            "count": self.count,
            "items": list(self.items),
        }


def finding(
    kind: str, level: Level, text: str, things: Iterable[object], split: str = ""
) -> list[Finding]:
    """A finding about some things; none where there is none."""
    items = tuple(map(str, things))
    return [Finding(kind, level, text, len(items), items, split)] if items else []


def name_of(sample: Sample) -> str:
    """The file of a sample, or what says which it is."""
    return f"sample {sample.id}" if callable(sample.image) else str(sample.image)


def counted(count: int, thing: str, of: int | None = None) -> str:
    """A subject with its verb.

    >>> counted(1, "picture"), counted(2, "class", 3)
    ('1 picture is', '2 classes of 3 are')
    """
    things = thing if count == 1 else thing + ("es" if thing.endswith(("s", "x")) else "s")
    return (
        f"{count} {things}"
        + (f" of {of}" if of is not None else "")
        + (" is" if count == 1 else " are")
    )


def corners(box: Iterable[float]) -> str:
    """The corners of a box, as "(x0, y0, x1, y1)"."""
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise as they come."""
    return sorted(findings, key=lambda one: LEVELS.index(one.level))


def enforce(findings: Iterable[Finding]) -> None:
    """Raise `DataError` with the text of the first error, if there is one."""
    for one in findings:
        if one.level == "error":
            raise DataError(one.text)
