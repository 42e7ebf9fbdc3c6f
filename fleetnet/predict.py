"""From a file to predictions, and from a model to a file: `load` and `export`.

A `Predictor` is the same for a checkpoint, run by torch, and for an exported file, run by its runtime.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import checkpoint
from .boxes import Place, Prediction
from .errors import ExportError, ModelError, UsageError, choose
from .find import find, names
from .images import read
from .reparam import reparameterize
from .runtimes import Delivered, Meaning, Parity, Preprocessed, by_suffix, deliver, explanation
from .runtimes import verify as compare_outputs
from .tasks import Model, named
from .transforms import Preprocess
from .weights import locate

Picture = str | Path | Image.Image
Arrays = dict[str, np.ndarray]  # outputs by name
BATCH = 16  # images at a time, of a checkpoint
BOXES = (
    "boxes: x0, y0, x1, y1 in pixels of the input; scores: 0 to 1, best first, 0 where there is no box; "
    "labels: index of the class"
)
EMBEDDED = {  # how outputs are to be read after `embed`, by the kind of annotation that the task learns from
    "boxes": BOXES,
    "masks": f"{BOXES}; masks: probabilities, to be resized to the box, inside above 0.5",
    "semantic": "semantic: index of the class of each pixel of the input",
}


class Predictor(nn.Module):
    """A checkpoint, a run folder (its best.safetensors), or a file that `export` wrote, ready to use.

    `predict` names what is in pictures, `raw` computes outputs from a batch. It is a module (of torch tensors, in eval
    mode whatever one asks for), so that what evaluates a model evaluates a file. `runtime` is "torch" for a checkpoint;
    `facts` are those of the file. `device` is for checkpoints, `threads` for the runtimes of exported files, which get
    one image at a time. Raises `ModelError` for a file that is missing, damaged, of another program or unknown task.
    """

    facts: dict[str, Any]
    classes: list[str]
    preprocess: Preprocess

    def __init__(self, path: str | Path, device: str | torch.device = "cpu", threads: int = 1):
        super().__init__()
        path = Path(path)
        # A folder is a run, or an exported file: Core ML's.
        self.runtime = "torch" if (path / "best.safetensors").is_file() else by_suffix().get(path.suffix, "torch")
        if self.runtime == "torch":
            self._run, self.facts = _torch_runner(path, torch.device(device))
            self._batch = BATCH
        else:
            module = find("runtimes", self.runtime)
            run = module.load(path, threads)
            self.facts = module.metadata(path) if hasattr(module, "metadata") else _sidecar(path)
            self._run = partial(_by_name, run, [output["name"] for output in self.facts.get("outputs", ())])
            self._batch = 1
        checkpoint.check_facts(self.facts, path)
        self.task: str = self.facts["task"]
        self.classes = self.facts["classes"]
        self.preprocess = Preprocess.from_dict(self.facts["preprocess"])
        if self.facts.get("embedded_preprocess"):  # the file takes pixels, 0 to 255
            pixels = (1 / 255,) * 3
            self.preprocess = dataclasses.replace(self.preprocess, mean=(0.0,) * 3, std=pixels, channel_order="RGB")

    def raw(self, batch: np.ndarray) -> list[np.ndarray]:
        """Preprocessed images (N, 3, H, W), float32 -> the network's outputs in order, such as logits (N, classes)."""
        return list(self._outputs(batch).values())

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """The outputs by name, of preprocessed images (N, 3, H, W)."""
        return {name: torch.from_numpy(output) for name, output in self._outputs(batch.cpu().numpy()).items()}

    def _outputs(self, batch: np.ndarray) -> Arrays:
        parts = [self._run(batch[i : i + self._batch]) for i in range(0, len(batch), self._batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def predictions(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """For each picture (a file, or in memory) what the task's `restore` gives, in the picture's pixels.

        Raises `DataError` for a file that cannot be read, naming it.
        """
        task, found = find("tasks", self.task), []
        for i in range(0, len(pictures), BATCH):
            images = [_picture(picture) for picture in pictures[i : i + BATCH]]
            outputs = self(torch.stack([self.preprocess(image) for image in images]))
            places = [self.preprocess.place(image.height, image.width) for image in images]
            decoded = task.decode(outputs, self.preprocess.size)
            found += [task.restore(p, place) for p, place in zip(decoded, places, strict=True)]
        return found

    def predict(self, pictures: Sequence[Picture], top: int = 5, threshold: float | None = None) -> list[Any]:
        """For each picture what is in it, by name; see the task's `present`.

        Of a classifier the `top` classes as (name, probability), most probable first. Of a detector a dict for each
        object of a score above `threshold` (0.3 unless given). Raises `DataError` for a file that cannot be read.
        """
        task = find("tasks", self.task)
        settings = {} if threshold is None else {"threshold": threshold}
        return [task.present(p, self.classes, top=top, **settings) for p in self.predictions(pictures)]


def load(path: str | Path, device: str | torch.device = "cpu", threads: int = 1) -> Predictor:
    """A checkpoint, a run folder, or an exported file, ready to predict; see `Predictor`."""
    return Predictor(path, device, threads)


def _picture(picture: Picture) -> Image.Image:
    return picture.convert("RGB") if isinstance(picture, Image.Image) else read(picture)


def _sidecar(path: Path) -> dict[str, Any]:
    """The facts beside a file whose format cannot hold them."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} needs {path.with_suffix('.json').name} beside it, as export wrote it") from error


def _torch_runner(path: Path, device: torch.device) -> tuple[Callable[[np.ndarray], Arrays], dict[str, Any]]:
    loaded = checkpoint.load(path, device)
    dtype = next(loaded.model.parameters()).dtype

    @torch.inference_mode()
    def run(batch: np.ndarray) -> Arrays:
        outputs = named(loaded.model(torch.from_numpy(np.ascontiguousarray(batch)).to(device, dtype)))
        floats = {name: o.float() if o.is_floating_point() else o for name, o in outputs.items()}
        return {name: output.cpu().numpy() for name, output in floats.items()}

    return run, loaded.meta


def _by_name(run: Callable[[np.ndarray], Sequence[np.ndarray]], names: Sequence[str], batch: np.ndarray) -> Arrays:
    """What an exported file computes, by the names in its description; one without names has logits only."""
    outputs, names = run(batch), names or ["logits"]
    if len(names) != len(outputs):
        raise ModelError(f"the file has {len(outputs)} outputs, its description {len(names)}: {', '.join(names)}")
    return dict(zip(names, outputs, strict=True))


def export(
    model: Model | str | Path,
    runtime: str,
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    precision: str | None = None,
    opset: int | None = None,
    dynamic: bool = False,
    embed_preprocess: bool = False,
    embed_decode: bool = False,
    pictures: Sequence[Picture] = (),
    explain: bool = False,
) -> Delivered:
    """Collapse a model, write it for a runtime, prove the file equal to the model, and only then put it at `path`.

    `model` is a checkpoint, a run folder, or a model in eval mode; with a model give the names of its `classes` and the
    `preprocess` it was trained with, unless its weights brought one. `size` (height, width) is that of the
    preprocessing unless given, `precision` the first of the runtime; `dynamic` leaves the number of images open;
    `embed_preprocess` puts channel order, mean and std into the graph, which then takes RGB pixels, 0 to 255;
    `embed_decode` puts into it what makes boxes (with NMS), masks or class maps of the outputs. Outputs, and what they
    mean, are compared on random images and on `pictures`; with `explain` the error of a file that differs names the
    first layer that does. Raises `ModelError`, `DataError` for a picture, `UsageError`
    for an unknown runtime, precision or opset and for a decode that cannot be embedded, and `ExportError` if the file
    cannot be written or does not compute what the model computes.
    """
    if isinstance(model, Model):
        if preprocess is None:
            preprocess = (
                Preprocess.from_dict(model.preprocess)
                if model.preprocess
                else Preprocess((224, 224), mode=find("tasks", model.task).MODE)
            )
        facts = checkpoint.facts(model, classes or [str(i) for i in range(model.classes)], preprocess)
    else:
        file = locate(Path(model))
        loaded = checkpoint.load(file)
        model, preprocess = loaded.model, preprocess or loaded.preprocess
        hashed = hashlib.sha256(file.read_bytes()).hexdigest()
        facts = {**loaded.meta, "classes": list(classes or loaded.classes)}
        facts |= {"checkpoint": file.name, "checkpoint_sha256": hashed}
    if len(facts["classes"]) != model.classes:
        raise ModelError(f"{len(facts['classes'])} class names for a model of {model.classes} classes")
    preprocess = dataclasses.replace(preprocess, size=size or preprocess.size)
    facts |= {"size": list(preprocess.size), "preprocess": preprocess.to_dict()}
    facts |= {"embedded_preprocess": embed_preprocess, "embedded_decode": embed_decode}
    task = find("tasks", model.task)
    facts["decode"] = EMBEDDED.get(task.TARGET) if embed_decode else getattr(task, "DECODE", None)
    if embed_decode and not hasattr(task, "embed"):
        able = [name for name in names("tasks") if hasattr(find("tasks", name), "embed")]
        raise UsageError(
            f"{model.task} has no decode to embed: its outputs are the answer; it is for {', '.join(able)}"
        )
    if embed_decode and dynamic:
        raise UsageError("an embedded decode takes one image at a time: leave dynamic or embed_decode out")
    network, examples = _exported(model, preprocess, embed_preprocess, embed_decode, pictures)
    meaning = _meaning(task, preprocess.size)
    return deliver(
        network, examples[0], path, runtime, facts, precision=precision, opset=opset, dynamic=dynamic,
        examples=examples, meaning=meaning, explain=explain,
    )  # fmt: skip


def _exported(
    model: Model, preprocess: Preprocess, embed_preprocess: bool, embed_decode: bool, pictures: Sequence[Picture]
) -> tuple[nn.Module, list[Tensor]]:
    """What a file is to compute, and the images (1, 3, H, W) to compare it on: four random ones, and `pictures`."""
    network = find("tasks", model.task).embed(model) if embed_decode else cast(nn.Module, model)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, *preprocess.size, generator=generator) for _ in range(4)]
    given = preprocess
    if embed_preprocess:
        network = Preprocessed(network, preprocess.mean, preprocess.std, preprocess.channel_order).eval()
        given = dataclasses.replace(preprocess, mean=(0.0,) * 3, std=(1 / 255,) * 3, channel_order="RGB")
        inputs = [torch.rand(1, 3, *preprocess.size, generator=generator) * 255 for _ in range(4)]
    like = next(model.parameters())
    return network, [image.to(like) for image in [*inputs, *(given(_picture(picture))[None] for picture in pictures)]]


def facts_of(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The runtime of an exported file, and what the description beside it says."""
    path = Path(path)
    runtimes = by_suffix()
    if path.suffix not in runtimes:
        raise ModelError(f"{path} is no exported file: {choose(path.suffix, runtimes)}")
    return runtimes[path.suffix], _sidecar(path)


def verify(
    checkpoint_file: str | Path, path: str | Path, *, pictures: Sequence[Picture] = (), explain: bool = False
) -> Parity:
    """Compare an exported file again with the checkpoint it was made from, on random images and on `pictures`.

    With `explain` the error names the first layer that differs. Raises `ModelError` for files that do not belong
    together or cannot be read, and `ExportError` if the file does not compute what the model computes.
    """
    path = Path(path)
    name, facts = facts_of(path)
    loaded = checkpoint.load(checkpoint_file)
    if (facts.get("model"), facts.get("classes")) != (loaded.meta["model"], loaded.classes):
        raise ModelError(
            f"{path} is a {facts.get('model')} with {len(facts.get('classes', ()))} classes; {checkpoint_file} is a "
            f"{loaded.meta['model']} with {len(loaded.classes)}"
        )
    preprocess = Preprocess.from_dict(facts["preprocess"])
    network, examples = _exported(
        loaded.model, preprocess, facts["embedded_preprocess"], facts["embedded_decode"], pictures
    )
    runtime = find("runtimes", name)
    precision = facts.get("precision") or next(iter(runtime.tolerances))
    if precision not in runtime.tolerances:
        raise UsageError(f"{path} is {precision}: rounding changes what it computes, so judge it by `fleetnet eval`")
    tolerance, meaning = runtime.tolerances[precision], _meaning(find("tasks", loaded.model.task), preprocess.size)
    parity = compare_outputs(network, runtime.load(path), examples, tolerance, meaning)
    if not parity.passed:
        why = f". {explanation(reparameterize(network, examples[0]), path, name, examples, tolerance)}"
        raise ExportError(f"{path} does not compute what the model computes: {parity}{why if explain else ''}")
    return parity


def _meaning(task: ModuleType, size: tuple[int, int]) -> Meaning | None:
    """What the outputs of a task's model mean, in pixels of the input, for the proof of an exported file.

    None where the outputs are the answer: logits.
    """
    if task.TARGET == "label":
        return None

    def decode(outputs: Mapping[str, Tensor]) -> list[Prediction]:
        found = task.decode(outputs, size)
        return found if task.TARGET == "boxes" else [task.restore(prediction, Place(*size)) for prediction in found]

    return Meaning(decode, getattr(task, "SCORE", 0.0), getattr(task, "COUNT", None))
