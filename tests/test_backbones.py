"""Every variant of every family: counts as published, gradients, feature shapes, dilation, and the deploy form.

Shapes and counts run on device meta, without arithmetic; what needs values runs on small images.
"""

import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from zoo import ROUNDS_DOWN, VARIANTS, assert_same_function, image, on_meta, random_model

from fleetnet.backbones import Pretrained, backbone, family, pretrained, repvit
from fleetnet.cli import _table
from fleetnet.errors import ModelError, UsageError
from fleetnet.find import find, names
from fleetnet.measure.flops import count
from fleetnet.reparam import difference, reparameterize
from fleetnet.tasks import Model, build

PUBLISHED = {  # parameters with 1000 classes, multi-branch and deploy (None: not published)
    "fasternet_t0": (3_905_500, 3_900_660),
    "fasternet_t1": (7_595_368, 7_587_624),
    "fasternet_t2": (14_982_888, 14_971_272),
    "fasternet_s": (31_181_032, 31_160_424),
    "fasternet_m": (53_521_464, 53_488_488),
    "fasternet_l": (93_465_192, 93_421_224),
    "mobileone_s0": (5_293_272, 2_078_504),
    "mobileone_s1": (4_825_192, 4_764_840),
    "mobileone_s2": (7_884_648, 7_808_168),
    "mobileone_s3": (10_170_600, 10_078_312),
    "mobileone_s4": (14_951_248, 14_838_352),
    "repvit_m0_6": (2_808_932, 2_468_072),
    "repvit_m0_9": (5_489_328, 5_067_056),
    "repvit_m1_0": (7_302_796, 6_810_312),
    "repvit_m1_1": (8_802_912, 8_244_312),
    "repvit_m1_5": (14_644_432, 14_049_992),
    "repvit_m2_3": (23_688_792, 22_926_792),
    "repvit_m1": (5_485_248, 5_067_056),
    "repvit_m2": (8_797_984, 8_244_312),
    "repvit_m3": (10_682_832, 10_115_720),
    "parcnet_xs": (2_185_384, None),
    "parcnet_s": (5_037_088, None),
    "parcnet_h": (20_403_940, None),
    "convnext_xt": (7_438_360, None),
    "parc_convnext_xt": (7_412_824, None),
    "parc_resnet50": (23_737_640, None),
    "parc_mobilenetv2": (3_532_136, None),
}
ONE_HEAD = {
    "repvit_m0_6": 2_487_292,
    "repvit_m0_9": 5_103_560,
    "repvit_m1_0": 6_852_900,
    "repvit_m1_1": 8_288_888,
    "repvit_m1_5": 14_130_408,
    "repvit_m2_3": 23_046_512,
}
# Millions of multiply-accumulates of convolutions and linear layers, at the paper's size.
# MobileOne's and RepViT's were published for the deploy form; MobileOne's with one addition a pixel
# and channel of the pooling.
MACS = {
    "fasternet_t0": 335.4,
    "fasternet_t1": 850.5,
    "fasternet_t2": 1904.3,
    "fasternet_s": 4549.7,
    "fasternet_m": 8721.9,
    "fasternet_l": 15494.4,
    "mobileone_s0": 275.2,
    "mobileone_s1": 825.1,
    "mobileone_s2": 1298.5,
    "mobileone_s3": 1895.9,
    "mobileone_s4": 2979.4,
    "repvit_m0_6": 385.1,
    "repvit_m0_9": 815.6,
    "repvit_m1_0": 1106.1,
    "repvit_m1_1": 1337.1,
    "repvit_m1_5": 2273.6,
    "repvit_m2_3": 4516.0,
    "repvit_m1": 815.6,
    "repvit_m2": 1337.1,
    "repvit_m3": 1859.2,
    "parcnet_xs": 944.0,
    "parcnet_s": 1657.3,
    "parcnet_h": 8544.4,
    "convnext_xt": 1144.0,
    "parc_convnext_xt": 1139.2,
    "parc_resnet50": 3941.5,
    "parc_mobilenetv2": 302.0,
}
# One of each structure, for what costs most: the others of a family differ in width and depth
# alone. mobileone_s0 has four branches and s4 squeeze-and-excite, repvit_m1 has the block of the
# first version, parcnet_s concatenates.
STRUCTURES = [
    *(
        "fasternet_t0",
        "mobileone_s0",
        "mobileone_s4",
        "repvit_m0_6",
        "repvit_m1",
        "parcnet_xs",
        "parcnet_s",
    ),
    *("convnext_xt", "parc_convnext_xt", "parc_resnet50", "parc_mobilenetv2"),
]
PAPER_SIZE = {name: 256 if name.startswith("parcnet") else 224 for name in VARIANTS}
SMALLEST = [
    next(name for name in VARIANTS if family(name) == file)
    for file in sorted({family(n) for n in VARIANTS})
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_variant_is_in_the_tables():
    assert set(VARIANTS) == set(PUBLISHED) == set(MACS)
    assert {family(name) for name in STRUCTURES} == {family(name) for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_macs_as_published(name):
    model, size = on_meta(name), PAPER_SIZE[name]
    deployed = reparameterize(model, torch.empty(1, 3, size, size, device="meta"))
    multi_branch, deploy = PUBLISHED[name]
    assert parameters(model) == multi_branch
    if deploy is not None:
        assert parameters(deployed) == deploy
    counted = deployed if family(name) in ("mobileone", "repvit") else model
    pooled = model.backbone.channels[-1] * 7 * 7 if family(name) == "mobileone" else 0
    assert (count(counted, (size, size)).macs + pooled) / 1e6 == pytest.approx(
        MACS[name], abs=0.0501
    )
    if size != _table.SIZE[0]:  # what `fleetnet models` shows; kernels of ParC depend on the size
        deployed = reparameterize(model, torch.empty(1, 3, *_table.SIZE, device="meta"))
    assert _table.SIZES[name] == (
        parameters(model),
        parameters(deployed),
        count(deployed, _table.SIZE).macs,
    )


@pytest.mark.parametrize("name", ONE_HEAD)
def test_parameters_with_one_head(name):
    model = on_meta(name, options={"distillation": False})
    assert parameters(model) == ONE_HEAD[name]
    assert parameters(reparameterize(model)) == PUBLISHED[name][1]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    model = random_model(name).train()
    features = model.backbone(image(64, 64))
    model.head(features).square().mean().backward()
    missing = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not missing
    dead = [n for n, p in model.named_parameters() if p.ndim > 1 and not p.grad.any()]
    assert not dead


def shapes(name: str, height: int, width: int, strides: list[int]) -> list[tuple[int, int]]:
    if name in ROUNDS_DOWN:
        return [(height // s, width // s) for s in strides]
    return [(-(-height // s), -(-width // s)) for s in strides]


# by output stride
SIZES = {32: [(224, 224), (256, 192), (231, 195)], 16: [(231, 195)], 8: [(231, 195)]}


@pytest.mark.parametrize("name", VARIANTS)
def test_features_match_channels_and_strides(name):
    strides: list[int] = []
    for output_stride, sizes in SIZES.items():
        if output_stride < 32 and name not in STRUCTURES:
            continue
        network = on_meta(name, output_stride).backbone
        strides = strides or network.strides
        assert network.strides == [min(s, output_stride) for s in strides]
        assert strides[-1] == 32
        for height, width in sizes:
            features = network(torch.empty(2, 3, height, width, device="meta"))
            assert [f.shape[1] for f in features] == network.channels
            assert [tuple(f.shape[2:]) for f in features] == shapes(
                name, height, width, network.strides
            )


def features_and_logits(model: Model, x: Tensor) -> list[Tensor]:
    features = model.backbone(x)
    return [*features, model.head(features)]


@pytest.mark.parametrize("name", VARIANTS)
def test_deploy_form_computes_the_same(name):
    def deploy(model: Model) -> nn.Module:
        deployed = reparameterize(model, image(64, 64, dtype=next(model.parameters()).dtype))
        assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in deployed.modules())
        return deployed

    assert_same_function(random_model(name), deploy, image(64, 64), features_and_logits)


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", STRUCTURES)
def test_dilated_forms_take_the_same_weights_and_fuse(name, output_stride):
    model = random_model(name, output_stride=output_stride).double()
    assert set(model.state_dict()) == set(on_meta(name).state_dict())
    x = image(32, 32, batch=1, dtype=torch.float64)
    deployed = reparameterize(model, x)
    with torch.no_grad():
        before, after = model.backbone(x), deployed.backbone(x)
    assert before[-1].shape[2:] == (32 // output_stride, 32 // output_stride)
    assert difference(before, after)[1] < 1e-10


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["fasternet_t0", "mobileone_s1", "repvit_m0_6", "repvit_m1"])
def test_a_dilated_feature_holds_the_strided_one(name, output_stride):
    """Every pixel of the strided network is a pixel of the dilated one: nothing of what was learned is lost.

    Squeeze-and-excite sees another mean, so its gates are made constant here.
    """
    strided = random_model(name).double()
    dilated = random_model(name, output_stride=output_stride).double()
    for model in (strided, dilated):
        for module_name, module in model.named_modules():
            if module_name.endswith("se.expand"):
                nn.init.zeros_(module.weight)
    x = image(64, 96, dtype=torch.float64)
    with torch.no_grad():
        pairs = zip(strided.backbone(x), dilated.backbone(x), strided.backbone.strides, strict=True)
        for reference, dense, stride in pairs:
            step = max(1, stride // output_stride)
            assert difference([reference], [dense[:, :, ::step, ::step]])[1] < 1e-12


@pytest.mark.parametrize("file", names("backbones"))
def test_a_file_says_which_paper_and_what_differs(file):
    text = find("backbones", file).__doc__
    assert "arXiv:" in text
    assert "Differs from the authors' code:" in text


@pytest.mark.parametrize("name", VARIANTS)
def test_published_weights_are_facts_of_a_variant(name):
    published = pretrained(name)
    assert published is None or isinstance(published, Pretrained)
    if published is not None:
        assert published.source.startswith(("hf-hub:", "https://"))
        assert 50 < published.top1 < 100
    assert set(find("backbones", family(name)).WEIGHTS) <= set(
        find("backbones", family(name)).VARIANTS
    )


@pytest.mark.parametrize("name", SMALLEST)
def test_converting_our_own_names_changes_nothing(name):
    model, size = on_meta(name), PAPER_SIZE[name]
    convert = find("backbones", family(name)).convert
    for form in (model, reparameterize(model, torch.empty(1, 3, size, size, device="meta"))):
        assert list(convert(form.state_dict())) == list(form.state_dict())
    assert list(convert({"somebody.else": torch.zeros(1)})) == ["somebody.else"]


@pytest.mark.parametrize("name", [n for n in SMALLEST if not n.startswith("mobileone")])
def test_drop_path_grows_with_depth(name):
    model = build(name, drop_path=0.5)
    rates = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(0.5)
    active = [rate for rate in rates if rate]  # a block without a residual has nothing to drop
    assert active == sorted(active)
    assert len(active) > 5


@pytest.mark.parametrize("name", SMALLEST)
def test_one_image_in_training_works_or_says_why_not(name):
    model = build(name)
    for size in (32, 64):
        try:
            model(image(size, size, batch=1))
        except ModelError as error:
            assert "at least 2" in str(error)  # noqa: PT017
            assert ".eval()" in str(error)  # noqa: PT017
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    model(image(32, 32, batch=1))


def test_one_image_in_training_names_the_head_of_repvit():
    with pytest.raises(
        ModelError, match=r"BatchNorm1d \(heads\.0\.0\), which cannot train on a batch of one"
    ):
        build("repvit_m0_6")(image(64, 64, batch=1))


@pytest.mark.parametrize("name", ["fasternet_t0", "mobileone_s1"])
def test_one_tiny_image_in_training_names_a_batch_norm(name):
    with pytest.raises(
        ModelError,
        match=r"one image of 32x32 .* batch norms such as 'stages\.0\..*more than 32 pixels",
    ):
        build(name)(image(32, 32, batch=1))
    build(name)(image(64, 32, batch=1))


@pytest.mark.parametrize(("output_stride", "size"), [(32, (31, 64)), (16, (64, 15)), (8, (7, 7))])
def test_fasternet_names_its_smallest_image(output_stride, size):
    network = backbone("fasternet_t0", output_stride=output_stride)
    message = rf"at least {output_stride} pixels in both directions, got {size[0]}x{size[1]}"
    with pytest.raises(ModelError, match=message):
        network(image(*size))
    assert network(image(output_stride, output_stride))[-1].shape[2:] == (1, 1)


@pytest.mark.parametrize(
    ("name", "options", "parameters_more"),
    [
        (
            "fasternet_t0",
            {"mixing": "conv"},
            15 / 16 * 9 * (40**2 + 2 * 80**2 + 8 * 160**2 + 2 * 320**2),
        ),
        (
            "fasternet_t0",
            {"mixing": "pwconv"},
            7 / 16 * (40**2 + 2 * 80**2 + 8 * 160**2 + 2 * 320**2),
        ),
        (
            "fasternet_t0",
            {"mixing": "dwconv"},
            9 * (40 + 2 * 80 + 8 * 160 + 2 * 320)
            - 9 / 16 * (40**2 + 2 * 80**2 + 8 * 160**2 + 2 * 320**2),
        ),
        ("fasternet_t0", {"output_norm": True}, 2 * (40 + 80 + 160 + 320)),
        ("mobileone_s1", {"branches": 2}, None),
        ("mobileone_s4", {"branches": 3}, None),
        ("repvit_m0_6", {"distillation": False}, -2 * 320 - 321_000),
        ("repvit_m0_6", {"taps": "before_pre_block"}, 0),
    ],
    ids=str,
)
def test_options(name, options, parameters_more):
    model = random_model(name, options=options).double()
    if parameters_more is not None:
        assert parameters(model) - PUBLISHED[name][0] == parameters_more
    x = image(64, 64, dtype=torch.float64)
    deployed = reparameterize(model)
    with torch.no_grad():
        before, after = model.backbone(x), deployed.backbone(x)
        assert difference([*before, model.head(before)], [*after, deployed.head(after)])[1] < 1e-10
    if name.startswith("mobileone"):
        assert parameters(deployed) == PUBLISHED[name][1]
        # the stem has one branch whatever k is
        assert len(model.backbone.stages[0][0].branches.convs) == 1
        assert len(model.backbone.stages[1][0].branches.convs) == options["branches"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fasternet_t0", {"options": {"mixing": "pcon"}}, "did you mean 'pconv'"),
        ("repvit_m0_6", {"options": {"taps": "lats"}}, "did you mean 'last'"),
        ("mobileone_s0", {"options": {"branches": 0}}, "at least 1"),
        ("mobileone_s0", {"drop_path": 0.1}, "no residual to drop"),
        ("mobileone_s0", {"options": {"mixing": "conv"}}, "Allowed: branches"),
        ("fasternet_t0", {"output_stride": 4}, "allowed: 8, 16, 32"),
    ],
)
def test_impossible_settings_are_usage_errors(name, settings, message):
    with pytest.raises(UsageError, match=message):
        backbone(name, **settings)


def test_mobileone_places_squeeze_and_excite_where_the_paper_does():
    network = on_meta("mobileone_s4").backbone
    gates = [
        name.removesuffix(".se.reduce")
        for name, _ in network.named_modules()
        if name.endswith(".se.reduce")
    ]
    assert gates == [f"stages.3.{i}" for i in range(10, 20)] + ["stages.4.0", "stages.4.1"]


def test_repvit_taps_differ_by_the_pre_block():
    last = random_model("repvit_m0_6").backbone
    before = random_model("repvit_m0_6", options={"taps": "before_pre_block"}).backbone
    x = image(64, 64)
    with torch.no_grad():
        pairs = list(zip(last(x), before(x), last.stages, strict=True))
        for after, tap, stage in pairs[:-1]:
            assert torch.equal(stage[-1](tap), after)
        assert torch.equal(pairs[-1][0], pairs[-1][1])


def test_repvit_heads_are_averaged_in_training_too():
    model = random_model("repvit_m0_6").train()
    features = model.backbone(image(64, 64))
    classifier = model.head.classifier
    first, second = classifier.both(features[-1])
    assert not torch.equal(first, second)
    torch.testing.assert_close(classifier(features[-1]), (first + second) / 2)


@pytest.mark.parametrize(("name", "other", "change"), [
    ("repvit_m1", "repvit_m0_9", repvit.to_current),
    ("repvit_m0_9", "repvit_m1", repvit.to_v1),
])  # fmt: skip
def test_the_two_versions_of_repvggdw_convert_into_each_other(name, other, change):
    model, target = random_model(name).double(), random_model(other, seed=1).double()
    target.load_state_dict(change(model.state_dict()))
    x = image(64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert difference([model(x)], [target(x)])[1] < 1e-10
    state = target.state_dict()
    unchanged = change(state)
    assert list(unchanged) == list(state)
    assert all(unchanged[key] is value for key, value in state.items())


def test_conversion_between_versions_keeps_the_dtype():
    state = random_model("repvit_m1").half().state_dict()
    assert {v.dtype for v in repvit.to_current(state).values()} == {torch.float16, torch.long}
    assert {v.dtype for v in repvit.to_v1(repvit.to_current(state)).values()} == {
        torch.float16,
        torch.long,
    }


def test_strided_pointwise_branch_keeps_memory_intact_in_channels_last():
    """torch's own Conv2d(3, C, 1, stride=2) corrupts memory here, in the backward pass on CPU."""
    model = (
        random_model("mobileone_s1")
        .backbone.stages[0]
        .train()
        .to(memory_format=torch.channels_last)
    )
    x = image(33, 31).contiguous(memory_format=torch.channels_last).requires_grad_()
    model(x).square().mean().backward()
    reference = random_model("mobileone_s1").backbone.stages[0].train()
    y = image(33, 31).requires_grad_()
    reference(y).square().mean().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-6)
    strided = [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)
    ]
    assert not strided


@pytest.mark.parametrize("name", ["timm/mobilevit_xxs", "timm/swin_tiny_patch4_window7_224"])
def test_any_timm_model_is_a_backbone(name):
    model = build(name, classes=7).eval()
    size = 224 if "224" in name else 64
    with torch.no_grad():
        features = model.backbone(image(size, size, batch=1))
        assert [f.shape[1] for f in features] == model.backbone.channels
        assert [size // f.shape[2] for f in features] == model.backbone.strides
        assert model.head(features).shape == (1, 7)


@pytest.mark.parametrize("name", ["timm/mobileone_s1", "timm/repvit_m0_9", "timm/resnet18"])
def test_a_timm_model_collapses_as_far_as_timm_can(name):
    model = build(name, classes=7).eval().requires_grad_(True)
    deployed = reparameterize(model)
    x = image(64, 64)
    with torch.no_grad():
        assert difference([model(x)], [deployed(x)])[1] < 1e-4
    assert all(p.requires_grad for p in deployed.parameters())
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    assert norms == (20 if "resnet" in name else 0)
    assert list(reparameterize(deployed).state_dict()) == list(deployed.state_dict())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("timm/mobilevit_xxss", {}, "nearest: timm/mobilevit_xxs, "),
        ("timm/fasternet_t0", {"output_stride": 16}, "unexpected keyword argument 'output_stride'"),
    ],
)
def test_timm_models_that_cannot_be_are_model_errors(name, settings, message):
    with pytest.raises(ModelError, match=message):
        backbone(name, **settings)


def test_timm_takes_no_options_of_others():
    with pytest.raises(UsageError, match="has no option 'mixing': Allowed: classifier"):
        backbone("timm/resnet18", options={"mixing": "conv"})


def test_timm_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="pip install timm"):
        backbone("timm/resnet18")
