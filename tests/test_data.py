"""Formats of data: what they find, how they number classes, and what they say of faulty data."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fleetnet.data import Sample, Split, _label_lists, folder, hold_out, listfile, load, shapes, voc
from fleetnet.data._pictures import PicturesByName
from fleetnet.errors import DataError, UsageError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(root / name)
    return root


def found(split: Split, root: Path) -> list[tuple[str, int | None]]:
    return [(str(sample.image.relative_to(root)), sample.label) for sample in split.samples]


def test_types_are_checked():
    with pytest.raises(DataError, match="start at 0"):
        Sample(Path("a.jpg"), -1)
    with pytest.raises(DataError, match="no samples"):
        Split([], ["a"])
    with pytest.raises(DataError, match=r"label 1 of a\.jpg is out of range"):
        Split([Sample(Path("a.jpg"), 1)], ["a"])


# --- class folders


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder(tmp_path, val):
    make(
        tmp_path,
        "train/b/1.jpg",
        "train/b/sub/2.PNG",
        "train/B/3.jpg",
        "train/a/4.jpg",
        f"{val}/a/5.jpg",
    )
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "notes.txt").write_text("")
    train, held = load(str(tmp_path), "train"), load(str(tmp_path), "val")
    assert train.classes == held.classes == ["B", "a", "b"]
    assert found(train, tmp_path) == [
        ("train/B/3.jpg", 0), ("train/a/4.jpg", 1), ("train/b/1.jpg", 2), ("train/b/sub/2.PNG", 2),
    ]  # fmt: skip
    assert found(held, tmp_path) == [(f"{val}/a/5.jpg", 1)]
    assert len(train.skipped) == 1
    assert "notes.txt" in train.skipped[0]
    with pytest.raises(DataError, match="choose one"):
        load(str(tmp_path), "all")
    with pytest.raises(
        DataError, match=r"no split 'test' in .*; there is train \(.*/train'\), val \("
    ):
        load(str(tmp_path), "test")


@pytest.mark.parametrize("above", ["", "train/"])
def test_folder_without_val(tmp_path, above):
    make(
        tmp_path,
        *(f"{above}cat/{i:02}.jpg" for i in range(25)),
        f"{above}dog/1.jpg",
        f"{above}dog/2.jpg",
    )
    parts = {
        split: found(load(str(tmp_path), split), tmp_path) for split in ("train", "val", "all")
    }
    assert parts["val"] == [
        (f"{above}cat/09.jpg", 0),
        (f"{above}cat/19.jpg", 0),
        (f"{above}dog/2.jpg", 1),
    ]
    with pytest.raises(DataError, match="no split 'test'"):
        load(str(tmp_path), "test")
    assert len(parts["all"]) == 27
    assert sorted(parts["train"] + parts["val"]) == parts["all"]


def test_hold_out():
    for n in range(1, 60):
        train, val = hold_out(range(n), "train"), hold_out(range(n), "val")
        assert sorted(train + val) == list(range(n))
        assert train
        assert len(val) == (max(1, n // 10) if n > 1 else 0)


@pytest.mark.parametrize(
    ("files", "folders", "split", "message"),
    [
        (["train/a/1.jpg"], ["train/b", "val/a"], "train", "class folder .*train/b' has no images"),
        (
            ["train/a/1.jpg", "train/b/1.jpg"],
            ["val/a"],
            "val",
            "class folder .*val/a' has no images",
        ),
        (["a/1.jpg"], ["b"], "train", "class folder .*/b' has no images"),
        (["train/cats/1.jpg", "val/cat/1.jpg"], [], "val", "val/cat' .*did you mean 'cats'"),
        (["train/a/1.jpg", "val/a/1.jpg"], [], "test", "no split 'test'.* there is train .*, val "),
        (
            ["val/a/1.jpg", "test/a/1.jpg"],
            [],
            "train",
            "no split 'train' in .* there is val .*, test",
        ),
    ],
)
def test_folder_faults(tmp_path, files, folders, split, message):
    make(tmp_path, *files)
    for name in folders:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), split)
    assert DataError.exit_code == 3


def test_empty_class_folder_says_what_was_left_out(tmp_path):
    make(tmp_path, "a/1.jpg")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("")
    with pytest.raises(DataError, match=r"left out: .*x\.txt"):
        load(str(tmp_path), "train")


# --- list files


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a.jpg 0\nb.jpg 1\n", [(1, "a.jpg", 0), (2, "b.jpg", 1)]),
        ("\ufeffa.jpg 0\r\nb.jpg 1\r\n", [(1, "a.jpg", 0), (2, "b.jpg", 1)]),
        ("\na.jpg 0\n \n\nb.jpg 1", [(2, "a.jpg", 0), (5, "b.jpg", 1)]),
        ("with space.jpg 3", [(1, "with space.jpg", 3)]),
        (" leading.jpg 3", [(1, " leading.jpg", 3)]),
        ("a.jpg\t0", [(1, "a.jpg", 0)]),
        ("a\tb.jpg\t0", [(1, "a\tb.jpg", 0)]),
        ("a.jpg   007  ", [(1, "a.jpg", 7)]),
        ("größe_图片\u2028.jpg 0", [(1, "größe_图片\u2028.jpg", 0)]),
        ("", []),
    ],
)
def test_list_lines(text, rows):
    assert listfile.parse(text, "list.txt") == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg\n", r"list\.txt, line 2: expected `path label`, found 'b\.jpg'"),
        ("a.jpg cat\nb.jpg 1", "line 1: label 'cat' is not a number"),
        ("a.jpg -1", "line 1: label '-1'"),
        ("a.jpg 1.5", "line 1: label '1.5'"),
        ("a.jpg 0,1", "line 1: label '0,1'"),
        ("a.jpg ٣", "line 1: label"),
    ],
)
def test_faulty_list_lines(text, message):
    with pytest.raises(DataError, match=message):
        listfile.parse(text, "list.txt")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("0 cat\n1 polar bear\n", ["cat", "polar bear"]),
        ("\ufeff1 polar bear\r\n\r\n0\tcat", ["cat", "polar bear"]),
        ("0 crane\n1 crane", ["crane", "crane"]),
        ("0 cat\n2 dog", "no line for index 1"),
        ("0 cat\n0 dog", "line 2: index 0 is there twice"),
        ("cat\ndog", ["cat", "dog"]),
        ("1:cat\n2:dog", ["cat", "dog"]),
        ("cat\n1 dog", "line 1: expected `index name`, found 'cat'"),
        ("", "no line for index 0"),
    ],
)
def test_label_list(text, result):
    if isinstance(result, list):
        assert _label_lists.parse_names(text, "labels").names == result
    else:
        with pytest.raises(DataError, match=result):
            _label_lists.parse_names(text, "labels")


def write_lists(root: Path, train: str, val: str = "", labels: str = "") -> Path:
    make(root, "jpg/a b.jpg", "jpg/c.jpg")
    for name, text in (("train_list", train), ("val_list", val), ("label_list", labels)):
        if text:
            (root / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


def test_lists(tmp_path):
    write_lists(tmp_path, "jpg/c.jpg 1\njpg/a b.jpg 0\n", "jpg/c.jpg 1\n", "0 cat\n1 polar bear\n")
    for root in (tmp_path, tmp_path / "train_list.txt", tmp_path / "val_list.txt"):
        train, val = load(str(root), "train"), load(str(root), "val")
        assert train.classes == val.classes == ["cat", "polar bear"]
        assert found(train, tmp_path) == [("jpg/c.jpg", 1), ("jpg/a b.jpg", 0)]
        assert found(val, tmp_path) == [("jpg/c.jpg", 1)]


def test_lists_without_labels(tmp_path):
    write_lists(tmp_path, "jpg/c.jpg 2\n", "jpg/c.jpg 1\n")
    assert (
        load(str(tmp_path), "train").classes
        == load(str(tmp_path), "val").classes
        == ["0", "1", "2"]
    )


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("trainlist.txt", "vallist.txt"),
        ("my_train_list.txt", "my_val_list.txt"),
        ("train.txt", "val.txt"),
    ],
)
def test_lists_beside_each_other(tmp_path, train, val):
    write_lists(tmp_path, "")
    (tmp_path / train).write_text("jpg/c.jpg 1\n")
    (tmp_path / val).write_text("jpg/c.jpg 0\n")
    for root in (train, val):
        assert found(load(str(tmp_path / root), "train"), tmp_path) == [("jpg/c.jpg", 1)]
        assert found(load(str(tmp_path / root), "val"), tmp_path) == [("jpg/c.jpg", 0)]
        assert load(str(tmp_path / root), "val").classes == ["0", "1"]


@pytest.mark.parametrize("name", ["images.txt", "values.txt", "latest.txt", "intervals.txt"])
def test_one_list_for_all(tmp_path, name):
    write_lists(tmp_path, "")
    (tmp_path / name).write_text("jpg/c.jpg 0\n" * 20 + "jpg/a b.jpg 1\n")
    counts = {
        split: len(load(str(tmp_path / name), split).samples)
        for split in ("train", "val", "all", None)
    }
    assert counts == {"train": 19, "val": 2, "all": 21, None: 21}
    with pytest.raises(DataError, match=r"no split 'test' in .*, which has no splits"):
        load(str(tmp_path / name), "test")


@pytest.mark.parametrize(
    ("train", "val", "labels", "message"),
    [
        (
            "jpg/c.jpg 0\njpg/a b.jpg 2\n",
            "",
            "0 cat\n1 dog",
            r"train_list\.txt, line 2: label 2 is out of range.* 0 to 1",
        ),
        ("jpg/c.jpg 0\n", "jpg/c.jpg 1\n", "", r"val_list\.txt, line 1: label 1 is out of range"),
        (
            "jpg/c.jpg 0\njpg/c.jpg 1000000\n",
            "",
            "",
            r"train_list\.txt, line 2: label 1000000 without a label_list",
        ),
        ("jpg/c.jpg 0\njpg/nope.jpg 0\n", "", "", r"no such image: line 2: 'jpg/nope\.jpg'"),
        ("../x.jpg 0\n", "", "", r"line 1: '\.\./x\.jpg' is outside"),
        ("jpg/../../x.jpg 0\n", "", "", "line 1: .* is outside"),
        ("/etc/passwd 0\n", "", "", "line 1: '/etc/passwd' is outside"),
        ("\n \n", "", "", "no samples"),
    ],
)
def test_faulty_lists(tmp_path, train, val, labels, message):
    write_lists(tmp_path, train, val, labels)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), "val" if val else "train")


def test_list_faults_of_files(tmp_path):
    write_lists(tmp_path, "jpg/c.jpg 0\n")
    for root in (tmp_path, tmp_path / "train_list.txt"):
        with pytest.raises(
            DataError, match=r"no split 'test' in .* there is train \(.*train_list\.txt"
        ):
            load(str(root), "test")
        with pytest.raises(
            DataError, match=r"no samples for 'val' in .*train_list.txt, every tenth.* too few"
        ):
            load(str(root), "val")
    (tmp_path / "train_list.txt").write_bytes("\njpg/größe.jpg 0\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train_list\.txt, line 2: not UTF-8"):
        load(str(tmp_path), "train")
    (tmp_path / "x_label_list.txt").write_text("0 a")
    (tmp_path / "y_label_list.txt").write_text("0 a")
    (tmp_path / "train_list.txt").write_text("jpg/c.jpg 0")
    with pytest.raises(DataError, match="several label lists"):
        load(str(tmp_path), "train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("control", 2), ("crlf_bom", 2), ("blank_lines_no_final_newline", 2), ("space_in_path", 1),
        ("tab_separated", 1), ("no_label", "line 2"), ("bad_label", "line "
                                                                    "1"), ("negative_label", "line "
                                                                                             "1"),
        ("label_out_of_range", "line 2"), ("missing_file", "nope"), ("empty", "no "
                                                                              "samples"), ("latin1", "latin1.txt"),
    ],
)  # fmt: skip
def test_badfiles_lists(tmp_path, name, result):
    (tmp_path / "images").symlink_to(SHARED / "badfiles" / "images")
    path = tmp_path / f"list_{name}.txt"
    path.write_bytes((SHARED / "badfiles" / "labels" / path.name).read_bytes())
    if isinstance(result, int):
        assert len(load(str(path), "all").samples) == result
    else:
        with pytest.raises(DataError, match=result):
            load(str(path), "all")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("split", ["train", "val"])
def test_clothing10_is_the_same_by_folder_and_by_list(split):
    by_folder, by_list = (
        load(str(SHARED / "clothing10"), split, format) for format in ("folder", "listfile")
    )
    assert by_folder == by_list
    assert len(by_folder.samples) == {"train": 1817, "val": 341}[split]
    assert by_folder.classes == (SHARED / "clothing10" / "classes.txt").read_text().split()


# --- finding the format


def test_format_is_found(tmp_path):
    make(tmp_path, "train/a/1.jpg", "val/a/1.jpg")
    assert folder.detect(str(tmp_path))
    assert not listfile.detect(str(tmp_path))
    (tmp_path / "train_list.txt").write_text("train/a/1.jpg 0\n")
    # what is written down goes before class folders
    assert load(str(tmp_path), "train").classes == ["0"]
    assert load(str(tmp_path), "train", "folder").classes == ["a"]


def test_faults_of_the_request(tmp_path):
    make(tmp_path, "pictures/1.jpg")
    with pytest.raises(
        DataError,
        match=r"fits no format.*\n  csvfile: .*\n  folder: ROOT/train.*\n  listfile: .*\n  shapes: ",
    ):
        load(str(tmp_path), "train")
    with pytest.raises(DataError, match=r"no such file or folder: .* did you mean '.*/pictures'"):
        load(str(tmp_path / "picture"), "train")
    with pytest.raises(DataError, match=f"no such file or folder: .*{tmp_path.name}' is there"):
        load(str(tmp_path / "zzz" / "zz"), "train", "folder")
    with pytest.raises(UsageError, match="no split 'vall': did you mean 'val'"):
        load(str(tmp_path), "vall")
    with pytest.raises(UsageError, match="did you mean 'folder'"):
        load(str(tmp_path), "train", "foldr")


# --- shapes


def test_shapes_splits():
    train, val = load("shapes", "train"), load("shapes", "val")
    assert (len(train.samples), len(val.samples), len(train.classes)) == (2000, 500, 6)
    assert [len(load("shapes:60", split).samples) for split in ("train", "val")] == [60, 15]
    assert set(Counter(sample.label for sample in load("shapes:60", "train").samples).values()) == {
        10
    }
    for root in ("shapes:", "shapes:x", "shapes:-5", "shapes:7", "shapes:٣٣"):
        with pytest.raises(UsageError, match="shapes:COUNT"):
            load(root, "train")


def test_shapes_are_the_same_every_time():
    sample = load("shapes:60", "train").samples[7]
    first = np.asarray(sample.image())
    assert first.shape == (96, 96, 3)
    assert np.array_equal(first, pickle.loads(pickle.dumps(sample)).image())
    assert not np.array_equal(first, load("shapes:60", "val").samples[7].image())
    x, y = shapes.scene(7).objects[0].outline[0]
    assert (x, y) == pytest.approx((52.986799, 32.053202), abs=1e-4)  # on every machine and version


@pytest.mark.parametrize("index", range(12))
@pytest.mark.parametrize("size", [64, 96])
def test_shapes_boxes_and_masks(index, size):
    scene = shapes.scene(index, "train", size)
    (thing,) = scene.objects
    x0, y0, x1, y1 = thing.box()
    mask = np.asarray(thing.mask(size))
    rows, columns = np.nonzero(mask)
    assert thing.label == index % 6
    assert set(np.unique(mask)) == {0, 255}
    assert min(x0, y0) >= -1e-6
    assert max(x1, y1) <= size + 1e-6
    assert (
        np.abs(
            np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            - (x0, y0, x1, y1)
        ).max()
        < 2
    )
    middle = mask[int((y0 + y1) / 2), int((x0 + x1) / 2)]
    assert middle == (0 if shapes.CLASSES[thing.label] == "ring" else 255)
    # the picture has the color of the object inside of it, but for the noise over everything
    colors = np.asarray(shapes.render(scene), float)[mask > 0]
    assert np.abs(np.median(colors, 0) - np.array(thing.color)).max() < 0.12 * 128 + 8
    assert all(small.box()[2] - small.box()[0] < (x1 - x0) for small in scene.clutter)


# --- nothing outside of the folder that is named


@pytest.mark.parametrize("name", ["csv", "labels", "metadata", "splits"])
@pytest.mark.parametrize("names", [("a.jpg", "b.jpg"), ("a", "b")])
def test_tables_name_no_pictures_above_the_root(tmp_path, name, names):
    """The folder above a table of `labels/` is the data's where the table is named, and not where the folder is."""
    make(tmp_path, "a.jpg", "b.jpg")
    root = tmp_path / name
    root.mkdir()
    (root / "labels.csv").write_text(f"image,label\n{names[0]},cat\n{names[1]},dog\n")
    with pytest.raises(DataError, match=r"no such picture below|fits no format"):
        load(str(root), "all")
    assert len(load(str(root / "labels.csv"), "all").samples) == 2


