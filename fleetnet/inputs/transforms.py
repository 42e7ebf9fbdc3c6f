"""From image files to batches: `train_transform`, `mix`, and the data set that reads."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_area
from torchvision.transforms import v2

from .. import images
from ..data import Sample, Split
from ..data._masks import mask_of
from ..errors import DataError, UsageError, choose
from ..geometry import Place
from ..preprocess import Preprocess

AUTO_AUGMENT = {
    "none": None, "randaugment": v2.RandAugment, "trivial": v2.TrivialAugmentWide, "autoaugment": v2.AutoAugment,
}  # fmt: skip
Transform = Callable[[Image.Image], Tensor]
Picture = tuple[Image.Image, dict[str, Tensor]]  # and its targets, in its own pixels


def train_transform(
    preprocess: Preprocess,
    scale: tuple[float, float] = (0.35, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    erasing: float = 0.0,
) -> Transform:
    """Random crop of `scale` of the area, flip, colors, then channel order and values as `preprocess` has them.

    `flip` and `erasing` are probabilities; `color_jitter` is the range of brightness, contrast and
    saturation around 1. `auto_augment` is one of `AUTO_AUGMENT`. Raises `UsageError` for an unknown
    one.
    """
    if (auto_augment or "none") not in AUTO_AUGMENT:
        raise UsageError(
            f"no auto_augment {auto_augment!r}: {choose(str(auto_augment), AUTO_AUGMENT)}"
        )
    policy = AUTO_AUGMENT[auto_augment or "none"]
    mode = v2.InterpolationMode(preprocess.interpolation)
    steps: list[Callable[..., Any]] = [
        v2.RandomResizedCrop(preprocess.size, scale, interpolation=mode)
    ]
    steps += [v2.RandomHorizontalFlip(flip)] if flip else []
    steps += [policy()] if policy else []
    steps += [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    steps += [preprocess.tensor]
    steps += [v2.RandomErasing(erasing)] if erasing else []
    return v2.Compose(steps)


def mix(
    images: Tensor,
    targets: Mapping[str, Tensor],
    classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Blend each image of a batch with another (mixup), or paste a part of it (cutmix); with both, one by chance.

    images (N, 3, H, W), targets["label"] (N,) -> the same with targets["label"] (N, classes),
    probabilities. `mixup` and `cutmix` are the alpha of the beta distribution, 0 for none.
    arXiv:1710.09412, arXiv:1905.04899.
    """
    kinds: list[Any] = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    if not kinds:
        return images, dict(targets)
    images, label = v2.RandomChoice(kinds)(images, targets["label"])
    return images, {**targets, "label": label}


class Batch(NamedTuple):
    """In training (no places) targets are in pixels of the input, in evaluation in those of the picture."""

    images: Tensor  # (N, 3, H, W); N is 0, and the shape (0,), if none of the files could be read
    # "label": (N,); "semantic": (N, H, W) or a list; of objects, lists of N tensors
    targets: dict[str, Any]
    skipped: list[str]  # a line for each file that could not be read, with the reason
    indices: list[int]  # of the samples in the split
    places: list[Place]  # where each picture lies in the input; empty in training


class Augment(Protocol):
    """An augmentation of pictures with their annotation; see `augment`."""

    pictures: int  # how many it takes for one input

    def __call__(self, items: list[Picture]) -> tuple[Tensor, dict[str, Tensor]]: ...


class Item(NamedTuple):
    """One input of a batch."""

    image: Tensor
    targets: dict[str, Tensor]
    sample: int  # its index in the split
    place: Place | None


