"""Data sets as others: there and back they are the same, to the last value, or it is said what is not."""

import errno
import hashlib
import io
import json
import os
import random
import tarfile
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder, VOCDetection

from fleetnet import data
from fleetnet.cli import main
from fleetnet.data import writing
from fleetnet.data._masks import mask_of, runs_of
from fleetnet.data._targets import targets_of
from fleetnet.data.writing import _album, _proof, convert, write
from fleetnet.data.writing._outlines import outlines_of
from fleetnet.data.writing._reading import splits_of
from fleetnet.errors import DataError, UsageError, WriteError
from fleetnet.files import writing as writing_of
from fleetnet.find import names
from fleetnet.images import read
from fleetnet.reading import Member

CLASSES = ["Bär, groß", "the 'first' one", "a", "10 kg", "zebra (wild)"]
WRITERS = names("data.writing")


def pairs_of(kind: str) -> list[tuple[str, str]]:
    able = [name for name in WRITERS if kind in writing.find(name).TARGETS]
    return list(combinations(able, 2))


# ---- data sets, written by the test itself


def picture(path: Path, rng: random.Random, size: tuple[int, int], turned: bool = False) -> None:
    """A picture of noise, which no other one is like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8)
    image = Image.fromarray(pixels.reshape(size[1], size[0], 3))
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(path, exif=exif)


def split_names(rng: random.Random) -> list[str]:
    return rng.choice([["train", "val"], ["train", "val", "test"], ["all"]])


def objects_in(folder: Path, seed: int, holds: set[str]) -> Path:
    """A COCO data set with random objects that have the parts of annotations in `holds`."""
    rng = random.Random(seed)
    for split in split_names(rng):
        rows: dict[str, list] = {"images": [], "annotations": []}
        for i in range(rng.randint(3, 5)):
            width, height = rng.randint(20, 70), rng.randint(20, 70)
            # Of two folders, and called alike.
            name = f"{rng.choice('ab')}{i}/p{i // 2}.{rng.choice(['jpg', 'png'])}"
            turned = rng.random() < 0.3
            stored = (height, width) if turned else (width, height)
            place = folder / "images" / split.replace("all", "")
            picture(place / name, rng, stored, turned)
            id = rng.randint(1, 10**6)
            rows["images"].append({"id": id, "file_name": name, "width": width, "height": height})
            for _ in range(rng.randint(0, 4)):
                rows["annotations"].append(
                    {
                        "id": len(rows["annotations"]) + 1,
                        "image_id": id,
                        "category_id": 3 * rng.randrange(len(CLASSES)) + 2,
                        **annotation(rng, width, height, holds),
                    }
                )
        categories = [{"id": 3 * i + 2, "name": name} for i, name in enumerate(CLASSES)]
        file = folder / "annotations" / f"instances_{split}.json".replace("all", "default")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**rows, "categories": categories}))
    return folder


def annotation(rng: random.Random, width: int, height: int, holds: set[str]) -> dict:
    x, y = rng.uniform(0, width - 9), rng.uniform(0, height - 9)
    if rng.random() < 0.5:
        x, y = int(x), int(y)
    w, h = rng.randint(2, 8), rng.randint(2, 8)
    row: dict = {"bbox": [x, y, w, h], "iscrowd": 0}
    if "mask" in holds and rng.random() < 0.7:
        parts = rng.randint(1, 2) if "parts" in holds else 1
        row["segmentation"] = [
            [x, y, x + w, y, x + w, y + h - 0.5 * i, x, y + h] for i in range(parts)
        ]
    if "crowd" in holds and rng.random() < 0.3:
        row["iscrowd"] = 1
    if "runs" in holds and rng.random() < 0.3:
        mask = np.zeros((height, width), bool)
        mask[int(y) : int(y) + h, int(x) : int(x) + w] = True
        row["segmentation"] = {"size": [height, width], "counts": runs_of(mask)}
    if "area" in holds and rng.random() < 0.5:
        row["area"] = rng.uniform(1, 60)
    return row


def maps_in(folder: Path, seed: int, holds: set[str]) -> Path:
    rng = random.Random(seed)
    classes = ["background", *CLASSES[:3]]
    for split in split_names(rng):
        part = "" if split == "all" else split
        for i in range(rng.randint(3, 5)):
            width, height = rng.randint(20, 70), rng.randint(20, 70)
            picture(folder / "images" / part / f"p{i}.png", rng, (width, height))
            labels = np.array(
                [rng.choice([0, 0, 1, 2, 255]) for _ in range(width * height)], np.uint8
            )
            (folder / "labels" / part).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(labels.reshape(height, width))
            image.save(folder / "labels" / part / f"p{i}.png")
    (folder / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return folder


def labels_in(folder: Path, seed: int, holds: set[str]) -> Path:
    rng = random.Random(seed)
    classes = CLASSES if "order" in holds else sorted(CLASSES)
    for split in split_names(rng):
        lines = []
        for i in range(2 * len(classes)):
            name = f"images/{split}/{rng.choice('ab')}/{i // 2} {split}.jpg"
            if not (folder / name).exists():
                picture(folder / name, rng, (rng.randint(20, 40), 20))
                lines.append(f"{name} {i % len(classes)}")
        (folder / f"{split}_list.txt".replace("all", "train")).write_text("\n".join(lines))
    rows = "\n".join(f"{i} {name}" for i, name in enumerate(classes))
    (folder / "label_list.txt").write_text(rows, encoding="utf-8")
    return folder


# ---- what is compared


def seen(root: Path, target: str, written_as: str | None = None) -> dict:
    """All of a data set: by split its classes, and by the bytes of its pictures what is known of them."""
    format = writing.find(written_as).FORMAT if written_as else None
    splits = splits_of(str(root), format, target, data.USUAL)
    return {name: (split.classes, samples_of(split)) for name, split in splits.items()}


def samples_of(split: data.Split) -> dict:
    samples = {}
    for sample in split.samples:
        image = sample.image
        content = image.read() if isinstance(image, Member) else image.read_bytes()
        labels = None if sample.semantic is None else sample.semantic().tobytes()
        objects = [
            (split.classes[item.label], item.box, item.crowd, item.segmentation, item.area)
            for item in sample.objects or ()
        ]
        named = None if sample.label is None else split.classes[sample.label]
        samples[hashlib.sha256(content).hexdigest()] = named, labels, objects
    assert len(samples) == len(split.samples)
    return samples


def same(one: object, other: object) -> bool:
    """Whether two structures are the same, numbers up to a millionth of a pixel."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) < 1e-6 * max(1, abs(one))
    if isinstance(one, float) and other is None:  # an area that COCO's files have to have
        return True
    return one == other


