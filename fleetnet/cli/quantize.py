"""`fleetnet quantize`: the int8 file for a runtime, calibrated on your images, handed over only when accurate."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from ..errors import ExportError, UsageError
from ._arguments import TIMEOUT
from ._data import images_at_a_time, say_data
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from ..int8._prepared import Prepared
    from ..int8._search import Quantized
    from ..int8._sensitivity import Layer

EXAMPLE = (
    "fleetnet quantize --model runs/classification/mobileone_s0-photos --data photos/ --to openvino"
)
ROWS = 10  # of the most sensitive layers


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--model", type=str, help="run folder or checkpoint (.safetensors)")
    parser.add_argument(
        "--data", type=str, help="folder, list or annotation file: train calibrates, val decides"
    )
    parser.add_argument(
        "--format", type=str | None, help="format of the data, where finding it out fails"
    )
    parser.add_argument("--to", type=str, help="runtimes, separated by commas: onnx, openvino")
    parser.add_argument("--out", type=str, help="folder (default: export/ beside the checkpoint)")
    parser.add_argument(
        "--max-drop",
        type=NonNegativeFloat,
        help="points that may be lost of the task's first figure (default: 1.0)",
    )
    parser.add_argument(
        "--max-bad",
        type=ClosedUnitInterval,
        help="largest share of the annotations that may be unusable (default: 0.5)",
    )
    parser.add_argument(
        "--images", type=PositiveInt, help="pictures to calibrate on (default: 128)"
    )
    parser.add_argument(
        "--calibrate-on",
        type=str,
        help="folder of other pictures to calibrate on; no labels needed",
    )
    parser.add_argument(
        "--skip",
        type=str,
        help="layers to leave in float, separated by commas, with wildcards: 'head.*,*.se.*'",
    )
    parser.add_argument(
        "--most",
        type=ClosedUnitInterval,
        help="share of the layers that may be left in float beside (default: 0.25)",
    )
    parser.add_argument(
        "--equalize", type=bool, help="cross-layer equalization of chains of ReLU (default: true)"
    )
    parser.add_argument(
        "--recalibrate-norms",
        action="store_true",
        help="first recompute the batch norms' statistics on the pictures",
    )
    parser.add_argument(
        "--sensitivity", action="store_true", help="show what int8 does to each layer alone"
    )
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads of torch (default: 2)")
    parser.add_argument(
        "--workers", type=NonNegativeInt, help="processes that read images (default: 0)"
    )
    parser.add_argument("--timeout", type=PositiveFloat, help=f"{TIMEOUT} (default: 5)")


def run(given: dict[str, Any]) -> dict[str, Any]:  # noqa: C901, PLR0915
    for key in ("model", "data", "to"):
        if not given.get(key):
            raise UsageError(f"--{key} is missing; example: {EXAMPLE}")

    import torch

    from .. import checkpoint, data, runtimes, tasks
    from ..data._contents import check_usable, contents_of
    from ..data._names import by_name
    from ..data._record import to_measure
    from ..errors import choose
    from ..files import check_writable
    from ..find import names
    from ..images import find_images
    from ..inputs.dataset import ImageDataset
    from ..inputs.loader import MINUTES
    from ..int8._decoded import LIMIT, DecodedOnce
    from ..int8._prepared import calibration, prepare, source_of
    from ..int8._search import missing, quantize
    from ..weights.read import check_inside

    chosen = [name.strip() for name in given["to"].split(",")]
    for name in chosen:
        if name not in names("int8"):
            raise UsageError(
                f"no int8 for the runtime {name!r}: {choose(name, names('int8'), 'runtime')}"
            )
        if absent := missing(name):  # before anything is measured
            raise ExportError(absent)
    torch.set_num_threads(given.get("threads", 2))
    path = source_of(given["model"])
    out = Path(given.get("out") or path.parent / "export")
    if not given.get("out"):
        for place in (out, *out.glob("*")):
            check_inside(place, path.parent, "give --out a folder of yours")
    check_writable(out, "--out", folder=True)
    about = checkpoint.read_facts(path)
    preprocess, target = about.preprocess, tasks.find(about.task).TARGET
    val = to_measure(given["data"], "val", given.get("format"), target, path, about.settings)
    val = by_name(val, about.classes, str(path))
    contents = contents_of(val, target)
    say_data("judged on", val, contents)
    check_usable(val, contents, given.get("max_bad", 0.5), learn=False)
    sources: list[Any]
    if given.get("calibrate_on"):
        sources, source = find_images(given["calibrate_on"])[0], given["calibrate_on"]
    else:
        sources = [
            s.image for s in data.load(given["data"], "train", given.get("format"), target).samples
        ]
        source = f"{given['data']}, train"
    images = calibration(sources, preprocess, given.get("images", 128))
    say(f"calibrating on {len(images)} pictures of {source}")
    batches = DecodedOnce(
        ImageDataset(val, preprocess, target=target), images_at_a_time(target),
        workers=given.get("workers", 0), minutes=given.get("timeout", MINUTES),
    )  # fmt: skip
    prepared = prepare(
        path, images, batches, equalizing=given.get("equalize", True),
        recalibrating=bool(given.get("recalibrate_norms")),
    )  # fmt: skip
    if batches.again:
        say(
            f"{batches.again} of {len(val.samples)} pictures are more than {LIMIT / 1e9:.1f} GB of "
            "memory hold: they are read again for each int8 file"
        )
    count, allowed = len(val.samples), given.get("max_drop", 1.0)
    if target == "label" and 100 / count > allowed:
        say(
            f"warning: {count} pictures for validation, so that one is more than the {allowed:g} "
            "points allowed"
        )
    if prepared.equalized:
        say(f"equalized {prepared.equalized} pairs of layers")
    if given.get("sensitivity"):
        say("measuring how much each layer disturbs the outputs")
        _show_layers(prepared.sensitivity)
    settings = {key: given[key] for key in ("max_drop", "most") if key in given}
    skip = [pattern.strip() for pattern in given["skip"].split(",")] if given.get("skip") else []
    found, refused = [], []
    for name in chosen:
        say(f"quantizing {path} for {name}")
        file = out / f"{name}-int8" / f"model{runtimes.find(name).suffix}"
        try:
            done = quantize(
                prepared, name, file, skip=skip, facts={"source": source}, report=say, **settings
            )
        except ExportError as error:  # the others may do better
            refused.append(str(error))
            continue
        _show(name, done, prepared)
        found.append(_document(name, done))
    if refused:
        also = f" (written: {', '.join(done['path'] for done in found)})" if found else ""
        raise ExportError("; ".join(refused) + also)
    return {
        "model": str(path), "metric": prepared.metric, "float": prepared.result, "equalized": prepared.equalized,
        "sensitivity": [asdict(layer) for layer in prepared.sensitivity] if given.get("sensitivity") else None,
        "quantized": found,
    }  # fmt: skip


def _show(runtime: str, done: "Quantized", prepared: "Prepared") -> None:
    from ..int8._prepared import figures

    before, after = figures(prepared.result), figures(done.result)
    rows = [[key, f"{before[key]:.4g}", f"{after[key]:.4g}"] for key in before if key in after]
    table(f"{done.path}: validation set", ["figure", "float", "int8"], rows)
    in_float = done.skipped + done.others
    same = (
        ""
        if done.agreement is None
        else f", the same top-1 for {done.agreement:.1%} of the pictures"
    )
    say(
        f"{runtime}: {prepared.metric} {0.0 - round(done.drop, 2):+.2f} points{same}; the outputs' "
        f"noise is {done.sqnr:.1f} dB below them; {done.macs:.1%} of the multiplications in int8, "
        f"{done.layers - len(in_float)} of {done.layers} layers"
        + (f"; left in float for their effect: {', '.join(done.skipped)}" if done.skipped else "")
        + (f"; never in int8: {', '.join(done.others)}" if done.others else "")
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


def _document(runtime: str, done: "Quantized") -> dict[str, Any]:
    return {
        "runtime": runtime, "path": str(done.path), "sidecar": str(done.sidecar), "int8": done.result,
        "drop": done.drop, "agreement": done.agreement, "sqnr_db": done.sqnr, "layers": done.layers,
        "skipped": done.skipped, "others_in_float": done.others, "macs_in_int8": done.macs,
        "attempts": [{"skipped": attempt.skipped, "drop": attempt.drop} for attempt in done.attempts],
    }  # fmt: skip
