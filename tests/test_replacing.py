"""ParC and PConv in other people's networks: what they compute there, how they begin, which layers are meant."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from zoo import assert_same_function

import fleetnet
from fleetnet import checkpoint
from fleetnet.backbones import timm as family
from fleetnet.circular import FORMS, HEIGHT, WIDTH, circular_convolution
from fleetnet.cli import main
from fleetnet.errors import ModelError, UsageError
from fleetnet.parc import ParC
from fleetnet.pconv import PConv
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import difference, reparameterize
from fleetnet.replacing import Where
from fleetnet.tasks import Model, build
from fleetnet.weights import create_model, load_weights

# what is replaced in each, how its layer is called afterwards, and sizes of images
NETWORKS = {
    "mobilenetv3_large_100": ("blocks.5.*", 3, 64),
    "convnext_tiny": ("stages.3.*", 3, 32),
    "resnet50": ("layer4.*", 3, 32),
    "vit_tiny_patch16_224": ("blocks.11.*", 1, 224),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def host() -> nn.Sequential:
    """Strided and not, depthwise and full, odd and grouped; and a batch norm that has learned."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)),
        nn.Conv2d(8, 8, 5, 2, 2, groups=8),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
    )
    network(torch.randn(2, 3, 16, 16))
    return network


# ---- what is computed


def circulant(kernel: Tensor) -> Tensor:
    """(C, n) -> (C, n, n), of y[i] = sum over t of kernel[t] x[(i + t) mod n]."""
    return torch.stack([kernel.roll(place, dims=1) for place in range(kernel.shape[1])], dim=1)


def slow_parc(parc: ParC, x: Tensor) -> Tensor:
    """A depthwise ParC at its learned length: by matrices, then every so many rows and columns."""
    down, across = parc.first[0], parc.second[0]
    first, second = x.chunk(2, dim=1)
    rows = torch.einsum(
        "cij,ncjw->nciw", circulant(down.weight.flatten(1)), first + down.position
    ) + down.bias.view(-1, 1, 1)
    columns = torch.einsum(
        "cij,nchj->nchi", circulant(across.weight.flatten(1)), second + across.position
    ) + across.bias.view(-1, 1, 1)
    high, wide = down.stride
    return torch.cat([rows, columns], dim=1)[:, :, ::high, ::wide]


@torch.no_grad()
def test_a_replaced_convolution_computes_parc_at_its_stride() -> None:
    network = host().double()
    fleetnet.parc.replace(network, ["1.0", "2"], size=(32, 16))
    x = drawn(2, 3, 32, 16)
    before = network[:2](x)
    assert before.shape[2:] == (16, 8)
    own = ParC(8, (16, 8), stride=(2, 2)).double()
    own.load_state_dict(network[2].state_dict())
    for expected in (slow_parc(own, before), own(before)):
        assert difference([expected], [network[2](before)])[1] < 1e-12
    assert slow_parc(own, before).shape == host()[2](before.float()).shape
    assert (
        difference([slow_parc(network[1][0], network[0](x))], [network[1][0](network[0](x))])[1]
        < 1e-12
    )


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dim", [HEIGHT, WIDTH])
def test_every_form_of_a_circular_convolution_strides_alike(dim: int, dense: bool) -> None:
    x = drawn(2, 4, 7, 6)
    shape = (x.shape[dim], 1) if dim == HEIGHT else (1, x.shape[dim])
    weight = drawn(4, 4 if dense else 1, *shape, seed=1)
    whole = circular_convolution(x, weight, None, dim, "convolution")
    for form in ("convolution", "fourier") if dense else FORMS:
        strided = circular_convolution(x, weight, None, dim, form, (2, 3))
        assert difference([whole[:, :, ::2, ::3]], [strided])[1] < 1e-12


