"""Data that lost what there is to learn, are named otherwise than they are read, or are split by somebody else.

Each test is of a kind of fault: annotations that fall away, names that mean two things, numbers
written as text, files that are named but not read, pictures held back that change between training
and evaluation.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED, benchmark
from PIL import Image
from test_formats import document, make_voc, make_yolo, picture, xml

from fleetnet.cli import main
from fleetnet.data import Notes, Sample, Split, coco, load, voc, yolo
from fleetnet.data._contents import Contents, contents_of
from fleetnet.data._record import names_of
from fleetnet.errors import DataError
from fleetnet.images import read_labels
from fleetnet.review.usable import check_usable


def usable(split: Split, target: str, max_bad: float = 0.5, learn: bool = True) -> Contents:
    contents = contents_of(split, target)
    check_usable(split, contents, max_bad, learn)
    return contents


def names(split: Split) -> list[str]:
    return [Path(str(sample.image)).name for sample in split.samples]


def make_maps(
    root: Path, maps: dict[str, np.ndarray], classes: str = "background\nthing\n"
) -> Path:
    """Pictures with label maps; a name may have folders."""
    for name, values in maps.items():
        picture(root / "images" / f"{name}.png", values.shape[1::-1])
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / "labels" / f"{name}.png")
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def of_gray(*values: int) -> np.ndarray:
    """A label map of 40x20 with stripes of these values."""
    return np.repeat(np.array(values, np.uint8), 40 // len(values))[None].repeat(20, 0)


# --- targets that fell away


def coco_data(root: Path, *annotations: dict[str, Any]) -> str:
    picture(root / "1.png")
    (root / "all.json").write_text(document(*annotations))
    return str(root / "all.json")


FLAT = [[2, 3, 12, 3]]  # a line


@pytest.mark.parametrize(
    ("target", "annotations", "dropped"),
    [
        ("boxes", [{}, {"bbox": [2, 3, 0, 8]}, {"bbox": [2, 3, 5, 0]}], {"without an area": 2}),
        (
            "boxes",
            [{}, {"image_id": 7}, {"image_id": "x"}],
            {"of an image that the file does not list": 2},
        ),
        ("masks", [{"segmentation": []}, {"segmentation": FLAT}], {"without a usable mask": 2}),
        ("boxes", [{"bbox": [90, 3, 5, 8]}], {"outside of the picture": 1}),
    ],
)
def test_coco_annotations_that_fell_away(tmp_path, target, annotations, dropped):
    split = load(coco_data(tmp_path, *annotations), "all", None, target)
    assert (split.annotations.read, split.annotations.dropped) == (len(annotations), dropped)
    reason = next(iter(dropped))
    with pytest.raises(
        DataError, match=rf"all .*all.json\): .*{reason}.*--max-bad allows\. The first: .*dropped"
    ):
        usable(split, target)
    if len(annotations) == 3:
        assert usable(split, target, 0.7).counts == [1]


def test_yolo_labels_in_pixels(tmp_path):
    root = make_yolo(tmp_path, "0 20 15 10 8\n1 12 11 6 6\n")
    with pytest.raises(DataError, match=r"all boxes have values above 1, .*Are they in pixels"):
        load(root, "train", None, "boxes")


def test_annotations_of_pictures_left_out_are_counted(tmp_path):
    make_voc(tmp_path / "voc", 4)
    (tmp_path / "voc" / "JPEGImages" / "01.png").write_bytes(b"no image")
    assert load(str(tmp_path / "voc"), "all", None, "boxes").annotations.dropped == {
        "of pictures left out": 1
    }
    root = make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2")
    picture(tmp_path / "images" / "train" / "2.png")
    (tmp_path / "images" / "train" / "1.png").write_bytes(b"no image")
    assert load(root, "train", None, "boxes").annotations.dropped == {"of pictures left out": 1}


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_boxes_below_a_pixel(tmp_path, form):
    """Shares of the picture where pixels are meant: tiny boxes in a corner."""
    if form == "coco":
        split = load(
            coco_data(tmp_path, {"bbox": [0.1, 0.2, 0.5, 0.5]}, {"bbox": [0, 0, 1, 1]}),
            "all",
            None,
            "boxes",
        )
    elif form == "voc":
        make_voc(tmp_path, 3)
        for i in range(3):
            (tmp_path / "Annotations" / f"{i:02}.xml").write_text(xml(("cat", 0.1, 0.2, 0.8, 0.9)))
        split = load(str(tmp_path), "all", None, "boxes")
    else:
        split = load(make_yolo(tmp_path, "0 0.5 0.5 0.001 0.001"), "train", None, "boxes")
    with pytest.raises(DataError, match=r"boxes have no side above a pixel.*shares of the picture"):
        usable(split, "boxes")
    assert usable(split, "boxes", 1.0).tiny == contents_of(split, "boxes").total


@pytest.mark.parametrize(
    ("values", "classes"), [((0, 255), 2), ((0, 255), 3), ((0, 1, 255, 255), 3), ((255, 1), 2)]
)
@pytest.mark.parametrize("layout", ["masks", "voc"])
def test_white_masks(tmp_path, values, classes, layout):
    names_ = "".join(f"class{i}\n" for i in range(classes))
    make_maps(tmp_path, {f"{i:02}": of_gray(*values) for i in range(12)}, names_)
    if layout == "voc":
        (tmp_path / "images").rename(tmp_path / "JPEGImages")
        (tmp_path / "labels").rename(tmp_path / "SegmentationClass")
        (tmp_path / "classes.txt").write_text("background\n" + names_.split("\n", 1)[1])
    split = load(str(tmp_path), "train", None, "semantic")
    with pytest.raises(
        DataError, match=r"no pixel is of the class .* pixels have the value 255.*colors.txt"
    ):
        usable(split, "semantic")
    assert usable(split, "semantic", 1.0).ignored > 0


def test_colors_apply_to_gray_files(tmp_path):
    """A color map of grays says what 0 and 255 are, in files of 8 bits and of one."""
    make_maps(tmp_path, {f"{i:02}": of_gray(0, 255) for i in range(12)}, "")
    (tmp_path / "colors.txt").write_text("0 0 0 background\n255 255 255 thing\n")
    Image.fromarray(of_gray(0, 255)).convert("1").save(tmp_path / "labels" / "03.png")
    split = load(str(tmp_path), "train", None, "semantic")
    assert usable(split, "semantic").counts == [11 * 400, 11 * 400]
    Image.fromarray(of_gray(0, 1)).save(tmp_path / "labels" / "00.png")  # indices stay indices
    assert set(np.unique(split.samples[0].semantic())) == {0, 1}
    (tmp_path / "colors.txt").write_text("1 1 1 background\n0 0 0 thing\n")
    with pytest.raises(DataError, match=r"gray values \[0, 1\] may be indices or colors"):
        load(str(tmp_path), "train", None, "semantic").samples[0].semantic()


def test_labels_with_a_border_of_no_class_are_fine(tmp_path):
    rare = make_maps(
        tmp_path, {f"{i:02}": of_gray(0, 2, 255, 255) for i in range(12)}, "a\nb\nc\nd\ne\n"
    )
    contents = usable(load(str(rare), "train", None, "semantic"), "semantic")
    # two classes are missing: 255 cannot be both
    assert (contents.counts[1], contents.counts[3]) == (0, 0)


def test_a_class_is_looked_for_in_all_label_maps(tmp_path, monkeypatch):
    """Counts are of some label maps, but a class is not called missing before all were read."""
    monkeypatch.setattr("fleetnet.data._contents.LOOKED_AT", 4)
    maps = {f"{i:02}": of_gray(0, 255) for i in range(22)}
    maps["05"] = of_gray(0, 1)
    contents = usable(load(str(make_maps(tmp_path, maps)), "train", None, "semantic"), "semantic")
    assert contents.counts[1] == 400
    assert contents.looked_at < contents.pictures
    for name in maps:
        Image.fromarray(of_gray(0, 1)).save(tmp_path / "labels" / f"{name}.png")
    assert contents_of(load(str(tmp_path), "train", None, "semantic"), "semantic").looked_at == 4


def test_one_class_of_several_is_nothing_to_learn(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "label_list.txt").write_text("0 cat\n1 dog\n")
    (tmp_path / "train_list.txt").write_text("a.png 1\nb.png 1\n")
    split = load(str(tmp_path / "train_list.txt"), "all")
    with pytest.raises(
        DataError, match="all images are of the class 'dog', so there is nothing to tell apart"
    ):
        usable(split, "label")
    assert usable(split, "label", learn=False).counts == [0, 2]
    make_maps(tmp_path / "maps", {f"{i:02}": of_gray(0, 0) for i in range(12)})
    with pytest.raises(DataError, match="all pixels are of the class 'background'"):
        usable(load(str(tmp_path / "maps"), "train", None, "semantic"), "semantic")


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_verbs_refuse_lost_targets(tmp_path, capsys, verb):
    """Exit 3 before the first step, without a run folder; --max-bad lets what is left through."""
    rows = "".join(f"0 {20 + i} 15 10 8\n" for i in range(3)) + "0 0.5 0.5 0.2 0.4\n"
    (tmp_path / "data").mkdir()
    root = make_yolo(tmp_path / "data", rows)
    (tmp_path / "data" / "labels" / "val" / "1.txt").write_text(rows)
    picture(tmp_path / "data" / "images" / "train" / "2.png")
    (tmp_path / "data" / "labels" / "train" / "2.txt").write_text("")
    words = [
        "train",
        "--model",
        "ssd/fasternet_t0",
        "--data",
        root,
        "--size",
        "64",
        "--epochs",
        "1",
    ]
    words += ["--batch-size", "2", "--run", str(tmp_path / "run")]
    if verb == "eval":
        assert main([*words, "--max-bad", "0.8"]) == 0
        capsys.readouterr()
        words = ["eval", "--model", str(tmp_path / "run"), "--data", root]
    assert main(words) == 3
    error = capsys.readouterr().err
    assert "3 of 4 annotations dropped: 3 outside of the picture" in error
    assert "0.5 that --max-bad allows" in error
    assert (tmp_path / "run").exists() == (verb == "eval")
    assert main([*words, "--max-bad", "0.8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    read = document["read"] if verb == "eval" else document["data"]["train"]
    assert (read["annotations"], read["dropped"]) == (4, {"outside of the picture": 3})
    assert (read["counted"], read["by_class"]) == ("objects", {"cat": 1, "dog": 0})
    if verb == "train":
        kept = json.loads((tmp_path / "run" / "split.json").read_text())
        assert kept["train"]["by_class"] == {"cat": 1, "dog": 0}


# --- names


def photos_of(root: Path, *classes: str, count: int = 12, below: str = "") -> Path:
    for name in classes:
        for i in range(count):
            picture(root / name / below / f"{i:02}.png", (8, 6))
    return root


@pytest.mark.parametrize(
    "names_", [("bus", "car", "train"), ("car", "val"), ("exam", "test"), ("a", "train", "val")]
)
def test_a_class_called_train(tmp_path, names_):
    photos_of(tmp_path, *names_)
    train, val = load(str(tmp_path), "train"), load(str(tmp_path), "val")
    assert train.classes == val.classes == list(names_)
    assert contents_of(train, "label").counts == [11] * len(names_)
    assert contents_of(val, "label").counts == [1] * len(names_)


def test_a_folder_that_may_be_a_split_or_a_class(tmp_path):
    photos_of(tmp_path, "bus", "car")
    photos_of(tmp_path, "train", below="2020")
    with pytest.raises(
        DataError, match=r"'train' may be the folder of a split or of a class.*bus, car beside it"
    ):
        load(str(tmp_path), "train")
    photos_of(tmp_path / "two", "cat", "dog", below="x")
    photos_of(tmp_path / "two" / "train", "cat", "dog")
    photos_of(tmp_path / "two" / "val", "cat", "dog")
    split = load(str(tmp_path / "two"), "train")
    assert split.classes == ["cat", "dog"]
    assert [line.split(": ")[1] for line in split.skipped] == [
        "beside the folders of splits, not read"
    ] * 2


def test_a_folder_of_label_maps_called_train(tmp_path):
    """Scenes, one of which is called as a split: all of them are read."""
    maps = {
        f"{scene}/{i:02}": of_gray(0, 1) for scene in ("park", "street", "train") for i in range(4)
    }
    make_maps(tmp_path, maps)
    split = load(str(tmp_path), "all", None, "semantic")
    assert len(split.samples) == 12
    assert load(str(tmp_path), "train", None, "semantic").source.take == "train"


def test_a_list_called_train_stations(tmp_path):
    for i in range(12):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "train_stations.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in range(12)))
    parts = {
        split: load(str(tmp_path / "train_stations.txt"), split) for split in ("train", "val", None)
    }
    assert {split: len(part.samples) for split, part in parts.items()} == {
        "train": 10,
        "val": 2,
        None: 12,
    }


def test_yolo_poses(tmp_path):
    """kpt_shape: the first four values are the box; the rest is no polygon."""
    yaml = "names: [cat, dog]\ntrain: images/train\nval: images/val\nkpt_shape: [2, 3]\n"
    root = make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2 0.1 0.1 2 0.9 0.9 1\n0 0.5 0.5 0.5 0.5\n", yaml)
    split = load(root, "train", None, "boxes")
    assert np.allclose(
        [item.box for item in split.samples[0].objects], [(15, 12, 25, 18), (10, 7.5, 30, 22.5)]
    )
    assert any("keypoints passed over" in line for line in split.skipped)
    assert load(root, "train", None, "masks").annotations.dropped == {"without a usable mask": 2}
    (tmp_path / "labels" / "train" / "1.txt").write_text("1 0.5 0.5 0.25 0.2 0.1 0.1\n")
    with pytest.raises(DataError, match="line 1: 6 values after the class; kpt_shape asks for 10"):
        load(root, "train", None, "boxes")
    for text in ("[2]", "x", "[0, 3]", "[2, 5]"):
        with pytest.raises(DataError, match="kpt_shape is"):
            load(make_yolo(tmp_path, "", yaml.replace("[2, 3]", text)), "train", None, "boxes")


def test_coco_numbers_as_text():
    row = {
        "image_id": "1",
        "category_id": "1",
        "bbox": ["2", " 3", "10.0", "8"],
        "area": "7",
        "iscrowd": "0",
    }
    images = [{"id": 1, "file_name": "1.png", "width": "40", "height": 30.0}]
    text = document(
        row,
        {"iscrowd": "1"},
        {"iscrowd": False},
        images=images,
        categories=[{"id": "1", "name": "cell"}],
    )
    split = coco.parse(text, "x")
    first, second, third = split.samples[0].objects
    assert (first.box, first.area) == ((2, 3, 12, 11), 7)
    assert [item.crowd for item in (first, second, third)] == [False, True, False]
    assert split.ids == [1]
    text = document(
        {"image_id": 1}, images=[{"id": "01", "file_name": "1.png", "width": 40, "height": 30}]
    )
    assert len(coco.parse(text, "x").samples[0].objects) == 1
    big = str(2**62 + 1)  # exactly, though a float is not
    text = document(
        {"image_id": int(big)},
        images=[{"id": big, "file_name": "1.png", "width": 40, "height": 30}],
    )
    assert len(coco.parse(text, "x").samples[0].objects) == 1
    with pytest.raises(DataError, match="annotation 0: iscrowd is 'maybe'; expected 0 or 1"):
        coco.parse(document({"iscrowd": "maybe"}), "x")


def test_voc_numbers_as_text():
    text = xml(("cat", " 1", "2.0", "30 ", 20), size=("40.0", " 30 "))
    for difficult, crowd in (
        ("0", False),
        ("1", True),
        (" 1 ", True),
        ("1.0", True),
        ("Unspecified", False),
    ):
        annotation = voc.parse(text.replace("<difficult>0<", f"<difficult>{difficult}<"), "x")
        assert annotation.size == (30, 40)
        assert annotation.objects == [("cat", (1, 2, 30, 20), crowd)]


def test_yolo_numbers_as_text(tmp_path):
    yaml = "names: {'0': cat, '1': dog}\nnc: '2'\ntrain: images/train\nval: images/val\n"
    split = load(make_yolo(tmp_path, "1.0 0.5 0.5 0.25 0.2\n", yaml), "train", None, "boxes")
    assert split.classes == ["cat", "dog"]
    assert [item.label for item in split.samples[0].objects] == [1]


@pytest.mark.parametrize("file", ["labels.txt", "classes.txt", "class_names.txt"])
@pytest.mark.parametrize("first", ["__ignore__\n_background_\n", "_background_\n", "__ignore__\n"])
def test_labelme_names_do_not_shift(tmp_path, file, first):
    """labelme's labels.txt begins with index -1, and `_background_` is index 0 of label maps and no class of boxes."""
    if first == "__ignore__\n" and file != "labels.txt":
        return
    make_voc(tmp_path, 3, n1="dog")
    (tmp_path / file).write_text(f"{first}cat\ndog\n")
    split = load(str(tmp_path), "all", None, "boxes")
    assert (split.classes, split.samples[1].objects[0].label) == (["cat", "dog"], 1)
    (tmp_path / "SegmentationClass").mkdir()
    for i in range(3):
        Image.new("L", (40, 30), 2).save(tmp_path / "SegmentationClass" / f"{i:02}.png")
    assert load(str(tmp_path), "all", None, "semantic").classes[2] == "dog"
    make_maps(tmp_path / "maps", {"a": of_gray(0, 1)}, f"{first}cat\n")
    classes = load(str(tmp_path / "maps"), "all", None, "semantic").classes
    assert classes == [name for name in first.split() if name != "__ignore__"] + ["cat"]


