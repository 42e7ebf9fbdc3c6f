"""Annotation formats: the table of broken files in badfiles/ (CC0), and cases made here."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image, PngImagePlugin

from fleetnet.data import Notes, coco, load, masks, shapes, voc, yolo
from fleetnet.data._masks import mask_of, run_lengths
from fleetnet.errors import DataError
from fleetnet.images import measure, read, read_labels

BAD = Path(__file__).parent / "badfiles"
NEEDS_SHARED = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
BOX = (10, 10, 100, 120)

# file of badfiles/labels -> for boxes, and for masks if it is not the same: the boxes and the words
# of the one line in `skipped`, or the words of the error. Each holds what the column `expect` of
# expectations_labels.tsv says.
LABELS = {
    "voc_control.xml": ([BOX], None),
    "voc_no_objects.xml": ([], None),
    "voc_degenerate_box.xml": ([BOX], "object 2 .*dropped"),
    "voc_swapped_corners.xml": ([], "object 1 .*dropped"),
    "voc_out_of_image.xml": ([(0, 0, 145, 160)], "is cut"),
    "voc_float_coords.xml": ([(10.5, 10, 100.25, 120)], None),
    "voc_text_coords.xml": "voc_text_coords.xml, object 1 .*'ten'",
    "voc_unknown_class.xml": "voc_unknown_class.xml, object 2 .unicorn.*Allowed: shoes",
    "voc_no_size.xml": ([BOX], None),
    "voc_wrong_size.xml": ([BOX], "the image is .160, 145."),
    "voc_no_bndbox.xml": ([], "object 1 .*no bndbox"),
    "voc_missing_image.xml": "no such image: .*does_not_exist.jpg",
    "voc_truncated.xml": "voc_truncated.xml: not XML",
    "voc_path_traversal.xml": "outside of the data",
    "voc_entity_bomb.xml": "voc_entity_bomb.xml: has a DOCTYPE",
    "voc_utf8_bom.xml": ([BOX], None),
    "coco_control.json": ([BOX], None),
    "coco_no_annotations.json": ([], None),
    "coco_empty.json": "coco_empty.json.*no samples",
    "coco_unknown_category.json": "annotation 1: no category with the id 7",
    "coco_orphan_annotation.json": ([BOX], "annotation 2: dropped, .*id 99"),
    "coco_duplicate_ids.json": ([BOX, (20, 20, 50, 50)], None),
    "coco_zero_area.json": ([BOX], "annotation 2: dropped"),
    "coco_negative_size.json": ([], "annotation 1: dropped"),
    "coco_nan_box.json": "annotation 1: .*not finite",
    "coco_xyxy_boxes.json": (
        [(10, 10, 110, 130), (100, 100, 145, 160)],
        "annotation 2: .* leaves the picture",
    ),
    "coco_sparse_ids.json": ([BOX, BOX], None),
    "coco_short_polygon.json": ([BOX], None, [], "annotation 1: dropped, it has no mask"),
    "coco_empty_segmentation.json": ([BOX], None, [], "annotation 1: dropped, it has no mask"),
    "coco_rle_wrong_size.json": r"annotation 1: RLE is of size \[5, 5\]",
    "coco_string_image_id.json": ([BOX], None),
    "coco_path_traversal.json": "image 1: .*outside of the data",
    "coco_truncated.json": "coco_truncated.json: not JSON",
    "coco_list_not_dict.json": "coco_list_not_dict.json: expected an object",
}
MAPS = {  # file of badfiles/masks -> the values that load, or the words of the error
    "control.png": {0, 1, 2, 255},
    "palette_voc_style.png": {0, 1, 2, 255},
    "sixteen_bit.png": {0, 1, 2, 255},
    "all_ignore.png": {255},
    "bilevel_255.png": {0, 255},
    "wrong_size.png": "wrong_size.png' are 72x80, their image .*00_control.jpg' is 145x160",
    "value_out_of_range.png": "value_out_of_range.png': 1 pixels have the value 77; allowed: 0 to "
    "2, 255",
    "rgb_colours.png": "rgb_colours.png': labels are colors",
}


def boxes(split):
    return [[item.box for item in sample.objects] for sample in split.samples]


def contents(split):
    """What a split shows, without the areas and ids that only some formats have."""
    return [
        (sample.image.name, [(item.box, item.label) for item in sample.objects])
        for sample in split.samples
    ]


def document(*annotations, width=40, height=30, **more):
    """The text of a COCO file with one image of 40x30 and one category."""
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8]} | row
        for i, row in enumerate(annotations)
    ]
    images = [{"id": 1, "file_name": "1.png", "width": width, "height": height}]
    return json.dumps(
        {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cell"}]} | more
    )


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


# --- the table of broken files


def test_table_is_whole():
    rows = [
        line.split("\t")[0]
        for line in (BAD / "expectations_labels.tsv").read_text().split("\n")[1:]
    ]
    named = {f"labels/{name}" for name in LABELS} | {f"masks/{name}" for name in MAPS}
    # lists are in test_data.py
    assert named == {row for row in rows if row and "/list_" not in row}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("target", ["boxes", "masks"])
def test_badfiles_labels(tmp_path, name, target):
    xml = name.endswith(".xml")
    if xml and target == "masks":
        return
    shutil.copytree(BAD / "images", tmp_path / ("JPEGImages" if xml else "images"))
    file = tmp_path / ("Annotations" if xml else "annotations") / name
    file.parent.mkdir()
    shutil.copy(BAD / "labels" / name, file)
    if name != "voc_utf8_bom.xml":
        (tmp_path / "classes.txt").write_text("shoes\n")
    root, expected = str(tmp_path if xml else file), LABELS[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            load(root, "all", None, target)
        return
    found, line = expected[2:] if target == "masks" and len(expected) == 4 else expected[:2]
    split = load(root, "all", None, target)
    assert boxes(split) == [found]
    lines = split.skipped
    assert len(lines) == (line is not None)
    if line:
        with pytest.raises(AssertionError, match=line):  # `match` searches as in the errors above
            raise AssertionError(lines[0])
        assert name in lines[0]


def test_badfiles_classes(tmp_path):
    split = coco.parse((BAD / "labels" / "coco_sparse_ids.json").read_text(), "x")
    assert (split.classes, split.ids) == (["stop sign", "toothbrush"], [13, 90])
    assert [item.label for item in split.samples[0].objects] == [1, 0]
    text = (BAD / "labels" / "voc_utf8_bom.xml").read_text(encoding="utf-8")
    assert voc.parse(text, "x").objects == [("сапог", BOX, False)]


@pytest.mark.parametrize("name", MAPS)
def test_badfiles_masks(name):
    if isinstance(MAPS[name], str):
        with pytest.raises(DataError, match=MAPS[name]):
            masks.read(BAD / "masks" / name, BAD / "images" / "00_control.jpg", 3)
        return
    labels = masks.read(BAD / "masks" / name, BAD / "images" / "00_control.jpg", 3)
    assert (labels.shape, labels.dtype, set(labels.ravel().tolist())) == (
        (160, 145),
        np.uint8,
        MAPS[name],
    )
    if MAPS[name] == MAPS["control.png"]:
        assert np.array_equal(labels, np.asarray(Image.open(BAD / "masks" / "control.png")))


# --- masks of objects


def test_masks_of_segmentations():
    expected = np.zeros((4, 6), bool)
    expected[1:3, 2:5] = True
    runs = [9, 2, 2, 2, 2, 2, 5]  # down the columns
    assert np.array_equal(mask_of({"size": [4, 6], "counts": runs}, (4, 6)), expected)
    assert np.array_equal(mask_of([[2, 1, 5, 1, 5, 3, 2, 3]], (4, 6)), expected)
    halves = [[2, 1, 4, 1, 4, 3, 2, 3], [3, 1, 5, 1, 5, 3, 3, 3]]  # which overlap
    assert np.array_equal(mask_of(halves, (4, 6)), expected)


@pytest.mark.parametrize("shape", [(7, 5), (64, 48), (300, 200), (1, 1)])
def test_masks_are_cocos(shape):
    mask = pytest.importorskip("faster_coco_eval.core.mask")
    random = np.random.default_rng(0)
    for density in (0.01, 0.5, 0.99):
        pixels = np.asfortranarray(random.random(shape) < density)
        pixels[-1, -1] = True
        packed = mask.encode(pixels.astype(np.uint8))
        assert np.array_equal(mask_of(packed, shape), pixels)
        assert np.array_equal(
            mask_of(packed | {"counts": packed["counts"].decode()}, shape), pixels
        )
        plain = {"size": list(shape), "counts": run_lengths(packed["counts"]).tolist()}
        assert np.array_equal(mask.decode(mask.frPyObjects(plain, *shape)), pixels)
    points = (random.random((2, 12)) * [*shape, *shape, *shape, *shape, *shape, *shape]).tolist()
    reference = mask.decode(mask.merge(mask.frPyObjects(points, *shape)))
    assert np.array_equal(mask_of(points, shape), reference)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], "fewer than 3 points"), ([[1, 1, 2, 2, 3, 3, 4]], "fewer "
                                                                           "than 3 points"), ([], "no "
                                                                                                  "mask"),
        (None, "no mask"), ([[1, 1, 2, 2, 3, float("nan")]], "far "
                                                             "behind"), ([[1, 1, 2, 2, 3, 1e9]], "far "
                                                                                                 "behind"),
        ([[1, 1, 2, 2, 3, "x"]], "not numbers"), ({"size": [4, 6], "counts": [24]}, "empty"),
        ({"size": [6, 4], "counts": [0, 24]}, "is "
                                              "of size"), ({"size": [4, 6], "counts": [0, 25]}, "add "
                                                                                                "up "
                                                                                                "to "
                                                                                                "25"),
        ({"size": [4, 6], "counts": [0, -1, 25]}, "whole numbers"), ({"size": [4, 6]}, "whole "
                                                                                       "numbers"),
        ({"size": 5, "counts": [24]}, "is of size 5"), ([[1, 1, 2, 2, 3, 10**400]], "not numbers"),
        ({"size": [4, 6], "counts": "P"}, "end within"), ({"size": [4, 6], "counts": "0é"}, "hold "
                                                                                            "'é'"),
        ({"size": [4, 6], "counts": "o" * 99}, "hold "
                                               "'o'"), ({"size": [4, 6], "counts": "00O"}, "whole "
                                                                                           "numbers"),
    ],
)  # fmt: skip
def test_faulty_segmentations(segmentation, message):
    with pytest.raises(DataError, match=message):
        mask_of(segmentation, (4, 6))


# --- COCO


def test_coco_objects_are_kept_as_they_are():
    packed = {"size": [30, 40], "counts": [100, 50, 1050]}
    rows = (
        {"area": 7, "segmentation": [[2, 3, 12, 3, 12, 11]]},
        {"iscrowd": 1, "segmentation": packed},
        {"area": "?"},
    )
    split = coco.parse(document(*rows), "x", "masks")
    first, second = split.samples[0].objects
    assert (first.box, first.label, first.crowd, first.area) == ((2, 3, 12, 11), 0, False, 7)
    assert (first.segmentation, second.segmentation) == ([[2, 3, 12, 3, 12, 11]], packed)
    assert (second.crowd, second.area, split.samples[0].id) == (True, None, 1)
    assert len(split.skipped) == 1
    split = coco.parse(document(*rows), "x")
    assert [item.segmentation for item in split.samples[0].objects] == [None] * 3


def test_coco_mixed_polygons_keep_the_good_ones():
    split = coco.parse(
        document({"segmentation": [[1, 1, 2, 2], [2, 3, 12, 3, 12, 11]]}), "x", "masks"
    )
    assert split.samples[0].objects[0].segmentation == [[2, 3, 12, 3, 12, 11]]


def test_coco_boxes_that_round_stay():
    """Cutting them would change results against other tools; cutting starts at a whole pixel."""
    split = coco.parse(document({"bbox": [30, 3, 10.4, 8]}, {"bbox": [30, 3, 12, 8]}), "x")
    assert [item.box for item in split.samples[0].objects] == [(30, 3, 40.4, 11), (30, 3, 40, 11)]
    assert len(split.skipped) == 1
    split = coco.parse(document({"bbox": [90, 3, 10, 8]}), "x")
    assert split.samples[0].objects == ()
    assert "outside of the picture" in split.skipped[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"), ("[" * 100_000, "not JSON"), ("{}", "no list of images"),
        ("1" * 10_000, "not JSON|expected an object"),
        (document(images=[1]), "no list of images"), (document(categories=[]), "categories is "
                                                                               "empty"),
        (document(categories=[{"id": 1, "name": "a"}] * 2), "two categories have the id 1"),
        (document(categories=[{"id": "x", "name": "a"}]), "id that is a number"),
        (document(width=0), "image 1: width is 0"), (document(width=None), "image 1: width is "
                                                                           "None"),
        (document(images=[{"id": 1, "file_name": "a", "width": 1, "height": 1}] * 2), "two images "
                                                                                      "have the id "
                                                                                      "1"),
        (document(images=[{"id": 1, "width": 1, "height": 1}]), "needs an id and a file_name"),
        (document({"bbox": [1, 2, 3]}), "annotation 0: "
                                        "bbox is"),
        (document({"bbox": [1, 2, 3, "x"]}), "annotation "
                                             "0: bbox is"), (document({"category_id": None}), "id "
                                                                                              "None"),
        (document({"category_id": [1]}), r"annotation 0: no category with the id \[1\]"),
        (document({"bbox": [1, 2, 3, 10**400]}), "annotation 0: bbox is"),
        (document(width=10**400), "image 1: width is"),
        (document({"segmentation": {"size": 5, "counts": [1]}}), "annotation 0: RLE is of size 5"),
    ],
)  # fmt: skip
def test_faulty_coco(text, message):
    with pytest.raises(DataError, match=message) as caught:
        coco.parse(text, "some.json")
    assert "some.json" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (
            ("annotations/instances_train.json", "annotations/instances_val.json"),
            ("images/train", "images/val"),
        ),
        (("annotations/instances_train.json", "annotations/instances_val.json"), ("train", "val")),
        (
            ("annotations/instances_train.json", "annotations/instances_val.json"),
            ("images", "images"),
        ),
        (
            ("annotations/instances_train.json", "annotations/instances_val.json"),
            ("BCCD/JPEGImages",) * 2,
        ),
        (
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            ("train2017", "val2017"),
        ),
        (
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            ("images/train2017", "images/val2017"),
        ),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
        (("train.json", "val.json"), (".", ".")),
    ],
)
def test_coco_layouts(tmp_path, files, folders):
    for file, folder in zip(files, folders, strict=True):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(document({}))
        picture(tmp_path / folder / "1.png")
    for split, folder in zip(("train", "val"), folders, strict=True):
        (sample,) = load(str(tmp_path), split, None, "boxes").samples
        assert sample.image == tmp_path / folder / "1.png"
    if "_annotations" not in files[0]:
        assert load(str(tmp_path / files[0]), "val", None, "boxes") == load(
            str(tmp_path), "val", None, "boxes"
        )


def test_coco_places(tmp_path):
    (tmp_path / "all.json").write_text(document({}))
    with pytest.raises(
        DataError, match=r"all.json, image 1: no such image: '1.png', neither in .*--images"
    ):
        load(str(tmp_path / "all.json"), "all", "coco", "boxes")
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(1, 21)]
    for i in range(1, 21):
        picture(tmp_path / "images" / f"{i}.png")
    (tmp_path / "all.json").write_text(document({}, images=images))
    train, val = (
        load(str(tmp_path / "all.json"), split, None, "boxes").samples for split in ("train", "val")
    )
    assert [sample.id for sample in val] == [10, 20]
    assert len(train) == 18
    (tmp_path / "images" / "7.png").unlink()
    split = load(str(tmp_path / "all.json"), "train", None, "boxes")
    assert len(split.samples) == 17
    assert "1 of 18 images are not there and are left out: 7.png" in split.skipped[0]
    (tmp_path / "x_train.json").write_text(document({}))
    with pytest.raises(DataError, match=r"no split 'test' in .*x_train.json'; there is train "):
        load(str(tmp_path / "x_train.json"), "test", None, "boxes")


@pytest.mark.parametrize("folder", ["annotations", "."])
def test_coco_file_beside_that_of_val(tmp_path, folder):
    """Whether it is of train, or of all pictures, its name does not say: the message says what to call it."""
    picture(tmp_path / "images" / "1.png")
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("instances.json", "instances_val.json"):
        (tmp_path / folder / name).write_text(document({}))
    for root in (tmp_path, tmp_path / folder / "instances.json"):
        with pytest.raises(
            DataError, match=r"instances\.json' says no split, .*instances_train\.json"
        ):
            load(str(root), "train", None, "boxes")
    assert len(load(str(tmp_path), "val", None, "boxes").samples) == 1


def test_coco_leaves_out_images_of_another_size(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(1, 5)]
    packed = {"size": [30, 40], "counts": [100, 50, 1050]}
    (tmp_path / "all.json").write_text(document({"segmentation": packed}, images=images))
    for i, size in enumerate([(40, 30), (30, 40), (80, 60)], 1):
        picture(tmp_path / "images" / f"{i}.png", size)
    (tmp_path / "images" / "4.png").write_bytes(b"no image")
    split = load(str(tmp_path / "all.json"), "all", None, "masks")
    assert [(sample.id, len(sample.objects)) for sample in split.samples] == [(1, 1)]
    assert [line.split("/")[-1] for line in split.skipped[:2]] == [
        "all.json, image 2, says 40x30", "all.json, image 3, says 40x30",
    ]  # fmt: skip
    assert "2.png': left out, it is 30x40; " in split.skipped[0]
    assert "4.png': not an image" in split.skipped[2]
    picture(tmp_path / "images" / "1.png", (41, 30))
    with pytest.raises(
        DataError,
        match=r"no samples for 'all' in .*all.json; skipped: .*1.png': left out, it is 41x30",
    ):
        load(str(tmp_path / "all.json"), "all", None, "masks")


def test_coco_of_one_image_has_no_val(tmp_path):
    (tmp_path / "all.json").write_text(document({}))
    picture(tmp_path / "1.png")
    assert len(load(str(tmp_path / "all.json"), "train", None, "boxes").samples) == 1
    with pytest.raises(
        DataError, match=r"no samples for 'val' in .*all.json, every tenth.* too few pictures"
    ):
        load(str(tmp_path / "all.json"), "val", None, "boxes")


# --- VOC


def xml(*objects, filename="x.jpg", size=(40, 30)):
    """The text of an XML file with objects (name, x0, y0, x1, y1)."""
    rows = [
        f"<object><name>{name}</name><difficult>{int(name == 'hard')}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    ]
    width, height = size
    head = f"<filename>{filename}</filename><size><width>{width}</width><height>{height}</height></size>"
    return f'<?xml version="1.0"?>\n<annotation>{head}{"".join(rows)}</annotation>'


def make_voc(root, count=20, **names):
    for i in range(count):
        picture(root / "JPEGImages" / f"{i:02}.png")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{i:02}.xml").write_text(
            xml((names.get(f"n{i}", "cat"), 1, 2, 30, 20))
        )
    return root


def test_voc_splits_and_classes(tmp_path):
    make_voc(tmp_path, n3="hard", n9="dog")
    train, val = (load(str(tmp_path), split, None, "boxes") for split in ("train", "val"))
    assert train.classes == val.classes == ["cat", "dog", "hard"]
    assert [sample.id for sample in val.samples] == ["09", "19"]
    assert [item.label for sample in val.samples for item in sample.objects] == [1, 0]
    assert [sample.id for sample in train.samples if sample.objects[0].crowd] == ["03"]
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("05\n03\n")
    (lists / "val.txt").write_text("01\n09\n")
    assert load(str(tmp_path), "train", None, "boxes").classes == ["cat", "hard"]
    with pytest.raises(DataError, match=r"09.xml, object 1 \(dog\): the class is not known"):
        load(str(tmp_path), "val", None, "boxes")
    (tmp_path / "classes.txt").write_text("dog\nhard\ncat\n")
    assert [
        item.label
        for sample in load(str(tmp_path), "val", None, "boxes").samples
        for item in sample.objects
    ] == [
        2,
        0,
    ]
    (lists / "val.txt").write_text("../../../etc/passwd\n")
    with pytest.raises(DataError, match="outside of the data"):
        load(str(tmp_path), "val", None, "boxes")
    with pytest.raises(DataError, match="no split 'test'"):
        load(str(tmp_path), "test", None, "boxes")


@pytest.mark.parametrize(
    "text", ["<!DOCTYPE a []><annotation/>", "<! doctype a><annotation/>", "<a><!ENTITY b 'c'></a>"]
)
def test_voc_refuses_entities(text):
    with pytest.raises(DataError, match=r"some.xml: has a DOCTYPE"):
        voc.parse(text, "some.xml")


def test_voc_label_maps(tmp_path):
    make_voc(tmp_path, 2, n0="dog")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    indices = np.arange(1200, dtype=np.uint8).reshape(30, 40) % 3
    for i in range(2):
        image = Image.fromarray(indices)
        # two of them alike: only indices tell them apart
        image.putpalette([7, 7, 7, 255, 0, 0, 255, 0, 0])
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        image.save(tmp_path / "SegmentationClass" / f"{i:02}.png")
    split = load(str(tmp_path), "train", None, "semantic")
    assert split.classes == ["background", "cat", "dog"]
    assert np.array_equal(pickle.loads(pickle.dumps(split.samples[0])).semantic(), indices)
    assert len(load(str(tmp_path), "val", None, "semantic").samples) == 1


def test_voc_label_maps_take_no_order_from_xml(tmp_path):
    make_voc(tmp_path, 2, n1="dog")
    (tmp_path / "SegmentationClass").mkdir()
    for i, index in enumerate((8, 12)):  # cat and dog in VOC
        Image.new("L", (40, 30), index).save(tmp_path / "SegmentationClass" / f"{i:02}.png")
    split = load(str(tmp_path), "train", None, "semantic")
    assert (len(split.classes), split.classes[0], split.classes[8], split.classes[12]) == (
        21,
        "background",
        "cat",
        "dog",
    )
    assert set(split.samples[0].semantic().ravel().tolist()) == {8}
    # an order of their own
    Image.new("L", (40, 30), 2).save(tmp_path / "SegmentationClass" / "01.png")
    with pytest.raises(
        DataError, match=r"classes.txt.*01.png' has \[2\], its XML file what is \[12\] in VOC"
    ):
        load(str(tmp_path), "train", None, "semantic")
    make_voc(tmp_path, 2, n1="unicorn")
    with pytest.raises(DataError, match=r"classes.txt.*'unicorn', which is none of VOC"):
        load(str(tmp_path), "train", None, "semantic")


def test_voc_leaves_out_what_cannot_be_read(tmp_path):
    make_voc(tmp_path, 3)
    (tmp_path / "JPEGImages" / "01.png").write_bytes(b"no image")
    split = load(str(tmp_path), "all", None, "boxes")
    assert [sample.id for sample in split.samples] == ["00", "02"]
    assert len(split.skipped) == 1
    assert "01.png': not an image" in split.skipped[0]


# --- YOLO


def make_yolo(root, labels, yaml="names: [cat, dog]\ntrain: images/train\nval: images/val\n"):
    (root / "data.yaml").write_text(yaml)
    for split in ("train", "val"):
        picture(root / "images" / split / "1.png")
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    (root / "labels" / "train" / "1.txt").write_text(labels)
    return str(root)


def test_yolo_boxes_and_polygons(tmp_path):
    root = make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2\n0 0.1 0.1 0.5 0.1 0.5 0.9\n")
    split = load(root, "train", None, "boxes")
    assert [item.label for item in split.samples[0].objects] == [1, 0]
    assert np.allclose(boxes(split)[0], [(15, 12, 25, 18), (4, 3, 20, 27)])
    with pytest.raises(
        DataError,
        match=r"data.yaml, val: 1 of 1 images have no file of labels, as .*labels/val/1.txt'",
    ):
        load(root, "val", None, "boxes")
    picture(tmp_path / "images" / "val" / "2.png")
    (tmp_path / "labels" / "val" / "2.txt").write_text("0 0.5 0.5 0.25 0.2\n")
    val = load(root, "val", None, "boxes")
    assert [len(sample.objects) for sample in val.samples] == [0, 1]
    assert [line.split(",")[1] for line in val.skipped] == [
        " val: 1 of 2 images have no file of labels"
    ]
    split = load(root, "train", None, "masks")
    assert np.allclose(split.samples[0].objects[0].segmentation, [[4, 3, 20, 3, 20, 27]])
    assert "1.txt, line 1: dropped, it is a box without a polygon" in split.skipped[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("2 0.5 0.5 0.2 0.2", "line 1: class is 2; there are 2 classes"), ("-1 0.5 0.5 "
                                                                           "0.2 0.2", "class is "
                                                                                      "-1"),
        ("0.5 0.5 0.5 0.2 0.2", "class is 0.5"), ("nan 0.5 0.5 0.2 0.2", "class is nan"),
        ("\n0 0.5 0.5 0.2", "line 2: expected `class cx"), ("0 0.5 0.5 0.2 0.2 0.9", "expected "
                                                                                     "`class cx"),
        ("0 0.5 x 0.2 0.2", "expected numbers"), ("0 0.5 nan 0.2 0.2", "expected `class cx"),
    ],
)  # fmt: skip
def test_faulty_yolo(labels, message):
    with pytest.raises(DataError, match=message) as caught:
        yolo.parse(labels, "some.txt", range(2), (30, 40), "boxes", Notes())
    assert "some.txt, line" in str(caught.value)


def test_yolo_boxes_are_dropped_or_cut():
    notes = Notes()
    text = "0 0.5 0.5 0 0.2\n0 0.9 0.5 0.4 0.2\n0 5 5 1 1"
    found = yolo.parse(text, "some.txt", range(2), (30, 40), "boxes", notes)
    assert np.allclose([item.box for item in found], [(28, 12, 40, 18)])
    assert [line.split(":")[0] for line in notes.lines] == [
        f"some.txt, line {i}" for i in (1, 2, 3)
    ]
    assert (notes.read, notes.dropped) == (3, {"without an area": 1, "outside of the picture": 1})


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [a", "not YAML"), ("- 1", "expected names"), ("names: 3\ntrain: images", "names "
                                                                                          "is 3"),
        ("names: {0: a, 2: b}\ntrain: x", "names is"), ("nc: 3\nnames: [a]\ntrain: x", "nc is 3"),
        ("names: [a]", "no paths"), ("names: [a]\ntrain: 5", "train is 5"),
        ("names: [a]\nval: images/val", "no split 'train'"),
        ("names: [a]\ntrain: ../../nowhere/etc", "no such file"), ("names: [a]\ntrain: "
                                                                   "/etc", "no images in '/etc'"),
        ("names: [a]\npath: ..\ntrain: x", "no such file"), ("names: [a]\ntrain: "
                                                             "nowhere", "no such file"),
        ("names: !!python/object:os.system [a]", "not YAML"),
        ("names: [a]\ntrain: 2001-99-99", "data.yaml: not YAML: month "
                                          "must be"), ("[" * 1000, "data.yaml: not YAML"),
        ("names: [yes, 'no']\ntrain: x", "data.yaml: names has yes, on or true without quotes"),
        ("names: {0: 'yes', 1: no}\ntrain: x", "data.yaml: names has no, off or false without "
                                               "quotes"),
    ],
)  # fmt: skip
def test_faulty_yolo_yaml(tmp_path, yaml, message):
    with pytest.raises(DataError, match=message):
        load(make_yolo(tmp_path, "", yaml), "train", None, "boxes")


@pytest.mark.parametrize(
    "use", ["names: *a6", "names: [a]\ntrain: *a6", "names: [a]\nnc: *a6", "names: {0: *a6}"]
)
def test_yolo_yaml_aliases_do_not_expand(use):
    """Seven levels of nine: written out, 5 million words."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 7))
    with pytest.raises(DataError, match=r"some.yaml: (names|train|nc) is ") as caught:
        yolo.parse_yaml(bomb + use, "some.yaml")
    assert len(str(caught.value)) < 3000


