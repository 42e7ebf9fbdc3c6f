"""ParC: position-aware circular convolution, a convolution whose kernel is as long as the feature map.

Zhang et al., ECCV 2022, arXiv:2203.03952. Half of the channels is convolved along the height, half
along the width; the borders wrap around, so that every output sees its whole column or row. A
learned position embedding tells where it is.

    along the height:   y[i, j] = bias + sum over t of kernel[t] * x[(i + t) mod H, j]

Two forms were published, and `ParC` is both:

    single    ParC ConvNets      first half: H;  second half: W;  bias; depthwise or dense
    crossed   ParC-Net           first half: H, then W;  second half: W, then H;  batch norm before; depthwise

Kernel and position embedding are learned at one length and resized (bilinear, corners aligned) to
the height and width of the feature at hand, inside the graph: any size and aspect ratio trains and
runs. At the learned length, resizing is the identity. `fuse_at(size)` freezes an operator at one
feature size: fixed kernels and one constant.

Differs from the authors' code: they read one size from the height (ParC-Net: square features only)
or fix it (ParC ConvNets: 224 x 224 images only). And a long circular convolution is computed in one
of three ways that are equal but for rounding, whichever is fastest at its size (`form_for`):

    convolution   of the feature, extended by itself: n multiplications an element
    product       with an n x n matrix for each channel, whose rows are the kernel, shifted: as many,
                  but in the kernels of matrix products, and so is its backward
    fourier       a product of spectra: about log n an element. Yang et al., Fast-ParC,
                  arXiv:2210.04020, does so too
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatch
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ModelError, suggest
from .reparam import as_conv, fold_bn_before, scale_shift

HEIGHT, WIDTH = 2, 3  # dimensions of a feature (N, C, H, W)


class Wrap(nn.Module):
    """Append all but the last row (column): a length of n becomes 2n - 1, and a valid convolution of n is circular."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.narrow(self.dim, 0, x.shape[self.dim] - 1)], self.dim)

    def extra_repr(self) -> str:
        return "height" if self.dim == HEIGHT else "width"


def _resize(parameter: Tensor, dim: int, length: int) -> Tensor:
    if parameter.shape[dim] == length:
        return parameter
    size = (length, 1) if dim == HEIGHT else (1, length)
    return F.interpolate(parameter, size, mode="bilinear", align_corners=True)


Form = Literal["convolution", "product", "fourier"]
_FORCED: ContextVar[Form | None] = ContextVar("form of circular convolutions", default=None)


@contextmanager
def computed_as(form: Form) -> Iterator[None]:
    """Compute every circular convolution in this form meanwhile, whatever its size."""
    token = _FORCED.set(form)
    try:
        yield
    finally:
        _FORCED.reset(token)


def form_for(length: int, images: int, depthwise: bool, learning: bool) -> Form:
    """The form that is fastest for a batch of so many `images`, by benchmarks/parc_forms.py on a CPU.

    `learning`: the backward pass counts too, where the convolution along the width is the slowest:
    at a length of 32, 16 images and 48 channels it takes 5 times as long as a product. A product
    of a dense kernel would need a matrix for each pair of channels.
    """
    if not depthwise:
        return "fourier" if length >= (16 if learning else 32) else "convolution"
    if not learning:
        return "fourier" if length >= 64 else "convolution"
    if length < 14:
        return "convolution"
    return "fourier" if images == 1 or length > 128 else "product"


def circular_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, dim: int, groups: int, form: Form
) -> Tensor:
    """y[i] = bias + sum over t of weight[t] x[(i + t) mod n] along `dim`: (N, C, H, W) -> the same.

    `weight` (C, C / groups, n, 1) along the height or (C, C / groups, 1, n) along the width, of as
    many `groups` as channels, or one.
    """
    if form == "convolution":
        extended = torch.cat([x, x.narrow(dim, 0, x.shape[dim] - 1)], dim)  # 2n - 1 long
        return F.conv2d(extended, weight, bias, groups=groups)
    if form == "product":
        matrix = circulant(weight.flatten(1))  # (C, to, from)
        y = matrix @ x if dim == HEIGHT else x @ matrix.transpose(1, 2)
    else:
        y = _by_spectra(x, weight, dim, groups)
    return y if bias is None else y + bias.view(-1, 1, 1)


