"""Class labels in the layouts that people have them in: label, name and split of every picture."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from support.layouts import CLASSES, HEIGHT, MANY, SPLITS, WIDTH, Shot, save, seen, truth, write

from fleetnet.data import Split, load
from fleetnet.errors import DataError
from fleetnet.images import read

CLASS = {shot.name: CLASSES[i % 3] for i, shot in enumerate(MANY)}  # of each picture
ALL = {"all": MANY}
TRAIN_ONLY = {"train": MANY}
Write = Callable[[Path], None]


def labels_seen(split: Split) -> dict[str, str]:
    """The class of each sample by the name of its picture, which its pixels say."""
    names = {shot.gray: shot.name for shot in MANY}
    shown = {}
    for sample in split.samples:
        pixels = np.asarray(read(sample.image))
        assert sample.label is not None
        shown[names[round(float(np.median(pixels[61:63, 90:94])) / 3)]] = split.classes[
            sample.label
        ]
    assert len(shown) == len(split.samples), "a picture is there twice"
    return shown


def labels(shots: Sequence[Shot]) -> dict[str, str]:
    return {shot.name: CLASS[shot.name] for shot in shots}


def pictures(root: Path, shots: Sequence[Shot], form: str = "{}.jpg") -> None:
    for shot in shots:
        save(root / form.format(shot.name), shot)


def table(
    path: Path,
    shots: Sequence[Shot],
    header: str = "filename,label",
    row: str = "{name}.jpg,{label}",
    joint: str = "\n",
) -> None:
    """A table with a line for each picture."""
    numbered = list(enumerate(shots))
    lines = [
        row.format(
            i=i,
            name=shot.name,
            label=CLASS[shot.name],
            index=CLASSES.index(CLASS[shot.name]),
            index1=CLASSES.index(CLASS[shot.name]) + 1,
            flags=",".join(str(int(name == CLASS[shot.name])) for name in CLASSES),
        )
        for i, shot in numbered
    ]
    bom, header = header[: header.startswith("\ufeff")], header.removeprefix("\ufeff")
    write(path, bom + joint.join([header, *lines] if header else lines) + joint)


def by_split(*, folder: str, file: str, form: str = "{}.jpg", **more: str) -> Write:
    """Tables in or beside the folders of splits; {0} is the word of the split."""

    def written(root: Path) -> None:
        for word, shots in SPLITS.items():
            pictures(root / folder.format(word), shots, form)
            table(root / file.format(word), shots, **more)

    return written


def called_unlike(files: Mapping[str, str], header: str, row: str) -> Write:
    """A table or list of each split, whose names differ in more than the word of the split."""

    def written(root: Path) -> None:
        for word, shots in SPLITS.items():
            pictures(root / "images", shots)
            table(root / files[word], shots, header, row)

    return written


UNLIKE_TABLES = called_unlike(
    {"train": "train_labels.csv", "val": "validation.csv", "test": "my_test.csv"},
    "image,label",
    "{name}.jpg,{label}",
)
UNLIKE_LISTS = called_unlike(
    {"train": "train_list.txt", "val": "val.txt", "test": "testlist.txt"},
    "",
    "images/{name}.jpg {label}",
)


def whole(folder: str, file: str, form: str = "{}.jpg", **more: str) -> Write:
    """One table of all pictures."""

    def written(root: Path) -> None:
        pictures(root / folder, MANY, form)
        table(root / file, MANY, **more)

    return written


def with_split_column(root: Path) -> None:
    words = {shot.name: word for word, shots in SPLITS.items() for shot in shots}
    pictures(root / "images", [shot for shots in SPLITS.values() for shot in shots])
    rows = "".join(f"{name}.jpg,{CLASS[name]},{word}\n" for name, word in words.items())
    write(root / "birds.csv", f"filepaths,labels,data set\n{rows}")


def with_split_cells(header: str, cells: Mapping[str, str], more: str = "") -> Write:
    """A table of more lines than are looked at to tell its columns, with the splits in a column."""

    def written(root: Path) -> None:
        names = {shot.name: word for word, shots in SPLITS.items() for shot in shots}
        pictures(root / "images", [shot for shots in SPLITS.values() for shot in shots])
        rows = [f"{name}.jpg,{CLASS[name]},{cells[word]}\n" for name, word in names.items()]
        rows += [f"{name}.jpg,{CLASS[name]},{more}\n" for name in ("d1", "d2") if more]
        pictures(root / "images", MANY[-2:] if more else ())
        # four times over: a picture may have several lines that say the same
        write(root / "birds.csv", header + "\n" + "".join(4 * rows))

    return written


def kaggle(root: Path) -> None:
    """train.csv and train/, and a test set without labels."""
    pictures(root / "train", MANY)
    pictures(root / "test", MANY[:3], "test_{}.jpg")
    table(root / "train.csv", MANY, "id,breed", "{name},{label}")
    write(root / "test.csv", "id\ntest_a1\ntest_a2\n")
    write(root / "sample_submission.csv", "id,breed\ntest_a1,dog\ntest_a2,dog\n")


def cassava(root: Path) -> None:
    """Folders of pictures that look like folders of classes, and one table."""
    pictures(root / "train_images", MANY)
    pictures(root / "test_images", MANY[:3], "t_{}.jpg")
    table(root / "train.csv", MANY, "image_id,label", "{name}.jpg,{label}")


def ham(root: Path) -> None:
    """Pictures in two folders of any name; columns beside that are none of ours."""
    pictures(root / "images_part_1", MANY[:5])
    pictures(root / "images_part_2", MANY[5:])
    header, row = "lesion_id,image_id,dx,age", "HAM_{i},{name},{label},5{i}"
    table(root / "HAM10000_metadata.csv", MANY, header, row)


def lists(
    folder: str,
    file: str,
    row: str,
    names: dict[str, str] | None = None,
    header: str = "",
    joint: str = "\n",
) -> Write:
    """A list of each split, and files of names."""

    def written(root: Path) -> None:
        for word, shots in SPLITS.items():
            pictures(root / folder.format(word), shots)
            table(root / file.format(word), shots, header, row, joint)
        for name, text in (names or {}).items():
            write(root / name, text)

    return written


def numbered(form: str, first: int = 0) -> str:
    return "".join(form.format(i, name) + "\n" for i, name in enumerate(CLASSES, first))


def by_class(folder: str, file: str, row: str) -> Write:
    """Pictures in folders of classes somewhere, which lists of the splits name."""

    def written(root: Path) -> None:
        for word, shots in SPLITS.items():
            for shot in shots:
                save(root / folder.format(word) / CLASS[shot.name] / f"{shot.name}.jpg", shot)
            table(root / file.format(word), shots, "", row)
        write(root / "meta" / "classes.txt", "\n".join(CLASSES))

    return written


PASSED_OVER = (
    *("@eaDir", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints"),
    "System Volume Information",
)


def folders(
    words: Mapping[str, str], *beside: str, splits: Mapping[str, Sequence[Shot]] = SPLITS
) -> Write:
    """Class folders, and folders of a file system beside and among them."""

    def written(root: Path) -> None:
        for split, shots in splits.items():
            top = root / words[split]
            for shot in shots:
                save(top / CLASS[shot.name] / f"{shot.name}.jpg", shot)
            for name in beside:
                save(top / name / "x.jpg", shots[0])
                save(top / CLASS[shots[0].name] / name / "x.jpg", shots[0])

    return written


def with_more(written: Write, *more: str) -> Write:
    """The same, and pictures that are none of the data set's, each given as a path."""

    def all_written(root: Path) -> None:
        written(root)
        for name in more:
            save(root / name, MANY[0])

    return all_written


