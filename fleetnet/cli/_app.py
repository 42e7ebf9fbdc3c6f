"""`fleetnet bench --app` and `--require-fast`: what an app waits for beside a run, and slow layers by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ._show import say, shown, table, tell

if TYPE_CHECKING:
    from ..measure.app import ForApp
    from ..measure.candidates import Subject
    from ..runtimes import Kernel

COLUMNS = {  # of the table -> the figure
    "cold ms": "cold_ms",
    "memory MB": "memory_mb",
    "jpeg ms": "jpeg_ms",
    "preprocess ms": "preprocess_ms",
    "run ms": "run_ms",
    "decode ms": "decode_ms",
    "in all ms": "pipeline_ms",
    "images/s, all cores": "images_per_second_of_all_cores",
}
LEAST = "decode ms", "preprocess ms", "jpeg ms", "run ms"  # left out first where it is narrow
MOST_LAYERS = 10  # of a file, that the table names
NOT_TOLD = "not told"


def jpeg(path: str | None) -> bytes:
    """The content of the picture that is decoded, or of the usual one; `DataError` for no JPEG."""
    from ..measure.pipeline import usual_picture

    if path is None:
        return usual_picture()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"--picture {path} cannot be read: {error.strerror}") from error
    if not content.startswith(b"\xff\xd8"):
        raise DataError(f"--picture {path} is no JPEG; allowed: a JPEG, as cameras write it")
    return content


@dataclass(frozen=True)
class Speed:
    """Of an exported file, what its runtime tells of the kernels that computed it."""

    name: str  # of the model with its runtime
    runtime: str
    kernels: "list[Kernel] | None"  # None: not told

    @property
    def share(self) -> float | None:
        """Which part of the multiply-accumulates is in fast kernels; None where that is unknown."""
        from ..runtimes import fast_share

        return None if self.kernels is None else fast_share(self.kernels)

    @property
    def outside(self) -> "list[Kernel]":
        """What is outside of them."""
        from ..runtimes import outside

        return outside(self.kernels or ())

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "runtime": self.runtime,
            "fast_share": self.share,
            "outside": [kernel.to_dict() for kernel in self.outside],
        }

    def why_refused(self, least: float) -> str:
        """Why it has not at least this share in fast kernels; empty where it has."""
        if self.kernels is None:
            return f"{self.name}: it is not told which kernels {self.runtime} computes with"
        if self.share is None or self.share >= least:
            return ""
        names = [kernel.layer for kernel in self.outside if kernel.macs]
        more = f" and {len(names) - MOST_LAYERS} more" if len(names) > MOST_LAYERS else ""
        return (
            f"{self.name}: {self.share:.2%} of the multiply-accumulates are in fast kernels, "
            f"{least:.2%} were required; outside are {', '.join(names[:MOST_LAYERS])}{more}"
        )


def fast(speed: Speed) -> str:
    """The share of MACs in fast kernels, for a table."""
    if speed.kernels is None:
        return NOT_TOLD
    return "-" if speed.share is None else f"{speed.share:.1%}"


@dataclass(frozen=True)
class Beside:
    """What was measured beside the runs, by the name of the subject; nothing where no flag asks."""

    figures: "Mapping[str, ForApp]" = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    skipped: Sequence[str] = ()

    @property
    def files(self) -> list[Speed]:
        """One of each file, which may be timed with several numbers of threads."""
        return list({speed.name: speed for speed in self.speeds.values()}.values())

    def of_row(self, name: str) -> dict[str, object]:
        """What is added to what is said of a subject; None for what torch runs."""
        from ..measure.app import ForApp

        added: dict[str, object] = {}
        if self.figures:
            added |= self.figures.get(name, ForApp()).to_dict()
        if self.speeds:
            speed = self.speeds.get(name)
            added["fast_share"] = None if speed is None else speed.share
        return added

    def show(self, picture: str) -> None:
        """The tables; `picture` says which one was decoded."""
        if self.figures:
            _show_app(self.figures, self.speeds, picture)
        _show_outside(self.files)

    def judged(self, least: float) -> list[str]:
        """What is said against the files that have not this share in fast kernels."""
        reasons = [reason for speed in self.files if (reason := speed.why_refused(least))]
        for reason in reasons:
            tell(f"too slow: {reason}")
        if not reasons:
            tell(f"each file has at least {least:.2%} of its MACs in fast kernels")
        return reasons

    def to_dict(self) -> list[dict[str, object]]:
        return [speed.to_dict() for speed in self.files]


def measure_beside(
    by_name: "Mapping[str, Subject]",
    *,
    app: bool,
    kernels: bool,
    content: bytes,
    runs: int,
    warmup: int,
) -> Beside:
    """Of the files among the subjects: figures for an `app`, with the bytes of a JPEG, and `kernels`."""
    from ..measure.app import files_of, for_app, kernels_of

    if not (app or kernels):
        return Beside()
    files = files_of(by_name)
    of_file, skipped = kernels_of(files)
    for line in skipped:
        say(f"skipped {line}")
    speeds = {
        name: Speed(subject.name(several=False), subject.runtime, of_file[str(subject.file)])
        for name, subject in files.items()
    }
    if not app:
        return Beside({}, speeds, skipped)
    figures, more = for_app(files, content, runs, warmup, say)
    return Beside(figures, speeds, [*skipped, *more])


def _show_app(figures: "Mapping[str, ForApp]", speeds: Mapping[str, Speed], picture: str) -> None:
    lines = []
    for name, of_file in figures.items():
        values = of_file.to_dict()
        lines.append([name, *(shown(values[key]) for key in COLUMNS.values()), fast(speeds[name])])
    title = f"What an app waits for; the picture is {picture}"
    table(title, ["", *COLUMNS, "fast MACs"], lines, LEAST)


def _show_outside(speeds: Sequence[Speed]) -> None:
    """The layers outside of the fast kernels, by name, the most of each file first."""
    lines = []
    for speed in speeds:
        whole = sum(kernel.macs for kernel in speed.kernels or ())
        for kernel in speed.outside[:MOST_LAYERS]:
            macs = f"{kernel.macs / whole:.1%}" if whole and kernel.macs else "-"
            lines.append(
                [kernel.layer, speed.name, kernel.operator, macs, shown(kernel.ms), kernel.slow]
            )
        if len(speed.outside) > MOST_LAYERS:
            more = len(speed.outside) - MOST_LAYERS
            lines.append([f"and {more} more (--json has all)", speed.name, "", "", "", ""])
    if lines:
        columns = ["layer", "file", "operator", "MACs", "ms", "why"]
        table("Layers outside of the fast kernels", columns, lines, ("operator",))
