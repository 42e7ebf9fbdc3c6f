"""Several endings of a training from the state of one run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import benchmark

from fleetnet.cli import _launching, main, sweep
from fleetnet.errors import UsageError
from fleetnet.training.branching import check_branch, otherwise
from fleetnet.training.config import TrainConfig

kills = benchmark("kills")
WORDS = (
    "train --model fasternet_t0 --size 32 --batch-size 8 --optimizer sgd --lr 0.05 --warmup-epochs "
    "0.5 --device cpu --threads 1"
)
Train = Callable[..., Path]


@pytest.fixture
def train(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains runs whose page is a file without figures."""
    monkeypatch.setattr(
        "fleetnet.training.fit.write_overview", lambda run, *_: (run / "report.html").touch()
    )
    monkeypatch.setattr("fleetnet.training.fit.samples", lambda *_: None)

    def trained(name: str, words: str) -> Path:
        run = tmp_path / name
        assert main([*WORDS.split(), *words.split(), "--data", str(photos), "--run", str(run)]) == 0
        return run

    return trained


def test_endings_are_those_of_runs_planned_so(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One fails and is named, the other one is trained; the same command trains the first again."""
    trunk = train("trunk", "--epochs 1 --schedule constant")
    planned = train("planned", "--epochs 2 --schedule wsd --cooldown-epochs 1")
    files = kills.contents(trunk)
    begun: list[str] = []

    def alone(words: Sequence[str]) -> int:
        begun.append(Path(words[-1]).name)
        return 1 if len(begun) == 1 else main(words)

    monkeypatch.setattr(sweep, "alone", alone)
    endings = ["--set", "schedule=wsd epochs=3,2 cooldown-epochs=1"]
    words = ["sweep", "--trunk", str(trunk), *endings, "--run", str(tmp_path / "endings"), "--json"]
    assert main(words) == 1
    names = [f"schedule=wsd+epochs={epochs}+cooldown_epochs=1.0" for epochs in (3, 2)]
    assert begun == names
    last, failed = json.loads(capsys.readouterr().out.splitlines()[-1])["branches"]
    assert (last["name"], last["failed"], last["epochs"]) == (names[1], None, 2)
    assert (failed["name"], failed["failed"], failed["epochs"]) == (names[0], "exit code 1", 1)
    left, expected = kills.contents(tmp_path / "endings" / names[1]), kills.contents(planned)
    for contents in (left, expected):
        del contents["files"], contents["state"]["facts"]  # which tell of pictures, and of hashes
    assert kills.equal(left, expected)
    assert main(words) == 0
    assert begun == [*names, names[0]]
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["branches"]
    assert sorted(row["epochs"] for row in rows) == [2, 3]
    assert all(row["as_planned"] for row in rows)
    best = [row["best"]["top1"] for row in rows]
    assert best == sorted(best, reverse=True)
    assert kills.equal(kills.contents(trunk), files)


@pytest.mark.parametrize(
    ("trunk", "settings", "message"),
    [
        ({}, {"batch_size": 4}, r"batch_size cannot change after the start of a run; allowed: epo"),
        ({}, {"epochs": 6}, r"epochs is 6, and the trunk has been trained for 7: give more"),
        (
            {},
            {"schedule": "wsd", "cooldown_epochs": 4.0},
            r"falls from epoch 6 on, and the trunk has been trained for 7",
        ),
        (
            {"schedule": "wsd", "cooldown_epochs": 4.0},
            {"epochs": 20},
            r"the rate of the trunk has fallen from epoch 6 on",
        ),
    ],
)
def test_what_is_no_branch(trunk: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    before = {"epochs": 10, **trunk}
    state = {"epochs": 6, "so_far": {"step": 3}}
    with pytest.raises(UsageError, match=message):
        check_branch(state, TrainConfig(**before), TrainConfig(**{**before, **settings}))


@pytest.mark.parametrize(
    ("trunk", "settings", "words"),
    [
        ({"schedule": "constant"}, {"schedule": "wsd", "cooldown_epochs": 3.0, "epochs": 12}, ""),
        (
            {},
            {"epochs": 12},
            "its rate in step 2 of epoch 3 was 0.000998459 and would have been 0.000999013",
        ),
        ({}, {"mixup": 0.2}, "it changes mixup"),
        ({"plain_epochs": 2}, {"epochs": 12}, "its rate in step"),
        ({"plain_epochs": 4}, {"epochs": 12}, "its plain epochs are others"),
        (
            {"schedule": "constant"},
            {"weight_decay": 0.1},
            "its weight decay in step 1 of epoch 1 was 0.05",
        ),
        (
            {"schedule": "constant", "epochs": 7, "warmup_epochs": 4.0},
            {"epochs": 12},
            "step 1 of epoch 1",
        ),
        ({"epochs": 7, "eval_every": 5}, {"epochs": 12}, "it was evaluated after epoch 7"),
    ],
)
def test_branches_that_do_not_begin_as_their_trunk(
    trunk: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    before = {"epochs": 10, "warmup_epochs": 2.0, **trunk}
    state = {"epochs": 7, "so_far": None}
    told = otherwise(state, TrainConfig(**before), TrainConfig(**{**before, **settings}), 5)
    assert words in told
    assert bool(words) == bool(told)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("epochs", r"--set has 'epochs'; allowed: KEY=VALUE"),
        ("epoch=3", r"--set has 'epoch': did you mean 'epochs'"),
        ("epochs=many", r"--set 'epochs=many': "),
        ("", r"--set is empty"),
    ],
)
def test_settings_that_are_none(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(sweep._combinations(words))


def test_a_process_of_its_own() -> None:
    assert _launching.alone(["no-such-verb"]) == UsageError.exit_code
