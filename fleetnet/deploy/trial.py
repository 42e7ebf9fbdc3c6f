"""Trying runtimes: whether one works here, and whether it can hold a network not yet trained.

Nothing is handed over: files are written into a temporary folder.
"""

import multiprocessing
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import runtimes
from ..errors import ExportError
from ..tasks import Model
from .export import export
from .package import deliver


@dataclass(frozen=True)
class Trial:
    """What came of trying a runtime."""

    passed: bool
    said: str


def try_runtime(name: str) -> Trial:
    """What came of `convert_and_compare`, in a process of its own that a broken runtime may end."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return Trial(True, pool.submit(convert_and_compare, name).result())
    # of any kind that a package can have; a process that was killed is BrokenProcessPool
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        return Trial(False, f"{type(error).__name__}: {said[0]}")


def convert_and_compare(name: str) -> str:
    """Convert a small network, run the file, compare; how far they are apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{runtimes.find(name).suffix}"
        delivered = deliver(model, torch.randn(1, 3, 16, 16), path, name, None)
    if delivered.parity is None:
        return f"converted and inspected in {delivered.seconds:.1f} s"
    return (
        f"relative difference {delivered.parity.relative:.1g}, converted in "
        f"{delivered.seconds:.1f} s"
    )


@dataclass(frozen=True)
class Attempt:
    """What a runtime made of a network."""

    runtime: str
    precision: str
    result: str  # "ok", "cannot" or "not installed"
    said: str
    relative: float | None = None  # difference of the file, where it was run, and what is allowed
    tolerance: float | None = None

    def to_dict(self) -> dict[str, object]:
        document: dict[str, object] = {
            "runtime": self.runtime,
            "precision": self.precision,
            "result": self.result,
            "said": self.said,
        }
        if self.relative is not None:
            document |= {"relative": self.relative, "tolerance": self.tolerance}
        return document


def try_model(
    model: Model,
    size: tuple[int, int],
    name: str,
    precision: str,
    *,
    opset: int | None = None,
    dynamic: bool | str = False,
    embed_decode: bool = False,
    limits: Mapping[str, object] | None = None,
) -> Attempt:
    """Export a model in eval mode to one runtime, and compare it there; by layers where it differs.

    `size` is (height, width) in pixels; the others are those of `export`.
    """
    runtime = runtimes.find(name)
    missing = runtime.missing()
    if missing:
        return Attempt(name, precision, "not installed", missing)
    try:
        with tempfile.TemporaryDirectory() as folder:
            delivered = export(
                model,
                name,
                Path(folder) / f"model{runtime.suffix}",
                size=size,
                precision=precision,
                opset=opset,
                dynamic=dynamic,
                embed_decode=embed_decode,
                limits=limits,
                explain=True,
            )
    except ExportError as error:  # names the operator that is missing or computes otherwise
        said = re.sub(r"\S*/(?=model\.)", "", str(error))  # without the temporary folder
        return Attempt(name, precision, "cannot", said)
    if delivered.parity is None:
        said = f"converted and inspected, not run: {delivered.unverified}"
        return Attempt(name, precision, "ok", said)
    parity = delivered.parity
    return Attempt(name, precision, "ok", "", parity.relative, parity.tolerance)


def model_to_try(
    model: str,
    size: tuple[int, int] | None = None,
    *,
    classes: int | None = None,
    output_stride: int | None = None,
    options: Mapping[str, bool | int | float | str] | None = None,
) -> tuple[Model, tuple[int, int]]:
    """The model in eval mode and the size: a checkpoint's, or one by name with random weights.

    The other settings are those of a model given by name.
    """
    from .. import checkpoint, tasks
    from ..proof.as_if_trained import as_if_trained
    from ..tasks import build

    path = Path(model)
    if path.suffix == ".safetensors" or (path.exists() and path.suffix not in (".yaml", ".yml")):
        loaded = checkpoint.load(path)
        return loaded.model, size or loaded.preprocess.size
    network = build(model, classes, output_stride=output_stride, options=options)
    size = size or tasks.find(network.task).SIZE
    as_if_trained(network, size)  # in place
    return network, size
