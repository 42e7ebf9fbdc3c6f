"""Hostile pictures: the memory and time that each takes, and a thousand mutated files.

    python benchmarks/hostile.py [--data ../shared/data/badfiles] [--mutations 1000] [--seed 0]

Two parts. *Memory*: every file of the folder, and small files of large pictures made here, each is
read in a process of its own as training and prediction read it (`images.load`, then the input of a
network); the peak of its resident memory over what the process had before must stay below LIMIT.
*Mutations*: small pictures of six formats are damaged (bytes flipped, overwritten, cut out,
doubled, swapped between files; numbers of the header made large) and read; each must give a picture
or a `DataError` that is one line, within SECONDS.

Processes are forked from this one, so they start with the library loaded. The last line of output
is JSON.
"""

import argparse
import io
import json
import multiprocessing
import queue
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fleetnet import images
from fleetnet.errors import DataError
from fleetnet.preprocess import Preprocess

LIMIT = 300e6  # bytes over the baseline
SECONDS = 20.0  # for one mutated picture, on a busy machine
WAIT = 180.0  # for one large picture
PREPROCESS = Preprocess((224, 224))
FORMATS = ("jpeg", "png", "webp", "tiff", "bmp", "gif")


# ---- in a process of its own -----------------------------------------------------------------------------------------


def outcome(path: Path, read: Callable[[Path], Any] | None = None) -> str:
    """What reading a picture comes to: "read", "refused: ...", or "RAW ..." for what nobody should see."""
    try:
        picture = images.load(path) if read is None else read(path)
        if read is None:
            assert PREPROCESS(picture).shape == (3, 224, 224)
    except DataError as error:
        return (
            f"refused: {error}" if "\n" not in str(error) else f"RAW, of several lines: {error!r}"
        )
    except BaseException as error:
        return f"RAW {type(error).__name__}: {error}"
    return "read"


def peak() -> float:
    """Bytes: the most that was resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def measured(path: Path, read: Callable[[Path], Any] | None, results: Any) -> None:
    before, began = peak(), time.monotonic()
    result = outcome(path, read)
    results.put((result, peak() - before, time.monotonic() - began))


def in_process(
    path: Path, read: Callable[[Path], Any] | None = None, wait: float = WAIT
) -> tuple[str, float, float]:
    """(outcome, bytes over the baseline, seconds) of reading one picture in a forked process."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=measured, args=(path, read, results), daemon=True)
    process.start()
    try:
        return results.get(timeout=wait)
    except queue.Empty:
        process.join(0.1)
        code = process.exitcode
        died = (
            f"RAW died with exit code {code}" if code is not None else f"RAW hangs for {wait:.0f} s"
        )
        return died, 0.0, wait
    finally:
        process.kill()
        process.join()


