"""What a run is made of, from its settings: device, preprocessing, augmentation, batches."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import tasks
from ..boxes import Limits
from ..channels import RGB
from ..data import OF_PICTURES, WORDS, Split
from ..errors import DataError, UsageError
from ..facts import Source
from ..images import Range, measure
from ..images import value_range as range_of_files
from ..inputs.augment import Augmentation, augmentation
from ..inputs.dataset import ImageDataset, Look
from ..inputs.samplers import (
    Balanced,
    Following,
    Order,
    OrderedBatches,
    Repeated,
    Shuffled,
    SizedBatches,
    Sizes,
    Weighted,
    labels_of,
    of_rarest_tag,
)
from ..preprocess import Preprocess
from ..sizes import Size, parse_curriculum, parse_sizes
from ..tasks import Annotated, Model, Task
from . import named_weights
from .checks import check_device
from .config import TrainConfig, parse_values
from .run import Before, Training

if TYPE_CHECKING:
    from accelerate import Accelerator

COMPILER = "inductor"  # of `compile`: torch's own


def accelerator_of(config: TrainConfig) -> "Accelerator":
    """The device and precision of the settings; `UsageError` where they are not to be had here.

    Where this is one of several processes, it is theirs, which have met by then.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    if config.threads:
        torch.set_num_threads(config.threads)
    gpu = check_device(config)
    # an earlier run may have had another precision
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()  # of another trainer, which may have been stopped within a group
    precision = "no" if config.precision == "fp32" else config.precision
    compiler = COMPILER if config.compile else "no"
    return Accelerator(cpu=not gpu, mixed_precision=precision, dynamo_backend=compiler)


# Settings that data, model and weights decide --------------------------------------------------


def training_of(
    model: Model,
    train: Split,
    config: TrainConfig,
    preprocess: Preprocess | None = None,
    source: Mapping[str, object] | None = None,
    before: Before | None = None,
) -> Training:
    """What a run trains with: where it is open, as the run that goes on, else as the model."""
    begun_with = None if before is None else before.facts.preprocess
    preprocess = preprocess or preprocess_of(model, train, config, begun_with)
    config = resolved(config, model, train, preprocess)
    weights = None if before is None else before.facts.source
    weights = Source.from_json(source) if source else weights
    return Training(config, train.classes, train.ids, preprocess, weights)


def resolved(
    config: TrainConfig, model: Model, train: Split, preprocess: Preprocess
) -> TrainConfig:
    """The settings with what was left open in them, so that a run folder says how to repeat it."""
    if config.teacher is not None and Path(config.teacher).exists():
        config = replace(config, teacher=os.path.abspath(config.teacher))
    if named_weights.is_file(config.class_weights):
        config = replace(config, class_weights=named_weights.read(config.class_weights))
    if not config.data and train.source is not None:
        config = replace(config, data=train.source.root, format=train.source.format)
    return replace(
        config,
        model=config.model or model.name,
        drop_path=model.drop_path,
        output_stride=model.output_stride,
        options=model.options,
        channels=model.channels,
        scale_values=_in_words(preprocess.values),
    )


def with_values(config: TrainConfig, train: Split) -> tuple[TrainConfig, str]:
    """The settings with the range that `scale_values` means for these pictures, and why."""
    values, why = value_range(config.scale_values, train)
    return replace(config, scale_values=_in_words(values)), why


def _in_words(values: Range | None) -> str:
    return "full" if values is None else f"{values[0]:g},{values[1]:g}"


def value_range(setting: str, split: Split) -> tuple[Range | None, str]:
    """What `scale_values` means for these training pictures, for `Preprocess.values`, and why.

    `setting` is "auto", "full" or "LOWEST,HIGHEST". The reason is a sentence, or empty where
    nothing is unusual.
    """
    files = [sample.image for sample in split.samples if not callable(sample.image)]
    decided, why = range_of_files(files) if setting == "auto" else (parse_values(setting), "")
    if decided is None:
        return None, ""
    why = why or "values of files with more than 8 bits"
    becomes = f"{decided[0]:g} to {decided[1]:g} becomes 0 to 255"
    return decided, f"{why}: {becomes}, here and wherever the model is used (--scale-values)"


def preprocess_of(
    model: Model, train: Split, config: TrainConfig, of_run: Preprocess | None = None
) -> Preprocess:
    """What the starting weights expect of an image, at the configured size.

    Of a run that goes on, what it began with: `of_run` is the preprocessing in its checkpoints.
    """
    usual = Preprocess(config.size).for_channels(model.channels)
    preprocess = of_run or as_set(model.preprocess or usual, train, config)
    return at_size(preprocess, tasks.find(model.task), config)


def as_set(preprocess: Preprocess, train: Split, config: TrainConfig) -> Preprocess:
    """With all that settings say of how values become those of the network."""
    decided = with_values(config, train)[0].scale_values  # as text, which config.yaml will hold
    return replace(_as_wanted(preprocess, config), values=parse_values(decided))


def at_size(preprocess: Preprocess, task: Task, config: TrainConfig) -> Preprocess:
    """With size and crop of the settings, and the mode of the task; `task` is its file."""
    return replace(preprocess, size=config.size, crop=config.crop, mode=task.MODE)


