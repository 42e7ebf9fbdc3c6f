"""What a detector keeps: how many objects, from which score on, how far apart, of which classes; and what is said."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torchvision.ops import box_iou
from zoo import randomize

from fleetnet import checkpoint
from fleetnet.boxes import Limits
from fleetnet.cli import main
from fleetnet.data import Split, load
from fleetnet.data.shapes import CLASSES
from fleetnet.deploy.export import export
from fleetnet.deploy.predictor import Predictor
from fleetnet.deploy.trained import Trained
from fleetnet.errors import ModelError, UsageError
from fleetnet.facts import Exported, Facts, KeptObjects
from fleetnet.find import find
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.int8._prepared import prepare
from fleetnet.int8._search import quantize
from fleetnet.predictions import Detections
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model, build, limits_of
from fleetnet.training.config import TrainConfig
from fleetnet.training.evaluate import Reached, evaluate
from fleetnet.training.fit import fit

NAMES = list(CLASSES)
SMALL: dict[str, dict[str, Any]] = {
    "ssd": {}, "yolo": {"width": 0.1}, "maskrcnn": {"channels": 16, "hidden": 16, "proposals": 400},
}  # fmt: skip
SIZE = (96, 96)


def detector(task: str) -> tuple[ModuleType, Model]:
    """A network of random weights that finds far more than a hundred objects."""
    torch.manual_seed(0)
    model = build(f"{task}/fasternet_t0", len(NAMES), options=SMALL[task])
    anchors = model.head.detect.anchors.clone() if task == "yolo" else None
    randomize(model, seed=1)
    if anchors is not None:
        model.head.detect.anchors.copy_(anchors)
    return find("tasks", task), model.eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def found(task: ModuleType, model: Model, limits: Limits) -> Detections:
    if task.limit is not None:
        task.limit(model.head, limits)
    return task.decode(model(image()), SIZE, limits=limits)[0]


def largest_overlap(prediction: Detections) -> float:
    """IoU of the two boxes of one class that overlap most."""
    boxes, labels = prediction.boxes, prediction.labels
    same = (labels[:, None] == labels).triu(1)
    return box_iou(boxes, boxes)[same].max().item()


@pytest.mark.parametrize("name", SMALL)
def test_limits_of_what_is_found(name: str) -> None:
    task, model = detector(name)
    usual = task.LIMITS.changed({"score": 1e-4}, NAMES)  # random weights are not sure of anything
    hundred = found(task, model, usual)
    assert len(hundred.scores) == 100
    more = found(task, model, usual.changed({"max_objects": 130}, NAMES))
    assert len(more.scores) == 130
    torch.testing.assert_close(more.boxes[:100], hundred.boxes)
    least = hundred.scores[40].item()
    sure = found(task, model, usual.changed({"score": least}, NAMES))
    assert 0 < len(sure.scores) <= 40
    assert sure.scores.min() > least
    some = found(task, model, usual.changed({"only": ["square", "circle"]}, NAMES))
    assert set(some.labels.tolist()) <= {0, 3}
    of_those = hundred.boxes[torch.isin(hundred.labels, torch.tensor([0, 3]))]
    # and those that others had kept out
    torch.testing.assert_close(some.boxes[: len(of_those)], of_those)
    apart = found(task, model, usual.changed({"nms": 0.05}, NAMES))
    assert largest_overlap(apart) <= 0.05 + 1e-6 < largest_overlap(hundred) <= usual.iou + 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_limits_in_the_graph(name: str) -> None:
    task, model = detector(name)
    limits = task.LIMITS.changed(
        {"score": 1e-4, "max_objects": 120, "only": ["ring"], "nms": 0.3}, NAMES
    )
    expected = found(task, model, limits)
    with torch.no_grad():
        outputs = task.embed(model, limits=limits).eval()(image())
    assert outputs["boxes"].shape == (1, 120, 4)
    again = task.decode(outputs, SIZE, limits=limits)[0]
    for name in ("boxes", "scores", "labels", "box_masks"):
        torch.testing.assert_close(getattr(again, name), getattr(expected, name))
    fewer = task.decode(outputs, SIZE, limits=limits.changed({"max_objects": 7}, NAMES))[0]
    torch.testing.assert_close(fewer.boxes, expected.boxes[:7])


def test_limits_are_checked() -> None:
    usual = Limits(100, 0.5, 0.01)
    assert usual.changed({"max_objects": None}, NAMES) == usual
    assert usual.changed({"only": ["square", "circle"]}, NAMES).only == (0, 3)
    assert usual.to_dict(NAMES) == {"max_objects": 100, "nms": 0.5, "score": 0.01, "only": None}
    assert usual.changed(usual.changed({"only": ["ring"]}, NAMES).to_dict(NAMES), NAMES).only == (
        2,
    )
    for given, message in (
        ({"max_objects": 0}, "max_objects is 0; allowed: 1 to 10000"),
        ({"nms": 1.5}, "nms is 1.5; allowed: 0 to 1"),
        ({"score": -1}, "score is -1"),
        (
            {"only": ["stars"]},
            "only is 'stars', which is no class of this model: did you mean 'star'",
        ),
        ({"max_object": 3}, "no limit 'max_object': did you mean 'max_objects'"),
    ):
        with pytest.raises(UsageError, match=message):
            usual.changed(given, NAMES)
    of_detector = Facts("ssd/fasternet_t0", "ssd", "deploy", NAMES, Preprocess(SIZE))
    with pytest.raises(
        ModelError, match="the limits that the file's description gives are damaged"
    ):
        limits_of(replace(of_detector, settings={"nms": "a lot"}))
    with pytest.raises(ModelError, match="damaged: nms is 2; allowed: 0 to 1"):
        limits_of(replace(of_detector, exported=Exported(limits=KeptObjects(nms=2))))
    assert limits_of(replace(of_detector, task="classification")) is None
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert nothing.within(usual).boxes.shape == (0, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a detector that knows its score of the best F1, and files of it: raw and with its decode."""
    folder = tmp_path_factory.mktemp("files")
    _, model = detector("ssd")
    checkpoint.save(
        folder / "ssd.safetensors", model, classes=NAMES, preprocess=Preprocess(SIZE, mode="stretch"),
        metrics={"AP": 1.0, "score": 0.21},
    )  # fmt: skip
    export(folder / "ssd.safetensors", "onnx", folder / "raw.onnx")
    limits = {"max_objects": 120, "score": 0.15, "only": ["star", "ring"]}
    export(
        folder / "ssd.safetensors",
        "onnx",
        folder / "embedded.onnx",
        embed_decode=True,
        limits=limits,
    )
    return folder


