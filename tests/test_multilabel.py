"""Multi-label classification: where tags are read, what is learned from them, how it is measured and used."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet.data import Split, from_samples, load
from fleetnet.errors import DataError, UsageError

# ---- data ------------------------------------------------------------------------------------------------------------

# The tags of each picture, which every layout below has to give back. One has none.
TRUTH = {
    "a.png": ("cat", "polar bear"),
    "b.png": ("dog",),
    "c.png": (),
    "d.png": ("cat", "dog", "polar bear"),
    "e.png": ("polar bear",),
}
CLASSES = ("cat", "dog", "polar bear")
PLAIN = {
    name: tuple(tag.replace("polar bear", "seal") for tag in tags) for name, tags in TRUTH.items()
}
Write = Callable[[Path], None]


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRUTH:
        Image.new("RGB", (8, 8)).save(folder / name)


def table(
    header: str, row: Callable[[str, Sequence[str]], str], of: Any = TRUTH, name: str = "train.csv"
) -> Write:
    """Writes a table with a line for each picture."""

    def write(root: Path) -> None:
        lines = [row(picture, tags) for picture, tags in of.items()]
        (root / name).write_text("\n".join([header, *lines]) + "\n")

    return write


def flags(tags: Sequence[str], separator: str = ",") -> str:
    return separator.join(str(int(name in tags)) for name in CLASSES)


def in_lines(root: Path) -> None:
    lines = [f"{name},{tag}" for name, tags in TRUTH.items() for tag in tags or ("",)]
    (root / "labels.csv").write_text("\n".join(["image,label", *lines]) + "\n")


def coco(root: Path) -> None:
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(TRUTH)]
    pairs = [
        (i, tag) for i, tags in enumerate(TRUTH.values()) for tag in (*tags, *tags)
    ]  # two each
    annotations = [
        {"id": n, "image_id": i, "category_id": CLASSES.index(tag) + 5, "bbox": [1, 1, 4, 4]}
        for n, (i, tag) in enumerate(pairs)
    ]
    categories = [{"id": i + 5, "name": name} for i, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances_train.json").write_text(json.dumps(document))


def yolo(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (root / "labels").mkdir()
    (root / "images").mkdir()
    for name, tags in TRUTH.items():
        (root / name).rename(root / "images" / name)
        lines = [f"{CLASSES.index(tag)} 0.5 0.5 0.5 0.5" for tag in tags]
        (root / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))


def voc(root: Path) -> None:
    (root / "Annotations").mkdir()
    (root / "JPEGImages").mkdir()
    for name, tags in TRUTH.items():
        (root / name).rename(root / "JPEGImages" / name)
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
        objects = "".join(f"<object><name>{tag}</name>{box}</object>" for tag in tags)
        size = "<size><width>8</width><height>8</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (root / "Annotations" / name).with_suffix(".xml").write_text(text)


def listed(line: Callable[[str, Sequence[str]], str], names: bool = True, of: Any = TRUTH) -> Write:
    """Writes a list with a line for each picture, and maybe a file of names."""

    def write(root: Path) -> None:
        (root / "train_list.txt").write_text("\n".join(line(*pair) for pair in of.items()))
        if names:
            text = "\n".join(f"{i} {name}" for i, name in enumerate(CLASSES))
            (root / "label_list.txt").write_text(text)

    return write


def numbers(tags: Sequence[str]) -> str:
    return ",".join(str(CLASSES.index(tag)) for tag in tags)


LAYOUTS: dict[str, tuple[Write, Mapping[str, Sequence[str]]]] = {
    "columns": (table("filename,cat,dog,polar bear", lambda n, t: f"{n},{flags(t)}", name="_classes.csv"), TRUTH),
    "with |": (table("image_name,tags", lambda n, t: f"{n},{'|'.join(t)}"), TRUTH),
    "with ;": (table("image,labels", lambda n, t: f"{n},{' ; '.join(t)}"), TRUTH),
    "quoted, with commas": (table("image,labels", lambda n, t: f'{n},"{", ".join(t)}"'), TRUTH),
    "commas without quotes": (table("image,labels", lambda n, t: f"{n},{','.join(t)}"), TRUTH),
    "a list of Python": (table("image,labels", lambda n, t: f'{n},"{list(t)}"'), TRUTH),
    "with spaces": (table("image_name,tags", lambda n, t: f"{n},{' '.join(t)}", PLAIN), PLAIN),
    "no extension": (table("image_name,tags", lambda n, t: f"{n[:-4]},{' '.join(t)}", PLAIN), PLAIN),
    "lines": (in_lines, TRUTH),
    "coco": (coco, TRUTH),
    "yolo": (yolo, TRUTH),
    "voc": (voc, TRUTH),
    "list of numbers": (listed(lambda n, t: f"{n} {numbers(t)}"), TRUTH),
    "list of names": (listed(lambda n, t: f"{n}\t{','.join(t)}", names=False), TRUTH),
    "list of 0 and 1": (listed(lambda n, t: f"{n}\t{flags(t)}"), TRUTH),
    "list of 0 and 1 with spaces": (listed(lambda n, t: f"{n} {flags(t, ' ')}"), TRUTH),
}  # fmt: skip


def tags_of(split: Split) -> dict[str, tuple[str, ...]]:
    return {
        Path(str(sample.image)).name: tuple(split.classes[i] for i in sample.tags or ())
        for sample in split.samples
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tags_are_read(layout: str, tmp_path: Path) -> None:
    write, truth = LAYOUTS[layout]
    pictures(tmp_path)
    write(tmp_path)
    split = load(str(tmp_path), "all" if layout in ("yolo", "voc") else None, target="tags")
    assert tags_of(split) == truth
    assert split.classes == list(CLASSES if truth is TRUTH else ("cat", "dog", "seal"))


def test_a_class_folder_is_a_single_tag(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    split = load(str(tmp_path), "all", target="tags")
    assert [sample.tags for sample in split.samples] == [(0,)] * 5 + [(1,)] * 5


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            "columns",
            r"'a.png' has several labels: cat, polar bear; several labels of a picture are",
        ),
        ("with |", r"the label 'cat\|dog\|polar bear' is a list: several labels of a picture are"),
        ("quoted, with commas", "the label 'cat, dog, polar bear' is a list"),
        ("commas without quotes", "has several labels: cat, polar bear; several labels"),
        ("lines", "has several labels"),
        ("list of numbers", r"line 1: label '0,2' is not a number from 0 up; several labels"),
        ("list of names", "line 3: expected `path label`, found 'c.png'"),
    ],
)
def test_where_one_label_is_learned_the_message_names_the_task(
    layout: str, message: str, tmp_path: Path
) -> None:
    pictures(tmp_path)
    LAYOUTS[layout][0](tmp_path)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), None)


UNREADABLE: dict[str, tuple[Mapping[str, str], str]] = {
    "unknown tag of val": (
        {"train.csv": "image,tags\na.png,cat dog\nb.png,dog\n", "val.csv": "image,tags\nc.png,cat dgo\n"},
        r"val.csv, line 2: label 'dgo' is not in the table of train; there is cat, dog; did you mean 'dog'",
    ),
    "unknown name in a list": (
        {"train_list.txt": "a.png cat,dog\nb.png dog", "val_list.txt": "c.png cat,dgo"},
        r"val_list.txt, line 1: label 'dgo' is not known; .* has cat, dog; did you mean 'dog'",
    ),
    "a number out of range": (
        {"train_list.txt": "a.png 0,2\nb.png 7", "label_list.txt": "0 cat\n1 dog\n2 bus"},
        "line 2: label 7 is out of range",
    ),
    "a name among numbers": (
        {"train_list.txt": "a.png 0,2\nb.png 1", "val_list.txt": "c.png 1,cat"},
        "val_list.txt, line 1: tag 'cat' is not a number from 0 up",
    ),
    "a column too few": (
        {"train_list.txt": "a.png 0,1,0\nb.png 1,1,0", "val_list.txt": "c.png 1,0"},
        r"val_list.txt, line 1: '1,0'; expected 3 times 0 or 1",
    ),
    "names of other columns": (
        {"train_list.txt": "a.png 0,1,0\nb.png 1,1,0", "label_list.txt": "0 cat\n1 dog"},
        "its lines have 3 times 0 or 1, and .*label_list.txt names 2 classes",
    ),
    "no tag at all": ({"train_list.txt": "a.png\nb.png"}, "no line has a tag"),
    "sentences": (
        {"train.csv": "image,tags\n" + "".join(f"{n}.png,w{n} x{n}\n" for n in range(25))},
        "the column 'tags' has 50 different values for 25 pictures, so they are no classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_tags_that_cannot_be_right_are_refused(case: str, tmp_path: Path) -> None:
    files, message = UNREADABLE[case]
    pictures(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load(
            str(tmp_path),
            "val" if "val_list.txt" in files or "val.csv" in files else "train",
            target="tags",
        )


def test_pictures_without_one_tag_and_all_the_same_tags() -> None:
    from fleetnet.data._contents import contents_of
    from fleetnet.review.usable import check_usable

    same = from_samples(
        [("a.png", ["cat", "dog"]), ("b.png", ["dog", "cat"])], ["cat", "dog", "bus"]
    )
    with pytest.raises(DataError, match=r"all 2 pictures have the same tags \(2 of 3 classes\)"):
        check_usable(same, contents_of(same, "tags"))
    check_usable(same, contents_of(same, "tags"), learn=False)
    none = from_samples([("a.png", []), ("b.png", [])], ["cat", "dog"])
    with pytest.raises(DataError, match="nothing to learn from: no tag in 2 images"):
        check_usable(none, contents_of(none, "tags"))


TAGGED: dict[str, tuple[Any, Any]] = {
    "names": (["dog", "cat"], ["cat", "dog", "bus"]),
    "numbers": ([1, 0], ["cat", "dog", "bus"]),
    "a set": ({"cat", "dog"}, ["cat", "dog", "bus"]),
    "an array of numbers": (np.array([0, 1]), ["cat", "dog", "bus"]),
    "0 or 1 for each": ([1, 1, 0], ["cat", "dog", "bus"]),
    "floats": (torch.tensor([1.0, 1.0, 0.0]), ["cat", "dog", "bus"]),
    "bools": (np.array([True, True, False]), ["cat", "dog", "bus"]),
}


@pytest.mark.parametrize("form", TAGGED)
def test_tags_from_python(form: str) -> None:
    tags, classes = TAGGED[form]
    split = from_samples([("a.png", tags), {"image": "b.png", "tags": []}], classes)
    assert [sample.tags for sample in split.samples] == [(0, 1), ()]
    assert split.classes == classes


def test_tags_from_python_name_the_classes() -> None:
    assert from_samples([("a.png", ["dog"]), ("b.png", ["cat", "bus"])]).classes == [
        "bus",
        "cat",
        "dog",
    ]
    assert from_samples([("a.png", [1, 0, 0, 1])]).classes == ["0", "1", "2", "3"]


def test_tags_from_python_that_are_none() -> None:
    with pytest.raises(UsageError, match="sample 0: tags are 'cat'; expected a list"):
        from_samples([{"image": "a.png", "tags": "cat"}], ["cat"])
    with pytest.raises(DataError, match="sample 0: 4 tags of 0 or 1 for 2 classes"):
        from_samples([("a.png", [1, 0, 0, 1])], ["cat", "dog"])
    with pytest.raises(DataError, match="no class 'dgo': did you mean 'dog'"):
        from_samples([("a.png", ["dgo"])], ["cat", "dog"])
