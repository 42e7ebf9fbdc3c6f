"""The ParC operator: what it computes, at which sizes, frozen and not."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo import assert_same_function

from fleetnet.circular import FORMS, HEIGHT, WIDTH, Form, computed_as
from fleetnet.errors import ModelError
from fleetnet.find import find
from fleetnet.parc import (
    CircularConv,
    CircularProduct,
    FrozenParC,
    ParC,
    ParCBN,
    Wrap,
    with_products,
)
from fleetnet.reparam import difference, reparameterize
from fleetnet.runtimes import Request, load, onnx

PUBLISHED = {
    "crossed": {"crossed": True},
    "crossed, no position": {"crossed": True, "position": False},
    "single": {},
    "single, no position": {"position": False},
    "single, dense": {"dense": True},
}
SIZES = [(6, 6), (4, 9), (11, 3), (1, 1), (5, 1)]  # of the feature; the kernels are 6 long


def _randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic at random, gammas of both signs."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 1, generator=draw)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 1, generator=draw)
            norm.running_var.uniform_(0.5, 2, generator=draw)
    return module.eval()


def _circulant(kernel: Tensor) -> Tensor:
    """(C, n) -> (C, n, n): y = matrix @ x is the circular correlation y[i] = sum over t of k[t] * x[(i + t) mod n]."""
    return torch.stack([kernel.roll(i, dims=1) for i in range(kernel.shape[1])], dim=1)


def _along(x: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """x (N, C, H, W) times the circulant matrices of kernel (C, 1, n, 1) or (C, 1, 1, n)."""
    matrix = _circulant(kernel.flatten(1))
    return torch.einsum("cij,ncjw->nciw" if dim == HEIGHT else "cij,nchj->nchi", matrix, x)


def test_single_stage_is_a_circulant_matmul():
    parc = _randomize(ParC(4, (5, 7)).double())
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    first, second = parc.first[0], parc.second[0]
    expected = torch.cat(
        [
            _along(x[:, :2] + first.position, first.weight, HEIGHT) + first.bias.view(-1, 1, 1),
            _along(x[:, 2:] + second.position, second.weight, WIDTH) + second.bias.view(-1, 1, 1),
        ],
        dim=1,
    )
    assert difference([expected], [parc(x)])[1] < 1e-12


def test_crossed_form_adds_position_before_the_norm_and_crosses():
    parc = _randomize(ParC(4, 5, crossed=True).double())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    halves = []
    for part, stages, dims in (
        (x[:, :2], parc.first, (HEIGHT, WIDTH)),
        (x[:, 2:], parc.second, (WIDTH, HEIGHT)),
    ):
        y = _along(stages[0].norm(part + stages[0].position), stages[0].weight, dims[0])
        halves.append(_along(y + stages[1].position, stages[1].weight, dims[1]))
    assert difference([torch.cat(halves, 1)], [parc(x)])[1] < 1e-12


def test_dense_mixes_channels_of_a_half_only():
    parc = ParC(8, 5, dense=True, position=False)
    x = torch.randn(1, 8, 5, 5, requires_grad=True)
    parc(x)[0, 0, 0, 0].backward()
    reached = x.grad[0].abs().sum((1, 2)) > 0
    assert reached.tolist() == [True] * 4 + [False] * 4


def test_kernels_and_positions_are_resized_with_aligned_corners():
    conv = CircularConv(1, 3, WIDTH, groups=1, bias=False, norm=False, position=1.0)
    conv.weight.data = torch.tensor([0.0, 1.0, 4.0]).view(1, 1, 1, 3)
    conv.position.data.zero_()
    impulse = torch.zeros(1, 1, 2, 5)
    impulse[..., 0] = 1
    taps = torch.tensor([0.0, 0.5, 1.0, 2.5, 4.0])  # three points stretched to five
    assert torch.allclose(conv(impulse)[0, 0, 0], taps[[0, 4, 3, 2, 1]])
    conv.position.data = torch.tensor([0.0, 2.0, 4.0]).view(1, 1, 1, 3)
    shift = F.conv2d(
        Wrap(WIDTH)(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 5)), taps.view(1, 1, 1, 5)
    )
    assert torch.allclose(conv(torch.zeros(1, 1, 2, 5))[0, 0, 0], shift.flatten())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", PUBLISHED)
def test_every_parameter_learns_at_any_size(form, size):
    parc = ParC(8, 6, **PUBLISHED[form])
    y = parc(torch.randn(2, 8, *size))
    assert y.shape == (2, 8, *size)
    (y * torch.randn_like(y)).sum().backward()
    missing = [
        name for name, p in parc.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not missing
    # a single pixel under a training batch norm may give zeros
    if min(size) > 1 and form != "single, no position":
        assert all(p.grad.any() for p in parc.parameters())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", PUBLISHED)
@pytest.mark.parametrize("norm", [False, True], ids=["bare", "before a batch norm"])
def test_frozen_computes_the_same(form, size, norm):
    parc = ParC(8, 6, **PUBLISHED[form])
    module = _randomize(ParCBN(parc, 8) if norm else parc)
    x = torch.randn(3, 8, *size)

    def freeze(module: nn.Module) -> nn.Module:
        example = x.to(next(module.parameters()))
        frozen = reparameterize(module, example)
        assert isinstance(frozen, FrozenParC)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
        assert frozen(example).dtype == example.dtype
        return frozen

    assert_same_function(module, freeze, x, exact_bound=1e-12)


def test_a_constant_map_only_where_positions_vary_it():
    with_map = reparameterize(ParC(8, 6).eval(), torch.randn(1, 8, 4, 5))
    without = reparameterize(ParC(8, 6, position=False).eval(), torch.randn(1, 8, 4, 5))
    assert with_map.constant.shape == (1, 8, 4, 5)
    assert with_map.first[1].bias is None
    assert without.constant is None
    assert without.first[1].bias.shape == (4,)


def test_frozen_keeps_trainability_and_refuses_another_size():
    parc = ParC(8, 6).requires_grad_(False).eval()
    frozen = parc.fuse_at((4, 5))
    assert not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ModelError, match=r"collapsed for features of \(4, 5\), but has \(5, 4\)"):
        frozen(torch.randn(1, 8, 5, 4))


def test_frozen_can_be_traced_and_exported():
    frozen = _randomize(ParC(8, 6, crossed=True)).fuse_at((4, 7))
    x = torch.randn(2, 8, 4, 7)
    # of the tracer itself; a warning that the trace may be wrong stays an error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
        traced = torch.jit.trace(frozen, x)
        assert difference([frozen(x)], [traced(x)])[1] < 1e-6
    exported = torch.export.export(frozen, (x,)).module()
    assert difference([frozen(x)], [exported(x)])[1] < 1e-6


def test_odd_channels_are_refused():
    with pytest.raises(ModelError, match="7 must be even"):
        ParC(7, 6)


@pytest.mark.parametrize("form", PUBLISHED)
@pytest.mark.parametrize(("size", "long"), [((6, 6), 2), ((4, 9), 1), ((3, 5), 0)])
def test_products_of_matrices_compute_the_same(form: str, size: tuple[int, int], long: int) -> None:
    """Kernels of 6 and more; `long` of the two dimensions have such."""
    parc = _randomize(ParC(8, 6, **PUBLISHED[form]))
    x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    frozen = nn.Sequential(parc.fuse_at(size))
    other, count = with_products(frozen, 6)
    assert count == (0 if "dense" in form else long * (2 if "crossed" in form else 1))
    assert sum(isinstance(module, CircularProduct) for module in other.modules()) == count
    assert not any(isinstance(module, CircularProduct) for module in frozen.modules())  # a copy
    for compact in (False, True):
        assert_same_function(frozen, lambda frozen: with_products(frozen, 6, compact)[0], x)  # noqa: B023
    assert with_products(other, 6)[1] == 0


@pytest.mark.parametrize("form", PUBLISHED)
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("size", [(14, 70), (130, 20)])
def test_whatever_form_is_chosen_the_operator_is_the_same(form, learning, size) -> None:
    parc = _randomize(ParC(8, 16, **PUBLISHED[form]).double())
    x = torch.randn(2, 8, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(learning):
        chosen = parc(x)
        with computed_as("convolution"):
            plain = parc(x)
    assert difference([plain], [chosen])[1] < 1e-12


@pytest.mark.parametrize("computed", ["product", "fourier", "blocks"])
@pytest.mark.parametrize("form", PUBLISHED)
@pytest.mark.parametrize("frozen", [False, True])
def test_what_inference_keeps_is_never_old(form: str, frozen: bool, computed: Form) -> None:
    """Whoever changes a weight or statistic, even where torch counts no change, gets what they make."""
    parc = _randomize(ParC(8, 6, **PUBLISHED[form]).double()).eval()
    operator = parc.fuse_at((10, 12)) if frozen else parc
    x = torch.randn(2, 8, 10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensors = [*operator.named_parameters(), *operator.named_buffers()]
    for name, tensor in [("nothing", None), *tensors, ("nothing", None)]:
        if tensor is not None and tensor.dtype == torch.float64:
            tensor.data[..., :1] *= 1.5
        with torch.no_grad():
            with computed_as(computed):
                chosen, copied = operator(x), copy.deepcopy(operator)(x)
            with computed_as("convolution"):
                plain = operator(x)
        assert difference([plain], [chosen])[1] < 1e-12, name
        assert difference([plain], [copied])[1] < 1e-12, name


def test_what_inference_keeps_follows_a_norm_s_epsilon() -> None:
    parc = _randomize(ParC(8, 6, crossed=True)).eval()
    x = torch.randn(1, 8, 10, 12)
    with torch.no_grad():
        parc(x)
        for norm in parc.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 10.0
        assert difference([copy.deepcopy(parc)(x)], [parc(x)])[1] < 1e-6


def test_what_inference_keeps_goes_where_training_begins() -> None:
    parc = _randomize(ParC(8, 6))
    with torch.no_grad():
        parc(torch.randn(1, 8, 10, 12))
        assert parc.first[0].kept._last is not None
        parc.train()
        assert parc.first[0].kept._last is None


@pytest.mark.parametrize(
    ("form", "learns"),
    [("crossed", "position"), ("crossed", "norm"), ("single", "bias"), ("single, dense", "bias")],
)
def test_what_learns_beside_a_frozen_kernel_gets_its_gradient(form: str, learns: str) -> None:
    """Twice, since what inference has kept belongs to no graph of gradients."""
    parc = _randomize(ParC(8, 6, **PUBLISHED[form]).double()).eval()
    for name, parameter in parc.named_parameters():
        parameter.requires_grad_(learns in name)
    learning = [parameter for parameter in parc.parameters() if parameter.requires_grad]
    x = torch.randn(2, 8, 10, 12, dtype=torch.float64)
    with torch.no_grad():
        parc(x)
    with computed_as("convolution"):
        expected = torch.autograd.grad(parc(x).square().sum(), learning)
    for _ in range(2):
        assert difference(expected, torch.autograd.grad(parc(x).square().sum(), learning))[1] < 1e-9


class Negative(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return -self.module(x)


@pytest.mark.parametrize("what", ["hook of a half", "hook of a stage", "other stage", "other half"])
@torch.no_grad()
def test_results_that_others_change_are_what_they_make(what: str) -> None:
    parc = _randomize(ParC(8, 6)).eval()
    x = torch.randn(1, 8, 10, 12)
    before = parc(x)
    if what == "hook of a half":
        parc.first.register_forward_hook(lambda module, args, y: -y)
    elif what == "hook of a stage":
        parc.first[0].register_forward_hook(lambda module, args, y: -y)
    elif what == "other stage":
        parc.first[0] = Negative(parc.first[0])
    else:
        parc.first = Negative(parc.first)
    expected = torch.cat([-before[:, :4], before[:, 4:]], 1)
    assert difference([expected], [parc(x)])[1] < 1e-6


@torch.no_grad()
def test_a_feature_far_from_zero_keeps_its_precision_under_autocast() -> None:
    """Its mean is taken off before it is rounded to 16 bits."""
    parc = _randomize(ParC(8, 32, crossed=True)).eval()
    x = torch.randn(1, 8, 32, 32) + 30
    for norm in parc.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.fill_(30)
    expected = copy.deepcopy(parc).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        chosen = parc(x).double()
        with computed_as("convolution"):
            plain = parc(x).double()
    assert difference([expected], [chosen])[1] < 1.5 * difference([expected], [plain])[1]


@torch.no_grad()
def test_calls_without_numbers_leave_nothing_behind() -> None:
    parc = _randomize(ParC(8, 6)).eval()
    x = torch.randn(1, 8, 10, 12)
    expected = copy.deepcopy(parc)(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert parc(mode.from_tensor(x)).shape == x.shape
    assert torch.equal(parc(x), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert parc(mode.from_tensor(x)).shape == x.shape
    mapped = torch.func.vmap(parc)(torch.stack([x, 2 * x]))
    assert difference([expected], [mapped[0]])[1] < 1e-5


def test_a_norm_that_is_watched_runs() -> None:
    parc = _randomize(ParC(8, 6, crossed=True)).eval()
    x = torch.randn(1, 8, 10, 12)
    seen = []
    with torch.no_grad():
        unwatched = parc(x)
        parc.first[0].norm.register_forward_hook(lambda norm, args, y: seen.append(y.shape))
        assert difference([unwatched], [parc(x)])[1] < 1e-5
    assert seen == [(1, 4, 10, 12)]


def test_exported_graphs_hold_convolutions_whatever_the_size() -> None:
    """Of a network that is not collapsed: a spectrum is no operator of most runtimes."""
    parc = _randomize(ParC(4, 8))
    graph = torch.export.export(parc, (torch.randn(1, 4, 80, 80),)).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert any("conv" in name for name in called)
    assert not any("fft" in name for name in called)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_frozen_operator_is_the_same_in_every_form(kind, form) -> None:
    frozen = _randomize(ParC(8, 6, **PUBLISHED[kind]).double()).fuse_at((9, 14))
    x = torch.randn(2, 8, 9, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with computed_as("convolution"):
        plain = frozen(x)
    with computed_as(form):
        other = frozen(x)
    assert difference([plain], [other])[1] < 1e-12


def test_who_watches_a_frozen_convolution_sees_it_run() -> None:
    """A pass that calibrates or compares layers has hooks on them, and gets what they take and give."""
    frozen = _randomize(ParC(8, 6)).fuse_at((80, 5))
    x = torch.randn(1, 8, 80, 5)
    seen = []
    unwatched = frozen(x)
    frozen.first[1].register_forward_hook(lambda conv, args, y: seen.append((args[0].shape, y)))
    assert difference([unwatched], [frozen(x)])[1] < 1e-5
    ((extended, y),) = seen
    assert extended == (1, 4, 159, 5)
    assert y.shape == (1, 4, 80, 5)


def test_compiled_and_checkpointed_it_learns_the_same() -> None:
    """At a size that spectra and products are chosen for; only tracing, no code is generated."""
    parc = _randomize(ParC(4, 8).double()).train()
    x = torch.randn(2, 4, 130, 33, dtype=torch.float64)

    def gradients(call) -> list[Tensor]:
        parc.zero_grad()
        y = call(x)
        y.square().sum().backward()
        return [y, *(parameter.grad.clone() for parameter in parc.parameters())]

    expected = gradients(parc)
    compiled = torch.compile(parc, backend="aot_eager", fullgraph=True)
    assert difference(expected, gradients(compiled))[1] < 1e-12
    for reentrant in (False, True):
        inner = x.clone().requires_grad_()
        again = gradients(lambda _: checkpoint(parc, inner, use_reentrant=reentrant))  # noqa: B023
        assert difference(expected, again)[1] < 1e-12


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_files_hold_products_of_long_kernels_alone(name, tmp_path, monkeypatch) -> None:
    """A kernel at the runtime's limit along the height, of 5 along the width; and none where int8 is to be made."""
    runtime = find("runtimes", name)
    if runtime.missing():
        pytest.skip(runtime.missing())
    monkeypatch.setattr(runtime, "PRODUCTS_FROM", 20)
    torch.manual_seed(0)
    x = torch.randn(1, 8, 20, 5)
    frozen = _randomize(ParC(8, 6, position=False)).fuse_at((20, 5))
    operators: list[str] = []
    monkeypatch.setattr(
        onnx, "_name_by_module", lambda graph: operators.extend(n.op_type for n in graph.node)
    )
    for products, counts in ((True, (1, 1)), (False, (0, 2))):
        operators.clear()
        path = tmp_path / f"{products}{runtime.suffix}"
        runtime.export(Request(frozen, x, path, products=products))
        assert (operators.count("MatMul"), operators.count("Conv")) == counts
        (y,) = load(name, path, 1, trust=True)(x.numpy())
        assert difference([frozen(x)], [torch.from_numpy(y)])[1] < 1e-5
