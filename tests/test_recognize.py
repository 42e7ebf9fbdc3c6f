"""Every family and every head recognizes its own states, by names and shapes, and nobody else's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import VARIANTS, on_meta

from fleetnet import backbones, tasks
from fleetnet.backbones import Implied, Recognized, family
from fleetnet.find import names
from fleetnet.reparam import FORMS, Form
from fleetnet.tasks import build, defaults
from fleetnet.weights import create_model
from fleetnet.weights.identify import looks_like, plan, shapes_of

State = dict[str, Tensor]
GOLDEN = Path(__file__).parent / "golden"
FIRST = {family(name): name for name in reversed(VARIANTS)}  # of each family
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("fasternet_t0", {"mixing": mixing}) for mixing in ("conv", "dwconv", "pwconv")),
    ("fasternet_t1", {"output_norm": True}),
    ("mobileone_s1", {"branches": 3}),
    ("mobileone_s0", {"norm": "after_sum"}),
    ("repvit_m0_9", {"distillation": False}),
    ("deeplabv3/fasternet_t0", {"channels": 16, "auxiliary": True}),
    ("maskrcnn/fasternet_t0", {"channels": 16, "hidden": 24}),
]


def without_values(shapes: Any) -> State:
    return {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}


def recognized_by(state: State) -> dict[str, Recognized]:
    """What each family says of a state in any names."""
    said = {
        file: backbones.find(file).recognize(backbones.find(file).convert(state))
        for file in names("backbones")
    }
    return {file: recognized for file, recognized in said.items() if recognized is not None}


def the_one(state: State, file: str) -> Recognized:
    (said,) = recognized_by(state).items()
    assert said[0] == file
    return said[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognized_by_its_family_alone(name: str) -> None:
    state = on_meta(name).state_dict()
    recognized = the_one(state, family(name))
    assert (recognized.variant, recognized.form, recognized.classes) == (name, "multi-branch", 1000)
    usual = defaults(name)
    assert recognized.options == {option: usual[option] for option in recognized.options}
    of_backbone = {key: value for key, value in state.items() if key.startswith("backbone.")}
    alone = the_one(of_backbone, family(name))
    assert (alone.variant, alone.form, alone.classes) == (name, "multi-branch", None)


@pytest.mark.parametrize(
    "name", [*FIRST.values(), "parc_convnext_xt", "parc_resnet50", "parc_mobilenetv2"]
)
def test_deploy_forms_are_recognized(name: str) -> None:
    recognized = the_one(without_values(shapes_of(name, "deploy", classes=7)), family(name))
    assert (recognized.variant, recognized.form, recognized.classes) == (name, "deploy", 7)


@pytest.mark.parametrize(
    ("first", "second"), [("repvit_m0_9", "repvit_m1"), ("repvit_m1_1", "repvit_m2")]
)
def test_versions_of_blocks_tell_networks_of_one_size_apart(first: str, second: str) -> None:
    for name in (first, second):
        assert the_one(on_meta(name).state_dict(), "repvit").variant == name
    assert the_one(without_values(shapes_of(second, "deploy")), "repvit").variant == first


@pytest.mark.parametrize(
    "name", ["mobileone_s0", "mobileone_s4", "repvit_m1_1", "repvit_m1", "fasternet_t2"]
)
def test_timms_names_are_recognized(name: str) -> None:
    import timm

    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=7)
        features = timm.create_model(name, features_only=True)
    recognized = the_one(whole.state_dict(), family(name))
    assert (recognized.variant, recognized.classes) == (name, 7)
    assert the_one(features.state_dict(), family(name)).variant == name


AUTHORS = {  # a file of the authors' names and shapes -> the network
    **{file.stem: file.stem.rpartition("_")[0] for file in sorted(GOLDEN.glob("*.json"))},
    "fasternet_t0_features_224x224": "fasternet_t0",
    "ssd_parcnet_s_320x320": "parcnet_s",
    "deeplabv3_parcnet_s_512x512": "parcnet_s",
    "mobileone_s4_fused_state": "mobileone_s4",
    "fasternet_t0_fused_state": "fasternet_t0",
    "repvit_m0_9_fused_state": "repvit_m0_9",
}


@pytest.mark.parametrize(("file", "name"), AUTHORS.items(), ids=AUTHORS)
def test_the_authors_names_are_recognized(file: str, name: str) -> None:
    golden = json.loads((GOLDEN / f"{file}.json").read_text())
    recognized = the_one(without_values(golden["state"]), family(name))
    assert (recognized.variant, recognized.form) == (
        name,
        "deploy" if "fused" in file else "multi-branch",
    )


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_options_that_shapes_show(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = build(name, 3, options=options).state_dict()
    made = plan(name, state)
    assert (made.options, made.classes) == (options, 3)


def test_a_model_gets_the_options_that_its_weights_show() -> None:
    original = build("fasternet_t0", 3, options={"mixing": "dwconv"})
    model = create_model("fasternet_t0", weights=original.state_dict())
    assert model.options == {"mixing": "dwconv"}
    assert model.report.loaded == tuple(model.state_dict())


@pytest.mark.parametrize("task", names("tasks"))
@pytest.mark.parametrize("form", FORMS)
def test_every_head_is_recognized_by_its_task_alone(task: str, form: Form) -> None:
    """And by those that have the very same head: what one has learned serves the other."""
    name = "fasternet_t0" if task == "classification" else f"{task}/fasternet_t0"
    state = without_values(shapes_of(name, form, classes=7))
    said = {other: tasks.find(other).recognize(state) for other in names("tasks")}
    alike = tasks.CLASSIFIERS if task in tasks.CLASSIFIERS else (task,)
    assert [other for other, recognized in said.items() if recognized is not None] == [*alike]
    recognized = said[task]
    assert recognized is not None
    if task not in tasks.CLASSIFIERS:  # whose layers are the family's
        assert recognized.classes == 7
        assert recognized.form in (None, form)
    assert recognized.implied == Implied()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
@pytest.mark.parametrize(
    "name", ["fasternet_s", "mobileone_s3", "repvit_m1_5", "parcnet_h", "parc_resnet50"]
)
def test_a_state_of_which_a_part_is_gone_is_still_called_what_it_was(
    name: str, share: float
) -> None:
    state = on_meta(name).state_dict()
    generator = torch.Generator().manual_seed(0)
    kept = {
        key: value
        for key, value in state.items()
        if torch.rand((), generator=generator, device="cpu") >= share
    }
    assert looks_like(kept).variant == name


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv1.weight": torch.zeros(2)},
        {"features.0.1.weight": torch.zeros(2), "features.3.conv.0.weight": torch.zeros(())},
    ],
    ids=["nothing", "some layer", "another list of features"],
)
def test_states_of_other_networks_are_nobodys(state: State) -> None:
    assert looks_like(state).share == 0


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_the_hosts_of_parc_without_it_are_nobodys(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    assert recognized_by(state) == {}


def test_recognizing_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state goes into one model, that which is asked for; a misfit builds the one that its message names."""
    built: list[str] = []
    make = tasks.Model.__init__

    def counted(self: tasks.Model, name: str, *args: Any, **options: Any) -> None:
        built.append(name)
        make(self, name, *args, **options)

    monkeypatch.setattr(tasks.Model, "__init__", counted)
    for file, name in FIRST.items():
        state = on_meta(name).state_dict()
        built.clear()
        if file == "fasternet":
            create_model(name, weights=build(name, 3).state_dict())
            assert built == [name, name]
            built.clear()
        assert plan(name, state).classes == 1000
        assert built == []
        assert looks_like(state).variant == name
        assert built == [name]
