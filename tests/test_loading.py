"""Processes that read images: little shared memory, workers that die or stand still; nothing waits without end."""

import ctypes
import gc
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import dataloader

from fleetnet import images
from fleetnet.data import load
from fleetnet.errors import FleetnetError
from fleetnet.files import process_runs
from fleetnet.inputs import handover, workers
from fleetnet.inputs.dataset import Batch, ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.inputs.workers import patient
from fleetnet.preprocess import Preprocess

SIZE = 96  # a batch of 4 has 110 kB


def dataset(photos: Path, target: str = "label") -> ImageDataset:
    return ImageDataset(load(str(photos), "train"), Preprocess((SIZE, SIZE)), target=target)


def shapes(target: str) -> ImageDataset:
    return ImageDataset(
        load("shapes:40", "val", target=target), Preprocess((SIZE, SIZE)), target=target
    )


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, list | tuple)
        else ()
    )
    return [tensor for item in values for tensor in flat(item)]


def same(one: Batch, other: Batch) -> bool:
    a, b = flat(list(one)), flat(list(other))
    alike = all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
    return alike and (one.skipped, one.indices, one.places) == (
        other.skipped,
        other.indices,
        other.places,
    )


@pytest.fixture(autouse=True)
def nothing_to_tidy_up() -> None:
    """Workers are forks of this process, and remove the temporary files of what they inherit as garbage."""
    gc.collect()


@pytest.mark.parametrize(
    "free", [None, 0, 500_000], ids=["enough", "nothing", "room for one batch"]
)
@pytest.mark.parametrize("target", ["label", "boxes", "masks", "semantic"])
def test_batches_of_workers_are_those_of_this_process(
    target: str, free: int | None, monkeypatch
) -> None:
    """With little shared memory they go through the pipe."""
    if free is not None:
        # The workers are forks of this process.
        monkeypatch.setattr(handover, "free_shared_memory", lambda: free)
    monkeypatch.setattr(handover, "SMALL", 1 << 10)  # so that images of bytes are large
    data = shapes(target)
    here = list(batches_of(data, 4))
    there = list(patient(batches_of(data, 4, workers=2)))
    assert len(there) == len(here) > 1
    assert all(map(same, here, there))
    if free == 0:
        assert not any(tensor.is_shared() for batch in there for tensor in flat(list(batch)))
    elif free is None and handover.free_shared_memory():
        assert all(batch.images.is_shared() for batch in there)


def test_files_that_cannot_be_read_are_named_by_workers_too(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "train", tmp_path / "train")
    next((tmp_path / "train").rglob("*.png")).write_bytes(b"nothing")
    data = dataset(tmp_path)
    skipped = [
        [line for batch in patient(batches_of(data, 4, workers=n)) for line in batch.skipped]
        for n in (0, 2)
    ]
    assert len(skipped[0]) == 1
    assert skipped[0] == skipped[1]


FATES = {  # what a worker does when it reads a certain picture, and what is said of it
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"SIGKILL .*fewer --workers"),
    "bus error": (lambda: os.kill(os.getpid(), signal.SIGBUS), r"SIGBUS .*--shm-size"),
    "crashed": (lambda: ctypes.string_at(0), r"SIGSEGV .*--workers 0"),
    "left": (lambda: os._exit(7), r"ended with code 7"),
    "stopped": (
        lambda: os.kill(os.getpid(), signal.SIGSTOP),
        r"no batch came within 0\.05 minutes .*--timeout",
    ),
    "asleep": (lambda: time.sleep(600), r"no batch came within 0\.05 minutes"),
}


@pytest.mark.parametrize("fate", FATES)
def test_a_worker_that_dies_or_stands_still_is_named_with_its_file(
    fate: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(photos)
    culprit = str(data.split.samples[9].image)
    read = images.look

    def reading(source: Any, *more: Any, **named: Any) -> Any:
        if str(source) == culprit:
            FATES[fate][0]()
        return read(source, *more, **named)

    monkeypatch.setattr(images, "look", reading)
    said: list[str] = []
    monkeypatch.setattr(workers, "SAID_EVERY", 1.0)
    began = time.monotonic()
    with pytest.raises(FleetnetError, match=FATES[fate][1]) as caught:
        for _ in patient(batches_of(data, 4, workers=2, minutes=0.05), said.append):
            pass
    assert time.monotonic() - began < 40
    assert culprit in str(caught.value)
    assert caught.value.exit_code == 1
    # torch's own raises whenever the signal comes
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    if fate in ("stopped", "asleep"):
        assert said
        assert re.search(r"waiting for images since \d+ s; last read by process \d+: .*", said[0])
    assert not [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, workers._Watch) and not thread.over.is_set()
    ]


def test_a_connection_that_breaks_before_the_signal_of_the_death_is_of_the_worker(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker shares is fetched from it, and so it may die in the middle of that."""

    def broken(batches: Any) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        raise EOFError

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_next_data", broken)
    try:
        with pytest.raises(FleetnetError, match=r"SIGKILL .*fewer --workers"):
            list(patient(batches_of(dataset(photos), 4, workers=2)))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def test_a_worker_that_dies_before_its_first_line_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers.Positions, "started", started)
    with pytest.raises(FleetnetError, match=r"SIGKILL .*last read by process \d+: nothing yet"):
        list(patient(batches_of(dataset(photos), 4, workers=2)))
    assert not multiprocessing.active_children()


def test_a_worker_that_is_stopped_while_it_shares_a_batch_is_not_waited_for(photos: Path) -> None:
    """Its next batch is there, but what that is in has to be fetched from it."""
    batches = patient(batches_of(dataset(photos), 4, workers=1, minutes=0.02))
    assert next(batches).images.is_shared()
    (worker,) = multiprocessing.active_children()
    time.sleep(1.0)  # in which it makes the batches that are wanted next
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(FleetnetError, match=r"no batch came within 0\.02 minutes .*--timeout"):
        list(batches)
    assert not worker.is_alive()


def test_workers_of_a_process_that_was_killed_are_gone(photos: Path) -> None:
    """With more batches on their way than a pipe holds, which nobody takes any more."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        data = ImageDataset(load(str(photos), "train"), Preprocess((64, 64)))
        batches = patient(batches_of(data, 4, workers=1))
        next(batches)
        os.write(writing, str(multiprocessing.active_children()[0].pid).encode())
        time.sleep(60)
    worker = int(os.read(reading, 20))
    time.sleep(0.5)
    assert process_runs(worker)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    deadline = time.monotonic() + 30
    while process_runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    is_left = process_runs(worker)
    if is_left:
        os.kill(worker, signal.SIGKILL)
    assert not is_left


def test_an_error_of_the_code_in_a_worker_stays_what_it_is(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "look", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(patient(batches_of(dataset(photos), 4, workers=1)))


SMALL_MEMORY = (
    "mount -t tmpfs -o size=2m tmpfs /dev/shm && exec {python} -m fleetnet train --model "
    "fasternet_t0 --data {data} --size 160 --batch-size 16 --epochs 1 --workers 2 --threads 1 "
    "--timeout 1 --run {run}"
)


def test_training_in_a_container_with_little_shared_memory(photos: Path, tmp_path: Path) -> None:
    """A batch of 16 at 160 pixels has 4.9 MB, and /dev/shm is made to have 2."""
    words = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*words, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(
            "this machine gives nobody a mount namespace of their own (unshare --user --mount)"
        )
    command = SMALL_MEMORY.format(python=sys.executable, data=photos, run=tmp_path / "run")
    done = subprocess.run(
        [*words, "sh", "-c", command], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert "Traceback" not in done.stderr