USUAL_WORDS = {"train": "train", "val": "val", "test": "test"}
TRAIN_AND_VAL = {"train": SPLITS["train"], "val": SPLITS["val"]}
INDEX_NAMES = {"label_list.txt": numbered("{} {}")}


def numbered_csv(first: int) -> Write:
    """Numbers for labels, and a file with the names of the classes."""

    def written(root: Path) -> None:
        row = "{name}.jpg,{index}" if first == 0 else "{name}.jpg,{index1}"
        by_split(folder="{0}", file="{0}.csv", row=row)(root)
        write(root / "classes.txt", "\n".join(CLASSES))

    return written


def one_table_and_folders_of_splits(root: Path) -> None:
    for word, shots in SPLITS.items():
        pictures(root / word, shots)
    table(root / "labels.csv", [shot for shots in SPLITS.values() for shot in shots])


# What is written -> what is named below the root, and the pictures of each split.
READ: dict[str, tuple[Write, str, Mapping[str, Sequence[Shot]]]] = {
    "csv beside folders of splits": (by_split(folder="{0}", file="{0}.csv"), ".", SPLITS),
    "csv in folders of splits": (by_split(folder="{0}", file="{0}/labels.csv"), ".", SPLITS),
    "csv, path from the root": (
        by_split(folder="images", file="{0}.csv", row="images/{name}.jpg,{label}"),
        ".",
        SPLITS,
    ),
    "csv, a file is named": (by_split(folder="images", file="{0}.csv"), "train.csv", SPLITS),
    "csv, in a folder of tables": (by_split(folder="images", file="csv/{0}.csv"), ".", SPLITS),
    "csv, the file in a folder of tables": (
        by_split(folder="images", file="annotations/{0}_labels.csv"),
        "annotations/train_labels.csv",
        SPLITS,
    ),
    "csv, names of folders and absolute paths": (
        by_split(folder="{0}", file="{0}.csv", row="C:\\data\\{name}.jpg,{label}"),
        ".",
        SPLITS,
    ),
    "csv, semicolons, quotes, CRLF": (
        by_split(
            folder="{0}",
            file="{0}.csv",
            header='\ufeff"Image";"Class"',
            row='"{name}.jpg";"{label}"',
            joint="\r\n",
        ),
        ".",
        SPLITS,
    ),
    "csv, tabs": (
        by_split(folder="{0}", file="{0}.csv", header="Path\tSpecies", row="{name}.jpg\t{label}"),
        ".",
        SPLITS,
    ),
    "csv, a column of the row's number": (
        by_split(
            folder="{0}", file="{0}.csv", header=",file_name,category", row="{i},{name}.jpg,{label}"
        ),
        ".",
        SPLITS,
    ),
    "csv, names and numbers of classes": (
        by_split(
            folder="{0}",
            file="{0}.csv",
            header="class_id,class_name,image_path",
            row="{index},{label},{name}.jpg",
        ),
        ".",
        SPLITS,
    ),
    "csv, without a header": (
        by_split(folder="{0}", file="{0}.csv", header="", row="{name}.jpg,{label}"),
        ".",
        SPLITS,
    ),
    "csv, two columns of any name": (
        by_split(folder="{0}", file="{0}.csv", header="scan,verdict", row="{name}.jpg,{label}"),
        ".",
        SPLITS,
    ),
    "csv, one-hot": (
        by_split(
            folder="{0}",
            file="{0}/_classes.csv",
            header="filename, bus, car, dog",
            row="{name}.jpg, {flags}",
        ),
        ".",
        SPLITS,
    ),
    "csv, one-hot of floats": (
        by_split(
            folder="{0}",
            file="{0}.csv",
            header="image,bus,car,dog",
            row="{name},{flags}.0",
        ),
        ".",
        SPLITS,
    ),
    "csv, a column of splits": (with_split_column, ".", SPLITS),
    "csv, a column of splits, the file": (with_split_column, "birds.csv", SPLITS),
    "csv, a column of splits that is not always filled": (
        with_split_cells("name,label,split", {word: word for word in SPLITS}, "unused"),
        ".",
        SPLITS,
    ),
    "csv, a column is_valid": (
        with_split_cells("fname,label,is_valid", {"train": "False", "val": "True", "test": ""}, ""),
        ".",
        {"train": SPLITS["train"], "val": SPLITS["val"]},
    ),
    "csv, the file, and tables called unlike beside": (UNLIKE_TABLES, "train_labels.csv", SPLITS),
    "csv, the file of val, and tables called unlike beside": (
        UNLIKE_TABLES,
        "validation.csv",
        SPLITS,
    ),
    "csv, the folder of train": (
        by_split(folder="{0}", file="{0}/_annotations.csv"),
        "train",
        SPLITS,
    ),
    "csv, the folder of train, each table called as its split": (
        by_split(folder="{0}", file="{0}/{0}.csv"),
        "train",
        SPLITS,
    ),
    "list, called unlike": (UNLIKE_LISTS, ".", SPLITS),
    "list, called unlike, the file": (UNLIKE_LISTS, "train_list.txt", SPLITS),
    "list, called unlike, the file of val": (UNLIKE_LISTS, "val.txt", SPLITS),
    "csv, one table and one folder": (whole("images", "labels.csv"), ".", ALL),
    "csv, pictures beside the table": (whole(".", "data.csv"), ".", ALL),
    "csv, one table, PNG names without extension": (
        whole("imgs", "labels.csv", "{}.png", header="id,label", row="{name},{label}"),
        ".",
        ALL,
    ),
    "csv of Kaggle": (kaggle, ".", TRAIN_ONLY),
    "csv and train_images": (cassava, ".", TRAIN_ONLY),
    "csv, pictures in several folders": (ham, ".", ALL),
    "csv, numbers and classes.txt": (numbered_csv(0), ".", SPLITS),
    "csv, numbers from 1 and classes.txt": (numbered_csv(1), ".", SPLITS),
    "csv, one table and folders of splits": (one_table_and_folders_of_splits, ".", SPLITS),
    "list, label before the path": (
        lists("images", "{}.txt", "{index} images/{name}.jpg", INDEX_NAMES),
        ".",
        SPLITS,
    ),
    "list": (lists("images", "{}_list.txt", "images/{name}.jpg {index}", INDEX_NAMES), ".", SPLITS),
    "list, tabs": (
        lists("images", "{}_list.txt", "images/{name}.jpg\t{index}", INDEX_NAMES),
        ".",
        SPLITS,
    ),
    "list, commas, train.txt": (
        lists("images", "{}.txt", "images/{name}.jpg, {index}", INDEX_NAMES),
        ".",
        SPLITS,
    ),
    "list, quotes, CRLF, BOM": (
        lists("images", "{}.txt", '"images/{name}.jpg" "{label}"', joint="\r\n", header="\ufeff"),
        ".",
        SPLITS,
    ),
    "list, path label name": (
        lists("images", "{}_list.txt", "images/{name}.jpg {index} {label}", INDEX_NAMES),
        ".",
        SPLITS,
    ),
    "list, a header": (
        lists("images", "{}.txt", "images/{name}.jpg {index}", INDEX_NAMES, "image label"),
        ".",
        SPLITS,
    ),
    "list, a header and a comma": (
        lists("images", "{}.txt", "images/{name}.jpg,{label}", header="filename,class"),
        ".",
        SPLITS,
    ),
    "list, backslashes": (
        lists("images", "{}_list.txt", "images\\{name}.jpg {index}", INDEX_NAMES),
        ".",
        SPLITS,
    ),
    "list, numbers from 1": (
        lists(
            "images",
            "{}_list.txt",
            "images/{name}.jpg {index1}",
            {"label_list.txt": numbered("{} {}", 1)},
        ),
        ".",
        SPLITS,
    ),
    "list, numbers from 1 and names alone": (
        lists(
            "images",
            "{}_list.txt",
            "images/{name}.jpg {index1}",
            {"label_list.txt": "\n".join(CLASSES)},
        ),
        ".",
        SPLITS,
    ),
    "list, names alone in the list of labels": (
        lists(
            "images",
            "{}_list.txt",
            "images/{name}.jpg {index}",
            {"classes.txt": "\n".join(CLASSES)},
        ),
        ".",
        SPLITS,
    ),
    "list, 0:cat": (
        lists(
            "images",
            "{}_list.txt",
            "images/{name}.jpg {index}",
            {"label_list.txt": numbered("{}:{}")},
        ),
        ".",
        SPLITS,
    ),
    "list, names for labels": (lists("images", "{}.txt", "images/{name}.jpg {label}"), ".", SPLITS),
    "list, names for labels, the file": (
        lists("images", "{}.txt", "images/{name}.jpg {label}"),
        "train.txt",
        SPLITS,
    ),
    "list of mmpretrain": (
        by_class("{0}", "meta/{0}.txt", "{label}/{name}.jpg {index}"),
        ".",
        SPLITS,
    ),
    "list of mmpretrain, the file": (
        by_class("{0}", "meta/{0}.txt", "{label}/{name}.jpg {index}"),
        "meta/val.txt",
        SPLITS,
    ),
    "list of names alone": (by_class("images", "meta/{0}.txt", "{label}/{name}"), ".", SPLITS),
    "class folders, Training and Testing": (
        folders({"train": "Training", "val": "Validation", "test": "Testing"}),
        ".",
        SPLITS,
    ),
    "class folders, Train and Test": (
        folders({"train": "Train", "val": "Val", "test": "Test"}),
        ".",
        SPLITS,
    ),
    "class folders, a picture among those of train and a folder beside": (
        with_more(folders(USUAL_WORDS), "train/logo.png", "docs/1.jpg"),
        ".",
        SPLITS,
    ),
    "class folders, a flat test and a folder beside": (
        with_more(folders(USUAL_WORDS, splits=TRAIN_AND_VAL), "test/1.jpg", "pred/1.jpg"),
        ".",
        TRAIN_AND_VAL,
    ),
    "class folders, a folder too much, called as the split": (
        folders({"train": "train_set/train_set", "val": "val_set/val_set", "test": "test/test"}),
        ".",
        SPLITS,
    ),
    "class folders, a folder too much, images": (
        folders({"train": "train/images", "val": "valid/images", "test": "test"}),
        ".",
        SPLITS,
    ),
    "class folders among a NAS's": (
        folders({"train": "train", "val": "valid", "test": "test"}, *PASSED_OVER),
        ".",
        SPLITS,
    ),
    "class folders without splits among a NAS's": (
        folders({"all": "."}, *PASSED_OVER, splits=ALL),
        ".",
        ALL,
    ),
}


