"""Pictures, as users have them: any file or array in, upright 8 bits a channel out, or a `DataError`.

    load      a path, a member of an archive, the bytes of a file, a PIL image or an array -> `Picture`
    look      the same, but of a JPEG only the head is decoded -> `Encoded`
    read      its image alone, for Pillow
    measure   the size of that picture, from the head of the file

Nothing here hangs, and no file makes it spend memory before its size is known: only regular files
are opened, only by decoders of photographs and scans (not PostScript and the like), and the pixel
count of the header is checked first. A picture of more than `LARGE` pixels is reduced while it is
decoded, where its format allows it.
"""

import errno
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from . import bands, jpeg
from .bands import Band
from .channels import MOST, RGB, colors_of
from .errors import DataError, UsageError
from .fetching import receive
from .reading import Member, open_regular, read_if
from .stacks import TIFF, Stack, stack_in

MAX_PIXELS = 178_956_970  # 512 MiB at 3 bytes: where Pillow's own check ends in an error
LARGE = 1 << 25  # pixels; a picture with more is reduced by a whole number, so that 128 MiB hold it
BANDED = 1 << 24  # pixels from which PNG and TIFF are decoded in bands
# bytes that decoding may take whatever the file; beyond, as many as the next line allows
MEMORY = 256 << 20
SPENT = 64  # bytes of memory for each byte of the file
LONGEST = 1 << 28  # bytes of a JPEG that are read at once
# content decides, not the name
FORMATS = "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", "AVIF"
EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".heic", ".heif", ".hif"),
}
# arrays; a folder of pictures may hold others beside them, see `find_images`
STACKS = {".npy"}
# left by file managers, systems and NAS boxes; names that begin with a dot too
IGNORED = {
    *("thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir", "#recycle", "@recycle", "@tmp"),
}

_ORIENTATION = 0x0112  # the tag of EXIF
# EXIF orientation -> what makes the picture upright: whether rows become columns, then the steps
# through both, -1 for backwards; other values mean nothing
_UPRIGHT = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
# bytes of memory for each pixel that a decoder takes besides the picture itself
_DECODERS = {"WEBP": 8, "AVIF": 12, "JPEG2000": 16, "GIF": 1, "BMP": 1, "PPM": 4, "HEIF": 12}
# What a HEIC file says of itself behind its first 8 bytes. AVIF files may say mif1 too.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Of damaged metadata that we do not use; Pillow warns while it decodes, where other threads may be
# at work.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
_OPENING = threading.Lock()  # warnings.catch_warnings is not safe with threads
# a process must not begin with a lock that a thread it does not have would release
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_OPENING.acquire, after_in_parent=_OPENING.release, after_in_child=_OPENING.release
    )

File = str | Path | Member | bytes
Source = File | Image.Image | np.ndarray
Range = tuple[float, float]
Arguments = tuple[Any, ...] | str | None  # of a decoder of Pillow; the mode of the pixels is first


def visible(pixels: np.ndarray) -> Image.Image:
    """What an eye sees of pixels (rows, columns, channels) uint8, in RGB: gray or the first three."""
    colors = colors_of(pixels.shape[2])
    seen = np.ascontiguousarray(pixels[..., :colors])
    return Image.fromarray(seen if colors == RGB else seen.repeat(RGB, axis=2))


class Picture(NamedTuple):
    """An upright picture.

    Of a reduced copy, as of every picture beyond `LARGE` pixels, only the size is the picture's
    own.
    """

    pixels: np.ndarray  # (rows, columns, channels) uint8: gray, RGB, or more
    height: int
    width: int

    @property
    def image(self) -> Image.Image:
        """What an eye sees of it, to draw on."""
        return visible(self.pixels)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.pixels.size

    def decoded(self, by: int = 1) -> "Picture":
        """Itself, whatever `by` is: as `Encoded.decoded`."""
        return self