MADE = {"boxes": objects_in, "semantic": maps_in, "label": labels_in}


PAIRS = [(kind, *pair) for kind in MADE for pair in pairs_of(kind)]


@pytest.mark.parametrize(
    ("kind", "first", "second", "seed"), [(*pair, seed) for seed, pair in enumerate(PAIRS)]
)
def test_there_and_back_is_the_same(
    tmp_path: Path, kind: str, first: str, second: str, seed: int
) -> None:
    holds = set(writing.find(first).HOLDS) & set(writing.find(second).HOLDS)
    target = data.OBJECTS if kind == "boxes" else kind
    made = MADE[kind](tmp_path / "made", seed, holds)
    asked = None if kind == "boxes" else kind
    convert(str(made), first, tmp_path / "one", target=asked)
    one = seen(tmp_path / "one", target, first)
    assert same(without_areas(one), without_areas(seen(made, target)))
    assert convert(str(tmp_path / "one"), second, tmp_path / "other", target=asked).lost == {}
    assert same(without_areas(seen(tmp_path / "other", target, second)), without_areas(one))
    convert(str(tmp_path / "other"), first, tmp_path / "back", target=asked)
    assert same(seen(tmp_path / "back", target, first), one)


def without_areas(splits: dict) -> list:
    """COCO's areas are measured where none are annotated; a name says no split of data without one."""
    return [
        (
            classes,
            {
                key: (label, labels, [item[:-1] for item in objects])
                for key, (label, labels, objects) in samples.items()
            },
        )
        for classes, samples in splits.values()
    ]