@pytest.mark.parametrize("case", READ)
def test_classes_are_read(tmp_path, case):
    written, named, expected = READ[case]
    written(tmp_path)
    root = str(tmp_path / named)
    if "train" in expected and "val" in expected:
        for name, shots in expected.items():
            split = load(root, name)
            assert split.classes == CLASSES
            assert labels_seen(split) == labels(shots), name
        return
    train, val = load(root, "train"), load(root, "val")
    assert train.classes == val.classes == CLASSES
    both = labels_seen(train) | labels_seen(val)
    assert both == labels(MANY)
    assert len(train.samples) + len(val.samples) == len(MANY)
    assert len(val.samples) == 3  # one of each class


BOX_ROWS = {
    "roboflow": (
        "filename,width,height,class,xmin,ymin,xmax,ymax",
        "{n}.jpg,96,64,{c},{x0},{y0},{x1},{y1}",
    ),
    "retinanet": ("", "../images/{n}.jpg,{x0},{y0},{x1},{y1},{c}"),
    "x, y, w, h": ("image_id,x,y,w,h,label", "{n},{x0},{y0},{w},{h},{c}"),
    "left, top, width, height": (
        "image,left,top,width,height,label",
        "{n}.jpg,{x0},{y0},{w},{h},{c}",
    ),
    "bbox": ("image_id,width,height,bbox,class", '{n},96,64,"[{x0}.0, {y0}.0, {w}.0, {h}.0]",{c}'),
    "Open Images": (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf",
        "{n},xclick,{c},1,{sx0},{sx1},{sy0},{sy1},0",
    ),
    "center": ("image,class,x_center,y_center,width,height", "{n}.jpg,{c},{cx},{cy},{w},{h}"),
    "MakeSense": ("", "{c},{x0},{y0},{w},{h},{n}.jpg,96,64"),
    "x_min": (
        "image_id,class_name,class_id,x_min,y_min,x_max,y_max",
        "{n},{c},{i},{x0},{y0},{x1},{y1}",
    ),
}
EMPTY = {"retinanet": "../images/{n}.jpg,,,,,", "x_min": "{n},No finding,9,,,,"}


