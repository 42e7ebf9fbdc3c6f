"""PASCAL VOC: an XML file of boxes an image, and label maps as palette PNGs.

    root/JPEGImages/NAME.jpg  root/Annotations/NAME.xml  root/SegmentationClass/NAME.png
    root/ImageSets/Main/train.txt  root/ImageSets/Segmentation/train.txt      (names, one a line)

Without lists of the splits, or without one for "val", every tenth image is held back for it. Class
names are the lines of classes.txt, labels.txt or class_names.txt. Without these they are, for
boxes, the names in the XML files of the train split, sorted; and for label maps VOC's 20, if the
XML files have no others. For label maps "background" comes before them. Corners are taken as they
are, without the shift by one pixel of VOC's own tools. Objects marked as difficult count as crowds:
neither learned from nor counted. An XML file with a DOCTYPE is refused: entities may expand without
end.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..errors import DataError, choose
from ..images import EXTENSIONS, find_images, hidden, read_labels
from . import (
    IGNORE,
    Notes,
    Object,
    Part,
    Sample,
    Source,
    Split,
    _native,
    check_exists,
    few,
    fit_box,
    hold_out,
    inside,
    measured,
    note_turned,
    number,
    parse_classes,
    part_of,
    shorten,
    text_of,
    whole,
)
from ._conventions import split_lists
from .masks import read

EXPECTS = "ROOT/Annotations/*.xml or ROOT/SegmentationClass/*.png with ROOT/JPEGImages; ROOT/ImageSets/Main/train.txt"
TARGETS: tuple[str, ...] = ("boxes", "semantic")
FALLBACK = False
NAMES = (  # of VOC, whose label maps have them from 1 on
    *(
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
    ),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LISTS = {"boxes": "Main", "semantic": "Segmentation"}
_CLASSES = ("classes.txt", "labels.txt", "class_names.txt")
_MAPS = ("SegmentationClass", ".png", "label map")
_SUFFIXES = (".jpg", ".jpeg", ".png", *sorted(EXTENSIONS - {".jpg", ".jpeg", ".png"}))

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What an XML file says."""

    filename: str | None
    size: tuple[int, int] | None  # (height, width)
    # class name, box xyxy or None where there is none, difficult
    objects: list[tuple[str, Box | None, bool]]


def detect(root: str) -> bool:
    """True for a folder JPEGImages beside one of XML files or of label maps."""
    path = Path(root)
    found = next((path / "Annotations").glob("*.xml"), None) or next(
        (path / "SegmentationClass").glob("*.png"), None
    )
    return found is not None and os.path.isdir(path / "JPEGImages")


def load(root: str, split: str | None, target: str = "boxes") -> Split:
    """The samples of a split, in the order of its list, or by name.

    Raises `DataError` naming the file for XML that does not parse, images that do not exist or lie
    outside of the folder, and class names that are not known.
    """
    check_exists(root)
    path, notes, turned = Path(root), Notes(), list[Path]()
    if not detect(root):
        raise DataError(f"{root!r} has no {EXPECTS}")
    lists = _splits(path, target)
    part = part_of(split, lists, root)
    source = Source(root, "voc", part.split, str(lists.get(part.there, path)), part.take)
    names = _names(path, part, lists, target, notes)
    annotations: dict[str, Annotation] = {}
    classes = _classes(path, target, annotations)
    samples: list[Sample] = []
    if target == "semantic":
        for name in names:
            labels, image = path / "SegmentationClass" / f"{name}.png", _image(path, name, None)
            if not os.path.isfile(labels):
                raise DataError(f"no label map {str(labels)!r} for the image {str(image)!r}")
            notes.read += 1
            if measured(image, notes, turned) is None:
                notes.drop("of pictures left out")
                continue
            samples.append(
                Sample(image, semantic=partial(read, labels, image, len(classes)), id=name)
            )
        note_turned(turned, notes)
        return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())
    for name in names:
        file = _xml(path, name)
        annotation = annotations.get(name) or parse(text_of(file), str(file))
        image = _image(path, name, annotation.filename)
        of_this: list[Path] = []
        size = measured(image, notes, of_this)
        notes.read += len(annotation.objects)
        if size is None:
            notes.drop("of pictures left out", count=len(annotation.objects))
            continue
        # the boxes are of the picture before it is turned
        if of_this and annotation.size == size[::-1] != size:
            says = f"{file} says {annotation.size[1]}x{annotation.size[0]}"
            turns = f"it is {size[1]}x{size[0]}, turned by its EXIF orientation"
            notes.drop(
                "of pictures left out",
                f"{str(image)!r}: left out, {turns}; {says}",
                len(annotation.objects),
            )
            continue
        turned += of_this
        if annotation.size not in (None, size):
            notes.say(
                f"{file}: says {annotation.size} (height, width); the image is {size}, and right"
            )
        objects = place(annotation, classes, size, str(file), notes)
        samples.append(Sample(image, objects=objects, id=name))
    note_turned(turned, notes)
    return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())


