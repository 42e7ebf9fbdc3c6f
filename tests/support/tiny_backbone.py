"""A backbone as small as one can be: for tests of what is done with a network, not of networks."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fleetnet.backbones import fasternet
from fleetnet.tasks import Model, build

CHANNELS, STRIDES = [8, 12, 16, 24, 32], [2, 4, 8, 16, 32]


class Tiny(nn.Module):
    """Five strided 3x3 convolutions, each with its batch norm; the last keeps the size at stride 16."""

    def __init__(self, drop_path: float = 0.0, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        self.channels = CHANNELS
        self.strides = [min(stride, output_stride) for stride in STRIDES]
        channels, strides = [in_channels, *CHANNELS], [1, *self.strides]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=larger // smaller, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for (before, after), (smaller, larger) in zip(
                pairwise(channels), pairwise(strides), strict=True
            )
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [image]  # (N, in_channels, H, W)
        for stage in self.stages:
            features.append(stage(features[-1]))  # (N, CHANNELS[i], H / strides[i], W / strides[i])
        return features[1:]

    def classifier(self, classes: int) -> nn.Module:
        linear = nn.Linear(CHANNELS[-1], classes)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def offer_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tiny` a name of a backbone."""
    monkeypatch.setitem(fasternet.VARIANTS, "tiny", Tiny)


def tiny(task: str, classes: int) -> Model:
    """The same network each time."""
    torch.manual_seed(0)
    return build("tiny" if task == "classification" else f"{task}/tiny", classes)