@pytest.mark.parametrize("place", ["_annotations.csv", "beside"])
@pytest.mark.parametrize("kind", BOX_ROWS)
def test_boxes_of_a_table(tmp_path, kind, place):
    header, row = BOX_ROWS[kind]
    for word, shots in SPLITS.items():
        pictures(tmp_path / word, shots)
        lines = [header] if header else []
        for shot in shots:
            for c, x0, y0, x1, y1 in shot.things:
                shares = {
                    "sx0": x0 / WIDTH,
                    "sx1": x1 / WIDTH,
                    "sy0": y0 / HEIGHT,
                    "sy1": y1 / HEIGHT,
                }
                lines.append(
                    row.format(
                        n=shot.name,
                        c=c,
                        i=CLASSES.index(c),
                        x0=x0,
                        y0=y0,
                        x1=x1,
                        y1=y1,
                        w=x1 - x0,
                        h=y1 - y0,
                        cx=(x0 + x1) / 2,
                        cy=(y0 + y1) / 2,
                        **shares,
                    )
                )
            if not shot.things and kind in EMPTY:
                lines.append(EMPTY[kind].format(n=shot.name))
        file = f"{word}/_annotations.csv" if place != "beside" else f"{word}.csv"
        write(tmp_path / file, "\n".join(lines))
    for word, shots in SPLITS.items():
        split = load(str(tmp_path), word, target="boxes")
        assert [name for name in split.classes if name != "No finding"] == CLASSES
        assert seen(split) == truth(s for s in shots if s.things or kind in EMPTY)


