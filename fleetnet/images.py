"""Image files, as users have them: any format and mode in, upright 8-bit RGB out, or a `DataError` that names the file.

Nothing here hangs, and no file makes it spend memory before its size is known: only regular files are opened, only by
decoders of photographs and scans (not PostScript and the like), and the pixel count of the header is checked first.
"""

import errno
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import DataError

MAX_PIXELS = 178_956_970  # 512 MiB at 3 bytes: where Pillow's own check ends in an error
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", "AVIF")  # content decides, not the name
EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
}
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}  # left by file managers; names that begin with a dot too

_UPRIGHT = {  # EXIF orientation -> what makes the picture upright; other values mean nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPENING = threading.Lock()  # warnings.catch_warnings is not safe with threads
if hasattr(os, "register_at_fork"):  # a process must not begin with a lock that a thread it does not have would release
    os.register_at_fork(before=_OPENING.acquire, after_in_parent=_OPENING.release, after_in_child=_OPENING.release)


def read(path: str | Path) -> Image.Image:
    """The first frame of an image file as upright RGB, 8 bits a channel.

    EXIF orientation is applied. Transparent pixels are laid on white. 16-bit gray is scaled by 1/257; float gray must
    be within 0 to 1 and is scaled by 255. Color profiles are not applied. Raises `DataError`, naming the file and the
    reason, for whatever is no image, is damaged or truncated, has more than `MAX_PIXELS`, or cannot be opened.
    """
    try:
        with _regular(path) as file:
            image = _open(file)
            image.load()
            orientation = _orientation(image)  # only now: PNG may have it after the pixels, TIFF applies it itself
            image = _rgb(image)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"cannot read image {str(path)!r}: {_reason(error, path)}") from error
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def read_labels(path: str | Path, colors: dict[tuple[int, int, int], int] | None = None) -> np.ndarray:
    """The label map in an image file: (height, width) uint8, as stored, so the indices of a picture with a palette.

    `colors` gives the label of each color, for files in RGB. Raises `DataError`, naming the file and the reason, for
    what `read` refuses, values above 255, JPEG, colors without `colors`, and a color that is not in them.
    """
    try:
        with _regular(path) as file:
            image = _open(file)
            if image.format == "JPEG":
                raise DataError("labels are in a JPEG, which changes them; save them as PNG")
            image.load()
            if image.mode in ("RGB", "RGBA"):
                return _of_colors(np.asarray(image.convert("RGB")), colors)
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                raise DataError(
                    f"labels in mode {image.mode}; allowed: gray or palette of 8 bits, gray of 16 bits, RGB"
                )
            values = np.asarray(image)
    except Exception as error:  # as in `read`
        raise DataError(f"cannot read labels {str(path)!r}: {_reason(error, path)}") from error
    if values.min() < 0 or values.max() > 255:
        raise DataError(f"cannot read labels {str(path)!r}: values from {values.min()} to {values.max()}; at most 255")
    return values.astype(np.uint8)


def _of_colors(pixels: np.ndarray, colors: dict[tuple[int, int, int], int] | None) -> np.ndarray:
    if not colors:
        raise DataError("labels are colors, and there is no color map that says what they mean; allowed: indices")
    codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    known = np.array(sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in colors.items()), np.uint32)
    place = np.minimum(np.searchsorted(known[:, 0], codes), len(known) - 1)
    strange = codes[known[place, 0] != codes]
    if strange.size:
        color = [int(strange[0]) >> shift & 255 for shift in (16, 8, 0)]
        raise DataError(f"{strange.size} pixels are of colors that the color map does not have, as {color}")
    return known[place, 1].astype(np.uint8)