# ---- pictures


def of_two_folders(folder: Path) -> Path:
    """Labels of pictures that are called alike, in any case, and one with a name that few systems take."""
    rng = random.Random(0)
    lines = []
    for i, name in enumerate(
        ["a/x.jpg", "b/x.jpg", "b/X.png", "c/y: 1.jpg", "c/z.jpeg", "c/w.png"]
    ):
        picture(folder / name, rng, (20, 20))
        lines.append(f"{name} {i % 2}\n")
    (folder / "train_list.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("to", ["list", "folder"])
@pytest.mark.parametrize("link", [False, True])
def test_pictures_stay_as_they_are(tmp_path: Path, to: str, link: bool) -> None:
    made = of_two_folders(tmp_path / "made")
    converted = convert(str(made), to, tmp_path / "out", link=link)
    before = {path.read_bytes(): path.stat().st_ino for path in made.rglob("*.*g")}
    after = {path.read_bytes(): path.stat().st_ino for path in (tmp_path / "out").rglob("*.*g")}
    assert before.keys() == after.keys()
    assert converted.linked == (len(before) if link else 0)
    assert (before == after) is link
    stems = [path.stem.lower() for path in (tmp_path / "out").rglob("*.*g")]
    assert len(set(stems)) == len(stems)
    assert not [stem for stem in stems if ":" in stem]
    assert converted.renamed > 0


@pytest.mark.parametrize("to", ["folder", "list", "shards"])
def test_progress_is_said_while_it_is_written(tmp_path: Path, to: str) -> None:
    """After each picture, when it is there and the next one is not."""
    made, out = of_two_folders(tmp_path / "made"), tmp_path / "out"
    said: list[tuple[int, int]] = []
    at_the_end = {"list": "train_list.txt", "shards": "dataset.json"}.get(to)

    def progress(count: int, whole: int) -> None:
        said.append((count, whole))
        written = [path.name for path in tmp_path.rglob("*") if made not in path.parents]
        assert at_the_end not in written

    convert(str(made), to, out, progress=progress)
    assert said == [(count, 6) for count in range(1, 7)]


@pytest.mark.parametrize("to", ["folder", "list", "shards"])
def test_arrays_are_pictures_there_and_back(tmp_path: Path, to: str) -> None:
    made, rng = tmp_path / "made", np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4):
            (made / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 9, 5), np.uint8)
            np.save(made / split / "ab"[i % 2] / f"{i}.npy", pixels)
    convert(str(made), to, tmp_path / "one")
    one = seen(tmp_path / "one", "label", to)
    assert one == seen(made, "label")
    convert(str(tmp_path / "one"), "folder", tmp_path / "back")
    assert seen(tmp_path / "back", "label") == one


@pytest.mark.parametrize("to", ["list", "shards"])
def test_one_tag_is_there_or_not(tmp_path: Path, to: str) -> None:
    samples = []
    for i in range(6):
        picture(tmp_path / f"{i}.png", random.Random(i), (20, 20))
        samples.append({"image": tmp_path / f"{i}.png", "tags": ["cat"] * (i % 2)})
    split = data.from_samples(samples, ["cat"])
    write({"all": split}, "tags", to, tmp_path / "out")
    back = data.load(str(tmp_path / "out"), "all", target="tags")
    assert back.classes == ["cat"]
    assert [one.tags for one in back.samples] == [(), (0,)] * 3


