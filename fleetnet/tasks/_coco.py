"""COCO's figures, of all detectors.

Masks become run lengths (`rle`) as soon as they come in, since as pixels the masks of a split would
not fit in memory. Figures are those of faster-coco-eval,
equal to pycocotools'.

The size of a found object, which decides between small, medium and large, is the area of its box
for boxes and that of its mask for masks. pycocotools takes the box for both if the results have
both, which is why whoever compares mask figures gives it results without "bbox" (as detectron2
does).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ModelError
from ..predictions import CocoItem, Detections, Prediction, all_of, xywh
from ..rle import area, encode
from ._matching import Matches

# COCO's order
FIGURES = "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
SIZES = {  # of objects -> the letter of their figures
    "object below 32x32 pixels": "s", "object of 32x32 to 96x96 pixels": "m", "object above 96x96 "
                                                                              "pixels": "l",
}  # fmt: skip


class CocoMetric:
    """COCO's twelve figures over all images added, of boxes and, with `masks`, of instance masks (arXiv:1405.0312).

    `add` takes predictions and, for each picture and in its pixels, targets["boxes"] (n, 4) xyxy,
    ["labels"] (n,), ["crowd"] (n,) bool, ["area"] (n,) square pixels, and with masks ["masks"] (n,
    height, width) bool.
    """

    def __init__(self, classes: Sequence[str], masks: bool = False):
        self.classes, self.masks, self.images = list(classes), masks, 0
        # (height, width) of each picture, where there are masks
        self.sizes: list[tuple[int, int]] = []
        self.truths: list[dict[str, Any]] = []
        self.found: list[CocoItem] = []
        self.matches = Matches(self.classes)  # of masks, where there are masks

    def add(
        self, predictions: Sequence[Prediction], targets: Mapping[str, Sequence[Tensor]]
    ) -> None:
        given = [targets[key] for key in ("boxes", "labels", "crowd", "area")]
        masks = targets["masks"] if self.masks else [None] * len(predictions)
        for prediction, boxes, labels, crowd, areas, mask in zip(
            all_of(Detections, predictions), *given, masks, strict=True
        ):
            self.images += 1
            checked = self._checked(prediction)
            found = checked.coco_items(self.images, range(len(self.classes)))
            self.found += found
            truths: list[dict[str, Any]] = [
                {
                    "image_id": self.images,
                    "category_id": label,
                    "bbox": bbox,
                    "iscrowd": int(many),
                    "area": square,
                }
                for label, bbox, many, square in zip(
                    labels.tolist(),
                    xywh(boxes),
                    crowd.tolist(),
                    areas.double().tolist(),
                    strict=True,
                )
            ]
            if mask is not None:
                self.sizes.append((mask.shape[-2], mask.shape[-1]))
                for truth, rle in zip(truths, encode(mask), strict=True):
                    truth["segmentation"] = rle
            self.truths += truths
            self._match(found, truths)

    def _match(
        self, found: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]]
    ) -> None:
        """Which objects of a picture were found, for F1."""
        from faster_coco_eval.core import mask

        crowd = np.array([truth["iscrowd"] for truth in truths], np.int64)
        overlaps = np.zeros((len(found), len(truths)))
        if overlaps.size:
            ours, theirs = (
                [item["segmentation"] for item in items]
                if self.masks
                else np.array([item["bbox"] for item in items], np.float64)
                for items in (found, truths)
            )
            overlaps = np.asarray(mask.iou(ours, theirs, crowd.tolist()))
        score = np.array([item["score"] for item in found], np.float64)
        label = np.array([item["category_id"] for item in found], np.int64)
        truth = np.array([item["category_id"] for item in truths], np.int64)
        self.matches.add(overlaps, score, label, truth, crowd.astype(bool))

    def _checked(self, prediction: Detections) -> Detections:
        if self.masks and prediction.masks is None:
            raise ModelError("a prediction has boxes, scores and labels, but no masks")
        labels = prediction.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ModelError(
                f"labels are {labels.unique().tolist()}, but there are {len(self.classes)} classes"
            )
        return prediction

    def result(self) -> dict[str, Any]:
        """The figures in percent; None where COCO has -1, since there is no object of that size or class.

        Mask figures come first, as "mask_AP" and so on. "per_class" is AP by name, "pr" for each
        name the precision at 101 recalls from 0 to 1, both from 0 to 1, at an IoU of 0.5: [[recall,
        precision], ...]. F1, the score where it is best and what else `Matches.result` gives is of
        masks, where there are masks.
        """
        of_masks = self._figures("segm") if self.masks else {}
        of_boxes, matches = self._figures("bbox"), self.matches.result()
        for i, row in enumerate(matches["by_class"]):
            if self.masks:
                row["mask_AP"] = of_masks["per_class"][self.classes[i]]
            row["AP"] = of_boxes["per_class"][self.classes[i]]
        figures = {**{f"mask_{name}": value for name, value in of_masks.items()}, **of_boxes}
        return {
            **figures,
            **matches,
            "images": self.images,
            "notes": [*matches["notes"], *_why_none(figures)],
        }

    def _figures(self, kind: str) -> dict[str, Any]:
        if not self.images:
            nothing: dict[str, Any] = dict.fromkeys(FIGURES)
            return {
                **nothing,
                "per_class": dict.fromkeys(self.classes),
                "pr": {name: [] for name in self.classes},
            }
        from faster_coco_eval import COCO, COCOeval_faster

        found: list[dict[str, Any]] = [
            {**item, "id": i, "iscrowd": 0} for i, item in enumerate(self.found, 1)
        ]
        for item in found:
            *_, width, height = item["bbox"]
            item["area"] = width * height if kind == "bbox" else area(item["segmentation"])
        truths = [{**item, "id": i} for i, item in enumerate(self.truths, 1)]
        sizes = self.sizes if kind == "segm" else [(0, 0)] * self.images
        frame = {
            "images": [
                {"id": i, "height": height, "width": width}
                for i, (height, width) in enumerate(sizes, 1)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes)],
        }
        coco = COCOeval_faster(
            COCO({**frame, "annotations": truths}), COCO({**frame, "annotations": found}), kind
        )
        coco.run()
        figures: dict[str, Any] = dict(
            zip(FIGURES, map(_percent, coco.stats.tolist()), strict=True)
        )
        # (IoU, recall, class, area, detections): of objects of any size, with 100 detections
        precision = coco.eval["precision"].reshape(coco.eval["counts"])[..., 0, -1]
        recalls = coco.params.recThrs.tolist()
        figures["per_class"] = {
            name: _percent(float(precision[:, :, i].mean())) for i, name in enumerate(self.classes)
        }
        figures["pr"] = {
            name: [
                list(point)
                for point in zip(recalls, precision[0, :, i].tolist(), strict=True)
                if point[1] >= 0
            ]
            for i, name in enumerate(self.classes)
        }
        return figures


def _why_none(figures: Mapping[str, Any]) -> list[str]:
    """Which sizes of objects are not there, so that AP or AR of that size is None."""
    if figures["AP"] is None:
        return ["there is no object, so no AP"]
    absent = [size for size, letter in SIZES.items() if figures[f"AP{letter}"] is None]
    return [f"no {', no '.join(absent)}, so no AP and AR of that size"] if absent else []


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value
