"""Weights of detectors and segmenters: the authors' checkpoints, other classes, and backbones of other tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import fill
from torch import Tensor
from zoo import image, randomize

from fleetnet import checkpoint
from fleetnet.errors import ModelError
from fleetnet.find import names
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import FORMS, form_of, reparameterize
from fleetnet.tasks import CLASSIFIERS, Model, build
from fleetnet.weights import create_model, load_weights
from fleetnet.weights.identify import plan, shapes_of

State = dict[str, Tensor]
GOLDEN = {
    "classification": "parcnet_s_256x256.json",
    "ssd": "ssd_parcnet_s_320x320.json",
    "deeplabv3": "deeplabv3_parcnet_s_512x512.json",
}
HEADS = [task for task in names("tasks") if task != "classification"]
OTHERS = [task for task in HEADS if task not in CLASSIFIERS]  # with a head of another kind
SMALL: dict[str, dict[str, Any]] = {
    "deeplabv3": {"channels": 16},
    "maskrcnn": {"channels": 16, "hidden": 16},
}


def authors(task: str) -> State:
    state = json.loads((Path(__file__).parent / "golden" / GOLDEN[task]).read_text())["state"]
    return {key: torch.as_tensor(fill.tensor(key, tuple(shape))) for key, shape in state.items()}


def on(task: str, backbone: str) -> str:
    return backbone if task == "classification" else f"{task}/{backbone}"


def small(task: str, backbone: str = "fasternet_t0", classes: int = 7) -> Model:
    return randomize(build(on(task, backbone), classes, options=SMALL.get(task)), 3)


def of_backbone(state: State) -> State:
    return {key: value for key, value in state.items() if key.startswith("backbone.")}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- the authors' checkpoints ----------------------------------------------------------------------------------------


def test_the_authors_segmentation_network_decides_how_it_is_built() -> None:
    state = authors("deeplabv3")
    model = create_model("deeplabv3/parcnet_s", weights=state)
    assert (model.classes, model.output_stride, model.options) == (21, 16, {"dilate": False})
    assert model.report.loaded == tuple(model.state_dict())
    with pytest.raises(
        ModelError,
        match=r"is for a deeplabv3/parcnet_s built with output_stride=16; .*_stride=8 and",
    ):
        create_model("deeplabv3/parcnet_s", weights=state, output_stride=8)
    other = build("deeplabv3/parcnet_s", 21)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(
        ModelError, match=r"built with options=\{'dilate': False\}; .*=16 and options=\{\}"
    ):
        load_weights(other, state)
    assert same(other.state_dict(), before)
    assert (
        load_weights(build("deeplabv3/parcnet_s", 21, options={"dilate": False}), state).note == ""
    )


def test_the_authors_detector_for_other_classes_starts_anew_only_where_they_matter() -> None:
    state = authors("ssd")
    whole, model = (create_model("ssd/parcnet_s", classes, state) for classes in (None, 3))
    assert (whole.classes, whole.report.reinitialized) == (80, ())
    last = {f"head.predict.{i}.1.{kind}" for i in range(5) for kind in ("weight", "bias")}
    assert set(model.report.reinitialized) == last | {
        "head.predict.5.weight",
        "head.predict.5.bias",
    }
    assert "12 new" in model.report.summary()
    assert "head: re-initialized, 80 -> 3 classes" in model.report.summary()
    kept, loaded = model.state_dict(), whole.state_dict()
    assert all(torch.equal(kept[key], loaded[key]) for key in model.report.loaded)
    assert kept["head.predict.0.1.weight"].shape == (6 * (4 + 1 + 3), 512, 1, 1)


@pytest.mark.parametrize("made", GOLDEN)
@pytest.mark.parametrize("wanted", GOLDEN)
def test_the_authors_backbones_go_into_every_task(made: str, wanted: str) -> None:
    if made == wanted:
        return
    state = authors(made)
    model = create_model(on(wanted, "parcnet_s"), 5, state)
    assert model.output_stride == {"deeplabv3": 16}.get(wanted, 32)
    assert model.options == {}  # what a segmentation network implies is not for others
    count = sum(
        1 for key in of_backbone(model.state_dict()) if not key.endswith("num_batches_tracked")
    )
    head = {"classification": 7, "ssd": 78, "deeplabv3": 32}[made]
    assert (
        f"backbone: {count} tensors of a {made} checkpoint used; its head ({head} tensors) not "
        "used; head: " in (model.report.summary())
    )
    reference = create_model(on(made, "parcnet_s"), weights=state)
    assert same(of_backbone(model.state_dict()), of_backbone(reference.state_dict()))


# ---- every head ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", *HEADS])
@pytest.mark.parametrize("form", FORMS)
def test_form_and_classes_of_any_head_are_found(task: str, form: str) -> None:
    name = on(task, "fasternet_t0")
    expected = shapes_of(name, form, classes=7)
    made = plan(name, {key: torch.empty(shape, device="meta") for key, shape in expected.items()})
    assert (made.form, made.classes, made.options) == (form, 7, {})


@pytest.mark.parametrize("task", HEADS)
def test_only_what_depends_on_the_classes_starts_anew(task: str) -> None:
    original = small(task)
    state = {key: value.clone() for key, value in original.state_dict().items()}
    model = create_model(original.name, 5, state, options=SMALL.get(task))
    now = model.state_dict()
    changed = {key for key in state if state[key].shape != now[key].shape}
    assert changed
    assert set(model.report.reinitialized) == changed
    assert all(torch.equal(now[key], state[key]) for key in state.keys() - changed)
    assert all(now[key].isfinite().all() for key in changed)
    assert "head: re-initialized, 7 -> 5 classes" in model.report.summary()


@pytest.mark.parametrize("task", OTHERS)
def test_a_classifier_gives_its_backbone_and_takes_one(task: str) -> None:
    classifier, detector = small("classification"), small(task)
    for source, target in ((classifier, detector), (detector, classifier)):
        model = build(target.name, 4, options=target.options)
        report = load_weights(model, source.state_dict())
        assert same(of_backbone(model.state_dict()), of_backbone(source.state_dict()))
        heads = [
            sum(
                1
                for key in m.state_dict()
                if key.startswith("head.") and not key.endswith("num_batches_tracked")
            )
            for m in (source, model)
        ]
        assert (
            f"of a {source.task} checkpoint used; its head ({heads[0]} tensors) not used; head: "
            f"{heads[1]} " in report.note
        )
        assert all(key.startswith("backbone.") for key in report.loaded)


@pytest.mark.parametrize("task", HEADS)
def test_a_new_head_keeps_its_options(task: str) -> None:
    model = small(task)
    state = of_backbone(small("classification").state_dict())
    report = load_weights(model, state)
    assert report.note == "head: re-initialized, the weights have none"
    assert same(of_backbone(model.state_dict()), state)


def test_a_deployed_classifier_makes_a_deployed_detector() -> None:
    classifier = small("classification")
    state = reparameterize(classifier).state_dict()
    model = create_model("ssd/fasternet_t0", 3, state)
    assert form_of(model) == model.report.form == "deploy"
    assert same(of_backbone(model.state_dict()), of_backbone(state))
    with torch.no_grad():
        assert model.eval()(image(64, 64))["logits"].isfinite().all()
    with pytest.raises(
        ModelError, match="in deploy form, and what is collapsed cannot be unfolded"
    ):
        load_weights(build("ssd/fasternet_t0", 3), state)


def test_our_checkpoints_bring_their_output_stride_and_backbone(tmp_path: Path) -> None:
    model = build(
        "deeplabv3/fasternet_t0", 3, output_stride=8, options={"channels": 16, "mixing": "dwconv"}
    )
    classes = ["a", "b", "c"]
    checkpoint.save(
        tmp_path / "best.safetensors", model, classes=classes, preprocess=Preprocess((64, 64))
    )
    again = create_model("deeplabv3/fasternet_t0", weights=tmp_path)
    assert (again.classes, again.output_stride, again.options) == (3, 8, model.options)
    assert same(again.state_dict(), model.state_dict())
    detector = create_model("ssd/fasternet_t0", 3, tmp_path)
    assert (detector.output_stride, detector.options) == (32, {"mixing": "dwconv"})
    assert same(of_backbone(detector.state_dict()), of_backbone(model.state_dict()))
    with pytest.raises(ModelError, match="This is a checkpoint of deeplabv3/fasternet_t0"):
        create_model("ssd/fasternet_t1", 3, tmp_path)


def test_options_of_a_head_are_inferred() -> None:
    state = small("deeplabv3").state_dict()
    assert plan("deeplabv3/fasternet_t0", state, options={"channels": 16}).options == {
        "channels": 16
    }
    model = build("deeplabv3/fasternet_t0", 3, options={"channels": 16, "auxiliary": True})
    found = plan(model.name, model.state_dict(), options={"channels": 16})
    assert (found.options, found.classes) == (model.options, 3)


MISFITS = {
    "another backbone": (
        "ssd/fasternet_t0",
        lambda: small("classification", "repvit_m0_6"),
        "look like repvit_m0_6",
    ),
    "another backbone's detector": (
        "ssd/fasternet_t0",
        lambda: small("ssd", "mobileone_s0"),
        "look like mobileone_s0",
    ),
    "another width": (
        "ssd/fasternet_t0",
        lambda: small("deeplabv3", "fasternet_t1"),
        "look like fasternet_t1",
    ),
}


@pytest.mark.parametrize(("name", "source", "says"), MISFITS.values(), ids=MISFITS)
def test_another_backbone_is_refused_and_named(name: str, source: Any, says: str) -> None:
    model = small("ssd")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=says):
        load_weights(model, source().state_dict())
    assert same(model.state_dict(), before)


def test_a_head_that_is_not_whole_is_refused() -> None:
    model = small("ssd")
    state = model.state_dict()
    with pytest.raises(
        ModelError,
        match=r"1 missing: head\.pool\.weight.*ssd/fasternet_t0 weights of the same form",
    ):
        load_weights(
            model, {key: value for key, value in state.items() if key != "head.pool.weight"}
        )
    with pytest.raises(
        ModelError, match=r"1 of wrong shape: head\.predict\.5\.bias \(33,\) instead of \(48,\)"
    ):
        # no number of classes gives 33
        load_weights(model, {**state, "head.predict.5.bias": torch.zeros(33)})