@pytest.mark.parametrize("dense", [False, True])
def test_a_strided_parc_collapses_to_the_same(dense: bool) -> None:
    network = nn.Sequential(ParC(8, 6, dense=dense, stride=(2, 2)), nn.ReLU()).eval()
    x = drawn(2, 8, 7, 9).float()
    assert network(x).shape == (2, 8, 4, 5)
    assert_same_function(
        network, lambda network: reparameterize(network, x.to(next(network.parameters()))), x
    )


@torch.no_grad()
def test_tokens_are_mixed_on_their_grid_and_the_first_become_means() -> None:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 48), depth=2, reg_tokens=1, num_classes=3
    ).double()
    attention = network.blocks[1].attn
    assert fleetnet.parc.replace(network, "blocks.1.*", (32, 48)) == ["blocks.1.attn"]
    tokens = network.blocks[1].attn
    assert (tokens.grid, tokens.first) == ((2, 3), 2)
    assert tokens.project is attention.proj
    for parameter in tokens.parc.parameters():
        parameter.normal_()
    x = drawn(2, 2 + 6, 192)
    values = attention.qkv(x)[..., 2 * 192 :]
    grid = values[:, 2:].transpose(1, 2).reshape(2, 192, 2, 3)
    mixed = slow_parc(tokens.parc, grid).flatten(2).transpose(1, 2)
    means = torch.stack([(values[:, i] + mixed.sum(1)) / 7 for i in range(2)], dim=1)
    expected = attention.proj(torch.cat([means, mixed], dim=1))
    assert difference([expected], [tokens(x)])[1] < 1e-12
    assert tokens(drawn(1, 2 + 24, 192)).shape == (1, 26, 192)  # 4 x 6, of the same shape
    with pytest.raises(ModelError, match="7 tokens are no grid of the shape 2x3"):
        tokens(drawn(1, 2 + 7, 192))
    with pytest.raises(ModelError, match="takes no mask"):
        tokens(x, attn_mask=x)


@torch.no_grad()
def test_tokens_begin_as_attention_of_equal_scores() -> None:
    """Over a whole row, or column, of the grid; over all patches for the class token."""
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).double()
    attention = network.blocks[0].attn
    attention.qkv.weight[: 2 * 192].zero_()  # equal scores
    fleetnet.parc.replace(network, "*", 32)
    tokens = network.blocks[0].attn
    for stage in (*tokens.parc.first, *tokens.parc.second):
        stage.position.zero_()
    x = drawn(1, 5, 192)
    assert difference([attention(x)[:, 0]], [tokens(x)[:, 0]])[1] < 1e-6


def test_attention_of_torchvision_and_of_torch() -> None:
    network = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    x = drawn(2, 3, 32, 32).float()
    chosen = fleetnet.parc.replace(network, "*.encoder_layer_1.*", 32)
    assert chosen == ["encoder.layers.encoder_layer_1.self_attention"]
    assert network(x).shape == (2, 3)
    assert_same_function(
        network.eval(), lambda network: reparameterize(network, x.to(next(network.parameters()))), x
    )
    with pytest.raises(ModelError, match=r"TransformerEncoderLayer reads the weights"):
        fleetnet.parc.replace(Encoder(), "*", 8)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(1)[:, : 16 * 8].reshape(1, 16, 8))


# ---- how it begins


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("kind", ["depthwise", "full", "same", "dilated"])
@torch.no_grad()
def test_parc_begins_as_its_convolution_where_features_vary_one_way(kind: str, kernel: int) -> None:
    """Compared with a convolution that wraps around; of a full one, fed with one half of the channels."""
    torch.manual_seed(0)
    groups = 1 if kind == "full" else 4
    if kind == "same":
        conv = Conv2dSame(4, 4, kernel, 2, groups=groups)
    else:
        dilation = 2 if kind == "dilated" else 1
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(4, 4, kernel, 1, padding, dilation, groups)
    network = nn.Sequential(conv).double()
    fleetnet.parc.replace(network, "0", 6)
    parc = network[0]
    for stage in (*parc.first, *parc.second):
        stage.position.zero_()
    profile = drawn(1, 4, 6, 1)  # of each channel, along one direction
    for half, dim in ((slice(0, 2), HEIGHT), (slice(2, 4), WIDTH)):
        values = torch.zeros(1, 4, 6, 1, dtype=torch.float64)
        values[:, half] = profile[:, half]
        x = (values if dim == HEIGHT else values.transpose(2, 3)).expand(1, 4, 6, 6)
        assert difference([circular(conv, x)[:, half]], [parc(x)[:, half]])[1] < 1e-12


