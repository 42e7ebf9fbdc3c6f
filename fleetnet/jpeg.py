"""JPEG files through simplejpeg: the pixels that Pillow gives, in half of the time or less.

simplejpeg calls libjpeg-turbo, as Pillow does, and writes into an array where Pillow writes into an
image that has to be copied once more. Where it is not installed, or refuses a file, Pillow decides.
"""

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

START = b"\xff\xd8\xff"  # of every JPEG
_BASELINE = 0xC0, 0xC1
_APP2 = 0xE2
# tables of quantization, of Huffman codes, restarts, JFIF, color profiles, and comments
_PASSED_OVER = 0xDB, 0xC4, 0xDD, 0xE0, _APP2, 0xFE
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


class Head(NamedTuple):
    """What the head of a plain JPEG says."""

    height: int
    width: int
    gray: bool


def head(content: bytes) -> Head | None:
    """The head of a plain JPEG: baseline, of 8 bits, gray or in color, upright, one picture.

    None for any other one, which Pillow has to look at: with metadata of a camera (APP1: EXIF may
    turn it), of several pictures (APP2 with MPF), progressive, of four colors, or damaged. It takes
    a tenth of the time that Pillow takes.
    """
    if not content.startswith(START):
        return None
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place + 4 : place + 2 + length]
        if marker in _BASELINE:
            return _of_frame(segment)
        if marker not in _PASSED_OVER or (marker == _APP2 and segment[:12] != b"ICC_PROFILE\0"):
            return None
        place += 2 + length
    return None


def _of_frame(segment: bytes) -> Head | None:
    """The head of a frame: bits, height, width, number of colors."""
    if len(segment) < 6:
        return None
    bits, colors = segment[0], segment[5]
    height, width = (int.from_bytes(segment[at : at + 2], "big") for at in (1, 3))
    is_plain = bits == 8 and colors in (1, 3) and len(segment) == 6 + 3 * colors
    if not is_plain or not height * width:
        return None
    return Head(height, width, colors == 1)


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
