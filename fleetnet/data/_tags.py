"""Several tags of a picture in one text, as in the cell of a table or behind the path of a list.

    cat dog     cat,dog     cat|dog     ['cat', 'dog']     0,3,5     0,1,0,0,1

What separates them is the same in all texts of a file: the first of | ; and , that occurs, so that
names may have spaces; where none does, spaces. Numbers of 0 and 1 alone, as many in each text, are
not the tags themselves but say of each class whether it is there.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import DataError
from . import shorten

SEPARATORS = "|", ";", ","
BRACKETS = "[]", "()", "{}"  # around a list that a program wrote
QUOTES = "\"'"  # around each name in it
WAY_OUT = (
    "several labels of a picture are learned by multilabel/BACKBONE, as --model "
    "multilabel/repvit_m0_9; for any other classifier, keep one"
)


@dataclass(frozen=True)
class Form:
    """How the texts of a file say their tags."""

    separator: str | None  # None: a text is a single tag
    columns: int = 0  # of 0 and 1, one a class; 0: the tags themselves are written


def form_of(texts: Sequence[str], *, one_each: bool = False) -> Form:
    """The form of all texts of a file; `one_each` where spaces belong to names."""
    separator = next((sign for sign in SEPARATORS if any(sign in text for text in texts)), None)
    if separator is None and not one_each:
        separator = " "
    parts = [_parts(text, separator) for text in texts]
    counts = {len(words) for words in parts}
    flags = len(counts) == 1 and all(word in ("0", "1") for words in parts for word in words)
    columns = max(counts, default=0)
    return Form(separator, columns if flags and columns > 1 else 0)


def tags_of(text: str, form: Form, entry: str) -> list[str]:
    """The tags in a text, each once; in columns of 0 and 1 the numbers of the columns, from 0.

    >>> tags_of("['cat', 'polar bear']", Form(","), "line 1")
    ['cat', 'polar bear']
    """
    words = _parts(text, form.separator)
    if not form.columns:
        return list(dict.fromkeys(words))
    if len(words) != form.columns or not set(words) <= {"0", "1"}:
        raise DataError(
            f"{entry}: {shorten(text)!r}; expected {form.columns} times 0 or 1, as in the other "
            "lines, one for each class"
        )
    return [str(i) for i, word in enumerate(words) if word == "1"]


def a_list(labels: Collection[str]) -> str | None:
    """The first of the labels of pictures that is rather several; None where each is one.

    One with a | in it is; one with a comma or semicolon, where others have all that it lists.
    """
    several = {sign: _listed(labels, sign) for sign in SEPARATORS}
    for label in sorted(labels):
        if "|" in label:
            return label
        separator = next((sign for sign in SEPARATORS if sign in label), None)
        if separator is not None and label in several[separator]:
            return label
    return None


def several_words(labels: Collection[str]) -> str | None:
    """The first label of several words of which other labels have each; None where there is none."""
    return min(_listed(labels, " "), default=None)


def _listed(labels: Collection[str], separator: str) -> set[str]:
    """The labels of several parts of which other labels have each."""
    parts = {label: _parts(label, separator) for label in labels}
    labels_with = Counter(part for words in parts.values() for part in set(words))
    # a label has its own parts: another one has them too where there are two
    return {
        label
        for label, words in parts.items()
        if len(words) > 1 and all(labels_with[part] > 1 for part in words)
    }


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of a message on an unknown name: the one that is spelled nearly so, if any."""
    near = get_close_matches(word, list(names), n=1)
    return f"; did you mean {shorten(near[0])!r}?" if near else ""


def _parts(text: str, separator: str | None) -> list[str]:
    text = text.strip()
    if text[:1] + text[-1:] in BRACKETS:
        text = text[1:-1]
    parts: Iterable[str] = [text]
    if separator is not None:
        parts = text.split(None if separator == " " else separator)
    words = (_unquoted(part.strip()) for part in parts)
    return [word for word in words if word]


def _unquoted(word: str) -> str:
    """A word without the quotes around it; those within are its own."""
    inner = word[1:-1]
    is_quoted = len(word) > 1 and word[0] == word[-1] and word[0] in QUOTES
    return inner.strip() if is_quoted and word[0] not in inner else word
