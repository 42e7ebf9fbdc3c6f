"""Pictures of any number of channels: NumPy's .npy files, and TIFF files of bands that Pillow does not read.

    npy    (height, width), (height, width, channels) or (channels, height, width): which one, the
           shape says (`channels_first`)
    tiff   the first page, of 8 or 16 bits or floats, in strips or tiles, band by band or not

Nothing takes memory before its size is known: what a header promises is compared with the length of
the file, and pixels are read a band of rows at a time. A .npy file holds numbers only: Python
objects, which would run code, are refused.

Of a TIFF only the head is read here. To a decoder, rows of interleaved bands are the rows of a wider
picture of gray bytes, so Pillow's decoders do the work, strip by strip.
"""

import io
import math
import mmap
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from . import bands
from .bands import Tag
from .channels import MOST
from .errors import DataError

NPY = b"\x93NUMPY"
TIFF = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"
LARGEST_STRIP = 1 << 28  # bytes that one strip or tile of a TIFF may take, decoded
KINDS = "uint8, uint16, float16, float32, float64 or bool"
_DTYPES = "b1", "u1", "u2", "f2", "f4", "f8"
# Numbers of a TIFF: of compressions that see bytes, not bands (none, LZW, deflate, PackBits, zstd);
# of what the values mean (gray, RGB); of sample formats (whole numbers, floats).
_COMPRESSIONS = 1, 5, 8, 32773, 32946, 50000
_GRAY_OR_RGB = 1, 2
_WHOLE, _FLOAT = 1, 3
_DIFFERENCES = 2  # predictor: each value less the one to its left


@dataclass(frozen=True)
class Stack:
    """A picture in a file, with the rows as they are stored."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    rows: Callable[[], Iterator[np.ndarray]]  # from the top: (some, width, channels)
    shape: str  # as the file has it, for messages
    orientation: int = 1  # of EXIF
    is_tiff: bool = False


def stack_in(file: BinaryIO) -> Stack | None:
    """The stack in an opened file; None where it is neither a .npy file nor such a TIFF.

    Raises `DataError` for a damaged .npy file, and for one that holds no picture.
    """
    file.seek(0)
    start = file.read(8)
    if start.startswith(NPY):
        return _npy(file)
    return _tiff(file) if start[:4] in TIFF else None


# ---- NumPy ---------------------------------------------------------------------------------------


def channels_first(shape: Sequence[int]) -> bool:
    """Whether the first of three sides is the channels, not the last.

    Of two equal sides beside each other, which are height and width, the third is the channels;
    else they are the shorter of first and last, the last where these are equal.
    """
    first, middle, last = shape
    if first == middle != last:
        return False
    return middle == last != first or first < last


def _npy(file: BinaryIO) -> Stack:
    shape, fortran, dtype = _head(file)
    start = file.tell()
    shown = f"{dtype.name} {shape}"
    if dtype.hasobject or dtype.str[1:] not in _DTYPES:
        raise DataError(f"values of {dtype}; allowed: {KINDS}")
    if len(shape) not in (2, 3) or min(shape, default=0) < 1:
        raise DataError(
            f"its shape is {shape}; allowed: (height, width), (height, width, channels) or "
            "(channels, height, width)"
        )
    values, length = math.prod(shape), file.seek(0, os.SEEK_END)
    if start + values * dtype.itemsize > length:
        raise DataError(
            f"it is cut short: {shown} needs {start + values * dtype.itemsize} bytes, it has "
            f"{length}"
        )
    whole = np.ndarray(shape, dtype, _buffer(file), start, order="F" if fortran else "C")
    if len(shape) == 2:
        whole = whole[..., None]
    elif channels_first(shape):
        whole = whole.transpose(1, 2, 0)
    height, width, channels = whole.shape

    def rows() -> Iterator[np.ndarray]:
        for top, bottom in bands.rows_of(width * channels, height):
            yield np.ascontiguousarray(whole[top:bottom])

    return Stack(height, width, channels, dtype, rows, shown)


def _head(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type, of the head that `np.save` writes."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise DataError(f"a .npy file of version {version}; allowed: (1, 0), (2, 0)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a head that Python 2 wrote
            return readers[version](file)
    except Exception as error:  # it is parsed as Python's literals
        raise DataError(f"its header is damaged: {error}") from error


def _buffer(file: BinaryIO) -> mmap.mmap | memoryview:
    """The bytes of a file, of which only those that are used are read."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except io.UnsupportedOperation:  # it is in memory, or inside of another file
        file.seek(0)
        return memoryview(file.read())


