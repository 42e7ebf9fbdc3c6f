"""From a file to predictions, and from a model to a file: `load` and `export`.

A `Predictor` is the same for a checkpoint, run by torch, and for an exported file, run by its
runtime.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import checkpoint, images, runtimes, tasks
from ..boxes import Limits, Prediction
from ..checkpoint import check_facts
from ..errors import DataError, ExportError, ModelError, UsageError, named_arguments
from ..find import names
from ..geometry import Place
from ..images import Picture, Range, Source
from ..preprocess import Preprocess
from ..reading import hash_of
from ..reparam import reparameterize
from ..runtimes import (
    Delivered,
    Elsewhere,
    Guarded,
    Meaning,
    Parity,
    Preprocessed,
    Sizes,
    by_suffix,
    check_hash,
    check_open_size,
    checked,
    choice,
    deliver,
    explanation,
    metadata,
    parse_open,
    read_sidecar,
    verify_elsewhere,
)
from ..runtimes import load as load_file
from ..runtimes import verify as compare_outputs
from ..tasks import Limiting, Model, Task, limits_of, named
from ..weights.read import check_finite, files_beside, locate

One = Source | Tensor | Picture  # a picture in any form
# also as an array (N, height, width, 3), or a tensor (N, 3, height, width)
Pictures = One | Iterable[One]
# pixels of an image in one of its picture, down and across; 1 unless it is reduced
Scale = tuple[float, float]
Arrays = dict[str, np.ndarray]  # outputs by name
BATCH = 16  # images at a time, of a checkpoint
SCORE = 0.3  # of objects to show, where no better one was measured


class Predictor(Limiting):
    """A checkpoint, a run folder (its best.safetensors), or a file that `export` wrote, ready to use.

    `predict` names what is in pictures, `raw` computes outputs from a batch. It is a module (of
    torch tensors, in eval mode whatever one asks for), so that what evaluates a model evaluates a
    file. `runtime` is "torch" for a checkpoint; `facts` are those of the file. `device` is for
    checkpoints, `threads` for the runtimes of exported files, which get one image at a time. Any
    number of threads may share one; a fork of the process may not, and gets `FleetnetError`.
    `trust` says that a file comes from somebody who is trusted like a program: formats that can
    hide code (.pt2) are opened only then. `size` (height, width) is for a file whose height and
    width are open; unless given, it is the one that the file was made at.

    Of a detector `limits` are what is kept of all that is found: "max_objects" of a picture, "nms"
    (the overlap from which the less certain of two boxes is dropped), the lowest "score", and
    "only" the classes of these names; what is not given is as in the file, or usual for the task.
    `score` is the score that objects have to reach in `predict`, and `score_from` says in words
    where it comes from.

    Raises `ModelError` for a file that is missing, damaged (its hash is compared with that in the
    description beside it), not trusted, of another program or unknown task, and `UsageError` for
    limits out of range, of another task, or beyond what an exported file that chooses its objects
    itself can follow, and for a size that the file does not take.
    """

    facts: dict[str, Any]
    classes: list[str]
    preprocess: Preprocess
    score: float
    score_from: str

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = "cpu",
        threads: int = 1,
        limits: Mapping[str, Any] | None = None,
        *,
        trust: bool = False,
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        path = self._path = Path(path)
        if not path.exists() and path.suffix in by_suffix():
            raise ModelError(f"{path}: no such file; {files_beside(path, [path.suffix])}")
        # A folder is a run, or an exported file: Core ML's.
        self.runtime = (
            "torch"
            if (path / "best.safetensors").is_file()
            else by_suffix().get(path.suffix, "torch")
        )
        if self.runtime == "torch":
            runner = _TorchRunner(path, torch.device(device))
            self._run: Callable[[np.ndarray], Arrays] = Guarded(runner.run, str(path))
            self._embed: Callable[[np.ndarray], np.ndarray] | None = Guarded(
                runner.embed, str(path)
            )
            self.facts = runner.facts
            self._batch = BATCH
            self._runner: _TorchRunner | None = runner
        else:
            holds_facts = runtimes.find(self.runtime).metadata is not None
            beside = checked(path, needed=not holds_facts)  # the hash too, before any parser
            run = load_file(self.runtime, path, threads, trust=trust)
            self.facts = checkpoint.check_facts(
                metadata(self.runtime, path) if holds_facts else beside, path
            )
            # an int8 file is measured after it was written
            if beside and not self.facts.get("metrics"):
                self.facts = {**self.facts, "metrics": beside.get("metrics")}
            self._run = partial(
                _by_name, run, [output["name"] for output in self.facts.get("outputs", ())]
            )
            self._embed = None
            self._batch = 1
            self._runner = None
        self.task: str = self.facts["task"]
        self.classes = self.facts["classes"]
        self._set_limits({key: value for key, value in (limits or {}).items() if value is not None})
        self.preprocess = Preprocess.from_dict(self.facts["preprocess"])
        self._sizes = Sizes.from_dict(self.facts["sizes"]) if self.facts.get("sizes") else None
        if size is not None:
            self._set_size(size)
        if self.facts.get("embedded_preprocess"):  # the file takes pixels, 0 to 255
            self.preprocess = self.preprocess.for_pixels()

    def _set_size(self, size: tuple[int, int]) -> None:
        """Take pictures at this height and width; `UsageError` where the file does not."""
        own = f"{self.preprocess.size[0]}x{self.preprocess.size[1]}"
        if self._runner is not None:
            raise UsageError(
                f"{self._path} is a checkpoint, which is used at the size that it was trained at, {own}: a size can be "
                'chosen for an exported file whose height and width are open (dynamic="size", --dynamic size)'
            )
        if self._sizes is None:
            raise UsageError(
                f"{self._path} takes images of {own} only: export it with its height and width open "
                '(dynamic="size", --dynamic size), or at the size that is wanted'
            )
        self._sizes.check(size, str(self._path))
        self.preprocess = dataclasses.replace(self.preprocess, size=size)

    def _set_limits(self, given: dict[str, Any]) -> None:
        """Limits and score from what was given, from the file, or usual."""
        usual, of_file = tasks.find(self.task).LIMITS, limits_of(self.facts)
        self._of_file = of_file
        self.limits, self.score, self.score_from = None, SCORE, "the usual one"
        if usual is None or of_file is None:
            if given:
                raise UsageError(
                    f"{', '.join(given)} are for detectors; {self._path} is of the task {self.task}"
                )
            return
        self._keep(of_file.changed(given, self.classes))
        measured = (self.facts.get("metrics") or {}).get("score")
        if "score" in given:
            self.score, self.score_from = given["score"], "as given"
        elif self.facts.get("limits") and of_file.score > usual.score:
            self.score, self.score_from = of_file.score, "the one that the file was exported with"
        elif isinstance(measured, int | float):
            self.score, self.score_from = measured, "the one of the best F1 on the validation set"

    def _keep(self, limits: Limits) -> None:
        """Keep what these limits leave; `UsageError` where an exported file cannot follow them."""
        task = tasks.find(self.task)
        if self._runner is not None and task.limit is not None:
            task.limit(self._runner.model.head, limits)
        if self._runner is None and (self.facts.get("embedded_decode") or task.limit is not None):
            _check_follows(self._path, cast(Limits, self._of_file), limits, self.classes)
        self.limits = limits

    def show_from(self, score: float) -> None:
        """Show objects from this score on in `predict`, and keep those of lower scores where that needs it."""
        if self.limits is not None and score < self.limits.score:
            self._keep(dataclasses.replace(self.limits, score=score))
        self.score, self.score_from = score, "as given"

    def decode(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> list[Prediction]:
        """What the task makes of the outputs, within the limits."""
        return tasks.find(self.task).decode(outputs, size, self.limits)

    def raw(self, batch: np.ndarray) -> list[np.ndarray]:
        """Preprocessed images (N, 3, H, W), float32 -> the network's outputs in order, such as logits (N, classes)."""
        return list(self._outputs(batch).values())

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """The outputs by name, of preprocessed images (N, 3, H, W)."""
        return {
            name: torch.from_numpy(output)
            for name, output in self._outputs(batch.cpu().numpy()).items()
        }

    def _outputs(self, batch: np.ndarray) -> Arrays:
        if self._sizes is not None:
            self._sizes.check((batch.shape[-2], batch.shape[-1]), str(self._path))
        parts = [self._run(batch[i : i + self._batch]) for i in range(0, len(batch), self._batch)]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, values in outputs.items():
            if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
                raise ModelError(
                    f"{self._path} computes NaN as {name}: its weights or its runtime are at fault"
                )
        return outputs

    def predictions(self, pictures: Pictures, channels: str = "RGB") -> list[Prediction]:
        """For each picture what the task's `restore` gives, in the picture's pixels; see `predict` for the forms.

        Masks and label maps of a picture of more than `images.LARGE` pixels are of the size of its
        reduced image (see `images.Picture`), boxes of its own.
        """
        task = tasks.find(self.task)
        predictions: list[Prediction] = []
        for batch, places, scales in self._batches(pictures, channels):
            decoded = self.decode(self(batch), self.preprocess.size)
            for prediction, place, (y, x) in zip(decoded, places, scales, strict=True):
                if task.TARGET == "boxes" or y == x == 1:
                    predictions.append(task.restore(prediction, place))
                    continue
                of_image = Place(
                    round(place.height * y), round(place.width * x), place.scale_y / y, place.scale_x / x,
                    place.top, place.left,
                )  # fmt: skip
                restored = task.restore(prediction, of_image)
                if "boxes" in restored:
                    restored["boxes"] = restored["boxes"] / restored["boxes"].new_tensor(
                        [x, y, x, y]
                    )
                predictions.append(restored)
        return predictions

    @named_arguments
    def predict(
        self,
        pictures: Pictures,
        top: int = 5,
        threshold: float | None = None,
        channels: str = "RGB",
    ) -> list[Any]:
        """For each picture what is in it, by name, in a list, also of one; see the task's `present`.

        A picture is a path, an address (http, https; it is fetched), the bytes of a file, a PIL
        image, an array (height, width, 3) or a tensor (3, height, width), each of uint8, or of
        floats from 0 to 1, as `images.load` says; several are a list of such, an array (N, height,
        width, 3), or a tensor (N, 3, height, width). The same pixels reach the network in every
        form. `channels` is the order of colors in arrays and tensors: "RGB", or "BGR" as OpenCV
        gives them.

        Of a classifier the `top` classes as (name, probability), most probable first. Of a detector
        a dict for each object of a score of at least `threshold` (`self.score` unless given).
        Raises `DataError` for a picture that cannot be read, `UsageError` for what is none.
        """
        task = tasks.find(self.task)
        if threshold is None and self.limits is not None:
            threshold = self.score
        lowest = 0.0 if threshold is None else threshold
        found = self.predictions(pictures, channels)
        return [task.present(prediction, self.classes, top, lowest) for prediction in found]

    def embed(self, pictures: Pictures, channels: str = "RGB") -> np.ndarray:
        """The backbone's last feature of each picture, averaged over its height and width: (N, C) float32.

        `pictures` and `channels` as in `predict`. Raises `UsageError` for an exported file, which
        holds no more than what leads to its outputs.
        """
        features = [
            self.check_embeds()(batch.numpy()) for batch, _, _ in self._batches(pictures, channels)
        ]
        if not features:
            raise UsageError("no picture given")
        return np.concatenate(features)

    def check_embeds(self) -> Callable[[np.ndarray], np.ndarray]:
        """The function from inputs to features; `UsageError` where there is none."""
        if self._embed is None:
            raise UsageError(
                f"embeddings need a checkpoint or a run folder: an exported file ({self.runtime}) "
                "gives its outputs only, not the features of its backbone"
            )
        return self._embed

    def _batches(
        self, pictures: Pictures, channels: str
    ) -> Iterator[tuple[Tensor, list[Place], list[Scale]]]:
        """Inputs (up to BATCH, 3, H, W), where each picture lies in its own, and how much its image is reduced.

        One picture at a time is in memory.
        """
        inputs: list[Tensor] = []
        places: list[Place] = []
        scales: list[Scale] = []
        for one in each(pictures):
            picture = read_picture(one, self.preprocess.values, channels)
            inputs.append(self.preprocess(picture))
            places.append(self.preprocess.place(picture.height, picture.width))
            scales.append(
                (picture.image.height / picture.height, picture.image.width / picture.width)
            )
            if len(inputs) == BATCH:
                yield torch.stack(inputs), places, scales
                inputs, places, scales = [], [], []
        if inputs:
            yield torch.stack(inputs), places, scales


