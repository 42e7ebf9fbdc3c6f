"""Files written before are read as they were, and what is written now says the same, key for key.

The recordings in `tests/golden/described` were written by the commit before descriptions became a
typed value, by the functions of `tests/support/described.py`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import described
from support.described import (  # fmt: skip
    CHECKPOINTS,
    EXPORTED,
    OPTIONS_BEFORE,
    Description,
    recording,
)
from support.tiny_backbone import offer_tiny

from fleetnet import checkpoint
from fleetnet.deploy.export import facts_of
from fleetnet.deploy.predictor import Predictor, load
from fleetnet.facts import Facts
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import form_of, reparameterize
from fleetnet.sizes import Sizes
from fleetnet.tasks import build

# What depends on the day, on the machine, or on the version of a package.
OF_THE_DAY = ("version", "created", "runtime_version", "quantizer_version", "cpus", "evaluated_on")
HASHES = ("sha256", "checkpoint_sha256", "description_sha256")
FIGURES = (
    "parity", "parity_at", "drop", "agreement", "sqnr_db", "float", "int8", "macs",
    "largest_pair", "others_in_float",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone, but where a real one is recognized, for which all have to be real."""
    name = request.getfixturevalue("name")
    if name in EXPORTED or "tiny" in recording(name)["model"]:
        offer_tiny(monkeypatch)


def compared(said: Any) -> Any:
    """Of a description, what is the same on each day and machine; of the rest, that it is there."""
    if isinstance(said, list):
        return [compared(item) for item in said]
    if not isinstance(said, dict):
        return said
    left_out = OF_THE_DAY + HASHES
    compared_items = {}
    for key, value in said.items():
        if key in left_out:
            compared_items[key] = type(value).__name__
        elif key in FIGURES and key != "int8":
            compared_items[key] = sorted(value) if isinstance(value, dict) else value is None
        else:
            compared_items[key] = compared(value)
    return compared_items


# ---- what is written now


@pytest.mark.parametrize("name", [*CHECKPOINTS, *EXPORTED])
def test_what_is_written_says_the_same_as_before(name: str, tmp_path: Path) -> None:
    now, before = described.written(name, tmp_path), recording(name)
    if (
        name in described.EXPORTED
    ):  # since then a sidecar says how far a file may be from golden.npz
        assert now["beside"].pop("golden_tolerance") > 0
    if name == "onnx_int8":  # its figures are those of arithmetic that CPUs do differently
        for about in (now["beside"], before["beside"]):
            assert about["metrics"].keys() == about["int8"]["int8"].keys()
            about["metrics"] = sorted(about["metrics"])
            about["int8"] = {
                key: value for key, value in about["int8"].items() if key not in FIGURES
            }
            about["int8"]["attempts"] = [sorted(each) for each in about["int8"]["attempts"]]
    assert compared(now) == compared(before)


# ---- what was written before


def old_checkpoint(name: str, folder: Path) -> Path:
    """A file with random weights whose header is the recorded one."""
    about = recording(name)
    options = OPTIONS_BEFORE if name == "version_0_1" else about["options"]
    torch.manual_seed(1)
    model = build(
        about["model"], len(about["classes"]), about["drop_path"], about["output_stride"], options
    ).eval()
    if about["form"] == "deploy":
        model = reparameterize(model, torch.zeros(1, 3, 64, 64))
    file = folder / "best.safetensors"
    text = json.dumps(about)
    notes = {"fleetnet": text, "facts_sha256": hashlib.sha256(text.encode()).hexdigest()}
    state = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, file, notes)
    return file


