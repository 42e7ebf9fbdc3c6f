"""COCO JSON: one file a split, with boxes, polygons, run-length masks and crowds.

    root/annotations/instances_train.json  root/images/train/*.jpg     (also train2017, and _annotations.coco.json)

`root` may also be one such file: if "train" or "val" is in its name, or is the name of its folder,
the file of the other split is the one beside it with the other name. Where there is none for "val",
every tenth image is held back. Classes are ordered by their category ids, which `Split.ids` keeps;
categories of one name are one class. Numbers may be written as text, as some tools do. Format:
https://cocodataset.org/#format-data.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..reading import Fields
from . import (
    Notes,
    Object,
    Sample,
    Source,
    Split,
    _coco_files,
    _native,
    check_exists,
    few,
    fit_box,
    hold_out,
    measured,
    note_turned,
    number,
    part_of,
    shorten,
    text_of,
    whole,
)
from ._conventions import USUAL, Places
from ._masks import POINTS, area_of, box_around, check_segmentation, mask_of, why_no_mask
from ._places import Pictures, image_folders

EXPECTS = (
    "ROOT/annotations/instances_train.json and instances_val.json, with ROOT/images/train or "
    "ROOT/images; or a .json"
)
TARGETS: tuple[str, ...] = ("boxes", "masks")
FALLBACK = False
PLACES: tuple[str, ...] = ("images",)
Id = int | str
_UNKNOWN = (1 << 31, 1 << 31)  # size of a picture that is not measured: everything is inside
_KINDS = {  # a key of an annotation that COCO's other files have -> what they are
    "segments_info": "panoptic segmentation",
    "caption": "captions",
    "question": "questions",
}


def detect(root: str, target: str = "boxes") -> bool:
    """True for a JSON file, and for a folder with the file of a split, or with one of all images."""
    path = Path(root)
    if os.path.isdir(path):
        return _coco_files.is_there(path)
    return os.path.isfile(path) and path.suffix.lower() == ".json"


def load(root: str, split: str | None, target: str = "boxes", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, in the order of the file; images without objects are among them.

    Images that are not there, cannot be read, or are not of the size that the file says, are left
    out with a line in `skipped`. With target "masks" each object has a mask, with "boxes" none has,
    with OBJECTS those that are annotated with one.
    Raises `DataError` naming file and entry for whatever does not parse, and where none of the
    images is there, or below the folder of the data.
    """
    check_exists(root)
    own, there = _named(Path(root))
    if split == "train" and there and "train" not in there and os.path.isdir(root):
        _coco_files.check_train(Path(root))
    part = part_of(split, there, root, own)
    path = there.get(part.there) or _one_file(Path(root))
    if part.take != "all" and not part.there:
        _coco_files.check_alone(path)
    source = Source(root, "coco", part.split, str(path), part.take)
    document, notes = _lists(text_of(path), str(path)), Notes()
    _join(document, str(path), notes)
    listed = dict(_pictures(document["images"], str(path)))
    chosen = hold_out(list(listed), part.take)
    if not chosen:
        return Split([], [row["name"] for row in document["categories"]], source=source)
    place = Path(root) if os.path.isdir(Path(root)) else _coco_files.place_of(path)
    pictures = _pictures_below(place, path, part.there, elsewhere.images)
    images, sizes = _measured({id: listed[id] for id in chosen}, pictures, str(path), notes)
    others = set(listed) - set(chosen)
    classes, ids, objects = _annotated(document, sizes, others, str(path), notes, target)
    samples = [Sample(image, objects=tuple(objects[id]), id=id) for id, image in images.items()]
    return Split(samples, classes, notes.lines, ids, source, notes.annotations())


def parse(text: str, source: str, target: str = "boxes") -> Split:
    """The images of a COCO file with their objects; `Sample.image` is as in the file. `source` names it in errors.

    Annotations without a size or of unknown images are dropped, with a line in `skipped`; so are
    those without a mask where `target` is "masks".
    """
    document, notes = _lists(text, source), Notes()
    listed = dict(_pictures(document["images"], source))
    sizes = {id: picture.size or _UNKNOWN for id, picture in listed.items()}
    classes, ids, objects = _annotated(document, sizes, set(), source, notes, target)
    samples = [
        Sample(Path(picture.name), objects=tuple(objects[id]), id=id)
        for id, picture in listed.items()
    ]
    return Split(samples, classes, notes.lines, ids, annotations=notes.annotations())


