"""One pass over the training images."""

import math
import time

import torch
from torch import Tensor

from ..errors import DataError, NotFiniteError
from ..inputs.dataset import Batch
from ..inputs.randomness import of_batch, of_network, seed_all, states_kept
from ..inputs.workers import Say, patient
from ..processes import mean, rank, total, world
from .distributed import beat
from .hooks import Hook, Pace
from .keeping import Keeper
from .learner import Learner
from .objective import Targets, mixed_and_sized
from .so_far import EpochSoFar


def train_one_epoch(
    learner: Learner,
    so_far: EpochSoFar,
    pace: Pace,
    hook: Hook,
    keeper: Keeper,
    on_wait: Say | None = None,
) -> None:
    """Train for an epoch from where it is, and count in `so_far` what it comes to.

    Gradients are summed over groups of `accumulate` batches; the last group of an epoch may have
    fewer. `hook` sees each batch and each step, `keeper` the end of each group: only there are the
    weights such that the epoch can go on from them. Raises `NotFiniteError` at the first loss that
    is not finite, before it reaches the weights.
    """
    epoch = so_far.epoch
    learner.begin(epoch, so_far.step)
    so_far.began = time.monotonic()
    accumulate = learner.config.accumulate
    decay = 1.0
    summed = False  # whether there are gradients of a group that has had no update yet
    for step, batch in enumerate(patient(learner.batches, on_wait), so_far.step):
        beat()
        keeper.group_goes_on()
        so_far.skipped += batch.skipped
        usable = not is_too_small(batch)
        # a group ends by its place in the epoch, so that batches without an image move no other's
        group_ends = (step + 1) % accumulate == 0 or step + 1 == len(learner.batches)
        if usable:
            so_far.lr = learner.schedule.rate(epoch, step // accumulate)
            decay = learner.schedule.decay(epoch, step // accumulate)
            with learner.group(ends=group_ends):
                losses, images = losses_of(learner, batch, epoch, step, hook)
                own = torch.stack(list(losses.values()))
                parts = mean(own.detach())  # over the processes
                loss = parts.sum().item()
                _check_loss(loss, so_far, keeper)
                learner.accelerator.backward(own.sum() / accumulate)
            summed = True
            so_far.add(dict(zip(losses, parts.tolist(), strict=True)), images)
        so_far.step = step + 1
        if group_ends and summed:
            learner.update(so_far.lr, decay)
            summed = False
        if usable:
            hook.step(pace.progress(epoch, so_far.step, loss, so_far.lr, images))
        if group_ends:
            keeper.group_ended(so_far)
    if summed:  # an order that ended before its own length
        learner.share_gradients()
        learner.update(so_far.lr, decay)
        keeper.group_ended(so_far)
    if not so_far.images:
        first = so_far.skipped[0] if so_far.skipped else "none given"
        raise DataError(f"no image could be read for training; the first: {first}")


def losses_of(
    learner: Learner, batch: Batch, epoch: int, step: int, hook: Hook
) -> tuple[dict[str, Tensor], int]:
    """The losses of a batch, and how many images they are the mean of.

    What is drawn belongs to the step, whatever was drawn before: in the processes that read, in
    earlier steps, in hooks.
    """
    config, device = learner.config, learner.accelerator.device
    batch = batch.on(device)
    with states_kept(device):
        images, targets = inputs_of(learner, batch, epoch, step)
        hook.batch(images, targets, learner.preprocess)
        seed_all(of_network(config.seed, epoch, step, rank()), device)
        losses = learner.losses(images, targets)
    return losses, int(total(torch.tensor(len(images))))


def inputs_of(learner: Learner, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Targets]:
    """What the network sees of a batch: images (N, C, H, W) and targets, mixed and at their size.

    The global generators are seeded anew for it.
    """
    config = learner.config
    generator = seed_all(of_batch(config.seed, epoch, step), learner.accelerator.device)
    return mixed_and_sized(batch, learner.model.classes, config, generator)


def is_too_small(batch: Batch) -> bool:
    """Whether one image of several is left, which is too few for some batch norms, or none.

    `DataError` in one of several processes: the others do not pass over the step.
    """
    too_small = len(batch.images) == 0 or (len(batch.images) == 1 and batch.lost > 0)
    if too_small and world() > 1:
        raise DataError(
            f"process {rank()} of {world()} could read {len(batch.images)} of the "
            f"{len(batch.images) + batch.lost} images of its part of a batch, and nothing stands "
            f"in for the others; the first: {batch.skipped[0]}"
        )
    return too_small


def _check_loss(loss: float, so_far: EpochSoFar, keeper: Keeper) -> None:
    """`NotFiniteError` for a loss that is not finite."""
    if not math.isfinite(loss):
        epoch, step = so_far.epoch + 1, so_far.step + 1
        raise NotFiniteError(
            f"the loss is {loss} at step {step} of epoch {epoch}, at learning rate "
            f"{so_far.lr:.3g}{so_far.where()}. Try a lower lr, a longer warm-up, clip: 1.0, or "
            f"precision: fp32{keeper.again(epoch, step)}"
        )
