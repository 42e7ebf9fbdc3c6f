"""What a table of pictures says: columns told by their names, and lines by what is in them. No file is opened.

Columns are named as people name them, in any case and spelling; where no name is known, those of
file names are the pictures, and of two columns the other one is the label.
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import DataError
from . import _native, few, number, shorten, whole
from ._conventions import split_of
from ._pictures import is_picture
from ._tags import Form, form_of, tags_of

ROWS_SEEN = 20  # of a table, to tell what its columns are
NAME_COLUMNS = (  # of the column of pictures, as `plain_name` writes them; the first that is there counts
    *(
        "filename",
        "filenames",
        "filepath",
        "filepaths",
        "imagepath",
        "imgpath",
        "imagename",
        "imgname",
    ),
    *("imagefile", "imagefilename", "path", "paths", "file", "image", "images", "img", "picture"),
    *("imageid", "imgid", "fname", "uri", "imageuri", "url", "imageurl", "name", "id"),
)
LABEL_COLUMNS = (  # names of classes before their numbers
    *("label", "labels", "class", "classname", "category", "categoryname", "labelname", "target"),
    *(
        "species",
        "breed",
        "variety",
        "diagnosis",
        "dx",
        "findinglabels",
        "tag",
        "tags",
        "type",
        "y",
    ),
    *("classid", "classids", "categoryid", "labelid", "classindex", "labelindex"),
)
_SPLITS = ("split", "subset", "dataset", "set", "partition", "usage")
_HELD = ("isvalid", "isval", "isvalidation")  # fastai's: true for val, else train
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")
_CORNERS = (  # left, top, right, bottom
    ("xmin", "x1", "left", "minx", "bboxx1", "bboxxmin", "bboxleft", "roix1", "x0"),
    ("ymin", "y1", "top", "miny", "bboxy1", "bboxymin", "bboxtop", "roiy1", "y0"),
    ("xmax", "x2", "right", "maxx", "bboxx2", "bboxxmax", "bboxright", "roix2"),
    ("ymax", "y2", "bottom", "maxy", "bboxy2", "bboxymax", "bboxbottom", "roiy2"),
)
_SIDES = (  # left, top, width, height
    ("x", "bboxx", "xmin", "left", "bboxleft", "boxx"),
    ("y", "bboxy", "ymin", "top", "bboxtop", "boxy"),
    ("w", "bboxw", "bboxwidth", "boxwidth", "boxw", "width"),
    ("h", "bboxh", "bboxheight", "boxheight", "boxh", "height"),
)
_BOX = ("bbox", "box", "boundingbox")  # four numbers in one cell: left, top, width, height
_WIDTH, _HEIGHT = ("imagewidth", "imgwidth", "width"), ("imageheight", "imgheight", "height")
_CROWD = ("isgroupof", "iscrowd")
_CONFIDENCE = ("confidence",)  # Open Images': 0 where somebody saw that the label is not there
_UNNAMED = re.compile(r"(Unnamed: \d+)?")  # numbers of the lines, as pandas writes them
_IDS = ("index", "id")
_CENTERS = (  # of boxes, from left and from the top
    ("xcenter", "centerx", "cx", "bboxcx", "bboxcenterx", "bboxxcenter"),
    ("ycenter", "centery", "cy", "bboxcy", "bboxcentery", "bboxycenter"),
)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    line: int
    name: str  # of the picture
    label: str  # "": none
    box: Box | None = None  # xyxy, in pixels or shares
    crowd: bool = False
    size: tuple[int, int] | None = None  # (height, width) of the picture, as the table says
    split: str = ""
    more: tuple[str, ...] = ()  # other labels, of several columns or cells

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the line."""
        return (self.label, *self.more) if self.label else self.more


@dataclass(frozen=True)
class Table:
    """What a table says."""

    rows: list[Row]
    has_boxes: bool
    column: str  # of the labels
    classes: tuple[str, ...] = ()  # of columns that are classes, in their order


