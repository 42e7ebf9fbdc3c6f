"""Train our networks and timm's of the same name by one recipe on one data set, and compare the best top-1.

    python benchmarks/clothing10.py --data ../shared/data/clothing10 --out runs/clothing10 [NAME ...]

Both sides go through `fleetnet.fit` with the same settings, seed, order and augmentation; what
differs is the network: its code and its initial weights. timm's MobileOne cannot train in
channels_last on CPU (its strided 1x1 convolution corrupts memory in the backward pass), so every
network of timm's trains contiguous; that changes its speed, not its values. parcnet_xs has no peer
in timm. The last line of output is JSON. A run that is complete is not repeated.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

import fleetnet
from fleetnet import recipes
from fleetnet.tasks import Model
from fleetnet.training.config import read_recipe

NAMES = ("fasternet_t0", "mobileone_s0", "repvit_m0_9", "parcnet_xs")
RECIPE = recipes.locate("clothing10")


class Peer(Model):
    """timm's whole classifier, in the shape that `fit` takes."""

    def __init__(self, name: str, classes: int):
        import timm

        nn.Module.__init__(self)
        self.name, self.classes, self.task = f"timm/{name}", classes, "classification"
        self.drop_path, self.output_stride, self.options = 0.0, 32, {}
        self.report = self.preprocess = None
        self.head = nn.Identity()
        self.net = timm.create_model(name, num_classes=classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--who", choices=("ours", "timm", "both"), default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = read_recipe(RECIPE)
    recipe["seed"] = args.seed
    if args.epochs:
        recipe["epochs"] = args.epochs
    train, val = (fleetnet.load_data(args.data, split) for split in ("train", "val"))
    results = {}
    for name in args.names:
        for who in ("ours", "timm") if args.who == "both" else (args.who,):
            if who == "timm" and name == "parcnet_xs":
                continue
            run = args.out / (f"{name}-{who}" + (f"-seed{args.seed}" if args.seed else ""))
            if not (run / "result.json").exists():
                config = fleetnet.TrainConfig(
                    **{**recipe, "model": name, "data": args.data, "threads": args.threads,
                       "channels_last": who == "ours"}
                )  # fmt: skip
                torch.manual_seed(config.seed)
                model = (
                    fleetnet.create_model(name, len(train.classes))
                    if who == "ours"
                    else Peer(name, len(train.classes))
                )
                began = time.monotonic()
                best = fleetnet.fit(
                    model,
                    train,
                    val,
                    config,
                    run,
                    on_epoch=lambda line, run=run: print(run.name, json.dumps(line), flush=True),
                )
                line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
                result = {
                    "best_top1": best["top1"], "correct": best["correct"], "images": best["images"],
                    "last_ema": line["ema"]["top1"],
                    "minutes": (time.monotonic() - began) / 60, "threads": args.threads, "epochs": config.epochs,
                }  # fmt: skip
                (run / "result.json").write_text(json.dumps(result))
            results[run.name] = json.loads((run / "result.json").read_text())
    print(json.dumps(results))


if __name__ == "__main__":
    main()
