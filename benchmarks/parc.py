"""ParC at any size: the forms of a circular convolution, the operator, whole networks and files, by size.

    python benchmarks/parc.py --out runs/parc.json
    python benchmarks/parc.py --parts operator,network --rounds 5

What is compared runs in turn within one process on one thread: each form by itself or the ones that
`fleetnet.circular.form_for` chooses, against concatenating and convolving. Times are medians of the
rounds, in milliseconds of the processor, without waiting for a core; ratios are medians of the
ratios within a round (of `forms` ratios of the medians), and above 1 the choice is faster. The last
line is JSON.

    forms     each form by itself; `form_for` holds what came of it, and the last column its choice
    operator  ParC of 96 channels, forward and step (forward and backward)
    network   parcnet_s in inference, not collapsed and collapsed; the exponent of time against
              pixels is that of a line through the logarithms of the square sizes
    step      forward and backward of networks in training
    files     deeplabv3/parcnet_s in onnxruntime and OpenVINO, as written and by convolutions alone
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetnet.circular import (
    FORMS,
    HEIGHT,
    WIDTH,
    Form,
    circular_convolution,
    computed_as,
    form_for,
)
from fleetnet.cli._process import keep_freed_memory
from fleetnet.find import find
from fleetnet.parc import ParC
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, load
from fleetnet.tasks import build

LENGTHS = (8, 14, 20, 32, 48, 64, 96, 128)  # of the part `forms`
OPERATOR = (14, 32, 64, 128, 256)
SIZES = ((256, 256), (512, 512), (1024, 1024), (512, 1024), (2048, 2048))
FILES = (512, 1024)
PLAIN, CHOSEN = "convolution", "chosen"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Calls = dict[str, Callable[[], object]]
Row = dict[str, Any]


def rounds(calls: Calls, least: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, until the time is over; a round before is not counted."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(seen[next(iter(calls))]) < least:
        for name, call in calls.items():
            start = time.process_time()
            call()
            seen[name].append(1e3 * (time.process_time() - start))
    return seen


def compared(calls: Calls, given: argparse.Namespace) -> Row:
    """Median times, and how many times as fast as the convolution the chosen forms are."""
    seen = rounds(calls, given.rounds, given.seconds)
    row: Row = {f"{name} ms": statistics.median(values) for name, values in seen.items()}
    if PLAIN in seen and CHOSEN in seen:
        pairs = zip(seen[PLAIN], seen[CHOSEN], strict=True)
        row["times as fast"] = statistics.median(plain / chosen for plain, chosen in pairs)
    return row


def learned(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward of what takes `x`."""
    with torch.no_grad():
        upstream = torch.randn_like(call(x))

    def step() -> None:
        x.grad = None
        call(x).backward(upstream)

    return step


