"""The one way to a file: a model goes in, and a file that provably computes the same comes out.

    model -> deploy form -> file -> run in its runtime and compared with the model -> handed over

What is handed over are three files: the exported file, its description (the sidecar, JSON) and
golden.npz, an input with the outputs of the model. They are written into a folder beside their
place and renamed at the end, the exported file last: whatever fails, nothing is left behind, and
files that were there stay. What is exported, timed, tried and calibrated comes through here.
"""

import os
import shutil
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError, UsageError
from ..facts import Exported, Facts, FileFacts, TensorFacts
from ..files import beside
from ..proof.agreement import Meaning
from ..proof.explain import explanation
from ..proof.verify import (
    Elsewhere,
    Named,
    Parity,
    are_padded,
    by_name,
    run_as,
    verify,
    verify_elsewhere,
    which_step,
)
from ..reading import hash_of
from ..reparam import of_one_size, reparameterize
from ..runtimes import (
    File,
    Request,
    Sizes,
    check_open_size,
    choice,
    files,
    find,
    open_shape,
    reason,
    version,
)
from .sidecar import signed

RANDOM = 3  # batches that a file is compared on beside the example, where none are given
# On another CPU a file may be so many times as far from golden.npz as it is here: sums in another
# order make some values of int8 round to the next step.
ON_OTHER_CPUS = 2.0
# Where the model finds nothing in the golden input, all scores are 0: a share of their spread
# would allow anything.
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Delivered:
    """A file that was handed over: compared with its model, or else only inspected."""

    path: Path
    sidecar: Path  # JSON: the facts, inputs and outputs, parity, hash
    golden: Path  # npz: "image" and the model's outputs by name
    parity: Parity | None  # None: this machine cannot run the file, see `unverified`
    seconds: float  # of collapsing and exporting
    unverified: str | None = None  # why the file was only inspected, and what the inspection found
    # At other sizes, of a file that has any.
    elsewhere: Mapping[tuple[int, int], Parity] = field(default_factory=dict)


@dataclass(frozen=True)
class Proof:
    """What came of running a file in its runtime."""

    parity: Parity | None  # None: this machine cannot run the file
    golden_tolerance: float  # how far the file may be from golden.npz
    unverified: str | None = None  # why not, and what was looked at instead
    elsewhere: Sequence[tuple[Elsewhere, Parity]] = ()


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class Job:
    """What is to become a file, and what the file is compared on."""

    model: nn.Module  # in eval mode, multi-branch: what the file has to compute
    deployed: nn.Module  # its deploy form, which is written
    example: Tensor  # one batch of the deployed size, (N, C, H, W)
    path: Path  # of the file, when it is finished
    runtime: str
    precision: str
    examples: Sequence[Tensor]  # the batches that are compared
    meaning: Meaning | None = None  # of the outputs, so that boxes, masks and maps are compared
    names: Sequence[str] = ("logits",)  # of the outputs of a model that gives no mapping
    opset: int | None = None
    dynamic: bool = False  # leaves N open
    sizes: Sizes | None = None  # leaves height and width open
    elsewhere: Sequence[Elsewhere] = ()  # what is compared at other sizes
    explain: bool = False  # whether the error of a file that differs names the first layer

    @property
    def tolerance(self) -> float:
        """The largest difference that passes, relative to the spread of the outputs."""
        return find(self.runtime).tolerances[self.precision]

    @cached_property
    def outputs(self) -> Named:
        """What the model computes of the example, by name."""
        with torch.no_grad():
            return by_name(self.model(self.example), self.names)

    def check(self) -> None:
        """Raise `UsageError` or `ExportError` for what the network cannot leave open."""
        if self.dynamic and are_padded(self.outputs):
            raise UsageError(
                "a graph that chooses detections takes one image at a time: dynamic must be off"
            )
        if self.sizes is not None:
            _check_any_size(self.model, self.path, self.outputs)

    def request(self, file: Path, metadata: Mapping[str, object]) -> Request:
        """What the runtime is asked for."""
        return Request(
            self.deployed,
            self.example,
            file,
            outputs=list(self.outputs),
            precision=self.precision,
            opset=self.opset,
            dynamic=self.dynamic,
            sizes=self.sizes,
            metadata=metadata,
        )

    def prove(self, request: Request) -> Proof:
        """Run the file that was written, and compare it with the model.

        Raises `ExportError` where it differs. A file that this machine cannot run is inspected instead.
        """
        runtime = find(self.runtime)
        cannot = runtime.cannot_run()
        if cannot and runtime.inspect is not None:
            return Proof(None, self.tolerance, f"{cannot}; {runtime.inspect(request)}")
        file = File(self.runtime, request.path, trust=True)  # our own
        run = file.load()
        parity = verify(self.model, run, self.examples, self.tolerance, self.meaning)
        others = self.elsewhere if self.sizes else ()
        elsewhere = verify_elsewhere(self.model, run, others, self.tolerance, self.path)
        if not parity.passed:
            raise self._refused(parity, file)
        for at, parity_there in elsewhere:
            if not parity_there.passed:
                raise self._refused_at(at, parity_there, file)
        actual = run_as(run, self.example, self.outputs)
        golden = golden_tolerance(self.outputs, actual, parity.tolerance)
        return Proof(parity, golden, None, elsewhere)

    def _refused(self, parity: Parity, file: File) -> ExportError:
        """The error for a file that differs, with the step that changed the outputs."""
        step = which_step(
            self.model,
            self.deployed,
            self.examples,
            self.tolerance,
            self.meaning,
            self._conversion(),
        )
        return ExportError(
            f"{self.path} was not written: its outputs are not those of the model: "
            f"{parity}. {step}{self._layer(file, self.examples)}"
        )

    def _refused_at(self, at: Elsewhere, parity: Parity, file: File) -> ExportError:
        """The error for a file that differs at another size than its own."""
        return ExportError(
            f"{self.path} was not written: at {at}, another size than its own, its outputs are "
            f"not those of the model: {parity}{self._layer(file, at.examples)}"
        )

    def _layer(self, file: File, examples: Sequence[Tensor]) -> str:
        """The first layer that differs, as a further sentence, where it was asked for."""
        if not self.explain:
            return ""
        return f". {explanation(self.deployed, file, list(examples), self.tolerance)}"

    def _conversion(self) -> str:
        """That the conversion is to blame, with what could be tried instead."""
        runtime = find(self.runtime)
        finest = min(runtime.tolerances, key=runtime.tolerances.__getitem__)
        tries = []
        if self.precision != finest:
            tries.append(f"{self.runtime}:{finest}")
        elif runtime.default_opset is not None:
            tries.append("another opset")
        if self.dynamic:
            tries.append("a fixed batch size")
        return (
            f"the conversion to {self.runtime}:{self.precision} changed "
            f"it{': try ' if tries else ''}{', or '.join(tries)}"
        )


