"""Large and hostile pictures, by the code of benchmarks/hostile.py: a sample of what it does at length."""

import io
import os
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import benchmark
from PIL import Image

from fleetnet import bands, images, predictions
from fleetnet.data import Object, Sample, Split
from fleetnet.deploy.predictor import load
from fleetnet.errors import DataError
from fleetnet.inputs.augment import InTurn
from fleetnet.inputs.dataset import ImageDataset
from fleetnet.predictions import Detections, LabelMap
from fleetnet.preprocess import Preprocess


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    return benchmark("hostile")


def test_a_sample_of_mutations(hostile, tmp_path):
    files = []
    for name, content in hostile.mutations(120, seed=1):
        (tmp_path / name).write_bytes(content)
        files.append(tmp_path / name)
    outcomes = hostile.survive(files)
    assert len(outcomes) == 120
    assert [(name, told) for name, (told, _) in outcomes.items() if told.startswith("RAW")] == []
    assert {told.partition(":")[0] for told, _ in outcomes.values()} == {"read", "refused"}


def test_survival_is_watched(hostile, tmp_path, monkeypatch):
    """What the sample and the campaign rest on: a crash, a hang and a raw exception are seen, and the rest goes on."""
    for name in "abcd":
        (tmp_path / name).write_bytes(b"")
    deeds: dict[str, Any] = {
        "a": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "b": lambda: time.sleep(60),
        "c": lambda: 1 / 0,
        "d": lambda: images.read(tmp_path / "none"),
    }
    load_picture = images.load
    monkeypatch.setattr(
        images,
        "load",
        lambda path, *more: deeds.get(path.name, lambda: load_picture(path, *more))(),
    )
    outcomes = {
        name: told
        for name, (told, _) in hostile.survive(sorted(tmp_path.iterdir()), wait=3.0).items()
    }
    assert outcomes["a"] == "RAW died with exit code -9"
    assert outcomes["b"] == "RAW hangs for 3 s"
    assert outcomes["c"] == "RAW ZeroDivisionError: division by zero"
    assert outcomes["d"].startswith("refused: cannot read image")


def test_memory_is_bounded(hostile, tmp_path):
    """A PNG of 44 kB and one of 100 megapixels and a TIFF of the like: 400 MB and more as whole RGB pictures."""
    hostile.write_png(tmp_path / "gray1.png", 12_000, 12_000, 1, 0)
    hostile.write_tiff(tmp_path / "strips.tiff", 9_000, 9_000, 64)
    hostile.write_png(tmp_path / "interlaced.png", 12_000, 12_000, 8, 2, interlaced=True)
    rows = {row["file"]: row for row in hostile.memory(tmp_path, labels=False)}
    assert {name: row["outcome"].partition(":")[0] for name, row in rows.items()} == {
        "gray1.png": "read",
        "strips.tiff": "read",
        "interlaced.png": "refused",
    }
    assert all(row["peak"] < hostile.LIMIT for row in rows.values()), rows


# --- bands are the picture


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "palette with alpha")


def picture(mode: str, size: tuple[int, int] = (61, 97)) -> Image.Image:
    random = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    noise = random.integers(0, 40, (size[1], size[0], 4))
    pixels = (np.stack([x * 3, y * 2, x + y, 255 - x], -1) + noise).clip(0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 251)
    if mode == "palette with alpha":
        image = Image.fromarray(pixels[..., :3]).quantize(32)
        image.info["transparency"] = bytes(range(0, 256, 8))
        return image
    if mode in ("RGBA", "LA"):
        return Image.fromarray(pixels if mode == "RGBA" else pixels[..., 2:])
    image = Image.fromarray(pixels[..., :3])
    return image.quantize(7) if mode == "P" else image.convert(mode)


