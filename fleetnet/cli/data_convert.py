"""`fleetnet data convert`: a data set of any format as one of another, read back before it is handed over."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jsonargparse.typing import ClosedUnitInterval

from ..training.config import TrainConfig
from ._data import SHOWN, Reading
from ._settings import About, switch
from ._show import say, table, tell

if TYPE_CHECKING:
    from ..data import Sample
    from ..data.writing import Converted

EXAMPLE = "fleetnet data convert --data photos/ --to coco --out photos-coco/"
BETWEEN = 10.0  # seconds between two lines of progress


@dataclass(frozen=True, kw_only=True)
class DataConvert:
    data: str = field(metadata=About(help="folder, list or annotation file of images, or `shapes`"))
    to: str = field(
        metadata=About(help="format to write: coco, folder, list, masks, shards, voc or yolo")
    )
    out: str = field(metadata=About(help="folder to write, which is empty or not there yet"))
    target: str | None = field(
        default=None,
        metadata=About(
            help="annotations to convert, where there are several: label, tags, boxes, masks or semantic"
        ),
    )
    split: str | None = field(
        default=None, metadata=About(help="train, val or test alone", usual="all that there are")
    )
    lossy: bool = switch("leave out what the format cannot hold, as YOLO crowds, and count it")
    link: bool = switch("hard links instead of copies of the images, where the disk has them")
    reading: Reading = field(default_factory=Reading, metadata=About(help="how the data are read"))
    max_bad: float = field(
        default=TrainConfig.max_bad,
        metadata=About(
            help="largest share of the annotations that may be unusable", kind=ClosedUnitInterval
        ),
    )


def run(settings: DataConvert) -> dict[str, object]:
    from ..data.writing import convert

    converted = convert(
        settings.data,
        settings.to,
        settings.out,
        format=settings.reading.format,
        target=settings.target,
        images=settings.reading.images,
        masks=settings.reading.masks,
        split=settings.split,
        lossy=settings.lossy,
        link=settings.link,
        max_bad=settings.max_bad,
        progress=_progress(),
    )
    _show(converted)
    splits = {
        name: {
            "images": len(split.samples),
            "objects": _objects(split.samples),
            "annotations": split.annotations.read,
            "dropped": split.annotations.dropped,
        }
        for name, split in converted.splits.items()
    }
    return {
        "out": converted.folder,
        "format": converted.format,
        "target": converted.target,
        "classes": next(iter(converted.splits.values())).classes,
        "splits": splits,
        "lost": converted.lost,
        "left_out": converted.left_out,
        "linked": converted.linked,
        "renamed": converted.renamed,
    }


def _objects(samples: "list[Sample]") -> int:
    return sum(len(sample.objects or ()) for sample in samples)


def _progress() -> Callable[[int, int], None]:
    """Says every few seconds how far it is."""
    last = time.monotonic()

    def progress(count: int, whole: int) -> None:
        nonlocal last
        if time.monotonic() - last >= BETWEEN:
            last = time.monotonic()
            say(f"{count} of {whole} images written")

    return progress


def _show(converted: "Converted") -> None:
    rows = [
        [name, len(split.samples), _objects(split.samples), str(split.source)]
        for name, split in converted.splits.items()
    ]
    title = f"{converted.folder}: {converted.format}, read back and the same"
    table(title, ["split", "images", "objects", "read from"], rows)
    for words, count in converted.lost.items():
        tell(f"not held by {converted.format}: {count} {words}")
    if converted.renamed:
        tell(
            f"{converted.renamed} images have another name, since theirs was taken or is not portable"
        )
    for split in converted.splits.values():
        if split.annotations.lost():
            tell(str(split.annotations))
    for line in converted.left_out[:SHOWN]:
        tell(f"while reading: {line}")
    if len(converted.left_out) > SHOWN:
        tell(f"and {len(converted.left_out) - SHOWN} more (--json has all)")
