"""Networks for tests: every variant, with weights and batch norms as if trained, and quick to build.

Fresh batch norms are blind to mistakes (mean 0, variance 1, gamma 1), and RepViT's zero gammas hide whole branches.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fleetnet.backbones import Option, variants
from fleetnet.tasks import Model, build

Module = TypeVar("Module", bound=nn.Module)
VARIANTS = list(variants())
ROUNDS_DOWN = [name for name in VARIANTS if name.startswith(("fasternet", "convnext", "parc_convnext"))]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the standard deviation
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def on_meta(name: str, output_stride: int = 32, options: Mapping[str, Option] | None = None) -> Model:
    """A classifier without values, in eval mode: for counts and shapes."""
    with torch.device("meta"):
        return build(name, output_stride=output_stride, options=options).eval()


def random_model(
    name: str, seed: int = 0, output_stride: int = 32, options: Mapping[str, Option] | None = None
) -> Model:
    """A classifier with every value drawn at random, in eval mode."""
    return randomize(on_meta(name, output_stride, options).to_empty(device="cpu"), seed)


@torch.no_grad()
def randomize(model: Module, seed: int) -> Module:
    """Draw every parameter and buffer; returns the model in eval mode.

    Gammas have both signs; no statistic, shift or scale is 0 or 1. Weights are small enough for rounding errors to stay
    small from layer to layer: at the scale that keeps the variance, a deep network without residuals multiplies them by
    a thousand, as no trained network does.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, NORMS) and parameter is module.weight:
                parameter.uniform_(0.5, 1.5, generator=generator)
                parameter[torch.rand(parameter.shape, generator=generator) < 0.5] *= -1
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.3 / math.sqrt(math.prod(parameter.shape[1:])), generator=generator)
            else:  # biases and layer scales
                parameter.normal_(0.1, 0.2, generator=generator)
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_var":
                buffer.uniform_(0.5, 2, generator=generator)
            elif buffer.is_floating_point():
                buffer.normal_(0, 0.3, generator=generator)
            else:
                buffer.zero_()
    return model.eval()


def image(height: int, width: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)
