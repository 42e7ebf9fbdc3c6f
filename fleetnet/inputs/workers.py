"""Worker processes that read images, none of which is waited for without end.

A worker that died is named with the signal and the file it read. One that stands still is said
while we wait, and ended after a limit.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import sharedctypes
from multiprocessing.process import BaseProcess
from types import FrameType

import torch
from torch.utils.data import DataLoader, get_worker_info

from ..errors import FleetnetError
from .dataset import Batch, ImageDataset, Item
from .handover import SHARED_MEMORY

LEFT = 2.0  # seconds that workers get to end by themselves
SAID_EVERY = 30.0  # seconds of waiting between two lines
HINT = "--workers 0 reads in this process, and shows where"
HINTS = {  # by the signal
    "SIGKILL": "The memory ran out, or somebody ended it: try fewer --workers or a smaller "
    "--batch-size",
    "SIGBUS": f"Shared memory ran out: give {SHARED_MEMORY} more (docker run --shm-size 1g), or "
    "--workers 0",
}
Say = Callable[[str], None]


class Positions:
    """Which sample each worker reads, for the process that waits for it."""

    def __init__(self, workers: int):
        self.pids = [0] * workers
        self.samples = sharedctypes.RawArray("q", workers)
        self.parent = os.getpid()

    def start(self, batches: "DataLoader[Item | str]") -> Iterator[Batch]:
        """Start the workers, and note the number of each.

        They cannot tell it themselves: one that dies before its first line would not be missed.
        """
        for worker in range(len(self.pids)):
            self.pids[worker], self.samples[worker] = 0, -1
        iterator = iter(batches)
        for worker, process in enumerate(getattr(iterator, "_workers", ())):
            self.pids[worker] = process.pid
        return iterator

    def started(self, worker: int) -> None:
        """Called first in a worker.

        Ctrl-C reaches all processes of a group, and so does what ends a group: workers are in one
        of their own, since whoever waits for them may need more batches to finish a step.
        """
        with suppress(AttributeError, OSError):  # Windows
            os.setpgid(0, 0)
        threading.Thread(target=_leave_with, args=[self.parent], daemon=True).start()

    def reads(self, index: int) -> None:
        """Called in a worker before it opens the picture of a sample; elsewhere nothing happens."""
        info = get_worker_info()
        if info is not None:
            self.samples[info.id] = index

    def read(self, data: ImageDataset, pids: Sequence[int] = ()) -> str:
        """ "process 4711: photos/a.jpg" for each worker, or those of `pids`.

        "" if none has begun.
        """
        of_workers = [
            f"process {pid}: {_named(data, index)}"
            for pid, index in zip(self.pids, self.samples, strict=True)
            if pid and (not pids or pid in pids)
        ]
        return "; ".join(of_workers)

    def died(self) -> list[tuple[int, str]]:
        """The number of each worker that ended otherwise than well, and how, in words."""
        if not hasattr(os, "waitid"):  # Windows
            return []
        deaths: list[tuple[int, str]] = []
        for pid in filter(None, self.pids):
            try:
                about = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # somebody asked before
                continue
            if about is None or not about.si_status:
                continue
            if about.si_code == os.CLD_EXITED:
                deaths.append((pid, f"ended with code {about.si_status}"))
            else:
                deaths.append((pid, _of_signal(about.si_status)))
        return deaths

    def end(self) -> None:
        """End the workers at once: one that is stopped heeds no other signal."""
        for child in self.children():
            child.kill()
            child.join(5)

    def children(self) -> list[BaseProcess]:
        """The workers that have not ended."""
        ours = set(self.pids)
        return [child for child in multiprocessing.active_children() if child.pid in ours]


def _leave_with(parent: int) -> None:
    """End this process when the one that it reads for is gone, killed by SIGKILL as an example.

    Torch's workers notice it too, and then wait for ever until somebody takes their last batches.
    """
    while os.getppid() == parent:
        time.sleep(LEFT)
    os._exit(1)


def _named(data: ImageDataset, index: int) -> str:
    """The file of a sample, or its number where the picture is made and not read."""
    if index < 0:
        return "nothing yet"
    image = data.split.samples[index].image
    return f"sample {index}" if callable(image) else str(image)


def _of_signal(number: int) -> str:
    return f"was ended by the signal {signal.Signals(number).name} ({signal.strsignal(number)})"


def patient(batches: Iterable[Batch], say: Say | None = None) -> Iterator[Batch]:
    """The batches of `batches_of`, or of anything else.

    `say` gets a line every half minute of waiting. Raises `FleetnetError` for a worker that died,
    with its signal and the file it read, and for one that takes longer than their limit.
    """
    if isinstance(batches, DataLoader) and isinstance(batches.dataset, ImageDataset):
        positions = batches.dataset.watcher
        if isinstance(positions, Positions):
            yield from _watched(batches, _Watch(say, positions, batches.dataset, batches.timeout))
            return
    yield from batches


def _watched(batches: "DataLoader[Item | str]", watch: "_Watch") -> Iterator[Batch]:
    with _noticing(watch), _ending(watch):
        iterator = watch.positions.start(batches)
        while True:
            watch.since = time.monotonic()
            try:
                watch.check()
                batch = next(iterator)
            except StopIteration:
                return
            except FleetnetError as error:
                raise _as_in_worker(error) from error
            except (RuntimeError, EOFError, OSError, _WorkerDied) as error:
                watch.since = None
                watch.look_for_deaths(error)
                explanation = _explained(error, batches, watch)
                if explanation is None:
                    raise
                watch.ended = True
                watch.positions.end()
                raise FleetnetError(explanation) from error
            watch.since = None
            yield batch


def _as_in_worker(error: FleetnetError) -> FleetnetError:
    """An error as it was before torch wrote the worker and its traceback before the words."""
    kind = type(error)
    _, _, words = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    return kind(words.rstrip("\n"))


@contextmanager
def _ending(watch: "_Watch") -> Iterator[None]:
    """Leave no worker where whoever goes through the batches stops before the last one.

    Torch lets each of them finish the picture that it reads, and waits up to 5 s for one after the
    other: that is cut short.
    """
    try:
        yield
    except BaseException:
        watch.since = None  # a signal that comes now raises nothing more
        watch.ended = True
        threading.Timer(LEFT, _kill, [watch.positions.children()]).start()
        raise


def _kill(children: Sequence[BaseProcess]) -> None:
    """End what is left of some processes; another thread asks how they ended."""
    for child in children:
        with suppress(ValueError):  # it was closed
            if child.is_alive():
                child.kill()


class _WorkerDied(Exception):
    """Raised where we wait for a batch, from the handler of the signal that a child has ended."""


@contextmanager
def _noticing(watch: "_Watch") -> Iterator[None]:
    """While it lasts, a worker that dies is noticed at once if we wait for a batch.

    Else it is noticed when we do so next. Torch's own handler raises wherever the program is, such
    as in the middle of a step of the training.
    """
    # Else it would be set when the first worker starts.
    torch.utils.data._utils.signal_handling._set_SIGCHLD_handler()
    before: Callable[[int, FrameType | None], object] | int | None = (
        None  # the handler that was there
    )
    with suppress(ValueError, AttributeError):  # in another thread than the main one; on Windows
        before = signal.signal(signal.SIGCHLD, lambda *_: watch.check())
    try:
        yield
    finally:
        watch.since = None
        watch.over.set()
        if before is not None:
            # Torch's handler would raise another error for the same worker wherever the program is
            # by then, when the signal comes late (a core is written first). It asks its workers
            # without the signal too.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if watch.ended else before)


class _Watch(threading.Thread):
    """Says that we wait for a batch, and for what, as long as `since` is not None.

    After `limit` seconds torch gives up, but not while it fetches from a worker what that shares: a
    worker that is stopped then never answers. It is ended some seconds later.
    """

    def __init__(self, say: Say | None, positions: Positions, data: ImageDataset, limit: float):
        super().__init__(daemon=True)
        self.say = say
        self.positions = positions
        self.data = data
        self.limit = limit
        self.late = False  # whether the workers were ended for this
        self.since: float | None = None
        self.over = threading.Event()
        self.ended = False  # whether a worker died or was too slow, and all of them were ended
        # kept, since a process can be asked only once how it ended
        self.deaths: list[tuple[int, str]] = []
        self.start()

    def check(self) -> None:
        """Raise `_WorkerDied` if we wait for a batch and a worker has died."""
        if self.since is not None and not self.deaths:
            self.deaths = self.positions.died()
            if self.deaths:
                raise _WorkerDied

    def look_for_deaths(self, error: BaseException) -> None:
        """Whether a worker died behind a connection that broke.

        It breaks before the worker has ended, and its signal comes after that.
        """
        is_of_connection = isinstance(error, EOFError | OSError) and "Caught" not in str(error)
        deadline = time.monotonic() + LEFT
        while is_of_connection and not self.deaths and time.monotonic() < deadline:
            self.deaths = self.positions.died()
            time.sleep(0.01)

    def run(self) -> None:
        said = 0.0
        while not self.over.wait(min(1.0, SAID_EVERY / 4)):
            since, now = self.since, time.monotonic()
            if since is None:
                continue
            if self.say is not None and now - max(since, said) >= SAID_EVERY:
                said = now
                last_read = self.last_read() or "none"
                self.say(f"waiting for images since {now - since:.0f} s; last read by {last_read}")
            if self.limit and now - since > self.limit + LEFT and not self.late:
                self.late = True
                _kill(self.positions.children())

    def last_read(self, pids: Sequence[int] = ()) -> str:
        """What each worker read last, or those of `pids`; "" if none has begun."""
        return self.positions.read(self.data, pids)


def _explained(
    error: BaseException, batches: "DataLoader[Item | str]", watch: "_Watch"
) -> str | None:
    """What happened to the workers, in words, if that is what an error is about."""
    if watch.deaths and not watch.late:
        return _of_deaths(watch)
    text = str(error)
    last_read = watch.last_read() or "none has begun"
    if watch.late or "DataLoader timed out" in text:
        return (
            f"no batch came within {batches.timeout / 60:g} minutes from the {batches.num_workers} "
            f"processes that read images; last read by {last_read}. Give --timeout more minutes, "
            "or --workers 0"
        )
    if "DataLoader worker (pid" in text and "Caught" not in text:
        reason = text.strip().rstrip(".")
        return f"a process that read images died: {reason}; last read by {last_read}. {HINT}"
    return None


def _of_deaths(watch: "_Watch") -> str:
    """Which workers died, how, of which file, and what to try."""
    each = "; another ".join(
        f"{how}; last read by {watch.last_read([pid])}" for pid, how in watch.deaths
    )
    hints = [hint for name, hint in HINTS.items() if any(name in how for _, how in watch.deaths)]
    return f"a process that read images {each}. {hints[0] if hints else HINT}"
