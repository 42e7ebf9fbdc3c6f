"""What evaluation costs with many classes, without the network: reading pictures, metric, figures by class.

    python benchmarks/many_classes.py [--classes 10,1000,20000] [--images 512] [--side 256] [--rounds 7] [--seed 0]

Writes pictures, and takes the logits of each from a table in place of a network. The numbers of
classes are measured in turn within each round, and the medians are compared. The last line is JSON;
the exit code is 1 if the most classes take more than 1.2 times as long as the fewest.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fleetnet.data import Sample, Split
from fleetnet.inputs.dataset import ImageDataset, collate
from fleetnet.preprocess import Preprocess
from fleetnet.training.evaluate import evaluate

ALLOWED = 1.2
BATCH = 32


class Table(nn.Module):
    """Logits from a table (images, classes), in the order of the images."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, images: Tensor) -> Tensor:
        start, self.at = self.at, self.at + len(images)
        return self.logits[start : self.at]


def pictures(folder: Path, count: int, side: int, rng: np.random.Generator) -> list[Path]:
    """JPEG files of a smooth random picture each."""
    paths = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        paths.append(folder / f"{i}.jpg")
        small.resize((side, side), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def seconds(paths: list[Path], logits: Tensor, labels: list[int]) -> float:
    """How much time of the CPU one evaluation takes: on a busy machine a clock would measure the others too."""
    names = [f"class {i}" for i in range(logits.shape[1])]
    split = Split(
        [Sample(path, label=label) for path, label in zip(paths, labels, strict=True)], names
    )
    batches = DataLoader(ImageDataset(split, Preprocess((224, 224))), BATCH, collate_fn=collate)
    began = time.process_time()
    result = evaluate(Table(logits), "classification", batches, names)
    took = time.process_time() - began
    if result["images"] != len(paths):
        raise SystemExit(f"{result['images']} of {len(paths)} images were evaluated")
    return took


def measure(
    classes: list[int], images: int, side: int, rounds: int, seed: int
) -> dict[int, list[float]]:
    """Seconds of each round by number of classes."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    taken: dict[int, list[float]] = {count: [] for count in classes}
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(Path(folder), images, side, rng)
        labels = {count: rng.integers(0, count, images).tolist() for count in classes}
        tables = {count: torch.randn(images, count, generator=generator) for count in classes}
        for round_ in range(rounds + 1):
            for count in classes:
                took = seconds(paths, tables[count], labels[count])
                if round_:  # the first warms up
                    taken[count].append(took)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", default="10,1000,20000")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    classes = [int(text) for text in given.classes.split(",")]
    print(
        f"{given.images} images of {given.side}x{given.side}, batches of {BATCH}, one thread, "
        f"{given.rounds} rounds"
    )
    taken = measure(classes, given.images, given.side, given.rounds, given.seed)
    medians = {count: statistics.median(times) for count, times in taken.items()}
    ratio = medians[max(classes)] / medians[min(classes)]
    for count, median in medians.items():
        print(f"{count:>7} classes: {1000 * median / given.images:.2f} ms of the CPU an image")
    print(
        f"{max(classes)} classes take {ratio:.2f} times as long as {min(classes)} (allowed "
        f"{ALLOWED})"
    )
    per_image = {str(count): 1000 * median / given.images for count, median in medians.items()}
    print(
        json.dumps({"ms_an_image": per_image, "ratio": ratio, "allowed": ALLOWED, "rounds": taken})
    )
    return int(ratio > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
