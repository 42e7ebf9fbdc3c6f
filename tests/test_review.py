"""The second look at data: each kind of finding on data that have it, none on data that are as they should be."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image, ImageEnhance
from test_formats import document

from fleetnet.cli import main
from fleetnet.cli.data_check import DataCheck, _read
from fleetnet.data import Annotations, Object, Sample, Source, Split
from fleetnet.errors import DataError, FleetnetError
from fleetnet.review import KINDS, LEVELS, Finding, by_level, counted, enforce
from fleetnet.review import look as look_module
from fleetnet.review.annotated import annotated
from fleetnet.review.copies import copies, shared_files
from fleetnet.review.look import look_at
from fleetnet.review.pictures import sizes_of
from fleetnet.review.prints import alike, print_of
from fleetnet.review.whole import Review, review

SIZE = (32, 32)
WIDTH, HEIGHT = 48, 40


def scene(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A picture of soft shapes that no other seed has."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def drawn(folder: Path, *names: str, first: int = 0) -> list[Path]:
    """Picture files, each of a scene of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        scene(first + i).save(folder / name)
    return [folder / name for name in names]


def labeled(folder: Path, labels: str, split: str = "train", first: int = 0) -> Split:
    """A picture for each letter, whose label is its place in the alphabet."""
    paths = drawn(folder, *(f"{i}.png" for i in range(len(labels))), first=first)
    samples = [
        Sample(path, ord(label) - ord("a")) for path, label in zip(paths, labels, strict=True)
    ]
    classes = ["a", "b", "c"] if "c" in labels else ["a", "b"]
    return Split(samples, classes, source=Source(str(folder), "folder", split, str(folder)))


def boxed(folder: Path, *boxes: tuple[float, ...], split: str = "train", first: int = 0) -> Split:
    """Two pictures with the same boxes (x0, y0, x1, y1, label)."""
    paths = drawn(folder, "0.png", "1.png", first=first)
    objects = tuple(Object((x0, y0, x1, y1), int(label)) for x0, y0, x1, y1, label in boxes)
    samples = [Sample(path, objects=objects) for path in paths]
    return Split(samples, ["a", "b"], source=Source(str(folder), "coco", split, str(folder)))


class Map:
    """A label map in memory."""

    def __init__(self, *values: int):
        self.values = np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))

    def __call__(self) -> np.ndarray:
        return self.values


def mapped(folder: Path, *maps: Map, split: str = "train", first: int = 0) -> Split:
    paths = drawn(folder, *(f"{i}.png" for i in range(len(maps))), first=first)
    samples = [Sample(path, semantic=one) for path, one in zip(paths, maps, strict=True)]
    return Split(samples, ["a", "b"], source=Source(str(folder), "masks", split, str(folder)))


BOX = (4.0, 4.0, 20.0, 20.0)


def reviewed(
    train: Split, val: Split | None, target: str = "label", max_bad: float = 0.5
) -> Review:
    splits = {"train": train} if val is None else {"train": train, "val": val}
    return review(splits, target, SIZE, max_bad)


def of_labels(change: Callable[[Split, Path], Split]) -> Callable[[Path], Review]:
    """The review of pictures with labels of which train was changed."""

    def make(root: Path) -> Review:
        train = change(labeled(root / "train", "ab" * 10), root)
        return reviewed(train, labeled(root / "val", "ab", "val", first=50))

    return make


def of_boxes(*boxes: tuple[float, ...], **more: object) -> Callable[[Path], Review]:
    """The review of pictures with these boxes beside two good ones."""

    def make(root: Path) -> Review:
        good = ((*BOX, 0), (2.0, 3.0, 30.0, 31.0, 1))
        train = boxed(root / "train", *good, *boxes)
        train = replace(train, **more) if more else train
        return reviewed(train, boxed(root / "val", *good, split="val", first=50), "boxes")

    return make


def with_labels(labels: str, val: str = "ab") -> Callable[[Path], Review]:
    return lambda root: reviewed(
        labeled(root / "train", labels), labeled(root / "val", val, "val", first=500)
    )


