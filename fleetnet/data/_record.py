"""What a run keeps of its data, and the pictures that it is to be measured on because of that."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import data
from ..errors import DataError
from ..reading import HISTORY, Fields, Member, from_json, read_bytes
from . import USUAL, Places, Sample, Split
from ._contents import Contents

RECORD = "split.json"  # in a run folder


def describe(split: Split, contents: Contents) -> dict[str, Any]:
    """What was read, how much of each class, and what fell away."""
    source = split.source
    return {
        "root": source.root if source else None,
        "format": source.format if source else None,
        "split": source.split if source else None,
        "source": str(source) if source else None,
        "images": len(split.samples),
        "classes": len(split.classes),
        "counted": contents.unit,
        "by_class": contents.by_class(split.classes),
        "ignored": contents.ignored,
        "looked_at": contents.looked_at,
        "annotations": split.annotations.read,
        "dropped": split.annotations.dropped,
    }


def record(train: Split, val: Split, contents: Sequence[Contents]) -> dict[str, Any]:
    """What a run learns from and is measured on, with the names of pictures held back: nothing else says which."""
    both = {"train": describe(train, contents[0]), "val": describe(val, contents[1])}
    for part, split in (("train", train), ("val", val)):
        both[part]["names_sha256"] = _digest(names_of(split))
    if val.source and val.source.take in ("val", "kept"):
        both["val"] |= {"root": os.path.abspath(val.source.root), "held_back": names_of(val)}
    return both


def names_of(split: Split) -> list[str]:
    """The path of each picture, or that of its archive and its name there, relative to the folder of the data."""
    return [_name(sample, split) for sample in split.samples]


def _name(sample: Sample, split: Split) -> str:
    if callable(sample.image):
        return repr(sample.image)
    root = Path(split.source.root) if split.source else Path()
    image = sample.image
    file = image.archive.path if isinstance(image, Member) else image
    name = Path(os.path.relpath(file, root if os.path.isdir(root) else root.parent)).as_posix()
    return f"{name}: {image.name}" if isinstance(image, Member) else name


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


def to_continue(
    root: str, format: str | None, target: str, run: Path, elsewhere: Places = USUAL
) -> tuple[Split, Split]:
    """Train and val for a run that goes on: what it held back stays held back, and what came since is learned."""
    train, val = (data.load(root, split, format, target, *elsewhere) for split in ("train", "val"))
    kept = _read_record(run)
    names = set(kept["val"].get("held_back") or ()) if kept else set()
    held_back_now = val.source is not None and val.source.take == "val"
    if not held_back_now or names == set(names_of(val)):
        return train, val
    samples = [(_name(sample, val) in names, sample) for sample in (*train.samples, *val.samples)]
    parts = [[sample for held, sample in samples if held is wanted] for wanted in (False, True)]
    if not all(parts):
        return train, val
    takes = zip((train, val), parts, ("rest", "kept"), strict=True)
    learned, measured = (
        replace(split, samples=part, source=split.source and replace(split.source, take=take))
        for split, part, take in takes
    )
    return learned, measured


def to_measure(
    root: str,
    split: str | None,
    format: str | None,
    target: str,
    model: str | Path,
    settings: Mapping[str, object],
    elsewhere: Places = USUAL,
) -> Split:
    """The split of `root` to measure a model on; `settings` are those of its training.

    A run that held pictures of this data back from training is measured on just these, whatever
    came since. Other data are measured as `load` reads them: the split that is asked for, or what
    is named.
    """
    same = _is_trained_on(root, settings)
    elsewhere = places_of(root, settings, elsewhere)
    if split not in (None, "val"):
        return data.load(root, split, format, target, *elsewhere)
    kept = _read_record(Path(model))
    if kept is None:
        return data.load(root, "val" if same else split, format, target, *elsewhere)
    names = kept["val"].get("held_back")
    if not names:
        return data.load(root, "val" if same else split, format, target, *elsewhere)
    parts = _parts(root, format, target, elsewhere)
    if parts is None or not (
        kept["val"]["root"] == os.path.abspath(root) or _same_names(parts, kept)
    ):
        return data.load(root, split, format, target, *elsewhere)
    return _chosen(parts, names, root)


def _is_trained_on(root: str, settings: Mapping[str, object]) -> bool:
    trained_on = settings.get("data")
    return isinstance(trained_on, str) and os.path.abspath(trained_on) == os.path.abspath(root)


def places_of(root: str, settings: Mapping[str, object], elsewhere: Places) -> Places:
    """Where parts of the data lie: as the user says now, else as a training on the same data had it."""
    if elsewhere != USUAL or not _is_trained_on(root, settings):
        return elsewhere
    of_training = (settings.get(key) for key in Places._fields)
    return Places(*(folder if isinstance(folder, str) else None for folder in of_training))


def _parts(
    root: str, format: str | None, target: str, elsewhere: Places
) -> tuple[Split, Split] | None:
    """Train and val of data of which we hold back val; None for other data."""
    try:
        val = data.load(root, "val", format, target, *elsewhere)
        if val.source is None or val.source.take != "val":
            return None
        return data.load(root, "train", format, target, *elsewhere), val
    except DataError:  # said where it is read for good
        return None


def _same_names(parts: tuple[Split, Split], kept: Fields) -> bool:
    """Whether data elsewhere are those of the record, to the name."""
    digests = [_digest(names_of(split)) for split in parts]
    return digests == [kept[part].get("names_sha256") for part in ("train", "val")]


def _chosen(parts: tuple[Split, Split], names: Sequence[str], root: str) -> Split:
    """The samples of these names, from train or val."""
    train, val = parts
    by_name = {_name(sample, val): sample for sample in (*train.samples, *val.samples)}
    lost = [name for name in names if name not in by_name]
    samples = [by_name[name] for name in names if name in by_name]
    if not samples:
        raise DataError(
            f"none of the {len(lost)} pictures that the run held back is in {root!r}, as "
            f"{lost[0]!r}; to measure on what is there now, give --split all"
        )
    skipped = [f"{name!r}: held back from training, and not there any more" for name in lost]
    source = (
        replace(val.source, take="kept")
        if val.source and by_name.keys() != set(names)
        else val.source
    )
    return replace(val, samples=samples, skipped=[*skipped, *val.skipped], source=source)


def sources(run: Path) -> dict[str, str]:
    """What a run was trained and measured on, for its report; nothing where it has no record."""
    kept = _read_record(run)
    if not kept:
        return {}
    parts = {"trained on": "train", "measured on": "val"}
    return {name: str(kept[part].get("source")) for name, part in parts.items()}


def _read_record(model: Path) -> Fields | None:
    """The record of the run that a model is of: its folder, or a file in it or in its export/; None without."""
    folders = [model] if os.path.isdir(model) else model.absolute().parents[:4]
    for folder in folders:
        file = folder / RECORD
        if not os.path.isfile(file):
            continue
        try:
            kept = from_json(read_bytes(file, HISTORY))
            val, train = kept["val"], kept["train"]
            names = val.get("held_back") or []
            if (
                isinstance(train, dict)
                and isinstance(names, list)
                and all(isinstance(name, str) for name in names)
            ):
                return {"train": train, "val": {"root": None, **val}}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
    return None