def test_files_keep_what_they_were_told(files: Path) -> None:
    raw, embedded = Predictor(files / "raw.onnx"), Predictor(files / "embedded.onnx")
    assert (raw.limits, raw.score) == (Limits(100, 0.5, 0.01), 0.21)
    assert raw.score_from == "the one of the best F1 on the validation set"
    assert (embedded.limits, embedded.score) == (Limits(120, 0.5, 0.15, (2, 4)), 0.15)
    about = json.loads((files / "embedded.json").read_text())
    assert about["limits"] == {
        "max_objects": 120,
        "nms": 0.5,
        "score": 0.15,
        "only": ["ring", "star"],
    }
    assert about["outputs"][0]["shape"] == [1, 120, 4]
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    limits = {"max_objects": 120, "score": 0.15, "only": ["star", "ring"]}
    (theirs,) = embedded.predictions(picture)
    (ours,) = Predictor(files / "raw.onnx", limits=limits).predictions(picture)
    (of_checkpoint,) = Predictor(files / "ssd.safetensors", limits=limits).predictions(picture)
    assert len(theirs.scores) > 5
    for name in ("boxes", "scores", "labels"):
        expected = getattr(ours, name)
        torch.testing.assert_close(getattr(theirs, name), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(getattr(of_checkpoint, name), expected, rtol=1e-3, atol=1e-3)
    assert all(item["score"] >= 0.15 for item in embedded.predict(picture)[0])
    assert len(raw.predict(picture)[0]) == int((raw.predictions(picture)[0].scores >= 0.21).sum())


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({"max_objects": 20}, True),
        ({"score": 0.5}, True),
        ({"only": ["ring"]}, True),
        ({"max_objects": 121}, False),
        ({"score": 0.1}, False),
        ({"nms": 0.4}, False),
        ({"only": ["cross"]}, False),
    ],
)
def test_a_file_that_chooses_refuses_what_it_cannot_follow(
    files: Path, limits: dict[str, Any], allowed: bool
) -> None:
    if allowed:
        Predictor(files / "embedded.onnx", limits=limits)
        return
    (key,) = limits
    with pytest.raises(
        UsageError, match=f"chooses its objects itself, with {key} .* and cannot follow {key}"
    ):
        Predictor(files / "embedded.onnx", limits=limits)


