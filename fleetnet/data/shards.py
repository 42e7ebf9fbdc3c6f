"""Shards: tar files in WebDataset's naming, read at random places through an index.

    root/train-000000.tar  root/train-000001.tar  root/val-000000.tar     (or in root/train, root/val)

What belongs to one sample is called alike up to the first dot: 0001.jpg with

    .cls        the class: its number, or its name
    .json       an object: `label` (number or name), `tags` (a list of them), or `objects`, each with
                `box` [x0, y0, x1, y1] (or COCO's `bbox`), `label`, `segmentation`, `crowd`, `area`
    .txt        the name of the class, where there is neither of these; captions are not learned
    .seg.png    the label of each pixel (or .png beside .jpg), 255 for no class

Class names are those of dataset.json (`classes`) or classes.txt beside the shards or in the folder
above, else the names or numbers that occur. `root` may also be one tar file, or a pattern as
`shards-{000000..000127}.tar`. Splits are named by the files or their folders; without one for "val"
every tenth sample is held back for it.

Samples are not streamed: `_shard_index` keeps beside each shard where its samples lie, so that they
are read in any order, by any process, and a run goes on within an epoch. `write` makes such shards.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..images import EXTENSIONS
from . import OBJECTS, WORDS, Notes, Source, Split, check_exists, few, part_of
from ._conventions import USUAL, Places
from ._shard_classes import about
from ._shard_files import (
    Shards,
    gaps,
    holds_nothing_else,
    is_pattern,
    is_shard,
    left_over,
    packed_in,
    shards_of,
)
from ._shard_index import TEXTS, Index, beginning, index_of
from ._shard_samples import Reader, Row
from ._shard_texts import NOTHING, Told, parse_json
from ._shard_texts import parse as parse
from ._shard_writer import write as write
from ._tags import WAY_OUT

EXPECTS = (
    "ROOT/train-000000.tar and val-000000.tar (WebDataset), or a pattern as train-{000000..000127}"
    ".tar, whose samples have .jpg with .cls or .json"
)
TARGETS: tuple[str, ...] = ("label", "tags", "boxes", "masks", "semantic")
FALLBACK = False
PLACES: tuple[str, ...] = ()


def detect(root: str, target: str = "label") -> bool:
    """True for a tar file or a pattern of them, and for a folder of shards; with annotations of the kind."""
    if is_shard(root) and (os.path.isfile(root) or is_pattern(root)):
        kinds = _kinds(root)
        return target in kinds or _is_for_load_to_say(kinds, target)
    folder = Path(root)
    if not os.path.isdir(folder):
        return False
    try:
        _, there = shards_of(root)
    except DataError:  # there are none, or only compressed ones
        return bool(packed_in(folder)) and holds_nothing_else(folder)
    kinds = _kinds_in(there)
    return target in kinds or (_is_for_load_to_say(kinds, target) and holds_nothing_else(folder))


def _is_for_load_to_say(kinds: set[str], target: str) -> bool:
    """Whether there is nothing of the kind in shards, and `load` says why: nothing at all, or tags."""
    return not kinds or (kinds == {"tags"} and target == "label")


def _kinds(root: str) -> set[str]:
    try:
        return _kinds_in(shards_of(root)[1])
    except DataError:  # as `load` says
        return set()


def _kinds_in(there: Shards) -> set[str]:
    """The kinds of annotation that the first samples of the first shard have, beside a picture."""
    try:
        index = beginning(next(iter(there.values()))[0])
    except DataError:
        return set()
    kinds: set[str] = set()
    for row in _rows(index):
        if not row.has_picture:
            continue
        of_json = _or_nothing(row.text("json"))
        if row.has_map:
            kinds.add("semantic")
        if of_json.objects is not None:
            masks = any(item.get("segmentation") for item in of_json.objects)
            kinds |= {"boxes", "tags"} | ({"masks"} if masks else set())
        if of_json.tags is not None:
            kinds.add("tags")
        if row.text("cls") or of_json.label is not None or row.text("txt"):
            kinds |= {"label", "tags"}
    return kinds


def _or_nothing(text: bytes) -> Told:
    try:
        return parse_json(text, "") if text else NOTHING
    except DataError:
        return NOTHING


def load(root: str, split: str | None, target: str = "label", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, in the order of the shards; their pictures are members of these.

    What is damaged or has no annotation of the kind is left out with a line in `skipped`. Raises
    `DataError` naming the shard and the sample for what is faulty, and where nothing is left.
    """
    if not is_pattern(root):
        check_exists(root)
    own, there = shards_of(root)
    part = part_of(split, {name: files[0] for name, files in there.items() if name}, root, own)
    files = there.get(part.there) or next(iter(there.values()))
    notes = Notes()
    _say_left_over(root, there, notes)
    indices = _indices(files, notes)
    rows = _with_picture(indices, files, notes)
    _say_unread(indices, files, notes)
    if os.path.isdir(root):  # what is named otherwise may be a part
        _say_missing(files, part.there or "all", len(rows), notes)
    others = [file for name, more in there.items() if name != part.there for file in more]
    reader = Reader(target, part.there or "all", files, lambda: _every(others), notes)
    made = reader.samples(rows, part.take)
    if made is None:
        kind = WORDS["boxes" if target == OBJECTS else target]
        has_tags = target == "label" and any(row.told().tags for row in rows)
        way_out = f", but tags ({WAY_OUT})" if has_tags else ""
        raise DataError(_nothing(indices, files, f"no {kind}{way_out}"))
    samples, classes = made
    source = Source(root, "shards", part.split, _named(files), part.take)
    return Split(samples, classes.names, notes.lines, classes.ids, source, notes.annotations())


