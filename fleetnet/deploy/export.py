"""From a trained model to a file: `export`; and `verify`, which compares a file again.

What a file computes is the network with what is embedded in it: the normalization of pixels before
it, the decode behind it. What it is compared on are random images and pictures, by what the outputs
mean. All of that is a `Deployable`; the rest is `package.deliver`.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from .. import checkpoint, runtimes, tasks
from ..boxes import Limits
from ..errors import ExportError, ModelError, UsageError, named_arguments
from ..facts import Exported, Facts, KeptObjects
from ..find import names
from ..geometry import Place
from ..predictions import OfInput
from ..preprocess import Preprocess
from ..proof.agreement import Meaning
from ..proof.explain import explanation
from ..proof.verify import Elsewhere, Parity, verify_elsewhere
from ..proof.verify import verify as compare_outputs
from ..reparam import reparameterize
from ..runtimes import (
    File,
    Sizes,
    by_suffix,
    check_open_size,
    choice,
    parse_open,
)
from ..tasks import Model, Task, limits_of
from ..weights.read import files_beside
from .package import Delivered, deliver
from .predictor import One, Pictures, each, read_picture
from .preprocessed import Preprocessed
from .sidecar import check_hash, read_sidecar
from .trained import Trained

RANDOM = 4  # images that a file is compared on beside pictures


@dataclass(frozen=True)
class Deployable:
    """What a file of a trained network is to compute, and what it is compared on."""

    model: Model
    preprocess: Preprocess
    embed_preprocess: bool = False  # the file takes pixels, 0 to 255
    embed_decode: bool = False  # it gives boxes, masks or class maps
    limits: Limits | None = None  # of a detector
    pictures: Sequence[One] = ()  # to compare on

    def network(self) -> nn.Module:
        """What the file is to compute."""
        task, network = tasks.find(self.model.task), cast(nn.Module, self.model)
        if self.limits is not None and task.limit is not None:
            limited = copy.deepcopy(self.model)  # the caller's stays as it is
            task.limit(limited.head, self.limits)
            network = limited
        if self.embed_decode and task.embed is not None:
            network = task.embed(network, self.limits)
        if self.embed_preprocess:
            network = Preprocessed(
                network,
                self.preprocess.mean,
                self.preprocess.std,
                self.preprocess.channel_order,
            ).eval()
        return network

    def examples(self) -> list[Tensor]:
        """The images to compare on, (1, C, H, W) each: random ones, and the pictures."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.preprocess.channels, *self.preprocess.size)
        inputs = [torch.randn(shape, generator=generator) for _ in range(RANDOM)]
        preprocess = self.preprocess
        if self.embed_preprocess:
            preprocess = self.preprocess.for_pixels()
            inputs = [torch.rand(shape, generator=generator) * 255 for _ in range(RANDOM)]
        for one in self.pictures:
            picture = read_picture(one, preprocess.values, count=preprocess.channels)
            inputs.append(preprocess(picture)[None])
        like = next(self.model.parameters())
        return [image.to(like) for image in inputs]

    def meaning(self) -> Meaning | None:
        """What the outputs mean, in pixels of the input; None where they are the answer: logits."""
        return meaning_of(tasks.find(self.model.task), self.preprocess.size, self.limits)

    def open_sizes(self) -> Sizes:
        """The sizes that a file of open height and width takes.

        Raises `UsageError` where its own is none of them.
        """
        sizes = Sizes.of_stride(max(self.model.backbone.strides))
        sizes.check(self.preprocess.size, f"a {self.model.name} of open height and width")
        return sizes

    def elsewhere(self, sizes: Sizes) -> list[Elsewhere]:
        """What a file of open height and width is compared on at other sizes than its own."""
        others = []
        for size in sizes.others(self.preprocess.size):
            preprocess = dataclasses.replace(self.preprocess, size=size)
            there = dataclasses.replace(self, preprocess=preprocess)
            others.append(Elsewhere(there.examples(), there.meaning()))
        return others


