"""When the state of a run is saved within an epoch: every few minutes, and when it is to stop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch

from ..errors import NotFiniteError
from ..processes import gathered, total, world
from .learner import Learner
from .run import Run
from .signals import Signals
from .so_far import EpochSoFar


class Keeper:
    """Is told when a group of batches goes on, and when it has ended in an update of the weights.

    This one keeps nothing, for a training that leaves nothing.
    """

    def group_goes_on(self) -> None:
        """A batch was read; until the group has ended the weights belong to no whole step."""

    def group_ended(self, so_far: EpochSoFar) -> None:
        """The weights are those after `so_far.step` batches of an epoch."""

    def again(self, epoch: int, step: int) -> str:
        """How to look at a step that broke, both from 1, for the end of a message."""
        return ""


class StateKeeper(Keeper):
    """Saves the state of a run at the ends of groups: where `minutes` have passed, or it stops.

    0 minutes: only where it stops. Ctrl-C and SIGTERM wait within a group; of several processes
    they wait between groups too, since all have to stop after the same one.
    """

    def __init__(self, learner: Learner, run: Run, signals: Signals, minutes: float):
        self.learner, self.run, self.signals = learner, run, signals
        self.seconds = 60 * minutes
        self.saved = time.monotonic()

    def group_goes_on(self) -> None:
        self.signals.held = True

    def group_ended(self, so_far: EpochSoFar) -> None:
        is_due = bool(self.seconds) and time.monotonic() - self.saved >= self.seconds
        stops = self.signals.waiting is not None
        if world() > 1:
            stops, is_due = total(torch.tensor([stops, is_due], dtype=torch.int)).bool().tolist()
        if is_due or stops:
            so_far.skipped = list(chain.from_iterable(gathered(so_far.skipped)))
            self._save(so_far)
        if stops:
            self.signals.stop()
        if world() == 1:
            self.signals.let_go()

    def again(self, epoch: int, step: int) -> str:
        return self.run.again(epoch, step)

    @contextmanager
    def stoppable(self, so_far: EpochSoFar) -> Iterator[None]:
        """Save the state when what is done is interrupted between two groups, or after the last."""
        try:
            yield
        except KeyboardInterrupt:
            whole = not self.signals.held  # else a group was cut in two, since it took too long
            if whole and so_far.step > so_far.kept:
                self._save(so_far)
            raise

    def _save(self, so_far: EpochSoFar) -> None:
        check_weights(self.learner, so_far, self.again(so_far.epoch + 1, so_far.step))
        self.run.save_within(self.learner.model, self.learner.state(), so_far)
        self.saved = time.monotonic()


def check_weights(learner: Learner, so_far: EpochSoFar, again: str) -> None:
    """`NotFiniteError` if the last update broke the weights: no loss would tell.

    `again` says how to look at its step.
    """
    if not all(parameter.isfinite().all() for parameter in learner.model.parameters()):
        raise NotFiniteError(
            f"a weight is not finite after step {so_far.step} of epoch {so_far.epoch + 1}, though "
            f"the losses were{so_far.where()}. Try a lower lr or clip: 1.0{again}"
        )
