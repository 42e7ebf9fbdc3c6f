"""Where the images of a data set are: looked up by whatever an annotation file calls them.

Annotation files travel: they hold paths of other machines, upload folders and addresses. Of such a
name the last part counts, if one image below the folder of the data is called so, and no other entry
of the file is. Nothing outside of that folder is looked at.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from ..images import find_images
from ..reading import is_below
from . import few, shorten
from ._conventions import (
    IMAGE_FOLDERS,
    children,
    folders_in,
    forms_of,
    same_form,
    split_of,
    split_said_by,
)


def image_folders(root: Path, split: str = "", tag: str = "") -> list[Path]:
    """The folders in which the images of a split may lie, most likely first.

    `tag` is what the annotation file itself calls its part, such as "train2017" or "default".

    Of images/train, train/images, train, images and the root itself these are the ones there.
    """
    tops = children(root, IMAGE_FOLDERS)
    folders: list[Path] = []
    for top in tops:
        of_split = _of_split(top, split, tag)
        folders += [deeper for place in of_split for deeper in children(place, IMAGE_FOLDERS)]
        folders += of_split
    for place in _of_split(root, split, tag):
        folders += [*children(place, IMAGE_FOLDERS), place]
    return list(dict.fromkeys([*folders, *tops, root]))


def _of_split(folder: Path, split: str, tag: str) -> list[Path]:
    """The folders of a split in a folder, the one that is called exactly so first."""
    chosen = [
        entry
        for entry in folders_in(folder)
        if entry.name.lower() == tag.lower()
        or (split and split_said_by(entry.name, IMAGE_FOLDERS) == split)
    ]
    return sorted(chosen, key=lambda entry: entry.name.lower() != tag.lower())


class Pictures:
    """The images below `root`, looked for in `folders` first; `split` is the one that they are of.

    Folders of other splits are left out where a name alone is looked for: a picture of val is never
    taken for one of train that is missing.
    """

    def __init__(self, root: Path, folders: Iterable[Path], split: str = "") -> None:
        self.root = root
        self.folders = list(dict.fromkeys(folders))
        self.split = split
        self._listed = False
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}

    def all_of(self, written: Sequence[str]) -> list[Path | None]:
        """The image of each name as an annotation file has it; None where there is none, or it could be several."""
        often = Counter(_last(name).lower() for name in set(written))
        paths: list[Path | None] = []
        for name in written:
            path = self.at(name) or self._at_end_of(name)
            if path is None and often[_last(name).lower()] == 1:
                path = self.called(name)
            paths.append(path)
        return self.without_strays(written, paths)

    def without_strays(
        self, written: Sequence[str], paths: Sequence[Path | None]
    ) -> list[Path | None]:
        """The paths, without those outside of the split's own folder where it has some of them.

        With `val/1.jpg` there, a bare name `2.jpg` is of val too: the `2.jpg` of a folder without a
        split is most likely one of train. A name with that folder in it says so itself.
        """
        if not any(path and self._is_of_split(path) for path in paths):
            return list(paths)
        return [
            path if path and (_ends_so(path, name) or self._is_of_split(path)) else None
            for name, path in zip(written, paths, strict=True)
        ]

    def _is_of_split(self, path: Path) -> bool:
        """Whether an image lies in a folder of the split that is looked for."""
        folders = Path(os.path.relpath(path, self.root)).parts[:-1]
        return bool(self.split) and any(
            split_said_by(name, IMAGE_FOLDERS) == self.split for name in folders
        )

    def at(self, written: str) -> Path | None:
        """The image at this path below one of the folders; the folder of the last one is tried first."""
        plain = written.replace("\\", "/")
        for name in dict.fromkeys((written, *forms_of(plain))):
            for folder in self.folders:
                path = folder / name
                if is_below(path, self.root) and os.path.isfile(path):
                    self._try_first(folder)
                    return path
        return None

    def _at_end_of(self, written: str) -> Path | None:
        """The image at an end of this path that has a folder: `data/train/a.jpg` is `train/a.jpg` here."""
        parts = [
            part for part in written.replace("\\", "/").split("/") if part not in ("", ".", "..")
        ]
        ends = ("/".join(parts[i:]) for i in range(1, len(parts) - 1))
        return next((path for end in ends if (path := self.at(end))), None)

    def called(self, written: str) -> Path | None:
        """The only image whose name is the last part of `written`, in any case, first of those of the split."""
        self._look()
        names = dict.fromkeys((_last(written), same_form(unquote(_last(written)))))
        paths = (self._only(self._by_name.get(name.lower(), []), name) for name in names)
        return next((path for path in paths if path), None)

    def with_stem(self, stem: str) -> Path | None:
        """The only image with this name without extension."""
        self._look()
        stem = same_form(stem)
        return self._only(self._by_stem.get(stem.lower(), []), stem)

    def _only(self, paths: Sequence[Path], name: str) -> Path | None:
        """The only one of several paths, in the folder of the split where one of them is."""
        return _only([path for path in paths if self._is_of_split(path)] or paths, name)

    def missing(self, written: str) -> str:
        """Why there is no image of that name: it lies outside of the data, or nowhere."""
        if not any(is_below(folder / written, self.root) for folder in self.folders):
            return f"{shorten(written)!r} is outside of the data, {str(self.root)!r}"
        places = few((repr(str(folder)) for folder in self.folders), 10)
        return (
            f"no such image: {shorten(written)!r}, neither in {places}, nor by its name alone below "
            f"{str(self.root)!r}; --images DIR says where the images are"
        )

    def _try_first(self, folder: Path) -> None:
        if self.folders[0] != folder:
            self.folders.remove(folder)
            self.folders.insert(0, folder)

    def _look(self) -> None:
        """List all images once."""
        if self._listed:
            return
        self._listed = True
        for path in find_images(self.root)[0]:
            splits = {split_of(part) for part in path.relative_to(self.root).parts[:-1]} - {None}
            if self.split and splits - {self.split}:
                continue
            self._by_name.setdefault(same_form(path.name).lower(), []).append(path)
            self._by_stem.setdefault(same_form(path.stem).lower(), []).append(path)


def _ends_so(path: Path, written: str) -> bool:
    """Whether a name as written has the folder of the image too."""
    parts = same_form(written).replace("\\", "/").split("/")
    return parts[-2:] == [same_form(path.parent.name), same_form(path.name)]


def _last(written: str) -> str:
    """The name of a file in a path of any system, or in an address."""
    name = same_form(written).replace("\\", "/").rstrip("/")
    if "://" in name:
        name = name.partition("#")[0]
        path, _, query = name.partition("?")
        # an address of a file is at the end of its path, or of what a viewer is asked for
        name = path if os.path.splitext(path)[1] or "/" not in query else query
    name = name.rpartition("/")[2]
    return name.rpartition("=")[2] if name.startswith("?") else name


def _only(paths: Sequence[Path], name: str) -> Path | None:
    """The only one of several paths, or the only one that is called exactly so."""
    exact = [path for path in paths if name in (same_form(path.name), same_form(path.stem))]
    for some in (exact, paths):
        if len(some) == 1:
            return some[0]
    return None
