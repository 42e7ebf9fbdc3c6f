"""Retrieval by the features of a network: against plain versions, and what is no answer to a query."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from fleetnet.cli import main
from fleetnet.deploy import predictor
from fleetnet.deploy.predictor import load
from fleetnet.errors import DataError, ModelError, UsageError
from fleetnet.inputs.dataset import Batch
from fleetnet.tasks.multilabel import average_precision
from fleetnet.training.retrieval import (
    Embedded,
    embedded,
    joined,
    parse_recall_at,
    retrieval,
    search,
)

CLASSES = [f"class {i}" for i in range(5)]
NUMBERS = count()


def pictures(features: Tensor, labels: list[int], pixels: list[str] | None = None) -> Embedded:
    """Those of these features, each with pixels of its own unless given."""
    names = pixels or [f"picture {next(NUMBERS)}" for _ in labels]
    directions = features.double() / features.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    return Embedded(
        directions,
        torch.tensor(labels),
        [name.encode() for name in names],
        list(range(len(labels))),
        [],
    )


def random_pictures(how_many: int, seed: int, decimals: int | None = None) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(how_many, 3, generator=generator)
    if decimals is not None:
        features = features.round(decimals=decimals)  # so that many are equally alike
    labels = torch.randint(len(CLASSES), (how_many,), generator=generator).tolist()
    return pictures(features, labels)


def plainly(queries: Embedded, gallery: Embedded, ks: tuple[int, ...]) -> dict[str, float]:
    """The same figures, one query and one picture at a time."""
    hits: dict[int, list[bool]] = {k: [] for k in ks}
    precisions = []
    for i in range(len(queries)):
        ranked = []  # how much alike, whether it is right
        for j in range(len(gallery)):
            if queries.pixels[i] == gallery.pixels[j]:
                continue
            cosine = sum(
                float(a) * float(b)
                for a, b in zip(queries.directions[i], gallery.directions[j], strict=True)
            )
            ranked.append((round(cosine, 9), bool(queries.labels[i] == gallery.labels[j])))
        if not any(right for _, right in ranked):
            continue
        wrong_first = sorted(ranked, key=lambda pair: (-pair[0], pair[1]))
        for k in ks:
            hits[k].append(any(right for _, right in wrong_first[:k]))
        scores = torch.tensor([cosine for cosine, _ in ranked], dtype=torch.float64)
        truth = torch.tensor([right for _, right in ranked])
        precisions.append(average_precision(scores, truth)[0])
    figures = {f"recall{k}": 100 * sum(hit) / len(hit) for k, hit in hits.items()}
    return {**figures, "mAP": sum(p for p in precisions if p is not None) / len(precisions)}


@pytest.mark.parametrize("decimals", [None, 0], ids=["all differ", "many equal"])
@pytest.mark.parametrize("alone", [True, False])
def test_figures_are_those_of_a_plain_version(alone: bool, decimals: int | None):
    queries = random_pictures(30, 0, decimals)
    gallery = None if alone else random_pictures(40, 1, decimals)
    if gallery is not None:  # some of the gallery are queries
        copied = [*queries.pixels[:5], *gallery.pixels[5:]]
        gallery = replace(gallery, pixels=copied)
    result = retrieval(queries, gallery, CLASSES, (1, 3, 10))
    plain = plainly(queries, gallery or queries, (1, 3, 10))
    assert {name: result[name] for name in plain} == pytest.approx(plain, rel=1e-12)


def test_figures_are_those_of_torchmetrics():
    queries, gallery = random_pictures(20, 2), random_pictures(50, 3)
    result = retrieval(queries, gallery, CLASSES, (1, 5))
    hits, precisions = [], []
    for direction, label in zip(queries.directions, queries.labels, strict=True):
        # 2 is added since torchmetrics takes nothing of a score of 0 or less for an answer
        alike, right = gallery.directions @ direction + 2, gallery.labels == label
        hits.append([retrieval_hit_rate(alike, right, top_k=k).item() for k in (1, 5)])
        precisions.append(retrieval_average_precision(alike, right).item())
    assert [result["recall1"], result["recall5"]] == pytest.approx(
        [100 * float(np.mean(hit)) for hit in zip(*hits, strict=True)]
    )
    assert result["mAP"] == pytest.approx(100 * float(np.mean(precisions)), rel=1e-5)


@pytest.mark.parametrize("decimals", [None, 0])
def test_what_is_in_memory_at_once_changes_nothing(decimals: int | None):
    queries, gallery = random_pictures(30, 4, decimals), random_pictures(41, 5, decimals)
    whole = search(queries, gallery)
    for at_once in (1, 41, 100):
        for one, other in zip(search(queries, gallery, at_once), whole, strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_network_that_tells_nothing_apart_has_a_recall_of_nothing():
    labels = [0, 0, 0, 1, 1, 1]
    for features in (torch.ones(6, 4), torch.zeros(6, 4)):
        result = retrieval(pictures(features, labels), None, CLASSES, (1, 2))
        assert (result["recall1"], result["recall2"]) == (0, 0)
        assert result["mAP"] == pytest.approx(100 * 2 / 5)  # the share that is right


def test_copies_of_the_own_class_are_all_right():
    """Of pictures that are equally alike only those of other classes come first."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result = retrieval(pictures(features, [0, 0, 0, 1]), None, CLASSES, (1,))
    assert (result["recall1"], result["mAP"]) == (100, 100)


