"""Training by torch.compile: the same training, of which nothing stays in the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_backbone import offer_tiny

from fleetnet import TrainConfig, load_data
from fleetnet.errors import UsageError
from fleetnet.tasks import build
from fleetnet.training import checks, memory, replay, setup
from fleetnet.training.fit import fit

SIZE = 32
SETTINGS: dict[str, Any] = {
    "model": "tiny", "data": "shapes:8", "size": SIZE, "epochs": 2, "batch_size": 4,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made and run by torch's operators: to compile them to code takes minutes."""
    monkeypatch.setattr(setup, "COMPILER", "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def trained(run: Path, **settings: object) -> dict[str, torch.Tensor]:
    """The weights after two epochs of a few pictures."""
    torch.set_num_threads(1)
    train, val = (load_data("shapes:8", split) for split in ("train", "val"))
    torch.manual_seed(0)
    network = build("tiny", len(train.classes))
    config = TrainConfig(**SETTINGS, **settings)
    fit(network, train, val, config, run, report=False)
    fresh = build("tiny", len(train.classes))
    fresh.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, SIZE, SIZE)
    # without autocast, whose bfloat16 would be a thousand times as far
    torch.testing.assert_close(network.eval()(image), fresh.eval()(image), rtol=1e-5, atol=1e-6)
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_training_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    offer_tiny(monkeypatch)
    usual = trained(tmp_path / "usual", precision=precision)
    assert not torch._dynamo.utils.counters["stats"]
    compiled = trained(tmp_path / "compiled", precision=precision, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert compiled.keys() == usual.keys()
    for name, value in usual.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_compiled_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)
    whole = trained(tmp_path / "whole", compile=True)
    run = tmp_path / "stopped"

    def stop(line: object) -> None:
        raise KeyboardInterrupt

    train, val = (load_data("shapes:8", split) for split in ("train", "val"))
    config = TrainConfig(**SETTINGS, compile=True)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        fit(build("tiny", len(train.classes)), train, val, config, run, report=False, on_epoch=stop)
    network = build("tiny", len(train.classes))
    fit(network, train, val, config, run, report=False, resume=True)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6, msg=name)


def test_without_a_compiler_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler"):
        checks.check_device(TrainConfig(device="cpu", compile=True))
    checks.check_device(TrainConfig(device="cpu"))


def test_a_step_that_is_replayed_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within compiled code no module would be found to be the first that is not finite."""
    offer_tiny(monkeypatch)
    trained(tmp_path / "run", compile=True)
    computed = replay._Seen.computed

    def broken(self: Any, **arguments: object) -> object:
        with torch.no_grad():
            self.learner.model.backbone.stages[1][0].weight[0, 0, 0, 0] = torch.inf
        return computed(self, **arguments)

    monkeypatch.setattr(replay._Seen, "computed", broken)
    train = load_data("shapes:8", "train")
    config = TrainConfig(**SETTINGS, compile=True)
    torch.manual_seed(0)
    again = replay.replay(build("tiny", len(train.classes)), train, config, tmp_path / "run", 2)
    assert again.computed.output.module == "backbone.stages.1.0"


def test_how_many_images_fit_is_found_without_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size that is tried would take minutes."""
    offer_tiny(monkeypatch)
    train = load_data("shapes:8", "train")
    config = TrainConfig(**SETTINGS, compile=True)
    model = build("tiny", len(train.classes))
    accelerator = setup.accelerator_of(config)
    preprocess = setup.preprocess_of(model, train, config)
    order = setup.order_of(config, train)
    memory._step_of(config, model, train, preprocess, accelerator, None, order)(4)
    assert not torch._dynamo.utils.counters["stats"]
