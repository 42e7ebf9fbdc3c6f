"""Random brightness, contrast, saturation and hue of pictures as bytes: torchvision's, in fewer passes.

torchvision's transforms draw the numbers, and what comes of them is that of its functions for
tensors, to one level a step. Between the steps values are whole numbers, as there.
"""

from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from ..channels import RGB
from ..resizing import array_of, tensor_of

GRAY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision has it
SAME = np.eye(RGB)
TO_GRAY = np.repeat(np.array(GRAY)[:, None], RGB, axis=1)  # (RGB, RGB): each color becomes gray


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
                values = brighten(values, drawn["brightness_factor"])
            elif step == 1:
                values = contrast(values, drawn["contrast_factor"])
            elif step == 2:
                values = saturate(values, drawn["saturation_factor"])
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
            values = brighten(values, drawn["brightness_factor"])
        if drawn["contrast_factor"] is not None and drawn["contrast_before"]:
            values = contrast(values, drawn["contrast_factor"])
        if drawn["saturation_factor"] is not None:
            values = saturate(values, drawn["saturation_factor"])
        if drawn["hue_factor"] is not None:
            values = shift_hue(values, drawn["hue_factor"])
        if drawn["contrast_factor"] is not None and not drawn["contrast_before"]:
            values = contrast(values, drawn["contrast_factor"])
        distorted = _bytes(values, picture)
        order = drawn["channel_permutation"]
        return distorted if order is None else distorted[order]


# Steps --------------------------------------------------------------------------------------------

# Values are (h * w, C) float32 that hold whole numbers from 0 to 255; what is given may be changed.
# NumPy's functions take less time than torch's for arrays of this size, where both have them.


def brighten(values: np.ndarray, factor: float) -> np.ndarray:
    np.multiply(values, factor, out=values)
    return _whole(values, within=factor <= 1)


def contrast(values: np.ndarray, factor: float) -> np.ndarray:
    """Further from, or nearer to, the average of the picture's gray."""
    means = _means(values)
    weights = GRAY if len(means) == RGB else [1 / len(means)] * len(means)
    gray = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    # torchvision's gray is rounded down, pixel by pixel
    np.multiply(values, factor, out=values)
    np.add(values, (1 - factor) * round(max(gray - 0.5, 0.0)), out=values)
    return _whole(values, within=factor <= 1)


def saturate(values: np.ndarray, factor: float) -> np.ndarray:
    """Further from, or nearer to, the gray of each pixel; pictures without colors stay."""
    if values.shape[1] != RGB:
        return values
    mixed = torch.from_numpy((factor * SAME + (1 - factor) * TO_GRAY).astype(np.float32))
    # torch's product, since NumPy's would begin threads of its own
    return _whole((torch.from_numpy(values) @ mixed).numpy(), within=factor <= 1)


def shift_hue(values: np.ndarray, shift: float) -> np.ndarray:
    """Colors turned by a share of the circle; of RGB."""
    turned = torch.from_numpy(values)
    red, green, blue = turned.T.contiguous()
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
        turned[:, channel] = torch.addcmul(least, spread, share.clamp_(0, 1))
    np.add(values, 1e-3, out=values)  # against rounding just below a whole number
    return _whole(values)


def _means(values: np.ndarray) -> list[float]:
    """Of each channel. Sums of whole numbers are exact, whoever adds them up in which order."""
    count, channels = values.shape
    together = gcd(count, 16)  # pixels in a row: wide rows are added up in a third of the time
    rows = torch.from_numpy(values).view(-1, together * channels)
    means: list[float] = (rows.sum(0).view(together, channels).sum(0) / count).tolist()
    return means


def _whole(values: np.ndarray, *, within: bool = False) -> np.ndarray:
    """Rounded down, from 0 to 255; `within`: they lie there already."""
    if not within:
        torch.from_numpy(values).clamp_(0, 255)  # in half of the time of NumPy's clip
    return np.floor(values, out=values)


def _floats(picture: Tensor) -> np.ndarray:
    """A picture (C, h, w) as (h * w, C), the values of a pixel side by side."""
    return array_of(picture).reshape(-1, len(picture)).astype(np.float32, order="C")


def _bytes(values: np.ndarray, like: Tensor) -> Tensor:
    """(h * w, C) as a picture (C, h, w) of the size of another."""
    height, width = like.shape[1:]
    return tensor_of(values.astype(np.uint8).reshape(height, width, -1))
