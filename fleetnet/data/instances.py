"""Masks of objects as pictures: one file of numbers a picture, or one file an object.

    root/PNGImages/x.png  root/PedMasks/x_mask.png      (1, 2, ... for the objects, 0 for none; or a color each)
    root/ID/images/x.png  root/ID/masks/*.png           (one file an object, of any value but 0)
    root/images/x.png     root/masks/x/*.png            (or x_0.png, x_1.png, ...)

Folders may be called as for label maps, or instances, instance_ids, instance_masks; with or without
those of splits. All objects are of one class: the name in classes.txt, or else "object". Boxes are
those of the masks. Without a split for "val" every tenth picture is held back for it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..images import find_images, read_ids
from . import (
    Notes,
    Object,
    Sample,
    Source,
    Split,
    check_exists,
    hold_out,
    measured,
    note_turned,
    parse_classes,
    part_of,
    text_of,
)
from ._conventions import (
    NAME_FILES,
    USUAL,
    Places,
    by_split,
    children,
    file_called,
    folders_in,
    images_in,
    map_key,
    split_of,
    word_in,
)
from ._map_places import MAPS, Place, map_places, places_apart
from ._masks import runs_of

EXPECTS = "ROOT/images with ROOT/instance_ids or masks (1, 2, ... for objects); or ROOT/ID/images and ROOT/ID/masks"
TARGETS: tuple[str, ...] = ("masks", "boxes")
PLACES: tuple[str, ...] = ("images", "masks")
FALLBACK = True  # masks of labels lie in folders of the same names, beside other formats' files
LOOKED_AT = 20  # files of numbers, to tell whether they tell objects apart
_NAMED = (  # folders of masks of objects, and no other
    *("instance_ids", "instances", "instance_masks", "instance", "inst", "pedmasks"),
    *("segmentationobject", "object_masks", "instance_maps"),
)
_OF_ONE = (
    *(name for name in MAPS if name.startswith("mask")),
    *_NAMED,
)  # in the folder of a picture
_IMAGES_OF_ONE = ("images", "image", "img", "imgs")

Masks = Sequence[Path]  # of a picture: one file of numbers, or one of each object


def detect(root: str, target: str = "masks") -> bool:
    """True for a folder with images and masks of their objects; for boxes only if they can be nothing else."""
    path = Path(root)
    if not os.path.isdir(path):
        return False
    names = (*_NAMED, *MAPS) if target == "masks" else _NAMED
    return bool(_pictures_apart(path)) or bool(map_places(path, names))


def load(root: str, split: str | None, target: str = "masks", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, by name; pictures without a mask show no object.

    Raises `DataError` naming the file for masks that cannot be read or are of another size.
    """
    check_exists(root)
    path = Path(root)
    if elsewhere == USUAL:
        there = _pictures_apart(path) or _pictures_together(path)
    else:
        there = _of_places(
            places_apart(Path(elsewhere.images or root), Path(elsewhere.masks or root))
        )
    if not there:
        raise DataError(f"no images with masks of objects in {root!r}; expected {EXPECTS}")
    folders = {name: place for name, (place, _) in there.items() if name}
    part = part_of(split, folders, root)
    place, pictures = there.get(part.there) or next(iter(there.values()))
    source = Source(root, "instances", part.split, str(place), part.take)
    notes = Notes()
    classes = [_class_name(path)]
    samples = parse(hold_out(sorted(pictures.items()), part.take), notes, target == "masks")
    return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())


def parse(pictures: Sequence[tuple[Path, Masks]], notes: Notes, with_masks: bool) -> list[Sample]:
    """The sample of each picture, with an object for each number in its file of masks, or for each file."""
    samples = []
    turned: list[Path] = []
    for image, files in pictures:
        size = measured(image, notes, turned)
        if size is None:
            notes.read += len(files)
            notes.drop("of pictures left out", count=len(files))
            continue
        masks = [
            (file, mask) for file in files for mask in _masks_in(file, size, image, len(files))
        ]
        notes.read += len(masks)
        objects = [_object(mask, with_masks) for _, mask in masks if mask.any()]
        for file, mask in masks:
            if not mask.any():
                notes.drop("without a pixel", f"{str(file)!r}: dropped, it marks no pixel")
        samples.append(Sample(image, objects=tuple(objects), id=image.stem))
    note_turned(turned, notes)
    return samples


def _masks_in(file: Path, size: tuple[int, int], image: Path, files: int) -> list[np.ndarray]:
    """The masks (height, width) in a file: one where a picture has several, else one of each number."""
    ids = read_ids(file)
    if ids.shape != size:
        raise DataError(
            f"mask {str(file)!r} is {ids.shape[1]}x{ids.shape[0]}, its image {str(image)!r} is "
            f"{size[1]}x{size[0]}"
        )
    if files > 1:
        return [ids != 0]
    return [ids == number for number in np.unique(ids) if number]


