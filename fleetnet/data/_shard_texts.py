"""What the texts of a sample in a shard say of it: the label, tags or objects, before classes are numbered."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import DataError
from ..reading import Fields, from_json, to_json
from . import number, shorten, whole

LABELS = ("label", "cls", "class", "class_id", "target", "class_name", "label_name", "category")
NAMES = ("class_name", "label_name", "category_name", "class_label")
TAGS = ("tags", "labels")
OBJECTS = ("objects", "annotations")
LONGEST = 100  # letters of a .txt that may be the name of a class

Label = int | str
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Told:
    """What the texts of a sample say."""

    label: Label | None = None
    name: str | None = None  # of the class of `label`, where that is a number
    tags: list[Label] | None = None
    objects: list[Fields] | None = None
    size: tuple[int, int] | None = None  # (height, width), upright; said with objects alone
    id: int | str | None = None


NOTHING = Told()


def parse(cls: bytes, text: bytes, source: str) -> Told:
    """What the content of `.cls` and `.json` says; `source` names the sample in errors.

    >>> parse(b"3", b"", "a").label, parse(b"", b'{"label": "cat"}', "a").label
    (3, 'cat')
    """
    told = parse_json(text, source) if text else NOTHING
    if not cls:
        return told
    return replace(told, label=label_of(_text(cls, source)))


def parse_json(text: bytes, source: str) -> Told:
    """What a `.json` says; one that says nothing to learn from is none of an error."""
    try:
        row = from_json(text.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{source}.json: not JSON, or cut off: {error}") from error
    if not isinstance(row, dict):
        plain = isinstance(row, int | str) and not isinstance(row, bool)
        return Told(label_of(row)) if plain else NOTHING
    objects = next((row[key] for key in OBJECTS if isinstance(row.get(key), list)), None)
    if objects is not None and not all(isinstance(item, dict) for item in objects):
        objects = None
    id_ = row.get("id")
    return Told(
        next((label_of(row[key]) for key in LABELS if _is_label(row.get(key))), None),
        next((row[key] for key in NAMES if isinstance(row.get(key), str)), None),
        _tags(row),
        objects,
        _size(row) if objects is not None else None,
        id_ if isinstance(id_, int | str) and not isinstance(id_, bool) else None,
    )


def _is_label(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def label_of(value: object) -> Label:
    """A label as a number, where it is one, or as a name."""
    index = whole(value)
    return str(value).strip() if index is None else index


def _tags(row: Mapping[str, object]) -> list[Label] | None:
    for key in (*TAGS, *LABELS):
        values = row.get(key)
        if isinstance(values, list) and all(_is_tag(value) for value in values):
            return [label_of(value) for value in values]
    return None


def _is_tag(value: object) -> bool:
    return _is_label(value) and (isinstance(value, str) or whole(value) is not None)


def _size(row: Mapping[str, object]) -> tuple[int, int] | None:
    height, width = whole(row.get("height")), whole(row.get("width"))
    if height is None or width is None or min(height, width) < 1:
        return None
    return height, width


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{source}.cls: not UTF-8 text: {shorten(repr(content))}") from error


def label_of_text(content: bytes) -> Label | None:
    """The label that a `.txt` may be; None for a caption: long, or of several lines."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    if not text or "\n" in text or len(text) > LONGEST:
        return None
    return label_of(text)


def box_of(row: Fields, entry: str) -> Box:
    """Corners xyxy: of `box`, or of COCO's `bbox`, which is a corner with width and height."""
    key = "box" if "box" in row else "bbox"
    box = row.get(key)
    values = [number(value) for value in box] if isinstance(box, list) else []
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) != 4 or len(values) != 4:
        form = "[x0, y0, x1, y1]" if key == "box" else "[x, y, width, height]"
        raise DataError(f"{entry}: {key} is {shorten(to_json(box))}; expected {form}")
    x, y, right, below = numbers
    return (x, y, right, below) if key == "box" else (x, y, x + right, y + below)


def label_of_object(row: Fields, entry: str) -> Label:
    keys = (*LABELS, "category_id", "name")
    label = next((label_of(row[key]) for key in keys if _is_label(row.get(key))), None)
    if label is None:
        raise DataError(f"{entry}: no label; expected a number or a name, as one of {keys}")
    return label
