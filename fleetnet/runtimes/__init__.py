"""Runtimes: the deploy form as a file that a device runs, handed over only with proof. One file is one runtime.

`Runtime` says what such a file holds. The precision that an exported file was written in is written
in the file or beside it: `load` gives what `verify` saw.

Everything that runs a file calls `load` of this module: verifying compares two such calls, a
benchmark repeats one, a prediction is one and a decode. Call `load` and `trace` of this module,
never those of a runtime's own file: they add the lock that makes a file safe for many threads (see
`_guarded`). `deliver` puts the pieces together.

A model's outputs are a tensor, a sequence of them, or a mapping by name, batch first. Detections
padded to a fixed number (`boxes.select`: "boxes", "scores", "labels" and more) are compared as
sets, and so is what other outputs mean, where the caller can say it; see `_agreement`.
"""

import copy
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..boxes import unpad
from ..errors import ExportError, FleetnetError, ModelError, UsageError, choose
from ..files import beside
from ..find import find as find_module
from ..find import names
from ..proof.agreement import Agreement as Agreement
from ..proof.agreement import Meaning as Meaning
from ..proof.agreement import compare, limits
from ..reading import hash_of
from ..reparam import WIDEST, allowed, difference, of_one_size, reparameterize
from ._explain import explanation as explanation
from ._guarded import Calls, check_threads, lock_of
from ._guarded import Guarded as Guarded
from ._opened import check_hash as check_hash
from ._opened import checked as checked
from ._opened import files as files
from ._opened import opened
from ._opened import read_sidecar as read_sidecar
from ._opened import signed as signed
from ._opened import size_of as size_of
from ._preprocess import Preprocessed as Preprocessed
from ._program import reason
from ._sizes import Elsewhere as Elsewhere
from ._sizes import Sizes as Sizes
from ._sizes import open_shape
from ._sizes import parse_open as parse_open

Value = TypeVar("Value")
Opened = TypeVar("Opened", covariant=True)
Runner = Callable[[np.ndarray], Sequence[np.ndarray]]
Outputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Reference = Callable[[Tensor], Outputs]


class Opener(Protocol[Opened]):
    """`load` or `trace` of a runtime: an exported file -> a function of one batch (N, 3, H, W).

    Raises `ModelError` for a file that is missing, damaged or has other inputs, `ExportError` where
    a package is missing. Reading some formats can run code that is hidden in the file: they refuse
    unless `trust` says that it comes from somebody who is trusted like a program.
    """

    def __call__(
        self, path: Path | str, threads: int = 1, *, trust: bool = False
    ) -> Callable[[np.ndarray], Opened]: ...


