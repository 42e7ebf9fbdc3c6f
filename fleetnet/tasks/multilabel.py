"""Multi-label classification: any number of the classes an image, each decided by itself.

The head is that of classification, the paper's own from the last feature, so weights of a classifier
are taken with all but what depends on the classes. Differs from it in what the logits mean (a
sigmoid each), and in how a picture is fitted: whole, since a crop may cut off what has a tag.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from ..backbones import Backbone
from ..boxes import Limits
from ..errors import ModelError
from ..predictions import PRESENT, Prediction, Tags, all_of
from ..preprocess import Mode
from ..processes import of_all
from . import Outputs, Result, named
from ._counts import NAMED, by_class, mean, scores, without_truth
from ._defaults import convert as convert
from ._defaults import prepare as prepare
from .classification import LastFeature
from .classification import recognize as recognize
from .classification import stored as stored

TARGET, AUGMENT, OUTPUT_STRIDE = "tags", "classify", 32
MODE: Mode = "stretch"
SIZE = (224, 224)
CLASSES = 20
OPTIONS: tuple[str, ...] = ()
SETTINGS: tuple[str, ...] = ("label_smoothing", "class_weights", "focal")
CLASS_MAJOR: tuple[str, ...] = ()
PREDICTION = Tags
LIMITS = None  # no detector
DECODE, EMBEDDED, embed = None, None, None  # the logits are the answer
limit, from_file = None, None

RECALLS = np.linspace(0, 1, 101)  # where curves of precision have their points


def head(backbone: Backbone, classes: int) -> nn.Module:
    return LastFeature(backbone.classifier(classes))


def loss(
    head: nn.Module,
    outputs: Tensor | Outputs,
    targets: Mapping[str, Tensor],
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal: float = 0.0,
) -> dict[str, Tensor]:
    """Binary cross-entropy of logits (N, classes) against targets["tags"] (N, classes), 0 to 1.

    The mean is over pictures and classes. `label_smoothing` is the share of each target that all
    classes get alike, as with one label. `class_weights` (classes,) multiply what a class adds where
    it is there. `focal` above 0 is the gamma of the focal loss (arXiv:1708.02002) in its place,
    without its alpha, for which class weights stand.
    """
    logits = named(outputs)["logits"].float()
    tags = targets["tags"].to(logits)
    smooth = tags * (1 - label_smoothing) + label_smoothing / max(tags.shape[1], 2)
    weights = None
    if class_weights is not None:
        # By what is there, not by the smooth target, of which a class that is not there has a part.
        weights = 1 + (class_weights.to(logits) - 1) * tags  # (N, classes)
    if focal:
        each = sigmoid_focal_loss(logits, smooth, alpha=-1, gamma=focal)  # (N, classes)
        mean_of_own = (each if weights is None else each * weights).mean()
        return {"focal": of_all(mean_of_own, len(logits))}
    mean_of_own = F.binary_cross_entropy_with_logits(logits, smooth, weight=weights)
    return {"binary_cross_entropy": of_all(mean_of_own, len(logits))}


def decode(
    outputs: Tensor | Outputs, size: tuple[int, int] | None = None, limits: Limits | None = None
) -> list[Tags]:
    """Logits (N, classes) -> those of each image."""
    return [Tags(row) for row in named(outputs)["logits"].float()]


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    """`decode`, and what follows it, in words and numbers."""
    return {
        "scores": {
            "output": "logits",
            "activation": "sigmoid",
            "axis": 1,
            "classes": "column i is class i",
            "there_from": PRESENT,
        }
    }


class Metric:
    """Average precision of each class and their mean, and F1 of what is there at a probability of 0.5."""

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        self.logits: list[Tensor] = []  # of pictures, (classes,) float32 each
        self.truth: list[Tensor] = []  # (classes,) bool each

    def add(self, predictions: Sequence[Prediction], targets: Mapping[str, Tensor]) -> None:
        """Count predictions against targets["tags"] (N, classes)."""
        tags = all_of(Tags, predictions)
        for one, truth in zip(tags, targets["tags"].cpu() > PRESENT, strict=True):
            if len(one.logits) != len(self.classes):
                raise ModelError(
                    f"there are {len(one.logits)} logits an image, but {len(self.classes)} classes"
                )
            self.logits.append(one.logits.detach().float().cpu())
            self.truth.append(truth)

    def join(self, other: "Metric") -> None:
        self.logits += other.logits
        self.truth += other.truth

    def result(self) -> Result:
        """Figures in percent, None over nothing; "by_class" in the order of the classes.

        "mAP" and "F1" are means over the classes that are there in the truth; "micro_F1" and its
        parts are over all pairs of a picture and a class, "exact" is the share of pictures with all
        of them right.
        """
        empty = torch.zeros(0, len(self.classes))
        logits = torch.stack(self.logits) if self.logits else empty  # (N, classes)
        truth = torch.stack(self.truth) if self.truth else empty.bool()
        predicted = logits.sigmoid() >= PRESENT
        totals = (truth & predicted).sum(0), truth.sum(0), predicted.sum(0)
        rows, precision = by_class(self.classes, "images", totals), {}
        for i, row in enumerate(rows):
            row["AP"], precision[i] = average_precision(logits[:, i], truth[:, i])
        images = len(truth)
        micro = scores(*(int(total.sum()) for total in totals))
        alike = (truth == predicted).all(1)
        return {
            "mAP": mean([row["AP"] for row in rows]),
            "F1": mean([row["F1"] for row in rows]),
            "micro_F1": micro["F1"],
            "micro_precision": micro["precision"],
            "micro_recall": micro["recall"],
            "exact": 100 * int(alike.sum()) / images if images else None,
            "images": images,
            "loss": self._loss(logits, truth) if images else None,
            "per_class": {row["class"]: row["AP"] for row in rows},
            "pr": {row["class"]: precision[i] for i, row in enumerate(rows)},
            "by_class": rows,
            "notes": [*without_truth(rows, "images", "image"), *_always_there(rows, images)],
        }

    @staticmethod
    def _loss(logits: Tensor, truth: Tensor) -> float:
        return F.binary_cross_entropy_with_logits(logits, truth.float()).item()


def average_precision(logits: Tensor, truth: Tensor) -> tuple[float | None, list[list[float]]]:
    """Average precision of a class in percent, and its precision over recall, of 0 to 1.

    `logits` (N,) and `truth` (N,) bool are of N pictures. Precision is averaged over the pictures
    that show the class, each at the lowest score that still finds it, as scikit-learn has it:
    pictures of one score come together. The curve is the largest precision of at least a recall, at
    RECALLS. None and no curve where no picture shows the class.
    """
    if not truth.any():
        return None, []
    order = logits.argsort(descending=True, stable=True)
    ranked = logits[order].double()
    right = truth[order].double().cumsum(0)  # (N,)
    last = torch.ones_like(truth)  # of the pictures of its score
    last[:-1] = ranked[1:] != ranked[:-1]
    ranks = torch.arange(1, len(truth) + 1, dtype=torch.float64)
    recall, precision = (right / right[-1])[last], (right / ranks)[last]
    steps = recall.diff(prepend=recall.new_zeros(1))
    best = precision.flip(0).cummax(0).values.flip(0).numpy()
    curve = best[np.searchsorted(recall.numpy(), RECALLS)]
    points = np.stack([RECALLS, curve], 1).tolist()
    return 100 * float((steps * precision).sum()), points


def _always_there(rows: Sequence[Result], images: int) -> list[str]:
    """A note on the classes that all pictures show: any order of them is right."""
    always = [row["class"] for row in rows if images and row["images"] == images]
    if not always:
        return []
    return [f"all {images} images show {', '.join(always[:NAMED])}: an AP of 100 % tells nothing"]


def metric(classes: Sequence[str]) -> Metric:
    return Metric(classes)
