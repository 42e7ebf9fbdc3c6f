"""COCO JSON: one file a split, with boxes, polygons, run-length masks and crowds.

    root/annotations/instances_train.json  root/images/train/*.jpg     (also train2017, and _annotations.coco.json)

`root` may also be one such file: if "train" or "val" is in its name, the file of the other split is the one beside it
with the other name; if not, every tenth image is held out for "val". Classes are ordered by their category ids, which
`Split.ids` keeps. Format: https://cocodataset.org/#format-data.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, choose
from . import (
    SPLIT_NAMES,
    Object,
    Sample,
    Split,
    check_exists,
    check_images,
    fit_box,
    hold_out,
    inside,
    measured,
    note_turned,
    text_of,
)
from ._masks import POINTS, NoMask, check_segmentation

EXPECTS = (
    "ROOT/annotations/instances_train.json and instances_val.json, with ROOT/images/train or ROOT/images; or a .json"
)
TARGETS = ("boxes", "masks")
_FILES = (
    *("annotations/instances_{0}.json", "annotations/instances_{0}2017.json", "annotations/instances_{0}2014.json"),
    *("annotations/{0}.json", "instances_{0}.json", "{0}.json", "{0}/_annotations.coco.json"),
)
_FOLDERS = ("images/{0}", "{0}", "images", "JPEGImages", ".")  # of images, below the root; then any */JPEGImages
_SPLIT = re.compile("(?<![a-z])(train|val|test)(?=[^a-z]|$)")


def detect(root: str) -> bool:
    """True for a JSON file, and for a folder with the file of a split."""
    path = Path(root)
    if path.is_dir():
        return any(_file_of(path, split) for split in SPLIT_NAMES)
    return path.is_file() and path.suffix == ".json"


def load(root: str, split: str, target: str = "boxes") -> Split:
    """The samples of a split, in the order of the file; images without objects are among them.

    Images that cannot be read, or are not of the size that the file says, are left out with a line in `skipped`. With
    target "masks" each object has a mask, with "boxes" none has. Raises `DataError` naming file and entry for whatever
    does not parse, images that do not exist and paths that leave the folder of the data.
    """
    check_exists(root)
    path, wanted = _choose(Path(root), split)
    place = path.parent if Path(root).is_file() else Path(root)
    place = place.parent if Path(root).is_file() and place.name == "annotations" else place
    parsed, sizes = _parse(text_of(path), str(path), target)
    samples = hold_out(parsed.samples, wanted)
    if not samples:
        raise DataError(f"{path}: no samples for {split!r}: its only image is for 'train'")
    names = [str(sample.image) for sample in samples]
    for sample in samples:  # before any of them is looked for
        inside(place / str(sample.image), place, f"{path}, image {sample.id}")
    folder = _folder(place, path, names[0])
    paths = [inside(folder / name, place, str(path)) for name in names]
    check_images(paths, str(path))
    kept: list[Sample] = []
    skipped: list[str] = []
    turned: list[Path] = []
    for sample, image in zip(samples, paths, strict=True):
        of_this: list[Path] = []
        size, said = measured(image, skipped, of_this), sizes[sample.id]
        if size == said:
            kept.append(replace(sample, image=image))
            turned += of_this
        elif size:
            entry = f"{path}, image {sample.id}, says {said[1]}x{said[0]}"
            because = ", turned by its EXIF orientation" if of_this else ""
            skipped.append(f"{str(image)!r}: left out, it is {size[1]}x{size[0]}{because}; {entry}")
    note_turned(turned, skipped)
    return replace(parsed, samples=kept, skipped=skipped + parsed.skipped)


def parse(text: str, source: str, target: str = "boxes") -> Split:
    """The images of a COCO file with their objects; `Sample.image` is as in the file. `source` names it in errors.

    Annotations without a size or of unknown images are dropped, with a line in `skipped`; so are those without a mask
    where `target` is "masks".
    """
    return _parse(text, source, target)[0]


def _parse(text: str, source: str, target: str) -> tuple[Split, dict[int | str | None, tuple[int, int]]]:
    """What `parse` gives, and the (height, width) of each image by its id."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON, or cut off: {error}") from error
    if not isinstance(document, dict):
        hint = "; a list is what results are written as" if isinstance(document, list) else ""
        raise DataError(f"{source}: expected an object with images, annotations and categories{hint}")
    rows: dict[str, Any] = {}
    for key in ("images", "annotations", "categories"):
        rows[key] = document.get(key)
        if not isinstance(rows[key], list) or not all(isinstance(row, dict) for row in rows[key]):
            raise DataError(f"{source}: no list of {key}; there is {', '.join(map(str, document)) or 'nothing'}")
        if not rows[key] and key != "annotations":
            raise DataError(f"{source}: the list of {key} is empty: no samples")
    ids, classes = _categories(rows["categories"], source)
    pictures = dict(_pictures(rows["images"], source))
    objects: dict[int | str, list[Object]] = {id: [] for id in pictures}
    skipped: list[str] = []
    for i, row in enumerate(rows["annotations"]):
        entry = f"{source}, annotation {row.get('id', f'number {i}')}"
        id, category = row.get("image_id"), row.get("category_id")
        if not isinstance(id, (int, str)) or id not in pictures:
            skipped.append(f"{entry}: dropped, there is no image with the id {id!r}")
            continue
        if not _number(category) or category not in ids:
            raise DataError(f"{entry}: no category with the id {category!r}; there are {_few(ids)}")
        item = _object(row, ids[category], pictures[id][1], entry, skipped, target)
        if item:
            objects[id].append(item)
    samples = [Sample(Path(name), objects=tuple(objects[id]), id=id) for id, (name, _) in pictures.items()]
    return Split(samples, classes, skipped, list(ids)), {id: size for id, (_, size) in pictures.items()}


