"""OpenVINO files compute what the model computes, in float32 and in bfloat16, and say which.

What every runtime does is in test_runtimes; here are real networks, heads, and what is OpenVINO's
own.
"""

import copy
import os
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
from fleetnet.errors import ExportError, ModelError
from fleetnet.proof.verify import verify
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, files, openvino

pytest.importorskip("openvino")
BF16 = openvino._has_bf16()
PRECISIONS = ["fp32", *(["bf16"] if BF16 else [])]


PIXELS = image(16, 24, batch=1)


@pytest.fixture(scope="module")
def whole(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `model` in float32."""
    path = tmp_path_factory.mktemp("openvino") / "small.xml"
    openvino.export(Request(reparameterize(model, PIXELS), PIXELS, path, metadata=FACTS.to_json()))
    return path


@pytest.fixture
def small(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for file in files(whole):
        shutil.copy(file, tmp_path)
    return tmp_path / whole.name


@pytest.mark.parametrize("name", ["fasternet_t0", "parcnet_xs"])
def test_networks_compute_the_same(name, once, tmp_path):
    """And not the same in both precisions: OpenVINO takes bfloat16 of its own accord where it can."""
    model, pictures = random_model(name), image(128, 128, batch=1)
    deploy, found = reparameterize(model, pictures), {}
    for precision in PRECISIONS:
        openvino.export(Request(deploy, pictures, tmp_path / "m.xml", precision=precision))
        examples = torch.stack([pictures, pictures.flip(3), 2 * pictures])
        parity = verify(
            model, openvino.load(tmp_path / "m.xml"), examples, openvino.tolerances[precision]
        )
        assert parity.passed, parity
        assert parity.top1_agreement == 1
        found[precision] = parity.relative
    assert 0 < found["fp32"] < 1e-5
    assert not BF16 or found["bf16"] > 1e-4


def wrong_epsilon(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def wrong_weight(model: nn.Module) -> None:
    weight = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.detach()
    weight.view(-1)[weight.abs().argmax()] *= -1


@pytest.mark.parametrize(
    ("name", "fault"), [("mobileone_s0", wrong_epsilon), ("small", wrong_weight)]
)
def test_a_fault_is_beyond_the_tolerance(name, fault, model, tmp_path):
    right = model if name == "small" else random_model(name)
    wrong, pictures = copy.deepcopy(right), image(64, 64, batch=1)
    fault(wrong)
    openvino.export(Request(reparameterize(wrong, pictures), pictures, tmp_path / "m.xml"))
    tolerance = openvino.tolerances["fp32"]
    assert (
        verify(right, openvino.load(tmp_path / "m.xml"), [pictures], tolerance).relative
        > 5 * tolerance
    )


@pytest.mark.parametrize("head", ["yolo/mobileone_s0", "maskrcnn/fasternet_t0"])
def test_detections_in_the_graph(head, tmp_path):
    """With RoIAlign and NMS; `export` compares what is found, and raises."""
    pictures = [shapes.draw(i) for i in range(2)]
    done = fleetnet.export(
        ready(head, WIDE, True),
        "openvino",
        tmp_path / "m.xml",
        size=WIDE,
        embed_decode=True,
        pictures=pictures,
    )
    assert done.parity.agreement.boxes > 20
    predictor = fleetnet.load(done.path)
    assert predictor.facts.embedded_decode is True
    assert all(len(found) for found in predictor.predictions(pictures))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_deliver(precision, dynamic, tmp_path, capfd):
    done = deliver(
        randomized(Named()),
        PIXELS,
        tmp_path / "model.xml",
        "openvino",
        FACTS,
        precision=precision,
        dynamic=dynamic,
    )
    assert capfd.readouterr() == ("", "")
    assert [f.name for f in files(done.path)] == ["model.xml", "model.bin"]
    facts = openvino.metadata(done.path)
    assert (facts["classes"], [o["name"] for o in facts["outputs"]]) == (
        FACTS.classes,
        ["values", "classes"],
    )
    run = openvino.load(done.path)
    values, classes = run(PIXELS.numpy())
    assert (values.dtype, classes.dtype) == (np.float32, np.int64)
    text = done.path.read_bytes()
    assert all(
        str(place).encode() not in text
        for place in (tmp_path, Path.home(), Path(torch.__file__).parent)
    )
    if dynamic:
        five = np.random.default_rng(0).normal(size=(5, 3, 16, 24))  # float64, cast
        singly = np.concatenate([run(five[i : i + 1])[0] for i in range(5)])
        np.testing.assert_allclose(run(five)[0], singly, atol=1e-6 if precision == "fp32" else 0.05)


def test_outputs_stay_as_they_are(whole):
    """The next call overwrites neither what this one gave nor what it was given."""
    run, batch = openvino.load(whole), PIXELS.numpy().copy()
    (first,) = run(batch)
    kept, given = first.copy(), batch.copy()
    (other,) = run(2 * batch)
    assert np.abs(other - first).max() > 1e-3
    assert np.array_equal(first, kept)
    assert np.array_equal(batch, given)
    batch += 1  # in place: no copy of it may be used instead
    assert np.abs(run(batch)[0] - kept).max() > 1e-3
    flipped = given[:, :, ::-1]  # not in the order of memory
    assert np.array_equal(run(flipped)[0], run(flipped.copy())[0])


def test_what_a_file_takes_is_said(whole, model, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"small\.xml: takes images of shape \(1, 3, 16, 24\), got \(2, 3, 16, 24\)",
    ):
        openvino.load(whole)(np.zeros((2, 3, 16, 24), np.float32))
    bytes_in = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    embedded = Preprocessed(model, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "BGR")
    openvino.export(Request(reparameterize(embedded, bytes_in), bytes_in, tmp_path / "bytes.xml"))
    run = openvino.load(tmp_path / "bytes.xml")
    np.testing.assert_allclose(run(bytes_in.numpy())[0], embedded(bytes_in).detach(), atol=1e-5)
    with pytest.raises(ModelError, match="takes uint8, got float32"):
        run(PIXELS.numpy())


def test_layers_are_traced_by_module(whole, model):
    deploy = reparameterize(model, PIXELS)
    seen: dict[str, Tensor] = {}
    for name in ("body.0", "body.1", "body.3", "classifier"):
        deploy.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o.detach()})
        )
    deploy(PIXELS)
    traced = openvino.trace(whole)(PIXELS.numpy())
    assert next(iter(traced)).startswith("body.0/")
    assert list(traced)[-1] == "logits"
    for name, value in seen.items():
        of = [
            layer
            for layer in traced
            if layer.startswith(f"{name}/") or (name == "classifier" and layer == "logits")
        ]
        np.testing.assert_allclose(traced[of[-1]], value, atol=1e-5)


def test_instruction_sets_that_are_limited_have_no_bfloat16(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not openvino._has_bf16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert openvino._has_bf16() == (
        "BF16" in openvino.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    )


@pytest.mark.skipif(not BF16, reason="needs a CPU with bfloat16")
def test_a_cpu_without_bfloat16(whole, model, tmp_path, monkeypatch):
    """Nothing is proven there, but what was proven elsewhere runs, in float32."""
    deploy = reparameterize(model, PIXELS)
    openvino.export(Request(deploy, PIXELS, tmp_path / "half.xml", precision="bf16"))
    exact, half = (
        openvino.load(path)(PIXELS.numpy())[0] for path in (whole, tmp_path / "half.xml")
    )
    assert np.abs(half - exact).max() > 1e-5
    monkeypatch.setattr(openvino, "_has_bf16", lambda: False)
    assert np.array_equal(openvino.load(tmp_path / "half.xml")(PIXELS.numpy())[0], exact)
    with pytest.raises(ExportError, match=r"this CPU has no bfloat16.*choose openvino:fp32"):
        openvino.export(Request(deploy, PIXELS, tmp_path / "none.xml", precision="bf16"))


def test_an_operator_that_is_missing_is_named(tmp_path):
    class Determinant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(x[..., :6, :6])

    with pytest.raises(ExportError, match=r"m\.xml: OpenVINO cannot convert this model: .*Det"):
        openvino.export(Request(Determinant().eval(), PIXELS, tmp_path / "m.xml"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [openvino.load, openvino.metadata, openvino.trace])
def test_damaged_files_are_named(read, small, capfd):
    weights, graph = small.with_suffix(".bin"), small.read_bytes()
    for content in (b"", b"this is no XML", graph[: len(graph) // 2]):
        small.write_bytes(content)
        with pytest.raises(ModelError, match=r"small\.xml: "):
            read(small)
    small.write_bytes(graph)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"small\.xml: .*weights"):
        read(small)
    weights.unlink()
    with pytest.raises(ModelError, match=r"small\.bin: no such file"):
        read(small)
    assert capfd.readouterr() == ("", "")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"pip install 'fleetnet\[openvino\]'"):
        openvino.load(tmp_path / "m.xml")


def test_nothing_is_reported_to_anyone(whole, tmp_path):
    """OpenVINO's reporter would leave an identity in the home folder, and send it from there."""
    code = (
        "import sys, pathlib; from fleetnet.runtimes import openvino; "
        "openvino.load(pathlib.Path(sys.argv[1]));print('openvino_telemetry' in sys.modules, "
        "'openvino' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(whole)],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.split() == ["False", "True"], said.stderr
    assert not list(tmp_path.iterdir())


KILLS = """
import ctypes, gc, signal, sys
from fleetnet.runtimes import openvino
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
for _ in range(2):
    runs = [openvino.load(path) for path in sys.argv[1:]]
    while runs:  # the first goes first
        del runs[0]
        gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_are_handled_after_files_have_come_and_gone(whole, tmp_path):
    """A `Core` of OpenVINO for each file would leave the stack of the handlers in memory that is gone."""
    words = [sys.executable, "-X", "faulthandler", "-c", KILLS, str(whole), str(whole)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
