"""COCO JSON: one file a split, with boxes, polygons, run-length masks and crowds.

    root/annotations/instances_train.json  root/images/train/*.jpg     (also train2017, and _annotations.coco.json)

`root` may also be one such file: if "train" or "val" is in its name, or is the name of its folder,
the file of the other split is the one beside it with the other name. Where there is none for "val",
every tenth image is held back. Classes are ordered by their category ids, which `Split.ids` keeps;
categories of one name are one class. Numbers may be written as text, as some tools do. Format:
https://cocodataset.org/#format-data.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from . import (
    Notes,
    Object,
    Sample,
    Source,
    Split,
    _native,
    check_exists,
    check_images,
    few,
    files_beside,
    fit_box,
    hold_out,
    inside,
    measured,
    note_turned,
    number,
    part_of,
    shorten,
    text_of,
    whole,
)
from ._conventions import by_split, file_called, files_in, folders_in, split_of
from ._masks import POINTS, NoMask, check_segmentation

EXPECTS = (
    "ROOT/annotations/instances_train.json and instances_val.json, with ROOT/images/train or "
    "ROOT/images; or a .json"
)
TARGETS: tuple[str, ...] = ("boxes", "masks")
FALLBACK = False
# of images, below the root; then any */JPEGImages
_FOLDERS = "images/{0}", "{0}", "images", "JPEGImages", "."


def detect(root: str) -> bool:
    """True for a JSON file, and for a folder with the file of a split."""
    path = Path(root)
    if os.path.isdir(path):
        return bool(_files_of(path))
    return os.path.isfile(path) and path.suffix == ".json"


def load(root: str, split: str | None, target: str = "boxes") -> Split:
    """The samples of a split, in the order of the file; images without objects are among them.

    Images that cannot be read, or are not of the size that the file says, are left out with a line
    in `skipped`. With target "masks" each object has a mask, with "boxes" none has. Raises
    `DataError` naming file and entry for whatever does not parse, images that do not exist and
    paths that leave the folder of the data.
    """
    check_exists(root)
    own, there = _named(Path(root))
    part = part_of(split, there, root, own)
    path = there.get(part.there, Path(root))
    place = path.parent if os.path.isfile(Path(root)) else Path(root)
    place = place.parent if os.path.isfile(Path(root)) and place.name == "annotations" else place
    parsed = _parse(text_of(path), str(path), target, part.take)
    source = Source(root, "coco", part.split, str(path), part.take)
    if not parsed.samples:
        return Split([], parsed.classes, source=source)
    notes = parsed.notes
    names = [str(sample.image) for sample in parsed.samples]
    for sample in parsed.samples:  # before any of them is looked for
        inside(place / str(sample.image), place, f"{path}, image {sample.id}")
    folder = _folder(place, path, names[0])
    paths = [inside(folder / name, place, str(path)) for name in names]
    check_images(paths, str(path))
    kept: list[Sample] = []
    turned: list[Path] = []
    lines, notes.lines = notes.lines, []  # pictures are told before annotations
    for sample, image in zip(parsed.samples, paths, strict=True):
        of_this: list[Path] = []
        size, said = measured(image, notes, of_this), parsed.sizes[sample.id]
        if size == said:
            kept.append(replace(sample, image=image))
            turned += of_this
            continue
        if size:
            entry = f"{path}, image {sample.id}, says {said[1]}x{said[0]}"
            because = ", turned by its EXIF orientation" if of_this else ""
            notes.say(f"{str(image)!r}: left out, it is {size[1]}x{size[0]}{because}; {entry}")
        if sample.objects:
            notes.drop("of pictures left out", count=len(sample.objects))
    note_turned(turned, notes)
    return Split(kept, parsed.classes, notes.lines + lines, parsed.ids, source, notes.annotations())


def parse(text: str, source: str, target: str = "boxes") -> Split:
    """The images of a COCO file with their objects; `Sample.image` is as in the file. `source` names it in errors.

    Annotations without a size or of unknown images are dropped, with a line in `skipped`; so are
    those without a mask where `target` is "masks".
    """
    parsed = _parse(text, source, target)
    notes = parsed.notes
    return Split(
        parsed.samples, parsed.classes, notes.lines, parsed.ids, annotations=notes.annotations()
    )


class _Parsed(NamedTuple):
    """A COCO file, or our part of it."""

    samples: list[Sample]  # `image` as in the file
    classes: list[str]
    ids: list[int]  # of the categories, in the order of classes
    sizes: dict[int | str | None, tuple[int, int]]  # (height, width) of each image, by its id
    notes: Notes


def _parse(text: str, source: str, target: str, take: str = "all") -> _Parsed:
    rows = _lists(text, source)
    notes = Notes()
    ids, classes = _categories(rows["categories"], source, notes)
    pictures = dict(_pictures(rows["images"], source))
    chosen = set(hold_out(list(pictures), take))
    objects: dict[int | str, list[Object]] = {id: [] for id in pictures}
    for i, row in enumerate(rows["annotations"]):
        entry = f"{source}, annotation {shorten(row.get('id', f'number {i}'))}"
        id, category = _id(row.get("image_id")), whole(row.get("category_id"))
        if id in pictures and id not in chosen:
            continue
        notes.read += 1
        if id is None or id not in pictures:
            line = f"{entry}: dropped, there is no image with the id {shorten(repr(row.get('image_id')))}"
            notes.drop("of an image that the file does not list", line)
            continue
        if category is None or category not in ids:
            given = shorten(repr(row.get("category_id")))
            raise DataError(f"{entry}: no category with the id {given}; there are {few(ids, 10)}")
        item = _object(row, ids[category], pictures[id][1], entry, notes, target)
        if item:
            objects[id].append(item)
    samples = [
        Sample(Path(name), objects=tuple(objects[id]), id=id)
        for id, (name, _) in pictures.items()
        if id in chosen
    ]
    sizes: dict[int | str | None, tuple[int, int]] = {
        id: size for id, (_, size) in pictures.items()
    }
    first = {label: id for id, label in reversed(ids.items())}
    return _Parsed(samples, classes, [first[label] for label in range(len(classes))], sizes, notes)


def _lists(text: str, source: str) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a COCO file: images, annotations, categories."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON, or cut off: {error}") from error
    tool = _native.of_document(document)
    if tool is not None:
        raise DataError(_native.message(source, tool))
    if not isinstance(document, dict):
        hint = "; a list is what results are written as" if isinstance(document, list) else ""
        raise DataError(
            f"{source}: expected an object with images, annotations and categories{hint}"
        )
    rows: dict[str, Any] = {}
    for key in ("images", "annotations", "categories"):
        rows[key] = document.get(key)
        if not isinstance(rows[key], list) or not all(isinstance(row, dict) for row in rows[key]):
            raise DataError(
                f"{source}: no list of {key}, as COCO's files have; there is "
                f"{few(document) or 'nothing'}"
            )
        if not rows[key] and key != "annotations":
            raise DataError(f"{source}: the list of {key} is empty: no samples")
    return rows


def _object(
    row: dict[str, Any], label: int, size: tuple[int, int], entry: str, notes: Notes, target: str
) -> Object | None:
    """One annotation; None where it is dropped. `size` is the picture's (height, width)."""
    box = row.get("bbox")
    values = [number(value) for value in box] if isinstance(box, list) else []
    x, y, width, height = values if len(values) == 4 else [None] * 4
    if x is None or y is None or width is None or height is None:
        raise DataError(f"{entry}: bbox is {shorten(repr(box))}; expected [x, y, width, height]")
    fitted = fit_box((x, y, x + width, y + height), size, entry, notes)
    if not fitted:
        return None
    mask = row.get("segmentation")
    # of another picture, and so may be its box
    if isinstance(mask, dict) and mask.get("size") != list(size):
        given = shorten(mask.get("size"))
        raise DataError(
            f"{entry}: RLE is of size {given}; the picture is {list(size)}, height and width"
        )
    if target != "masks":
        mask = None
    else:
        if isinstance(mask, list):  # polygons that enclose nothing take nothing from the others
            mask = [part for part in mask if not isinstance(part, list) or len(part) >= 2 * POINTS]
        try:
            check_segmentation(mask, size)
        except NoMask as error:
            notes.drop("without a usable mask", f"{entry}: dropped, {error}")
            return None
        except DataError as error:
            raise DataError(f"{entry}: {error}") from error
    area = number(row.get("area"))
    crowd = number(row.get("iscrowd") or 0)
    if crowd is None and not isinstance(row["iscrowd"], bool):
        raise DataError(f"{entry}: iscrowd is {shorten(repr(row['iscrowd']))}; expected 0 or 1")
    known_area = area if area is not None and 0 <= area < math.inf else None
    return Object(fitted, label, mask, crowd != 0, known_area)


