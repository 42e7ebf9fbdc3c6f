"""Train a sum of branches as one convolution, exactly.

In training each branch is conv -> batch norm, so it looks as if every branch had to be computed to
learn its batch statistics. It need not be. A convolution is linear, so mean and variance of its
output follow from mean and covariance of the patches of its *input*, over batch and positions:

    mean_j = w_j . mu        var_j = w_j' S w_j        mu (T,), S (T, T) of the T values of a patch

With them the branches merge *before* the convolution runs: one convolution, no normalized copies,
one saved activation. Gradients flow through mu and S. A batch norm behind the sum is merged the
same way. How S comes about:

    pointwise       the Gram matrix of the input's pixels: one matrix product for all branches
    depthwise 3x3   9 x 9 a channel; its entries are autocorrelations of the input at lags of at
                    most 2, less lines at the border: zero padding keeps some pixels out of a tap
    dense           the Gram matrix of unfolded patches: for the stem, which has few channels

Related. OREPA (Hu et al., arXiv:2204.00826) merges branches in training too, but has given up their
batch norms: another network. RepOptimizers (Ding et al., arXiv:2205.15242) move the branches into
the optimizer: constant scales, another training. RepQ (arXiv:2311.05317) merges kernels with their
norms to quantize them, with the covariance taken as diagonal. QARepVGG (Chu et al.,
arXiv:2212.01593) changes where the norms are. Here network and training stay: outputs, gradients
and running statistics are those of branch by branch, but for rounding, and so is the state dict. A
run may switch at any step.

Reading order: `BranchSum` decides, `merged` computes, `_Pixels` and `_Windows` are the two sums.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .errors import UsageError, suggest
from .norms import shared
from .processes import total, world

Merging = Literal["auto", "on", "off"]
MERGING: tuple[Merging, ...] = ("auto", "on", "off")
# Sums of so many rows of pixels (of products of matrices: pixels) are precise enough in float32, and
# are added up in float64. More calls would cost more than they gain.
ROWS, PIXELS = 56, 256
# of a 3x3 kernel: row, column
TAPS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
# between two taps
LAGS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]


class Branch(NamedTuple):
    """A convolution of the input, and the batch norm behind it where there is one."""

    weight: Tensor | None  # (O, C / groups, k, k); None: the input itself
    bias: Tensor | None
    norm: nn.BatchNorm2d | None


class BranchSum(nn.Module):
    """A sum of linear branches of one input, which can be trained as one convolution.

    A subclass says what it sums (`branches`, `after`, `geometry`) and how it is computed without
    merging (`branch_by_branch`). With `merging` "on" it is merged wherever that is exact, with
    "auto" where it is faster too.
    """

    merging: Merging = "off"

    def branches(self) -> list[Branch]:
        raise NotImplementedError

    def after(self) -> nn.BatchNorm2d | None:
        """The batch norm behind the sum."""
        raise NotImplementedError

    def geometry(self) -> nn.Conv2d:
        """The largest convolution, whose stride, padding, dilation and groups the sum has."""
        raise NotImplementedError

    def branch_by_branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.merges(x):
            return merged(x, self.branches(), self.after(), self.geometry())
        return self.branch_by_branch(x)

    def merged_kernel(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight (O, C / groups, k, k) and bias (O,) of the one convolution, with gradients.

        By the batch statistics of an input `x` (N, C, h, w) where that can be merged in training,
        and the norms learn them; else by those that the norms have learned.
        """
        branches, after, conv = self.branches(), self.after(), self.geometry()
        if x is None or not self.training or not _can_merge(x, branches, after, conv):
            return _learned_kernel(branches, after, conv)
        return _kernel(branches, after, _moments(x, conv, _norms(branches, after)[0]), conv)

    def merges(self, x: Tensor) -> bool:
        """Whether this input (N, C, h, w) is computed as one convolution."""
        if not self.training or self.merging == "off":
            return False
        branches, conv = self.branches(), self.geometry()
        if not _can_merge(x, branches, self.after(), conv):
            return False
        return self.merging == "on" or _is_faster(x, branches, self.after(), conv)


