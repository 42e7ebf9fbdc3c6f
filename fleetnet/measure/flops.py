"""Parameters, multiply-accumulates, activations and bytes of a network, counted from the operators that really run.

Counted are convolutions, matrix products and attention, whether a module or a function calls them
(ParC makes its kernels on the fly). Batch norms, activations, pooling and additions are not: they
vanish when fused, or cost little arithmetic. What is counted of each operator:

    macs         multiply-accumulates. Papers of mobile networks call one MAC one FLOP; to those who count
                 multiplications and additions apart it is two, which is what `flops` says.
    activations  elements that it writes
    bytes        its input, weights, bias and output, each once, in the model's own precision. It is what a runtime has
                 to move that fuses everything else into these operators and keeps nothing in a cache: a PConv of h x w
                 pixels moves 2 h w c/4 + 9 (c/4)^2 values.
    intensity    FLOPs (two for a MAC) per byte. An operator far below what the machine can do for each byte it reads
                 waits for memory: a depthwise 3x3 convolution in float32 is at 2, a full one at a hundred and more.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..errors import UsageError
from ..parc import computed_as
from ..proof.running_modules import running_modules

aten = torch.ops.aten


@dataclass(frozen=True)
class Counts:
    """Of one forward pass of one batch."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions, matrix products and attention
    activations: int  # elements that these write, a rough measure of memory traffic
    bytes: int  # of their inputs, weights and outputs

    @property
    def flops(self) -> int:
        """Multiplications and additions: two for a multiply-accumulate, where most papers count one."""
        return 2 * self.macs

    @property
    def intensity(self) -> float:
        """FLOPs (two for a multiply-accumulate) per byte moved; 0 where nothing is counted."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Part:
    """What one module of a network does, with all that is inside it."""

    name: str  # "backbone.stages.2"; the whole network is ""
    kind: str  # its class
    counts: Counts


@dataclass
class _Sums:
    macs: int = 0
    activations: int = 0
    bytes: int = 0
    others: int = 0  # what fvcore adds to the MACs


# What fvcore counts besides MACs, for each element: of the input of norms (a batch norm as in
# training mode, with scale and shift) and of the output of resizing.
NORMS = {aten.native_batch_norm: 5, aten.native_layer_norm: 2, aten.native_group_norm: 2}
RESIZED = {aten.upsample_nearest2d: 1, aten.upsample_bilinear2d: 4}


class _Counter(TorchDispatchMode):
    """Adds what runs to every module that it is inside of."""

    def __init__(self, model: nn.Module, running: list[str]):
        super().__init__()
        self.model, self.running = model, running
        self.sums: defaultdict[str, _Sums] = defaultdict(_Sums)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        formula: Callable[..., int] | None = flop_registry.get(packet)
        output = func(*args, **kwargs)
        first = (
            output
            if isinstance(output, Tensor)
            else output[0]
            if isinstance(output, tuple | list)
            else None
        )
        found = _Sums()
        if formula is not None and isinstance(first, Tensor):
            operands = {
                id(t): t for t in tree_leaves((args, kwargs, first)) if isinstance(t, Tensor)
            }
            # the registry counts two for each
            found.macs = formula(*args, **kwargs, out_val=output) // 2
            found.activations = prod(first.shape)
            found.bytes = sum(t.numel() * t.element_size() for t in operands.values())
        elif packet in NORMS or self._pools(packet):
            found.others = args[0].numel() * NORMS.get(packet, 1)
        elif packet in RESIZED and isinstance(first, Tensor):
            found.others = first.numel() * RESIZED[packet]
        if found != _Sums():
            for name in {ancestor for running in self.running for ancestor in _ancestors(running)}:
                sums = self.sums[name]
                sums.macs += found.macs
                sums.activations += found.activations
                sums.bytes += found.bytes
                sums.others += found.others
        return output

    def _pools(self, packet: Any) -> bool:
        """Whether this is an adaptive average pooling, which to one pixel is a mean."""
        if packet not in (aten.mean, aten._adaptive_avg_pool2d) or not self.running:
            return False
        return isinstance(self.model.get_submodule(self.running[-1]), nn.AdaptiveAvgPool2d)


def _ancestors(name: str) -> Iterator[str]:
    """A module and those that hold it: a list of modules does not run itself."""
    yield ""
    parts = name.split(".") if name else []
    for i in range(len(parts)):
        yield ".".join(parts[: i + 1])


def _run(model: nn.Module, size: Tensor | tuple[int, int]) -> dict[str, _Sums]:
    """What `count` describes, by module."""
    shape = tuple(size.shape) if isinstance(size, Tensor) else (1, 3, *size)
    if len(shape) != 4 or min(shape) < 1:
        raise UsageError(
            f"the size to count at is {shape}; allowed: height and width, or a batch (N, 3, H, W)"
        )
    tensors = [*model.parameters(), *model.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))

    def counted(network: nn.Module, device: str | torch.device) -> dict[str, _Sums]:
        # ParC as published: Fourier transforms have no multiplications to count.
        with (
            computed_as("convolution"),
            running_modules(network) as running,
            _Counter(network, running) as counter,
        ):
            network(torch.zeros(shape, dtype=like.dtype, device=device))
        return counter.sums

    # Under inference mode composite operators such as linear would arrive whole.
    with torch.inference_mode(False), torch.no_grad():
        # A copy whose tensors, the only large part, are replaced by shapes.
        memo: dict[int, Any] = {
            id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad)
            if isinstance(t, nn.Parameter)
            else t.to("meta")
            for t in tensors
        }
        try:
            return counted(copy.deepcopy(model, memo).eval(), "meta")
        except (RuntimeError, NotImplementedError):
            # NMS needs values, to tell how many boxes remain; an error that is the network's own
            # comes again
            return counted(copy.deepcopy(model).eval(), like.device)


def _counts(module: nn.Module, sums: _Sums) -> Counts:
    return Counts(
        sum(p.numel() for p in module.parameters()), sums.macs, sums.activations, sums.bytes
    )


def count(model: nn.Module, size: Tensor | tuple[int, int]) -> Counts:
    """Count one forward pass in eval mode: of an input (N, 3, H, W), or of one image of `size` (H, W) in pixels.

    Runs on shapes alone (device meta), so it takes no memory and no arithmetic, except for Mask
    R-CNN, whose NMS needs values; the model stays as it is, in whatever mode and form. Raises
    `UsageError` for an impossible size, `ModelError` where the network itself does.
    """
    return _counts(model, _run(model, size).get("", _Sums()))


def parts(model: nn.Module, size: Tensor | tuple[int, int], depth: int | None = None) -> list[Part]:
    """What `count` gives, of every module that has parameters or does something counted, in the order of definition.

    `depth` is the number of names in a module's own: 0 is the whole network alone, None is no
    limit. A module that runs twice is counted twice; one that other modules call counts for its
    holders and its callers.
    """
    sums = _run(model, size)
    found = [
        Part(name, type(module).__name__, _counts(module, sums.get(name, _Sums())))
        for name, module in model.named_modules()
        if depth is None or len(list(_ancestors(name))) <= depth + 1
    ]
    return [part for part in found if not part.name or part.counts.parameters or part.counts.macs]


def _short(number: int) -> str:
    """As fvcore writes numbers: 0.948G, 21.234M, 7.4M, 4.608K, 96."""
    for limit, unit, letter in (
        (1e11, 1e12, "T"),
        (1e8, 1e9, "G"),
        (1e5, 1e6, "M"),
        (1e2, 1e3, "K"),
    ):
        if number > limit:
            return f"{number / unit:.3f}".rstrip("0").rstrip(".") + letter
    return str(number)


def fvcore_table(model: nn.Module, size: Tensor | tuple[int, int], depth: int = 3) -> str:
    """The table that fvcore prints, in its layout and counting: "| module | #parameters or shape | #flops |".

    It counts a MAC as one FLOP, and also 5 for each element of a batch norm (as in training mode,
    in which the PConv article counted; in eval mode fvcore counts 2), 2 of other norms, 1 of the
    input of an adaptive average pooling and 1 or 4 of the output of a resizing. A module with one
    child that has the same figures shares its line with it.
    """
    sums = _run(model, size)
    modules = {
        name: module
        for name, module in model.named_modules()
        if not name or sums.get(name) or next(module.parameters(), None) is not None
    }
    rows = [("module", "#parameters or shape", "#flops")]

    def figures(name: str) -> tuple[str, str]:
        of = sums.get(name, _Sums())
        return _short(sum(p.numel() for p in modules[name].parameters())), _short(
            of.macs + of.others
        )

    def children(name: str) -> list[str]:
        return [child for child in modules if child and child.rpartition(".")[0] == name]

    def show(name: str, level: int) -> None:
        while len(children(name)) == 1 and figures(children(name)[0]) == figures(name):
            name = children(name)[0]
        rows.append(tuple(" " * level + cell for cell in (name or "model", *figures(name))))  # type: ignore[arg-type]
        if level == depth:
            return
        for own, parameter in modules[name].named_parameters(name, recurse=False):
            rows.append(
                (" " * (level + 1) + own, " " * (level + 1) + str(tuple(parameter.shape)), "")
            )
        for child in children(name):
            show(child, level + 1)

    show("", 0)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join(
        [lines[0], "|" + "|".join(":" + "-" * (width + 1) for width in widths) + "|", *lines[1:]]
    )
