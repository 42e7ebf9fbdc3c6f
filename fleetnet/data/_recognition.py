"""Which format data are of: what each of them recognizes, and what is said where none does, or several do."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError, UsageError
from ..find import names
from ..images import hidden
from . import WORDS, _native, check_exists, few, find, kind_for, shorten
from ._conventions import describes_itself, files_in, folders_in, only_folder
from ._texts import SHOWN


def format_of(root: str, format: str | None, target: str) -> tuple[str, str]:
    """The format to read with, which can give the target, and the folder: `root`, or the only one in it."""
    formats = names("data")
    able = [name for name in formats if kind_for(name, target)]
    places = _described_first([root, *_folders_too_much(root)])
    if format is not None:
        if format not in able and not kind_for(format, target):
            raise UsageError(
                f"format {format} has no {WORDS[target]}; formats that have: {', '.join(able)}"
            )
        return format, next((place for place in places if _fits(format, place, target)), root)
    unable = ""
    for fallback in (False, True):
        among = [name for name in formats if fallback == find(name).FALLBACK]
        for place in places:
            usable = [name for name in among if name in able and _fits(name, place, target)]
            if not fallback:
                # One that looks for this kind of annotation alone knows it when it sees it.
                usable = [name for name in usable if len(find(name).TARGETS) == 1] or usable
            if len(usable) > 1 and not fallback:
                raise DataError(
                    f"{root!r} fits several formats: {', '.join(usable)}; choose one with --format"
                )
            if usable:
                if fallback:
                    # Folders of a tool's own export look like those of classes.
                    _native.check(root, deep=False)
                return usable[0], place
            others = (name for name in among if name not in able)
            unable = unable or next(
                (name for name in others if _fits(name, place, find(name).TARGETS[0])), ""
            )
    check_exists(root)
    _native.check(root, deep=True)
    if unable and not find(unable).FALLBACK:
        raise DataError(
            f"{root!r} is of the format {unable}, which has no {WORDS[target]}; formats that "
            f"have: {', '.join(able)}{_folder_around(root, able, target)}"
        )
    raise NoFormat(no_format(root, able, f" that has {WORDS[target]}"))


def _folder_around(root: str, able: Iterable[str], target: str) -> str:
    """What to give instead of a file whose folder has what is wanted; "" where it has not."""
    folder = Path(root).parent
    if os.path.isdir(root) or not any(_fits(name, str(folder), target) for name in able):
        return ""
    return f". Its folder has them: give {str(folder)!r} as --data"


class NoFormat(DataError):
    """Nothing is at a place that any format would read."""


def no_format(root: str, able: Iterable[str], which: str = "") -> str:
    """What the formats `able` look for, `which` says which they are, and what is there instead."""
    expected = "".join(f"\n  {name}: {find(name).EXPECTS}" for name in able)
    return (
        f"{root!r} fits no format. What each expects{which}:{expected}\n"
        f"What is there: {_there(root)}{_below(root)}"
    )


def _folders_too_much(root: str) -> list[str]:
    """The only folder in a folder, and the only one in that, up to three: packing and unpacking leave them."""
    inner: list[str] = []
    place: Path | None = Path(root)
    while place is not None and len(inner) < 3:
        try:
            place = only_folder(place)
        except (DataError, OSError, ValueError):  # no folder, or no name of a file
            break
        if place is not None:
            inner.append(str(place))
    return inner


def _described_first(places: list[str]) -> list[str]:
    """The folders with the outermost first that has splits or a description of its own, if any has.

    The one folder too much may be called `data` or `train`: to the folder around it, it looks like
    that of the pictures or of a split, and what it says of its splits would be passed over.
    """
    if len(places) == 1:
        return places
    for place in places:
        if describes_itself(Path(place)):
            return list(dict.fromkeys([place, *places]))
        if _holds_annotations(Path(place)):
            break
    return places


def _holds_annotations(folder: Path) -> bool:
    """Whether a file in a folder itself may annotate what is in the folders."""
    files = files_in(folder, ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".tar")
    return any(not file.name.lower().startswith(("readme", "license")) for file in files)


def _fits(name: str, root: str, target: str) -> bool:
    try:
        return find(name).detect(root, kind_for(name, target) or target)
    except (OSError, ValueError):  # a name that no file can have
        return False
    except DataError:  # it is there and faulty, as `load` says
        return True


def _there(root: str) -> str:
    """What a folder holds, in a line: its first folders by name, its files by extension."""
    path = Path(root)
    if not os.path.isdir(path):
        return f"a file with the extension {path.suffix or '(none)'}"
    try:
        entries = sorted(entry for entry in path.iterdir() if not hidden(entry.name))
    except OSError as error:
        raise DataError(f"cannot list folder {root!r}: {error.strerror}") from error
    folders = [entry.name for entry in entries if os.path.isdir(entry)]
    suffixes = Counter(
        entry.suffix.lower() or "(no extension)" for entry in entries if not os.path.isdir(entry)
    )
    files = few([f"{count} {suffix}" for suffix, count in suffixes.most_common()])
    return f"folders: {few(folders) or 'none'}; files: {files or 'none'}"


def _below(root: str) -> str:
    """A line on what each of the first folders in a folder holds."""
    folders = folders_in(Path(root))[:SHOWN] if os.path.isdir(root) else []
    lines = [f"\n  {shorten(folder.name)}: {_there(str(folder))}" for folder in folders]
    return "".join(line for line in lines if "folders: none; files: none" not in line)
