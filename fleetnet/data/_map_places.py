"""Where a data set has its images and where their label maps, whatever its folders are called.

A folder's name says what it holds (images or label maps), of which split, or both: `images`, `train`,
`train_masks`, `trainannot`, `ann_dir`. What is said above counts below: `images/train`, `train/images`
and `train_images` are the same. A label map has the name of its image, maybe with an ending (`x_mask`,
`x_L`, `x_labelIds`), and lies in the same folder below. Where there is no folder of label maps, they
may be beside their images.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..images import EXTENSIONS, find_images
from . import few
from ._conventions import (
    IMAGE_ENDINGS,
    IMAGE_FOLDERS,
    MAP_ENDINGS,
    MAP_FOLDERS,
    SPLIT_WORDS,
    by_split,
    folders_in,
    images_in,
    map_key,
    same_form,
    split_of,
)

DEPTH = 3  # folders below each other that may say something
_OF_CLASSES = re.compile(
    r"\.(txt|csv|json)': not the extension"
)  # beside pictures: names and colors
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_IMAGES = (
    *(name.lower() for name in IMAGE_FOLDERS),
    *("pngimages", "raw", "original", "originals", "input", "inputs", "rgb"),
)
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SAY_NOTHING = ("png", "jpg", "jpeg", "tif", "gray", "grey", "machine", "data", "set", "folder")
MAPS = (
    *(name.lower() for name in MAP_FOLDERS),
    "annot",
    "annots",
    "anno",
    "maps",
    "labelmaps",
    "lbl",
    "lbls",
)
_WORDS = sorted((word for words in SPLIT_WORDS.values() for word in words), key=len, reverse=True)
# Of several maps of one image: Cityscapes has colors, instances and other numbers beside.
_OTHERS = re.compile(
    r"_(color|colour|instanceids|polygons|vis|overlay|colormask|rgb)$", re.IGNORECASE
)


class Place(NamedTuple):
    """A folder of images and the one of their label maps, which may be the same."""

    images: Path
    maps: Path


@dataclass(frozen=True)
class _Folder:
    path: Path
    role: str  # "images", "maps", or "" where its name says only a split
    word: str  # of the split, as it is called; "" for none
    rank: tuple[int, int, int]  # the lowest is the best of its kind


def map_places(root: Path, names: Sequence[str] = MAPS) -> dict[str, Place]:
    """The place of each split, or of "", the whole; nothing where no folder holds label maps.

    `names` are those of folders of maps, in small letters; the first counts. Splits are not told
    apart where other folders lie beside a single one.
    """
    folders = list(_folders(root, names))
    images = _best([folder for folder in folders if folder.role != "maps"])
    maps = _best([folder for folder in folders if folder.role == "maps"])
    named = {word: place for word in images if word and (place := _place(word, images, maps))}
    if not named and "" in images and maps:
        named = {
            word: Place(images[""], maps[word]) for word in maps if word and word not in images
        }
    if len(named) == 1 and _has_others(named):
        named = {}
    if named:
        return by_split(named)
    if "" in images and "" in maps:
        return {"": Place(images[""], maps[""])}
    beside = {word: path for word, path in images.items() if _are_beside(path)}
    split = by_split({word: Place(path, path) for word, path in beside.items() if word})
    whole = beside.get("") or (root if _are_beside(root) else None)
    return split or ({"": Place(whole, whole)} if whole else {})


def map_folders(root: Path) -> list[Path]:
    """All folders that hold label maps by what they are called; of those in each other the highest."""
    folders = [folder.path for folder in _folders(root, MAPS) if folder.role == "maps"]
    return [path for path in folders if not any(other in path.parents for other in folders)]


def places_apart(images: Path, maps: Path) -> dict[str, Place]:
    """The place of each split, or of "", where the user says which folder has the images and which the maps.

    What the folders themselves are called says nothing; folders of splits in them are told apart.
    """
    of_images = {"": images, **_best([f for f in _folders(images, MAPS) if f.role != "maps"])}
    of_maps = {"": maps, **_best([f for f in _folders(maps, MAPS) if f.word])}
    named = {
        word: place for word in of_images if word and (place := _place(word, of_images, of_maps))
    }
    return by_split(named) or {"": Place(of_images[""], of_maps[""])}


class Paired(NamedTuple):
    """The images and label maps of a place."""

    pairs: list[tuple[Path, Path]]  # an image and the map of its name
    images: list[Path]  # without a map
    maps: list[Path]  # without an image
    left_out: list[str]  # a line for each file that is neither


def paired(place: Place) -> Paired:
    """The images of a place with the label maps of their names."""
    pictures, maps, left_out = files_of(place)
    maps = [path for path in maps if not _OTHERS.search(path.stem)]
    exact = {_exact(path, place.maps): path for path in reversed(maps)}
    loose = _loose(maps, place.maps)
    pairs, alone, used = [], [], set()
    for picture in pictures:
        file = exact.get(_exact(picture, place.images)) or loose.get(_key(picture, place.images))
        if file:
            pairs.append((picture, file))
            used.add(file)
        else:
            alone.append(picture)
    return Paired(pairs, alone, [path for path in maps if path not in used], left_out)


def files_of(place: Place) -> tuple[list[Path], list[Path], list[str]]:
    """The images of a place, its maps, and what was left out; also where they share a folder."""
    pictures, left_out = find_images(place.images)
    left_out = [line for line in left_out if not _OF_CLASSES.search(line)]
    if place.images == place.maps:
        maps = _maps_among(pictures)
        among = set(maps)
        return [path for path in pictures if path not in among], maps, left_out
    maps = find_images(place.maps)[0]
    if place.maps.is_relative_to(place.images):  # images/masks
        pictures = [path for path in pictures if not path.is_relative_to(place.maps)]
    if place.images.is_relative_to(place.maps):
        maps = [path for path in maps if not path.is_relative_to(place.images)]
    return pictures, maps, left_out


def check_one_each(pairs: Iterable[tuple[Path, Path]]) -> None:
    """`DataError` where a label map, or a mask, would be that of two images, maybe of two splits."""
    images: dict[Path, Path] = {}
    for image, file in pairs:
        other = images.setdefault(file, image)
        if other != image:
            raise DataError(
                f"{str(file)!r} is by its name of two images, {str(other)!r} and {str(image)!r}: "
                "give the maps of each split a folder of its own, as the images have, or rename "
                "one of the two images"
            )


def _exact(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _key(path: Path, folder: Path) -> str:
    """The name that an image and its label map share, with the folders around it."""
    inside = path.relative_to(folder)
    return same_form(str(inside.parent / map_key(inside.stem)))


def _loose(maps: list[Path], folder: Path) -> dict[str, Path]:
    """The label map of each shared name. Of Cityscapes' two the one with fewer classes is `labelTrainIds`."""
    chosen: dict[str, Path] = {}
    for path in sorted(maps, key=lambda path: ("trainids" not in path.stem.lower(), str(path))):
        chosen.setdefault(_key(path, folder), path)
    return chosen