def test_yolo_yaml_merges_do_not_expand():
    rows = "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 12))
    with pytest.raises(DataError, match=r"some.yaml: not YAML: .*merge"):
        yolo.parse_yaml(f"a0: &a0 {{k: v}}\n{rows}", "some.yaml")


def test_yolo_yaml_forms(tmp_path):
    expected = load(make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2"), "train", None, "boxes")
    (tmp_path / "list.txt").write_text("./images/train/1.png\n")
    for yaml in (
        "names: {0: cat, 1: dog}\ntrain: list.txt",
        "names: [cat, dog]\ntrain: [../images/train]\nnc: 2",
    ):
        root = make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2", yaml)
        assert contents(load(root, "train", None, "boxes")) == contents(expected)
        assert contents(load(f"{root}/data.yaml", "all", None, "boxes")) == contents(expected)


@pytest.mark.parametrize("key", ["val", "valid", "validation"])
def test_yolo_names_of_val(tmp_path, key):
    root = make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2", f"names: [cat, dog]\n{key}: images/train\n")
    assert [sample.id for sample in load(root, "val", None, "boxes").samples] == ["1"]


@pytest.mark.parametrize("root", [".", "data.yaml", None])
@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/1.png", "labels/train/1.txt"), ("train/images/1.png", "train/labels/1.txt"),
        ("images/a/images/1.png", "images/a/labels/1.txt"), ("train/1.png", "train/1.txt"),
    ],
)  # fmt: skip
def test_yolo_labels_are_found_from_anywhere(tmp_path, monkeypatch, image, labels, root):
    """Neither a relative root nor a folder named images above the data changes what belongs together."""
    data = tmp_path / "images" / "data"
    picture(data / image)
    (data / labels).parent.mkdir(parents=True, exist_ok=True)
    (data / labels).write_text("1 0.5 0.5 0.25 0.2")
    (data / "data.yaml").write_text(f"names: [cat, dog]\ntrain: {Path(image).parent}\n")
    monkeypatch.chdir(data)
    split = load(root or str(data), "train", None, "boxes")
    assert [[item.label for item in sample.objects] for sample in split.samples] == [[1]]


