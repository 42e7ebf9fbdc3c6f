"""`fleetnet bench`: latency of models in forms, runtimes, precisions and threads, in turn."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from ..errors import ExportError, UsageError, suggest
from ..measure.candidates import FORMS, Accuracy, Subject, Wanted
from ._app import jpeg, measure_beside
from ._arguments import TRUST, check_outputs, flag, usual_sizes
from ._data import Reading
from ._settings import About, switch
from ._show import say, table, tell
from ._timing import measure, say_conditions, say_doubts, threads_of, write_csv
from ._tune import MAX_DROP, tune

if TYPE_CHECKING:
    from ..measure.devices import Device
    from ..measure.flops import Counts
    from ..measure.latency import Row

EXAMPLE = "fleetnet bench --model mobileone_s0 repvit_m0_9 timm/mobilevit_s --to onnx --size 224 --threads 1"
SIZES = ("MACs", "parameters", "activations", "bytes")
FEWEST = 5  # networks, for a rank correlation to say anything
# left out first where it is narrow
LEAST = "min ms", "mean ms", "waited", "p90 ms", "images/s", "working ms"
FIGURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Bench:
    model: list[str] = field(
        metadata=About(
            help="run folders, checkpoints, exported files, names, or peers (timm/NAME)", nargs="+"
        )
    )
    to: str | None = field(
        default=None,
        metadata=About(
            help="runtimes to export to, as onnx,openvino:bf16 (default: onnx), or none"
        ),
    )
    forms: str | None = field(
        default=None,
        metadata=About(help=f"forms to time in torch (default: {','.join(FORMS)}), or none"),
    )
    size: str | None = field(
        default=None,
        metadata=About(
            help=f"of models given by name (default: {usual_sizes()}); others have one", null=True
        ),
    )
    threads: str | None = field(
        default=None,
        metadata=About(
            help="CPU threads, one number or several as 1,2", usual="1; --tune: 1 and all cores"
        ),
    )
    runs: int = field(default=100, metadata=About(help="counted runs of each", kind=PositiveInt))
    warmup: int = field(
        default=10,
        metadata=About(help="runs of each before, not counted", kind=NonNegativeInt),
    )
    trust: bool = switch(TRUST)
    csv: str | None = field(default=None, metadata=About(help="file for the table"))
    plot: str | None = field(
        default=None,
        metadata=About(help="file (.png) for accuracy over latency with the Pareto front"),
    )
    accuracy: list[str] | None = field(
        default=None,
        metadata=About(
            help="of the plot, as NAME=VALUE",
            usual="a checkpoint's own metric, and what was published for a name",
            nargs="+",
        ),
    )
    app: bool = switch(
        "also what an app waits for, of each file: cold load and memory of a fresh process, the way "
        "from a JPEG to what is found in it, all cores together, and the share of "
        "multiply-accumulates in fast kernels, with the other layers named"
    )
    picture: str | None = field(
        default=None,
        metadata=About(help="--app: the JPEG that is decoded", usual="a made one of 640x480"),
    )
    require_fast: float | None = field(
        default=None,
        metadata=About(
            help="share of multiply-accumulates, as 0.99, that each file must have in the fast "
            "kernels of its runtime; else the layers outside are named, and the exit code is 5",
            kind=ClosedUnitInterval,
        ),
    )
    tune: bool = switch(
        "find the fastest runtime, precision and threads of this machine for one checkpoint, "
        "given before its files"
    )
    data: str | None = field(
        default=None,
        metadata=About(help="--tune: images with labels, or a folder of images without"),
    )
    reading: Reading = field(
        default_factory=Reading, metadata=About(help="--tune: how the data are read")
    )
    max_drop: float | None = field(
        default=None,
        metadata=About(
            help="--tune: points of accuracy, or of agreement with the float model, that may be "
            "lost",
            usual=str(MAX_DROP),
            kind=NonNegativeFloat,
        ),
    )
    max_ms: float | None = field(
        default=None,
        metadata=About(
            help="--tune: milliseconds that a run may take (median, without waiting for a core)",
            kind=PositiveFloat,
        ),
    )
    max_mb: float | None = field(
        default=None,
        metadata=About(
            help="--tune: MB that the file may have, with all its parts", kind=PositiveFloat
        ),
    )
    max_memory: float | None = field(
        default=None,
        metadata=About(
            help="--tune: MB of memory that a fresh process may take for opening and running the "
            "file, beyond its imports (Linux)",
            kind=PositiveFloat,
        ),
    )
    device: str | None = field(
        default=None,
        metadata=About(
            help="measure the files on adb:SERIAL or ssh:HOST, by the programs of --binary"
        ),
    )
    binary: list[str] | None = field(
        default=None,
        metadata=About(
            help="--device: path here or there of benchncnn, onnxruntime_perf_test, benchmark.out "
            "or ModuleBasic.out",
            nargs="+",
        ),
    )


def run(settings: Bench) -> dict[str, object]:
    _check(settings)
    if settings.tune and settings.data:
        from ..measure.tune import Limits

        return tune(
            settings.model,
            settings.data,
            reading=settings.reading,
            to=settings.to,
            threads=settings.threads,
            limits=Limits(
                MAX_DROP if settings.max_drop is None else settings.max_drop,
                settings.max_ms,
                settings.max_mb,
                settings.max_memory,
            ),
            runs=settings.runs,
            warmup=settings.warmup,
            csv=settings.csv,
            trust=settings.trust,
        )
    from ..measure import latency
    from ..measure.candidates import subjects

    threads = threads_of(settings.threads or "1")
    device = _device(settings)
    content = jpeg(settings.picture) if settings.app else b""
    with tempfile.TemporaryDirectory() as folder:
        wanted = _wanted(settings, threads, Path(folder))
        accuracies = accuracies_of(settings.accuracy or (), settings.model)
        timed, skipped = subjects(settings.model, wanted, accuracies, say)
        if settings.plot and not any(map(_drawn, timed)):
            raise UsageError(
                "--plot needs accuracies of deploy forms or files, and none is known: give "
                "--accuracy NAME=VALUE"
            )
        by_name = {subject.name(len(threads) > 1): subject for subject in timed}
        rows, card, during = _measured(settings, by_name, device, max(threads))
        beside = measure_beside(
            by_name,
            app=settings.app,
            kernels=settings.require_fast is not None,
            content=content,
            runs=settings.runs,
            warmup=settings.warmup,
        )
    documents = [
        {**document, **beside.of_row(row.name)}
        for row, document in zip(rows, show(rows, by_name, settings.runs), strict=True)
    ]
    beside.show(settings.picture or "a made one of 640x480")
    correlations = _correlate(rows, by_name)
    if settings.plot:
        _plot(rows, by_name, settings.plot)
    doubts = latency.warnings(rows, card, during)
    say_doubts(doubts)
    if settings.csv:
        write_csv(settings.csv, documents)
    refused = [] if settings.require_fast is None else beside.judged(settings.require_fast)
    return {
        "conditions": card,
        "during": during,
        "rows": documents,
        "correlations": correlations,
        "kernels": beside.to_dict(),
        "too_slow": refused,
        "skipped": [*skipped, *beside.skipped],
        "warnings": doubts,
        "exit_code": ExportError.exit_code if refused else 0,
    }


def _check(settings: Bench) -> None:
    """`UsageError` for flags that do not go together, `WriteError` where nothing can be written."""
    files = {"--csv": settings.csv, "--plot": settings.plot}
    check_outputs(files=files)
    for option, path in files.items():
        if path and not Path(path).parent.is_dir():
            raise UsageError(
                f"{option} is {path!r}, but there is no folder {str(Path(path).parent)!r}"
            )
    if settings.plot and Path(settings.plot).suffix not in FIGURES:
        raise UsageError(
            f"--plot is {settings.plot!r}; allowed: files that end in {', '.join(FIGURES)}"
        )
    _check_pairs(settings)
    _check_files(settings)
    if settings.tune:
        _check_tune(settings)


def _check_pairs(settings: Bench) -> None:
    """`UsageError` for a flag without the one that it goes with."""
    pairs = [  # a flag, its value, the one that it needs, and the value of that
        ("data", settings.data, "tune", settings.tune),
        ("format", settings.reading.format, "data", settings.data),
        ("images", settings.reading.images, "data", settings.data),
        ("masks", settings.reading.masks, "data", settings.data),
        ("max_drop", settings.max_drop, "tune", settings.tune),
        ("max_ms", settings.max_ms, "tune", settings.tune),
        ("max_mb", settings.max_mb, "tune", settings.tune),
        ("max_memory", settings.max_memory, "tune", settings.tune),
        ("picture", settings.picture, "app", settings.app),
        ("binary", settings.binary, "device", settings.device),
        ("device", settings.device, "binary", settings.binary),
    ]
    for name, value, other, needed in pairs:
        if value is not None and not needed:
            raise UsageError(f"{flag(name)} goes with --{other}, which is missing")


def _check_files(settings: Bench) -> None:
    """`UsageError` where what is said of files is wanted, and none are run here."""
    from ..runtimes import by_suffix

    wanted = {"--app": settings.app, "--require-fast": settings.require_fast is not None}
    suffixes = by_suffix()
    for option, value in wanted.items():
        if not value:
            continue
        if settings.device:
            raise UsageError(f"{option} does not go with --device: it is measured on this machine")
        if settings.to == "none" and not any(Path(m).suffix in suffixes for m in settings.model):
            raise UsageError(f"{option} is of exported files, and --to is none")


def _check_tune(settings: Bench) -> None:
    """`UsageError` for flags that --tune has no use for, and where it has nothing to judge by."""
    apart = {
        "device": settings.device,
        "plot": settings.plot,
        "accuracy": settings.accuracy,
        "forms": settings.forms,
        "size": settings.size,
        "app": settings.app or None,
        "require_fast": settings.require_fast,
    }
    for name, value in apart.items():
        if value is not None:
            raise UsageError(f"{flag(name)} does not go with --tune")
    if settings.max_memory is not None:
        from ..resident import HIGH_WATER

        if not HIGH_WATER.exists():
            raise UsageError(
                "--max-memory needs a system that tells how much memory a process took at most, "
                f"which is Linux ({HIGH_WATER})"
            )
    if not settings.data:
        raise UsageError(
            "--tune needs --data: images that tell whether a file still finds what the model does"
        )


def _device(settings: Bench) -> "Device | None":
    """The device to measure on, None for this machine; `UsageError` where there is none."""
    from ..measure import devices

    device = devices.device(settings.device) if settings.device else None
    for binary in settings.binary or ():
        devices.tool(binary)
    return device


def _wanted(settings: Bench, threads: Sequence[int], folder: Path) -> Wanted:
    """What is timed of each model: on a device its files alone."""
    from ..runtimes import choice

    texts = "none" if settings.device else settings.forms or ",".join(FORMS)
    forms = [] if texts == "none" else texts.split(",")
    for form in forms:
        if form not in FORMS:
            raise UsageError(f"no form {form!r}: {suggest(form, [*FORMS, 'none'])}")
    to = settings.to or "onnx"
    runtimes = [choice(text) for text in ([] if to == "none" else to.split(","))]
    return Wanted(folder, runtimes, forms, threads, settings.size, settings.trust)


def accuracies_of(texts: Sequence[str], models: Sequence[str]) -> dict[str, Accuracy]:
    """By model, from texts such as "repvit_m0_9=78.7"."""
    accuracies: dict[str, Accuracy] = {}
    for text in texts:
        name, equal, value = text.rpartition("=")
        try:
            accuracies[name] = ("accuracy", float(value))
        except ValueError:
            equal = ""
        if not equal:
            raise UsageError(f"accuracy is {text!r}; allowed: NAME=VALUE, such as repvit_m0_9=78.7")
        if name not in models:
            raise UsageError(
                f"accuracy of {name!r}, which is not measured: {suggest(name, models)}"
            )
    return accuracies


def _measured(
    settings: Bench, by_name: Mapping[str, Subject], device: "Device | None", threads: int
) -> "tuple[list[Row], dict[str, object], dict[str, float | None] | None]":
    """The rows, the conditions, which are shown before, and what happened here meanwhile.

    `threads` is the largest number of them.
    """
    from ..measure import devices

    if device is None:
        return measure(by_name, settings.runs, settings.warmup)
    card = devices.conditions(device, threads)
    say_conditions(card)
    say(f"measuring {len(by_name)} in turn on {device}")
    jobs = [
        devices.Job(name, s.file, s.size, s.threads, s.precision, s.outputs, s.channels)
        for name, s in by_name.items()
        if s.file
    ]
    return devices.measure(device, settings.binary or [], jobs, settings.runs), card, None


@dataclass(frozen=True)
class Line:
    """What was timed, its times, and how fast it is beside the first that was timed."""

    subject: Subject
    row: "Row"
    times_as_fast: float
    uncertainty: float | None  # of that, as a share; None of the first, and where it is unknown

    def to_dict(self) -> dict[str, object]:
        return {
            **self.row.to_dict(),
            "times_as_fast": self.times_as_fast,
            "uncertainty": self.uncertainty,
            "model": self.subject.model,
            "form": self.subject.form,
            "runtime": self.subject.title,
            **_sizes(self.subject.counts),
            "file_bytes": self.subject.file_bytes,
            "accuracy": self.subject.accuracy[1] if self.subject.accuracy else None,
        }

    def cells(self, *, is_first: bool) -> list[str]:
        """Of the table."""
        times, file_bytes = self.row.to_dict(), self.subject.file_bytes
        ratio = f"{self.times_as_fast:.2f}"
        if self.uncertainty and not is_first:
            ratio += f" ± {self.times_as_fast * self.uncertainty:.2f}"
        return [
            self.row.name,
            *(f"{times[key]:.2f}" for key in ("median_ms", "p90_ms", "mean_ms", "min_ms")),
            f"{times['images_per_second']:.1f}",
            "-" if times["waited"] is None else f"{times['waited']:.0%}",
            f"{times['working_ms']:.2f}",
            "-" if file_bytes is None else f"{file_bytes / 1e6:.1f}",
            ratio,
        ]


def _sizes(counts: "Counts | None") -> dict[str, int | None]:
    """What latency may depend on, by its name; unknown of an exported file."""
    if counts is None:
        return dict.fromkeys(SIZES)
    values = (counts.macs, counts.parameters, counts.activations, counts.bytes)
    return dict(zip(SIZES, values, strict=True))


def show(
    rows: Sequence["Row"], by_name: Mapping[str, Subject], runs: int
) -> list[dict[str, object]]:
    """The table, and what it shows."""
    from ..measure import latency

    faster, uncertain = latency.ratios(rows, rows[0].name), latency.uncertainty(rows, rows[0].name)
    lines = [Line(by_name[row.name], row, faster[row.name], uncertain[row.name]) for row in rows]
    columns = [
        "",
        "median ms",
        "p90 ms",
        "mean ms",
        "min ms",
        "images/s",
        "waited",
        "working ms",
        "file MB",
        "x as fast",
    ]
    title = f"Latency of one image, {runs} interleaved runs; x as fast as {rows[0].name}"
    cells = [line.cells(is_first=line is lines[0]) for line in lines]
    table(title, columns, cells, LEAST)
    return [line.to_dict() for line in lines]


def _correlate(rows: Sequence["Row"], by_name: Mapping[str, Subject]) -> list[dict[str, object]]:
    """Rank correlations of latency with sizes, for each form, runtime and number of threads."""
    from ..measure import latency

    groups: dict[tuple[str, str, int], list[tuple[float, Counts]]] = {}
    for row in rows:
        subject = by_name[row.name]
        if subject.counts is not None:
            key = (subject.form, subject.title, subject.threads)
            groups.setdefault(key, []).append((statistics.median(row.working), subject.counts))
    documents: list[dict[str, object]] = []
    lines = []
    for (form, runtime, threads), networks in groups.items():
        if len(networks) < FEWEST:
            continue
        times = [time for time, _ in networks]
        sizes = [_sizes(counts) for _, counts in networks]
        pairs = {name: latency.spearman(times, [of[name] or 0 for of in sizes]) for name in SIZES}
        documents.append(
            {
                "form": form,
                "runtime": runtime,
                "threads": threads,
                "networks": len(networks),
                **{name: pair and {"rho": pair[0], "p": pair[1]} for name, pair in pairs.items()},
            }
        )
        title = f"{form} ({runtime}, threads: {threads}), {len(networks)} networks"
        cells = [f"{pair[0]:.2f} (p {pair[1]:.3f})" if pair else "-" for pair in pairs.values()]
        lines.append([title, *cells])
    if lines:
        table("Rank correlation (Spearman) of latency with", ["", *SIZES], lines)
    return documents


def _drawn(subject: Subject) -> bool:
    return subject.accuracy is not None and subject.form != "multi-branch"


def _plot(rows: Sequence["Row"], by_name: Mapping[str, Subject], path: str) -> None:
    from ..report import figures

    points: list[figures.Point] = []
    measures: set[str] = set()
    several = len({subject.threads for subject in by_name.values()}) > 1
    for row in rows:
        subject = by_name[row.name]
        if subject.accuracy and _drawn(subject):
            group = f"{subject.title}, threads: {subject.threads}" if several else subject.title
            time = statistics.median(row.working)
            points.append(figures.Point(subject.model, group, time, subject.accuracy[1]))
            measures.add(subject.accuracy[0])
    if len(measures) > 1:
        say(f"warning: the plot mixes accuracies of different kinds: {', '.join(sorted(measures))}")
    front = figures.pareto(points, path, f"{', '.join(sorted(measures))}, %")
    tell(
        f"Pareto front, in {path}: " + ", ".join(f"{point.name} ({point.group})" for point in front)
    )