def test_two_categories_of_one_name(tmp_path):
    categories = [{"id": 5, "name": "cell"}, {"id": 2, "name": "cell"}, {"id": 9, "name": "x"}]
    rows = [{"category_id": 2}, {"category_id": 5}, {"category_id": 9}]
    split = coco.parse(document(*rows, categories=categories), "x")
    assert (split.classes, split.ids) == (["cell", "x"], [2, 9])
    assert [item.label for item in split.samples[0].objects] == [0, 0, 1]
    assert any(
        "categories 2 and 5 are both called 'cell': one class" in line for line in split.skipped
    )
    yaml = "names: [cat, dog, cat]\ntrain: images/train\nval: images/val\n"
    split = load(
        make_yolo(tmp_path, "2 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n", yaml),
        "train",
        None,
        "boxes",
    )
    assert split.classes == ["cat", "dog"]
    assert [item.label for item in split.samples[0].objects] == [0, 1, 0]
    assert any("names has cat more than once" in line for line in split.skipped)


# --- what is passed over


def palette_map(path: Path, values: np.ndarray, colors: list[tuple[int, int, int]]) -> None:
    image = Image.fromarray(values)
    image.putpalette([value for color in colors for value in color])
    image.save(path)


def test_a_palette_of_another_order_than_the_color_map(tmp_path):
    colors = {(0, 0, 0): 0, (200, 0, 0): 1, (0, 200, 0): 2}
    palette_map(tmp_path / "a.png", of_gray(0, 1, 2, 2), [(0, 0, 0), (0, 200, 0), (200, 0, 0)])
    with pytest.raises(
        DataError, match=r"a.png': the palette shows index 1 in \[0, 200, 0\], .* gives label 2"
    ):
        read_labels(tmp_path / "a.png", colors)
    palette_map(tmp_path / "b.png", of_gray(0, 1, 2, 2), list(colors))
    assert read_labels(tmp_path / "b.png", colors).tolist() == of_gray(0, 1, 2, 2).tolist()
    # colors of its own
    palette_map(tmp_path / "c.png", of_gray(0, 1, 2, 2), [(9, 9, 9), (8, 8, 8), (7, 7, 7)])
    assert read_labels(tmp_path / "c.png", colors).tolist() == of_gray(0, 1, 2, 2).tolist()


