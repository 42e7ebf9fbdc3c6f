"""Data sets of torchvision and Hugging Face, as they are: labels at once, pictures when they are needed."""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.layouts import CLASSES, TRAIN, coco, paint, save, seen, truth, write_coco
from torch.utils.data import Subset
from torchvision.datasets import CIFAR10, CocoDetection, FakeData, Flowers102, ImageFolder

from fleetnet.data import Split, from_hugging_face, from_torchvision
from fleetnet.deploy.predictor import read_picture
from fleetnet.errors import DataError, UsageError
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.preprocess import Preprocess


@pytest.fixture
def decoded(monkeypatch) -> Iterator[list[object]]:
    """Each picture that Pillow decodes meanwhile."""
    pictures: list[object] = []
    load = Image.Image.load
    convert = Image.Image.convert

    def noted(image: Image.Image, *arguments: Any) -> Any:
        pictures.append(image)
        return convert(image, *arguments)

    monkeypatch.setattr(Image.Image, "convert", noted)
    yield pictures
    assert Image.Image.load is load


def flowers(root: Path) -> Path:
    """A small copy of the files that Flowers102 reads, with ten flowers."""
    scipy_io = pytest.importorskip("scipy.io")
    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for i in range(1, 11):
        Image.new("RGB", (20, 16), (i * 20,) * 3).save(base / f"jpg/image_{i:05d}.jpg")
    scipy_io.savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2] * 5])})
    ids = {"trnid": [[1, 2, 3, 4, 5, 6]], "valid": [[7, 8]], "tstid": [[9, 10]]}
    scipy_io.savemat(base / "setid.mat", {key: np.array(value) for key, value in ids.items()})
    return root


def labels_of(split: Split) -> list[int | None]:
    return [sample.label for sample in split.samples]


def test_image_folder_gives_its_files(photos, decoded):
    dataset = ImageFolder(str(photos / "train"))
    before = len(decoded)
    split = from_torchvision(dataset)
    assert len(decoded) - before <= 3  # a few, to see that its labels are those of its items
    assert split.classes == dataset.classes
    assert [(str(s.image), s.label) for s in split.samples] == dataset.samples
    some = from_torchvision(Subset(Subset(dataset, [5, 9, 20]), [2, 0]))
    assert [(str(s.image), s.label) for s in some.samples] == [dataset.samples[i] for i in (20, 5)]
    assert some.classes == dataset.classes
    own = ImageFolder(str(photos / "train"), loader=lambda path: Image.new("RGB", (4, 4)))
    image = from_torchvision(own).samples[0].image
    assert callable(image)
    assert image().size == (4, 4)
    turned = ImageFolder(str(photos / "train"), target_transform=lambda label: 2 - label)
    assert labels_of(from_torchvision(turned)) == [2 - label for label in dataset.targets]


