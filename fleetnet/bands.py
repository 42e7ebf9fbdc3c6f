"""Large PNG and TIFF files, a band of rows at a time: in the memory of a few rows.

Pillow decodes a whole picture at once. A PNG is one stream of rows, each of which builds on the one
above, so a band can be decoded from its part of the stream and the row before; a TIFF is a list of
strips (or rows of tiles) that know nothing of each other, so each is a small TIFF of its own.
Pillow's decoders do the work in both cases.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageFile

from .errors import DataError

PIECE = 1 << 20  # pixels of a band, about
METADATA = 1 << 22  # bytes of a PNG's chunks of metadata that are looked at
_PNG = b"\x89PNG\r\n\x1a\n"
_MAY_TURN = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that may hold an orientation

# of 16 bits a channel an array (rows, width) or (rows, width, channels)
Band = Image.Image | np.ndarray


def rows_of(width: int, height: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each band of a picture, from the top."""
    step = max(1, PIECE // max(1, width))
    for top in range(0, height, step):
        yield top, min(top + step, height)


# ---- PNG -----------------------------------------------------------------------------------------


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of its content, length) of each chunk of a PNG; ends where the file does."""
    place = len(_PNG)
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        yield kind, place + 8, length
        if kind == b"IEND":
            return
        place += length + 12


def png_metadata(file: BinaryIO) -> io.BytesIO | None:
    """A PNG of one pixel with the metadata of this one, from before and after its pixels.

    None where there is none.
    """
    place = file.tell()
    parts = [
        _chunk(kind, _content(file, start, length))
        for kind, start, length in png_chunks(file)
        if kind in _MAY_TURN and length <= METADATA
    ]
    file.seek(place)
    if not parts:
        return None
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixel = _chunk(b"IDAT", zlib.compress(b"\0\0"))
    return io.BytesIO(_PNG + head + b"".join(parts) + pixel + _chunk(b"IEND", b""))


def _content(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_bands(file: BinaryIO, image: ImageFile.ImageFile) -> Iterator[Band]:
    """The bands of a PNG that is not interlaced.

    `image` is the same file, opened by Pillow but not loaded.
    """
    width, height = image.size
    depth, color = _content(file, 24, 2)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row_bytes = (width * channels * depth + 7) // 8
    pixel_bytes = max(1, channels * depth // 8)  # which the filters of a row look back
    rawmode = image.tile[0].args
    stream = _Inflated(file)
    above = b"\0" * row_bytes
    for top, bottom in rows_of(width, height):
        rows = bottom - top
        filtered = stream.take(rows * (row_bytes + 1))
        raw = _unfiltered(b"\0" + above + filtered, rows + 1, row_bytes, pixel_bytes)[1:]
        above = raw[-1].tobytes()
        if depth == 16:
            values = raw.reshape(-1).view(">u2").astype(np.uint16)
            yield values.reshape((rows, width) if channels == 1 else (rows, width, channels))
            continue
        band = Image.frombytes(image.mode, (width, rows), raw.tobytes(), "raw", rawmode)
        if image.mode == "P" and image.palette is not None:
            band.putpalette(image.palette.palette, image.palette.rawmode or image.palette.mode)
        if "transparency" in image.info:
            band.info["transparency"] = image.info["transparency"]
        yield band


class _Inflated:
    """The rows of a PNG, still filtered, as they come out of its compressed chunks."""

    def __init__(self, file: BinaryIO):
        self.chunks = self._compressed(file)
        self.inflater = zlib.decompressobj()
        self.waiting = b""

    @staticmethod
    def _compressed(file: BinaryIO) -> Iterator[bytes]:
        places = itertools.dropwhile(lambda chunk: chunk[0] != b"IDAT", png_chunks(file))
        for kind, start, length in places:
            if kind != b"IDAT":
                return
            for offset in range(0, length, PIECE):
                block = _content(file, start + offset, min(PIECE, length - offset))
                if not block:
                    return
                yield block

    def take(self, count: int) -> bytes:
        """The next `count` bytes; `DataError` where the file ends before."""
        parts = []
        while count:
            self.waiting = self.waiting or next(self.chunks, b"")
            if not self.waiting or self.inflater.eof:
                raise DataError("image file is truncated")
            part = self.inflater.decompress(self.waiting, count)
            self.waiting = self.inflater.unconsumed_tail
            count -= len(part)
            parts.append(part)
        return b"".join(parts)


def _unfiltered(filtered: bytes, rows: int, row_bytes: int, pixel_bytes: int) -> np.ndarray:
    """Rows of a PNG's stream, each behind the number of its filter -> (rows, row_bytes) uint8.

    Pillow undoes the filters in a picture of any mode whose pixels have as many bytes. For 6 and 8
    bytes its only such modes keep one byte of two, so those are decoded twice.
    """
    stream = zlib.compress(filtered, 0)
    if pixel_bytes <= 4:
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[pixel_bytes]
        return _decoded(stream, mode, mode, row_bytes // pixel_bytes, rows).reshape(rows, row_bytes)
    mode = {6: "RGB", 8: "RGBA"}[pixel_bytes]
    halves = [
        _decoded(stream, mode, f"{mode};16{order}", row_bytes // pixel_bytes, rows)
        for order in "BL"
    ]
    return np.stack(halves, -1).reshape(rows, row_bytes)


def _decoded(stream: bytes, mode: str, rawmode: str, width: int, rows: int) -> np.ndarray:
    # (rows, width) or (rows, width, channels) uint8
    return np.asarray(Image.frombytes(mode, (width, rows), stream, "zip", (rawmode, False)))


# ---- TIFF ----------------------------------------------------------------------------------------

_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of whole numbers
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


class Tag(IntEnum):
    """Tags of a TIFF: of what its values are, and where they lie."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258  # of each band
    COMPRESSION = 259
    MEANING = 262  # of the values: gray, RGB, and others
    BIT_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    BANDS = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    PLANES = 284  # 1: the bands of a pixel lie beside each other; 2: a plane each
    PREDICTOR = 317
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    FORMAT = 339  # of each band: whole numbers, floats