class _Listed(NamedTuple):
    """A picture as the file has it."""

    name: str
    size: tuple[int, int] | None  # (height, width); None where the file does not say


def _measured(
    listed: Mapping[Id, _Listed], pictures: Pictures, source: str, notes: Notes
) -> tuple[dict[Id, Path], dict[Id, tuple[int, int]]]:
    """The image of each picture and its size (height, width), without those that are left out, which is said."""
    names = [picture.name for picture in listed.values()]
    paths = pictures.all_of(names)
    _check_distinct(listed, paths, source)
    missing = [(id, name) for id, name, path in zip(listed, names, paths, strict=True) if not path]
    if len(missing) == len(names):
        id, name = missing[0]
        raise DataError(f"{source}, image {id}: {pictures.missing(name)}")
    if missing:
        notes.say(
            f"{source}: {len(missing)} of {len(names)} images are not there and are left out: "
            f"{few(name for _, name in missing)}"
        )
    images: dict[Id, Path] = {}
    sizes: dict[Id, tuple[int, int]] = {}
    turned: list[Path] = []
    for (id, picture), path in zip(listed.items(), paths, strict=True):
        if path is None:
            continue
        of_this: list[Path] = []
        size = measured(path, notes, of_this)
        if size is None:
            continue
        if picture.size not in (None, size):
            height, width = picture.size or size
            because = ", turned by its EXIF orientation" if of_this else ""
            notes.say(
                f"{str(path)!r}: left out, it is {size[1]}x{size[0]}{because}; {source}, image "
                f"{id}, says {width}x{height}"
            )
            continue
        images[id], sizes[id] = path, size
        turned += of_this
    note_turned(turned, notes)
    return images, sizes


def _join(document: dict[str, list[Fields]], source: str, notes: Notes) -> None:
    """Make one entry of those of images with one file name and size, and give it the annotations of all."""
    first: dict[tuple[str, tuple[int, int] | None], Id] = {}
    same: dict[Id, Id] = {}  # of an entry that comes again -> of the first
    for id, picture in _pictures(document["images"], source):
        if first.setdefault((picture.name, picture.size), id) != id:
            same[id] = first[picture.name, picture.size]
    if not same:
        return
    rows = document["images"]
    again = next(row["file_name"] for row in rows if _id(row["id"]) in same)
    notes.say(
        f"{source}: {len(same)} of {len(rows)} entries of images name a picture again, as "
        f"{shorten(again)!r}; they are one picture with the annotations of all its entries"
    )
    document["images"] = [row for row in rows if _id(row["id"]) not in same]
    for i, row in enumerate(document["annotations"]):
        of = _id(row.get("image_id"))
        if of is not None and of in same:
            document["annotations"][i] = {**row, "image_id": same[of]}


def _check_distinct(listed: Mapping[Id, _Listed], paths: list[Path | None], source: str) -> None:
    """`DataError` where two names are of one image."""
    names: dict[Path, str] = {}
    for picture, path in zip(listed.values(), paths, strict=True):
        other = names.setdefault(path, picture.name) if path else picture.name
        if other != picture.name:
            raise DataError(
                f"{source}: {shorten(picture.name)!r} and {shorten(other)!r} are one picture, "
                f"{str(path)!r}: call it by one name, then the annotations of both are its own"
            )


def _annotated(
    document: Mapping[str, list[Fields]],
    sizes: Mapping[Id, tuple[int, int]],
    others: set[Id],
    source: str,
    notes: Notes,
    target: str,
) -> tuple[list[str], list[int], dict[Id, list[Object]]]:
    """The classes, their category ids, and the objects of each picture that has a size.

    `others` are pictures of another part; those of neither were left out.
    """
    listed = {_id(row.get("id")) for row in document["images"]}
    used = {whole(row.get("category_id")) for row in document["annotations"]}
    ids, classes = _categories(document["categories"], used, source, notes)
    objects: dict[Id, list[Object]] = {id: [] for id in sizes}
    for i, row in enumerate(document["annotations"]):
        entry = f"{source}, annotation {shorten(row.get('id', f'number {i}'))}"
        id, category = _id(row.get("image_id")), whole(row.get("category_id"))
        if id in others:
            continue
        notes.read += 1
        if id is None or id not in listed:
            line = f"{entry}: dropped, there is no image with the id {shorten(repr(row.get('image_id')))}"
            notes.drop("of an image that the file does not list", line)
            continue
        if id not in sizes:
            notes.drop("of pictures left out")
            continue
        if category is None or category not in ids:
            value = shorten(repr(row.get("category_id")))
            raise DataError(f"{entry}: no category with the id {value}; there are {few(ids, 10)}")
        item = _object(row, ids[category], sizes[id], entry, notes, target)
        if item:
            objects[id].append(item)
    first = {label: id for id, label in reversed(ids.items())}
    return classes, [first[label] for label in range(len(classes))], objects