def inferred(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            call(x)

    return forward


def in_form(form: str, call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def computed(x: Tensor) -> Tensor:
        with nullcontext() if form == CHOSEN else computed_as(form):
            return call(x)

    return computed


def in_its_layout(x: Tensor, weight: Tensor, dim: int, form: Form) -> Tensor:
    """A result in the memory format of the feature, as ParC needs it: some forms turn it around."""
    y = circular_convolution(x, weight, None, dim, form)
    last = x.stride(1) == 1
    return y.contiguous(memory_format=LAYOUTS["channels_last" if last else "contiguous"])


def forms(given: argparse.Namespace) -> Iterator[Row]:
    """Each form of a depthwise convolution of square features."""
    cases = product((False, True), given.images, given.lengths or LENGTHS, LAYOUTS, (HEIGHT, WIDTH))
    for learning, images, length, layout, dim in cases:
        x = torch.randn(images, given.channels, length, length)
        x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_(learning)
        shape = (length, 1) if dim == HEIGHT else (1, length)
        weight = torch.randn(given.channels, 1, *shape).requires_grad_(learning)
        timed = learned if learning else inferred
        calls = {
            form: timed(partial(in_its_layout, weight=weight, dim=dim, form=form), x)
            for form in FORMS
        }  # fmt: skip
        choice = form_for(
            length, dim, images=images, learning=learning, channels_last=layout == "channels_last"
        )
        row = compared(calls, given)
        yield {
            "length": length,
            "images": images,
            "layout": layout,
            "along": "HW"[dim - HEIGHT],
            "learning": learning,
            **row,
            "choice": choice,
            "times as fast": row[f"{PLAIN} ms"] / row[f"{choice} ms"],
        }


def operator(given: argparse.Namespace) -> Iterator[Row]:
    """ParC in both published forms, as chosen and by convolutions."""
    cases = product((False, True), (False, True), given.lengths or OPERATOR, LAYOUTS)
    for crossed, learning, length, layout in cases:
        parc = ParC(2 * given.channels, length, crossed=crossed).train(learning)
        for images in given.images:
            x = torch.randn(images, 2 * given.channels, length, length)
            x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_(learning)
            timed = learned if learning else inferred
            calls = {form: timed(in_form(form, parc), x) for form in (PLAIN, CHOSEN)}
            yield {
                "operator": "ParC-Net's" if crossed else "ParC ConvNets'",
                "length": length,
                "images": images,
                "layout": layout,
                "learning": learning,
                **compared(calls, given),
            }


def network(given: argparse.Namespace) -> Iterator[Row]:
    """A network in inference, one image, as trained and collapsed; then the exponents of its time."""
    name = "parcnet_s"
    model = as_if_trained(build(name, 1000), (256, 256))
    square: dict[str, list[tuple[float, float]]] = {}
    for height, width in given.sizes or SIZES:
        image = torch.randn(1, 3, height, width)
        for kind, ready in (("as trained", model), ("collapsed", reparameterize(model, image))):
            calls = {form: inferred(in_form(form, ready), image) for form in (PLAIN, CHOSEN)}
            row = compared(calls, given)
            yield {"network": name, "form": kind, "height": height, "width": width, **row}
            for form in (PLAIN, CHOSEN) if height == width else ():
                place = np.log(height * width), np.log(row[f"{form} ms"])
                square.setdefault(f"{kind}, {form}", []).append(place)
    for kind, places in square.items():
        if len(places) > 1:
            exponent = np.polyfit(*zip(*places, strict=True), 1)[0]
            yield {"network": name, "form": kind, "exponent of time against pixels": exponent}


def steps(given: argparse.Namespace) -> Iterator[Row]:
    """Forward and backward of networks in training, channels_last."""
    for name, (size, images) in product(
        ("parcnet_xs", "parc_convnext_xt"), ((256, 16), (512, 4), (1024, 2))
    ):
        model = build(name, 10).train().to(memory_format=torch.channels_last)
        batch = torch.randn(images, 3, size, size).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (images,))

        def step(
            form: str, model: nn.Module = model, x: Tensor = batch, y: Tensor = labels
        ) -> None:
            model.zero_grad()
            F.cross_entropy(in_form(form, model)(x), y).backward()

        calls: Calls = {form: partial(step, form) for form in (PLAIN, CHOSEN)}
        yield {"network": name, "size": size, "images": images, **compared(calls, given)}


def files(given: argparse.Namespace) -> Iterator[Row]:
    """A segmenter's files with what is written now, and with convolutions alone."""
    name = "deeplabv3/parcnet_s"
    model = as_if_trained(build(name, 20), (256, 256))
    for size in FILES:
        example = torch.randn(1, 3, size, size)
        collapsed = reparameterize(model, example)
        for runtime in ("onnx", "openvino"):
            module, calls, row = find("runtimes", runtime), {}, {}
            with tempfile.TemporaryDirectory() as folder:
                for form in (PLAIN, CHOSEN):
                    path = Path(folder) / f"{form}{module.suffix}"
                    module.export(Request(collapsed, example, path, products=form == CHOSEN))
                    written = Path(folder).glob(f"{form}.*")
                    row[f"{form} MB"] = sum(file.stat().st_size for file in written) / 1e6
                    calls[form] = partial(load(runtime, path, 1, trust=True), example.numpy())
                yield {
                    "network": name, "size": size, "runtime": runtime, **compared(calls, given), **row,
                }  # fmt: skip


PARTS = {"forms": forms, "operator": operator, "network": network, "step": steps, "files": files}


def _pair(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--lengths", type=int, nargs="*", help="of `forms` and `operator`")
    parser.add_argument("--sizes", type=_pair, nargs="*", help="of `network`: 512 or 512x1024")
    parser.add_argument("--images", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--channels", type=int, default=48, help="of half a ParC")
    parser.add_argument("--rounds", type=int, default=5, help="at least so many")
    parser.add_argument("--seconds", type=float, default=0.5, help="a comparison, at least")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as under fleetnet train: else pages of zeros are a good part of each time
    print(f"torch {torch.__version__}, one thread, {platform.processor() or platform.machine()}")
    rows: list[Row] = []
    for part in given.parts.split(","):
        for row in PARTS[part](given):
            rows.append({"part": part, **row})
            cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
            print(
                "  ".join(f"{name} {cell}" for name, cell in zip(row, cells, strict=True)),
                flush=True,
            )
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(rows, indent=1))
    print(json.dumps({"rows": len(rows)}))


if __name__ == "__main__":
    main()
