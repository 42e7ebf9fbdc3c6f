"""Names of classes in a file beside lists, tables or shards: one a line, with or without their numbers.

The files that lie beside label maps say more, and are read by `_class_files`.
"""

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from . import Notes, shorten, text_of


class Names(NamedTuple):
    """The names of classes, and the number of the first one; None where the file has no numbers."""

    names: list[str]
    first: int | None


def parse_names(text: str, source: str) -> Names:
    """The class names of a label list, in the order of their numbers, or of the lines where none has one.

    >>> parse_names("1 polar bear\\n0 cat", "list")
    Names(names=['cat', 'polar bear'], first=0)
    """
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1)
        if line.strip()
    ]
    matches = [
        re.fullmatch(r"([0-9]{1,18})\s*(?:[\s:,;]|[.)]\s)\s*(\S.*)", line) for _, line in lines
    ]
    if lines and not any(matches):
        return Names([line for _, line in lines], None)
    names: dict[int, str] = {}
    for (number, line), match in zip(lines, matches, strict=True):
        if not match:
            raise DataError(
                f"{source}, line {number}: expected `index name`, found {shorten(line)!r}"
            )
        index = int(match[1])
        if index in names:
            raise DataError(f"{source}, line {number}: index {index} is there twice")
        names[index] = match[2].strip("\"'")
    first = min(min(names, default=0), 1)
    gap = next((i for i in range(first, first + len(names)) if i not in names), None)
    if gap is not None or not names:
        raise DataError(
            f"{source}: no line for index {gap or 0}; indices are 0, 1, 2, ... without gaps"
        )
    return Names([names[i] for i in sorted(names)], first)


def numbered_names(file: Path, numbers: set[int], labels_of: Path, notes: Notes) -> Names:
    """The names in a file and the number of the first, by the file or by the labels that there are.

    Where neither says it, they are counted from 0, which `notes` says. Raises `DataError` where the
    two contradict each other.
    """
    names = parse_names(text_of(file), str(file))
    count = len(names.names)
    if names.first is None:
        from_one = bool(numbers) and 0 not in numbers and max(numbers) == count
        if numbers and 0 not in numbers and max(numbers) < count:
            least = min(numbers)
            notes.say(
                f"{file}: its {count} names are counted from 0, so {least} is "
                f"{shorten(names.names[least])!r}; {labels_of} has no label 0 and none above "
                f"{max(numbers)}, and may count from 1. Write the numbers before the names to say it"
            )
        return names._replace(first=int(from_one))
    if names.first == 1 and 0 in numbers and max(numbers) < count:
        raise DataError(
            f"{file} numbers its classes from 1, and {labels_of} has labels from 0 to "
            f"{max(numbers)}: which class a label means cannot be told; number both alike"
        )
    return names
