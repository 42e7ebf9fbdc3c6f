"""Files that are whole or not there, and what goes wrong with writing them in plain words.

A file is written beside its name as `.NAME.PID.tmp` and then renamed. A process that is killed
leaves that file behind: `remove_leftovers` knows those by their name and by the process that is
gone.
"""

import csv
import errno
import io
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import DiskFull, UsageError, WriteError

# a file or folder, with its process
TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp|\.(?:export|quantize|convert|sweep)-(\d+)-.*")
BUSY_SECONDS = 600  # a younger one is spared while any process has its number
# of this process; what is older is of one that had its number before, as in containers
BEGAN = time.time() - 1
FULL = (errno.ENOSPC, errno.EDQUOT)
ADDED = 24  # bytes that a name gets while its file is being written
SMALLEST_SPACE = 1 << 16  # bytes: with less left, a failure without a reason is one of space


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the place of `path` at the end, whole; on an error `path` stays as it was.

    Raises `WriteError` where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            file = temporary.open("wb")
        # only_full: whoever writes may read other files, which fail in their own words
        with writing(path, only_full=True), file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
        with writing(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, only_full: bool = False) -> Iterator[None]:
    """Turn what the system says of a failed write to `path` into a `WriteError`; with `only_full` only a full disk.

    Libraries that write files of their own often say nothing of the reason: then the space that is
    left tells.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno is None or (only_full and error.errno not in FULL):
            raise
        kind = DiskFull if error.errno in FULL else WriteError
        raise kind(_words(path, error)) from error
    except Exception as error:
        if _space(path) >= SMALLEST_SPACE:
            raise
        raise DiskFull(_words(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))) from error


@contextmanager
def beside(path: Path, kind: str) -> Iterator[Path]:
    """A folder to prepare `path` in, beside it, so that renaming cannot cross file systems; gone at the end.

    Makes the folder of `path` where there is none, which goes too unless something was put there,
    and removes what killed processes left there.
    """
    made = [place for place in path.parents if not os.path.lexists(place)]
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, deep=False)
            folder = Path(tempfile.mkdtemp(prefix=f".{kind}-{os.getpid()}-", dir=path.parent))
        try:
            with writing(path, only_full=True):
                yield folder
        except WriteError as error:  # of a file in it, which is to be beside `path`
            raise WriteError(str(error).replace(str(folder), str(path.parent))) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        for place in made:
            with suppress(OSError):  # it holds something by now
                place.rmdir()


@contextmanager
def filling(path: Path, kind: str) -> Iterator[Path]:
    """A folder to fill, which at the end is `path`, that is empty or not there; on an error `path` stays as it was.

    While it is filled it has the name of `path`, since what a folder is called may say what it
    holds, in a folder of `beside`. Raises `WriteError` where it cannot be written.
    """
    with beside(path, kind) as stage:
        folder = stage / path.name
        folder.mkdir()
        yield folder
        with writing(path):
            if path.is_dir():
                path.rmdir()
            folder.rename(path)


def _words(path: Path, error: OSError) -> str:
    if error.errno in FULL:
        return f"{path} cannot be written: the disk is full ({error.strerror}); free some space, or write elsewhere"
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"{path} cannot be written: its folder is not there"
    return f"{path} cannot be written: {error.strerror}"


def check_writable(path: str | Path, named: str, folder: bool = False) -> None:
    """`WriteError` unless a file can be written at `path` or, with `folder`, files in a folder there.

    `UsageError` for a folder where a file is wanted, and the other way round.

    To be asked before the work whose result goes there. `named` is what the user gave the path as,
    such as "--out". Nothing is left behind: what is tried is a small file in the nearest folder
    that exists.
    """
    wanted = Path(os.path.abspath(path))
    there = next(p for p in (wanted, *wanted.parents) if os.path.lexists(p))
    new = wanted.parts[len(there.parts) :]  # what is yet to be made
    said = f"{named} is {_shortened(path)!r}"
    if not new and folder != there.is_dir():
        raise UsageError(
            f"{said}, which is a {'file: give a folder' if folder else 'folder: give a file'}"
        )
    if new and not there.is_dir():
        raise WriteError(f"{said}, but {_shortened(there)} is a file, and no folder can be in it")
    place = there if there.is_dir() else there.parent
    try:
        longest = os.pathconf(place, "PC_NAME_MAX") - ADDED
        for name in new:
            if len(os.fsencode(name)) > longest:
                raise WriteError(
                    f"{said}, a name of {len(os.fsencode(name))} bytes; allowed: {longest}"
                )
        with tempfile.TemporaryFile(dir=place) as tried:
            tried.write(bytes(SMALLEST_SPACE))
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(
            f"{said}, where nothing can be written: {reason(error)}; give another {named}"
        ) from error


def _shortened(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= 120 else f"{text[:50]}...{text[-50:]}"


def reason(error: OSError) -> str:
    """What the system says, in words that say what to do."""
    number = error.errno
    if number in FULL:
        return f"the disk is full ({os.strerror(number)}); free some space"
    if number in (errno.EACCES, errno.EPERM):
        return "there is no permission"
    if number == errno.EROFS:
        return "it cannot be written to, only read"
    if number == errno.ENAMETOOLONG:
        return "the name is too long"
    return error.strerror or str(error)


def _space(path: Path) -> int:
    """Bytes left on the disk of a path; many where that cannot be told."""
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return SMALLEST_SPACE


def write_text(path: str | Path, text: str) -> None:
    """Write a text file that is never half there."""
    with replacing(Path(path)) as file:
        file.write(text.encode())


def write_rows(
    path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]
) -> None:
    """Write a CSV file with a line of columns and one for each row; a row may lack some of them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_line(path: Path, line: str) -> None:
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def remove_leftovers(folder: Path, deep: bool = True) -> list[Path]:
    """Remove what killed processes left half written in a folder and, if `deep`, below it; the paths removed."""
    removed = []
    for root, folders, files in itertools.islice(os.walk(folder), None if deep else 1):
        for name in [*files, *folders]:
            left, match = Path(root) / name, TEMPORARY.fullmatch(name)
            if match is None or _busy(left, int(match[1] or match[2])):
                continue
            if name in folders:
                folders.remove(name)
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
            removed.append(left)
    return removed


def _busy(left: Path, process: int) -> bool:
    """Whether a process may still be writing: one of that number is there, and the file is young.

    Our own may be of another thread, however long it takes.
    """
    try:
        written = left.lstat().st_mtime
        if process == os.getpid():
            return written >= BEGAN
        return process_runs(process) and time.time() - written < BUSY_SECONDS
    except OSError:  # it has gone in the meantime
        return True


def process_runs(process: int) -> bool:
    """Whether a process of this number is there and has not ended; where that cannot be told, it is."""
    if os.name != "posix":
        return True  # os.kill would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):  # not Linux
        return True
