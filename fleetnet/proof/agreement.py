"""Whether two computations find the same: boxes and masks as sets, class maps by pixel.

Rounding may swap the order of detections whose scores are nearly equal, and push a box over a
limit: the least score, the largest number of boxes, the overlap at which NMS drops one. So
detections are not compared slot by slot. A box and one of the other side are the same where label
and place are: the same class, an IoU and a difference of scores within the limits, masks of the
same IoU. A box without its like is excused where the other side's limits and rounding explain it,
but half of the boxes must have theirs. Of the rest few may have none, since NMS turns rounding into
another choice where boxes overlap by just its limit. Rounding does this to few boxes, a fault to
all: so the mean differences, relative to the spread (`drift`), must also be within the runtime's
tolerance, and the mean IoU has a limit of its own; scores of a network that hardly looks at its
input lie close together.

How far is still the same follows from the tolerance of the precision: `bounds`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..errors import ModelError
from ..predictions import Detections, LabelMap, OfInput, all_of

NEAR = 0.01  # pixels: boxes whose coordinates are as close are the same, however small they are
FEW = 2  # pixels by which masks may differ, however small they are
# by which a score may be above a limit that the other side's missed, in any precision
ROUNDING = 1e-5
PAIRED = 0.5  # least share of boxes that have their like
SCORES = 1e-3  # least spread of scores that a drift is relative to


@dataclass(frozen=True)
class Bounds:
    """What still counts as the same in a precision; the values here are those of float32."""

    iou: float = 0.99  # least overlap of boxes, and of masks, that are the same
    score: float = 1e-3  # largest difference of scores
    unpaired: float = 0.01  # share of boxes that may lack their like for no known reason
    mean_iou: float = 0.99  # least mean overlap of the boxes that have their like
    pixels: float = 0.999  # least share of pixels with the same class


def bounds(tolerance: float) -> Bounds:
    """The limits in a precision of this tolerance (relative to the spread of the outputs): float32's up to 1e-3."""
    if tolerance <= 1e-3:
        return Bounds()
    # Measured on four trained heads (ssd/parcnet_s and yolo/repvit_m0_9 on blood cells, maskrcnn/fasternet_t0 on
    # nuclei, deeplabv3/parcnet_s on streets), each on 4 random images and 13 to 15 pictures: float16 weights in MNN and
    # ncnn (a tolerance of 0.03), int8 weights in MNN (0.1), OpenVINO in bfloat16 (0.15). In the latter two the AP of
    # whole validation sets is within 0.3 of the checkpoint's, but for Mask R-CNN in bfloat16: its proposals change, its
    # masks lose 0.9, and it must be refused.
    # - IoU: in float16 all but what NMS chose otherwise are above 0.997. YOLO's outputs are in pixels, which bfloat16
    #   has in whole ones from 128 up: 28 % of its boxes have no like at 0.99, 8 % at 0.94, 6 % at 0.90; in int8 38, 7
    #   and 6 %.
    # - Scores: in float16 they differ by up to 1.3e-3. Of YOLO's boxes in int8 19 % have no like within 3e-3, 6 %
    #   within 0.01 and within 0.03; in bfloat16 21 % within 3e-3, 6 % within 0.01 and 0.03.
    # - Without their like are, by these limits, up to 0.5 % in float16 (YOLO, Mask R-CNN), 2.1 to 6.7 % in int8 and 3.8
    #   to 5.7 % in bfloat16: boxes that NMS chose otherwise. Mask R-CNN in bfloat16: 38 %.
    # - Mean IoU: 0.9997 in float16, 0.9923 in int8, 0.9928 in bfloat16 (YOLO, the lowest of all): that of a fault which
    #   moves all boxes by less than the limit for each is lower.
    # - Pixels: 99.94 % in float16, 99.0 % in int8 (99.8 % of pictures, 95.8 % of random images, where classes are
    #   nearly equal), 99.5 % in bfloat16.
    return Bounds(
        iou=min(0.99, 1 - 2 * tolerance / 3),
        score=max(1e-3, tolerance / 10),
        unpaired=min(0.08, max(0.01, 0.8 * tolerance)),
        mean_iou=1 - tolerance / 5,
        pixels=1 - max(1e-3, tolerance / 5),
    )


