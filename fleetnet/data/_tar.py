"""What a tar file holds and where: its headers are read, 512 bytes a member, and nothing is unpacked.

It is read here and not by tarfile for speed, a million members in seconds, and because whatever a
damaged or hostile file says ends in `Damaged`: no header leads outside of the file, and each takes
at least one block of it.

Names are those of the POSIX format (ustar, pax) and of GNU's (long names). Links, devices, folders
and sparse files are told by their `kind`; content that can be read in place has none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import DataError

BLOCK = 512  # bytes; headers and contents begin at multiples of it
LONGEST = 1 << 20  # bytes of a long name, or of what pax says of a member
_ZEROS = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_LINKS = {b"1": "a hard link", b"2": "a symbolic link"}
_OTHERS = {b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}

Read = Callable[[int, int], bytes]  # (place, length) -> bytes of the file, fewer at its end


class Damaged(DataError):
    """A tar file that cannot be read further."""


class Entry(NamedTuple):
    """A member of a tar file."""

    name: str
    offset: int  # of its content, bytes from the start of the file
    size: int  # bytes
    kind: str  # "", or what it is that has no content to be read in place


@dataclass
class _Said:
    """What headers of their own say of the next member."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


@dataclass
class _Place:
    """Where the reader is."""

    read: Read
    end: int  # bytes of the whole file
    at: int = 0  # of the next header
    said: _Said = field(default_factory=_Said)


def entries(read: Read, size: int) -> Iterator[Entry]:
    """The members of a tar file of `size` bytes, in its order, without what only describes others.

    Raises `Damaged`, after the members before that, where a header is damaged or the file ends
    too soon.
    """
    place = _Place(read, size)
    while True:
        header = read(place.at, BLOCK)
        if header == _ZEROS:
            return
        if not header:
            raise Damaged(f"it ends at byte {place.at} without the end of a tar file")
        entry = _next(place, header)
        if entry is not None:
            yield entry


def _next(place: _Place, header: bytes) -> Entry | None:
    """The member of a header, or None where it says something of the next; the place goes on behind it."""
    start = place.at
    _check(header, start)
    kind = header[156:157]
    size = _number(header[124:136], start)
    offset = start + BLOCK
    if kind in (b"L", b"K", b"x", b"X", b"g"):
        _note(place, kind, _content(place, offset, size))
        place.at = offset + _padded(size)
        return None
    said, place.said = place.said, _Said()
    size = size if said.size is None else said.size
    sparse = kind == b"S" or said.sparse
    if kind == b"S":
        offset = _behind_sparse(place, header, offset)
    name = _name(header, said)
    if kind in _LINKS or kind in _OTHERS:  # without content, whatever their size
        place.at = offset
        return Entry(name, offset, 0, _LINKS.get(kind) or _OTHERS[kind])
    if kind == b"\0" and name.endswith("/"):  # as the oldest programs write folders
        place.at = offset + _padded(size)
        return Entry(name, offset, 0, "a folder")
    if offset + size > place.end:
        raise Damaged(
            f"it is cut off: {name[:100]!r} ends at byte {offset + size}, the file at {place.end}"
        )
    place.at = offset + _padded(size)
    return Entry(name, offset, size, "a sparse file" if sparse else "")


def _check(header: bytes, start: int) -> None:
    """Raise `Damaged` unless the sum of a header is the one in it."""
    if len(header) < BLOCK:
        raise Damaged(f"it is cut off at byte {start + len(header)}, within a header")
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    written = _number(header[148:156], start)
    if written == total:
        return
    # Some programs add up bytes as signed.
    signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
    if written != signed:
        raise Damaged(f"the header at byte {start} is damaged: its sum is not what it says")


def _number(field_: bytes, start: int) -> int:
    """A number of a header: octal digits, or the bytes of a large one."""
    if field_[0] == 0x80:
        return int.from_bytes(field_[1:], "big")
    digits = field_.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    try:
        value = int(digits, 8)
    except ValueError:
        value = -1
    if value < 0:
        raise Damaged(f"the header at byte {start} is damaged: {field_!r} is no number")
    return value


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _content(place: _Place, offset: int, size: int) -> bytes:
    """What a header says of the next member, or of all."""
    if size > LONGEST:
        raise Damaged(f"the header at byte {offset - BLOCK} is damaged: it has {size} bytes")
    content = place.read(offset, size)
    if len(content) < size:
        raise Damaged(f"it is cut off at byte {offset + len(content)}, within a header")
    return content


def _note(place: _Place, kind: bytes, content: bytes) -> None:
    """Keep what the content of a header says of the next member. Of all members, pax says no names."""
    if kind == b"L":
        place.said.name = content.split(b"\0", 1)[0]
    elif kind in (b"x", b"X"):
        _note_pax(place, content)


def _note_pax(place: _Place, content: bytes) -> None:
    """Lines of `length key=value`, the length of the whole line in bytes."""
    at = 0
    while at < len(content):
        digits, blank, _ = content[at : at + 12].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if not equals or at + length > len(content):
            raise Damaged(f"the header at byte {place.at} is damaged: {content[at : at + 40]!r}")
        if key == b"path":
            place.said.name = value
        elif key == b"size":
            place.said.size = _size(value, place.at)
        elif key.startswith(b"GNU.sparse."):
            place.said.sparse = True
        at += length


def _size(value: bytes, start: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise Damaged(f"the header at byte {start} is damaged: {value[:40]!r} is no size")
    return int(value)


def _behind_sparse(place: _Place, header: bytes, offset: int) -> int:
    """Where the content of a sparse file begins: behind the blocks that say where its parts lie."""
    more = header[482] != 0
    while more:
        block = place.read(offset, BLOCK)
        if len(block) < BLOCK:
            raise Damaged(f"it is cut off at byte {offset + len(block)}, within a header")
        more = block[504] != 0
        offset += BLOCK
    return offset


def _name(header: bytes, said: _Said) -> str:
    name = said.name
    if name is None:
        name = header[:100].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.replace(b"\0", b"").decode("utf-8", "surrogateescape")
