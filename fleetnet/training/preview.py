"""Samples as a training would see them, before there is one: `fleetnet data show`.

They are drawn as a run with the same settings would draw its first batch: in the order, with the
crops and the mixing of its seed.
"""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .. import tasks
from ..channels import RGB, parse_channels
from ..data import Split
from ..errors import DataError
from ..images import visible
from ..inputs.dataset import ImageDataset, collate
from ..inputs.randomness import of_batch, seed_all, states_kept
from ..inputs.samplers import Draws
from ..preprocess import Preprocess
from ..report.draw import captioned, grid
from ..resizing import array_of
from .config import TrainConfig
from .objective import mixed_and_sized
from .pictures import SIDE, drawn
from .setup import as_set, at_size, order_of, sizes_of, training_set

COLUMNS = 4


class Preview(NamedTuple):
    """Which samples a sheet shows."""

    indices: list[int]  # in the split, in the order of the sheet
    skipped: list[str]  # a line for each that cannot be read, with the reason


def preview(
    split: Split, name: str, config: TrainConfig, count: int, file: Path, plain: bool = False
) -> Preview:
    """Write a sheet of up to `count` samples as the task `name` learns from them.

    With `plain` each has the whole picture with its annotation beside it, as it is on disk. Raises
    `DataError` where none of the samples can be read.
    """
    task = tasks.find(name)
    channels = RGB if config.channels is None else parse_channels(config.channels)
    usual = Preprocess(config.size).for_channels(channels)
    preprocess = at_size(as_set(usual, split, config), task, config)
    data = training_set(name, split, preprocess, config)
    sizes = sizes_of(config)
    size = None if sizes is None else sizes.at(0, 0)
    draws = islice(Draws(order_of(config, split)), count)
    batch = collate(data.__getitems__([draw._replace(size=size) for draw in draws]))
    if not batch.indices:
        raise DataError(f"no sample can be read; the first: {batch.skipped[0]}")
    with states_kept():
        generator = seed_all(of_batch(config.seed, 0, 0))
        images, targets = mixed_and_sized(batch, len(split.classes), config, generator)
    sheet = drawn(images, targets, task.PREDICTION, split.classes, preprocess)
    if plain:
        whole = ImageDataset(split, preprocess, target=task.TARGET)
        pairs = zip((_plain(whole, index, name) for index in batch.indices), sheet, strict=True)
        sheet = [picture for pair in pairs for picture in pair]
    grid(sheet, COLUMNS, file)
    return Preview(batch.indices, batch.skipped)


def _plain(data: ImageDataset, index: int, name: str) -> Image.Image:
    """The whole picture of a sample with its annotation, as it is without augmentation."""
    pixels, truth = data.annotated(index)
    picture = visible(array_of(pixels))
    shown, words = tasks.find(name).PREDICTION.show(picture, truth, data.split.classes, SIDE)
    return captioned(shown, f"as it is: {words}", SIDE)