def test_voc_pictures_without_annotation_are_said(tmp_path):
    make_voc(tmp_path, 3)
    (tmp_path / "Annotations" / "01.xml").unlink()
    (tmp_path / "Annotations" / "._02.xml").write_text("")
    split = load(str(tmp_path), "all", None, "boxes")
    assert names(split) == ["00.png", "02.png"]
    assert any(
        "1 pictures have no XML file and are left out: 01.png" in line for line in split.skipped
    )


@pytest.mark.parametrize(
    "row", ["images/{0}.png labels/{0}.png", "{0}", "./images/{0}.png", "{0}.png"]
)
def test_lists_beside_label_maps_are_the_splits(tmp_path, row):
    make_maps(tmp_path, {f"{i:02}": of_gray(0, 1) for i in range(12)})
    for split, numbers in (("train", range(8)), ("val", (11, 9))):
        (tmp_path / f"{split}.txt").write_text(
            "".join(row.format(f"{i:02}") + "\n" for i in numbers)
        )
    assert names(load(str(tmp_path), "val", None, "semantic")) == ["11.png", "09.png"]
    assert len(load(str(tmp_path), "train", None, "semantic").samples) == 8
    (tmp_path / "val.txt").write_text("images/03.png labels/04.png\n")
    with pytest.raises(
        DataError, match=r"val.txt, line 1: .*the labels of that image are .*labels/03.png"
    ):
        load(str(tmp_path), "val", None, "semantic")
    (tmp_path / "val.txt").write_text("99.png\n")
    with pytest.raises(
        DataError, match=r"val.txt, line 1: '99.png': no image with labels is called so"
    ):
        load(str(tmp_path), "val", None, "semantic")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("folder", "has lists of splits, val.txt, which this format does not read"),
        ("voc", "no split 'train' in .*; there is val"),
    ],
)
def test_a_list_of_val_alone_stops_it(tmp_path, form, message):
    """Our own split would put pictures of the user's val into train."""
    if form == "folder":
        photos_of(tmp_path, "a", "b")
    else:
        make_voc(tmp_path)
    target = "label" if form == "folder" else "boxes"
    (tmp_path / "val.txt").write_text("a/01.png\n")
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), "train", None, target)
    assert load(str(tmp_path), None, None, target).samples


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("instances_Train.json", "instances_Validation.json"),
        ("a-train.json", "a-valid.json"),
    ],
)
def test_the_users_val_beside_a_named_file(tmp_path, train, val):
    for file, count in ((train, 3), (val, 2)):
        place = (tmp_path / file).parent
        images = [
            {"id": i, "file_name": f"{count}{i}.png", "width": 40, "height": 30}
            for i in range(1, count + 1)
        ]
        for row in images:
            picture(place / row["file_name"])
        (tmp_path / file).write_text(document({}, images=images))
    parts = {
        (file, split): load(str(tmp_path / file), split, None, "boxes")
        for file in (train, val)
        for split in (None, "train", "val")
    }
    sizes = {key: len(split.samples) for key, split in parts.items()}
    assert [sizes[train, split] for split in (None, "train", "val")] == [3, 3, 2]
    assert [sizes[val, split] for split in (None, "train", "val")] == [2, 3, 2]
    assert str(tmp_path / val) in str(parts[train, "val"].source)


