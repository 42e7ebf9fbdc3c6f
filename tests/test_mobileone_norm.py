"""MobileOne with the batch norm after the sum of branches: the same network to deploy, without the skip's outliers."""

import pytest
import torch
from zoo import assert_same_function, image, on_meta, randomize

from fleetnet.backbones.mobileone import Branches, MobileOne
from fleetnet.errors import UsageError
from fleetnet.reparam import reparameterize
from fleetnet.tasks import build

AFTER = {"norm": "after_sum"}


def small(norm: str) -> MobileOne:
    return MobileOne((8, 8, 16, 24, 32), se=(0, 0, 1, 1), branches=2, norm=norm)


def test_deploy_form_computes_the_same() -> None:
    model = randomize(small("after_sum"), 0)
    deployed = reparameterize(model)
    assert_same_function(model, reparameterize, image(32, 48), lambda model, x: model(x))
    assert not any("Norm" in type(m).__name__ for m in deployed.modules())
    usual = reparameterize(small("in_branches").eval())
    assert {k: v.shape for k, v in deployed.state_dict().items()} == {
        k: v.shape for k, v in usual.state_dict().items()
    }


def test_branches_are_what_the_head_of_the_file_says() -> None:
    torch.manual_seed(0)
    block = Branches(6, 6, 3, 1, 1, 6, count=2, skip=True, norm="after_sum").eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 6, 8, 9)
    with torch.no_grad():
        total = block.convs[0](x) + block.convs[1](x) + block.scale(x) + x
        assert torch.allclose(block(x), block.norm(total), atol=1e-6)
    # of each 3x3, and of the sum
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in block.modules()) == 3


@torch.no_grad()
def test_outputs_of_channels_have_like_ranges() -> None:
    """The fault of the usual form: normalized branches that learned alike add up, in one channel and not in another."""

    def spread(norm: str) -> float:
        torch.manual_seed(0)
        block = Branches(8, 8, 3, 1, 1, 8, count=4, skip=False, norm=norm)
        for conv in block.convs:
            conv.norm.weight.fill_(1)
        for conv in block.convs[1:]:
            conv.conv.weight[0] = block.convs[0].conv.weight[0]
        ranges = block(torch.randn(64, 8, 8, 8)).abs().amax((0, 2, 3))
        return (ranges.max() / ranges.min()).item()

    assert spread("after_sum") < 1.5
    assert spread("in_branches") > 1.8


def test_every_parameter_learns_and_the_sum_starts_near_a_residual() -> None:
    torch.manual_seed(0)
    features = (model := small("after_sum"))(torch.randn(4, 3, 64, 64))
    assert all(0.1 < feature.std() < 10 for feature in features)
    features[-1].square().sum().backward()
    assert not [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]


def test_names_of_the_parameters() -> None:
    """A batch norm for each sum, and a bias for each 1x1 beside a 3x3, in place of the norms of those and the skips."""
    usual, after = (
        set(on_meta("mobileone_s1", options=options).state_dict()) for options in ({}, AFTER)
    )

    def ends(names: set[str]) -> set[str]:
        return {
            name.partition(".branches.")[2]
            for name in names
            if not name.endswith(("mean", "var", "tracked"))
        }

    assert ends(after - usual) == {"norm.weight", "norm.bias", "scale.weight", "scale.bias"}
    assert ends(usual - after) == {
        "scale.0.weight",
        "scale.1.weight",
        "scale.1.bias",
        "skip.weight",
        "skip.bias",
    }


def test_unknown_place_of_the_norm() -> None:
    with pytest.raises(UsageError, match="did you mean 'after_sum'"):
        build("mobileone_s0", options={"norm": "after_sums"})
