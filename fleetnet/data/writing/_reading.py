"""All that a data set has, split by split, as it is: nothing is held back for val that it does not hold back itself."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ...errors import DataError
from .. import NoSplit, Places, Sample, Split, few, hold_out, load
from .._names import by_name

WHOLE = "all"  # the name of data without splits
NAMES = ("train", "val", "test")


def splits_of(
    root: str, format: str | None, target: str, elsewhere: Places, split: str | None = None
) -> dict[str, Split]:
    """The splits of the data at `root` by their names, those without splits by `WHOLE`; or the one asked for.

    They have one list of classes. Raises as `load` does.
    """

    def read(name: str) -> Split:
        return load(root, name, format, target, *elsewhere)

    if split is not None:
        return {split: read(split)}
    there: dict[str, Split] = {}
    for name in ("train", "test"):
        with suppress(NoSplit):
            there[name] = read(name)
    source = there["train"].source if "train" in there else None
    if source is None or source.take == "all":
        with suppress(NoSplit):
            there["val"] = read("val")
    elif "test" in there:
        with suppress(DataError):  # one picture alone, of which none is held back
            there["train"] = _together(there["train"], read("val"))
    else:
        return {WHOLE: read(WHOLE)}
    return _of_one_list(_without_twins({name: there[name] for name in NAMES if name in there}))


def part_of(name: str) -> str:
    """The folder of a split within others, ".../train"; "" of data without splits."""
    return "" if name == WHOLE else name


def _together(rest: Split, held: Split) -> Split:
    """All samples of train, of which we would hold back a part, in the order that they have in the data.

    Each class of a label for itself is a part of both: `hold_out` takes of each.
    """
    labels = dict.fromkeys(sample.label for sample in (*rest.samples, *held.samples))
    samples: list[Sample] = []
    for label in sorted(labels, key=lambda label: -1 if label is None else label):
        groups = [
            [sample for sample in split.samples if sample.label == label] for split in (rest, held)
        ]
        samples += _in_order(*groups)
    source = rest.source and replace(rest.source, take="all")
    skipped = list(dict.fromkeys([*rest.skipped, *held.skipped]))
    return replace(rest, samples=samples, skipped=skipped, source=source)


def _in_order(rest: Sequence[Sample], held: Sequence[Sample]) -> list[Sample]:
    count = len(rest) + len(held)
    places = set(hold_out(range(count), "val"))
    others, kept = iter(rest), iter(held)
    return [next(kept if i in places else others) for i in range(count)]


def _without_twins(splits: dict[str, Split]) -> dict[str, Split]:
    """Without val where it is test, which stands for it."""
    val, test = (
        [sample.image for sample in splits[name].samples] if name in splits else None
        for name in ("val", "test")
    )
    return {name: split for name, split in splits.items() if name != "val" or val != test}


def _of_one_list(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits with labels that index one list: that of the first, and behind it what only others have."""
    first = next(iter(splits.values()))
    classes = list(dict.fromkeys(name for split in splits.values() for name in split.classes))
    if all(split.classes == first.classes for split in splits.values()):
        return splits
    more = classes[len(first.classes) :]
    line = f"classes that other splits have and {next(iter(splits))} has not: {few(more)}"
    return {
        name: replace(
            by_name(split, classes, "the data"),
            ids=None,
            skipped=[line, *split.skipped] if more and split is first else split.skipped,
        )
        for name, split in splits.items()
    }
