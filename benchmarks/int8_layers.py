"""What takes the time of an int8 file, by its runtime's profile, and what share of the peak is left.

    python benchmarks/int8_layers.py fasternet_t0 --runtimes openvino onnx --out runs/layers.json

Weights are random and files are calibrated on noise, as in benchmarks/latency.py: they show time,
not accuracy. One image of 224x224, one thread. Every kernel that ran belongs to one kind, with all
that the runtime merged into it:

    dense, depthwise, groups   layers with weights, in int8; "in float" behind it: outside of the
                               int8 kernels
    activations                GELU, SiLU and others that stand alone
    sums and products          of maps, and other arithmetic value by value
    moves                      joins, cuts, copies, other orders of the values in memory
    conversions                between int8 and float that stand alone

Times are the fastest of --rounds profiles of a kernel, warm in the cache, by the runtime's wall
clock: the machine has to be idle. MACs of a kind count the zeros of groups that are written as one,
those of the shares do not. The share of the peak is of the product of matrices that latency.py
measures. "Layers alone" is the share if nothing but layers with weights took time: what is between
them can be written as one likes, that is not exceeded. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fleetnet import int8
from fleetnet.find import find
from fleetnet.int8._shared import module_of
from fleetnet.measure import latency
from fleetnet.measure.flops import count
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request
from fleetnet.runtimes._cpu import int8_class
from fleetnet.runtimes._kernels import Kernel
from fleetnet.weights import create_model

SHAPE = 1, 3, 224, 224
CALIBRATION = 8  # images of noise
SIDE = 1024  # of the matrices of the peak
KINDS = {
    "conversions": ("Quantize", "Convert"),
    "moves": ("Concat", "Split", "Slice", "Reorder", "Transpose", "Reshape", "Input", "Output"),
    "activations": ("Gelu", "Sigmoid", "Swish", "Relu", "Clip", "Erf"),
}  # parts of the names of operators


def kind_of(kernel: Kernel, modules: Mapping[str, nn.Module]) -> str:
    """What a kernel does, by its layer's module and by its operator."""
    layer = modules.get(module_of(kernel.layer))
    if kernel.macs:
        kind = "dense"
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            kind = "depthwise" if layer.groups == layer.out_channels else "groups"
        return f"{kind} in float" if kernel.slow else kind
    operator = kernel.operator.partition(" ")[0]
    for kind, parts in KINDS.items():
        if any(part in operator for part in parts):
            return kind
    return "sums and products"


def written(name: str, runtime: str, folder: Path) -> tuple[Path, nn.Module]:
    """The int8 file of a network with random weights, and the network."""
    torch.manual_seed(0)
    example = torch.randn(SHAPE)
    network = reparameterize(create_model(name).eval(), example)
    module = find("runtimes", runtime)
    source, file = (folder / f"{name}-{part}{module.suffix}" for part in ("float", "int8"))
    module.export(Request(network, example, source, products=False))
    images = torch.randn(CALIBRATION, *SHAPE[1:]).numpy()
    int8.find(runtime).writer(source, images)(set(), file, {})
    return file, network


def fastest(profile: Callable[[], list[Kernel]], rounds: int) -> list[tuple[Kernel, float]]:
    """The kernels of a file in their order, and the milliseconds of each in its fastest round."""
    runs = [profile() for _ in range(rounds)]
    times = [min(kernel.ms or 0.0 for kernel in same) for same in zip(*runs, strict=True)]
    return list(zip(runs[0], times, strict=True))


def peak() -> float:
    """GOP/s of a product of matrices in int8."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(-127, 128, (SIDE, SIDE), generator=generator).to(torch.int8) for _ in "ab"
    )
    (row,) = latency.measure({"peak": lambda: torch._int_mm(first, second)}, 60)
    return 2 * SIDE**3 / (float(np.median(row.working)) * 1e6)


def profiled(name: str, runtime: str, folder: Path, rounds: int, most: float) -> dict[str, object]:
    """The milliseconds of a network's int8 file by kind, printed as a table."""
    file, network = written(name, runtime, folder)
    image = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    modules = dict(network.named_modules())
    kernels = fastest(lambda: find("runtimes", runtime).kernels(file, image), rounds)
    whole = sum(ms for _, ms in kernels)
    macs = count(network, torch.zeros(SHAPE)).macs
    kinds: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0])  # kernels, ms, MACs
    for kernel, ms in kernels:
        of_kind = kinds[kind_of(kernel, modules)]
        for i, value in enumerate((1, ms, kernel.macs)):
            of_kind[i] += value
    print(f"\n{name}, {runtime}: {whole:.2f} ms, {macs / 1e6:.0f} million MACs")
    print("| kind | kernels | ms | share | GOP/s |\n|---|---|---|---|---|")
    for kind, (number, ms, of_kind_macs) in sorted(kinds.items(), key=lambda one: -one[1][1]):
        speed = f"{2 * of_kind_macs / ms / 1e6:.0f}" if of_kind_macs and ms else ""
        print(f"| {kind} | {number} | {ms:.2f} | {ms / whole:.0%} | {speed} |")
    layers = sum(ms for kernel, ms in kernels if kernel.macs)
    shares = {"whole": 2 * macs / whole / 1e6 / most, "layers": 2 * macs / layers / 1e6 / most}
    print(f"of the peak: {shares['whole']:.0%}; layers alone: {shares['layers']:.0%}")
    for kernel, ms in sorted(kernels, key=lambda one: -one[1])[:5]:
        print(f"  {ms:.3f} ms  {kernel.operator}  {kernel.layer}")
    about = {kind: {"kernels": n, "ms": ms, "macs": m} for kind, (n, ms, m) in kinds.items()}
    return {"network": name, "runtime": runtime, "ms": whole, "kinds": about, "of_peak": shares}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runtimes", nargs="+", default=["openvino"], choices=["openvino", "onnx"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    most = peak()
    card = latency.card(1, (*latency.PACKAGES, "openvino", "nncf"))
    print(f"conditions: {card}, {int8_class()}; peak of int8 {most:.0f} GOP/s")
    with tempfile.TemporaryDirectory() as folder:
        files = [
            profiled(name, runtime, Path(folder), args.rounds, most)
            for name in args.names
            for runtime in args.runtimes
        ]
    document = {
        "conditions": card,
        "class": str(int8_class()),
        "peak_gops": most,
        "files": files,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
