"""What an app waits for before its first prediction: a file is opened and run in a process of its own.

Importing is told apart from opening, since an app has other programs to import than we have: the
time and the memory are those beyond what a process takes that has imported everything. The file is
in the memory of the system by then, as after the first start of an app, so that no disk is
measured. Each file is opened several times, all of them in turn, and the median counts. The time
that the process waited for a core, while others had it, does not count where Linux tells it.

This module is also what the fresh process runs, which says what it measured as the last line:

    python -m fleetnet.measure.fresh JSON
"""

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ModelError
from ..reading import from_json, to_json
from ..resident import forget_high_water, resident

PROCESSES = 5  # that open each file
TIMEOUT = 600  # seconds that one of them may take
SCHEDULED = Path("/proc/thread-self/schedstat")  # nanoseconds: computed, waited; how often


@dataclass(frozen=True)
class Opening:
    """A file that a fresh process is to open, and the shape of the images that it is to run on."""

    runtime: str
    path: str
    threads: int
    shape: tuple[int, ...]  # (N, C, H, W)
    trust: bool = False


@dataclass(frozen=True)
class Fresh:
    """What one process took, or the medians of several."""

    import_ms: float  # everything that is needed, and Python's start not counted
    open_ms: float
    first_ms: float  # the first run
    # MB (1e6 bytes) at most while it opened and ran, above what it had after importing; None where
    # the system does not tell
    memory_mb: float | None

    @property
    def cold_ms(self) -> float:
        """From a file to its first outputs."""
        return self.open_ms + self.first_ms


def fresh(
    openings: Mapping[str, Opening], processes: int = PROCESSES
) -> tuple[dict[str, Fresh], list[str]]:
    """By name, what opening each file takes in a fresh process: medians over `processes` of each.

    A file that such a process cannot open or run is left out, and a line says why.
    """
    by_name: dict[str, list[Fresh]] = {name: [] for name in openings}
    refused: dict[str, str] = {}
    for _ in range(processes):
        for name, opening in openings.items():
            if name in refused:
                continue
            try:
                by_name[name].append(_in_a_process(opening))
            except ModelError as error:
                refused[name] = f"the fresh process of {name}: {error}"
    opened = {name: _median(each) for name, each in by_name.items() if name not in refused}
    return opened, list(refused.values())


def _median(measured: Sequence[Fresh]) -> Fresh:
    memory = [one.memory_mb for one in measured if one.memory_mb is not None]
    return Fresh(
        statistics.median(one.import_ms for one in measured),
        statistics.median(one.open_ms for one in measured),
        statistics.median(one.first_ms for one in measured),
        statistics.median(memory) if memory else None,
    )


def _in_a_process(opening: Opening) -> Fresh:
    """Raises `ModelError` for a file that the process cannot open or run."""
    home = str(Path(__file__).parents[2])  # of the package
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.run(
            [sys.executable, "-m", __name__, to_json(asdict(opening))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{opening.path}: a fresh process did not open and run it within {TIMEOUT} s"
        ) from error
    said = process.stdout.strip().splitlines()
    if process.returncode or not said:
        reason = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(f"{opening.path}: a fresh process cannot open and run it: {reason}")
    return Fresh(**from_json(said[-1]))


# In the fresh process ------------------------------------------------------------------------------


def _measured_here(opening: Opening) -> Fresh:
    """Open the file and run it once, in this process."""
    begin = _clock()
    import numpy as np

    from .. import runtimes

    runtimes.find(opening.runtime).import_packages()
    image = np.random.default_rng(0).standard_normal(opening.shape, np.float32)
    imported = _clock()
    gc.collect()
    before = resident("VmRSS") if forget_high_water() else None
    beginning = _clock()
    run = runtimes.load(opening.runtime, opening.path, opening.threads, trust=opening.trust)
    opened = _clock()
    run(image)
    finished = _clock()
    peak = resident("VmHWM")
    return Fresh(
        imported - begin,
        opened - beginning,
        finished - opened,
        None if before is None or peak is None else (peak - before) / 1e6,
    )


def _clock() -> float:
    """Milliseconds, without those that this thread waited for a core."""
    try:
        waited = int(SCHEDULED.read_text().split()[1])
    except (OSError, IndexError):  # another system, or a kernel that does not count it
        waited = 0
    return (time.perf_counter_ns() - waited) / 1e6


if __name__ == "__main__":
    fields = from_json(sys.argv[1])
    opening = Opening(**{**fields, "shape": tuple(fields["shape"])})
    sys.stdout.write(to_json(asdict(_measured_here(opening))) + "\n")
