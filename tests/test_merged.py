"""Sums of branches trained as one convolution equal branch by branch."""

import copy
from typing import cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fleetnet.backbones.mobileone import Branches, MobileOne
from fleetnet.backbones.repvit import RepVGGDW
from fleetnet.errors import UsageError
from fleetnet.merged import BranchSum, Merging, set_merging
from fleetnet.norms import share_norms

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
EVERY_FORM = (*FORMS, "RepViT 1", "RepViT 2")
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
@pytest.mark.parametrize("form", EVERY_FORM)
def test_equal_to_branch_by_branch(form: str, size: tuple[int, int, int]) -> None:
    module = sum_of(form)
    apart = twenty_steps(copy.deepcopy(module), "off", size)
    together = twenty_steps(copy.deepcopy(module), "on", size)
    worst = max(map(relative, together, apart))
    assert worst < 1e-9, worst


@pytest.mark.parametrize("form", [*FORMS, "RepViT 1", "RepViT 2"])
def test_the_merged_kernel_itself(form: str) -> None:
    """In training by the statistics of the batch, which the norms learn; else by what they have learned."""
    module, twin = sum_of(form), sum_of(form)
    conv = module.geometry()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, conv.in_channels, 6, 5, generator=generator, dtype=torch.float64) + 0.5
    weight, bias = module.merged_kernel(x)
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    assert relative(F.conv2d(x, weight, bias, *geometry), twin.branch_by_branch(x)) < 1e-9
    for own, expected in zip(module.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(own, expected, rtol=1e-9)
    weight, bias = module.merged_kernel(None)
    gradients = torch.autograd.grad(weight.sum() + bias.sum(), list(module.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    fused = module.eval().fuse()
    for made in ((weight, bias), module.merged_kernel(x)):
        assert relative(made[0], fused.weight) < 1e-12
        assert relative(made[1], fused.bias) < 1e-12


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


def test_a_checkpointed_sum_has_the_same_gradients_and_learns_as_often() -> None:
    """torch runs what is checkpointed twice, and so do the running statistics, in both ways."""
    module = sum_of("depthwise, strided")
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    ways: tuple[Merging, ...] = ("off", "on")
    seen = []
    for merging in ways:
        one = copy.deepcopy(module)
        one.merging = merging
        (plain,) = torch.autograd.grad(one(x).square().sum(), x)
        again = checkpoint(one, x, use_reentrant=False)
        assert relative(torch.autograd.grad(again.square().sum(), x)[0], plain) < 1e-12
        seen.append([value.double() for value in one.state_dict().values()])
    assert max(map(relative, *seen)) < 1e-9


def test_a_compiled_sum() -> None:
    module = sum_of("pointwise")
    module.merging = "on"
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(module, backend="aot_eager")
    plain, other = [torch.autograd.grad(y.square().sum(), x)[0] for y in (module(x), compiled(x))]
    assert relative(other, plain) < 1e-12


FORMATS = {"rows": torch.contiguous_format, "channels_last": torch.channels_last}
# sum, whether in bfloat16, where the 1 of a plain skip is exact and a kernel with it is not
PRECISIONS = [
    *((form, low) for form in ("pointwise", "depthwise", "depthwise, strided") for low in (0, 1)),
    ("RepViT 1", 0),
    ("RepViT 2", 0),
]


def outcome(module: BranchSum, x: torch.Tensor, low: bool) -> list[torch.Tensor]:
    """Outputs, gradient of the input and gradients of all parameters, weighted at random."""
    x = x.to(module.geometry().weight.dtype, copy=True).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = module(x)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    gradients = torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])
    of_parameters = torch.cat([each.flatten() for each in gradients[1:]])
    return [each.double() for each in (y.detach(), gradients[0], of_parameters)]


@pytest.mark.parametrize("mean", [0, 1])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("form", "low"), PRECISIONS, ids=str)
def test_not_further_from_float64(form: str, layout: str, mean: int, low: int) -> None:
    """By norms of differences, and beside what float32 itself can tell apart.

    In rows torch's own batch norm sums in float64, so within four units there.
    """
    exact = sum_of(form)
    generator = torch.Generator().manual_seed(2)
    channels = exact.geometry().in_channels
    x = torch.randn(16, channels, 14, 14, generator=generator, dtype=torch.float64)
    x = (x + mean).to(memory_format=FORMATS[layout])
    module = copy.deepcopy(exact).float()
    expected = outcome(exact, x, low=False)

    def drift(merging: Merging) -> list[float]:
        module.merging = merging
        return list(map(relative, outcome(module, x, low=bool(low)), expected))

    units = torch.finfo(torch.float32).eps * (4 if layout == "rows" else 1)
    together, apart = drift("on"), drift("off")
    assert all(
        one <= 1.1 * max(other, units) for one, other in zip(together, apart, strict=True)
    ), (together, apart)


