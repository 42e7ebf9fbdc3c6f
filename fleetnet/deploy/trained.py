"""A trained network in memory: a command that needs it several times reads a checkpoint once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import checkpoint, tasks
from ..facts import Exported, Facts
from ..preprocess import Preprocess
from ..reading import hash_of
from ..tasks import Model
from ..weights.read import check_finite, locate


@dataclass(frozen=True)
class Trained:
    """A network in eval mode with all that is known of it, as a checkpoint holds it."""

    model: Model
    preprocess: Preprocess
    facts: Facts  # of a checkpoint, with its name and hash
    path: Path | None = None  # of the checkpoint, for messages

    @classmethod
    def read(cls, path: str | Path, device: str | torch.device = "cpu") -> "Trained":
        """A checkpoint or a run folder; `ModelError` for what is none."""
        file = locate(Path(path))
        loaded = checkpoint.load(file, device)
        facts = replace(loaded.facts, exported=Exported(file.name, hash_of([file])))
        return cls(loaded.model, loaded.preprocess, facts, file)

    @classmethod
    def of_model(
        cls,
        model: Model,
        classes: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
    ) -> "Trained":
        """A model in memory, with the preprocessing of its weights, or that of its task."""
        if preprocess is None:
            task = tasks.find(model.task)
            usual = Preprocess(task.SIZE, mode=task.MODE).for_channels(model.channels)
            preprocess = model.preprocess or usual
        check_finite(model.state_dict(), f"the {model.name}")
        classes = classes or [str(i) for i in range(model.classes)]
        return cls(model, preprocess, checkpoint.facts(model, classes, preprocess))
