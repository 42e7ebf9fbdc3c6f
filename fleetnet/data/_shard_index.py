"""The index of a shard: of each of its samples the place of the picture and the label map, and the texts.

A shard is a tar file in which what belongs to one sample is called alike up to the first dot, as
WebDataset names it: 0001.jpg with 0001.cls, 0001.json, 0001.txt, 0001.seg.png. To find a sample
without its predecessors, the headers are read once, and what they say is kept beside the shard, as
`x.tar.index`:

    a line that says what the file is, and its version, and one with the checksum of the rest
    a line of JSON: the tar file's size and time, what was left out, and the lengths of the columns
    the columns, one after the other: numbers as little-endian arrays, texts behind each other

An index of another size or time than its tar file has, or that is not whole, is made anew. It is
written beside its name and renamed, so that two processes that do so at once do each other no harm.
"""

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import DataError, WriteError
from ..files import replacing
from ..images import EXTENSIONS, STACKS, hidden
from ..reading import (
    ANNOTATIONS,
    SMALL,
    Archive,
    Fields,
    Member,
    from_json,
    open_regular,
    read_bytes,
    to_json,
)
from ._tar import Damaged, Entry, Read, entries

SUFFIX = ".index"
MAGIC = b"fleetnet index 2\n"
TEXTS = ("cls", "json", "txt")  # parts of a sample whose content is in the index
TOGETHER = 1 << 30  # bytes of all texts of a shard
MOST = {"cls": 4096, "json": SMALL, "txt": 512}  # bytes; of a longer text the start is kept
IMAGE_WORDS = ("image", "img", "rgb", "input")  # before the extension, as in 0001.image.png
MAP_WORDS = ("seg", "semantic", "segmentation", "mask", "label", "labels", "gt", "map")
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")  # of pictures; a PNG beside one is a label map
LOOKED_AT = 64  # members at the start of a shard, to tell what it holds
WINDOW = 4096  # bytes that are read at a time: a header and what is short behind it
_NUMBERS = {"place": "<i8", "length": "<i8", "suffix": "<u2"}

Column = list[bytes]


@dataclass(frozen=True)
class Part:
    """Where the pictures, or the label maps, of all samples lie in their shard."""

    place: np.ndarray  # (samples,) int64, bytes; 0 where a sample has none
    length: np.ndarray  # (samples,) int64, bytes
    suffix: np.ndarray  # (samples,) uint16, an index into `Index.suffixes`


@dataclass(frozen=True)
class Index:
    """What a shard holds, without its pictures."""

    archive: Archive
    keys: list[str]  # of the samples, in the order of the shard
    suffixes: list[str]  # what stands behind a key, as ".jpg"
    pictures: Part
    maps: Part
    texts: Mapping[str, Column]  # of each of `TEXTS`: that of each sample, b"" where there is none
    notes: list[str] = field(default_factory=list)  # a line for what was left out
    others: dict[str, int] = field(default_factory=dict)  # parts that are not read -> how many
    damage: str = ""  # why the shard could not be read to its end

    def member(self, part: Part, sample: int) -> Member:
        """The picture or label map of a sample, which has one: its `place` is not 0."""
        name = self.keys[sample] + self.suffixes[part.suffix.item(sample)]
        return Member(self.archive, part.place.item(sample), part.length.item(sample), name)


def index_of(path: Path, lines: list[str] | None = None) -> Index:
    """The index of a shard, from its file or made now; `lines` gets one where it cannot be kept.

    Raises `DataError` for what is no tar file.
    """
    archive = _archive(path)
    file = path.with_name(path.name + SUFFIX)
    kept = _kept(file, archive)
    if kept is not None:
        return kept
    made = scanned(archive)
    line = _keep(file, made)
    if line and lines is not None:
        lines.append(line)
    return made


def beginning(path: Path) -> Index:
    """The index of the first members of a shard, which is not kept: it tells what the shard holds.

    Raises `DataError` for what is no tar file.
    """
    return _scanned(_archive(path), LOOKED_AT)


