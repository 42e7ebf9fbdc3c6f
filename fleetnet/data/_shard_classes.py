"""The class names of shards: of a file beside them, of their own texts, or the numbers that occur."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import DataError, suggest
from ..reading import DESCRIPTION, Fields, from_json, read_bytes
from . import few, shorten, text_of
from ._conventions import NAME_FILES, file_called
from ._label_lists import parse_names
from ._shard_texts import Label
from ._tags import WAY_OUT, a_list

ABOUT = "dataset.json"  # that is written beside shards here
NAMES_FILES = (*NAME_FILES, "classnames.txt", "class_list.txt", "label_list.txt")
KEYS = ("classes", "class_names", "classnames", "names", "label_names", "categories", "labels")
_NUMBERS = re.compile(r"\d+(?:[,;|\s]+\d+)+")  # several in one label
MOST = 100_000  # classes that numbers may stand for, where nothing names them


@dataclass(frozen=True)
class Classes:
    """The names of classes, and what the labels in texts stand for."""

    names: list[str]
    source: str  # what says so
    first: int = 0  # the number of the first class
    ids: list[int] | None = None  # category ids, in the order of `names`

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def index(self, label: Label, entry: str) -> int:
        """The class of a label; `DataError` for one that is none."""
        if isinstance(label, str):
            if label in self.numbers:
                return self.numbers[label]
            raise DataError(
                f"{entry}: no class {shorten(repr(label))} in {self.source}: "
                f"{suggest(label, self.names)}"
            )
        if self.first <= label < self.first + len(self.names):
            return label - self.first
        raise DataError(
            f"{entry}: label {label} is out of range: {self.source} has {len(self.names)} classes, "
            f"{self.first} to {self.first + len(self.names) - 1}"
        )


def about(folder: Path) -> Fields:
    """What dataset.json in a folder says; empty where there is none."""
    file = folder / ABOUT
    if not os.path.isfile(file):
        return {}
    try:
        document = from_json(read_bytes(file, DESCRIPTION))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(file)!r} cannot be read: {error}") from error
    return document if isinstance(document, dict) else {}


def declared(folders: Sequence[Path], split: str) -> Classes | None:
    """The classes that a file in one of some folders declares; None where there is none."""
    for folder in folders:
        document = about(folder)
        splits = document.get("splits")
        of_split = splits.get(split) if isinstance(splits, dict) else None
        for row in (of_split, document):
            if isinstance(row, dict) and (names := _names(row)):
                return Classes(names, str(folder / ABOUT), ids=_ids(row, len(names)))
        file = file_called(folder, NAMES_FILES)
        if file is not None:
            named = parse_names(text_of(file), str(file))
            if named.names:
                return Classes(named.names, str(file), named.first or 0)
    return None


def _names(row: Mapping[str, object]) -> list[str]:
    """Class names in a JSON object: a list of them, or numbers with names, either way round."""
    for key in KEYS:
        value = row.get(key)
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return [str(name) for name in value]
        if isinstance(value, dict) and value:
            pairs = [(str(a), str(b)) for a, b in value.items()]
            if not all(number.isdigit() for number, _ in pairs):
                pairs = [(b, a) for a, b in pairs]
            if all(number.isdigit() for number, _ in pairs):
                numbered = {int(number): name for number, name in pairs}
                if sorted(numbered) == list(range(len(pairs))):
                    return [numbered[i] for i in range(len(pairs))]
    return []


def _ids(row: Mapping[str, object], count: int) -> list[int] | None:
    ids = row.get("ids")
    if not isinstance(ids, list) or len(ids) != count or not all(type(i) is int for i in ids):
        return None
    return list(ids)


def of_labels(labels: set[Label], names: Mapping[int, str], where: str) -> Classes:
    """The classes of labels that no file names: names in their order, or numbers; `names` are of numbers."""
    words = {label for label in labels if isinstance(label, str)}
    numbers = {label for label in labels if isinstance(label, int)}
    if not labels:
        raise DataError(
            f"{where}: none of its samples shows anything, and no file names the classes: put them "
            "into classes.txt beside the shards, one a line"
        )
    if words and numbers:
        raise DataError(
            f"{where}: some labels are numbers, as {min(numbers)}, and some are names, as "
            f"{shorten(repr(min(words)))}: put the names into classes.txt beside the shards, one a "
            "line, in the order of their numbers"
        )
    if words:
        return Classes(sorted(words), f"the labels of {where}")
    last = max(numbers)
    if min(numbers) < 0 or last >= MOST:
        raise DataError(
            f"{where}: labels go from {min(numbers)} to {last}; allowed: 0 to {MOST - 1}"
        )
    texts = [names.get(number, str(number)) for number in range(last + 1)]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise DataError(f"{where}: two numbers of classes have the name {shorten(repr(twice))}")
    return Classes(texts, f"the labels of {where}")


def check_lists(labels: set[Label], names: Sequence[str], where: str) -> None:
    """`DataError` for a label that is rather several, and none of the names that a file gives."""
    words = {label for label in labels if isinstance(label, str)}.difference(names)
    several = next((word for word in sorted(words) if _NUMBERS.fullmatch(word)), None)
    several = several or a_list({str(label) for label in labels})
    if several in words:
        raise DataError(
            f"{where}: the label {shorten(several)!r} is a list, and .cls holds one class: write "
            'several into .json, as {"tags": [0, 2]}; ' + WAY_OUT
        )


def may_count_from_one(labels: set[Label]) -> bool:
    """Whether there are numbers among the labels, of which 0 is none."""
    return 0 not in labels and any(isinstance(label, int) for label in labels)


def fitted(classes: Classes, labels: set[Label]) -> Classes:
    """The classes with the number of the first one, as the labels of all splits say: 0, or 1."""
    numbers = {label for label in labels if isinstance(label, int)}
    from_one = 0 not in numbers and max(numbers, default=0) == len(classes.names)
    return Classes(classes.names, classes.source, int(from_one or classes.first), classes.ids)


def missing(classes: Classes, labels: set[Label]) -> str:
    """A line where numbers begin at 1, so that no picture is of the class that stands for 0; "" elsewhere."""
    numbers = {label for label in labels if isinstance(label, int)}
    if classes.first or not numbers or len(numbers) < len(labels) or min(numbers) == 0:
        return ""
    return (
        f"the least label is {min(numbers)}: labels are counted from 0, and {few([0])} is "
        f"{shorten(repr(classes.names[0]))}, of which there is no picture. If labels count from 1, "
        "put the names into classes.txt beside the shards, numbered: `1 name`"
    )
