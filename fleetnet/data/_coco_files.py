"""Which JSON files of a folder are COCO's, and of which split each is."""

import re
from pathlib import Path

from ..errors import DataError
from ..reading import head_of
from . import few, files_beside
from ._conventions import SPLIT_WORDS, by_split, children, files_in, folders_in, split_of, word_in

FOLDERS = ("annotations", "annotation", "labels", "ann")
# Names of a file without a word for its split, as tools give them.
USUAL = (
    *("instances_default", "_annotations.coco", "annotations", "instances", "labels", "result"),
    *("coco", "annotation", "dataset", "data"),
)
HEAD = 1 << 20  # bytes of a file that are looked at
LEAST = 2  # rank of names of files that are most likely of no objects
LOOKED_AT = 20  # files of a folder that are looked at: labelme leaves one for each picture
_OTHER_KINDS = re.compile("caption|panoptic|stuff|image_info", re.IGNORECASE)
_LISTS = re.compile(rb'"(images|annotations)"\s*:\s*\[')


def of_splits(root: Path) -> dict[str, Path]:
    """The file of each split: its own name says it, or that of its folder; the first place counts."""
    for folder in (*children(root, FOLDERS), root):
        there = _by_name(folder)
        if there:
            return there
    in_folders = {
        folder.name: files[0]
        for folder in folders_in(root)
        if split_of(folder.name) and (files := _below(folder))
    }
    return by_split(in_folders)


def of_all(root: Path) -> Path | None:
    """The one file of data without splits; `DataError` where it could be several."""
    for folder in (*children(root, FOLDERS), root):
        files = _without_word(folder)
        if len(files) > 1:
            raise DataError(
                f"{str(folder)!r} has {len(files)} COCO files, {few(f.name for f in files)}, and "
                "their names do not say of which split they are: name one with --data, or call "
                "them train.json and val.json"
            )
        if files:
            return files[0]
    return None


def is_there(root: Path) -> bool:
    """Whether a folder holds COCO's files."""
    return bool(of_splits(root)) or any(
        _without_word(folder) for folder in (*children(root, FOLDERS), root)
    )


def _below(folder: Path) -> list[Path]:
    """The COCO files of the folder of a split, the most usual first; one in a folder of annotations counts too."""
    for place in (folder, *children(folder, FOLDERS)):
        files = _without_word(place) or list(_by_name(place).values())
        if files:
            return files
    return []


def _by_name(folder: Path) -> dict[str, Path]:
    """The files of splits among those of a folder, first of those that differ in that word alone."""
    families: dict[tuple[str, str], dict[str, Path]] = {}
    for file in files_in(folder, ".json"):
        word = word_in(file.stem)
        if word is None:
            continue
        year = re.match(r"(20\d\d)?", word.end)
        digits = year[0] if year else ""
        kind = word.start.lower(), word.end.removeprefix(digits).lower()
        families.setdefault(kind, {})[f"{word.word}{digits}"] = file
    there: dict[str, Path] = {}
    for kind in sorted(families, key=lambda kind: (_rank(kind), -len(families[kind]), kind)):
        if there and _rank(kind) == LEAST:
            continue
        for split, file in by_split(families[kind]).items():
            # The files of one data set need not be called alike: train.json, instances_val.json.
            if split not in there and (_rank(kind) == 0 or looks_so(file)):
                there[split] = file
    return {split: there[split] for split in SPLIT_WORDS if split in there}


def beside(file: Path) -> tuple[str, dict[str, Path]]:
    """The split that a named file is of, or ""; and the files of all splits that are beside it."""
    own, there = files_beside(file)
    others = _by_name(file.parent) if word_in(file.stem) else {}
    return own, {**others, **there}


def check_alone(file: Path) -> None:
    """`DataError` where a file's name says no split, and one of the same name beside it is of val."""
    for split, other in _by_name(file.parent).items():
        word = word_in(other.stem)
        if word and (word.start + word.end).strip("-_.") == file.stem:
            raise DataError(
                f"{str(file)!r} says no split, and {str(other)!r} beside it is of {split}: call it "
                f"{file.stem}_train.json if it is of train"
            )


def check_train(root: Path) -> None:
    """As `check_alone`, for the file of a folder in which no name says that it is of train."""
    for folder in (*children(root, FOLDERS), root):
        for file in _without_word(folder):
            check_alone(file)


def _rank(kind: tuple[str, str]) -> int:
    """How likely a name is that of objects: "instances" and a bare name first, captions last."""
    text = "".join(kind)
    if not text.strip("_-.") or "instances" in text:
        return 0
    return LEAST if _OTHER_KINDS.search(text) else 1


def _without_word(folder: Path) -> list[Path]:
    """The COCO files of a folder whose names say no split: one of a usual name, else all of them."""
    by_stem = {
        file.stem.lower(): file for file in files_in(folder, ".json") if not word_in(file.stem)
    }
    usual = [by_stem[name] for name in USUAL if name in by_stem]
    chosen = [file for file in usual if looks_so(file)][:1]
    if files_in(folder, ".yaml", ".yml"):  # which says itself what the data are
        return chosen
    rest = [file for file in by_stem.values() if file not in usual][:LOOKED_AT]
    return chosen or [file for file in rest if looks_so(file)]


def looks_so(file: Path) -> bool:
    """Whether the head of a file has one of COCO's lists."""
    return _LISTS.search(head_of(file, HEAD)) is not None


def place_of(file: Path) -> Path:
    """The folder of the data that an annotation file belongs to: its own, or the one above that of annotations."""
    folder = file.parent
    if folder.name.lower() in FOLDERS:
        folder = folder.absolute().parent if folder == Path(folder.name) else folder.parent
    return folder


def tag_of(file: Path) -> str:
    """What a file calls its part, which may be the name of the folder of its images.

    >>> tag_of(Path("instances_train2017.json")), tag_of(Path("instances_default.json"))
    ('train2017', 'default')
    """
    word = word_in(file.stem)
    if word is None:
        return file.stem.removeprefix("instances_")
    digits = re.match(r"\d*", word.end)
    return word.word + (digits[0] if digits else "")