def test_queries_without_anything_to_find_are_named_and_left_out():
    queries = pictures(torch.eye(4), [0, 0, 3, 4])
    result = retrieval(queries, None, CLASSES, (1,))
    assert (result["queries"], result["left_out"], result["gallery"]) == (2, 2, 4)
    assert [row["class"] for row in result["by_class"]] == ["class 0"]
    assert "2 queries are left out" in result["notes"][0]
    assert "class 3 (1), class 4 (1)" in result["notes"][0]
    with pytest.raises(DataError, match="none of the 4 queries has a picture of its class"):
        retrieval(pictures(torch.eye(4), [0, 1, 2, 3]), None, CLASSES, (1,))


def test_the_same_picture_is_no_answer_wherever_it_lies():
    near, far = torch.tensor([[1.0, 0.1]]), torch.tensor([[0.5, 1.0]])
    query = pictures(torch.tensor([[1.0, 0.0]]), [0], ["a"])
    features = torch.cat([torch.tensor([[1.0, 0.0]]), near, far])
    for labels, expected in (([0, 1, 0], 0), ([1, 0, 1], 100)):
        gallery = pictures(features, labels, ["a", "b", "c"])
        result = retrieval(query, gallery, CLASSES, (1,))
        assert result["recall1"] == expected
        assert "1 pictures of the gallery have the pixels of a query" in result["notes"][0]


def test_a_recall_of_as_many_as_there_are_is_not_measured():
    queries = pictures(torch.eye(4), [0, 0, 1, 1])
    result = retrieval(queries, None, CLASSES, (1, 3))
    assert result["recall3"] is None
    assert "recall3 is not measured" in result["notes"][0]
    with pytest.raises(DataError, match="there are 3 pictures to choose from"):
        retrieval(queries, None, CLASSES, (3,))
    with pytest.raises(DataError, match="no query could be read"):
        retrieval(joined([embedded(torch.relu, [])]), None, CLASSES)


@pytest.mark.parametrize("text", ["", "0", "5,1", "1,1", "a", "1.5"])
def test_recall_at_is_read_strictly(text: str):
    with pytest.raises(UsageError, match="allowed: rising whole numbers"):
        parse_recall_at(text)
    assert parse_recall_at("1,5,10") == (1, 5, 10)


def test_processes_have_the_same_together_in_any_order():
    def batch(values: range) -> Batch:
        images = torch.stack([torch.full((3, 2, 2), i, dtype=torch.uint8) for i in values])
        labels = torch.tensor([i % 2 for i in values])
        return Batch(images, {"label": labels}, [f"{values}"], list(values), [])

    def embed(images: Tensor) -> Tensor:
        return torch.cat([images[:, 0, 0].float(), torch.ones(len(images), 1)], 1)

    whole = embedded(embed, [batch(range(4)), batch(range(4, 8))])
    halves = [embedded(embed, [batch(part)]) for part in (range(4, 8), range(4))]
    together = joined([*halves, embedded(embed, [])])
    assert torch.equal(together.directions, whole.directions)
    assert torch.equal(together.labels, whole.labels)
    assert (together.pixels, together.indices) == (whole.pixels, whole.indices)
    assert len(together.skipped) == 2
    with pytest.raises(ModelError, match="features have NaN or infinity"):
        embedded(lambda images: images.float().mean((2, 3)) * torch.nan, [batch(range(2))])


