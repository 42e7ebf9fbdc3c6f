"""The network's input by Pillow alone, which resizes in one step from a box that is not of whole pixels."""

import numpy as np
from PIL import Image

from fleetnet.preprocess import PADDING, Preprocess

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def input_by_pillow(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """(height, width, 3) uint8; as `Preprocess.pixels`, antialiased."""
    place, (h, w) = preprocess.place(image.height, image.width), preprocess.size
    resampling = RESAMPLING[preprocess.interpolation]
    if preprocess.mode == "letterbox":
        size = round(place.width * place.scale_x), round(place.height * place.scale_y)
        canvas = Image.new("RGB", (w, h), (PADDING,) * 3)
        canvas.paste(image.resize(size, resampling), (int(place.left), int(place.top)))
        return np.array(canvas)
    box = (
        max(-place.left / place.scale_x, 0.0),
        max(-place.top / place.scale_y, 0.0),
        min((w - place.left) / place.scale_x, image.width),
        min((h - place.top) / place.scale_y, image.height),
    )
    return np.array(image.resize((w, h), resampling, box=box))
