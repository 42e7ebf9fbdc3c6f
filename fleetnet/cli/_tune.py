"""`fleetnet bench --tune`: the fastest way to run a model here that still finds what it should."""

import os
import shlex
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ._data import Reading
from ._show import say, table, tell
from ._timing import measure, say_doubts, threads_of, write_csv

if TYPE_CHECKING:
    from ..deploy.trained import Trained
    from ..measure.latency import Row
    from ..measure.tune import Candidates

MAX_DROP = 1.0  # points
COLUMNS = ["", "median ms", "p90 ms", "working ms", "x as fast", "%", "lost", ""]
LEAST = ("p90 ms", "working ms")  # left out first where it is narrow


def tune(
    models: Sequence[str],
    root: str,
    *,
    reading: Reading,
    to: str | None,
    threads: str | None,
    limit: float,
    runs: int,
    warmup: int,
    csv: str | None,
    trust: bool,
) -> dict[str, object]:
    """Tune the first of the `models`, beside the files that follow it, on the images of `root`."""
    from ..deploy.predictor import Predictor, load
    from ..measure import latency
    from ..measure.tune import alike, all_choices, candidates, fastest, judge_of
    from ..runtimes import choice

    model, *files = models
    numbers = threads_of(threads) or sorted({1, os.cpu_count() or 1})
    trained = _trained(model)
    reference = Predictor(trained)
    # before what takes minutes
    others = {path: alike(load(path, trust=trust), reference, path) for path in files}
    say(f"judging {model}")
    judge = judge_of(reference, root, reading.format, reading.elsewhere)
    choices = all_choices() if to is None else [choice(text) for text in to.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        made = candidates(trained, others, judge, choices, numbers, Path(folder), say, trust=trust)
        by_name = {subject.name(several=True): subject for subject in made.subjects}
        rows, card, during = measure(by_name, runs, warmup)
    titles = {name: subject.title for name, subject in by_name.items()}
    drops = {name: judge.expected - made.scores[title] for name, title in titles.items()}
    best, level = fastest(rows, drops, limit)
    lines = _lines(rows, titles, made, drops, limit)
    documents = [line.to_dict() for line in lines]
    table(
        f"{model}, % is {judge.by}; x as fast as {rows[0].name}",
        COLUMNS,
        [line.cells(best) for line in lines],
        LEAST,
    )
    tell(f"fastest that loses no more than {limit:g} points: {best}")
    if level:
        tell(f"as fast, as far as this run can tell: {', '.join(level)}")
    if titles[best] in made.exported:
        target = ":".join(made.exported[titles[best]])
        tell(f"to write its file:  fleetnet export --model {shlex.quote(model)} --to {target}")
    if csv:
        write_csv(csv, documents)
    doubts = latency.warnings(rows, card, during)
    say_doubts(doubts)
    return {
        "model": model,
        "by": judge.by,
        "max_drop": limit,
        "fastest": best,
        "as_fast": level,
        "conditions": card,
        "during": during,
        "rows": documents,
        "skipped": made.skipped,
        "warnings": doubts,
    }


def _trained(model: str) -> "Trained":
    """The checkpoint that is tuned; `UsageError` for an exported file."""
    from ..deploy.predictor import runtime_of
    from ..deploy.trained import Trained

    if runtime_of(Path(model)) != "torch":
        raise UsageError(
            f"--tune begins with a run folder or a checkpoint, and {model} is an exported file"
        )
    return Trained.read(model)


@dataclass(frozen=True)
class Line:
    """A candidate that was timed and judged."""

    row: "Row"
    what: str  # the title of the subject
    times_as_fast: float
    score: float
    drop: float  # points below the model
    allowed: bool

    def to_dict(self) -> dict[str, object]:
        return {
            **self.row.to_dict(),
            "what": self.what,
            "times_as_fast": self.times_as_fast,
            "score": self.score,
            "drop": self.drop,
            "allowed": self.allowed,
        }

    def cells(self, best: str) -> list[str]:
        """Of the table, in which the `best` is marked."""
        verdict = "" if self.allowed else "loses too much"
        return [
            self.row.name,
            f"{self.row.median:.2f}",
            f"{self.row.p90:.2f}",
            f"{statistics.median(self.row.working):.2f}",
            f"{self.times_as_fast:.2f}",
            f"{self.score:.2f}",
            f"{round(self.drop, 2) + 0:.2f}",
            "fastest" if self.row.name == best else verdict,
        ]


def _lines(
    rows: "Sequence[Row]",
    titles: Mapping[str, str],
    made: "Candidates",
    drops: Mapping[str, float],
    limit: float,
) -> list[Line]:
    """What is known of each row, the fastest first."""
    from ..measure import latency

    faster = latency.ratios(rows, rows[0].name)
    lines = [
        Line(
            row,
            titles[row.name],
            faster[row.name],
            made.scores[titles[row.name]],
            drops[row.name],
            drops[row.name] <= limit,
        )
        for row in rows
    ]
    return sorted(lines, key=lambda line: -line.times_as_fast)
