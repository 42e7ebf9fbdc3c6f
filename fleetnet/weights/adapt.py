"""Weights for RGB into a network of another number of channels: the first convolution.

    1 or 2 channels   the first is gray: the sum of red, green and blue, which is what the network
                      for RGB computes of a gray picture
    4 and more        the first three stay red, green and blue
    all others        zero: what they are is not known, so the network begins as what it was, and
                      learns of them from the first step

timm repeats red, green and blue instead and scales by 3 / channels: a network for RGBA then takes
alpha for red, and computes something else than it did.

Each channel is normalized with its own mean and std (`Preprocess.for_channels`), which the weights
follow. The means of red, green and blue differ, so gray leaves a constant, which moves into the
convolution's bias or the mean of its batch norm. Where a convolution pads with zeros, this constant
is missing in the pixels beside the border, as nothing there can hold it: all else is equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backbones import State
from ..channels import RGB, colors_of
from ..preprocess import Preprocess


@dataclass(frozen=True)
class Adapted:
    """Tensors whose values are made from those of the weights, by name, and what was done."""

    values: State = field(default_factory=dict)
    note: str = ""


def adapted(state: State, ours: State, channels: int, expected: Preprocess | None) -> Adapted:
    """The first convolution of a state for RGB, for a model (its tensors are `ours`) of `channels`.

    `expected` is what the weights expect of a picture: the mean and std of ImageNet unless known.
    Nothing where they take as many channels as the model, or were not made for RGB.
    """
    convolutions = _of_image(state, ours, channels)
    shapes = {state[key].shape[1] for key in convolutions}
    if channels == RGB or shapes != {RGB}:
        return Adapted()
    before = expected or Preprocess((1, 1))
    now = before.for_channels(channels)
    values: State = {}
    for key in convolutions:
        values |= _converted(state, list(ours), key, before, now)
    first = "red, green and blue kept" if channels > RGB else "gray is the sum of the three"
    others = channels - colors_of(channels)
    rest = f", {others} new begin at zero" if others else ""
    return Adapted(values, f"first convolution: from RGB to {channels} channels, {first}{rest}")


def other_channels(state: State, ours: State, channels: int) -> str:
    """Why weights do not fit whose pictures have another number of channels; "" if that is not it."""
    counts = {state[key].shape[1] for key in _of_image(state, ours, channels)}
    if len(counts) != 1:
        return ""
    (count,) = counts
    return (
        f"These weights are for pictures of {count} channels, the model for {channels}, and only "
        f"weights for RGB are adapted: take create_model(..., channels={count}) "
        f"(--channels {count}), or weights for RGB"
    )


def _of_image(state: State, ours: State, channels: int) -> list[str]:
    """The names of the convolutions that see the image, where the number of its channels differs."""

    def differs_so(key: str) -> bool:
        theirs, shape = state[key].shape, ours[key].shape
        return (
            len(shape) == len(theirs) == 4
            and shape[1] == channels != theirs[1]
            and (shape[0], *shape[2:]) == (theirs[0], *theirs[2:])
        )

    return [key for key in ours if key.startswith("backbone.") and key in state and differs_so(key)]


def _converted(
    state: State, names: list[str], key: str, before: Preprocess, now: Preprocess
) -> State:
    """The weight of one convolution, and what takes its constant, if there is one."""
    weight = state[key]
    rgb = weight.double()  # (outputs, 3, h, w)
    if before.channel_order == "BGR":
        rgb = rgb.flip(1)
    of_rgb = before.for_channels(RGB + 1)  # in the order of RGB, and then gray
    mean, std = (torch.tensor(part[:RGB]).double() for part in (of_rgb.mean, of_rgb.std))
    made = weight.new_zeros(len(weight), now.channels, *weight.shape[2:])
    if now.channels > RGB:
        made[:, :RGB] = rgb.to(weight)
        return {key: made}
    by_pixel = rgb / std.view(-1, 1, 1)  # of pixels from 0 to 1
    made[:, 0] = (now.std[0] * by_pixel.sum(1)).to(weight)
    constant = (by_pixel * (now.mean[0] - mean).view(-1, 1, 1)).sum((1, 2, 3))  # (outputs,)
    return {key: made, **_with_constant(state, names, key, constant)}


def _with_constant(
    state: Mapping[str, Tensor], names: list[str], key: str, constant: Tensor
) -> State:
    """What comes after a convolution, with a constant for each of its outputs added to its input.

    It is the convolution's own bias, or the batch norm beside it; nothing where there is neither.
    """
    bias = key.removesuffix("weight") + "bias"
    if bias in state:
        return {bias: (state[bias].double() + constant).to(state[bias])}
    following = names[names.index(key) + 1]  # of a network with a head, so there is one
    running_mean = following.removesuffix("weight") + "running_mean"
    if _holder(following) != _holder(key) or running_mean not in state:
        return {}
    return {running_mean: (state[running_mean].double() - constant).to(state[running_mean])}


def _holder(name: str) -> str:
    """The module that holds the module of a tensor: "stem.0" of "stem.0.1.weight"."""
    return ".".join(name.split(".")[:-2])
