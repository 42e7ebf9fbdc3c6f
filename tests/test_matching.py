"""Precision, recall and F1 of detectors against a slow plain matching, and against COCO's own precision."""

import numpy as np
import pytest
import torch
from test_coco_metric import measured, official_evaluation, scene
from torchvision.ops import box_iou

from fleetnet.predictions import Detections
from fleetnet.tasks._matching import best_score


def plain_overlap(box: torch.Tensor, other: torch.Tensor, crowd: bool) -> float:
    """IoU in float64; with a crowd the share of the found box that lies in it, as COCO has it."""
    box, other = box.double(), other.double()
    if not crowd:
        return box_iou(box[None], other[None]).item()
    corner = torch.maximum(box[:2], other[:2])
    inside = (torch.minimum(box[2:], other[2:]) - corner).clamp(min=0).prod()
    return (inside / (box[2:] - box[:2]).prod()).item()


def plain(
    predictions: list, targets: dict, label: int | None, threshold: float
) -> tuple[int, int, int]:
    """Right, wrong and missed objects of a class (of all for None) with scores from a threshold on, one by one."""
    right = wrong = objects = 0
    for i, prediction in enumerate(predictions):
        truths = [
            (box, int(own), bool(crowd))
            for box, own, crowd in zip(
                targets["boxes"][i], targets["labels"][i], targets["crowd"][i], strict=True
            )
            if label in (None, int(own))
        ]  # fmt: skip
        objects += sum(not crowd for _, _, crowd in truths)
        free = [not crowd for _, _, crowd in truths]
        for j in sorted(range(len(prediction.boxes)), key=lambda j: -prediction.scores[j].item()):
            own = int(prediction.labels[j])
            if prediction.scores[j].item() < threshold or label not in (None, own):
                continue
            best, best_iou, in_crowd = None, 0.5, False
            for k, (box, of, crowd) in enumerate(truths):
                if of != own:
                    continue
                iou = plain_overlap(prediction.boxes[j], box, crowd)
                if free[k] and iou >= best_iou:
                    best, best_iou = k, iou
                in_crowd |= crowd and iou >= 0.5
            if best is not None:
                free[best] = False
                right += 1
            elif not in_crowd:
                wrong += 1
    return right, wrong, objects - right


def f1(right: int, wrong: int, missed: int) -> float:
    return 200 * right / (2 * right + wrong + missed)


@pytest.mark.parametrize("seed", [0, 5])
def test_figures_equal_a_plain_matching(seed: int) -> None:
    predictions, targets = scene(images=12, seed=seed, masks=False, detections=14)
    result = measured(predictions, targets, False)
    every = sorted({score for p in predictions for score in p.scores.tolist()})
    assert result["F1"] == pytest.approx(
        max(f1(*plain(predictions, targets, None, s)) for s in every)
    )
    right, wrong, missed = plain(predictions, targets, None, result["score"])
    assert result["F1"] == pytest.approx(f1(right, wrong, missed))
    assert result["precision"] == pytest.approx(100 * right / (right + wrong))
    assert result["recall"] == pytest.approx(100 * right / (right + missed))
    for label, row in enumerate(result["by_class"][:3]):
        of_class = plain(predictions, targets, label, result["score"])
        assert row["right"] == of_class[0]
        assert row["objects"] == of_class[0] + of_class[2]
        assert row["F1"] == pytest.approx(f1(*of_class))
        assert row["best_F1"] == pytest.approx(
            max(f1(*plain(predictions, targets, label, s)) for s in every)
        )
        assert row["best_F1"] == pytest.approx(
            f1(*plain(predictions, targets, label, row["best_score"]))
        )
    never = result["by_class"][3]
    assert (never["objects"], never["F1"], never["recall"], never["best_score"]) == (
        0,
        None,
        None,
        None,
    )
    assert "1 of 4 classes have no object here, so no figures: never" in result["notes"]
    curves = result["curves"]
    # also where the peak is between two hundredths
    assert max(curves["F1"]) == pytest.approx(result["F1"])
    for step in (0, 30, 71):
        right, wrong, missed = plain(predictions, targets, None, curves["score"][step])
        assert curves["F1"][step] == pytest.approx(f1(right, wrong, missed))
        assert curves["recall"][step] == pytest.approx(100 * right / (right + missed))
    # What was taken for what: each object that counts is once in the matrix, and so is each kept
    # box outside crowds.
    matrix = np.array(result["confusion"])
    assert matrix.shape == (5, 5)
    assert matrix[:4].sum(1).tolist() == [row["objects"] for row in result["by_class"]]
    kept = sum((p.scores >= result["score"]).sum().item() for p in predictions)
    assert matrix[:, :4].sum() <= kept
    assert matrix[4, 4] == 0


