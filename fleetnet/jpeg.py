"""JPEG files through simplejpeg: the pixels that Pillow gives, in half of the time or less.

simplejpeg calls libjpeg-turbo, as Pillow does, and writes into an array where Pillow writes into an
image that has to be copied once more. Where it is not installed, or refuses a file, Pillow decides.
"""

from functools import cache
from types import ModuleType

import numpy as np

REDUCTIONS = (8, 4, 2)  # by which the decoder shrinks a picture, with less work than for all of it


def decode(content: bytes, size: tuple[int, int], *, gray: bool, by: int = 1) -> np.ndarray | None:
    """The pixels of a JPEG of this (height, width), shrunk `by` 1, 2, 4 or 8: uint8.

    (ceil(height / by), ceil(width / by), 3), RGB, or 1 in place of 3 for a `gray` file. None where
    Pillow has to read it: simplejpeg is not installed, or finds the least thing wrong with the
    file.
    """
    simplejpeg = _simplejpeg()
    if simplejpeg is None:
        return None
    height, width = -(-size[0] // by), -(-size[1] // by)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            content, "GRAY" if gray else "RGB", min_height=height, min_width=width
        )
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def reduction(source: tuple[float, float], target: tuple[int, int]) -> int:
    """The largest number to shrink pixels by, so that `source` (rows, columns) stay `target`."""
    least = min(source[0] / target[0], source[1] / target[1])
    return next((by for by in REDUCTIONS if by <= least), 1)


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg  # here: wheels are not made for every system
    except ImportError:
        return None
    return simplejpeg
