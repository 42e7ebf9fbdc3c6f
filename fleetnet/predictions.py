"""What a network says of a picture, as one of four types.

    Labels        logits of the classes, for the whole picture, which is of one of them
    Tags          the same, of which any number may be there
    Detections    objects: boxes with scores and classes, and their masks
    LabelMap      the class of each pixel

`decode` of a task makes them from the outputs of a network, in pixels of its input; `restore`
brings them into the pixels of the picture. What is done with any prediction after that is a method
of its type: in words for a user (`present`), drawn (`draw`), beside the truth (`judge`). So a new
kind of prediction is one class with the methods of `Prediction`; it may stand in the file of its
task.

Values of pixels (masks, class maps) of a picture that is too large to be kept whole are those of
its reduced image; boxes are always in the pixels of the picture itself. A `Scale` says how much
smaller the image is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, Protocol, Self, TypedDict, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from .boxes import Limits
from .errors import ModelError
from .geometry import Place, Scale, between, centers, paste
from .report.draw import draw_objects, draw_pixels
from .rle import Rle, encode, encode_enlarged

WHOLE: Scale = (1.0, 1.0)  # of an image that is not reduced
IGNORE = 255  # in class maps of annotations: a pixel of no known class
MASKS = 1 << 24  # bytes of all masks of a picture whose image is reduced: 100 of 400x400 pixels
ROWS = 256  # of a picture at a time, where all at once would take a gigabyte
PRESENT = 0.5  # probability from which a tag counts as there
NO_TAG = "no tag"
OVERLAP = 0.5  # IoU from which an object counts as found, in pictures of mistakes

# The annotation of one picture by name, as `ImageDataset` gives it.
Truth = Mapping[str, Tensor]


@dataclass(frozen=True)
class Judged:
    """A picture with what was found in it and with the truth, to be looked at by a person."""

    pictures: tuple[Image.Image, ...]  # one, or the truth and what was found
    captions: tuple[str, ...]  # of each
    mistake: float  # how wrong it is, to be compared within one task; 0 where all is right


class OfInput(Protocol):
    """What `decode` of a task gives: a prediction in pixels of the network's input."""

    @property
    def per_pixel(self) -> bool:
        """Whether `restore` makes a value for each pixel, so that few should be in memory."""

    def restore(self, place: Place, scale: Scale = ...) -> "Prediction":
        """The same in the pixels of the picture that lies at `place`.

        Values of pixels are those of its image, which is reduced by `scale` (down, across).
        """


class Prediction(OfInput, Protocol):
    """A prediction in the pixels of its picture."""

    def present(self, classes: Sequence[str], top: int = ..., threshold: float = ...) -> object:
        """In words and numbers, for a user; anything that can be written as JSON."""

    def draw(
        self, image: Image.Image, classes: Sequence[str], threshold: float = ..., scale: Scale = ...
    ) -> Image.Image:
        """A copy of the picture's RGB image, which is reduced by `scale`, with this on it."""

    @classmethod
    def show(
        cls, image: Image.Image, truth: Truth, classes: Sequence[str], side: int
    ) -> tuple[Image.Image, str]:
        """A picture with its annotation on it, for a place of `side` pixels, and that in words."""

    def judge(
        self,
        image: Image.Image,
        truth: Truth,
        classes: Sequence[str],
        threshold: float,
        side: int,
    ) -> Judged:
        """This beside the truth, for a person who looks for mistakes."""


Kind = TypeVar("Kind")


def all_of(kind: type[Kind], predictions: Sequence[object]) -> list[Kind]:
    """The predictions, all of one type; `ModelError` where one is of another."""
    checked: list[Kind] = []
    for prediction in predictions:
        if not isinstance(prediction, kind):
            raise ModelError(
                f"{kind.__name__} are needed here, but a prediction is {type(prediction).__name__}"
            )
        checked.append(prediction)
    return checked