def _id(value: Any) -> int | str | None:
    """An id of an image: a number, also one written as text, or other text; None for anything else."""
    count = whole(value)
    if count is not None:
        return count
    return value if isinstance(value, str) else None


def _categories(
    rows: list[dict[str, Any]], source: str, notes: Notes
) -> tuple[dict[int, int], list[str]]:
    """Category id -> label, in the order of ids, and the names in the order of labels."""
    names: dict[int, str] = {}
    for row in rows:
        id, name = whole(row.get("id")), row.get("name")
        if id is None or not isinstance(name, str):
            raise DataError(
                f"{source}, category {shorten(row)}: expected an id that is a number, and a name"
            )
        if id in names:
            raise DataError(f"{source}: two categories have the id {id}")
        names[id] = name
    labels: dict[int, int] = {}
    first: dict[str, int] = {}  # name -> the first id that has it
    for id in sorted(names):
        name = names[id]
        if name in first:
            notes.say(
                f"{source}: categories {first[name]} and {id} are both called "
                f"{shorten(name)!r}: one class"
            )
            labels[id] = labels[first[name]]
        else:
            labels[id] = len(first)
            first[name] = id
    return labels, list(first)


def _pictures(
    rows: list[dict[str, Any]], source: str
) -> Iterator[tuple[int | str, tuple[str, tuple[int, int]]]]:
    """(image id, (file name, (height, width))) of each image."""
    seen = set()
    for row in rows:
        id, name = _id(row.get("id")), row.get("file_name")
        width, height = whole(row.get("width")), whole(row.get("height"))
        if id is None or not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{source}: image {shorten(row)} needs an id and a file_name")
        if width is None or height is None or not (0 < width < 1 << 31 and 0 < height < 1 << 31):
            given = f"width is {shorten(repr(row.get('width')))} and height is {shorten(repr(row.get('height')))}"
            raise DataError(f"{source}, image {id}: {given}; expected pixels")
        if id in seen:
            raise DataError(f"{source}: two images have the id {id!r}")
        seen.add(id)
        yield id, (name, (height, width))


