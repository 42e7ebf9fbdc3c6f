"""What training dwells on: weights of classes, balanced sampling, frozen parts, and when it ends early."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fleetnet
from fleetnet import checkpoint, data
from fleetnet.data import Sample, Split
from fleetnet.errors import DataError, UsageError
from fleetnet.find import find
from fleetnet.inputs.samplers import Balanced, Shuffled
from fleetnet.tasks import build
from fleetnet.training import learner, objective
from fleetnet.training.class_weights import class_weights
from fleetnet.training.config import TrainConfig
from fleetnet.training.freezing import freeze
from fleetnet.training.run import epochs_of
from fleetnet.training.schedule import stopped_early


def fit(photos: Path, run: Path, **settings: Any) -> tuple[dict[str, Any], torch.nn.Module]:
    torch.manual_seed(0)
    model = build("fasternet_t0", 3)
    usual = {
        "size": 32,
        "batch_size": 8,
        "epochs": 2,
        "device": "cpu",
        "optimizer": "sgd",
        "lr": 0.05,
    }
    options = {key: settings.pop(key) for key in ("resume", "on_epoch") if key in settings}
    splits = [data.load(str(photos), split) for split in ("train", "val")]
    config = TrainConfig(**{**usual, **settings})
    return fleetnet.fit(model, *splits, config, run, report=False, **options), model


# Classes of few samples


def test_each_class_is_drawn_equally_often():
    labels = [0] * 80 + [1] * 15 + [2] * 5
    sampler = Balanced(labels, 3)
    epochs = []
    for sampler.epoch in (0, 1, 1):
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler) == 100
        drawn = Counter(labels[index] for index in epochs[-1])
        assert max(drawn.values()) - min(drawn.values()) <= 2
        assert set(Counter(index for index in epochs[-1] if labels[index] == 2).values()) <= {6, 7}
        assert max(Counter(index for index in epochs[-1] if labels[index] == 0).values()) == 1
    assert epochs[1] == epochs[2] != epochs[0]
    assert [labels[index] for index in epochs[0][:40]] != sorted(
        labels[index] for index in epochs[0][:40]
    )


def test_the_order_of_an_epoch_is_that_of_its_number():
    first, second = Shuffled(50, 1), Shuffled(50, 1)
    second.epoch = 1
    assert sorted(first) == list(range(50))
    assert list(first) != list(second)
    assert list(first) == list(first)


def test_weights_of_labels():
    split = Split(
        [Sample(Path(f"{i}.jpg"), label) for i, label in enumerate([0] * 6 + [1] * 2)],
        ["a", "b", "c"],
    )
    assert class_weights(split, "label").tolist() == pytest.approx([8 / 12, 8 / 4, 0])
    counts = torch.tensor([6, 2])
    assert (class_weights(split, "label")[:2] * counts).sum() == 8  # a sample weighs 1 on average


def test_weights_of_pixels():
    maps = [np.array([[0, 0, 0], [0, 0, 255]], np.uint8), np.array([[1]], np.uint8)]

    def unreadable() -> np.ndarray:
        raise DataError("broken")

    samples = [
        Sample(Path("a"), semantic=lambda: maps[0]),
        Sample(Path("b"), semantic=lambda: maps[1]),
    ]
    split = Split([*samples, Sample(Path("c"), semantic=unreadable)], ["x", "y"])
    assert class_weights(split, "semantic").tolist() == pytest.approx([6 / 10, 6 / 2])
    with pytest.raises(DataError, match="a pixel of class 1 of 1"):
        class_weights(Split(samples, ["x"]), "semantic")


@pytest.mark.parametrize("task", ["classification", "deeplabv3"])
def test_the_loss_takes_the_weights(task: str):
    module, weights = find("tasks", task), torch.tensor([1.0, 3.0])
    shape = (2, 2) if task == "classification" else (2, 2, 4, 4)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    outputs: Any = logits if task == "classification" else {"logits": logits}
    target = find("tasks", task).TARGET
    losses = []
    for label in (0, 1):
        truth = {target: torch.full(logits[:, 0].shape, label)}
        plain, weighted = (
            module.loss(None, outputs, truth, **more) for more in ({}, {"class_weights": weights})
        )
        losses.append(weighted["cross_entropy"] / plain["cross_entropy"])
    assert torch.stack(losses).tolist() == pytest.approx([1, 3])


def test_balance_reaches_the_training(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = []
    monkeypatch.setattr(
        Balanced, "__iter__", lambda self: used.append(self.epoch) or iter(range(len(self)))
    )
    fit(photos, tmp_path / "a", balance=True)
    assert used == [0, 1]
    weighed = []
    monkeypatch.setattr(
        objective,
        "class_weights",
        lambda *words: weighed.append(words) or class_weights(*words),
    )
    fit(photos, tmp_path / "b", class_weights="balanced", mixup=0.2, epochs=1)
    assert len(weighed) == 1
    with pytest.raises(UsageError, match="give one of them"):
        TrainConfig(balance=True, class_weights="balanced")


# Parts that are not trained


def test_frozen_parts_stay_to_the_bit(photos: Path, tmp_path: Path):
    torch.manual_seed(0)
    before = build("fasternet_t0", 3).state_dict()
    pattern = "backbone.stages.[0-2].*, head.classifier.*.bias"
    _, model = fit(photos, tmp_path, freeze=pattern, epochs=1)
    after = checkpoint.load(tmp_path / "last.safetensors").model.state_dict()
    still = {key for key in before if torch.equal(before[key], after[key])}
    frozen = {
        key
        for key in before
        if key.startswith(("backbone.stages.0", "backbone.stages.1", "backbone.stages.2"))
    }
    assert any(key.endswith("running_var") for key in frozen)
    assert any(key.endswith("num_batches_tracked") for key in frozen)
    assert frozen <= still
    assert not any(
        key.startswith("backbone.stages.3") and key.endswith("running_mean") for key in still
    )
    biases = {key for key in before if key.startswith("head.classifier.") and key.endswith("bias")}
    parameters = dict(model.named_parameters())
    assert {name for name in parameters if not parameters[name].requires_grad} == (
        frozen | biases
    ) & set(parameters)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "backbone.stage.*",
            r"freeze is 'backbone.stage.\*', which no module or parameter fits: did you mean",
        ),
        ("backbone.stages.[7-9].*,head.*", r"'backbone.stages.\[7-9\].\*', which no module"),
        ("*", "leaves nothing to train"),
    ],
)
def test_patterns_that_cannot_be_meant(pattern: str, message: str):
    with pytest.raises(UsageError, match=message):
        freeze(build("fasternet_t0", 3), pattern)


def test_a_module_stands_for_all_that_is_in_it():
    model = build("fasternet_t0", 3)
    norms = freeze(model, "backbone")
    assert [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and name.startswith("backbone.")
    ] == []
    assert len(norms) == sum(
        isinstance(module, torch.nn.BatchNorm2d) for module in model.backbone.modules()
    )
    assert all(p.requires_grad for p in model.head.parameters())


# An early end


@pytest.mark.parametrize(
    ("evaluated", "best", "patience", "stops"),
    [([1, 2, 3], 1, 2, True), ([1, 2, 3], 2, 2, False), ([2, 4], 2, 3, False), ([2, 4, 6], 2, 3, True),
     ([1, 2, 3], 1, 0, False), ([], 1, 1, False)],
)  # fmt: skip
def test_when_training_stops(evaluated: list[int], best: int, patience: int, stops: bool):
    last = evaluated[-1] if evaluated else 0
    log = [
        {"epoch": epoch, **({"raw": {}} if epoch in evaluated else {})}
        for epoch in range(1, last + 1)
    ]
    assert stopped_early(log, {"epoch": best}, patience) == stops


def test_a_run_that_stopped_early_stays_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where a kill came before its end; and goes on with more patience."""
    figures = iter([50.0, 40.0, 40.0, 60.0, 10.0])
    monkeypatch.setattr(
        learner, "evaluate", lambda *_, **__: {"top1": next(figures), "images": 12, "skipped": []}
    )
    best, _ = fit(photos, tmp_path, epochs=9, patience=2, ema=None)
    assert (best["epoch"], epochs_of(tmp_path)) == (1, 3)
    again, _ = fit(photos, tmp_path, epochs=9, patience=2, ema=None, resume=True)
    assert (again, epochs_of(tmp_path)) == (best, 3)
    best, _ = fit(photos, tmp_path, epochs=5, patience=4, ema=None, resume=True)
    assert (best["epoch"], epochs_of(tmp_path)) == (4, 5)
