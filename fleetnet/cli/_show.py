"""What the terminal shows: tables on standard output, progress and messages on standard error."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..train import Progress

SECONDS_BETWEEN_LINES = 10  # where standard error is not a terminal


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output; columns after the first are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))  # as it is: to rich, the brackets of an extra are markup
    console = Console()
    print(title)
    # A table in a file or a pipe is not cut to 80 columns: its reader may search it for names.
    (console if console.is_terminal else Console(width=200)).print(drawn)


def shown(value: Any) -> str:
    """A figure in a table: two digits after the point, "-" where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class TrainingProgress:
    """A bar in a terminal, a line every few seconds elsewhere: call it with each `Progress` of `fit`."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                BarColumn(30), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
            )
            self.task = self.bar.add_task("", total=1.0)
            self.bar.start()

    def __call__(self, p: "Progress") -> None:
        now = time.monotonic()
        text = (
            f"epoch {p.epoch}/{p.epochs} step {p.step}/{p.steps} loss {p.loss:.3f} lr {p.lr:.2e} "
            f"{p.images_per_second:.0f} images/s {p.memory:.0f} MB left {duration(p.seconds_left)}"
        )
        if self.bar is not None:
            done = (p.epoch - 1 + p.step / p.steps) / p.epochs
            self.bar.update(self.task, completed=done, description=text)
        elif now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            say(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
