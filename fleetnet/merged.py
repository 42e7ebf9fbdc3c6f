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

Reading order: `BranchSum` decides, `merged` computes, `_Pixels` and `_Neighbors` are the two sums.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .errors import UsageError, suggest

Merging = Literal["on", "off"]
MERGING: tuple[Merging, ...] = ("on", "off")
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
    merging (`branch_by_branch`). With `merging` "on" it is merged wherever that is exact.
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
        if self.training and self.merging != "off":
            branches, after, conv = self.branches(), self.after(), self.geometry()
            if _can_merge(x, branches, after, conv):
                return merged(x, branches, after, conv)
        return self.branch_by_branch(x)


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
    learn = all(type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) for norm in norms)
    learn = learn and all(norm.training for norm in norms)
    alike = len({_group(norm) for norm in norms}) == 1
    height, width = _output_size(x, conv)
    # of one value there is no variance, which the batch norm itself says
    return (
        learn
        and alike
        and len(x) * height * width > 1
        and (_is_depthwise(conv) or conv.groups == 1)
    )


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether it is one of the depthwise 3x3 convolutions that `_Neighbors` knows."""
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
    weight, bias = weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)
    padding = cast(tuple[int, int], conv.padding)
    return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


class Moments(NamedTuple):
    """Of the patches of an input, over batch and positions; C is left out where all share it."""

    positions: Tensor | int  # how many
    mean: Tensor  # ([C,] T)
    covariance: Tensor  # ([C,] T, T)

    def of(self, kernels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the outputs of kernels (B, O, T): two of (B, O)."""
        if self.covariance.ndim == 2:
            projected = kernels @ self.covariance
        else:  # (B, C, 1, T) @ (C, T, T)
            projected = (kernels[:, :, None] @ self.covariance)[:, :, 0]
        return (kernels * self.mean).sum(-1), (projected * kernels).sum(-1).clamp(min=0)