# ---- TIFF ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Where the values of a TIFF lie."""

    order: Literal["<", ">"]  # of bytes
    height: int
    width: int
    bands: int
    bits: int
    format: int
    compression: int
    differences: bool
    planes: int  # 1 where bands are interleaved, else as many as bands
    rows: int  # of a strip or tile
    columns: int  # of a tile; of a strip the width
    tiled: bool
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def interleaved(self) -> int:
        """Bands that lie beside each other."""
        return self.bands // self.planes

    @property
    def across(self) -> int:
        """Tiles beside each other."""
        return -(-self.width // self.columns)

    @property
    def down(self) -> int:
        return -(-self.height // self.rows)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype({8: "u1", 16: "u2", 32: "f4"}[self.bits])

    def is_read(self) -> bool:
        kind = (self.format, self.bits) in ((_WHOLE, 8), (_WHOLE, 16), (_FLOAT, 32))
        sides = min(self.height, self.width, self.rows, self.columns) > 0
        return (
            kind
            and sides
            and 1 <= self.bands <= MOST
            and self.compression in _COMPRESSIONS
            and not (self.differences and self.format == _FLOAT)
            and len(self.offsets) == len(self.lengths) == self.planes * self.down * self.across
        )


def _tiff(file: BinaryIO) -> Stack | None:
    try:
        layout, orientation = _layout(file)
    except (KeyError, IndexError, struct.error):
        return None
    if layout is None or not layout.is_read():
        return None

    def rows() -> Iterator[np.ndarray]:
        for down in range(layout.down):
            yield _row_of_tiles(file, layout, down)

    shape = bands.tiff_kind(file)
    height, width, count = layout.height, layout.width, layout.bands
    return Stack(height, width, count, layout.dtype, rows, shape, orientation, is_tiff=True)


def _layout(file: BinaryIO) -> tuple[_Layout | None, int]:
    """Where values lie, None where bands are no channels, and the orientation."""
    numbers = bands.TiffNumbers(file)
    if numbers.first(Tag.MEANING) not in _GRAY_OR_RGB or numbers.first(Tag.BIT_ORDER, 1) != 1:
        return None, 1
    height, width = numbers.first(Tag.HEIGHT), numbers.first(Tag.WIDTH)
    count = numbers.first(Tag.BANDS, 1)
    bits, formats = set(numbers.all(Tag.BITS, (1,))), set(numbers.all(Tag.FORMAT, (_WHOLE,)))
    if len(bits) != 1 or len(formats) != 1:
        return None, 1
    tiled = numbers.has(Tag.TILE_OFFSETS)
    if tiled:
        rows, columns = numbers.first(Tag.TILE_HEIGHT), numbers.first(Tag.TILE_WIDTH)
    else:
        rows, columns = min(height, numbers.first(Tag.ROWS_PER_STRIP, height)), width
    predictor = numbers.first(Tag.PREDICTOR, 1)
    layout = _Layout(
        order=numbers.order,
        height=height,
        width=width,
        bands=count,
        bits=bits.pop(),
        format=formats.pop(),
        compression=numbers.first(Tag.COMPRESSION, 1),
        differences=predictor == _DIFFERENCES,
        planes=count if numbers.first(Tag.PLANES, 1) == 2 else 1,
        rows=rows,
        columns=columns,
        tiled=tiled,
        offsets=numbers.all(Tag.TILE_OFFSETS if tiled else Tag.STRIP_OFFSETS),
        lengths=numbers.all(Tag.TILE_BYTES if tiled else Tag.STRIP_BYTES),
    )
    return (layout if predictor in (1, _DIFFERENCES) else None), numbers.first(Tag.ORIENTATION, 1)


def _row_of_tiles(file: BinaryIO, layout: _Layout, down: int) -> np.ndarray:
    """The rows of the picture in one strip, or one row of tiles: (rows, width, bands)."""
    rows = min(layout.rows, layout.height - down * layout.rows)
    whole = np.empty((rows, layout.width, layout.bands), layout.dtype)
    for plane in range(layout.planes):
        first = plane * layout.interleaved
        for across in range(layout.across):
            index = (plane * layout.down + down) * layout.across + across
            values = _decoded(file, layout, index, layout.rows if layout.tiled else rows)
            left = across * layout.columns
            columns = min(layout.columns, layout.width - left)
            part = whole[:, left : left + columns, first : first + layout.interleaved]
            part[:] = values[:rows, :columns]
    return whole


def _decoded(file: BinaryIO, layout: _Layout, index: int, rows: int) -> np.ndarray:
    """The values of one strip or tile, (rows, columns, interleaved bands)."""
    wide = layout.columns * layout.interleaved * layout.dtype.itemsize
    needed = rows * wide
    if needed > LARGEST_STRIP:
        raise DataError(
            f"a strip of {needed / 1e6:.0f} MB; allowed: {LARGEST_STRIP / 1e6:.0f} MB. Save it in "
            "strips or tiles of fewer rows, or as .npy"
        )
    file.seek(layout.offsets[index])
    content = file.read(layout.lengths[index])
    with Image.open(_gray_tiff(layout, wide, rows, content), formats=("TIFF",)) as image:
        values = np.asarray(image).view(layout.dtype.newbyteorder(layout.order))
    values = values.astype(layout.dtype).reshape(rows, layout.columns, layout.interleaved)
    return np.cumsum(values, 1, values.dtype) if layout.differences else values


def _gray_tiff(layout: _Layout, width: int, rows: int, content: bytes) -> BinaryIO:
    """A TIFF of one strip of gray bytes, with the content of a strip or tile."""
    numbers = {
        Tag.WIDTH: width,
        Tag.HEIGHT: rows,
        Tag.BITS: 8,
        Tag.COMPRESSION: layout.compression,
        Tag.MEANING: 1,
        Tag.BANDS: 1,
        Tag.ROWS_PER_STRIP: rows,
        Tag.STRIP_BYTES: len(content),
    }
    order = layout.order
    tags: bands.Tags = {
        tag: (4, 1, struct.pack(order + "I", value)) for tag, value in numbers.items()
    }
    return bands.tiff_of(order, tags, Tag.STRIP_OFFSETS, [len(content)], [content])
