"""How the verbs read data, what they say of them, and pictures of them for proofs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, UsageError
from ..find import names
from ._settings import About
from ._show import say

if TYPE_CHECKING:
    from ..data import Places, Split
    from ..data._contents import Contents
    from ..deploy.predictor import One
    from ..review import Finding

SHOWN = 10  # lines of what was left out
SHEETS = (".png", ".jpg", ".jpeg")  # files that pictures are drawn into
EXAMPLES = 3  # of what a finding is about
# kinds of findings that are lines of what was left out, or the line on lost annotations
SAID_BEFORE = ("lost-annotations", "left-out", "unused", "turned", "unreadable")
PICTURES = 16  # at most, for the proof of a file
# Images that are evaluated at a time, by the kind of annotation, and where every pixel has one.
IMAGES, OF_PIXELS = {"label": 32, "tags": 32, "boxes": 16}, 4


def names_to_show(split: "Split") -> list[str]:
    """The name of each picture for a person; of one that is made and not read its number."""
    from ..data._record import names_of

    return [
        f"picture {index}" if callable(sample.image) else name
        for index, (sample, name) in enumerate(zip(split.samples, names_of(split), strict=True))
    ]


def _no_runtime(word: str) -> None:
    """`UsageError` where --format names a runtime, as in other tools."""
    from ..synonyms import meanings

    runtimes = [name for name in (word.lower(), *meanings(word)) if name in names("runtimes")]
    if runtimes:
        raise UsageError(
            f"--format is that of the data; the runtime of the file is --to {runtimes[0]}"
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Settings of how data are read, of the verbs that take them as people have them."""

    format: str | None = field(
        default=None,
        metadata=About(help="format of the data", usual="found out", null=True, check=_no_runtime),
    )
    images: str | None = field(
        default=None,
        metadata=About(
            help="folder of the images, where they lie apart from their annotations", null=True
        ),
    )
    masks: str | None = field(
        default=None,
        metadata=About(
            help="folder of the label maps, where they lie apart from the images", null=True
        ),
    )

    @property
    def elsewhere(self) -> "Places":
        """Where images and label maps are that lie apart."""
        from ..data import Places

        return Places(self.images, self.masks)


def task_of(model: str) -> str:
    """The task of a model, of which a user may give the task alone; `ModelError` where there is none."""
    from ..tasks import check_name, split_name

    if model in names("tasks"):
        return model
    check_name(model)
    return split_name(model)[0]


def say_data(name: str, split: "Split", contents: "Contents") -> None:
    """Where a split comes from, what it has of each class, and the first of what was left out."""
    where = f" from {split.source}" if split.source else ""
    objects = f", {contents.total} objects" if contents.unit == "objects" else ""
    skipped = f", {len(split.skipped)} skipped"
    say(
        f"{name}: {len(split.samples)} images{objects}, {len(split.classes)} "
        f"classes{skipped}{where}"
    )
    say(f"  {contents.unit} by class: {contents.text(split.classes)}")
    if split.annotations.lost():
        say(f"  {split.annotations}")
    for line in split.skipped[:SHOWN]:
        say(f"  skipped {line}")
    if len(split.skipped) > SHOWN:
        say(f"  and {len(split.skipped) - SHOWN} more")


def images_at_a_time(target: str) -> int:
    return IMAGES.get(target, OF_PIXELS)


def pictures_of(root: str | None, reading: Reading, checkpoint: Path) -> "list[One]":
    """Pictures of the data for a checkpoint, spread over the list; none where there are no data.

    Those that cannot be read are named and left out; `DataError` where none can.
    """
    from .. import data, tasks
    from ..checkpoint import read_facts
    from ..data._record import places_of
    from ..deploy.predictor import read_picture

    if not root:
        return []
    facts = read_facts(checkpoint)
    target = tasks.find(facts.task).TARGET
    places = places_of(root, facts.settings, reading.elsewhere)
    samples = data.load(root, None, reading.format, target, *places).samples
    some = samples[:: -(-len(samples) // PICTURES)]
    readable: list[One] = []
    for sample in some:
        try:
            picture = sample.source()
            read_picture(picture, facts.preprocess.values, count=facts.channels)
        except DataError as error:
            say(f"skipped {error}")
            continue
        readable.append(picture)
    if not readable:
        raise DataError(f"none of {len(some)} pictures of {root!r} can be read")
    if len(readable) < len(some):
        say(f"{len(some) - len(readable)} of {len(some)} pictures could not be read (see above)")
    return readable


def say_findings(findings: "Iterable[Finding]") -> None:
    """What is worth a look before a training; `say_data` has said what was left out."""
    for one in findings:
        if one.level == "warning" and one.kind not in SAID_BEFORE:
            named = ", ".join(one.items[:EXAMPLES])
            more = one.count - EXAMPLES
            ending = f" and {more} more" if named and more > 0 else ""
            say(f"careful: {one.text}" + (f": {named}{ending}" if named else ""))
