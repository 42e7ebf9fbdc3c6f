"""Batch norms that see the batch of all processes: `norm: sync`.

torch's own SyncBatchNorm needs a GPU and takes the place of the modules, without what classes of
other libraries add to torch's, as timm's do an activation. Here each batch norm keeps its module, with its weights and
names, and computes with the mean and variance over all processes as long as it is in training mode.

A process sends mean, variance and count of its part; so the parts may differ in size. Backward
sends two sums a channel, as the mean and the variance depend on all inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .processes import total, world

_NORM = nn.modules.batchnorm._BatchNorm
_KINDS: dict[type[nn.Module], type[nn.Module]] = {}  # those that were asked for


def share_norms(model: nn.Module) -> None:
    """Let all batch norms of a model see the batches of all processes, until `unshare_norms`."""
    for module in model.modules():
        if isinstance(module, _NORM) and not isinstance(module, _Shared):
            module.__class__ = shared(type(module))  # type: ignore[assignment]  # one of its class


def unshare_norms(model: nn.Module) -> None:
    """Leave the batch norms as modules of their own class."""
    for module in model.modules():
        if isinstance(module, _Shared):
            module.__class__ = module.usual  # type: ignore[assignment]  # it was of that class


def has_own_norms(model: nn.Module) -> bool:
    """Whether a batch norm that is trained sees the part of a batch alone that a process has."""
    norms = [module for module in model.modules() if isinstance(module, _NORM)]
    trained = (norm for norm in norms if all(each.requires_grad for each in norm.parameters()))
    return any(not isinstance(norm, _Shared) for norm in trained)


def shared(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a batch norm whose statistics are shared, and which is else of this `kind`."""
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Shared{kind.__name__}", (_Shared, kind), {"usual": kind})
    return _KINDS[kind]


class _Shared(nn.Module):
    """What comes before the class of a batch norm."""

    usual: type[nn.Module]

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(inputs)
        with _OverProcesses():
            return super().forward(inputs)


class _OverProcesses(TorchFunctionMode):
    """While it lasts, `F.batch_norm` takes its statistics over all processes."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.batch_norm:
            return shared_batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def shared_batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of (N, C, ...), in training over the parts of all processes."""
    if not training:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    mean, variance, count = _statistics(wide.detach())
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_var.lerp_(unbiased.to(running_var), momentum)
    normalized: Tensor = _Normalize.apply(wide, mean, (variance + eps).rsqrt(), count)
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    if weight is not None:
        normalized = normalized * weight.to(wide).view(shape)
    if bias is not None:
        normalized = normalized + bias.to(wide).view(shape)
    return normalized.to(inputs.dtype)


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,) and variance (C,) over all processes, and how many values of a channel: scalar.

    The count stays a tensor, for which a GPU does not have to be waited for.
    """
    places = [axis for axis in range(inputs.ndim) if axis != 1]
    variance, mean = torch.var_mean(inputs, places, correction=0)
    own = torch.stack([mean, variance, torch.full_like(mean, inputs.numel() // inputs.shape[1])])
    parts = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(parts, own)
    means, variances, counts = torch.stack(parts, 1).double()  # (processes, C) each
    count = counts.sum(0)
    mean_of_all = (counts * means).sum(0) / count
    spread = (counts * (variances + (means - mean_of_all).square())).sum(0) / count
    return mean_of_all.to(inputs), spread.to(inputs), count[0].to(inputs)


class _Normalize(torch.autograd.Function):
    """(inputs - mean) * scale, of a mean and a scale that depend on the inputs of all processes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        normalized = (inputs - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normalized, scale, count)
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        normalized, scale, count = ctx.saved_tensors
        shape = [1, -1] + [1] * (gradient.ndim - 2)
        places = [axis for axis in range(gradient.ndim) if axis != 1]
        sums = torch.stack([gradient.sum(places), (gradient * normalized).sum(places)])  # (2, C)
        of_mean, of_scale = (total(sums) / count).view(2, *shape)
        return (gradient - of_mean - normalized * of_scale) * scale.view(shape), None, None, None
