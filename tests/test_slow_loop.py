"""`fit` against the slow loop: the same weights, log and choice of the best, to the last bit.

For each setting alone, and for all together; straight, and stopped and resumed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from PIL import Image
from safetensors.torch import load_file
from support.slow_loop import Course, Weights, chunks, order_of, train_slowly
from support.tiny_backbone import offer_tiny, tiny
from torch import nn

import fleetnet
from fleetnet.data import Object, Split, load
from fleetnet.find import find
from fleetnet.inputs.augment import augmentation
from fleetnet.inputs.dataset import ImageDataset, Item, collate
from fleetnet.inputs.randomness import Draw
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model
from fleetnet.training.class_weights import class_weights
from fleetnet.training.config import TrainConfig

# everything off; 22 pictures in batches of 4 are five batches an epoch, and two left over
PLAIN: dict[str, Any] = {
    "batch_size": 4,
    "size": 32,
    "epochs": 3,
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "ema": None,
    "scale": 0.5,
    "color_jitter": 0.2,
    "channels_last": False,
    "device": "cpu",
}
ALONE: dict[str, dict[str, Any]] = {
    "seed": {"seed": 7},
    "lowest rate": {"min_lr": 0.02},
    "annealed decay": {"weight_decay": 0.5, "decay_end": 0.01, "decay_norms": True},
    "clipping by the unit": {"agc": 0.02},
    "plain average": {"ema": 0.7, "ema_warmup": False},
    "one smaller batch": {"batch_size": 30},
    "warm-up": {"warmup_epochs": 1.0},
    "warm-up longer than half of the run": {"warmup_epochs": 2.5},
    "accumulation": {"accumulate": 2},  # the fifth batch of an epoch is an update of its own
    "clipping": {"clip": 0.5},
    "decay": {"weight_decay": 0.5},
    "rate of the head": {"head_lr": 3.0},
    "average": {"ema": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "momentum": 0.8, "weight_decay": 0.5},
    "no momentum": {"momentum": 0.0},
    "balance": {"balance": True},
    "weights of classes": {"class_weights": "balanced"},
    "smooth labels": {"label_smoothing": 0.2},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "sizes": {"multi_scale": 0.9},
    "frozen part": {"freeze": "backbone.stages.[01]"},
    "frozen norms": {"norm": "frozen"},
    "evaluated at times": {"eval_every": 2, "ema": 0.9},
    "memory format": {"channels_last": True},
}
LEAVES_WEIGHTS = ("average", "plain average", "evaluated at times")  # the raw ones, as they are
TOGETHER: dict[str, Any] = {
    "accumulate": 2,
    "clip": 0.5,
    "ema": 0.9,
    "weight_decay": 0.1,
    "head_lr": 3.0,
    "label_smoothing": 0.1,
    "warmup_epochs": 2.5,
    "balance": True,
    "mixup": 0.4,
    "cutmix": 1.0,
    "multi_scale": 0.9,
    "freeze": "backbone.stages.0",
    "norm": "frozen",
    "erasing": 0.5,
    "auto_augment": "trivial",
    "seed": 2,
}


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**PLAIN, **changes})


# Two tasks, and how each reads its pictures


def photos_of(photos: Path, lost: Sequence[int] = ()) -> tuple[Split, Split]:
    """22 pictures to train on, of unequally many a class, some of them lost; 6 to measure on."""
    train, val = load(str(photos), "train"), load(str(photos), "val")
    of_class = [[sample for sample in train.samples if sample.label == label] for label in range(3)]
    samples = of_class[0][:8] + of_class[1][:8] + of_class[2][:6]
    for index in lost:
        samples[index] = replace(samples[index], image=photos / f"lost{index}.png")
    return Split(samples, train.classes), Split(val.samples[::2], val.classes)


def scenes(crowds: bool = False) -> tuple[Split, Split]:
    """10 pictures with objects to train on, each with a crowd too if `crowds`; 4 to measure on."""
    train, val = (load("shapes:40", split, None, "boxes") for split in ("train", "val"))
    crowd = (Object((8.0, 8.0, 80.0, 80.0), 0, crowd=True),) if crowds else ()
    drawn = []
    for sample in train.samples[:10]:
        image = partial(Image.Image.copy, sample.image())  # drawn once
        drawn.append(replace(sample, image=image, objects=sample.objects + crowd))
    return Split(drawn, train.classes), Split(val.samples[:4], val.classes)


def reader(
    task: str, train: Split, config: TrainConfig
) -> Callable[[int, int, int, bool], Item | str]:
    """What the slow loop reads: a sample as an input, with mosaic or without."""
    preprocess = Preprocess(config.size, mode=find("tasks", task).MODE)
    module = find("tasks", task)
    data, plain = (
        ImageDataset(
            train,
            preprocess,
            augmentation(
                module.AUGMENT if config.augment == "default" else config.augment,
                preprocess,
                flip=config.flip,
                scale=config.scale,
                color_jitter=config.color_jitter,
                erasing=config.erasing,
                mosaic=probability,
                auto_augment=config.auto_augment,
            ),
            target=module.TARGET,
            seed=config.seed,
        )
        for probability in (config.mosaic, 0.0)
    )

    def read(epoch: int, index: int, turn: int, mosaic: bool) -> Item | str:
        return (data if mosaic else plain)[Draw(epoch, index, turn)]

    return read


def scorer(task: str, val: Split, config: TrainConfig) -> Callable[[nn.Module], float]:
    """The first figure of the task's metric."""
    module = find("tasks", task)
    data = ImageDataset(val, Preprocess(config.size, mode=module.MODE), target=module.TARGET)
    items = [data[index] for index in range(len(data))]
    batches = [collate(some) for some in chunks(items, config.batch_size)]

    def score(model: nn.Module) -> float:
        result = fleetnet.evaluate(model, task, batches, val.classes)
        return result[next(iter(result))]

    return score


