"""What an exported file takes, and the one check of a batch that is given to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ModelError


@dataclass(frozen=True)
class Input:
    """The one input of a file: a batch of images."""

    path: Path | str  # of the file, for messages
    shape: tuple[int | str | None, ...]  # (N, C, H, W), with a name or None for what is open
    dtype: np.dtype

    def check(self, batch: np.ndarray) -> np.ndarray:
        """The batch as the runtime takes it: of the file's type, in one piece of memory.

        Floats are cast to floats of another width. Raises `ModelError`, with what the file takes
        and what it got, for a batch of other dimensions, of another size where that is not open,
        or of another kind: normalized values would be cut to whole pixels.
        """
        fits = batch.ndim == len(self.shape) and all(
            expected == actual
            for expected, actual in zip(self.shape, batch.shape, strict=True)
            if isinstance(expected, int)
        )
        if not fits:
            raise ModelError(f"{self.path}: takes images of shape {self.shape}, got {batch.shape}")
        if not np.can_cast(batch.dtype, self.dtype, "same_kind"):
            raise ModelError(f"{self.path}: takes {self.dtype}, got {batch.dtype}")
        return np.ascontiguousarray(batch, self.dtype)


def not_one_input(path: Path | str, inputs: Iterable[object]) -> ModelError:
    """The error for a file whose inputs, listed, are not one batch of images."""
    listed = ", ".join(map(str, inputs))
    return ModelError(f"{path}: expected one input of images, found {listed or 'none'}")