def test_an_array_beside_a_picture_in_a_shard_is_not_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", random.Random(0), (20, 20))
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, content in {
            "0.npy": b"features",
            "0.png": (tmp_path / "0.png").read_bytes(),
            "0.cls": b"0",
            "1.img.npy": b"pixels",
            "1.cls": b"1",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    split = data.load(str(tmp_path / "train-0.tar"), "all")
    assert [sample.image.name for sample in split.samples] == ["0.png", "1.img.npy"]
    assert "semantic" not in targets_of(str(tmp_path / "train-0.tar"), None, None)


def test_what_cannot_be_linked_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*paths: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", elsewhere)
    made = of_two_folders(tmp_path / "made")
    assert convert(str(made), "list", tmp_path / "out", link=True).linked == 0
    assert len(list((tmp_path / "out").rglob("*.*g"))) == 6


def test_drawn_pictures_are_png(tmp_path: Path) -> None:
    converted = convert("shapes:8", "folder", tmp_path / "out")
    assert {name: len(split.samples) for name, split in converted.splits.items()} == {
        "train": 8,
        "val": 2,
        "test": 2,
    }
    split = data.load(str(tmp_path / "out"), "train")
    drawn = data.load("shapes:8", "train")
    pictures = {read(sample.image).tobytes() for sample in split.samples}
    assert pictures == {sample.image().tobytes() for sample in drawn.samples}


# ---- names of classes


STRANGE = [
    "a/b",
    "a\\b",
    'say "x"',
    "it's",
    "a, b",
    "é ü",
    "  x",
    "x\ny",
    "yes",
    "1.5",
    ".x",
    "0 x",
    "",
]
KEEPS = {
    "coco": set(STRANGE),
    "yolo": set(STRANGE),
    "shards": set(STRANGE) - {""},
}


def split_of_one(path: Path, classes: list[str], target: str) -> data.Split:
    """A picture of the first class and one of the second."""
    samples = []
    for label in (0, 1):
        image = path / f"{label}.png"
        picture(image, random.Random(label), (20, 20))
        labels = np.full((20, 20), label, np.uint8)
        annotation = {
            "label": {"label": label},
            "boxes": {"boxes": [(2, 3, 9, 11)], "labels": [label]},
            "semantic": {"map": labels},
        }
        samples.append({"image": image, **annotation[target]})
    return data.from_samples(samples, classes)


@pytest.mark.parametrize("to", WRITERS)
def test_strange_names_of_classes_come_back_or_are_refused(tmp_path: Path, to: str) -> None:
    """In each format, a data set with the name as its first class."""
    writer = writing.find(to)
    kept = set()
    for i, name in enumerate(STRANGE):
        target = writer.TARGETS[0]
        split = split_of_one(tmp_path / "made", [name, "other"], target)
        with suppress(DataError):  # of which the next test says what they are
            write({"train": split, "val": split}, target, to, tmp_path / f"out{i}")
            kept.add(name)
    assert kept >= KEEPS.get(to, {"é ü", "it's", "a, b"}), STRANGE


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("folder", "a/b", "no folder can be called as the class 'a/b'"),
        ("folder", ".x", "no folder can be called as the class '.x'"),
        ("list", "x\ny", "a class cannot be written into label_list.txt: .*'y'"),
        ("list", "  x", "class '  x' cannot be written into label_list.txt: .* read as 'x'"),
        ("masks", "x\ny", r"class 'x\\ny' cannot be written into classes.txt"),
        ("voc", "", "class '' cannot be written into classes.txt: it would be read as 'other'"),
        ("voc", "x\x01y", "what was written cannot|not XML"),
    ],
)
def test_a_name_that_a_format_cannot_hold_is_said(
    tmp_path: Path, to: str, name: str, message: str
) -> None:
    target = writing.find(to).TARGETS[0]
    split = split_of_one(tmp_path / "made", [name, "other"], target)
    with pytest.raises(DataError, match=message):
        write({"train": split, "val": split}, target, to, tmp_path / "out")
    assert os.listdir(tmp_path) == ["made"]


# ---- what a format cannot hold


def with_all(folder: Path) -> Path:
    return objects_in(folder, 7, {"mask", "crowd", "runs", "parts", "area"})


