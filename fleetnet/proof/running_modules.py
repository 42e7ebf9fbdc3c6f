"""Which modules of a network are running, for counting and recording operators by module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """The names of the running modules while the context is open, the outermost ("") first.

    The list changes as the model runs. A module used in two places has its first name.
    """
    running: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def enter(_: nn.Module, args: object, name: str = name) -> None:
            running.append(name)

        def leave(*_: object) -> None:
            running.pop()

        hooks += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()
