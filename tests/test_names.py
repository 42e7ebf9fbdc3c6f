"""Labels go by name: test sets that lack a class, have another order, or a class that the model does not know."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetnet.cli import main
from fleetnet.data import Sample, Split, load
from fleetnet.data._names import Renumbered, by_name
from fleetnet.errors import DataError
from fleetnet.tasks import build
from fleetnet.training.config import TrainConfig
from fleetnet.training.fit import fit


def reordered(split: Split, order: list[int]) -> Split:
    """The same annotations in data that list their classes in another order; `order` are old numbers."""
    new = {old: i for i, old in enumerate(order)}
    samples = []
    for sample in split.samples:
        objects = (
            None
            if sample.objects is None
            else tuple(replace(o, label=new[o.label]) for o in sample.objects)
        )
        semantic = None
        if sample.semantic is not None:
            numbers = [new.get(value, value) for value in range(256)]
            semantic = Renumbered(sample.semantic, tuple(numbers))
        label = None if sample.label is None else new[sample.label]
        samples.append(replace(sample, label=label, objects=objects, semantic=semantic))
    return Split(samples, [split.classes[i] for i in order])


@pytest.mark.parametrize("target", ["label", "boxes", "masks", "semantic"])
def test_another_order_is_put_right(target: str) -> None:
    split = load("shapes:20", "val", None, target)
    split = Split(split.samples[:6], split.classes)
    count = len(split.classes)
    other = reordered(split, [*range(2, count), 0, 1])
    assert other.classes != split.classes
    again = by_name(other, split.classes, "the model")
    assert again.classes == split.classes
    for ours, theirs in zip(again.samples, split.samples, strict=True):
        assert (ours.label, ours.objects) == (theirs.label, theirs.objects)
        if theirs.semantic is not None:
            assert ours.semantic is not None
            np.testing.assert_array_equal(ours.semantic(), theirs.semantic())
    assert by_name(split, split.classes, "the model") is split


def of_labels(labels: list[int], classes: list[str], **more: object) -> Split:
    return Split(
        [Sample(Path(f"{i}.jpg"), label=label) for i, label in enumerate(labels)], classes, **more
    )


def test_a_class_that_is_lacking_is_no_error() -> None:
    split = by_name(
        of_labels([0, 1, 1], ["cat", "ant"], ids=[7, 9]), ["ant", "bee", "cat"], "the model"
    )
    assert [sample.label for sample in split.samples] == [2, 0, 0]
    assert split.ids == [9, 10, 7]  # of ant and cat those of the data, of bee one that is free
    unused = by_name(
        of_labels([0], ["ant", "dog"]), ["ant", "bee"], "the model"
    )  # named, but nothing is a dog
    assert unused.classes == ["ant", "bee"]


def test_a_class_that_is_not_known_is_named() -> None:
    with pytest.raises(
        DataError, match=r"a class that runs/x does not know: 'Bee' \(2 times\).*did you mean 'bee'"
    ):
        by_name(of_labels([1, 1, 0], ["ant", "Bee"]), ["ant", "bee"], "runs/x")
    many = [f"class {i}" for i in range(9)]
    with pytest.raises(DataError, match=r"9 classes that the model does not know: .* and 4 more"):
        by_name(of_labels(list(range(9)), many), ["ant", "bee"], "the model")
    maps = Split([Sample(Path("a.jpg"), semantic=Renumbered(dict, ()))], ["road", "sky"])
    with pytest.raises(DataError, match="a class that the model does not know: 'sky'"):
        by_name(maps, ["road", "car"], "the model")


def test_label_maps_keep_what_is_no_class() -> None:
    def read() -> np.ndarray:
        return np.array([[0, 1], [255, 1]], np.uint8)

    sample = by_name(
        Split([Sample(Path("a.jpg"), semantic=read)], ["sky", "road"]), ["road", "car", "sky"], "it"
    )
    assert sample.samples[0].semantic is not None
    assert sample.samples[0].semantic().tolist() == [[2, 0], [255, 0]]
    assert pickle.loads(pickle.dumps(Renumbered(np.zeros, (0,)))) == Renumbered(
        np.zeros, (0,)
    )  # workers get it


def test_eval_of_a_set_that_lacks_a_class(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those of the same images within the whole set."""

    def evaluated(data: Path) -> dict:
        assert (
            main(["eval", "--model", str(run), "--data", str(data), "--split", "all", "--json"])
            == 0
        )
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    shutil.copytree(photos / "val", tmp_path / "all")
    whole = evaluated(tmp_path / "all")
    lost, *_ = sorted(path.name for path in (tmp_path / "all").iterdir())
    shutil.rmtree(tmp_path / "all" / lost)
    part = evaluated(tmp_path / "all")
    expected = [row["right"] for row in whole["by_class"] if row["class"] != lost]
    assert [row["right"] for row in part["by_class"] if row["class"] != lost] == expected
    assert part["correct"] == sum(expected)
    (gone,) = (row for row in part["by_class"] if row["class"] == lost)
    assert (gone["images"], gone["recall"], gone["F1"]) == (0, None, None)
    assert any(f"have no image here, so no figures: {lost}" in note for note in part["notes"])
    (tmp_path / "all" / "zebra").mkdir()
    some = next((photos / "val").glob("*/*.png"))
    shutil.copy(some, tmp_path / "all" / "zebra")
    assert (
        main(["eval", "--model", str(run), "--data", str(tmp_path / "all"), "--split", "all"]) == 3
    )
    assert "does not know: 'zebra' (1 times)" in capsys.readouterr().err


def test_val_may_lack_a_class_of_train(tmp_path: Path) -> None:
    training, val = (load("shapes:40", part, None, "boxes") for part in ("train", "val"))
    order = [*range(1, len(val.classes)), 0]
    few = reordered(Split(val.samples[:2], val.classes), order)
    unused = {item.label for sample in few.samples for item in sample.objects or ()}
    last = max(unused)
    few = Split(few.samples, few.classes[: last + 1])  # the classes behind are not even named
    config = TrainConfig(batch_size=4, size=64, epochs=1, ema=None)
    some = Split(training.samples[:4], training.classes)
    best = fit(build("ssd/fasternet_t0", 6), some, few, config, tmp_path, report=False)
    counts = {row["class"]: row["objects"] for row in best["by_class"]}
    assert list(counts) == training.classes
    expected = [
        few.classes[item.label]
        for sample in few.samples
        for item in sample.objects or ()
        if not item.crowd
    ]
    assert {name: count for name, count in counts.items() if count} == {
        n: expected.count(n) for n in set(expected)
    }
