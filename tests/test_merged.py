"""Sums of branches trained as one convolution equal branch by branch."""

import copy

import pytest
import torch
from torch import nn

from fleetnet.backbones.mobileone import Branches
from fleetnet.backbones.repvit import RepVGGDW
from fleetnet.merged import BranchSum

FORMS = {  # inputs, outputs, size, stride, dilation, groups, count, skip, norm
    "pointwise": (6, 6, 1, 1, 1, 1, 4, True, "in_branches"),
    "pointwise to more channels": (4, 7, 1, 1, 1, 1, 2, False, "in_branches"),
    "pointwise, norm after": (5, 5, 1, 1, 1, 1, 1, True, "after_sum"),
    "depthwise": (5, 5, 3, 1, 1, 5, 4, True, "in_branches"),
    "depthwise, norm after": (5, 5, 3, 1, 1, 5, 1, True, "after_sum"),
    "depthwise, dilated": (4, 4, 3, 1, 2, 4, 1, True, "in_branches"),
    "depthwise, strided": (5, 5, 3, 2, 1, 5, 3, False, "in_branches"),
    "depthwise, strided, norm after": (5, 5, 3, 2, 1, 5, 2, False, "after_sum"),
    "stem": (3, 6, 3, 2, 1, 1, 1, False, "in_branches"),
}
SIZES = [(2, 7, 9), (32, 4, 6), (3, 2, 1)]


def sum_of(form: str) -> BranchSum:
    """A sum of small channels whose norms do not begin as the identity."""
    torch.manual_seed(0)
    if form.startswith("RepViT"):
        module: BranchSum = RepVGGDW(4, 1, version=int(form[-1]))
    else:
        module = Branches(*FORMS[form])
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.3)
    return module.double()


def twenty_steps(module: BranchSum, merging: str, size: tuple[int, int, int]) -> list[torch.Tensor]:
    """Outputs, gradients of the input and all that 20 steps of SGD leave in a module."""
    module.merging = merging
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    batch, height, width = size
    channels = module.geometry().in_channels
    seen = []
    for _ in range(20):
        x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
        x = (x + 0.5).to(memory_format=torch.channels_last).requires_grad_()
        y = module(x)
        target = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (y - target).square().mean().backward()
        gradients = [parameter.grad.clone() for parameter in module.parameters()]
        optimizer.step()
        seen += [y.detach(), x.grad, *gradients]
    return seen + [value.double() for value in module.state_dict().values()]


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of norms; absolute below 1e-3: some gradients are 0 but for rounding."""
    return ((one - other).norm() / other.norm().clamp(min=1e-3)).item()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", [*FORMS, "RepViT 1", "RepViT 2"])
def test_equal_to_branch_by_branch(form: str, size: tuple[int, int, int]) -> None:
    module = sum_of(form)
    apart = twenty_steps(copy.deepcopy(module), "off", size)
    together = twenty_steps(copy.deepcopy(module), "on", size)
    worst = max(map(relative, together, apart))
    assert worst < 1e-9, worst
