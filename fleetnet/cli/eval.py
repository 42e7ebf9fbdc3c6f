"""`fleetnet eval`: the task's metric of a checkpoint or an exported file, by the same preprocessing and code."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt

from ..errors import UsageError
from ..reading import to_json
from ._arguments import OF_OPEN_SIZE, TIMEOUT, TRUST, check_outputs
from ._data import say_data
from ._limits import add_limits, limits
from ._show import say, shown, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet eval --model runs/classification/fasternet_t0-photos --data photos/"
# at a time, by the kind of annotation; 4 of those that predict every pixel
IMAGES = {"label": 32, "boxes": 16}
ROWS = 50  # of the table by class
WORDS = {  # figures whose names need a word more
    "score": "score of the best F1", "at_limit": "images at --max-objects",
}  # fmt: skip
BY_CLASS = {  # what a metric knows of a class -> the title of its column
    "class": "class", "images": "images", "objects": "objects", "pixels": "pixels", "mask_AP": "mask "
                                                                                               "AP "
                                                                                               "%",
    "AP": "AP %", "IoU": "IoU %", "precision": "precision %", "recall": "recall %", "F1": "F1 %",
    "best_F1": "best F1 %", "best_score": "at score",
}  # fmt: skip


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "--model", type=str, help="run folder, checkpoint (.safetensors) or exported file"
    )
    parser.add_argument("--size", type=str | None, help=OF_OPEN_SIZE)
    parser.add_argument(
        "--data", type=str, help="folder, list or annotation file of images, or `shapes`"
    )
    parser.add_argument(
        "--format", type=str | None, help="format of the data, where finding it out fails"
    )
    parser.add_argument(
        "--split", type=str,
        help="train, val, test or all (default: what --data names; of a folder with splits val, "
             "else test; of data that the run held pictures back from, these)",
    )  # fmt: skip
    parser.add_argument(
        "--max-bad",
        type=ClosedUnitInterval,
        help="largest share of the annotations that may be unusable (default: 0.5)",
    )
    parser.add_argument(
        "--plots", type=str, help="folder for figures: precision over recall, classes, confusion"
    )
    parser.add_argument(
        "--predictions", type=str,
        help="detectors: file (.json) for all that was found, as COCO's results with the ids of "
             "the data; masks go into a second file, NAME_masks.json",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size",
        type=PositiveInt,
        help="images at a time (default: 32; boxes: 16; masks and label maps: 4)",
    )
    add_limits(
        parser, "detectors: lowest score of what is evaluated (default: of the task; 0.001 to 0.05)"
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads (default: 2)")
    parser.add_argument(
        "--workers", type=NonNegativeInt, help="processes that read images (default: 0)"
    )
    parser.add_argument("--timeout", type=PositiveFloat, help=TIMEOUT)


def run(given: dict[str, Any]) -> dict[str, Any]:
    for key in ("model", "data"):
        if not given.get(key):
            raise UsageError(f"--{key} is missing; example: {EXAMPLE}")
    check_outputs({"--plots": given.get("plots")}, {"--predictions": given.get("predictions")})

    import torch

    from .. import tasks
    from ..data._contents import check_usable, contents_of
    from ..data._names import by_name, only
    from ..data._record import describe, to_measure
    from ..deploy.predictor import load
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import MINUTES, batches_of
    from ..report import figures
    from ..sizes import parse_size
    from ..tasks._coco import results
    from ..training.evaluate import evaluate

    torch.set_num_threads(given.get("threads", 2))
    predictor = load(
        given["model"], threads=given.get("threads", 2), limits=limits(given), trust=bool(given.get("trust")),
        size=parse_size(given["size"]) if given.get("size") else None,
    )  # fmt: skip
    target = tasks.find(predictor.task).TARGET
    if given.get("predictions") and target not in ("boxes", "masks"):
        raise UsageError(
            f"--predictions is for detectors; {given['model']} is of the task {predictor.task}"
        )
    split = to_measure(
        given["data"],
        given.get("split"),
        given.get("format"),
        target,
        given["model"],
        predictor.facts,
    )
    if given.get("only"):
        split = only(split, given["only"])
    split = by_name(split, predictor.classes, given["model"])
    contents = contents_of(split, target)
    say_data("data", split, contents)
    check_usable(split, contents, given.get("max_bad", 0.5), learn=False)
    batches = batches_of(
        ImageDataset(split, predictor.preprocess, target=target), given.get("batch_size", IMAGES.get(target, 4)),
        workers=given.get("workers", 0), minutes=given.get("timeout", MINUTES),
    )  # fmt: skip
    found: list[dict[str, Any]] = []

    def keep(prediction: dict[str, torch.Tensor], sample: int) -> None:
        id = split.samples[sample].id
        number = sample + 1 if id is None else id
        found.extend(results([prediction], [number], split.ids or range(1, len(split.classes) + 1)))

    result = evaluate(
        predictor,
        predictor.task,
        batches,
        split.classes,
        on_prediction=keep if given.get("predictions") else None,
        on_wait=say,
    )
    skipped = result.pop("skipped")
    read = describe(split, contents)
    rows = [
        [WORDS.get(name, name), shown(value)]
        for name, value in result.items()
        if not isinstance(value, list | dict)
    ]
    where = str(split.source) if split.source else given["data"]
    table(f"{given['model']} on {where}: {len(split.samples)} images", ["metric", "value"], rows)
    _by_class(result)
    for note in result["notes"]:
        say(f"note: {note}")
    for line in skipped[:10]:
        say(f"skipped {line}")
    if given.get("plots"):
        files = figures.metrics(result, split.classes, Path(given["plots"]))
        say(f"written: {', '.join(map(str, files))}")
    if given.get("predictions"):
        _write(Path(given["predictions"]), found, target == "masks")
    return {
        "model": given["model"],
        "data": given["data"],
        "read": read,
        **result,
        "skipped": skipped,
    }


def _by_class(result: dict[str, Any]) -> None:
    """The table of what the metric knows of each class; of many classes the worst."""
    rows = result.get("by_class", [])
    if not rows:
        return
    names = [name for name in BY_CLASS if name in rows[0]]
    title = "By class"
    if len(rows) > ROWS:
        measured = [row for row in rows if row["F1"] is not None]
        rows = sorted(measured, key=lambda row: row["F1"])[:ROWS]
        title += f": the {len(rows)} lowest F1 of {len(measured)} measured classes (--json has all)"
    columns = [BY_CLASS[name] for name in names]
    table(title, columns, [[shown(row[name]) for name in names] for row in rows])


def _write(path: Path, found: list[dict[str, Any]], masks: bool) -> None:
    """COCO's results of boxes and, apart, of masks: pycocotools takes masks with a box to be as large as their box."""
    from ..files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    files = {path: "segmentation"}  # what each leaves out
    if masks:
        files[path.with_name(f"{path.stem}_masks{path.suffix}")] = "bbox"
    for file, other in files.items():
        items = [{key: value for key, value in item.items() if key != other} for item in found]
        write_text(file, to_json(items) + "\n")
    say(f"written: {', '.join(map(str, files))} ({len(found)} objects)")
