"""Adding an entry is adding one file: each test lays one into a temporary folder of a table.

Nothing else of the package changes: the names are found, the parts are used, errors name them.

What `fit` takes as an object needs no file in the package at all: tests/test_training_parts.py adds
an objective (a teacher beside the model), hooks, an order of the samples and an augmentation.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fleetnet
from fleetnet import checkpoint, data, runtimes, tasks
from fleetnet.backbones import variants
from fleetnet.boxes import Limits
from fleetnet.cli import main
from fleetnet.cli._arguments import usual_classes, usual_sizes
from fleetnet.data import Split, shapes
from fleetnet.deploy.package import deliver
from fleetnet.errors import DataError, ModelError, UsageError
from fleetnet.find import names
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import difference, reparameterize
from fleetnet.training.checks import check_settings
from fleetnet.training.config import TrainConfig

ENTRIES = Path(__file__).parent / "entries"
Add = Callable[[str, str], None]


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Add]:
    """What adds an entry to a table until the end of the test."""
    added: list[tuple[str, str, str]] = []

    def to_table(folder: str, name: str) -> None:
        assert name not in names(folder)
        place = tmp_path / "added" / folder
        place.mkdir(parents=True)
        shutil.copy(ENTRIES / folder / f"{name}.py", place)
        importlib.import_module(f"fleetnet.{folder}").__path__.append(str(place))
        added.append((folder, name, str(place)))
        assert name in names(folder)

    yield to_table
    for folder, name, place in added:
        package = importlib.import_module(f"fleetnet.{folder}")
        package.__path__.remove(place)
        if sys.modules.pop(f"fleetnet.{folder}.{name}", None) is not None:
            delattr(package, name)
        assert name not in names(folder)


def test_a_backbone(add: Add, tmp_path: Path):
    add("backbones", "straight")
    assert {"straight_s", "straight_m"} <= variants("straight_*").keys()
    model = fleetnet.create_model("straight_s", classes=3, options={"bias": False}).eval()
    image = torch.randn(2, 3, 64, 64)
    logits = model(image)
    assert logits.shape == (2, 3)
    assert difference([logits], [reparameterize(model, image)(image)])[1] < 1e-4
    assert set(fleetnet.create_model("ssd/straight_m").eval()(image)) == {
        "logits",
        "boxes",
        "anchors",
    }

    again = fleetnet.create_model("straight_s", weights=model.state_dict())
    assert (again.classes, again.options) == (3, {"bias": False})
    with pytest.raises(ModelError, match="These look like straight_s weights"):
        fleetnet.load_weights(fleetnet.create_model("straight_m", classes=3), model.state_dict())

    path = tmp_path / "straight.safetensors"
    checkpoint.save(path, model, classes=["a", "b", "c"], preprocess=Preprocess((64, 64)))
    loaded = checkpoint.load(path)
    assert loaded.model.options == {"bias": False}
    assert torch.equal(loaded.model(image), logits)
    with pytest.raises(UsageError, match=r"straight_s has no option 'bais'.*bias"):
        fleetnet.create_model("straight_s", options={"bais": True})
    with pytest.raises(ModelError, match="straight_s"):
        fleetnet.create_model("straight_x")


def test_a_head_of_a_known_kind(add: Add, tmp_path: Path):
    add("tasks", "points")
    assert usual_sizes().startswith(
        "224; deeplabv3 512; maskrcnn 512; multilabel 224; points 96; ssd 320"
    )
    assert "points 6; ssd 80" in usual_classes()
    some = shapes.load("shapes:8", "train", "boxes")
    few = Split(some.samples[:4], some.classes)
    config = TrainConfig(
        size=(64, 64), batch_size=2, epochs=1, device="cpu", norm="frozen", ema=None, max_objects=5
    )
    model = tasks.build("points/fasternet_t0", len(some.classes))
    again = fleetnet.create_model("points/fasternet_t0", weights=model.state_dict())
    assert (again.classes, again.report.reinitialized) == (len(some.classes), ())
    best = fleetnet.fit(model, few, few, config, tmp_path / "run", report=False)
    assert best["images"] == 4
    assert next(iter(best)) == "AP"

    predictor = fleetnet.load(tmp_path / "run")
    assert predictor.limits == Limits(count=5, iou=0.5, score=0.05)
    predictor.show_from(0.0)
    (found,) = predictor.predict(shapes.draw_several(0))
    assert 1 <= len(found) <= 5
    assert found[0].keys() == {"label", "score", "box"}
    about = tmp_path / "run" / "model.onnx"
    done = fleetnet.export(
        tmp_path / "run",
        "onnx",
        about,
        embed_decode=True,
        limits={"score": 0.0},
        pictures=[shapes.draw_several(1)],
    )
    assert done.parity is not None
    assert done.parity.passed
    with pytest.raises(UsageError, match=r"mixup is 1\.0, but points has no use for it"):
        check_settings(TrainConfig(mixup=1.0), "points")


def test_a_loss_option_of_a_head(add: Add, tmp_path: Path):
    """It is named in the file of the head alone; what trains and what keeps models carries it."""
    add("tasks", "points")
    some = shapes.load("shapes:8", "train", "boxes")
    few = Split(some.samples[:4], some.classes)
    losses = {}
    for focus in (0.0, 2.0):
        torch.manual_seed(0)
        options = {"focus": focus}
        model = fleetnet.create_model("points/fasternet_t0", some.classes, options=options)
        config = TrainConfig(size=(64, 64), batch_size=4, epochs=1, device="cpu", ema=None)
        lines: list[dict] = []
        run = tmp_path / f"{focus:g}"
        fleetnet.fit(model, few, few, config, run, on_epoch=lines.append, report=False)
        losses[focus] = lines[0]["train"]
        assert checkpoint.load(run).model.options == options
    assert losses[2.0]["box"] == losses[0.0]["box"]
    assert 0 < losses[2.0]["class"] < losses[0.0]["class"]
    with pytest.raises(UsageError, match=r"points/fasternet_t0 has no option 'focs'.*focus"):
        fleetnet.create_model("points/fasternet_t0", options={"focs": 1.0})


def test_a_new_kind_of_task(add: Add, tmp_path: Path):
    """It predicts what no other task does: trained, drawn, exported with proof, and used by the command."""
    add("tasks", "counting")
    some = shapes.load("shapes:8", "train", "boxes")
    few = Split(some.samples[:4], some.classes)
    config = TrainConfig(size=(64, 64), batch_size=2, epochs=1, device="cpu", norm="frozen")
    model = tasks.build("counting/fasternet_t0", len(some.classes))
    run = tmp_path / "run"
    best = fleetnet.fit(model, few, few, config, run)
    assert next(iter(best)) == "exact"
    for name in ("training_batch_1.jpg", "samples.jpg"):
        assert (run / "plots" / name).stat().st_size > 0

    picture = tmp_path / "picture.png"
    shapes.draw_several(0).save(picture)
    predictor = fleetnet.load(run)
    (found,) = predictor.predictions(picture)
    assert type(found) is tasks.find("counting").PREDICTION
    assert predictor.predict(picture) == [found.present(some.classes)]

    done = fleetnet.export(run, "onnx", tmp_path / "model.onnx", pictures=[picture])
    assert done.parity is not None
    assert done.parity.passed
    (of_file,) = fleetnet.load(done.path).predictions(picture)
    torch.testing.assert_close(of_file.counts, found.counts, rtol=1e-3, atol=1e-3)

    out = tmp_path / "out"
    assert main(["predict", "--model", str(run), str(picture), "--out", str(out)]) == 0
    (result,) = json.loads((out / "predictions.json").read_text(encoding="utf-8"))["results"]
    assert result["prediction"] == found.present(some.classes)
    assert (out / "drawn" / "picture.jpg").stat().st_size > 0


def test_a_data_format(add: Add, tmp_path: Path):
    add("data", "pairs")
    root = tmp_path / "data"
    root.mkdir()
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for i in range(count):
            file = f"{split}-{i}.png"
            shapes.draw(i).save(root / file)
            lines.append(f"{file} = {'round' if i % 2 else 'square'}")
        (root / f"{split}.pairs").write_text("\n".join(lines), encoding="utf-8")
    read = data.load(str(root), "train")
    assert read.classes == ["round", "square"]
    assert [sample.label for sample in read.samples] == [1, 0, 1, 0]
    assert read.source is not None
    assert read.source.format == "pairs"
    assert len(data.load(str(root), None, "pairs").samples) == 2
    with pytest.raises(DataError, match=r"pairs, which has no boxes; formats that have: coco"):
        data.load(str(root), "train", target="boxes")
    (root / "train.pairs").write_text("train-0.png", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: 'train-0\.png' is not `file = class`"):
        data.load(str(root), "train")


def test_a_runtime(add: Add, tmp_path: Path):
    add("runtimes", "reference")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    image = torch.randn(1, 3, 8, 8)
    path = tmp_path / "model.reference"
    done = deliver(model, image, path, "reference", None)
    assert done.parity is not None
    assert done.parity.passed
    assert runtimes.by_suffix()[".reference"] == "reference"
    (logits,) = runtimes.load("reference", path)(image.numpy())
    assert torch.from_numpy(logits).allclose(model(image), atol=1e-4)
    assert runtimes.metadata("reference", path) is None
    with pytest.raises(UsageError, match="reference takes the size that a file was exported at"):
        runtimes.check_open_size("reference")
    with pytest.raises(UsageError, match=r"no runtime 'referenc'.*reference"):
        runtimes.choice("referenc")