def measure(path: str | Path) -> tuple[int, int]:
    """(width, height) of the picture that `read` gives, from the head of the file; raises as `read` does."""
    try:
        with _regular(path) as file:
            image = _open(file)
            width, height = image.size
            # TIFF is turned when it is loaded, and Pillow gives its size as turned already
            plain = image.format == "TIFF" or (image.format == "PNG" and not _png_metadata(file))
            turned = not plain and _orientation(image) >= 5
    except Exception as error:  # as in `read`
        raise DataError(f"cannot read image {str(path)!r}: {_reason(error, path)}") from error
    return (height, width) if turned else (width, height)


def _png_metadata(file: BinaryIO) -> bool:
    """True if a PNG may hold an orientation; to find out, Pillow decodes all pixels, since it may come after them."""
    place, start, found = file.tell(), 8, False
    while not found:
        file.seek(start)
        head = file.read(32)  # of a chunk: the length of its content, its type, the start of the content
        if len(head) < 8 or head[4:8] == b"IEND":
            break
        found = head[4:8] == b"eXIf" or head[8:].startswith((b"Raw profile type exif", b"XML:com.adobe.xmp"))
        start += int.from_bytes(head[:4], "big") + 12
    file.seek(place)
    return found


def _regular(path: str | Path) -> BinaryIO:
    kind = os.stat(path).st_mode  # first: opening a FIFO would wait for a writer
    if not stat.S_ISREG(kind):
        raise DataError("it is a folder" if stat.S_ISDIR(kind) else "it is not a regular file")
    return open(path, "rb")


def _open(file: BinaryIO) -> Image.Image:
    """The image with its header read and its size checked, its pixels not yet decoded."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that we allow, and of metadata that we do not use
        image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:  # Pillow checks as well, unless a program has lifted its limit
        raise DataError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS}")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(0x0112, 1)
    except Exception:  # broken metadata is no reason to refuse good pixels
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion clips these to 0..255
        return Image.fromarray(_gray8(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:  # an alpha channel, or a color or palette entry that counts as transparent
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _gray8(gray: np.ndarray) -> np.ndarray:
    """Gray of 16 bits, or of floats from 0 to 1, as 8 bits."""
    low, high, allowed = gray.min(), gray.max(), 1 if gray.dtype.kind == "f" else 65535
    if not 0 <= low <= high <= allowed:  # false for NaN
        raise DataError(f"gray values from {low:g} to {high:g}; allowed: 0 to {allowed}, or save it with 8 bits")
    if allowed == 1:
        return (gray * 255 + 0.5).astype(np.uint8)
    return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _reason(error: BaseException, path: str | Path) -> str:
    """One line for a user: what is wrong with the file."""
    if isinstance(error, FileNotFoundError):
        return "it is a link to a file that does not exist" if os.path.islink(path) else "there is no such file"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or str(error)
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(64)
        if not start:
            return "the file is empty"
        if start.startswith(b"version https://git-lfs"):
            return "it is a Git LFS pointer, not the image; `git lfs pull` fetches the image"
        return f"not an image in a known format ({', '.join(FORMATS)}), or its header is damaged"
    return str(error) or type(error).__name__


def find_images(folder: str | Path) -> tuple[list[Path], list[str]]:
    """The image files below a folder, by name, and a line with the reason for each entry that was left out.

    Files are told by their extension, in any case. Hidden files and those that file managers leave behind are left out
    without a line. Linked folders are followed, but not in circles. Raises `DataError` if the folder cannot be listed.
    """
    images, skipped = [], []
    for path, reason in _walk(Path(folder), ()):
        if reason:
            skipped.append(f"{str(path)!r}: {reason}")
        else:
            images.append(path)
    return images, skipped


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, str]]:
    """(path, "") for an image, (path, reason) for what is left out; `above` identifies the folders on the way here."""
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
        path, image = folder / entry.name, os.path.splitext(entry.name)[1].lower() in EXTENSIONS
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


def hidden(name: str) -> bool:
    """True for names that a scan of a folder passes over: those that begin with a dot, and what file managers leave."""
    return name.startswith(".") or name.lower() in IGNORED
