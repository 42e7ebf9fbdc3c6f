"""Weights of the classes in a loss, for classes of few samples or pixels."""

import numpy as np
import torch
from torch import Tensor

from ..data import IGNORE, Split
from ..errors import DataError
from ..inputs.samplers import labels_of
from . import named_weights


def class_weights(split: Split, target: str, setting: str = "balanced") -> Tensor:
    """A weight for each class, (classes,): those of the setting, by name, or balanced ones."""
    if setting == "balanced":
        return balanced_weights(split, target)
    return torch.tensor(named_weights.in_order(setting, split.classes))


def balanced_weights(split: Split, target: str) -> Tensor:
    """A weight for each class, (classes,), in inverse proportion to its samples or pixels.

    Their mean over these is 1. `target` is "label", "semantic" or "tags": of tags it is the number
    of samples without the tag for one that has it. A class that nothing is of has the weight 0.
    Label maps that cannot be read are passed over here, as they are in training. Raises `DataError`
    for a pixel of a class that there is not.
    """
    classes = len(split.classes)
    if target == "tags":
        return _without_to_with(split)
    counts = torch.zeros(classes, dtype=torch.float64)
    if target == "label":
        counts += torch.bincount(torch.tensor(labels_of(split)), minlength=classes)
    else:
        counts += _pixels_of_classes(split)
    with_samples = counts > 0
    weights = torch.zeros_like(counts)
    weights[with_samples] = counts.sum() / (counts[with_samples] * with_samples.sum())
    return weights.float()


def _without_to_with(split: Split) -> Tensor:
    """Of each class the samples without it for one with it, (classes,); 0 where none has it.

    A class that all have counts as if one had it not: its weight would be 0, and nothing learned.
    """
    counts = torch.zeros(len(split.classes))
    for sample in split.samples:
        counts[list(sample.tags or ())] += 1
    return torch.where(counts > 0, (len(split.samples) - counts).clamp(min=1) / counts, 0)


def _pixels_of_classes(split: Split) -> Tensor:
    """How many pixels of the label maps are of each class, (classes,) float64."""
    classes = len(split.classes)
    counts = torch.zeros(classes, dtype=torch.float64)
    for sample in split.samples:
        if sample.semantic is None:
            continue
        try:
            labels = sample.semantic()
        except DataError:  # named when it is met in training
            continue
        annotated = torch.from_numpy(labels[labels != IGNORE].astype(np.int64))
        if len(annotated) and int(annotated.max()) >= classes:
            highest = int(annotated.max())
            raise DataError(f"{sample.image} has a pixel of class {highest} of {classes}")
        counts += torch.bincount(annotated, minlength=classes)
    return counts
