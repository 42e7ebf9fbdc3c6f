"""The folders of splits around the pictures, where the format itself divides nothing or passes them over.

One file may annotate the pictures of all splits, and only their folders say which are for testing.
What lies beside the data and is not used is named.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from . import Sample, Source, Split, find, hold_out, text_of
from ._conventions import (
    IMAGE_FOLDERS,
    Places,
    children,
    images_in,
    split_folders,
    split_lists,
    split_of,
)


def read(name: str, place: str, split: str | None, target: str, elsewhere: Places) -> Split:
    """The samples of a split as the format reads them, or as the folders of the pictures say."""
    if find(name).FALLBACK:
        return find(name).load(place, split, target, elsewhere)
    try:
        loaded = find(name).load(place, split, target, elsewhere)
    except DataError:
        # One file may annotate all pictures, and only their folders say which are for testing.
        parts = by_folders(name, place, target, elsewhere) if split == "test" else None
        if parts is None or "test" not in parts.groups:
            raise
        return parts.of("test")
    source = loaded.source
    if source is None or not _is_undivided(source, split, place):
        return loaded
    if not _has_other_splits(loaded, _folder_of(place)):
        return loaded
    parts = by_folders(name, place, target, elsewhere)
    if parts is None:
        return loaded
    return parts.of(
        split or next(name for name in ("val", "test", "train") if name in parts.groups)
    )


def _is_undivided(source: Source, split: str | None, place: str) -> bool:
    """Whether a format read data without splits of their own: a part of ours, or a folder as a whole to measure on."""
    is_whole_folder = split is None and source.split == "all" and os.path.isdir(place)
    return source.take in ("train", "val") or is_whole_folder


def _folder_of(place: str) -> Path:
    return Path(place) if os.path.isdir(place) else Path(place).parent


@dataclass(frozen=True)
class Parts:
    """Data that one file annotates, by the folders of splits that their pictures lie in."""

    every: Split
    source: Source  # of `every`
    groups: dict[str, list[Sample]]  # split -> its samples; train is there, and another

    def of(self, split: str) -> Split:
        """The samples of a split; where there is no folder for val, every tenth of train's."""
        chosen, take = self.groups.get(split, []), "all"
        if "val" not in self.groups and split in ("train", "val"):
            take = split
            chosen = hold_out(self.groups["train"], take)
        counts = ", ".join(f"{len(group)} {name}" for name, group in self.groups.items())
        files = self.source.files
        line = f"{files}: its pictures lie in folders of splits, which are used: {counts}"
        source = replace(self.source, split=split, take=take, files=f"{files}, pictures of {split}")
        skipped = [line, *self.every.skipped]
        return replace(self.every, samples=chosen, skipped=skipped, source=source)


def by_folders(name: str, place: str, target: str, elsewhere: Places) -> Parts | None:
    """The user's own splits where the pictures lie in folders of them; None where they do not.

    One file may annotate pictures of images/train and of images/val: those of val are not learned.
    """
    root = _folder_of(place)
    try:
        every = find(name).load(place, "all", target, elsewhere)
    except DataError:  # there are several parts, each with a file of its own
        return None
    if every.source is None or not _has_other_splits(every, root):
        return None
    groups: dict[str, list[Sample]] = {}
    for sample in every.samples:
        groups.setdefault(_split_above(sample, root) or "train", []).append(sample)
    if "train" not in groups or len(groups) < 2:
        return None
    return Parts(every, every.source, groups)


def _has_other_splits(loaded: Split, root: Path) -> bool:
    """Whether pictures lie in the folder of a split that has folders of other splits beside it."""
    folders = {sample.image.parent for sample in loaded.samples if isinstance(sample.image, Path)}
    above = {
        place.parent
        for folder in folders
        for place in (folder, *folder.parents)
        if split_of(place.name) and place != root and place.is_relative_to(root)
    }
    return any(len(split_folders(folder)) > 1 for folder in above)


def unused(loaded: Split, source: Source, root: Path) -> list[str]:
    """A line for a list or folder of the split beside the data that was not read for it."""
    if not os.path.isdir(root):
        return []
    file, lines = split_lists(root).get(source.split), []
    images = [sample.image for sample in loaded.samples if isinstance(sample.image, Path)]
    is_read = file is None or file.name in source.files or not _holds_names(file)
    if file is not None and not is_read and not _lists(file, images):
        lines.append(f"{str(file)!r}: a list that is not used; {source.split} is {source.files}")
    folders = {os.path.abspath(image.parent) for image in images}
    for folder in _folders_of(source.split, root):
        below = os.path.abspath(folder)
        is_used = str(folder) in source.files or any(
            Path(used).is_relative_to(below) for used in folders
        )
        if not is_used:
            lines.append(f"{str(folder)!r}: a folder of images that is not used for {source.split}")
    return lines


def beside(source: Source, place: str, name: str, target: str) -> list[str]:
    """A line where we hold back a part of the folder of train, and that of val stands beside it."""
    root = Path(os.path.abspath(place))
    if source.take not in ("train", "val") or split_of(root.name) != "train":
        return []
    val = split_folders(root.parent).get("val")
    if val is None or not os.path.isdir(root) or not find(name).detect(str(val), target):
        return []
    return [
        f"{str(val)!r} is beside it and not used: every tenth picture of {place!r} is held back for "
        f"val; to measure on that folder, give --data {str(root.parent)!r}"
    ]


def _folders_of(split: str, root: Path) -> list[Path]:
    """The folders with images in them that are a split's by name: val, images/val and val/images."""
    named = [split_folders(place).get(split) for place in (root, *children(root, IMAGE_FOLDERS))]
    inner = [
        place
        for folder in named
        if folder is not None
        for place in (folder, *children(folder, IMAGE_FOLDERS))
    ]
    return [folder for folder in inner if images_in(folder)]


def _lists(file: Path, images: Sequence[Path]) -> bool:
    """Whether the lines of a file begin with the names of these images, and of no others."""
    try:
        lines = text_of(file).split("\n")
    except DataError:
        return False
    first_words = [re.split(r"[\s,;]", line.strip(), maxsplit=1)[0] for line in lines]
    return {Path(word).stem for word in first_words if word} == {image.stem for image in images}


def _holds_names(file: Path) -> bool:
    """Whether a text file has lines at all."""
    try:
        return os.stat(file).st_size > 0
    except OSError:
        return False


def _split_above(sample: Sample, root: Path) -> str | None:
    """The split that the nearest folder of a picture says, below the root."""
    if not isinstance(sample.image, Path):
        return None
    folders = Path(os.path.relpath(sample.image, root)).parts[:-1]
    return next((split for folder in reversed(folders) if (split := split_of(folder))), None)