def box_table(root: Path, size: tuple[str, str], shares: bool = False) -> None:
    """Boxes of all pictures with the sizes of the pictures; `size` is what it says of the first."""
    pictures(root, MANY)
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for i, shot in enumerate(MANY):
        width, height = size if i == 0 else ("96", "64")
        for name, *corners in shot.things:
            sides = (WIDTH, HEIGHT) * 2 if shares else (1, 1, 1, 1)
            values = [corner / side for corner, side in zip(corners, sides, strict=True)]
            lines.append(",".join([f"{shot.name}.jpg", width, height, name, *map(str, values)]))
    write(root / "boxes.csv", "\n".join(lines))


def test_boxes_of_a_picture_of_another_size_are_left_out(tmp_path):
    box_table(tmp_path, ("48", "32"))
    split = load(str(tmp_path), "all", target="boxes")
    assert seen(split) == truth(shot for shot in MANY[1:] if shot.things)
    assert split.annotations.dropped == {"of pictures left out": len(MANY[0].things)}
    assert any(
        re.search(r"a1.jpg': left out, it is 96x64; .*line 2, says 48x32", x) for x in split.skipped
    )


def test_shares_are_of_a_picture_of_any_size(tmp_path):
    box_table(tmp_path, ("48", "32"), shares=True)
    split = load(str(tmp_path), "all", target="boxes")
    assert seen(split) == truth(shot for shot in MANY if shot.things)