def with_maps(*maps: Map) -> Callable[[Path], Review]:
    return lambda root: reviewed(
        mapped(root / "train", *maps),
        mapped(root / "val", Map(0, 1), split="val", first=50),
        "semantic",
    )


def _saved_anew(train: Split, root: Path) -> Split:
    """A picture of train as a JPEG of its own, with another label."""
    scene(2).save(root / "anew.jpg", quality=85)
    return replace(train, samples=[*train.samples, Sample(root / "anew.jpg", 1)])


def _near(train: Split, root: Path) -> Split:
    scene(2).save(root / "anew.jpg", quality=85)
    return replace(train, samples=[*train.samples, Sample(root / "anew.jpg", 0)])


def _again(train: Split, root: Path) -> Split:
    """The pixels of a picture in another format."""
    scene(2).save(root / "again.bmp")
    return replace(train, samples=[*train.samples, Sample(root / "again.bmp", 0)])


def _broken(*numbers: int) -> Callable[[Split, Path], Split]:
    def change(train: Split, root: Path) -> Split:
        for i in numbers:
            (root / "train" / f"{i}.png").write_bytes(b"no picture")
        return train

    return change


def _shares(file: Callable[[Path], object]) -> Callable[[Path], Review]:
    def make(root: Path) -> Review:
        train, val = labeled(root / "train", "ab" * 10), labeled(root / "val", "ab", "val", 50)
        file(root / "val" / "0.png")
        return reviewed(train, val)

    return make


def _deep(train: Split, root: Path) -> Split:
    for i in range(20):
        values = np.asarray(scene(i).convert("L")).astype(np.uint16) * 16
        Image.fromarray(values).save(root / "train" / f"{i}.png")
    return train


def _whole_pictures(root: Path) -> Review:
    paths = drawn(root / "train", *(f"{i}.png" for i in range(12)))
    whole = Object((0.0, 0.0, float(WIDTH), float(HEIGHT)), 0)
    train = Split([Sample(path, objects=(whole,)) for path in paths], ["a"])
    return reviewed(train, None, "boxes")


def _turned(root: Path) -> Review:
    return of_boxes(annotations=Annotations(4, turned=(root / "train" / "0.png",)))(root)


def _several_labels(root: Path) -> Review:
    """A table in which two pictures have two labels, read without naming a model."""
    table_of(root, ("0", "a"), ("1", "a"), ("0", "b"), ("1", "b"), *[(str(i), "a") for i in "2345"])
    read = _read(DataCheck(data=str(root)))
    return replace(review(read.splits, "tags", SIZE), findings=read.findings)


def table_of(root: Path, *rows: tuple[str, str]) -> Path:
    """A table of pictures and labels, of which pictures may have several."""
    drawn(root, *sorted({f"{name}.png" for name, _ in rows}))
    lines = "".join(f"{name}.png,{label}\n" for name, label in rows)
    (root / "labels.csv").write_text("image,label\n" + lines)
    return root


def _named(*classes: str) -> Callable[[Split, Path], Split]:
    return lambda train, root: replace(train, classes=list(classes))


def _lost(dropped: int) -> Callable[[Path], Review]:
    return of_boxes(annotations=Annotations(10, {"without an area": dropped}))


