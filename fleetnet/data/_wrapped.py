"""Data sets of torchvision and Hugging Face's `datasets` as splits: labels at once, pictures when they are needed.

Neither library is imported here. What a data set is called by, its labels, classes and files, is
asked of it; where it does not say, its items are gone through once.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError, UsageError, suggest
from ..reading import Fields, Member, to_json
from . import OBJECTS, Sample, Split, few, shorten, whole
from . import coco as coco_format
from ._samples import Item, are_several, split_of
from ._texts import plain

LABELS = (
    "targets",
    "labels",
    "_labels",
)  # where data sets of torchvision keep the label of each item
BOXES = ("bbox", "bboxes", "boxes")  # of the objects of a row
CATEGORIES = ("category", "categories", "label", "labels", "category_id", "class")
MAPS = ("annotation", "label", "labels", "mask", "segmentation_mask", "seg", "semantic")
FORMS = ("xywh", "xyxy")
LOOKED_AT = 50  # rows, to tell the form of their boxes


# ---- torchvision -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TorchVision:
    """A data set of torchvision, or one like it: items (picture, target) by number."""

    dataset: Any  # with __getitem__ and __len__

    def item(self, index: int) -> Item:
        item = self.dataset[index]
        if not isinstance(item, tuple) or len(item) != 2:
            raise UsageError(f"item {index} is {type(item).__name__}; expected (picture, target)")
        picture, target = item
        if not isinstance(picture, Image.Image | np.ndarray | str | os.PathLike):
            raise UsageError(
                f"the picture of item {index} is {type(picture).__name__}; give the data set without "
                "a transform: the training crops, scales and augments pictures by itself"
            )
        return {"image": picture, **_annotation(target, index)}

    def items(self) -> Iterator[Item]:
        return (self.item(index) for index in range(len(self.dataset)))


def from_torchvision(dataset: Any, classes: Sequence[str] | None) -> Split:
    """The split of `fleetnet.data.from_torchvision`."""
    inner, chosen = _inner(dataset)
    if hasattr(inner, "coco") and hasattr(inner, "ids"):
        return _of_coco(inner, chosen)
    source = TorchVision(dataset)
    names = classes or _names_of(inner)
    labels = _labels(inner, chosen, source)
    if labels is None:
        return split_of(source.items(), source, names)
    files = _files(inner, chosen)
    items: list[Item] = [{"label": label} for label in labels]
    if files is not None:
        items = [{"image": file, "label": label} for file, label in zip(files, labels, strict=True)]
    return split_of(items, source, names)


def _inner(dataset: Any) -> tuple[Any, Sequence[int]]:
    """The data set that is a part of (torch's Subset), and which of its items are."""
    chosen: Sequence[int] = range(len(dataset))
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        chosen = [dataset.indices[i] for i in chosen]
        dataset = dataset.dataset
    return dataset, chosen


def _names_of(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None)
    are_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return list(names) if are_names and names else None


def _labels(dataset: Any, chosen: Sequence[int], source: TorchVision) -> list[int] | None:
    """The label of each item, where the data set keeps them and its items have the same."""
    for name in LABELS:
        values = getattr(dataset, name, None)
        if values is None or callable(values) or len(values) != len(dataset):
            continue
        labels = [_whole(values[i]) for i in chosen]
        some = sorted({0, len(labels) // 2, len(labels) - 1}) if labels else []
        if None not in labels and all(
            _whole(source.item(i).get("label")) == labels[i] for i in some
        ):
            return [label for label in labels if label is not None]
    return None


def _files(dataset: Any, chosen: Sequence[int]) -> list[Path] | None:
    """The files of an ImageFolder that reads pictures as we do."""
    samples = getattr(dataset, "samples", None)
    loader = getattr(dataset, "loader", None)
    if not isinstance(samples, list) or getattr(loader, "__name__", "") != "default_loader":
        return None
    return [Path(samples[i][0]) for i in chosen]


def _whole(value: object) -> int | None:
    return whole(plain(value))


def _annotation(target: Any, index: int) -> Item:
    """What a target says, as `from_samples` takes it."""
    if isinstance(target, Image.Image) or getattr(target, "ndim", 0) == 2:
        return {"map": np.asarray(target)}
    if isinstance(target, Mapping) and "boxes" in target:
        keys = ("boxes", "labels", "masks")
        return {key: target[key] for key in keys if key in target}
    if isinstance(target, Mapping):
        hint = "; VOC is read from its files: fleetnet.load_data('VOCdevkit/VOC2012', 'train')"
        raise UsageError(
            f"the target of item {index} is a mapping with {few(target)}; expected boxes and labels"
            + (hint if "annotation" in target else "")
        )
    if isinstance(target, tuple):
        raise UsageError(
            f"the target of item {index} is of {len(target)} parts: have the data set give one"
        )
    return {"tags" if are_several(target) else "label": target}


def _of_coco(dataset: Any, chosen: Sequence[int]) -> Split:
    """CocoDetection: its file as the format `coco` reads it, with the pictures in its folder."""
    try:
        text = to_json(dataset.coco.dataset)
    except TypeError as error:
        raise DataError(f"the COCO file of the data set cannot be read again: {error}") from error
    split = coco_format.parse(text, "the COCO file of the data set", OBJECTS)
    by_id = {sample.id: sample for sample in split.samples}
    ids = [_read_id(dataset.ids[i]) for i in chosen]
    absent = next((id for id in ids if id not in by_id), None)
    if absent is not None:
        raise DataError(f"the COCO file of the data set has no image with the id {absent!r}")
    wanted = [by_id[id] for id in ids]
    root = Path(dataset.root)
    return replace(
        split, samples=[replace(sample, image=_below(root, sample)) for sample in wanted]
    )


def _read_id(id: int | str) -> int | str:
    """An id as the format reads it: "1" is 1."""
    number = whole(id)
    return id if number is None else number


def _below(root: Path, sample: Sample) -> Path:
    if callable(sample.image) or isinstance(sample.image, Member):
        raise DataError(f"{sample.image} is no file name")
    return root / sample.image


# ---- Hugging Face ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Which columns of a data set hold what; "" where none does."""

    image: str
    label: str = ""
    tags: str = ""
    objects: str = ""
    map: str = ""


@dataclass(frozen=True)
class HuggingFace:
    """A data set of Hugging Face's `datasets`: rows by number, whose pictures are decoded here."""

    rows: Any  # with __getitem__ and __len__; pictures as files or bytes, where it can
    decoded: Any  # the same with pictures of PIL
    columns: Columns
    form: str  # of boxes: "xywh" or "xyxy"
    numbered: bool = False  # tags are numbers of classes, as their kind of column says

    def item(self, index: int) -> Item:
        row = self.rows[index]
        return {"image": self._picture(row, index), **self._annotation(row)}

    def labels(self) -> Iterator[Item]:
        """The annotations alone; with the pictures, undecoded, where their sizes are needed."""
        if self.columns.objects or self.columns.map:
            return (self.item(index) for index in range(len(self.rows)))
        wanted = [name for name in (self.columns.label, self.columns.tags) if name]
        rows = (
            self.rows.select_columns(wanted) if hasattr(self.rows, "select_columns") else self.rows
        )
        return (self._annotation(rows[index]) for index in range(len(rows)))

    def _picture(self, row: Fields, index: int) -> Any:
        picture = row[self.columns.image]
        if not isinstance(picture, Mapping):
            return picture
        if picture.get("bytes") is not None:
            return bytes(picture["bytes"])
        path = picture.get("path")
        if isinstance(path, str) and os.path.isfile(path):
            return Path(path)
        return self.decoded[index][self.columns.image]

    def _annotation(self, row: Fields) -> Item:
        columns = self.columns
        if columns.objects:
            return {**_boxes(row[columns.objects], self.form), "id": _id(row)}
        if columns.map:
            return {"map": np.asarray(self._map(row[columns.map]))}
        if columns.tags:
            tags = row[columns.tags]
            return {"tags": frozenset(tags) if self.numbered else list(tags)}
        return {"label": row[columns.label]}

    def _map(self, value: Any) -> Any:
        from io import BytesIO

        if not isinstance(value, Mapping):
            return value
        content = value.get("bytes")
        return Image.open(BytesIO(content) if content is not None else value["path"])


def from_hugging_face(
    dataset: Any, classes: Sequence[str] | None, label: str | None, boxes: str
) -> Split:
    """The split of `fleetnet.data.from_hugging_face`."""
    if boxes not in FORMS:
        raise UsageError(f"boxes is {boxes!r}: {suggest(boxes, FORMS)}")
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping) or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"{type(dataset).__name__} is no data set of rows: give one split of it, such as "
            "dataset['train'], and not a stream (streaming=False)"
        )
    columns = _columns(features, label)
    rows = dataset
    if hasattr(dataset, "cast_column"):  # pictures as they are stored, not decoded
        for name in filter(None, (columns.image, columns.map)):
            rows = rows.cast_column(name, type(features[name])(decode=False))
    numbered = bool(columns.tags) and _kind(_element(features[columns.tags])) == "ClassLabel"
    source = HuggingFace(rows, dataset, columns, boxes, numbered)
    names = classes or _class_names(features, columns)
    split = split_of(source.labels(), source, names)
    if columns.objects:
        _check_form(split, len(rows), boxes)
    return split


def _columns(features: Fields, label: str | None) -> Columns:
    """Which columns hold what, by their kinds and names."""
    pictures = [name for name, kind in features.items() if _kind(kind) == "Image"]
    if not pictures:
        raise UsageError(f"no column of pictures; there are {few(features)}")
    if label is not None and label not in features:
        raise UsageError(f"no column {label!r}: {suggest(label, features)}")
    image = next((name for name in pictures if name in ("image", "img")), pictures[0])
    objects = [name for name, kind in features.items() if _has_boxes(kind)]
    if objects and label in (None, objects[0]):
        return Columns(image, objects=objects[0])
    maps = [name for name in pictures if name != image and name in (label or MAPS, *MAPS)]
    if maps and label in (None, *maps):
        return Columns(image, map=label or maps[0])
    labels = (
        [label] if label else [n for n, kind in features.items() if _kind(kind) == "ClassLabel"]
    )
    labels = labels or [name for name in ("label", "labels", "class") if name in features]
    if len(labels) > 1:
        raise UsageError(f"several columns of labels: choose one with label=: {few(labels, 20)}")
    if labels and _is_list(features[labels[0]]):
        return Columns(image, tags=labels[0])
    if labels:
        return Columns(image, label=labels[0])
    tags = [name for name, kind in features.items() if _kind(_element(kind)) == "ClassLabel"]
    if len(tags) == 1:
        return Columns(image, tags=tags[0])
    raise UsageError(f"which column holds the labels? Give label=: {few(features, 20)}")


def _kind(feature: object) -> str:
    return type(feature).__name__


def _is_list(feature: object) -> bool:
    return isinstance(feature, list) or _kind(feature) in ("Sequence", "List", "LargeList")


def _element(feature: Any) -> Any:
    """What a list holds; the feature itself where it is none."""
    if isinstance(feature, list):
        return feature[0] if feature else None
    return getattr(feature, "feature", feature) if _is_list(feature) else feature


def _has_boxes(feature: Any) -> bool:
    inner = _element(feature)
    return isinstance(inner, Mapping) and any(name in inner for name in BOXES)


def _class_names(features: Fields, columns: Columns) -> list[str] | None:
    """The names that a ClassLabel has; None where there is none."""
    feature = _element(features[columns.label or columns.tags or columns.objects or columns.map])
    if columns.objects:
        key = next((name for name in CATEGORIES if name in feature), "")
        feature = _element(feature.get(key))
    names = getattr(feature, "names", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def _boxes(objects: Any, form: str) -> Item:
    """The boxes and labels of a row: lists of each, or a list of objects."""
    if not isinstance(objects, Mapping):
        keys = {key for item in objects for key in item}
        objects = {key: [item.get(key) for item in objects] for key in keys}
    box = next((name for name in BOXES if name in objects), "")
    category = next((name for name in CATEGORIES if name in objects), "")
    if objects and (not box or not category):
        raise UsageError(f"objects have {few(objects)}; expected bbox and category")
    rows = [[float(value) for value in row] for row in objects.get(box, ())]
    if form == "xywh":
        rows = [[x, y, x + width, y + height] for x, y, width, height in rows]
    return {"boxes": rows, "labels": list(objects.get(category, ()))}


def _id(row: Fields) -> int | str | None:
    value = row.get("image_id", row.get("id"))
    return value if isinstance(value, int | str) else None


def _check_form(split: Split, rows: int, form: str) -> None:
    """`DataError` where most boxes are cut or dropped: they are then of the other form."""
    other = FORMS[FORMS.index(form) - 1]
    objects = split.annotations.read
    wrong = split.annotations.lost() + split.annotations.cut
    if objects and 2 * wrong > objects:
        raise DataError(
            f"{wrong} of {objects} boxes in {rows} rows are not inside of their pictures: read as "
            f"{form} they may be {other}: give boxes={other!r}. The first: "
            f"{shorten(split.skipped[0])}"
        )