def _check(name: str, value: Tensor, shape: tuple[int | str, ...], dtype: str) -> None:
    """`ModelError` unless a tensor has this shape (words: any number) and this kind of values."""
    sizes = zip(value.shape, shape, strict=False)
    fits = value.ndim == len(shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in sizes
    )
    if not fits:
        needed = ", ".join(map(str, shape))
        raise ModelError(f"{name} are of shape {tuple(value.shape)}; needed: ({needed})")
    kinds = {
        "floats": value.is_floating_point(),
        "int64": value.dtype == torch.int64,
        "bool": value.dtype == torch.bool,
        "whole numbers": not value.is_floating_point() and value.dtype != torch.bool,
    }
    if not kinds[dtype]:
        raise ModelError(f"{name} are {value.dtype}; needed: {dtype}")


# Classes of whole pictures ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _OfWhole:
    """What is said of a whole picture: a logit for each class (classes,)."""

    logits: Tensor

    per_pixel = False

    def __post_init__(self) -> None:
        _check("logits of a picture", self.logits, ("classes",), "floats")

    def _check_names(self, classes: Sequence[str]) -> None:
        """`ModelError` unless there is a name for each logit."""
        if len(self.logits) != len(classes):
            raise ModelError(
                f"there are {len(self.logits)} logits an image, but {len(classes)} class names"
            )

    def restore(self, place: Place, scale: Scale = WHOLE) -> Self:
        """The same: what the whole picture shows lies nowhere."""
        return self

    def draw(
        self,
        image: Image.Image,
        classes: Sequence[str],
        threshold: float = 0.0,
        scale: Scale = WHOLE,
    ) -> Image.Image:
        """The image as it is: the classes of a whole picture are written beside it."""
        return image.copy()


@dataclass(frozen=True, eq=False)
class Labels(_OfWhole):
    """What a classifier says of a picture: logits (classes,)."""

    @property
    def labels(self) -> Tensor:
        """(1,): the index of the most probable class."""
        return self.logits.argmax(0, keepdim=True)

    def present(
        self, classes: Sequence[str], top: int = 5, threshold: float = 0.0
    ) -> list[tuple[str, float]]:
        """The `top` classes as (name, probability), most probable first; none below `threshold`."""
        self._check_names(classes)
        scores, indices = self.logits.softmax(0).topk(min(top, len(classes)))
        best = zip(indices.tolist(), scores.tolist(), strict=True)
        return [(classes[index], score) for index, score in best if score >= threshold]

    @classmethod
    def show(
        cls, image: Image.Image, truth: Truth, classes: Sequence[str], side: int
    ) -> tuple[Image.Image, str]:
        """The image as it is, and the name of its class, truth["label"].

        Of mixed pictures that is the share of each class: (classes,).
        """
        label = truth["label"]
        if label.ndim == 0:
            return image, classes[int(label)]
        shares = [(float(share), classes[i]) for i, share in enumerate(label) if share > 0.01]
        words = [f"{share:.2f} {name}" for share, name in sorted(shares, reverse=True)]
        return image, " + ".join(words)

    def judge(
        self,
        image: Image.Image,
        truth: Truth,
        classes: Sequence[str],
        threshold: float,
        side: int,
    ) -> Judged:
        """One picture. A wrong class is the worse, the surer the network is of it."""
        right = int(truth["label"])
        probabilities = self.logits.softmax(0)
        best = int(probabilities.argmax())
        said = f"{classes[best]} {probabilities[best]:.2f}"
        if best == right:
            return Judged((image,), (said,), 0.0)
        mistake = 1 + float(probabilities[best] - probabilities[right])
        return Judged((image,), (f"{said}, is {classes[right]}",), mistake)


