"""Folders of images and of label maps: an image and the map of its labels have the same name.

    root/images/train/*.jpg  root/labels/train/*.png  root/classes.txt      (or without folders for the splits)

The folders may be called as `_map_places` says (masks, gt, annotations, train/images with
train/masks, train with train_masks, ...), and a map's name may have an ending (`x_mask.png`). Labels
are indices, of gray or palette files, with 255 for pixels of no known class; or colors, where a file
says what they mean. `_class_files` has the files of names and colors that are read: classes.txt,
labels.txt, colors.txt with a line `r g b name` (a class may have several; those named "ignore" or
"void" are no class), labelmap.txt, class_dict.csv and others. Gray files go by colors where all of
these are gray. Where no map has a 0 and the largest value is the number of classes, they count from 1.

Splits are those of the folders, or the lists root/train.txt and root/val.txt (a line is an image, by
its name or path, and may name its label map too), also in a folder as splits/. The lists count where
the folders are those of one split only. Without a split for "val" every tenth image is held back for it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..images import File, examine, read_labels
from . import (
    IGNORE,
    Notes,
    Sample,
    Source,
    Split,
    check_exists,
    few,
    hold_out,
    inside,
    measured,
    note_turned,
    part_of,
    shorten,
    text_of,
)
from ._class_files import OTHER, Colors, Legend, has_colors, legend_of, parse_colors
from ._conventions import USUAL, Places, children, same_form, split_lists, split_of
from ._map_places import (
    LOSSY,
    Paired,
    Place,
    check_one_each,
    described,
    map_folders,
    map_places,
    paired,
    places_apart,
)
from ._pictures import is_picture

EXPECTS = "ROOT/images/train/*.jpg with ROOT/labels/train/*.png (or masks, gt, annotations) and ROOT/classes.txt"
TARGETS: tuple[str, ...] = ("semantic",)
FALLBACK = False
PLACES: tuple[str, ...] = ("images", "masks")
LOOKED_AT = 64  # label maps, to tell whether their values count from 0 or 1
_LIST_FOLDERS = (
    *("splits", "split", "lists", "list", "meta", "ImageSets", "Segmentation", "Main"),
    "annotations",
)

Pair = tuple[Path, Path]  # an image and its label map


def detect(root: str, target: str = "semantic") -> bool:
    """True for a folder with images and label maps, or with lists of pairs of them."""
    path = Path(root)
    if not os.path.isdir(path) or _is_voc(path):
        return False
    return bool(map_places(path)) or any(_names_pairs(file) for file in _lists(path, {}).values())


def load(
    root: str, split: str | None, target: str = "semantic", elsewhere: Places = USUAL
) -> Split:
    """The samples of a split, by name; images without labels and labels without an image get a line in `skipped`."""
    check_exists(root)
    path = Path(root)
    own = ""
    if elsewhere == USUAL:
        own, path, places = _of_folder(path)
    else:
        places = places_apart(Path(elsewhere.images or root), Path(elsewhere.masks or root))
    lists = _lists(path, places)
    if any(places) and (own or len(places) > 1 or not lists.keys() - places.keys()):
        lists = {}
    if not places and not lists:
        raise DataError(f"no images with labels in {root!r}; expected {EXPECTS}")
    there = lists or {name: place.images for name, place in places.items() if name}
    part = part_of(split, there, root, own)
    whole = places[""].images if "" in places else path
    source = Source(root, "masks", part.split, str(there.get(part.there, whole)), part.take)
    notes = Notes()
    read_all = {name: paired(place) for name, place in places.items()}
    every = [pair for one in read_all.values() for pair in one.pairs]
    check_one_each(every)
    if part.there and lists:
        file = lists[part.there]
        pairs = parse_list(text_of(file), str(file), path, every)
        notes.read = len(pairs)
        _note_turned(pairs, notes)
    else:
        of_others = (one.pairs for name, one in read_all.items() if name != part.there)
        others = {labels for of_other in of_others for _, labels in of_other}
        pairs = _pairs(places[part.there], read_all[part.there], notes, others)
    if elsewhere == USUAL:
        _say_other_maps(path, places, notes)
    homes = [path, *(Path(folder) for folder in (elsewhere.masks, elsewhere.images) if folder)]
    legend = _legend(homes, places, [labels for _, labels in every or pairs], notes)
    samples = [
        Sample(
            image,
            semantic=partial(read, file, image, len(legend.names), legend.colors, legend.first),
        )
        for image, file in hold_out(pairs, part.take)
    ]
    return Split(samples, legend.names, notes.lines, source=source, annotations=notes.annotations())


def parse(text: str, source: str) -> tuple[list[str], Colors]:
    """The class names, in order, and the label of each color, from the lines `r g b name` of a color map.

    >>> parse("0 0 0 road\\n9 9 9 void\\n128 0 64 tree", "colors.txt")
    (['road', 'tree'], {(0, 0, 0): 0, (9, 9, 9): 255, (128, 0, 64): 1})
    """
    return parse_colors(text, source)


def _of_folder(path: Path) -> tuple[str, Path, dict[str, Place]]:
    """The split that a folder itself is of, or ""; the folder of the data, and its places.

    Of the folder of a split, those beside it are the other splits.
    """
    places = map_places(path)
    own = split_of(path.absolute().name)
    if own and set(places) == {""}:
        above = path.absolute().parent if str(path) in (".", "..") else path.parent
        beside = map_places(above)
        if own in beside and beside[own].images.is_relative_to(path):
            return own, above, beside
    return "", path, places


def _pairs(place: Place, there: Paired, notes: Notes, others: set[Path]) -> list[Pair]:
    """All images of a place that have a label map, and it; what has no other is noted.

    `others` are label maps of other splits, which may lie in the same folder.
    """
    pairs, alone, maps_alone, left_out = there
    maps_alone = [file for file in maps_alone if file not in others]
    notes.lines += left_out
    notes.read = len(pairs) + len(maps_alone)
    _note_turned(pairs, notes)
    for picture in alone:
        notes.say(f"{str(picture)!r}: no labels of that name in {str(place.maps)!r}")
    for file in maps_alone:
        notes.drop(
            "without an image of their name",
            f"{str(file)!r}: no image of that name in {str(place.images)!r}",
        )
    if not pairs:
        raise DataError(
            f"no image has a label map of its name in {described(place)}; a map is called as its "
            "image, or with an ending as x_mask.png"
        )
    return pairs


def _say_other_maps(root: Path, places: Mapping[str, Place], notes: Notes) -> None:
    """Say where label maps lie too that are not read, as in masks/ beside labels/."""
    read_from = [place.maps for place in places.values()]
    others = [
        folder
        for folder in map_folders(root)
        if not any(folder.is_relative_to(maps) or maps.is_relative_to(folder) for maps in read_from)
    ]
    if others and read_from:
        notes.say(
            f"label maps are read from {few(dict.fromkeys(repr(str(maps)) for maps in read_from))}; "
            f"not from {few(repr(str(folder)) for folder in others)}"
        )


def _note_turned(pairs: Sequence[Pair], notes: Notes) -> None:
    turned: list[Path] = []
    for picture, _ in pairs:
        # one that cannot be read is named when it is, and changes no split
        measured(picture, Notes(), turned)
    note_turned(turned, notes)


# ---- lists -----------------------------------------------------------------------------------------------------------


def parse_list(text: str, source: str, root: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """The images and label maps that a list of a split names, in its order; a line is `image` or `image labels`."""
    by_name: dict[str, list[Pair]] = {}
    for pair in pairs:
        for name in _names(pair[0], root):
            by_name.setdefault(name, []).append(pair)
    chosen: dict[Path, Path] = {}
    for n, line in enumerate(text.split("\n"), 1):
        words = line.strip()
        if words and not words.startswith("#"):
            entry = f"{source}, line {n}: {shorten(words)!r}"
            image, labels = _listed(words, entry, root, by_name)
            chosen[image] = labels
    if not chosen:
        raise DataError(f"{source} is empty: no samples")
    return list(chosen.items())


def _listed(words: str, entry: str, root: Path, by_name: Mapping[str, list[Pair]]) -> Pair:
    """The image and label map that one line names."""
    first, _, second = re.sub(r"[\s,]+", " ", words).partition(" ")
    # a path may have spaces; numbers behind it are labels of the whole image
    whole_line = same_form(words).removeprefix("./")
    alone = whole_line in by_name or not is_picture(second)
    name = whole_line if whole_line in by_name else same_form(first).removeprefix("./")
    named = by_name.get(name, [])
    if not alone:
        image, labels = (inside(root / path, root, entry) for path in (first, second))
        there = os.path.isfile(image) and os.path.isfile(labels)
        if there and not any(labels.parent == other.parent for _, other in named):
            return image, labels
    if len(named) != 1:
        raise DataError(
            f"{entry}: {'several images are' if named else 'no image with labels is'} called so"
        )
    image, labels = named[0]
    if not alone and same_form(str(root / second)) != same_form(str(labels)):
        raise DataError(f"{entry}: the labels of that image are {str(labels)!r}")
    return image, labels


def _names(image: Path, root: Path) -> set[str]:
    """What a list may call an image: its path from the root or a folder below, and these without extension."""
    parts = image.relative_to(root).parts if image.is_relative_to(root) else image.parts[1:]
    paths = [Path(*parts[i:]) for i in range(len(parts))]
    names = {name for path in paths for name in (path, path.with_suffix(""))}
    return {same_form(name.as_posix()) for name in names}


def _lists(root: Path, places: Mapping[str, Place]) -> dict[str, Path]:
    """The lists of splits in the folder of the data, or in one for lists or annotations."""
    folders = [root, *children(root, _LIST_FOLDERS)]
    folders += [deeper for folder in folders[1:] for deeper in children(folder, _LIST_FOLDERS)]
    endings = ("", "_list")
    lists = (split_lists(folder, endings) for folder in folders)
    return next(
        (there for there in lists if there and (places or any(map(_names_pairs, there.values())))),
        {},
    )


def _names_pairs(file: Path) -> bool:
    """Whether the first line of a list names two image files."""
    try:
        lines = [line.strip() for line in text_of(file).split("\n") if line.strip()]
    except DataError:
        return False
    words = re.sub(r"[\s,]+", " ", lines[0]).split(" ") if lines else []
    return len(words) == 2 and all(is_picture(word) for word in words)


def _is_voc(root: Path) -> bool:
    """Whether VOC's own reader knows the folders and nothing says that colors are meant."""
    is_voc = os.path.isdir(root / "JPEGImages") and os.path.isdir(root / "SegmentationClass")
    return is_voc and not has_colors(root)


