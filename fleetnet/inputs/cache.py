"""Pictures of samples in memory, which give the same pixels as their files do.

What is kept of a picture depends on the room: all of the files first, since that spares reading
them from a disk that may be slow or far, and then in their place what is decoded of the first ones,
since that spares decoding, and takes about ten times as much. JPEG files stay files: at which scale
they are decoded depends on the crop.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..data import Sample
from ..errors import DataError
from ..images import Encoded, Picture
from ..reading import Member, open_regular

LIMIT = 4 << 30  # bytes

# What is kept of a sample: its picture, one in a JPEG, the bytes of its file, in words why it has no
# picture, or nothing, where there was no room.
Kept = Picture | Encoded | bytes | str | None


def keep(
    samples: Sequence[Sample], decoded: Callable[[int, bytes | None], Picture | Encoded], limit: int
) -> list[Kept]:
    """What `limit` bytes hold of each sample's picture.

    `decoded` gives the picture of the sample of an index, from the bytes of its file where these
    are kept; or raises `DataError`.
    """
    files = _files(samples, limit)
    kept: list[Kept] = list(files)
    left = limit - sum(len(file) for file in files if file is not None)
    for index, file in enumerate(files):
        try:
            picture = decoded(index, file)
        except DataError as error:
            kept[index] = str(error)
            continue
        left -= picture.size - len(file or b"")
        if left < 0:
            break
        kept[index] = picture
    return kept


def _files(samples: Sequence[Sample], limit: int) -> list[bytes | None]:
    """The content of each file that there is and still is room for."""
    files: list[bytes | None] = []
    for sample in samples:
        file = None if callable(sample.image) else _content(sample.image, limit)
        limit -= len(file or b"")
        files.append(file)
    return files


def _content(image: Path | Member, most: int) -> bytes | None:
    try:
        if isinstance(image, Member):
            return image.read(most)
        with open_regular(image, most) as file:
            return file.read()
    except OSError:  # no room, or not to be opened, which is said where it is decoded
        return None