@dataclass(frozen=True, eq=False)
class Tags(_OfWhole):
    """What a multi-label classifier says of a picture: a logit for each class by itself (classes,)."""

    @property
    def labels(self) -> Tensor:
        """(classes,) int64: 1 for each class that is more probable than not, else 0."""
        return (self.logits.sigmoid() >= PRESENT).long()

    def present(
        self, classes: Sequence[str], top: int = 5, threshold: float = PRESENT
    ) -> list[tuple[str, float]]:
        """The classes from a probability of `threshold` on as (name, probability), all of them.

        The most probable come first; `top` is unused.
        """
        self._check_names(classes)
        scores, indices = self.logits.sigmoid().sort(descending=True, stable=True)
        ranked = zip(indices.tolist(), scores.tolist(), strict=True)
        return [(classes[index], score) for index, score in ranked if score >= threshold]

    @classmethod
    def show(
        cls, image: Image.Image, truth: Truth, classes: Sequence[str], side: int
    ) -> tuple[Image.Image, str]:
        """The image as it is, and the names of truth["tags"] (classes,); of mixed ones with shares."""
        named = [(float(share), classes[i]) for i, share in enumerate(truth["tags"])]
        words = [
            name if share == 1 else f"{share:.2f} {name}" for share, name in named if share > 0.01
        ]
        return image, ", ".join(words) or NO_TAG

    def judge(
        self,
        image: Image.Image,
        truth: Truth,
        classes: Sequence[str],
        threshold: float,
        side: int,
    ) -> Judged:
        """One picture. A tag too few or too many is the worse, the surer the network is.

        What is there is decided at PRESENT, whatever the threshold of detectors is.
        """
        probabilities = self.logits.sigmoid()
        right = truth["tags"].to(probabilities) == self.labels
        said = ", ".join(f"{name} {score:.2f}" for name, score in self.present(classes))
        mistake = float(((probabilities - PRESENT).abs() + PRESENT)[~right].sum())
        if not mistake:
            return Judged((image,), (said or NO_TAG,), 0.0)
        _, annotated = self.show(image, truth, classes, side)
        return Judged((image,), (f"{said or NO_TAG}, is {annotated}",), mistake)


# Objects ----------------------------------------------------------------------------------------


