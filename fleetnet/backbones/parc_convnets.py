"""ParC ConvNets: ConvNeXt, ResNet-50 and MobileNetV2 with ParC in their deep blocks.

Zhang et al., ECCV 2022, arXiv:2203.03952, second half. Code: github.com/hkzhang91/ParC-Net,
ParC_ConvNets. The hosts: Liu et al., arXiv:2201.03545; He et al., arXiv:1512.03385; Sandler et al.,
arXiv:1801.04381.

The claim: the operator is good for any ConvNet. In the last blocks of the last two resolutions, the
spatial convolution gives way to a single-stage ParC as long as the feature map at 224 x 224 (14,
then 7); nothing else changes.

    image (3, H, W)         convnext_xt          parc_resnet50              parc_mobilenetv2
      H/2                   -                    (stem, no feature)         16   feature 0
      H/4                   48   feature 0       256   feature 0            24   feature 1
      H/8                   96   feature 1       512   feature 1            32   feature 2
      H/16                  192  feature 2       1024  feature 2            96   feature 3
        ParC, length 14     last 3 of 9 blocks   last 3 of 6 blocks         last 2 of 4, and last 1 of 3
      H/32                  384  feature 3       2048  feature 3            320  feature 4
        ParC, length 7      last of 3            last of 3                  last of 3 with 160 channels

ParC is depthwise, but dense within each half in ResNet-50. Every ParC has a position embedding, but
in MobileNetV2 only the first of a row of blocks. Multiply-adds at 224 x 224: 1144.0 M
(convnext_xt), 1139.2 M (parc_convnext_xt), 3941.5 M (parc_resnet50), 302.0 M (parc_mobilenetv2);
the authors' table halves those of the first three.

Differs from the authors' code: images of any size, as ParC is resized; they run 224 x 224 only.
`output_stride` is ours: of a stage that loses its stride, the convolution that strided takes the
dilation before, the later ones the new one (ParC has none to take); ConvNeXt's unpadded 2x2 merge
is padded at the bottom and the right instead, so that its output holds the strided one's values.
ResNet and MobileNetV2 round odd sizes up, ConvNeXt down.
"""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from ..errors import ModelError
from ..layers import ConvBN, drop_rates
from ..parc import CircularConv, ParC, ParCBN
from ..reparam import as_linear, linear_kernel
from . import Backbone, Pretrained, Recognized, State
from ._recognition import form_by_norms, has, output_count

OPTIONS: tuple[str, ...] = ()
VERSIONS = ()
WEIGHTS: dict[str, Pretrained] = {}  # none were released


def _rates(strides: list[int], output_stride: int) -> list[tuple[int, int, int]]:
    """What each stage does if the whole may stride by `output_stride` only: (stride, dilation before, dilation)."""
    rates, total, dilation = [], 1, 1
    for stride in strides:
        before = dilation
        if total * stride > output_stride:
            stride, dilation = 1, dilation * stride
        total *= stride
        rates.append((stride, before, dilation))
    return rates


class Staged(nn.Module):
    """A stem and stages, one after the other; the feature of each stage is kept."""

    strides: list[int]
    stem: nn.Module
    stages: nn.ModuleList

    def forward(self, image: Tensor) -> list[Tensor]:
        if self.training and image.shape[0] == 1 and max(image.shape[2:]) <= self.strides[-1]:
            self._refuse_one_pixel()
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]

    def _refuse_one_pixel(self) -> None:
        """Batch norm cannot train on one value a channel: one image so small that the last feature is one pixel."""
        for name, module in self.stages[-1].named_modules():
            if isinstance(module, nn.BatchNorm2d) and module.training:
                raise ModelError(
                    f"the batch norm {name} in the last stage of {type(self).__name__} would see "
                    "one value a channel: use a batch of at least 2, a larger image, or freeze the "
                    "batch norms with .eval()"
                )


# ---- ConvNeXt


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PaddedConv(nn.Conv2d):
    """A 2x2 convolution of stride 1, padded at the bottom and the right so that the size stays."""

    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__(inputs, outputs, 2, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, self.dilation[1], 0, self.dilation[0])))


