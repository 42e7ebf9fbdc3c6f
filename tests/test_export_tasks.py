"""Exported detectors and segmenters find what the checkpoint finds, or are not handed over.

The table of all heads and backbones, each raw or decoded, is in test_heads; here are one backbone's
predictions against those of the checkpoint, and what is written beside the file.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zoo import image, randomize

import fleetnet
from fleetnet import checkpoint
from fleetnet.cli import main
from fleetnet.data import shapes
from fleetnet.deploy.export import export
from fleetnet.deploy.predictor import load
from fleetnet.errors import ExportError, UsageError
from fleetnet.find import find
from fleetnet.predictions import LabelMap, Prediction
from fleetnet.preprocess import Preprocess
from fleetnet.runtimes import Request, onnx
from fleetnet.tasks import Model, build

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
    model = build(f"{head}/fasternet_t0", len(CLASSES), options=OPTIONS[head])
    anchors = {
        key: value.clone() for key, value in model.named_buffers() if key.endswith("anchors")
    }
    # random anchors would be smaller than a pixel
    randomize(model, seed).load_state_dict(anchors, strict=False)
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint for each head."""
    folder = tmp_path_factory.mktemp("runs")
    for head in OPTIONS:
        preprocess = Preprocess((80, 120), mode=find("tasks", head).MODE, channel_order="BGR")
        model = model_of(head)
        checkpoint.save(
            folder / head / "best.safetensors",
            model,
            classes=CLASSES,
            preprocess=preprocess,
            metrics={},
        )
    return folder


def assert_same(expected: list[Prediction], given: list[Prediction]) -> int:
    """Each box has its like among the others, and almost every pixel its class; returns the number of boxes."""
    number = 0
    for one, other in zip(expected, given, strict=True):
        assert type(one) is type(other)
        if isinstance(one, LabelMap):
            assert (one.labels == other.labels).double().mean() >= 0.999
            continue
        number += len(one.boxes)
        assert abs(len(one.boxes) - len(other.boxes)) <= 1
        near = (one.boxes[:, None] - other.boxes).abs().amax(2) < 0.05
        near &= (one.scores[:, None] - other.scores).abs() < 1e-4
        near &= one.labels[:, None] == other.labels
        if one.masks is not None:
            near &= (one.masks[:, None] != other.masks).sum((2, 3)) <= 3
        assert near.any(1).sum() >= len(near) - 1
    return number


@pytest.mark.parametrize(
    ("head", "embedded"), [("ssd", False), ("yolo", True), ("maskrcnn", True), ("deeplabv3", False)]
)
def test_a_file_finds_what_its_checkpoint_finds(head, embedded, runs, pictures, tmp_path):
    """Raw at 3:2, decoded in the graph at a square that is no multiple of 32, with the preprocessing inside."""
    size = (72, 72) if embedded else None
    done = export(
        runs / head, "onnx", tmp_path / "model.onnx", size=size, embed_decode=embedded, embed_preprocess=embedded,
        pictures=pictures,
    )  # fmt: skip
    reference, file = load(runs / head), load(done.path)
    if size:
        reference.preprocess = Preprocess.from_dict(
            {**reference.preprocess.to_dict(), "size": size}
        )
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
    assert about["outputs"] == [output.to_json() for output in file.facts.exported.outputs]
    names = [output["name"] for output in about["outputs"]]
    if embedded:
        assert names == OUTPUTS[head]
        assert all(name in about["decode"] for name in names)
    else:
        assert about["decode"] == task.DECODE
    assert sorted(np.load(done.golden)) == sorted(["image", *names])


@pytest.mark.parametrize(("head", "share"), [("ssd", 0.5), ("deeplabv3", 1)])
def test_a_file_with_other_weights_is_not_handed_over(head, share, pictures, tmp_path, monkeypatch):
    """In the written file the channels of one layer, half way through or the last, are in another order."""
    write = onnx.export

    def wrong(request: Request) -> None:
        convolutions = [m for m in request.model.modules() if isinstance(m, nn.Conv2d)]
        layer = convolutions[int(share * (len(convolutions) - 1))]
        right = {name: value.clone() for name, value in layer.state_dict().items()}
        layer.load_state_dict({name: value.roll(1, 0) for name, value in right.items()})
        write(request)
        layer.load_state_dict(right)

    model = model_of(head)
    if head == "deeplabv3":  # about as many pixels of each class
        with torch.no_grad():
            model.head.classifier.bias -= model(image(72, 72))["logits"].mean((0, 2, 3))
    monkeypatch.setattr(onnx, "export", wrong)
    what = "boxes without their like" if head == "ssd" else "of pixels of the same class"
    with pytest.raises(ExportError, match=f"not written.*{what}.*is right in torch"):
        export(
            model, "onnx", tmp_path / "m.onnx", size=(72, 72), embed_decode=True, pictures=pictures
        )
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_embedded_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"classification has no decode to embed.*deeplabv3, maskrcnn, ssd, yolo"
    ):
        export(
            build("fasternet_t0", 3).eval(),
            "onnx",
            tmp_path / "m.onnx",
            size=(64, 64),
            embed_decode=True,
        )
    with pytest.raises(UsageError, match="one image at a time"):
        export(
            model_of("ssd"),
            "onnx",
            tmp_path / "m.onnx",
            size=(72, 72),
            embed_decode=True,
            dynamic=True,
        )
    with pytest.raises(UsageError, match="one image at a time: dynamic must be off"):
        export(model_of("maskrcnn"), "onnx", tmp_path / "m.onnx", size=(72, 72), dynamic=True)
    assert not list(tmp_path.iterdir())


def test_export_at_the_command_line(runs, tmp_path, capsys):
    words = [
        "export",
        "--model",
        str(runs / "ssd"),
        "--to",
        "onnx",
        "--out",
        str(tmp_path),
        "--embed-decode",
        "--json",
    ]
    assert main([*words, "--data", "shapes:20"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (done,) = result["exported"]
    assert done["agreement"]["boxes"] > 400
    # beside model.onnx, not in its place
    assert done["path"] == str(tmp_path / "onnx" / "model-decoded.onnx")
    beside = {"model-decoded.onnx", "model-decoded.json", "model-decoded.golden.npz"}
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == beside
    assert fleetnet.load(done["path"]).facts.embedded_decode is True
