"""How well the figures of `fleetnet bench --app` repeat: each is measured some times, for the same files.

    python benchmarks/repeat.py --repeats 5 FILE ...

The spread is (largest - smallest) / median, in percent, of the file for which it is widest. With
`--processes 1` cold load and memory are those of single processes, where bench takes the median of
five. The load of the machine stands beside each repeat.
"""

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fleetnet.measure import app, fresh, pipeline
from fleetnet.measure.candidates import Subject, of_file

RUNS, WARMUP = 60, 5  # of each part of the pipeline


def spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / (statistics.median(values) or 1)


def once(files: Mapping[str, Subject], content: bytes, processes: int) -> dict[str, app.ForApp]:
    """All figures of the files, by name."""
    openings = {name: app.opening_of(subject) for name, subject in files.items()}
    ways, without_way = app.pipelines(files, content, RUNS, WARMUP)
    together, apart = app.throughputs(files)
    opened, not_opened = fresh.fresh(openings, processes)
    for line in (*without_way, *apart, *not_opened):
        print(f"skipped {line}", flush=True)
    return {
        name: app.ForApp(opened.get(name), ways.get(name), together.get(name)) for name in files
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=fresh.PROCESSES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = {str(path): of_file(path, [1])[0] for path in args.files}
    values: dict[str, dict[str, list[float]]] = {column: {} for column in app.FIGURES}
    for number in range(args.repeats):
        measured = once(files, pipeline.usual_picture(), args.processes)
        print(f"repeat {number + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
        for name, figures in measured.items():
            for column, value in figures.to_dict().items():
                if value is not None:
                    values[column].setdefault(name, []).append(value)
    print("\n| figure | widest spread | of | values |\n|---|---|---|---|")
    for column, by_name in values.items():
        if by_name:
            name = max(by_name, key=lambda name: spread(by_name[name]))
            shown = ", ".join(f"{value:.4g}" for value in by_name[name])
            print(f"| {column} | {spread(by_name[name]):.1%} | {name} | {shown} |")
    print(json.dumps(values))


if __name__ == "__main__":
    main()
