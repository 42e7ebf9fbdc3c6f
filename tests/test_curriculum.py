"""Sizes that change in a training: by the epoch, and from step to step, as the papers have them."""

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

import fleetnet
from fleetnet import data
from fleetnet.errors import UsageError
from fleetnet.inputs import augment
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.randomness import Draw
from fleetnet.inputs.samplers import OrderedBatches, Repeated, Shuffled, SizedBatches, Sizes
from fleetnet.preprocess import Preprocess
from fleetnet.sizes import parse_curriculum, parse_sizes
from fleetnet.tasks import build
from fleetnet.tasks import find as find_task
from fleetnet.training.checks import check_batch
from fleetnet.training.config import TrainConfig
from fleetnet.training.setup import AtOtherSizes, augmentation_of

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
    ("batch", "images"),
    [(1024, [8 * 328, 8 * 224, 1024, 1024, 1024]), (128, [328, 224, 128, 128, 128])],
)
def test_parc_net_has_as_many_images_as_the_pixels_allow(batch: int, images: list[int]):
    """1024 are 128 of CVNets in each of 8 processes, with 328 and 224 at smaller sizes."""
    sizes = Sizes(PARC, (256, 256), batch, seed=0)
    assert [sizes.images(size) for size in PARC] == images


def test_all_processes_have_the_same_sizes_and_share_the_batch():
    sizes = Sizes(parse_sizes("32,64"), (64, 64), 8, seed=3)
    order = Shuffled(200, seed=3)
    order.epoch = 5
    whole = list(SizedBatches(order, sizes))
    parts = [list(SizedBatches(order, sizes, rank, world=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    used = Counter(draw.size for batch in whole for draw in batch[:1])
    assert set(used) == {(32, 32), (64, 64)}
    assert all(len({draw.size for draw in batch}) == 1 for batch in whole)
    assert len(whole) == len(SizedBatches(order, sizes)) == 10  # of 32 and of 8 images
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


def test_policies_of_timm_are_scaled_by_the_strength():
    """Also where the name has no magnitude; and posterize never asks Pillow for no bits."""
    auto_augment = pytest.importorskip("timm.data.auto_augment")
    for name in ("rand-m9-mstd0.5-inc1", "rand-n2-mstd0.5"):
        whole, weak = (
            augment.timm_policy(name, Preprocess((64, 64)), strength) for strength in (1.0, 0.3)
        )
        for one, other in zip(whole.ops, weak.ops, strict=True):
            assert other.magnitude == pytest.approx(0.3 * one.magnitude)
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    posterized = augment._posterized(auto_augment.posterize, picture, 0)
    assert posterized.getpixel((0, 0)) == (128, 0, 0)


def test_a_data_set_with_sizes_goes_to_worker_processes():
    """Where these are not forked, it is pickled."""
    task, preprocess = find_task("classification"), Preprocess((64, 64))
    config = TrainConfig(size=64, auto_augment="randaugment")
    train = data.load("shapes:8", "train")
    made = ImageDataset(
        train,
        preprocess,
        augmentation_of(task, preprocess, config),
        at=AtOtherSizes("classification", preprocess, config),
        curriculum=parse_curriculum("0:32:0.5"),
    )
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again[Draw(0, 1)].image, made[Draw(0, 1)].image)
    assert made[Draw(0, 1)].image.shape == (3, 32, 32)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": "abc"}, "sizes is 'abc'"),
        ({"sizes": "0"}, "sizes is '0'"),
        ({"curriculum": "0:160:2"}, "curriculum is"),
        ({"curriculum": "-0:160"}, "is no stage"),
        ({"curriculum": "0:160:0.5"}, "strengths of auto_augment, which is none"),
    ],
)
def test_sizes_are_checked_at_once(settings: dict[str, str], message: str):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**settings)


def test_every_size_is_tried_before_the_first_step():
    model = build("fasternet_t0", 3)
    config = TrainConfig(size=64, batch_size=1, curriculum="0:64,9:32")
    with pytest.raises(UsageError, match="batches of one image at 32x32"):
        check_batch(model, config, images=9)


def test_sizes_are_said_once():
    with pytest.raises(UsageError, match="both say the size of a step"):
        TrainConfig(sizes="32,64", curriculum="0:32")
    with pytest.raises(UsageError, match="both say the order of the samples"):
        TrainConfig(balance=True, repeats=3)
