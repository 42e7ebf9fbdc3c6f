"""A classifier that learns from another one's answers beside the labels: `Distilled`, `Teacher`.

    hard   cross-entropy with the class that the teacher finds most probable (arXiv:2012.12877)
    soft   Kullback-Leibler divergence from the teacher's probabilities, both at a temperature,
           times its square (arXiv:1503.02531)

The loss is (1 - weight) times that of the labels, plus weight times one of these. A network with
two classifiers, as RepViT, learns the labels with the first and the teacher's answers with the
second.

The teacher sees what the student sees, after augmentation and mixing, with its own mean, std and
order of the colors, at the student's size. Its answers may have been stored before (`answers`,
`reinforce`); a student learns the same from them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Split
from ..errors import DataError, ModelError, suggest
from ..preprocess import Preprocess
from ..processes import of_all
from ..tasks import Model
from ..weights.read import hash_tensors
from .answers import Answers, StoredAnswers, answers_of
from .config import TrainConfig
from .objective import Objective, Targets, TaskObjective, task_objective


class Source(Protocol):
    """What has a teacher's answers."""

    def answers(self, images: Tensor, targets: Targets, temperature: float) -> Answers:
        """Of images (N, C, H, W) as the student sees them."""
        ...


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

    def answers(self, images: Tensor, targets: Targets, temperature: float) -> Answers:
        return answers_of(self.logits(images), temperature)

    def hash(self) -> str:
        """SHA-256 of all that decides its answers, before it is on another device."""
        columns = None if self.columns is None else self.columns.tolist()
        weights = hash_tensors(self.model.state_dict())
        return hashlib.sha256(f"{weights} {self.preprocess} {columns}".encode()).hexdigest()


class Distilled:
    """The objective of a training with a teacher."""

    def __init__(
        self,
        usual: TaskObjective,
        teacher: Source,
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
        answers = self.teacher.answers(images, targets, self.temperature)
        labels = self.usual.of_outputs(first.float(), targets)
        losses = {name: (1 - self.weight) * loss for name, loss in labels.items()}
        return {**losses, "distillation": self.weight * self.distance(second.float(), answers)}

    def distance(self, logits: Tensor, answers: Answers) -> Tensor:
        """How far logits (N, classes) are from the teacher's answers."""
        if self.kind == "hard":
            return of_all(F.cross_entropy(logits, answers.classes[:, 0].long()), len(logits))
        own = (logits / self.temperature).log_softmax(1)
        taught = answers.probabilities(logits.shape[1])
        divergence = of_all(F.kl_div(own, taught, reduction="batchmean"), len(logits))
        return divergence * self.temperature**2


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
    model: Model,
    config: TrainConfig,
    train: Split,
    preprocess: Preprocess,
    device: torch.device,
    stored: StoredAnswers | None = None,
) -> Objective:
    """The objective of the settings: that of the task, with a teacher where there is one.

    Its answers are `stored`, or it is asked in each step.
    """
    usual = task_objective(model, config, train)
    if config.teacher is None:
        return usual
    source: Source
    if stored is not None:
        source = stored
    else:
        source = teacher_of(config, train, preprocess)
        source.model.to(device)
    return Distilled(
        usual, source, config.distill, config.distill_weight, config.distill_temperature
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