class ScaledLinear(nn.Linear):
    """A linear layer, then a learned scale of each channel (layer scale)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.full((outputs,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale

    def fuse(self) -> nn.Linear:
        weight, bias = linear_kernel(self)
        scale = self.scale.detach().double()
        return as_linear(weight * scale[:, None], bias * scale, like=self)


class ConvNeXtBlock(nn.Module):
    """x + mlp(norm(spatial(x))), the MLP on channels last; spatial is a depthwise 7x7 convolution or ParC."""

    def __init__(self, channels: int, spatial: nn.Module, drop_path: float):
        super().__init__()
        self.spatial = spatial
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), ScaledLinear(4 * channels, channels)
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.spatial(x).permute(0, 2, 3, 1)  # (N, H, W, C)
        return x + self.drop_path(self.mlp(self.norm(y)).permute(0, 3, 1, 2))


class ConvNeXt(Staged):
    """`parc[i]` is the number of blocks at the end of stage i that use ParC."""

    def __init__(
        self,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        parc: tuple[int, ...],
        drop_path: float = 0.0,
        output_stride: int = 32,
        in_channels: int = 3,
    ):
        super().__init__()
        self.channels, self.strides = list(channels), []
        drop = iter(drop_rates(drop_path, sum(depths)))
        self.stem, self.stages = nn.Identity(), nn.ModuleList()
        total = 1
        for i, (stride, before, dilation) in enumerate(_rates([4, 2, 2, 2], output_stride)):
            total *= stride
            self.strides.append(total)
            width, length = channels[i], 56 // 2**i
            blocks: list[nn.Module]
            if i == 0:
                blocks = [nn.Conv2d(in_channels, width, 4, 4), LayerNorm2d(width, eps=1e-6)]
            else:
                inputs = channels[i - 1]
                conv = (
                    nn.Conv2d(inputs, width, 2, 2)
                    if stride == 2
                    else PaddedConv(inputs, width, before)
                )
                blocks = [LayerNorm2d(inputs, eps=1e-6), conv]
            for j in range(depths[i]):
                spatial: nn.Module = (
                    ParC(width, length)
                    if j >= depths[i] - parc[i]
                    else nn.Conv2d(
                        width, width, 7, padding=3 * dilation, dilation=dilation, groups=width
                    )
                )
                blocks.append(ConvNeXtBlock(width, spatial, next(drop)))
            self.stages.append(nn.Sequential(*blocks))
        self.apply(_init_convnext)

    def forward(self, image: Tensor) -> list[Tensor]:
        least = self.strides[-1]
        if not torch.jit.is_tracing() and min(image.shape[2:]) < least:
            raise ModelError(
                f"the image is {tuple(image.shape[2:])}; ConvNeXt needs at least "
                f"{least} x {least} pixels"
            )
        return super().forward(image)

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(self.channels[-1], eps=1e-6),
            nn.Linear(self.channels[-1], classes),
        ).apply(_init_convnext)  # fmt: skip


def _init_convnext(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear | CircularConv):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ---- ResNet-50


class Bottleneck(nn.Module):
    """ResNet's 1x1, spatial, 1x1 with a residual: relu(shortcut(x) + layers(x))."""

    def __init__(self, inputs: int, width: int, spatial: nn.Module, stride: int, drop_path: float):
        super().__init__()
        self.layers = nn.Sequential(
            ConvBN(inputs, width), nn.ReLU(), spatial, nn.ReLU(), ConvBN(width, 4 * width)
        )
        self.shortcut = (
            nn.Identity() if inputs == 4 * width else ConvBN(inputs, 4 * width, stride=stride)
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.drop_path(self.layers(x))).relu()


