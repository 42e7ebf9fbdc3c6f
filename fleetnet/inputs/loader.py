"""The one builder of batches: every evaluation and training gets them here."""

import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler

from .dataset import ImageDataset, Item
from .handover import HandOver
from .randomness import Draw
from .samplers import Order, OrderedBatches, SizedBatches, Sizes, share_of
from .workers import Positions

Batches = DataLoader[Item | str]  # which gives a `Batch` at a time
MINUTES = 5.0  # that a batch may take


def batches_of(
    data: ImageDataset,
    batch_size: int,
    *,
    order: Order | None = None,
    first: int = 0,
    workers: int = 0,
    minutes: float = MINUTES,
    pin_memory: bool = False,
    rank: int = 0,
    world: int = 1,
    sizes: Sizes | None = None,
) -> Batches:
    """Batches of a data set; go through them with `workers.patient`.

    In an `order`, for training, a smaller last batch is left out unless it is the only one; without
    one they are all samples from the `first` on, in the data set's own order. `workers` processes
    read images, none if it is 0; none of them may take more than `minutes` for a batch. Of `world`
    processes that train together each gets its part of every ordered batch, by its `rank`, and
    else one block of all samples, in batches of its part. With `sizes` each ordered batch has one
    of them, and as many images as go with it.
    """
    positions = Positions(workers) if workers else None
    data.watcher = positions
    batches: Sampler[list[int]] | Sampler[list[Draw]]
    if order is None:
        block = share_of(range(first, len(data)), rank, world)
        batches = BatchSampler(block, max(1, batch_size // world), drop_last=False)
    elif sizes is not None:
        batches = SizedBatches(order, sizes, rank, world)
    else:
        batches = OrderedBatches(order, batch_size, rank, world)
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=HandOver(workers),
        pin_memory=pin_memory,
        timeout=60 * minutes if workers else 0,
        worker_init_fn=None if positions is None else positions.started,
        # It draws a number for its workers, which would move torch's own.
        generator=torch.Generator(),
    )