def _object(mask: np.ndarray, with_mask: bool) -> Object:
    """The object of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (
        float(columns[0]),
        float(rows[0]),
        float(columns[-1] + 1),
        float(rows[-1] + 1),
    )
    height, width = mask.shape
    segmentation = {"size": [height, width], "counts": runs_of(mask)} if with_mask else None
    return Object(box, 0, segmentation, area=float(mask.sum()))


# ---- files -----------------------------------------------------------------------------------------------------------


def _pictures_apart(root: Path) -> dict[str, tuple[Path, dict[Path, Masks]]]:
    """The pictures that have a folder of their own, by split: in the root itself, or in folders of splits."""
    here = _in_own_folders(root)
    if here:
        return {"": (root, here)}
    named: dict[str, tuple[Path, dict[Path, Masks]]] = {}
    for folder in folders_in(root):
        word = word_in(folder.name)
        if word:
            pictures = _in_own_folders(folder)
            if pictures:
                named[word.word] = (folder, pictures)
    return by_split(named)


def _in_own_folders(root: Path) -> dict[Path, Masks]:
    """The picture of each folder ID/images, and the files of ID/masks."""
    pictures: dict[Path, Masks] = {}
    for folder in folders_in(root):
        if split_of(folder.name):
            continue
        images, masks = children(folder, _IMAGES_OF_ONE)[:1], children(folder, _OF_ONE)[:1]
        files = images_in(images[0]) if images and masks else []
        if len(files) == 1:
            pictures[files[0]] = images_in(masks[0])
    return pictures


def _pictures_together(root: Path) -> dict[str, tuple[Path, dict[Path, Masks]]]:
    """The pictures of a folder of images and the masks in another, by split."""
    places = map_places(root, (*_NAMED, *MAPS))
    together = _of_places(places)
    plain = any(not set(_parts(place.maps, root)) & set(_NAMED) for place in places.values())
    if plain and together:
        _check_numbers([masks for _, pictures in together.values() for masks in pictures.values()])
    return together


def _of_places(places: Mapping[str, Place]) -> dict[str, tuple[Path, dict[Path, Masks]]]:
    return {name: (place.images, _in_place(place)) for name, place in places.items()}


def _parts(folder: Path, root: Path) -> list[str]:
    return [part.lower() for part in folder.relative_to(root).parts]


def _in_place(place: Place) -> dict[Path, Masks]:
    """The masks of each picture: its file, the files in a folder of its name, or those of its name with numbers."""
    pictures, _ = find_images(place.images)
    files, _ = find_images(place.maps)
    by_key: dict[str, list[Path]] = {}
    for file in files:
        inside = file.relative_to(place.maps)
        for key in _keys(inside):
            by_key.setdefault(key, []).append(file)
    masks: dict[Path, Masks] = {}
    for picture in pictures:
        name = picture.relative_to(place.images).with_suffix("").as_posix()
        keys = (name, map_key(name), f"{name}/")
        masks[picture] = next((by_key[key] for key in keys if key in by_key), [])
    return masks


def _keys(inside: Path) -> list[str]:
    """What the picture of a mask may be called, by the path of the mask."""
    name = inside.with_suffix("").as_posix()
    without = re.sub(r"[-_ ]?(?:mask|instance|object|obj)?[-_ ]?\d+$", "", name)
    keys = [name, map_key(name), f"{inside.parent.as_posix()}/"]
    return list(dict.fromkeys([*keys, without] if without else keys))


def _check_numbers(masks: Sequence[Masks]) -> None:
    """`DataError` where masks that may be labels of pixels do not tell objects apart."""
    whole = [files[0] for files in masks if len(files) == 1]
    if not whole or any(len(files) > 1 for files in masks):
        return
    for file in whole[:: -(-len(whole) // LOOKED_AT) or 1]:
        try:
            if len(np.unique(read_ids(file))) > 2:
                return
        except DataError:  # told when it is read as a sample's
            return
    raise DataError(
        f"masks as {str(whole[0])!r} mark objects and do not tell them apart: none that was looked at "
        "has more than one number. Number the objects of a picture 1, 2, ..., or save one file an "
        "object; for the class of each pixel train deeplabv3. Where each picture does show one "
        "object, call the folder instance_ids"
    )


def _class_name(root: Path) -> str:
    """The name of the only class: what a file of names has besides the background; else "object"."""
    file = file_called(root, NAME_FILES)
    if file is None:
        return "object"
    names = [
        name
        for name in parse_classes(text_of(file), str(file))
        if name.strip("_").lower() != "background"
    ]
    if len(names) != 1:
        raise DataError(
            f"{file} has {len(names)} classes besides the background, and masks of objects do not say "
            "which of them an object is: expected one"
        )
    return names[0]
