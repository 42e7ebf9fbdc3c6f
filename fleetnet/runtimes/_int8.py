"""Int8 weights that every CPU computes alike.

x86 without VNNI multiplies unsigned 8-bit values by signed 8-bit weights and adds the products in
pairs, each sum in 16 bits (`vpmaddubsw`): what is beyond 32,767 is cut off, without a word. VNNI,
AMX and Arm add in 32 bits. Which two products make a pair differs from kernel to kernel, so weights
are safe if no two of one output channel can overflow.
"""

from pathlib import Path

import numpy as np

# 128: what two weights of one sign may add up to; a value is at most 255
LARGEST_PAIR = 32767 // 255


def pairs(weight: np.ndarray) -> np.ndarray:
    """The largest sum of two weights of one sign, for each output channel: (channels, n) -> (channels,), float64.

    Of a channel with one weight, that weight.
    """
    weight = weight.astype(np.float64)
    both_signs = np.stack([np.maximum(weight, 0), np.maximum(-weight, 0)])  # (2, channels, n)
    return np.sort(both_signs, axis=2)[:, :, -2:].sum(2).max(0)


def safe_scales(weight: np.ndarray) -> np.ndarray:
    """The finest scale of each output channel at which no pair can overflow: (channels, n) -> (channels,), float64.

    Rounding may add a half to each of the two, so that they add up to `LARGEST_PAIR` at most.
    """
    return np.maximum(pairs(weight), 1e-12) / (LARGEST_PAIR - 1)


def slower(path: Path | str, layers: list[str]) -> str:
    """The warning for a file of which these layers can overflow, on a CPU that would cut them off."""
    return (
        f"{path}: products of int8 in {layers[0]} and {len(layers) - 1} more layers leave 16 bits, "
        "which this CPU cuts off; it is opened with slower kernels that do not. Other programs "
        "will compute something else with this file here: make it again with `fleetnet quantize`, "
        "whose files are right on every CPU"
    )


def overflowing(weights: dict[str, np.ndarray]) -> list[str]:
    """The layers, of integer weights (channels, n) by name, in which a pair can overflow."""
    return [
        name
        for name, weight in weights.items()
        if weight.size and pairs(weight).max() > LARGEST_PAIR
    ]
