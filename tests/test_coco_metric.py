"""The figures of detectors against pycocotools, and what is not in the official tool: empty data, words, layouts."""

import json
import time

import numpy as np
import pytest
import torch
from pycocotools import mask as official_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fleetnet.errors import ModelError
from fleetnet.predictions import Detections
from fleetnet.rle import encode
from fleetnet.tasks._coco import FIGURES, CocoMetric

NAMES = ["ant", "bee", "cat", "never"]
SIDES = (8, 20, 60, 130)  # of objects: small, medium and large ones


def boxes_of(rng, count, size):
    height, width = size
    side = rng.choice(SIDES, (count, 2)) * rng.uniform(0.7, 1.3, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * np.maximum([width - 8, height - 8] - side, 1)
    boxes = np.concatenate([corner, corner + side], 1)
    return torch.tensor(boxes.clip(0, [width, height, width, height]), dtype=torch.float32)


def masks_of(boxes, size):
    """An ellipse within each box, at least one pixel."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    away = ((x - center[:, :1, None]) / half[:, :1, None]) ** 2 + (
        (y - center[:, 1:, None]) / half[:, 1:, None]
    ) ** 2
    return away <= 1


def scene(images=20, seed=0, masks=True, detections=30):
    """Random pictures, objects and detections: moved objects, doubles, wrong classes, pictures without either."""
    rng = np.random.default_rng(seed)
    targets = {
        key: [] for key in ("boxes", "labels", "crowd", "area", *(["masks"] if masks else []))
    }
    predictions = []
    for i in range(images):
        size = (int(rng.integers(160, 220)), int(rng.integers(160, 240)))
        count = 0 if i % 7 == 3 else int(rng.integers(1, 9))
        boxes = boxes_of(rng, count, size)
        labels = torch.tensor(rng.integers(0, 3, count))
        targets["boxes"].append(boxes)
        targets["labels"].append(labels)
        targets["crowd"].append(torch.tensor(rng.random(count) < 0.15))
        shape = masks_of(boxes, size)
        sides = boxes[:, 2:] - boxes[:, :2]
        targets["area"].append(shape.sum((1, 2)).float() if masks else sides[:, 0] * sides[:, 1])
        again = torch.tensor(
            rng.integers(0, max(count, 1), 0 if i % 7 == 5 else detections if count else 0)
        )
        near = boxes[again] + torch.tensor(rng.normal(0, 2.5, (len(again), 4)), dtype=torch.float32)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 2)
        far = boxes_of(rng, 4, size)
        found = {
            "boxes": torch.cat([near, far]),
            "labels": torch.cat([labels[again], torch.tensor(rng.integers(0, 3, 4))]),
            "scores": torch.tensor(
                rng.random(len(near) + 4).round(2), dtype=torch.float32
            ),  # with ties
        }
        if masks:
            targets["masks"].append(shape)
            found["masks"] = masks_of(found["boxes"], size)
        predictions.append(Detections(**found))
    return predictions, targets


def official(predictions, targets, kind):
    """The twelve figures, per-class AP and PR at IoU 0.5 of pycocotools."""
    coco = official_evaluation(predictions, targets, kind)
    coco.accumulate()
    coco.summarize()
    return coco.stats, coco.eval["precision"][:, :, :, 0, 2]


def official_evaluation(predictions, targets, kind, most=100):
    """What pycocotools matched, with `most` found objects a picture and class, from JSON files' contents."""
    annotations, found, pictures = [], [], []
    for i, prediction in enumerate(predictions):
        size = targets["masks"][i].shape[1:] if "masks" in targets else (999, 999)
        pictures.append({"id": 10 + i, "height": int(size[0]), "width": int(size[1])})
        for j in range(len(targets["boxes"][i])):
            x0, y0, x1, y1 = targets["boxes"][i][j].tolist()
            item = {
                "id": len(annotations) + 1, "image_id": 10 + i, "category_id": 5 + int(targets["labels"][i][j]),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(targets["crowd"][i][j]),
                "area": float(targets["area"][i][j]),
            }  # fmt: skip
            if "masks" in targets:
                item["segmentation"] = official_mask.encode(
                    np.asfortranarray(targets["masks"][i][j].numpy())
                )
            annotations.append(item)
        for j in range(len(prediction.boxes)):
            x0, y0, x1, y1 = prediction.boxes[j].tolist()
            item = {"image_id": 10 + i, "category_id": 5 + int(prediction.labels[j])}
            if kind == "bbox":
                item["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                item["segmentation"] = official_mask.encode(
                    np.asfortranarray(prediction.masks[j].numpy())
                )
            found.append({**item, "score": float(prediction.scores[j])})
    truth = COCO()
    categories = [{"id": 5 + i, "name": name} for i, name in enumerate(NAMES)]
    truth.dataset = {
        "info": {},
        "images": pictures,
        "annotations": annotations,
        "categories": categories,
    }
    truth.createIndex()
    coco = COCOeval(truth, truth.loadRes(found), kind)
    coco.params.maxDets = [1, 10, most]
    coco.evaluate()
    return coco


def measured(predictions, targets, masks, batch=6):
    metric = CocoMetric(NAMES, masks)
    for i in range(0, len(predictions), batch):
        metric.add(
            predictions[i : i + batch],
            {key: value[i : i + batch] for key, value in targets.items()},
        )
    result = metric.result()
    json.dumps(result, allow_nan=False)
    return result


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("masks", [False, True])
def test_equals_pycocotools(masks, seed):
    predictions, targets = scene(seed=seed, masks=masks)
    result = measured(predictions, targets, masks)
    assert next(iter(result)) == ("mask_AP" if masks else "AP")
    assert result["images"] == len(predictions)
    for kind, prefix in [("bbox", ""), ("segm", "mask_")][: 1 + masks]:
        stats, precision = official(predictions, targets, kind)
        assert [result[prefix + name] for name in FIGURES] == pytest.approx(
            (100 * stats).tolist(), abs=1e-6
        )
        assert 0.05 < stats[0] < 0.95  # neither all nor nothing
        assert len(set(stats.round(6).tolist())) >= 11
        for i, name in enumerate(NAMES[:3]):
            assert result[f"{prefix}per_class"][name] == pytest.approx(
                100 * precision[:, :, i].mean(), abs=1e-6
            )
            points = np.array(result[f"{prefix}pr"][name])
            np.testing.assert_allclose(points[:, 0], np.linspace(0, 1, 101), atol=1e-12)
            np.testing.assert_allclose(points[:, 1], precision[0, :, i], atol=1e-6)
        assert result[f"{prefix}per_class"]["never"] is None
        assert result[f"{prefix}pr"]["never"] == []


def test_more_than_a_hundred_detections_of_a_picture():
    predictions, targets = scene(images=4, seed=3, masks=False, detections=400)
    result = measured(predictions, targets, False)
    stats, _ = official(predictions, targets, "bbox")
    assert [result[name] for name in FIGURES] == pytest.approx((100 * stats).tolist(), abs=1e-6)


@pytest.mark.parametrize("masks", [False, True])
def test_truth_scores_all(masks):
    _, targets = scene(masks=masks)
    targets["crowd"] = [torch.zeros_like(crowd) for crowd in targets["crowd"]]
    keys = ("boxes", "labels", *(["masks"] if masks else []))
    predictions = [
        Detections(**{key: targets[key][i] for key in keys}, scores=torch.ones(len(boxes)))
        for i, boxes in enumerate(targets["boxes"])
    ]
    result = measured(predictions, targets, masks)
    for prefix in ("", "mask_")[: 1 + masks]:
        values = [
            result[prefix + name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
        ]
        assert values == pytest.approx([100] * 7, abs=1e-9)


def test_nothing_found():
    predictions, targets = scene(images=5, masks=True)
    predictions = [prediction.at(slice(0)) for prediction in predictions]
    result = measured(predictions, targets, True)
    assert (
        [result[name] for name in FIGURES]
        == [result[f"mask_{name}"] for name in FIGURES]
        == [0.0] * 12
    )


def test_nothing_there():
    """Pictures without any object: no figure means anything, and what is found does not change that."""
    predictions, targets = scene(images=5, masks=True)
    targets = {key: [value[:0] for value in values] for key, values in targets.items()}
    for found in (predictions, [p.at(slice(0)) for p in predictions]):
        result = measured(found, targets, True)
        assert (
            {result[name] for name in FIGURES}
            == {result[f"mask_{name}"] for name in FIGURES}
            == {None}
        )
        assert set(result["per_class"].values()) == {None}
        assert result["images"] == 5


def test_no_picture():
    result = CocoMetric(NAMES, masks=True).result()
    assert result["mask_AP"] is result["AP"] is result["per_class"]["ant"] is None
    assert result["images"] == 0


def test_small_objects_only():
    targets = {
        "boxes": [torch.tensor([[2.0, 2, 9, 9]])], "labels": [torch.tensor([1])], "crowd": [torch.tensor([False])],
        "area": [torch.tensor([49.0])],
    }  # fmt: skip
    prediction = {
        "boxes": targets["boxes"][0],
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.4]),
    }
    result = measured([Detections(**prediction)], targets, False)
    assert (result["AP"], result["APs"]) == pytest.approx((100, 100))
    assert result["APm"] is result["ARl"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([4])}, r"labels are \[4\], but there are 4 classes"),
        ({"labels": torch.tensor([-1])}, r"labels are \[-1\]"),
        ({"masks": None}, "a prediction has boxes, scores and labels, but no masks"),
    ],
)
def test_unfit_predictions(change, message):
    prediction = {
        "boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([0]), "scores": torch.tensor([1.0]),
        "masks": torch.ones(1, 8, 8, dtype=torch.bool), **change,
    }  # fmt: skip
    targets = {
        "boxes": [torch.zeros(0, 4)], "labels": [torch.zeros(0, dtype=torch.int64)], "area": [torch.zeros(0)],
        "crowd": [torch.zeros(0, dtype=torch.bool)], "masks": [torch.zeros(0, 8, 8, dtype=torch.bool)],
    }  # fmt: skip
    with pytest.raises(ModelError, match=message):
        CocoMetric(NAMES, masks=True).add([Detections(**prediction)], targets)


