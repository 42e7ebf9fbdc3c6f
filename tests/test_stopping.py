"""A training that is stopped by a signal, or by a disk that is full: nothing is lost, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import benchmark

from fleetnet import checkpoint
from fleetnet.cli import main

kills = benchmark("kills")
# A command whose process heeds Ctrl-C, as one of a terminal does and one in the background does not.
# It is not forked from this process, in which a test may have used torch's threads.
IN_TERMINAL = """
import signal, sys
from fleetnet.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
WORDS = ["train", "--model", "fasternet_t0", "--size", "32", "--batch-size", "4"]
WORDS += ["--optimizer", "sgd", "--lr", "0.05", "--device", "cpu", "--threads", "1"]


def children_of(process: int) -> list[int]:
    """The processes that a process started."""
    stats = [path / "stat" for path in Path("/proc").iterdir() if path.name.isdigit()]
    children = []
    for stat in stats:
        try:
            before, _, after = stat.read_text().rpartition(")")
        except OSError:
            continue
        if int(after.split()[1]) == process and after.split()[0] != "Z":
            children.append(int(before.split()[0]))
    return children


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}/stat").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_a_training_with_its_workers(
    number: int, photos: Path, tmp_path: Path
) -> None:
    """As in a terminal: the signal reaches the whole group of processes."""
    run, output = tmp_path / "run", tmp_path / "output.txt"
    words = [*WORDS, "--data", str(photos), "--run", str(run), "--epochs", "1000"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *words, "--workers", "2"],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while not kills.lines_of(run) or len(children_of(process.pid)) < 2:
        assert time.monotonic() < deadline, output.read_text()
        assert process.poll() is None, output.read_text()
        time.sleep(0.05)
    workers = children_of(process.pid)
    began = time.monotonic()
    os.killpg(process.pid, number)
    code = process.wait()
    assert time.monotonic() - began < 10
    said = output.read_text()
    assert code == 130, said
    assert f"to continue: fleetnet train --resume {run}" in said
    state = checkpoint.load_state(run / "state")
    assert f"kept: {state['epochs']} epochs" in said
    assert not (run / "claim.json").exists()
    time.sleep(0.5)
    assert not any(map(is_there, workers))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount on this system")
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_the_last_state(
    small_disk: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first epoch fits with its three files of 11 MB each, the second one not beside it."""
    monkeypatch.setattr("fleetnet.training.fit.write_overview", lambda *_: None)
    monkeypatch.setattr("fleetnet.training.fit.samples", lambda *_: None)
    monkeypatch.setattr("fleetnet.training.overview.write_overview", lambda *_: None)
    words = [*WORDS, "--data", str(photos), "--epochs", "3", "--ema", "null", "--momentum", "0"]
    assert main([*words, "--run", str(tmp_path / "whole")]) == 0
    run = small_disk / "run"
    assert main([*words, "--run", str(run)]) == 1
    said = capsys.readouterr().err
    assert "cannot be written: the disk is full" in said
    assert "need about" in said
    assert f"to continue: fleetnet train --resume {run}" in said
    kept = checkpoint.load_state(run / "state")
    assert kept["epochs"] == 1
    for name in ("best", "last"):
        checkpoint.load(run / f"{name}.safetensors")
    assert not list(run.rglob("*.tmp"))
    assert not list(run.glob("state/next-*"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert main(["train", "--resume", str(run)]) == 0
    assert kills.equal(kills.contents(run), kills.contents(tmp_path / "whole"))
