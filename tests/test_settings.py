"""Every setting of the training is used by a task, or refused: a walk over all settings x tasks x augmentations."""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fleetnet import checkpoint, data
from fleetnet.cli import _starting, main
from fleetnet.data import Split
from fleetnet.errors import UsageError
from fleetnet.find import find, names
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model, build
from fleetnet.training import checks, config
from fleetnet.training.checks import check_settings
from fleetnet.training.config import (
    AUGMENTED,
    KEYS,
    MOSAIC,
    READ,
    Situation,
    TrainConfig,
    read_recipe,
    unread,
)
from fleetnet.training.fit import fit

TASKS = names("tasks")
TEACHER = Path(tempfile.gettempdir()) / f"teacher-of-test-settings-{os.getpid()}.safetensors"
VALUES: dict[
    str, Any
] = {  # of each setting that is not read everywhere: a value that makes a difference where it is
    "label_smoothing": 0.4,
    "class_weights": "balanced",
    "focal": 2.0,
    "balance": True,
    "norm": "sync",
    "mosaic": 0.01,
    "plain_epochs": 1,
    "scale": 0.05,
    "flip": 0.999,
    "color_jitter": 0.9,
    "auto_augment": "trivial",
    "erasing": 1.0,
    "mixup": 5.0,
    "cutmix": 5.0,
    "crop": 0.5,
    "max_objects": 3,
    "nms": 0.01,
    "score": 0.5,
    "timeout": 9.0,
    "teacher": str(TEACHER),
    "distill": "soft",
    "distill_weight": 0.9,
    "distill_temperature": 3.0,
    "step_epochs": "1",
    "step_factor": 0.5,
    "cooldown_epochs": 0.5,
    "eval_mode": "retrieval",
}
SMALL = {
    "fasternet_t0": {},
    "yolo": {"width": 0.1},
    "deeplabv3": {"channels": 16},
    "maskrcnn": {"channels": 16, "hidden": 16},
}
OF_AUGMENTATIONS = [key for key in VALUES if {AUGMENTED, MOSAIC} & set(READ[key])]
WALK = [(task, "default", key) for task in TASKS for key in VALUES]
WALK += [(task, "none", key) for task in TASKS for key in OF_AUGMENTATIONS]


def model_of(task: str) -> Model:
    torch.manual_seed(0)
    name = "fasternet_t0" if task == "classification" else f"{task}/fasternet_t0"
    return build(name, 7 if task == "deeplabv3" else 6, options=SMALL.get(task, {}))


def splits(task: str) -> tuple[Split, Split]:
    target = find("tasks", task).TARGET
    train_split, val = (data.load("shapes:40", split, None, target) for split in ("train", "val"))
    chosen = (0, 1, 2, 6) if task == "classification" else range(4)  # of labels, two of one class
    some = [train_split.samples[i] for i in chosen]
    measured = (0, 1, 6) if task == "classification" else (0,)  # two of one class, for retrieval
    few = [val.samples[i] for i in measured]
    return Split(some, train_split.classes), Split(few, val.classes)


def config_of(**changes: Any) -> TrainConfig:
    usual = {
        "size": 64,
        "batch_size": 4,
        "epochs": 1,
        "lr": 1e-4,
        "clip": 1.0,
        "ema": None,
        "device": "cpu",
    }
    return TrainConfig(**{**usual, **changes})


def is_read(task: str, augment: str, key: str) -> bool:
    changed = config_of(augment=augment, **{key: VALUES[key]})
    return unread(key, Situation(changed, find("tasks", task))) is None


def seen_in_training(
    task: str, patch: pytest.MonkeyPatch, run: Path, **changes: Any
) -> tuple[float, ...]:
    """Sums of what the network saw in training and evaluation and of what was found, and the losses: these differ if a
    setting is used."""
    seen: list[float] = []
    forward, loss, decode = Model.forward, find("tasks", task).loss, find("tasks", task).decode

    def watched(self: Model, image: torch.Tensor) -> Any:
        seen.append(float((image.double() * torch.linspace(1, 2, image.shape[-1])).sum()))
        return forward(self, image)

    def told(*arguments: Any, **settings: Any) -> Any:
        losses = loss(*arguments, **settings)
        seen.append(float(sum(value.detach() for value in losses.values())))
        return losses

    def decoded(*arguments: Any, **settings: Any) -> Any:
        predictions = decode(*arguments, **settings)
        seen.extend(
            float(value.double().sum())
            for prediction in predictions
            for value in vars(prediction).values()
            if isinstance(value, torch.Tensor)
        )
        return predictions

    with patch.context() as inside:
        inside.setattr(find("tasks", task), "decode", decoded)
        inside.setattr(Model, "forward", watched)
        inside.setattr(find("tasks", task), "loss", told)
        fit(model_of(task), *splits(task), config_of(**changes), run, report=False)
    return tuple(seen)


@pytest.fixture(scope="module", autouse=True)
def _teacher() -> Iterator[None]:
    """A classifier of generated data where VALUES names it."""
    classes = data.load("shapes:40", "train").classes
    model = model_of("classification").eval()
    checkpoint.save(TEACHER, model, classes=classes, preprocess=Preprocess((64, 64)))
    yield
    TEACHER.unlink()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[float, ...]]:
    """What is seen with each task and augmentation without any other setting."""
    folder, patch = tmp_path_factory.mktemp("usual"), pytest.MonkeyPatch()
    return {
        (task, augment): seen_in_training(
            task, patch, folder / f"{task}-{augment}", augment=augment
        )
        for task in TASKS
        for augment in ("default", "none")
    }


