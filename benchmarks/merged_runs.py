"""A whole training merged and one branch by branch, from one seed: losses and accuracy by epoch.

    python benchmarks/merged_runs.py --data ../shared/data/clothing10 --dtype float64 --size 64
    python benchmarks/merged_runs.py --data ../shared/data/clothing10 --dtype float32 --size 96

Both are the same run of `fit` (the recipe clothing10_mobileone) but for `merge_branches`. Rounding
differs between them, and each step makes a difference larger, the more so the higher the rate: in
float32 two runs end as far apart as two seeds may. In float64 they begin a billion times nearer to
each other, so at a rate that does not blow that up (--lr) what is left between them at the end would
be a fault of the method. The last line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

import fleetnet
from fleetnet.recipes import locate
from fleetnet.training.config import TrainConfig, read_recipe
from fleetnet.training.log import Line

Epochs = list[dict[str, float]]


def as_weights(network: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Images in the precision of the weights."""
    return (inputs[0].to(next(network.parameters()).dtype),)


def trained(merging: str, options: argparse.Namespace) -> Epochs:
    """Loss and top-1 of each epoch."""
    torch.set_num_threads(options.threads)
    train, val = (fleetnet.load_data(options.data, split) for split in ("train", "val"))
    settings = read_recipe(locate("clothing10_mobileone")) | {
        "size": options.size,
        "epochs": options.epochs,
        "seed": options.seed,
        "threads": options.threads,
        "device": "cpu",
        "workers": 0,
        "eval_every": 1,
        "evaluate": "raw",
        "merge_branches": merging,
        "lr": options.lr,
    }
    config = TrainConfig(**settings)
    torch.manual_seed(options.seed)
    model = fleetnet.create_model(options.model, len(train.classes))
    model.to(getattr(torch, options.dtype)).register_forward_pre_hook(as_weights)
    epochs: Epochs = []

    def keep(line: Line) -> None:
        epochs.append({"loss": line["train"]["loss"], "top1": line["raw"]["top1"]})
        print(f"{merging}: {len(epochs)}. loss {epochs[-1]['loss']:.9f}  "
              f"top-1 {epochs[-1]['top1']:.1f} %", flush=True)  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fleetnet.fit(model, train, val, config, run, on_epoch=keep, report=False)
    return epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="mobileone_s0")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3, help="the recipe's is 0.002")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.model}, {options.size} px, rate {options.lr:g}, {options.dtype}, "
          f"{options.threads} threads, torch {torch.__version__}")  # fmt: skip
    merged, branches = (trained(merging, options) for merging in ("on", "off"))
    rows = [
        {
            "loss": abs(one["loss"] - other["loss"]) / other["loss"],
            "top1": one["top1"] - other["top1"],
        }
        for one, other in zip(merged, branches, strict=True)
    ]
    for number, row in enumerate(rows, start=1):
        print(f"epoch {number}: losses {row['loss']:.1e} apart, relative; top-1 {row['top1']:+.1f}")
    print(json.dumps({**vars(options), "merged": merged, "branches": branches}))


if __name__ == "__main__":
    main()
