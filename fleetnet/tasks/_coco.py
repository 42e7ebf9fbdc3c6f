"""COCO's figures, of all detectors.

Masks become run lengths (`rle`) as soon as they come in, since as pixels the masks of a split would
not fit in memory. Figures are those of faster-coco-eval, equal to pycocotools'.

The size of a found object, which decides between small, medium and large, is the area of its box
for boxes and that of its mask for masks. pycocotools takes the box for both if the results have
both, which is why whoever compares mask figures gives it results without "bbox" (as detectron2
does).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np
from torch import Tensor

from ..errors import ModelError
from ..predictions import CocoItem, Detections, Prediction, all_of, xywh
from ..rle import Rle, area, encode
from . import Result
from ._matching import Matches

if TYPE_CHECKING:
    from faster_coco_eval import COCOeval_faster

# COCO's order
FIGURES = "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
SIZES = {  # of objects -> the letter of their figures
    "object below 32x32 pixels": "s",
    "object of 32x32 to 96x96 pixels": "m",
    "object above 96x96 pixels": "l",
}


class Annotation(TypedDict):
    """A true object in COCO's layout."""

    image_id: int
    category_id: int
    bbox: list[float]  # x, y, width, height
    iscrowd: int
    area: float
    segmentation: NotRequired[Rle]


