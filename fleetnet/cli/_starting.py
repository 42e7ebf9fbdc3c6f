"""What a training starts with: settings, data and network, from the arguments of a verb."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, get_type_hints

from ..errors import ModelError, UsageError
from ..recipes import locate
from ..training.config import TrainConfig, read_recipe
from ._arguments import check_types
from ._data import say_data, say_findings
from ._show import say

if TYPE_CHECKING:
    from ..data import Split
    from ..data._contents import Contents
    from ..tasks import Model


def part_of_training(names: Sequence[str]) -> type:
    """A dataclass of some settings, as `train` has them, for the flags of another verb."""
    hints = get_type_hints(TrainConfig)
    settings = {one.name: one for one in dataclasses.fields(TrainConfig)}
    return dataclasses.make_dataclass(
        "PartOfTraining",
        [
            (
                name,
                hints[name],
                field(default=settings[name].default, metadata=settings[name].metadata),
            )
            for name in names
        ],
        frozen=True,
    )


def training_settings(given: Mapping[str, object], recipe: str | None, example: str) -> TrainConfig:
    """The settings of a new run: those of the recipe, over which flags win.

    `example` is a command that has all that may be missing.
    """
    settings = check_types(TrainConfig, read_recipe(locate(recipe)), recipe) if recipe else {}
    settings |= given
    if "model" in settings:
        settings |= _resolved(settings)
    config = TrainConfig(**settings)
    for key in ("model", "data"):
        if not getattr(config, key):
            raise UsageError(f"--{key} is missing; example: {example}")
    return config


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The model of a layout file by name and options, and the size that its task is usually trained at."""
    from .. import tasks
    from ..tasks import check_name, described_by, split_name

    name, _, options = described_by(settings["model"])
    check_name(name)
    size = tasks.find(split_name(name)[0]).SIZE
    return {
        "model": name,
        "size": settings.get("size", size),
        "options": {**options, **settings.get("options", {})},
    }


def splits_of(config: TrainConfig, task: str) -> "tuple[Split, Split]":
    """Train and val of a new run."""
    from .. import data, tasks
    from ..data._names import by_name

    target = tasks.find(task).TARGET
    train, val = (
        data.load(config.data, split, config.format, target, config.images, config.masks)
        for split in ("train", "val")
    )
    return train, by_name(val, train.classes, "the training data")


def counted_contents(
    train: "Split", val: "Split", config: TrainConfig, task: str
) -> "tuple[Contents, Contents]":
    """What there is of each class and what looks wrong, which is said; `DataError` where it is."""
    from .. import tasks
    from ..data._contents import contents_of
    from ..review import enforce
    from ..review.annotated import annotated
    from ..review.copies import shared_files

    target = tasks.find(task).TARGET
    splits = {"train": train, "val": val}
    contents = {name: contents_of(split, target) for name, split in splits.items()}
    for name, split in splits.items():
        say_data(name, split, contents[name])
    findings = annotated(splits, contents, config.max_bad)
    enforce(findings)
    say_findings([*findings, *shared_files(train, val)])
    return contents["train"], contents["val"]


def model_of(config: TrainConfig, classes: list[str], start: str | None) -> "Model":
    """The network of the settings; what was loaded into it is said."""
    import torch

    from ..reparam import form_of
    from ..weights import create_model

    torch.manual_seed(config.seed)
    model = create_model(
        config.model,
        classes,
        start,
        drop_path=config.drop_path,
        output_stride=config.output_stride,
        options=config.options,
        channels=config.channels,
    )
    if model.report is not None:
        say(model.report.summary())
    for option, layers in getattr(model.backbone, "plugged", {}).items():
        say(f"{option} in the place of {', '.join(layers)}")
    if form_of(model) == "deploy":
        raise ModelError(
            f"{config.weights} is in deploy form, which has no branches and batch norms to train; "
            "start from the multi-branch weights"
        )
    return model
