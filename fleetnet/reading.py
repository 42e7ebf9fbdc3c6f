"""Files of others: only regular ones are opened, up to a size, and JSON is read and written without NaN.

A path may name a pipe, which waits for a writer for ever, a device such as /dev/zero, which has no
end, or a link to one. Whatever this package reads from a path goes through here, or is checked here
before a library opens it.
"""

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MEGABYTE = 1_000_000
SMALL = 16 * MEGABYTE  # settings, recipes, layouts, lists of classes
DESCRIPTION = 64 * MEGABYTE  # what lies beside a model file; 20,000 class names are 1 MB
HISTORY = 512 * MEGABYTE  # the log of a run, a line an epoch
MODEL = 4_000 * MEGABYTE  # an exported file; ONNX holds at most 2 GB
WEIGHTS = 64_000 * MEGABYTE  # a checkpoint, which is mapped into memory
ANNOTATIONS = 4_000 * MEGABYTE  # COCO's training set has 450 MB, the largest public ones have 2 GB
# An object of JSON or YAML, by its keys: each value is checked where it is read.
Fields = Mapping[str, Any]
PIECE = 1 << 20  # bytes that are read at a time


def open_regular(path: str | Path, most: int | None = None) -> BinaryIO:
    """A file open for reading, if it is a regular one of at most `most` bytes.

    Raises `OSError`, whose `strerror` says in words what is wrong, also for a pipe, a device or a
    folder.
    """
    _check(os.stat(path), path, most)  # first: to open some devices does something
    # It may have been replaced since; without blocking, a pipe is opened at once and refused below.
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        _check(os.fstat(descriptor), path, most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | Path, most: int | None = None) -> None:
    """`OSError`, as of `open_regular`, for a file that a library is about to open itself."""
    _check(os.stat(path), path, most)


def _check(about: os.stat_result, path: str | Path, most: int | None) -> None:
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(about.st_mode):
        raise OSError(
            errno.EINVAL, f"it is not a regular file, but {_kind(about.st_mode)}", str(path)
        )
    if most is not None and about.st_size > most:
        raise OSError(
            errno.EFBIG,
            f"it has {_size(about.st_size)}, and at most {_size(most)} are read",
            str(path),
        )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for fits, name in kinds.items() if fits(mode)), "something else")


def _size(number: int) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a regular file; `OSError` as of `open_regular`."""
    with open_regular(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        # As much memory as is asked for is taken at once, so `most` is not asked for.
        pieces = [file.read(min(size, most) + 1)]
        length = len(pieces[0])
        # some files of the system say that they are empty
        while length <= most and (piece := file.read(PIECE)):
            pieces.append(piece)
            length += len(piece)
    if length > most:
        raise OSError(errno.EFBIG, f"it has more than the {_size(most)} that are read", str(path))
    return b"".join(pieces)


def read_text(path: str | Path, most: int) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark; `OSError`, or `UnicodeDecodeError`."""
    return read_bytes(path, most).decode("utf-8-sig")


def head_of(path: str | Path, size: int) -> bytes:
    """The first `size` bytes of a regular file; none of one that cannot be read, which is told where it is read."""
    try:
        with open_regular(path) as file:
            return file.read(size)
    except (OSError, ValueError):
        return b""


def blocks(path: str | Path, size: int = PIECE) -> Iterator[bytes]:
    """The content of a regular file of any size, piece by piece; `OSError` as of `open_regular`."""
    with open_regular(path) as file:
        while block := file.read(size):
            yield block


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 of the content of files, one after the other, in hexadecimal digits; `OSError` as of `open_regular`."""
    hashed = hashlib.sha256()
    for file in files:
        for block in blocks(file):
            hashed.update(block)
    return hashed.hexdigest()


def to_json(value: object, **settings: Any) -> str:
    """JSON that every reader takes: numbers that are not finite become null. `settings` are those of `json.dumps`."""
    try:
        return json.dumps(value, allow_nan=False, **settings)
    except ValueError:  # a number that is not finite, somewhere
        return json.dumps(_finite(value), allow_nan=False, **settings)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def from_json(text: str | bytes) -> Any:
    """What JSON says; `ValueError` for what is none, also for one nested too deep. NaN and infinity become None."""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def links_out(folder: str | Path) -> list[Path]:
    """The links in a folder, at any depth, that lead out of it; what is behind a linked folder is not looked at."""
    root = os.path.realpath(folder)
    paths = []
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            if os.path.islink(path) and not _is_inside(os.path.realpath(path), root):
                paths.append(Path(path))
    return sorted(paths)


def leads_out(path: str | Path, folder: str | Path) -> bool:
    """Whether a path below a folder is, through links, a file or folder elsewhere."""
    return not _is_inside(os.path.realpath(path), os.path.realpath(folder))


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a folder or below it, by its names alone: links are the user's own."""
    return _is_inside(os.path.abspath(path), os.path.abspath(folder))


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))
