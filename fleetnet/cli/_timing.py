"""What `fleetnet bench` and its --tune share: numbers of threads, timing in turn, the CSV table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..files import write_rows
from ._show import say, tell

if TYPE_CHECKING:
    from ..measure.candidates import Subject
    from ..measure.latency import Row


def threads_of(text: str | None) -> list[int]:
    """Numbers of threads from "1,2"; none from None."""
    parts = text.split(",") if text is not None else []
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if (
        len(numbers) != len(parts)
        or min(numbers, default=1) < 1
        or len(set(numbers)) != len(numbers)
    ):
        raise UsageError(
            f"threads is {text!r}; allowed: one number of at least 1, or several such as 1,2"
        )
    return numbers


def say_conditions(card: Mapping[str, object]) -> None:
    parts = [f"{key} {value}" for key, value in card.items() if value is not None]
    tell(f"conditions: {', '.join(parts)}, batch 1")


def measure(
    by_name: "Mapping[str, Subject]", runs: int, warmup: int
) -> "tuple[list[Row], dict[str, object], dict[str, float | None]]":
    """The rows, the conditions, which are shown before, and what `latency.watch` saw."""
    from .. import runtimes
    from ..measure import latency
    from ..measure.candidates import timed

    names = {subject.runtime for subject in by_name.values()} - {"torch"}
    packages = [runtimes.find(name).package for name in sorted(names)]
    most = max(subject.threads for subject in by_name.values())
    card = latency.card(most, ["fleetnet", "torch", *packages])
    say_conditions(card)
    say(f"measuring {len(by_name)} in turn")
    during = latency.watch()
    calls = {name: subject.call for name, subject in by_name.items()}
    return timed(calls, by_name, runs, warmup), card, during()


def write_csv(path: str, documents: Sequence[Mapping[str, object]]) -> None:
    write_rows(path, list(documents[0]), documents)


def say_doubts(doubts: Sequence[str]) -> None:
    for doubt in doubts:
        say(f"warning: {doubt}")
