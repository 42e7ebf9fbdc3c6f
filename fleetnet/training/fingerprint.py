"""Whether a run goes on with the samples that it began with: a fingerprint of them.

A sample is its path relative to the folder that all pictures have in common (or that of its archive
and its name there), the size of its files in bytes, and its labels and annotations; neither the
time of a file nor where the folder lies. So data may move, and a copy is the same.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..data import Sample, Split
from ..errors import DataError
from ..files import write_text
from ..reading import ANNOTATIONS, DESCRIPTION, Fields, Member, from_json, read_text, to_json

RECORD = "data.json"
NAMES = "state/samples.json"  # what is known of each sample
NAMED = 100_000  # samples that are kept one by one, so that a later difference can be named
Lines = dict[str, str]  # of each sample its name and the hash of all that is known of it, in order


def lines_of(split: Split) -> Lines:
    files = {file for sample in split.samples if (file := _file_of(sample)) is not None}
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    folder = os.path.commonpath(folders) if folders else ""
    lines: Lines = {}
    for index, sample in enumerate(split.samples):
        name = _name(sample, folder) or f"picture {index}"
        text = to_json(_plain(_contents(sample), folder), ensure_ascii=False)
        key = name if name not in lines else f"{name} ({index})"  # a picture may be listed twice
        lines[key] = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    return lines


def _file_of(sample: Sample) -> Path | None:
    """The file that a picture is, or is in; None for one that is made and not read."""
    if isinstance(sample.image, Member):
        return sample.image.archive.path
    return sample.image if isinstance(sample.image, Path) else None


def _name(sample: Sample, folder: str) -> str:
    """The path of a picture from the folder that all have in common; "" for one that is made."""
    file = _file_of(sample)
    if file is None:
        return ""
    path = os.path.relpath(file, folder)
    return f"{path}: {sample.image.name}" if isinstance(sample.image, Member) else path


def _contents(sample: Sample) -> list[object]:
    objects = (
        None if sample.objects is None else [list(vars(item).values()) for item in sample.objects]
    )
    contents: list[object] = [sample.image, sample.label, objects, sample.semantic]
    # Only where there are any: fingerprints of other samples stay as older versions recorded them.
    return contents if sample.tags is None else [*contents, sample.tags]


def _plain(value: object, folder: str) -> object:
    """A value as JSON that is the same in another session and with the data elsewhere."""
    if isinstance(value, Path | Member):
        return _of_file(value, folder)
    if isinstance(value, partial):
        return [
            _plain(value.func, folder),
            _plain(value.args, folder),
            _plain(value.keywords, folder),
        ]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # such as label maps with other numbers
        values = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return _plain([type(value).__qualname__, *values], folder)
    if isinstance(value, Mapping):
        return [[str(key), _plain(item, folder)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item, folder) for item in value]
    if isinstance(value, np.ndarray):
        return [value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _of_file(file: Path | Member, folder: str) -> list[object]:
    """A file as its path from the folder, or its archive's and its name there, and its bytes."""
    if isinstance(file, Member):
        return [*_of_file(file.archive.path, folder)[:1], file.name, file.size]
    size = file.stat().st_size if file.is_file() else -1
    return [os.path.relpath(file, folder) if folder else str(file), size]


def check(
    run: Path, splits: Mapping[str, Split], epochs: int, accept: bool, *, begun: bool
) -> bool:
    """Compare the splits ("train", "val") with those that the run was trained on, and record them.

    `epochs` have been trained, and some steps if it has `begun`. Whether they differ: raises
    `DataError` that names what does unless `accept`, which records the new ones.
    """
    now = {name: lines_of(split) for name, split in splits.items()}
    records = read(run) if begun else []
    hashes = {name: _hash(lines) for name, lines in now.items()}
    if records:
        before = records[-1]
        differing = [name for name in now if before["splits"][name]["sha256"] != hashes[name]]
        if not differing:
            return False
        if not accept:
            text = _named(run)
            counts = {name: before["splits"][name]["samples"] for name in differing}
            words = "; ".join(
                f"{name}: {_difference(counts[name], text.get(name), now[name])}"
                for name in differing
            )
            raise DataError(
                f"the data are not those that {run} was trained on ({words}), and a resumed run "
                "continues exactly. To go on with the data as they are now, name them anew with "
                "--data; that is then recorded"
            )
    about = {name: {"samples": len(lines), "sha256": hashes[name]} for name, lines in now.items()}
    few = {name: lines for name, lines in now.items() if len(lines) <= NAMED}
    write_text(run / NAMES, to_json(few, ensure_ascii=True))
    write_text(
        run / RECORD,
        to_json([*records, {"from_epoch": epochs + 1, "splits": about}], indent=1) + "\n",
    )
    return bool(records)


def check_same(run: Path, name: str, split: Split, epochs: range) -> None:
    """`DataError` where a split is not the one that `epochs` of a run, from 0, were trained on."""
    records = read(run)
    lines = lines_of(split)
    for number, record in enumerate(records):
        is_last = number + 1 == len(records)
        first = record["from_epoch"] - 1
        end = epochs.stop if is_last else records[number + 1]["from_epoch"] - 1
        if not any(first <= epoch < end for epoch in epochs):
            continue
        of_run = record["splits"][name]
        if of_run["sha256"] != _hash(lines):
            before = _named(run).get(name) if is_last else None
            raise DataError(
                f"the data are not those that {run} was trained on in epoch {first + 1} "
                f"({name}: {_difference(of_run['samples'], before, lines)})"
            )


def summary(split: Split) -> Fields:
    """How many samples there are, and a hash of all that is known of them."""
    lines = lines_of(split)
    return {"samples": len(lines), "sha256": _hash(lines)}


def read(run: Path) -> list[Fields]:
    """What a run was trained on, {"from_epoch", "splits"} for each set of data; empty: unknown."""
    try:
        records = from_json(read_text(run / RECORD, DESCRIPTION))
    except (OSError, ValueError):
        return []
    whole = isinstance(records, list) and all(
        isinstance(record, dict) and isinstance(record.get("splits"), dict) for record in records
    )
    return records if whole else []


def _named(run: Path) -> dict[str, Lines]:
    try:
        named = from_json(read_text(run / NAMES, ANNOTATIONS))
    except (OSError, ValueError):
        return {}
    return named if isinstance(named, dict) else {}


def _hash(lines: Lines) -> str:
    return hashlib.sha256(to_json(lines).encode()).hexdigest()


def _difference(count: int, before: Lines | None, now: Lines) -> str:
    if before is None:
        return f"{len(now)} samples, {count} before"
    parts = [
        _some("added", [name for name in now if name not in before]),
        _some("gone", [name for name in before if name not in now]),
        _some(
            "of another size or annotation", [n for n in now if n in before and now[n] != before[n]]
        ),
    ]
    return ", ".join(part for part in parts if part) or "the same in another order"


def _some(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})" if names else ""
