"""One thread in every test: pytest-xdist runs several at once, and oversubscribed threads make all of them slow."""

import functools
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where a test does use several threads, those that wait sleep: by default they spin, and on fewer
# free cores than threads a network of many small layers then takes thirty times as long. It is read
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from torch import nn

torch.set_num_threads(1)
# With the first backward pass of a process torch starts a thread for each other device. An export makes
# a stand-in for a GPU, and where it comes first there is such a thread, after which no process that is
# forked can train.
torch.ones(1, requires_grad=True).sum().backward()
# Exporters make millions of objects that live for a moment, and looking for cycles among them took an
# eighth of the time of all tests.
gc.set_threshold(20_000, 20, 50)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def benchmark(name: str) -> Any:
    """The module of benchmarks/NAME.py, of which a test runs a small sample."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and other processes look it up
    spec.loader.exec_module(module)
    return module


def pytest_collection_finish() -> None:
    """What was imported and collected stays, and need not be looked through for cycles."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread before each test: eval, predict and quantize leave torch with the two that are their default."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def table_of_operators_made_once() -> None:
    """The ONNX exporter builds its table of operators anew in every export, two thirds of a second each.

    It depends on the operator set alone, and no export of these tests adds an operator to it.
    """
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None:  # no test of this process has exported yet
        return
    registry = registration.ONNXRegistry
    if not hasattr(registry.from_torchlib, "cache_info"):
        # It is called of an instance too, which a static method leaves out.
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it there."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 24 + 12 small generated images of three classes."""
    from fleetnet.data import shapes

    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 24), ("val", 12)):
        samples = [
            s
            for s in shapes.load("shapes:200", split).samples
            if s.label is not None and s.label < 3
        ]
        classes = shapes.load("shapes:200", split).classes
        for i, sample in enumerate(samples[:count]):
            folder = root / split / classes[sample.label]
            folder.mkdir(parents=True, exist_ok=True)
            sample.image().resize((40, 40)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs of fasternet_t0 at 32 pixels on `photos`."""
    from fleetnet.cli import main

    folder = tmp_path_factory.mktemp("runs") / "run"
    words = "train --model fasternet_t0 --size 32 --batch-size 8 --epochs 2 --optimizer sgd --lr 0.05 --cache true"
    assert main([*words.split(), "--data", str(photos), "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small network with all the kinds of layers that collapse."""
    from test_runtimes import Small, randomized

    torch.manual_seed(0)
    return randomized(Small())


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's exporter, which takes most of the time, runs once for a network instead of once for each precision."""
    from fleetnet.runtimes import Request, onnx

    write, written = onnx.export, {}

    def export(request: Request, *others: int) -> None:
        if id(request.model) not in written:
            write(request, *others)
            written[id(request.model)] = request.path.read_bytes()
        request.path.write_bytes(written[id(request.model)])

    monkeypatch.setattr(onnx, "export", export)
