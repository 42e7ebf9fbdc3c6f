"""A classifier that learns from another one's answers beside the labels: `Distilled`, `Teacher`.

    hard   cross-entropy with the class that the teacher finds most probable (arXiv:2012.12877)
    soft   Kullback-Leibler divergence from the teacher's probabilities, both at a temperature,
           times its square (arXiv:1503.02531)

The loss is (1 - weight) times that of the labels, plus weight times one of these. A network with
two classifiers, as RepViT, learns the labels with the first and the teacher's answers with the
second.

The teacher sees what the student sees, after augmentation and mixing, with its own mean, std and
order of the colors, at the student's size. What is learned from is as much of its answers as can be
stored: the `STORED` most probable classes, in half precision, and the rest shared by all others
alike. So a teacher that is asked in training and one that was asked before teach the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Split
from ..errors import DataError, ModelError, suggest
from ..preprocess import Preprocess
from ..tasks import Model
from .config import TrainConfig
from .objective import Objective, Targets, TaskObjective, task_objective

STORED = 15  # classes of an answer: 2 bytes for each number and 2 for its probability


@dataclass(frozen=True)
class Answers:
    """What a teacher finds in N pictures: the most probable classes, in half precision."""

    classes: Tensor  # (N, k) uint16, the most probable first
    shares: Tensor  # (N, k) float16, their probabilities

    def probabilities(self, count: int) -> Tensor:
        """(N, count) float32, which sum up to 1; what is not stored is shared by the others."""
        numbers = self.classes.long()
        shares = self.shares.float()
        others = count - shares.shape[1]
        left = (1 - shares.sum(1, keepdim=True)).clamp(min=0)
        spread = shares.new_zeros(len(shares), count)
        if others:
            spread += left / others
        spread = spread.scatter(1, numbers, shares)
        return spread / spread.sum(1, keepdim=True)


def answers_of(logits: Tensor, temperature: float) -> Answers:
    """The answers in logits (N, classes), at a temperature."""
    probabilities = (logits.float() / temperature).softmax(1)
    shares, numbers = probabilities.topk(min(STORED, logits.shape[1]), dim=1)
    return Answers(numbers.to(torch.uint16), shares.half())


class Teacher:
    """A trained classifier, in eval mode, that is asked about the pictures of a student."""

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        columns: Sequence[int] | None,
        student: Preprocess,
        precision: str = "fp32",
    ):
        self.model = model.eval().requires_grad_(False)
        self.columns = None if columns is None else torch.tensor(columns)
        self.student, self.preprocess = student, preprocess
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, C, H, W) as the student sees them -> (N, classes), classes as the student's."""
        # with the teacher's mean, std and order of the colors
        inputs = self.preprocess.input_of(self.student.values_of(images))
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self.model(inputs)
        if self.columns is None:
            return logits.float()
        return logits.float()[:, self.columns.to(logits.device)]


class Distilled:
    """The objective of a training with a teacher."""

    def __init__(
        self,
        usual: TaskObjective,
        teacher: Teacher,
        kind: Literal["hard", "soft"],
        weight: float,
        temperature: float = 1.0,
    ):
        self.usual = usual
        self.teacher = teacher
        self.kind = kind
        self.weight = weight
        self.temperature = temperature

    def losses(self, network: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        with _outputs_of(_classifiers(self.usual.model)) as logits:
            outputs = network(images)
        first, second = (logits[0], logits[1]) if len(logits) == 2 else (outputs, outputs)
        answers = answers_of(self.teacher.logits(images), self.temperature)
        labels = self.usual.of_outputs(first.float(), targets)
        losses = {name: (1 - self.weight) * loss for name, loss in labels.items()}
        return {**losses, "distillation": self.weight * self.distance(second.float(), answers)}

    def distance(self, logits: Tensor, answers: Answers) -> Tensor:
        """How far logits (N, classes) are from the teacher's answers."""
        if self.kind == "hard":
            return F.cross_entropy(logits, answers.classes[:, 0].long())
        own = (logits / self.temperature).log_softmax(1)
        taught = answers.probabilities(logits.shape[1])
        return F.kl_div(own, taught, reduction="batchmean") * self.temperature**2


def _classifiers(model: Model) -> Sequence[nn.Module]:
    """The two classifiers of a network that has one for the labels and one for a teacher."""
    heads = getattr(getattr(model.head, "classifier", None), "heads", None)
    return list(heads) if isinstance(heads, nn.ModuleList) and len(heads) == 2 else []


@contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What modules give while it lasts, in the order in which they are called."""
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: outputs.append(output))
        for module in modules
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


# From settings ------------------------------------------------------------------------------------


def objective_of(
    model: Model, config: TrainConfig, train: Split, preprocess: Preprocess, device: torch.device
) -> Objective:
    """The objective of the settings: that of the task, with a teacher where there is one."""
    usual = task_objective(model, config, train)
    if config.teacher is None:
        return usual
    teacher = teacher_of(config, train, preprocess)
    teacher.model.to(device)
    return Distilled(
        usual, teacher, config.distill, config.distill_weight, config.distill_temperature
    )


def teacher_of(config: TrainConfig, train: Split, student: Preprocess) -> Teacher:
    """The teacher of the settings: a checkpoint, a run, or timm/NAME with published weights.

    Raises `ModelError` for one that is no classifier, `DataError` for one that does not know the
    classes of the data.
    """
    name = str(config.teacher)
    if name.startswith("timm/") and not Path(name).exists():
        from ..weights import create_model

        model, classes = create_model(name, weights="default"), None
        preprocess = model.preprocess or Preprocess(config.size)
    else:
        from ..checkpoint import load

        checkpoint = load(name)
        model, classes, preprocess = checkpoint.model, checkpoint.classes, checkpoint.preprocess
    if model.task != "classification":
        raise ModelError(f"teacher is {name}, of {model.task}; allowed: a classifier")
    if model.channels != student.channels:
        raise ModelError(
            f"teacher is {name}, for pictures of {model.channels} channels; these have "
            f"{student.channels}"
        )
    columns = columns_of(classes, train.classes, model.classes, name)
    return Teacher(model, preprocess, columns, student, config.precision)


def columns_of(
    classes: Sequence[str] | None, wanted: Sequence[str], count: int, teacher: str
) -> list[int] | None:
    """Which outputs of a teacher are the classes of the data, by name; None for all in order.

    `classes` are the teacher's, None where it has `count` without names.
    """
    if classes is None:
        if count != len(wanted):
            raise DataError(
                f"teacher is {teacher}, which has {count} classes without names; the data have "
                f"{len(wanted)}. Train one on these data, or give it their classes"
            )
        return None
    index = {name: column for column, name in enumerate(classes)}
    missing = [name for name in wanted if name not in index]
    if missing:
        raise DataError(
            f"teacher is {teacher}, which does not know {len(missing)} of {len(wanted)} classes: "
            f"{', '.join(missing[:5])}; {suggest(missing[0], classes, 'class')}"
        )
    columns = [index[name] for name in wanted]
    return None if columns == list(range(count)) else columns
