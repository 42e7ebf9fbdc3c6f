"""What the fields of a verb's dataclass of settings say of themselves, for its flags and its help.

A verb declares each setting once, with its type, its default and its help:

    threads: int = field(default=2, metadata=About(help="CPU threads", kind=PositiveInt))

`_arguments` makes the flag `--threads` of it, with "(default: 2)" in its help. A field without a
default has to be given.
"""

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Literal, Required, TypedDict


class About(TypedDict, total=False):
    """The metadata of a field."""

    help: Required[str]
    # The default in words, where it is decided while the verb runs; the field's own default is
    # then None.
    usual: str
    # Of the values of the flag, where that is narrower than the type of the field: PositiveInt.
    kind: object
    # The word null may be given, and is None: a flag that is not given.
    null: bool
    # The flag takes no value: `switch` makes such a field.
    switch: bool
    # The values stand by themselves, without a flag before them.
    positional: bool
    nargs: Literal["?", "*", "+"]
    # The value of a flag with nargs "?" that no word follows.
    const: str
    metavar: str
    # The flag may be given several times, each with a value more.
    repeated: bool
    # The beginning of the message where a setting that has to be given is not.
    missing: str
    # Raises UsageError for a value that is a mistake, before anything else is looked at.
    check: Callable[[str], None]
    # The field holds what was given of the settings of this dataclass, by name.
    given_of: type
    # The field holds a dataclass of settings: by the names of its fields, what replaces their own
    # metadata here.
    otherwise: Mapping[str, "About"]


def switch(help: str) -> bool:
    """A field of a flag without a value, that is off unless it is given."""
    return field(default=False, metadata=About(help=help, switch=True))
