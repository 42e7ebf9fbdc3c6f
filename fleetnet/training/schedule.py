"""What changes from step to step: learning rates, the average of the weights, an early end.

The learning rate is a pure function of the step, so a run that continues needs to remember nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .config import TrainConfig
from .log import Line, Result


def learning_rate(step: float, steps: int, warmup: float, peak: float) -> float:
    """Linear from peak / (warmup + 1) to `peak` in `warmup` steps, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every update of a run."""

    config: TrainConfig
    batches: int  # of an epoch

    @property
    def updates(self) -> int:
        """Of an epoch: one for each group of batches; the last group may have fewer."""
        return math.ceil(self.batches / self.config.accumulate)

    def rate(self, epoch: int, group: int) -> float:
        """Of a group of batches, both counted from 0."""
        config, updates = self.config, self.updates
        warmup = min(config.warmup_epochs, config.epochs / 2) * updates
        return learning_rate(epoch * updates + group, config.epochs * updates, warmup, config.lr)


def parameter_groups(
    model: nn.Module, weight_decay: float, head_lr: float = 1.0
) -> list[dict[str, object]]:
    """Trainable parameters, those of norms and biases (vectors) without weight decay.

    `lr_multiple` of a group is 1, or `head_lr` for parameters of the head where that differs.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {
        (1.0, weight_decay): [],
        (1.0, 0.0): [],
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            multiple = head_lr if name.startswith("head.") else 1.0
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((multiple, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_multiple": multiple}
        for (multiple, decay), parameters in groups.items()
    ]


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the settings, over all parameters that are trained."""
    groups = parameter_groups(model, config.weight_decay, config.head_lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.lr, momentum=config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(groups, config.lr, betas=(config.momentum, 0.999))


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model that becomes the average of its weights and buffers."""
    return AveragedModel(model, multi_avg_fn=partial(move_averages, decay), use_buffers=True)


@torch.no_grad()
def move_averages(
    decay: float, averages: list[Tensor], current: list[Tensor], count: Tensor | int
) -> None:
    """Move each average toward the current value, which is the `count`-th after the first.

    Early steps count more, so that the start is soon forgotten.
    """
    weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
    for average, value in zip(averages, current, strict=True):
        if average.is_floating_point():
            average.lerp_(value.to(average), weight)
        else:  # the counters of batch norms
            average.copy_(value)


def stopped_early(log: Sequence[Line], best: Result | None, patience: int) -> bool:
    """Whether the last evaluation came `patience` epochs (0: never) or more after the best one."""
    evaluated = [line["epoch"] for line in log if "raw" in line]
    return bool(patience and best and evaluated and evaluated[-1] - best["epoch"] >= patience)
