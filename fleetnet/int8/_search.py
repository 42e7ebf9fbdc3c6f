"""Post-training int8: weights and feature maps of a trained network in 8 bits, handed over only if it stays accurate.

    checkpoint -> [batch norms on your images] -> deploy form -> [equalized] -> float file -> int8 file
                                                                                 calibrated on your images

Unusual here: accuracy is not hoped for. Checkpoint and int8 file are both evaluated on the
validation set. While more than `max_drop` is lost, the layers whose rounding disturbs the outputs
most stay in float: 1, 2, 3, 4, 6 and so on. If a quarter of the layers is not enough, something
else is wrong, such as images for calibration that are not what the network will see, and there is
no file. The evaluation holds for every CPU, since the weights are rounded so that none computes
something else with them (`runtimes/_int8.py`); a file of which that is not true is not handed over
either.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import checkpoint, int8, runtimes, tasks
from ..deploy.export import Deployable, facts_of_use
from ..deploy.package import describe
from ..deploy.predictor import Predictor, load
from ..errors import DataError, ExportError, ModelError, UsageError, choose
from ..facts import Exported, Facts, FileFacts, Int8
from ..files import beside
from ..find import names
from ..inputs.workers import patient
from ..predictions import Labels, Prediction
from ..preprocess import Preprocess
from ..reading import hash_of, to_json
from ..reparam import reparameterize
from ..runtimes import Request, files, signed, version
from ..runtimes._cpu import int8_class
from ..runtimes._int8 import LARGEST_PAIR, overflowing, pairs, safe_scales
from ..tasks import limits_of, named
from ..training.evaluate import evaluate
from ..weights.read import locate
from ._equalize import equalize

IMAGES = 128  # for calibration; of sixteen times as many values the extremes hardly change
CPUS = (
    "any: no two products of an output channel leave 16 bits, where x86 without VNNI adds them in "
    "pairs; VNNI, AMX and Arm add in 32 bits"
)
MOST = 0.25  # share of the layers that the search may leave in float
BATCH = 16  # images at a time, in torch
Linear = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Layer:
    """What it does to the outputs when this layer alone computes in int8, emulated in torch."""

    name: str
    sqnr: float  # dB: the outputs' energy / that of their change; of several outputs the worst
    agreement: float | None  # share of images with the same largest logit; None of other tasks


@dataclass
class Prepared:
    """A trained network that is to be written in int8, for one runtime or several; see `prepare`."""

    facts: Facts  # of the checkpoint
    deployed: nn.Module
    images: Tensor = field(repr=False)  # to calibrate on
    held: Tensor = field(repr=False)  # some of the validation set
    batches: Any = field(repr=False)  # of the validation set
    result: dict[str, Any] = field(repr=False)  # what the checkpoint reaches on it
    logits: Tensor | None = field(repr=False)  # and says, if it is a classifier
    equalized: int  # pairs of layers
    recalibrated: bool  # batch norms

    @property
    def metric(self) -> str:
        """The task's first figure, which decides; in percent."""
        return next(iter(self.result))

    @cached_property
    def sensitivity(self) -> list[Layer]:
        return sensitivity(self.deployed, self.images[:: -(-len(self.images) // BATCH)])


@dataclass(frozen=True)
class Attempt:
    """One int8 file, evaluated."""

    skipped: list[str]
    result: dict[str, Any] = field(repr=False)  # of the task's metric
    drop: float  # of the metric's first figure, in points


@dataclass(frozen=True)
class Quantized:
    """An int8 file within the allowed drop, and how it came about."""

    path: Path
    sidecar: Path
    golden: Path
    result: dict[str, Any] = field(repr=False)  # what the file reaches on the validation set
    drop: float  # of the task's first figure, in points
    agreement: float | None  # share of the validation set with the same top-1; None of other tasks
    sqnr: float  # dB, of the outputs on some images of the validation set; see `sqnr`
    skipped: list[str]  # layers left in float by the user or the search
    others: list[str]  # and by the quantizer, such as NNCF leaves gates
    layers: int  # in all
    macs: float  # share of the multiplications in int8
    attempts: list[Attempt]


# ---- what is needed --------------------------------------------------------------------------------------------------


def source_of(model: str | Path) -> Path:
    """The checkpoint file of a run folder, or itself; `ModelError` for what is none, such as an exported file."""
    file = locate(Path(model))
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{file} is no checkpoint: int8 is made from a run folder or its .safetensors"
        )
    return file


def calibration(
    sources: Sequence[Path | Callable[[], Image.Image]], preprocess: Preprocess, count: int = IMAGES
) -> Tensor:
    """Up to `count` pictures spread over all, as the network gets them: (N, 3, H, W).

    Files that cannot be read are passed over; `DataError` if none can.
    """
    images, reason = [], "there are none"
    for i in range(min(count, len(sources))):
        source = sources[i * len(sources) // min(count, len(sources))]
        try:
            images.append(preprocess(preprocess.read(source() if callable(source) else source)))
        except DataError as error:
            reason = str(error)
    if not images:
        raise DataError(f"no pictures for the calibration: {reason}")
    return torch.stack(images)


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch: int = BATCH) -> nn.Module:
    """A copy whose batch norms have the statistics of these images (N, 3, H, W): their mean over batches of `batch`.

    As in training, every norm sees what the layers before it make with the statistics of the batch.
    All else is in eval mode. Raises `UsageError` for a model without batch norms, such as a deploy
    form, or fewer than two images.
    """
    model = copy.deepcopy(model).eval()
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        raise UsageError(
            "the model has no batch norms to recompute: give the multi-branch checkpoint"
        )
    batches = [part for part in images.split(batch) if len(part) > 1]  # one value has no variance
    if not batches:
        raise UsageError(
            f"{len(images)} images for the statistics of batch norms; allowed: at least 2"
        )
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: the mean over all batches
        norm.train()
    for part in batches:
        model(part)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return model.eval()


# ---- sensitivity -----------------------------------------------------------------------------------------------------


def _layers(model: nn.Module) -> dict[str, Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


@torch.no_grad()
def _answers(model: Callable[[Tensor], Any], images: Tensor) -> list[Tensor]:
    """All outputs, float64. Of padded detections only the scores: they are sorted, boxes would jump."""
    parts = [named(model(part)) for part in images.split(BATCH)]
    keys = [key for key, value in parts[0].items() if value.is_floating_point()]
    keys = ["scores"] if {"boxes", "scores", "labels"} <= parts[0].keys() else keys
    return [torch.cat([part[key] for part in parts]).double() for key in keys]


def sqnr(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Signal to quantization noise, of the worst output: 10 log10(sum a^2 / sum (a - b)^2), at most 200 dB."""
    pairs = [
        (a.square().sum().item(), (a - b).square().sum().item())
        for a, b in zip(reference, other, strict=True)
    ]
    return min(
        10 * math.log10(max(signal, 1e-300) / max(noise, signal * 1e-20, 1e-300))
        for signal, noise in pairs
    )


def _agreement(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float | None:
    if len(reference) > 1 or reference[0].ndim != 2:
        return None
    return (reference[0].argmax(1) == other[0].argmax(1)).double().mean().item()


def _rounded_weight(weight: Tensor) -> Tensor:
    scale = torch.from_numpy(safe_scales(weight.flatten(1).numpy())).to(weight.dtype)
    return torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros_like(scale), 0, -127, 127
    )


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    scale = max(high - low, 1e-12) / 255
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


@torch.no_grad()
def sensitivity(model: nn.Module, images: Tensor) -> list[Layer]:
    """What each layer with weights of a deploy form does to the outputs when it alone is in int8, the worst first.

    `images` (N, 3, H, W) give the ranges and the outputs compared; the time is that of one pass for
    each layer.
    """
    model = copy.deepcopy(model)
    layers = _layers(model)
    ranges: dict[str, tuple[float, float]] = {}

    def record(name: str, x: Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))  # zero must be among the values: it is the padding
        ranges[name] = min(low, x.min().item()), max(high, x.max().item())

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
        for name, layer in layers.items()
    ]
    reference = _answers(model, images)
    for hook in hooks:
        hook.remove()
    found = []
    for name, (low, high) in ranges.items():
        layer, weight = layers[name], layers[name].weight.data
        layer.weight.data = _rounded_weight(weight)
        hook = layer.register_forward_pre_hook(
            lambda _, args, low=low, high=high: (_rounded(args[0], low, high),)
        )
        outputs = _answers(model, images)
        hook.remove()
        layer.weight.data = weight
        found.append(Layer(name, sqnr(reference, outputs), _agreement(reference, outputs)))
    return sorted(found, key=lambda layer: layer.sqnr)


@torch.no_grad()
def _macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiplications of each layer with weights."""
    counts: dict[str, int] = {}

    def count(name: str, layer: Linear, output: Tensor) -> None:
        counts[name] = counts.get(name, 0) + output.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
        for name, layer in _layers(model).items()
    ]
    model(example)
    for hook in hooks:
        hook.remove()
    return counts


# ---- all together ----------------------------------------------------------------------------------------------------


def _matching(layers: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The layers that the user named, in whole or with wildcards."""
    chosen: list[str] = []
    for pattern in patterns:
        matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(f"no layer {pattern!r} to skip: {choose(pattern, layers)}")
        chosen += [name for name in matches if name not in chosen]
    return chosen


def _first(result: Mapping[str, Any]) -> float:
    """The figure that decides."""
    value = next(iter(result.values()))
    if value is None:
        raise DataError(f"the validation set has nothing to measure {next(iter(result))} on")
    return float(value)


def _evaluate(
    predictor: Predictor, batches: Any, classes: Sequence[str]
) -> tuple[dict[str, Any], Tensor | None]:
    """The task's figures, and of a classifier the logits of all images: (N, classes)."""
    logits: list[Tensor] = []

    def keep(prediction: Prediction, sample: int) -> None:
        if isinstance(prediction, Labels):
            logits.append(prediction.logits)

    result = evaluate(predictor, predictor.task, batches, classes, on_prediction=keep)
    return result, torch.stack(logits) if logits else None


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among what a metric found."""
    return {key: value for key, value in result.items() if isinstance(value, int | float)}


def _steps(limit: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16 and so on, and the limit."""
    powers = [2**i for i in range(limit.bit_length())]
    return sorted({0, limit, *(n for n in [*powers, *(3 * n for n in powers)] if n <= limit)})


def prepare(
    model: str | Path,
    images: Tensor,
    batches: Any,
    *,
    equalizing: bool = True,
    recalibrating: bool = False,
) -> Prepared:
    """The deploy form of a checkpoint, made easy to quantize, and what the checkpoint itself reaches.

    `images` (N, 3, H, W) are preprocessed (see `calibration`); `batches` are those of a DataLoader
    over the validation set, whose classes are the checkpoint's. `recalibrating` gives the batch
    norms the statistics of the images before they are folded (see `recalibrate`), `equalizing`
    makes channels alike (see `_equalize.py`). Raises `ModelError` for what is no checkpoint.
    """
    file = source_of(model)
    loaded = checkpoint.load(file)
    network: torch.nn.Module = loaded.model.float()
    task, limits = tasks.find(loaded.model.task), limits_of(loaded.meta)
    # As `load` does, so that the file finds what the checkpoint does.
    if limits is not None and task.limit is not None:
        task.limit(loaded.model.head, limits)
    network = recalibrate(network, images) if recalibrating else network
    deployed, pairs = reparameterize(network, images[:1]), 0
    if equalizing:
        deployed, pairs = equalize(deployed, images, BATCH)
    facts = replace(loaded.meta, exported=Exported(file.name, hash_of([file])))
    facts = facts_of_use(facts, Deployable(loaded.model, loaded.preprocess, limits=limits))
    held: list[Tensor] = []

    def watched() -> Iterator[Any]:
        for batch in patient(batches):
            held.extend(batch.images[:1])
            yield batch

    result, logits = _evaluate(load(file), watched(), loaded.classes)
    some = torch.stack(held[:: -(-len(held) // BATCH)])
    return Prepared(facts, deployed, images, some, batches, result, logits, pairs, recalibrating)


def missing(runtime: str) -> str | None:
    """What int8 files for a runtime would need and is missing here, with the command.

    None if nothing is; the runtimes are those of `int8`.
    """
    package = int8.find(runtime).package
    if find_spec(package) is None:
        return f"int8 for {runtime} needs {package}: pip install 'fleetnet[quantize]'"
    return runtimes.find(runtime).missing()


def quantize(  # noqa: PLR0915
    prepared: Prepared,
    runtime: str,
    path: str | Path,
    *,
    max_drop: float = 1.0,
    skip: Sequence[str] = (),
    most: float = MOST,
    facts: Mapping[str, object] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Quantized:
    """Write a network in int8 for a runtime ("onnx" or "openvino") to `path`, if it stays accurate.

    `max_drop` is what may be lost of the task's first figure, in points. Layers of the deploy form
    named by `skip` (with wildcards) stay in float; a share of up to `most` more may. `facts` of the
    calibration go into the sidecar; `report` gets a line for each step.

    Raises `UsageError` for another runtime or an unknown layer, `ExportError` if a package is
    missing or the drop stays beyond `max_drop`: then nothing is written, and files that were at
    `path` stay.
    """
    path, metric = Path(path), prepared.metric
    if runtime not in names("int8"):
        raise UsageError(f"no int8 for the runtime {runtime!r}: {choose(runtime, names('int8'))}")
    if max_drop < 0 or not 0 <= most <= 1:
        raise UsageError(
            f"max_drop is {max_drop} and most is {most}; allowed: 0 or more points, a "
            "share from 0 to 1"
        )
    to, quantizer = runtimes.find(runtime), int8.find(runtime)
    if absent := missing(runtime):
        raise ExportError(absent)
    if path.suffix != to.suffix:
        raise UsageError(
            f"{path}: a file for {runtime} ends in {to.suffix}, not in {path.suffix or 'nothing'}"
        )
    layers, example, before = (
        list(_layers(prepared.deployed)),
        prepared.images[:1],
        _first(prepared.result),
    )
    chosen = _matching(layers, skip)
    with torch.no_grad():
        values = named(prepared.deployed(example))
    # The metrics of the checkpoint are not those of the file, which come to the sidecar when they
    # are known.
    described = tuple(describe(name, value) for name, value in values.items())
    exported = replace(prepared.facts.exported or Exported(), outputs=described)
    about = replace(prepared.facts, metrics=None, exported=exported)
    attempts: list[Attempt] = []
    with beside(path, "quantize") as folder:
        between = folder / f"float{to.suffix}"
        to.export(Request(prepared.deployed, example, between, list(values)))
        write = quantizer.writer(between, prepared.images.numpy())
        for more in _steps(min(int(most * len(layers)), len(layers) - len(chosen))):
            if more == 1:
                report("measuring how much each layer disturbs the outputs")
            others = (
                [layer.name for layer in prepared.sensitivity if layer.name not in chosen]
                if more
                else []
            )
            skipped = chosen + others[:more]
            done = folder / str(more)  # each its own: what is loaded must not be overwritten
            finished, sidecar = done / path.name, done / path.with_suffix(".json").name
            done.mkdir()
            rounded = write(set(skipped), finished, about.to_json())
            weights = quantizer.integer_weights(finished)
            if unsafe := overflowing(weights):
                raise ExportError(
                    f"{path} was not written: pairs of products in {', '.join(unsafe)} leave 16 "
                    "bits, so that CPUs without VNNI would compute something else"
                )
            sidecar.write_text(to_json(about.to_json()), encoding="utf-8")
            predictor = load(finished)
            result, logits = _evaluate(predictor, prepared.batches, prepared.facts.classes)
            attempts.append(Attempt(skipped, result, before - _first(result)))
            report(
                f"{len(skipped)} of {len(layers)} layers in float: {metric} {_first(result):.2f}, "
                f"{before:.2f} before"
            )
            if attempts[-1].drop <= max_drop:  # false for NaN
                break
        else:
            tried = ", ".join(
                f"{a.drop:.2f} with {len(a.skipped)} of {len(layers)} layers in float"
                for a in attempts
            )
            raise ExportError(
                f"{path} was not written: int8 loses more than the {max_drop:g} points of {metric} "
                f"that are allowed (float: {before:.2f}): {tried}. Calibrate on pictures like "
                "those in use, allow more, or leave more layers in float"
            )
        left = [name for name in layers if name not in rounded and name not in skipped]
        noise = sqnr(_answers(prepared.deployed, prepared.held), _answers(predictor, prepared.held))
        agreement = (
            None
            if logits is None or prepared.logits is None
            else _agreement([prepared.logits], [logits])
        )
        macs = _macs(prepared.deployed, example)
        in_int8 = sum(count for name, count in macs.items() if name in rounded) / max(
            sum(macs.values()), 1
        )
        golden = done / ("golden.npz" if path.stem == "model" else f"{path.stem}.golden.npz")
        outputs = dict(zip(values, predictor.raw(example.numpy()), strict=True))
        np.savez(golden, allow_pickle=False, image=example.numpy(), **outputs)
        of_int8 = Int8(
            figures=figures(result),
            figures_of_float=figures(prepared.result),
            others={
                "metric": metric, "max_drop": max_drop,
                "drop": attempts[-1].drop, "agreement": agreement, "sqnr_db": noise, "layers": len(layers),
                "skipped": skipped, "others_in_float": left, "macs": in_int8,
                "attempts": [{"skipped": attempt.skipped, "drop": attempt.drop} for attempt in attempts],
                "sensitivity": [asdict(layer) for layer in prepared.__dict__.get("sensitivity", ())] or None,
                "calibration": {"images": len(prepared.images), **(facts or {})},
                "equalized": prepared.equalized, "recalibrated": prepared.recalibrated,
                "quantizer": quantizer.package, "quantizer_version": version(quantizer.package),
                "cpus": CPUS, "largest_pair": max((int(pairs(w).max()) for w in weights.values()), default=0),
                "largest_pair_allowed": LARGEST_PAIR, "evaluated_on": str(int8_class()),
            },
        )  # fmt: skip
        of_file = FileFacts(
            name=path.name,
            sha256=hash_of(files(finished)),
            golden=golden.name,
            runtime=runtime,
            runtime_version=version(to.package),
            precision="int8",
            opset=to.default_opset,
            inputs=(describe("image", example),),
            int8=of_int8,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        text = signed(replace(about, metrics=figures(result), file=of_file).to_json())
        sidecar.write_text(text, encoding="utf-8")
        # the file itself last
        for one in sorted(done.iterdir(), key=lambda f: f.name == path.name):
            os.replace(one, path.with_name(one.name))
    return Quantized(
        path, path.with_name(sidecar.name), path.with_name(golden.name), result, attempts[-1].drop, agreement, noise,
        skipped, left, len(layers), in_int8, attempts,
    )  # fmt: skip
