"""MobileOne -- An Improved One millisecond Mobile Backbone.

Vasu et al., CVPR 2023, arXiv:2206.04040. Code: github.com/apple/ml-mobileone.

The claim: FLOPs and parameters do not predict latency on a phone; branches and synchronization
points cost it. So deploy a plain chain of depthwise and pointwise convolutions, as MobileNetV1 is,
and train each as a sum of branches.

    image (3, H, W)
      stem      1 convolution 3x3 / 2   (C0, H/2, W/2)    ->  feature 0
      stage 1   2 blocks, the first / 2 (C1, H/4, W/4)    ->  feature 1
      stage 2   8 blocks, the first / 2 (C2, H/8, W/8)    ->  feature 2
      stage 3  10 blocks, the first / 2 (C3, H/16, W/16)  ->  feature 3
      stage 4   1 block,  the first / 2 (C4, H/32, W/32)  ->  feature 4

    block:    depthwise 3x3, then pointwise 1x1; each of the two is
    trained:  relu(se(sum of k x bn(conv(x)) + bn(conv1x1(x)) + bn(x)))   conv1x1 only beside 3x3, bn(x) only where
    deployed: relu(se(conv(x)))                                           channels and size stay; se only in s4

Sizes round up; any size works. k is 4 in s0, 1 elsewhere, and always 1 in the stem: option
`branches`.

The option `norm` says where the batch norms are: "in_branches", the paper's, or "after_sum", which
is meant to be quantized:

    trained:  relu(se(bn(sum of k x bn(conv(x)) + conv1x1(x) + x)))

Normalized branches that learned alike add up, others cancel: the sums of different channels have
very different ranges, and one int8 scale for all of them serves the small ones badly. Behind a
norm, a channel's range is that of its gamma (QARepVGG, Chu et al., arXiv:2212.01593; RepViT's
current block is of the same form).

Differs from the authors' code: nothing in the values. Initial weights are normal with variance 2 /
fan-out, and the scale of the batch norms beside a skip begins below one, so that the untrained
network is nearly a residual one: 43 plain layers in a row learn slowly from little data. A 1x1
branch with a stride slices its input and convolves at stride 1, since torch's strided one corrupts
memory on CPU (oneDNN, channels_last, backward). `output_stride` is ours: a depthwise convolution
that no longer strides takes the dilation reached so far, those after it twice that. There is no
residual to drop, so drop path must be 0.
"""

import re
from functools import partial
from typing import cast

from torch import Tensor, nn

from ..errors import UsageError, suggest
from ..layers import ConvBN, SqueezeExcite, check_batch
from ..merged import Branch, BranchSum
from ..preprocess import Preprocess
from ..reparam import Kernel, as_conv, fold_bn, identity, kernel, merge
from . import Option, Pretrained, Recognized, State
from ._recognition import closest, depths, form_by_norms, has, output_count, sizes

OPTIONS = ("branches", "norm")
VERSIONS = ()
NORMS = ("in_branches", "after_sum")
SHARE = 0.2  # of the skip's variance, with which the sum of the other branches begins
DEPTHS = (2, 8, 10, 1)  # of stages 1 to 4; the paper's table shows the third in two halves


