"""Latency of callables, measured so that the figures can be compared, with the conditions they were measured under.

All that is compared runs in turn, in an order drawn anew each round: a machine that slows down or gets busy then slows
down everybody. So each call starts with the caches as another one left them, as in an app that does other things too.
Nothing here knows what it measures; the caller sets the threads of what it hands in.
"""

import gc
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from .errors import UsageError, choose

PACKAGES = ("fleetnet", "torch", "onnxruntime")  # whose versions decide the figures
FEWEST = 5  # rounds, before a budget may end a measurement


@dataclass(frozen=True)
class Row:
    """The times of one thing in the order of the rounds; row i and row j share their rounds. All in milliseconds."""

    name: str
    times: tuple[float, ...] = field(repr=False)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def p90(self) -> float:
        """The time that nine of ten calls stay within."""
        return sorted(self.times)[-(-9 * len(self.times) // 10) - 1]

    def to_dict(self) -> dict[str, str | int | float]:
        return {
            "name": self.name,
            "runs": len(self.times),
            "median_ms": self.median,
            "p90_ms": self.p90,
            "mean_ms": statistics.fmean(self.times),
            "min_ms": min(self.times),
        }


def measure(
    calls: Mapping[str, Callable[[], object]], runs: int = 100, warmup: int = 10, seconds: float | None = None
) -> list[Row]:
    """Time each of `calls` `runs` times, after `warmup` calls that do not count, in an order shuffled each round.

    `seconds` ends the measurement after the round in which they are used up, warm-up apart, but not before the fifth.
    A call must return only when its work is done (synchronize a GPU inside it).
    """
    if not calls:
        raise UsageError("nothing to measure: give at least one call")
    if runs < 1 or warmup < 0:
        raise UsageError(f"runs is {runs} and warmup is {warmup}; allowed: runs of at least 1, warmup of at least 0")
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # so that no call pays for the garbage of another
    try:
        began = time.perf_counter()
        for done in range(runs):
            if seconds is not None and done >= FEWEST and time.perf_counter() - began > seconds:
                break
            shuffle(order)
            for name in order:
                start = time.perf_counter_ns()
                calls[name]()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    finally:
        if collecting:
            gc.enable()
    return [Row(name, tuple(measured)) for name, measured in times.items()]


def ratios(rows: Sequence[Row], base: str) -> dict[str, float]:
    """How many times as fast as `base` each is: the median over rounds of base's time / its time."""
    by_name = {row.name: row for row in rows}
    if base not in by_name:
        raise UsageError(f"no row {base!r} to compare with: {choose(base, by_name)}")
    reference = by_name[base].times
    return {row.name: statistics.median(b / t for b, t in zip(reference, row.times, strict=True)) for row in rows}


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


def card(threads: int) -> dict[str, object]:
    """The conditions of a measurement; what this system does not tell is None. `threads` is what the calls may use."""
    model = re.search(r"^model name\s*: (.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "governor": governor.strip() if governor else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # runnable processes, mean of a minute
        "threads": threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def warnings(rows: Sequence[Row], card: Mapping[str, object]) -> list[str]:
    """Reasons to doubt the figures: a busy machine, a saving governor, a wide spread. `card` from before measuring."""
    found = []
    load, cores, threads = card["load"], card["cores"], card["threads"]
    if isinstance(load, float) and isinstance(cores, int) and isinstance(threads, int) and load > cores - threads + 0.5:
        found.append(f"the machine is busy: load {load:.1f} on {cores} cores before {threads} more threads were used")
    if card["governor"] not in (None, "performance"):
        found.append(f"the CPU governor is {card['governor']!r}, so the clock may change; best is 'performance'")
    wide = [row for row in rows if row.p90 > 1.2 * row.median]
    return found + [f"{row.name} spreads widely: p90 is {row.p90 / row.median:.2f} times the median" for row in wide]
