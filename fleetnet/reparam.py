"""Structural re-parameterization: train many linear branches, deploy one convolution.

A convolution is linear, and so is batch normalization once its statistics are frozen. Any sum of
such branches over the same input is therefore one convolution. Four facts do all the work:

    bn(conv(x))     = conv'(x)   w' = w * s,  b' = beta + (b - mean) * s,  s = gamma / sqrt(var + eps)
    conv(bn(x))     = conv'(x)   w' = w * s (by input channel),  b' = b + sum w * (beta - mean * s); unpadded only
    x               = conv(x)    with the identity kernel: 1 at the center of each channel's own filter
    conv_a + conv_b = conv_ab    once the smaller kernel is zero-padded to the larger

A module that can be collapsed has a method beside its `forward`: `fuse() -> nn.Module`, or
`fuse_at(size) -> nn.Module` where the result depends on the feature size (ParC). All arithmetic is
in float64; the result is cast back at the end. A module without either method is left as it is: a
batch norm that nobody knows how to fold stays.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ModelError, named_arguments

Kernel = tuple[Tensor, Tensor]  # float64: weight (out, in / groups, kh, kw) and bias (out,)
AnyNorm = nn.BatchNorm1d | nn.BatchNorm2d
Form = Literal["multi-branch", "deploy"]
FORMS: tuple[Form, ...] = ("multi-branch", "deploy")


def kernel(conv: nn.Conv2d) -> Kernel:
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().double()
    return weight, bias


def scale_shift(bn: nn.Module) -> tuple[Tensor, Tensor]:
    """The s and t of bn(x) = s * x + t per channel, with the statistics bn uses in eval mode; float64, each (C,)."""
    norm = cast(AnyNorm, bn)
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        raise ModelError(
            f"{bn} keeps no running statistics, so it is not linear in eval mode and "
            "cannot be folded"
        )
    scale = (variance.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def fold_bn(kernel: Kernel, bn: nn.Module) -> Kernel:
    """The kernel of bn(conv(x))."""
    weight, bias = kernel
    scale, shift = scale_shift(bn)
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias * scale + shift


def fold_bn_before(bn: nn.Module, kernel: Kernel, groups: int = 1) -> Kernel:
    """The kernel of conv(bn(x)). Exact only for a convolution without zero padding: padding would be shifted too."""
    weight, bias = kernel
    scale, shift = (v.view(groups, 1, -1) for v in scale_shift(bn))  # (groups, 1, in / groups)
    shape = weight.shape
    # (groups, out / groups, in / groups, k)
    grouped = weight.reshape(groups, shape[0] // groups, shape[1], -1)
    bias = bias + (grouped.sum(-1) * shift).sum(-1).flatten()
    return (grouped * scale[..., None]).reshape(shape), bias


def identity(channels: int, groups: int, size: int, device: torch.device | str = "cpu") -> Kernel:
    """The kernel of odd size that returns its input; `device` is that of the branches it is merged with."""
    weight = torch.zeros(
        channels, channels // groups, size, size, dtype=torch.float64, device=device
    )
    index = torch.arange(channels, device=device)
    weight[index, index % (channels // groups), size // 2, size // 2] = 1
    return weight, torch.zeros(channels, dtype=torch.float64, device=device)


def merge(*kernels: Kernel) -> Kernel:
    """The kernel of a sum of branches of one stride and dilation; smaller ones are zero-padded to the largest.

    Kernel sizes must be odd, and each branch must pad by dilation * (size // 2), so that all sample
    the same centers.
    """
    height = max(w.shape[2] for w, _ in kernels)
    width = max(w.shape[3] for w, _ in kernels)
    weight, bias = torch.zeros(()), torch.zeros(())
    for w, b in kernels:
        rows, columns = height - w.shape[2], width - w.shape[3]
        if rows % 2 or columns % 2:
            raise ModelError(
                f"kernels of {tuple(w.shape[2:])} and {(height, width)} have no common center"
            )
        weight = weight.to(w) + F.pad(w, (columns // 2, columns // 2, rows // 2, rows // 2))
        bias = bias.to(b) + b
    return weight, bias


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    value = value.to(device=like.device, dtype=like.dtype)
    if value.ndim == 4 and like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=like.requires_grad)


class _Fusing(Protocol):
    """A module that has a deploy form of its own."""

    def fuse(self) -> nn.Module: ...


class _FusingAtSize(Protocol):
    """A module whose deploy form depends on the size of its features, (height, width)."""

    def fuse_at(self, size: tuple[int, int]) -> nn.Module: ...


def as_conv(kernel: Kernel, like: nn.Conv2d, padding: tuple[int, int] | None = None) -> nn.Conv2d:
    """A convolution with this kernel.

    Its stride, dilation and groups, and the kernel's dtype, device, memory format and trainability
    are those of `like`; so is the padding unless given. In eval mode.
    """
    weight, bias = kernel
    expected = (like.out_channels, like.in_channels // like.groups, *like.kernel_size)
    if tuple(weight.shape) != expected:
        raise ModelError(f"kernel is {tuple(weight.shape)}, but `like` has {expected}")
    geometry: dict[str, Any] = {
        "stride": like.stride,
        "dilation": like.dilation,
        "groups": like.groups,
    }
    geometry["padding"] = like.padding if padding is None else padding
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        cast(tuple[int, int], like.kernel_size),
        **geometry,
        device="meta",
    )
    conv.weight, conv.bias = _parameter(weight, like.weight), _parameter(bias, like.weight)
    return conv.eval()


def as_linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    """A linear layer (out, in), (out,) with dtype, device and trainability of `like`, in eval mode."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = _parameter(weight, like.weight), _parameter(bias, like.weight)
    return linear.eval()


def linear_kernel(linear: nn.Linear, bn: nn.Module | None = None) -> Kernel:
    """Weight (out, in) and bias (out,) of linear(bn(x)), float64."""
    weight = linear.weight.detach().double()
    bias = (
        weight.new_zeros(linear.out_features)
        if linear.bias is None
        else linear.bias.detach().double()
    )
    if bn is None:
        return weight, bias
    scale, shift = scale_shift(bn)
    return weight * scale, bias + weight @ shift


def _can(module: nn.Module, method: str) -> bool:
    # of the class: a layer may be called "fuse" elsewhere
    return callable(getattr(type(module), method, None))


def collapsible(model: nn.Module) -> bool:
    """Whether any module of a model has a method that collapses it: whether the model is in multi-branch form."""
    return any(_can(module, "fuse") or _can(module, "fuse_at") for module in model.modules())


def form_of(model: nn.Module) -> Form:
    """ "multi-branch" while any module can still be collapsed, else "deploy"."""
    return "multi-branch" if collapsible(model) else "deploy"


def of_one_size(model: nn.Module) -> list[str]:
    """The names of the modules whose deploy form is for one feature size: those of ParC."""
    return [name for name, module in model.named_modules() if _can(module, "fuse_at")]


def _feature_sizes(model: nn.Module, example: Tensor) -> dict[nn.Module, tuple[int, int]]:
    """The (height, width) of the input that each module with `fuse_at` sees when the example runs."""
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        size = (args[0].shape[-2], args[0].shape[-1])
        if sizes.setdefault(module, size) != size:
            raise ModelError(
                f"{type(module).__name__} is used at {sizes[module]} and at {size}: "
                "it has no single size"
            )

    sized = [m for m in model.modules() if _can(m, "fuse_at")]
    hooks = [m.register_forward_pre_hook(record) for m in sized]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


@named_arguments
@torch.no_grad()
def reparameterize(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """The deploy form: a copy of `model` in which every module that can fuse is replaced by what it fuses to.

    `example` is one input of the deployed size, (N, C, H, W); only networks with size-dependent
    kernels (ParC) need it. The copy computes the same, keeps dtype, device, memory format and
    `requires_grad`, and may be collapsed again without effect. Raises `ModelError` if any module is
    in training mode, since a batch norm that uses batch statistics is not linear; and if an example
    is needed and missing.
    """
    training = [name or type(m).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise ModelError(
            f"reparameterize needs eval mode, but {training[0]!r} and {len(training) - 1} more "
            "modules are in training mode: call model.eval() first"
        )
    model = copy.deepcopy(model)
    sized = of_one_size(model)
    if sized and example is None:
        raise ModelError(
            f"{sized[0]!r} and {len(sized) - 1} more modules have kernels that depend on the "
            "feature size: give reparameterize(model, example) an input of the size to deploy"
        )
    sizes = _feature_sizes(model, example) if sized and example is not None else {}
    replaced: dict[nn.Module, nn.Module] = {}  # a module used in two places stays shared

    def collapse(module: nn.Module) -> nn.Module:
        if module in replaced:
            return replaced[module]
        if _can(module, "fuse"):
            fused = cast("_Fusing", module).fuse()
        elif module in sizes:
            fused = cast("_FusingAtSize", module).fuse_at(sizes[module])
        else:
            fused = module
        replaced[module] = fused
        if fused is not module:
            fused.eval()
        # named_children would skip a second name of one child
        for name, child in list(fused._modules.items()):
            if child is not None:
                setattr(fused, name, collapse(child))
        return fused

    return collapse(model)


ROUNDING = 32
WIDEST = 1e-3  # relative; a batch norm folded with an epsilon of 1e-3 for 1e-5 is at 2e-3


def difference(reference: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, float]:
    """The largest absolute difference, and the same relative to the reference's standard deviation (worst output)."""
    largest = relative = 0.0
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape:
            raise ModelError(f"outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}")
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        delta = (a - b).abs().max().item() if a.numel() else 0.0
        spread = (a.std() if a.numel() > 1 else a.abs()).item()
        largest = max(largest, delta) if delta == delta else float("nan")
        relative = max(relative, delta / max(spread, 1e-30)) if delta == delta else float("nan")
    return largest, relative


def allowed(tolerance: float, exact: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """How far from `reference`, computed in float32, something that computes the same may be: on any CPU, `tolerance`.

    More where float32 leaves more of these weights: with the kernels of one CPU a deploy form is as
    exact as the network itself, with those of another 14 times less (ParC-Net, AVX2). So `ROUNDING`
    times what lies between `reference` and `exact`, the same in float64; but at most `WIDEST`,
    beyond which faults could hide.
    """
    own = difference(exact, reference)[1]
    return max(tolerance, min(ROUNDING * own, WIDEST))