def both_ways(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a file read at once, and in bands of few rows."""
    at_once = np.asarray(images.read(path))
    with monkeypatch.context() as patch:
        patch.setattr(images, "BANDED", 10)
        patch.setattr(bands, "PIECE", 700)
        return at_once, np.asarray(images.read(path))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_bands_of_png(tmp_path, monkeypatch, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(mode).save(tmp_path / "x.png", exif=exif)
    at_once, in_bands = both_ways(tmp_path / "x.png", monkeypatch)
    assert at_once.shape == in_bands.shape
    assert np.array_equal(at_once, in_bands)
    taken = []
    monkeypatch.setattr(bands, "png_bands", lambda *given: taken.append(given) or iter(()))
    monkeypatch.setattr(images, "BANDED", 10)
    with pytest.raises(DataError, match="truncated"):
        images.read(tmp_path / "x.png")
    assert taken


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "tiff_deflate"},
        {"compression": "tiff_lzw"},
        {"compression": "packbits"},
        {"compression": "jpeg"},
        {"big_tiff": True},
        {"orientation": 6},
        {"orientation": 3},
    ],
    ids=str,
)
def test_bands_of_tiff(tmp_path, monkeypatch, mode, options):
    if options.get("compression") == "jpeg" and mode not in ("L", "RGB"):
        pytest.skip("JPEG has no such mode")
    exif = Image.Exif()
    exif[0x0112] = options.get("orientation", 1)
    settings = {key: value for key, value in options.items() if key != "orientation"}
    tags = {278: 16}  # rows in a strip
    if "orientation" in options:
        tags[274] = options["orientation"]
    picture("RGB" if mode == "CMYK" else mode).convert(mode).save(
        tmp_path / "x.tiff", tiffinfo=tags, **settings
    )
    with (tmp_path / "x.tiff").open("rb") as file:
        strips = bands.tiff_bands(file)
        assert strips is not None
        assert len(list(strips)) == 7
    at_once, in_bands = both_ways(tmp_path / "x.tiff", monkeypatch)
    assert np.array_equal(at_once, in_bands)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_bands_of_cut_files(tmp_path, monkeypatch, suffix, cut):
    picture("RGB").save(
        tmp_path / f"whole.{suffix}", **({"tiffinfo": {278: 16}} if suffix == "tiff" else {})
    )
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(content[: int(cut * len(content))])
    monkeypatch.setattr(images, "BANDED", 10)
    monkeypatch.setattr(bands, "PIECE", 700)
    with pytest.raises(DataError):
        images.read(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp", "jpg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_pictures_are_reduced(tmp_path, monkeypatch, suffix, orientation):
    """By the same averages in every form, but a JPEG's, which its decoder takes; the size stays the picture's own."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = picture("RGB", (331, 250))
    settings = {"exif": exif} if suffix != "bmp" else {}
    whole.save(
        tmp_path / f"x.{suffix}",
        lossless=True,
        tiffinfo={278: 16, 274: orientation},
        quality=95,
        **settings,
    )
    full = images.read(tmp_path / f"x.{suffix}")
    monkeypatch.setattr(images, "LARGE", 10_000)
    monkeypatch.setattr(images, "BANDED", 5_000)
    monkeypatch.setattr(bands, "PIECE", 2_000)
    read = images.load(tmp_path / f"x.{suffix}")
    assert (read.width, read.height) == full.size
    factor = 4 if suffix == "jpg" else 3
    assert abs(read.image.width - full.width / factor) < 1
    assert abs(read.image.height - full.height / factor) < 1
    assert images.measure(tmp_path / f"x.{suffix}") == full.size
    array = images.load(np.asarray(full))
    # others are turned after that, from another corner
    if suffix != "jpg" and (orientation == 1 or suffix == "bmp"):
        assert np.array_equal(np.asarray(read.image), np.asarray(array.image))
    preprocess = Preprocess((48, 32), mode="letterbox")
    inner = (preprocess(read) - preprocess(full)).abs()
    assert inner.mean() < 0.05  # of values of about -2 to 2
    assert preprocess.place(read.height, read.width) == preprocess.place(full.height, full.width)


def test_annotations_of_large_pictures_follow(tmp_path, monkeypatch):
    picture("RGB", (331, 250)).save(tmp_path / "x.png")
    sample = Sample(tmp_path / "x.png", objects=(Object((30.0, 60.0, 90.0, 120.0), 0),))
    split, preprocess = Split([sample], ["a"]), Preprocess((64, 64), mode="stretch")
    before = ImageDataset(split, preprocess, target="boxes")[0]
    monkeypatch.setattr(images, "LARGE", 10_000)
    after = ImageDataset(split, preprocess, target="boxes")[0]
    assert after.place == before.place
    assert torch.equal(after.targets["boxes"], before.targets["boxes"])
    image, targets = ImageDataset(split, preprocess, InTurn(), target="boxes").annotated(0)
    assert image.shape == (3, 84, 111)
    assert torch.allclose(targets["boxes"], torch.tensor([[10.0, 20.0, 30.0, 40.0]]), atol=0.4)


@pytest.mark.parametrize(
    "name", ["ssd/fasternet_t0", "deeplabv3/fasternet_t0", "maskrcnn/fasternet_t0"]
)
def test_predictions_of_large_pictures(tmp_path, monkeypatch, name):
    """Boxes in the picture's own pixels; masks and label maps of the size of the reduced image."""
    from fleetnet import checkpoint
    from fleetnet.cli import main
    from fleetnet.tasks import build

    torch.manual_seed(0)
    preprocess = Preprocess((64, 64), mode="stretch")
    options = {"maskrcnn": {"channels": 16, "hidden": 16}, "deeplabv3": {"channels": 16}}.get(
        name.split("/")[0], {}
    )
    model = build(name, 2, options=options).eval()
    checkpoint.save(
        tmp_path / "best.safetensors", model, classes=["a", "b"], preprocess=preprocess, metrics={}
    )
    picture("RGB", (331, 250)).save(tmp_path / "x.png")
    full = load(tmp_path).predictions(tmp_path / "x.png")[0]
    monkeypatch.setattr(images, "LARGE", 10_000)
    reduced = load(tmp_path).predictions(tmp_path / "x.png")[0]
    assert type(full) is type(reduced)
    if isinstance(full, Detections) and len(full):
        assert reduced.boxes[:, 2].max() > 200
    if isinstance(full, LabelMap):
        assert reduced.labels.shape == (84, 111)
        assert (full.labels[1::3, 1::3] == reduced.labels[:83, :110]).float().mean() > 0.9
    if isinstance(full, Detections) and full.masks is not None:
        assert reduced.masks.shape[1:] == (84, 111)
        monkeypatch.setattr(predictions, "MASKS", 2_500 * len(full))
        (smaller,) = load(tmp_path).predictions(tmp_path / "x.png")
        assert torch.equal(smaller.boxes, reduced.boxes)
        assert 10 * len(smaller.masks) < smaller.masks.numel() <= 1.1 * predictions.MASKS
        shares = [one.masks.float().mean((1, 2)) for one in (smaller, reduced)]
        assert torch.allclose(*shares, atol=0.03)
    words = [
        "predict",
        "--model",
        str(tmp_path),
        str(tmp_path / "x.png"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, *([] if "deeplab" in name else ["--threshold", "0"])]) == 0
    assert next((tmp_path / "out" / "drawn").iterdir()).stat().st_size > 0


@pytest.mark.parametrize("size", [(84, 110), (250, 331), (85, 221), (252, 330)])
def test_masks_are_enlarged_as_run_lengths(size):
    """As `encode` gives of the enlarged mask, whatever touches the border."""
    from fleetnet.rle import encode, encode_enlarged

    random = np.random.default_rng(0)
    small = [random.random((84, 110)) < share for share in (0.0, 0.02, 0.5, 1.0)]
    blob = np.zeros((84, 110), bool)
    blob[30:, 10:60] = True
    for mask in map(torch.from_numpy, [*small, blob, blob[::-1].copy()]):
        rows, columns = (
            torch.arange(large) * few // large for large, few in zip(size, (84, 110), strict=True)
        )
        large = mask[rows][:, columns]
        assert encode_enlarged(mask, size) == encode(large[None])[0]


def test_label_maps_in_bands(tmp_path, monkeypatch):
    labels = (np.add.outer(np.arange(97), np.arange(61)) % 7).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "gray.png")
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "deep.png")
    colored = Image.fromarray(labels, mode=None)
    colored.putpalette(bytes(range(21)))
    colored.save(tmp_path / "palette.png")
    colors = {(i, 2 * i, 0): i for i in range(7)}
    Image.fromarray(np.stack([labels, 2 * labels, 0 * labels], -1)).save(tmp_path / "colors.png")
    monkeypatch.setattr(images, "BANDED", 10)
    monkeypatch.setattr(bands, "PIECE", 700)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(
            images.read_labels(path, colors if path.stem == "colors" else None), labels
        ), path


