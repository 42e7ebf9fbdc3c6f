"""`fleetnet data check`: what images and annotations are, and whether a training on them is right."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt

from ..channels import RGB, parse_channels
from ..errors import DataError
from ..training.config import TrainConfig
from ._data import Reading, task_of
from ._settings import About
from ._show import Counting, table, tell

if TYPE_CHECKING:
    from ..data import Split
    from ..data._contents import Contents
    from ..review import Finding
    from ..review.pictures import Sizes
    from ..review.whole import Review

EXAMPLE = "fleetnet data check --data photos/"
# Of each kind of annotation, the task whose training it is checked for, unless a model is named.
TASKS = {
    "label": "classification",
    "tags": "multilabel",
    "boxes": "yolo",
    "masks": "maskrcnn",
    "semantic": "deeplabv3",
}
ROWS = 12  # of the table of classes: the largest and the smallest
EXAMPLES = 3  # of a finding
LINES = 30  # of findings, beyond which examples are left out


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    data: str = field(metadata=About(help="folder, list or annotation file of images, or `shapes`"))
    model: str | None = field(
        default=None,
        metadata=About(
            help="the model that is to be trained, or its task alone, as yolo",
            usual="of a task that learns from the annotations that there are",
        ),
    )
    size: str | None = field(
        default=None,
        metadata=About(
            help="height and width of its input, as 192x256, or one number for both",
            usual="that of the task",
            null=True,
        ),
    )
    reading: Reading = field(default_factory=Reading, metadata=About(help="how the data are read"))
    max_bad: float = field(
        default=TrainConfig.max_bad,
        metadata=About(
            help="largest share of the annotations or pictures that may be unusable",
            kind=ClosedUnitInterval,
        ),
    )
    channels: int | str | None = field(
        default=None,
        metadata=About(
            help="of the pictures: gray, rgb, rgba, or a number such as 5", usual="3", null=True
        ),
    )
    workers: int = field(
        default=2, metadata=About(help="processes that read images", kind=NonNegativeInt)
    )


def run(settings: DataCheck) -> dict[str, object]:
    from .. import tasks
    from ..review import by_level
    from ..review.whole import review
    from ..sizes import parse_size

    data = _read(settings)
    task, others = data.task, data.others
    target, size = tasks.find(task).TARGET, tasks.find(task).SIZE
    if settings.size is not None:
        size = parse_size(settings.size)
    progress = Counting("reading images")
    try:
        reviewed = review(
            data.splits,
            target,
            size,
            settings.max_bad,
            settings.workers,
            progress,
            RGB if settings.channels is None else parse_channels(settings.channels),
        )
    finally:
        progress.close()
    reviewed = replace(reviewed, findings=by_level([*data.findings, *reviewed.findings]))
    _show(settings.data, task, reviewed)
    _show_ending(settings, task, others, reviewed)
    return {
        "data": settings.data,
        "task": task,
        "size": list(size),
        "other_tasks": others,
        **reviewed.to_dict(),
        "exit_code": DataError.exit_code if reviewed.is_wrong else 0,
    }


@dataclass
class _Data:
    """What is to be checked, and what reading it said."""

    task: str  # whose training it is checked for
    splits: "dict[str, Split]"
    others: list[str]  # other tasks that the data can be read for
    findings: "list[Finding]"


def _read(settings: DataCheck) -> _Data:
    """The splits with the annotations of the task that is named, or that they have annotations for."""
    task, others = _task(settings)
    try:
        splits, findings = _splits(settings, task)
    except DataError as error:
        if settings.model is not None or task != "classification":
            raise
        return _with_tags(settings, others, error)
    return _Data(task, splits, others, findings)


def _with_tags(settings: DataCheck, others: list[str], why: DataError) -> _Data:
    """Data that were not read for classification, read for several labels a picture.

    A table or list may have them, which only reading it says. Raises `why` where at most one
    picture has several: that is rather a slip of the pen.
    """
    from ..review import Finding

    try:
        splits, findings = _splits(settings, "multilabel")
    except DataError:
        raise why from None
    samples = [sample for split in splits.values() for sample in split.samples]
    several = sum(len(sample.labels()) > 1 for sample in samples)
    if several < 2:
        raise why
    text = (
        f"{several} pictures of {len(samples)} have several labels, so the data are checked for "
        f"multilabel; they cannot be read for classification: {why}"
    )
    said = Finding("several-labels", "warning", text, several)
    return _Data("multilabel", splits, others, [said, *findings])


def _task(settings: DataCheck) -> tuple[str, list[str]]:
    """The task whose training is checked for, and others that the data have annotations for."""
    from ..data._targets import targets_of

    if settings.model is not None:
        return task_of(settings.model), []
    targets = targets_of(settings.data, settings.reading.format, settings.reading.masks)
    # Whether boxes have masks too is known only once they are read for them.
    others = [TASKS[target] for target in targets[1:] if target != "masks"]
    return TASKS[targets[0]], others


def _splits(settings: DataCheck, task: str) -> "tuple[dict[str, Split], list[Finding]]":
    """The splits that the data have, with the annotations that a task learns from; and what is wrong with test.

    A training reads train and val, and ends where it cannot; test is not needed for it.
    """
    from .. import data, tasks
    from ..review import Finding

    target, how = tasks.find(task).TARGET, settings.reading

    def split(name: str) -> "Split":
        return data.load(settings.data, name, how.format, target, how.images, how.masks)

    splits = {name: split(name) for name in ("train", "val")}
    try:
        splits["test"] = split("test")
    except data.NoSplit:
        pass
    except DataError as error:
        return splits, [Finding("left-out", "warning", f"test: left out: {error}", split="test")]
    return splits, []


# The report -----------------------------------------------------------------------------------


def _show(root: str, task: str, reviewed: "Review") -> None:
    from ..data import WORDS

    formats = {split.source.format for split in reviewed.splits.values() if split.source}
    read_as = f", read as {', '.join(sorted(formats))}" if formats else ""
    unit = next(iter(reviewed.contents.values())).unit
    columns = {
        "images": ["images"],
        "objects": ["images", "objects", "images without"],
        "tags": ["images", "tags", "images without"],
        "pixels": ["images", "pixels of no class"],
    }
    table(
        f"{root}: {WORDS[reviewed.target]}{read_as}, for {task}",
        ["split", *columns[unit], "left out", "read from"],
        [_row(name, reviewed) for name in reviewed.splits],
        ("left out",),
    )
    for name, sizes in reviewed.sizes.items():
        if sizes is not None:
            tell(_of_sizes(name, sizes))
    _show_classes(reviewed.splits, reviewed.contents, unit)
    _show_findings(reviewed.findings)


def _row(name: str, reviewed: "Review") -> list[object]:
    from ..data._contents import percent

    split, contents = reviewed.splits[name], reviewed.contents[name]
    cells: list[object] = [name, len(split.samples)]
    if contents.unit in ("objects", "tags"):
        cells += [contents.total, sum(not sample.labels() for sample in split.samples)]
    if contents.unit == "pixels":
        cells.append(percent(contents.ignored, contents.total + contents.ignored))
    return [*cells, len(split.skipped), str(split.source or "")]


def _of_sizes(name: str, sizes: "Sizes") -> str:
    """Smallest, median and largest width, height and ratio, in a line."""
    sides = {"width": sizes.width, "height": sizes.height, "width / height": sizes.ratio}
    ranges = [
        f"{what} {least:.4g} to {most:.4g} (median {middle:.4g})"
        for what, (least, middle, most) in sides.items()
    ]
    return f"{name}: {', '.join(ranges)}"


def _show_classes(
    splits: "Mapping[str, Split]", contents: "Mapping[str, Contents]", unit: str
) -> None:
    """How much there is of each class; of many classes the most and the least frequent."""
    counts = {name: contents[name].by_class(split.classes) for name, split in splits.items()}
    first = next(iter(counts))
    names = sorted(counts[first], key=lambda name: -counts[first][name])
    title = "images by tag" if unit == "tags" else f"{unit} by class"
    if len(names) > ROWS:
        title += f": the most and the least of {len(names)} (--json has all)"
        names = [*names[: ROWS // 2], *names[-ROWS // 2 :]]
    totals = {  # a picture may have several tags
        name: max(of.pictures if unit == "tags" else of.total, 1) for name, of in contents.items()
    }
    rows = [
        [name, *(_share(of.get(name, 0), totals[split], unit) for split, of in counts.items())]
        for name in names
    ]
    table(title, ["class", *counts], rows)


def _share(count: int, total: int, unit: str) -> str:
    share = f"{100 * count / total:.3g} %"
    return share if unit == "pixels" else f"{count} ({share})"


def _show_findings(findings: "list[Finding]") -> None:
    examples = EXAMPLES if sum(1 + min(EXAMPLES, one.count) for one in findings) <= LINES else 1
    for one in findings:
        tell(f"{one.level}: {one.text}")
        for item in one.items[:examples]:
            tell(f"    {item}")
        more = one.count - examples
        if one.items and more > 0:
            tell(f"    and {more} more")


def _show_ending(settings: DataCheck, task: str, others: list[str], reviewed: "Review") -> None:
    """How many findings of each level there are, and what to type next."""
    from ..review import LEVELS

    counts = [
        f"{number} {level}" + "s" * (number != 1)
        for level in LEVELS
        if (number := sum(one.level == level for one in reviewed.findings))
    ]
    said = ", ".join(counts) or "nothing looks wrong"
    model = settings.model if settings.model and settings.model != task else _model_of(task)
    command = f"fleetnet train --model {model} --data {shlex.quote(settings.data)}"
    if reviewed.is_wrong:
        tell(f"{said}: a training on these data would be wrong; mend the errors first")
    else:
        tell(f"{said}; to train: {command}")
    if others:
        tell(f"these data can be read for {', '.join(others)} too: give --model {others[0]}")


def _model_of(task: str) -> str:
    return "repvit_m0_9" if task == "classification" else f"{task}/repvit_m0_9"
