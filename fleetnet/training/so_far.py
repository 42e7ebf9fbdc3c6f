"""What an epoch has come to after some of its steps, so that it can go on from there."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from .log import Result


@dataclass
class EpochSoFar:
    """All that the line of an epoch in the log will be made of, after `step` of its batches.

    With the weights and what changes them it is the whole state within an epoch: whatever is random
    in a step follows from the epoch and the step.
    """

    epoch: int  # from 0
    step: int = 0  # batches that were passed, also those without an image
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of each loss over the images
    skipped: list[str] = field(default_factory=list)
    lr: float = 0.0  # of the last update
    seconds: float = 0.0  # that it took in earlier processes
    kept: int = 0  # the step of the state that was saved last; 0: none of this epoch
    began: float = field(default_factory=time.monotonic)  # in this process

    def add(self, losses: Mapping[str, float], images: int) -> None:
        """Count a batch with the means of its losses."""
        self.images += images
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + images * loss

    def elapsed(self) -> float:
        """Seconds from the start of the epoch on, without those between two processes."""
        return self.seconds + time.monotonic() - self.began

    def result(self) -> Result:
        """The means of the losses over the images, for the log."""
        means = {name: total / self.images for name, total in self.sums.items()}
        return {"loss": sum(means.values()), **means, "lr": self.lr, "images": self.images}

    def to_state(self) -> dict[str, object]:
        """As it is saved with the weights of this moment."""
        values = dataclasses.asdict(self)
        del values["began"]
        return {**values, "seconds": self.elapsed(), "kept": self.step}

    def where(self) -> str:
        """What is left of a run that stops here, for the message of its error."""
        if self.kept:
            return f"; the state after step {self.kept} of epoch {self.epoch + 1} is kept"
        if self.epoch:
            return f"; the state of epoch {self.epoch} is kept"
        return "; no state was saved yet"