class Runtime(Protocol):
    """What the file of a runtime holds, all of it at its top level.

    What a runtime does not have is None where the contract allows that.
    """

    suffix: str  # of the exported file, such as ".onnx"; of two parts (".xml", ".bin") the first
    package: str  # the distribution that runs the file: its version goes into the sidecar
    # Precision -> largest difference allowed, relative to the standard deviation of the model's own
    # outputs, with the reason in a comment; the first precision is the default.
    tolerances: dict[str, float]
    # Of what `load` gives: "many" where any number of threads may call it at once, "file" where one
    # call of a file may run at a time, "process" where one call of all files of the runtime may.
    calls: Calls
    one_pool: bool  # whether all files of a process share one number of threads
    integers: str  # the type of integer outputs in the file: "int64" unless it has none
    OPEN_SIZE: bool  # whether a file can leave height and width open; then `export` takes `sizes`
    isolated: tuple[str, ...]  # what a converter needs that cannot live beside torch: `_isolated`

    @property
    def default_opset(self) -> int | None:
        """The operator set, unless another is asked for; None where the format has none."""

    def lacks(self) -> str | None:
        """None, or what is missing here, with the command that would add it."""

    def cannot_run(self) -> str | None:
        """None, or why this machine cannot run the file, which `inspect` looks at then."""

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path | str,
        *,
        opset: int | None = None,
        dynamic: bool = False,
        metadata: Mapping[str, object] | None = None,
        outputs: Sequence[str] = ...,
        precision: str = ...,
        sizes: Sizes | None = None,
    ) -> None:
        """Write `model` as it is, in eval mode; nothing is verified here (see `deliver`).

        `example` (N, 3, H, W) fixes the size unless `sizes` says which others are allowed;
        `dynamic` leaves N open. `metadata`, which must be JSON, goes into the file where the format
        can hold it; `outputs` names the outputs in their order. Raises `UsageError` for what the
        format cannot have, `ExportError` where a package is missing or the model cannot be
        converted.
        """

    @property
    def load(self) -> Opener[list[np.ndarray]]:
        """What runs a file: its outputs in their order."""

    @property
    def trace(self) -> Opener[dict[str, np.ndarray]] | None:
        """What a file's layers put out, by name, in the order of execution; None where hidden."""

    @property
    def metadata(self) -> Callable[[Path | str], dict[str, object]] | None:
        """metadata(path) -> what `export` was given; None of a format that cannot hold it."""

    @property
    def inspect(self) -> Callable[[Path | str, nn.Module], str] | None:
        """inspect(path, model) -> what was looked at in a file that cannot be run, in words.

        Raises `ExportError` where the file is not what it should be. None of a format that every
        machine runs.
        """


def find(name: str) -> Runtime:
    """The file of a runtime; `UsageError` with the nearest name if there is none."""
    return cast(Runtime, find_module("runtimes", name))


@dataclass(frozen=True)
class Parity:
    """How far two ways to compute the same outputs are apart, over all examples."""

    max_abs: float  # of padded detections: the largest difference of scores
    relative: float  # max_abs of the worst output / standard deviation of that output of the reference; or their drift
    tolerance: float  # largest `relative` that passes
    # share of images with the same largest logit; None unless (N, classes)
    top1_agreement: float | None
    images: int
    agreement: Agreement | None = None  # of boxes, masks and class maps

    @property
    def passed(self) -> bool:
        agreed = self.agreement is None or self.agreement.passed
        return agreed and self.relative <= self.tolerance  # false for NaN

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN or infinity: those become None."""
        finite = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }
        return {**finite, "passed": self.passed}

    def __str__(self) -> str:
        agree = "" if self.top1_agreement is None else f", same top-1 for {self.top1_agreement:.1%}"
        agree += "" if self.agreement is None else f"; {self.agreement}"
        return (
            f"largest difference {self.max_abs:.3g}, relative {self.relative:.3g} "
            f"(allowed {self.tolerance:.3g}) on {self.images} images{agree}"
        )


@dataclass(frozen=True)
class Delivered:
    """A file that was proven equal to its model, and what lies beside it."""

    path: Path
    sidecar: Path  # JSON: the facts, inputs and outputs, parity, hash
    golden: Path  # npz: "image" and the expected outputs by name
    parity: Parity | None  # None: this machine cannot run the file, see `unverified`
    seconds: float  # of collapsing and exporting
    unverified: str | None = None  # why the file was only inspected, and what the inspection found
    # at other sizes, of a file that has any
    elsewhere: Mapping[tuple[int, int], Parity] = field(default_factory=dict)


def choice(text: str) -> tuple[str, str]:
    """What "mnn" or "mnn:fp16" stands for: a runtime and its precision, the first unless given.

    Raises `UsageError` for unknown ones, with the nearest.
    """
    name, _, precision = text.strip().partition(":")
    if name not in names("runtimes"):
        raise UsageError(f"no runtime {name!r}: {choose(name, names('runtimes'), 'runtime')}")
    allowed = list(find(name).tolerances)
    if precision and precision not in allowed:
        raise UsageError(
            f"{name} has no precision {precision!r}: {choose(precision, allowed, 'precision')}"
        )
    return name, precision or allowed[0]


def by_suffix() -> dict[str, str]:
    """The runtime of an exported file, by the suffix of its name."""
    return {find(name).suffix: name for name in names("runtimes")}


def label(name: str, precision: str) -> str:
    """The folder and the title of a runtime's file: "mnn", or "mnn-fp16" for a precision that is not the default."""
    return name if precision == next(iter(find(name).tolerances)) else f"{name}-{precision}"


