"""A step of `fit` beside a plain loop on timm's network of the same name, and what evaluation takes of an epoch.

    python benchmarks/train_step.py [--models fasternet_t0,repvit_m0_9] [--size 224] [--threads 1]
    python benchmarks/train_step.py --evaluation ../shared/data/clothing10 --size 96

Batches are in memory. Ours go through `train_one_epoch`, which is what `fit` runs: bytes are scaled,
rates scheduled, losses checked and summed. The plain loop has scaled floats and computes loss,
gradients and update, with the same optimizer, once in each memory format that is safe; the faster
one counts. All take turns, some steps each; of each its fastest turn counts, since other work on the
machine only adds to it. `--clock cpu` counts the time of the CPU, for one thread on a busy machine.
`--ema` averages the weights in ours alone.

With `--processes` each turn is a process of its own, in which one step comes before those that are
timed: that of `fit` has the settings that `fleetnet train` gives its process (freed memory is kept),
that of a loop has those of any Python program.

With `--evaluation` a network is trained for an epoch by the default settings, and the time of the
evaluation at its end is divided by that of its steps, of reading and all. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from fleetnet.cli._process import keep_freed_memory, wait_without_spinning

if "--as-train" in sys.argv:  # before torch is imported
    keep_freed_memory()
if "--as-train" in sys.argv or "--processes" not in sys.argv:
    wait_without_spinning()
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fleetnet
from fleetnet.inputs.dataset import Batch
from fleetnet.training.config import TrainConfig
from fleetnet.training.epoch import train_one_epoch
from fleetnet.training.hooks import Hook, Hooks, Pace, Progress
from fleetnet.training.keeping import Keeper
from fleetnet.training.learner import Learner, set_up
from fleetnet.training.log import Line, Result
from fleetnet.training.setup import accelerator_of, may_be_channels_last, training_of
from fleetnet.training.so_far import EpochSoFar

CLASSES = 1000
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Steps = Callable[[int], None]  # so many steps


def batch_of(size: tuple[int, int], images: int) -> tuple[Tensor, Tensor]:
    """(N, 3, H, W) uint8 with the channels last in memory, (N,)."""
    pixels = torch.randint(0, 256, (images, *size, 3), dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2), torch.randint(CLASSES, (images,))


class InMemory:
    """Takes the place of a loader."""

    def __init__(self, batch: Batch, steps: int):
        self.batch, self.steps = batch, steps
        self.batch_sampler = SimpleNamespace(first=0)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return iter([self.batch] * self.steps)


def ours(config: TrainConfig) -> Steps:
    """Steps as `fit` takes them."""
    train, val = (fleetnet.load_data("shapes:64", split) for split in ("train", "val"))
    torch.manual_seed(0)
    model = fleetnet.create_model(config.model, CLASSES)
    accelerator = accelerator_of(config)
    training = training_of(model, train, config)
    learner = set_up(model, train, val, training, accelerator)
    images, labels = batch_of(config.size, config.batch_size)
    batch = Batch(images, {"label": labels}, [], [], [], training.preprocess)

    def run(steps: int) -> None:
        learner.batches = InMemory(batch, steps)
        pace = Pace(0, config.epochs, steps)
        train_one_epoch(learner, EpochSoFar(epoch=0), pace, Hooks([]), Keeper())

    return run


def plain(config: TrainConfig, model: nn.Module, memory_format: torch.memory_format) -> Steps:
    """The loop that everybody writes."""
    model = model.to(memory_format=memory_format).train()
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, momentum=config.momentum, nesterov=True
    )
    images, labels = batch_of(config.size, config.batch_size)
    inputs = (images / 255).contiguous(memory_format=memory_format)

    def run(steps: int) -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def contenders_of(config: TrainConfig) -> dict[str, Callable[[], Steps]]:
    """What makes the steps of `fit`, and of loops on timm's network in the formats that are safe."""
    import timm

    makers = {"fit": partial(ours, config)}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = timm.create_model(config.model, num_classes=CLASSES)
        is_last = memory_format == torch.channels_last
        if not is_last or may_be_channels_last(model, torch.device("cpu")):
            makers[str(memory_format)] = partial(plain, config, model, memory_format)
    return makers


