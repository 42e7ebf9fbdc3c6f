"""Counts agree with hand arithmetic and with the published counts of convolutions and linear layers."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetnet import checkpoint
from fleetnet.backbones.fasternet import FasterNet
from fleetnet.cli import main
from fleetnet.errors import UsageError
from fleetnet.measure.flops import Counts, count, fvcore_table, parts
from fleetnet.parc import ParC
from fleetnet.preprocess import Preprocess
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
    [  # bytes: values read and written, input + weights + bias + output, of 4 bytes each
        (
            nn.Conv2d(3, 8, 3, padding=1),
            (10, 6),
            Counts(224, 8 * 27 * 60, 480, 4 * (180 + 216 + 8 + 480)),
        ),
        (
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            (10, 6),
            Counts(216, 8 * 27 * 15, 120, 4 * (180 + 216 + 120)),
        ),
        (
            nn.Conv2d(3, 6, 3, groups=3).half(),
            (10, 6),
            Counts(60, 6 * 9 * 8 * 4, 192, 2 * (180 + 54 + 6 + 192)),
        ),
        (
            nn.ConvTranspose2d(3, 8, 2, stride=2),
            (5, 4),
            Counts(104, 3 * 8 * 4 * 20, 8 * 80, 4 * (60 + 96 + 8 + 640)),
        ),
        (nn.Linear(6, 5), (10, 6), Counts(35, 3 * 10 * 6 * 5, 150, 4 * (180 + 30 + 5 + 150))),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 7, bias=False)),
            (2, 2),
            Counts(84, 84, 7, 4 * (12 + 84 + 7)),
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), OnTheFly()),
            (9, 5),
            Counts(
                40,
                12 * 45 + 4 * 9 * 45,
                360,
                4 * (135 + 12 + 4 + 180) + 4 * (4 * 17 * 5 + 4 * 9 + 180),
            ),
        ),
        (Attention(), (5, 8), Counts(216, 15 * 8 * 24 + 2 * 3 * 25 * 8, 0, 0)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), (8, 8), Counts(6, 0, 0, 0)),
    ],
)
def test_by_hand(model, size, expected):
    counted = count(model, size)
    assert (counted.parameters, counted.macs) == (expected.parameters, expected.macs)
    # inside attention it depends on the kernel that torch picks
    if expected.activations or not expected.macs:
        assert counted == expected
        assert counted.flops == 2 * expected.macs
        assert counted.intensity == pytest.approx(2 * expected.macs / max(expected.bytes, 1))


# name, pixels, millions of MACs of the deploy form and of the pooling that fvcore counts among them
# (0 where torch's counter was used), millions of activations: measured on the authors' code
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


class Article(nn.Module):
    """The FasterNet of the PConv article: embed 96, one block a stage."""

    def __init__(self, mixing: str):
        super().__init__()
        with torch.device("meta"):
            self.backbone = FasterNet(96, (1, 1, 1, 1), nn.ReLU, mixing=mixing)
            self.head = self.backbone.classifier(1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image)[-1])


def cells(table: str) -> dict[str, tuple[str, str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: (shape, flops) for name, shape, flops in rows}


@pytest.mark.parametrize(
    ("mixing", "parameters", "total", "mix"),
    [("pconv", 7_399_656, "0.948G", 21_233_664), ("conv", 14_009_256, "2.222G", 339_738_624)],
)
def test_the_pconv_articles_figures(mixing, parameters, total, mix):
    """The article counted in training mode: 5 for each element of a batch norm are in its totals."""
    model = Article(mixing)
    assert count(model, (256, 256)).parameters == parameters
    found = {part.name: part.counts for part in parts(model, (256, 256))}
    layer = "spatial.conv" if mixing == "pconv" else "spatial"
    assert [found[f"backbone.stages.{i}.blocks.0.{layer}"].macs for i in range(4)] == [mix] * 4
    table = cells(fvcore_table(model, (256, 256), 6))
    assert table["module"] == ("#parameters or shape", "#flops")
    assert table["model"] == ({"pconv": "7.4M", "conv": "14.009M"}[mixing], total)
    assert (
        table[f"backbone.stages.2.blocks.0.{layer}"][1]
        == {"pconv": "21.234M", "conv": "0.34G"}[mixing]
    )
    assert table["backbone.stages.0.merge.0.weight"] == ("(96, 3, 4, 4)", "")
    if mixing == "pconv":
        assert count(model, (256, 256)).activations == 3_135_720  # the article's, too


def test_the_layout_of_fvcore():
    """Levels are indented in every column; a module whose only child is all of it shares its line."""
    table = fvcore_table(Article("pconv"), (256, 256), 2).splitlines()
    assert table[:6] == [
        "| module              | #parameters or shape | #flops    |",
        "|:--------------------|:---------------------|:----------|",
        "| model               | 7.4M                 | 0.948G    |",
        "|  backbone.stages    |  5.136M              |  0.945G   |",
        "|   backbone.stages.0 |   47.232K            |   0.197G  |",
        "|   backbone.stages.1 |   0.243M             |   0.251G  |",
    ]
    assert len({len(line) for line in table}) == 1


def test_parts_add_up():
    """Each level has the sum of its network; what is called by another module counts for both."""
    model = build("fasternet_t0", 10).eval()
    whole = count(model, (64, 64))
    found = {part.name: part for part in parts(model, (64, 64))}
    assert found[""].counts == whole
    assert found["backbone"].kind == "FasterNet"
    for parent in ("", "backbone.stages"):
        children = [
            p.counts for name, p in found.items() if name and name.rpartition(".")[0] == parent
        ]
        direct = found[parent].counts
        assert len(children) > 1
        assert sum(c.macs for c in children) == direct.macs
        assert sum(c.bytes for c in children) == direct.bytes
        assert sum(c.activations for c in children) == direct.activations
    assert (
        set(found)
        > {p.name for p in parts(model, (64, 64), 3)}
        > {p.name for p in parts(model, (64, 64), 1)}
    )
    assert [p.name for p in parts(model, (64, 64), 0)] == [""]
    assert {p.name.count(".") for p in parts(model, (64, 64), 2)} == {0, 1}
    assert not any(p.kind in ("GELU", "Identity") for p in found.values())


def test_a_network_that_needs_values_is_counted():
    """NMS cannot run on shapes alone."""
    model = build(
        "maskrcnn/fasternet_t0", 3, options={"channels": 32, "hidden": 64, "proposals": 20}
    ).eval()
    counted = {part.name: part.counts.macs for part in parts(model, (64, 64), 1)}
    assert counted["backbone"] == count(build("fasternet_t0").backbone, (64, 64)).macs
    assert counted[""] == counted["backbone"] + counted["head"] > 2 * counted["backbone"]


def test_a_batch_counts_each_image():
    model = nn.Conv2d(3, 8, 3)
    assert count(model, torch.zeros(4, 3, 9, 9)).macs == 4 * count(model, (9, 9)).macs


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    model[0].bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        inside = count(model, (8, 8))
    assert (
        inside == count(model, (8, 8)) == Counts(120, 4 * 27 * 36, 144, 8 * (192 + 108 + 4 + 144))
    )
    assert model.training
    assert not model[0]._forward_hooks
    assert not model[0].bias.requires_grad
    assert model[1].running_mean.device.type == "cpu"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8,), torch.zeros(3, 8, 8)])
def test_impossible_sizes(size):
    with pytest.raises(UsageError, match="allowed: height and width, or a batch"):
        count(nn.Conv2d(3, 4, 1), size)


# The command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint in each form."""
    folder, model = tmp_path_factory.mktemp("saved"), build("mobileone_s0", 2).eval()
    forms = {"multi-branch": model, "deploy": reparameterize(model)}
    for form, network in forms.items():
        about = {
            "classes": ["cat", "dog"],
            "preprocess": Preprocess((64, 96)),
            "metrics": {},
            "form": form,
        }
        checkpoint.save(folder / f"{form}.safetensors", network, **about)
    return {form: folder / f"{form}.safetensors" for form in forms}