def slow(
    task: str,
    train: Split,
    val: Split,
    config: TrainConfig,
    scores: Iterator[int] | None = None,
    stand_ins: bool = True,
) -> Course:
    """The slow loop, which takes its `scores` from the metric unless they are given."""
    model, module = tiny(task, len(train.classes)), find("tasks", task)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    of_loss = {"label_smoothing": config.label_smoothing} if task == "classification" else {}
    if config.class_weights == "balanced":
        of_loss["class_weights"] = class_weights(train, module.TARGET)
    return train_slowly(
        model,
        config,
        len(train.samples),
        reader(task, train, config),
        lambda outputs, targets: module.loss(model.head, outputs, targets, **of_loss),
        scorer(task, val, config) if scores is None else lambda model: next(scores),
        [sample.label for sample in train.samples],
        stand_ins,
    )


def fast(
    task: str,
    train: Split,
    val: Split,
    config: TrainConfig,
    run: Path,
    stop_after: int | None = None,
) -> Model:
    """`fit`; with `stop_after` it is stopped after that epoch and resumed with a new model."""

    def stop(line: dict[str, Any]) -> None:
        if line["epoch"] == stop_after:
            raise KeyboardInterrupt

    model = tiny(task, len(train.classes))
    if stop_after is not None:
        with pytest.raises(KeyboardInterrupt):
            fleetnet.fit(model, train, val, config, run, on_epoch=stop, report=False)
        model = tiny(task, len(train.classes))
    fleetnet.fit(model, train, val, config, run, resume=stop_after is not None, report=False)
    return model


# What has to be equal


def assert_same_weights(actual: Weights, expected: Weights, what: str) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        apart = (actual[name] - value).abs().max()
        assert torch.equal(actual[name], value), f"{name} of {what}: {apart:.3g} apart"


