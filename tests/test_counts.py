"""Counts of classes: equal to torchmetrics, no matrix of many classes, nothing measured over nothing."""

import json
from pathlib import Path

import pytest
import torch
from conftest import benchmark
from torch import nn

from fleetnet import checkpoint
from fleetnet.data import Sample, Split, load
from fleetnet.errors import DataError, ModelError
from fleetnet.inputs.dataset import Batch
from fleetnet.predictions import LabelMap, Labels
from fleetnet.report import figures
from fleetnet.tasks import _counts, build, classification, deeplabv3
from fleetnet.tasks._counts import Pairs
from fleetnet.training.config import TrainConfig
from fleetnet.training.evaluate import evaluate
from fleetnet.training.fit import fit
from fleetnet.training.run import best_of

ROOT = Path(__file__).parents[1]


def test_counts_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a matrix, and as pairs that are folded now and then."""
    truth, predicted = torch.randint(0, 7, (2, 500), generator=torch.Generator().manual_seed(0))
    plain: dict[tuple[int, int], int] = {}
    for pair in zip(truth.tolist(), predicted.tolist(), strict=True):
        plain[pair] = plain.get(pair, 0) + 1
    monkeypatch.setattr(_counts, "WAITING", 60)
    for dense in (7, 6):
        monkeypatch.setattr(_counts, "DENSE", dense)
        pairs = Pairs(7)
        for part in range(0, 500, 25):
            pairs.add(truth[part : part + 25], predicted[part : part + 25])
        counted = [tuple(row) for row in torch.stack(pairs.counted(), 1).tolist()]
        assert counted == [(*pair, count) for pair, count in sorted(plain.items())]
        right, of_truth, of_prediction = (total.tolist() for total in pairs.totals())
        assert right == [plain.get((i, i), 0) for i in range(7)]
        assert of_truth == truth.bincount(minlength=7).tolist()
        assert of_prediction == predicted.bincount(minlength=7).tolist()
        counted = pairs.figures()
        assert counted["confusion"] == [[plain.get((i, j), 0) for j in range(7)] for i in range(7)]
        assert [count for *_, count in counted["confused"]] == sorted(
            (count for (i, j), count in plain.items() if i != j), reverse=True
        )[:50]


@pytest.mark.parametrize("classes", [3, 8])
def test_figures_of_a_classifier_equal_torchmetrics(classes: int) -> None:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(90, classes, generator=generator).round(decimals=1)  # some are equal
    label = torch.randint(0, classes, (90,), generator=generator)
    metric = classification.metric([f"class {i}" for i in range(classes)])
    for part in range(0, 90, 16):
        rows = [Labels(row) for row in logits[part : part + 16]]
        metric.add(rows, {"label": label[part : part + 16]})
    result = metric.result()
    assert result["confusion"] == multiclass_confusion_matrix(logits, label, classes).tolist()
    assert result["top1"] == pytest.approx(100 * (logits.argmax(1) == label).double().mean().item())
    assert result["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, label).item(), rel=1e-5
    )
    for key, function in (
        ("precision", multiclass_precision), ("recall", multiclass_recall), ("F1", multiclass_f1_score),
    ):  # fmt: skip
        expected = 100 * function(logits, label, classes, average="none")
        assert [row[key] for row in result["by_class"]] == pytest.approx(
            expected.tolist(), rel=1e-5
        )
    if classes > 5:
        distinct = logits + torch.linspace(0, -1e-4, classes)  # of equal logits the first
        expected = multiclass_accuracy(distinct, label, classes, top_k=5, average="micro")
        assert result["top5"] == pytest.approx(100 * expected.item())
    else:  # any five of three classes hold the right one: nothing is measured
        assert result["top5"] is None
        assert "top5 is not measured" in result["notes"][-1]


def test_no_figure_over_nothing() -> None:
    """A class without images, one that is never predicted, and no image at all."""
    metric = classification.metric(["ant", "bee", "cat"])
    empty = metric.result()
    assert [empty[key] for key in ("top1", "top5", "loss", "F1")] == [None] * 4
    metric.add([Labels(torch.tensor([3.0, 1, 2]))] * 4, {"label": torch.tensor([0, 0, 0, 1])})
    result = metric.result()
    ant, bee, cat = result["by_class"]
    assert (ant["recall"], ant["precision"]) == (100, 75)
    assert (bee["recall"], bee["precision"], bee["F1"]) == (0, None, 0)
    assert (cat["images"], cat["recall"], cat["precision"], cat["F1"]) == (0, None, None, None)
    assert "1 of 3 classes have no image here, so no figures: cat" in result["notes"]
    assert result["F1"] == pytest.approx((100 * 6 / 7 + 0) / 2)  # over the classes that are there


def test_label_maps_that_lost_a_class_do_not_look_perfect() -> None:
    """Gray masks of 0 and 255: 255 means no class, and what is left is of one class."""
    metric = deeplabv3.metric(["background", "crack"])
    truth = torch.zeros(8, 8, dtype=torch.uint8)
    truth[2:5] = 255
    metric.add([LabelMap(torch.zeros(8, 8, dtype=torch.uint8))], {"semantic": [truth]})
    result = metric.result()
    assert result["mIoU"] is None
    assert result["by_class"][1]["IoU"] is result["by_class"][1]["recall"] is None
    assert any("all pixels are of the class background" in note for note in result["notes"])
    assert any("no pixel here, so no figures: crack" in note for note in result["notes"])


class Fixed(nn.Module):
    """The same outputs for any image."""

    def __init__(self, outputs: object):
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> object:
        return self.outputs


def batch(targets: dict[str, object]) -> Batch:
    from fleetnet.geometry import Place

    return Batch(torch.zeros(1, 3, 8, 8), targets, [], [0], [Place(8, 8)])


def test_a_whole_set_without_anything_to_measure_is_an_error() -> None:
    """For each task; before, AP was None and mIoU 0.0 or 100, and training went on to its end."""
    empty = torch.zeros(0, 4)
    objects = {
        "boxes": [empty], "labels": [torch.zeros(0, dtype=torch.int64)], "area": [torch.zeros(0)],
        "crowd": [torch.zeros(0, dtype=torch.bool)],
    }  # fmt: skip
    detections = {
        "boxes": torch.zeros(1, 100, 4), "scores": torch.zeros(1, 100), "labels": torch.zeros(1, 100).long(),
    }  # fmt: skip
    masks = {"masks": torch.zeros(1, 100, 28, 28)}
    cases = [
        ("ssd", detections, objects, "AP"),
        ("yolo", detections, objects, "AP"),
        (
            "maskrcnn",
            {**detections, **masks},
            {**objects, "masks": [torch.zeros(0, 8, 8).bool()]},
            "mask_AP",
        ),
        (
            "deeplabv3",
            {"logits": torch.zeros(1, 2, 8, 8)},
            {"semantic": [torch.full((8, 8), 255)]},
            "mIoU",
        ),
        (
            "deeplabv3",
            {"logits": torch.zeros(1, 2, 8, 8)},
            {"semantic": [torch.zeros(8, 8).long()]},
            "mIoU",
        ),
    ]
    for task, outputs, targets, first in cases:
        with pytest.raises(DataError, match=f"nothing to measure {first} on in 1 images: .*"):
            evaluate(Fixed(outputs), task, [batch(targets)], ["ant", "bee"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_an_error(value: float) -> None:
    for task, outputs, targets in (
        ("classification", torch.tensor([[1.0, value]]), {"label": torch.tensor([1])}),
        (
            "deeplabv3",
            {"logits": torch.full((1, 2, 8, 8), value)},
            {"semantic": [torch.zeros(8, 8).long()]},
        ),
    ):
        with pytest.raises(ModelError, match="has NaN or infinity"):
            evaluate(Fixed(outputs), task, [batch(targets)], ["ant", "bee"])


def test_the_best_of_nothing_is_an_error_not_a_choice(tmp_path: Path) -> None:
    training, val = (load("shapes:40", part, None, "boxes") for part in ("train", "val"))
    empty = Split([Sample(sample.image, objects=()) for sample in val.samples[:2]], val.classes)
    config = TrainConfig(batch_size=4, size=64, epochs=1, ema=None)
    with pytest.raises(DataError, match="nothing to measure on: no object in 2 images"):
        fit(
            build("ssd/fasternet_t0", 6),
            Split(training.samples[:4], training.classes),
            empty,
            config,
            tmp_path,
        )
    assert not (tmp_path / "best.safetensors").exists()


def test_the_state_of_a_run_holds_figures_alone(run: Path) -> None:
    """The matrix and what else grows with the classes is in best.json, for the plots."""
    best = checkpoint.load_state(run / "state")["best"]
    assert all(value is None or isinstance(value, int | float | str) for value in best.values())
    details = json.loads((run / "best.json").read_text())
    assert details.items() >= best.items()
    assert len(details["confusion"]) == len(details["by_class"]) == 3
    details = {key: value for key, value in details.items() if key != "description_sha256"}
    assert best_of(run, best) == details
    # a kill between the two files
    assert best_of(run, {**best, "epoch": 7}) == {**best, "epoch": 7}
    assert best_of(run / "plots", best) == best
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert not any(isinstance(value, list | dict) for value in lines[0]["ema"].values())


def test_many_classes_are_small(tmp_path: Path) -> None:
    """20,000 classes: no matrix anywhere, and the figures can be drawn."""
    names = [f"class {i}" for i in range(20_000)]
    metric = classification.metric(names)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        logits = torch.randn(8, len(names), generator=generator)
        metric.add([Labels(row) for row in logits], {"label": torch.randint(0, len(names), (8,))})
    result = metric.result()
    assert metric.pairs._matrix is None
    assert "confusion" not in result
    assert len(result["confused"]) == 24
    assert len(json.dumps(result)) < 4e6
    files = figures.metrics(result, names, tmp_path)
    assert [file.name for file in files] == ["confused.png", "f1_by_class.png"]


def test_many_classes_cost_no_more() -> None:
    """A small sample of benchmarks/many_classes.py, with room for a busy machine."""
    taken = benchmark("many_classes").measure([10, 20_000], images=128, side=256, rounds=3, seed=0)
    fewest, most = (min(taken[count]) for count in (10, 20_000))
    assert most < 1.6 * fewest  # 1.1 to 1.2; with a matrix for each image it was 400 times
