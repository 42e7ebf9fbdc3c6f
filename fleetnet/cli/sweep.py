"""`fleetnet sweep`: several endings of one training, or several settings, from the state of one run."""

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from ..errors import FleetnetError, UsageError, suggest
from ..training.config import KEYS, TrainConfig, plain_yaml
from ..training.folder import CONFIG, STATE
from ._arguments import check_types
from ._launching import alone
from ._resuming import splits_to_continue, to_branch
from ._settings import About
from ._show import say, table

EXAMPLE = (
    'fleetnet sweep --trunk runs/trunk --set "schedule=wsd epochs=35,40 cooldown_epochs=5" '
    "--run runs/endings"
)
RECORD = "sweep.json"  # which state all go on from, and which branches came to their end


@dataclass(frozen=True, kw_only=True)
class Sweep:
    trunk: str = field(
        metadata=About(help="the run that all go on from, as its last state left it")
    )
    set: list[str] = field(
        metadata=About(
            help='settings of some branches, as "epochs=35,40 cooldown_epochs=5": a branch for '
            "each combination of the values; may be given several times",
            repeated=True,
            metavar="SETTINGS",
        )
    )
    run: str | None = field(
        default=None, metadata=About(help="folder of the branches", usual="TRUNK-sweep")
    )
    devices: int = field(
        default=1, metadata=About(help="processes that train each branch", kind=PositiveInt)
    )


@dataclass(frozen=True)
class Branch:
    """A run that goes on from the trunk."""

    settings: Mapping[str, object]  # those that are its own
    config: TrainConfig
    folder: Path
    otherwise: str  # in what a run planned so would have begun otherwise; "": in nothing

    @property
    def name(self) -> str:
        return self.folder.name


def run(settings: Sweep) -> dict[str, object]:
    from ..training.branching import branch

    trunk = Path(settings.trunk)
    folder = Path(settings.run) if settings.run else trunk.with_name(f"{trunk.name}-sweep")
    branches = _branches(trunk, settings.set, folder)
    finished = _finished(trunk, folder)
    for one in branches:
        if one.otherwise:
            say(f"{one.name}: not as if it had been planned so, for {one.otherwise}")
        if not (one.folder / CONFIG).is_file():
            branch(trunk, one.folder, one.config)
    outcomes = []
    for one in branches:
        outcomes.append(_trained(one, finished, settings.devices))
        _record(trunk, folder, finished)
    rows = sorted(map(_row, branches, outcomes), key=_rank)
    _show(rows, folder)
    told: dict[str, object] = {"run": str(folder), "trunk": str(trunk), "branches": rows}
    if any(outcomes):
        told["exit_code"] = FleetnetError.exit_code
    return told


# Before anything is trained -----------------------------------------------------------------------


def _branches(trunk: Path, groups: Sequence[str], folder: Path) -> list[Branch]:
    """What is asked for, all of it checked."""
    from ..tasks import split_name
    from ..training.branching import check_branch, otherwise
    from ..training.checks import check_settings
    from ..training.run import state_of
    from ..training.setup import order_of, steps_of

    before = to_branch(trunk)
    state = state_of(trunk)
    task = split_name(before.model)[0]
    train, _ = splits_to_continue(before, task, trunk, {})
    steps = steps_of(before, order_of(before, train))
    branches: list[Branch] = []
    for settings in itertools.chain.from_iterable(map(_combinations, groups)):
        config = dataclasses.replace(before, **dict[str, Any](settings))
        check_branch(state, before, config)
        check_settings(config, task, settings)
        name = "+".join(f"{key}={value}" for key, value in settings.items())
        if name not in [one.name for one in branches]:
            differs = otherwise(state, before, config, steps)
            branches.append(Branch(settings, config, folder / name.replace("/", "-"), differs))
    return branches