# --- what is named is what is read


def lists_of(root: Path, *splits: str) -> Path:
    for split in splits:
        for i in range(12):
            picture(root / split / "ab"[i % 2] / f"{i:02}.png", (8, 6))
        rows = [f"{split}/{'ab'[i % 2]}/{i:02}.png {i % 2}\n" for i in range(12)]
        (root / f"{split}_list.txt").write_text("".join(rows))
    return root


def coco_of(root: Path, *splits: str) -> Path:
    for split in splits:
        images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(1, 13)]
        rows = [{"image_id": i, "bbox": [0, 0, 4, 4]} for i in range(1, 13)]
        for row in images:
            picture(root / "images" / split / row["file_name"], (8, 6))
        (root / f"instances_{split}.json").write_text(document(*rows, images=images))
    return root


def voc_of(root: Path, *splits: str) -> Path:
    make_voc(root, 36)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for k, split in enumerate(splits):
        names_ = [f"{i:02}\n" for i in range(12 * k, 12 * k + 12)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(names_))
    return root


def yolo_of(root: Path, *splits: str) -> Path:
    for split in splits:
        for i in range(12):
            picture(root / "images" / split / f"{i:02}.png", (8, 6))
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{i:02}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text(
        "names: [cat]\n" + "".join(f"{split}: images/{split}\n" for split in splits)
    )
    return root


