"""Layers that at least two backbones share."""

from typing import cast

from torch import Tensor, nn

from .errors import ModelError
from .merged import Branch
from .reparam import Kernel, as_conv, fold_bn, kernel


class ConvBN(nn.Sequential):
    """Convolution without bias (`.0`), then batch norm (`.1`). The default padding keeps the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        dilation: int = 1,
    ):
        padding = dilation * (size // 2) if padding is None else padding
        super().__init__(
            nn.Conv2d(inputs, outputs, size, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    @property
    def conv(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self[0])

    @property
    def norm(self) -> nn.BatchNorm2d:
        return cast(nn.BatchNorm2d, self[1])

    def branch(self) -> Branch:
        return Branch(self.conv.weight, self.conv.bias, self.norm)

    def kernel(self) -> Kernel:
        return fold_bn(kernel(self.conv), self.norm)

    def fuse(self) -> nn.Conv2d:
        return as_conv(self.kernel(), like=self.conv)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all channels: x * sigmoid(expand(relu(reduce(mean x)))).

    (N, C, H, W) -> the same. Hu et al., arXiv:1709.01507.
    """

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (N, C, 1, 1); a mean exports with dynamic sizes where pooling does not
        gate = x.mean((2, 3), keepdim=True)
        return x * self.expand(self.reduce(gate).relu()).sigmoid()


def check_batch(backbone: nn.Module, image: Tensor, stride: int) -> None:
    """Refuse to train on one image so small that the deepest feature, at `stride`, is one pixel.

    Batch norm has no variance of one value: torch would raise a bare ValueError. `ModelError` says
    what to do.
    """
    # export: no guard on the batch
    if not backbone.training or image.shape[0] > 1 or max(image.shape[-2:]) > stride:
        return
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:
            raise ModelError(
                f"a batch of one image of {image.shape[-2]}x{image.shape[-1]} leaves one value per "
                f"channel for batch norms such as {name!r} in training: use a batch of at least 2, "
                f"an image of more than {stride} pixels, or freeze the batch norms with .eval()"
            )


def drop_rates(largest: float, count: int) -> list[float]:
    """Drop probabilities of `count` residuals, growing linearly with depth from 0 to `largest`."""
    return [largest * i / max(count - 1, 1) for i in range(count)]
