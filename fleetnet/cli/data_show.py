"""`fleetnet data show`: a sheet of samples as a training would see them, with their annotations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from jsonargparse.typing import PositiveInt

from ..errors import UsageError
from ..training.config import SEEN, TrainConfig
from ._data import SHEETS, SHOWN, names_to_show, task_of
from ._settings import About, switch
from ._show import say, table
from ._starting import part_of_training

EXAMPLE = "fleetnet data show --data photos/ --model yolo --out sheet.png"
READ = (  # the settings of a training that decide what its network sees
    "format",
    "images",
    "masks",
    "channels",
    "size",
    "interpolation",
    "normalize",
    "channel_order",
    "scale_values",
    *SEEN,
)


@dataclass(frozen=True, kw_only=True)
class DataShow:
    data: str = field(metadata=About(help="folder, list or annotation file of images, or `shapes`"))
    model: str | None = field(
        default=None,
        metadata=About(
            help="the model that is to be trained, or its task alone, as yolo",
            usual="one that learns from the annotations that there are",
        ),
    )
    split: str = field(default="train", metadata=About(help="train, val, test or all"))
    count: int = field(default=16, metadata=About(help="samples on the sheet", kind=PositiveInt))
    out: str = field(default="sheet.png", metadata=About(help="the sheet, a PNG or JPEG file"))
    plain: bool = switch("each whole picture with its annotation beside it, as it is on disk")
    training: Mapping[str, object] = field(
        default_factory=dict,
        metadata=About(help="settings of the training", given_of=part_of_training(READ)),
    )


def run(settings: DataShow) -> dict[str, object]:
    from .. import data, tasks
    from ..files import check_writable
    from ..training.checks import check_settings
    from ..training.preview import preview

    file = Path(settings.out)
    if file.suffix.lower() not in SHEETS:
        raise UsageError(f"--out is {settings.out!r}; allowed: a name that ends in {_ends()}")
    check_writable(file, "--out")
    task = _task(settings)
    module = tasks.find(task)
    config = TrainConfig(**cast(dict[str, Any], {"size": module.SIZE, **settings.training}))
    check_settings(config, task, settings.training)
    split = data.load(
        settings.data, settings.split, config.format, module.TARGET, config.images, config.masks
    )
    shown = preview(split, task, config, settings.count, file, settings.plain)
    names = names_to_show(split)
    listed = [names[index] for index in shown.indices]
    for line in shown.skipped[:SHOWN]:
        say(f"skipped {line}")
    title = f"{file}: {len(listed)} of {len(names)} samples of {split.source}, as {task} sees them"
    table(title, ["place on the sheet", "image"], [*enumerate(listed, 1)])
    return {
        "sheet": str(file),
        "task": task,
        "split": settings.split,
        "samples": listed,
        "skipped": shown.skipped,
    }


def _ends() -> str:
    return ", ".join(SHEETS)


def _task(settings: DataShow) -> str:
    """The task of the model that is named, or the first that learns from what the data have."""
    from .. import tasks
    from ..data._targets import targets_of
    from ..find import names

    if settings.model is not None:
        return task_of(settings.model)
    format, masks = (cast(str | None, settings.training.get(key)) for key in ("format", "masks"))
    target = targets_of(settings.data, format, masks)[0]
    return next(name for name in names("tasks") if target == tasks.find(name).TARGET)
