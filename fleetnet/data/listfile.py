"""List files, as in PaddleClas and mmpretrain: one line an image, `relative/path.jpg label`.

    root/train_list.txt  root/val_list.txt  root/label_list.txt (`index name`, optional)
    root/meta/train.txt  root/meta/val.txt  root/train/*/*.jpg

The label is a number behind a space, tab or comma, maybe with its name behind that; or the name of
the class; or, where no line has one, the folder of the image. Paths are relative to the list's folder
and stay inside of it; where no image lies there, they are looked for by name beside the list's folder.
Names of classes stand in label_list.txt or classes.txt, with or without their numbers, which begin
with 0 or 1; else the classes are named by their numbers. `root` may also be one list file: if "train"
or "val" is in its name, the list of the other split is the file beside it with the other name. Where
there is none for "val", every tenth image of each class is held back for it. For tags there may be
any number of them behind an image, in one of the ways of `_tags.py`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import DataError
from ..images import EXTENSIONS, STACKS
from ..reading import is_below
from . import (
    Notes,
    NotUtf8,
    Part,
    Sample,
    Source,
    Split,
    check_exists,
    few,
    files_beside,
    hold_out,
    hold_out_of_each,
    of_other_names,
    part_of,
    shorten,
    text_of,
)
from ._conventions import (
    NAME_FILES,
    USUAL,
    Places,
    by_split,
    children,
    file_called,
    files_in,
    split_lists,
    split_of,
    stored,
    word_in,
)
from ._label_lists import Names, numbered_names, parse_names
from ._pictures import PicturesByName, is_picture
from ._tables import LABEL_COLUMNS, NAME_COLUMNS, plain_name
from ._tags import WAY_OUT, Form, a_list, form_of, nearest, tags_of

EXPECTS = "ROOT/train_list.txt and val_list.txt with lines `path label`; label_list.txt with lines `index name`"
TARGETS: tuple[str, ...] = ("label", "tags")
FALLBACK = False
PLACES: tuple[str, ...] = ("images",)
LARGEST = 99_999  # label without a label list: a number beyond is a mistake sooner than a class
LINES_SEEN = 20  # of a list, to tell whether it is one
LISTS_SEEN = 20  # files that may be lists by their names
_FOLDERS = ("meta", "lists", "list", "splits", "annotations", "imagesets", "labels")  # of lists
_ENDS = "|".join(sorted(end[1:] for end in EXTENSIONS | STACKS))
_LINE = re.compile(rf'"?(.+?\.(?:{_ENDS}))"?[ \t]*[ \t,;][ \t]*(\S.*?)\s*', re.IGNORECASE)
_NAME_ALONE = re.compile(rf'\s*"?(.+?\.(?:{_ENDS}))"?[\s,;]*', re.IGNORECASE)
_LABEL_FIRST = re.compile(rf'([0-9]{{1,18}})[ \t,;]+"?(.+\.(?:{_ENDS}))"?\s*', re.IGNORECASE)
_NO_LABELS = (
    ".xml",
    ".txt",
    ".json",
    ".mat",
    ".npy",
    *EXTENSIONS,
)  # of files, which are annotations


class Row(NamedTuple):
    """A line of a list."""

    line: int
    name: str  # of the image, as it is written
    label: int | str  # a number, or the name of a class


class Tagged(NamedTuple):
    """A line of a list of which each image may have any number of tags."""

    line: int
    name: str  # of the image, as it is written
    text: str  # the tags, see `_tags.py`; "" for none


_Line = TypeVar("_Line", Row, Tagged)


def detect(root: str, target: str = "label") -> bool:
    """True for a text file, and for a folder with a list of a split."""
    path = Path(root)
    if os.path.isdir(path):
        return bool(_lists(path, target))
    return os.path.isfile(path) and path.suffix == ".txt"


def load(root: str, split: str | None, target: str = "label", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, in the order of its list.

    Raises `DataError` naming file and line for a line without a label, a label out of range, a path
    that leaves the folder, and images that do not exist.
    """
    check_exists(root)
    own, there = _named(Path(root), target)
    part = part_of(split, there, root, own)
    path = there.get(part.there, Path(root))
    if target == "tags":
        return _load_tags(path, there.get("train", path), part, root, elsewhere.images)
    train = there.get("train", path)
    rows, of_train = _lines(path, train, parse)
    notes = Notes()
    classes, declared = _classes(train, of_train, Path(root), notes)
    images = _images(path, rows, part.there, Path(root), elsewhere.images)
    index = {name: label for label, name in enumerate(classes.names)}
    samples = [
        Sample(image, _label(row, classes, index, declared, path))
        for row, image in zip(rows, images, strict=True)
    ]
    source = Source(root, "listfile", part.split, str(path), part.take)
    chosen = hold_out_of_each(samples, [sample.label for sample in samples], part.take)
    return Split(chosen, classes.names, notes.lines, source=source)