def test_flowers_keep_no_pixel(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    dataset = Flowers102(str(flowers(tmp_path)), "train")
    split = from_torchvision(dataset)
    assert labels_of(split) == [0, 1, 0, 1, 0, 1]
    assert len(decoded) == 3
    split = pickle.loads(pickle.dumps(split))
    assert len(pickle.dumps(split)) < 20_000
    batches = batches_of(ImageDataset(split, Preprocess((16, 16))), 6, workers=2)
    (batch,) = list(batches)
    grays = [round(255 * float(image.mean())) for image in _plain(batch.images)]
    assert [abs(gray - 20 * i) < 4 for i, gray in enumerate(grays, 1)] == [True] * 6


def _plain(images: torch.Tensor) -> torch.Tensor:
    """Without mean and spread of ImageNet."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return images * std[:, None, None] + mean[:, None, None]


def test_arrays_and_generated_pictures():
    dataset = FakeData(6, (3, 32, 48), num_classes=3)
    split = from_torchvision(dataset)
    assert labels_of(split) == [int(dataset[i][1]) for i in range(6)]
    cifar = CIFAR10.__new__(CIFAR10)
    cifar.data = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    cifar.targets, cifar.classes = [1, 0, 1, 1], ["cat", "dog"]
    cifar.transform = cifar.target_transform = None
    split = from_torchvision(cifar)
    assert (labels_of(split), split.classes) == ([1, 0, 1, 1], ["cat", "dog"])
    image = split.samples[2].image
    assert callable(image)
    assert np.array_equal(np.asarray(image()), cifar.data[2])


def test_coco_detection_is_its_file(tmp_path, decoded):
    pytest.importorskip("pycocotools")
    for shot in TRAIN:
        save(tmp_path / f"{shot.name}.jpg", shot)
    write_coco(tmp_path / "x.json", coco(TRAIN))
    dataset = CocoDetection(str(tmp_path), str(tmp_path / "x.json"))
    before = len(decoded)
    split = from_torchvision(dataset)
    assert len(decoded) == before
    assert split.classes == CLASSES
    assert seen(split) == truth(TRAIN)
    assert [sample.id for sample in split.samples] == dataset.ids
    assert len(from_torchvision(Subset(dataset, [1])).samples) == 1


def test_coco_detection_with_ids_as_text_and_an_object_without_a_mask(tmp_path):
    pytest.importorskip("pycocotools")
    save(tmp_path / "a.jpg", TRAIN[0])
    height, width = 32, 48
    polygon = [[2, 2, 20, 2, 20, 20]]
    box = {"image_id": "7", "category_id": 1, "bbox": [2, 2, 18, 18], "iscrowd": 0, "area": 9}
    document = {
        "images": [{"id": "7", "file_name": "a.jpg", "width": width, "height": height}],
        "annotations": [{"id": 1, **box, "segmentation": polygon}, {"id": 2, **box}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(document))
    dataset = CocoDetection(str(tmp_path), str(tmp_path / "x.json"))
    (sample,) = from_torchvision(dataset).samples
    assert [item.segmentation for item in sample.objects or ()] == [polygon, None]
    dataset.ids = ["8"]
    with pytest.raises(DataError, match="no image with the id 8"):
        from_torchvision(dataset)


def test_other_targets_of_torchvision():
    picture = Image.new("RGB", (8, 6))
    maps = [(picture, Image.new("L", (8, 6), i)) for i in range(2)]
    split = from_torchvision(maps, ["sky", "road"])
    assert [int(s.semantic().max()) for s in split.samples if s.semantic] == [0, 1]
    boxes = [(picture, {"boxes": torch.tensor([[1.0, 1, 4, 4]]), "labels": torch.tensor([1])})]
    split = from_torchvision(boxes, ["sky", "road"])
    assert [item.label for item in split.samples[0].objects or ()] == [1]
    tags = from_torchvision([(picture, torch.tensor([0.0, 1.0, 1.0]))], list("abc"))
    assert tags.samples[0].tags == (1, 2)
    with pytest.raises(UsageError, match="without a transform"):
        from_torchvision([(torch.zeros(3, 4, 4), 1)])
    with pytest.raises(UsageError, match=r"VOC is read from its files"):
        from_torchvision([(picture, {"annotation": {}})])


# ---- Hugging Face: a stand-in of the parts of `datasets` that are used -------------------------


class Column:
    """A kind of column; each subclass is called as that of `datasets`."""


class Image_(Column):
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


Image_.__name__ = "Image"


class ClassLabel(Column):
    def __init__(self, names: list[str]) -> None:
        self.names = names


class Sequence(Column):
    def __init__(self, feature: object) -> None:
        self.feature = feature


class Rows:
    """Rows by number, with pictures that are decoded unless their column says otherwise."""

    def __init__(self, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self._value(name, self.rows[index][name]) for name in self.features}

    def _value(self, name: str, value: Any) -> Any:
        kind = self.features[name]
        if not isinstance(kind, Image_) or not kind.decode:
            return value
        image = Image.open(io.BytesIO(value["bytes"]))
        image.load()
        return image

    def cast_column(self, name: str, feature: object) -> "Rows":
        return Rows({**self.features, name: feature}, self.rows)

    def select_columns(self, names: list[str]) -> "Rows":
        return Rows({name: self.features[name] for name in names}, self.rows)


def stored(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "x.png"}


def rows_of_shots(form: str = "xywh") -> Rows:
    rows = []
    for i, shot in enumerate(TRAIN):
        boxes = [
            [x0, y0, x1 - x0, y1 - y0] if form == "xywh" else [x0, y0, x1, y1]
            for _, x0, y0, x1, y1 in shot.things
        ]
        categories = [CLASSES.index(name) for name, *_ in shot.things]
        rows.append(
            {
                "image_id": 10 + i,
                "image": stored(paint(shot)),
                "objects": {"bbox": boxes, "category": categories},
            }
        )
    objects = {"bbox": Sequence(None), "category": Sequence(ClassLabel(CLASSES))}
    return Rows({"image_id": Column(), "image": Image_(), "objects": objects}, rows)


def test_labels_of_hugging_face():
    pictures = [Image.new("RGB", (6, 5), (40 * i,) * 3) for i in range(4)]
    rows = [{"img": stored(picture), "label": i % 2} for i, picture in enumerate(pictures)]
    dataset = Rows({"img": Image_(), "label": ClassLabel(["cat", "dog"])}, rows)
    split = pickle.loads(pickle.dumps(from_hugging_face(dataset)))
    assert (labels_of(split), split.classes) == ([0, 1, 0, 1], ["cat", "dog"])
    for sample, picture in zip(split.samples, pictures, strict=True):
        assert np.array_equal(read_picture(sample.image()).pixels, np.asarray(picture))
    several = {**dataset.features, "coarse": ClassLabel(["x"])}
    with pytest.raises(UsageError, match="choose one with label=: label, coarse"):
        from_hugging_face(Rows(several, rows))
    assert from_hugging_face(Rows(several, rows), label="label").classes == ["cat", "dog"]
    tagged = [{"img": row["img"], "tags": [0, 1][: 1 + i % 2]} for i, row in enumerate(rows)]
    kinds = {"img": Image_(), "tags": Sequence(ClassLabel(["cat", "dog"]))}
    split = from_hugging_face(Rows(kinds, tagged))
    assert [sample.tags for sample in split.samples] == [(0,), (0, 1)] * 2
    both = [{"img": row["img"], "tags": [1, 0]} for row in rows]
    split = from_hugging_face(Rows(kinds, both))  # numbers of classes, and not 0 or 1 for each
    assert {sample.tags for sample in split.samples} == {(0, 1)}


def test_objects_and_maps_of_hugging_face(decoded):
    split = from_hugging_face(rows_of_shots())
    before = len(decoded)
    assert before == 0  # sizes are those of the heads of files
    assert split.classes == CLASSES
    assert [sample.id for sample in split.samples] == [10 + i for i in range(len(TRAIN))]
    assert seen(split) == truth(TRAIN)
    assert seen(from_hugging_face(rows_of_shots("xyxy"), boxes="xyxy")) == truth(TRAIN)
    with pytest.raises(UsageError, match="boxes is 'xyx'"):
        from_hugging_face(rows_of_shots(), boxes="xyx")
    rows = [{"image": stored(paint(TRAIN[0])), "annotation": stored(Image.new("L", (96, 64), 1))}]
    maps = from_hugging_face(Rows({"image": Image_(), "annotation": Image_()}, rows), ["a", "b"])
    assert [int(s.semantic().max()) for s in maps.samples if s.semantic] == [1]


def test_boxes_of_the_other_form_are_seen():
    rows = [
        {
            "image": stored(Image.new("RGB", (60, 60))),
            "objects": {"bbox": [[30, 30, 50, 50]] * 3, "category": [0] * 3},
        }
    ]
    objects = {"bbox": Sequence(None), "category": Sequence(ClassLabel(["a"]))}
    dataset = Rows({"image": Image_(), "objects": objects}, rows)
    with pytest.raises(DataError, match=r"3 of 3 boxes .* give boxes='xyxy'"):
        from_hugging_face(dataset)
    assert len(from_hugging_face(dataset, boxes="xyxy").samples[0].objects or ()) == 3


def test_what_is_no_data_set_of_hugging_face_is_said():
    with pytest.raises(UsageError, match=r"dict is no data set of rows.*dataset\['train'\]"):
        from_hugging_face({"train": 1})
    with pytest.raises(UsageError, match="no column of pictures; there are text"):
        from_hugging_face(Rows({"text": Column()}, []))
    with pytest.raises(UsageError, match="which column holds the labels"):
        from_hugging_face(Rows({"image": Image_(), "text": Column()}, []))


@pytest.mark.filterwarnings("ignore")  # of dill, which it hashes its tables with
def test_the_real_data_sets_of_hugging_face(tmp_path):
    """Where the library is installed: classes, and objects with boxes."""
    datasets = pytest.importorskip(
        "datasets", reason="Hugging Face's library is no dependency; a stand-in is tested above"
    )
    for shot in TRAIN:
        save(tmp_path / f"{shot.name}.png", shot)
    files = [str(tmp_path / f"{shot.name}.png") for shot in TRAIN]
    names = datasets.ClassLabel(names=CLASSES)
    features = datasets.Features({"image": datasets.Image(), "label": names})
    table = {"image": files, "label": [i % 3 for i in range(len(files))]}
    split = from_hugging_face(datasets.Dataset.from_dict(table, features=features))
    assert (labels_of(split), split.classes) == (table["label"], CLASSES)
    assert len(pickle.loads(pickle.dumps(split)).samples[0].image().size) == 2
    rows = [row["objects"] for row in rows_of_shots().rows]
    objects = {
        "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
        "category": datasets.Sequence(names),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    table = {"image": files, "objects": rows}
    split = from_hugging_face(datasets.Dataset.from_dict(table, features=features))
    assert seen(split) == truth(TRAIN)
