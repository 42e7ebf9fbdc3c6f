"""Preprocessing inside the exported graph: pixels in, so that an app only has to decode and resize."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UsageError


class Preprocessed(nn.Module):
    """Pixels 0..255 (N, C, H, W), float or uint8, at the size of `model` -> what it makes of them.

    Three channels are RGB. `mean` and `std` are on the scale 0..1 and in the channel order of the
    network. Reordering the channels and (x / 255 - mean) / std is one 1x1 convolution, which every
    runtime has. In eval or training mode as `model` is.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        channel_order: str = "RGB",
    ):
        super().__init__()
        if channel_order not in ("RGB", "BGR"):
            raise UsageError(f"channel_order is {channel_order!r}; allowed: 'RGB', 'BGR'")
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        weight = torch.diag(scale)  # (network channel, RGB channel)
        weight = weight.flip(1) if channel_order == "BGR" else weight
        self.normalize = nn.Conv2d(len(mean), len(mean), 1, device=like.device, dtype=like.dtype)
        self.normalize.weight = nn.Parameter(weight[:, :, None, None].to(like), requires_grad=False)
        self.normalize.bias = nn.Parameter(shift.to(like), requires_grad=False)
        self.model = model
        self.train(model.training)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(self.normalize(image.to(self.normalize.weight.dtype)))
