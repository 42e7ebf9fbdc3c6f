"""Tables: a CSV file with a line for each picture and its label, or for each box.

    root/train.csv or labels.csv (image, label)          root/train/_classes.csv (filename, CLASS, CLASS, ...)
    root/train/_annotations.csv (filename, width, height, class, xmin, ymin, xmax, ymax)

Columns are told by their names (`filename`, `image_id`, `path`, ...; `label`, `class`, `species`,
...), in any case; without such names, the column of file names is the picture, and of two columns
the other is the label. Pictures are looked for below the folder of the table by name, with or
without extension, whatever folder the table names; nothing else is opened. Boxes are corners, or a
corner with width and height, in pixels, or all in shares of the picture. Splits are the tables of
several names (train.csv, val.csv), those in folders of splits, or a column `split`, or `is_valid`,
which is true for val; lines without a split in it are left out. Without one for "val", every tenth
picture of each class is held back for it. A table of numbers for each class (0 or 1) has to have a
single 1 in each line, but for tags: these may be any number a picture, in such columns, in one cell
(see `_tags.py`), or in several lines.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError
from . import (
    Notes,
    NotUtf8,
    Object,
    Sample,
    Source,
    Split,
    _native,
    check_exists,
    few,
    files_beside,
    fit_box,
    hold_out_of_each,
    measured,
    note_turned,
    of_other_names,
    part_of,
    shorten,
    text_of,
    whole,
)
from ._conventions import (
    IMAGE_FOLDERS,
    NAME_FILES,
    USUAL,
    Places,
    by_split,
    children,
    file_called,
    files_in,
    folders_in,
    same_form,
    split_folders,
    split_of,
    split_said_by,
    word_in,
)
from ._label_lists import numbered_names
from ._pictures import PicturesByName, is_picture
from ._tables import (
    ROWS_SEEN,
    Row,
    Table,
    cell,
    columns_of,
    form_of_tags,
    lines_of,
    one_tag_each,
    plain_name,
)
from ._tables import parse as parse
from ._tags import WAY_OUT, a_list, nearest, several_words

EXPECTS = (
    "ROOT/train.csv or ROOT/labels.csv with columns for the picture and its label, or its boxes"
)
TARGETS: tuple[str, ...] = ("label", "tags", "boxes")
FALLBACK = True  # tables lie beside data of all kinds
PLACES: tuple[str, ...] = ("images",)
_SEVERAL = "tags", "labels", "findinglabels"  # names of columns that may hold several labels
MANY = 20  # pictures from which on a class for every second one is a column of something else
_EXTENSIONS = (".csv", ".tsv")
_IMAGES = {name.lower() for name in IMAGE_FOLDERS}
_USUAL_NAMES = (  # of a table, as `plain_name` writes them
    *("labels", "label", "annotations", "annotation", "classes", "data", "dataset", "metadata"),
    *("images", "index"),
)
_FOLDERS = (
    "annotations",
    "annotation",
    "labels",
    "csv",
    "csvs",
    "tables",
    "metadata",
    "meta",
    "splits",
)


def detect(root: str, target: str = "label") -> bool:
    """True for a table, and for a folder with one of pictures that are there, unless its folders are the classes."""
    path = Path(root)
    if not os.path.isdir(path):
        return os.path.isfile(path) and path.suffix.lower() in _EXTENSIONS
    try:
        tables = list(_tables_in(path).values())
    except DataError:  # several: `load` asks which
        tables = _all_tables(path, path)
    if target == "boxes":
        tables = [table for table in tables if _has_boxes(table)]
    return bool(tables) and not any(_are_classes(path, table) for table in tables)


def load(root: str, split: str | None, target: str = "label", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, in the order of its table; pictures that are not there get a line in `skipped`.

    Raises `DataError` naming file and line for what does not parse, several labels of a picture,
    and labels that the table of "train" does not have.
    """
    check_exists(root)
    notes = Notes()
    own, files = _named(Path(root))
    tables = {name: parse(text_of(file), str(file)) for name, file in files.items()}
    if len(tables) == 1:
        files, tables = _by_column(files, tables, notes)
    # the folder of one split holds no pictures of the others
    top = Path(root) if os.path.isdir(root) and not own else None
    places = [Path(elsewhere.images)] if elsewhere.images else None
    pictures = None
    if set(tables) == {""}:
        pictures = PicturesByName(places or _folders(files[""], top))
        files, tables = _by_folder(files[""], tables[""], pictures)
    there = {name: file for name, file in files.items() if name}
    part = part_of(split, there, root, own)
    name = part.there if part.there in tables else ""
    first = tables.get("train", tables[name])
    if target == "boxes" and not tables[name].has_boxes:
        raise DataError(f"{files[name]} has no columns of boxes, as xmin, ymin, xmax, ymax")
    table = tables[name]
    if target == "tags":
        form, file = form_of_tags(first), str(files[name])
        first, table = (one_tag_each(one, form, file) for one in (first, table))
    classes = _classes(first, files[name], target)
    doubtful = several_words(classes) if plain_name(first.column) in _SEVERAL else None
    if target == "label" and doubtful is not None:
        notes.say(
            f"{files[name]}: labels as {shorten(doubtful)!r} are taken as one class each; if they are "
            "several, train multilabel/BACKBONE"
        )
    if pictures is None:
        pictures = PicturesByName(places or _folders(files[name], top))
    reader = _Reader(files[name], pictures, part.there, classes, notes)
    samples = reader.samples(table, target)
    source = Source(root, "csvfile", part.split, str(files[name]), part.take)
    samples = hold_out_of_each(samples, [sample.label for sample in samples], part.take)
    return Split(samples, reader.names, notes.lines, source=source, annotations=notes.annotations())


