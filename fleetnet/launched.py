"""How this process was started: alone, or as one of several, by the environment.

`fleetnet train --devices N`, torchrun and accelerate launch set the same names. Nothing else reads
them. No torch here: the command line asks before it loads anything.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UsageError

PARENT = "FLEETNET_PARENT"  # in the environment: the process of `--devices` that started this one
OF_TORCHRUN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class Launched:
    """What whoever started this process says of it, and of those that were started with it."""

    rank: int = 0  # from 0
    world: int = 1  # how many there are
    local_rank: int = 0  # of those on this machine
    local_world: int = 0  # how many there are on this machine; 0: it was not said
    parent: int = 0  # the process of `--devices`, without which none goes on; 0: none
    by_torchrun: bool = False  # which starts its processes again where one of them fails

    @property
    def is_one_of_several(self) -> bool:
        return self.world > 1

    @property
    def is_follower(self) -> bool:
        """Whether it is one of several, and not the first, which writes and says something."""
        return self.is_one_of_several and self.rank > 0

    def environment(self) -> dict[str, str]:
        """What tells a process that it was launched so."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world),
            PARENT: str(self.parent),
        }


def launched(environment: Mapping[str, str] = os.environ) -> Launched:
    """How a process with an environment was started; `UsageError` where it makes no sense."""

    def number(name: str, usual: int) -> int:
        text = environment.get(name, str(usual))
        if not text.isdecimal():
            raise UsageError(
                f"{name} is {text!r} in the environment; allowed: a whole number, as torchrun and "
                "accelerate launch set it, or none"
            )
        return int(text)

    how = Launched(
        rank=number("RANK", 0),
        world=number("WORLD_SIZE", 1),
        local_rank=number("LOCAL_RANK", 0),
        local_world=number("LOCAL_WORLD_SIZE", 0),
        parent=number(PARENT, 0),
        by_torchrun=OF_TORCHRUN in environment,
    )
    if how.is_one_of_several and not how.rank < how.world:
        raise UsageError(
            f"RANK is {how.rank} and WORLD_SIZE {how.world} in the environment; allowed: ranks "
            "from 0 on, each below WORLD_SIZE"
        )
    return how
