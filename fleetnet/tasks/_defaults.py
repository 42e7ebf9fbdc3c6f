"""Parts of a task that has no use for them; `Task` says what they are.

Modules cannot inherit, so a task names each part that it leaves to the default:
`from ._defaults import prepare as prepare`.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..backbones import Option


def prepare(head: nn.Module, pictures: Iterable[object], size: tuple[int, int]) -> None:
    """The head takes nothing from the data."""


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """No authors' names are known."""
    return state


def stored(options: Mapping[str, Option], backbone: str) -> dict[str, Option]:
    """The options as they are."""
    return dict(options)
