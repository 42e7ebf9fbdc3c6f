"""Labels by name: annotations of one set of classes put into the order of another, and classes left out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import DataError, suggest
from . import IGNORE, Sample, Split
from ._texts import and_more

SHOWN = 5  # unknown classes that a message names at most


@dataclass(frozen=True)
class Renumbered:
    """A label map of a sample with other numbers for its classes."""

    read: Callable[[], np.ndarray]
    numbers: tuple[int, ...]  # of 256 values

    def __call__(self) -> np.ndarray:
        return np.array(self.numbers, np.uint8)[self.read()]


def by_name(split: Split, classes: Sequence[str], whose: str) -> Split:
    """The split with labels that index `classes`, as the names say; classes that it lacks are no error.

    `whose` classes these are goes into the message. Raises `DataError` for a class that is
    annotated in the split and not among `classes`, naming it and how often; of label maps, which
    are not read for that, for one that is declared.
    """
    if split.classes == list(classes):
        return split
    index = {name: i for i, name in enumerate(classes)}
    _check_known(split, index, whose)
    # A class that nothing is annotated with may be unknown: its number is never used.
    numbers = [index.get(name, 0) for name in split.classes]
    samples = [_renumbered(sample, numbers) for sample in split.samples]
    return replace(split, samples=samples, classes=list(classes), ids=_ids(split, classes))


def only(split: Split, names: Sequence[str]) -> Split:
    """The split with the objects of the classes of these names alone; pictures without them stay."""
    labels = {label for label, name in enumerate(split.classes) if name in names}
    samples = [
        sample
        if sample.objects is None
        else replace(sample, objects=tuple(item for item in sample.objects if item.label in labels))
        for sample in split.samples
    ]
    return replace(split, samples=samples)


def _check_known(split: Split, index: dict[str, int], whose: str) -> None:
    used: Counter[str] = Counter()
    for sample in split.samples:
        used.update(split.classes[label] for label in sample.labels())
        if sample.semantic is not None:
            used.update(dict.fromkeys(split.classes, 0))
    unknown = [name for name in split.classes if name in used and name not in index]
    if not unknown:
        return
    many = len(unknown)
    counted = [
        f"{name!r}" + (f" ({used[name]} times)" if used[name] else "") for name in unknown[:SHOWN]
    ]
    more = and_more(many - SHOWN)
    what = "a class" if many == 1 else f"{many} classes"
    raise DataError(
        f"the data has {what} that {whose} does not know: {', '.join(counted)}{more}. Labels go by "
        f"the names of the classes: {suggest(unknown[0], index)}. Rename what is the same, and "
        "leave out what is not"
    )


def _renumbered(sample: Sample, numbers: Sequence[int]) -> Sample:
    semantic = sample.semantic
    if semantic is not None:
        # Values that are no class, such as IGNORE, stay.
        semantic = Renumbered(semantic, (*numbers, *range(len(numbers), IGNORE + 1)))
    objects = sample.objects
    if objects is not None:
        objects = tuple(replace(item, label=numbers[item.label]) for item in objects)
    label = None if sample.label is None else numbers[sample.label]
    tags = sample.tags
    if tags is not None:
        tags = tuple(sorted({numbers[tag] for tag in tags}))
    return replace(sample, label=label, tags=tags, objects=objects, semantic=semantic)


def _ids(split: Split, classes: Sequence[str]) -> list[int] | None:
    """Category ids in the order of `classes`: those of the annotation file, and new ones for classes it lacks."""
    if split.ids is None:
        return None
    of_name = dict(zip(split.classes, split.ids, strict=True))
    new = max(split.ids) + 1
    ids = []
    for name in classes:
        if name not in of_name:
            of_name[name] = new
            new += 1
        ids.append(of_name[name])
    return ids
