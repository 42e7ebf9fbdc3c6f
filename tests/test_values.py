"""Pictures of more than 8 bits: which of their values are black and white, and what a fourth band means."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet import data, images
from fleetnet.cli import main
from fleetnet.deploy.predictor import load, read_picture
from fleetnet.errors import UsageError
from fleetnet.inputs.augment import InTurn
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.int8._prepared import calibration
from fleetnet.preprocess import Preprocess
from fleetnet.training.config import TrainConfig, read_recipe
from fleetnet.training.setup import value_range

RAMP = np.linspace(0, 1, 24 * 20).reshape(20, 24)  # (height, width), 0 to 1
EIGHT = (RAMP * 255 + 0.5).astype(np.uint8)


def deep(largest: int) -> np.ndarray:
    return (RAMP * largest + 0.5).astype(np.uint16)


def write_png16(path: Path, pixels: np.ndarray) -> None:
    """(height, width, 3) uint16 as a PNG of 16 bits a color, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_tiff(path: Path, pixels: np.ndarray, deflate: bool = False, order: str = "<") -> None:
    """(height, width, bands) of 8 or 16 bits as a TIFF, which Pillow cannot write of all of these."""
    height, width, bands = pixels.shape
    stored = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(stored) if deflate else stored
    bits = struct.pack(f"{order}{bands}H", *[pixels.itemsize * 8] * bands)
    at = 8 + 2 + 12 * 10 + 4
    tags = [
        *(
            (256, width),
            (257, height),
            (258, at),
            (259, 8 if deflate else 1),
            (262, 2),
            (273, at + len(bits)),
        ),
        *((277, bands), (278, height), (279, len(content)), (284, 1)),
    ]
    table = b""
    for tag, value in tags:
        kind, count = (3, bands) if tag == 258 else (4, 1)
        table += struct.pack(order + "HHII", tag, kind, count, value)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    path.write_bytes(head + table + b"\0" * 4 + bits + content)


def close(pixels: Image.Image, expected: np.ndarray) -> bool:
    return np.abs(np.asarray(pixels, float) - expected[..., None]).max() <= 1


def test_twelve_bits_in_sixteen_have_a_range(tmp_path):
    Image.fromarray(deep(4095)).save(tmp_path / "gray.png")
    Image.fromarray(deep(4095)).save(tmp_path / "gray.tiff")
    colors = np.repeat(deep(4095)[..., None], 3, -1)
    write_png16(tmp_path / "colors.png", colors)
    write_tiff(tmp_path / "colors.tiff", colors)
    write_tiff(tmp_path / "motorola.tiff", colors, order=">")
    write_tiff(tmp_path / "deflated.tiff", colors, deflate=True)
    write_tiff(tmp_path / "deflated_motorola.tiff", colors, deflate=True, order=">")
    for form in (
        *sorted(tmp_path.iterdir()),
        deep(4095),
        colors,
        torch.from_numpy(colors).permute(2, 0, 1),
    ):
        assert close(read_picture(form, (0, 4095)).image, EIGHT)
        # nearly black: what the range is for
        assert np.asarray(read_picture(form).image).max() <= 16
    assert close(images.read(RAMP * 5 - 2, (-2, 3)), EIGHT)
    # cut at the end
    assert close(images.read(deep(6000), (0, 4095)), np.minimum(RAMP * 255 * 6000 / 4095, 255))
    # 8 bits are as they are
    assert np.array_equal(np.asarray(images.read(EIGHT, (0, 4095)))[..., 0], EIGHT)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(255, (0, 255)), (1000, (0, 1023)), (4095, (0, 4095)), (9000, (0, 16383)), (60000, None)],
)
def test_range_of_whole_numbers(tmp_path, largest, expected):
    for i in range(3):
        Image.fromarray(deep(largest)).save(tmp_path / f"{i}.png")
    Image.fromarray(EIGHT).save(tmp_path / "eight.png")
    found, why = images.value_range(sorted(tmp_path.iterdir()))
    assert found == expected
    assert why == (
        ""
        if expected is None
        else f"3 of 4 pictures looked at have more than 8 bits, with values from 0 to {largest}"
    )


def test_range_is_that_of_all_colors_and_of_files_from_first_to_last(tmp_path):
    dim = np.stack([deep(200), deep(300), deep(4000)], -1)
    write_png16(tmp_path / "colors.png", dim)
    write_tiff(tmp_path / "colors.tiff", dim)
    for path in sorted(tmp_path.iterdir()):
        assert images.value_range([path])[0] == (0, 4095)
    # more than are looked at, the brightest last
    gray = [tmp_path / f"{i:03}.png" for i in range(90)]
    for i, path in enumerate(gray):
        Image.fromarray(deep(1000 if i < 70 else 9000)[-2:]).save(path)
    assert images.value_range(gray, look=64)[0] == (0, 16383)


def test_range_of_floats_and_of_nothing(tmp_path):
    Image.fromarray((RAMP * 300 - 50).astype(np.float32)).save(tmp_path / "a.tiff")
    assert images.value_range([tmp_path / "a.tiff"])[0] == (-50, 250)
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "b.tiff")
    assert images.value_range([tmp_path / "b.tiff"]) == (None, "")
    assert images.value_range([]) == (None, "")
    (tmp_path / "c.tiff").write_bytes(b"II*\0broken")
    assert images.value_range([tmp_path / "c.tiff"]) == (None, "")