def test_both_forms_of_a_checkpoint(saved, tmp_path, capsys):
    words = [
        "flops",
        "--model",
        str(saved["multi-branch"]),
        "--depth",
        "2",
        "--csv",
        str(tmp_path / "t.csv"),
        "--json",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "MMACs (papers' FLOPs)" in out  # both conventions have names
    assert "MFLOPs (2 a MAC)" in out
    document = json.loads(out.splitlines()[-1])
    assert document["size"] == [64, 96]
    forms = document["forms"]
    assert list(forms) == ["multi-branch", "deploy"]
    whole = {form: rows[0] for form, rows in forms.items()}
    assert whole["multi-branch"]["macs"] > 3 * whole["deploy"]["macs"]  # four branches
    assert whole["deploy"]["flops"] == 2 * whole["deploy"]["macs"]
    assert whole["deploy"]["intensity"] == pytest.approx(
        whole["deploy"]["flops"] / whole["deploy"]["bytes"]
    )
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["form"], r["module"], int(r["macs"])) for r in rows] == [
        (form, row["module"], row["macs"]) for form, rows in forms.items() for row in rows
    ]


def test_a_deploy_form_has_no_other(saved, capsys):
    assert main(["flops", "--model", str(saved["deploy"]), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["forms"]) == ["deploy"]
    assert main(["flops", "--model", str(saved["deploy"]), "--form", "multi-branch"]) == 4
    assert "deploy form, which has no branches" in capsys.readouterr().err


def test_a_model_by_name_with_options_in_fvcores_layout(capsys):
    words = [
        "flops",
        "--model",
        "fasternet_t2",
        "--size",
        "256",
        "--form",
        "multi-branch",
        "--style",
        "fvcore",
    ]
    assert main([*words, "--options.mixing", "conv", "--classes", "10", "--depth", "5"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"\|     backbone.stages.0.blocks.0.spatial +\|     82.944K +\|     0.34G", out
    )
    assert main(["flops", "--model", "fasternet_t2", "--options.mixin", "conv"]) == 2
    assert "did you mean 'mixing'" in capsys.readouterr().err


def test_options_are_for_names(saved, capsys):
    assert main(["flops", "--model", str(saved["deploy"]), "--classes", "3"]) == 2
    assert "--classes is for models given by name" in capsys.readouterr().err
    assert main(["flops", "--model", "fasternet_to"]) == 4
    assert "did you mean 'fasternet_t0'" in capsys.readouterr().err


def test_macs_of_parc_are_those_of_convolutions_whatever_computes_it() -> None:
    """At a length of 80 inference goes by Fourier transforms, which have nothing to count."""
    parc = ParC(4, 80)
    assert count(parc, torch.empty(1, 4, 80, 80)).macs == 4 * 80 * 80 * 80