@dataclass(frozen=True)
class Columns:
    """Where a table has what: numbers of columns."""

    name: int
    label: int | None
    corners: tuple[int, ...] = ()  # left, top, right, bottom
    sides: tuple[int, ...] = ()  # left, top, width, height
    centered: bool = False  # the first two sides are the center's
    box: int | None = None
    classes: tuple[int, ...] = ()  # a column a class, with 0 or 1
    width: int | None = None
    height: int | None = None
    crowd: int | None = None
    confidence: int | None = None
    split: int | None = None
    held: int | None = None  # true where the line is of val

    @property
    def has_boxes(self) -> bool:
        return bool(self.corners or self.sides) or self.box is not None


_WITHOUT_HEADER = {  # number of columns -> where a table without names for them has what
    2: Columns(0, 1),
    6: Columns(0, 5, corners=(1, 2, 3, 4)),  # RetinaNet
    8: Columns(5, 0, sides=(1, 2, 3, 4), width=6, height=7),  # MakeSense
}


def parse(text: str, source: str) -> Table:
    """The lines of a table; `source` names it in errors.

    >>> parse("image,label\\na.jpg,cat\\n", "t.csv").rows
    [Row(line=2, name='a.jpg', label='cat', box=None, crowd=False, size=None, split='', more=())]
    """
    lines = lines_of(text, source)
    header, columns = columns_of([cells for _, cells in lines])
    tool = _native.of_header(header)
    if tool is not None:
        raise DataError(_native.message(source, tool))
    if columns is None:
        raise DataError(
            f"{source}: no columns of pictures and labels or boxes; there is "
            f"{few(header, 12) or 'nothing'}; expected names as filename, label; or filename, class, "
            "xmin, ymin, xmax, ymax"
        )
    if not header and columns.corners:
        _check_class_is_last(lines, columns, source)
    body = lines[1:] if header else lines
    classes = tuple(header[i] for i in columns.classes)
    rows = [_row(cells, columns, classes, f"{source}, line {line}", line) for line, cells in body]
    if not rows:
        raise DataError(f"{source} has no lines below its header: no samples")
    if columns.split is None and 2 * sum(row.split == "val" for row in rows) > len(rows):
        raise DataError(
            f"{source}: the column {header[columns.held or 0]!r} is true for more than half of the "
            "lines; true means val. If it means so, write a column `split`; if not, rename it"
        )
    label = header[columns.label] if header and columns.label is not None else ""
    if header and columns.label == len(header) - 1:
        # `a.jpg,cat,dog` without quotes: what stands behind the last column are labels too
        behind = [tuple(filter(None, cells[len(header) :])) for _, cells in body]
        rows = [replace(row, more=more) for row, more in zip(rows, behind, strict=True)]
    return Table(rows, columns.has_boxes, label, classes)


def one_tag_each(table: Table, form: Form, source: str) -> Table:
    """The table with a line for each tag of a line, and one with none for a line without any."""
    rows = []
    for row in table.rows:
        tags: Sequence[str] = row.labels
        if not table.classes and not row.more:
            tags = tags_of(row.label, form, f"{source}, line {row.line}")
        rows += [replace(row, label=tag, more=()) for tag in dict.fromkeys(tags or [""])]
    return replace(table, rows=rows)


def form_of_tags(table: Table) -> Form:
    """How the labels of a table say several tags: apart, or one a line where pictures have several lines."""
    several_lines = len({row.name for row in table.rows}) < len(table.rows)
    in_cells = any(row.more for row in table.rows)
    texts = [row.label for row in table.rows if row.label and not row.more]
    return form_of(texts, one_each=several_lines or in_cells)


def _check_class_is_last(
    lines: Sequence[tuple[int, list[str]]], columns: Columns, source: str
) -> None:
    """`DataError` where a table without names for its columns has numbers only, of which any may be the class."""
    labels = [word for _, cells in lines if (word := cell(cells, columns.label))]
    if labels and all(number(word) is not None for word in labels):
        raise DataError(
            f"{source}: five columns of numbers without names, so whether the class is the first "
            "or the last of them cannot be told. Write a line of names above them, as "
            "`filename,xmin,ymin,xmax,ymax,class`"
        )


