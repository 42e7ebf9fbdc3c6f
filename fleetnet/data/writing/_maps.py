"""Label maps as PNGs whose values are the labels; VOC's have a palette, so that people see something."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_map(labels: np.ndarray, path: Path, palette: list[int] | None = None) -> None:
    """A map of class indices (height, width) uint8 as a gray PNG, or one with a palette of colors."""
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def palette_of_voc() -> list[int]:
    """VOC's 256 colors, as r, g, b, r, g, b, ...: the bits of a number in turn, the lowest weigh most.

    >>> palette_of_voc()[:9]
    [0, 0, 0, 128, 0, 0, 0, 128, 0]
    """
    colors = np.zeros((256, 3), int)
    numbers = np.arange(256)
    for place in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> (3 * place + channel) & 1) << (7 - place)
    return [int(value) for value in colors.ravel()]