def _lists(text: str, source: str) -> dict[str, list[Fields]]:
    """The three lists of a COCO file: images, annotations, categories."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON, or cut off: {error}") from error
    tool = _native.of_document(document)
    if tool is not None:
        raise DataError(_native.message(source, tool))
    other = _other_kind(document)
    if other:
        raise DataError(f"{source}: {other}")
    if not isinstance(document, dict):
        raise DataError(f"{source}: expected an object with images, annotations and categories")
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


def _other_kind(document: object) -> str:
    """What a document is that has no annotated objects; "" for one that may have."""
    if isinstance(document, list):
        return (
            "expected an object with images, annotations and categories; a list is what results "
            "of a detector are written as, which are no annotations"
        )
    if not isinstance(document, dict):
        return ""
    rows = document.get("annotations")
    first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}
    kind = next((kind for key, kind in _KINDS.items() if key in first), None)
    if kind is None:
        return ""
    return (
        f"it holds COCO's {kind}, which is not read here; COCO's objects are in files called "
        "instances_train2017.json and so on"
    )


def _object(
    row: Fields, label: int, size: tuple[int, int], entry: str, notes: Notes, target: str
) -> Object | None:
    """One annotation; None where it is dropped. `size` is the picture's (height, width)."""
    mask = row.get("segmentation")
    # of another picture, and so may be its box
    if isinstance(mask, dict) and mask.get("size") != list(size) and size != _UNKNOWN:
        value = shorten(mask.get("size"))
        raise DataError(
            f"{entry}: RLE is of size {value}; the picture is {list(size)}, height and width"
        )
    mask = _polygons(mask) if isinstance(mask, list) else mask
    box = _box(row.get("bbox"), mask, size, entry)
    if box is None:
        notes.drop("without a box", f"{entry}: dropped, it has neither a box nor a usable mask")
        return None
    fitted = fit_box(box, size, entry, notes)
    if not fitted:
        return None
    if target != "boxes":
        problem = why_no_mask(mask, size, entry)
        if problem and target == "masks":
            notes.drop("without a usable mask", f"{entry}: dropped, {problem}")
            return None
        if problem and mask:
            notes.say(f"{entry}: its box alone is used, {problem}")
        mask = None if problem else mask
    crowd = number(row.get("iscrowd") or 0)
    if crowd is None and not isinstance(row["iscrowd"], bool):
        raise DataError(f"{entry}: iscrowd is {shorten(repr(row['iscrowd']))}; expected 0 or 1")
    mask = mask if target != "boxes" else None
    return Object(fitted, label, mask, crowd != 0, area_of(row.get("area")))


