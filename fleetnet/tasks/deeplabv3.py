"""DeepLabV3: a label for each pixel, by parallel dilated convolutions on the last feature (ASPP).

Chen et al. 2017, arXiv:1706.05587. Of the form that ParC-Net trains: Zhang et al., ECCV 2022,
arXiv:2203.03952; code: github.com/hkzhang91/ParC-Net.

    feature (C, h, w), stride 16 or 8
      1x1 | 3x3 at three rates | mean over all places, 1x1     each 256, norm, ReLU; concatenated: 1280
      1x1, norm, ReLU                                          256
      1x1                                                      one logit a class, resized to the input

The rates are 6, 12, 18 at stride 16, and twice that at stride 8. `auxiliary` adds a small head on
the feature before the last, used in training only.

Differs from ParC-Net's code: by default the backbone is dilated where it loses its stride; build
with output_stride=16 and options={"dilate": False} for the network they published. Logits return to
the picture bilinearly (theirs: nearest) with its aspect kept (theirs: squashed to a square). The
auxiliary loss is added with weight 0.4 (theirs: the sum is halved as well). Of the two dropouts
before the classifier the second drops channels, as theirs does.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, Implied, Option, Recognized, State
from ..backbones._recognition import form_by_norms, has, output_count
from ..boxes import Limits
from ..errors import ModelError, UsageError
from ..layers import ConvBN
from ..predictions import IGNORE, LabelMap, PixelLogits, Prediction, all_of
from ..preprocess import Mode
from ..processes import mean_count
from . import Outputs, Result
from ._counts import Pairs, by_class, mean, without_truth
from ._decoded import Decoded, of_authors
from ._defaults import prepare as prepare
from ._defaults import stored as stored

TARGET, AUGMENT, OUTPUT_STRIDE = "semantic", "segment", 16
MODE: Mode = "letterbox"
SIZE = (512, 512)
CLASSES = 21
PREDICTION = LabelMap
LIMITS = None  # no detector
DECODE = (
    "logits (N, classes, H, W) of the input's pixels: cut out what shows the picture, resize it "
    "bilinearly to the picture, and take the class of the largest logit."
)
EMBEDDED = "semantic: index of the class of each pixel of the input"
OPTIONS: tuple[str, ...] = ("channels", "auxiliary")
SETTINGS: tuple[str, ...] = ("class_weights",)
CLASS_MAJOR: tuple[str, ...] = ()
limit, from_file = None, None
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # of dilation, by output stride
AUXILIARY_WEIGHT = 0.4


def _conv(inputs: int, outputs: int, size: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(ConvBN(inputs, outputs, size, dilation=dilation), nn.ReLU())


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (N, inputs, h, w) -> (N, channels, h, w)."""

    def __init__(self, inputs: int, channels: int, rates: tuple[int, ...]):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _conv(inputs, channels),
                *(_conv(inputs, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.pooled = _conv(inputs, channels)
        self.project = _conv((len(rates) + 2) * channels, channels)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.dropout(
            self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))
        )