@dataclass(frozen=True)
class Meaning:
    """What outputs mean: named outputs of a batch -> predictions in input pixels, with the limits of detections."""

    decode: Callable[[Mapping[str, Tensor]], Sequence[OfInput]]
    score: float = 0.0  # boxes of smaller scores are left out
    count: int | None = None  # no more boxes than this are given for an image


@dataclass(frozen=True)
class Agreement:
    """How well two sides agree on what they find, over all examples, by the limits of a tolerance."""

    tolerance: float  # largest `drift` that passes
    boxes: int = 0  # that were compared: of the reference, and those that only the other side has
    cut: int = 0  # of them, without their like because of the other side's limits
    paired: int = 0  # of them, with their like
    unpaired: int = 0  # of them, without their like for no known reason
    iou: float | None = None  # smallest of the pairs
    mean_iou: float | None = None  # of the pairs
    score: float | None = None  # largest difference of the pairs
    mask_iou: float | None = None  # smallest of the pairs
    drift: float = 0.0  # of the pairs: mean difference / standard deviation, of scores or coordinates, the larger
    pixels: float | None = None  # share of equal values in class maps

    @property
    def passed(self) -> bool:
        limit = bounds(self.tolerance)
        paired = self.paired >= PAIRED * self.boxes and self.unpaired <= limit.unpaired * self.boxes
        placed = self.mean_iou is None or self.mean_iou >= limit.mean_iou
        return (
            paired
            and placed
            and self.drift <= self.tolerance
            and (self.pixels is None or self.pixels >= limit.pixels)
        )

    def __str__(self) -> str:
        limit, parts = bounds(self.tolerance), []
        if self.pixels is not None:
            parts.append(
                f"{self.pixels:.3%} of pixels of the same class (needed {limit.pixels:.1%})"
            )
        if self.boxes or self.pixels is None:
            parts.append(
                f"{self.unpaired} of {self.boxes} boxes without their like (allowed "
                f"{limit.unpaired:.1%}), {self.cut} more at a limit"
            )
        if self.iou is not None:
            parts.append(
                f"the others' smallest IoU {self.iou:.4f} (needed {limit.iou:.3g}), mean "
                f"{self.mean_iou:.4f} (needed {limit.mean_iou:.3g}), largest difference of scores "
                f"{self.score:.1e} (allowed {limit.score:.2g}), drift {self.drift:.1e} (allowed "
                f"{self.tolerance:.2g})"
            )
        if self.mask_iou is not None:
            parts.append(f"smallest IoU of masks {self.mask_iou:.4f}")
        return ", ".join(parts)


def _mask_iou(a: Tensor, b: Tensor) -> float:
    """IoU of two masks (h, w), bool or probabilities; 1 where they differ by a FEW pixels."""
    a, b = a > 0.5, b > 0.5
    same, union = int((a & b).sum()), int((a | b).sum())
    return 1.0 if union - same <= FEW else same / union


def _alike(a: Detections, b: Detections, limit: Bounds) -> Tensor:
    """(n, m): IoU of the boxes where label, place and score are the same, else 0."""
    iou = box_iou(a.boxes.double(), b.boxes.double()).nan_to_num(0)  # of two empty boxes it is NaN
    near = (a.boxes[:, None] - b.boxes).abs().amax(2) <= NEAR
    iou = torch.where(near, iou.clamp(min=1), iou)
    of_class = a.labels[:, None] == b.labels
    same = of_class & ((a.scores[:, None] - b.scores).abs() <= limit.score)
    return iou * (same & (iou >= limit.iou))


def _masks(of: Detections) -> Tensor | None:
    """The masks of the objects, of whole pictures or within their boxes."""
    return of.box_masks if of.masks is None else of.masks


