"""Random numbers belong to a place in the run: which ones there are, and that nothing else moves."""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import benchmark
from torchvision.transforms import v2

from fleetnet.data import Split, load
from fleetnet.inputs import dataset
from fleetnet.inputs.augment import (
    DEFAULTS,
    AtTimes,
    Augmentation,
    Flip,
    InTurn,
    Recolored,
    as_input,
    augmentation,
    draws_from_torch,
)
from fleetnet.inputs.dataset import ImageDataset, Item
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.layouts import Mosaic, Zoom
from fleetnet.inputs.randomness import (
    Draw,
    choice,
    numbers,
    of_sample,
    seed_all,
    states_kept,
    uniform,
    whole,
)
from fleetnet.inputs.samplers import Balanced, Draws, OrderedBatches, Shuffled, share_of
from fleetnet.preprocess import Preprocess

GENERATOR = torch.default_generator


def drawn() -> tuple[float, float, float, float]:
    """A number of each global generator, and one of NumPy's that it draws in pairs."""
    return float(torch.rand(())), random.random(), np.random.random(), np.random.normal()


# The numbers


def test_each_place_has_numbers_of_its_own():
    places = [
        ("sample", seed, epoch, index)
        for seed in (0, 1)
        for epoch in range(30)
        for index in range(30)
    ]
    places += [
        ("order", 0, 0),
        ("batch", 0, 0, 0),
        ("sample", 0, 0, 0, 0),
        ("sample", 1, 10, 0),
        ("sample", 11, 0, 0),
    ]
    seeds = {numbers(str(what), *place) for what, *place in places}
    assert len(seeds) == len(set(places))
    assert len({one for three in seeds for one in three}) == 3 * len(seeds)


def test_the_numbers_are_those_of_the_digest():
    digest = hashlib.blake2b(b"sample 7 3 12 1", digest_size=20).digest()
    assert of_sample(7, Draw(3, 12, 1)) == (
        int.from_bytes(digest[:8], "little"),
        int.from_bytes(digest[8:16], "little"),
        int.from_bytes(digest[16:], "little"),
    )


def draw_and_fail() -> None:
    with states_kept():
        seed_all(numbers("sample", 2))
        drawn()
        raise ZeroDivisionError


def test_all_global_generators_are_seeded_and_put_back():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    np.random.normal()  # the second of a pair is kept for later
    with states_kept():
        before = drawn()
    with states_kept():
        seed_all(numbers("sample", 1))
        first = drawn()
        with pytest.raises(ZeroDivisionError):
            draw_and_fail()
        later = drawn()
        seed_all(numbers("sample", 1))
        assert (drawn(), drawn()) == (first, later)
    assert drawn() == before


def test_uniform_whole_and_choice():
    shares = [uniform(2, 4, GENERATOR) for _ in range(200)]
    assert 2 <= min(shares) < 2.1
    assert 3.9 < max(shares) <= 4
    assert {whole(-1, 2, GENERATOR) for _ in range(100)} == {-1, 0, 1, 2}
    assert {choice("abc", GENERATOR) for _ in range(100)} == set("abc")


# The order, and who gets what of it


def test_draws_count_how_often_a_sample_came_up():
    order = Balanced([0] * 6 + [1] * 2, 3)
    order.epoch = 4
    draws = list(Draws(order))
    assert [draw.sample for draw in draws] == list(order)
    assert {draw.epoch for draw in draws} == {4}
    assert len(set(draws)) == 8
    assert sorted(draw.turn for draw in draws if draw.sample >= 6) == [0, 0, 1, 1]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(("count", "size"), [(22, 8), (24, 8), (5, 8), (22, 1)])
def test_processes_share_each_batch(count: int, size: int, world: int):
    order = Shuffled(count, 5)
    whole_batches = list(OrderedBatches(order, size))
    assert len(whole_batches) == len(OrderedBatches(order, size)) == max(1, count // size)
    assert {len(batch) for batch in whole_batches} == {min(size, count)}
    parts = [list(OrderedBatches(order, size, rank, world)) for rank in range(world)]
    for batch, *shares in zip(whole_batches, *parts, strict=True):
        assert [draw for share in shares for draw in share] == batch
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    assert share_of("abcde", 1, 2) == "cde"


# Samples


class Foreign(Augmentation):
    """Draws from all global generators, as augmentations of users do, and from that of others."""

    pictures = 3

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        shown = pictures[int(np.random.randint(len(pictures)))].picture
        turned = v2.functional.rotate(shown, random.uniform(-30, 30))
        faded = (turned * float(torch.rand((), generator=generator))).byte()
        return AnnotatedPicture(faded, pictures[0].targets)


PREPROCESS = Preprocess((32, 32), mode="letterbox")
AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "classify": lambda: augmentation(
        "classify", Preprocess((32, 32)), auto_augment="randaugment", erasing=0.5
    ),
    "ssd": lambda: augmentation("ssd", PREPROCESS),
    "segment": lambda: augmentation("segment", PREPROCESS),
    "mosaic": lambda: augmentation("mosaic", PREPROCESS, mosaic=0.7),
    "of a user": Foreign,
}


def data_of(name: str, **settings: object) -> ImageDataset:
    augment = AUGMENTATIONS[name]()
    target = "label" if name in ("classify", "of a user") else "boxes"
    split = load("shapes:24", "train", target=target)
    return ImageDataset(split, PREPROCESS, augment, target=target, **settings)


