"""Other ways to write the deploy form, timed against ours: is there a copy or an operator worth taking out?

    python benchmarks/forms.py --out runs/forms.json

Each network is exported as it is and rewritten, each runtime runs both in turn within one process,
and the outputs are compared. Above 1: the other way is faster.

    PConv by slices       two slices of the input for one split
    PConv as a sum        what passes through goes into the first pointwise convolution directly, the convolved quarter
                          into one of its own: no concatenation
    ParC by matrices      a circular convolution of n is a product with an n x n matrix for each channel: no
                          concatenation of the feature with itself. For sides of at least 14
    ParC by convolutions  what executorch's files would be without the products that they have
    GELU of operators     spelled out by Erf instead of ONNX's own operator (opset 18)
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from fleetnet.backbones.fasternet import Block
from fleetnet.errors import FleetnetError
from fleetnet.find import find
from fleetnet.measure import latency
from fleetnet.parc import with_products
from fleetnet.pconv import PConv
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, executorch, load
from fleetnet.tasks import build

RUNTIMES = ("onnx", "openvino", "mnn", "ncnn", "executorch")
# side of a feature from which on ParC is rewritten: below, matrices were never faster
SMALLEST = 14


class Sliced(nn.Module):
    """PConv: (N, C, H, W) -> the same."""

    def __init__(self, pconv: PConv):
        super().__init__()
        self.conv, self.first = pconv.conv, pconv.split[0]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, : self.first]), x[:, self.first :]], 1)


class Summed(nn.Module):
    """PConv and the pointwise convolution after it: (N, C, H, W) -> (N, 2C, H, W)."""

    def __init__(self, pconv: PConv, mix: nn.Conv2d):
        super().__init__()
        self.conv, self.first = pconv.conv, pconv.split[0]
        self.rest = copy.deepcopy(mix)
        self.convolved = nn.Conv2d(self.first, mix.out_channels, 1, bias=False)
        self.convolved.weight = nn.Parameter(mix.weight.detach()[:, : self.first].clone())
        self.rest.weight.data[:, : self.first] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x) + self.convolved(self.conv(x[:, : self.first]))


def slices(model: nn.Module) -> tuple[nn.Module, int]:
    """A rewritten copy of a deploy form, and in how many places."""
    model = copy.deepcopy(model)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.spatial = Sliced(cast(PConv, block.spatial))
    return model, len(blocks)


def sums(model: nn.Module) -> tuple[nn.Module, int]:
    model = copy.deepcopy(model)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.mlp[0] = Summed(cast(PConv, block.spatial), cast(nn.Conv2d, block.mlp[0]))
        block.spatial = nn.Identity()
    return model, len(blocks)


def matrices(model: nn.Module) -> tuple[nn.Module, int]:
    return with_products(model, SMALLEST)


def operators(model: nn.Module) -> tuple[nn.Module, int]:
    return model, sum(isinstance(module, nn.GELU) for module in model.modules())


def convolutions(model: nn.Module) -> tuple[nn.Module, int]:
    return model, with_products(model, executorch.TAPS + 1)[1]


Change = Callable[[nn.Module], tuple[nn.Module, int]]
# network, size, what is changed, how
CASES: tuple[tuple[str, int, str, Change], ...] = (
    ("fasternet_t0", 224, "PConv by slices", slices),
    ("fasternet_t0", 224, "PConv as a sum", sums),
    ("fasternet_t0", 224, "GELU of operators", operators),
    ("parcnet_s", 224, "ParC by matrices", matrices),
    ("parc_convnext_xt", 224, "ParC by matrices", matrices),
    ("deeplabv3/parcnet_s", 384, "ParC by matrices", matrices),
    ("parcnet_s", 224, "ParC by convolutions", convolutions),
    ("deeplabv3/parcnet_s", 384, "ParC by convolutions", convolutions),
)


def compared(name: str, size: int, what: str, change: Change, runs: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    example = torch.randn(1, 3, size, size)
    ours = reparameterize(
        as_if_trained(build(name, 1000 if "/" not in name else 20), (size, size)), example
    )
    other, places = change(ours)
    found = []
    for runtime in ("executorch",) if change is convolutions else RUNTIMES:
        module = find("runtimes", runtime)
        row: dict[str, object] = {
            "network": name,
            "size": size,
            "change": what,
            "places": places,
            "runtime": runtime,
        }
        with tempfile.TemporaryDirectory() as folder:
            calls = {}
            try:
                for title, model in (("ours", ours), ("other", other)):
                    changed = title == "other" and change
                    opset = 18 if changed is operators and module.default_opset else None
                    path = Path(folder) / f"{title}{module.suffix}"
                    with patch.object(
                        executorch, "TAPS", 10**6 if changed is convolutions else executorch.TAPS
                    ):
                        module.export(Request(model, example, path, opset=opset))
                    calls[title] = partial(load(runtime, path, 1, trust=True), example.numpy())
                a, b = (call()[0] for call in calls.values())
                rows = latency.measure(calls, runs, warmup=3)
            except FleetnetError as error:
                row["reason"] = str(error)[:200]
            else:
                row["relative"] = float(np.abs(a - b).max() / a.std())
                row["ratio"] = latency.ratios(rows, "ours")["other"]
                row["uncertainty"] = latency.uncertainty(rows, "ours")["other"]
        print(json.dumps(row), flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [row for case in CASES for row in compared(*case, args.runs)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1))
    print(f"\n| network | change | {' | '.join(RUNTIMES)} |\n|---|---|{'---|' * len(RUNTIMES)}")
    for name, size, what, _ in CASES:
        rows = {
            r["runtime"]: r
            for r in found
            if (r["network"], r["size"], r["change"]) == (name, size, what)
        }
        cells = [f"{rows[r]['ratio']:.2f}" if "ratio" in rows.get(r, {}) else "-" for r in RUNTIMES]
        print(f"| {name}, {size} | {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
