"""How fast the verified files are on this machine, as ratios within one run.

    python benchmarks/latency.py --out runs/latency.json

For each network: timm's own network, reparameterized by timm, in torch eager (for ParC-Net, which
timm has not, ours, multi-branch, whose kernels are made on the fly), ours in every form and runtime
here that holds it, all timed in turn with everything else. The fastest verified file is set against
torch eager and against onnxruntime in float32. Its speed is also given as a share of the machine's
matrix-product peak in the same precision, measured in the same run.

Files in float are proven equal to the network by `deliver`. Int8 files are calibrated on noise,
since these weights are random: they show what int8 costs in time, not what it costs in accuracy,
for which see benchmarks/quantize.py. They are counted apart.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

import fleetnet
from fleetnet import int8
from fleetnet.deploy.package import deliver
from fleetnet.errors import ExportError
from fleetnet.find import find
from fleetnet.measure import latency
from fleetnet.measure.flops import count
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import choice, load, title_of
from fleetnet.weights import create_model

NETWORKS = (
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s4",
    "repvit_m0_9",
    "fasternet_t0",
    "parcnet_s",
)
RUNTIMES = ("onnx", "openvino", "openvino:bf16", "mnn", "ncnn", "executorch")
INT8 = ("onnx", "openvino")
# precision of a file -> that of a peak; others compute in fp32
IN_PEAK = {"bf16": "bf16", "int8": "int8"}
SIDE = 1024  # of the matrices
CALIBRATION = 8  # images of noise


def eager(name: str, example: torch.Tensor) -> Callable[[], object]:
    """timm's network in its fused form, or ours as it is trained where timm has none."""
    import timm
    from timm.utils.model import reparameterize_model

    network = create_model(name).eval()
    if timm.is_model(name):
        network = reparameterize_model(timm.create_model(name).eval())

    @torch.inference_mode()
    def call() -> object:
        return network(example)

    return call


