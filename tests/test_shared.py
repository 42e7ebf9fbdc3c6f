"""Pictures that train and val share are found: the same file, one saved anew, one made smaller; others are not."""

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from fleetnet.cli import main
from fleetnet.data import Sample, Split, load
from fleetnet.review.copies import shared_by


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of soft shapes that no other seed has."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def splits(root, train, val) -> tuple[Split, Split]:
    made = []
    for name, pictures in (("train", train), ("val", val)):
        paths = []
        for file, picture, settings in pictures:
            path = root / name / "thing" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, **settings)
            paths.append(path)
        made.append(Split([Sample(path, 0) for path in paths], ["thing"]))
    return made[0], made[1]


def test_copies_are_found_and_others_are_not(tmp_path):
    train, val = splits(
        tmp_path,
        [(f"{i}.jpg", scene(i), {"quality": 95}) for i in range(20)],
        [
            ("same.jpg", scene(3), {"quality": 95}),
            ("anew.jpg", scene(4), {"quality": 60}),
            ("small.png", scene(5).resize((80, 60)), {}),
            *((f"other{i}.jpg", scene(100 + i), {"quality": 95}) for i in range(20)),
        ],
    )
    shared = shared_by(train, val)
    assert [(one.name, other.name) for one, other in shared.same] == [("same.jpg", "3.jpg")]
    near = [(one.name, other.name) for one, other in shared.near]
    assert near == [("anew.jpg", "4.jpg"), ("small.png", "5.jpg")]


def test_plain_and_damaged_pictures_are_no_copies(tmp_path):
    plain = [Image.new("RGB", (40, 30), (level,) * 3) for level in (100, 101)]
    train, val = splits(tmp_path, [("a.png", plain[0], {})], [("b.png", plain[1], {})])
    (tmp_path / "val/thing/b.png").write_bytes(b"no image")
    assert shared_by(train, val) == ([], [])


def test_the_same_file_in_both(tmp_path):
    train, _ = splits(tmp_path, [("a.png", scene(1), {})], [("b.png", scene(2), {})])
    assert len(shared_by(train, train).same) == 1


def test_it_is_said_before_the_training(tmp_path, capsys):
    for name in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(3):
                seed = i + 10 * (label == "b") + 100 * (name == "val" and i > 0)
                scene(seed).save(tmp_path / name / label / f"{i}.png")
    words = ["train", "--model", "fasternet_t0", "--data", str(tmp_path), "--size", "32"]
    words += ["--epochs", "1", "--batch-size", "2", "--run", str(tmp_path / "run")]
    assert main(words) == 0
    text = "".join(capsys.readouterr())
    assert "2 validation pictures of 6 are the same as pictures of train" in text
    assert "nearly" not in text


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(("name", "target"), [("clothing10", "label"), ("bccd_voc/BCCD", "boxes")])
def test_real_data_share_nothing(name, target):
    train, val = (
        load(str(SHARED / name), split, "folder" if target == "label" else None, target)
        for split in ("train", "val")
    )
    shared = shared_by(train, val)
    assert shared.same == []
    assert len(shared.near) <= 0.02 * len(val.samples)
