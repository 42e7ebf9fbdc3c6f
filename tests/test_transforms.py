"""Preprocessing against torchvision and OpenCV's rule, random crops, mixing, and reading in batches."""

import json
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fleetnet.data import Object, Sample, Split, shapes
from fleetnet.errors import ModelError, UsageError
from fleetnet.images import Encoded, Picture
from fleetnet.inputs.augment import (
    AUTO_AUGMENT,
    Augmentation,
    as_input,
    augmentation,
    random_part,
)
from fleetnet.inputs.cache import Decoded
from fleetnet.inputs.dataset import Batch, ImageDataset, Item, collate
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.mixing import mix
from fleetnet.inputs.randomness import Draw
from fleetnet.preprocess import Preprocess
from fleetnet.resizing import array_of, tensor_of


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX, reducing_gap=None)


def trained_on(image: Image.Image, preprocess: Preprocess, **settings) -> torch.Tensor:
    """What a classifier sees of a picture in training."""
    augment = augmentation("classify", preprocess, **settings)
    picture = tensor_of(np.array(image))
    made, _ = as_input(augment, preprocess, [AnnotatedPicture(picture, {})])
    return preprocess.normalize(made)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [1.0, 0.9, 0.875])
@pytest.mark.parametrize(("width", "height"), [(200, 300), (301, 200), (64, 64), (97, 41)])
def test_eval_is_torchvisions(width, height, crop, interpolation):
    image, size = noise(width, height), 96
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = v2.Compose(
        [
            v2.Resize(int(size / crop), v2.InterpolationMode(interpolation)),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )(image)
    ours = Preprocess((size, size), crop, interpolation, mean, std)(image)
    assert ours.shape == (3, size, size)
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 2.01 / 255 / min(std)  # Pillow rounds twice to 8 bits
    assert (ours - theirs).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("size", "image"), [((64, 128), (200, 200)), ((128, 64), (300, 100)), ((60, 90), (90, 60))]
)
def test_eval_of_other_shapes_covers_and_crops_the_center(size, image):
    width, height = image
    y, x = np.mgrid[0:height, 0:width]
    gradient = np.stack([x * 255 / width, y * 255 / height, 0 * x], -1).astype(np.uint8)
    result = Preprocess(size, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(gradient))
    assert result.shape == (3, *size)
    scale = max(size[0] / height, size[1] / width)
    # share of the picture's width and height
    shown = size[1] / scale / width, size[0] / scale / height
    for channel, share, ends in (
        (0, shown[0], result[0, :, [0, -1]]),
        (1, shown[1], result[1, [0, -1]].T),
    ):
        expected = torch.tensor([0.5 - share / 2, 0.5 + share / 2])
        assert (ends.mean(0) - expected).abs().max() < 0.03, channel


def test_plain_resize_is_opencvs_rule():
    image = noise(40, 24)
    pixels = np.asarray(image, float)
    # to half: centers fall between pixels, each result is the mean of a 2x2 square
    half = array_of(Preprocess((12, 20), antialias=False).pixels(image)).astype(float)
    assert np.abs(half - pixels.reshape(12, 2, 20, 2, 3).mean((1, 3))).max() <= 0.5
    # to a third: centers fall on pixels, the rest is not looked at
    part = image.crop((0, 0, 39, 24))
    third = array_of(Preprocess((8, 13), antialias=False).pixels(part)).astype(float)
    assert np.abs(third - pixels[1::3, 1:39:3]).max() <= 0.5
    smooth = array_of(Preprocess((8, 13)).pixels(part)).astype(float)
    assert smooth.std() < 0.7 * third.std()


def test_values_and_channel_order():
    image = Image.new("RGB", (5, 5), (255, 51, 0))
    rgb = Preprocess((2, 3), mean=(0.5, 0, 0), std=(0.5, 1, 2))(image)
    bgr = Preprocess((2, 3), mean=(0.5, 0, 0), std=(0.5, 1, 2), channel_order="BGR")(image)
    assert rgb[:, 0, 0].tolist() == pytest.approx([1, 0.2, 0])
    assert bgr[:, 0, 0].tolist() == pytest.approx([-1, 0.2, 0.5])
    assert rgb.is_contiguous()
    assert bgr.is_contiguous()


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1), (2, 3)])
@pytest.mark.parametrize("antialias", [True, False])
def test_odd_pictures(size, antialias):
    image, preprocess = (
        Image.new("RGB", size, "white"),
        Preprocess((32, 48), 0.875, antialias=antialias),
    )
    for result in (preprocess(image), trained_on(image, preprocess, color_jitter=0.0)):
        assert result.shape == (3, 32, 48)
        assert result.std((1, 2)).max() < 1e-5  # white stays white


