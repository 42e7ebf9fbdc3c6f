"""How many images a step has room for (`batch_size: auto`), and what to do where it had too little.

Unusual here: a few real steps of few images are measured, on a copy of the network, and what more
images would take follows in proportion. On a GPU the size that comes out is then tried. On a CPU it
is not: what is beyond the memory there ends the process without an error that could be caught.
"""

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..data import Split
from ..errors import FleetnetError, UsageError
from ..inputs.cache import LIMIT as LARGEST_CACHE
from ..inputs.dataset import Batch, collate
from ..inputs.randomness import of_batch, seed_all, states_kept
from ..inputs.samplers import Draws, Order
from ..inputs.workers import Say
from ..preprocess import Preprocess
from ..processes import by_first, world
from ..resident import forget_high_water, resident
from ..sizes import Size, parse_curriculum, parse_sizes
from ..tasks import Model
from .config import TrainConfig
from .distill import objective_of
from .freezing import freeze
from .objective import Objective, mixed_and_sized
from .optimizer import average_of, optimizer_of
from .setup import may_be_channels_last, order_of, training_set

if TYPE_CHECKING:
    from accelerate import Accelerator

FEWEST, SEVERAL = 2, 8  # images of the two steps that are measured
SHARE = 0.8  # of the free memory that a step may take
MOST = 1024  # images a step of a device, beyond which recipes hardly go
UPDATES = 16  # an epoch, at least: fewer learn too little in the usual number of epochs
GIGABYTE = 1e9

PeakOf = Callable[[int], float | None]  # bytes of a step of so many images; None: too little memory


class Memory(Protocol):
    """That of a device: bytes that are free, and the most that some work takes of them."""

    free: float

    def peak(self, work: Callable[[], None]) -> float: ...


# As many as fit --------------------------------------------------------------------------------


def with_batch_size(
    config: TrainConfig,
    model: Model,
    train: Split,
    preprocess: Preprocess,
    accelerator: "Accelerator",
    *,
    resume: bool = False,
    objective: Objective | None = None,
    order: Order | None = None,
    say: Say | None = None,
) -> TrainConfig:
    """The settings with a number in the place of batch size `auto`; `say` gets what was measured.

    It is a power of two for each device, at most a sixteenth of an epoch. Raises `FleetnetError`
    where two images are too many, `UsageError` where nothing can be measured and for a run that is
    to `resume`, which has a number.
    """
    if resume:
        raise UsageError("batch_size is auto, but a run goes on with its own: see its config.yaml")
    order = order_of(config, train) if order is None else order
    images = len(order) // (UPDATES * config.accumulate * world())
    most = power_of_two(max(FEWEST, min(MOST, images)))

    def size() -> tuple[int, str]:
        memory = memory_of(accelerator.device, LARGEST_CACHE if config.cache else 0)
        step = _step_of(config, model, train, preprocess, accelerator, objective, order)
        try:
            return _measured(memory, step, most, tried=isinstance(memory, OfGpu))
        finally:
            accelerator.free_memory()

    each, why = by_first(size)
    if say is not None:
        say(f"batch size {each * world()}: {why}")
    return replace(config, batch_size=each * world())


def _measured(
    memory: Memory, step: Callable[[int], None], most: int, *, tried: bool
) -> tuple[int, str]:
    """Images a step for which there is room, and a sentence with what was measured."""
    peaks: dict[int, float | None] = {}

    def peak_of(images: int) -> float | None:
        try:
            peaks[images] = memory.peak(lambda: step(images))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            peaks[images] = None
        return peaks[images]

    peak_of(FEWEST)  # the first step makes what later ones keep
    count = that_fits(peak_of, memory.free, most, tried=tried)
    free, largest = memory.free / GIGABYTE, max(n for n, peak in peaks.items() if peak is not None)
    taken = (peaks[largest] or 0) / GIGABYTE
    ends = f"more would be fewer than {UPDATES} updates an epoch" if count == most < MOST else ""
    said = f"a step of {largest} takes {taken:.2f} GB of the {free:.1f} GB that are free"
    return count, "; ".join(filter(None, (said, ends)))


def that_fits(peak_of: PeakOf, free: float, most: int, *, tried: bool) -> int:
    """The largest power of two, at most `most`, of which a step has room in `free` bytes.

    What is `tried` may still be too large, and is halved until it is not.
    """
    low = peak_of(FEWEST)
    if low is None or low > free:
        raise FleetnetError(
            f"out of memory with {FEWEST} images a step, the fewest that are tried: give a smaller "
            "--size or network"
        )
    several = SEVERAL
    while several > FEWEST and (high := peak_of(several)) is None:
        several //= 2
    if several == FEWEST:
        return FEWEST
    an_image = max(1.0, ((high or 0) - low) / (several - FEWEST))
    fits = FEWEST + int((SHARE * free - low) / an_image)
    count = min(most, power_of_two(max(FEWEST, fits)))
    while tried and count > FEWEST and peak_of(count) is None:
        count //= 2
    return count


def power_of_two(number: int) -> int:
    """The largest that is at most `number`, which is at least 1."""
    return 1 << (number.bit_length() - 1)


