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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..errors import DataError, UsageError, suggest
from ..images import find_images, read_labels
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
from ._conventions import (
    USUAL,
    Places,
    file_called,
    files_in,
    same_form,
    serves_as_val,
    split_lists,
)
from ._places import Pictures
from ._voc_files import (
    SUFFIXES,
    Entry,
    FilesByStem,
    Tree,
    entries,
    image_of,
    pictures_of,
    tree_of,
    without_val,
    without_xml,
    xml_text,
)
from .masks import read

EXPECTS = "ROOT/Annotations/*.xml or ROOT/SegmentationClass/*.png with ROOT/JPEGImages; ROOT/ImageSets/Main/train.txt"
TARGETS: tuple[str, ...] = ("boxes", "semantic")
FALLBACK = False
PLACES: tuple[str, ...] = ("images",)
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
_CLASSES = ("classes.txt", "labels.txt", "class_names.txt", "label_list.txt")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What an XML file says."""

    filename: str | None
    size: tuple[int, int] | None  # (height, width)
    # class name, box xyxy or None where there is none, difficult
    objects: list[tuple[str, Box | None, bool]]


def detect(root: str, target: str = "boxes") -> bool:
    """True for a folder with XML files of objects and their images, or, for label maps, with VOC's own folders."""
    path = Path(root)
    if not os.path.isdir(path):
        return False
    maps = next((path / "SegmentationClass").glob("*.[pP][nN][gG]"), None)
    xml = next((path / "Annotations").glob("*.xml"), None)
    if (xml if target == "boxes" else maps) and os.path.isdir(path / "JPEGImages"):
        return True
    if target != "boxes":
        return False
    return tree_of(path) is not None


def load(root: str, split: str | None, target: str = "boxes", elsewhere: Places = USUAL) -> Split:
    """The samples of a split, in the order of its list, or by name.

    Raises `DataError` naming the file for XML that does not parse, images of which none exists or
    that lie outside of the folder, and class names that are not known.
    """
    check_exists(root)
    if not detect(root, target):
        raise DataError(f"{root!r} has no {EXPECTS}")
    return (
        _load_boxes(root, split, elsewhere)
        if target == "boxes"
        else _load_maps(root, split, elsewhere)
    )


def _load_maps(root: str, split: str | None, elsewhere: Places) -> Split:
    if elsewhere.images is not None:
        raise UsageError("--images is for boxes of XML files; VOC's label maps go with JPEGImages")
    path, notes, turned = Path(root), Notes(), list[Path]()
    lists = _map_lists(path)
    part = part_of(split, lists, root)
    source = Source(root, "voc", part.split, str(lists.get(part.there, path)), part.take)
    maps = FilesByStem(path / "SegmentationClass", (".png",))
    names = _map_names(path, part, lists, maps, notes)
    classes = _map_classes(path, maps)
    pictures = FilesByStem(path / "JPEGImages", SUFFIXES)
    samples: list[Sample] = []
    for name in names:
        labels, image = maps.of(name), _image(pictures, path, name)
        if labels is None:
            missing = maps.folder / f"{name}.png"
            raise DataError(f"no label map {str(missing)!r} for the image {str(image)!r}")
        notes.read += 1
        if measured(image, notes, turned) is None:
            notes.drop("of pictures left out")
            continue
        samples.append(Sample(image, semantic=partial(read, labels, image, len(classes)), id=name))
    note_turned(turned, notes)
    return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())


def _load_boxes(root: str, split: str | None, elsewhere: Places) -> Split:
    path, notes = Path(root), Notes()
    tree = tree_of(path) or Tree(path, {"": path / "Annotations"}, {})
    splits = tree.splits()
    part = part_of(split, splits, root)
    source = Source(root, "voc", part.split, str(splits.get(part.there, path)), part.take)
    if part.split == "val" and (line := serves_as_val(splits)):
        notes.say(line)
    listed = entries(tree, part.there)
    rows = without_val(tree.lists, part.there, listed, lambda: entries(tree, "val"))
    if len(rows) < len(listed):
        notes.say(_left_to_val(tree.lists, len(listed) - len(rows)))
    chosen = hold_out(rows, part.take)
    texts: dict[Path, Annotation] = {}
    classes = _classes(tree, texts)
    annotated = {
        row: texts.get(row.xml) or parse(xml_text(row.xml), str(row.xml)) for row in chosen
    }
    pictures = pictures_of(tree, part.there, elsewhere.images)
    images = _images(annotated, pictures, notes)
    alone = without_xml(tree, part, pictures, rows, set(images.values()))
    if alone:
        notes.say(
            f"{pictures.folders[0]}: {len(alone)} pictures have no XML file and are left out: "
            f"{few(image.name for image in alone)}"
        )
    labels = {name: label for label, name in enumerate(classes)}
    samples: list[Sample] = []
    turned: list[Path] = []
    for row, annotation in annotated.items():
        notes.read += len(annotation.objects)
        image = images.get(row)
        size = _upright_size(row.xml, annotation, image, notes, turned) if image else None
        if image is None or size is None:
            notes.drop("of pictures left out", count=len(annotation.objects))
            continue
        objects = place(annotation, labels, size, str(row.xml), notes)
        samples.append(Sample(image, objects=objects, id=row.name))
    note_turned(turned, notes)
    return Split(samples, classes, notes.lines, source=source, annotations=notes.annotations())


