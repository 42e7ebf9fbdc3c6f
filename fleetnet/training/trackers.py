"""Figures of a run in TensorBoard, or in any other tracker that accelerate has: the setting `log`.

A tracker of your own is a class that inherits from accelerate's `GeneralTracker`, with `log` and
`finish`, and is given to `fit` as `hooks=[Tracked(MyTracker())]`; docs/architecture.md has one.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, suggest
from .config import TrainConfig
from .hooks import Hook, Progress
from .log import Line, Result

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from .run import Run

EVERY = 10  # steps between two lines of a tracker
TRIES = 3  # failures in a row, after which a tracker is asked no more: each may be a time-out


class Tracked(Hook):
    """Sends settings, steps and epochs to a tracker; all figures lie over the steps of the run."""

    def __init__(self, tracker: "GeneralTracker"):
        self.tracker = tracker
        self.settings: dict[str, bool | int | float | str] | None = None  # of a run that begins
        self.steps = 0  # so far, from the first epoch on
        self.is_open = False
        self.failures = 0

    @property
    def title(self) -> str:
        return self.tracker.name

    def start(self, run: "Run", config: TrainConfig) -> None:
        if run.epochs == 0:
            values = config.to_dict().items()
            plain = (bool, int, float, str)
            self.settings = {
                key: value if isinstance(value, plain) else str(value) for key, value in values
            }

    def step(self, progress: Progress) -> None:
        self.steps = (progress.epoch - 1) * progress.steps + progress.step
        if progress.step % EVERY == 1 or progress.steps < EVERY:
            self._log(
                {
                    "step/loss": progress.loss,
                    "step/lr": progress.lr,
                    "step/images_per_second": progress.images_per_second,
                }
            )

    def epoch(self, line: Line) -> None:
        figures = {
            f"{part}/{name}": value
            for part in ("train", "raw", "ema")
            for name, value in line.get(part, {}).items()
            if isinstance(value, int | float)
        }
        self._log({**figures, "skipped": len(line["skipped"]), "seconds": line["seconds"]})

    def end(self, result: Result) -> None:
        if self.is_open:
            self.tracker.finish()

    def _log(self, values: dict[str, float]) -> None:
        if self.failures >= TRIES:
            return
        self.failures += 1
        self._open()
        self.tracker.log(values, step=self.steps)
        self.failures = 0

    def _open(self) -> None:
        """Begin when there is something to log: only then is known at which step."""
        if self.is_open:
            return
        if self.tracker.name == "tensorboard":  # what a run logged beyond its last state goes
            self.tracker.init_kwargs["purge_step"] = self.steps
        self.tracker.start()
        self.is_open = True
        if self.settings is not None:
            self.tracker.store_init_configuration(self.settings)


def trackers_of(config: TrainConfig, folder: Path) -> list[Tracked]:
    """The trackers that the setting `log` names, for the run in a folder; see `check_trackers`."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    check_trackers(config.log)
    trackers = []
    for name in _names(config.log):
        made = LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": folder} if made.requires_logging_directory else {}
        run_name = name if where else folder.name  # a folder in the run's, or the name of the run
        trackers.append(Tracked(made(run_name, **where)))
    return trackers


def check_trackers(log: str) -> None:
    """`UsageError` for trackers that accelerate has not, and for those that are not installed."""
    if not log:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in _names(log):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"log is {log!r}: {suggest(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in [str(tracker) for tracker in get_available_trackers()]:
            package = "'fleetnet[tensorboard]'" if name == "tensorboard" else name
            raise UsageError(f"log is {log!r}, which is not installed: pip install {package}")


def _names(log: str) -> list[str]:
    """["tensorboard", "wandb"] from "tensorboard,wandb"."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in log.split(",")))))
