"""One picture, one answer: whatever the form that a picture comes in, the same pixels reach the network."""

import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet import checkpoint, images
from fleetnet.cli import main
from fleetnet.cli.predict import _stems
from fleetnet.deploy.export import Deployable, export
from fleetnet.deploy.predictor import each, load, read_picture
from fleetnet.errors import DataError, UsageError
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import build

SIZE = (23, 17)  # width, height
# (height, width), 0 to 232
GRAY = np.add.outer(np.arange(SIZE[1]) * 9, np.arange(SIZE[0]) * 4).astype(np.uint8)
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
    for orientation in ORIENTATIONS:
        forms = forms_of(bytes_of(image, format, orientation), format, tmp_path)
        pictures = {
            name: read_picture(form, channels="BGR" if name == "BGR" else "RGB")
            for name, form in forms.items()
        }
        for of_input in ("crop", "stretch", "letterbox"):
            preprocess = Preprocess((16, 20), mode=of_input, antialias=of_input != "stretch")
            expected = preprocess(pictures["str"])
            for name, picture in pictures.items():
                assert picture.image.mode == "RGB", name
                assert torch.equal(preprocess(picture), expected), (name, orientation, of_input)


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
    tolerance = {
        "1": 128,
        "1 in tiff": 128,
        "P": 12,
        "P in gif": 12,
        "RGB in jpeg": 20,
        "CMYK": 20,
    }.get(mode, 3)
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
    tensor = torch.from_numpy(
        np.ascontiguousarray(np.moveaxis(array, -1, 0) if array.ndim == 3 else array)
    )
    assert np.array_equal(np.asarray(read_picture(tensor).image), expected)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_colors_in_the_order_of_opencv(alpha, deep):
    """Alpha stays the last of four channels, and what it makes transparent is laid on white."""
    array = np.dstack([COLORS, ALPHA]) if alpha else COLORS
    array = sixteen(array) if deep else array
    swapped = array[..., [2, 1, 0, 3][: array.shape[2]]]
    expected = np.asarray(images.load(array).image)
    assert np.array_equal(np.asarray(images.load(swapped, channels="BGR").image), expected)
    assert (expected[ALPHA == 0] == 255).all() == alpha


