"""Layout files of the YOLOv5 family: YAML with rows of [from, number, module, arguments], checked row by row.

    nc: 80                          # classes, where the model is built without saying how many
    depth_multiple: 0.33            # of the number of blocks in a C3
    width_multiple: 0.25            # of channels, rounded up to a multiple of 8
    anchors: [[10,13, 16,30, 33,23], ...]              # width, height in pixels; one line a level of Detect
    backbone: [[-1, 1, repvit_m1, [false]], ...]       # row 0: one of our backbones, timm/NAME, or the word `backbone`
    head: [..., [[13, 16, 19], 1, Detect, [nc, anchors]]]

Row 0 stands for the five maps 0 to 4, of strides 2, 4, 8, 16, 32 (most backbones have no map 0);
the next row is map 5, and so on. `from` is a map or a list of maps; -1 is the one before. The word
`backbone` in row 0 takes any backbone.
"""

import math
import reprlib
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from ..backbones import family
from ..errors import ModelError, suggest
from ..reading import SMALL, Fields, read_text

KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
STRIDES = (2, 4, 8, 16, 32)  # of the maps 0 to 4
_SHOWN = reprlib.Repr()  # of rows in errors: aliases make some without end
_SHOWN.maxlevel = 3
ANY = "backbone"  # in row 0: whatever backbone the model has
FORMS = {  # the rows there are: arguments as the error shows them
    "Conv": "[channels, size, stride]",
    "C3": "[channels, shortcut]",
    "SPPF": "[channels, size]",
    "Concat": "[1]",
    "nn.Upsample": "[None, factor, nearest]",
    "Detect": "[nc, anchors]",
}


@dataclass(frozen=True)
class Row:
    index: int  # of the map it makes
    sources: tuple[int, ...]  # maps it takes
    number: int  # of blocks, before the depth multiple
    module: str  # a key of FORMS
    args: list[Any]  # with their defaults
    where: str  # as errors name it

    def fail(self, problem: str) -> NoReturn:
        raise ModelError(f"layout {self.where}: {problem}")


@dataclass(frozen=True)
class Layout:
    backbone: str  # name of row 0
    classes: int
    depth: float
    width: float
    anchors: list[list[float]]  # of each level: width, height, width, height, ... in pixels
    rows: list[Row] = field(repr=False)  # all but row 0; Detect is the last


def read(source: str) -> str:
    """The text of a layout: `source` itself if it is one (it has a line break), else that of the file it names."""
    if "\n" in source:
        return source
    try:
        return read_text(source, SMALL)
    except OSError as error:
        raise ModelError(f"cannot read the layout file {source!r}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"cannot read the layout file {source!r}: {error}") from error


def _number(value: object, kind: type = int) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (kind is float and isinstance(value, float) and math.isfinite(value))


def _anchors(value: Any) -> list[list[float]]:
    good = isinstance(value, list) and all(
        isinstance(level, list)
        and level
        and len(level) % 2 == 0
        and all(_number(v, float) and v > 0 for v in level)
        for level in value
    )
    if not good or not value or len({len(level) for level in value}) > 1:
        raise ModelError(
            f"layout key anchors is {_SHOWN.repr(value)}; allowed: a list for each level of "
            "Detect, of equal lengths: width, height, width, height, ... in pixels"
        )
    return [[float(v) for v in level] for level in value]


def _mapping(text: str) -> Fields:
    """The keys of a layout's text, of which all are there and no other."""
    try:
        layout = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"the layout is not readable as YAML: {error}") from error
    if not isinstance(layout, dict):
        raise ModelError(
            f"the layout is a {type(layout).__name__}; it needs the keys {', '.join(KEYS)}"
        )
    for key in layout:
        if key not in KEYS:
            raise ModelError(f"the layout has an unknown key {key!r}: {suggest(str(key), KEYS)}")
    missing = [key for key in KEYS if key not in layout]
    if missing:
        raise ModelError(f"the layout lacks the key {missing[0]!r}; it needs {', '.join(KEYS)}")
    _check_values(layout)
    return layout


def _check_values(layout: Fields) -> None:
    """`ModelError`, naming the key, for a value that it cannot have; anchors are checked apart."""
    if not _number(layout["nc"]) or layout["nc"] < 1:
        raise ModelError(f"layout key nc is {layout['nc']!r}; allowed: a whole number from 1")
    for key in ("depth_multiple", "width_multiple"):
        if not _number(layout[key], float) or layout[key] <= 0:
            raise ModelError(
                f"layout key {key} is {_SHOWN.repr(layout[key])}; allowed: a number above 0"
            )
    for key in ("backbone", "head"):
        if not isinstance(layout[key], list) or not layout[key]:
            raise ModelError(
                f"layout key {key} is {_SHOWN.repr(layout[key])}; allowed: a list of rows [from, "
                "number, module, args]"
            )


MOST_ARGUMENTS = {"Conv": 3, "C3": 2, "SPPF": 2, "Concat": 1, "nn.Upsample": 3, "Detect": 2}


def _arguments(row: Row, args: list[Any], layout: Fields) -> list[Any]:
    """The arguments with defaults put in, all checked."""
    most = MOST_ARGUMENTS[row.module]
    if len(args) > most:
        row.fail(f"{len(args)} arguments; allowed: {FORMS[row.module]}")
    if row.module == "C3":
        return _of_c3(row, args)
    if row.module in ("SPPF", "Conv"):
        return _of_convolution(row, args)
    if row.module == "nn.Upsample":
        return _of_upsample(row, args)
    if row.module == "Concat":
        if args not in ([], [1]):
            row.fail(f"dimension is {args[0]!r}; allowed: 1, the channels")
        return [1]
    return _of_detect(row, args, layout)


