"""From files to batches on one core: images a second beside torchvision's loading in PIL, and beside an older checkout.

    python benchmarks/loader.py [--before CHECKOUT] [--photos FOLDER] [--rounds 15] [--large 6]

JPEG files of 500 x 375 and of 4000 x 3000 pixels are made (noise with the spectrum of photographs,
quality 90), or `--photos` is a folder of them. Each contender is a process with one thread; they
take turns, a batch each, and what counts is the time of the CPU, so that other work on the machine
disturbs all alike. All end at scaled values, (N, 3, H, W) float32, but one.

    classify    a random crop of 8 to 100 % of the area to 224, a flip; against torchvision's
                ImageFolder with RandomResizedCrop, flip, ToTensor and Normalize of PIL images
    classify-bytes    the same, but ours ends at bytes, as a batch is handed over: they become
                scaled values on the device
    ssd, yolo   crops with boxes to 300, four pictures in one at 320; against --before
    segment     a random scale and a window of 512, with a label map in a PNG; against --before
    evaluate    the middle 224 of 256; against --before

A ratio is the median of the ratios of rounds. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parents[1]
KINDS = {
    "classify": 224,
    "classify-bytes": 224,
    "ssd": 300,
    "yolo": 320,
    "segment": 512,
    "evaluate": 224,
}
TARGETS = {"ssd": "boxes", "yolo": "boxes", "segment": "semantic"}
SIZES = {"500x375": (375, 500, 24, 8), "4000x3000": (3000, 4000, 2, 2)}  # files, and a batch
JPEG = ".jpg", ".jpeg"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height: int, width: int, seed: int) -> Image.Image:
    """Gray noise of amplitude 1 / frequency, with weaker noise of its own in each color."""
    generator = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    # What a lens and a sensor of many pixels leave of the finest detail is less.
    sharpness = np.exp(-((np.hypot(y, x) * max(height, width) / 700) ** 2))
    amplitude = sharpness / np.maximum(np.hypot(y, x), 1 / max(height, width)) ** 1.1

    def plane() -> np.ndarray:
        spectrum = np.fft.rfft2(generator.standard_normal((height, width))) * amplitude
        return np.fft.irfft2(spectrum, s=(height, width))

    gray = plane()
    pixels = np.stack([gray + 0.3 * plane() for _ in range(3)], -1)
    pixels = 120 + 50 * (pixels - pixels.mean()) / pixels.std()
    pixels += generator.normal(0, 2, pixels.shape)  # of the sensor
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make(folder: Path, height: int, width: int, count: int) -> None:
    """Photos in folder/photos/, label maps of large regions in folder/maps/."""
    (folder / "photos").mkdir(parents=True)
    (folder / "maps").mkdir()
    for index in range(count):
        photo(height, width, index).save(folder / "photos" / f"{index}.jpg", quality=90)
        coarse = np.random.default_rng(index).integers(0, 5, (6, 8), dtype=np.uint8)
        labels = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
        labels.save(folder / "maps" / f"{index}.png")


# A contender -------------------------------------------------------------------------------------

Load = Callable[[list[int]], object]  # a batch of the photos of some indices


def of_torchvision(photos: list[Path]) -> Load:
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(KINDS["classify"]),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    data = ImageFolder(str(photos[0].parents[1]), transforms.Compose(steps), allow_empty=True)
    data.samples = [(str(path), 0) for path in photos]
    return lambda indices: torch.stack([data[index][0] for index in indices])


def of_fleetnet(kind: str, photos: list[Path]) -> Load:
    """By whichever checkout this process imports."""
    with contextlib.suppress(ImportError):  # older checkouts have no such setting
        from fleetnet.cli._process import keep_freed_memory

        keep_freed_memory()  # as under fleetnet train, whose worker processes inherit it
    from fleetnet.data import Object, Sample, Split
    from fleetnet.images import measure, read_labels
    from fleetnet.inputs.augment import augmentation
    from fleetnet.inputs.dataset import ImageDataset, collate
    from fleetnet.preprocess import Preprocess

    samples = []
    for index, path in enumerate(photos):
        width, height = measure(path)
        box = width / 4, height / 4, width / 2, height / 2
        map_of = path.parents[1] / "maps" / f"{path.stem}.png"
        semantic = partial(read_labels, map_of) if kind == "segment" else None
        samples.append(Sample(path, index % 2, (Object(box, 0),), semantic))
    modes = {"ssd": "stretch", "yolo": "letterbox", "segment": "stretch"}
    size = KINDS[kind], KINDS[kind]
    preprocess = Preprocess(
        size, 0.875 if kind == "evaluate" else 1.0, mode=modes.get(kind, "crop")
    )
    augment = None
    if kind.startswith("classify"):
        augment = augmentation("classify", preprocess, scale=0.08, color_jitter=0.0)
    elif kind != "evaluate":
        augment = augmentation({"yolo": "mosaic"}.get(kind, kind), preprocess)
    target = TARGETS.get(kind, "label")
    data = ImageDataset(
        Split(samples, ["a", "b", "c", "d", "e"]), preprocess, augment, target=target
    )

    def load(indices: list[int]) -> object:
        # as a DataLoader asks for them, of checkouts that have it
        together = getattr(data, "__getitems__", None)
        batch = collate(together(indices) if together else [data[index] for index in indices])
        if batch.skipped:
            raise SystemExit(batch.skipped[0])
        if kind == "classify-bytes":
            return batch.images
        # before pictures stayed bytes, the images of a batch were scaled already
        return batch.inputs() if hasattr(batch, "inputs") else batch.images

    return load


def contend(kind: str, name: str, folder: Path, batch: int) -> None:
    """Load a batch for each line that comes in, and answer with the CPU's seconds an image."""
    import torch

    torch.set_num_threads(1)
    photos = sorted((folder / "photos").iterdir(), key=lambda path: (len(path.name), path))
    load = of_torchvision(photos) if name == "torchvision" else of_fleetnet(kind, photos)
    for number, _ in enumerate(sys.stdin):
        indices = [(number * batch + i) % len(photos) for i in range(batch)]
        start = time.process_time()
        load(indices)
        print((time.process_time() - start) / batch, flush=True)