# (kind, level) -> data that have it, and a part of what is said
CASES: dict[tuple[str, str], tuple[Callable[[Path], Review], str]] = {
    ("lost-annotations", "error"): (_lost(6), "6 of 10 annotations dropped"),
    ("lost-annotations", "warning"): (_lost(4), "4 of 10 annotations dropped: 4 without an area"),
    ("nothing-there", "error"): (
        lambda root: reviewed(boxed(root / "train"), None, "boxes"),
        "nothing to learn from: no object in 2 images",
    ),
    ("boxes-below-a-pixel", "error"): (
        of_boxes(*((0.1, 0.1, 0.2 + i / 100, 0.3, 0) for i in range(4))),
        "8 of 12 boxes have no side above a pixel",
    ),
    ("ignored-class", "error"): (with_maps(Map(0, 255)), "no pixel is of the class b, but 50 %"),
    ("one-class-only", "error"): (with_labels("a" * 12), "all images are of the class 'a'"),
    ("unreadable", "warning"): (of_labels(_broken(3)), "1 picture of 20 is not readable"),
    ("unreadable", "error"): (
        of_labels(_broken(*range(11))),
        "11 pictures of 20 are not readable, and left out: more than the share of 0.5",
    ),
    ("outside", "warning"): (
        of_boxes((40.0, 4.0, 60.0, 20.0, 0)),
        "2 boxes of 6 are not inside of the picture",
    ),
    ("outside", "error"): (
        of_boxes(*((40.0, 4.0, 60.0 + i, 20.0, 0) for i in range(3))),
        "6 boxes of 10 are not inside of the picture",
    ),
    ("left-out", "warning"): (
        of_labels(lambda train, root: replace(train, skipped=["x.txt: no image"])),
        "train: left out",
    ),
    ("unused", "warning"): (
        of_labels(
            lambda train, root: replace(
                train, skipped=["val.txt: not used"], unused=["val.txt: not used"]
            )
        ),
        "beside the data, and not used",
    ),
    ("several-labels", "warning"): (_several_labels, "2 pictures of 6 have several labels"),
    ("turned", "warning"): (_turned, "1 annotated picture is turned or mirrored"),
    ("empty-class", "warning"): (
        of_labels(_named("a", "b", "c")),
        "1 class of 3 is declared without one image in train",
    ),
    ("class-not-learned", "error"): (
        with_labels("ab", "abc"),
        "val: the data has a class that the training data does not know: 'c' (1 times)",
    ),
    ("class-not-learned", "warning"): (
        lambda root: reviewed(
            replace(labeled(root / "train", "ab"), classes=["a", "b", "c"]),
            labeled(root / "val", "abc", "val", 50),
        ),
        "1 class is there in val, and without one image in train",
    ),
    ("class-not-measured", "note"): (with_labels("abab", "aa"), "1 class is learned, and not"),
    ("alike-names", "warning"): (of_labels(_named("T-shirt", "t shirt ")), "differ by case"),
    ("one-class-dominates", "warning"): (
        with_labels("a" * 100 + "b"),
        "99.01 % of the images are of the class 'a'",
    ),
    ("few-examples", "note"): (
        with_labels("ab" * 3),
        "2 classes of 2 are there with fewer than 10",
    ),
    ("few-pixels", "warning"): (
        with_maps(Map(*[0] * 1919, 1)),
        "fewer than 10 pixels in all label maps",
    ),
    ("same-box", "warning"): (of_boxes((*BOX, 0)), "2 objects are there twice"),
    ("same-box-two-classes", "note"): (of_boxes((*BOX, 1)), "2 boxes are there twice"),
    ("whole-picture-boxes", "warning"): (_whole_pictures, "in 12 of 12 pictures a box covers all"),
    ("shared", "warning"): (
        _shares(lambda path: scene(3).save(path)),
        "1 validation picture of 2 is the same as pictures of train",
    ),
    ("shared-nearly", "warning"): (
        _shares(lambda path: scene(3).resize((96, 80)).save(path)),
        "1 validation picture of 2 is nearly the same as pictures of train",
    ),
    ("copies", "note"): (of_labels(_again), "1 picture is there again, to the pixel"),
    ("copies-nearly", "note"): (of_labels(_near), "1 picture is nearly the same as another one"),
    ("labeled-twice", "warning"): (
        of_labels(_saved_anew),
        "1 picture is there twice, and annotated",
    ),
    ("deep-values", "note"): (of_labels(_deep), "0 to 4095 becomes 0 to 255"),
    ("small-pictures", "note"): (
        lambda root: review({"train": labeled(root / "train", "ab")}, "label", (224, 224)),
        "2 pictures of 2 are less than half as large as the input of 224x224",
    ),
    ("small-objects", "note"): (
        of_boxes((30.0, 30.0, 35.0, 35.0, 1)),
        "2 objects of 6 are smaller than 8 pixels in the input of 32x32",
    ),
}


