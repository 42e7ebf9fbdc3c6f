"""The layouts that tools and people leave annotated boxes in: each is written here and read back, to the last value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.layouts import (
    CLASSES,
    MANY,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    Shot,
    coco,
    save,
    seen,
    truth,
    voc,
    write,
    write_coco,
)

from fleetnet.data import load
from fleetnet.data._names import by_name
from fleetnet.errors import DataError

PARTS = {"train": TRAIN, "val": VAL}
ALL = {"train": TRAIN, "val": VAL, "test": TEST}
HELD_BACK = {"train": MANY[:-1], "val": MANY[-1:]}


@dataclass(frozen=True)
class Layout:
    """How a data set is written below a folder, and what is then read from what it returns."""

    write: Callable[[Path], Path]
    splits: dict[str, Sequence[Shot]]
    classes: tuple[str, ...] = tuple(CLASSES)
    said: str = ""  # among the lines of the train split
    target: str = "boxes"


LAYOUTS: dict[str, Layout] = {}


def layout(
    name: str,
    splits: dict[str, Sequence[Shot]] = PARTS,
    classes: tuple[str, ...] = tuple(CLASSES),
    said: str = "",
) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def add(writer: Callable[[Path], Path]) -> Callable[[Path], Path]:
        assert name not in LAYOUTS
        LAYOUTS[name] = Layout(writer, splits, classes, said)
        return writer

    return add


# ---- VOC


def voc_tree(root: Path, image: str, xml: str, splits=SPLITS, suffix: str = ".jpg", **of):
    for split, shots in splits.items():
        called = of.get(split, split)
        for shot in shots:
            save(root / image.format(split=called) / f"{shot.name}{suffix}", shot)
            write(root / xml.format(split=called) / f"{shot.name}.xml", voc(shot))


def voc_flat(root: Path, image: str, xml: str, **more):
    voc_tree(root, image, xml, {"all": MANY}, **more)


def voc_lists(root: Path, line: str = "{name}", **lists: Sequence[Shot]):
    for name, shots in lists.items():
        text = "".join(line.format(name=shot.name) + "\n" for shot in shots)
        write(root / f"ImageSets/Main/{name}.txt", text)


@layout("voc: as it is", ALL)
def _(root):
    voc_flat(root, "JPEGImages", "Annotations")
    voc_lists(root, train=TRAIN, val=VAL, test=TEST, trainval=(*TRAIN, *VAL))
    return root


@layout("voc: Roboflow, beside the images", ALL)
def _(root):
    voc_tree(root, "{split}", "{split}", val="valid")
    return root


@layout("voc: labelImg, beside the images", HELD_BACK)
def _(root):
    voc_flat(root, ".", ".")
    return root


@layout("voc: images and annotations", HELD_BACK)
def _(root):
    voc_flat(root, "images", "annotations", suffix=".png")
    return root


@layout("voc: images/train and annotations/train", ALL)
def _(root):
    voc_tree(root, "images/{split}", "annotations/{split}")
    return root


@layout("voc: train/images and train/annotations", ALL)
def _(root):
    voc_tree(root, "{split}/images", "{split}/annotations", train="Train", val="Val", test="Test")
    return root


@layout("voc: Label Studio, images and Annotations", HELD_BACK)
def _(root):
    voc_flat(root, "images", "Annotations")
    return root


@layout("voc: FiftyOne, data and labels", HELD_BACK)
def _(root):
    voc_flat(root, "data", "labels")
    return root


@layout("voc: Images and Annotations", HELD_BACK)
def _(root):
    voc_flat(root, "Images", "Annotations")
    return root


@layout("voc: names with folders")
def _(root):
    for split in ("train", "val"):
        for shot in SPLITS[split]:
            save(root / f"JPEGImages/{split}/{shot.name}.jpg", shot)
            text = voc(shot, f"{split}/{shot.name}.jpg")
            write(root / f"Annotations/{split}/{shot.name}.xml", text)
        voc_lists(root, f"{split}/{{name}}", **{split: SPLITS[split]})
    return root


@layout("voc: names with spaces")
def _(root):
    for split in ("train", "val"):
        for shot in SPLITS[split]:
            save(root / f"JPEGImages/picture {shot.name} 7.jpg", shot)
            write(root / f"Annotations/picture {shot.name} 7.xml", voc(shot, ""))
        voc_lists(root, "picture {name} 7", **{split: SPLITS[split]})
    return root


@layout("voc: lists of one class, with 1, 0 and -1")
def _(root):
    voc_flat(root, "JPEGImages", "Annotations")
    voc_lists(root, "{name}  1", train=TRAIN)
    voc_lists(root, "{name} -1", val=VAL)
    return root


@layout("voc: trainval and test alone", {"train": TRAIN, "val": TEST, "test": TEST})
def _(root):
    voc_flat(root, "JPEGImages", "Annotations")
    voc_lists(root, trainval=TRAIN, test=TEST)
    return root


@layout("voc: macOS's shadows", HELD_BACK)
def _(root):
    voc_flat(root, "images", "annotations")
    write(root / "annotations/._a1.xml", b"\0\5\x16\7\0\2\0\0Mac OS X")
    write(root / "images/._a1.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X")
    write(root / "__MACOSX/images/._a1.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X")
    return root


@layout("voc: encodings of their own", HELD_BACK, ("bus", "dog", "straße"))
def _(root):
    voc_flat(root, "images", "annotations")
    encodings = "iso-8859-1", "utf-16", "utf-8", "windows-1252"
    for i, shot in enumerate(MANY):
        text = voc(shot, declared=encodings[i % 4]).replace("<name>car<", "<name>straße<")
        write(root / f"annotations/{shot.name}.xml", text.encode(encodings[i % 4]))
    return root


@layout("voc: .JPG on disk, .jpg in the XML", HELD_BACK)
def _(root):
    voc_flat(root, "JPEGImages", "Annotations", suffix=".JPG")
    return root


@layout("voc: name only by stem", HELD_BACK)
def _(root):
    for shot in MANY:
        save(root / f"JPEGImages/{shot.name}.png", shot)
        write(root / f"Annotations/{shot.name}.xml", voc(shot, shot.name))
    return root


@layout("voc: the XML's name says nothing, its filename does", HELD_BACK)
def _(root):
    for i, shot in enumerate(MANY):
        save(root / f"JPEGImages/{shot.name}.jpg", shot)
        write(root / f"Annotations/{i:04}.xml", voc(shot))
    return root


@layout("voc: VOCdevkit", said="one folder")
def _(root):
    voc_flat(root / "VOCdevkit/VOC2007", "JPEGImages", "Annotations")
    voc_lists(root / "VOCdevkit/VOC2007", train=TRAIN, val=VAL)
    return root


@layout("voc: PaddleDetection's lists of pairs")
def _(root):
    voc_flat(root, "images", "annotations")
    for split in ("train", "val"):
        lines = [f"./images/{s.name}.jpg ./annotations/{s.name}.xml\n" for s in SPLITS[split]]
        write(root / f"{split}.txt", "".join(lines))
    write(root / "label_list.txt", "bus\ncar\ndog\n")
    return root


# ---- COCO


def coco_tree(
    root: Path,
    image: str = "images/{split}",
    file: str = "annotations/instances_{split}.json",
    change=None,
    splits=SPLITS,
    **of,
):
    for split, shots in splits.items():
        called = of.get(split, split)
        for shot in shots:
            save(root / image.format(split=called) / f"{shot.name}.jpg", shot)
        document = coco(shots)
        document = change(document) or document if change else document
        write_coco(root / file.format(split=called), document)


def coco_files(name: str, splits, file: str, image: str, **of):
    @layout(f"coco: {name}", splits)
    def _(root):
        coco_tree(root, image, file, splits=splits, **of)
        return root


coco_files("as it is", ALL, "annotations/instances_{split}.json", "images/{split}")
coco_files(
    "2017", PARTS, "annotations/instances_{split}.json", "{split}", train="train2017", val="val2017"
)
coco_files(
    "2017 in images",
    PARTS,
    "annotations/instances_{split}.json",
    "images/{split}",
    train="train2017",
    val="val2017",
)
coco_files(
    "CVAT with subsets",
    PARTS,
    "annotations/instances_{split}.json",
    "images/{split}",
    train="Train",
    val="Validation",
)
coco_files(
    "CVAT with subsets, images together",
    PARTS,
    "annotations/instances_{split}.json",
    "images",
    train="Train",
    val="Validation",
)
coco_files(
    "train_annotations", PARTS, "{split}_annotations.json", "images", train="train", val="val"
)
coco_files("train_coco", PARTS, "{split}_coco.json", "images/{split}")
coco_files("train_coco in annotations", PARTS, "annotations/{split}_coco.json", "{split}")
coco_files(
    "keypoints",
    PARTS,
    "annotations/person_keypoints_{split}.json",
    "{split}",
    train="train2017",
    val="val2017",
)
coco_files("Roboflow", ALL, "{split}/_annotations.coco.json", "{split}", val="valid")
coco_files(
    "JSON and images in folders of splits",
    ALL,
    "{split}/annotations.json",
    "{split}/images",
    train="Training",
    val="Validation",
    test="Testing",
)
coco_files(
    "FiftyOne in folders of splits", ALL, "{split}/labels.json", "{split}/data", val="validation"
)
coco_files("beside the JSON files", PARTS, "{split}.json", ".")

for _file, _image in (
    ("annotations/instances_default.json", "images/default"), ("annotations/instances_default.json", "images"),
    ("annotations.json", "images"), ("annotations.json", "."), ("labels.json", "data"), ("result.json", "images"),
    ("annotations/annotations.json", "JPEGImages"), ("coco.json", "imgs"), ("_annotations.coco.json", "."),
    ("dataset/annotations.json", "dataset/JPEGImages"),
):  # fmt: skip

    @layout(f"coco: {_file} with {_image}/", HELD_BACK)
    def _(root, file=_file, image=_image):
        for shot in MANY:
            save(root / image / f"{shot.name}.jpg", shot)
        write_coco(root / file, coco(MANY))
        return root


for _written in (
    "images\\{}.jpg", "..\\..\\label-studio\\media\\upload\\3\\{}.jpg", "../../x/{}.jpg", "/data/upload/7/{}.jpg",
    "https://example.org/a/b/{}.jpg?token=1", "C:\\Users\\me\\{}.jpg", "file:///home/me/{}.jpg",
    "/data/local-files/?d=set/{}.jpg",
    "./{}.jpg", "images/{}.jpg", "deep/er/{}.jpg",
):  # fmt: skip

    @layout(f"coco: file_name {_written}", HELD_BACK)
    def _(root, written=_written):
        for shot in MANY:
            save(root / "images" / f"{shot.name}.jpg", shot)
        write_coco(root / "result.json", coco(MANY, lambda shot: written.format(shot.name)))
        return root


def coco_changed(name: str, said: str = ""):
    def add(change):
        @layout(f"coco: {name}", said=said)
        def _(root):
            coco_tree(root, change=change)
            return root

    return add


@coco_changed("without sizes")
def _(document):
    for row in document["images"]:
        del row["width"], row["height"]


@coco_changed("sizes as 96.0 and as text")
def _(document):
    for row in document["images"]:
        row |= {"width": 96.0, "height": "64"}


@coco_changed("sizes null")
def _(document):
    for row in document["images"]:
        row |= {"width": None, "height": None}


@coco_changed("segmentation without bbox")
def _(document):
    for i, row in enumerate(document["annotations"]):
        row |= {"bbox": [[], [0, 0, 0, 0], None, 1][i % 4]}
        if i % 4 == 3:
            del row["bbox"]


@coco_changed("ids and numbers as text, no iscrowd, no area")
def _(document):
    for row in document["annotations"]:
        row |= {"image_id": str(row["image_id"]), "category_id": str(row["category_id"])}
        row["bbox"] = [str(value) for value in row["bbox"]]
        del row["iscrowd"], row["area"]


@coco_changed("iscrowd as text")
def _(document):
    for row in document["annotations"]:
        row["iscrowd"] = "0"


@coco_changed("polygons as pairs, as a flat list, a list of dicts")
def _(document):
    for i, row in enumerate(document["annotations"]):
        flat = row["segmentation"][0]
        pairs = [flat[j : j + 2] for j in range(0, 8, 2)]
        row["segmentation"] = [flat, pairs, [pairs]][i % 3]


@coco_changed("Roboflow's root category", said="'things'")
def _(document):
    for row in document["categories"]:
        row["supercategory"] = "things"
    document["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})


@layout("coco: val's categories in another order and with other ids")
def _(root):
    coco_tree(root, splits={"train": TRAIN})
    for shot in VAL:
        save(root / f"images/val/{shot.name}.jpg", shot)
    write_coco(
        root / "annotations/instances_val.json",
        coco(VAL, classes=["dog", "bus", "cat", "car"], first=7),
    )
    return root


@layout("coco: a file given, its folder's neighbors are the other splits", ALL)
def _(root):
    coco_tree(root, "{split}", "{split}/_annotations.coco.json", val="valid")
    return root / "train/_annotations.coco.json"


@layout("coco: instances_Train.json given", PARTS)
def _(root):
    coco_tree(root, "images", splits=PARTS, train="Train", val="Validation")
    return root / "annotations/instances_Train.json"


@layout("coco: one folder too much", said="one folder")
def _(root):
    coco_tree(root / "export 2026/streets", splits=PARTS)
    write(root / "__MACOSX/._x", b"\0")
    write(root / "README.txt", "x")
    return root


# ---- the test


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, tmp_path):
    layout = LAYOUTS[name]
    named = layout.write(tmp_path)
    splits = {split: load(str(named), split, None, layout.target) for split in layout.splits}
    train = splits["train"]
    assert train.classes == list(layout.classes)
    for split, shots in layout.splits.items():
        objects = seen(by_name(splits[split], train.classes, "train"))
        assert objects == truth(shots, "straße" if "straße" in layout.classes else "car"), split
    assert layout.said in "\n".join(train.skipped)


# ---- what is said


def test_coco_of_other_kinds_is_named(tmp_path):
    document = coco(TRAIN)
    for row, more in (
        ({"segments_info": [], "file_name": "1.png"}, "panoptic segmentation"),
        ({"caption": "a bus"}, "captions"),
    ):
        other = document | {"annotations": [{"id": 1, "image_id": 1} | row]}
        with pytest.raises(DataError, match=f"COCO's {more}, which is not read"):
            load(str(write_coco(tmp_path / "x.json", other)), "all", None, "boxes")
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    with pytest.raises(DataError, match="results of a detector"):
        load(str(write_coco(tmp_path / "x.json", results)), "all", None, "boxes")


def test_coco_annotations_without_any_place_are_counted(tmp_path):
    document = coco(MANY)
    places = [{"bbox": []}, {"bbox": [0, 0, 0, 0]}, {"bbox": None}]
    for row, place in zip(document["annotations"], places, strict=False):
        row |= {"segmentation": []} | place
    for shot in MANY:
        save(tmp_path / f"images/{shot.name}.jpg", shot)
    split = load(str(write_coco(tmp_path / "x.json", document)), "all", None, "boxes")
    assert split.annotations.lost() == 3
    assert split.annotations.dropped == {"without a box": 2, "without an area": 1}


def test_coco_images_that_are_not_there_are_counted(tmp_path):
    coco_tree(tmp_path)
    (tmp_path / "images/train/a1.jpg").unlink()
    save(tmp_path / "images/val/a1.jpg", VAL[0])  # which is no picture of train
    split = load(str(tmp_path), "train", None, "boxes")
    assert seen(split) == truth(TRAIN[1:])
    assert "1 of 4 images are not there and are left out: a1.jpg" in split.skipped[0]
    assert split.annotations.dropped == {"of pictures left out": 2}


def test_coco_names_that_could_be_two_images_are_not_guessed(tmp_path):
    """Two entries of one last name, and an entry whose last name two images have."""
    save(tmp_path / "images/x/a1.jpg", TRAIN[0])
    save(tmp_path / "images/y/a2.jpg", TRAIN[1])
    save(tmp_path / "images/z/a2.jpg", TRAIN[3])
    save(tmp_path / "images/a3.jpg", TRAIN[2])
    names = iter(["/up/1/a1.jpg", "/up/2/a1.jpg", "/up/a2.jpg", "/up/a3.jpg"])
    write_coco(tmp_path / "x.json", coco(TRAIN, lambda shot: next(names)))
    split = load(str(tmp_path / "x.json"), "all", None, "boxes")
    assert list(seen(split)) == ["a3"]


def test_coco_images_outside_of_the_data_are_never_read(tmp_path):
    for shot in MANY:
        save(tmp_path / f"private/{shot.name}.jpg", shot)
    for name in ("../private/{}.jpg", f"{tmp_path}/private/{{}}.jpg", "..\\private\\{}.jpg"):
        document = coco(MANY, lambda shot, name=name: name.format(shot.name))
        write_coco(tmp_path / "data/x.json", document)
        with pytest.raises(DataError, match=r"outside of the data|no such image"):
            load(str(tmp_path / "data"), "all", None, "boxes")


def test_voc_test_that_serves_as_val_is_said(tmp_path):
    voc_flat(tmp_path, "JPEGImages", "Annotations")
    voc_lists(tmp_path, trainval=TRAIN, test=TEST)
    assert "serves as val" in load(str(tmp_path), "val", None, "boxes").skipped[0]
    assert load(str(tmp_path), "train", None, "boxes").skipped == []


def test_voc_pictures_without_xml_and_xml_without_pictures_are_counted(tmp_path):
    voc_flat(tmp_path, "images", "annotations")
    (tmp_path / "images/a1.jpg").unlink()
    (tmp_path / "annotations/b1.xml").unlink()
    split = load(str(tmp_path), "all", None, "boxes")
    assert seen(split) == truth(shot for shot in MANY if shot.name not in ("a1", "b1"))
    assert "1 of 8 images are not there and are left out, of" in split.skipped[0]
    assert "1 pictures have no XML file and are left out: b1.jpg" in split.skipped[1]
    assert split.annotations.dropped == {"of pictures left out": 2}