# ---- small files of large pictures -----------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def write_png(
    path: Path, width: int, height: int, depth: int, color: int, interlaced: bool = False
) -> None:
    """A PNG of zeros, with every filter in turn, without the memory for its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    packer, blocks = zlib.compressobj(9), []
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        row = b"\0" * ((columns * channels * depth + 7) // 8)
        blocks += [packer.compress(bytes([i % 5]) + row) for i in range(rows)]
    blocks.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    colors = chunk(b"PLTE", bytes(range(192))) if color == 3 else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + colors
        + chunk(b"IDAT", b"".join(blocks))
        + chunk(b"IEND", b"")
    )


def write_tiff(
    path: Path, width: int, height: int, rows: int, channels: int = 3, bits: int = 8
) -> None:
    """A TIFF of deflated zeros in strips of `rows` rows, all of which are the same few bytes of the file."""
    strips = -(-height // rows)
    data = zlib.compress(b"\0" * (rows * width * channels * bits // 8), 9)
    extra = [(338, 3, [2])] if channels == 4 else []
    tags = [
        *((256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [8])),
        *(
            (262, 3, [2 if channels >= 3 else 1]),
            (273, 4, [0] * strips),
            (277, 3, [channels]),
            (278, 4, [rows]),
        ),
        *((279, 4, [len(data)] * strips), (284, 3, [1]), *extra),
    ]
    at = 8 + 2 + 12 * len(tags) + 4
    sizes = {3: "H", 4: "I"}
    long = [
        (tag, kind, values)
        for tag, kind, values in tags
        if struct.calcsize(sizes[kind]) * len(values) > 4
    ]
    data_at = at + sum(struct.calcsize(sizes[kind]) * len(values) for _, kind, values in long)
    table, content = b"", b""
    for tag, kind, values in tags:
        stored = struct.pack(
            f"<{len(values)}{sizes[kind]}", *([data_at] * strips if tag == 273 else values)
        )
        entry = stored.ljust(4, b"\0")
        if len(stored) > 4:
            entry = struct.pack("<I", at + len(content))
            content += stored
        table += struct.pack("<HHI", tag, kind, len(values)) + entry
    path.write_bytes(
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + b"\0\0\0\0" + content + data
    )


def write_by_pillow(path: Path, size: tuple[int, int], mode: str, **settings: Any) -> None:
    """By Pillow, which takes the memory: so in a process of its own."""
    process = multiprocessing.get_context("fork").Process(
        target=lambda: Image.new(mode, size).save(path, **settings), daemon=True
    )
    process.start()
    process.join(WAIT)
    process.kill()
    if process.exitcode:
        path.unlink(missing_ok=True)


def large_pictures(folder: Path) -> None:
    """Small files of 64 to 178 million pixels, in every format that can be small."""
    side = 13_000
    for name, depth, color in (
        ("gray1", 1, 0),
        ("gray8", 8, 0),
        ("gray16", 16, 0),
        ("rgb8", 8, 2),
        ("rgb16", 16, 2),
        ("palette", 4, 3),
        ("alpha8", 8, 4),
        ("rgba8", 8, 6),
        ("rgba16", 16, 6),
    ):
        write_png(folder / f"{name}.png", side, side, depth, color)
    write_png(folder / "interlaced_rgb8.png", side, side, 8, 2, interlaced=True)
    write_png(folder / "just_banded.png", 5_700, 5_700, 8, 6)
    write_png(folder / "interlaced_5000.png", 5_000, 5_000, 8, 6, interlaced=True)
    write_tiff(folder / "strips.tiff", side, side, 64)
    write_tiff(folder / "strips_rgba.tiff", side, side, 64, channels=4)
    write_tiff(folder / "strips_16_bits.tiff", side, side, 64, bits=16)
    write_tiff(folder / "one_strip.tiff", side, side, side)
    write_tiff(folder / "large_strips.tiff", side, side, 6_500)
    for name, size, mode, settings in (
        ("baseline.jpg", (side, side), "RGB", {}),
        ("gray.jpg", (side, side), "L", {}),
        ("baseline_5700.jpg", (5_700, 5_700), "RGB", {}),
        ("cmyk_5700.jpg", (5_700, 5_700), "CMYK", {}),
        ("progressive.jpg", (side, side), "RGB", {"progressive": True}),
        ("lossy.webp", (8_000, 8_000), "RGB", {}),
        ("lossless.webp", (8_000, 8_000), "RGBA", {"lossless": True, "method": 0}),
        ("large.gif", (side, side), "P", {}),
        ("bits.bmp", (side, side), "1", {}),
        ("large.avif", (8_000, 8_000), "RGB", {"speed": 10}),
        ("large.jp2", (8_000, 8_000), "RGB", {}),
    ):
        write_by_pillow(folder / name, size, mode, **settings)
    turned = Image.Exif()
    turned[0x0112] = 6
    write_by_pillow(folder / "turned_5700.jpg", (5_700, 5_700), "RGB", exif=turned)


def memory(folder: Path, labels: bool) -> list[dict[str, Any]]:
    """A row for each file of a folder."""
    rows = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        result, used, seconds = in_process(path)
        rows.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "outcome": result,
                "peak": used,
                "s": seconds,
            }
        )
        if labels and path.suffix in (".png", ".tiff"):
            result, used, seconds = in_process(path, images.read_labels)
            name = f"{path.name} as labels"
            rows.append(
                {
                    "file": name,
                    "bytes": path.stat().st_size,
                    "outcome": result,
                    "peak": used,
                    "s": seconds,
                }
            )
    return rows


# ---- mutations -------------------------------------------------------------------------------------------------------


def whole_pictures() -> dict[str, list[bytes]]:
    """Small pictures of each format, in several of its modes."""
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([x * 4, y * 5, (x + y) * 2], -1).astype(np.uint8)
    colors, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    alpha = Image.fromarray(np.dstack([pixels, pixels[..., 0]]))
    deep = Image.fromarray((x * 1000).astype(np.uint16))
    kinds: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "jpeg": [
            (colors, {"exif": exif}),
            (colors, {"progressive": True}),
            (colors.convert("L"), {}),
        ],
        "png": [
            (colors, {"exif": exif}),
            (alpha, {}),
            (colors.quantize(16), {}),
            (deep, {}),
            (colors.convert("1"), {}),
        ],
        "webp": [(colors, {"exif": exif}), (alpha, {"lossless": True})],
        "tiff": [
            (colors, {"exif": exif}),
            (alpha, {"compression": "tiff_deflate"}),
            (deep, {}),
            (colors, {"compression": "jpeg"}),
            (colors.convert("1"), {"compression": "group4"}),
        ],
        "bmp": [(colors, {}), (colors.quantize(16), {})],
        "gif": [(colors.quantize(16), {})],
    }
    return {
        format: [_saved(image, format, options) for image, options in rows]
        for format, rows in kinds.items()
    }


def _saved(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of damaged pictures; the same for the same seed."""
    chance, pictures = random.Random(seed), whole_pictures()
    for i in range(count):
        format = FORMATS[i % len(FORMATS)]
        content = bytearray(chance.choice(pictures[format]))
        done = []
        for _ in range(chance.choice((1, 1, 2, 4))):
            kind = chance.choice(
                ("flip", "byte", "cut", "end", "double", "number", "head", "other")
            )
            done.append(kind)
            _mutate(content, kind, chance, pictures)
        yield f"{i:05}-{'-'.join(done)}.{format}", bytes(content)


