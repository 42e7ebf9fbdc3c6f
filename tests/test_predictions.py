"""Predictions are types: checked where they are made, and never told apart by keys."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fleetnet.boxes import Limits
from fleetnet.errors import ModelError
from fleetnet.geometry import Place
from fleetnet.predictions import Detections, LabelMap, Labels, PixelLogits, all_of

ROOT = Path(__file__).parents[1] / "fleetnet"
KEYS = {"boxes", "scores", "labels", "masks", "semantic", "logits"}
# What goes by name: raw outputs of a network, the annotation of pictures, and how many images of a
# kind of annotation are read at a time.
BY_NAME = {"outputs", "truth", "targets", "batch.targets", "IMAGES"}
# Here only such is at work, under other names too: the graphs of networks, and annotations (data/ is
# below all that predicts).
NETWORKS_AND_ANNOTATIONS = ("tasks/", "inputs/", "data/", "proof/verify.py", "cli/reparam.py")


def some(count: int = 3) -> dict[str, Tensor]:
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(count, 1)
    return {
        "boxes": boxes,
        "scores": torch.linspace(0.9, 0.1, count),
        "labels": torch.arange(count),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, r"boxes are of shape \(3, 5\); needed: \(n, 4\)"),
        ({"boxes": torch.zeros(3, 4).long()}, r"boxes are torch\.int64; needed: floats"),
        ({"scores": torch.zeros(2)}, r"scores are of shape \(2,\); needed: \(3\)"),
        ({"labels": torch.zeros(3)}, r"labels are torch\.float32; needed: int64"),
        (
            {"masks": torch.zeros(3, 8)},
            r"masks are of shape \(3, 8\); needed: \(3, height, width\)",
        ),
        ({"masks": torch.zeros(3, 8, 8)}, r"masks are torch\.float32; needed: bool"),
        (
            {"box_masks": torch.zeros(2, 28, 28)},
            r"masks of boxes are of shape \(2, 28, 28\); needed: \(3, rows, columns\)",
        ),
    ],
)
def test_detections_are_checked_at_the_door(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Detections(**{**some(), **change})


def test_other_predictions_are_checked_at_the_door() -> None:
    with pytest.raises(ModelError, match=r"shape \(1, 3\); needed: \(classes\)"):
        Labels(torch.zeros(1, 3))
    with pytest.raises(ModelError, match=r"logits of a picture are torch\.int64; needed: floats"):
        Labels(torch.zeros(3).long())
    with pytest.raises(ModelError, match=r"shape \(1, 8, 8\); needed: \(height, width\)"):
        LabelMap(torch.zeros(1, 8, 8).long())
    with pytest.raises(ModelError, match=r"are torch\.float32; needed: whole numbers"):
        LabelMap(torch.zeros(8, 8))
    with pytest.raises(ModelError, match=r"needed: \(classes, height, width\)"):
        PixelLogits(torch.zeros(8, 8))


def test_what_takes_one_type_says_so_of_another() -> None:
    labels = [Labels(torch.zeros(2)), Labels(torch.ones(2))]
    assert all_of(Labels, labels) == labels
    with pytest.raises(ModelError, match="Detections are needed here, but a prediction is Labels"):
        all_of(Detections, labels)


def test_some_of_the_objects() -> None:
    objects = Detections(**some(4), masks=torch.eye(4).bool()[:, :, None])
    chosen = objects.from_score(0.3)
    assert len(chosen) == 3
    assert chosen.masks is not None
    assert chosen.masks[:, :, 0].nonzero()[:, 1].tolist() == chosen.labels.tolist() == [0, 1, 2]
    limits = Limits(count=1, iou=0.5, score=0.2, only=(1, 2))
    assert objects.within(limits).labels.tolist() == [1]


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.25)])
def test_masks_are_of_the_image_and_boxes_of_the_picture(scale: tuple[float, float]) -> None:
    """A picture of 40x80 pixels in an input twice as small, kept as an image that is reduced."""
    boxes = torch.tensor([[10.0, 5, 30, 15]])
    box_masks = torch.ones(1, 28, 28)
    decoded = Detections(boxes, torch.tensor([0.5]), torch.tensor([2]), box_masks=box_masks)
    restored = decoded.restore(Place(40, 80, 0.5, 0.5), scale)
    assert restored.boxes.tolist() == [[20, 10, 60, 30]]
    assert restored.box_masks is None
    assert restored.masks is not None
    down, across = scale
    expected = torch.zeros(round(40 * down), round(80 * across), dtype=torch.bool)
    expected[round(10 * down) : round(30 * down), round(20 * across) : round(60 * across)] = True
    assert torch.equal(restored.masks[0], expected)


def test_a_class_map_of_a_reduced_picture() -> None:
    labels = torch.zeros(20, 40, dtype=torch.int64)
    labels[:, 20:] = 3
    reduced = LabelMap(labels).restore(Place(40, 80, 0.5, 0.5), (0.25, 0.25))
    assert reduced.labels.tolist() == [[0] * 10 + [3] * 10] * 10


def probes(text: str) -> set[str]:
    """What a module asks for such a key: values before `["boxes"]`, and after `"boxes" in`."""
    asked = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Subscript):
            key, value = node.slice, node.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            key, value = node.left, node.comparators[0]
        else:
            continue
        if isinstance(key, ast.Constant) and key.value in KEYS:
            asked.add(ast.unparse(value))
    return asked


def test_no_prediction_is_told_apart_by_its_keys() -> None:
    asked = {}
    for file in sorted(ROOT.rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith(NETWORKS_AND_ANNOTATIONS):
            asked[name] = probes(file.read_text(encoding="utf-8")) - BY_NAME
    assert {name: values for name, values in asked.items() if values} == {}


@pytest.mark.parametrize(
    "line", ['if "boxes" in prediction:', 'if "semantic" not in found:', 'if found["logits"]:']
)
def test_such_a_question_would_be_seen(line: str) -> None:
    assert probes(f"{line}\n    pass") - BY_NAME
