"""The whole way from a picture to what is found in it, in its four parts.

    jpeg        the bytes of a JPEG -> its pixels
    preprocess  pixels -> the network's input
    run         the input -> the outputs, by the file in its runtime
    decode      the outputs -> labels, boxes or a label map, in the pixels of the picture

It is what `Predictor.predictions` does, and each part is timed in turn with all others.
"""

import io
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .latency import Row

if TYPE_CHECKING:
    from torch import Tensor

    from ..deploy.predictor import Predictor
    from ..images import Picture
    from ..predictions import Prediction

PARTS = ("jpeg", "preprocess", "run", "decode")
SIZE = (640, 480)  # width and height of the picture, unless one is given
QUALITY = 90  # of its JPEG


def usual_picture() -> bytes:
    """A JPEG of 640x480 with shapes of all sizes and some noise, about as large as that of a photo."""
    random = np.random.default_rng(0)
    width, height = SIZE
    pixels = np.zeros((height, width, 3))
    for cells in (4, 16, 64):  # fewer large shapes, more small ones
        colors = random.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8)
        layer = Image.fromarray(colors).resize(SIZE, Image.Resampling.BICUBIC)
        pixels += np.asarray(layer, np.float64) / 3
    pixels += random.normal(0, 4, pixels.shape)
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


class Steps:
    """The parts for one picture and one network, each as a call that can be repeated."""

    def __init__(self, predictor: "Predictor", content: bytes):
        self.predictor, self.content = predictor, content
        self.picture = self.jpeg()
        self.batch = self.preprocess()
        self.outputs = self.run()

    def jpeg(self) -> "Picture":
        return self.predictor.preprocess.read(self.content)

    def preprocess(self) -> "Tensor":
        """(1, C, H, W)"""
        return self.predictor.preprocess(self.picture)[None]

    def run(self) -> "dict[str, Tensor]":
        return self.predictor(self.batch)

    def decode(self) -> "Prediction":
        predictor, picture = self.predictor, self.picture
        (prediction,) = predictor.decode(self.outputs, predictor.preprocess.size)
        return prediction.restore(*predictor.place_of(picture))

    def calls(self) -> dict[str, Callable[[], object]]:
        """By the names of the parts."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True)
class Pipeline:
    """The time of each part, in milliseconds: medians over the rounds, without waiting for a core."""

    parts: Mapping[str, float]
    whole: float  # median of the sums of a round

    @classmethod
    def of(cls, rows: Mapping[str, Row]) -> "Pipeline":
        """Of the rows of the parts, by the name of the part."""
        sums = [sum(times) for times in zip(*(rows[part].working for part in PARTS), strict=True)]
        medians = {part: statistics.median(rows[part].working) for part in PARTS}
        return cls(medians, statistics.median(sums))
