"""SSDLite -- the detector of MobileNetV2, in the form that ParC-Net and MobileViT were measured with.

Liu et al., SSD, ECCV 2016, arXiv:1512.02325; Sandler et al., MobileNetV2, CVPR 2018,
arXiv:1801.04381. The sizes are those of ParC-Net, arXiv:2203.03952 (CVNets v0.1). Code:
github.com/hkzhang91/ParC-Net.

    feature at stride 16    C -> 512    6 anchors a place    20x20 of 320x320
    feature at stride 32    C -> 256    6                    10x10
    separable 3x3 / 2            256    6                      5x5
    separable 3x3 / 2            128    6                      3x3
    separable 3x3 / 2            128    6                      2x2
    mean, 1x1                     64    4                      1x1      3232 anchors

Every map is predicted from by a separable convolution, the last by a 1x1. Background is class 0 of
the logits. Outputs: logits (N, A, 1 + classes), boxes (N, A, 4): regressions, and anchors (N, A,
4): center x, y, width, height in pixels.

Differs from the authors' code: what predicts begins with weights of 0.03, where theirs makes logits
so large that the first epochs are spent on making them small. Of two objects with the same best
anchor, the one that overlaps it more has it. An image without objects teaches its three hardest
negatives and counts as one positive; the authors divide by zero.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image

from ..backbones import Backbone, Implied, Recognized, State
from ..backbones._recognition import class_count, form_by_norms, has, output_count
from ..boxes import Limits, select_within
from ..errors import ModelError
from ..layers import ConvBN
from ..predictions import Detections
from ..preprocess import Mode
from ..processes import mean_count
from . import Outputs
from ._coco import CocoMetric
from ._decoded import BOXES, CHOSEN, TO_PICTURE, Decoded, of_authors, suppression
from ._defaults import prepare as prepare
from ._defaults import stored as stored

TARGET, AUGMENT, OUTPUT_STRIDE = "boxes", "ssd", 32
MODE: Mode = "stretch"
SIZE = (320, 320)
CLASSES = 80
OPTIONS: tuple[str, ...] = ()
SETTINGS: tuple[str, ...] = ()
CLASS_MAJOR: tuple[str, ...] = ()
limit, from_file = None, None
PREDICTION = Detections

EXTRA = (256, 128, 128)  # channels of the maps at strides 64, 128 and 256
WIDTHS = (512, 256, *EXTRA, 64)  # channels that are predicted from
RATIOS = ((2.0, 3.0),) * 5 + (
    (2.0,),
)  # of width to height, and the other way round, beside two squares
SCALES = [
    0.1 + 0.95 * i / len(WIDTHS) for i in range(len(WIDTHS) + 1)
]  # of anchors, as a share of the input
VARIANCES = (0.1, 0.2)  # of centers and sizes: what regressions are divided by
LARGEST_EXPONENT = 5  # of a size: no box is more than 148 times its anchor
OVERLAP = 0.5  # intersection over union from which an anchor is an object
NEGATIVES = 3  # background anchors that are learned for each positive one
LIMITS = Limits(count=100, iou=0.5, score=0.01)
DECODE = (
    "boxes are regressions at anchors of center x, center y, width, height in pixels: center = "
    "anchor center + 0.1 * regression * anchor size, size = anchor size * exp(0.2 * regression); "
    "clip to the input. scores = softmax(logits) without class 0, the background; keep those above "
    "limits.score, of them the best 1000 (10 times limits.max_objects, if that is more), NMS "
    "within each class at an IoU of limits.nms, the best limits.max_objects. Classes that "
    "limits.only does not name are left out before."
)
EMBEDDED = BOXES


class SSD(nn.Module):
    def __init__(self, channels: tuple[int, int], index: tuple[int, int], classes: int):
        super().__init__()
        self.index = index  # of the features at strides 16 and 32
        extra = [channels[1], *EXTRA]
        self.extra = nn.ModuleList(
            nn.Sequential(
                ConvBN(before, before, 3, stride=2, groups=before), ConvBN(before, after), nn.ReLU()
            )
            for before, after in pairwise(extra)
        )
        self.pool = nn.Conv2d(EXTRA[-1], WIDTHS[-1], 1, bias=False)
        self.project = nn.ModuleList(
            nn.Sequential(ConvBN(before, after), nn.ReLU()) if before != after else nn.Identity()
            for before, after in zip([*channels, *WIDTHS[2:]], WIDTHS, strict=True)
        )
        self.predict = nn.ModuleList(
            nn.Sequential(ConvBN(width, width, 3, groups=width), nn.Conv2d(width, count, 1))
            for width, count in zip(
                WIDTHS[:-1], [(2 + 2 * len(r)) * (5 + classes) for r in RATIOS], strict=False
            )
        )
        self.predict.append(nn.Conv2d(WIDTHS[-1], (2 + 2 * len(RATIOS[-1])) * (5 + classes), 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:  # of those that predict
                    nn.init.normal_(module.weight, std=0.03)
                    nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        maps = [features[i] for i in self.index]
        for layer in self.extra:
            if self.training and len(maps[-1]) == 1 and max(maps[-1].shape[-2:]) <= 2:
                self._refuse_one_image(size)
            maps.append(layer(maps[-1]))
        maps.append(self.pool(maps[-1].mean((2, 3), keepdim=True)).relu())
        by_level = []
        for x, project, predict, ratios in zip(
            maps, self.project, self.predict, RATIOS, strict=True
        ):
            y = predict(project(x)).unflatten(
                1, (2 + 2 * len(ratios), -1)
            )  # (N, anchors, 4 + 1 + classes, h, w)
            by_level.append(y.permute(0, 3, 4, 1, 2).flatten(1, 3))
        raw = torch.cat(by_level, 1)  # (N, A, 4 + 1 + classes)
        anchors = make_anchors([(x.shape[-2], x.shape[-1]) for x in maps], size).to(
            raw.device
        )  # float32
        return {
            "logits": raw[..., 4:],
            "boxes": raw[..., :4],
            "anchors": anchors.expand(raw.shape[0], -1, -1),
        }

    def _refuse_one_image(self, size: tuple[int, int]) -> None:
        """Batch norm cannot train on one value a channel, which is all that a map of one pixel has of one image."""
        if any(module.training for module in self.modules() if isinstance(module, nn.BatchNorm2d)):
            raise ModelError(
                f"one image of {size[0]}x{size[1]} leaves ssd one value a channel for its batch "
                "norms: train on a batch of at least 2, or on larger images"
            )


def make_anchors(maps: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Anchors (A, 4) of maps (height, width), by rows: center x, y, width, height in pixels of the input (H, W)."""
    anchors = []
    for (height, width), ratios, scale, following in zip(
        maps, RATIOS, SCALES, SCALES[1:], strict=False
    ):
        larger = sqrt(scale * following)
        shapes = [(scale, scale), (larger, larger)]  # width, height
        for root in map(sqrt, ratios):
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).reshape(-1, 1, 2)
        sides = torch.tensor(shapes).clamp(max=1)
        pairs = centers.expand(-1, len(shapes), -1), sides.expand(height * width, -1, -1)
        anchors.append(torch.cat(pairs, -1).flatten(0, 1))
    return torch.cat(anchors) * torch.tensor([size[1], size[0]] * 2)


