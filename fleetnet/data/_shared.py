"""Pictures that two splits share: by content, and near copies by what little of them a thumbnail shows.

A picture of val that is in train too is known by heart: val's figures are then better than the
network is.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..images import thumbnail
from ..reading import Member, hash_of
from . import Split

LOOKED_AT = 1000  # pictures of both splits together, up to which near copies are looked for
SIDE = 16  # of a thumbnail, which is compared gray level by gray level
BITS = 8  # of both sides, of 128 signs of differences between neighbors, that may differ
LEVELS = 8.0  # mean difference of gray levels that near copies may have
FLAT = 8.0  # spread of gray levels below which a picture shows too little to be told apart

File = Path | Member
Pair = tuple[File, File]  # of val, of train


class Shared(NamedTuple):
    """Pictures of val with their like in train."""

    same: list[Pair]  # to the byte
    near: list[Pair]  # saved anew, or resized, or two frames of one film


def shared_by(train: Split, val: Split) -> Shared:
    """The pictures that both have; near copies where there are at most `LOOKED_AT` pictures, since each is decoded."""
    learned, measured = _paths(train), _paths(val)
    same = _same(learned, measured)
    if len(learned) + len(measured) > LOOKED_AT:
        return Shared(same, [])
    copies = {path for path, _ in same}
    return Shared(same, _near(learned, [path for path in measured if path not in copies]))


def _paths(split: Split) -> list[File]:
    return [sample.image for sample in split.samples if isinstance(sample.image, File)]


def _same(train: list[File], val: list[File]) -> list[Pair]:
    """Files of the same content; only those of one size are read."""
    by_size: dict[int, list[File]] = {}
    for path in train:
        by_size.setdefault(_bytes_of(path), []).append(path)
    by_hash: dict[int, dict[str, File]] = {}  # of each size that val has too
    pairs: list[Pair] = []
    for path in val:
        size = _bytes_of(path)
        if size not in by_size:
            continue
        if size not in by_hash:
            # In reverse, so that of several files of one content the first stays.
            by_hash[size] = {_hash(other): other for other in reversed(by_size[size])}
        content = _hash(path)
        if content and content in by_hash[size]:
            pairs.append((path, by_hash[size][content]))
    return pairs


def _bytes_of(path: File) -> int:
    try:
        return path.size if isinstance(path, Member) else os.stat(path).st_size
    except OSError:  # it is named where it is read
        return -1


def _hash(path: File) -> str:
    """Of the content; empty for a file that cannot be read."""
    try:
        return hash_of([path])
    except OSError:
        return ""


def _near(train: list[File], val: list[File]) -> list[Pair]:
    """Pictures of val that look like one of train, each with the one that is nearest."""
    learned, first = _prints(train)
    measured, second = _prints(val)
    if not learned or not measured:
        return []
    signs = _signs(first)  # (pictures, 128) bool
    pairs: list[Pair] = []
    for path, print_, own in zip(measured, second, _signs(second), strict=True):
        differ = (signs != own).sum(1)
        levels = np.abs(first - print_).mean((1, 2))
        nearest = int(np.argmin(np.where(differ <= BITS, levels, np.inf)))
        if differ[nearest] <= BITS and levels[nearest] <= LEVELS:
            pairs.append((path, learned[nearest]))
    return pairs


def _prints(paths: list[File]) -> tuple[list[File], np.ndarray]:
    """Thumbnails (pictures, SIDE, SIDE) float of pictures that show something, and which these are."""
    kept: list[File] = []
    prints: list[np.ndarray] = []
    for path in paths:
        try:
            small = thumbnail(path, SIDE).astype(np.float32)
        except DataError:  # it is named where it is read
            continue
        if small.std() >= FLAT:
            kept.append(path)
            prints.append(small)
    return kept, np.array(prints, np.float32).reshape(len(kept), SIDE, SIDE)


def _signs(prints: np.ndarray) -> np.ndarray:
    """Whether each part of a picture is brighter than the next one to its right, and below: (pictures, 128)."""
    small = prints.reshape(len(prints), SIDE // 2, 2, SIDE // 2, 2).mean((2, 4))
    across = np.roll(small, -1, 2) > small
    down = np.roll(small, -1, 1) > small
    return np.concatenate([across.reshape(len(small), -1), down.reshape(len(small), -1)], 1)
