"""A detector that a test adds: each cell of the last feature predicts one box around its center."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, Recognized, State
from ..backbones._recognition import output_count
from ..boxes import Limits, select_within
from ..predictions import Detections
from ..preprocess import Mode
from . import Outputs
from ._coco import CocoMetric
from ._decoded import BOXES, CHOSEN, TO_PICTURE, Decoded, suppression
from ._defaults import convert as convert
from ._defaults import prepare as prepare
from ._defaults import stored as stored

TARGET, AUGMENT, OUTPUT_STRIDE = "boxes", "jitter", 32
MODE: Mode = "letterbox"
SIZE = (96, 96)
CLASSES = 6
OPTIONS: tuple[str, ...] = ("focus",)
SETTINGS: tuple[str, ...] = ()
CLASS_MAJOR: tuple[str, ...] = ()
LIMITS = Limits(count=20, iou=0.5, score=0.05)
DECODE = "boxes in pixels of the input, and logits: sigmoid, then NMS"
EMBEDDED = BOXES
limit, from_file = None, None
PREDICTION = Detections


class Points(nn.Module):
    """Features -> boxes (N, cells, 4) in pixels of the input, and logits (N, cells, classes)."""

    def __init__(self, backbone: Backbone, classes: int, focus: float):
        super().__init__()
        self.focus = focus
        self.stride = backbone.strides[-1]
        self.predict = nn.Conv2d(backbone.channels[-1], 4 + classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        raw = self.predict(features[-1])  # (N, 4 + classes, h, w)
        rows, columns = torch.arange(raw.shape[-2]), torch.arange(raw.shape[-1])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers = ((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * self.stride).to(raw)
        raw = raw.flatten(2).mT  # (N, cells, 4 + classes)
        reach = raw[..., :4].exp() * self.stride  # to the left, up, to the right, down
        boxes = torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], -1)
        return {"boxes": boxes, "logits": raw[..., 4:]}


def head(backbone: Backbone, classes: int, focus: float = 0.0) -> nn.Module:
    """`focus` is of the loss: how much less those answers count that are nearly right already."""
    return Points(backbone, classes, focus)


def loss(head: nn.Module, outputs: Outputs, targets: Mapping[str, Any]) -> dict[str, Tensor]:
    """The cell nearest to the center of an object learns its box and its class.

    The loss of the classes is the focal one (arXiv:1708.02002), where the head has a `focus`.
    """
    box, wanted = outputs["boxes"].sum() * 0, torch.zeros_like(outputs["logits"])
    for i, (boxes, labels) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
        for truth, label in zip(boxes, labels, strict=True):
            predicted = outputs["boxes"][i]  # (cells, 4)
            corners = predicted.detach()
            apart = (corners[:, :2] + corners[:, 2:]) - (truth[:2] + truth[2:])
            cell = apart.square().sum(1).argmin()
            box = box + F.smooth_l1_loss(predicted[cell] / 32, truth / 32)
            wanted[i, cell, label] = 1
    count = max(sum(map(len, targets["labels"])), 1)
    probabilities = outputs["logits"].sigmoid()  # (N, cells, classes)
    weight = (wanted - probabilities).abs().pow(cast(Points, head).focus).detach()
    classes = F.binary_cross_entropy_with_logits(outputs["logits"], wanted, weight, reduction="sum")
    return {"box": box / count, "class": classes / count}


def _select(outputs: Outputs, size: tuple[int, int], limits: Limits) -> dict[str, Tensor]:
    pairs = zip(outputs["boxes"].float(), outputs["logits"].float().sigmoid(), strict=True)
    boxes, scores, labels = zip(*(select_within(b, s, limits) for b, s in pairs), strict=True)
    return {
        "boxes": torch.stack(boxes),
        "scores": torch.stack(scores),
        "labels": torch.stack(labels),
    }


def decode(
    outputs: Outputs, size: tuple[int, int], limits: Limits | None = None
) -> list[Detections]:
    limits = limits or LIMITS
    if "scores" in outputs:
        return [chosen.within(limits) for chosen in Detections.of_padded(outputs)]
    return Detections.of_padded(_select(outputs, size, limits))


def embed(model: nn.Module, limits: Limits | None = None) -> nn.Module:
    return Decoded(model, partial(_select, limits=limits or LIMITS))


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    if embedded:
        return CHOSEN
    return {"nms": suppression(limits or LIMITS), "boxes_to_picture": TO_PICTURE}


def metric(classes: Sequence[str]) -> CocoMetric:
    return CocoMetric(classes)


def recognize(state: State) -> Recognized | None:
    numbers = output_count(state, "head.predict")  # of each cell: a box, then the classes
    return None if numbers is None else Recognized(classes=numbers - 4)