# ---- files -----------------------------------------------------------------------------------------------------------


def _named(root: Path) -> tuple[str, dict[str, Path]]:
    """The split that a named table is of, or ""; and the tables of the splits, or of "", all of them."""
    if os.path.isdir(root):
        tables = _tables_in(root)
        if not tables:
            raise DataError(f"no table of pictures in {str(root)!r}; expected {EXPECTS}")
        return _beside(root, tables)
    own, beside = files_beside(root)
    readable = {name: file for name, file in beside.items() if name == own or _is_table(file)}
    if own:
        others = [file for file in files_in(root.parent, *_EXTENSIONS) if file != root]
        said = [file for file in others if word_in(file.stem) and not _is_submission(file)]
        readable = of_other_names(root, readable, [file for file in said if _is_table(file)])
    return own, readable or {"": root}


def _beside(folder: Path, tables: dict[str, Path]) -> tuple[str, dict[str, Path]]:
    """The split that a folder with one table is of, or ""; with it the tables of the folders of splits beside it."""
    own = split_of(folder.absolute().name)
    if own is None or list(tables) not in ([""], [own]):
        return "", tables
    there = {own: next(iter(tables.values()))}
    for split, place in split_folders(folder.absolute().parent).items():
        try:
            files = list(_tables_of(place, place).values())
        except DataError:  # several, of which none is the one
            continue
        if len(files) == 1:
            there.setdefault(split, files[0])
    return (own, there) if len(there) > 1 else ("", tables)


def _tables_in(folder: Path) -> dict[str, Path]:
    """The table of each split in a folder, in its folders of splits, or in a folder of annotations; or one of ""."""
    by_name = _tables_of(folder, folder)
    if by_name:
        return by_name
    below = {split: _tables_of(place, folder) for split, place in split_folders(folder).items()}
    inside = {split: next(iter(tables.values())) for split, tables in below.items() if tables}
    if inside:
        return inside
    return next(
        (tables for place in children(folder, _FOLDERS) if (tables := _tables_of(place, folder))),
        {},
    )


