"""ParC-Net -- ParC-Net: Position Aware Circular Convolution with Merits from ConvNets and Transformer.

Zhang et al., ECCV 2022, arXiv:2203.03952 (EdgeFormer in its first version). Code:
github.com/hkzhang91/ParC-Net.

The claim: what makes light vision transformers good is a global view, a position embedding and a
channel mixer that depends on the input, and a pure convolutional network can have all three.
MobileViT's transformer block becomes a ParC block: a circular convolution as long as the feature
map, then an MLP with channel attention.

    image (3, H, W)
      stem     conv 3x3 / 2  (xs, s; h: 5x5)                        H/2
      stage 1  inverted residual                                    H/2   ->  feature 0  (out_l1)
      stage 2  inverted residual / 2, two more                      H/4   ->  feature 1  (out_l2)
      stage 3  inverted residual / 2, ParC stage, length 32         H/8   ->  feature 2  (out_l3)
      stage 4  inverted residual / 2, ParC stage, length 16         H/16  ->  feature 3  (out_l4)
      stage 5  inverted residual / 2, ParC stage, length 8          H/32  ->  feature 4  (out_l5)

    ParC stage:  y = project(norm(ParC blocks(local(x))));  fusion(concat(y, x)), or fusion(y + x) in xs
    ParC block:  x + ParC(x), then x + attention(mlp(norm(x)))

Any size and aspect ratio; strides round up. The kernels were learned for 256 x 256. Multiply-adds
at that size: 944.0 M (xs), 1657.3 M (s), 8544.4 M (h). The published 1740 M of s charge channel
attention once a pixel, though it acts on one vector an image. The authors train and test on channel
order BGR, scaled to 0..1 and not normalized.

Differs from the authors' code: height and width are resized separately, so that images need not be
square. The norm after the last ParC block belongs to the projection behind it, which collapses with
it. With `output_stride` 16 or 8 the 3x3 convolutions of a ParC stage are dilated by its lost
strides; `dilate=False` leaves them as they are, which is how the authors segment. (Of a stage that
loses its stride, the inverted residual takes the rate before, in both.) `drop_path` is ours; the
authors have none.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..errors import ModelError
from ..layers import ConvBN, drop_rates
from ..parc import ParC
from ..preprocess import Preprocess
from ..reparam import as_conv, fold_bn, fold_bn_before, kernel
from . import Pretrained, Recognized, State
from ._recognition import closest, depths, form_by_norms, has, output_count, sizes

LENGTHS = (32, 16, 8)  # of the ParC kernels of stages 3, 4, 5: their features at 256 x 256
OPTIONS = ("dilate",)
VERSIONS = ()


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand by four, depthwise 3x3, reduce; a residual where the size stays."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, drop_path: float = 0.0
    ):
        super().__init__()
        hidden = 4 * inputs
        self.residual = inputs == outputs
        self.layers = nn.Sequential(
            ConvBN(inputs, hidden), nn.SiLU(),
            ConvBN(hidden, hidden, 3, stride, groups=hidden, dilation=dilation), nn.SiLU(),
            ConvBN(hidden, outputs),
        )  # fmt: skip
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layers(x)) if self.residual else self.layers(x)


class BNConv(nn.Sequential):
    """Batch norm (`.0`), then a 1x1 convolution (`.1`), then maybe another batch norm (`.2`). Pads nothing."""

    def fuse(self) -> nn.Conv2d:
        conv = cast(nn.Conv2d, self[1])
        folded = fold_bn_before(self[0], kernel(conv), conv.groups)
        return as_conv(fold_bn(folded, self[2]) if len(self) == 3 else folded, like=conv)


class ChannelAttention(nn.Module):
    """Scale each channel by a gate computed from the mean of all: (N, C, H, W) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = ConvBN(channels, channels // 16)
        self.act = nn.Hardswish()
        self.expand = ConvBN(channels // 16, channels)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.gate(self.expand(self.act(self.reduce(mean))))


class ParCBlock(nn.Module):
    """x + ParC(x), then x + attention(mlp(x)): (N, C, H, W) -> the same."""

    def __init__(self, channels: int, length: int, position: bool, drop_path: float):
        super().__init__()
        self.parc = ParC(channels, length, crossed=True, position=position)
        self.mlp = nn.Sequential(
            BNConv(nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * channels, 1)), nn.Hardswish(),
            nn.Conv2d(2 * channels, channels, 1), nn.Dropout(0.1),
        )  # fmt: skip
        self.attention = ChannelAttention(channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.parc(x))
        return x + self.drop_path(self.attention(self.mlp(x)))


class ParCStage(nn.Module):
    """A local view, then a global one, fused with the input: (N, C, H, W) -> the same.

    Only the first ParC block has position embeddings.
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        length: int,
        concat: bool,
        dilation: int,
        drop_paths: list[float],
    ):
        super().__init__()
        self.concat = concat
        groups = gcd(channels, inner)
        self.local = nn.Sequential(
            ConvBN(channels, inner, 3, groups=groups, dilation=dilation), nn.SiLU(),
            nn.Conv2d(inner, inner, 1, bias=False),
        )  # fmt: skip
        self.blocks = nn.Sequential(
            *[ParCBlock(inner, length, i == 0, drop) for i, drop in enumerate(drop_paths)]
        )
        self.project = nn.Sequential(
            BNConv(
                nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 1, groups=groups, bias=False),
                nn.BatchNorm2d(channels),
            ), nn.SiLU(),
        )  # fmt: skip
        fused = 2 * channels if concat else channels
        self.fusion = nn.Sequential(ConvBN(fused, channels, 3, dilation=dilation), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.blocks(self.local(x)))
        return self.fusion(torch.cat([y, x], dim=1) if self.concat else y + x)


class ParCNet(nn.Module):
    def __init__(
        self,
        stem: tuple[int, int],  # channels, kernel size
        channels: tuple[int, ...],  # of the five stages
        inner: tuple[int, ...],  # channels of the ParC blocks in stages 3, 4, 5
        depths: tuple[int, ...],  # number of ParC blocks there
        concat: bool = True,  # fuse local and global by concatenation, else by addition
        drop_path: float = 0.0,
        output_stride: int = 32,
        dilate: bool = True,
        in_channels: int = 3,
    ):
        super().__init__()
        self.channels, self.strides = list(channels), [2]
        drop = iter(drop_rates(drop_path, 2 + sum(depths)))  # one for each block with a residual
        self.stem = nn.Sequential(ConvBN(in_channels, stem[0], stem[1], stride=2), nn.SiLU())
        self.stages = nn.ModuleList([nn.Sequential(InvertedResidual(stem[0], channels[0]))])
        rate = 1  # of dilation: the product of the strides that output_stride took away
        for i, (before, width) in enumerate(pairwise(channels)):
            keep = self.strides[-1] < output_stride
            self.strides.append(self.strides[-1] * (2 if keep else 1))
            blocks: list[nn.Module] = [
                InvertedResidual(before, width, 2 if keep else 1, dilation=rate)
            ]
            rate = rate if keep else 2 * rate
            if i == 0:
                blocks += [InvertedResidual(width, width, drop_path=next(drop)) for _ in range(2)]
            else:
                drops = [next(drop) for _ in range(depths[i - 1])]
                dilation = rate if dilate else 1
                blocks.append(
                    ParCStage(width, inner[i - 1], LENGTHS[i - 1], concat, dilation, drops)
                )
            self.stages.append(nn.Sequential(*blocks))
        self.apply(_init)

    def forward(self, image: Tensor) -> list[Tensor]:
        if self.training and image.shape[0] == 1:
            self._refuse_one_image()
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]

    def _refuse_one_image(self) -> None:
        """Batch norm cannot train on one value a channel, which is all that channel attention makes of one image."""
        for name, module in self.named_modules():
            if name.endswith(".attention.reduce.1") and module.training:
                raise ModelError(
                    f"the batch norm {name} of {type(self).__name__} sees one value a channel and "
                    "image, so it cannot train on one image: use a batch of at least 2, or freeze "
                    "the batch norms with .eval()"
                )

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        width = min(4 * self.channels[-1], 960)
        return nn.Sequential(
            ConvBN(self.channels[-1], width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(width, classes),
        ).apply(_init)  # fmt: skip


def _init(module: nn.Module) -> None:
    """The authors' initial weights; ParC has its own."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


VARIANTS = {  # with a classifier of 1000 classes
    "parcnet_xs": partial(
        ParCNet, (16, 3), (32, 64, 96, 128, 160), (96, 128, 160), (2, 3, 2), concat=False
    ),  # 2,185,384 parameters
    "parcnet_s": partial(
        ParCNet, (16, 3), (32, 64, 96, 128, 160), (192, 256, 320), (2, 4, 3)
    ),  # 5,037,088
    "parcnet_h": partial(
        ParCNet, (48, 5), (96, 144, 216, 288, 432), (324, 432, 432), (3, 9, 3)
    ),  # 20,403,940
}

WEIGHTS = {
    "parcnet_s": Pretrained(
        "https://github.com/hkzhang-git/ParC-Net/raw/f6780d0/pretrained_models/classification/checkpoint_ema_avg.pt",
        license="none stated by the authors",
        top1=78.63,
        measured_by="the authors",
        preprocess=Preprocess(
            (256, 256),
            crop=256 / 288,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            channel_order="BGR",
            antialias=False,
        ),
    ),
}

_LEAF = {"kernel": "weight", "pe": "position"}
_RENAME: list[
    tuple[str, str | Callable[[re.Match[str]], str]]
] = [  # the authors' names to ours; applied in this order, each where it matches
    (r"^encoder\.", ""),  # of a detector's or segmenter's backbone
    (r"\.block\.conv\.", ".0."),
    (r"\.block\.norm\.", ".1."),
    (r"\.block\.exp_1x1\.", ".layers.0."),
    (r"\.block\.conv_3x3\.", ".layers.2."),
    (r"\.block\.red_1x1\.", ".layers.4."),
    (r"dim_adaptive\.0\.", "local.0."),
    (r"dim_adaptive\.1\.0\.", "local.2."),
    (r"channel_adaptive\.([01])\.", lambda m: f"project.0.{int(m[1]) + 1}."),
    (r"local_global_fusion\.", "fusion.0."),
    (
        r"spatial_global_rep\.\d+\.(?=(weight|bias|running_mean|running_var|num_batches_tracked)$)",
        "project.0.0.",
    ),
    (r"spatial_global_rep\.", "blocks."),
    (r"pre_Norm_1", "parc.first.0.norm"),
    (r"pre_Norm_2", "parc.second.0.norm"),
    (r"meta_(kernel|pe)_(1_H|2_W)$", lambda m: f"parc.first.{int(m[2][0]) - 1}.{_LEAF[m[1]]}"),
    (r"meta_(kernel|pe)_(1_W|2_H)$", lambda m: f"parc.second.{int(m[2][0]) - 1}.{_LEAF[m[1]]}"),
    (r"ffn\.([01])\.", r"mlp.0.\1."),
    (r"ffn\.4\.", "mlp.2."),
    (r"ca\.fc\.([01])\.", r"attention.reduce.\1."),
    (r"ca\.fc\.([34])\.", lambda m: f"attention.expand.{int(m[1]) - 3}."),
    (r"^conv_1\.", "backbone.stem.0."),
    (r"^layer_(\d)\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
    (r"^conv_1x1_exp\.", "head.classifier.0."),
    (r"^classifier\.fc\.", "head.classifier.5."),
]
_AUTHORS = re.compile(r"(encoder\.)?(conv_1\.|layer_\d\.|conv_1x1_exp\.|classifier\.fc\.)")
# the authors register layer_5.0 a second time under this name
_ALIAS = re.compile(r"(encoder\.)?residual\.")


def convert(state: State) -> State:
    """The authors' names to ours, from a classifier or from the encoder of their detector or segmenter."""
    converted = {}
    for name, value in state.items():
        if _ALIAS.match(name):
            continue
        if _AUTHORS.match(name):
            for pattern, ours in _RENAME:
                name = re.sub(pattern, ours, name)
        converted[name] = value
    return converted


def recognize(state: State) -> Recognized | None:
    """ParC-Net's blocks have a ParC and an `attention`. No tensor shows the option `dilate`."""
    if not has(state, r"backbone\.stages\.\d\.1\.blocks\.\d+\.(parc|attention)\."):
        return None
    widths = sizes(state, r"backbone\.stages\.(\d)\.0\.layers\.4\.(?:0\.)?weight")
    inner = sizes(state, r"backbone\.stages\.(\d)\.1\.blocks\.0\.mlp\.2\.weight")
    blocks = depths(state, r"backbone\.stages\.(\d)\.1\.blocks\.(\d+)\.")
    of_variants = {}
    for name, make in VARIANTS.items():
        _, channels, of_blocks, counts = make.args
        of_variants[name] = [*channels, *of_blocks, *counts]
    with_blocks = range(2, 5)
    variant = closest(
        [*map(widths.get, range(5)), *map(inner.get, with_blocks), *map(blocks.get, with_blocks)],
        of_variants,
    )
    classes = output_count(state, "head.classifier.5")
    return Recognized(variant, form_by_norms(state, "backbone."), classes)
