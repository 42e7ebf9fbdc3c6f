"""PASCAL VOC: an XML file of boxes a picture, or its label map as a palette PNG.

    FOLDER/JPEGImages/NAME.jpg  FOLDER/Annotations/NAME.xml  FOLDER/SegmentationClass/NAME.png
    FOLDER/ImageSets/Main/train.txt  FOLDER/ImageSets/Segmentation/train.txt  FOLDER/classes.txt

Corners are written as they are, without the shift by one pixel of VOC's own tools, and with a point
where they are not whole, as CVAT writes them. Crowds are marked as difficult, which other tools leave
out too. The first class of label maps has to be the background.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from ...errors import DataError
from .. import Object, Sample, Split, parse_classes
from ._album import Album, check_names, names_for
from ._maps import palette_of_voc, write_map
from ._reading import WHOLE

FORMAT = "voc"
WRITES = "Annotations/*.xml or SegmentationClass/*.png with JPEGImages and ImageSets"
TARGETS: tuple[str, ...] = ("boxes", "semantic")
HOLDS: tuple[str, ...] = ("crowd", "order", "unused")


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    classes = next(iter(splits.values())).classes
    text = "".join(f"{name}\n" for name in classes)
    check_names(classes, lambda: parse_classes(text, "classes.txt"), "classes.txt")
    samples = [sample for split in splits.values() for sample in split.samples]
    is_map = any(sample.semantic is not None for sample in samples)
    if is_map and classes[0].strip("_") != "background":
        raise DataError(
            f"the first class of VOC's label maps is the background, and here it is "
            f"{classes[0]!r}: convert to masks"
        )
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    names = iter(names_for(samples))
    for name, split in splits.items():
        lines = []
        for sample in split.samples:
            file = next(names)
            stem = Path(file).stem
            if not is_map:
                xml = _xml_of(sample, file, classes, album.size(sample))
                _write(folder / "Annotations" / f"{stem}.xml", xml)
            elif (labels := album.label_map(sample)) is not None:
                write_map(labels, folder / "SegmentationClass" / f"{stem}.png", palette_of_voc())
            else:
                continue
            album.put(sample, folder / "JPEGImages" / file)
            lines.append(f"{stem}\n")
        sets = folder / "ImageSets" / ("Segmentation" if is_map else "Main")
        # As CVAT does: it says no split, and tools that ask for a list have one.
        _write(sets / f"{'default' if name == WHOLE else name}.txt", "".join(lines).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _xml_of(sample: Sample, file: str, classes: Sequence[str], size: tuple[int, int]) -> bytes:
    height, width = size
    root = ElementTree.Element("annotation")
    _add(root, folder="JPEGImages", filename=file)
    _add(ElementTree.SubElement(root, "source"), database="Unknown")
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    for item in sample.objects or ():
        _add_object(root, item, classes[item.label])
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _add_object(root: ElementTree.Element, item: Object, name: str) -> None:
    element = ElementTree.SubElement(root, "object")
    _add(element, name=name, pose="Unspecified", truncated=0, difficult=int(item.crowd))
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(_number, item.box), strict=True))
    _add(ElementTree.SubElement(element, "bndbox"), **corners)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _add(element: ElementTree.Element, **values: object) -> None:
    for key, value in values.items():
        ElementTree.SubElement(element, key).text = str(value)
