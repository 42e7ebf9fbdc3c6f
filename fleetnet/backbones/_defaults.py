"""Parts of a family that has no use for them; `Family` says what they are.

Modules cannot inherit, so a family names each part that it leaves to the default:
`from ._defaults import options_of as options_of`.
"""

from torch import Tensor

from . import Option


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """No other names are known."""
    return state


def options_of(state: dict[str, Tensor]) -> dict[str, Option]:
    """Names tell nothing of options."""
    return {}
