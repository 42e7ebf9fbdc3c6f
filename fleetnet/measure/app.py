"""What an app waits for beside a run: see `fresh`, `pipeline`, `throughput`, and a runtime's `kernels`.

All of it is of exported files. What cannot be had of one is None, and a line says why.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FleetnetError
from . import fresh, throughput
from .candidates import Say, Subject, timed
from .fresh import Fresh, Opening
from .pipeline import PARTS, Pipeline, Steps
from .throughput import Throughput

if TYPE_CHECKING:
    from ..runtimes import Kernel


FIGURES = (
    "cold_ms",
    "open_ms",
    "first_ms",
    "import_ms",
    "memory_mb",
    *(f"{part}_ms" for part in PARTS),
    "pipeline_ms",
    "images_per_second_of_all_cores",
    "streams",
)


@dataclass(frozen=True)
class ForApp:
    """The figures of one file with some number of threads."""

    fresh: Fresh | None = None
    pipeline: Pipeline | None = None
    throughput: Throughput | None = None  # of all cores, whatever the number of threads

    def to_dict(self) -> dict[str, float | int | None]:
        """All figures by name, with their units; None for what was not measured."""
        figures: dict[str, float | int | None] = dict.fromkeys(FIGURES)
        if self.fresh is not None:
            figures |= {**asdict(self.fresh), "cold_ms": self.fresh.cold_ms}
        if self.pipeline is not None:
            figures |= {f"{part}_ms": of_part for part, of_part in self.pipeline.parts.items()}
            figures["pipeline_ms"] = self.pipeline.whole
        if self.throughput is not None:
            figures["images_per_second_of_all_cores"] = self.throughput.images_per_second
            figures["streams"] = self.throughput.streams
        return figures


def files_of(by_name: Mapping[str, Subject]) -> dict[str, Subject]:
    """Those of the subjects that are exported files."""
    return {name: subject for name, subject in by_name.items() if subject.file is not None}


def for_app(
    files: Mapping[str, Subject], content: bytes, runs: int, warmup: int, say: Say
) -> tuple[dict[str, ForApp], list[str]]:
    """The figures by name, and a line for each that could not be had.

    `content` is a JPEG for the pipeline, whose parts run `runs` times after `warmup` more.
    """
    say(f"opening each of {len(files)} in {fresh.PROCESSES} fresh processes")
    opened, not_opened = fresh.fresh({name: opening_of(one) for name, one in files.items()})
    say(f"measuring the parts of {len(files)} in turn")
    ways, without_way = pipelines(files, content, runs, warmup)
    say(f"measuring {len(files)} on all cores")
    together, apart = throughputs(files)
    skipped = [*not_opened, *without_way, *apart]
    for line in skipped:
        say(f"skipped {line}")
    figures = {name: ForApp(opened.get(name), ways.get(name), together.get(name)) for name in files}
    return figures, skipped


def opening_of(subject: Subject) -> Opening:
    """What a fresh process is to open."""
    path = str(subject.file)
    return Opening(subject.runtime, path, subject.threads, subject.shape, subject.trust)


def pipelines(
    files: Mapping[str, Subject], content: bytes, runs: int, warmup: int
) -> tuple[dict[str, Pipeline], list[str]]:
    """The parts of the way from a JPEG to what is found, and a line for each file without such.

    A model that was given by name has none.
    """
    from ..deploy.predictor import load

    steps, skipped = {}, []
    for name, subject in files.items():
        if not Path(subject.model).exists():
            skipped.append(
                f"the pipeline of {name}: a model that is given by name has random weights, which "
                "find nothing: give a run folder, a checkpoint or an exported file"
            )
            continue
        try:
            predictor = load(str(subject.file), threads=subject.threads, trust=subject.trust)
            steps[name] = Steps(predictor, content)
        except FleetnetError as error:
            skipped.append(f"the pipeline of {name}: {error}")
    calls = {
        (name, part): call for name, one in steps.items() for part, call in one.calls().items()
    }
    if not calls:
        return {}, skipped
    titles = {key: f"{key[0]}: {key[1]}" for key in calls}
    rows = timed(
        {titles[key]: call for key, call in calls.items()},
        {titles[key]: files[key[0]] for key in calls},
        runs,
        warmup,
    )
    by_key = dict(zip(calls, rows, strict=True))
    parts = {name: {part: by_key[name, part] for part in PARTS} for name in steps}
    return {name: Pipeline.of(rows) for name, rows in parts.items()}, skipped


def throughputs(files: Mapping[str, Subject]) -> tuple[dict[str, Throughput], list[str]]:
    """By name; files that are the same but for the number of threads are measured once.

    A file that cannot be opened several times is left out, and a line says why.
    """
    by_file = {str(subject.file): subject for subject in files.values()}
    streams, skipped = {}, []
    for path, subject in by_file.items():
        try:
            streams[path] = throughput.streams_of(
                subject.runtime, path, subject.shape, trust=subject.trust
            )
        except FleetnetError as error:
            skipped.append(f"{path} on all cores: {error}")
    measured = throughput.measure(streams)
    together = {
        name: measured[str(subject.file)]
        for name, subject in files.items()
        if str(subject.file) in measured
    }
    return together, skipped


def kernels_of(
    files: Mapping[str, Subject],
) -> tuple[dict[str, "list[Kernel] | None"], list[str]]:
    """What computes each layer, by the file's path, None where the runtime does not tell.

    A line says why where it should, and could not.
    """
    from .. import runtimes

    kernels: dict[str, list[Kernel] | None] = {}
    skipped = []
    for subject in files.values():
        path = str(subject.file)
        if path in kernels:
            continue
        image = np.random.default_rng(0).standard_normal(subject.shape, np.float32)
        try:
            kernels[path] = runtimes.kernels(subject.runtime, path, image)
        except FleetnetError as error:
            kernels[path] = None
            skipped.append(f"the kernels of {path}: {error}")
    return kernels, skipped