def _archive(path: Path) -> Archive:
    try:
        return Archive.at(path)
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from error


# ---- from the tar file -------------------------------------------------------------------------


@dataclass
class _Row:
    """One sample, as far as it was met."""

    picture: tuple[int, int, str] | None = None  # (place, length, suffix)
    map: tuple[int, int, str] | None = None
    array: tuple[int, int, str] | None = None  # the picture, where there is no other
    texts: dict[str, bytes] = field(default_factory=dict)


class _Rows:
    """The samples of a shard while it is read."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.rows: dict[str, _Row] = {}
        self.kinds: Counter[str] = Counter()  # of members without content to be read
        self.others: Counter[str] = Counter()
        self.twice: list[str] = []
        self.bytes = 0  # of texts

    def add(self, entry: Entry, content: bytes) -> None:
        """Note one member; `content` is what of it may be a text."""
        key, suffix = key_of(entry.name)
        if not key:
            return
        if entry.kind:
            self.kinds[entry.kind] += entry.kind != "a folder"
            return
        part = part_of_sample(suffix)
        if not part:
            self.others[suffix.lower()] += 1
            return
        row = self.rows.setdefault(key, _Row())
        if part in TEXTS:
            self._again(entry, row.texts.get(part))
            row.texts[part] = content
            self.bytes += len(content)
            if self.bytes > TOGETHER:
                raise DataError(
                    f"{str(self.archive.path)!r} has more than {TOGETHER / 1e9:.1f} GB of text "
                    "(.json, .cls, .txt): write it as several shards"
                )
        elif part == "array":
            self._again(entry, row.array)
            row.array = entry.offset, entry.size, suffix
        else:
            self._place(row, part, (entry.offset, entry.size, suffix), entry)

    def _place(self, row: _Row, part: str, where: tuple[int, int, str], entry: Entry) -> None:
        """Note a picture or a label map; beside a photograph, a PNG is its label map."""
        if part == "picture" and row.picture is not None and row.map is None:
            one, other = row.picture[2].lower(), where[2].lower()
            if other == ".png" and one in LOSSY:
                part = "map"
            elif one == ".png" and other in LOSSY:
                row.map, row.picture = row.picture, None
        self._again(entry, row.map if part == "map" else row.picture)
        if part == "map":
            row.map = where
        else:
            row.picture = where

    def _again(self, entry: Entry, before: object) -> None:
        if before is not None:
            self.twice.append(entry.name)

    def notes(self) -> list[str]:
        name = str(self.archive.path)
        lines = [
            f"{name!r}: {count} members are {kind.split(' ', 1)[1]}s and are left out"
            for kind, count in self.kinds.items()
            if count
        ]
        if self.twice:
            lines.append(
                f"{name!r}: {len(self.twice)} parts of samples come again, as {self.twice[0]!r}; the "
                "last of each counts"
            )
        return lines


def key_of(name: str) -> tuple[str, str]:
    """The key of a sample and the suffix of its part; ("", "") for what is passed over.

    >>> key_of("a/0001.seg.png"), key_of("./b.jpg"), key_of("__MACOSX/._b.jpg"), key_of("README")
    (('a/0001', '.seg.png'), ('b', '.jpg'), ('', ''), ('', ''))
    """
    parts = PurePosixPath(name).parts
    if not parts or any(hidden(part) for part in parts):
        return "", ""
    base, dot, suffix = parts[-1].partition(".")
    if not dot or (base.startswith("__") and base.endswith("__")):  # WebDataset's own notes
        return "", ""
    return "/".join((*parts[:-1], base)), dot + suffix


def part_of_sample(suffix: str) -> str:
    """What a suffix says that a part is: "picture", "map", "array", one of `TEXTS`, or "" for others.

    An array is the picture of a sample that has no other, and else no part that is read.

    >>> part_of_sample(".JPEG"), part_of_sample(".seg.png"), part_of_sample(".cls")
    ('picture', 'map', 'cls')
    """
    *words, last = suffix.lower().split(".")[1:]
    if not words and last in TEXTS:
        return last
    if f".{last}" in STACKS and (not words or words[0] in IMAGE_WORDS) and len(words) < 2:
        return "array"
    if f".{last}" not in EXTENSIONS or len(words) > 1:
        return ""
    if words and words[0] in MAP_WORDS:
        return "map"
    return "picture" if not words or words[0] in IMAGE_WORDS else ""


def scanned(archive: Archive) -> Index:
    """The index of a tar file, from its headers."""
    return _scanned(archive, None)


def _scanned(archive: Archive, most: int | None) -> Index:
    """The index of the first `most` members of a tar file, or of all."""
    rows = _Rows(archive)
    damage = ""
    try:
        with _reading(archive) as read:
            for entry in islice(entries(read, archive.size), most):
                rows.add(entry, _text(entry, read))
    except Damaged as error:
        damage = str(error)
    except OSError as error:
        raise DataError(f"cannot read {str(archive.path)!r}: {error.strerror}") from error
    return _index(rows, damage)


@contextmanager
def _reading(archive: Archive) -> Iterator[Read]:
    """Reads an archive at places; `DataError` for files that are called .tar and are something else."""
    with Member(archive, 0, archive.size, "").open(WINDOW) as file:

        def read(place: int, length: int) -> bytes:
            file.seek(place)
            return file.read(length)

        _check_kind(read(0, 512), str(archive.path))
        yield read


def _text(entry: Entry, read: Read) -> bytes:
    """The content of a member that is a text, up to as much as is kept."""
    part = entry.name.rpartition(".")[2].lower()
    if part not in TEXTS or entry.kind:
        return b""
    return read(entry.offset, min(entry.size, MOST[part]))


def _check_kind(start: bytes, name: str) -> None:
    """`DataError` for files that are called .tar and are something else."""
    packed = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    for head, program in packed.items():
        if start.startswith(head):
            raise DataError(compressed(name, program))
    if start.startswith(b"PK\3\4"):
        raise DataError(f"{name!r} is a zip file, not a tar file: unpack it")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{name!r} is a Git LFS pointer, not the file; `git lfs pull` fetches it")
    if not start:
        raise DataError(f"{name!r} is empty")


def compressed(name: str, program: str) -> str:
    """That a tar file is compressed, and the way out."""
    return (
        f"{name!r} is compressed ({program}), so that none of its samples can be read without those "
        f"before it: unpack it to a plain .tar (`{program} -d`), which is hardly larger, since "
        "pictures are compressed already"
    )


def _index(rows: _Rows, damage: str) -> Index:
    suffixes: dict[str, int] = {}

    def columns(members: Sequence[tuple[int, int, str] | None]) -> Part:
        values = [member or (0, 0, "") for member in members]
        codes = [suffixes.setdefault(suffix, len(suffixes)) for _, _, suffix in values]
        return Part(
            np.array([place for place, _, _ in values], np.int64),
            np.array([length for _, length, _ in values], np.int64),
            np.array(codes, np.uint16),
        )

    samples = list(rows.rows.values())
    others = rows.others + Counter(
        row.array[2].lower() for row in samples if row.picture and row.array
    )
    return Index(
        rows.archive,
        list(rows.rows),
        pictures=columns([row.picture or row.array for row in samples]),
        maps=columns([row.map for row in samples]),
        suffixes=list(suffixes),
        texts={name: [row.texts.get(name, b"") for row in samples] for name in TEXTS},
        notes=rows.notes(),
        others=dict(others),
        damage=damage,
    )


# ---- the file beside it ------------------------------------------------------------------------


def packed(index: Index) -> bytes:
    """The content of an index file."""
    columns: list[bytes] = ["\0".join(index.keys).encode("utf-8", "surrogateescape")]
    for part in (index.pictures, index.maps):
        columns += [
            np.ascontiguousarray(getattr(part, name), kind).tobytes()
            for name, kind in _NUMBERS.items()
        ]
    for name in TEXTS:
        texts = index.texts[name]
        columns += [np.array([len(text) for text in texts], "<u4").tobytes(), b"".join(texts)]
    payload = b"".join(columns)
    head = {
        "size": index.archive.size,
        "modified": index.archive.modified,
        "samples": len(index.keys),
        "columns": [len(column) for column in columns],
        "suffixes": index.suffixes,
        "notes": index.notes,
        "others": index.others,
        "damage": index.damage,
    }
    rest = to_json(head).encode() + b"\n" + payload
    return MAGIC + f"{zlib.crc32(rest):08x}\n".encode() + rest


def unpacked(content: bytes, archive: Archive) -> Index:
    """The index in a file; `ValueError` where it is not whole, or not of this tar file."""
    start = len(MAGIC) + 9  # behind the checksum
    whole = memoryview(content)
    if whole[: len(MAGIC)] != MAGIC or int(content[start - 9 : start], 16) != zlib.crc32(
        whole[start:]
    ):
        raise ValueError("no index, or not whole")
    end = content.index(b"\n", start)
    head: Fields = from_json(content[start:end])
    if (head["size"], head["modified"]) != (archive.size, archive.modified):
        raise ValueError("of another file")
    payload = whole[end + 1 :]
    ends = np.cumsum([0, *head["columns"]])
    columns = [bytes(payload[a:b]) for a, b in pairwise(ends)]
    count = head["samples"]
    keys = columns[0].decode("utf-8", "surrogateescape").split("\0") if count else []
    pictures, maps = (_part(columns[i : i + 3], head["suffixes"], archive) for i in (1, 4))
    texts = {name: _texts(*columns[7 + 2 * i : 9 + 2 * i]) for i, name in enumerate(TEXTS)}
    lengths = {len(keys), len(pictures.place), len(maps.place), *map(len, texts.values())}
    if lengths != {count}:
        raise ValueError("columns of different lengths")
    notes, others = list(map(str, head["notes"])), dict(head["others"])
    return Index(
        archive, keys, head["suffixes"], pictures, maps, texts, notes, others, str(head["damage"])
    )


def _part(columns: Sequence[bytes], suffixes: Sequence[str], archive: Archive) -> Part:
    place, length, suffix = (
        np.frombuffer(column, kind) for column, kind in zip(columns, _NUMBERS.values(), strict=True)
    )
    inside = (place >= 0) & (length >= 0) & (place <= archive.size - length)
    if not inside.all() or (suffix >= max(len(suffixes), 1)).any():
        raise ValueError("places outside of the file")
    if not len(place) == len(length) == len(suffix):
        raise ValueError("columns of different lengths")
    return Part(place, length, suffix)


def _texts(lengths: bytes, texts: bytes) -> Column:
    numbers = np.frombuffer(lengths, "<u4")
    ends = np.cumsum(numbers, dtype=np.int64).tolist()
    if (ends[-1] if ends else 0) != len(texts):
        raise ValueError("columns of different lengths")
    if not texts:
        return [b""] * len(numbers)
    return [texts[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _kept(file: Path, archive: Archive) -> Index | None:
    """The index in a file; None where it has to be made anew."""
    try:
        return unpacked(read_bytes(file, ANNOTATIONS), archive)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _keep(file: Path, index: Index) -> str:
    """Write an index beside its shard; a line where that cannot be."""
    if _is_anothers(file):
        return f"{str(file)!r} is there and no index of ours: the index of its shard is not kept"
    try:
        with replacing(file) as out:
            out.write(packed(index))
    except (WriteError, OSError) as error:
        return f"the index of a shard is kept in memory alone, and made again each time: {error}"
    return ""


def _is_anothers(file: Path) -> bool:
    """Whether a file of the name is there that was not written here."""
    if not os.path.lexists(file):
        return False
    try:
        with open_regular(file) as opened:
            start = opened.read(len(MAGIC))
    except OSError:
        return True
    return bool(start) and not start.startswith(MAGIC[:15])
