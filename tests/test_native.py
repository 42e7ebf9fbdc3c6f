"""What labeling tools keep their own work in is named, with the export to take, in few lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fleetnet.data import load
from fleetnet.errors import DataError

NAMES = [f"picture {i}.jpg" for i in range(40)]
LABELME = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [{"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}],
    "imagePath": NAMES[0],
    "imageData": None,
    "imageHeight": 64,
    "imageWidth": 96,
}
REGION = {
    "shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 9, "height": 9},
    "region_attributes": {"class": "cat"},
}
VIA = {
    f"{name}1234": {"filename": name, "size": 1234, "regions": [REGION] * 30, "file_attributes": {}}
    for name in NAMES
}
VIA_PROJECT = {"_via_settings": {}, "_via_img_metadata": VIA, "_via_attributes": {}}
SUPERVISELY = {"classes": [{"title": "cat", "shape": "rectangle"}], "tags": []}
SUPERVISELY_PICTURE = {
    "description": "",
    "tags": [],
    "size": {"height": 64, "width": 96},
    "objects": [{"classTitle": "cat", "points": {"exterior": [[1, 1], [9, 9]], "interior": []}}],
}
LABEL_STUDIO = [
    {"id": i, "annotations": [{"result": []}], "data": {"image": f"/data/upload/1/{name}"}}
    for i, name in enumerate(NAMES)
]
LABEL_STUDIO_MIN = [
    {"image": f"/data/upload/1/{name}", "id": 1, "label": [], "annotator": 1, "annotation_id": 1}
    for name in NAMES
]
CREATEML = [
    {
        "image": name,
        "annotations": [{"label": "cat", "coordinates": {"x": 5, "y": 5, "width": 8, "height": 8}}],
    }
    for name in NAMES
]
DATUMARO = {
    "dm_format_version": "1.0",
    "info": {},
    "categories": {"label": {"labels": [{"name": "cat"}]}},
    "items": [{"id": "a", "annotations": [], "image": {"path": "a.jpg", "size": [64, 96]}}],
}
VOTT = {"name": "p", "assets": {}, "tags": []}
BDD = [{"name": name, "labels": [{"category": "cat", "box2d": {}}]} for name in NAMES]
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>1</id></task></meta>
  <image id="0" name="a.jpg" width="96" height="64"><box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/></image>
</annotations>
"""
VIA_TABLE = (
    "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
    'region_attributes\na.jpg,1,"{}",1,0,"{}","{}"\n'
)

# Files of the tool below the root -> which of them or which folder the user names, and words of the message.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "labelme, a folder": ({"a.json": LABELME, "b.json": LABELME}, ".", "labelme.*labelme2coco"),
    "labelme, a file": ({"a.json": LABELME}, "a.json", "labelme.*labelme2coco"),
    "labelme, by split": ({"train/a.json": LABELME, "val/b.json": LABELME}, ".", "labelme"),
    "labelme, in a folder": ({"json/a.json": LABELME}, ".", "labelme"),
    "VIA, annotations": ({"via_region_data.json": VIA}, ".", "VIA.*Export Annotations .COCO"),
    "VIA, annotations, the file": ({"via_export.json": VIA}, "via_export.json", "VIA.*COCO"),
    "VIA, by split": (
        {"train/via_region_data.json": VIA, "val/via_region_data.json": VIA},
        ".",
        "VIA.*COCO",
    ),
    "VIA, a project": ({"via_project.json": VIA_PROJECT}, "via_project.json", "VIA.*COCO"),
    "VIA, a table": ({"via.csv": VIA_TABLE}, "via.csv", "VIA.*COCO"),
    "VIA, a table in a folder": ({"via_region_data.csv": VIA_TABLE}, ".", "VIA.*COCO"),
    "Supervisely": (
        {"meta.json": SUPERVISELY, "ds0/ann/a.jpg.json": SUPERVISELY_PICTURE},
        ".",
        "Supervisely.*Export to COCO",
    ),
    "Supervisely, a data set": (
        {"ann/a.jpg.json": SUPERVISELY_PICTURE, "img/.keep": ""},
        ".",
        "Supervisely.*Export to COCO",
    ),
    "CVAT": ({"annotations.xml": CVAT}, ".", "CVAT.*COCO 1.0"),
    "CVAT, the file": ({"annotations.xml": CVAT}, "annotations.xml", "CVAT.*COCO 1.0"),
    "Label Studio": ({"project-1.json": LABEL_STUDIO}, "project-1.json", "Label Studio.*YOLO"),
    "Label Studio, a folder": ({"project-1.json": LABEL_STUDIO}, ".", "Label Studio.*YOLO"),
    "Label Studio, JSON-MIN": ({"min.json": LABEL_STUDIO_MIN}, "min.json", "JSON-MIN.*YOLO"),
    "CreateML": ({"train/_annotations.createml.json": CREATEML}, ".", "CreateML.*COCO"),
    "CreateML, the file": ({"annotations.json": CREATEML}, "annotations.json", "CreateML.*COCO"),
    "Datumaro": (
        {"annotations/train.json": DATUMARO, "annotations/val.json": DATUMARO},
        ".",
        "Datumaro.*datum convert",
    ),
    "Datumaro, of CVAT": ({"annotations/default.json": DATUMARO}, ".", "Datumaro.*COCO 1.0"),
    "VoTT": ({"vott-json-export/p-export.json": VOTT}, ".", "VoTT.*VOC"),
    "BDD100K": ({"labels/det_train.json": BDD}, "labels/det_train.json", "BDD100K"),
}


@pytest.mark.parametrize("target", ["boxes", "label", "masks", "semantic"])
@pytest.mark.parametrize("case", CASES)
def test_a_tools_own_files_are_named(tmp_path, case, target):
    files, named, words = CASES[case]
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        folder = file.parent.parent / "img" if file.parent.name == "ann" else file.parent
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(folder / "a.jpg")
    with pytest.raises(DataError, match=words) as caught:
        load(str(tmp_path / named), "train", target=target)
    assert len(str(caught.value).splitlines()) <= 20
    assert len(str(caught.value)) < 1000


def test_class_folders_beside_files_of_a_tool_are_read(tmp_path: Path):
    """Pictures of classes with labelme's files beside them are classes all the same."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / name / f"{i}.jpg")
            (tmp_path / name / f"{i}.json").write_text(json.dumps(LABELME))
    split = load(str(tmp_path), "all")
    assert split.classes == ["cat", "dog"]
    assert len(split.samples) == 6
