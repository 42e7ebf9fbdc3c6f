"""Sums of branches trained as one convolution equal branch by branch."""

import copy
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fleetnet.backbones.mobileone import Branches
from fleetnet.backbones.repvit import RepVGGDW
from fleetnet.errors import UsageError
from fleetnet.merged import BranchSum, Merging, set_merging

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


def twenty_steps(
    module: BranchSum, merging: Merging, size: tuple[int, int, int]
) -> list[torch.Tensor]:
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


@pytest.mark.parametrize("form", ["pointwise", "depthwise, norm after"])
def test_a_mean_over_all_batches(form: str) -> None:
    module = sum_of(form)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    apart = twenty_steps(copy.deepcopy(module), "off", (2, 5, 4))
    together = twenty_steps(copy.deepcopy(module), "on", (2, 5, 4))
    assert max(map(relative, together, apart)) < 1e-9


def test_frozen_norms_and_eval_mode_are_computed_branch_by_branch() -> None:
    module, x = sum_of("depthwise").eval(), torch.randn(2, 5, 6, 6, dtype=torch.float64)
    module.merging = "on"
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = module.branch_by_branch(x)
    assert torch.equal(module(x), expected)
    module.train()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert torch.equal(module(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_checkpointed_sum_and_a_compiled_one_have_the_same_gradients() -> None:
    module = sum_of("depthwise, strided")
    module.merging = "on"
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(module, backend="aot_eager")
    outputs = (module(x), checkpoint(module, x, use_reentrant=False), compiled(x))
    plain, *others = [torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
    assert all(relative(other, plain) < 1e-12 for other in others)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["pointwise", "depthwise", "RepViT 2"])
def test_not_further_from_float64(form: str, precision: torch.dtype) -> None:
    """In channels_last, as networks are trained; for small images in rows it is 6e-7 for 1e-7."""
    exact = sum_of(form)
    channels = exact.geometry().in_channels
    x = torch.randn(16, channels, 28, 28, dtype=torch.float64).relu()
    x = x.to(memory_format=torch.channels_last)
    module, reference = copy.deepcopy(exact).float(), exact(x)

    def drift(merging: Merging) -> float:
        module.merging = merging
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            return relative(module(x.float()).double(), reference)

    assert drift("on") <= drift("off")


def test_on_where_there_is_no_sum() -> None:
    with pytest.raises(UsageError, match="no sum of branches"):
        set_merging(nn.Conv2d(3, 3, 1), "on")


def work(rank: int, file: str, form: str, x: torch.Tensor, weights: torch.Tensor) -> None:
    """One of two processes with an uneven part of a batch; the first saves what came of it."""
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    module = cast(BranchSum, nn.SyncBatchNorm.convert_sync_batchnorm(sum_of(form)))
    module.merging = "on"
    part = slice(0, 2) if rank == 0 else slice(2, 5)
    (module(x[part]) * weights[part]).sum().backward()
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in module.parameters()]
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save([*gradients, *(each.double() for each in module.buffers())], f"{file}.result")
    torch.distributed.destroy_process_group()


def test_synchronized_norms_of_two_processes(tmp_path: Path) -> None:
    module = sum_of("depthwise")
    x, weights = torch.randn(2, 5, 5, 6, 7, dtype=torch.float64)
    file = str(tmp_path / "meeting")
    torch.multiprocessing.spawn(work, (file, "depthwise", x, weights), nprocs=2)
    (module(x) * weights).sum().backward()
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in module.parameters()]
    expected = [*gradients, *(each.double() for each in module.buffers())]
    assert max(map(relative, torch.load(f"{file}.result"), expected)) < 1e-9
