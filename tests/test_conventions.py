"""The table of what data sets call their parts: names of splits, of folders, of label maps."""

from pathlib import Path

import pytest

from fleetnet.data._conventions import (
    by_split,
    child,
    files_in,
    folders_in,
    map_key,
    only_folder,
    serves_as_val,
    split_lists,
    split_of,
    word_in,
)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train", "TRAIN", "training", "Training", "train2017", "trainval"]),
        ("val", ["val", "valid", "validation", "Val", "VALID", "val2017", "val_2014"]),
        ("test", ["test", "Test", "testing", "Testing", "test2017", "testset"]),
        (None, ["trains", "retrain", "values", "interval", "latest", "2017", "", "train-cat"]),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize(
    ("stem", "word"),
    [
        ("instances_Train", ("train", "instances_", "Train", "")),
        ("person_keypoints_val2017", ("val", "person_keypoints_", "val", "2017")),
        ("Validation_annotations", ("val", "", "Validation", "_annotations")),
        ("testlist", ("test", "", "test", "list")),
        ("values", None),
        ("interval", None),
    ],
)
def test_words_in_names_of_files(stem, word):
    assert word_in(stem) == word


def test_the_first_name_counts_and_the_latest_year():
    named = {
        name: Path(name) for name in ("valid", "val", "train2014", "train2017", "Test", "cats")
    }
    assert by_split(named) == {
        "train": Path("train2017"),
        "val": Path("val"),
        "test": Path("Test"),
    }


def test_test_serves_as_val_of_trainval_alone():
    both = {name: Path(name) for name in ("trainval", "test")}
    there = by_split(both)
    assert there["val"] == Path("test")
    assert "'test' serves as val" in (serves_as_val(there) or "")
    assert "val" not in by_split({"train": Path("train"), **both})
    assert "val" not in by_split({"train": Path("train"), "test": Path("test")})


def test_what_nobody_made_is_passed_over(tmp_path):
    for name in ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", "IMGS"):
        (tmp_path / name).mkdir()
    for name in ("._a.xml", "Thumbs.db", "train.txt", "VAL_list.txt", "notes.txt", ".train.txt"):
        (tmp_path / name).touch()
    assert folders_in(tmp_path) == [tmp_path / "IMGS"]
    assert only_folder(tmp_path) == child(tmp_path, ["images", "imgs"]) == tmp_path / "IMGS"
    assert files_in(tmp_path, ".xml") == []
    assert split_lists(tmp_path) == {
        "train": tmp_path / "train.txt",
        "val": tmp_path / "VAL_list.txt",
    }
    (tmp_path / "a.jpg").touch()
    assert only_folder(tmp_path) is None  # it holds pictures itself


@pytest.mark.parametrize(
    "name",
    ["x", "x_mask", "x.jpg", "x_L", "x_labelIds", "x_leftImg8bit", "x_gtFine_labelIds", "x_MASK"],
)
def test_label_maps_by_the_name_of_their_image(name):
    assert map_key(name) == "x"
