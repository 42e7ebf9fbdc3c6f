"""Pictures of samples in memory, which give the same pixels as their files do.

What is kept of a picture depends on the room: all of the files first, since that spares reading
them from a disk that may be slow or far, and then in their place what is decoded of the first ones,
since that spares decoding, and takes about ten times as much. Of a JPEG both are kept, since it may
be decoded at a smaller scale, which depends on the crop; the file alone where it usually is, as a
picture of twice the input's size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..data import Sample
from ..errors import DataError
from ..images import Encoded, Picture
from ..jpeg import reduction
from ..reading import Member, open_regular

LIMIT = 4 << 30  # bytes

# What is kept of a sample: its picture, one in a JPEG, the bytes of its file, in words why it has no
# picture, or nothing, where there was no room.
Kept = Picture | Encoded | bytes | str | None


class Decoded(Encoded):
    """A picture in a JPEG together with its pixels, for crops that need all of them."""

    whole: Picture

    @classmethod
    def of(cls, encoded: Encoded) -> "Decoded":
        """`DataError` for a file that is damaged."""
        both = cls(*encoded)
        both.whole = encoded.decoded()
        return both

    @property
    def size(self) -> int:
        return len(self.content) + self.whole.size

    def decoded(self, by: int = 1) -> Picture:
        return self.whole if by == 1 else super().decoded(by)


def keep(
    samples: Sequence[Sample],
    looked_at: Callable[[int, bytes | None], Picture | Encoded],
    size: tuple[int, int],
    limit: int,
) -> list[Kept]:
    """What `limit` bytes hold of each sample's picture, for inputs of `size` (height, width).

    `looked_at` gives the picture of the sample of an index, from the bytes of its file where these
    are kept; or raises `DataError`.
    """
    files = _files(samples, limit)
    kept: list[Kept] = list(files)
    left = limit - sum(len(file) for file in files if file is not None)
    for index, file in enumerate(files):
        try:
            picture = looked_at(index, file)
            whole = picture.height, picture.width
            if isinstance(picture, Encoded) and reduction(whole, size) == 1:
                picture = Decoded.of(picture)
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
