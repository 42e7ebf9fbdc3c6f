"""Files of others: pipes, devices and endless files are refused wherever a path is read, and JSON never holds NaN."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetnet import checkpoint, data, images
from fleetnet.data import text_of
from fleetnet.deploy.export import facts_of
from fleetnet.deploy.predictor import load
from fleetnet.errors import DataError, FleetnetError, UsageError
from fleetnet.reading import (
    from_json,
    leads_out,
    links_out,
    open_regular,
    read_bytes,
    read_if,
    to_json,
)
from fleetnet.tasks import _layout
from fleetnet.training.config import TrainConfig, read_recipe
from fleetnet.training.log import read_log
from fleetnet.weights.read import read_weights

FAULTS = ("a pipe", "a device", "a folder", "16 TB")


@pytest.mark.parametrize("piece", [1 << 20, 4])
def test_a_file_is_read_if_it_begins_so_and_is_not_too_long(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of it, also where the system gives less at a time than it was asked for."""
    read, path = os.read, tmp_path / "file"
    asked: list[int] = []

    def some(descriptor: int, count: int) -> bytes:
        asked.append(count)
        return read(descriptor, min(count, piece))

    monkeypatch.setattr(os, "read", some)
    content = b"abc" + bytes(range(20))
    path.write_bytes(content)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert read_if(path, b"abc", 23) == content
    assert read_if(str(path), b"abc", 22) is None
    asked.clear()
    assert read_if(path, b"abd", 100) is None
    assert asked == [3]  # of another file the start alone is read
    path.write_bytes(b"ab")
    assert read_if(path, b"abc", 100) is None
    path.write_bytes(b"")
    assert read_if(path, b"abc", 100) is None
    with pytest.raises(OSError, match="folder"):
        read_if(tmp_path, b"abc", 100)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # each was closed


