"""How a picture becomes a network's input; kept with the weights, because they are worth little without it.

Pictures stay bytes while they are cropped and resized, and through whole batches: `normalize` makes
floats of them last, on the device that computes.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import images
from .channels import MOST, RGB, names_of
from .errors import ModelError, UsageError, suggest
from .geometry import Place
from .resizing import Interpolation, array_of, resized, resized_plain, tensor_of, window
from .sizes import LARGEST_SIDE

Mode = Literal["crop", "stretch", "letterbox"]
INTERPOLATIONS = "bilinear", "bicubic"
MODES = ("crop", "stretch", "letterbox")
ADDED = ("mode", "values")  # fields that older files do not have
_RANGE_OF_16_BITS = "0 to 65535, and floats from 0 to 1, become 0 to 255"
_KERNELS = {  # (interpolation, antialias) -> which pixels a pixel of the result is made of
    ("bilinear", True): "a triangle, two pixels wide, widened by the scale where the picture "
    "shrinks (Pillow's)",
    ("bicubic", True): "a cubic with a = -0.5, four pixels wide, widened by the scale where it "
    "shrinks (Pillow's)",
    ("bilinear", False): "the four nearest pixels, whatever the scale; beyond the border, the "
    "border's (OpenCV's)",
    (
        "bicubic",
        False,
    ): "the sixteen nearest pixels with a = -0.75, whatever the scale; beyond the border, the "
    "border's",
}
_RESIZING = {  # mode -> the sizes and places, so that x of the picture is x * scale_x + left in the input
    "stretch": {
        "rows": "H", "columns": "W", "top": "0", "left": "0",
        "scale_y": "rows / height", "scale_x": "columns / width",
        "rule": "the whole picture becomes rows x columns",
    },
    "letterbox": {
        "rows": "max(1, round(height * scale))", "columns": "max(1, round(width * scale))",
        "scale": "min(H / height, W / width)",
        "top": "floor((H - rows) / 2)", "left": "floor((W - columns) / 2)",
        "scale_y": "rows / height", "scale_x": "columns / width",
        "rule": "the whole picture becomes rows x columns and is laid on size, filled with "
                "padding, at top, left",
    },
    "crop": {
        "cover_rows": "floor(H / crop)", "cover_columns": "floor(W / crop)",
        "rows": "if cover_rows * width >= cover_columns * height: cover_rows, else: "
                "max(cover_rows, floor(cover_columns * height / width))",
        "columns": "if cover_rows * width >= cover_columns * height: max(cover_columns, "
                   "floor(cover_rows * width / height)), else: cover_columns",
        "top": "-round((rows - H) / 2)", "left": "-round((columns - W) / 2)",
        "scale_y": "rows / height", "scale_x": "columns / width",
        "rule": "the whole picture would become rows x columns; H x W of it, from row -top and "
                "column -left, are kept",
    },
}  # fmt: skip
PADDING = 114  # gray around a letterboxed picture, near the mean of photographs


def blank(size: tuple[int, int], channels: int = RGB) -> Tensor:
    """An input of (height, width) without a picture: gray, with the channels last in memory."""
    return torch.full((*size, channels), PADDING, dtype=torch.uint8).permute(2, 0, 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input; kept with the weights, because they are worth little without it.

    By `mode`: "crop" resizes the image, keeping its shape, to just cover `size / crop`, and cuts
    the `size` in its center out (for a square the usual "shorter side to size / crop, then center
    crop"); "stretch" resizes it to `size` whatever its shape; "letterbox" resizes it, keeping its
    shape, to just fit into `size`, centered on gray. Then channels in `channel_order`, values from
    0 to 1, minus `mean`, by `std` (both in `channel_order`).
    """

    size: tuple[int, int]  # height, width
    crop: float = 1.0  # share of the covered size that is kept: 0.875 is 256 -> 224
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # as many as there are channels
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channel_order: Literal["RGB", "BGR"] = "RGB"  # BGR only of three
    # False: four (or sixteen) neighbors whatever the scale, as OpenCV resizes
    antialias: bool = True
    mode: Mode = "crop"
    # range of the values in files of more than 8 bits that becomes 0 to 255; None: all of 16 bits,
    # floats from 0 to 1
    values: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std", "values"):
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        rules = [
            (
                "size",
                len(self.size) == 2 and all(_is_side(n) for n in self.size),
                f"two pixel counts up to {LARGEST_SIDE}",
            ),
            ("crop", _is_number(self.crop) and 0.01 <= self.crop <= 1, "0.01 to 1"),
            (
                "interpolation",
                self.interpolation in INTERPOLATIONS,
                " or ".join(INTERPOLATIONS),
            ),
            (
                "mean",
                1 <= len(self.mean) <= MOST and all(map(_is_number, self.mean)),
                f"a number for each channel, of which there are 1 to {MOST}",
            ),
            (
                "std",
                len(self.std) == len(self.mean) and all(_is_number(n) and n > 0 for n in self.std),
                "a positive number for each channel, as many as mean has",
            ),
            ("antialias", isinstance(self.antialias, bool), "true or false"),
            (
                "channel_order",
                self.channel_order == "RGB"
                or (self.channel_order == "BGR" and self.channels == RGB),
                "RGB, or of three channels BGR",
            ),
            ("mode", self.mode in MODES, ", ".join(MODES)),
            (
                "values",
                self.values is None or _is_range(self.values),
                "two numbers, the smaller first, or null",
            ),
        ]
        for name, holds, allowed in rules:
            if not holds:
                raise UsageError(
                    f"preprocess: {name} is {getattr(self, name)!r}; allowed: {allowed}"
                )

    @property
    def channels(self) -> int:
        """Of the pictures and the input: 1 is gray, 3 RGB."""
        return len(self.mean)

    def for_channels(self, channels: int) -> "Preprocess":
        """The same for pictures of another number of channels; RGB is the start.

        Red, green and blue keep their mean and std; gray, and channels beside the colors, have the
        average of theirs. The order is then that of the picture.
        """
        if channels == self.channels:
            return self
        if self.channels != RGB:
            raise UsageError(
                f"preprocess: of {self.channels} channels; allowed: {RGB}, to make one for "
                f"{channels} of it"
            )
        step = -1 if self.channel_order == "BGR" else 1
        mean, std = (_of_channels(of_rgb[::step], channels) for of_rgb in (self.mean, self.std))
        return dataclasses.replace(self, mean=mean, std=std, channel_order="RGB")

    def __call__(self, image: Image.Image | images.Picture | Tensor) -> Tensor:
        """(C, height, width), float32, of a picture of any size, in a form that `pixels` takes."""
        return self.normalize(self.pixels(image)).contiguous()

    def read(self, source: images.Source, channels: str = "RGB") -> images.Picture:
        """A picture in any form, upright, with the channels and the range of values of the weights."""
        return images.load(source, self.values, channels, self.channels)

    def place(self, height: int, width: int) -> Place:
        """Where a picture of this size lies in the input."""
        (h, w) = self.size
        if self.mode == "stretch":
            return Place(height, width, h / height, w / width)
        if self.mode == "letterbox":
            scale = min(h / height, w / width)
            rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
            return Place(
                height, width, rows / height, columns / width, (h - rows) // 2, (w - columns) // 2
            )
        # whole pixels, rounded as timm and torchvision do
        cover_h, cover_w = (int(h / self.crop), int(w / self.crop))
        if cover_h * width >= cover_w * height:
            cover_w = max(cover_w, cover_h * width // height)
        else:
            cover_h = max(cover_h, cover_w * height // width)
        top, left = -round((cover_h - h) / 2), -round((cover_w - w) / 2)
        return Place(height, width, cover_h / height, cover_w / width, top, left)

    def pixels(self, image: Image.Image | images.Picture | Tensor) -> Tensor:
        """A picture of any size, a tensor (C, h, w), at `size`: (C, height, width), uint8."""
        if isinstance(image, images.Picture):  # whose pixels may be a reduced copy
            picture, place = tensor_of(image.pixels), self.place(image.height, image.width)
        else:
            picture = image if isinstance(image, Tensor) else tensor_of(np.array(image))
            place = self.place(picture.shape[1], picture.shape[2])
        if not self.antialias:
            return self._plain(picture, place)
        rows, columns = round(place.height * place.scale_y), round(place.width * place.scale_x)
        if self.mode == "letterbox":
            placed = resized(picture, (rows, columns), self.interpolation)
            return self._padded(placed, place)
        corner = -int(place.top), -int(place.left)
        return window(picture, (rows, columns), corner, self.size, self.interpolation)

    def _plain(self, picture: Tensor, place: Place) -> Tensor:
        """The same without antialiasing."""
        rows, columns = picture.shape[-2:]
        if self.mode == "letterbox":
            size = round(place.height * place.scale_y), round(place.width * place.scale_x)
            box = 0.0, 0.0, float(columns), float(rows)
            return self._padded(resized_plain(picture, size, box, self.interpolation), place)
        x = columns / place.width / place.scale_x  # pixels of the picture in one of the result
        y = rows / place.height / place.scale_y
        left, top = -place.left * x, -place.top * y
        box = left, top, left + self.size[1] * x, top + self.size[0] * y
        return resized_plain(picture, self.size, box, self.interpolation)

    def _padded(self, picture: Tensor, place: Place) -> Tensor:
        """A picture (C, rows, columns) at its place in the input, with gray around it."""
        canvas = blank(self.size, len(picture))
        (top, left), (rows, columns) = (int(place.top), int(place.left)), picture.shape[-2:]
        canvas[:, top : top + rows, left : left + columns] = picture
        return canvas

    def normalize(self, pixels: Tensor) -> Tensor:
        """What the network gets: channel order and scale of values, float32, of (..., C, h, w) uint8.

        On the device that the pixels are on, in the memory format that they have.
        """
        pixels = pixels.flip(-3) if self.channel_order == "BGR" else pixels
        mean, std = self._mean_and_std(pixels.device)
        width, channels = pixels.shape[-1], pixels.shape[-3]
        rows = pixels.movedim(-3, -1)  # (..., h, w, C)
        if not rows.is_contiguous():
            return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)
        # Whole rows at once: with three values at a time, the same takes three times as long.
        mean, std = (values.flatten().repeat(width) for values in (mean, std))
        rows = rows.flatten(-2)  # (..., h, w * C)
        scaled = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        # On a CPU picture by picture, each of which stays in its cache: of a batch of 64 pictures
        # of 224 pixels, all at once take four times as long.
        one_by_one = rows.device.type == "cpu" and rows.ndim > 2
        parts = zip(rows, scaled, strict=True) if one_by_one else [(rows, scaled)]
        for pixels_of, result in parts:
            torch.div(pixels_of, 255, out=result).sub_(mean).div_(std)
        return scaled.unflatten(-1, (width, channels)).movedim(-1, -3)

    def _mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(value, device=device) for value in (self.mean, self.std))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def picture_of(self, image: Tensor) -> Image.Image:
        """What `normalize` made of a picture, (C, height, width) float, as a picture again; for the eye."""
        pixels = self.values_of(image.float()).mul(255).round().clamp(0, 255).byte()
        return images.visible(array_of(pixels))

    def values_of(self, inputs: Tensor) -> Tensor:
        """What `normalize` made inputs (..., C, h, w) of: values from 0 to 1, in the picture's order."""
        mean, std = self._mean_and_std(inputs.device)
        values = inputs * std + mean
        return values.flip(-3) if self.channel_order == "BGR" else values

    def input_of(self, values: Tensor) -> Tensor:
        """What `normalize` makes of values from 0 to 1, (..., C, h, w) float: the reverse of `values_of`."""
        mean, std = self._mean_and_std(values.device)
        values = values.flip(-3) if self.channel_order == "BGR" else values
        return (values - mean) / std

    def for_pixels(self) -> "Preprocess":
        """The same for a network that does channel order, mean and std itself: RGB pixels from 0 to 255 go in."""
        count = self.channels
        return dataclasses.replace(
            self, mean=(0.0,) * count, std=(1 / 255,) * count, channel_order="RGB"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        fields = {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }
        if self.values is None:  # as in files from before there were any
            del fields["values"]
        return fields

    def describe(self, embedded: bool = False) -> dict[str, object]:
        """All that an app has to do to a picture, in words and numbers, for the description beside an exported file.

        `embedded`: channel order, mean and std are in the file, which takes RGB pixels from 0 to
        255.
        """
        first = (
            _RANGE_OF_16_BITS
            if self.values is None
            else f"{self.values[0]:g} to {self.values[1]:g} become 0 to 255"
        )
        names = "height and width are the picture's, H and W those of size"
        return {
            "picture": {
                "orientation": "turned upright by its EXIF orientation, before anything else",
                "channels": self._channels_in_words(),
                "more_than_8_bits": first,
            },
            "resize": {
                "mode": self.mode,
                "size": list(self.size),
                "interpolation": self.interpolation,
                "antialias": self.antialias,
                "kernel": _KERNELS[self.interpolation, self.antialias],
                "pixel_centers": "half: pixel i covers i to i + 1, its center is at i + 0.5",
                "values": "rounded to whole numbers from 0 to 255 after resizing",
                **_RESIZING[self.mode],
                "names": f"{names}; round takes halves to the even number, floor goes down",
            },
            "crop": self.crop if self.mode == "crop" else None,
            "padding": [PADDING] * self.channels if self.mode == "letterbox" else None,
            "input": {
                **self._order_in_words(embedded),
                "layout": "NCHW",
                "dtype": "float32",
                "range": [0, 255] if embedded else [0, 1],
                "mean": None if embedded else list(self.mean),
                "std": None if embedded else list(self.std),
                "values": "pixels as they are"
                if embedded
                else "(pixel / 255 - mean) / std, in channel_order",
            },
        }

    def _channels_in_words(self) -> str:
        if self.channels == RGB:
            return "RGB, 8 bits each; gray is repeated; transparent pixels are laid on white"
        if self.channels == 1:
            return (
                "gray, 8 bits; of colors it is (19595 R + 38470 G + 7471 B + 32768) / 65536, "
                "rounded down; transparent pixels are laid on white"
            )
        return (
            f"{', '.join(names_of(self.channels))}, 8 bits each, as they are stored; a picture has "
            "to have as many, of which alpha may be one"
        )

    def _order_in_words(self, embedded: bool) -> dict[str, object]:
        """Of three channels RGB or BGR; of others their names, in the order of the picture."""
        if self.channels == RGB:
            return {"channel_order": "RGB" if embedded else self.channel_order}
        return {"channel_order": "as in the picture", "channels": names_of(self.channels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """What `to_dict` gave; `ModelError` for keys that are missing or unknown, or values that are not allowed."""
        keys = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in keys:
                raise ModelError(f"preprocess: unknown key {key!r}: {suggest(key, keys)}")
        absent = [key for key in keys if key not in values and key not in ADDED]
        if absent:
            raise ModelError(
                f"preprocess: no {', '.join(absent)}; it has {', '.join(values) or 'nothing'}"
            )
        try:
            return cls(**values)
        except (UsageError, TypeError) as error:
            raise ModelError(str(error)) from error


def _of_channels(of_rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Mean or std of red, green and blue -> those of so many channels."""
    average = sum(of_rgb) / RGB
    colors = of_rgb if channels >= RGB else (average,)
    return colors + (average,) * (channels - len(colors))


def _is_range(values: Any) -> bool:
    numbers = (
        isinstance(values, tuple)
        and len(values) == 2
        and all(isinstance(v, int | float) for v in values)
    )
    return (
        numbers and math.isfinite(values[0]) and math.isfinite(values[1]) and values[0] < values[1]
    )