def test_every_kind_and_level_has_its_data():
    assert set(CASES) == {(kind, level) for kind, levels in KINDS.items() for level in levels}


@pytest.mark.parametrize(("kind", "level"), CASES, ids=str)
def test_a_kind_of_finding(tmp_path: Path, kind: str, level: str):
    make, said = CASES[kind, level]
    of_kind = [one for one in make(tmp_path).findings if one.kind == kind]
    assert [one.level for one in of_kind] == [level]
    assert said in of_kind[0].text
    assert not re.search(r"\b1 \w+ are\b|\ba [aeiou]", of_kind[0].text)


def test_data_as_they_should_be_have_no_finding(tmp_path: Path):
    for name, make in {
        "labels": of_labels(lambda train, root: train),
        "boxes": lambda root: reviewed(
            boxed(root / "train", *[(2.0 + i, 3.0, 30.0, 31.0, i % 2) for i in range(20)]),
            boxed(root / "val", (*BOX, 0), (2.0, 3.0, 30.0, 31.0, 1), split="val", first=50),
            "boxes",
        ),
        "maps": with_maps(Map(0, 1, 1)),
    }.items():
        assert make(tmp_path / name).findings == [], name


def test_a_finding_is_of_its_levels():
    assert [
        one.level
        for one in by_level([Finding("copies", "note", ""), Finding("unused", "warning", "")])
    ] == ["warning", "note"]
    with pytest.raises(ValueError, match="copies is no error"):
        Finding("copies", "error", "")
    enforce([Finding("unused", "warning", "")])
    with pytest.raises(DataError, match=r"^why$"):
        enforce([Finding("outside", "error", "why")])
    assert counted(1, "box", 3) == "1 box of 3 is"
    assert counted(2, "class") == "2 classes are"


def test_the_page_has_the_table_of_kinds():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", page, re.MULTILINE)
    assert {kind: tuple(levels.split(", ")) for kind, levels in rows} == KINDS
    assert set(LEVELS) == {level for levels in KINDS.values() for level in levels}


def test_what_a_finding_is_about_is_named(tmp_path: Path):
    one = next(
        one for one in of_labels(_broken(*range(9)))(tmp_path).findings if one.kind == "unreadable"
    )
    assert (one.count, len(one.items), one.split) == (9, 9, "train")
    assert "0.png" in one.items[0]


def test_contradictions_between_splits_and_of_boxes(tmp_path: Path):
    train, val = labeled(tmp_path / "train", "ab"), labeled(tmp_path / "val", "ab", "val", first=50)
    scene(0).save(tmp_path / "val" / "1.png")
    (one,) = [one for one in reviewed(train, val).findings if one.kind == "labeled-twice"]
    assert one.items[0].endswith("0.png (a), " + f"{tmp_path / 'val' / '1.png'} (b)")
    train = boxed(tmp_path / "boxes", (*BOX, 0))
    scene(0).save(tmp_path / "boxes" / "1.png")
    train.samples[1] = replace(train.samples[1], objects=())
    (one,) = [one for one in reviewed(train, None, "boxes").findings if one.kind == "labeled-twice"]
    assert "(1 objects)" in one.items[0]
    assert "(0 objects)" in one.items[0]


def test_all_near_copies_are_counted(tmp_path: Path):
    """Two files of one resave, the second with another label, and a darker one are nearly one of train."""
    train, val = labeled(tmp_path / "train", "ab"), labeled(tmp_path / "val", "baba", "val", 50)
    larger, twice, darker = (tmp_path / "val" / f"{i}.png" for i in range(3))
    scene(1).resize((96, 80)).save(larger)
    twice.write_bytes(larger.read_bytes())
    ImageEnhance.Brightness(scene(1)).enhance(0.8).save(darker)
    original = str(tmp_path / "train" / "1.png")
    expected = {f"{str(path)!r} ({original!r})" for path in (larger, twice, darker)}
    whole = reviewed(train, val).findings
    for findings in (whole, shared_files(train, val)):
        (one,) = [one for one in findings if one.kind == "shared-nearly"]
        assert set(one.items) == expected
    counts = {one.kind: one.count for one in whole}
    assert counts["copies-nearly"] == 1  # the darker one
    assert counts["labeled-twice"] == 2  # the second file, as its twin and as that of train
    assert "shared" not in counts