@named_arguments
def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    threads: int = 1,
    limits: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
    size: tuple[int, int] | None = None,
) -> Predictor:
    """A checkpoint, a run folder, or an exported file, ready to predict; see `Predictor`."""
    return Predictor(path, device, threads, limits, trust=trust, size=size)


def _check_follows(path: Path, of_file: Limits, wanted: Limits, classes: Sequence[str]) -> None:
    """`UsageError` where a file that chooses its objects itself cannot give what is wanted."""
    theirs, ours = of_file.to_dict(classes), wanted.to_dict(classes)
    beyond = [key for key in ("max_objects",) if ours[key] > theirs[key]]
    beyond += ["nms"] if ours["nms"] != theirs["nms"] else []
    beyond += ["score"] if ours["score"] < theirs["score"] else []
    if of_file.only is not None and not set(wanted.only or range(len(classes))) <= set(
        of_file.only
    ):
        beyond.append("only")
    if beyond:
        asked = ", ".join(f"{key} {ours[key]}" for key in beyond)
        has = ", ".join(f"{key} {theirs[key]}" for key in beyond)
        raise UsageError(
            f"{path} chooses its objects itself, with {has}, and cannot follow {asked}; allowed: "
            "no more objects, no lower score, the same nms. Export it again with what you want"
        )