def set_merging(model: nn.Module, merging: Merging) -> None:
    """Say how every sum of branches in a model is trained.

    `UsageError` for another word than those of `MERGING`, and for "on" where there is no sum.
    """
    if merging not in MERGING:
        raise UsageError(f"merge_branches is {merging!r}: {suggest(str(merging), MERGING)}")
    sums = [module for module in model.modules() if isinstance(module, BranchSum)]
    if merging == "on" and not sums:
        raise UsageError(
            "merge_branches is 'on', but the network has no sum of branches, as those of MobileOne "
            "and RepViT have; allowed: off"
        )
    for module in sums:
        module.merging = merging


# Whether to merge ------------------------------------------------------------------------------


def _can_merge(
    x: Tensor, branches: Sequence[Branch], after: nn.BatchNorm2d | None, conv: nn.Conv2d
) -> bool:
    """Whether the statistics are those of this batch, and the convolution one that is covered."""
    norms = _norms(branches, after)
    learn = all(type(norm) in (nn.BatchNorm2d, shared(nn.BatchNorm2d)) for norm in norms)
    learn = learn and all(norm.training for norm in norms)
    alike = len({_is_shared(norm) for norm in norms}) == 1
    height, width = _output_size(x, conv)
    # of one value there is no variance, which the batch norm itself says
    several = len(x) * height * width > 1 or (learn and _is_shared(norms[0]))
    return learn and alike and several and (_is_depthwise(conv) or conv.groups == 1)


def _is_faster(
    x: Tensor, branches: Sequence[Branch], after: nn.BatchNorm2d | None, conv: nn.Conv2d
) -> bool:
    """Whether a merged sum takes less time, by benchmarks/merged_step.py, and is as precise.

    Branch by branch a sum costs a pass over its outputs for each convolution and each norm; merged,
    the moments and their gradient, which at small sizes are mostly calls. Only what was measured is
    merged: on a CPU, in channels_last, in float32 and bfloat16, not compiled. In bfloat16 a plain
    skip is exact, but a kernel with its 1 in it is not. Processes with synchronized norms must take
    the same way, whatever the sizes of their batches, so they go branch by branch.
    """
    if _is_shared(_norms(branches, after)[0]):
        return False
    dtype = _computed_in(x, conv)
    measured = x.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    if not measured or not _is_channels_last(x) or torch.compiler.is_compiling():
        return False
    plain_skip = any(branch.weight is None and branch.norm is None for branch in branches)
    if dtype == torch.bfloat16 and plain_skip:
        return False
    if conv.kernel_size == (1, 1):
        convolutions = sum(branch.weight is not None for branch in branches)
        return _is_faster_pointwise(x, convolutions, dtype)
    if conv.groups == 1:  # the stem
        return dtype == torch.float32
    norms = len(_norms(branches, after))
    if conv.stride != (1, 1):
        return norms >= 5 and x.shape[2] >= 28
    smallest = 1 if norms >= 5 else 14 if norms >= 3 else 28  # height
    return norms >= 2 and x.shape[2] >= smallest


