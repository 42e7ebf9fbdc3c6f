"""Random brightness, contrast, saturation and hue of pictures as bytes: torchvision's, in fewer passes.

torchvision's transforms draw the numbers, and what comes of them is that of its functions for
tensors, to one level a step. Between the steps values are whole numbers, as there.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from ..channels import RGB

GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision has it


class Jitter:
    """Brightness, contrast and saturation, each by a factor around 1, in a random order."""

    def __init__(self, strength: float):
        # No hue: that takes longer than all the rest.
        self.numbers = v2.ColorJitter(strength, strength, strength)

    def __call__(self, picture: Tensor) -> Tensor:
        """A picture (C, h, w) uint8 -> another; what came in stays as it is."""
        drawn: dict[str, Any] = self.numbers.make_params([])
        values = _floats(picture)
        for step in drawn["fn_idx"].tolist():
            if step == 0:
                brighten(values, drawn["brightness_factor"])
            elif step == 1:
                contrast(values, drawn["contrast_factor"])
            elif step == 2:
                saturate(values, drawn["saturation_factor"])
        return _bytes(values, picture)


class Distortion:
    """SSD's: each of brightness, contrast, saturation, hue and the order of colors by chance.

    arXiv:1512.02325, at a strength of 0.5 as ParC-Net has it.
    """

    def __init__(self, strength: float):
        around = (max(0.0, 1 - strength), 1 + strength)
        lights = (max(0.0, 1 - 0.4 * strength), 1 + 0.4 * strength)
        hue = min(0.1 * strength, 0.5)
        self.numbers = v2.RandomPhotometricDistort(lights, around, around, (-hue, hue))

    def __call__(self, picture: Tensor) -> Tensor:
        """A picture (C, h, w) uint8 -> another; what came in stays as it is.

        Hue and the order of colors are those of RGB, and others stay without.
        """
        drawn: dict[str, Any] = self.numbers.make_params([picture])
        if len(picture) != RGB:
            drawn |= {"hue_factor": None, "channel_permutation": None}
        values = _floats(picture)
        if drawn["brightness_factor"] is not None:
            brighten(values, drawn["brightness_factor"])
        if drawn["contrast_factor"] is not None and drawn["contrast_before"]:
            contrast(values, drawn["contrast_factor"])
        if drawn["saturation_factor"] is not None:
            saturate(values, drawn["saturation_factor"])
        if drawn["hue_factor"] is not None:
            shift_hue(values, drawn["hue_factor"])
        if drawn["contrast_factor"] is not None and not drawn["contrast_before"]:
            contrast(values, drawn["contrast_factor"])
        distorted = _bytes(values, picture)
        order = drawn["channel_permutation"]
        return distorted if order is None else distorted[order]


# Steps --------------------------------------------------------------------------------------------

# Values are (h * w, C) floats that hold whole numbers from 0 to 255, and are changed in place.


def brighten(values: Tensor, factor: float) -> None:
    _whole(values.mul_(factor))


def contrast(values: Tensor, factor: float) -> None:
    """Further from, or nearer to, the average of the picture's gray."""
    means = values.mean(0)
    gray = means @ means.new_tensor(GRAY) if len(means) == RGB else means.mean()
    # torchvision's gray is rounded down, pixel by pixel
    _whole(values.mul_(factor).add_((1 - factor) * (gray - 0.5).clamp(min=0).round()))


def saturate(values: Tensor, factor: float) -> None:
    """Further from, or nearer to, the gray of each pixel; pictures without colors stay."""
    if values.shape[1] != RGB:
        return
    to_gray = values.new_tensor(GRAY)[:, None].expand(RGB, RGB)
    mixed = factor * torch.eye(RGB) + (1 - factor) * to_gray
    _whole(values.copy_(values @ mixed))


def shift_hue(values: Tensor, shift: float) -> None:
    """Colors turned by a share of the circle; of RGB."""
    red, green, blue = values.T.contiguous()
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    spread = most - least
    per_spread = spread.clamp(min=1).reciprocal_()  # whole numbers: 0, of gray, or at least 1
    of_red = (green - blue).mul_(per_spread)
    of_green = (blue - red).mul_(per_spread).add_(2)
    of_blue = (red - green).mul_(per_spread).add_(4)
    hue = torch.where(red == most, of_red, torch.where(green == most, of_green, of_blue))
    hue.add_(6 * shift)  # in sixths of the circle, red at 0, green at 2, blue at 4
    hue.sub_((hue / 6).floor_(), alpha=6)
    shares = (
        (hue - 3).abs_().sub_(1),
        (hue - 2).abs_().neg_().add_(2),
        (hue - 4).abs_().neg_().add_(2),
    )
    for channel, share in enumerate(shares):
        values[:, channel] = torch.addcmul(least, spread, share.clamp_(0, 1))
    _whole(values.add_(1e-3))  # against rounding just below a whole number


def _whole(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).floor_()


def _floats(picture: Tensor) -> Tensor:
    """A picture (C, h, w) as (h * w, C)."""
    rows = picture.permute(1, 2, 0).to(torch.float32, memory_format=torch.contiguous_format)
    return rows.flatten(0, 1)


def _bytes(values: Tensor, like: Tensor) -> Tensor:
    """(h * w, C) as a picture (C, h, w) of the size of another."""
    # NumPy's conversion takes a quarter of the time of torch's
    pixels = torch.from_numpy(values.numpy().astype(np.uint8))
    return pixels.unflatten(0, like.shape[1:]).permute(2, 0, 1)
