"""Batches of a data set for several evaluations: each picture is decoded once."""

from collections.abc import Iterator

from torch import Tensor

from ..inputs.dataset import Batch, ImageDataset
from ..inputs.handover import mapped
from ..inputs.loader import MINUTES, batches_of
from ..inputs.workers import patient

LIMIT = 2 * 1024**3  # bytes that the kept batches may take


class DecodedOnce:
    """The batches of a data set for evaluation, to be gone through several times.

    Pictures are decoded the first time, and kept as long as the batches take no more than `limit`
    bytes. Those beyond are read again each time: `again` says how many.
    """

    def __init__(
        self,
        data: ImageDataset,
        batch_size: int,
        *,
        workers: int = 0,
        minutes: float = MINUTES,
        limit: int = LIMIT,
    ) -> None:
        self.data, self.batch_size, self.limit = data, batch_size, limit
        self.workers, self.minutes = workers, minutes
        self.kept: list[Batch] = []
        self.used = 0
        self.full = False

    @property
    def again(self) -> int:
        """How many samples are read again each time; 0 before the first."""
        return max(len(self.data) - self._first_that_is_read, 0) if self.full else 0

    @property
    def _first_that_is_read(self) -> int:
        return len(self.kept) * self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        yield from list(self.kept)
        start = self._first_that_is_read
        if start >= len(self.data):
            return
        batches = batches_of(
            self.data, self.batch_size, first=start, workers=self.workers, minutes=self.minutes
        )
        for batch in patient(batches):
            self._keep(batch)
            yield batch

    def _keep(self, batch: Batch) -> None:
        """Keep a batch, the next of those that are kept, unless the limit was reached."""
        if self.full:
            return
        # What a worker handed over is shared memory, with an open file for each large tensor.
        kept = _owned(batch)
        size = _bytes([kept.images, *kept.targets.values()])
        if self.used + size > self.limit:
            self.full = True
            return
        self.used += size
        self.kept.append(kept)


def _owned(batch: Batch) -> Batch:
    """The batch with tensors of this process alone."""
    return batch._replace(images=mapped(batch.images, _own), targets=mapped(batch.targets, _own))


def _own(leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_shared() else leaf


def _bytes(values: object) -> int:
    """Of all tensors in lists, which targets are."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    return sum(map(_bytes, values)) if isinstance(values, list) else 0
