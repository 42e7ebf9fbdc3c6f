"""Masks of objects as pictures: one file of numbers a picture, or one file an object.

    root/PNGImages/x.png  root/PedMasks/x_mask.png      (1, 2, ... for the objects, 0 for none; or a color each)
    root/ID/images/x.png  root/ID/masks/*.png           (one file an object, of any value but 0)
    root/images/x.png     root/masks/x/*.png            (or x_0.png, x_1.png, ...)

Folders may be called as for label maps, or instances, instance_ids, instance_masks; with or without
those of splits. All objects are of one class: the name in classes.txt, or else "object". Boxes are
those of the masks. Without a split for "val" every tenth picture is held back for it.

Where any picture has several files, a file is one object in all of them, whatever values it has; so
it is in ROOT/ID/masks. Pictures without a mask and masks without a picture are said. Folders called
as for label maps may hold labels: it is said that numbers are taken for objects, and an error where
they are seen to be classes.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..images import read_ids
from . import (
    Notes,
    Object,
    Sample,
    Source,
    Split,
    check_exists,
    few,
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
    same_form,
    split_of,
    word_in,
)
from ._map_places import MAPS, Place, check_one_each, files_of, map_places, places_apart
from ._masks import box_around, runs_of

EXPECTS = "ROOT/images with ROOT/instance_ids or masks (1, 2, ... for objects); or ROOT/ID/images and ROOT/ID/masks"
TARGETS: tuple[str, ...] = ("masks", "boxes")
PLACES: tuple[str, ...] = ("images", "masks")
FALLBACK = True  # masks of labels lie in folders of the same names, beside other formats' files
LOOKED_AT = 20  # files of numbers, to tell whether they tell objects apart
FILES_OF_CLASSES = 3  # with numbers, at least, to tell that these are of classes
SIDE_OF_AREAS = 256  # pixels, to about which files are thinned out to count areas
SMALL_AREA = 0.05  # of a number's largest area, below which another one is no area of its own
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


class Drawn(NamedTuple):
    """The pictures of a split with their files of masks."""

    folder: Path  # of the pictures
    pictures: dict[Path, Masks]
    maps: Path | None = None  # the folder of all masks; None where each picture has its own
    left: Sequence[Path] = ()  # masks that are of none of the pictures


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
        there = _pictures_apart(path) or _of_places(map_places(path, (*_NAMED, *MAPS)))
    else:
        there = _of_places(
            places_apart(Path(elsewhere.images or root), Path(elsewhere.masks or root))
        )
    if not there:
        raise DataError(f"no images with masks of objects in {root!r}; expected {EXPECTS}")
    check_one_each(
        (picture, file)
        for drawn in there.values()
        for picture, files in drawn.pictures.items()
        for file in files
    )
    folders = {name: drawn.folder for name, drawn in there.items() if name}
    part = part_of(split, folders, root)
    drawn = there.get(part.there) or next(iter(there.values()))
    source = Source(root, "instances", part.split, str(drawn.folder), part.take)
    notes = Notes()
    classes = [_class_name(path)]
    pictures = hold_out(sorted(drawn.pictures.items()), part.take)
    _say_alone(drawn, [picture for picture, files in pictures if not files], there.values(), notes)
    an_object = _is_file_an_object(there.values())
    if not an_object:
        home = path if elsewhere == USUAL else Path(elsewhere.masks or root).parent
        _check_numbers(there.values(), home, path, notes)
    samples = parse(pictures, notes, target != "boxes", an_object)
    return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())


def _is_file_an_object(there: Iterable[Drawn]) -> bool:
    """Whether each file is one object, and not one number of it."""
    return any(
        drawn.maps is None or any(len(files) > 1 for files in drawn.pictures.values())
        for drawn in there
    )


def _say_alone(drawn: Drawn, alone: Sequence[Path], there: Iterable[Drawn], notes: Notes) -> None:
    """Say which pictures have no mask, and which masks are of no picture of any split."""
    if drawn.maps is None:  # a picture's own folder of masks is there, and may be empty
        return
    if alone:
        names = few(str(picture) for picture in alone)
        notes.say(
            f"{len(alone)} pictures have no mask in {str(drawn.maps)!r} and show no object: {names}"
        )
    used = {file for other in there for files in other.pictures.values() for file in files}
    left = [file for file in drawn.left if file not in used]
    if left:
        notes.read += len(left)
        notes.drop(
            "without an image of their name",
            f"{len(left)} masks are of no image in {str(drawn.folder)!r}: {few(map(str, left))}",
            len(left),
        )


def parse(
    pictures: Sequence[tuple[Path, Masks]], notes: Notes, with_masks: bool, an_object: bool
) -> list[Sample]:
    """The sample of each picture, with an object for each file (`an_object`), or for each number in its file."""
    samples = []
    mixed: list[Path] = []
    turned: list[Path] = []
    for image, files in pictures:
        size = measured(image, notes, turned)
        if size is None:
            notes.read += len(files)
            notes.drop("of pictures left out", count=len(files))
            continue
        masks = []
        for file in files:
            numbers = _masks_in(file, size, image)
            if an_object and len(numbers) > 1:
                mixed.append(file)
                numbers = [np.logical_or.reduce(numbers)]
            masks += numbers
            if not numbers and an_object:
                notes.read += 1
                notes.drop("without a pixel", f"{str(file)!r}: dropped, it marks no pixel")
        notes.read += len(masks)
        objects = [_object(mask, with_masks) for mask in masks]
        samples.append(Sample(image, objects=tuple(objects), id=image.stem))
    note_turned(turned, notes)
    if mixed:
        notes.say(
            f"{len(mixed)} masks have several values and are one object each, as a file is one "
            f"object here: {few(map(str, mixed))}"
        )
    return samples


def _masks_in(file: Path, size: tuple[int, int], image: Path) -> list[np.ndarray]:
    """The mask (height, width) of each number in a file."""
    ids = read_ids(file)
    if ids.shape != size:
        raise DataError(
            f"mask {str(file)!r} is {ids.shape[1]}x{ids.shape[0]}, its image {str(image)!r} is "
            f"{size[1]}x{size[0]}"
        )
    return [ids == number for number in np.unique(ids) if number]


def _object(mask: np.ndarray, with_mask: bool) -> Object:
    """The object of a mask that is not empty."""
    height, width = mask.shape
    segmentation = {"size": [height, width], "counts": runs_of(mask)} if with_mask else None
    return Object(box_around(mask), 0, segmentation, area=float(mask.sum()))


# ---- files -----------------------------------------------------------------------------------------------------------


def _pictures_apart(root: Path) -> dict[str, Drawn]:
    """The pictures that have a folder of their own, by split: in the root itself, or in folders of splits."""
    here = _in_own_folders(root)
    if here:
        return {"": Drawn(root, here)}
    named: dict[str, Drawn] = {}
    for folder in folders_in(root):
        word = word_in(folder.name)
        if word:
            pictures = _in_own_folders(folder)
            if pictures:
                named[word.word] = Drawn(folder, pictures)
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


def _of_places(places: Mapping[str, Place]) -> dict[str, Drawn]:
    return {name: _in_place(place) for name, place in places.items()}


def _parts(folder: Path, root: Path) -> list[str]:
    return [part.lower() for part in folder.relative_to(root).parts]


def _in_place(place: Place) -> Drawn:
    """The masks of each picture: its file, the files in a folder of its name, or those of its name with numbers.

    Where two pictures could have a file, as `a_1.png` is that of `a_1` and the first of `a`, the
    one called so has it, unless that one has files with numbers itself and the other has none
    of its own name.
    """
    pictures, files, _ = files_of(place)
    called = _by_name(pictures, place.images)
    exact: dict[Path, list[Path]] = {}  # the pictures of each file
    counted: dict[Path, list[Path]] = {}
    in_folder: dict[Path, list[Path]] = {}
    for file in files:
        inside = file.relative_to(place.maps)
        name = same_form(inside.with_suffix("").as_posix())
        exact[file] = called.get(name) or called.get(map_key(name), [])
        counted[file] = called.get(_without_number(name), [])
        in_folder[file] = called.get(same_form(inside.parent.as_posix()), [])
    whole = {picture for owners in exact.values() for picture in owners}
    with_numbers = {picture for file in files if not exact[file] for picture in counted[file]}
    masks: dict[Path, list[Path]] = {picture: [] for picture in pictures}
    for file in files:
        first, second = exact[file], counted[file]
        is_second = set(first) <= with_numbers and second and not set(second) & whole
        for picture in second if is_second or not first else first:
            masks[picture].append(file)
    without = {picture for picture in pictures if not masks[picture]}
    for file in files:
        for picture in in_folder[file]:
            if picture in without:
                masks[picture].append(file)
    used = {file for some in masks.values() for file in some}
    left = [file for file in files if file not in used]
    return Drawn(place.images, dict(masks), place.maps, left)


def _by_name(pictures: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Pictures by their path below a folder without extension, and where none is called so by `map_key` of it."""
    called: dict[str, list[Path]] = {}
    for picture in pictures:
        name = same_form(picture.relative_to(folder).with_suffix("").as_posix())
        called.setdefault(name, []).append(picture)
    keys: dict[str, list[Path]] = {}
    for name, some in called.items():
        if map_key(name) not in called:
            keys.setdefault(map_key(name), []).extend(some)
    return called | keys


