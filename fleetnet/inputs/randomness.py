"""Random numbers that belong to what they are drawn for: an order, a sample, a batch, a step.

What is drawn is a function of the run's seed and of a place in the run: of the epoch for the order;
of epoch, sample and turn for what happens to a sample; of epoch and step for what happens to a
batch and within the network. So neither worker processes, nor a cache, nor what was drawn before
change it, and a run can go on from any place.

    numbers        three seeds, of a word and a place
    of_order, of_sample, of_others, of_batch, of_network    those of what is drawn for
    seed_all       seeds torch, Python and NumPy, for whatever draws from their global generators
    states_kept    puts the states of these back afterwards
    uniform, whole, choice                       one number of a generator

Torch's generator on a CPU takes 32 bits of a seed, so a few of a million samples share their
numbers with another one, which is harmless: they are not the same sample in the same epoch.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")
_SEEDS = Struct("<QQI")  # of 64, 64 and 32 bits


class Draw(NamedTuple):
    """A sample that comes up in an epoch: the key by which a `DataLoader` asks for it."""

    epoch: int  # from 0
    sample: int  # its index in the split
    turn: int = 0  # how often it came up in this epoch before
    size: tuple[int, int] | None = None  # height, width of the input; None: the usual one


class Numbers(NamedTuple):
    """Seeds, one a generator: from the same seed some of them would draw the same bits."""

    torch: int  # 64 bits
    python: int  # 64 bits
    numpy: int  # 32 bits


def numbers(what: str, *place: int) -> Numbers:
    """The seeds of a place; those of other words and places have nothing to do with them."""
    text = " ".join([what, *map(str, place)])
    digest = hashlib.blake2b(text.encode(), digest_size=_SEEDS.size).digest()
    return Numbers(*_SEEDS.unpack(digest))


def of_order(seed: int, epoch: int) -> Numbers:
    """For the order of the samples in an epoch."""
    return numbers("order", seed, epoch)


def of_size(seed: int, epoch: int, step: int) -> Numbers:
    """For the size of a step's inputs."""
    return numbers("size", seed, epoch, step)


def of_sample(seed: int, draw: Draw) -> Numbers:
    """For what is done to a sample before a network learns from it."""
    return numbers("sample", seed, draw.epoch, draw.sample, draw.turn)


def of_others(seed: int, draw: Draw) -> Numbers:
    """For which other samples it is shown with."""
    return numbers("others", seed, draw.epoch, draw.sample, draw.turn)


def of_batch(seed: int, epoch: int, step: int) -> Numbers:
    """For what changes a whole batch: mixing, and its size."""
    return numbers("batch", seed, epoch, step)


def of_network(seed: int, epoch: int, step: int, rank: int = 0) -> Numbers:
    """For what a network and its loss draw in a step: paths that are dropped, sampled proposals.

    Each process of several draws for its own part of the batch.
    """
    return numbers("network", seed, epoch, step, *([rank] if rank else []))


def generator_of(seeds: Numbers) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seeds.torch)


# The global generators ----------------------------------------------------------------------------


def seed_all(seeds: Numbers, device: torch.device | None = None) -> torch.Generator:
    """Seed torch's (also that of a GPU `device`), Python's and NumPy's; the first of them.

    `torch.manual_seed` takes a hundred times as long, since it looks for devices.
    """
    random.seed(seeds.python)
    np.random.seed(seeds.numpy)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seeds.torch)
    return torch.default_generator.manual_seed(seeds.torch)


def seed_torch(seeds: Numbers) -> torch.Generator:
    """As `seed_all`, for what draws from torch's generator alone: in a fifth of the time."""
    return torch.default_generator.manual_seed(seeds.torch)


@contextmanager
def states_kept(device: torch.device | None = None, *, only_torch: bool = False) -> Iterator[None]:
    """Put the states of these generators back at the end: around a batch, not around a sample.

    NumPy's alone takes 0.1 ms; `only_torch` is for what draws from no other.
    """
    of_torch = torch.default_generator.get_state()
    others = None if only_torch else (random.getstate(), np.random.get_state())
    gpu = device if device is not None and device.type == "cuda" else None
    of_gpu = None if gpu is None else torch.cuda.get_rng_state(gpu)
    try:
        yield
    finally:
        torch.default_generator.set_state(of_torch)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])
        if gpu is not None and of_gpu is not None:
            torch.cuda.set_rng_state(of_gpu, gpu)


# Single numbers -----------------------------------------------------------------------------------


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number from `low` to below `high`, unless rounding makes it that."""
    share = float(torch.rand((), dtype=torch.float64, generator=generator))
    return low + (high - low) * share


def whole(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def choice(options: Sequence[T], generator: torch.Generator) -> T:
    """One of the options."""
    return options[whole(0, len(options) - 1, generator)]
