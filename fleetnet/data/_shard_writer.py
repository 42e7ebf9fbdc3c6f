"""Shards written: the files of pictures as they are, annotations as texts, the same bytes each time."""

import io
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..errors import DataError, UsageError, named_arguments
from ..files import filling, writing
from ..images import EXTENSIONS, STACKS, extension_of, measure, read
from ..reading import MODEL, Member, read_bytes, to_json
from . import Object, Sample, Split, shorten
from ._shard_classes import ABOUT
from ._texts import plain

PREFIX = {"all": "shards"}  # of the names of shards of data without splits
SAMPLES = 10_000  # of a shard, at most
SIZE = 1_000_000_000  # bytes of a shard, at most
LONGEST = 60  # letters of the name of a picture that go into its key
_NUMBERED = re.compile(r"\d{6,}-")  # what keys begin with

Parts = list[tuple[str, bytes]]  # suffix and content of what belongs to a sample


@named_arguments
def write(
    splits: Mapping[str, Split],
    folder: str | Path,
    *,
    samples: int = SAMPLES,
    size: int = SIZE,
) -> None:
    """Write splits, by their names ("train", "val", "test", or "all"), as shards into a new folder.

    A shard has at most so many `samples`, and `size` bytes unless one sample has more. The files of
    pictures are copied byte by byte; pictures that are drawn, and label maps, are PNG files. What
    is written is whole or not there, and the same bytes for the same splits. Raises `UsageError`
    for a folder that is not empty, `DataError` naming a picture whose file cannot be read,
    `WriteError` where it cannot be written.
    """
    path = Path(os.path.realpath(folder))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{str(path)!r} is not empty: give a new folder")
    with filling(path, "convert") as inner:
        write_into(splits, inner, samples, size)


def write_into(
    splits: Mapping[str, Split],
    folder: Path,
    samples: int = SAMPLES,
    size: int = SIZE,
    written: Callable[[Sample, str], None] = lambda sample, member: None,
) -> None:
    """Write shards into an empty folder.

    `written` is told of each sample, as soon as it is there, its picture as "SHARD: MEMBER".
    """
    if samples < 1 or size < 1:
        raise UsageError(f"samples is {samples}, size {size}; allowed: at least 1")
    about: dict[str, object] = {}
    for name, split in splits.items():
        shards = _Shards(folder, PREFIX.get(name, name), samples, size)
        try:
            for number, sample in enumerate(split.samples):
                written(sample, shards.add(number, sample))
        finally:
            shards.close()
        about[name] = {
            "classes": split.classes,
            "ids": split.ids,
            "samples": len(split.samples),
            "shards": shards.count,
        }
    text = to_json({"format": "shards", "splits": about}, indent=1, ensure_ascii=False) + "\n"
    with writing(folder / ABOUT):
        (folder / ABOUT).write_text(text, encoding="utf-8", errors="surrogatepass")


class _Shards:
    """The shards of a split while they are written, one after the other."""

    def __init__(self, folder: Path, prefix: str, samples: int, size: int) -> None:
        self.folder, self.prefix = folder, prefix
        self.most_samples, self.most_size = samples, size
        self.count = 0
        self._samples = self._size = 0  # of the one that is open
        self._tar: tarfile.TarFile | None = None
        self._path = folder

    def add(self, number: int, sample: Sample) -> str:
        """Write one sample; what its picture is called."""
        key = key_for(number, sample)
        parts = parts_of(sample)
        length = sum(tarfile.BLOCKSIZE * (2 + len(content) // 512) for _, content in parts)
        if self._tar is not None and (
            self._samples >= self.most_samples or self._size + length > self.most_size
        ):
            self.close()
        with writing(self._path, only_full=True):
            tar = self._tar or self._opened()
            for suffix, content in parts:
                info = tarfile.TarInfo(key + suffix)  # its time and owner are 0
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        self._samples += 1
        self._size += length
        return f"{self._path.name}: {key}{parts[0][0]}"

    def _opened(self) -> tarfile.TarFile:
        self._path = self.folder / f"{self.prefix}-{self.count:06d}.tar"
        with writing(self._path):
            # It stays open for many samples: `close` ends it.
            self._tar = tarfile.open(self._path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.count += 1
        self._samples = self._size = 0
        return self._tar

    def close(self) -> None:
        if self._tar is not None:
            with writing(self._path):
                self._tar.close()
            self._tar = None


def key_for(number: int, sample: Sample) -> str:
    """What the parts of a sample are called: its number, and the name of its picture as far as it is plain."""
    image = sample.image
    if callable(image):
        return f"{number:06d}"
    stem = (
        PurePosixPath(image.name).name.partition(".")[0]
        if isinstance(image, Member)
        else image.stem
    )
    name = re.sub(r"[^A-Za-z0-9_-]", "_", _NUMBERED.sub("", stem))[:LONGEST]
    return f"{number:06d}-{name}"


def parts_of(sample: Sample) -> Parts:
    """The picture of a sample, and the files of its annotation behind it."""
    parts = [_picture(sample)]
    if sample.label is not None:
        parts.append((".cls", str(sample.label).encode()))
    row = _row(sample)
    if row:
        text = to_json(row, ensure_ascii=False, separators=(",", ":"))
        parts.append((".json", text.encode("utf-8", "surrogatepass")))
    if sample.semantic is not None:
        parts.append((".seg.png", _png(Image.fromarray(sample.semantic().astype(np.uint8)))))
    return parts


def _picture(sample: Sample) -> tuple[str, bytes]:
    image = sample.image
    if callable(image):
        return ".png", _png(read(image()))
    try:
        content = image.read() if isinstance(image, Member) else read_bytes(image, MODEL)
    except OSError as error:
        raise DataError(f"cannot read {str(image)!r}: {error.strerror or error}") from error
    suffix = PurePosixPath(image.name).suffix.lower()
    if suffix not in EXTENSIONS | STACKS:
        suffix = extension_of(image)
    return suffix, content


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _row(sample: Sample) -> dict[str, object]:
    """What the .json of a sample says; empty where there is no need of one."""
    row: dict[str, object] = {}
    if sample.id is not None:
        row["id"] = sample.id
    if sample.tags is not None:
        row["tags"] = list(sample.tags)
    if sample.objects is not None:
        row |= _size_of(sample)
        row["objects"] = [_object(item) for item in sample.objects]
    return row


def _size_of(sample: Sample) -> dict[str, object]:
    """The upright size of a picture; nothing where it cannot be read, which is said when it is."""
    try:
        width, height = measure(sample.source())
    except DataError:
        return {}
    return {"height": height, "width": width}


def _object(item: Object) -> dict[str, object]:
    row: dict[str, object] = {"box": [*map(plain, item.box)], "label": int(item.label)}
    if item.segmentation is not None:
        row["segmentation"] = _plain_mask(item.segmentation)
    if item.crowd:
        row["crowd"] = True
    if item.area is not None:
        row["area"] = plain(item.area)
    return row


def _plain_mask(mask: object) -> object:
    """Polygons or run lengths as JSON has them; COCO's tools give run lengths as bytes."""
    if isinstance(mask, dict):
        return {str(key): _plain_mask(value) for key, value in mask.items()}
    if isinstance(mask, list | tuple):
        return [_plain_mask(value) for value in mask]
    if isinstance(mask, bytes):
        return mask.decode("latin-1")
    return plain(mask) if isinstance(mask, int | float | np.generic) else shorten(mask)
