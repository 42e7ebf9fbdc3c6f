"""Whole runs on pictures of other channels than three: trained, resumed, evaluated, exported, predicted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_backbone import offer_tiny

import fleetnet
from fleetnet import checkpoint
from fleetnet.cli import main
from fleetnet.data import from_samples, load
from fleetnet.deploy.predictor import load as load_predictor
from fleetnet.errors import DataError, UsageError
from fleetnet.images import OtherChannels
from fleetnet.inputs.augment import AUTO_AUGMENT, DEFAULTS, as_input, augmentation
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.preprocess import PADDING, Preprocess
from fleetnet.weights import create_model

SIDE = 32
CLASSES = ["bright", "dark"]


def stacks(root: Path, channels: int, count: int = 4) -> Path:
    """Class folders of train and val with .npy files: one class is bright in the last channel."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(90, 110, (SIDE, SIDE + 8, channels), dtype=np.uint8)
                pixels[..., -1] += 100 * (1 - label)
                np.save(folder / f"{i}.npy", pixels)
    return root


def config(**settings: object) -> fleetnet.TrainConfig:
    usual = {"size": SIDE, "epochs": 2, "batch_size": 4, "lr": 0.01, "device": "cpu", "ema": None}
    return fleetnet.TrainConfig(**{**usual, **settings})


def test_five_channels_from_training_to_an_exported_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    offer_tiny(monkeypatch)
    data, run = stacks(tmp_path / "data", 5), tmp_path / "run"
    train, val = (load(data, split) for split in ("train", "val"))
    with pytest.raises(OtherChannels, match=r"npy'.* has 5 channels.* 3 are wanted; --channels 5"):
        fleetnet.fit(create_model("tiny", CLASSES), train, val, config(), run)
    torch.manual_seed(0)
    best = fleetnet.fit(
        create_model("tiny", CLASSES, channels=5), train, val, config(epochs=8), run, report=False
    )
    assert best["top1"] == 100
    file = tmp_path / "model.onnx"
    fleetnet.export(run, "onnx", file, embed_preprocess=True)
    pictures = sorted((data / "val").glob("*/*.npy"))
    for predictor in (load_predictor(run), load_predictor(file)):
        answers = predictor.predict(pictures, top=1)
        assert [names[0][0] for names in answers] == ["bright"] * 4 + ["dark"] * 4
        pixels = np.load(pictures[0])
        for form in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), str(pictures[0])):
            assert predictor.predict(form, top=1)[0] == answers[0]
        with pytest.raises(DataError, match="has 3 channels"):
            predictor.predict(Image.new("RGB", (SIDE, SIDE)))


def test_the_command_line_on_five_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, run = stacks(tmp_path / "data", 5, count=2), tmp_path / "run"
    words = ["train", "--model", "fasternet_t0", "--data", str(data), "--size", str(SIDE)]
    words += ["--epochs", "1", "--batch-size", "4", "--device", "cpu", "--run", str(run)]
    assert main(words) == 3
    assert (
        "5 channels (uint8 (32, 40, 5)), and 3 are wanted; --channels 5" in capsys.readouterr().err
    )
    assert main([*words, "--channels", "5"]) == 0
    trained = checkpoint.load(run)
    assert (trained.model.channels, trained.facts.settings["channels"]) == (5, 5)
    assert len(trained.preprocess.mean) == len(trained.preprocess.std) == 5
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    assert main(["eval", "--model", str(run), "--data", str(data)]) == 0
    picture = str(data / "val" / "dark" / "0.npy")
    out = tmp_path / "found"
    assert main(["predict", picture, "--model", str(run), "--out", str(out)]) == 0
    assert "dark" in (out / "predictions.json").read_text()


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "none"])
def test_every_augmentation_takes_them(name: str, channels: int):
    preprocess = Preprocess((SIDE, SIDE), mode="letterbox").for_channels(channels)
    augment = augmentation(name, preprocess, erasing=1.0, color_jitter=0.5, mosaic=1.0)
    pixels = torch.randint(0, 256, (channels, 40, 50), dtype=torch.uint8)
    targets = {"boxes": torch.tensor([[5.0, 5, 45, 35]]), "labels": torch.tensor([0])}
    if name == "classify":
        targets = {"label": torch.tensor(0)}
    elif name == "segment":
        targets = {"semantic": torch.zeros(40, 50, dtype=torch.long)}
    torch.manual_seed(0)
    for _ in range(4):
        pictures = [AnnotatedPicture(pixels, targets) for _ in range(augment.pictures)]
        image, _ = as_input(augment, preprocess, pictures)
        assert image.shape == (channels, SIDE, SIDE)
        assert image.dtype == torch.uint8
    evaluated = preprocess.pixels(pixels)
    assert (evaluated[:, 0] == PADDING).all()  # above the picture, which is wider than high