# --- what training says and does is the same


def test_training_ends_for_the_errors_of_the_check(tmp_path: Path, capsys):
    """The same text, from the same code; what needs no picture is said at `train` too."""
    for split in ("train", "val"):
        drawn(tmp_path / "images" / split, "1.png", first=10 * (split == "val"))
    boxes = [{"id": i, "bbox": [1, 2, 3, 0]} for i in (1, 2)] + [{"id": 3, "bbox": [1, 2, 9, 8]}]
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(
            document(*boxes, width=WIDTH, height=HEIGHT)
        )
    data = ["--data", str(tmp_path), "--model", "ssd/fasternet_t0"]
    assert main(["data", "check", *data, "--workers", "0", "--json"]) == 3
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    error = next(one["text"] for one in report["findings"] if one["level"] == "error")
    assert "2 of 3 annotations dropped" in error
    assert f"error: {error}" in out
    assert report["wrong"]
    assert "exit_code" not in report
    assert main(["train", *data, "--run", str(tmp_path / "run")]) == 3
    assert f"fleetnet: {error}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cheap_findings_open_no_picture(tmp_path: Path):
    train, val = labeled(tmp_path / "train", "ab"), labeled(tmp_path / "val", "ab", "val", first=50)
    from fleetnet.data._contents import contents_of

    splits = {"train": train, "val": val}
    contents = {name: contents_of(split, "label") for name, split in splits.items()}
    for split in splits.values():
        for sample in split.samples:
            sample.image.unlink()
    assert [one.kind for one in annotated(splits, contents)] == ["few-examples"]
    assert shared_files(train, val) == []


# --- the verb


def photos(root: Path) -> Path:
    for split, first in (("train", 0), ("val", 100)):
        for k, label in enumerate("ab"):
            drawn(root / split / label, *(f"{i:02}.png" for i in range(12)), first=first + 20 * k)
    return root