class Branches(BranchSum):
    """A sum of linear branches, which is one convolution: (N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        dilation: int,
        groups: int,
        count: int,
        skip: bool,
        norm: str = "in_branches",
    ):
        super().__init__()
        self.stride = stride
        convs = [
            ConvBN(inputs, outputs, size, stride, groups, dilation=dilation) for _ in range(count)
        ]
        self.convs = nn.ModuleList(convs)
        self.scale: ConvBN | nn.Conv2d | None = None
        self.skip: nn.BatchNorm2d | nn.Identity | None = None
        self.norm = nn.BatchNorm2d(outputs) if norm == "after_sum" else None
        if size > 1:
            self.scale = (
                ConvBN(inputs, outputs, 1, groups=groups)
                if self.norm is None
                else nn.Conv2d(inputs, outputs, 1, groups=groups)
            )
        if skip:
            self.skip = nn.BatchNorm2d(outputs) if self.norm is None else nn.Identity()
        branches: list[ConvBN | nn.Conv2d] = (
            [*convs] if self.scale is None else [*convs, self.scale]
        )
        # With a skip, the branches together begin with SHARE of its variance; initial values: see
        # the file's head.
        gain = (SHARE / len(branches)) ** 0.5 if skip else 1.0
        for branch in branches:
            conv = branch.conv if isinstance(branch, ConvBN) else branch
            fan_out = conv.weight[0, 0].numel() * outputs // groups
            nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
            if isinstance(branch, ConvBN):
                nn.init.constant_(branch.norm.weight, gain)
            else:
                conv.weight.data.mul_(gain)
                nn.init.zeros_(cast(Tensor, conv.bias))

    def branches(self) -> list[Branch]:
        convs = cast(list[ConvBN], list(self.convs))
        branches = [conv.branch() for conv in convs]
        if isinstance(self.scale, ConvBN):
            branches.append(self.scale.branch())
        elif self.scale is not None:
            branches.append(Branch(self.scale.weight, self.scale.bias, None))
        if self.skip is not None:
            # a synchronized norm is no BatchNorm2d
            norm = None if isinstance(self.skip, nn.Identity) else self.skip
            branches.append(Branch(None, None, norm))
        return branches

    def after(self) -> nn.BatchNorm2d | None:
        return self.norm

    def geometry(self) -> nn.Conv2d:
        return cast(ConvBN, self.convs[0]).conv

    def branch_by_branch(self, x: Tensor) -> Tensor:
        first, *others = self.convs
        total = first(x)
        for conv in others:
            total = total + conv(x)
        if self.scale is not None:  # the same centers as the strided 3x3: see the file's head
            total = total + self.scale(
                x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
            )
        if self.skip is not None:
            total = total + self.skip(x)
        return total if self.norm is None else self.norm(total)

    def kernel(self) -> Kernel:
        convs = cast(list[ConvBN], list(self.convs))
        kernels = [conv.kernel() for conv in convs]
        if self.scale is not None:
            kernels.append(
                self.scale.kernel() if isinstance(self.scale, ConvBN) else kernel(self.scale)
            )
        if self.skip is not None:
            conv = convs[0].conv
            unit = identity(conv.out_channels, conv.groups, conv.kernel_size[0], conv.weight.device)
            kernels.append(unit if isinstance(self.skip, nn.Identity) else fold_bn(unit, self.skip))
        total = merge(*kernels)
        return total if self.norm is None else fold_bn(total, self.norm)

    def fuse(self) -> nn.Conv2d:
        return as_conv(self.kernel(), like=cast(ConvBN, self.convs[0]).conv)


class Convolution(nn.Module):
    """relu(se(sum of branches)): half a block, or the stem."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        count: int = 1,
        skip: bool = False,
        se: bool = False,
        norm: str = "in_branches",
    ):
        super().__init__()
        self.branches = Branches(inputs, outputs, size, stride, dilation, groups, count, skip, norm)
        self.se = SqueezeExcite(outputs, outputs // 16) if se else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(self.branches(x)))


class MobileOne(nn.Module):
    """image (N, in_channels, H, W) -> five features; see the file's head.

    `channels` of the stem and the four stages; `branches`: k, at least 1; `se`: how many of the
    last blocks of each stage have squeeze-and-excite, in both of their convolutions; `norm`:
    in_branches | after_sum.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        se: tuple[int, ...] = (0, 0, 0, 0),
        drop_path: float = 0.0,
        output_stride: int = 32,
        branches: int = 1,
        norm: str = "in_branches",
        in_channels: int = 3,
    ):
        super().__init__()
        if norm not in NORMS:
            raise UsageError(f"MobileOne has no norm {norm!r}: {suggest(str(norm), NORMS)}")
        if branches < 1:
            raise UsageError(f"MobileOne's branches is {branches}; allowed: at least 1")
        if drop_path:
            raise UsageError(
                f"drop_path is {drop_path}, but MobileOne has no residual to drop; allowed: 0"
            )
        self.channels = list(channels)
        self.strides = [2]
        stem = Convolution(in_channels, channels[0], 3, stride=2, norm=norm)
        stages = [nn.Sequential(stem)]
        before, total, dilation = channels[0], 2, 1
        for outputs, depth, with_se in zip(channels[1:], DEPTHS, se, strict=True):
            stride = 2 if total < output_stride else 1
            rate = dilation * 2 // stride
            stage = []
            for i in range(depth):
                first, gate = i == 0, i >= depth - with_se
                stage += [
                    Convolution(
                        before, before, 3, stride if first else 1, dilation if first else rate,
                        groups=before, count=branches, skip=not first, se=gate, norm=norm,
                    ),
                    Convolution(before, outputs, 1, count=branches, skip=before == outputs, se=gate, norm=norm),
                ]  # fmt: skip
                before = outputs
            stages.append(nn.Sequential(*stage))
            total, dilation = total * stride, rate
            self.strides.append(total)
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        check_batch(self, image, self.strides[-1])
        features, x = [], image
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def classifier(self, classes: int) -> nn.Module:
        """(N, C4, h, w) -> (N, classes)"""
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], classes)
        )


VARIANTS = {  # parameters with a classifier of 1000 classes, multi-branch -> deploy
    "mobileone_s0": partial(
        MobileOne, (48, 48, 128, 256, 1024), branches=4
    ),  # 5,293,272 -> 2,078,504
    "mobileone_s1": partial(MobileOne, (64, 96, 192, 512, 1280)),  # 4,825,192 -> 4,764,840
    "mobileone_s2": partial(MobileOne, (64, 96, 256, 640, 2048)),  # 7,884,648 -> 7,808,168
    "mobileone_s3": partial(MobileOne, (64, 128, 320, 768, 2048)),  # 10,170,600 -> 10,078,312
    "mobileone_s4": partial(
        MobileOne, (64, 192, 448, 896, 2048), se=(0, 0, 5, 1)
    ),  # 14,951,248 -> 14,838,352
}


def _published(name: str, top1: float, crop: float) -> Pretrained:
    license = "Apple MobileOne license (github.com/apple/ml-mobileone)"
    preprocess = Preprocess((224, 224), crop=crop)
    return Pretrained(f"hf-hub:timm/{name}.apple_in1k", license, top1, "timm", preprocess)


WEIGHTS = {  # the authors' weights, multi-branch, as timm hosts them
    "mobileone_s0": _published("mobileone_s0", 71.398, 0.875),
    "mobileone_s1": _published("mobileone_s1", 75.760, 0.9),
    "mobileone_s2": _published("mobileone_s2", 77.504, 0.9),
    "mobileone_s3": _published("mobileone_s3", 78.002, 0.9),
    "mobileone_s4": _published("mobileone_s4", 79.446, 0.9),
}

_RENAMES = (  # authors' | timm's -> ours; the first match of each line, in this order
    (r"^(stage0|stem)\.", "backbone.stages.0.0."),
    (r"^stage(\d)\.(\d+)\.", r"backbone.stages.\1.\2."),
    (r"\.(rbr_conv|conv_kxk)\.(\d+)\.conv\.", r".branches.convs.\2.0."),
    (r"\.(rbr_conv|conv_kxk)\.(\d+)\.bn\.", r".branches.convs.\2.1."),
    (r"\.(rbr_scale|conv_scale)\.conv\.", ".branches.scale.0."),
    (r"\.(rbr_scale|conv_scale)\.bn\.", ".branches.scale.1."),
    (r"\.(rbr_skip|identity)\.", ".branches.skip."),
    (r"\.reparam_conv\.", ".branches."),
    (r"\.attn\.fc1\.", ".se.reduce."),
    (r"\.attn\.fc2\.", ".se.expand."),
    (r"^(linear|head\.fc)\.", "head.classifier.2."),
)


def convert(state: State) -> State:
    """The authors' names or timm's, of either form, to ours."""

    def rename(key: str) -> str:
        name = re.sub(  # timm counts its stages from the first after the stem; features_only writes stages_0
            r"^stages[._](\d+)\.", lambda match: f"backbone.stages.{int(match[1]) + 1}.", key
        )
        for pattern, ours in _RENAMES:
            name = re.sub(pattern, ours, name)
        return name

    return {rename(key): value for key, value in state.items()}


def recognize(state: State) -> Recognized | None:
    """Every convolution of MobileOne's is a sum of `branches`, in the deploy form too."""
    if not has(state, r"backbone\.stages\.\d\.\d+\.branches\."):
        return None
    weight = r"\.branches\.(?:convs\.\d+\.0\.)?weight"  # of a branch, or of the one convolution
    of_stem = sizes(state, rf"backbone\.stages\.(0)\.0{weight}")
    pointwise = sizes(state, rf"backbone\.stages\.([1-4])\.\d*[13579]{weight}")
    widths = {**of_stem, **pointwise}
    of_variants = {name: make.args[0] for name, make in VARIANTS.items()}
    variant = closest(list(map(widths.get, range(5))), of_variants)
    form = form_by_norms(state, "backbone.")
    options: dict[str, Option] = {}
    if form == "multi-branch":
        after_sum = has(state, r"backbone\..+\.branches\.norm\.")
        options["norm"] = "after_sum" if after_sum else "in_branches"
    if branches := depths(state, r"backbone\.stages\.([1-4])\.\d+\.branches\.convs\.(\d+)\."):
        options["branches"] = max(branches.values())
    return Recognized(variant, form, output_count(state, "head.classifier.2"), options)