class CocoItem(TypedDict):
    """An object in COCO's layout of results."""

    image_id: int | str
    category_id: int
    bbox: list[float]  # x, y, width, height
    score: float
    segmentation: NotRequired[Rle]


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector finds in a picture, most certain first."""

    boxes: Tensor  # (n, 4): x0, y0, x1, y1 in pixels
    scores: Tensor  # (n,), 0 to 1
    labels: Tensor  # (n,) int64: indices of classes
    masks: Tensor | None = None  # (n, height, width) bool, of the whole picture
    # (n, s, s): probabilities within each box, of which `restore` makes masks.
    box_masks: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check("boxes", self.boxes, ("n", 4), "floats")
        _check("scores", self.scores, (count,), "floats")
        _check("labels", self.labels, (count,), "int64")
        if self.masks is not None:
            _check("masks", self.masks, (count, "height", "width"), "bool")
        if self.box_masks is not None:
            _check("masks of boxes", self.box_masks, (count, "rows", "columns"), "floats")

    @classmethod
    def of_padded(cls, outputs: Mapping[str, Tensor]) -> list[Self]:
        """What a graph chose for a batch -> the objects of each picture.

        boxes (N, K, 4), scores (N, K) and labels (N, K) are padded to K objects, with scores of 0.
        There may be masks (N, K, s, s): probabilities within the boxes.
        """
        parts = {"boxes": "boxes", "scores": "scores", "labels": "labels", "masks": "box_masks"}
        named = {field: outputs[name] for name, field in parts.items() if name in outputs}
        return [
            cls(**{field: values[i][score > 0] for field, values in named.items()})
            for i, score in enumerate(outputs["scores"])
        ]

    @property
    def per_pixel(self) -> bool:
        return self.masks is not None or self.box_masks is not None

    def __len__(self) -> int:
        return len(self.boxes)

    def at(self, index: Tensor | slice) -> Self:
        """Some of the objects, by their indices or by a bool for each."""
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=None if self.masks is None else self.masks[index],
            box_masks=None if self.box_masks is None else self.box_masks[index],
        )

    def from_score(self, threshold: float) -> Self:
        """The objects of at least this score."""
        return self.at(self.scores >= threshold)

    def within(self, limits: Limits) -> Self:
        """What the limits leave of objects that a network chose itself, best first.

        Their NMS has been done.
        """
        kept = self.scores > limits.score
        if limits.only is not None:
            kept &= torch.isin(self.labels, torch.tensor(limits.only, device=kept.device))
        return self.at(kept.nonzero()[: limits.count, 0])

    def restore(self, place: Place, scale: Scale = WHOLE) -> "Detections":
        """Boxes that lie outside of the picture are dropped, others clipped to it.

        Masks are those of its image; of a reduced one they are reduced further where all of them
        would take more than `MASKS` bytes.
        """
        of_image = place if self.box_masks is None else place.reduced(scale)
        boxes = of_image.back(self.boxes)
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        kept = replace(self, boxes=boxes).at(solid)
        if kept.box_masks is None:
            return kept
        of_masks = (
            of_image if scale == WHOLE else place.reduced(_scale_of_masks(kept, of_image, scale))
        )
        unclipped = of_masks.back(self.boxes[solid], clip=False)
        masks = paste(kept.box_masks, unclipped, (of_masks.height, of_masks.width))
        of_picture = kept.boxes / kept.boxes.new_tensor([scale[1], scale[0]] * 2)
        return replace(kept, boxes=of_picture, masks=masks, box_masks=None)

    def present(
        self, classes: Sequence[str], top: int = 5, threshold: float = 0.3
    ) -> list[dict[str, object]]:
        """The objects of a score of at least `threshold`, best first, all of them: `top` is unused.

        Each is {"label": name, "score": 0 to 1, "box": [x0, y0, x1, y1]}, and with masks
        {"segmentation": RLE} too.
        """
        scores, order = self.scores.sort(descending=True, stable=True)
        kept = self.at(order[scores >= threshold])  # at once: the masks of a photo are large
        values = zip(kept.labels.tolist(), kept.scores.tolist(), kept.boxes.tolist(), strict=True)
        objects: list[dict[str, object]] = [
            {"label": classes[label], "score": score, "box": box} for label, score, box in values
        ]
        if kept.masks is not None:
            for item, mask in zip(objects, encode(kept.masks), strict=True):
                item["segmentation"] = mask
        return objects

    def coco_items(
        self,
        image_id: int | str,
        category_ids: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> list[CocoItem]:
        """COCO's results: a dict an object, with masks "segmentation" too.

        `category_ids` are in the order of the classes. `size` (height, width) of the picture is for
        masks of a reduced image, which are enlarged to it.
        """
        values = zip(xywh(self.boxes), self.labels.tolist(), self.scores.tolist(), strict=True)
        items: list[CocoItem] = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": bbox, "score": score}
            for bbox, label, score in values
        ]
        if self.masks is not None:
            for item, mask in zip(items, _encoded(self.masks, size), strict=True):
                item["segmentation"] = mask
        return items

    def draw(
        self,
        image: Image.Image,
        classes: Sequence[str],
        threshold: float = 0.0,
        scale: Scale = WHOLE,
    ) -> Image.Image:
        """Boxes, masks, names and scores of the objects of at least a score of `threshold`."""
        boxes = self.boxes * self.boxes.new_tensor([scale[1], scale[0]] * 2)
        return draw_objects(
            image, boxes, self.labels, classes, scores=self.scores, masks=self.masks,
            threshold=threshold,
        )  # fmt: skip

    @classmethod
    def show(
        cls, image: Image.Image, truth: Truth, classes: Sequence[str], side: int
    ) -> tuple[Image.Image, str]:
        """The boxes truth["boxes"] with the names of truth["labels"]; truth["masks"] if any."""
        factor = enlargement(image, side)
        masks = truth.get("masks")
        drawn = draw_objects(
            enlarged(image, factor), truth["boxes"] * factor, truth["labels"], classes,
            masks=None if masks is None else repeated(masks, factor),
        )  # fmt: skip
        count = len(truth["boxes"])
        return drawn, f"truth: {count} object{'' if count == 1 else 's'}"

    def judge(
        self,
        image: Image.Image,
        truth: Truth,
        classes: Sequence[str],
        threshold: float,
        side: int,
    ) -> Judged:
        """Two pictures; each object that was missed or is wrong is a mistake."""
        annotated, words = self.show(image, truth, classes, side)
        factor = enlargement(image, side)
        larger = replace(
            self,
            boxes=self.boxes * factor,
            masks=None if self.masks is None else repeated(self.masks, factor),
        )
        drawn = larger.draw(enlarged(image, factor), classes, threshold)
        missed, wrong = self.missed_and_wrong(truth, threshold)
        captions = words, f"{missed} missed, {wrong} wrong"
        return Judged((annotated, drawn), captions, float(missed + wrong))

    def missed_and_wrong(self, truth: Truth, threshold: float) -> tuple[int, int]:
        """Objects that were missed, and boxes that are no object of their class; no crowds."""
        kept = replace(self, masks=None, box_masks=None).from_score(threshold)
        no_crowd = torch.zeros_like(truth["labels"], dtype=torch.bool)
        single = ~truth.get("crowd", no_crowd)
        overlap = box_iou(kept.boxes.float(), truth["boxes"].float())  # (found, true)
        overlap = overlap * (kept.labels[:, None] == truth["labels"][None])
        free = single.clone()
        wrong = 0
        for i in kept.scores.argsort(descending=True).tolist():
            of_free = overlap[i] * free
            if len(of_free) and of_free.max() >= OVERLAP:
                free[int(of_free.argmax())] = False
            elif not (overlap[i][~single] > 0).any():
                wrong += 1
        return int(free.sum()), wrong


def _scale_of_masks(detections: Detections, of_image: Place, scale: Scale) -> Scale:
    """How much smaller than the picture its masks are, of an image that is reduced by `scale`."""
    whole = len(detections) * of_image.height * of_image.width
    smaller = min(1.0, (MASKS / max(whole, 1)) ** 0.5)
    # of a picture of one pixel in a direction, one is left
    down = max(scale[0] * smaller, 1 / (of_image.height / scale[0]))
    across = max(scale[1] * smaller, 1 / (of_image.width / scale[1]))
    return down, across


def _encoded(masks: Tensor, size: tuple[int, int] | None) -> list[Rle]:
    """Masks (n, rows, columns) as RLE, enlarged to a size (height, width) if one is given."""
    if size is None or size == tuple(masks.shape[1:]):
        return encode(masks)
    return [encode_enlarged(mask, size) for mask in masks]


def xywh(boxes: Tensor) -> list[list[float]]:
    """Boxes (n, 4) as COCO has them: the upper left corner, width and height."""
    return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.detach().tolist()]


# Classes of pixels ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The class of each pixel: indices of classes (height, width)."""

    labels: Tensor

    per_pixel = True

    def __post_init__(self) -> None:
        _check("labels of pixels", self.labels, ("height", "width"), "whole numbers")

    def restore(self, place: Place, scale: Scale = WHOLE) -> "LabelMap":
        """The nearest pixel of the input for each of the picture's image, as uint8.

        Nothing is taken from the padding around the picture.
        """
        rows, columns = _centers(self.labels, place.reduced(scale))
        return LabelMap(
            self.labels.index_select(0, _nearest(rows, self.labels.shape[0]))
            .index_select(1, _nearest(columns, self.labels.shape[1]))
            .byte()
        )

    def present(
        self, classes: Sequence[str], top: int = IGNORE, threshold: float = 0.0
    ) -> dict[str, float]:
        """The `top` classes by their share of the pixels, largest first.

        None is below `threshold`, and each is there.
        """
        # Rows at a time: as int64, the labels of a whole photo can take hundreds of megabytes.
        counts = sum(
            rows.flatten().long().bincount(minlength=IGNORE + 1) for rows in self.labels.split(ROWS)
        )
        of_classes = torch.as_tensor(counts)[: max(len(classes), 1)] / self.labels.numel()
        shares, indices = of_classes.sort(descending=True, stable=True)
        largest = list(zip(indices.tolist(), shares.tolist(), strict=True))[:top]
        return {
            classes[index]: share for index, share in largest if share > 0 and share >= threshold
        }

    def draw(
        self,
        image: Image.Image,
        classes: Sequence[str],
        threshold: float = 0.0,
        scale: Scale = WHOLE,
    ) -> Image.Image:
        """Classes as colors, with a legend."""
        return draw_pixels(image, self.labels, classes)

    @classmethod
    def show(
        cls, image: Image.Image, truth: Truth, classes: Sequence[str], side: int
    ) -> tuple[Image.Image, str]:
        """The classes truth["semantic"] (height, width) as colors."""
        factor = enlargement(image, side)
        labels = repeated(truth["semantic"], factor)
        return draw_pixels(enlarged(image, factor), labels, classes), "truth"

    def judge(
        self,
        image: Image.Image,
        truth: Truth,
        classes: Sequence[str],
        threshold: float,
        side: int,
    ) -> Judged:
        """Two pictures; the share of wrong pixels is the mistake, of those of a known class."""
        annotated, words = self.show(image, truth, classes, side)
        factor = enlargement(image, side)
        drawn = LabelMap(repeated(self.labels, factor)).draw(enlarged(image, factor), classes)
        counts = truth["semantic"] != IGNORE
        right = (self.labels.cpu() == truth["semantic"])[counts]
        share = float(right.float().mean()) if len(right) else 1.0
        captions = words, f"{share:.1%} of the pixels right"
        return Judged((annotated, drawn), captions, 1 - share)


