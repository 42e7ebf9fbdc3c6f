"""Whether `replay` gives any step of a run as it was: what the network saw, to the bit, and its loss.

    python benchmarks/replay.py --steps 10 --seed 0

Five runs of small networks: a classifier with mixup, one whose size and strength of augmentation
grow, one with a size for each step in groups of steps that is stopped and goes on, an SSD, and a
YOLO with mosaic and a size for each batch. Each step of the training is hashed as the
network sees it; then random steps are replayed, some before the state that was saved last, which
are trained again from the start. Compared are the hash of images and annotations, and the loss.
The last line of output is JSON.
"""

import argparse
import hashlib
import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fleetnet
from fleetnet.data import shapes
from fleetnet.tasks import Model, find
from fleetnet.training.config import TrainConfig
from fleetnet.training.hooks import Hook, Progress

# Of each run its task and its settings; "stop_after" so many steps it is stopped, and goes on.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixup": ("classification", {"mixup": 0.4, "erasing": 0.5}),
    "curriculum": ("classification", {"curriculum": "0:32:0,1:48:1", "auto_augment": "trivial"}),
    "sizes, resumed": ("classification", {"sizes": "32,48", "accumulate": 2, "stop_after": 5}),
    "scales": ("ssd", {"scale": 0.3}),
    "mosaic": ("yolo", {"mosaic": 0.5, "multi_scale": 0.25}),
}


class Stopped(BaseException):
    """Stands for SIGKILL: nothing after it is saved."""


class Hashes(Hook):
    """Of each step what the network saw, as a hash, and its loss; it may stop the run."""

    may_stop = True

    def __init__(self, stop_after: int | None = None):
        self.stop_after = stop_after
        self.seen = ""
        self.steps: dict[tuple[int, int], tuple[str, float]] = {}  # by epoch and step, from 1

    def batch(self, images: Tensor, targets: Mapping[str, Any], preprocess: object) -> None:
        self.seen = hash_of(images, targets)

    def step(self, progress: Progress) -> None:
        self.steps[progress.epoch, progress.step] = (self.seen, progress.loss)
        if len(self.steps) == self.stop_after:
            raise Stopped


def hash_of(images: Tensor, targets: Mapping[str, Any]) -> str:
    """Of all bits of the images (N, C, H, W) and of their annotations, with their shapes."""
    hashed = hashlib.sha256()
    for name, value in [("images", images), *sorted(targets.items())]:
        for tensor in value if isinstance(value, list) else [value]:
            hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            hashed.update(tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def files_in(run: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.rglob("*") if file.is_file()}


@dataclass
class Campaign:
    """Trains a run of `RUNS` and replays steps of it."""

    name: str
    network: str  # a backbone
    epochs: int
    samples: int
    folder: Path

    def __post_init__(self) -> None:
        self.task, settings = RUNS[self.name]
        self.stop_after: int | None = settings.get("stop_after")
        usual = {"size": (32, 32), "batch_size": 4, "device": "cpu", "threads": 1, "lr": 1e-3}
        own = {key: value for key, value in settings.items() if key != "stop_after"}
        self.config = TrainConfig(**usual, **own, epochs=self.epochs)
        target = find(self.task).TARGET
        self.train, self.val = (
            shapes.load(f"shapes:{self.samples}", split, target) for split in ("train", "val")
        )
        self.run = self.folder / self.name.replace(" ", "-")

    def model(self) -> Model:
        torch.manual_seed(0)
        name = self.network if self.task == "classification" else f"{self.task}/{self.network}"
        return fleetnet.create_model(name, self.train.classes)

    def trained(self) -> dict[tuple[int, int], tuple[str, float]]:
        """What each step of the run saw, and its loss."""
        hashes = Hashes(self.stop_after)
        config = replace(self.config, save_every=1e-9 if self.stop_after else 0.0)
        try:
            self._fit(config, hashes, resume=False)
        except Stopped:
            hashes.stop_after = None
            self._fit(self.config, hashes, resume=True)
        return hashes.steps

    def _fit(self, config: TrainConfig, hashes: Hashes, *, resume: bool) -> None:
        options: dict[str, Any] = {"hooks": [hashes], "report": False, "resume": resume}
        fleetnet.fit(self.model(), self.train, self.val, config, self.run, **options)

    def replayed(self, count: int, chance: random.Random) -> dict[str, Any]:
        """How many of the steps that are replayed differ, and in what."""
        steps = self.trained()
        before = files_in(self.run)
        chosen = chance.sample(sorted(steps), count)
        differing = [text for step in chosen for text in self._differences(step, steps[step])]
        if files_in(self.run) != before:
            differing.append("the folder of the run was changed")
        return {"run": self.name, "steps": len(chosen), "of": len(steps), "differing": differing}

    def _differences(self, moment: tuple[int, int], expected: tuple[str, float]) -> list[str]:
        epoch, step = moment
        again = fleetnet.replay(self.model(), self.train, self.config, self.run, step, epoch=epoch)
        where = f"{self.name}, epoch {epoch}, step {step}"
        differing = []
        if hash_of(again.images, again.targets) != expected[0]:
            differing.append(f"{where}: inputs")
        if again.computed is None or again.computed.loss != expected[1]:
            differing.append(f"{where}: loss")
        elif again.computed.differing:
            differing.append(f"{where}: {again.computed.differing[0]}")
        return differing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            campaign = Campaign(name, "fasternet_t0", args.epochs, 40, Path(folder))
            outcomes.append(campaign.replayed(args.steps, random.Random(f"{args.seed} {name}")))
            print(
                f"{name}: {args.steps} steps, {len(outcomes[-1]['differing'])} differ", flush=True
            )
    differing = [text for outcome in outcomes for text in outcome["differing"]]
    steps = sum(outcome["steps"] for outcome in outcomes)
    print(f"{steps} steps of {len(outcomes)} runs, {len(differing)} differences")
    print(json.dumps({"steps": steps, "seed": args.seed, "differing": differing, "runs": outcomes}))


if __name__ == "__main__":
    main()
