"""Any step of a run once more: inputs to the bit, and the first module that was not finite."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import benchmark
from support.tiny_backbone import offer_tiny, tiny
from torch import Tensor, nn

import fleetnet
from fleetnet import data
from fleetnet.cli import main
from fleetnet.errors import DataError, FleetnetError, UsageError
from fleetnet.tasks import Model
from fleetnet.training.config import TrainConfig
from fleetnet.training.nonfinite import Watch

campaign = benchmark("replay")
CONFIG = TrainConfig(size=(32, 32), batch_size=4, epochs=2, device="cpu", threads=1, lr=0.01)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)


files_in = campaign.files_in


@pytest.mark.parametrize("name", campaign.RUNS)
def test_replayed_inputs_are_those_of_the_step(name: str, tmp_path: Path) -> None:
    """Also of steps before the last state; one of the runs was stopped and went on."""
    outcome = campaign.Campaign(name, "tiny", 2, 12, tmp_path).replayed(2, random.Random(0))
    assert outcome["differing"] == []
    assert outcome["steps"] == 2


# What is not finite -------------------------------------------------------------------------------


class Planted(nn.Module):
    """Passes its input on, and from a call on breaks it, or the gradient of it, in one place."""

    def __init__(self, what: str, call: int = 0):
        super().__init__()
        self.what, self.call, self.calls = what, call, 0

    def forward(self, features: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.call:
            return features
        if self.what == "output":
            return torch.where(
                torch.arange(features.shape[1])[:, None, None] == 1, torch.nan, features
            )
        # sqrt has the value 0 and an infinite slope there, which times 0 is NaN
        return features + 0 * (features.detach() - features).abs().sqrt()


def planted(what: str, call: int = 0) -> Model:
    model = tiny("classification", 3)
    model.backbone.stages[2].append(Planted(what, call))
    return model


def splits(photos: Path) -> list[data.Split]:
    return [data.load(str(photos), split) for split in ("train", "val")]


@pytest.mark.parametrize("what", ["output", "gradient"])
def test_the_first_module_that_is_not_finite_is_named(what: str) -> None:
    model = planted(what)
    with Watch(model) as watch:
        model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    broken = watch.output if what == "output" else watch.gradient
    assert broken is not None
    assert (broken.module, broken.kind) == ("backbone.stages.2.3", "Planted")
    assert broken.what == ("output" if what == "output" else "gradient of its input")
    assert broken.input.is_finite
    assert broken.values.nan
    assert not broken.values.infinite
    if what == "gradient":
        assert watch.output is None
        assert f"{broken.values.nan} of" in str(broken)


def test_weights_and_losses_that_break_are_named() -> None:
    model = tiny("classification", 3)
    with torch.no_grad():
        model.backbone.stages[1][0].weight[0, 0, 0, 0] = torch.inf
    with Watch(model) as watch:
        model(torch.rand(2, 3, 32, 32))
    assert watch.output is not None
    assert (watch.output.module, watch.output.weights.infinite) == ("backbone.stages.1.0", 1)
    assert "its weights: " in str(watch.output)
    # the second layer gives what it got, so its gradients are those that the loss gives
    model = nn.Sequential(nn.Linear(4, 3), nn.Identity())
    with Watch(model) as watch:
        (model(torch.rand(2, 4)) * 0).sqrt().sum().backward()
    assert watch.gradient is not None
    assert watch.gradient.what == "gradient that the loss gives to the output"


def test_nothing_is_named_where_all_is_finite() -> None:
    model = tiny("classification", 3)
    with Watch(model) as watch:
        model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert (watch.output, watch.gradient) == (None, None)
    assert not [module for module in model.modules() if module._forward_hooks]


def test_a_run_that_broke_is_replayed_at_that_step(photos: Path, tmp_path: Path) -> None:
    """From the state of two steps before: eight calls go well, and the ninth does not."""
    train, val = splits(photos)
    run = tmp_path / "run"
    config = replace(CONFIG, epochs=3, save_every=0.0)
    with pytest.raises(FleetnetError, match=r"step 3 of epoch 2.*fleetnet\.replay\(.*3, epoch=2\)"):
        fleetnet.fit(planted("output", 8), train, val, config, run, report=False)
    again = fleetnet.replay(planted("output", 2), train, config, run, 9)
    assert again.computed is not None
    assert (again.epoch, again.step, again.computed.trained) == (2, 3, 2)
    assert again.computed.gradient_norm is None
    assert again.computed.output is not None
    assert again.computed.output.module == "backbone.stages.2.3"
    assert len(again.indices) == len(again.images) == 4


def test_the_command_that_a_broken_run_says(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A rate that is far too high, in the first epoch: the folder stays, for the command alone."""
    run = tmp_path / "run"
    words = "--model fasternet_t0 --size 32 --batch-size 4 --epochs 2 --optimizer sgd --device cpu"
    rate = "--lr 1e30 --warmup-epochs 0 --workers 0 --threads 1"
    training = f"train {words} {rate} --data {photos} --run {run}"
    assert main(training.split()) == 1
    said = capsys.readouterr().err
    (command,) = [line for line in said.splitlines() if "fleetnet replay" in line]
    command = command.partition("fleetnet replay ")[2]
    before = files_in(run)
    sheet, inputs = tmp_path / "step.png", tmp_path / "step.pt"
    files = f"--save {sheet} --inputs {inputs} --json"
    assert main(["replay", *command.split(), *files.split()]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert files_in(run) == before
    assert sheet.is_file()
    assert torch.load(inputs)["images"].shape == (4, 3, 32, 32)
    assert len(told["samples"]) == told["images"][0] == 4
    assert told["came_from"] == "the start of the run"
    assert told["output"]["module"].startswith(("backbone", "head"))
    assert told["trained"] == told["run_step"] - 1 > 0
    assert main(["replay", str(run), "--step", "4", "--only-batch", "--json"]) == 0
    batch = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (batch["epoch"], batch["step"], "loss" in batch) == (1, 4, False)


def test_steps_that_a_run_does_not_have(photos: Path, tmp_path: Path) -> None:
    train, val = splits(photos)
    run = tmp_path / "run"
    fleetnet.fit(tiny("classification", 3), train, val, CONFIG, run, report=False)
    model = tiny("classification", 3)
    with pytest.raises(UsageError, match=r"step is 13; allowed: 1 to 12, 2 epochs of 6"):
        fleetnet.replay(model, train, CONFIG, run, 13)
    with pytest.raises(UsageError, match=r"epoch is 3; allowed: 1 to 2"):
        fleetnet.replay(model, train, CONFIG, run, 1, epoch=3)
    fewer = replace(train, samples=train.samples[1:])
    with pytest.raises(DataError, match=r"not those that .* was trained on in epoch 1 .*1 gone"):
        fleetnet.replay(model, fewer, replace(CONFIG, batch_size=3), run, 1)
    other = replace(CONFIG, lr=0.02)
    again = fleetnet.replay(model, train, other, run, 2, epoch=2)
    assert again.computed is not None
    assert "loss" in again.computed.differing[0]
