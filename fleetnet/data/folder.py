"""Class folders: one folder of images a class, with or without folders for the splits above them.

    root/train/CLASS/*.jpg  root/val/CLASS/*.jpg        or                root/CLASS/*.jpg

Classes are numbered by name, as torchvision's ImageFolder does. Without folders for the splits, or
with none for "val" (which may also be called valid or validation), every tenth image of each class,
by name, is held back for it. `root` may also be the folder of a split, with that of "train" beside
it. A folder `train` that holds images beside other folders that do is a class.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, suggest
from ..images import find_images, hidden
from . import Sample, Source, Split, check_exists, few, hold_out, part_of
from ._conventions import (
    USUAL,
    Places,
    by_split,
    files_in,
    folders_in,
    images_in,
    only_folder,
    same_form,
    split_of,
    word_in,
)

EXPECTS = (
    "ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg with two or more classes"
)
TARGETS: tuple[str, ...] = ("label",)
FALLBACK = True  # the folders mean classes where no list or annotation file says otherwise
PLACES: tuple[str, ...] = ()


def detect(root: str, target: str = "label") -> bool:
    """True for a folder with folders of splits that hold folders, or with several folders of which one holds images."""
    path = Path(root)
    if not os.path.isdir(path):
        return False
    splits = [child for child in folders_in(path) if split_of(child.name)]
    if any(folders_in(split) for split in splits):
        return True
    folders = folders_in(path)
    return (
        len(folders) > 1
        and len(folders) > len(splits)
        and any(images_in(folder) for folder in folders)
    )


def load(root: str, split: str | None, target: str = "label", elsewhere: Places = USUAL) -> Split:
    """The samples of a split: classes of the train folder, in every split.

    Raises `DataError` naming the folder that is missing, empty, or of a class that the train folder
    does not have.
    """
    check_exists(root)
    path = Path(root)
    if not os.path.isdir(path):
        raise DataError(f"{root!r} is not a folder; expected {EXPECTS}")
    there, unread = _splits(path)
    own = split_of(path.absolute().name) or "" if not there else ""
    if own:  # a folder of a split itself
        there = _beside(path)
        there = there if "train" in there else {own: path} if split in (None, "all", own) else {}
    part = part_of(split, there, root, own)
    folder = there.get(part.there, path)
    first = _inner(there.get("train", next(iter(there.values()), path)))  # names the classes
    classes = _names_in(first)
    if not classes:
        raise DataError(f"no class folders in {str(first)!r}; expected {EXPECTS}")
    if not set(_names_in(folder)) <= set(classes):
        folder = _inner(folder)
    images, skipped = _scan(folder, classes, str(first))
    skipped += unread
    source = Source(root, "folder", part.split, str(folder), part.take)
    return Split(parse(images, classes, part.take), classes, skipped, source=source)


def parse(
    images: Sequence[tuple[str, Sequence[Path]]], classes: Sequence[str], take: str
) -> list[Sample]:
    """Samples from (class name, its images); of each class those that `hold_out` gives to the part."""
    index = {name: i for i, name in enumerate(classes)}
    return [Sample(path, index[name]) for name, paths in images for path in hold_out(paths, take)]


def _splits(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of splits below `root`, none where they are classes of these names; and lines on what is not read.

    They are classes where one of them holds images itself, other folders hold images too, and none
    of them holds class folders. Raises `DataError` where there are class folders below the only
    folder of a split and in other folders alike, which could be both.
    """
    folders = {child.name: child for child in folders_in(root)}
    splits = {name: child for name, child in folders.items() if split_of(name)}
    others = [
        name for name, child in folders.items() if name not in splits and _holds_image_below(child)
    ]
    flat = [name for name, folder in splits.items() if images_in(folder)]
    with_classes = [name for name, folder in splits.items() if _holds_class_folders(folder)]
    if others and flat and not with_classes:
        return {}, []
    if len(splits) == 1 and others:
        (name,) = splits
        raise DataError(
            f"in {str(root)!r}, {name!r} may be the folder of a split or of a class: it has "
            f"folders below it, and {few(others)} beside it hold images too. If it is a split, "
            f"give {str(root / name)!r} as --data or move the others away; if it is a class, give "
            "it another name"
        )
    unlabeled = [
        name
        for name in flat
        if split_of(name) == "test" and with_classes and name not in with_classes
    ]
    there = by_split({name: splits[name] for name in splits if name not in unlabeled})
    if not there:
        return {}, []
    others += [
        name
        for name, folder in splits.items()
        if folder not in there.values() and name not in unlabeled
    ]
    unread = [f"{str(root / name)!r}: beside the folders of splits, not read" for name in others]
    unread += [
        f"{str(root / name)!r}: no class folders in it, so its images have no label; not read"
        for name in unlabeled
    ]
    return there, unread


def _inner(folder: Path) -> Path:
    """The one folder in a split's folder that holds the class folders; else the folder itself."""
    inside = only_folder(folder)
    if inside is None or images_in(inside) or not _holds_class_folders(inside):
        return folder
    return inside


def _names_in(folder: Path) -> list[str]:
    """The names of the classes whose folders are in a folder, with their marks composed."""
    return list(dict.fromkeys(same_form(child.name) for child in folders_in(folder)))


def _beside(path: Path) -> dict[str, Path]:
    """The folders of splits of which `path` is one, by its name."""
    path = path.absolute()
    folders = {folder.name: folder for folder in folders_in(path.parent) if folders_in(folder)}
    return {**by_split(folders), split_of(path.name) or "": path}


def _scan(
    folder: Path, classes: list[str], first: str
) -> tuple[list[tuple[str, list[Path]]], list[str]]:
    """The images of each class below `folder`, and what was left out."""
    by_class: list[tuple[str, list[Path]]] = []
    skipped: list[str] = []
    allowed = set(classes)
    for child in folders_in(folder):
        name = same_form(child.name)
        if name not in allowed:
            near = suggest(name, classes)
            raise DataError(
                f"class folder {str(child)!r} has no folder of that name in {first!r}: {near}"
            )
        images, left_out = find_images(child)
        skipped += left_out
        if not images:
            lists = [file.name for file in files_in(child) if word_in(file.stem)]
            if lists:
                raise DataError(
                    f"{str(child)!r} has no images, but what may be lists of splits: {few(lists)}. "
                    "Lists are read that are called train.txt and val.txt and have lines `path "
                    f"label`, in {str(folder)!r} or in a folder `lists`"
                )
            reason = f"; left out: {left_out[0]}" if left_out else ""
            raise DataError(
                f"class folder {str(child)!r} has no images{reason}. Add images or "
                "delete the folder"
            )
        by_class.append((name, images))
    for child in sorted(folder.iterdir()):
        if not os.path.isdir(child) and not hidden(child.name):
            skipped.append(f"{str(child)!r}: not in a class folder")
    return by_class, skipped


def _holds_class_folders(folder: Path) -> bool:
    """Whether folders with images are in a folder, or one level deeper."""
    return any(_holds_image_below(child) for child in folders_in(folder))


def _holds_image_below(folder: Path) -> bool:
    return bool(images_in(folder)) or any(images_in(child) for child in folders_in(folder))
