"""What others wrote: the text of their files, the numbers and names in it, and how a message shows it."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..reading import ANNOTATIONS, read_bytes

SHOWN = 5  # names in a message, where there may be any number
LONGEST_NAME = 1000  # letters of a class
LETTERS = 200  # of a user's own text in a message


def few(items: Iterable[object], shown: int = SHOWN) -> str:
    """The first of some names, and how many more there are: few("abcdefg") -> "a, b, c, d, e and 2 more"."""
    texts = [shorten(item) for item in items]
    return ", ".join(texts[:shown]) + and_more(len(texts) - shown)


def shorten(text: object) -> str:
    """A user's own text for a message, without its end where it is long."""
    text = str(text)
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}... ({len(text)} characters)"


def and_more(count: int) -> str:
    """The end of a list in a message, of which so many are not named."""
    return f" and {count} more" if count > 0 else ""


class NotUtf8(DataError):
    """A text file in another encoding, which nothing says."""


def text_of(path: Path) -> str:
    """The text of an annotation file in UTF-8, with or without BOM; `DataError` names the line that is not."""
    try:
        data = read_bytes(path, ANNOTATIONS)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotUtf8(
            f"{path}, line {line}: not UTF-8 text; save the file as UTF-8, which Excel calls "
            "`CSV UTF-8` and editors have as `Encoding` when they save"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {shorten(path)!r}: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise DataError(f"cannot read {shorten(path)!r}: {error}") from error


def number(value: object) -> float | None:
    """A number, also one that is written as text ("12", " 1.0"), as some tools do; None for anything else.

    >>> number("12"), number(0.5), number(True), number("x")
    (12.0, 0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):  # no number, or too large for a float
        return None


def plain(value: object) -> Any:
    """A number of NumPy or torch as Python's; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def whole(value: object) -> int | None:
    """A whole number, also one that is written as text or as 640.0; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,300}\s*", value):
        return int(value)  # exactly: ids may have more digits than a float
    real = number(value)
    return int(real) if real is not None and real.is_integer() else None


def parse_classes(text: str, source: str) -> list[str]:
    """The class names of a file with one a line.

    A first line `__ignore__`, as in labelme's labels.txt, is no class: it stands for index -1, the
    pixels of none.
    """
    classes = [line.strip() for line in text.split("\n") if line.strip()]
    if classes and classes[0] == "__ignore__":
        classes = classes[1:]
    if not classes:
        raise DataError(f"{source} is empty: no class names")
    strange = next((name for name in classes if "\0" in name or len(name) > LONGEST_NAME), None)
    if strange is not None:
        raise DataError(f"{source}: no class name: {shorten(repr(strange))}; expected one a line")
    twice = next((name for name, count in Counter(classes).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{source}: class {shorten(twice)!r} is there twice")
    return classes