def test_what_is_lost_is_asked_for_and_counted(tmp_path: Path) -> None:
    made = str(with_all(tmp_path / "made"))
    with pytest.raises(
        DataError,
        match=r"(?s)yolo cannot hold all of it: .*crowds, which are left out.*--target boxes.*--lossy",
    ):
        convert(made, "yolo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    converted = convert(made, "yolo", tmp_path / "out", lossy=True)
    splits = splits_of(made, None, data.OBJECTS, data.USUAL)
    objects = [item for split in splits.values() for one in split.samples for item in one.objects]
    crowds = sum(item.crowd for item in objects)
    assert crowds
    assert converted.lost["crowds, which are left out"] == crowds
    runs = [item for item in objects if isinstance(item.segmentation, dict) and not item.crowd]
    words = "masks as run lengths, which become polygons around the same pixels"
    assert converted.lost[words] == len(runs)
    written = splits_of(str(tmp_path / "out"), None, data.OBJECTS, data.USUAL)
    kept = [item for split in written.values() for one in split.samples for item in one.objects]
    assert len(kept) == len(objects) - crowds


def test_boxes_alone_lose_no_masks(tmp_path: Path) -> None:
    made = with_all(tmp_path / "made")
    converted = convert(str(made), "voc", tmp_path / "out", target="boxes")
    assert [name.partition(" as ")[0] for name in converted.lost] in ([], ["areas"])
    with pytest.raises(DataError, match=r"voc cannot hold all of it: [0-9]+ masks"):
        convert(str(made), "voc", tmp_path / "other")


def test_polygons_become_one_that_covers_the_same(tmp_path: Path) -> None:
    parts = [[2, 2, 12, 2, 12, 12, 2, 12], [20, 4, 30, 4, 30, 20, 20, 20]]
    picture(tmp_path / "a.png", random.Random(0), (40, 30))
    sample = {"image": tmp_path / "a.png", "masks": [parts], "labels": [0]}
    split = data.from_samples([sample], ["x"])
    write({"all": split}, "masks", "yolo", tmp_path / "out", lossy=True)
    (back,) = data.load(str(tmp_path / "out"), "all", target="masks").samples
    (item,) = back.objects
    assert item.box == pytest.approx((2, 2, 30, 20))
    differ = mask_of(item.segmentation, (30, 40)) != mask_of(parts, (30, 40))
    assert differ.sum() <= 10  # of the line between them


def mask_with(hole: bool) -> np.ndarray:
    """Two pixels that touch at a corner, and a square, with a hole or without."""
    mask = np.zeros((30, 40), bool)
    mask[4:12, 5:15] = True
    mask[12, 15] = True
    mask[6:9, 8:11] = not hole
    return mask


def test_masks_of_pixels_become_polygons_unless_they_have_a_hole(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", random.Random(0), (40, 30))
    masks = [mask_with(hole=False), mask_with(hole=True)]
    sample = {"image": tmp_path / "a.png", "masks": masks, "labels": [0, 0]}
    split = data.from_samples([sample], ["x"])
    with pytest.raises(DataError, match="1 masks with holes, of which the boxes stay"):
        write({"all": split}, data.OBJECTS, "yolo", tmp_path / "out")
    write({"all": split}, data.OBJECTS, "yolo", tmp_path / "out", lossy=True)
    (back,) = splits_of(str(tmp_path / "out"), None, data.OBJECTS, data.USUAL)["all"].samples
    whole, holed = back.objects
    assert np.array_equal(mask_of(whole.segmentation, (30, 40)), masks[0])
    assert holed.segmentation is None
    assert holed.box == pytest.approx((5, 4, 16, 13))


def test_outlines_cover_the_pixels_of_their_masks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((9, 12)) < 0.3
        polygons = outlines_of(mask)
        if polygons is None:
            assert has_hole(mask)
        elif polygons:
            assert not has_hole(mask)
            assert np.array_equal(mask_of(polygons, mask.shape), mask)


def has_hole(mask: np.ndarray) -> bool:
    """Whether pixels outside cannot be reached from the border, also by corners."""
    outside = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(outside)
    reached[0, 0] = True
    while True:
        wider = np.pad(reached, 1)
        rows, columns = outside.shape
        around = [wider[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
        grown = np.logical_or.reduce(around) & outside
        if np.array_equal(grown, reached):
            return bool((outside & ~reached).any())
        reached = grown


def test_folders_order_classes_by_name_and_have_none_without_a_picture(tmp_path: Path) -> None:
    samples = []
    for i in range(4):
        picture(tmp_path / f"{i}.png", random.Random(i), (20, 20))
        samples.append({"image": tmp_path / f"{i}.png", "label": ["b", "a"][i % 2]})
    split = data.from_samples(samples, ["b", "unused", "a"])
    with pytest.raises(DataError, match="1 classes without a picture"):
        write({"all": split}, "label", "folder", tmp_path / "out")
    write({"all": split}, "label", "folder", tmp_path / "out", lossy=True)
    back = data.load(str(tmp_path / "out"), "all")
    assert back.classes == ["a", "b"]
    assert [back.classes[one.label] for one in back.samples] == ["a", "a", "b", "b"]


def test_a_class_of_val_alone_is_a_class(tmp_path: Path) -> None:
    rows = {"images": [], "annotations": []}
    for split, category in (("train", 1), ("val", 5)):
        picture(tmp_path / f"made/images/{split}/{split}.png", random.Random(category), (20, 20))
        rows = {
            "images": [{"id": 1, "file_name": f"{split}.png", "width": 20, "height": 20}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": category, "bbox": [1, 2, 3, 4]}
            ],
            "categories": [{"id": category, "name": f"class {category}"}],
        }
        file = tmp_path / f"made/annotations/instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(rows))
    converted = convert(str(tmp_path / "made"), "yolo", tmp_path / "out")
    assert any("class 5" in line for line in converted.left_out)
    val = data.load(str(tmp_path / "out"), "val", target="boxes")
    assert val.classes == ["class 1", "class 5"]
    assert val.samples[0].objects[0].label == 1


# ---- what is asked for and cannot be


def test_kinds_that_do_not_go_together_are_said(tmp_path: Path) -> None:
    made = str(of_two_folders(tmp_path / "made"))
    with pytest.raises(DataError, match=r"has label of an image .label., and yolo holds boxes"):
        convert(made, "yolo", tmp_path / "out")
    with pytest.raises(UsageError, match="yolo has no label of an image"):
        convert(made, "yolo", tmp_path / "out", target="label")
    with pytest.raises(UsageError, match="--to is 'yollo': did you mean 'yolo'"):
        convert(made, "yollo", tmp_path / "out")
    with pytest.raises(UsageError, match="--target is 'boxs': did you mean 'boxes'"):
        convert(made, "yolo", tmp_path / "out", target="boxs")
    with pytest.raises(UsageError, match="say which with --target"):
        convert("shapes:8", "voc", tmp_path / "out")


def test_only_an_empty_folder_outside_of_the_data_is_written(tmp_path: Path) -> None:
    made = of_two_folders(tmp_path / "made")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="full', which is not empty"):
        convert(str(made), "folder", tmp_path / "full")
    with pytest.raises(UsageError, match="within the data"):
        convert(str(made), "folder", made / "out")
    (tmp_path / "empty").mkdir()
    convert(str(made), "folder", tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_link_to_an_empty_folder_is_that_folder(tmp_path: Path) -> None:
    made = of_two_folders(tmp_path / "made")
    for name in ("list", "shards"):
        (tmp_path / f"{name}-folder").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"{name}-folder")
    convert(str(made), "list", tmp_path / "list")
    splits = splits_of(str(made), None, "label", data.USUAL)
    data.shards.write(splits, tmp_path / "shards")
    for name in ("list", "shards"):
        assert (tmp_path / name).is_symlink()
        assert data.load(str(tmp_path / f"{name}-folder"), "all").samples
    (tmp_path / "inside").symlink_to(made)
    with pytest.raises(UsageError, match="within the data"):
        convert(str(made), "list", tmp_path / "inside" / "out")


@pytest.mark.parametrize("to", ["folder", "list"])
def test_a_class_of_val_alone_is_no_class_of_folders(tmp_path: Path, to: str) -> None:
    """The picture of val whose class has no folder in train is left out, with leave."""
    rows = {"train": "ab", "val": "abc", "test": "c"}
    for split, labels in rows.items():
        for label in labels:
            picture(tmp_path / f"made/{split}/{label}.png", random.Random(split + label), (20, 20))
        lines = [f"{split}/{label}.png {'abc'.index(label)}\n" for label in labels]
        (tmp_path / f"made/{split}_list.txt").write_text("".join(lines))
    (tmp_path / "made/label_list.txt").write_text("0 a\n1 b\n2 c\n")
    if to == "list":
        assert convert(str(tmp_path / "made"), to, tmp_path / "out").lost == {}
        return
    message = "1 classes without a picture to learn from.* 2 pictures of these classes.* --to list"
    with pytest.raises(DataError, match=message):
        convert(str(tmp_path / "made"), to, tmp_path / "out")
    converted = convert(str(tmp_path / "made"), to, tmp_path / "out", lossy=True)
    assert list(converted.lost.values()) == [1, 2]
    assert list(converted.splits) == ["train", "val"]
    val = data.load(str(tmp_path / "out"), "val")
    assert (val.classes, [one.label for one in val.samples]) == (["a", "b"], [0, 1])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WriteError),
    ],
)
def test_nothing_is_left_of_what_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type
) -> None:
    made = of_two_folders(tmp_path / "made")
    copied = []

    def copyfile(source: Path, path: Path) -> None:
        if len(copied) == 3:
            raise error
        copied.append(path)
        path.write_bytes(source.read_bytes())

    monkeypatch.setattr(_album.shutil, "copyfile", copyfile)
    with pytest.raises(expected):
        convert(str(made), "list", tmp_path / "new" / "deep" / "out")
    assert len(copied) == 3
    assert os.listdir(tmp_path) == ["made"]


