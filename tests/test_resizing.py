"""Pillow is the measure: the decoder gives its pixels, and resizing what it gives to one level."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.pillow import RESAMPLING, input_by_pillow

from fleetnet import images, jpeg
from fleetnet.deploy.predictor import read_picture
from fleetnet.errors import DataError
from fleetnet.images import Encoded
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.preprocess import MODES, Preprocess
from fleetnet.resizing import array_of, interpolated, tensor_of


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth, with edges and noise: rows (height, width, 3)."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), RESAMPLING["bicubic"]), int)
    noisy = smooth + generator.integers(-12, 13, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def jpeg_of(image: Image.Image, orientation: int = 1, **settings) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, "JPEG", exif=exif, **settings)
    return content.getvalue()


def by_pillow(content: bytes, by: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    if by > 1:
        image.draft(image.mode, (image.width // by, image.height // by))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    """Where simplejpeg is not installed, Pillow gives the same."""
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    return request.param


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("RGB", {}),
        ("RGB", {"quality": 95, "subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"progressive": True}),
        ("L", {}),
    ],
)
@pytest.mark.parametrize("size", [(48, 64), (61, 47), (9, 130), (1, 1)])
def test_the_decoder_gives_pillows_pixels(size, mode, settings, decoder):
    for orientation in (1, 2, 3, 4, 5, 6, 7, 8):
        content = jpeg_of(photo(*size).convert(mode), orientation, **settings)
        encoded = images.look(content)
        assert isinstance(encoded, Encoded)
        assert (encoded.height, encoded.width) == (size if orientation < 5 else size[::-1])
        for by in (1, *jpeg.REDUCTIONS) if min(size) > 8 else (1,):
            pixels = encoded.decoded(by).pixels
            assert np.array_equal(pixels, by_pillow(content, by)), (orientation, by)


def test_jpegs_of_other_kinds_are_left_to_pillow():
    content = io.BytesIO()
    photo(20, 30).convert("CMYK").save(content, "JPEG")
    assert np.array_equal(images.load(content.getvalue()).pixels, by_pillow(content.getvalue()))


@pytest.mark.parametrize("cut", [0.6, 0.99])
def test_a_truncated_jpeg_is_an_error(cut, decoder):
    content = jpeg_of(photo(60, 80))
    encoded = images.look(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"cannot read image of .*truncated"):
        encoded.decoded()


def test_what_follows_a_jpeg_is_passed_over(decoder):
    content = jpeg_of(photo(60, 80))
    expected = images.load(content).pixels
    assert np.array_equal(images.load(content + b"\0" * 100).pixels, expected)


def test_a_large_jpeg_is_reduced(monkeypatch, decoder):
    monkeypatch.setattr(images, "LARGE", 1000)
    picture = images.load(jpeg_of(photo(60, 81), 6))
    assert (picture.height, picture.width) == (81, 60)
    assert picture.pixels.shape == (21, 15, 3)  # by four


@pytest.mark.parametrize(
    ("source", "target", "by"),
    [((448, 448), (224, 224), 2), ((447, 900), (224, 224), 1), ((9000, 900), (112, 112), 8)],
)
def test_a_reduction_leaves_as_many_pixels_as_are_needed(source, target, by):
    assert jpeg.reduction(source, target) == by


# --- resizing


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_an_input_is_pillows_to_one_level(crop, mode, interpolation):
    """Where its sum is a half, now and then one of 100,000 values is two levels off."""
    sizes = [(75, 100), (333, 250), (20, 31), (64, 64), (5, 300), (700, 9), (1, 1)]
    for number, size in enumerate(sizes):
        image = photo(*size, seed=number)
        for target in ((64, 64), (48, 80), (97, 33)):
            preprocess = Preprocess(target, crop, interpolation, mode=mode)
            ours = array_of(preprocess.pixels(image)).astype(int)
            differences = np.abs(ours - input_by_pillow(image, preprocess))
            assert differences.max() <= 2, (size, target)
            assert (differences > 1).sum() <= 1, (size, target)


def test_the_edge_of_a_picture_that_was_shrunk_while_decoding():
    """Its last pixel reaches beyond the picture's end, where the result ends before."""
    whole = np.zeros((16, 1 + 16 * 8, 3), np.uint8)
    whole[:, 64:] = 255
    shrunk = np.asarray(Image.fromarray(np.pad(whole, ((0, 0), (0, 7), (0, 0)), "edge")).reduce(8))
    assert shrunk.shape == (2, 17, 3)
    scale = 8 * 4 / 16, 8 * 258 / 129  # pixels of the result for one of what was shrunk
    result = interpolated(tensor_of(shrunk.copy()), (4, 258), "bilinear", scale)
    assert result.shape == (3, 4, 258)
    row = result[0, 0].int()
    assert row[126:130].float().mean() == pytest.approx(127.5, abs=1)  # the edge is at 128
    assert row[-1] == 255


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_values_are_scaled_alike_in_both_orders_of_memory(order):
    pixels = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    preprocess = Preprocess((9, 7), channel_order=order)
    last, first = preprocess.normalize(pixels), preprocess.normalize(pixels.contiguous())
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(last, first)
    turned = pixels.flip(1) if order == "BGR" else pixels
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    assert torch.equal(first, (turned.float() / 255 - mean) / std)


