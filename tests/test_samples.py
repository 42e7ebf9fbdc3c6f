"""Samples that Python has: pairs, mappings, and data sets of torchvision and Hugging Face, wrapped."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.layouts import (
    CLASSES,
    HEIGHT,
    MANY,
    TRAIN,
    VAL,
    WIDTH,
    Shot,
    coco,
    paint,
    save,
    seen,
    truth,
    write_coco,
)
from torchvision.datasets import CocoDetection, FakeData

import fleetnet
from fleetnet.data import from_samples
from fleetnet.data._contents import contents_of
from fleetnet.errors import DataError, UsageError


def given(shot: Shot) -> dict:
    """The annotations of a picture as Python has them."""
    return {
        "boxes": [box for _, *box in shot.things],
        "labels": [name for name, *_ in shot.things],
    }


def form_of_path(shot: Shot, folder: Path) -> object:
    return save(folder / f"{shot.name}.png", shot)


def form_of_text(shot: Shot, folder: Path) -> object:
    return str(save(folder / f"{shot.name}.png", shot))


def form_of_array(shot: Shot, folder: Path) -> object:
    return np.asarray(paint(shot))


def form_of_image(shot: Shot, folder: Path) -> object:
    return paint(shot)


@pytest.mark.parametrize("form", [form_of_path, form_of_text, form_of_array, form_of_image])
def test_boxes(tmp_path, form):
    samples = ({"image": form(shot, tmp_path)} | given(shot) for shot in MANY)
    split = from_samples(samples)
    assert split.classes == CLASSES
    assert seen(split) == truth(MANY)
    assert pickle.loads(pickle.dumps(split)).classes == CLASSES


def test_boxes_as_tensors_with_numbers():
    samples = [
        {
            "image": paint(shot),
            "boxes": torch.tensor([box for _, *box in shot.things]).reshape(-1, 4),
            "labels": torch.tensor([CLASSES.index(name) for name, *_ in shot.things]),
        }
        for shot in MANY
    ]
    assert seen(from_samples(samples, CLASSES)) == truth(MANY)
    assert from_samples(samples).classes == ["0", "1", "2"]


def test_masks_in_all_their_forms():
    x0, y0, x1, y1 = 8, 8, 40, 32
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[y0:y1, x0:x1] = True
    polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    samples = [
        {"image": paint(TRAIN[0]), "masks": [mask], "labels": ["car"]}
        for mask in (pixels, torch.from_numpy(pixels), polygon)
    ]
    split = from_samples(samples)
    for made in split.samples:
        (item,) = made.objects
        assert item.box == (x0, y0, x1, y1)
        assert item.segmentation is not None


def test_labels_and_maps(tmp_path):
    split = from_samples((paint(shot), shot.name[0]) for shot in MANY)
    assert split.classes == ["a", "b", "c", "d"]
    assert [sample.label for sample in split.samples] == [0, 0, 0, 0, 1, 1, 2, 3, 3]
    labels = np.zeros((HEIGHT, WIDTH), np.int64)
    labels[8:, 8:] = 1
    labels[0] = 255
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "map.png")
    maps = (labels, torch.from_numpy(labels), tmp_path / "map.png")
    split = from_samples([{"image": paint(TRAIN[0]), "map": m} for m in maps], ["sky", "road"])
    assert contents_of(split, "semantic").counts[1] == 3 * 56 * 88
    split = from_samples([{"image": paint(TRAIN[0]), "map": labels + 1}], ["sky", "road"])
    with pytest.raises(DataError, match=r"sample 0: its map has the value 256|value 2; allowed"):
        split.samples[0].semantic()


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ({"image": "a.jpg", "bbox": []}, UsageError, "sample 0 has 'bbox': did you mean 'boxes'"),
        ({"label": 1}, UsageError, "sample 0 is dict; expected a pair"),
        ({"image": paint(TRAIN[0]), "boxes": [[1, 2, 3, 4]], "labels": []}, DataError, "1 for 0 labels"),
        ({"image": paint(TRAIN[0]), "boxes": [[1, 2, 3]], "labels": [0]}, DataError, "object 0: box is"),
        ({"image": paint(TRAIN[0]), "label": 3}, DataError, "label is 3; there are 3 classes"),
        ({"image": paint(TRAIN[0]), "label": "cow"}, DataError, "no class 'cow'"),
        ({"image": paint(TRAIN[0]), "masks": [np.ones((2, 2))], "labels": [0]}, DataError, "its mask is"),
        ({"image": "nowhere.jpg", "boxes": [], "labels": []}, DataError, "no samples; skipped: sample 0"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_named(sample, error, message):
    with pytest.raises(error, match=message):
        from_samples([sample], CLASSES)


def of_coco_detection(item) -> dict:
    """A sample of an item of torchvision's CocoDetection: a picture and COCO's annotations."""
    image, rows = item
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)]
    labels = [row["category_id"] - 1 for row in rows]
    return {"image": image, "boxes": boxes, "labels": labels}


def test_torchvision(tmp_path):
    pytest.importorskip("pycocotools")
    for shot in TRAIN:
        save(tmp_path / f"{shot.name}.jpg", shot)
    write_coco(tmp_path / "x.json", coco(TRAIN))
    dataset = CocoDetection(str(tmp_path), str(tmp_path / "x.json"))
    assert seen(from_samples(dataset, CLASSES, of_coco_detection)) == truth(TRAIN)


def test_torchvision_labels():
    dataset = FakeData(6, (3, 32, 48), num_classes=3)
    split = from_samples(dataset, sample=lambda item: item)
    assert [sample.label for sample in split.samples] == [int(dataset[i][1]) for i in range(6)]
    for i, sample in enumerate(split.samples):
        assert np.array_equal(np.asarray(sample.image()), np.asarray(dataset[i][0]))


class Rows:
    """A stand-in for a data set of Hugging Face's `datasets`, which is not installed: dicts by number."""

    def __init__(self, shots) -> None:
        self.shots = shots
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.shots)

    def __getitem__(self, index: int) -> dict:
        self.asked.append(index)
        shot = self.shots[index]
        boxes = [[x0, y0, x1 - x0, y1 - y0] for _, x0, y0, x1, y1 in shot.things]
        categories = [CLASSES.index(name) for name, *_ in shot.things]
        return {
            "image_id": index,
            "image": paint(shot),
            "objects": {"bbox": boxes, "category": categories},
        }


