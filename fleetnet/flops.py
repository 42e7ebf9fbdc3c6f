"""Parameters, multiply-accumulates and activations of a network, counted from the operators that really run.

Counted are convolutions, matrix products and attention, whether a module or a function calls them (ParC makes its
kernels on the fly). Batch norms, activations, pooling and additions are not: they vanish when fused, or cost little
arithmetic. One multiply-accumulate (MAC) is what most papers of mobile networks call a FLOP.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .errors import UsageError


@dataclass(frozen=True)
class Counts:
    """Of one forward pass of one batch."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions, matrix products and attention
    activations: int  # elements that these write, a rough measure of memory traffic


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = self.activations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        output = func(*args, **kwargs)
        if formula is not None:
            self.macs += formula(*args, **kwargs, out_val=output) // 2  # the registry counts two for each
            first = output if isinstance(output, Tensor) else output[0]
            self.activations += prod(first.shape)
        return output


def count(model: nn.Module, size: Tensor | tuple[int, int]) -> Counts:
    """Count one forward pass in eval mode: of an input (N, 3, H, W), or of one image of `size` (H, W) in pixels.

    Runs on shapes alone (device meta), so it takes no memory and no arithmetic, except for Mask R-CNN, whose NMS needs
    values; the model stays as it is, in whatever mode and form. Raises `UsageError` for an impossible size,
    `ModelError` where the network itself does.
    """
    shape = tuple(size.shape) if isinstance(size, Tensor) else (1, 3, *size)
    if len(shape) != 4 or min(shape) < 1:
        raise UsageError(f"the size to count at is {shape}; allowed: height and width, or a batch (N, 3, H, W)")
    tensors = [*model.parameters(), *model.buffers()]
    # A copy whose tensors, the only large part, are replaced by shapes.
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    shadow = copy.deepcopy(model, memo).eval()
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    counter = _Counter()
    # Under inference mode composite operators such as linear would arrive whole.
    with torch.inference_mode(False), torch.no_grad():
        try:
            with counter:
                shadow(torch.empty(shape, dtype=dtype, device="meta"))
        except (RuntimeError, NotImplementedError) as error:
            # NMS needs values, to tell how many boxes remain; torch names the device in the error it raises then
            if "meta" not in str(error).lower():
                raise
            counter, shadow = _Counter(), copy.deepcopy(model).eval()
            like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
            with counter:
                shadow(torch.zeros(shape, dtype=dtype, device=like.device))
    return Counts(sum(p.numel() for p in model.parameters()), counter.macs, counter.activations)
