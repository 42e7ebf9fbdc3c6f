"""Trainings on a device that is not the CPU: nothing that they compute with is made on another one.

There is no GPU here, so the device is `support.other_device`, whose tensors have real values. Whole
trainings run on it, with everything that touches tensors: losses, decoding, metrics, mixing, sizes,
averages, distillation, retrieval, pictures of batches, saving and going on.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.other_device import OTHER, WrongDevice, other_device
from support.tiny_backbone import offer_tiny
from torch import Tensor

from fleetnet import checkpoint, data
from fleetnet.data import Split
from fleetnet.find import find, names
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model, build
from fleetnet.training import fit as fitting
from fleetnet.training import reinforce as reinforcing
from fleetnet.training import setup
from fleetnet.training.config import Situation as Now
from fleetnet.training.config import TrainConfig, unread
from fleetnet.training.fit import fit
from fleetnet.training.pictures import TrainingBatches
from fleetnet.training.reinforce import reinforce

SMALL = {
    "yolo": {"width": 0.1},
    "deeplabv3": {"channels": 16},
    "maskrcnn": {"channels": 16, "hidden": 16},
}
USUAL = {"size": 64, "batch_size": 2, "epochs": 1, "device": "cpu", "channels_last": False}
MUCH: dict[str, Any] = {  # as far as a task reads it
    "mixup": 0.4,
    "cutmix": 1.0,
    "multi_scale": 0.9,
    "class_weights": "balanced",
    "accumulate": 2,
    "clip": 1.0,
    "agc": 0.1,
    "norm": "frozen",
}


class OnOther(Accelerator):
    @property
    def device(self) -> torch.device:
        return OTHER


@pytest.fixture(autouse=True)
def _other(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)
    accelerator_of = setup.accelerator_of

    def on_other(config: TrainConfig) -> Accelerator:
        accelerator = accelerator_of(config)
        accelerator.__class__ = OnOther
        return accelerator

    for module in (fitting, reinforcing):
        monkeypatch.setattr(module, "accelerator_of", on_other)


def model_of(task: str) -> Model:
    torch.manual_seed(0)
    backbone = "fasternet_t0" if task == "deeplabv3" else "tiny"  # one that can be dilated
    name = backbone if task == "classification" else f"{task}/{backbone}"
    return build(name, 7 if task == "deeplabv3" else 6, options=SMALL.get(task, {}))


def splits(task: str) -> tuple[Split, Split]:
    target = find("tasks", task).TARGET
    train, val = (data.load("shapes:40", split, None, target) for split in ("train", "val"))
    measured = 8 if target == "label" else 2  # some of one class, for retrieval
    both = train.samples[:4], val.samples[:measured]
    if target in ("boxes", "masks"):
        for samples in both:
            samples[0] = replace(samples[0], objects=())  # nothing to find is a case of its own
    return Split(both[0], train.classes), Split(both[1], val.classes)


def trained(task: str, run: Path, **settings: Any) -> dict[str, Any]:
    """A training of two steps on the other device, whose batches are drawn too."""
    train, val = splits(task)
    resume = settings.pop("resume", False)
    hooks = [TrainingBatches(run, find("tasks", task).PREDICTION, train.classes)]
    config = TrainConfig(**{**USUAL, **settings})
    with other_device():
        model = model_of(task)
        best = fit(model, train, val, config, run, report=False, hooks=hooks, resume=resume)
        assert {parameter.device for parameter in model.parameters()} == {OTHER}
    return best


@pytest.mark.parametrize("task", names("tasks"))
def test_each_task_is_trained_and_measured(task: str, tmp_path: Path):
    module = find("tasks", task)
    read = {
        key: value
        for key, value in MUCH.items()
        if unread(key, Now(TrainConfig(**{key: value}), module)) is None
    }
    best = trained(task, tmp_path / "run", **read)
    assert best["epoch"] == 1
    assert (tmp_path / "run/plots/training_batch_1.jpg").is_file()
    assert checkpoint.read_facts(tmp_path / "run/best.safetensors").task == task


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    classes = splits("classification")[0].classes
    model = model_of("classification").eval()
    checkpoint.save(path, model, classes=classes, preprocess=Preprocess((64, 64)))
    return path


def test_a_teacher_beside_the_labels_and_one_that_was_asked(teacher: Path, tmp_path: Path):
    settings = {"teacher": str(teacher), "distill": "soft", "mixup": 0.4}
    beside = trained("classification", tmp_path / "beside", **settings)
    train, _ = splits("classification")
    with other_device():
        config = TrainConfig(**{**USUAL, **settings})
        reinforce(model_of("classification"), train, config, tmp_path / "answers")
    stored = {**settings, "teacher": str(tmp_path / "answers")}
    assert trained("classification", tmp_path / "stored", **stored) == beside


def test_retrieval_and_focal_losses_and_a_run_that_goes_on(tmp_path: Path):
    settings: dict[str, Any] = {"eval_mode": "retrieval", "focal": 2.0, "class_weights": "balanced"}
    first = trained("classification", tmp_path / "run", **settings)
    assert "recall1" in first
    trained("classification", tmp_path / "run", **settings, epochs=2, resume=True)
    trained("multilabel", tmp_path / "tags", focal=2.0)


# The device itself


RIGHT: dict[str, Callable[[Tensor], object]] = {
    "like": lambda x: x + torch.zeros_like(x) + x.new_ones(3) + torch.ones(3, device=x.device),
    "numbers": lambda x: x + 1 + torch.tensor(2.0) + torch.tensor([1.0, 2, 3], device=x.device),
    "indices": lambda x: x[torch.tensor([0, 2])] + x[[True, False, True]],
    "in place": lambda x: x.add_(1).clamp_(min=0).copy_(torch.zeros(3)),
    "back": lambda x: x.cpu() + torch.zeros(3),
    "values": lambda x: (x.tolist(), float(x.sum()), bool((x > 0).any()), len(x.nonzero())),
    "choice": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
}
WRONG: dict[str, Callable[[Tensor], object]] = {
    "zeros": lambda x: x + torch.zeros(3),
    "tensor": lambda x: x * torch.tensor([1.0, 2, 3]),
    "arange": lambda x: torch.cat([x, torch.arange(3)]),
    "one": lambda x: x + torch.ones(1),
    "indexed": lambda x: torch.zeros(3)[x.long()],
    "written": lambda x: torch.zeros(3).add_(x),
    "scalar there": lambda x: torch.zeros(3) + x.sum(),
    "eye": lambda x: torch.eye(3) @ x,
    "generator": lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
    "scatter": lambda x: torch.zeros(3).scatter_(0, x.long(), x),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_may_stand_beside_a_tensor_of_the_device(name: str):
    expected = RIGHT[name](torch.tensor([0.0, 1.0, 2.0]))
    with other_device():
        computed = RIGHT[name](torch.tensor([0.0, 1.0, 2.0]).to(OTHER))
        if isinstance(computed, Tensor) and computed.device == OTHER:
            computed = computed.cpu()
    torch.testing.assert_close(computed, expected)


@pytest.mark.parametrize("name", WRONG)
def test_what_may_not(name: str):
    with other_device(), pytest.raises((WrongDevice, TypeError), match="device"):
        WRONG[name](torch.tensor([0.0, 1.0, 2.0]).to(OTHER))


@pytest.mark.parametrize(("task", "part"), [("ssd", "loss"), ("multilabel", "decode")])
def test_a_tensor_made_without_a_device_is_seen(
    task: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a training as above, in a product with the first output."""
    module = find("tasks", task)
    real = getattr(module, part)

    def faulty(*words: Any, **settings: Any) -> Any:
        outputs = words[1] if part == "loss" else words[0]
        first = outputs if isinstance(outputs, Tensor) else next(iter(outputs.values()))
        assert first.device == OTHER
        first * torch.ones(first.shape[-1:])
        return real(*words, **settings)

    monkeypatch.setattr(module, part, faulty)
    with pytest.raises(WrongDevice, match=r"aten\.mul\.Tensor has tensors of two devices"):
        trained(task, tmp_path / "run")
