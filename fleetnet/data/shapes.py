"""Generated pictures of shapes on cluttered backgrounds: data to try things on, without a download.

"shapes" is 2000 pictures for training and 500 for "val", "shapes:COUNT" is COUNT and a quarter of
it. A picture shows one object, its label; for boxes, masks and tags (the classes that it shows) one to
four, smaller, that do not touch. It is a `Scene` first (which shapes stand where, as polygons in
pixels) and is rendered from it, so that boxes and masks can be read off. Scenes depend on nothing
but their number and split, and are the same on every machine; the rendered pixels may differ a
little between versions of Pillow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UsageError
from . import SPLITS, Annotations, Object, Sample, Source, Split
from ._conventions import USUAL, Places

EXPECTS = '"shapes" or "shapes:COUNT" (generated pictures; a folder of that name is "./shapes")'
TARGETS: tuple[str, ...] = ("label", "tags", "boxes", "masks", "semantic")
FALLBACK = False
PLACES: tuple[str, ...] = ()
CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")
COUNT, SIZE = 2000, 96
SMALLEST = 8  # pictures: fewer would leave val without a second one
TILT = math.pi / 10  # the largest turn of a shape, either way
# of 256: below it the background, from it the object; lines and clutter have any color
DARK, BRIGHT = 128, 128
_OVERSAMPLE = 2  # drawn larger, then averaged: smooth edges

Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """One shape: class index, color, and its outline as (x, y) in pixels; a ring's goes around it and then its hole."""

    label: int
    color: Color
    outline: list[Point]

    def box(self) -> tuple[float, float, float, float]:
        """The smallest box around it: xyxy in pixels."""
        xs, ys = zip(*self.outline, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def polygon(self) -> list[float]:
        """The outline as COCO writes it: x, y, x, y, ..."""
        return [value for point in self.outline for value in point]

    def mask(self, size: int) -> Image.Image:
        """Where it is, as a picture of mode L with 255 inside: (size, size)."""
        image = Image.new("L", (size * _OVERSAMPLE, size * _OVERSAMPLE))
        _fill(ImageDraw.Draw(image), self.outline, 255)
        return image.reduce(_OVERSAMPLE).point(lambda share: 255 * (share > 127))


@dataclass(frozen=True)
class Scene:
    """What a picture shows, from back to front: corner colors, lines, small shapes of any class, objects, noise."""

    size: int
    corners: list[Color]  # of the background: top left, top right, bottom left, bottom right
    lines: list[tuple[Point, Point, Color]]
    clutter: list[Shape]
    objects: list[Shape]
    noise: bytes  # (size // 2)^2 values of gray, laid over everything


def detect(root: str, target: str = "label") -> bool:
    return root == "shapes" or root.startswith("shapes:")


def load(root: str, split: str | None, target: str = "label", elsewhere: Places = USUAL) -> Split:
    """The samples of a split; `UsageError` for a count that is none. "all" is the pictures of "train", None of "val".

    Label maps have "background" as their first class.
    """
    count, split = parse(root), split or "val"
    first = "train" if split == "all" else split
    number = count if first == "train" else count // 4
    source = Source(root, "shapes", split, f"{root} (generated)")
    classes = list(CLASSES)
    if target == "label":
        samples = [Sample(partial(draw, i, first), i % len(CLASSES)) for i in range(number)]
        return Split(samples, classes, source=source)
    if target == "semantic":
        samples = [
            Sample(partial(draw_several, i, first), semantic=partial(label_map, i, first))
            for i in range(number)
        ]
        return Split(
            samples, ["background", *CLASSES], source=source, annotations=Annotations(number)
        )
    masks = target != "boxes"
    shown = [several(i, first).objects for i in range(number)]
    if target == "tags":
        samples = [
            Sample(partial(draw_several, i, first), tags=tuple(sorted({x.label for x in shapes})))
            for i, shapes in enumerate(shown)
        ]
        return Split(samples, classes, source=source)
    objects = [
        tuple(Object(x.box(), x.label, [x.polygon()] if masks else None) for x in shapes)
        for shapes in shown
    ]
    samples = [Sample(partial(draw_several, i, first), objects=objects[i]) for i in range(number)]
    return Split(samples, classes, source=source, annotations=Annotations(sum(map(len, objects))))


def parse(root: str) -> int:
    """The number of pictures for training: parse("shapes:600") -> 600."""
    _, colon, count = root.partition(":")
    if not colon and detect(root):
        return COUNT
    if not detect(root) or not (count.isascii() and count.isdigit()) or int(count) < SMALLEST:
        raise UsageError(
            f"data is {root!r}; allowed: shapes, or shapes:COUNT with a COUNT of at "
            f"least {SMALLEST}"
        )
    return int(count)


def draw(index: int, split: str = "train", size: int = SIZE) -> Image.Image:
    """Picture `index` of a split: RGB, (size, size), the shape of class index % 6 being the object."""
    return render(scene(index, split, size))


def draw_several(index: int, split: str = "train", size: int = SIZE) -> Image.Image:
    """Picture `index` of a split with one to four objects: RGB, (size, size)."""
    return render(several(index, split, size))


def label_map(index: int, split: str = "train", size: int = SIZE) -> np.ndarray:
    """The label of each pixel of that picture: uint8 (size, size), 0 where no object is, else its class plus 1."""
    labels = np.zeros((size, size), np.uint8)
    for shape in several(index, split, size).objects:
        labels[np.asarray(shape.mask(size)) > 0] = shape.label + 1
    return labels


def several(index: int, split: str = "train", size: int = SIZE) -> Scene:
    """What picture `index` of a split shows where objects are asked for: one to four that do not touch."""
    behind = scene(index, split, size)
    random = Random((index * len(SPLITS) + SPLITS.index(split)) ^ 1 << 40)
    placed: list[tuple[Point, float]] = []
    objects: list[Shape] = []
    for i in range(1 + int(random.random() * 4)):
        for _ in range(20):  # places to try; where none is free, there are fewer
            radius = size * _between(random, 0.1, 0.25)
            center = (
                _between(random, radius, size - radius),
                _between(random, radius, size - radius),
            )
            if all(math.dist(center, other) > radius + reach + 1 for other, reach in placed):
                placed.append((center, radius))
                label = (index + i * (1 + index // len(CLASSES))) % len(CLASSES)
                objects.append(_shape(random, label, center, radius, _color(random, BRIGHT, 256)))
                break
    return replace(behind, objects=objects)


def scene(index: int, split: str = "train", size: int = SIZE) -> Scene:
    """What picture `index` of a split shows: one object on its background."""
    # its random() is the same in every version
    random = Random(index * len(SPLITS) + SPLITS.index(split))
    corners = [_color(random, 0, DARK) for _ in range(4)]
    lines = [
        (_point(random, size), _point(random, size), _color(random))
        for _ in range(int(random.random() * 4))
    ]
    clutter = []
    for _ in range(int(random.random() * 6)):
        radius = size * _between(random, 0.03, 0.06)
        clutter.append(
            _shape(random, int(random.random() * 6), _point(random, size), radius, _color(random))
        )
    radius = size * _between(random, 0.25, 0.4)
    center = _between(random, radius, size - radius), _between(random, radius, size - radius)
    thing = _shape(random, index % len(CLASSES), center, radius, _color(random, BRIGHT, 256))
    return Scene(size, corners, lines, clutter, [thing], random.randbytes((size // 2) ** 2))


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, (size, size)."""
    image = Image.new("RGB", (2, 2))
    image.putdata(scene.corners)
    image = image.resize(
        (scene.size * _OVERSAMPLE, scene.size * _OVERSAMPLE), Image.Resampling.BILINEAR
    )
    pen = ImageDraw.Draw(image)
    for start, end, color in scene.lines:
        pen.line(_larger([start, end]), fill=color, width=max(1, scene.size // 24))
    for shape in [*scene.clutter, *scene.objects]:
        _fill(pen, shape.outline, shape.color)
    image = image.reduce(_OVERSAMPLE)
    grain = Image.frombytes("L", (scene.size // 2, scene.size // 2), scene.noise).resize(image.size)
    return Image.blend(image, grain.convert("RGB"), 0.08)


def _fill(pen: ImageDraw.ImageDraw, outline: Sequence[Point], color: Color | int) -> None:
    larger = _larger(outline)
    pen.polygon(larger, fill=color)
    # without it, some rings show where their outline steps in
    pen.line(larger, fill=color, width=_OVERSAMPLE)


def _larger(points: Sequence[Point]) -> list[Point]:
    return [(x * _OVERSAMPLE, y * _OVERSAMPLE) for x, y in points]


def _shape(random: Random, label: int, center: Point, radius: float, color: Color) -> Shape:
    turn = _between(random, -TILT, TILT)
    cos, sin, (x, y) = radius * math.cos(turn), radius * math.sin(turn), center
    return Shape(
        label,
        color,
        [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in _OUTLINES[CLASSES[label]]],
    )


def _around(*radii: float, corners: int) -> list[Point]:
    """Points around (0, 0), at distances that take turns; the first comes again as the last."""
    turns = [2 * math.pi * i / corners for i in range(corners + 1)]
    return [
        (radii[i % len(radii)] * math.cos(t), radii[i % len(radii)] * math.sin(t))
        for i, t in enumerate(turns)
    ]


_OUTLINES: dict[str, list[Point]] = {  # of a shape with radius 1
    "circle": _around(0.85, corners=32),
    "cross": [
        (c * x - s * y, s * x + c * y)
        for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
        for x, y in ((0.3, -0.3), (0.95, -0.3), (0.95, 0.3))
    ],
    "ring": _around(1.0, corners=32)
    + _around(0.55, corners=32)[::-1],  # one line: around, a step in, and back
    "square": _around(1.0, corners=4),
    "star": _around(1.0, 0.42, corners=10),
    "triangle": _around(1.0, corners=3),
}


def _between(random: Random, low: float, high: float) -> float:
    return low + (high - low) * random.random()


def _point(random: Random, size: int) -> Point:
    return size * random.random(), size * random.random()


def _color(random: Random, low: int = 0, high: int = 256) -> Color:
    red, green, blue = (low + int(random.random() * (high - low)) for _ in range(3))
    return red, green, blue