def _pair(
    a: Detections, b: Detections, limit: Bounds
) -> list[tuple[int, int, float, float | None]]:
    """Each box of a and its like of b, each in one pair: (of a, of b, IoU, IoU of the masks)."""
    pairs = []
    alike = _alike(a, b, limit)
    masks, others = _masks(a), _masks(b)
    if (masks is None) != (others is None):
        raise ModelError("only one of two sides finds masks")
    for i in range(len(alike)):
        for j in alike[i].argsort(descending=True, stable=True).tolist():
            if not alike[i, j] > 0:
                break
            mask = None
            if masks is not None and others is not None:
                mask = _mask_iou(masks[i], others[j])
            if mask is None or mask >= limit.iou:
                pairs.append((i, j, alike[i, j].item(), mask))
                alike[:, j] = 0
                break
    return pairs


def _cut(alone: Sequence[int], of: Detections, other: Detections, meaning: Meaning) -> int:
    """How many of the boxes `alone` the other side may have found too, but with a score below its limit."""
    limit = meaning.score
    if meaning.count is not None and len(other) == meaning.count:
        limit = max(limit, other.scores.min().item())
    return sum(of.scores[i].item() <= limit + ROUNDING for i in alone)


def compare(
    reference: Sequence[OfInput], other: Sequence[OfInput], meaning: Meaning, tolerance: float
) -> Agreement | None:
    """Predictions of the same images by two sides; None where they are neither `Detections` nor `LabelMap`s."""
    if not reference:
        return None
    if isinstance(reference[0], Detections):
        objects = all_of(Detections, reference), all_of(Detections, other)
        return _compare_objects(*objects, meaning, tolerance)
    if isinstance(reference[0], LabelMap):
        return _compare_maps(all_of(LabelMap, reference), all_of(LabelMap, other), tolerance)
    return None


def _compare_maps(
    reference: Sequence[LabelMap], other: Sequence[LabelMap], tolerance: float
) -> Agreement:
    """The share of pixels of the same class."""
    pairs = zip(reference, other, strict=True)
    same = torch.cat([(a.labels == b.labels).flatten() for a, b in pairs])
    return Agreement(tolerance, pixels=same.double().mean().item())


def _compare_objects(
    reference: Sequence[Detections], other: Sequence[Detections], meaning: Meaning, tolerance: float
) -> Agreement:
    """Boxes, scores and masks of the objects that both sides found, and how many only one did."""
    limit = bounds(tolerance)
    boxes = cut = unpaired = 0
    ious: list[float] = []
    masks: list[float] = []
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for a, b in zip(reference, other, strict=True):
        pairs = _pair(a, b, limit)
        alone = sorted(set(range(len(a))) - {i for i, *_ in pairs})
        stray = sorted(set(range(len(b))) - {j for _, j, *_ in pairs})
        explained = _cut(alone, a, b, meaning) + _cut(stray, b, a, meaning)
        boxes += len(pairs) + len(alone) + len(stray)
        cut += explained
        unpaired += len(alone) + len(stray) - explained
        ious += [iou for _, _, iou, _ in pairs]
        masks += [iou for *_, iou in pairs if iou is not None]
        for side, prediction, which in ((ours, a, 0), (theirs, b, 1)):
            index = torch.tensor([pair[which] for pair in pairs], dtype=torch.long)
            values = torch.cat([prediction.boxes, prediction.scores[:, None]], 1)  # (n, 5)
            side.append(values[index].double())
    if not ious:
        return Agreement(tolerance, boxes, cut, 0, unpaired)
    expected = torch.cat(ours)
    difference = (expected - torch.cat(theirs)).abs()
    drift = max(
        (difference[:, :4].mean() / expected[:, :4].std().clamp(min=1)).item(),  # pixels
        (difference[:, 4].mean() / expected[:, 4].std(correction=0).clamp(min=SCORES)).item(),
    )
    score, mask = difference[:, 4].max().item(), min(masks) if masks else None
    mean = sum(ious) / len(ious)
    return Agreement(
        tolerance, boxes, cut, len(ious), unpaired, min(ious), mean, score, mask, drift
    )
