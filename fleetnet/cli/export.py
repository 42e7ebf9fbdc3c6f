"""`fleetnet export`: the file for each runtime, in the deploy form, only when proven equal.

With --check it hands over nothing: it tries what each runtime makes of a network, before the
network is trained.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from ..errors import ExportError, ModelError, UsageError
from ..find import names
from ._arguments import flag, output_folder, usual_sizes
from ._data import Reading, pictures_of
from ._limits import DetectorLimits
from ._settings import About, switch
from ._show import say, table, tell

if TYPE_CHECKING:
    from ..deploy.package import Delivered
    from ..deploy.predictor import One
    from ..deploy.trained import Trained
    from ..deploy.trial import Attempt

EXAMPLE = "fleetnet export --model runs/classification/mobileone_s0-photos --to onnx"
# columns left out first where it is narrow
LEAST = "images", "largest difference", "input", "allowed"


@dataclass(frozen=True, kw_only=True)
class Export:
    model: str = field(
        metadata=About(help="run folder or checkpoint (.safetensors); with --check also a name")
    )
    to: str = field(
        metadata=About(
            help="runtimes, separated by commas, each NAME or NAME:PRECISION, such as mnn:fp16: "
            + ", ".join(names("runtimes"))
        )
    )
    out: str | None = field(
        default=None, metadata=About(help="folder", usual="export/ beside the checkpoint")
    )
    size: str | None = field(
        default=None,
        metadata=About(
            help="size to deploy at, 224 or 192x256",
            usual=f"of the checkpoint; of a name {usual_sizes()}",
            null=True,
        ),
    )
    opset: int | None = field(
        default=None,
        metadata=About(help="ONNX operator set", usual="the runtime's", null=True),
    )
    dynamic: str | None = field(
        default=None,
        metadata=About(
            help="leave open: batch, the number of images (without a word); size, height and width "
            "(onnx; multiples of the network's largest stride, usually 32; not ParC, Mask R-CNN); "
            "batch,size",
            nargs="?",
            const="batch",
            metavar="batch,size",
        ),
    )
    embed_preprocess: bool = switch("take pixels 0 to 255, RGB; normalize inside")
    embed_decode: bool = switch("give boxes after NMS, masks or class maps instead of raw outputs")
    limits: DetectorLimits = field(
        default_factory=DetectorLimits,
        metadata=About(
            help="what a detector keeps",
            otherwise={
                "score": About(
                    help="detectors: lowest score that the file keeps, and that predict shows",
                    usual="of the task, and of the best F1",
                )
            },
        ),
    )
    data: str | None = field(
        default=None,
        metadata=About(help="verify on images of this data too, not on random ones alone"),
    )
    reading: Reading = field(default_factory=Reading, metadata=About(help="how the data are read"))
    explain: bool = switch("name the first layer of a file that differs")
    isolated: bool = switch("make the environments that converters need, where they are missing")
    check: bool = switch("only try whether runtimes can hold the model; a name has random weights")
    classes: int | None = field(
        default=None,
        metadata=About(help="with --check, of a model given by name", kind=PositiveInt),
    )
    output_stride: int | None = field(
        default=None,
        metadata=About(help="with --check, of a model given by name: 8, 16 or 32"),
    )
    options: dict[str, bool | int | float | str] | None = field(
        default=None,
        metadata=About(
            help="with --check, of a model given by name: the family's own, as --options.mixing "
            "conv"
        ),
    )


Target = tuple[str, str]  # a runtime and a precision


def run(settings: Export) -> dict[str, object]:
    from ..backbones import variants
    from ..runtimes import choice

    _check_with_check(settings)
    targets = [choice(text) for text in settings.to.split(",")]
    if not settings.check and settings.model in variants():
        runtimes = shlex.quote(settings.to)
        raise ModelError(
            f"{settings.model!r} is the name of a network, and a trained one is exported. "
            f"`fleetnet train --model {settings.model} --data DATA` makes one; `fleetnet export "
            f"--model {settings.model} --to {runtimes} --check` tries what the runtimes can hold"
        )
    _check_dynamic(settings, targets)
    if settings.isolated:
        _make_environments([name for name, _ in targets])
    return _check(settings, targets) if settings.check else _export(settings, targets)


def _check_with_check(settings: Export) -> None:
    """`UsageError` for a flag that does not go with --check, or only with it."""
    of_export = {
        "out": settings.out,
        "data": settings.data,
        "format": settings.reading.format,
        "images": settings.reading.images,
        "masks": settings.reading.masks,
        "explain": settings.explain,
        "embed_preprocess": settings.embed_preprocess,
    }
    of_check = {
        "classes": settings.classes,
        "output_stride": settings.output_stride,
        "options": settings.options,
    }
    for name, value in (of_export if settings.check else of_check).items():
        if value:
            why = "does not go with --check" if settings.check else "is for --check"
            raise UsageError(f"{flag(name)} {why}")


def _check_dynamic(settings: Export, targets: Sequence[Target]) -> None:
    """`UsageError` for a word that --dynamic does not know, or that a runtime cannot do."""
    from ..runtimes import check_open_size, parse_open

    _, open_size = parse_open(settings.dynamic or False)
    for name, _ in targets if open_size else []:
        check_open_size(name)


def _make_environments(runtimes: Sequence[str]) -> None:
    from ..runtimes import _isolated

    for name in runtimes:
        if name in _isolated.converters() and _isolated.missing(name):
            say(f"making the environment that converts for {name}, in {_isolated.folder(name)}")
            _isolated.create(name)


@dataclass(frozen=True)
class Written:
    """A file that was handed over."""

    runtime: str
    precision: str
    delivered: "Delivered"
    input: str | None  # the size of image that it takes

    @property
    def bytes(self) -> int:
        """Of the file with all its parts."""
        from ..runtimes import size_of

        return size_of(self.delivered.path)

    def to_dict(self) -> dict[str, object]:
        parity = self.delivered.parity
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "path": str(self.delivered.path),
            "sidecar": str(self.delivered.sidecar),
            **(parity.to_dict() if parity else {"passed": None}),
            "unverified": self.delivered.unverified,
            "bytes": self.bytes,
        }

    def line(self) -> list[object]:
        """Of the table."""
        from ..runtimes import title_of

        parity = self.delivered.parity
        proof: list[object] = ["not run here", "", "", ""]
        if parity is not None and not self.delivered.unverified:
            proof = [
                f"{parity.max_abs:.2e}",
                f"{parity.relative:.2e}",
                f"{parity.tolerance:.0e}",
                parity.images,
            ]
        title, path = title_of(self.runtime, self.precision), str(self.delivered.path)
        return [title, path, f"{self.bytes / 1e6:.1f}", self.input, *proof]


def _export(settings: Export, targets: Sequence[Target]) -> dict[str, object]:
    from ..deploy.trained import Trained
    from ..weights.read import locate

    path = locate(Path(settings.model))
    out = output_folder(path, settings.out)
    trained = Trained.read(path)
    pictures = pictures_of(settings.data, settings.reading, path)
    written = [
        _exported(settings, trained, out, name, precision, pictures) for name, precision in targets
    ]
    columns = [
        "runtime",
        "file",
        "MB",
        "input",
        "largest difference",
        "relative",
        "allowed",
        "images",
    ]
    title = "Exported and verified against the multi-branch model"
    table(title, columns, [file.line() for file in written], LEAST)
    for file in written:
        parity, unverified = file.delivered.parity, file.delivered.unverified
        if parity and parity.agreement:
            say(f"{file.runtime}: {parity.agreement}")
        if unverified:
            say(f"{file.runtime}: NOT VERIFIED, only inspected: {unverified}")
    return {"model": str(path), "exported": [file.to_dict() for file in written]}


def _exported(
    settings: Export,
    trained: "Trained",
    out: Path,
    name: str,
    precision: str,
    pictures: "Sequence[One]",
) -> Written:
    """The file for one runtime; said is what it replaces, and how it was proven at other sizes."""
    from .. import runtimes
    from ..deploy.export import export
    from ..runtimes import title_of
    from ..sizes import parse_size

    title = title_of(name, precision)
    # one does not take the place of the other
    stem = "model-decoded" if settings.embed_decode else "model"
    file = out / title / f"{stem}{runtimes.find(name).suffix}"
    say(f"exporting {trained.path} to {title}")
    before = _input_of(file)
    delivered = export(
        trained,
        name,
        file,
        size=parse_size(settings.size) if settings.size else None,
        precision=precision,
        opset=settings.opset,
        dynamic=settings.dynamic or False,
        embed_preprocess=settings.embed_preprocess,
        embed_decode=settings.embed_decode,
        limits=settings.limits.to_dict(),
        pictures=pictures,
        explain=settings.explain,
    )
    after = _input_of(file)
    if before not in (None, after):
        say(f"{file} was a file for {before} before, and is one for {after} now")
    for (height, width), proof in delivered.elsewhere.items():
        say(
            f"{title}: the same at {height}x{width}: relative {proof.relative:.1e}, allowed "
            f"{proof.tolerance:.0e}"
        )
    return Written(name, precision, delivered, after)


def _input_of(file: Path) -> str | None:
    """The size of image that a file takes, "224x224", of several "224x224, multiples of 32".

    None without a sidecar that says it.
    """
    from ..deploy.export import facts_of

    try:
        facts = facts_of(file)[1]
    except ModelError:
        return None
    if facts.exported is not None and facts.exported.sizes is not None:
        return f"{facts.size[0]}x{facts.size[1]}, multiples of {facts.exported.sizes.step}"
    shape = facts.file.inputs[0].shape if facts.file is not None and facts.file.inputs else None
    return None if shape is None or len(shape) < 4 else f"{shape[2]}x{shape[3]}"


def _check(settings: Export, targets: Sequence[Target]) -> dict[str, object]:
    """Try each runtime, and say what came of it; `ExportError` where one cannot hold the model."""
    from ..deploy.trial import model_to_try, try_model
    from ..runtimes import title_of
    from ..sizes import parse_size

    model, size = model_to_try(
        settings.model,
        parse_size(settings.size) if settings.size else None,
        classes=settings.classes,
        output_stride=settings.output_stride,
        options=settings.options,
    )
    attempts: list[Attempt] = []
    for name, precision in targets:
        say(f"trying {settings.model} in {title_of(name, precision)}")
        attempts.append(
            try_model(
                model,
                size,
                name,
                precision,
                opset=settings.opset,
                dynamic=settings.dynamic or False,
                embed_decode=settings.embed_decode,
                limits=settings.limits.to_dict(),
            )
        )
    _show_attempts(f"{settings.model} at {size[0]}x{size[1]}, tried", attempts)
    failed = [title_of(a.runtime, a.precision) for a in attempts if a.result == "cannot"]
    if failed:
        raise ExportError(
            f"{settings.model} cannot be handed over for {', '.join(failed)}: see the table"
        )
    if not any(attempt.result == "ok" for attempt in attempts):
        raise ExportError(f"nothing could be tried: {attempts[0].said}")
    return {
        "model": settings.model,
        "size": list(size),
        "checked": [attempt.to_dict() for attempt in attempts],
    }


def _show_attempts(title: str, attempts: "Sequence[Attempt]") -> None:
    from ..runtimes import title_of

    rows = [
        [
            title_of(attempt.runtime, attempt.precision),
            attempt.result,
            "" if attempt.relative is None else f"{attempt.relative:.2e}",
            "" if attempt.tolerance is None else f"{attempt.tolerance:.0e}",
        ]
        for attempt in attempts
    ]
    table(title, ["runtime", "result", "relative", "allowed"], rows)
    for attempt in attempts:
        if attempt.said:
            tell(f"{title_of(attempt.runtime, attempt.precision)}: {attempt.said}")
