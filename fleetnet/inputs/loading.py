"""Batches from processes that read images, none of which is waited for without end.

What can go wrong between two processes: there is no shared memory left (containers have 64 MB of
it), a worker dies of a signal, or it stands still. A batch that shared memory cannot hold goes
through the pipe instead. A worker that died is named with the signal and the file it read. One that
stands still is said while we wait, and ended after a limit.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import sharedctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from ..errors import FleetnetError
from .transforms import Batch, ImageDataset, Item, collate

MINUTES = 5.0  # that a batch may take
SAID_EVERY = 30.0  # seconds of waiting between two lines
# bytes: smaller tensors go through the pipe, since each shared one takes a file descriptor
SMALL = 1 << 16
SPARE = 1 << 20  # bytes of shared memory that others may take while a tensor is moved there
SHARED_MEMORY = "/dev/shm"
HINT = "--workers 0 reads in this process, and shows where"
HINTS = {  # by the signal
    "SIGKILL": "The memory ran out, or somebody ended it: try fewer --workers or a smaller "
    "--batch-size",
    "SIGBUS": f"Shared memory ran out: give {SHARED_MEMORY} more (docker run --shm-size 1g), or "
    "--workers 0",
}
Say = Callable[[str], None]


def free_shared_memory() -> int | None:
    """Bytes of shared memory that are left; None where that cannot be known."""
    try:
        about = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return about.f_bavail * about.f_frsize


class _HandedOver:
    """A batch on its way to another process, where it arrives as itself."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _arrived, tuple(_mapped(part, _by_value) for part in self.batch)


def _arrived(*parts: Any) -> Batch:
    return Batch(*(_mapped(part, _as_tensor) for part in parts))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A structure of dicts and lists with `change` applied to its leaves."""
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return change(value)


class _Bytes:
    """A tensor as its content, which is pickled, unlike the tensor, without shared memory."""

    def __init__(self, array: np.ndarray):
        self.array = array


def _by_value(leaf: Any) -> Any:
    return _Bytes(leaf.numpy()) if isinstance(leaf, Tensor) and not leaf.is_shared() else leaf


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf.array) if isinstance(leaf, _Bytes) else leaf


class HandOver:
    """What makes a batch of items in a worker, and puts its large tensors into shared memory as long as they fit.

    Without room there, torch loses the batch in a thread of the worker and the other side waits for
    ever, or the worker dies of a bus error while it copies: the room is looked for before, by one
    worker at a time.
    """

    def __init__(self, workers: int):
        self.turn = multiprocessing.Lock() if workers else None

    def __call__(self, items: Sequence[Item | str]) -> Any:
        batch = collate(items)
        if get_worker_info() is None or self.turn is None:
            return batch
        if self.turn.acquire(timeout=1.0):  # one that died in its turn does not give it back
            try:
                _mapped(batch.images, _share)
                _mapped(batch.targets, _share)
            finally:
                self.turn.release()
        return _HandedOver(batch)


def _share(leaf: Any) -> Any:
    size = leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0
    if size > SMALL:
        free = free_shared_memory()
        if free is None or free >= size + SPARE:
            try:
                leaf.share_memory_()
            except (RuntimeError, OSError):  # no room, or no more file descriptors: by the pipe
                return leaf
    return leaf


class Positions:
    """Which sample each worker reads, for the process that waits for it."""

    def __init__(self, workers: int):
        self.pids = sharedctypes.RawArray("q", workers)
        self.samples = sharedctypes.RawArray("q", workers)

    def started(self, worker: int) -> None:
        self.pids[worker], self.samples[worker] = os.getpid(), -1

    def reads(self, index: int) -> None:
        """Called in a worker before it opens the picture of a sample; elsewhere nothing happens."""
        info = get_worker_info()
        if info is not None:
            self.samples[info.id] = index

    def told(self, data: ImageDataset, pids: Sequence[int] = ()) -> list[str]:
        """ "process 4711: photos/a.jpg" for each worker, or those of `pids`."""
        lines = []
        for pid, index in zip(self.pids, self.samples, strict=True):
            if pid and (not pids or pid in pids):
                image = data.split.samples[index].image if index >= 0 else None
                what = (
                    "nothing yet"
                    if index < 0
                    else f"sample {index}"
                    if callable(image)
                    else str(image)
                )
                lines.append(f"process {pid}: {what}")
        return lines

    def died(self) -> list[tuple[int, str]]:
        """The number of each worker that ended otherwise than well, and how, in words."""
        found: list[tuple[int, str]] = []
        for pid in self.pids:
            if pid and hasattr(os, "waitid"):
                try:
                    about = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:  # somebody asked before
                    continue
                if about is not None and about.si_status:
                    exited = about.si_code == os.CLD_EXITED
                    how = (
                        f"ended with code {about.si_status}"
                        if exited
                        else _of_signal(about.si_status)
                    )
                    found.append((pid, how))
        return found

    def end(self) -> None:
        """End the workers at once: one that is stopped heeds no other signal."""
        for child in multiprocessing.active_children():
            if child.pid in list(self.pids):
                child.kill()
                child.join(5)


def _of_signal(number: int) -> str:
    return f"was ended by the signal {signal.Signals(number).name} ({signal.strsignal(number)})"


def batches_of(
    data: ImageDataset,
    batch_size: int,
    *,
    workers: int = 0,
    minutes: float = MINUTES,
    sampler: Iterable[int] | None = None,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Batches of a data set, in the sampler's order or in its own; go through them with `patient`.

    `workers` processes read images, none if it is 0; none of them may take more than `minutes` for
    a batch.
    """
    positions = Positions(workers) if workers else None
    data.positions = positions
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=workers,
        collate_fn=HandOver(workers),
        pin_memory=pin_memory,
        timeout=60 * minutes if workers else 0,
        worker_init_fn=None if positions is None else positions.started,
    )