def _is_faster_pointwise(x: Tensor, convolutions: int, dtype: torch.dtype) -> bool:
    """Merged, it is 5 products of matrices and work on C x C; branch by branch 3 a convolution."""
    channels, pixels = x.shape[1], x[:, 0].numel()
    if convolutions >= 4:
        return pixels >= (4 if dtype == torch.float32 else 8) * channels
    few = {1: 96, 2: 192, 3: 384}[convolutions]
    return dtype == torch.float32 and channels <= few and pixels >= 8 * channels


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether it is one of the depthwise 3x3 convolutions that `_Windows` knows."""
    channels, stride, dilation = conv.in_channels, conv.stride, conv.dilation
    return (
        conv.groups == channels == conv.out_channels
        and conv.kernel_size == (3, 3)
        and (stride == (1, 1) or (stride == (2, 2) and dilation == (1, 1)))
        and conv.padding == dilation == (dilation[0], dilation[0])
    )


def _output_size(x: Tensor, conv: nn.Conv2d) -> tuple[int, int]:
    padding = cast(tuple[int, int], conv.padding)
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - conv.dilation[i] * (conv.kernel_size[i] - 1) - 1)
        // conv.stride[i]
        + 1
        for i in (0, 1)
    )
    return height, width


def _norms(branches: Sequence[Branch], after: nn.BatchNorm2d | None) -> list[nn.BatchNorm2d]:
    norms = [branch.norm for branch in branches] + [after]
    return [norm for norm in norms if norm is not None]


# The merged sum --------------------------------------------------------------------------------


def merged(
    x: Tensor, branches: Sequence[Branch], after: nn.BatchNorm2d | None, conv: nn.Conv2d
) -> Tensor:
    """after(sum of norm(branch(x))) as one convolution: (N, C, h, w) -> (N, O, h', w').

    Updates the running statistics of all norms as they would themselves.
    """
    with torch.autocast(x.device.type, enabled=False):
        moments = _moments(x, conv, _norms(branches, after)[0])
        weight, bias = _kernel(branches, after, moments, conv)
    geometry = _geometry(conv)
    return cast(Tensor, _Convolution.apply(x, weight, bias, geometry, _computed_in(x, conv)))


class Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def _geometry(conv: nn.Conv2d) -> Geometry:
    values = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return Geometry(*cast(tuple[tuple[int, int], tuple[int, int], tuple[int, int], int], values))


def _computed_in(x: Tensor, conv: nn.Conv2d) -> torch.dtype:
    """What autocast, or else the parameters, say."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return conv.weight.dtype


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients of weight and bias are summed more precisely than torch's.

    What the branches learn is what is left of these when mean and variance are taken out, so their
    rounding would weigh more than that of branch by branch, whose norms take them out before.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: Geometry,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, kernel = x.to(dtype), weight.to(dtype)
            y = F.conv2d(x, kernel, bias.to(dtype), *geometry)
        ctx.save_for_backward(x, kernel)
        ctx.geometry = geometry  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, kernel = cast(tuple[Tensor, Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        geometry = cast(Geometry, ctx.geometry)  # type: ignore[attr-defined]
        of_input = cast(tuple[bool, ...], ctx.needs_input_grad)[0]  # type: ignore[attr-defined]
        depthwise = geometry.groups == x.shape[1] == kernel.shape[0]
        of_x, of_kernel, _ = torch.ops.aten.convolution_backward(
            gradient, x, kernel, None, *geometry[:3], False, [0, 0], geometry.groups,
            [of_input, not depthwise, False],
        )  # fmt: skip
        if depthwise:
            of_kernel = _weight_of_depthwise(x, kernel.shape, gradient, geometry)
        return of_x, of_kernel, _sum(gradient), None, None


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _weight_of_depthwise(
    x: Tensor, shape: Sequence[int], gradient: Tensor, geometry: Geometry
) -> Tensor:
    """Gradient of a depthwise weight (C, 1, k, k), which oneDNN sums value by value, in float64.

    In rows (NCHW) all images can be channels; else in parts of the batch.
    """
    images, channels = x.shape[:2]
    if _is_channels_last(x):
        together = max(ROWS // gradient.shape[2], 1)
        parts = zip(x.split(together), gradient.split(together), strict=True)
        each = torch.stack([conv2d_weight(one, shape, of, *geometry) for one, of in parts])
    else:
        geometry = geometry._replace(groups=images * channels)
        one, of = (values.contiguous().flatten(0, 1)[None] for values in (x, gradient))
        each = conv2d_weight(one, (images * channels, *shape[1:]), of, *geometry)
    return each.view(-1, *shape).sum(0, dtype=torch.float64)


class Moments(NamedTuple):
    """Of the patches of an input, over batch and positions; C is left out where all share it."""

    positions: Tensor | int  # how many
    mean: Tensor  # ([C,] T), in float64
    covariance: Tensor  # ([C,] T, T), in float64 where it is small

    def of(self, kernels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the outputs of kernels (B, O, T): two of (B, O), in float64."""
        if self.covariance.ndim == 2:
            projected = kernels @ self.covariance
            mean = kernels.double() @ self.mean
        else:  # (B, C, 1, T) @ (C, T, T)
            projected = (kernels[:, :, None] @ self.covariance)[:, :, 0]
            mean = (kernels * self.mean).sum(-1)
        return mean, (projected * kernels).sum(-1, dtype=torch.float64).clamp(min=0)


def _kernel(
    branches: Sequence[Branch],
    after: nn.BatchNorm2d | None,
    moments: Moments,
    conv: nn.Conv2d,
) -> tuple[Tensor, Tensor]:
    """Weight (O, C / groups, k, k) and bias (O,) of the sum."""
    like = moments.covariance
    shape = conv.weight.shape
    total = like.new_zeros(shape[0], shape[1:].numel())  # (O, T)
    bias = moments.mean.new_zeros(shape[0])
    kernels = [_full_size(branch.weight, conv).to(like) for branch in branches]
    normed = [i for i, branch in enumerate(branches) if branch.norm is not None]
    if normed:
        stacked = torch.stack([kernels[i] for i in normed])  # (B, O, T)
        means, variances = moments.of(stacked)
        scales = []
        for i, mean, variance in zip(normed, means, variances, strict=True):
            norm = cast(nn.BatchNorm2d, branches[i].norm)
            own = branches[i].bias
            scale, shift = _learn(norm, mean, variance, own, moments.positions)
            scales.append(scale)
            bias = bias + shift
        total = (torch.stack(scales)[..., None].to(stacked) * stacked).sum(0)
    for kernel, branch in zip(kernels, branches, strict=True):
        if branch.norm is None:
            total = total + kernel
            bias = bias if branch.bias is None else bias + branch.bias
    if after is not None:
        (mean,), (variance,) = moments.of(total[None])
        scale, bias = _learn(after, mean, variance, bias, moments.positions)
        total = scale[:, None].to(total) * total
    return total.view(shape), bias


def _learned_kernel(
    branches: Sequence[Branch], after: nn.BatchNorm2d | None, conv: nn.Conv2d
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the sum in eval mode, in float64: as `fuse` has it, but with gradients."""
    total = conv.weight.new_zeros(conv.weight.flatten(1).shape, dtype=torch.float64)  # (O, T)
    bias = total.new_zeros(len(total))
    for branch in branches:
        kernel = _full_size(branch.weight, conv).double()
        own = bias.new_zeros(len(bias)) if branch.bias is None else branch.bias.double()
        scale, shift = _of_running(branch.norm, own)
        total, bias = total + scale[:, None] * kernel, bias + shift
    scale, bias = _of_running(after, bias)
    return (scale[:, None] * total).view(conv.weight.shape), bias


def _of_running(norm: nn.BatchNorm2d | None, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What norm(kernel * x + bias) multiplies the kernel with and adds, in eval mode; each (O,)."""
    if norm is None:
        return torch.ones_like(bias), bias
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * torch.rsqrt(variance.double() + norm.eps)
    return scale, norm.bias + scale * (bias - mean)


def _full_size(weight: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """A branch's kernel at the size of the largest one: (O, T)."""
    outputs, inputs, height, width = conv.weight.shape
    if weight is None:
        weight = torch.eye(inputs, device=conv.weight.device)[..., None, None]
        weight = weight.repeat(outputs // inputs, 1, 1, 1)
    rows, columns = height - weight.shape[2], width - weight.shape[3]
    if rows or columns:
        weight = F.pad(weight, (columns // 2, columns // 2, rows // 2, rows // 2))
    return weight.flatten(1)


def _learn(
    norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, bias: Tensor | None, count: Tensor | int
) -> tuple[Tensor, Tensor]:
    """What norm(kernel * x + bias) multiplies the kernel with and adds, each (O,); it learns both.

    `mean` is that without the bias, which a norm takes off again: its gradient is 0, as it has one.
    """
    if bias is not None:
        mean = mean + bias
    _update(norm, mean, variance, count)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - scale * mean
    return scale, shift if bias is None else shift + scale * bias


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Move the running statistics as the batch norm does, with the unbiased variance."""
    if norm.running_mean is None or norm.running_var is None:
        return
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:  # the mean of all batches
            share = 1 / norm.num_batches_tracked.item()
    unbiased = variance * (count / (count - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share or 0.0)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share or 0.0)


# Moments of the input --------------------------------------------------------------------------


def _moments(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Moments:
    """Mean and covariance of what the convolution sees, in float32 at least.

    The covariance is the difference of large values where the mean is far from 0, and is taken in
    float64. `norm` says whether the moments are those of all processes.
    """
    height, width = _output_size(x, conv)
    count: Tensor | int = len(x) * height * width
    if _is_depthwise(conv):
        first, second = _of_windows(x, conv.stride[0], conv.dilation[0])
    else:
        first, second = _of_patches(x, conv)
    if _is_shared(norm):
        sizes = [first.numel(), second.numel(), 1]
        flat = torch.cat((first.flatten(), second.flatten(), first.new_tensor([float(count)])))
        summed = _Summed.apply(flat)
        ours, products, counted = summed.split(sizes)
        first, second, count = ours.view_as(first), products.view_as(second), counted
    mean = first / count
    covariance = second / count - mean[..., :, None] * mean[..., None, :]
    precise = _precise(x).dtype if second.ndim == 2 else torch.float64
    return Moments(count, mean, covariance.to(precise))


def _of_patches(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Sums over batch and positions of the patches (T,) and of their products (T, T)."""
    if conv.kernel_size != (1, 1) or conv.stride != (1, 1):
        padding = cast(tuple[int, int], conv.padding)
        columns = F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)
        x = columns[:, :, None]  # (N, T, 1, h' * w')
    return cast(tuple[Tensor, Tensor], _Pixels.apply(x))


class _Pixels(torch.autograd.Function):
    """Sums over all pixels of the values (C,) and of their products (C, C)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return _sum(x), _products(_rows(_precise(x)))

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, of_sums: Tensor, of_products: Tensor
    ) -> Tensor:
        (x,) = cast(tuple[Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        batch, channels, height, width = x.shape
        rows = _rows(_precise(x))
        matrix = (of_products + of_products.t()).to(rows)
        gradient = torch.addmm(of_sums.to(rows), rows, matrix)
        return gradient.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _sum(x: Tensor) -> Tensor:
    """Over batch and positions, in float64: (N, C, h, w) -> (C,)"""
    return _precise(x).sum((2, 3)).sum(0, dtype=torch.float64)


def _precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _products(rows: Tensor) -> Tensor:
    """Of (P, C), the sum of the products (C, C), in float64 over parts of the rows."""
    whole = len(rows) // PIXELS * PIXELS
    parts = rows[:whole].view(-1, PIXELS, rows.shape[1])
    total = (parts.transpose(1, 2) @ parts).sum(0, dtype=torch.float64)
    rest = rows[whole:]
    return total + rest.t() @ rest


def _rows(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N * h * w, C), a view in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


# Moments of 3x3 windows ------------------------------------------------------------------------


class _Windows(torch.autograd.Function):
    """Sums over batch and positions of the windows (C, 9) and of their products (C, 9, 9).

    A product of the taps a and b is summed over the pixels q under b: x[q] * x[q + a - b]. These
    are all pixels, or with stride 2 those of one phase, without those that the padding keeps from
    the tap: a line at the border. In float64: neighbors are alike, so that a kernel's variance is a
    small rest of large products. With stride 2, height and width are even.

    Its backward is written out, since autograd would fill an image with zeros for every line.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, stride: int, dilation: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.geometry = stride, dilation  # type: ignore[attr-defined]
        x = _precise(x)
        rows, columns = _borders(x, dilation)
        of_rows, row_sums = _of_lines(rows, stride, dilation)
        of_columns, column_sums = _of_lines(columns, stride, dilation)
        corners = _corners(rows, dilation)
        squares, corner_sums = (
            corners.square().sum((2, 4)).sum(0, dtype=torch.float64),
            corners.sum((2, 4)).sum(0, dtype=torch.float64),
        )  # (2, 2, C)
        if stride == 2:
            phases = _phases(x)
            lags = _lags_between(phases)
            sums = torch.stack([_sum(phase) for phase in phases])
        else:
            lags, sums = _lags_of_all(x, of_columns[1, 0], dilation), _sum(x)[None]
        products = [part.flatten(0, -2) for part in (lags, of_rows, of_columns, squares)]
        values = [part.flatten(0, -2) for part in (sums, row_sums, column_sums, corner_sums)]
        of_products, of_values = (each.to(x.device) for each in ASSEMBLY[stride])
        second = torch.cat(products).t() @ of_products
        return torch.cat(values).t() @ of_values, second.view(-1, 9, 9)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, of_first: Tensor, of_second: Tensor
    ) -> tuple[Tensor, None, None]:
        (x,) = cast(tuple[Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        stride, dilation = cast(tuple[int, int], ctx.geometry)  # type: ignore[attr-defined]
        x, channels = _precise(x), x.shape[1]
        of_products, of_values = (each.to(x.device) for each in ASSEMBLY[stride])
        of_parts = (of_products @ of_second.flatten(1).t()).to(x.dtype)  # (parts, C)
        of_sums = (of_values @ of_first.t()).to(x.dtype)
        line = 2 * stride
        lags, of_rows, of_columns, of_squares = of_parts.split(
            (25 * stride**2, 3 * line, 3 * line, 4)
        )
        sums, of_row_sums, of_column_sums, of_corners = of_sums.split((stride**2, line, line, 4))
        gradient = _gradient_of_lags(x, lags, sums, stride, dilation)
        rows, columns = _borders(x, dilation)
        by_row = _gradient_of_lines(rows, of_rows, of_row_sums, stride, dilation)
        by_column = _gradient_of_lines(columns, of_columns, of_column_sums, stride, dilation)
        of_squares, of_corners = (
            each.view(2, 1, 2, 1, channels) for each in (of_squares, of_corners)
        )
        corners = 2 * of_squares * _corners(rows, dilation) + of_corners
        depth = corners.shape[4]
        by_row[..., :depth, :] += corners[:, :, :, 0]
        by_row[..., -depth:, :] += corners[:, :, :, 1]
        pixels = gradient.permute(0, 2, 3, 1)  # (N, h, w, C)
        pixels[:, :dilation] += by_row[:, 0]
        pixels[:, -dilation:] += by_row[:, 1]
        pixels[:, :, :dilation] += by_column[:, 0].transpose(1, 2)
        pixels[:, :, -dilation:] += by_column[:, 1].transpose(1, 2)
        return gradient, None, None


def _of_windows(x: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    if stride == 2:  # whole phases; the zeros are those that the padding has there
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return cast(tuple[Tensor, Tensor], _Windows.apply(x, stride, dilation))


def _borders(x: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """The first and the last rows (N, 2, d, w, C) and columns (N, 2, d, h, C)."""
    pixels = x.permute(0, 2, 3, 1)
    rows = torch.stack((pixels[:, :dilation], pixels[:, -dilation:]), 1)
    columns = torch.stack((pixels[:, :, :dilation], pixels[:, :, -dilation:]), 1)
    return rows, columns.transpose(2, 3)


def _corners(rows: Tensor, dilation: int) -> Tensor:
    """(N, 2, d, w, C) -> (N, 2, d, 2, d, C), fewer where the image is smaller."""
    depth = min(dilation, rows.shape[3])
    return torch.stack((rows[..., :depth, :], rows[..., -depth:, :]), 3)


def _of_lines(lines: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Of lines (N, 2, d, L, C): sums of products (2, stride, 3, C) and of values (2, stride, C)."""
    length = lines.shape[3]
    by_lag = []
    for lag in range(3):
        rest = max(length - lag * dilation, 0)
        product = lines[..., :rest, :] * lines[..., length - rest :, :]
        by_lag.append(_by_phase(product, stride))
    return torch.stack(by_lag, 2), _by_phase(lines, stride)


def _by_phase(lines: Tensor, stride: int) -> Tensor:
    """(N, 2, d, L, C) -> (2, stride, C)"""
    sums = [lines[..., phase::stride, :].sum((2, 3)) for phase in range(stride)]
    return torch.stack(sums, 2).sum(0, dtype=torch.float64)


def _gradient_of_lines(
    lines: Tensor, of_lags: Tensor, of_sums: Tensor, stride: int, dilation: int
) -> Tensor:
    """That of `_of_lines`: a product is seen from both of its pixels; (N, 2, d, L, C)."""
    length, channels = lines.shape[3:]
    times = -(-length // stride)
    of_lags = of_lags.view(2, 1, stride, 3, channels).repeat(1, 1, times, 1, 1)[:, :, :length]
    of_sums = of_sums.view(2, 1, stride, channels).repeat(1, 1, times, 1)[:, :, :length]
    gradient = of_sums.expand_as(lines).clone(memory_format=torch.contiguous_format)
    for lag in range(3):
        rest = max(length - lag * dilation, 0)
        weight = of_lags[:, :, :rest, lag]
        near, far = (slice(0, rest), slice(length - rest, length))
        gradient[..., near, :].addcmul_(weight, lines[..., far, :])
        gradient[..., far, :].addcmul_(weight, lines[..., near, :])
    return gradient


def _gradient_of_lags(
    x: Tensor, of_lags: Tensor, of_sums: Tensor, stride: int, dilation: int
) -> Tensor:
    """What the sums of products (25 stride^2, C) and values (stride^2, C) give every pixel.

    A product is seen from both of its pixels, so each pixel sees its neighbors through a 5x5
    kernel, which with stride 2 depends on the phase.
    """
    channels = x.shape[1]
    kernels = (of_lags + of_lags[OTHER_SIDE[stride]]).view(stride**2, 25, channels)
    kernels = kernels.transpose(1, 2).reshape(stride**2, channels, 1, 5, 5)
    of_sums = of_sums.contiguous()
    if stride == 1:
        return F.conv2d(x, kernels[0], of_sums[0], 1, 2 * dilation, dilation, channels)
    gradient = torch.empty_like(x)
    for i, (row, column) in enumerate(itertools.product((0, 1), repeat=2)):
        # an odd phase begins one pixel outside of the image
        part = F.conv2d(x, kernels[i], of_sums[i], 2, (2 + row, 2 + column), 1, channels)
        gradient[:, :, row::2, column::2] = part[:, :, row:, column:]
    return gradient


def _assemble(stride: int) -> tuple[Tensor, Tensor]:
    """How sums over pixels become sums over windows: two matrices of 0, 1 and -1.

    Products: lags (stride^2, 25), rows (2, stride, 3), columns (2, stride, 3), corners (2, 2) ->
    81. Values: sums (stride^2,), rows (2, stride), columns (2, stride), corners (2, 2) -> 9.
    """
    lags, line = 25 * stride**2, 6 * stride
    products = torch.zeros(lags + 2 * line + 4, 81, dtype=torch.float64)
    values = torch.zeros(stride**2 + 4 * stride + 4, 9, dtype=torch.float64)
    for i, a in enumerate(TAPS):
        _place(values, i, a, a, stride, (stride**2, 2 * stride), lagged=False)
        for j, b in enumerate(TAPS):
            _place(products, 9 * i + j, a, b, stride, (lags, line), lagged=True)
    return products, values


def _place(
    matrix: Tensor,
    column: int,
    a: tuple[int, int],
    b: tuple[int, int],
    stride: int,
    sizes: tuple[int, int],
    lagged: bool,
) -> None:
    """One column: all pixels, less a row, less a column, plus the corner that both have taken."""
    whole, line = sizes
    lag = (a[0] - b[0], a[1] - b[1])
    phases = [(b[0] % stride), (b[1] % stride)]
    phase = phases[0] * stride + phases[1]
    matrix[25 * phase + LAGS.index(lag) if lagged else phase, column] = 1
    missed = [_missed(a[axis], b[axis], stride) for axis in (0, 1)]
    for axis, place in enumerate(missed):
        if place is not None:  # a row runs along the columns, and a column along the rows
            other = 1 - axis
            near, distance = phases[other], lag[other]
            if distance < 0:  # x[q] * x[q - n] is that of n at q - n
                near, distance = a[other] % stride, -distance
            index = place * stride + near
            matrix[whole + axis * line + (3 * index + distance if lagged else index), column] = -1
    if missed[0] is not None and missed[1] is not None:
        matrix[whole + 2 * line + 2 * missed[0] + missed[1], column] = 1


def _missed(a: int, b: int, stride: int) -> int | None:
    """Which line two taps never see together: 0 the first, 1 the last.

    Where they differ, the other one is outside of the image there, so nothing is missed. With
    stride 2 and an even size, the last tap reaches all of its phase.
    """
    if a != b or a == 0 or (a == 1 and stride == 2):
        return None
    return 0 if a == 1 else 1


def _find_other_side(stride: int) -> list[int]:
    """For each phase and lag, where the same product stands when it is seen from its other pixel."""
    order = []
    for row, column in itertools.product(range(stride), repeat=2):
        for down, right in LAGS:
            phase = (row + down) % stride * stride + (column + right) % stride
            order.append(25 * phase + LAGS.index((-down, -right)))
    return order


def _lags_of_all(x: Tensor, of_last_column: Tensor, dilation: int) -> Tensor:
    """Sum of x[q] * x[q + lag * dilation] over all pixels: (N, C, h, w) -> (25, C).

    A lag to the left is one to the right, seen from the other pixel. With one factor moved by one
    column, a window of three sees all that is to the right: so wide oneDNN is fast, 20 times faster
    than five wide. The column that leaves the image misses its own products: (3, C), by lag.
    """
    shift = min(dilation, x.shape[3])
    moved = F.pad(x, (shift, -shift))  # x[q - 1]
    right = _correlations(moved, x, (5, 3), dilation)  # (5, 3, C): column lags 0, 1, 2
    right[2:, 0] += of_last_column
    right[:2, 0] += of_last_column[1:].flip(0)
    left = right[:, 1:].flip(0, 1)
    return torch.cat((left, right), 1).flatten(0, 1)


def _correlations(one: Tensor, other: Tensor, size: tuple[int, int], dilation: int) -> Tensor:
    """Sum of one[q] * other[q + lag * dilation] over all pixels: of (N, C, h, w) -> (*size, C).

    It is the gradient of a depthwise kernel of that size.
    """
    channels = other.shape[1]
    padding = (size[0] // 2 * dilation, size[1] // 2 * dilation)
    geometry = Geometry((1, 1), padding, (dilation, dilation), channels)
    products = _weight_of_depthwise(other, (channels, 1, *size), one, geometry)
    return products[:, 0].permute(1, 2, 0)


def _phases(x: Tensor) -> list[Tensor]:
    """The pixels at even and odd rows and columns: four of (N, C, h / 2, w / 2)."""
    layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    return [
        x[:, :, row::2, column::2].contiguous(memory_format=layout)
        for row, column in itertools.product((0, 1), repeat=2)
    ]


def _lags_between(phases: list[Tensor]) -> Tensor:
    """Sum of x[q] * x[q + lag] over the pixels of each phase, from the phases: (100, C)."""
    products: dict[tuple[int, int], Tensor] = {}
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        # (3, 3, C): sum of phase i at q times phase j at q + lag
        product = _correlations(phases[i], phases[j], (3, 3), 1)
        products[i, j], products[j, i] = product, product.flip(0, 1)
    every = torch.stack([products[i, j] for i in range(4) for j in range(4)])
    return every.flatten(0, 2)[AMONG_PHASES]


def _find_among_phases() -> list[int]:
    """For each phase and lag: which product of two phases (16) at which lag between them (9)."""
    order = []
    for row, column in itertools.product((0, 1), repeat=2):
        for down, right in LAGS:
            (rows, row_to), (columns, column_to) = divmod(row + down, 2), divmod(column + right, 2)
            pair = 4 * (2 * row + column) + 2 * row_to + column_to
            order.append(9 * pair + 3 * (rows + 1) + columns + 1)
    return order


# by stride
ASSEMBLY = {stride: _assemble(stride) for stride in (1, 2)}
OTHER_SIDE = {stride: _find_other_side(stride) for stride in (1, 2)}
AMONG_PHASES = _find_among_phases()

# Several processes -----------------------------------------------------------------------------


def _is_shared(norm: nn.BatchNorm2d) -> bool:
    """Whether its statistics are those of all processes."""
    return type(norm) is shared(nn.BatchNorm2d) and world() > 1


class _Summed(torch.autograd.Function):
    """The sum over processes; the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return total(gradient)