@pytest.mark.parametrize("masks", [False, True])
def test_matches_are_those_of_pycocotools(masks: bool) -> None:
    """Of boxes and of masks: right, kept and all objects of each class, at the score of the best F1."""
    predictions, targets = scene(images=10, seed=2, masks=masks)
    result = measured(predictions, targets, masks)
    coco = official_evaluation(predictions, targets, "segm" if masks else "bbox", most=1000)
    matched = [
        entry for entry in coco.evalImgs if entry and entry["aRng"] == coco.params.areaRng[0]
    ]
    for label, row in enumerate(result["by_class"][:3]):
        right = kept = objects = 0
        for entry in matched:
            if entry["category_id"] == 5 + label:
                counts = ~entry["dtIgnore"][0].astype(bool) & (
                    np.array(entry["dtScores"]) >= result["score"]
                )
                right += int((entry["dtMatches"][0][counts] > 0).sum())
                kept += int(counts.sum())
                objects += int((~np.array(entry["gtIgnore"]).astype(bool)).sum())
        assert (row["right"], row["objects"]) == (right, objects)
        assert row["precision"] == pytest.approx(100 * right / kept)
        assert right > 3


def test_a_truth_that_is_found_is_all_right() -> None:
    _, targets = scene(masks=True)
    targets["crowd"] = [torch.zeros_like(crowd) for crowd in targets["crowd"]]
    predictions = [
        Detections(
            **{key: targets[key][i] for key in ("boxes", "labels", "masks")},
            scores=torch.full((len(boxes),), 0.75),
        )
        for i, boxes in enumerate(targets["boxes"])
    ]
    result = measured(predictions, targets, True)
    assert (result["F1"], result["precision"], result["recall"], result["score"]) == (
        100,
        100,
        100,
        0.75,
    )
    assert result["confused"] == []
    step = result["curves"]["score"].index(0.8)
    assert result["curves"]["precision"][step] is None  # nothing is found with a score of 0.8
    assert result["curves"]["recall"][step] == 0


def test_nothing_right_and_nothing_there() -> None:
    predictions, targets = scene(images=5, masks=False)
    nothing = [p.at(slice(0)) for p in predictions]
    result = measured(nothing, targets, False)
    assert (result["F1"], result["precision"], result["recall"], result["score"]) == (
        0,
        None,
        0,
        None,
    )
    assert any("nothing that was found is right" in note for note in result["notes"])
    empty = {key: [value[:0] for value in values] for key, values in targets.items()}
    result = measured(predictions, empty, False)
    assert [result[key] for key in ("F1", "recall", "score", "AP")] == [None] * 4


def test_the_best_score_is_halfway_to_the_next_lower() -> None:
    score, right = np.array([0.9, 0.8, 0.8, 0.4]), np.array([1, 1, 1, 0])
    assert best_score(score, right, 3) == (100, pytest.approx(0.6))
    assert best_score(score[:3], right[:3], 3) == (100, pytest.approx(0.8))
    assert best_score(score, np.zeros(4, int), 3) == (0.0, None)
    assert best_score(score, np.zeros(4, int), 0) == (None, None)
