"""A run that stops within an epoch and goes on: any step, workers, a cache, mixing, groups of steps."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import benchmark
from support.tiny_backbone import offer_tiny, tiny

import fleetnet
from fleetnet import checkpoint, data
from fleetnet.errors import DataError, FleetnetError
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.samplers import Order, OrderedBatches, Shuffled, SizedBatches, Sizes
from fleetnet.training.config import TrainConfig
from fleetnet.training.hooks import Progress
from fleetnet.training.log import read_log

equal = benchmark("kills").equal  # of nested values, tensors to the bit
CONFIG = TrainConfig(size=(32, 32), batch_size=4, epochs=2, device="cpu", threads=1, lr=0.01)
# Settings of which each has something to keep within an epoch.
RUNS: dict[str, dict[str, Any]] = {
    "adamw and an average": {"mixup": 0.4, "label_smoothing": 0.0},
    "groups of steps": {"accumulate": 4, "optimizer": "sgd", "clip": 1.0},
    "sizes": {"sizes": "32,48", "ema": None},
    "repeats": {"repeats": 2, "erasing": 0.5},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)


class Stopped(BaseException):
    """Stands for SIGKILL: nothing after it is saved."""


def fit(photos: Path, run: Path, config: TrainConfig, **options: Any) -> None:
    splits = [data.load(str(photos), split) for split in ("train", "val")]
    fleetnet.fit(tiny("classification", 3), *splits, config, run, report=False, **options)


def outcome(run: Path) -> list[Any]:
    """The state, and the log without the seconds of an epoch."""
    state = checkpoint.load_state(run / "state")
    logs = [[{**line, "seconds": 0} for line in log] for log in (state.pop("log"), read_log(run))]
    del state["facts"]  # which have the settings, such as the number of workers
    return [state, *logs]


def at(step: int, act: Callable[[], None]) -> Callable[[Progress], None]:
    """Something that happens after so many steps of all epochs."""

    def progress(now: Progress) -> None:
        if (now.epoch - 1) * now.steps + now.step == step:
            act()

    return progress


def stop() -> None:
    raise Stopped


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_within_an_epoch(name: str, photos: Path, tmp_path: Path) -> None:
    """Stopped three times, once in its first epoch; workers and a cache come and go."""
    config = replace(CONFIG, **RUNS[name])
    fit(photos, tmp_path / "whole", config)
    often = replace(config, save_every=1e-9)
    for turn, step in enumerate((5, 7, 12)):  # of two epochs of six
        with pytest.raises(Stopped):
            fit(photos, tmp_path / "run", often, resume=turn > 0, progress=at(step, stop))
        changed = name == "sizes"
        often = replace(often, workers=int(changed and turn == 0), cache=changed and turn == 1)
    fit(photos, tmp_path / "run", config, resume=True)
    assert equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_a_longer_wsd_goes_on_as_if_it_had_been_planned(photos: Path, tmp_path: Path) -> None:
    """Stopped where two epochs and a part of the third were trained, of four planned and then five."""
    wsd = replace(CONFIG, schedule="wsd", cooldown_epochs=1.0, warmup_epochs=0.5, eval_every=9)
    fit(photos, tmp_path / "whole", replace(wsd, epochs=5))
    often = replace(wsd, epochs=4, save_every=1e-9)
    with pytest.raises(Stopped):
        fit(photos, tmp_path / "run", often, progress=at(15, stop))
    assert checkpoint.load_state(tmp_path / "run" / "state")["so_far"]["step"] == 2
    fit(photos, tmp_path / "run", replace(wsd, epochs=5), resume=True)
    assert equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_group(number: int, photos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, accumulate=3, save_every=0.0)
    fit(photos, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        fit(photos, tmp_path / "run", config, progress=at(4, lambda: os.kill(os.getpid(), number)))
    so_far = checkpoint.load_state(tmp_path / "run" / "state")["so_far"]
    assert (so_far["epoch"], so_far["step"], so_far["images"]) == (0, 6, 24)
    fit(photos, tmp_path / "run", config, resume=True)
    assert equal(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_batches_before_the_first_are_passed_over() -> None:
    order: Order = Shuffled(23, 1)
    for batches in (
        OrderedBatches(order, 4, 1, 2),
        SizedBatches(order, Sizes(((32, 32), (64, 64)), (64, 64), 4, 1), 0),
    ):
        whole = list(batches)
        assert len(whole) == len(batches) > 1
        batches.first = 1
        assert list(batches) == whole[1:]
        assert len(batches) == len(whole)


def test_batches_before_the_step_are_not_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = replace(CONFIG, save_every=1e-9)
    with pytest.raises(Stopped):
        fit(photos, tmp_path / "run", often, progress=at(4, stop))
    seen: list[int] = []
    read = ImageDataset._read

    def counted(self: ImageDataset, index: int, file: bytes | None = None) -> Any:
        seen.append(index)
        return read(self, index, file)

    monkeypatch.setattr(ImageDataset, "_read", counted)
    with pytest.raises(Stopped):
        fit(photos, tmp_path / "run", often, resume=True, progress=at(5, stop))
    order = list(Shuffled(24, CONFIG.seed))
    assert seen[:8] == order[12:20]  # of steps 4, which was stopped before it was saved, and 5
    assert not set(seen) & set(order[:12])


def test_weights_that_broke_are_not_saved(photos: Path, tmp_path: Path) -> None:
    """The state before them stays, so that the steps between can be looked at."""
    often = replace(CONFIG, save_every=1e-9)
    model = tiny("classification", 3)

    def break_it(now: Progress) -> None:
        if now.step == 3:
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)

    splits = [data.load(str(photos), split) for split in ("train", "val")]
    with pytest.raises(
        FleetnetError, match=r"a weight is not finite after step 3 of epoch 1.*after step 2 of epo"
    ):
        fleetnet.fit(model, *splits, often, tmp_path / "run", report=False, progress=break_it)
    state = checkpoint.load_state(tmp_path / "run" / "state")
    assert state["so_far"]["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_other_data_begin_the_epoch_again(photos: Path, tmp_path: Path) -> None:
    """Its steps are those of an order of the samples that are there now."""
    often = replace(CONFIG, save_every=1e-9)
    with pytest.raises(Stopped):
        fit(photos, tmp_path / "run", often, progress=at(4, stop))
    shutil.copytree(photos, tmp_path / "photos")
    next((tmp_path / "photos" / "train").rglob("*.png")).unlink()
    with pytest.raises(DataError, match=r"train: 1 gone"):
        fit(tmp_path / "photos", tmp_path / "run", often, resume=True)
    seen: list[int] = []
    fit(
        tmp_path / "photos",
        tmp_path / "run",
        often,
        resume=True,
        other_data=True,
        progress=lambda now: seen.append(now.step),
    )
    assert seen == [1, 2, 3, 4, 5] * 2
