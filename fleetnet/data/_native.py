"""Files that labeling tools keep their own work in: they are told apart and named, not read.

Such a file follows its tool from version to version. Each of these tools exports a format that is
read here, and the message says which.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..images import hidden
from ..reading import DESCRIPTION, from_json, read_bytes

LOOKED_AT = 3  # files of a folder that are opened, of each kind
FOLDERS = 40  # folders below the root that are looked into
_SUFFIXES = (".json", ".xml", ".ndjson", ".csv")


@dataclass(frozen=True)
class Tool:
    """What a tool's own file can be told by: each of `keys` names a key, or several of which one is there."""

    name: str
    keys: tuple[str, ...]
    way: str  # to a format that is read


# Of a JSON object.
_OBJECTS = (
    Tool(
        "labelme",
        ("shapes", "imagePath|imageData|imageHeight"),
        "labelme's examples/instance_segmentation has labelme2coco.py and labelme2voc.py, which write "
        "COCO and VOC; X-AnyLabeling, which writes the same JSON, exports COCO, VOC and YOLO",
    ),
    Tool(
        "VIA (VGG Image Annotator)",
        ("_via_settings|_via_img_metadata|_via_attributes",),
        "open it in VIA and choose Annotation > Export Annotations (COCO format)",
    ),
    Tool(
        "VIA 3 (VGG Image Annotator)",
        ("project", "metadata", "attribute", "view"),
        "VIA 2 exports COCO (Annotation > Export Annotations (COCO format))",
    ),
    Tool(
        "Datumaro",
        ("items", "categories"),
        "`datum convert -i FOLDER -if datumaro -f coco -o coco -- --save-media` writes COCO (or voc, "
        "yolo); where CVAT exported it, choose COCO 1.0 there",
    ),
    Tool(
        "Supervisely",
        ("classes", "tags|projectType"),
        "export with one of Supervisely's apps Export to COCO, Export to YOLO or Export as masks",
    ),
    Tool(
        "Supervisely",
        ("objects", "size", "tags"),
        "export with one of Supervisely's apps Export to COCO, Export to YOLO or Export as masks",
    ),
    Tool(
        "Microsoft VoTT",
        ("assets", "tags|assetsMetadata|name"),
        "choose the export Pascal VOC in VoTT",
    ),
    Tool(
        "V7 Darwin",
        ("annotations", "item|dataset|image"),
        "export the dataset as COCO in V7 or by `darwin dataset convert`",
    ),
    Tool(
        "Cityscapes' polygons",
        ("imgHeight", "imgWidth", "objects"),
        "read its label maps (gtFine/*_labelIds.png), or make COCO files of the polygons",
    ),
    Tool("GeoJSON", ("type", "features"), "save its polygons in pixels as COCO"),
    Tool(
        "FiftyOne",
        ("samples",),
        "dataset.export(..., dataset_type=fiftyone.types.COCODetectionDataset) writes COCO",
    ),
)
# Of the first entry of a JSON list, or of a file with a JSON object a line.
_ENTRIES = (
    Tool(
        "Label Studio (JSON)",
        ("data", "annotations|completions|predictions"),
        "choose COCO, YOLO with Images, Pascal VOC XML or Brush labels to PNG in Label Studio's Export",
    ),
    Tool(
        "Label Studio (JSON-MIN)",
        ("image|img|ocr", "annotator|annotation_id|lead_time|created_at"),
        "choose COCO, YOLO with Images, Pascal VOC XML or Brush labels to PNG in Label Studio's Export",
    ),
    Tool(
        "CreateML",
        ("image|imagefilename|imageName", "annotations|annotation"),
        "export COCO, Pascal VOC or YOLO from the tool that wrote it (Roboflow, RectLabel, CVAT, MakeSense)",
    ),
    Tool(
        "Scalabel or BDD100K",
        ("name", "labels"),
        "`python -m bdd100k.label.to_coco` or `scalabel.label.to_coco` writes COCO",
    ),
    Tool(
        "Labelbox",
        ("data_row|ID", "projects|Label"),
        "convert it to COCO, for example with Labelbox's SDK or by uploading it to Roboflow",
    ),
)
_VIA_ENTRY = _OBJECTS[1]
_OF_XML = Tool(
    "CVAT for images or video",
    (),
    "choose COCO 1.0, Pascal VOC 1.1, Ultralytics YOLO or Segmentation mask 1.1 in CVAT's Export",
)
_OF_TABLES = (
    Tool(
        "VIA (VGG Image Annotator)",
        ("#filename|filename", "region_shape_attributes"),
        _OBJECTS[1].way,
    ),
    Tool("Label Studio (CSV)", ("annotation_id|annotator", "lead_time"), _ENTRIES[0].way),
)


