"""Whether a second way to compute a model's outputs computes the same: `verify` gives a `Parity`.

The first way is the model that was trained, in torch; the second is usually an exported file in its
runtime. Differences are relative to the spread of an output over all the examples: one image's few
logits may lie close together by chance.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError, FleetnetError, ModelError
from ..predictions import Detections
from ..reparam import WIDEST, allowed, difference, reparameterize
from .agreement import Agreement, Meaning, bounds, compare

Named = dict[str, Tensor]
# What a model gives, batch first: a tensor, a sequence of them, or a mapping by name.
Outputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Reference = Callable[[Tensor], Outputs]
Runner = Callable[[np.ndarray], Sequence[np.ndarray]]
FINE = 1e-8  # largest relative difference of two ways to compute the same in float64


@dataclass(frozen=True)
class Parity:
    """How far two ways to compute the same outputs are apart, over all examples."""

    max_abs: float  # of padded detections: the largest difference of scores
    # max_abs of the worst output / standard deviation of that output of the reference; or the
    # drift of detections.
    relative: float
    tolerance: float  # largest `relative` that passes
    # Share of images with the same largest logit; None unless outputs are (N, classes).
    top1_agreement: float | None
    images: int
    agreement: Agreement | None = None  # of boxes, masks and class maps

    @property
    def passed(self) -> bool:
        agreed = self.agreement is None or self.agreement.passed
        return agreed and self.relative <= self.tolerance  # false for NaN

    def to_dict(self) -> dict[str, object]:
        """For JSON, which has no NaN or infinity: those become None."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
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
class Elsewhere:
    """What a file that leaves its size open is compared on at another size than its own."""

    examples: Sequence[Tensor]  # batches (N, C, H, W) of this one size
    meaning: Meaning | None = None  # of the outputs at this size

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return self.examples[0].shape[-2], self.examples[0].shape[-1]

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


