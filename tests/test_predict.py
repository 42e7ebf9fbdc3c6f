"""A checkpoint and the file exported from it predict the same, whatever runs them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from zoo import randomize

import fleetnet
from fleetnet import checkpoint
from fleetnet.deploy.export import export
from fleetnet.deploy.predictor import Predictor, load
from fleetnet.errors import DataError, ModelError, UsageError
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import build

CLASSES = ["café", "bus", "dog"]
PREPROCESS = Preprocess(
    (64, 48), crop=0.9, mean=(0.1, 0.4, 0.5), std=(0.2, 0.3, 0.4), channel_order="BGR"
)


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (70 + 9 * i, 80, 3), np.uint8))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint, and its exported files, with and without the preprocessing inside."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    model = randomize(build("fasternet_t0", 3), seed=1).eval()
    checkpoint.save(
        folder / "best.safetensors",
        model,
        classes=CLASSES,
        preprocess=PREPROCESS,
        metrics={"top1": 1.5},
    )
    export(folder, "onnx", folder / "export" / "model.onnx", pictures=pictures(2))
    export(
        folder,
        "onnx",
        folder / "pixels.onnx",
        embed_preprocess=True,
        dynamic=True,
        pictures=pictures(1),
    )
    return folder


FILES = ["best.safetensors", "export/model.onnx", "pixels.onnx"]


@pytest.mark.parametrize("file", ["", *FILES])
def test_every_file_predicts_the_same(run: Path, file: str) -> None:
    expected = Predictor(run)
    given = load(run / file)
    assert (given.classes, given.task) == (CLASSES, "classification")
    assert given.runtime == ("onnx" if file.endswith(".onnx") else "torch")
    assert given.preprocess.size == PREPROCESS.size
    assert given.facts.metrics == {"top1": 1.5}
    images = pictures(17)  # more than a batch
    for one, other in zip(
        expected.predict(images, top=3), given.predict(images, top=3), strict=True
    ):
        assert [name for name, _ in one] == [name for name, _ in other]
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-4)
        assert sum(score for _, score in other) == pytest.approx(1)
        assert sorted(name for name, _ in other) == sorted(CLASSES)


@pytest.mark.parametrize("file", FILES)
def test_files_and_pictures_in_memory_are_the_same(run: Path, tmp_path: Path, file: str) -> None:
    gray = pictures(1)[0].convert("L")
    gray.save(tmp_path / "gray.png")
    predictor = load(run / file)
    one, other = predictor.predict([tmp_path / "gray.png", gray], top=1)
    assert one == other
    assert len(one) == 1
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.png"):
        predictor.predict([str(tmp_path / "broken.png")])
    assert predictor.predict([]) == []


@pytest.mark.parametrize("file", FILES)
def test_raw_outputs_and_evaluation(run: Path, file: str) -> None:
    predictor = load(run / file)
    batch = torch.stack([predictor.preprocess(picture) for picture in pictures(3)])
    (logits,) = predictor.raw(batch.numpy())
    assert (logits.shape, logits.dtype) == ((3, 3), np.float32)
    assert torch.equal(predictor.eval()(batch)["logits"], torch.from_numpy(logits))
    if predictor.runtime != "torch":
        with pytest.raises(ModelError, match=r"takes images of shape .*64, 48"):
            predictor.raw(np.zeros((1, 3, 32, 32), np.float32))


def test_the_sidecar_tells_the_facts(run: Path) -> None:
    about = json.loads((run / "export" / "model.json").read_text(encoding="utf-8"))
    assert about.items() >= load(run / "export" / "model.onnx").facts.to_json().items()
    assert (about["form"], about["checkpoint"], about["size"]) == (
        "deploy",
        "best.safetensors",
        [64, 48],
    )
    assert about["preprocess"] == PREPROCESS.to_dict()
    assert about["parity"]["passed"]
    assert about["parity"]["images"] == 6  # four random ones and two pictures


def test_a_model_in_memory_is_exported_too(tmp_path: Path) -> None:
    model = randomize(build("fasternet_t0", 2), seed=1)
    with pytest.raises(ModelError, match=r"call model\.eval\(\)"):
        export(model.train(), "onnx", tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="1 class names for a model of 2 classes"):
        export(model.eval(), "onnx", tmp_path / "a.onnx", classes=["a"])
    with pytest.raises(UsageError, match="no runtime 'onxx': did you mean 'onnx'"):
        export(model, "onxx", tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export(model, "onnx", tmp_path / "a.mnn")
    assert not list(tmp_path.iterdir())
    fleetnet.export(model, "onnx", tmp_path / "a.onnx", size=(40, 32), classes=["a", "b"])
    predictor = fleetnet.load(tmp_path / "a.onnx")
    assert (predictor.classes, predictor.preprocess.size) == (["a", "b"], (40, 32))


def test_onnx_files_of_others(run: Path, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(run / "export" / "model.onnx")

    def with_facts(name: str, **changes: Any) -> Path:
        (entry,) = (e for e in proto.metadata_props if e.key == "fleetnet")
        entry.value = json.dumps({**json.loads(entry.value), **changes})
        onnx.save(proto, tmp_path / name)
        return tmp_path / name

    with pytest.raises(
        ModelError, match="is of the task 'origami', which is none of: classification"
    ):
        load(with_facts("task.onnx", task="origami"))
    with pytest.raises(ModelError, match="there are 3 logits an image, but 2 class names"):
        load(with_facts("names.onnx", task="classification", classes=["a", "b"])).predict(
            pictures(1)
        )
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match="was not written by fleetnet"):
        load(tmp_path / "bare.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"nothing")
    for file in ("damaged.onnx", "missing.onnx"):
        with pytest.raises(ModelError, match=file):
            load(tmp_path / file)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder without best\.safetensors"):
        load(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"a checkpoint ends in \.safetensors"):
        load(tmp_path / "a.pth")
