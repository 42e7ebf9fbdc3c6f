"""A folder is a table: the file name is the name a user types.

`backbones/`, `tasks/`, `data/` and `runtimes/` are the four things this library lets you add to. Each holds one file
per entry; adding an entry is adding a file. A file is imported only when asked for, so that a missing runtime breaks
nothing but itself. Files that begin with an underscore are parts of others, not entries.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from .errors import UsageError, choose


def names(folder: str) -> list[str]:
    """The entries of a folder, without importing any: names("runtimes") -> ["onnx"]."""
    files = (Path(__file__).parent / folder).iterdir()
    return sorted(f.stem for f in files if f.suffix == ".py" and not f.name.startswith("_"))


def find(folder: str, name: str) -> ModuleType:
    """The module of one entry; `UsageError` with the nearest name if there is none."""
    if name not in names(folder):
        raise UsageError(f"no {name!r} in {folder}: {choose(name, names(folder))}")
    return import_module(f"{__package__}.{folder}.{name}")