class CocoMetric:
    """COCO's twelve figures over all images added (arXiv:1405.0312).

    They are of boxes and, with `masks`, of instance masks too. `add` takes predictions and, for
    each picture and in its pixels, targets["boxes"] (n, 4) xyxy, ["labels"] (n,), ["crowd"] (n,)
    bool, ["area"] (n,) square pixels, and with masks ["masks"] (n, height, width) bool.
    """

    def __init__(self, classes: Sequence[str], masks: bool = False):
        self.classes = list(classes)
        self.masks = masks
        self.images = 0
        # (height, width) of each picture, where there are masks
        self.sizes: list[tuple[int, int]] = []
        self.truths: list[Annotation] = []
        self.detected: list[CocoItem] = []
        self.matches = Matches(self.classes)  # of masks, where there are masks

    def add(
        self, predictions: Sequence[Prediction], targets: Mapping[str, Sequence[Tensor]]
    ) -> None:
        pictures = zip(
            all_of(Detections, predictions),
            *(targets[key] for key in ("boxes", "labels", "crowd", "area")),
            targets["masks"] if self.masks else [None] * len(predictions),
            strict=True,
        )
        for prediction, boxes, labels, crowd, areas, masks in pictures:
            self.images += 1
            checked = self._checked(prediction)
            detected = checked.coco_items(self.images, range(len(self.classes)))
            truths = _annotations(self.images, boxes, labels, crowd, areas)
            if masks is not None:
                self.sizes.append((masks.shape[-2], masks.shape[-1]))
                for truth, rle in zip(truths, encode(masks), strict=True):
                    truth["segmentation"] = rle
            self.detected += detected
            self.truths += truths
            self._match(detected, truths)

    def join(self, other: "CocoMetric") -> None:
        before = self.images
        for truth in other.truths:
            self.truths.append({**truth, "image_id": before + truth["image_id"]})
        for item in other.detected:
            self.detected.append({**item, "image_id": before + int(item["image_id"])})
        self.sizes += other.sizes
        self.images += other.images
        self.matches.join(other.matches)

    def _match(self, detected: Sequence[CocoItem], truths: Sequence[Annotation]) -> None:
        """Which objects of a picture were found, for F1."""
        crowd = [truth["iscrowd"] for truth in truths]
        overlaps = np.zeros((len(detected), len(truths)))
        if overlaps.size:
            overlaps = self._overlaps(detected, truths, crowd)
        score = np.array([item["score"] for item in detected], np.float64)
        label = np.array([item["category_id"] for item in detected], np.int64)
        truth = np.array([item["category_id"] for item in truths], np.int64)
        self.matches.add(overlaps, score, label, truth, np.array(crowd, bool))

    def _overlaps(
        self, detected: Sequence[CocoItem], truths: Sequence[Annotation], crowd: Sequence[int]
    ) -> np.ndarray:
        """IoU of masks or boxes, (detected, truths); of a crowd, the share of what was detected."""
        from faster_coco_eval.core import mask

        if self.masks:
            of_masks = ([item["segmentation"] for item in items] for items in (detected, truths))
            return np.asarray(mask.iou(*of_masks, crowd))
        of_boxes = (
            np.array([item["bbox"] for item in items], np.float64) for items in (detected, truths)
        )
        return np.asarray(mask.iou(*of_boxes, crowd))

    def _checked(self, prediction: Detections) -> Detections:
        if self.masks and prediction.masks is None:
            raise ModelError("a prediction has boxes, scores and labels, but no masks")
        labels = prediction.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ModelError(
                f"labels are {labels.unique().tolist()}, but there are {len(self.classes)} classes"
            )
        return prediction

    def result(self) -> Result:
        """The figures in percent.

        None where COCO has -1, since there is no object of that size or class. Mask figures come
        first, as "mask_AP" and so on. "per_class" is AP by name, "pr" for each name the precision
        at 101 recalls from 0 to 1, both from 0 to 1, at an IoU of 0.5: [[recall, precision], ...].
        F1, the score where it is best and what else `Matches.result` gives is of masks, where there
        are masks.
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

    def _figures(self, kind: str) -> Result:
        """FIGURES, "per_class" and "pr" of boxes ("bbox") or masks ("segm")."""
        if not self.images:
            nothing: dict[str, object] = dict.fromkeys(FIGURES)
            return {
                **nothing,
                "per_class": dict.fromkeys(self.classes),
                "pr": {name: [] for name in self.classes},
            }
        evaluated = self._evaluated(kind)
        figures: dict[str, object] = dict(
            zip(FIGURES, map(_percent, evaluated.stats.tolist()), strict=True)
        )
        # (IoU, recall, class, area, detections): of objects of any size, with 100 detections
        precision = evaluated.eval["precision"].reshape(evaluated.eval["counts"])[..., 0, -1]
        recalls = evaluated.params.recThrs.tolist()
        figures["per_class"] = {
            name: _percent(float(precision[:, :, i].mean())) for i, name in enumerate(self.classes)
        }
        figures["pr"] = {
            name: _curve(recalls, precision[0, :, i].tolist())
            for i, name in enumerate(self.classes)
        }
        return figures

    def _evaluated(self, kind: str) -> "COCOeval_faster":
        """What faster-coco-eval makes of all images."""
        from faster_coco_eval import COCO, COCOeval_faster

        detected: list[dict[str, object]] = [
            {**item, "id": i, "iscrowd": 0, "area": _size(item, kind)}
            for i, item in enumerate(self.detected, 1)
        ]
        truths = [{**item, "id": i} for i, item in enumerate(self.truths, 1)]
        sizes = self.sizes if kind == "segm" else [(0, 0)] * self.images
        frame = {
            "images": [
                {"id": i, "height": height, "width": width}
                for i, (height, width) in enumerate(sizes, 1)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes)],
        }
        evaluation = COCOeval_faster(
            COCO({**frame, "annotations": truths}), COCO({**frame, "annotations": detected}), kind
        )
        evaluation.run()
        return evaluation


def _annotations(
    image: int, boxes: Tensor, labels: Tensor, crowd: Tensor, areas: Tensor
) -> list[Annotation]:
    """The objects of a picture as annotations of COCO: boxes (n, 4) xyxy, the others (n,)."""
    columns = zip(
        labels.tolist(), xywh(boxes), crowd.tolist(), areas.double().tolist(), strict=True
    )
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "iscrowd": int(is_crowd),
            "area": square,
        }
        for label, box, is_crowd, square in columns
    ]


def _size(item: CocoItem, kind: str) -> float:
    """The area of a detected object, which makes it small, medium or large."""
    if kind == "segm":
        return area(item["segmentation"])
    *_, width, height = item["bbox"]
    return float(width * height)


def _curve(recalls: Sequence[float], precisions: Sequence[float]) -> list[list[float]]:
    """[[recall, precision], ...] where there is a precision; COCO has -1 where there is none."""
    points = zip(recalls, precisions, strict=True)
    return [[recall, precision] for recall, precision in points if precision >= 0]


def _why_none(figures: Mapping[str, object]) -> list[str]:
    """Which sizes of objects are not there, so that AP or AR of that size is None."""
    if figures["AP"] is None:
        return ["there is no object, so no AP"]
    absent = [size for size, letter in SIZES.items() if figures[f"AP{letter}"] is None]
    return [f"no {', no '.join(absent)}, so no AP and AR of that size"] if absent else []


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value
