"""Int8 of trained networks after fine-tuning, beside what the quantizer alone reaches: accuracy, share in int8, speed.

    python benchmarks/qat.py --data ../shared/data/clothing10 --out runs/qat --epochs 3 --seeds 3 RUN [RUN ...]

RUN is a run folder or checkpoint. For each runtime the quantizer alone writes a file twice: with no
layer in float but those that it always leaves there (gates), and as `fleetnet quantize` does, which
leaves layers in float until at most a point is lost. Then the network is fine-tuned with each seed,
and the file of each runtime evaluated. "as torch" is the share of the validation pictures with the
same top-1 as the fine-tuned network computed by torch, and how far below the outputs their
difference is. Of a classifier "by_chance" is what errors of the fine-tuned network's size lose of
these pictures, whatever they are errors of: mean and standard deviation of the points lost where
its errors are dealt out to other pictures, with random signs. Speed is the ratio to the float file
in the same runtime, one thread, one image, all in turn (fleetnet.measure.latency). Writes
OUT/qat.json after each network; the last line of output is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fleetnet import checkpoint, data, tasks
from fleetnet.facts import Facts
from fleetnet.find import find, names
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.int8._decoded import DecodedOnce
from fleetnet.int8._finetune import RATE, Plan, fine_tune
from fleetnet.int8._prepared import Prepared, calibration, decisive, prepare, source_of
from fleetnet.int8._search import Quantized, quantize
from fleetnet.measure import latency
from fleetnet.runtimes import Request

Row = dict[str, object]


def row_of(name: str, made: Quantized, prepared: Prepared) -> Row:
    """What is said of a file."""
    as_trained = made.as_trained
    return {
        "case": name,
        "float": decisive(prepared.result),
        "int8": decisive(made.result),
        "drop": made.drop,
        "same_as_float": made.agreement,
        "sqnr_db": made.sqnr,
        "in_float": len(made.skipped) + len(made.others),
        "layers": made.layers,
        "macs_in_int8": made.macs,
        "same_as_torch": None if as_trained is None else as_trained.agreement,
        "sqnr_to_torch_db": None if as_trained is None else as_trained.sqnr,
        "path": str(made.path),
    }


def by_chance(prepared: Prepared, logits: Tensor | None, draws: int = 1000) -> list[float] | None:
    """Points of top-1 that errors of this size lose, mean and standard deviation; of classifiers."""
    if logits is None or prepared.logits is None:
        return None
    labels = torch.cat([batch.targets["label"] for batch in prepared.batches])
    errors = logits - prepared.logits  # (N, classes)
    generator = torch.Generator().manual_seed(0)
    lost = []
    for _ in range(draws):
        order = torch.randperm(len(errors), generator=generator)
        signs = torch.randint(0, 2, (len(errors), 1), generator=generator) * 2 - 1
        said = (prepared.logits + errors[order] * signs).argmax(1)
        lost.append(decisive(prepared.result) - 100 * (said == labels).double().mean().item())
    return [statistics.mean(lost), statistics.stdev(lost)]


def rows_of(
    prepared: Prepared, train: data.Split, out: Path, args: argparse.Namespace
) -> list[Row]:
    """All files of a network."""

    def written(runtime: str, case: str, **settings: object) -> Row:
        folder = out / f"{runtime}-{case.replace(' ', '-')}"
        file = folder / f"model{find('runtimes', runtime).suffix}"
        made = quantize(prepared, runtime, file, **settings)
        row = {"runtime": runtime, **row_of(case, made, prepared)}
        print(json.dumps(row), flush=True)
        return row

    rows = []
    if not args.tuned_only:
        for runtime in args.runtimes:
            rows.append(written(runtime, "quantizer", max_drop=100.0, most=0.0))
            rows.append(written(runtime, "search", max_drop=1.0))
    for seed in range(args.seeds):
        start = time.process_time()
        plan = Plan(args.epochs, args.rate, seed, args.branches)
        tuned = fine_tune(prepared, train, plan, report=lambda line: print(line, flush=True))
        seconds = time.process_time() - start
        chance = by_chance(prepared, tuned.logits)
        for runtime in args.runtimes:
            row = written(runtime, f"tuned {seed}", max_drop=100.0, tuned=tuned)
            in_torch = decisive(tuned.result)
            row |= {"seed": seed, "in_torch": in_torch, "seconds": seconds, "by_chance": chance}
            rows.append(row)
    return rows


def add_speed(rows: list[Row], prepared: Prepared, out: Path, rounds: int) -> None:
    """Adds how many times as fast as the float file of the same runtime each file is."""
    image = prepared.images[:1]
    calls: dict[str, Callable[[], object]] = {}
    for runtime in sorted({str(row["runtime"]) for row in rows}):
        module = find("runtimes", runtime)
        file = out / f"float{module.suffix}"
        module.export(Request(prepared.deployed, image, file))
        paths = {f"{runtime} float": str(file)}
        paths |= {f"{runtime} {r['case']}": str(r["path"]) for r in rows if r["runtime"] == runtime}
        for name, path in paths.items():
            run, batch = module.load(path), image.numpy()
            calls[name] = lambda run=run, batch=batch: run(batch)
    measured = latency.measure(calls, rounds, threads=dict.fromkeys(calls, 1))
    for row in rows:
        ratios = latency.ratios(measured, f"{row['runtime']} float")
        row["times_as_fast"] = ratios[f"{row['runtime']} {row['case']}"]


def prepared_of(
    run: Path, facts: Facts, train: data.Split, val: data.Split, pictures: int
) -> Prepared:
    target = tasks.find(facts.task).TARGET
    images = calibration([sample.image for sample in train.samples], facts.preprocess, pictures)
    batches = DecodedOnce(ImageDataset(val, facts.preprocess, target=target), 32)
    return prepare(run, images, batches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=128, help="to calibrate on")
    parser.add_argument("--runtimes", nargs="+", default=names("int8"))
    parser.add_argument("--branches", action="store_true", help="learn in place of kernels")
    parser.add_argument("--tuned-only", action="store_true", help="without the quantizer's own")
    parser.add_argument("--rounds", type=int, default=0, help="of the measurement of speed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: list[Row] = []
    for run in args.runs:
        facts = checkpoint.read_facts(source_of(run))
        target = tasks.find(facts.task).TARGET
        train, val = (data.load(args.data, split, target=target) for split in ("train", "val"))
        prepared = prepared_of(run, facts, train, val, args.pictures)
        out = args.out / f"{run.stem}"
        out.mkdir(parents=True, exist_ok=True)
        rows = rows_of(prepared, train, out, args)
        if args.rounds:
            add_speed(rows, prepared, out, args.rounds)
        table += [{"network": facts.model, "run": str(run), **row} for row in rows]
        (args.out / "qat.json").write_text(json.dumps(table, indent=1))
    print(json.dumps(table))


if __name__ == "__main__":
    main()
