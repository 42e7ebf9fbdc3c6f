"""What tasks share around their networks: the decode in the graph, and the input of the authors' networks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Decoded(nn.Module):
    """image (N, 3, H, W) -> what `decode(outputs, (H, W))` makes of the model's outputs; in the model's mode."""

    def __init__(self, model: nn.Module, decode: Callable[[Any, tuple[int, int]], dict[str, Tensor]]):
        super().__init__()
        self.model, self.decode = model, decode
        self.train(model.training)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.decode(self.model(image), (image.shape[-2], image.shape[-1]))


def of_authors(size: tuple[int, int]) -> dict[str, Any]:
    """What ParC-Net's networks with heads expect of an image: OpenCV's order and resizing, the picture squashed."""
    return {
        "size": list(size), "crop": 1.0, "interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3,
        "channel_order": "BGR", "antialias": False, "mode": "stretch",
    }  # fmt: skip
