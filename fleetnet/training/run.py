"""A run folder: what is in it, and in which order it is written.

At the end of an epoch the checkpoints are written into state/next-EPOCH/, then the state with the
whole log in it, and only then the checkpoints are moved to their places and the log gets its line.
So a kill at any moment leaves files that the state can bring in order: those of an epoch that it
knows are moved, others removed. Within an epoch the state alone is written anew.
"""

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType

from torch import nn

from .. import __version__, checkpoint
from ..data import Split, is_there
from ..data._contents import Contents
from ..data._record import RECORD, record
from ..errors import DataError, DiskFull, NotFiniteError, UsageError, WriteError
from ..facts import OWN_HASH, WHICH_WEIGHTS, Facts, Source, check_own_hash, sealed
from ..files import append_line, write_text, writing
from ..preprocess import Preprocess
from ..reading import HISTORY, from_json, read_text, to_json
from . import fingerprint
from .claims import NAME as CLAIM
from .claims import Claim, launcher
from .config import TrainConfig
from .folder import (
    BEST,
    CONFIG,
    DETAILS,
    ENVIRONMENT,
    LAST,
    LOG,
    STATE,
    Environment,
    config_text,
    environment_of,
)
from .log import Line, Result, State, figures_of, read_log
from .pictures import TRAINING_BATCHES
from .schedule import stopped_early
from .so_far import EpochSoFar

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors")


@dataclass(frozen=True)
class Training:
    """What every checkpoint of a run says of its training."""

    config: TrainConfig
    classes: list[str]
    category_ids: list[int] | None
    preprocess: Preprocess
    source: Source | None  # of the starting weights; None: what the model says


@dataclass(frozen=True)
class Before:
    """What a run that goes on left: the state that was saved last, the facts of its weights."""

    state: State
    facts: Facts

    @classmethod
    def read(cls, folder: Path) -> "Before":
        """Raises `ModelError` where there is no state."""
        return cls.of(settled(folder), folder)

    @classmethod
    def of(cls, state: State, folder: Path) -> "Before":
        """Of a state, which has the facts in it but for those of earlier versions."""
        if "facts" in state:
            return cls(state, Facts.from_json(state["facts"], folder / STATE))
        return cls(state, checkpoint.read_facts(folder / LAST))

    @property
    def epochs(self) -> int:
        """Those that were trained."""
        return int(self.state["epochs"])

    @property
    def so_far(self) -> EpochSoFar | None:
        """What the epoch in progress had come to; None where the state is of the end of one."""
        values = self.state.get("so_far")
        return None if values is None else EpochSoFar(**values)


