"""Sizes that change in a training: by the epoch, and from step to step, as the papers have them."""

from collections import Counter
from itertools import islice

import pytest

from fleetnet.errors import UsageError
from fleetnet.inputs.curriculum import Sizes, parse_curriculum, parse_sizes
from fleetnet.inputs.samplers import OrderedBatches, Repeated, Shuffled, SizedBatches

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
