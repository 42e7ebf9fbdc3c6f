"""The three forms of a circular convolution, timed by size; and training steps of networks with the chosen ones.

    python benchmarks/parc_forms.py --out runs/parc_forms.json
    python benchmarks/parc_forms.py --networks parcnet_xs --size 256 --batch 16

The forms run in turn within one process, on one thread. Times are the medians of the rounds, in
milliseconds, and of networks also their ratios. Features are channels_last, as `fleetnet train`
has them. `fleetnet.parc.form_for` holds what came of it; the last column is its choice.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn import functional as F

from fleetnet.parc import HEIGHT, WIDTH, circular_convolution, computed_as, form_for
from fleetnet.tasks import build

FORMS = ("convolution", "product", "fourier")
LENGTHS = (8, 14, 20, 32, 48, 64, 96)


def rounds(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each call, run in turn until the time is over, three times at least."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, call in calls.items():
            start = time.process_time()  # without waiting for a core
            call()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def operator(
    length: int, images: int, channels: int, dim: int, learning: bool, seconds: float
) -> dict[str, float]:
    """Each form of a depthwise convolution of square features."""
    x = torch.randn(images, channels, length, length)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(learning)
    shape = (length, 1) if dim == HEIGHT else (1, length)
    weight = torch.randn(channels, 1, *shape).requires_grad_(learning)

    def call(form: str) -> Callable[[], None]:
        def run() -> None:
            with torch.set_grad_enabled(learning):
                y = circular_convolution(x, weight, None, dim, channels, form)
            if learning:
                y.sum().backward()

        return run

    return rounds({form: call(form) for form in FORMS}, seconds)


def network(name: str, size: int, batch: int, seconds: float) -> dict[str, float]:
    """A training step, forward and backward, with the chosen forms and with convolutions alone."""
    model = build(name, 10).train().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))

    def step(plain: bool) -> None:
        model.zero_grad()
        with computed_as("convolution") if plain else nullcontext():
            outputs = model(images)
        F.cross_entropy(
            outputs["logits"] if isinstance(outputs, dict) else outputs, labels
        ).backward()

    return rounds({"convolution": lambda: step(True), "chosen": lambda: step(False)}, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["parcnet_xs", "parc_convnext_xt"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=1.0, help="a comparison")
    parser.add_argument("--only-networks", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for learning in () if given.only_networks else (False, True):
        for images in (1, given.batch):
            for length in LENGTHS:
                for dim in (HEIGHT, WIDTH):
                    times = operator(length, images, given.channels, dim, learning, given.seconds)
                    chosen = form_for(length, images, depthwise=True, learning=learning)
                    rows.append(
                        {"length": length, "images": images, "along": "HW"[dim - HEIGHT],
                         "learning": learning, "chosen": chosen, **times}
                    )  # fmt: skip
                    shown = "  ".join(f"{form} {ms:8.2f}" for form, ms in times.items())
                    kind = "training " if learning else "inference"
                    print(
                        f"{kind} n {length:3} images {images:3} along {'HW'[dim - HEIGHT]}  {shown}  {chosen}"
                    )
    for name in given.networks:
        times = network(name, given.size, given.batch, max(20 * given.seconds, 1))
        ratio = times["convolution"] / times["chosen"]
        rows.append(
            {
                "network": name,
                "size": given.size,
                "batch": given.batch,
                "times_as_fast": ratio,
                **times,
            }
        )
        print(f"{name} at {given.size}, {given.batch} images: {ratio:.2f} times as fast, {times}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps({"rows": len(rows)}))


if __name__ == "__main__":
    main()