def maps_of(root: Path, *splits: str) -> Path:
    return make_maps(
        root, {f"{split}/{i:02}": of_gray(0, 1) for split in splits for i in range(12)}
    )


def folders_of(root: Path, *splits: str) -> Path:
    lists_of(root, *splits)
    for split in splits:
        (root / f"{split}_list.txt").unlink()
    return root


def tables_of(root: Path, *splits: str) -> Path:
    folders_of(root, *splits)
    for split in splits:
        files = sorted((root / split).rglob("*.png"))
        rows = [f"{file.relative_to(root)},{file.parent.name}\n" for file in files]
        (root / f"{split}.csv").write_text("path,label\n" + "".join(rows))
    return root


FORMS = {
    "csvfile": (tables_of, "label"),
    "folder": (folders_of, "label"), "listfile": (lists_of, "label"), "coco": (coco_of, "boxes"),
    "voc": (voc_of, "boxes"), "yolo": (yolo_of, "boxes"), "masks": (maps_of, "semantic"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_test_is_never_val(tmp_path, form):
    """train and test without val: part of train is held back, test is untouched, and it is said."""
    make, target = FORMS[form]
    root = str(make(tmp_path, "train", "test"))
    train, val, test, named = (
        load(root, split, form, target) for split in ("train", "val", "test", None)
    )
    images = [{str(sample.image) for sample in split.samples} for split in (train, val, test)]
    assert [len(part) for part in images] == [12 - len(images[1]), len(images[1]), 12]
    assert len(images[1]) in (1, 2)  # of each class, or of all
    assert not images[0] & images[1]
    assert not images[2] & (images[0] | images[1])
    assert "held back for val" in str(train.source)
    assert "held back from train" in str(val.source)
    assert (named.source.split, {str(sample.image) for sample in named.samples}) == (
        "test",
        images[2],
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_split_that_is_not_there(tmp_path, form):
    make, target = FORMS[form]
    root = str(make(tmp_path, "train", "val"))
    with pytest.raises(DataError, match=r"no split 'test' in .*; there is train \(.*, val \("):
        load(root, "test", form, target)
    assert [len(load(root, split, form, target).samples) for split in ("train", "val", None)] == [
        12
    ] * 3
    assert load(root, None, form, target).source.split == "val"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_named_files_and_folders_are_read_whole(tmp_path, split):
    splits = ("train", "val", "test")
    named = [
        (coco_of(tmp_path / "coco", *splits) / f"instances_{split}.json", "boxes"),
        (lists_of(tmp_path / "lists", *splits) / f"{split}_list.txt", "label"),
        (folders_of(tmp_path / "folders", *splits) / split, "label"),
        (folders_of(tmp_path / "alone", split) / split, "label"),
    ]
    for path, target in named:
        read = load(str(path), None, None, target)
        assert len(read.samples) == 12, path
        assert read.source.split == split
        assert str(path.name) in str(read.source)
    train = load(str(tmp_path / "folders" / split), "train", None, "label")
    assert {Path(str(sample.image)).parts[-3] for sample in train.samples} == {"train"}


def test_eval_reads_what_is_named(tmp_path, run, photos, capsys):
    """The heading, the document and the count are of what was read: all pictures of a folder without splits."""

    def measured(*words: str) -> dict[str, Any]:
        assert main(["eval", "--model", str(run), "--json", "--data", *words]) == 0
        out = capsys.readouterr().out
        document = json.loads(out.splitlines()[-1])
        assert f"{document['read']['images']} images" in out
        return document["read"]

    assert measured(str(photos))["images"] == 12
    assert measured(str(photos))["split"] == "val"
    assert measured(str(photos / "train"))["images"] == 24
    assert measured(str(photos / "val"))["images"] == 12
    assert measured(str(photos / "val"), "--split", "val")["images"] == 12
    assert measured(str(photos), "--split", "train")["source"] == str(photos / "train")
    assert main(["eval", "--model", str(run), "--data", str(photos), "--split", "test"]) == 3
    assert "no split 'test'" in capsys.readouterr().err


def test_eval_measures_what_the_run_held_back(tmp_path, photos, capsys):
    """Pictures that came after the training change nothing, nor does the place of the data."""
    root = tmp_path / "photos"
    for file in sorted((photos / "train").rglob("*.png")):
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        (root / file.parent.name / file.name).write_bytes(file.read_bytes())
    run = tmp_path / "run"
    words = [
        "train",
        "--model",
        "fasternet_t0",
        "--size",
        "32",
        "--batch-size",
        "8",
        "--epochs",
        "1",
    ]
    assert main([*words, "--data", str(root), "--run", str(run), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads((run / "split.json").read_text())
    assert kept["val"]["held_back"] == names_of(load(str(root), "val"))
    assert "measured on" in (run / "report.html").read_text()

    def measured(where: Path, *more: str, model: Path = run) -> dict[str, Any]:
        assert main(["eval", "--model", str(model), "--data", str(where), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    first = measured(root)
    assert (
        first["read"]["images"] == trained["data"]["val"]["images"] == len(kept["val"]["held_back"])
    )
    assert first["top1"] == trained["best"]["top1"]
    other = measured(root, "--split", "all")["read"]
    assert (other["images"], other["split"]) == (24, "all")
    moved = tmp_path / "moved"
    root.rename(moved)
    assert measured(moved)["read"]["images"] == first["read"]["images"]
    # without the record: the training data are known by their path
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes((run / "best.safetensors").read_bytes())
    moved.rename(root)
    assert measured(root, model=copied)["read"]["images"] == first["read"]["images"]
    for folder in root.iterdir():  # every tenth is another one now
        for i in range(12):
            picture(folder / f"0{i}.png", (40, 40))
    assert load(str(root), "val").samples != []
    assert len(load(str(root), "val").samples) > first["read"]["images"]
    assert measured(root)["top1"] == first["top1"]
    assert measured(root, model=run / "best.safetensors")["top1"] == first["top1"]
    (root / kept["val"]["held_back"][0]).unlink()
    assert measured(root)["read"]["images"] == first["read"]["images"] - 1


def test_a_resumed_run_does_not_learn_from_what_it_held_back(tmp_path, photos, capsys):
    """Nor does it measure on what it has learned from, where other pictures are every tenth now."""
    root, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos / "train", root)
    words = [
        "train",
        "--model",
        "fasternet_t0",
        "--size",
        "32",
        "--batch-size",
        "8",
        "--epochs",
        "1",
    ]
    assert main([*words, "--data", str(root), "--run", str(run)]) == 0
    before = json.loads((run / "split.json").read_text())
    new = [folder / f"0{i}.png" for folder in root.iterdir() for i in range(12)]
    for file in new:
        picture(file, (40, 40))
    (root / before["val"]["held_back"][0]).unlink()
    assert set(names_of(load(str(root), "val"))) != set(before["val"]["held_back"][1:])
    assert main(["train", "--resume", str(run), "--data", str(root), "--epochs", "2"]) == 0
    assert f"from {root} without those that the run held back" in capsys.readouterr().err
    after = json.loads((run / "split.json").read_text())
    assert after["val"]["held_back"] == before["val"]["held_back"][1:]
    assert after["train"]["images"] == before["train"]["images"] + len(new)
    # the same data: no need to name them
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0


# --- messages


def test_no_samples_says_of_which_split_and_why(tmp_path):
    (tmp_path / "all.json").write_text(document({}))
    picture(tmp_path / "1.png", (30, 40))
    with pytest.raises(
        DataError,
        match=r"no samples for 'all' in .*all.json; skipped: .*1.png': left out, it is 30x40",
    ):
        load(str(tmp_path / "all.json"), "all", None, "boxes")
    root = make_yolo(tmp_path, "", "names: [cat]\ntrain: images/train\n")
    with pytest.raises(
        DataError, match=r"no samples for 'val' in .*images/train, every tenth.*too few pictures"
    ):
        load(root, "val", None, "boxes")


def test_messages_stay_short(tmp_path):
    """A folder of anything, and a JSON of another tool with a key for each of 2000 pictures."""
    for i in range(300):
        (tmp_path / f"folder{i}").mkdir()
        (tmp_path / f"{i}.x{i}").write_text("")
    for target in ("label", "boxes", "masks", "semantic"):
        with pytest.raises(DataError) as caught:
            load(str(tmp_path), "train", None, target)
        text = str(caught.value)
        assert "folder0, folder1" in text
        assert "and 295 more" in text
        assert text.count("\n") < 20
        assert len(text) < 3000
    other = {f"{'x' * 30}{i}.jpg{i}": {"points": []} for i in range(2000)}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match=r"no list of images, .* and 1995 more") as caught:
        load(str(tmp_path / "other.json"), "train", None, "boxes")
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("name", "target"),
    [("camvid11", "semantic"), ("coco_mini", "semantic"), ("coco_mini", "masks"), ("bccd_voc/BCCD", "boxes"),
     ("nuclei_instances", "masks"), ("clothing10", "label")],
)  # fmt: skip
def test_real_data_are_usable(name, target):
    for split in ("train", "val"):
        contents = usable(
            load(str(SHARED / name), split, "folder" if target == "label" else None, target),
            target,
            learn=split == "train",
        )
        assert contents.total > 100


def test_counts_are_told_in_a_line():
    contents = Contents("objects", [3, 0, 20], ignored=2, looked_at=9, pictures=9)
    assert contents.text(["a", "b", "c"]) == "c 20, a 3, b 0; crowds 2"
    assert contents.by_class(["a", "b", "a"]) == {"a (0)": 3, "b": 0, "a (2)": 20}
    assert (
        len(Contents("images", list(range(10_000))).text([f"class {i}" for i in range(10_000)]))
        < 400
    )
    split = Split([Sample(Path("a.png"), objects=())], ["a"])
    assert contents_of(split, "boxes").counts == [0]
    assert yolo.parse("", "x", range(1), (3, 4), "boxes", Notes()) == ()


@pytest.mark.parametrize("names_", ["ca\0t\ndog\n", "a" * 2000 + "\n"])
def test_class_files_that_hold_no_names(tmp_path, names_):
    make_voc(tmp_path, 3)
    (tmp_path / "classes.txt").write_text(names_)
    with pytest.raises(DataError, match=r"classes.txt: no class name: '(aaa|ca)") as caught:
        load(str(tmp_path), "train", None, "boxes")
    assert "\0" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a" * 200 + "/" + "b" * 300])
def test_names_that_no_file_can_have(tmp_path, name):
    """Whatever is named in a list, the file system's own refusal is told in our words."""
    make_voc(tmp_path / "voc", 3)
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"00\n{name}\n")
    (tmp_path / "voc" / "classes.txt").write_text("cat\n")
    write_lists = tmp_path / "train_list.txt"
    write_lists.write_text(f"{name}.png 0\n")
    (tmp_path / "yolo").mkdir()
    yolo_ = make_yolo(tmp_path / "yolo", "", f"names: [cat]\ntrain: {json.dumps(name)}\n")
    images = [{"id": 1, "file_name": name, "width": 40, "height": 30}]
    (tmp_path / "all.json").write_text(document({}, images=images))
    for root, target in (
        (str(tmp_path / "voc"), "boxes"), (str(write_lists), "label"), (yolo_, "boxes"),
        (str(tmp_path / "all.json"), "boxes"), (str(tmp_path / name), "label"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            load(root, "all", None, target)
        assert len(str(caught.value)) < 3000


def test_damaged_annotations_are_read_or_refused(tmp_path):
    """A sample of benchmarks/mutated_annotations.py."""
    mutated = benchmark("mutated_annotations")
    outcomes, faults = mutated.campaign(60, 7, tmp_path)
    assert faults == []
    assert sum(outcomes.values()) == 60
    assert min(outcomes["read"], outcomes["refused"]) > 10
