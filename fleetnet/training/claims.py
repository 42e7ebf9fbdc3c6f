"""A run folder belongs to one process at a time, which says so in a file of the folder.

The file `claim.json` names the host, the process and when that process started, and appears at once
with all of it. Where the process is gone, or another one has its number by now, the claim is stale
and taken over. What runs on another host cannot be known from here: then the message says which
file to remove.
"""

import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from ..errors import UsageError, WriteError
from ..files import process_runs, remove_leftovers, writing
from ..launched import launched
from ..reading import SMALL, Fields, from_json, read_text, to_json

NAME = "claim.json"
PATIENCE = 2.0  # seconds that a claim may stay without content: whoever writes it may be about to


@dataclass
class Claim:
    """The right to write into a run folder; as a context it is given back at the end."""

    folder: Path
    token: str  # tells this claim from all others
    made: bool  # whether the folder was made for it

    def check(self) -> None:
        """`WriteError` if the folder is not here any more, or if another process has taken it."""
        owner = _read(self.folder / NAME)
        if owner.get("token") == self.token:
            return
        if owner:
            raise WriteError(
                f"{self.folder} was taken over by {_who(owner)} while this run was writing to it"
            )
        raise WriteError(
            f"{self.folder} was deleted or renamed while this run was writing to it: "
            "nothing more is written; if it was renamed, continue it there with --resume"
        )

    def release(self) -> None:
        """Give the folder back; remove it if it was made for this claim and nothing is in it."""
        if _read(self.folder / NAME).get("token") != self.token:
            return
        (self.folder / NAME).unlink(missing_ok=True)
        if self.made:
            with suppress(OSError):  # something is in it
                self.folder.rmdir()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def claim(folder: Path) -> Claim:
    """Claim a run folder, made where there is none, and remove what killed runs left half written.

    Raises `UsageError` naming host and process where another one runs in it, `WriteError` where it
    cannot be written.
    """
    made = not folder.exists()
    with writing(folder / NAME):
        folder.mkdir(parents=True, exist_ok=True)
        token = uuid.uuid4().hex
        with _alone(folder):
            if not _write(folder, token):
                refuse_if_claimed(folder)
                (folder / NAME).unlink(missing_ok=True)  # a stale one
                if not _write(folder, token):  # another host was faster
                    refuse_if_claimed(folder)
                    raise UsageError(
                        f"{folder} was claimed by another run at the same moment: "
                        "give another --run"
                    )
    remove_leftovers(folder)
    return Claim(folder, token, made)


def refuse_if_claimed(folder: Path) -> None:
    """`UsageError` naming host and process if a run goes on in a folder, or could elsewhere."""
    path = folder / NAME
    owner, waited = _read(path), time.monotonic()
    while not owner and path.exists() and time.monotonic() - waited < PATIENCE:
        time.sleep(0.05)
        owner = _read(path)
    if not owner:
        return
    if owner.get("host") != _host():
        raise UsageError(
            f"{folder} belongs to a run of {_who(owner)}. Whether it still runs cannot be "
            f"known from here, {_host()}: if it does not, remove {path} and try again"
        )
    if _runs(owner):
        raise UsageError(
            f"{folder} belongs to a run that goes on: {_who(owner)}. Wait for it, "
            f"end it (kill {owner['process']}), or give another --run"
        )


def _write(folder: Path, token: str) -> bool:
    """Write the claim with all that is in it at once; False where there is one already."""
    about = {
        "host": _host(), "process": os.getpid(), "started": _started(os.getpid()), "token": token,
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip
    text, path = to_json(about) + "\n", folder / NAME
    temporary = folder / f".{NAME}.{os.getpid()}.tmp"
    temporary.write_text(text, encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this host at a time: two must not both take over the same stale claim."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network's file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> Fields:
    """What a claim says; empty where there is none, or none that is whole."""
    try:
        owner = from_json(read_text(path, SMALL))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("process"), int) else {}


def _runs(owner: Fields) -> bool:
    """Whether the process of a claim of this host is still there, not another of its number."""
    return process_runs(owner["process"]) and owner.get("started") == _started(owner["process"])


def _started(process: int) -> str | None:
    """When a process started, as text that no later process of its number has; None: unknown."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # field 22 of the whole line: clock ticks after the start of the system
        return f"{boot} {after_name[19]}"
    except (OSError, IndexError):
        pass
    if (ps := shutil.which("ps")) is None:
        return None
    answer = subprocess.run(
        [ps, "-o", "lstart=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def launcher() -> str | None:
    """The process of torchrun that started this one, as text that no other has; None: none did.

    It starts this one again where another one fails.
    """
    if not launched().by_torchrun:
        return None
    return f"process {os.getppid()} on {_host()}, started {_started(os.getppid())}"


def _host() -> str:
    return platform.node() or "an unnamed host"


def _who(owner: Fields) -> str:
    return f"process {owner['process']} on {owner.get('host')}, since {owner.get('since')}"
