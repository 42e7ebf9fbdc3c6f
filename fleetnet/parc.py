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
of four ways that are equal but for rounding, whichever is the fastest at its size (see circular.py).
"""

import copy
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import replacing
from .circular import (
    HEIGHT,
    WIDTH,
    Form,
    Kept,
    Prepared,
    added_by,
    chosen_form,
    circulant,
    circular_convolution,
    computed_in,
    forced_form,
    has_numbers,
    is_channels_last,
    may_keep,
    prepare,
)
from .errors import ModelError
from .reparam import as_conv, fold_bn_before, scale_shift


class Wrap(nn.Module):
    """Append all but the last row (column): a length of n becomes 2n - 1, and a valid convolution of n is circular."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.kept = Kept()  # of the convolution that follows

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.narrow(self.dim, 0, x.shape[self.dim] - 1)], self.dim)

    def train(self, mode: bool = True) -> Self:
        self.kept.forget()
        return super().train(mode)

    def extra_repr(self) -> str:
        return "height" if self.dim == HEIGHT else "width"


def _resize(parameter: Tensor, dim: int, length: int) -> Tensor:
    if parameter.shape[dim] == length:
        return parameter
    size = (length, 1) if dim == HEIGHT else (1, length)
    return F.interpolate(parameter, size, mode="bilinear", align_corners=True)


class CircularConv(nn.Module):
    """conv(norm(x + position)) along one dimension, all around; norm and position optional.

    (N, C, H, W) -> the same; with a `stride` every so many rows and columns of it.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        dim: int,
        groups: int,
        bias: bool,
        norm: bool,
        position: float,
        stride: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        self.dim, self.groups, self.stride = dim, groups, stride
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
        self.kept = Kept()

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        form = chosen_form(x, self.weight, self.dim, self.stride)
        if form != "convolution":
            tensors = self._tensors()
            if may_keep(x, tensors):
                return self._inferred(x, form, tensors, out)
        length = x.shape[self.dim]
        position = None
        if self.norm is None:
            position = self._position_at(length)
        else:
            x = self._normed(x)
        weight = _resize(self.weight, self.dim, length)
        y = circular_convolution(x, weight, self.bias, self.dim, form, self.stride, position)
        return y if out is None else out.copy_(y)

    def _position_at(self, length: int) -> Tensor | None:
        """The position embedding, (1, C, H, 1) or (1, C, 1, W), at a length."""
        return None if self.position is None else _resize(self.position, self.dim, length)

    def _normed(self, x: Tensor) -> Tensor:
        """norm(x + position), of a module with a norm."""
        position = self._position_at(x.shape[self.dim])
        return cast(Tensor, cast(nn.Module, self.norm)(x if position is None else x + position))

    def train(self, mode: bool = True) -> Self:
        self.kept.forget()
        return super().train(mode)

    def _tensors(self) -> list[Tensor | None]:
        """All that the result follows from but the feature."""
        tensors: list[Tensor | None] = [self.weight, self.position, self.bias]
        if self.norm is None:
            return tensors
        norm = self.norm
        return [*tensors, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def _inferred(
        self, x: Tensor, form: Form, tensors: list[Tensor | None], out: Tensor | None
    ) -> Tensor:
        """What `forward` computes, where all that follows from the weights alone is made once."""
        eps = None
        if self.norm is not None and _may_fold(self.norm, computed_in(x)):
            eps = self.norm.eps
        elif self.norm is not None:
            x, tensors = self._normed(x), [self.weight, self.bias]
        length = x.shape[self.dim]
        key = form, length, x.dtype, computed_in(x), eps, self.stride

        def make() -> Prepared:
            weight = whole = _resize(self.weight, self.dim, length)
            position = self._position_at(length) if self.norm is None else None
            if eps is not None:  # conv(s (x + position) + t) = conv(s x) + conv(s position + t)
                whole = self.linear_part(length).to(weight)
                size = (length, 1) if self.dim == HEIGHT else (1, length)
                position = self._normed(weight.new_zeros(1, weight.shape[0], *size))
            added = added_by(weight, self.bias, position, self.dim, self.stride)
            return prepare(x, whole, added, self.dim, form, self.stride)

        return self.kept.get(key, tensors, make)(x, out)

    def linear_part(self, length: int) -> Tensor:
        """The kernel at a length with the norm's scale in it, float64: all of this module but its constant."""
        weight = _resize(self.weight.detach().double(), self.dim, length)
        if self.norm is None:
            return weight
        return fold_bn_before(self.norm, (weight, weight.new_zeros(weight.shape[0])), self.groups)[
            0
        ]

    def extra_repr(self) -> str:
        strided = "" if self.stride == (1, 1) else f", stride={self.stride}"
        return f"{tuple(self.weight.shape)}, groups={self.groups}{strided}"