def each(pictures: Pictures) -> Iterator[One]:
    """The pictures one after the other, of one or many in any form; see `Predictor.predict`."""
    if isinstance(pictures, (str, Path, bytes, Image.Image, Picture)):
        yield pictures
    elif isinstance(pictures, (np.ndarray, Tensor)):
        if pictures.ndim == 4:
            yield from pictures
        else:
            yield pictures
    elif isinstance(pictures, Iterable) and not isinstance(pictures, Mapping):
        for picture in pictures:
            yield from each(picture)
    else:
        raise UsageError(
            f"{type(pictures).__name__} is no picture; allowed: a path, an address, the bytes of a "
            "file, a PIL image, an array (height, width, 3), a tensor (3, height, width), or a "
            "list of these"
        )


def _check_one_file(path: Path) -> None:
    """`UsageError` for a folder or a pattern, with the files in place of it."""
    if path.is_dir():
        kind, folder, pattern = "folder", path, "*"
    elif "*" in path.name and not path.exists():
        kind, folder, pattern = "pattern", path.parent, path.name
    else:
        return
    raise UsageError(
        f"'{path}' is a {kind}; allowed: files, as "
        f"sorted(Path({str(folder)!r}).glob({pattern!r})). The command `fleetnet predict` takes "
        f"{kind}s"
    )


