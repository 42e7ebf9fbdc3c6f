"""`fleetnet eval`: the task's metric of a checkpoint or an exported file, by the same preprocessing and code."""

from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ..errors import DataError, UsageError
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet eval --model runs/classification/fasternet_t0-photos --data photos/"


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--model", type=str, help="run folder, checkpoint (.safetensors) or exported file")
    parser.add_argument("--data", type=str, help="folder or list file of images, or `shapes`")
    parser.add_argument("--format", type=str | None, help="format of the data, where finding it out fails")
    parser.add_argument("--split", type=str, help="train, val or test (default: val)")
    parser.add_argument("--batch-size", type=PositiveInt, help="images at a time (default: 32)")
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads (default: 2)")
    parser.add_argument("--workers", type=NonNegativeInt, help="processes that read images (default: 0)")


def run(given: dict[str, Any]) -> dict[str, Any]:
    for key in ("model", "data"):
        if not given.get(key):
            raise UsageError(f"--{key} is missing; example: {EXAMPLE}")

    import torch
    from torch.utils.data import DataLoader

    from .. import data
    from ..predict import load
    from ..train import evaluate
    from ..transforms import ImageDataset, collate

    torch.set_num_threads(given.get("threads", 2))
    predictor = load(given["model"], threads=given.get("threads", 2))
    split = data.load(given["data"], given.get("split", "val"), given.get("format"))
    if split.classes != predictor.classes:
        raise DataError(
            f"the data has the classes {', '.join(split.classes)}; "
            f"{given['model']} was trained on {', '.join(predictor.classes)}"
        )
    batches = DataLoader(
        ImageDataset(split, predictor.preprocess), given.get("batch_size", 32),
        num_workers=given.get("workers", 0), collate_fn=collate,
    )  # fmt: skip
    result = evaluate(predictor, predictor.task, batches, len(split.classes))
    skipped = result.pop("skipped")
    confusion = result.pop("confusion", None)
    rows = [[name, f"{value:.2f}" if isinstance(value, float) else value] for name, value in result.items()]
    table(f"{given['model']} on {given['data']}", ["metric", "value"], rows)
    if confusion is not None:
        per_class = {
            name: (row[i], sum(row)) for i, (name, row) in enumerate(zip(split.classes, confusion, strict=True))
        }
        rows = [[name, f"{100 * right / max(n, 1):.1f}", f"{right}/{n}"] for name, (right, n) in per_class.items()]
        table("By class", ["class", "recall %", "images"], rows)
    for line in [*split.skipped, *skipped][:10]:
        say(f"skipped {line}")
    return {"model": given["model"], "data": given["data"], **result, "confusion": confusion, "skipped": skipped}