def test_preprocess_survives_json():
    preprocess = Preprocess((96, 64), 0.9, "bicubic", (0, 0, 0), (1, 1, 1), "BGR", False)
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert Preprocess.from_dict(values) == preprocess
    with pytest.raises(ModelError, match="unknown key 'sizes': did you mean 'size'"):
        Preprocess.from_dict({**values, "sizes": 3})
    with pytest.raises(ModelError, match="no crop"):
        Preprocess.from_dict({key: value for key, value in values.items() if key != "crop"})
    for key, value in (("size", [96]), ("size", 96), ("crop", "x"), ("std", [1, 0, 1])):
        with pytest.raises(ModelError):
            Preprocess.from_dict({**values, key: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 9)},
        {"crop": 0},
        {"crop": 1.5},
        {"interpolation": "nearest"},
        {"channel_order": "GBR"},
    ],
)
def test_preprocess_is_checked(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"{name} is .* allowed"):
        Preprocess(**{"size": (9, 9), **wrong})


# --- training


@pytest.mark.parametrize("auto_augment", [None, *AUTO_AUGMENT])
def test_random_crops(auto_augment):
    preprocess = Preprocess((48, 64))
    augment = augmentation("classify", preprocess, auto_augment=auto_augment, erasing=0.5)
    picture = tensor_of(np.array(shapes.draw(3)))
    pictures = [AnnotatedPicture(picture, {"label": torch.tensor(2)})]
    torch.manual_seed(0)
    (first, targets), (second, _) = (as_input(augment, preprocess, pictures) for _ in range(2))
    assert targets == {"label": torch.tensor(2)}
    assert first.shape == (3, 48, 64)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    # In worker processes, and in repeated runs.
    again = as_input(pickle.loads(pickle.dumps(augment)), preprocess, pictures)
    assert torch.equal(again[0], first)


@pytest.mark.parametrize("auto_augment", AUTO_AUGMENT)
def test_random_crops_are_torchvisions(auto_augment):
    """The same numbers are drawn in the same order as by its transforms in turn."""
    preprocess, image = Preprocess((48, 64)), shapes.draw(3)
    std = torch.tensor(preprocess.std).view(3, 1, 1)
    policy = AUTO_AUGMENT[auto_augment]
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(preprocess.size, (0.4, 1.0)),
            v2.RandomHorizontalFlip(0.4),
            *([] if policy is None else [policy()]),
            v2.ColorJitter(0.3, 0.3, 0.3),
            lambda image: preprocess.normalize(tensor_of(np.array(image))),
            v2.RandomErasing(0.5),
        ]
    )
    settings = {"scale": 0.4, "flip": 0.4, "color_jitter": 0.3, "erasing": 0.5}
    for seed in range(8):
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(seed)
        made = trained_on(image, preprocess, auto_augment=auto_augment, **settings)
        # levels: the policies multiply by numbers from 0.1 to 2, jitter by 0.7 to 1.3
        levels = (made - expected).abs() * 255 * std
        assert levels.mean() < 2
        assert levels.quantile(0.99) < 16


def test_random_crops_without_chance_is_a_resize():
    image, preprocess = noise(96, 96), Preprocess((48, 48))
    still = {"scale": 1.0, "color_jitter": 0.0}
    assert trained_on(image, preprocess, flip=0.0, **still).shape == preprocess(image).shape
    top = Image.new("RGB", (48, 48))
    top.paste("white", (0, 0, 24, 48))
    flipped = trained_on(top, preprocess, flip=1.0, **still)
    assert flipped[0, 0, -1] > flipped[0, 0, 0]