def _object(
    row: dict[str, Any], label: int, size: tuple[int, int], entry: str, skipped: list[str], target: str
) -> Object | None:
    """One annotation; None where it is dropped. `size` is the picture's (height, width)."""
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        raise DataError(f"{entry}: bbox is {box!r}; expected [x, y, width, height]")
    x, y, width, height = map(float, box)
    fitted = fit_box((x, y, x + width, y + height), size, entry, skipped)
    if not fitted:
        return None
    mask = row.get("segmentation")
    if isinstance(mask, dict) and mask.get("size") != list(size):  # of another picture, and so may be its box
        raise DataError(f"{entry}: RLE is of size {mask.get('size')}; the picture is {list(size)}, height and width")
    if target != "masks":
        mask = None
    else:
        if isinstance(mask, list):  # polygons that enclose nothing take nothing from the others
            mask = [part for part in mask if not isinstance(part, list) or len(part) >= 2 * POINTS]
        try:
            check_segmentation(mask, size)
        except NoMask as error:
            skipped.append(f"{entry}: dropped, {error}")
            return None
        except DataError as error:
            raise DataError(f"{entry}: {error}") from error
    area: Any = row.get("area")
    area = float(area) if _number(area) and 0 <= area < math.inf else None
    return Object(fitted, label, mask, bool(row.get("iscrowd", 0)), area)


def _categories(rows: list[dict[str, Any]], source: str) -> tuple[dict[int, int], list[str]]:
    """Category id -> label, and the names in the order of labels."""
    found: dict[int, str] = {}
    for row in rows:
        id, name = row.get("id"), row.get("name")
        if not isinstance(id, int) or not isinstance(name, str):
            raise DataError(f"{source}, category {row}: expected an id that is a number, and a name")
        if id in found:
            raise DataError(f"{source}: two categories have the id {id}")
        found[id] = name
    return {id: label for label, id in enumerate(sorted(found))}, [found[id] for id in sorted(found)]


def _pictures(rows: list[dict[str, Any]], source: str) -> Iterator[tuple[int | str, tuple[str, tuple[int, int]]]]:
    """(image id, (file name, (height, width))) of each image."""
    seen = set()
    for row in rows:
        id, name = row.get("id"), row.get("file_name")
        width: Any = row.get("width")
        height: Any = row.get("height")
        if not isinstance(id, (int, str)) or not isinstance(name, str) or not name:
            raise DataError(f"{source}: image {row} needs an id and a file_name")
        if not all(isinstance(side, int) and 0 < side < 1 << 31 for side in (width, height)):
            raise DataError(f"{source}, image {id}: width is {width!r} and height is {height!r}; expected pixels")
        if id in seen:
            raise DataError(f"{source}: two images have the id {id!r}")
        seen.add(id)
        yield id, (name, (height, width))


def _number(value: Any) -> bool:
    """True for what JSON gives for a number, unless it is too large for a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)


def _few(ids: dict[int, int]) -> str:
    return ", ".join(map(str, list(ids)[:10])) + (f" ... ({len(ids)} in all)" if len(ids) > 10 else "")


def _choose(root: Path, split: str) -> tuple[Path, str]:
    """The file to read, and the part to take of it: "all" unless the file holds every split."""
    if root.is_dir():
        files = {name: file for name in SPLIT_NAMES if (file := _file_of(root, name))}
        if split == "all" and len(set(files.values())) == 1:
            return next(iter(files.values())), "all"
        if split not in files:
            there = ", ".join(sorted({str(file) for file in files.values()})) or f"expected {EXPECTS}"
            raise DataError(f"no COCO file for {split!r} in {str(root)!r}; {there}")
        return files[split], "all"
    named = _SPLIT.search(root.stem)
    if not named or split == "all":
        return root, split
    for name in SPLIT_NAMES[split]:
        other = root.with_name(_SPLIT.sub(name, root.stem, count=1) + root.suffix)
        if other.is_file():
            return other, "all"
    near = choose(root.name, sorted(file.name for file in root.parent.glob("*.json")))
    raise DataError(f"{str(root)!r} is the file of {named[0]!r}; there is none beside it for {split!r}; {near}")


def _file_of(root: Path, split: str) -> Path | None:
    files = (root / file.format(name) for name in SPLIT_NAMES[split] for file in _FILES)
    return next((file for file in files if file.is_file()), None)


def _folder(root: Path, file: Path, name: str) -> Path:
    """The folder of the images: the first of the usual ones that holds the image `name`."""
    tag = file.stem.removeprefix("instances_")
    plain = re.sub(r"\d+$", "", tag)
    places = [root / place.format(word) for place in _FOLDERS for word in (tag, plain)] + [file.parent]
    places += sorted(root.glob("*/JPEGImages"))
    for place in dict.fromkeys(places):
        if (place / name).is_file():
            return place
    tried = ", ".join(repr(str(place)) for place in dict.fromkeys(places))
    raise DataError(f"{file}: no such image: {name!r}, neither in {tried}")
