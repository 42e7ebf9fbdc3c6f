"""What the annotations of splits say of themselves and of each other, without opening a picture."""

import re
from collections.abc import Mapping, Sequence

from ..data import Object, Split, shorten, turned_line
from ..data._contents import Contents
from ..data._names import by_name
from ..errors import DataError
from . import Finding, corners, counted, finding, name_of
from .usable import usable

DOMINATES = 0.99  # share of one class among several
FEW = 10  # images or objects of a class to learn from
Splits = Mapping[str, Split]  # "train", "val", "test" -> what was read


def annotated(
    splits: Splits, contents: Mapping[str, Contents], max_bad: float = 0.5
) -> list[Finding]:
    """All findings that need no picture: what training says, and ends for, before its first step."""
    findings: list[Finding] = []
    for name, split in splits.items():
        findings += usable(split, contents[name], max_bad, learn=name == "train")
        findings += _unreadable(split, name, max_bad)
        findings += _passed_over(split, name)
        findings += _same_boxes(split, name)
    learned = splits.get("train")
    if learned is not None:
        findings += _names(learned)
        findings += _unknown(splits, learned)
        findings += _classes(splits, contents)
    return findings


def _unreadable(split: Split, name: str, max_bad: float) -> list[Finding]:
    """Pictures that were opened for their size, as boxes need it, and could not be."""
    lines = split.annotations.unreadable
    return unreadable(lines, len(split.samples) + len(lines), name, max_bad)


def unreadable(lines: Sequence[str], total: int, name: str, max_bad: float) -> list[Finding]:
    """What was not read of `total` samples, each with the reason."""
    text = f"{name}: {counted(len(lines), 'picture', total)} not readable, and left out"
    if len(lines) <= max_bad * total:
        return finding("unreadable", "warning", text, lines, name)
    text = f"{text}: more than the share of {max_bad:g} that --max-bad allows"
    return finding("unreadable", "error", text, lines, name)


def _passed_over(split: Split, name: str) -> list[Finding]:
    """What a format said while it read: pictures that are turned, what is not used, what is left out."""
    turned = split.annotations.turned
    said = {
        turned_line(turned),
        *split.unused,
        *(f"{line}; left out" for line in split.annotations.unreadable),
    }
    return [
        *finding(
            "turned",
            "warning",
            f"{name}: {counted(len(turned), 'annotated picture')} turned or mirrored by an EXIF "
            "orientation: annotations are taken as of the upright picture; check that they lie right",
            turned,
            name,
        ),
        *finding("unused", "warning", f"{name}: beside the data, and not used", split.unused, name),
        *finding(
            "left-out",
            "warning",
            f"{name}: left out, or read otherwise than it is written",
            [line for line in split.skipped if line not in said],
            name,
        ),
    ]


def _same_boxes(split: Split, name: str) -> list[Finding]:
    """Objects of one picture whose boxes are the same, of one class or of two."""
    one_class: list[str] = []
    two_classes: list[str] = []
    for sample in split.samples:
        boxes: dict[tuple[float, ...], Object] = {}
        for item in sample.objects or ():
            other = boxes.setdefault(item.box, item)
            if other is item or item.crowd or other.crowd:
                continue
            if other.label == item.label:
                one_class.append(
                    f"{name_of(sample)}: {split.classes[item.label]} {corners(item.box)}"
                )
            else:
                classes = f"{split.classes[other.label]} and {split.classes[item.label]}"
                two_classes.append(f"{name_of(sample)}: {classes} {corners(item.box)}")
    return [
        *finding(
            "same-box",
            "warning",
            f"{name}: {counted(len(one_class), 'object')} there twice, with the same box and class: "
            "each is learned and measured twice; delete one of them",
            one_class,
            name,
        ),
        *finding(
            "same-box-two-classes",
            "note",
            f"{name}: {counted(len(two_classes), 'box')} there twice, with different classes",
            two_classes,
            name,
        ),
    ]


def _names(train: Split) -> list[Finding]:
    """Names of classes that differ by case, spaces, - and _ alone."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(train.classes):
        groups.setdefault(re.sub(r"[\s_-]+", " ", name.strip()).casefold(), []).append(name)
    alike = [
        " and ".join(repr(shorten(name)) for name in group)
        for group in groups.values()
        if len(group) > 1
    ]
    text = "names of classes that differ by case, spaces or dashes alone: are they one class?"
    return finding("alike-names", "warning", text, alike)


def _classes(splits: Splits, contents: Mapping[str, Contents]) -> list[Finding]:
    """What there is of each class to learn from, and whether it is measured too."""
    learned = splits["train"]
    unit = {"tags": "images"}.get(contents["train"].unit, contents["train"].unit)
    counts = _by_class(contents["train"], learned)
    total = contents["train"].total
    thing = unit.removesuffix("s")
    # Of label maps a sample is counted; the full look counts them all.
    is_whole = contents["train"].looked_at >= contents["train"].pictures
    findings: list[Finding] = []
    if total:
        empty = [name for name, count in counts.items() if not count]
        where = "" if is_whole else f" in {contents['train'].looked_at} label maps looked at"
        findings += finding(
            "empty-class",
            "warning",
            f"{counted(len(empty), 'class', len(counts))} declared without one {thing} in "
            f"train{where}: nothing is learned of it, and the network keeps an output for it",
            empty,
            "train",
        )
        findings += _dominating(counts, total, contents["train"].unit)
    if unit != "pixels":
        few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW]
        findings += finding(
            "few-examples",
            "note",
            f"{counted(len(few), 'class', len(counts))} there with fewer than {FEW} {unit} in train",
            few,
            "train",
        )
    if "val" in splits and total:
        measured = _by_class(contents["val"], splits["val"])
        findings += _between(counts, measured, thing)
    return findings


def _by_class(contents: Contents, split: Split) -> dict[str, int]:
    return {shorten(name): count for name, count in contents.by_class(split.classes).items()}


def _unknown(splits: Splits, learned: Split) -> list[Finding]:
    """Classes of other splits that train does not even declare: a network cannot be measured with them."""
    findings = []
    for name, split in splits.items():
        try:
            by_name(split, learned.classes, "the training data")
        except DataError as error:
            unknown = tuple(one for one in split.classes if one not in learned.classes)
            text = f"{name}: {error}"
            findings += [Finding("class-not-learned", "error", text, len(unknown), unknown, name)]
    return findings


def _dominating(counts: Mapping[str, int], total: int, unit: str) -> list[Finding]:
    largest, count = max(counts.items(), key=lambda item: item[1])
    if len(counts) < 2 or count == total or count <= DOMINATES * total:
        return []
    text = (
        f"train: {100 * count / total:.2f} % of the {unit} are of the class {largest!r}: "
        "a network that says nothing else is nearly always right"
    )
    return [Finding("one-class-dominates", "warning", text, count, (), "train")]


def _between(learned: Mapping[str, int], measured: Mapping[str, int], thing: str) -> list[Finding]:
    """Classes that only one of train and val has something of."""
    # Those that train does not declare are errors, see `_unknown`.
    only_val = [name for name, count in measured.items() if count and learned.get(name) == 0]
    only_train = [name for name, count in learned.items() if count and not measured.get(name)]
    return [
        *finding(
            "class-not-learned",
            "warning",
            f"{counted(len(only_val), 'class')} there in val, and without one {thing} in train: "
            "what is not learned is not found, and lowers the figures",
            only_val,
            "val",
        ),
        *finding(
            "class-not-measured",
            "note",
            f"{counted(len(only_train), 'class')} learned, and not measured: without one {thing} in "
            "val",
            only_train,
            "val",
        ),
    ]
