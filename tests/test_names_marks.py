"""Names with marks: macOS stores an umlaut as two characters, lists and tables mostly have it as one."""

import json
import unicodedata
from pathlib import Path

import pytest
from support.layouts import CLASSES, TRAIN, Shot, coco, save, seen, truth, voc, write, yolo

from fleetnet.data import load

# the form of the files on disk and that of the text which names them
FORMS = [("NFD", "NFC"), ("NFC", "NFD")]


@pytest.fixture(params=FORMS, ids=["apart on disk", "apart in the list"])
def forms(request) -> tuple[str, str]:
    return request.param


def name_of(shot: Shot, form: str) -> str:
    return unicodedata.normalize(form, f"Größe_ü_{shot.name}")


def save_all(folder: Path, form: str) -> None:
    for shot in TRAIN:
        save(folder / f"{name_of(shot, form)}.jpg", shot)


def write_boxes(root: Path, kind: str, form: str) -> None:
    """Annotations of TRAIN whose names are in a form of their own."""
    if kind == "coco":
        document = coco(TRAIN, named=lambda shot: f"{name_of(shot, form)}.jpg")
        write(root / "labels.json", json.dumps(document, ensure_ascii=False))
        return
    if kind == "yolo list":
        lines = "".join(f"images/{name_of(shot, form)}.jpg\n" for shot in TRAIN)
        write(root / "train.txt", lines)
        write(root / "data.yaml", f"train: train.txt\nval: train.txt\nnames: {list(CLASSES)}\n")
    for shot in TRAIN:
        name = name_of(shot, form)
        if kind == "voc":
            write(root / f"Annotations/{name}.xml", voc(shot, f"{name}.jpg"))
        else:
            write(root / f"labels/{name}.txt", yolo(shot))
    write(root / "classes.txt", "\n".join(CLASSES))


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "yolo list"])
def test_boxes_of_pictures_whose_names_are_in_the_other_form(tmp_path, forms, kind):
    on_disk, written = forms
    save_all(tmp_path / "images", on_disk)
    write_boxes(tmp_path, kind, written)
    split = "train" if kind == "yolo list" else "all"
    assert seen(load(str(tmp_path), split, None, "boxes")) == truth(TRAIN)


@pytest.mark.parametrize("kind", ["table", "list"])
def test_labels_of_pictures_whose_names_are_in_the_other_form(tmp_path, forms, kind):
    on_disk, written = forms
    save_all(tmp_path / "images", on_disk)
    joint, file = (",", "train.csv") if kind == "table" else (" ", "train.txt")
    rows = [f"images/{name_of(shot, written)}.jpg{joint}{i % 2}" for i, shot in enumerate(TRAIN)]
    header = ["filename,label"] if kind == "table" else []
    write(tmp_path / file, "\n".join(header + rows))
    samples = load(str(tmp_path / file), None).samples
    assert [sample.label for sample in samples] == [i % 2 for i in range(len(TRAIN))]
    assert all(Path(sample.image).is_file() for sample in samples)


def test_class_folders_in_the_other_form(tmp_path, forms):
    for split, form in zip(("train", "val"), forms, strict=True):
        for name in ("Bär", "Amsel"):
            folder = unicodedata.normalize(form, name)
            save(tmp_path / f"{split}/{folder}/{TRAIN[0].name}.jpg", TRAIN[0])
    for split in ("train", "val"):
        loaded = load(str(tmp_path), split)
        assert loaded.classes == ["Amsel", "Bär"]
        assert [sample.label for sample in loaded.samples] == [0, 1]
