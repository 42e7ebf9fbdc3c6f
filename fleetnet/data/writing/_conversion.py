"""A data set of one format as one of another: read, taken to what that can hold, written, read back, renamed."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import DataError, UsageError, named_arguments, suggest
from ...files import check_writable, filling
from .. import OBJECTS, TARGETS, WORDS, Places, Split, few
from .._contents import check_lost
from .._names import by_name
from .._targets import targets_of
from ._album import Album
from ._losses import PARTS, reduced
from ._proof import check
from ._reading import splits_of
from ._table import Writer, find

CLASSES = {  # what of classes is lost, as in `_losses.PARTS`
    "order": "classes that get another number, since the format orders them by name",
    "unused": "classes without a picture to learn from, which are left out",
    "unlearned": "pictures of these classes in other splits, which are left out",
}
OBJECT_TARGETS = ("boxes", "masks")


@dataclass(frozen=True)
class Converted:
    """What was written, and what was not."""

    folder: str
    format: str  # as `--to` names it
    target: str  # of `data.TARGETS`, or OBJECTS: boxes, with masks where there are
    splits: dict[str, Split]  # as they were written
    lost: dict[str, int] = field(default_factory=dict)  # what the format cannot hold -> how much
    left_out: list[str] = field(
        default_factory=list
    )  # a line for what was not read, with the reason
    linked: int = 0  # pictures that are links
    renamed: int = 0  # pictures that are called otherwise than before


@named_arguments
def convert(
    data: str,
    to: str,
    out: str | Path,
    *,
    format: str | None = None,
    target: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    split: str | None = None,
    lossy: bool = False,
    link: bool = False,
    max_bad: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write the data at `data` as the format `to` into the folder `out`, whole or not at all.

    `format`, `images` and `masks` are those of `data.load`, `split` one split alone, and `target`
    the kind of annotation, where data and format have several. Pictures are copied byte by byte, or
    with `link` linked where the disk allows it. What is written is read back and compared. Raises
    `UsageError` for a folder that is not empty, `DataError` for data that cannot be read, of which
    more than the share `max_bad` of all annotations fell away, and, without `lossy`, where the
    format cannot hold what the data have; `WriteError` where it cannot be written.
    """
    kind = _target(find(to), to, data, format, target, masks)
    if os.path.isdir(data) and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(data)):
        raise UsageError(
            f"--out is {str(out)!r}, within the data, which would then hold all of it twice: give "
            "a folder elsewhere"
        )
    _check_free(out)
    splits = splits_of(data, format, kind, Places(images, masks), split)
    for one in splits.values():
        check_lost(one, max_bad)
    return write(splits, kind, to, out, lossy=lossy, link=link, max_bad=max_bad, progress=progress)


