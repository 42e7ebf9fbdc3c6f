"""One pass over the training images."""

import math

import torch
from torch import Tensor

from ..errors import DataError, FleetnetError
from ..inputs.dataset import Batch
from ..inputs.randomness import of_batch, of_network, seed_all, states_kept
from ..inputs.workers import Say, patient
from ..processes import mean, total
from .distributed import beat
from .hooks import Hook, Pace
from .learner import Learner
from .log import Result
from .objective import mixed_and_sized


def train_one_epoch(
    learner: Learner, epoch: int, pace: Pace, hook: Hook, on_wait: Say | None = None
) -> Result:
    """Train for an epoch, counted from 0: means of the losses, images seen, files skipped.

    Gradients are summed over groups of `accumulate` batches; the last group of an epoch may have
    fewer. `hook` sees each batch and each step. Raises `FleetnetError` at the first loss that is
    not finite, before it reaches the weights.
    """
    learner.begin(epoch)
    accumulate = learner.config.accumulate
    means = _Means()
    skipped: list[str] = []
    lr, decay = 0.0, 1.0
    summed = False  # whether there are gradients of a group that has had no update yet
    for step, batch in enumerate(patient(learner.batches, on_wait)):
        beat()
        skipped += batch.skipped
        usable = not _is_too_small(batch)
        # a group ends by its place in the epoch, so that batches without an image move no other's
        group_ends = (step + 1) % accumulate == 0 or step + 1 == len(learner.batches)
        if usable:
            lr = learner.schedule.rate(epoch, step // accumulate)
            decay = learner.schedule.decay(epoch, step // accumulate)
            with learner.group(ends=group_ends):
                losses, images = _losses_of(learner, batch, epoch, step, hook)
                own = torch.stack(list(losses.values()))
                parts = mean(own.detach())  # over the processes
                loss = parts.sum().item()
                _check_loss(loss, epoch, step, lr)
                learner.accelerator.backward(own.sum() / accumulate)
            summed = True
            means.add(dict(zip(losses, parts.tolist(), strict=True)), images)
        if group_ends and summed:
            learner.update(lr, decay)
            summed = False
        if usable:
            hook.step(pace.progress(epoch, step + 1, loss, lr, images))
    if summed:  # an order that ended before its own length
        learner.share_gradients()
        learner.update(lr, decay)
    if not means.images:
        first = skipped[0] if skipped else "none given"
        raise DataError(f"no image could be read for training; the first: {first}")
    return {**means.result(), "lr": lr, "images": means.images, "skipped": skipped}


def _losses_of(
    learner: Learner, batch: Batch, epoch: int, step: int, hook: Hook
) -> tuple[dict[str, Tensor], int]:
    """The losses of a batch, and how many images they are the mean of.

    What is drawn belongs to the step, whatever was drawn before: in the processes that read, in
    earlier steps, in hooks.
    """
    config, device = learner.config, learner.accelerator.device
    batch = batch.on(device)
    with states_kept(device):
        generator = seed_all(of_batch(config.seed, epoch, step), device)
        # (N, 3, H, W)
        images, targets = mixed_and_sized(batch, learner.model.classes, config, generator)
        hook.batch(images, targets, learner.preprocess)
        seed_all(of_network(config.seed, epoch, step), device)
        losses = learner.losses(images, targets)
    return losses, int(total(torch.tensor(len(images))))


class _Means:
    """Of losses over the images of several batches."""

    def __init__(self) -> None:
        self.images = 0
        self.sums: dict[str, float] = {}

    def add(self, losses: dict[str, float], images: int) -> None:
        self.images += images
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + images * loss

    def result(self) -> dict[str, float]:
        means = {name: total / self.images for name, total in self.sums.items()}
        return {"loss": sum(means.values()), **means}


def _is_too_small(batch: Batch) -> bool:
    """Whether one image of several is left, which is too few for some batch norms, or none."""
    return len(batch.images) == 0 or (len(batch.images) == 1 and bool(batch.skipped))


def _check_loss(loss: float, epoch: int, step: int, lr: float) -> None:
    """`FleetnetError` for a loss that is not finite; epoch and step count from 0."""
    if not math.isfinite(loss):
        raise FleetnetError(
            f"the loss is {loss} at step {step + 1} of this epoch, at learning rate {lr:.3g}"
            f"{kept(epoch)}. Try a lower lr, a longer warm-up, clip: 1.0, or precision: fp32"
        )


def kept(epoch: int) -> str:
    """What is left of a run that stops in an epoch (from 0), for the message of its error."""
    if epoch:
        return f"; the state of epoch {epoch} is kept"
    return "; no epoch has ended, so nothing is kept"


def check_weights(learner: Learner, epoch: int) -> None:
    """`FleetnetError` if the last update of an epoch broke the weights: no loss would tell."""
    if not all(parameter.isfinite().all() for parameter in learner.model.parameters()):
        raise FleetnetError(
            f"a weight is not finite after epoch {epoch + 1}, though the losses were{kept(epoch)}. "
            "Try a lower lr or clip: 1.0"
        )
