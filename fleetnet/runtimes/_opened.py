"""An exported file: its parts, and whatever its runtime's parser raises as a `ModelError`.

Parsers in native code crash on damaged files, and one of them runs code that a file holds: before
they see a file of a stranger, `deploy/sidecar.py` compares its hash with that in its description.
"""

import glob
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import FleetnetError, ModelError
from ..reading import MODEL, check_regular

Value = TypeVar("Value")


def files(path: Path) -> list[Path]:
    """All files that an exported file consists of: itself or what is in it, and parts of the same stem beside it."""
    whole = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    own = {".json", ".npz", path.suffix}
    return whole + sorted(
        f for f in path.parent.glob(f"{glob.escape(path.stem)}.*") if f.suffix not in own
    )


def size_of(path: Path) -> int:
    """Bytes of an exported file with all its parts."""
    return sum(file.stat().st_size for file in files(path))


def opened(
    name: str, open_file: Callable[[], Callable[[np.ndarray], Value]], path: Path
) -> Callable[[np.ndarray], Value]:
    """What `load` or `trace` of a runtime makes of a file.

    Whatever that raises, or a call of it, becomes a `ModelError`.
    """
    if not path.is_dir():
        try:
            check_regular(path, MODEL)
        except FileNotFoundError:
            pass  # the runtime says it, after what else is missing
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    run = attempt(name, path, open_file)
    return lambda image: attempt(name, path, lambda: run(image))


def attempt(name: str, path: Path, call: Callable[[], Value]) -> Value:
    """What a call into a runtime gives."""
    try:
        return call()
    except FleetnetError:
        raise
    except Exception as error:  # parsers of damaged files raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path}: {name} cannot use this file: {reason}") from error
