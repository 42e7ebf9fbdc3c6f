"""Sizes of a network's input: as a user writes one, and those that a file takes which leaves its size open.

The command line reads them, so torch is not imported here.
"""

import bisect
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]  # height, width
LARGEST_SIDE = 4096  # pixels: a network's first features are then 1 GB, and an image takes minutes
# Steps, high and wide, of the image that torch sees while it writes the network. Torch takes a map
# of one row for one that always has one: here the smallest map of all heads, SSD's at stride 256,
# has five rows and six columns. The two numbers differ and share no factor, so that rows do not
# pass for columns.
TRACED = (33, 41)


def parse_size(value: object) -> Size:
    """(height, width) in pixels from 224, "224", "192x256", [192, 256] or (192, 256)."""
    parts = (
        re.split("[x,]", value)
        if isinstance(value, str)
        else value
        if isinstance(value, list | tuple)
        else [value]
    )
    whole = [
        int(part)
        for part in parts
        if type(part) is int or (isinstance(part, str) and part.isdecimal())
    ]
    height, width = (whole[0], whole[-1]) if whole else (0, 0)
    if (
        len(whole) != len(parts)
        or len(parts) > 2
        or min(height, width) < 1
        or max(height, width) > LARGEST_SIDE
    ):
        raise UsageError(
            f"size is {value!r}; allowed: one number of pixels, or HEIGHTxWIDTH such as 192x256 "
            f"(192,256 is the same), up to {LARGEST_SIDE}"
        )
    return height, width


@dataclass(frozen=True)
class Sizes:
    """The heights and widths that a file takes: multiples of `step` pixels from `least` to `largest`."""

    step: int
    least: int
    largest: int

    @classmethod
    def of_stride(cls, stride: int) -> "Sizes":
        """All multiples of a network's largest stride, in pixels."""
        return cls(stride, stride, LARGEST_SIDE // stride * stride)

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"multiples of {self.step} from {self.least} to {self.largest}"

    def check(self, size: Size, what: str) -> None:
        """`UsageError`, saying `what` takes these sizes, for a height or width that is none of them."""
        if all(self.least <= side <= self.largest and side % self.step == 0 for side in size):
            return
        height, width = (self._nearest(side) for side in size)
        raise UsageError(
            f"size is {size[0]}x{size[1]}; {what} takes heights and widths that are {self}: the "
            f"nearest is {height}x{width}"
        )

    def _nearest(self, side: int) -> int:
        return min(max(round(side / self.step) * self.step, self.least), self.largest)

    def others(self, size: Size) -> list[Size]:
        """Where a file of this `size` is compared too: larger, wide, tall and, where there are such, smaller."""
        low_height, low_width = (max(side // self.step // 2, 1) * self.step for side in size)
        high_height, high_width = (
            min((side // self.step + max(side // self.step // 2, 1)) * self.step, self.largest)
            for side in size
        )
        corners = [
            (low_height, high_width), (high_height, low_width), (low_height, low_width), (high_height, high_width),
        ]  # fmt: skip
        return [corner for corner in dict.fromkeys(corners) if corner != size]

    def trace(self, example: "Tensor") -> "Tensor":
        """An image of zeros in place of the example, (N, C, H, W), at which torch sees nothing special."""
        return example.new_zeros(*example.shape[:2], *(self.step * steps for steps in TRACED))


# Sizes that change in a training ------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What holds from an epoch on."""

    epoch: int  # from 0
    size: Size
    strength: float = 1.0  # of the augmentation, from 0 to 1


@dataclass(frozen=True)
class Curriculum:
    """Stages of a training, in the order of their epochs; the first begins with the run.

    MobileOne (arXiv:2206.04040) goes from 160 pixels and weak augmentation to 224 and strong;
    FasterNet (arXiv:2303.03667) from 192 to 224 in its last 20 epochs.
    """

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
    if not str(text).strip():
        return None
    stages = []
    for part in str(text).split(","):
        words = part.strip().split(":")
        try:
            strength = float(words[2]) if len(words) == 3 else 1.0
            stage = Stage(_epoch(words[0]), parse_size(words[1]), strength)
        except (ValueError, IndexError, UsageError) as error:
            raise _no_curriculum(text, f"{part.strip()!r} is no stage") from error
        if len(words) > 3 or not 0 <= strength <= 1:
            raise _no_curriculum(text, f"{part.strip()!r} is no stage")
        stages.append(stage)
    epochs = [stage.epoch for stage in stages]
    if epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise _no_curriculum(text, "epochs do not rise from 0")
    return Curriculum(tuple(stages))


def _epoch(word: str) -> int:
    if not word.isdecimal():
        raise ValueError(word)
    return int(word)


def _no_curriculum(text: str, reason: str) -> UsageError:
    return UsageError(
        f"curriculum is {text!r}: {reason}; allowed: EPOCH:SIZE or EPOCH:SIZE:STRENGTH from 0 to 1, "
        "separated by commas, such as 0:160:0.3,39:192:0.6,114:224"
    )


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Sizes from "160,192,256"; () from ""; `UsageError` for what is no size."""
    try:
        return tuple(parse_size(part.strip()) for part in str(text).split(",") if part.strip())
    except UsageError as error:
        raise UsageError(
            f"sizes is {text!r}: {error}; several are separated by commas, as 160,192,256"
        ) from error
