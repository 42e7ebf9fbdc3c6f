"""Every picture and its annotation read once, as training reads them, in worker processes."""

import hashlib
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from ..channels import RGB
from ..data import Sample
from ..errors import DataError, FleetnetError
from ..images import Range
from ..inputs.decode import read_picture, read_targets
from .prints import SIDE, print_of

AT_ONCE = 16  # samples that a process is given at a time
NOTHING = np.zeros((SIDE, SIDE), np.uint8)
Progress = Callable[[int, int], None]  # how many samples were read, and of how many


@dataclass(frozen=True)
class Look:
    """What one sample shows."""

    fault: str = ""  # why it cannot be read, and training leaves it out
    size: tuple[int, int] = (0, 0)  # (height, width) of the upright picture
    digest: bytes = b""  # of its pixels as RGB; b"" where it cannot be read
    gray: np.ndarray = field(default_factory=lambda: NOTHING)  # its print
    pixels: np.ndarray | None = None  # (256,) how many there are of each value of the label map


def look_at(
    samples: Sequence[Sample],
    target: str,
    classes: int,
    values: Range | None = None,
    workers: int = 0,
    on_progress: Progress | None = None,
    channels: int = RGB,
) -> list[Look]:
    """A look at each sample, in their order, annotated with `classes` classes.

    `values` is the range of pixels as in `images.load`, `channels` what is wanted of pictures.

    `workers` processes read, or this one where it is 0. Raises `FleetnetError` if one of them dies.
    """
    say = on_progress or (lambda count, of: None)
    look = partial(_look, target=target, classes=classes, values=values, channels=channels)
    looks: list[Look] = []
    if not workers:
        for sample in samples:
            looks.append(look(sample))
            say(len(looks), len(samples))
        return looks
    parts = [range(i, min(i + AT_ONCE, len(samples))) for i in range(0, len(samples), AT_ONCE)]
    pool = ProcessPoolExecutor(
        min(workers, len(parts)) or 1, initializer=_begin, initargs=(samples, look)
    )
    try:
        for part in pool.map(_looks, parts):
            looks += part
            say(len(looks), len(samples))
    except BrokenProcessPool as error:
        near = samples[min(len(looks), len(samples) - 1)].image
        raise FleetnetError(
            f"a process that read images died, at {near} or one of the next: the memory ran out, "
            "or somebody ended it; --workers 0 reads in this process, and shows where"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return looks


# of a worker process: the samples, and what looks at one
_work: tuple[Sequence[Sample], Callable[[Sample], Look]]


def _begin(samples: Sequence[Sample], look: Callable[[Sample], Look]) -> None:
    global _work
    _work = samples, look
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits for us ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _looks(part: range) -> list[Look]:
    samples, look = _work
    return [look(samples[i]) for i in part]


def _look(sample: Sample, target: str, classes: int, values: Range | None, channels: int) -> Look:
    try:
        picture = read_picture(sample, values, channels)
        size = picture.height, picture.width
        targets = read_targets(sample, size, target, classes=classes)
    except DataError as error:
        return Look(fault=str(error))
    semantic = targets.get("semantic")
    pixels = None if semantic is None else np.bincount(semantic.numpy().ravel(), minlength=256)
    digest = hashlib.blake2b(picture.pixels.tobytes(), digest_size=16)
    digest.update(repr(size).encode())
    return Look("", size, digest.digest(), print_of(picture.image), pixels)
