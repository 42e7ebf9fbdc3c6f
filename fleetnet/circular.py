"""Circular convolution along one dimension of a feature, as long as it: four forms, one result.

    y[i, j] = bias + sum over t of kernel[t] * x[(i + t) mod H, j]        (along the height)

The forms are equal but for rounding, gradients too, and `form_for` says which is the fastest:

    convolution   of the feature, extended by itself: n multiplications an element
    product       with an n x n matrix for each channel, whose rows are the kernel, shifted: as many,
                  but in the kernels of matrix products, and so is its backward
    fourier       a product of spectra: about log n an element. Yang et al., Fast-ParC,
                  arXiv:2210.04020, does so too
    blocks        a short transform over blocks of rows, then a product with a matrix for each
                  frequency: about 4 sqrt(n) an element, all in the kernels of matrix products

torch transforms along the last dimension, so along the height "fourier" turns a feature around and
gives one that has to be turned back, which takes longer than the transforms do. "blocks" leaves
rows where they are.

Differs from Fast-ParC, which computes each call by torch.fft and leaves its gradients to autograd:
which form is computed is decided by size and direction, in training and inference apart, and the
backward passes of products and spectra are written out, since autograd's own of a real transform is
a complex one of all frequencies. So these have no second derivative; convolutions and blocks have
one (`computed_as("convolution")`).

Under autocast the first two compute in its type, as convolutions do. The others compute in float32,
or in float64 where the feature is: only the result is rounded to autocast's type.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from math import log
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

HEIGHT, WIDTH = 2, 3  # dimensions of a feature (N, C, H, W)
Form = Literal["convolution", "product", "fourier", "blocks"]
FORMS: tuple[Form, ...] = get_args(Form)
SOON_CONVOLVED = 64  # length below which a convolution of a channels_last feature is the fastest
# (N, C, H, W) -> the same, without a bias; in inference written to the second one where that can be
Convolution = Callable[[Tensor, Tensor | None], Tensor]
_FORCED: ContextVar[Form | None] = ContextVar("form of circular convolutions", default=None)


@contextmanager
def computed_as(form: Form) -> Iterator[None]:
    """Compute every circular convolution in this form meanwhile, whatever its size.

    But a dense one, of which there are no products: "product" and "blocks" leave it a convolution.
    """
    token = _FORCED.set(form)
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced_form() -> Form | None:
    """The form of `computed_as`, where one is in force."""
    return _FORCED.get()


def chosen_form(x: Tensor, weight: Tensor, dim: int, stride: tuple[int, int]) -> Form:
    """The form for this feature: the one of `computed_as`, or of a graph that is exported, or the fastest."""
    depthwise = _is_depthwise(weight)
    if forced := forced_form():
        return forced if depthwise or forced == "fourier" else "convolution"
    # A graph that is exported holds convolutions, which every runtime has.
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "convolution"
    if depthwise and _is_soon_convolved(x, dim):
        return "convolution"
    form = form_for(
        # a strided convolution computes no more than it gives
        x.shape[dim] // stride[dim - HEIGHT],
        dim,
        depthwise=depthwise,
        images=x.shape[0],
        learning=_learns(x, weight),
        channels_last=is_channels_last(x),
        half=computed_in(x).itemsize == 2,
    )
    # Transforms over blocks are numbers that are kept; a graph that is compiled has no place for
    # them.
    return "fourier" if form == "blocks" and torch.compiler.is_compiling() else form


def form_for(
    length: int,
    dim: int,
    *,
    depthwise: bool = True,
    images: int = 1,
    learning: bool = False,
    channels_last: bool = False,
    half: bool = False,
) -> Form:
    """The form that is fastest, by the part `forms` of benchmarks/parc.py on a CPU.

    `learning`: the backward pass counts too, where the convolution along the width is the slowest:
    at a length of 32 it takes 5 times as long as a product. `channels_last`: a product takes the
    channels apart, which costs as much as a short convolution. `half`: computed in 16 bits, of
    which there are no spectra. A product of a dense kernel would need a matrix for each pair of
    channels.
    """
    if not depthwise:
        return "fourier" if length >= (16 if learning else 32) else "convolution"
    # What the rest would say too, which looks for divisors.
    if channels_last and learning and images == 1 and not half and length <= 20:
        return "convolution"
    if not channels_last and 3 < length <= 80:
        return "product"
    smooth = _is_smooth(length)
    if length <= _longest_convolution(smooth, images, learning, channels_last, half):
        return "convolution"
    in_blocks = dim == HEIGHT and not channels_last and _falls_into_blocks(length)
    learning_rows = learning and dim == WIDTH
    if length <= _longest_product(smooth, images, channels_last, half, in_blocks, learning_rows):
        return "product"
    return "blocks" if in_blocks else "fourier"


def _is_soon_convolved(x: Tensor, dim: int) -> bool:
    """Whether `form_for` would say so of a depthwise convolution in inference.

    A short one takes a tenth of a millisecond, and asking that would take a tenth of it.
    """
    is_short = x.shape[dim] < SOON_CONVOLVED
    return is_short and not torch.is_grad_enabled() and is_channels_last(x)


def _longest_convolution(
    smooth: bool, images: int, learning: bool, channels_last: bool, half: bool
) -> int:
    if not channels_last:
        return 3
    if learning:
        return 20 if images == 1 and not half else 3
    return 63 if half else 80 if smooth else 100


def _longest_product(
    smooth: bool, images: int, channels_last: bool, half: bool, in_blocks: bool, learning_rows: bool
) -> int:
    if half:
        return 256
    if channels_last:
        return 127 if not smooth else 40 if images > 1 else 0
    if in_blocks:
        return 100
    if not smooth:
        return 240
    return 80 if learning_rows else 112


def _falls_into_blocks(length: int) -> bool:
    """Whether there is a number of blocks near the best one, the root of the length."""
    return 0.4 < block_count(length) / length**0.5 < 2.5


def _is_smooth(length: int) -> bool:
    """Whether it has small factors alone: transforms of other lengths take 2 to 4 times as long."""
    for factor in (2, 3, 5, 7):
        while length % factor == 0:
            length //= factor
    return length == 1


def is_channels_last(x: Tensor) -> bool:
    # as halves of the channels are too, which torch does not call so
    return x.shape[1] > 1 and x.stride(1) == 1


def _learns(*tensors: Tensor | None) -> bool:
    requires = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return torch.is_grad_enabled() and requires


def _is_depthwise(weight: Tensor) -> bool:
    return weight.shape[1] == 1


def circular_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dim: int,
    form: Form,
    stride: tuple[int, int] = (1, 1),
    position: Tensor | None = None,
) -> Tensor:
    """y[i] = bias + sum over t of weight[t] (x + position)[(i + t) mod n] along `dim`.

    (N, C, H, W) -> the same.
    `weight` (C, 1 or C, n, 1) along the height or (C, 1 or C, 1, n) along the width: depthwise or
    dense. `position` (1, C, n, 1) or (1, C, 1, n). With a `stride`, along height and width, every so
    many rows and columns of that: (N, C, ceil(H / stride), ceil(W / stride)).
    """
    if position is not None and (form == "convolution" or _learns(x, weight, position)):
        x, position = x + position, None
    if form == "convolution":
        extended = torch.cat([x, x.narrow(dim, 0, x.shape[dim] - 1)], dim)  # 2n - 1 long
        return F.conv2d(extended, weight, bias, stride, groups=x.shape[1] // weight.shape[1])
    return prepare(x, weight, added_by(weight, bias, position, dim, stride), dim, form, stride)(x)


@dataclass(frozen=True)
class Prepared:
    """A circular convolution whose matrices or spectra are made.

    (N, C, H, W) -> the same, or written to `out`.
    """

    convolve: Convolution
    added: Tensor | None  # by bias and position, which broadcasts
    computed: torch.dtype
    gives: torch.dtype
    across: tuple[int, int]  # the stride in the other direction

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        for dim in (HEIGHT, WIDTH):
            x = _every(x, dim, self.across)
        with _without_autocast(x.device.type):
            y = self.convolve(x.to(self.computed), out)
        if out is not None and y is not out:
            return out.copy_(y) if self.added is None else torch.add(y, self.added, out=out)
        return (y if self.added is None else y.add_(self.added)).to(self.gives)


def prepare(
    x: Tensor,
    weight: Tensor,
    added: Tensor | None,
    dim: int,
    form: Form,
    stride: tuple[int, int] = (1, 1),
) -> Prepared:
    """`circular_convolution` in any form but "convolution", for features of the size and kind of `x`.

    `added` to the result is what `added_by` gives. In inference it can be kept for as long as the
    tensors have the same values.
    """
    if form == "blocks" and x.shape[dim] % 2:
        form = "product"
    gives, step = computed_in(x), stride[dim - HEIGHT]
    computed = gives if form == "product" else _precise(x.dtype)
    with _without_autocast(x.device.type):
        convolve = _prepared(form, weight.to(computed), dim, step, _learns(x, weight))
    across = (1, stride[1]) if dim == HEIGHT else (stride[0], 1)
    added = None if added is None else added.to(computed)
    return Prepared(convolve, added, computed, gives, across)


def added_by(
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    dim: int,
    stride: tuple[int, int] = (1, 1),
) -> Tensor | None:
    """What bias and position add to a result.

    (C, 1, 1), or one column (1, C, n, 1) or row (1, C, 1, n).
    """
    added = None if bias is None else bias.view(-1, 1, 1)
    if position is None:
        return added
    precise = _precise(weight.dtype)
    convolve = _prepared("fourier", weight.to(precise), dim, stride[dim - HEIGHT], False)
    column = convolve(position.to(precise), None)
    return column if added is None else column + added


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Kept:
    """What inference has made of some tensors, for the next call with tensors of the same values.

    Values are compared at each call, which takes a hundredth of the time: whoever changes weights,
    by whatever way, gets what they make. It is no part of a state: copies begin without.
    """

    def __init__(self) -> None:
        self._last: tuple[object, list[Tensor | None], Prepared] | None = None

    def get(
        self, key: object, tensors: list[Tensor | None], make: Callable[[], Prepared]
    ) -> Prepared:
        """What `make` gives, or gave for the same key and values."""
        last = self._last
        if last is not None and last[0] == key and _are_equal(last[1], tensors):
            return last[2]
        prepared = make()
        copies = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
        self._last = key, copies, prepared
        return prepared

    def forget(self) -> None:
        self._last = None

    def __deepcopy__(self, memo: dict[int, object]) -> "Kept":
        return Kept()

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        return Kept, ()


def may_keep(x: Tensor, tensors: Sequence[Tensor | None]) -> bool:
    """Whether what a call makes of these may be kept: in inference on a CPU, of numbers.

    There comparing them costs next to nothing.
    """
    numbers = all(tensor is None or has_numbers(tensor) for tensor in (x, *tensors))
    return x.device.type == "cpu" and numbers and not _learns(x, *tensors)


def has_numbers(x: Tensor) -> bool:
    """Whether a tensor can be compared and written to: it stands for nothing else.

    As in a graph that is made, in FakeTensorMode, in torch.func and in forward differentiation.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    stands_for_another = torch._C._functorch.is_functorch_wrapped_tensor(x)
    differentiates_forward = torch.autograd.forward_ad._current_level >= 0
    is_plain = type(x) in (Tensor, nn.Parameter)
    return is_plain and not stands_for_another and not differentiates_forward


