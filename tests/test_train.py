"""The training loop: exact continuation, averages, schedules, and what stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fleetnet
from fleetnet import checkpoint, data
from fleetnet.cli import main
from fleetnet.data import Split
from fleetnet.errors import DataError, FleetnetError, UsageError
from fleetnet.inputs.augment import InTurn
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.preprocess import Preprocess
from fleetnet.sizes import parse_size
from fleetnet.tasks import Model, build
from fleetnet.training.config import TrainConfig
from fleetnet.training.optimizer import move_averages, parameter_groups
from fleetnet.training.run import state_of
from fleetnet.training.schedule import Schedule
from fleetnet.training.setup import may_be_channels_last


def splits(photos: Path) -> tuple[Split, Split]:
    return data.load(str(photos), "train"), data.load(str(photos), "val")


def settings(**changes: object) -> TrainConfig:
    base = {
        "model": "fasternet_t0",
        "size": 32,
        "batch_size": 8,
        "epochs": 2,
        "optimizer": "sgd",
        "lr": 0.05,
    }
    return TrainConfig(**{**base, "warmup_epochs": 0.5, "device": "cpu", **changes})


def fit(photos: Path, run: Path, **changes: object) -> dict:
    torch.manual_seed(0)
    model = build("fasternet_t0", 3, drop_path=changes.get("drop_path", 0.0))
    resume = bool(changes.pop("resume", False))
    return fleetnet.fit(
        model, *splits(photos), settings(**changes), run, resume=resume, report=False
    )


def test_norms_and_biases_do_not_decay():
    model = build("repvit_m0_6", 3)
    decayed, free = parameter_groups(model, 0.1)
    assert {p.ndim for p in free["params"]} == {1}
    assert all(p.ndim > 1 for p in decayed["params"])
    assert free["weight_decay"] == 0
    assert sum(len(group["params"]) for group in (decayed, free)) == len(list(model.parameters()))


def test_first_steps_count_more_in_the_average():
    averages, current = [torch.zeros(2), torch.tensor(3)], [torch.ones(2), torch.tensor(7)]
    move_averages(0.99, averages, current, 0)
    assert averages[0].tolist() == pytest.approx([0.9, 0.9])
    assert averages[1].item() == 7  # counters are copied
    move_averages(0.99, averages, [torch.zeros(2), torch.tensor(8)], 10_000)
    assert averages[0].tolist() == pytest.approx([0.9 * 0.99] * 2)


def test_averaged_weights_lag_behind_and_have_buffers(photos: Path, tmp_path: Path):
    fit(photos, tmp_path, ema=0.9)
    raw, ema = (
        checkpoint.load(tmp_path / f"{name}.safetensors").model.state_dict()
        for name in ("last", "ema")
    )
    for key in ("backbone.stages.0.0.1.running_mean", "head.classifier.4.weight"):
        if key in raw:
            assert not torch.equal(raw[key], ema[key])
    assert any("running_mean" in key and not torch.equal(raw[key], ema[key]) for key in raw)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"workers": 0}, {"workers": 1, "cache": True}),
        ({"workers": 2, "cache": True}, {"workers": 0, "threads": 1}),
    ],
)
def test_resumed_run_equals_an_uninterrupted_one(
    before: dict, after: dict, photos: Path, tmp_path: Path
):
    """Also where other processes read the images, and they are kept in memory or not."""
    straight = fit(photos, tmp_path / "a", epochs=3, drop_path=0.2, mixup=0.2, workers=0)
    with pytest.raises(KeyboardInterrupt):
        interrupt_after(photos, tmp_path / "b", epochs=3, drop_path=0.2, mixup=0.2, **before)
    resumed = fit(photos, tmp_path / "b", epochs=3, drop_path=0.2, mixup=0.2, resume=True, **after)
    assert resumed == straight
    logs = [
        [
            {**json.loads(x), "seconds": 0}
            for x in (tmp_path / r / "log.jsonl").read_text().splitlines()
        ]
        for r in "ab"
    ]
    assert logs[0] == logs[1]
    for name in ("last", "ema", "best"):
        states = [
            checkpoint.load(tmp_path / r / f"{name}.safetensors").model.state_dict() for r in "ab"
        ]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def interrupt_after(photos: Path, run: Path, **changes: object) -> None:
    """Train one epoch of a longer run."""

    def stop(logged: dict) -> None:
        raise KeyboardInterrupt

    torch.manual_seed(0)
    model = build("fasternet_t0", 3, drop_path=changes.get("drop_path", 0.0))
    fleetnet.fit(model, *splits(photos), settings(**changes), run, on_epoch=stop, report=False)


def test_killed_run_resumes_with_at_most_one_epoch_lost(photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    words = f"-m fleetnet train --model fasternet_t0 --size 32 --batch-size 8 --epochs 400 --data {photos} --run {run}"
    process = subprocess.Popen(
        [sys.executable, *words.split()], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while len(log_of(run)) < 3:
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline, "no epoch ended"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(log_of(run))
    for name in ("best", "last", "ema"):
        checkpoint.load(run / f"{name}.safetensors")  # whole
    kept = state_of(run)["epochs"]
    assert kept >= before - 1
    words = ["train", "--resume", str(run), "--workers", "1", "--cache", "true"]
    assert main([*words, "--epochs", str(kept + 2)]) == 0
    assert [line["epoch"] for line in log_of(run)] == list(range(1, kept + 3))


def log_of(run: Path) -> list[dict]:
    path = run / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def test_loss_that_is_not_finite_stops_and_keeps_the_state(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit(photos, tmp_path, epochs=1)
    good = checkpoint.load(tmp_path / "last.safetensors").model.state_dict()
    from fleetnet.tasks import classification

    def loss(head: nn.Module, outputs: dict, targets: dict, **settings: float) -> dict:
        return {"cross_entropy": outputs["logits"].sum() * float("nan")}

    monkeypatch.setattr(classification, "loss", loss)
    with pytest.raises(
        FleetnetError,
        match=r"the loss is nan at step 1 .* the state of epoch 1 is kept. .*lower lr",
    ):
        fit(photos, tmp_path, epochs=3, resume=True)
    with pytest.raises(
        FleetnetError,
        match=r"the loss is nan at step 1 of epoch 1, .* no state was saved yet. ",
    ):
        fit(photos, tmp_path / "first", epochs=3)
    assert state_of(tmp_path)["epochs"] == 1
    after = checkpoint.load(tmp_path / "last.safetensors").model.state_dict()
    assert all(torch.equal(good[key], after[key]) for key in good)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"accumulate": 2},
        {"optimizer": "adamw", "lr": 1e-3},
        {"clip": 0.1},
        {"ema": None},
        {"mixup": 0.2, "cutmix": 1.0},
        {"workers": 1, "cache": True},
        {"channels_last": False, "eval_every": 2},
        {"auto_augment": "trivial", "erasing": 0.5},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_settings_train(changes: dict, photos: Path, tmp_path: Path):
    best = fit(photos, tmp_path, **changes)
    assert 0 <= best["top1"] <= 100
    logged = log_of(tmp_path)
    assert logged[-1]["train"]["loss"] < 3
    assert ("ema" in logged[-1]) == (changes.get("ema", 0.99) is not None)


def test_accumulation_equals_a_larger_batch(photos: Path, tmp_path: Path):
    """Two half batches of a network without batch norm make the update of one whole batch."""

    class Linear(Model):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.name, self.classes, self.task = "linear", 3, "classification"
            self.drop_path, self.output_stride, self.options, self.channels = 0.0, 32, {}, 3
            self.report = self.preprocess = None
            self.head = nn.Identity()
            self.net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    states = []
    for run, accumulate in (("a", 1), ("b", 2)):
        torch.manual_seed(0)
        model = Linear()
        config = settings(
            batch_size=8 // accumulate,
            accumulate=accumulate,
            epochs=1,
            scale=1.0,
            flip=0.0,
            color_jitter=0.0,
        )
        data_splits = [Split(split.samples[:24], split.classes) for split in splits(photos)]
        # No random crop: the order of random numbers differs.
        whole = InTurn()
        fleetnet.fit(model, *data_splits, config, tmp_path / run, augment=whole, report=False)
        states.append(model.state_dict())
    for key in states[0]:
        assert torch.allclose(states[0][key], states[1][key], rtol=1e-4, atol=1e-6)


def test_other_classes_are_refused(photos: Path, tmp_path: Path):
    train_split, val = splits(photos)
    with pytest.raises(DataError, match="4 classes, the data 3"):
        fleetnet.fit(build("fasternet_t0", 4), train_split, val, settings(), tmp_path)
    other = Split(val.samples, ["a", "b", "c"])
    with pytest.raises(DataError, match="3 classes that the training data does not know: 'a'"):
        fleetnet.fit(build("fasternet_t0", 3), train_split, other, settings(), tmp_path)


def test_a_finished_run_is_finished_again(photos: Path, tmp_path: Path):
    best = fit(photos, tmp_path, epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert fit(photos, tmp_path, epochs=2, resume=True) == best
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="has been trained for 2 epochs; give at least as many"):
        fit(photos, tmp_path, epochs=1, resume=True)


def test_a_log_line_cut_short_does_not_stop_a_resume(photos: Path, tmp_path: Path):
    fit(photos, tmp_path, epochs=1)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"epoch": 1, "tra')
    fit(photos, tmp_path, epochs=2, resume=True)
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2]


def test_weights_that_are_not_finite_are_not_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit(photos, tmp_path, epochs=1)
    # of two epochs of three steps: this update breaks them, and no loss is computed after it
    last = 5
    monkeypatch.setattr(
        Schedule,
        "rate",
        lambda self, epoch, group: float("nan") if epoch * self.updates + group == last else 0.01,
    )
    with pytest.raises(FleetnetError, match="a weight is not finite after step 3 of epoch 2"):
        fit(photos, tmp_path, epochs=2, resume=True)
    state = checkpoint.load_state(tmp_path / "state")
    assert state["epochs"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "SGD", "did you mean 'sgd'"),
        ("device", "gpu", "Allowed: auto"),
        ("epochs", None, "epochs is null"),
    ],
)
def test_settings_are_checked(key: str, value: object, message: str):
    with pytest.raises(UsageError, match=message):
        settings(**{key: value})


def test_preprocessing_of_the_starting_weights_is_kept(photos: Path, tmp_path: Path):
    model = build("fasternet_t0", 3)
    model.preprocess = Preprocess((224, 224), channel_order="BGR", std=(1.0, 1.0, 1.0))
    fleetnet.fit(model, *splits(photos), settings(epochs=1), tmp_path, report=False)
    kept = checkpoint.load(tmp_path / "last.safetensors").preprocess
    assert (kept.size, kept.channel_order, kept.std) == ((32, 32), "BGR", (1.0, 1.0, 1.0))
    assert model.preprocess == kept


def test_a_strided_1x1_of_the_image_is_not_channels_last_on_cpu():
    cpu, ours = torch.device("cpu"), build("mobileone_s0", 3)
    assert may_be_channels_last(ours, cpu)
    unsafe = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2))
    assert not may_be_channels_last(unsafe, cpu)
    assert may_be_channels_last(unsafe, torch.device("cuda"))


def test_evaluate_counts(photos: Path):
    val = splits(photos)[1]
    batches = batches_of(ImageDataset(val, Preprocess((32, 32))), settings().batch_size)
    perfect = iter([s.label for s in val.samples])

    class Oracle(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.eye(3)[[next(perfect) for _ in images]] * 50

    oracle = Oracle().train()
    result = fleetnet.evaluate(oracle, "classification", batches, val.classes)
    assert oracle.training
    assert (result["top1"], result["correct"], result["images"]) == (100.0, 12, 12)
    assert [sum(row) for row in result["confusion"]] == [
        result["confusion"][i][i] for i in range(3)
    ]


@pytest.mark.parametrize(
    ("value", "size"), [(96, (96, 96)), ("96", (96, 96)), ("64x96", (64, 96)), ([64, 96], (64, 96))]
)
def test_parse_size(value: object, size: tuple[int, int]):
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "x", "1x2x3", 0, [1, -2], []])
def test_parse_size_refuses(value: object):
    with pytest.raises(UsageError, match="allowed: one number"):
        parse_size(value)
