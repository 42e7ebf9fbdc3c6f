"""The processes that compute together, one a device: how many there are, and what they tell each other.

    world, rank        how many there are, and which of them this is, from 0
    is_first           whether it is the one that writes and says something
    mean, total        of a tensor over all of them
    mean_count         of a number of things, by which the sum of a loss is divided
    of_all             the part that a mean over things of this process is of that over all of them
    row_before         a row of the process before, in a circle
    from_first         what the first one has
    by_first           what the first one gets of something that it does for all
    gathered           what all of them have, in the first one

Of one process alone, each of these gives back what it got. All processes have to call the same of
them in the same order: each waits for the others.

A mean over a batch is over that of all processes. Since gradients are averaged over processes, a
loss that is a sum over things is divided by `mean_count` of them, and one that is a mean goes
through `of_all`; then it does not matter which process has how many.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from .errors import FleetnetError

T = TypeVar("T")


class SaidElsewhere(FleetnetError):
    """What another process of the same training failed of, and says."""


def is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def world() -> int:
    return distributed.get_world_size() if is_joined() else 1


def rank() -> int:
    return distributed.get_rank() if is_joined() else 0


def is_first() -> bool:
    return rank() == 0


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; no gradient goes through it."""
    if world() == 1:
        return value
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, float32; no gradient goes through it."""
    if world() == 1:
        return value
    return total(value.float()) / world()


def mean_count(count: Tensor) -> Tensor | float:
    """How many things, scalar, a process has in the mean, where all together have at least one.

    Of one process alone it stays a tensor, for which a GPU does not have to be waited for.
    """
    if world() == 1:
        return count.clamp(min=1)
    return max(int(total(count)), 1) / world()


def of_all(mean_of_own: Tensor, count: Tensor | int) -> Tensor:
    """A mean over `count` things as a part: the mean of all parts is the mean over all things."""
    if world() == 1:
        return mean_of_own
    own = int(count)
    return mean_of_own * (own / mean_count(torch.tensor(own)))


def row_before(rows: Tensor) -> Tensor:
    """The last row (1, ...) of the process before this one; the first takes that of the last."""
    last = [torch.empty_like(rows[-1:]) for _ in range(world())]
    distributed.all_gather(last, rows[-1:].contiguous())
    return last[rank() - 1]


def from_first(value: T) -> T:
    """What the first process has, which is pickled on its way."""
    if world() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def by_first(action: Callable[[], T]) -> T:
    """What the first process gets of an action that it does for all.

    Where it fails, all end: the first one with its error, the others with `SaidElsewhere`.
    """
    if world() == 1:
        return action()
    outcome: tuple[T | None, str] = None, ""
    error: Exception | None = None
    if is_first():
        try:
            outcome = action(), ""
        except Exception as failed:
            outcome, error = (None, f"{type(failed).__name__}: {failed}"), failed
    result, message = from_first(outcome)
    if error is not None:
        raise error
    if message:
        raise SaidElsewhere(message)
    return cast(T, result)


def gathered(value: T) -> list[T]:
    """What all processes have, in their order, in the first one; in the others nothing."""
    if world() == 1:
        return [value]
    values: list[T | None] | None = [None] * world() if is_first() else None
    distributed.gather_object(value, values, dst=0)
    return cast(list[T], values or [])


@torch.no_grad()
def take_from_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)