def read_picture(one: One, values: Range | None = None, channels: str = "RGB") -> Picture:
    """A picture in any form as upright RGB; see `Predictor.predict` and `images.load`."""
    if isinstance(one, Picture):
        return one
    if isinstance(one, Tensor):
        if one.ndim not in (2, 3) or (one.ndim == 3 and one.shape[0] not in (1, 2, 3, 4)):
            hint = (
                "; an array has its channels last"
                if one.ndim == 3 and one.shape[-1] in (1, 3, 4)
                else ""
            )
            raise DataError(
                f"a tensor of shape {tuple(one.shape)} is no picture; allowed: (3, "
                f"height, width){hint}"
            )
        array = one.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        one = (array.permute(1, 2, 0) if array.ndim == 3 else array).contiguous().numpy()
    if isinstance(one, str) and one.startswith(("http://", "https://")):
        one = images.fetch(one)
    if isinstance(one, (str, Path)):
        _check_one_file(Path(one))
    return images.load(one, values, channels)


class _TorchRunner:
    """The model of a checkpoint, from arrays to arrays."""

    def __init__(self, path: Path, device: torch.device):
        loaded = checkpoint.load(path, device)
        self.model, self.facts, self.device = loaded.model, loaded.meta, device
        self.dtype = next(loaded.model.parameters()).dtype

    def _input(self, batch: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(batch)).to(self.device, self.dtype)

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> Arrays:
        outputs = named(self.model(self._input(batch)))
        floats = {name: o.float() if o.is_floating_point() else o for name, o in outputs.items()}
        return {name: output.cpu().numpy() for name, output in floats.items()}

    @torch.inference_mode()
    def embed(self, batch: np.ndarray) -> np.ndarray:
        """The last feature (N, C, h, w) of the backbone, averaged: (N, C) float32."""
        return self.model.backbone(self._input(batch))[-1].float().mean((2, 3)).cpu().numpy()


