"""Latency of callables, so that figures can be compared, and the conditions of measuring.

All that is compared runs in turn, in an order drawn anew each round: a machine that slows down or
gets busy then slows down everybody. So each call starts with the caches as another one left them,
as in an app that does other things too. Nothing here knows what it measures; the caller sets the
threads of what it hands in.

Beside the wall clock the CPU time of the process is read. What a call of one thread did not compute
it waited for a core, while others had it: ratios are of the time without waiting, which is what the
same call takes on a machine of its own. On two cores with four to seven programs computing, the
worst of seven ratios differed between two runs of 100 rounds by 15 % in wall clock time and by 6 %
without the waiting (medians over 15 pairs of runs); ratios of the fastest calls by 69 %. Of calls
with several threads only interruptions are known.
"""

import gc
import math
import os
import platform
import random
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import pairwise, permutations
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError, suggest

PACKAGES = ("fleetnet", "torch", "onnxruntime")  # whose versions decide the figures
FEWEST = 5  # rounds, before a budget may end a measurement
# seconds that idle threads are watched, and that are waited for them at most
QUIET, PATIENCE = 0.002, 0.1
AGREE = 0.1  # relative difference of ratios that two runs should stay within
WAITING = 0.1  # share of the time that calls may wait for a core before the machine counts as busy
SPARE = 0.1  # cores that others may use of those that we need; every system does something
STOLEN = 0.02  # share of the cores that the host of a virtual machine may give to others
WIDE = 1.2  # p90 / median
# Blocks of consecutive rounds -> 95 % quantile of Student's t for as many, times sqrt(2), since two
# runs are compared.
BLOCKS = {10: 3.20, 5: 3.93}
EXACT = 8  # things compared, up to which all orders are tried
SHUFFLES = 100_000  # orders tried of more


