"""`fleetnet eval`: the task's metric of a checkpoint or an exported file, or retrieval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt

from ..errors import UsageError
from ..reading import to_json
from ..training.config import TrainConfig
from ._arguments import OF_OPEN_SIZE, TIMEOUT, TRUST, check_outputs
from ._data import IMAGES, OF_PIXELS, Reading, images_at_a_time, say_data
from ._limits import DetectorLimits
from ._retrieval import Searched, gallery_of, retrieve, with_both_classes
from ._settings import About, switch
from ._show import say, shown, table

if TYPE_CHECKING:
    from ..data import Split
    from ..deploy.predictor import Predictor
    from ..inputs.dataset import Batch
    from ..predictions import CocoItem, Prediction

EXAMPLE = "fleetnet eval --model runs/classification/fasternet_t0-photos --data photos/"
ROWS = 50  # of the table by class
SKIPPED = 10  # names of files that could not be read
WORDS = {  # figures whose names need a word more
    "score": "score of the best F1", "at_limit": "images at --max-objects",
}  # fmt: skip
BY_CLASS = {  # what a metric knows of a class -> the title of its column
    "class": "class",
    "images": "images",
    "objects": "objects",
    "pixels": "pixels",
    "mask_AP": "mask AP %",
    "AP": "AP %",
    "IoU": "IoU %",
    "precision": "precision %",
    "recall": "recall %",
    "recall1": "recall at 1 %",
    "F1": "F1 %",
    "best_F1": "best F1 %",
    "best_score": "at score",
}


@dataclass(frozen=True, kw_only=True)
class Eval:
    model: str = field(
        metadata=About(help="run folder, checkpoint (.safetensors) or exported file")
    )
    size: str | None = field(
        default=None, metadata=About(help=OF_OPEN_SIZE, usual="as exported", null=True)
    )
    data: str = field(metadata=About(help="folder, list or annotation file of images, or `shapes`"))
    reading: Reading = field(default_factory=Reading, metadata=About(help="how the data are read"))
    split: str | None = field(
        default=None,
        metadata=About(
            help="train, val, test or all",
            usual="what --data names; of a folder with splits val, else test; of data that the "
            "run held pictures back from, these",
        ),
    )
    max_bad: float = field(
        default=TrainConfig.max_bad,
        metadata=About(
            help="largest share of the annotations that may be unusable", kind=ClosedUnitInterval
        ),
    )
    searched: Searched = field(default_factory=Searched, metadata=About(help="what is evaluated"))
    plots: str | None = field(
        default=None,
        metadata=About(help="folder for figures: precision over recall, classes, confusion"),
    )
    predictions: str | None = field(
        default=None,
        metadata=About(
            help="detectors: file (.json) for all that was found, as COCO's results with the ids "
            "of the data; masks go into a second file, NAME_masks.json"
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=About(
            help="images at a time",
            usual=f"{IMAGES['label']}, also of tags; boxes: {IMAGES['boxes']}; masks and label maps: {OF_PIXELS}",
            kind=PositiveInt,
        ),
    )
    limits: DetectorLimits = field(
        default_factory=DetectorLimits,
        metadata=About(
            help="what a detector keeps",
            otherwise={
                "score": About(
                    help="detectors: lowest score of what is evaluated",
                    usual="of the task; 0.001 to 0.05",
                )
            },
        ),
    )
    trust: bool = switch(TRUST)
    threads: int = field(default=2, metadata=About(help="CPU threads", kind=PositiveInt))
    workers: int = field(
        default=0, metadata=About(help="processes that read images", kind=NonNegativeInt)
    )
    timeout: float = field(
        default=TrainConfig.timeout, metadata=About(help=TIMEOUT, kind=PositiveFloat)
    )


def run(settings: Eval) -> dict[str, object]:
    of_answers = {
        "plots": settings.plots,
        "predictions": settings.predictions,
        **settings.limits.to_dict(),
    }
    settings.searched.check(of_answers)
    check_outputs({"--plots": settings.plots}, {"--predictions": settings.predictions})

    import torch

    from ..deploy.predictor import load
    from ..sizes import parse_size

    torch.set_num_threads(settings.threads)
    predictor = load(
        settings.model,
        threads=settings.threads,
        limits=settings.limits.to_dict(),
        trust=settings.trust,
        size=parse_size(settings.size) if settings.size else None,
    )
    is_search = settings.searched.eval_mode == "retrieval"
    return (_retrieve if is_search else _evaluate)(settings, predictor)


def _evaluate(settings: Eval, predictor: "Predictor") -> dict[str, object]:
    """The metric of the task, of what a network says."""
    from .. import tasks
    from ..data._names import by_name, only
    from ..predictions import Detections
    from ..report import figures
    from ..training.evaluate import evaluate
    from ..training.memory import room_at_once

    task = tasks.find(predictor.task)
    if settings.predictions and task.PREDICTION is not Detections:
        raise UsageError(
            f"--predictions is for detectors; {settings.model} is of the task {predictor.task}"
        )
    split = _split(settings, predictor, task.TARGET)
    if settings.limits.only:
        split = only(split, settings.limits.only)
    split = by_name(split, predictor.classes, settings.model)
    read = _look_at("data", split, task.TARGET, settings)
    results = CocoResults(split)
    images = settings.batch_size or images_at_a_time(task.TARGET)
    with room_at_once(images):
        result = evaluate(
            predictor,
            predictor.task,
            _batches(settings, predictor, split, task.TARGET),
            split.classes,
            on_prediction=results.add if settings.predictions else None,
            on_wait=say,
        )
    skipped = result.pop("skipped")
    _show(settings, split, result, skipped)
    if settings.plots:
        files = figures.metrics(result, split.classes, Path(settings.plots))
        say(f"written: {', '.join(map(str, files))}")
    if settings.predictions:
        results.write(Path(settings.predictions), masks=task.TARGET == "masks")
    return {
        "model": settings.model,
        "data": settings.data,
        "read": read,
        **result,
        "skipped": skipped,
    }


def _retrieve(settings: Eval, predictor: "Predictor") -> dict[str, object]:
    """Retrieval by the features of a network; its classes do not matter."""
    from ..training.memory import room_at_once

    predictor.check_embeds()
    queries, gallery = _split(settings, predictor, "label"), None
    read: dict[str, object] = {}
    where = settings.searched.gallery
    if where is not None:
        gallery = gallery_of(where, settings.data, settings.reading)
        queries, gallery = with_both_classes(queries, gallery)
        read["gallery"] = _look_at("gallery", gallery, "label", settings)
    read["read"] = _look_at("queries", queries, "label", settings)
    with room_at_once(settings.batch_size or images_at_a_time("label")):
        result = retrieve(
            predictor,
            _batches(settings, predictor, queries, "label"),
            None if gallery is None else _batches(settings, predictor, gallery, "label"),
            queries.classes,
            settings.searched.recall_at,
        )
    skipped = result.pop("skipped")
    _show(settings, queries, result, skipped)
    return {
        "model": settings.model,
        "data": settings.data,
        **read,
        **result,
        "skipped": skipped,
    }


def _look_at(name: str, split: "Split", target: str, settings: Eval) -> dict[str, object]:
    """What is read, said and checked; as `data._record` describes it."""
    from ..data._contents import contents_of
    from ..data._record import describe
    from ..review.usable import check_usable

    contents = contents_of(split, target)
    say_data(name, split, contents)
    check_usable(split, contents, settings.max_bad, learn=False)
    return describe(split, contents)


def _split(settings: Eval, predictor: "Predictor", target: str) -> "Split":
    """The samples to evaluate on."""
    from ..data._record import to_measure

    return to_measure(
        settings.data,
        settings.split,
        settings.reading.format,
        target,
        settings.model,
        predictor.facts.settings,
        settings.reading.elsewhere,
    )


def _batches(
    settings: Eval, predictor: "Predictor", split: "Split", target: str
) -> "Iterable[Batch]":
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import batches_of

    return batches_of(
        ImageDataset(split, predictor.preprocess, target=target),
        settings.batch_size or images_at_a_time(target),
        workers=settings.workers,
        minutes=settings.timeout,
    )


def _show(
    settings: Eval, split: "Split", result: Mapping[str, Any], skipped: Sequence[str]
) -> None:
    """The tables of the figures, and what has to be known about them."""
    rows = [
        [WORDS.get(name, name), shown(value)]
        for name, value in result.items()
        if not isinstance(value, list | dict)
    ]
    where = str(split.source) if split.source else settings.data
    table(f"{settings.model} on {where}: {len(split.samples)} images", ["metric", "value"], rows)
    _by_class(result)
    for note in result["notes"]:
        say(f"note: {note}")
    for line in skipped[:SKIPPED]:
        say(f"skipped {line}")


def _by_class(result: Mapping[str, Any]) -> None:
    """The table of what the metric knows of each class; of many classes the worst."""
    rows = result.get("by_class", [])
    if not rows:
        return
    names = [name for name in BY_CLASS if name in rows[0]]
    title = "By class"
    if len(rows) > ROWS:
        by = "F1" if "F1" in names else "AP"
        measured = [row for row in rows if row[by] is not None]
        rows = sorted(measured, key=lambda row: row[by])[:ROWS]
        title += (
            f": the {len(rows)} lowest {by} of {len(measured)} measured classes (--json has all)"
        )
    columns = [BY_CLASS[name] for name in names]
    table(title, columns, [[shown(row[name]) for name in names] for row in rows])


class CocoResults:
    """Predictions as COCO's results, with the ids of the data."""

    def __init__(self, split: "Split") -> None:
        self.split = split
        self.items: list[CocoItem] = []

    def add(self, prediction: "Prediction", sample: int) -> None:
        from ..predictions import Detections, all_of

        id = self.split.samples[sample].id
        number = sample + 1 if id is None else id
        ids = self.split.ids or range(1, len(self.split.classes) + 1)
        for objects in all_of(Detections, [prediction]):
            self.items.extend(objects.coco_items(number, ids))

    def write(self, path: Path, *, masks: bool) -> None:
        """Boxes and, apart, masks: pycocotools takes masks with a box to be as large as it."""
        from ..files import write_text

        path.parent.mkdir(parents=True, exist_ok=True)
        left_out = {path: "segmentation"}
        if masks:
            left_out[path.with_name(f"{path.stem}_masks{path.suffix}")] = "bbox"
        for file, other in left_out.items():
            items = [
                {key: value for key, value in item.items() if key != other} for item in self.items
            ]
            write_text(file, to_json(items) + "\n")
        say(f"written: {', '.join(map(str, left_out))} ({len(self.items)} objects)")