def _images(
    annotated: Mapping[Entry, Annotation], pictures: Pictures, notes: Notes
) -> dict[Entry, Path]:
    """The image of each entry; those that are not there are said, and an error where none is."""
    images: dict[Entry, Path] = {}
    missing: list[Entry] = []
    names = [row.image or row.name for row in annotated]
    of_rows = [image_of(row, text.filename, pictures) for row, text in annotated.items()]
    for row, image in zip(annotated, pictures.without_strays(names, of_rows), strict=True):
        if image is None:
            missing.append(row)
        else:
            images[row] = image
    if missing and not images:
        row = missing[0]
        name = annotated[row].filename or f"{row.name}.jpg"
        raise DataError(f"{row.xml}: {pictures.missing(name)}")
    if missing:
        notes.say(
            f"{len(missing)} of {len(annotated)} images are not there and are left out, of "
            f"{few(f'{row.xml} ({annotated[row].filename})' for row in missing)}"
        )
    return images


def _upright_size(
    file: Path, annotation: Annotation, image: Path, notes: Notes, turned: list[Path]
) -> tuple[int, int] | None:
    """(height, width) of an image; None, and said, where it is damaged or its boxes are of another picture.

    That is the picture as it is stored, before EXIF turns it, or one of the size that the file says.
    """
    of_this: list[Path] = []
    size = measured(image, notes, of_this)
    if size is None:
        return None
    if of_this and annotation.size == size[::-1] != size:
        notes.say(
            f"{str(image)!r}: left out, it is {size[1]}x{size[0]}, turned by its EXIF orientation; "
            f"{file} says {annotation.size[1]}x{annotation.size[0]}"
        )
        return None
    if annotation.size not in (None, size) and _fits_only(annotation, annotation.size, size):
        notes.say(
            f"{str(image)!r}: left out, it is {size[1]}x{size[0]}; {file} says "
            f"{annotation.size[1]}x{annotation.size[0]}, and its boxes fit that alone"
        )
        return None
    turned += of_this
    if annotation.size not in (None, size):
        notes.say(f"{file}: says {annotation.size} (height, width); the image is {size}, and right")
    return size


