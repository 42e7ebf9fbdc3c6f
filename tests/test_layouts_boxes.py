"""The layouts that tools and people leave annotated boxes in: each is written here and read back, to the last value."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
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
    yolo,
)

import fleetnet
from fleetnet.cli import main
from fleetnet.cli._data import Reading, pictures_of
from fleetnet.data import load
from fleetnet.data._contents import contents_of
from fleetnet.data._names import by_name
from fleetnet.data._record import record, to_measure
from fleetnet.errors import DataError, UsageError
from fleetnet.measure.tune import judge_of

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


# ---- YOLO


def yolo_tree(root: Path, image: str = "images/{split}", label: str = "labels/{split}", **of):
    """Pictures and their lines in folders by split; `of` names the splits otherwise."""
    for split, shots in SPLITS.items():
        called = of.get(split, split)
        for shot in shots:
            save(root / image.format(split=called) / f"{shot.name}.jpg", shot)
            write(root / label.format(split=called) / f"{shot.name}.txt", yolo(shot))


def yolo_flat(root: Path, image: str = "images", label: str = "labels", shots=MANY):
    for shot in shots:
        save(root / image / f"{shot.name}.jpg", shot)
        write(root / label / f"{shot.name}.txt", yolo(shot))


NAMES = "names: ['bus', 'car', 'dog']\n"


@layout("yolo: Roboflow", ALL)
def _(root):
    yolo_tree(root, "{split}/images", "{split}/labels", val="valid")
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\n"
    write(root / "data.yaml", yaml + NAMES)
    write(root / "README.roboflow.txt", "exported")
    return root


@layout("yolo: names as a map with text as keys, nc as text", ALL)
def _(root):
    yolo_tree(root, "{split}/images", "{split}/labels", val="valid")
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: '3'\n"
    write(root / "data.yaml", yaml + "names:\n  '0': bus\n  '1': car\n  '2': dog\n")
    return root / "data.yaml"


@layout("yolo: Roboflow's download")
def _(root):
    yolo_tree(root / "Streets-1", "{split}/images", "{split}/labels", val="valid")
    yaml = "train: Streets-1/train/images\nval: Streets-1/valid/images\n"
    write(root / "Streets-1/data.yaml", yaml + NAMES)
    return root / "Streets-1"


@layout("yolo: path is absolute, the yaml elsewhere", ALL)
def _(root):
    yolo_tree(root / "data sets/x")
    yaml = f"path: {root}/data sets/x\ntrain: images/train\nval: images/val\ntest: images/test\n"
    return write(root / "yaml/x.yaml", yaml + NAMES)


@layout("yolo: path leads up and down, the yaml elsewhere")
def _(root):
    yolo_tree(root / "datasets/x")
    yaml = "path: ../datasets/x\ntrain: images/train\nval: images/val\n"
    return write(root / "code/x.yml", yaml + NAMES)


@layout("yolo: absolute folders without a path")
def _(root):
    yolo_tree(root / "images/x")  # a folder called images above the data
    yaml = f"train: {root}/images/x/images/train\nval: {root}/images/x/images/val\n"
    return write(root / "code/x.yaml", yaml + NAMES)


@layout("yolo: path is the name of the yaml's own folder")
def _(root):
    yolo_tree(root / "streets")
    yaml = "path: streets\ntrain: images/train\nval: images/val\n"
    write(root / "streets/data.yaml", yaml + NAMES)
    return root / "streets"


@layout("yolo: path as seen from another machine")
def _(root):
    yolo_tree(root / "streets")
    yaml = "path: /home/somebody/datasets/streets\ntrain: images/train\nval: images/val\n"
    write(root / "streets/data.yaml", yaml + NAMES)
    return root / "streets"


@layout("yolo: the folder through a link")
def _(root):
    yolo_tree(root / "disk/streets")
    write(
        root / "disk/streets/data.yaml",
        f"path: {root}/disk/streets\ntrain: images/train\nval: images/val\n{NAMES}",
    )
    (root / "link").symlink_to(root / "disk/streets")
    return root / "link"


@layout("yolo: Label Studio, without yaml", HELD_BACK)
def _(root):
    yolo_flat(root)
    write(root / "classes.txt", "bus\ncar\ndog\n")
    write(root / "notes.json", '{"categories": [], "info": {"year": 2026}}')
    return root


@layout("yolo: folders of splits and classes.txt, without yaml", ALL)
def _(root):
    yolo_tree(root)
    write(root / "classes.txt", "bus\ncar\ndog")
    return root


@layout("yolo: splits above images and labels, without yaml", ALL)
def _(root):
    yolo_tree(root, "{split}/images", "{split}/labels", train="Train", val="Valid", test="Test")
    write(root / "classes.txt", "bus\ncar\ndog")
    return root


@layout("yolo: FiftyOne's dataset.yaml", PARTS)
def _(root):
    yolo_tree(root)
    write(
        root / "dataset.yaml",
        "names: {0: bus, 1: car, 2: dog}\npath: .\ntrain: ./images/train/\nval: ./images/val/\n",
    )
    return root


@layout("yolo: data.yml", PARTS)
def _(root):
    yolo_tree(root)
    write(root / "data.yml", f"train: images/train\nval: images/val\n{NAMES}")
    return root


@layout("yolo: a yaml of any name beside another one", PARTS)
def _(root):
    yolo_tree(root)
    write(root / "streets.yaml", f"train: images/train\nval: images/val\n{NAMES}")
    write(root / "hyp.yaml", "lr0: 0.01\n")
    return root


@layout("yolo: CVAT, train alone, with a list", HELD_BACK)
def _(root):
    yolo_flat(root, "images/train", "labels/train")
    write(root / "data.yaml", "path: .\ntrain: train.txt\nnames:\n  0: bus\n  1: car\n  2: dog\n")
    write(root / "train.txt", "".join(f"data/images/train/{s.name}.jpg\n" for s in MANY))
    return root


@layout("yolo: lists with ./ and Windows' line ends", PARTS)
def _(root):
    yolo_tree(root)
    for split in ("train", "val"):
        lines = "".join(f"./images/{split}/{s.name}.jpg\r\n" for s in SPLITS[split])
        write(root / f"{split}.txt", lines)
    write(root / "data.yaml", f"train: train.txt\nval: val.txt\n{NAMES}")
    return root


@layout("yolo: CVAT YOLO 1.1", HELD_BACK)
def _(root):
    yolo_flat(root, "obj_train_data", "obj_train_data")
    write(root / "obj.names", "bus\ncar\ndog\n")
    write(
        root / "obj.data",
        "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    write(root / "train.txt", "".join(f"data/obj_train_data/{s.name}.jpg\n" for s in MANY))
    return root


@layout("yolo: darknet, given as obj.data", PARTS)
def _(root):
    for split in ("train", "valid"):
        shots = SPLITS["val" if split == "valid" else split]
        yolo_flat(root, f"obj_{split}_data", f"obj_{split}_data", shots)
        write(
            root / f"{split}.txt", "".join(f"data/obj_{split}_data/{s.name}.jpg\n" for s in shots)
        )
    write(root / "obj.names", "bus\ncar\ndog\n")
    text = "classes=3\ntrain=data/train.txt\nvalid=data/valid.txt\nnames=data/obj.names\n"
    return write(root / "obj.data", text)


@layout("yolo: labels beside the images", HELD_BACK)
def _(root):
    yolo_flat(root, ".", ".")
    write(root / "classes.txt", "bus\ncar\ndog\n")
    return root


@layout("yolo: labels beside the images in one folder below", HELD_BACK)
def _(root):
    yolo_flat(root, "images", "images")
    write(root / "classes.txt", "bus\ncar\ndog\n")
    return root


@layout("yolo: labels beside the images in folders of splits", ALL)
def _(root):
    yolo_tree(root, "{split}", "{split}", val="valid")
    write(root / "train/classes.txt", "bus\ncar\ndog\n")
    return root


@layout("yolo: boxes and polygons mixed, BOM, tabs, CRLF", PARTS)
def _(root):
    yolo_tree(root)
    write(root / "labels/train/a1.txt", "\ufeff" + yolo(TRAIN[0]).replace(" ", "\t"))
    write(root / "labels/train/a2.txt", yolo(TRAIN[1], form="polygon").replace("\n", "\r\n"))
    lines = [yolo(TRAIN[3], form=form).split("\n") for form in ("box", "obb", "polygon")]
    write(root / "labels/train/a4.txt", "\n".join(line[i] for i, line in enumerate(lines)))
    write(root / "data.yaml", f"train: images/train\nval: images/val\n{NAMES}")
    return root


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


# ---- other names and places of the same kinds


@layout("yolo: Train/Images and Train/Labels", ALL)
def _(root):
    yolo_tree(root, "{split}/Images", "{split}/Labels", train="Train", val="Val", test="Test")
    write(root / "Train/Labels/classes.txt", "bus\ncar\ndog")
    return root


@layout("yolo: train_images and train_labels")
def _(root):
    yolo_tree(root, "{split}_images", "{split}_labels")
    write(root / "data.yaml", f"train: train_images\nval: val_images\n{NAMES}")
    return root


@layout("yolo: train_images and train_labels, without yaml", ALL)
def _(root):
    yolo_tree(root, "{split}_images", "{split}_labels")
    write(root / "classes.names", "bus\ncar\ndog")
    return root


@layout("yolo: labels together, images by split")
def _(root):
    yolo_tree(root, "images/{split}", "labels")
    write(root / "my data.yaml", f"train: images/train\nval: images/val\n{NAMES}")
    return root


@layout("yolo: darknet's own tree", HELD_BACK)
def _(root):
    yolo_flat(root / "data", "obj", "obj")
    write(root / "data/obj.names", "bus\ncar\ndog\n")
    write(root / "data/obj.data", "classes = 3\ntrain  = data/train.txt\nnames = data/obj.names\n")
    write(root / "data/train.txt", "".join(f"data/obj/{s.name}.jpg\n" for s in MANY))
    return root


@layout("yolo: several folders of images")
def _(root):
    yolo_flat(root, "images/day", "labels/day", TRAIN[:2])
    yolo_flat(root, "images/night", "labels/night", TRAIN[2:])
    yolo_flat(root, "images/val", "labels/val", VAL)
    write(root / "data.yaml", f"train:\n  - images/day\n  - images/night\nval: images/val\n{NAMES}")
    return root


@layout("yolo: Windows paths of another machine")
def _(root):
    yolo_tree(root)
    yaml = (
        "train: C:\\Users\\me\\streets\\images\\train\nval: C:\\Users\\me\\streets\\images\\val\n"
    )
    write(root / "data.yaml", yaml + NAMES)
    return root


@layout("voc: train_images and train_annotations", ALL)
def _(root):
    voc_tree(root, "{split}_images", "{split}_annotations")
    return root


@layout("voc: images and xmls", HELD_BACK)
def _(root):
    voc_flat(root, "images", "annotations/xmls")
    return root


@layout("voc: Testing and Training, .XML", ALL)
def _(root):
    voc_tree(root, "{split}", "{split}", train="Training", val="Validation", test="Testing")
    (root / "Training/a1.xml").rename(root / "Training/a1.XML")
    return root


@layout("voc: a list of paths beside the data")
def _(root):
    voc_flat(root, "images", "labels")
    for split in ("train", "val"):
        write(root / f"{split}.txt", "".join(f"images/{s.name}.jpg\r\n" for s in SPLITS[split]))
    return root


coco_files("train_images", ALL, "{split}.json", "{split}_images")
coco_files("annotations_train", ALL, "annotations/annotations_{split}.json", "imgs/{split}")
coco_files("Annotations with a capital", PARTS, "Annotations/{split}.json", "JPEGImages")
coco_files(
    "in folders of splits of images", ALL, "{split}/annotations/instances.json", "{split}/img"
)
coco_files("_coco.json", ALL, "{split}/_coco.json", "{split}/images", val="valid")


# ---- the user's splits in folders of pictures alone


def save_by_split(root: Path, folder: str):
    for split, shots in SPLITS.items():
        for shot in shots:
            save(root / folder.format(split=split) / f"{shot.name}.jpg", shot)


EVERY = (*TRAIN, *VAL, *TEST)


@layout("coco: one file of pictures in folders of splits", said="4 train, 2 val, 1 test")
def _(root):
    save_by_split(root, "images/{split}")
    write_coco(root / "result.json", coco(EVERY))
    return root


@layout("coco: one file given, with paths into folders of splits", said="4 train, 2 val, 1 test")
def _(root):
    save_by_split(root, "{split}")
    of_name = {shot.name: split for split, shots in SPLITS.items() for shot in shots}
    document = coco(EVERY, lambda shot: f"{of_name[shot.name]}/{shot.name}.jpg")
    return write_coco(root / "all.json", document)


@layout("voc: all XML files in one folder, pictures in folders of splits", said="which are used")
def _(root):
    save_by_split(root, "images/{split}")
    for shot in EVERY:
        write(root / f"annotations/{shot.name}.xml", voc(shot))
    return root


@layout("yolo: train alone, over folders of splits", said="which are used")
def _(root):
    yolo_tree(root)
    write(root / "data.yaml", f"train: images\n{NAMES}")
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0,0.5,0.5,0.2,0.2", "are spaces, not commas"),
        ("0 0.5 0.5 0.2 0.2 0.93", "the confidence of a detector"),
        ("3 0.5 0.5 0.2 0.2", "do the files count classes from 1"),
        ("1 48 32 20 20", "Are they in pixels"),
    ],
)
def test_yolo_lines_of_other_tools_are_named(tmp_path, line, message):
    yolo_flat(tmp_path, shots=MANY[:2])
    write(tmp_path / "classes.txt", "bus\ncar\ndog")
    for shot in MANY[:2]:
        write(tmp_path / f"labels/{shot.name}.txt", f"{line}\n")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), "all", None, "boxes")


def test_yolo_without_names_of_classes_is_named(tmp_path):
    yolo_flat(tmp_path, ".", ".")
    with pytest.raises(DataError, match=r"no names of their classes: .* classes.txt"):
        load(str(tmp_path), "all", None, "boxes")


def test_yolo_lists_and_names_outside_of_the_data_are_not_read(tmp_path):
    yolo_flat(tmp_path / "private", shots=MANY[:2])
    write(tmp_path / "private/names.txt", "bus\ncar\ndog")
    data = tmp_path / "data"
    write(data / "train.txt", "../private/images/a1.jpg\n")
    write(data / "data.yaml", f"train: train.txt\n{NAMES}")
    with pytest.raises(DataError, match="outside of the data"):
        load(str(data), "all", None, "boxes")
    (data / "data.yaml").unlink()
    write(data / "obj.data", "train = train.txt\nnames = ../private/names.txt\n")
    with pytest.raises(DataError, match="outside of the data"):
        load(str(data), "all", None, "boxes")


def test_yolo_images_that_are_not_there_are_counted(tmp_path):
    yolo_flat(tmp_path)
    write(tmp_path / "classes.txt", "bus\ncar\ndog")
    write(tmp_path / "train.txt", "".join(f"images/{shot.name}.jpg\n" for shot in MANY))
    (tmp_path / "images/a1.jpg").unlink()
    split = load(str(tmp_path), "all", None, "boxes")
    assert seen(split) == truth(MANY[1:])
    assert "1 of 9 images are not there and are left out: images/a1.jpg" in split.skipped[0]


def test_what_fits_nothing_is_shown_beside_what_is_looked_for(tmp_path):
    for i in range(30):
        save(tmp_path / f"part{i}/pictures/a1.jpg", TRAIN[0])
        write(tmp_path / f"part{i}/notes.docx", "x")
    with pytest.raises(DataError) as caught:
        load(str(tmp_path), "train", None, "boxes")
    text = str(caught.value)
    assert text.count("\n") < 20
    for words in (
        "fits no format",
        "coco: ROOT/annotations",
        "voc: ROOT/Annotations",
        "yolo: ROOT",
    ):
        assert words in text
    assert "part0, part1" in text
    assert "part0: folders: pictures; files: 1 .docx" in text


# ---- images elsewhere


def coco_home(home: Path, disk: Path):
    write_coco(home / "annotations/instances_train.json", coco(TRAIN))
    write_coco(home / "annotations/instances_val.json", coco(VAL))


def voc_home(home: Path, disk: Path):
    for shot in MANY:
        write(home / f"Annotations/{shot.name}.xml", voc(shot))
    voc_lists(home, train=TRAIN, val=VAL)


def yolo_home_with_lists(home: Path, disk: Path):
    for shot in MANY:
        write(home / f"labels/{shot.name}.txt", yolo(shot))
    for split, shots in PARTS.items():
        write(home / f"{split}.txt", "".join(f"images/{s.name}.jpg\n" for s in shots))
    write(home / "data.yaml", f"train: train.txt\nval: val.txt\n{NAMES}")


def yolo_home_with_folders(home: Path, disk: Path):
    for split, shots in PARTS.items():
        for shot in shots:
            save(disk / f"{split}/{shot.name}.jpg", shot)
            write(home / f"labels/{split}/{shot.name}.txt", yolo(shot))
    write(home / "data.yaml", f"train: images/train\nval: images/val\n{NAMES}")


@pytest.mark.parametrize(
    "writer", [coco_home, voc_home, yolo_home_with_lists, yolo_home_with_folders]
)
def test_images_elsewhere(tmp_path, writer):
    disk, home = tmp_path / "disk", tmp_path / "home"
    for shot in MANY:
        save(disk / f"pictures/{shot.name}.jpg", shot)
    writer(home, disk)
    for split, shots in PARTS.items():
        assert seen(load(str(home), split, None, "boxes", images=str(disk))) == truth(shots)
    with pytest.raises(DataError, match=r"no such|--images"):
        load(str(home), "train", None, "boxes")


def test_images_elsewhere_are_refused_where_nothing_reads_them(tmp_path):
    with pytest.raises(
        UsageError, match=r"shapes does not read --images; formats: coco, .*voc, yolo"
    ):
        load("shapes", "train", None, "boxes", images=str(tmp_path))
    write_coco(tmp_path / "x.json", coco(TRAIN))
    with pytest.raises(DataError, match="no such file or folder"):
        load(str(tmp_path), "train", None, "boxes", images=str(tmp_path / "nowhere"))


def test_images_elsewhere_in_the_verbs(tmp_path, capsys):
    """Trained with --images; measured where its settings say that they lie, or where --images does."""
    disk, home = tmp_path / "disk", tmp_path / "home"
    for shot in MANY:
        save(disk / f"pictures/{shot.name}.jpg", shot)
    coco_home(home, disk)
    run = str(tmp_path / "run")
    words = ["train", "--model", "ssd/fasternet_t0", "--data", str(home), "--images", str(disk)]
    words += ["--size", "64", "--epochs", "1", "--batch-size", "2", "--run", run]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["eval", "--model", run, "--data", str(home)]) == 0, capsys.readouterr().err
    moved = tmp_path / "moved"
    disk.rename(moved)
    assert main(["eval", "--model", run, "--data", str(home)]) == 3
    words = ["eval", "--model", run, "--data", str(home), "--images", str(moved), "--json"]
    capsys.readouterr()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["read"]["images"] == len(VAL)
    # what export, verify, bench --tune and quantize read
    file, reading = Path(run) / "best.safetensors", Reading(images=str(moved))
    pictures = pictures_of(str(home), reading, file)
    assert all(Path(str(picture)).is_relative_to(moved) for picture in pictures)
    assert len(pictures) == len(VAL)
    judged = judge_of(fleetnet.load(file), str(home), None, reading.elsewhere).by
    assert judged.endswith(f"on {len(VAL)} images")
    words = ["quantize", "--model", run, "--data", str(home), "--to", "onnx"]
    assert main([*words, "--pictures", "1", "--max-drop", "100"]) == 3  # they have moved
    capsys.readouterr()
    assert main([*words, "--images", "1"]) == 2
    assert "--pictures 1" in capsys.readouterr().err
    moved.rename(disk)  # where the settings of the run say that they lie
    assert len(pictures_of(str(home), Reading(), file)) == len(VAL)
    assert judge_of(fleetnet.load(file), str(home), None).by == judged


def test_images_elsewhere_of_a_run_that_goes_on(tmp_path, capsys, monkeypatch):
    """What is typed now is meant from here; what the run began with from where it began."""
    old, new = tmp_path / "old", tmp_path / "new"
    for place in (old, new):
        for shot in MANY:
            save(place / f"imgs/{shot.name}.jpg", shot)
        coco_home(place / "home", place)
    monkeypatch.chdir(old)
    words = ["train", "--model", "ssd/fasternet_t0", "--data", "home", "--images", "imgs"]
    words += ["--size", "64", "--epochs", "1", "--batch-size", "2", "--run", "run"]
    assert main(words) == 0, capsys.readouterr().err
    run = str(old / "run")
    monkeypatch.chdir(new)

    def resumed(epochs: int, *words: str) -> dict[str, object]:
        command = ["train", "--resume", run, "--epochs", str(epochs), *words]
        assert main(command) == 0, capsys.readouterr().err
        return yaml.safe_load(Path(run, "config.yaml").read_text())

    assert resumed(2)["images"] == str(old / "imgs")
    assert resumed(3, "--data", "home", "--images", "imgs")["images"] == str(new / "imgs")
    capsys.readouterr()
    for shot in MANY:
        save(new / f"home/images/{shot.name}.jpg", shot)
    assert resumed(4, "--data", "home")["images"] is None
    assert "is not used with other data" in capsys.readouterr().err


def test_images_elsewhere_that_moved_with_their_run(tmp_path, capsys, monkeypatch):
    work = tmp_path / "work"
    for shot in MANY:
        save(work / f"imgs/{shot.name}.jpg", shot)
    coco_home(work / "home", work)
    monkeypatch.chdir(work)
    words = ["train", "--model", "ssd/fasternet_t0", "--data", "home", "--images", "imgs"]
    words += ["--size", "64", "--epochs", "1", "--batch-size", "2", "--run", "run"]
    assert main(words) == 0, capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    work.rename(tmp_path / "moved")
    command = ["train", "--resume", "moved/run", "--epochs", "2"]
    assert main(command) == 0, capsys.readouterr().err
    (tmp_path / "moved/imgs").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main([*command[:-1], "3"]) == 3
    assert "say where they are now with --images" in capsys.readouterr().err


def test_lists_and_folders_of_a_split_that_are_not_used_are_named(tmp_path):
    yolo_tree(tmp_path)
    write(tmp_path / "data.yaml", f"train: images/train\nval: images/val\n{NAMES}")
    write(tmp_path / "train.txt", "images/train/a1.jpg\n")
    save(tmp_path / "valid/x.jpg", VAL[0])
    train, val = (load(str(tmp_path), split, None, "boxes") for split in ("train", "val"))
    assert len(train.skipped) == len(val.skipped) == 1
    assert "train.txt': a list that is not used; train is" in train.skipped[0]
    assert "valid': a folder of images that is not used for val" in val.skipped[0]
    write(tmp_path / "data.yaml", f"train: train.txt\nval: images/val\n{NAMES}")
    assert load(str(tmp_path), "train", None, "boxes").skipped == []


# ---- which pictures are of which split


def test_one_file_over_folders_of_splits_is_measured_on_val(tmp_path):
    """None asks for what there is to measure on, and an eval of a run for what it did not learn."""
    for split, shots in SPLITS.items():
        for shot in shots:
            save(tmp_path / f"data/images/{split}/{shot.name}.jpg", shot)
    root = str(tmp_path / "data")
    write_coco(tmp_path / "data/annotations.json", coco((*TRAIN, *VAL, *TEST)))
    read = {split: load(root, split, None, "boxes") for split in (*SPLITS, None)}
    for split, shots in SPLITS.items():
        assert seen(read[split]) == truth(shots)
    assert seen(read[None]) == truth(VAL)
    assert read[None].source.split == "val"
    contents = [contents_of(read[split], "boxes") for split in ("train", "val")]
    kept = record(read["train"], read["val"], contents)
    write(tmp_path / "run/split.json", json.dumps(kept))
    run = tmp_path / "run"
    for data in (root, str(Path(root, "annotations.json"))):
        measured = to_measure(data, None, None, "boxes", run, {"data": data})
        assert seen(measured) == truth(VAL)
    assert len(load(root, "all", None, "boxes").samples) == 7


def test_voc_lists_over_folders_of_splits_with_the_same_names(tmp_path):
    for split, shots in PARTS.items():
        for i, shot in enumerate(shots):
            save(tmp_path / f"images/{split}/{i:03}.jpg", shot)
            write(tmp_path / f"Annotations/{split}/{i:03}.xml", voc(shot, f"{i:03}.jpg"))
        names = "".join(f"{i:03}\n" for i in range(len(shots)))
        write(tmp_path / f"ImageSets/Main/{split}.txt", names)
    for split, shots in PARTS.items():
        assert seen(load(str(tmp_path), split, None, "boxes")) == truth(shots)
    (tmp_path / "ImageSets/Main/val.txt").rename(tmp_path / "ImageSets/Main/test.txt")
    with pytest.raises(DataError, match=r"'000' could be .*train/000.xml.*val/000.xml"):
        load(str(tmp_path), "test", None, "boxes")


@pytest.mark.parametrize("up", ["", "/somewhere/else/"])
def test_a_picture_of_val_that_is_missing_is_not_taken_from_the_folder_of_train(tmp_path, up):
    """Train lies flat in images/, val in images/val; both number their pictures."""
    for i, shot in enumerate(TRAIN):
        save(tmp_path / f"images/{i}.jpg", shot)
    save(tmp_path / "images/val/0.jpg", VAL[0])  # and 1.jpg is missing
    number = {shot.name: f"{up}{i}.jpg" for shots in (TRAIN, VAL) for i, shot in enumerate(shots)}
    for split, shots in PARTS.items():
        write_coco(tmp_path / f"{split}.json", coco(shots, lambda shot: number[shot.name]))
    split = load(str(tmp_path), "val", None, "boxes")
    assert seen(split) == truth(VAL[:1])
    assert "1 of 2 images are not there and are left out: " in split.skipped[0]
    for part, shots in PARTS.items():
        (tmp_path / f"{part}.json").unlink()
        for i, shot in enumerate(shots):
            write(tmp_path / f"Annotations/{part}/{i}.xml", voc(shot, f"{i}.jpg"))
    split = load(str(tmp_path), "val", None, "boxes")
    assert seen(split) == truth(VAL[:1])
    assert "1 of 2 images are not there and are left out, of" in split.skipped[0]


def test_pictures_of_another_folder_are_of_a_split_where_their_names_say_so(tmp_path):
    save(tmp_path / "images/val/b1.jpg", VAL[0])
    save(tmp_path / "images/more/b2.jpg", VAL[1])
    folder = {"b1": "images/val/b1.jpg", "b2": "/home/x/images/more/b2.jpg"}
    write_coco(tmp_path / "val.json", coco(VAL, lambda shot: folder[shot.name]))
    assert seen(load(str(tmp_path), "val", None, "boxes")) == truth(VAL)


def coco_named(root: Path, train: str, val: str) -> Path:
    """Two COCO files over one folder of pictures; what is returned is that of train."""
    for shot in (*TRAIN, *VAL):
        save(root / f"images/{shot.name}.jpg", shot)
    write_coco(root / "annotations" / val, coco(VAL))
    return write_coco(root / "annotations" / train, coco(TRAIN))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train.json", "instances_val.json"),
        ("train_coco.json", "val_annotations.json"),
        ("instances_train2014.json", "instances_minival2014.json"),
    ],
)
def test_coco_files_of_splits_may_differ_in_more_than_the_split(tmp_path, train, val):
    file = coco_named(tmp_path, train, val)
    for root in (tmp_path, file):
        for split, shots in PARTS.items():
            assert seen(load(str(root), split, None, "boxes")) == truth(shots)


def test_coco_files_of_captions_are_of_no_split(tmp_path):
    file = coco_named(tmp_path, "train.json", "captions_val.json")
    assert load(str(file), "val", None, "boxes").source.take == "val"


def test_coco_file_without_a_split_beside_that_of_val(tmp_path):
    file = coco_named(tmp_path, "instances.json", "instances_val.json")
    for root in (tmp_path, file):
        with pytest.raises(DataError, match=r"call it instances_train\.json|no split 'train'"):
            load(str(root), "train", None, "boxes")
    assert len(load(str(file), None, None, "boxes").samples) == len(TRAIN)


def test_yolo_entries_that_end_in_one_folder_are_an_error(tmp_path):
    yolo_flat(tmp_path)
    write(tmp_path / "data.yaml", f"train: /mnt/A/images\nval: /mnt/B/images\n{NAMES}")
    with pytest.raises(DataError, match="train is '/mnt/A/images' and val is '/mnt/B/images', and"):
        load(str(tmp_path), "train", None, "boxes")
    write(tmp_path / "data.yaml", f"train: images\nval: ./images\n{NAMES}")  # said so by the user
    assert len(load(str(tmp_path), "val", None, "boxes").samples) == len(MANY)


def test_darknet_lists_of_bare_names_are_of_the_folder_of_their_split(tmp_path):
    for split, shots in (("train", TRAIN), ("valid", VAL)):
        for i, shot in enumerate(shots):
            save(tmp_path / f"obj_{split}_data/{i}.jpg", shot)
            write(tmp_path / f"obj_{split}_data/{i}.txt", yolo(shot))
        write(tmp_path / f"{split}.txt", "".join(f"{i}.jpg\n" for i in range(len(shots))))
    write(tmp_path / "obj.names", "\n".join(CLASSES))
    rows = "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
    write(tmp_path / "obj.data", rows)
    for split, shots in PARTS.items():
        assert seen(load(str(tmp_path), split, None, "boxes")) == truth(shots)


def test_voc_trainval_beside_val_is_without_it(tmp_path):
    voc_flat(tmp_path, "JPEGImages", "Annotations")
    voc_lists(tmp_path, trainval=(*TRAIN, *VAL), val=VAL)
    train, val = (load(str(tmp_path), split, None, "boxes") for split in ("train", "val"))
    assert seen(train) == truth(TRAIN)
    assert seen(val) == truth(VAL)
    assert "2 pictures that val.txt has too are of val alone" in train.skipped[0]


def test_yolo_val_whose_first_pictures_show_nothing(tmp_path):
    yolo_tree(tmp_path)
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    for i in range(25):
        save(tmp_path / f"images/val/a{i:02}.jpg", TRAIN[2])
        write(tmp_path / f"labels/val/a{i:02}.txt", "")
    split = load(str(tmp_path), "val", None, "boxes")
    assert split.source.take == "all"
    assert len(split.samples) == 27
    assert len(load(str(tmp_path), "train", None, "boxes").samples) == len(TRAIN)


def test_yolo_folder_of_val_that_the_yaml_does_not_name_is_said(tmp_path):
    yolo_tree(tmp_path)
    write(tmp_path / "data.yaml", f"train: images/train\n{NAMES}")
    said = load(str(tmp_path), "val", None, "boxes").skipped
    assert f"{str(tmp_path / 'images/val')!r}: a folder of images that is not used for val" in said


def test_yolo_labels_of_two_pictures_are_an_error(tmp_path):
    for split, shots in PARTS.items():
        for i, shot in enumerate(shots):
            save(tmp_path / f"images/{split}/{i}.jpg", shot)
    for i, shot in enumerate(TRAIN):
        write(tmp_path / f"labels/{i}.txt", yolo(shot))
    write(tmp_path / "classes.txt", "\n".join(CLASSES))
    for split in PARTS:
        with pytest.raises(
            DataError, match=r"labels/0.txt' would be of .*/0.jpg' and of .*/0.jpg'"
        ):
            load(str(tmp_path), split, None, "boxes")
    for i in range(len(VAL)):  # with names of their own, one folder of labels will do
        (tmp_path / f"images/val/{i}.jpg").rename(tmp_path / f"images/val/v{i}.jpg")
        write(tmp_path / f"labels/v{i}.txt", yolo(VAL[i]))
    for split, shots in PARTS.items():
        assert seen(load(str(tmp_path), split, None, "boxes")) == truth(shots)


def test_yolo_folders_below_those_of_images_may_be_called_like_them(tmp_path):
    yolo_tree(tmp_path, "images/{split}/photos", "labels/{split}/photos")
    write(tmp_path / "data.yaml", f"train: images/train\nval: images/val\n{NAMES}")
    for split, shots in PARTS.items():
        assert seen(load(str(tmp_path), split, None, "boxes")) == truth(shots)


def test_coco_entries_of_one_picture_are_one_sample(tmp_path):
    """Each with a part of its objects, as files put together from two have them."""
    shot = TRAIN[0]
    save(tmp_path / "images/a1.jpg", shot)
    save(tmp_path / "images/a2.jpg", TRAIN[1])
    halves = [Shot("a1", shot.gray, (thing,)) for thing in shot.things]
    write_coco(tmp_path / "x.json", coco([halves[0], TRAIN[1], halves[1]]))
    split = load(str(tmp_path / "x.json"), "all", None, "boxes")
    assert seen(split) == truth(TRAIN[:2])
    assert "1 of 3 entries of images name a picture again, as 'a1.jpg'; they are one" in str(
        split.skipped
    )
    names = iter(["a1.jpg", "a2.jpg", "images/a1.jpg"])
    write_coco(tmp_path / "x.json", coco([*TRAIN[:2], halves[1]], lambda shot: next(names)))
    with pytest.raises(DataError, match=r"'images/a1.jpg' and 'a1.jpg' are one picture"):
        load(str(tmp_path / "x.json"), "all", None, "boxes")


def test_coco_kinds_of_categories_may_be_anything(tmp_path):
    document = coco(MANY)
    for row, kind in zip(document["categories"], ([], {}, ["x"]), strict=True):
        row["supercategory"] = kind
    for shot in MANY:
        save(tmp_path / f"images/{shot.name}.jpg", shot)
    write_coco(tmp_path / "x.json", document)
    assert seen(load(str(tmp_path), "all", None, "boxes")) == truth(MANY)


def lists_in(folder: Path, ending: str = ".jpg", prefix: str = "") -> None:
    for split, shots in PARTS.items():
        write(folder / f"{prefix}{split}.txt", "".join(f"{s.name}{ending}\n" for s in shots))


@pytest.mark.parametrize("folder", ["splits", "Split", "lists", "meta", "ImageSets/Layout", "."])
@pytest.mark.parametrize("format", ["yolo", "coco", "voc"])
def test_lists_of_splits_in_a_folder_are_not_passed_over(tmp_path, folder, format):
    if format == "yolo":
        yolo_flat(tmp_path)
        write(tmp_path / "classes.txt", "\n".join(CLASSES))
    elif format == "voc":
        voc_flat(tmp_path, "JPEGImages", "Annotations")
    else:
        write_coco(tmp_path / "annotations.json", coco(MANY))
        for shot in MANY:
            save(tmp_path / f"images/{shot.name}.jpg", shot)
    lists_in(tmp_path / folder, prefix="bus_" if folder == "." else "")
    if folder == "." and format != "voc":  # names of anything
        return
    if folder == ".":
        lists_in(tmp_path / "ImageSets/Main", "  1", "bus_")
    for split in PARTS:
        with pytest.raises(DataError, match=r"has lists of splits, .*train.txt.*val.txt"):
            load(str(tmp_path), split, None, "boxes")
    assert len(load(str(tmp_path), "all", None, "boxes").samples) == len(MANY)


@pytest.mark.parametrize("format", ["yolo", "voc", "coco"])
def test_val_beside_the_folder_that_is_named_is_said(tmp_path, format):
    for split, shots in (("train", TRAIN), ("valid", VAL)):
        place = tmp_path / split
        for shot in shots:
            save(place / f"images/{shot.name}.jpg", shot)
            if format == "yolo":
                write(place / f"labels/{shot.name}.txt", yolo(shot))
                write(place / "classes.txt", "\n".join(CLASSES))
            elif format == "voc":
                write(place / f"annotations/{shot.name}.xml", voc(shot))
        if format == "coco":
            write_coco(place / "_annotations.coco.json", coco(shots))
    for split in PARTS:
        said = load(str(tmp_path / "train"), split, None, "boxes").skipped[0]
        assert f"{str(tmp_path / 'valid')!r} is beside it and not used" in said
        assert f"--data {str(tmp_path)!r}" in said
    assert load(str(tmp_path / "train"), None, None, "boxes").skipped == []


@pytest.mark.parametrize("layout", ["images/{split}", "{split}/s1/images"])
def test_yolo_files_of_labels_among_the_images_are_no_lines(tmp_path, layout):
    beside = layout.replace("s1/images", "s1/labels")
    yolo_tree(tmp_path, layout, beside)
    write(tmp_path / "images/train/classes.txt", "\n".join(CLASSES))
    entry = layout.partition("/s1")[0]
    entries = "".join(f"{split}: {entry.format(split=split)}\n" for split in PARTS)
    write(tmp_path / "data.yaml", entries + NAMES)
    train = load(str(tmp_path), "train", None, "boxes")
    assert seen(train) == truth(TRAIN)
    assert train.skipped == []
    place = tmp_path / beside.format(split="train")
    for name in ("lost1", "lost2"):
        write(place / f"{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    said = load(str(tmp_path), "train", None, "boxes").skipped
    assert said == [f"{entry.format(split='train')}: 2 text files are of no image: lost1, lost2"]


# ---- one folder too much around the data, called as a part of it is


def darknet_export(root: Path) -> None:
    for split, shots in PARTS.items():
        for shot in shots:
            save(root / f"obj_train_data/{shot.name}.jpg", shot)
            write(root / f"obj_train_data/{shot.name}.txt", yolo(shot))
        lines = "".join(f"data/obj_train_data/{shot.name}.jpg\n" for shot in shots)
        write(root / f"{split}.txt", lines)
    write(root / "obj.names", "\n".join(CLASSES))
    described = "train = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\n"
    write(root / "obj.data", f"classes = {len(CLASSES)}\n{described}")


def voc_with_lists(root: Path) -> None:
    voc_flat(root, "JPEGImages", "Annotations")
    lists_in(root / "ImageSets/Main", "")


def coco_by_split(root: Path) -> None:
    for split, shots in PARTS.items():
        for shot in shots:
            save(root / f"{split}/{shot.name}.jpg", shot)
        write_coco(root / f"annotations/instances_{split}.json", coco(shots))


def roboflow_export(root: Path) -> None:
    for split, shots in PARTS.items():
        for shot in shots:
            save(root / f"{split}/images/{shot.name}.jpg", shot)
            write(root / f"{split}/labels/{shot.name}.txt", yolo(shot))
    write(root / "data.yaml", f"train: ../train/images\nval: ../val/images\n{NAMES}")


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        (darknet_export, "data"),
        (voc_with_lists, "annotations"),
        (voc_with_lists, "train"),
        (coco_by_split, "train"),
        (roboflow_export, "images"),
    ],
)
def test_splits_in_the_one_folder_too_much_are_the_users_whatever_it_is_called(
    tmp_path, written, folder
):
    written(tmp_path / folder)
    for split, shots in PARTS.items():
        loaded = load(str(tmp_path), split, None, "boxes")
        assert seen(loaded) == truth(shots)
        assert loaded.source.take == "all"
        assert "holds nothing but one folder, so" in loaded.skipped[0]


def test_a_list_of_pictures_and_xml_files_says_that_its_folder_is_what_to_give(tmp_path):
    voc_flat(tmp_path, "images", "annotations")
    for split, shots in PARTS.items():
        lines = "".join(f"images/{s.name}.jpg annotations/{s.name}.xml\n" for s in shots)
        write(tmp_path / f"{split}.txt", lines)
    assert seen(load(str(tmp_path), "train", None, "boxes")) == truth(TRAIN)
    with pytest.raises(DataError, match=f"Its folder has them: give '{tmp_path}' as --data"):
        load(str(tmp_path / "train.txt"), "train", None, "boxes")


def test_coco_sizes_of_zero_are_measured(tmp_path):
    document = coco(MANY)
    for image in document["images"]:
        image["width"] = image["height"] = 0
    write_coco(tmp_path / "labels.json", document)
    for shot in MANY:
        save(tmp_path / f"images/{shot.name}.jpg", shot)
    assert seen(load(str(tmp_path), "all", None, "boxes")) == truth(MANY)