def test_encode_is_official():
    masks = torch.rand(3, 17, 11, generator=torch.Generator().manual_seed(0)) > 0.6
    for mask, rle in zip(masks, encode(masks), strict=True):
        expected = official_mask.encode(np.asfortranarray(mask.numpy()))
        assert rle == {"size": [17, 11], "counts": expected["counts"].decode()}
    assert encode(masks[:0]) == []


def test_results_layout():
    prediction = {
        "boxes": torch.tensor([[1.5, 2, 4, 8], [0, 0, 3, 3]]), "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.5, 0.25]), "masks": torch.zeros(2, 9, 9, dtype=torch.bool),
    }  # fmt: skip
    objects = Detections(**prediction)
    found = [item for image in ("a", 7) for item in objects.coco_items(image, [90, 3])]
    assert [item["image_id"] for item in found] == ["a", "a", 7, 7]
    assert found[0] == {
        "image_id": "a", "category_id": 3, "bbox": [1.5, 2, 2.5, 6], "score": 0.5,
        "segmentation": encode(prediction["masks"])[0],
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


def test_present():
    prediction = {
        "boxes": torch.arange(12.0).reshape(3, 4), "labels": torch.tensor([2, 0, 1]),
        "scores": torch.tensor([0.3, 0.1, 0.75]),
    }  # fmt: skip
    found = Detections(**prediction).present(NAMES, top=1, threshold=0.25)
    assert [(item["label"], item["box"]) for item in found] == [
        ("bee", [8, 9, 10, 11]),
        ("cat", [0, 1, 2, 3]),
    ]
    assert [item["score"] for item in found] == pytest.approx([0.75, 0.3])
    masks = torch.zeros(3, 6, 5, dtype=torch.bool)
    masks[2, 1] = True
    found = Detections(**prediction, masks=masks).present(NAMES, threshold=0.25)
    assert found[0]["segmentation"] == encode(masks[2:])[0]
    assert Detections(**prediction).present(NAMES, threshold=0.9) == []


def test_is_fast():
    predictions, targets = scene(images=90, masks=False, detections=96)
    began = time.process_time()
    measured(predictions, targets, False)
    assert time.process_time() - began < 10  # about 0.3 s on a free core