def test_limits_are_for_detectors(run: Path) -> None:
    with pytest.raises(
        UsageError, match=r"max_objects are for detectors; .* is of the task classification"
    ):
        Predictor(run, limits={"max_objects": 3})
    with pytest.raises(
        UsageError, match="nms are for detectors; the model is of the task classification"
    ):
        export(run, "onnx", run / "x.onnx", limits={"nms": 0.3})


def test_commands_take_limits(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """predict, eval and export: what is found, what is said, and that COCO's figures stay those of 100 objects."""
    picture = tmp_path / "a.png"
    load("shapes:20", "val", None, "boxes").samples[0].image().save(picture)
    model = str(files / "ssd.safetensors")

    def said(*words: str) -> tuple[dict[str, Any], str]:
        assert main([*words, "--json"]) == 0
        output = capsys.readouterr()
        return json.loads(output.out.splitlines()[-1]), output.err

    result, words = said("predict", "--model", model, str(picture))
    assert (
        "lowest score: 0.21, the one of the best F1 on the validation set (--score changes it)"
        in words
    )
    assert all(item["score"] >= 0.21 for item in result["results"][0]["objects"])
    result, words = said(
        "predict", "--model", model, str(picture), "--score", "0.001", "--max-objects", "150"
    )
    objects = result["results"][0]["objects"]
    assert 100 < len(objects) <= 150
    assert "1 pictures have the 150 objects that are kept at most" in words
    result, words = said(
        "predict",
        "--model",
        model,
        str(picture),
        "--threshold",
        "0.05",
        "--only",
        "star",
        "--only",
        "ring",
    )
    assert {item["label"] for item in result["results"][0]["objects"]} == {"star", "ring"}
    assert (
        main(["predict", "--model", model, str(picture), "--threshold", "0.1", "--score", "0.1"])
        == 2
    )
    assert "--threshold is the same as --score" in capsys.readouterr().err

    data = ("--data", "shapes:20")
    usual, _ = said("eval", "--model", model, *data)
    found, _ = said(
        "eval",
        "--model",
        model,
        *data,
        "--max-objects",
        "300",
        "--predictions",
        str(tmp_path / "found.json"),
    )
    items = json.loads((tmp_path / "found.json").read_text())
    assert max(sum(i["image_id"] == item["image_id"] for i in items) for item in items[:1]) > 100
    assert found["AR100"] == pytest.approx(usual["AR100"], abs=30)
    one_class, _ = said("eval", "--model", model, *data, "--only", NAMES[0])
    counts = {row["class"]: row["objects"] for row in one_class["by_class"]}
    assert counts == {
        name: (usual["by_class"][0]["objects"] if name == NAMES[0] else 0) for name in NAMES
    }


def test_a_limit_that_is_reached_is_said() -> None:
    reached = Reached()

    def of_scores(*scores: float) -> Detections:
        count = len(scores)
        labels = torch.zeros(count, dtype=torch.int64)
        return Detections(torch.zeros(count, 4), torch.tensor(scores), labels)

    reached.add([of_scores(0.9, 0.5), of_scores(0.8)], [torch.zeros(1), torch.zeros(3)], 2)
    assert reached.result(0.4, 2, ["a"])["at_limit"] == 1
    notes = reached.result(0.4, 2, ["a"])["notes"]
    assert notes[0] == "a"
    assert (
        "1 pictures have 2 objects of a score of at least 0.40, which is all that is kept"
        in notes[1]
    )
    assert "1 pictures show more than the 2 objects that are kept" in notes[2]
    # beyond the limit there are only less certain ones
    assert reached.result(0.6, 2, [])["at_limit"] == 0
    assert reached.result(None, 2, [])["at_limit"] == 0


def test_a_run_keeps_the_score_of_its_best_f1(tmp_path: Path) -> None:
    """In the checkpoint, where predict finds it; and the limits of the training, where eval finds them."""
    training = load("shapes:20", "train", None, "boxes")
    torch.manual_seed(0)
    model = build("ssd/fasternet_t0", len(training.classes))
    config = TrainConfig(
        model="ssd/fasternet_t0",
        batch_size=4,
        size=64,
        epochs=3,
        lr=2e-3,
        ema=None,
        max_objects=40,
        augment="none",
        eval_every=3,
        cache=True,
    )
    some = Split(training.samples[:8], training.classes)
    best = fit(model, some, some, config, tmp_path, report=False)
    assert best["score"] is not None
    predictor = Predictor(tmp_path)
    assert predictor.limits == Limits(40, 0.5, 0.01)
    assert predictor.score == best["score"]
    result = evaluate(
        predictor, "ssd",
        batches_of(ImageDataset(some, predictor.preprocess, target="boxes"), config.batch_size),
        some.classes,
    )  # fmt: skip
    assert result["score"] == pytest.approx(best["score"], abs=1e-6)
    assert result["F1"] == pytest.approx(best["F1"])
    batches = batches_of(
        ImageDataset(some, predictor.preprocess, target="boxes"), config.batch_size
    )
    inputs = torch.cat([batch.inputs() for batch in batches])
    done = quantize(
        prepare(tmp_path, inputs, batches), "onnx", tmp_path / "int8" / "model.onnx", max_drop=100
    )
    about = json.loads(done.sidecar.read_text())
    assert about["limits"] == {"max_objects": 40, "nms": 0.5, "score": 0.01, "only": None}
    assert about["metrics"]["score"] is not None
    assert Predictor(done.path).score == about["metrics"]["score"]


def test_int8_is_made_of_a_network_that_keeps_what_the_checkpoint_keeps(tmp_path: Path) -> None:
    """A Mask R-CNN chooses its detections in the graph, so it must be told before."""
    _, model = detector("maskrcnn")
    checkpoint.save(
        tmp_path / "mask.safetensors", model, classes=NAMES, preprocess=Preprocess(SIZE, mode="letterbox"),
        settings={"max_objects": 7},
    )  # fmt: skip
    some = load("shapes:8", "train", None, "masks")
    images = ImageDataset(Split(some.samples[:2], some.classes), Preprocess(SIZE), target="masks")
    config = TrainConfig(model="maskrcnn/fasternet_t0", batch_size=2, size=64)
    batches = batches_of(images, config.batch_size)
    source = prepare(
        tmp_path / "mask.safetensors", torch.rand(2, 3, *SIZE), batches, equalizing=False
    )
    with torch.no_grad():
        assert source.deployed(torch.rand(1, 3, *SIZE))["boxes"].shape == (1, 7, 4)
    assert source.facts.limits.max_objects == 7


def test_two_predictors_of_one_network_keep_their_own_limits() -> None:
    """Mask R-CNN is told what to keep before it computes."""
    trained = Trained.of_model(
        build("maskrcnn/fasternet_t0", 2).eval(), preprocess=Preprocess((64, 64))
    )
    few = Predictor(trained, limits={"max_objects": 7, "nms": 0.9})
    usual = Predictor(trained)
    assert few.limits != usual.limits
    for predictor in (few, usual):
        assert predictor._runner is not None
        assert predictor._runner.model.head.limits == predictor.limits
    assert next(few._runner.model.parameters()) is next(trained.model.parameters())  # no copy
