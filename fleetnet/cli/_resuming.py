"""What `fleetnet train --resume` goes on with: the settings of a run, its data, and where they are now."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ModelError, UsageError, suggest
from ..reading import SMALL, links_out, read_text
from ..training.config import TrainConfig, read_recipe
from ..training.folder import CONFIG, HASHED, STATE, environment_of
from ._arguments import check_types, flag
from ._show import is_follower, say

if TYPE_CHECKING:
    from ..data import Split

FIRST_KEYS = (  # of config.yaml, from the first version on
    "model",
    "data",
    "format",
    "weights",
    "epochs",
    "size",
    "batch_size",
    "accumulate",
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "warmup_epochs",
    "label_smoothing",
    "clip",
    "ema",
    "drop_path",
    "output_stride",
    "options",
    "head_lr",
    "norm",
    "augment",
    "mosaic",
    "plain_epochs",
    "multi_scale",
    "scale",
    "flip",
    "color_jitter",
    "auto_augment",
    "erasing",
    "mixup",
    "cutmix",
    "crop",
    "precision",
    "channels_last",
    "device",
    "threads",
    "workers",
    "cache",
    "eval_every",
    "seed",
)
# of a run that began in Python
CONTINUE_THERE = "continue it from there, with fit(..., resume=True)"
REPLAY_THERE = "replay it from there, with fleetnet.replay"
AFTER_RESUME = (  # what may change
    "epochs",
    "device",
    "threads",
    "workers",
    "cache",
    "merge_branches",
    "evaluate",
    "eval_every",
    "patience",
    "timeout",
    "log",
    "save_every",
    "data",
    "format",
    "images",
    "masks",
)


def resumed(run: Path, typed: Mapping[str, object]) -> TrainConfig:
    """The settings of an earlier run, with those `typed` that may change, and where its folders apart are now."""
    config = _settings(run, typed)
    return dataclasses.replace(
        config,
        images=_folder_apart(run, "images", config.images, typed),
        masks=_folder_apart(run, "masks", config.masks, typed),
    )


def _settings(run: Path, typed: Mapping[str, object]) -> TrainConfig:
    """The settings of an earlier run, with those that may change; prints the schedule where it is new.

    A run that stopped before its first epoch ended has no state, and starts anew with the same
    settings.
    """
    from ..training.claims import refuse_if_claimed

    _check_folder(run)
    _check_changes(typed)
    if not is_follower():  # the first process claims the folder for all
        refuse_if_claimed(run)
    before = _read_config(run)
    config = _with_changes(run, before, typed, CONTINUE_THERE)
    if not (run / STATE).is_file():
        say(f"{run} stopped before its first epoch ended: it starts from the beginning")
        return config
    if "epochs" in typed:
        _check_epochs(run, before, config)
    return config


def _check_epochs(run: Path, before: TrainConfig, config: TrainConfig) -> None:
    """`UsageError` unless a run goes on for more epochs than it was trained for; says how."""
    from ..training.run import begun_epochs, state_of
    from ..training.schedule import continued

    state = state_of(run)
    trained = state["epochs"]
    if config.epochs <= trained:
        raise UsageError(
            f"{run} has been trained for {trained} epochs; --epochs is {config.epochs}, give "
            "more to continue"
        )
    if config.epochs != before.epochs:
        say(continued(before, config, begun_epochs(state)))


def to_branch(trunk: Path) -> TrainConfig:
    """The settings of a run that others go on from; `UsageError` where it has no state."""
    from ..training.claims import refuse_if_claimed

    _check_folder(trunk)
    refuse_if_claimed(trunk)
    config = _with_changes(trunk, _read_config(trunk), {}, CONTINUE_THERE)
    if not (trunk / STATE).is_file():
        raise UsageError(
            f"{trunk} stopped before its first state was saved: nothing goes on from it"
        )
    return config


def to_replay(run: Path, typed: Mapping[str, object]) -> TrainConfig:
    """The settings of a run that is only read, with those `typed` that change no step of it."""
    _check_there(run)
    config = _with_changes(run, _read_config(run), typed, REPLAY_THERE)
    return dataclasses.replace(
        config,
        images=_folder_apart(run, "images", config.images, typed),
        masks=_folder_apart(run, "masks", config.masks, typed),
    )


def _with_changes(
    run: Path, before: TrainConfig, typed: Mapping[str, object], there: str
) -> TrainConfig:
    """The settings of a run with those `typed`; `there` says what to do where they do not say all."""
    config = dataclasses.replace(before, **dict[str, Any](typed))
    if not config.data:
        raise UsageError(
            f"{run} was trained from Python, on data that no setting names: say where they are "
            f"with --data, or {there}"
        )
    _check_parts(run, there)
    return config


def _check_folder(run: Path) -> None:
    """`UsageError` if there is no run to continue, `ModelError` if it would be written somewhere else."""
    _check_there(run)
    if out := links_out(run):
        raise ModelError(
            f"{out[0]} is a link that leads out of the run folder, and --resume would write there: "
            "replace it by what it stands for, or delete it"
        )


def _check_there(run: Path) -> None:
    """`UsageError` if there is no run."""
    if not (run / CONFIG).is_file():
        near = (
            [str(p.parent) for p in run.parent.glob(f"*/{CONFIG}")] if run.parent.is_dir() else []
        )
        nearest = f": {suggest(str(run), near)}" if near else ""
        raise UsageError(f"no run in {str(run)!r} ({CONFIG} is missing){nearest}")


def _check_changes(given: Mapping[str, object]) -> None:
    """`UsageError` for a flag beside --resume that would make the run another one."""
    for key in given:
        if key not in AFTER_RESUME:
            allowed = ", ".join(AFTER_RESUME)
            raise UsageError(
                f"--resume continues exactly, so {flag(key)} cannot change; allowed: {allowed}"
            )
    for key in ("format", "images", "masks"):
        if key in given and "data" not in given:
            raise UsageError(
                f"with --resume, --{key} goes with --data: it says how the data named anew are to "
                "be read"
            )


def _read_config(run: Path) -> TrainConfig:
    """The settings in config.yaml of a run, all of them; `ModelError` for a file that is damaged or not whole."""
    path = run / CONFIG
    try:
        text = read_text(path, SMALL)
        settings = check_types(TrainConfig, read_recipe(path), str(path))
        # Runs of before there were these settings evaluated both, and chose the better one; and
        # computed sums branch by branch.
        config = TrainConfig(**{"evaluate": "both", "merge_branches": "off", **settings})
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (UsageError, ValueError) as error:
        raise ModelError(f"{path} is damaged, so the run cannot be continued: {error}") from error
    body, mark, hashed = text.rpartition(HASHED)
    if mark and hashlib.sha256(body.encode()).hexdigest() != hashed.strip():
        raise ModelError(
            f"{path} is not as the run wrote it, and --resume continues exactly: undo the change, "
            "or delete its last line to go on with what it says"
        )
    if absent := [key for key in FIRST_KEYS if key not in settings]:
        raise ModelError(
            f"{path} is only a part of what the run wrote: it lacks {', '.join(absent[:5])}"
        )
    return config


def _check_parts(run: Path, there: str) -> None:
    """`UsageError` for a run that was begun from Python with something that no setting names."""
    parts = environment_of(run).get("from_python", [])
    own = [part for part in ("objective", "order", "augmentation") if part in parts]
    if own:
        raise UsageError(
            f"{run} was trained from Python with its own {' and '.join(own)}, which no setting "
            f"names: {there}"
        )
    if parts and not (run / STATE).is_file():
        raise UsageError(
            f"{run} was begun from Python and stopped before its first epoch ended, and its model "
            "was made there: begin it there again"
        )


def splits_to_continue(
    config: TrainConfig, task: str, run: Path, typed: Mapping[str, object]
) -> "tuple[Split, Split]":
    """Train and val of a run that goes on: those that it began with, unless `typed` now."""
    from .. import data, tasks
    from ..data._names import by_name
    from ..data._record import to_continue

    place = _place(run, config.data, "data" in typed)
    elsewhere = data.Places(config.images, config.masks)
    train, val = to_continue(place, config.format, tasks.find(task).TARGET, run, elsewhere)
    return train, by_name(val, train.classes, "the training data")


def _place(run: Path, given: str, anew: bool) -> str:
    """Where the data of a run are: as named with --data, else where they were, also from another working folder.

    They may have moved together with the run. Raises `DataError` where they are not.
    """
    from ..data import is_there

    path = environment_of(run).get("data_path")
    if anew or path is None:  # of a version that kept no record, or generated
        return given
    with_run = os.path.normpath(run / environment_of(run).get("data_from_run", "."))
    for place in (path, with_run):
        if is_there(place):
            return place
    raise DataError(
        f"the data of {run} were at {path}, and are not there: say where they are now with --data"
    )


def _folder_apart(
    run: Path, name: str, folder: str | None, typed: Mapping[str, object]
) -> str | None:
    """Where a run's images or masks are that lie apart from their annotations.

    What is typed now is meant from here. What the run began with is looked for from the folder that
    it began in, and beside the run, with which it may have moved. It does not go with other data.
    The path is absolute: the run may go on from a third folder.
    """
    if folder is None:
        return None
    if name in typed:
        return os.path.abspath(folder)
    if "data" in typed:
        say(f"--{name} {folder} of the run is not used with other data: give it again if it is")
        return None
    with_run = environment_of(run).get(f"{name}_from_run")
    places = [_seen_from(run, folder)]
    if isinstance(with_run, str):
        places.append(os.path.normpath(run / with_run))
    for place in places:
        if os.path.exists(place):
            return os.path.abspath(place)
    raise DataError(
        f"the {name} of {run} were in {places[0]}, and are not there: say where they are now with "
        f"--{name}"
    )


def starting_weights(config: TrainConfig, run: Path | None) -> str | None:
    """Where the weights are that the settings name, also from another working folder than that of the `run`."""
    if run is None or config.weights is None:
        return config.weights
    return _seen_from(run, config.weights)


def _seen_from(run: Path, path: str) -> str:
    """A path as the settings of a run have it, seen from the working folder that the run began in, if it is there."""
    there = Path(environment_of(run).get("folder", "."), path)
    return str(there) if there.exists() else path
