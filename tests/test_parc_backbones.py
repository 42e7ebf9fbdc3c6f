"""ParC-Net and the ParC ConvNets: the authors' outputs and names, sizes, dilation, deploy form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.fill import image, tensor
from torch import Tensor, nn
from zoo import assert_same_function

from fleetnet.backbones import parc_convnets, parcnet
from fleetnet.circular import computed_as
from fleetnet.errors import ModelError
from fleetnet.parc import FrozenParC, ParC
from fleetnet.reparam import difference, reparameterize
from fleetnet.tasks import Model, build

GOLDEN = Path(__file__).parent / "golden"
FILES = [
    "parcnet_s_224x224", "parcnet_s_256x256", "parcnet_xs_256x256",
    "convnext_xt_224x224", "parc_convnext_xt_224x224", "parc_mobilenetv2_224x224",
]  # fmt: skip
PARAMETERS = {
    "parcnet_xs": 2_185_384, "parcnet_s": 5_037_088, "parcnet_h": 20_403_940,
    "convnext_xt": 7_438_360, "parc_convnext_xt": 7_412_824,
    "parc_resnet50": 23_737_640, "parc_mobilenetv2": 3_532_136,
}  # fmt: skip
MACS = {  # conv and linear, in millions, from the specifications: (size, count)
    "parcnet_xs": (256, 944.0), "parcnet_s": (256, 1657.3), "parcnet_h": (256, 8544.4),
    "convnext_xt": (224, 1144.0), "parc_convnext_xt": (224, 1139.2),
    "parc_resnet50": (224, 3941.5), "parc_mobilenetv2": (224, 302.0),
}  # fmt: skip
SMALL = ["parcnet_xs", "parc_convnext_xt", "parc_mobilenetv2", "parc_resnet50"]  # one a structure


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _module(name: str):
    return parcnet if name in parcnet.VARIANTS else parc_convnets


def _on_meta(name: str, **options: int) -> Model:
    with torch.device("meta"):
        return build(name, **options).eval()


@torch.no_grad()
def _randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics as if trained, gammas of both signs, layer scales and biases that are not zero."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
            module.weight.uniform_(0.5, 1.5, generator=draw)
            module.weight[torch.rand(module.weight.shape, generator=draw) < 0.5] *= -1
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=draw)
        elif name.endswith((".scale", ".bias")):
            parameter.normal_(0, 0.3, generator=draw)
    return model.eval()


def _authors_state(file: str) -> tuple[dict, dict[str, Tensor]]:
    golden = json.loads((GOLDEN / f"{file}.json").read_text())
    names = golden["state"].items()
    return golden, {
        name: torch.from_numpy(np.asarray(tensor(name, tuple(shape)))) for name, shape in names
    }


@pytest.mark.parametrize("file", FILES)
def test_golden(file):
    golden, state = _authors_state(file)
    model = build(golden["model"]).eval()
    model.load_state_dict(_module(golden["model"]).convert(state), strict=True)
    expected = golden["output"]["output"]
    with torch.no_grad():
        logits = model(torch.from_numpy(image(tuple(golden["input_shape"]))))
    assert list(logits.shape) == expected["shape"]
    error = (
        (logits.flatten()[expected["index"]] - torch.tensor(expected["value"])).abs().max().item()
    )
    assert error / expected["std"] < 2e-4
    assert logits.mean().item() == pytest.approx(expected["mean"], abs=1e-5 * expected["std"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_macs(name):
    from torch.utils.flop_counter import FlopCounterMode

    model = _on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    size, millions = MACS[name]
    # As published; other forms of ParC have other multiplications.
    with computed_as("convolution"), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    assert round(counter.get_total_flops() / 2e6, 1) == millions


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("name", SMALL)
def test_deploy_form_is_the_multi_branch_form(name, output_stride):
    example = torch.randn(2, 3, 96, 64)

    def deploy(model: Model) -> nn.Module:
        deployed = reparameterize(model, example.to(next(model.parameters())))
        assert not any(isinstance(m, nn.BatchNorm2d | ParC) for m in deployed.modules())
        return deployed

    def logits_and_features(model: Model, x: Tensor) -> list[Tensor]:
        return [model(x), *model.backbone(x)]

    model = _randomize(build(name, output_stride=output_stride))
    assert_same_function(model, deploy, example, logits_and_features)


@pytest.mark.parametrize("name", ["parcnet_s", "parcnet_h", "convnext_xt"])
def test_deploy_form_of_the_other_variants(name):
    model, example = (
        _randomize(build(name)).double(),
        torch.randn(1, 3, 64, 96, dtype=torch.float64),
    )
    with torch.no_grad():
        assert difference([model(example)], [reparameterize(model, example)(example)])[1] < 1e-10


def test_deploy_form_is_a_state_that_loads():
    example = torch.randn(1, 3, 64, 96)
    trained = reparameterize(_randomize(build("parcnet_xs")), example)
    fresh = reparameterize(build("parcnet_xs").eval(), example)
    fresh.load_state_dict(parcnet.convert(trained.state_dict()), strict=True)
    assert torch.equal(fresh(example), trained(example))
    assert sum(isinstance(m, FrozenParC) for m in fresh.modules()) == 7


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_state_of_ours_is_not_renamed(name):
    state = _on_meta(name).state_dict()
    assert not state.keys() ^ _module(name).convert(state).keys()


def test_encoders_of_detectors_and_segmenters_are_converted():
    _, state = _authors_state("parcnet_s_256x256")
    encoder = {
        f"encoder.{name}": v
        for name, v in state.items()
        if not name.startswith(("conv_1x1_exp", "classifier"))
    }
    converted = parcnet.convert(
        {**encoder, "seg_head.classifier.classifier.block.conv.bias": torch.zeros(21)}
    )
    assert "seg_head.classifier.classifier.block.conv.bias" in converted  # not ours to know
    names = {name for name in converted if name.startswith("backbone.")}
    assert not names ^ {f"backbone.{name}" for name in _on_meta("parcnet_s").backbone.state_dict()}
    assert len(converted) == len(names) + 1  # the aliases `residual.*` are gone


def test_resnet_names():
    """There is no golden file of parc_resnet50: its keys, as the specifications list them, cover the whole model."""
    halves = [
        f"parc_{d}.{leaf}" for d in "HW" for leaf in ("pe", "gcc_conv.weight", "gcc_conv.bias")
    ]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    keys = ["conv1.weight", *[f"bn1.{leaf}" for leaf in norm], "fc.weight", "fc.bias"]
    for stage, (depth, parc) in enumerate(zip((3, 4, 6, 3), (0, 0, 3, 1), strict=True), 1):
        for j in range(depth):
            middle = halves if j >= depth - parc else ["conv2.weight"]
            block = [
                "conv1.weight",
                *middle,
                "conv3.weight",
                *[f"bn{i}.{leaf}" for i in (1, 2, 3) for leaf in norm],
            ]
            block += (
                ["downsample.0.weight", *[f"downsample.1.{leaf}" for leaf in norm]]
                if j == 0
                else []
            )
            keys += [f"layer{stage}.{j}.{key}" for key in block]
    converted = parc_convnets.convert(dict.fromkeys(keys, torch.zeros(())))
    assert len(keys) == 340
    assert not converted.keys() ^ _on_meta("parc_resnet50").state_dict().keys()


@pytest.mark.parametrize(
    "name", ["parcnet_xs", "convnext_xt", "parc_convnext_xt", "parc_mobilenetv2"]
)
def test_every_parameter_gets_a_gradient(name):
    model = build(name, classes=10, drop_path=0.2)
    for parameter in model.parameters():
        if parameter.ndim == 1 and parameter.max() < 1e-5:  # layer scale, which begins as nothing
            nn.init.ones_(parameter)
    model(torch.randn(4, 3, 64, 96)).square().sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("dilate", [True, False])
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_dilation_of_parcnet(output_stride, dilate):
    """(the depthwise convolution, the frame's two) of stages 4 and 5"""
    backbone = _on_meta(
        "parcnet_xs", output_stride=output_stride, options={"dilate": dilate}
    ).backbone
    rates = []
    for residual, frame in (backbone.stages[3], backbone.stages[4]):
        assert frame.local[0][0].dilation == frame.fusion[0][0].dilation
        rates.append((residual.layers[2][0].dilation[0], frame.local[0][0].dilation[0]))
    published = {32: [(1, 1), (1, 1)], 16: [(1, 1), (1, 1)], 8: [(1, 1), (2, 1)]}
    dilated = {32: [(1, 1), (1, 1)], 16: [(1, 1), (1, 2)], 8: [(1, 2), (2, 4)]}
    assert rates == (dilated if dilate else published)[output_stride]


def test_dilated_convnext_holds_the_values_of_the_strided_one():
    """Up to the first dilated block, the dense map sampled at the lost stride is the strided map."""
    strided = _randomize(build("convnext_xt"))
    dense = build("convnext_xt", output_stride=8).eval()
    dense.load_state_dict(strided.state_dict())
    x = strided.backbone(torch.randn(1, 3, 64, 96))[1]
    merged, spread = (model.backbone.stages[2][:2](x) for model in (strided, dense))
    assert torch.allclose(merged, spread[:, :, ::2, ::2], atol=1e-5)
    merged, spread = strided.backbone.stages[3][:2](merged), dense.backbone.stages[3][:2](spread)
    assert torch.allclose(merged, spread[:, :, ::4, ::4], atol=1e-5)


@pytest.mark.parametrize("name", ["parcnet_xs", "parc_resnet50", "parc_mobilenetv2"])
def test_one_image_in_training(name):
    model, one = build(name, classes=3), torch.randn(1, 3, 32, 32)
    with pytest.raises(
        ModelError,
        match=r"batch norm stages.*batch of at least 2|batch norm .* in the last stage of",
    ):
        model(one)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(one).shape == (1, 3)


@pytest.mark.parametrize("name", ["parc_convnext_xt", "parc_mobilenetv2"])
def test_one_larger_image_in_training_works(name):
    assert build(name, classes=3)(torch.randn(1, 3, 64, 32)).shape == (1, 3)


def test_convnext_names_its_least_size():
    with pytest.raises(ModelError, match=r"\(31, 64\); ConvNeXt needs at least 32 x 32"):
        _on_meta("convnext_xt")(torch.empty(1, 3, 31, 64, device="meta"))