def _by_name(
    run: Callable[[np.ndarray], Sequence[np.ndarray]], names: Sequence[str], batch: np.ndarray
) -> Arrays:
    """What an exported file computes, by the names in its description; one without names has logits only."""
    outputs, names = run(batch), names or ["logits"]
    if len(names) != len(outputs):
        raise ModelError(
            f"the file has {len(outputs)} outputs, its description {len(names)}: {', '.join(names)}"
        )
    return dict(zip(names, outputs, strict=True))


@named_arguments
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
    dynamic: bool | str = False,
    embed_preprocess: bool = False,
    embed_decode: bool = False,
    limits: Mapping[str, Any] | None = None,
    pictures: Pictures = (),
    explain: bool = False,
) -> Delivered:
    """Collapse a model, write it for a runtime, prove the file equal to the model, and only then put it at `path`.

    `model` is a checkpoint, a run folder, or a model in eval mode; with a model give the names of
    its `classes` and the `preprocess` it was trained with, unless its weights brought one. `size`
    (height, width) is that of the preprocessing unless given, `precision` the first of the runtime.
    `dynamic` leaves the number of images open (True or "batch"), height and width ("size"), or all
    of them ("batch,size"); a file of open size (ONNX) takes every multiple of the network's largest
    stride, and is compared at smaller, larger, wide and tall sizes too. `embed_preprocess` puts
    channel order, mean and std into the graph, which then takes RGB pixels, 0 to 255;
    `embed_decode` puts into it what makes boxes (with NMS), masks or class maps of the outputs.
    `limits` of a detector are those of `Predictor`: in the graph where the decode is, and in the
    description of the file. Outputs, and what they mean, are compared on random images and on
    `pictures`; with `explain` the error of a file that differs names the first layer that does.
    Raises `ModelError`, `DataError` for a picture, `UsageError` for an unknown runtime, precision
    or opset, for a decode that cannot be embedded, and for a size that cannot be left open in this
    runtime or is no such multiple, and `ExportError` if the file cannot be written or does not
    compute what the model computes.
    """
    choice(f"{runtime}:{precision or ''}")  # before the model is read
    open_batch, open_size = parse_open(dynamic)
    if open_size:
        check_open_size(runtime)
    if isinstance(model, Model):
        if preprocess is None:
            preprocess = (
                Preprocess.from_dict(model.preprocess)
                if model.preprocess
                else Preprocess(tasks.find(model.task).SIZE, mode=tasks.find(model.task).MODE)
            )
        check_finite(model.state_dict(), f"the {model.name}")
        facts = checkpoint.facts(
            model, classes or [str(i) for i in range(model.classes)], preprocess
        )
    else:
        file = locate(Path(model))
        loaded = checkpoint.load(file)
        model, preprocess = loaded.model, preprocess or loaded.preprocess
        hashed = hash_of([file])
        facts = {**loaded.meta, "classes": list(classes or loaded.classes)}
        facts |= {"checkpoint": file.name, "checkpoint_sha256": hashed}
    if len(facts["classes"]) != model.classes:
        raise ModelError(
            f"{len(facts['classes'])} class names for a model of {model.classes} classes"
        )
    preprocess = dataclasses.replace(preprocess, size=size or preprocess.size)
    facts |= {"size": list(preprocess.size), "preprocess": preprocess.to_dict()}
    facts |= {"embedded_preprocess": embed_preprocess, "embedded_decode": embed_decode}
    task, wanted = tasks.find(model.task), _wanted(model.task, facts, limits or {})
    facts["limits"] = None if wanted is None else wanted.to_dict(facts["classes"])
    facts |= described(model.task, preprocess, embed_preprocess, embed_decode, wanted)
    if embed_decode and task.embed is None:
        able = [name for name in names("tasks") if tasks.find(name).embed is not None]
        raise UsageError(
            f"{model.task} has no decode to embed: its outputs are the answer; it is for "
            f"{', '.join(able)}"
        )
    if embed_decode and open_batch:
        raise UsageError(
            "an embedded decode takes one image at a time: leave dynamic or embed_decode out"
        )
    pictures = list(each(pictures))
    network = _exported(model, preprocess, embed_preprocess, embed_decode, wanted)
    examples = _examples(model, preprocess, embed_preprocess, pictures)
    meaning = _meaning(task, preprocess.size, wanted)
    sizes, elsewhere = None, list[Elsewhere]()
    if open_size:
        sizes = Sizes.of_stride(max(model.backbone.strides))
        sizes.check(preprocess.size, f"a {model.name} of open height and width")
        elsewhere = _elsewhere(sizes, model, preprocess, embed_preprocess, pictures, wanted)
    return deliver(
        network, examples[0], path, runtime, facts, precision=precision, opset=opset, dynamic=open_batch,
        examples=examples, meaning=meaning, explain=explain, sizes=sizes, elsewhere=elsewhere,
    )  # fmt: skip


