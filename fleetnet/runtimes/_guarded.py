"""A loaded network, for any number of threads of one process.

Most runtimes keep what they compute in the network that they loaded: two threads that call it at
once get each other's answers. And a fork of a process has a copy of its memory but none of its
threads, so that a network which waits for them waits forever. Both are settled here, for every
runtime and for checkpoints in torch.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch

from ..errors import FleetnetError

# How many calls of loaded files may run at once: any number, one of a file, one of all files.
Calls = Literal["many", "file", "process"]
# Functions of one batch (N, C, H, W): a file's outputs in their order; what its layers put out, by
# name.
Run = Callable[[np.ndarray], list[np.ndarray]]
Traced = Callable[[np.ndarray], dict[str, np.ndarray]]
Batch = TypeVar("Batch")  # an array, or a tensor of torch
Value = TypeVar("Value")


class _Process:
    """What this process must know of the one that it was forked from, if it was."""

    computed = False  # a network was called in this process, or in one that it is a fork of
    fork_of_computing = False
    locks: ClassVar[
        dict[str, AbstractContextManager[object]]
    ] = {}  # RLocks: one for each runtime, "loading" and "output"


_LOADED: "weakref.WeakSet[Guarded[Any, Any]]" = weakref.WeakSet()


def lock_of(name: str) -> AbstractContextManager[object]:
    """The lock of that name, one for the whole process."""
    return _Process.locks.setdefault(name, threading.RLock())


def _after_fork() -> None:
    """In the child: what would wait for threads that are not here must neither run nor be taken apart."""
    _Process.locks = {}  # the ones before may be held by a thread that is not here
    for guarded in _LOADED:
        # onnxruntime's sessions join their threads at the end
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(guarded.run))
    if _Process.computed:
        _Process.fork_of_computing = True
        # as torch's own loader does in its workers: OpenMP's threads are not here either
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check_threads(what: str, threads: int) -> None:
    """Raise `FleetnetError` where a network with several threads would wait for threads that a fork does not have."""
    if threads > 1 and _Process.fork_of_computing:
        raise FleetnetError(
            f"{what} cannot be loaded with {threads} threads in process {os.getpid()}: it is a "
            "fork of a process that has computed, whose threads are not in it. Load it with "
            "threads=1, or start processes with multiprocessing.get_context('spawn')"
        )


class Guarded(Generic[Batch, Value]):
    """`run` of a batch, for any number of threads of the process that made this object.

    `what` was loaded, for messages. `lock` is held during a call; None where `run` may be called by
    many threads at once. Raises `FleetnetError` when it is called in a fork of that process.
    """

    def __init__(
        self,
        run: Callable[[Batch], Value],
        what: str,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.run, self.what = run, what
        self.lock = nullcontext() if lock is None else lock
        self.process = os.getpid()
        _LOADED.add(self)

    def __call__(self, batch: Batch) -> Value:
        if os.getpid() != self.process:  # before the lock, which a thread that is not here may hold
            raise FleetnetError(
                f"{self.what} was loaded in process {self.process} and is used in process "
                f"{os.getpid()}, a fork of it that does not have its threads: load it again here "
                "with threads=1, or start processes with multiprocessing.get_context('spawn')"
            )
        with self.lock:
            _Process.computed = True
            return self.run(batch)
