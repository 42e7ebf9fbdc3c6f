"""Files that leave height and width open: what is left open, and at which sizes they are compared with the model."""

from collections.abc import Hashable

from torch import Tensor

from ..errors import UsageError, suggest
from ..sizes import Sizes as Sizes

OPEN = ("batch", "size")  # what a file can leave open


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
                f"dynamic is {value!r}: {suggest(word, OPEN)}; batch leaves the number of images "
                "open, size height and width, batch,size all of them"
            )
    return "batch" in words, "size" in words


def open_name(named: dict[Hashable, str], formula: Hashable) -> str:
    """The name of an open dimension: "height", "width" where `named` says so, else "count", "count_2" and so on."""
    if formula not in named:
        number = sum(name.startswith("count") for name in named.values()) + 1
        named[formula] = "count" if number == 1 else f"count_{number}"
    return named[formula]


def open_shape(value: Tensor, there: Tensor, named: dict[Hashable, str]) -> list[int | str]:
    """The shape of an output, with a name for each dimension that is another at another size, `there`."""
    pairs = zip(value.shape, there.shape, strict=True)
    return [here if here == other else open_name(named, (here, other)) for here, other in pairs]
