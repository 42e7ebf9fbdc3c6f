"""`fleetnet demo`: the whole way on generated images, from training to a proven ONNX file."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jsonargparse.typing import PositiveInt

from ..errors import ExportError, UsageError
from ._settings import About
from ._show import TrainingProgress, duration, say, table, tell

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..data import Split
    from ..deploy.package import Delivered
    from ..deploy.predictor import Predictor
    from ..deploy.trained import Trained
    from ..proof.verify import Parity
    from ..training.config import TrainConfig
    from ..training.log import Line, Result

EXAMPLE = "fleetnet demo"
IMAGES, SIZE, EPOCHS = 1800, 64, 10
FOLDER = "runs/demo"
OF_FILE = "deploy form, onnxruntime"  # the last of the forms that are compared


@dataclass(frozen=True, kw_only=True)
class Demo:
    run: str = field(default=FOLDER, metadata=About(help="folder, replaced if it exists"))
    epochs: int = field(
        default=EPOCHS, metadata=About(help=f"passes over the {IMAGES} images", kind=PositiveInt)
    )
    threads: int = field(
        default=2, metadata=About(help="CPU threads for training", kind=PositiveInt)
    )


@dataclass(frozen=True)
class Forms:
    """The trained model, its deploy form and its file, which have to agree."""

    trained: "Trained"
    deploy: "nn.Module"
    folded: float  # relative difference of the deploy form
    delivered: "Delivered"
    file: "Predictor"

    def networks(self) -> "dict[str, nn.Module]":
        return {
            "multi-branch, torch": self.trained.model,
            "deploy form, torch": self.deploy,
            OF_FILE: self.file,
        }


def run(settings: Demo) -> dict[str, object]:
    import torch

    from .. import data

    began = time.monotonic()
    folder = Path(settings.run or FOLDER)
    _make_room(folder)
    config = _config(settings)
    train, val = data.load(config.data, "train"), data.load(config.data, "val")
    log = _train(config, train, val, folder)
    training = time.monotonic() - began
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    forms = _forms(folder, image)
    results = _results(forms, val, config)
    milliseconds = _milliseconds(forms, image)
    pictures = _figures(folder, log, val, forms.file, results[OF_FILE]["confusion"])
    document = _show(config.model, forms, results, milliseconds)
    tell(f"figures: {', '.join(map(str, pictures))}; file: {forms.delivered.path}")
    seconds = time.monotonic() - began
    tell(f"took {duration(seconds)}, of which training {duration(training)}")
    tell(
        "next, with your own images in class folders:  fleetnet train --model repvit_m0_9 --data "
        "PHOTOS --cache true"
    )
    return {"run": str(folder), **document, "seconds": seconds}


def _make_room(folder: Path) -> None:
    """Remove an earlier demo from the folder; `UsageError` for the run of a training."""
    from ..files import check_writable
    from ..training.claims import refuse_if_claimed

    check_writable(folder, "--run", folder=True)
    if (folder / "config.yaml").exists():  # `train` writes it, the demo does not
        raise UsageError(
            f"{folder} holds a training run, which the demo would replace: give another --run"
        )
    refuse_if_claimed(folder)
    if (folder / "log.jsonl").exists():
        shutil.rmtree(folder)


def _config(settings: Demo) -> "TrainConfig":
    from ..training.config import TrainConfig

    return TrainConfig(
        model="repvit_m0_6",
        options={"distillation": False},
        data=f"shapes:{IMAGES}",
        size=(SIZE, SIZE),
        epochs=settings.epochs,
        optimizer="sgd",
        lr=0.05,
        weight_decay=5e-4,
        clip=1.0,
        warmup_epochs=1,
        label_smoothing=0.05,
        ema=0.98,
        scale=0.7,
        color_jitter=0.0,
        threads=settings.threads,
        cache=True,
        eval_every=2,
    )


def _train(config: "TrainConfig", train: "Split", val: "Split", folder: Path) -> "list[Line]":
    """Train in the folder; the lines of the log."""
    import torch

    from ..tasks import build
    from ..training.fit import fit

    say(
        f"1/4 training {config.model} on {len(train.samples)} generated images of "
        f"{', '.join(train.classes)}"
    )
    torch.manual_seed(config.seed)
    model = build(config.model, len(train.classes), options=config.options)
    progress = TrainingProgress()
    log: list[Line] = []

    def on_epoch(line: "Line") -> None:
        log.append(line)
        top1 = f" top-1 {line['ema']['top1']:.1f} %" if "ema" in line else ""
        say(f"  {line['epoch']}/{config.epochs} loss {line['train']['loss']:.3f}{top1}")

    try:
        fit(model, train, val, config, folder, progress=progress, on_epoch=on_epoch, report=False)
    finally:
        progress.close()
    return log


def _forms(folder: Path, image: "Tensor") -> Forms:
    """The deploy form and the file of what was trained, each compared with it."""
    import torch

    from ..deploy.export import export
    from ..deploy.predictor import load
    from ..deploy.trained import Trained
    from ..reparam import difference, reparameterize

    say("2/4 collapsing to the deploy form, comparing")
    trained = Trained.read(folder)
    deploy = reparameterize(trained.model, image)
    with torch.no_grad():
        _, folded = difference([trained.model(image)], [deploy(image)])
    say("3/4 exporting to ONNX, verifying in onnxruntime")
    delivered = export(trained, "onnx", folder / "export" / "onnx" / "model.onnx")
    return Forms(trained, deploy, folded, delivered, load(delivered.path))


def _results(forms: Forms, val: "Split", config: "TrainConfig") -> "dict[str, Result]":
    """The figures of each form; `ExportError` where they disagree."""
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import batches_of
    from ..training.evaluate import evaluate

    batches = batches_of(ImageDataset(val, forms.trained.preprocess), config.batch_size)
    task = forms.trained.model.task
    results = {
        name: evaluate(network, task, batches, val.classes)
        for name, network in forms.networks().items()
    }
    right = [result["correct"] for result in results.values()]
    if len(set(right)) > 1:
        raise ExportError(f"the forms disagree: {right} images right")
    return results


def _milliseconds(forms: Forms, image: "Tensor") -> dict[str, float]:
    """The median latency of each form, measured in turn with one thread."""
    import torch

    from ..measure import latency

    say("4/4 measuring in turn, one thread")
    torch.set_num_threads(1)
    array = image.numpy()
    calls = {
        "multi-branch, torch": lambda: forms.trained.model(image),
        "deploy form, torch": lambda: forms.deploy(image),
        OF_FILE: lambda: forms.file.raw(array),
    }
    with torch.inference_mode():
        rows = latency.measure(calls, runs=60, seconds=15)
    return {row.name: row.median for row in rows}


def _show(
    model: str,
    forms: Forms,
    results: "Mapping[str, Result]",
    milliseconds: Mapping[str, float],
) -> dict[str, object]:
    """The table of the forms, how far they are apart, and all that was shown."""
    from ..measure.flops import count

    multi_branch, deploy = (
        count(network, (SIZE, SIZE)) for network in (forms.trained.model, forms.deploy)
    )
    sizes = (multi_branch, deploy, deploy)  # the file holds the deploy form
    lines = [
        [
            name,
            f"{results[name]['top1']:.1f}",
            f"{size.parameters:,}",
            f"{size.macs / 1e6:.1f}",
            f"{milliseconds[name]:.2f}",
        ]
        for name, size in zip(forms.networks(), sizes, strict=True)
    ]
    show_forms(model, lines)
    relative = cast("Parity", forms.delivered.parity).relative  # onnxruntime runs everywhere
    tell(f"largest difference, relative: deploy form {forms.folded:.1e}, ONNX {relative:.1e}")
    return {
        "top1": {name: result["top1"] for name, result in results.items()},
        "parameters": {"multi-branch": multi_branch.parameters, "deploy": deploy.parameters},
        "macs": {"multi-branch": multi_branch.macs, "deploy": deploy.macs},
        "milliseconds": milliseconds,
        "relative_difference": {"deploy": forms.folded, "onnx": relative},
    }


def show_forms(model: str, lines: list[list[str]]) -> None:
    columns = ["form", "top-1 % (held back)", "parameters", "MMACs", "ms an image"]
    table(f"{model} at {SIZE}x{SIZE}, 1 thread", columns, lines)


def _figures(
    folder: Path,
    log: "Sequence[Line]",
    val: "Split",
    file: "Predictor",
    confusion: list[list[int]],
) -> list[Path]:
    from ..report import figures
    from ..training.pictures import spread

    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    figures.curves(log, plots / "curves.png")
    figures.confusion(confusion, val.classes, plots / "confusion.png")
    shown: list[Any] = spread(val, 18)  # generated: their images are functions
    pictures = [sample.image() for sample in shown]
    names = [answer[0][0] for answer in file.predict(pictures, top=1)]
    truths = [val.classes[sample.label] for sample in shown]
    figures.predictions(pictures, truths, names, plots / "predictions.png")
    return [plots / name for name in ("curves.png", "predictions.png", "confusion.png")]
