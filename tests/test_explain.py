"""A fault in an exported file is found, and the layer that has it is named."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import image

from fleetnet import checkpoint, runtimes
from fleetnet.cli import main
from fleetnet.deploy.export import export
from fleetnet.deploy.package import deliver
from fleetnet.errors import ExportError, ModelError
from fleetnet.find import find, names
from fleetnet.preprocess import Preprocess
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.proof.explain import explain, explanation
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, files, onnx
from fleetnet.runtimes._guarded import Run
from fleetnet.tasks import build

FAMILIES = ("parcnet_xs", "fasternet_t0", "repvit_m0_9", "mobileone_s0")
SIZE = (64, 64)


def plant(path: Path, weight: Tensor, change: float = 10.0) -> None:
    """Change one value of a weight, wherever in the file, or the files, the values stand."""
    # some have channels last
    for values in (weight.detach().numpy(), weight.detach().movedim(1, -1).numpy()):
        at = values.size // 2
        found = values.ravel()[at : at + 4]
        places = [file for file in files(path) if file.read_bytes().count(found.tobytes()) == 1]
        if places:
            break
    assert len(places) == 1, "the file does not hold these values once"
    wrong = found.copy()
    wrong[0] += change * np.abs(values).max()
    places[0].write_bytes(places[0].read_bytes().replace(found.tobytes(), wrong.tobytes()))


def layers(deployed: nn.Module) -> list[str]:
    """Four convolutions or linear layers, from the first to the last."""
    found = [name for name, m in deployed.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [found[i * (len(found) - 1) // 3] for i in range(4)]


# Exported files, with the fault in the file


@pytest.fixture(scope="module", params=FAMILIES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    """The deploy form of a network and its ONNX file."""
    torch.manual_seed(0)
    model = as_if_trained(build(request.param, 10), SIZE)
    deployed = reparameterize(model, image(*SIZE, batch=1))
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    onnx.export(Request(deployed, image(*SIZE, batch=1), path))
    return deployed, path


@pytest.mark.parametrize("which", range(4))
def test_a_weight_changed_in_an_onnx_file_is_found(
    which: int, exported: tuple[nn.Module, Path], tmp_path: Path
):
    deployed, right = exported
    name = layers(deployed)[which]
    path = tmp_path / "model.onnx"
    path.write_bytes(right.read_bytes())
    plant(path, deployed.get_submodule(name).weight)
    found = explain(deployed, runtimes.File("onnx", path), [image(*SIZE, batch=1)], 1e-4)
    assert found.module == name
    assert found.layer.startswith(f"{name}/")
    assert found.relative > 0.01 > 1e-4 > found.inputs


def test_nothing_is_found_where_nothing_is_wrong(exported: tuple[nn.Module, Path]):
    deployed, path = exported
    assert explain(deployed, runtimes.File("onnx", path), image(*SIZE)[:, None], 1e-4) is None


def test_nodes_are_named_by_module(exported: tuple[nn.Module, Path]):
    """And nothing else is kept of what the exporter writes about them."""
    import onnx as package

    deployed, path = exported
    graph = package.load(path).graph
    called = [node.name for node in graph.node]
    assert len(set(called)) == len(called)
    modules = dict(deployed.named_modules())
    assert {name.partition("/")[0] for name in called if "/" in name} <= set(modules)
    convolutions = {name for name, m in modules.items() if isinstance(m, nn.Conv2d)}
    assert {name.removesuffix("/Conv") for name in called if "/Conv" in name} == convolutions
    assert not any(node.metadata_props for node in graph.node)
    traced = onnx.trace(path)(image(*SIZE, batch=1).numpy())
    assert [name for name in traced if ":" not in name] == called
    np.testing.assert_allclose(
        list(traced.values())[-1], onnx.load(path)(image(*SIZE, batch=1).numpy())[0], atol=1e-4
    )


class Small(nn.Module):
    """Image (N, 3, H, W) -> logits (N, 5), with a branch and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.left(x).relu() * self.right(x)
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.classifier(x.mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def example() -> Tensor:
    return image(16, 24, batch=1)


ABLE = [name for name in names("runtimes") if find("runtimes", name).trace is not None]


@pytest.fixture(scope="module", params=ABLE)
def written(
    request: pytest.FixtureRequest, small: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file of a runtime, in a folder of its name."""
    module = find("runtimes", request.param)
    if module.missing():
        pytest.skip(module.missing())
    path = tmp_path_factory.mktemp("written") / request.param / f"model{module.suffix}"
    path.parent.mkdir()
    module.export(Request(small, image(16, 24, batch=1), path))
    return path


@pytest.mark.parametrize("layer", [None, "stem", "right", "classifier"])
def test_a_weight_changed_in_a_file_of_any_runtime_is_found(
    layer, written, small, example, tmp_path
):
    runtime = written.parent.name
    path = Path(shutil.copytree(written.parent, tmp_path / "copy")) / written.name
    if layer:
        plant(path, small.get_submodule(layer).weight)
    found = explain(
        small,
        runtimes.File(runtime, path, trust=True),
        [example],
        next(iter(find("runtimes", runtime).tolerances.values())),
    )
    assert (found and found.module) == layer
    assert not found or found.layer


# What files show of themselves


Kept = dict[str, np.ndarray]


def shown(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, change: Callable[[Kept], Kept]
) -> None:
    """A runtime of which `model` is the file, and which shows what its modules put out, changed by `change`."""

    def trace(path: Path, threads: int = 1, *, trust: bool = False) -> Callable[[np.ndarray], Kept]:
        def run(batch: np.ndarray) -> Kept:
            kept: Kept = {}
            hooks = [
                m.register_forward_hook(
                    lambda m, args, out, name=name: kept.update({name: out.detach().numpy()})
                )
                for name, m in model.named_modules()
                if name
            ]
            model(torch.from_numpy(batch))
            for hook in hooks:
                hook.remove()
            return change(kept)

        return run

    def load(path: Path, threads: int = 1, *, trust: bool = False) -> Run:
        return lambda batch: [model(torch.from_numpy(batch)).detach().numpy()]

    runtime = SimpleNamespace(load=load, trace=trace, calls="file")
    monkeypatch.setattr(runtimes, "find", lambda name: runtime)


def wrong(model: nn.Module, layer: str, change: float = 3.0) -> nn.Module:
    """A copy with one changed weight."""
    faulty = copy.deepcopy(model)
    with torch.no_grad():
        faulty.get_submodule(layer).weight.flatten()[7] += change
    return faulty


CHAIN = nn.Sequential(
    nn.Conv2d(3, 16, 3),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, 2),
    nn.ReLU(),
    nn.Conv2d(32, 8, 3),
    nn.ReLU(),
    nn.Flatten(),
)


def last_channels(kept: Kept) -> Kept:
    return {
        f"l{name}": np.moveaxis(value, 1, -1) if value.ndim == 4 else value
        for name, value in kept.items()
    }


def rounded(kept: Kept) -> Kept:
    """To a thousandth, which is up to 4e-3 of the spread."""
    return {k: v * (1 + 1e-3 * np.sign(np.sin(1e4 * v))) for k, v in kept.items()}


ALLOWED = {"rounded": 1e-2, "rounded more than allowed": 2e-3}
SHOWN: dict[str, Callable[[Kept], Kept]] = {
    "every layer": lambda kept: kept,
    "no convolution, merged with its ReLU": lambda kept: {
        k: v for k, v in kept.items() if k in "1356"
    },
    "channels last": last_channels,
    "no dimension of the batch": lambda kept: {k: v[0] for k, v in kept.items()},
    "rounded": rounded,
    "rounded more than allowed": rounded,
    "the output alone": lambda kept: {"6": kept["6"]},
}


@pytest.mark.parametrize("layer", ["0", "2", "4"])
@pytest.mark.parametrize("how", SHOWN)
def test_layers_are_paired_by_value(
    how: str, layer: str, example: Tensor, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model = CHAIN.eval()
    shown(monkeypatch, wrong(model, layer), SHOWN[how])
    found = explain(model, runtimes.File("any", Path()), [example], ALLOWED.get(how, 1e-4))
    if how == "the output alone":  # all that can be said is where the way to the output begins
        assert (found.module, found.operator) == ("0", "convolution")
    else:
        assert found.module == layer
        assert found.operator == "convolution"


def test_rounding_everywhere_is_nobodys_fault(example: Tensor, monkeypatch: pytest.MonkeyPatch):
    shown(monkeypatch, CHAIN.eval(), SHOWN["rounded"])
    assert explain(CHAIN, runtimes.File("any", Path()), [example], 1e-2) is None
    assert "No layer stands out" in explanation(
        CHAIN, runtimes.File("any", Path()), [example], 1e-2
    )


def test_an_operator_without_weights_is_found(example: Tensor, monkeypatch: pytest.MonkeyPatch):
    """A runtime whose GELU is the approximation by tanh."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 1), nn.GELU(), nn.Flatten()
    ).eval()
    other = nn.Sequential(model[0], nn.GELU("tanh"), model[2], nn.GELU("tanh"), model[4])
    shown(monkeypatch, other, lambda kept: kept)
    found = explain(model, runtimes.File("any", Path()), [example], 1e-4)
    assert (found.module, found.operator, found.layer) == ("1", "gelu", "1")


def test_the_branch_with_the_fault_is_found(
    example: Tensor, small: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    for layer in ("left", "right", "gate"):
        shown(monkeypatch, wrong(small, layer), lambda kept: kept)
        assert explain(small, runtimes.File("any", Path()), [example], 1e-4).module == layer


def test_the_example_that_differs_most_is_looked_at(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    """Zeros go through a changed first weight unchanged."""
    shown(monkeypatch, wrong(small, "stem"), lambda kept: kept)
    zeros = torch.zeros(1, 3, 16, 24)
    assert explain(small, runtimes.File("any", Path()), [zeros], 1e-4) is None
    assert (
        explain(
            small, runtimes.File("any", Path()), [zeros, image(16, 24, batch=1), zeros], 1e-4
        ).module
        == "stem"
    )


def test_values_that_are_none_are_a_difference(
    example: Tensor, small: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    shown(monkeypatch, wrong(small, "right", float("nan")), lambda kept: kept)
    assert explain(small, runtimes.File("any", Path()), [example], 1e-4).module == "right"


def test_a_runtime_that_shows_nothing(
    example: Tensor, small: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runtimes, "find", lambda name: SimpleNamespace(trace=None))
    with pytest.raises(ExportError, match="tflite cannot show what its layers put out"):
        explain(small, runtimes.File("tflite", Path()), [example], 1e-4)
    said = explanation(small, runtimes.File("tflite", Path()), [example], 1e-4)
    assert (
        said == "The layer that differs cannot be named: tflite cannot show what its layers put out"
    )


def test_a_file_that_does_not_run_layer_by_layer_keeps_its_own_error(
    example: Tensor, small: nn.Module, monkeypatch
):
    def trace(path: Path, threads: int = 1, *, trust: bool = False) -> None:
        raise ModelError("ncnn cannot compute 'x'.")

    shown(monkeypatch, small, lambda kept: kept)
    monkeypatch.setattr(runtimes.find("ncnn"), "trace", trace)
    said = explanation(small, runtimes.File("ncnn", Path()), [example], 1e-4)
    assert said == "The layer that differs cannot be named: ncnn cannot compute 'x'"


# Where users meet it


def test_a_file_that_is_not_handed_over_is_explained(small, example, tmp_path, monkeypatch):
    write = onnx.export

    def faulty(request: Request) -> None:
        write(request)
        plant(request.path, request.model.right.weight)

    monkeypatch.setattr(onnx, "export", faulty)
    with pytest.raises(
        ExportError,
        match=r"not written.*another opset\. The first layer that differs is right \(conv.*'right/Conv'",
    ):
        deliver(small, example, tmp_path / "model.onnx", "onnx", None, explain=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module]:
    """A checkpoint of a detector, its file with boxes chosen inside, taking pixels, and the deploy form."""
    folder = tmp_path_factory.mktemp("delivered")
    torch.manual_seed(0)
    model = as_if_trained(build("ssd/fasternet_t0", 3), SIZE)
    preprocess = Preprocess(SIZE, mode="stretch", channel_order="BGR")
    checkpoint.save(
        folder / "best.safetensors", model, classes=list("abc"), preprocess=preprocess, metrics={}
    )
    done = export(folder, "onnx", folder / "model.onnx", embed_preprocess=True, embed_decode=True)
    return folder, done.path, reparameterize(model, image(*SIZE, batch=1))


def test_verify_at_the_command_line(delivered, capsys):
    folder, path, _ = delivered
    assert main(["verify", str(path), "--model", str(folder), "--json"]) == 0
    out = capsys.readouterr()
    document = json.loads(out.out.splitlines()[-1])
    assert document["passed"]
    assert document["runtime"] == "onnx"
    assert document["agreement"]["boxes"] > 20
    assert "another checkpoint" not in out.err
    assert main(["verify", str(path), "--model", str(folder), "--data", "shapes:20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] > document["images"]


def test_verify_names_the_layer_of_a_detector(delivered, tmp_path, capsys):
    folder, right, deployed = delivered
    for name in ("model.json", "golden.npz", "model.onnx"):
        (tmp_path / name).write_bytes((right.parent / name).read_bytes())
    path, layer = tmp_path / "model.onnx", "backbone.stages.2.blocks.3.mlp.0"
    about = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(
        json.dumps({k: v for k, v in about.items() if "sha256" not in k})
    )
    plant(path, deployed.get_submodule(layer).weight, change=100)
    assert main(["verify", str(path), "--model", str(folder)]) == 5
    error = capsys.readouterr().err
    assert "does not compute what the model computes" in error
    assert "first layer" not in error
    assert main(["verify", str(path), "--model", str(folder), "--explain"]) == 5
    assert (
        f"{layer} (convolution, in the file 'model.model.{layer}/Conv')" in capsys.readouterr().err
    )
    assert path.exists()  # somebody else's file


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["model.onnx"], 2, "--model is missing; example: fleetnet verify"),
        (["--model", "{folder}"], 2, "the file is missing"),
        (["{folder}/nothing.onnx", "--model", "{folder}"], 4, "nothing.onnx"),
        (["{folder}/best.safetensors", "--model", "{folder}"], 4, "no exported file"),
    ],
)
def test_verify_says_what_is_missing(words, code, message, delivered, capsys):
    assert main(["verify", *(word.format(folder=delivered[0]) for word in words)]) == code
    assert message in capsys.readouterr().err


def test_verify_notes_another_checkpoint(delivered, tmp_path, capsys):
    folder, path, _ = delivered
    loaded = checkpoint.load(folder)
    with torch.no_grad():
        loaded.model.backbone.stages[0].merge[0].weight.add_(0.1)
    other = tmp_path / "other.safetensors"
    checkpoint.save(
        other, loaded.model, classes=list("abc"), preprocess=loaded.preprocess, metrics={}
    )
    assert main(["verify", str(path), "--model", str(other)]) == 5
    assert "was made from another checkpoint" in capsys.readouterr().err
