"""What computes the layers of a file: the fast kernels of its runtime, or something slower.

Which kernels are the fast ones is a matter of the runtime, and stands in its file: matrix products
in int8, blocked convolutions, what a library such as XNNPACK was handed. A layer outside of them is
named with the reason. A share is one of multiply-accumulates (MACs): what only moves values or maps
them one by one has none, so it is named, but changes no share.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """What computes one layer of a file, or several that became one."""

    layer: str  # its name in the file
    operator: str  # as the runtime calls it
    macs: int = 0
    slow: str = ""  # why it is outside of the fast kernels; empty inside of them
    ms: float | None = None  # in a run that the runtime's profiler watched, where it has one

    def to_dict(self) -> dict[str, object]:
        return {
            "layer": self.layer,
            "operator": self.operator,
            "macs": self.macs,
            "slow": self.slow or None,
            "ms": self.ms,
        }


def fast_share(kernels: Iterable[Kernel]) -> float | None:
    """Which part of the MACs is in fast kernels, 0 to 1; None where there are none at all."""
    whole = fast = 0
    for kernel in kernels:
        whole += kernel.macs
        fast += 0 if kernel.slow else kernel.macs
    return fast / whole if whole else None


def outside(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Those outside of the fast kernels, the most MACs first, then the longest time."""
    slow = [kernel for kernel in kernels if kernel.slow]
    return sorted(slow, key=lambda kernel: (-kernel.macs, -(kernel.ms or 0.0)))


def macs_of_convolution(output: Sequence[int], weight: Sequence[int], channels: int) -> int:
    """Of an output's shape and the shape of a weight with so many output channels, in any order.

    Each value of the output is the sum of the products with one output channel's weights.
    """
    return math.prod(output) * (math.prod(weight) // max(channels, 1))