# ---- folders ---------------------------------------------------------------------------------------------------------


def _folders(root: Path, names: Sequence[str]) -> Iterator[_Folder]:
    """The folders that say something by their names, and hold images themselves or below."""
    waiting = [(root, "", "", 0)]
    while waiting:
        above, role, word, depth = waiting.pop(0)
        for path in folders_in(above):
            said, split = _said(path.name, names)
            if (not said and not split) or (said and split and role and word):
                continue
            new_role, new_word = said or role, split or word
            if depth < DEPTH:
                waiting.append((path, new_role, new_word, depth + 1))
            direct = bool(images_in(path))
            if direct or (new_role and _holds_images(path)):
                order = _order(path, names if new_role == "maps" else _IMAGES)
                yield _Folder(path, new_role, new_word, (int(not direct), order, depth))


def _said(name: str, maps: Sequence[str] = MAPS) -> tuple[str, str]:
    """What a folder's name says: its role and the word of its split, "" for what it does not say."""
    low = name.lower()
    if split_of(name):
        return "", low
    if _role(low, maps):
        return _role(low, maps), ""
    for word in _WORDS:
        for rest in (low.removeprefix(word), low.removesuffix(word)):
            if rest != low and _role(rest.strip("_- "), maps):
                return _role(rest.strip("_- "), maps), word
    return _said_by_parts(name, maps)