class ResNet(Staged):
    """`parc[i]` is the number of blocks at the end of stage i that use dense ParC."""

    def __init__(
        self,
        depths: tuple[int, ...],
        parc: tuple[int, ...],
        drop_path: float = 0.0,
        output_stride: int = 32,
        in_channels: int = 3,
    ):
        super().__init__()
        self.channels, self.strides = [256, 512, 1024, 2048], []
        drop = iter(drop_rates(drop_path, sum(depths)))
        self.stem = nn.Sequential(
            ConvBN(in_channels, 64, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.ModuleList()
        inputs, total = 64, 4
        for i, (stride, before, dilation) in enumerate(_rates([4, 2, 2, 2], output_stride)):
            total *= stride if i else 1
            self.strides.append(total)
            width, length = 64 * 2**i, 56 // 2**i
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                first = stride if i and not j else 1  # stride; the stem did stage 0's
                spatial: nn.Module = (
                    ParCBN(ParC(width, length, dense=True), width)
                    if j >= depths[i] - parc[i]
                    else ConvBN(width, width, 3, first, dilation=dilation if j else before)
                )
                blocks.append(Bottleneck(inputs, width, spatial, first, next(drop)))
                inputs = 4 * width
            self.stages.append(nn.Sequential(*blocks))
        self.apply(_init_conv)

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], classes)
        )


def _init_conv(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | CircularConv):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")


# ---- MobileNetV2

ROWS = [  # of each stage: expansion, channels, blocks, how many of these use ParC (the last ones)
    [(1, 16, 1, 0)],
    [(6, 24, 2, 0)],
    [(6, 32, 3, 0)],
    [(6, 64, 4, 2), (6, 96, 3, 1)],
    [(6, 160, 3, 1), (6, 320, 1, 0)],
]


