"""Which module of a network is the first whose output, or whose gradient, is not finite.

A step of the training runs as it always does while a `Watch` listens: to what each module gets and
gives, and to the gradients that come back. Of the output the innermost module is named, since it
ends before those around it. A gradient comes from behind: it is named after the module that gets a
finite gradient of its output and gives one of its input, or of its own weights, that is not.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from torch import Tensor, nn


@dataclass(frozen=True)
class Range:
    """The values of one or several tensors; the lowest and highest are of those that are finite."""

    count: int
    lowest: float | None  # None: none is finite
    highest: float | None
    nan: int
    infinite: int

    @property
    def is_finite(self) -> bool:
        return not (self.nan or self.infinite)

    def __str__(self) -> str:
        ends = "none finite"
        if self.lowest is not None and self.highest is not None:
            ends = f"{self.lowest:.4g} to {self.highest:.4g}"
        broken = {"NaN": self.nan, "infinite": self.infinite}
        counted = [f"{number} of {self.count} {word}" for word, number in broken.items() if number]
        return ", ".join([ends, *counted])


def range_of(value: object) -> Range:
    """That of all numbers with a fraction in tensors, dicts, lists and tuples."""
    tensors = [tensor.detach() for tensor in _tensors(value)]
    finite = [tensor[tensor.isfinite()].float() for tensor in tensors]
    ends = [(float(one.min()), float(one.max())) for one in finite if one.numel()]
    return Range(
        count=sum(tensor.numel() for tensor in tensors),
        lowest=min((low for low, _ in ends), default=None),
        highest=max((high for _, high in ends), default=None),
        nan=sum(int(tensor.isnan().sum()) for tensor in tensors),
        infinite=sum(int(tensor.isinf().sum()) for tensor in tensors),
    )


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of numbers with a fraction in a structure."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def are_finite(value: object) -> bool:
    """Whether all numbers are."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))


@dataclass(frozen=True)
class NotFinite:
    """Where something is the first that is not finite."""

    module: str  # its name in the network, as "head.conv"; "": the network itself
    kind: str  # its class
    what: str  # "output", "gradient of its input", "gradient of its weight" ...
    values: Range  # of that
    input: Range  # what the module got
    weights: Range  # its own parameters and statistics

    def __str__(self) -> str:
        name = f"{self.module} ({self.kind})" if self.module else f"the network ({self.kind})"
        text = f"{self.what} of {name}: {self.values}; its input: {self.input}"
        if not self.weights.is_finite:
            text += f"; its weights: {self.weights}"
        if self.what == "output" and not self.input.is_finite:
            text += "; what it got was not finite already, so code between modules made it"
        return text


@dataclass
class _Call:
    """A module that was called, and what is known of it by now."""

    name: str
    module: nn.Module
    input: Range
    gets_finite: bool = True  # the gradient of its output, as far as it came back


@dataclass
class _Broken:
    """A gradient that is not finite, and the modules that it is one of."""

    gradient: Tensor
    given: list[tuple[str, _Call]] = field(default_factory=list)  # of their inputs and weights
    got: list[_Call] = field(default_factory=list)  # of their outputs


class Watch:
    """As a context it listens to all modules of a network."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.output: NotFinite | None = None
        self._calls: list[_Call] = []  # those that go on, the innermost last
        self._last: dict[nn.Module, _Call] = {}
        self._broken: _Broken | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Watch":
        for name, module in self.network.named_modules():
            handles = [
                module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True),
                module.register_forward_hook(self._after),
            ]
            for part, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    hook = partial(self._of_weight, module, part)
                    handles.append(parameter.register_hook(hook))
            for handle in handles:
                self._stack.callback(handle.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def gradient(self) -> NotFinite | None:
        """The first gradient that was not finite, once the backward pass is over."""
        broken = self._broken
        if broken is None:
            return None
        # those around a module are called before it, and give the gradient of the same input
        made = [(what, call) for what, call in broken.given if call.gets_finite]
        if made:
            what, call = made[-1]
            return _described(call, f"gradient of its {what}", broken.gradient)
        call = broken.got[0] if broken.got else broken.given[-1][1]
        return _described(call, "gradient that the loss gives to the output", broken.gradient)

    # What hooks are told ------------------------------------------------------------------------

    def _before(
        self, name: str, module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]
    ) -> None:
        # now, since a module may change its input in place
        call = _Call(name, module, range_of([inputs, named]))
        self._calls.append(call)
        self._last[module] = call
        for tensor in _tensors([inputs, named]):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._of_input, call))

    def _after(self, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        call = self._calls.pop()
        if self.output is None and not are_finite(output):
            self.output = _described(call, "output", output)
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._of_output, call))

    def _of_output(self, call: _Call, gradient: Tensor) -> None:
        is_finite = are_finite(gradient)
        call.gets_finite = call.gets_finite and is_finite
        if not is_finite and self._is_first(gradient) and self._broken is not None:
            self._broken.got.append(call)

    def _of_input(self, call: _Call, gradient: Tensor) -> None:
        if not are_finite(gradient) and self._is_first(gradient) and self._broken is not None:
            self._broken.given.append(("input", call))

    def _of_weight(self, module: nn.Module, part: str, gradient: Tensor) -> None:
        call = self._last.get(module)
        if call is None or are_finite(gradient):  # a weight that its module lends to another one
            return
        if self._is_first(gradient) and self._broken is not None:
            self._broken.given.append((part, call))

    def _is_first(self, gradient: Tensor) -> bool:
        """Whether no other gradient was broken before; modules that share a tensor share it."""
        if self._broken is None:
            self._broken = _Broken(gradient)
        return self._broken.gradient is gradient


def _described(call: _Call, what: str, values: object) -> NotFinite:
    module = call.module
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return NotFinite(
        module=call.name,
        kind=type(module).__name__,
        what=what,
        values=range_of(values),
        input=call.input,
        weights=range_of(own),
    )
