"""A run that goes on in several ways: each branch is a run folder at the state of the trunk.

A branch goes on by `fleetnet train --resume` as any run does. Where its settings say the same of
the trunk's steps as the trunk's own did, it ends with the bits of a run planned so from the start.
"""

import dataclasses
import itertools
import os
import shutil
from pathlib import Path

from ..errors import UsageError
from ..files import filling, write_text
from ..reading import to_json
from .claims import claim
from .config import TrainConfig
from .fingerprint import NAMES, RECORD
from .folder import (
    AVERAGE,
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
from .log import State
from .run import begun_epochs, settled
from .schedule import Schedule

# What a run goes on from, and what describes it; pictures and pages are those of its end.
COPIED = (STATE, NAMES, BEST, DETAILS, LAST, AVERAGE, LOG, RECORD, "split.json")
# Settings that no saved state and no order of the samples depends on.
BRANCHING = (
    "epochs",
    "schedule",
    "cooldown_epochs",
    "step_epochs",
    "step_factor",
    "lr",
    "min_lr",
    "weight_decay",
    "decay_end",
    "clip",
    "agc",
    "label_smoothing",
    "focal",
    "augment",
    "mosaic",
    "plain_epochs",
    "scale",
    "flip",
    "color_jitter",
    "auto_augment",
    "erasing",
    "mixup",
    "cutmix",
    "multi_scale",
    "patience",
)

# Those that say nothing of a step but its learning rate and weight decay.
BY_STEP = (*BRANCHING[: BRANCHING.index("clip")], "plain_epochs", "patience")


def branch(trunk: Path, folder: Path, config: TrainConfig) -> None:
    """Make a run folder that goes on from the state of a trunk with other settings.

    It is there whole or not at all. Raises `UsageError` where another run goes on in the trunk.
    """
    with claim(trunk), filling(folder, "sweep") as made:
        settled(trunk)  # its files are those of its state
        for name in COPIED:
            if (trunk / name).is_file():
                (made / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(trunk / name, made / name)
        environment = _moved(environment_of(trunk), trunk, folder)
        write_text(made / ENVIRONMENT, to_json(environment, indent=2) + "\n")
        write_text(made / CONFIG, config_text(config))


def _moved(environment: Environment, trunk: Path, folder: Path) -> Environment:
    """Where the data are, seen from another folder."""
    moved = environment.copy()
    for key in ("data_from_run", "images_from_run", "masks_from_run"):
        place = environment.get(key)
        if isinstance(place, str):
            there = os.path.abspath(os.path.join(trunk, place))
            moved[key] = os.path.relpath(there, os.path.abspath(folder))
    return moved


def check_branch(state: State, before: TrainConfig, config: TrainConfig) -> None:
    """`UsageError` for settings by which the trunk would have been trained otherwise, or too long.

    `state` is that of the trunk, `before` are its settings.
    """
    others = [name for name in _changed(before, config) if name not in BRANCHING]
    if others:
        raise UsageError(
            f"{', '.join(others)} cannot change after the start of a run; allowed: "
            f"{', '.join(BRANCHING)}"
        )
    reached = begun_epochs(state)
    if config.epochs <= state["epochs"] or config.epochs < reached:
        raise UsageError(
            f"epochs is {config.epochs}, and the trunk has been trained for {reached}: give more"
        )
    begins = config.epochs - config.cooldown_epochs
    if config.schedule == "wsd" and reached > begins:
        raise UsageError(
            f"with epochs {config.epochs} and cooldown_epochs {config.cooldown_epochs:g} the rate "
            f"falls from epoch {begins:g} on, and the trunk has been trained for {reached}: give "
            "more epochs, or a shorter cooldown"
        )
    ended = before.epochs - before.cooldown_epochs
    if before.schedule == "wsd" and reached > ended:
        raise UsageError(
            f"the rate of the trunk has fallen from epoch {ended:g} on, and it has been trained "
            f"for {reached}: a trunk is a run that is stopped before, or one of --schedule constant"
        )


def _changed(before: TrainConfig, config: TrainConfig) -> list[str]:
    """The names of the settings that differ."""
    names = [one.name for one in dataclasses.fields(TrainConfig)]
    return [name for name in names if getattr(config, name) != getattr(before, name)]


def otherwise(state: State, before: TrainConfig, config: TrainConfig, steps: int) -> str:
    """In what a run with a branch's settings would not have begun as the trunk; "": in nothing.

    An epoch has so many `steps`.
    """
    others = [name for name in _changed(before, config) if name not in BY_STEP]
    if others:
        return f"it changes {', '.join(others)}"
    so_far = state.get("so_far")
    reached = begun_epochs(state)
    if any(reached > one.epochs - one.plain_epochs for one in (before, config) if one.plain_epochs):
        return "its plain epochs are others"
    if state["epochs"] == before.epochs and before.epochs % before.eval_every:
        return f"it was evaluated after epoch {before.epochs}"
    last = (state["epochs"], 0 if so_far is None else so_far["step"])
    schedules = [Schedule(one, steps) for one in (before, config)]
    for epoch, step in itertools.product(range(reached), range(steps)):
        if (epoch, step) >= last:
            break
        group = step // config.accumulate
        rates = [schedule.rate(epoch, group) for schedule in schedules]
        decays = [one.config.weight_decay * one.decay(epoch, group) for one in schedules]
        for what, (old, new) in {"rate": rates, "weight decay": decays}.items():
            if old != new:
                where = f"step {step + 1} of epoch {epoch + 1}"
                return f"its {what} in {where} was {old:.6g} and would have been {new:.6g}"
    return ""
