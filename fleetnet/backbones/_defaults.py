"""Parts of a family that has no use for them; `Family` says what they are.

Modules cannot inherit, so a family names each part that it leaves to the default:
`from ._defaults import convert as convert`.
"""

from torch import Tensor


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """No other names are known."""
    return state