def _said_by_parts(name: str, maps: Sequence[str]) -> tuple[str, str]:
    """What the words say that a name is put together of, as ISIC_Training_GroundTruth or image_2.

    Other words may be among them only where both the role and the split are said.
    """
    parts = [part.lower() for part in _PARTS.findall(name.replace("Ground Truth", "GroundTruth"))]
    joined = [f"{one}{two}" for one, two in pairwise(parts)]
    roles = [role for part in (*parts, *joined) if (role := _role(part, maps))]
    words = [part for part in parts if split_of(part)]
    known = [part for part in parts if part.isdigit() or part in _SAY_NOTHING or split_of(part)]
    others = len(parts) - len(known) - sum(1 for part in parts if _role(part, maps))
    others -= 2 * sum(1 for two in joined if _role(two, maps))
    if not roles or (others > 0 and not words):
        return "", ""
    return roles[-1], words[0] if words else ""


def _role(low: str, maps: Sequence[str]) -> str:
    if low in maps and low not in _IMAGES:
        return "maps"
    return "images" if low in _IMAGES else ""


def _order(path: Path, names: Sequence[str]) -> int:
    """How early a folder's name stands in its list."""
    low = path.name.lower()
    return names.index(low) if low in names else len(names)


def _holds_images(folder: Path) -> bool:
    return any(
        os.path.splitext(name)[1].lower() in EXTENSIONS
        for _, _, files in os.walk(folder, followlinks=False)
        for name in files
    )


def _best(folders: list[_Folder]) -> dict[str, Path]:
    """The best folder of each word of a split, and of ""; those with a role before those without."""
    chosen: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda folder: (not folder.role, folder.rank)):
        chosen.setdefault(folder.word, folder.path)
    return chosen


def _place(word: str, images: dict[str, Path], maps: dict[str, Path]) -> Place | None:
    """The images of a split with the maps of the same word, of another word for the split, or of all."""
    same = [other for other in maps if other == word]
    same += [other for other in maps if other and split_of(other) == split_of(word)]
    same += [other for other in maps if not other]
    return Place(images[word], maps[same[0]]) if same else None


def _has_others(named: dict[str, Place]) -> bool:
    """Whether folders that are no split's lie beside the only one of a split, and hold images too."""
    ((word, place),) = named.items()
    if _said(place.images.name) != ("", word):
        return False
    beside = [folder for folder in folders_in(place.images.parent) if folder != place.images]
    return any(_said(folder.name) == ("", "") and _holds_images(folder) for folder in beside)


# ---- label maps beside their images ----------------------------------------------------------------------------------


def _are_beside(folder: Path) -> bool:
    """Whether at least every second image that lies in a folder has its label map there."""
    files = images_in(folder)
    maps = _maps_among(files)
    return bool(maps) and 2 * len(maps) >= len(files) - len(maps)


def _maps_among(files: list[Path]) -> list[Path]:
    """The label maps among images: those named as another one with an ending, else the PNG of each other file."""
    names = {(path.parent, same_form(path.stem)) for path in files}
    with_ending = [
        path
        for path in files
        if _has_ending(path.stem)
        and any((path.parent, key) in names for key in _without(path.stem))
    ]
    if with_ending:
        return with_ending
    pngs = [path for path in files if path.suffix.lower() == ".png"]
    others = {(path.parent, path.stem) for path in files} if 2 * len(pngs) == len(files) else set()
    twins = Counter((path.parent, path.stem) for path in files)
    if others and all(twins[path.parent, path.stem] == 2 for path in pngs):
        return pngs
    return []


def _has_ending(stem: str) -> bool:
    return any(stem.lower().endswith(ending.lower()) for ending in MAP_ENDINGS)


def _without(stem: str) -> tuple[str, ...]:
    """What the image of a label map of this name may be called."""
    key = map_key(stem)
    return (key, *(key + ending for ending in IMAGE_ENDINGS))


def described(place: Place) -> str:
    """The folders of a place, for a message."""
    return few(dict.fromkeys(repr(str(path)) for path in place))