def _guard(
    name: str,
    opener: Opener[Value],
    path: Path | str,
    threads: int,
    trust: bool,
) -> Guarded[Value]:
    """What a runtime's `load` or `trace` makes of a file, for many threads."""
    check_threads(str(path), threads)
    lock = {"many": None, "process": lock_of(name), "file": threading.RLock()}[find(name).calls]
    with lock or nullcontext(), lock_of("loading"):
        run = opened(name, lambda: opener(path, threads, trust=trust), Path(path))
        return Guarded(run, str(path), lock)


def load(
    name: str, path: Path | str, threads: int = 1, *, trust: bool = False
) -> Guarded[list[np.ndarray]]:
    """A function of one batch (N, 3, H, W) that runs a file in a runtime and returns its outputs in order.

    Any number of threads of this process may call it; a fork of the process may not. Raises what
    the runtime's own `load` raises, and `FleetnetError` for several `threads` in a fork of a
    process that has computed.
    """
    return _guard(name, find(name).load, path, threads, trust)


def trace(
    name: str, path: Path | str, threads: int = 1, *, trust: bool = False
) -> Guarded[dict[str, np.ndarray]]:
    """A function of one batch that gives what the layers of a file put out.

    Threads may call it as that of `load`. Raises `ExportError` for a runtime that hides its layers,
    else what `load` raises.
    """
    opener = find(name).trace
    if opener is None:
        raise ExportError(f"{name} cannot show what its layers put out")
    return _guard(name, opener, path, threads, trust)


def metadata(name: str, path: Path) -> dict[str, object] | None:
    """The facts that a file holds itself, None if the format holds none.

    Raises `ModelError` where they cannot be read.
    """
    read = find(name).metadata
    if read is None:
        return None
    try:
        return read(path)
    except FleetnetError:
        raise
    except Exception as error:  # parsers of damaged files raise nearly anything
        said = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path}: its description cannot be read: {said}") from error


def version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return _version(package)
    except PackageNotFoundError:
        return None


