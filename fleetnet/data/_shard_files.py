"""Which tar files are the shards of which split: a folder of them, a pattern with braces, or one file.

A shard's name says its split by a word (train-000000.tar), or its folder does (val/00000.tar).
"""

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from . import few, shorten
from ._conventions import (
    by_split,
    files_in,
    folders_in,
    images_in,
    split_folders,
    split_of,
    word_in,
)

PACKED = {  # that cannot be read in place: the end of a name -> the program that unpacks it
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tar.xz": "xz",
    ".tar.zst": "zstd",
}
MOST = 100_000  # names that a pattern stands for
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")

Shards = dict[str, list[Path]]  # split -> its shards in order; "" of data without splits


def is_shard(root: str) -> bool:
    """Whether a name is that of a tar file, of a compressed one, or of several by a pattern."""
    return root.lower().endswith((".tar", *PACKED))


def is_glob(root: str) -> bool:
    """Whether shards are named as a shell names several files, which is no pattern here."""
    return is_shard(root) and any(sign in root for sign in "*?[")


def is_pattern(root: str) -> bool:
    return is_shard(root) and _BRACES.search(root) is not None and not os.path.exists(root)


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for, in its order, as a shell or WebDataset's own expands it.

    >>> expanded("a-{08..10}.tar"), expanded("{train,val}.tar")
    (['a-08.tar', 'a-09.tar', 'a-10.tar'], ['train.tar', 'val.tar'])
    """
    parts = _BRACES.split(pattern)  # text and what is in braces in turn
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    count = 1
    for options in choices:
        count *= len(options)
        if count > MOST:
            raise DataError(f"{pattern!r} stands for more than {MOST} names")
    return ["".join(words) for words in itertools.product(*choices)]


def _choices(inner: str) -> Sequence[str]:
    match = _RANGE.fullmatch(inner)
    if match is None:
        return inner.split(",") if "," in inner else ["{" + inner + "}"]
    first, last = int(match[1]), int(match[2])
    if last - first >= MOST:
        raise DataError(f"{{{shorten(inner)}}} stands for more than {MOST} names")
    # as many digits as the first has, where it begins with a zero
    width = len(match[1]) if match[1].startswith("0") else 0
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def shards_of(root: str) -> tuple[str, Shards]:
    """The split that `root` itself is of, or "", and the shards of each split that is there.

    Raises `DataError` for shards of a pattern that are missing, and where there are only
    compressed ones.
    """
    path = Path(root)
    if is_pattern(root):
        return _of_pattern(root)
    if os.path.isdir(path):
        return _of_folder(path)
    return _beside(path, [path])


def _of_pattern(pattern: str) -> tuple[str, Shards]:
    names = expanded(pattern)
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        raise DataError(
            f"{pattern!r}: {len(missing)} of {len(names)} shards are not there: {few(missing)}"
        )
    files = [Path(name) for name in names]
    words = {_split_said(file) for file in files}
    if len(words) > 1:
        raise DataError(
            f"{pattern!r} names shards of several splits, {few(sorted(map(str, words)))}: name the "
            "folder, then each split is read by its name"
        )
    return _beside(files[0], files)


def _split_said(file: Path) -> str:
    """The split that the name of a shard says, or that of its folder; "" where neither does."""
    word = word_in(file.stem)
    return word.split if word else split_of(file.absolute().parent.name) or ""


def _beside(first: Path, files: list[Path]) -> tuple[str, Shards]:
    """Shards that were named, of the split that their name or folder says, and those of the other splits."""
    word = word_in(first.stem)
    if word is not None:
        others = _by_word(
            file
            for file in tars_in(first.parent)
            if (other := word_in(file.stem)) and other.start.lower() == word.start.lower()
        )
        return word.split, {**others, word.split: files}
    own = split_of(first.absolute().parent.name) or ""
    beside = split_folders(first.absolute().parent.parent) if own else {}
    others = {split: tars for split, folder in beside.items() if (tars := tars_in(folder))}
    return own, {**others, own: files} if own else {"": files}


def _of_folder(folder: Path) -> tuple[str, Shards]:
    files = tars_in(folder)
    by_word = _by_word(files)
    if by_word:
        return "", by_word
    own = split_of(folder.absolute().name) or ""
    if files and own:
        return _beside(files[0], files)
    if files:
        return "", {"": files}
    there = {split: tars_in(place) for split, place in split_folders(folder).items()}
    there = {split: tars for split, tars in there.items() if tars}
    if not there:
        _check_packed(folder)
        raise DataError(f"no tar files in {str(folder)!r}")
    return "", there


def _check_packed(folder: Path) -> None:
    """`DataError` for shards that are compressed, all of them."""
    from ._shard_index import compressed

    packed = packed_in(folder)
    if packed:
        name = str(packed[0])
        program = next(word for end, word in PACKED.items() if name.lower().endswith(end))
        raise DataError(compressed(name, program))


def tars_in(folder: Path) -> list[Path]:
    """The tar files in a folder, by name, numbers without leading zeros by their value."""
    return sorted(files_in(folder, ".tar"), key=_order)


def packed_in(folder: Path) -> list[Path]:
    """The compressed tar files in a folder, or in those of splits in it."""
    places = [folder, *split_folders(folder).values()]
    return [
        file
        for place in places
        for file in files_in(place)
        if file.name.lower().endswith(tuple(PACKED))
    ]


def _order(file: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d{1,18})", file.name)
    return [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]


def _by_word(files: Iterable[Path]) -> Shards:
    """Shards by the split that the word in their names says, where there is one."""
    named: dict[str, list[Path]] = {}
    for file in files:
        word = word_in(file.stem)
        if word:
            named.setdefault(word.word, []).append(file)
    return by_split(named)


def left_over(folder: Path, there: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The tar files in a folder that belong to none of the splits."""
    used = {file.name for files in there.values() for file in files}
    return [file for file in tars_in(folder) if file.name not in used]


def gaps(files: Sequence[Path]) -> list[int]:
    """The numbers that are missing between the first and the last of shards that are numbered."""
    matches = [re.fullmatch(r"(.*?)(\d{1,18})", file.stem) for file in files]
    numbers = {int(match[2]) for match in matches if match}
    if len(numbers) < len(files) or len({match[1] for match in matches if match}) != 1:
        return []
    first, last = min(numbers), max(numbers)
    if last - first > 10 * len(files):
        return []
    return [number for number in range(first, last) if number not in numbers]


def holds_nothing_else(folder: Path) -> bool:
    """Whether there are neither images in a folder nor other folders than those of shards."""
    others = [
        place
        for place in folders_in(folder)
        if split_of(place.name) is None or folders_in(place) or images_in(place)
    ]
    return not others and not images_in(folder)