@named_arguments
def export(
    model: Model | Trained | str | Path,
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
    limits: Mapping[str, object] | None = None,
    pictures: Pictures = (),
    explain: bool = False,
) -> Delivered:
    """Collapse a model, write it for a runtime, prove the file equal, and only then put it at `path`.

    `model` is a checkpoint, a run folder, one that was read (`Trained`), or a model in eval mode; with
    a model give the names of its `classes` and the `preprocess` it was trained with, unless its
    weights brought one. `size` (height, width) is that of the preprocessing unless given,
    `precision` the first of the runtime.
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
    trained = _trained(model, classes, preprocess)
    facts = dataclasses.replace(trained.facts, classes=list(classes or trained.facts.classes))
    if len(facts.classes) != trained.model.classes:
        raise ModelError(
            f"{len(facts.classes)} class names for a model of {trained.model.classes} classes"
        )
    if embed_decode:
        _check_decode(trained.model.task, open_batch)
    preprocess = preprocess or trained.preprocess
    deployable = Deployable(
        trained.model,
        dataclasses.replace(preprocess, size=size or preprocess.size),
        embed_preprocess,
        embed_decode,
        _wanted(facts, limits or {}),
        list(each(pictures)),
    )
    sizes = deployable.open_sizes() if open_size else None
    examples = deployable.examples()
    return deliver(
        deployable.network(),
        examples[0],
        path,
        runtime,
        facts_of_use(facts, deployable),
        precision=precision,
        opset=opset,
        dynamic=open_batch,
        examples=examples,
        meaning=deployable.meaning(),
        explain=explain,
        sizes=sizes,
        elsewhere=[] if sizes is None else deployable.elsewhere(sizes),
    )


def _trained(
    model: Model | Trained | str | Path,
    classes: Sequence[str] | None,
    preprocess: Preprocess | None,
) -> Trained:
    if isinstance(model, Trained):
        return model
    if isinstance(model, Model):
        return Trained.of_model(model, classes, preprocess)
    return Trained.read(model)


def _check_decode(task: str, open_batch: bool) -> None:
    """`UsageError` for a decode that cannot be in the graph."""
    if tasks.find(task).embed is None:
        able = [name for name in names("tasks") if tasks.find(name).embed is not None]
        raise UsageError(
            f"{task} has no decode to embed: its outputs are the answer; it is for "
            f"{', '.join(able)}"
        )
    if open_batch:
        raise UsageError(
            "an embedded decode takes one image at a time: leave dynamic or embed_decode out"
        )


def facts_of_use(facts: Facts, deployable: Deployable) -> Facts:
    """The facts of a network with all that an app has to know of its file.

    That is the way from picture to input, and from outputs to answers.
    """
    task, limits = tasks.find(facts.task), deployable.limits
    preprocess, embedded = deployable.preprocess, deployable.embed_decode
    by_name = None if limits is None else KeptObjects.from_json(limits.to_dict(facts.classes))
    exported = dataclasses.replace(
        facts.exported or Exported(),
        embedded_preprocess=deployable.embed_preprocess,
        embedded_decode=embedded,
        limits=by_name,
        decode=task.EMBEDDED if embedded else task.DECODE,
        preprocessing=preprocess.describe(deployable.embed_preprocess),
        decoding=task.decoding(embedded, limits),
    )
    return dataclasses.replace(facts, form="deploy", preprocess=preprocess, exported=exported)


def _wanted(facts: Facts, limits: Mapping[str, object]) -> Limits | None:
    """The limits of a file: those given, else those of its model; None where it is no detector."""
    asked = {key: value for key, value in limits.items() if value is not None}
    of_model = limits_of(facts)
    if of_model is None:
        if asked:
            raise UsageError(
                f"{', '.join(asked)} are for detectors; the model is of the task {facts.task}"
            )
        return None
    return of_model.changed(asked, facts.classes)


def meaning_of(task: Task, size: tuple[int, int], limits: Limits | None) -> Meaning | None:
    """What the outputs of a task's model mean, in pixels of the input; None of logits."""
    if task.DECODE is None:
        return None

    def decode(outputs: Mapping[str, Tensor]) -> Sequence[OfInput]:
        decoded = task.decode(outputs, size, limits)
        # Boxes are compared as the network gives them; clipped, some faults could not be seen.
        return [one.restore(Place(*size)) if one.per_pixel else one for one in decoded]

    return Meaning(decode) if limits is None else Meaning(decode, limits.score, limits.count)


# Again, of a file that is there -------------------------------------------------------------------


def facts_of(path: str | Path) -> tuple[str, Facts]:
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
    """Compare an exported file again with its checkpoint, on random images and on `pictures`.

    A file of open height and width is compared at the sizes of its export. With `explain` the error
    names the first layer that differs; `trust` is that of `Predictor`. Raises `ModelError` for
    files that do not belong together, are damaged or cannot be read, and `ExportError` if the file
    does not compute what the model computes.
    """
    path = Path(path)
    name, facts = facts_of(path)
    check_hash(path, facts)
    model = _model_of(checkpoint_file, path, facts)
    deployable = Deployable(
        model,
        facts.preprocess,
        facts.embedded_preprocess,
        facts.embedded_decode,
        limits_of(facts),
        list(each(pictures)),
    )
    tolerance = _tolerance(name, path, facts)
    file = File(name, path, trust)
    network, examples, run = deployable.network(), deployable.examples(), file.load()
    parity = compare_outputs(network, run, examples, tolerance, deployable.meaning())
    if not parity.passed:
        why = ""
        if explain:
            deployed = reparameterize(network, examples[0])
            why = f". {explanation(deployed, file, examples, tolerance)}"
        raise ExportError(f"{path} does not compute what the model computes: {parity}{why}")
    sizes = None if facts.exported is None else facts.exported.sizes
    if sizes is not None:
        others = deployable.elsewhere(sizes)
        for at, proof in verify_elsewhere(network, run, others, tolerance, path):
            if not proof.passed:
                raise ExportError(
                    f"{path} does not compute what the model computes at {at}: {proof}"
                )
    return parity


def _model_of(checkpoint_file: str | Path, path: Path, facts: Facts) -> Model:
    """The model of a checkpoint; `ModelError` where the file is of another."""
    loaded = checkpoint.load(checkpoint_file)
    if (facts.model, facts.classes) != (loaded.facts.model, loaded.classes):
        raise ModelError(
            f"{path} is a {facts.model} with {len(facts.classes)} classes; "
            f"{checkpoint_file} is a {loaded.facts.model} with {len(loaded.classes)}"
        )
    return loaded.model


def _tolerance(name: str, path: Path, facts: Facts) -> float:
    """That of a file's precision; `UsageError` for one that rounds."""
    tolerances = runtimes.find(name).tolerances
    precision = facts.precision or next(iter(tolerances))
    if precision not in tolerances:
        raise UsageError(
            f"{path} is {precision}: rounding changes what it computes, so judge it "
            "by `fleetnet eval`"
        )
    return tolerances[precision]
