"""The file and its description are enough: an app that imports nothing of fleetnet finds what fleetnet finds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.pillow import input_by_pillow

from fleetnet.deploy.export import export
from fleetnet.deploy.package import golden_tolerance
from fleetnet.deploy.predictor import Predictor
from fleetnet.errors import ModelError
from fleetnet.images import Picture
from fleetnet.predictions import LabelMap, Labels
from fleetnet.preprocess import Preprocess
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.resizing import tensor_of
from fleetnet.tasks import build

APP = Path(__file__).with_name("app_from_sidecar.py")
SIZES = [(97, 41), (40, 131), (64, 64), (33, 35), (5, 90)]  # height, width
SMALL = {
    "maskrcnn": {"channels": 16, "hidden": 32, "proposals": 30, "anchor": 8},
    "deeplabv3": {"channels": 16},
}
FILES = {  # name -> model, preprocessing, embed_preprocess, embed_decode
    "classification": ("fasternet_t0", Preprocess((64, 48), crop=0.875), True, False),
    "ssd": ("ssd/fasternet_t0", Preprocess((64, 96), mode="stretch"), False, False),
    "yolo": ("yolo/fasternet_t0", Preprocess((64, 96), mode="letterbox"), True, False),
    "yolo-decode": ("yolo/fasternet_t0", Preprocess((64, 96), mode="letterbox"), False, True),
    "deeplabv3": ("deeplabv3/fasternet_t0", Preprocess((64, 96), mode="letterbox"), False, False),
    "deeplabv3-decode": (
        "deeplabv3/fasternet_t0",
        Preprocess((64, 96), mode="letterbox"),
        True,
        True,
    ),
    "maskrcnn": ("maskrcnn/fasternet_t0", Preprocess((64, 96), mode="letterbox"), False, False),
}
SETTINGS = [  # of preprocessing, that need no file
    {"crop": 0.875, "interpolation": "bicubic"},
    {"crop": 1.0},
    {"crop": 0.9, "antialias": False},
    {
        "mode": "stretch",
        "channel_order": "BGR",
        "antialias": False,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
    },
    {"mode": "letterbox", "interpolation": "bicubic"},
    {"mode": "letterbox", "antialias": False, "channel_order": "BGR"},
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth patterns of awkward sizes, one of them stored on its side."""
    folder, written = tmp_path_factory.mktemp("pictures"), []
    for i, (height, width) in enumerate(SIZES):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = picture.getexif()
        exif[0x0112] = 6 if i == 0 else 1
        written.append(folder / f"{i}.png")
        picture.save(written[-1], exif=exif)
    return written


@pytest.fixture(scope="module")
def answers(
    pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, list[dict]]]:
    """Each file and what the app finds in the pictures; the app runs once."""
    folder, files = tmp_path_factory.mktemp("files"), {}
    for name, (model, preprocess, embed_preprocess, embed_decode) in FILES.items():
        torch.manual_seed(0)
        network = as_if_trained(
            build(model, 4, options=SMALL.get(model.partition("/")[0])), preprocess.size
        )
        files[name] = folder / name / "model.onnx"
        export(
            network, "onnx", files[name], classes=list("abcd"), preprocess=preprocess,
            embed_preprocess=embed_preprocess, embed_decode=embed_decode, pictures=pictures[:2],
        )  # fmt: skip
    out = folder / "answers.json"
    words = [sys.executable, APP, out, *files.values(), "--", *pictures]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    return {name: (file, found[str(file)]) for name, file in files.items()}


@pytest.mark.parametrize("name", FILES)
def test_an_app_finds_the_same_from_file_and_description_alone(
    name, answers, pictures, monkeypatch
):
    def by_pillow(preprocess: Preprocess, picture: Picture) -> torch.Tensor:
        """The app's very pixels: ours may be a level apart, see the next test."""
        return tensor_of(input_by_pillow(picture.image, preprocess))

    monkeypatch.setattr(Preprocess, "pixels", by_pillow)
    file, found = answers[name]
    seen = 0
    for ours, theirs in zip(Predictor(file).predictions(pictures), found, strict=True):
        if isinstance(ours, Labels):
            np.testing.assert_allclose(theirs["scores"], ours.logits.softmax(0).numpy(), atol=1e-5)
            seen += 1
        elif isinstance(ours, LabelMap):
            assert np.array(theirs["classes"]).shape == ours.labels.shape
            assert (np.array(theirs["classes"]) == ours.labels.numpy()).mean() > 0.999
            seen += len(ours.labels.unique()) - 1
        else:
            assert theirs["labels"] == ours.labels.tolist()
            np.testing.assert_allclose(theirs["scores"], ours.scores.numpy(), atol=1e-5)
            np.testing.assert_allclose(
                np.reshape(theirs["boxes"], (-1, 4)), ours.boxes.numpy(), atol=2e-3
            )
            if ours.masks is not None:
                of_masks = ours.masks.flatten(1).sum(1).numpy()
                np.testing.assert_allclose(
                    theirs["pixels"], of_masks, atol=1 + 1e-3 * max(of_masks, default=0)
                )
            seen += len(ours.boxes)
    assert seen >= len(pictures)  # or nothing was compared


def test_an_app_prepares_pictures_as_fleetnet_does(pictures, tmp_path):
    kinds = [
        Preprocess(size, **settings)
        for settings in SETTINGS
        for size in ((64, 48), (31, 50), (60, 60))
    ]
    descriptions, out = tmp_path / "preprocessing.json", tmp_path / "inputs.npz"
    descriptions.write_text(json.dumps([kind.describe() for kind in kinds]))
    words = [sys.executable, APP, "--prepare", descriptions, out, *pictures]
    subprocess.run(list(map(str, words)), check=True, cwd=tmp_path)
    inputs = np.load(out)
    for i, kind in enumerate(kinds):
        for j, path in enumerate(pictures):
            expected = kind(kind.read(path))[None].numpy()
            # a value halfway between two whole numbers is rounded to either
            step = 1 / 255 / min(kind.std)
            apart = np.abs(inputs[f"{i}/{j}"] - expected)
            assert apart.max() < 1.01 * step, (kind, path)
            assert (apart > 1e-5).mean() < 0.05


def test_the_tolerance_of_the_golden_pair_where_the_model_finds_nothing() -> None:
    """All scores are 0: what a file finds there is bounded by itself, not by a share of nothing."""
    nothing = {
        "boxes": torch.zeros(1, 5, 4),
        "scores": torch.zeros(1, 5),
        "labels": torch.zeros(1, 5, dtype=torch.int64),
    }
    file = {**nothing, "scores": torch.tensor([[0.06, 0, 0, 0, 0]])}
    assert golden_tolerance(nothing, file, 1e-4) == pytest.approx(2 * 0.06 / 1e-3)
    constant = {"logits": torch.ones(1, 8)}
    assert golden_tolerance(constant, {"logits": torch.ones(1, 8) * 1.001}, 1e-4) < 10
    assert golden_tolerance(constant, constant, 1e-4) == 1e-4


def test_a_json_file_of_another_program_beside_a_file_that_describes_itself(tmp_path) -> None:
    torch.manual_seed(0)
    model = build("fasternet_t0", 3).eval()
    model.preprocess = Preprocess((32, 32))
    export(model, "onnx", tmp_path / "m.onnx")
    ours = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text('{"threshold": 0.5}')
    assert Predictor(tmp_path / "m.onnx").task == "classification"
    del ours["model"]
    (tmp_path / "m.json").write_text(json.dumps(ours))
    with pytest.raises(ModelError, match=r"m\.json"):
        Predictor(tmp_path / "m.onnx")
