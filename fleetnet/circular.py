"""Circular convolution along one dimension of a feature, as long as the feature: three forms, one result.

    y[i, j] = bias + sum over t of kernel[t] * x[(i + t) mod H, j]        (along the height)

The forms are equal but for rounding, gradients too, and `form_for` says which is the fastest:

    convolution   of the feature, extended by itself: n multiplications an element
    product       with an n x n matrix for each channel, whose rows are the kernel, shifted: as many,
                  but in the kernels of matrix products, and so is its backward
    fourier       a product of spectra: about log n an element. Yang et al., Fast-ParC,
                  arXiv:2210.04020, does so too

Differs from Fast-ParC, which computes each call by torch.fft and leaves its gradients to autograd:
which form is computed is decided by size, in training and inference apart, and backward is written
out, since autograd's own of a real transform is a complex one of all frequencies. So no second
derivative is had but by `computed_as("convolution")`.

Under autocast the first two compute in its type, as convolutions do. Spectra are of float32, or of
float64 where the feature is: only the result is rounded to autocast's type.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

HEIGHT, WIDTH = 2, 3  # dimensions of a feature (N, C, H, W)
Form = Literal["convolution", "product", "fourier"]
FORMS: tuple[Form, ...] = get_args(Form)
_FORCED: ContextVar[Form | None] = ContextVar("form of circular convolutions", default=None)


@contextmanager
def computed_as(form: Form) -> Iterator[None]:
    """Compute every circular convolution in this form meanwhile, whatever its size.

    But a dense one, of which there is no product: a "product" leaves it a convolution.
    """
    token = _FORCED.set(form)
    try:
        yield
    finally:
        _FORCED.reset(token)


def chosen_form(x: Tensor, weight: Tensor, dim: int, stride: tuple[int, int]) -> Form:
    """The form for this feature: the one of `computed_as`, or of a graph that is exported, or the fastest."""
    depthwise = _is_depthwise(weight)
    if forced := _FORCED.get():
        return forced if depthwise or forced != "product" else "convolution"
    # A graph that is exported holds convolutions, which every runtime has.
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "convolution"
    return form_for(
        # a strided convolution computes no more than it gives
        x.shape[dim] // stride[dim - HEIGHT],
        depthwise=depthwise,
        images=x.shape[0],
        learning=_learns(x, weight),
        channels_last=_is_channels_last(x),
        half=_computed_in(x).itemsize == 2,
    )


def form_for(
    length: int,
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
    smooth = _is_smooth(length)
    if length <= _longest_convolution(smooth, images, learning, channels_last, half):
        return "convolution"
    return (
        "product" if length <= _longest_product(smooth, images, channels_last, half) else "fourier"
    )


def _longest_convolution(
    smooth: bool, images: int, learning: bool, channels_last: bool, half: bool
) -> int:
    if not channels_last:
        return 3
    if learning:
        return 20 if images == 1 and not half else 3
    return 63 if half else 80 if smooth else 100


def _longest_product(smooth: bool, images: int, channels_last: bool, half: bool) -> int:
    if half:
        return 256
    if channels_last:
        return 127 if not smooth else 40 if images > 1 else 0
    return 112 if smooth else 240


def _is_smooth(length: int) -> bool:
    """Whether it has small factors alone: transforms of other lengths take 2 to 4 times as long."""
    for factor in (2, 3, 5, 7):
        while length % factor == 0:
            length //= factor
    return length == 1


def _is_channels_last(x: Tensor) -> bool:
    # as halves of the channels are too, which torch does not call so
    return x.shape[1] > 1 and x.stride(1) == 1


def _learns(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _is_depthwise(weight: Tensor) -> bool:
    return weight.shape[1] == 1


def circular_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dim: int,
    form: Form,
    stride: tuple[int, int] = (1, 1),
) -> Tensor:
    """y[i] = bias + sum over t of weight[t] x[(i + t) mod n] along `dim`: (N, C, H, W) -> the same.

    `weight` (C, 1 or C, n, 1) along the height or (C, 1 or C, 1, n) along the width: depthwise or
    dense. With a `stride`, along height and width, every so many rows and columns of that:
    (N, C, ceil(H / stride), ceil(W / stride)).
    """
    if form == "convolution":
        extended = torch.cat([x, x.narrow(dim, 0, x.shape[dim] - 1)], dim)  # 2n - 1 long
        return F.conv2d(extended, weight, bias, stride, groups=x.shape[1] // weight.shape[1])
    dtype = _computed_in(x)
    x, step = _every(x, HEIGHT + WIDTH - dim, stride), stride[dim - HEIGHT]
    shifts = None if bias is None else bias.to(dtype).view(-1, 1, 1)
    if form == "product":
        columns = _columns(x.to(dtype), dim)
        y = cast(Tensor, _Product.apply(columns, weight.flatten(1).to(dtype), dim, step))
        return _images(y if shifts is None else y.add_(shifts), x.shape[0], dim)
    precise = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = _every(_by_spectra(x.to(precise), weight.to(precise), dim), dim, stride).to(dtype)
    return y if shifts is None else y.add_(shifts)


def _computed_in(x: Tensor) -> torch.dtype:
    """What a convolution would give: autocast's type, which leaves float64 alone, or the feature's."""
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


def _by_spectra(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    call = _Fourier.apply if _learns(x, weight) else _inferred
    large = x.numel() > (LARGE_CHANNELS_LAST if _is_channels_last(x) else LARGE)
    if large and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.cat([cast(Tensor, call(image, weight, dim)) for image in x.split(1)])
    return cast(Tensor, call(x, weight, dim))


def _inferred(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """What `_Fourier` computes, for inference: the spectrum of the feature is overwritten."""
    spectrum = torch.fft.rfft(
        x, dim=dim
    )  # (N, C, f, W) or (N, C, H, f) of n // 2 + 1 frequencies f
    response = torch.fft.rfft(weight, dim=dim).conj()
    if _is_depthwise(weight):
        filtered = spectrum.mul_(response.resolve_conj().transpose(0, 1))
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