def _by_spectra(x: Tensor, weight: Tensor, dim: int, groups: int) -> Tensor:
    # Spectra exist of float32 and float64 only.
    feature, kernel = (t if t.dtype == torch.float64 else t.float() for t in (x, weight))
    spectrum = torch.fft.rfft(feature, dim=dim)  # of n values n // 2 + 1 frequencies f
    response = torch.fft.rfft(kernel, dim=dim).conj()  # conjugate: the kernel is not turned around
    if groups == 1:
        response = response.flatten(2)  # (to, from, f)
        product = "oif,nifw->nofw" if dim == HEIGHT else "oif,nihf->nohf"
        filtered = torch.einsum(product, response, spectrum)
    else:
        filtered = spectrum * response.transpose(0, 1)  # (1, C, f, 1) or (1, C, 1, f)
    return torch.fft.irfft(filtered, n=x.shape[dim], dim=dim).to(x.dtype)


def circulant(kernel: Tensor) -> Tensor:
    """The matrix of a circular convolution for each kernel: (C, n) -> (C, to, from)."""
    places = torch.arange(kernel.shape[1], device=kernel.device)
    return kernel[:, (places - places[:, None]) % len(places)]


class CircularConv(nn.Module):
    """conv(norm(x + position)) along one dimension, all around; norm and position optional. (N, C, H, W) -> same."""

    def __init__(
        self,
        channels: int,
        length: int,
        dim: int,
        groups: int,
        bias: bool,
        norm: bool,
        position: float,
    ):
        super().__init__()
        self.dim, self.groups = dim, groups
        size = (length, 1) if dim == HEIGHT else (1, length)
        bound = (channels // groups * length) ** -0.5  # PyTorch's own for a convolution
        self.position = (
            nn.Parameter(torch.randn(1, channels, *size) * position) if position else None
        )
        self.norm = nn.BatchNorm2d(channels) if norm else None
        self.weight = nn.Parameter(
            torch.empty(channels, channels // groups, *size).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[self.dim]
        if self.position is not None:
            x = x + _resize(self.position, self.dim, length)  # (1, C, H, 1) or (1, C, 1, W)
        if self.norm is not None:
            x = self.norm(x)
        weight = _resize(self.weight, self.dim, length)
        form = self._form(length, len(x))
        return circular_convolution(x, weight, self.bias, self.dim, self.groups, form)

    def _form(self, length: int, images: int) -> Form:
        if forced := _FORCED.get():
            return forced
        # A graph that is exported holds convolutions, which every runtime has.
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return "convolution"
        return form_for(length, images, self.groups > 1, torch.is_grad_enabled())

    def linear_part(self, length: int) -> Tensor:
        """The kernel at a length with the norm's scale in it, float64: all of this module but its constant."""
        weight = _resize(self.weight.detach().double(), self.dim, length)
        if self.norm is None:
            return weight
        return fold_bn_before(self.norm, (weight, weight.new_zeros(weight.shape[0])), self.groups)[
            0
        ]

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, groups={self.groups}"


class ParC(nn.Module):
    """Position-aware circular convolution, (N, C, H, W) -> the same; see the head of this file for the two forms.

    `length` is the size of feature that kernels and embeddings are learned at, one number or
    (height, width). `dense` mixes channels within each half. Raises `ModelError` if `channels` is
    odd.
    """

    def __init__(
        self,
        channels: int,
        length: int | tuple[int, int],
        crossed: bool = False,
        position: bool = True,
        dense: bool = False,
    ):
        super().__init__()
        if channels % 2:
            raise ModelError(f"ParC halves its channels, so {channels} must be even")
        half, groups = channels // 2, 1 if dense else channels // 2
        lengths = dict(
            zip(
                (HEIGHT, WIDTH),
                (length, length) if isinstance(length, int) else length,
                strict=True,
            )
        )
        # of the embeddings, as in the authors' two codes
        std = (1.0 if crossed else 0.02) * position

        def conv(dim: int, norm: bool = False) -> CircularConv:
            return CircularConv(
                half, lengths[dim], dim, groups, bias=not crossed, norm=norm, position=std
            )

        if crossed:
            self.first = nn.Sequential(conv(HEIGHT, norm=True), conv(WIDTH))
            self.second = nn.Sequential(conv(WIDTH, norm=True), conv(HEIGHT))
        else:
            self.first, self.second = nn.Sequential(conv(HEIGHT)), nn.Sequential(conv(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)  # (N, C / 2, H, W) each
        return torch.cat([self.first(first), self.second(second)], dim=1)

    def fuse_at(self, size: tuple[int, int], norm: nn.Module | None = None) -> "FrozenParC":
        """norm(self(x)) for features of one (height, width).

        In eval mode everything here is affine, so f(x) = L(x) + f(0): the scale of a norm before
        goes into the first kernels (exact: wrapping pads with values of the same scale), that of a
        norm after into the last, and biases, shifts and embeddings become f(0). It is one number a
        channel where no embedding varies it, else a map.
        """
        first, second = _stages(self.first), _stages(self.second)
        weight = first[0].weight
        zero = torch.zeros(1, 2 * weight.shape[0], *size, dtype=torch.float64, device=weight.device)
        constant = copy.deepcopy(self).double().eval()(zero).detach()
        scale = torch.ones_like(zero[0, :, 0, 0])
        if norm is not None:
            scale, shift = scale_shift(norm)
            constant = constant * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        (scale_1, scale_2), (bias_1, bias_2) = scale.chunk(2), constant[0, :, 0, 0].chunk(2)
        if any(stage.position is not None for stage in first + second):
            kept = nn.Parameter(constant.to(weight), weight.requires_grad)
            return FrozenParC(
                size, _freeze(first, size, scale_1), _freeze(second, size, scale_2), kept
            ).eval()
        return FrozenParC(
            size, _freeze(first, size, scale_1, bias_1), _freeze(second, size, scale_2, bias_2)
        ).eval()


def _stages(half: nn.Sequential) -> list[CircularConv]:
    return [stage for stage in half if isinstance(stage, CircularConv)]


def _freeze(
    stages: list[CircularConv], size: tuple[int, int], scale: Tensor, bias: Tensor | None = None
) -> nn.Sequential:
    """One half of a ParC as fixed convolutions, the last of which takes `scale` and `bias` by output channel."""
    modules: list[nn.Module] = []
    for stage in stages:
        last = stage is stages[-1]
        weight = stage.linear_part(size[stage.dim - HEIGHT])
        weight = weight * scale.view(-1, 1, 1, 1) if last else weight
        channels = weight.shape[0]
        like = nn.Conv2d(
            channels,
            channels,
            (weight.shape[2], weight.shape[3]),
            groups=stage.groups,
            device="meta",
        )
        like.weight = stage.weight  # for its dtype, device, memory format and trainability
        if last and bias is not None:
            conv = as_conv((weight, bias), like)
        else:
            conv = as_conv((weight, weight.new_zeros(channels)), like)
            conv.bias = None
        modules += [Wrap(stage.dim), conv]
    return nn.Sequential(*modules)


class FrozenParC(nn.Module):
    """The deploy form of `ParC` for features of one size: circular convolutions with fixed kernels, plus a constant."""

    def __init__(
        self,
        size: tuple[int, int],
        first: nn.Sequential,
        second: nn.Sequential,
        constant: nn.Parameter | None = None,
    ):
        super().__init__()
        self.size, self.first, self.second, self.constant = size, first, second, constant

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing() and (x.shape[-2], x.shape[-1]) != self.size:
            raise ModelError(
                f"this ParC is collapsed for features of {self.size}, but has "
                f"{tuple(x.shape[-2:])}: use the image size of the example given to "
                "reparameterize, or reparameterize again for this size"
            )
        first, second = x.chunk(2, dim=1)
        y = torch.cat([self.first(first), self.second(second)], dim=1)
        return y if self.constant is None else y + self.constant

    def extra_repr(self) -> str:
        return f"size={self.size}"


class CircularProduct(nn.Module):
    """A depthwise circular convolution of n as a product with an n x n matrix for each channel, and without `Wrap`.

    For runtimes where that is faster; `conv` is what follows `Wrap(dim)`. (N, C, H, W) -> the same.
    """

    def __init__(self, conv: nn.Conv2d, dim: int):
        super().__init__()
        matrix = circulant(conv.weight.detach().flatten(1))
        self.dim, self.bias = dim, conv.bias
        self.matrix = nn.Parameter(matrix if dim == HEIGHT else matrix.transpose(1, 2).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix @ x if self.dim == HEIGHT else x @ self.matrix
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def with_products(model: nn.Module, least: int) -> tuple[nn.Module, int]:
    """A copy of a deploy form with each depthwise ParC kernel of at least `least` as a `CircularProduct`; how many."""
    model, count = copy.deepcopy(model), 0
    for parc in [module for module in model.modules() if isinstance(module, FrozenParC)]:
        for name in ("first", "second"):
            modules: list[nn.Module] = []
            for module in getattr(parc, name):
                wrap = modules[-1] if modules else None
                depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels
                if depthwise and isinstance(wrap, Wrap) and max(module.kernel_size) >= least:
                    modules[-1] = CircularProduct(module, wrap.dim)
                    count += 1
                else:
                    modules.append(module)
            setattr(parc, name, nn.Sequential(*modules))
    return model, count


class ParCBN(nn.Sequential):
    """ParC (`.0`), then batch norm (`.1`): what `ConvBN` is to a convolution."""

    def __init__(self, parc: ParC, channels: int):
        super().__init__(parc, nn.BatchNorm2d(channels))

    def fuse_at(self, size: tuple[int, int]) -> FrozenParC:
        return cast(ParC, self[0]).fuse_at(size, self[1])


def replace(model: nn.Module, example: Tensor, pattern: str = "*") -> list[str]:
    """Swap depthwise convolutions of anybody's network for ParC, in place; returns their names.

    `pattern` chooses by module name, "stages.3.*": the paper advises the deep stages only.
    `example` is an input of the training size, which decides the kernels' lengths. Weights of the
    swapped layers start anew: train afterwards. Only convolutions with stride 1, an even number of
    channels and an output of the input's size can be swapped; raises `ModelError` if none of them
    matches.

        names = replace(timm.create_model("mobilenetv3_large_100"), torch.randn(1, 3, 224, 224), "blocks.5.*")
    """
    convs = {
        name: conv
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and 1 < conv.groups == conv.in_channels == conv.out_channels
    }
    lengths: dict[str, tuple[int, int]] = {}
    # running the example must not move the model's batch-norm statistics
    probe = copy.deepcopy(model).eval()
    for name, conv in convs.items():

        def record(
            _: nn.Module,
            args: tuple[Tensor, ...],
            y: Tensor,
            name: str = name,
            conv: nn.Conv2d = conv,
        ) -> None:
            if args[0].shape == y.shape and conv.stride == (1, 1) and conv.in_channels % 2 == 0:
                lengths[name] = (y.shape[2], y.shape[3])

        probe.get_submodule(name).register_forward_hook(record)
    with torch.no_grad():
        probe(example)
    chosen = [name for name in lengths if fnmatch(name, pattern)]
    if not chosen:
        raise ModelError(
            f"no depthwise convolution to swap is named {pattern!r}: {suggest(pattern, lengths)}"
        )
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        parc = (
            ParC(convs[name].in_channels, lengths[name])
            .to(convs[name].weight)
            .train(convs[name].training)
        )
        setattr(model.get_submodule(parent), leaf, parc)
    return chosen
