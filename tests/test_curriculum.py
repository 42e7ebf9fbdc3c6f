"""Sizes that change in a training: by the epoch, and from step to step, as the papers have them."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

import fleetnet
from fleetnet import data
from fleetnet.errors import UsageError
from fleetnet.inputs import augment
from fleetnet.inputs.curriculum import Sizes, parse_curriculum, parse_sizes
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.samplers import OrderedBatches, Repeated, Shuffled, SizedBatches
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import build
from fleetnet.training.config import TrainConfig

PARC = parse_sizes("160,192,256,288,320")


def test_mobileone_grows_from_160_to_224_pixels():
    curriculum = parse_curriculum("0:160:0.3, 39:192:0.6, 114:224:1.0")
    seen = {epoch: curriculum.at(epoch) for epoch in (0, 38, 39, 113, 114, 299)}
    assert {epoch: (stage.size[0], stage.strength) for epoch, stage in seen.items()} == {
        0: (160, 0.3),
        38: (160, 0.3),
        39: (192, 0.6),
        113: (192, 0.6),
        114: (224, 1.0),
        299: (224, 1.0),
    }


def test_fasternet_switches_at_epoch_280():
    curriculum = parse_curriculum("0:192,280:224x256")
    assert curriculum.at(279).size == (192, 192)
    assert curriculum.at(280).size == (224, 256)
    assert curriculum.at(280).strength == 1.0
    assert parse_curriculum("") is None


@pytest.mark.parametrize(
    "text", ["1:160", "0:160,0:192", "0:160,9:192,5:224", "0", "0:160:2", "0:x", "a:160", "0:1:1:1"]
)
def test_no_curriculum(text: str):
    with pytest.raises(UsageError, match=r"curriculum is|allowed: one number"):
        parse_curriculum(text)


@pytest.mark.parametrize(
    ("world", "images"), [(8, [328, 224, 128, 128, 128]), (1, [327, 227, 128, 128, 128])]
)
def test_parc_net_has_as_many_images_as_the_pixels_allow(world: int, images: list[int]):
    sizes = Sizes(PARC, (256, 256), 128, seed=0, world=world)
    assert [sizes.images(size) for size in PARC] == images


def test_all_processes_have_the_same_sizes_and_share_the_batch():
    sizes = Sizes(parse_sizes("32,64"), (64, 64), 4, seed=3, world=2)
    alone = Sizes(parse_sizes("32,64"), (64, 64), 8, seed=3, world=1)
    order = Shuffled(200, seed=3)
    order.epoch = 5
    whole = list(SizedBatches(order, alone))
    parts = [list(SizedBatches(order, sizes, rank)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    used = Counter(draw.size for batch in whole for draw in batch[:1])
    assert set(used) == {(32, 32), (64, 64)}
    assert all(len({draw.size for draw in batch}) == 1 for batch in whole)
    assert len(whole) == len(SizedBatches(order, alone)) == 10  # of 32 and of 8 images
    draws = [(draw.sample, draw.turn) for batch in whole for draw in batch]
    assert len(set(draws)) == len(draws)  # none comes up twice with the same random numbers


def test_repeated_samples_stand_beside_each_other():
    order = Repeated(10, seed=1, times=3)
    indices = list(order)
    assert len(indices) == len(order) == 10
    assert indices[0] == indices[1] == indices[2] != indices[3]
    assert len(set(indices)) == 4
    [batch] = islice(OrderedBatches(order, 6), 1)
    assert [draw.turn for draw in batch] == [0, 1, 2, 0, 1, 2]
    order.epoch = 1
    assert list(order) != indices


def test_inputs_have_the_sizes_of_their_steps(photos: Path, tmp_path: Path):
    """A training by a curriculum, and one with a size a step: what the network sees."""
    train, val = (data.load(str(photos), split) for split in ("train", "val"))
    usual = {"size": 64, "batch_size": 2, "epochs": 2, "ema": None, "device": "cpu"}

    def seen(name: str, **settings: object) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        torch.manual_seed(0)
        fleetnet.fit(
            build("fasternet_t0", 3),
            train,
            val,
            TrainConfig(**usual, **settings),
            tmp_path / name,
            report=False,
            on_batch=lambda images, *_: shapes.append(tuple(images.shape)),
        )
        return shapes

    grown = seen("grown", curriculum="0:32:0.5,1:64", auto_augment="randaugment")
    half = len(grown) // 2
    assert grown == [(2, 3, 32, 32)] * half + [(2, 3, 64, 64)] * half
    changing = seen("changing", sizes="32,64x96")
    assert set(changing) == {(8, 3, 32, 32), (2, 3, 64, 96)}
    repeated = seen("repeated", repeats=2, flip=0.5)
    assert set(repeated) == {(2, 3, 64, 64)}


def test_policies_of_timm_are_scaled_by_the_strength(monkeypatch: pytest.MonkeyPatch):
    auto_augment = pytest.importorskip("timm.data.auto_augment")
    asked = []
    monkeypatch.setattr(
        auto_augment, "rand_augment_transform", lambda policy, _: asked.append(policy)
    )
    augment.timm_policy("rand-m9-mstd0.5-inc1", Preprocess((64, 64)), 0.5)
    assert asked == ["rand-m4.5-mstd0.5-inc1"]


def test_policies_that_there_are_not():
    with pytest.raises(UsageError, match="did you mean 'randaugment'"):
        augment.check_policy("randaugmint")
    with pytest.raises(UsageError, match="which timm does not read"):
        augment.check_policy("rand-x9")
    picture = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    policy = augment.augmentation(
        "classify", Preprocess((32, 32)), auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0
    )
    made, _ = augment.as_input(policy, Preprocess((32, 32)), [AnnotatedPicture(picture, {})])
    assert made.shape == (3, 32, 32)
    assert made.dtype == torch.uint8


def test_sizes_are_said_once():
    with pytest.raises(UsageError, match="both say the size of a step"):
        TrainConfig(sizes="32,64", curriculum="0:32")
    with pytest.raises(UsageError, match="both say the order of the samples"):
        TrainConfig(balance=True, repeats=3)
