"""The tables of hostile files: what each verb does with every image file and every file of labels.

    python tests/test_badfiles.py      prints what the tests compare, as Markdown

The files and what is expected of each are in ../shared/data/badfiles, where its README says how
they were made; where it is not there, the tests skip. The commands run in this process, with a
network of five convolutions, on one folder of all pictures and on a small set for each file of
labels.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED, benchmark
from support.tiny_backbone import Tiny
from test_formats import LABELS, MAPS
from torch import nn

import fleetnet
from fleetnet import checkpoint, tasks
from fleetnet.backbones import fasternet
from fleetnet.cli import main
from fleetnet.data._contents import contents_of
from fleetnet.data._names import by_name
from fleetnet.errors import DataError
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.layers import ConvBN
from fleetnet.preprocess import Preprocess
from fleetnet.review.usable import check_usable
from fleetnet.training.evaluate import evaluate

BAD = SHARED / "badfiles"
pytestmark = pytest.mark.skipif(not BAD.is_dir(), reason="../shared/data/badfiles is not there")
LIMIT = 300e6  # bytes over the baseline, for each verb

# What became of a file: in the terms of the tables.
READ, NAMED, PASSED_OVER = "read", "named", "passed over"
MAY_BE = {  # expectation -> what may become of an image file that a folder holds
    "decode": {READ},
    "error": {NAMED},
    "refuse": {NAMED},
    "either": {READ, NAMED},
    "ignore": {PASSED_OVER, NAMED},  # a file that is no image may be said to be none
}
READ_OTHERWISE = ("unreadable", "left-out", "lost-annotations", "outside", "turned", "unused")
VERBS = ("data check", "train", "eval", "predict")


@dataclass
class Row:
    """A file of a table with what each verb made of it."""

    file: str
    expected: str
    outcomes: dict[str, str] = field(default_factory=dict)  # verb -> outcome, maybe with its reason
    mismatches: list[str] = field(default_factory=list)


def table(name: str) -> list[list[str]]:
    """The cells of each line of a table of expectations, without its header."""
    lines = (BAD / name).read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t") for line in lines if line]


class Small(Tiny):
    """The tiny backbone with a batch norm to collapse, which `train` asks for, and any output stride."""

    def __init__(self, drop_path: float = 0.0, output_stride: int = 32):
        super().__init__(drop_path, output_stride)
        for stage, stride in zip(self.stages, self.strides, strict=True):
            if stride > output_stride:
                stage[0].stride = (1, 1)
        self.strides = [min(stride, output_stride) for stride in self.strides]

    def classifier(self, classes: int) -> nn.Module:
        return nn.Sequential(
            ConvBN(self.channels[-1], self.channels[-1]), super().classifier(classes)
        )


@contextlib.contextmanager
def tiny_is_a_backbone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fasternet.VARIANTS, "tiny", Small)
        yield


def command(*words: object) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON document of a command."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = main([*map(str, words), "--json"])
    last = printed.getvalue().rstrip("\n").rpartition("\n")[2]
    assert last, said.getvalue()  # an error that is none of ours
    return code, json.loads(last)


# --- image files


MADE = {  # how the table begins the rows of what is not stored -> the file's name here
    "symlink loop": "a.jpg",
    "directory symlink loop": "d",
    "dangling symlink": "gone.jpg",
    "file without read permission": "locked.jpg",
    "FIFO": "x.jpg",
}


def file_of(written: str) -> str:
    """The name of a file of the table, in the folder of all pictures."""
    made = next((name for start, name in MADE.items() if written.startswith(start)), None)
    return made or written.removeprefix("images/").replace("\\n", "\n").replace("\\t", "\t")


def make_pictures(root: Path) -> Path:
    """Folders of two classes for training and validation; that of all hostile pictures is given back."""
    hostile = root / "train" / "hostile"
    shutil.copytree(BAD / "images", hostile)
    control = BAD / "images" / "00_control.jpg"
    for place in ("train/plain/1.jpg", "train/plain/2.jpg", "val/plain/1.jpg", "val/hostile/1.jpg"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(control, root / place)
    (hostile / "a.jpg").symlink_to("b.jpg")
    (hostile / "b.jpg").symlink_to("a.jpg")
    (hostile / "d").mkdir()
    (hostile / "d" / "loop").symlink_to(hostile / "d")
    (hostile / "gone.jpg").symlink_to("missing")
    shutil.copy(control, hostile / "locked.jpg")
    (hostile / "locked.jpg").chmod(0)
    os.mkfifo(hostile / "x.jpg")
    return hostile


def of_images(folder: Path) -> list[Row]:
    """Every image file of the table, with what the verbs made of it."""
    rows = {file_of(cells[0]): Row(cells[0], cells[3]) for cells in table("expectations.tsv")}
    hostile = make_pictures(folder / "data")
    data, run = folder / "data", folder / "run"
    split = fleetnet.load_data(str(data), "train")
    listed = {str(sample.image) for sample in split.samples}
    _, checked = command("data", "check", "--data", data, "--workers", 0)
    said = {"data check": what_is_read_otherwise(checked)}
    settings = "--size 32 --epochs 1 --batch-size 128"  # all in one batch: none is left for later
    words = ("--model", "tiny", "--data", data, "--run", run, *settings.split())
    code, trained = command("train", *words)
    assert code == 0, trained
    said["train"] = [*split.skipped, *trained["skipped"]]
    code, measured = command("eval", "--model", run, "--data", data, "--split", "train")
    assert code == 0, measured
    said["eval"] = [*split.skipped, *measured["skipped"]]
    for name, row in rows.items():
        for verb, lines in said.items():
            is_listed = str(hostile / name) in listed
            add(row, verb, outcome_of(hostile / name, lines, is_listed), by_path=False)
    paths = [hostile / name for name in rows]
    _, predicted = command("predict", "--model", run, *paths)
    predictions = {result["file"] for result in predicted["results"]}
    for name, row in rows.items():
        is_read = str(hostile / name) in predictions
        add(row, "predict", outcome_of(hostile / name, predicted["skipped"], is_read), by_path=True)
    return list(rows.values())


def what_is_read_otherwise(document: dict[str, Any]) -> list[str]:
    """What `data check` says of files that are not read, or not as they are; not of copies, which all of these are."""
    findings = [one for one in document["findings"] if one["kind"] in READ_OTHERWISE]
    return [line for one in findings for line in (*one["items"], one["text"])]


def outcome_of(path: Path, lines: list[str], is_there: bool) -> str:
    """What became of a file: the first line that names it, whether it is among the pictures, or nothing."""
    name = repr(str(path))
    line = next((line for line in lines if name in line or f"{name[:-1]}/" in line), None)
    if line is None:
        return READ if is_there else PASSED_OVER
    return f"{NAMED}: {line.replace(name, '...')}"


def add(row: Row, verb: str, outcome: str, *, by_path: bool) -> None:
    row.outcomes[verb] = outcome
    kind = outcome.partition(":")[0]
    name = file_of(row.file)
    may_be = MAY_BE[row.expected]
    if row.expected == "decode" and not by_path and (name.startswith(".") or "." not in name):
        may_be = {PASSED_OVER, NAMED}  # a scan of a folder may leave these out
    if row.expected == "ignore" and by_path:
        may_be = {NAMED}
    if name == "locked.jpg" and os.access(BAD, os.R_OK) and os.geteuid() == 0:
        may_be = {READ}  # the superuser may read everything
    if kind not in may_be or "\n" in outcome:
        row.mismatches.append(f"{verb}: {outcome!r}; expected {' or '.join(sorted(may_be))}")


# --- files of labels


LISTS = {  # list file -> how many samples, or the words of the error
    "control": 2,
    "crlf_bom": 2,
    "blank_lines_no_final_newline": 2,
    "space_in_path": 1,
    "tab_separated": 1,
    "no_label": "line 2: expected `path label`",
    "bad_label": "line 1: label 'shoes' is not a number|line 1: ",
    "negative_label": "line 1: ",
    "label_out_of_range": "line 2: ",
    "missing_file": "no such image: .*nope",
    "empty": "empty.* no samples",
    "latin1": "not UTF-8",
}
BESIDE_OTHERS = {  # an error where all images are missing, and a line where others are there
    "voc_missing_image.xml": "1 of 3 images are not there .*missing_image.xml .*does_not_exist.jpg",
    "voc_path_traversal.xml": "1 of 3 images are not there .*voc_path_traversal.xml .*passwd",
    "coco_path_traversal.json": "1 of 3 images are not there .*: ../../../../etc/passwd",
}
TASK = {"boxes": "ssd", "masks": "maskrcnn", "semantic": "deeplabv3", "label": "classification"}
PLAIN = ("plain1", "plain2")  # pictures beside the one whose annotation is hostile
CLASSES = ["shoes", "сапог", "stop sign", "toothbrush"]


@dataclass(frozen=True)
class Case:
    """A small set of data with one hostile file of labels."""

    data: Path  # what is given as --data
    target: str
    expected: Any  # as in `LABELS`, `MAPS` and `LISTS`


def make_case(folder: Path, name: str, target: str) -> Case:
    if name.startswith("masks/"):
        return case_of_map(folder, Path(name).name)
    if name.startswith("labels/list_"):
        return case_of_list(folder, Path(name).stem.removeprefix("list_"))
    expected = LABELS[Path(name).name]
    if not isinstance(expected, str):
        expected = expected[2:] if target == "masks" else expected[:2]
    expected = BESIDE_OTHERS.get(Path(name).name, expected)
    make = case_of_xml if name.endswith(".xml") else case_of_json
    return Case(make(folder, Path(name).name), target, expected)


def put(source: str, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BAD / source, place)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def case_of_xml(root: Path, name: str) -> Path:
    pictures = root / "JPEGImages"
    put("images/00_control.jpg", *(pictures / f"{stem}.jpg" for stem in ("00_control", *PLAIN)))
    put(f"labels/{name}", root / "Annotations" / name)
    put("labels/voc_control.xml", *(root / "Annotations" / f"{stem}.xml" for stem in PLAIN))
    write(root / "ImageSets/Main/train.txt", "\n".join([Path(name).stem, *PLAIN]))
    write(root / "ImageSets/Main/val.txt", PLAIN[0])
    if name != "voc_utf8_bom.xml":
        write(root / "classes.txt", "shoes\n")
    return root


def case_of_json(root: Path, name: str) -> Path:
    """The file, with two other pictures where they can be added, and a file of val beside it."""
    pictures = root / "images"
    put("images/00_control.jpg", *(pictures / f"{stem}.jpg" for stem in ("00_control", *PLAIN)))
    text = (BAD / "labels" / name).read_text(encoding="utf-8")
    plain = json.loads((BAD / "labels" / "coco_control.json").read_text(encoding="utf-8"))
    (image,), (annotation,) = plain["images"], plain["annotations"]
    plain["images"] = [
        {**image, "id": 500 + i, "file_name": f"{s}.jpg"} for i, s in enumerate(PLAIN)
    ]
    plain["annotations"] = [{**annotation, "id": 500 + i, "image_id": 500 + i} for i in range(2)]
    with contextlib.suppress(ValueError, TypeError, LookupError):
        document = json.loads(text)
        for row in plain["annotations"]:
            row["category_id"] = document["categories"][0]["id"]
        plain["categories"] = document["categories"]
        document["images"] += plain["images"]
        document["annotations"] += plain["annotations"]
        text = json.dumps(document)
    file = root / "annotations" / f"{Path(name).stem}_train.json"
    write(file, text)
    write(file.with_name(f"{Path(name).stem}_val.json"), json.dumps(plain))
    return file


def case_of_list(root: Path, name: str) -> Case:
    root.mkdir(parents=True)
    (root / "images").symlink_to(BAD / "images")
    put(f"labels/list_{name}.txt", root / f"list_{name}_train.txt")
    write(root / f"list_{name}_val.txt", "images/00_control.jpg 0\n")
    write(root / "label_list.txt", "".join(f"{i} {name}\n" for i, name in enumerate("abcd")))
    return Case(root / f"list_{name}_train.txt", "label", LISTS[name])


def case_of_map(root: Path, name: str) -> Case:
    own = Path(name).stem
    put("images/00_control.jpg", *(root / "images" / f"{stem}.jpg" for stem in (own, *PLAIN)))
    put(f"masks/{name}", root / "labels" / name)
    put("masks/control.png", *(root / "labels" / f"{stem}.png" for stem in PLAIN))
    write(root / "classes.txt", "a\nb\nc\n")
    write(root / "train.txt", "\n".join([own, *PLAIN]))
    write(root / "val.txt", PLAIN[0])
    expected = MAPS[name]
    if isinstance(expected, str):
        expected = expected.replace("00_control.jpg", f"{own}.jpg")
    return Case(root, "semantic", expected)


def of_labels(folder: Path) -> list[Row]:
    """Every file of labels of the table, with what the verbs made of it; twice where boxes and masks differ."""
    rows = []
    for file, *_, expected in table("expectations_labels.tsv"):
        of_masks = (
            len(LABELS.get(Path(file).name) or "") == 4
        )  # what is said of boxes, and of masks
        for i, kind in enumerate(["boxes", "masks"] if of_masks else ["boxes"]):
            case = make_case(folder / f"{len(rows)}", file, kind)
            row = Row(file if i == 0 else f"{file} ({kind})", expected)
            for verb, act in (("data check", checked), ("train", trained), ("eval", measured)):
                row.outcomes[verb] = done(act, case, folder / "runs" / f"{len(rows)}")
                row.mismatches += mismatch(verb, row.outcomes[verb], case)
            rows.append(row)
    return rows


def done(act: Callable[[Case, Path], list[str]], case: Case, run: Path) -> str:
    """What a verb made of the case: whether it went on, and the lines that it said, or its error."""
    try:
        lines = act(case, run)
    except DataError as error:
        return f"error: {error}"
    named = [line for line in lines if str(case.data) in line]
    return f"{NAMED}: {named[0]}" if named else READ


def mismatch(verb: str, outcome: str, case: Case) -> list[str]:
    """What is not as expected."""
    expected = case.expected
    if isinstance(expected, tuple):  # boxes and the words of the line that says what was dropped
        words = expected[1]
        fits = outcome == READ if words is None else bool(re.match(f"named: .*{words}", outcome))
    elif isinstance(expected, str):
        words = expected.replace(".json", "_train.json")
        fits = bool(re.match(f"(?:error|named): .*(?:{expected}|{words})", outcome, re.DOTALL))
    else:  # values of a label map, or a number of samples
        words, fits = READ, outcome == READ
    return [] if fits else [f"{verb}: {outcome!r}; expected {words or READ!r}"]


def checked(case: Case, run: Path) -> list[str]:
    code, document = command(
        *("data", "check", "--data", case.data, "--model", TASK[case.target]),
        *("--max-bad", 1, "--workers", 0),
    )
    if "error" in document:
        raise DataError(document["error"])
    findings = document["findings"]
    errors = [one["text"] for one in findings if one["level"] == "error"]
    if errors:
        raise DataError("; ".join(errors))
    assert code == 0
    return what_is_read_otherwise(document)


def trained(case: Case, run: Path) -> list[str]:
    """An epoch on the case, by the code of `fleetnet train`, without its tables and figures."""
    train, val = (
        fleetnet.load_data(str(case.data), split, target=case.target) for split in ("train", "val")
    )
    check_usable(train, contents_of(train, case.target), 1.0)
    if case.target == "masks":
        return read_masks(train)
    if not isinstance(case.expected, str | set):
        check_contents(train, case)
    config = fleetnet.TrainConfig(size=64, epochs=1, batch_size=3, max_bad=1.0, ema=None)
    model = fleetnet.create_model(name_of(case.target), train.classes)
    fleetnet.fit(model, train, by_name(val, train.classes, "train"), config, run, report=False)
    (line,) = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    assert line["train"]["loss"] is not None
    return [*train.skipped, *line["skipped"]]


def read_masks(split: fleetnet.data.Split) -> list[str]:
    """The lines of a split whose samples are read with their masks: the network would take half a minute."""
    data = ImageDataset(split, Preprocess((64, 64)), target="masks")
    errors = [item for item in map(data.__getitem__, range(len(data))) if isinstance(item, str)]
    return [*split.skipped, *errors]


def check_contents(train: fleetnet.data.Split, case: Case) -> None:
    """The boxes of the hostile file, or its number of samples."""
    if isinstance(case.expected, int):
        assert len(train.samples) == case.expected
        return
    boxes = [item.box for item in train.samples[0].objects or ()]
    assert boxes == list(case.expected[0])


def measured(case: Case, run: Path) -> list[str]:
    """The evaluation of a network on the case, by the code of `fleetnet eval`, without its tables."""
    split = fleetnet.load_data(str(case.data), "train", target=case.target)
    check_usable(split, contents_of(split, case.target), 1.0, learn=False)
    classes = CLASSES if case.target in ("boxes", "masks") else split.classes
    if case.target == "masks":
        return read_masks(split)
    split = by_name(split, classes, "the network")
    model = fleetnet.create_model(name_of(case.target), classes)
    task = TASK[case.target]
    preprocess = Preprocess((64, 64), mode=tasks.find(task).MODE)
    batches = batches_of(ImageDataset(split, preprocess, target=case.target), 2)
    result = evaluate(model, task, batches, classes)
    return [*split.skipped, *result["skipped"]]


def name_of(target: str) -> str:
    return "tiny" if target == "label" else f"{TASK[target]}/tiny"


# --- the tests


def test_every_image_file_is_as_its_table_says(tmp_path):
    with tiny_is_a_backbone():
        rows = of_images(tmp_path)
    assert len(rows) == 100
    assert all(tuple(row.outcomes) == VERBS for row in rows)
    assert "\n".join(line for row in rows for line in row.mismatches) == ""


def test_every_file_of_labels_is_as_its_table_says(tmp_path):
    with tiny_is_a_backbone():
        rows = of_labels(tmp_path)
    assert len({row.file.partition(" (")[0] for row in rows}) == 54
    assert "\n".join(line for row in rows for line in row.mismatches) == ""


BOMBS = (
    "png_bomb_30000x30000_1bit.png",
    "png_large_10000x10000_1bit.png",
    "jpeg_bomb_header_65500.jpg",
    "png_text_bomb.png",
    "line_1x4000.png",
    "line_4000x1.png",
)


def save_masked(folder: Path) -> None:
    """A detector with masks that finds as many objects as are kept."""
    torch.manual_seed(0)
    small = {"channels": 16, "hidden": 16}
    model = tasks.build("maskrcnn/tiny", 2, options=small).eval()
    folder.mkdir()
    checkpoint.save(
        *(folder / "best.safetensors", model), classes=["a", "b"], preprocess=Preprocess((64, 64))
    )


def of_bombs(folder: Path) -> dict[str, float]:
    """Bytes over the baseline that each verb takes on the bombs, in a process of its own."""
    hostile = benchmark("hostile")
    root, run = folder / "data", folder / "run"
    control = BAD / "images" / "00_control.jpg"
    for place in ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(control, root / place)
    words = ("--size", 32, "--epochs", 1, "--batch-size", 4)
    code, _ = command("train", "--model", "tiny", "--data", root, "--run", run, *words)
    assert code == 0
    bombs = root / "train" / "a"
    for name in BOMBS:
        shutil.copy(BAD / "images" / name, bombs)
    for name in ("voc_entity_bomb.xml", "voc_control.xml"):
        put(f"labels/{name}", folder / "xml" / "Annotations" / name)
    put("images/00_control.jpg", folder / "xml" / "JPEGImages" / "00_control.jpg")
    save_masked(folder / "masked")
    one = ("--threads", 1)  # torch begins no others in a process that was forked
    verbs: Mapping[str, tuple[object, ...]] = {
        "data check": ("data", "check", "--data", root, "--workers", 0),
        "data check, XML": ("data", "check", "--data", folder / "xml", "--workers", 0),
        "train": ("train", "--model", "tiny", "--data", root, "--run", folder / "other", *words),
        "eval": ("eval", "--model", run, "--data", root, "--split", "train", *one),
        "predict": ("predict", "--model", run, bombs, "--out", folder / "out", *one),
        "predict, masks": (
            *("predict", "--model", folder / "masked", bombs / "png_large_10000x10000_1bit.png"),
            *("--out", folder / "masks", "--score", 0, "--max-objects", 20, *one),
        ),
    }

    def verb(name: Path) -> None:
        code, document = command(*verbs[name.name])
        if code not in (0, DataError.exit_code):
            raise RuntimeError(document)

    peaks = {}
    for name in verbs:
        outcome, peak, _ = hostile.in_process(Path(name), verb)
        assert outcome == "read", (name, outcome)
        peaks[name] = peak
    return peaks


def test_bombs_take_little_memory(tmp_path):
    with tiny_is_a_backbone():
        peaks = of_bombs(tmp_path)
    assert {name: peak for name, peak in peaks.items() if peak > LIMIT} == {}


# --- the table as Markdown


def cell(outcome: str) -> str:
    text = outcome.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    return text if len(text) < 90 else f"{text[:87]}..."


def markdown(title: str, rows: list[Row]) -> str:
    """A table of the rows, with the counts of what became of them below it."""
    verbs = list(rows[0].outcomes)
    lines = [f"## {title}", "", f"| file | expected | {' | '.join(verbs)} |"]
    lines.append("|---" * (2 + len(verbs)) + "|")
    for row in rows:
        cells = [row.file, row.expected, *(row.outcomes[verb] for verb in verbs)]
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    for verb in verbs:
        counts = Counter(row.outcomes[verb].partition(":")[0] for row in rows)
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        lines.append(f"\n{verb}: {listed}")
    wrong = [f"- {row.file}: {line}" for row in rows for line in row.mismatches]
    return "\n".join([*lines, "", f"Not as expected: {len(wrong)}", *wrong, ""])


def print_tables() -> None:
    with tempfile.TemporaryDirectory() as place, tiny_is_a_backbone():
        folder = Path(place)
        say = sys.stdout.write
        say(markdown("Image files", of_images(folder / "images")) + "\n")
        say(markdown("Files of labels", of_labels(folder / "labels")) + "\n")
        peaks = of_bombs(folder / "bombs")
        say("## Memory on the bombs, MB over the baseline\n\n")
        say("".join(f"- {name}: {peak / 1e6:.0f}\n" for name, peak in peaks.items()))


if __name__ == "__main__":
    print_tables()
