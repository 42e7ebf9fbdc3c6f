"""What a teacher costs a training: one whose answers are stored, one that is asked in each step.

    python benchmarks/reinforce.py --data ../shared/data/clothing10 [--model fasternet_t0] [--teacher-model repvit_m0_9]

The three train the same network for an epoch by the same settings, files read by worker processes;
the teacher has random weights, which cost what others do. They take turns. A ratio is the median of
the ratios of rounds: images a second, from the second step on, over those without a teacher, by the
clock and by the time of the CPU (this process and its workers, of the whole epoch), which other
work on the machine disturbs less. The last line is JSON.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

import fleetnet
from fleetnet import checkpoint
from fleetnet.data import Split
from fleetnet.preprocess import Preprocess
from fleetnet.training.config import TrainConfig
from fleetnet.training.hooks import Hook, Progress
from fleetnet.training.reinforce import reinforce


class Clock(Hook):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step(self, progress: Progress) -> None:
        self.ends.append(time.perf_counter())


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def speeds(config: TrainConfig, train: Split, val: Split) -> dict[str, float]:
    """Images a second of an epoch, by the clock and by the time of the CPU."""
    torch.manual_seed(0)
    model = fleetnet.create_model(config.model, len(train.classes))
    clock, before = Clock(), cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        fleetnet.fit(model, train, val, config, Path(folder) / "run", hooks=[clock], report=False)
    used = cpu_seconds() - before
    steps = len(clock.ends)
    return {
        "clock": config.batch_size * (steps - 1) / (clock.ends[-1] - clock.ends[0]),
        "cpu": config.batch_size * steps / used,
    }


def stored_teacher(
    args: argparse.Namespace, config: TrainConfig, train: Split, folder: Path
) -> tuple[str, str]:
    """A checkpoint of a teacher, and the folder of its answers."""
    teacher = folder / "teacher.safetensors"
    torch.manual_seed(1)
    model = fleetnet.create_model(args.teacher_model, train.classes)
    checkpoint.save(
        teacher, model, classes=train.classes, preprocess=Preprocess((args.size, args.size))
    )
    asked = TrainConfig(**{**config.to_dict(), "teacher": str(teacher)})
    student = fleetnet.create_model(args.model, len(train.classes))
    made = reinforce(student, train, asked, folder / "answers")
    print(f"{made.record} bytes a sample and epoch, {made.samples} samples")
    return str(teacher), made.folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="fasternet_t0")
    parser.add_argument("--teacher-model", default="repvit_m0_9")
    parser.add_argument("--distill", default="soft", choices=("hard", "soft"))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640, help="of an epoch, at most")
    args = parser.parse_args()
    train, val = (fleetnet.load_data(args.data, split) for split in ("train", "val"))
    train, val = (
        Split(train.samples[: args.images], train.classes),
        Split(val.samples[:8], val.classes),
    )
    config = TrainConfig(
        model=args.model, size=args.size, epochs=1, batch_size=32, warmup_epochs=0, ema=None,
        device="cpu", workers=args.workers, threads=args.threads, mixup=0.2, cutmix=1.0,
    )  # fmt: skip
    print(f"{args.model}, {args.size} pixels, {len(train.samples)} images, {args.threads} threads")
    measured: dict[str, list[dict[str, float]]] = {"none": [], "stored": [], "asked": []}
    with tempfile.TemporaryDirectory() as place:
        teacher, answers = stored_teacher(args, config, train, Path(place))
        taught = {"none": None, "stored": answers, "asked": teacher}
        kinds = {"distill": args.distill}
        for number in range(args.rounds + 1):
            for name in sorted(taught, reverse=bool(number % 2)):
                changes = {} if taught[name] is None else {"teacher": taught[name], **kinds}
                speed = speeds(TrainConfig(**{**config.to_dict(), **changes}), train, val)
                if number:  # the first round warms up
                    measured[name].append(speed)
    figures: dict[str, dict[str, float]] = {}
    for name in ("stored", "asked"):
        figures[name] = {
            clock: statistics.median(
                one[clock] / other[clock]
                for one, other in zip(measured[name], measured["none"], strict=True)
            )
            for clock in ("clock", "cpu")
        }
        print(
            f"{name}: {figures[name]['clock']:.3f} by the clock, {figures[name]['cpu']:.3f} by CPU"
        )
    print(json.dumps({"model": args.model, "over_none": figures, "measured": measured}))


if __name__ == "__main__":
    main()
