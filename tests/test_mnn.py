"""MNN files compute what the model computes, with weights in float32, float16 and int8.

What every runtime does is in test_runtimes; here are real networks, heads, and what is MNN's own.
"""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_heads import WIDE, ready
from test_runtimes import Named, randomized
from torch import Tensor, nn
from zoo import FACTS, image, random_model

import fleetnet
from fleetnet.data import shapes
from fleetnet.deploy.package import deliver
from fleetnet.deploy.preprocessed import Preprocessed
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.proof.verify import verify
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, files, mnn

pytest.importorskip("MNN")
PIXELS = image(16, 24, batch=1)


@pytest.fixture(scope="module")
def whole(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `model` in float32."""
    path = tmp_path_factory.mktemp("mnn") / "small.mnn"
    mnn.export(Request(reparameterize(model, PIXELS), PIXELS, path, metadata=FACTS.to_json()))
    return path


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("fasternet_t0", {"fp32": 1e-4, "fp16": 2e-3, "int8": 2e-2}),
        ("parc_convnext_xt", {"fp32": 2e-4}),
    ],
)
def test_networks_compute_the_same(name, largest, once, tmp_path):
    model, pictures = random_model(name), image(128, 128, batch=1)
    deploy, sizes, before = reparameterize(model, pictures), [], 0.0
    for precision, limit in largest.items():
        mnn.export(Request(deploy, pictures, tmp_path / "m.mnn", precision=precision))
        examples = torch.stack([pictures, pictures.flip(3), 2 * pictures])
        parity = verify(model, mnn.load(tmp_path / "m.mnn"), examples, mnn.tolerances[precision])
        assert parity.passed, parity
        assert parity.top1_agreement == 1
        assert before < parity.relative < limit <= mnn.tolerances[precision]
        before = 3 * parity.relative  # each precision is really coarser than the one before
        sizes.append((tmp_path / "m.mnn").stat().st_size)
    weights = sum(p.numel() for p in deploy.parameters())
    for size, bytes_of_weight in zip(sizes, (4, 2, 1), strict=False):
        assert size == pytest.approx(bytes_of_weight * weights, rel=0.15)


def test_an_older_opset_has_the_exact_gelu(whole, model, tmp_path):
    mnn.export(Request(reparameterize(model, PIXELS), PIXELS, tmp_path / "exact.mnn", opset=18))
    fast, exact = (
        verify(model, mnn.load(path), [PIXELS], 1).relative
        for path in (whole, tmp_path / "exact.mnn")
    )
    assert exact < 2e-6 < 1e-5 < fast


def test_weights_are_rounded_to_the_nearest_float16(tmp_path):
    """The converter alone would cut them off: all of them become smaller."""
    layer = nn.Conv2d(3, 8, 3, bias=False)
    with torch.no_grad():
        layer.weight.uniform_(
            1, 1.0009
        )  # between two float16, nearer to the upper one if above 1.00049
    mnn.export(Request(layer.eval(), PIXELS, tmp_path / "m.mnn", precision="fp16"))
    (given,) = mnn.load(tmp_path / "m.mnn")(PIXELS.numpy())
    nearest = copy.deepcopy(layer)
    nearest.weight.data = layer.weight.data.half().float()
    assert nearest.weight.unique().numel() == 2
    np.testing.assert_allclose(given, nearest(PIXELS).detach(), atol=1e-4)


def wrong_sign(weight: Tensor) -> None:
    """Of the largest of all weights."""
    weight.view(-1)[weight.abs().argmax()] *= -1


def wrong_order(weight: Tensor) -> None:
    """Of the channels: int8 is too coarse to tell one wrong weight from rounding."""
    weight.copy_(weight.roll(1, 0))


@pytest.mark.parametrize(
    ("precision", "fault"), [("fp32", wrong_sign), ("fp16", wrong_sign), ("int8", wrong_order)]
)
def test_a_fault_is_beyond_the_tolerance(precision, fault, model, tmp_path):
    other = reparameterize(model, PIXELS)
    fault(other.classifier.weight.detach())
    mnn.export(Request(other, PIXELS, tmp_path / "m.mnn", precision=precision))
    examples = torch.stack([PIXELS, PIXELS.flip(3), -PIXELS])
    assert not verify(
        model, mnn.load(tmp_path / "m.mnn"), examples, mnn.tolerances[precision]
    ).passed


@pytest.mark.parametrize("head", ["maskrcnn/fasternet_t0", "deeplabv3/parcnet_xs"])
def test_answers_in_the_graph(head, tmp_path):
    """With RoIAlign, NMS and argmax; `export` compares what is found, and raises."""
    pictures = [shapes.draw(i) for i in range(2)]
    done = fleetnet.export(
        ready(head, WIDE, True),
        "mnn",
        tmp_path / "m.mnn",
        size=WIDE,
        embed_decode=True,
        pictures=pictures,
    )
    found = fleetnet.load(done.path).predictions(pictures)
    if head.startswith("deeplabv3"):
        assert done.parity.agreement.pixels >= 0.999
        assert all(len(one.labels.unique()) > 1 for one in found)
    else:
        assert done.parity.agreement.boxes > 20
        assert all(len(one) for one in found)


@pytest.mark.parametrize("dynamic", [False, True])
def test_deliver(dynamic, tmp_path, capfd):
    done = deliver(
        randomized(Named()), PIXELS, tmp_path / "model.mnn", "mnn", FACTS, dynamic=dynamic
    )
    assert capfd.readouterr() == ("", "")
    assert files(done.path) == [done.path]
    facts = mnn.metadata(done.path)
    assert (facts["classes"], [o["name"] for o in facts["outputs"]]) == (
        FACTS.classes,
        ["values", "classes"],
    )
    run = mnn.load(done.path)
    values, classes = run(PIXELS.numpy())
    assert (values.dtype, classes.dtype) == (np.float32, np.int64)
    content = done.path.read_bytes()
    assert all(
        str(place).encode() not in content
        for place in (tmp_path, Path.home(), Path(torch.__file__).parent)
    )
    if dynamic:
        five = np.random.default_rng(0).normal(size=(5, 3, 16, 24))  # float64, cast
        singly = np.concatenate([run(five[i : i + 1])[0] for i in range(5)])
        np.testing.assert_allclose(run(five)[0], singly, atol=1e-6)


def test_outputs_stay_as_they_are(whole):
    """The next call overwrites neither what this one gave nor what it was given."""
    run, batch = mnn.load(whole), PIXELS.numpy().copy()
    (first,) = run(batch)
    kept, given = first.copy(), batch.copy()
    assert np.abs(run(2 * batch)[0] - first).max() > 1e-3
    assert np.array_equal(first, kept)
    assert np.array_equal(batch, given)
    flipped = given[:, :, ::-1]  # not in the order of memory
    assert np.array_equal(run(flipped)[0], run(flipped.copy())[0])


def test_what_a_file_takes_is_said(whole, model, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"small\.mnn: takes images of shape \(1, 3, 16, 24\), got \(2, 3, 16, 24\)",
    ):
        mnn.load(whole)(np.zeros((2, 3, 16, 24), np.float32))
    bytes_in = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    embedded = Preprocessed(model, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "BGR")
    mnn.export(Request(reparameterize(embedded, bytes_in), bytes_in, tmp_path / "bytes.mnn"))
    run = mnn.load(tmp_path / "bytes.mnn")
    np.testing.assert_allclose(run(bytes_in.numpy())[0], embedded(bytes_in).detach(), atol=1e-3)
    with pytest.raises(ModelError, match="takes uint8, got float32"):
        run(PIXELS.numpy())
    with pytest.raises(UsageError, match="takes images of float32 or uint8, not of float64"):
        mnn.export(Request(model, PIXELS.double(), tmp_path / "double.mnn"))


def test_layers_are_traced_by_module(whole, model):
    deploy = reparameterize(model, PIXELS)
    seen: dict[str, Tensor] = {}
    for name in ("body.0", "body.1", "body.3"):
        deploy.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o.detach()})
        )
    seen["logits"] = deploy(PIXELS).detach()
    traced = mnn.trace(whole)(PIXELS.numpy())
    assert next(iter(traced)).startswith("body.0/")
    assert list(traced)[-1] == "logits"
    for name, value in seen.items():
        (layer,) = [layer for layer in traced if layer == name or layer.startswith(f"{name}/")]
        np.testing.assert_allclose(traced[layer], value, atol=1e-3)


def test_an_operator_that_is_missing_is_named(tmp_path):
    class Folded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.fold(nn.functional.unfold(x, 2), (16, 24), 2)

    with pytest.raises(ExportError, match=r"m\.mnn: MNN has no operator Col2Im"):
        mnn.export(Request(Folded().eval(), PIXELS, tmp_path / "m.mnn"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os; os.abort()",
            r"MNN cannot convert this model: its process ended with signal 6",
        ),
        (
            "import sys; print('some error'); sys.exit(1)",
            r"MNN cannot convert this model: some error",
        ),
        ("import time; time.sleep(9)", r"MNN has not converted this model after 0\.1 s"),
    ],
)
def test_a_converter_that_fails_is_reported(code, message, model, monkeypatch, tmp_path, once):
    (tmp_path / "m.mnn").write_bytes(b"an older file")
    monkeypatch.setattr(mnn, "CONVERT", code)
    monkeypatch.setattr(mnn, "SECONDS", 0.1 if "sleep" in code else 60)
    with pytest.raises(ExportError, match=message):
        mnn.export(Request(model, PIXELS, tmp_path / "m.mnn"))


@pytest.mark.parametrize("read", [mnn.load, mnn.metadata, mnn.trace])
def test_damaged_files_are_named(read, whole, tmp_path, capfd):
    path = tmp_path / "damaged.mnn"
    with pytest.raises(ModelError, match=r"damaged\.mnn: no such file"):
        read(path)
    for content in (
        b"",
        b"this is no MNN file",
        whole.read_bytes()[:-8],
        whole.read_bytes()[:2000],
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"damaged\.mnn: not a readable MNN file"):
            read(path)
    assert capfd.readouterr() == ("", "")


def test_files_of_other_programs_are_refused(whole, tmp_path):
    shutil.copy(whole, tmp_path / "other.mnn")
    content = whole.read_bytes()
    (tmp_path / "other.mnn").write_bytes(content.replace(b'"outputs"', b'"results"'))
    with pytest.raises(ModelError, match=r"other\.mnn: an MNN file of another program"):
        mnn.load(tmp_path / "other.mnn")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "MNN", None)
    for call in (
        lambda: mnn._package(),
        lambda: mnn.export(Request(nn.Identity(), PIXELS, tmp_path / "m.mnn")),
    ):
        with pytest.raises(ExportError, match=r"pip install 'fleetnet\[mnn\]'"):
            call()


def test_nothing_is_reported_to_anyone(whole):
    """MNN's own command imports a reporter, which installs a package."""
    assert "MNN.tools" not in mnn.CONVERT
    code = (
        "import sys, pathlib; from fleetnet.runtimes import mnn; "
        "mnn.load(pathlib.Path(sys.argv[1]));print('MNN.tools.utils.log' in sys.modules, 'MNN' in "
        "sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(whole)], capture_output=True, text=True)
    assert said.stdout.split() == ["False", "True"], said.stderr
