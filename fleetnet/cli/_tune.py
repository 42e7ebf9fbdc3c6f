"""`fleetnet bench --tune`: the fastest way to run a model here that still finds what it should."""

import dataclasses
import os
import shlex
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ExportError, UsageError
from ._data import Reading
from ._show import say, shown, table, tell
from ._timing import measure, say_doubts, threads_of, write_csv

if TYPE_CHECKING:
    from ..deploy.trained import Trained
    from ..measure.candidates import Subject
    from ..measure.latency import Row
    from ..measure.tune import Candidates, Limits, Measured

MAX_DROP = 1.0  # points
COLUMNS = [
    "",
    "median ms",
    "p90 ms",
    "working ms",
    "x as fast",
    "%",
    "lost",
    "file MB",
    "memory MB",
    "",
]
LEAST = ("p90 ms", "working ms")  # left out first where it is narrow


def tune(
    models: Sequence[str],
    root: str,
    *,
    reading: Reading,
    to: str | None,
    threads: str | None,
    limits: "Limits",
    runs: int,
    warmup: int,
    csv: str | None,
    trust: bool,
) -> dict[str, object]:
    """Tune the first of the `models`, beside the files that follow it, on the images of `root`."""
    from ..deploy.predictor import Predictor, load
    from ..measure import latency
    from ..measure.tune import alike, all_choices, candidates, fastest, judge_of, memory_of
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
        memory = memory_of(by_name, say) if limits.max_memory is not None else {}
    titles = {name: subject.title for name, subject in by_name.items()}
    lines = _lines(rows, by_name, made, judge.expected, limits, memory)
    best, level = fastest(rows, [line.row.name for line in lines if not line.beyond])
    documents = [line.to_dict() for line in lines]
    table(
        f"{model}, % is {judge.by}; x as fast as {rows[0].name}",
        COLUMNS,
        [line.cells(best) for line in lines],
        LEAST,
    )
    if best is None:
        tell(f"nothing {limits}")
    else:
        tell(f"fastest that {limits}: {best}")
    if level:
        tell(f"as fast, as far as this run can tell: {', '.join(level)}")
    if best is not None and titles[best] in made.exported:
        target = ":".join(made.exported[titles[best]])
        tell(f"to write its file:  fleetnet export --model {shlex.quote(model)} --to {target}")
    if csv:
        write_csv(csv, documents)
    doubts = latency.warnings(rows, card, during)
    say_doubts(doubts)
    return {
        "model": model,
        "by": judge.by,
        **dataclasses.asdict(limits),
        "fastest": best,
        "as_fast": level,
        "conditions": card,
        "during": during,
        "rows": documents,
        "skipped": made.skipped,
        "warnings": doubts,
        "exit_code": ExportError.exit_code if best is None else 0,
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
    measured: "Measured"  # what the limits are held against
    beyond: list[str]  # the limits that it does not keep to, in words

    def to_dict(self) -> dict[str, object]:
        return {
            **self.row.to_dict(),
            "what": self.what,
            "times_as_fast": self.times_as_fast,
            "score": self.score,
            "drop": self.measured.drop,
            "file_mb": self.measured.mb,
            "memory_mb": self.measured.memory,
            "allowed": not self.beyond,
            "beyond": ", ".join(self.beyond) or None,
        }

    def cells(self, best: str | None) -> list[str]:
        """Of the table, in which the `best` is marked."""
        return [
            self.row.name,
            f"{self.row.median:.2f}",
            f"{self.row.p90:.2f}",
            f"{self.measured.ms:.2f}",
            f"{self.times_as_fast:.2f}",
            f"{self.score:.2f}",
            f"{round(self.measured.drop, 2) + 0:.2f}",
            shown(self.measured.mb),
            shown(self.measured.memory),
            "fastest" if self.row.name == best else ", ".join(self.beyond),
        ]


def _lines(
    rows: "Sequence[Row]",
    by_name: "Mapping[str, Subject]",
    made: "Candidates",
    expected: float,
    limits: "Limits",
    memory: Mapping[str, float | None],
) -> list[Line]:
    """What is known of each row, the fastest first; `expected` is the score of the model."""
    from ..measure import latency
    from ..measure.tune import Measured

    faster = latency.ratios(rows, rows[0].name)
    lines = []
    for row in rows:
        subject = by_name[row.name]
        score = made.scores[subject.title]
        measured = Measured(
            expected - score,
            statistics.median(row.working),
            None if subject.file_bytes is None else subject.file_bytes / 1e6,
            memory.get(row.name),
        )
        beyond = limits.beyond(measured)
        lines.append(Line(row, subject.title, faster[row.name], score, measured, beyond))
    return sorted(lines, key=lambda line: -line.times_as_fast)
