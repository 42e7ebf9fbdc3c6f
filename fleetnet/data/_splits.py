"""Which part of the data is read: a split that the data have, or our own part of data that have none.

What is named is what is read: a named file, list or folder is read whole. Only where a split for
"val" is asked for and is not there, every tenth item of "train" is held back for it; "test" is
never taken in its place.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import DataError
from ._conventions import (
    Word,
    by_split,
    children,
    files_in,
    folders_in,
    split_lists,
    split_of,
    word_in,
)

# Folders that lists of splits are kept in, below that of the data, and below ImageSets.
LIST_FOLDERS = ("splits", "split", "lists", "list", "meta", "ImageSets")
IMAGE_SETS = ("Main", "Layout", "Segmentation")
LISTED = 4  # lists in a message

_Item = TypeVar("_Item")


class NoSplit(DataError):
    """A split that the data do not have, or "all" of data that have several."""


@dataclass(frozen=True)
class Part:
    """What to read where a split is asked for."""

    split: str  # what it is: "train", "val", "test", or "all" of data without splits
    there: str  # the split of the data that holds it; "" for data without splits
    take: str = "all"  # "all" of that, or our own part of it: "train" without, or "val" only, what is held back


def part_of(split: str | None, there: Mapping[str, Path], root: str, own: str = "") -> Part:
    """The part to read for `split`, where the data have the splits `there`, each in its folder or file.

    `own` is the split that `root` itself is the folder or file of, if it is one: then it is read
    whole. Else None asks for what is there to measure on: "val", else "test", else everything.
    Raises `NoSplit`, naming the splits that are there, for one that is not.
    """
    if own and split in (None, "all"):
        return Part(own, own)
    if split is None:
        split = next((name for name in ("val", "test", "train") if name in there), "all")
        return Part(split, split if there else "")
    if split in there:
        if split == "train" and "val" not in there:
            return Part("train", "train", "train")
        return Part(split, split)
    if split == "val" and "train" in there:
        return Part("val", "train", "val")
    if split == "all" and len(there) < 2:
        return Part("all", next(iter(there), ""))
    if not there and split in ("train", "val"):
        _check_no_lists(root)
        return Part(split, "", split)
    if not there:
        raise NoSplit(
            f"no split {split!r} in {root!r}, which has no splits; allowed: all, or train and val, "
            "which is every tenth"
        )
    has = ", ".join(f"{name} ({str(path)!r})" for name, path in there.items())
    if split == "all":
        raise NoSplit(f"{root!r} has the splits {has}: choose one")
    raise NoSplit(f"no split {split!r} in {root!r}; there is {has}")


def hold_out(items: Sequence[_Item], take: str) -> list[_Item]:
    """All the items, or one part of them: every tenth is for "val" (and "test"), the rest for "train".

    The same items give the same parts on every machine. At least one is held back, unless there is
    only one.
    """
    if take == "all":
        return list(items)
    held = set(range(9, len(items), 10)) or ({len(items) - 1} if len(items) > 1 else set())
    return [item for i, item in enumerate(items) if (i in held) != (take == "train")]


def hold_out_of_each(items: Sequence[_Item], groups: Sequence[Hashable], take: str) -> list[_Item]:
    """As `hold_out` of each group by itself, in the order of the items; `groups` says which each item is of."""
    if take == "all":
        return list(items)
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    chosen = sorted(i for of_group in members.values() for i in hold_out(of_group, take))
    return [items[i] for i in chosen]


def files_beside(path: Path) -> tuple[str, dict[str, Path]]:
    """The split that a file's name says, or "", and the files of all splits whose names differ from it in that word.

    Where the file's own name says none, the name of its folder may: `valid/x.json` is beside
    `train/x.json`.
    """
    word = word_in(path.stem)
    if word:
        own, named = word.split, _differing_in(path, word)
    elif split := split_of(path.absolute().parent.name):
        own, named = split, _in_folders_beside(path.absolute())
    else:
        return "", {}
    return own, {**by_split(named), own: path}


def of_other_names(path: Path, there: Mapping[str, Path], files: Sequence[Path]) -> dict[str, Path]:
    """`there`, and for each split that it lacks one of `files` whose names say it and differ from that of `path`.

    So val.txt is beside train_list.txt, where no val_list.txt is. Of several of a split that with
    the shortest name counts. Where the name of `path` itself says no split, nothing is added.
    """
    named: dict[str, Path] = {}
    if word_in(path.stem) is None:
        return dict(there)
    for file in sorted(files, key=lambda file: (len(file.stem), file.name)):
        word = word_in(file.stem)
        if word and word.split not in there:
            named.setdefault(word.word, file)
    return {**by_split(named), **there}


def _differing_in(path: Path, word: Word) -> dict[str, Path]:
    """Files beside one whose names differ from it in the word of the split, by that word."""
    named: dict[str, Path] = {}
    end = word.end + path.suffix
    for file in files_in(path.parent):
        other = word_in(file.stem)
        same = other and (other.start.lower(), f"{other.end}{file.suffix}".lower()) == (
            word.start.lower(),
            end.lower(),
        )
        if other and same:
            named[other.word] = file
    return named


def _in_folders_beside(path: Path) -> dict[str, Path]:
    """Files of the same name in the folders of splits beside that of `path`, by those folders' names."""
    files = {folder.name: folder / path.name for folder in folders_in(path.parent.parent)}
    return {name: file for name, file in files.items() if os.path.isfile(file)}


def _check_no_lists(root: str) -> None:
    """`DataError` if lists of the user's own splits stand where we would hold pictures back by ourselves."""
    folder = Path(root)
    if not os.path.isdir(folder):
        return
    lists = _lists_in(folder)
    if lists:
        names = ", ".join(file.relative_to(folder).as_posix() for file in lists)
        raise DataError(
            f"{root!r} has lists of splits, {names}, which this format does not read, "
            "and no folders for them. Put the pictures of each split into a folder of its own; or, "
            "for classes, name a list of lines `path label` with --data "
            f"{str(lists[0])!r}; for boxes, name lists of paths in YOLO's data.yaml, or put them "
            "into VOC's ImageSets/Main as train.txt and val.txt; or move the lists away: then every "
            "tenth picture is held back for val"
        )


def _lists_in(folder: Path) -> list[Path]:
    """The lists of splits in a folder, or in the first below it where people keep them."""
    inner = children(folder, LIST_FOLDERS)
    sets = [place for top in inner for place in children(top, IMAGE_SETS)]
    for place in (folder, *inner, *sets):
        lists = sorted(set(split_lists(place).values()))
        if not lists and place in (*sets, *children(folder, ["ImageSets"])):
            # one for each class: cat_train.txt, cat_val.txt
            lists = [file for file in files_in(place, ".txt") if _is_of_class(file)]
        if lists:
            return lists[:LISTED]
    return []


def _is_of_class(file: Path) -> bool:
    word = word_in(file.stem)
    return word is not None and word.start.endswith("_") and not word.end
