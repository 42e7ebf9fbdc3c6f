"""Counts agree with hand arithmetic and with the published counts of convolutions and linear layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetnet.errors import UsageError
from fleetnet.flops import Counts, count
from fleetnet.reparam import reparameterize
from fleetnet.tasks import build


class OnTheFly(nn.Module):
    """A convolution whose kernel is a resized parameter, as in ParC."""

    def __init__(self) -> None:
        super().__init__()
        self.meta = nn.Parameter(torch.randn(4, 1, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = F.interpolate(self.meta, (x.shape[2], 1), mode="bilinear", align_corners=True)
        return F.conv2d(torch.cat([x, x[:, :, :-1]], 2), kernel, groups=4)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 5, 8) -> the same
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (10, 6), Counts(224, 8 * 27 * 60, 480)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (10, 6), Counts(216, 8 * 27 * 15, 120)),
        (nn.Conv2d(3, 6, 3, groups=3), (10, 6), Counts(60, 6 * 9 * 8 * 4, 192)),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), (5, 4), Counts(104, 3 * 8 * 4 * 20, 8 * 80)),
        (nn.Linear(6, 5), (10, 6), Counts(35, 3 * 10 * 6 * 5, 150)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7, bias=False)), (2, 2), Counts(84, 84, 7)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), OnTheFly()), (9, 5), Counts(40, 12 * 45 + 4 * 9 * 45, 360)),
        (Attention(), (5, 8), Counts(216, 15 * 8 * 24 + 2 * 3 * 25 * 8, None)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (8, 8), Counts(6, 0, 0)),
    ],
)
def test_by_hand(model, size, expected):
    counted = count(model, size)
    assert (counted.parameters, counted.macs) == (expected.parameters, expected.macs)
    if expected.activations is not None:  # inside attention it depends on the kernel that torch picks
        assert counted.activations == expected.activations


# name, pixels, millions of MACs of the deploy form and of the pooling that fvcore counts among them (0 where torch's
# counter was used), millions of activations: measured on the authors' code
PUBLISHED = [
    ("fasternet_t0", 224, 335.4, 0.016, 1.97),
    ("fasternet_t2", 224, 1904.4, 0.038, 4.73),
    ("mobileone_s0", 224, 275.2, 0.050, 3.79),
    ("repvit_m0_9", 224, 815.6, 0.019, None),
    ("parcnet_xs", 256, 944.0, 0, None),
    ("parc_convnext_xt", 224, 1139.2, 0, None),
]


@pytest.mark.parametrize(("name", "pixels", "macs", "pooling", "activations"), PUBLISHED)
def test_published(name, pixels, macs, pooling, activations):
    model, image = build(name).eval(), torch.zeros(1, 3, pixels, pixels)
    counted = count(reparameterize(model, image), image)
    assert counted.macs / 1e6 + pooling == pytest.approx(macs, abs=0.051)
    if activations is not None:
        assert counted.activations / 1e6 == pytest.approx(activations, abs=0.0051)


def test_a_batch_counts_each_image():
    model = nn.Conv2d(3, 8, 3)
    assert count(model, torch.zeros(4, 3, 9, 9)).macs == 4 * count(model, (9, 9)).macs


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    model[0].bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        inside = count(model, (8, 8))
    assert inside == count(model, (8, 8)) == Counts(120, 4 * 27 * 36, 144)
    assert model.training
    assert not model[0].bias.requires_grad
    assert model[1].running_mean.device.type == "cpu"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8,), torch.zeros(3, 8, 8)])
def test_impossible_sizes(size):
    with pytest.raises(UsageError, match="allowed: height and width, or a batch"):
        count(nn.Conv2d(3, 4, 1), size)