# The race ----------------------------------------------------------------------------------------


def race(
    kind: str, folder: Path, batch: int, rounds: int, names: dict[str, Path]
) -> dict[str, list]:
    """Seconds an image of each contender, round by round; the first round is left out."""
    processes = {name: started(kind, name, folder, batch, path) for name, path in names.items()}
    seconds: dict[str, list] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, process in turned(processes, number):
            process.stdin.write("\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise SystemExit(f"{kind}: {name} ended")
            if number:
                seconds[name].append(float(answer))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return seconds


def turned(processes: dict[str, subprocess.Popen], number: int) -> Iterator[tuple]:
    pairs = list(processes.items())
    yield from pairs if number % 2 else pairs[::-1]


def started(kind: str, name: str, folder: Path, batch: int, checkout: Path) -> subprocess.Popen:
    words = [sys.executable, __file__, "--contend", kind, name, str(folder), str(batch)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)


def compared(kind: str, size: str, seconds: dict[str, list]) -> dict[str, object]:
    """A line for the table: images a second, and how many times as fast as each other."""
    ours = seconds.pop("fleetnet")
    row: dict[str, object] = {"kind": kind, "photos": size}
    row["fleetnet"] = round(1 / statistics.median(ours), 1)
    for name, theirs in seconds.items():
        row[name] = round(1 / statistics.median(theirs), 1)
        ratios = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
        row[f"times {name}"] = round(statistics.median(ratios), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of another commit")
    parser.add_argument(
        "--photos", type=Path, help="a folder of JPEG files, to classify and evaluate"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--large", type=int, default=6, help="rounds of photos of 12 megapixels")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--contend", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        kind, name, folder, batch = options.contend
        contend(kind, name, Path(folder), int(batch))
        return
    print(
        f"CPU time of one thread, {options.rounds} and {options.large} rounds, {os.uname().machine}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for size, (height, width, count, batch) in SIZES.items():
            folder = Path(temporary) / size
            make(folder, height, width, count)
            if options.photos and size == "500x375":
                for path in (folder / "photos").iterdir():
                    path.unlink()
                files = [p for p in options.photos.rglob("*") if p.suffix.lower() in JPEG]
                for path in sorted(files)[:200]:
                    (folder / "photos" / path.name).symlink_to(path.resolve())
            kilobytes = [path.stat().st_size / 1e3 for path in (folder / "photos").iterdir()]
            print(f"{size}: {len(kilobytes)} photos of {statistics.mean(kilobytes):.0f} kB")
            for kind in options.kinds.split(","):
                if options.photos and kind == "segment":
                    continue
                names = {"fleetnet": HERE}
                if kind.startswith("classify"):
                    names["torchvision"] = HERE
                if options.before:
                    names["before"] = options.before
                rounds = options.rounds if size == "500x375" else options.large
                row = compared(kind, size, race(kind, folder, batch, rounds, names))
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