def test_boxes_without_names_for_the_columns_whose_class_is_a_number(tmp_path):
    pictures(tmp_path, MANY)
    write(tmp_path / "t.csv", "".join(f"{shot.name}.jpg,1,10,10,50,50\n" for shot in MANY))
    with pytest.raises(DataError, match=r"t\.csv: five columns of numbers without names"):
        load(str(tmp_path), "all", target="boxes")


@pytest.mark.parametrize("names", [("train_station", "test_tube"), ("train_station", "dev_board")])
def test_folders_whose_names_only_begin_with_a_split(tmp_path, names):
    for i, shot in enumerate(MANY):
        save(tmp_path / "images" / names[i % 2] / f"{shot.name}.jpg", shot)
    table(tmp_path / "labels.csv", MANY)
    assert labels_seen(load(str(tmp_path), "all")) == labels(MANY)
    (tmp_path / "labels.csv").rename(tmp_path / "train.csv")
    train, val = (labels_seen(load(str(tmp_path), part)) for part in ("train", "val"))
    assert train | val == labels(MANY)


def unknown_in_val(root: Path) -> None:
    by_split(folder="{0}", file="{0}.csv")(root)
    table(root / "val.csv", SPLITS["val"], row="{name}.jpg,unicorn")


def two_tables(root: Path) -> None:
    whole("images", "one.csv")(root)
    whole("images", "two.csv")(root)


