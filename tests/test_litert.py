"""LiteRT: its converter's environment, never made unasked, and, where that and its runtime are, its files.

What needs the environment is skipped without it; `fleetnet doctor --install litert` makes it, in
minutes.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms
from zoo import FACTS, randomize

from fleetnet.deploy.package import deliver
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.layers import ConvBN, SqueezeExcite
from fleetnet.measure.flops import count
from fleetnet.proof.explain import explain
from fleetnet.proof.verify import verify
from fleetnet.runtimes import File, Request, _isolated, fast_share, litert, outside
from fleetnet.runtimes._litert_worker import is_open
from fleetnet.runtimes._program import capture

SIZE = (12, 20)


class Small(nn.Module):
    """Image -> "z" (N, 5), "boxes" (N, 48, 4) and class "map" (N, h, w); with the two operators that are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = ConvBN(3, 8, 3, stride=2), nn.Hardswish()
        self.gate, self.gelu = SqueezeExcite(8, 4), nn.GELU()
        self.pooled, self.map = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.gate(self.gelu(self.act(self.stem(image))))
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        maps = self.map(torch.cat([x, pooled], 1))
        boxes = maps.view(x.shape[0], 2, 2, *x.shape[-2:]).permute(0, 1, 3, 4, 2) ** 2
        return {
            "z": self.classifier(x.mean((2, 3))),
            "boxes": boxes.flatten(1, 3),
            "map": maps.argmax(1),
        }


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomize(Small(), 0)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETNET_ENVS", str(tmp_path / "envs"))
    return tmp_path / "envs"


def ready(root: Path, **changes: object) -> Path:
    """An environment that looks as if it had been made, whose Python is this one."""
    (root / "litert/bin").mkdir(parents=True)
    (root / "litert/bin/python").symlink_to(sys.executable)
    (root / "litert" / _isolated.CARD).write_text(json.dumps(_isolated._card("litert") | changes))
    return root / "litert"


def test_without_the_environment_the_command_is_said(
    root: Path, model: nn.Module, image: Tensor, tmp_path: Path
):
    with pytest.raises(
        ExportError, match=r"is not there .*fleetnet doctor --install litert .*--isolated"
    ):
        deliver(model, image, tmp_path / "out/model.tflite", "litert", FACTS)
    assert not root.exists()
    assert not (tmp_path / "out").exists()


def test_an_environment_made_of_something_else_does_not_count(root: Path):
    assert _isolated.converters() == ["litert"]
    place = ready(root, python="3.9.0")
    assert _isolated.missing("litert").endswith(
        "made of other python: fleetnet doctor --install litert"
    )
    (place / _isolated.CARD).write_text(json.dumps(_isolated._card("litert")))
    assert _isolated.missing("litert") is None
    (place / _isolated.CARD).write_text("{")
    assert "not made to the end" in _isolated.missing("litert")


def test_making_one(root: Path, monkeypatch: pytest.MonkeyPatch):
    """All but what `venv` and pip do, which takes minutes."""
    commands, packages = [], root / "packages"

    def call(words: list[str], failed: str) -> str:
        commands.append(words)
        (root / "litert").mkdir(exist_ok=True)
        packages.mkdir(exist_ok=True)
        return f"{packages}\n" if "-c" in words else ""

    monkeypatch.setattr(_isolated, "_call", call)
    (root / "litert").mkdir(parents=True)
    (root / "litert/left").write_text("by one that was interrupted")
    assert _isolated.create("litert") == root / "litert"
    assert [words[1:3] for words in commands] == [["-m", "venv"], ["-I", "-c"], ["-I", "-m"]]
    assert {"litert-torch==0.10.0", f"torch=={torch.__version__.partition('+')[0]}"} <= set(
        commands[-1]
    )
    assert (packages / "fleetnet_shared.pth").read_text().splitlines() == [
        str(Path(torch.__file__).parents[1])
    ]
    assert not (root / "litert/left").exists()
    assert _isolated.missing("litert") is None
    _isolated.create("litert")  # is ready
    assert len(commands) == 3
    with pytest.raises(UsageError, match="onnx needs no environment of its own: Allowed: litert"):
        _isolated.create("onnx")


def test_what_pip_says_is_passed_on_and_half_an_environment_does_not_count(root: Path):
    with pytest.raises(ExportError, match=r"cannot be made: .*No such file"):
        _isolated._call([str(root / "absent")], "the environment cannot be made")
    code = "import sys; sys.stderr.write('ERROR: no torch==9\\nhint: none\\n'); sys.exit(1)"
    with pytest.raises(ExportError, match=r"cannot be made: ERROR: no torch==9$"):
        _isolated._call([sys.executable, "-c", code], "the environment cannot be made")


def test_a_script_runs_apart_and_its_last_words_are_said(root: Path, tmp_path: Path):
    ready(root)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nopen(sys.argv[1], 'w').write(' '.join(sys.path))\nsys.exit('no tfl.pow')"
    )
    (tmp_path / "json.py").write_text(
        "raise RuntimeError('a file beside the script came before the packages')"
    )
    with pytest.raises(ExportError, match=r"^litert cannot convert this model: no tfl.pow$"):
        _isolated.run("litert", script, str(tmp_path / "path"))
    assert str(tmp_path) not in (tmp_path / "path").read_text().split()