def _tables_of(folder: Path, root: Path) -> dict[str, Path]:
    """The tables that lie in a folder itself: those of splits, by their names; else the only one, as ""."""
    files = _all_tables(folder, root)
    named: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: len(file.stem)):
        word = word_in(file.stem)
        if word:
            named.setdefault(word.word, file)
    if named:
        return by_split(named)
    if len(files) > 1:
        raise DataError(
            f"several tables of pictures: {few(files)}; name one of them as --data, or choose "
            "another format with --format"
        )
    return {"": files[0]} if files else {}


def _all_tables(folder: Path, root: Path) -> list[Path]:
    return [
        file
        for file in files_in(folder, *_EXTENSIONS)
        if not _is_submission(file) and _is_table(file, root)
    ]


def _is_submission(file: Path) -> bool:
    """Whether a table is what Kaggle calls so: of the form of answers, with none of them."""
    return "submission" in file.stem.lower()


def _is_table(file: Path, root: Path | None = None) -> bool:
    """Whether a file is a table of pictures, by its columns and the pictures that its first lines name."""
    try:
        lines = [cells for _, cells in _first_lines(file)]
    except NotUtf8:  # which `load` says, with the line
        return word_in(file.stem) is not None or plain_name(file.stem) in _USUAL_NAMES
    except DataError:
        return False
    header, columns = columns_of(lines)
    if columns is None:
        return _native.of_header(header) is not None
    names = [cell(cells, columns.name) for cells in lines[1 if header else 0 :]]
    if names and all(is_picture(name) for name in names):
        return True
    pictures = PicturesByName(_folders(file, root))
    return any(pictures.named(name) for name in names)


def _first_lines(file: Path) -> list[tuple[int, list[str]]]:
    text = "".join(text_of(file).splitlines(keepends=True)[: 1 + ROWS_SEEN])
    return lines_of(text, str(file))


def _folders(table: Path, root: Path | None) -> list[Path]:
    """Where the pictures of a table may be: below its folder, or beside that where it is one of tables.

    `root` is the folder of the data, above which nothing is looked for; None where a table is named.
    """
    place = table.absolute().parent
    if root is None and place.name.lower() in _FOLDERS:
        return [table.parent, place.parent]
    return [table.parent] if root in (None, table.parent) else [table.parent, root]


def _has_boxes(table: Path) -> bool:
    try:
        _, columns = columns_of([cells for _, cells in _first_lines(table)])
    except DataError:  # told when it is read as data
        return True
    return columns is not None and columns.has_boxes


def _are_classes(root: Path, table: Path) -> bool:
    """Whether the folders of pictures are called as the labels of a table: then they say the same as it does."""
    places = [root, *split_folders(root).values()]
    folders = {same_form(folder.name) for place in places for folder in folders_in(place)}
    folders = {name for name in folders if not _is_usual(name)}
    if not folders:  # the usual case: the table is read once, by `load`
        return False
    try:
        rows = parse(text_of(table), str(table)).rows
    except NotUtf8:
        return len(folders) > 1
    except DataError:
        return False
    # "train" and "images" may be classes, and the folders so called are of a split or all pictures
    labels = {same_form(row.label) for row in rows if row.label and not _is_usual(row.label)}
    return 2 * len(labels & folders) > len(labels)


def _is_usual(name: str) -> bool:
    """Whether a folder of this name is one of a split or of all pictures, sooner than of a class."""
    return split_said_by(name, IMAGE_FOLDERS) is not None or name.lower() in _IMAGES


# ---- samples ---------------------------------------------------------------------------------------------------------


def _by_column(
    files: Mapping[str, Path], tables: Mapping[str, Table], notes: Notes
) -> tuple[dict[str, Path], dict[str, Table]]:
    """One table for each split that a column says, without lines of none; the same where no line says one."""
    ((name, table),) = tables.items()
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        rows.setdefault(row.split, []).append(row)
    of_none = rows.pop("", [])
    if not rows:
        return dict(files), dict(tables)
    if of_none:
        lines = few(f"line {row.line}" for row in of_none)
        notes.read += len(of_none)
        notes.drop("of no split", f"{files[name]}: of no split and left out: {lines}", len(of_none))
    there = by_split({part: part for part in rows})
    return (
        dict.fromkeys(there, files[name]),
        {part: replace(table, rows=rows[source]) for part, source in there.items()},
    )