@pytest.mark.parametrize("name", ["lists", "labels", "meta"])
def test_lists_name_no_pictures_above_the_root(tmp_path, name):
    make(tmp_path, "pictures/a.jpg", "pictures/b.jpg")
    (tmp_path / "label_list.txt").write_text("0 cat\n1 dog\n")
    root = tmp_path / name
    root.mkdir()
    (root / "train.txt").write_text("a.jpg 0\nb.jpg 1\n")
    with pytest.raises(DataError, match="no such image"):
        load(str(root), "train")
    assert load(str(root / "train.txt"), "all").classes == ["cat", "dog"]


# --- a label is looked up, not searched for


class Searched(list[str]):
    """A list of names in which none is looked for one by one."""

    def index(self, *_: object) -> int:
        raise AssertionError("a list is searched for a name")

    def __contains__(self, _: object) -> bool:
        raise AssertionError("a list is searched for a name")


def test_labels_are_not_searched_for(tmp_path, monkeypatch):
    """A hundred thousand lines with a thousand classes would be compared fifty million times."""
    make(tmp_path, "1.jpg", "2.jpg", "JPEGImages/1.jpg")
    (tmp_path / "train_list.txt").write_text("1.jpg cat\n2.jpg dog\n")
    names = listfile._undeclared
    monkeypatch.setattr(
        listfile, "_undeclared", lambda *args: names(*args)._replace(names=Searched(["cat", "dog"]))
    )
    assert [sample.label for sample in load(str(tmp_path), "all").samples] == [0, 1]
    (tmp_path / "train_list.txt").unlink()
    box = "".join(
        f"<{side}>{i}</{side}>" for i, side in enumerate(("xmin", "ymin", "xmax", "ymax"))
    )
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "1.xml").write_text(
        f"<annotation><object><name>dog</name><bndbox>{box}</bndbox></object></annotation>"
    )
    monkeypatch.setattr(voc, "_classes", lambda *_: Searched(["cat", "dog"]))
    (sample,) = load(str(tmp_path), "all", target="boxes").samples
    assert [item.label for item in sample.objects or ()] == [1]


def test_names_are_not_looked_for_among_all_pictures(tmp_path):
    """A hundred thousand names of a list would be compared with as many pictures each."""

    class Scanned(dict[Path, str]):
        def values(self) -> Any:
            raise AssertionError("all pictures are gone through for a name")

    make(tmp_path, "images/1.jpg", "val/2.jpg")
    pictures = PicturesByName([tmp_path])
    pictures._split = Scanned(pictures._split)
    assert pictures.named("1.jpg", "train") == [tmp_path / "images" / "1.jpg"]
    assert pictures.named("2.jpg", "val") == [tmp_path / "val" / "2.jpg"]
