"""Random weights with which a network computes as a trained one does, to try a conversion before training.

Fresh weights are blind to mistakes: batch norms with mean 0, variance 1 and gamma 1 do nothing, and
zero gammas hide whole branches. Weights drawn to keep the variance, with the usual beta of 0, are
the other extreme: each ReLU then makes rounding a little larger compared with the values, in a deep
network a thousandfold, as no trained network does.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
# Most values pass a ReLU after a norm with a beta near 1, so that rounding stays what it is: 4e-6
# to 4e-5 of the spread of the outputs in all families and heads; at a beta of 0 it is 6e-4 in
# mobileone_s4.
BETA = 1.0
SCALE = 0.3  # of weights, of what would keep the variance


def pictures(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Four random images (4, 3, H, W), normalized, with shapes large and small, so that deep features differ too."""
    generator = torch.Generator().manual_seed(seed)
    large = F.interpolate(
        torch.randn(4, 3, 5, 5, generator=generator), size, mode="bilinear", align_corners=False
    )
    return large + 0.3 * torch.randn(4, 3, *size, generator=generator)


@torch.no_grad()
def as_if_trained(model: nn.Module, size: tuple[int, int], seed: int = 0) -> nn.Module:
    """Draw every parameter, and give batch norms the statistics of random images of `size` (height, width), in place.

    Gammas have both signs; no shift or scale is 0 or 1. Other buffers, such as anchors, stay.
    Returns the model in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) and name == "weight":
                parameter.uniform_(0.5, 1.5, generator=generator)
                parameter[torch.rand(parameter.shape, generator=generator) < 0.5] *= -1
            elif isinstance(module, NORMS):
                parameter.normal_(BETA, 0.3, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(
                    0, SCALE / math.sqrt(math.prod(parameter.shape[1:])), generator=generator
                )
            else:  # biases and layer scales
                parameter.normal_(0.1, 0.2, generator=generator)
    norms = [
        m for m in model.eval().modules() if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of this batch alone
        norm.train()
    model(pictures(size, seed))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return model.eval()
