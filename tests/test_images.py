"""Image files as users have them: the table of ../shared/data/badfiles where it is there, and small cases made here."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fleetnet.errors import DataError
from fleetnet.images import MAX_PIXELS, find_images, read

BAD = Path(__file__).parents[1].parent / "shared" / "data" / "badfiles"
NEEDS_BAD = pytest.mark.skipif(not BAD.is_dir(), reason="../shared/data/badfiles is not there")


def table() -> list[tuple[str, str]]:
    """(file, expectation) of the files that are stored."""
    if not BAD.is_dir():
        return []
    rows = [
        line.split("\t")
        for line in (BAD / "expectations.tsv").read_text(encoding="utf-8").split("\n")[1:]
    ]
    names = [
        (row[0].replace("\\n", "\n").replace("\\t", "\t"), row[3]) for row in rows if len(row) > 3
    ]
    return [(name, expect) for name, expect in names if name.startswith("images/")]


def picture(size=(20, 30), mode="RGB") -> Image.Image:
    """Smooth, so that JPEG keeps it, and different in each corner, so that a flip shows."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    channels = np.stack([x * 255 / size[0], y * 255 / size[1], (x + y) * 60 / size[0]], -1).astype(
        np.uint8
    )
    return Image.fromarray(channels).convert(mode)


def close(a: Image.Image, b: Image.Image, tolerance: float) -> bool:
    return (
        a.size == b.size and np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() <= tolerance
    )


@NEEDS_BAD
@pytest.mark.parametrize(("name", "expect"), table(), ids=lambda value: ascii(value)[1:40])
def test_badfiles(name, expect):
    image, message = None, ""
    try:
        image = read(BAD / name)
    except DataError as error:
        message = str(error)
    if image is None:
        assert expect in ("error", "refuse", "ignore", "either")
        assert repr(str(BAD / name)) in message
        assert "\n" not in message
    else:
        assert expect in ("decode", "either")
        assert image.mode == "RGB"


@NEEDS_BAD
@pytest.mark.parametrize(
    ("name", "like", "tolerance"),
    [
        ("jpeg_cmyk.jpg", "00_control.jpg", 8),
        ("png_gray16.png", "jpeg_gray.jpg", 4),
        ("png_rgb16.png", "00_control.png", 0.6),
        ("png_1bit.png", "jpeg_gray.jpg", 128),
        ("jpeg_trailing_garbage.jpg", "00_control.jpg", 0),
        *[(f"jpeg_exif_orientation_{i}.jpg", "00_control.jpg", 5) for i in range(2, 9)],
        *[(f"jpeg_exif_orientation_{i}_invalid.jpg", "00_control.jpg", 3) for i in (0, 9)],
    ],
)
def test_badfiles_look_right(name, like, tolerance):
    assert close(read(BAD / "images" / name), read(BAD / "images" / like), tolerance)


@NEEDS_BAD
def test_badfiles_folder():
    found, skipped = find_images(BAD / "images")
    names = {path.name for path in found}
    assert found == sorted(found)
    assert {
        "UPPER.JPG",
        "mixed.JpEg",
        " leading space.jpg",
        "new\nline.jpg",
        "[bracket]*.jpg",
    } <= names
    ignored = {Path(name).name for name, expect in table() if expect == "ignore"}
    assert not names & (ignored | {"directory.jpg", "noextension", ".hidden.jpg"})
    assert any("directory.jpg" in line and "folder" in line for line in skipped)


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(tmp_path, orientation):
    # Transpose that turns the upright picture into the stored one
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = (
        picture().transpose(Image.Transpose(undo[orientation]))
        if orientation in undo
        else picture()
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".png", ".jpg", ".tiff", ".webp"):
        stored.save(
            tmp_path / f"x{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {})
        )
        assert close(read(tmp_path / f"x{suffix}"), picture(), 0 if suffix != ".jpg" else 5), suffix


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr", "P", "1", "LA", "RGBA"])
def test_modes(tmp_path, mode):
    path = tmp_path / "x.tiff"
    picture(mode=mode).save(path)
    image = read(path)
    assert image.mode == "RGB"
    assert close(image, picture(mode=mode).convert("RGB"), 1)


def test_gray_of_more_than_8_bits(tmp_path):
    gray = np.array([[0, 128, 257, 32896, 65280, 65535]], np.uint16)
    expected = [0, 0, 1, 128, 254, 255]
    Image.fromarray(gray).save(tmp_path / "x.png")
    Image.fromarray(gray.astype(np.int32)).save(tmp_path / "i.tiff")
    Image.fromarray((gray / 65535).astype(np.float32)).save(tmp_path / "f.tiff")
    for name in ("x.png", "i.tiff", "f.tiff"):
        pixels = np.asarray(read(tmp_path / name))
        assert pixels.shape == (1, 6, 3)
        assert np.abs(pixels[0] - np.array(expected)[:, None]).max() <= (
            1 if name == "f.tiff" else 0
        ), name


@pytest.mark.parametrize("value", [-1.0, 2.0, float("nan")])
def test_gray_out_of_range(tmp_path, value):
    Image.fromarray(np.array([[0.5, value]], np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="gray values"):
        read(tmp_path / "f.tiff")


def test_transparent_is_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save(tmp_path / "x.png")
    red, clear, half = (read(tmp_path / "x.png").getpixel((x, 0)) for x in range(3))
    assert (red, clear, half) == ((255, 0, 0), (255, 255, 255), (127, 127, 127))
    Image.new("P", (2, 2), 0).save(tmp_path / "p.png", transparency=0)
    assert read(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


def test_size_is_limited_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (4000, 10)).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png").size == (4000, 10)
    monkeypatch.setattr("fleetnet.images.MAX_PIXELS", 39_999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="4000x10 pixels are more than the limit"):
        read(tmp_path / "x.png")


def test_limit_holds_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    header = b"P5 20000 20000 255\n"
    (tmp_path / "x.pgm").write_bytes(header)
    assert MAX_PIXELS < 20000**2
    with pytest.raises(DataError, match="20000x20000"):
        read(tmp_path / "x.pgm")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"some text\n", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_no_image(tmp_path, content, reason):
    path = tmp_path / "a b.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as raised:
        read(path)
    assert repr(str(path)) in str(raised.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tiff"])
def test_truncated(tmp_path, suffix):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"half{suffix}"
    picture((200, 200)).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match="half"):
        read(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "gone.jpg").symlink_to("missing")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "sub" / "note.txt").write_text("")
    picture().save(tmp_path / "sub" / "good.JPG")
    reasons = {
        "fifo.jpg": "regular file", "dir.jpg": "folder", "a.jpg": "back to itself", "b.jpg": "back "
                                                                                             "to "
                                                                                             "itself",
        "gone.jpg": "does not exist", "none.jpg": "no such file",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason):
            read(tmp_path / name)
    found, skipped = find_images(tmp_path)
    assert [path.name for path in found] == ["good.JPG"]
    assert len(skipped) == 7  # the five that are there, the loop, the note
    with pytest.raises(DataError, match="cannot list"):
        find_images(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    picture().save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        read(tmp_path / "x.jpg")