@pytest.mark.parametrize("text", ["4095", "1,0", "0,0", "a,b", "0,inf", "0,1,2", "-"])
def test_scale_values_are_checked(text):
    with pytest.raises(UsageError, match="allowed: auto, full, or LOWEST,HIGHEST such as 0,4095"):
        TrainConfig(scale_values=text)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of gray pictures of 12 bits in 16."""
    root = tmp_path_factory.mktemp("scans")
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("up", "down"):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = deep(4000 - i) if kind == "up" else deep(4000 - i)[::-1]
                Image.fromarray(np.ascontiguousarray(pixels)).save(root / split / kind / f"{i}.png")
    return root


def test_the_range_goes_with_the_weights(scans, tmp_path, capsys):
    """Decided once, from the training pictures; said; used in training, eval, predict, int8 and told to apps."""
    words = "train --model fasternet_t0 --size 32 --batch-size 4 --epochs 1 --device cpu"
    assert main([*words.split(), "--data", str(scans), "--run", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "8 of 8 pictures looked at have more than 8 bits, with values from 0 to 4000" in said
    assert said.count("0 to 4095 becomes 0 to 255") == 1
    assert read_recipe(tmp_path / "run" / "config.yaml")["scale_values"] == "0,4095"
    predictor = load(tmp_path / "run")
    assert predictor.preprocess.values == (0, 4095)
    file = scans / "val" / "up" / "0.png"
    expected = predictor.preprocess.pixels(images.load(file, (0, 4095)))
    split = data.load(str(scans), "val", None, "label")
    item = ImageDataset(split, predictor.preprocess)[1]
    assert any(
        torch.equal(ImageDataset(split, predictor.preprocess)[i].image, expected) for i in range(4)
    ), item
    normalized = predictor.preprocess.normalize(expected)
    assert torch.equal(calibration([file], predictor.preprocess)[0], normalized)
    assert predictor.predict(file) == predictor.predict(images.read(file, (0, 4095)))
    assert predictor.predict(file) == predictor.predict(deep(4000))
    assert main(["predict", "--model", str(tmp_path / "run"), str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["results"][0][
        "predictions"
    ]
    assert {p["name"]: p["score"] for p in shown} == pytest.approx(dict(predictor.predict(file)[0]))


def test_training_sees_the_range(scans):
    train = data.load(str(scans), "train", None, "label")
    assert value_range("auto", train)[0] == (0, 4095)
    assert value_range("full", train) == (None, "")
    assert value_range("0,2000", train)[0] == (0, 2000)
    bright, dark = (
        ImageDataset(train, Preprocess((16, 16), values=values), InTurn())[0].image
        for values in ((0, 4095), None)
    )
    assert bright.max() > dark.max() + 2


def test_preprocess_of_before_is_read():
    assert "values" not in Preprocess((9, 9)).to_dict()
    kept = Preprocess((9, 9), values=(0, 4095)).to_dict()
    assert Preprocess.from_dict(json.loads(json.dumps(kept))).values == (0, 4095)
    with pytest.raises(UsageError, match="values is"):
        Preprocess((9, 9), values=(1, 0))


def four_bands(path: Path, fourth: np.ndarray, **options: object) -> Path:
    Image.fromarray(np.dstack([EIGHT] * 3 + [fourth])).save(path, **options)
    return path


def test_near_infrared_is_no_transparency(tmp_path):
    """A TIFF's fourth band is laid on white only if it is transparency by its values."""
    spread = np.roll(EIGHT, 77)
    holes = np.where(RAMP < 0.4, 0, np.where(RAMP < 0.45, 90, 255)).astype(np.uint8)
    white = EIGHT * (holes / 255) + 255 - holes
    for options in ({}, {"compression": "tiff_deflate"}, {"compression": "tiff_lzw"}):
        path = four_bands(tmp_path / "infrared.tiff", spread, **options)
        assert close(images.read(path), EIGHT)
        assert close(images.read(Image.open(path)), EIGHT)
        path = four_bands(tmp_path / "mask.tiff", holes, **options)
        assert close(images.read(path), white)
        assert close(images.read(Image.open(path)), white)
    for value in (0, 60):  # all clear would show nothing, and half clear is no mask
        assert close(
            images.read(four_bands(tmp_path / "x.tiff", np.full_like(EIGHT, value))), EIGHT
        )
    # of a mosaic of scenes
    nothing_beyond_a_border = np.where(RAMP < 0.6, 0, spread).astype(np.uint8)
    assert close(images.read(four_bands(tmp_path / "x.tiff", nothing_beyond_a_border)), EIGHT)
    assert close(images.read(four_bands(tmp_path / "x.png", holes)), white)  # in a PNG it is always
    half = np.full_like(EIGHT, 51)
    assert close(images.read(four_bands(tmp_path / "x.png", half)), EIGHT * 0.2 + 255 - 51)


def test_a_tiff_of_six_bands_is_named(tmp_path):
    path = tmp_path / "x.tiff"
    write_tiff(path, np.repeat(EIGHT[..., None], 6, -1))
    said = r"it has 6 channels \(6 bands of 8 bits\), and 3 are wanted; --channels 6"
    with pytest.raises(ValueError, match=said):
        images.read(path)
