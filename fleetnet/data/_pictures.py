"""The pictures of a data set by what a list or table may call them, wherever below its folder they lie.

A list names many pictures that lie alike: the one whose path has most in common with the name is
meant. An annotation file names each at a path first, and is asked about names alone where nothing
is there: see `_places.Pictures`.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..images import EXTENSIONS, STACKS, find_images
from ._conventions import IMAGE_FOLDERS, same_form, split_said_by


class PicturesByName:
    """The pictures below a folder. Only these are ever given back, whatever a name says."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._by_name: dict[str, list[Path]] = {}  # by the last part, with and without extension
        self._split: dict[Path, str] = {}  # folder of pictures -> the split that its path says
        for folder in folders:
            below: set[Path] = set()
            for path in find_images(folder)[0]:
                if path.parent not in below:
                    below.add(path.parent)
                    self._split[path.parent] = _split_said_by(path.parent, folder)
                for name in {path.name, path.stem}:
                    self._by_name.setdefault(same_form(name).lower(), []).append(path)
        self._splits = set(self._split.values())

    def named(self, name: str, split: str = "") -> list[Path]:
        """All pictures that a name may mean, the nearest only: one where it is plain which is meant.

        `name` may be a path from any folder, also of another machine, with or without the
        extension. Where folders are called as `split` is, those of other splits are left out. Those
        count whose path has most in common with the name, counted from the end; among equals those
        that are in a folder of `split`, then those that lie highest.
        """
        parts = _parts(name)
        if not parts:
            return []
        last = parts[-1].lower()
        stem = last.rpartition(".")[0] if is_picture(last) else last
        paths = list(dict.fromkeys(self._by_name.get(last) or self._by_name.get(stem) or ()))
        if split and split in self._splits:
            paths = [path for path in paths if self._split[path.parent] in ("", split)]
        if len(paths) > 1:
            paths = _most(paths, [_shared(path, parts) for path in paths])
        if len(paths) > 1:
            paths = _most(paths, [int(self._split[path.parent] == split) for path in paths])
        if len(paths) > 1:
            paths = _most(paths, [-len(path.parts) for path in paths])
        return paths

    def split_of(self, path: Path) -> str:
        """The split that a folder around a picture is called as; "" for none."""
        return self._split[path.parent]


def _parts(name: str) -> list[str]:
    """The parts of a path or address as any system writes it, without those that go nowhere or up."""
    plain = same_form(name.strip().replace("\\", "/"))
    if "://" in plain:
        plain = plain.partition("?")[0]
    return [part for part in PurePosixPath(plain).parts if part not in ("/", ".", "..")]


def _most(paths: list[Path], scores: list[int]) -> list[Path]:
    best = max(scores)
    return [path for path, score in zip(paths, scores, strict=True) if score == best]


def _shared(path: Path, parts: Sequence[str]) -> int:
    """How many parts a path and a name have in common, from the end."""
    count = 1
    for one, other in zip(path.parts[-2::-1], parts[-2::-1], strict=False):
        if same_form(one).lower() != other.lower():
            break
        count += 1
    return count


def _split_said_by(place: Path, root: Path) -> str:
    """The split that a folder, or one around it below `root`, is called as, as train or train_images; "" for none."""
    for name in place.relative_to(root).parts:
        split = split_said_by(name, IMAGE_FOLDERS)
        if split:
            return split
    return ""


def is_picture(name: str) -> bool:
    """Whether a name ends as that of an image file does."""
    return PurePosixPath(name.replace("\\", "/")).suffix.lower() in EXTENSIONS | STACKS
