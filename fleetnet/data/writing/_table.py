"""What the file of a writer holds, and how it is found by its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from ...errors import UsageError, suggest
from ...find import find as find_module
from ...find import names
from .. import Split
from ._album import Album


class Writer(Protocol):
    """What the file of a writer holds, all of it at its top level."""

    FORMAT: str  # of `fleetnet.data`, which reads what is written
    WRITES: str  # in a line
    TARGETS: tuple[str, ...]  # the kinds of annotation that it can hold, of `data.TARGETS`
    HOLDS: tuple[str, ...]  # what of annotations it keeps that others lose, of `_losses.PARTS`

    def write(self, splits: Mapping[str, Split], folder: Path, album: Album) -> None:
        """Write splits of one list of classes, by their names, or one by `WHOLE`, into a folder.

        The folder is there and empty. Pictures are put there by `album`. Raises `DataError` for
        names of classes that the format cannot hold.
        """


def find(name: str) -> Writer:
    """The writer of a format; `UsageError` with the nearest name if there is none."""
    if name not in names("data.writing"):
        raise UsageError(f"--to is {name!r}: {suggest(name, names('data.writing'))}")
    return cast(Writer, find_module("data.writing", name))