def by_name(outputs: Outputs, names: Sequence[str] = ()) -> Named:
    """Outputs by name: their own in a mapping, else `names`, else their number."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return dict(zip(names or map(str, range(len(tensors))), tensors, strict=True))


def are_padded(outputs: Mapping[str, Tensor]) -> bool:
    """Whether these are detections padded to a fixed number: see `boxes.select`."""
    return {"boxes", "scores", "labels"} <= outputs.keys()


@torch.no_grad()
def verify(
    reference: Reference,
    runner: Runner,
    examples: Sequence[Tensor] | Tensor,
    tolerance: float,
    meaning: Meaning | None = None,
) -> Parity:
    """Compare `runner` with `reference` on batches of images, each (N, C, H, W).

    A stack (k, N, C, H, W) is k batches. Where float32 leaves more of a reference that is a module,
    more than `tolerance` is allowed: see `reparam.allowed`. Integers must be the same (of class
    maps, nearly all). Padded detections are compared as sets, and so are the boxes, masks and class
    maps that `meaning` finds in the outputs of both sides.

    Raises `ExportError` if the number or shapes of outputs differ, the reference is not finite, or
    nothing would be proven: `meaning` finds no box in padded detections on any example, or there is
    but a class map, of one class.
    """
    expected: list[Named] = []
    actual: list[Named] = []
    for image in examples:
        expected.append({name: o.cpu() for name, o in by_name(reference(image)).items()})
        actual.append(run_as(runner, image, expected[-1]))
    for outputs in expected:
        if not all(output.isfinite().all() for output in outputs.values()):
            raise ExportError(
                "the model itself computes NaN or infinity on the examples: nothing can equal that"
            )
    if are_padded(expected[0]):
        return _of_detections(expected, actual, tolerance, meaning)
    exact = None
    if isinstance(reference, nn.Module):
        exact = _InFloat64(reference, examples)
    return _of_values(expected, actual, tolerance, meaning, exact)


def run_as(runner: Runner, image: Tensor, expected: Named) -> Named:
    """The runner's outputs under the names of the reference's; `ExportError` for other shapes."""
    # Copied, since a runtime may write its next outputs into the same memory.
    outputs = [torch.from_numpy(np.array(o, order="C")) for o in runner(image.cpu().numpy())]
    of_model = [tuple(output.shape) for output in expected.values()]
    of_file = [tuple(output.shape) for output in outputs]
    if of_model != of_file:
        raise ExportError(
            f"the model's outputs have shapes {of_model}, the exported file's {of_file}"
        )
    return dict(zip(expected, outputs, strict=True))


def _agreement(
    expected: Sequence[Named], actual: Sequence[Named], meaning: Meaning, tolerance: float
) -> Agreement | None:
    """Of what the outputs of both sides mean."""
    ours = [prediction for outputs in expected for prediction in meaning.decode(outputs)]
    theirs = [prediction for outputs in actual for prediction in meaning.decode(outputs)]
    return compare(ours, theirs, meaning, tolerance)


def _of_detections(
    expected: Sequence[Named],
    actual: Sequence[Named],
    tolerance: float,
    meaning: Meaning | None,
) -> Parity:
    """Of padded detections, (N, n, ...) each."""
    images, count = sum(len(o["scores"]) for o in expected), expected[0]["scores"].shape[1]
    decode = meaning or Meaning(Detections.of_padded)
    agreed = _agreement(expected, actual, replace(decode, count=count), tolerance)
    agreed = agreed or Agreement(tolerance)
    if meaning and not agreed.boxes:
        raise ExportError(
            "the model finds nothing on the examples, so nothing is proven: give pictures "
            "(--data) with objects"
        )
    return Parity(agreed.score or 0.0, agreed.drift, tolerance, None, images, agreed)


def _of_values(
    expected: Sequence[Named],
    actual: Sequence[Named],
    tolerance: float,
    meaning: Meaning | None,
    exact: "_InFloat64 | None",
) -> Parity:
    """Of outputs that are compared value by value, and by what they mean."""
    agreement = _agreement(expected, actual, meaning, tolerance) if meaning else None
    pairs = [
        (torch.cat([o[name] for o in expected]), torch.cat([o[name] for o in actual]))
        for name in expected[0]
    ]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    integers = [pair for pair in pairs if not pair[0].is_floating_point()]
    max_abs, relative = difference([ours for ours, _ in floats], [theirs for _, theirs in floats])
    if exact is not None and tolerance < relative <= WIDEST:
        tolerance = allowed(tolerance, exact.outputs(), [ours for ours, _ in floats])
    if integers and not floats and any(_one_value(ours, tolerance) for ours, _ in integers):
        raise ExportError(
            "the model finds the same class all over the examples, so nothing is proven: give "
            "pictures (--data) of several classes"
        )
    if integers:
        least = min((ours == theirs).double().mean().item() for ours, theirs in integers)
        agreement = replace(agreement or Agreement(tolerance), pixels=least)
    top1 = None
    if len(pairs) == 1 and pairs[0][0].ndim == 2:  # logits (N, classes)
        ours, theirs = pairs[0]
        top1 = (ours.argmax(1) == theirs.argmax(1)).double().mean().item()
    return Parity(max_abs, relative, tolerance, top1, len(pairs[0][0]), agreement)


def _one_value(classes: Tensor, tolerance: float) -> bool:
    """Whether a map of one class everywhere would pass for these class maps."""
    most = classes.unique(return_counts=True)[1].max().item()
    return most >= bounds(tolerance).pixels * classes.numel()


@dataclass(frozen=True)
class _InFloat64:
    """The same weights in float64, computed only where it is asked for: it takes long."""

    model: nn.Module
    examples: Sequence[Tensor] | Tensor

    def outputs(self) -> list[Tensor]:
        """The floating outputs, each over all examples."""
        exact = copy.deepcopy(self.model).double()
        outputs = [by_name(exact(image)) for image in in_float64(self.examples)]
        floats = [name for name, output in outputs[0].items() if output.is_floating_point()]
        return [torch.cat([output[name] for output in outputs]) for name in floats]


def in_float64(examples: Iterable[Tensor]) -> list[Tensor]:
    """Batches for a model in float64; pixels of 8 bits stay as they are."""
    return [image.double() if image.is_floating_point() else image for image in examples]


def verify_elsewhere(
    reference: Reference,
    runner: Runner,
    elsewhere: Sequence[Elsewhere],
    tolerance: float,
    path: object,
) -> list[tuple[Elsewhere, Parity]]:
    """`verify` at each other size of a file that leaves it open.

    Raises `ExportError` where the file cannot compute at all.
    """
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


# Which step changed the outputs -------------------------------------------------------------------


def in_torch(model: nn.Module, device: torch.device | str = "cpu") -> Runner:
    """A module as a runner, for comparing it with another."""

    def run(image: np.ndarray) -> list[np.ndarray]:
        outputs = by_name(model(torch.from_numpy(image).to(device)))
        return [output.cpu().numpy() for output in outputs.values()]

    return run


def which_step(
    model: nn.Module,
    deployed: nn.Module,
    examples: Sequence[Tensor],
    tolerance: float,
    meaning: Meaning | None,
    conversion: str,
) -> str:
    """Which step changed the outputs, in a sentence.

    It is a wrong collapse, rounding that the network amplifies, or the conversion.
    `conversion` is the sentence for the last, without its beginning: "the conversion to onnx
    changed it".
    """
    device = examples[0].device
    collapsed = verify(model, in_torch(deployed, device), examples, tolerance, meaning)
    if collapsed.passed:
        return (
            f"The deploy form is right in torch (relative {collapsed.relative:.3g}), so "
            f"{conversion}"
        )
    exact, doubles = copy.deepcopy(model).double(), in_float64(examples)
    in_double = reparameterize(exact, doubles[0])
    again = verify(exact, in_torch(in_double, device), doubles, FINE, meaning)
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