def write(
    splits: Mapping[str, Split],
    target: str,
    to: str,
    out: str | Path,
    *,
    lossy: bool = False,
    link: bool = False,
    max_bad: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write splits of one list of classes, by their names, or data without splits as "all".

    `target` is the kind of their annotation; all else is as in `convert`.
    """
    writer = find(to)
    _check_free(out)
    album = Album(link, progress)
    readable = album.measured(splits)
    splits = {name: replace(one, samples=readable[name]) for name, one in splits.items()}
    fitted, lost = _fitted(splits, writer, album)
    _check_losses(lost, to, writer, lossy)
    album.count = sum(len(one.samples) for one in fitted.values())
    _stage(writer, fitted, Path(os.path.realpath(out)), target, album, max_bad)
    left_out = [line for one in fitted.values() for line in one.skipped]
    return Converted(
        str(out),
        to,
        target,
        fitted,
        {_words(name): count for name, count in lost.items()},
        [*dict.fromkeys([*left_out, *album.left_out])],
        album.linked,
        album.renamed,
    )


def _check_free(out: str | Path) -> None:
    """Raise unless a folder is empty or not there, and can be written."""
    check_writable(out, "--out", folder=True)
    if os.path.isdir(out) and os.listdir(out):
        raise UsageError(f"--out is {str(out)!r}, which is not empty: give a new folder")


def _target(
    writer: Writer,
    to: str,
    data: str,
    format: str | None,
    target: str | None,
    masks: str | None,
) -> str:
    """The kind of annotation to read: the one that is asked for, or the only one that both have."""
    if target is not None:
        if target not in TARGETS:
            raise UsageError(f"--target is {target!r}: {suggest(target, TARGETS)}")
        if target not in writer.TARGETS:
            raise UsageError(f"{to} has no {WORDS[target]}: it holds {_named(writer.TARGETS)}")
        return target
    there = targets_of(data, format, masks)
    both = [name for name in there if name in writer.TARGETS]
    if not both:
        raise DataError(
            f"{data!r} has {_named(there)}, and {to} holds {_named(writer.TARGETS)}: convert it to "
            "another format, or say with --target what else it has"
        )
    objects = [name for name in both if name in OBJECT_TARGETS]
    if objects == both:
        return OBJECTS if "boxes" in objects else "masks"
    if len(both) == 1:
        return both[0]
    raise UsageError(
        f"{data!r} may be read with {_named(both)}, and {to} holds them all: say which with --target"
    )


def _named(targets: "list[str] | tuple[str, ...]") -> str:
    return few(f"{WORDS[name]} ({name})" for name in targets)


# ---- what the format can hold --------------------------------------------------------------------


def _fitted(
    splits: Mapping[str, Split], writer: Writer, album: Album
) -> tuple[dict[str, Split], Counter[str]]:
    """The splits as the writer can hold them, and how much of what is lost."""
    lost: Counter[str] = Counter()
    fitted = {}
    for name, split in splits.items():
        fitted[name], of_split = reduced(split, writer.HOLDS, album)
        lost += of_split
    if "unused" not in writer.HOLDS:
        fitted, lost["unused"], lost["unlearned"] = _of_used_classes(fitted)
    if "order" not in writer.HOLDS:
        fitted, lost["order"] = _in_order_of_names(fitted)
    return fitted, +lost


def _of_used_classes(splits: Mapping[str, Split]) -> tuple[dict[str, Split], int, int]:
    """The splits without the classes that no picture of the first one has.

    And how many these classes are, and how many pictures of them other splits have. A split that
    has no other pictures is left out.
    """
    first = next(iter(splits.values()))
    used = {first.classes[sample.label] for sample in first.samples if sample.label is not None}
    classes = [name for name in first.classes if name in used]
    kept, dropped = {}, 0
    for name, split in splits.items():
        is_used = [label for label, of_label in enumerate(split.classes) if of_label in used]
        samples = [sample for sample in split.samples if sample.label in is_used]
        dropped += len(split.samples) - len(samples)
        if samples:
            kept[name] = by_name(replace(split, samples=samples), classes, "train")
    return kept, len(first.classes) - len(classes), dropped


def _in_order_of_names(splits: Mapping[str, Split]) -> tuple[dict[str, Split], int]:
    first = next(iter(splits.values()))
    classes = sorted(first.classes)
    count = sum(one != other for one, other in zip(classes, first.classes, strict=True))
    return {name: by_name(split, classes, "the data") for name, split in splits.items()}, count


def _words(name: str) -> str:
    return PARTS[name].words if name in PARTS else CLASSES[name]


def _check_losses(lost: Mapping[str, int], to: str, writer: Writer, lossy: bool) -> None:
    """`DataError` where something is lost that changes what is learned or measured, and that may not be."""
    grave = [
        f"{count} {_words(name)}"
        for name, count in lost.items()
        if name != "order" and not (name in PARTS and PARTS[name].slight)
    ]
    if not grave or lossy:
        return
    boxes = {"mask", "holes", "parts"} & lost.keys() and "boxes" in writer.TARGETS
    other = " --target boxes converts the boxes alone;" if boxes else ""
    if "unused" in lost:
        other = " --to list holds them;"
    raise DataError(
        f"{to} cannot hold all of it: {'; '.join(grave)}.{other} --lossy writes what it can hold, "
        "and counts the rest"
    )


# ---- writing -------------------------------------------------------------------------------------


def _stage(
    writer: Writer,
    splits: Mapping[str, Split],
    path: Path,
    target: str,
    album: Album,
    max_bad: float,
) -> None:
    with filling(path, "convert") as folder:
        writer.write(splits, folder, album)
        bad = len(album.left_out)
        if bad > max_bad * (bad + len(album.placed)):
            raise DataError(
                f"{bad} of {bad + len(album.placed)} samples cannot be read, more than the share "
                f"of {max_bad:g} that --max-bad allows. The first: {album.left_out[0]}"
            )
        check(folder, writer.FORMAT, target, splits, album)
