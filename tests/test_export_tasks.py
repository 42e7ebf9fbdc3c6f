"""Exported detectors and segmenters find what the checkpoint finds, or are not handed over.

The table of all heads and backbones is in test_heads; here one backbone, against the checkpoint's own predictions.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zoo import randomize

import fleetnet
from fleetnet import checkpoint
from fleetnet.boxes import Prediction
from fleetnet.cli import main
from fleetnet.data import shapes
from fleetnet.errors import ExportError, UsageError
from fleetnet.find import find
from fleetnet.predict import export, load
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import onnx
from fleetnet.tasks import Model, build
from fleetnet.transforms import Preprocess

CLASSES = ["café", "bus", "dog"]
OPTIONS = {
    "ssd": {},
    "yolo": {"width": 0.25},
    "maskrcnn": {"channels": 32, "hidden": 64, "proposals": 60, "anchor": 16},
    "deeplabv3": {"channels": 32},
}
OUTPUTS = {  # after --embed-decode
    "ssd": ["boxes", "scores", "labels"],
    "yolo": ["boxes", "scores", "labels"],
    "maskrcnn": ["boxes", "scores", "labels", "masks"],
    "deeplabv3": ["semantic"],
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [shapes.draw(i).resize((150 + 10 * i, 110)) for i in range(2)]


def model_of(head: str, seed: int = 1) -> Model:
    torch.manual_seed(0)
    return randomize(build(f"{head}/fasternet_t0", len(CLASSES), options=OPTIONS[head]), seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint for each head."""
    folder = tmp_path_factory.mktemp("runs")
    for head in OPTIONS:
        preprocess = Preprocess((80, 120), mode=find("tasks", head).MODE, channel_order="BGR")
        model = model_of(head)
        checkpoint.save(folder / head / "best.safetensors", model, classes=CLASSES, preprocess=preprocess, metrics={})
    return folder


def assert_same(expected: list[Prediction], given: list[Prediction]) -> int:
    """Each box has its like among the others, and almost every pixel its class; returns the number of boxes."""
    number = 0
    for one, other in zip(expected, given, strict=True):
        assert one.keys() == other.keys()
        if "semantic" in one:
            assert (one["semantic"] == other["semantic"]).double().mean() >= 0.999
            continue
        number += len(one["boxes"])
        assert abs(len(one["boxes"]) - len(other["boxes"])) <= 1
        near = (one["boxes"][:, None] - other["boxes"]).abs().amax(2) < 0.05
        near &= (one["scores"][:, None] - other["scores"]).abs() < 1e-4
        near &= one["labels"][:, None] == other["labels"]
        if "masks" in one:
            near &= (one["masks"][:, None] != other["masks"]).sum((2, 3)) <= 3
        assert near.any(1).sum() >= len(near) - 1
    return number


@pytest.mark.parametrize("embedded", [False, True], ids=["raw", "decoded"])
@pytest.mark.parametrize("head", OPTIONS)
def test_a_file_finds_what_its_checkpoint_finds(head, embedded, runs, pictures, tmp_path):
    """Raw at 3:2, decoded in the graph at a square that is no multiple of 32, with the preprocessing inside."""
    size = (72, 72) if embedded else None
    done = export(
        runs / head, "onnx", tmp_path / "model.onnx", size=size, embed_decode=embedded, embed_preprocess=embedded,
        pictures=pictures,
    )  # fmt: skip
    reference, file = load(runs / head), load(done.path)
    if size:
        reference.preprocess = Preprocess.from_dict({**reference.preprocess.to_dict(), "size": size})
    boxes = assert_same(reference.predictions(pictures), file.predictions(pictures))

    about, task = json.loads(done.sidecar.read_text(encoding="utf-8")), find("tasks", head)
    agreement = done.parity.agreement
    if "semantic" in OUTPUTS[head]:
        assert agreement.pixels >= 0.999
    else:
        assert boxes > 20
        assert agreement.boxes > boxes  # on random examples too
        assert agreement.unpaired <= agreement.boxes / 100
        assert agreement.iou > 0.999
    assert about["parity"]["agreement"]["boxes"] == agreement.boxes
    assert about["embedded_decode"] is embedded
    assert about["outputs"] == file.facts["outputs"]
    names = [output["name"] for output in about["outputs"]]
    if embedded:
        assert names == OUTPUTS[head]
        assert all(name in about["decode"] for name in names)
    else:
        assert about["decode"] == task.DECODE
    assert sorted(np.load(done.golden)) == sorted(["image", *names])