# What cannot be read -> words of the error.
SAID: dict[str, tuple[Write, str]] = {
    "several labels of a picture": (
        whole("images", "t.csv", header="filename,bus,car,dog", row="{name}.jpg,1,1,0"),
        r"t.csv, line 2: 'a1.jpg' has several labels: bus, car; .*multilabel/",
    ),
    "several labels in a cell": (
        whole("images", "t.csv", row="{name}.jpg,cat|{label}"),
        "several labels of a picture",
    ),
    "pictures that are not there": (
        whole("images", "t.csv", row="{name}_x.jpg,{label}"),
        "no such picture",
    ),
    "no columns that are known": (
        whole("images", "t.csv", header="a,b,c", row="1,2,3"),
        "fits no format",
    ),
    "a label that train has not": (
        unknown_in_val,
        "label 'unicorn' is not in the table of train; there is bus, car, dog",
    ),
    "two tables": (two_tables, "several tables of pictures"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_cannot_be_read_is_said(tmp_path, case):
    written, words = SAID[case]
    written(tmp_path)
    with pytest.raises(DataError, match=words):
        load(str(tmp_path), "val")


def test_some_pictures_of_a_table_are_not_there(tmp_path):
    whole("images", "labels.csv")(tmp_path)
    (tmp_path / "images" / "a1.jpg").unlink()
    split = load(str(tmp_path), "all")
    assert labels_seen(split) == labels(MANY[1:])
    assert split.annotations.dropped == {"of pictures that are not there": 1}
    assert re.search("no such picture below .*line 2: 'a1.jpg'", split.skipped[0])


def test_a_folder_of_a_split_by_itself(tmp_path):
    """It is read whole where none is named; and no picture of it is taken for one of val that is missing."""
    by_split(folder="{0}", file="{0}/_annotations.csv")(tmp_path)
    assert labels_seen(load(str(tmp_path / "train"), None)) == labels(SPLITS["train"])
    assert load(str(tmp_path / "train"), None).source.split == "train"
    (tmp_path / "val" / "b1.jpg").rename(tmp_path / "train" / "b1.jpg")
    val = load(str(tmp_path / "train"), "val")
    assert labels_seen(val) == labels(SPLITS["val"][1:])


def test_nothing_outside_of_the_data_is_read(tmp_path):
    """A table names files by any path; only pictures below its folder are looked at."""
    save(tmp_path / "secret" / "a1.jpg", MANY[0])
    table(tmp_path / "data" / "t.csv", MANY[:1], row=f"{tmp_path}/secret/{{name}}.jpg,{{label}}")
    with pytest.raises(DataError, match="no such picture below"):
        load(str(tmp_path / "data" / "t.csv"), "all")


def test_a_flat_test_folder_beside_splits_is_said(tmp_path):
    written = folders(USUAL_WORDS, splits=TRAIN_AND_VAL)
    with_more(written, "test/1.jpg", "pred/1.jpg")(tmp_path)
    said = load(str(tmp_path), "train").skipped
    assert any("test': no class folders in it, so its images have no label" in x for x in said)
    assert any("pred': beside the folders of splits, not read" in line for line in said)
    with pytest.raises(DataError, match="no split 'test'"):
        load(str(tmp_path), "test")


def test_class_folders_beside_a_table_that_says_the_same(tmp_path):
    for shot in MANY:
        save(tmp_path / "train" / CLASS[shot.name] / f"{shot.name}.jpg", shot)
    table(tmp_path / "t.csv", MANY, row="train/{label}/{name}.jpg,{label}")
    assert load(str(tmp_path), "train").source.format == "folder"


LISTS_SAID = {
    "several labels of an image": ("images/{name}.jpg 0,1,1", {}, "are learned by multilabel/BACKBONE"),
    "numbers from 0, names from 1": (
        "images/{name}.jpg {index}",
        {"label_list.txt": numbered("{} {}", 1)},
        "numbers its classes from 1, and .* has labels from 0 to 2",
    ),
    "one word": ("images/{name}.jpg cat", {}, "label 'cat' is not a number"),
    "no labels": ("images/{name}.jpg", {}, "expected `path label`|one class|fits no format"),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS_SAID)
def test_lists_that_may_mean_several_things_are_errors(tmp_path, case):
    row, names, words = LISTS_SAID[case]
    lists("images", "{}_list.txt", row, names)(tmp_path)
    if case == "no labels":
        (tmp_path / "images").rename(tmp_path / "flat")
        for file in tmp_path.glob("*_list.txt"):
            file.write_text(file.read_text().replace("images/", ""))
    with pytest.raises(DataError, match=words):
        load(str(tmp_path), "train")


# Names in a file beside labels that are 1 and 2 only -> the classes, and words of what is said.
NAMED = {
    "numbered from 1": ("1 bus\n2 car\n3 dog\n", ["bus", "car"], None),
    "numbered from 1 with a point": ("1. bus\n2. car\n3. dog\n", ["bus", "car"], None),
    "numbered from 0": ("0 bus\n1 car\n2 dog\n", ["car", "dog"], None),
    "names alone, which leave it open": ("bus\ncar\ndog\n", ["car", "dog"], "may count from 1"),
    "as many names as numbers": ("bus\ncar\n", ["bus", "car"], None),
}


@pytest.mark.parametrize("kind", ["csv", "list"])
@pytest.mark.parametrize("case", NAMED)
def test_numbers_from_1_without_the_last_class(tmp_path, case, kind):
    text, classes, words = NAMED[case]
    pictures(tmp_path, MANY)
    file, joint = {"csv": ("train.csv", ","), "list": ("train_list.txt", " ")}[kind]
    rows = [f"{shot.name}.jpg{joint}{1 + i % 2}\n" for i, shot in enumerate(MANY)]
    write(tmp_path / file, "image,label\n" * (kind == "csv") + "".join(rows))
    write(tmp_path / "classes.txt", text)
    split = load(str(tmp_path / file), "all")
    expected = {shot.name: classes[i % 2] for i, shot in enumerate(MANY)}
    assert labels_seen(split) == expected
    assert [bool(words and words in line) for line in split.skipped] == [True] * bool(words)


def test_lines_of_no_split_are_counted(tmp_path):
    with_split_cells("name,label,split", {word: word for word in SPLITS}, "unused")(tmp_path)
    split = load(str(tmp_path), "train")
    assert split.annotations.dropped == {"of no split": 8}
    assert any("birds.csv: of no split and left out: line 9, line 10" in x for x in split.skipped)


def test_is_valid_that_means_something_else_is_an_error(tmp_path):
    cells = {"train": "True", "val": "True", "test": "False"}
    with_split_cells("name,label,is_valid", cells)(tmp_path)
    with pytest.raises(DataError, match="'is_valid' is true for more than half"):
        load(str(tmp_path / "birds.csv"), "train")


def test_numbers_without_names_that_begin_with_1(tmp_path):
    lists("images", "{}_list.txt", "images/{name}.jpg {index1}")(tmp_path)
    split = load(str(tmp_path), "train")
    assert split.classes == ["1", "2", "3"]
    assert [sample.label for sample in split.samples] == [
        CLASSES.index(CLASS[s.name]) for s in SPLITS["train"]
    ]


def test_a_list_whose_images_are_there_but_one(tmp_path):
    """A picture of the same name elsewhere is not taken for one that is missing."""
    lists("images", "{}_list.txt", "images/{name}.jpg {index}", INDEX_NAMES)(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "images" / "a1.jpg").rename(tmp_path / "other" / "a1.jpg")
    with pytest.raises(DataError, match=r"no such image: line 1: 'images/a1\.jpg'"):
        load(str(tmp_path), "train")


@pytest.mark.parametrize("kind", ["csv", "list"])
def test_images_elsewhere(tmp_path, kind):
    disk, home = tmp_path / "disk", tmp_path / "home"
    for word, shots in SPLITS.items():
        pictures(disk / "any" / word, shots)
        if kind == "csv":
            table(home / f"{word}.csv", shots)
        else:
            table(home / f"{word}_list.txt", shots, "", "x/{name}.jpg {index}")
            write(home / "label_list.txt", "\n".join(CLASSES))
    format = {"csv": "csvfile", "list": "listfile"}[kind]
    for word, shots in SPLITS.items():
        assert labels_seen(load(str(home), word, format, images=str(disk))) == labels(shots)


def test_a_picture_of_another_split_is_not_taken_for_one_that_is_missing(tmp_path):
    by_split(folder="{0}", file="{0}.csv")(tmp_path)
    (tmp_path / "train" / "a1.jpg").rename(tmp_path / "val" / "a1.jpg")
    split = load(str(tmp_path), "train")
    assert labels_seen(split) == labels(SPLITS["train"][1:])
    assert split.annotations.dropped == {"of pictures that are not there": 1}


@pytest.mark.parametrize("kind", ["tables", "class folders"])
def test_splits_in_the_one_folder_too_much_are_the_users_though_it_is_called_train(tmp_path, kind):
    for split, shots in SPLITS.items():
        for shot in shots:
            folder = f"{split}/{CLASS[shot.name]}" if kind == "class folders" else "pictures"
            save(tmp_path / f"train/{folder}/{shot.name}.jpg", shot)
        if kind == "tables":
            table(tmp_path / f"train/{split}.csv", shots)
    for split, shots in SPLITS.items():
        loaded = load(str(tmp_path), split)
        assert set(labels_seen(loaded)) == set(labels(shots))
        assert loaded.source.take == "all"
        assert "holds nothing but one folder, so" in loaded.skipped[0]


def test_one_folder_with_a_table_beside_it_is_no_folder_too_much(tmp_path):
    for split, shots in SPLITS.items():
        for shot in shots:
            save(tmp_path / f"train/{split}/{CLASS[shot.name]}s/{shot.name}.jpg", shot)
    table(tmp_path / "t.csv", MANY)
    assert load(str(tmp_path), "all").source.format == "csvfile"


def test_a_class_may_be_called_as_a_split_or_a_folder_of_pictures(tmp_path):
    pictures(tmp_path / "images", MANY)
    pictures(tmp_path / "train", MANY[:1])
    names = ["train", "images", "bus"]
    rows = [f"{shot.name}.jpg,{names[i % 3]}" for i, shot in enumerate(MANY[1:])]
    write(tmp_path / "labels.csv", "\n".join(["filename,label", *rows]))
    assert load(str(tmp_path), "all").classes == sorted(names)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize("file", ["labels.csv", "train.csv", "train.txt", "train_list.txt"])
def test_lists_and_tables_in_another_encoding_are_named(tmp_path, file, encoding):
    pictures(tmp_path / "images", MANY)
    joint = "," if file.endswith(".csv") else " "
    rows = [f"images/{shot.name}.jpg{joint}Käfer" for shot in MANY]
    header = ["filename,label"] if joint == "," else []
    write(tmp_path / file, "\n".join([*header, *rows]).encode(encoding))
    line = 1 if encoding == "utf-16" else 1 + len(header)
    with pytest.raises(DataError, match=f"{file}, line {line}: not UTF-8 text; save the file"):
        load(str(tmp_path), "train")


@pytest.mark.parametrize("name", ["my_{}", "{}_split1"])
@pytest.mark.parametrize("folder", [".", "lists"])
def test_the_word_of_a_split_may_be_anywhere_in_the_name_of_a_list(tmp_path, folder, name):
    pictures(tmp_path / "images", MANY)
    for split, shots in SPLITS.items():
        rows = [f"images/{shot.name}.jpg {CLASS[shot.name]}" for shot in shots]
        write(tmp_path / folder / f"{name.format(split)}.txt", "\n".join(rows))
    for split, shots in SPLITS.items():
        assert labels_seen(load(str(tmp_path), split)) == labels(shots)


def test_lists_of_another_kind_beside_class_folders_are_named_and_not_to_be_deleted(tmp_path):
    for shot in MANY:
        save(tmp_path / CLASS[shot.name] / f"{shot.name}.jpg", shot)
    write(tmp_path / "lists/train.lst", "0\t1\ta.jpg\n")
    with pytest.raises(
        DataError, match=r"may be lists of splits: train.lst. Lists are read"
    ) as told:
        load(str(tmp_path), "train")
    assert "delete" not in str(told.value)
