"""`fleetnet bench --tune`: the fastest runtime, precision and threads on this machine that still finds what it should.

Every candidate is exported and proven as `fleetnet export` does, judged on the user's images, and
timed in turn with all others. It is judged by accuracy where images have labels, else by how often
it agrees with the model.
"""

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ExportError, ModelError, UsageError
from ._show import say, table, tell
from ._subjects import Subject, eager, of_file, one_pool, threads_of

if TYPE_CHECKING:
    from ..data import Split
    from ..deploy.predictor import One, Predictor
    from ..deploy.trained import Trained
    from ..measure.latency import Row

MAX_DROP = 1.0  # points
PICTURES = 8  # of the data, for the proof of each export
BATCH = 8  # images judged at a time
Judge = Callable[["Predictor"], float]  # percent


def tune(given: Mapping[str, Any]) -> dict[str, Any]:  # noqa: PLR0915
    from ..deploy.predictor import Predictor, load, runtime_of
    from ..deploy.trained import Trained
    from ..measure import latency
    from .bench import measure, write_csv

    model, *files = given["model"]
    threads = threads_of(given.get("threads")) or sorted({1, os.cpu_count() or 1})
    trust = bool(given.get("trust"))
    limit = given.get("max_drop", MAX_DROP)
    if runtime_of(Path(model)) != "torch":
        raise UsageError(
            f"--tune begins with a run folder or a checkpoint, and {model} is an exported file"
        )
    trained = Trained.read(model)
    reference = Predictor(trained)
    # before what takes minutes
    others = {path: _alike(load(path, trust=trust), reference, path) for path in files}
    say(f"judging {model}")
    judge, expected, by, pictures = _judge(reference, given["data"], given.get("format"))
    found, skipped = _in_torch(trained, threads), []
    scores = {"torch": expected}  # in percent, by the title of a subject
    commands: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in _choices(given.get("to")):
            say(f"exporting to {name}:{precision} and judging it")
            try:
                file = _export(trained, name, precision, Path(folder), pictures)
                candidates, score = (
                    of_file(file, threads, trust=True),
                    judge(load(file, trust=True)),
                )
            except (ExportError, ModelError) as error:
                skipped.append(f"{name}:{precision}: {error}")
                say(f"skipped {skipped[-1]}")
                continue
            title = candidates[0].title
            scores[title] = score
            commands[title] = (
                f"fleetnet export --model {shlex.quote(str(model))} --to {name}:{precision}"
            )
            found += [replace(subject, model="") for subject in candidates]
        for path, other in others.items():
            say(f"judging {path}")
            scores[path] = judge(other)
            found += [
                replace(subject, model="", title=path)
                for subject in of_file(Path(path), threads, trust=trust)
            ]
        skipped += one_pool(found, threads)
        subjects = {subject.name(several=True): subject for subject in found}
        rows, card, during = measure(subjects, given.get("runs", 100), given.get("warmup", 10))
    drops = {name: scores["torch"] - scores[subject.title] for name, subject in subjects.items()}
    best, level = fastest(rows, drops, limit)
    faster = latency.ratios(rows, rows[0].name)
    documents: list[dict[str, Any]] = [
        {
            **row.to_dict(), "what": subjects[row.name].title, "times_as_fast": faster[row.name],
            "score": scores[subjects[row.name].title], "drop": drops[row.name], "allowed": drops[row.name] <= limit,
        }
        for row in rows
    ]  # fmt: skip
    documents.sort(key=lambda document: -document["times_as_fast"])
    lines = [
        [
            d["name"], f"{d['median_ms']:.2f}", f"{d['p90_ms']:.2f}", f"{d['working_ms']:.2f}",
            f"{d['times_as_fast']:.2f}", f"{d['score']:.2f}", f"{round(d['drop'], 2) + 0:.2f}",
            "fastest" if d["name"] == best else "" if d["allowed"] else "loses too much",
        ]
        for d in documents
    ]  # fmt: skip
    columns = ["", "median ms", "p90 ms", "working ms", "x as fast", "%", "lost", ""]
    table(
        f"{model}, % is {by}; x as fast as {rows[0].name}", columns, lines, ("p90 ms", "working ms")
    )
    tell(f"fastest that loses no more than {limit:g} points: {best}")
    if level:
        tell(f"as fast, as far as this run can tell: {', '.join(level)}")
    if command := commands.get(subjects[best].title):
        tell(f"to write its file:  {command}")
    if given.get("csv"):
        write_csv(given["csv"], documents)
    doubts = latency.warnings(rows, card, during)
    for doubt in doubts:
        say(f"warning: {doubt}")
    return {
        "model": model, "by": by, "max_drop": limit, "fastest": best, "as_fast": level, "conditions": card,
        "during": during, "rows": documents, "skipped": skipped, "warnings": doubts,
    }  # fmt: skip


