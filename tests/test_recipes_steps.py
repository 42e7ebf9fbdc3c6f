"""Every recipe builds its network and its pictures, and does two updates by its own settings."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_backbone import offer_tiny, tiny

from fleetnet import checkpoint, data, recipes
from fleetnet.backbones import family
from fleetnet.preprocess import Preprocess
from fleetnet.sizes import parse_curriculum
from fleetnet.tasks import Model, build, find, split_name
from fleetnet.training import checks
from fleetnet.training.config import TrainConfig, read_recipe
from fleetnet.training.fit import fit
from fleetnet.training.hooks import Progress

SMALLER = {160: 32, 192: 32, 224: 64}  # pixels of a curriculum, here
LARGEST = 6_000_000  # parameters of a network that does the steps itself
IN_ITS_PLACE = {  # the small network of each family, for the larger ones
    "fasternet": "fasternet_t0",
    "mobileone": "mobileone_s1",
    "parcnet": "parcnet_xs",
    "repvit": "repvit_m0_6",
    "parc_convnets": "parc_mobilenetv2",
}


class TwoStepsDone(Exception):
    """Ends a training after its second step."""


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier of the generated pictures; the recipes name one whose weights are fetched."""
    offer_tiny(monkeypatch)
    classes = data.load("shapes:8", "train").classes
    file = tmp_path / "teacher.safetensors"
    model = tiny("classification", len(classes))
    checkpoint.save(file, model, classes=classes, preprocess=Preprocess((32, 32)))
    return file


def small(config: TrainConfig, teacher: Path) -> TrainConfig:
    """The settings at few pixels and two pictures a step, on one CPU, from random weights.

    Classifiers see 32 pixels, others 64, and sizes that change become 32 and 64 pixels; Mask R-CNN
    learns from few proposals, with a thin head. At their own sizes the recipes would take minutes
    here. All else is the recipe's: optimizer, rates, clipping, average, losses, mixing,
    augmentation, distillation, frozen norms.
    """
    task = split_name(config.model)[0]
    thin = {"samples": 16, "proposals": 50, "hidden": 32} if task == "maskrcnn" else {}
    curriculum = parse_curriculum(config.curriculum)
    stages = () if curriculum is None else curriculum.stages
    grown = [f"{stage.epoch}:{SMALLER[stage.size[0]]}:{stage.strength}" for stage in stages]
    return replace(
        config,
        size=32 if task == "classification" else 64,
        batch_size=2,
        options={**config.options, **thin},
        sizes="32,64" if config.sizes else "",
        curriculum=",".join(grown),
        weights=None,
        teacher=None if config.teacher is None else str(teacher),
        norm="train" if config.norm == "sync" else config.norm,
        precision="fp32",
        device="cpu",
    )


def small_network(name: str, parameters: int) -> str:
    """The network itself, or for a large one a small one of its family with the same head."""
    task, backbone = split_name(name)
    if parameters <= LARGEST:
        return name
    other = IN_ITS_PLACE[family(backbone)]
    return other if task == "classification" else f"{task}/{other}"


def network_of(config: TrainConfig, classes: int) -> Model:
    return build(config.model, classes, config.drop_path, config.output_stride, config.options)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_does_two_steps(
    name: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # the shapes of each size, before the training: in test_curriculum.py
    monkeypatch.setattr(checks, "check_batch", lambda *_: None)
    settings = {"model": "fasternet_t0", **read_recipe(recipes.locate(name))}
    whole = TrainConfig(**settings)
    target = find(split_name(whole.model)[0]).TARGET
    train, val = (data.load("shapes:8", split, None, target) for split in ("train", "val"))
    with torch.device("meta"):  # the network of the recipe, without its numbers
        parameters = sum(
            each.numel() for each in network_of(whole, len(train.classes)).parameters()
        )

    config = small(whole, teacher)
    config = replace(config, model=small_network(whole.model, parameters))
    model = network_of(config, len(train.classes))
    before = [parameter.clone() for parameter in model.head.parameters()]
    losses: list[float] = []

    def stop(progress: Progress) -> None:
        losses.append(progress.loss)
        if len(losses) == 2:
            raise TwoStepsDone

    with pytest.raises(TwoStepsDone):
        fit(model, train, val, config, tmp_path / "run", progress=stop, report=False)
    assert all(math.isfinite(loss) for loss in losses)
    pairs = zip(before, model.head.parameters(), strict=True)
    assert any(not first.equal(now) for first, now in pairs)
