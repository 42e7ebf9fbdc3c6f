"""RepViT -- Revisiting Mobile CNN From ViT Perspective.

Wang et al., CVPR 2024, arXiv:2307.09283. Code: github.com/THU-MIG/RepViT.

The claim: MobileNetV3-L, redesigned step by step after lightweight ViTs, beats them on a phone. A
block separates token mixing (depthwise 3x3, trained as three branches) from channel mixing (an MLP
with a residual), as a MetaFormer does.

    image (3, H, W)
      stem    conv 3x3 / 2, gelu, conv 3x3 / 2  (C, H/4, W/4)
      stage 1 blocks                            (C, H/4, W/4)     ->  feature 0
      stage 2 downsample, then blocks           (2C, H/8, W/8)    ->  feature 1
      stage 3 downsample, then blocks           (4C, H/16, W/16)  ->  feature 2
      stage 4 downsample, then blocks           (8C, H/32, W/32)  ->  feature 3

    block:       x = se(RepVGGDW(x));                        x + mlp(x)    se in every second block
    downsample:  x = bn(conv1x1(bn(depthwise 3x3 / 2 (x)))); x + mlp(x)
    mlp:         bn(conv1x1(gelu(bn(conv1x1(x)))))           twice the channels inside; the last bn starts at 0
    RepVGGDW:    bn(bn(conv3x3(x)) + conv1x1(x) + x)         the first version: bn(conv3x3(x)) + bn(conv1x1(x)) + x

The last block of stages 1 to 3 is the "pre-block" of the downsampling after it. The option `taps`
says which map is a feature: "last", the pre-block's output, as in the authors' segmentation; or
"before_pre_block", its input, as in their detectors and timm. Sizes round up; any size works.

Differs from the authors' code: the two heads give their mean in training too, with `both` for a
distillation loss on each; theirs return a pair in training. Only what knows how to fuse is fused;
theirs removes every batch norm left. Their residual's drop is 0 everywhere: `drop_path` acts on the
MLP. `output_stride` is ours: a depthwise convolution that no longer strides takes the dilation
reached so far, those after it twice that.
"""

import re
from collections import Counter
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..errors import ModelError, UsageError, suggest
from ..layers import ConvBN, SqueezeExcite, check_batch, drop_rates
from ..merged import Branch, BranchSum
from ..preprocess import Preprocess
from ..reparam import as_conv, as_linear, fold_bn, identity, kernel, linear_kernel, merge
from . import Option, Pretrained, Recognized, State
from ._recognition import closest, depths, form_by_norms, has, output_count, sizes

OPTIONS = ("distillation", "taps")
TAPS = ("last", "before_pre_block")


class RepVGGDW(BranchSum):
    """Token mixer: a sum of a depthwise 3x3, a depthwise 1x1 and the input; (N, C, h, w) -> the same.

    The second version moves the batch norm of the 1x1 behind the sum, which quantizes better.
    """

    def __init__(self, channels: int, dilation: int, version: int):
        super().__init__()
        self.conv3 = ConvBN(channels, channels, 3, groups=channels, dilation=dilation)
        self.conv1: ConvBN | nn.Conv2d
        self.norm: nn.BatchNorm2d | nn.Identity
        if version == 1:
            self.conv1, self.norm = ConvBN(channels, channels, 1, groups=channels), nn.Identity()
        else:
            self.conv1, self.norm = (
                nn.Conv2d(channels, channels, 1, groups=channels),
                nn.BatchNorm2d(channels),
            )

    def branches(self) -> list[Branch]:
        if isinstance(self.conv1, ConvBN):
            pointwise = self.conv1.branch()
        else:
            pointwise = Branch(self.conv1.weight, self.conv1.bias, None)
        return [self.conv3.branch(), pointwise, Branch(None, None, None)]

    def after(self) -> nn.BatchNorm2d | None:
        return None if isinstance(self.norm, nn.Identity) else self.norm

    def geometry(self) -> nn.Conv2d:
        return self.conv3.conv

    def branch_by_branch(self, x: Tensor) -> Tensor:
        return self.norm(self.conv3(x) + self.conv1(x) + x)

    def fuse(self) -> nn.Conv2d:
        conv = self.conv3.conv
        pointwise = self.conv1.kernel() if isinstance(self.conv1, ConvBN) else kernel(self.conv1)
        unit = identity(conv.out_channels, conv.groups, 3, conv.weight.device)
        total = merge(self.conv3.kernel(), pointwise, unit)
        return as_conv(
            total if isinstance(self.norm, nn.Identity) else fold_bn(total, self.norm), like=conv
        )


