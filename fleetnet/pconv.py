"""PConv: partial convolution, of the first quarter of the channels; the others pass through.

Chen et al., CVPR 2023, arXiv:2303.03667. At a quarter of the channels it has 1/16 of the
multiplications of a full convolution and moves 1/4 of its values; what follows has to mix all
channels, as the 1x1 convolutions of FasterNet and of ResNet's bottlenecks do.
"""

from typing import cast

import torch
from torch import Tensor, nn

from . import replacing

SHARE = 4  # one of so many channels is convolved


class PConv(nn.Module):
    """Convolution of the first quarter of the channels; the others pass through.

    (N, C, H, W) -> the same. With a `stride`, along height and width, what passes through is every
    so many rows and columns.
    """

    def __init__(
        self,
        channels: int,
        dilation: int | tuple[int, int] = 1,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        bias: bool = False,
    ):
        super().__init__()
        self.split = [channels // SHARE, channels - channels // SHARE]
        self.stride = stride
        rates = (dilation, dilation) if isinstance(dilation, int) else dilation
        padding = (rates[0] * (kernel[0] // 2), rates[1] * (kernel[1] // 2))  # as large as without
        convolved = self.split[0]
        self.conv = nn.Conv2d(
            convolved, convolved, kernel, stride, padding, dilation=rates, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        head, rest = x.split(self.split, dim=1)
        if self.stride != (1, 1):
            rest = rest[:, :, :: self.stride[0], :: self.stride[1]]
        return torch.cat([self.conv(head), rest], dim=1)


def replace(
    model: nn.Module, where: replacing.Where, size: replacing.Size | None = None
) -> list[str]:
    """Put PConv in the place of convolutions of anybody's network, in place; returns their names.

    `where` chooses by module name: a pattern such as "layer4.*.conv2", a list of them, or a
    function of name and module. Of what a pattern fits, full and depthwise convolutions of odd
    size that keep the number of channels are replaced, and all else stays; strides, sizes of kernels
    and shapes are kept. A full convolution gives the part of its kernel that lies within the first
    quarter of its channels; a depthwise one gives the kernels of these channels, so that PConv
    begins with the same values there, but costs more where there are more than 16 channels. Train
    the network afterwards. `size` is that of the images, one number or (height, width): unless
    given, timm's for the network, else 224; it decides nothing, but the network has to run at it.

    Raises `UsageError` for a pattern that fits nothing, with the nearest names, or only what cannot
    be replaced, with the reason; `ModelError` for a network in which nothing can be.

        fleetnet.pconv.replace(timm.create_model("resnet50"), "layer4.*")
    """
    return replacing.replace(model, where, AS_PCONV, size)


def _obstacle(site: replacing.Site) -> str:
    conv = cast(nn.Conv2d, site.layer)
    if conv.in_channels < SHARE:
        return f"of its {conv.in_channels} channels there is no quarter"
    if not all(side % 2 for side in conv.kernel_size):
        return f"its kernel of {conv.kernel_size} has no center"
    return replacing.obstacle_of_conv(site)


@torch.no_grad()
def _layer_for(site: replacing.Site) -> PConv:
    conv = cast(nn.Conv2d, site.layer)
    dilation, kernel = (cast(tuple[int, int], of) for of in (conv.dilation, conv.kernel_size))
    stride = replacing.stride_of(conv)
    pconv = PConv(conv.in_channels, dilation, kernel, stride, conv.bias is not None)
    pconv.to(conv.weight)
    if replacing.has_plain_weights(conv):
        first = pconv.split[0]
        if replacing.is_depthwise(conv):
            own = torch.arange(first, device=conv.weight.device)
            pconv.conv.weight.zero_()[own, own] = conv.weight[:first, 0]
        else:
            pconv.conv.weight.copy_(conv.weight[:first, :first])
        if conv.bias is not None:
            cast(Tensor, pconv.conv.bias).copy_(conv.bias[:first])
    return pconv


AS_PCONV = replacing.Kind("PConv", "convolution", replacing.is_spatial, _obstacle, _layer_for)