def head(backbone: Backbone, classes: int) -> nn.Module:
    """Raises `ModelError` for a backbone without features at strides 16 and 32."""
    if not {16, 32} <= set(backbone.strides):
        raise ModelError(
            "ssd needs features at strides 16 and 32; those of this backbone are at "
            f"{backbone.strides}"
        )
    middle, deep = (
        max(i for i, stride in enumerate(backbone.strides) if stride == wanted)
        for wanted in (16, 32)
    )
    return SSD((backbone.channels[middle], backbone.channels[deep]), (middle, deep), classes)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy -> what is to be predicted at anchors (..., 4)."""
    boxes = box_convert(boxes, "xyxy", "cxcywh")
    centers = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:] / VARIANCES[0]
    sides = (boxes[..., 2:].clamp(min=1e-3) / anchors[..., 2:]).log() / VARIANCES[1]
    return torch.cat([centers, sides], -1)


def place(regressions: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy of regressions (..., 4) at anchors (..., 4): the inverse of `encode`."""
    centers = regressions[..., :2] * VARIANCES[0] * anchors[..., 2:] + anchors[..., :2]
    sides = (regressions[..., 2:] * VARIANCES[1]).clamp(max=LARGEST_EXPONENT).exp() * anchors[
        ..., 2:
    ]
    return box_convert(torch.cat([centers, sides], -1), "cxcywh", "xyxy")