@pytest.mark.parametrize("policy", [name for name in AUTO_AUGMENT if name != "none"])
def test_policies_are_for_gray_and_colors(policy: str):
    gray = Preprocess((SIDE, SIDE)).for_channels(1)
    augment = augmentation("classify", gray, auto_augment=policy)
    pixels = torch.randint(0, 256, (1, 40, 50), dtype=torch.uint8)
    image, _ = as_input(augment, gray, [AnnotatedPicture(pixels, {"label": torch.tensor(0)})])
    assert image.shape == (1, SIDE, SIDE)
    rgba = Preprocess((SIDE, SIDE)).for_channels(4)
    with pytest.raises(UsageError, match=rf"{policy}.*allowed with 4 channels: none"):
        augmentation("classify", rgba, auto_augment=policy)


def test_a_detector_trains_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    offer_tiny(monkeypatch)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    sample = {"image": pixels, "boxes": [(4, 4, 28, 28)], "labels": [0]}
    split = from_samples([sample, sample], classes=["thing", "other"])
    model = create_model("yolo/tiny", 2, channels="rgba", options={"width": 0.1})
    settings = config(epochs=1, batch_size=2)
    best = fleetnet.fit(model, split, split, settings, tmp_path / "run")
    assert best["epoch"] == 1
    assert (tmp_path / "run" / "plots" / "samples.jpg").is_file()  # of the first three channels


def test_gray_of_colors_is_what_rgb_weights_are_for(tmp_path: Path):
    torch.manual_seed(0)
    rgb = create_model("fasternet_t0", 3).eval()
    gray = create_model("fasternet_t0", weights=rgb.state_dict(), channels="gray").eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))
    picture.save(tmp_path / "gray.png")
    preprocess = Preprocess((SIDE, SIDE))
    of_gray = preprocess.for_channels(1)
    with torch.no_grad():
        made = gray(of_gray(of_gray.read(tmp_path / "gray.png"))[None])
        expected = rgb(preprocess(preprocess.read(tmp_path / "gray.png"))[None])
    assert torch.allclose(made, expected, atol=1e-5 * float(expected.std()))


def test_a_setting_that_the_model_was_not_made_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    offer_tiny(monkeypatch)
    split = from_samples([(np.zeros((8, 8, 4), np.uint8), label) for label in CLASSES])
    model = create_model("tiny", CLASSES, channels=4)
    with pytest.raises(UsageError, match="channels is 1, but the model was made with 4"):
        fleetnet.fit(model, split, split, config(channels="gray"), tmp_path / "run")


def test_data_check_takes_the_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["data", "check", "--data", str(stacks(tmp_path / "data", 5)), "--size", str(SIDE)]
    assert main([*words, "--workers", "0", "--channels", "5"]) == 0
    assert main([*words, "--workers", "0"]) == 3
    assert "--channels 5" in capsys.readouterr().out


def test_a_sheet_of_stacks(tmp_path: Path):
    data, out = stacks(tmp_path / "data", 5, count=1), str(tmp_path / "sheet.png")
    words = ["data", "show", "--data", str(data), "--size", str(SIDE), "--out", out, "--plain"]
    assert main([*words, "--channels", "5"]) == 0
    with Image.open(out) as sheet:
        assert sheet.mode == "RGB"
