"""Pictures of any number of channels, in every form that they come in."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet import images
from fleetnet.deploy.predictor import read_picture
from fleetnet.errors import DataError
from fleetnet.preprocess import Preprocess
from fleetnet.stacks import channels_first, stack_in

HEIGHT, WIDTH = 21, 34


def noise(*shape: int, dtype: str = "u1") -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, shape)
    return (values * (257 if dtype.endswith("u2") else 1)).astype(dtype)


def tiff_of(
    pixels: np.ndarray,
    *,
    order: str = "<",
    rows: int = 8,
    columns: int = 0,
    planar: bool = False,
    packed: bool = False,
    predictor: bool = False,
    orientation: int = 1,
) -> bytes:
    """A TIFF of pixels (height, width, bands): in strips of `rows`, or with `columns` in tiles."""
    height, width, bands = pixels.shape
    planes = [pixels[..., [band]] for band in range(bands)] if planar else [pixels]
    parts = []
    for plane in planes:
        for top in range(0, height, rows):
            for left in range(0, width, columns or width):
                part = plane[top : top + rows, left : left + (columns or width)]
                if columns:
                    missing = rows - part.shape[0], columns - part.shape[1]
                    part = np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)))
                if predictor:
                    part = np.diff(part, axis=1, prepend=part[:, :1] * 0)
                content = part.astype(part.dtype.newbyteorder(order)).tobytes()
                parts.append(zlib.compress(content) if packed else content)
    sizes = [len(part) for part in parts]
    start, lengths = 8, np.cumsum([0, *sizes])
    tags: list[tuple[int, list[int]]] = [
        (256, [width]), (257, [height]), (258, [pixels.itemsize * 8] * bands),
        (259, [8 if packed else 1]), (262, [1]), (274, [orientation]), (277, [bands]),
        (284, [2 if planar else 1]), (317, [2 if predictor else 1]),
        (339, [3 if pixels.dtype.kind == "f" else 1] * bands),
    ]  # fmt: skip
    places, counts = [int(start + at) for at in lengths[:-1]], sizes
    if columns:
        tags += [(322, [columns]), (323, [rows]), (324, places), (325, counts)]
    else:
        tags += [(273, places), (278, [rows]), (279, counts)]
    data = b"".join(parts)
    table_at = start + len(data) + len(data) % 2
    extra_at, extra, table = table_at + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in sorted(tags):
        stored = struct.pack(f"{order}{len(values)}I", *values)
        if len(stored) > 4:
            extra += stored
            stored = struct.pack(order + "I", extra_at + len(extra) - len(stored))
        table += struct.pack(order + "HHI", tag, 4, len(values)) + stored
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, table_at)
    whole = head + data + b"\0" * (len(data) % 2)
    return whole + struct.pack(order + "H", len(tags)) + table + b"\0" * 4 + extra


def npy_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("columns", [0, 16, 48])
@pytest.mark.parametrize(
    ("packed", "predictor"), [(False, False), (True, False), (True, True), (False, True)]
)
def test_bands_of_a_tiff(dtype: str, columns: int, packed: bool, predictor: bool):
    for bands, order, planar in itertools.product((1, 2, 7), "<>", (False, True)):
        pixels = noise(HEIGHT, WIDTH, bands, dtype=dtype)
        content = tiff_of(
            pixels, order=order, columns=columns, planar=planar, packed=packed, predictor=predictor
        )
        stack = stack_in(io.BytesIO(content))
        if dtype == "f4" and predictor:
            assert stack is None  # of floats it would be another predictor
            continue
        assert stack is not None
        assert (stack.height, stack.width, stack.channels) == pixels.shape
        assert np.array_equal(np.concatenate(list(stack.rows())), pixels)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 5), (5, 20, 30), (20, 20, 40), (40, 20, 20)])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4", "?"])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays(shape: tuple[int, ...], dtype: str, fortran: bool):
    pixels = noise(*shape).astype(dtype)
    stack = stack_in(io.BytesIO(npy_of(np.asfortranarray(pixels) if fortran else pixels)))
    expected = pixels[..., None] if len(shape) == 2 else pixels
    if len(shape) == 3 and channels_first(shape):
        expected = pixels.transpose(1, 2, 0)
    assert stack is not None
    assert stack.channels == {2: 1, 3: 5 if 5 in shape else 40}[len(shape)]
    assert np.array_equal(np.concatenate(list(stack.rows())), expected)


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """Name, content of a .npy file, and what is said of it."""
    good = npy_of(noise(6, 6, 5))
    start = 10 + int.from_bytes(good[8:10], "little")

    def with_head(text: str, version: bytes = b"\1\0") -> bytes:
        head = text.encode().ljust(start - 11) + b"\n"
        return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + good[start:]

    def described(shape: object, descr: str = "'|u1'") -> bytes:
        return with_head(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")

    yield "cut short", good[:-1], "cut short"
    yield "promises more", described((60000, 60000, 5)), "cut short"
    yield "a billion channels", described((1, 1, 10**9)), "cut short"
    yield "overflows", described((2**40, 2**40)), "cut short"
    yield "negative", described((-6, 6, -5)), "its shape is"
    yield "no rows", described((0, 6, 5)), "its shape is"
    yield "one side", described((180,)), "its shape is"
    yield "no sides", described(()), "its shape is"
    yield "four sides", described((1, 6, 6, 5)), "its shape is"
    yield "objects", described((6, 6), "'|O'"), "values of object"
    yield "texts", described((6, 6), "'<U1'"), "values of <U1"
    yield "records", described((6, 6), "[('a', '|u1')]"), "values of"
    yield "complex", described((2, 2), "'<c8'"), "values of complex64"
    yield "code", with_head("__import__('os').getcwd()"), "header"
    yield "no head", b"\x93NUMPY", "."
    yield "version", with_head("{}", b"\7\0"), "version"
    yield "deep", with_head("(" * 60), "."


@pytest.mark.parametrize(
    ("content", "said"), [pytest.param(*row[1:], id=row[0]) for row in hostile()]
)
def test_hostile_arrays_are_named_and_take_no_memory(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "hostile.npy"
    path.write_bytes(content)
    for read in (images.load, images.measure):
        with pytest.raises(DataError, match=rf"cannot read image '.*hostile.npy': .*{said}"):
            read(path)


def forms(pixels: np.ndarray, folder: Path) -> Iterator[tuple[str, images.Source | torch.Tensor]]:
    """The same pixels (height, width, channels) in every form that holds them."""
    yield "array", pixels
    yield "tensor", torch.from_numpy(pixels).permute(2, 0, 1)
    contents = {"npy": npy_of(pixels), "tiff": tiff_of(pixels)}
    contents["first.npy"] = npy_of(pixels.transpose(2, 0, 1))
    if pixels.shape[2] in (2, 4):
        picture = Image.fromarray(pixels)
        yield "PIL", picture
        saved = io.BytesIO()
        picture.save(saved, "PNG")
        contents["png"] = saved.getvalue()
    for ending, content in contents.items():
        path = folder / f"picture.{ending}"
        path.write_bytes(content)
        yield ending, path
        yield f"bytes of {ending}", content


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_the_same_pixels_in_every_form(tmp_path: Path, channels: int):
    pixels = noise(HEIGHT, WIDTH, channels)
    preprocess = Preprocess((16, 16)).for_channels(channels)
    expected = preprocess(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    assert expected.shape == (channels, 16, 16)
    for name, form in forms(pixels, tmp_path):
        picture = read_picture(form, count=channels)
        assert np.array_equal(picture.pixels, pixels), name
        assert torch.equal(preprocess(picture), expected), name
        assert picture.image.mode == "RGB"
        if isinstance(form, Path):
            assert images.measure(form) == (WIDTH, HEIGHT)


def test_gray_is_the_gray_of_the_picture(tmp_path: Path):
    gray, colors = noise(HEIGHT, WIDTH), noise(HEIGHT, WIDTH, 3)
    for ending in ("png", "jpg", "tif", "bmp"):
        path = tmp_path / f"gray.{ending}"
        Image.fromarray(gray).save(path)
        assert np.array_equal(
            images.load(path, count=1).pixels[..., 0], images.load(path).pixels[..., 0]
        )
    assert np.array_equal(images.load(gray, count=1).pixels[..., 0], gray)
    made = images.load(colors, count=1).pixels[..., 0]
    assert np.array_equal(made, np.asarray(Image.fromarray(colors).convert("L")))
    np.save(tmp_path / "gray.npy", gray)
    assert np.array_equal(images.load(tmp_path / "gray.npy").pixels, gray[..., None].repeat(3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_stack(tmp_path: Path, orientation: int):
    pixels = noise(HEIGHT, WIDTH, 5)
    path = tmp_path / "turned.tif"
    path.write_bytes(tiff_of(pixels, orientation=orientation))
    upright = images.load(Image.fromarray(pixels[..., 0]), count=1).pixels
    image = Image.fromarray(pixels[..., 0])
    image.getexif()[0x0112] = orientation
    upright = images.load(image, count=1).pixels[..., 0]
    picture = images.load(path, count=5)
    assert np.array_equal(picture.pixels[..., 0], upright)
    assert images.measure(path) == (picture.width, picture.height) == upright.shape[::-1]


def test_values_of_more_than_8_bits_have_a_range(tmp_path: Path):
    values = np.linspace(0, 4095, HEIGHT * WIDTH * 5).reshape(HEIGHT, WIDTH, 5)
    for name, dtype in (("deep.npy", "u2"), ("floats.npy", "f4")):
        np.save(tmp_path / name, values.astype(dtype))
    decided, why = images.value_range([tmp_path / "deep.npy"])
    assert decided == (0, 4095)
    assert "more than 8 bits" in why
    for name in ("deep.npy", "floats.npy"):
        pixels = images.load(tmp_path / name, decided, count=5).pixels
        assert np.abs(pixels - values / 4095 * 255).max() <= 0.6
    with pytest.raises(DataError, match="give their range"):
        images.load(tmp_path / "floats.npy", count=5)


@pytest.mark.parametrize(("count", "channels"), [(3, 5), (1, 4), (4, 3), (2, 1), (5, 4)])
def test_other_channels_name_the_file_and_the_way_out(tmp_path: Path, count: int, channels: int):
    path = tmp_path / "stack.npy"
    np.save(path, noise(HEIGHT, WIDTH, channels))
    with pytest.raises(
        images.OtherChannels, match=rf"stack.npy.* has {channels} channel.*--channels"
    ):
        images.load(path, count=count)


def test_a_large_stack_is_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "LARGE", 100)
    pixels = noise(HEIGHT, WIDTH, 6)
    picture = images.load(npy_of(pixels), count=6)
    rows, columns, channels = picture.pixels.shape
    assert (picture.height, picture.width, channels) == (HEIGHT, WIDTH, 6)
    factor = 4  # of the 714 pixels of twice as many values as RGB, 100 may be left
    assert (rows, columns) == (-(-HEIGHT // factor), -(-WIDTH // factor))
    first = pixels[:factor, :factor].reshape(-1, 6).mean(0)
    assert np.abs(picture.pixels[0, 0] - first).max() <= 0.5
    last = pixels[(rows - 1) * factor :, (columns - 1) * factor :].reshape(-1, 6).mean(0)
    assert np.abs(picture.pixels[-1, -1] - last).max() <= 0.5


def test_arrays_are_images_where_there_are_no_others(tmp_path: Path):
    np.save(tmp_path / "a.npy", noise(4, 4, 5))
    assert images.find_images(tmp_path) == ([tmp_path / "a.npy"], [])
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    pictures, left_out = images.find_images(tmp_path)
    assert pictures == [tmp_path / "b.png"]
    assert left_out == [f"'{tmp_path / 'a.npy'}': an array beside images of other formats"]
