"""A checkpoint builds its own model again, exactly, and is never half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from zoo import image, random_model

from fleetnet import __version__, checkpoint
from fleetnet.errors import ModelError
from fleetnet.facts import Source
from fleetnet.files import write_text
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import FORMS, form_of, reparameterize
from fleetnet.tasks import Model, build

SMALL = "fasternet_t0"
PREPROCESS = Preprocess(
    (64, 96), crop=0.9, interpolation="bicubic", mean=(0.1, 0.2, 0.3), channel_order="BGR"
)
KEYS = {
    "format", "version", "model", "task", "form", "classes", "category_ids", "size", "preprocess", "drop_path",
    "output_stride", "options", "settings", "metrics", "source",
}  # fmt: skip


def write(path: Path, model: Model, **more: Any) -> Path:
    classes = more.pop("classes", [f"class {i}" for i in range(model.classes)])
    checkpoint.save(
        path, model, classes=classes, preprocess=more.pop("preprocess", PREPROCESS), **more
    )
    return path


def edit(path: Path, **changes: Any) -> Path:
    """Change facts of a checkpoint; None removes one."""
    with safe_open(path, "pt") as file:
        about = {**json.loads(file.metadata()["fleetnet"]), **changes}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(
        state, path, {"fleetnet": json.dumps({k: v for k, v in about.items() if v is not None})}
    )
    return path


NETWORKS = {
    "fasternet": (SMALL, {}, 32, torch.float32),
    "options": (SMALL, {"mixing": "dwconv", "output_norm": True}, 16, torch.float32),
    "half": (SMALL, {}, 32, torch.float16),
    "bfloat16": (SMALL, {}, 32, torch.bfloat16),
    "branches": ("mobileone_s1", {"branches": 2}, 32, torch.float32),
    "one head": ("repvit_m0_6", {"distillation": False}, 32, torch.float32),
    "parc": ("parcnet_xs", {}, 32, torch.float32),
}


@pytest.mark.parametrize(
    ("name", "options", "output_stride", "dtype"), NETWORKS.values(), ids=NETWORKS
)
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_needs_nothing_else(
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
    output_stride: int,
    dtype: torch.dtype,
    form: str,
) -> None:
    model = random_model(name, output_stride=output_stride, options=options)
    example = image(*PREPROCESS.size, batch=1)
    model = reparameterize(model, example) if form == "deploy" else model
    model = model.to(dtype)
    again = checkpoint.load(write(tmp_path / "a.safetensors", model))
    assert again.model.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert again.model.state_dict()[key].dtype == value.dtype
        assert torch.equal(again.model.state_dict()[key], value)
    assert (form_of(again.model), again.facts.form) == (form, form)
    assert not again.model.training
    assert (again.model.options, again.model.output_stride) == (options, output_stride)
    if dtype in (torch.float32, torch.bfloat16):  # a CPU may lack the convolutions of float16
        with torch.no_grad():
            assert torch.equal(again.model(example.to(dtype)), model(example.to(dtype)))


def test_the_file_describes_itself(tmp_path: Path) -> None:
    model = build(SMALL, 3, drop_path=0.1)
    path = write(
        tmp_path / "runs" / "best.safetensors", model, classes=["café", "bus", "犬"], metrics={"top1": 93.5},
        settings={"lr": 0.1, "recipe": None}, source={"weights": "x.pth", "license": "CC0"},
    )  # fmt: skip
    about = checkpoint.read_facts(path.parent)  # a run folder means its best.safetensors
    assert about.to_json().keys() == KEYS
    assert about == checkpoint.load(path).facts
    assert (about.model, about.task, about.form) == (SMALL, "classification", "multi-branch")
    assert (about.classes, about.size) == (["café", "bus", "犬"], (64, 96))
    assert (about.version, about.format, about.drop_path) == (__version__, 1, 0.1)
    assert (about.settings, about.metrics) == ({"lr": 0.1, "recipe": None}, {"top1": 93.5})
    assert about.source == Source("x.pth", "CC0")
    loaded = checkpoint.load(path)
    assert loaded.preprocess == PREPROCESS
    assert (loaded.classes, loaded.metrics) == (about.classes, about.metrics)
    with safe_open(path, "pt") as file:  # other programs can read it
        assert file.metadata()["format"] == "pt"


def test_starting_weights_are_remembered(tmp_path: Path) -> None:
    from fleetnet.weights import create_model

    first = write(
        tmp_path / "first.safetensors",
        build(SMALL, 2),
        source={"weights": "x.pth", "license": "CC0"},
    )
    model = create_model(SMALL, weights=first)
    second = write(tmp_path / "second.safetensors", model)
    assert checkpoint.read_facts(second).source == Source(str(first), "CC0")
    assert (
        checkpoint.read_facts(write(tmp_path / "third.safetensors", build(SMALL, 2))).source is None
    )


def test_a_model_in_training_is_saved_as_it_is(tmp_path: Path) -> None:
    model = build(SMALL, 2).train()
    model(image(64, 64))
    model = model.to(memory_format=torch.channels_last)
    again = checkpoint.load(write(tmp_path / "a.safetensors", model)).model
    counter = "backbone.stages.0.merge.1.num_batches_tracked"
    assert again.state_dict()[counter] == model.state_dict()[counter] == 1
    assert model.training
    assert all(
        torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items()
    )


def test_shared_tensors_stay_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tied(*given: Any) -> Model:
        model = build(*given)
        stage = model.backbone.stages[2].blocks
        stage[1].mlp[2].weight = stage[0].mlp[2].weight
        return model

    model = tied(SMALL, 2)
    monkeypatch.setattr(checkpoint, "build", tied)
    again = checkpoint.load(write(tmp_path / "a.safetensors", model.half())).model
    first, second = (again.backbone.stages[2].blocks[i].mlp[2].weight for i in (0, 1))
    assert first is second
    assert torch.equal(first, model.backbone.stages[2].blocks[0].mlp[2].weight)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_short(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.safetensors", build(SMALL, 2))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for read in (checkpoint.load, checkpoint.read_facts):
        with pytest.raises(ModelError, match=r"a\.safetensors \(\d+ bytes\) is damaged, cut short"):
            read(path)


UNUSABLE = {
    "of a newer version": (
        {"format": 2, "version": "9.1"},
        r"by fleetnet 9\.1 \(format 2\); this is 0\.1.*upgrade",
    ),
    "without a part": ({"preprocess": None}, "its description lacks preprocess"),
    "of another task": (
        {"task": "origami"},
        "is of the task 'origami', which is none of: classification",
    ),
    "of an unknown model": ({"model": "fasternet_t9"}, "no backbone 'fasternet_t9': did you mean"),
    "of another model": (
        {"model": "fasternet_t1"},
        r"says it is fasternet_t1 in multi-branch form, but \d+ tensors",
    ),
    "of another form": ({"form": "deploy"}, "says it is fasternet_t0 in deploy form"),
    "of other classes": ({"classes": ["a", "b", "c"]}, r"tensors are missing.*head\.classifier"),
    "of another preprocessing": (
        {"preprocess": {"size": [1, 1], "resize": 5}},
        "unknown key 'resize'",
    ),
}


@pytest.mark.parametrize(("changes", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_used_says_why(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = edit(write(tmp_path / "a.safetensors", build(SMALL, 2)), **changes)
    with pytest.raises(ModelError, match=says):
        checkpoint.load(path)


def test_files_of_others(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"was not written by fleetnet, or only holds weights: .*load_weights"
    ):
        checkpoint.load(tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors", {"fleetnet": "{broken"})
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load(tmp_path / "b.safetensors")
    torch.save({}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"a checkpoint ends in \.safetensors; .*load_weights"):
        checkpoint.load(tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"no file .*did you mean 'a\.safetensors'"):
        checkpoint.load(tmp_path / "aa.safetensors")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="1 class names for a model of 2 classes"):
        write(tmp_path / "a.safetensors", build(SMALL, 2), classes=["a"])
    with pytest.raises(ModelError, match=r"ends in \.safetensors, not '\.pth'"):
        write(tmp_path / "a.pth", build(SMALL, 2))
    with pytest.raises(ModelError, match="model is a Linear; only models of create_model"):
        checkpoint.save(
            tmp_path / "a.safetensors", nn.Linear(1, 1), classes=["a"], preprocess=PREPROCESS
        )
    with pytest.raises(TypeError):
        write(tmp_path / "a.safetensors", build(SMALL, 2), settings={"lr": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = write(tmp_path / "a.safetensors", build(SMALL, 2))
    before = path.read_bytes()

    def fail(*given: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left"):
        write(path, build(SMALL, 2))
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


WRITER = """
import sys, torch
from fleetnet import checkpoint
torch.set_num_threads(1)
n = 0
while True:
    n += 1
    checkpoint.save_state(sys.argv[1], {"n": n, "values": torch.full((2_000_000,), float(n))})
    print(n, flush=True)