def make(fault: str, path: Path) -> Path:
    """Something at `path` that no reader may wait for or take into memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fault == "a pipe":
        os.mkfifo(path)
    elif fault == "a device":
        path.symlink_to("/dev/zero")
    elif fault == "a folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            try:
                file.truncate(15 * 2**40)  # holes, which take no space
            except OSError:
                pytest.skip("the file system has no files of 15 TB")
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_only_regular_files_of_a_bounded_size_are_read(fault: str, tmp_path: Path) -> None:
    path = make(fault, tmp_path / "file")
    with pytest.raises(OSError, match=r"pipe|device|folder|GB") as caught:
        read_bytes(path, 1000)
    assert caught.value.strerror
    if fault != "16 TB":
        with pytest.raises(OSError, match=r"pipe|device|folder"):
            open_regular(path)


def test_reading_takes_the_memory_of_the_file_and_not_of_the_limit(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"cat\n")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "small", 4 * 10**9) == b"cat\n"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="needs /proc, whose files say that they are empty",
)
def test_a_file_that_says_that_it_is_empty_is_read_whole() -> None:
    assert b"VmPeak" in read_bytes("/proc/self/status", 10**6)


def test_a_file_that_grew_while_it_was_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="at most"):
        read_bytes(tmp_path / "a", 4)


def coco(path: Path) -> Any:
    return data.load(str(path.parent), "train", target="boxes")


READERS: dict[
    str, tuple[str, Callable[[Path], Any]]
] = {  # a reader: the name of its file, and how it is called
    "image": ("a.png", images.read),
    "size of an image": ("a.png", images.measure),
    "label map": ("a.png", images.read_labels),
    "annotations": ("a.xml", text_of),
    "coco": ("instances_train.json", coco),
    "list": ("train_list.txt", lambda path: data.load(str(path), "train")),
    "yolo": ("data.yaml", lambda path: data.load(str(path), "train", target="boxes")),
    "recipe": ("a.yaml", read_recipe),
    "layout": ("a.yaml", lambda path: _layout.read(str(path))),
    "log": ("log.jsonl", lambda path: read_log(path.parent)),
    "checkpoint": ("a.safetensors", checkpoint.load),
    "facts": ("a.safetensors", checkpoint.read_facts),
    "weights": ("a.pth", lambda path: read_weights(path, "fasternet_t0")),
    "state": ("trainer.pt", lambda path: checkpoint.load_state(path.parent)),
    "sidecar": ("a.json", lambda path: facts_of(path.with_suffix(".onnx"))),
    "exported file": ("a.onnx", load),
    "openvino": ("a.xml", load),
    "ncnn": ("a.param", load),
    "mnn": ("a.mnn", load),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_what_is_no_file(reader: str, fault: str, tmp_path: Path) -> None:
    name, call = READERS[reader]
    path = make(fault, tmp_path / name)
    if reader == "openvino":
        path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(FleetnetError) as caught:
        call(path)
    assert caught.value.exit_code in (2, 3, 4, 5)
    assert len(str(caught.value)) < 2000


def test_a_class_list_that_is_a_device_is_refused_within_a_second(tmp_path: Path) -> None:
    """In a process of its own, so that a reader without a limit fails and does not end with this machine's memory."""
    (tmp_path / "images").mkdir()
    (tmp_path / "classes.txt").symlink_to("/dev/zero")
    code = (
        "import resource, sys; from pathlib import Path; from fleetnet.data import text_of\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "try: text_of(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "classes.txt")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "DataError" in done.stdout, done.stdout + done.stderr
    assert "a device" in done.stdout


def test_json_has_null_where_a_number_is_not_finite() -> None:
    document = {"a": float("nan"), "b": [float("inf"), 1.5, (float("-inf"), "NaN")], "c": {"d": 2}}
    assert json.loads(to_json(document), parse_constant=pytest.fail) == {
        "a": None, "b": [None, 1.5, [None, "NaN"]], "c": {"d": 2}
    }  # fmt: skip
    assert from_json('{"a": NaN, "b": [Infinity, -Infinity, 1]}') == {
        "a": None,
        "b": [None, None, 1],
    }
    with pytest.raises(ValueError, match="too deep"):
        from_json("[" * 100_000)


def test_every_writer_of_json_goes_through_one_function() -> None:
    """`json.dumps` writes NaN, which is no JSON: nothing but `to_json` calls it."""
    root = Path(data.__file__).parents[1]
    for file in root.rglob("*.py"):
        if file.name in (("reading.py", "_isolated.py")):  # the latter writes versions only
            continue
        assert not re.search(r"json\.dumps?\(", file.read_text()), file


def test_links_that_lead_out_of_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "plots").mkdir(parents=True)
    (run / "best").write_text("1")
    (run / "same").symlink_to("best")
    (tmp_path / "run2").mkdir()
    assert links_out(run) == []
    (run / "plots" / "out.png").symlink_to(tmp_path / "run2")
    (run / "state").symlink_to("/")
    assert links_out(run) == [run / "plots" / "out.png", run / "state"]
    assert leads_out(run / "state" / "tmp", run)
    assert not leads_out(run / "same", run)


@pytest.mark.parametrize(
    "key", [k for k, v in TrainConfig().to_dict().items() if isinstance(v, float)] + ["ema"]
)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_settings_are_finite(key: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{key} is"):
        TrainConfig(**{key: value})


@pytest.mark.parametrize("size", ["100000", "224x100000", "0", [224, 10**9]])
def test_sizes_that_no_machine_could_hold_are_refused(size: Any) -> None:
    with pytest.raises(UsageError, match="up to 4096"):
        TrainConfig(size=size)


def test_a_recipe_of_aliases_that_stand_for_more_than_memory(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    (tmp_path / "bomb.yaml").write_text(bomb + "lr: *j\n")
    with pytest.raises(UsageError, match="aliases"):
        read_recipe(tmp_path / "bomb.yaml")


def test_a_data_error_names_the_pipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a regular file, but a pipe"):
        text_of(make("a pipe", tmp_path / "instances.json"))