@dataclass(frozen=True, eq=False)
class PixelLogits:
    """A `LabelMap` before the classes are chosen: logits (classes, height, width) in the input."""

    logits: Tensor

    per_pixel = True

    def __post_init__(self) -> None:
        _check("logits of pixels", self.logits, ("classes", "height", "width"), "floats")

    def restore(self, place: Place, scale: Scale = WHOLE) -> LabelMap:
        """Logits resized bilinearly to the picture's image, and the class of the largest, as uint8.

        Nothing is taken from the padding around the picture in the input.
        """
        rows, columns = _centers(self.logits, place.reduced(scale))
        parts = [
            between(between(self.logits, -2, some), -1, columns).argmax(0).byte()
            for some in rows.split(ROWS)
        ]
        return LabelMap(torch.cat(parts))


def _centers(maps: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Where the picture's rows and columns have their centers in maps (..., height, width)."""
    rows = centers(place.height, place.scale_y, place.top, maps.shape[-2])
    columns = centers(place.width, place.scale_x, place.left, maps.shape[-1])
    return rows.to(maps.device), columns.to(maps.device)


def _nearest(indices: Tensor, size: int) -> Tensor:
    """Fractional indices -> the nearest whole ones, below `size`."""
    return (indices + 0.5).floor().long().clamp(max=size - 1)


# Small pictures in large places -----------------------------------------------------------------


def enlargement(image: Image.Image, side: int) -> int:
    """How often a small image fits into a place of `side` pixels: names would cover it."""
    return max(side // max(image.size), 1)


def enlarged(image: Image.Image, factor: int) -> Image.Image:
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor))


def repeated(maps: Tensor, factor: int) -> Tensor:
    """Maps (..., height, width) with each row and each column `factor` times."""
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
