"""Small data sets whose truth is known to the pixel.

Every picture is 96x64 and of one plain gray that no other has; its objects are rectangles in the
color of their class. So a test can tell from the pixels whether a sample is the right picture.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fleetnet.data import Split
from fleetnet.images import read

WIDTH, HEIGHT = 96, 64
CLASSES = ["bus", "car", "dog"]
COLORS = {"bus": (200, 0, 0), "car": (0, 200, 0), "dog": (0, 0, 200)}

Thing = tuple[str, int, int, int, int]  # class, x0, y0, x1, y1 in pixels; x1 and y1 are outside


@dataclass(frozen=True)
class Shot:
    """A picture, by its name without extension."""

    name: str
    gray: int
    things: tuple[Thing, ...]


TRAIN = (
    Shot("a1", 10, (("car", 8, 8, 40, 32), ("dog", 48, 16, 88, 56))),
    Shot("a2", 20, (("bus", 0, 0, 96, 64),)),
    Shot("a3", 30, ()),
    Shot("a4", 40, (("dog", 16, 24, 32, 48), ("dog", 40, 8, 64, 24), ("car", 72, 40, 96, 64))),
)
VAL = (
    Shot("b1", 50, (("dog", 24, 8, 56, 40),)),
    Shot("b2", 60, (("bus", 8, 16, 24, 56), ("car", 32, 0, 80, 48))),
)
TEST = (Shot("c1", 70, (("car", 64, 8, 88, 24), ("bus", 16, 32, 48, 56))),)
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}
# Of data without splits, of which every tenth picture is held back: the ninth and last is.
MANY = (
    *TRAIN,
    *VAL,
    *TEST,
    Shot("d1", 75, (("bus", 8, 8, 24, 24),)),
    Shot("d2", 80, (("dog", 0, 0, 8, 8),)),
)


# ---- what was read


def seen(split: Split) -> dict[str, list[Thing]]:
    """The objects of each sample by the name of its picture, which its pixels say."""
    names = {shot.gray: shot.name for shot in MANY}
    shown: dict[str, list[Thing]] = {}
    for sample in split.samples:
        image = read(sample.image)
        assert image.size == (WIDTH, HEIGHT)
        things = [
            (split.classes[item.label], *map(_pixel, item.box)) for item in sample.objects or ()
        ]
        shown[names[_gray_of(np.asarray(image))]] = things
    assert len(shown) == len(split.samples), "a picture is there twice"
    return shown


def truth(shots: Iterable[Shot]) -> dict[str, list[Thing]]:
    return {shot.name: list(shot.things) for shot in shots}


def _pixel(value: float) -> int:
    assert abs(value - round(value)) < 1e-3, f"{value} is no pixel"
    return round(value)


def _gray_of(pixels: np.ndarray) -> int:
    """The gray of a picture, from the mark in its corner."""
    return round(float(np.median(pixels[61:63, 90:94])) / 3)


# ---- pictures


def paint(shot: Shot) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), (3 * shot.gray,) * 3)
    pen = ImageDraw.Draw(image)
    for name, x0, y0, x1, y1 in shot.things:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLORS[name])
    # A mark in a corner, so that the picture is known whatever covers it.
    pen.rectangle((88, 60, 95, 63), fill=(3 * shot.gray,) * 3)
    return image


def save(path: Path, shot: Shot) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    paint(shot).save(path, quality=95, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
