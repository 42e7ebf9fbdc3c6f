"""`fleetnet data check`: what images and annotations are, and whether a training on them is right."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jsonargparse.typing import ClosedUnitInterval

from ..errors import DataError
from ..training.config import TrainConfig
from ._data import SHOWN
from ._settings import About
from ._show import table, tell

if TYPE_CHECKING:
    from ..data import Split
    from ..data._contents import Contents

EXAMPLE = "fleetnet data check --data photos/"
PARTS = "train", "val", "test"


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    data: str = field(metadata=About(help="folder, list or annotation file of images, or `shapes`"))
    model: str | None = field(
        default=None,
        metadata=About(
            help="the model that is to be trained, or its task alone, as yolo",
            usual="one that learns from the annotations that there are",
        ),
    )
    format: str | None = field(
        default=None,
        metadata=About(help="format of the data, where finding it out fails", null=True),
    )
    images: str | None = field(
        default=None,
        metadata=About(
            help="folder of the images, where they lie apart from their annotations", null=True
        ),
    )
    masks: str | None = field(
        default=None,
        metadata=About(
            help="folder of the label maps, where they lie apart from the images", null=True
        ),
    )
    max_bad: float = field(
        default=TrainConfig.max_bad,
        metadata=About(
            help="largest share of the annotations that may be unusable", kind=ClosedUnitInterval
        ),
    )


def run(settings: DataCheck) -> dict[str, object]:
    from ..data import WORDS
    from ..data._contents import contents_of
    from ..data._record import describe
    from ..data._targets import targets_of

    target = _target(settings.model)
    if target is None:
        target = targets_of(settings.data, settings.format, settings.masks)[0]
    splits = {name: split for name in PARTS if (split := _split(settings, name, target))}
    contents = {name: contents_of(split, target) for name, split in splits.items()}
    errors = [
        f"{name}: {text}"
        for name, split in splits.items()
        if (text := _refusal(split, contents[name], settings.max_bad, learn=name == "train"))
    ]
    _show(settings.data, WORDS[target], splits, contents)
    for text in errors:
        tell(f"error: {text}")
    return {
        "data": settings.data,
        "target": target,
        "splits": {name: describe(split, contents[name]) for name, split in splits.items()},
        "errors": errors,
        "exit_code": DataError.exit_code if errors else 0,
    }


def _target(model: str | None) -> str | None:
    """The annotation that a model learns from, given by its name or by that of its task."""
    from .. import tasks
    from ..find import names
    from ..tasks import check_name, split_name

    if model is None:
        return None
    if model in names("tasks"):
        return tasks.find(model).TARGET
    check_name(model)
    return tasks.find(split_name(model)[0]).TARGET


def _split(settings: DataCheck, name: str, target: str) -> "Split | None":
    """A split of the data; None for one for testing that they do not have."""
    from .. import data

    try:
        return data.load(
            settings.data, name, settings.format, target, settings.images, settings.masks
        )
    except DataError:
        if name == "test":
            return None
        raise


def _refusal(split: "Split", contents: "Contents", max_bad: float, *, learn: bool) -> str | None:
    """Why a split is neither learned from nor, without `learn`, measured on."""
    from ..data._contents import check_usable

    try:
        check_usable(split, contents, max_bad, learn)
    except DataError as error:
        return str(error)
    return None


def _show(
    root: str, words: str, splits: "dict[str, Split]", contents: "dict[str, Contents]"
) -> None:
    rows = [
        [name, len(split.samples), contents[name].total, len(split.skipped), str(split.source)]
        for name, split in splits.items()
    ]
    unit = next(iter(contents.values())).unit
    table(f"{root}: {words}", ["split", "images", unit, "left out", "read from"], rows)
    for name, split in splits.items():
        tell(f"{name}: {unit} by class: {contents[name].text(split.classes)}")
        for line in split.skipped[:SHOWN]:
            tell(f"  left out: {line}")
        if len(split.skipped) > SHOWN:
            tell(f"  and {len(split.skipped) - SHOWN} more")
