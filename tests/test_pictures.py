"""One picture, one answer: whatever the form that a picture comes in, the same pixels reach the network."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet import checkpoint, images
from fleetnet.errors import DataError, UsageError
from fleetnet.predict import _exported, each, export, load, read_picture
from fleetnet.tasks import build
from fleetnet.transforms import Preprocess

SIZE = (23, 17)  # width, height
GRAY = np.add.outer(np.arange(SIZE[1]) * 9, np.arange(SIZE[0]) * 4).astype(np.uint8)  # (height, width), 0 to 232
COLORS = np.stack([GRAY, 255 - GRAY, GRAY // 2], -1)
ALPHA = np.where(GRAY > 150, 0, np.where(GRAY > 120, 128, 255)).astype(np.uint8)


def palette(transparency: Any = None) -> Image.Image:
    image = Image.fromarray(COLORS).quantize(16)
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def sixteen(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) * 257 + np.uint16(3) * (pixels < 255)


MODES: dict[str, tuple[Any, str]] = {  # name -> the picture, and a format that keeps it
    "1": (Image.fromarray(GRAY).convert("1"), "png"),
    "1 in tiff": (Image.fromarray(GRAY).convert("1"), "tiff"),
    "L": (Image.fromarray(GRAY), "png"),
    "L in jpeg": (Image.fromarray(GRAY), "jpg"),
    "LA": (Image.fromarray(np.stack([GRAY, ALPHA], -1)), "png"),
    "P": (palette(), "png"),
    "P in gif": (palette(), "gif"),
    "P, a transparent color": (palette(3), "png"),
    "P, alpha of each color": (palette(bytes(range(0, 256, 16))), "png"),
    "RGB": (Image.fromarray(COLORS), "png"),
    "RGB in jpeg": (Image.fromarray(COLORS), "jpg"),
    "RGB in bmp": (Image.fromarray(COLORS), "bmp"),
    "RGBA": (Image.fromarray(np.dstack([COLORS, ALPHA])), "png"),
    "RGBA in webp": (Image.fromarray(np.dstack([COLORS, ALPHA])), "webp"),
    "RGBA in tiff": (Image.fromarray(np.dstack([COLORS, ALPHA])), "tiff"),
    "CMYK": (Image.fromarray(COLORS).convert("CMYK"), "jpg"),
    "YCbCr": (Image.fromarray(COLORS).convert("YCbCr"), "tiff"),
    "I;16": (Image.fromarray(sixteen(GRAY)), "png"),
    "I": (Image.fromarray(sixteen(GRAY).astype(np.int32)), "tiff"),
    "F": (Image.fromarray((GRAY / 255).astype(np.float32)), "tiff"),
}
ORIENTATIONS = (1, 3, 6, 7, 9, 0)


def bytes_of(image: Image.Image, format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    lossless = {"lossless": True} if format == "webp" else {}
    tags = {} if format in ("bmp", "gif") else {"exif": exif}  # which have no EXIF
    image.save(out, {"jpg": "JPEG"}.get(format, format), **tags, **lossless)
    return out.getvalue()


def forms_of(content: bytes, format: str, folder: Path) -> dict[str, Any]:
    """One picture in the forms that a user may have it in."""
    path = folder / f"x.{format}"
    path.write_bytes(content)
    upright = np.array(images.read(path))
    return {
        "str": str(path),
        "path": path,
        "bytes": content,
        "PIL": Image.open(io.BytesIO(content)),
        "what read gave": images.read(path),
        "array": upright,
        "tensor": torch.from_numpy(upright).permute(2, 0, 1),
        "floats": torch.from_numpy(upright).permute(2, 0, 1) / 255,
        "BGR": upright[..., ::-1],
    }


@pytest.mark.parametrize("mode", MODES)
def test_every_form_gives_the_same_pixels(tmp_path, mode):
    image, format = MODES[mode]
    preprocess = Preprocess((16, 20), mode="letterbox")
    for orientation in ORIENTATIONS:
        inputs = {}
        for name, form in forms_of(bytes_of(image, format, orientation), format, tmp_path).items():
            picture = read_picture(form, channels="BGR" if name == "BGR" else "RGB")
            assert picture.image.mode == "RGB", name
            inputs[name] = preprocess(picture)
        for name, value in inputs.items():
            assert torch.equal(value, inputs["str"]), (name, orientation)


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_the_mode(tmp_path, mode):
    """Not only equal: laid on white, scaled and turned as they should be."""
    image, format = MODES[mode]
    gray = mode[0] in "1LIF"
    expected = np.repeat(GRAY[..., None], 3, -1) if gray else COLORS
    if "A" in mode:
        alpha = ALPHA[..., None] / 255
        expected = expected * alpha + 255 * (1 - alpha)
    if "transparent" in mode or "each" in mode:
        expected = np.asarray(image.convert("RGBA"), float)
        expected = expected[..., :3] * expected[..., 3:] / 255 + 255 - expected[..., 3:]
    tolerance = {"1": 128, "1 in tiff": 128, "P": 12, "P in gif": 12, "RGB in jpeg": 20, "CMYK": 20}.get(mode, 3)
    turned = format not in ("bmp", "gif")
    for orientation, turn in ((1, 0), (3, 2), (6, -1), (9, 0)):
        pixels = np.asarray(images.read(bytes_of(image, format, orientation)), float)
        upright = np.rot90(expected, turn) if turned else expected
        assert pixels.shape == upright.shape
        assert np.abs(pixels - upright).mean() <= tolerance, orientation


@pytest.mark.parametrize(
    ("array", "like"),
    [
        (GRAY, "L"),
        (GRAY[..., None], "L"),
        (sixteen(GRAY), "I;16"),
        (GRAY / 255, "L"),
        ((GRAY / 255).astype(np.float16), "L"),
        (np.stack([GRAY, ALPHA], -1), "LA"),
        (np.dstack([COLORS, ALPHA]), "RGBA"),
        (sixteen(COLORS), "RGB"),
        (COLORS / 255, "RGB"),
        (GRAY > 127, "1 of threshold"),
    ],
)
def test_arrays_of_other_types_and_channels(array, like):
    if like == "1 of threshold":
        expected = np.repeat(np.where(GRAY > 127, 255, 0)[..., None], 3, -1)
    else:
        expected = np.asarray(images.read(bytes_of(MODES[like][0], "png", 1)))
    assert np.array_equal(np.asarray(images.read(array)), expected)
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0) if array.ndim == 3 else array))
    assert np.array_equal(np.asarray(read_picture(tensor).image), expected)


@pytest.mark.parametrize(
    ("picture", "error", "match"),
    [
        (np.zeros((3, 8, 8), np.uint8), DataError, r"shape is \(3, 8, 8\); allowed: \(height, width\)"),
        (torch.zeros(8, 8, 3), DataError, "channels last"),
        (np.zeros((8, 8, 3), np.int64), DataError, "values of int64; allowed: uint8"),
        (np.full((8, 8, 3), 200.0), DataError, "values from 200 to 200; allowed: 0 to 1"),
        (np.zeros((0, 8, 3), np.uint8), DataError, "shape"),
        (b"", DataError, "of 0 bytes: the file is empty"),
        (b"no picture", DataError, "not an image in a known format"),
        ({"image": 1}, UsageError, "dict is no picture; allowed: a path, an address"),
        (3, UsageError, "int is no picture"),
    ],
)
def test_what_is_no_picture(picture, error, match):
    with pytest.raises(error, match=match):
        [read_picture(one) for one in each(picture)]


def test_one_or_many():
    picture = Image.fromarray(COLORS)
    for one in ("a.jpg", Path("a.jpg"), b"", picture, COLORS, torch.zeros(3, 8, 8)):
        assert len(list(each(one))) == 1
        assert len(list(each([one, one]))) == 2
        assert len(list(each(iter([one])))) == 1
    assert len(list(each(np.zeros((5, 8, 8, 3))))) == 5
    assert len(list(each(torch.zeros(5, 3, 8, 8)))) == 5
    assert len(list(each([torch.zeros(5, 3, 8, 8), COLORS]))) == 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build("fasternet_t0", 3).eval()
    preprocess = Preprocess((32, 32), channel_order="BGR")
    checkpoint.save(folder / "best.safetensors", model, classes=["a", "b", "c"], preprocess=preprocess, metrics={})
    return folder


def test_predict_in_every_form(run, tmp_path):
    predictor = load(run)
    content = bytes_of(MODES["RGBA"][0], "png", 6)
    forms = forms_of(content, "png", tmp_path)
    expected = predictor.predict(forms["path"])
    assert len(expected) == 1
    for name, form in forms.items():
        assert predictor.predict(form, channels="BGR" if name == "BGR" else "RGB") == expected, name
    many = predictor.predict([form for name, form in forms.items() if name != "BGR"])
    assert [dict(one) for one in many] == [pytest.approx(dict(expected[0]), abs=1e-6)] * (len(forms) - 1)
    with pytest.raises(UsageError, match="channels is 'GBR'"):
        predictor.predict(COLORS, channels="GBR")


def test_export_compares_on_pictures_in_every_form(run, tmp_path):
    forms = forms_of(bytes_of(MODES["RGBA"][0], "png", 6), "png", tmp_path)
    export(run, "onnx", tmp_path / "many.onnx", pictures=[forms[name] for name in ("str", "PIL", "array", "tensor")])
    network, examples = _exported(build("fasternet_t0", 3).eval(), Preprocess((32, 32)), False, False, forms["str"])
    assert isinstance(network, torch.nn.Module)
    for name in ("PIL", "array", "tensor"):
        others = _exported(build("fasternet_t0", 3).eval(), Preprocess((32, 32)), False, False, forms[name])[1]
        assert torch.equal(others[-1], examples[-1]), name
        assert len(others) == len(examples)
