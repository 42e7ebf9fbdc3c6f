"""`fleetnet quantize`: the int8 file for a runtime, calibrated on your images, if accurate."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from ..errors import ExportError, UsageError, suggest
from ..find import names
from ..reading import Member
from ..training.config import TrainConfig
from ._arguments import TIMEOUT, output_folder
from ._data import Reading, images_at_a_time, say_data
from ._settings import About, switch
from ._show import say, table

if TYPE_CHECKING:
    import torch

    from ..data import Split
    from ..facts import Facts
    from ..int8._decoded import DecodedOnce
    from ..int8._finetune import FineTuned
    from ..int8._prepared import Prepared
    from ..int8._search import Quantized
    from ..int8._sensitivity import Layer
    from ..preprocess import Preprocess

EXAMPLE = (
    "fleetnet quantize --model runs/classification/mobileone_s0-photos --data photos/ --to openvino"
)
ROWS = 10  # of the most sensitive layers
RATE = 0.02  # of fine-tuning


@dataclass(frozen=True, kw_only=True)
class Quantize:
    model: str = field(metadata=About(help="run folder or checkpoint (.safetensors)"))
    data: str = field(
        metadata=About(help="folder, list or annotation file: train calibrates, val decides")
    )
    reading: Reading = field(default_factory=Reading, metadata=About(help="how the data are read"))
    to: str = field(metadata=About(help="runtimes, separated by commas: litert, onnx, openvino"))
    out: str | None = field(
        default=None, metadata=About(help="folder", usual="export/ beside the checkpoint")
    )
    max_drop: float = field(
        default=1.0,
        metadata=About(
            help="points that may be lost of the task's first figure", kind=NonNegativeFloat
        ),
    )
    max_bad: float = field(
        default=TrainConfig.max_bad,
        metadata=About(
            help="largest share of the annotations that may be unusable", kind=ClosedUnitInterval
        ),
    )
    pictures: int = field(
        default=128, metadata=About(help="how many pictures to calibrate on", kind=PositiveInt)
    )
    calibrate_on: str | None = field(
        default=None,
        metadata=About(help="folder of other pictures to calibrate on; no labels needed"),
    )
    skip: str | None = field(
        default=None,
        metadata=About(
            help="layers to leave in float, separated by commas, with wildcards: 'head.*,*.se.*'"
        ),
    )
    most: float = field(
        default=0.25,
        metadata=About(
            help="share of the layers that may be left in float beside", kind=ClosedUnitInterval
        ),
    )
    equalize: bool = field(
        default=True, metadata=About(help="make the channels of feature maps alike")
    )
    recalibrate_norms: bool = switch("first recompute the batch norms' statistics on the pictures")
    sensitivity: bool = switch("show what int8 does to each layer alone")
    finetune: int = field(
        default=0,
        metadata=About(
            help="epochs of fine-tuning in int8 on the training pictures, all layers in int8",
            kind=NonNegativeInt,
        ),
    )
    rate: float = field(
        default=RATE,
        metadata=About(
            help="of fine-tuning: steps of int8 by which a weight changes in an update",
            kind=PositiveFloat,
        ),
    )
    seed: int = field(
        default=0,
        metadata=About(help="of fine-tuning: order and changes of its pictures"),
    )
    branches: bool = switch(
        "fine-tune the branches behind each merged kernel in its place (MobileOne, RepViT)"
    )
    threads: int = field(default=2, metadata=About(help="CPU threads of torch", kind=PositiveInt))
    workers: int = field(
        default=0, metadata=About(help="processes that read images", kind=NonNegativeInt)
    )
    timeout: float = field(
        default=TrainConfig.timeout, metadata=About(help=TIMEOUT, kind=PositiveFloat)
    )


def run(settings: Quantize) -> dict[str, object]:
    runtimes = [name.strip() for name in settings.to.split(",")]
    _check_runtimes(runtimes, is_tuned=settings.finetune > 0)
    _check_finetuning(settings)
    count = settings.reading.images or ""
    if count.isdecimal() and not Path(count).exists():  # what the flag once meant
        raise UsageError(
            f"--images is a folder, and there is no {count!r}; how many pictures to calibrate on "
            f"is --pictures {count}"
        )

    import torch

    from .. import checkpoint, tasks
    from ..int8._decoded import LIMIT
    from ..int8._prepared import prepare, source_of

    torch.set_num_threads(settings.threads)
    path = source_of(settings.model)
    out = output_folder(path, settings.out)
    facts = checkpoint.read_facts(path)
    target = tasks.find(facts.task).TARGET
    val = _validation(settings, path, facts, target)
    train = _training(settings, facts, target)
    images, source = _calibration(settings, facts, train)
    say(f"calibrating on {len(images)} pictures of {source}")
    batches = _batches(settings, val, facts.preprocess, target)
    prepared = prepare(
        path,
        images,
        batches,
        equalizing=settings.equalize,
        recalibrating=settings.recalibrate_norms,
    )
    if batches.again:
        say(
            f"{LIMIT / 1e9:.1f} GB of memory hold {len(val.samples) - batches.again} of "
            f"{len(val.samples)} pictures: the others are read again for each int8 file"
        )
    _say_prepared(settings, prepared, len(val.samples), target)
    tuned = (
        None if train is None or not settings.finetune else _fine_tuned(settings, prepared, train)
    )
    documents, refused = [], []
    for name in runtimes:
        say(f"quantizing {path} for {name}")
        try:
            quantized = _quantized(settings, prepared, tuned, name, out, source)
        except ExportError as error:  # the others may do better
            refused.append(str(error))
            continue
        _show(name, quantized, prepared)
        documents.append(_document(name, quantized))
    if refused:
        written = ", ".join(document["path"] for document in documents)
        raise ExportError("; ".join(refused) + (f" (written: {written})" if written else ""))
    layers = [asdict(layer) for layer in prepared.sensitivity] if settings.sensitivity else None
    return {
        "model": str(path),
        "metric": prepared.metric,
        "float": prepared.result,
        "equalized_layers": prepared.equalized,
        "sensitivity": layers,
        "finetuned": None if tuned is None else {**tuned.about, "in_torch": tuned.result},
        "quantized": documents,
    }


def _check_finetuning(settings: Quantize) -> None:
    """`UsageError` for settings of fine-tuning where there is none."""
    usual = Quantize(model=settings.model, data=settings.data, to=settings.to)
    without_use = [
        f"--{name}"
        for name in ("rate", "seed", "branches")
        if getattr(settings, name) != getattr(usual, name)
    ]
    if without_use and not settings.finetune:
        raise UsageError(
            f"{', '.join(without_use)} says how to fine-tune, which needs --finetune with a number "
            "of epochs, such as 3"
        )


def _check_runtimes(runtimes: Sequence[str], *, is_tuned: bool) -> None:
    """`UsageError` for a runtime without int8, `ExportError` where a package is missing."""
    from ..int8._search import missing

    for name in runtimes:
        if name not in names("int8"):
            raise UsageError(
                f"no int8 for the runtime {name!r}: {suggest(name, names('int8'), 'runtime')}"
            )
        if absent := missing(name, is_tuned=is_tuned):
            raise ExportError(absent)


def _validation(settings: Quantize, path: Path, facts: "Facts", target: str) -> "Split":
    """What the int8 file is judged on, with the classes of the model."""
    from ..data._contents import contents_of
    from ..data._names import by_name
    from ..data._record import to_measure
    from ..review.usable import check_usable

    how = settings.reading
    split = to_measure(
        settings.data, "val", how.format, target, path, facts.settings, how.elsewhere
    )
    split = by_name(split, facts.classes, str(path))
    contents = contents_of(split, target)
    say_data("judged on", split, contents)
    check_usable(split, contents, settings.max_bad, learn=False)
    return split


def _training(settings: Quantize, facts: "Facts", target: str) -> "Split | None":
    """The training pictures; None where nothing is to be done with them."""
    from .. import data
    from ..data._record import places_of

    if settings.calibrate_on and not settings.finetune:
        return None
    how = settings.reading
    places = places_of(settings.data, facts.settings, how.elsewhere)
    return data.load(settings.data, "train", how.format, target, *places)


def _calibration(
    settings: Quantize, facts: "Facts", train: "Split | None"
) -> "tuple[torch.Tensor, str]":
    """Pictures to calibrate on, as the network gets them (N, 3, H, W), and where they are from."""
    from ..images import Source as OfPicture
    from ..images import find_images
    from ..int8._prepared import calibration

    sources: Sequence[Path | Member | Callable[[], OfPicture]]
    if settings.calibrate_on:
        sources, source = find_images(settings.calibrate_on)[0], settings.calibrate_on
    else:
        samples = [] if train is None else train.samples
        sources, source = [sample.image for sample in samples], f"{settings.data}, train"
    return calibration(sources, facts.preprocess, settings.pictures), source


def _fine_tuned(settings: Quantize, prepared: "Prepared", train: "Split") -> "FineTuned":
    """The network in int8 after fine-tuning; what it reaches as torch computes it is said."""
    from ..int8._finetune import Plan, fine_tune
    from ..int8._prepared import decisive
    from ..int8._search import matching
    from ..int8._sensitivity import layers_of

    plan = Plan(settings.finetune, settings.rate, settings.seed, settings.branches)
    say(f"fine-tuning in int8 on {len(train.samples)} pictures of {settings.data}, train")
    tuned = fine_tune(
        prepared,
        train,
        plan,
        skipped=matching(list(layers_of(prepared.deployed)), _patterns(settings.skip)),
        workers=settings.workers,
        minutes=settings.timeout,
        report=say,
    )
    reached, before = decisive(tuned.result), decisive(prepared.result)
    say(f"as torch computes it: {prepared.metric} {reached:.2f}, {before:.2f} before")
    return tuned


def _patterns(skip: str | None) -> list[str]:
    return [pattern.strip() for pattern in skip.split(",")] if skip else []


def _batches(
    settings: Quantize, split: "Split", preprocess: "Preprocess", target: str
) -> "DecodedOnce":
    from ..inputs.dataset import ImageDataset
    from ..int8._decoded import DecodedOnce

    return DecodedOnce(
        ImageDataset(split, preprocess, target=target),
        images_at_a_time(target),
        workers=settings.workers,
        minutes=settings.timeout,
    )


def _say_prepared(settings: Quantize, prepared: "Prepared", pictures: int, target: str) -> None:
    """What was done before quantizing, what each layer does alone, and whether pictures are few."""
    if target == "label" and 100 / pictures > settings.max_drop:
        say(
            f"warning: {pictures} pictures for validation, so that one is more than the "
            f"{settings.max_drop:g} points allowed"
        )
    if prepared.equalized:
        say(f"made the channels alike that {prepared.equalized} layers take or give")
    if settings.sensitivity:
        say("measuring how much each layer disturbs the outputs")
        _show_layers(prepared.sensitivity)


def _quantized(
    settings: Quantize,
    prepared: "Prepared",
    tuned: "FineTuned | None",
    name: str,
    out: Path,
    source: str,
) -> "Quantized":
    from .. import runtimes
    from ..int8._search import quantize

    return quantize(
        prepared,
        name,
        out / f"{name}-int8" / f"model{runtimes.find(name).suffix}",
        max_drop=settings.max_drop,
        skip=_patterns(settings.skip),
        most=settings.most,
        tuned=tuned,
        facts={"source": source},
        report=say,
    )


def _show(runtime: str, quantized: "Quantized", prepared: "Prepared") -> None:
    from ..int8._prepared import figures

    before, after = figures(prepared.result), figures(quantized.result)
    rows = [[key, f"{before[key]:.4g}", f"{after[key]:.4g}"] for key in before if key in after]
    table(f"{quantized.path}: validation set", ["figure", "float", "int8"], rows)
    in_float = quantized.skipped + quantized.others
    same = (
        ""
        if quantized.agreement is None
        else f", the same top-1 for {quantized.agreement:.1%} of the pictures"
    )
    say(
        f"{runtime}: {prepared.metric} {0.0 - round(quantized.drop, 2):+.2f} points{same}; the outputs' "
        f"noise is {quantized.sqnr:.1f} dB below them; {quantized.macs:.1%} of the multiplications in int8, "
        f"{quantized.layers - len(in_float)} of {quantized.layers} layers"
        + (
            f"; left in float for their effect: {', '.join(quantized.skipped)}"
            if quantized.skipped
            else ""
        )
        + (f"; never in int8: {', '.join(quantized.others)}" if quantized.others else "")
    )
    if quantized.as_trained is not None:
        agreed = quantized.as_trained.agreement
        say(
            f"{runtime}: beside what torch computed of it in fine-tuning, the outputs' noise is "
            f"{quantized.as_trained.sqnr:.1f} dB below them"
            + ("" if agreed is None else f", the same top-1 for {agreed:.1%} of the pictures")
        )


def _show_layers(layers: Sequence["Layer"]) -> None:
    rows = [
        [
            layer.name,
            f"{layer.sqnr:.1f}",
            "-" if layer.agreement is None else f"{layer.agreement:.1%}",
        ]
        for layer in layers[:ROWS]
    ]
    shown = f", the first {len(rows)} of {len(layers)}" if len(rows) < len(layers) else ""
    table(f"Outputs with one layer in int8{shown}", ["layer", "SQNR dB", "same top-1"], rows)


def _document(runtime: str, quantized: "Quantized") -> dict[str, Any]:
    return {
        "runtime": runtime,
        "path": str(quantized.path),
        "sidecar": str(quantized.sidecar),
        "int8": quantized.result,
        "drop": quantized.drop,
        "agreement": quantized.agreement,
        "sqnr_db": quantized.sqnr,
        "layers": quantized.layers,
        "skipped": quantized.skipped,
        "others_in_float": quantized.others,
        "macs_in_int8": quantized.macs,
        "as_trained": asdict(quantized.as_trained) if quantized.as_trained else None,
        "attempts": [
            {"skipped": attempt.skipped, "drop": attempt.drop} for attempt in quantized.attempts
        ],
    }
