"""Training of detectors and segmenters: the settings that only they have, exact continuation, data that do not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fleetnet
from fleetnet import checkpoint
from fleetnet.data import Sample, Split, load
from fleetnet.errors import DataError, UsageError
from fleetnet.tasks import build
from fleetnet.training.freezing import freeze_norms
from fleetnet.training.optimizer import parameter_groups

SMALL = {
    "batch_size": 4,
    "size": 64,
    "optimizer": "sgd",
    "lr": 1e-3,
    "warmup_epochs": 0,
    "clip": 1.0,
}


def settings(**changes: object) -> fleetnet.TrainConfig:
    return fleetnet.TrainConfig(**{**SMALL, **changes})


def fit(*arguments: object, **options: object) -> dict:
    return fleetnet.fit(*arguments, report=False, **options)


def splits(target: str, count: int = 8) -> tuple[Split, Split]:
    train_split, val = (
        load("shapes:40", "train", None, target),
        load("shapes:40", "val", None, target),
    )
    return Split(train_split.samples[:count], train_split.classes), Split(
        val.samples[:4], val.classes
    )


def detector(name: str = "yolo/fasternet_t0", classes: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, classes, options={"width": 0.25} if name.startswith("yolo") else {})


def test_a_resumed_detector_is_the_same(tmp_path: Path):
    """With fitted anchors, mosaic until the last epoch, sizes of their own for each step, and frozen batch norms."""
    config = settings(
        epochs=3, plain_epochs=1, multi_scale=0.4, norm="frozen", head_lr=2.0, cache=True
    )

    def stop(line: dict) -> None:
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    fit(detector(), *splits("boxes"), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(detector(), *splits("boxes"), config, tmp_path / "cut", on_epoch=stop)
    fit(detector(), *splits("boxes"), config, tmp_path / "cut", resume=True)
    whole, cut = (
        checkpoint.load(tmp_path / run / "last.safetensors").model.state_dict()
        for run in ("whole", "cut")
    )
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    before = detector().state_dict()
    frozen = [key for key in before if key.startswith("backbone.") and "running" in key]
    assert frozen
    assert all(torch.equal(before[key], whole[key]) for key in frozen)
    [anchors] = [key for key in before if key.endswith("anchors")]
    assert not torch.equal(before[anchors], whole[anchors])


def test_head_lr_and_frozen_norms_reach_the_optimizer():
    model = detector("ssd/fasternet_t0")
    freeze_norms(model)
    groups = parameter_groups(model, 0.01, head_lr=5.0)
    assert {group["lr_multiple"] for group in groups if group["params"]} == {1.0, 5.0}
    of_head = {id(p) for p in model.head.parameters()}
    for group in groups:
        assert all((id(p) in of_head) == (group["lr_multiple"] == 5.0) for p in group["params"])
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    trained = {id(p) for group in groups for p in group["params"]}
    assert norms
    assert not any(m.training or id(m.weight) in trained for m in norms)


def test_multi_scale_and_mosaic_change_what_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, whole = [], fleetnet.tasks.Model.forward

    def forward(self: torch.nn.Module, image: torch.Tensor) -> object:
        seen.append(tuple(image.shape[-2:]) if self.training else None)
        return whole(self, image)

    monkeypatch.setattr(fleetnet.tasks.Model, "forward", forward)
    fit(detector(), *splits("boxes"), settings(epochs=4, multi_scale=0.5), tmp_path)
    sizes = {size for size in seen if size}
    assert sizes <= {(32, 32), (64, 64), (96, 96)}
    assert len(sizes) > 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"mixup": 0.2}, "mixup is 0.2, but ssd has no use for it"),
        ({"label_smoothing": 0.3}, "label_smoothing is 0.3, but ssd has no use"),
        ({"crop": 0.5}, "crop is 0.5, but ssd has no use for it: it is read by tasks that crop"),
        ({"augment": "classify"}, "augment is 'classify', which does not go with boxes"),
        ({"norm": "sync"}, "norm is sync, but ssd has no use for it"),
    ],
)
def test_settings_that_a_detector_has_no_use_for(changes: dict, error: str, tmp_path: Path):
    with pytest.raises(UsageError, match=error):
        fit(detector("ssd/fasternet_t0"), *splits("boxes"), settings(epochs=1, **changes), tmp_path)


def test_data_loaded_for_another_task(tmp_path: Path):
    with pytest.raises(DataError, match="has no boxes: load the data with target='boxes'"):
        fit(detector(), *splits("label"), settings(epochs=1), tmp_path)
    with pytest.raises(
        DataError, match="has no label of an image: load the data with target='label'"
    ):
        fit(build("fasternet_t0", 6), *splits("boxes"), settings(epochs=1), tmp_path)


@pytest.mark.parametrize("stand_ins", [100, 0])
def test_a_batch_left_with_one_image_is_passed_over(
    stand_ins: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """DeepLabV3 cannot train on one image; an unreadable file must not stop the run."""
    monkeypatch.setattr("fleetnet.inputs.samplers.STAND_INS", stand_ins)
    train_split, val = splits("semantic", 4)
    broken = [
        Sample(tmp_path / "lost.jpg", semantic=train_split.samples[0].semantic),
        *train_split.samples[1:],
    ]
    model = build("deeplabv3/fasternet_t0", 7, options={"channels": 16})
    line: list = []
    fit(
        model, Split(broken, train_split.classes), val, settings(epochs=1, batch_size=2), tmp_path / "run",
        on_epoch=line.append,
    )  # fmt: skip
    assert line[0]["train"]["images"] == (4 if stand_ins else 2)
    assert len(line[0]["skipped"]) == 1
    assert "lost.jpg" in line[0]["skipped"][0]


def test_nothing_to_find_is_refused(tmp_path: Path):
    """A task that lost its targets looks perfect: no object to learn from, or none to measure on, is an error."""
    train_split, val = splits("boxes")
    nothing = Split([Sample(s.image, objects=()) for s in val.samples], val.classes)
    crowds = Split(
        [
            Sample(s.image, objects=tuple(replace(item, crowd=True) for item in s.objects or ()))
            for s in val.samples
        ],
        val.classes,
    )
    for samples, split, message in (
        (nothing, val, "nothing to learn from: no object in 4 images"),
        (train_split, nothing, "nothing to measure on: no object in 4 images"),
        (train_split, crowds, "nothing to measure on: .*; [0-9]+ crowds do not count"),
    ):
        with pytest.raises(DataError, match=message):
            fit(
                detector("ssd/fasternet_t0"),
                samples,
                split,
                settings(epochs=1, max_bad=1.0),
                tmp_path / "run",
            )
    assert not (tmp_path / "run").exists()
