"""ExecuTorch files: they compute what the model computes and name what they cannot hold. Lowering is slow, so that
one small network has all the operators that are spelled for XNNPACK.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from test_heads import made
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import image, randomize

import fleetnet
from fleetnet.deploy.package import Delivered, deliver
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.layers import ConvBN
from fleetnet.measure.flops import count
from fleetnet.parc import ParC
from fleetnet.proof.verify import verify
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, executorch, fast_share, kernels, outside

pytest.importorskip("executorch")
SIZE = (9, 14)


class Small(nn.Module):
    """Image (N, 3, H, W) -> a map, its classes, and what it says of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.partial, self.parc = (
            ConvBN(3, 8, 3, stride=2),
            nn.Conv2d(2, 2, 3, padding=1),
            ParC(8, 4),
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        x = self.stem(picture)
        first, rest = x.split([2, 6], dim=1)
        x = self.parc(torch.cat([self.partial(first), rest], 1))
        x = F.gelu(x) * F.hardsigmoid(x.mean((2, 3), keepdim=True))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return {
            "map": x,
            "logits": self.head(x.mean((2, 3), keepdim=True).flatten(1)),
            "best": x.argmax(1),
        }


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return randomize(Small(), 0)


@pytest.fixture(scope="module")
def done(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return deliver(
        small,
        image(*SIZE, 2),
        tmp_path_factory.mktemp("executorch") / "model.pte",
        "executorch",
        None,
    )


def test_several_outputs_in_order(
    small: nn.Module, done: Delivered, capfd: pytest.CaptureFixture[str]
):
    assert sorted(f.name for f in done.path.parent.iterdir()) == [
        "golden.npz",
        "model.json",
        "model.pte",
    ]
    assert 0 < done.parity.relative < 1e-5
    assert done.parity.agreement.pixels == 1
    batch = image(*SIZE, 2)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in small(batch).items()}
    run = executorch.load(done.path)
    found = run(batch.numpy())
    kept = [value.copy() for value in found]
    run(-batch.numpy())
    for name, value, before in zip(expected, found, kept, strict=True):
        assert value.dtype == expected[name].dtype
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
        assert np.array_equal(value, before)  # not overwritten by the next call
    assert capfd.readouterr() == ("", "")


def test_all_but_the_argmax_goes_to_xnnpack(done: Delivered):
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = deserialize_pte_binary(done.path.read_bytes()).program.execution_plan[0]
    assert {delegate.id for delegate in plan.delegates} == {"XnnpackBackend"}
    assert [operator.name for operator in plan.operators] == ["aten::argmax"]


def test_long_kernels_of_parc_are_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """XNNPACK has no depthwise kernels for them; the file is the larger for it, and computes the same."""
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), ParC(8, 6, crossed=True)), 0).eval()
    example, sizes = image(6, 6, batch=1), {}
    for taps in (5, 25):
        monkeypatch.setattr(executorch, "TAPS", taps)
        path = tmp_path / f"{taps}.pte"
        executorch.export(Request(reparameterize(model, example), example, path))
        assert verify(model, executorch.load(path), [example], executorch.tolerances["fp32"]).passed
        sizes[taps] = path.stat().st_size
    assert sizes[5] > sizes[25]


def test_nothing_of_this_machine_is_in_the_file(done: Delivered):
    content = done.path.read_bytes()
    for place in (Path(__file__).parents[1], Path(torch.__file__).parent, done.path.parent):
        assert str(place).encode() not in content


def test_a_changed_weight_is_found(small: nn.Module, done: Delivered, tmp_path: Path):
    example, content = image(*SIZE, 2), done.path.read_bytes()
    bias = reparameterize(small, example).get_submodule("stem").bias.detach().numpy()
    start = content.index(bias.tobytes())
    bias = bias.copy()
    bias[3] *= -1
    (tmp_path / "m.pte").write_bytes(
        content[:start] + bias.tobytes() + content[start + bias.nbytes :]
    )
    right, wrong = (
        verify(small, executorch.load(path), [example], executorch.tolerances["fp32"])
        for path in (done.path, tmp_path / "m.pte")
    )
    assert right.passed
    assert not wrong.passed


def test_files_of_different_numbers_of_threads_live_together(
    done: Delivered, capfd: pytest.CaptureFixture[str]
):
    """The pool is one for the process; what was loaded with another one that is gone would crash."""
    batch = image(*SIZE, 2).numpy()
    runs = {threads: executorch.load(done.path, threads) for threads in (1, 2, 3)}
    expected = runs[1](batch)
    library = import_module("executorch.extension.pybindings.portable_lib")
    for _ in range(3):
        for threads, run in runs.items():
            assert all(np.array_equal(a, b) for a, b in zip(run(batch), expected, strict=True))
            assert library._threadpool_get_thread_count() == threads
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("head", "operator"), [("ssd", "nms"), ("maskrcnn", "roi_align")])
def test_what_executorch_cannot_hold_is_named(head: str, operator: str, tmp_path: Path):
    model = randomize(made(f"{head}/mobileone_s0"), 0)
    with pytest.raises(
        ExportError, match=f"no operator for .*torchvision::{operator}.* export without the decode"
    ):
        fleetnet.export(model, "executorch", tmp_path / "m.pte", size=(64, 64), embed_decode=True)
    assert not list(tmp_path.iterdir())


def test_an_open_number_of_images_and_other_types_are_refused(small: nn.Module, tmp_path: Path):
    with pytest.raises(UsageError, match="leave dynamic out"):
        executorch.export(Request(small, image(*SIZE), tmp_path / "m.pte", dynamic=True))
    with pytest.raises(UsageError, match=r"the example is torch\.float64"):
        executorch.export(Request(small, image(*SIZE).double(), tmp_path / "m.pte"))


def test_missing_and_damaged_files(done: Delivered, tmp_path: Path):
    with pytest.raises(ModelError, match="no such file"):
        executorch.load(tmp_path / "m.pte")
    for content in (b"", done.path.read_bytes()[:3000]):
        (tmp_path / "m.pte").write_bytes(content)
        with pytest.raises(ModelError, match="ExecuTorch cannot load this file"):
            executorch.load(tmp_path / "m.pte")


def test_another_shape_is_refused(done: Delivered):
    with pytest.raises(
        ModelError, match=r"takes images of shape \(2, 3, 9, 14\), got \(1, 3, 9, 14\)"
    ):
        executorch.load(done.path)(image(*SIZE, 1).numpy())


class Spread(nn.Module):
    """A map and its nearest upsampling, which XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, picture: Tensor) -> Tensor:
        return self.last(F.interpolate(self.stem(picture), scale_factor=2.0))


def test_what_xnnpack_does_not_take_is_named(tmp_path: Path) -> None:
    model, example = Spread().eval(), torch.randn(1, 3, *SIZE)
    executorch.export(Request(model, example, tmp_path / "model.pte"))
    told = kernels("executorch", tmp_path / "model.pte", example.numpy())
    assert told is not None
    assert [(each.operator, each.slow) for each in outside(told)] == [
        ("aten::upsample_nearest2d", "not handed to XNNPACK")
    ]
    assert sum(kernel.macs for kernel in told) == count(model, example).macs
    assert fast_share(told) == 1  # what it does not take has no products
