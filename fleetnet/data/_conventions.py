"""What people and their tools call the parts of a data set, and where they put them.

One table for all formats: what is read in one of them is read in the others. Names count without
their case. The functions tell names apart and list what a folder holds; they open no file.
"""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import DataError
from ..images import EXTENSIONS, STACKS, hidden

# "all" is for data without a split of its own: nothing is held back
SPLITS = "train", "val", "test", "all"

SPLIT_WORDS = {  # what folders, files and keys of a split are called; the first that is there counts
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "eval", "minival"),
    "test": ("test", "testing"),
}

# Folders below the root, or below the folder of a split. The first that is there counts.
IMAGE_FOLDERS = (
    *("images", "image", "imgs", "img", "JPEGImages", "img_dir", "data"),
    *("pictures", "photos", "obj_train_data", "leftImg8bit"),
)
XML_FOLDERS = ("Annotations", "annotation", "labels", "label", "xmls", "xml", "annots", "ann")
MAP_FOLDERS = (  # of label maps
    *("labels", "label", "masks", "mask", "semantic", "annotations", "annotation", "ann_dir"),
    *("gt", "groundtruth", "ground_truth", "gtFine", "segmentations", "segmentation"),
    *("SegmentationClass", "SegmentationClassPNG", "targets", "trimaps"),
)
NAME_FILES = ("classes.txt", "labels.txt", "class_names.txt", "obj.names", "classes.names")
MAP_ENDINGS = (  # what the name of a label map has behind that of its image; the longest counts
    *("_mask", "_masks", "_L", "_label", "_labels", "_labelIds", "_labelTrainIds", "_gt", "_seg"),
    *("_gtFine_labelIds", "_gtFine_labelTrainIds", "_segmentation", "_trimap", "_semantic"),
)
IMAGE_ENDINGS = ("_leftImg8bit", "_image", "_img", "_sat", "_rgb")  # what only the image's name has
_ENDINGS = tuple(  # the longest first, in small letters
    ending.lower() for ending in sorted((*MAP_ENDINGS, *IMAGE_ENDINGS), key=len, reverse=True)
)

_WORDS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_RANK = {word: rank for words in SPLIT_WORDS.values() for rank, word in enumerate(words)}
_LONGEST_FIRST = "|".join(sorted(_WORDS, key=lambda word: (-len(word), word)))
_NAME = re.compile(rf"({_LONGEST_FIRST})(?:[-_ ]?set)?[-_ ]?((?:19|20)\d\d)?", re.IGNORECASE)
_WORD = re.compile(  # not in "values"
    rf"(?<![a-z])({_LONGEST_FIRST})(?=list|set|[^a-z]|$)", re.IGNORECASE
)

_Place = TypeVar("_Place")


class Places(NamedTuple):
    """Where the user says that parts of the data lie; None where they are looked for."""

    images: str | None = None
    masks: str | None = None  # label maps


USUAL = Places()


class Word(NamedTuple):
    """The word in a file's name that says its split, and what stands around it."""

    split: str
    start: str
    word: str
    end: str


def same_form(name: str) -> str:
    """A name with its marks composed: macOS may store an umlaut as two characters, lists have one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def forms_of(name: str) -> tuple[str, ...]:
    """A name as it is written, and where it has marks, with these composed and apart."""
    if name.isascii():
        return (name,)
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return tuple(dict.fromkeys((name, *forms)))


def stored(folder: Path, name: str) -> Path | None:
    """The file of a name, or path, in a folder, in the form in which it has its marks; None without one."""
    paths = (folder / form for form in forms_of(name))
    return next((path for path in paths if os.path.isfile(path)), None)


def split_of(name: str) -> str | None:
    """The split that a folder, key or file without extension of this name is; None for other names.

    >>> split_of("Train"), split_of("val2017"), split_of("valid"), split_of("trains")
    ('train', 'val', 'val', None)
    """
    match = _NAME.fullmatch(name)
    return _WORDS[match[1].lower()] if match else None


def split_and_kind(name: str, kinds: Collection[str]) -> str | None:
    """The split of a folder that is called by it and by what it holds; None for other names.

    >>> split_and_kind("train_images", IMAGE_FOLDERS), split_and_kind("Images-Val", IMAGE_FOLDERS)
    ('train', 'val')
    """
    words = [word for word in re.split(r"[-_ ]", name) if word]
    usual = {kind.lower() for kind in kinds}
    splits = [split for word in words if (split := split_of(word))]
    others = [word for word in words if split_of(word) is None]
    # darknet's obj_train_data may have obj_valid_data beside it
    is_darknet = [word.lower() for word in others] == ["obj", "data"] and "obj_train_data" in usual
    if len(splits) == 1 and (is_darknet or (len(others) == 1 and others[0].lower() in usual)):
        return splits[0]
    return None


def split_said_by(name: str, kinds: Collection[str]) -> str | None:
    """The split that a folder's name says, by itself or beside what the folder holds.

    >>> split_said_by("val", IMAGE_FOLDERS), split_said_by("train_images", IMAGE_FOLDERS)
    ('val', 'train')
    """
    return split_of(name) or split_and_kind(name, kinds)


def word_in(stem: str) -> Word | None:
    """The first word in a file's name that says a split; None where there is none.

    >>> word_in("instances_Train2017")
    Word(split='train', start='instances_', word='Train', end='2017')
    """
    match = _WORD.search(stem)
    if not match:
        return None
    return Word(_WORDS[match[1].lower()], stem[: match.start()], match[1], stem[match.end() :])


def by_split(named: Mapping[str, _Place]) -> dict[str, _Place]:
    """What is there for each split, of places by the names that may say one; other names count for nothing.

    Of several names of one split the first of `SPLIT_WORDS` counts, and the latest year. Where
    train and val are one ("trainval") beside a test, test serves as val; see `serves_as_val`.
    """
    there: dict[str, _Place] = {}
    for name in sorted(named, key=_preference):
        split = split_of(name)
        if split is not None:
            there.setdefault(split, named[name])
    ordered = {split: there[split] for split in SPLIT_WORDS if split in there}
    plain = [name for name in named if split_of(name) == "train" and not _is_both(name)]
    if "train" in ordered and "test" in ordered and "val" not in ordered and not plain:
        ordered["val"] = ordered["test"]
    return ordered


def serves_as_val(there: Mapping[str, Path]) -> str | None:
    """A line that says so where test stands for val; None where it does not."""
    if "test" not in there or there.get("val") != there["test"]:
        return None
    return f"{str(there['test'])!r} serves as val: there is trainval and test, and no val"


def _preference(name: str) -> tuple[int, int, str]:
    match = _NAME.fullmatch(name)
    if not match:
        return len(_RANK), 0, name
    return _RANK[match[1].lower()], -int(match[2] or 9999), name


def _is_both(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and match[1].lower() == "trainval"


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without those that are passed over; none where it is no folder."""
    return [entry for entry in _entries(folder) if os.path.isdir(entry)]


