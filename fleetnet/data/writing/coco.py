"""COCO JSON: boxes, masks, crowds and areas, an annotation file a split.

    FOLDER/annotations/instances_train.json  FOLDER/images/train/*     (instances_default.json and images/*
                                                                        without splits)

Ids of pictures stay where all of a split are whole numbers, and are otherwise counted from 1; so are
those of categories where the data have none. Areas that are not annotated are those of the masks, or
else of the boxes: COCO's evaluation asks for them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...reading import Fields, to_json
from .. import Object, Sample, Split
from ._album import Album, names_for
from ._losses import EVERYTHING, area_of
from ._reading import WHOLE, part_of

FORMAT = "coco"
WRITES = "annotations/instances_train.json with images/train"
TARGETS: tuple[str, ...] = ("boxes", "masks")
HOLDS: tuple[str, ...] = EVERYTHING
DIGITS = 16  # after the point, which any number needs at most


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    (folder / "annotations").mkdir()
    for name, split in splits.items():
        images = folder / "images" / part_of(name)
        file = f"instances_{'default' if name == WHOLE else name}.json"
        document = _document(split, images, album)
        (folder / "annotations" / file).write_text(to_json(document), encoding="utf-8")


def _document(split: Split, images: Path, album: Album) -> Fields:
    ids = _ids(split.samples)
    categories = _category_ids(split)
    rows: dict[str, list[Fields]] = {"images": [], "annotations": []}
    names = names_for(split.samples)
    for sample, name, id in zip(split.samples, names, ids, strict=True):
        album.put(sample, images / name)
        height, width = size = album.size(sample)
        rows["images"].append({"id": id, "file_name": name, "width": width, "height": height})
        for item in sample.objects or ():
            number = len(rows["annotations"]) + 1
            row = {"id": number, "image_id": id, "category_id": categories[item.label]}
            rows["annotations"].append({**row, **_annotation(item, size)})
    named = zip(categories, split.classes, strict=True)
    return {
        "info": {"description": "converted by fleetnet"},
        "licenses": [],
        **rows,
        # A name that is its own kind is above no other one.
        "categories": [{"id": id, "name": name, "supercategory": name} for id, name in named],
    }


def _ids(samples: Sequence[Sample]) -> list[int]:
    ids = [sample.id for sample in samples if isinstance(sample.id, int)]
    if len(set(ids)) == len(samples):
        return ids
    return list(range(1, len(samples) + 1))


def _category_ids(split: Split) -> list[int]:
    """Those of the data, unless they would put the classes into another order."""
    if split.ids is not None and sorted(set(split.ids)) == split.ids:
        return split.ids
    return list(range(1, len(split.classes) + 1))


def _annotation(item: Object, size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = item.box
    width, height = side(x0, x1), side(y0, y1)
    return {
        "bbox": [x0, y0, width, height],
        "area": area_of(item, size),
        "segmentation": item.segmentation or [],
        "iscrowd": int(item.crowd),
    }


def side(start: float, end: float) -> float:
    """The length that leads from start to exactly the end, with the fewest digits.

    >>> side(0.1, 0.3)
    0.2
    """
    length = end - start
    rounded = (round(length, digits) for digits in range(DIGITS + 1))
    return next((value for value in rounded if start + value == end), length)
