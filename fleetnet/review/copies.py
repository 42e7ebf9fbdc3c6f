"""Pictures that are there twice: within a split, or in train and in what is measured.

A picture of val that is in train too is known by heart: val's figures are then better than the
network is. Training compares the files, and thumbnails where they are few; the full look compares
the pixels of all pictures.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data import Sample, Split
from ..errors import DataError
from ..images import thumbnail
from ..reading import Member, hash_of
from . import Finding, counted, finding, name_of
from .look import Look
from .prints import SIDE, alike

LOOKED_AT = 1000  # pictures of both splits together, of which training makes thumbnails

File = Path | Member
Pair = tuple[File, File]  # of val, of train


class Shared(NamedTuple):
    """Pictures of val with their like in train."""

    same: list[Pair]  # to the byte
    near: list[Pair]  # saved anew, or resized, or two frames of one film


def shared_files(train: Split, val: Split) -> list[Finding]:
    """Pictures of val that train has too, by their files; near copies where there are few pictures."""
    shared = shared_by(train, val)
    return _of_shared(shared.same, shared.near, "val", len(val.samples))


def shared_by(train: Split, val: Split) -> Shared:
    """The pictures that both have; near copies where there are at most `LOOKED_AT` pictures, since each is decoded."""
    learned, measured = _paths(train), _paths(val)
    same = _same(learned, measured)
    if len(learned) + len(measured) > LOOKED_AT:
        return Shared(same, [])
    copies = {path for path, _ in same}
    return Shared(same, _near(learned, [path for path in measured if path not in copies]))


def _of_shared(
    same: Sequence[tuple[object, object]],
    near: Sequence[tuple[object, object]],
    name: str,
    count: int,
) -> list[Finding]:
    thing = {"val": "validation picture"}.get(name, f"{name} picture")
    findings: list[Finding] = []
    for kind, pairs, like in (
        ("shared", same, "the same as"),
        ("shared-nearly", near, "nearly the same as"),
    ):
        text = (
            f"{counted(len(pairs), thing, count)} {like} pictures of train, so figures of {name} "
            "are better than they should be"
        )
        findings += finding(kind, "warning", text, _named(pairs), name)
    return findings


def _named(pairs: Iterable[tuple[object, object]]) -> list[str]:
    return [f"{str(one)!r} ({str(other)!r})" for one, other in pairs]


# Files -----------------------------------------------------------------------------------------


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
    """Pictures of val that look like one of train."""
    if not val:
        return []
    paths = [*train, *val]
    nearly = alike(np.stack([_thumbnail(path) for path in paths]))
    splits = ["train"] * len(train) + ["val"] * len(val)
    partners = _partners(nearly.first, nearly.pairs, splits)
    return [(paths[other], paths[one]) for one, other in partners if one < len(train) <= other]


def _thumbnail(path: File) -> np.ndarray:
    try:
        return thumbnail(path, SIDE)
    except DataError:  # it is named where it is read
        return np.zeros((SIDE, SIDE), np.uint8)


def _partners(
    groups: np.ndarray, pairs: np.ndarray, splits: Sequence[str]
) -> list[tuple[int, int]]:
    """For each picture the first like it in train, and the first in its own split; (the first, it).

    `groups` (n,) are those of `Alike.first`, `pairs` (m, 2) of groups that are near; all members of
    such two are taken to be alike. Only the first is taken, since those of a film are many.
    """
    members = list(enumerate(zip(groups.tolist(), splits, strict=True)))
    firsts: dict[int, dict[str, int]] = {}  # group -> split -> its first picture
    for number, (group, split) in members:
        firsts.setdefault(group, {}).setdefault(split, number)
    nearest = {group: dict(of_split) for group, of_split in firsts.items()}
    for one, other in [*pairs.tolist(), *pairs[:, ::-1].tolist()]:
        for split, number in firsts[other].items():
            nearest[one][split] = min(number, nearest[one].get(split, number))
    return [
        (nearest[group][other], number)
        for number, (group, split) in members
        for other in dict.fromkeys(("train", split))
        if nearest[group].get(other, number) < number
    ]


# Pixels ----------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    split: str
    sample: Sample
    look: Look
    classes: Sequence[str]  # of its split; labels are the same in all of them

    def __str__(self) -> str:
        return name_of(self.sample)


def copies(splits: Mapping[str, Split], looks: Mapping[str, Sequence[Look]]) -> list[Finding]:
    """Pictures that are there twice by their pixels, within splits and between train and others."""
    pictures = [
        _Picture(name, sample, look, split.classes)
        for name, split in splits.items()
        for sample, look in zip(split.samples, looks[name], strict=True)
        if not look.fault and isinstance(sample.image, File)
    ]
    same, firsts = _same_pixels(pictures)
    near = _near_pixels(pictures, firsts, same)
    findings: list[Finding] = []
    for name, split in splits.items():
        if name != "train":
            exact, nearly = (_of_other(pairs, name, "train") for pairs in (same, near))
            findings += _of_shared(exact, nearly, name, len(split.samples))
    findings += _labeled_twice([*same, *near])
    for name in splits:
        exact, nearly = (_alike_in(pairs, name) for pairs in (same, near))
        findings += _within(exact, nearly, name)
    return findings


_Two = tuple[_Picture, _Picture]  # the second looks like the first, which comes before it


def _same_pixels(pictures: Sequence[_Picture]) -> tuple[list[_Two], list[int]]:
    """Pairs of the same pixels in one split, or in train and another; and who is first of its pixels."""
    first: dict[tuple[str, bytes], _Picture] = {}
    pairs: list[_Two] = []
    originals: dict[bytes, int] = {}
    for number, picture in enumerate(pictures):
        digest = picture.look.digest
        originals.setdefault(digest, number)
        learned, before = first.get(("train", digest)), first.get((picture.split, digest))
        if before is not None:
            pairs.append((before, picture))
        if learned is not None and picture.split != "train":
            pairs.append((learned, picture))
        first.setdefault((picture.split, digest), picture)
    return pairs, list(originals.values())


def _near_pixels(
    pictures: Sequence[_Picture], firsts: Sequence[int], same: Sequence[_Two]
) -> list[_Two]:
    """Pairs that are nearly the same, but for pictures whose pixels are in the other's split anyway.

    Of pictures of the same pixels the first, in `firsts`, is compared for all of them.
    """
    if not pictures:
        return []
    nearly = alike(np.stack([pictures[i].look.gray for i in firsts]))
    first, pairs = np.array(firsts)[nearly.first], np.array(firsts)[nearly.pairs]
    of_digest = {pictures[i].look.digest: group for i, group in zip(firsts, first, strict=True)}
    groups = np.array([of_digest[picture.look.digest] for picture in pictures])
    copied = {(one.split, id(other)) for one, other in same}
    partners = [
        (one, other)
        for one, other in _partners(groups, pairs, [picture.split for picture in pictures])
        if (pictures[one].split, id(pictures[other])) not in copied
    ]
    numbers = dict.fromkeys([*map(tuple, pairs.tolist()), *partners])
    return [(pictures[one], pictures[other]) for one, other in numbers]


def _of_other(pairs: Sequence[_Two], name: str, other: str) -> list[_Two]:
    """Each picture of the split `name` that looks like one before it in the `other`, with that one."""
    of_picture: dict[int, _Two] = {}
    for before, picture in pairs:
        if picture.split == name and before.split == other:
            of_picture.setdefault(id(picture), (picture, before))
    return list(of_picture.values())


def _alike_in(pairs: Sequence[_Two], name: str) -> list[_Two]:
    """Pairs within a split, but for those that are annotated differently."""
    of_split = _of_other(pairs, name, name)
    return [pair for pair in of_split if not _annotations(*pair)]


def _within(same: Sequence[_Two], near: Sequence[_Two], name: str) -> list[Finding]:
    exact = f"{name}: {counted(len(same), 'picture')} there again, to the pixel"
    nearly = (
        f"{name}: {counted(len(near), 'picture')} nearly the same as another one: frames of one "
        "film, or copies; keep them in one split"
    )
    return [
        *finding("copies", "note", exact, _named(same), name),
        *finding("copies-nearly", "note", nearly, _named(near), name),
    ]


def _labeled_twice(pairs: Sequence[_Two]) -> list[Finding]:
    differing = [
        f"{one!s} ({said[0]}), {other!s} ({said[1]})"
        for one, other in pairs
        if (said := _annotations(one, other))
    ]
    text = (
        f"{counted(len(differing), 'picture')} there twice, and annotated differently: one of both "
        "is wrong"
    )
    return finding("labeled-twice", "warning", text, differing)


def _annotations(one: _Picture, other: _Picture) -> tuple[str, str] | None:
    """What two pictures are annotated with, in words, where that differs.

    Two frames of one film may show other objects, and not another class: of nearly the same
    pictures only labels are compared.
    """
    first, second = one.sample, other.sample
    if first.objects is None and first.labels() != second.labels():
        named = [
            ", ".join(picture.classes[i] for i in picture.sample.labels())
            for picture in (one, other)
        ]
        return named[0] or "nothing", named[1] or "nothing"
    if one.look.digest != other.look.digest:
        return None
    if _objects(first) != _objects(second):
        return f"{len(first.objects or ())} objects", f"{len(second.objects or ())} objects"
    maps = one.look.pixels, other.look.pixels
    if maps[0] is not None and maps[1] is not None and (maps[0] != maps[1]).any():
        return "one label map", "another one"
    return None


def _objects(sample: Sample) -> list[tuple[int, tuple[int, ...]]]:
    """Labels and boxes to a pixel, in an order that does not depend on the file."""
    return sorted((one.label, tuple(map(round, one.box))) for one in sample.objects or ())