def mlp(channels: int) -> nn.Sequential:
    last = ConvBN(2 * channels, channels)
    nn.init.zeros_(last.norm.weight)
    return nn.Sequential(ConvBN(channels, 2 * channels), nn.GELU(), last)


class Block(nn.Module):
    def __init__(self, channels: int, se: bool, version: int, dilation: int, drop_path: float):
        super().__init__()
        self.token_mixer = RepVGGDW(channels, dilation, version)
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)  # a quarter, to the nearest multiple of 8
        self.se = SqueezeExcite(channels, squeezed) if se else nn.Identity()
        self.channel_mixer = mlp(channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.token_mixer(x))
        return x + self.drop_path(self.channel_mixer(x))


class Downsample(nn.Module):
    """(N, C, h, w) -> (N, 2C, h / stride, w / stride), rounded up."""

    def __init__(self, channels: int, stride: int, dilation: int, drop_path: float):
        super().__init__()
        self.spatial = ConvBN(channels, channels, 3, stride, channels, dilation=dilation)
        self.pointwise = ConvBN(channels, 2 * channels)
        self.channel_mixer = mlp(2 * channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.spatial(x))
        return x + self.drop_path(self.channel_mixer(x))


class Head(nn.Sequential):
    """Batch norm (`.0`), then a linear layer (`.1`): (N, C) -> (N, classes)."""

    def __init__(self, channels: int, classes: int):
        linear = nn.Linear(channels, classes)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.BatchNorm1d(channels), linear)


class Classifier(nn.Module):
    """Mean over the pixels, then the mean of one or two heads: (N, C, h, w) -> (N, classes).

    The second head learns from a teacher; `both` gives the logits of each.
    """

    def __init__(self, channels: int, classes: int, heads: int):
        super().__init__()
        self.heads = nn.ModuleList(Head(channels, classes) for _ in range(heads))

    def both(self, x: Tensor) -> list[Tensor]:
        """The logits of each head: (N, C, h, w) -> one or two of (N, classes)."""
        x = x.mean((2, 3))
        norms_train = any(m.training for m in self.heads.modules() if isinstance(m, nn.BatchNorm1d))
        if norms_train and x.shape[0] == 1:
            raise ModelError(
                "RepViT's head has a BatchNorm1d (heads.0.0), which cannot train on a batch of "
                "one: use a batch of at least 2, or freeze the batch norms with .eval()"
            )
        return [head(x) for head in self.heads]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.both(x)
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2

    def fuse(self) -> nn.Module:
        heads = [
            cast(tuple[nn.BatchNorm1d, nn.Linear], tuple(cast(Head, head))) for head in self.heads
        ]
        kernels = [linear_kernel(linear, norm) for norm, linear in heads]
        weight, bias = (torch.stack(parts).mean(0) for parts in zip(*kernels, strict=True))
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), as_linear(weight, bias, like=heads[0][1])
        )