class DeepLabV3(nn.Module):
    """Features -> {"logits": (N, classes, H, W)}, in training with an auxiliary head also "auxiliary" of that shape."""

    def __init__(self, backbone: Backbone, classes: int, channels: int, auxiliary: bool):
        super().__init__()
        self.aspp = ASPP(backbone.channels[-1], channels, RATES[backbone.strides[-1]])
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.auxiliary: nn.Module | None = None
        if auxiliary:
            width = max(backbone.channels[-2] // 4, 128)
            self.auxiliary = nn.Sequential(
                _conv(backbone.channels[-2], width, 3),
                nn.Dropout2d(0.1),
                nn.Conv2d(width, classes, 1),
            )

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        if self.training and features[-1].shape[0] == 1:
            self._refuse_one_image()
        outputs = {"logits": self.classifier(self.dropout(self.aspp(features[-1])))}
        if self.auxiliary is not None and self.training:
            outputs["auxiliary"] = self.auxiliary(features[-2])
        return {name: F.interpolate(maps, size, mode="bilinear") for name, maps in outputs.items()}

    def _refuse_one_image(self) -> None:
        """Batch norm cannot train on one value a channel, which is all that image pooling makes of one image."""
        if any(
            module.training
            for module in self.aspp.pooled.modules()
            if isinstance(module, nn.BatchNorm2d)
        ):
            raise ModelError(
                "the batch norm after the image pooling of DeepLabV3 sees one value a channel and "
                "image, so it cannot train on one image: use a batch of at least 2"
            )


def head(
    backbone: Backbone, classes: int, channels: int = 256, auxiliary: bool = False
) -> nn.Module:
    """`classes` counts all label values, a background among them; `channels` is the width of each ASPP branch.

    Raises `UsageError` for another output stride than 8 or 16.
    """
    if backbone.strides[-1] not in RATES:
        raise UsageError(f"output_stride is {backbone.strides[-1]}; deeplabv3 allows 8, 16")
    if not 2 <= classes <= IGNORE:
        raise ModelError(
            f"classes is {classes}; deeplabv3 allows 2 to {IGNORE}: label {IGNORE} means none"
        )
    if channels < 1:
        raise UsageError(f"channels is {channels}; allowed: 1 or more")
    return DeepLabV3(backbone, classes, channels, auxiliary)


def loss(
    head: nn.Module,
    outputs: Outputs,
    targets: Mapping[str, Tensor],
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Cross-entropy, mean over the pixels of targets["semantic"] (N, H, W) int64 that are not IGNORE; 0 if all are.

    `class_weights` (classes,) multiply what a pixel of each class adds.
    """
    truth = targets["semantic"]
    count = mean_count((truth != IGNORE).sum())

    def cross_entropy(logits: Tensor) -> Tensor:
        weights = None if class_weights is None else class_weights.to(logits.device)
        return (
            F.cross_entropy(logits.float(), truth, weights, ignore_index=IGNORE, reduction="sum")
            / count
        )

    losses = {"cross_entropy": cross_entropy(outputs["logits"])}
    if "auxiliary" in outputs:
        losses["auxiliary"] = AUXILIARY_WEIGHT * cross_entropy(outputs["auxiliary"])
    return losses


def decode(
    outputs: Outputs, size: tuple[int, int] | None = None, limits: Limits | None = None
) -> Sequence[PixelLogits | LabelMap]:
    """The logits of each pixel of the input, for each image; of the outputs of `embed` the classes."""
    if "semantic" in outputs:
        return [LabelMap(labels) for labels in outputs["semantic"]]
    return [PixelLogits(logits) for logits in outputs["logits"].float()]


def _classes(outputs: Outputs, size: tuple[int, int]) -> dict[str, Tensor]:
    return {"semantic": outputs["logits"].argmax(1)}


def embed(model: nn.Module, limits: Limits | None = None) -> nn.Module:
    """image (N, C, H, W) -> {"semantic": (N, H, W) int64}, the most probable class of each pixel."""
    return Decoded(model, _classes)


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    """`decode` and `restore` in words and numbers; of a file with its decode inside, what is left to do."""
    places = {
        "row": "of the picture's row i: (i + 0.5) * scale_y + top - 0.5, as an index of a row of "
        "the output",
        "column": "of the picture's column j: (j + 0.5) * scale_x + left - 0.5",
        "limits": "no row before ceil(top - 0.5) or after floor(height * scale_y + top - 0.5), nor "
        "outside of it: clip to that, so that nothing is taken from the padding (were "
        "the first after the second, both are round(height * scale_y / 2 + top - 0.5)); "
        "columns likewise, with width, scale_x and left",
    }
    if embedded:
        return {
            "classes": {
                "output": "semantic",
                "values": "index of the class of each pixel of the input",
            },
            "to_picture": {**places, "interpolation": "nearest: floor(index + 0.5)"},
        }
    return {
        "classes": {"output": "logits", "activation": "argmax", "axis": 1, "after": "to_picture"},
        "to_picture": {**places, "interpolation": "bilinear, of the logits"},
    }


class Metric:
    """Intersection over union and accuracies from the counts of all pixels added that have a class."""

    def __init__(self, classes: Sequence[str]):
        self.classes, self.images = list(classes), 0
        self.pairs = Pairs(len(self.classes))

    def add(self, predictions: Sequence[Prediction], targets: Mapping[str, Any]) -> None:
        """Count predictions against the label maps targets["semantic"], a list of (height, width)."""
        for prediction, truth in zip(
            all_of(LabelMap, predictions), targets["semantic"], strict=True
        ):
            predicted = prediction.labels
            if predicted.shape != truth.shape:
                raise ModelError(
                    f"the prediction is {tuple(predicted.shape)}, but its label map "
                    f"{tuple(truth.shape)}"
                )
            truth = truth.long().cpu()
            counts = truth != IGNORE
            self.pairs.add(truth[counts], predicted.long().cpu()[counts])
            self.images += 1

    def join(self, other: "Metric") -> None:
        self.pairs.join(other.pairs)
        self.images += other.images

    def result(self) -> Result:
        """Percentages, and the number of images. Pixels of label IGNORE do not count; over no pixel all is None.

        "mIoU" is the mean over classes that the truth or the predictions have, as in torchmetrics
        and mmsegmentation; the IoU of others is None. "accuracy" is over pixels, "mean_accuracy"
        the mean over the classes of the truth. Where the truth has pixels of one class alone,
        nothing can be told apart: a network that says this class everywhere would have an mIoU of
        100, so it is None.
        """
        totals = self.pairs.totals()
        right, truth, predicted = (total.tolist() for total in totals)
        pixels, there = (
            sum(truth),
            [name for name, count in zip(self.classes, truth, strict=True) if count],
        )
        iou = [
            100 * both / (true + said - both) if true + said else None
            for both, true, said in zip(right, truth, predicted, strict=True)
        ]
        rows = by_class(self.classes, "pixels", totals)
        notes = without_truth(rows, "pixels", "pixel")
        if len(there) == 1:
            notes.append(
                f"all pixels are of the class {there[0]}: there is nothing to tell apart, "
                "so no mIoU"
            )
        return {
            "mIoU": mean(iou) if len(there) > 1 else None,
            "accuracy": 100 * sum(right) / pixels if pixels else None,
            "mean_accuracy": mean([row["recall"] for row in rows]),
            "F1": mean([row["F1"] for row in rows]),
            "iou": iou,
            "images": self.images,
            **self.pairs.figures(),
            "by_class": [{**row, "IoU": value} for row, value in zip(rows, iou, strict=True)],
            "notes": notes,
        }


def metric(classes: Sequence[str]) -> Metric:
    return Metric(classes)


_RENAME = [  # the authors' names to ours
    (r"^seg_head\.aspp\.aspp_layer\.convs\.([0-3])\.block\.", r"head.aspp.branches.\1.0."),
    (r"^seg_head\.aspp\.aspp_layer\.convs\.4\.aspp_pool\.conv_1x1\.block\.", "head.aspp.pooled.0."),
    (r"^seg_head\.aspp\.aspp_layer\.project\.block\.", "head.aspp.project.0."),
    (r"^seg_head\.classifier\.classifier\.block\.conv\.", "head.classifier."),
    (r"^(head\.aspp\..*\.0\.)conv\.", r"\g<1>0."),
    (r"^(head\.aspp\..*\.0\.)norm\.", r"\g<1>1."),
]


def convert(state: State) -> State:
    """The names of the head in the authors' segmentation network to ours; all others stay."""
    converted = {}
    for name, value in state.items():
        for pattern, ours in _RENAME:
            name = re.sub(pattern, ours, name)
        converted[name] = value
    return converted


def recognize(state: State) -> Recognized | None:
    """DeepLabV3 has an `aspp`. The authors' network drops the last stride and dilates nothing."""
    implied = Implied()
    if has(state, r"seg_head\."):
        implied = Implied(output_stride=16, options={"dilate": False}, preprocess=of_authors(SIZE))
    state = convert(state)
    if not has(state, r"head\.aspp\."):
        return None
    options: dict[str, Option] = {"auxiliary": has(state, r"head\.auxiliary\.")}
    if channels := output_count(state, "head.aspp.pooled.0.0", "head.aspp.pooled.0"):
        options["channels"] = channels
    return Recognized(
        form=form_by_norms(state, "head."),
        classes=output_count(state, "head.classifier"),
        options=options,
        implied=implied,
    )