# ---- label maps ------------------------------------------------------------------------------------------------------


def read(
    path: File, image: File, classes: int, colors: Colors | None = None, first: int = 0
) -> np.ndarray:
    """The label map of an image: (height, width) uint8, values below `classes`, or IGNORE.

    `first` is the value that stands for class 0. Raises `DataError` naming both files where their
    sizes differ, and the file with a value that is no class.
    """
    labels = read_labels(path, colors)
    height, width = labels.shape
    actual, orientation = examine(image)
    if actual != (width, height):
        turned = ", turned by its EXIF orientation" if orientation != 1 else ""
        raise DataError(
            f"labels {str(path)!r} are {width}x{height}, their image {str(image)!r} is "
            f"{actual[0]}x{actual[1]}{turned}"
        )
    last = first + classes - 1
    wrong = labels[((labels < first) | (labels > last)) & (labels != IGNORE)]
    if wrong.size:
        pixels = f"{wrong.size} pixels have the value {wrong[0]}"
        raise DataError(f"labels {str(path)!r}: {pixels}; allowed: {first} to {last}, {IGNORE}")
    if first:
        labels = np.where(labels == IGNORE, labels, labels - np.uint8(first))
    return labels


def _legend(
    homes: Sequence[Path], places: Mapping[str, Place], maps: Sequence[Path], notes: Notes
) -> Legend:
    """What the values of the label maps mean; `homes` are the folders of the data that the user names."""
    lossy = [file for file in maps if file.suffix.lower() in LOSSY]
    if maps and len(lossy) == len(maps):
        raise DataError(
            f"labels {str(lossy[0])!r} are in a JPEG, which changes them; save them as PNG"
        )
    around = [folder for place in places.values() for folder in (place.maps, place.images)]
    around = around or [maps[0].parent]
    folders = [*homes, *around, *(above for folder in around for above in folder.parents)]
    folders = [
        folder
        for folder in dict.fromkeys(folders)
        if any(folder.is_relative_to(home) for home in homes)
    ]
    home = next(home for home in reversed(homes) if around[0].is_relative_to(home))
    top = [*around[0].relative_to(home).parts, home.name][0]
    legend = legend_of(folders, top)
    return legend if legend.colors else _counted(legend, maps, notes)


def _counted(legend: Legend, maps: Sequence[Path], notes: Notes) -> Legend:
    """The legend with the value of its first class, as label maps that are spread over all of them have it.

    Values count from 1 where none is 0 and the largest is the number of classes, unless the file
    of classes numbers them. A 0 where it numbers them from 1 is something else than these.
    """
    largest = 0
    step = -(-len(maps) // LOOKED_AT) or 1
    for file in maps[::step]:
        try:
            labels = read_labels(file)
        except DataError:  # told when it is read as a sample's
            continue
        if not labels.all():
            names = [OTHER, *legend.names] if legend.first else legend.names
            return Legend(names)
        largest = max(largest, int(labels[labels != IGNORE].max(initial=0)))
    if legend.numbered:
        return legend
    if 0 < largest < len(legend.names):
        notes.say(
            f"no label map that was looked at has a 0, and the largest value is {largest}: values "
            f"are counted from 0, so 1 is {shorten(legend.names[1])!r}. If 1 is "
            f"{shorten(legend.names[0])!r}, number the names: `1 {shorten(legend.names[0])}`, ..."
        )
    return Legend(legend.names, None, int(legend.first == 1 or largest == len(legend.names)))