def race(config: TrainConfig, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of each turn of each contender, all in this process."""
    contenders = {name: make() for name, make in contenders_of(config).items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for steps in contenders.values():
        steps(1)  # the first one makes what the others have
    for number in range(options.rounds):
        in_turn = list(contenders.items())
        for name, steps in in_turn if number % 2 else in_turn[::-1]:
            seconds[name].append(timed(steps, options))
    return seconds


def timed(steps: Steps, options: argparse.Namespace) -> float:
    """Seconds a step."""
    clock = CLOCKS[options.clock]
    start = clock()
    steps(options.steps)
    return (clock() - start) / options.steps


def race_of_processes(config: TrainConfig, options: argparse.Namespace) -> dict[str, list[float]]:
    """As `race`, each turn in a process of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders_of(config)}
    words = [sys.executable, __file__, *sys.argv[1:]]
    words += ["--models", config.model, "--threads", str(config.threads)]
    for number in range(options.rounds):
        in_turn = list(seconds)
        for name in in_turn if number % 2 else in_turn[::-1]:
            settings = ["--as-train"] if name == "fit" else []
            ran = subprocess.run(
                [*words, *settings, "--contend", name],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            seconds[name].append(float(ran.stdout.splitlines()[-1]))
    return seconds


def turn(config: TrainConfig, options: argparse.Namespace) -> float:
    """Seconds a step of one contender, in this process."""
    torch.set_num_threads(config.threads or 1)
    steps = contenders_of(config)[options.contend]()
    steps(1)
    return timed(steps, options)


def compared(config: TrainConfig, options: argparse.Namespace) -> dict[str, object]:
    """Images a second of each, and ours as a ratio to the faster loop."""
    seconds = race_of_processes(config, options) if options.processes else race(config, options)
    fastest = {name: min(each) for name, each in seconds.items()}
    loop = min(value for name, value in fastest.items() if name != "fit")
    row: dict[str, object] = {"model": config.model, "threads": config.threads}
    row |= {name: round(config.batch_size / value, 1) for name, value in fastest.items()}
    return row | {"times timm": round(loop / fastest["fit"], 3)}


class Clock(Hook):
    """When the first and the last step of an epoch ended."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.first = self.last = 0.0

    def start(self, run: object, config: TrainConfig) -> None:
        self.first = self.clock()

    def step(self, progress: Progress) -> None:
        self.last = self.clock()


def evaluated(config: TrainConfig, options: argparse.Namespace) -> dict[str, object]:
    """The share of an epoch's time that its evaluation takes."""
    clock = CLOCKS[options.clock]
    spent: list[float] = []
    evaluate = Learner.evaluate

    def timed(learner: Learner, *arguments: object) -> Result:
        start = clock()
        result = evaluate(learner, *arguments)
        spent.append(clock() - start)
        return result

    train, val = (fleetnet.load_data(options.evaluation, split) for split in ("train", "val"))
    model = fleetnet.create_model(config.model, len(train.classes))
    watch, lines = Clock(clock), list[Line]()
    Learner.evaluate = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            fleetnet.fit(
                model, train, val, config, run,
                hooks=[watch], on_epoch=lines.append, report=False,
            )  # fmt: skip
    finally:
        Learner.evaluate = evaluate  # type: ignore[method-assign]
    steps = watch.last - watch.first
    share = sum(spent) / (steps + sum(spent))
    return {
        "model": config.model,
        "steps": round(steps, 2),
        "evaluation": round(sum(spent), 2),
        "evaluations": len(spent),
        "share": round(share, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="fasternet_t0,repvit_m0_9,mobileone_s1")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a contender before the next one")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--processes", action="store_true", help="one for each turn")
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    parser.add_argument("--as-train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--evaluation", help="a data set, to time its evaluation alone")
    options = parser.parse_args()
    if options.contend is None:
        print(f"batches of {options.batch_size} at {options.size}, {os.cpu_count()} cores, torch "
              f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.clock} time")  # fmt: skip
    rows = []
    for threads in map(int, options.threads.split(",")):
        for model in options.models.split(","):
            shared = {"model": model, "size": options.size, "batch_size": options.batch_size}
            shared |= {"device": "cpu", "threads": threads, "epochs": 1}
            if options.evaluation:
                rows.append(evaluated(TrainConfig(**shared), options))
            else:
                of_race = {"optimizer": "sgd", "lr": 1e-3, "weight_decay": 0.0}
                of_race |= {"ema": 0.99 if options.ema else None}
                config = TrainConfig(**shared, **of_race)
                if options.contend is not None:
                    print(turn(config, options))
                    return
                rows.append(compared(config, options))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
