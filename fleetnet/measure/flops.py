"""Parameters, multiply-accumulates, activations and bytes of a network.

They are counted from the operators that really run.

Counted are convolutions, matrix products and attention, whether a module or a function calls them
(ParC makes its kernels on the fly). Batch norms, activations, pooling and additions are not: they
vanish when fused, or cost little arithmetic. What is counted of each operator:

    macs         multiply-accumulates. Papers of mobile networks call one MAC one FLOP; to those
                 who count multiplications and additions apart it is two, which is what `flops`
                 says.
    activations  elements that it writes
    bytes        its input, weights, bias and output, each once, in the model's own precision. It is
                 what a runtime has to move that fuses everything else into these operators and
                 keeps nothing in a cache: a PConv of h x w pixels moves
                 2 h w c/4 + 9 (c/4)^2 values.
    intensity    FLOPs (two for a MAC) per byte. An operator far below what the machine can do for
                 each byte it reads waits for memory: a depthwise 3x3 convolution in float32 is at
                 2, a full one at a hundred and more.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..channels import RGB
from ..circular import computed_as
from ..errors import UsageError
from ..proof.running_modules import running_modules
from ..tasks import Model

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
        """Multiplications and additions: two for a MAC, where most papers count one."""
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

    def add(self, more: "_Sums") -> None:
        self.macs += more.macs
        self.activations += more.activations
        self.bytes += more.bytes
        self.others += more.others


# What fvcore counts besides MACs, for each element: of the input of norms (a batch norm as in
# training mode, with scale and shift) and of the output of resizing.
NORMS = {aten.native_batch_norm: 5, aten.native_layer_norm: 2, aten.native_group_norm: 2}
RESIZED = {aten.upsample_nearest2d: 1, aten.upsample_bilinear2d: 4}


class _Counter(TorchDispatchMode):
    """Adds what runs to every module that it is inside of."""

    def __init__(self, model: nn.Module, running: list[str]):
        super().__init__()
        self.model = model
        self.running = running  # names of the modules that run now, each inside of the one before
        self.sums: defaultdict[str, _Sums] = defaultdict(_Sums)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        counted = self._counted(func.overloadpacket, args, kwargs or {}, output)
        if counted is not None:
            names = {ancestor for running in self.running for ancestor in _ancestors(running)}
            for name in names:
                self.sums[name].add(counted)
        return output

    def _counted(
        self,
        operator: torch._ops.OpOverloadPacket,
        args: tuple[Any, ...],
        kwargs: Mapping[str, object],
        output: object,
    ) -> _Sums | None:
        """What is counted of one call of an operator; None for most of them."""
        first = output[0] if isinstance(output, tuple | list) else output
        formula: Callable[..., int] | None = flop_registry.get(operator)
        if formula is not None and isinstance(first, Tensor):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, first)) if _is_tensor(leaf)]
            operands = {id(tensor): tensor for tensor in tensors}.values()  # each once
            return _Sums(
                # The registry counts two for each.
                macs=formula(*args, **kwargs, out_val=output) // 2,
                activations=first.numel(),
                bytes=sum(tensor.numel() * tensor.element_size() for tensor in operands),
            )
        if operator in NORMS or self._pools(operator):
            return _Sums(others=args[0].numel() * NORMS.get(operator, 1))
        if operator in RESIZED and isinstance(first, Tensor):
            return _Sums(others=first.numel() * RESIZED[operator])
        return None

    def _pools(self, operator: torch._ops.OpOverloadPacket) -> bool:
        """Whether this is an adaptive average pooling, which to one pixel is a mean."""
        if operator not in (aten.mean, aten._adaptive_avg_pool2d) or not self.running:
            return False
        return isinstance(self.model.get_submodule(self.running[-1]), nn.AdaptiveAvgPool2d)


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def _ancestors(name: str) -> Iterator[str]:
    """A module and those that hold it: a list of modules does not run itself."""
    yield ""
    parts = name.split(".") if name else []
    for i in range(len(parts)):
        yield ".".join(parts[: i + 1])


def _run(model: nn.Module, size: Tensor | tuple[int, int]) -> dict[str, _Sums]:
    """What `count` describes, by module."""
    channels = model.channels if isinstance(model, Model) else RGB
    shape = tuple(size.shape) if isinstance(size, Tensor) else (1, channels, *size)
    if len(shape) != 4 or min(shape) < 1:
        raise UsageError(
            f"the size to count at is {shape}; allowed: height and width, or a batch (N, 3, H, W)"
        )
    tensors = [*model.parameters(), *model.buffers()]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    like = floating[0] if floating else torch.zeros(())

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
        shapes = {id(tensor): _shape_of(tensor) for tensor in tensors}
        try:
            return counted(copy.deepcopy(model, shapes).eval(), "meta")
        except (RuntimeError, NotImplementedError):
            # NMS needs values, to tell how many boxes remain; an error that is the network's own
            # comes again.
            return counted(copy.deepcopy(model).eval(), like.device)


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor or parameter without its values."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
    return tensor.to("meta")


def _counts(module: nn.Module, sums: _Sums) -> Counts:
    return Counts(_parameters(module), sums.macs, sums.activations, sums.bytes)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count(model: nn.Module, size: Tensor | tuple[int, int]) -> Counts:
    """Count one forward pass in eval mode.

    It is that of an input (N, C, H, W), or of one image of `size` (H, W) in pixels. Runs on shapes
    alone (device meta), so it takes no memory and no arithmetic, except for Mask R-CNN, whose NMS
    needs values; the model stays as it is, in whatever mode and form. Raises `UsageError` for an
    impossible size, `ModelError` where the network itself does.
    """
    return _counts(model, _run(model, size).get("", _Sums()))


def parts(model: nn.Module, size: Tensor | tuple[int, int], depth: int | None = None) -> list[Part]:
    """What `count` gives, of every module that has parameters or does something counted.

    They are in the order of definition. `depth` is the number of names in a module's own: 0 is the
    whole network alone, None is no limit. A module that runs twice is counted twice; one that other
    modules call counts for its holders and its callers.
    """
    sums = _run(model, size)
    all_parts = [
        Part(name, type(module).__name__, _counts(module, sums.get(name, _Sums())))
        for name, module in model.named_modules()
        if depth is None or len(list(_ancestors(name))) <= depth + 1
    ]
    return [
        part for part in all_parts if not part.name or part.counts.parameters or part.counts.macs
    ]


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
    """The table that fvcore prints, in its layout and counting.

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
    table = _Table(modules, sums, depth)
    table.add("", 0)
    return _aligned([("module", "#parameters or shape", "#flops"), *table.rows])


