"""An exported file of a stranger, or of another day, before its runtime's parser sees it.

Parsers in native code crash on damaged files, and one of them runs code that a file holds. So first
the description beside the file is read and checked, then the file's hash is compared with the one
in it, and last the parser is called; whatever it raises becomes a `ModelError` that names the file.
"""

import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import FleetnetError, ModelError
from ..facts import OWN_HASH, Facts, check_own_hash, sealed
from ..reading import DESCRIPTION, MODEL, check_regular, from_json, hash_of, read_bytes, to_json

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


def signed(document: Mapping[str, Any]) -> str:
    """The text of a sidecar, with the hash of its own content."""
    return to_json(sealed(document), indent=1, ensure_ascii=False) + "\n"


def read_sidecar(path: Path) -> Facts:
    """The description beside an exported file, each key checked.

    Raises `ModelError` where there is none, it is damaged or changed, or it describes another file.
    """
    beside = path.with_suffix(".json")
    try:
        about = from_json(read_bytes(beside, DESCRIPTION))
    except OSError as error:
        reason = (
            ""
            if isinstance(error, FileNotFoundError)
            else f", which cannot be read: {error.strerror}"
        )
        raise ModelError(
            f"{path} needs {beside.name} beside it, as export wrote it{reason}"
        ) from error
    except ValueError as error:
        raise ModelError(f"{beside} is damaged: it is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise ModelError(f"{beside} is damaged: it is no mapping, but {type(about).__name__}")
    facts = Facts.from_json(about, beside)
    check_own_hash(about, beside)
    described = facts.file.name if facts.file is not None else None
    if described is not None and Path(described).suffix != path.suffix:
        raise ModelError(
            f"{beside} describes {described!r}, not {path.name}: files of two "
            "runtimes need two folders"
        )
    return facts


def check_hash(path: Path, facts: Facts) -> None:
    """`ModelError` unless a file is the one that its description was written for; older ones hold no hash."""
    expected = None if facts.file is None else facts.file.sha256
    if expected is None:
        return
    beside = path.with_suffix(".bin")  # what some formats keep their weights in
    # Other files of the same stem, such as a copy, are no parts.
    candidates = [
        files(path),
        [path, beside] if beside.is_file() else [],
        [] if path.is_dir() else [path],
    ]
    try:
        if any(hash_of(parts) == expected for parts in candidates if parts):
            return
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    raise ModelError(
        f"{path} is not the file that {path.with_suffix('.json').name} was written for: its hash "
        "is another, so it is damaged, or was replaced. Export it anew; if the change was meant, "
        f"delete the keys sha256 and {OWN_HASH} there"
    )


def checked(path: Path, *, needed: bool = True) -> Facts | None:
    """The description beside a file whose hash fits; None where there is none, unless it is `needed`."""
    beside = path.with_suffix(".json")
    if not needed and not beside.exists():
        return None
    facts = read_sidecar(path)
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    check_hash(path, facts)
    return facts


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
    run = _attempt(name, path, open_file)
    return lambda image: _attempt(name, path, lambda: run(image))


def _attempt(name: str, path: Path, call: Callable[[], Value]) -> Value:
    """What a call into a runtime gives."""
    try:
        return call()
    except FleetnetError:
        raise
    except Exception as error:  # parsers of damaged files raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path}: {name} cannot use this file: {reason}") from error
