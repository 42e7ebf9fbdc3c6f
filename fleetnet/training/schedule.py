"""What changes from step to step: learning rates, weight decay, an early end.

Both are pure functions of the step, so a run that continues needs to remember nothing.

    cosine    linear warm-up, then half a cosine down to `min_lr`
    step      linear warm-up, then times `step_factor` at each of `step_epochs`
    wsd       linear warm-up, a constant rate, then a line down to `min_lr` in the last
              `cooldown_epochs`: until there, a longer run is the same run (arXiv:2405.18392)
    constant  linear warm-up, then the peak

As published runs have them: ParC-Net's (CVNets) warms up by steps and then moves its cosine once an
epoch, counted from the start of the run; RepViT's (timm) moves both once an epoch, counted from the
start, and runs one epoch behind; MobileOne's weight decay falls along a cosine like the rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .config import TrainConfig
from .log import Line, Result


def half_cosine(step: float, steps: float) -> float:
    """From 1 at step 0 down to 0 after `steps` of them."""
    return 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


@dataclass(frozen=True)
class Schedule:
    """The learning rate and the weight decay of every update of a run."""

    config: TrainConfig
    batches: int  # of an epoch

    @property
    def updates(self) -> int:
        """Of an epoch: one for each group of batches; the last group may have fewer."""
        return math.ceil(self.batches / self.config.accumulate)

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.config.epochs * self.updates

    @property
    def peak(self) -> float:
        """The highest learning rate; with `lr_batch` it grows with the images of an update."""
        config = self.config
        if not config.lr_batch:
            return config.lr
        return config.lr * self.images_an_update / config.lr_batch

    @property
    def images_an_update(self) -> int:
        return self.config.batch_size * self.config.accumulate

    @property
    def warmup(self) -> float:
        """Updates of linear warm-up, at most half of all."""
        config = self.config
        longest = self.steps / 2
        if config.schedule == "wsd":  # a longer run begins like a shorter one
            longest = math.inf
        return min(config.warmup_steps or config.warmup_epochs * self.updates, longest)

    def rate(self, epoch: int, group: int) -> float:
        """Of a group of batches, both counted from 0."""
        epoch, group = self._delayed(epoch, group)
        step = epoch * self.updates + group
        first_of_epoch = epoch * self.updates
        by_epoch = self.config.rate_by == "epoch"
        warming_step = first_of_epoch if by_epoch else step
        if warming_step < self.warmup:
            return self._warming(warming_step, by_epoch=by_epoch)
        return self._after_warmup(step if self.config.rate_by == "step" else first_of_epoch)

    def decay(self, epoch: int, group: int) -> float:
        """Weight decay of a group of batches, as a multiple of what the run begins with."""
        config = self.config
        if config.decay_end is None or not config.weight_decay:
            return 1.0
        epoch, group = self._delayed(epoch, group)
        step = epoch * self.updates + (group if config.rate_by == "step" else 0)
        end = config.decay_end / config.weight_decay
        return end + (1 - end) * half_cosine(step, self.steps)

    def _delayed(self, epoch: int, group: int) -> tuple[int, int]:
        """What the schedule takes an epoch and a group for, where it runs behind."""
        late = epoch - self.config.rate_lag
        return (late, group) if late >= 0 else (0, 0)

    def _warming(self, step: int, *, by_epoch: bool) -> float:
        start = self.config.warmup_lr
        if start is not None:
            return start + (self.peak - start) * step / self.warmup
        stride = self.updates if by_epoch else 1
        return self.peak * (step + stride) / (self.warmup + stride)

    def _after_warmup(self, step: int) -> float:
        config, peak = self.config, self.peak
        if config.schedule == "constant":
            return peak
        if config.schedule == "step":
            passed = sum(step >= epoch * self.updates for epoch in config.steps_after)
            return peak * config.step_factor**passed
        if config.schedule == "wsd":
            left = self.steps - step
            cooldown = config.cooldown_epochs * self.updates
            share = min(1.0, left / cooldown) if cooldown else 1.0
        elif config.cosine_from == "start":
            share = half_cosine(step, self.steps)
        else:
            # an epoch may begin within the warm-up that ended in it
            share = half_cosine(max(0, step - self.warmup), self.steps - self.warmup)
        return config.min_lr + (peak - config.min_lr) * share

    def text(self) -> str:
        """One line for whoever starts a run, or continues it with other epochs."""
        config = self.config
        peak = f"peak {self.peak:.3g} for {self.images_an_update} images an update"
        if config.lr_batch:
            peak += f" ({config.lr:g} for {config.lr_batch})"
        warmup = f"warm-up {self.warmup:.0f} of {self.steps} updates"
        last = self.rate(config.epochs - 1, self.updates - 1)
        return f"learning rate: {config.schedule}, {peak}, {warmup}, last {last:.3g}"


def continued(before: TrainConfig, now: TrainConfig, reached: int) -> str:
    """One line for whoever continues a run with other epochs: how it goes on.

    `reached` are the epochs that it was trained for, with one that has begun.
    """
    new = f"new schedule: {now.schedule} over {now.epochs} epochs instead of {before.epochs}"
    if now.schedule != "wsd":
        return new
    end = before.epochs - before.cooldown_epochs
    if reached > end:
        return (
            f"{new}. The rate has fallen from epoch {end:g} on and begins again at its peak, which "
            f"is not as if {now.epochs} epochs had been planned"
        )
    rate = f"the rate stays at its peak until epoch {now.epochs - now.cooldown_epochs:g}"
    others = []
    if now.decay_end is not None:
        others.append("weight decay")
    if now.plain_epochs and reached > before.epochs - before.plain_epochs:
        others.append("augmentation")
    if others:
        return f"{new}: {rate}; {' and '.join(others)} went by the epochs that were planned before"
    return f"{new}: {rate}, as if so many had been planned"


def stopped_early(log: Sequence[Line], best: Result | None, patience: int) -> bool:
    """Whether the last evaluation came `patience` epochs (0: never) or more after the best one."""
    evaluated = [line["epoch"] for line in log if "raw" in line or "ema" in line]
    return bool(patience and best and evaluated and evaluated[-1] - best["epoch"] >= patience)
