"""A runtime that cannot hold a network says so before the network is trained."""

import json

import pytest
import torch
from torch import nn
from zoo import image

from fleetnet.cli import main
from fleetnet.errors import ExportError
from fleetnet.find import find
from fleetnet.proof.as_if_trained import as_if_trained, pictures
from fleetnet.reparam import difference, reparameterize
from fleetnet.runtimes import Request, onnx
from fleetnet.tasks import build, named

CHECK = ["export", "--check", "--size", "64", "--classes", "3"]


# The weights


@pytest.mark.parametrize(
    "name", ["mobileone_s0", "fasternet_t0", "repvit_m0_9", "parcnet_xs", "ssd/mobileone_s0"]
)
def test_random_weights_are_as_if_trained(name):
    torch.manual_seed(0)
    model = as_if_trained(build(name, 3), (64, 64))
    assert not any(m.training for m in model.modules())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)
    assert all(
        ((p.std() > 0) & (p.abs() > 0).all()) if p.numel() > 1 else p != 0
        for p in model.parameters()
    )
    for norm in norms:
        assert (norm.weight < 0).any() or norm.num_features < 16
        assert (norm.running_var != 1).all()
    batch = image(64, 64, batch=4)
    with torch.no_grad():
        outputs, deployed = named(model(batch)), named(reparameterize(model, batch)(batch))
    # rounding stays rounding
    assert difference(list(outputs.values()), list(deployed.values()))[1] < 1e-4
    scores = outputs["logits"]
    assert scores.std(0).mean() > 0.02 * scores.std()  # and the network looks at its input


def test_batch_norms_have_the_statistics_of_the_pictures():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    as_if_trained(model, (20, 30))
    before = model[0](pictures((20, 30)))
    torch.testing.assert_close(model[1].running_mean, before.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, before.transpose(0, 1).flatten(1).var(1))


def test_the_same_seed_gives_the_same_weights_and_anchors_stay():
    models = [build("yolo/fasternet_t0", 3, options={"width": 0.25}) for _ in range(3)]
    anchors = {
        key: value.clone() for key, value in models[0].named_buffers() if key.endswith("anchors")
    }
    states = [
        as_if_trained(m, (64, 64), seed).state_dict()
        for m, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True)
    )
    assert not torch.equal(*(s["backbone.stages.0.merge.0.weight"] for s in (states[0], states[2])))
    assert anchors
    assert all(torch.equal(states[0][key], value) for key, value in anchors.items())


# The command


@pytest.mark.parametrize("name", ["fasternet_t0", "ssd/fasternet_t0"])
def test_what_a_runtime_can_hold(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*CHECK, "--model", name, "--to", "onnx", "--json"]) == 0
    out = capsys.readouterr().out
    document = json.loads(out.splitlines()[-1])
    (found,) = document["checked"]
    assert (found["runtime"], found["precision"], found["result"]) == ("onnx", "fp32", "ok")
    assert 0 < found["relative"] < found["tolerance"]
    assert document["size"] == [64, 64]
    assert not list(tmp_path.iterdir())


def test_an_operator_that_a_runtime_lacks_is_named(capsys):
    """NMS and RoIAlign, which Mask R-CNN has in its graph, are unknown to ncnn."""
    missing = find("runtimes", "ncnn").missing()
    if missing:
        pytest.skip(missing)
    small = [
        f"--options.{key}={value}"
        for key, value in {"channels": 32, "hidden": 64, "proposals": 20}.items()
    ]
    assert main([*CHECK, *small, "--model", "maskrcnn/fasternet_t0", "--to", "ncnn"]) == 5
    shown = capsys.readouterr()
    assert "torchvision.nms" in shown.out
    assert "cannot be handed over for ncnn" in shown.err
    assert "/tmp" not in shown.out


def faulty(request: Request) -> None:
    """An export in which one convolution lost its bias."""
    layer = request.model.backbone.stages[2].blocks[1].mlp[0]
    right = layer.bias.detach().clone()
    layer.bias.data.zero_()
    WRITE(request)
    layer.bias.data.copy_(right)


WRITE = onnx.export


def test_an_operator_that_computes_otherwise_is_named(monkeypatch, capsys):
    monkeypatch.setattr(onnx, "export", faulty)
    assert main([*CHECK, "--model", "fasternet_t0", "--to", "onnx"]) == 5
    shown = capsys.readouterr().out
    assert "cannot" in shown
    assert "first layer that differs is backbone.stages.2.blocks.1.mlp.0 (convolution" in shown


def test_one_that_cannot_does_not_stop_the_others(monkeypatch, capsys):
    def refuse(request: Request) -> None:
        raise ExportError(f"{request.path}: onnx has no operator for aten.frobnicate")

    monkeypatch.setattr(onnx, "export", refuse)
    assert main([*CHECK, "--model", "fasternet_t0", "--to", "onnx,pt2"]) == 5
    shown = capsys.readouterr()
    assert "onnx: model.onnx: onnx has no operator for aten.frobnicate" in shown.out
    assert "handed over for onnx: see" in shown.err
    assert [line.split()[3] for line in shown.out.splitlines() if line.startswith("│ ")] == [
        "cannot",
        "ok",
    ]


def test_what_is_not_installed(monkeypatch, capsys):
    message = "onnxruntime is not installed: pip install onnxruntime"
    monkeypatch.setattr(find("runtimes", "onnx"), "missing", lambda: message)
    assert main([*CHECK, "--model", "fasternet_t0", "--to", "onnx"]) == 5
    assert f"nothing could be tried: {message}" in capsys.readouterr().err
    assert main([*CHECK, "--model", "fasternet_t0", "--to", "onnx,pt2", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out.splitlines()[-1])["checked"]
    assert [c["result"] for c in checked] == ["not installed", "ok"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--check", "--out", "here"], "--out does not go with --check"),
        (["--check", "--explain"], "--explain does not go with --check"),
        (["--classes", "3"], "--classes is for --check"),
        (["--options.mixing", "conv"], "--options is for --check"),
        (["--check", "--options.mixin", "conv"], "did you mean 'mixing'"),
    ],
)
def test_flags_that_do_not_go_together(words, message, capsys):
    assert main(["export", "--model", "fasternet_t0", "--to", "onnx", *words]) == 2
    assert message in capsys.readouterr().err
