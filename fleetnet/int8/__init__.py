"""Quantizers: the int8 file of a runtime, from its float file and pictures. One file is one.

The file has the name of the runtime; `Quantizer` says what it holds. Layers with weights are
quantized: weights with a scale per output channel, symmetric; the map that a layer takes with one
scale, asymmetric. The scales of weights are the finest at which no CPU overflows 16 bits
(`runtimes/_int8.py`): one bit less than eight where a channel has two large weights. Gates
(squeeze-and-excite) stay in float, but for LiteRT. Accuracy is the concern of `_search.py`;
`_finetune.py` learns what is lost back, gates in int8 too.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from ..find import find as find_module

if TYPE_CHECKING:
    from ._fake import FakeQuantized

# Layers to leave in float, file, facts -> the layers that are in int8: quantizers leave some in
# float by themselves.
Write = Callable[[set[str], Path, Mapping[str, object]], set[str]]


class Quantizer(Protocol):
    """What the file of a quantizer holds, all of it at its top level."""

    package: str  # the distribution that quantizes: its version goes into the sidecar
    source: str  # the runtime whose float file it takes

    def writer(self, float_file: Path, images: np.ndarray) -> Write:
        """What writes int8 files from a float file, calibrated on images (N, C, H, W).

        Raises `ExportError` where the package is missing.
        """

    def computed(self, network: "FakeQuantized") -> "FakeQuantized":
        """The network as the runtime computes it: some of them round less than they are told."""

    def writer_of(self, network: "FakeQuantized") -> Write:
        """What writes a network that was fine-tuned in int8, with the scales that it learned.

        It passes over the layers to leave in float. Raises `ExportError` where the package is
        missing.
        """

    def integer_weights(self, path: Path | str) -> dict[str, np.ndarray]:
        """The int8 weights in a file by layer, each as rows: (output channels, values)."""


def find(name: str) -> Quantizer:
    """The file of a quantizer; `UsageError` with the nearest name if there is none."""
    return cast(Quantizer, find_module("int8", name))
