"""What the terminal shows: tables on standard output, progress and messages on standard error."""

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import UsageError
from ..launched import launched

if TYPE_CHECKING:
    from rich.console import Console

    from ..training.hooks import Progress

SHORTEST_BAR = 8  # characters, with the blank before it
# C0 but for tab and line break, DEL and C1; marks of direction, which let "gpj.exe" read as
# "exe.jpg"; separators
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SECONDS_BETWEEN_LINES = 10  # where standard error is not a terminal


def printable(text: object, stream: TextIO | None = None) -> str:
    r"""Text as it may reach a terminal: what would move the cursor, change colors or turn the writing is spelled out.

    Names of classes and files are the user's, or a stranger's: "\x1b[2J" in one would clear the
    screen. Line breaks and tabs stay. What the stream's encoding lacks is spelled out too, such as
    the bytes of a file name that is no text.
    """
    spelled = CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
    encoding = (getattr(stream, "encoding", None) or "utf-8") if stream is not None else "utf-8"
    return spelled.encode(encoding, "backslashreplace").decode(encoding)


def is_follower() -> bool:
    """Whether this is one of several processes that compute together, and not the first of them."""
    try:
        return launched().is_follower
    except UsageError:  # which whatever asks first of all ends with, and has to be said
        return False


def say(message: object) -> None:
    """A line on standard error, which the first of several processes says for all."""
    if not is_follower():
        complain(message)


def complain(message: object) -> None:
    """A line on standard error of whichever process."""
    print(printable(message, sys.stderr), file=sys.stderr, flush=True)


def tell(message: object) -> None:
    """A line on standard output."""
    if not is_follower():
        print(printable(message, sys.stdout))


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], least: Sequence[str] = ()
) -> None:
    """A table on standard output, of which nothing is ever cut; columns after the first are right-aligned.

    Where a terminal is too narrow, sentences and headings are wrapped at their spaces; then the
    columns in `least` are left out, the first of them first, which is said; and where that is not
    enough, each row becomes a few lines. In a file or a pipe a table is as wide as it needs to be:
    its reader may search it for names.
    """
    from rich.console import Console

    if is_follower():
        return
    console = Console()
    tell(title)
    columns, cells = _in_a_line(columns), [_in_a_line(row) for row in rows]
    width = console.width if console.is_terminal else None
    shown, omitted = list(range(len(columns))), []
    for name in least:
        if width is None or sum(_narrowest(columns, cells, shown)) + _frame(shown) <= width:
            break
        if name in columns:
            omitted.append(name)
            shown.remove(columns.index(name))
    widths = _widths(columns, cells, shown, width)
    if widths is None:
        _print_records(columns, cells)
        return
    _draw(console, columns, cells, shown, widths)
    if omitted:
        tell(f"not shown at this width: {', '.join(omitted)} (--json has all)")


def _in_a_line(cells: Sequence[object]) -> list[str]:
    """The text of cells, printable, each without line breaks."""
    return [printable(cell, sys.stdout).replace("\n", "\\n").replace("\t", " ") for cell in cells]


WORDY = 24  # characters: a longer cell with spaces is a sentence, which may be wrapped; a shorter one is a figure


def _frame(shown: Sequence[int]) -> int:
    """Characters of the lines between columns, with a blank on either side of each."""
    return 3 * len(shown) + 1


def _narrowest(
    columns: Sequence[str], cells: Sequence[Sequence[str]], shown: Sequence[int]
) -> list[int]:
    """The least width of each column shown in which no word is broken."""
    from rich.cells import cell_len

    widths = []
    for i in shown:
        parts = columns[i].split()
        for row in cells:
            parts += row[i].split() if len(row[i]) > WORDY else [row[i]]
        widths.append(max(map(cell_len, parts), default=1))
    return widths


def _widths(
    columns: Sequence[str], cells: Sequence[Sequence[str]], shown: Sequence[int], width: int | None
) -> list[int] | None:
    """The width of each column shown in a table of at most `width` characters; None where it cannot be so narrow."""
    from rich.cells import cell_len

    natural = [max([cell_len(columns[i]), *(cell_len(row[i]) for row in cells)]) for i in shown]
    if width is None or sum(natural) + _frame(shown) <= width:
        return natural
    widths = _narrowest(columns, cells, shown)
    room = width - _frame(shown) - sum(widths)
    if room < 0:
        return None
    wanted = sum(natural) - sum(widths)
    return [
        least + (most - least) * room // wanted for least, most in zip(widths, natural, strict=True)
    ]


def _draw(
    console: "Console", columns: Sequence[str], cells: Sequence[Sequence[str]], shown: Sequence[int],
    widths: Sequence[int],
) -> None:  # fmt: skip
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for i, width in zip(shown, widths, strict=True):
        drawn.add_column(columns[i], justify="right" if i else "left", width=width, overflow="fold")
    for row in cells:
        # as it is: to rich, the brackets of an extra are markup
        drawn.add_row(*(Text(row[i]) for i in shown))
    (console if console.is_terminal else Console(width=sum(widths) + _frame(shown))).print(drawn)


def _print_records(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Each row as a few lines, "column: value"."""
    for row in cells:
        tell(row[0])
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                tell(f"  {column}: {cell}" if column else f"  {cell}")


def shown(value: object) -> str:
    """A figure in a table: two digits after the point, "-" where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


def rate(images_per_second: float) -> str:
    """In images a second, or in seconds an image where that says more."""
    if images_per_second >= 10:
        return f"{images_per_second:.0f} images/s"
    if images_per_second >= 1:
        return f"{images_per_second:.1f} images/s"
    return f"{1 / images_per_second:.1f} s/image" if images_per_second > 0 else "- images/s"


class Counting:
    """Progress in files: a bar in a terminal, a line every few seconds elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: Any = None
        self.task: Any = None
        self.last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(what, total=None)
            self.bar.start()

    def __call__(self, count: int, of: int) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=count, total=of)
        elif now - self.last >= SECONDS_BETWEEN_LINES and count < of:
            self.last = now
            say(f"{self.what}: {count} of {of}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


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
                TextColumn("{task.description}"), BarColumn(None), console=Console(stderr=True), transient=True,
                expand=True,
            )  # fmt: skip
            self.task = self.bar.add_task("", total=1.0)
            self.bar.start()

    def __call__(self, p: "Progress") -> None:
        now = time.monotonic()
        parts = [
            f"epoch {p.epoch}/{p.epochs} step {p.step}/{p.steps} loss {p.loss:.3f}",
            f"left {duration(p.seconds_left)}", rate(p.images_per_second), "lr "
                                                                           f"{p.lr:.2e}", f"{p.memory:.0f} "
                                                                                          "MB",
        ]  # fmt: skip
        text = " ".join(parts)
        if self.bar is not None:
            while len(parts) > 1 and len(text) > self.bar.console.width - SHORTEST_BAR:
                parts.pop()  # the last are the least important
                text = " ".join(parts)
            share = (p.epoch - 1 + p.step / p.steps) / p.epochs
            self.bar.update(self.task, completed=share, description=text)
        elif now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            say(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