def of_row(row: dict) -> dict:
    boxes = [(x, y, x + w, y + h) for x, y, w, h in row["objects"]["bbox"]]
    labels = row["objects"]["category"]
    return {"image": row["image"], "boxes": boxes, "labels": labels, "id": row["image_id"]}


def test_hugging_face_by_a_stand_in():
    rows = Rows(MANY)
    split = from_samples(rows, CLASSES, of_row)
    assert rows.asked == list(range(len(MANY)))  # once, and no picture is kept
    assert seen(split) == truth(MANY)
    assert rows.asked == [*range(len(MANY))] * 2
    assert [sample.id for sample in split.samples] == list(range(len(MANY)))


def test_training_from_samples(tmp_path):
    train, val = (from_samples(Rows(shots), CLASSES, of_row) for shots in (TRAIN, VAL))
    config = fleetnet.TrainConfig(model="ssd/fasternet_t0", size=64, epochs=1, batch_size=2)
    model = fleetnet.create_model("ssd/fasternet_t0", train.classes)
    best = fleetnet.fit(model, train, val, config, tmp_path / "run", report=False)
    assert best["AP"] is not None


def test_maps_of_a_data_set_are_asked_for_again(tmp_path):
    path = save(tmp_path / "a1.png", TRAIN[0])
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    split = from_samples([7], ["sky", "road"], lambda item: {"image": path, "map": labels})
    assert split.samples[0].image == path
    labels[0] = 0
    assert contents_of(split, "semantic").counts == [WIDTH, (HEIGHT - 1) * WIDTH]
