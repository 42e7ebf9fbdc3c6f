"""What goes wrong for a user, as exceptions: each says what was given, what is allowed, and where.

The class decides the exit code of the command line (see `cli/`); code that uses the library catches
`FleetnetError` or the builtin that each class also is.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from functools import wraps
from typing import ParamSpec, TypeVar

from .synonyms import SETTINGS, absent, instead, keys, meanings, plain


class FleetnetError(Exception):
    exit_code = 1  # failure at run time


class NotFiniteError(FleetnetError):
    """A loss or a weight that is not finite; the step that it came from can be replayed."""


class SlowerWarning(UserWarning):
    """What was asked for is done rightly, but slower than it could be."""


class WriteError(FleetnetError, OSError):
    """A file that cannot be written: the disk is full, the folder is gone or not ours."""


class DiskFull(WriteError):
    """A file that there is no space for."""


class UsageError(FleetnetError, ValueError):
    """An unknown verb, flag, recipe key or option value."""

    exit_code = 2


class ArgumentError(UsageError, TypeError):
    """A keyword argument that a function does not have."""


class DataError(FleetnetError, ValueError):
    """Images or annotations that cannot be used; the message names the file and, where there is one, the line."""

    exit_code = 3


class ModelError(FleetnetError, ValueError):
    """An unknown model, weights of another model, or a shape that a network cannot take."""

    exit_code = 4


class ExportError(FleetnetError, RuntimeError):
    """An export that failed, or an exported file that does not compute what the model computes."""

    exit_code = 5


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def named_arguments(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, which answers a keyword argument that it does not have with the one that was meant.

    Other tools' words are known, as everywhere: `pretrained=True` is answered with
    `weights="default"`.
    """
    allowed = [name for name in inspect.signature(function).parameters if name != "self"]

    @wraps(function)
    def checked(*args: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        for word in keywords:
            if word not in allowed:
                name = function.__qualname__.removesuffix(".__init__")
                raise ArgumentError(
                    f"{name} has no argument {word!r}: {suggest(word, allowed, 'argument')}"
                )
        return function(*args, **keywords)

    return checked


FEW = 12  # names: as many can be read in an error message


def suggest(word: str, allowed: Iterable[str], kind: str = "", listed_by: str = "") -> str:
    """The end of an error message: the nearest allowed names by meaning, else by spelling; all where they are few.

    `kind` is what is asked for: "flag", "key" (of a recipe), "argument" (of a function), "runtime",
    "precision" or "verb"; `listed_by` the command that lists all names where they are many.

    >>> choose("fasternet_to", ["fasternet_t0", "repvit_m0_9"])
    "did you mean 'fasternet_t0'? Allowed: fasternet_t0, repvit_m0_9"
    >>> choose("learning_rate", ["lr", "epochs"], "key")
    "did you mean 'lr'? Allowed: lr, epochs"
    """
    names = list(allowed)
    likely = _likely(word, names)
    proposed = instead(kind, word)
    near = [] if proposed else _by_meaning(word, names, kind)
    proposed = proposed or (None if near else absent(word))
    answered = bool(proposed or near)
    near = near or ([] if proposed else [repr(name) for name in _by_spelling(likely)])
    if near:
        proposed = f"did you mean {' or '.join(near)}?"
    elif proposed:
        proposed = f"{proposed}."
    return " ".join(
        filter(None, (proposed, _listed([] if answered else list(likely)[:4], names, listed_by)))
    )


def _by_meaning(word: str, names: list[str], kind: str) -> list[str]:
    """What the word is called here, as it is to be typed."""
    by_plain = {plain(name): name for name in names}
    for key in keys(word):
        if key and key in by_plain:
            return [repr(by_plain[key])]
        if key in SETTINGS:
            break
    near = []
    for meaning in meanings(word):
        key, _, value = meaning.partition("=")
        if plain(key) in by_plain:
            name = by_plain[plain(key)]
            near.append(repr(_typed(kind, name, value) if value else name))
    return near[:2]


def _typed(kind: str, name: str, value: str) -> str:
    """A setting with its value, as a flag, a line of a recipe or an argument."""
    return {"flag": f"{name} {value}", "key": f"{name}: {value}"}.get(kind, f'{name}="{value}"')


def _likely(given: str, names: list[str]) -> dict[str, float]:
    """How alike each name is to what was given, 0 to 1, the likeliest first."""
    word = plain(given)
    likeness = {}
    for name in names:
        alike = SequenceMatcher(None, word, plain(name)).ratio()
        begins = len(word) >= 3 and plain(name).startswith(word)
        likeness[name] = max(alike, 0.9) if begins else alike
    return dict(sorted(likeness.items(), key=lambda item: -item[1]))


def _by_spelling(likeness: Mapping[str, float]) -> list[str]:
    best = max(likeness.values(), default=0.0)
    return [name for name in likeness if likeness[name] == best >= 0.6][:3]


def _listed(nearest: list[str], names: list[str], listed_by: str) -> str:
    """All names where they are few; else the nearest, and the command that lists all."""
    if len(names) <= FEW:
        return f"Allowed: {', '.join(names)}"
    where = f"`{listed_by}` lists all {len(names)}" if listed_by else f"{len(names)} in all"
    return f"nearest: {', '.join(nearest)}; {where}" if nearest else where
