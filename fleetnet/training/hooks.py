"""What listens to a run: loggers, progress bars, pictures of what is learned from.

A logger inherits from `Hook` and writes the methods that it needs:

    class Printer(Hook):
        def epoch(self, line):
            print(line["epoch"], line["train"]["loss"])

    fleetnet.fit(model, train, val, config, "runs/mine", hooks=[Printer()])

docs/architecture.md has one that sends lines to a server.
"""

import resource
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from ..errors import UsageError
from ..inputs.workers import Say
from ..preprocess import Preprocess
from .config import TrainConfig
from .log import Line, Result
from .objective import Targets

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Progress:
    """Where a run is after a step."""

    epoch: int  # from 1
    epochs: int
    step: int  # of this epoch, from 1
    steps: int
    loss: float
    lr: float
    images_per_second: float
    memory: float  # MB, peak of the process or the GPU
    seconds_left: float


class Hook(Protocol):
    """What a run calls while it goes on; each method does nothing unless it is written anew.

    An error in a hook is said once and does not end the run, unless the hook's `may_stop` is True.
    """

    may_stop: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What it is called where it failed."""
        return type(self).__name__

    def start(self, run: "Run", config: TrainConfig) -> None:
        """Before anything is trained: `run` knows its folder, and for how many epochs it was."""
        return

    def batch(self, images: Tensor, targets: Targets, preprocess: Preprocess) -> None:
        """Before each step: images (N, 3, H, W) and their targets, as the network sees them."""
        return

    def step(self, progress: Progress) -> None:
        """After each step."""
        return

    def epoch(self, line: Line) -> None:
        """After each epoch, with its line of log.jsonl, when all of its files are written."""
        return

    def end(self, result: Result) -> None:
        """After the last epoch, with the figures of the best one, when all files are written."""
        return


class Callbacks(Hook):
    """Functions of whoever calls `fit`, whose errors are theirs: they end the run."""

    may_stop = True

    def __init__(
        self,
        progress: Callable[[Progress], None] | None = None,
        on_epoch: Callable[[Line], None] | None = None,
        on_batch: Callable[[Tensor, Targets, Preprocess], None] | None = None,
    ):
        self.progress = progress
        self.on_epoch = on_epoch
        self.on_batch = on_batch

    def batch(self, images: Tensor, targets: Targets, preprocess: Preprocess) -> None:
        if self.on_batch is not None:
            self.on_batch(images, targets, preprocess)

    def step(self, progress: Progress) -> None:
        if self.progress is not None:
            self.progress(progress)

    def epoch(self, line: Line) -> None:
        if self.on_epoch is not None:
            self.on_epoch(line)


class Hooks(Hook):
    """Several hooks as one; `say` gets a line for each that failed and may not stop the run."""

    may_stop = True

    def __init__(self, hooks: Sequence[Hook], say: Say | None = None):
        for hook in hooks:
            if Hook not in type(hook).__mro__:
                name = type(hook).__name__
                raise UsageError(
                    f"hooks has a {name}, which does not inherit from Hook of "
                    f"fleetnet.training.hooks: write class {name}(Hook)"
                )
        self.hooks = list(hooks)
        self.say = say or _warn
        self.failed: list[Hook] = []

    def start(self, run: "Run", config: TrainConfig) -> None:
        self._each(lambda hook: hook.start(run, config))

    def batch(self, images: Tensor, targets: Targets, preprocess: Preprocess) -> None:
        self._each(lambda hook: hook.batch(images, targets, preprocess))

    def step(self, progress: Progress) -> None:
        self._each(lambda hook: hook.step(progress))

    def epoch(self, line: Line) -> None:
        self._each(lambda hook: hook.epoch(line))

    def end(self, result: Result) -> None:
        self._each(lambda hook: hook.end(result))

    def _each(self, call: Callable[[Hook], None]) -> None:
        for hook in self.hooks:
            try:
                call(hook)
            except (Exception, SystemExit) as error:  # some trackers end the process they are in
                if hook.may_stop:
                    raise
                if hook not in self.failed:
                    self.failed.append(hook)
                    reason = f"{type(error).__name__}: {error}"
                    self.say(f"{hook.title} failed ({reason}); the training goes on")


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


class Pace:
    """How fast a run goes, and how long it will take, from its start on."""

    def __init__(self, first_epoch: int, epochs: int, steps: int):
        """Epochs from 0, `steps` in each."""
        self.first_epoch = first_epoch
        self.epochs = epochs
        self.steps = steps
        self.began = time.monotonic()
        self.images = 0

    def progress(self, epoch: int, step: int, loss: float, lr: float, images: int) -> Progress:
        """After a step of so many images; `epoch` from 0, `step` from 1."""
        self.images += images
        elapsed = time.monotonic() - self.began
        share = (epoch - self.first_epoch + step / self.steps) / max(
            self.epochs - self.first_epoch, 1
        )
        return Progress(
            epoch=epoch + 1,
            epochs=self.epochs,
            step=step,
            steps=self.steps,
            loss=loss,
            lr=lr,
            images_per_second=self.images / max(elapsed, 1e-9),
            memory=_memory(),
            seconds_left=elapsed * (1 - share) / max(share, 1e-9),
        )


def _memory() -> float:
    """MB, the most so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
