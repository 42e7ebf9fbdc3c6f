"""Figures in TensorBoard and in trackers of one's own; a tracker that fails changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker

import fleetnet
from fleetnet.cli import main
from fleetnet.errors import UsageError
from fleetnet.tasks import Model
from fleetnet.training.config import TrainConfig
from fleetnet.training.trackers import TRIES, Tracked, check_trackers

SMALL = {"size": 32, "epochs": 2, "batch_size": 8, "device": "cpu"}


def network(classes: list[str]) -> Model:
    torch.manual_seed(0)
    return fleetnet.create_model("fasternet_t0", classes)


def trained(photos: Path, run: Path, **parts: Any) -> dict[str, torch.Tensor]:
    train, val = (fleetnet.load_data(photos, split) for split in ("train", "val"))
    model = network(train.classes)
    config = TrainConfig(**{**SMALL, **parts.pop("settings", {})})
    fleetnet.fit(model, train, val, config, run, report=False, **parts)
    return model.state_dict()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) by the name of the curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_figures_of_the_log_over_steps(photos: Path, tmp_path: Path):
    words = ["train", "--model", "fasternet_t0", "--data", str(photos), "--size", "32"]
    words += ["--epochs", "2", "--batch-size", "8", "--run", str(tmp_path / "run")]
    assert main([*words, "--log", "tensorboard"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    shown = scalars(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in shown["step/loss"]] == [1, 2, 3, 4, 5, 6]
    for part, name in (("train", "loss"), ("train", "lr"), ("ema", "top1")):
        logged = [(3 * line["epoch"], line[part][name]) for line in lines]
        assert shown[f"{part}/{name}"] == [(step, pytest.approx(value)) for step, value in logged]
    resumed = ["train", "--resume", str(tmp_path / "run"), "--epochs", "3"]
    assert main(resumed) == 0
    again = scalars(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in again["ema/top1"]] == [3, 6, 9]


def test_what_was_logged_beyond_the_state_is_taken_back(photos: Path, tmp_path: Path):
    class Stopped(fleetnet.training.hooks.Hook):
        may_stop = True

        def step(self, progress: Any) -> None:
            if (progress.epoch, progress.step) == (2, 2):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(photos, tmp_path, hooks=[Stopped()], settings={"log": "tensorboard"})
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["step/loss"]] == [1, 2, 3, 4, 5]
    trained(photos, tmp_path, resume=True, settings={"log": "tensorboard"})
    steps = [step for step, _ in scalars(tmp_path / "tensorboard")["step/loss"]]
    assert steps == [1, 2, 3, 4, 5, 6]


class Kept(GeneralTracker):
    """A tracker that keeps what it gets, or raises."""

    name = "kept"
    requires_logging_directory = False
    tracker = None

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.asked = 0
        self.settings: dict[str, Any] = {}
        self.steps: list[int] = []
        self.is_finished = False

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.steps.append(step)

    def finish(self) -> None:
        self.is_finished = True


def test_a_tracker_of_ones_own_gets_settings_steps_and_epochs(photos: Path, tmp_path: Path):
    kept = Kept()
    trained(photos, tmp_path, hooks=[Tracked(kept)])
    assert kept.settings["lr"] == 0.001
    assert {type(value) for value in kept.settings.values()} <= {bool, int, float, str}
    assert kept.steps == [1, 2, 3, 3, 4, 5, 6, 6]
    assert kept.is_finished


@pytest.mark.parametrize("error", [ConnectionError("no answer"), SystemExit(1)])
def test_a_tracker_that_fails_changes_nothing_and_is_asked_no_more(
    error: BaseException, photos: Path, tmp_path: Path
):
    kept, said = Kept(error), []
    weights = trained(photos, tmp_path / "a", hooks=[Tracked(kept)], on_wait=said.append)
    usual = trained(photos, tmp_path / "b")
    assert all(torch.equal(weights[name], usual[name]) for name in usual)
    assert kept.asked == TRIES
    assert said == [f"kept failed ({type(error).__name__}: {error}); the training goes on"]


def test_trackers_that_are_not_there_are_said_before_a_folder_is_made(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    words = ["train", "--model", "fasternet_t0", "--data", str(photos), "--run", str(run)]
    assert main([*words, "--log", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'?" in capsys.readouterr().err
    assert not run.exists()
    check_trackers("tensorboard")
    with pytest.raises(UsageError, match="not installed: pip install clearml"):
        check_trackers("tensorboard, clearml")