def _may_fold(norm: nn.Module, computed: torch.dtype) -> bool:
    """Whether a norm is a scale and a shift of each channel, and nobody would miss it.

    In 16 bits one would: a feature far from 0 is rounded, and without its mean little is left.
    """
    linear = type(norm) is nn.BatchNorm2d and not norm.training and norm.running_mean is not None
    return linear and computed.itemsize > 2 and not _is_watched(norm)


def _is_watched(module: nn.Module) -> bool:
    """Whether something else than its class decides what a module gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class ParCHalf(nn.Sequential):
    """Circular convolutions, the last of which writes to `out`: (N, C, H, W) -> the same."""

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        *before, last = self
        for stage in before:
            x = stage(x)
        return cast(Tensor, last(x) if out is None else last(x, out))

    def writes(self) -> bool:
        """Whether each stage is what it was made as, and nothing takes its result."""
        stages = type(self) is ParCHalf and all(type(stage) is CircularConv for stage in self)
        return stages and not any(_is_watched(module) for module in (self, *self))


def _may_overwrite(x: Tensor) -> bool:
    """Whether results of this feature may be written to memory that is there: not in learning.

    Nor where convolutions are asked for, as what records the operators of a network does.
    """
    return not torch.is_grad_enabled() and has_numbers(x) and forced_form() != "convolution"


class ParC(nn.Module):
    """Position-aware circular convolution, (N, C, H, W) -> the same; see the head of this file for the two forms.

    `length` is the size of feature that kernels and embeddings are learned at, one number or
    (height, width). `dense` mixes channels within each half. With a `stride`, along height and
    width, it gives every so many rows and columns of what it would give without. Raises
    `ModelError` if `channels` is odd.
    """

    def __init__(
        self,
        channels: int,
        length: int | tuple[int, int],
        crossed: bool = False,
        position: bool = True,
        dense: bool = False,
        stride: tuple[int, int] = (1, 1),
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

        def conv(dim: int, norm: bool = False, last: bool = True) -> CircularConv:
            return CircularConv(
                half,
                lengths[dim],
                dim,
                groups,
                bias=not crossed,
                norm=norm,
                position=std,
                stride=stride if last else (1, 1),
            )

        if crossed:
            self.first = ParCHalf(conv(HEIGHT, norm=True, last=False), conv(WIDTH))
            self.second = ParCHalf(conv(WIDTH, norm=True, last=False), conv(HEIGHT))
        else:
            self.first, self.second = ParCHalf(conv(HEIGHT)), ParCHalf(conv(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)  # (N, C / 2, H, W) each
        if not self._writes_halves(x):
            return torch.cat([self.first(first), self.second(second)], dim=1)
        y = self._room_for(x)
        for half, features, out in zip(
            (self.first, self.second), (first, second), y.chunk(2, 1), strict=True
        ):
            half(features, out)
        return y

    def _writes_halves(self, x: Tensor) -> bool:
        """Whether each half writes its result to its place in the whole.

        In channels_last, halves that lie otherwise are put together faster than written one by one.
        """
        if is_channels_last(x) or not _may_overwrite(x):
            return False
        halves = self.first, self.second
        return all(isinstance(half, ParCHalf) and half.writes() for half in halves)

    def _room_for(self, x: Tensor) -> Tensor:
        """Memory for the result, into which each half writes its own."""
        rows, columns = _stages(self.first)[-1].stride
        size = -(-x.shape[2] // rows), -(-x.shape[3] // columns)
        return torch.empty(x.shape[0], x.shape[1], *size, dtype=computed_in(x), device=x.device)

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
) -> "FrozenHalf":
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
            stage.stride,
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
    return FrozenHalf(*modules)


class FrozenHalf(nn.Sequential):
    """`Wrap` and a convolution, once or twice: (N, C, H, W) -> the same.

    The two are what a file holds, and what anybody sees who looks at or changes the convolution. In
    torch they are computed in the form that is the fastest at their size.
    """

    def forward(self, x: Tensor) -> Tensor:
        before: nn.Module | None = None
        for module in self:
            if isinstance(before, Wrap):
                x = _convolved(before, cast(nn.Conv2d, module), x)
            elif not isinstance(module, Wrap):
                x = module(x)
            before = module
        return x


def _convolved(wrap: Wrap, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(wrap(x)), without running the two where another form is faster and nobody would notice."""
    if _is_watched(conv) or type(conv) is not nn.Conv2d:
        return cast(Tensor, conv(wrap(x)))
    stride = (conv.stride[0], conv.stride[1])
    form = chosen_form(x, conv.weight, wrap.dim, stride)
    if form == "convolution":
        return cast(Tensor, conv(wrap(x)))
    if not may_keep(x, [conv.weight, conv.bias]):
        return circular_convolution(x, conv.weight, conv.bias, wrap.dim, form, stride)

    def make() -> Prepared:
        added = added_by(conv.weight, conv.bias, None, wrap.dim)
        return prepare(x, conv.weight, added, wrap.dim, form, stride)

    key = form, x.dtype, computed_in(x), stride
    return wrap.kept.get(key, [conv.weight, conv.bias], make)(x)