class Run:
    """A run folder that this process trains in.

    `epochs` are those that it was trained for so far, `log` has a line for each, and `best` has the
    figures of the best one; `so_far` is what the next epoch has come to. As a context it leaves
    nothing of a start that failed, unless the failure can be replayed.
    """

    def __init__(
        self,
        claimed: Claim,
        training: Training,
        before: Before | None = None,
        *,
        restart: bool = False,
        from_python: Sequence[str] = (),
    ):
        """`before` is of a run that goes on; a `restart` of one that has no state yet.

        `from_python` are the parts that no setting names, since whoever called made them.
        """
        self.from_python = list(from_python)
        self.claim = claimed
        self.folder = claimed.folder
        self.training = training
        self.before = before
        self.began_before = restart or before is not None
        state: State = {"epochs": 0, "best": None, "log": []} if before is None else before.state
        self.epochs: int = state["epochs"]
        self.best: Result | None = state["best"]
        self.log: list[Line] = state["log"]
        so_far = None if before is None else before.so_far
        self.so_far = so_far or EpochSoFar(self.epochs)
        self.described = False
        self.other_data = False
        self.written: list[str] = []  # before the first epoch has ended
        # Another run's folder: its files are replaced when everything of this one is made.
        self.replaces = not self.began_before and any(
            (self.folder / name).is_file() for name in (STATE, BEST)
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = isinstance(error, Exception)  # what was interrupted can be continued
        if isinstance(error, NotFiniteError) and self.described:
            return  # it can be replayed
        is_new = not self.began_before and not self.replaces
        if failed and is_new and not (self.folder / STATE).is_file():
            self._clear()

    # Before the first step

    def begin(self, train: Split, val: Split, *, other_data: bool, described: bool) -> None:
        """Write what is known before anything is made; `described`: settings and environment too.

        Raises `DataError` for data other than those that the run began with, unless `other_data`.
        """
        config, classes = self.training.config, self.training.classes
        if self.before is not None and self.before.facts.classes != list(classes):
            known = ", ".join(self.before.facts.classes)
            raise DataError(
                f"{self.folder} was trained on {known}; the data has {', '.join(classes)}"
            )
        if config.epochs < self.epochs:
            raise UsageError(
                f"{self.folder} has been trained for {self.epochs} epochs; "
                "give at least as many to continue"
            )
        with writing(self.folder / "state"):
            (self.folder / "state").mkdir(exist_ok=True)
        self.described = described
        self.other_data = other_data
        if not self.replaces:
            self._write_start(train, val)

    def _write_start(self, train: Split, val: Split) -> None:
        """Write which samples, settings and environment the run starts with."""
        self.written += [fingerprint.RECORD, fingerprint.NAMES]
        splits = {"train": train, "val": val}
        begun = self.before is not None
        others = fingerprint.check(self.folder, splits, self.epochs, self.other_data, begun=begun)
        if others:  # an epoch over these has an order of its own
            self.so_far = EpochSoFar(self.epochs)
        if self.before is None:
            self._forget()
        if self.described:
            self._describe(self.training.config, self.other_data)

    def record(self, train: Split, val: Split, contents: tuple[Contents, Contents]) -> None:
        """Write split.json, and the log as the state has it; from now on batches may be drawn."""
        if self.replaces:
            self._write_start(train, val)
        self._write(RECORD, to_json(record(train, val, contents)) + "\n")
        self._write(LOG, "".join(to_json(line) + "\n" for line in self.log))
        self.written += TRAINING_BATCHES

    def _forget(self) -> None:
        """Remove what an earlier run in this folder left to be resumed."""
        (self.folder / STATE).unlink(missing_ok=True)
        for folder in (self.folder / "state").glob("next-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _describe(self, config: TrainConfig, other_data: bool) -> None:
        """Write environment.json and config.yaml; the second is there only if the first is.

        Of a run that began before, the first stays that of its start, by which paths in the second
        are relative.
        """
        environment: Environment = environment_of(self.folder) if self.began_before else {}
        environment = environment or environment_now()
        if self.from_python and not self.began_before:
            environment["from_python"] = self.from_python
        is_new = not self.began_before or other_data or "data_path" not in environment
        if is_new and is_there(config.data):
            place = os.path.abspath(config.data)
            environment |= {
                "data_path": place,
                "data_from_run": self._seen_from_here(place),
            }
        if is_new and config.images is not None:
            environment["images_from_run"] = self._seen_from_here(config.images)
        if is_new and config.masks is not None:
            environment["masks_from_run"] = self._seen_from_here(config.masks)
        self._write(ENVIRONMENT, to_json(environment, indent=2) + "\n")
        self._write(CONFIG, config_text(config))

    def _seen_from_here(self, place: str) -> str:
        """A path as it is from the run folder, so that it holds when both move together."""
        return os.path.relpath(os.path.abspath(place), self.folder)

    def _write(self, name: str, text: str) -> None:
        self.written.append(name)
        write_text(self.folder / name, text)

    def _clear(self) -> None:
        """Remove what was written into the folder of a run that failed in its first epoch.

        All of it where the folder was made for the run; else what this run wrote, for something of
        others may be there. Nothing where the folder is gone, or belongs to another run by now.
        """
        try:
            self.claim.check()
        except WriteError:
            return
        if self.claim.made:
            _empty(self.folder)
            return
        for name in self.written:
            (self.folder / name).unlink(missing_ok=True)
        for name in ("state", "plots"):
            with suppress(OSError):  # there is something else in it, or it is not there
                (self.folder / name).rmdir()

    def again(self, epoch: int, step: int) -> str:
        """How to look at a step that broke, both from 1: by a command, where it knows all parts."""
        command = f"fleetnet replay {shlex.quote(str(self.folder))} --epoch {epoch} --step {step}"
        if not self.described or self.from_python:
            command = f"fleetnet.replay(model, train, config, run, {step}, epoch={epoch})"
        return f". To see where it broke: {command}"

    # Epoch by epoch

    def stopped_early(self) -> bool:
        """Whether the settings say that it is over before all epochs were trained."""
        return stopped_early(self.log, self.best, self.training.config.patience)

    @contextmanager
    def staging(self, needed: Callable[[], int]) -> Iterator[None]:
        """While it lasts, the files of the next epoch are written; all go again if one fails.

        They need so many bytes, which is said where the disk is full.
        """
        staged = _staged(self.folder, self.epochs + 1)
        with self._fitting(f"the files of epoch {self.epochs + 1}", needed):
            try:
                yield
            except Exception:  # such as a full disk: what is half there would take the space
                shutil.rmtree(staged, ignore_errors=True)
                raise

    @contextmanager
    def _fitting(self, what: str, needed: Callable[[], int]) -> Iterator[None]:
        """Say how much space something needs that does not fit; nothing of it is left by then."""
        try:
            yield
        except DiskFull as error:
            free = shutil.disk_usage(self.folder).free
            raise DiskFull(
                f"{error}. {what} need about {needed():,} bytes in {self.folder} beside what is "
                f"there, and {free:,} are free"
            ) from error

    def save(self, name: str, model: nn.Module, figures: Result, form: str) -> None:
        """Write a checkpoint of the next epoch; `form` is that of its weights, "raw" or "ema"."""
        self.claim.check()
        checkpoint.save(
            _staged(self.folder, self.epochs + 1) / name,
            model,
            classes=self.training.classes,
            preprocess=self.training.preprocess,
            settings=self.training.config.to_dict(),
            metrics={**figures, WHICH_WEIGHTS: form},
            source=self.training.source,
            category_ids=self.training.category_ids,
        )

    def compare(self, result: Result, model: nn.Module, form: str) -> None:
        """Save a model as the best if it is, by the first figure; of nothing right, the last."""
        decisive = next(iter(result))
        is_better = (
            not self.best or not self.best[decisive] or result[decisive] > self.best[decisive]
        )
        if not is_better:
            return
        which = {"epoch": self.epochs + 1, WHICH_WEIGHTS: form}
        self.best = {**figures_of(result), **which}
        self._save_best(model, result, which)

    def _save_best(self, model: nn.Module, result: Result, which: Result) -> None:
        self.save(BEST, model, figures_of(result), which[WHICH_WEIGHTS])
        details = to_json(sealed({**result, **which}), ensure_ascii=False)
        write_text(_staged(self.folder, self.epochs + 1) / DETAILS, details + "\n")

    def save_state(self, model: nn.Module, state: State, line: Line) -> None:
        """Write what is needed to go on after the next epoch, of which `line` is for the log."""
        self.log.append(line)
        self._save_state(model, {**state, "epochs": self.epochs + 1, "so_far": None})

    def save_within(self, model: nn.Module, state: State, so_far: EpochSoFar) -> None:
        """Write what is needed to go on within the next epoch."""
        what = f"the weights and averages of step {so_far.step}"
        with self._fitting(what, lambda: checkpoint.size_of(state)):
            self._save_state(model, {**state, "epochs": self.epochs, "so_far": so_far.to_state()})
        so_far.kept = so_far.step

    def _save_state(self, model: nn.Module, state: State) -> None:
        self.claim.check()
        facts = checkpoint.facts(
            model,
            self.training.classes,
            self.training.preprocess,
            settings=self.training.config.to_dict(),
            source=self.training.source,
            category_ids=self.training.category_ids,
        )
        of_run = {"best": self.best, "log": self.log, "facts": facts.to_json()}
        checkpoint.save_state(self.folder / "state", {**of_run, **state})

    def deliver(self) -> None:
        """Move the files of the epoch whose state was saved to their places: it is over."""
        self.epochs += 1
        self.so_far = EpochSoFar(self.epochs)
        _deliver(self.folder, self.epochs)
        append_line(self.folder / LOG, to_json(self.log[-1]))
        self.claim.check()


def _empty(folder: Path) -> None:
    """Remove all that is in a claimed folder but the claim."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != CLAIM:
            entry.unlink()


def environment_now() -> Environment:
    """Where and by what a run is started."""
    versions = {"fleetnet": __version__}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # a fork of another name
            versions[name] = metadata.version(name)
    environment: Environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv,
        "folder": os.getcwd(),
        "versions": versions,
    }
    if (begun_by := launcher()) is not None:
        environment["launcher"] = begun_by
    return environment


# What stays in the folder ----------------------------------------------------------------------


def _staged(run: Path, epochs: int) -> Path:
    return run / "state" / f"next-{epochs}"


def _deliver(run: Path, epochs: int) -> None:
    """Move the checkpoints of an epoch that the state knows to their places."""
    folder = _staged(run, epochs)
    for path in sorted(folder.iterdir()):
        with writing(run / path.name):
            path.replace(run / path.name)
    folder.rmdir()


def settled(run: Path) -> State:
    """The state of a run, after its files were made those of the state; epochs in it count from 1.

    "epochs" are those trained, "log" is a line of each. Raises `ModelError` where there is no
    state.
    """
    state = state_of(run)
    for folder in (run / "state").glob("next-*"):
        if folder == _staged(run, state["epochs"]):
            _deliver(run, state["epochs"])
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return state


def state_of(run: Path) -> State:
    """The state of a run, whose files stay as they are; epochs in it count from 1."""
    state = checkpoint.load_state(run / "state")
    if "epochs" not in state:  # as version 0.1 wrote it
        epochs = state.pop("epoch") + 1
        best = (
            None
            if state["best"] is None
            else {**state["best"], "epoch": state["best"]["epoch"] + 1}
        )
        log = [line for line in read_log(run) if line["epoch"] <= epochs]
        state |= {"epochs": epochs, "best": best, "log": log}
    return state


def begun_epochs(state: State) -> int:
    """Those of a state that were trained, and one that has begun."""
    return int(state["epochs"]) + (state.get("so_far") is not None)


def best_of(run: Path, best: Result) -> Result:
    """The best result that the state of a run knows, with what DETAILS has of each class.

    The figures alone where the file is missing, damaged or of another epoch (a kill between the
    two).
    """
    try:
        details = from_json(read_text(run / DETAILS, HISTORY))
        check_own_hash(details, run / DETAILS)
        details.pop(OWN_HASH, None)
        of_best = (details["epoch"], details["weights"]) == (best["epoch"], best["weights"])
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # a wrong hash is a ValueError too
        return best
    return {**details, **best} if of_best else best
