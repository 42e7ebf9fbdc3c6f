"""A device that computes on the CPU and keeps apart what lies on it, to find tensors made elsewhere.

Under `other_device()` tensors may be moved to, or made on, OTHER. What is computed with them lies
there too, with real values, so that everything runs that would on a GPU; and as there it is an
error where a tensor on the CPU meets one on the device. Rules are CUDA's: a tensor without
dimensions may come from the CPU, and so may indices; numbers, `tolist` and `cpu` take values back,
and `numpy` does not.

Torch's fake tensors have no values, so that nothing runs behind a comparison, and its `meta` device
computes nothing. Of that device these tensors say they are: any other asks for its hardware.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

OTHER = torch.device("meta")
aten = torch.ops.aten
# What moves values from one device to another, or is not computed with.
MOVES = {aten.copy_, aten._to_copy, aten.set_}
# Of these the indices may be on the CPU.
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class WrongDevice(RuntimeError):
    """Tensors of two devices in one operation, as torch has it on a GPU."""


class Elsewhere(Tensor):
    """A tensor that says it lies on OTHER, and the one on the CPU with its values."""

    inner: Tensor
    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=OTHER,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), settings: Any = None
    ) -> Any:
        return computed(operation, args, settings or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> np.ndarray:
        raise TypeError("can't convert a tensor of another device to numpy: use Tensor.cpu() first")

    def __array__(self, *words: Any, **settings: Any) -> np.ndarray:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = Elsewhere(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)


class _Elsewhere(TorchDispatchMode):
    """Sees every operation, also those that make tensors of nothing."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), settings: Any = None
    ) -> Any:
        return computed(operation, args, settings or {})


class _FromValues(TorchFunctionMode):
    """Makes tensors of Python's values, which operations do not see: on the CPU, then moved."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), settings: Any = None
    ) -> Any:
        settings = dict(settings or {})
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            tensor, index, *value = args
            return function(tensor, _indices(index), *value)
        if function not in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            return function(*args, **settings)
        if function is Tensor.new_tensor:
            settings = {"dtype": args[0].dtype, "device": args[0].device, **settings}
            function, args = torch.tensor, args[1:]
        if any(isinstance(value, Tensor) for value in tree_leaves(args)):
            return function(*args, **settings)
        device = settings.pop("device", None)
        made = function(*args, **settings)
        return made if device is None else made.to(device)


def _indices(index: Any) -> Any:
    """Lists among indices as tensors on the CPU."""
    if isinstance(index, tuple):
        return tuple(_indices(one) for one in index)
    return torch.tensor(index) if isinstance(index, list) else index


@contextmanager
def other_device() -> Iterator[None]:
    """OTHER is a device for the current thread; of autocast, which does not know it, the CPU."""
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

    def on_cpu(device_type: str, *words: Any, **settings: Any) -> Any:
        return autocast("cpu" if device_type == OTHER.type else device_type, *words, **settings)

    with (
        patch.object(torch, "autocast", on_cpu),
        patch.object(torch, "is_autocast_enabled", lambda device: is_enabled("cpu")),
        _FromValues(),
        _Elsewhere(),
    ):
        yield


def computed(operation: Any, args: Any, settings: Mapping[str, Any]) -> Any:
    """What an operation gives, on the device that CUDA would have it on; `WrongDevice`."""
    tensors = [value for value in tree_leaves((args, settings)) if isinstance(value, Tensor)]
    if any(one.device.type == OTHER.type and not isinstance(one, Elsewhere) for one in tensors):
        raise NotImplementedError(f"{operation} of a tensor that was made unseen")
    here = {id(one.inner): one for one in tensors if isinstance(one, Elsewhere)}
    device = settings.get("device")
    to_other = bool(here) if device is None else torch.device(device).type == OTHER.type
    if here:
        _check(operation, args, settings)
    generator = settings.get("generator")
    if to_other and isinstance(generator, torch.Generator):
        raise WrongDevice(f"{operation}: a generator on the CPU for a tensor on the other device")
    if not here and not to_other:
        return operation(*args, **settings)
    values, named = tree_map(_inner, (args, dict(settings)))
    if device is not None:
        named["device"] = torch.device("cpu")
    given = operation(*values, **named)
    if not to_other:
        return given
    return tree_map(functools.partial(_outer, here), given)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _outer(here: Mapping[int, Elsewhere], value: Any) -> Any:
    """A result on the other device; of what works in place, the tensor that it was given."""
    if not isinstance(value, Tensor):
        return value
    return here[id(value)] if id(value) in here else Elsewhere(value)


def _check(operation: Any, args: Any, settings: Mapping[str, Any]) -> None:
    packet = getattr(operation, "overloadpacket", operation)
    if packet in MOVES:
        return
    compared = (args, settings)
    if packet in INDEXED:
        compared = (args[0], args[2:])
    tensors = [value for value in tree_leaves(compared) if isinstance(value, Tensor)]
    apart = [one for one in tensors if not isinstance(one, Elsewhere) and one.ndim > 0]
    if apart or (packet in INDEXED and not isinstance(args[0], Elsewhere)):
        shapes = ", ".join(
            f"{tuple(one.shape)} on {'the other device' if isinstance(one, Elsewhere) else 'the CPU'}"
            for one in tensors
        )
        raise WrongDevice(f"{operation} has tensors of two devices: {shapes}")