"""


def test_killing_the_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    written = int(process.stdout.readline())
    for pause in (0.003, 0.011, 0.024, 0.037):
        time.sleep(pause)
        process.send_signal(signal.SIGSTOP)  # in the middle of whatever it does, as a kill would be
        state = checkpoint.load_state(tmp_path)
        assert state["n"] >= written
        assert torch.equal(state["values"], torch.full((2_000_000,), float(state["n"])))
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    process.stdout.close()
    assert checkpoint.load_state(tmp_path)["n"] >= written
    checkpoint.save_state(tmp_path, {"n": 0})  # what the killed one left behind is in nobody's way
    assert checkpoint.load_state(tmp_path)["n"] == 0


def test_trainer_state_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.99))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 3, "best": None, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "name": "é",
        "random": torch.get_rng_state(), "values": (1, 2.5, True, [b"x"]), "shape": torch.Size([1, 2]),
        "ordered": OrderedDict(a=torch.zeros(2, dtype=torch.bfloat16)),
    }  # fmt: skip
    checkpoint.save_state(tmp_path / "state", state)
    again = checkpoint.load_state(tmp_path / "state")
    assert again.keys() == state.keys()
    assert (again["epoch"], again["best"], again["values"], again["name"]) == (
        3,
        None,
        state["values"],
        "é",
    )
    assert torch.equal(again["random"], state["random"])
    other = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    other.load_state_dict(again["optimizer"])
    assert other.param_groups[0]["betas"] == (0.8, 0.99)
    assert torch.equal(
        other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float64(1.5), r"state\['a'\]\[1\] is numpy\.float64"),
        (nn.ReLU(), r"state\['a'\]\[1\] is torch\.nn\.modules\.activation\.ReLU"),
        (defaultdict(int), r"state\['a'\]\[1\] is collections\.defaultdict"),
        ({Path("x"): 1}, r"a key of state\['a'\]\[1\] is pathlib"),
    ],
    ids=str,
)
def test_state_that_could_not_be_read_is_not_written(tmp_path: Path, value: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says + r".*allowed: tensors"):
        checkpoint.save_state(tmp_path / "state", {"a": [1, value]})
    assert not (tmp_path / "state").exists()


def test_trainer_state_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no trainer state in .*nothing to resume"):
        checkpoint.load_state(tmp_path)
    checkpoint.save_state(tmp_path, {"a": torch.arange(1000)})
    file = tmp_path / "trainer.pt"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ModelError, match="is damaged, cut short"):
        checkpoint.load_state(tmp_path)


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "größe\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größe\n"
    monkeypatch.setattr(os, "fsync", lambda fd: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(tmp_path / "a.txt", "other")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größe\n"
    assert len(list(tmp_path.iterdir())) == 1
