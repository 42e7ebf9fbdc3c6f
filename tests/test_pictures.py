"""The pictures of a run: what the network sees, samples with the truth beside what was found, the worst mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet import data
from fleetnet.cli import main, predict
from fleetnet.data import Object, Sample, Split
from fleetnet.find import names
from fleetnet.predictions import Detections, LabelMap, Labels, Prediction, Truth
from fleetnet.preprocess import Preprocess
from fleetnet.training import pictures

TASKS = {
    "classification": "fasternet_t0",
    **{t: f"{t}/fasternet_t0" for t in names("tasks") if t != "classification"},
}


def test_pictures_of_a_run_without_their_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    """Such as a copy of a run that goes on."""
    shutil.copy(run / "best.safetensors", tmp_path)
    pictures.samples(tmp_path, data.load(str(photos), "val"))
    assert (tmp_path / "plots" / "samples.jpg").is_file()


def test_a_page_shows_everything_of_a_run(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    facts = json.loads((run / "environment.json").read_text())
    for word in (
        "fasternet_t0",
        "top1",
        "F1",
        "fleetnet " + facts["versions"]["fleetnet"],
        "weight_decay",
        "32x32",
    ):
        assert word in text, word
    for caption in ("training batch", "Validation pictures", "Confusion"):
        assert caption in text, caption
    for file in ("training_batch_1.jpg", "training_batch_2.jpg", "samples.jpg"):
        with Image.open(run / "plots" / file) as picture:
            assert np.asarray(picture).std() > 10  # not blank


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"classification"}))
def test_pictures_of_every_task(task: str, tmp_path: Path) -> None:
    size = {"ssd": 96, "deeplabv3": 64}.get(task, 64)
    options = "--options.channels 16 --options.hidden 16" if task == "maskrcnn" else ""
    words = (
        f"train --model {TASKS[task]} --data shapes:16 --size {size} --batch-size 4 --epochs 1 "
        f"--augment none {options}"
    )
    assert main([*words.split(), "--run", str(tmp_path / "run")]) == 0
    plots = tmp_path / "run" / "plots"
    for file in ("training_batch_1.jpg", "samples.jpg"):
        with Image.open(plots / file) as picture:
            assert np.asarray(picture).std() > 10


def test_what_the_network_sees_is_drawn() -> None:
    """Also with channels in another order and values far from 0 to 1."""
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    )
    for order in ("RGB", "BGR"):
        preprocess = Preprocess(
            (20, 30), mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), channel_order=order
        )
        again = preprocess.picture_of(preprocess(picture))
        assert (np.asarray(again) == np.asarray(picture)).all()


def test_samples_are_of_all_classes() -> None:
    image = Path("x.png")
    many = [Sample(image, label=0)] * 500 + [Sample(image, label=1)] * 3 + [Sample(image, label=2)]
    chosen = pictures._spread(Split(many, ["a", "b", "c"]), 48)
    assert {many[i].label for i in chosen[:3]} == {0, 1, 2}
    assert len(chosen) == len(set(chosen)) == 48
    box = (0.0, 0.0, 5.0, 5.0)
    objects = [Sample(image, objects=(Object(box, 0),))] * 90 + [
        Sample(image, objects=(Object(box, 1),))
    ]
    assert 90 in pictures._spread(Split(objects, ["a", "b"]), 48)[:2]
    assert len(pictures._spread(data.load("shapes:40", "val", target="semantic"), 48)) == 10


def test_mistakes_are_counted() -> None:
    truth = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 90, 90]]),
        "labels": torch.tensor([0, 1, 0]),
        "crowd": torch.tensor([False, False, True]),
    }

    def found(*items: tuple[list[float], int, float]) -> Detections:
        boxes = torch.tensor([box for box, _, _ in items]).view(-1, 4)
        labels = torch.tensor([label for _, label, _ in items], dtype=torch.int64)
        scores = torch.tensor([score for _, _, score in items], dtype=torch.float32)
        return Detections(boxes, scores, labels)

    def count(truth: Truth, prediction: Detections, threshold: float) -> tuple[int, int]:
        return prediction.missed_and_wrong(truth, threshold)

    assert count(truth, found(), 0.3) == (2, 0)
    right = ([0.0, 0, 10, 9], 0, 0.9), ([20.0, 20, 30, 31], 1, 0.8)
    assert count(truth, found(*right), 0.3) == (0, 0)
    assert count(truth, found(*right, ([0.0, 0, 10, 10], 0, 0.5)), 0.3) == (0, 1)  # twice
    # of another class
    assert count(truth, found(right[0], ([20.0, 20, 30, 30], 0, 0.8)), 0.3) == (1, 1)
    assert count(truth, found(*right, ([55.0, 55, 60, 60], 0, 0.5)), 0.3) == (0, 0)  # in a crowd
    assert count(truth, found(*right), 0.85) == (1, 0)


def test_annotations_in_words() -> None:
    image = Image.new("RGB", (40, 30))

    def words(kind: type[Prediction], truth: Truth, classes: list[str]) -> str:
        return kind.show(image, truth, classes, 320)[1]

    mixed = {"label": torch.tensor([0.7, 0.0, 0.3])}
    assert words(Labels, mixed, ["cat", "dog", "cow"]) == "0.70 cat + 0.30 cow"
    assert words(Labels, {"label": torch.tensor(1)}, ["cat", "dog"]) == "dog"
    one = {"boxes": torch.zeros(1, 4), "labels": torch.tensor([0])}
    assert words(Detections, one, ["cat"]) == "truth: 1 object"


def test_predictions_are_judged_beside_the_truth() -> None:
    image = Image.new("RGB", (40, 30))

    sure = Labels(torch.tensor([0.0, 9.0]))
    right = sure.judge(image, {"label": torch.tensor(1)}, ["cat", "dog"], 0.3, 320)
    assert (right.captions, right.mistake) == (("dog 1.00",), 0)
    wrong = sure.judge(image, {"label": torch.tensor(0)}, ["cat", "dog"], 0.3, 320)
    assert wrong.captions == ("dog 1.00, is cat",)
    assert wrong.mistake == pytest.approx(2, abs=1e-3)

    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [20, 5, 35, 25]]), torch.tensor([0, 1])
    found = Detections(boxes[:1], torch.tensor([0.9]), labels[:1])
    judged = found.judge(image, {"boxes": boxes, "labels": labels}, ["cat", "dog"], 0.3, 320)
    assert judged.captions == ("truth: 2 objects", "1 missed, 0 wrong")
    assert judged.mistake == 1
    assert [picture.size for picture in judged.pictures] == [(320, 240)] * 2  # 8 times as large

    truth = torch.zeros(30, 40, dtype=torch.int64)
    truth[:15], truth[15:20] = 1, 255
    half = LabelMap(torch.ones(30, 40, dtype=torch.uint8))
    judged = half.judge(image, {"semantic": truth}, ["cat", "dog"], 0.3, 320)
    assert judged.captions == ("truth", "60.0% of the pixels right")
    assert judged.mistake == pytest.approx(0.4)


def test_the_sheet_of_predictions_is_of_all_classes() -> None:
    blank = Image.new("RGB", (4, 4))
    small = {
        "cat": {f"c{i}": blank for i in range(30)},
        "dog": {"d0": blank},
        "cow": {"w0": blank, "w1": blank},
    }
    chosen = list(predict._of_all_classes(small))
    assert chosen[:5] == ["c0", "d0", "w0", "c1", "w1"]
    assert len(chosen) == 24
