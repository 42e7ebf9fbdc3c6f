"""Sizes of the input that change in a training: by the epoch, or from step to step.

    a curriculum   sizes and strengths of the augmentation by epoch: MobileOne (arXiv:2206.04040) goes
                   from 160 pixels and weak augmentation to 224 and strong; FasterNet
                   (arXiv:2303.03667) from 192 to 224 in its last 20 epochs
    sizes          each step has one of several by chance, and as many images as have the pixels of
                   the usual batch (CVNets, arXiv:2206.02680, section B): ParC-Net is trained so

Both are functions of the place in the run, so a run that continues needs to remember nothing.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..sizes import parse_size
from .randomness import choice, generator_of, of_size

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Stage:
    """What holds from an epoch on."""

    epoch: int  # from 0
    size: Size
    strength: float = 1.0  # of the augmentation, from 0 to 1


@dataclass(frozen=True)
class Curriculum:
    """Stages of a training, in the order of their epochs; the first begins with the run."""

    stages: tuple[Stage, ...]

    def at(self, epoch: int) -> Stage:
        """The stage of an epoch, from 0."""
        begun = bisect.bisect_right([stage.epoch for stage in self.stages], epoch)
        return self.stages[begun - 1]


def parse_curriculum(text: str) -> Curriculum | None:
    """Stages from "0:160:0.3, 39:192:0.6, 114:224": epoch, size, strength; None from "".

    Sizes are one number or HxW, strengths from 0 to 1, or 1 where they are left out. Raises
    `UsageError` unless epochs rise from 0.
    """
    if not text.strip():
        return None
    stages = []
    for part in text.split(","):
        words = part.strip().split(":")
        try:
            strength = float(words[2]) if len(words) == 3 else 1.0
            stage = Stage(int(words[0]), parse_size(words[1]), strength)
        except (ValueError, IndexError) as error:
            raise _no_curriculum(text, f"{part.strip()!r} is no stage") from error
        if len(words) > 3 or not 0 <= strength <= 1:
            raise _no_curriculum(text, f"{part.strip()!r} is no stage")
        stages.append(stage)
    epochs = [stage.epoch for stage in stages]
    if epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise _no_curriculum(text, "epochs do not rise from 0")
    return Curriculum(tuple(stages))


def _no_curriculum(text: str, reason: str) -> UsageError:
    return UsageError(
        f"curriculum is {text!r}: {reason}; allowed: EPOCH:SIZE or EPOCH:SIZE:STRENGTH from 0 to 1, "
        "separated by commas, such as 0:160:0.3,39:192:0.6,114:224"
    )


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Sizes from "160,192,256"; () from ""."""
    return tuple(parse_size(part.strip()) for part in text.split(",") if part.strip())


# From step to step --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """One of several sizes for each step of a training, and how many images it has there.

    `usual` and `batch` are the size and number of images of a process that memory and learning rate
    are meant for: smaller sizes have as many more as have the same pixels, in multiples of the
    `world` processes as CVNets has it, and larger ones no fewer.
    """

    sizes: tuple[Size, ...]
    usual: Size
    batch: int
    seed: int
    world: int = 1

    def at(self, epoch: int, step: int) -> Size:
        """The size of a step, for all processes alike."""
        return choice(self.sizes, generator_of(of_size(self.seed, epoch, step)))

    def images(self, size: Size) -> int:
        """How many images a step of a size has, in each process."""
        wanted = self.usual[0] * self.usual[1] * self.batch // (size[0] * size[1])
        return max(self.batch, round(wanted / self.world) * self.world)

    def steps(self, count: int) -> int:
        """Of an epoch of so many samples, as if all sizes came equally often; at least one."""
        mean = sum(self.images(size) for size in self.sizes) / len(self.sizes) * self.world
        return max(1, int(count / mean))


def largest(sizes: Sequence[Size]) -> Size:
    """The one with the most pixels."""
    return max(sizes, key=lambda size: size[0] * size[1])