@pytest.mark.parametrize(
    ("picture", "error", "match"),
    [
        (
            np.zeros((3, 8, 8), np.uint8),
            DataError,
            r"shape is \(3, 8, 8\); allowed: \(height, width\)",
        ),
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
    checkpoint.save(
        folder / "best.safetensors",
        model,
        classes=["a", "b", "c"],
        preprocess=preprocess,
        metrics={},
    )
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
    assert [dict(one) for one in many] == [pytest.approx(dict(expected[0]), abs=1e-6)] * (
        len(forms) - 1
    )
    with pytest.raises(UsageError, match="channels is 'GBR'"):
        predictor.predict(COLORS, channels="GBR")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was compared with its checkpoint on one picture in several forms."""
    folder = tmp_path_factory.mktemp("exported")
    forms = forms_of(bytes_of(MODES["RGBA"][0], "png", 6), "png", folder)
    pictures = [forms[name] for name in ("str", "PIL", "array", "tensor")]
    export(run, "onnx", folder / "x.onnx", pictures=pictures)
    return folder / "x.onnx"


def test_export_compares_on_pictures_in_every_form(exported, tmp_path):
    forms = forms_of(bytes_of(MODES["RGBA"][0], "png", 6), "png", tmp_path)
    assert exported.is_file()
    model, preprocess = build("fasternet_t0", 3).eval(), Preprocess((32, 32))
    examples = Deployable(model, preprocess, pictures=list(each(forms["str"]))).examples()
    for name in ("PIL", "array", "tensor"):
        others = Deployable(model, preprocess, pictures=list(each(forms[name]))).examples()
        assert torch.equal(others[-1], examples[-1]), name
        assert len(others) == len(examples)


# --- the verb predict


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task, of random weights, on the smallest backbones."""
    names = {
        "classification": "fasternet_t0",
        "ssd": "ssd/fasternet_t0",
        "deeplabv3": "deeplabv3/fasternet_t0",
    }
    names |= {"maskrcnn": "maskrcnn/fasternet_t0", "yolo": "yolo/repvit_m0_6"}
    folders = {}
    for task, name in names.items():
        torch.manual_seed(0)
        folders[task] = tmp_path_factory.mktemp(task)
        preprocess = Preprocess((64, 64), mode="stretch")
        checkpoint.save(
            folders[task] / "best.safetensors", build(name, 3).eval(), classes=["a", "b", "c"], preprocess=preprocess,
            metrics={},
        )  # fmt: skip
    return folders


@pytest.mark.parametrize("task", ["classification", "ssd", "deeplabv3"])
def test_predict_says_that_a_file_failed(runs, tmp_path, capsys, task):
    """The others are predicted and written all the same, and a script sees it at the exit code."""
    Image.fromarray(COLORS).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    words = ["predict", "--model", str(runs[task]), "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, str(tmp_path / "good.png"), str(tmp_path / "broken.png")]) == 3
    streams = capsys.readouterr()
    document = json.loads(streams.out.strip().splitlines()[-1])
    assert "1 of 2 images could not be read" in streams.err
    assert [Path(result["file"]).name for result in document["results"]] == ["good.png"]
    assert "broken.png" in document["skipped"][0]
    assert "exit_code" not in document
    assert (tmp_path / "out" / "predictions.json").is_file()
    assert main([*words, str(tmp_path / "good.png")]) == 0


def test_predict_says_that_a_file_is_missing(runs, tmp_path, capsys):
    """The others are predicted; and where there are none, --json says why on the last line too."""
    Image.fromarray(COLORS).save(tmp_path / "good.png")
    words = [
        "predict",
        "--model",
        str(runs["classification"]),
        "--json",
        str(tmp_path / "none.png"),
    ]
    assert main([*words, str(tmp_path / "good.png")]) == 3
    streams = capsys.readouterr()
    document = json.loads(streams.out.strip().splitlines()[-1])
    assert "1 of 2 images could not be read" in streams.err
    assert [Path(result["file"]).name for result in document["results"]] == ["good.png"]
    assert "none.png" in document["skipped"][0]
    assert main(words) == 3
    document = last_json(capsys)
    assert "none.png" in document["error"]
    assert document["exit_code"] == 3


@pytest.mark.parametrize("task", ["classification", "ssd", "deeplabv3", "maskrcnn", "yolo"])
def test_embeddings(runs, tmp_path, capsys, task):
    content = bytes_of(MODES["RGB"][0], "png", 6)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    assert (
        main(
            [
                "predict",
                "--model",
                str(runs[task]),
                "--embed",
                "--out",
                str(out),
                str(tmp_path),
                "--json",
            ]
        )
        == 0
    )
    with np.load(out / "embeddings.npz") as stored:
        features, files = stored["features"], stored["files"].tolist()
        preprocess = Preprocess.from_dict(json.loads(str(stored["preprocess"])))
    assert last_json(capsys)["results"] == [
        {"file": file, "features": features.shape[1]} for file in files
    ]
    assert [Path(file).name for file in files] == ["a.png", "b.png"]
    predictor = load(runs[task])
    assert preprocess == predictor.preprocess
    assert features.dtype == np.float32
    model = checkpoint.load(runs[task] / "best.safetensors").model.eval()
    with torch.no_grad():
        expected = model.backbone(preprocess(images.load(content))[None])[-1].mean((2, 3))
    assert np.allclose(features, expected.numpy().repeat(2, 0), atol=1e-6)
    assert np.allclose(predictor.embed([content, COLORS])[0], features[0], atol=1e-6)


def test_embeddings_need_a_checkpoint_and_a_folder(run, exported, tmp_path, capsys):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    words = ["predict", "--embed", str(tmp_path / "a.png"), "--model"]
    assert main([*words, str(exported), "--out", str(tmp_path)]) == 2
    assert "an exported file (onnx) gives its outputs only" in capsys.readouterr().err
    assert main([*words, str(run)]) == 2
    assert "--embed needs --out" in capsys.readouterr().err


# --- addresses


class Server(BaseHTTPRequestHandler):
    """Pictures, and what servers do instead."""

    def do_GET(self) -> None:
        content = bytes_of(MODES["RGBA"][0], "png", 6)
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/large.png":
            self.send_header("Content-Length", "99999999999")
        if self.path == "/cut.png":
            self.send_header("Content-Length", str(len(content) + 5))
        self.end_headers()
        try:
            if self.path == "/endless.png":
                while True:
                    self.wfile.write(b"\0" * 65536)
            if self.path == "/slow.png":
                for _ in range(200):
                    self.wfile.write(b"\0")
                    time.sleep(0.05)
            self.wfile.write(b"<html>" if self.path == "/page.png" else content)
        except OSError:  # the client had enough
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_predict_at_addresses(run, address, tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(bytes_of(MODES["RGBA"][0], "png", 6))
    assert load(run).predict(f"{address}/x.png") == load(run).predict(tmp_path / "x.png")
    names = [
        f"{address}/{name}" for name in ("x.png", "..%2F..%2Fx.png?a=/b", "gone.png", "page.png")
    ]
    assert (
        main(["predict", "--model", str(run), *names, "--out", str(tmp_path / "out"), "--json"])
        == 3
    )
    document = last_json(capsys)
    assert [result["file"] for result in document["results"]] == names[:2]
    assert len(document["skipped"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.png"]
    assert _stems([*names[:2], Path("x.jpg")]) == {
        names[0]: "x",
        names[1]: "x-2",
        Path("x.jpg"): "x-3",
    }


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("gone.png", "404"),
        ("moved.png", "file:///etc/hostname"),
        ("large.png", "99999999999 bytes; at most 1000000"),
        ("endless.png", "more than the 1000000 bytes"),
        ("slow.png", "bytes came within 0.4 s"),
        ("cut.png", "ended after"),
    ],
)
def test_addresses_are_fetched_within_limits(address, path, match):
    before = time.monotonic()
    with pytest.raises(DataError, match=match):
        images.fetch(
            f"{address}/{path}", limit=1_000_000, seconds=0.4 if path == "slow.png" else 20.0
        )
    assert time.monotonic() - before < 10


def test_no_server_answers():
    with pytest.raises(DataError, match=r"cannot fetch 'http://127\.0\.0\.1:9/x\.png'"):
        images.fetch("http://127.0.0.1:9/x.png")


# ---- HEIC


def heic_of(image: Image.Image, orientation: int) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    heif = pillow_heif.from_pillow(image)
    heif.save(out, format="HEIF", quality=-1, exif=exif.tobytes())
    return out.getvalue()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_heic_gives_the_same_in_every_form(tmp_path, mode, orientation):
    image, _ = MODES[mode]
    content = heic_of(image, orientation)
    preprocess = Preprocess((16, 20), mode="letterbox")
    expected = preprocess(read_picture(content))
    for name, form in forms_of(content, "heic", tmp_path).items():
        picture = read_picture(form, channels="BGR" if name == "BGR" else "RGB")
        assert torch.equal(preprocess(picture), expected), name
    size, stored = images.examine(tmp_path / "x.heic")
    assert size == images.read(tmp_path / "x.heic").size
    assert stored == 1
    pixels = np.asarray(images.read(content), float)
    plain = np.asarray(images.read(heic_of(image, 1)), float)
    turned = np.rot90(plain, {3: 2, 6: -1}.get(orientation, 0))
    if orientation != 7:
        assert pixels.shape == turned.shape
        assert np.abs(pixels - turned).mean() < 6


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    (tmp_path / "x.heic").write_bytes(content)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = r"HEIC is not read: pip install 'fleetnet\[heif\]', or convert to JPEG"
    for source in (content, tmp_path / "x.heic"):
        with pytest.raises(DataError, match=message):
            images.load(source)


def test_damaged_heic(tmp_path):
    content = heic_of(MODES["RGB"][0], 1)
    for cut in (40, 200, len(content) - 50):
        with pytest.raises(DataError, match="cannot read image"):
            images.load(content[:cut])
