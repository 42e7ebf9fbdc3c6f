"""Files are whole or not there; a full disk and a folder that is gone are said in plain words by every writer."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet import checkpoint, files
from fleetnet.errors import WriteError
from fleetnet.files import remove_leftovers, replacing, write_rows, write_text
from fleetnet.preprocess import Preprocess
from fleetnet.report import draw, figures, page
from fleetnet.tasks import build

FULL = Path("/dev/full")
WRITERS = {
    "text": lambda path: write_text(path.with_suffix(".json"), "{}" * 9999),
    "rows": lambda path: write_rows(path.with_suffix(".csv"), ["a"], [{"a": 1}]),
    "checkpoint": lambda path: checkpoint.save(
        path.with_suffix(".safetensors"),
        build("fasternet_t0", 2),
        classes=["a", "b"],
        preprocess=Preprocess((32, 32)),
    ),
    "state": lambda path: checkpoint.save_state(path.parent, {"x": torch.zeros(99_999)}),
    "plot": lambda path: figures.curves([{"epoch": 1, "loss": 1.0}], path.with_suffix(".png")),
    "sheet": lambda path: draw.grid([Image.new("RGB", (9, 9))], 1, path.with_suffix(".png")),
    "drawn": lambda path: draw.save(Image.new("RGB", (9, 9)), path.with_suffix(".jpg"), quality=90),
    "page": lambda path: page.write(page.Page("x"), path.with_suffix(".html")),
}


def target_of(writer: str, folder: Path) -> Path:
    """The file that a writer writes into an empty folder."""
    WRITERS[writer](folder / "file")
    [path] = folder.iterdir()
    return path


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full, which is always full, on this system")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_said(writer: str, tmp_path: Path):
    path = target_of(writer, tmp_path)
    before = path.read_bytes()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.symlink_to(FULL)
    with pytest.raises(
        WriteError, match=rf"{path.name} cannot be written: the disk is full .*free some space"
    ):
        WRITERS[writer](tmp_path / "file")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "writer", [name for name in WRITERS if name not in ("checkpoint", "state")]
)  # these make it
def test_a_folder_that_is_gone_is_said(writer: str, tmp_path: Path):
    with pytest.raises(WriteError, match="cannot be written: its folder is not there"):
        WRITERS[writer](tmp_path / "gone" / "file")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_library_that_fills_the_disk(error: OSError, tmp_path: Path):
    with (
        pytest.raises(WriteError, match="the disk is full"),
        files.beside(tmp_path / "model.onnx", "export"),
    ):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_library_that_fails_without_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Converters in C++ say no more than that writing failed: what is left on the disk tells why."""

    def write() -> None:
        with files.beside(tmp_path / "model.mnn", "export"):
            raise ValueError("write failed")

    with pytest.raises(ValueError, match="write failed"):
        write()
    monkeypatch.setattr(files, "_space", lambda path: 0)
    with pytest.raises(WriteError, match=r"model.mnn cannot be written: the disk is full"):
        write()


def test_what_a_writer_reads_fails_in_its_own_words(tmp_path: Path):
    with (
        pytest.raises(FileNotFoundError, match=r"lost.jpg"),
        replacing(tmp_path / "predictions.json"),
    ):
        (tmp_path / "lost.jpg").read_bytes()


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    (tmp_path / "state").mkdir()
    gone = [
        tmp_path / f".best.safetensors.{dead.pid}.tmp",
        tmp_path / "state" / f".trainer.pt.{os.getpid()}.tmp",
    ]
    gone += [tmp_path / f".old.{alive}.tmp"]
    kept = [
        tmp_path / f".best.safetensors.{alive}.tmp",
        tmp_path / "notes.tmp",
        tmp_path / ".hidden.tmp",
    ]
    for path in (*gone, *kept):
        path.write_bytes(b"half")
    folder = tmp_path / f".export-{dead.pid}-abc"
    (folder / "deep").mkdir(parents=True)
    os.utime(
        gone[1], (files.BEGAN - 9,) * 2
    )  # of a process that had our number, as the first of a container has
    os.utime(gone[2], (time.time() - 99_999,) * 2)
    assert sorted(remove_leftovers(tmp_path)) == sorted([*gone, folder])
    assert all(path.exists() for path in kept)
    assert not folder.exists()


def test_threads_that_write_into_one_folder_leave_each_others_files(tmp_path: Path):
    """Both have the number of this process."""
    with (
        files.beside(tmp_path / "model.onnx", "export") as first,
        files.replacing(tmp_path / "model.json") as file,
    ):
        with files.beside(tmp_path / "model.xml", "export"):
            assert first.is_dir()
        file.write(b"{}")
    assert (tmp_path / "model.json").read_bytes() == b"{}"


def test_arrays_of_an_export_that_was_killed_go_with_the_next(tmp_path: Path):
    left = tmp_path / ".export-999999999-x"
    left.mkdir()
    np.save(left / "golden.npy", np.zeros(3))
    with files.beside(tmp_path / "model.onnx", "export") as folder:
        assert list(tmp_path.iterdir()) == [folder]
