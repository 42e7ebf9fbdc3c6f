"""What the terminal shows of a training: progress, a line an epoch, and the result."""

import shlex
from pathlib import Path

from ..training.config import TrainConfig
from ..training.folder import BEST
from ..training.hooks import Hook, Progress
from ..training.log import Line, Result
from ..training.run import Run
from ..training.schedule import Schedule
from ._show import TrainingProgress, duration, say, shown, table

SHOWN = 3  # metrics a line, of COCO's twelve or twenty-four
SKIPPED = 10  # names of files that could not be read


class Terminal(Hook):
    """Shows how a training goes; what it cannot show ends the run, as elsewhere on the command line."""

    may_stop = True

    def __init__(self) -> None:
        self.progress: TrainingProgress | None = None  # None: it has not begun
        self.config: TrainConfig | None = None  # until its schedule was said
        self.run: Run | None = None
        self.epochs = 0  # that are asked for

    def start(self, run: Run, config: TrainConfig) -> None:
        if run.epochs == config.epochs:
            say(
                f"{run.folder} has been trained for all of its {run.epochs} epochs; more with "
                "--epochs"
            )
        say(f"run folder: {run.folder}")
        self.progress = TrainingProgress()
        self.config = config
        self.run, self.epochs = run, config.epochs

    def step(self, progress: Progress) -> None:
        if self.config is not None:
            say(Schedule(self.config, progress.steps).text())
            self.config = None
        if self.progress is not None:
            self.progress(progress)

    def epoch(self, line: Line) -> None:
        say_epoch(line)
        if self.run and (self.run.epochs >= self.epochs or self.run.stopped_early()):
            self.close()  # figures are drawn now, which takes a while

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()


def say_epoch(line: Line) -> None:
    """A line of the log in a line of the terminal."""
    scores = []
    for form in ("raw", "ema"):
        if form in line:
            figures = [
                f"{name} {shown(value)}" for name, value in line[form].items() if _is_figure(value)
            ]
            scores.append(f"{form} {' '.join(figures[:SHOWN])}")
    lost = f"  skipped {len(line['skipped'])} unreadable" if line["skipped"] else ""
    loss, seconds = line["train"]["loss"], duration(line["seconds"])
    say(f"epoch {line['epoch']}: loss {loss:.4f}  {'  '.join(scores)}  {seconds}{lost}")


def _is_figure(value: object) -> bool:
    """Whether a value of a metric is a figure, measured or, as None, not to be had; counts are not."""
    return value is None or isinstance(value, float)


def say_result(run: Path, config: TrainConfig, log: list[Line], best: Result) -> None:
    """The figures of the best epoch, what could not be read, and what to do next."""
    if len(log) < config.epochs:
        since = f"no better one since epoch {best['epoch']} (patience {config.patience})"
        say(f"stopped after epoch {len(log)}: {since}")
    rows = [
        [name, shown(value)] for name, value in best.items() if not isinstance(value, list | dict)
    ]
    table(f"Best of {len(log)} epochs: {run / BEST}", ["metric", "value"], rows)
    for note in best.get("notes", ()):
        say(f"note: {note}")
    if skipped := skipped_in(log):
        say(f"skipped {len(skipped)} unreadable images: " + "; ".join(skipped[:SKIPPED]))
    quoted = shlex.quote(str(run))
    say(f"next: fleetnet reparam --model {quoted}   or: fleetnet export --model {quoted} --to onnx")


def skipped_in(log: list[Line]) -> list[str]:
    """The names of all files that could not be read."""
    return sorted({name for line in log for name in line["skipped"]})