_KEPT = {  # what decoders of one strip need to know
    *(
        254,
        256,
        258,
        259,
        262,
        266,
        277,
        284,
        292,
        293,
        317,
        320,
        322,
        323,
        332,
        338,
        339,
        347,
        512,
        513,
        514,
        515,
    ),
    *(519, 520, 521, 529, 530, 531, 532),
}
_READ = {  # what is read of a page
    *_KEPT,
    Tag.HEIGHT,
    Tag.STRIP_OFFSETS,
    Tag.ROWS_PER_STRIP,
    Tag.STRIP_BYTES,
    Tag.TILE_OFFSETS,
    Tag.TILE_BYTES,
    Tag.ORIENTATION,
}
# what a file begins with -> the order of the bytes of its numbers
_ORDERS: dict[bytes, Literal["<", ">"]] = {b"II": "<", b"MM": ">"}
Tags = dict[int, tuple[int, int, bytes]]  # tag -> type, count, values as stored


def tiff_bands(file: BinaryIO) -> Iterator[BinaryIO] | None:
    """Each strip (or row of tiles) of the first page, from the top, as a TIFF of its own.

    It is not turned. None for files that cannot be taken apart: of a single strip, of separate
    planes, or damaged.
    """
    try:
        numbers = TiffNumbers(file)
        if numbers.first(Tag.PLANES, 1) != 1:
            return None
        tiled = numbers.has(Tag.TILE_OFFSETS)
        offsets = numbers.all(Tag.TILE_OFFSETS if tiled else Tag.STRIP_OFFSETS)
        lengths = numbers.all(Tag.TILE_BYTES if tiled else Tag.STRIP_BYTES)
        height = numbers.first(Tag.HEIGHT)
        rows = numbers.first(Tag.TILE_HEIGHT if tiled else Tag.ROWS_PER_STRIP, height)
    except (KeyError, IndexError, struct.error):
        return None
    bands = -(-height // max(1, rows))
    if not 0 < rows < height or len(offsets) % bands or len(offsets) != len(lengths):
        return None
    across = len(offsets) // bands  # tiles in a row of them; one strip
    return (
        _small_tiff(
            file,
            numbers,
            offsets[i : i + across],
            lengths[i : i + across],
            rows,
            height - i // across * rows,
        )
        for i in range(0, len(offsets), across)
    )


def tiff_kind(file: BinaryIO) -> str:
    """What a TIFF has for each pixel, such as "6 bands of 8 bits"; empty where it does not say."""
    try:
        numbers = TiffNumbers(file)
        count, bits = numbers.first(Tag.BANDS, 1), numbers.first(Tag.BITS, 1)
    except (KeyError, IndexError, struct.error):
        return ""
    return f"{count} band{'s' if count > 1 else ''} of {bits} bit{'s' if bits > 1 else ''}"


class TiffNumbers:
    """The numbers in the head of a TIFF's first page, by tag; KeyError and struct.error as there."""

    def __init__(self, file: BinaryIO):
        start = _content(file, 0, 16)
        self.order = _ORDERS[start[:2]]
        self.tags = _tags(file, start, self.order)

    def has(self, tag: int) -> bool:
        return tag in self.tags

    def all(self, tag: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        if tag not in self.tags and default is not None:
            return default
        kind, count, content = self.tags[tag]
        return struct.unpack(f"{self.order}{count}{_TYPES[kind]}", content)

    def first(self, tag: int, default: int | None = None) -> int:
        return self.all(tag, None if default is None else (default,))[0]


def _tags(file: BinaryIO, start: bytes, order: str) -> Tags:
    """The tags of the first page of a TIFF, or of a BigTIFF, whose numbers are wider."""
    big = start[2:4] in (b"\x2b\0", b"\0\x2b")
    number, entry, inline = ("Q", "HHQ", 8) if big else ("I", "HHI", 4)
    (place,) = struct.unpack_from(order + number, start, 8 if big else 4)
    width = struct.calcsize(order + ("Q" if big else "H"))
    (count,) = struct.unpack(order + ("Q" if big else "H"), _content(file, place, width))
    size = struct.calcsize(order + entry) + inline
    table = _content(file, place + width, min(count, 4096) * size)
    tags: Tags = {}
    for at in range(0, len(table) - size + 1, size):
        tag, kind, values = struct.unpack_from(order + entry, table, at)
        length = values * _BYTES.get(kind, 1)
        if tag not in _READ:
            continue
        content = table[at + size - inline : at + size]
        if length > inline:
            (elsewhere,) = struct.unpack(order + number, content)
            content = _content(file, elsewhere, min(length, 1 << 26))
        tags[tag] = kind, values, content[:length]
    return tags


def _small_tiff(
    file: BinaryIO,
    numbers: TiffNumbers,
    offsets: tuple[int, ...],
    lengths: tuple[int, ...],
    rows: int,
    left: int,
) -> BinaryIO:
    """A TIFF of the strips or tiles at some places of a file.

    `left` is how many rows of the picture are left.
    """
    order = numbers.order
    kept = {tag: value for tag, value in numbers.tags.items() if tag in _KEPT}
    kept[Tag.HEIGHT] = 4, 1, struct.pack(order + "I", min(rows, left))
    places, sizes = Tag.TILE_OFFSETS, Tag.TILE_BYTES
    if not numbers.has(Tag.TILE_OFFSETS):
        places, sizes = Tag.STRIP_OFFSETS, Tag.STRIP_BYTES
        kept[Tag.ROWS_PER_STRIP] = 4, 1, struct.pack(order + "I", rows)
    kept[sizes] = 4, len(lengths), struct.pack(f"{order}{len(lengths)}I", *lengths)
    contents = (
        _content(file, offset, length) for offset, length in zip(offsets, lengths, strict=True)
    )
    return tiff_of(order, kept, places, lengths, contents)


def tiff_of(
    order: str, tags: Tags, places: Tag, lengths: Sequence[int], contents: Iterable[bytes]
) -> BinaryIO:
    """A TIFF with the contents of some strips or tiles, of these lengths, one behind the other.

    `tags` are all but `places`, the tag of where they begin.
    """
    unplaced = 4, len(lengths), b"\0" * 4 * len(lengths)
    data_at = len(_tiff_head(order, {**tags, places: unplaced}))
    starts = itertools.accumulate(lengths[:-1], initial=data_at)
    placed = 4, len(lengths), struct.pack(f"{order}{len(lengths)}I", *starts)
    whole = io.BytesIO()
    whole.write(_tiff_head(order, {**tags, places: placed}))
    for content in contents:
        whole.write(content)
    whole.seek(0)
    return whole


def _tiff_head(order: str, tags: Tags) -> bytes:
    """What stands before the strips or tiles of a TIFF of one page."""
    values_at = 8 + 2 + 12 * len(tags) + 4
    table, values = b"", b""
    for tag, (kind, count, content) in sorted(tags.items()):
        stored = content.ljust(4, b"\0")
        if len(content) > 4:
            stored = struct.pack(order + "I", values_at + len(values))
            values += content + b"\0" * (len(content) % 2)
        table += struct.pack(order + "HHI", tag, kind, count) + stored
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", len(tags)) + table + b"\0" * 4 + values