@pytest.mark.parametrize("head", ["ssd", "deeplabv3"])
def test_a_file_with_other_weights_is_not_handed_over(head, pictures, tmp_path, monkeypatch):
    """One layer of the written file has weights of which some are another model's; the decode is in the graph."""
    write = onnx.export

    def wrong(network: nn.Module, *args: object, **options: object) -> None:
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        weight = convolutions[len(convolutions) // 2].weight.data
        right = weight.clone()
        weight[::4] = weight[::4].flip(1)
        write(network, *args, **options)
        weight.copy_(right)

    monkeypatch.setattr(onnx, "export", wrong)
    what = "of 4|boxes without their like" if head == "ssd" else "of pixels of the same class"
    with pytest.raises(ExportError, match=f"(?s)not written.*({what}).*is right in torch"):
        export(model_of(head), "onnx", tmp_path / "m.onnx", size=(72, 72), embed_decode=True, pictures=pictures)
    assert not list(tmp_path.iterdir())


def test_a_detector_that_finds_nothing_is_not_proven(tmp_path):
    model = model_of("ssd")
    for layer in model.head.predict:
        conv = layer[-1] if isinstance(layer, nn.Sequential) else layer
        conv.bias.data.view(-1, 4 + 1 + len(CLASSES))[:, 4] += 100  # background
    with pytest.raises(ExportError, match="finds nothing on the examples"):
        export(model, "onnx", tmp_path / "m.onnx", size=(72, 72), embed_decode=True)


def test_what_cannot_be_embedded_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"classification has no decode to embed.*deeplabv3, maskrcnn, ssd, yolo"):
        export(build("fasternet_t0", 3).eval(), "onnx", tmp_path / "m.onnx", size=(64, 64), embed_decode=True)
    with pytest.raises(UsageError, match="one image at a time"):
        export(model_of("ssd"), "onnx", tmp_path / "m.onnx", size=(72, 72), embed_decode=True, dynamic=True)
    with pytest.raises(UsageError, match="one image at a time: dynamic must be off"):
        export(model_of("maskrcnn"), "onnx", tmp_path / "m.onnx", size=(72, 72), dynamic=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", ["ssd", "maskrcnn", "deeplabv3"])
def test_the_deploy_form_of_a_detector_finds_the_same(head, pictures, runs):
    """In float64 on random batch norms: nothing but the order of near ties could differ, and there is none."""
    model = model_of(head, seed=2).double()
    task, image = find("tasks", head), torch.randn(1, 3, 80, 120, dtype=torch.float64)
    network = task.embed(model)
    with torch.no_grad():
        ours, theirs = network(image), reparameterize(network, image)(image)
    norms = [m for m in reparameterize(network, image).modules() if isinstance(m, nn.BatchNorm2d)]
    assert not norms
    for key, value in ours.items():
        assert value.shape == theirs[key].shape
        assert torch.equal(value, theirs[key]) or (value - theirs[key]).abs().max() < 1e-7


def test_export_at_the_command_line(runs, tmp_path, capsys):
    words = ["export", "--model", str(runs / "ssd"), "--to", "onnx", "--out", str(tmp_path), "--embed-decode", "--json"]
    assert main([*words, "--data", "shapes:20"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (done,) = result["exported"]
    assert done["agreement"]["boxes"] > 400
    assert fleetnet.load(done["path"]).facts["embedded_decode"] is True
