"""Shards: what WebDataset's users have is read, at random places, and what is written comes back as it was."""

import io
import json
import multiprocessing
import os
import pickle
import random
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_backbone import offer_tiny, tiny

from fleetnet import checkpoint, data
from fleetnet.cli import main
from fleetnet.cli._resuming import _place
from fleetnet.data import Object, Sample, Split, _shard_index, shards
from fleetnet.data._shard_files import expanded
from fleetnet.data._shard_index import SUFFIX, index_of, unpacked
from fleetnet.data._tar import Damaged, entries
from fleetnet.deploy.predictor import each, read_picture
from fleetnet.errors import DataError, UsageError, WriteError
from fleetnet.reading import Archive, Member
from fleetnet.training.config import TrainConfig
from fleetnet.training.fingerprint import lines_of
from fleetnet.training.fit import fit

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
Members = Sequence[tuple[str, bytes | str]]


def picture(gray: int, size: tuple[int, int] = (12, 10), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (gray,) * 3).save(file, kind)
    return file.getvalue()


def label_map(value: int, size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: Members, format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as file:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def classified(labels: Sequence[object], start: int = 0) -> Members:
    members: list[tuple[str, bytes | str]] = []
    for i, label in enumerate(labels, start):
        members += [(f"{i:04d}.png", picture(i)), (f"{i:04d}.cls", str(label))]
    return members


def labels_of(split: Split) -> list[str]:
    return [split.classes[sample.label] for sample in split.samples if sample.label is not None]


def grays(split: Split) -> list[int]:
    from fleetnet.images import read

    images = [sample.image for sample in split.samples]
    assert all(isinstance(image, Member) for image in images)
    return [read(image).getpixel((0, 0))[0] for image in images]


# ---- what others write -------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_of_tarfile(tmp_path, format):
    """Long names, folders, links and contents of all lengths around a block."""
    name = "a/" * (20 if format == tarfile.USTAR_FORMAT else 90)
    members = [(f"{name}é{i}.x", bytes(i)) for i in (0, 1, 511, 512, 513, 5000)]
    path = tar(tmp_path / "x.tar", members, format)
    with tarfile.open(path, "a", format=format) as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"kind{kind.decode()}")
            info.type, info.linkname = kind, "elsewhere"
            file.addfile(info)
        info = tarfile.TarInfo("last.x")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    content = path.read_bytes()
    mine = list(entries(lambda place, length: content[place : place + length], len(content)))
    with tarfile.open(path) as file:
        theirs = [(m.name, m.offset_data, m.size, m.isreg()) for m in file]
    assert [(e.name.rstrip("/"), e.offset, e.size, not e.kind) for e in mine] == theirs
    assert content[mine[-1].offset : mine[-1].offset + 3] == b"abc"


def test_large_numbers_and_sparse_files(tmp_path):
    """Sizes above 8 GB are written otherwise; sparse files are told."""
    info = tarfile.TarInfo("large.x")
    info.size = 9 << 30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        head = info.tobuf(format)
        with pytest.raises(Damaged, match=str(len(head) + (9 << 30))):
            list(entries(lambda place, length, h=head: h[place : place + length], len(head)))
    sparse = tarfile.TarInfo("holes.x")
    sparse.type = tarfile.GNUTYPE_SPARSE
    content = sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (entry,) = entries(lambda place, length: content[place : place + length], len(content))
    assert entry.kind == "a sparse file"


