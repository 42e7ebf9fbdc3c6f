"""What `parc.replace` makes of four networks of timm: size, time in onnxruntime, and where a file is proven.

    python benchmarks/parc_replace.py --folder /tmp/parc --out runs/parc_replace.json
    python benchmarks/parc_replace.py --networks resnet50 --runtimes openvino ncnn

Each network is built twice with random weights, as timm has it and with ParC in its deep stages,
and exported as a thousand classes with `fleetnet.export`, which proves the file or does not write
it. Times are of onnxruntime on one thread, of both files in turn, in an order drawn anew each round;
`x as fast` is the median over the rounds of the time before by the time after, without what calls
waited for a core.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fleetnet
from fleetnet.errors import FleetnetError
from fleetnet.measure import latency
from fleetnet.measure.flops import count
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import find, load
from fleetnet.tasks import Model, build

PLACES = {  # where ParC is put: the deepest stage, and of the ViT the last half
    "mobilenetv3_large_100": "blocks.5.*",
    "convnext_tiny": "stages.3.*",
    "resnet50": "layer4.*",
    "vit_tiny_patch16_224": "blocks.[6-9].*,blocks.1[01].*",
}
RUNTIMES = ("onnx", "openvino", "ncnn", "mnn", "litert")
CLASSES, SIZE = 1000, (224, 224)


def network(name: str, where: str | None) -> Model:
    """The network in eval mode, with random weights that hide nothing of what a block computes."""
    torch.manual_seed(0)
    model = build(f"timm/{name}", CLASSES, options={} if where is None else {"parc": where})
    for parameter_name, parameter in model.named_parameters():
        # Scales of residuals begin near zero.
        if parameter.ndim == 1 and parameter_name.endswith(("weight", "gamma")):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def exported(model: Model, runtime: str, folder: Path) -> tuple[Path | None, str]:
    """The file, and its largest relative difference; or none, and the reason."""
    path = folder / f"model-{runtime}{find(runtime).suffix}"
    classes = [f"class {i}" for i in range(CLASSES)]
    try:
        written = fleetnet.export(
            model, runtime, path, classes=classes, preprocess=Preprocess(SIZE)
        )
    except FleetnetError as error:
        return None, str(error).splitlines()[0]
    return path, f"{written.parity.relative:.1e}"


def times(files: dict[str, Path], runs: int) -> tuple[dict[str, float], float, list[str]]:
    """Median milliseconds of each file without waiting, how many times as fast the second is, notes."""
    image = np.random.default_rng(0).standard_normal((1, 3, *SIZE), dtype=np.float32)
    calls: dict[str, Callable[[], object]] = {}
    for form, path in files.items():
        run = load("onnx", path, 1)
        calls[form] = lambda run=run: run(image)
    rows = latency.measure(calls, runs)
    doubts = latency.uncertainty(rows, "before")["after"]
    notes = [] if doubts is None else [f"another run may differ by {doubts:.1%}"]
    working = {row.name: float(row.to_dict()["working_ms"] or 0) for row in rows}
    return working, latency.ratios(rows, "before")["after"], notes


def compared(name: str, runtimes: Sequence[str], runs: int, folder: Path) -> dict[str, object]:
    """The row of a network."""
    row: dict[str, object] = {"network": name, "where": PLACES[name]}
    files: dict[str, Path] = {}
    example = torch.zeros(1, 3, *SIZE)
    for form, where in (("before", None), ("after", PLACES[name])):
        model = network(name, where)
        counts = count(reparameterize(model, example), example)
        row[f"macs_{form}"], row[f"parameters_{form}"] = counts.macs, counts.parameters
        of_form = folder / name / form
        of_form.mkdir(parents=True, exist_ok=True)
        path, said = exported(model, "onnx", of_form)
        if path is None:
            raise FleetnetError(f"{name} {form}: {said}")
        files[form] = path
        if where is not None:
            row["replaced"] = len(model.backbone.plugged["parc"])
            others = (runtime for runtime in runtimes if runtime != "onnx")
            row["onnx"] = said
            row |= {runtime: exported(model, runtime, of_form)[1] for runtime in others}
    milliseconds, faster, notes = times(files, runs)
    row |= {f"ms_{form}": value for form, value in milliseconds.items()}
    return {**row, "times_as_fast": faster, "notes": notes}


def table(rows: Sequence[dict[str, object]], runtimes: Sequence[str]) -> str:
    """The table of docs/python.md."""
    lines = [
        "| network | where | replaced | parameters, M | MACs, M | ms | x as fast | proven in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        proven = [runtime for runtime in runtimes if str(row[runtime])[:1].isdigit()]
        pairs = [
            f"{float(str(row[f'{what}_before'])) / unit:.{digits}f} -> "
            f"{float(str(row[f'{what}_after'])) / unit:.{digits}f}"
            for what, unit, digits in (("parameters", 1e6, 2), ("macs", 1e6, 0), ("ms", 1, 1))
        ]
        cells = [
            str(row["network"]),
            f"`{row['where']}`",
            str(row["replaced"]),
            *pairs,
            f"{row['times_as_fast']:.2f}",
            ", ".join(proven),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=PLACES, default=list(PLACES))
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="for the files; unless given they are removed")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    card = latency.card(1)
    print("conditions: " + ", ".join(f"{key} {value}" for key, value in card.items()))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.networks:
            row = compared(name, given.runtimes, given.runs, given.folder or Path(temporary))
            print(json.dumps(row), flush=True)
            rows.append(row)
    print(table(rows, given.runtimes))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"conditions": card, "networks": rows}, indent=1))
    print(json.dumps({row["network"]: row["times_as_fast"] for row in rows}))


if __name__ == "__main__":
    main()