def deliver(
    model: nn.Module,
    example: Tensor,
    path: Path | str,
    runtime: str,
    facts: Facts | None,
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
    """Collapse, export, run, prove equal to `model`, and only then put the file at `path`.

    `model` is the multi-branch model in eval mode; it stays as it is, and it is what the file is
    compared with, so that one comparison covers collapsing and conversion. `example` is one batch
    of the deployed size, (N, C, H, W); `examples` are the batches compared (unless given: the
    example and random ones). `dynamic` leaves N open. `facts` (None of a network that cannot
    describe itself) go into the sidecar `<stem>.json` and, where the format can, into the file;
    `golden.npz` (`<stem>.golden.npz` for a stem other than "model") is the example with the model's
    outputs. To embed the preprocessing, give `Preprocessed(model, ...)` and an example of pixels.
    `outputs` names the outputs of a model that gives no mapping. `meaning` says what they mean, so
    that boxes, masks and class maps are compared too; with `explain` the error of a file that
    differs names the first layer that does. A file that this machine cannot run (Core ML on Linux)
    is inspected instead, and says so. With `sizes` the file takes other heights and widths too, and
    is compared at each size of `elsewhere` by the same rules.

    Whatever fails, nothing is left behind and files that were at `path` stay. Raises `ModelError`
    for a model in training mode, `UsageError` for an unknown runtime, suffix or opset, for
    `dynamic` where detections are chosen in the graph, and for `sizes` of a runtime without;
    `ExportError` if export or comparison fails, and for `sizes` of a network that is written for
    one.
    """
    path = Path(path)
    runtime, precision = choice(f"{runtime}:{precision or ''}")
    check_suffix(path, runtime)
    if sizes is not None:
        _check_sizes(runtime, sizes, example, elsewhere)
    compared = around(example) if examples is None else list(examples)
    if dynamic:
        compared = _with_batch(compared)
        elsewhere = [replace(at, examples=_with_batch(at.examples)) for at in elsewhere]
    start = time.perf_counter()
    job = Job(
        model,
        reparameterize(model, example),
        example,
        path,
        runtime,
        precision,
        examples=compared,
        meaning=meaning,
        names=outputs,
        opset=opset,
        dynamic=dynamic,
        sizes=sizes,
        elsewhere=elsewhere,
        explain=explain,
    )
    job.check()
    return _carry_out(job, facts, start)


def _carry_out(job: Job, facts: Facts | None, start: float) -> Delivered:
    """Write, prove and hand over what was ordered; `start` is when it was begun."""
    described = Described.of(job)
    inside = described.inside(facts)
    with beside(job.path, "export") as folder:  # a folder, since some formats are two files
        request = job.request(folder / job.path.name, inside)
        find(job.runtime).export(request)
        seconds = time.perf_counter() - start
        proof = job.prove(request)
        package = Package(
            request.path,
            job.path,
            job.runtime,
            job.precision,
            job.opset,
            image=described.image,
            example=job.example,
            outputs=job.outputs,
            tolerance=proof.golden_tolerance,
            inside=inside,
            of_file=_of_proof(proof),
        )
        sidecar, golden = package.hand_over()
    by_size = {at.size: parity for at, parity in proof.elsewhere}
    return Delivered(job.path, sidecar, golden, proof.parity, seconds, proof.unverified, by_size)


def _of_proof(proof: Proof) -> FileFacts:
    """What the sidecar says of it."""
    return FileFacts(
        parity=None if proof.parity is None else proof.parity.to_dict(),
        parity_at={str(at): parity.to_dict() for at, parity in proof.elsewhere},
        unverified=proof.unverified,
    )


# What is handed over ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Package:
    """A finished file, still in a folder beside its place, and all that is written with it."""

    file: Path  # in that folder
    path: Path  # where it belongs
    runtime: str
    precision: str
    opset: int | None  # that was asked for
    image: TensorFacts  # the description of the input
    example: Tensor  # (N, C, H, W)
    outputs: Mapping[str, Tensor]  # what the model computes of it, by name
    tolerance: float  # how far the file may be from that: see `golden_tolerance`
    inside: Mapping[str, object]  # what the file says of itself, where the format can
    of_file: FileFacts  # what was found out about the file

    def hand_over(self) -> tuple[Path, Path]:
        """Write sidecar and golden pair, and rename all that is in the folder, the file last.

        Returns where sidecar and golden pair then are.
        """
        folder, golden = self.file.parent, golden_beside(self.path)
        arrays = {"image": self.example, **self.outputs}
        np.savez(
            folder / golden.name,
            allow_pickle=False,
            **{name: value.detach().cpu().numpy() for name, value in arrays.items()},
        )
        runtime, sidecar = find(self.runtime), self.path.with_suffix(".json")
        of_file = replace(
            self.of_file,
            name=self.path.name,
            sha256=hash_of(files(self.file)),
            golden=golden.name,
            golden_tolerance=self.tolerance,
            runtime=self.runtime,
            runtime_version=version(runtime.package),
            precision=self.precision,
            opset=runtime.default_opset if self.opset is None else self.opset,
            inputs=(self.image,),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        document = {**self.inside, **of_file.to_json()}
        (folder / sidecar.name).write_text(signed(document), encoding="utf-8")
        for finished in sorted(folder.iterdir(), key=lambda file: file.name == self.path.name):
            target = self.path.with_name(finished.name)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(finished, target)
        return sidecar, golden


def golden_tolerance(expected: Named, actual: Named, least: float) -> float:
    """How far a file's outputs of the golden input may be from the model's, on any CPU.

    Relative to the standard deviation of an output there, at least `LEAST_SPREAD`. Of detections
    that are chosen in the graph it is that of the scores, which are sorted: which box is in which
    row may differ.
    """
    if are_padded(expected):
        expected, actual = ({"scores": outputs["scores"]} for outputs in (expected, actual))
    tolerance = least
    for name, output in expected.items():
        if output.is_floating_point() and output.numel():
            apart = (output - actual[name].to(output)).abs().max().item()
            spread = output.double().std().item() if output.numel() > 1 else 0.0
            tolerance = max(tolerance, ON_OTHER_CPUS * apart / max(spread, LEAST_SPREAD))
    return tolerance


def golden_beside(path: Path) -> Path:
    """The golden pair of an exported file."""
    if path.stem == "model":
        return path.with_name("golden.npz")
    return path.with_suffix(".golden.npz")


def check_suffix(path: Path, runtime: str) -> None:
    """`UsageError` for a file of another suffix than the runtime's."""
    suffix = find(runtime).suffix
    if path.suffix != suffix:
        raise UsageError(
            f"{path}: a file for {runtime} ends in {suffix}, not in {path.suffix or 'nothing'}"
        )


# What is compared ---------------------------------------------------------------------------------


def around(example: Tensor) -> list[Tensor]:
    """The example and random batches of the same shape and range."""
    generator = torch.Generator().manual_seed(0)
    mean, std = example.double().mean().item(), example.double().std().item() or 1.0
    batches = [example]
    for _ in range(RANDOM):
        noise = torch.randn(example.shape, generator=generator) * std + mean
        if not example.is_floating_point():
            noise = noise.clamp(0, 255)
        batches.append(noise.to(example))
    return batches


def _with_batch(examples: Sequence[Tensor]) -> list[Tensor]:
    """The examples, and a batch of another number of images than was traced."""
    return [*examples, torch.cat([examples[0], examples[0], *examples[1:2]])]


# What is said of inputs and outputs ---------------------------------------------------------------


def describe(
    name: str, value: Tensor, dynamic: bool = False, integers: str = "int64"
) -> TensorFacts:
    """An input or output for the sidecar; `integers` is the type of integers in the file."""
    shape = ("batch" if dynamic else value.shape[0], *value.shape[1:])
    dtype = integers if value.dtype == torch.int64 else str(value.dtype).removeprefix("torch.")
    return TensorFacts(name, shape, dtype, "NCHW" if value.ndim == 4 else None)


@dataclass(frozen=True)
class Described:
    """What a file takes and gives, for its sidecar."""

    image: TensorFacts  # the input
    outputs: tuple[TensorFacts, ...]
    sizes: Sizes | None = None  # of a file that takes several
    made_at: tuple[int, int] | None = None  # height and width, where they are open

    @classmethod
    def of(cls, job: Job) -> "Described":
        integers = find(job.runtime).integers
        image = describe("image", job.example, job.dynamic)
        described = cls(
            image,
            tuple(
                describe(name, value, job.dynamic, integers) for name, value in job.outputs.items()
            ),
        )
        return described if job.sizes is None else described._with_open_size(job, job.sizes)

    def inside(self, facts: Facts | None) -> dict[str, object]:
        """What the file is to say of itself, where the format can: JSON.

        Of a network that cannot describe itself, only what its graph is.
        """
        exported = Exported() if facts is None or facts.exported is None else facts.exported
        exported = replace(exported, outputs=self.outputs, sizes=self.sizes, made_at=self.made_at)
        if facts is None:
            return {"form": "deploy", **exported.to_json()}
        return replace(facts, form="deploy", exported=exported).to_json()

    def _with_open_size(self, job: Job, sizes: Sizes) -> "Described":
        """The same with names in place of the numbers that are others at another size."""
        height, width = job.example.shape[-2:]
        # Larger by another number of steps each, by which the one is told from the other.
        larger = (height + sizes.step, width + 2 * sizes.step)
        named: dict[Hashable, str] = {(height, larger[0]): "height", (width, larger[1]): "width"}
        there = _outputs_at(job, job.example.new_zeros(*job.example.shape[:2], *larger))
        number = "batch" if job.dynamic else len(job.example)
        outputs = []
        for output in self.outputs:
            shape = open_shape(job.outputs[output.name], there[output.name], named)
            outputs.append(replace(output, shape=(number, *shape[1:])))
        shape_of_image = (number, job.example.shape[1], "height", "width")
        image = replace(self.image, shape=shape_of_image)
        return Described(image, tuple(outputs), sizes, (height, width))


def _outputs_at(job: Job, image: Tensor) -> Named:
    """What a model computes at another size than its own; `ExportError` where it cannot."""
    try:
        with torch.no_grad():
            return by_name(job.model(image), job.names)
    except Exception as error:  # networks of timm have errors of many kinds for sizes
        size = f"{image.shape[-2]}x{image.shape[-1]}"
        raise ExportError(
            f"{job.path} was not written: its height and width cannot be left open: the network "
            f"does not compute at {size}: {reason(error)}"
        ) from error


# What cannot be left open -------------------------------------------------------------------------


def _check_sizes(
    runtime: str, sizes: Sizes, example: Tensor, elsewhere: Sequence[Elsewhere]
) -> None:
    """`UsageError` for a runtime whose files have one size, or without others to compare at."""
    check_open_size(runtime)
    if len(elsewhere) < 2:
        raise UsageError(
            "a file that leaves its size open is compared at several others: give `elsewhere`"
        )
    sizes.check((example.shape[-2], example.shape[-1]), "a file that leaves its size open")


def _check_any_size(model: nn.Module, path: Path, outputs: Mapping[str, Tensor]) -> None:
    """`ExportError` for a network that is written for one size, with the reason."""
    kernels = of_one_size(model)
    why = ""
    if kernels:
        why = (
            f"the kernels of {kernels[0]} and {len(kernels) - 1} more modules (ParC) are frozen at "
            "the size of their feature when they are collapsed"
        )
    elif are_padded(outputs):
        why = (
            "detections are chosen in its graph, which is written for one size (raw outputs of ssd "
            "and yolo are not)"
        )
    if why:
        raise ExportError(
            f"{path} was not written: its height and width cannot be left open: {why}"
        )