class _Table:
    """The lines of `fvcore_table`, each with three cells, indented by their level."""

    def __init__(self, modules: Mapping[str, nn.Module], sums: Mapping[str, _Sums], depth: int):
        self.modules = modules
        self.sums = sums
        self.depth = depth
        self.rows: list[tuple[str, str, str]] = []

    def add(self, name: str, level: int) -> None:
        """A module, its own parameters and what is inside it."""
        while (only := self._only_child(name)) is not None:
            name = only
        indent = " " * level
        parameters, flops = self._figures(name)
        self.rows.append((indent + (name or "model"), indent + parameters, indent + flops))
        if level == self.depth:
            return
        inner = indent + " "
        for own, parameter in self.modules[name].named_parameters(name, recurse=False):
            self.rows.append((inner + own, inner + str(tuple(parameter.shape)), ""))
        for child in self._children(name):
            self.add(child, level + 1)

    def _figures(self, name: str) -> tuple[str, str]:
        counted = self.sums.get(name, _Sums())
        return _short(_parameters(self.modules[name])), _short(counted.macs + counted.others)

    def _children(self, name: str) -> list[str]:
        return [child for child in self.modules if child and child.rpartition(".")[0] == name]

    def _only_child(self, name: str) -> str | None:
        """The only child of a module, if it has the same figures."""
        children = self._children(name)
        if len(children) == 1 and self._figures(children[0]) == self._figures(name):
            return children[0]
        return None


def _aligned(rows: Sequence[tuple[str, str, str]]) -> str:
    """Rows as a table in Markdown; the first one is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|" + "|".join(":" + "-" * (width + 1) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
