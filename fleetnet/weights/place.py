"""A state into a model: every tensor has a place and every place a tensor, or an error says what these are.

Only the head may differ. What depends on the number of classes starts anew where that is another; all of the head does
where the weights have none or that of another task, such as a classifier's for a detector. The report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .. import tasks
from ..errors import ModelError
from ..reparam import form_of, reparameterize
from ..tasks import Model, defaults, split_name
from .identify import (
    Growth,
    backbone_of,
    convert,
    counted,
    family_of,
    growing,
    head_of,
    implied_by,
    in_our_names,
    looks_like,
    names_of_backbone,
    plan,
)
from .read import State, Weights, check_finite


@dataclass(frozen=True)
class Report:
    """What `load_weights` did, by the names of tensors.

    `missing`, `unexpected` and `wrong_shape` are empty, or belong to a head that starts anew.
    """

    source: str
    form: str  # of the weights and of the model: "multi-branch" | "deploy"
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    by_class: tuple[str, ...] = ()  # of the head: rows of classes that both know are kept, those of others are new
    license: str | None = None  # of the weights, where it is known
    note: str = ""  # why the head starts anew; that a block was converted between its published versions

    def summary(self) -> str:
        """One line: "x.pth: 9 tensors loaded, 2 new (deploy form); head: re-initialized, 7 -> 5 classes"."""
        fresh = f", {len(self.reinitialized)} new" if self.reinitialized else ""
        partly = f", {len(self.by_class)} in part" if self.by_class else ""
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded{partly}{fresh} ({self.form} form)", self.note]
        return "; ".join(part for part in [*parts, f"license: {self.license}" if self.license else ""] if part)


@torch.no_grad()
def place_weights(model: Model, weights: Weights, classes: Sequence[str] | None = None) -> Report:
    """What `load_weights` does, for weights that have been read."""
    if classes is not None and len(classes) != model.classes:
        raise ModelError(f"{len(classes)} class names for a model of {model.classes} classes")
    ours = model.state_dict()
    of_head = head_of(model.name, weights, model.options)
    unused: list[str] = []  # the head of another task
    if of_head in (None, model.task):
        state = convert(model.name, weights.state, ours)
        _check_built_alike(model, weights)
    else:
        state, unused = backbone_of(of_head, model.name, weights.state, ours)
    missing = sorted(counted(ours) - state.keys())
    unexpected = sorted(counted(state) - ours.keys())
    wrong = sorted(key for key in ours.keys() & state.keys() if ours[key].shape != state[key].shape)
    fresh, note = _fresh_head(model, ours, state, missing, wrong)
    excused = {key for key in unexpected if fresh and key.startswith("head.")} | fresh.keys()
    if {*missing, *unexpected, *wrong} - excused:
        raise ModelError(_misfit(model, weights, state, missing, unexpected, wrong))
    if unused:
        note = (
            f"backbone: {len(counted(state))} tensors of a {of_head} checkpoint used; "
            f"its head ({len(unused)} tensors) not used; head: {len(counted(fresh))} tensors initialized anew"
        )
    by_class: State = {}
    before = None if unused else weights.facts.get("classes")
    if classes is not None and before and list(before) != list(classes):
        by_class, note = _rows_by_name(model, state, list(before), list(classes))
    fresh = {key: value for key, value in fresh.items() if key not in by_class}
    values = {key: value for key, value in {**state, **fresh, **by_class}.items() if key in ours}
    check_finite(values, weights.source)
    for key, value in values.items():
        ours[key].copy_(value)
    if _has_versions(model) and names_of_backbone(state) != names_of_backbone(
        in_our_names(split_name(model.name)[1], weights.state)
    ):
        note = "; ".join(filter(None, (note, "blocks converted between published versions, equal in eval mode only")))
    return Report(
        weights.source,
        form_of(model),
        tuple(key for key in ours if key in values and key not in fresh and key not in by_class),
        tuple(missing),
        (*unexpected, *unused),
        tuple(wrong),
        tuple(fresh),
        tuple(by_class),
        weights.license,
        note,
    )


def _has_versions(model: Model) -> bool:
    """Whether the blocks of the model's backbone were published in two versions."""
    return bool(family_of(model.name).VERSIONS)


def _fresh_head(model: Model, ours: State, state: State, missing: list[str], wrong: list[str]) -> tuple[State, str]:
    """Initial values of the head's tensors that the weights do not fit, and a note of why; or nothing."""
    growths = growing(model.name, form_of(model), model.output_stride, tuple(model.options.items())) if wrong else {}

    def of_other_classes(key: str) -> bool:
        """Whether all that is wrong with a tensor is its number of classes."""
        growth, shape = growths[key], list(state[key].shape)
        return growth.classes(shape) > 0 and _resized(shape, growth, model.classes) == list(ours[key].shape)

    resized = [key for key in wrong if key in growths and of_other_classes(key)]
    if resized:
        keys = [*resized, *(key for key in missing if key.startswith("head."))]
        before = growths[resized[0]].classes(state[resized[0]].shape)
        note = f"head: re-initialized, {before} -> {model.classes} classes"
    elif not any(key.startswith("head.") for key in state):
        keys = [key for key in ours if key.startswith("head.")]
        note = "head: re-initialized, the weights have none"
    else:
        return {}, ""
    values = _new_head(model)
    return {key: values[key] for key in keys}, note