class RepViT(nn.Module):
    """image (N, in_channels, H, W) -> four features; see the file's head.

    `width`: channels of the first stage; `depths`: blocks of each stage without the pre-blocks;
    `version` of RepVGGDW; `distillation`: the classifier has two heads; `taps`: last |
    before_pre_block. There is no drop path in the paper.
    """

    def __init__(
        self,
        width: int,
        depths: tuple[int, ...],
        version: int = 2,
        drop_path: float = 0.0,
        output_stride: int = 32,
        distillation: bool = True,
        taps: str = "last",
        in_channels: int = 3,
    ):
        super().__init__()
        if taps not in TAPS:
            raise UsageError(f"RepViT has no taps {taps!r}: {suggest(str(taps), TAPS)}")
        self.channels = [width * 2**i for i in range(len(depths))]
        self.strides: list[int] = []
        self.distillation, self.taps = distillation, taps
        self.stem = nn.Sequential(
            ConvBN(in_channels, width // 2, 3, 2), nn.GELU(), ConvBN(width // 2, width, 3, 2)
        )
        stages = []
        last = len(depths) - 1
        # a pre-block and a downsampling between stages
        drop = iter(drop_rates(drop_path, sum(depths) + 2 * last))
        total, dilation = 4, 1
        for i, (channels, depth) in enumerate(zip(self.channels, depths, strict=True)):
            stage: list[nn.Module] = []
            if i > 0:
                stride = 2 if total < output_stride else 1
                stage.append(Downsample(channels // 2, stride, dilation, next(drop)))
                total, dilation = total * stride, dilation * 2 // stride
            for b in range(depth + (i < last)):
                se = b % 2 == 0 and b < depth  # never in the pre-block
                stage.append(Block(channels, se, version, dilation, next(drop)))
            stages.append(nn.Sequential(*stage))
            self.strides.append(total)
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        check_batch(self, image, self.strides[-1])
        features, x = [], self.stem(image)
        for stage in self.stages:
            *blocks, pre_block = cast(nn.Sequential, stage)
            for block in blocks:
                x = block(x)
            before, x = x, pre_block(x)
            features.append(
                before if self.taps == "before_pre_block" and stage is not self.stages[-1] else x
            )
        return features

    def classifier(self, classes: int) -> nn.Module:
        """(N, 8C, h, w) -> (N, classes)"""
        return Classifier(self.channels[-1], classes, heads=2 if self.distillation else 1)


VARIANTS = {  # parameters with 1000 classes: two heads -> deploy
    "repvit_m0_6": partial(RepViT, 40, (1, 1, 8, 1)),  # 2,808,932 -> 2,468,072
    "repvit_m0_9": partial(RepViT, 48, (2, 2, 14, 2)),  # 5,489,328 -> 5,067,056
    "repvit_m1_0": partial(RepViT, 56, (2, 2, 14, 2)),  # 7,302,796 -> 6,810,312
    "repvit_m1_1": partial(RepViT, 64, (2, 2, 12, 2)),  # 8,802,912 -> 8,244,312
    "repvit_m1_5": partial(RepViT, 64, (4, 4, 24, 4)),  # 14,644,432 -> 14,049,992
    "repvit_m2_3": partial(RepViT, 80, (6, 6, 34, 2)),  # 23,688,792 -> 22,926,792
    "repvit_m1": partial(RepViT, 48, (2, 2, 14, 2), version=1),  # 5,485,248 -> 5,067,056
    "repvit_m2": partial(RepViT, 64, (2, 2, 12, 2), version=1),  # 8,797,984 -> 8,244,312
    "repvit_m3": partial(RepViT, 64, (4, 4, 18, 2), version=1),  # 10,682,832 -> 10,115,720
}


def _published(name: str, top1: float) -> Pretrained:
    preprocess = Preprocess((224, 224), crop=0.95, interpolation="bicubic")
    return Pretrained(f"hf-hub:timm/{name}", "apache-2.0", top1, "timm", preprocess)


WEIGHTS = {  # the authors' distilled weights, two heads, as timm hosts them; the authors evaluate at crop .875
    "repvit_m0_6": Pretrained(
        "https://github.com/THU-MIG/RepViT/releases/download/v1.0/repvit_m0_6_distill_300e.pth",
        "apache-2.0", 74.1, "authors",
        Preprocess((224, 224), crop=0.875, interpolation="bicubic"),
    ),
    "repvit_m0_9": _published("repvit_m0_9.dist_450e_in1k", 79.058),
    "repvit_m1_0": _published("repvit_m1_0.dist_450e_in1k", 80.430),
    "repvit_m1_1": _published("repvit_m1_1.dist_450e_in1k", 81.314),
    "repvit_m1_5": _published("repvit_m1_5.dist_450e_in1k", 82.520),
    "repvit_m2_3": _published("repvit_m2_3.dist_450e_in1k", 83.746),
    "repvit_m1": _published("repvit_m1.dist_in1k", 78.542),
    "repvit_m2": _published("repvit_m2.dist_in1k", 80.468),
    "repvit_m3": _published("repvit_m3.dist_in1k", 81.494),
}  # fmt: skip

_INNER = (  # inside a block or a downsampling, authors' | timm's -> ours, in this order
    (r"^token_mixer\.0\.", "token_mixer."),
    (r"^token_mixer\.1\.", "se."),
    (r"^token_mixer\.conv\.", "token_mixer.conv3."),
    (r"^token_mixer\.bn\.", "token_mixer.norm."),
    (r"^(ffn|channel_mixer)\.(m\.0|conv1)\.", "channel_mixer.0."),
    (r"^(ffn|channel_mixer)\.(m\.2|conv2)\.", "channel_mixer.2."),
    (r"^spatial_downsample\.", "spatial."),
    (r"^channel_downsample\.", "pointwise."),
    (r"^se\.fc1\.", "se.reduce."),
    (r"^se\.fc2\.", "se.expand."),
    (r"\.c\.weight$", ".0.weight"),
    (r"\.bn\.(\w+)$", r".1.\1"),
)


def _inner(name: str) -> str:
    for pattern, ours in _INNER:
        name = re.sub(pattern, ours, name)
    return name


def convert(state: State) -> State:
    """The authors' names or timm's, of either form and either version of RepVGGDW, to ours.

    The authors number all blocks in one list, where a downsampling is known by its second
    convolution; timm keeps a pre-block with the downsampling after it. The version of RepVGGDW
    stays: see `to_current` and `to_v1`.
    """
    matches = [re.match(r"features\.([1-9]\d*)\.(token_mixer\.2\.)?", key) for key in state]
    downsamples = {int(m[1]) for m in matches if m and m[2]}
    places: dict[int, tuple[int, int]] = {}  # features.i -> stage and position in it
    stage = position = 0
    for i in sorted({int(m[1]) for m in matches if m}):
        stage, position = (stage + 1, 0) if i in downsamples else (stage, position)
        places[i] = stage, position
        position += 1
    timm = [re.match(r"stages[._](\d+)\.blocks\.(\d+)\.", key) for key in state]
    # of each stage, without the pre-block
    blocks = Counter(stage for stage, _ in {m.groups() for m in timm if m})

    def rename(key: str) -> str:
        name = re.sub(r"^stages_(\d+)\.", r"stages.\1.", key)  # timm's features_only
        if match := re.match(r"(?:features\.0\.([02])|stem\.conv([12]))\.(.+)", name):
            index = match[1] or 2 * (int(match[2]) - 1)
            return f"backbone.stem.{index}{_inner('.' + match[3])}"
        match = re.match(r"features\.(\d+)\.(.+)", name)
        if match and int(match[1]) in places:
            i, inner = int(match[1]), match[2]
            if i in downsamples:
                inner = inner.replace("token_mixer.0.", "spatial.").replace(
                    "token_mixer.2.", "pointwise."
                )
            return "backbone.stages.{}.{}.".format(*places[i]) + _inner(inner)
        if match := re.match(r"stages\.(\d+)\.downsample\.pre_block\.(.+)", name):
            stage = int(match[1]) - 1
            return f"backbone.stages.{stage}.{blocks[str(stage)] + (stage > 0)}.{_inner(match[2])}"
        if match := re.match(r"stages\.(\d+)\.downsample\.(.+)", name):
            return f"backbone.stages.{match[1]}.0.{_inner(match[2])}"
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
            return (
                f"backbone.stages.{match[1]}.{int(match[2]) + (match[1] != '0')}.{_inner(match[3])}"
            )
        if match := re.match(r"(?:classifier\.classifier|head\.head)(_dist)?\.(bn|l)\.(.+)", name):
            return f"head.classifier.heads.{int(bool(match[1]))}.{int(match[2] == 'l')}.{match[3]}"
        return re.sub(r"^(classifier|head)\.(weight|bias)$", r"head.classifier.2.\2", name)

    return {rename(key): value for key, value in state.items()}


def recognize(state: State) -> Recognized | None:
    """RepViT's blocks have a `token_mixer`. The deploy forms of both versions are alike."""
    if not has(state, r"backbone\.stages\.\d\.\d+\.token_mixer\."):
        return None
    widths = sizes(state, r"backbone\.stages\.(\d)\.\d+\.channel_mixer\.0\.(?:0\.)?weight", dim=1)
    modules = depths(state, r"backbone\.stages\.(\d)\.(\d+)\.")
    version = 1 if has(state, r"backbone\..+\.token_mixer\.conv1\.0\.") else 2
    variant = closest(
        [*map(widths.get, range(4)), *map(modules.get, range(4)), version],
        {name: _numbers(*make.args, **make.keywords) for name, make in VARIANTS.items()},
    )
    options: dict[str, Option] = {}
    if has(state, r"head\.classifier\.heads\."):
        options["distillation"] = has(state, r"head\.classifier\.heads\.1\.")
    classes = output_count(state, "head.classifier.heads.0.1", "head.classifier.2")
    return Recognized(variant, form_by_norms(state, "backbone."), classes, options)


def _numbers(width: int, depths: tuple[int, ...], version: int = 2) -> list[int]:
    """Channels and modules of each stage, and the version of the blocks."""
    last = len(depths) - 1
    # a downsampling before all stages but the first, a pre-block behind all but the last
    modules = [depth + (stage > 0) + (stage < last) for stage, depth in enumerate(depths)]
    return [*(width * 2**stage for stage in range(len(depths))), *modules, version]


EPS = 1e-5  # of every batch norm here; a variance of 1 - EPS makes a batch norm the identity


def _mixers(state: dict[str, Tensor], mark: str) -> list[str]:
    return [key.removesuffix(mark) for key in state if key.endswith(mark)]


def _scale(state: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, mean and bias of a batch norm in a state, float64."""
    value = {
        part: state[f"{norm}.{part}"].double()
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    return (
        value["weight"] * (value["running_var"] + EPS).rsqrt(),
        value["running_mean"],
        value["bias"],
    )


def _unit_norm(bias: Tensor) -> dict[str, Tensor]:
    """A batch norm that only adds a bias."""
    return {
        "weight": torch.ones_like(bias),
        "bias": bias,
        "running_mean": torch.zeros_like(bias),
        "running_var": torch.full_like(bias, 1 - EPS),
        "num_batches_tracked": torch.zeros((), dtype=torch.long),
    }


def to_current(state: State) -> State:
    """A state in our names with the first version's RepVGGDW -> the current version's; equal in eval mode only.

    A state of the current version, or of the deploy form, comes back unchanged.
    """
    state = dict(state)
    for mixer in _mixers(state, ".conv1.0.weight"):
        scale, mean, bias = _scale(state, f"{mixer}.conv1.1")
        weight = state.pop(f"{mixer}.conv1.0.weight")
        for part in _unit_norm(bias):
            state.pop(f"{mixer}.conv1.1.{part}", None)
        state[f"{mixer}.conv1.weight"] = (scale.view(-1, 1, 1, 1) * weight.double()).to(weight)
        state[f"{mixer}.conv1.bias"] = (bias - scale * mean).to(weight)
        zero = weight.new_zeros(len(scale))
        state.update({f"{mixer}.norm.{part}": value for part, value in _unit_norm(zero).items()})
    return state


def to_v1(state: State) -> State:
    """A state in our names with the current RepVGGDW -> the first version's; equal in eval mode only.

    The outer batch norm goes into the 3x3's and the 1x1's. A state of the first version comes back
    unchanged.
    """
    state = dict(state)
    for mixer in _mixers(state, ".conv1.bias"):
        scale, mean, bias = _scale(state, f"{mixer}.norm")
        for part in _unit_norm(bias):
            state.pop(f"{mixer}.norm.{part}", None)
        for part in ("weight", "bias"):
            value = state[f"{mixer}.conv3.1.{part}"]
            state[f"{mixer}.conv3.1.{part}"] = (scale * value.double()).to(value)
        weight, offset = state.pop(f"{mixer}.conv1.weight"), state.pop(f"{mixer}.conv1.bias")
        # the raw identity stays unscaled
        pointwise = scale.view(-1, 1, 1, 1) * (weight.double() + 1) - 1
        state[f"{mixer}.conv1.0.weight"] = pointwise.to(weight)
        bias = (scale * (offset.double() - mean) + bias).to(offset)
        state.update({f"{mixer}.conv1.1.{part}": value for part, value in _unit_norm(bias).items()})
    return state


VERSIONS = (to_current, to_v1)
