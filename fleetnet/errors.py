"""What goes wrong for a user, as exceptions: each says what was given, what is allowed, and where.

The class decides the exit code of the command line (see `cli/`); code that uses the library catches `FleetnetError`
or the builtin that each class also is.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher


class FleetnetError(Exception):
    exit_code = 1  # failure at run time


class WriteError(FleetnetError, OSError):
    """A file that cannot be written: the disk is full, the folder is gone or not ours."""


class UsageError(FleetnetError, ValueError):
    """An unknown verb, flag, recipe key or option value."""

    exit_code = 2


class DataError(FleetnetError, ValueError):
    """Images or annotations that cannot be used; the message names the file and, where there is one, the line."""

    exit_code = 3


class ModelError(FleetnetError, ValueError):
    """An unknown model, weights of another model, or a shape that a network cannot take."""

    exit_code = 4


class ExportError(FleetnetError, RuntimeError):
    """An export that failed, or an exported file that does not compute what the model computes."""

    exit_code = 5


def choose(given: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest allowed names, and all of them where they are few.

    >>> choose("fasternet_to", ["fasternet_t0", "repvit_m0_9"])
    "did you mean 'fasternet_t0'? Allowed: fasternet_t0, repvit_m0_9"
    """
    names = list(allowed)
    likeness = {name: SequenceMatcher(None, given.lower(), name.lower()).ratio() for name in names}
    best = max(likeness.values(), default=0.0)
    near = [name for name in names if likeness[name] == best >= 0.5][:3]
    shown = names if len(names) <= 40 else near or names[:40]
    listed = ", ".join(shown) + ("" if len(shown) == len(names) else f" ... ({len(names)} in all)")
    return (f"did you mean {' or '.join(map(repr, near))}? " if near else "") + f"Allowed: {listed}"