def _new_head(model: Model) -> State:
    """Initial values of all of a model's head."""
    task = tasks.find(model.task)
    options = {key: value for key, value in model.options.items() if key in task.OPTIONS}
    head: nn.Module = task.head(model.backbone, model.classes, **options)
    if form_of(model) == "deploy":
        head = reparameterize(head.eval())
    return {f"head.{key}": value for key, value in head.state_dict().items()}


def _rows_by_name(model: Model, state: State, before: list[str], now: list[str]) -> tuple[State, str]:
    """The head's tensors that depend on classes, with the rows of each class where its name is now; and a note.

    `before` and `now` are the class names of the weights and of the model. Rows of classes that the weights do not know
    are initial values; rows of no class (background, boxes) are those of the weights.
    """
    labels_before, labels_now = ({name: label for label, name in enumerate(names)} for names in (before, now))
    kept = [name for name in now if name in labels_before]
    new = [name for name in now if name not in labels_before]
    of_kept = [labels_before[name] for name in kept], [labels_now[name] for name in kept]
    initial = _new_head(model)
    tensors: State = {}
    for key, growth in growing(model.name, form_of(model), model.output_stride, tuple(model.options.items())).items():
        if key not in state or growth.classes(state[key].shape) != len(before):
            continue
        inner = key.startswith(tasks.find(model.task).CLASS_MAJOR)
        rows_before, rows_now = growth.rows(len(before), inner), growth.rows(len(now), inner)
        tensor = initial[key].clone().movedim(growth.dim, 0)
        source = state[key].to(tensor).movedim(growth.dim, 0)
        shared_before = sorted(set(range(len(source))) - set(rows_before.flatten().tolist()))
        shared_now = sorted(set(range(len(tensor))) - set(rows_now.flatten().tolist()))
        tensor[shared_now] = source[shared_before]
        tensor[rows_now[of_kept[1]]] = source[rows_before[of_kept[0]]]
        tensors[key] = tensor.movedim(0, growth.dim)
    note = f"head: rows kept by name of {_few(kept)}" if kept else "head: no class name in common"
    if new:
        note += f"; new: {_few(new)}"
    unknown = [name for name in before if name not in labels_now]
    return tensors, note + (f"; not used: {_few(unknown)}" if unknown else "")


def _few(names: Sequence[str]) -> str:
    """The first five of some names, and how many there are."""
    listed = ", ".join(names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


def _resized(shape: Sequence[int], growth: Growth, classes: int) -> list[int]:
    """The shape that a tensor would have for another number of classes."""
    return [*shape[: growth.dim], growth.per_class * classes + growth.beside, *shape[growth.dim + 1 :]]


def _check_built_alike(model: Model, weights: Weights) -> None:
    """Refuse the authors' weights for a model that has their tensors, but computes something else with them."""
    implied, usual = implied_by(model.name, weights.state), defaults(model.name)
    differ = [f"options={{{k!r}: {v!r}}}" for k, v in implied["options"].items() if model.options.get(k, usual[k]) != v]
    if (stride := implied.get("output_stride", model.output_stride)) != model.output_stride:
        differ.insert(0, f"output_stride={stride}")
    if differ:
        raise ModelError(
            f"{weights.source} is for a {model.name} built with {', '.join(differ)}; this model has "
            f"output_stride={model.output_stride} and options={model.options}"
        )


def _misfit(
    model: Model, weights: Weights, state: State, missing: list[str], unexpected: list[str], wrong: list[str]
) -> str:
    """An error message: the numbers, the first few names, and what the weights look like."""
    ours = model.state_dict()
    fit = len(counted(ours)) - len(missing) - len(counted(wrong))
    parts = [
        f"{weights.source} does not fit {model.name} ({form_of(model)} form, {model.classes} classes): "
        f"{fit} of {len(counted(ours))} tensors fit ({fit / max(len(counted(ours)), 1):.0%})"
    ]
    sizes = [f"{key} {tuple(state[key].shape)} instead of {tuple(ours[key].shape)}" for key in wrong]
    for label, found in (("missing", missing), ("unexpected", unexpected), ("of wrong shape", sizes)):
        if found:
            parts.append(f"{len(found)} {label}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}")
    return "; ".join(parts) + ". " + _diagnosis(model, weights)


def _diagnosis(model: Model, weights: Weights) -> str:
    if weights.facts.get("model", model.name) != model.name:
        return f"This is a checkpoint of {weights.facts['model']}"
    name, form, share = looks_like(weights.state)
    if share < 0.3:
        return "These look like weights of none of our models"
    if name != split_name(model.name)[1]:
        return f"These look like {name} weights ({form} form, {share:.0%} of the backbone's tensors fit)"
    if form == "deploy" and form_of(model) == "multi-branch":
        return (
            "These weights are in deploy form, and what is collapsed cannot be unfolded into branches: take the "
            "multi-branch weights, or create_model(name, weights=...), which builds the deploy form"
        )
    if form == "multi-branch" and form_of(model) == "deploy":
        return "These weights are in multi-branch form: load them into a new model, then call reparameterize"
    made, has = plan(model.name, weights.state).options, model.options
    if made != has:
        default = "the default options"
        return f"These are {model.name} weights made with {made or default}; this model has {has or default}"
    size = " or for another size" if form == "deploy" else ""
    return f"These are {model.name} weights of the same form, but not whole, or changed{size}"
