"""The pictures of a data set on their way into another one: their names, sizes and bytes."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import DataError
from ...images import EXTENSIONS, STACKS, measure, read
from ...reading import Member
from .. import Sample, Split, shorten

# What some system has in no name, or what ends a line. A blank at an end is lost in lists.
_STRANGE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\/:*?"<>|]')


class Album:
    """Puts the pictures of samples into a folder: the files as they are, drawn ones as PNG."""

    def __init__(
        self, link: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """`link` makes hard links where the disk has them; `progress` gets numbers: put, and all."""
        self.link, self.progress = link, progress
        self.count = 0  # of pictures to put
        self.linked = 0
        self.renamed = 0
        self.placed: dict[str, Sample] = {}  # by where their pictures are now
        self.left_out: list[str] = []  # a line for each sample whose files cannot be read
        self._sizes: dict[int, tuple[int, int]] = {}  # by the identity of a sample's `image`

    def measured(self, splits: Mapping[str, Split]) -> dict[str, list[Sample]]:
        """The samples whose pictures can be read, of each split; the others are left out."""
        good: dict[str, list[Sample]] = {name: [] for name in splits}
        for name, split in splits.items():
            for sample in split.samples:
                try:
                    self.size(sample)
                except DataError as error:
                    self.left_out.append(str(error))
                else:
                    good[name].append(sample)
        return good

    def size(self, sample: Sample) -> tuple[int, int]:
        """(height, width) of the upright picture of a sample."""
        key = id(sample.image)
        if key not in self._sizes:
            width, height = measure(sample.source())
            self._sizes[key] = height, width
        return self._sizes[key]

    def label_map(self, sample: Sample) -> np.ndarray | None:
        """The label map (height, width) of a sample; None, and the sample left out, where it cannot be read."""
        try:
            return None if sample.semantic is None else sample.semantic()
        except DataError as error:
            self.left_out.append(str(error))
            return None

    def put(self, sample: Sample, path: Path) -> None:
        """Put the picture of a sample at a path; `DataError` where it cannot be read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(sample.image):
            read(sample.image()).save(path, "PNG")
        elif isinstance(sample.image, Member):
            with sample.image.open() as content, path.open("wb") as file:
                shutil.copyfileobj(content, file)
        else:
            self._copy(sample.image, path)
        name = _written(sample)
        self.renamed += name is not None and name != path.name
        self.was_put(sample, str(path))

    def was_put(self, sample: Sample, place: str) -> None:
        """Note where the picture of a sample is now, as its path or `Member` is written."""
        self.placed[place] = sample
        if self.progress is not None:
            self.progress(len(self.placed), self.count)

    def _copy(self, source: Path, path: Path) -> None:
        if self.link:
            try:
                os.link(os.path.realpath(source), path)
            except OSError:  # another disk, or one without links
                pass
            else:
                self.linked += 1
                return
        try:
            shutil.copyfile(source, path)
        except OSError as error:
            if os.path.isfile(source):
                raise
            raise DataError(f"cannot read {str(source)!r}: {error.strerror}") from error


def names_for(samples: Sequence[Sample]) -> list[str]:
    """A name for the picture of each sample, in one folder: its own, unless another one has that.

    No two are the same without their extensions, in any case: files beside them go by that. Where
    several are called alike, the folders that tell them apart stand before the name; where that is
    not enough, a number behind it.
    """
    names = [_plain(sample, i) for i, sample in enumerate(samples)]
    often = Counter(_key(name) for name in names)
    folders = [_folder(sample) for sample in samples]
    top = os.path.commonpath([folder for folder in folders if folder]) if any(folders) else ""
    taken = {key for key, count in often.items() if count == 1}
    chosen = []
    for name, folder in zip(names, folders, strict=True):
        if often[_key(name)] > 1:
            name = _untaken(_with_folders(name, folder, top), taken)
            taken.add(_key(name))
        chosen.append(name)
    return chosen


def _plain(sample: Sample, index: int) -> str:
    """The name of a picture, without what some systems or lists cannot have in it."""
    name = _written(sample)
    if name is None:
        return f"{index:06}.png"
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in EXTENSIONS | STACKS:
        raise DataError(
            f"{str(sample.image)!r} does not end as image files do, so that it would not be looked "
            "for among them: rename it"
        )
    return (_clean(stem) or "picture") + suffix


def _written(sample: Sample) -> str | None:
    """The name that the picture of a sample has; None where it is drawn."""
    if callable(sample.image):
        return None
    return PurePosixPath(sample.image.name).name


def _clean(text: str) -> str:
    plain = _STRANGE.sub("_", text).strip()
    return f"_{plain[1:]}" if plain.startswith(".") else plain


def _key(name: str) -> str:
    return PurePosixPath(name).stem.casefold()


def _folder(sample: Sample) -> str:
    if callable(sample.image):
        return ""
    if isinstance(sample.image, Member):
        inside = PurePosixPath(sample.image.name).parent
        return os.path.abspath(sample.image.archive.path.with_suffix("") / inside)
    return os.path.abspath(sample.image.parent)


def _with_folders(name: str, folder: str, top: str) -> str:
    if not folder or folder == top:
        return name
    return "_".join([*map(_clean, Path(os.path.relpath(folder, top)).parts), name])


def _untaken(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it the first that is not taken."""
    stem, suffix = os.path.splitext(name)
    number = 2
    while _key(name) in taken:
        name = f"{stem}_{number}{suffix}"
        number += 1
    return name


def check_names(classes: Sequence[str], read_back: Callable[[], Iterable[str]], file: str) -> None:
    """`DataError` for the first class that a file of names would give back as another one, or not at all."""
    way_out = "Rename it, or convert to coco, where a name may be any text"
    try:
        back = list(read_back())
    except DataError as error:
        raise DataError(f"a class cannot be written into {file}: {error}. {way_out}") from error
    if back == list(classes):
        return
    pairs = zip(classes, back, strict=False)
    one, other = next((pair for pair in pairs if pair[0] != pair[1]), (classes[-1], "nothing"))
    raise DataError(
        f"class {shorten(repr(one))} cannot be written into {file}: it would be read as "
        f"{shorten(repr(other))}. {way_out}"
    )
