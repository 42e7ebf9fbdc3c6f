"""Learning rate, weight decay and average by step, beside the numbers of the papers' own runs."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fleetnet import data
from fleetnet.errors import UsageError
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import build
from fleetnet.training.config import TrainConfig
from fleetnet.training.optimizer import (
    average_of,
    check_optimizer,
    clip_adaptively,
    lay_out_as_weights,
    layers_of,
    optimizer_of,
    parameter_groups,
)
from fleetnet.training.schedule import Schedule, continued
from fleetnet.training.setup import preprocess_of


def schedule(batches: int = 10, **settings: object) -> Schedule:
    usual = {"epochs": 10, "lr": 1.0, "warmup_epochs": 0.0}
    return Schedule(TrainConfig(**{**usual, **settings}), batches)


def rates(of: Schedule) -> list[float]:
    return [
        of.rate(epoch, group) for epoch in range(of.config.epochs) for group in range(of.updates)
    ]


def test_cosine_warms_up_and_falls_to_zero():
    values = rates(schedule(warmup_epochs=1))
    assert values[:10] == sorted(values[:10])
    assert values[10] == max(values) == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[0] == pytest.approx(1 / 11)
    assert values[55] == pytest.approx(0.5)
    assert 0 < values[99] < 0.001


def test_a_cosine_ends_at_its_lowest_rate():
    values = rates(schedule(min_lr=0.25, epochs=1000))
    assert values[-1] == pytest.approx(0.25, abs=1e-5)
    assert values[5000] == pytest.approx(0.625)


def test_steps():
    values = rates(schedule(schedule="step", step_epochs="3,5.5", step_factor=0.5))
    assert [values[step] for step in (0, 29, 30, 54, 55, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_run_that_goes_on_says_how():
    before = TrainConfig(epochs=10, schedule="wsd", cooldown_epochs=3)
    now = replace(before, epochs=14)
    new = "new schedule: wsd over 14 epochs instead of 10"
    peak = f"{new}: the rate stays at its peak until epoch 11"
    assert continued(before, now, 7) == f"{peak}, as if so many had been planned"
    assert "from epoch 7 on and begins again at its peak" in continued(before, now, 8)
    decays = {"decay_end": 0.0, "plain_epochs": 4}
    before, now = replace(before, **decays), replace(now, **decays)
    went = "went by the epochs that were planned before"
    assert continued(before, now, 6) == f"{peak}; weight decay {went}"
    assert continued(before, now, 7) == f"{peak}; weight decay and augmentation {went}"
    cosine = TrainConfig(epochs=10)
    assert continued(cosine, replace(cosine, epochs=12), 4).endswith(
        "cosine over 12 epochs instead of 10"
    )


def test_the_trunk_of_a_longer_wsd_is_the_same():
    settings = {"schedule": "wsd", "cooldown_epochs": 4, "warmup_epochs": 8, "min_lr": 0.1}
    short, long = rates(schedule(**settings, epochs=12)), rates(schedule(**settings, epochs=30))
    assert short[:80] == long[:80]
    assert long[80:260] == [1.0] * 180
    assert short[100] == pytest.approx(0.1 + 0.9 * 20 / 40)
    assert short[-1] == pytest.approx(0.1 + 0.9 / 40)


def test_a_constant_rate():
    assert set(rates(schedule(schedule="constant"))) == {1.0}


def test_the_rate_follows_the_images_of_an_update():
    settings = {"lr": 1e-3, "lr_batch": 512, "batch_size": 256}
    assert schedule(**{**settings, "batch_size": 2048}).peak == pytest.approx(4e-3)
    assert schedule(**settings, accumulate=4).peak == pytest.approx(2e-3)
    said = "peak 0.002 for 1024 images an update (0.001 for 512), "
    assert said in schedule(**settings, accumulate=4).text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "constant", "min_lr": 0.1}, "min_lr is 0.1, but schedule is constant"),
        ({"schedule": "step"}, "give step_epochs"),
        ({"schedule": "wsd"}, "cooldown_epochs 0; allowed: above 0, at most the epochs"),
        (
            {"schedule": "wsd", "cooldown_epochs": 2.0, "epochs": 3},
            "at most the epochs without the warm-up, 1",
        ),
        ({"lr": 0.1, "min_lr": 1.0}, "allowed: at most lr, 0.1"),
        ({"schedule": "step", "step_epochs": "3", "min_lr": 0.1}, "read by cosine and wsd"),
        ({"schedule": "step", "step_epochs": "60,30"}, "allowed: rising numbers"),
        ({"schedule": "step", "step_epochs": "a"}, "allowed: rising numbers"),
    ],
)
def test_settings_of_another_schedule_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**settings)


def test_a_warm_up_that_ends_within_an_epoch_reaches_the_peak():
    values = rates(schedule(warmup_epochs=1.5, rate_by="epoch_after_warmup"))
    assert values[14] < values[15] == 1.0
    assert values[20] < 1.0


# The papers' own runs: rate of (epoch, step of the epoch), and decay --------------------------------


def test_parc_net_as_cvnets_has_it():
    """3000 steps from 4e-4 to 4e-3, then min + (max - min) / 2 (1 + cos(pi epoch / 300))."""
    parc = schedule(
        batches=855,
        epochs=300,
        lr=4e-3,
        min_lr=4e-4,
        warmup_lr=4e-4,
        warmup_steps=3000,
        cosine_from="start",
        rate_by="epoch_after_warmup",
    )
    assert parc.rate(0, 0) == pytest.approx(4e-4)
    assert parc.rate(1, 645) == pytest.approx(4e-4 + 3.6e-3 / 2)  # step 1500
    for epoch in (4, 150, 299):
        expected = 4e-4 + 1.8e-3 * (1 + math.cos(math.pi * epoch / 300))
        assert parc.rate(epoch, 0) == parc.rate(epoch, 854) == pytest.approx(expected)


def test_repvit_as_timm_has_it():
    """1e-6 in epochs 0 and 1, then 6.0e-4, since the schedule runs an epoch behind."""
    repvit = schedule(
        epochs=300,
        lr=3e-3,
        min_lr=1e-5,
        warmup_lr=1e-6,
        warmup_epochs=5.0,
        cosine_from="start",
        rate_by="epoch",
        rate_lag=1,
    )
    assert [repvit.rate(epoch, 9) for epoch in (0, 1)] == [1e-6, 1e-6]
    assert repvit.rate(2, 0) == pytest.approx(6.0e-4, rel=2e-3)
    for epoch in (6, 100, 299):
        expected = 1e-5 + 0.5 * (3e-3 - 1e-5) * (1 + math.cos(math.pi * (epoch - 1) / 300))
        assert repvit.rate(epoch, 3) == pytest.approx(expected)


def test_mobileone_as_mmpretrain_has_it():
    """5 epochs from 1e-4 to 0.1 by step, a cosine to 1e-6 over the other 295; decay 1e-4 to 1e-5."""
    mobileone = schedule(
        batches=100,
        epochs=300,
        lr=0.1,
        min_lr=1e-6,
        warmup_lr=1e-4,
        warmup_epochs=5.0,
        rate_by="epoch_after_warmup",
        weight_decay=1e-4,
        decay_end=1e-5,
    )
    assert mobileone.rate(0, 0) == 1e-4
    assert mobileone.rate(2, 50) == pytest.approx(1e-4 + (0.1 - 1e-4) / 2)
    assert mobileone.rate(5, 0) == pytest.approx(0.1)
    expected = 1e-6 + 0.5 * (0.1 - 1e-6) * (1 + math.cos(math.pi * 145 / 295))
    assert mobileone.rate(150, 77) == pytest.approx(expected)
    assert mobileone.decay(0, 0) == 1.0
    assert 1e-4 * mobileone.decay(150, 0) == pytest.approx(5.5e-5)
    assert 1e-4 * mobileone.decay(299, 99) == pytest.approx(1e-5, rel=0.01)


# What changes the weights --------------------------------------------------------------------------


def test_annealed_decay_leaves_groups_without_decay_at_zero():
    groups = parameter_groups(build("fasternet_t0", 3), 0.1)
    assert sorted(group["decays"] for group in groups) == [0.0, 0.1]
    everything = parameter_groups(build("fasternet_t0", 3), 0.1, decay_norms=True)
    assert sum(len(group["params"]) for group in everything if group["decays"] == 0) == 0


@pytest.mark.parametrize("name", ["fasternet_t0", "repvit_m0_6", "mobileone_s0", "parcnet_xs"])
def test_layers_of_a_network_rise_from_the_image_to_the_head(name):
    layers = layers_of(build(name, 3))
    by_stage = [
        [layer for key, layer in layers.items() if f".stages.{stage}." in key]
        for stage in range(len({key.split(".")[2] for key in layers if ".stages." in key}))
    ]
    assert min(layers.values()) <= 1
    assert len(set(layers.values())) > 10
    for stage, after in itertools.pairwise(by_stage):
        assert max(stage) < min(after)
    of_head = {layer for key, layer in layers.items() if key.startswith("head.")}
    assert of_head == {max(layers.values())}
    assert max(by_stage[-1]) < max(of_head)


def test_rates_by_layer():
    model = build("fasternet_t0", 3)
    groups = parameter_groups(model, 0.0, head_lr=2.0, layer_decay=0.5)
    multiples = sorted({group["lr_multiple"] for group in groups if group["params"]})
    top = max(layers_of(model).values())
    assert multiples[-1] == 2.0  # of the head
    assert multiples[-2] == 0.5
    assert multiples[0] <= 0.5 ** (top - 1)


def test_adaptive_clipping_is_by_the_unit():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    layer.weight.grad = torch.tensor([[30.0, 40.0], [0.3, 0.4]])
    layer.bias.data, layer.bias.grad = torch.tensor([0.6, 0.8]), torch.tensor([0.003, 0.004])
    clip_adaptively(layer.parameters(), 0.1)
    # norm 50 beside weights of norm 5: down to 0.5; weights of nothing count as 1e-3
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.3, 0.4], [6e-5, 8e-5]]))
    torch.testing.assert_close(layer.bias.grad, torch.tensor([0.003, 0.004]))  # small enough
    conv = nn.Conv2d(1, 2, 2, bias=False)
    conv.weight.data = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    conv.weight.grad = torch.ones(2, 1, 2, 2)
    clip_adaptively(conv.parameters(), 0.5)
    torch.testing.assert_close(conv.weight.grad[:, 0, 0, 0], torch.tensor([0.5, 1.0]))


def test_a_plain_average_is_the_papers():
    """momentum 5e-4 of the new weights in every step, from the first on."""
    layer = nn.Linear(1, 1)
    average = average_of(layer, 0.75, warmup=False)
    layer.weight.data.fill_(0.0)
    average.update_parameters(layer)  # the first is a copy
    layer.weight.data.fill_(1.0)
    average.update_parameters(layer)
    assert average.module.weight.item() == pytest.approx(0.25)


def test_an_average_follows_a_model_whose_tensors_are_replaced():
    """It remembers where they are, and not what they are; of shared ones each counts once."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    model.append(model[0])
    model.append(nn.Linear(2, 2, bias=False))
    model[3].weight = model[0].weight
    average = average_of(model, 0.75, warmup=False)
    average.update_parameters(model)
    model[1].running_mean = torch.ones(2)  # another tensor
    model[0].weight.data = model[0].weight.data + 1.0
    expected = 0.75 * average.module[0].weight + 0.25 * model[0].weight
    average.update_parameters(model)
    assert average.module[1].running_mean.tolist() == pytest.approx([0.25, 0.25])
    torch.testing.assert_close(average.module[0].weight, expected)
    other = copy.deepcopy(model)
    other[1].running_mean.fill_(2.0)
    average.update_parameters(other)
    assert average.module[1].running_mean.tolist() == pytest.approx([0.6875, 0.6875])