class InvertedResidual(nn.Module):
    """Expand, spatial, reduce; a residual where the size stays."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, spatial: nn.Module, drop_path: float
    ):
        super().__init__()
        self.residual = inputs == outputs
        expand = [ConvBN(inputs, expansion * inputs), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand, spatial, nn.ReLU6(), ConvBN(expansion * inputs, outputs)
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layers(x)) if self.residual else self.layers(x)


class MobileNetV2(Staged):
    def __init__(self, drop_path: float = 0.0, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        self.channels, self.strides = [rows[-1][1] for rows in ROWS], []
        drop = iter(drop_rates(drop_path, sum(row[2] for rows in ROWS for row in rows)))
        self.stem = nn.Sequential(ConvBN(in_channels, 32, 3, stride=2), nn.ReLU6())
        self.stages = nn.ModuleList()
        inputs, total = 32, 1
        for i, (rows, (stride, before, dilation)) in enumerate(
            zip(ROWS, _rates([2] * 5, output_stride), strict=True)
        ):
            total *= stride
            self.strides.append(total)
            stage, length = nn.Sequential(), 112 // 2**i
            for expansion, width, depth, parc in rows:
                for j in range(depth):
                    # the stem did stage 0's
                    hidden, own = (expansion * inputs, 1 if len(stage) or i == 0 else stride)
                    spatial: nn.Module = (
                        ParCBN(ParC(hidden, length, position=j == depth - parc), hidden)
                        if j >= depth - parc
                        else ConvBN(
                            hidden,
                            hidden,
                            3,
                            own,
                            hidden,
                            dilation=dilation if len(stage) else before,
                        )
                    )
                    stage.append(InvertedResidual(inputs, width, expansion, spatial, next(drop)))
                    inputs = width
            self.stages.append(stage)
        self.apply(_init_conv)

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        linear = nn.Linear(1280, classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(
            ConvBN(self.channels[-1], 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), linear
        ).apply(_init_conv)  # fmt: skip


VARIANTS: dict[str, Callable[..., Backbone]] = {  # with a classifier of 1000 classes
    "convnext_xt": partial(
        ConvNeXt, (48, 96, 192, 384), (3, 3, 9, 3), (0, 0, 0, 0)
    ),  # 7,438,360 parameters
    "parc_convnext_xt": partial(
        ConvNeXt, (48, 96, 192, 384), (3, 3, 9, 3), (0, 0, 3, 1)
    ),  # 7,412,824
    "parc_resnet50": partial(ResNet, (3, 4, 6, 3), (0, 0, 3, 1)),  # 23,737,640
    "parc_mobilenetv2": partial(MobileNetV2),  # 3,532,136
}

# the authors' MobileNetV2 numbers its blocks throughout: the first of each stage
_FEATURES = [1, 2, 4, 7, 14]


def _mobilenet_block(match: re.Match[str]) -> str:
    number = int(match[1])
    if number in (0, 18):
        return "backbone.stem.0." if number == 0 else "head.classifier.0."
    stage = max(i for i, start in enumerate(_FEATURES) if start <= number)
    return f"backbone.stages.{stage}.{number - _FEATURES[stage]}."


# the authors' names to ours; applied in this order, each where it matches
_RENAME: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\.(gcc|parc)_H\.", ".parc.first.0."),
    (r"\.(gcc|parc)_W\.", ".parc.second.0."),
    (r"\.gcc_conv\.", "."),
    (r"\.pe$", ".position"),
    # ConvNeXt
    (r"^downsample_layers\.", "backbone.stages."),
    (r"^stages\.(\d)\.(\d)\.", lambda m: f"backbone.stages.{m[1]}.{int(m[2]) + 2}."),
    (r"^(backbone\.stages\.\d\.\d+)\.(dwconv|parc)\.", r"\1.spatial."),
    (r"\.pwconv1\.", ".mlp.0."),
    (r"\.pwconv2\.", ".mlp.2."),
    (r"\.gamma$", ".mlp.2.scale"),
    (r"^norm\.", "head.classifier.2."),
    (r"^head\.(weight|bias)$", r"head.classifier.3.\1"),
    # ResNet
    (r"^conv1\.", "backbone.stem.0.0."),
    (r"^bn1\.", "backbone.stem.0.1."),
    (r"^(layer\d\.\d)\.conv(\d)\.", lambda m: f"{m[1]}.layers.{2 * int(m[2]) - 2}.0."),
    (r"^(layer\d\.\d)\.bn(\d)\.", lambda m: f"{m[1]}.layers.{2 * int(m[2]) - 2}.1."),
    (r"^(layer\d\.\d)\.parc\.", r"\1.layers.2.0."),
    (r"^(layer\d\.\d)\.downsample\.", r"\1.shortcut."),
    (r"^layer(\d)\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
    (r"^fc\.", "head.classifier.2."),
    # MobileNetV2
    (r"^features\.1\.conv\.([12])\.", lambda m: f"features.1.layers.2.{int(m[1]) - 1}."),
    (r"^(features\.\d+)\.conv\.([23])\.", lambda m: f"{m[1]}.layers.4.{int(m[2]) - 2}."),
    (r"^(features\.\d+)\.conv\.([01])\.", lambda m: f"{m[1]}.layers.{2 * int(m[2])}."),
    (r"^(features\.\d+)\.pw_expand\.", r"\1.layers.0."),
    (r"^(features\.\d+)\.parc\.", r"\1.layers.2.0."),
    (r"^(features\.\d+)\.bn\.", r"\1.layers.2.1."),
    (r"^(features\.\d+)\.pw_linear\.", r"\1.layers.4."),
    (r"^features\.(\d+)\.", _mobilenet_block),
    (r"^classifier\.1\.", "head.classifier.5."),
]


def convert(state: State) -> State:
    """The authors' names of the three networks to ours."""
    converted = {}
    for name, value in state.items():
        if not name.startswith(("backbone.", "head.classifier.")):
            for pattern, ours in _RENAME:
                name = re.sub(pattern, ours, name)
        converted[name] = value
    return converted


def recognize(state: State) -> Recognized | None:
    """ConvNeXt's blocks have an `mlp`, some of ResNet's a `shortcut`, MobileNetV2's neither.

    Without a ParC, the latter two are not ours.
    """
    parc = has(state, r"backbone\..+\.(first|second)\.\d\.")
    if has(state, r"backbone\.stages\.\d\.\d+\.mlp\."):
        scales = has(state, r"backbone\..+\.mlp\.2\.scale$")  # these collapse; it has no batch norm
        return Recognized(
            variant="parc_convnext_xt" if parc else "convnext_xt",
            form="multi-branch" if scales else "deploy",
            classes=output_count(state, "head.classifier.3"),
        )
    form = form_by_norms(state, "backbone.")
    if parc and has(state, r"backbone\.stages\.\d\.\d\.shortcut\."):
        return Recognized("parc_resnet50", form, output_count(state, "head.classifier.2"))
    if parc and has(state, r"backbone\.stages\.3\.[2-6]\.layers\.\d"):
        return Recognized("parc_mobilenetv2", form, output_count(state, "head.classifier.5"))
    return None
