"""What is looked at before the first step, since it could not be mended after an hour."""

import copy
import os
import re
import shutil
from collections.abc import Collection

import torch

from .. import tasks
from ..data import WORDS, Split
from ..data._contents import Contents, contents_of
from ..errors import DataError, UsageError
from ..find import names
from ..images import OtherChannels
from ..inputs.decode import read_picture
from ..processes import world
from ..review import enforce
from ..review.annotated import annotated
from ..sizes import Size, parse_curriculum, parse_sizes
from ..tasks import Model
from . import named_weights
from .config import AUTO, KEYS_AND_DEFAULTS, Situation, TrainConfig, unread
from .optimizer import check_optimizer
from .trackers import check_trackers

MADE_BEFORE = "`fit` trains the model as it is, so give this to create_model, or leave it out"


def check(
    model: Model,
    train: Split,
    val: Split,
    config: TrainConfig,
    *,
    resume: bool = False,
    contents: tuple[Contents, Contents] | None = None,
    processes: int = 1,
    samples: int | None = None,
) -> tuple[Contents, Contents]:
    """Raise `UsageError` or `DataError` where model, data and settings do not go together.

    Gives what train and val have of each class; `contents` is the same where it was counted before.
    `samples` are those of an epoch, if not each of train.
    """
    if model.classes != len(train.classes):
        raise DataError(f"the model has {model.classes} classes, the data {len(train.classes)}")
    if not resume:
        check_settings(config, model.task, processes=processes)
        check_made(config, model)
    if config.class_weights not in named_weights.WORDS:
        named_weights.in_order(config.class_weights, train.classes)
    check_channels(train, model.channels)
    check_batch(model, config, len(train.samples) if samples is None else samples)
    target = tasks.find(model.task).TARGET
    for split in (train, val):
        check_annotated(split, target)
    counted = contents or (contents_of(train, target), contents_of(val, target))
    by_split = dict(zip(("train", "val"), counted, strict=True))
    enforce(annotated({"train": train, "val": val}, by_split, config.max_bad))
    return counted


def check_device(config: TrainConfig) -> bool:
    """Whether the GPU is used; `UsageError` for one that is not to be had here."""
    gpu = torch.cuda.is_available() and config.device != "cpu"
    if config.device == "cuda" and not gpu:
        raise UsageError("device is cuda, but torch sees no GPU; allowed here: cpu, auto")
    if config.precision == "fp16" and not gpu:
        raise UsageError("precision is fp16, which needs a GPU with CUDA; allowed here: fp32, bf16")
    if config.compile and not gpu:
        _check_compiler()
    return gpu


def _check_compiler() -> None:
    """`UsageError` where there is no C++ compiler, which torch.compile needs for a CPU."""
    own = os.environ.get("CXX")
    if not any(shutil.which(name) for name in (own, "g++", "clang++", "cl") if name):
        raise UsageError(
            "compile is true, but there is no C++ compiler, by which torch.compile makes code for "
            "a CPU (looked for: g++, clang++, cl and the environment variable CXX); install one, "
            "or leave compile false"
        )


def check_settings(
    config: TrainConfig, task: str, given: Collection[str] = (), processes: int = 1
) -> None:
    """`UsageError` for a setting that nothing reads where this task is trained; it says what does.

    Looked at are settings other than their default, and those that were `given` whatever their
    value.
    """
    check_optimizer(config)
    check_trackers(config.log)
    for key, default in KEYS_AND_DEFAULTS.items():
        value = getattr(config, key)
        if value == default and key not in given:
            continue
        condition = unread(key, Situation(config, tasks.find(task), processes))
        if condition is None:
            continue
        readers = [
            name
            for name in names("tasks")
            if unread(key, Situation(config, tasks.find(name), processes)) is None
        ]
        augment = "" if config.augment == "default" else f" with augment {config.augment}"
        named_readers = f" ({', '.join(readers)})" if readers else ""
        raise UsageError(
            f"{key} is {value}, but {task}{augment} has no use for it: "
            f"it is read {condition.words}{named_readers}; leave it out"
        )


def check_made(config: TrainConfig, model: Model) -> None:
    """`UsageError` for a setting of how a model is made that the model was not made with."""
    for key in ("drop_path", "output_stride", "channels"):
        wanted, made = getattr(config, key), getattr(model, key)
        if wanted and wanted != made:
            raise UsageError(
                f"{key} is {wanted}, but the model was made with {made}: {MADE_BEFORE}"
            )
    if missing := sorted(config.options.keys() - model.options.keys()):
        raise UsageError(
            f"options have {', '.join(missing)}, but the model was made without: {MADE_BEFORE}"
        )
    if config.weights is not None and model.report is None:
        raise UsageError(
            f"weights is {config.weights!r}, but none were loaded into the model: {MADE_BEFORE}"
        )


def check_channels(train: Split, channels: int) -> None:
    """`OtherChannels` where the first picture has not the channels that the model takes."""
    for sample in train.samples[:1]:
        try:
            read_picture(sample, None, channels)
        except OtherChannels:
            raise
        except DataError:  # counted when it is met in training
            continue


def check_batch(model: Model, config: TrainConfig, images: int) -> None:
    """`UsageError` for sizes that the network does not take, before anything is trained.

    Looked at are sizes that change in the training, and a batch of one image, of few pixels, in
    which a batch norm would see one value a channel.
    """
    count = min(2 * world() if config.batch_size == AUTO else config.batch_size, images)
    if count < world():
        raise UsageError(
            f"a batch has {count} images for {world()} processes; allowed: at least one for each"
        )
    if config.norm != "sync":
        count //= world()  # the smallest part
    curriculum = parse_curriculum(config.curriculum)
    changing = {stage.size for stage in curriculum.stages} if curriculum is not None else set()
    changing |= set(parse_sizes(config.sizes))
    if count == 1:
        changing.add(config.size)
    if not changing:
        return
    network = copy.deepcopy(model).to("meta").train()  # shapes alone, without computing
    for size in sorted(changing):
        _check_size(network, model, count, size)


def _check_size(network: Model, model: Model, count: int, size: Size) -> None:
    height, width = size
    try:
        network(torch.empty(count, model.channels, height, width, device="meta"))
    except AssertionError as error:  # timm's networks of one size
        raise UsageError(
            f"{model.name} does not take inputs of {height}x{width}, which sizes or curriculum ask "
            f"for: {error}"
        ) from error
    except ValueError as error:
        if not re.search("(more than 1|one) value per channel", str(error)):
            raise
        raise UsageError(
            f"{model.name} cannot be trained on batches of one image at {height}x{width}: its last "
            "feature is a single pixel, and a batch norm needs two. Give --batch-size 2 or "
            "more (and as many images), or a larger --size"
        ) from error
    except (
        NotImplementedError,
        RuntimeError,
    ):  # shapes that depend on values: proposals of Mask R-CNN
        return


def check_annotated(split: Split, target: str) -> None:
    """`DataError` unless every sample has the annotation that a task learns from."""
    key = {"boxes": "objects", "masks": "objects"}.get(target, target)
    for sample in split.samples:
        if getattr(sample, key) is None:
            raise DataError(
                f"{sample.image} has no {WORDS[target]}: load the data with target={target!r}"
            )