def fastest(
    rows: Sequence["Row"], drops: Mapping[str, float], limit: float
) -> tuple[str, list[str]]:
    """The fastest row of those that lose no more than `limit`, and those of them that may be as fast."""
    from ..measure import latency

    allowed = [row for row in rows if drops[row.name] <= limit]
    speeds = latency.ratios(rows, rows[0].name)
    best = max(allowed, key=lambda row: speeds[row.name]).name
    behind, by = latency.ratios(allowed, best), latency.uncertainty(allowed, best)
    level = [
        row.name
        for row in allowed
        if row.name != best and behind[row.name] * (1 + (by[row.name] or 0)) >= 1
    ]
    return best, level


def _in_torch(trained: "Trained", threads: Sequence[int]) -> list[Subject]:
    import torch

    from ..reparam import reparameterize

    size = trained.preprocess.size
    example = torch.randn(1, 3, *size)
    call = eager(reparameterize(trained.model, example), example)
    return [Subject("", "deploy", "torch", "torch", count, size, call) for count in threads]


def _choices(to: str | None) -> list[tuple[str, str]]:
    """Runtimes and precisions to try: those asked for, or all that run here."""
    from .. import runtimes
    from ..find import names
    from ..runtimes import choice

    if to is not None:
        return [choice(text) for text in to.split(",")]
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


def _alike(file: "Predictor", reference: "Predictor", path: str) -> "Predictor":
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


def _judge(
    reference: "Predictor", root: str, format: str | None
) -> "tuple[Judge, float, str, Sequence[One]]":
    """What gives a file's score in percent, that of the model, what it is, and some pictures for proofs."""
    from .. import data, tasks
    from ..data._contents import check_usable, contents_of
    from ..data._names import by_name
    from ..find import names
    from ..images import find_images
    from ..predictions import LabelMap, Labels

    target = tasks.find(reference.task).TARGET
    formats = [data.find(name) for name in names("data")]
    formats = [format for format in formats if target in format.TARGETS]
    if (
        format is None
        and Path(root).is_dir()
        and not any(module.detect(root) for module in formats)
    ):
        pictures: list[One] = [*find_images(root)[0]]
        if not pictures:
            raise DataError(f"no images in {root!r}")
        if tasks.find(reference.task).PREDICTION not in (Labels, LabelMap):
            raise DataError(
                f"{root!r} has no labels, and files of a detector are judged by labels: give some"
            )
        by = f"agreement with the model on {len(pictures)} images without labels"
        return _agreement(reference, pictures), 100.0, by, pictures[:PICTURES]
    split = by_name(data.load(root, "val", format, target), reference.classes, "the model")
    check_usable(split, contents_of(split, target), max_bad=1.0, learn=False)
    metric, expected = _decisive(reference, split)
    samples = split.samples[:: -(-len(split.samples) // PICTURES)]
    pictures = [sample.image() if callable(sample.image) else sample.image for sample in samples]
    by = f"{metric} on {len(split.samples)} images"
    return lambda predictor: _decisive(predictor, split)[1], expected, by, pictures


def _decisive(predictor: "Predictor", split: "Split") -> tuple[str, float]:
    """The first metric of the task, by name; `DataError` where there is nothing to measure it on."""
    from .. import tasks
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import batches_of
    from ..training.evaluate import evaluate

    images = ImageDataset(split, predictor.preprocess, target=tasks.find(predictor.task).TARGET)
    result = evaluate(predictor, predictor.task, batches_of(images, BATCH), split.classes)
    return next(iter(result.items()))


def _agreement(reference: "Predictor", pictures: "Sequence[One]") -> Judge:
    """The share of images, or of pixels, that a file gives the same class as the model."""
    import torch

    from ..predictions import LabelMap, Labels

    def classes(predictor: "Predictor") -> Iterator[torch.Tensor]:
        for picture in pictures:  # one at a time, and small: maps are as large as the pictures
            for found in predictor.predictions([picture]):
                if isinstance(found, Labels | LabelMap):
                    yield found.labels.to(torch.int16)

    expected = list(classes(reference))

    def judge(predictor: "Predictor") -> float:
        same = [
            (ours == theirs).sum().item()
            for ours, theirs in zip(expected, classes(predictor), strict=True)
        ]
        return 100 * sum(same) / sum(map(torch.Tensor.numel, expected))

    return judge