def parse(text: str, source: str) -> Annotation:
    """What the XML of one image says; `source` names it in errors."""
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise DataError(f"{source}: has a DOCTYPE, which could expand without end; delete it")
    tool = _native.of_xml(text)
    if tool is not None:
        raise DataError(_native.message(source, tool))
    try:
        tree = ElementTree.fromstring(text.removeprefix("\ufeff"))
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{source}: not XML, or cut off: {error}") from error
    height, width = (whole(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    size = (height, width) if height is not None and width is not None else None
    objects = []
    for i, item in enumerate(tree.iterfind("object"), 1):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{source}, object {i}: has no name")
        words = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        box = None
        if item.find("bndbox") is not None:
            x0, y0, x1, y1 = (number(word) for word in words)
            if x0 is None or y0 is None or x1 is None or y1 is None:
                raise DataError(
                    f"{source}, object {i} ({shorten(name)}): box is {shorten(words)}; expected "
                    "four numbers"
                )
            box = x0, y0, x1, y1
        objects.append((name, box, number(item.findtext("difficult")) == 1))
    return Annotation((tree.findtext("filename") or "").strip() or None, size, objects)


def place(
    annotation: Annotation, classes: Sequence[str], size: tuple[int, int], source: str, notes: Notes
) -> tuple[Object, ...]:
    """The objects of a picture of `size` (height, width); what is dropped or cut is noted."""
    objects = []
    for i, (name, box, difficult) in enumerate(annotation.objects, 1):
        entry = f"{source}, object {i} ({shorten(name)})"
        if name not in classes:
            raise DataError(
                f"{entry}: the class is not known; {choose(shorten(name), map(shorten, classes))}"
            )
        if box is None:
            notes.drop("without a box", f"{entry}: dropped, it has no bndbox")
            continue
        fitted = fit_box(box, size, entry, notes)
        if fitted:
            objects.append(Object(fitted, classes.index(name), crowd=difficult))
    return tuple(objects)


def _splits(root: Path, target: str) -> dict[str, Path]:
    """The lists of the splits that are there."""
    return split_lists(root / "ImageSets" / _LISTS[target], ("",))


def _names(
    root: Path, part: Part, lists: Mapping[str, Path], target: str, notes: Notes
) -> list[str]:
    """The names of a part's images, without extension."""
    if part.there:
        # a list of one class has lines `name 1`, `name -1` instead
        names = [line.split()[0] for line in text_of(lists[part.there]).split("\n") if line.strip()]
        if not names:
            raise DataError(f"{lists[part.there]} is empty: no samples")
        return hold_out(names, part.take)
    folder, suffix, what = ("Annotations", ".xml", "XML file") if target == "boxes" else _MAPS
    names = sorted(
        file.stem
        for file in (root / folder).iterdir()
        if file.suffix == suffix and not hidden(file.name)
    )
    pictures, _ = find_images(root / "JPEGImages")
    alone = [file.name for file in pictures if file.stem not in set(names)]
    if alone:
        notes.say(
            f"{root / 'JPEGImages'}: {len(alone)} pictures have no {what} and are left out: "
            f"{few(alone)}"
        )
    return hold_out(names, part.take)


def _classes(root: Path, target: str, annotations: dict[str, Annotation]) -> list[str]:
    """The class names; the XML files that had to be read for them are put into `annotations`."""
    file = next((root / name for name in _CLASSES if os.path.isfile(root / name)), None)
    if file:
        classes = parse_classes(text_of(file), str(file))
        # labelme's, whose boxes are never of it
        if target == "boxes" and classes[0] == "_background_":
            classes = classes[1:]
    else:
        lists = _splits(root, "boxes")
        listed = {"train": lists["train"]} if "train" in lists else {}
        every = Part("all", next(iter(listed), ""))
        for name in (
            _names(root, every, listed, "boxes", Notes())
            if os.path.isdir(root / "Annotations")
            else []
        ):
            annotations[name] = parse(text_of(_xml(root, name)), str(_xml(root, name)))
        classes = sorted(
            {name for annotation in annotations.values() for name, _, _ in annotation.objects}
        )
        if target == "semantic" and classes:
            _check_labels(root, classes, annotations)
            classes = list(NAMES)
    if not classes:
        raise DataError(f"no class names in {str(root)!r}: put them into classes.txt, one a line")
    if target == "semantic" and classes[0].strip("_") != "background":
        classes = ["background", *classes]
    return classes


def _check_labels(root: Path, classes: list[str], annotations: Mapping[str, Annotation]) -> None:
    """Raise `DataError` unless names in XML files are VOC's, and mean there what label maps (ten are read) hold."""
    problem = f"the classes of label maps are not known: put them into {root / 'classes.txt'}, in order, one a line"
    strange = [name for name in classes if name not in NAMES]
    if strange:
        raise DataError(f"{problem}; XML files name {strange[0]!r}, which is none of VOC's classes")
    files = {
        root / "SegmentationClass" / f"{name}.png": annotations[name].objects
        for name in sorted(annotations)
    }
    for file in islice(filter(os.path.isfile, files), 10):
        named = {NAMES.index(name) + 1 for name, _, _ in files[file]}
        try:
            values = set(np.unique(read_labels(file)).tolist()) - {0, IGNORE}
        except DataError:  # told when it is read as a sample's
            continue
        if values and named and not values & named:
            raise DataError(
                f"{problem}; {str(file)!r} has {sorted(values)}, its XML file what is "
                f"{sorted(named)} in VOC"
            )


def _xml(root: Path, name: str) -> Path:
    return inside(root / "Annotations" / f"{name}.xml", root, name)


def _image(root: Path, name: str, filename: str | None) -> Path:
    """The image of that name; where there is none, the one that the XML file names."""
    folder = root / "JPEGImages"
    for suffix in _SUFFIXES:
        path = inside(folder / f"{name}{suffix}", root, name)
        if os.path.isfile(path):
            return path
    path = inside(
        folder / (filename or f"{name}.jpg"), root, str(root / "Annotations" / f"{name}.xml")
    )
    if not os.path.isfile(path):
        raise DataError(f"{shorten(_xml(root, name))}: no such image: {shorten(path)!r}")
    return path