def _load_tags(path: Path, train: Path, part: Part, root: str, images: str | None) -> Split:
    """The samples of the list at `path` with their tags; how these are written, `train` says."""
    lines, of_train = _lines(path, train, parse_tagged)
    several_lines = len({line.name for line in of_train}) < len(of_train)
    form = form_of([line.text for line in of_train if line.text], one_each=several_lines)
    rows = _rows(of_train, form, train)
    if not rows:
        raise DataError(f"{train}: no line has a tag behind the image")
    notes = Notes()
    if form.columns:
        classes, declared = _names_of_columns(train, form.columns, Path(root))
    else:
        classes, declared = _classes(train, rows, Path(root), notes, fewest=1)
    index = {name: label for label, name in enumerate(classes.names)}
    tags: dict[int, set[int]] = {line.line: set() for line in lines}
    for row in _rows(lines, form, path, numbers=isinstance(rows[0].label, int)):
        tags[row.line].add(_label(row, classes, index, declared, path))
    by_image: dict[Path, set[int]] = {}
    paths = _images(path, lines, part.there, Path(root), images)
    for line, image in zip(lines, paths, strict=True):
        by_image.setdefault(image, set()).update(tags[line.line])
    samples = [Sample(image, tags=tuple(sorted(labels))) for image, labels in by_image.items()]
    source = Source(root, "listfile", part.split, str(path), part.take)
    return Split(hold_out(samples, part.take), classes.names, notes.lines, source=source)


# ---- lines -----------------------------------------------------------------------------------------------------------


def _lines(
    path: Path, train: Path, parse: Callable[[str, str], list[_Line]]
) -> tuple[list[_Line], list[_Line]]:
    """The lines of the list at `path`, and those of the list of train, which say what the classes are."""
    lines = parse(text_of(path), str(path))
    if not lines:
        raise DataError(f"{path} is empty: no samples")
    of_train = lines if train == path else parse(text_of(train), str(train)) or lines
    return lines, of_train


def parse_tagged(text: str, source: str) -> list[Tagged]:
    """The lines that are not blank, of a list of images with any number of tags.

    >>> [tuple(line) for line in parse_tagged("a b.jpg 0,3\\nc.jpg", "list")]
    [(1, 'a b.jpg', '0,3'), (2, 'c.jpg', '')]
    """
    lines = _numbered_lines(text)
    return [
        Tagged(number, *_name_and_rest(line, f"{source}, line {number}")) for number, line in lines
    ]


def _name_and_rest(line: str, entry: str) -> tuple[str, str]:
    """The path of a line, and what stands behind it."""
    match = _LINE.fullmatch(line)
    if match and re.search(rf"\.({_ENDS})([\s,;]|$)", match[2], re.IGNORECASE):
        raise DataError(f"{entry}: expected `path tags`, found {shorten(line.strip())!r}")
    if match:
        return match[1], match[2]
    alone = _NAME_ALONE.fullmatch(line)
    if alone:
        return alone[1], ""
    name, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
    return name, rest.strip()


