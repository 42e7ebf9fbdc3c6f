"""A backbone as small as one can be: for tests of what is done with a network, not of networks."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fleetnet.backbones import fasternet
from fleetnet.tasks import Model, build

CHANNELS, STRIDES = [8, 12, 16, 24, 32], [2, 4, 8, 16, 32]


class Tiny(nn.Module):
    """Five strided 3x3 convolutions, each with its batch norm."""

    def __init__(self, drop_path: float = 0.0, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        self.channels, self.strides = CHANNELS, STRIDES
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in pairwise([in_channels, *CHANNELS])
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [image]  # (N, in_channels, H, W)
        for stage in self.stages:
            features.append(stage(features[-1]))  # (N, CHANNELS[i], H / STRIDES[i], W / STRIDES[i])
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