def _combinations(group: str) -> Iterator[dict[str, object]]:
    """Of "epochs=35,40 cooldown_epochs=5" the settings of each branch."""
    import yaml

    keys, values = [], []
    for word in shlex.split(group):
        key, equal, text = word.partition("=")
        if not equal or not text:
            raise UsageError(f"--set has {word!r}; allowed: KEY=VALUE or KEY=VALUE,VALUE,...")
        keys.append(key.replace("-", "_"))
        values.append([yaml.load(part, plain_yaml()) for part in text.split(",")])
    _check_keys(keys)
    for combination in itertools.product(*values):
        chosen = dict(zip(keys, combination, strict=True))
        yield check_types(TrainConfig, chosen, f"--set {group!r}")


def _check_keys(keys: Sequence[str]) -> None:
    from ..training.branching import BRANCHING

    if not keys:
        raise UsageError("--set is empty; allowed: KEY=VALUE or KEY=VALUE,VALUE,...")
    for key in keys:
        if key not in KEYS:
            raise UsageError(f"--set has {key!r}: {suggest(key, list(BRANCHING), 'setting')}")


def _finished(trunk: Path, folder: Path) -> list[str]:
    """The branches that came to their end before; `UsageError` where they are of another trunk."""
    from ..files import check_writable
    from ..reading import SMALL, from_json, read_text

    check_writable(folder, "--run", folder=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).is_file():
        _record(trunk, folder, [])
    before = from_json(read_text(folder / RECORD, SMALL))
    if before["state"] != _state_of(trunk):
        raise UsageError(
            f"{folder} has branches of {before['trunk']} as it was then, and {trunk} is another "
            "run or was trained further: give another --run"
        )
    finished: list[str] = before["finished"]
    return finished


def _record(trunk: Path, folder: Path, finished: list[str]) -> None:
    from ..files import write_text
    from ..reading import to_json

    now = {"trunk": str(trunk.resolve()), "state": _state_of(trunk), "finished": finished}
    write_text(folder / RECORD, to_json(now, indent=1) + "\n")


def _state_of(trunk: Path) -> str:
    """What tells one state of a run from another."""
    from ..reading import hash_of

    return hash_of([trunk / STATE])


# Training -----------------------------------------------------------------------------------------


def _trained(branch: Branch, finished: list[str], devices: int) -> str | None:
    """Train a branch to its end unless it is among the `finished`; why it failed, in words."""
    if branch.name in finished:
        say(f"{branch.name}: finished before")
        return None
    say(f"{branch.name}: begins")
    words = ["train", "--resume", str(branch.folder)]
    try:
        code = alone([*words, "--devices", str(devices)] if devices > 1 else words)
    except FleetnetError as error:
        return str(error)
    if code:
        return f"exit code {code}"
    finished.append(branch.name)
    return None


# What came of it ----------------------------------------------------------------------------------


def _row(branch: Branch, failure: str | None) -> dict[str, Any]:
    from ..training.run import state_of

    state = state_of(branch.folder)
    best = state["best"] or {}
    return {
        "name": branch.name,
        "run": str(branch.folder),
        "settings": dict(branch.settings),
        "epochs": state["epochs"],
        "as_planned": not branch.otherwise,
        "best": best,
        "failed": failure,
    }


def _figure(row: Mapping[str, Any]) -> tuple[str, float | None]:
    """The figure by which the best epoch of a run is chosen."""
    return next(iter(row["best"].items()), ("best", None))


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    """The best first, then what failed."""
    figure = _figure(row)[1]
    return row["failed"] is not None, -(figure or 0.0)


def _show(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    metric = next((_figure(row)[0] for row in rows if row["best"]), "best")
    lines = []
    for row in rows:
        figure = _figure(row)[1]
        shown = "-" if figure is None else f"{figure:.2f}"
        lines.append(
            [row["name"], row["epochs"], shown, row["best"].get("epoch", "-"), row["failed"] or ""]
        )
    table(f"Branches in {folder}", ["branch", "epochs", metric, "of epoch", "failed"], lines)