def assert_same_run(model: Model, run: Path, course: Course) -> None:
    assert_same_weights(model.state_dict(), course.raw, "the model")
    assert_same_weights(load_file(run / "last.safetensors"), course.raw, "last.safetensors")
    assert_same_weights(load_file(run / "best.safetensors"), course.best, "best.safetensors")
    assert (run / "ema.safetensors").exists() == (course.average is not None)
    if course.average is not None:
        assert_same_weights(load_file(run / "ema.safetensors"), course.average, "ema.safetensors")
    best = json.loads((run / "best.json").read_text())
    figure = next(iter(best))
    assert (best["epoch"], best["weights"], best[figure]) == course.best_of
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = []
    for line in lines:
        of_forms = {form: line[form][figure] for form in ("raw", "ema") if form in line}
        logged.append({key: line["train"][key] for key in ("loss", "lr", "images")} | of_forms)
    assert logged == course.log


@pytest.fixture(scope="module")
def plain(photos: Path) -> Weights:
    """What the slow loop computes with everything off."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        offer_tiny(monkeypatch)
        return slow("classification", *photos_of(photos), settings()).raw


def differs(weights: Weights, others: Weights) -> bool:
    return any(not torch.equal(weights[name], others[name]) for name in weights)


def test_everything_off(photos: Path, plain: Weights, tmp_path: Path):
    data = photos_of(photos)
    model = fast("classification", *data, settings(), tmp_path)
    assert_same_run(model, tmp_path, slow("classification", *data, settings()))
    assert differs(plain, tiny("classification", 3).state_dict())


@pytest.mark.parametrize("name", ALONE)
def test_a_setting_alone(name: str, photos: Path, plain: Weights, tmp_path: Path):
    data, config = photos_of(photos), settings(**ALONE[name])
    course = slow("classification", *data, config)
    assert differs(course.raw, plain) == (name not in LEAVES_WEIGHTS), "it makes no difference"
    model = fast("classification", *data, config, tmp_path)
    assert_same_run(model, tmp_path, course)


@pytest.mark.parametrize("stop_after", [None, 2], ids=["straight", "resumed"])
def test_all_settings_together(stop_after: int | None, photos: Path, tmp_path: Path):
    """Also with a file that cannot be read, and stopped in the middle and resumed."""
    config = settings(**TOGETHER)
    data = photos_of(photos, lost=[3])
    model = fast("classification", *data, config, tmp_path, stop_after)
    assert_same_run(model, tmp_path, slow("classification", *data, config))


# Files that cannot be read


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_a_batch_that_cannot_be_read(
    batch: int, accumulate: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A whole batch of the first epoch is lost: the others of its group make an update without it.

    So it is where nothing stands in, as with a teacher. In later epochs the files are missing in
    several batches, which are of different sizes then, so the mean of the loss is not that of the
    batches.
    """
    config = settings(accumulate=accumulate, weight_decay=0.1, ema=0.9, warmup_epochs=1.0)
    lost = chunks(order_of(22, config.seed, 0), config.batch_size)[batch]
    data = photos_of(photos, lost)
    monkeypatch.setattr("fleetnet.inputs.samplers.STAND_INS", 0)
    course = slow("classification", *data, config, stand_ins=False)
    assert course.log[0]["images"] == 16
    model = fast("classification", *data, config, tmp_path, stop_after=1)
    assert_same_run(model, tmp_path, course)


def test_the_next_of_the_order_stands_in(photos: Path, tmp_path: Path):
    """Also where it cannot be read either, and at the end of the order, whose next is its first."""
    config = settings(epochs=2)
    order = order_of(22, config.seed, 0)
    data = photos_of(photos, [*order[2:5], *order[18:]])
    course = slow("classification", *data, config)
    assert [line["images"] for line in course.log] == [20, 20]
    model = fast("classification", *data, config, tmp_path)
    assert_same_run(model, tmp_path, course)


def test_another_trainer_that_was_stopped_within_a_group(
    photos: Path, plain: Weights, tmp_path: Path
):
    """accelerate keeps for the whole process whether an optimizer may make its step."""
    GradientState()._set_sync_gradients(False)
    model = fast("classification", *photos_of(photos), settings(), tmp_path)
    assert_same_weights(model.state_dict(), plain, "the model")