def test_unknown_auto_augment():
    with pytest.raises(UsageError, match="did you mean 'randaugment'"):
        augmentation("classify", Preprocess((8, 8)), auto_augment="randaug")


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mix(mixup, cutmix):
    torch.manual_seed(1)
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    mixed, targets = mix(images, {"label": labels}, 3, mixup, cutmix)
    if not mixup and not cutmix:
        assert mixed is images
        assert targets["label"] is labels
        return
    assert mixed.shape == images.shape
    assert not torch.equal(mixed, images)
    assert targets["label"].shape == (6, 3)
    assert torch.allclose(targets["label"].sum(1), torch.ones(6))
    assert 0 < targets["label"].max() < 1 or cutmix


# --- reading


def write(root, count=5, broken=()):
    for i in range(count):
        path = root / f"{i}.png"
        path.write_bytes(b"broken") if i in broken else noise(60, 40, i).save(path)
    return Split([Sample(root / f"{i}.png", i % 2) for i in range(count)], ["a", "b"])


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_cannot_be_read_are_named(tmp_path, workers):
    data = ImageDataset(write(tmp_path, 5, broken=(1, 2, 3)), Preprocess((8, 8)))
    batches = list(DataLoader(data, 2, num_workers=workers, collate_fn=collate))
    assert [len(batch.images) for batch in batches] == [1, 0, 1]
    assert [batch.targets["label"].tolist() for batch in batches if len(batch.images)] == [[0], [0]]
    assert [len(batch.skipped) for batch in batches] == [1, 2, 0]
    assert "1.png" in batches[0].skipped[0]
    assert "not an image" in batches[0].skipped[0]


def test_collate():
    items = [
        Item(torch.zeros(3, 2, 2, dtype=torch.uint8), {"label": torch.tensor(i)}, i, None)
        for i in range(3)
    ]
    batch = collate(items)
    assert isinstance(batch, Batch)
    assert batch.images.shape == (3, 3, 2, 2)
    assert batch.targets["label"].tolist() == [0, 1, 2]
    assert batch.skipped == []


def test_the_other_pictures_of_a_mosaic_are_any_of_the_samples():
    """Each as often as another; the first is the sample itself."""

    class Labels(Augmentation):
        pictures = 4

        def __call__(self, pictures, generator):
            labels = torch.stack([targets["label"] for _, targets in pictures])
            return AnnotatedPicture(pictures[0].picture, {"label": labels})

    samples = [Sample(partial(Image.new, "RGB", (8, 8)), label) for label in range(8)]
    data = ImageDataset(Split(samples, list("abcdefgh")), Preprocess((8, 8)), Labels())
    draws = [Draw(epoch, index) for epoch in range(20) for index in range(8)]
    drawn = torch.stack([data[draw].targets["label"] for draw in draws])  # (160, 4)
    assert drawn[:, 0].tolist() == [*range(8)] * 20
    for place in (1, 2, 3):
        counts = drawn[:, place].bincount(minlength=8)
        assert counts.min() >= 8, counts  # of 20 expected
        assert counts.max() <= 36, counts


def test_cache(tmp_path):
    """The same pixels as of the files, which are not needed any more."""
    split, preprocess = write(tmp_path, 4, broken=(2,)), Preprocess((10, 10))
    augment = augmentation("classify", preprocess)
    plain, kept = (ImageDataset(split, preprocess, augment, cache=cache) for cache in (False, True))
    draws = [Draw(epoch, sample) for epoch in range(2) for sample in (0, 1, 3)]
    expected = [plain[draw].image for draw in draws]
    for path in tmp_path.iterdir():
        path.unlink()
    assert all(
        torch.equal(kept[draw].image, image) for draw, image in zip(draws, expected, strict=True)
    )
    assert "2.png" in kept[2]


def make_flat(folder) -> None:
    """Pictures of one color in place of the others: files of fewer bytes than pixels."""
    for index, path in enumerate(sorted(folder.iterdir())):
        Image.new("RGB", (60, 40), (index, 0, 200)).save(path)


@pytest.mark.parametrize("pictures", [0, 2, 4])
def test_cache_is_bounded(tmp_path, pictures):
    """First the files are kept, then as many decoded ones as fit; all give the same pixels."""
    split, preprocess = write(tmp_path, 4), Preprocess((10, 10))
    make_flat(tmp_path)
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    decoded = 3 * 60 * 40  # bytes
    limit = sum(sizes[pictures:]) + pictures * decoded
    data = ImageDataset(split, preprocess, cache=True, limit=limit)
    assert [type(one) for one in data.kept] == [Picture] * pictures + [bytes] * (4 - pictures)
    plain = ImageDataset(split, preprocess)
    assert all(torch.equal(data[i].image, plain[i].image) for i in range(4))
    less = ImageDataset(split, preprocess, cache=True, limit=limit - 1)
    assert list(map(type, less.kept)) != list(map(type, data.kept))
    assert all(torch.equal(less[i].image, plain[i].image) for i in range(4))


