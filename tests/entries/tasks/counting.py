"""A task of a new kind that a test adds: how many objects of each class a picture shows.

It learns from boxes and predicts none: what it finds is a type of its own, `Counts`. All that is
done with a prediction (in words, drawn, beside the truth) is a method of that type, so nothing else
of the package has to know it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone, Recognized, State
from ..backbones._recognition import output_count
from ..boxes import Limits
from ..geometry import Place, Scale
from ..predictions import WHOLE, Judged, Prediction, Truth, all_of
from ..preprocess import Mode
from . import Outputs
from ._defaults import convert as convert
from ._defaults import prepare as prepare
from ._defaults import stored as stored

TARGET, AUGMENT, OUTPUT_STRIDE = "boxes", "jitter", 32
MODE: Mode = "letterbox"
SIZE = (64, 64)
CLASSES = 6
OPTIONS: tuple[str, ...] = ()
SETTINGS: tuple[str, ...] = ()
CLASS_MAJOR: tuple[str, ...] = ()
LIMITS = None  # it keeps all that it finds
DECODE, EMBEDDED, embed = None, None, None  # the counts are the answer
limit, from_file = None, None


@dataclass(frozen=True, eq=False)
class Counts:
    """How many objects of each class there are: (classes,), floats from 0."""

    counts: Tensor

    per_pixel = False

    def restore(self, place: Place, scale: Scale = WHOLE) -> "Counts":
        return self

    def present(
        self, classes: Sequence[str], top: int = 5, threshold: float = 0.0
    ) -> dict[str, int]:
        """The classes that are there, with their number."""
        numbers = zip(classes, self.counts.round().int().tolist(), strict=True)
        return {name: number for name, number in numbers if number}

    def draw(
        self,
        image: Image.Image,
        classes: Sequence[str],
        threshold: float = 0.0,
        scale: Scale = WHOLE,
    ) -> Image.Image:
        drawn = image.copy()
        lines = [f"{number} x {name}" for name, number in self.present(classes).items()]
        ImageDraw.Draw(drawn).text((2, 2), "\n".join(lines), fill="red")
        return drawn

    @classmethod
    def of_truth(cls, truth: Truth, classes: Sequence[str]) -> "Counts":
        return cls(truth["labels"].bincount(minlength=len(classes)).float())

    @classmethod
    def show(
        cls, image: Image.Image, truth: Truth, classes: Sequence[str], side: int
    ) -> tuple[Image.Image, str]:
        annotated = cls.of_truth(truth, classes)
        return annotated.draw(image, classes), f"truth: {annotated.present(classes)}"

    def judge(
        self,
        image: Image.Image,
        truth: Truth,
        classes: Sequence[str],
        threshold: float,
        side: int,
    ) -> Judged:
        annotated, words = self.show(image, truth, classes, side)
        miscounted = (self.counts - self.of_truth(truth, classes).counts).round().abs().sum()
        captions = words, f"{int(miscounted)} miscounted"
        return Judged((annotated, self.draw(image, classes)), captions, float(miscounted))


PREDICTION = Counts


class Counter(nn.Module):
    """The mean of the last feature -> {"counts": (N, classes)}, never below 0."""

    def __init__(self, backbone: Backbone, classes: int):
        super().__init__()
        self.count = nn.Linear(backbone.channels[-1], classes)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        return {"counts": F.softplus(self.count(features[-1].mean((2, 3))))}


def head(backbone: Backbone, classes: int) -> nn.Module:
    return Counter(backbone, classes)


def loss(head: nn.Module, outputs: Outputs, targets: Mapping[str, Any]) -> dict[str, Tensor]:
    predicted = outputs["counts"]
    truth = [labels.bincount(minlength=predicted.shape[1]) for labels in targets["labels"]]
    return {"count": F.smooth_l1_loss(predicted, torch.stack(truth).to(predicted))}


def decode(outputs: Outputs, size: tuple[int, int], limits: Limits | None = None) -> list[Counts]:
    return [Counts(counts) for counts in outputs["counts"].float()]


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    return {"counts": {"output": "counts", "values": "objects of each class"}}


class Exact:
    """The share of classes that are counted right."""

    def __init__(self) -> None:
        self.right: list[Tensor] = []

    def add(self, predictions: Sequence[Prediction], targets: Mapping[str, Any]) -> None:
        for prediction, labels in zip(all_of(Counts, predictions), targets["labels"], strict=True):
            counts = prediction.counts.cpu().round()
            self.right.append(counts == labels.cpu().bincount(minlength=len(counts)))

    def join(self, other: "Exact") -> None:
        self.right += other.right

    def result(self) -> dict[str, Any]:
        exact = 100 * torch.stack(self.right).float().mean().item() if self.right else None
        return {"exact": exact, "images": len(self.right), "notes": []}


def metric(classes: Sequence[str]) -> Exact:
    return Exact()


def recognize(state: State) -> Recognized | None:
    classes = output_count(state, "head.count")
    return None if classes is None else Recognized(classes=classes)
