"""Batches on their way from a worker process, through shared memory as long as it holds them.

Containers have 64 MB of it. A batch that it cannot hold goes through the pipe between the processes
instead.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .dataset import Batch, Item, collate

# Bytes: smaller tensors go through the pipe, since each shared one takes a file descriptor.
SMALL = 1 << 16
SPARE = 1 << 20  # bytes of shared memory that others may take while a tensor is moved there
SHARED_MEMORY = "/dev/shm"


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

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[object, ...]]:
        return _arrived, tuple(mapped(part, _by_value) for part in self.batch)


def _arrived(*parts: object) -> Batch:
    return Batch(*(mapped(part, _as_tensor) for part in parts))


def mapped(value: object, change: Callable[[object], object]) -> Any:
    """A structure of dicts and lists with `change` applied to its leaves.

    What is in a `Batch` is of several types, so that only whoever calls knows what comes out.
    """
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value)


class _Bytes:
    """A tensor as its content, which is pickled, unlike the tensor, without shared memory."""

    def __init__(self, array: np.ndarray):
        self.array = array


def _by_value(leaf: object) -> object:
    return _Bytes(leaf.numpy()) if isinstance(leaf, Tensor) and not leaf.is_shared() else leaf


def _as_tensor(leaf: object) -> object:
    return torch.from_numpy(leaf.array) if isinstance(leaf, _Bytes) else leaf


class HandOver:
    """Makes a batch of items in a worker, with large tensors in shared memory if they fit.

    Without room there, torch loses the batch in a thread of the worker and the other side waits for
    ever, or the worker dies of a bus error while it copies: the room is looked for before, by one
    worker at a time.
    """

    def __init__(self, workers: int):
        self.turn = multiprocessing.Lock() if workers else None

    def __call__(self, items: Sequence[Item | str]) -> "Batch | _HandedOver":
        batch = collate(items)
        if get_worker_info() is None or self.turn is None:
            return batch
        if self.turn.acquire(timeout=1.0):  # one that died in its turn does not give it back
            try:
                mapped(batch.images, _share)
                mapped(batch.targets, _share)
            finally:
                self.turn.release()
        return _HandedOver(batch)


def _share(leaf: object) -> object:
    """A large tensor in shared memory if there is room, and anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    size = leaf.numel() * leaf.element_size()
    free = free_shared_memory() if size > SMALL else 0
    if size > SMALL and (free is None or free >= size + SPARE):
        # No room, or no more file descriptors: it goes by the pipe.
        with suppress(RuntimeError, OSError):
            leaf.share_memory_()
    return leaf