def _box(
    box: object, mask: Any, size: tuple[int, int], entry: str
) -> tuple[float, float, float, float] | None:
    """Corners xyxy of `bbox`, or of what the mask covers where there is none; None without either."""
    values = [number(value) for value in box] if isinstance(box, list) else []
    if box is not None and box != [] and (len(values) != 4 or None in values):
        raise DataError(f"{entry}: bbox is {shorten(repr(box))}; expected [x, y, width, height]")
    numbers = [value for value in values if value is not None]
    if any(numbers):
        x, y, width, height = numbers
        return x, y, x + width, y + height
    try:
        if not isinstance(mask, list):
            return box_around(mask_of(mask, size))
        check_segmentation(mask, size)
    except DataError:
        return (0, 0, 0, 0) if numbers else None
    xs, ys = ([value for part in mask for value in part[side::2]] for side in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def _polygons(segmentation: list[Any]) -> list[Any]:
    """Polygons [[x, y, x, y, ...], ...], also where they are written as pairs or as one flat list.

    Of several those that enclose nothing are left out, so that they take nothing from the others.

    >>> _polygons([[0, 0], [9, 0], [9, 9]]), _polygons([0, 0, 9, 0, 9, 9])
    ([[0, 0, 9, 0, 9, 9]], [[0, 0, 9, 0, 9, 9]])
    """
    is_flat = not any(isinstance(part, list | dict) for part in segmentation)
    is_pairs = len(segmentation) >= POINTS and all(_is_pair(part) for part in segmentation)
    if segmentation and (is_flat or is_pairs):
        segmentation = [segmentation]
    flat = [
        [value for pair in part for value in pair]
        if isinstance(part, list) and part and all(_is_pair(pair) for pair in part)
        else part
        for part in segmentation
    ]
    return [part for part in flat if not isinstance(part, list) or len(part) >= 2 * POINTS]


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _id(value: object) -> int | str | None:
    """An id of an image: a number, also one written as text, or other text; None for anything else."""
    count = whole(value)
    if count is not None:
        return count
    return value if isinstance(value, str) else None


def _categories(
    rows: list[Fields], used: set[int | None], source: str, notes: Notes
) -> tuple[dict[int, int], list[str]]:
    """Category id -> label, in the order of ids, and the names in the order of labels.

    `used` are the ids that annotations have.
    """
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
    root = _root(rows, used)
    if root is not None:
        notes.say(
            f"{source}: category {shorten(repr(names[root]))} has no objects and is what all others "
            "are kinds of: no class"
        )
        del names[root]
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


def _root(rows: list[Fields], used: set[int | None]) -> int | None:
    """The id of the category that all others are kinds of, as Roboflow writes one; None if it is none or is used."""
    kinds = (row.get("supercategory") for row in rows if row.get("supercategory") != row["name"])
    above = {kind for kind in kinds if isinstance(kind, str)}
    roots = [row for row in rows if row["name"] in above and whole(row["id"]) not in used]
    if len(roots) != 1 or len(rows) < 2:
        return None
    others = [row for row in rows if row is not roots[0]]
    if any(row.get("supercategory") != roots[0]["name"] for row in others):
        return None
    return whole(roots[0]["id"])


def _pictures(rows: list[Fields], source: str) -> Iterator[tuple[Id, _Listed]]:
    """(image id, name and size) of each image."""
    seen = set()
    for row in rows:
        id, name = _id(row.get("id")), row.get("file_name")
        if id is None or not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{source}: image {shorten(row)} needs an id and a file_name")
        if id in seen:
            raise DataError(f"{source}: two images have the id {id!r}")
        seen.add(id)
        yield id, _Listed(name, _size(row, f"{source}, image {id}"))


def _size(row: Fields, entry: str) -> tuple[int, int] | None:
    """(height, width) as the file says it; None where it says neither, or 0 as some tools do."""
    if all(row.get(side) is None or whole(row.get(side)) == 0 for side in ("width", "height")):
        return None
    width, height = whole(row.get("width")), whole(row.get("height"))
    if width is None or height is None or not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        values = [shorten(repr(row.get(side))) for side in ("width", "height")]
        raise DataError(f"{entry}: width is {values[0]} and height is {values[1]}; expected pixels")
    return height, width


def _named(root: Path) -> tuple[str, dict[str, Path]]:
    """The split that a named file is of, or ""; and the files of the splits that are there."""
    if os.path.isdir(root):
        return "", _coco_files.of_splits(root)
    return _coco_files.beside(root)


def _one_file(root: Path) -> Path:
    """The file that is named, or the one of a folder without splits."""
    file = _coco_files.of_all(root) if os.path.isdir(root) else root
    if file is None:
        raise DataError(f"no COCO file in {str(root)!r}; expected {EXPECTS}")
    return file


def _pictures_below(place: Path, file: Path, split: str, images: str | None) -> Pictures:
    """The images below the folder of the data, `place`, or below `images`, as the file of a split may call them."""
    tag = _coco_files.tag_of(file)
    if images is not None:
        return Pictures(Path(images), image_folders(Path(images), split, tag), split)
    folders = image_folders(place, split, tag)
    if file.parent != place:
        folders += image_folders(file.parent, split, tag)
    return Pictures(place, folders, split)
