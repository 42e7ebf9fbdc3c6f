"""Masks of pixels as polygons along the edges of these pixels, which cover the same."""

from collections import defaultdict

import numpy as np

Point = tuple[int, int]  # x, y


def outlines_of(mask: np.ndarray) -> list[list[float]] | None:
    """Polygons [[x, y, x, y, ...], ...] around the parts of a mask (height, width); None where one has a hole."""
    after = _edges(mask)
    polygons: list[list[float]] = []
    while after:
        loop = _loop(after)
        if _area(loop) < 0:  # around a hole the edges run the other way
            return None
        polygons.append([float(value) for point in _corners(loop) for value in point])
    return polygons


def _edges(mask: np.ndarray) -> dict[Point, list[Point]]:
    """The edges between inside and outside: by the point where one begins, where it ends; inside is on the right."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # neighbor, begin and end of the edge of the pixel at (0, 0)
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    after: dict[Point, list[Point]] = defaultdict(list)
    for neighbor, (x0, y0), (x1, y1) in sides:
        rows, columns = np.nonzero(inside & ~neighbor)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            after[x + x0, y + y0].append((x + x1, y + y1))
    return after


def _loop(after: dict[Point, list[Point]]) -> list[Point]:
    """The points of one way around, whose edges are taken out.

    Where two pixels touch at a corner alone, it turns right, so that they are of two ways.
    """
    start = next(iter(after))
    points = [start]
    while True:
        here = points[-1]
        ends = after[here]
        end = ends[0] if len(ends) == 1 else _to_the_right(points, ends)
        ends.remove(end)
        if not ends:
            del after[here]
        if end == start:
            return points
        points.append(end)


def _to_the_right(points: list[Point], ends: list[Point]) -> Point:
    if len(points) < 2:
        return ends[0]
    (x0, y0), (x, y) = points[-2:]
    right = x - (y - y0), y + (x - x0)
    return right if right in ends else ends[0]


def _area(points: list[Point]) -> float:
    """Square pixels, above zero for a way clockwise in a picture."""
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) / 2


def _corners(points: list[Point]) -> list[Point]:
    """The points without those on a straight line between their neighbors."""
    around = zip([points[-1], *points[:-1]], points, [*points[1:], points[0]], strict=True)
    return [
        here
        for before, here, after in around
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
    ]