def test_a_full_disk_names_the_folder_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_two_folders(tmp_path / "made")

    def full(path: Path, *_: object) -> None:
        with writing_of(path / "train-000000.tar"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing.find("list"), "write", lambda splits, folder, album: full(folder))
    with pytest.raises(WriteError) as raised:
        convert(str(made), "list", tmp_path / "out")
    assert str(raised.value).startswith(f"{tmp_path / 'out' / 'train-000000.tar'} cannot be")


def test_what_is_read_otherwise_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.find("coco"), "side", lambda start, end: end - start + 0.01)
    with pytest.raises(DataError, match="does not come back as it was, and was removed"):
        convert(str(with_all(tmp_path / "made")), "coco", tmp_path / "out")
    monkeypatch.setattr(_proof, "splits_of", lambda folder, *_: data.load(f"{folder}/x", None))
    with pytest.raises(DataError, match=r"was removed: ") as raised:
        convert(str(with_all(tmp_path / "other")), "yolo", tmp_path / "out", lossy=True)
    assert str(tmp_path / "out" / "x") in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["made", "other"]


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    made = maps_in(tmp_path / "made", 5, set())
    images = sorted((made / "images").rglob("*.png"))
    images[0].write_bytes(b"no picture")
    labels = sorted((made / "labels").rglob("*.png"))
    Image.new("L", (3, 3)).save(labels[-1])
    converted = convert(str(made), "voc", tmp_path / "out", target="semantic")
    assert [images[0].name in line for line in converted.left_out].count(True)
    assert any(f"{str(labels[-1])!r} are 3x3" in line for line in converted.left_out)
    assert len(list((tmp_path / "out" / "JPEGImages").iterdir())) == len(images) - 2
    with pytest.raises(DataError, match=r"more than the share of 0\.1 that --max-bad allows"):
        convert(str(made), "voc", tmp_path / "other", target="semantic", max_bad=0.1)