def _as_wanted(preprocess: Preprocess, config: TrainConfig) -> Preprocess:
    """With interpolation, mean and std, and order of the colors as far as settings say them."""
    if config.interpolation is not None:
        preprocess = replace(preprocess, interpolation=config.interpolation)
    if config.channel_order is not None and config.channel_order != preprocess.channel_order:
        mean, std = preprocess.mean[::-1], preprocess.std[::-1]
        preprocess = replace(preprocess, channel_order=config.channel_order, mean=mean, std=std)
    if config.normalize is None:
        return preprocess
    usual = Preprocess(preprocess.size)
    if config.normalize == "none":
        usual = replace(usual, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    usual = usual.for_channels(preprocess.channels)
    step = -1 if preprocess.channel_order == "BGR" else 1
    return replace(preprocess, mean=usual.mean[::step], std=usual.std[::step])


def evaluation_limits(config: TrainConfig, model: Model, classes: list[str]) -> Limits | None:
    """What evaluation keeps of what a detector finds; its head is told. None for other tasks."""
    task = tasks.find(model.task)
    if task.LIMITS is None:
        return None
    changes = {"max_objects": config.max_objects, "nms": config.nms, "score": config.score}
    limits = task.LIMITS.changed(changes, classes)
    if task.limit is not None:
        task.limit(model.head, limits)
    return limits


# Inputs ----------------------------------------------------------------------------------------


def augmentation_of(
    task: Task, preprocess: Preprocess, config: TrainConfig, strength: float = 1.0
) -> Augmentation:
    """What the setting `augment` names, with the settings that it reads; `task` is its file."""
    name = task.AUGMENT if config.augment == "default" else config.augment
    if (name == "classify") != (task.TARGET in OF_PICTURES) and name != "none":
        raise UsageError(
            f"augment is {name!r}, which does not go with {WORDS[task.TARGET]}; "
            f"allowed: {task.AUGMENT}"
        )
    return augmentation(
        name,
        preprocess,
        flip=config.flip,
        scale=config.scale,
        color_jitter=config.color_jitter,
        erasing=config.erasing,
        mosaic=config.mosaic,
        auto_augment=config.auto_augment,
        strength=strength,
    )


@dataclass(frozen=True)
class AtOtherSizes:
    """Makes preprocessing and augmentation of a training at another size and strength.

    It goes to worker processes, so it names the task, whose module does not.
    """

    task: str
    preprocess: Preprocess
    config: TrainConfig

    def __call__(self, size: Size, strength: float) -> Look:
        resized = replace(self.preprocess, size=size)
        return Look(resized, augmentation_of(tasks.find(self.task), resized, self.config, strength))


def training_set(
    task: str,
    train: Split,
    preprocess: Preprocess,
    config: TrainConfig,
    augment: Augmentation | None = None,
    order: Order | None = None,
) -> ImageDataset:
    """The samples as a training learns from them, by settings or by an `augment` of its own.

    In an `order` the next one stands in for a file that cannot be read.
    """
    module = tasks.find(task)
    return ImageDataset(
        train,
        preprocess,
        augmentation_of(module, preprocess, config) if augment is None else augment,
        target=module.TARGET,
        seed=config.seed,
        plain_from=config.epochs - config.plain_epochs,
        curriculum=parse_curriculum(config.curriculum),
        at=AtOtherSizes(task, preprocess, config),
        cache=config.cache,
        following=None if order is None else Following(order),
    )


def sizes_of(config: TrainConfig) -> Sizes | None:
    """The sizes of which each step has one; None where all steps have the same."""
    sizes = parse_sizes(config.sizes)
    return Sizes(sizes, config.size, config.batch_size, config.seed) if sizes else None


def steps_of(config: TrainConfig, order: Order) -> int:
    """How many batches an epoch has, in all processes alike."""
    sizes = sizes_of(config)
    if sizes is not None:
        return len(SizedBatches(order, sizes))
    return len(OrderedBatches(order, config.batch_size))


def order_of(config: TrainConfig, train: Split) -> Order:
    """In which order an epoch goes through the samples, unless `fit` gets another sampler."""
    if config.balance and any(sample.tags is not None for sample in train.samples):
        return Weighted(of_rarest_tag(train), config.seed)
    if config.balance:
        return Balanced(labels_of(train), config.seed)
    if config.repeats > 1:
        return Repeated(len(train.samples), config.seed, config.repeats)
    return Shuffled(len(train.samples), config.seed)


def sizes_and_boxes(train: Split, preprocess: Preprocess) -> Iterator[Annotated]:
    """Of each readable picture its (height, width), and its boxes (n, 4) in pixels of the input."""
    for sample in train.samples:
        try:
            width, height = measure(sample.source())
        except DataError:  # counted when it is met in training
            continue
        boxes = torch.tensor([item.box for item in sample.objects or () if not item.crowd])
        yield (height, width), preprocess.place(height, width).into(boxes.view(-1, 4))


def may_be_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether the memory format is safe.

    On CPU, a strided 1x1 convolution of an image corrupts memory in the backward pass (oneDNN,
    torch 2.13 to 2.14). Our networks have none; timm's MobileOne does.
    """
    if device.type != "cpu":
        return True
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    channels = model.channels if isinstance(model, Model) else RGB
    of_images = [each for each in convolutions if each.in_channels == channels]
    return not any(
        convolution.stride != (1, 1) and convolution.kernel_size == (1, 1)
        for convolution in of_images
    )
