"""A teacher that is asked once: a student learns from its stored answers to the bit what it learns beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_backbone import offer_tiny, tiny

import fleetnet
from fleetnet import checkpoint, data
from fleetnet.cli import main
from fleetnet.data import Split
from fleetnet.errors import FleetnetError, ModelError, UsageError
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import build
from fleetnet.training import reinforce as reinforcing
from fleetnet.training.answers import NUMBER, answers_of, conditions_of, differences, file_of
from fleetnet.training.config import KEYS, SEEN, TrainConfig
from fleetnet.training.reinforce import Reinforced, reinforce

Weights = dict[str, torch.Tensor]
SETTINGS: dict[str, Any] = {
    "size": 32,
    "epochs": 2,
    "batch_size": 8,
    "warmup_epochs": 0,
    "lr": 3e-3,
    "device": "cpu",
    "distill_weight": 0.7,
}
MIXED = {"mixup": 0.4, "cutmix": 1.0}
# What the network sees of a sample: a name -> settings
WAYS: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft, mixed": {"distill": "soft", "distill_temperature": 2.0, **MIXED},
    "hard, mixed, repeated": {**MIXED, "repeats": 3, "workers": 1},
    "soft, sizes": {"distill": "soft", "sizes": "32,48", "mixup": 0.4},
    "soft, curriculum": {
        "distill": "soft",
        "curriculum": "0:32:0.5,1:48",
        "auto_augment": "trivial",
        "erasing": 0.5,
        "balance": True,
    },
    "hard, scales": {"multi_scale": 0.9, "accumulate": 2},
}


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    train, val = (data.load("shapes:27", split) for split in ("train", "val"))
    return train, Split(val.samples[:2], val.classes)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)


@pytest.fixture
def teacher(tmp_path: Path, splits: tuple[Split, Split]) -> str:
    """One with a preprocessing of its own, and its classes in another order."""
    path, classes = tmp_path / "teacher.safetensors", splits[0].classes
    model = tiny("classification", len(classes))
    for parameter in model.parameters():
        parameter.data *= 3  # so that its answers differ from each other
    own = Preprocess((32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), channel_order="BGR")
    checkpoint.save(path, model, classes=classes[::-1], preprocess=own)
    return str(path)


def config_of(teacher: str | Path, **changes: Any) -> TrainConfig:
    return TrainConfig(**{**SETTINGS, "teacher": str(teacher), **changes})


def stored(splits: tuple[Split, Split], config: TrainConfig, folder: Path) -> Reinforced:
    model = tiny("classification", len(splits[0].classes))
    return reinforce(model, splits[0], config, folder)


def trained(
    splits: tuple[Split, Split], config: TrainConfig, run: Path, *, resume: bool = False
) -> Weights:
    model = tiny("classification", len(splits[0].classes))
    fleetnet.fit(model, *splits, config, run, report=False, resume=resume)
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("way", WAYS)
def test_stored_answers_teach_to_the_bit_what_the_teacher_does(
    way: str, splits: tuple[Split, Split], teacher: str, tmp_path: Path
):
    live = config_of(teacher, **WAYS[way])
    made = stored(splits, live, tmp_path / "answers")
    assert made.made == made.epochs == 2
    assert made.record <= 64
    assert made.bytes == sum(made.record * made.samples + 32 for _ in range(2))
    beside = trained(splits, live, tmp_path / "live")
    Path(teacher).unlink()  # nobody asks it any more
    after = trained(splits, config_of(tmp_path / "answers", **WAYS[way]), tmp_path / "stored")
    assert same(beside, after)
    lines = [(tmp_path / run / "log.jsonl").read_text() for run in ("live", "stored")]
    losses = [[json.loads(line)["train"] for line in text.splitlines()] for text in lines]
    assert losses[0] == losses[1]
    assert all(epoch["distillation"] > 0 for epoch in losses[0])


def test_other_answers_teach_something_else(
    splits: tuple[Split, Split], teacher: str, tmp_path: Path
):
    """What the test above compares can differ."""
    live, folder = config_of(teacher, distill="soft"), tmp_path / "answers"
    made = stored(splits, live, folder)
    records = np.fromfile(file_of(folder, 0), np.uint8)[:-32].reshape(-1, made.record)
    answers = torch.from_numpy(np.roll(records[:, NUMBER:], 1, 0))
    reinforcing.write_epoch(folder, 0, records[:, :NUMBER].view("<u4")[:, 0].tolist(), answers)
    after = trained(splits, config_of(folder, distill="soft"), tmp_path / "stored")
    assert not same(trained(splits, live, tmp_path / "live"), after)


def test_a_record_holds_fifteen_of_a_thousand_classes_in_64_bytes():
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    answers = answers_of(logits, 1.0)
    content = answers.to_bytes()
    assert content.shape == (3, 60)
    again = type(answers).from_bytes(content)
    assert torch.equal(again.classes.long(), answers.classes.long())
    assert torch.equal(again.shares, answers.shares)


def test_another_batch_size_and_a_resumed_run_take_the_same_answers(
    splits: tuple[Split, Split], teacher: str, tmp_path: Path
):
    """Without mixing an answer belongs to its sample, also to those that filled no batch."""
    folder = tmp_path / "answers"
    stored(splits, config_of(teacher, batch_size=16), folder)
    taught = config_of(folder, batch_size=4, epochs=1)
    trained(splits, taught, tmp_path / "run")
    further = config_of(folder, batch_size=4, epochs=2, schedule="constant")
    whole = trained(splits, further, tmp_path / "whole")
    trained(splits, config_of(folder, batch_size=4, epochs=1, schedule="constant"), tmp_path / "a")
    assert same(whole, trained(splits, further, tmp_path / "a", resume=True))


def test_making_them_goes_on_where_it_stopped(
    splits: tuple[Split, Split],
    teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config, folder = config_of(teacher, epochs=3), tmp_path / "answers"
    stored(splits, config, tmp_path / "whole")
    write = reinforcing.write_epoch

    def stopped(place: Path, epoch: int, *content: Any) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        write(place, epoch, *content)

    with monkeypatch.context() as patch:
        patch.setattr(reinforcing, "write_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            stored(splits, config, folder)
    with pytest.raises(UsageError, match=r"no answers of 2 of 3 epochs, the first 2: .* reinforce"):
        trained(splits, config_of(folder, epochs=3), tmp_path / "run")
    assert stored(splits, config, folder).made == 2
    whole = file_of(folder, 0).read_bytes()
    file_of(folder, 0).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert stored(splits, config, folder).made == 1  # the one that is damaged
    for epoch in range(3):
        of_one = file_of(tmp_path / "whole", epoch).read_bytes()
        assert of_one == file_of(folder, epoch).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed is 1, of the answers 0"),
        ({"size": 64}, "size is 64x64, of the answers 32x32"),
        (
            {"mixup": 0.2, "flip": 0.0},
            r"flip is 0.0, of the answers 0.5; mixup is 0.2, of the answ",
        ),
        ({"batch_size": 4}, "batch_size is 4, of the answers 8"),
        ({"distill": "soft", "distill_temperature": 4.0}, "distill_temperature is 4, of the answ"),
        ({"normalize": "none"}, r"mean is 0.0x0.0x0.0, of the answers"),
        ({"epochs": 3}, r"no answers of 1 of 3 epochs, the first 3: .* with --epochs 3"),
    ],
)
def test_what_differs_is_named_before_training(
    changes: dict[str, Any],
    message: str,
    splits: tuple[Split, Split],
    teacher: str,
    tmp_path: Path,
):
    stored(splits, config_of(teacher, mixup=0.4), tmp_path / "answers")
    with pytest.raises(UsageError, match=message):
        trained(
            splits, config_of(tmp_path / "answers", **{"mixup": 0.4, **changes}), tmp_path / "r"
        )
    assert not (tmp_path / "r").exists()


def test_answers_of_a_version_without_a_setting_were_made_as_its_default_has_it(
    splits: tuple[Split, Split], teacher: str
):
    about = conditions_of(config_of(teacher), Preprocess((32, 32)), splits[0])
    older = {**about, "settings": {**about["settings"]}}
    del older["settings"]["flip"]
    assert differences(older, about) == []
    now = conditions_of(config_of(teacher, flip=0.1), Preprocess((32, 32)), splits[0])
    assert differences(older, now) == ["flip is 0.1, of the answers 0.5"]


def test_other_data_and_another_teacher_are_named(
    splits: tuple[Split, Split], teacher: str, tmp_path: Path
):
    train, val = splits
    folder = tmp_path / "answers"
    stored(splits, config_of(teacher, epochs=1), folder)
    taught = config_of(folder, epochs=1)
    fewer = Split(train.samples[:-1], train.classes)
    with pytest.raises(UsageError, match="the data have 26 samples, those of the answers 27"):
        trained((fewer, val), taught, tmp_path / "run")
    turned = Split([*train.samples[1:], train.samples[0]], train.classes)
    with pytest.raises(UsageError, match="other files, labels or another order"):
        trained((turned, val), taught, tmp_path / "run")
    model = checkpoint.load(teacher).model
    model.head.classifier[-1].bias.data += 1
    other = str(tmp_path / "other.safetensors")
    checkpoint.save(other, model, classes=train.classes, preprocess=Preprocess((32, 32)))
    with pytest.raises(UsageError, match=r"the teacher is .*other.*, of the answers .*teacher"):
        stored(splits, config_of(other, epochs=1), folder)
    with pytest.raises(UsageError, match="a folder of answers, which cannot be asked"):
        stored(splits, taught, tmp_path / "more")
    with pytest.raises(UsageError, match=r"is there, without the answers\.json"):
        stored(splits, config_of(teacher), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed", "conditions"])
def test_damage_is_named(damage: str, splits: tuple[Split, Split], teacher: str, tmp_path: Path):
    folder = tmp_path / "answers"
    stored(splits, config_of(teacher), folder)
    file = folder / "answers.json" if damage == "conditions" else file_of(folder, 1)
    content = file.read_bytes()
    changed = bytes([content[40] ^ 1]) if damage == "changed" else b""
    file.write_bytes(content[:40] + changed + content[41:])
    with pytest.raises(ModelError, match=f"{file.name} is .*(damaged|cut off)"):
        trained(splits, config_of(folder), tmp_path / "run")
    # what could be known before the first step ended there
    assert (tmp_path / "run").exists() == (damage == "changed")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_could_not_be_read_then_can_not_be_learned_from(
    workers: int, photos: Path, tmp_path: Path
):
    train, val = (data.load(photos, split) for split in ("train", "val"))
    path, broken = tmp_path / "teacher.safetensors", Path(str(train.samples[3].image))
    model = tiny("classification", len(train.classes))
    checkpoint.save(path, model, classes=train.classes, preprocess=Preprocess((32, 32)))
    content = broken.read_bytes()
    try:
        broken.write_bytes(bytes(len(content)))
        config = config_of(path, epochs=1, batch_size=len(train.samples))
        made = stored((train, val), config, tmp_path / "answers")
        assert broken.name in "".join(made.skipped)
        taught = config_of(
            tmp_path / "answers", epochs=1, batch_size=len(train.samples), workers=workers
        )
        assert same(
            trained((train, val), config, tmp_path / "live"),
            trained((train, val), taught, tmp_path / "stored"),
        )
        broken.write_bytes(content)
        with pytest.raises(
            FleetnetError, match=r"^the stored answers .* none to sample 3 in epoch"
        ):
            trained((train, val), taught, tmp_path / "run")
    finally:
        broken.write_bytes(content)


def test_settings_of_what_is_seen_are_in_one_place(splits: tuple[Split, Split]):
    from fleetnet.cli.data_show import READ

    assert set(SEEN) <= set(READ) <= KEYS
    settings = conditions_of(TrainConfig(), Preprocess((32, 32)), splits[0])["settings"]
    assert set(settings) == {*SEEN, "precision"}


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.undo()  # a network of the zoo
    teacher, answers = tmp_path / "teacher.safetensors", tmp_path / "answers"
    classes = data.load("shapes:16", "train").classes
    model = build("fasternet_t0", len(classes))
    checkpoint.save(teacher, model, classes=classes, preprocess=Preprocess((32, 32)))
    words = "--model fasternet_t0 --data shapes:16 --size 32 --batch-size 8 --epochs 1 --device cpu"
    asking = f"data reinforce {words} --teacher {teacher} --out {answers} --json"
    assert main(asking.split()) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["epochs"], said["made"], said["samples"]) == (1, 1, 16)
    assert main(asking.split()) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == 0
    train = f"train {words} --teacher {answers} --run {tmp_path / 'run'} --flip 0.1"
    assert main(train.split()) == 2
    assert "flip is 0.1, of the answers 0.5" in capsys.readouterr().err
    assert main(f"data reinforce {words} --out {answers}".split()) == 2
    assert "--teacher is missing; example: fleetnet data reinforce" in capsys.readouterr().err
