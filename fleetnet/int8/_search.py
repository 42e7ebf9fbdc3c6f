"""The search for an int8 file that keeps its accuracy: `quantize`.

    deploy form -> float file, proven -> int8 file, calibrated on your images -> evaluated

Unusual here: accuracy is not hoped for. Checkpoint and int8 file are both evaluated on the
validation set. While more than `max_drop` is lost, the layers whose rounding disturbs the outputs
most stay in float: 1, 2, 3, 4, 6 and so on. If a quarter of the layers is not enough, something
else is wrong, such as images for calibration that are not what the network will see, and there is
no file. The evaluation holds for every CPU, since the weights are rounded so that none computes
something else with them (`runtimes/_int8.py`); a file of which that is not true is not handed over
either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from torch import Tensor

from .. import int8, runtimes
from ..deploy.package import Package, check_suffix, describe, golden_tolerance
from ..deploy.predictor import Predictor, load
from ..errors import ExportError, UsageError, suggest
from ..facts import Exported, FileFacts, Int8
from ..files import beside
from ..find import names
from ..reading import to_json
from ..runtimes import version
from ..runtimes._cpu import int8_class
from ..runtimes._int8 import LARGEST_PAIR, overflowing, pairs
from . import Write
from ._prepared import Prepared, decisive, evaluated, figures, float_file, job_of
from ._sensitivity import agreement, answers, layers_of, multiplications, sqnr

if TYPE_CHECKING:
    from ._finetune import FineTuned

CPUS = (
    "any: no two products of an output channel leave 16 bits, where x86 without VNNI adds them in "
    "pairs; VNNI, AMX and Arm add in 32 bits"
)
MOST = 0.25  # share of the layers that the search may leave in float


@dataclass(frozen=True)
class Attempt:
    """One int8 file, evaluated."""

    skipped: list[str]  # layers left in float, by the user or the search
    result: dict[str, object] = field(repr=False)  # of the task's metric
    drop: float  # of the metric's first figure, in points


@dataclass(frozen=True)
class AsTrained:
    """How near a file is to the network that was fine-tuned, as torch computed it."""

    agreement: float | None  # share of the validation set with the same top-1; None of other tasks
    sqnr: float  # dB, of the outputs


@dataclass(frozen=True)
class Quantized:
    """An int8 file within the allowed drop, and how it came about."""

    path: Path
    sidecar: Path
    golden: Path
    result: dict[str, object] = field(repr=False)  # what the file reaches on the validation set
    drop: float  # of the task's first figure, in points
    agreement: float | None  # share of the validation set with the same top-1; None of other tasks
    sqnr: float  # dB, of the outputs on some images of the validation set; see `sqnr`
    skipped: list[str]  # layers left in float by the user or the search
    others: list[str]  # and by the quantizer, such as NNCF leaves gates
    layers: int  # in all
    macs: float  # share of the multiplications in int8
    attempts: list[Attempt]
    as_trained: AsTrained | None  # of a network that was fine-tuned


class _Judged(TypedDict):
    """What is known of a file beside its figures, as `Quantized` has it."""

    drop: float
    agreement: float | None
    sqnr: float
    skipped: list[str]
    others: list[str]
    layers: int
    macs: float
    attempts: list[Attempt]
    as_trained: AsTrained | None


@dataclass(frozen=True, eq=False)
class _Written:
    """An int8 file in a folder of its own, and what came of it."""

    file: Path
    attempt: Attempt
    rounded: set[str]  # layers in int8
    weights: Mapping[str, np.ndarray]  # of them
    predictor: Predictor
    logits: Tensor | None  # of the validation set


def package_of(runtime: str, *, is_tuned: bool) -> str:
    """The distribution that decides what is rounded in the files of a runtime.

    Those of networks that are fine-tuned are all made of the file for onnxruntime.
    """
    return int8.find("onnx" if is_tuned else runtime).package


def missing(runtime: str, *, is_tuned: bool = False) -> str | None:
    """What int8 files for a runtime would need and is not installed here, with the command.

    None if nothing is; the runtimes are those of `int8`.
    """
    package = package_of(runtime, is_tuned=is_tuned)
    if find_spec(package.replace("-", "_")) is None:
        return f"int8 for {runtime} needs {package}: pip install 'fleetnet[quantize]'"
    return runtimes.find(runtime).missing()


def quantize(
    prepared: Prepared,
    runtime: str,
    path: str | Path,
    *,
    max_drop: float = 1.0,
    skip: Sequence[str] = (),
    most: float = MOST,
    tuned: "FineTuned | None" = None,
    facts: Mapping[str, object] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Quantized:
    """Write a network in int8 for a runtime ("onnx", "openvino", "litert") to `path`, if accurate.

    `max_drop` is what may be lost of the task's first figure, in points. Layers of the deploy form
    named by `skip` (with wildcards) stay in float; a share of up to `most` more may. With a network
    that was `tuned` neither is read: its layers are what they are. `facts` of the calibration go
    into the sidecar; `report` gets a line for each step.

    Raises `UsageError` for another runtime or an unknown layer, `ExportError` if a package is
    missing, the float file does not compute what the network computes, or the drop stays beyond
    `max_drop`: then nothing is written, and files that were at `path` stay.
    """
    path = Path(path)
    _check(runtime, path, max_drop, most, is_tuned=tuned is not None)
    search = _Search(prepared, runtime, path, max_drop, skip, most, tuned, report)
    with beside(path, "quantize") as folder:
        written, attempts = search.first_accurate(folder)
        judged = _judged(search, written, attempts)
        package = Package(
            written.file,
            path,
            runtime,
            "int8",
            None,
            image=describe("image", search.job.example),
            example=search.job.example,
            outputs=search.job.outputs,
            tolerance=search.golden_tolerance(written),
            inside=replace(search.facts, metrics=figures(written.attempt.result)).to_json(),
            of_file=FileFacts(int8=_facts_of_int8(search, written, judged, facts or {})),
        )
        sidecar, golden = package.hand_over()
    return Quantized(path, sidecar, golden, written.attempt.result, **judged)


def _check(runtime: str, path: Path, max_drop: float, most: float, *, is_tuned: bool) -> None:
    """Raise what `quantize` does before anything is written."""
    if runtime not in names("int8"):
        raise UsageError(f"no int8 for the runtime {runtime!r}: {suggest(runtime, names('int8'))}")
    if max_drop < 0 or not 0 <= most <= 1:
        raise UsageError(
            f"max_drop is {max_drop} and most is {most}; allowed: 0 or more points, a "
            "share from 0 to 1"
        )
    if absent := missing(runtime, is_tuned=is_tuned):
        raise ExportError(absent)
    check_suffix(path, runtime)


class _Search:
    """Int8 files of one network for one runtime, each with more layers in float than the last."""

    def __init__(
        self,
        prepared: Prepared,
        runtime: str,
        path: Path,
        max_drop: float,
        skip: Sequence[str],
        most: float,
        tuned: "FineTuned | None",
        report: Callable[[str], None],
    ) -> None:
        self.prepared, self.runtime, self.path = prepared, runtime, path
        self.max_drop, self.tuned, self.report = max_drop, tuned, report
        self.layers = list(layers_of(prepared.deployed))
        self.skipped_by_user = matching(self.layers, skip) if tuned is None else tuned.skipped
        others = len(self.layers) - len(self.skipped_by_user)
        at_most = min(int(most * len(self.layers)), others)
        self.steps = _steps(at_most if tuned is None else 0)
        self.before = decisive(prepared.result)
        self.job = job_of(prepared, runtime, path)
        # The metrics of the checkpoint are not those of the file, which come to the sidecar when
        # they are known.
        outputs = tuple(describe(name, value) for name, value in self.job.outputs.items())
        exported = replace(prepared.facts.exported or Exported(), outputs=outputs)
        self.facts = replace(prepared.facts, metrics=None, exported=exported)

    def first_accurate(self, folder: Path) -> tuple[_Written, list[Attempt]]:
        """The first file that loses no more than is allowed, and all attempts.

        Raises `ExportError` where there is none.
        """
        write = self._writer(folder)
        attempts: list[Attempt] = []
        for more in self.steps:
            own = folder / str(more)  # each its own: what is loaded must not be overwritten
            own.mkdir()
            written = self._write(write, own / self.path.name, self._in_float(more))
            attempts.append(written.attempt)
            if written.attempt.drop <= self.max_drop:  # false for NaN
                return written, attempts
        raise self._refused(attempts)

    def _writer(self, folder: Path) -> Write:
        quantizer = int8.find(self.runtime)
        if self.tuned is not None:
            return quantizer.writer_of(quantizer.computed(self.tuned.network))
        job = job_of(self.prepared, quantizer.source, self.path)
        return quantizer.writer(float_file(job, folder), self.prepared.images.numpy())

    def _in_float(self, more: int) -> list[str]:
        """The layers that stay in float: the user's, and so many more, the worst first."""
        if more == 0:
            return self.skipped_by_user
        if more == 1:
            self.report("measuring how much each layer disturbs the outputs")
        others = [
            layer.name
            for layer in self.prepared.sensitivity
            if layer.name not in self.skipped_by_user
        ]
        return self.skipped_by_user + others[:more]

    def _write(self, write: Write, file: Path, skipped: list[str]) -> _Written:
        """Write a file with these layers in float, and evaluate it."""
        inside = self.facts.to_json()
        rounded = write(set(skipped), file, inside)
        weights = int8.find(self.runtime).integer_weights(file)
        if unsafe := overflowing(weights):
            raise ExportError(
                f"{self.path} was not written: pairs of products in {', '.join(unsafe)} leave 16 "
                "bits, so that CPUs without VNNI would compute something else"
            )
        file.with_suffix(".json").write_text(to_json(inside), encoding="utf-8")
        predictor = load(file)
        batches, classes = self.prepared.batches, self.prepared.facts.classes
        result, logits = evaluated(predictor, predictor.task, batches, classes)
        reached = decisive(result)
        self.report(
            f"{len(skipped)} of {len(self.layers)} layers in float: {self.prepared.metric} "
            f"{reached:.2f}, {self.before:.2f} before"
        )
        attempt = Attempt(skipped, result, self.before - reached)
        return _Written(file, attempt, rounded, weights, predictor, logits)

    def golden_tolerance(self, written: _Written) -> float:
        """How far an int8 file may be from what the network computes of the golden input."""
        actual = written.predictor(self.job.example)
        return golden_tolerance(self.job.outputs, actual, self.job.tolerance)

    def _refused(self, attempts: Sequence[Attempt]) -> ExportError:
        tried = ", ".join(
            f"{attempt.drop:.2f} with {len(attempt.skipped)} of {len(self.layers)} layers in float"
            for attempt in attempts
        )
        return ExportError(
            f"{self.path} was not written: int8 loses more than the {self.max_drop:g} points of "
            f"{self.prepared.metric} that are allowed (float: {self.before:.2f}): {tried}. "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        if self.tuned is None:
            return (
                "Calibrate on pictures like those in use, allow more, or leave more layers in float"
            )
        return "Fine-tune for more epochs or at another rate, allow more, or leave layers in float"


def matching(layers: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The layers that the user named, in whole or with wildcards."""
    chosen: list[str] = []
    for pattern in patterns:
        matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(f"no layer {pattern!r} to skip: {suggest(pattern, layers)}")
        chosen += [name for name in matches if name not in chosen]
    return chosen


def _steps(limit: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16 and so on, and the limit."""
    powers = [2**i for i in range(limit.bit_length())]
    return sorted({0, limit, *(n for n in [*powers, *(3 * n for n in powers)] if n <= limit)})


def _judged(search: _Search, written: _Written, attempts: list[Attempt]) -> _Judged:
    """What is known of the file beside its figures, by the names of `Quantized`."""
    prepared, skipped = search.prepared, written.attempt.skipped
    same = None
    if written.logits is not None and prepared.logits is not None:
        same = agreement([prepared.logits], [written.logits])
    macs = multiplications(prepared.deployed, search.job.example)
    in_int8 = sum(count for name, count in macs.items() if name in written.rounded)
    return {
        "drop": written.attempt.drop,
        "agreement": same,
        "sqnr": sqnr(
            answers(prepared.deployed, prepared.held), answers(written.predictor, prepared.held)
        ),
        "skipped": skipped,
        "others": [
            name for name in search.layers if name not in written.rounded and name not in skipped
        ],
        "layers": len(search.layers),
        "macs": in_int8 / max(sum(macs.values()), 1),
        "attempts": attempts,
        "as_trained": _as_trained(search, written),
    }


def _as_trained(search: _Search, written: _Written) -> AsTrained | None:
    """How near a file is to what torch computes of it."""
    prepared, tuned = search.prepared, search.tuned
    if tuned is None:
        return None
    network, logits = int8.find(search.runtime).computed(tuned.network), tuned.logits
    if network is not tuned.network:
        task, classes = prepared.facts.task, prepared.facts.classes
        logits = evaluated(network, task, prepared.batches, classes, prepared.limits)[1]
    same = None
    if written.logits is not None and logits is not None:
        same = agreement([logits], [written.logits])
    noise = sqnr(answers(network, prepared.held), answers(written.predictor, prepared.held))
    return AsTrained(same, noise)


def _facts_of_int8(
    search: _Search, written: _Written, judged: _Judged, facts: Mapping[str, object]
) -> Int8:
    """What the sidecar says of int8."""
    prepared = search.prepared
    package = package_of(search.runtime, is_tuned=search.tuned is not None)
    others: dict[str, object] = {
        "metric": prepared.metric,
        "max_drop": search.max_drop,
        "drop": judged["drop"],
        "agreement": judged["agreement"],
        "sqnr_db": judged["sqnr"],
        "layers": judged["layers"],
        "skipped": judged["skipped"],
        "others_in_float": judged["others"],
        "macs": judged["macs"],
        "attempts": [
            {"skipped": attempt.skipped, "drop": attempt.drop} for attempt in judged["attempts"]
        ],
        "sensitivity": [asdict(layer) for layer in prepared.measured or ()] or None,
        "calibration": {"images": len(prepared.images), **facts},
        "equalized_layers": prepared.equalized,
        "recalibrated": prepared.recalibrated,
        "quantizer": package,
        "quantizer_version": version(package),
        "cpus": CPUS,
        "largest_pair": max((int(pairs(w).max()) for w in written.weights.values()), default=0),
        "largest_pair_allowed": LARGEST_PAIR,
        "evaluated_on": str(int8_class()),
    }
    if search.tuned is not None and judged["as_trained"] is not None:
        others |= {"finetuned": search.tuned.about, "as_trained": asdict(judged["as_trained"])}
    return Int8(figures(written.attempt.result), figures(prepared.result), others)
