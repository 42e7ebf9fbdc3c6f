"""`batch_size: auto` takes what there is memory for, and too little memory is answered with a size to try."""

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fleetnet
from fleetnet.cli import main
from fleetnet.errors import FleetnetError, UsageError
from fleetnet.training import memory
from fleetnet.training.config import AUTO, TrainConfig
from fleetnet.training.memory import (
    FEWEST,
    OfCpu,
    free_memory,
    is_out_of_memory,
    largest_size,
    that_fits,
)

GB = 1e9


def gpu(total: float, base: float, an_image: float):
    """A device on which a step takes so much, and which says so only by an error."""

    def peak_of(images: int) -> float | None:
        peak = base + an_image * images
        return None if peak > total else peak

    return peak_of


@pytest.mark.parametrize(
    ("total", "base", "an_image", "expected"),
    [
        (16 * GB, 1 * GB, 0.1 * GB, 64),  # 117 images in 80 %
        (16 * GB, 1 * GB, 0.0, 256),
        (16 * GB, 1 * GB, 2.9 * GB, 4),
        (2.5 * GB, 1 * GB, 0.2 * GB, 4),  # eight are too many to be measured
        (2 * GB, 1 * GB, 0.45 * GB, 2),
    ],
)
def test_the_largest_power_of_two_that_fits(total, base, an_image, expected):
    assert that_fits(gpu(total, base, an_image), total, 256, tried=True) == expected


def test_what_is_tried_and_is_too_large_is_halved():
    def peak_of(images: int) -> float | None:  # in proportion at first, then in pieces
        return None if images > 16 else images * 0.01 * GB

    assert that_fits(peak_of, 16 * GB, 256, tried=True) == 16
    assert that_fits(peak_of, 16 * GB, 256, tried=False) == 256


def test_a_network_of_which_two_images_are_too_many_is_refused():
    with pytest.raises(FleetnetError, match=r"out of memory with 2 images a step.*smaller --size"):
        that_fits(gpu(GB, 2 * GB, 1.0), GB, 256, tried=True)
    with pytest.raises(FleetnetError, match="out of memory"):  # a CPU says nothing by itself
        that_fits(lambda images: 2 * GB, GB, 256, tried=False)


def test_the_memory_of_a_step_is_measured():
    here = OfCpu()
    assert 0 < here.free <= free_memory()
    # Pages of their own: the heap of a process that did other work may keep what is given back.
    pages = mmap.mmap(-1, 256 << 20)

    def touch() -> None:
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start] = 1

    peak = here.peak(touch)
    assert 0.9 * (256 << 20) < peak < 1.5 * (256 << 20)
    pages.close()
    assert here.peak(lambda: None) < 0.5 * (256 << 20)


def test_free_memory_is_that_of_the_container(tmp_path: Path):
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    assert free_memory(tmp_path) == 8000000 * 1024
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "3000000000\n")
    write("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 500000000\n")
    assert free_memory(tmp_path) == 8000000 * 1024
    write("sys/fs/cgroup/memory.max", "4000000000\n")
    assert free_memory(tmp_path) == 1.5 * GB  # files that were read give way
    with pytest.raises(UsageError, match="give a number"):
        free_memory(tmp_path / "elsewhere")


def test_the_largest_size_of_a_run_is_measured():
    usual = (64, 64)
    assert largest_size(TrainConfig(size=usual), usual) == (64, 64)
    assert largest_size(TrainConfig(size=usual, sizes="32,96"), usual) == (96, 96)
    assert largest_size(TrainConfig(size=usual, curriculum="0:32,1:96"), usual) == (96, 96)
    assert largest_size(TrainConfig(size=usual, multi_scale=0.3), usual) == (96, 96)


def words(photos: Path, run: Path, *more: str) -> list[str]:
    given = ["train", "--model", "fasternet_t0", "--data", str(photos), "--run", str(run)]
    return [*given, "--size", "32", "--epochs", "1", *more]


def test_auto_is_a_number_in_the_run_and_changes_nothing_else(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setattr(memory, "UPDATES", 3)  # of 24 pictures
    assert main(words(photos, tmp_path / "auto", "--batch-size", "auto")) == 0
    said = capsys.readouterr().err
    assert "batch size 8: a step of 8 takes " in said
    assert "more would be fewer than 3 updates an epoch" in said
    assert "learning rate: cosine, peak 0.001 for 8 images an update, warm-up" in said
    assert yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["batch_size"] == 8
    assert main(words(photos, tmp_path / "eight", "--batch-size", "8")) == 0
    weights = [fleetnet.checkpoint.load(tmp_path / name).model for name in ("auto", "eight")]
    states = [model.state_dict() for model in weights]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("model", ["yolo/fasternet_t0", "deeplabv3/fasternet_t0"])
def test_auto_measures_steps_of_every_kind_of_target(model: str, tmp_path: Path):
    target = {"yolo": "boxes"}.get(model.partition("/")[0], "semantic")
    train = fleetnet.load_data("shapes:32", "train", target=target)
    config = TrainConfig(model=model, size=64, batch_size="auto", device="cpu", mosaic=0.0)
    network = fleetnet.create_model(model, train.classes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    from fleetnet.training.setup import accelerator_of, preprocess_of

    preprocess = preprocess_of(network, train, config)
    accelerator = accelerator_of(config)
    assert config.batch_size == AUTO
    found = memory.with_batch_size(config, network, train, preprocess, accelerator)
    assert found.batch_size == FEWEST  # a sixteenth of an epoch
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Greedy:
    """An objective that asks for more memory than there is."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def losses(self, network: Any, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        if self.error is not None:
            raise self.error
        return {"loss": torch.empty(1 << 50).sum()}  # refused by the system itself


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (None, "of this machine"),
        (MemoryError(), "of this machine"),
        (torch.OutOfMemoryError("CUDA out of memory"), "of the GPU"),
    ],
    ids=["system", "python", "cuda"],
)
def test_too_little_memory_proposes_a_size(
    error: Exception | None, where: str, photos: Path, tmp_path: Path
):
    train, val = (fleetnet.load_data(photos, split) for split in ("train", "val"))
    model = fleetnet.create_model("fasternet_t0", train.classes)
    config = TrainConfig(size=32, epochs=1, batch_size=8, accumulate=3, device="cpu")
    with pytest.raises(FleetnetError) as raised:
        fleetnet.fit(model, train, val, config, tmp_path / "run", objective=Greedy(error))
    said = str(raised.value)
    assert f"the memory {where} is too little for steps of 8 images of 32x32" in said
    assert "--batch-size 4 --accumulate 6" in said
    assert "--batch-size auto" in said


def test_too_little_memory_of_an_evaluation_proposes_a_size(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    def refused(*words: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("fleetnet.training.evaluate._check_finite", refused)
    assert main(["eval", "--model", str(run), "--data", str(photos), "--batch-size", "6"]) == 1
    said = capsys.readouterr().err
    assert "the memory of this machine is too little for 6 images at a time" in said
    assert "give --batch-size 3" in said


def test_other_errors_are_none_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("No space left on device"))


def test_what_is_neither_a_number_nor_auto_is_answered(photos: Path, tmp_path: Path, capsys):
    assert main(words(photos, tmp_path / "run", "--batch-size", "many")) == 2
    said = capsys.readouterr().err
    assert "--batch-size is 'many'; allowed: a whole number, such as 8 or auto" in said
    with pytest.raises(UsageError, match="batch_size is 0; allowed: at least 1, or auto"):
        TrainConfig(batch_size=0)
    assert TrainConfig(batch_size=-1).batch_size == AUTO  # as other tools write it