def _fits_only(annotation: Annotation, said: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether all boxes are in a picture of the size (height, width) that is `said`, and not in one of `size`."""
    boxes = [box for _, box, _ in annotation.objects if box is not None]
    right, bottom = (max((box[side] for box in boxes), default=0.0) for side in (2, 3))
    is_of = [right < width + 1 and bottom < height + 1 for height, width in (said, size)]
    return is_of == [True, False]


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
    annotation: Annotation,
    labels: Mapping[str, int],
    size: tuple[int, int],
    source: str,
    notes: Notes,
) -> tuple[Object, ...]:
    """The objects of a picture of `size` (height, width); what is dropped or cut is noted.

    `labels` has the class index of each name.
    """
    objects = []
    for i, (name, box, difficult) in enumerate(annotation.objects, 1):
        entry = f"{source}, object {i} ({shorten(name)})"
        if name not in labels:
            raise DataError(
                f"{entry}: the class is not known; {suggest(shorten(name), map(shorten, labels))}"
            )
        if box is None:
            notes.drop("without a box", f"{entry}: dropped, it has no bndbox")
            continue
        fitted = fit_box(box, size, entry, notes)
        if fitted:
            objects.append(Object(fitted, labels[name], crowd=difficult))
    return tuple(objects)


def _map_lists(root: Path) -> dict[str, Path]:
    """The lists of splits of label maps; where there are none, those of boxes or of all."""
    sets = root / "ImageSets"
    folders = (sets / "Segmentation", sets / "Main", sets)
    return next((lists for folder in folders if (lists := split_lists(folder, ("",)))), {})


def _map_names(
    root: Path, part: Part, lists: Mapping[str, Path], maps: FilesByStem, notes: Notes
) -> list[str]:
    """The names of the images of a part of label maps, without extension."""
    if part.there:
        file = lists[part.there]
        listed = _listed(file, maps)
        names = without_val(lists, part.there, listed, lambda: _listed(lists["val"], maps))
        if len(names) < len(listed):
            notes.say(_left_to_val(lists, len(listed) - len(names)))
        if file.parent.name == "Segmentation":
            return hold_out(names, part.take)
        with_map = [name for name in names if maps.of(name)]
        if len(with_map) < len(names):  # lists of boxes name pictures that have no map
            notes.say(
                f"{file}: {len(names) - len(with_map)} of {len(names)} names have no label map in "
                f"{str(maps.folder)!r} and are left out"
            )
        return hold_out(with_map, part.take)
    names = [file.stem for file in files_in(maps.folder, ".png")]
    pictures, _ = find_images(root / "JPEGImages")
    mapped_stems = {same_form(name) for name in names}
    alone = [file.name for file in pictures if same_form(file.stem) not in mapped_stems]
    if alone:
        notes.say(
            f"{root / 'JPEGImages'}: {len(alone)} pictures have no label map and are left out: "
            f"{few(alone)}"
        )
    return hold_out(names, part.take)


def _listed(file: Path, maps: FilesByStem) -> list[str]:
    """The names in a list of label maps; a list of one class has lines `name 1`, `name -1` instead."""
    lines = [line.strip() for line in text_of(file).split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{file} is empty: no samples")
    return [line if maps.of(line) else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]


def _left_to_val(lists: Mapping[str, Path], count: int) -> str:
    return f"{lists['train']}: {count} pictures that {lists['val'].name} has too are of val alone"


def _classes(tree: Tree, texts: dict[Path, Annotation]) -> list[str]:
    """The class names of boxes; what had to be read for them is put into `texts`."""
    places = [tree.root, *(folder for split, folder in tree.splits().items() if split == "train")]
    file = next((file for place in places if (file := file_called(place, _CLASSES))), None)
    if file:
        classes = parse_classes(text_of(file), str(file))
        # labelme's, whose boxes are never of it
        return classes[1:] if classes[0] == "_background_" else classes
    for row in entries(tree, "train" if "train" in tree.splits() else ""):
        texts[row.xml] = parse(xml_text(row.xml), str(row.xml))
    classes = sorted({name for text in texts.values() for name, _, _ in text.objects})
    if not classes:
        raise DataError(
            f"no class names in {str(tree.root)!r}: put them into classes.txt, one a line"
        )
    return classes


def _map_classes(root: Path, maps: FilesByStem) -> list[str]:
    """The class names of label maps: of classes.txt and the like, or VOC's own if XML files name no others."""
    file = file_called(root, _CLASSES)
    if file:
        classes = parse_classes(text_of(file), str(file))
    else:
        tree = tree_of(root)
        annotations = {
            row.name: parse(xml_text(row.xml), str(row.xml))
            for row in (entries(tree, "train" if "train" in tree.lists else "") if tree else ())
        }
        named = sorted({name for text in annotations.values() for name, _, _ in text.objects})
        if not named:
            raise DataError(
                f"no class names in {str(root)!r}: put them into classes.txt, one a line"
            )
        _check_labels(root, named, annotations, maps)
        classes = list(NAMES)
    return classes if classes[0].strip("_") == "background" else ["background", *classes]


def _check_labels(
    root: Path, classes: list[str], annotations: Mapping[str, Annotation], maps: FilesByStem
) -> None:
    """Raise `DataError` unless names in XML files are VOC's, and mean there what label maps (ten are read) hold."""
    problem = f"the classes of label maps are not known: put them into {root / 'classes.txt'}, in order, one a line"
    strange = [name for name in classes if name not in NAMES]
    if strange:
        raise DataError(f"{problem}; XML files name {strange[0]!r}, which is none of VOC's classes")
    files = {
        file: annotations[name].objects for name in sorted(annotations) if (file := maps.of(name))
    }
    for file in islice(files, 10):
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


def _image(pictures: FilesByStem, root: Path, name: str) -> Path:
    """The image of a label map of that name."""
    inside(pictures.folder / name, root, name)
    path = pictures.of(name)
    if path is None:
        raise DataError(f"no such image: {shorten(pictures.folder / name)!r} with any extension")
    return inside(path, root, name)