def _kernel(
    branches: Sequence[Branch],
    after: nn.BatchNorm2d | None,
    moments: Moments,
    conv: nn.Conv2d,
) -> tuple[Tensor, Tensor]:
    """Weight (O, C / groups, k, k) and bias (O,) of the sum."""
    like = moments.mean
    shape = conv.weight.shape
    total = like.new_zeros(shape[0], shape[1:].numel())  # (O, T)
    bias = like.new_zeros(shape[0])
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
        total = (torch.stack(scales)[..., None] * stacked).sum(0)
    for kernel, branch in zip(kernels, branches, strict=True):
        if branch.norm is None:
            total = total + kernel
            bias = bias if branch.bias is None else bias + branch.bias
    if after is not None:
        (mean,), (variance,) = moments.of(total[None])
        scale, bias = _learn(after, mean, variance, bias, moments.positions)
        total = scale[:, None] * total
    return total.view(shape), bias


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

    `norm` says whether they are those of all processes.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    height, width = _output_size(x, conv)
    count: Tensor | int = len(x) * height * width
    if _is_depthwise(conv):
        first, second = _of_windows(x, conv.stride[0], conv.dilation[0])
    else:
        first, second = _of_patches(x, conv)
    group = _group(norm)
    if group is not None:
        sizes = [first.numel(), second.numel(), 1]
        flat = torch.cat((first.flatten(), second.flatten(), first.new_tensor([float(count)])))
        summed = _Summed.apply(flat, group)
        ours, products, counted = summed.split(sizes)
        first, second, count = ours.view_as(first), products.view_as(second), counted
    mean = first / count
    covariance = second / count - mean[..., :, None] * mean[..., None, :]
    return Moments(count, mean, covariance)


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
        rows = _rows(x)
        return rows.sum(0), rows.t() @ rows

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, of_sums: Tensor, of_products: Tensor
    ) -> Tensor:
        (x,) = cast(tuple[Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        batch, channels, height, width = x.shape
        gradient = torch.addmm(of_sums, _rows(x), of_products + of_products.t())
        return gradient.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N * h * w, C), a view in channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


# Moments of 3x3 windows ------------------------------------------------------------------------


def _of_windows(x: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Sums over batch and positions of the windows (C, 9) and of their products (C, 9, 9).

    A product of the taps a and b is summed over the pixels q under b: x[q] * x[q + a - b]. These
    are all pixels, or with stride 2 those of one phase, without those that the padding keeps from
    the tap: a line at the border.
    """
    if stride == 2:  # whole phases; the zeros are those that the padding has there
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    channels = x.shape[1]
    lags, sums, rows, columns = cast(
        tuple[Tensor, Tensor, Tensor, Tensor], _Neighbors.apply(x, stride, dilation)
    )
    of_rows, row_sums = _line_lags(rows, stride, dilation)
    of_columns, column_sums = _line_lags(columns.permute(0, 1, 3, 4, 2), stride, dilation)
    depth = min(dilation, x.shape[3])
    # (N, C, 2, d, 2, d): the four corners
    corners = torch.stack((rows[..., :depth], rows[..., -depth:]), 4)
    squares, corner_sums = corners.square().sum((0, 3, 5)), corners.sum((0, 3, 5))
    products = (lags, of_rows, of_columns, squares)
    values = (sums, row_sums, column_sums, corner_sums)
    of_products, of_values = (each.to(x) for each in ASSEMBLY[stride])
    second = torch.cat([part.flatten(1) for part in products], 1) @ of_products
    return torch.cat([part.flatten(1) for part in values], 1) @ of_values, second.view(
        channels, 9, 9
    )


def _line_lags(lines: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Of lines (N, C, 2, d, L): sums of products (C, 2, stride, 3) and of values (C, 2, stride)."""
    length = lines.shape[-1]
    by_lag = []
    for lag in range(3):
        rest = max(length - lag * dilation, 0)
        product = lines[..., :rest] * lines[..., length - rest :]
        by_lag.append(_by_phase(product, stride))
    return torch.stack(by_lag, 3), _by_phase(lines, stride)


def _by_phase(lines: Tensor, stride: int) -> Tensor:
    """(N, C, 2, d, L) -> (C, 2, stride)"""
    return torch.stack([lines[..., phase::stride].sum((0, 3, 4)) for phase in range(stride)], 2)


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


class _Neighbors(torch.autograd.Function):
    """Sums of products of neighbors in x (N, C, h, w), sums of values, and the border of x.

    By phase p (of the rows, then of the columns) and lag l: sum of x[q] * x[q + l * dilation] over
    the pixels q of the phase, (C, stride^2, 25); sum of x[q], (C, stride^2); the first and the last
    rows (N, C, 2, d, w) and columns (N, C, h, 2, d), whose gradients would otherwise each fill an
    image with zeros. With stride 2, h and w are even.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, stride: int, dilation: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.geometry = stride, dilation  # type: ignore[attr-defined]
        if stride == 2:
            phases = _phases(x)
            lags = _lags_between(phases)
            sums = torch.stack([phase.sum((0, 2, 3)) for phase in phases], 1)
        else:
            lags, sums = _lags_of_all(x, dilation)[:, None], x.sum((0, 2, 3))[:, None]
        rows = torch.stack((x[:, :, :dilation], x[:, :, -dilation:]), 2)
        columns = torch.stack((x[..., :dilation], x[..., -dilation:]), 3)
        return lags, sums, rows, columns

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx,
        of_lags: Tensor,
        of_sums: Tensor,
        of_rows: Tensor,
        of_columns: Tensor,
    ) -> tuple[Tensor, None, None]:
        (x,) = cast(tuple[Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        stride, dilation = ctx.geometry  # type: ignore[attr-defined]
        # (C, stride^2, 25): a product is seen from both of its pixels
        kernels = of_lags + of_lags.flatten(1)[:, OTHER_SIDE[stride]].view_as(of_lags)
        kernels = kernels.view(-1, stride**2, 1, 5, 5)
        if stride == 2:
            gradient = torch.empty_like(x)
            for i, (row, column) in enumerate(itertools.product((0, 1), repeat=2)):
                # an odd phase begins one pixel outside of the image
                padding = (2 + row, 2 + column)
                part = F.conv2d(
                    x,
                    kernels[:, i].contiguous(),
                    of_sums[:, i].contiguous(),
                    2,
                    padding,
                    1,
                    x.shape[1],
                )
                gradient[:, :, row::2, column::2] = part[:, :, row:, column:]
        else:
            kernel, bias = kernels[:, 0].contiguous(), of_sums[:, 0].contiguous()
            gradient = F.conv2d(x, kernel, bias, 1, 2 * dilation, dilation, x.shape[1])
        gradient[:, :, :dilation] += of_rows[:, :, 0]
        gradient[:, :, -dilation:] += of_rows[:, :, 1]
        gradient[..., :dilation] += of_columns[..., 0, :]
        gradient[..., -dilation:] += of_columns[..., 1, :]
        return gradient, None, None


def _find_other_side(stride: int) -> list[int]:
    """For each phase and lag, where the same product stands when it is seen from its other pixel."""
    order = []
    for row, column in itertools.product(range(stride), repeat=2):
        for down, right in LAGS:
            phase = (row + down) % stride * stride + (column + right) % stride
            order.append(25 * phase + LAGS.index((-down, -right)))
    return order


def _lags_of_all(x: Tensor, dilation: int) -> Tensor:
    """Sum of x[q] * x[q + lag * dilation] over all pixels: (N, C, h, w) -> (C, 25).

    It is the gradient of a depthwise kernel with x for both input and gradient of the output. Of
    these, oneDNN is fast where the kernel is three pixels wide and padded by one (20 times faster
    than 5x5), so columns two apart are brought side by side: in channels_last, two pixels are one
    of twice the channels.
    """
    channels = x.shape[1]
    if dilation > 1:
        lags = conv2d_weight(x, (channels, 1, 5, 5), x, 1, 2 * dilation, dilation, channels)
        return lags.view(channels, 25)
    near = conv2d_weight(x, (channels, 1, 5, 3), x, 1, (2, 1), 1, channels)
    even = F.pad(x, (0, x.shape[3] % 2))
    batch, _, height, width = even.shape
    pairs = even.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels)
    pairs = pairs.permute(0, 3, 1, 2)
    far = conv2d_weight(pairs, (2 * channels, 1, 5, 3), pairs, 1, (2, 1), 1, 2 * channels)
    far = far.view(2, channels, 5, 3).sum(0)  # at column lags -2, 0, 2
    near = near.view(channels, 5, 3)  # at -1, 0, 1
    columns = (far[..., 0], near[..., 0], near[..., 1], near[..., 2], far[..., 2])
    return torch.stack(columns, 2).view(channels, 25)


def _phases(x: Tensor) -> list[Tensor]:
    """The pixels at even and odd rows and columns: four of (N, C, h / 2, w / 2)."""
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
    return [
        x[:, :, row::2, column::2].contiguous(memory_format=layout or torch.contiguous_format)
        for row, column in itertools.product((0, 1), repeat=2)
    ]


def _lags_between(phases: list[Tensor]) -> Tensor:
    """Sum of x[q] * x[q + lag] over the pixels of each phase, from the phases: (C, 4, 25)."""
    channels = phases[0].shape[1]
    shape = (channels, 1, 3, 3)
    products: dict[tuple[int, int], Tensor] = {}
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        # (C, 3, 3): sum of phase i at q times phase j at q + lag
        product = conv2d_weight(phases[j], shape, phases[i], 1, 1, 1, channels)[:, 0]
        products[i, j], products[j, i] = product, product.flip(1, 2)
    every = torch.stack([products[i, j] for i in range(4) for j in range(4)], 1)
    return every.flatten(1)[:, AMONG_PHASES].view(channels, 4, 25)


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


def _group(norm: nn.BatchNorm2d) -> "torch.distributed.ProcessGroup | None":
    """The processes with which a norm shares its statistics; None where it has its own."""
    distributed = torch.distributed
    if type(norm) is not nn.SyncBatchNorm or not distributed.is_available():
        return None
    if not distributed.is_initialized():
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


class _Summed(torch.autograd.Function):
    """The sum over processes; the gradient is the sum of theirs."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        values: Tensor,
        group: "torch.distributed.ProcessGroup",
    ) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        total = values.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        torch.distributed.all_reduce(total, group=ctx.group)  # type: ignore[attr-defined]
        return total, None
