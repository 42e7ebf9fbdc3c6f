"""How many channels the pictures of a network have: as a user writes it, and what they are called.

The first channels have a meaning: of one or two the first is gray, of three or more the first
three are red, green and blue. The command line reads this, so torch is not imported here.
"""

from .errors import UsageError, suggest

RGB = 3
MOST = 512  # hyperspectral cameras have some 200 bands
WORDS = {"gray": 1, "rgb": RGB, "rgba": 4}


def parse_channels(value: object) -> int:
    """4 from 4, "4" or "rgba"; `UsageError` for what is no such word, and no number up to MOST."""
    if isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST:
        return number
    likely = f"; {suggest(value, WORDS)}" if isinstance(value, str) else ""
    raise UsageError(
        f"channels is {value!r}; allowed: {', '.join(WORDS)}, or a number from 1 to {MOST}{likely}"
    )


def names_of(channels: int) -> list[str]:
    """What the channels of a network's input are called, for descriptions."""
    first = ["red", "green", "blue"] if channels >= RGB else ["gray"]
    return first + [f"channel {number}" for number in range(len(first) + 1, channels + 1)]


def colors_of(channels: int) -> int:
    """How many of the first channels are colors that an eye can see: 1 (gray) or 3 (RGB)."""
    return RGB if channels >= RGB else 1
