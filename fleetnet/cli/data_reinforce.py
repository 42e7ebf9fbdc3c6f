"""`fleetnet data reinforce`: a teacher is asked once, and students learn from its stored answers."""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..training.config import TrainConfig
from ._data import SHOWN
from ._settings import About
from ._show import Counting, say, table, tell
from ._starting import model_of, splits_of, training_settings

if TYPE_CHECKING:
    from ..training.reinforce import Reinforced

EXAMPLE = (
    "fleetnet data reinforce --model fasternet_t0 --data photos/ --teacher runs/large --size 128 "
    "--epochs 30 --out answers/"
)


@dataclass(frozen=True, kw_only=True)
class DataReinforce:
    out: str = field(
        metadata=About(help="folder for the answers; where some are missing, these are made")
    )
    recipe: str | None = field(
        default=None,
        metadata=About(
            help="settings by name (fleetnet recipes), or a YAML file of them; flags win over it"
        ),
    )
    # Only what was given, as of `train`.
    training: Mapping[str, object] = field(
        default_factory=dict,
        metadata=About(help="settings of the training that will be", given_of=TrainConfig),
    )


def run(settings: DataReinforce) -> dict[str, object]:
    config = training_settings(settings.training, settings.recipe, EXAMPLE)
    if config.teacher is None:
        raise UsageError(f"--teacher is missing; example: {EXAMPLE}")

    from ..files import check_writable
    from ..tasks import split_name
    from ..training.checks import check_device, check_settings
    from ..training.reinforce import reinforce
    from ..training.setup import with_values

    task = split_name(config.model)[0]
    check_settings(config, task, settings.training)
    check_device(config)
    check_writable(settings.out, "--out", folder=True)
    train, _ = splits_of(config, task)
    say(f"train: {len(train.samples)} images, {len(train.classes)} classes")
    model = model_of(config, train.classes, config.weights)
    config, why = with_values(config, train)
    if why:
        say(why)
    progress = Counting("asking the teacher")
    try:
        made = reinforce(model, train, config, settings.out, progress=progress, on_wait=say)
    finally:
        progress.close()
    _show(made)
    return dataclasses.asdict(made)


def _show(made: "Reinforced") -> None:
    before = made.epochs - made.made
    rows = [[made.epochs, before, made.samples, made.record, f"{made.bytes / 1e6:.1f}"]]
    columns = ["epochs", "of which were there", "samples each", "bytes each", "MB"]
    table(f"{made.folder}: answers of {made.teacher}", columns, rows)
    for line in made.skipped[:SHOWN]:
        tell(f"unreadable: {line}")
    if len(made.skipped) > SHOWN:
        tell(f"and {len(made.skipped) - SHOWN} more (--json has all)")
    tell(f"next: fleetnet train with the same settings and --teacher {shlex.quote(made.folder)}")