def test_numbers_among_the_weights_are_no_images():
    """As a batch norm counts its batches, one of timm's that stays by itself among them."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("batches", torch.tensor(0))

        def forward(self, *, image: Tensor) -> Tensor:
            return image + self.batches

    images = {"image": torch.zeros(2, 3)}
    for sizes in (None, {"image": {0: torch.export.Dim("batch")}}):
        program = torch.export.export(Counting(), (), images, dynamic_shapes=sizes)
        assert is_open(program) is (sizes is not None)


def test_replaced_operators_compute_the_same(model: nn.Module, image: Tensor):
    request = Request(model, image, Path(), ["z", "boxes", "map"])
    program = capture(request, instead=litert.INSTEAD)
    used = {str(node.target) for node in program.graph.nodes}
    assert not used & {"aten.pow.Tensor_Scalar", "aten.expand.default"}
    assert {"aten.pow.Tensor_Scalar", "aten.expand.default"} <= {
        str(node.target) for node in capture(request).graph.nodes
    }
    for expected, given in zip(
        model(image).values(), program.module()(image=image).values(), strict=True
    ):
        assert torch.equal(expected, given)


def test_what_the_format_cannot_hold(root: Path, image: Tensor, tmp_path: Path):
    class Chooses(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return nms(image[0, 0, :, :4], image[0, 0, :, 4], 0.5)

    ready(root)
    with pytest.raises(
        ExportError, match="operator nms, which this format cannot hold: litert-torch"
    ):
        litert.export(Request(Chooses(), image, tmp_path / "m.tflite"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(litert, "find_spec", lambda name: None)
    assert litert.missing() == "ai-edge-litert is not installed: pip install 'fleetnet[litert]'"
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ExportError, match=r"pip install 'fleetnet\[litert\]'"):
        litert.load(tmp_path / "m.tflite")


@pytest.fixture(scope="module")
def file(model: nn.Module, image: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = litert.missing()
    if missing:
        pytest.skip(missing)
    return deliver(
        model, image, tmp_path_factory.mktemp("litert") / "net.tflite", "litert", FACTS
    ).path


def test_a_file_computes_the_same(file: Path, model: nn.Module, image: Tensor):
    sidecar = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["parity"]["passed"]
    assert 0 < sidecar["parity"]["relative"] < 1e-5
    assert litert.metadata(file)["classes"] == FACTS.classes
    run = litert.load(file)
    first = run(image.numpy())
    assert [output["dtype"] for output in sidecar["outputs"]] == [
        output.dtype.name for output in first
    ]
    assert sidecar["outputs"][2]["dtype"] == "int32"
    kept = [output.copy() for output in first]
    for expected, given in zip(model(-image).values(), run(-image.numpy()), strict=True):
        np.testing.assert_allclose(given, expected.detach().numpy(), atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))  # not overwritten
    with pytest.raises(
        ModelError, match=r"takes images of shape \(1, 3, 12, 20\), got \(1, 3, 20, 12\)"
    ):
        run(image.mT.numpy())
    with pytest.raises(ModelError, match="takes float32, got complex64"):
        run(image.numpy().astype(np.complex64))
    for place in (Path(__file__).parents[1], Path(torch.__file__).parent):
        assert str(place).encode() not in file.read_bytes()


def test_which_kernels_compute_a_file(file: Path, model: nn.Module, image: Tensor):
    told = litert.kernels(file, image.numpy())
    assert sum(kernel.macs for kernel in told) == count(model, image).macs
    assert fast_share(told) == 1
    # indices, and what is repeated over a map, are LiteRT's own; they have no products
    assert [kernel.operator for kernel in outside(told)] == ["BROADCAST_TO", "ARG_MAX"]


def test_nothing_is_printed(file: Path, image: Tensor, capfd: pytest.CaptureFixture[str]):
    litert.load(file, threads=2)(image.numpy())
    litert.trace(file)(image.numpy())
    assert capfd.readouterr() == ("", "")


def test_one_changed_weight_is_found_and_its_layer_named(
    file: Path, model: nn.Module, image: Tensor, tmp_path: Path
):
    weight = model.pooled.weight.detach().numpy().reshape(8, 8)
    content = file.read_bytes()
    assert content.count(weight.tobytes()) == 1
    changed = weight.copy()
    changed[3, 4] += 1
    (tmp_path / "net.tflite").write_bytes(content.replace(weight.tobytes(), changed.tobytes()))
    assert not verify(model, litert.load(tmp_path / "net.tflite"), [image], 1e-4).passed
    found = explain(model, File("litert", tmp_path / "net.tflite"), [image], 1e-4)
    assert found.module == "pooled"


def test_what_cannot_be_read(file: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no such file"):
        litert.load(tmp_path / "absent.tflite")
    for content in (b"", b"no flatbuffer at all", file.read_bytes()[:3000]):
        (tmp_path / "bad.tflite").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad.tflite"):
            litert.load(tmp_path / "bad.tflite")
        with pytest.raises(ModelError, match=r"bad.tflite"):
            litert.metadata(tmp_path / "bad.tflite")


def test_the_environment_is_kept_apart(file: Path):
    """Packages of both: what litert-torch pins, and torch from here."""
    code = "import torch, typing_extensions, importlib.metadata as m; print(torch.__file__, m.version('xdsl'))"
    said = _isolated._call([str(_isolated._python("litert")), "-I", "-c", code], "failed").split()
    assert said[0] == torch.__file__
    assert os.path.isdir(_isolated.folder("litert"))
