"""`fleetnet data show`: the sheet is what a training with the same settings sees first."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fleetnet.cli import main
from fleetnet.find import names

SMALL = {"deeplabv3": "64", "ssd": "96"}


def show(*words: str) -> int:
    return main(["data", "show", *words])


def test_the_sheet_is_the_first_batch_of_a_training(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fixture trains with a batch of 8 and seed 0."""
    sheet = tmp_path / "sheet.jpg"
    words = ["--data", str(photos), "--size", "32", "--count", "8", "--out", str(sheet)]
    assert show(*words, "--json") == 0
    assert sheet.read_bytes() == (run / "plots" / "training_batch_1.jpg").read_bytes()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["task"] == "classification"
    assert len(document["samples"]) == 8
    assert all((photos / name).is_file() for name in document["samples"])
    assert show(*words, "--seed", "1") == 0
    assert sheet.read_bytes() != (run / "plots" / "training_batch_1.jpg").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        "--interpolation bicubic --normalize none --channel-order BGR --repeats 2",
        "--sizes 32,64 --auto-augment randaugment",
        "--curriculum 0:64:0.2,1:32:1 --auto-augment randaugment",
    ],
)
def test_the_sheet_follows_every_setting_that_a_picture_goes_through(
    settings: str, photos: Path, tmp_path: Path
) -> None:
    words = ["--data", str(photos), "--size", "32", *settings.split()]
    run = ["--epochs", "1", "--batch-size", "8", "--model", "fasternet_t0", "--run", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["train", *words, *run]) == 0
    first = tmp_path / "run" / "plots" / "training_batch_1.jpg"
    sheet = tmp_path / "sheet.jpg"
    assert show(*words, "--count", "8", "--out", str(sheet)) == 0
    assert sheet.read_bytes() == first.read_bytes()
    assert show(*words[:4], "--count", "8", "--out", str(sheet)) == 0
    assert sheet.read_bytes() != first.read_bytes()


@pytest.mark.parametrize("task", names("tasks"))
def test_every_task_shows_its_annotations_beside_the_whole_picture(
    task: str, tmp_path: Path
) -> None:
    size = SMALL.get(task, "64")
    words = ["--data", "shapes:8", "--model", task, "--size", size, "--count", "2"]
    sizes = []
    for more in ([], ["--plain"]):
        assert show(*words, *more, "--out", str(tmp_path / "sheet.png")) == 0
        with Image.open(tmp_path / "sheet.png") as sheet:
            sizes.append(sheet.size)
            assert np.asarray(sheet).std() > 10
    assert sizes[1][0] == pytest.approx(2 * sizes[0][0], abs=10)
    assert sizes[1][1] == sizes[0][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mosaic", "0.5"], "mosaic is 0.5, but classification has no use for it"),
        (["--out", "sheet.gif"], "--out is 'sheet.gif'; allowed: a name that ends in .png"),
        (["--model", "yollo"], "no backbone 'yollo'"),
        (["--lr", "0.1"], "data show has no flag --lr"),
        (["--split", "vall"], "no split 'vall': did you mean 'val'"),
    ],
)
def test_what_is_not_read_is_refused(
    photos: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show("--data", str(photos), *words) in (2, 4)
    assert message in capsys.readouterr().err


def test_what_cannot_be_read_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    good = next(photos.glob("train/*/*.png"))
    (tmp_path / "b" / "good.png").write_bytes(good.read_bytes())
    words = ["--data", str(tmp_path), "--split", "all", "--size", "32"]
    assert show(*words, "--out", str(tmp_path / "sheet.png"), "--json") == 0
    shown = capsys.readouterr()
    assert "broken.png" in shown.err
    assert json.loads(shown.out.splitlines()[-1])["samples"] == ["b/good.png"]
