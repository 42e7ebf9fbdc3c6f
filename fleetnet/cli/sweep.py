"""`fleetnet sweep`: several endings of one training, or several settings, from the state of one run."""

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from ..errors import FleetnetError, UsageError
from ..training.config import KEYS, TrainConfig, plain_yaml
from ..training.folder import CONFIG, STATE
from ._arguments import check_types
from ._launching import alone
from ._resuming import to_branch
from ._settings import About
from ._show import say, table

EXAMPLE = (
    'fleetnet sweep --trunk runs/trunk --set "schedule=wsd epochs=35,40 cooldown_epochs=5" '
    "--run runs/endings"
)
REPORT = "report.html"  # which a run writes last
RECORD = "sweep.json"


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

    @property
    def name(self) -> str:
        return self.folder.name


def run(settings: Sweep) -> dict[str, object]:
    from ..training.branching import branch

    trunk = Path(settings.trunk)
    folder = Path(settings.run) if settings.run else trunk.with_name(f"{trunk.name}-sweep")
    branches = _branches(trunk, settings.set, folder)
    _check_trunk(trunk, folder)
    for one in branches:
        if not (one.folder / CONFIG).is_file():
            branch(trunk, one.folder, one.config)
    outcomes = [_trained(one, settings.devices) for one in branches]
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
    from ..training.branching import check_branch
    from ..training.checks import check_settings
    from ..training.run import state_of

    before = to_branch(trunk)
    state = state_of(trunk)
    branches: list[Branch] = []
    for settings in itertools.chain.from_iterable(map(_combinations, groups)):
        config = dataclasses.replace(before, **dict[str, Any](settings))
        check_branch(state, before, config)
        check_settings(config, split_name(config.model)[0], settings)
        name = "+".join(f"{key}={value}" for key, value in settings.items())
        if name not in [one.name for one in branches]:
            branches.append(Branch(settings, config, folder / name.replace("/", "-")))
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
    from ..errors import suggest
    from ..training.branching import BRANCHING

    if not keys:
        raise UsageError("--set is empty; allowed: KEY=VALUE or KEY=VALUE,VALUE,...")
    for key in keys:
        if key not in KEYS:
            raise UsageError(f"--set has {key!r}: {suggest(key, list(BRANCHING), 'setting')}")


def _check_trunk(trunk: Path, folder: Path) -> None:
    """Record which state all go on from; `UsageError` where it is another one than before."""
    from ..files import check_writable, write_text
    from ..reading import SMALL, from_json, hash_of, read_text, to_json

    check_writable(folder, "--run", folder=True)
    now = {"trunk": str(trunk.resolve()), "state": hash_of([trunk / STATE])}
    record = folder / RECORD
    if record.is_file():
        before = from_json(read_text(record, SMALL))
        if before != now:
            raise UsageError(
                f"{folder} has branches of {before.get('trunk')} as it was then, and {trunk} is "
                "another run or was trained further: give another --run"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(record, to_json(now) + "\n")


# Training -----------------------------------------------------------------------------------------


def _trained(branch: Branch, devices: int) -> str | None:
    """Train a branch to its end unless it came there before; why it failed, in words."""
    from ..training.branching import is_over
    from ..training.run import state_of

    if is_over(state_of(branch.folder), branch.config) and (branch.folder / REPORT).is_file():
        say(f"{branch.name}: finished before")
        return None
    say(f"{branch.name}: begins")
    words = ["train", "--resume", str(branch.folder)]
    try:
        code = alone([*words, "--devices", str(devices)] if devices > 1 else words)
    except FleetnetError as error:
        return str(error)
    return f"exit code {code}" if code else None


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
