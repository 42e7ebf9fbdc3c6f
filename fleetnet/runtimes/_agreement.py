"""Whether two computations find the same: boxes and masks as sets, class maps by pixel.

Rounding may swap the order of detections whose scores are nearly equal, and push a box over a limit: the least score,
the largest number of boxes, the overlap at which NMS drops one. So detections are not compared slot by slot. A box and
one of the other side are the same where label and place are: the same class, IoU of at least IOU, scores within SCORE,
masks of IoU at least IOU. A box without its like is excused where the other side's limits and rounding explain it, but
half of the boxes must have theirs. Of the rest one in a hundred may have none, since NMS turns rounding into another
choice where boxes overlap by just its limit. Rounding does this to few boxes, a fault to all: so the mean differences,
relative to the spread (`drift`), must also be within the runtime's tolerance; scores of a network that hardly looks at
its input lie close together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..boxes import Prediction

IOU = 0.99  # least overlap of boxes, and of masks, that are the same
NEAR = 0.01  # pixels: boxes whose coordinates are as close are the same, however small they are
FEW = 2  # pixels by which masks may differ, however small they are
SCORE = 1e-3  # largest difference of scores
ROUNDING = 1e-5  # by which a score may be above a limit that the other side's missed
PAIRED = 0.5  # least share of boxes that have their like
UNPAIRED = 0.01  # share of boxes that may lack their like for no known reason
PIXELS = 0.999  # least share of pixels with the same class


@dataclass(frozen=True)
class Meaning:
    """What outputs mean: named outputs of a batch -> predictions in input pixels, with the limits of detections."""

    decode: Callable[[Mapping[str, Tensor]], list[Prediction]]
    score: float = 0.0  # boxes of smaller scores are left out
    count: int | None = None  # no more boxes than this are given for an image


@dataclass(frozen=True)
class Agreement:
    """How well two sides agree on what they find, over all examples."""

    boxes: int = 0  # that were compared: of the reference, and those that only the other side has
    cut: int = 0  # of them, without their like because of the other side's limits
    paired: int = 0  # of them, with their like
    unpaired: int = 0  # of them, without their like for no known reason
    iou: float | None = None  # smallest of the pairs
    score: float | None = None  # largest difference of the pairs
    mask_iou: float | None = None  # smallest of the pairs
    drift: float = 0.0  # of the pairs: mean difference / standard deviation, of scores or coordinates, the larger
    pixels: float | None = None  # share of equal values in class maps

    def passed(self, tolerance: float) -> bool:
        paired = self.paired >= PAIRED * self.boxes and self.unpaired <= UNPAIRED * self.boxes
        return paired and self.drift <= tolerance and (self.pixels is None or self.pixels >= PIXELS)

    def __str__(self) -> str:
        parts = []
        if self.pixels is not None:
            parts.append(f"{self.pixels:.3%} of pixels of the same class (needed {PIXELS:.1%})")
        if self.boxes or self.pixels is None:
            parts.append(f"{self.unpaired} of {self.boxes} boxes without their like, {self.cut} more at a limit")
        if self.iou is not None:
            parts.append(f"the others' smallest IoU {self.iou:.4f}, largest difference of scores {self.score:.1e}")
        if self.mask_iou is not None:
            parts.append(f"smallest IoU of masks {self.mask_iou:.4f}")
        return ", ".join(parts)


def _mask_iou(a: Tensor, b: Tensor) -> float:
    """IoU of two masks (h, w), bool or probabilities; 1 where they differ by a FEW pixels."""
    a, b = a > 0.5, b > 0.5
    same, union = int((a & b).sum()), int((a | b).sum())
    return 1.0 if union - same <= FEW else same / union


def _alike(a: Prediction, b: Prediction) -> Tensor:
    """(n, m): IoU of the boxes where label, place and score are the same, else 0."""
    iou = box_iou(a["boxes"].double(), b["boxes"].double()).nan_to_num(0)  # of two empty boxes it is NaN
    near = (a["boxes"][:, None] - b["boxes"]).abs().amax(2) <= NEAR
    iou = torch.where(near, iou.clamp(min=1), iou)
    same = (a["labels"][:, None] == b["labels"]) & ((a["scores"][:, None] - b["scores"]).abs() <= SCORE)
    return iou * (same & (iou >= IOU))


def _pair(a: Prediction, b: Prediction) -> list[tuple[int, int, float, float | None]]:
    """Each box of a and its like of b, each in one pair: (of a, of b, IoU, IoU of the masks)."""
    pairs = []
    alike = _alike(a, b)
    for i in range(len(alike)):
        for j in alike[i].argsort(descending=True, stable=True).tolist():
            if not alike[i, j] > 0:
                break
            mask = _mask_iou(a["masks"][i], b["masks"][j]) if "masks" in a else None
            if mask is None or mask >= IOU:
                pairs.append((i, j, alike[i, j].item(), mask))
                alike[:, j] = 0
                break
    return pairs


def _cut(alone: Sequence[int], of: Prediction, other: Prediction, meaning: Meaning) -> int:
    """How many of the boxes `alone` the other side may have found too, but with a score below its limit."""
    limit = meaning.score
    if meaning.count is not None and len(other["scores"]) == meaning.count:
        limit = max(limit, other["scores"].min().item())
    return sum(of["scores"][i].item() <= limit + ROUNDING for i in alone)


def compare(reference: Sequence[Prediction], other: Sequence[Prediction], meaning: Meaning) -> Agreement | None:
    """Predictions of the same images by two sides; None where there are neither boxes nor class maps in them."""
    if not reference or not {"boxes", "semantic"} & reference[0].keys():
        return None
    pixels = None
    if "semantic" in reference[0]:
        same = torch.cat([(a["semantic"] == b["semantic"]).flatten() for a, b in zip(reference, other, strict=True)])
        pixels = same.double().mean().item()
    boxes = cut = unpaired = 0
    ious: list[float] = []
    masks: list[float] = []
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for a, b in zip(reference, other, strict=True):
        if "boxes" not in a:
            continue
        pairs = _pair(a, b)
        alone = sorted(set(range(len(a["boxes"]))) - {i for i, *_ in pairs})
        stray = sorted(set(range(len(b["boxes"]))) - {j for _, j, *_ in pairs})
        explained = _cut(alone, a, b, meaning) + _cut(stray, b, a, meaning)
        boxes += len(pairs) + len(alone) + len(stray)
        cut += explained
        unpaired += len(alone) + len(stray) - explained
        ious += [iou for _, _, iou, _ in pairs]
        masks += [iou for *_, iou in pairs if iou is not None]
        for side, prediction, which in ((ours, a, 0), (theirs, b, 1)):
            index = torch.tensor([pair[which] for pair in pairs], dtype=torch.long)
            side.append(torch.cat([prediction["boxes"], prediction["scores"][:, None]], 1)[index].double())
    if not ious:
        return Agreement(boxes, cut, 0, unpaired, pixels=pixels)
    values = torch.cat(ours)
    difference = (values - torch.cat(theirs)).abs()
    drift = max(
        (difference[:, :4].mean() / values[:, :4].std().clamp(min=1)).item(),  # pixels
        (difference[:, 4].mean() / values[:, 4].std(correction=0).clamp(min=SCORE)).item(),
    )
    score, mask = difference[:, 4].max().item(), min(masks) if masks else None
    return Agreement(boxes, cut, len(ious), unpaired, min(ious), score, mask, drift, pixels)