def images_of(data: ImageDataset, draws: Sequence[Draw]) -> list[torch.Tensor]:
    items = [data[draw] for draw in draws]
    return [item.image for item in items if isinstance(item, Item)]


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_sample_depends_on_seed_epoch_index_and_turn_alone(name: str):
    """Neither on what was read before it, nor on the state of any generator."""
    draws = [Draw(epoch, index, turn) for epoch in (0, 5) for index in (2, 3) for turn in (0, 1)]
    data = data_of(name, seed=4)
    images = images_of(data, draws)
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)
    before = drawn()
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)
    assert same(images_of(data, draws[::-1])[::-1], images)
    assert drawn() == before
    of_each = torch.stack(images).flatten(1)
    assert len(of_each.unique(dim=0)) == len(draws)
    others = images_of(data_of(name, seed=5), draws)
    assert not any(map(torch.equal, images, others))
    assert torch.equal(data[2].image, data[Draw(0, 2, 0)].image)


class OwnFlip(Flip):
    """May draw from whatever it likes."""


def shade(picture: torch.Tensor) -> torch.Tensor:
    return (picture * random.random()).byte()


@pytest.mark.parametrize(
    "settings",
    [
        *[{"name": name} for name in DEFAULTS],
        {"name": "classify", "erasing": 1.0, "color_jitter": 0.4},
        {"name": "classify", "auto_augment": "trivial", "strength": 0.5},
        {"name": "mosaic", "mosaic": 0.5, "erasing": 0.5},
    ],
    ids=str,
)
def test_where_torch_alone_is_said_to_be_drawn_from_the_others_stay(settings: dict):
    """Else they would have to be seeded for each sample."""
    target = "label" if settings["name"] in ("classify", "none") else "boxes"
    split = load("shapes:8", "train", target=target)
    augment = augmentation(preprocess=PREPROCESS, **settings)
    data = ImageDataset(split, PREPROCESS, augment, target=target)
    assert draws_from_torch(augment) == ("auto_augment" not in settings)
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    with states_kept(only_torch=True):
        for sample in range(4):
            as_input(augment, PREPROCESS, [data.annotated(sample)] * augment.pictures, GENERATOR)
    after = random.getstate(), np.random.get_state()[1].tolist()
    assert not draws_from_torch(augment) or after == before


@pytest.mark.parametrize(
    "augment",
    [
        Foreign(),
        OwnFlip(0.5),
        InTurn(Flip(0.5), OwnFlip(0.5)),
        AtTimes(OwnFlip(0.5), 0.5),
        Recolored(shade),
        InTurn(Flip(0.5), Recolored(shade)),
    ],
)
def test_of_what_users_write_nothing_is_said_about_what_it_draws_from(augment: Augmentation):
    assert not draws_from_torch(augment)


@pytest.mark.parametrize("name", ["classify", "mosaic"])
def test_what_is_read_ahead_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Samples come in their order, with those that cannot be read, however many are read at once."""
    target = "label" if name == "classify" else "boxes"
    split = load("shapes:8", "train", target=target)
    lost = replace(split.samples[2], image=tmp_path / "lost.jpg")
    split = Split([*split.samples[:2], lost, *split.samples[3:]], split.classes)
    data = ImageDataset(split, PREPROCESS, AUGMENTATIONS[name](), target=target)
    draws = [Draw(1, sample) for sample in (4, 2, 0, 7, 5, 0)]
    held, results = [], []
    for ahead in (0, 2 * data.annotated(0).size, 1 << 30):
        monkeypatch.setattr(dataset, "AHEAD", ahead)
        held.append([len(some) for some in data._read_ahead(draws)])
        results.append(data.__getitems__(draws))
    assert held[0][0] == 1
    assert max(held[0]) == 2  # what cannot be read takes no room
    assert max(held[0]) <= max(held[1]) < len(draws)
    assert held[2] == [len(draws)]
    for items in results:
        assert [isinstance(item, str) for item in items] == [False, True, *[False] * 4]
        assert "lost.jpg" in items[1]
        assert [item.sample for item in items if isinstance(item, Item)] == [4, 0, 7, 5, 0]
        pictures = [item.image for item in items if isinstance(item, Item)]
        assert same(pictures, [item.image for item in results[0] if isinstance(item, Item)])


def test_a_sample_is_what_torchs_generator_gives_when_seeded_by_hand():
    data = data_of("classify", seed=4)
    digest = hashlib.blake2b(b"sample 4 6 2 1", digest_size=20).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    image, _ = as_input(data.augment, PREPROCESS, [data.annotated(2)])
    assert torch.equal(data[Draw(6, 2, 1)].image, image)


def test_the_last_epochs_are_plain_in_every_process():
    """By the epoch of the draw, which a process that began before them has too."""
    data = data_of("mosaic", plain_from=2)
    assert isinstance(data.augment.steps[0].layout, Mosaic)
    assert isinstance(data.augment.plain().steps[0].layout, Zoom)
    never = data_of("mosaic")
    never.augment = data.augment.plain()
    draws = [Draw(epoch, 1) for epoch in (2, 3)]
    assert same(images_of(data, draws), images_of(never, draws))
    draws = [Draw(1, index) for index in range(6)]
    assert not same(images_of(data, draws), images_of(never, draws))


# How samples are read


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starting 100 processes takes minutes")
def test_topologies_change_nothing(tmp_path: Path):
    """A sample of benchmarks/topologies.py, which reads 100,000."""
    said: list[str] = []
    result = benchmark("topologies").compare(2000, 1, tmp_path, said.append)
    assert (result["topologies"], result["samples"], result["differences"]) == (20, 2000, 0), said
    assert result["distinct"] == 100
