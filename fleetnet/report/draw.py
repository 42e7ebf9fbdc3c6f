"""Predictions drawn on pictures, and sheets of pictures, with Pillow alone."""

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from ..errors import UsageError
from ..files import replacing

COVERED_ROWS = 256
COVER = 0.5  # share of a color in what it lies on
CROWDED = 0.2  # share of a picture that names may hide
GRAY = (90, 90, 90)

Font = ImageFont.FreeTypeFont
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1


def colors(count: int) -> list[tuple[int, int, int]]:
    """RGB of each class, 0 to 255: hues a golden angle apart, so that the first few differ most."""
    hues = ((i * 0.618034) % 1 for i in range(count))
    # saturation and value, another for each turn of the hues
    shades = [(1.0, 1.0), (0.6, 1.0), (1.0, 0.65)]
    mixed = (colorsys.hsv_to_rgb(hue, *shades[i // 8 % 3]) for i, hue in enumerate(hues))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in mixed]


def draw_objects(
    picture: Image.Image,
    boxes: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    scores: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    threshold: float = 0.0,
) -> Image.Image:
    """A copy of an RGB picture with boxes (n, 4) on it, and the names of their classes.

    The classes are `labels` (n,). Where there are scores (n,), they stand beside the names, and
    only what has at least `threshold` is drawn. Where there are masks (n, height, width), each has
    a color of its own; boxes without masks have that of their class. Names stand where they hide no
    other; those without room are left out, and then a legend counts the classes.
    """
    boxes, labels = np.asarray(boxes), np.asarray(labels)
    sure = np.ones(len(boxes)) if scores is None else np.asarray(scores)
    best_first = np.argsort(-sure, kind="stable").tolist()
    order = [i for i in best_first if sure[i] >= threshold]
    by_class = colors(len(classes))
    if masks is None:
        shades = {i: by_class[int(labels[i])] for i in order}
        drawn = picture.copy()
    else:
        shades = dict(zip(order, colors(len(order)), strict=True))
        drawn = _with_masks(picture, np.asarray(masks), shades)
    pen, font = ImageDraw.Draw(drawn), _font(picture)
    width = max(1, round(min(picture.size) / 200))
    for i in reversed(order):  # the best on top
        x0, y0, x1, y1 = boxes[i].tolist()
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=shades[i], width=width)
    names = {i: classes[labels[i]] for i in order}
    if scores is not None:
        names = {i: f"{name} {sure[i]:.2f}" for i, name in names.items()}
    letters = sum(pen.textlength(name, font) * font.size for name in names.values())
    crowded = letters / (picture.width * picture.height) > CROWDED
    without_name = len(order) if crowded else _name_boxes(pen, font, boxes, names, shades)
    if without_name:
        counts = Counter(sorted(labels[order].tolist()))
        texts = {label: f"{count} x {classes[label]}" for label, count in counts.items()}
        legend_colors = {label: by_class[label] if masks is None else GRAY for label in counts}
        _legend(pen, texts, legend_colors, font)
    return drawn


def _with_masks(
    picture: Image.Image, masks: np.ndarray, shades: Mapping[int, tuple[int, int, int]]
) -> Image.Image:
    """A copy of the picture under its masks (n, rows, columns), the first in `shades` on top.

    Masks may be smaller than the picture. Some rows at a time are laid on it, so that it is in
    memory as often as it has to be.
    """
    drawn = picture.copy()
    for i in reversed(list(shades)):
        across, down = (_shown(masks[i].any(axis), size) for axis, size in enumerate(picture.size))
        for start in range(0, len(down), COVERED_ROWS):
            rows = down[start : start + COVERED_ROWS]
            place = across[0][0], rows[0][0], across[-1][0] + 1, rows[-1][0] + 1
            part = np.array(drawn.crop(place))
            _cover(part, masks[i][rows[:, 1][:, None], across[:, 1]] > 0, shades[i])
            drawn.paste(Image.fromarray(part), place[:2])
    return drawn


def _shown(marked: np.ndarray, size: int) -> np.ndarray:
    """(row of a picture with `size` rows, row of the mask there), from the first to the last that is marked.

    Columns likewise. `marked` (rows,) says in which rows of the mask there is something.
    """
    places = np.arange(size)
    of_mask = places * len(marked) // size
    inside = np.flatnonzero(marked[of_mask])
    if not len(inside):
        return np.empty((0, 2), int)
    part = slice(inside[0], inside[-1] + 1)
    return np.stack([places[part], of_mask[part]], 1)


def _name_boxes(
    pen: ImageDraw.ImageDraw,
    font: Font,
    boxes: np.ndarray,
    names: Mapping[int, str],
    shades: Mapping[int, tuple[int, int, int]],
) -> int:
    """Write the name of each box where it covers no other name; how many found no such place.

    Tried are, in turn: on the box, in its upper left corner, below it, and at its upper right
    corner.
    """
    taken: list[Rectangle] = []
    without = 0
    for i, name in names.items():
        x0, y0, x1, y1 = boxes[i].tolist()
        width, height = _tag_size(pen, name, font)
        corners = [
            (x0, y0 - height),
            (x0, y0),
            (x0, y1),
            (x1 - width, y0 - height),
            (x1 - width, y0),
        ]
        places = [_inside((x, y, x + width, y + height), pen.im.size) for x, y in corners]
        free = [place for place in places if not any(overlap(place, other) for other in taken)]
        if not free:
            without += 1
            continue
        taken.append(free[0])
        _tag(pen, *free[0][:2], name, shades[i], font)
    return without


def _inside(place: Rectangle, size: tuple[int, int]) -> Rectangle:
    """The rectangle moved into a picture of `size` (width, height), as far as it fits."""
    x0, y0, x1, y1 = place
    x = max(0.0, min(x0, size[0] - (x1 - x0)))
    y = max(0.0, min(y0, size[1] - (y1 - y0)))
    return x, y, x + x1 - x0, y + y1 - y0


def overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_pixels(picture: Image.Image, labels: ArrayLike, classes: Sequence[str]) -> Image.Image:
    """A copy of an RGB picture with the class of each pixel, `labels` (height, width), as a color.

    The names of the classes that there are stand in its corner. "background" stays as it is.
    """
    pixels, palette = np.array(picture), colors(len(classes))
    labels = np.asarray(labels)
    shown = [
        i for i in np.unique(labels).tolist() if i < len(classes) and classes[i] != "background"
    ]
    for i in shown:
        _cover(pixels, labels == i, palette[i])
    drawn = Image.fromarray(pixels)
    _legend(
        ImageDraw.Draw(drawn),
        {i: classes[i] for i in shown},
        {i: palette[i] for i in shown},
        _font(picture),
    )
    return drawn


def _legend(
    pen: ImageDraw.ImageDraw,
    texts: Mapping[int, str],
    shades: Mapping[int, tuple[int, int, int]],
    font: Font,
) -> None:
    """Texts below each other in the upper left corner, by class."""
    y = 0.0
    for i, text in texts.items():
        y = _tag(pen, 0, y, text, shades[i], font)


def _cover(pixels: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Lay a color over the pixels of a mask.

    It is done some rows at a time: as floats a whole photo takes half a gigabyte.
    """
    for top in range(0, len(pixels), COVERED_ROWS):
        rows, under = pixels[top : top + COVERED_ROWS], mask[top : top + COVERED_ROWS]
        rows[under] = ((1 - COVER) * rows[under] + COVER * np.array(color)).astype(np.uint8)


def _font(picture: Image.Image) -> Font:
    """As large as names on a picture are."""
    return _font_of(max(12, round(min(picture.size) / 40)))


def _font_of(size: int) -> Font:
    return cast(Font, ImageFont.load_default(size))  # Pillow has FreeType in all of its wheels


def _tag_size(pen: ImageDraw.ImageDraw, text: str, font: Font) -> tuple[float, float]:
    """Width and height of a text with its margin, in pixels."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    return right - left + 4, bottom - top + 4


def _tag(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, color: tuple[int, int, int], font: Font
) -> float:
    """Text on its color, with its upper left corner at (x, y); returns its lower edge."""
    left, top, _, _ = pen.textbbox((0, 0), text, font=font)
    width, height = _tag_size(pen, text, font)
    pen.rectangle((x, y, x + width, y + height), fill=color)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    pen.text((x + 2 - left, y + 2 - top), text, fill="black" if bright else "white", font=font)
    return y + height


def label_map(labels: ArrayLike, classes: Sequence[str]) -> Image.Image:
    """A map of class indices (height, width) as a picture with the colors as its palette."""
    image = Image.fromarray(np.asarray(labels).astype(np.uint8))
    image.putpalette([value for color in colors(len(classes)) for value in color])
    return image


def captioned(picture: Image.Image, text: str, side: int) -> Image.Image:
    """The whole picture in a square of `side` pixels, with a line of text above it.

    There is as much of the text as fits.
    """
    font = _font_of(max(11, side // 22))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    while text and pen.textlength(text, font) > side - 4:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    line = round(font.size * 1.4)
    whole = Image.new("RGB", (side, side + line), "white")
    ImageDraw.Draw(whole).text((2, 1), text, fill="black", font=font)
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    small = picture.resize(
        size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BILINEAR
    )
    whole.paste(small, ((side - small.width) // 2, line + (side - small.height) // 2))
    return whole


def grid(pictures: Sequence[Image.Image], columns: int, path: Path | str, gap: int = 6) -> None:
    """Pictures of one size in rows of `columns`, as one image file.

    Raises `UsageError` if there are none.
    """
    if not pictures:
        raise UsageError("no picture to show")
    columns = min(columns, len(pictures))
    width, height = pictures[0].width + gap, pictures[0].height + gap
    whole = Image.new(
        "RGB", (columns * width + gap, -(-len(pictures) // columns) * height + gap), "white"
    )
    for i, picture in enumerate(pictures):
        whole.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    save(whole, path)


def save(picture: Image.Image, path: Path | str, **options: object) -> None:
    """Write a picture in the format of its name.

    At any time the file at `path` is the old or the new one, whole.
    """
    suffixes = Image.registered_extensions()
    with replacing(Path(path)) as file:
        picture.save(file, suffixes[Path(path).suffix.lower()], **options)
