"""Classification: one label an image. The head is the paper's own, from the last feature."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone
from ..errors import ModelError


class LastFeature(nn.Module):
    """The paper's classifier on the deepest feature: list[(N, C_i, h_i, w_i)] -> logits (N, classes)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.classifier(features[-1])


def head(backbone: Backbone, classes: int) -> nn.Module:
    if classes < 2:
        raise ModelError(f"classification needs at least 2 classes to tell apart, got {classes}")
    return LastFeature(backbone.classifier(classes))


def loss(outputs: Tensor, targets: Mapping[str, Tensor], label_smoothing: float = 0.0) -> dict[str, Tensor]:
    """Cross-entropy of logits (N, classes) against targets["label"]: (N,) indices or (N, classes) probabilities."""
    return {"cross_entropy": F.cross_entropy(outputs, targets["label"], label_smoothing=label_smoothing)}


def decode(outputs: Tensor, top: int = 5) -> list[list[tuple[int, float]]]:
    """For each image the `top` classes as (index, probability), most probable first."""
    scores, indices = outputs.float().softmax(1).topk(min(top, outputs.shape[1]))
    return [list(zip(i, s, strict=True)) for i, s in zip(indices.tolist(), scores.tolist(), strict=True)]


class Metric:
    """Top-1, top-5 and the confusion matrix over all images added, by torchmetrics."""

    def __init__(self, classes: int):
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

        self.classes = classes
        self.confusion = MulticlassConfusionMatrix(classes)  # [truth, prediction]
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")

    def add(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Count logits (N, classes) against targets["label"] (N,)."""
        if outputs.ndim != 2 or outputs.shape[1] != self.classes:
            raise ModelError(f"outputs are {tuple(outputs.shape)}, but there are {self.classes} classes")
        outputs, truth = outputs.detach().float().cpu(), targets["label"].cpu()
        self.confusion.update(outputs, truth)
        self.top5.update(outputs, truth)

    def result(self) -> dict[str, Any]:
        """Percentages, the number of images, and the matrix as nested lists [truth][prediction]."""
        confusion = self.confusion.compute()
        images, correct = int(confusion.sum()), int(confusion.diagonal().sum())
        return {
            "top1": 100 * correct / max(images, 1),
            "top5": 100 * self.top5.compute().item(),
            "correct": correct,
            "images": images,
            "confusion": confusion.tolist(),
        }


def metric(classes: int) -> Metric:
    return Metric(classes)