def test_every_setting_with_a_condition_is_walked():
    # which changes no figure: see test_loading
    assert {key for key in KEYS if READ[key]} == {*VALUES, "timeout"}


def test_a_limit_of_waiting_is_refused_where_nobody_is_waited_for():
    with pytest.raises(UsageError, match=r"timeout.*workers"):
        check_settings(config_of(timeout=1.0), "classification")
    check_settings(config_of(timeout=1.0, workers=1), "classification")
    check_settings(config_of(timeout=1.0), "classification", processes=2)


@pytest.mark.parametrize(("task", "augment", "key"), WALK, ids=["-".join(step) for step in WALK])
def test_a_setting_is_used_or_refused(
    task: str, augment: str, key: str, usual: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changes = {"augment": augment, key: VALUES[key]}
    if is_read(task, augment, key):
        assert (
            seen_in_training(task, monkeypatch, tmp_path / "run", **changes) != usual[task, augment]
        )
        return
    with pytest.raises(
        UsageError, match=f"^{key} is .*, but {task}.* has no use for it: it is read .*leave it out"
    ):
        fit(model_of(task), *splits(task), config_of(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", TASKS)
def test_what_is_refused_makes_no_difference(
    task: str, usual: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without the refusal, all that is refused changes nothing: so nothing of use is refused."""
    monkeypatch.setattr(checks, "check_settings", lambda *_, **__: None)
    # these would fail where they are refused
    fails = "teacher", "norm", "auto_augment", "mixup", "cutmix", "class_weights", "balance"
    fails += ("eval_mode",)  # this too, where there is no label
    fails += ("crop",)  # and this would move pictures in a letterbox, which nobody wants
    for augment in ("default", "none"):
        refused = {
            key: VALUES[key]
            for key in VALUES
            if key not in fails and not is_read(task, augment, key)
        }
        seen = seen_in_training(task, monkeypatch, tmp_path / augment, augment=augment, **refused)
        assert seen == usual[task, augment]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of settings that `fleetnet train` reads, other than to check or to copy them."""
    names_read: set[str] = set()

    class Recorded(TrainConfig):
        def __getattribute__(self, name: str) -> Any:
            caller = sys._getframe(1).f_code
            passes_on = caller.co_filename in (config.__file__, dataclasses.__file__)
            if name in KEYS and not passes_on and caller is not check_settings.__code__:
                names_read.add(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(_starting, "TrainConfig", Recorded)
    return names_read


@pytest.mark.parametrize("task", TASKS)
def test_every_other_setting_is_read(task: str, read: set[str], tmp_path: Path):
    name = "fasternet_t0" if task == "classification" else f"{task}/fasternet_t0"
    options = [f"--options.{key}={value}" for key, value in SMALL.get(task, {}).items()]
    words = f"train --model {name} --data shapes:20 --size 64 --batch-size 8 --epochs 1 --run {tmp_path / 'run'}"
    assert main([*words.split(), *options]) == 0
    assert {key for key in KEYS if not READ[key]} - read == set()


# What is given, and where


def test_a_flag_of_the_usual_value_is_given_and_a_recipe_may_hold_defaults(tmp_path: Path, capsys):
    recipe = tmp_path / "resolved.yaml"
    recipe.write_text("mosaic: 1.0\nlabel_smoothing: 0.1\nflip: 0.5\nmixup: 0\n")
    check_settings(TrainConfig(**read_recipe(recipe)), "ssd")
    with pytest.raises(
        UsageError, match=r"mosaic is 1.0, but ssd has .* with the augmentation mosaic \(yolo\)"
    ):
        check_settings(TrainConfig(), "ssd", given=["mosaic"])
    # these ask for nothing
    check_settings(TrainConfig(mosaic=0.0, flip=0.0), "ssd", given=["mosaic"])
    recipe.write_text("mosaic: 0.5\n")
    words = f"train --model ssd/fasternet_t0 --data shapes:20 --recipe {recipe} --run {tmp_path / 'run'}"
    assert main(words.split()) == 2
    assert "mosaic is 0.5, but ssd" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mosaic 0.5", "mosaic is 0.5, but classification has no use for it"),
        ("--plain-epochs 3", "plain_epochs is 3, but classification has no use for it"),
        (
            "--augment none --flip 0.5",
            "flip is 0.5, but classification with augment none has no use",
        ),
        ("--augment none --erasing 0.1", "erasing is 0.1, but classification with augment none"),
        ("--augment none --scale 0.5", "scale is 0.5, but classification with augment none"),
        (
            "--norm sync",
            "norm is sync, but classification has no use for it: it is read as sync "
            "only by several",
        ),
    ],
)
def test_refused_before_the_data_are_read(words: str, message: str, capsys):
    assert main(f"train --model fasternet_t0 --data nowhere {words}".split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"drop_path": 0.2},
            r"drop_path is 0.2, but the model was made with 0.0: `fit` trains the model as it is",
        ),
        ({"output_stride": 16}, r"output_stride is 16, but the model was made with 32"),
        ({"options": {"mixing": "conv"}}, "options have mixing, but the model was made without"),
        (
            {"weights": "imagenet.pth"},
            "weights is 'imagenet.pth', but none were loaded into the model",
        ),
    ],
)
def test_fit_does_not_make_the_model(changes: dict, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        fit(
            model_of("classification"),
            *splits("classification"),
            config_of(**changes),
            tmp_path / "run",
        )
