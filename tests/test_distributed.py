"""Several processes train what one trains: the same samples, losses, weights and figures.

In double precision, where all that differs is a fault. In float32 sums in another order differ in
the last digit, which a few steps at these rates make visible: a network without pretrained weights
has norms over channels that are almost constant. In seven epochs, 21 steps, losses differed by at
most 2.2e-9 here, and by 1.7e-7 with Mask R-CNN, where torchvision computes one of them in float32.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.several_processes import together
from support.tiny_backbone import Tiny, offer_tiny
from torch import Tensor, nn

from fleetnet import data
from fleetnet.backbones import fasternet
from fleetnet.data import Split
from fleetnet.errors import DataError, UsageError
from fleetnet.inputs.dataset import Batch
from fleetnet.inputs.samplers import share_of
from fleetnet.norms import share_norms
from fleetnet.processes import gathered, rank, total, world
from fleetnet.tasks import build, classification, deeplabv3, multilabel
from fleetnet.tasks import find as find_task
from fleetnet.training.answers import Answers, answers_of
from fleetnet.training.checks import check_batch
from fleetnet.training.config import TrainConfig
from fleetnet.training.distill import Distilled
from fleetnet.training.epoch import is_too_small
from fleetnet.training.fit import _say_of_norms, fit
from fleetnet.training.objective import Targets, TaskObjective, task_objective

STEPS = 3  # of an epoch
USUAL: dict[str, object] = {
    "size": 64,
    "batch_size": 7,  # parts of 3, 2 and 2, and of 4 and 3
    "epochs": 1,
    "optimizer": "sgd",
    "lr": 0.01,
    "norm": "sync",
    "clip": 10.0,
    "device": "cpu",
}
CASES: dict[str, dict[str, object]] = {
    "classification": {
        "mixup": 0.2,
        "cutmix": 1.0,
        "accumulate": 2,
        "epochs": 7,
        "eval_every": 7,
    },
    "ssd": {},
    "yolo": {"multi_scale": 0.3},
    "maskrcnn": {},
    "deeplabv3": {},
    "retrieval": {"eval_mode": "retrieval"},  # of the classifier's features
}
SMALL: dict[str, dict[str, int | float]] = {
    "yolo": {"width": 0.1, "depth": 0.1},
    "maskrcnn": {"channels": 16, "hidden": 32, "samples": 4096, "proposals": 50},
    "deeplabv3": {"channels": 16},
}
LOST = 3  # a training image of the classifier
EVALUATED = 5  # images, which neither 2 nor 3 processes can share evenly
SEARCHED = 11  # likewise, with several of a class


class Watched:
    """The objective of a task, computed in double precision, and what it was asked."""

    def __init__(self, usual: TaskObjective):
        self.usual = usual
        self.batches: list[str] = []  # of each step the hash of all images, in the first process
        self.losses_of_steps: list[dict[str, float]] = []

    def losses(self, network: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        parts = gathered(images.contiguous())
        if parts:
            self.batches.append(hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest())
        wide = {name: _in_double(target) for name, target in targets.items()}
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            losses = self.usual.losses(network, images, wide)
        means = {name: total(loss.detach()).item() / world() for name, loss in losses.items()}
        self.losses_of_steps.append(means)
        return losses


def _in_double(target: Any) -> Any:
    if isinstance(target, list):
        return [_in_double(each) for each in target]
    return target.double() if target.is_floating_point() else target


def model_of(task: str, classes: int) -> nn.Module:
    """The same network each time, which draws nothing: each process would draw its own."""
    torch.manual_seed(0)
    name = "tiny" if task == "classification" else f"{task}/tiny"
    model = build(name, classes, options=SMALL.get(task, {})).double()
    for module in (model, model.backbone):  # retrieval asks the backbone alone
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(), *inputs[1:]))
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    if task == "maskrcnn":
        model.head.rpn.fg_bg_sampler.batch_size_per_image = 1 << 20  # all anchors
    return model


def trained(case: str, folder: Path) -> dict[str, Any]:
    """What a training in one or more processes comes to."""
    task = "classification" if case == "retrieval" else case
    target = find_task(task).TARGET
    train, val = (data.load("shapes:24", split, target=target) for split in ("train", "val"))
    if case == "classification":  # the next one stands in, of the same process or not
        train.samples[LOST] = replace(train.samples[LOST], image=Path("lost.png"))
    model = model_of(task, len(train.classes))
    # one process has the whole batch anyway
    norm = {} if "WORLD_SIZE" in os.environ else {"norm": "train"}
    config = TrainConfig(**{**USUAL, **CASES[case], **norm})
    watched = Watched(task_objective(model, config, train))
    if case == "retrieval":
        val = Split(data.load("shapes:64", "val").samples[:SEARCHED], val.classes)
    else:
        val = Split(val.samples[:EVALUATED], val.classes)
    best = fit(model, train, val, config, folder, objective=watched, report=False)
    return {
        "batches": watched.batches,
        "losses": watched.losses_of_steps,
        "best": best,
        "weights": dict(model.state_dict()),
        "classes": {type(module).__name__ for module in model.modules()},
    }


# Losses of uneven parts ------------------------------------------------------------------------

IMAGES, CLASSES = 7, 4


def _distance(kind: str) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    def distance(logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        answers: Answers = answers_of(targets["taught"], 2.0)
        return Distilled(None, None, kind, 0.5, 2.0).distance(logits, answers)

    return distance


def _of_task(task: Any, **settings: Any) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    def loss(logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        outputs = {"logits": logits}
        if task is deeplabv3:
            maps = logits[..., None, None].expand(-1, -1, 4, 4)
            outputs = {"logits": maps, "auxiliary": maps * 2}
        return torch.stack(list(task.loss(None, outputs, targets, **settings).values())).sum()

    return loss


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0])
LOSSES = {
    "smoothed": _of_task(classification, label_smoothing=0.1),
    "weighted": _of_task(classification, class_weights=WEIGHTS),
    "focal": _of_task(classification, focal=2.0, class_weights=WEIGHTS),
    "tags": _of_task(multilabel, class_weights=WEIGHTS),
    "focal of tags": _of_task(multilabel, focal=2.0),
    "weighted pixels": _of_task(deeplabv3, class_weights=WEIGHTS),
    "hard": _distance("hard"),
    "soft": _distance("soft"),
}


def learned_of_parts() -> dict[str, Tensor]:
    """Of each loss the gradient at all logits (IMAGES, CLASSES), of which a process has a part."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(IMAGES, CLASSES, generator=generator)
    semantic = torch.randint(CLASSES, (IMAGES, 4, 4), generator=generator)
    semantic[0] = data.IGNORE
    targets = {
        "label": torch.randint(CLASSES, (IMAGES,), generator=generator),
        "tags": torch.randint(2, (IMAGES, CLASSES), generator=generator),
        "semantic": semantic,
        "taught": torch.randn(IMAGES, CLASSES, generator=generator),
    }
    own = list(share_of(range(IMAGES), rank(), world()))
    parts = {name: target[own] for name, target in targets.items()}
    gradients = {}
    for name, loss in LOSSES.items():
        at = logits[own].requires_grad_()
        loss(at, parts).backward()
        rows = gathered(at.grad / world())  # as gradients of weights are averaged
        gradients[name] = torch.cat(rows) if rows else logits
    return gradients