# Which weights are the best

# (score of the raw weights, of the averaged ones) of each epoch -> epoch and form of the best
CHOICES = [
    ([(10, 20), (30, 25), (15, 5)], (2, "raw")),
    ([(10, 20), (15, 25), (15, 5)], (2, "ema")),
    ([(10, 20), (15, 5), (20, 20)], (1, "ema")),  # of equal ones the first
    ([(20, 20), (15, 5), (1, 2)], (1, "raw")),
    ([(0, 0), (0, 0), (0, 0)], (3, "ema")),  # of nothing right the last
    ([(0, 0), (1, 0), (0, 0)], (2, "raw")),
    ([(10, 20), (15, 25), (30, 40)], (3, "ema")),
]


@pytest.mark.parametrize(("scores", "best"), CHOICES)
def test_the_best_weights(
    scores: list[tuple[int, int]],
    best: tuple[int, str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    data, config = photos_of(photos), settings(ema=0.9, epochs=3, evaluate="both")
    in_order = [score for of_epoch in scores for score in of_epoch]
    course = slow("classification", *data, config, iter(in_order))
    assert course.best_of[:2] == best
    give_scores(monkeypatch, iter(in_order))
    model = fast("classification", *data, config, tmp_path)
    assert_same_run(model, tmp_path, course)


def test_patience(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, config = photos_of(photos), settings(epochs=6, patience=2)
    course = slow("classification", *data, config, iter([10, 20, 15, 20, 30]))
    assert len(course.log) == 4
    give_scores(monkeypatch, iter([10, 20, 15, 20, 30]))
    model = fast("classification", *data, config, tmp_path)
    assert_same_run(model, tmp_path, course)


def give_scores(monkeypatch: pytest.MonkeyPatch, scores: Iterator[int]) -> None:
    """Make these the results of the metric of classification, one after the other."""

    class Given:
        def __init__(self, classes: list[str]):
            pass

        def add(self, predictions: Any, targets: Any) -> None:
            pass

        def result(self) -> dict[str, Any]:
            return {"top1": next(scores)}

    monkeypatch.setattr(find("tasks", "classification"), "metric", Given)


# A detector: what only it has

DETECTOR: dict[str, Any] = {"size": 64, "lr": 0.01, "scale": 0.5, "clip": 1.0}
OF_DETECTORS: dict[str, dict[str, Any]] = {
    "usual": {},
    "sizes": {"multi_scale": 0.6},
    "mosaic": {"augment": "mosaic"},
    "mosaic, not in the last epoch": {"augment": "mosaic", "plain_epochs": 1},
    "mosaic, only in the first epoch": {"augment": "mosaic", "plain_epochs": 2},
    "together": {
        "augment": "mosaic",
        "plain_epochs": 1,
        "multi_scale": 0.6,
        "accumulate": 2,
        "ema": 0.9,
        "weight_decay": 0.1,
        "head_lr": 3.0,
        "norm": "frozen",
        "optimizer": "adamw",
        "warmup_epochs": 1.0,
        "batch_size": 2,
    },
}


@pytest.mark.parametrize("name", OF_DETECTORS)
def test_a_detector(name: str, tmp_path: Path):
    config = settings(**{**DETECTOR, **OF_DETECTORS[name]})
    course = slow("ssd", *scenes(), config)
    model = fast("ssd", *scenes(), config, tmp_path, stop_after=2 if name == "together" else None)
    assert_same_run(model, tmp_path, course)


def test_crowds_are_not_learned(tmp_path: Path):
    """With a crowd in every picture the weights are those of the same pictures without."""
    config = settings(**DETECTOR)
    model = fast("ssd", *scenes(crowds=True), config, tmp_path)
    assert_same_run(model, tmp_path, slow("ssd", *scenes(), config))
