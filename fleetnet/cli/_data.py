"""What the verbs say of the data that they read."""

from typing import TYPE_CHECKING

from ._show import say

if TYPE_CHECKING:
    from ..data import Split
    from ..data._contents import Contents

SHOWN = 10  # lines of what was left out


def say_data(name: str, split: "Split", contents: "Contents") -> None:
    """Where a split comes from, how much of each class it has, and the first of what was left out."""
    where = f" from {split.source}" if split.source else ""
    objects = f", {contents.total} objects" if contents.unit == "objects" else ""
    skipped = f", {len(split.skipped)} skipped"
    say(
        f"{name}: {len(split.samples)} images{objects}, {len(split.classes)} "
        f"classes{skipped}{where}"
    )
    say(f"  {contents.unit} by class: {contents.text(split.classes)}")
    if split.annotations.lost():
        say(f"  {split.annotations}")
    for line in split.skipped[:SHOWN]:
        say(f"  skipped {line}")
    if len(split.skipped) > SHOWN:
        say(f"  and {len(split.skipped) - SHOWN} more")