# All of it in as few processes as there have to be -----------------------------------------------


def all_of_it(folder: str) -> dict[str, Any]:
    fasternet.VARIANTS["tiny"] = Tiny
    count = os.environ.get("WORLD_SIZE", "1")
    results: dict[str, Any] = {
        case: trained(case, Path(folder) / f"{case}-{count}") for case in CASES
    }
    return {**results, "losses": learned_of_parts()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return together(all_of_it, 3, tmp_path_factory.mktemp("several"))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_what_one_trains(runs, case: str, processes: int):
    one, several = runs[1][case], runs[processes][case]
    assert several["batches"] == one["batches"]
    epochs = CASES[case].get("epochs", USUAL["epochs"])
    assert len(one["losses"]) == STEPS * epochs
    for ours, usual in zip(several["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(usual, rel=1e-6)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(several["weights"][name], weight, rtol=1e-6, atol=1e-9)
    assert several["classes"] == one["classes"]  # norms are not shared any more
    # each image counts once
    counted, evaluated = ("gallery", SEARCHED) if case == "retrieval" else ("images", EVALUATED)
    assert several["best"][counted] == one["best"][counted] == evaluated
    assert _figures(several["best"]) == pytest.approx(_figures(one["best"]))


def _figures(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: figure for name, figure in result.items() if isinstance(figure, float)}


def test_a_batch_of_fewer_images_than_processes_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fleetnet.training.checks.world", lambda: 3)
    with pytest.raises(UsageError, match="2 images for 3 processes; allowed: at least one"):
        check_batch(nn.Identity(), TrainConfig(batch_size=2), 100)


@pytest.mark.parametrize(("images", "lost"), [(0, 2), (1, 1)])
def test_a_part_of_which_too_little_is_left_ends_the_run(
    images: int, lost: int, monkeypatch: pytest.MonkeyPatch
):
    """The others would wait for a process that passes over the step."""
    batch = Batch(torch.zeros(images, 3, 8, 8), {}, ["a.png: damaged"], [], [], lost=lost)
    assert is_too_small(batch)
    monkeypatch.setattr("fleetnet.training.epoch.world", lambda: 2)
    with pytest.raises(DataError, match=f"could read {images} of the 2 images .*a.png: damaged"):
        is_too_small(batch)


def test_norms_that_see_a_part_of_the_batch_are_said(monkeypatch: pytest.MonkeyPatch):
    offer_tiny(monkeypatch)
    model = model_of("classification", 2)
    said: list[str] = []
    monkeypatch.setattr("fleetnet.training.fit.world", lambda: 2)
    learner = SimpleNamespace(model=model, config=TrainConfig(batch_size=8))
    _say_of_norms(learner, said.append)
    share_norms(model)
    _say_of_norms(learner, said.append)
    assert len(said) == 1
    assert "a part of the 8 images" in said[0]
    assert "--norm sync" in said[0]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_uneven_parts_are_that_of_the_whole(runs, loss: str, processes: int):
    torch.testing.assert_close(runs[processes]["losses"][loss], runs[1]["losses"][loss])
