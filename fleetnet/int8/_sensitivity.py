"""What int8 does to each layer of a deploy form, emulated in torch."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..runtimes._int8 import safe_scales
from ..tasks import Outputs, named

BATCH = 16  # images at a time, in torch
Linear = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Layer:
    """What it does to the outputs when this layer alone computes in int8, emulated in torch."""

    name: str
    sqnr: float  # dB: the outputs' energy / that of their change; of several outputs the worst
    agreement: float | None  # share of images with the same largest logit; None of other tasks


def layers_of(model: nn.Module) -> dict[str, Linear]:
    """The layers with weights, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


@torch.no_grad()
def answers(model: Callable[[Tensor], Outputs], images: Tensor) -> list[Tensor]:
    """All outputs, float64; of padded detections the scores, which are sorted: boxes would jump."""
    parts = [named(model(part)) for part in images.split(BATCH)]
    keys = [key for key, value in parts[0].items() if value.is_floating_point()]
    keys = ["scores"] if {"boxes", "scores", "labels"} <= parts[0].keys() else keys
    return [torch.cat([part[key] for part in parts]).double() for key in keys]


def sqnr(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Signal to quantization noise of the worst output, at most 200 dB.

    10 log10(sum a^2 / sum (a - b)^2).
    """
    pairs = [
        (a.square().sum().item(), (a - b).square().sum().item())
        for a, b in zip(reference, other, strict=True)
    ]
    return min(
        10 * math.log10(max(signal, 1e-300) / max(noise, signal * 1e-20, 1e-300))
        for signal, noise in pairs
    )


def agreement(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float | None:
    """The share of images with the same largest logit; None where the outputs are no logits."""
    if len(reference) > 1 or reference[0].ndim != 2:
        return None
    return (reference[0].argmax(1) == other[0].argmax(1)).double().mean().item()


def _rounded_weight(weight: Tensor) -> Tensor:
    scale = torch.from_numpy(safe_scales(weight.flatten(1).numpy())).to(weight.dtype)
    return torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros_like(scale), 0, -127, 127
    )


def _rounded(x: Tensor, low: float, high: float) -> Tensor:
    scale = max(high - low, 1e-12) / 255
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def _ranges(
    model: nn.Module, images: Tensor
) -> tuple[dict[str, tuple[float, float]], list[Tensor]]:
    """The least and largest value that each layer takes, in their order, and the outputs."""
    ranges: dict[str, tuple[float, float]] = {}

    def record(name: str, x: Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))  # zero must be among the values: it is the padding
        ranges[name] = min(low, x.min().item()), max(high, x.max().item())

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
        for name, layer in layers_of(model).items()
    ]
    outputs = answers(model, images)
    for hook in hooks:
        hook.remove()
    return ranges, outputs


@torch.no_grad()
def sensitivity(model: nn.Module, images: Tensor) -> list[Layer]:
    """What each layer with weights does to the outputs when it alone is in int8, the worst first.

    `images` (N, C, H, W) give the ranges and the outputs compared; the time is that of one pass for
    each layer.
    """
    model = copy.deepcopy(model)
    layers, results = layers_of(model), []
    ranges, reference = _ranges(model, images)
    for name, (low, high) in ranges.items():
        layer, weight = layers[name], layers[name].weight.data
        layer.weight.data = _rounded_weight(weight)
        hook = layer.register_forward_pre_hook(
            lambda _, args, low=low, high=high: (_rounded(args[0], low, high),)
        )
        outputs = answers(model, images)
        hook.remove()
        layer.weight.data = weight
        results.append(Layer(name, sqnr(reference, outputs), agreement(reference, outputs)))
    return sorted(results, key=lambda layer: layer.sqnr)


@torch.no_grad()
def multiplications(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiplications of each layer with weights."""
    counts: dict[str, int] = {}

    def count(name: str, layer: Linear, output: Tensor) -> None:
        counts[name] = counts.get(name, 0) + output.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
        for name, layer in layers_of(model).items()
    ]
    model(example)
    for hook in hooks:
        hook.remove()
    return counts
