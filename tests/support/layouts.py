"""Small data sets whose truth is known to the pixel, and writers of the layouts that tools leave them in.

Every picture is 96x64 and of one plain gray that no other has; its objects are rectangles in the
color of their class. So a test can tell from the pixels whether a sample is the right picture.
"""

import json
from collections.abc import Callable, Iterable, Sequence
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
        image = read(sample.image() if callable(sample.image) else sample.image)
        assert image.size == (WIDTH, HEIGHT)
        things = [
            (split.classes[item.label], *map(_pixel, item.box)) for item in sample.objects or ()
        ]
        shown[names[_gray_of(np.asarray(image))]] = things
    assert len(shown) == len(split.samples), "a picture is there twice"
    return shown


def truth(shots: Iterable[Shot], car: str = "car") -> dict[str, list[Thing]]:
    """The objects of each picture by its name, cars under another name."""
    return {
        shot.name: [(car if name == "car" else name, *box) for name, *box in shot.things]
        for shot in shots
    }


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


# ---- texts of annotation files


def yolo(shot: Shot, classes: Sequence[str] = CLASSES, form: str = "box") -> str:
    """Lines of a YOLO file: "box", "polygon" or "obb" (corners, clockwise), in shares of the picture."""
    lines = []
    for name, x0, y0, x1, y1 in shot.things:
        left, right, top, bottom = x0 / WIDTH, x1 / WIDTH, y0 / HEIGHT, y1 / HEIGHT
        values = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        if form != "box":
            values = [left, top, right, top, right, bottom, left, bottom]
        if form == "polygon":
            values += [left, (top + bottom) / 2]
        lines.append(" ".join([str(classes.index(name)), *(f"{value:.8f}" for value in values)]))
    return "".join(f"{line}\n" for line in lines)


def voc(shot: Shot, filename: str | None = None, size: bool = True, declared: str = "") -> str:
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in shot.things
    )
    sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    named = f"<filename>{shot.name}.jpg</filename>" if filename is None else ""
    named = f"<filename>{filename}</filename>" if filename else named
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    return f"{head}<annotation>{named}{sides if size else ''}{objects}</annotation>"


def coco(
    shots: Sequence[Shot],
    named: Callable[[Shot], str] = lambda shot: f"{shot.name}.jpg",
    classes: Sequence[str] = CLASSES,
    first: int = 1,
) -> dict:
    """A COCO document; category ids count from `first` in the order of `classes`."""
    images, annotations = [], []
    for id, shot in enumerate(shots, 1):
        images.append({"id": id, "file_name": named(shot), "width": WIDTH, "height": HEIGHT})
        for name, x0, y0, x1, y1 in shot.things:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": id,
                    "category_id": first + classes.index(name),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                }
            )
    categories = [{"id": first + i, "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(path: Path, document: object) -> Path:
    return write(path, json.dumps(document))
