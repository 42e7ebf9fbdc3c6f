"""A backbone that a test adds: convolutions and nothing else."""

from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from ..errors import ModelError
from ..layers import ConvBN
from . import Pretrained, Recognized, State
from ._defaults import convert as convert
from ._recognition import closest, form_by_norms, has, output_count, sizes

OPTIONS = ("bias",)
VERSIONS = ()
WEIGHTS: dict[str, Pretrained] = {}


class Straight(nn.Module):
    """image (N, 3, H, W) -> features at strides 4, 8, 16 and 32."""

    def __init__(self, width: int, *, drop_path: float, output_stride: int, bias: bool = True):
        super().__init__()
        if drop_path or output_stride != 32:
            raise ModelError("straight networks have neither drop path nor another stride than 32")
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.bias = bias
        self.channels: list[int] = widths
        self.strides: list[int] = [4, 8, 16, 32]
        self.stem = nn.Sequential(ConvBN(3, width, 3, stride=2), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(ConvBN(before, after, 3, stride=2), nn.ReLU())
            for before, after in pairwise([width, *widths])
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        linear = nn.Linear(self.channels[-1], classes, bias=self.bias)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


VARIANTS = {"straight_s": partial(Straight, 4), "straight_m": partial(Straight, 8)}


def recognize(state: State) -> Recognized | None:
    if not has(state, r"backbone\.stages\.3\.0\.") or has(state, r"backbone\.stages\.\d\.1\."):
        return None
    widths = sizes(state, r"backbone\.stages\.(\d)\.0\.(?:0\.)?weight")
    variant = closest([widths.get(0)], {name: make.args for name, make in VARIANTS.items()})
    options = {"bias": "head.classifier.2.bias" in state}
    return Recognized(
        variant,
        form_by_norms(state, "backbone."),
        output_count(state, "head.classifier.2"),
        options,
    )