def _named(root: Path) -> tuple[str, dict[str, Path]]:
    """The split that a named file is of, or ""; and the files of the splits that are there."""
    if not os.path.isdir(root):
        return files_beside(root)
    there = _files_of(root)
    if not there:
        raise DataError(f"no COCO file in {str(root)!r}; expected {EXPECTS}")
    return "", there


def _files_of(root: Path) -> dict[str, Path]:
    """The annotation file of each split: its name says it, or that of its folder; the first place counts."""
    in_folders = {
        folder.name: file
        for folder in folders_in(root)
        if split_of(folder.name) and (file := file_called(folder, ["_annotations.coco.json"]))
    }
    for named in (_named_files(root / "annotations"), _named_files(root), in_folders):
        there = by_split(named)
        if there:
            return there
    return {}


def _named_files(folder: Path) -> dict[str, Path]:
    """JSON files in a folder, by the name of the split in theirs."""
    return {
        file.stem.removeprefix("instances_"): file for file in reversed(files_in(folder, ".json"))
    }


def _folder(root: Path, file: Path, name: str) -> Path:
    """The folder of the images: the first of the usual ones that holds the image `name`."""
    tag = file.stem.removeprefix("instances_")
    plain = re.sub(r"\d+$", "", tag)
    places = [root / place.format(word) for place in _FOLDERS for word in (tag, plain)] + [
        file.parent
    ]
    places += sorted(root.glob("*/JPEGImages"))
    for place in dict.fromkeys(places):
        if os.path.isfile(place / name):
            return place
    tried = ", ".join(repr(str(place)) for place in dict.fromkeys(places))
    raise DataError(f"{file}: no such image: {shorten(name)!r}, neither in {tried}")