def test_yolo_ids_are_unique(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png", "b/3.png", "b/3.jpg"):
        picture(tmp_path / "images" / name)
    (tmp_path / "labels" / "a").mkdir(parents=True)
    (tmp_path / "labels" / "a" / "1.txt").write_text("0 0.5 0.5 0.25 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images\n")
    split = load(str(tmp_path), "all", None, "boxes")
    assert [sample.id for sample in split.samples] == ["images/a/1", "images/b/1", "2", None, None]


def test_yolo_leaves_out_what_cannot_be_read(tmp_path):
    root = make_yolo(tmp_path, "1 0.5 0.5 0.25 0.2")
    (tmp_path / "images" / "train" / "0.png").write_bytes(b"no image")
    (tmp_path / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.25 0.2")
    split = load(root, "train", None, "boxes")
    assert [sample.id for sample in split.samples] == ["1"]
    assert len(split.skipped) == 1
    assert "0.png': not an image" in split.skipped[0]


# --- label maps


def test_masks_layouts_and_colors(tmp_path):
    labels = np.array([[0, 1], [255, 1]], np.uint8)
    for name in ("a", "b", "c"):
        picture(tmp_path / "images" / f"{name}.png", (2, 2))
    (tmp_path / "masks").mkdir()
    Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
    Image.fromarray(labels).save(tmp_path / "masks" / "z.png")
    colors = np.array([[(0, 0, 0), (9, 8, 7)], [(1, 2, 3), (200, 0, 0)]], np.uint8)
    Image.fromarray(colors).save(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError, match=r"no class names .* classes.txt"):
        load(str(tmp_path), "all", None, "semantic")
    (tmp_path / "colors.txt").write_text("0 0 0 road\n9 8 7 tree\n200 0 0 tree\n1 2 3 void\n")
    split = load(str(tmp_path), "all", None, "semantic")
    assert split.classes == ["road", "tree"]
    assert [sample.semantic().tolist() for sample in split.samples] == [labels.tolist()] * 2
    assert len(split.skipped) == 2  # an image and a label map alone
    Image.fromarray(colors + 1).save(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError, match=r"b.png': 4 pixels are of colors .* as \[1, 1, 1\]"):
        split.samples[1].semantic()


@pytest.mark.parametrize("text", ["1 2 3", "1 2 256 a", "1 2 3 a\n1 2 3 b", "x", ""])
def test_faulty_color_maps(text):
    with pytest.raises(DataError, match=r"colors.txt"):
        masks.parse(text, "colors.txt")


def test_label_files_are_checked(tmp_path):
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "a.png")
    Image.new("L", (2, 2)).save(tmp_path / "b.jpg")
    Image.new("CMYK", (2, 2)).save(tmp_path / "c.png", "TIFF")
    (tmp_path / "d.png").write_bytes(b"")
    for name, message in (
        ("a", "from 300 to 300"),
        ("b", "JPEG"),
        ("c", "mode CMYK"),
        ("d", "empty"),
        ("e", "no such"),
    ):
        path = tmp_path / f"{name}.{'jpg' if name == 'b' else 'png'}"
        with pytest.raises(DataError, match=f"{path.name}.*{message}"):
            read_labels(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pictures_are_measured_as_they_are_read(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert measure(tmp_path / f"a.{suffix}") == read(tmp_path / f"a.{suffix}").size


def test_pngs_are_measured_without_their_pixels(tmp_path, monkeypatch):
    """Not even of one that has its orientation after them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.png", exif=exif)
    data = (tmp_path / "turned.png").read_bytes()
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    plain = data[:at] + data[end:]
    (tmp_path / "plain.png").write_bytes(plain)
    (tmp_path / "late.png").write_bytes(plain[:-12] + data[at:end] + plain[-12:])
    texts = PngImagePlugin.PngInfo()
    texts.add_text(
        "Raw profile type exif", f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}", zip=True
    )
    Image.new("RGB", (20, 10)).save(tmp_path / "text.png", pnginfo=texts)
    loads = []
    load_pixels = PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile,
        "load",
        lambda self: loads.append(self) if self.size != (1, 1) else load_pixels(self),
    )
    for name, size, count in (
        ("plain", (20, 10), 0),
        ("turned", (10, 20), 0),
        ("late", (10, 20), 0),
    ):
        assert (measure(tmp_path / f"{name}.png"), len(loads)) == (size, count)
    monkeypatch.undo()
    for name in ("plain", "turned", "late", "text"):
        assert measure(tmp_path / f"{name}.png") == read(tmp_path / f"{name}.png").size


# --- shapes


def test_shapes_of_all_targets_show_the_same():
    by_box, by_mask, by_pixel = (
        load("shapes:60", "train", None, target) for target in ("boxes", "masks", "semantic")
    )
    assert by_pixel.classes == ["background", *by_box.classes]
    assert {len(sample.objects) for sample in by_box.samples} == {1, 2, 3, 4}
    counts = [item.label for sample in by_box.samples for item in sample.objects]
    assert min(counts.count(label) for label in range(6)) >= 10
    for flat, deep, pixels in zip(by_box.samples, by_mask.samples, by_pixel.samples, strict=True):
        assert [item.box for item in flat.objects] == [item.box for item in deep.objects]
        assert np.array_equal(flat.image(), pixels.image())
        labels, alone, drawn = pixels.semantic(), np.zeros((96, 96), int), np.zeros((96, 96), bool)
        for item in deep.objects:
            mask = mask_of(item.segmentation, (96, 96))
            alone += mask
            rows, columns = np.nonzero(mask)
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(found - item.box).max() < 2
            assert (labels[mask] == item.label + 1).mean() > 0.97
            near = np.array(
                [np.roll(mask, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
            ).any(0)
            drawn[near] |= labels[near] == item.label + 1
        # shapes are drawn half a pixel larger, tips of stars one and more
        assert drawn.sum() > 0.98 * (labels > 0).sum()
        assert alone.max() <= 1  # none covers another


def test_shapes_for_classification_stay():
    assert len(shapes.scene(7).objects) == 1
    assert load("shapes:60", "train").samples[7].label == 1


# --- real data


@NEEDS_SHARED
@pytest.mark.parametrize(("split", "count", "total"), [("train", 205, 2804), ("val", 87, 1137)])
def test_bccd_is_the_same_in_both_formats(split, count, total):
    by_xml, by_json = (
        load(str(SHARED / root), split, None, "boxes") for root in ("bccd_voc/BCCD", "bccd_voc")
    )
    assert contents(by_xml) == contents(by_json)
    assert by_xml.classes == by_json.classes == ["Platelets", "RBC", "WBC"]
    assert (len(by_json.samples), sum(map(len, boxes(by_json)))) == (count, total)
    assert len(by_xml.skipped) == 1
    assert "RBC" in by_xml.skipped[0]


@NEEDS_SHARED
def test_coco_mini_masks_are_their_boxes_and_areas():
    split = load(str(SHARED / "coco_mini"), "val", None, "masks")
    assert (len(split.samples), len(split.classes), len(split.ids), split.skipped) == (
        20,
        80,
        80,
        [],
    )
    for sample in split.samples[:5]:
        width, height = measure(sample.image)
        for item in sample.objects:
            mask = mask_of(item.segmentation, (height, width))
            assert 0.85 < mask.sum() / item.area < 1.15
            rows, columns = np.nonzero(mask)
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(found - item.box).max() <= 4
    maps = load(str(SHARED / "coco_mini"), "train", None, "semantic")
    assert (len(maps.samples), len(maps.classes)) == (80, 129)
    assert maps.samples[0].semantic().shape == measure(maps.samples[0].image)[::-1]


# --- pictures that EXIF turns


def turned_picture(path: Path, orientation: int, size: tuple[int, int] = (40, 20)) -> None:
    """A JPEG of `size` (width, height) as it is stored, with that orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path, exif=exif)


def turned_data(root: Path, format: str, orientation: int, annotated: tuple[int, int]) -> str:
    """A data set of one picture, stored 40 wide and 20 high, annotated for a size (width, height) -> its target."""
    wide, high = annotated
    if format == "coco":
        turned_picture(root / "images/a.jpg", orientation)
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": wide, "height": high}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 10]}],
            "categories": [{"id": 1, "name": "cell"}],
        }
        (root / "annotations").mkdir()
        for split in ("train", "val"):
            (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        return "boxes"
    if format == "yolo":
        turned_picture(root / "images/train/a.jpg", orientation)
        (root / "labels/train").mkdir(parents=True)
        (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        (root / "data.yaml").write_text("names: [cell]\ntrain: images/train\nval: images/train\n")
        return "boxes"
    if format == "voc":
        turned_picture(root / "JPEGImages/a.jpg", orientation)
        (root / "Annotations").mkdir()
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>13</ymax></bndbox>"
        (root / "Annotations/a.xml").write_text(
            f"<annotation><size><width>{wide}</width><height>{high}</height></size>"
            f"<object><name>cell</name>{box}</object></annotation>"
        )
        (root / "ImageSets/Main").mkdir(parents=True)
        for split in ("train", "val"):
            (root / f"ImageSets/Main/{split}.txt").write_text("a\n")
        return "boxes"
    folder = root / ("SegmentationClass" if format == "voc-semantic" else "labels/train")
    folder.mkdir(parents=True)
    Image.fromarray(np.array([[0, 1]], np.uint8)).resize(annotated).save(folder / "a.png")
    (root / "classes.txt").write_text("background\ncell\n")
    if format == "masks":
        turned_picture(root / "images/train/a.jpg", orientation)
        return "semantic"
    turned_picture(root / "JPEGImages/a.jpg", orientation)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("a\n")
    return "semantic"


# whose annotations are of places in a picture
FORMATS_OF_PLACES = "coco", "yolo", "voc", "voc-semantic", "masks"


@pytest.mark.parametrize("format", FORMATS_OF_PLACES)
@pytest.mark.parametrize(("orientation", "size"), [(3, (40, 20)), (6, (20, 40))])
def test_pictures_that_exif_turns_are_counted(tmp_path, format, orientation, size):
    """Where the annotations are of the upright picture's size, nobody can tell; so the number is said."""
    target = turned_data(tmp_path, format, orientation, size)
    split = load(str(tmp_path), "train", None, target)
    assert len(split.samples) == 1
    assert "1 picture, as " in split.skipped[0]
    assert "EXIF orientation" in split.skipped[0]


@pytest.mark.parametrize("format", FORMATS_OF_PLACES)
@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_pictures_that_nothing_turns_are_not_counted(tmp_path, format, orientation):
    target = turned_data(tmp_path, format, orientation, (40, 20))
    split = load(str(tmp_path), "train", None, target)
    assert len(split.samples) == 1
    assert not split.skipped
    if target == "boxes":
        assert split.samples[0].objects[0].box in ((2, 3, 12, 13), (10, 5, 30, 15))


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_boxes_of_the_stored_frame_are_left_out(tmp_path, format):
    target = turned_data(tmp_path, format, 6, (40, 20))
    with pytest.raises(
        DataError, match=r"left out, it is 20x40, turned by its EXIF orientation.* says 40x20"
    ):
        load(str(tmp_path), "train", None, target)


@pytest.mark.parametrize("format", ["masks", "voc-semantic"])
def test_label_maps_of_the_stored_frame_are_refused(tmp_path, format):
    target = turned_data(tmp_path, format, 6, (40, 20))
    split = load(str(tmp_path), "train", None, target)
    with pytest.raises(DataError, match="is 20x40, turned by its EXIF orientation"):
        split.samples[0].semantic()


def test_voc_boxes_of_a_picture_of_another_size(tmp_path):
    """They were drawn on a larger one where they fit that alone; where they fit both, the picture is right."""
    make_voc(tmp_path, 3)
    text = xml(("cat", 1, 2, 70, 50), size=(80, 60))
    (tmp_path / "Annotations" / "01.xml").write_text(text)
    (tmp_path / "Annotations" / "02.xml").write_text(xml(("cat", 1, 2, 30, 20), size=(80, 60)))
    split = load(str(tmp_path), "all", None, "boxes")
    assert [sample.id for sample in split.samples] == ["00", "02"]
    assert split.annotations.dropped == {"of pictures left out": 1}
    assert "01.png': left out, it is 40x30; " in split.skipped[0]
    assert "says 80x60, and its boxes fit that alone" in split.skipped[0]
    assert "the image is (30, 40), and right" in split.skipped[1]
