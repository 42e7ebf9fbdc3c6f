"""Equalization: channels of a map that have like ranges, without changing what a network computes.

Int8 has one scale for a whole feature map, so a channel whose values are a hundredth of the largest
channel's is left with two or three steps. Where all that lies between two layers commutes with a
positive factor (`_channels.py`), each channel c may be divided by a number s[c] where it is made,
and multiplied by it where it is used:

    second(relu(first(x))) = second'(relu(first'(x)))    w1'[c] = w1[c] / s[c]
                                                         b1'[c] = b1[c] / s[c]
                                                         w2'[:, c] = w2[:, c] * s[c]

Nagel et al., arXiv:1906.04721, do so for chains of two layers and choose s from the weights alone,
for one scale per weight tensor. Here weights have a scale per output channel, which undoes any s[c]
of w1, and of a depthwise w2 too: what remains to be served is the feature map. So s is the range
r[c] that the channel has on images, or, where a dense w2 mixes the channels, the square root of
r[c] by the range of the weights that take c (as Xiao et al., arXiv:2211.10438, balance linear
layers). A residual stream has one s for all of its maps, by the one in which a channel is largest.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._channels import FIXED, Followed, Layer, follow, rounded_maps

LIMIT = 100.0  # largest factor by which a channel is made smaller or larger


@dataclass(frozen=True, eq=False)
class Factors:
    """By what the channels of a layer are changed."""

    multiplied: Tensor  # those that it takes, (C,)
    divided: Tensor  # those that it gives, (O,)


Scales = dict[str, Factors]  # of each layer that is changed, by its name


class _Ranges(fx.Interpreter):
    """Runs a network, and notes the largest absolute value of each channel of maps."""

    def __init__(self, followed: Followed):
        super().__init__(followed.program)
        self.dimensions = {node: one.dimension for node, one in rounded_maps(followed)}
        self.largest: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.dimensions:
            seen = value.detach().abs().movedim(self.dimensions[node], 0).flatten(1).amax(1)
            before = self.largest.get(node)
            self.largest[node] = seen if before is None else torch.maximum(before, seen)
        return value


def _factors(followed: Followed, largest: dict[fx.Node, Tensor], model: nn.Module) -> Tensor:
    """The factor of each class: by how far its channel reaches in the maps, and in the weights."""
    count = 1 + max(
        (int(one.classes.max()) for one in followed.maps.values() if len(one.classes)), default=0
    )
    reach, weight = torch.zeros(count), torch.zeros(count)
    for node, values in largest.items():
        classes = torch.from_numpy(followed.maps[node].classes)
        share = values.float() / values.max().clamp_min(1e-30)
        reach.scatter_reduce_(0, classes, share, "amax")
    for layer in followed.layers:
        if 1 < layer.groups == len(layer.taken):
            continue  # depthwise: its scales follow each channel
        used = _grouped(model.get_parameter(layer.weight), layer).abs()
        used = used.transpose(1, 2).flatten(2).amax(2).flatten().float()  # (C,)
        classes = torch.from_numpy(layer.taken)
        weight.scatter_reduce_(0, classes, used / used.max().clamp_min(1e-30), "amax")
    # A channel that never fires, or that nothing takes, has no range to speak of.
    share = torch.where(weight > 0, (reach / weight.clamp_min(1e-12)).sqrt(), reach)
    share = torch.where(reach > 0, share, 1.0)
    factors = torch.ones(count)
    for group in _groups(followed, largest):
        some = torch.tensor(sorted(group))
        alive = some[reach[some] > 0]
        if len(alive):
            mean = share[alive].log().mean().exp()  # geometric
            factors[alive] = (share[alive] / mean).clamp(1 / LIMIT, LIMIT)
    factors[FIXED] = 1.0
    return factors


def _groups(followed: Followed, maps: dict[fx.Node, Tensor]) -> list[set[int]]:
    """Classes that lie in the same maps, or are tied to each other by others that do."""
    groups: list[set[int]] = []
    for node in maps:
        own = set(followed.maps[node].classes.tolist()) - {FIXED}
        apart = []
        for group in groups:
            if group & own:
                own |= group
            else:
                apart.append(group)
        groups = [*apart, own]
    return groups


def _grouped(weight: Tensor, layer: Layer) -> Tensor:
    """A weight by groups of the channels that it takes: (g, out / g, channels / g, h, w)."""
    channels = len(layer.taken) // layer.groups
    return weight.view(layer.groups, -1, channels, *weight.shape[2:])


@torch.no_grad()
def equalize(model: nn.Module, images: Tensor) -> tuple[nn.Module, Scales]:
    """A copy of a deploy form that computes the same, with feature maps that int8 can hold.

    `images` (N, C, H, W) are preprocessed and as in use; one passes through at a time. With it
    comes by what each layer was changed; a model in which nothing can be comes back as a copy.
    """
    followed = follow(model, images[:1])
    ranges = _Ranges(followed)
    if ranges.dimensions:
        for image in images.split(1):
            ranges.run(image)
    factors = _factors(followed, ranges.largest, model)
    model = copy.deepcopy(model)
    scales: Scales = {}
    for layer in followed.layers:
        made = Factors(factors[layer.taken], factors[layer.made])
        if not all(bool((one == 1).all()) for one in (made.multiplied, made.divided)):
            scales[layer.weight.removesuffix(".weight")] = made
            _change(model, layer, made)
    for name, one in followed.constants.items():
        constant = model.get_parameter(name)
        around = [1] * (constant.ndim - 1)
        constant.movedim(one.dimension, -1).div_(factors[one.classes].view(*around, -1))
    return model, scales


def _change(model: nn.Module, layer: Layer, factors: Factors) -> None:
    weight = model.get_parameter(layer.weight)
    weight.div_(factors.divided.view(-1, *[1] * (weight.ndim - 1)))
    grouped = _grouped(weight, layer)
    grouped.mul_(factors.multiplied.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2)))
    if layer.bias is not None:
        model.get_parameter(layer.bias).div_(factors.divided)
