"""Batch norms with the statistics of the pictures that a network will see."""

import copy

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ._sensitivity import BATCH


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch: int = BATCH) -> nn.Module:
    """A copy whose batch norms have the statistics of these images (N, C, H, W).

    They are the mean over batches of `batch`. As in training, every norm sees what the layers before
    it make with the statistics of the batch. All else is in eval mode. Raises `UsageError` for a
    model without batch norms, such as a deploy form, or fewer than two images.
    """
    model = copy.deepcopy(model).eval()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        raise UsageError(
            "the model has no batch norms to recompute: give the multi-branch checkpoint"
        )
    batches = [part for part in images.split(batch) if len(part) > 1]  # one value has no variance
    if not batches:
        raise UsageError(
            f"{len(images)} images for the statistics of batch norms; allowed: at least 2"
        )
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: the mean over all batches
        norm.train()
    for part in batches:
        model(part)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return model.eval()
