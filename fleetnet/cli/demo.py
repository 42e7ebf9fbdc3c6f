"""`fleetnet demo`: the whole way on generated images, from training to a proven and measured ONNX file."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jsonargparse.typing import PositiveInt

from ..errors import ExportError, UsageError
from ._show import TrainingProgress, duration, say, table, tell

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from ..proof.verify import Parity

EXAMPLE = "fleetnet demo"
IMAGES, SIZE, EPOCHS = 1800, 64, 10


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "--run", type=str, help="folder, replaced if it exists (default: runs/demo)"
    )
    parser.add_argument(
        "--epochs", type=PositiveInt, help=f"passes over the {IMAGES} images (default: {EPOCHS})"
    )
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads for training (default: 2)")


def run(given: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0915
    import torch

    from .. import checkpoint, data
    from ..deploy.export import export
    from ..deploy.predictor import load
    from ..files import check_writable
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import batches_of
    from ..measure import latency
    from ..measure.flops import count
    from ..reparam import difference, reparameterize
    from ..tasks import build
    from ..training.claims import refuse_if_claimed
    from ..training.config import TrainConfig
    from ..training.evaluate import evaluate
    from ..training.fit import fit

    began = time.monotonic()
    folder = Path(given.get("run") or "runs/demo")
    check_writable(folder, "--run", folder=True)
    if (folder / "config.yaml").exists():  # `train` writes it, the demo does not
        raise UsageError(
            f"{folder} holds a training run, which the demo would replace: give another --run"
        )
    refuse_if_claimed(folder)
    if (folder / "log.jsonl").exists():
        shutil.rmtree(folder)
    config = TrainConfig(
        model="repvit_m0_6", options={"distillation": False}, data=f"shapes:{IMAGES}", size=(SIZE, SIZE),
        epochs=given.get("epochs", EPOCHS), optimizer="sgd", lr=0.05, weight_decay=5e-4, clip=1.0, warmup_epochs=1,
        label_smoothing=0.05, ema=0.98, scale=0.7, color_jitter=0.0, threads=given.get("threads", 2), cache=True,
        eval_every=2,
    )  # fmt: skip
    train, val = data.load(config.data, "train"), data.load(config.data, "val")
    say(
        f"1/4 training {config.model} on {len(train.samples)} generated images of "
        f"{', '.join(train.classes)}"
    )
    torch.manual_seed(config.seed)
    model = build(config.model, len(train.classes), options=config.options)
    progress = TrainingProgress()
    log: list[dict[str, Any]] = []

    def on_epoch(line: dict[str, Any]) -> None:
        log.append(line)
        top1 = f" top-1 {line['raw']['top1']:.1f} %" if "raw" in line else ""
        say(f"  {line['epoch']}/{config.epochs} loss {line['train']['loss']:.3f}{top1}")

    try:
        fit(model, train, val, config, folder, progress=progress, on_epoch=on_epoch, report=False)
    finally:
        progress.close()
    trained = time.monotonic() - began

    say("2/4 collapsing to the deploy form, comparing")
    best = checkpoint.load(folder)
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    deploy = reparameterize(best.model, image)
    with torch.no_grad():
        _, folded = difference([best.model(image)], [deploy(image)])

    say("3/4 exporting to ONNX, verifying in onnxruntime")
    delivered = export(folder, "onnx", folder / "export" / "onnx" / "model.onnx")
    file = load(delivered.path)
    relative = cast("Parity", delivered.parity).relative  # onnxruntime runs everywhere
    batches = batches_of(ImageDataset(val, best.preprocess), config.batch_size)
    forms = {
        "multi-branch, torch": best.model,
        "deploy form, torch": deploy,
        "deploy form, onnxruntime": file,
    }
    results = {name: evaluate(net, model.task, batches, val.classes) for name, net in forms.items()}
    if len({result["correct"] for result in results.values()}) > 1:
        raise ExportError(
            f"the forms disagree: {[result['correct'] for result in results.values()]} images right"
        )

    say("4/4 measuring in turn, one thread")
    torch.set_num_threads(1)
    array = image.numpy()
    with torch.inference_mode():
        calls = [lambda: best.model(image), lambda: deploy(image), lambda: file.raw(array)]
        rows = latency.measure(dict(zip(forms, calls, strict=True)), runs=60, seconds=15)
    milliseconds = {row.name: row.median for row in rows}

    pictures = _figures(folder, log, val, file, results["deploy form, onnxruntime"]["confusion"])
    sizes = [count(net, (SIZE, SIZE)) for net in (best.model, deploy)]
    sizes.append(sizes[1])
    lines = [
        [
            name,
            f"{results[name]['top1']:.1f}",
            f"{size.parameters:,}",
            f"{size.macs / 1e6:.1f}",
            f"{milliseconds[name]:.2f}",
        ]
        for name, size in zip(forms, sizes, strict=True)
    ]
    show_forms(config.model, lines)
    tell(f"largest difference, relative: deploy form {folded:.1e}, ONNX {relative:.1e}")
    tell(f"figures: {', '.join(map(str, pictures))}; file: {delivered.path}")
    tell(f"took {duration(time.monotonic() - began)}, of which training {duration(trained)}")
    tell(
        "next, with your own images in class folders:  fleetnet train --model repvit_m0_9 --data "
        "PHOTOS --cache true"
    )
    return {
        "run": str(folder), "top1": {name: result["top1"] for name, result in results.items()},
        "parameters": {"multi-branch": sizes[0].parameters, "deploy": sizes[1].parameters},
        "macs": {"multi-branch": sizes[0].macs, "deploy": sizes[1].macs}, "milliseconds": milliseconds,
        "relative_difference": {"deploy": folded, "onnx": relative},
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def show_forms(model: str, lines: list[list[str]]) -> None:
    columns = ["form", "top-1 % (held back)", "parameters", "MMACs", "ms an image"]
    table(f"{model} at {SIZE}x{SIZE}, 1 thread", columns, lines)


def _figures(
    folder: Path, log: list[dict[str, Any]], val: Any, file: Any, confusion: list[list[int]]
) -> list[Path]:
    from ..report import figures
    from ..training.pictures import spread

    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    figures.curves(log, plots / "curves.png")
    figures.confusion(confusion, val.classes, plots / "confusion.png")
    shown: list[Any] = spread(val, 18)  # generated: their images are functions
    pictures = [sample.image() for sample in shown]
    names = [found[0][0] for found in file.predict(pictures, top=1)]
    truths = [val.classes[sample.label] for sample in shown]
    figures.predictions(pictures, truths, names, plots / "predictions.png")
    return [plots / name for name in ("curves.png", "predictions.png", "confusion.png")]