def _named(outputs: Outputs, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """Outputs by name: their own in a mapping, else `names`, else their number."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return dict(zip(names or map(str, range(len(tensors))), tensors, strict=True))


def _padded(outputs: Mapping[str, Tensor]) -> bool:
    return {"boxes", "scores", "labels"} <= outputs.keys()


def _agree(
    expected: Sequence[Mapping[str, Tensor]],
    given: Sequence[Mapping[str, Tensor]],
    meaning: Meaning,
    tolerance: float,
) -> Agreement | None:
    ours, theirs = (
        [found for outputs in side for found in meaning.decode(outputs)]
        for side in (expected, given)
    )
    return compare(ours, theirs, meaning, tolerance)


def _one_value(classes: Tensor, tolerance: float) -> bool:
    """Whether a map of one class everywhere would pass for these class maps."""
    return (
        classes.unique(return_counts=True)[1].max().item()
        >= limits(tolerance).pixels * classes.numel()
    )


@torch.no_grad()
def verify(
    reference: Reference,
    runner: Runner,
    examples: Sequence[Tensor] | Tensor,
    tolerance: float,
    meaning: Meaning | None = None,
) -> Parity:
    """Compare `runner` with `reference` on batches of images, each (N, 3, H, W); a stack (k, N, 3, H, W) is k batches.

    Differences are relative to the spread of an output over all the examples: one image's few
    logits may lie close together by chance. Where float32 leaves more of a reference that is a
    module, more than `tolerance` is allowed: see `reparam.allowed`. Integers must be the same (of
    class maps, nearly all). Padded detections are compared as sets, and so are the boxes, masks and
    class maps that `meaning` finds in the outputs of both sides.

    Raises `ExportError` if the number or shapes of outputs differ, the reference is not finite, or
    nothing would be proven: `meaning` finds no box in padded detections on any example, or there is
    but a class map, of one class.
    """
    expected: list[dict[str, Tensor]] = []
    given: list[dict[str, Tensor]] = []
    for image in examples:
        expected.append({name: output.cpu() for name, output in _named(reference(image)).items()})
        found = [
            torch.from_numpy(np.array(output, order="C")) for output in runner(image.cpu().numpy())
        ]
        shapes = [
            [tuple(output.shape) for output in side] for side in (expected[-1].values(), found)
        ]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"the model's outputs have shapes {shapes[0]}, the exported file's {shapes[1]}"
            )
        given.append(dict(zip(expected[-1], found, strict=True)))
    references, others = (
        [torch.cat([o[name] for o in side]) for name in expected[0]] for side in (expected, given)
    )
    images = len(references[0])
    if not all(output.isfinite().all() for output in references):
        raise ExportError(
            "the model itself computes NaN or infinity on the examples: nothing can equal that"
        )
    padded = _padded(expected[0])
    if padded:
        how = meaning or Meaning(lambda outputs: unpad(dict(outputs)))
        how = replace(how, count=expected[0]["scores"].shape[1])
        agreed = _agree(expected, given, how, tolerance) or Agreement(tolerance)
        if meaning and not agreed.boxes:
            raise ExportError(
                "the model finds nothing on the examples, so nothing is proven: give pictures "
                "(--data) with objects"
            )
        return Parity(agreed.score or 0.0, agreed.drift, tolerance, None, images, agreed)
    agreement = _agree(expected, given, meaning, tolerance) if meaning else None
    pairs = list(zip(references, others, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    max_abs, relative = difference([a for a, _ in floats], [b for _, b in floats])
    if tolerance < relative <= WIDEST and isinstance(reference, nn.Module):
        tolerance = allowed(tolerance, _in_float64(reference, examples), [a for a, _ in floats])
    equal = [(a == b).double().mean().item() for a, b in pairs if not a.is_floating_point()]
    if equal and not floats and any(_one_value(a, tolerance) for a, _ in pairs):
        raise ExportError(
            "the model finds the same class all over the examples, so nothing is proven: give "
            "pictures (--data) of several classes"
        )
    if equal:
        agreement = replace(agreement or Agreement(tolerance), pixels=min(equal))
    top1 = None
    if len(references) == 1 and references[0].ndim == 2:
        top1 = (references[0].argmax(1) == others[0].argmax(1)).double().mean().item()
    return Parity(max_abs, relative, tolerance, top1, images, agreement)


def _in_float64(model: nn.Module, examples: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """The floating outputs over all examples, of the same weights in float64."""
    exact = copy.deepcopy(model).double()
    outputs = [
        _named(exact(image.double() if image.is_floating_point() else image)) for image in examples
    ]
    floats = [name for name, output in outputs[0].items() if output.is_floating_point()]
    return [torch.cat([output[name] for output in outputs]) for name in floats]


def _examples(example: Tensor) -> list[Tensor]:
    """The example and three random batches of the same shape and range."""
    generator = torch.Generator().manual_seed(0)
    mean, std = example.double().mean().item(), example.double().std().item() or 1.0
    batches = [example]
    for _ in range(3):
        noise = torch.randn(example.shape, generator=generator) * std + mean
        if not example.is_floating_point():
            noise = noise.clamp(0, 255)
        batches.append(noise.to(example))
    return batches


def _with_batch(examples: Sequence[Tensor]) -> list[Tensor]:
    """The examples, and a batch of another number of images than was traced."""
    return [*examples, torch.cat([examples[0], examples[0], *examples[1:2]])]


def _describe(name: str, value: Tensor, dynamic: bool, integers: str = "int64") -> dict[str, Any]:
    shape = ["batch" if dynamic else value.shape[0], *value.shape[1:]]
    dtype = integers if value.dtype == torch.int64 else str(value.dtype).removeprefix("torch.")
    layout = {"layout": "NCHW"} if value.ndim == 4 else {}
    return {"name": name, "shape": shape, "dtype": dtype, **layout}


def check_open_size(name: str) -> None:
    """`UsageError` for a runtime whose files cannot leave height and width open."""
    if not find(name).OPEN_SIZE:
        able = [other for other in names("runtimes") if find(other).OPEN_SIZE]
        raise UsageError(
            f"{name} takes the size that a file was exported at: height and width can be left open "
            f"for {', '.join(able)} only; leave size out of dynamic, or export a file for each size"
        )


def _check_any_size(model: nn.Module, path: Path, values: Mapping[str, Tensor]) -> None:
    """`ExportError` for a network that is written for one size, with the reason."""
    kernels = of_one_size(model)
    why = ""
    if kernels:
        why = (
            f"the kernels of {kernels[0]} and {len(kernels) - 1} more modules (ParC) are frozen at "
            "the size of their feature when they are collapsed"
        )
    elif _padded(values):
        why = "detections are chosen in its graph, which is written for one size (raw outputs of ssd and yolo are not)"
    if why:
        raise ExportError(
            f"{path} was not written: its height and width cannot be left open: {why}"
        )


def _values_at(
    model: nn.Module, image: Tensor, path: Path, outputs: Sequence[str]
) -> dict[str, Tensor]:
    """What a model computes at another size than its own; `ExportError` where it cannot."""
    try:
        with torch.no_grad():
            return _named(model(image), outputs)
    except (
        Exception
    ) as error:  # networks of timm have errors of many kinds for sizes that they cannot have
        size = f"{image.shape[-2]}x{image.shape[-1]}"
        raise ExportError(
            f"{path} was not written: its height and width cannot be left open: the network does "
            f"not compute at {size}: {reason(error)}"
        ) from error


def verify_elsewhere(
    reference: Reference,
    runner: Runner,
    elsewhere: Sequence[Elsewhere],
    tolerance: float,
    path: Path,
) -> list[tuple[Elsewhere, Parity]]:
    """`verify` at each other size of a file that leaves it open; `ExportError` where the file cannot compute at all."""
    proofs = []
    for at in elsewhere:
        try:
            proofs.append((at, verify(reference, runner, at.examples, tolerance, at.meaning)))
        except FleetnetError as error:
            wrong = error if isinstance(error, ModelError) else f"{path}: {error}"
            raise ExportError(
                f"at {at}, another size than its own, the file does not compute: {wrong}"
            ) from error
    return proofs


def _in_torch(model: nn.Module, device: torch.device) -> Runner:
    def run(image: np.ndarray) -> list[np.ndarray]:
        return [
            output.cpu().numpy()
            for output in _named(model(torch.from_numpy(image).to(device))).values()
        ]

    return run


def _advice(
    tolerance: float,
    model: nn.Module,
    deployed: nn.Module,
    examples: Sequence[Tensor],
    runtime: str,
    precision: str,
    dynamic: bool,
    meaning: Meaning | None,
) -> str:
    """Which step changed the outputs: a wrong collapse, rounding that the network amplifies, or the conversion."""
    example = examples[0]
    collapsed = verify(model, _in_torch(deployed, example.device), examples, tolerance, meaning)
    if collapsed.passed:
        to = find(runtime)
        finest = min(to.tolerances, key=to.tolerances.__getitem__)
        tries = [f"{runtime}:{finest}"] if precision != finest else []
        tries += ["another opset"] if to.default_opset is not None and not tries else []
        tries += ["a fixed batch size"] if dynamic else []
        return (
            f"The deploy form is right in torch (relative {collapsed.relative:.3g}), so the "
            f"conversion to {runtime}:{precision} changed "
            f"it{': try ' if tries else ''}{', or '.join(tries)}"
        )
    exact = copy.deepcopy(model).double()
    doubles = [image.double() if image.is_floating_point() else image for image in examples]
    again = verify(
        exact, _in_torch(reparameterize(exact, doubles[0]), example.device), doubles, 1e-8, meaning
    )
    if again.passed:
        return (
            f"Collapsing is right in float64 (relative {again.relative:.3g}), not in the model's "
            f"precision (relative {collapsed.relative:.3g}): its weights amplify rounding, as "
            "those of a network that diverged do"
        )
    return (
        "The deploy form differs already in torch, in float64 too (relative "
        f"{again.relative:.3g}): a `fuse()` of this network is wrong"
    )


def deliver(  # noqa: C901, PLR0915
    model: nn.Module,
    example: Tensor,
    path: Path | str,
    runtime: str,
    facts: Mapping[str, object],
    *,
    precision: str | None = None,
    opset: int | None = None,
    dynamic: bool = False,
    examples: Sequence[Tensor] | None = None,
    outputs: Sequence[str] = ("logits",),
    meaning: Meaning | None = None,
    explain: bool = False,
    sizes: Sizes | None = None,
    elsewhere: Sequence[Elsewhere] = (),
) -> Delivered:
    """Collapse, export, load in the runtime, prove equal to `model`, and only then put the file at `path`.

    `model` is the multi-branch model in eval mode; it stays as it is, and it is what the file is
    compared with, so that one comparison covers collapsing and conversion. `example` is one batch
    of the deployed size, (N, 3, H, W); `examples` are the batches compared (unless given: the
    example and random ones). `dynamic` leaves N open. `facts` (the checkpoint's metadata; JSON)
    goes into the sidecar `<stem>.json` and, where the format can, into the file; `golden.npz`
    (`<stem>.golden.npz` for a stem other than "model") is the example with its outputs. To embed
    the preprocessing, give `Preprocessed(model, ...)` and an example of pixels. `outputs` names the
    outputs of a model that gives no mapping. `meaning` says what they mean, so that boxes, masks
    and class maps are compared too; with `explain` the error of a file that differs names the first
    layer that does. A file that this machine cannot run (Core ML on Linux) is inspected instead,
    and says so. With `sizes` the file takes other heights and widths too, and is compared at each
    size of `elsewhere` by the same rules.

    Whatever fails, nothing is left behind and files that were at `path` stay. Raises `ModelError`
    for a model in training mode, `UsageError` for an unknown runtime, suffix or opset, for
    `dynamic` where detections are chosen in the graph, and for `sizes` of a runtime without;
    `ExportError` if export or comparison fails, and for `sizes` of a network that is written for
    one.
    """
    path = Path(path)
    runtime, precision = choice(f"{runtime}:{precision or ''}")
    to = find(runtime)
    tolerance = to.tolerances[precision]
    if path.suffix != to.suffix:
        raise UsageError(
            f"{path}: a file for {runtime} ends in {to.suffix}, not in {path.suffix or 'nothing'}"
        )
    if sizes is not None:
        check_open_size(runtime)
        if len(elsewhere) < 2:
            raise UsageError(
                "a file that leaves its size open is compared at several others: give `elsewhere`"
            )
        sizes.check((example.shape[-2], example.shape[-1]), "a file that leaves its size open")
    examples = _examples(example) if examples is None else list(examples)
    if dynamic:
        examples = _with_batch(examples)
        elsewhere = [replace(at, examples=_with_batch(at.examples)) for at in elsewhere]
    sidecar, golden = path.with_suffix(".json"), path.with_suffix(".golden.npz")
    if path.stem == "model":
        golden = path.with_name("golden.npz")

    start = time.perf_counter()
    with torch.no_grad():
        values = _named(model(example), outputs)
    if sizes is not None:
        _check_any_size(model, path, values)
    deployed = reparameterize(model, example)
    if dynamic and _padded(values):
        raise UsageError(
            "a graph that chooses detections takes one image at a time: dynamic must be off"
        )
    described = [_describe(name, value, dynamic, to.integers) for name, value in values.items()]
    image = _describe("image", example, dynamic)
    more: dict[str, Any] = {}
    if sizes is not None:
        height, width = example.shape[-2:]
        # by which the one is told from the other
        larger = height + sizes.step, width + 2 * sizes.step
        known: dict[Hashable, str] = {(height, larger[0]): "height", (width, larger[1]): "width"}
        there = _values_at(model, example.new_zeros(*example.shape[:2], *larger), path, outputs)
        for about, (name, value) in zip(described, values.items(), strict=True):
            about["shape"] = about["shape"][:1] + open_shape(value, there[name], known)[1:]
        image["shape"] = [*image["shape"][:2], "height", "width"]
        more = {"sizes": {"made_at": list(example.shape[-2:]), **sizes.to_dict()}}
    facts = {**facts, "form": "deploy", "outputs": described, **more}
    with beside(path, "export") as folder:  # a folder, since some formats are two files
        file = folder / path.name
        to.export(
            deployed, example, file, opset=opset, dynamic=dynamic, metadata=facts, outputs=list(values),
            precision=precision, sizes=sizes,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        proofs: list[tuple[Elsewhere, Parity]] = []
        parity, unverified = None, to.cannot_run()
        if unverified and to.inspect is not None:
            unverified = f"{unverified}; {to.inspect(file, deployed)}"
        else:
            runner = load(runtime, file, trust=True)  # our own file
            parity = verify(model, runner, examples, tolerance, meaning)
            proofs = verify_elsewhere(model, runner, elsewhere if sizes else (), tolerance, path)
        if parity and not parity.passed:
            advice = _advice(
                tolerance, model, deployed, examples, runtime, precision, dynamic, meaning
            )
            if explain:
                advice += (
                    f". {explanation(deployed, file, runtime, examples, tolerance, trust=True)}"
                )
            raise ExportError(
                f"{path} was not written: its outputs are not those of the model: "
                f"{parity}. {advice}"
            )
        for at, proof in proofs:
            if not proof.passed:
                advice = ""
                if explain:
                    advice = f". {explanation(deployed, file, runtime, list(at.examples), tolerance, trust=True)}"
                raise ExportError(
                    f"{path} was not written: at {at}, another size than its own, its outputs are "
                    f"not those of the model: {proof}{advice}"
                )
        arrays = {name: value.cpu().numpy() for name, value in {"image": example, **values}.items()}
        np.savez(folder / golden.name, allow_pickle=False, **arrays)
        document = {
            **facts,
            "file": path.name,
            "sha256": hash_of(files(file)),
            "golden": golden.name,
            "runtime": runtime,
            "runtime_version": version(to.package),
            "precision": precision,
            "opset": to.default_opset if opset is None else opset,
            "inputs": [image],
            "parity": parity.to_dict() if parity else None,
            **({"parity_at": {str(at): proof.to_dict() for at, proof in proofs}} if proofs else {}),
            "unverified": unverified,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (folder / sidecar.name).write_text(signed(document), encoding="utf-8")
        # the file itself last
        for finished in sorted(folder.iterdir(), key=lambda f: f.name == path.name):
            target = path.with_name(finished.name)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(finished, target)
    return Delivered(
        path, sidecar, golden, parity, seconds, unverified, {at.size: proof for at, proof in proofs}
    )
