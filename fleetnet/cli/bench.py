"""`fleetnet bench`: latency of models in their forms, runtimes, precisions and numbers of threads, measured in turn."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from ..errors import UsageError
from ..files import write_rows
from ._arguments import TRUST, check_outputs, usual_sizes
from ._show import say, table, tell
from ._subjects import Subject, subjects, threads_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from ..measure.latency import Row

EXAMPLE = "fleetnet bench --model mobileone_s0 repvit_m0_9 timm/mobilevit_s --to onnx --size 224 --threads 1"
SIZES = {"MACs": "macs", "parameters": "parameters", "activations": "activations", "bytes": "bytes"}
FEWEST = 5  # networks, for a rank correlation to say anything
# left out first where it is narrow
LEAST = "min ms", "mean ms", "waited", "p90 ms", "images/s", "working ms"
NEEDS = {
    "data": "tune",
    "format": "tune",
    "max_drop": "tune",
    "binary": "device",
    "device": "binary",
}
FIGURES = (".png", ".svg", ".pdf")
APART = ("device", "plot", "accuracy", "forms", "size")  # what --tune has no use for


def arguments(parser: "ArgumentParser") -> None:
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        type=str,
        help="run folders, checkpoints, exported files, names, or peers (timm/NAME)",
    )
    add(
        "--to",
        type=str,
        help="runtimes to export to, as onnx,openvino:bf16 (default: onnx), or none",
    )
    add("--forms", type=str, help="forms to time in torch (default: multi-branch,deploy), or none")
    add(
        "--size",
        type=str | None,
        help=f"of models given by name (default: {usual_sizes()}); others have one",
    )
    add(
        "--threads",
        type=str,
        help="CPU threads, one number or several as 1,2 (default: 1; --tune: 1 and all cores)",
    )
    add("--runs", type=PositiveInt, help="counted runs of each (default: 100)")
    add("--warmup", type=NonNegativeInt, help="runs of each before, not counted (default: 10)")
    add("--trust", action="store_true", help=TRUST)
    add("--csv", type=str, help="file for the table")
    add("--plot", type=str, help="file (.png) for accuracy over latency with the Pareto front")
    help = "of the plot, as NAME=VALUE (default: a checkpoint's own metric, and what was published for a name)"
    add("--accuracy", nargs="+", type=str, help=help)
    help = "find the fastest runtime, precision and threads of this machine for one checkpoint, given before its files"
    add("--tune", action="store_true", help=help)
    add("--data", type=str, help="--tune: images with labels, or a folder of images without")
    add("--format", type=str | None, help="--tune: format of the data, where finding it out fails")
    help = "--tune: points of accuracy, or of agreement with the float model, that may be lost (default: 1.0)"
    add("--max-drop", type=NonNegativeFloat, help=help)
    add(
        "--device",
        type=str,
        help="measure the files on adb:SERIAL or ssh:HOST, by the programs of --binary",
    )
    help = "--device: path here or there of benchncnn, onnxruntime_perf_test, benchmark.out or ModuleBasic.out"
    add("--binary", nargs="+", type=str, help=help)


def run(given: dict[str, Any]) -> dict[str, Any]:
    _check(given)
    if given.get("tune"):
        from ._tune import tune

        return tune(given)

    from ..measure import devices, latency

    threads, runs = threads_of(given.get("threads") or "1"), given.get("runs", 100)
    device = devices.device(given["device"]) if given.get("device") else None
    for binary in given.get("binary") or ():
        devices.tool(binary)
    with tempfile.TemporaryDirectory() as folder:
        found, skipped = subjects(
            {**given, "forms": "none"} if device else given, threads, Path(folder)
        )
        if given.get("plot") and not any(map(_drawn, found)):
            raise UsageError(
                "--plot needs accuracies of deploy forms or files, and none is known: give "
                "--accuracy NAME=VALUE"
            )
        by_name = {subject.name(len(threads) > 1): subject for subject in found}
        if device:
            card, during = devices.conditions(device, max(threads)), None
            conditions(card)
            say(f"measuring {len(found)} in turn on {device}")
            jobs = [
                devices.Job(name, s.file, s.size, s.threads, s.precision, s.outputs)
                for name, s in by_name.items()
                if s.file
            ]
            rows = devices.measure(device, given["binary"], jobs, runs)
        else:
            rows, card, during = measure(by_name, runs, given.get("warmup", 10))
    documents = show(rows, by_name, runs)
    correlations = _correlate(rows, by_name)
    if given.get("plot"):
        _plot(rows, by_name, given["plot"])
    doubts = latency.warnings(rows, card, during)
    for doubt in doubts:
        say(f"warning: {doubt}")
    if given.get("csv"):
        write_csv(given["csv"], documents)
    return {
        "conditions": card, "during": during, "rows": documents, "correlations": correlations, "skipped": skipped,
        "warnings": doubts,
    }  # fmt: skip


def _check(given: Mapping[str, Any]) -> None:  # noqa: C901
    """`UsageError` for a flag without those that it goes with, or files that could not be written at the end."""
    if not given.get("model"):
        raise UsageError(f"--model is missing; example: {EXAMPLE}")
    check_outputs(files={"--csv": given.get("csv"), "--plot": given.get("plot")})
    for key in ("csv", "plot"):
        if given.get(key) and not Path(given[key]).parent.is_dir():
            raise UsageError(
                f"--{key} is {given[key]!r}, but there is no folder "
                f"{str(Path(given[key]).parent)!r}"
            )
    if given.get("plot") and Path(given["plot"]).suffix not in FIGURES:
        raise UsageError(
            f"--plot is {given['plot']!r}; allowed: files that end in {', '.join(FIGURES)}"
        )
    for key, other in NEEDS.items():
        if given.get(key) is not None and not given.get(other):
            raise UsageError(f"--{key.replace('_', '-')} goes with --{other}, which is missing")
    if given.get("tune"):
        for key in APART:
            if given.get(key) is not None:
                raise UsageError(f"--{key} does not go with --tune")
        if not given.get("data"):
            raise UsageError(
                "--tune needs --data: images that tell whether a file still finds "
                "what the model does"
            )


def write_csv(path: str, documents: Sequence[Mapping[str, Any]]) -> None:
    write_rows(path, list(documents[0]), documents)


def conditions(card: Mapping[str, object]) -> None:
    tell(
        "conditions: "
        + ", ".join(f"{key} {value}" for key, value in card.items() if value is not None)
        + ", "
        "batch "
        "1"
    )


def measure(
    by_name: Mapping[str, Subject], runs: int, warmup: int
) -> tuple[list["Row"], dict[str, object], dict[str, float | None]]:
    """The rows, the conditions, which are shown before, and what `latency.watch` saw."""
    import torch

    from .. import runtimes
    from ..measure import latency

    names = {subject.runtime for subject in by_name.values()} - {"torch"}
    packages = [runtimes.find(name).package for name in sorted(names)]
    most = max(subject.threads for subject in by_name.values())
    card = latency.card(most, ["fleetnet", "torch", *packages])
    conditions(card)

    def prepare(name: str) -> None:
        if torch.get_num_threads() != by_name[name].threads:
            torch.set_num_threads(by_name[name].threads)

    say(f"measuring {len(by_name)} in turn")
    before, during = torch.get_num_threads(), latency.watch()
    try:
        rows = latency.measure(
            {name: subject.call for name, subject in by_name.items()}, runs, warmup,
            threads={name: s.threads if s.waits else 0 for name, s in by_name.items()}, prepare=prepare,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return rows, card, during()


def show(rows: Sequence["Row"], by_name: Mapping[str, Subject], runs: int) -> list[dict[str, Any]]:
    """The table, and what it shows."""
    from ..measure import latency

    faster, uncertain = latency.ratios(rows, rows[0].name), latency.uncertainty(rows, rows[0].name)
    documents: list[dict[str, Any]] = []
    lines = []
    for row in rows:
        subject, ratio, by = by_name[row.name], faster[row.name], uncertain[row.name]
        about = {"model": subject.model, "form": subject.form, "runtime": subject.title}
        found: dict[str, Any] = {
            **row.to_dict(),
            "times_as_fast": ratio,
            "uncertainty": by,
            **about,
        }
        found |= {name: getattr(subject.counts, key, None) for name, key in SIZES.items()}
        found["file_bytes"] = subject.file_bytes
        found["accuracy"] = subject.accuracy[1] if subject.accuracy else None
        documents.append(found)
        milliseconds = [f"{found[key]:.2f}" for key in ("median_ms", "p90_ms", "mean_ms", "min_ms")]
        waited = "-" if found["waited"] is None else f"{found['waited']:.0%}"
        ratios = f"{ratio:.2f}" + (f" ± {ratio * by:.2f}" if by and row is not rows[0] else "")
        working = f"{found['working_ms']:.2f}"
        megabytes = "-" if subject.file_bytes is None else f"{subject.file_bytes / 1e6:.1f}"
        per_second = f"{found['images_per_second']:.1f}"
        lines.append([row.name, *milliseconds, per_second, waited, working, megabytes, ratios])
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
    table(
        f"Latency of one image, {runs} interleaved runs; x as fast as {rows[0].name}",
        columns,
        lines,
        LEAST,
    )
    return documents


def _correlate(rows: Sequence["Row"], by_name: Mapping[str, Subject]) -> list[dict[str, Any]]:
    """Rank correlations of latency with sizes, over the networks of each form, runtime and number of threads."""
    from ..measure import latency

    groups: dict[tuple[str, str, int], list[tuple[float, Any]]] = {}
    for row in rows:
        subject = by_name[row.name]
        if subject.counts is not None:
            key = (subject.form, subject.title, subject.threads)
            groups.setdefault(key, []).append((row.to_dict()["working_ms"], subject.counts))  # type: ignore[arg-type]
    found: list[dict[str, Any]] = []
    lines = []
    for (form, runtime, threads), networks in groups.items():
        if len(networks) < FEWEST:
            continue
        times = [time for time, _ in networks]
        pairs = {
            name: latency.spearman(times, [getattr(c, key) for _, c in networks])
            for name, key in SIZES.items()
        }
        told = {
            name: {"rho": pair[0], "p": pair[1]} if pair else None for name, pair in pairs.items()
        }
        found.append(
            {
                "form": form,
                "runtime": runtime,
                "threads": threads,
                "networks": len(networks),
                **told,
            }
        )
        title = f"{form} ({runtime}, threads: {threads}), {len(networks)} networks"
        lines.append(
            [
                title,
                *(f"{pair[0]:.2f} (p {pair[1]:.3f})" if pair else "-" for pair in pairs.values()),
            ]
        )
    if lines:
        table("Rank correlation (Spearman) of latency with", ["", *SIZES], lines)
    return found


def _drawn(subject: Subject) -> bool:
    return subject.accuracy is not None and subject.form != "multi-branch"


def _plot(rows: Sequence["Row"], by_name: Mapping[str, Subject], path: str) -> None:
    from ..report import figures

    points, measures = [], set()
    several = len({subject.threads for subject in by_name.values()}) > 1
    for row in rows:
        subject = by_name[row.name]
        if subject.accuracy and _drawn(subject):
            group = f"{subject.title}, threads: {subject.threads}" if several else subject.title
            time = row.to_dict()["working_ms"]
            points.append(
                {
                    "name": subject.model,
                    "group": group,
                    "milliseconds": time,
                    "accuracy": subject.accuracy[1],
                }
            )
            measures.add(subject.accuracy[0])
    if len(measures) > 1:
        say(f"warning: the plot mixes accuracies of different kinds: {', '.join(sorted(measures))}")
    front = figures.pareto(points, path, f"{', '.join(sorted(measures))}, %")
    tell(
        f"Pareto front, in {path}: "
        + ", ".join(f"{point['name']} ({point['group']})" for point in front)
    )