def largest_size(config: TrainConfig, usual: Size) -> Size:
    """The most pixels that a step of the run has."""
    curriculum = parse_curriculum(config.curriculum)
    stages = [] if curriculum is None else [stage.size for stage in curriculum.stages]
    sizes = [usual, *stages, *parse_sizes(config.sizes)]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    largest = 1 + config.multi_scale
    if largest == 1:
        return height, width
    return math.ceil(height * largest / 32) * 32, math.ceil(width * largest / 32) * 32


def _step_of(
    config: TrainConfig,
    model: Model,
    train: Split,
    preprocess: Preprocess,
    accelerator: "Accelerator",
    objective: Objective | None,
    order: Order,
) -> Callable[[int], None]:
    """A step of so many images that changes neither the model nor any random number."""
    device = accelerator.device
    network = copy.deepcopy(model).to(device).train()
    if config.channels_last and may_be_channels_last(network, device):
        network = network.to(memory_format=torch.channels_last)
    if config.freeze:
        freeze(network, config.freeze)
    optimizer = optimizer_of(network, config)
    average = None if config.ema is None else average_of(network, config.ema)
    objective = objective or objective_of(network, config, train, preprocess, device)
    wrapped = accelerator.prepare_model(network, evaluation_mode=True)  # by itself, under autocast
    if config.compile:  # of every size that is tried: minutes each
        wrapped = accelerator.unwrap_model(wrapped, keep_torch_compile=False)
    alike = replace(config, cache=False, curriculum="", multi_scale=0.0, batch_size=FEWEST)
    data = training_set(model.task, train, preprocess, alike)
    size = largest_size(config, preprocess.size)

    def batch_of(images: int) -> Batch:
        draws = islice(cycle(Draws(order)), images)
        return collate(data.__getitems__([draw._replace(size=size) for draw in draws]))

    def step(images: int) -> None:
        with states_kept(device):
            generator = seed_all(of_batch(config.seed, 0, 0), device)
            batch = batch_of(images).on(device)
            pixels, targets = mixed_and_sized(batch, model.classes, alike, generator)
            losses: dict[str, Tensor] = objective.losses(wrapped, pixels, targets)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(network)

    return step


# Memory ----------------------------------------------------------------------------------------


def memory_of(device: torch.device, kept: int = 0) -> "Memory":
    """What there is of it, less what is `kept` for other things."""
    return OfGpu(device) if device.type == "cuda" else OfCpu(kept)


class OfGpu:
    """Not tested: there was none at hand."""

    def __init__(self, device: torch.device):
        self.device = device
        torch.cuda.empty_cache()
        self.before = torch.cuda.memory_allocated(device)
        self.free = float(torch.cuda.mem_get_info(device)[0])

    def peak(self, work: Callable[[], None]) -> float:
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self.before


class OfCpu:
    """By what Linux counts of this process."""

    def __init__(self, kept: int = 0):
        self.before = _of_process("VmRSS")
        self.free = (free_memory() - kept) / world()

    def peak(self, work: Callable[[], None]) -> float:
        if not forget_high_water():
            raise _unmeasured()
        work()
        return _of_process("VmHWM") - self.before


def _of_process(key: str) -> float:
    """Bytes of this process; `UsageError` where the system does not count them."""
    counted = resident(key)
    if counted is None:
        raise _unmeasured()
    return float(counted)


def _unmeasured() -> UsageError:
    return UsageError(
        "batch_size is auto, but this system does not say how much memory a process takes: give a "
        "number"
    )


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that may still be taken on this machine, or in this container where it has fewer."""
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text())
    except OSError:
        available = None
    if available is None:
        raise _unmeasured()
    free = 1024.0 * int(available[1])
    cgroups = root / "sys/fs/cgroup"
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with contextlib.suppress(OSError, ValueError):  # there is no limit, or it is called "max"
            reclaimed = re.search(r"^inactive_file (\d+)", (cgroups / stat).read_text(), re.M)
            taken = int((cgroups / used).read_text()) - int(reclaimed[1] if reclaimed else 0)
            free = min(free, float(int((cgroups / limit).read_text()) - taken))
    return max(0.0, free)


# Too little of it ------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or this system refused memory; torch has a class for the first alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search("can't allocate memory|not enough memory|Cannot allocate memory", str(error))
    )


@contextlib.contextmanager
def room(advice: Callable[[str], str]) -> Iterator[None]:
    """Say what to do where there is too little memory; `advice` gets how the message begins."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        where = "of the GPU" if isinstance(error, torch.OutOfMemoryError) else "of this machine"
        raise FleetnetError(advice(f"the memory {where} is too little")) from error


def room_for(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Say what to do where a training has too little memory, with a size to try."""
    images, (height, width) = config.batch_size, config.size

    def advice(said: str) -> str:
        said = f"{said} for steps of {images} images of {height}x{width}"
        if images <= FEWEST * world():
            return f"{said}: give a smaller --size, or a smaller network"
        return (
            f"{said}: give --batch-size {images // 2} --accumulate {2 * config.accumulate}, by "
            "which the weights are updated for as many images, or --batch-size auto, which finds "
            "what fits"
        )

    return room(advice)


def room_at_once(images: int) -> contextlib.AbstractContextManager[None]:
    """The same where so many images are evaluated at a time."""
    fewer = f"give --batch-size {images // 2}" if images > 1 else "the network is too large for it"
    return room(lambda said: f"{said} for {images} images at a time: {fewer}")