LABELED: dict[str, tuple[Mapping[str, Members], list[str], list[str]]] = {
    # name -> files, classes, labels of train
    "numbers": ({"train-000000.tar": classified([0, 2, 1])}, ["0", "1", "2"], ["0", "2", "1"]),
    "names": ({"train-0.tar": classified(["dog", "cat", "dog"])}, ["cat", "dog"], list("dcd")),
    "classes.txt": (
        {"train-0.tar": classified([1, 0]), "classes.txt": [("", "cat\ndog\n")]},
        ["cat", "dog"],
        list("dc"),
    ),
    "from one": (
        {"train-0.tar": classified([1, 2]), "classes.txt": [("", "cat\ndog\n")]},
        ["cat", "dog"],
        list("cd"),
    ),
    "json with names": (
        {
            "train-0.tar": [
                ("a.jpg", picture(0, kind="JPEG")),
                ("a.json", '{"label": 1, "class_name": "dog", "width": 5}'),
                ("b.jpg", picture(1, kind="JPEG")),
                ("b.json", '{"label": 0, "class_name": "cat"}'),
            ]
        },
        ["cat", "dog"],
        list("dc"),
    ),
    "txt": (
        {
            "train-0.tar": [
                part
                for i, name in enumerate(["dog", "cat", "dog", "cat"])
                for part in ((f"{i}.png", picture(i)), (f"{i}.txt", name + "\n"))
            ]
        },
        ["cat", "dog"],
        list("dcdc"),
    ),
    "folders, case, hidden": (
        {
            "shard-0.tar": [
                ("./x/a.PNG", picture(0)),
                ("./x/a.CLS", b"\xef\xbb\xbfdog \n"),
                ("__MACOSX/x/._b.png", b"junk"),
                ("x/._b.png", b"junk"),
                ("README", "text"),
                ("__meta__.json", "{}"),
                ("y/a.b.png", b"not read"),
                ("y/a.png", picture(1)),
                ("y/a.cls", "cat"),
            ]
        },
        ["cat", "dog"],
        ["d"],  # the last of two is held back
    ),
}


@pytest.mark.parametrize("name", LABELED)
def test_labels_of_others(tmp_path, name):
    files, classes, labels = LABELED[name]
    for file, members in files.items():
        if file.endswith(".tar"):
            tar(tmp_path / file, members)
        else:
            (tmp_path / file).write_bytes(members[0][1].encode())
    every = data.load(str(tmp_path), None)
    assert every.source is not None
    assert every.source.format == "shards"
    assert every.classes == classes
    if len(every.samples) == len(labels):
        assert [label[: len(labels[0])] for label in labels_of(every)] == labels
        assert grays(every) == list(range(len(labels)))
    else:
        assert labels_of(every)[0].startswith(labels[0])


def test_labels_of_all_splits_say_whether_they_count_from_one(tmp_path):
    objects = [json.dumps({"objects": [{"box": [1, 1, 6, 6], "label": i}]}) for i in (1, 2, 3)]
    for split, labels in {"train": [1, 2, 3], "val": [1, 2]}.items():
        tar(tmp_path / f"cls/{split}-0.tar", classified(labels))
        members = [
            part
            for i in labels
            for part in ((f"{i}.png", picture(i)), (f"{i}.json", objects[i - 1]))
        ]
        tar(tmp_path / f"boxes/{split}-0.tar", members)
    for kind in ("cls", "boxes"):
        (tmp_path / kind / "classes.txt").write_text("cat\ndog\nbird\n")
    val = data.load(str(tmp_path / "cls"), "val")
    assert (labels_of(val), val.skipped) == (["cat", "dog"], [])
    assert labels_of(data.load(str(tmp_path / "cls/val-0.tar"), "val")) == ["cat", "dog"]
    boxes = data.load(str(tmp_path / "boxes"), "val", target="boxes")
    assert [item.label for sample in boxes.samples for item in sample.objects or ()] == [0, 1]
    (tmp_path / "cls/classes.txt").unlink()
    counted = "the least label is 1: labels are counted from 0"
    tar(tmp_path / "cls/train-0.tar", classified([1, 2, 3]))
    assert counted in data.load(str(tmp_path / "cls"), "val").skipped[0]
    tar(tmp_path / "cls/train-0.tar", classified([0, 1, 2]))
    assert data.load(str(tmp_path / "cls"), "val").skipped == []


