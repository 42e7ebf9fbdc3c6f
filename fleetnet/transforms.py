"""From image files to batches: `Preprocess` (what a weight file needs), `train_transform`, and the data set that reads.

Pictures stay PIL while they are cropped and resized, and become tensors last: that is the fastest on a CPU.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from . import images
from .data import Sample, Split
from .errors import DataError, ModelError, UsageError, choose

INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
AUTO_AUGMENT = {
    "none": None, "randaugment": v2.RandAugment, "trivial": v2.TrivialAugmentWide, "autoaugment": v2.AutoAugment,
}  # fmt: skip
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input; kept with the weights, because they are worth little without it.

    The image is resized, keeping its shape, to just cover `size / crop`, and the `size` in its center is cut out. For a
    square that is the usual "shorter side to size / crop, then center crop". Then channels in `channel_order`, values
    from 0 to 1, minus `mean`, by `std` (both in `channel_order`).
    """

    size: tuple[int, int]  # height, width
    crop: float = 1.0  # share of the covered size that is kept: 0.875 is 256 -> 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channel_order: Literal["RGB", "BGR"] = "RGB"
    antialias: bool = True  # False: four (or sixteen) neighbors whatever the scale, as OpenCV resizes

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists come from JSON
        rules = [
            ("size", len(self.size) == 2 and all(isinstance(n, int) and n > 0 for n in self.size), "two pixel counts"),
            ("crop", 0 < self.crop <= 1, "above 0, at most 1"),
            ("interpolation", self.interpolation in INTERPOLATION, " or ".join(INTERPOLATION)),
            ("mean", len(self.mean) == 3, "three numbers"),
            ("std", len(self.std) == 3 and min(self.std) > 0, "three positive numbers"),
            ("channel_order", self.channel_order in ("RGB", "BGR"), "RGB or BGR"),
        ]
        for name, holds, allowed in rules:
            if not holds:
                raise UsageError(f"preprocess: {name} is {getattr(self, name)!r}; allowed: {allowed}")

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, height, width), float32, of an RGB picture of any size."""
        return self.tensor(self.fit(image))

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and center crop to `size`, in one step: of a long thin picture, only what is kept is enlarged."""
        (h, w), (rows, columns) = self.size, (image.height, image.width)
        cover_h, cover_w = int(h / self.crop), int(w / self.crop)  # whole pixels, rounded as timm and torchvision do
        if cover_h * columns >= cover_w * rows:
            cover_w = max(cover_w, cover_h * columns // rows)
        else:
            cover_h = max(cover_h, cover_w * rows // columns)
        top, left = round((cover_h - h) / 2), round((cover_w - w) / 2)
        y, x = rows / cover_h, columns / cover_w  # pixels of the picture in one of the result
        box = (left * x, top * y, (left + w) * x, (top + h) * y)
        if self.antialias:
            return image.resize((w, h), INTERPOLATION[self.interpolation], box=box)
        return _resize_plain(image, (h, w), box, self.interpolation)

    def tensor(self, image: Image.Image) -> Tensor:
        """Channel order and scale of values: RGB picture (height, width) -> (3, height, width) float32."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, h, w) uint8
        pixels = pixels.flip(0) if self.channel_order == "BGR" else pixels
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """What `to_dict` gave; `ModelError` for keys that are missing or unknown, or values that are not allowed."""
        keys = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in keys:
                raise ModelError(f"preprocess: unknown key {key!r}: {choose(key, keys)}")
        absent = [key for key in keys if key not in values]
        if absent:
            raise ModelError(f"preprocess: no {', '.join(absent)}; it has {', '.join(values) or 'nothing'}")
        try:
            return cls(**values)
        except (UsageError, TypeError) as error:
            raise ModelError(str(error)) from error


def _resize_plain(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float], interpolation: str
) -> Image.Image:
    """A part of a picture (box: x0, y0, x1, y1 in its pixels), resized without antialiasing, in whole values."""
    left, top, right, bottom = box
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()  # (1, 3, rows, columns)
    # centers of the result's pixels in the picture; grid_sample wants -1 and 1 at the picture's outer edges
    y = (torch.arange(size[0]) + 0.5) * ((bottom - top) / size[0]) + top
    x = (torch.arange(size[1]) + 0.5) * ((right - left) / size[1]) + left
    grid = torch.stack(
        torch.meshgrid(2 * x / image.width - 1, 2 * y / image.height - 1, indexing="xy"), dim=-1
    )  # (h, w, 2)
    result = F.grid_sample(pixels, grid[None], interpolation, padding_mode="border", align_corners=False)
    return Image.fromarray(result[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def train_transform(
    preprocess: Preprocess,
    scale: tuple[float, float] = (0.35, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    erasing: float = 0.0,
) -> Transform:
    """Random crop of `scale` of the area, flip, colors, then channel order and values as `preprocess` has them.

    `flip` and `erasing` are probabilities; `color_jitter` is the range of brightness, contrast and saturation around 1.
    `auto_augment` is one of `AUTO_AUGMENT`. Raises `UsageError` for an unknown one.
    """
    if (auto_augment or "none") not in AUTO_AUGMENT:
        raise UsageError(f"no auto_augment {auto_augment!r}: {choose(str(auto_augment), AUTO_AUGMENT)}")
    policy = AUTO_AUGMENT[auto_augment or "none"]
    mode = v2.InterpolationMode(preprocess.interpolation)
    steps: list[Callable[..., Any]] = [v2.RandomResizedCrop(preprocess.size, scale, interpolation=mode)]
    steps += [v2.RandomHorizontalFlip(flip)] if flip else []
    steps += [policy()] if policy else []
    steps += [v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
    steps += [preprocess.tensor]
    steps += [v2.RandomErasing(erasing)] if erasing else []
    return v2.Compose(steps)


def mix(
    images: Tensor, targets: Mapping[str, Tensor], classes: int, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Blend each image of a batch with another (mixup), or paste a part of it (cutmix); with both, one by chance.

    images (N, 3, H, W), targets["label"] (N,) -> the same with targets["label"] (N, classes), probabilities. `mixup`
    and `cutmix` are the alpha of the beta distribution, 0 for none. arXiv:1710.09412, arXiv:1905.04899.
    """
    kinds: list[Any] = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    if not kinds:
        return images, dict(targets)
    images, label = v2.RandomChoice(kinds)(images, targets["label"])
    return images, {**targets, "label": label}


class Batch(NamedTuple):
    images: Tensor  # (N, 3, H, W); N is 0, and the shape (0,), if none of the files could be read
    targets: dict[str, Tensor]  # "label": (N,)
    skipped: list[str]  # a line for each file that could not be read, with the reason


class ImageDataset(Dataset[tuple[Tensor, dict[str, Tensor]] | str]):
    """Samples of a split as (image, targets), or the reason, as text, where the file could not be read.

    With `cache` (height, width of the network's input) all images are decoded at once and kept in memory, reduced to
    just cover 1.3 times that size: for training, where random crops resize them anyway; evaluation needs the whole
    image. Beyond `limit` bytes, the rest is read from disk each time. Processes of a DataLoader share the memory where
    they are forked (Linux); elsewhere each has a copy.
    """

    def __init__(
        self, split: Split, transform: Transform, cache: tuple[int, int] | None = None, limit: int = 4 * 1024**3
    ):
        self.split, self.transform, self.cache = split, transform, cache
        self.kept: list[Image.Image | str] = []  # of the first samples; text is the reason why there is no image
        used = 0
        for sample in split.samples if cache else ():
            image = self._read(sample)
            used += 0 if isinstance(image, str) else 4 * image.width * image.height  # Pillow pads RGB to 4 bytes
            if used > limit:
                break
            self.kept.append(image)

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]] | str:
        sample = self.split.samples[index]
        image = self.kept[index] if index < len(self.kept) else self._read(sample)
        if isinstance(image, str):
            return image
        label = {} if sample.label is None else {"label": torch.tensor(sample.label)}
        return self.transform(image), label

    def _read(self, sample: Sample) -> Image.Image | str:
        try:
            image = sample.image() if callable(sample.image) else images.read(sample.image)
        except DataError as error:
            return str(error)
        if self.cache:
            ratio = 1.3 * max(self.cache[0] / image.height, self.cache[1] / image.width)
            if ratio < 1:
                smaller = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
                image = image.resize(smaller, Image.Resampling.BILINEAR)
        return image


def collate(items: Sequence[tuple[Tensor, dict[str, Tensor]] | str]) -> Batch:
    """A batch of what `ImageDataset` gives; files that could not be read make it smaller and are named in `skipped`."""
    good = [item for item in items if not isinstance(item, str)]
    skipped = [item for item in items if isinstance(item, str)]
    if not good:
        return Batch(torch.empty(0), {}, skipped)
    pictures, targets = default_collate(good)
    return Batch(pictures, targets, skipped)