def saved(image: Image.Image, **settings: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", **settings)
    return content.getvalue()


@pytest.mark.parametrize(
    ("side", "orientation", "by"), [(129, 1, 8), (129, 3, 1), (132, 6, 4), (128, 8, 8), (129, 5, 8)]
)
def test_turned_jpegs_are_shrunk_by_what_divides_them(side: int, orientation: int, by: int):
    """Else the narrower pixel at the end comes first, and boxes lie beside what they are of."""
    exif = Image.Exif()
    exif[274] = orientation
    looked = images.look(saved(Image.new("RGB", (side, side)), exif=exif))
    assert isinstance(looked, Encoded)
    assert AnnotatedPicture(looked, {}).reduction((side, side), (16, 16)) == by


def test_pictures_of_other_channels_are_brought_to_those_of_the_network():
    color = images.load(saved(Image.new("RGB", (4, 4), (9, 9, 9))))
    assert read_picture(color, count=1).pixels.shape == (4, 4, 1)
    with pytest.raises(DataError, match="--channels 3"):
        read_picture(color, count=5)
    with pytest.raises(DataError, match="--channels 5"):
        images.load(np.zeros((4, 4, 5), np.uint8))
    stack = io.BytesIO()
    np.save(stack, np.zeros((6, 4, 5), np.uint8))
    assert images.measure(stack.getvalue()) == (4, 6)


def test_heads_of_plain_jpegs_are_as_pillow_reads_them():
    color = Image.effect_noise((37, 21), 50).convert("RGB")
    exif = Image.Exif()
    exif[274] = 6
    plain = [
        saved(color, quality=30),
        saved(color, subsampling=0, comment="a comment"),
        saved(color.convert("L")),
        saved(color, icc_profile=b"profile" * 9000),  # of several segments
    ]
    for content in plain:
        image = Image.open(io.BytesIO(content))
        assert jpeg.head(content) == (image.height, image.width, image.mode == "L")
    others = [
        saved(color, exif=exif),
        saved(color, progressive=True),
        saved(color.convert("CMYK")),
        plain[0][:100],
        b"",
        b"\xff\xd8\xff",
    ]
    assert [jpeg.head(content) for content in others] == [None] * 6


def test_a_damaged_head_is_none_or_of_a_picture():
    content = saved(Image.new("RGB", (8, 8)))
    generator = random.Random(0)
    for _ in range(3000):
        changed = bytearray(content[: generator.randrange(len(content))])
        for _ in range(generator.randrange(4)):
            if changed:
                changed[generator.randrange(len(changed))] = generator.randrange(256)
        head = jpeg.head(bytes(changed))
        assert head is None or head.height * head.width > 0
