"""Networks for tests: every variant, with weights and batch norms as if trained, and quick to build.

Fresh batch norms are blind to mistakes (mean 0, variance 1, gamma 1), and RepViT's zero gammas hide
whole branches.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fleetnet.backbones import Option, variants
from fleetnet.facts import Facts
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import difference
from fleetnet.tasks import Model, build

Module = TypeVar("Module", bound=nn.Module)
# Those of a checkpoint, where it does not matter of which.
FACTS = Facts(
    "fasternet_t0", "classification", "multi-branch", ["café", "bus"], Preprocess((16, 24))
)
VARIANTS = list(variants())
ROUNDS_DOWN = [
    name for name in VARIANTS if name.startswith(("fasternet", "convnext", "parc_convnext"))
]
# How far two networks that compute the same may be apart, relative to the standard deviation of the
# outputs.
EXACT = 1e-10  # in float64: the algebra; 6e-14 measured
WEIGHTS = 1e-5  # float32 weights computed in float64: their rounding alone, alike on every CPU; 4e-6 measured
# In float32 sums are in another order on every CPU: parcnet_h's deploy form is 3e-6 from exact with
# AVX-512, 3.4e-5 with AVX2. So the bound is what float32 leaves of the reference itself, times
# this; 14 is the most measured, there.
ROUNDING = 32
FLOOR = 1e-6  # where float32 happens to leave less of the reference, as of a single layer: 8 times its epsilon
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def on_meta(
    name: str, output_stride: int = 32, options: Mapping[str, Option] | None = None
) -> Model:
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

    Gammas have both signs; no statistic, shift or scale is 0 or 1. Weights are small enough for
    rounding errors to stay small from layer to layer: at the scale that keeps the variance, a deep
    network without residuals multiplies them by a thousand, as no trained network does.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, NORMS) and parameter is module.weight:
                parameter.uniform_(0.5, 1.5, generator=generator)
                parameter[torch.rand(parameter.shape, generator=generator) < 0.5] *= -1
            elif parameter.ndim > 1:
                parameter.normal_(
                    0, 0.3 / math.sqrt(math.prod(parameter.shape[1:])), generator=generator
                )
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


def whole(model: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """What `assert_same_function` compares unless told otherwise: the one output."""
    return [model(x)]


@torch.no_grad()
def assert_same_function(
    reference: nn.Module,
    other: Callable[[Any], nn.Module],
    x: Tensor,
    compute: Callable[[Any, Tensor], Sequence[Tensor]] = whole,
    exact_bound: float = EXACT,
) -> None:
    """What `other` makes of a float32 module, in eval mode, computes what the module computes, on any CPU.

    Made in float64 it is the same to `exact_bound`. Made in float32 its weights, computed in
    float64, are right to `WEIGHTS`, and it computes in float32 about as exactly as the module does:
    `ROUNDING`. `x` is the input, `compute` gives the outputs to compare.
    """
    exact_module, exact_x = copy.deepcopy(reference).double(), x.double()
    exact = compute(exact_module, exact_x)
    apart = difference(exact, compute(other(exact_module), exact_x))[1]
    assert apart < exact_bound, f"in float64: {apart:.2g} relative"

    made = other(reference)
    off = difference(exact, compute(made, x))[1]
    rounding = difference(exact, compute(reference, x))[1]
    allowed = ROUNDING * max(rounding, FLOOR)
    assert off < allowed, (
        f"in float32: {off:.2g} relative; allowed: {ROUNDING} x the reference's own {rounding:.2g}"
    )
    apart = difference(exact, compute(copy.deepcopy(made).double(), exact_x))[1]
    assert apart < WEIGHTS, f"float32 weights in float64: {apart:.2g} relative"


def image(height: int, width: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).to(
        dtype
    )