def _without_number(name: str) -> str:
    """The name of a mask without the number of its object; "" for one that is nothing else."""
    return re.sub(r"[-_ ]?(?:mask|instance|object|obj)?[-_ ]?\d+$", "", name)


def _check_numbers(there: Iterable[Drawn], home: Path, root: Path, notes: Notes) -> None:
    """`DataError` where masks that may be labels of pixels do not tell objects apart, or are seen to be labels.

    Folders from `home` on say by their names what the masks are; `root` may have the name of the class.
    """
    plain = [
        drawn
        for drawn in there
        if drawn.maps is not None and not set(_parts(drawn.maps, home)) & set(_NAMED)
    ]
    whole = [file for drawn in plain for files in drawn.pictures.values() for file in files]
    if not whole:
        return
    try:
        maps = [read_ids(file) for file in whole[:: -(-len(whole) // LOOKED_AT) or 1]]
    except DataError:  # told when it is read as a sample's
        return
    way_out = (
        "Number the objects of a picture 1, 2, ..., or save one file an object; for the class of "
        "each pixel train deeplabv3"
    )
    if all(len(np.unique(ids)) <= 2 for ids in maps):
        raise DataError(
            f"masks as {str(whole[0])!r} mark objects and do not tell them apart: none that was "
            f"looked at has more than one number. {way_out}. Where each picture does show one "
            "object, call the folder instance_ids"
        )
    if _are_classes(maps):
        raise DataError(
            f"masks as {str(whole[0])!r} are of classes, not of objects: the same numbers are in "
            f"most of them, each in several separate areas. {way_out}. Where a number is one object "
            "whatever it is split by, call the folder instance_ids"
        )
    if file_called(root, NAME_FILES) is None:
        notes.say(
            f"masks as {str(whole[0])!r}: each number is taken for an object, all of one class; "
            "for numbers of classes train deeplabv3"
        )


def _are_classes(maps: Sequence[np.ndarray]) -> bool:
    """Whether numbers (height, width) recur from file to file and mark several separate areas in one.

    Numbers of objects recur too, from 1 up, but few objects are in several parts.
    """
    parts = [areas for ids in maps if (areas := _areas(ids))]
    files = Counter(number for areas in parts for number in areas)
    recurring = {number for number, count in files.items() if 2 * count > len(parts)}
    several = [areas[number] > 1 for areas in parts for number in recurring & areas.keys()]
    return len(parts) >= FILES_OF_CLASSES and bool(several) and 2 * sum(several) >= len(several)


def _areas(ids: np.ndarray) -> dict[int, int]:
    """How many separate areas each number but 0 has; those far smaller than its largest are not counted."""
    step = max(1, max(ids.shape) // SIDE_OF_AREAS)
    ids = ids[::step, ::step]
    pixel = np.arange(ids.size).reshape(ids.shape)
    neighbors = zip(_beside(ids), _beside(pixel), strict=True)
    edges = [
        (pixels[one == other], others[one == other]) for (one, other), (pixels, others) in neighbors
    ]
    first = np.concatenate([pixels for pixels, _ in edges])
    second = np.concatenate([others for _, others in edges])
    area = pixel.ravel()  # of each pixel: the lowest pixel that is known to be in its area
    while True:
        lower = np.minimum(area[first], area[second])
        joined = area.copy()
        for pixels in (first, second, area[first], area[second]):
            np.minimum.at(joined, pixels, lower)
        joined = joined[joined]
        if (joined == area).all():
            break
        area = joined
    roots, sizes = np.unique(area, return_counts=True)
    numbers = ids.ravel()[roots]
    return {
        int(number): int((of_it >= SMALL_AREA * of_it.max()).sum())
        for number in np.unique(numbers)
        if number
        for of_it in [sizes[numbers == number]]
    }


def _beside(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The values (height, width) with those to the right, below, and across both ways."""
    return [
        (values[:, :-1], values[:, 1:]),
        (values[:-1], values[1:]),
        (values[:-1, :-1], values[1:, 1:]),
        (values[:-1, 1:], values[1:, :-1]),
    ]


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