class Encoded(NamedTuple):
    """An upright picture in a JPEG of which the head alone was read and checked."""

    content: bytes
    height: int
    width: int
    orientation: int  # of EXIF
    gray: bool
    name: str  # for messages
    channels: int = RGB  # that are wanted

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.content)

    def decoded(self, by: int = 1) -> Picture:
        """The picture, shrunk `by` 1, 2, 4 or 8, more if it is large; `DataError` as of `load`."""
        while self.height * self.width > LARGE * by * by:
            by *= 2
        stored = (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)
        pixels = jpeg.decode(self.content, stored, gray=self.gray, by=by)
        if pixels is None or pixels.shape[2] != self.channels:
            with _errors_of(self.name):
                pixels = self._by_pillow(by) if pixels is None else pixels
                pixels = brought_to(pixels, self.channels, "a JPEG")
        return Picture(_upright(pixels, self.orientation), self.height, self.width)

    def _by_pillow(self, by: int) -> np.ndarray:
        with io.BytesIO(self.content) as file:
            image = _open(file)
            if by > 1:
                # by the same decoder, which averages, and knows halves, quarters and eighths
                image.draft(image.mode, (image.width // by, image.height // by))
            return _assembled(_bands(file, image), image.size, None, True)


class OtherChannels(DataError):
    """A picture whose number of channels is not the wanted one, nor can be made that."""


def load(
    source: Source, values: Range | None = None, channels: str = "RGB", count: int = RGB
) -> Picture:
    """The picture in whatever form it comes: the same pixels of each.

    `source` is the path of a file (its first frame counts), a member of an archive, the bytes of a
    file, a PIL image, or an array: (height, width) or (height, width, 1) gray, (..., 2) gray and
    alpha, (..., 3) colors in the order `channels`, "RGB" or "BGR", or (..., 4) colors and alpha; of
    bool, uint8, uint16, or floats from 0 to 1.

    EXIF orientation is applied, to PIL images as well. Transparent pixels are laid on white; the
    fourth band of a TIFF only if it is transparency by its values: if at least half of those above
    zero are the largest. Color profiles are not applied. `values` is the range of values that
    becomes 0 to 255, of pictures with more than 8 bits a channel (what lies outside is cut): unless
    given, all of 16 bits, and floats from 0 to 1, outside of which is an error.

    `count` is the number of channels that are wanted. Colors become gray, and gray becomes colors;
    of two channels, and of four and more, a picture has to have as many itself, which are then as
    they are stored: alpha too. Such pictures are PNG, TIFF and .npy files (see `stacks`), and
    arrays.

    Raises `DataError`, naming the file and the reason, for whatever is no picture, is damaged or
    truncated, has more than `MAX_PIXELS`, needs far more memory than its file has bytes, or cannot
    be opened; `UsageError` for other types.
    """
    return look(source, values, channels, count).decoded()


def look(
    source: Source, values: Range | None = None, channels: str = "RGB", count: int = RGB
) -> Picture | Encoded:
    """As `load`, but a JPEG waits to be decoded, at the scale that is wanted.

    Raises as `load` does; of a JPEG damaged behind its head, `Encoded.decoded` raises.
    """
    if channels not in ("RGB", "BGR"):
        raise UsageError(
            f"channels is {channels!r}; allowed: 'RGB' or 'BGR', the order of colors in an array"
        )
    if not isinstance(source, (str, Path, Member, bytes, Image.Image, np.ndarray)):
        raise UsageError(
            "a picture is a path, the bytes of a file, a PIL image, or an array (height, width, "
            f"3), not {type(source).__name__}"
        )
    with _errors_of(_name(source), source):
        if isinstance(source, np.ndarray):
            return _of_array(source, values, channels, count)
        if isinstance(source, Image.Image):
            return _of_image(source, values, count)
        content = _content_of_jpeg(source)
        if content is not None:
            return _of_jpeg(content, _name(source), values, count)
        with _opened(source) as file:
            stack = _stack(file, count)
            if stack is not None:
                return _of_stack(stack, values, count)
            return _of_file(file, _open(file), values, count)


@contextmanager
def _errors_of(name: str, source: Source = b"", what: str = "image") -> Iterator[None]:
    """Whatever is raised inside becomes a `DataError` about the image, labels ... of this name."""
    try:
        yield
    except Exception as error:  # decoders of damaged files raise nearly anything
        kind = OtherChannels if isinstance(error, OtherChannels) else DataError
        raise kind(f"cannot read {what} {name}: {_reason(error, source)}") from error


def _opened(file: File) -> BinaryIO:
    if isinstance(file, bytes):
        return io.BytesIO(file)
    return file.open() if isinstance(file, Member) else open_regular(file)


def read(source: Source, values: Range | None = None) -> Image.Image:
    """The image of `load` for Pillow: upright RGB, 8 bits a channel, of at most `LARGE` pixels."""
    return load(source, values).image


def measure(source: Source) -> tuple[int, int]:
    """(width, height) of a picture, upright; of a file from its head. Raises as `load` does."""
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2] if source.ndim in (2, 3) else (0, 0)
        if not height * width:
            raise DataError(f"cannot read image {_name(source)}: its shape is {source.shape}")
        return width, height
    if isinstance(source, Image.Image):
        return source.size[::-1] if _orientation(source) >= 5 else source.size
    return examine(source)[0]


def examine(path: File) -> tuple[tuple[int, int], int]:
    """(width, height) of the picture in a file, upright, and its EXIF orientation, 1 to 8.

    Raises as `load` does. Orientations from 5 on swap the sides: the file itself stores (height,
    width).
    """
    with _errors_of(_name(path), path), _opened(path) as file:
        stack = _stack(file)
        if stack is not None:
            size, turned = (stack.width, stack.height), _checked(stack.orientation)
            return (size[::-1] if turned >= 5 else size), turned
        image = _open(file)
        orientation = _stored_orientation(file, image)
        # Pillow gives the size of a TIFF as turned already
        swapped = orientation >= 5 and image.format != "TIFF"
        return (image.size[::-1] if swapped else image.size), orientation


def extension_of(path: File) -> str:
    """The usual extension of a file's format, as ".jpg", by its content; raises as `load` does."""
    usual = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic"}
    with _errors_of(_name(path), path), _opened(path) as file:
        stack = _stack(file)
        if stack is not None:
            return ".tif" if stack.is_tiff else ".npy"
        name = _open(file).format or ""
        return usual.get(name, f".{name.lower()}")


def thumbnail(path: File, side: int) -> np.ndarray:
    """The picture in a file as gray levels, (side, side) uint8, to compare it with others; raises as `load` does.

    It is as stored, not turned upright. A JPEG is decoded at an eighth where that is enough.
    """
    with _errors_of(_name(path), path), _opened(path) as file:
        image = _small(file, 4 * side)
        return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BOX))


def _small(file: BinaryIO, side: int) -> Image.Image:
    """The picture in an opened file; of a JPEG it may be a smaller one, but not below `side`."""
    stack = _stack(file)
    if stack is not None:
        values = None if stack.dtype == np.uint8 else _extremes_of(stack.rows())
        return _of_stack(stack, values, stack.channels).image
    opened = _open(file)
    if opened.format not in ("JPEG", "MPO"):
        return _of_file(file, opened, None).image
    _check_memory(opened, file)
    opened.draft("L", (side, side))
    return opened


