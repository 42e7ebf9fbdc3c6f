"""`fleetnet replay`: any step of a run once more, and the first module that was not finite in it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from ..errors import UsageError
from ..training.config import TrainConfig
from ._data import SHEETS, SHOWN, names_to_show
from ._resuming import splits_to_continue, starting_weights, to_replay
from ._settings import About, switch
from ._show import TrainingProgress, say, table
from ._starting import model_of, part_of_training

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Split
    from ..tasks import Model
    from ..training.replay import Computed, Replayed

EXAMPLE = "fleetnet replay runs/classification/fasternet_t0-photos --step 120 --save step.png"
MAY_CHANGE = (  # what makes no step another one
    "device",
    "threads",
    "workers",
    "timeout",
    "data",
    "format",
    "images",
    "masks",
)


@dataclass(frozen=True, kw_only=True)
class Replay:
    run: str = field(
        metadata=About(
            help="run folder, which is only read",
            positional=True,
            nargs="?",
            missing="the run folder is missing",
        )
    )
    step: int = field(metadata=About(help="step of the run, from 1", kind=PositiveInt))
    epoch: int | None = field(
        default=None,
        metadata=About(help="count the step from the start of this epoch", kind=PositiveInt),
    )
    only_batch: bool = switch(
        "what the network saw, without computing it, and so without training up to there"
    )
    save: str | None = field(
        default=None, metadata=About(help="a sheet of the batch, a PNG or JPEG file")
    )
    inputs: str | None = field(
        default=None,
        metadata=About(help="a file for torch.load: images and targets as the network saw them"),
    )
    training: Mapping[str, object] = field(
        default_factory=dict,
        metadata=About(
            help="settings that change no step, as where the data are now",
            given_of=part_of_training(MAY_CHANGE),
        ),
    )


def run(settings: Replay) -> dict[str, object]:
    from ..files import check_writable
    from ..training.checks import check_device
    from ..training.replay import replay

    folder = Path(settings.run)
    config = to_replay(folder, settings.training)
    check_device(config)
    if settings.save is not None:
        if Path(settings.save).suffix.lower() not in SHEETS:
            raise UsageError(
                f"--save is {settings.save!r}; allowed: a name that ends in {', '.join(SHEETS)}"
            )
        check_writable(settings.save, "--save")
    if settings.inputs is not None:
        check_writable(settings.inputs, "--inputs")
    model, train = _begun_with(folder, config, settings)
    progress = TrainingProgress()
    try:
        again = replay(
            model,
            train,
            config,
            folder,
            settings.step,
            epoch=settings.epoch,
            only_batch=settings.only_batch,
            progress=progress,
            on_wait=say,
        )
    finally:
        progress.close()
    names = names_to_show(train)
    told = _told(again, model, train, [names[index] for index in again.indices])
    _print(told, again)
    if settings.save is not None:
        _draw(again, model, train, Path(settings.save))
    if settings.inputs is not None:
        _write(again, Path(settings.inputs))
    return told


def _begun_with(folder: Path, config: TrainConfig, settings: Replay) -> "tuple[Model, Split]":
    """The model that the run began with, with its weights where they are needed, and its samples."""
    from ..tasks import split_name
    from ..training.folder import environment_of
    from ..training.replay import state_before

    task = split_name(config.model)[0]
    train, _ = splits_to_continue(config, task, folder, settings.training)
    has_state = state_before(folder, train, config, settings.step, settings.epoch) is not None
    if not has_state and not settings.only_batch and environment_of(folder).get("from_python"):
        raise UsageError(
            f"{folder} was begun from Python, where its model was made, and no state is from before "
            "that step: replay it from there, with fleetnet.replay, or give --only-batch"
        )
    start = None if has_state or settings.only_batch else starting_weights(config, folder)
    return model_of(config, train.classes, start), train


def _told(again: "Replayed", model: "Model", train: "Split", names: list[str]) -> dict[str, object]:
    """All that is printed."""
    from ..training.nonfinite import range_of

    shown = {
        "run_step": again.number,
        "epoch": again.epoch,
        "step": again.step,
        "samples": [
            {"image": name, "annotation": words}
            for name, words in zip(names, _words(again, model, train), strict=True)
        ],
        "skipped": again.skipped,
        "images": list(again.images.shape),
        "values": dataclasses.asdict(range_of(again.images)),
        "targets": {name: _shape(value) for name, value in again.targets.items()},
    }
    if again.computed is None:
        return shown
    return shown | dataclasses.asdict(again.computed)


def _words(again: "Replayed", model: "Model", train: "Split") -> list[str]:
    from ..training.pictures import annotated

    if not again.indices:
        return []
    shown = annotated(again.images, again.targets, _kind(model), train.classes, again.preprocess)
    return [words for _, words in shown]


def _kind(model: "Model") -> Any:
    from .. import tasks

    return tasks.find(model.task).PREDICTION


def _shape(value: "Tensor | list[Tensor]") -> list[int]:
    """That of a tensor; of a list of them, one an image, how many each has."""
    return [len(each) for each in value] if isinstance(value, list) else list(value.shape)


def _print(told: dict[str, Any], again: "Replayed") -> None:
    from ..training.nonfinite import range_of

    for line in told["skipped"][:SHOWN]:
        say(f"skipped {line}")
    size = "x".join(map(str, told["images"]))
    title = f"step {again.step} of epoch {again.epoch}, step {again.number} of the run: {size}"
    rows = [[i, one["image"], one["annotation"]] for i, one in enumerate(told["samples"], 1)]
    table(title, ["place", "image", "annotation"], rows)
    print(f"values of the images: {range_of(again.images)}")
    for name, shape in told["targets"].items():
        print(f"{name}: {shape}")
    if again.computed is not None:
        _print_computed(again.computed)
    elif len(again.indices) < 2 and again.skipped:
        print("too few of its files could be read: the run passed it over")


def _print_computed(computed: "Computed") -> None:
    print(f"weights: {computed.came_from}; steps trained from there: {computed.trained}")
    for line in computed.differing:
        say(f"not as in the run: {line}. It may have gone on with other settings or elsewhere")
    terms = ", ".join(f"{name} {value:.6g}" for name, value in computed.losses.items())
    print(f"loss: {computed.loss:.6g} ({terms})")
    print(f"learning rate: {computed.lr:.6g}")
    if computed.gradient_norm is not None:
        print(f"gradient norm: {computed.gradient_norm:.6g}")
    for broken in (computed.output, computed.gradient):
        if broken is not None:
            print(f"not finite: {broken}")
    if computed.weight is not None:
        print(f"not finite after the update: the weight {computed.weight}")
    if not (computed.output or computed.gradient or computed.weight):
        print("every output, gradient and weight is finite")


def _draw(again: "Replayed", model: "Model", train: "Split", file: Path) -> None:
    from ..report.draw import grid
    from ..training.pictures import drawn
    from ..training.preview import COLUMNS

    if not again.indices:
        raise UsageError(f"no file of that step could be read, so there is no {file}")
    sheet = drawn(again.images, again.targets, _kind(model), train.classes, again.preprocess)
    grid(sheet, COLUMNS, file)
    say(f"wrote {file}")


def _write(again: "Replayed", file: Path) -> None:
    import torch

    from ..files import replacing

    with replacing(file) as opened:
        torch.save({"images": again.images, "targets": dict(again.targets)}, opened)
    say(f"wrote {file}")