def _are_equal(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


def _prepared(form: Form, weight: Tensor, dim: int, step: int, learning: bool) -> Convolution:
    """The convolution of this form without a bias."""
    if form == "product":
        return _by_product(weight.flatten(1), dim, step, learning)
    if form == "blocks":
        whole = _by_blocks(weight.flatten(1), dim, learning)
    else:
        whole = _by_spectra(weight, dim, learning)
    if step == 1:
        return whole
    stride = (step, 1) if dim == HEIGHT else (1, step)
    return lambda x, room: _every(whole(x, None), dim, stride)


def _room(shape: tuple[int, ...], like: Tensor, room: Tensor | None) -> Tensor:
    """Memory for a result: what is offered, where matrices can be written there."""
    fits = room is not None and room.dtype == like.dtype and room[0].is_contiguous()
    return cast(Tensor, room) if fits else like.new_empty(shape)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def computed_in(x: Tensor) -> torch.dtype:
    """What a convolution would give: autocast's type, which leaves float64 alone, or the feature's."""
    if x.is_cpu and not torch.is_autocast_enabled("cpu"):
        return x.dtype  # asked at each call of a short convolution: the rest takes longer
    device = x.device.type  # "meta" has no autocast, and cannot be asked whether it is on
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return x.dtype


def _every(x: Tensor, dim: int, stride: tuple[int, int]) -> Tensor:
    step = stride[dim - HEIGHT]
    return x[:, :, ::step] if dim == HEIGHT else x[..., ::step]


# ---- a product of matrices


def circulant(kernel: Tensor, step: int = 1) -> Tensor:
    """The matrix of a circular convolution for each kernel: (C, n) -> (C, to, from), every so many rows of it."""
    length = kernel.shape[1]
    twice = torch.cat([kernel, kernel], 1)
    # Row i is the kernel turned right by i places: what begins at n - i in `twice`.
    first = length - (length - 1) // step * step
    return twice[:, first:].unfold(1, length, step).flip(1)


def _along_diagonals(matrix: Tensor, step: int) -> Tensor:
    """The gradient of a kernel from that of its circulant matrix: (C, to, from) -> (C, n)."""
    channels, rows, length = matrix.shape
    twice = torch.cat([matrix, matrix], 2)  # (C, to, 2n): a diagonal does not break off
    strides = 2 * rows * length, 2 * length + step, 1
    return twice.as_strided((channels, rows, length), strides).sum(1)


def _by_product(kernel: Tensor, dim: int, step: int, learning: bool) -> Convolution:
    def learned(x: Tensor, room: Tensor | None) -> Tensor:
        columns = cast(Tensor, _Product.apply(_columns(x, dim), kernel, dim, step))
        return _images(columns, x.shape[0], dim)

    if learning or torch.compiler.is_compiling():
        return learned
    matrix = circulant(kernel, step)

    def inferred(x: Tensor, room: Tensor | None) -> Tensor:
        if not has_numbers(x):
            return matrix @ x if dim == HEIGHT else x @ matrix.transpose(1, 2)
        size = [*x.shape]
        size[dim] = matrix.shape[1]
        y = _room(tuple(size), x, room)
        for image, result in zip(x, y, strict=True):  # (C, H, W)
            if dim == HEIGHT:
                torch.bmm(matrix, image, out=result)
            else:
                torch.bmm(image, matrix.transpose(1, 2), out=result)
        return y

    return inferred


class _Product(torch.autograd.Function):
    """The matrix of each channel times its columns of all images at once: (C, H, N W) or (C, H N, W)."""

    @staticmethod
    def forward(ctx: FunctionCtx, columns: Tensor, kernel: Tensor, dim: int, step: int) -> Tensor:
        matrix = circulant(kernel, step)  # (C, to, from)
        ctx.save_for_backward(columns, matrix)
        ctx.geometry = dim, step  # type: ignore[attr-defined]
        if dim == HEIGHT:
            return torch.bmm(matrix, columns)
        return torch.bmm(columns, matrix.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        columns, matrix = cast(tuple[Tensor, Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        dim, step = ctx.geometry  # type: ignore[attr-defined]
        of_columns: Tensor | None = None
        if dim == HEIGHT:
            of_matrix = torch.bmm(gradient, columns.transpose(1, 2))
        else:
            of_matrix = torch.bmm(gradient.transpose(1, 2), columns)
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            back = matrix.transpose(1, 2)
            of_columns = torch.bmm(back, gradient) if dim == HEIGHT else torch.bmm(gradient, matrix)
        return of_columns, _along_diagonals(of_matrix, step), None, None


def _columns(x: Tensor, dim: int) -> Tensor:
    """(N, C, H, W) -> (C, H, N W) along the height, (C, H N, W) along the width."""
    apart = x.permute(1, 2, 0, 3)  # (C, H, N, W)
    return apart.flatten(2) if dim == HEIGHT else apart.flatten(1, 2)


def _images(columns: Tensor, images: int, dim: int) -> Tensor:
    """The other way round."""
    if dim == HEIGHT:
        return columns.unflatten(2, (images, -1)).permute(2, 0, 1, 3)
    return columns.unflatten(1, (-1, images)).permute(2, 0, 1, 3)


# ---- a product of spectra


# Values of a feature beyond which each image has its spectra by itself: the memory that is asked for
# at once is then small enough to be used again, where each new page of it takes as long as the
# arithmetic. In a channels_last feature images are put together again at a cost.
LARGE, LARGE_CHANNELS_LAST = 2**22, 2**23


def _by_spectra(weight: Tensor, dim: int, learning: bool) -> Convolution:
    response = None if learning else torch.fft.rfft(weight, dim=dim).conj().resolve_conj()

    def convolve(image: Tensor) -> Tensor:
        if response is None:
            return cast(Tensor, _Fourier.apply(image, weight, dim))
        return _inferred(image, response, dim)

    def of_images(x: Tensor, room: Tensor | None) -> Tensor:
        large = x.numel() > (LARGE_CHANNELS_LAST if is_channels_last(x) else LARGE)
        by_itself = large and x.device.type == "cpu" and not torch.compiler.is_compiling()
        return torch.cat([convolve(image) for image in x.split(1)]) if by_itself else convolve(x)

    return of_images


def _inferred(x: Tensor, response: Tensor, dim: int) -> Tensor:
    """What `_Fourier` computes, for inference: the spectrum of the feature is overwritten."""
    spectrum = torch.fft.rfft(
        x, dim=dim
    )  # (N, C, f, W) or (N, C, H, f) of n // 2 + 1 frequencies f
    if _is_depthwise(response):
        filtered = spectrum.mul_(response.transpose(0, 1))
    else:
        filtered = _filtered(spectrum, response, dim)
    return torch.fft.irfft(filtered, n=x.shape[dim], dim=dim)


class _Fourier(torch.autograd.Function):
    """rfft, a multiplication at each frequency, irfft; of float32 or float64."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, dim: int) -> Tensor:
        spectrum, response = torch.fft.rfft(x, dim=dim), torch.fft.rfft(weight, dim=dim)
        ctx.save_for_backward(spectrum, response)
        ctx.geometry = dim, x.shape[dim]  # type: ignore[attr-defined]
        # conjugate: the kernel is not turned around, as that of a mathematician's convolution is
        filtered = _filtered(spectrum, response.conj().resolve_conj(), dim)
        return torch.fft.irfft(filtered, n=x.shape[dim], dim=dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        spectrum, response = cast(tuple[Tensor, Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        dim, length = ctx.geometry  # type: ignore[attr-defined]
        upstream, of_x = torch.fft.rfft(gradient, dim=dim), None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            back = response if _is_depthwise(response) else response.transpose(0, 1)
            of_x = torch.fft.irfft(_filtered(upstream, back, dim), n=length, dim=dim)
        of_response = _correlated(upstream.conj_physical_(), spectrum, dim, _is_depthwise(response))
        return of_x, torch.fft.irfft(of_response, n=length, dim=dim), None


def _filtered(spectrum: Tensor, response: Tensor, dim: int) -> Tensor:
    """(N, C, ...) times the response, (C, 1, f, 1) of each channel or (to, from, f, 1) of pairs."""
    if _is_depthwise(response):
        return spectrum * response.transpose(0, 1)
    pairs = "oifx,nifw->nofw" if dim == HEIGHT else "oixf,nihf->nohf"
    return torch.einsum(pairs, response, spectrum)


def _correlated(upstream: Tensor, spectrum: Tensor, dim: int, depthwise: bool) -> Tensor:
    """Their products, summed over images and across: (C, 1, f, 1), or (to, from, f, 1) of pairs of channels."""
    across = HEIGHT + WIDTH - dim
    if depthwise:
        return upstream.mul_(spectrum).sum((0, across), keepdim=True).transpose(0, 1)
    pairs = "nofw,nifw->oif" if dim == HEIGHT else "nohf,nihf->oif"
    return torch.einsum(pairs, upstream, spectrum).unsqueeze(across)


# ---- a product for each frequency of a transform over blocks


def block_count(length: int) -> int:
    """How many blocks of rows "blocks" makes of a length.

    The even divisor nearest to its root, 0 of an odd one.
    """
    divisors = [count for count in range(length - length % 2, 0, -2) if length % count == 0]
    return min(divisors, key=lambda count: abs(log(count * count / length)), default=0)


def _by_blocks(kernel: Tensor, dim: int, learning: bool) -> Convolution:
    """Of R blocks of m rows, a circular convolution is one of R blocks with m x m matrices as steps.

    A Fourier transform over the R blocks makes of that a matrix for each of R / 2 + 1 frequencies.
    They are complex but for the first and the last one, so two and two m rows, real and imaginary
    parts, are R / 2 products with real matrices of 2m; first and last one share a product.
    """
    channels, length = kernel.shape
    blocks = block_count(length)
    there, back, lines = (torch.from_numpy(basis).to(kernel) for basis in _transforms(blocks))
    matrices = _matrices(kernel, lines, blocks)  # (C R/2, 2m, 2m)

    def filtered(image: Tensor) -> Tensor:
        """(C, n, W) -> (C, R, m W), still transformed."""
        rows = image.reshape(channels, blocks, -1)
        parts = torch.bmm(there.expand(channels, -1, -1), rows)
        parts = parts.view(len(matrices), matrices.shape[1], -1)  # (C R/2, 2m, W)
        return torch.bmm(matrices, parts).view(channels, blocks, -1)

    def along_height(x: Tensor, room: Tensor | None) -> Tensor:
        backs = back.expand(channels, -1, -1)
        if learning or not has_numbers(x):
            return torch.stack([torch.bmm(backs, filtered(image)) for image in x]).view(x.shape)
        y = _room(tuple(x.shape), x, room)
        for image, result in zip(x, y, strict=True):
            torch.bmm(backs, filtered(image), out=result.view(channels, blocks, -1))
        return y

    if dim == HEIGHT:
        return along_height
    return lambda x, room: along_height(x.transpose(2, 3), None).transpose(2, 3)


def _matrices(kernel: Tensor, lines: Tensor, blocks: int) -> Tensor:
    """(C, n) -> for each pair of parts (C R/2, 2m, 2m), to and from real and imaginary part."""
    channels, length = kernel.shape
    rows = length // blocks
    twice = torch.matmul(lines, kernel.view(channels, blocks, rows))  # (C, 4R, m)
    twice = twice.view(channels * blocks // 2, 2, 2, 2 * rows)  # to part, from part
    # As in `circulant`, row i begins at m - i; what lies before the middle has come around.
    shifted = [twice[..., rows - i : 2 * rows - i] for i in range(rows)]
    return torch.stack(shifted, 2).view(-1, 2 * rows, 2 * rows)  # of (C R/2, 2, m, 2, m)


@cache
def _transforms(blocks: int) -> tuple[NDArray[np.float64], ...]:
    """Transforms over R blocks: there (R, R), back (R, R), and of a kernel (4R, R).

    The last one gives what `_matrices` shifts.

    Of numbers and not of tensors, since those would belong to the mode that the first call ran in.
    """
    half, numbers = blocks // 2, np.arange(blocks)
    frequencies = 2 * np.pi / blocks * np.arange(half + 1)[:, None]
    there = np.stack([np.cos(frequencies * numbers), -np.sin(frequencies * numbers)], 1)
    there[0, 1] = there[half, 0]  # frequency 0 is real: the last one, real too, takes its place
    scale = np.full((half, 2, 1), 2 / blocks)
    scale[0] = 1 / blocks
    back = (there[:half] * scale).reshape(blocks, blocks).T
    lines = np.empty((half, 2, 2, 2, blocks))  # frequency, to part, from part, around or not
    for i, around in enumerate((1, 0)):
        angles = frequencies * (numbers + around)  # a block further: where j < i, see `circulant`
        real, imaginary = np.cos(angles), np.sin(angles)
        lines[:, 0, 0, i], lines[:, 0, 1, i] = real[:half], -imaginary[:half]
        lines[:, 1, 0, i], lines[:, 1, 1, i] = imaginary[:half], real[:half]
        lines[0, 1, 1, i] = real[half]
    return there[:half].reshape(blocks, blocks), back.copy(), lines.reshape(-1, blocks)