def message(file: Path | str, tool: Tool) -> str:
    """What a file is, and the way out."""
    return f"{file} is a file of {tool.name}, which is not read here. {tool.way[0].upper()}{tool.way[1:]}"


def of_document(document: object) -> Tool | None:
    """The tool whose own file a parsed JSON document is, if it is one."""
    if isinstance(document, list):
        first = next((row for row in document if isinstance(row, dict)), {})
        return _first_that_fits(_ENTRIES, first)
    if not isinstance(document, dict) or _is_coco(document):
        return None
    values = [value for value in islice(document.values(), 1) if isinstance(value, dict)]
    if values and "regions" in values[0] and "filename" in values[0]:
        return _VIA_ENTRY
    return _first_that_fits(_OBJECTS, document) or _first_that_fits(_ENTRIES, document)


def of_xml(text: str) -> Tool | None:
    """CVAT's own XML begins with the element `annotations`; VOC's with `annotation`."""
    return _OF_XML if re.search(r"<annotations\s*>", text[:2000]) else None


def of_header(names: list[str]) -> Tool | None:
    """The tool whose own table has these columns, if it is one."""
    return _first_that_fits(_OF_TABLES, dict.fromkeys(names))


def check(root: str, deep: bool) -> None:
    """Raise `DataError` where a file, or what is in a folder, is of a tool's own format.

    With `deep` the files of folders below are looked at too.
    """
    for file in _files(Path(root), deep):
        tool = _tool_of(file)
        if tool is not None:
            raise DataError(message(repr(str(file)), tool))


def _is_coco(document: Mapping[str, object]) -> bool:
    return all(isinstance(document.get(key), list) for key in ("images", "annotations"))


def _first_that_fits(tools: tuple[Tool, ...], keys: Mapping[str, object]) -> Tool | None:
    return next((tool for tool in tools if _fits(tool, keys)), None)


def _fits(tool: Tool, keys: Mapping[str, object]) -> bool:
    return all(any(word in keys for word in key.split("|")) for key in tool.keys)


def _files(root: Path, deep: bool) -> Iterator[Path]:
    """The first files of each kind in a folder, with `deep` also in those one and two levels below."""
    if not os.path.isdir(root):
        yield root
        return
    waiting = [(root, 2 if deep else 0)]
    for _ in range(FOLDERS):
        if not waiting:
            return
        folder, levels = waiting.pop(0)
        entries = [entry for entry in sorted(folder.iterdir()) if not hidden(entry.name)]
        for suffix in _SUFFIXES:
            yield from islice(
                (entry for entry in entries if entry.suffix.lower() == suffix), LOOKED_AT
            )
        # Supervisely's files are in a folder of this name, whose pictures are beside it.
        below = [
            entry
            for entry in entries
            if (levels > 0 or entry.name == "ann") and os.path.isdir(entry)
        ]
        waiting += [(entry, levels - 1) for entry in below]


def _tool_of(file: Path) -> Tool | None:
    """The tool of a file; None for what cannot be read, which is told where it is read as data."""
    try:
        text = read_bytes(file, DESCRIPTION).decode("utf-8-sig")
        suffix = file.suffix.lower()
        if suffix == ".xml":
            return of_xml(text)
        if suffix == ".csv":
            return of_header(
                [name.strip().strip('"') for name in text.partition("\n")[0].split(",")]
            )
        if suffix == ".ndjson":
            return of_document([from_json(text.partition("\n")[0])])
        return of_document(from_json(text))
    except (OSError, ValueError):
        return None
