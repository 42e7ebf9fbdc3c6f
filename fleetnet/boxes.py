"""Which of all that a detector's network finds are kept, also inside an exported graph.

    Limits     how many, above which score, how much apart, of which classes
    select     all boxes with their class scores -> the best K of them, after NMS
    best_after_nms, take    the two steps of it: which boxes, and their values

Boxes are x0, y0, x1, y1, floats, in pixels. Intersection over union and NMS are torchvision's
(`torchvision.ops`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from .errors import UsageError, suggest

CANDIDATES = 1000  # of a picture that enter the NMS at least
MOST = 10_000  # objects of a picture that may be kept: the NMS compares all pairs of candidates


@dataclass(frozen=True)
class Limits:
    """What a detector keeps of all that its network finds in a picture."""

    count: int  # objects at most, the best
    iou: float  # of two boxes of a class that overlap more than this the less certain is dropped: NMS
    score: float  # only objects of a score above this
    only: tuple[int, ...] | None = None  # only objects of these classes; None: of all

    @property
    def candidates(self) -> int:
        """How many pairs of a box and a class enter the NMS, the best."""
        return max(CANDIDATES, 10 * self.count)

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """For JSON, under the names of the options, classes by name."""
        only = None if self.only is None else [classes[label] for label in self.only]
        return {"max_objects": self.count, "nms": self.iou, "score": self.score, "only": only}

    def changed(self, given: Mapping[str, object], classes: Sequence[str]) -> "Limits":
        """These limits with those given: "max_objects", "nms", "score" and "only" (names of classes), each if not None.

        Raises `UsageError` for an unknown key, class, or a value out of range.
        """
        fields = {"max_objects": "count", "nms": "iou", "score": "score", "only": "only"}
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in fields:
                raise UsageError(f"no limit {key!r}: {suggest(key, fields)}")
            if value is not None:
                values[fields[key]] = value
        if "only" in values:
            values["only"] = _labels(values["only"], classes)
        changed = replace(self, **values)
        if not 1 <= changed.count <= MOST:
            raise UsageError(f"max_objects is {changed.count}; allowed: 1 to {MOST}")
        for key, value in (("nms", changed.iou), ("score", changed.score)):
            if not 0 <= value <= 1:
                raise UsageError(f"{key} is {value}; allowed: 0 to 1")
        return changed


def _labels(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """The indices of classes by name, rising."""
    for name in names:
        if name not in classes:
            raise UsageError(
                f"only is {name!r}, which is no class of this model: {suggest(name, classes)}"
            )
    return tuple(label for label, name in enumerate(classes) if name in names)


def best_after_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, many: int, iou: float, count: int
) -> Tensor:
    """Indices (count,) of the best boxes after NMS within each group, best first; n where there are no more.

    boxes (n, 4), scores (n,), groups (n,) int64 below `many`. A graph needs the same shapes for any
    image: only what the NMS itself gives has none.
    """
    # Each group is moved to a cell of a grid of its own. A grid keeps the coordinates small, and so
    # their rounding: 80 classes in a row would cost float32 a hundredth of a pixel.
    cell = boxes.max() - boxes.min() + 1 if len(boxes) else 1
    side = math.isqrt(many - 1) + 1
    keep = nms(boxes + torch.stack([groups % side, groups // side] * 2, 1) * cell, scores, iou)
    return torch.cat([keep, keep.new_full((count,), len(scores))])[
        torch.arange(count, device=keep.device)
    ]


def take(values: Tensor, index: Tensor) -> Tensor:
    """Values (n, ...) at `index` (count,), zeros where that is n."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[index]


def select(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou: float,
    threshold: float,
    count: int,
    candidates: int = CANDIDATES,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best boxes of one picture after NMS within each class, padded to `count` with zeros (a score of 0).

    boxes (A, 4), scores (A, classes) -> boxes (count, 4), scores (count,), labels (count,) int64,
    best first. A box may be found as several classes. Only scores above `threshold`, and of them
    the best `candidates`, enter the NMS.
    """
    classes, flat = scores.shape[1], scores.flatten()
    # NMS takes the first of equal scores
    index = flat.topk(min(candidates, len(flat))).indices.sort().values
    best, chosen, label = flat[index], boxes[index // classes], index % classes
    keep = best_after_nms(chosen, best, label, classes, iou, count)
    # what is refused suppressed nothing better
    keep = torch.where(take(best, keep) > threshold, keep, len(index))
    return take(chosen, keep), take(best, keep), take(label, keep)


def select_within(boxes: Tensor, scores: Tensor, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """`select` by the limits."""
    return select(
        boxes, only_of(scores, limits), iou=limits.iou, threshold=limits.score, count=limits.count,
        candidates=limits.candidates,
    )  # fmt: skip


def only_of(scores: Tensor, limits: Limits) -> Tensor:
    """The scores (n, classes), 0 for classes that are not wanted."""
    if limits.only is None:
        return scores
    return scores * scores.new_tensor(
        [float(label in limits.only) for label in range(scores.shape[1])]
    )