def _rows(
    lines: Sequence[Tagged], form: Form, path: Path, numbers: bool | None = None
) -> list[Row]:
    """A line for each tag of each line; `numbers`: whether tags are, which they say themselves if None."""
    tags = {
        line.line: tags_of(line.text, form, f"{path}, line {line.line}")
        for line in lines
        if line.text
    }
    words = [(line, tag) for line in lines for tag in tags.get(line.line, ())]
    if numbers is None:
        numbers = all(re.fullmatch(r"[0-9]{1,18}", tag) for _, tag in words)
    if not numbers:
        return [Row(line.line, line.name, tag) for line, tag in words]
    wrong = next((pair for pair in words if not re.fullmatch(r"[0-9]{1,18}", pair[1])), None)
    if wrong is not None:
        raise DataError(
            f"{path}, line {wrong[0].line}: tag {shorten(wrong[1])!r} is not a number from 0 up"
        )
    return [Row(line.line, line.name, int(tag)) for line, tag in words]


def _numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers, without a header."""
    lines = [
        (number, line)
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1)
        if line.strip()
    ]
    return lines[1:] if lines and _is_header(lines[0][1]) else lines


def parse(text: str, source: str) -> list[Row]:
    """The lines that are not blank; `source` names the text in errors.

    >>> [tuple(row) for row in parse("a b.jpg 0\\nc.jpg\\t1 cat", "list")]
    [(1, 'a b.jpg', 0), (2, 'c.jpg', 1)]
    """
    lines = _numbered_lines(text)
    split = [(number, *_split(line, f"{source}, line {number}")) for number, line in lines]
    kinds = {type(label) for _, _, label in split}
    rows = []
    for number, name, label in split:
        entry = f"{source}, line {number}"
        if label is None and len(kinds) == 1 and _folder_of(name):
            label = _folder_of(name)
        if label is None:
            raise DataError(f"{entry}: expected `path label`, found {shorten(name.strip())!r}")
        if isinstance(label, str) and int in kinds:
            raise DataError(f"{entry}: label {shorten(label)!r} is not a number from 0 up")
        rows.append(Row(number, name, label))
    return rows


def _is_header(line: str) -> bool:
    words = [plain_name(word) for word in re.split(r"[\s,;]+", line.strip())]
    return words[0] in NAME_COLUMNS and len(words) > 1 and words[1] in LABEL_COLUMNS


def _split(line: str, entry: str) -> tuple[str, int | str | None]:
    """The path and the label of a line; None where there is no label."""
    match = _LINE.fullmatch(line)
    if match and not re.search(rf"\.({_ENDS})[\s,;]", match[2], re.IGNORECASE):
        name, rest = match.groups()
    elif before := _LABEL_FIRST.fullmatch(line):
        return before[2], int(before[1])
    else:
        # a path may begin with a space and have spaces inside
        plainly = re.fullmatch(r"(.*\S)[ \t]+(\S+)[ \t\r]*", line)
        if not plainly:
            return line.rstrip("\r"), None
        name, rest = plainly.groups()
    number = re.fullmatch(r"([0-9]{1,18})(?:[\s,;]+(\S.*))?", rest)
    if number and not (number[2] and re.match(r"[0-9]", number[2])):
        return name, int(number[1])
    word = rest.strip("\"' ")
    if word.lower().endswith(_NO_LABELS):
        return line.rstrip("\r"), None
    if number or not word[:1].isalpha():
        several = f"; {WAY_OUT}" if number else ""
        raise DataError(f"{entry}: label {shorten(rest)!r} is not a number from 0 up{several}")
    return name, word


def _folder_of(name: str) -> str:
    """The folder right above an image."""
    parts = name.strip().replace("\\", "/").split("/")
    return parts[-2] if len(parts) > 1 else ""


# ---- files -----------------------------------------------------------------------------------------------------------


def _lists(folder: Path, target: str) -> dict[str, Path]:
    """The lists of splits in a folder, or in one of lists below it."""
    plainly = split_lists(folder, ("_list",))
    if plainly:
        others = split_lists(folder, ("", "list"))
        more = {split: file for split, file in others.items() if split not in plainly}
        return plainly | {
            split: file for split, file in more.items() if _is_list(file, folder, target)
        }
    for place in (folder, *children(folder, _FOLDERS)):
        there = split_lists(place, ("", "_list", "list"))
        if any(_is_list(file, folder, target) for file in there.values()):
            return there
    return _lists_with_word(folder, target)


def _lists_with_word(folder: Path, target: str) -> dict[str, Path]:
    """The lists whose names have the word of a split among others, as my_train.txt; of one set only."""
    for place in (folder, *children(folder, _FOLDERS)):
        words = {file: word_in(file.stem) for file in files_in(place, ".txt")}
        files = sorted((file for file in words if words[file]), key=lambda file: len(file.stem))
        sets: dict[tuple[str, str], dict[str, Path]] = {}
        for file in files[:LISTS_SEEN]:  # the texts of boxes may be called so too, and are many
            word = words[file]
            if word and _is_list(file, folder, target):
                sets.setdefault((word.start, word.end), {})[word.word] = file
        if len(sets) == 1:
            return by_split(next(iter(sets.values())))
    return {}


def _is_list(file: Path, root: Path, target: str) -> bool:
    """Whether the first lines of a file name pictures with labels, or pictures that are there in several folders."""
    try:
        text = "\n".join(text_of(file).split("\n")[:LINES_SEEN])
        if target == "tags":
            tagged = parse_tagged(text, str(file))
            some = any(line.text for line in tagged)
            return some and all(is_picture(line.name) for line in tagged)
        rows = parse(text, str(file))
    except NotUtf8:  # which `load` says, with the line; of tags, other formats do
        plain = re.sub(r"_?list$", "", file.stem.lower())
        return target == "label" and split_of(plain) is not None
    except DataError:
        return False
    if not rows:
        return False
    labeled = all(row.label != _folder_of(row.name) for row in rows)
    if labeled and all(is_picture(row.name) for row in rows):
        return True
    several = len({_folder_of(row.name) for row in rows}) > 1
    return several and bool(PicturesByName([root]).named(rows[0].name))


def _named(root: Path, target: str) -> tuple[str, dict[str, Path]]:
    """The split that a named list file is of, or ""; and the lists of the splits that are there."""
    if not os.path.isdir(root):
        own, there = files_beside(root)
        if not own:
            return own, there
        others = [file for file in files_in(root.parent, ".txt") if file not in there.values()]
        lists = [file for file in others if _is_list(file, root.parent, target)]
        return own, of_other_names(root, there, lists)
    there = _lists(root, target)
    if not there:
        raise DataError(f"no list file in {str(root)!r}; expected {EXPECTS}")
    return "", there


def _images(
    path: Path, rows: Sequence[Row | Tagged], split: str, root: Path, elsewhere: str | None
) -> list[Path]:
    """The image of each line; where none lies at its path, those of these names beside the list, or `elsewhere`."""
    home = path.parent if elsewhere is None else Path(elsewhere)
    at_paths = [_at_path(home, path, row) for row in rows]
    images = [image for image in at_paths if image is not None]
    missing = [row for row, image in zip(rows, at_paths, strict=True) if image is None]
    if len(missing) == len(rows):
        pictures = PicturesByName(_homes(path, root) if elsewhere is None else [home])
        named = [pictures.named(row.name, split) for row in rows]
        missing = [row for row, paths in zip(rows, named, strict=True) if len(paths) != 1]
        images = [paths[0] for paths in named if paths]
    if missing:
        lines = few(f"line {row.line}: {shorten(row.name)!r}" for row in missing)
        raise DataError(f"{path}: no such image: {lines}")
    return images


def _homes(file: Path, root: Path) -> list[Path]:
    """The folder of a list, and the one above where it is a folder of lists; but nothing above the data."""
    home = file.absolute().parent
    of_lists = home.name.lower() in _FOLDERS and home != root.absolute()
    return [home, home.parent] if of_lists else [home]


def _at_path(home: Path, path: Path, row: Row | Tagged) -> Path | None:
    """The image at the path of a line, below the folder of the list or of the images, `home`; None without one."""
    name = row.name
    if "\\" in name and not os.path.isfile(home / name):
        name = name.replace("\\", "/")
    if not is_below(home / name, home):
        raise DataError(
            f"{path}, line {row.line}: {shorten(row.name)!r} is outside of the folder of the list"
        )
    return stored(home, name)


# ---- classes ---------------------------------------------------------------------------------------------------------


def _classes(
    train: Path, rows: Sequence[Row], root: Path, notes: Notes, fewest: int = 2
) -> tuple[Names, str]:
    """The names of the classes, from the list of train and a file of names; and what declares them."""
    file = _name_file(train, root)
    words = {row.label for row in rows if isinstance(row.label, str)}
    numbers = {row.label for row in rows if isinstance(row.label, int)}
    names = numbered_names(file, numbers, train, notes) if file else None
    if file is None or names is None or not words <= set(names.names):
        return _undeclared(train, rows, words, numbers, fewest), "the list of the train split"
    return names, str(file)


def _names_of_columns(train: Path, columns: int, root: Path) -> tuple[Names, str]:
    """The names of classes that have a column of 0 and 1 each: of a file of names, else their numbers."""
    file = _name_file(train, root)
    if file is None:
        return Names([str(i) for i in range(columns)], 0), str(train)
    names = parse_names(text_of(file), str(file)).names
    if len(names) != columns:
        raise DataError(
            f"{train}: its lines have {columns} times 0 or 1, and {file} names {len(names)} classes"
        )
    return Names(names, 0), str(file)


def _undeclared(
    train: Path, rows: Sequence[Row], words: set[str], numbers: set[int], fewest: int
) -> Names:
    """The classes where no file names them: the words of the list, or its numbers."""
    if not words:
        return _numbered(train, rows, numbers)
    several = a_list(words) if fewest > 1 else None
    if several is not None:
        raise DataError(f"{train}: the label {shorten(several)!r} is a list: {WAY_OUT}")
    if len(words) < fewest:
        raise DataError(
            f"{train}, line {rows[0].line}: label {shorten(rows[0].label)!r} is not a number from 0 "
            "up, and no other line names another class"
        )
    return Names(sorted(words), 0)


def _name_file(train: Path, root: Path) -> Path | None:
    """The file of class names of a list."""
    for place in _homes(train, root):
        files = [place / "label_list.txt"]
        if not os.path.isfile(files[0]):
            files = sorted(place.glob("*label_list.txt"))
        if len(files) > 1:
            raise DataError(f"several label lists: {few(files)}; name the right one label_list.txt")
        file = files[0] if files else file_called(place, NAME_FILES)
        if file:
            return file
    return None


def _numbered(train: Path, of_train: Sequence[Row], numbers: set[int]) -> Names:
    """Class names where nobody gave any: the numbers up to the largest label of the train list.

    They begin with 1 where all of 1, 2, ... are there, and no 0.
    """
    line, largest = max(
        ((row.line, row.label) for row in of_train if isinstance(row.label, int)),
        key=lambda pair: pair[1],
    )
    if largest > LARGEST:
        raise DataError(
            f"{train}, line {line}: label {largest} without a label_list.txt that "
            "says there are so many"
        )
    first = int(largest > 1 and numbers == set(range(1, largest + 1)))
    return Names([str(i) for i in range(first, largest + 1)], first)


def _label(row: Row, classes: Names, index: Mapping[str, int], declared: str, path: Path) -> int:
    """The class index of a line; `index` has that of each name."""
    if isinstance(row.label, str):
        if row.label not in index:
            raise DataError(
                f"{path}, line {row.line}: label {shorten(row.label)!r} is not known; {declared} "
                f"has {few(classes.names, 10)}{nearest(row.label, index)}"
            )
        return index[row.label]
    first = classes.first or 0
    last = first + len(classes.names) - 1
    if not first <= row.label <= last:
        raise DataError(
            f"{path}, line {row.line}: label {row.label} is out of range; {declared} has "
            f"{len(classes.names)} classes, so labels are {first} to {last}"
        )
    return row.label - first
