"""Cross-layer equalization: channels of like range between two layers, without changing what a network computes.

Int8 has one scale for a whole feature map, so a channel whose values are a hundredth of the largest
channel's is left with two or three steps. ReLU commutes with a positive factor, so between two
linear layers each channel c may be divided by a number s[c] where it is made, and multiplied by it
where it is used:

    second(relu(first(x))) = second'(relu(first'(x)))    w1'[c] = w1[c] / s[c], b1'[c] = b1[c] / s[c],
                                                         w2'[:, c] = w2[:, c] * s[c]

Nagel et al., arXiv:1906.04721, choose s from the weights alone, for one scale per weight tensor.
Here weights have a scale per output channel, which undoes any s[c] of w1, and of a depthwise w2
too: what remains to be served is the feature map. So s is the range r[c] that the channel has on
images, or, where a dense w2 mixes the channels, the square root of r[c] by the range of the weights
that take c (as Xiao et al., arXiv:2211.10438, balance linear layers). Only chains of ReLU without a
second reader qualify: MobileOne's but for squeeze-and-excite; GELU and Hardswish do not commute.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

Linear = nn.Conv2d | nn.Linear
LIMIT = 100.0  # largest factor by which a channel is made smaller or larger


def chains(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Pairs (first, second) of layers of a deploy form, by name, where relu(first(x)) is all that `second` takes.

    Nothing else reads what is between them; pooling over the pixels may be there too. `example` is
    (N, C, H, W).
    """
    program = torch.export.export(model, (example,))
    weights = program.graph_signature.inputs_to_parameters
    layers = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    aten = torch.ops.aten
    linear = (aten.conv2d.default, aten.linear.default)
    pools = (
        aten.adaptive_avg_pool2d.default,
        aten.flatten.using_ints,
        aten.view.default,
        aten.mean.dim,
    )

    def layer(node: torch.fx.Node) -> str | None:
        weight = node.args[1] if node.target in linear else None
        # a shared layer has no range of its own
        if not isinstance(weight, torch.fx.Node) or len(weight.users) > 1:
            return None
        name = weights.get(weight.name, "").removesuffix(".weight")
        return name if name in layers else None

    def same_channels(maker: torch.fx.Node, pooled: bool, taker: torch.fx.Node) -> bool:
        """Whether the channels that one makes are those that the other takes; a linear layer's are the last."""
        taken = cast(torch.fx.Node, taker.args[0]).meta["val"]
        if maker.target is aten.linear.default and maker.meta["val"].ndim > 2:
            return taker.target is aten.linear.default and not pooled
        return taker.target is aten.conv2d.default or taken.ndim == 2

    pairs = []
    for node in program.graph.nodes:
        first, current, positive, pooled = layer(node), node, False, False
        while first and len(current.users) == 1:
            (reader,) = current.users
            if reader.target in (aten.relu.default, aten.relu_.default):
                positive = True
            elif (
                reader.target in pools and reader.meta["val"].shape[1] == node.meta["val"].shape[1]
            ):
                pooled = True
            else:
                second = layer(reader)
                if (
                    second
                    and positive
                    and reader.args[0] is current
                    and same_channels(node, pooled, reader)
                ):
                    pairs.append((first, second))
                break
            current = reader
    return pairs


def _ranges(model: nn.Module, names: set[str], images: Tensor, batch: int) -> dict[str, Tensor]:
    """The largest value that each channel of each layer's output has on images, at least 0: (C,)."""
    largest: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        value = (
            output.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            .flatten(1)
            .amax(1)
            .clamp_min(0)
        )
        largest[name] = torch.maximum(largest[name], value) if name in largest else value

    hooks = [
        module.register_forward_hook(
            lambda module, _, output, name=name: record(name, module, output)
        )
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        for i in range(0, len(images), batch):
            model(images[i : i + batch])
    finally:
        for hook in hooks:
            hook.remove()
    return largest


Scales = dict[tuple[str, str], Tensor]  # of each pair of layers: (channels between them,)


@torch.no_grad()
def equalize(model: nn.Module, images: Tensor, batch: int = 16) -> tuple[nn.Module, Scales]:
    """A copy of a deploy form that computes the same, with feature maps that int8 can hold.

    `images` (N, C, H, W) are preprocessed and as in use; those of one `batch` pass through at a
    time. With it comes by what each pair of layers was changed; a model without chains of ReLU
    comes back as a copy, and none.
    """
    pairs = chains(model, images[:1])
    modules = dict(model.named_modules())
    ranges = _ranges(model, {first for first, _ in pairs}, images, batch) if pairs else {}
    scales: Scales = {}
    for first, second in pairs:
        maker, taker = cast(Linear, modules[first]), cast(Linear, modules[second])
        share = ranges[first]
        if len(maker.weight) > getattr(taker, "groups", 1):
            used = _grouped(taker, len(maker.weight)).transpose(1, 2).flatten(2).abs().amax(2)
            share = (share / used.flatten().clamp_min(1e-12)).sqrt()
        alive = ranges[first] > 0  # a channel that is never positive has no range to speak of
        scale = torch.ones_like(share)
        scale[alive] = (share[alive] / share[alive].log().mean().exp()).clamp(1 / LIMIT, LIMIT)
        scales[first, second] = scale
    return rescaled(model, scales), scales


def _grouped(taker: Linear, channels: int) -> Tensor:
    """Its weight by groups of the channels that it takes: (g, out / g, channels / g, h, w)."""
    groups = getattr(taker, "groups", 1)
    return taker.weight.view(groups, -1, channels // groups, *taker.weight.shape[2:])


@torch.no_grad()
def rescaled(model: nn.Module, scales: Scales) -> nn.Module:
    """A copy in which each channel is divided where it is made, and multiplied where it is used."""
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for (first, second), scale in scales.items():
        maker, taker = cast(Linear, modules[first]), cast(Linear, modules[second])
        maker.weight.div_(scale.view(-1, *[1] * (maker.weight.ndim - 1)))
        if maker.bias is not None:
            maker.bias.div_(scale)
        grouped = _grouped(taker, len(scale))
        grouped.mul_(scale.view(len(grouped), 1, -1, *[1] * (grouped.ndim - 3)))
    return model
