"""Where an exported file stops computing what the model computes: the layer that differs.

A runtime may show what the layers of a file put out: `trace` gives a function of a batch, which
gives the outputs of the layers by name, in the order of execution. They are compared with what
every operator of the deploy form puts out in torch. Names mean nothing here, since converters make
their own, merge layers and take others apart: layers and operators are paired by their values. What
no layer shows, because it was merged with the next or is changed beyond recognition, is passed
over.

Rounding differs everywhere, a little, and what differs once differs in all that follows. So the
layer to blame is the one whose output is off most compared with what goes into it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ExportError, ModelError
from .running_modules import running_modules

# A layer and an operator are a pair, though not the same, where their mean difference is at most
# this share of the spread, each value counting for at most 1: one changed weight changes one
# channel, by however much.
ALIKE = 0.3
# Share of the tolerance below which differences are all alike: one runtime computes GELU to within
# 1e-3, from inputs that are exact.
FLOOR = 0.1
# So many times as far off as what goes into it, and the layer stands out; rounding makes it less.
LEAST = 3.0
SMALLEST = 1e-30  # of standard deviations


class OpenableFile(Protocol):
    """An exported file that can be run, and run layer by layer: `runtimes.File`."""

    @property
    def runtime(self) -> str:
        """Its name, for messages."""

    def load(self) -> Callable[[np.ndarray], Sequence[np.ndarray]]:
        """A function of one batch that gives the outputs."""

    def trace(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """A function of one batch that gives what the layers put out.

        Raises `ExportError` where the runtime hides that.
        """


@dataclass(frozen=True)
class Divergence:
    """The layer that differs most, compared with what goes into it."""

    module: str  # of the deploy form in torch: "backbone.stages.2.0.conv"
    operator: str  # torch's: "convolution"
    layer: str | None  # of the file; None where it shows none of it
    relative: float  # largest difference of its output / standard deviation of torch's
    inputs: float  # the same, of what goes into it

    def __str__(self) -> str:
        layer = f", in the file {self.layer!r}" if self.layer else ""
        return (
            f"The first layer that differs is {self.module or 'of the model itself'} "
            f"({self.operator}{layer}): relative {self.relative:.3g}, what goes into it "
            f"{self.inputs:.1g}"
        )


@dataclass
class _Step:
    """One output of an operator, in the order of execution."""

    module: str
    operator: str
    value: Tensor | None  # float, flat; None where there is nothing to compare
    inputs: list[int]  # steps
    weighted: bool  # takes a parameter or buffer
    relative: float = float("inf")  # difference from the layer it is paired with
    layer: int | None = None  # that layer
    shown: bool = False  # by a layer, or as an output of the file
    off: float = 0.0  # `relative`, or that of the inputs where it is not shown


class _Recorder(TorchDispatchMode):
    """Every operator that depends on the image."""

    def __init__(self, model: nn.Module, running: list[str], image: Tensor):
        super().__init__()
        self.running = running
        self.kept: list[object] = [image]  # so that no two tensors have the same id
        self.steps = [_Step("", "input", None, [], False)]
        self.of = {id(image): 0}  # tensor -> the step that put it out
        self.weights = {id(t) for t in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        taken = [id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        self.kept.append(output)
        inputs = sorted({self.of[i] for i in taken if i in self.of})
        weighted = any(i in self.weights for i in taken)
        if not inputs:  # made of weights alone, such as the kernel of a ParC
            self.weights |= {id(t) for t in made} if weighted else set()
            return output
        module, operator = self.running[-1] if self.running else "", func._overloadpacket.__name__
        for t in made:
            value = None
            if t.is_floating_point() and t.numel() > 1:
                # Copied, since the next operator may write into it.
                value = t.detach().cpu().float().flatten().clone()
            self.of[id(t)] = len(self.steps)
            self.steps.append(_Step(module, operator, value, inputs, weighted))
        return output


def _record(model: nn.Module, image: Tensor) -> tuple[list[_Step], list[int]]:
    """What runs, and the step of each output."""
    with torch.inference_mode(False), torch.no_grad(), running_modules(model) as running:
        image = image.clone()
        with _Recorder(model, running, image) as recorder:
            outputs = model(image)
        return recorder.steps, [
            recorder.of.get(id(t), 0) for t in tree_leaves(outputs) if isinstance(t, Tensor)
        ]


def _arranged(value: np.ndarray) -> list[Tensor]:
    """A layer's output, flat: as it is, and as if its channels came last, with channels first."""
    arrays = [value]
    if value.ndim >= 3:
        arrays.append(np.moveaxis(value, -1, -3))
    return [torch.from_numpy(np.array(array, np.float32, order="C")).flatten() for array in arrays]


class _SameSize:
    """The steps whose outputs have one number of values, which a layer of that size may be."""

    def __init__(self, steps: Sequence[_Step]):
        self.steps = steps
        self.values = torch.stack([cast(Tensor, step.value) for step in steps])  # (steps, size)
        self.spread = self.values.std(1).clamp(min=SMALLEST)  # (steps,)

    def like(self, layer: np.ndarray, tolerance: float) -> dict[int, float]:
        """The steps, by index, that a layer equals within the tolerance, else the most alike.

        With the relative difference of each; none where none is alike.
        """
        best, nearest = ALIKE, dict[int, float]()
        for value in _arranged(layer):
            apart = (self.values - value).abs().nan_to_num(float("inf")) / self.spread[:, None]
            largest = apart.amax(1)
            if largest.min() <= tolerance:
                return {int(i): largest[i].item() for i in (largest <= tolerance).nonzero()}
            mean = apart.clamp(max=1).mean(1)
            if mean.min() <= best:
                best, index = mean.min().item(), int(mean.argmin())
                nearest = {index: largest[index].item()}
        return nearest