def test_cache_of_jpeg_files(tmp_path):
    """Also pixels at smaller scales, to which large pictures are decoded as the crop allows."""
    for index, side in enumerate((30, 90, 200)):
        noise(side, side, index).save(tmp_path / f"{index}.jpg")
    split = Split([Sample(tmp_path / f"{i}.jpg", 0) for i in range(3)], ["a"])
    preprocess = Preprocess((24, 24))
    augment = augmentation("classify", preprocess, scale=0.1)
    plain, kept = (ImageDataset(split, preprocess, augment, cache=cache) for cache in (False, True))
    assert [type(one) for one in kept.kept] == [Decoded, Encoded, Encoded]
    assert kept.kept[0].size == 30 * 30 * 3 + len((tmp_path / "0.jpg").read_bytes())
    for draw in [Draw(epoch, sample) for epoch in range(20) for sample in range(3)]:
        assert torch.equal(kept[draw].image, plain[draw].image)
    whole = pickle.loads(pickle.dumps(kept)).kept[0]  # for a worker process that is no fork
    assert np.array_equal(whole.decoded().pixels, kept.kept[0].decoded().pixels)
    assert whole.decoded(2).pixels.shape == (15, 15, 3)


def test_another_picture_of_a_mosaic_that_is_damaged_harms_no_sample(tmp_path):
    """Behind the head of a JPEG that is seen as late as it is drawn."""
    samples = []
    for index in range(4):
        path = tmp_path / f"{index}.jpg"
        noise(80, 60, index).save(path)
        samples.append(Sample(path, objects=(Object((5.0, 5.0, 60.0, 50.0), 0),)))
    path.write_bytes(path.read_bytes()[:2000])
    preprocess = Preprocess((32, 32), mode="letterbox")
    augment = augmentation("mosaic", preprocess)
    data = ImageDataset(Split(samples, ["a"]), preprocess, augment, target="boxes")
    for epoch in range(6):
        items = [data[Draw(epoch, sample)] for sample in range(4)]
        assert [isinstance(item, Item) for item in items] == [True, True, True, False]
        assert "3.jpg" in items[3]


def test_a_cached_file_that_is_damaged_is_named(tmp_path):
    """Also where it is not decoded at once, since there is no room for that."""
    split = write(tmp_path, 3)
    make_flat(tmp_path)
    (tmp_path / "2.png").write_bytes(b"broken")
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    data = ImageDataset(split, Preprocess((10, 10)), cache=True, limit=sum(sizes))
    assert data.kept[2] == b"broken"
    assert "2.png" in data[2]


def test_pictures_that_are_made_are_kept_too():
    made = []
    sample = Sample(lambda: made.append(1) or Image.new("RGB", (8, 8)), 0)
    data = ImageDataset(Split([sample], ["a"]), Preprocess((8, 8)), cache=True)
    assert all(torch.equal(data[0].image, data[0].image) for _ in range(3))
    assert made == [1]


@pytest.mark.parametrize("size", [(375, 500), (40, 400), (400, 30), (1, 1), (3, 2)])
def test_random_parts_are_torchvisions(size: tuple[int, int]):
    """From the same numbers, on ordinary pictures and where no part of a usual shape fits."""
    for seed in range(200):
        torch.manual_seed(seed)
        theirs = v2.RandomResizedCrop((8, 8), (0.08, 1.0)).make_params([torch.empty(3, *size)])
        torch.manual_seed(seed)
        x0, y0, x1, y1 = random_part(*size, 0.08, torch.default_generator)
        drawn = theirs["left"], theirs["top"], theirs["width"], theirs["height"]
        apart = [abs(a - b) for a, b in zip(drawn, (x0, y0, x1 - x0, y1 - y0), strict=True)]
        assert max(apart) <= 1, (seed, drawn)  # it takes the exponential in single precision
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]