SHAPES = [  # sum, batch, size, whether it is merged; the times behind it are of merged_step.py
    (("pointwise", 48, 48, 4), 32, 56, True),
    (("pointwise", 256, 1024, 4), 32, 7, True),
    (("pointwise", 256, 1024, 4), 4, 7, False),
    (("pointwise", 96, 96, 1), 32, 56, True),
    (("pointwise", 512, 512, 1), 32, 14, False),
    (("depthwise", 256, 256, 4), 4, 14, True),
    (("depthwise", 96, 96, 1), 32, 56, True),
    (("depthwise", 512, 512, 1), 32, 7, False),
    (("strided", 48, 48, 4), 32, 112, True),
    (("strided", 96, 96, 1), 32, 56, False),
]


@pytest.mark.parametrize(("form", "batch", "size", "expected"), SHAPES, ids=str)
def test_auto_by_shapes(
    form: tuple[str, int, int, int], batch: int, size: int, expected: bool
) -> None:
    kind, inputs, outputs, count = form
    kernel, groups = (1, 1) if kind == "pointwise" else (3, inputs)
    stride = 2 if kind == "strided" else 1
    skip = inputs == outputs and stride == 1
    with torch.device("meta"):
        module = Branches(inputs, outputs, kernel, stride, 1, groups, count, skip)
    module.merging = "auto"
    x = torch.empty(batch, inputs, size, size, memory_format=torch.channels_last)  # never written
    assert module.merges(x) == expected


def test_auto_leaves_what_was_not_measured_branch_by_branch() -> None:
    module = RepVGGDW(8, 1, version=2)
    module.merging = "auto"
    x = torch.randn(2, 8, 28, 28).contiguous(memory_format=torch.channels_last)
    assert module.merges(x)
    assert not module.merges(x.contiguous())
    with torch.autocast("cpu", torch.bfloat16):  # a plain skip
        assert not module.merges(x)
    assert not module.double().merges(x.double())
    module.float().merging = "on"
    assert module.merges(x.contiguous())


def test_a_run_may_switch_at_any_step() -> None:
    """Steps of SGD branch by branch, merged and again; beside it, all branch by branch.

    benchmarks/merged_exact.py does so with every variant.
    """
    torch.manual_seed(0)
    model = MobileOne((4, 4, 6, 6, 8), branches=2).double()
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    pairs = [(net, torch.optim.SGD(net.parameters(), lr=0.01)) for net in (model, other)]
    ways: tuple[Merging, ...] = ("off", "on", "off")
    for merging in ways:
        set_merging(model, merging)
        images = torch.randn(2, 3, 37, 70, generator=generator, dtype=torch.float64)
        for net, optimizer in pairs:
            optimizer.zero_grad()
            torch.stack([feature.square().mean() for feature in net(images)]).sum().backward()
            optimizer.step()
    states = [[value.double() for value in each.state_dict().values()] for each in (model, other)]
    assert list(model.state_dict()) == list(other.state_dict())
    assert max(map(relative, *states)) < 1e-9


def test_on_where_there_is_no_sum() -> None:
    with pytest.raises(UsageError, match="no sum of branches"):
        set_merging(nn.Conv2d(3, 3, 1), "on")


def learned(module: BranchSum, x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of all parameters, each process's added up, and the running statistics."""
    (module(x) * weights).sum().backward()
    gradients = [cast(torch.Tensor, parameter.grad) for parameter in module.parameters()]
    if torch.distributed.is_initialized():
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
    return [*gradients, *(each.double() for each in module.buffers())]


def inputs_of(module: BranchSum) -> tuple[torch.Tensor, torch.Tensor]:
    """Five images of 6 x 7, and weights of the outputs."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(
        5, module.geometry().in_channels, 6, 7, generator=generator, dtype=torch.float64
    )
    y = copy.deepcopy(module).branch_by_branch(x).detach()
    return x, torch.randn(y.shape, generator=generator, dtype=torch.float64)


def work(rank: int, file: str) -> None:
    """One of two processes with an uneven part of a batch; the first saves what came of it."""
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    part = slice(0, 2) if rank == 0 else slice(2, 5)
    results = {}
    for form in EVERY_FORM:
        module = sum_of(form)
        x, weights = inputs_of(module)
        share_norms(module)
        module.merging = "on"
        results[form] = learned(module, x[part], weights[part])
    if rank == 0:
        torch.save(results, f"{file}.result")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    file = str(tmp_path_factory.mktemp("two") / "meeting")
    torch.multiprocessing.spawn(work, (file,), nprocs=2)
    return torch.load(f"{file}.result")


@pytest.mark.parametrize("form", EVERY_FORM)
def test_synchronized_norms_of_two_processes(of_two_processes, form: str) -> None:
    module = sum_of(form)
    expected = learned(module, *inputs_of(module))
    assert max(map(relative, of_two_processes[form], expected)) < 1e-9
