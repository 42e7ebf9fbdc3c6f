"""FasterNet -- Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks.

Chen et al., CVPR 2023, arXiv:2303.03667. Code: github.com/JierunChen/FasterNet.

The claim: depthwise convolution has few FLOPs but runs slowly, because it is bound by memory
access. Convolve only the first quarter of the channels and leave the rest untouched (PConv); two
pointwise convolutions then mix all channels. At ratio r = 1/4 PConv needs 1/16 of the FLOPs and 1/4
of the memory access of a full convolution.

    image (3, H, W)
      stem    conv 4x4 / 4              (C, H/4, W/4)
      stage 1 blocks                    (C, H/4, W/4)     ->  feature 0
      merge   conv 2x2 / 2, then blocks (2C, H/8, W/8)    ->  feature 1
      merge   conv 2x2 / 2, then blocks (4C, H/16, W/16)  ->  feature 2
      merge   conv 2x2 / 2, then blocks (8C, H/32, W/32)  ->  feature 3

    block:  x + conv1x1(act(bn(conv1x1(pconv(x)))))

Sizes round down: the unpadded stem and merges drop the last rows and columns of a size that their
stride does not divide. The smallest image is `output_stride` pixels in both directions.

Differs from the authors' code: PConv is always split and concatenated; their in-place slicing, used
at inference, gives the same values only since they added a copy. Their detection backbone's extra
batch norm on each feature is the option `output_norm`. `mixing` replaces PConv by what the paper
compares it with. `output_stride` is ours: a merge that no longer strides is a 2x2 convolution with
the dilation reached so far, padded below and to the right; the 3x3 convolutions after it double
their dilation. So every second pixel of the dilated feature is the strided network's.
"""

import re
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from ..errors import ModelError, UsageError, suggest
from ..layers import ConvBN, check_batch, drop_rates
from ..pconv import PConv
from ..preprocess import Preprocess
from . import Option, Pretrained, Recognized, State
from ._recognition import closest, depths, form_by_norms, has, output_count, sizes

OPTIONS = ("mixing", "output_norm")
VERSIONS = ()
MIXINGS = ("pconv", "conv", "dwconv", "pwconv")


def spatial_mixing(kind: str, channels: int, dilation: int) -> nn.Module:
    """PConv, or what the paper compares it with: a full, a depthwise, or no (pointwise) 3x3 convolution."""
    if kind == "pconv":
        return PConv(channels, dilation)
    if kind == "pwconv":
        return nn.Conv2d(channels, channels, 1, bias=False)
    groups = channels if kind == "dwconv" else 1
    return nn.Conv2d(
        channels, channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=False
    )


class Block(nn.Module):
    def __init__(
        self, channels: int, act: type[nn.Module], mixing: str, dilation: int, drop_path: float
    ):
        super().__init__()
        self.spatial = spatial_mixing(mixing, channels, dilation)
        self.mlp = nn.Sequential(
            ConvBN(channels, 2 * channels), act(), nn.Conv2d(2 * channels, channels, 1, bias=False)
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.spatial(x)))


class Stage(nn.Module):
    """(N, before, h, w) -> (N, channels, h / stride, w / stride), rounded down; at stride 1 the size stays."""

    def __init__(
        self,
        before: int,
        channels: int,
        patch: int,
        stride: int,
        dilation: int,
        blocks: list[Block],
    ):
        super().__init__()
        self.pad = 0 if stride > 1 else dilation * (patch - 1)  # below and to the right
        self.merge = ConvBN(before, channels, patch, stride, padding=0, dilation=dilation)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            x = F.pad(x, (0, self.pad, 0, self.pad))
        return self.blocks(self.merge(x))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class FasterNet(nn.Module):
    """image (N, in_channels, H, W), H and W at least `output_stride` -> four features; see the file's head.

    `width`: channels of the first stage; `mixing`: pconv | conv | dwconv | pwconv; `output_norm`: a
    batch norm on each feature, as in the authors' detectors. Their drop path is 0 for t0, .02 t1,
    .05 t2, .1 s, .2 m, .3 l.
    """

    def __init__(
        self,
        width: int,
        depths: tuple[int, ...],
        act: type[nn.Module],
        drop_path: float = 0.0,
        output_stride: int = 32,
        mixing: str = "pconv",
        output_norm: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        if mixing not in MIXINGS:
            raise UsageError(f"FasterNet has no mixing {mixing!r}: {suggest(str(mixing), MIXINGS)}")
        self.channels = [width * 2**i for i in range(len(depths))]
        self.strides: list[int] = []
        self.act = act
        stages: list[Stage] = []
        drop = iter(drop_rates(drop_path, sum(depths)))
        before, total, dilation = in_channels, 1, 1
        for channels, depth in zip(self.channels, depths, strict=True):
            patch = 2 if stages else 4
            stride = patch if total * patch <= output_stride else 1
            rate = dilation * patch // stride
            blocks = [Block(channels, act, mixing, rate, next(drop)) for _ in range(depth)]
            stages.append(Stage(before, channels, patch, stride, dilation, blocks))
            before, total, dilation = channels, total * stride, rate
            self.strides.append(total)
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c) if output_norm else nn.Identity() for c in self.channels
        )
        self.apply(_init)

    def forward(self, image: Tensor) -> list[Tensor]:
        if min(image.shape[-2:]) < self.strides[-1]:
            raise ModelError(
                f"FasterNet at output stride {self.strides[-1]} needs an image of at least "
                f"{self.strides[-1]} pixels in both directions, got "
                f"{image.shape[-2]}x{image.shape[-1]} (height x width)"
            )
        check_batch(self, image, self.strides[-1])
        features, x = [], image
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            features.append(norm(x))
        return features

    def classifier(self, classes: int) -> nn.Module:
        """(N, 8C, h, w) -> (N, classes)"""
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(self.channels[-1], 1280, 1, bias=False),
            self.act(),
            nn.Flatten(),
            nn.Linear(1280, classes),
        )
        return head.apply(_init)


