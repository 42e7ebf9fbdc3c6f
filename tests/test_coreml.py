"""Core ML packages: written here, read back, and refused where they are not what the model is."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms
from zoo import FACTS, randomize

import fleetnet
from fleetnet.deploy.package import deliver
from fleetnet.deploy.preprocessed import Preprocessed
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.layers import ConvBN, SqueezeExcite
from fleetnet.parc import ParC
from fleetnet.proof.verify import verify
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, _mil, coreml

SIZE = (12, 20)


class Small(nn.Module):
    """Image -> logits (N, 5) and a map (N, 8, h, w): what our networks are made of, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = ConvBN(3, 16, 3, stride=2), nn.Hardswish()
        self.depthwise, self.gelu = ConvBN(16, 16, 3, groups=16), nn.GELU()
        self.gate, self.parc, self.silu = SqueezeExcite(16, 4), ParC(16, 6, crossed=True), nn.SiLU()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)
        self.map, self.classifier = nn.Conv2d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.gate(self.gelu(self.depthwise(self.act(self.stem(image)))))
        x = x + self.silu(self.parc(x))
        x = x + self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        enlarged = nn.functional.interpolate(self.map(x[:, :8]), scale_factor=2, mode="bilinear")
        return {"logits": self.classifier(x.mean((2, 3))), "map": enlarged}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomize(Small(), 0)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def deploy(model: nn.Module, image: Tensor) -> nn.Module:
    return reparameterize(model, image)


@pytest.fixture(scope="module")
def package(model: nn.Module, image: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Delivered on a machine that is no Mac."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "linux")
        return deliver(
            model, image, tmp_path_factory.mktemp("coreml") / "net.mlpackage", "coreml", FACTS
        ).path


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "net.mlpackage"))


def test_a_package_is_inspected_where_it_cannot_be_run(
    package: Path, deploy: nn.Module, image: Tensor
):
    inside = sorted(str(f.relative_to(package)) for f in package.rglob("*") if f.is_file())
    data = "Data/com.apple.CoreML"
    assert inside == [f"{data}/model.mlmodel", f"{data}/weights/weight.bin", "Manifest.json"]
    sidecar = json.loads(package.with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["parity"] is None
    assert sidecar["precision"] == "fp16"
    assert (
        "only on a Mac, and this is Linux; 11 layers hold the model's weights; computed"
        in sidecar["unverified"]
    )
    facts = coreml.metadata(package)
    assert facts["classes"] == FACTS.classes
    assert [output["name"] for output in facts["outputs"]] == ["logits", "map"]
    said = coreml.inspect(Request(deploy, image, package))
    assert said.startswith("11 layers hold the model's weights; computed by torch from the program")
    for place in (Path(__file__).parents[1], Path(torch.__file__).parent):
        assert all(
            str(place).encode() not in f.read_bytes() for f in package.rglob("*") if f.is_file()
        )


def test_float32_is_computed_as_in_torch(deploy: nn.Module, image: Tensor, tmp_path: Path):
    coreml.export(
        Request(
            deploy, image, tmp_path / "n.mlpackage", outputs=["logits", "map"], precision="fp32"
        )
    )
    found = _mil.evaluate(_mil.read(coreml._open(tmp_path / "n.mlpackage")[0]), image)
    parity = verify(
        deploy, lambda batch: [found[name].numpy() for name in ("logits", "map")], [image], 1e-5
    )
    assert parity.passed, parity
    assert "layers hold" in coreml.inspect(Request(deploy, image, tmp_path / "n.mlpackage"))


def test_integers_are_described_as_the_file_has_them(
    image: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Conv2d(3, 4, 1)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"classes": self.map(image).argmax(1)}

    monkeypatch.setattr(sys, "platform", "linux")
    done = deliver(randomize(Classes(), 0), image, tmp_path / "net.mlpackage", "coreml", None)
    assert json.loads(done.sidecar.read_text())["outputs"][0]["dtype"] == "int32"
    (output,) = coreml._open(done.path)[0].get_spec().description.output
    assert output.type.multiArrayType.dataType == 131104  # of Apple's specification: INT32


def plant(package: Path, before: np.ndarray, change: float) -> None:
    """Add to the last of the values that stand in the weights of a package, in half precision."""
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    content, wanted = file.read_bytes(), before.astype(np.float16)
    assert content.count(wanted.tobytes()) == 1
    after = wanted.copy()
    after.flat[-1] += change
    file.write_bytes(content.replace(wanted.tobytes(), after.tobytes()))


@pytest.mark.parametrize(
    "layer", ["stem.conv", "depthwise", "parc.first.1", "linear", "classifier"]
)
def test_one_changed_weight_is_found_and_its_layer_named(
    layer: str, copied: Path, deploy: nn.Module, image: Tensor
):
    name = next(
        n
        for n, p in deploy.named_parameters()
        if n.startswith(layer.removesuffix(".conv")) and p.ndim > 1
    )
    weight = deploy.get_parameter(name).detach().numpy()
    plant(copied, weight, change=0.01)
    with pytest.raises(
        ExportError,
        match=rf"{name.removesuffix('.weight')} .*1 of {weight.size} values of its weight",
    ):
        coreml.inspect(Request(deploy, image, copied))


def test_a_change_outside_of_layers_is_found(copied: Path, deploy: nn.Module, image: Tensor):
    constant = (
        next(p for n, p in deploy.named_parameters() if n.endswith("constant")).detach().numpy()
    )
    plant(copied, constant, change=50.0)
    with pytest.raises(ExportError, match="what the program says is not what the model computes"):
        coreml.inspect(Request(deploy, image, copied))


def test_a_package_of_another_network_is_refused(package: Path, deploy: nn.Module, image: Tensor):
    wider = reparameterize(randomize(Small(), 1), image)
    with pytest.raises(
        ExportError, match=r"stem.* is not the model's: 432 of 432 values of its weight differ"
    ):
        coreml.inspect(Request(wider, image, package))
    wider.map = nn.Conv2d(8, 8, 3, padding=1)
    wider.load_state_dict({**deploy.state_dict(), "map.weight": torch.zeros(8, 8, 3, 3)})
    with pytest.raises(
        ExportError, match=r"where the model has map, a convolution of \(8, 8, 3, 3\), the file has"
    ):
        coreml.inspect(Request(wider, image, package))


def test_a_batch_norm_that_stays_is_part_of_its_layer_in_the_file(image: Tensor, tmp_path: Path):
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), 0)
    coreml.export(Request(model, image, tmp_path / "n.mlpackage", ["map"], "fp16"))
    assert coreml.inspect(Request(model, image, tmp_path / "n.mlpackage")).startswith(
        "1 layers hold the model's weights, 1 of them multiplied"
    )
    model[1].weight.data[0] *= 1.5
    with pytest.raises(ExportError, match="what the program says"):
        coreml.inspect(Request(model, image, tmp_path / "n.mlpackage"))


