"""One loaded network, many threads; and what a fork of the process is told."""

import logging
import os
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import benchmark
from torch import nn

from fleetnet import checkpoint
from fleetnet.deploy.package import deliver
from fleetnet.deploy.predictor import Predictor
from fleetnet.find import find, names
from fleetnet.preprocess import Preprocess
from fleetnet.runtimes import _program, load, trace
from fleetnet.tasks import build

campaign = partial(benchmark, "threads")  # the large campaign, whose sample is here
SIZE = (32, 32)


@pytest.fixture(scope="module")
def files(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small network in every runtime that can be run here."""
    written, folder = {}, tmp_path_factory.mktemp("files")
    for name in names("runtimes"):
        runtime = find("runtimes", name)
        if runtime.missing() or runtime.inspect is not None:
            continue
        written[name] = folder / name / f"model{runtime.suffix}"
        deliver(model, torch.randn(1, 3, *SIZE), written[name], name, None)
    return written


@pytest.mark.parametrize("name", names("runtimes"))
@pytest.mark.parametrize("action", ["load", "trace"])
def test_many_threads_share_a_file(files, name, action):
    if name not in files:
        pytest.skip(find("runtimes", name).missing() or "runs only on a Mac")
    if action == "trace" and find("runtimes", name).trace is None:
        pytest.skip(f"{name} cannot show its layers")
    run = {"load": load, "trace": trace}[action](name, files[name], trust=True)
    count = 30 if action == "load" else 6
    images = np.random.default_rng(0).normal(size=(count, 1, 3, *SIZE)).astype(np.float32)

    def ask(i: int) -> dict[str, np.ndarray]:
        outputs = run(images[i])
        return outputs if action == "trace" else {str(n): value for n, value in enumerate(outputs)}

    assert campaign().wrong_answers(ask, count, threads=8, seed=0) == 0


def test_the_campaign_sees_answers_that_are_mixed_up():
    """Its own check: a function that keeps its input where another thread can change it."""
    kept, barrier = [0], threading.Barrier(2, timeout=60)
    alone = threading.get_ident()

    def ask(i: int) -> dict[str, np.ndarray]:
        kept[0] = i
        if threading.get_ident() != alone:
            barrier.wait()
        return {"0": np.array([float(kept[0])])}

    assert campaign().wrong_answers(ask, 8, threads=2, seed=0) > 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved") / "best.safetensors"
    checkpoint.save(
        path, build("fasternet_t0", 3).eval(), classes=list("abc"), preprocess=Preprocess((32, 32))
    )
    return path


def test_many_threads_share_a_checkpoint(saved):
    predictor, photos = Predictor(saved), campaign().pictures(8, 0)
    for ask in campaign().questions(predictor, photos, None).values():
        assert campaign().wrong_answers(ask, len(photos), threads=4, seed=0) == 0


FORK = """
import os, signal, sys
import numpy as np
import torch
from fleetnet.errors import FleetnetError
from fleetnet.deploy.predictor import load as load_checkpoint
from fleetnet.runtimes import load as load_file

torch.set_num_threads(2)
words = [word.split("=") for word in sys.argv[1:]]
image = np.ones((1, 3, 32, 32), np.float32)
NEVER_IN_A_FORK = ("openvino",)  # its compiler waits for its parent's threads, now and then


def opened(name, path, threads):
    return load_checkpoint(path).raw if name == "torch" else load_file(name, path, threads, trust=True)


def refused(call):
    try:
        call()
    except FleetnetError as error:
        return str(error)
    return ""


def in_child(name, path, run, expected):
    signal.alarm(150)
    said = refused(lambda: run(image))
    if "was loaded in process" not in said or str(os.getppid()) not in said or "spawn" not in said:
        return f"calling it says {said!r}"
    if name != "torch" and "threads=1" not in refused(lambda: opened(name, path, 2)):
        return "several threads are taken"
    if name in NEVER_IN_A_FORK:
        said = refused(lambda: opened(name, path, 1))
        return "" if "OpenVINO was used in process" in said and "spawn" in said else f"loading says {said!r}"
    run = opened(name, path, 1)  # the one before is taken apart, or would be
    return "" if np.allclose(run(image)[0], expected, atol=1e-4) else "another answer"


for name, path in words:
    run = opened(name, path, 2)
    expected = run(image)[0]
    child = os.fork()
    if not child:
        wrong = "an exception"
        try:
            wrong = in_child(name, path, run, expected)
        finally:
            print(name, wrong or "right", flush=True)
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        print(name, "hangs" if os.WTERMSIG(status) == signal.SIGALRM else f"ends by {status}", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_a_fork_is_told_what_is_wrong_instead_of_waiting_forever(files, saved):
    words = [f"torch={saved}", *(f"{name}={file}" for name, file in files.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FORK, *words],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )
    assert done.stdout.split("\n")[:-1] == [f"{word.split('=')[0]} right" for word in words], (
        done.stderr
    )


@pytest.mark.parametrize("without", [_program.quiet, _program.silent])
def test_two_threads_that_are_quiet_leave_streams_and_levels_as_they_were(without):
    """The second comes in while the first is there, and stays when it goes; or it waits for it to go."""
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with without():
            entered.set()
            leave.wait(60)
        left.set()

    def second() -> None:
        with without():
            left.wait(60)

    before = os.fstat(1).st_ino, logging.root.manager.disable, list(warnings.filters)
    workers = [threading.Thread(target=work) for work in (first, second)]
    workers[0].start()
    entered.wait(60)
    workers[1].start()
    workers[1].join(0.2)
    leave.set()
    for worker in workers:
        worker.join()
    assert (os.fstat(1).st_ino, logging.root.manager.disable, list(warnings.filters)) == before