def test_splits_by_name_by_folder_and_by_pattern(tmp_path):
    for i in range(3):
        tar(tmp_path / f"a/set-train-{i:03d}.tar", classified([0, 1], 2 * i))
    tar(tmp_path / "a/set-validation-0.tar", classified([2], 9))
    tar(tmp_path / "b/train/0.tar", classified([0, 1]))
    tar(tmp_path / "b/train/10.tar", classified([0, 1], 4))
    tar(tmp_path / "b/train/2.tar", classified([0, 1], 2))
    tar(tmp_path / "b/test/0.tar", classified([1], 9))
    read = partial(data.load, target="label")
    assert grays(read(str(tmp_path / "a"), "train")) == [0, 1, 2, 3, 4, 5]
    val = read(str(tmp_path / "a"), "val")
    assert (grays(val), val.classes) == ([9], ["0", "1", "2"])  # a class that train has not
    assert grays(read(str(tmp_path / "a/set-train-{000..001}.tar"), None)) == [0, 1, 2, 3]
    assert grays(read(str(tmp_path / "a/set-train-{000,002}.tar"), "val")) == [9]
    assert grays(read(str(tmp_path / "a/set-train-001.tar"), "train")) == [2, 3]
    assert grays(read(str(tmp_path / "b"), "test")) == [9]
    assert grays(read(str(tmp_path / "b/train"), "all")) == [0, 1, 2, 3, 4, 5]  # by number
    assert grays(read(str(tmp_path / "b/train"), "test")) == [9]
    with pytest.raises(DataError, match=r"2 of 4 shards are not there: .*003.tar, .*004.tar"):
        read(str(tmp_path / "a/set-train-{001..004}.tar"), "train")
    (tmp_path / "a/set-train-001.tar").unlink()
    pattern = str(tmp_path / "a/set-train-{000,002}.tar")
    assert read(pattern, "train").skipped == []  # not all, and meant so
    assert "no shards of the numbers 1" in read(str(tmp_path / "a"), "train").skipped[0]
    tar(tmp_path / "c/x-{0..3}.tar", classified([0, 1]))  # a file that is called so
    assert len(read(str(tmp_path / "c/x-{0..3}.tar"), "all").samples) == 2


