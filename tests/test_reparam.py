"""The algebra of the deploy form, on every kind of convolution, against running the branches themselves."""

import pytest
import torch
from torch import Tensor, nn
from zoo import assert_same_function, image, random_model, randomize

from fleetnet import reparam
from fleetnet.backbones.mobileone import Branches
from fleetnet.errors import ModelError
from fleetnet.layers import ConvBN
from fleetnet.reparam import allowed, as_conv, difference, fold_bn_before, kernel, reparameterize

GEOMETRIES = [  # inputs, outputs, size, stride, dilation, groups
    (6, 6, 3, 1, 1, 6),
    (6, 6, 3, 2, 1, 6),
    (6, 12, 3, 2, 1, 3),
    (6, 6, 3, 1, 2, 1),
    (6, 6, 3, 1, 3, 6),
    (6, 6, 5, 1, 1, 2),
    (6, 12, 1, 1, 1, 1),
    (6, 6, 1, 1, 1, 1),
    (3, 8, 3, 2, 1, 1),
]


def features(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(
        2, channels, 9, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).to(dtype)


def branches(geometry: tuple[int, ...], count: int) -> Branches:
    inputs, outputs, size, stride, dilation, groups = geometry
    skip = inputs == outputs and stride == 1
    return randomize(
        Branches(inputs, outputs, size, stride, dilation, groups, count, skip), seed=count
    )


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_sum_of_branches_is_one_convolution(geometry, count):
    model = branches(geometry, count)
    assert type(reparameterize(model)) is nn.Conv2d
    assert_same_function(model, reparameterize, features(geometry[0]))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_batch_norm_before_a_convolution(groups):
    bn, conv = nn.BatchNorm2d(6), nn.Conv2d(6, 12, (1, 3), groups=groups)
    model = randomize(nn.Sequential(bn, conv), seed=3).double()
    fused = as_conv(fold_bn_before(bn, kernel(conv), groups), like=conv)
    x = features(6, torch.float64)
    assert difference([model(x)], [fused(x)])[1] < 1e-12


def flipped(kernel: reparam.Kernel, bn: nn.Module) -> reparam.Kernel:
    weight, bias = kernel
    scale, shift = reparam.scale_shift(bn)
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias * scale - shift


@pytest.mark.parametrize("name", ["mobileone_s1", "repvit_m0_6", "repvit_m1", "fasternet_t0"])
def test_one_flipped_sign_is_seen(name, monkeypatch):
    """What the comparisons of this suite would miss, they would not test."""
    for module in ("reparam", "layers", "backbones.mobileone", "backbones.repvit"):
        monkeypatch.setattr(f"fleetnet.{module}.fold_bn", flipped)
    model = random_model(name)
    x = image(64, 64)
    with torch.no_grad():
        assert difference([model(x)], [reparameterize(model)(x)])[1] > 1e-2


def test_training_mode_is_refused_with_the_module_named():
    model = nn.Sequential(nn.ReLU(), ConvBN(3, 4)).eval()
    model[1][1].train()
    with pytest.raises(
        ModelError, match=r"'1\.1' and 0 more modules are in training mode: call model\.eval\(\)"
    ):
        reparameterize(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("trainable", [True, False])
def test_dtype_memory_format_and_trainability_are_kept(dtype, trainable):
    model = (
        branches((6, 6, 3, 1, 1, 1), 2)
        .to(dtype, memory_format=torch.channels_last)
        .requires_grad_(trainable)
    )
    fused = reparameterize(model)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert {p.requires_grad for p in fused.parameters()} == {trainable}
    assert fused.weight.is_contiguous(memory_format=torch.channels_last)
    assert not fused.weight.is_contiguous()
    x = features(6, torch.float64)
    # arithmetic in float64: rounding the result once costs half a unit in the last place
    with torch.no_grad():
        expected = nn.functional.conv2d(x, reparameterize(model.double()).weight, padding=1)
        given = nn.functional.conv2d(x, fused.weight.double(), padding=1)
    assert difference([expected], [given])[1] < 4 * torch.finfo(dtype).eps


def test_twice_is_once():
    model = random_model("repvit_m0_6")
    once = reparameterize(model)
    twice = reparameterize(once)
    assert list(once.state_dict()) == list(twice.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True)
    )


def test_the_original_stays():
    model = random_model("fasternet_t0")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = reparameterize(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fused.parameters()}
    assert not shared


class Detector(nn.Module):
    """Like somebody else's: a backbone inside, a batch norm that nobody folds, a layer that is called `fuse`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"backbone": random_model("mobileone_s1").backbone})
        self.neck = nn.Sequential(nn.BatchNorm2d(1280), nn.Conv2d(1280, 8, 1))
        self.fuse = nn.Conv2d(8, 4, 1)
        self.again = self.net["backbone"].stages[0]  # one module under two names

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.neck(self.net["backbone"](x)[-1])) + self.again(x).mean()


def test_a_wrapped_model_collapses_and_an_unknown_batch_norm_stays():
    model = randomize(Detector(), seed=4)
    fused = reparameterize(model)
    assert_same_function(model, reparameterize, image(64, 64))
    norms = [name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == ["neck.0"]
    assert fused.again is fused.net["backbone"].stages[0]


def test_one_module_under_two_names_of_one_parent():
    model = nn.Module()
    model.a = model.b = randomize(ConvBN(3, 4), seed=5)
    fused = reparameterize(model.eval())
    assert type(fused.a) is nn.Conv2d
    assert fused.a is fused.b


def test_batch_norm_without_statistics_is_not_linear():
    model = nn.Sequential(ConvBN(3, 4)).eval()
    model[0][1] = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(ModelError, match="keeps no running statistics"):
        reparameterize(model)


def test_kernels_without_a_common_center():
    even, odd = kernel(nn.Conv2d(2, 2, 2)), kernel(nn.Conv2d(2, 2, 3))
    with pytest.raises(ModelError, match=r"\(2, 2\) and \(3, 3\) have no common center"):
        reparam.merge(even, odd)


def test_difference_needs_equal_shapes_and_passes_on_nan():
    a = torch.zeros(2, 3)
    with pytest.raises(ModelError, match=r"\(2, 3\) and \(3, 2\)"):
        difference([a], [a.T])
    assert difference([torch.ones(3)], [torch.full((3,), torch.nan)])[1] != 0
    assert not difference([torch.ones(3)], [torch.full((3,), torch.nan)])[1] < 1


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Those of a deploy form that batch norms were folded into."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.bias is not None
    ]


def flip_a_sign(model: nn.Module) -> None:
    convolutions(model)[5].weight[0].neg_()


def drop_a_bias(model: nn.Module) -> None:
    nn.init.zeros_(convolutions(model)[5].bias)


def fold_in_bfloat16(model: nn.Module) -> None:
    """In the float32 model alone."""
    for layer in convolutions(model):
        if layer.weight.dtype is torch.float32:
            layer.weight.copy_(layer.weight.bfloat16())


def fold_with_another_epsilon(model: nn.Module) -> None:
    """2.5e-4 for 1e-5 where variances are about 1, in the float32 model alone."""
    for layer in convolutions(model):
        if layer.weight.dtype is torch.float32:
            layer.weight.mul_(1 - 1.2e-4)


FAULTS = {
    flip_a_sign: "in float64", drop_a_bias: "in float64", fold_in_bfloat16: "in float32",
    fold_with_another_epsilon: "float32 weights in float64",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_on_any_cpu_sees_a_fault(fault):
    """Its bound in float32 follows what the CPU leaves, and must not let through what is wrong."""

    @torch.no_grad()
    def wrong(model: nn.Module) -> nn.Module:
        deployed = reparameterize(model)
        fault(deployed)
        return deployed

    with pytest.raises(AssertionError, match=FAULTS[fault]):
        assert_same_function(random_model("fasternet_t0"), wrong, image(64, 64))


def test_what_is_allowed_follows_what_float32_leaves():
    exact = [torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    spread = exact[0].std().item()

    def off(by: float) -> list[Tensor]:
        return [exact[0] + by * spread * torch.eye(1000, dtype=torch.float64)[0]]

    assert allowed(1e-4, exact, off(1e-6)) == 1e-4
    assert allowed(1e-4, exact, off(1e-5)) == pytest.approx(3.2e-4)
    assert allowed(1e-4, exact, off(1e-2)) == 1e-3
    assert allowed(0.1, exact, off(1e-2)) == 0.1
