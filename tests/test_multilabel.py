"""Multi-label classification: where tags are read, what is learned from them, how it is measured and used."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_backbone import offer_tiny, tiny
from torch import Tensor
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
)

import fleetnet
from fleetnet import checkpoint
from fleetnet.cli import main
from fleetnet.data import Split, from_samples, from_torchvision, load
from fleetnet.data._contents import contents_of
from fleetnet.data._tags import Form, a_list, several_words
from fleetnet.data._tags import tags_of as words_of
from fleetnet.deploy.predictor import Predictor
from fleetnet.errors import DataError, ModelError, UsageError
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.inputs.mixing import mix
from fleetnet.measure.tune import judge_of
from fleetnet.predictions import Labels, Tags
from fleetnet.preprocess import Preprocess
from fleetnet.review.usable import check_usable
from fleetnet.tasks import build, multilabel
from fleetnet.training.class_weights import class_weights
from fleetnet.training.evaluate import evaluate
from fleetnet.weights import create_model

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


def open_images(root: Path) -> None:
    """A line for each label that somebody looked for, with 0 where it is not there."""
    lines = [
        f"{name[:-4]},verification,{tag},{int(tag in tags)}"
        for name, tags in TRUTH.items()
        for tag in CLASSES
    ]
    (root / "labels.csv").write_text(
        "\n".join(["ImageID,Source,LabelName,Confidence", *lines]) + "\n"
    )


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
    "open images": (open_images, TRUTH),
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


BESIDE: dict[str, tuple[str, str]] = {  # header and what each line has before the classes
    "index": ("", "{i}"),
    "pandas' index": ("Unnamed: 0", "{i}"),
    "width and height": ("width,height", "32,{i}4"),
    "an id": ("id", "7{i}"),
}


@pytest.mark.parametrize("words", [("0", "1"), ("False", "True")])
@pytest.mark.parametrize("beside", BESIDE)
def test_columns_beside_those_of_classes(
    beside: str, words: tuple[str, str], tmp_path: Path
) -> None:
    pictures(tmp_path)
    names, cells = BESIDE[beside]
    lines = [f"{names},filename,\u043a\u043e\u0442,dog"]
    for i, (cat, dog) in enumerate([(1, 0), (0, 1), (1, 1)]):
        lines.append(f"{cells.format(i=i)},{'abc'[i]}.png,{words[cat]},{words[dog]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    split = load(str(tmp_path), "all", target="tags")
    assert split.classes == ["\u043a\u043e\u0442", "dog"]
    assert [sample.tags for sample in split.samples] == [(0,), (1,), (0, 1)]


def test_findings_of_chest_x_rays(tmp_path: Path) -> None:
    pictures(tmp_path)
    lines = ["Image Index,Finding Labels,Patient Age", "a.png,Mass|Hernia,58", "b.png,Mass,3"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    split = load(str(tmp_path), "all", target="tags")
    assert tags_of(split) == {"a.png": ("Hernia", "Mass"), "b.png": ("Mass",)}


def test_tags_keep_quotes_of_their_own() -> None:
    form = Form(",")
    assert words_of("'cat', \"it's\", very \"big\", 'tis", form, "") == [
        "cat",
        "it's",
        'very "big"',
        "'tis",
    ]


def test_lists_among_many_labels_are_told_at_once() -> None:
    many = [f"species {i}, of genus {i}" for i in range(20_000)]
    began = time.perf_counter()
    assert a_list(many) is None
    assert several_words(many) is None
    assert time.perf_counter() - began < 5  # each with each other took half an hour
    assert a_list([*many, "cat", "dog", "cat, dog"]) == "cat, dog"
    assert a_list(["cat", "cat, dog"]) is None
    assert several_words(["cat", "dog", "dog cat", "polar bear"]) == "dog cat"


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


def test_labels_of_several_words_in_a_column_of_tags_are_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    LAYOUTS["with spaces"][0](tmp_path)
    split = load(str(tmp_path), None)
    assert "cat dog seal" in split.classes
    (line,) = [line for line in split.skipped if "multilabel/BACKBONE" in line]
    assert "labels as 'cat dog seal' are taken as one class each" in line


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


@pytest.mark.parametrize("classes", [["p", "q"], None])
@pytest.mark.parametrize("made", [np.array, torch.tensor, list])
def test_flags_of_two_classes_are_no_numbers_of_classes(
    made: Callable[[Sequence[int]], object], classes: list[str] | None
) -> None:
    rows = [[1, 0], [0, 1], [0, 0], [1, 1]]
    split = from_samples([("a.png", made(row)) for row in rows], classes)
    assert [sample.tags for sample in split.samples] == [(0,), (1,), (), (0, 1)]
    only = from_samples([("a.png", made([1, 0]))], classes)
    assert [sample.tags for sample in only.samples] == [(0,)]
    wrapped = from_torchvision([(Image.new("RGB", (4, 4)), made([1, 0]))], classes)
    assert [sample.tags for sample in wrapped.samples] == [(0,)]
    numbers = from_samples([("a.png", made([1, 0])), ("b.png", made([1]))], classes)
    assert [sample.tags for sample in numbers.samples] == [(0, 1), (1,)]
    assert from_samples([("a.png", {0, 1})], ["p", "q"]).samples[0].tags == (0, 1)


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


# ---- what is learned -------------------------------------------------------------------------------------------------


def slow_loss(logits: Tensor, tags: Tensor, smoothing: float, weights: Tensor | None) -> float:
    """Binary cross-entropy, one pair of a picture and a class after the other."""
    total = 0.0
    for i in range(logits.shape[0]):
        for j in range(logits.shape[1]):
            there = float(tags[i, j]) * (1 - smoothing) + smoothing / logits.shape[1]
            probability = 1 / (1 + np.exp(-float(logits[i, j])))
            each = -there * np.log(probability) - (1 - there) * np.log(1 - probability)
            if weights is not None and tags[i, j]:
                each *= float(weights[j])
            total += each
    return total / logits.numel()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5, 0.0])])
def test_the_loss_is_binary_cross_entropy(smoothing: float, weights: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator)
    tags = (torch.rand(5, 4, generator=generator) < 0.4).float()
    losses = multilabel.loss(torch.nn.Identity(), logits, {"tags": tags}, smoothing, weights)
    assert list(losses) == ["binary_cross_entropy"]
    expected = slow_loss(logits, tags, smoothing, weights)
    assert float(losses["binary_cross_entropy"]) == pytest.approx(expected, rel=1e-5)


def test_a_class_that_every_picture_shows_is_learned_too() -> None:
    """Without anything to set it against, its weight would be 0."""
    split = from_samples([("0.png", ["cat"]), ("1.png", ["cat", "dog"])], ["cat", "dog"])
    assert class_weights(split, "tags").tolist() == pytest.approx([1 / 2, 1])


def test_balanced_weights_are_pictures_without_to_pictures_with() -> None:
    tags = [["cat"], ["cat", "dog"], ["cat"], []]
    split = from_samples([(f"{i}.png", one) for i, one in enumerate(tags)], ["cat", "dog", "bus"])
    assert class_weights(split, "tags").tolist() == pytest.approx([1 / 3, 3, 0])


def test_mixed_pictures_have_both_tags_by_their_shares() -> None:
    torch.manual_seed(0)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    tags = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    mixed, targets = mix(images, {"tags": tags}, 3, mixup=1.0)
    share = float(mixed[0].mean())  # of the second picture in the first
    assert 0.01 < share < 0.99
    torch.testing.assert_close(targets["tags"][0], torch.tensor([1 - share, share, share]))


# ---- how it is measured ----------------------------------------------------------------------------------------------


def slow_precision(scores: Sequence[float], truth: Sequence[bool]) -> float:
    """The mean precision at each picture that shows the class, among all of at least its score."""
    precisions = []
    for score, there in zip(scores, truth, strict=True):
        if there:
            among = [t for s, t in zip(scores, truth, strict=True) if s >= score]
            precisions.append(sum(among) / len(among))
    return 100 * sum(precisions) / len(precisions)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_its_definition_and_of_torchmetrics(ties: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 5, generator=generator)
    if ties:
        logits = logits.round() + 0.25  # none at 0.5, which torchmetrics takes for not there
    truth = torch.rand(60, 5, generator=generator) < torch.tensor([0.1, 0.5, 0.9, 0.3, 0.2])
    metric = multilabel.metric(list("abcde"))
    for part in (slice(0, 32), slice(32, 60)):
        metric.add([Tags(row) for row in logits[part]], {"tags": truth[part].float()})
    result = metric.result()
    theirs = multilabel_average_precision(logits.sigmoid(), truth.long(), 5, average=None)
    for i, row in enumerate(result["by_class"]):
        slow = slow_precision(logits[:, i].tolist(), truth[:, i].tolist())
        assert row["AP"] == pytest.approx(slow, rel=1e-6)
        assert row["AP"] == pytest.approx(100 * float(theirs[i]), rel=1e-4)
        recall, precision = result["pr"][row["class"]][-1]
        found_all = logits[:, i] >= logits[truth[:, i], i].min()
        assert (recall, precision) == (1, pytest.approx(float(truth[found_all, i].float().mean())))
    assert next(iter(result)) == "mAP"
    assert result["mAP"] == pytest.approx(np.mean([row["AP"] for row in result["by_class"]]))
    for average, name in (("macro", "F1"), ("micro", "micro_F1")):
        f1 = multilabel_f1_score(logits.sigmoid(), truth.long(), 5, average=average)
        assert result[name] == pytest.approx(100 * float(f1), abs=0.01)
    assert result["images"] == 60


def test_classes_without_a_picture_are_left_out_and_said() -> None:
    metric = multilabel.metric(["cat", "dog", "sky"])
    logits = [torch.tensor([2.0, 1.0, 1.0]), torch.tensor([-1.0, -1.0, 2.0])]
    metric.add([Tags(row) for row in logits], {"tags": torch.tensor([[1.0, 0, 1], [0, 0, 1]])})
    result = metric.result()
    assert result["per_class"] == {"cat": 100.0, "dog": None, "sky": 100.0}
    assert result["mAP"] == 100
    assert result["exact"] == 50  # the first has a dog too much
    assert result["micro_precision"] == pytest.approx(75)
    first, second = result["notes"]
    assert first.startswith("1 of 3 classes have no image here, so no figures: dog")
    assert second.startswith("all 2 images show sky")


def test_nothing_to_measure_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_tiny(monkeypatch)
    assert multilabel.metric(["cat"]).result()["mAP"] is None
    pictures = [(Image.new("RGB", (32, 32)), []) for _ in range(2)]
    split = from_samples(pictures, ["cat", "dog"])
    batches = batches_of(ImageDataset(split, Preprocess((32, 32)), target="tags"), 2)
    with pytest.raises(DataError, match="nothing to measure mAP on in 2 images: 2 of 2 classes"):
        evaluate(tiny("multilabel", 2), "multilabel", batches, split.classes)


def test_other_predictions_and_other_classes_are_refused() -> None:
    metric = multilabel.metric(["cat", "dog"])
    with pytest.raises(ModelError, match="Tags are needed here, but a prediction is Labels"):
        metric.add([Labels(torch.zeros(2))], {"tags": torch.zeros(1, 2)})
    with pytest.raises(ModelError, match="3 logits an image, but 2 classes"):
        metric.add([Tags(torch.zeros(3))], {"tags": torch.zeros(1, 2)})


# ---- what is predicted -----------------------------------------------------------------------------------------------


def test_tags_in_words() -> None:
    tags = Tags(torch.tensor([0.2, -3.0, 2.0]))
    classes = ["cat", "dog", "bus"]
    assert [name for name, _ in tags.present(classes, top=1)] == ["bus", "cat"]  # not the top alone
    assert dict(tags.present(classes))["bus"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert len(tags.present(classes, threshold=0.0)) == 3
    assert Tags(torch.full((3,), -1.0)).present(classes) == []
    assert tags.labels.tolist() == [1, 0, 1]
    with pytest.raises(ModelError, match="3 logits an image, but 2 class names"):
        tags.present(classes[:2])


def test_a_picture_beside_its_tags() -> None:
    image, classes = Image.new("RGB", (8, 8)), ["cat", "dog", "bus"]
    truth = {"tags": torch.tensor([1.0, 0, 1])}
    assert Tags.show(image, truth, classes, 8)[1] == "cat, bus"
    assert Tags.show(image, {"tags": torch.tensor([0.75, 0, 1])}, classes, 8)[1] == "0.75 cat, bus"
    assert Tags.show(image, {"tags": torch.zeros(3)}, classes, 8)[1] == "no tag"
    right = Tags(torch.tensor([3.0, -3, 3])).judge(image, truth, classes, 0.3, 8)
    assert (right.mistake, right.captions) == (0, ("cat 0.95, bus 0.95",))
    sure, unsure = (
        Tags(torch.tensor([3.0, -3, value])).judge(image, truth, classes, 0.3, 8)
        for value in (-5.0, -0.1)
    )
    assert sure.captions == ("cat 0.95, is cat, bus",)
    assert sure.mistake > unsure.mistake > 0.5


# ---- the whole way ---------------------------------------------------------------------------------------------------


def test_a_classifier_gives_its_head_too_but_for_other_classes() -> None:
    classifier = build("fasternet_t0", 5)
    whole = create_model("multilabel/fasternet_t0", 5, classifier.state_dict())
    assert whole.report.loaded == tuple(classifier.state_dict())
    model = create_model("multilabel/fasternet_t0", 3, classifier.state_dict())
    last = {f"head.classifier.4.{kind}" for kind in ("weight", "bias")}
    assert set(model.report.reinitialized) == last
    again = create_model("fasternet_t0", 3, model.state_dict())
    assert again.report.loaded == tuple(model.state_dict())


def test_our_checkpoint_of_a_classifier_gives_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_tiny(monkeypatch)
    classifier = tiny("classification", 3)
    checkpoint.save(
        tmp_path / "best.safetensors",
        classifier,
        classes=list("abc"),
        preprocess=Preprocess((32, 32)),
    )
    model = create_model("multilabel/tiny", weights=tmp_path)
    assert model.report.loaded == tuple(classifier.state_dict())
    assert model.classes == 3


def test_it_learns_what_pictures_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Squares of up to three colors: from scratch to nearly all right, where chance is half."""
    offer_tiny(monkeypatch)
    colors = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    samples = []
    for number in range(32):
        names = [name for i, name in enumerate(colors) if number >> i & 1]
        picture = Image.new("RGB", (32, 32))
        for i, name in enumerate(names):
            picture.paste(colors[name], (10 * i, number % 20, 10 * i + 10, number % 20 + 10))
        samples.append((picture, names))
    split = from_samples(samples, list(colors))
    config = fleetnet.TrainConfig(
        size=32, epochs=15, batch_size=8, lr=0.02, augment="none", label_smoothing=0.0, ema=None,
        eval_every=15, device="cpu",
    )  # fmt: skip
    best = fleetnet.fit(tiny("multilabel", 3), split, split, config, tmp_path / "run", report=False)
    assert best["mAP"] > 95
    assert best["micro_F1"] > 90


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a tiny network on generated pictures."""
    folder = tmp_path_factory.mktemp("tagged") / "run"
    train, val = (load("shapes:24", split, target="tags") for split in ("train", "val"))
    config = fleetnet.TrainConfig(size=32, batch_size=8, epochs=1, mixup=0.2, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        offer_tiny(patch)
        fleetnet.fit(tiny("multilabel", 6), train, val, config, folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, sample in enumerate(load("shapes:12", "val", target="tags").samples):
        assert callable(sample.image)
        sample.image().save(folder / f"{i}.png")
    return folder


def test_the_page_of_a_run_has_figures_by_class(run: Path) -> None:
    plots = {file.name for file in (run / "plots").iterdir()}
    assert {
        "ap_by_class.png",
        "precision_recall.png",
        "samples.jpg",
        "training_batch_1.jpg",
    } <= plots
    assert "micro_F1" in (run / "report.html").read_text()


def test_what_is_predicted_can_be_read_as_tagged_pictures(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_tiny(monkeypatch)
    out = tmp_path / "out"
    every = [
        pair
        for one in Predictor(run).predict(sorted(photos.iterdir()), threshold=0.0)
        for pair in one
    ]
    score = round(float(np.median([score for _, score in every])), 6)
    words = ["predict", "--model", str(run), str(photos), "--out", str(out), "--score", str(score)]
    assert main(words) == 0
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    document = json.loads((out / "predictions.json").read_text())
    for line, result in zip(lines, document["results"], strict=True):
        names = [prediction["name"] for prediction in result["predictions"]]
        assert line["tags"] == "|".join(names)
        assert all(prediction["score"] >= score for prediction in result["predictions"])
    assert (out / "predictions.png").is_file()
    (photos / "predictions.csv").write_text((out / "predictions.csv").read_text())
    split = load(str(photos / "predictions.csv"), None, target="tags")
    said = {Path(line["file"]).name: set(filter(None, line["tags"].split("|"))) for line in lines}
    assert {name: set(tags) for name, tags in tags_of(split).items()} == said
    assert 0 < sum(map(len, said.values())) < len(every)


def test_a_file_says_how_its_logits_are_read(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_tiny(monkeypatch)
    file = fleetnet.export(run, "onnx", tmp_path / "model.onnx").path
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["decoding"]["scores"]["activation"] == "sigmoid"
    assert about["decoding"]["scores"]["there_from"] == 0.5
    assert about["preprocessing"]["resize"]["mode"] == "stretch"
    pictures, out = sorted(photos.glob("*.png")), tmp_path / "answers.json"
    app = Path(__file__).with_name("app_from_sidecar.py")
    words = [sys.executable, app, out, file, "--", *pictures]
    subprocess.run(list(map(str, words)), check=True, cwd=tmp_path)
    (answers,) = json.loads(out.read_text()).values()
    predictor, trained = Predictor(file), Predictor(run)
    for picture, answer in zip(pictures, answers, strict=True):
        named = dict(predictor.predict(picture, threshold=0.0)[0])
        expected = [named[name] for name in predictor.classes]
        np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
        assert predictor.predict(picture)[0] == [pair for pair in named.items() if pair[1] >= 0.5]
    judge = judge_of(trained, str(photos), None)  # there are no labels
    assert (judge.expected, judge.score(predictor)) == (100.0, 100.0)


def test_an_int8_file_is_judged_by_the_metric(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer_tiny(monkeypatch)
    words = (
        f"quantize --model {run} --data shapes:24 --to onnx --max-drop 50 --out {tmp_path} --json"
    )
    assert main(words.split()) == 0
    assert "mAP" in capsys.readouterr().out
    (file,) = tmp_path.rglob("*.onnx")
    assert Predictor(file).task == "multilabel"
