"""Int8 of trained classifiers in onnxruntime and OpenVINO: accuracy, what was skipped, speed; and what must be refused.

    python benchmarks/quantize.py --data ../shared/data/clothing10 --out runs/int8 RUN [RUN ...]

RUN is a run folder or checkpoint (those of the published table: recipe clothing10). Each is
quantized for both runtimes as `fleetnet quantize` does it. --ablate does it once more without
equalization where any was done, and calibrates on pictures that are black, and on noise
of a hundredth of the range, which the gate has to refuse. Speed is the ratio to the float file in
the same runtime, one thread, one image, all in turn (fleetnet.measure.latency). Writes OUT/quantize.json and
OUT/quantize.md; the last line of output is JSON.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fleetnet import checkpoint, data
from fleetnet.errors import ExportError
from fleetnet.find import find, names
from fleetnet.inputs.dataset import ImageDataset, collate
from fleetnet.int8._prepared import Prepared, calibration, prepare, source_of
from fleetnet.int8._search import quantize
from fleetnet.measure import latency
from fleetnet.runtimes import Request

COLUMNS = {
    "network": "network", "runtime": "runtime", "case": "case", "float_top1": "float "
                                                                              "top-1", "top1": "int8 "
                                                                                               "top-1",
    "drop": "drop", "float_loss": "float loss", "loss": "int8 loss", "agreement": "same "
                                                                                  "top-1", "sqnr_db": "SQNR "
                                                                                                      "dB",
    "in_float": "layers in float", "macs_in_int8": "MACs in int8", "times_as_fast": "x as fast as "
                                                                                    "float",
}  # fmt: skip


def case(
    prepared: Prepared,
    network: str,
    runtime: str,
    name: str,
    out: Path,
    max_drop: float,
    most: float,
) -> dict[str, Any]:
    """One int8 file, or what was said when it was refused."""
    row: dict[str, Any] = {"network": network, "runtime": runtime, "case": name}
    row |= {"float_top1": prepared.result["top1"], "float_loss": prepared.result["loss"]}
    path = (
        out / network / f"{runtime}-int8{'' if name == 'default' else '-' + name.replace(' ', '-')}"
    )
    try:
        done = quantize(
            prepared,
            runtime,
            path / f"model{find('runtimes', runtime).suffix}",
            max_drop=max_drop,
            most=most,
        )
    except ExportError as error:
        return {**row, "refused": str(error), "exit_code": error.exit_code}
    return row | {
        "top1": done.result["top1"], "loss": done.result["loss"], "drop": done.drop, "agreement": done.agreement,
        "sqnr_db": done.sqnr, "in_float": len(done.skipped) + len(done.others), "layers": done.layers,
        "skipped": done.skipped, "others_in_float": done.others, "macs_in_int8": done.macs, "path": str(done.path),
        "attempts": [{"skipped": len(attempt.skipped), "drop": attempt.drop} for attempt in done.attempts],
        "equalized": prepared.equalized,
    }  # fmt: skip


def speed(rows: list[dict[str, Any]], prepared: Prepared, out: Path, runs: int) -> None:
    """Adds how many times as fast as the float file of the same runtime each file is."""
    image = prepared.images[:1]
    calls: dict[str, Callable[[], object]] = {}
    for runtime in sorted({row["runtime"] for row in rows}):
        to = find("runtimes", runtime)
        file = out / f"float{to.suffix}"
        to.export(Request(prepared.deployed, image, file))
        files = {f"{runtime} float": file} | {f"{runtime} "
                                              f"{r['case']}": r["path"] for r in rows if "path" in r
                                              and r["runtime"] == runtime}  # fmt: skip
        for name, path in files.items():
            run, batch = to.load(path), image.numpy()
            calls[name] = lambda run=run, batch=batch: run(batch)
    measured = latency.measure(calls, runs, threads=dict.fromkeys(calls, 1))
    for row in rows:
        if "path" in row:
            ratios = latency.ratios(measured, f"{row['runtime']} float")
            row["times_as_fast"] = ratios[f"{row['runtime']} {row['case']}"]


def text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if key == "int8" or value is None:
        return "refused" if key == "top1" and "refused" in row else "-"
    if key == "in_float":
        return f"{value} of {row['layers']}"
    if key in ("agreement", "macs_in_int8"):
        return f"{value:.1%}"
    return (
        f"{value:.3f}"
        if "loss" in key
        else f"{value:.2f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--runtimes", nargs="+", default=names("int8"))
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument(
        "--rounds", type=int, default=100, help="of the measurement of speed; 0 for none"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, val = (data.load(args.data, split) for split in ("train", "val"))
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        about = checkpoint.read_facts(source_of(run))
        options = "".join(f" {key}={value}" for key, value in about.options.items())
        network, preprocess = about.model + options, about.preprocess
        images = calibration([sample.image for sample in train.samples], preprocess, args.images)
        batches = list(DataLoader(ImageDataset(val, preprocess), 32, collate_fn=collate))
        cases: dict[str, tuple[Tensor, bool, float]] = {"default": (images, True, 0.25)}
        if args.ablate:
            black = -torch.tensor(preprocess.mean) / torch.tensor(preprocess.std)
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
            cases |= {
                "not equalized": (images, False, 0.25),
                "black pictures": (
                    black.view(1, 3, 1, 1).expand_as(images[:16]).contiguous(),
                    True,
                    0.25,
                ),
                "faint noise": (noise[:16] / 100, True, 0.25),
            }
        of_network: list[dict[str, Any]] = []
        for name, (calibrated_on, equalizing, most) in cases.items():
            prepared = prepare(run, calibrated_on, batches, equalizing=equalizing)
            if name == "default":
                first = prepared
            elif name == "not equalized" and not first.equalized:
                continue
            for runtime in args.runtimes:
                of_network.append(
                    case(prepared, network, runtime, name, args.out, args.max_drop, most)
                )
                print(json.dumps(of_network[-1]), flush=True)
        if args.rounds:
            speed(of_network, first, args.out / network, args.rounds)
        rows += of_network
    conditions = latency.card(1)
    lines = [f"| {' | '.join(COLUMNS.values())} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(text(row, key) for key in COLUMNS)} |" for row in rows]
    lines += ["", "Layers in float, by the search and by the quantizer:", ""]
    for row in rows:
        if row.get("skipped") or row.get("others_in_float"):
            by = [f"search: {', '.join(row['skipped'])}"] if row["skipped"] else []
            by += (
                [f"quantizer: {', '.join(row['others_in_float'])}"]
                if row["others_in_float"]
                else []
            )
            lines.append(f"- {row['network']}, {row['runtime']}, {row['case']}: {'; '.join(by)}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "quantize.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    document = {
        "conditions": conditions,
        "images": args.images,
        "max_drop": args.max_drop,
        "rows": rows,
    }
    (args.out / "quantize.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