def _indices(files: Sequence[Path], notes: Notes) -> list[Index]:
    """The index of each shard; what was left out of it, and what is damaged, is said."""
    unkept: list[str] = []
    indices = [index_of(file, unkept) for file in files]
    for index in indices:
        notes.lines += index.notes
        if index.damage:
            _say_damage(index, notes)
    if unkept:
        notes.say(unkept[0] + (f" (and {len(unkept) - 1} more)" if len(unkept) > 1 else ""))
    return indices


def _say_damage(index: Index, notes: Notes) -> None:
    line = f"{str(index.archive.path)!r} is damaged: {index.damage}"
    if not index.keys:
        raise DataError(f"{line}; no sample is before that")
    notes.lines.insert(
        0, f"{line}; the {len(index.keys)} samples before that are used, what is behind it is not"
    )


def _with_picture(indices: Sequence[Index], files: Sequence[Path], notes: Notes) -> list[Row]:
    """The samples that have a picture."""
    rows: list[Row] = []
    without: list[Row] = []
    for index in indices:
        for i, place in enumerate(index.pictures.place.tolist()):
            (rows if place else without).append(Row(index, i))
    if not rows:
        raise DataError(_nothing(indices, files, "no pictures"))
    if without:
        notes.say(f"{without[0].entry}: no picture; left out, as {len(without)} in all")
    return rows


def _say_unread(indices: Sequence[Index], files: Sequence[Path], notes: Notes) -> None:
    """Say which members are pictures or texts by their extension, and no part of a sample by what is before it."""
    unread: Counter[str] = Counter()
    for index in indices:
        unread.update({end: count for end, count in index.others.items() if _is_alike(end)})
    if unread:
        ends = few(end for end, _ in unread.most_common())
        notes.say(
            f"{_named(files)}: {unread.total()} members are not read: they end in {ends}, counted "
            "from the first dot, up to which what belongs to one sample is called alike"
        )


def _is_alike(end: str) -> bool:
    last = end.rpartition(".")[2]
    return last in TEXTS or f".{last}" in EXTENSIONS


def _every(files: Sequence[Path]) -> list[Row]:
    """All samples of some shards."""
    return [row for index in map(index_of, files) for row in _rows(index)]


def _rows(index: Index) -> list[Row]:
    return [Row(index, i) for i in range(len(index.keys))]


def _nothing(indices: Sequence[Index], files: Sequence[Path], what: str) -> str:
    """That there is nothing to learn, and what there is."""
    parts: Counter[str] = Counter()
    for index in indices:
        parts["pictures"] += int((index.pictures.place > 0).sum())
        parts["label maps"] += int((index.maps.place > 0).sum())
        parts.update({f".{name}": sum(map(bool, texts)) for name, texts in index.texts.items()})
        parts.update(index.others)
    there = few((f"{count} {name}" for name, count in parts.items() if count), 10)
    hint = "; .txt are captions, which are not learned" if parts[".txt"] else ""
    if any("/" in index.keys[0] for index in indices if index.keys):
        hint += "; where the folders in it are classes, unpack it, and name the folder"
    return (
        f"{_named(files)}: {what}; in its samples there are: {there or 'none'}{hint}. Expected: "
        ".jpg with .cls (a class), .json (label, tags or objects) or .seg.png (label map)"
    )


def _named(files: Sequence[Path]) -> str:
    """Shards in a few words."""
    if len(files) == 1:
        return str(files[0])
    starts = {file.stem.rstrip("0123456789") for file in files}
    start = starts.pop() if len(starts) == 1 else ""
    return f"{files[0].parent / start}*.tar ({len(files)} shards)"


def _say_left_over(root: str, there: Shards, notes: Notes) -> None:
    folder = Path(root)
    others = left_over(folder, there) if os.path.isdir(folder) else []
    if others:
        names = few(file.name for file in others)
        notes.say(f"{str(folder)!r}: shards whose names say no split are not read: {names}")


def _say_missing(files: Sequence[Path], split: str, count: int, notes: Notes) -> None:
    """Say where shards or samples are missing, by the numbers of the shards or by dataset.json."""
    absent = gaps(files)
    if absent:
        notes.say(f"{_named(files)}: there are no shards of the numbers {few(absent)}")
    splits = about(files[0].parent).get("splits")
    of_split = splits.get(split) if isinstance(splits, dict) else None
    expected = of_split.get("samples") if isinstance(of_split, dict) else None
    if isinstance(expected, int) and expected != count:
        notes.say(f"{_named(files)}: {count} samples; dataset.json says {expected}")