@dataclass(frozen=True)
class Row:
    """The times of one thing in the order of the rounds, which all rows share. In milliseconds."""

    name: str
    times: tuple[float, ...] = field(repr=False)
    # Which part of each time it waited for a core; None: unknown.
    waited: tuple[float, ...] | None = field(repr=False, default=None)
    threads: int = 1  # of the CPU; 0: what computes is something else
    # How often the system took a core away, in each round.
    interrupted: tuple[int, ...] = field(repr=False, default=())
    least: float | None = None  # the fastest call, where a time is the mean of several

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def p90(self) -> float:
        """The time that nine of ten calls stay within."""
        return sorted(self.times)[-(-9 * len(self.times) // 10) - 1]

    @property
    def working(self) -> tuple[float, ...]:
        """The times without the waiting, where that is known."""
        if not self.waited:
            return self.times
        return tuple(t - w for t, w in zip(self.times, self.waited, strict=True))

    def to_dict(self) -> dict[str, str | int | float | None]:
        waited_share = sum(self.waited) / sum(self.times) if self.waited else None
        return {
            "name": self.name,
            "threads": self.threads,
            "runs": len(self.times),
            "median_ms": self.median,
            "p90_ms": self.p90,
            "mean_ms": statistics.fmean(self.times),
            "min_ms": min(self.times) if self.least is None else self.least,
            "images_per_second": 1000 / self.median,
            "working_ms": statistics.median(self.working),  # median without waiting for a core
            "waited": waited_share,
        }


class Sample(NamedTuple):
    """What one call took, or what the clocks say."""

    wall: int  # nanoseconds
    cpu: int  # nanoseconds, of all threads of this process
    interruptions: int  # how often the system took a core away from this process


def _clocks() -> Sample:
    interruptions = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return Sample(time.perf_counter_ns(), time.process_time_ns(), interruptions)


def _settle() -> None:
    """Wait until no other thread of this process computes.

    Threads of runtimes spin for some time after a call.
    """
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(QUIET)
        if time.process_time() - before < QUIET / 4:
            return


def measure(
    calls: Mapping[str, Callable[[], object]],
    runs: int = 100,
    warmup: int = 10,
    seconds: float | None = None,
    *,
    threads: Mapping[str, int] | None = None,
    prepare: Callable[[str], object] | None = None,
) -> list[Row]:
    """Time each of `calls` `runs` times, in an order shuffled each round.

    Before that there are `warmup` calls of each that do not count. `seconds` ends the measurement
    after the round in which they are used up, warm-up apart, but not before the fifth. `threads`
    says how many each may use, where it is not one: 0 where something else computes (a GPU;
    synchronize it inside the call); with several there are pauses, since threads that spin after a
    call would disturb the next. `prepare` is called with the name before each call, and not timed.
    """
    if not calls:
        raise UsageError("nothing to measure: give at least one call")
    if runs < 1 or warmup < 0:
        raise UsageError(
            f"runs is {runs} and warmup is {warmup}; allowed: runs of at least 1, "
            "warmup of at least 0"
        )
    threads_of = {name: (threads or {}).get(name, 1) for name in calls}
    several = max(threads_of.values()) > 1
    samples: dict[str, list[Sample]] = {name: [] for name in calls}

    def timed(name: str) -> Sample:
        if prepare is not None:
            prepare(name)
        if several:
            _settle()
        before = _clocks()
        calls[name]()
        return Sample(*(after - start for after, start in zip(_clocks(), before, strict=True)))

    for _ in range(warmup):
        for name in calls:
            timed(name)
    order = list(calls)
    shuffle = random.Random(0).shuffle
    with _without_garbage_collection():
        for _ in _rounds(runs, seconds):
            shuffle(order)
            for name in order:
                samples[name].append(timed(name))
    return [_row(name, threads_of[name], samples[name]) for name in calls]


def _rounds(runs: int, seconds: float | None) -> Iterator[int]:
    """Numbers of rounds, until there are `runs` or the seconds are used up, but at least FEWEST."""
    began = time.perf_counter()
    for number in range(runs):
        used_up = seconds is not None and time.perf_counter() - began > seconds
        if used_up and number >= FEWEST:
            return
        yield number


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """So that no call pays for the garbage of another."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _row(name: str, threads: int, samples: Sequence[Sample]) -> Row:
    waited = None
    if threads == 1:  # what it did not compute, it waited
        waited = tuple(max(sample.wall - sample.cpu, 0) / 1e6 for sample in samples)
    times = tuple(sample.wall / 1e6 for sample in samples)
    interrupted = tuple(sample.interruptions for sample in samples)
    return Row(name, times, waited, threads, interrupted)


def _speedups(rows: Sequence[Row], base: str) -> dict[str, list[float]]:
    """Base's time by each row's, round by round; without the waiting if both know theirs."""
    by_name = {row.name: row for row in rows}
    if base not in by_name:
        raise UsageError(f"no row {base!r} to compare with: {suggest(base, by_name)}")
    reference = by_name[base]
    speedups = {}
    for row in rows:
        of_base, of_row = reference.times, row.times
        if row.waited is not None and reference.waited is not None:
            of_base, of_row = reference.working, row.working
        speedups[row.name] = [b / t for b, t in zip(of_base, of_row, strict=True)]
    return speedups


def ratios(rows: Sequence[Row], base: str) -> dict[str, float]:
    """How many times as fast as `base` each is: the median over rounds of base's time / its time.

    Without the time that calls waited for a core, where both know theirs.
    """
    return {name: statistics.median(speedups) for name, speedups in _speedups(rows, base).items()}


def uncertainty(rows: Sequence[Row], base: str) -> dict[str, float | None]:
    """How far apart, relatively, the ratio of another such run may be (95 %).

    It is seen from how the ratio varies within this run. The rounds are cut into blocks, so that
    what lasts for some rounds counts; None for less than ten rounds. What lasts longer than a run
    cannot be seen from within it.
    """
    return {name: _spread(speedups) for name, speedups in _speedups(rows, base).items()}


def _spread(speedups: Sequence[float]) -> float | None:
    """The uncertainty of the median of ratios, round by round."""
    blocks = next((n for n in BLOCKS if len(speedups) >= 2 * n), None)
    if blocks is None:
        return None
    cuts = [len(speedups) * i // blocks for i in range(blocks + 1)]
    parts = [math.log(statistics.median(speedups[a:b])) for a, b in pairwise(cuts)]
    return math.expm1(BLOCKS[blocks] * statistics.stdev(parts) / math.sqrt(blocks))


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """The rank correlation of two lists and its p value (two-sided).

    None where one of them has a single value. p is the share of all orders of b whose correlation
    with a is at least as large in size: all of them are tried up to eight values, 100,000 random
    ones of more (p is then within 0.002). Equal values share their mean rank.
    """
    import numpy as np

    def ranks(values: Sequence[float]) -> "np.ndarray":
        _, inverse, counts = np.unique(
            np.asarray(values, float), return_inverse=True, return_counts=True
        )
        rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        return (rank - rank.mean()) / (rank.std() or 1)

    if len(a) != len(b) or len(a) < 3:
        raise UsageError(
            f"{len(a)} and {len(b)} values to correlate; allowed: equally many, at least 3"
        )
    x, y = ranks(a), ranks(b)
    if not x.any() or not y.any():
        return None
    rho = float(x @ y) / len(x)
    if len(x) <= EXACT:
        orders = np.array(list(permutations(y)))
        p = float(np.mean(np.abs(orders @ x) >= abs(rho) * len(x) - 1e-9))
    else:
        shuffled = np.random.default_rng(0).permuted(np.tile(y, (SHUFFLES, 1)), axis=1)
        p = (int(np.sum(np.abs(shuffled @ x) >= abs(rho) * len(x) - 1e-9)) + 1) / (SHUFFLES + 1)
    return rho, p


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def card(threads: int, packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """The conditions of a measurement; what this system does not tell is None.

    `threads` is what calls use at most.
    """
    model = re.search(r"^model name\s*: (.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "governor": governor.strip() if governor else None,
        "load": os.getloadavg()[0],  # runnable processes, mean of a minute
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


class Usage(NamedTuple):
    """Seconds since some moment; NaN where the system does not tell."""

    wall: float
    own: float  # CPU time of this process
    all: float  # CPU time of all processes
    stolen: float  # taken by the host of a virtual machine


def _usage() -> Usage:
    wall, own = time.perf_counter(), time.process_time()
    line = re.match(r"cpu +(.+)", _read("/proc/stat") or "")
    ticks = line[1].split() if line else []
    if len(ticks) < 8:
        return Usage(wall, own, math.nan, math.nan)
    seconds = [float(field) / os.sysconf("SC_CLK_TCK") for field in ticks]
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice already
    return Usage(wall, own, sum(seconds[:3]) + sum(seconds[5:7]), seconds[7])


def watch() -> Callable[[], dict[str, float | None]]:
    """Begin to watch the machine; the function returned tells what happened since.

    "others": cores that other programs used, on average; "stolen": share of the cores that the host
    of a virtual machine gave to others; "load": as in `card`. None where the system does not tell.
    """
    begin = _usage()

    def during() -> dict[str, float | None]:
        used = Usage(*(after - before for after, before in zip(_usage(), begin, strict=True)))
        others = max((used.all - used.own) / used.wall, 0.0)
        stolen = used.stolen / used.wall / (os.cpu_count() or 1)
        return {
            "others": others if math.isfinite(others) else None,
            "stolen": stolen if math.isfinite(stolen) else None,
            "load": os.getloadavg()[0],
        }

    return during


# Reasons to doubt ---------------------------------------------------------------------------------


def warnings(
    rows: Sequence[Row],
    card: Mapping[str, object],
    during: Mapping[str, float | None] | None = None,
) -> list[str]:
    """Reasons to doubt figures: a busy machine, a saving governor, a wide spread, varying ratios.

    `card` is from before measuring, `during` what `watch` told after.
    """
    return [
        *_of_the_machine(card, during or {}),
        *_of_the_waiting(rows),
        *_of_the_spread(rows),
    ]


def _of_the_machine(
    card: Mapping[str, object], during: Mapping[str, float | None]
) -> Iterator[str]:
    load, cores, threads = card["load"], card["cores"], card["threads"]
    if isinstance(cores, int) and isinstance(threads, int):
        if isinstance(load, float) and load > cores - threads + 0.5:
            yield (
                f"the machine is busy: load {load:.1f} on {cores} cores before {threads} more "
                "threads were used"
            )
        others = during.get("others")
        if others and others + threads > cores + SPARE:
            yield (
                f"the machine was busy: other programs used {others:.1f} of {cores} cores "
                "during the measurement"
            )
    stolen = during.get("stolen")
    if stolen and stolen > STOLEN:
        yield f"the host of this virtual machine gave {stolen:.0%} of its cores to others"
    if card["governor"] not in (None, "performance"):
        yield (
            f"the CPU governor is {card['governor']!r}, so the clock may change; best is "
            "'performance'"
        )


def _of_the_waiting(rows: Sequence[Row]) -> Iterator[str]:
    of_one_thread = [row for row in rows if row.waited is not None]
    whole = sum(sum(row.times) for row in of_one_thread)
    waited = sum(sum(row.waited or ()) for row in of_one_thread) / (whole or 1)
    if waited > WAITING:
        yield (
            f"the machine was too busy: calls waited {waited:.0%} of their time for a core, so "
            "times are too long (ratios are without the waiting)"
        )
    interrupted = [
        row.name
        for row in rows
        if row.waited is None and row.interrupted and statistics.median(row.interrupted)
    ]
    if interrupted:
        yield (
            "the machine was too busy: most calls were interrupted, so times are too "
            f"long: {_few(interrupted)}"
        )


def _of_the_spread(rows: Sequence[Row]) -> Iterator[str]:
    wide = {row.name: row.p90 / row.median for row in rows if row.p90 > WIDE * row.median}
    if wide:
        worst = max(wide, key=lambda name: wide[name])
        yield f"{_few([worst, *wide])} spreads widely: p90 is {wide[worst]:.2f} times the median"
    if len(rows) < 2:
        return
    apart = {
        name: by
        for name, by in uncertainty(rows, rows[0].name).items()
        if by is not None and by > AGREE
    }
    if apart:
        worst = max(apart, key=lambda name: apart[name])
        yield (
            f"in another run, ratios to {rows[0].name} may differ by more than {AGREE:.0%}: of "
            f"{_few([worst, *apart])}, by up to {apart[worst]:.0%}. Measure when the machine "
            "is idle, or more runs"
        )


def _few(names: Sequence[str]) -> str:
    """The first of the names, and how many there are besides."""
    names = list(dict.fromkeys(names))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
