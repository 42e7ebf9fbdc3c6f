"""log.jsonl of a run folder: a line for each epoch, which counts from 1."""

from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..reading import HISTORY, from_json, read_text
from ..tasks import Result as Result
from .folder import LOG

# of the log: "epoch", figures in "train", "raw" and "ema", names in "skipped", "seconds"
Line = dict[str, Any]
# of a run, as it is saved: "epochs", "best" and "log", and what `Learner.state` gives
State = dict[str, Any]

COUNTED = "epochs_from"  # in a line: the number of the first epoch; version 0.1 counted from 0


def read_log(run: Path) -> list[Line]:
    """The lines of log.jsonl in a run folder, with epochs from 1; a last one cut short is left out.

    Raises `ModelError`, naming the line, for a file that is damaged otherwise.
    """
    path = run / LOG
    if not path.exists():
        return []
    try:
        *lines, rest = read_text(path, HISTORY).split("\n")
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is damaged: it is not UTF-8 text") from error
    if "\x00" in rest:  # which no kill leaves, but a disk
        raise ModelError(f"{path}, line {len(lines) + 1} is damaged: it holds zeros")
    entries = [_entry(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return [
        line if COUNTED in line else {**line, "epoch": line["epoch"] + 1, COUNTED: 1}
        for line in entries
    ]


def _entry(line: str, where: str) -> Line:
    """What a line of the log says, if it is one that `fit` wrote."""
    try:
        entry = from_json(line)
    except ValueError as error:
        raise ModelError(f"{where} is damaged: not JSON: {error}") from error
    entry = entry if isinstance(entry, dict) else {}
    epoch, skipped = entry.get("epoch"), entry.get("skipped", [])
    parts = [entry.get("train"), *(entry[form] for form in ("raw", "ema") if form in entry)]
    whole = isinstance(epoch, int) and epoch >= 0 and isinstance(skipped, list)
    if not whole or not all(
        isinstance(part, dict) and all(map(is_figure, part.values())) for part in parts
    ):
        raise ModelError(
            f"{where} is damaged: a line has an epoch, skipped files, and figures of train, raw "
            "and ema"
        )
    return entry


def is_figure(value: object) -> bool:
    """Whether a value of a metric is a number, or None, where there was nothing to measure."""
    return value is None or isinstance(value, int | float)


def figures_of(result: Result) -> Result:
    """The numbers of a result, for the log and the state: nothing that grows with the classes."""
    return {key: value for key, value in result.items() if is_figure(value)}
