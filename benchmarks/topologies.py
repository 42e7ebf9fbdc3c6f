"""Whether samples depend on how they are read: processes, workers, threads, a cache, where they lie.

    python benchmarks/topologies.py --draws 100000

In 20 topologies the same epochs of the same data set are read as training reads them: 1 to 4
processes, each with its part of every batch, by 0 to 4 workers each, with a cache and without, with
one thread and with two, from each source in turn. The pictures are small, and what is done to them
draws from every generator that there is, and from other pictures. Counted are the samples that are
not those of the first topology, in their place of the epoch, to the last bit of the input and its
annotation. The last line of output is JSON.
"""

import argparse
import hashlib
import json
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fleetnet.data import Split, load
from fleetnet.data.shards import write
from fleetnet.inputs.augment import Augmentation, InTurn, augmentation
from fleetnet.inputs.dataset import Batch, ImageDataset
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.loader import batches_of
from fleetnet.inputs.samplers import Balanced, labels_of
from fleetnet.inputs.workers import patient
from fleetnet.preprocess import Preprocess

SIZE = 16  # of the input; pictures have sides of one to four times as many pixels
BATCH = 10  # which 1, 2, 3 and 4 processes share
SEED = 3


def write_folder(root: Path, count: int) -> Path:
    """Class folders of `count` pictures, of unequally many a class; two of three are JPEG."""
    numbers = np.random.default_rng(0)
    for index in range(count):
        height, width = numbers.integers(SIZE, 4 * SIZE, 2)
        coarse = numbers.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)))
        folder = root / "train" / ("few" if index % 5 == 0 else "many")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.{'png' if index % 3 == 0 else 'jpg'}")
    shutil.copytree(root / "train", root / "val")  # else some of train would be held back
    return root


def write_shards(root: Path, count: int) -> Path:
    """The same pictures in tar files."""
    folder = write_folder(root / "of", count)
    splits = {split: load(str(folder), split) for split in ("train", "val")}
    write(splits, root / "shards")
    return root / "shards"


# Where the same pictures lie: writes `count` of them below a folder, and gives what is loaded.
SOURCES: dict[str, Callable[[Path, int], Path]] = {"folder": write_folder, "shards": write_shards}


@dataclass(frozen=True)
class Topology:
    """How an epoch is read."""

    processes: int
    workers: int  # of each process
    cache: bool
    threads: int
    source: str

    def __str__(self) -> str:
        cache = "cache" if self.cache else "     "
        return f"{self.processes} x {self.workers} workers  {cache}  {self.threads} threads  {self.source}"


def topologies(sources: Sequence[str] = tuple(SOURCES)) -> list[Topology]:
    """All 20 pairs of processes and workers, with everything else in turn."""
    pairs = [(processes, workers) for processes in range(1, 5) for workers in range(5)]
    made = []
    for index, (processes, workers) in enumerate(pairs):
        source = sources[index // 2 % len(sources)]
        threads = 1 + index // 4 % 2
        made.append(Topology(processes, workers, index % 2 == 1, threads, source))
    return made


class Beside(Augmentation):
    """A part of another picture laid over it, by numbers of Python and NumPy."""

    pictures = 2

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        joined = picture.clone()
        if random.random() < 0.5:
            y, x = (int(np.random.randint(side)) for side in picture.shape[1:])
            height, width = (side - at for side, at in zip(picture.shape[1:], (y, x), strict=True))
            other = pictures[-1].picture[:, :height, :width]
            joined[:, y : y + other.shape[1], x : x + other.shape[2]] = other
        return AnnotatedPicture(joined, targets)


def digests(split: Split, how: Topology, epochs: int) -> list[bytes]:
    """A hash of each sample in these epochs, in their order, with its annotation."""
    torch.set_num_threads(how.threads)
    of_processes = [read_by(split, how, rank, epochs) for rank in range(how.processes)]
    in_turn = zip(*of_processes, strict=True)
    return [digest for parts in in_turn for part in parts for digest in part]


def read_by(split: Split, how: Topology, rank: int, epochs: int) -> list[list[bytes]]:
    """What the process `rank` reads, batch by batch."""
    preprocess = Preprocess((SIZE, SIZE))
    usual = augmentation("classify", preprocess, color_jitter=0.0, erasing=0.5)
    data = ImageDataset(split, preprocess, InTurn(Beside(), usual), seed=SEED, cache=how.cache)
    order = Balanced(labels_of(split), SEED)
    batches = batches_of(
        data, BATCH, order=order, workers=how.workers, rank=rank, world=how.processes
    )
    read = []
    for epoch in range(epochs):
        order.epoch = epoch
        read += [of_batch(batch) for batch in patient(batches)]
    return read


def of_batch(batch: Batch) -> list[bytes]:
    """A hash of each sample of a batch."""
    if batch.skipped:
        raise SystemExit(f"not read: {batch.skipped[0]}")
    samples = zip(batch.indices, batch.images, batch.targets["label"], strict=True)
    return [
        hashlib.sha256(f"{index} {label} ".encode() + image.numpy().tobytes()).digest()
        for index, image, label in samples
    ]


def compare(
    draws: int, epochs: int, folder: Path, show: Callable[[str], None] = print
) -> dict[str, int]:
    """Read about `draws` samples in all; how many topologies, samples and differences there were."""
    # Of more workers than there are cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    ways = topologies()
    count = -(-draws // (len(ways) * epochs))
    count += -count % BATCH  # whole batches
    show(f"{len(ways)} topologies, {epochs} x {count} pictures each, torch {torch.__version__}")
    splits = {}
    for name, source in SOURCES.items():
        splits[name] = load(str(source(folder / name, count)), "train")
    expected: list[bytes] = []
    differences = samples = 0
    for how in ways:
        began = time.monotonic()
        hashes = digests(splits[how.source], how, epochs)
        expected = expected or hashes
        apart = sum(one != other for one, other in zip(hashes, expected, strict=True))
        show(f"{how}: {len(hashes)} samples, {apart} differ, {time.monotonic() - began:.1f} s")
        differences += apart
        samples += len(hashes)
    return {
        "topologies": len(ways),
        "samples": samples,
        "distinct": len(set(expected)),
        "differences": differences,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--draws", type=int, default=100_000, help="samples in all")
    parser.add_argument("--epochs", type=int, default=2, help="in which they are drawn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(options.draws, options.epochs, Path(folder))))


if __name__ == "__main__":
    main()
