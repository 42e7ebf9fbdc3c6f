"""Asking a teacher once: its answers to all that students will see, stored in a folder.

Data are reinforced, as Faghri et al. call it (arXiv:2303.08983), who store the answers to a few
augmentations of each picture. Differs: here they are to the very pictures of each epoch, so that a
student learns exactly what it would have learned with the teacher beside it.

What is shown to the teacher is made by the parts that a training is made of, and in its batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..data import Split
from ..errors import DataError, ModelError, UsageError
from ..files import remove_leftovers
from ..inputs.dataset import Batch, ImageDataset, collate
from ..inputs.randomness import of_batch, seed_all, states_kept
from ..inputs.samplers import Draws
from ..inputs.workers import Say, patient
from ..preprocess import Preprocess
from ..reading import Fields
from ..tasks import Model
from .answers import (
    CONDITIONS,
    DIGEST,
    FORMAT,
    conditions_of,
    depend_on_batch,
    differences,
    file_of,
    is_store,
    read_conditions,
    read_epoch,
    record_size,
    write_conditions,
    write_epoch,
)
from .config import TrainConfig
from .distill import Teacher, teacher_of
from .learner import Learner, set_up
from .objective import mixed_and_sized, task_objective
from .setup import accelerator_of, training_of

Counted = Callable[[int, int], None]  # gets how many samples were asked about, and of how many


@dataclass(frozen=True)
class Reinforced:
    """A folder of answers."""

    folder: str
    teacher: str
    epochs: int
    made: int  # epochs, now; the others were there
    samples: int  # records of an epoch, the mean
    record: int  # bytes of one
    bytes: int  # of the files of all epochs
    skipped: list[str]  # a line for each file that could not be read, with the reason


def reinforce(
    model: Model,
    train: Split,
    config: TrainConfig,
    folder: str | Path,
    *,
    preprocess: Preprocess | None = None,
    progress: Counted | None = None,
    on_wait: Say | None = None,
) -> Reinforced:
    """Store what `config.teacher` finds in all that `model` would see of `train` in a training.

    Of `model` only the preprocessing counts. Epochs that are whole in the folder stay, so it can be
    interrupted and goes on, and takes a larger `config.epochs` later. Raises `UsageError` where the
    folder holds answers to something else, naming what differs, `DataError` where no file of an
    epoch can be read, and `WriteError` where the folder cannot be written.
    """
    folder = Path(folder)
    _check_teacher(config.teacher)
    accelerator = accelerator_of(config)
    # neither an average of the weights nor a second teacher is needed
    student = replace(config, ema=None, teacher=None)
    training = training_of(model, train, student, preprocess)
    objective = task_objective(model, student, train)
    learner = set_up(model, train, train, training, accelerator, objective=objective)
    teacher = teacher_of(config, train, training.preprocess)
    about: Fields = {
        "format": FORMAT,
        "teacher": {"name": config.teacher, "sha256": teacher.hash()},
        "temperature": float(config.distill_temperature),
        **conditions_of(training.config, training.preprocess, train),
    }
    _agree(folder, about)
    teacher.model.to(accelerator.device)
    size = record_size(len(train.classes))
    missing = [epoch for epoch in range(config.epochs) if not _is_whole(folder, epoch, size)]
    asking = _Asking(learner, teacher, config.distill_temperature, progress, on_wait)
    for number, epoch in enumerate(missing):
        write_epoch(folder, epoch, *asking.about(epoch, number, len(missing)))
    sizes = [file_of(folder, epoch).stat().st_size for epoch in range(config.epochs)]
    return Reinforced(
        folder=str(folder),
        teacher=str(config.teacher),
        epochs=config.epochs,
        made=len(missing),
        samples=round(sum(length - DIGEST for length in sizes) / size / len(sizes)),
        record=size,
        bytes=sum(sizes),
        skipped=asking.skipped,
    )


def _check_teacher(teacher: str | None) -> None:
    """`UsageError` unless there is one that can be asked."""
    allowed = "a run, a checkpoint, or timm/NAME"
    if teacher is None:
        raise UsageError(f"teacher is null; allowed: {allowed}")
    if is_store(teacher):
        raise UsageError(
            f"teacher is {teacher}, a folder of answers, which cannot be asked; allowed: {allowed}"
        )


def _agree(folder: Path, about: Fields) -> None:
    """Write what the answers depend on; `UsageError` where other answers or files are there."""
    if folder.is_dir():
        remove_leftovers(folder)
    if is_store(str(folder)):
        words = differences(read_conditions(folder), about)
        if words:
            raise UsageError(
                f"{folder} has answers to something else: {'; '.join(words)}. Give another folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there, without the {CONDITIONS} of answers: give a folder that is empty "
            "or not there"
        )
    else:
        write_conditions(folder, about)


def _is_whole(folder: Path, epoch: int, size: int) -> bool:
    if not file_of(folder, epoch).is_file():
        return False
    try:
        read_epoch(folder, epoch, size, whole=True)
    except ModelError:
        return False
    return True


class _Asking:
    """A teacher, and what it is shown."""

    def __init__(
        self,
        learner: Learner,
        teacher: Teacher,
        temperature: float,
        progress: Counted | None,
        on_wait: Say | None,
    ):
        self.learner = learner
        self.teacher = teacher
        self.temperature = temperature
        self.progress = progress
        self.on_wait = on_wait
        self.skipped: list[str] = []

    def about(self, epoch: int, number: int, epochs: int) -> tuple[list[int], Tensor]:
        """The samples of an epoch, from 0, as they come up, and the answers (N, bytes) uint8.

        Files that cannot be read are left out. It is epoch `number` of the `epochs` that are asked
        about now.
        """
        self.learner.begin(epoch)
        count = len(self.learner.order)
        samples: list[int] = []
        answers: list[Tensor] = []
        shown = 0
        for step, batch in enumerate(self._batches()):
            self.skipped += [line for line in batch.skipped if line not in self.skipped]
            shown += _size(batch)
            if batch.indices:
                samples += batch.indices
                answers.append(self._answers(batch, epoch, step))
            if self.progress is not None:
                self.progress(number * count + min(shown, count), epochs * count)
        if not samples:
            first = self.skipped[0] if self.skipped else "none given"
            raise DataError(f"no image could be read to ask about; the first: {first}")
        return samples, torch.cat(answers)

    def _batches(self) -> Iterator[Batch]:
        """Those of a training, then the samples for which its last batch has no room.

        With another batch size a training leaves out others, unless what is seen of a sample
        depends on its batch.
        """
        learner = self.learner
        shown = 0
        for batch in patient(learner.batches, self.on_wait):
            shown += _size(batch)
            yield batch
        data = learner.batches.dataset
        left = [] if depend_on_batch(learner.config) else list(Draws(learner.order))[shown:]
        if left and isinstance(data, ImageDataset):
            yield collate(data.__getitems__(left))

    def _answers(self, batch: Batch, epoch: int, step: int) -> Tensor:
        """(N, bytes) uint8, on the CPU."""
        learner, device = self.learner, self.learner.accelerator.device
        config, batch = learner.config, batch.on(device)
        with states_kept(device):
            generator = seed_all(of_batch(config.seed, epoch, step), device)
            # (N, C, H, W)
            images, targets = mixed_and_sized(batch, learner.model.classes, config, generator)
        answers = self.teacher.answers(learner.laid_out(images), targets, self.temperature)
        return answers.to_bytes().cpu()


def _size(batch: Batch) -> int:
    return len(batch.indices) + len(batch.skipped)