def test_patterns_are_bounded():
    assert expanded("{0..2}-{a,b}.tar") == [f"{i}-{x}.tar" for i in range(3) for x in "ab"]
    assert expanded("{2..0}{x}.tar") == ["2{x}.tar", "1{x}.tar", "0{x}.tar"]
    for pattern in ("{0..999999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(DataError, match="more than 100000 names"):
            expanded(pattern)


def test_objects_maps_and_tags_of_others(tmp_path):
    objects = {
        "objects": [
            {"box": [1, 1, 6, 6], "label": "cat", "segmentation": [[1, 1, 6, 1, 6, 6]]},
            {"bbox": [2, 2, 3, 4], "label": "dog", "iscrowd": 1, "area": 5},
            {"bbox": [2, 2, 0, 4], "label": "dog"},
        ]
    }
    members = [
        ("a.jpg", picture(0, kind="JPEG")),
        ("a.json", json.dumps(objects)),
        ("a.png", label_map(1)),
        ("b.seg.png", label_map(255)),
        ("b.jpg", picture(1, kind="JPEG")),
        ("b.json", '{"tags": ["dog"], "objects": []}'),
    ]
    tar(tmp_path / "all-0.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    boxes = data.load(str(tmp_path), "all", target="boxes")
    assert boxes.samples[0].objects == (
        Object((1, 1, 6, 6), 0),
        Object((2, 2, 5, 6), 1, None, True, 5),
    )
    assert boxes.samples[1].objects == ()
    assert (boxes.annotations.read, boxes.annotations.lost()) == (3, 1)
    masks = data.load(str(tmp_path), "all", target="masks")
    assert [item.segmentation for item in masks.samples[0].objects or ()] == [[[1, 1, 6, 1, 6, 6]]]
    maps = data.load(str(tmp_path), "all", target="semantic")
    read = [sample.semantic() for sample in maps.samples if sample.semantic is not None]
    assert [np.unique(one).tolist() for one in read] == [[1], [255]]
    assert len(pickle.loads(pickle.dumps(maps)).samples) == 2
    tags = data.load(str(tmp_path), "all", target="tags")
    assert [sample.tags for sample in tags.samples] == [(0, 1), (1,)]


def test_what_no_task_can_learn_from_is_said(tmp_path):
    captioned = [
        part
        for i in range(4)
        for part in (
            (f"{i}.jpg", picture(i, kind="JPEG")),
            (f"{i}.txt", f"a photo of thing {i}"),
            (f"{i}.json", json.dumps({"caption": "a photo", "url": "http://x", "status": "ok"})),
        )
    ]
    tar(tmp_path / "captions/00000.tar", captioned)
    with pytest.raises(DataError, match=r"no label of an image; .*4 .txt; .txt are captions"):
        data.load(str(tmp_path / "captions"), "train")
    tar(tmp_path / "plain/00000.tar", [("a.jpg", picture(0, kind="JPEG")), ("a.mp3", "x")])
    with pytest.raises(DataError, match=r"no label of an image; .* 1 pictures, 1 .mp3. Expected"):
        data.load(str(tmp_path / "plain"), "all")
    tar(tmp_path / "none/0.tar", [("a.cls", "0")])
    with pytest.raises(DataError, match="no pictures"):
        data.load(str(tmp_path / "none/0.tar"), "all")
    tar(tmp_path / "folders.tar", [("train/cat/1.jpg", picture(0, kind="JPEG"))])
    with pytest.raises(DataError, match="where the folders in it are classes, unpack it"):
        data.load(str(tmp_path / "folders.tar"), "all")
    empty = [("a.jpg", picture(0, kind="JPEG")), ("a.json", '{"objects": []}')]
    tar(tmp_path / "empty.tar", empty)
    with pytest.raises(DataError, match="none of its samples shows anything, and no file names"):
        data.load(str(tmp_path / "empty.tar"), "all", target="boxes")
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed/x-0.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"is compressed .gzip.*unpack it to a plain .tar"):
        data.load(str(tmp_path / "packed"), "train")
    (tmp_path / "named.tar").write_bytes((tmp_path / "packed/x-0.tar.gz").read_bytes())
    with pytest.raises(DataError, match=r"is compressed .gzip"):
        data.load(str(tmp_path / "named.tar"), "train")
    tar(tmp_path / "mixed/0.tar", classified([0, "cat"]))
    with pytest.raises(DataError, match="some labels are numbers, as 0, and some are names"):
        data.load(str(tmp_path / "mixed"), "all")
    (tmp_path / "mixed/classes.txt").write_text("cat\ndog\n")
    assert labels_of(data.load(str(tmp_path / "mixed"), "all")) == ["cat", "cat"]
    tar(tmp_path / "mixed/0.tar", classified([7]))
    with pytest.raises(DataError, match=r"0.tar: 0000: label 7 is out of range: .*2 classes"):
        data.load(str(tmp_path / "mixed"), "all")


def test_names_with_dots_are_said(tmp_path):
    dotted = [("x.v0.png", picture(3)), ("x.v0.cls", "1"), ("y.v1.png", picture(4)), ("z.mp3", "")]
    tar(tmp_path / "0.tar", [*classified([0, 1]), *dotted])
    split = data.load(str(tmp_path), "all")
    assert len(split.samples) == 2
    assert len(split.skipped) == 1
    assert "3 members are not read: they end in .v0.png, .v0.cls, .v1.png" in split.skipped[0]


def test_several_labels_in_a_sample(tmp_path):
    tagged = [("a.png", picture(0)), ("a.json", '{"label": ["cat", "dog"]}')]
    more = [("b.png", picture(1)), ("b.json", '{"label": "dog", "target": [0.5, 1]}')]
    tar(tmp_path / "tags/0.tar", [*tagged, *more])
    tags = data.load(str(tmp_path / "tags"), "all", target="tags")
    assert [sample.tags for sample in tags.samples] == [(0, 1), (1,)]
    tar(tmp_path / "tags/0.tar", tagged)
    for place in ("tags", "tags/0.tar"):
        with pytest.raises(DataError, match=r"no label of an image, but tags .*multilabel/"):
            data.load(str(tmp_path / place), "all")
    flags = [("c.png", picture(1)), ("c.json", '{"labels": [0, 1, 0]}')]
    tar(tmp_path / "flags/0.tar", flags)
    with pytest.raises(DataError, match=r"0.tar: c: tags are \[0, 1, 0\], 0 or 1 for each class"):
        data.load(str(tmp_path / "flags"), "all", target="tags")
    tar(tmp_path / "cls/0.tar", classified(["0,2", 1]))
    for target in ("label", "tags"):
        with pytest.raises(DataError, match=r"the label '0,2' is a list, .*json.*multilabel/"):
            data.load(str(tmp_path / "cls"), "all", target=target)
    tar(tmp_path / "cls/0.tar", classified(["tench, Tinca tinca", "tench", "Tinca tinca"]))
    with pytest.raises(DataError, match="the label 'tench, Tinca tinca' is a list"):
        data.load(str(tmp_path / "cls"), "all")
    (tmp_path / "cls/classes.txt").write_text("tench, Tinca tinca\ntench\nTinca tinca\n")
    assert len(data.load(str(tmp_path / "cls"), "all").samples) == 3


def test_shards_that_are_named_or_packed_otherwise(tmp_path):
    tar(tmp_path / "x-0.tar", classified([0, 1]))
    for pattern in ("x-*.tar", "x-[0-2].tar", "x-?.tar"):
        with pytest.raises(DataError, match=r"named by their folder, .* train-\{000000"):
            data.load(str(tmp_path / pattern), "train")
    for end, program in {".tar.zst": "zstd", ".tar.xz": "xz", ".TGZ": "gzip"}.items():
        (tmp_path / end[1:]).mkdir()
        (tmp_path / end[1:] / f"x-0{end}").write_bytes(b"x")
        with pytest.raises(DataError, match=f"is compressed .{program}.*`{program} -d`"):
            data.load(str(tmp_path / end[1:]), "train")


def test_other_data_with_tar_files_beside_stay_what_they_are(tmp_path):
    """Archives that were downloaded and unpacked lie beside what came out of them."""
    for i in range(4):
        place = tmp_path / f"train/{'ab'[i % 2]}/{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(i))
    tar(tmp_path / "train.tar", [(f"a/{i}.png", picture(i)) for i in range(4)])
    loaded = data.load(str(tmp_path), "train")
    assert loaded.source is not None
    assert loaded.source.format == "folder"


# ---- the index ---------------------------------------------------------------------------------


def test_the_index_is_kept_checked_and_made_anew(tmp_path, monkeypatch):
    path = tar(tmp_path / "train-0.tar", classified([0, 1]))
    data.load(str(tmp_path), "all")
    file = tmp_path / f"train-0.tar{SUFFIX}"
    first = file.read_bytes()
    scans: list[Archive] = []
    scan = _shard_index.scanned
    monkeypatch.setattr(_shard_index, "scanned", lambda a: scans.append(a) or scan(a))
    assert len(data.load(str(tmp_path), "all").samples) == 2
    assert not scans  # from the file
    tar(path, classified([0, 1, 1]))
    assert len(data.load(str(tmp_path), "all").samples) == 3
    assert len(scans) == 1
    os.utime(path, (1, 1))  # of another time
    data.load(str(tmp_path), "all")
    assert len(scans) == 2
    for place in (18, 20, 60, len(first) // 2, len(first) - 1):  # damaged anywhere
        whole = bytearray(file.read_bytes())
        whole[place % len(whole)] ^= 0x55
        file.write_bytes(whole)
        assert labels_of(data.load(str(tmp_path), "all")) == ["0", "1", "1"]
    file.write_bytes(file.read_bytes()[:-7])
    assert len(data.load(str(tmp_path), "all").samples) == 3
    assert unpacked(file.read_bytes(), Archive.at(path)).keys == ["0000", "0001", "0002"]


def test_an_index_that_leads_out_of_its_shard_is_none(tmp_path):
    path = tar(tmp_path / "train-0.tar", classified([0, 1]))
    index = index_of(path)
    index.pictures.length[1] = 1 << 60
    with pytest.raises(ValueError, match="outside"):
        unpacked(_shard_index.packed(index), index.archive)


def test_an_index_that_is_nested_too_deep_is_made_anew(tmp_path):
    path = tar(tmp_path / "train-0.tar", classified([0, 1]))
    rest = b"[" * 100_000 + b"\n"
    content = _shard_index.MAGIC + f"{zlib.crc32(rest):08x}\n".encode() + rest
    (tmp_path / f"train-0.tar{SUFFIX}").write_bytes(content)
    assert len(index_of(path).keys) == 2


def test_a_second_photograph_is_no_label_map(tmp_path):
    members = [("0.jpg", picture(0)), ("0.jpeg", picture(1)), ("0.cls", b"0")]
    path = tar(tmp_path / "train-0.tar", members)
    assert shards.detect(str(path), "label")
    assert not shards.detect(str(path), "semantic")


def test_an_index_that_cannot_be_kept_is_said(tmp_path, monkeypatch):
    path = tar(tmp_path / "train-0.tar", classified([0, 1]))
    (tmp_path / f"train-0.tar{SUFFIX}").write_text("v1.2 of another program\n")
    loaded = data.load(str(path), "all")
    assert "no index of ours" in loaded.skipped[0]
    assert (tmp_path / f"train-0.tar{SUFFIX}").read_text().startswith("v1.2")
    (tmp_path / f"train-0.tar{SUFFIX}").unlink()

    def refuse(path: Path) -> None:
        raise WriteError(f"{path} cannot be written: Read-only file system")

    monkeypatch.setattr(_shard_index, "replacing", refuse)
    loaded = data.load(str(path), "all")
    assert len(loaded.samples) == 2
    assert "kept in memory alone" in loaded.skipped[0]
    assert os.listdir(tmp_path) == ["train-0.tar"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="by fork, so that all begin at once")
def test_processes_may_make_an_index_at_once(tmp_path):
    path = tar(tmp_path / "train-0.tar", classified([0, 1] * 20))
    context = multiprocessing.get_context("fork")
    start = context.Event()

    def make() -> None:
        start.wait(20)
        assert len(index_of(path).keys) == 40

    makers = [context.Process(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    start.set()
    for maker in makers:
        maker.join(20)
    assert [maker.exitcode for maker in makers] == [0] * 4
    assert sorted(os.listdir(tmp_path)) == ["train-0.tar", f"train-0.tar{SUFFIX}"]
    assert len(unpacked(Path(f"{path}{SUFFIX}").read_bytes(), Archive.at(path)).keys) == 40


def test_damaged_shards_are_named_and_counted(tmp_path):
    path = tar(tmp_path / "train-0.tar", classified([0, 1, 0, 1]))
    content = path.read_bytes()
    tar(tmp_path / "train-1.tar", classified([0, 1], 4))
    with tarfile.open(path) as file:
        third = file.getmembers()[4]
    path.write_bytes(content[: third.offset_data + 5])  # cut off within a picture
    loaded = data.load(str(tmp_path), "all")
    assert grays(loaded) == [0, 1, 4, 5]
    assert "train-0.tar' is damaged: it is cut off" in loaded.skipped[0]
    assert "the 2 samples before that are used" in loaded.skipped[0]
    path.write_bytes(content[: third.offset])  # between two members
    assert "without the end of a tar file" in data.load(str(tmp_path), "all").skipped[0]
    broken = bytearray(content)
    broken[third.offset + 3] ^= 1
    path.write_bytes(broken)
    assert f"the header at byte {third.offset} is" in data.load(str(tmp_path), "all").skipped[0]
    path.write_bytes(b"no tar file at all" * 100)
    with pytest.raises(DataError, match=r"train-0.tar' is damaged: .*; no sample is before that"):
        data.load(str(tmp_path), "all")
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        data.load(str(tmp_path), "all")


def test_links_and_what_comes_again_are_said(tmp_path):
    path = tar(tmp_path / "train-0.tar", [*classified([0, 1]), ("0000.cls", "1")])
    with tarfile.open(path, "a") as file:
        for i, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            info = tarfile.TarInfo(f"9{i}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    loaded = data.load(str(path), "all")
    assert labels_of(loaded) == ["1", "1"]
    text = "\n".join(loaded.skipped)
    assert "1 members are symbolic links and are left out" in text
    assert "1 members are hard links and are left out" in text
    assert "1 parts of samples come again, as '0000.cls'" in text


def test_whatever_the_bytes_are_the_reader_ends(tmp_path):
    """Cut and changed bytes, in headers above all: an index or a `DataError`, never anything else."""
    members = [*classified([0, 1, 2]), ("a/" * 60 + "b.json", '{"label": 3}')]
    random_ = random.Random(0)
    outcomes: set[str] = set()
    for format in FORMATS:
        content = tar(tmp_path / "x.tar", members, format).read_bytes()[: 40 * 512]
        for trial in range(120):
            bytes_ = bytearray(content)
            for _ in range(random_.randint(1, 4)):
                block = random_.randrange(len(bytes_) // 512) * 512
                place = block + random_.choice([0, 100, 124, 125, 135, 148, 156, 257, 345, 400])
                bytes_[place] = random_.choice([0, 255, 128, 48, 55, 76, 120, 103, 83, 32])
                if trial % 2:  # with a sum that is right
                    header = bytes_[block : block + 512]
                    header[148:156] = b" " * 8
                    bytes_[block + 148 : block + 156] = b"%06o\0 " % sum(header)
            path = tmp_path / "hostile.tar"
            path.write_bytes(
                bytes_[: random_.choice([len(bytes_), random_.randrange(len(bytes_))])]
            )
            try:
                index = _shard_index.scanned(Archive.at(path))
            except DataError:
                outcomes.add("refused")
                continue
            outcomes.add("damaged" if index.damage else "read")
            assert (index.pictures.place + index.pictures.length <= path.stat().st_size).all()
            assert unpacked(_shard_index.packed(index), index.archive).keys == index.keys
    assert outcomes >= {"damaged", "read"}


# ---- there and back ----------------------------------------------------------------------------


def made(tmp_path: Path, target: str) -> dict[str, Split]:
    """Splits with all that samples of a kind can have."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(5):
        path = tmp_path / f"photo {i}.v2{'.png' if i % 2 else '.jpg'}"
        path.write_bytes(picture(40 * i, (12 + i, 10), "PNG" if i % 2 else "JPEG"))
        paths.append(path)
    runs = {"size": [10, 12], "counts": [3, 5, 112]}
    items = [
        Object((0.1, 1.25, 6.5, 7.0), 1, [[0.1, 1.25, 6.5, 1.25, 6.5, 7.1]], False, 12.5),
        Object((0.0, 3.0, 1.0, 8.0), 0, runs, True, None),
    ]
    if target == "boxes":
        items = [Object(item.box, item.label, None, item.crowd, item.area) for item in items]
    kinds: dict[str, list[Sample]] = {
        "label": [Sample(path, i % 2) for i, path in enumerate(paths)],
        "tags": [Sample(path, tags=((), (0,), (0, 1))[i % 3]) for i, path in enumerate(paths)],
        "boxes": [
            Sample(path, objects=(tuple(items), ())[i % 2], id=(7 * i, "x")[i % 2])
            for i, path in enumerate(paths)
        ],
        "semantic": [
            Sample(path, semantic=partial(np.full, (10, 12 + i), (0, 1, 255)[i % 3], np.uint8))
            for i, path in enumerate(paths)
        ],
    }
    kinds["masks"] = [
        Sample(paths[0], objects=tuple(items), id=1),
        *[Sample(path, objects=(), id=2 + i) for i, path in enumerate(paths[1:])],
    ]
    ids = [3, 90] if target in ("boxes", "masks") else None
    classes = ["Katze (ä), 1", "dog"]
    return {
        "train": Split(kinds[target], classes, ids=ids),
        "val": Split(kinds[target][:1], classes, ids=ids),
    }


@pytest.mark.parametrize("target", data.TARGETS)
def test_there_and_back_is_the_identity(tmp_path, target):
    splits = made(tmp_path / "from", target)
    shards.write(splits, tmp_path / "to", samples=2)
    assert [path.name for path in sorted((tmp_path / "to").iterdir())] == [
        "dataset.json",
        *[f"train-{i:06d}.tar" for i in range(3)],
        "val-000000.tar",
    ]
    for name, split in splits.items():
        back = data.load(str(tmp_path / "to"), name, target=target)
        assert back.skipped == []
        assert (back.classes, back.ids) == (split.classes, split.ids)
        for one, other in zip(split.samples, back.samples, strict=True):
            assert isinstance(one.image, Path)
            assert isinstance(other.image, Member)
            assert other.image.read() == one.image.read_bytes()
            said = ("label", "tags", "objects", "id")
            assert [getattr(one, n) for n in said] == [getattr(other, n) for n in said]
            assert (one.semantic is None) == (other.semantic is None)
            if one.semantic is not None and other.semantic is not None:
                assert np.array_equal(one.semantic(), other.semantic())


def test_what_is_written_is_the_same_each_time_and_of_its_own_again(tmp_path):
    splits = made(tmp_path / "from", "boxes")
    shards.write(splits, tmp_path / "a", samples=3)
    back = {name: data.load(str(tmp_path / "a"), name, target="boxes") for name in splits}
    shards.write(back, tmp_path / "b", samples=3)
    for path in (tmp_path / "a").iterdir():
        if path.suffix != SUFFIX:
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    with tarfile.open(tmp_path / "a/train-000000.tar") as file:
        first = file.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname) for m in first} == {(0, 0, 0, "")}
    assert [m.name for m in first][:2] == ["000000-photo_0_v2.jpg", "000000-photo_0_v2.json"]
    assert len({m.name for m in first}) == len(first)


def test_shards_have_a_size_and_samples_may_be_drawn(tmp_path):
    drawn = [Sample(partial(Image.new, "RGB", (40, 40), (i,) * 3), i % 2) for i in range(9)]
    shards.write({"all": Split(drawn, ["a", "b"])}, tmp_path / "x", size=5000)
    files = sorted(path.name for path in (tmp_path / "x").glob("*.tar"))
    assert files[0] == "shards-000000.tar"
    assert 3 <= len(files) <= 5
    back = data.load(str(tmp_path / "x"), "all")
    assert grays(back) == list(range(9))
    assert [sample.label for sample in back.samples] == [i % 2 for i in range(9)]
    held = [data.load(str(tmp_path / "x"), split) for split in ("train", "val")]
    assert sorted(grays(held[0]) + grays(held[1])) == list(range(9))
    (tmp_path / "x" / files[1]).unlink()
    assert "dataset.json says 9" in "".join(data.load(str(tmp_path / "x"), "all").skipped)


def test_shards_are_written_whole_or_not_at_all(tmp_path):
    splits = made(tmp_path / "from", "label")
    (tmp_path / "from/photo 3.v2.png").unlink()
    with pytest.raises(DataError, match=r"photo 3.v2.png': No such file"):
        shards.write(splits, tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from"]
    with pytest.raises(UsageError, match="is not empty"):
        shards.write(splits, tmp_path / "from")


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_from_shards_is_the_one_from_a_folder(photos, tmp_path, monkeypatch, workers):
    """Two epochs with augmentation: the same weights, to the bit, from files and from their shards."""
    offer_tiny(monkeypatch)
    config = TrainConfig(size=32, epochs=2, batch_size=8, workers=workers, seed=3)
    roots = {"folder": str(photos), "shards": str(tmp_path / "shards")}
    splits = {name: data.load(str(photos), name) for name in ("train", "val")}
    shards.write(splits, roots["shards"], samples=7)
    weights = []
    for name, root in roots.items():
        train, val = (data.load(root, split) for split in ("train", "val"))
        assert train.source is not None
        assert train.source.format == name
        result = fit(
            tiny("classification", len(train.classes)),
            train,
            val,
            config,
            tmp_path / name,
            report=False,
        )
        weights.append((result, Path(tmp_path / name / "last.safetensors")))
    states = [checkpoint.load(path).model.state_dict() for _, path in weights]
    assert states[0].keys() == states[1].keys()
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert len({float(value.sum()) for value in states[0].values()}) > 5
    lines = list(lines_of(data.load(roots["shards"], "train")))
    assert lines[0].startswith("train-000000.tar: 000000-")


def test_a_run_on_a_pattern_finds_its_shards_again(photos, tmp_path, monkeypatch, capsys):
    """From another folder, and after the run and they have moved."""
    splits = {name: data.load(str(photos), name) for name in ("train", "val")}
    shards.write(splits, tmp_path / "a/shards", samples=12)
    monkeypatch.chdir(tmp_path / "a")
    pattern = "shards/train-{000000..000001}.tar"
    settings = ["--size", "32", "--batch-size", "8", "--workers", "0", "--epochs", "1"]
    where = ["--data", pattern, "--run", "run"]
    assert main(["train", "--model", "fasternet_t0", *where, *settings]) == 0
    said = capsys.readouterr().err
    assert "val: 12 images, 3 classes, 0 skipped from shards/val-000000.tar" in said
    monkeypatch.chdir(tmp_path)
    assert _place(tmp_path / "a/run", pattern, False) == str(tmp_path / "a" / pattern)
    (tmp_path / "a").rename(tmp_path / "b")
    assert _place(tmp_path / "b/run", pattern, False) == str(tmp_path / "b" / pattern)
    assert not data.is_there("nowhere/x-{0..9}.tar")


def test_a_member_is_a_picture_for_a_predictor(tmp_path):
    tar(tmp_path / "train-0.tar", classified([0, 1]))
    images = [sample.image for sample in data.load(str(tmp_path), "all").samples]
    assert list(each(images)) == images
    assert [read_picture(image).width for image in images] == [12, 12]
