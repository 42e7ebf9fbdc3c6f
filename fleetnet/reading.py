"""Files of others: only regular ones are opened, up to a size, and JSON is read and written without NaN.

A path may name a pipe, which waits for a writer for ever, a device such as /dev/zero, which has no
end, or a link to one. Whatever this package reads from a path goes through here, or is checked here
before a library opens it.
"""

import errno
import hashlib
import io
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

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
WINDOW = 1 << 16  # bytes that are read at a time of a member of an archive
OPEN_ARCHIVES = 32  # of a process, at a time
_SEEKING = threading.Lock()  # on systems that cannot read at a place


def open_regular(path: str | Path, most: int | None = None) -> BinaryIO:
    """A file open for reading, if it is a regular one of at most `most` bytes.

    Raises `OSError`, whose `strerror` says in words what is wrong, also for a pipe, a device or a
    folder.
    """
    return os.fdopen(_opened(path, most), "rb")


def _opened(path: str | Path, most: int | None) -> int:
    """The descriptor of a regular file that is opened for reading; `OSError`."""
    _check(os.stat(path), path, most)  # first: to open some devices does something
    # It may have been replaced since; without blocking, a pipe is opened at once and refused below.
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        _check(os.fstat(descriptor), path, most)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_if(path: str | Path, start: bytes, most: int) -> bytes | None:
    """The content of a regular file that begins with `start` and has at most `most` bytes.

    None of another one, of which only the start is read. Raises `OSError` as `open_regular`, whose
    file would take three times as long as this.
    """
    descriptor = _opened(path, None)
    try:
        if os.read(descriptor, len(start)) != start:
            return None
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size > most:
            return None
        os.lseek(descriptor, 0, os.SEEK_SET)
        content = os.read(descriptor, size)
        while len(content) < size and (piece := os.read(descriptor, size - len(content))):
            content += piece
        return content
    finally:
        os.close(descriptor)


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


# ---- members of archives -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that holds others one after the other, as it was when their places were looked up."""

    path: Path
    size: int  # bytes
    modified: int  # nanoseconds, as `os.stat` has them

    @classmethod
    def at(cls, path: Path) -> "Archive":
        """The regular file at a path; `OSError` as of `open_regular`."""
        about = os.stat(path)
        _check(about, path, None)
        return cls(path, about.st_size, about.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive, which is read from its place there.

    It is small and picklable: the archive is opened by whoever reads, once in a process. What is
    read has a place of its own, so that threads and forked processes do not disturb each other.
    """

    archive: Archive
    offset: int  # bytes from the start of the archive
    size: int  # bytes
    name: str  # in the archive

    def __str__(self) -> str:
        return f"{self.archive.path}: {self.name}"

    def read(self, most: int = MODEL) -> bytes:
        """The content; `OSError` where it has more than `most` bytes, or the archive is not as it was."""
        if self.size > most:
            raise OSError(
                errno.EFBIG, f"it has {_size(self.size)}, and at most {_size(most)} are read"
            )
        content = _read_at(_descriptor(self.archive), self.size, self.offset)
        if len(content) < self.size:
            raise OSError(errno.EIO, f"{str(self.archive.path)!r} ends before it does")
        return content

    def open(self, window: int = WINDOW) -> BinaryIO:
        """The member as a file open for reading, of which `window` bytes are read at a time; `OSError`."""
        return cast(BinaryIO, io.BufferedReader(_Inside(self), window))


class _Inside(io.RawIOBase):
    """The bytes of a member as a file."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.descriptor = _descriptor(member.archive)
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.member.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.place = start + offset
        return self.place

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(self.member.size - self.place, 0))
        content = _read_at(self.descriptor, length, self.member.offset + self.place)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


class _Descriptor:
    """An open file, closed when the last that reads from it has let go of it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _descriptor(archive: Archive) -> _Descriptor:
    """The open archive; `OSError` where it is not the one whose members were looked up."""
    descriptor = _Descriptor(_opened(archive.path, None))
    about = os.fstat(descriptor.number)
    if (about.st_size, about.st_mtime_ns) != (archive.size, archive.modified):
        raise OSError(
            errno.EIO, f"{str(archive.path)!r} was changed since its members were looked up"
        )
    return descriptor


def _read_at(descriptor: _Descriptor, length: int, offset: int) -> bytes:
    """Up to `length` bytes from a place in an open file; fewer only where it ends.

    It is held meanwhile, so that another thread which opens many archives does not close it.
    """
    pieces: list[bytes] = []
    while length > 0 and (piece := _pread(descriptor.number, length, offset)):
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _SEEKING:  # Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


# ---- text and JSON -----------------------------------------------------------------------------


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


def hash_of(files: Iterable[Path | Member]) -> str:
    """SHA-256 of the content of files, one after the other, in hexadecimal digits; `OSError` as of `open_regular`."""
    hashed = hashlib.sha256()
    for file in files:
        for block in [file.read()] if isinstance(file, Member) else blocks(file):
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