def test_the_bytes_of_a_file_bound_its_memory(monkeypatch):
    """What is tiny and would become huge is refused before anything is decoded."""
    out = io.BytesIO()
    Image.new("RGB", (400, 400)).save(out, "webp")
    monkeypatch.setattr(images, "MEMORY", 1_000_000)
    with pytest.raises(
        DataError, match="400x400 pixels would take 2 MB, and the file has only 0 kB"
    ):
        images.read(out.getvalue())
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)).save(
        out, "webp", lossless=True
    )
    assert images.read(out.getvalue()).size == (400, 400)  # a photograph of that size has the bytes


def test_pictures_for_a_proof_that_cannot_be_read_are_left_out(tmp_path, capsys):
    from fleetnet import checkpoint
    from fleetnet.cli._data import Reading, pictures_of
    from fleetnet.tasks import build

    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture("RGB").save(tmp_path / "data" / name)
    broken = tmp_path / "data" / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:500])
    file = tmp_path / "best.safetensors"
    model = build("fasternet_t0", 2)
    checkpoint.save(file, model, classes=["a", "b"], preprocess=Preprocess((32, 32)))
    names = [str(one) for one in pictures_of(str(tmp_path / "data"), Reading(), file)]
    assert names == [str(tmp_path / "data" / name) for name in ("a/1.png", "b/1.png")]
    said = capsys.readouterr().err
    assert f"skipped cannot read image {str(broken)!r}" in said
    assert "1 of 3 pictures could not be read" in said
    for good in names:
        Path(good).write_bytes(b"")
    with pytest.raises(DataError, match="none of 3 pictures"):
        pictures_of(str(tmp_path / "data"), Reading(), file)
