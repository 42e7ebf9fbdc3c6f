"""The description beside an exported file: read and checked before the file's parser sees the file.

First every key is held to its type, then the hash of the description to its content, then the
file's hash to the one in it. What is wrong becomes a `ModelError` that names the file.
"""

from collections.abc import Mapping
from pathlib import Path

from ..errors import ModelError
from ..facts import NEEDED, OWN_HASH, Facts, check_own_hash, sealed
from ..reading import DESCRIPTION, Fields, from_json, hash_of, read_bytes, to_json
from ..runtimes import files

# Keys that stand in every description, also of a network that cannot describe itself.
OURS = ("sha256", "checkpoint_sha256", OWN_HASH)


def signed(document: Mapping[str, object]) -> str:
    """The text of a sidecar, with the hash of its own content."""
    return to_json(sealed(document), indent=1, ensure_ascii=False) + "\n"


def read_sidecar(path: Path) -> Facts:
    """The description beside an exported file, each key checked.

    Raises `ModelError` where there is none, it is damaged or changed, or it describes another file.
    """
    return _checked_facts(path, _document(path))


def _document(path: Path) -> Fields:
    """What stands beside an exported file, of whichever program; `ModelError` where it is no mapping."""
    beside = path.with_suffix(".json")
    try:
        about = from_json(read_bytes(beside, DESCRIPTION))
    except OSError as error:
        reason = ""
        if not isinstance(error, FileNotFoundError):
            reason = f", which cannot be read: {error.strerror}"
        raise ModelError(
            f"{path} needs {beside.name} beside it, as export wrote it{reason}"
        ) from error
    except ValueError as error:
        raise ModelError(f"{beside} is damaged: it is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise ModelError(f"{beside} is damaged: it is no mapping, but {type(about).__name__}")
    return about


def _checked_facts(path: Path, about: Fields) -> Facts:
    """The description of an exported file; `ModelError` where it was changed, or is of another file."""
    beside = path.with_suffix(".json")
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
    """`ModelError` unless a file is the one that its description was written for.

    Older descriptions hold no hash.
    """
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
    """The description beside a file whose hash fits; None without one, unless it is `needed`."""
    if not needed and not path.with_suffix(".json").exists():
        return None
    about = _document(path)
    # A JSON file of another program may have the same stem.
    if not needed and not any(key in about for key in (*NEEDED, *OURS)):
        return None
    facts = _checked_facts(path, about)
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    check_hash(path, facts)
    return facts