def test_what_is_not_known_is_said(
    package: Path, deploy: nn.Module, monkeypatch: pytest.MonkeyPatch, image: Tensor
):
    monkeypatch.delitem(_mil.OPERATORS, "gelu")
    assert coreml.inspect(Request(deploy, image, package)).endswith(
        "not computed, for its operators gelu"
    )


def test_it_runs_only_on_a_mac(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ExportError, match="runs only on a Mac"):
        coreml.load(package)


def test_a_package_is_known_by_its_name_though_it_is_a_folder(
    package: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ExportError, match="runs only on a Mac"):
        fleetnet.load(package)


def test_on_a_mac(model: nn.Module, image: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With torch in Apple's place, which is not here: names, order, types and checks."""
    ct = coreml._package()  # imported as the library does, without the warnings of its parts

    def predict(package: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert given["image"].dtype == np.float32
        found = _mil.evaluate(_mil.read(package), torch.from_numpy(given["image"]))
        return {name: found[name].numpy() for name in sorted(found, reverse=True)}

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models.MLModel, "predict", predict)
    pixels = Preprocessed(model, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)).eval()
    done = deliver(
        pixels, (image * 50 + 120).clamp(0, 255), tmp_path / "net.mlpackage", "coreml", FACTS
    )
    assert done.parity.passed
    assert done.unverified is None
    run = coreml.load(done.path)
    assert [output.shape for output in run(image.numpy().astype(np.float64))] == [
        (1, 5),
        (1, 8, 12, 20),
    ]
    with pytest.raises(
        ModelError, match=r"takes images of shape \(1, 3, 12, 20\), got \(2, 3, 12, 20\)"
    ):
        run(torch.cat([image, image]).numpy())
    with pytest.raises(ModelError, match="takes float32, got complex64"):
        run(image.numpy().astype(np.complex64))


def test_what_cannot_be_written(image: Tensor, tmp_path: Path):
    class Chooses(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return nms(image[0, 0, :, :4], image[0, 0, :, 4], 0.5)

    class Bessel(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.special.i0e(image)

    path = tmp_path / "n.mlpackage"
    with pytest.raises(ExportError, match="operator nms, which this format cannot hold"):
        coreml.export(Request(Chooses(), image, path))
    with pytest.raises(ExportError, match=r"coremltools cannot convert this model.*special_i0e"):
        coreml.export(Request(Bessel(), image, path))
    with pytest.raises(UsageError, match="leave dynamic out"):
        coreml.export(Request(nn.ReLU(), image, path, dynamic=True))
    assert not path.exists()


def test_what_cannot_be_read(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Tensor
):
    with pytest.raises(ModelError, match="no such package"):
        coreml.metadata(tmp_path / "absent.mlpackage")
    (copied / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="not a readable Core ML package"):
        coreml.metadata(copied)
    with pytest.raises(ExportError, match="cannot be read back"):
        coreml.inspect(Request(nn.ReLU(), image, copied))
    monkeypatch.setattr(coreml, "find_spec", lambda name: None)
    assert coreml.missing() == "coremltools is not installed: pip install 'fleetnet[coreml]'"
