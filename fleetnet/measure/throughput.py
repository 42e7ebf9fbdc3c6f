"""How many images a second all cores together get through, by a file in its runtime.

Where a file may be run by several threads at once, or opened several times, each core gets a stream
of its own, which runs one image after the other on one thread: no core waits for another. Where all
calls of a runtime wait for each other, one stream runs on all cores.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROUNDS = 5  # the median of which counts
SECONDS = 0.3  # that a round lasts, about
Call = Callable[[], object]


@dataclass(frozen=True)
class Throughput:
    images_per_second: float
    streams: int  # that run at once
    threads: int  # of each


def streams_of(
    runtime: str,
    path: Path | str,
    shape: tuple[int, ...],
    *,
    trust: bool = False,
    cores: int | None = None,
) -> "Streams":
    """A file, opened for all cores, or for so many; `shape` is that of a batch, (N, C, H, W)."""
    from .. import runtimes

    cores = cores or os.cpu_count() or 1
    alone = runtimes.find(runtime).calls == "process"
    streams, threads = (1, cores) if alone else (cores, 1)
    copies = 1 if runtimes.find(runtime).calls == "many" else streams
    runs = [runtimes.load(runtime, path, threads, trust=trust) for _ in range(copies)]
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    calls: list[Call] = [
        lambda run=runs[number % copies]: run(image)  # type: ignore[misc]
        for number in range(streams)
    ]
    return Streams(calls, len(image), threads)


@dataclass(frozen=True)
class Streams:
    """Calls that run at once, each over and over, with as many images in each."""

    calls: list[Call]
    images: int
    threads: int  # of each call

    def throughput(self, calls_each: int) -> float:
        """Images a second, from the first call to the end of the last."""

        def stream(call: Call) -> None:
            for _ in range(calls_each):
                call()

        with ThreadPoolExecutor(len(self.calls)) as pool:
            begin = time.perf_counter()
            for finished in [pool.submit(stream, call) for call in self.calls]:
                finished.result()
            seconds = time.perf_counter() - begin
        return calls_each * len(self.calls) * self.images / seconds


def measure(by_name: Mapping[str, Streams], rounds: int = ROUNDS) -> dict[str, Throughput]:
    """The median of some rounds, in each of which all of them run in turn."""
    calls_each = {name: _calls_of_a_round(streams) for name, streams in by_name.items()}
    measured: dict[str, list[float]] = {name: [] for name in by_name}
    for _ in range(rounds):
        for name, streams in by_name.items():
            measured[name].append(streams.throughput(calls_each[name]))
    return {
        name: Throughput(statistics.median(measured[name]), len(streams.calls), streams.threads)
        for name, streams in by_name.items()
    }


def _calls_of_a_round(streams: Streams) -> int:
    """How many calls of each stream fill a round, by the second call."""
    streams.throughput(1)
    of_one_call = streams.images * len(streams.calls) / streams.throughput(1)
    return max(1, math.ceil(SECONDS / of_one_call))