def _mutate(
    content: bytearray, kind: str, chance: random.Random, pictures: dict[str, list[bytes]]
) -> None:
    """Damage the content of a file in place."""
    at = chance.randrange(max(1, len(content)))
    near = chance.randrange(max(1, min(200, len(content))))  # where the header is
    length = chance.choice((1, 4, 40, 400))
    if kind == "flip" and content:
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[at : at + length] = chance.randbytes(length)
    elif kind == "cut":
        del content[at : at + length]
    elif kind == "end":
        del content[at:]
    elif kind == "double":
        content[at:at] = content[at : at + length]
    elif kind == "number":  # sizes and offsets are stored in two or four bytes, in either order
        content[near : near + 4] = struct.pack(
            chance.choice("<>") + "I", chance.choice((0, 1, 65535, 1 << 24, 0xFFFFFFFF))
        )
    elif kind == "head" and content:
        content[near] = chance.randrange(256)
    elif kind == "other":
        other = chance.choice(pictures[chance.choice(FORMATS)])
        content[at : at + length] = other[at : at + length]


def read_all(files: list[Path], results: Any) -> None:
    for path in files:
        results.put((path.name, None, 0.0))  # begun
        began = time.monotonic()
        results.put((path.name, outcome(path), time.monotonic() - began))


def survive(files: list[Path], wait: float = SECONDS) -> dict[str, tuple[str, float]]:
    """(outcome, seconds) of each file; a process that dies or stands still is blamed on its file, and replaced."""
    context = multiprocessing.get_context("fork")
    outcomes: dict[str, tuple[str, float]] = {}
    left = list(files)
    while left:
        results = context.SimpleQueue()
        process = context.Process(target=read_all, args=(left, results), daemon=True)
        process.start()
        current = left[0].name
        until = time.monotonic() + wait
        while len(outcomes) < len(files):
            if results.empty():
                if not process.is_alive() and results.empty():
                    outcomes[current] = f"RAW died with exit code {process.exitcode}", 0.0
                    break
                if time.monotonic() > until:
                    outcomes[current] = f"RAW hangs for {wait:.0f} s", wait
                    break
                time.sleep(0.002)
                continue
            name, result, seconds = results.get()
            current, until = name, time.monotonic() + wait
            if result is not None:
                outcomes[name] = result, seconds
        process.kill()
        process.join()
        left = [path for path in files if path.name not in outcomes]
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "badfiles"
    )
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    PREPROCESS(Image.new("RGB", (9, 9)))  # what the first call loads is baseline
    print(
        f"limit {LIMIT / 1e6:.0f} MB over {peak() / 1e6:.0f} MB, {options.mutations} mutations of "
        f"seed {options.seed}"
    )
    rows = (
        memory(options.data / "images", labels=False) if (options.data / "images").is_dir() else []
    )
    with tempfile.TemporaryDirectory() as folder:
        large_pictures(Path(folder))
        rows += memory(Path(folder), labels=True)
    for row in sorted(rows, key=lambda row: -row["peak"])[:40]:
        figures = f"{row['peak'] / 1e6:6.0f} MB {row['s']:5.1f} s {row['bytes']:>8} bytes"
        print(f"{figures}  {row['file'][:40]:40} {row['outcome'][:110]}")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, content in mutations(options.mutations, options.seed):
            files.append(Path(folder) / name)
            files[-1].write_bytes(content)
        outcomes = survive(files)
    kinds = Counter(result.partition(":")[0].partition(" ")[0] for result, _ in outcomes.values())
    slowest = max((seconds for _, seconds in outcomes.values()), default=0.0)
    raw = {name: result for name, (result, _) in outcomes.items() if result.startswith("RAW")}
    raw |= {row["file"]: row["outcome"] for row in rows if row["outcome"].startswith("RAW")}
    too_much = [row["file"] for row in rows if row["peak"] > LIMIT]
    print(f"mutations: {dict(kinds)}, slowest {slowest:.2f} s; raw: {raw or 'none'}")
    print(f"above the limit: {', '.join(too_much) or 'none'}")
    summary = {
        "files": len(rows), "peak_mb": round(max((row["peak"] for row in rows), default=0) / 1e6),
        "above_limit": too_much, "mutations": dict(kinds), "slowest_s": round(slowest, 2), "raw": raw,
    }  # fmt: skip
    print(json.dumps(summary))
    return 1 if raw or too_much else 0


if __name__ == "__main__":
    sys.exit(main())
