"""The size of a network's input, as a user writes it. The command line reads it, so torch is not imported here."""

import re
from typing import Any

from .errors import UsageError

LARGEST_SIDE = 4096  # pixels: a network's first features are then 1 GB, and an image takes minutes


def parse_size(value: Any) -> tuple[int, int]:
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