def files_in(folder: Path, *extensions: str) -> list[Path]:
    """The files in a folder, by name, of these extensions in any case, or all; without those passed over."""
    return [
        entry
        for entry in _entries(folder)
        if (not extensions or entry.suffix.lower() in extensions) and os.path.isfile(entry)
    ]


def images_in(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, by their extensions."""
    images = files_in(folder, *EXTENSIONS)
    if images or folders_in(folder):
        return images
    return files_in(folder, *STACKS)


def split_folders(folder: Path, kinds: Collection[str] = ()) -> dict[str, Path]:
    """The folder of each split in a folder; or, where none is called so, that of the split and one of the kinds."""
    folders = folders_in(folder)
    there = by_split({child.name: child for child in folders})
    named = {split_and_kind(child.name, kinds) or "": child for child in folders}
    return there or by_split(named)


def split_lists(folder: Path, endings: Sequence[str] = ("", "_list", "list")) -> dict[str, Path]:
    """The text file of each split in a folder: train.txt, or with one of the endings before its extension."""
    named: dict[str, Path] = {}
    for file in files_in(folder, ".txt"):
        for ending in endings:
            if file.stem.lower().endswith(ending):
                named.setdefault(file.stem[: len(file.stem) - len(ending)], file)
    return by_split(named)


def child(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these names that is a folder in a folder, in any case; None where none is."""
    return next(iter(children(folder, names)), None)


def children(folder: Path, names: Iterable[str]) -> list[Path]:
    """The folders in a folder that are called so, in any case, in the order of the names."""
    return [entry for entry in _called(folder, names) if os.path.isdir(entry)]


def file_called(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these names that is a file in a folder, in any case; None where none is."""
    return next((entry for entry in _called(folder, names) if os.path.isfile(entry)), None)


def only_folder(folder: Path) -> Path | None:
    """The one folder in a folder without images: packing and unpacking leave one too much around the data."""
    folders = folders_in(folder)
    return folders[0] if len(folders) == 1 and not images_in(folder) else None


def describes_itself(folder: Path) -> bool:
    """Whether files in a folder say what is in it, or which of it is of which split.

    Folders of splits count where the folder is itself called as a split: `train/train` and
    `train/val` are no data of train alone, while `images/train` and `images/val` are usual.
    """
    if children(folder, ("ImageSets",)) or files_in(folder, ".yaml", ".yml", ".data"):
        return True
    if split_of(folder.name) and len(split_folders(folder)) > 1:
        return True
    places = [folder, *children(folder, ("annotations",))]
    files = [file for place in places for file in files_in(place, ".csv", ".tsv", ".json", ".tar")]
    words = {word.split for file in files if (word := word_in(file.stem))}
    return len(split_lists(folder)) > 1 or len(words) > 1


def map_key(stem: str) -> str:
    """What an image and its label map share: the name without extension and without the endings of either.

    >>> map_key("a_L"), map_key("b_leftImg8bit"), map_key("b_gtFine_labelIds"), map_key("c.jpg")
    ('a', 'b', 'b', 'c')
    """
    stem = same_form(stem)
    name, extension = os.path.splitext(stem)
    stem = name if extension.lower() in EXTENSIONS else stem  # a mask may be called x.jpg.png
    low = stem.lower()
    for ending in _ENDINGS:
        if low.endswith(ending) and len(stem) > len(ending):
            return stem[: len(stem) - len(ending)]
    return stem


def _called(folder: Path, names: Iterable[str]) -> list[Path]:
    """What is called so in a folder, in any case, in the order of the names.

    A folder may hold very many files: none but those called so are looked at.
    """
    order = [name.lower() for name in names]
    by_name: dict[str, list[Path]] = {}
    for entry in _entries(folder, set(order)):
        by_name.setdefault(entry.name.lower(), []).append(entry)
    return [entry for name in order for entry in by_name.get(name, ())]


def _entries(folder: Path, called: Collection[str] | None = None) -> list[Path]:
    """What lies in a folder, by name, without what is passed over: all, or what is `called` so, in small letters."""
    try:
        names = sorted(
            name
            for name in os.listdir(folder)
            if (called is None or name.lower() in called) and not hidden(name)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"cannot list folder {str(folder)!r}: {error.strerror}") from error
    return [folder / name for name in names]