def _whole(row: Row, args: list[object], position: int, default: int | None = None) -> int:
    """The argument at a position, or its default, which has to be a whole number from 1."""
    value = args[position] if position < len(args) else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        row.fail(
            f"argument {position} is {_SHOWN.repr(value)}; allowed: a whole number from 1, in "
            f"{FORMS[row.module]}"
        )
    return value


def _of_c3(row: Row, args: list[object]) -> list[object]:
    """[channels, shortcut]"""
    shortcut = args[1] if len(args) > 1 else True
    if not isinstance(shortcut, bool):
        row.fail(f"shortcut is {shortcut!r}; allowed: true, false")
    return [_whole(row, args, 0), shortcut]


def _of_convolution(row: Row, args: list[object]) -> list[object]:
    """[channels, size] of SPPF, [channels, size, stride] of Conv"""
    size = _whole(row, args, 1, 5 if row.module == "SPPF" else 1)
    if size % 2 == 0:
        row.fail(f"size is {size}; allowed: odd numbers, whose middle is a cell")
    channels = _whole(row, args, 0)
    if row.module == "SPPF":
        return [channels, size]
    return [channels, size, _whole(row, args, 2, 1)]


def _of_upsample(row: Row, args: list[Any]) -> list[object]:
    """[factor]"""
    defaults: list[Any] = [None, 2, "nearest"]
    values = args + defaults[len(args) :]
    size, factor, mode = values[0], values[1], values[2]
    if size not in (None, "None") or mode != "nearest" or not _number(factor) or factor < 2:
        row.fail(f"allowed: {FORMS['nn.Upsample']} with a whole factor from 2")
    return [factor]


def _of_detect(row: Row, args: list[object], layout: Fields) -> list[object]:
    """Nothing: what Detect needs stands in two keys of the file, which the arguments may name."""
    keys = {"nc": layout["nc"], "anchors": layout["anchors"]}
    values = [keys.get(value, value) if isinstance(value, str) else value for value in args]
    if values != [layout["nc"], layout["anchors"]][: len(values)]:
        row.fail("allowed: [nc, anchors], the two keys of the file")
    return []


def _row(index: int, content: object, where: str, layout: Fields) -> Row:
    row = Row(index, (), 1, "", [], where)
    if not isinstance(content, list) or len(content) != 4:
        row.fail("allowed: [from, number, module, arguments]")
    origin, number, module, args = content
    if not isinstance(module, str) or module not in FORMS:
        row.fail(
            f"module {_SHOWN.repr(module)} is unknown: {suggest(str(module), FORMS)}; a "
            "backbone only in row 0"
        )
    sources = origin if isinstance(origin, list) else [origin]
    if not sources or not all(_number(value) and -index <= value < index for value in sources):
        row.fail(
            f"from is {_SHOWN.repr(origin)}; allowed: maps before it, 0 to {index - 1}, or -1 "
            "for the last"
        )
    if module not in ("Concat", "Detect") and len(sources) > 1:
        row.fail(f"{module} takes one map; only Concat and Detect take several")
    if not _number(number) or number < 1 or (number > 1 and module not in ("Conv", "C3")):
        row.fail(
            f"number is {_SHOWN.repr(number)}; allowed: a whole number from 1; for all but "
            "Conv and C3 1"
        )
    if not isinstance(args, list):
        row.fail(f"arguments are {_SHOWN.repr(args)}; allowed: {FORMS[module]}")
    row = Row(index, tuple(value % index for value in sources), number, module, [], where)
    return Row(index, row.sources, number, module, _arguments(row, args, layout), where)


def _first(content: object, where: str) -> str:
    """The backbone that row 0 names."""
    row = Row(0, (), 1, "", [], where)
    if (
        not isinstance(content, list)
        or len(content) != 4
        or content[:2] not in ([-1, 1], [[-1], 1])
    ):
        row.fail("allowed: [-1, 1, BACKBONE, [false]]")
    name, args = content[2:]
    if args not in ([], [False], [""], [None], ["None"]):
        row.fail(
            f"arguments are {_SHOWN.repr(args)}; allowed: [false] - weights are not part of a "
            "layout, load them by name"
        )
    try:
        if name != ANY:
            family(str(name))
    except ModelError as error:
        row.fail(f"{error}, or {ANY} for any")
    return str(name)


def parse(text: str) -> Layout:
    """The checked rows of a layout's text; `ModelError` names the key or the row that cannot be used, and what can."""
    layout = _mapping(text)
    anchors = _anchors(layout["anchors"])
    contents = [*layout["backbone"], *layout["head"]]
    where = [
        f"row {n} (map {n + 4 if n else '0 to 4'}) {_SHOWN.repr(row)[:200]}"
        for n, row in enumerate(contents)
    ]
    name = _first(contents[0], where[0])
    rows = [_row(n + 4, contents[n], where[n], layout) for n in range(1, len(contents))]
    for row in rows[:-1]:
        if row.module == "Detect":
            row.fail("Detect must be the last row")
        if not any(row.index in other.sources for other in rows):
            row.fail("no other row takes this map")
    if not rows or rows[-1].module != "Detect":
        raise ModelError(
            f"layout {where[-1]}: the last row must be [[maps], 1, Detect, [nc, anchors]]"
        )
    if len(rows[-1].sources) != len(anchors):
        rows[-1].fail(
            f"it takes {len(rows[-1].sources)} maps, but there are anchors for {len(anchors)}"
        )
    return Layout(
        name,
        layout["nc"],
        float(layout["depth_multiple"]),
        float(layout["width_multiple"]),
        anchors,
        rows,
    )