class FrozenParC(nn.Module):
    """The deploy form of `ParC` for features of one `size`: convolutions with fixed kernels, plus a constant."""

    def __init__(
        self,
        size: tuple[int, int],
        first: FrozenHalf,
        second: FrozenHalf,
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
        if self.constant is None:
            return y
        return y.add_(self.constant) if _may_overwrite(y) else y + self.constant

    def extra_repr(self) -> str:
        return f"size={self.size}"


class CircularProduct(nn.Module):
    """A depthwise circular convolution of n as a product with an n x n matrix for each channel, and without `Wrap`.

    For runtimes where that is faster; `conv` is what follows `Wrap(dim)`. `compact`: the matrix is
    made of the kernel in the graph, so that a file holds n numbers of a channel in place of n x n,
    of which the runtime makes the matrix when it opens the file. (N, C, H, W) -> the same.
    """

    def __init__(self, conv: nn.Conv2d, dim: int, compact: bool = False):
        super().__init__()
        kernel = conv.weight.detach().flatten(1)  # (C, n)
        self.dim, self.bias, self.length = dim, conv.bias, kernel.shape[1]
        self.matrix: nn.Parameter | None = None
        if compact:
            self.kernel = nn.Parameter(kernel)
            numbers = torch.arange(self.length, device=kernel.device)[None]
            self.register_buffer("places", self._turned(circulant(numbers)).flatten())
        else:
            self.matrix = nn.Parameter(self._turned(circulant(kernel)).contiguous())

    def _turned(self, matrix: Tensor) -> Tensor:
        return matrix if self.dim == HEIGHT else matrix.transpose(1, 2)

    def _whole(self) -> Tensor:
        if self.matrix is not None:
            return self.matrix
        spread = self.kernel.index_select(1, cast(Tensor, self.places))  # (C, n n)
        return spread.view(-1, self.length, self.length)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self._whole()
        y = matrix @ x if self.dim == HEIGHT else x @ matrix
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def with_products(model: nn.Module, least: int, compact: bool = False) -> tuple[nn.Module, int]:
    """A copy of a deploy form with each depthwise ParC kernel of at least `least` as a `CircularProduct`; how many.

    Where there is none it is the model itself. Each product has the name of its convolution.
    """
    count = 0
    if not any(isinstance(module, FrozenParC) for module in model.modules()):
        return model, count
    model = copy.deepcopy(model)
    for parc in [module for module in model.modules() if isinstance(module, FrozenParC)]:
        for half in (parc.first, parc.second):
            for i in range(1, len(half)):
                wrap, conv = half[i - 1], half[i]
                if not (isinstance(wrap, Wrap) and isinstance(conv, nn.Conv2d)):
                    continue
                fits = conv.groups == conv.in_channels and conv.stride == (1, 1)
                if fits and max(conv.kernel_size) >= least:
                    half[i - 1], half[i] = nn.Identity(), CircularProduct(conv, wrap.dim, compact)
                    count += 1
    return model, count


class ParCBN(nn.Sequential):
    """ParC (`.0`), then batch norm (`.1`): what `ConvBN` is to a convolution."""

    def __init__(self, parc: ParC, channels: int):
        super().__init__(parc, nn.BatchNorm2d(channels))

    def fuse_at(self, size: tuple[int, int]) -> FrozenParC:
        return cast(ParC, self[0]).fuse_at(size, self[1])


# ---- in other people's networks


class ParCTokens(nn.Module):
    """A ParC in the place of a ViT's attention: tokens (N, first + h w, C) -> the same.

    Attention is project(mixture of value(x)), where queries and keys decide the mixture; here it is
    project(ParC(value(x))), with attention's own two layers. Its queries and keys go.

    The first tokens (class, registers) have no place on the grid. Each becomes the mean of its own
    value and of all mixed patches, which is what attention gives for equal scores: linear in the
    tokens, and no patch is left out. Patches do not read them: they hold nothing but such means.

    `grid` is (h, w) at the learned length, `first` the number of tokens before the grid's; `paired`
    gives (tokens, None), as `nn.MultiheadAttention` does.
    """

    def __init__(
        self,
        value: nn.Linear,
        project: nn.Linear,
        drop: nn.Module,
        grid: tuple[int, int],
        first: int,
        paired: bool = False,
    ):
        super().__init__()
        self.value, self.project, self.drop = value, project, drop
        self.parc = ParC(value.out_features, grid)
        self.grid, self.first, self.paired = grid, first, paired

    def forward(
        self,
        x: Tensor,
        *more: object,
        attn_mask: object = None,
        is_causal: bool = False,
        **_: object,
    ) -> Tensor | tuple[Tensor, None]:
        if attn_mask is not None or is_causal:
            raise ModelError("ParC in the place of attention sees every token: it takes no mask")
        values = self.value(x)
        first, patches = values[:, : self.first], values[:, self.first :]  # (N, h w, C)
        grid = patches.transpose(1, 2).unflatten(2, self._grid(patches.shape[1]))  # (N, C, h, w)
        mixed = self.parc(grid).flatten(2).transpose(1, 2)
        if self.first:
            means = (first + mixed.sum(1, keepdim=True)) / (1 + mixed.shape[1])
            mixed = torch.cat([means, mixed], dim=1)
        tokens = self.drop(self.project(mixed))
        return (tokens, None) if self.paired else tokens

    def _grid(self, patches: int) -> tuple[int, int]:
        """Height and width of so many patches: the grid's own, or one of the same shape."""
        height, width = self.grid
        if torch.jit.is_tracing() or patches == height * width:
            return self.grid
        scale = (patches / (height * width)) ** 0.5
        resized = round(height * scale), round(width * scale)
        if resized[0] * resized[1] != patches:
            raise ModelError(
                f"{patches} tokens are no grid of the shape {height}x{width}, "
                "which this ParC was made for"
            )
        return resized

    def extra_repr(self) -> str:
        return f"grid={self.grid}, first={self.first}"


def replace(
    model: nn.Module, where: replacing.Where, size: replacing.Size | None = None
) -> list[str]:
    """Put ParC in the place of convolutions and attention of anybody's network, in place; returns their names.

    `where` chooses by module name: a pattern such as "blocks.5.*", a list of them, or a function of
    name and module; the paper advises the deep stages. Of what a pattern fits are replaced

        depthwise convolutions of any size                         by a depthwise ParC
        full convolutions that keep the number of channels         by a dense ParC, as in ParC-ResNet50
        attention of ViTs (timm's Attention, MultiheadAttention)   by `ParCTokens`

    and all else stays. Strides and shapes are kept. A ParC begins with the kernels of its
    convolution, summed over the direction that it does not look along: the same for features that
    do not vary in that direction, but around the borders. In the place of attention it begins with
    equal weights, as attention of equal scores. Train the network afterwards. `size` is that of the
    images, one number or (height, width), and decides the learned lengths; other sizes run too.
    Unless given it is timm's for the network, else 224.

    Raises `UsageError` for a pattern that fits nothing, with the nearest names, or only what cannot
    be replaced, with the reason; `ModelError` for a network in which nothing can be.

        fleetnet.parc.replace(timm.create_model("mobilenetv3_large_100"), "blocks.5.*")
    """
    return replacing.replace(model, where, AS_PARC, size)


def _concerns(layer: nn.Module) -> bool:
    return replacing.is_spatial(layer) or _is_attention(layer)


def _is_attention(layer: nn.Module) -> bool:
    """Whether a layer has the parts of timm's `Attention`, or is torch's own."""
    parts = (getattr(layer, name, None) for name in ("qkv", "proj"))
    return isinstance(layer, nn.MultiheadAttention) or (
        hasattr(layer, "num_heads") and all(isinstance(part, nn.Linear) for part in parts)
    )


def _obstacle(site: replacing.Site) -> str:
    if _is_attention(site.layer):
        return _obstacle_of_attention(site)
    channels = cast(nn.Conv2d, site.layer).in_channels
    odd = f"its {channels} channels cannot be halved" if channels % 2 else ""
    return replacing.obstacle_of_conv(site) or odd


def _layer_for(site: replacing.Site) -> nn.Module:
    if _is_attention(site.layer):
        return _tokens_for(site)
    conv = cast(nn.Conv2d, site.layer)
    size, gives = (site.takes[2], site.takes[3]), (site.gives[2], site.gives[3])
    dense = not replacing.is_depthwise(conv)
    parc = ParC(conv.in_channels, size, dense=dense, stride=replacing.stride_of(conv))
    if replacing.has_plain_weights(conv):
        _begin_as(parc, conv, size, gives)
    return parc


@torch.no_grad()
def _begin_as(parc: ParC, conv: nn.Conv2d, size: tuple[int, int], gives: tuple[int, int]) -> None:
    """The kernels and biases of a convolution, for features of a size, summed over the direction across."""
    parc.to(conv.weight)
    biases = torch.zeros_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
    for half, stage in enumerate([*_stages(parc.first), *_stages(parc.second)]):
        kernel = conv.weight.chunk(2)[half]  # (C / 2, C or 1, rows, columns)
        if stage.groups == 1:  # a dense ParC mixes within each half
            kernel = kernel.chunk(2, dim=1)[half]
        taps = kernel.sum(HEIGHT + WIDTH - stage.dim, keepdim=True)
        side = stage.dim - HEIGHT
        places = torch.arange(taps.shape[stage.dim], device=taps.device) * conv.dilation[side]
        places = (places - _before(conv, side, size[side], gives[side])) % size[side]
        # kernels of more values than the feature wrap around, as ParC does
        stage.weight.zero_().index_add_(stage.dim, places, taps)
        cast(Tensor, stage.bias).copy_(biases.chunk(2)[half])


def _before(conv: nn.Conv2d, side: int, takes: int, gives: int) -> int:
    """How far before an output's own place a convolution begins to look, by its padding."""
    span, stride = conv.dilation[side] * (conv.kernel_size[side] - 1), conv.stride[side]
    padding = 0 if isinstance(conv.padding, str) else conv.padding[side]
    if gives == (takes + 2 * padding - span - 1) // stride + 1:
        return int(padding)
    return max((gives - 1) * stride + span + 1 - takes, 0) // 2  # "same", TensorFlow's too


def _obstacle_of_attention(site: replacing.Site) -> str:
    """Why a ParC cannot stand for attention: where that is not plain, or not over the whole image."""
    layer = site.layer
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent in site.parents):
        return "nn.TransformerEncoderLayer reads the weights of its attention"
    of_its_own = {name.partition(".")[0] for name in layer.state_dict()} - {
        "qkv", "proj", "q_norm", "k_norm", "in_proj_weight", "in_proj_bias", "out_proj",
    }  # fmt: skip
    if of_its_own:
        return (
            f"its attention has more than queries, keys and values: {', '.join(sorted(of_its_own))}"
        )
    if len(site.takes) != 3 or site.takes[0] != 1 or site.takes != site.gives:
        return f"its attention is not over all tokens of an image: it takes {site.takes}"
    if site.takes[2] % 2:
        return f"its {site.takes[2]} channels cannot be halved"
    if _tokens_of(site) is None:
        return f"its {site.takes[1]} tokens are no grid"
    if isinstance(layer, nn.MultiheadAttention):
        simple = layer.batch_first and layer.in_proj_weight is not None
        return "" if simple else "only batch_first attention of one input is replaced"
    qkv, project = cast(nn.Linear, layer.qkv), cast(nn.Linear, layer.proj)
    return "" if qkv.out_features == 3 * project.in_features else "its values are of another width"


