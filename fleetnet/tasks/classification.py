"""Classification: one label an image. The head is the paper's own, from the last feature."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, Option, Recognized, State
from ..backbones._recognition import has
from ..boxes import Limits
from ..errors import ModelError
from ..predictions import Labels, Prediction, all_of
from ..preprocess import Mode
from ..processes import of_all
from . import Outputs, Result, named
from ._counts import Pairs, by_class, mean, without_truth
from ._defaults import convert as convert
from ._defaults import prepare as prepare

TARGET, AUGMENT, OUTPUT_STRIDE = "label", "classify", 32
MODE: Mode = "crop"
SIZE = (224, 224)
CLASSES = 1000
OPTIONS: tuple[str, ...] = ()
SETTINGS: tuple[str, ...] = ("label_smoothing", "class_weights", "focal")
CLASS_MAJOR: tuple[str, ...] = ()
PREDICTION = Labels
LIMITS = None  # no detector
DECODE, EMBEDDED, embed = None, None, None  # the logits are the answer
limit, from_file = None, None


class LastFeature(nn.Module):
    """The paper's classifier on the deepest feature: list[(N, C_i, h_i, w_i)] -> logits (N, classes)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, features: list[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        return self.classifier(features[-1])


def head(backbone: Backbone, classes: int) -> nn.Module:
    if classes < 2:
        raise ModelError(f"classification needs at least 2 classes to tell apart, got {classes}")
    return LastFeature(backbone.classifier(classes))


def recognize(state: State) -> Recognized | None:
    """A classifier has layers. How many classes they are for, knows the family that made them."""
    return Recognized() if has(state, r"head\.classifier\.\w+\.") else None


def stored(options: Mapping[str, Option], backbone: str) -> dict[str, Option]:
    """The options with the kind of classifier of a timm network written down: its own, unless told otherwise."""
    if backbone.startswith("timm/"):
        return {"classifier": "own", **options}
    return dict(options)


def loss(
    head: nn.Module,
    outputs: Tensor | Outputs,
    targets: Mapping[str, Tensor],
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal: float = 0.0,
) -> dict[str, Tensor]:
    """Cross-entropy of logits (N, classes) against targets["label"]: (N,) indices or (N, classes) probabilities.

    `class_weights` (classes,) multiply what each class adds; the mean over the batch is of weight 1
    an image. `focal` above 0 is the gamma of `focal_loss`, in its place.
    """
    logits = named(outputs)["logits"]
    if focal:
        mean_of_own = focal_loss(logits, targets["label"], focal, label_smoothing, class_weights)
        return {"focal": of_all(mean_of_own, len(logits))}
    if class_weights is None:
        mean_of_own = F.cross_entropy(logits, targets["label"], label_smoothing=label_smoothing)
        return {"cross_entropy": of_all(mean_of_own, len(logits))}
    each = F.cross_entropy(
        logits,
        targets["label"],
        class_weights.to(logits),
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return {"cross_entropy": of_all(each.mean(), len(logits))}


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy whose part of each class counts (1 - its probability) ** gamma times.

    Lin et al., arXiv:1708.02002, over a softmax. `target` is (N,) indices or (N, classes)
    probabilities, as mixup and smoothing make them: then every class has its part. Class weights
    stand for the paper's alpha. The mean is over the images.
    """
    logits = logits.float()
    classes = logits.shape[1]
    shares = target if target.is_floating_point() else F.one_hot(target, classes)
    shares = shares.to(logits) * (1 - label_smoothing) + label_smoothing / classes
    if class_weights is not None:
        shares = shares * class_weights.to(logits)
    log_p = logits.log_softmax(1)  # (N, classes)
    each = -shares * (-torch.expm1(log_p)).pow(gamma) * log_p
    return each.sum(1).mean()


def decode(
    outputs: Tensor | Outputs, size: tuple[int, int] | None = None, limits: Limits | None = None
) -> list[Labels]:
    """Logits (N, classes) -> those of each image."""
    return [Labels(row) for row in named(outputs)["logits"].float()]


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    """`decode`, and what follows it, in words and numbers."""
    return {
        "scores": {
            "output": "logits",
            "activation": "softmax",
            "axis": 1,
            "classes": "column i is class i",
        }
    }


class Metric:
    """Top-1, top-5, cross-entropy, and precision, recall and F1 of each class, over all images added."""

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        self.pairs = Pairs(len(self.classes))
        self.images, self.among_five, self.loss = 0, 0, 0.0

    def add(self, predictions: Sequence[Prediction], targets: Mapping[str, Tensor]) -> None:
        """Count predictions against targets["label"] (N,)."""
        if not predictions:
            return
        truth = targets["label"].cpu()
        labels = all_of(Labels, predictions)
        # (N, C)
        logits = torch.stack([one.logits for one in labels]).detach().float().cpu()
        if logits.shape[1] != len(self.classes):
            raise ModelError(
                f"there are {logits.shape[1]} logits an image, but {len(self.classes)} classes"
            )
        self.pairs.add(truth, logits.argmax(1))
        of_truth = logits.gather(1, truth[:, None])  # (N, 1)
        above = (logits > of_truth).sum(1)
        equal = logits == of_truth
        if (equal.sum(1) > 1).any():  # of equal logits the first class is taken
            above += (equal & (torch.arange(logits.shape[1]) < truth[:, None])).sum(1)
        self.among_five += int((above < 5).sum())
        self.loss += F.cross_entropy(logits, truth, reduction="sum").item()
        self.images += len(truth)

    def join(self, other: "Metric") -> None:
        self.pairs.join(other.pairs)
        self.among_five += other.among_five
        self.loss += other.loss
        self.images += other.images

    def result(self) -> Result:
        """Figures in percent, None over nothing; "by_class" in the order of the classes; see `Pairs.figures`."""
        totals = self.pairs.totals()
        correct, rows = int(totals[0].sum()), by_class(self.classes, "images", totals)
        notes = without_truth(rows, "images", "image")
        tells = len(self.classes) > 5
        if not tells:
            notes.append(
                f"top5 is not measured: any five of {len(self.classes)} classes hold the right one"
            )
        return {
            "top1": 100 * correct / self.images if self.images else None,
            "top5": 100 * self.among_five / self.images if self.images and tells else None,
            "correct": correct,
            "images": self.images,
            "loss": self.loss / self.images if self.images else None,
            "F1": mean([row["F1"] for row in rows]),
            **self.pairs.figures(),
            "by_class": rows,
            "notes": notes,
        }


def metric(classes: Sequence[str]) -> Metric:
    return Metric(classes)
