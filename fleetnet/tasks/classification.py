"""Classification: one label an image. The head is the paper's own, from the last feature."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone
from ..boxes import Place, Prediction
from ..errors import ModelError

TARGET, MODE, AUGMENT, OUTPUT_STRIDE = "label", "crop", "classify", 32
OPTIONS: tuple[str, ...] = ()
SETTINGS = ("label_smoothing",)


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


def loss(
    head: nn.Module, outputs: Tensor, targets: Mapping[str, Tensor], label_smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Cross-entropy of logits (N, classes) against targets["label"]: (N,) indices or (N, classes) probabilities."""
    return {"cross_entropy": F.cross_entropy(outputs, targets["label"], label_smoothing=label_smoothing)}


def decode(outputs: Tensor | Mapping[str, Tensor], size: tuple[int, int] | None = None) -> list[Prediction]:
    """Logits (N, classes) -> {"logits": (classes,)} for each image."""
    logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    return [{"logits": row} for row in logits.float()]


def restore(prediction: Prediction, place: Place) -> Prediction:
    return prediction


def present(
    prediction: Prediction, classes: Sequence[str], top: int = 5, threshold: float = 0.0
) -> list[tuple[str, float]]:
    """The `top` classes as (name, probability), most probable first; those below `threshold` are left out."""
    if len(prediction["logits"]) != len(classes):
        raise ModelError(f"there are {len(prediction['logits'])} logits an image, but {len(classes)} class names")
    scores, indices = prediction["logits"].softmax(0).topk(min(top, len(classes)))
    found = zip(indices.tolist(), scores.tolist(), strict=True)
    return [(classes[index], score) for index, score in found if score >= threshold]


class Metric:
    """Top-1, top-5, cross-entropy and the confusion matrix over all images added, by torchmetrics."""

    def __init__(self, classes: int):
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

        self.classes = classes
        self.confusion = MulticlassConfusionMatrix(classes)  # [truth, prediction]
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")
        self.loss = MeanMetric()

    def add(self, predictions: Sequence[Prediction], targets: Mapping[str, Tensor]) -> None:
        """Count predictions against targets["label"] (N,)."""
        truth = targets["label"].cpu()
        for prediction, label in zip(predictions, truth, strict=True):
            logits = prediction["logits"].detach().float().cpu()[None]
            if logits.shape[1] != self.classes:
                raise ModelError(f"there are {logits.shape[1]} logits an image, but {self.classes} classes")
            self.confusion.update(logits, label[None])
            self.top5.update(logits, label[None])
            self.loss.update(F.cross_entropy(logits, label[None]))

    def result(self) -> dict[str, Any]:
        """Percentages, the number of images, and the matrix as nested lists [truth][prediction]."""
        confusion = self.confusion.compute()
        images, correct = int(confusion.sum()), int(confusion.diagonal().sum())
        return {
            "top1": 100 * correct / max(images, 1),
            "top5": 100 * self.top5.compute().item(),
            "correct": correct,
            "images": images,
            "loss": self.loss.compute().item(),
            "confusion": confusion.tolist(),
        }


def metric(classes: Sequence[str]) -> Metric:
    return Metric(len(classes))