def _pair(steps: list[_Step], layers: Sequence[np.ndarray], tolerance: float) -> None:
    """Pair each layer with the steps that it equals, else with the nearest."""
    by_size: defaultdict[int, list[_Step]] = defaultdict(list)
    for step in steps:
        if step.value is not None:
            by_size[step.value.numel()].append(step)
    groups = {size: _SameSize(group) for size, group in by_size.items()}
    for number, layer in enumerate(layers):
        group = groups.get(layer.size)
        if group is None:
            continue
        for index, relative in group.like(layer, tolerance).items():
            step = group.steps[index]
            if relative < step.relative:
                step.relative, step.layer, step.shown = relative, number, True


def _above(steps: list[_Step], start: int) -> list[int]:
    """A step and those before it up to what is shown, in the order of execution."""
    above: set[int] = set()
    todo = [start]
    while todo:
        step = todo.pop()
        if step not in above:
            above.add(step)
            todo += [i for i in steps[step].inputs if i and not steps[i].shown]
    return sorted(above)


def _apart(expected: Sequence[Tensor], actual: Sequence[np.ndarray]) -> list[float]:
    """Of each output: largest difference / standard deviation of what is expected; 0 of integers."""
    apart = []
    for a, b in zip(expected, actual, strict=True):
        if a.is_floating_point() and a.numel() > 1:
            value = a.detach().cpu().float()
            difference = (value - torch.from_numpy(np.array(b))).abs().max() / value.std().clamp(
                min=SMALLEST
            )
            apart.append(difference.nan_to_num(float("inf")).item())
        else:
            apart.append(0.0)
    return apart


def _worst(
    model: nn.Module,
    run: Callable[[np.ndarray], Sequence[np.ndarray]],
    examples: Sequence[Tensor] | Tensor,
) -> tuple[list[float], Tensor]:
    """The example on which the outputs are furthest apart, and how far each is there."""
    worst, image = [-1.0], examples[0]
    for example in examples:
        with torch.no_grad():
            expected = [t for t in tree_leaves(model(example)) if isinstance(t, Tensor)]
        apart = _apart(expected, run(example.cpu().numpy()))
        if max(apart) > max(worst):
            worst, image = apart, example
    return worst, image


def explain(
    model: nn.Module,
    file: OpenableFile,
    examples: Sequence[Tensor] | Tensor,
    tolerance: float,
) -> Divergence | None:
    """The layer of the file that differs from the deploy form, though what goes into it agrees.

    Looked at is the one of the `examples`, each (N, C, H, W), on which the outputs are furthest
    apart; `tolerance` is that of the file's precision. None where no layer stands out: then the
    outputs differ by the rounding of many layers, or by what the runtime does when it runs the file
    as a whole. Raises `ExportError` if the runtime cannot show its layers.
    """
    trace = file.trace()
    worst, image = _worst(model, file.load(), examples)
    steps, outputs = _record(model, image)
    traced = {name: np.asarray(value) for name, value in trace(image.cpu().numpy()).items()}
    layers = {name: value for name, value in traced.items() if value.dtype.kind == "f"}
    _pair(steps, list(layers.values()), tolerance)
    for i, relative in zip(outputs, worst, strict=True):
        # layer or output: where they differ, it is by how the file runs as a whole
        if steps[i].value is not None:
            steps[i].relative, steps[i].shown = min(steps[i].relative, relative), True
    for step in steps[1:]:
        step.off = step.relative if step.shown else max(steps[i].off for i in step.inputs)

    def inputs(i: int) -> float:
        return max(steps[j].off for j in steps[i].inputs)

    stands_out = {
        i: step.off / max(inputs(i), FLOOR * tolerance)
        for i, step in enumerate(steps)
        if i and step.shown and step.relative > tolerance
    }
    shown = max(stands_out, key=stands_out.__getitem__, default=0)
    if stands_out.get(shown, 0.0) < LEAST:
        return None
    above = _above(steps, shown)
    step = steps[next((i for i in above if steps[i].weighted), shown)]
    layer = _name(list(layers), step, steps[shown].layer)
    return Divergence(step.module, step.operator, layer, steps[shown].relative, inputs(above[0]))


def _name(names: Sequence[str], step: _Step, layer: int | None) -> str | None:
    """The file's layer of a step: one with the name of its module, else the one that shows it."""
    own = [
        i for i, name in enumerate(names) if step.module and name.partition("/")[0] == step.module
    ]
    if own and layer not in own:
        layer = own[0]
    return None if layer is None else names[layer]


def explanation(
    model: nn.Module,
    file: OpenableFile,
    examples: Sequence[Tensor] | Tensor,
    tolerance: float,
) -> str:
    """What `explain` finds, as a sentence without its period; also where it can find nothing."""
    try:
        divergence = explain(model, file, examples, tolerance)
    except (ExportError, ModelError) as error:
        return f"The layer that differs cannot be named: {str(error).rstrip('.')}"
    if divergence is not None:
        return str(divergence)
    return (
        f"No layer stands out when {file.runtime} shows what each puts out: what differs is the "
        "rounding of many layers, or what it does when it runs the file as a whole, such as "
        "merging layers"
    )