def preprocess_of(about: Description) -> Preprocess:
    """Written out, so that no reader of the library is needed."""
    of_file = about["preprocess"]
    values = of_file.get("values")
    return Preprocess(
        size=(of_file["size"][0], of_file["size"][1]),
        crop=of_file["crop"],
        interpolation=of_file["interpolation"],
        mean=tuple(of_file["mean"]),
        std=tuple(of_file["std"]),
        channel_order=of_file["channel_order"],
        antialias=of_file["antialias"],
        mode=of_file.get("mode", "crop"),
        values=None if values is None else (values[0], values[1]),
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_before_is_read(name: str, tmp_path: Path) -> None:
    about = recording(name)
    loaded = checkpoint.load(old_checkpoint(name, tmp_path))
    assert (loaded.model.name, loaded.model.task) == (about["model"], about["task"])
    assert form_of(loaded.model) == about["form"]
    assert loaded.classes == about["classes"]
    assert loaded.preprocess == preprocess_of(about)
    assert loaded.metrics == about["metrics"]
    assert loaded.model.drop_path == about["drop_path"]
    assert loaded.model.output_stride == about["output_stride"]
    expected = OPTIONS_BEFORE if name == "version_0_1" else about["options"]
    assert expected.items() <= loaded.model.options.items()
    assert loaded.facts.category_ids == about.get("category_ids")
    assert loaded.facts.settings == about.get("settings", {})
    assert (loaded.facts.version, loaded.facts.format) == (about["version"], about.get("format", 0))
    source = about.get("source")
    if source is None:
        assert loaded.facts.source is None
    else:
        assert loaded.facts.source.weights == source["weights"]
        assert loaded.facts.source.license == source["license"]


LIMITS = {  # of the recorded files: count, iou, score, only
    "ssd": (50, 0.55, None, None),
    "yolo": (20, 0.6, 0.1, None),
    "onnx_detector": (10, 0.6, 0.05, (1, 2)),
    "onnx_embedded": (20, 0.6, None, None),
}


def assert_limits(predictor: Predictor, name: str) -> None:
    if name not in LIMITS:
        return
    count, iou, score, only = LIMITS[name]
    limits = predictor.limits
    assert limits is not None
    assert (limits.count, limits.iou, limits.only) == (count, iou, only)
    assert score is None or limits.score == score


@pytest.mark.parametrize("name", ["ssd", "yolo", "maskrcnn"])
def test_limits_and_score_of_a_checkpoint_of_before(name: str, tmp_path: Path) -> None:
    predictor = load(old_checkpoint(name, tmp_path))
    assert_limits(predictor, name)
    measured = recording(name)["metrics"].get("score")
    assert predictor.score == (0.3 if measured is None else measured)


def constant_network(about: Description) -> Any:
    """An ONNX network of the described inputs and outputs that computes zeros."""
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    nodes, outputs = [], []
    for output in about["outputs"]:
        kind, name = kinds[output["dtype"]], output["name"]
        shape = [side if isinstance(side, int) else 1 for side in output["shape"]]
        zeros = helper.make_tensor(f"{name}_zeros", kind, shape, [0] * int(np.prod(shape)))
        nodes.append(helper.make_node("Constant", [], [name], value=zeros))
        outputs.append(helper.make_tensor_value_info(name, kind, shape))
    (image,) = about["inputs"]
    shape = [side if isinstance(side, int) else 1 for side in image["shape"]]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, image["shape"])
    graph = helper.make_graph(nodes, "constant", [given], outputs)
    opset = [helper.make_opsetid("", about["opset"])]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def old_file(name: str, folder: Path) -> Path:
    """An ONNX file with the recorded description inside and, but for its hashes, beside it."""
    inside, beside = recording(name)["inside"], recording(name)["beside"]
    network = constant_network(beside)
    network.metadata_props.add(key="fleetnet", value=json.dumps(inside, ensure_ascii=False))
    file = folder / "model.onnx"
    file.write_bytes(network.SerializeToString())
    beside["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    del beside["description_sha256"]
    text = json.dumps(beside, sort_keys=True)
    beside["description_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.with_suffix(".json").write_text(json.dumps(beside, indent=1), encoding="utf-8")
    return file


def assert_says(facts: Facts, about: Description) -> None:
    """Each value is where it belongs, also those that nothing else in this test uses."""
    assert (facts.model, facts.form, facts.metrics) == (about["model"], "deploy", about["metrics"])
    assert facts.category_ids == about["category_ids"]
    exported = facts.exported
    assert exported is not None
    assert exported.checkpoint == about["checkpoint"]
    assert exported.checkpoint_sha256 == about["checkpoint_sha256"]
    assert exported.embedded_preprocess == about["embedded_preprocess"]
    assert exported.embedded_decode == about["embedded_decode"]
    assert exported.decode == about["decode"]
    assert exported.preprocessing == about["preprocessing"]
    assert exported.decoding == about["decoding"]
    assert [output.name for output in exported.outputs] == [o["name"] for o in about["outputs"]]
    assert [output.shape for output in exported.outputs] == [
        tuple(output["shape"]) for output in about["outputs"]
    ]
    if "sizes" not in about:
        assert exported.sizes is None
        return
    sizes = about["sizes"]
    assert exported.made_at == tuple(sizes["made_at"])
    assert exported.sizes == Sizes(sizes["step"], sizes["least"], sizes["largest"])


def assert_beside(facts: Facts, about: Description) -> None:
    """What only the description beside the file says."""
    file = facts.file
    assert file is not None
    assert (file.name, file.golden) == ("model.onnx", "golden.npz")
    assert (file.runtime, file.runtime_version) == ("onnx", about["runtime_version"])
    assert (facts.precision, file.opset) == (about["precision"], about["opset"])
    assert (file.parity, file.unverified) == (about["parity"], about["unverified"])
    assert file.parity_at == about.get("parity_at", {})
    assert file.created == about["created"]
    assert [image.dtype for image in file.inputs] == ["float32"]
    assert file.inputs[0].layout == "NCHW"
    if "int8" not in about:
        assert file.int8 is None
        return
    assert file.int8 is not None
    assert file.int8.figures == about["int8"]["int8"]
    assert file.int8.figures_of_float == about["int8"]["float"]
    assert file.int8.others["max_drop"] == about["int8"]["max_drop"]


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_file_of_before_is_read(name: str, tmp_path: Path) -> None:
    about = recording(name)["beside"]
    predictor = load(old_file(name, tmp_path))
    assert (predictor.runtime, predictor.task) == ("onnx", about["task"])
    assert predictor.classes == about["classes"]
    expected = preprocess_of(about)
    embedded = about["embedded_preprocess"]
    assert predictor.preprocess == (expected.for_pixels() if embedded else expected)
    assert_limits(predictor, name)
    if name == "onnx_detector":
        assert predictor.score_from == "the one that the file was exported with"
    if name == "onnx_embedded":
        assert predictor.score == 0.35
    assert_says(predictor.facts, about)
    assert_beside(facts_of(tmp_path / "model.onnx")[1], about)
    outputs = predictor(torch.zeros(1, 3, *about["size"]))
    assert list(outputs) == [output["name"] for output in about["outputs"]]
    if name == "onnx_open":
        assert load(old_file(name, tmp_path), size=(128, 32)).preprocess.size == (128, 32)
