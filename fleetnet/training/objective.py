"""The loss of a batch: what the network sees of it, and what is to be minimized.

`fit` takes any `Objective`. One with a teacher beside the model:

    class Distilled:
        def __init__(self, usual: TaskObjective, teacher: nn.Module):
            self.usual = usual
            self.teacher = teacher.eval()

        def losses(self, network, images, targets):
            outputs = network(images)
            with torch.no_grad():
                taught = self.teacher(images)
            return {**self.usual.of_outputs(outputs, targets), "teacher": mse_loss(outputs, taught)}

    objective = Distilled(task_objective(model, config, train), teacher)
    fleetnet.fit(model, train, val, config, "runs/mine", objective=objective)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import tasks
from ..data import Split
from ..inputs.dataset import Batch
from ..inputs.mixing import mix, multi_scale
from ..inputs.randomness import uniform
from ..tasks import Model, named
from .class_weights import class_weights
from .config import TrainConfig

# Annotations of a batch by name, as in `Batch` and as the loss of a task takes them.
Targets = Mapping[str, Any]


class Objective(Protocol):
    """What a training minimizes."""

    def losses(self, network: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Scalars by name, to be minimized in sum; each becomes a curve of the log.

        `network` is the model in training mode, under autocast; losses are not, since boxes need
        float32. images are (N, 3, H, W), targets as the task's `loss` takes them. Of several
        processes each sees its part of a batch: a mean over it goes through `processes.of_all`.
        """
        ...


@dataclass(frozen=True)
class TaskObjective:
    """The loss of the model's task; `settings` are those of the training that it takes."""

    model: Model
    settings: Mapping[str, object]

    def losses(self, network: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        return self.of_outputs(network(images), targets)

    def of_outputs(
        self, outputs: Tensor | Mapping[str, Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """The losses, from outputs that are already computed."""
        task = tasks.find(self.model.task)
        return task.loss(self.model.head, named(outputs), targets, **self.settings)


def task_objective(model: Model, config: TrainConfig, train: Split) -> TaskObjective:
    """The objective that `fit` uses unless it gets another one."""
    task = tasks.find(model.task)
    settings = {key: getattr(config, key) for key in task.SETTINGS if key != "class_weights"}
    if config.class_weights != "none":
        settings["class_weights"] = class_weights(train, task.TARGET, config.class_weights)
    return TaskObjective(model, settings)


def mixed_and_sized(
    batch: Batch, classes: int, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Targets]:
    """Images (N, 3, H, W) and targets of a batch after mixup or cutmix, at a size of its own.

    `generator` is torch's own, which torchvision's mixing draws from.
    """
    images, targets = batch.inputs(), batch.targets
    if config.mixup or config.cutmix:
        images, targets = mix(images, targets, classes, config.mixup, config.cutmix)
    if config.multi_scale:
        ratio = uniform(1 - config.multi_scale, 1 + config.multi_scale, generator)
        images, targets = multi_scale(images, targets, ratio)
    return images, targets
