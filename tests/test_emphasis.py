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
from fleetnet.inputs.samplers import Balanced, Shuffled, Weighted, of_rarest_tag
from fleetnet.tasks import build
from fleetnet.training import learner, objective
from fleetnet.training.class_weights import class_weights
from fleetnet.training.config import TrainConfig
from fleetnet.training.freezing import freeze
from fleetnet.training.run import state_of
from fleetnet.training.schedule import stopped_early
from fleetnet.training.setup import order_of


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


CATS: Any = {"cat": 2.0, "dog": 0.5, "no": 1.0}
FILES = {
    "weights.yaml": "cat: 2\ndog: 0.5\nno: 1\n",
    "weights.yml": "{dog: 5e-1, no: 1.0, cat: +2}",
    "weights.json": '{"cat": 2, "no": "1", "dog": 0.5}',
    "weights.csv": "class,weight\n\ncat,2\nno, 1\ndog,0.5\n",
    "plain.CSV": "\ufeffcat,2\ndog,0.5\nno,1",
}


@pytest.mark.parametrize(
    "given", ["cat=2,dog=0.5,no=1", " no=1, dog=5e-1,cat=2", CATS, {"cat": 2, "dog": 0.5, "no": 1}]
)
def test_weights_by_name_in_a_list_or_a_mapping(given: Any):
    config = TrainConfig(class_weights=given)
    split = Split([Sample(Path("a.jpg"), 0)], ["no", "cat", "dog"])
    assert class_weights(split, "label", config.class_weights).tolist() == [1, 2, 0.5]
    # what a run keeps of it is read again as the same
    assert TrainConfig(class_weights=config.class_weights) == config


@pytest.mark.parametrize("name", FILES)
def test_weights_by_name_in_a_file(name: str, tmp_path: Path):
    (tmp_path / name).write_text(FILES[name])
    config = TrainConfig(class_weights=str(tmp_path / name))
    split = Split([Sample(Path("a.jpg"), 0)], ["no", "cat", "dog"])
    assert class_weights(split, "label", config.class_weights).tolist() == [1, 2, 0.5]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("balance", "did you mean 'balanced'"),
        ("cat=2,dgo=1,no=1", "'dgo', which is no class of the data: did you mean 'dog'"),
        ("cat=2,no=1", "no weight for 'dog'; each class needs one"),
        ("cat=2,cat=1", "two weights for 'cat'"),
        ("cat=-1,dog=1,no=1", "'-1' as the weight of 'cat'"),
        ("cat=nan,dog=1,no=1", "'nan' as the weight of 'cat'"),
        ("cat=2,dog,no=1", "as the weight of ''"),
        ("cat=0,dog=0,no=0", "no weight above 0"),
        ({"cat": 1, "dog": 1, False: 1}, "write it in quotes"),
        ("nowhere.yaml", "which is no file"),
        ("twice.yaml", "two weights for 'cat'"),
        ("lines.yaml", "has to be a mapping of names to weights"),
        ("nested.json", "has .* as the weight of 'cat'"),
        ("wide.csv", "has the line 'cat,2,3'"),
    ],
)
def test_weights_that_cannot_be_meant(
    given: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("twice.yaml").write_text("cat: 1\ncat: 2\n")
    Path("lines.yaml").write_text("- cat\n- dog\n")
    Path("nested.json").write_text('{"cat": {"weight": 2}}')
    Path("wide.csv").write_text("cat,2,3\n")
    split = Split([Sample(Path("a.jpg"), 0)], ["cat", "dog", "no"])

    def weights() -> torch.Tensor:
        return class_weights(split, "label", TrainConfig(class_weights=given).class_weights)

    with pytest.raises(UsageError, match=said):
        weights()


def test_a_run_keeps_the_weights_and_not_their_file(photos: Path, tmp_path: Path):
    classes = data.load(str(photos), "train").classes
    file = tmp_path / "weights.csv"
    file.write_text("\n".join(f"{name},{i + 1}" for i, name in enumerate(classes)))
    lists = ",".join(f"{name}={i + 1}" for i, name in enumerate(classes))
    seen = [
        fit(photos, tmp_path / str(i), class_weights=given, epochs=1)[0]["loss"]
        for i, given in enumerate((str(file), lists, "none"))
    ]
    kept = [checkpoint.load(tmp_path / str(i) / "best.safetensors").facts.settings for i in (0, 1)]
    assert kept[0]["class_weights"] == kept[1]["class_weights"]
    assert seen[0] == seen[1] != seen[2]
    file.write_text(f"{classes[0]}x,1")
    with pytest.raises(UsageError, match=f"did you mean '{classes[0]}'"):
        fit(photos, tmp_path / "not begun", class_weights=str(file))
    assert not (tmp_path / "not begun").exists()


# Tags


def test_pictures_come_as_often_as_their_rarest_tag_asks_for():
    tags = [(0,)] * 12 + [(0, 1)] * 3 + [(1, 2)] + [()] * 4
    split = Split([Sample(Path(f"{i}.jpg"), tags=each) for i, each in enumerate(tags)], [*"abc"])
    weights = of_rarest_tag(split)
    assert weights.tolist() == pytest.approx([1 / 15] * 12 + [1 / 4] * 3 + [1] + [1 / 4] * 4)
    sampler, epochs = Weighted(weights, 3), []
    for sampler.epoch in range(40):
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler) == 20
        drawn = Counter(epochs[-1])
        for index, times in enumerate(20 * weights / weights.sum()):
            assert abs(drawn[index] - times) < 1
    sampler.epoch = 1
    assert list(sampler) == epochs[1] != epochs[0]
    assert list(Weighted(weights, 4)) != epochs[0]
    # over many epochs each comes as often as its weight says
    of_all = Counter(index for epoch in epochs for index in epoch)
    means = torch.tensor([of_all[index] / 40 for index in range(20)])
    assert means.tolist() == pytest.approx((20 * weights / weights.sum()).tolist(), abs=0.35)


def test_balance_reaches_the_training_of_tags():
    split = data.load("shapes:40", "train", None, "tags")
    order = order_of(TrainConfig(balance=True), split)
    assert isinstance(order, Weighted)
    assert torch.equal(order.times, Weighted(of_rarest_tag(split), 0).times)
    assert isinstance(
        order_of(TrainConfig(balance=True), data.load("shapes:40", "train")), Balanced
    )


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
    assert (best["epoch"], state_of(tmp_path)["epochs"]) == (1, 3)
    again, _ = fit(photos, tmp_path, epochs=9, patience=2, ema=None, resume=True)
    assert (again, state_of(tmp_path)["epochs"]) == (best, 3)
    best, _ = fit(photos, tmp_path, epochs=5, patience=4, ema=None, resume=True)
    assert (best["epoch"], state_of(tmp_path)["epochs"]) == (4, 5)
