"""What shows that moving code changed nothing sees what did change, and nothing else."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import same_runs

NAME = "classifier"  # the quickest run
Twice = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def twice() -> Twice:
    """What came of one of the runs, and of the same run again."""
    return same_runs.record(NAME), same_runs.record(NAME)


def test_a_run_comes_out_the_same_again(twice: Twice) -> None:
    first, second = twice
    assert same_runs.differences(first, second) == []
    paths = dict(same_runs.items(first))
    for path in (
        "log/epoch 3/train/loss",
        "log/epoch 3/ema/top1",
        "best/epoch",
        "checkpoints/last.safetensors/sha256",
        "checkpoints/ema.safetensors/sha256",
        "checkpoints/best.safetensors/facts/settings/mixup",
        "checkpoints/best.safetensors/facts/metrics/top1",
        "outputs/logits/sha256",
        "sidecar/preprocess/mode",
        "files/state/trainer.pt",
    ):
        assert path in paths
    assert not [path for path in paths if path.endswith(("seconds", "created"))]


def change(recorded: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split("/")
    for parent in parents:
        recorded = recorded[parent]
    assert recorded[key] != value
    recorded[key] = value


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints/last.safetensors/sha256",
        "checkpoints/ema.safetensors/tensors/backbone.stages.0.blocks.0.mlp.0.0.weight",
        "checkpoints/best.safetensors/facts/settings/lr",
        "log/epoch 2/train/loss",
        "outputs/logits/sha256",
        "outputs/logits/values",
        "files/best.json",
    ],
)
def test_what_was_changed_is_named(path: str, twice: Twice) -> None:
    before = copy.deepcopy(twice[0])
    change(before, path, "other")
    (line,) = same_runs.differences(before, twice[1])
    assert line.startswith(f'{path}: "other" -> ')


def test_items_that_come_and_go_are_named() -> None:
    before = {"log": {"epoch 1": {"loss": 1.0, "lr": float("nan")}}}
    after = {"log": {"epoch 1": {"lr": float("nan"), "images": 8}}}
    assert same_runs.differences(before, after) == [
        "log/epoch 1/loss: 1.0 -> (absent)",
        "log/epoch 1/images: (absent) -> 8",
    ]


@pytest.fixture
def recording(twice: Twice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that `record` wrote of one run; no command trains, each takes what came of the run."""
    trained = {NAME: twice[1]}
    monkeypatch.setattr(same_runs, "record", trained.__getitem__)
    file = tmp_path / "folder" / "before.json"
    assert same_runs.main(["record", str(file), NAME]) == 0
    return file


def test_compare_says_same(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert same_runs.main(["compare", str(recording)]) == 0
    assert f"{NAME}: same (" in capsys.readouterr().out


def test_compare_fails_at_a_hash(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(recording.read_text())
    change(document, f"runs/{NAME}/checkpoints/last.safetensors/sha256", "0" * 64)
    change(document, "environment/torch", "1.0")
    recording.write_text(json.dumps(document))
    assert same_runs.main(["compare", str(recording)]) == 1
    said = capsys.readouterr().out
    assert "which by itself may change bits:\n  torch: " in said
    assert f"{NAME}: 1 of " in said
    assert f'  checkpoints/last.safetensors/sha256: "{"0" * 64}" -> ' in said


def test_compare_without_the_run(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        same_runs.main(["compare", str(recording), "ssd"])
    assert f"no run ssd; allowed: {NAME}" in capsys.readouterr().err


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(SystemExit, match=r"(?s)--data is missing.*ended with 2 instead of 0"):
        same_runs.fleetnet("train --model fasternet_t0")


class Trainer:
    """A command line whose `train` writes a log of three epochs and says so after each."""

    def __init__(self, log: Path, heeds_ctrl_c: bool) -> None:
        self.log = log
        self.heeds_ctrl_c = heeds_ctrl_c
        self.verbs: list[list[str]] = []
        self.logged: list[int] = []  # epochs in the log at the end of each command

    def __call__(self, words: list[str]) -> int:
        self.verbs.append(words[:2])
        code = 0
        while code == 0 and len(same_runs.lines_of(self.log)) < 3:
            with self.log.open("a") as file:
                file.write("{}\n")
            try:
                print("an epoch", file=sys.stderr)
            except KeyboardInterrupt:
                code = 130 if self.heeds_ctrl_c else 0
        self.logged.append(len(same_runs.lines_of(self.log)))
        return code


def test_a_run_is_interrupted_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tmp_path / "log.jsonl", heeds_ctrl_c=True)
    monkeypatch.setattr("fleetnet.cli.main", trainer)
    same_runs.train(same_runs.RUNS["resumed"], tmp_path)
    assert trainer.verbs == [["train", "--model"], ["train", "--resume"]]
    assert trainer.logged == [1, 3]


def test_a_run_that_cannot_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tmp_path / "log.jsonl", heeds_ctrl_c=False)
    monkeypatch.setattr("fleetnet.cli.main", trainer)
    with pytest.raises(SystemExit, match="ended with 0 instead of 130"):
        same_runs.train(same_runs.RUNS["resumed"], tmp_path)