# ---- columns ---------------------------------------------------------------------------------------------------------


def lines_of(text: str, source: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank."""
    first = text.lstrip("\ufeff\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for words in reader:
            cells = [word.strip() for word in words]
            if any(cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: not CSV: {error}") from error
    return lines


def columns_of(lines: Sequence[Sequence[str]]) -> tuple[list[str], Columns | None]:
    """The header, empty where a table has none, and where it has what; None where it is no table of pictures."""
    if not lines:
        return [], None
    header, body = list(lines[0]), lines[1 : 1 + ROWS_SEEN]
    plainly = _WITHOUT_HEADER.get(len(header))
    if plainly is not None and is_picture(header[plainly.name]):
        return [], plainly
    plain = [plain_name(word) for word in header]
    name = _name_column(plain, body)
    if name is None:
        return header, None
    columns = Columns(
        name,
        _first(plain, LABEL_COLUMNS, name),
        width=_first(plain, _WIDTH),
        height=_first(plain, _HEIGHT),
        crowd=_first(plain, _CROWD),
        confidence=_first(plain, _CONFIDENCE),
        split=_split_column(plain, lines[1:]),
        held=_held_column(plain, lines[1:]),
    )
    columns = _with_boxes(columns, plain)
    if columns.has_boxes or columns.label is not None:
        return header, columns
    return header, _with_others(columns, header, body)


def _with_others(
    columns: Columns, header: Sequence[str], body: Sequence[Sequence[str]]
) -> Columns | None:
    """The columns with those of no known name: a class each, or the label; None for neither."""
    taken = columns.name, columns.split, columns.held
    others = [i for i, word in enumerate(header) if i not in taken and not _UNNAMED.fullmatch(word)]
    beside = [i for i in others if _is_beside(i, columns, header, body)]
    others = [i for i in others if i not in beside]
    if len(others) > 1 and all(_are_flags(cells, others) for cells in body):
        return replace(columns, classes=tuple(others))
    return replace(columns, label=others[0]) if len(others) == 1 else None


def _is_beside(
    column: int, columns: Columns, header: Sequence[str], body: Sequence[Sequence[str]]
) -> bool:
    """Whether a column is a size or an id of the picture, by its name, and not a class called so."""
    by_name = column in (columns.width, columns.height) or plain_name(header[column]) in _IDS
    return by_name and not all(_are_flags(cells, [column]) for cells in body)


def plain_name(word: str) -> str:
    """A column's name without what people write differently: "Image_ID" -> "imageid"."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _first(plain: Sequence[str], words: Sequence[str], but: int | None = None) -> int | None:
    """The column of the first of some words that is there, but not one that is taken."""
    return next(
        (plain.index(word) for word in words if word in plain and plain.index(word) != but), None
    )


def _name_column(plain: Sequence[str], body: Sequence[Sequence[str]]) -> int | None:
    """The column of pictures: of those named so one whose cells are file names; else any of file names."""
    of_files = [
        i for i in range(len(plain)) if body and all(is_picture(cell(row, i)) for row in body)
    ]
    by_word = [plain.index(word) for word in NAME_COLUMNS if word in plain]
    return next((i for i in (*[i for i in by_word if i in of_files], *of_files, *by_word)), None)


def _with_boxes(columns: Columns, plain: Sequence[str]) -> Columns:
    corners = [_first(plain, words) for words in _CORNERS]
    if all(i is not None for i in corners):
        return replace(columns, corners=tuple(i for i in corners if i is not None))
    for places in (_SIDES, (*_CENTERS, *_SIDES[2:])):
        sides = tuple(i for words in places if (i := _first(plain, words)) is not None)
        if len(sides) == len(places):
            size = None if columns.width in sides else columns.width
            height = None if size is None else columns.height
            centered = places is not _SIDES
            return replace(columns, sides=sides, centered=centered, width=size, height=height)
    return replace(columns, box=_first(plain, _BOX))


def _split_column(plain: Sequence[str], body: Sequence[Sequence[str]]) -> int | None:
    """The column of splits, if its cells are words for these: of several, or at least half of them."""
    column = _first(plain, _SPLITS)
    if column is None:
        return None
    cells = [word for row in body if (word := cell(row, column))]
    splits = [part for word in cells if (part := split_of(word))]
    of_splits = len(set(splits)) > 1 or (splits and 2 * len(splits) >= len(cells))
    return column if of_splits else None


def _held_column(plain: Sequence[str], body: Sequence[Sequence[str]]) -> int | None:
    """The column that is true for lines of val, if all its cells are true or false."""
    column = _first(plain, _HELD)
    if column is None:
        return None
    cells = [word.lower() for row in body if (word := cell(row, column))]
    return column if cells and all(word in (*_TRUE, *_FALSE) for word in cells) else None


def _are_flags(cells: Sequence[str], columns: Sequence[int]) -> bool:
    return all(_flag(cell(cells, i)) is not None for i in columns)


def _flag(word: str) -> bool | None:
    """What 0 or 1, or false or true, says; None for another word."""
    value = number({"true": "1", "false": "0"}.get(word.lower(), word))
    return value == 1 if value in (0.0, 1.0) else None


def cell(cells: Sequence[str], column: int | None) -> str:
    return cells[column] if column is not None and column < len(cells) else ""


# ---- lines -----------------------------------------------------------------------------------------------------------


def _row(
    cells: Sequence[str], columns: Columns, classes: Sequence[str], entry: str, line: int
) -> Row:
    name, label = cell(cells, columns.name), cell(cells, columns.label)
    if not name:
        raise DataError(f"{entry}: no picture is named")
    if not columns.has_boxes and number(cell(cells, columns.confidence)) == 0:
        label = ""
    more: tuple[str, ...] = ()
    if classes:
        label, *others = _flagged(cells, columns.classes, classes, entry) or [""]
        more = tuple(others)
    height, width = whole(cell(cells, columns.height)), whole(cell(cells, columns.width))
    size = (height, width) if columns.has_boxes and height and width else None
    crowd = number(cell(cells, columns.crowd)) == 1
    part = _split_said(cells, columns)
    return Row(line, name, label, _box(cells, columns, entry), crowd, size, part, more)


def _split_said(cells: Sequence[str], columns: Columns) -> str:
    """The split of a line; "" for none."""
    if columns.split is not None:
        return split_of(cell(cells, columns.split)) or ""
    held = cell(cells, columns.held).lower()
    return "val" if held in _TRUE else "train" if held in _FALSE else ""


def _flagged(
    cells: Sequence[str], columns: Sequence[int], classes: Sequence[str], entry: str
) -> list[str]:
    """The classes of a line with a number a class."""
    values = [_flag(cell(cells, column)) for column in columns]
    if None in values:
        raise DataError(f"{entry}: expected 0 or 1 for each class, not {shorten(cells)}")
    return [name for name, value in zip(classes, values, strict=True) if value]


def _box(cells: Sequence[str], columns: Columns, entry: str) -> Box | None:
    """The box of a line, xyxy; None where its cells are empty."""
    if columns.box is not None:
        words = re.findall(r"[^\s,;\[\]()]+", cell(cells, columns.box))
    else:
        words = [cell(cells, i) for i in columns.corners or columns.sides]
    if not any(words):
        return None
    values = [number(word) for word in words]
    if len(values) != 4 or not all(value is not None and math.isfinite(value) for value in values):
        raise DataError(f"{entry}: box is {shorten(words)}; expected four numbers")
    x0, y0, x1, y1 = (float(value or 0.0) for value in values)
    if columns.corners:
        return x0, y0, x1, y1
    width, height = x1, y1
    if columns.centered:
        x0, y0 = x0 - width / 2, y0 - height / 2
    return x0, y0, x0 + width, y0 + height
