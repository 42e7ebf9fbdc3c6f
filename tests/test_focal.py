"""The focal loss, of one label and of tags, beside plain loops, and where it is no other loss."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fleetnet.errors import UsageError
from fleetnet.tasks import classification, multilabel
from fleetnet.training.checks import check_settings
from fleetnet.training.config import TrainConfig

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn((6, 4), generator=GENERATOR) * 3
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
MIXED = torch.rand((6, 4), generator=GENERATOR).softmax(1)
TAGS = (torch.rand((6, 4), generator=GENERATOR) > 0.5).float()
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


def slowly_of_labels(shares: Tensor, gamma: float, smoothing: float, weights: Tensor) -> float:
    total = 0.0
    for logits, of_image in zip(LOGITS.tolist(), shares.tolist(), strict=True):
        whole = sum(math.exp(logit) for logit in logits)
        for logit, share, weight in zip(logits, of_image, weights.tolist(), strict=True):
            p = math.exp(logit) / whole
            smooth = share * (1 - smoothing) + smoothing / 4
            total -= weight * smooth * (1 - p) ** gamma * math.log(p)
    return total / 6


def slowly_of_tags(gamma: float, weights: Tensor) -> float:
    total = 0.0
    for logits, tags in zip(LOGITS.tolist(), TAGS.tolist(), strict=True):
        for logit, tag, weight in zip(logits, tags, weights.tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit if tag else logit))  # of what is right
            total -= (weight if tag else 1) * (1 - p) ** gamma * math.log(p)
    return total / 24


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_labels(gamma: float, smoothing: float):
    hard = F.one_hot(LABELS, 4)
    for target, shares in ((LABELS, hard), (MIXED, MIXED)):
        for given in (None, WEIGHTS):
            [loss] = classification.loss(
                None, LOGITS, {"label": target}, smoothing, given, gamma
            ).values()
            weights = torch.ones(4) if given is None else given
            expected = slowly_of_labels(shares, gamma, smoothing, weights)
            assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_of_tags(gamma: float):
    for given in (None, WEIGHTS):
        [loss] = multilabel.loss(None, LOGITS, {"tags": TAGS}, 0.0, given, gamma).values()
        weights = torch.ones(4) if given is None else given
        assert loss.item() == pytest.approx(slowly_of_tags(gamma, weights), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gamma_0_is_cross_entropy(smoothing: float):
    loss = classification.focal_loss(LOGITS, LABELS, 0.0, smoothing, WEIGHTS)
    usual = classification.loss(None, LOGITS, {"label": LABELS}, smoothing, WEIGHTS)
    assert loss.item() == pytest.approx(usual["cross_entropy"].item(), rel=1e-6)


def test_gradients_are_finite_where_all_is_certain():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    target = torch.tensor([0, 0])
    classification.focal_loss(logits, target, 1.0).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_where_it_is_refused():
    with pytest.raises(UsageError, match=r"focal is 0\.5; allowed: 0, or at least 1"):
        TrainConfig(focal=0.5)
    with pytest.raises(UsageError, match=r"focal is 2.0, but ssd .*\(classification, multilabel\)"):
        check_settings(TrainConfig(focal=2.0), "ssd")
