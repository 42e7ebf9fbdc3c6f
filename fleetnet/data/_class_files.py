"""Names of classes, and the colors or numbers that stand for them, in the files that tools leave beside label maps.

What a file holds decides, not what it is called: names one a line; `r g b name`; CVAT's
`name:r,g,b::`; a table with columns for the name and for red, green and blue, or for the number;
`number name`; or a JSON object of colors by name.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from . import IGNORE, few, parse_classes, shorten, text_of
from ._conventions import NAME_FILES, file_called, files_in

Colors = dict[tuple[int, int, int], int]

NO_CLASS = ("ignore", "void")
OTHER = "other"  # what value 0 is where classes are numbered from 1 and it occurs
_COLOR_FILES = (
    *(
        "colors.txt",
        "class_colors.txt",
        "label_colors.txt",
        "labelmap.txt",
        "colormap.txt",
        "color_map.txt",
    ),
    *("palette.txt", "class_dict.csv", "class_dict_seg.csv", "colors.csv", "label_colors.csv"),
    *("colormap.csv", "color_map.csv", "labelmap.csv", "obj_class_to_machine_color.json"),
)
_OTHER_FILES = (
    *("_classes.csv", "classes.csv", "labels.csv", "class_names.csv", "objectInfo150.txt"),
    *("label_names.txt", "label_list.txt", "names.txt", "categories.txt"),
)
_TRIMAP = ("foreground", "background", "not classified")  # 1, 2 and 3 of the Oxford pets
_NAME = ("name", "class", "classname", "label", "labelname", "category", "names")
_NUMBER = (
    "pixelvalue",
    "index",
    "idx",
    "id",
    "value",
    "classid",
    "classindex",
    "labelid",
    "number",
    "label",
)
_RED, _GREEN, _BLUE = ("r", "red"), ("g", "green"), ("b", "blue")


@dataclass(frozen=True)
class Legend:
    """What the values of label maps mean."""

    names: list[str]
    colors: Colors | None = None  # label of each color; None: the values are labels
    first: int = 0  # the value that stands for the first class
    numbered: bool = False  # whether the file says so itself


def legend_of(folders: Sequence[Path], maps: str) -> Legend:
    """The legend that lies in the first of some folders that has one; `maps` names the folder of maps.

    Files of colors go before those of names alone. Raises `DataError` where there is none, or there
    are several to choose from.
    """
    for names in (_COLOR_FILES, (f"{maps}_classes.txt", *NAME_FILES, *_OTHER_FILES)):
        for folder in folders:
            file = file_called(folder, names)
            if file is not None and _can_be(file):
                return read_legend(file)
    for folder in folders:
        files = [file for file in files_in(folder, ".txt") if file.name.endswith("classes.txt")]
        if len(files) > 1:
            raise DataError(
                f"several files of class names: {few(files)}; name the right one {maps}_classes.txt"
            )
        if files:
            return read_legend(files[0])
    if any(folder.name.lower() == "trimaps" for folder in folders):
        return Legend(list(_TRIMAP), None, 1)
    raise DataError(
        f"no class names in {str(folders[0])!r}: put them into classes.txt, one a line, in the order "
        "of labels"
    )


def has_colors(folder: Path) -> bool:
    """Whether a folder has a file of the colors of classes."""
    file = file_called(folder, _COLOR_FILES)
    try:
        return file is not None and read_legend(file).colors is not None
    except DataError:  # a faulty one, which is told where it is read
        return True


def read_legend(file: Path) -> Legend:
    legend = parse_legend(text_of(file), str(file))
    if len(legend.names) > IGNORE:
        raise DataError(
            f"{len(legend.names)} classes in {str(file)!r}; label maps have at most {IGNORE}"
        )
    return legend


def _can_be(file: Path) -> bool:
    """False for a table of something else, as Kaggle's labels.csv of pictures."""
    if file.suffix.lower() != ".csv":
        return True
    text = text_of(file)
    return _of_table(_lines(text), str(file)) is not None


