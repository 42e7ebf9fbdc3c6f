"""A folder is a table: the file name is the name a user types.

`backbones/`, `tasks/`, `data/` and `runtimes/` are the things this library lets you add to, `int8/`
holds the quantizers of runtimes, and `cli/` the verbs, which are listed in the help too. Each holds
one file per entry; adding an entry is adding a file. Its contract is a Protocol in the folder's
`__init__.py`, which also has a `find` of that type. `names` imports nothing, but other functions
ask every entry for something, so an entry imports what may be missing inside its functions. Files
that begin with an underscore are parts of others, not entries.
"""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from .errors import UsageError, suggest


def names(folder: str) -> list[str]:
    """The entries of a folder, without importing any: names("runtimes") -> ["onnx"]."""
    files = [file for place in _places(folder) for file in place.iterdir()]
    return sorted(f.stem for f in files if f.suffix == ".py" and not f.name.startswith("_"))


def find(folder: str, name: str) -> ModuleType:
    """The module of one entry; `UsageError` with the nearest name if there is none."""
    if name not in names(folder):
        raise UsageError(f"no {name!r} in {folder}: {suggest(name, names(folder))}")
    return import_module(f"{__package__}.{folder}.{name}")


def constant(folder: str, name: str, key: str) -> object:
    """A literal at the top level of an entry's file, without importing it.

    >>> constant("tasks", "ssd", "SIZE")
    (320, 320)
    """
    files = [place / f"{name}.py" for place in _places(folder)]
    text = next(file for file in files if file.is_file()).read_text(encoding="utf-8")
    assignment = re.search(rf"^{key}(: [^=]+)? = (?P<value>.+)$", text, re.MULTILINE)
    if assignment is None:
        raise AttributeError(f"{folder}/{name}.py has no line that begins with {key} =")
    return ast.literal_eval(assignment["value"])


def _places(folder: str) -> list[Path]:
    """Where the files of a table lie: its package's path, to which a folder can be added."""
    package = find_spec(f"{__package__}.{folder}")
    places = None if package is None else package.submodule_search_locations
    return [Path(place) for place in places or ()]
