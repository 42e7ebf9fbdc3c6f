"""What detectors share after their boxes: COCO's figures, COCO's results layout, and predictions in words.

Masks are COCO's RLE here, {"size": [height, width], "counts": str}, made as soon as they come in,
since as pixels the masks of a split would not fit in memory. Figures are those of faster-coco-eval,
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

from ..boxes import Prediction
from ..errors import ModelError
from ._matching import Matches

# COCO's order
FIGURES = "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"
SIZES = {  # of objects -> the letter of their figures
    "object below 32x32 pixels": "s", "object of 32x32 to 96x96 pixels": "m", "object above 96x96 "
                                                                              "pixels": "l",
}  # fmt: skip


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Masks (n, height, width) bool -> RLE of each."""
    from faster_coco_eval.core import mask

    if not len(masks):
        return []
    # (n, width, height): by columns
    columns = masks.detach().cpu().byte().transpose(1, 2).contiguous().numpy()
    return [
        {"size": rle["size"], "counts": rle["counts"].decode()}
        for rle in mask.encode(columns.transpose(2, 1, 0))
    ]


def encode_enlarged(mask: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """A mask (rows, columns) bool -> the RLE of its enlargement to `size` (height, width), to the nearest pixel.

    Without the pixels of the large mask: where a column of the mask changes, each column of the
    large one does.
    """
    from faster_coco_eval.core import mask as coco

    (height, width), (rows, columns) = size, mask.shape
    small = mask.detach().cpu().numpy()
    # the first row of the large mask that shows each row
    starts = -(-np.arange(rows + 1) * height // rows)
    # the column that each column of the large mask shows
    shown = np.arange(width) * columns // width
    edges = np.diff(small.astype(np.int8), axis=0, prepend=0, append=0) != 0  # (rows + 1, columns)
    changes = {
        column: starts[np.flatnonzero(edges[:, column])]
        for column in np.flatnonzero(small.any(0)).tolist()
    }
    parts = [
        changes[column] + i * height for i, column in enumerate(shown.tolist()) if column in changes
    ]
    at, times = np.unique(np.concatenate([*parts, np.empty(0, np.int64)]), return_counts=True)
    at = at[times == 1]  # one column ends where the next begins
    counts = np.diff(at, prepend=0, append=height * width)
    # the mask ends with the last pixel
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    (rle,) = coco.frPyObjects(
        [{"size": [height, width], "counts": counts.astype(int).tolist()}], height, width
    )
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def area(rle: Mapping[str, Any]) -> float:
    """Pixels of a mask."""
    from faster_coco_eval.core import mask

    return float(mask.area(rle))


def results(
    predictions: Sequence[Prediction], image_ids: Sequence[int | str], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Predictions in the pixels of their pictures -> COCO's results: a dict a box, with "bbox" as x, y, width, height.

    `category_ids` are in the order of the classes. Predictions with masks have "segmentation" too,
    as RLE.
    """
    found: list[dict[str, Any]] = []
    for prediction, image_id in zip(predictions, image_ids, strict=True):
        items = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": bbox, "score": score}
            for bbox, label, score in zip(
                _xywh(prediction["boxes"]),
                prediction["labels"].tolist(),
                prediction["scores"].tolist(),
                strict=True,
            )
        ]
        if "masks" in prediction:
            for item, rle in zip(items, encode(prediction["masks"]), strict=True):
                item["segmentation"] = rle
        found += items
    return found


def present(
    prediction: Prediction, classes: Sequence[str], top: int = 5, threshold: float = 0.3
) -> list[dict[str, Any]]:
    """What was found with a score of at least `threshold`, best first, however many (`top` is for classifiers).

    Each is {"label": name, "score": 0 to 1, "box": [x0, y0, x1, y1]}, and with masks
    {"segmentation": RLE} too.
    """
    scores, order = prediction["scores"].sort(descending=True, stable=True)
    kept = {key: value[order[scores >= threshold]] for key, value in prediction.items()}
    found: list[dict[str, Any]] = [
        {"label": classes[label], "score": score, "box": box}
        for label, score, box in zip(
            kept["labels"].tolist(), kept["scores"].tolist(), kept["boxes"].tolist(), strict=True
        )
    ]
    if "masks" in kept:
        for item, rle in zip(found, encode(kept["masks"]), strict=True):
            item["segmentation"] = rle
    return found


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
        self.found: list[dict[str, Any]] = []
        self.matches = Matches(self.classes)  # of masks, where there are masks

    def add(
        self, predictions: Sequence[Prediction], targets: Mapping[str, Sequence[Tensor]]
    ) -> None:
        given = [targets[key] for key in ("boxes", "labels", "crowd", "area")]
        masks = targets["masks"] if self.masks else [None] * len(predictions)
        for prediction, boxes, labels, crowd, area, mask in zip(
            predictions, *given, masks, strict=True
        ):
            self.images += 1
            found = results([self._checked(prediction)], [self.images], range(len(self.classes)))
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
                    _xywh(boxes),
                    crowd.tolist(),
                    area.double().tolist(),
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

    def _checked(self, prediction: Prediction) -> Prediction:
        missing = {
            "boxes",
            "scores",
            "labels",
            *(["masks"] if self.masks else []),
        } - prediction.keys()
        if missing:
            raise ModelError(
                f"a prediction has {', '.join(prediction)}, but no {', '.join(sorted(missing))}"
            )
        labels = prediction["labels"]
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

        found = [{**item, "id": i, "iscrowd": 0} for i, item in enumerate(self.found, 1)]
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


def _xywh(boxes: Tensor) -> list[list[float]]:
    return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.detach().tolist()]


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value
