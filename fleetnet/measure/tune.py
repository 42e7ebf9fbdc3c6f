"""The fastest runtime, precision and threads on this machine that still find what the model does.

Every candidate is exported and proven as `deploy.export` does, judged on the user's
images, and timed in turn with all others. It is judged by accuracy where images have labels, else
by how often it agrees with the model.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, ExportError, ModelError, UsageError
from .candidates import Say, Subject, eager, of_file, one_pool

if TYPE_CHECKING:
    import torch

    from ..data import Places, Split
    from ..deploy.predictor import One, Predictor
    from ..deploy.trained import Trained
    from .latency import Row

PICTURES = 8  # of the data, for the proof of each export
BATCH = 8  # images judged at a time


@dataclass(frozen=True)
class Judge:
    """What tells how well a file does, beside the model that it was made from."""

    score: Callable[["Predictor"], float]  # percent
    expected: float  # the score of the model
    by: str  # what is judged by, in words
    pictures: "Sequence[One]"  # of the data, for proofs


@dataclass
class Candidates:
    """What is timed, how it was judged, and what could not be had."""

    subjects: list[Subject]
    scores: dict[str, float]  # in percent, by the title of a subject
    # The runtime and precision of what was exported, by the title.
    exported: dict[str, tuple[str, str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def candidates(
    trained: "Trained",
    files: Mapping[str, "Predictor"],
    judge: Judge,
    choices: Sequence[tuple[str, str]],
    threads: Sequence[int],
    folder: Path,
    say: Say,
    *,
    trust: bool = False,
) -> Candidates:
    """The model in torch, its exports to the `choices` (runtime, precision), and `files` of it.

    What is exported is written into `folder`.
    """
    made = Candidates(_in_torch(trained, threads), {"torch": judge.expected})
    for name, precision in choices:
        say(f"exporting to {name}:{precision} and judging it")
        try:
            _add_export(made, trained, name, precision, judge, threads, folder)
        except (ExportError, ModelError) as error:
            made.skipped.append(f"{name}:{precision}: {error}")
            say(f"skipped {made.skipped[-1]}")
    for path, predictor in files.items():
        say(f"judging {path}")
        made.scores[path] = judge.score(predictor)
        made.subjects += [
            replace(subject, model="", title=path)
            for subject in of_file(Path(path), threads, trust=trust)
        ]
    made.skipped += one_pool(made.subjects, threads, say)
    return made


def _add_export(
    made: Candidates,
    trained: "Trained",
    name: str,
    precision: str,
    judge: Judge,
    threads: Sequence[int],
    folder: Path,
) -> None:
    from ..deploy.predictor import load

    file = _export(trained, name, precision, folder, judge.pictures)
    subjects = of_file(file, threads, trust=True)
    score = judge.score(load(file, trust=True))
    title = subjects[0].title
    made.scores[title] = score
    made.exported[title] = (name, precision)
    made.subjects += [replace(subject, model="") for subject in subjects]


@dataclass(frozen=True)
class Limits:
    """What a candidate has to keep to; None is no limit."""

    max_drop: float  # points of what is judged by
    max_ms: float | None = None  # of a run: median, without waiting for a core
    max_mb: float | None = None  # of the file, with all its parts
    max_memory: float | None = None  # MB of a fresh process, beyond its imports

    def beyond(self, candidate: "Measured") -> list[str]:
        """Which limits a candidate does not keep to, in words; what is not known keeps to none."""
        limits = {
            "loses too much": (self.max_drop, candidate.drop),
            "too slow": (self.max_ms, candidate.ms),
            "file too large": (self.max_mb, candidate.mb),
            "too much memory": (self.max_memory, candidate.memory),
        }
        return [
            word if value is not None else f"not told whether {word}"
            for word, (limit, value) in limits.items()
            if limit is not None and (value is None or value > limit)
        ]

    def __str__(self) -> str:
        """In words, for a sentence."""
        parts = [f"loses no more than {self.max_drop:g} points"]
        if self.max_ms is not None:
            parts.append(f"takes no more than {self.max_ms:g} ms")
        if self.max_mb is not None:
            parts.append(f"has no more than {self.max_mb:g} MB")
        if self.max_memory is not None:
            parts.append(f"needs no more than {self.max_memory:g} MB of memory")
        return ", ".join(parts)


@dataclass(frozen=True)
class Measured:
    """What the limits are held against, of one candidate; None where it is not known."""

    drop: float
    ms: float
    mb: float | None = None
    memory: float | None = None


def fastest(rows: Sequence["Row"], allowed: Collection[str]) -> tuple[str | None, list[str]]:
    """The fastest row of those that are allowed, by name, and those that may be as fast.

    None where none is allowed.
    """
    from . import latency

    kept = [row for row in rows if row.name in allowed]
    if not kept:
        return None, []
    speeds = latency.ratios(rows, rows[0].name)
    best = max(kept, key=lambda row: speeds[row.name]).name
    behind, by = latency.ratios(kept, best), latency.uncertainty(kept, best)
    level = [
        row.name
        for row in kept
        if row.name != best and behind[row.name] * (1 + (by[row.name] or 0)) >= 1
    ]
    return best, level


def memory_of(subjects: Mapping[str, Subject], say: Say) -> dict[str, float | None]:
    """MB of a fresh process that opens and runs each file, by name; nothing of what torch runs."""
    from . import fresh
    from .app import files_of, opening_of

    files = files_of(subjects)
    say(f"opening each of {len(files)} in {fresh.PROCESSES} fresh processes")
    opened, skipped = fresh.fresh({name: opening_of(subject) for name, subject in files.items()})
    for line in skipped:
        say(f"skipped {line}")
    return {name: one.memory_mb for name, one in opened.items()}


def _in_torch(trained: "Trained", threads: Sequence[int]) -> list[Subject]:
    import torch

    from ..reparam import reparameterize

    size = trained.preprocess.size
    example = torch.randn(1, trained.preprocess.channels, *size)
    call = eager(reparameterize(trained.model, example), example)
    mb = None if trained.path is None else trained.path.stat().st_size
    return [
        Subject("", "deploy", "torch", "torch", count, size, call, file_bytes=mb)
        for count in threads
    ]


def all_choices() -> list[tuple[str, str]]:
    """Every runtime that runs here, with every precision."""
    from .. import runtimes
    from ..find import names

    modules = {name: runtimes.find(name) for name in names("runtimes")}
    # what is only inspected, since another machine runs it, cannot be timed
    able = [name for name, m in modules.items() if not m.missing() and not m.cannot_run()]
    return [(name, precision) for name in able for precision in modules[name].tolerances]


def _export(
    trained: "Trained", name: str, precision: str, folder: Path, pictures: "Sequence[One]"
) -> Path:
    from .. import runtimes
    from ..deploy.export import export

    path = folder / f"{name}-{precision}" / f"model{runtimes.find(name).suffix}"
    delivered = export(trained, name, path, precision=precision, pictures=pictures)
    if delivered.unverified:
        raise ExportError(f"{path.name} cannot be run here: {delivered.unverified}")
    return path


def alike(file: "Predictor", reference: "Predictor", path: str) -> "Predictor":
    """The file, if it is one, and of the same task and classes as the model."""
    if file.runtime == "torch":
        raise UsageError(
            f"--tune takes one checkpoint and exported files, and {path} is another checkpoint"
        )
    if (file.task, file.classes) != (reference.task, reference.classes):
        raise ModelError(
            f"{path} is of the task {file.task} with {len(file.classes)} classes, the model of "
            f"{reference.task} with {len(reference.classes)}: only files of the same model can be "
            "compared"
        )
    return file


def judge_of(
    reference: "Predictor", root: str, format: str | None, elsewhere: "Places | None" = None
) -> Judge:
    """By the labels of the data, or of pictures without labels by agreement with the model."""
    from .. import data, tasks
    from ..data._contents import contents_of
    from ..data._names import by_name
    from ..data._record import places_of
    from ..review.usable import check_usable

    target = tasks.find(reference.task).TARGET
    places = places_of(root, reference.facts.settings, elsewhere or data.Places())
    if (
        format is None
        and places == data.Places()
        and Path(root).is_dir()
        and not _is_of_a_format(root, target)
    ):
        return _by_agreement(reference, root)
    split = by_name(data.load(root, "val", format, target, *places), reference.classes, "the model")
    check_usable(split, contents_of(split, target), max_bad=1.0, learn=False)
    metric, expected = _decisive(reference, split)
    samples = split.samples[:: -(-len(split.samples) // PICTURES)]
    return Judge(
        score=lambda predictor: _decisive(predictor, split)[1],
        expected=expected,
        by=f"{metric} on {len(split.samples)} images",
        pictures=[sample.source() for sample in samples],
    )


def _is_of_a_format(root: str, target: str) -> bool:
    """Whether the data have annotations of a kind, in a format that is found by looking."""
    from .. import data
    from ..find import names

    able = [name for name in names("data") if data.kind_for(name, target)]
    return any(data.find(name).detect(root) for name in able)


def _by_agreement(reference: "Predictor", root: str) -> Judge:
    from .. import tasks
    from ..images import find_images
    from ..predictions import LabelMap, Labels, Tags

    pictures: list[One] = [*find_images(root)[0]]
    if not pictures:
        raise DataError(f"no images in {root!r}")
    if tasks.find(reference.task).PREDICTION not in (Labels, Tags, LabelMap):
        raise DataError(
            f"{root!r} has no labels, and files of a detector are judged by labels: give some"
        )
    return Judge(
        score=_agreement(reference, pictures),
        expected=100.0,
        by=f"agreement with the model on {len(pictures)} images without labels",
        pictures=pictures[:PICTURES],
    )


def _decisive(predictor: "Predictor", split: "Split") -> tuple[str, float]:
    """The first metric of the task, by name; `DataError` where nothing can be measured."""
    from .. import tasks
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import batches_of
    from ..training.evaluate import evaluate

    images = ImageDataset(split, predictor.preprocess, target=tasks.find(predictor.task).TARGET)
    result = evaluate(predictor, predictor.task, batches_of(images, BATCH), split.classes)
    return next(iter(result.items()))


def _agreement(reference: "Predictor", pictures: "Sequence[One]") -> Callable[["Predictor"], float]:
    """The share of images, of tags, or of pixels, where a file says the same as the model."""
    import torch

    from ..predictions import LabelMap, Labels, Tags

    def classes(predictor: "Predictor") -> "Iterator[torch.Tensor]":
        for picture in pictures:  # one at a time, and small: maps are as large as the pictures
            for prediction in predictor.predictions([picture]):
                if isinstance(prediction, Labels | Tags | LabelMap):
                    yield prediction.labels.to(torch.int16)

    expected = list(classes(reference))

    def judge(predictor: "Predictor") -> float:
        same = [
            (ours == theirs).sum().item()
            for ours, theirs in zip(expected, classes(predictor), strict=True)
        ]
        return 100 * sum(same) / sum(map(torch.Tensor.numel, expected))

    return judge
