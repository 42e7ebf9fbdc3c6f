"""What changes a whole batch on its way to the network: mixup, cutmix, and a size of its own."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from ..data import OF_PICTURES
from ..processes import row_before, world
from .dataset import BatchTargets


def mix(
    images: Tensor,
    targets: Mapping[str, object],
    classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[Tensor, BatchTargets]:
    """Blend each image of a batch with another (mixup), or paste a part of it (cutmix).

    With both, one of them by chance. images (N, 3, H, W), targets["label"] (N,) or
    targets["tags"] (N, classes) -> the same with (N, classes), of both pictures by their shares.
    `mixup` and `cutmix` are the alpha of the beta distribution, 0 for none. arXiv:1710.09412,
    arXiv:1905.04899. Of several processes that have parts of a batch, each gets its part of the same.
    """
    kinds: list[v2.Transform] = []
    if mixup:
        kinds.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        kinds.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    if not kinds:
        return images, dict(targets)
    (key,) = (key for key in OF_PICTURES if key in targets)
    truth = cast(Tensor, targets[key])
    if world() == 1:
        images, shares = v2.RandomChoice(kinds)(images, truth)
        return images, {**targets, key: shares}
    # Each image is blended with the one before it: that of the first is in another process.
    images, truth = (torch.cat([row_before(rows), rows]) for rows in (images, truth))
    images, shares = v2.RandomChoice(kinds)(images, truth)
    return images[1:], {**targets, key: shares[1:]}


def multi_scale(images: Tensor, targets: BatchTargets, ratio: float) -> tuple[Tensor, BatchTargets]:
    """A batch at another size: both sides times `ratio`, in multiples of 32 and at least 32 pixels.

    images (N, 3, H, W); of the targets, boxes (list of (n, 4)) are scaled, masks (list of (n, H,
    W)) and semantic (N, H, W) take the nearest pixel, and the rest stays as it is.
    """
    height, width = images.shape[-2:]
    size = tuple(max(1, round(side * ratio / 32)) * 32 for side in (height, width))
    if size == (height, width):
        return images, dict(targets)
    y, x = size[0] / height, size[1] / width

    def nearest(maps: Tensor) -> Tensor:
        rows, columns = (
            ((torch.arange(n, device=maps.device) + 0.5) / s).long()
            for n, s in zip(size, (y, x), strict=True)
        )
        return maps.index_select(-2, rows).index_select(-1, columns)

    moved = dict(targets)
    if "boxes" in moved:
        moved["boxes"] = [boxes * boxes.new_tensor([x, y, x, y]) for boxes in moved["boxes"]]
    if "masks" in moved:
        moved["masks"] = [nearest(masks) for masks in moved["masks"]]
    if "semantic" in moved:
        moved["semantic"] = nearest(moved["semantic"])
    return F.interpolate(images, size, mode="bilinear", align_corners=False), moved
