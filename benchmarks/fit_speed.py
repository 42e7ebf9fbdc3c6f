"""What reading costs a training: `fit` on image files beside a plain loop over batches that are in memory.

    python benchmarks/fit_speed.py --data ../shared/data/clothing10 [--model fasternet_t0] [--workers 2]

Both train the same network by the same settings, 96 pixels, batches of 32; `fit` reads the files of
each batch in worker processes and does all else that it does, without evaluation; the loop has eight
batches ready and computes loss, gradients and update. Each turn is a process of its own; what counts
is the time of the clock from the second step on, since both ask for all cores. That of `fit` has the
settings that `fleetnet train` gives a process, unless `--plain`; that of the loop has them with
`--both`. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleetnet.cli._process import keep_freed_memory, wait_without_spinning

if "--as-train" in sys.argv:  # before torch is imported
    wait_without_spinning()
    keep_freed_memory()
import torch
from torch.nn import functional as F

import fleetnet
from fleetnet.data import Split
from fleetnet.training.config import TrainConfig
from fleetnet.training.hooks import Hook, Progress


class Clock(Hook):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step(self, progress: Progress) -> None:
        self.ends.append(time.perf_counter())


def of_fit(config: TrainConfig, train: Split, val: Split) -> float:
    """Images a second of an epoch of `fit`."""
    torch.manual_seed(0)
    model = fleetnet.create_model(config.model, len(train.classes))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fleetnet.fit(model, train, val, config, Path(folder) / "run", hooks=[clock], report=False)
    return config.batch_size * (len(clock.ends) - 1) / (clock.ends[-1] - clock.ends[0])


def of_loop(config: TrainConfig, steps: int, classes: int) -> float:
    """Images a second of a loop over batches in memory."""
    torch.manual_seed(0)
    model = fleetnet.create_model(config.model, classes).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)
    shape = config.batch_size, 3, *config.size
    batches = [
        (
            torch.randn(shape).contiguous(memory_format=torch.channels_last),
            torch.randint(classes, shape[:1]),
        )
        for _ in range(8)
    ]
    ends = []
    for step in range(steps):
        images, labels = batches[step % len(batches)]
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return config.batch_size * (len(ends) - 1) / (ends[-1] - ends[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="fasternet_t0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=960, help="of an epoch, at most")
    parser.add_argument("--plain", action="store_true", help="no settings of the process for fit")
    parser.add_argument("--both", action="store_true", help="settings of the process for both")
    parser.add_argument("--contend", choices=["fit", "loop"], help=argparse.SUPPRESS)
    parser.add_argument("--as-train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        print(contend(options))
        return
    print(
        f"{options.model}, {options.images} images of {options.data}, {options.workers} "
        f"workers, {options.threads} threads, {os.cpu_count()} cores"
    )
    ratios = []
    for number in range(options.rounds):
        loop = turn("loop", as_train=options.both)
        fit = turn("fit", as_train=not options.plain)
        ratios.append(fit / loop)
        print(f"round {number + 1}: fit {fit:.1f}, loop {loop:.1f} images/s, {ratios[-1]:.2f}")
    print(json.dumps({"model": options.model, "times the loop": statistics.median(ratios)}))


def turn(which: str, *, as_train: bool) -> float:
    """Images a second of a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--contend", which]
    words += ["--as-train"] if as_train else []
    ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return float(ran.stdout.splitlines()[-1])


def contend(options: argparse.Namespace) -> float:
    """Images a second of `fit` or of the loop, in this process."""
    train, val = (fleetnet.load_data(options.data, split) for split in ("train", "val"))
    train = Split(train.samples[: options.images], train.classes)
    val = Split(val.samples[:8], val.classes)
    config = TrainConfig(
        model=options.model,
        size=96,
        batch_size=32,
        epochs=1,
        optimizer="sgd",
        lr=1e-3,
        ema=None,
        workers=options.workers,
        threads=options.threads,
        device="cpu",
    )
    torch.set_num_threads(options.threads)
    if options.contend == "fit":
        return of_fit(config, train, val)
    return of_loop(config, len(train.samples) // config.batch_size, len(train.classes))


if __name__ == "__main__":
    main()