def products() -> dict[str, Callable[[], object]]:
    """A product of two matrices in each precision."""
    a, b = (
        torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    bytes_ = [(x * 30).clamp(-127, 127).to(torch.int8) for x in (a, b)]
    halves = [x.bfloat16() for x in (a, b)]
    return {
        "fp32": lambda: torch.mm(a, b),
        "bf16": lambda: torch.mm(*halves),
        "int8": lambda: torch._int_mm(*bytes_),
    }


def prepared(
    names: list[str], threads: int, folder: Path
) -> tuple[dict[str, Callable[[], object]], dict, list[str]]:
    """Calls by title, the precision of each, and a line for each that cannot be had."""
    calls: dict[str, Callable[[], object]] = {}
    precisions: dict[str, str] = {}
    missing: list[str] = []
    for name in names:
        print(f"preparing {name}", flush=True)
        torch.manual_seed(0)
        example = torch.randn(1, 3, 224, 224)
        calls[f"{name} eager"] = eager(name, example)
        model = create_model(name).eval()
        for text in RUNTIMES:
            runtime, precision = choice(text)
            module, title = find("runtimes", runtime), f"{name} {title_of(runtime, precision)}"
            try:
                if lacking := module.missing():
                    raise ExportError(lacking)
                path = folder / title / f"model{module.suffix}"
                deliver(model, example, path, runtime, None, precision=precision)
            except ExportError as error:
                missing.append(f"{title}: {error}")
                continue
            calls[title] = partial(load(runtime, path, threads, trust=True), example.numpy())
            precisions[title] = precision
        for runtime in INT8:
            module, title = find("runtimes", runtime), f"{name} {runtime}-int8"
            source = folder / f"{name} {runtime}" / f"model{module.suffix}"
            if source.exists():
                path = source.with_name(f"int8{module.suffix}")
                images = torch.randn(CALIBRATION, 3, 224, 224).numpy()
                int8.find(runtime).writer(source, images)(set(), path, {})
                calls[title] = partial(load(runtime, path, threads, trust=True), example.numpy())
                precisions[title] = "int8"
    return calls, precisions, missing


def mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def compared(
    name: str,
    rows: Mapping[str, latency.Row],
    precisions: Mapping[str, str],
    peaks: Mapping[str, float],
) -> dict[str, object]:
    """The ratios of one network: of all, of the fastest in float, and of the fastest."""
    own = [row for title, row in rows.items() if title.startswith(f"{name} ")]
    base = {
        "eager": latency.ratios(own, f"{name} eager"),
        "onnx": latency.ratios(own, f"{name} onnx"),
    }
    example = torch.zeros(1, 3, 224, 224)
    # of the form that is timed
    macs = count(reparameterize(create_model(name).eval(), example), example).macs

    def told(title: str) -> dict[str, object]:
        peak = peaks[IN_PEAK.get(precisions[title], "fp32")]
        working = float(np.median(rows[title].working))
        return {
            "what": title.removeprefix(f"{name} "), "median_ms": rows[title].median,
            "times_as_fast_as_eager": base["eager"][title], "times_as_fast_as_onnxruntime": base["onnx"][title],
            "share_of_peak": 2 * macs / (working * 1e6) / peak,
        }  # fmt: skip

    every = [title for title in rows if title in precisions and title.startswith(f"{name} ")]
    floats = [title for title in every if precisions[title] != "int8"]
    fastest = {
        kind: max(titles, key=base["eager"].__getitem__)
        for kind, titles in (("float", floats), ("any", every))
    }
    return {
        "network": name, "float": told(fastest["float"]), "any": told(fastest["any"]), "all": [told(t) for t in every]
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        calls, precisions, missing = prepared(list(args.names), args.threads, Path(folder))
        card, during = (
            latency.card(
                args.threads, (*latency.PACKAGES, "openvino", "MNN", "ncnn", "executorch")
            ),
            latency.watch(),
        )
        print(f"measuring {len(calls)} in turn, {args.runs} runs", flush=True)
        measured = latency.measure({**calls, **products()}, args.runs, warmup=5)
    found = during()
    rows = {row.name: row for row in measured}
    peaks = {
        kind: 2 * SIDE**3 / (float(np.median(rows[kind].working)) * 1e6) for kind in products()
    }  # GFLOP/s
    networks = [compared(name, rows, precisions, peaks) for name in args.names]
    means = {
        f"{kind}_{base}": mean([n[kind][f"times_as_fast_as_{base}"] for n in networks])  # type: ignore[index]
        for kind in ("float", "any")
        for base in ("eager", "onnxruntime")
    }
    print(
        "conditions: "
        + ", ".join(f"{key} {value}" for key, value in card.items() if value is not None)
    )
    print(
        "peaks of matrix products, GFLOP/s: "
        + ", ".join(f"{kind} {peak:.0f}" for kind, peak in peaks.items())
    )
    print("\n| network | fastest file in float | x eager | x onnxruntime fp32 | of peak | fastest "
          "with int8 | x eager | x onnxruntime fp32 | of peak "
          "|\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for network in networks:
        cells = [network["network"]]
        for kind in ("float", "any"):
            n = network[kind]
            cells += [
                n["what"], f"{n['times_as_fast_as_eager']:.2f}", f"{n['times_as_fast_as_onnxruntime']:.2f}",
                f"{n['share_of_peak']:.0%}",
            ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print(f"| geometric mean | | {means['float_eager']:.2f} | {means['float_onnxruntime']:.2f} | | "
          f"| {means['any_eager']:.2f} | {means['any_onnxruntime']:.2f} | |")  # fmt: skip
    doubts = latency.warnings(measured, card, found)
    for line in [*missing, *doubts]:
        print(f"note: {line}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "conditions": card, "during": found, "peaks_gflops": peaks, "means": means, "networks": networks,
        "missing": missing, "warnings": doubts, "fleetnet": fleetnet.__version__,
    }  # fmt: skip
    args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