def test_data_check_reports_what_is_there(tmp_path: Path, capsys):
    root = photos(tmp_path / "data")
    (root / "train" / "a" / "03.png").write_bytes(b"no picture")
    assert main(["data", "check", "--data", str(root), "--size", "32", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report, text = json.loads(last), "\n".join(lines)
    assert (report["target"], report["task"]) == ("label", "classification")
    assert report["splits"]["train"]["images"] == 24
    assert report["splits"]["train"]["by_class"] == {"a": 12, "b": 12}
    assert report["splits"]["val"]["sizes"]["width"] == [WIDTH] * 3
    assert [one["kind"] for one in report["findings"]] == ["unreadable"]
    assert not report["wrong"]
    assert "warning: train: 1 picture of 24 is not readable" in text
    assert "03.png" in text
    assert f"1 warning; to train: fleetnet train --model repvit_m0_9 --data {root}" in text
    assert len(lines) < 40


def test_tags_are_found_in_a_table_of_them(tmp_path: Path, capsys):
    drawn(tmp_path / "images", *(f"{i:02}.png" for i in range(20)))
    rows = "".join(f"images/{i:02}.png,{i % 2},{int(i % 4 < 3)}\n" for i in range(20))
    (tmp_path / "train.csv").write_text("filename,cat,dog\n" + rows)
    assert main(["data", "check", "--data", str(tmp_path), "--workers", "0", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert (report["task"], report["target"]) == ("multilabel", "tags")
    assert report["splits"]["train"]["by_class"] == {"cat": 8, "dog": 14}
    assert any("14 (77.8 %)" in line for line in lines)
    few = next(one for one in report["findings"] if one["kind"] == "few-examples")
    assert "1 class of 2 is there with fewer than 10 images in train" in few["text"]


def report_of(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> tuple[int, dict]:
    """Exit code and document of `data check`."""
    command = ["data", "check", "--data", str(root), "--workers", "0", "--size", "32", "--json"]
    code = main([*command, *words])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def coco_in(root: Path, **splits: list[str]) -> Path:
    """Twelve pictures of each split, the same in all of them, whose only boxes are of these classes in turn.

    The class that comes last in the names has the first number.
    """
    for split, names in splits.items():
        drawn(root / split, *(f"{i:02}.png" for i in range(12)))
        numbers = {name: i for i, name in enumerate(reversed(dict.fromkeys(names)), 1)}
        images, boxes = [], []
        for i in range(12):
            name = names[i % len(names)]
            images.append({"id": i, "file_name": f"{i:02}.png", "width": WIDTH, "height": HEIGHT})
            box = {"bbox": [1, 2, 30, 30], "area": 900, "iscrowd": 0}
            boxes.append({"id": i, "image_id": i, "category_id": numbers[name], **box})
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        text = {"images": images, "annotations": boxes, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(text))
    return root


def test_classes_of_val_go_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Val has the categories of train in another order: its pictures are those of train, annotated alike."""
    root = coco_in(tmp_path, train=["dog", "cat"], valid=["dog", "cat"])
    file = root / "valid" / "_annotations.coco.json"
    text = json.loads(file.read_text())
    text["categories"] = [{"id": 8, "name": "dog"}, {"id": 9, "name": "cat"}]
    for i, box in enumerate(text["annotations"]):
        box["category_id"] = 8 + i % 2
    file.write_text(json.dumps(text))
    code, report = report_of(capsys, root)
    assert code == 0
    kinds = [one["kind"] for one in report["findings"]]
    assert "shared" in kinds
    assert "labeled-twice" not in kinds
    assert report["splits"]["val"]["by_class"] == report["splits"]["train"]["by_class"]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_class_that_train_lacks_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
):
    root = coco_in(tmp_path, train=["dog", "cat"], valid=["dog", "cat"])
    coco_in(tmp_path, **{split: ["cow", "dog", "cat"]})
    for words in ((), ("--model", "multilabel")):
        code, report = report_of(capsys, root, *words)
        assert code == DataError.exit_code
        errors = [one for one in report["findings"] if one["level"] == "error"]
        assert [(one["kind"], one["items"]) for one in errors] == [("class-not-learned", ["cow"])]
        twice = [one for one in report["findings"] if one["kind"] == "labeled-twice"]
        assert "(cow)" in twice[0]["items"][0] or not words


def test_a_test_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = coco_in(tmp_path, train=["dog", "cat"], valid=["dog", "cat"])
    assert "left-out" not in [one["kind"] for one in report_of(capsys, root)[1]["findings"]]
    coco_in(tmp_path, test=["dog"])
    (root / "test" / "_annotations.coco.json").write_text('{"images": [')
    _, report = report_of(capsys, root)
    (one,) = [one for one in report["findings"] if one["kind"] == "left-out"]
    assert (one["level"], one["split"]) == ("warning", "test")
    assert "not JSON" in one["text"]


def test_two_labels_by_mistake_are_no_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [(str(i), "ab"[i % 2]) for i in range(20)]
    root = table_of(tmp_path, *rows, ("0", "b"))
    assert main(["data", "check", "--data", str(root), "--workers", "0"]) == DataError.exit_code
    assert "'0.png' has several labels" in capsys.readouterr().err
    table_of(tmp_path, *rows, ("0", "b"), ("2", "b"))
    code, report = report_of(capsys, root)
    assert (code, report["task"]) == (0, "multilabel")
    (one,) = [one for one in report["findings"] if one["kind"] == "several-labels"]
    assert "has several labels" in one["text"]


def test_workers_change_nothing(tmp_path: Path):
    train = labeled(tmp_path / "train", "ab" * 20)
    (tmp_path / "train" / "7.png").write_bytes(b"no picture")
    counts: list[tuple[int, int]] = []
    here = look_at(train.samples, "label", 2)
    there = look_at(
        train.samples, "label", 2, None, 2, lambda count, of: counts.append((count, of))
    )
    for one, other in zip(here, there, strict=True):
        assert (one.fault, one.size, one.digest) == (other.fault, other.size, other.digest)
        assert (one.gray == other.gray).all()
    assert here[7].fault
    assert counts == [(16, 40), (32, 40), (40, 40)]
    assert sizes_of(here).ratio == (1.2, 1.2, 1.2)


def test_a_worker_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train = labeled(tmp_path / "train", "ab")
    monkeypatch.setattr(look_module, "_looks", _die)
    with pytest.raises(FleetnetError, match=r"a process that read images died, at .*0\.png"):
        look_at(train.samples, "label", 2, None, 1)


def _die(part: range) -> list[object]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_real_data_have_no_false_alarm(capsys):
    """Two photographs of one blood smear are in train and val, which is true."""
    words = ["data", "check", "--data", str(SHARED / "bccd_voc"), "--workers", "0", "--json"]
    assert main(words) == 0
    (one,) = json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]
    assert (one["kind"], one["count"]) == ("shared-nearly", 1)
    assert "00037.jpg" in one["items"][0]
    assert "00038.jpg" in one["items"][0]


# --- near copies


COPIES: dict[str, Callable[[Image.Image, Path], Image.Image]] = {
    "saved anew": lambda picture, path: _as_jpeg(picture, path, 60),
    "saved badly": lambda picture, path: _as_jpeg(picture, path, 30),
    "half": lambda picture, path: picture.resize((picture.width // 2, picture.height // 2)),
    "squared": lambda picture, path: picture.resize((224, 224)),
    "brighter": lambda picture, path: ImageEnhance.Brightness(picture).enhance(1.1),
    "gray": lambda picture, path: picture.convert("L").convert("RGB"),
}


def _as_jpeg(picture: Image.Image, path: Path, quality: int) -> Image.Image:
    picture.save(path, "JPEG", quality=quality)
    return Image.open(path).copy()


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("real", [False, True], ids=["drawn", "photographs"])
def test_copies_are_like_their_pictures_and_no_others(tmp_path: Path, change: str, real: bool):
    if real and not SHARED.is_dir():
        pytest.skip("../shared/data is not there")
    files = sorted((SHARED / "clothing10" / "val").rglob("*.jpg"))[::9] if real else []
    pictures = [Image.open(file).convert("RGB") for file in files] or [
        scene(i, (160, 120)) for i in range(30)
    ]
    count = len(pictures)
    changed = [COPIES[change](picture, tmp_path / "copy") for picture in pictures]
    nearly = alike(np.stack([print_of(picture) for picture in (*pictures, *changed)]))
    pairs = {(int(one), number) for number, one in enumerate(nearly.first) if one != number}
    pairs |= {(int(one), int(other)) for one, other in nearly.pairs}
    right = {(i, i + count) for i in range(count)}
    assert pairs <= right
    assert len(pairs) >= 0.9 * count


def test_plain_pictures_are_like_no_other():
    plain = np.repeat(np.arange(0, 250, 10, np.uint8), 256).reshape(-1, 16, 16)
    nearly = alike(plain)
    assert (nearly.first == np.arange(len(plain))).all()
    assert len(nearly.pairs) == 0
    assert len(alike(plain[:0]).first) == 0


def test_the_search_is_not_quadratic():
    random = np.random.default_rng(0)
    prints = random.integers(0, 256, (20_000, 16, 16)).astype(np.uint8)
    prints[19_999] = prints[3]
    started = time.process_time()
    nearly = alike(prints)
    assert time.process_time() - started < 6
    assert nearly.first[19_999] == 3
    assert len(nearly.pairs) == 0


def test_films_of_one_scene_are_paired_with_its_first_frame():
    frames = np.stack([print_of(scene(1))] * 5000)
    nearly = alike(frames)
    assert (nearly.first == 0).all()
    assert len(nearly.pairs) == 0


def test_no_pictures_at_all_have_no_copies(tmp_path: Path):
    train = labeled(tmp_path / "train", "ab")
    looks = look_at([Sample(tmp_path / "none.png", 0)] * 2, "label", 2)
    assert copies({"train": train}, {"train": looks}) == []
    assert sizes_of(looks) is None
