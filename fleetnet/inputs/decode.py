"""A sample from its files: the picture as RGB, and its annotation in the picture's own pixels.

Nothing is random here, and nothing is resized but by `reduced`, for pictures that are too large.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area
from torchvision.transforms import v2

from .. import images
from ..channels import RGB
from ..data import Object, Sample
from ..data._masks import mask_of
from ..errors import DataError, UsageError
from ..geometry import Place
from ..jpeg import reduction
from ..resizing import tensor_of

# What is known of a picture, by kind: "label" (); "tags" (classes,) float32, 1 for each class that
# it shows and else 0; "boxes" (n, 4) float32 xyxy in pixels, with "labels" (n,) int64 and where there
# are masks "masks" (n, height, width); "semantic" (height, width), IGNORE where unknown, uint8 before
# an augmentation and int64 in an input. In
# evaluation, with boxes: "area" (n,) and "crowd" (n,) bool.
Targets = dict[str, Tensor]


class AnnotatedPicture:
    """A picture with what is known of it, which is in its pixels.

    It is given as a tensor (C, height, width) uint8, and may be one that waits to be decoded: then
    `height` and `width` are known at once, and `shrunk` costs less than `picture`. It can be
    unpacked: `picture, targets = annotated`.
    """

    def __init__(self, picture: Tensor | images.Encoded, targets: Targets):
        if isinstance(picture, Tensor):
            if picture.ndim != 3 or picture.dtype != torch.uint8:
                raise UsageError(
                    f"a picture is {picture.dtype} {tuple(picture.shape)}; allowed: torch.uint8 "
                    "(channels, height, width)"
                )
            self.height, self.width = picture.shape[1:]
        elif isinstance(picture, images.Encoded):
            self.height, self.width = picture.height, picture.width
        else:
            raise UsageError(
                f"a picture is {type(picture).__name__}; allowed: a tensor (channels, height, "
                "width) of uint8, as torchvision's pil_to_tensor makes of a PIL image"
            )
        self.targets = targets
        self._source = picture

    @property
    def picture(self) -> Tensor:
        """The picture (C, height, width), uint8."""
        return self.shrunk(1)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self._source.numel() if isinstance(self._source, Tensor) else self._source.size

    def reduction(self, part: tuple[float, float], size: tuple[int, int]) -> int:
        """The largest `by` for `shrunk` that leaves a part (rows, columns) at least `size`.

        The last rows and columns of a file that `by` does not divide become one narrower pixel.
        That may come first where the picture is turned, and whoever draws it takes it for the last.
        """
        if isinstance(self._source, Tensor):
            return 1
        by = reduction(part, size)
        if self._source.orientation not in (1, 5):  # others mirror rows or columns
            while self.height % by or self.width % by:
                by //= 2
        return by

    def shrunk(self, by: int) -> Tensor:
        """The picture with its sides divided by 1, 2, 4 or 8, rounded up; `by` is of `reduction`."""
        if isinstance(self._source, Tensor):
            return self._source
        pixels = tensor_of(self._source.decoded(by).pixels)
        if by == 1:
            self._source = pixels
        return pixels

    def is_readable(self) -> bool:
        """Whether a file that was not decoded yet can be."""
        try:
            self.shrunk(1)
        except DataError:
            return False
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter((self.picture, self.targets))


def look_at(
    sample: Sample, values: images.Range | None, channels: int = RGB
) -> images.Picture | images.Encoded:
    """The picture of a sample, decoded or not; `values` is the range in files of more than 8 bits."""
    source = sample.source()
    return images.look(source, values, count=channels)


def read_picture(
    sample: Sample, values: images.Range | None, channels: int = RGB
) -> images.Picture:
    """The same, decoded."""
    return look_at(sample, values, channels).decoded()


def read_targets(
    sample: Sample, size: tuple[int, int], target: str, *, classes: int, learned: bool = False
) -> Targets:
    """The annotation of a sample whose picture has this (height, width); `target` as in `data`.

    `classes` is how many there are in its split.
    What is `learned` from has no crowds in it, and evaluation has them with the areas of objects.
    Raises `DataError` where there is no annotation of this kind.
    """
    if target == "label":
        return {} if sample.label is None else {"label": _label(sample.label)}
    if target == "tags":
        return {} if sample.tags is None else {"tags": _multi_hot(sample.tags, classes)}
    if target == "semantic":
        labels = _label_map(sample, size)
        return {"semantic": labels if learned else labels.long()}
    if sample.objects is None:
        raise DataError(
            f"{sample.image} is not annotated with objects: load the data with target={target!r}"
        )
    objects = [one for one in sample.objects if not (learned and one.crowd)]
    targets = {
        "boxes": torch.tensor([one.box for one in objects], dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([one.label for one in objects], dtype=torch.int64),
    }
    if target == "masks":
        targets["masks"] = _masks(sample, objects, size)
    if not learned:
        targets["area"] = _areas(objects, targets)
        targets["crowd"] = torch.tensor([one.crowd for one in objects], dtype=torch.bool)
    return targets


@lru_cache(maxsize=1 << 12)
def _label(label: int) -> Tensor:
    """A class index, (); the same tensor for the same class, which nobody changes."""
    return torch.tensor(label)


def _multi_hot(tags: Sequence[int], classes: int) -> Tensor:
    """(classes,): 1 for each of the tags, else 0."""
    values = torch.zeros(classes)
    values[list(tags)] = 1
    return values


def _masks(sample: Sample, objects: Sequence[Object], size: tuple[int, int]) -> Tensor:
    """(n, height, width) bool; `DataError` unless every object has a mask."""
    masks = [mask_of(one.segmentation, size) for one in objects if one.segmentation is not None]
    if len(masks) < len(objects):
        raise DataError(
            f"{sample.image}: {len(objects) - len(masks)} of {len(objects)} objects have no mask"
        )
    return torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), bool))


def _areas(objects: Sequence[Object], targets: Targets) -> Tensor:
    """Pixels of each object, (n,): as annotated, else of its mask, else of its box."""
    whole = targets["masks"].sum((1, 2)) if "masks" in targets else box_area(targets["boxes"])
    areas = [
        float(counted) if one.area is None else one.area
        for one, counted in zip(objects, whole, strict=True)
    ]
    return torch.tensor(areas, dtype=torch.float32)


def _label_map(sample: Sample, size: tuple[int, int]) -> Tensor:
    """The class of each pixel, (height, width) uint8."""
    if sample.semantic is None:
        raise DataError(f"{sample.image} has no label map")
    labels = sample.semantic()
    if labels.shape != size:
        raise DataError(
            f"{sample.image} is {size[1]}x{size[0]}, its label map "
            f"{labels.shape[1]}x{labels.shape[0]}"
        )
    return torch.from_numpy(labels.astype(np.uint8))


def reduced(targets: Targets, size: tuple[int, int], smaller: tuple[int, int]) -> Targets:
    """The annotation of a picture of `size` for a `smaller` copy of it, both (height, width)."""
    place = Place(*size, smaller[0] / size[0], smaller[1] / size[1])
    moved = dict(targets)
    if "boxes" in moved:
        moved["boxes"] = place.into(moved["boxes"])
    if "masks" in moved:
        moved["masks"] = _resized(moved["masks"], smaller)
    if "semantic" in moved:
        moved["semantic"] = _resized(moved["semantic"][None], smaller)[0]
    return moved


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, h, w) at another size, by the nearest pixel."""
    if not maps.numel():
        return maps.new_zeros(len(maps), *size)
    nearest = v2.InterpolationMode.NEAREST_EXACT
    resized: Tensor = v2.functional.resize(maps.to(torch.uint8), list(size), nearest)
    return resized.to(maps.dtype)
