"""Where a picture lies in a network's input, and what of the one is where in the other.

    Place      a picture's size, its scale and its offset in the input: boxes both ways
    centers    of each row (or column) of a picture: which index of the input's rows its center has
    between    maps at such indices, interpolated
    paste      masks of boxes, each a square of probabilities, -> masks of a whole picture

Boxes are x0, y0, x1, y1 in pixels; sizes are (height, width). The center of a pixel is at a half,
so that row i of a picture reaches from i to i + 1.
"""

from math import ceil, floor
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

# Of an image to its picture: how many pixels of the image one of the picture is, down and across.
# It is below 1 for pictures that are too large to be kept whole, see `images.Picture`.
Scale = tuple[float, float]


class Place(NamedTuple):
    """Where a picture of (height, width) pixels lies in the input.

    The picture's x is x * scale_x + left in the input, its y is y * scale_y + top.
    """

    height: int
    width: int
    scale_y: float = 1.0
    scale_x: float = 1.0
    top: float = 0.0
    left: float = 0.0

    def into(self, boxes: Tensor) -> Tensor:
        """Boxes (n, 4) of the picture -> of the input."""
        scale = boxes.new_tensor([self.scale_x, self.scale_y] * 2)
        return boxes * scale + boxes.new_tensor([self.left, self.top] * 2)

    def back(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """Boxes (n, 4) of the input -> of the picture, clipped to it unless told otherwise."""
        scale = boxes.new_tensor([self.scale_x, self.scale_y] * 2)
        boxes = (boxes - boxes.new_tensor([self.left, self.top] * 2)) / scale
        return clip_boxes_to_image(boxes, (self.height, self.width)) if clip else boxes

    def reduced(self, scale: Scale) -> "Place":
        """Where the image of the picture lies, which is as large as the picture times `scale`."""
        down, across = scale
        return Place(
            round(self.height * down), round(self.width * across), self.scale_y / down,
            self.scale_x / across, self.top, self.left,
        )  # fmt: skip


def centers(count: int, scale: float, offset: float, size: int) -> Tensor:
    """Where a picture's `count` rows have their centers, as fractional indices of an input's rows.

    The input has `size` rows. Columns likewise. None lies beyond the outermost rows of the input
    whose own centers are of the picture, so that nothing is taken from the padding.
    """
    centers = (torch.arange(count, dtype=torch.float64) + 0.5) * scale + offset - 0.5
    first, last = ceil(offset - 0.5), floor(count * scale + offset - 0.5)
    if first > last:  # the whole picture lies between two centers
        first = last = round(count * scale / 2 + offset - 0.5)
    return centers.clamp(min(max(first, 0), size - 1), min(max(last, 0), size - 1))


def between(maps: Tensor, dim: int, at: Tensor) -> Tensor:
    """Maps at fractional indices (n,) of one dimension, linear between whole ones; it is n long."""
    low = at.floor().long()
    share = (at - low).to(maps.dtype).view(-1, *[1] * (-1 - dim))
    high = (low + 1).clamp(max=maps.shape[dim] - 1)
    return torch.lerp(maps.index_select(dim, low), maps.index_select(dim, high), share)


def paste(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, s, s) of boxes (n, 4), which may reach outside, as (n, height, width) bool.

    Each is enlarged bilinearly to its box; what is above 0.5 is inside. A pixel is inside if its
    center is. Outside of the box there is nothing.
    """
    cells = probabilities.shape[-1]

    def weights(pixels: int, start: Tensor, end: Tensor) -> Tensor:
        """(n, pixels, s): the share of each cell of the mask in each pixel."""
        center = torch.arange(pixels, device=start.device) + 0.5
        cell = (center - start[:, None]) / (end - start)[:, None] * cells - 0.5
        return (1 - (cell[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)

    x0, y0, x1, y1 = boxes.unbind(1)
    rows, columns = weights(size[0], y0, y1), weights(size[1], x0, x1)
    masks = torch.empty((len(boxes), *size), dtype=torch.bool, device=boxes.device)
    for mask, row, probability, column in zip(masks, rows, probabilities, columns, strict=True):
        torch.gt(row @ probability @ column.T, 0.5, out=mask)
    return masks
