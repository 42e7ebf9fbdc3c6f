"""What takes long is done once in a command: a checkpoint is read once, a validation picture decoded once."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fleetnet import checkpoint, data, images
from fleetnet.cli import main
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.int8._decoded import DecodedOnce
from fleetnet.preprocess import Preprocess


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints that are read, in their order."""
    files: list[Path] = []
    load = checkpoint.load

    def counting(path: Path, *others: Any) -> checkpoint.Checkpoint:
        files.append(path)
        return load(path, *others)

    monkeypatch.setattr(checkpoint, "load", counting)
    return files


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture is read."""
    counts: Counter[str] = Counter()
    look = images.look

    def counting(
        source: images.Source, *others: Any, **named: Any
    ) -> images.Picture | images.Encoded:
        counts[str(source)] += 1
        return look(source, *others, **named)

    monkeypatch.setattr(images, "look", counting)
    return counts


@pytest.mark.parametrize(
    "words",
    [
        "export --model {run} --to onnx,pt2 --out {out}",
        "bench --model {run} --to onnx,pt2 --runs 2 --warmup 0",
        "bench --tune --model {run} --data {photos} --to onnx,pt2 --runs 2 --warmup 0 --threads 1",
    ],
)
def test_a_checkpoint_is_read_once(
    words: str, run: Path, photos: Path, tmp_path: Path, read: list[Path]
) -> None:
    assert main(words.format(run=run, photos=photos, out=tmp_path).split()) == 0
    assert read == [run / "best.safetensors"]


def test_quantizing_with_several_attempts_reads_all_once(
    run: Path,
    photos: Path,
    tmp_path: Path,
    read: list[Path],
    decoded: Counter[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The checkpoint has 100 %, the first two int8 files lose too much.
    values: Iterator[float] = iter([100.0, 50.0, 60.0, 100.0])
    monkeypatch.setattr("fleetnet.int8._search.decisive", lambda result: next(values))
    words = f"quantize --model {run} --data {photos} --to onnx --pictures 8 --threads 1"
    assert main([*words.split(), "--out", str(tmp_path), "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out.splitlines()[-1])["quantized"]
    assert len(made["attempts"]) == 3
    assert read == [run / "best.safetensors"]
    validation = [str(sample.image) for sample in data.load(str(photos), "val").samples]
    assert {picture: decoded[picture] for picture in validation} == dict.fromkeys(validation, 1)


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_kept_batches_are_those_that_were_read(
    channel_order: Any, photos: Path, decoded: Counter[str]
) -> None:
    preprocess = Preprocess((32, 48), std=(0.2, 0.3, 0.17), channel_order=channel_order)
    whole = ImageDataset(data.load(str(photos), "val"), preprocess)
    expected = list(batches_of(whole, 2))
    assert len(expected) > 3
    decoded.clear()
    size = 2 * 3 * 32 * 48 + 2 * 8  # bytes of a batch: pixels, and two labels
    batches = DecodedOnce(whole, 2, limit=3 * size)
    for _ in range(3):
        passed = list(batches)
        assert len(passed) == len(expected)
        for ours, theirs in zip(passed, expected, strict=True):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.targets["label"], theirs.targets["label"])
            assert (ours.indices, ours.places) == (theirs.indices, theirs.places)
    assert batches.used == 3 * size
    assert batches.again == len(whole) - 6
    times = [decoded[str(sample.image)] for sample in whole.split.samples]
    assert times == [1] * 6 + [3] * (len(whole) - 6)


def test_kept_batches_hold_no_open_files_of_workers() -> None:
    """Large maps that a worker handed over are shared memory, a file for each while it is kept."""
    maps = ImageDataset(
        data.load("shapes:16", "val", None, "semantic"), Preprocess((160, 160)), target="semantic"
    )
    (first, *_) = handed_over = list(batches_of(maps, 1, workers=1))
    assert any(tensor.is_shared() for tensor in first.targets["semantic"])  # or nothing is tested
    batches = DecodedOnce(maps, 1, workers=1)
    for again in (list(batches), list(batches)):
        for ours, theirs in zip(again, handed_over, strict=True):
            assert torch.equal(ours.images, theirs.images)
            for our_map, their_map in zip(
                ours.targets["semantic"], theirs.targets["semantic"], strict=True
            ):
                assert torch.equal(our_map, their_map)
    kept = batches.kept
    assert len(kept) == len(handed_over)
    assert not any(tensor.is_shared() for batch in kept for tensor in batch.targets["semantic"])