def described(
    task: str,
    preprocess: Preprocess,
    embed_preprocess: bool,
    embed_decode: bool,
    limits: Limits | None,
) -> dict[str, Any]:
    """All that an app has to know beside an exported file: from picture to input, from outputs to answers."""
    of_task = tasks.find(task)
    return {
        "decode": of_task.EMBEDDED if embed_decode else of_task.DECODE,
        "preprocessing": preprocess.describe(embed_preprocess),
        "decoding": of_task.decoding(embed_decode, limits),
    }


def _wanted(task: str, facts: Mapping[str, Any], limits: Mapping[str, Any]) -> Limits | None:
    """The limits of a file to export: those given, else those of its model; None where it is no detector."""
    given = {key: value for key, value in limits.items() if value is not None}
    of_model = limits_of(facts)
    if of_model is None:
        if given:
            raise UsageError(
                f"{', '.join(given)} are for detectors; the model is of the task {task}"
            )
        return None
    return of_model.changed(given, facts["classes"])


def _exported(
    model: Model,
    preprocess: Preprocess,
    embed_preprocess: bool,
    embed_decode: bool,
    limits: Limits | None,
) -> nn.Module:
    """What a file is to compute."""
    task, network = tasks.find(model.task), cast(nn.Module, model)
    if limits is not None and task.limit is not None:
        limited = copy.deepcopy(model)  # the caller's stays as it is
        task.limit(limited.head, limits)
        network = limited
    if embed_decode and task.embed is not None:
        network = task.embed(network, limits)
    if embed_preprocess:
        network = Preprocessed(
            network, preprocess.mean, preprocess.std, preprocess.channel_order
        ).eval()
    return network


def _examples(
    model: Model, preprocess: Preprocess, embed_preprocess: bool, pictures: Sequence[One]
) -> list[Tensor]:
    """The images (1, 3, H, W) to compare a file on: four random ones, and `pictures`."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, *preprocess.size, generator=generator) for _ in range(4)]
    given = preprocess
    if embed_preprocess:
        given = preprocess.for_pixels()
        inputs = [torch.rand(1, 3, *preprocess.size, generator=generator) * 255 for _ in range(4)]
    like = next(model.parameters())
    inputs += [given(read_picture(one, given.values))[None] for one in pictures]
    return [image.to(like) for image in inputs]


def _elsewhere(
    sizes: Sizes,
    model: Model,
    preprocess: Preprocess,
    embed_preprocess: bool,
    pictures: Sequence[One],
    limits: Limits | None,
) -> list[Elsewhere]:
    """What a file of open height and width is compared on at other sizes than its own."""
    task, found = tasks.find(model.task), []
    for size in sizes.others(preprocess.size):
        examples = _examples(
            model, dataclasses.replace(preprocess, size=size), embed_preprocess, pictures
        )
        found.append(Elsewhere(examples, _meaning(task, size, limits)))
    return found


def facts_of(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The runtime of an exported file, and what the description beside it says."""
    path = Path(path)
    runtime_of = by_suffix()
    if path.suffix not in runtime_of:
        raise ModelError(f"{path} is no exported file; those end in {', '.join(runtime_of)}")
    if not path.exists():
        raise ModelError(f"{path}: no such file; {files_beside(path, [path.suffix])}")
    return runtime_of[path.suffix], read_sidecar(path)