def parse_legend(text: str, source: str) -> Legend:
    """What a file of classes says; `source` names it in errors, and its name says what is expected of it.

    >>> parse_legend("cat:9,9,9::\\ndog:1,2,3::", "labelmap.txt").colors
    {(9, 9, 9): 0, (1, 2, 3): 1}
    """
    name = re.split(r"[\\/]", source)[-1].lower()
    if name.endswith(".json"):
        return _of_json(text, source)
    lines = _lines(text)
    if name in ("colors.txt", "class_colors.txt"):
        return Legend(*parse_colors(text, source))
    for parse in (_of_colors, _of_cvat, _of_table, _of_numbers):
        legend = parse(lines, source)
        if legend is not None:
            return legend
    return Legend(parse_classes(text, source))


def parse_colors(text: str, source: str) -> tuple[list[str], Colors]:
    """The class names, in order, and the label of each color, from the lines `r g b name` of a color map."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\S.*)", line.strip())
        if not match or max(map(int, match.groups()[:3])) > 255:
            raise DataError(
                f"{source}, line {number}: expected `r g b name` with r, g, b up to 255, "
                f"found {shorten(line.strip())!r}"
            )
        color = int(match[1]), int(match[2]), int(match[3])
        rows.append((match[4], color, f"{source}, line {number}"))
    return _colored(rows, source)


def _colored(
    rows: Sequence[tuple[str, tuple[int, int, int], str]], source: str
) -> tuple[list[str], Colors]:
    """The classes of (name, color, where it stands), in their order."""
    classes: list[str] = []
    colors: Colors = {}
    for name, color, entry in rows:
        if color in colors:
            raise DataError(f"{entry}: color {color} is there twice")
        if name not in classes and name.lower() not in NO_CLASS:
            classes.append(name)
        colors[color] = IGNORE if name.lower() in NO_CLASS else classes.index(name)
    if not classes:
        raise DataError(f"{source} is empty: no classes")
    return classes, colors


def _lines(text: str) -> list[str]:
    """Lines that are neither blank nor comments."""
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _of_colors(lines: Sequence[str], source: str) -> Legend | None:
    if not lines or not all(re.match(r"\d{1,3}([\s,]+\d{1,3}){2}[\s,]+\S", line) for line in lines):
        return None
    return Legend(*parse_colors("\n".join(lines), source))


def _of_cvat(lines: Sequence[str], source: str) -> Legend | None:
    matches = [re.match(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3})(:|$)", line) for line in lines]
    rows = [
        (match[1].strip(), (int(match[2]), int(match[3]), int(match[4])), f"{source}, line {n}")
        for n, match in enumerate(matches, 1)
        if match
    ]
    if not rows or len(rows) < len(lines):
        return None
    return Legend(*_colored(rows, source))


def _of_table(lines: Sequence[str], source: str) -> Legend | None:
    if len(lines) < 2:
        return None
    delimiter = max(",;\t", key=lines[0].count)
    try:
        cells = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error:  # a cell without end: no table
        return None
    header = [re.sub(r"[^a-z]", "", word.lower()) for word in cells[0]]
    name = _column(header, _NAME)
    if name is None or len(header) < 2:
        return None
    body = [[word.strip() for word in row] for row in cells[1:] if len(row) > name]
    colors = [_column(header, words) for words in (_RED, _GREEN, _BLUE)]
    if None not in colors:
        return _of_color_columns(
            body, name, [column for column in colors if column is not None], source
        )
    number = _column([word if i != name else "" for i, word in enumerate(header)], _NUMBER)
    if number is None or not all(len(row) > number and row[number].isdigit() for row in body):
        return None
    return _numbered([(int(row[number]), row[name]) for row in body], source)


def _column(header: Sequence[str], words: Sequence[str]) -> int | None:
    return next((header.index(word) for word in words if word in header), None)


def _of_color_columns(
    body: Sequence[Sequence[str]], name: int, columns: Sequence[int], source: str
) -> Legend:
    rows = []
    for number, row in enumerate(body, 2):
        values = [row[column] if column < len(row) else "" for column in columns]
        if not all(value.isdigit() and int(value) <= 255 for value in values):
            raise DataError(f"{source}, line {number}: expected r, g, b up to 255, found {values}")
        red, green, blue = map(int, values)
        rows.append((row[name], (red, green, blue), f"{source}, line {number}"))
    return Legend(*_colored(rows, source))


# A number with a mark, as "1: cat", "1. cat" or "[1] cat", is no part of a name; one before a space may be.
_MARKED = re.compile(r"(?:[\[(](\d{1,4})[\])]|(\d{1,4})\s*(?:[:,=;)]|\.(?!\d)|-\s))\s*(\S.*)")
_BEFORE = re.compile(r"(\d{1,4})\s+(\S.*)")
_MARKED_BEHIND = re.compile(r"(\S.*?)\s*[:,=;]\s*(\d{1,4})")
_BEHIND = re.compile(r"(\S.*?)\s+(\d{1,4})")


def _of_numbers(lines: Sequence[str], source: str) -> Legend | None:
    """Lines `number name`, `number: name` (or `1.`, `1)`, `[1]`), `name number` or `name: number`.

    Numbers with a mark are numbers, and `DataError` where they have gaps. Those with a space only
    may belong to names, as "10 euro": so it is where names are there twice, or no number is 0 or 1.
    """
    marked = [_MARKED.fullmatch(line) for line in lines]
    behind = [_MARKED_BEHIND.fullmatch(line) for line in lines]
    before = [_MARKED.fullmatch(line) or _BEFORE.fullmatch(line) for line in lines]
    last = [_MARKED_BEHIND.fullmatch(line) or _BEHIND.fullmatch(line) for line in lines]
    if rows := _rows(marked):
        _check_names(rows, source)
        return _numbered(rows, source)
    if (rows := _rows(before)) and _tell_apart(rows):
        return _numbered(rows, source)
    if rows := _rows(behind):
        _check_names(rows, source)
        return _numbered(rows, source)
    if (rows := _rows(last)) and _tell_apart(rows) and not _gap(rows):
        return _numbered(rows, source)
    return None


def _rows(matches: Sequence[re.Match[str] | None]) -> list[tuple[int, str]]:
    """The number and the name of each line; none where a line is without."""
    rows = []
    for match in matches:
        if match is None:
            return []
        one, other = (part for part in match.groups() if part is not None)
        number_first = match.re in (_MARKED, _BEFORE)
        rows.append((int(one), other) if number_first else (int(other), one))
    return rows


def _tell_apart(rows: Sequence[tuple[int, str]]) -> bool:
    """Whether numbers that may belong to names are those of classes: all are others, from 0 or 1 on."""
    numbers = {number for number, _ in rows}
    names = {name for _, name in rows}
    return len(numbers) == len(names) == len(rows) and min(numbers) <= 1


def _gap(rows: Sequence[tuple[int, str]]) -> bool:
    numbers = sorted(number for number, name in rows if not _is_no_class(number, name))
    return numbers not in ([*range(len(numbers))], [*range(1, len(numbers) + 1)])


def _check_names(rows: Sequence[tuple[int, str]], source: str) -> None:
    names = [name for number, name in rows if not _is_no_class(number, name)]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{source}: class {shorten(twice)!r} is there twice, with two numbers")


def _is_no_class(number: int, name: str) -> bool:
    return number == IGNORE or name.lower() in NO_CLASS


def _numbered(rows: Sequence[tuple[int, str]], source: str) -> Legend:
    """The classes by their numbers, which begin with 0 or 1."""
    names: dict[int, str] = {}
    for number, name in rows:
        if number in names:
            raise DataError(f"{source}: number {number} is there twice")
        if not _is_no_class(number, name):
            names[number] = name
    if not names:
        raise DataError(f"{source} is empty: no classes")
    first = min(min(names), 1)
    gap = next((i for i in range(first, first + len(names)) if i not in names), None)
    if gap is not None:
        raise DataError(
            f"{source}: no line for number {gap}; numbers have no gaps. Add a line for it, or where "
            "the numbers belong to the names, number these lines too: `0 NAME`, `1 NAME`"
        )
    return Legend([names[number] for number in sorted(names)], None, first, numbered=True)


def _of_json(text: str, source: str) -> Legend:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON, or cut off: {error}") from error
    if not isinstance(document, dict) or not all(_is_color(color) for color in document.values()):
        raise DataError(f"{source}: expected an object of colors [r, g, b] by the names of classes")
    rows = [(name, (c[0], c[1], c[2]), f"{source}, {name}") for name, c in document.items()]
    return Legend(*_colored(rows, source))


def _is_color(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    )