def patient(batches: Any, say: Say | None = None) -> Iterator[Batch]:
    """The batches of `batches_of`, or of anything else; `say` gets a line every half minute of waiting.

    Raises `FleetnetError` for a worker that died, with its signal and the file it read, and for one
    that takes longer than their limit.
    """
    positions = getattr(getattr(batches, "dataset", None), "positions", None)
    if positions is None:
        yield from batches
        return
    watch = _Watch(say, positions, batches.dataset)
    with _noticing(watch):
        iterator = iter(batches)
        while True:
            watch.since = time.monotonic()
            try:
                watch.check()
                batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, _WorkerDied) as error:
                watch.since = None
                told = _explained(error, batches, positions, watch)
                if told is None:
                    raise
                watch.ended = True
                positions.end()
                raise FleetnetError(told) from error
            watch.since = None
            yield batch


class _WorkerDied(Exception):
    """Raised where we wait for a batch, from the handler of the signal that a child has ended."""


@contextmanager
def _noticing(watch: "_Watch") -> Iterator[None]:
    """While it lasts, a worker that dies is noticed at once if we wait for a batch, else when we do so next.

    Torch's own handler raises wherever the program is, such as in the middle of a step of the
    training.
    """
    torch.utils.data._utils.signal_handling._set_SIGCHLD_handler()  # else it would be set when the first worker starts
    before: Any = None
    with suppress(ValueError, AttributeError):  # in another thread than the main one; on Windows
        before = signal.signal(signal.SIGCHLD, lambda *_: watch.check())
    try:
        yield
    finally:
        watch.since = None
        watch.done.set()
        if before is not None:
            # Torch's handler would raise another error for the same worker wherever the program is
            # by then, when the signal comes late (a core is written first). It asks its workers
            # without the signal too.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if watch.ended else before)


class _Watch(threading.Thread):
    """Says that we wait for a batch, and for what, as long as `since` is not None."""

    def __init__(self, say: Say | None, positions: Positions, data: ImageDataset):
        super().__init__(daemon=True)
        self.say, self.positions, self.data = say, positions, data
        self.since: float | None = None
        self.done = threading.Event()
        self.ended = False  # whether a worker died or was too slow, and all of them were ended
        # kept, since a process can be asked only once how it ended
        self.deaths: list[tuple[int, str]] = []
        if say is not None:
            self.start()

    def check(self) -> None:
        """Raise `_WorkerDied` if we wait for a batch and a worker has died."""
        if self.since is not None and not self.deaths:
            self.deaths = self.positions.died()
            if self.deaths:
                raise _WorkerDied

    def run(self) -> None:
        said = 0.0
        while self.say is not None and not self.done.wait(min(1.0, SAID_EVERY / 4)):
            since, now = self.since, time.monotonic()
            if since is not None and now - max(since, said) >= SAID_EVERY:
                said = now
                read = "; ".join(self.positions.told(self.data)) or "none"
                self.say(f"waiting for images since {now - since:.0f} s; last read by {read}")


def _explained(
    error: BaseException, batches: Any, positions: Positions, watch: _Watch
) -> str | None:
    """What happened to the workers, in words, if that is what an error is about."""
    data = batches.dataset
    if watch.deaths:
        lines = [
            f"{how}; last read by {'; '.join(positions.told(data, [pid]))}"
            for pid, how in watch.deaths
        ]
        hints = [
            hint for name, hint in HINTS.items() if any(name in how for _, how in watch.deaths)
        ]
        return (
            f"a process that read images {'; another '.join(lines)}. {hints[0] if hints else HINT}"
        )
    text = str(error)
    if "DataLoader timed out" in text:
        read = "; ".join(positions.told(data)) or "none has begun"
        return (
            f"no batch came within {batches.timeout / 60:g} minutes from the {batches.num_workers} "
            f"processes that read images; last read by {read}. Give --timeout more minutes, or "
            "--workers 0"
        )
    if "DataLoader worker (pid" in text and "Caught" not in text:
        read = "; ".join(positions.told(data)) or "none has begun"
        return f"a process that read images died: {text.strip().rstrip('.')}; last read by {read}. {HINT}"
    return None