def circular(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with borders that wrap around, at every place by a plain sum."""
    high, wide = conv.stride
    span = conv.dilation[0] * (conv.kernel_size[0] - 1)
    missing = max((-(-x.shape[2] // high) - 1) * high + span + 1 - x.shape[2], 0)
    before = missing // 2 if isinstance(conv, Conv2dSame) else conv.padding[0]
    y = torch.zeros(1, 4, x.shape[2], x.shape[3], dtype=x.dtype) + conv.bias.view(-1, 1, 1)
    for row in range(conv.kernel_size[0]):
        for column in range(conv.kernel_size[1]):
            shifts = [before - step * conv.dilation[0] for step in (row, column)]
            moved = x.roll(shifts, (2, 3))
            taps = conv.weight[:, :, row, column]
            if conv.groups == 1:
                y += torch.einsum("oi,nihw->nohw", taps, moved)
            else:
                y += taps.view(1, -1, 1, 1) * moved
    return y[:, :, ::high, ::wide]


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_pconv_begins_with_the_kernels_of_its_first_quarter(groups: int, stride: int) -> None:
    conv = nn.Conv2d(16, 16, 3, stride, 1, groups=groups).double()
    network = nn.Sequential(conv)
    assert fleetnet.pconv.replace(network, "*", 9) == ["0"]
    x = drawn(2, 16, 9, 8)
    expected = x[:, :, ::stride, ::stride].clone()
    alone = x.clone()
    alone[:, 4:] = 0
    expected[:, :4] = conv(alone)[:, :4]
    assert isinstance(network[0], PConv)
    assert difference([expected], [network[0](x)])[1] < 1e-12
    assert network[0].conv.weight.numel() == 4 * 4 * 9


def test_standardized_weights_are_not_taken_as_they_are() -> None:
    conv = timm.layers.ScaledStdConv2d(8, 8, 3, padding=1, groups=8)
    network = nn.Sequential(conv)
    fleetnet.parc.replace(network, "0", 8)
    kernel = network[0].first[0].weight
    assert kernel.abs().min() > 0  # all eight values are drawn; three would come from the other


# ---- which layers are meant


def test_what_can_be_replaced_is_replaced_and_all_else_stays() -> None:
    network = host()
    statistics = network[1][1].running_mean.clone()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.training
    assert fleetnet.parc.replace(network, "*", 32) == ["1.0", "2", "3.0"]
    assert all(module.training for module in network.modules())
    assert torch.equal(network[1][1].running_mean, statistics)
    for name, value in network.state_dict().items():
        if not name.startswith(("1.0.", "2.", "3.0.")):
            assert torch.equal(value, weights[name])
    assert network[3][0].first[0].groups == 1  # of a full convolution
    assert network(torch.randn(2, 3, 32, 32)).shape == host()(torch.randn(2, 3, 32, 32)).shape


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("1.*", ["1.0"]),
        (["3.*", "1.0"], ["1.0", "3.0"]),
        (lambda name, module: module.stride == (2, 2), ["2"]),
    ],
)
def test_where(where: Where, expected: list[str]) -> None:
    assert fleetnet.parc.replace(host(), where, 32) == expected


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("1.O", UsageError, r"where '1.O': no layer that can become ParC has that name; .*1.0"),
        ("3", UsageError, r"a module that holds others; did you mean '3.\*'"),
        (["1.0", "4"], UsageError, "4 cannot become ParC: its 2 groups have 4 channels each"),
        ("0", UsageError, "0 cannot become ParC: it makes 8 channels of 3"),
        ([], UsageError, "no pattern was given; such layers are 1.0, 2, 3.0"),
        (lambda name, module: False, UsageError, "the function is false for all 3 layers"),
    ],
)
def test_errors_say_what_was_meant_and_change_nothing(
    where: Where, error: type[Exception], message: str
) -> None:
    network = host()
    with pytest.raises(error, match=message):
        fleetnet.parc.replace(network, where, 32)
    assert network.state_dict().keys() == host().state_dict().keys()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(self.conv(image))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), "its 3 channels cannot be halved"),
        (nn.Sequential(nn.Conv2d(3, 3, 3)), "it makes 30x30 of 32x32 at stride"),
        (nn.Sequential(nn.Conv2d(3, 8, 1)), "it has no convolution or attention"),
        (Twice(), "it runs 2 times in one pass"),
        (timm.models.repvit.RepVggDw(3, 3), "conv.c: it is a part of ConvNorm, which is collapsed"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(1, 1)), "does not run with an image of 32x32"),
    ],
)
def test_networks_that_have_no_place_for_it(network: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fleetnet.parc.replace(network, "*", 32)


# ---- the four networks, and the options of timm/NAME


def learn(model: nn.Module, size: int) -> None:
    """Two steps; every parameter has its part in the second loss."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    images = drawn(2, 3, size, size).float()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert not [name for name, value in model.named_parameters() if value.grad is None]
    assert all(value.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_four_networks_keep_their_other_weights_and_learn(name: str) -> None:
    where, count, size = NETWORKS[name]
    network = timm.create_model(name, num_classes=3)
    before = network.state_dict()
    chosen = fleetnet.parc.replace(network, where)
    assert len(chosen) == count
    places = tuple(f"{layer}." for layer in chosen)
    kept = {key for key in before if not key.startswith(places)}
    after = network.state_dict()
    assert {key for key in after if not key.startswith(places)} == kept
    assert all(after[key] is before[key] or torch.equal(after[key], before[key]) for key in kept)
    begun = [after[key].clone() for key in after if key.startswith(places)]
    learn(network, size)
    learned = [network.state_dict()[key] for key in after if key.startswith(places)]
    assert not all(map(torch.equal, begun, learned))


# Shallower than published, so that a file is soon written; names of blocks stay. Of the fourth the
# command line writes one below.
SHALLOW = {
    "convnext_tiny": ({"depths": (1, 1, 1, 1)}, "stages.3.*"),
    "resnet50": ({"layers": (1, 1, 1, 2)}, "layer4.*"),
    "vit_tiny_patch16_224": ({"depth": 2}, "blocks.1.*"),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_three_of_the_networks_export_with_proof(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, where = SHALLOW[name]
    whole = family.create
    monkeypatch.setattr(family, "create", lambda *args, **more: whole(*args, **more, **settings))
    family.cut_of.cache_clear()
    size = NETWORKS[name][2]
    model = build(f"timm/{name}", 3, options={"parc": where})
    randomize(model)
    written = fleetnet.export(
        model.eval(), "onnx", tmp_path / "model.onnx",
        classes=list("abc"), preprocess=Preprocess((size, size)),
    )  # fmt: skip
    family.cut_of.cache_clear()
    assert written.parity.relative < 1e-4
    assert len(model.backbone.plugged["parc"]) >= 1


def randomize(model: Model) -> None:
    """Scales of residuals and batch norms that hide nothing of what a block computes."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith(("weight", "gamma")):
            nn.init.uniform_(parameter, 0.5, 1.5)


def test_a_checkpoint_of_timm_is_loaded_first_and_parc_begins_with_its_kernels(
    tmp_path: Path,
) -> None:
    network = timm.create_model("resnet10t", num_classes=3)
    options = {"parc": "layer4.*.conv2, layer3.0.conv2"}
    places = ["layer3.0.conv2", "layer4.0.conv2"]
    model = create_model("timm/resnet10t", weights=network.state_dict(), options=options)
    assert model.backbone.plugged == {"parc": places}
    fleetnet.parc.replace(network, places)
    ours = model.backbone.model.state_dict()
    positions = {key: value for key, value in ours.items() if "position" in key}
    network.load_state_dict(positions, strict=False)  # these alone are drawn
    image = drawn(1, 3, 64, 64).float()
    with torch.no_grad():
        assert torch.equal(model.eval()(image), network.eval()(image))
    # with these options it is what fits, as a state and in both forms of a checkpoint
    again = create_model(model.name, 3, weights=model.state_dict(), options=options)
    assert torch.equal(again.eval()(image), model(image))
    for form, saved in (("multi-branch", model), ("deploy", reparameterize(model, image))):
        path = tmp_path / f"{form}.safetensors"
        preprocess = Preprocess((64, 64))
        checkpoint.save(path, saved, classes=list("abc"), preprocess=preprocess, form=form)
        for read in (checkpoint.load(path).model, create_model(model.name, weights=path)):
            assert torch.equal(read.eval()(image), saved(image))
            assert read.options["parc"] == options["parc"]
    detector = create_model("ssd/timm/resnet10t", 2, weights=tmp_path / "multi-branch.safetensors")
    assert detector.backbone.plugged == {"parc": places}


def test_weights_that_come_too_late_are_told_to_come_earlier() -> None:
    model = build("timm/resnet10t", 3, options={"pconv": "layer4.*"})
    with pytest.raises(
        ModelError, match=r"create_model\('timm/resnet10t', weights=\.\.\., options="
    ):
        load_weights(model, timm.create_model("resnet10t", num_classes=3).state_dict())


def test_names_are_those_of_the_classifier_for_every_head() -> None:
    model = build(
        "ssd/timm/convnext_atto", 2, options={"parc": "stages.3.*", "pconv": "stages.2.*"}
    )
    assert model.backbone.plugged["parc"] == [
        f"stages.3.blocks.{block}.conv_dw" for block in (0, 1)
    ]
    assert len(model.backbone.plugged["pconv"]) == 6
    assert isinstance(model.backbone.model.stages_3.blocks[0].conv_dw, ParC)
    with pytest.raises(UsageError, match=r"where 'stages_3\.\*': .* did you mean 'stages\.3\."):
        build("ssd/timm/convnext_atto", 2, options={"parc": "stages_3.*"})


# ---- the command line


def test_a_network_of_timm_with_parc_from_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, goes on, is exported with proof, and predicts."""
    run = tmp_path / "run"
    words = f"train --model timm/mobilenetv3_small_050 --data {photos} --run {run} --size 32"
    words += " --epochs 1 --batch-size 12 --workers 0 --device cpu --options.parc blocks.4.*"
    assert main(words.split()) == 0
    places = ", ".join(f"blocks.4.{block}.conv_dw" for block in range(3))
    assert f"parc in the place of {places}" in capsys.readouterr().err
    assert main(f"train --resume {run} --epochs 2".split()) == 0
    model = checkpoint.load(run).model
    assert model.options == {"classifier": "own", "parc": "blocks.4.*"}
    assert main(f"export --model {run} --to onnx --out {tmp_path / 'out'}".split()) == 0
    (file,) = (tmp_path / "out").rglob("*.onnx")
    picture = next(photos.rglob("*.png"))
    expected, predicted = (fleetnet.load(path).predict(str(picture))[0][0] for path in (run, file))
    assert expected[0] == predicted[0]
    assert expected[1] == pytest.approx(predicted[1], rel=1e-4)
