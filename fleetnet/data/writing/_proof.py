"""Whether a data set that was written is read back as what it was to hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import DataError
from .. import Object, Places, Sample, Split, shorten
from ._album import Album
from ._losses import area_of
from ._reading import splits_of

EXACT = 1e-6  # pixels: a share of the picture cannot stand for every number
MAPS = 64  # label maps that are compared, spread over the data

Size = tuple[int, int]  # (height, width)


def check(
    folder: Path, format: str, target: str, splits: Mapping[str, Split], album: Album
) -> None:
    """Raise `DataError` unless the folder is read as these splits with the samples that `album` put there.

    It lies in a folder that is gone afterwards; messages name where it was to be.
    """
    try:
        back = splits_of(str(folder), format, target, Places())
    except DataError as error:
        raise _error(_as_to_be(str(error), folder)) from None
    if len(back) != len(splits):
        raise _error(f"it has the splits {', '.join(back)}, not {', '.join(splits)}")
    read: dict[str, Sample] = {}
    for one, other in zip(splits.values(), back.values(), strict=True):
        if one.classes != other.classes:
            raise _error(f"its classes are {shorten(other.classes)}, not {shorten(one.classes)}")
        read |= {str(sample.image): sample for sample in other.samples}
    differ = next(iter(album.placed.keys() ^ read.keys()), None)
    if differ is not None:
        line = next((line for split in back.values() for line in split.skipped), "")
        among = "not " if differ in album.placed else ""
        why = _as_to_be(line, folder)
        raise _error(f"{_name(differ)!r} is {among}among its pictures. {why}")
    every = max(len(read) // MAPS, 1)
    for number, (path, sample) in enumerate(album.placed.items()):
        difference = _difference(
            sample, read[path], album.size(sample), with_map=number % every == 0
        )
        if difference:
            raise _error(f"{_name(path)!r} has {difference}")


def _name(place: str) -> str:
    return place.rpartition("/")[2]


def _as_to_be(text: str, folder: Path) -> str:
    """A text with the path that the folder will have."""
    return text.replace(str(folder.parent), str(folder.parent.parent))


def _error(problem: str) -> DataError:
    return DataError(
        f"what was written does not come back as it was, and was removed: {shorten(problem)}"
    )


def _difference(one: Sample, other: Sample, size: Size, with_map: bool) -> str:
    """What is not the same of two samples, in words; "" for nothing."""
    if one.label is not None and one.label != other.label:
        return f"the label {other.label}, not {one.label}"
    if one.tags is not None and one.tags != other.tags:
        return f"the tags {other.tags}, not {one.tags}"
    if with_map and one.semantic is not None:
        same = other.semantic is not None and np.array_equal(one.semantic(), other.semantic())
        return "" if same else "another label map"
    pairs = one.objects or (), other.objects or ()
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[1])} objects, not {len(pairs[0])}"
    for mine, its in zip(*pairs, strict=True):
        if not same_object(mine, its, size):
            return f"the object {its}, not {mine}"
    return ""


def same_object(one: Object, other: Object, size: Size) -> bool:
    """Whether two objects of a picture of this size are the same; an area may be measured of one of them."""
    return (
        (one.label, one.crowd) == (other.label, other.crowd)
        and _close(one.box, other.box)
        and _same_mask(one.segmentation, other.segmentation)
        and _close([area_of(one, size)], [area_of(other, size)])
    )


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and np.allclose(one, other, rtol=EXACT, atol=EXACT)


def _same_mask(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == other