def value_range(paths: Sequence[Path | Member], look: int = 64) -> tuple[Range | None, str]:
    """The range of values that the pictures of a data set have, for `load`, and why.

    The reason is a sentence. Up to `look` files, evenly spread, are opened, and those of more than
    8 bits a channel read. Whole numbers range from 0 to the largest of 8, 9, ... 16 bits; (None,
    "") where they take all of 16 bits, where floats keep to 0 to 1, and where there are none of
    these.
    """
    some = paths[:: -(-len(paths) // look) or 1]
    low, high = math.inf, -math.inf
    deep = 0  # pictures of more than 8 bits
    floats = False
    for path in some:
        try:
            extremes = _extremes(path)
        except Exception:  # damaged files are named where they are read as samples
            continue
        if extremes is not None:
            low = min(low, extremes[0])
            high = max(high, extremes[1])
            floats = floats or extremes[2]
            deep += 1
    usual = floats and low >= 0 and high <= 1
    if not deep or usual or not math.isfinite(low) or not low < high:
        return None, ""
    values: Range = (low, high)
    if not floats and low >= 0 and high <= 65535:
        values = 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    if values == (0.0, 65535.0):
        return None, ""
    kind = "floats" if floats else "more than 8 bits"
    why = (
        f"{deep} of {len(some)} pictures looked at have {kind}, with values from {low:g} to "
        f"{high:g}"
    )
    return values, why


def _extremes(path: File) -> tuple[float, float, bool] | None:
    """(smallest, largest, whether floats) of a picture of more than 8 bits; None of others."""
    with _opened(path) as file:
        stack = _stack(file)
        if stack is not None:
            is_deep = stack.dtype not in (np.uint8, np.bool_)
            return (*_extremes_of(stack.rows()), stack.dtype.kind == "f") if is_deep else None
        image = _open(file)
        if not _is_deep(image):
            return None
        extremes = []
        for band in _bands(file, image):
            values = band if isinstance(band, np.ndarray) else np.asarray(band)
            has_alpha = values.ndim == 3 and values.shape[-1] in (2, 4)
            colors = values[..., :-1] if has_alpha else values
            extremes.append((float(colors.min()), float(colors.max())))
        lows, highs = zip(*extremes, strict=True)
        return min(lows), max(highs), values.dtype.kind == "f"


def _extremes_of(parts: Iterable[np.ndarray]) -> Range:
    """The smallest and the largest value of all."""
    lows, highs = zip(*((float(part.min()), float(part.max())) for part in parts), strict=True)
    return min(lows), max(highs)


def read_labels(path: File, colors: dict[tuple[int, int, int], int] | None = None) -> np.ndarray:
    """The label map in an image file: (height, width) uint8, as stored.

    Of a picture with a palette these are the indices. `colors` gives the label of each color, for
    files in RGB, and for gray ones where all of these colors are gray. Raises `DataError`, naming
    the file and the reason, for what `load` refuses, values above 255, JPEG, colors without
    `colors` (but three equal channels are indices), a color that is not in them, and a palette
    whose colors they call otherwise than its indices.
    """
    with _errors_of(_name(path), path, "labels"), _opened(path) as file:
        image = _open(file)
        if image.format == "JPEG":
            raise DataError("labels are in a JPEG, which changes them; save them as PNG")
        width, height = image.size
        labels = np.empty((height, width), np.uint8)
        row = 0
        for band in _bands(file, image):
            part = _labels(band, colors)
            labels[row : row + len(part)] = part
            row += len(part)
        if image.format == "GIF":
            return _of_gif(image, labels, colors)
        if colors and image.mode == "P":
            _check_palette(image, labels, colors)
        elif colors and not image.mode.startswith("RGB"):
            by_gray = _of_gray(labels * 255 if image.mode == "1" else labels, colors)
            labels = labels if by_gray is None else by_gray
        return labels


def read_ids(path: str | Path) -> np.ndarray:
    """The number of the object of each pixel in an image file: (height, width) int64, 0 where none is.

    Gray and palette files hold numbers, of up to 16 bits, files in color one color an object, black
    for none. 255 in a palette is the border that VOC draws around objects: none. Raises
    `DataError` for what `load` refuses, and JPEG.
    """
    with _errors_of(_name(path), path, "mask"), open_regular(path) as file:
        image = _open(file)
        if image.format == "JPEG":
            raise DataError("masks are in a JPEG, which changes them; save them as PNG")
        ids = np.concatenate([_numbers(band) for band in _bands(file, image)])
        if image.mode == "P":
            ids[ids == 255] = 0
        return ids


def _numbers(band: Band) -> np.ndarray:
    """One number for each pixel of a band, whatever it is stored as; alpha is passed over."""
    if isinstance(band, Image.Image) and band.mode not in ("1", "L", "P", "LA", "PA", "I", "I;16"):
        band = band.convert("RGB")
    values = np.asarray(band).astype(np.int64)
    if values.ndim == 2:
        return values
    if values.shape[2] in (2, 4):
        values = values[..., :-1]
    return values @ np.array([1 << 32, 1 << 16, 1])[-values.shape[2] :]


def _labels(band: Band, colors: dict[tuple[int, int, int], int] | None) -> np.ndarray:
    if isinstance(band, Image.Image):
        if band.mode in ("RGB", "RGBA"):
            return _of_colors(np.asarray(band.convert("RGB")), colors)
        if band.mode not in ("1", "L", "P", "LA", "PA") and not band.mode.startswith("I"):
            raise DataError(
                f"labels in mode {band.mode}; allowed: gray or palette of 8 bits, gray "
                "of 16 bits, RGB"
            )
        has_alpha = band.mode in ("LA", "PA")
        band = np.asarray(band)
        if has_alpha:  # (height, width, 2)
            band = band[..., 0]
    if band.ndim == 3:
        raise DataError(
            "labels of 16 bits a color; allowed: gray or palette of 8 bits, gray of 16 bits, RGB"
        )
    if band.min() < 0 or band.max() > 255:
        raise DataError(f"values from {band.min()} to {band.max()}; at most 255")
    return band.astype(np.uint8)


def _of_colors(pixels: np.ndarray, colors: dict[tuple[int, int, int], int] | None) -> np.ndarray:
    if not colors and (pixels == pixels[..., :1]).all():
        # three equal channels, as cv2.imwrite makes of one
        return pixels[..., 0].astype(np.uint8)
    if not colors:
        raise DataError(
            "labels are colors, and there is no color map that says what they mean; "
            "allowed: indices"
        )
    codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    labels_of_codes = ((r << 16 | g << 8 | b, label) for (r, g, b), label in colors.items())
    table = np.array(sorted(labels_of_codes), np.uint32)  # (colors, 2), by code
    rows = np.minimum(np.searchsorted(table[:, 0], codes), len(table) - 1)
    strange = codes[table[rows, 0] != codes]
    if strange.size:
        color = [int(strange[0]) >> shift & 255 for shift in (16, 8, 0)]
        raise DataError(
            f"{strange.size} pixels are of colors that the color map does not have, as {color}"
        )
    return table[rows, 1].astype(np.uint8)


def _of_gray(values: np.ndarray, colors: dict[tuple[int, int, int], int]) -> np.ndarray | None:
    """Labels of gray values by the color map.

    None unless all of its colors are gray and it has these values.
    """
    grays = {r: label for (r, g, b), label in colors.items() if r == g == b}
    there = np.unique(values).tolist()
    if len(grays) < len(colors) or any(value not in grays for value in there):
        return None
    indices = set(grays.values()) - {255}  # 255 is no class
    if all(value in indices for value in there) and any(grays[value] != value for value in there):
        raise DataError(
            f"gray values {there} may be indices or colors of the color map, which "
            "differ; save it as RGB"
        )
    return np.array([grays.get(value, 0) for value in range(max(there) + 1)], np.uint8)[values]


def _of_gif(
    image: Image.Image, indices: np.ndarray, colors: dict[tuple[int, int, int], int] | None
) -> np.ndarray:
    """The labels in a GIF, whose writers choose the indices: by its colors, or its gray values.

    Without a color map, black and white alone are one bit, and other colors go by their indices.
    """
    grays = [(value,) * 3 for value in range(256)]
    palette = np.array((image.mode == "P" and _palette(image)) or grays, np.uint8)
    pixels = palette[np.minimum(indices, len(palette) - 1)]
    if colors:
        return _of_colors(pixels, colors)
    if not (pixels == pixels[..., :1]).all():
        return indices
    gray = pixels[..., 0]
    is_one_bit = set(np.unique(gray).tolist()) <= {0, 255}
    return gray // 255 if is_one_bit else gray


def _check_palette(
    image: Image.Image, labels: np.ndarray, colors: dict[tuple[int, int, int], int]
) -> None:
    """`DataError` where the color map gives a color of the palette another class than its index."""
    palette = _palette(image)
    for index in np.unique(labels).tolist():
        color = palette[index] if index < len(palette) else None
        label = index if color is None else colors.get(color, index)
        if label != index:
            raise DataError(
                f"the palette shows index {index} in {list(color or ())}, which the color map "
                f"gives label {label}; save it as RGB to go by colors, or rename the color map to "
                "go by indices"
            )


def _palette(image: Image.Image) -> list[tuple[int, int, int]]:
    """The colors of a picture's palette, also of one that was read in bands, not by Pillow."""
    raw = image.palette
    if raw is None or not isinstance(raw.palette, bytes | bytearray):
        return []
    layout, values = raw.rawmode or raw.mode, np.frombuffer(bytes(raw.palette), np.uint8)
    if layout == "RGB;L":  # all red, all green, all blue
        values = values.reshape(3, -1).T
    elif layout in ("RGB", "RGBA"):
        values = values[: len(values) // len(layout) * len(layout)].reshape(-1, len(layout))[:, :3]
    else:
        return []
    return [(r, g, b) for r, g, b in values.tolist()]


def fetch(address: str, limit: int = 64 << 20, seconds: float = 60.0) -> bytes:
    """The bytes of a file at an http or https address, which a user gave; nothing is kept.

    Raises `DataError` for more than `limit` bytes, for an answer that takes longer than `seconds`
    in all, and for whatever the server or the way to it refuses.
    """
    from http.client import HTTPException

    content = io.BytesIO()
    try:
        receive(address, content, limit, seconds, silence=min(seconds, 20.0))
    except (HTTPException, OSError, ValueError) as error:
        raise DataError(
            f"cannot fetch {address!r}: {str(error) or type(error).__name__}"
        ) from error
    return content.getvalue()


# ---- forms of a picture ------------------------------------------------------------------------


def _content_of_jpeg(source: File) -> bytes | None:
    """All of a JPEG that is not too long to be read at once; None for any other file."""
    if isinstance(source, str | Path):
        return read_if(source, jpeg.START, LONGEST)
    if isinstance(source, bytes):
        is_jpeg = source.startswith(jpeg.START) and len(source) <= LONGEST
        return source if is_jpeg else None
    with source.open() as file:
        is_jpeg = file.read(len(jpeg.START)) == jpeg.START
        if not is_jpeg or file.seek(0, os.SEEK_END) > LONGEST:
            return None
        file.seek(0)
        return file.read()


def _of_jpeg(content: bytes, name: str, values: Range | None, count: int) -> Picture | Encoded:
    """A JPEG, which waits to be decoded unless it is of a kind that Pillow alone reads."""
    head = jpeg.head(content)
    if head is not None and head.height * head.width <= MAX_PIXELS:
        return Encoded(content, head.height, head.width, 1, head.gray, name, count)
    with io.BytesIO(content) as file:
        image = _open(file)
        if image.mode not in ("L", "RGB"):
            return _of_file(file, image, values, count)
        _check_memory(image, file)
        orientation, (width, height) = _orientation(image), image.size
    if orientation >= 5:
        height, width = width, height
    return Encoded(content, height, width, orientation, image.mode == "L", name, count)


def _stack(file: BinaryIO, count: int = RGB) -> Stack | None:
    """A .npy file, or a TIFF of which all bands are wanted as they are, or that Pillow does not read."""
    stack = stack_in(file)
    if stack is None:
        return None
    if stack.is_tiff and count in (1, RGB):
        with suppress(UnidentifiedImageError):
            _open(file)
            return None
    if stack.height * stack.width > MAX_PIXELS:
        raise DataError(
            f"{stack.width}x{stack.height} pixels are more than the limit of {MAX_PIXELS}"
        )
    if stack.height * stack.width * stack.channels > RGB * MAX_PIXELS:
        raise DataError(
            f"{stack.width}x{stack.height} pixels of {stack.channels} channels are more values "
            f"than the limit of {RGB * MAX_PIXELS}"
        )
    return stack


def _of_stack(stack: Stack, values: Range | None, count: int) -> Picture:
    _check_count(stack.channels, count, stack.shape)
    parts = (_flat_eight_bits(rows, values) for rows in stack.rows())
    pixels = brought_to(_gathered(parts, (stack.width, stack.height)), count, stack.shape)
    return _upright_picture(pixels, _checked(stack.orientation), stack.height, stack.width)


def _of_file(
    file: BinaryIO, image: ImageFile.ImageFile, values: Range | None, count: int = RGB
) -> Picture:
    """The picture of an opened file; `image` is what Pillow made of its head."""
    laid = True
    if image.format == "TIFF" and image.has_transparency_data:
        laid = _is_transparency(_bands(file, image))
        image = _open(file)
    orientation = _stored_orientation(file, image)
    width, height = stored = image.size
    if image.format == "TIFF" and (not _in_bands(image) or bands.tiff_bands(file) is None):
        orientation = 1  # Pillow turns it when it loads it, and gives its size as turned already
    elif image.format == "TIFF" and orientation >= 5:
        width, height = stored = height, width  # of the rows in the file
    if image.format in ("JPEG", "MPO") and width * height > LARGE:
        _check_memory(image, file)
        # by its own decoder, which averages as well, and knows halves, quarters and eighths
        factor = 1 << math.ceil(math.log2(_factor(width, height)))
        image.draft(image.mode, (width // factor, height // factor))
        stored = image.size
    pixels = _of_bands(_bands(file, image), stored, values, laid, count)
    return _upright_picture(pixels, orientation, height, width)


def _of_image(image: Image.Image, values: Range | None, count: int) -> Picture:
    image.load()
    orientation, (width, height) = _orientation(image), image.size
    laid = not (image.format == "TIFF" and image.has_transparency_data) or _is_transparency(
        _parts(image)
    )
    pixels = _of_bands(_parts(image), image.size, values, laid, count)
    return _upright_picture(pixels, orientation, height, width)


def _upright_picture(pixels: np.ndarray, orientation: int, height: int, width: int) -> Picture:
    """A picture of pixels as stored; height and width are those of the stored one too."""
    upright = _upright(pixels, orientation)
    return Picture(upright, width, height) if orientation >= 5 else Picture(upright, height, width)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (rows, columns, channels) as stored, turned."""
    if orientation not in _UPRIGHT:
        return pixels
    swaps, rows, columns = _UPRIGHT[orientation]
    turned = pixels.swapaxes(0, 1) if swaps else pixels
    return np.ascontiguousarray(turned[::rows, ::columns])


def _of_array(array: np.ndarray, values: Range | None, channels: str, count: int) -> Picture:
    # as tensors have them, which is a slip far more often than a picture of very few rows
    sides = array.shape[1:]
    channels_first = array.ndim == 3 and array.shape[0] <= 4 < min(sides) and count in (1, RGB)
    is_no_picture = array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] > (MOST,)
    if is_no_picture or channels_first:
        raise DataError(
            f"its shape is {array.shape}; allowed: (height, width), or (height, width, "
            f"1 to {MOST} channels)"
        )
    if array.ndim == 3 and array.shape[2] > 4:  # up to four may be colors with alpha
        _check_count(array.shape[2], count, str(array.shape))
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if channels == "BGR" and array.ndim == 3 and array.shape[2] >= RGB:
        array = array[..., [2, 1, 0, *range(RGB, array.shape[2])]]
    height, width = array.shape[:2]
    if array.dtype == np.uint8 and array.shape[2:] == (count,) and height * width <= LARGE:
        return Picture(np.array(array, order="C"), height, width)
    pixels = _of_bands(_parts(array), (width, height), values, True, count)
    return Picture(pixels, height, width)


def _parts(whole: Band) -> Iterator[Band]:
    """A picture in memory in bands, or in one piece where it is small or nothing has to be done."""
    width, height = whole.size if isinstance(whole, Image.Image) else whole.shape[1::-1]
    is_rgb = isinstance(whole, Image.Image) and whole.mode == "RGB"
    if (is_rgb and width * height <= LARGE) or width * height <= 4 * bands.PIECE:
        yield whole
        return
    for top, bottom in bands.rows_of(width, height):
        yield (
            whole.crop((0, top, width, bottom))
            if isinstance(whole, Image.Image)
            else whole[top:bottom]
        )


def _bands(file: BinaryIO, image: ImageFile.ImageFile) -> Iterator[Band]:
    """The bands of an opened file, from the top, as they are stored.

    Raises `DataError` where that needs too much memory.
    """
    if (
        image.format == "PNG"
        and not image.info.get("interlace")
        and (_is_deep(image) or _in_bands(image))
    ):
        yield from bands.png_bands(file, image)
        return
    strips = bands.tiff_bands(file) if image.format == "TIFF" and _in_bands(image) else None
    if strips is None:
        _check_memory(image, file)
        yield from _parts(_whole(file, image))
        return
    for strip in strips:
        part = _open(strip)
        _check_memory(part, strip)
        yield from _parts(_whole(strip, part))


def _in_bands(image: Image.Image) -> bool:
    return image.format in ("PNG", "TIFF") and image.width * image.height > BANDED


def _whole(file: BinaryIO, image: ImageFile.ImageFile) -> Band:
    """The pixels of an opened file as they are stored.

    Those of more than 8 bits a color are uint16 (height, width, 3 or 4). Pillow keeps one byte of
    each color, and can be told which: such files are decoded twice.
    """
    swapped = {"B": "L", "L": "B", "N": "B"}  # here N, the machine's own order, is L
    deep = [
        tile.args
        for tile in image.tile
        if _rawmode(tile.args).startswith(("RGB", "CMYK")) and _is_deep(image)
    ]
    image.load()
    if not deep or image.mode not in ("RGB", "RGBA"):
        return image
    other = _open(file)
    other.tile = [
        tile._replace(
            args=_with_rawmode(
                tile.args, _rawmode(tile.args)[:-1] + swapped[_rawmode(tile.args)[-1]]
            )
        )
        for tile in other.tile
    ]
    other.load()
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(other)


def _rawmode(args: Arguments) -> str:
    return str(args[0] if isinstance(args, tuple) and args else args)


def _with_rawmode(args: Arguments, rawmode: str) -> Arguments:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """True for a file, opened and not loaded, that has more than 8 bits a channel for us."""
    if image.mode.startswith("I") or image.mode == "F":
        return True
    return image.format in ("PNG", "TIFF") and any(
        ";16" in _rawmode(tile.args) for tile in image.tile
    )


# ---- channels ----------------------------------------------------------------------------------


def _of_bands(
    parts: Iterable[Band], size: tuple[int, int], values: Range | None, laid: bool, count: int
) -> np.ndarray:
    """(rows, columns, count) of the bands of a picture of `size` (width, height)."""
    if count in (1, RGB):
        return brought_to(_assembled(parts, size, values, laid), count, "")
    return _gathered((_as_stored(part, values, count) for part in parts), size)


def _as_stored(band: Band, values: Range | None, count: int) -> np.ndarray:
    """8 bits of each channel, (rows, width, channels); alpha is one of them."""
    if isinstance(band, Image.Image):
        shape = f"mode {band.mode}"
        if band.mode == "1":
            band = band.convert("L")
        elif band.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "F") and band.mode[:1] != "I":
            band = band.convert("RGBA" if band.has_transparency_data else "RGB")
        band = np.asarray(band)
    else:
        shape = f"{band.dtype} {band.shape}"
    stored = band[..., None] if band.ndim == 2 else band
    _check_count(stored.shape[2], count, shape)
    return _flat_eight_bits(stored, values)


def _check_count(channels: int, count: int, shape: str) -> None:
    """`OtherChannels` unless a picture of so many channels can be one of `count`."""
    if channels != count and not {channels, count} <= {1, RGB}:
        said = f" ({shape})" if shape else ""
        raise OtherChannels(
            f"it has {channels} channel{'s' if channels > 1 else ''}{said}, and {count} are wanted;"
            f" --channels {channels} (in Python channels={channels}) makes a network for its own"
        )


def brought_to(pixels: np.ndarray, count: int, shape: str) -> np.ndarray:
    """Pixels (rows, columns, channels) uint8 with `count` channels: gray of colors, or the reverse."""
    channels = pixels.shape[2]
    _check_count(channels, count, shape)
    if channels == count:
        return pixels
    if count == RGB:
        return pixels.repeat(RGB, axis=2)
    return np.array(Image.fromarray(pixels).convert("L"))[..., None]


def _flat_eight_bits(pixels: np.ndarray, values: Range | None) -> np.ndarray:
    """Pixels (rows, width, channels) as uint8, all channels alike."""
    return _eight_bits(pixels.reshape(len(pixels), -1), values).reshape(pixels.shape)


def _gathered(parts: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """One picture of `size` (width, height) of parts (rows, width, channels), reduced if it is large."""
    whole = np.empty(0, np.uint8)
    waiting: list[np.ndarray] = []  # fewer rows than can be reduced
    row = drawn = 0  # rows of the picture that came, and of the whole that are there
    for part in parts:
        channels = part.shape[2]
        factor = _factor(size[0] * max(1, channels // RGB), size[1])
        if row == 0:
            whole = np.empty((-(-size[1] // factor), -(-size[0] // factor), channels), np.uint8)
        if part.shape[1] != size[0]:
            raise DataError(f"a part is {part.shape[1]} pixels wide, the picture {size[0]}")
        row += len(part)
        waiting.append(part)
        band = np.concatenate(waiting)
        ready = len(band) if row == size[1] else len(band) - len(band) % factor
        reduced = _averaged(band[:ready], factor)
        whole[drawn : drawn + len(reduced)] = reduced
        drawn += len(reduced)
        waiting = [band[ready:]]
    if row != size[1]:
        raise DataError(f"image file is truncated: {row} of {size[1]} rows")
    return whole


def _averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """The mean of each factor x factor pixels, of fewer at the edges: (rows, width, channels) uint8."""
    if factor == 1 or not len(pixels):
        return pixels
    sums, counts = pixels.astype(np.uint32), np.ones((*pixels.shape[:2], 1), np.uint32)
    for axis in (0, 1):
        starts = np.arange(0, pixels.shape[axis], factor)
        sums = np.add.reduceat(sums, starts, axis)
        counts = np.add.reduceat(counts, starts, axis)
    return ((sums + counts // 2) // counts).astype(np.uint8)


# ---- pixels ------------------------------------------------------------------------------------


def _factor(width: int, height: int) -> int:
    """By which whole number a picture is reduced to have at most `LARGE` pixels."""
    return max(1, math.ceil(math.sqrt(width * height / LARGE)))


def _assembled(
    parts: Iterable[Band], size: tuple[int, int], values: Range | None, laid: bool
) -> np.ndarray:
    """RGB (rows, columns, 3) of the bands of a picture of `size` (width, height), reduced if it is large."""
    factor = _factor(*size)
    whole = np.empty((-(-size[1] // factor), -(-size[0] // factor), 3), np.uint8)
    waiting: list[Image.Image] = []  # bands, of fewer rows than can be reduced
    row = 0  # of the picture: how many came
    drawn = 0  # rows of the whole that are there
    for part in parts:
        band = _rgb(part, values, laid)
        if band.width != size[0]:
            raise DataError(f"a part is {band.width} pixels wide, the picture {size[0]}")
        row += band.height
        waiting.append(band)
        last = row == size[1]
        rows = sum(band.height for band in waiting)
        if rows < 16 * factor and not last:
            continue
        band = waiting[0] if len(waiting) == 1 else _stacked(waiting)
        ready = rows if last else rows - rows % factor
        reduced = band.crop((0, 0, band.width, ready)).reduce(factor) if factor > 1 else band
        _copy(reduced, whole[drawn : drawn + reduced.height])
        drawn += reduced.height
        waiting = [band.crop((0, ready, band.width, rows))] if ready < rows else []
    if row != size[1]:
        raise DataError(f"image file is truncated: {row} of {size[1]} rows")
    return whole


def _copy(image: Image.Image, rows: np.ndarray) -> None:
    """Write an RGB image into rows of an array, a band at a time, so that no other copy is made."""
    for top, bottom in bands.rows_of(*image.size):
        whole = top == 0 and bottom == image.height
        rows[top:bottom] = image if whole else image.crop((0, top, image.width, bottom))


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new(parts[0].mode, (parts[0].width, sum(part.height for part in parts)))
    row = 0
    for part in parts:
        whole.paste(part, (0, row))
        row += part.height
    return whole


def _rgb(band: Band, values: Range | None, laid: bool) -> Image.Image:
    """8-bit RGB of a band in any mode; `laid` is whether its alpha, if any, is transparency."""
    if isinstance(band, np.ndarray):
        band = Image.fromarray(_eight_bits(band, values))
    # Pillow's own conversion clips these to 0..255
    elif band.mode.startswith("I") or band.mode == "F":
        band = Image.fromarray(_eight_bits(np.asarray(band), values))
    # an alpha channel, or a color or palette entry that counts as transparent
    if not band.has_transparency_data:
        return band if band.mode == "RGB" else band.convert("RGB")
    band = band.convert("LA").convert("RGBA") if band.mode == "La" else band.convert("RGBA")
    if not laid:
        return band.convert("RGB")
    white = Image.new("RGB", band.size, "white")
    white.paste(band, mask=band.getchannel("A"))
    return white


def _is_transparency(parts: Iterable[Band]) -> bool:
    """Whether the alpha of a TIFF is transparency.

    It is if at least half of its values above zero are the largest. Masks are opaque or clear
    nearly everywhere. Another band that was marked as alpha, such as near infrared, is spread over
    its range.
    """
    opaque = visible = 0
    for part in parts:
        alpha = (
            part[..., -1]
            if isinstance(part, np.ndarray)
            else np.asarray(part.convert("RGBA").getchannel("A"))
        )
        visible += int(np.count_nonzero(alpha))
        opaque += int(np.count_nonzero(alpha == np.iinfo(alpha.dtype).max))
    return visible > 0 and 2 * opaque >= visible


def _eight_bits(pixels: np.ndarray, values: Range | None) -> np.ndarray:
    """Pixels (rows, width) or (rows, width, channels) as uint8; of 2 or 4 channels one is alpha."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" and pixels.dtype.newbyteorder("=") not in (np.uint16, np.int32):
        raise DataError(
            f"values of {pixels.dtype}; allowed: uint8 (0 to 255), uint16, floats from 0 to 1, bool"
        )
    if pixels.ndim == 3 and pixels.dtype == np.int32:
        raise DataError(
            "values of int32; allowed for colors: uint8 (0 to 255), uint16, floats from 0 to 1"
        )
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        colors, alpha = _eight_bits(pixels[..., :-1], values), _eight_bits(pixels[..., -1:], None)
        return np.concatenate([colors, alpha], -1)
    largest = 1.0 if pixels.dtype.kind == "f" else 65535.0
    low, high = pixels.min(), pixels.max()
    if values is None and not 0 <= low <= high <= largest:  # false for NaN
        raise DataError(
            f"gray values from {low:g} to {high:g}; allowed: 0 to {largest:g}, or give their range "
            "(scale_values)"
        )
    if np.isnan(low):
        raise DataError("gray values that are no numbers (NaN)")
    start, end = values or (0.0, largest)
    if pixels.dtype.kind == "u":  # by a table: there are no more than 65536 values
        return _scaled(np.arange(65536), start, end)[pixels]
    return _scaled(pixels, start, end)


def _scaled(pixels: np.ndarray, start: float, end: float) -> np.ndarray:
    """uint8, rounded, of which 0 is `start` and less, and 255 is `end` and more."""
    scaled = (pixels.astype(np.float64) - start) * (255 / (end - start))
    return (scaled.clip(0, 255) + 0.5).astype(np.uint8)


# ---- heads of files ----------------------------------------------------------------------------


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """The image with its header read and its size checked, its pixels not yet decoded."""
    with _OPENING, warnings.catch_warnings():
        # of sizes that we allow, and of metadata that we do not use
        warnings.simplefilter("ignore")
        formats = (_heif(),) if _is_heic(file) else FORMATS
        file.seek(0)
        image = Image.open(file, formats=formats)
    width, height = image.size
    if width * height > MAX_PIXELS:  # Pillow checks as well, unless a program has lifted its limit
        raise DataError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")
    return image


def _is_heic(file: BinaryIO) -> bool:
    """Whether a file is of the format that iPhones take pictures in."""
    file.seek(0)
    start = file.read(64)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC and b"avif" not in start


def _heif() -> str:
    """Pillow's name of the format, with the decoder in place that is no part of it."""
    try:
        from pillow_heif import register_heif_opener  # here: an extra
    except ImportError as error:
        raise DataError(
            "HEIC is not read: pip install 'fleetnet[heif]', or convert to JPEG"
        ) from error
    register_heif_opener(decode_threads=1)
    return "HEIF"


def _check_memory(image: Image.Image, file: BinaryIO) -> None:
    """`DataError` for a file whose decoder would take far more memory than the file has bytes."""
    pixels, channels = image.width * image.height, len(image.getbands())
    needed = pixels * (
        4 if channels > 1 else {"I": 4, "F": 4}.get(image.mode, 2 if ";16" in image.mode else 1)
    )
    needed += pixels * _DECODERS.get(image.format or "", 0)
    if image.format in ("JPEG", "MPO"):
        whole = image.info.get("progressive") or image.info.get("progression")
        # its coefficients; pixels only of what is drawn
        needed = pixels * channels * 2 if whole else 0
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    if needed > max(MEMORY, SPENT * size):
        raise DataError(
            f"{image.width}x{image.height} pixels would take {needed / 1e6:.0f} MB, and the file "
            f"has only {size / 1e3:.0f} kB; save it anew as PNG without interlacing, or smaller"
        )


def _stored_orientation(file: BinaryIO, image: Image.Image) -> int:
    """The orientation in the head of an opened file.

    It may come after a PNG's pixels, which Pillow would decode.
    """
    if image.format == "TIFF":
        return _checked(getattr(image, "tag_v2", {}).get(_ORIENTATION, 1))
    if image.format != "PNG":
        return _orientation(image)
    metadata = bands.png_metadata(file)
    return 1 if metadata is None else _orientation(_open(metadata))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that means anything."""
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _checked(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to refuse good pixels
        return 1


def _checked(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def _name(source: Source) -> str:
    if isinstance(source, (str, Path, Member)):
        return repr(str(source))
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"(PIL, mode {source.mode}, {source.width}x{source.height})"
    return f"(array of {source.dtype} {source.shape})"


def _reason(error: BaseException, source: Source) -> str:
    """One line for a user: what is wrong with the file."""
    if isinstance(error, UnidentifiedImageError) and isinstance(source, bytes):
        return _unidentified(io.BytesIO(source))
    if isinstance(error, UnidentifiedImageError) and isinstance(source, Member):
        with source.open() as file:
            return _unidentified(file)
    if not isinstance(source, (str, Path)):
        words = error.strerror if isinstance(error, OSError) else None
        return words or str(error) or type(error).__name__
    path = source
    if isinstance(error, FileNotFoundError):
        return (
            "it is a link to a file that does not exist"
            if os.path.islink(path)
            else "there is no such file"
        )
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or str(error)
    if isinstance(error, UnidentifiedImageError):
        with open_regular(path) as file:
            return _unidentified(file)
    return str(error) or type(error).__name__


def _unidentified(file: BinaryIO) -> str:
    """What a file is that no decoder takes."""
    start = file.read(64)
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the image; `git lfs pull` fetches the image"
    if start[:4] in TIFF:
        kind = bands.tiff_kind(file)
        return (
            f"a TIFF of {kind or 'a damaged header'} is not read; allowed: 1, 3 or 4 bands of 8 or "
            "16 bits"
        )
    return f"not an image in a known format ({', '.join(FORMATS)}), or its header is damaged"


def find_images(folder: str | Path) -> tuple[list[Path], list[str]]:
    """The image files below a folder, by name, and a line for each entry that was left out.

    The line says why. Files are told by their extension, in any case; arrays (.npy) are images
    where there are no others. Hidden files and those that
    file managers leave behind are left out without a line. Linked folders are followed, but not in
    circles. Raises `DataError` if the folder cannot be listed.
    """
    images, stacks, skipped = [], [], []
    for path, reason in _walk(Path(folder), ()):
        if reason:
            skipped.append(f"{str(path)!r}: {reason}")
        elif path.suffix.lower() in STACKS:
            stacks.append(path)
        else:
            images.append(path)
    if not images:
        return stacks, skipped
    beside = [f"{str(path)!r}: an array beside images of other formats" for path in stacks]
    return images, skipped + beside


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, str]]:
    """(path, "") for an image, (path, reason) for what is left out.

    `above` identifies the folders on the way here.
    """
    try:
        info = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot list folder {str(folder)!r}: {_reason(error, folder)}") from error
    here = (*above, (info.st_dev, info.st_ino))
    if here[-1] in above:
        yield folder, "a link back to a folder that holds it"
        return
    for entry in entries:
        path, image = folder / entry.name, _extension(entry.name) in EXTENSIONS | STACKS
        if hidden(entry.name):
            continue
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            yield path, _reason(error, path)
            continue
        if stat.S_ISDIR(mode) and image:
            yield path, "a folder with the name of an image"
        elif stat.S_ISDIR(mode):
            yield from _walk(path, here)
        elif not stat.S_ISREG(mode):
            yield path, "not a regular file"
        else:
            yield path, "" if image else "not the extension of an image"


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def hidden(name: str) -> bool:
    """True for names that a scan of a folder passes over.

    They begin with a dot, or file managers leave them.
    """
    return name.startswith(".") or name.lower() in IGNORED
