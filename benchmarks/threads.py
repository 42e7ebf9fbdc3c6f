"""Many threads share one predictor: does each get the answer to its own picture? For every runtime and the checkpoint.

    python benchmarks/threads.py [--threads 8] [--pictures 400] \\
        [--to onnx,openvino] [--models fasternet_t0,ssd/fasternet_t0]

A network with random weights is exported to each runtime that works here. Every picture is first
predicted alone, in one thread. Then all threads go through all pictures, each in an order of its
own, with `predictions` (files to answers) and with `raw` (batches to outputs), through one and the
same predictor, and so with the layers that `trace` shows. An answer is wrong if it differs from
that of the picture alone by more than 1e-5 of the values' size. The last line is JSON: for each
model and runtime the number of answers and how many of them were wrong.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fleetnet import checkpoint
from fleetnet.deploy.export import export
from fleetnet.deploy.predictor import Predictor
from fleetnet.errors import ExportError, UsageError
from fleetnet.find import find, names
from fleetnet.preprocess import Preprocess
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.runtimes import trace
from fleetnet.tasks import build

MODELS = (
    "fasternet_t0",
    "ssd/fasternet_t0",
    "yolo/fasternet_t0",
    "deeplabv3/fasternet_t0",
    "maskrcnn/fasternet_t0",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "maskrcnn": {"channels": 16, "hidden": 32, "proposals": 20, "anchor": 8},
    "deeplabv3": {"channels": 16},
}
CLOSE = 1e-5  # of the values' size
Answer = dict[str, np.ndarray]


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Noise of different brightness and sizes, so that no two answers are alike."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        height, width = generator.integers(24, 60, 2)
        low, high = sorted(generator.integers(0, 256, 2))
        found.append(
            Image.fromarray(generator.integers(low, high + 1, (height, width, 3), dtype=np.uint8))
        )
    return found


def same(answer: Mapping[str, np.ndarray], alone: Mapping[str, np.ndarray]) -> bool:
    """Whether an answer is that of the picture alone."""
    if answer.keys() != alone.keys():
        return False
    for name, value in alone.items():
        other = answer[name]
        if other.shape != value.shape:
            return False
        size = float(np.abs(value).max()) if value.size else 0.0
        if not np.allclose(other, value, rtol=0, atol=CLOSE * size):
            return False
    return True


def wrong_answers(ask: Callable[[int], Answer], count: int, threads: int, seed: int) -> int:
    """How many of `count` questions, asked by each of `threads` at once, get another answer than when asked alone.

    An exception in a thread counts as a wrong answer too.
    """
    alone = [ask(i) for i in range(count)]
    start = threading.Barrier(threads)
    wrong = [0] * threads

    def go_through(thread: int) -> None:
        order = list(range(count))
        random.Random(seed + thread).shuffle(order)
        start.wait()
        for i in order:
            try:
                answer = ask(i)
            except Exception:  # whatever a runtime raises
                wrong[thread] += 1
                continue
            wrong[thread] += not same(answer, alone[i])

    workers = [threading.Thread(target=go_through, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(wrong)


def questions(
    predictor: Predictor, photos: Sequence[Image.Image], path: Path | None
) -> dict[str, Callable[[int], Answer]]:
    """What can be asked of a predictor, by name: question number -> answer."""

    def predictions(i: int) -> Answer:
        (found,) = predictor.predictions([photos[i]])
        return {name: value.numpy() for name, value in vars(found).items() if value is not None}

    batches = [predictor.preprocess(photo)[None].numpy() for photo in photos]

    def raw(i: int) -> Answer:
        return {str(n): value for n, value in enumerate(predictor.raw(batches[i]))}

    asked: dict[str, Callable[[int], Answer]] = {"predictions": predictions, "raw": raw}
    if path is not None and find("runtimes", predictor.runtime).trace is not None:
        traced = trace(predictor.runtime, path, trust=True)
        asked["trace"] = lambda i: dict(traced(batches[i]))
    return asked


def made(model: str, runtime: str, folder: Path, size: int, photos: Sequence[Image.Image]) -> Path:
    """The file of a model with random weights in a runtime, or its checkpoint for "torch"."""
    torch.manual_seed(0)
    task = model.partition("/")[0]
    network = as_if_trained(
        build(model, 5, options=OPTIONS.get(task) if "/" in model else None), (size, size)
    )
    preprocess = Preprocess((size, size), mode=find("tasks", network.task).MODE)
    if runtime == "torch":
        path = folder / "best.safetensors"
        checkpoint.save(path, network, classes=list("abcde"), preprocess=preprocess)
        return path
    path = folder / runtime / f"model{find('runtimes', runtime).suffix}"
    export(
        network, runtime, path, classes=list("abcde"), preprocess=preprocess, pictures=photos[:2]
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument(
        "--to", help="runtimes, separated by commas; torch is the checkpoint (default: all)"
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    photos = pictures(given.pictures, given.seed)
    rows = []
    for model in given.models.split(","):
        for runtime in given.to.split(",") if given.to else ["torch", *names("runtimes")]:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    path = made(model, runtime, Path(folder), given.size, photos)
                    predictor = Predictor(path, trust=True)
                except (ExportError, UsageError) as error:
                    print(f"{model:24} {runtime:10} left out: {str(error)[:120]}", flush=True)
                    continue
                asked = questions(predictor, photos, None if runtime == "torch" else path)
                wrong = {
                    name: wrong_answers(
                        ask, given.pictures if name != "trace" else 20, given.threads, given.seed
                    )
                    for name, ask in asked.items()
                }
            seconds = time.perf_counter() - start
            rows.append(
                {"model": model, "runtime": runtime, "wrong": wrong, "seconds": round(seconds, 1)}
            )
            shown = ", ".join(f"{name} {count}" for name, count in wrong.items())
            print(
                f"{model:24} {runtime:10} wrong of {given.threads} x {given.pictures}: {shown}",
                flush=True,
            )
    settings = {"threads": given.threads, "pictures": given.pictures, "seed": given.seed}
    print(
        json.dumps(
            {**settings, "wrong": sum(sum(row["wrong"].values()) for row in rows), "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
