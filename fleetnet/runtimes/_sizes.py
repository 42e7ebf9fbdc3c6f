"""Files that leave height and width open: which sizes they take, and at which they are compared with the model."""

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..errors import UsageError, choose

Size = tuple[int, int]  # height, width
OPEN = ("batch", "size")  # what a file can leave open
LARGEST = 4096  # pixels of a side, as of any input
# Steps, high and wide, of the image that torch sees while it writes the network. Torch takes a map
# of one row for one that always has one: here the smallest map of all heads, SSD's at stride 256,
# has five rows and six columns. The two numbers differ and share no factor, so that rows do not
# pass for columns.
TRACED = (33, 41)


@dataclass(frozen=True)
class Sizes:
    """The heights and widths that a file takes: multiples of `step` pixels from `least` to `largest`."""

    step: int
    least: int
    largest: int

    @classmethod
    def of_stride(cls, stride: int) -> "Sizes":
        """All multiples of a network's largest stride, in pixels."""
        return cls(stride, stride, LARGEST // stride * stride)

    @classmethod
    def from_dict(cls, about: Mapping[str, int]) -> "Sizes":
        return cls(about["step"], about["least"], about["largest"])

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

    def trace(self, example: Tensor) -> Tensor:
        """An image of zeros in place of the example, (N, 3, H, W), at which torch sees nothing special."""
        return example.new_zeros(*example.shape[:2], *(self.step * steps for steps in TRACED))


def parse_open(value: bool | str) -> tuple[bool, bool]:
    """Whether the number of images and the size are open: of True "batch", of False nothing.

    Raises `UsageError` for words other than "batch", "size" and "batch,size".
    """
    if isinstance(value, bool):
        return value, False
    words = [word.strip() for word in value.split(",")]
    for word in words:
        if word not in OPEN:
            raise UsageError(
                f"dynamic is {value!r}: {choose(word, OPEN)}; batch leaves the number of images "
                "open, size height and width, batch,size all of them"
            )
    return "batch" in words, "size" in words


def open_name(known: dict[Hashable, str], formula: Hashable) -> str:
    """The name of an open dimension: "height", "width" where `known` says so, else "count", "count_2" and so on."""
    if formula not in known:
        number = sum(name.startswith("count") for name in known.values()) + 1
        known[formula] = "count" if number == 1 else f"count_{number}"
    return known[formula]


def open_shape(value: Tensor, there: Tensor, known: dict[Hashable, str]) -> list[Any]:
    """The shape of an output, with a name for each dimension that is another at another size, `there`."""
    pairs = zip(value.shape, there.shape, strict=True)
    return [here if here == other else open_name(known, (here, other)) for here, other in pairs]