VARIANTS = {  # parameters with a classifier of 1000 classes
    "fasternet_t0": partial(FasterNet, 40, (1, 2, 8, 2), nn.GELU),  #  3,905,500
    "fasternet_t1": partial(FasterNet, 64, (1, 2, 8, 2), nn.GELU),  #  7,595,368
    "fasternet_t2": partial(FasterNet, 96, (1, 2, 8, 2), nn.ReLU),  # 14,982,888
    "fasternet_s": partial(FasterNet, 128, (1, 2, 13, 2), nn.ReLU),  # 31,181,032
    "fasternet_m": partial(FasterNet, 144, (3, 4, 18, 3), nn.ReLU),  # 53,521,464
    "fasternet_l": partial(FasterNet, 192, (3, 4, 18, 3), nn.ReLU),  # 93,465,192
}


def _published(name: str, top1: float) -> Pretrained:
    license = "apache-2.0 as labeled by timm; the authors' repository names none"
    preprocess = Preprocess((224, 224), crop=1.0, interpolation="bicubic")
    return Pretrained(f"hf-hub:timm/{name}.in1k", license, top1, "timm", preprocess)


WEIGHTS = {  # the authors' weights as timm hosts them; their own crop is .9
    "fasternet_t0": _published("fasternet_t0", 71.732),
    "fasternet_t1": _published("fasternet_t1", 75.922),
    "fasternet_t2": _published("fasternet_t2", 78.738),
    "fasternet_s": _published("fasternet_s", 81.328),
    "fasternet_m": _published("fasternet_m", 82.848),
    "fasternet_l": _published("fasternet_l", 83.516),
}


def convert(state: State) -> State:
    """The authors' names (classifier, detection backbone, batch norms fused) or timm's to ours.

    Their list alternates stages (even) and merges (odd); timm keeps a merge with the stage after
    it, as we do.
    """
    authors = any(re.match(r"stages\.\d+\.reduction\.", key) for key in state)

    def place(conv: str) -> str:  # where a convolution goes: into a ConvBN, or fused
        return "" if f"{conv}.bias" in state else ".0"

    def rename(key: str) -> str:
        name = re.sub(r"^stages_(\d+)\.", r"stages.\1.", key)  # timm's features_only
        if match := re.match(r"patch_embed\.(proj|norm)\.(.+)", name):
            return f"backbone.stages.0.merge{place('patch_embed.proj') if match[1] == 'proj' else '.1'}.{match[2]}"
        if match := re.match(r"stages\.(\d+)\.(?:downsample\.)?(reduction|norm)\.(.+)", name):
            stage = (int(match[1]) + 1) // 2 if authors else match[1]
            conv = key.removesuffix("." + match[3])
            return f"backbone.stages.{stage}.merge{place(conv) if match[2] == 'reduction' else '.1'}.{match[3]}"
        if match := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
            stage = int(match[1]) // 2 if authors else match[1]
            inner = match[3].replace("spatial_mixing.partial_conv3.", "spatial.conv.")
            inner = inner.replace("mlp.0.", f"mlp.0{place(key.rpartition('.')[0])}.").replace(
                "mlp.1.", "mlp.0.1."
            )
            return f"backbone.stages.{stage}.blocks.{match[2]}.{inner.replace('mlp.3.', 'mlp.2.')}"
        if match := re.match(r"norm([0246])\.(.+)", name):
            return f"backbone.norms.{int(match[1]) // 2}.{match[2]}"
        name = re.sub(
            r"^(avgpool_pre_head\.1|conv_head)\.weight$", "head.classifier.1.weight", name
        )
        return re.sub(r"^(head|classifier)\.(weight|bias)$", r"head.classifier.4.\2", name)

    return {rename(key): value for key, value in state.items()}


def recognize(state: State) -> Recognized | None:
    """FasterNet's stages have `blocks` with a `spatial` convolution each."""
    if not has(state, r"backbone\.stages\.\d\.blocks\.\d+\.spatial\."):
        return None
    widths = sizes(state, r"backbone\.stages\.(\d)\.merge\.(?:0\.)?weight")
    blocks = depths(state, r"backbone\.stages\.(\d)\.blocks\.(\d+)\.")
    of_variants = {}
    for name, make in VARIANTS.items():
        width, counts, _ = make.args
        of_variants[name] = [*(width * 2**stage for stage in range(4)), *counts]
    variant = closest([*map(widths.get, range(4)), *map(blocks.get, range(4))], of_variants)
    options: dict[str, Option] = {"output_norm": has(state, r"backbone\.norms\.")}
    if mixing := _mixing(state):
        options["mixing"] = mixing
    form = form_by_norms(state, "backbone.stages.")  # the norms of the features do not collapse
    return Recognized(variant, form, output_count(state, "head.classifier.4"), options)


def _mixing(state: State) -> str | None:
    """The kind of spatial mixing of a state in our names, by the shapes of its kernels."""
    if has(state, r"backbone\.stages\.\d\.blocks\.\d+\.spatial\.conv\."):
        return "pconv"
    kernels = r"backbone\.stages\.(\d)\.blocks\.\d+\.spatial\.weight"
    inputs, heights = sizes(state, kernels, 1), sizes(state, kernels, 2)
    if not heights:
        return None
    if set(heights.values()) == {1}:
        return "pwconv"
    return "dwconv" if set(inputs.values()) == {1} else "conv"
