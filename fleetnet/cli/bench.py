"""`fleetnet bench`: latency of both forms and the exported file of each model, measured in turn."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ..errors import UsageError, choose
from ..find import find, names
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet bench --model mobileone_s0 repvit_m0_9 timm/mobilevit_s --size 224 --threads 1"


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--model", nargs="+", type=str, help="run folders, checkpoints, exported files or model names")
    parser.add_argument("--to", type=str, help="runtimes to export to and measure, separated by commas (default: onnx)")
    parser.add_argument("--size", type=str | None, help="of models given by name (default: 224); others have their own")
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads (default: 1)")
    parser.add_argument("--runs", type=PositiveInt, help="counted runs of each (default: 100)")
    parser.add_argument("--warmup", type=NonNegativeInt, help="runs of each before, not counted (default: 10)")
    parser.add_argument("--csv", type=str, help="file for the table")


def run(given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("model"):
        raise UsageError(f"--model is missing; example: {EXAMPLE}")
    to = (given.get("to") or "onnx").split(",")
    for name in to:
        if name not in names("runtimes"):
            raise UsageError(f"no runtime {name!r}: {choose(name, names('runtimes'))}")
    threads = given.get("threads", 1)

    import torch

    from .. import bench

    torch.set_num_threads(threads)
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, model in enumerate(given["model"]):
            say(f"preparing {model}")
            calls |= _calls(model, to, given.get("size"), threads, Path(folder) / str(i))
        card = bench.card(threads)
        say(f"measuring {len(calls)} in turn")
        rows = bench.measure(calls, given.get("runs", 100), given.get("warmup", 10))
    print(
        "conditions: " + ", ".join(f"{key} {value}" for key, value in card.items() if value is not None) + ", batch 1"
    )
    faster = bench.ratios(rows, rows[0].name)
    results = [{**row.to_dict(), "times_as_fast": faster[row.name]} for row in rows]
    numbers = ("median_ms", "p90_ms", "mean_ms", "min_ms")
    columns = ["", *(name.replace("_", " ") for name in numbers), "images/s", f"x as fast as {rows[0].name}"]
    lines = [
        [
            r["name"],
            *(f"{r[n]:.2f}" for n in numbers),
            f"{1000 / float(r['median_ms']):.0f}",
            f"{r['times_as_fast']:.2f}",
        ]
        for r in results
    ]
    table(f"Latency of one image, {rows[0].to_dict()['runs']} interleaved runs", columns, lines)
    doubts = bench.warnings(rows, card)
    for doubt in doubts:
        say(f"warning: {doubt}")
    if given.get("csv"):
        with Path(given["csv"]).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(results[0]))
            writer.writeheader()
            writer.writerows(results)
    return {"conditions": card, "rows": results, "warnings": doubts}


def _calls(model: str, to: list[str], size: str | None, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What to time of one argument: a file in its runtime, or both forms in torch and each exported file."""
    import torch

    from ..checkpoint import load
    from ..config import parse_size
    from ..predict import load as load_file
    from ..reparam import reparameterize
    from ..runtimes import deliver
    from ..weights import create_model

    path = Path(model)
    if path.is_file() and path.suffix != ".safetensors":
        predictor = load_file(path, threads=threads)
        image = torch.randn(1, 3, *predictor.preprocess.size).numpy()
        return {f"{model} ({predictor.runtime})": lambda: predictor.raw(image)}
    form = "multi-branch"
    if path.exists():
        loaded = load(path)
        net, example, form = loaded.model, torch.randn(1, 3, *loaded.preprocess.size), loaded.meta["form"]
    else:
        net, example = create_model(model).eval(), torch.randn(1, 3, *parse_size(size or 224))
    deploy = reparameterize(net, example)

    def eager(module: torch.nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def call() -> object:
            return module(example)

        return call

    calls = {f"{model} {form} (torch)": eager(net), f"{model} deploy (torch)": eager(deploy)}
    for name in to:
        runtime = find("runtimes", name)
        file = deliver(net, example, folder / name / f"model{runtime.suffix}", name, {"model": model}).path
        runner, image = runtime.load(file, threads), example.numpy()
        calls[f"{model} deploy ({name})"] = lambda runner=runner, image=image: runner(image)  # type: ignore[misc]
    return calls