@named_arguments
def verify(
    checkpoint_file: str | Path,
    path: str | Path,
    *,
    pictures: Pictures = (),
    explain: bool = False,
    trust: bool = False,
) -> Parity:
    """Compare an exported file again with the checkpoint it was made from, on random images and on `pictures`.

    A file of open height and width is compared at the sizes of its export. With `explain` the error
    names the first layer that differs; `trust` is that of `Predictor`. Raises `ModelError` for
    files that do not belong together, are damaged or cannot be read, and `ExportError` if the file
    does not compute what the model computes.
    """
    path = Path(path)
    name, facts = facts_of(path)
    check_facts(facts, path.with_suffix(".json"))
    check_hash(path, facts)
    loaded = checkpoint.load(checkpoint_file)
    if (facts.get("model"), facts.get("classes")) != (loaded.meta["model"], loaded.classes):
        raise ModelError(
            f"{path} is a {facts.get('model')} with {len(facts.get('classes', ()))} classes; "
            f"{checkpoint_file} is a {loaded.meta['model']} with {len(loaded.classes)}"
        )
    preprocess = Preprocess.from_dict(facts["preprocess"])
    limits, pictures = limits_of(facts), list(each(pictures))
    embed_preprocess = facts.get("embedded_preprocess", False)
    network = _exported(
        loaded.model, preprocess, embed_preprocess, facts.get("embedded_decode", False), limits
    )
    examples = _examples(loaded.model, preprocess, embed_preprocess, pictures)
    runtime = runtimes.find(name)
    precision = facts.get("precision") or next(iter(runtime.tolerances))
    if precision not in runtime.tolerances:
        raise UsageError(
            f"{path} is {precision}: rounding changes what it computes, so judge it "
            "by `fleetnet eval`"
        )
    tolerance = runtime.tolerances[precision]
    meaning = _meaning(tasks.find(loaded.model.task), preprocess.size, limits)
    runner = load_file(name, path, trust=trust)
    parity = compare_outputs(network, runner, examples, tolerance, meaning)
    if not parity.passed:
        why = f". {explanation(reparameterize(network, examples[0]), path, name, examples, tolerance, trust=trust)}"
        raise ExportError(
            f"{path} does not compute what the model computes: {parity}{why if explain else ''}"
        )
    if facts.get("sizes"):
        sizes = Sizes.from_dict(facts["sizes"])
        others = _elsewhere(sizes, loaded.model, preprocess, embed_preprocess, pictures, limits)
        for at, proof in verify_elsewhere(network, runner, others, tolerance, path):
            if not proof.passed:
                raise ExportError(
                    f"{path} does not compute what the model computes at {at}: {proof}"
                )
    return parity


def _meaning(task: Task, size: tuple[int, int], limits: Limits | None) -> Meaning | None:
    """What the outputs of a task's model mean, in pixels of the input, for the proof of an exported file.

    None where the outputs are the answer: logits.
    """
    if task.TARGET == "label":
        return None

    def decode(outputs: Mapping[str, Tensor]) -> list[Prediction]:
        found = task.decode(outputs, size, limits)
        return (
            found
            if task.TARGET == "boxes"
            else [task.restore(prediction, Place(*size)) for prediction in found]
        )

    return Meaning(decode) if limits is None else Meaning(decode, limits.score, limits.count)