def test_an_optimizer_goes_on_in_another_memory_format():
    """A fused one would take one number of its state for another."""

    def after(format_of_second: torch.memory_format) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3)
        state: dict[str, object] = {}
        for memory_format in (torch.contiguous_format, format_of_second):
            layer = layer.to(memory_format=memory_format)
            optimizer = optimizer_of(layer, TrainConfig(optimizer="sgd", lr=0.1, momentum=0.9))
            assert all(group["fused"] for group in optimizer.param_groups)
            if state:
                optimizer.load_state_dict(state)
                lay_out_as_weights(optimizer)
            layer(torch.rand(2, 3, 5, 5)).square().mean().backward()
            optimizer.step()
            state = optimizer.state_dict()
        return layer.weight.detach()

    torch.testing.assert_close(after(torch.channels_last), after(torch.contiguous_format))


def test_options_may_ask_for_another_way_than_the_fused_one():
    config = TrainConfig(optimizer="sgd", optimizer_options={"foreach": True})
    assert {group["fused"] for group in optimizer_of(nn.Linear(2, 2), config).param_groups} == {
        None
    }


def test_any_optimizer_by_its_dotted_name():
    config = TrainConfig(optimizer="torch.optim.RMSprop", optimizer_options={"alpha": 0.5}, lr=0.25)
    check_optimizer(config)
    optimizer = optimizer_of(nn.Linear(2, 2), config)
    assert type(optimizer) is torch.optim.RMSprop
    assert {group["alpha"] for group in optimizer.param_groups} == {0.5}
    sgd = TrainConfig(optimizer="sgd", optimizer_options={"nesterov": False})
    assert not optimizer_of(nn.Linear(2, 2), sgd).param_groups[0]["nesterov"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adam"}, "did you mean 'adamw'.*or the dotted name"),
        ({"optimizer": "torch.optim.RMSProp"}, "did you mean 'RMSprop'|RMSprop"),
        ({"optimizer": "torch.optimizers.Adam"}, "cannot be imported"),
        ({"optimizer": "..sgd"}, "cannot be imported"),
        ({"optimizer": "torch.optim.Optimizer"}, "torch.optim.Optimizer"),
        ({"optimizer": "torch.optim.LBFGS"}, "cannot be used"),
        ({"optimizer_options": {"eps": "abc"}}, "cannot be used"),
        ({"optimizer_options": {"weight_decay": 0.5}}, "give weight_decay itself"),
        ({"optimizer_options": {"epz": 1e-6}}, "optimizer_options.epz: adamw has no such option"),
    ],
)
def test_optimizers_that_there_are_not(settings, message):
    with pytest.raises(UsageError, match=message):
        check_optimizer(TrainConfig(**settings))


# What the input looks like --------------------------------------------------------------------------


def test_the_input_as_parc_net_has_it():
    """Blue, green, red from 0 to 1, without mean and std; or only one of these wishes."""
    model, train = build("fasternet_t0", 6), data.load("shapes:12", "train")

    def wanted(**settings: object) -> Preprocess:
        return preprocess_of(model, train, TrainConfig(size=32, **settings))

    assert wanted() == wanted(normalize="imagenet", channel_order="RGB")
    parc = wanted(normalize="none", channel_order="BGR", interpolation="bicubic")
    assert (parc.mean, parc.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (parc.channel_order, parc.interpolation) == ("BGR", "bicubic")
    assert wanted(channel_order="BGR").mean == wanted().mean[::-1]
    assert wanted(channel_order="BGR", normalize="imagenet") == wanted(channel_order="BGR")