# ---- the command line ----------------------------------------------------------------------------


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["eval", "--eval-mode", "retrieval", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_eval_searches_a_split_in_itself(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    result = evaluated(capsys, "--model", run, "--data", photos)
    files = sorted((photos / "val").glob("*/*.png"))
    features = torch.from_numpy(load(run).embed(files))
    names = sorted({file.parent.name for file in files})
    labels = [names.index(file.parent.name) for file in files]
    expected = plainly(*[pictures(features, labels)] * 2, (1, 5))
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["queries"] == len(files) == result["gallery"]


def test_a_gallery_of_a_split_or_a_folder_goes_by_the_names_of_classes(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    of_split = evaluated(capsys, "--model", run, "--data", photos, "--gallery", "train")
    assert of_split["gallery"] == 24
    # The same pictures, beside a class that the run does not know and that sorts before all others.
    (tmp_path / "train").symlink_to(photos / "train")
    other = tmp_path / "gallery"
    for folder in (photos / "train").iterdir():
        (other / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (other / folder.name / file.name).write_bytes(file.read_bytes())
    (other / "aardvark").mkdir()
    away = Image.new("RGB", (40, 40), (3, 2, 1))
    away.save(other / "aardvark" / "0.png")
    of_folder = evaluated(capsys, "--model", run, "--data", photos, "--gallery", other)
    assert of_folder["gallery"] == 25
    by_class = {row["class"]: row["images"] for row in of_folder["by_class"]}
    assert by_class == {row["class"]: row["images"] for row in of_split["by_class"]}
    assert of_folder["recall1"] == pytest.approx(of_split["recall1"], abs=100 / 12)
    # Queries in a gallery that holds them too are not found as themselves.
    own = evaluated(capsys, "--model", run, "--data", photos, "--gallery", photos / "val")
    alone = evaluated(capsys, "--model", run, "--data", photos)
    assert {key: own[key] for key in ("recall1", "mAP")} == {
        key: alone[key] for key in ("recall1", "mAP")
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--gallery train", "--gallery is read with --eval-mode retrieval"),
        ("--eval-mode retrieval --plots p", "--plots is read with --eval-mode task"),
        ("--eval-mode retrieval --only cat", "--only is read with --eval-mode task"),
        ("--eval-mode retrieval --recall-at 5,1", "recall_at is '5,1'"),
        ("--eval-mode retrival", "retrieval"),
    ],
)
def test_settings_of_the_other_mode_are_refused(
    words: str, said: str, run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    start = ["eval", "--model", str(run), "--data", str(photos)]
    assert main([*start, *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_what_has_no_features_is_refused_before_anything_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    exported = load(run)
    exported._embed, exported.runtime = None, "onnx"  # as of any exported file
    monkeypatch.setattr(predictor, "load", lambda *_, **__: exported)
    words = ["eval", "--eval-mode", "retrieval", "--model", "model.onnx", "--data", "nowhere"]
    assert main(words) == 2
    assert "need a checkpoint or a run folder: an exported file (onnx)" in capsys.readouterr().err


def test_a_training_is_measured_and_kept_by_retrieval(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = "train --model fasternet_t0 --size 32 --batch-size 8 --epochs 1 --eval-mode retrieval"
    where = ["--data", str(photos), "--run", str(tmp_path / "run"), "--json"]
    assert main([*words.split(), *where]) == 0
    best = json.loads(capsys.readouterr().out.splitlines()[-1])["best"]
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    again = evaluated(capsys, "--model", tmp_path / "run", "--data", photos)
    for figures in (best, line["ema"]):
        assert figures["recall1"] == again["recall1"]
        assert figures["mAP"] == pytest.approx(again["mAP"])