class ImageDataset(Dataset[Item | str]):
    """Samples of a split as network inputs, or the reason, as text, where the file could not be read.

    `target` is the kind of annotation that comes with them (see `data`). `transform` is the
    `Preprocess` for evaluation, where targets stay in the picture's pixels; or for training a
    function of a picture, or an `Augment`, which moves targets with it.

    With `cache` (height, width of the network's input) all images are decoded at once and kept in
    memory, reduced to just cover 1.3 times that size: for training, where random crops resize them
    anyway; evaluation needs the whole image. Beyond `limit` bytes, the rest is read from disk each
    time. Processes of a DataLoader share the memory where they are forked (Linux); elsewhere each
    has a copy.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform | Augment,
        cache: tuple[int, int] | None = None,
        limit: int = 4 * 1024**3,
        target: str = "label",
        values: images.Range | None = None,
    ):
        self.split, self.transform, self.cache, self.target = split, transform, cache, target
        self.values = transform.values if isinstance(transform, Preprocess) else values
        # `loading.Positions`: told what is read, where a worker reads it
        self.positions: Any = None
        # of the first samples; text is the reason why there is no image
        self.kept: list[images.Picture | str] = []
        used = 0
        for index in range(len(split.samples)) if cache else ():
            picture = self._read(index)
            if not isinstance(picture, str):
                used += 4 * picture.image.width * picture.image.height  # Pillow pads RGB to 4 bytes
            if used > limit:
                break
            self.kept.append(picture)

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> Item | str:
        try:
            if isinstance(self.transform, Preprocess):
                picture, targets = self._annotated(index)
                place = self.transform.place(picture.height, picture.width)
                return Item(self.transform(picture), targets, index, place)
            image, targets = self.annotated(index)
            pictures = getattr(self.transform, "pictures", 0)
            if not pictures:
                return Item(cast(Transform, self.transform)(image), targets, index, None)
            items = [(image, targets)]
            for other in torch.randint(len(self), (pictures - 1,)).tolist():
                with suppress(DataError):  # named when it is an item itself
                    items.append(self.annotated(other))
            return Item(*cast(Augment, self.transform)(items), index, None)
        except DataError as error:
            return str(error)

    def annotated(self, index: int) -> Picture:
        """The image of a sample with its annotation in the image's pixels; `DataError` if it cannot be read."""
        picture, targets = self._annotated(index)
        size, image = (picture.height, picture.width), picture.image
        return image, targets if size == (image.height, image.width) else _reduced(
            targets, size, image
        )

    def _annotated(self, index: int) -> tuple[images.Picture, dict[str, Tensor]]:
        """The picture of a sample with its annotation in the picture's own pixels, also where its image is reduced."""
        picture = self.kept[index] if index < len(self.kept) else self._read(index)
        if isinstance(picture, str):
            raise DataError(picture)
        sample = self.split.samples[index]
        if self.target == "label":
            return picture, {} if sample.label is None else {"label": torch.tensor(sample.label)}
        size = picture.height, picture.width
        return picture, semantic_target(
            sample, size
        ) if self.target == "semantic" else self._objects(sample, size)

    def _objects(self, sample: Sample, size: tuple[int, int]) -> dict[str, Tensor]:
        """In evaluation all objects, with area and crowd; in training those that are no crowd."""
        if sample.objects is None:
            raise DataError(
                f"{sample.image} is not annotated with objects: load the data with "
                f"target={self.target!r}"
            )
        training = not isinstance(self.transform, Preprocess)
        objects = [item for item in sample.objects if not (training and item.crowd)]
        boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).view(-1, 4)
        targets = {
            "boxes": boxes,
            "labels": torch.tensor([item.label for item in objects], dtype=torch.int64),
        }
        if self.target == "masks":
            masks = [
                mask_of(item.segmentation, size)
                for item in objects
                if item.segmentation is not None
            ]
            targets["masks"] = torch.from_numpy(
                np.stack(masks) if masks else np.zeros((0, *size), bool)
            )
            if len(masks) < len(objects):
                raise DataError(
                    f"{sample.image}: {len(objects) - len(masks)} of {len(objects)} "
                    "objects have no mask"
                )
        if not training:
            whole = targets["masks"].sum((1, 2)) if "masks" in targets else box_area(boxes)
            areas = [
                float(w) if o.area is None else o.area for o, w in zip(objects, whole, strict=True)
            ]
            targets |= {
                "area": torch.tensor(areas, dtype=torch.float32),
                "crowd": torch.tensor([item.crowd for item in objects], dtype=torch.bool),
            }
        return targets

    def _read(self, index: int) -> images.Picture | str:
        if self.positions is not None:
            self.positions.reads(index)
        sample = self.split.samples[index]
        try:
            picture = images.load(
                sample.image() if callable(sample.image) else sample.image, self.values
            )
        except DataError as error:
            return str(error)
        if self.cache:
            image = picture.image
            ratio = 1.3 * max(self.cache[0] / image.height, self.cache[1] / image.width)
            if ratio < 1:
                smaller = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
                picture = picture._replace(image=image.resize(smaller, Image.Resampling.BILINEAR))
        return picture


def semantic_target(sample: Sample, size: tuple[int, int]) -> dict[str, Tensor]:
    """The label map of a sample, (height, width) int64."""
    if sample.semantic is None:
        raise DataError(f"{sample.image} has no label map")
    labels = sample.semantic()
    if labels.shape != size:
        raise DataError(
            f"{sample.image} is {size[1]}x{size[0]}, its label map "
            f"{labels.shape[1]}x{labels.shape[0]}"
        )
    return {"semantic": torch.from_numpy(labels.astype(np.int64))}


def _reduced(
    targets: dict[str, Tensor], size: tuple[int, int], image: Image.Image
) -> dict[str, Tensor]:
    """Targets of a picture of `size` for its reduced copy."""
    place, to = (
        Place(*size, image.height / size[0], image.width / size[1]),
        (image.height, image.width),
    )
    moved = dict(targets)
    if "boxes" in moved:
        moved["boxes"] = place.into(moved["boxes"])
    for key in ("masks", "semantic"):
        if key in moved and moved[key].numel():
            planes = moved[key] if key == "masks" else moved[key][None]
            planes = v2.functional.resize(
                planes.to(torch.uint8), list(to), v2.InterpolationMode.NEAREST_EXACT
            )
            moved[key] = (
                planes.to(moved[key].dtype) if key == "masks" else planes[0].to(moved[key].dtype)
            )
        elif key in moved:
            moved[key] = moved[key].new_zeros(0, *to)
    return moved


def collate(items: Sequence[Item | str]) -> Batch:
    """A batch of what `ImageDataset` gives; files that could not be read make it smaller and are named in `skipped`."""
    good = [item for item in items if not isinstance(item, str)]
    skipped = [item for item in items if isinstance(item, str)]
    places = [item.place for item in good if item.place is not None]
    if not good:
        return Batch(torch.empty(0), {}, skipped, [], [])
    targets: dict[str, Any] = {key: [item.targets[key] for item in good] for key in good[0].targets}
    for key in targets:
        # in evaluation, pictures have their own sizes
        if key == "label" or (key == "semantic" and not places):
            targets[key] = torch.stack(targets[key])
    return Batch(
        torch.stack([item.image for item in good]),
        targets,
        skipped,
        [item.sample for item in good],
        places,
    )
