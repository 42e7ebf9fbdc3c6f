"""Members of archives: read at their places, by several threads and processes, and wherever a picture is read."""

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fleetnet import images
from fleetnet.data import Sample, Split
from fleetnet.data._record import names_of
from fleetnet.errors import DataError
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.loader import batches_of
from fleetnet.preprocess import Preprocess
from fleetnet.reading import OPEN_ARCHIVES, Archive, Member
from fleetnet.review.copies import shared_by
from fleetnet.training.fingerprint import lines_of


def archive_of(path: Path, contents: list[bytes]) -> list[Member]:
    """An archive with a header of seven bytes, and its members."""
    path.write_bytes(b"header:" + b"".join(contents))
    members, offset = [], 7
    for i, content in enumerate(contents):
        members.append(Member(Archive.at(path), offset, len(content), f"{i}.png"))
        offset += len(content)
    return members


def pictures(tmp_path: Path, count: int = 4) -> list[Path]:
    paths = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 10 + i, 3), np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_a_member_is_what_its_file_is(tmp_path):
    paths = pictures(tmp_path)
    members = archive_of(tmp_path / "a.tar", [path.read_bytes() for path in paths])
    for path, member in zip(paths, members, strict=True):
        assert member.read() == path.read_bytes()
        assert images.measure(member) == images.measure(path)
        assert np.array_equal(np.asarray(images.read(member)), np.asarray(images.read(path)))
        assert np.array_equal(images.thumbnail(member, 8), images.thumbnail(path, 8))
        assert str(member) == f"{tmp_path}/a.tar: {path.name}"
        with member.open() as file:
            file.seek(-3, os.SEEK_END)
            assert file.read() == path.read_bytes()[-3:]
    assert pickle.loads(pickle.dumps(members)) == members
    assert len(pickle.dumps(members[0])) < 300 + len(str(tmp_path))


def test_maps_and_values_of_members(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(labels.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    contents = [(tmp_path / name).read_bytes() for name in ("labels.png", "deep.png")]
    members = archive_of(tmp_path / "a.tar", contents)
    assert np.array_equal(images.read_labels(members[0]), labels)
    assert images.value_range(members[1:])[0] == (0.0, 4095.0)


def test_an_archive_that_changed_or_is_no_picture_is_named(tmp_path):
    members = archive_of(tmp_path / "a.tar", [b"no picture", b"more"])
    with pytest.raises(DataError, match=r"cannot read image '.*a.tar: 0.png': not an image in a"):
        images.read(members[0])
    with pytest.raises(OSError, match="it has 1e-05 MB, and at most 3e-06"):
        members[0].read(most=3)
    cut = archive_of(tmp_path / "b.tar", [b"whole"])[0]
    (tmp_path / "b.tar").write_bytes(b"header:wh")
    with pytest.raises(DataError, match=r"b.tar' was changed since its members were looked up"):
        images.read(cut)
    beyond = Member(Archive.at(tmp_path / "b.tar"), 7, 100, "x.png")
    with pytest.raises(OSError, match="ends before it does"):
        beyond.read()
    (tmp_path / "b.tar").unlink()
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(DataError, match="a pipe"):
        images.read(cut)


def test_many_archives_are_read_by_many_threads(tmp_path):
    """More archives than are kept open, so that they are closed while others are read."""
    members = [
        archive_of(tmp_path / f"{i}.tar", [bytes([i]) * 100])[0] for i in range(OPEN_ARCHIVES + 8)
    ]
    wrong: list[int] = []

    def read(order: np.ndarray) -> None:
        wrong.extend(i for i in order if members[i].read() != bytes([i]) * 100)

    orders = [np.random.default_rng(seed).integers(0, len(members), 500) for seed in range(4)]
    threads = [threading.Thread(target=read, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) < OPEN_ARCHIVES + 40


def splits_of(folder: Path) -> tuple[Split, Split]:
    paths = pictures(folder)
    members = archive_of(folder / "a.tar", [path.read_bytes() for path in paths])
    return (
        Split([Sample(path, i % 2) for i, path in enumerate(paths)], ["a", "b"]),
        Split([Sample(member, i % 2) for i, member in enumerate(members)], ["a", "b"]),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_members_are_those_of_files(tmp_path, workers):
    """The archive is open in this process before the workers begin."""
    batches = [
        next(iter(batches_of(ImageDataset(split, Preprocess((8, 8))), 4, workers=workers)))
        for split in splits_of(tmp_path)
    ]
    assert batches[0].images.equal(batches[1].images)
    assert len(batches[1].images) == 4


def test_members_are_named_compared_and_recorded(tmp_path):
    files, members = splits_of(tmp_path)
    assert shared_by(files, members).same == [
        (member.image, file.image)
        for file, member in zip(files.samples, members.samples, strict=True)
    ]
    assert names_of(members)[1].endswith("a.tar: 1.png")
    lines = lines_of(members)
    assert list(lines) == [f"a.tar: {i}.png" for i in range(4)]
    (tmp_path / "elsewhere").mkdir()
    moved = splits_of(tmp_path / "elsewhere")[1]  # at another time
    assert lines_of(moved) == lines
    relabeled = [Sample(sample.image, 0) for sample in members.samples]
    assert lines_of(Split(relabeled, ["a", "b"])) != lines