def match(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """For each anchor (A, 4) of center form the object (n, 4) xyxy that it is to find: index (A,), positive (A,) bool.

    An anchor takes the object that it overlaps most, if that is at least half; every object has its
    best anchor.
    """
    if not len(boxes):
        nothing = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        return nothing, nothing.bool()
    overlap = box_iou(boxes, box_convert(anchors, "cxcywh", "xyxy"))  # (n, A)
    overlap = overlap + 2 * F.one_hot(overlap.argmax(1), len(anchors))
    best, index = overlap.max(0)
    return index, best >= OVERLAP


def loss(
    head: nn.Module, outputs: Outputs, targets: Mapping[str, list[Tensor]]
) -> dict[str, Tensor]:
    """Smooth L1 of the positive anchors and cross-entropy of these and three times as many hard negatives an image.

    Both are sums, divided by the number of positive anchors in the batch.
    """
    logits, regressions, anchors = (
        outputs["logits"].float(),
        outputs["boxes"].float(),
        outputs["anchors"][0].float(),
    )
    labels, wanted = [], []
    for boxes, label in zip(targets["boxes"], targets["labels"], strict=True):
        index, positive = match(boxes.float(), anchors)
        labels.append(torch.where(positive, label[index] + 1, 0) if len(boxes) else index)
        wanted.append(
            encode(boxes.float()[index], anchors) if len(boxes) else torch.zeros_like(anchors)
        )
    label, encoded = torch.stack(labels), torch.stack(wanted)  # (N, A), (N, A, 4)
    positive = label > 0
    count = positive.sum(1).clamp(min=1)  # (N,)
    errors = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(label)
    hardness = errors.detach().masked_fill(positive, -1)  # a cross-entropy is never below 0
    rank = hardness.argsort(1, descending=True).argsort(1)
    learned = positive | (rank < NEGATIVES * count[:, None]) & (hardness >= 0)
    in_batch = mean_count(count.sum())
    return {
        "box": F.smooth_l1_loss(regressions[positive], encoded[positive], reduction="sum")
        / in_batch,
        "class": errors[learned].sum() / in_batch,
    }


def _select(outputs: Outputs, size: tuple[int, int], limits: Limits) -> dict[str, Tensor]:
    """The best boxes of each picture, padded to K = `limits.count`: boxes (N, K, 4), scores (N, K), labels (N, K)."""
    boxes = clip_boxes_to_image(place(outputs["boxes"].float(), outputs["anchors"].float()), size)
    scores = outputs["logits"].float().softmax(-1)[..., 1:]  # without the background
    kept = [select_within(boxes[i], scores[i], limits) for i in range(boxes.shape[0])]
    return {
        name: torch.stack(parts)
        for name, *parts in zip(("boxes", "scores", "labels"), *kept, strict=True)
    }


def decode(
    outputs: Outputs, size: tuple[int, int], limits: Limits | None = None
) -> list[Detections]:
    """The best boxes of each picture within the limits, of raw outputs or those of `embed`, in input pixels."""
    limits = limits or LIMITS
    if "scores" in outputs:
        return [chosen.within(limits) for chosen in Detections.of_padded(outputs)]
    return Detections.of_padded(_select(outputs, size, limits))


def embed(model: nn.Module, limits: Limits | None = None) -> nn.Module:
    """image (N, C, H, W) -> boxes (N, K, 4) in its pixels, scores (N, K) and labels (N, K), best first."""
    return Decoded(model, partial(_select, limits=limits or LIMITS))


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    """`decode` and `restore` in words and numbers; of a file with its decode inside, what is left to do."""
    if embedded:
        return CHOSEN
    return {
        "boxes": {
            "output": "boxes",
            "coding": "regressions (dx, dy, dw, dh) at anchors",
            "anchors": {"output": "anchors", "coding": "center x, center y, width, height in "
                                                       "pixels of the input"},
            "variances": list(VARIANCES),
            "largest_exponent": LARGEST_EXPONENT,
            "center": "anchor center + variances[0] * (dx, dy) * anchor size",
            "size": "anchor size * exp(min(variances[1] * (dw, dh), largest_exponent))",
            "corners": "center - size / 2, center + size / 2, clipped to the input, before the "
                       "suppression",
        },
        "scores": {
            "output": "logits", "activation": "softmax", "background": 0,
            "classes": "class i of `classes` is column i + 1; the background's column is left out",
        },
        "nms": suppression(limits or LIMITS),
        "boxes_to_picture": TO_PICTURE,
    }  # fmt: skip


_STRIDES = ("64", "128", "256")
_RENAME: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [  # the authors' names to ours
    (r"^extra_layers\.os_(64|128|256)\.", lambda m: f"head.extra.{_STRIDES.index(m[1])}."),
    (r"^extra_layers\.os_-1\.1\.block\.conv\.", "head.pool."),
    (r"^ssd_heads\.(\d)\.proj_layer\.", r"head.project.\1.0."),
    (r"^ssd_heads\.(\d)\.loc_cls_layer\.block\.conv\.", r"head.predict.\1."),
    (r"^ssd_heads\.(\d)\.loc_cls_layer\.pw_conv\.block\.conv\.", r"head.predict.\1.1."),
    (r"^ssd_heads\.(\d)\.loc_cls_layer\.", r"head.predict.\1."),
    (r"^(head.*\.)dw_conv\.", r"\g<1>0."),
    (r"^(head.*\.)pw_conv\.", r"\g<1>1."),
    (r"^(head.*\.)block\.conv\.", r"\g<1>0."),
    (r"^(head.*\.)block\.norm\.", r"\g<1>1."),
]


def convert(state: State) -> State:
    """The authors' names of the head to ours."""
    converted = {}
    for name, value in state.items():
        if name.startswith(("extra_layers.", "ssd_heads.")):
            for pattern, ours in _RENAME:
                name = re.sub(pattern, ours, name)
        converted[name] = value
    return converted


def recognize(state: State) -> Recognized | None:
    """SSD predicts from several maps, some `extra`. The authors' takes images that it squashes."""
    implied = Implied(preprocess=of_authors(SIZE)) if has(state, r"ssd_heads\.") else Implied()
    state = convert(state)
    if not has(state, r"head\.(extra|predict)\.\d"):
        return None
    anchors = 2 + 2 * len(RATIOS[0])
    outputs = output_count(state, "head.predict.0.1")
    classes = class_count(outputs, anchors, beside=5)  # a box and the background
    return Recognized(form=form_by_norms(state, "head."), classes=classes, implied=implied)


def metric(classes: Sequence[str]) -> CocoMetric:
    return CocoMetric(classes)
