"""From a file to predictions: `load`.

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
from torch import Tensor

from .. import checkpoint, images, runtimes, tasks
from ..boxes import Limits
from ..channels import RGB
from ..errors import DataError, ModelError, UsageError, named_arguments
from ..facts import Facts
from ..geometry import Place, Scale
from ..images import Picture, Range, Source, brought_to
from ..predictions import OfInput, Prediction
from ..preprocess import Preprocess
from ..reading import Member
from ..runtimes import Guarded, by_suffix, metadata
from ..runtimes import load as load_file
from ..tasks import Limiting, Model, limits_of, named
from ..weights.read import files_beside
from .sidecar import checked
from .trained import Trained

One = Source | Tensor | Picture  # a picture in any form
# also as an array (N, height, width, 3), or a tensor (N, 3, height, width)
Pictures = One | Iterable[One]
Named = dict[str, Tensor]  # outputs by name
BATCH = 16  # images at a time, of a checkpoint
SCORE = 0.3  # of objects to show, where no better one was measured


class Predictor(Limiting):
    """A checkpoint, a run folder (its best.safetensors), or a file that `export` wrote, ready to use.

    A checkpoint that was read before, by `Trained.read`, is not read again.

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

    facts: Facts
    classes: list[str]
    preprocess: Preprocess
    score: float
    score_from: str

    def __init__(
        self,
        path: str | Path | Trained,
        device: str | torch.device = "cpu",
        threads: int = 1,
        limits: Mapping[str, object] | None = None,
        *,
        trust: bool = False,
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self._path = _path_of(path)
        self.runtime = "torch" if isinstance(path, Trained) else runtime_of(self._path)
        self._run: Callable[[Tensor], Named]
        self._embed: Callable[[Tensor], Tensor] | None = None
        self._runner: _TorchRunner | None = None
        self._batch = 1  # images at a time
        if self.runtime == "torch":
            self._runner = _TorchRunner(path, torch.device(device))
            self._run = Guarded(self._runner.run, str(self._path))
            self._embed = Guarded(self._runner.embed, str(self._path))
            self._batch = BATCH
            self.facts = self._runner.facts
        else:
            self._run, self.facts = _opened(self.runtime, self._path, threads, trust)
        self.task: str = self.facts.task
        self.classes = self.facts.classes
        self._set_limits({key: value for key, value in (limits or {}).items() if value is not None})
        self.preprocess = self.facts.preprocess
        self._sizes = None if self.facts.exported is None else self.facts.exported.sizes
        if size is not None:
            self._set_size(size)
        if self.facts.embedded_preprocess:  # the file takes pixels, 0 to 255
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
        if "score" in given:
            self.score, self.score_from = given["score"], "as given"
        elif self.facts.limits is not None and of_file.score > usual.score:
            self.score, self.score_from = of_file.score, "the one that the file was exported with"
        elif self.facts.best_score is not None:
            self.score = self.facts.best_score
            self.score_from = "the one of the best F1 on the validation set"

    def _keep(self, limits: Limits) -> None:
        """Keep what these limits leave; `UsageError` where an exported file cannot follow them."""
        task = tasks.find(self.task)
        if self._runner is not None and task.limit is not None:
            task.limit(self._runner.model.head, limits)
        if self._runner is None and (self.facts.embedded_decode or task.limit is not None):
            _check_follows(self._path, cast(Limits, self._of_file), limits, self.classes)
        self.limits = limits

    def show_from(self, score: float) -> None:
        """Show objects from this score on in `predict`, and keep those of lower scores where that needs it."""
        if self.limits is not None and score < self.limits.score:
            self._keep(dataclasses.replace(self.limits, score=score))
        self.score, self.score_from = score, "as given"

    def decode(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Sequence[OfInput]:
        """What the task makes of the outputs, within the limits."""
        return tasks.find(self.task).decode(outputs, size, self.limits)

    def raw(self, batch: np.ndarray) -> list[np.ndarray]:
        """Preprocessed images (N, C, H, W), float32 -> the network's outputs in order, such as logits (N, classes)."""
        outputs = self._outputs(torch.from_numpy(np.ascontiguousarray(batch)))
        return [output.numpy() for output in outputs.values()]

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """The outputs by name, of preprocessed images (N, C, H, W)."""
        return self._outputs(batch)

    def _outputs(self, batch: Tensor) -> Named:
        """The outputs by name, in the memory of the CPU."""
        if self._sizes is not None:
            self._sizes.check((batch.shape[-2], batch.shape[-1]), str(self._path))
        parts = [self._run(part) for part in batch.split(self._batch)]
        # Copied, since a runtime may write its next outputs into the same memory.
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, values in outputs.items():
            if values.is_floating_point() and values.isnan().any():
                raise ModelError(
                    f"{self._path} computes NaN as {name}: its weights or its runtime are at fault"
                )
        return outputs

    def predictions(self, pictures: Pictures, channels: str = "RGB") -> list[Prediction]:
        """What is found in each picture, in its pixels; see `predict` for the forms of pictures.

        Of a classifier `Labels` or `Tags`, of a detector `Detections`, of a segmenter a `LabelMap` each (see
        `fleetnet.predictions`). Masks and label maps of a picture of more than `images.LARGE`
        pixels are of the size of its reduced image (see `images.Picture`), boxes of its own.
        """
        predictions: list[Prediction] = []
        for batch, places, scales in self._batches(pictures, channels):
            decoded = self.decode(self(batch), self.preprocess.size)
            for prediction, place, scale in zip(decoded, places, scales, strict=True):
                predictions.append(prediction.restore(place, scale))
        return predictions

    @named_arguments
    def predict(
        self,
        pictures: Pictures,
        top: int = 5,
        threshold: float | None = None,
        channels: str = "RGB",
    ) -> list[Any]:
        """For each picture what is in it, by name, in a list, also of one; see `present` of its type.

        A picture is a path, an address (http, https; it is fetched), the bytes of a file, a PIL
        image, an array (height, width, 3) or a tensor (3, height, width), each of uint8, or of
        floats from 0 to 1, as `images.load` says; several are a list of such, an array (N, height,
        width, 3), or a tensor (N, 3, height, width). The same pixels reach the network in every
        form. `channels` is the order of colors in arrays and tensors: "RGB", or "BGR" as OpenCV
        gives them. A network of other than three channels takes pictures of as many, and gray ones
        of colors too.

        Of a classifier the `top` classes as (name, probability), most probable first; with tags all
        classes of a probability of at least `threshold` (0.5 unless given). Of a detector
        a dict for each object of a score of at least `threshold` (`self.score` unless given).
        Raises `DataError` for a picture that cannot be read, `UsageError` for what is none.
        """
        if threshold is None and self.limits is not None:
            threshold = self.score
        # Unless one is given, the usual one of what is predicted.
        lowest = {} if threshold is None else {"threshold": threshold}
        predictions = self.predictions(pictures, channels)
        return [prediction.present(self.classes, top, **lowest) for prediction in predictions]

    def embed(self, pictures: Pictures, channels: str = "RGB") -> np.ndarray:
        """The backbone's last feature of each picture, averaged over its height and width: (N, C) float32.

        `pictures` and `channels` as in `predict`. Raises `UsageError` for an exported file, which
        holds no more than what leads to its outputs.
        """
        features = [self.check_embeds()(batch) for batch, _, _ in self._batches(pictures, channels)]
        if not features:
            raise UsageError("no picture given")
        return torch.cat(features).numpy()

    def check_embeds(self) -> Callable[[Tensor], Tensor]:
        """The function from inputs to features (N, C); `UsageError` where there is none."""
        if self._embed is None:
            raise UsageError(
                f"embeddings need a checkpoint or a run folder: an exported file ({self.runtime}) "
                "gives its outputs only, not the features of its backbone"
            )
        return self._embed

    def place_of(self, picture: Picture) -> tuple[Place, Scale]:
        """Where a picture lies in its input, and how much its image is reduced."""
        rows, columns, _ = picture.pixels.shape
        place = self.preprocess.place(picture.height, picture.width)
        return place, (rows / picture.height, columns / picture.width)

    def _batches(
        self, pictures: Pictures, channels: str
    ) -> Iterator[tuple[Tensor, list[Place], list[Scale]]]:
        """Inputs (up to BATCH, C, H, W), where each picture lies in its own, and how much its image is reduced.

        One picture at a time is in memory.
        """
        inputs: list[Tensor] = []
        places: list[Place] = []
        scales: list[Scale] = []
        for one in each(pictures):
            picture = read_picture(one, self.preprocess.values, channels, self.preprocess.channels)
            inputs.append(self.preprocess(picture))
            place, scale = self.place_of(picture)
            places.append(place)
            scales.append(scale)
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
    limits: Mapping[str, object] | None = None,
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
    if isinstance(pictures, (str, Path, Member, bytes, Image.Image, Picture)):
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


def read_picture(
    one: One, values: Range | None = None, channels: str = "RGB", count: int = RGB
) -> Picture:
    """A picture in any form, upright, of `count` channels; see `Predictor.predict` and `images.load`."""
    if isinstance(one, Picture):
        return one._replace(pixels=brought_to(one.pixels, count, "the picture"))
    if isinstance(one, Tensor):
        if one.ndim not in (2, 3) or (one.ndim == 3 and one.shape[0] not in (1, 2, 3, 4, count)):
            hint = (
                "; an array has its channels last"
                if one.ndim == 3 and one.shape[-1] in (1, 3, 4, count)
                else ""
            )
            raise DataError(
                f"a tensor of shape {tuple(one.shape)} is no picture; allowed: ({count}, "
                f"height, width){hint}"
            )
        array = one.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        one = (array.permute(1, 2, 0) if array.ndim == 3 else array).contiguous().numpy()
    if isinstance(one, str) and one.startswith(("http://", "https://")):
        one = images.fetch(one)
    if isinstance(one, (str, Path)):
        _check_one_file(Path(one))
    return images.load(one, values, channels, count)


def _path_of(path: str | Path | Trained) -> Path:
    """The path of a checkpoint or file, for messages; of a model without one its name."""
    if isinstance(path, Trained):
        return path.path or Path(path.model.name)
    return Path(path)


def runtime_of(path: Path) -> str:
    """The runtime of an exported file, "torch" of a run folder and a checkpoint.

    A folder is a run, or an exported file: Core ML's.
    """
    runtime = by_suffix().get(path.suffix, "torch")
    if runtime != "torch" and not path.exists():
        raise ModelError(f"{path}: no such file; {files_beside(path, [path.suffix])}")
    return "torch" if (path / "best.safetensors").is_file() else runtime


def _with_own_head(model: Model) -> Model:
    """The same network, whose head may be told what to keep without changing that of others."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)  # a copy of a module shares these
    twin.head = copy.copy(model.head)
    return twin


class _TorchRunner:
    """The model of a checkpoint, from images to outputs in the memory of the CPU."""

    def __init__(self, source: str | Path | Trained, device: torch.device):
        if isinstance(source, Trained):
            self.model, self.facts = _with_own_head(source.model), source.facts
            device = next(self.model.parameters()).device
        else:
            loaded = checkpoint.load(source, device)
            self.model, self.facts = loaded.model, loaded.facts
        self.device, self.dtype = device, next(self.model.parameters()).dtype

    @torch.inference_mode()
    def run(self, batch: Tensor) -> Named:
        outputs = named(self.model(batch.to(self.device, self.dtype)))
        return {
            name: (output.float() if output.is_floating_point() else output).cpu()
            for name, output in outputs.items()
        }

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> Tensor:
        return self.model.embed(batch.to(self.device, self.dtype)).cpu()


def _opened(
    runtime: str, path: Path, threads: int, trust: bool
) -> tuple[Callable[[Tensor], Named], Facts]:
    """What runs an exported file, and its facts: those inside it, else those beside it."""
    holds_facts = runtimes.find(runtime).metadata is not None
    beside = checked(path, needed=not holds_facts)  # the hash too, before any parser
    run = load_file(runtime, path, threads, trust=trust)
    facts = metadata(runtime, path) or beside
    if facts is None:
        raise ModelError(f"{path} needs its description beside it, as export wrote it")
    if beside is not None:
        # An int8 file is measured after it was written.
        metrics = facts.metrics or beside.metrics
        facts = dataclasses.replace(facts, metrics=metrics, file=beside.file)
    return partial(_by_name, run, facts.output_names), facts


def _by_name(
    run: Callable[[np.ndarray], Sequence[np.ndarray]], names: Sequence[str], batch: Tensor
) -> Named:
    """What an exported file computes, by name; one whose description has no names has logits."""
    outputs, names = run(batch.cpu().numpy()), names or ["logits"]
    if len(names) != len(outputs):
        raise ModelError(
            f"the file has {len(outputs)} outputs, its description {len(names)}: {', '.join(names)}"
        )
    values = [torch.from_numpy(np.require(output, requirements=("C", "W"))) for output in outputs]
    return dict(zip(names, values, strict=True))
