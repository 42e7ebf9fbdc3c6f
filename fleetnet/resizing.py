"""Pictures at another size, as uint8 tensors: what Pillow gives, to one level, in a third of its time.

Pictures are (C, height, width) views of memory with the channels last, (height, width, C), as
decoders write it; torch's kernels for bytes want it so, and their results have it too.
"""

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1, in pixels
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
BEYOND = 4  # times the pixels that are kept: a picture that would have more is not resized whole


def tensor_of(pixels: np.ndarray) -> Tensor:
    """Pixels (height, width, C) uint8 as a picture (C, height, width), in the same memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def array_of(picture: Tensor) -> np.ndarray:
    """A picture (C, height, width) as pixels (height, width, C), in the same memory."""
    pixels: np.ndarray = picture.permute(1, 2, 0).numpy()
    return pixels


def interpolated(
    picture: Tensor,
    size: tuple[int, int],
    interpolation: Interpolation,
    scale: tuple[float, float] | None = None,
) -> Tensor:
    """A picture (C, h, w) uint8 as (C, *size), antialiased where it shrinks: for training, always by torch.

    `scale` (down, across) is how many pixels of the result one of the picture is, where that is
    less than size / (h, w): the last row and column of a picture that was shrunk while it was
    decoded reach beyond its end.
    """
    if scale is None:
        return _passes(picture, size, interpolation, vertical_first=False)
    # torch rounds the size of the result down, which is to be at least `size`
    height, width = picture.shape[1:]
    up = max(scale[0], size[0] / height) * (1 + 1e-12), max(scale[1], size[1] / width) * (1 + 1e-12)
    whole = F.interpolate(
        _batch_of(picture), scale_factor=up, mode=interpolation, antialias=True,
        recompute_scale_factor=False,
    )  # fmt: skip
    return whole[0] if whole.shape[2:] == size else whole[0, :, : size[0], : size[1]]


def resized(picture: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """A picture (C, h, w) uint8 as (C, *size), antialiased where it shrinks, as Pillow does it."""
    return window(picture, size, (0, 0), size, interpolation)


def _is_vertical_first(picture: Tensor, size: tuple[int, int]) -> bool:
    """Whether Pillow 13 resizes columns before rows; the values between are whole, so it matters."""
    shorter, narrower = picture.shape[1] - size[0], picture.shape[2] - size[1]
    return shorter > max(0, 2 * narrower)


def _passes(
    picture: Tensor, size: tuple[int, int], interpolation: Interpolation, vertical_first: bool
) -> Tensor:
    height, width = picture.shape[-2:]
    if (height, width) == size:
        return picture
    batch = _batch_of(picture)
    if vertical_first:
        batch = F.interpolate(batch, (size[0], width), mode=interpolation, antialias=True)
    return F.interpolate(batch, size, mode=interpolation, antialias=True)[0]


def _batch_of(picture: Tensor) -> Tensor:
    """(1, C, h, w), whose strides say that channels are last, as those of `picture[None]` would not."""
    shape, strides = picture.shape, picture.stride()
    return picture.as_strided((1, *shape), (shape[1] * strides[1], *strides))


def window(
    picture: Tensor,
    whole: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> Tensor:
    """`size` (rows, columns) of a picture (C, h, w) resized to `whole`, from `corner` (y, x) on.

    What is seen has to lie in the whole. Of a long thin picture only what is kept is enlarged.
    """
    (y, x), (rows, columns) = corner, size
    # torch's weights have 16 bits; bicubic ones that enlarge are off by two levels now and then
    enlarges = whole[0] > picture.shape[1] or whole[1] > picture.shape[2]
    is_close = interpolation == "bilinear" or not enlarges
    if is_close and whole[0] * whole[1] <= BEYOND * rows * columns:
        part = _passes(picture, whole, interpolation, _is_vertical_first(picture, size))
        return part[:, y : y + rows, x : x + columns]
    down, across = picture.shape[1] / whole[0], picture.shape[2] / whole[1]
    box = x * across, y * down, (x + columns) * across, (y + rows) * down
    return part_of(picture, box, size, interpolation)


def part_of(
    picture: Tensor, box: Box, size: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """A box of a picture (C, h, w), not of whole pixels, as (C, *size): by Pillow, which can do that."""
    height, width = picture.shape[-2:]
    # rounding must not leave the picture
    inside = max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)
    pixels = array_of(picture)
    if len(picture) == 3:
        images = [Image.fromarray(pixels)]
    else:  # Pillow has no pictures of any number of channels
        images = [Image.fromarray(pixels[..., channel]) for channel in range(len(picture))]
    parts = [image.resize(size[::-1], PILLOW[interpolation], box=inside) for image in images]
    return tensor_of(np.concatenate([np.array(part).reshape(*size, -1) for part in parts], 2))


# Without antialiasing ---------------------------------------------------------------------------


def resized_plain(
    picture: Tensor, size: tuple[int, int], box: Box, interpolation: Interpolation
) -> Tensor:
    """A box of a picture (C, h, w) uint8 as (C, *size), without antialiasing, in whole values.

    Only the rows and columns that count are taken from the picture, which may be large.
    """
    left, top, right, bottom = box
    reach = {"bilinear": 1, "bicubic": 2}[interpolation]  # neighbors of a point on each side
    rows, y = _neighbors(top, bottom, size[0], picture.shape[1], reach)
    columns, x = _neighbors(left, right, size[1], picture.shape[2], reach)
    pixels = array_of(picture)[rows[:, None], columns]  # (h * 2 reach, w * 2 reach, C)
    # grid_sample wants -1 and 1 at the outer edges
    grid = torch.stack(
        torch.meshgrid(2 * x / len(columns) - 1, 2 * y / len(rows) - 1, indexing="xy"), dim=-1
    )  # (h, w, 2)
    result = F.grid_sample(
        tensor_of(pixels)[None].float(), grid[None], interpolation, padding_mode="border",
        align_corners=False,
    )  # fmt: skip
    return result[0].round().clamp(0, 255).byte()


def _neighbors(
    start: float, end: float, count: int, length: int, reach: int
) -> tuple[np.ndarray, Tensor]:
    """The pixels of a side of `length` around each of `count` centers between `start` and `end`, 2 * reach for each.

    With them the centers among these pixels, put one after the other. Beyond the border its pixel
    is repeated.
    """
    # 0 is the center of the first pixel
    centers = (np.arange(count) + 0.5) * ((end - start) / count) + start - 0.5
    before = np.floor(centers).astype(np.int64)
    # (count, 2 reach)
    pixels = (before[:, None] + np.arange(1 - reach, reach + 1)).clip(0, length - 1)
    among = np.arange(count) * 2 * reach + reach - 1 + (centers - before) + 0.5
    return pixels.reshape(-1), torch.from_numpy(among).float()