def _by_folder(
    file: Path, table: Table, pictures: PicturesByName
) -> tuple[dict[str, Path], dict[str, Table]]:
    """One table for each split whose folder has pictures of the table; the whole where not all are in such folders."""
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        for path in pictures.named(row.name)[:1]:
            rows.setdefault(pictures.split_of(path), []).append(row)
    if "" in rows or len(rows) < 2:
        return {"": file}, {"": table}
    return dict.fromkeys(rows, file), {part: replace(table, rows=rows[part]) for part in rows}


def _classes(table: Table, file: Path, target: str) -> list[str]:
    """The classes of a table: its columns, or its labels, by number where all of them are numbers, else by name."""
    if table.classes:
        return list(table.classes)
    labels = {row.label for row in table.rows if row.label}
    several = a_list(labels) if target == "label" else None
    if several is not None:
        raise DataError(f"{file}: the label {shorten(several)!r} is a list: {WAY_OUT}")
    pictures = len({row.name for row in table.rows})
    most = {"label": pictures // 2, "tags": pictures}.get(target, len(labels))
    if pictures >= MANY and len(labels) > most:
        raise DataError(
            f"{file}: the column {table.column!r} has {len(labels)} different values for "
            f"{pictures} pictures, so they are no classes; call the column of the labels `label`"
            + (f". If they are lists of tags, {WAY_OUT}" if target == "label" else "")
        )
    if not labels and table.has_boxes:
        return ["object"]
    if not labels:
        raise DataError(f"{file}: no line has a label")
    return sorted(labels, key=_by_number(labels))


def _by_number(labels: set[str]) -> Callable[[str], tuple[int, str]]:
    numbers = {label: whole(label) for label in labels}
    if any(value is None for value in numbers.values()):
        return lambda label: (0, label)
    return lambda label: (numbers[label] or 0, label)


class _Reader:
    """Makes samples of the lines of one table."""

    def __init__(
        self, file: Path, pictures: PicturesByName, split: str, classes: list[str], notes: Notes
    ) -> None:
        self.file = file
        self.notes = notes
        self.index = {name: label for label, name in enumerate(classes)}
        said = _descriptions(file) or _names_of_numbers(file, classes, notes)
        self.names = [said.get(name, name) for name in classes]
        self.split = split
        self.pictures = pictures

    def samples(self, table: Table, target: str) -> list[Sample]:
        by_picture: dict[Path, list[Row]] = {}
        missing: list[str] = []
        for row in table.rows:
            self.notes.read += 1
            path = self._picture(row)
            if path is None:
                missing.append(f"line {row.line}: {shorten(row.name)!r}")
                self.notes.drop("of pictures that are not there")
            else:
                by_picture.setdefault(path, []).append(row)
        if missing:
            where = few(str(folder) for folder in self.pictures.folders)
            line = f"{self.file}: no such picture below {where}: {few(dict.fromkeys(missing))}"
            if not by_picture:
                raise DataError(line)
            self.notes.say(line)
        if target == "label":
            return self._labeled(by_picture)
        if target == "tags":
            return [
                Sample(path, tags=tuple(sorted({self._label(row) for row in rows if row.label})))
                for path, rows in by_picture.items()
            ]
        return self._boxed(by_picture)

    def _picture(self, row: Row) -> Path | None:
        paths = self.pictures.named(row.name, self.split)
        if len(paths) > 1:
            raise DataError(
                f"{self.file}, line {row.line}: {shorten(row.name)!r} may be {few(paths)}; write "
                "paths from the folder of the table"
            )
        return paths[0] if paths else None

    def _label(self, row: Row) -> int:
        if row.label not in self.index:
            raise DataError(
                f"{self.file}, line {row.line}: label {shorten(row.label)!r} is not in the table "
                f"of train; there is {few(self.index, 10)}{nearest(row.label, self.index)}"
            )
        return self.index[row.label]

    def _labeled(self, by_picture: Mapping[Path, Sequence[Row]]) -> list[Sample]:
        samples = []
        for path, rows in by_picture.items():
            labels = {label: row for row in rows for label in row.labels}
            if len(labels) > 1:
                raise DataError(
                    f"{self.file}, line {rows[-1].line}: {shorten(rows[0].name)!r} has several "
                    f"labels: {few(labels)}; {WAY_OUT}"
                )
            if not labels:
                self.notes.drop("without a label", count=len(rows))
            samples += [Sample(path, self._label(row)) for row in labels.values()]
        return samples

    def _boxed(self, by_picture: Mapping[Path, Sequence[Row]]) -> list[Sample]:
        boxes = [row.box for rows in by_picture.values() for row in rows if row.box]
        # Corners of one pixel each at most, and some within: shares of the picture.
        shares = bool(boxes) and all(0 <= value <= 1 for box in boxes for value in box)
        samples = []
        turned: list[Path] = []
        for path, rows in by_picture.items():
            of_this: list[Path] = []
            size = measured(path, self.notes, of_this)
            if size is None:
                self.notes.drop("of pictures left out", count=len(rows))
            elif other := _other_size(rows, size, shares, turned=bool(of_this)):
                because = ", turned by its EXIF orientation" if of_this else ""
                line = (
                    f"{str(path)!r}: left out, it is {size[1]}x{size[0]}{because}; {self.file}, "
                    f"line {rows[0].line}, says {other[1]}x{other[0]}"
                )
                self.notes.drop("of pictures left out", line, len(rows))
            else:
                turned += of_this
                objects = [self._object(row, size, shares) for row in rows if row.box]
                samples.append(Sample(path, objects=tuple(filter(None, objects))))
        note_turned(turned, self.notes)
        return samples

    def _object(self, row: Row, size: tuple[int, int], shares: bool) -> Object | None:
        if row.box is None:
            return None
        height, width = size if shares else (1, 1)
        x0, y0, x1, y1 = row.box
        entry = f"{self.file}, line {row.line}"
        box = fit_box((x0 * width, y0 * height, x1 * width, y1 * height), size, entry, self.notes)
        label = self._label(row) if row.label or len(self.index) > 1 else 0
        return Object(box, label, crowd=row.crowd) if box else None


def _other_size(
    rows: Sequence[Row], size: tuple[int, int], shares: bool, turned: bool
) -> tuple[int, int] | None:
    """The size (height, width) that a table says where boxes do not fit the picture for it; else None.

    Shares fit a picture of any size, unless it is turned and they are of the picture as stored.
    """
    others = [row.size for row in rows if row.size not in (None, size)]
    if shares:
        others = [other for other in others if turned and other == size[::-1]]
    return others[0] if others else None


def _descriptions(file: Path) -> dict[str, str]:
    """Names of classes by their codes, as Open Images has them in a table of its own."""
    for table in files_in(file.parent, ".csv"):
        if "class-descriptions" in table.stem.lower():
            lines = lines_of(text_of(table), str(table))
            return {cells[0]: cells[1] for _, cells in lines if len(cells) == 2}
    return {}


def _names_of_numbers(file: Path, labels: Sequence[str], notes: Notes) -> dict[str, str]:
    """Names of classes by their numbers, where all labels are numbers that a file beside the table names."""
    names_file = file_called(file.parent, NAME_FILES)
    numbers = [number for label in labels if (number := whole(label)) is not None]
    if names_file is None or len(numbers) < len(labels):
        return {}
    names = numbered_names(names_file, set(numbers), file, notes)
    first = names.first or 0
    if min(numbers) < first or max(numbers) - first >= len(names.names):
        notes.say(
            f"{names_file}: not used, its names are of {first} to {first + len(names.names) - 1} "
            f"and the labels of {file} are {min(numbers)} to {max(numbers)}"
        )
        return {}
    return {
        label: names.names[number - first] for label, number in zip(labels, numbers, strict=True)
    }