def _tokens_of(site: replacing.Site) -> tuple[tuple[int, int], int] | None:
    """The grid of patches, and how many tokens stand before it; None where neither can be told."""
    tokens = site.takes[1]
    of_host = [getattr(parent, "num_prefix_tokens", None) for parent in site.parents]
    counts = [count for count in of_host if isinstance(count, int)] or [0, 1]
    for parent in site.parents:
        grid = getattr(getattr(parent, "patch_embed", None), "grid_size", None)
        if isinstance(grid, tuple) and tokens == grid[0] * grid[1] + counts[0]:
            return grid, counts[0]
    for first in counts:
        side = round((tokens - first) ** 0.5)
        if side * side == tokens - first:
            return (side, side), first
    return None


def _tokens_for(site: replacing.Site) -> ParCTokens:
    layer = site.layer
    grid, first = cast(tuple[tuple[int, int], int], _tokens_of(site))
    if isinstance(layer, nn.MultiheadAttention):
        value = _last_third(layer.in_proj_weight, layer.in_proj_bias)
        tokens = ParCTokens(value, layer.out_proj, nn.Identity(), grid, first, paired=True)
    else:
        qkv, project = cast(nn.Linear, layer.qkv), cast(nn.Linear, layer.proj)
        drop = cast(nn.Module, getattr(layer, "proj_drop", nn.Identity()))
        tokens = ParCTokens(_last_third(qkv.weight, qkv.bias), project, drop, grid, first)
    with torch.no_grad():
        for stage in [*_stages(tokens.parc.first), *_stages(tokens.parc.second)]:
            stage.weight.fill_(1 / stage.weight.shape[stage.dim])
    return tokens


def _last_third(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The layer of values of one that makes queries, keys and values, in this order."""
    outputs, inputs = weight.shape[0] // 3, weight.shape[1]
    value = nn.Linear(inputs, outputs, bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        value.weight.copy_(weight[-outputs:])
        if bias is not None:
            value.bias.copy_(bias[-outputs:])
    return value


AS_PARC = replacing.Kind("ParC", "convolution or attention", _concerns, _obstacle, _layer_for)
