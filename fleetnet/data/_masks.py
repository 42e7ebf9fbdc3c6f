"""Segmentations of objects as COCO writes them -> masks of pixels, the same ones as COCO's own tools make."""

import math
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ._texts import number

POINTS = 3  # of a polygon, at least


class NoMask(DataError):
    """A segmentation that marks no pixels that could be meant, as tools write for objects without a mask."""


def mask_of(
    segmentation: Sequence[Sequence[float]] | dict[str, object], size: tuple[int, int]
) -> np.ndarray:
    """Where an object is: bool of shape `size`, which is (height, width) of the picture.

    `segmentation` is polygons [[x, y, x, y, ...], ...] in pixels, whose union it is, or run lengths
    {"size", "counts"}: numbers, or the string that COCO packs them into. Raises `DataError` for
    what `check_segmentation` refuses.
    """
    if isinstance(segmentation, dict):
        runs = _runs(segmentation, size)
        # runs go down the columns
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")
    check_segmentation(segmentation, size)
    from faster_coco_eval.core import mask  # here: 0.1 s to import, and only for masks

    polygons = [[float(value) for value in polygon] for polygon in segmentation]
    return mask.decode(mask.merge(mask.frPyObjects(polygons, *size))).astype(bool)


def check_segmentation(segmentation: object, size: tuple[int, int]) -> None:
    """Raise `DataError` for a segmentation that is no mask of a picture of `size` (height, width).

    It is `NoMask` for polygons that cannot be drawn and where there is nothing, but not for run
    lengths that are wrong.
    """
    if isinstance(segmentation, dict):
        _runs(segmentation, size)
        return
    height, width = size
    if not isinstance(segmentation, list) or not segmentation:
        raise NoMask("it has no mask")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 2 * POINTS:
            raise NoMask(f"a polygon has fewer than {POINTS} points, or no pairs of x, y")
        try:
            points = np.array(polygon, dtype=float).reshape(-1, 2)
        except (TypeError, ValueError, OverflowError) as error:
            raise NoMask(f"a polygon has values that are not numbers: {polygon}") from error
        # the time and memory of drawing grow with the coordinates, so none may be far away; false
        # for NaN
        if not ((points >= (-width, -height)) & (points <= (2 * width, 2 * height))).all():
            raise NoMask(f"a polygon leaves the picture of {width}x{height} far behind")


def _runs(segmentation: dict[str, object], size: tuple[int, int]) -> np.ndarray:
    """The run lengths of a mask of a picture of `size` (height, width), which fill it."""
    height, width = size
    if segmentation.get("size") not in ([height, width], (height, width)):
        raise DataError(
            f"RLE is of size {segmentation.get('size')}; the picture is {[height, width]}"
        )
    runs = run_lengths(segmentation.get("counts"))
    if runs.sum() != height * width:
        raise DataError(
            f"RLE counts add up to {runs.sum()}; the picture has {height * width} pixels"
        )
    if not runs[1::2].sum():
        raise NoMask("its mask is empty")
    return runs


def box_around(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box xyxy in pixels around a mask (height, width) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def why_no_mask(segmentation: object, size: tuple[int, int], entry: str) -> str:
    """Why there is nothing that could be meant as a mask; "" where there is.

    Raises `DataError` naming the entry for run lengths that are wrong.
    """
    try:
        check_segmentation(segmentation, size)
    except NoMask as error:
        return str(error)
    except DataError as error:
        raise DataError(f"{entry}: {error}") from error
    return ""


def area_of(value: object) -> float | None:
    """The area that an annotation says, in square pixels; None where it is no number from 0 up."""
    area = number(value)
    return area if area is not None and 0 <= area < math.inf else None


def run_lengths(counts: object) -> np.ndarray:
    """The run lengths of an RLE, of pixels outside and inside in turn, from a list of them or from COCO's string.

    The string holds, 5 bits a character, each length as its difference to the last but one.

    >>> run_lengths("0423").tolist()
    [0, 4, 2, 7]
    """
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        runs: list[int] = []
        value = shift = 0
        for char in counts:
            code = ord(char) - 48
            if not 0 <= code < 64 or shift > 30:
                raise DataError(f"RLE counts hold {char!r} where COCO's strings do not")
            value |= (code & 31) << shift
            shift += 5
            if code & 32:  # more of this number follows
                continue
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
        if shift:
            raise DataError("RLE counts end within a number")
        counts = runs
    if not isinstance(counts, list) or not all(
        isinstance(run, int) and 0 <= run < 1 << 31 for run in counts
    ):
        raise DataError("RLE counts are not whole numbers from 0 up")
    return np.array(counts, dtype=np.int64)


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a mask, down its columns: outside, inside, outside, ..."""
    pixels = mask.T.ravel()
    ends = [*(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1).tolist(), len(pixels)]
    lengths = np.diff([0, *ends]).tolist()
    return [0, *lengths] if pixels[0] else lengths