# ---- splits, and the command


def test_train_and_test_without_val_stay_so(tmp_path: Path) -> None:
    for split, count in (("train", 24), ("test", 3)):
        for i in range(count):
            path = tmp_path / "made" / split / "ab"[i % 2] / f"{i:02}.png"
            picture(path, random.Random(f"{split}{i}"), (20, 20))
    converted = convert(str(tmp_path / "made"), "list", tmp_path / "out")
    assert {name: len(one.samples) for name, one in converted.splits.items()} == {
        "train": 24,
        "test": 3,
    }
    for split in ("train", "val"):  # every tenth of each class: the same pictures
        held = [data.load(str(tmp_path / name), split) for name in ("made", "out")]
        contents = [sorted(one.image.read_bytes() for one in split.samples) for split in held]
        assert contents[0] == contents[1]


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, out = str(with_all(tmp_path / "made")), str(tmp_path / "out")
    words = ["data", "convert", "--data", made, "--to", "yolo", "--out", out]
    assert main(words) == 3
    assert "--lossy" in capsys.readouterr().err
    assert main([*words, "--lossy", "--split", "train", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "read back and the same" in shown
    assert "crowds, which are left out" in shown
    document = json.loads(shown.splitlines()[-1])
    assert document["splits"].keys() == {"train"}
    assert document["classes"] == CLASSES
    assert sum(document["lost"].values()) > 0
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


# ---- read by the tools of others


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_others_read_the_coco_file(tmp_path: Path) -> None:
    made = with_all(tmp_path / "made")
    convert(str(made), "coco", tmp_path / "out")
    for file in sorted((tmp_path / "out" / "annotations").iterdir()):
        coco = COCO(str(file))
        split = file.stem.removeprefix("instances_").replace("default", "all")
        ours = data.load(str(tmp_path / "out"), split, target=data.OBJECTS)
        assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == ours.classes
        for sample in ours.samples:
            rows = coco.loadAnns(coco.getAnnIds(imgIds=[sample.id]))
            assert len(rows) == len(sample.objects)
            size = tuple(coco.imgs[sample.id][side] for side in ("height", "width"))
            for row, item in zip(rows, sample.objects, strict=True):
                assert row["area"] > 0
                if item.segmentation is not None:
                    mask = mask_of(item.segmentation, size)
                    assert np.array_equal(coco.annToMask(row), mask)


def test_others_read_the_other_files(tmp_path: Path) -> None:
    made = objects_in(tmp_path / "made", 3, set())
    splits = splits_of(str(made), None, "boxes", data.USUAL)
    convert(str(made), "yolo", tmp_path / "yolo")
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert list(described["names"].values()) == CLASSES
    for name, split in splits.items():  # as paths beside the file
        folder = tmp_path / "yolo" / described["train" if name == "all" else name]
        assert len(list(folder.iterdir())) == len(split.samples)
    convert(str(made), "voc", tmp_path / "voc")
    lists = sorted((tmp_path / "voc" / "ImageSets" / "Main").iterdir())
    listed = [name for file in lists for name in file.read_text().split("\n") if name]
    assert len(listed) == sum(len(split.samples) for split in splits.values())
    for name in listed:
        root = ElementTree.parse(tmp_path / "voc" / "Annotations" / f"{name}.xml").getroot()
        said = VOCDetection.parse_voc_xml(root)["annotation"]
        assert (tmp_path / "voc" / "JPEGImages" / said["filename"]).is_file()
        assert all(one["name"] in CLASSES for one in said["object"])
    convert("shapes:12", "folder", tmp_path / "folder")
    ours = data.load(str(tmp_path / "folder"), "train")
    theirs = ImageFolder(str(tmp_path / "folder" / "train"))
    assert theirs.classes == ours.classes
    assert theirs.samples == [(str(one.image), one.label) for one in ours.samples]
