"""A state into a model: every tensor has a place, every place a tensor, or an error says why not.

Only the head may differ. What depends on the number of classes starts anew where that is another;
all of the head does where the weights have none or that of another task, such as a classifier's for
a detector. The report says so.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import backbones, tasks
from ..backbones import Implied, State, family
from ..backbones.timm import PLUG_INS
from ..errors import ModelError
from ..reparam import Form, form_of
from ..tasks import Model, defaults, split_name
from .adapt import adapted, other_channels
from .identify import Growth, Identity, counted, growing, identify, looks_like, new_head, plan
from .read import Weights, check_finite

OTHER_VERSION = "blocks converted between published versions, equal in eval mode only"


@dataclass(frozen=True)
class Report:
    """What `load_weights` did, by the names of tensors.

    `missing`, `unexpected` and `wrong_shape` are empty, or belong to a head that starts anew.
    """

    source: str
    form: Form  # of the weights and of the model
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()  # of the first convolution: from RGB to the model's channels
    by_class: tuple[str, ...] = ()  # of the head: rows of classes both know are kept, others new
    license: str | None = None  # of the weights, where it is known
    note: str = ""  # why the head starts anew; that a block was converted between versions

    def summary(self) -> str:
        """One line.

        "x.pth: 9 tensors loaded, 2 new (deploy form); head: re-initialized, 7 -> 5 classes"
        """
        counts = f"{self.source}: {len(self.loaded)} tensors loaded"
        if self.by_class:
            counts += f", {len(self.by_class)} in part"
        if self.adapted:
            counts += f", {len(self.adapted)} adapted"
        if self.reinitialized:
            counts += f", {len(self.reinitialized)} new"
        parts = [f"{counts} ({self.form} form)"]
        if self.note:
            parts.append(self.note)
        if self.license:
            parts.append(f"license: {self.license}")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Fit:
    """How a state, in our names, differs from a model's tensors; by name, sorted."""

    state: State
    ours: State
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]


@dataclass(frozen=True)
class _Renewed:
    """Tensors of the head whose values are not, or not all, those of the weights."""

    values: State = field(default_factory=dict)
    note: str = ""  # why


@torch.no_grad()
def place_weights(model: Model, weights: Weights, classes: Sequence[str] | None = None) -> Report:
    """What `load_weights` does, for weights that have been read."""
    if classes is not None and len(classes) != model.classes:
        raise ModelError(f"{len(classes)} class names for a model of {model.classes} classes")
    identity = identify(model.name, weights)
    _check_built_alike(model, weights.source, identity.implied)
    ours = model.state_dict()
    versioned = _in_version_of(model, identity.state, ours)
    expected = weights.preprocess or identity.implied.preprocess
    of_channels = adapted(versioned, ours, model.channels, expected)
    state = {**versioned, **of_channels.values}
    fit = _compare(ours, state)
    anew = _anew(model, fit)
    _check_fits(model, weights, fit, anew)
    by_class = _by_class(model, weights, identity, state, classes)
    values = {**state, **anew.values, **by_class.values}
    values = {key: value for key, value in values.items() if key in ours}
    check_finite(values, weights.source)
    for key, value in values.items():
        ours[key].copy_(value)
    note = by_class.note or _of_another_task(identity, state, anew) or anew.note
    other_version = "" if versioned is identity.state else OTHER_VERSION
    renewed = anew.values.keys() | by_class.values.keys()
    changed = renewed | of_channels.values.keys()
    return Report(
        source=weights.source,
        form=form_of(model),
        loaded=tuple(key for key in ours if key in values and key not in changed),
        missing=tuple(fit.missing),
        unexpected=(*fit.unexpected, *identity.unused),
        wrong_shape=tuple(fit.wrong_shape),
        reinitialized=tuple(key for key in anew.values if key not in by_class.values),
        adapted=tuple(of_channels.values),
        by_class=tuple(by_class.values),
        license=weights.license,
        note="; ".join(filter(None, (of_channels.note, note, other_version))),
    )


def _in_version_of(model: Model, state: State, ours: State) -> State:
    """The state itself, or with the model's version of blocks that were published in several."""
    states = [state]
    for change in backbones.find(family(split_name(model.name)[1])).VERSIONS:
        with suppress(KeyError):  # of a damaged block: what is missing is said below
            states.append(change(state))
    return max(states, key=lambda changed: len(changed.keys() & ours.keys()))  # the first of equals


def _compare(ours: State, state: State) -> _Fit:
    both = sorted(ours.keys() & state.keys())
    return _Fit(
        state,
        ours,
        missing=sorted(counted(ours) - state.keys()),
        unexpected=sorted(counted(state) - ours.keys()),
        wrong_shape=[key for key in both if ours[key].shape != state[key].shape],
    )


# ---- heads that start anew


def _anew(model: Model, fit: _Fit) -> _Renewed:
    """Initial values of the head's tensors that the weights do not fit, and why; or nothing."""
    growths = growing(model, form_of(model)) if fit.wrong_shape else {}
    candidates = [key for key in fit.wrong_shape if key in growths]
    resized = [
        key for key in candidates if _differs_by_classes(fit, key, growths[key], model.classes)
    ]
    if resized:
        keys = [*resized, *(key for key in fit.missing if key.startswith("head."))]
        before = growths[resized[0]].classes(fit.state[resized[0]].shape)
        note = f"head: re-initialized, {before} -> {model.classes} classes"
    elif not any(key.startswith("head.") for key in fit.state):
        keys = [key for key in fit.ours if key.startswith("head.")]
        note = "head: re-initialized, the weights have none"
    else:
        return _Renewed()
    values = _initial_head(model)
    return _Renewed({key: values[key] for key in keys}, note)


def _differs_by_classes(fit: _Fit, key: str, growth: Growth, classes: int) -> bool:
    """Whether all that is wrong with a tensor of the head is its number of classes."""
    shape = list(fit.state[key].shape)
    if not growth.classes(shape):
        return False
    shape[growth.dim] = growth.size(classes)
    return shape == list(fit.ours[key].shape)


def _initial_head(model: Model) -> State:
    """Initial values of all of a model's head."""
    head = new_head(model, form_of(model), model.classes)
    return {f"head.{key}": value for key, value in head.state_dict().items()}


def _of_another_task(identity: Identity, state: State, anew: _Renewed) -> str:
    """A note that only the backbone of some weights is used; "" where their head is too."""
    if not identity.unused:
        return ""
    used, initialized = len(counted(state)), len(counted(anew.values))
    return (
        f"backbone: {used} tensors of a {identity.other_task} checkpoint used; "
        f"its head ({len(identity.unused)} tensors) not used; "
        f"head: {initialized} tensors initialized anew"
    )


# ---- classes by name


def _by_class(
    model: Model,
    weights: Weights,
    identity: Identity,
    state: State,
    classes: Sequence[str] | None,
) -> _Renewed:
    """The head's tensors by class, where the classes of model and weights have other names."""
    if classes is None or weights.facts is None or identity.unused:
        return _Renewed()
    before = weights.facts.classes
    return (
        _Renewed()
        if before == list(classes)
        else _rows_by_name(model, state, before, list(classes))
    )


def _rows_by_name(model: Model, state: State, before: list[str], now: list[str]) -> _Renewed:
    """The head's tensors that depend on classes, with the rows of each class where its name is now.

    `before` and `now` are the class names of the weights and of the model. Rows of classes that the
    weights do not know are initial values; rows of no class (background, boxes) are those of the
    weights.
    """
    class_major = tasks.find(model.task).CLASS_MAJOR
    initial = _initial_head(model)
    places_before = {name: place for place, name in reversed(list(enumerate(before)))}
    kept = [(places_before[name], place) for place, name in enumerate(now) if name in places_before]
    tensors: State = {}
    for key, growth in growing(model, form_of(model)).items():
        if key in state and growth.classes(state[key].shape) == len(before):
            rows_before = growth.rows(len(before), key.startswith(class_major))
            rows_now = growth.rows(len(now), key.startswith(class_major))
            kept_before = rows_before[[place for place, _ in kept]]
            kept_now = rows_now[[place for _, place in kept]]
            tensor = initial[key].clone().movedim(growth.dim, 0)
            source = state[key].to(tensor).movedim(growth.dim, 0)
            tensor[_others(len(tensor), rows_now)] = source[_others(len(source), rows_before)]
            tensor[kept_now] = source[kept_before]
            tensors[key] = tensor.movedim(0, growth.dim)
    return _Renewed(tensors, _rows_note(before, now))


def _others(count: int, rows: Tensor) -> list[int]:
    """The rows, of so many, that are of no class."""
    return sorted(set(range(count)) - set(rows.flatten().tolist()))


def _rows_note(before: list[str], now: list[str]) -> str:
    """Which classes keep their rows, which are new, and which of the weights' are not used."""
    names_before, names_now = set(before), set(now)
    kept = [name for name in now if name in names_before]
    new = [name for name in now if name not in names_before]
    unknown = [name for name in before if name not in names_now]
    parts = ["head: no class name in common"]
    if kept:
        parts = [f"head: rows kept by name of {_few(kept)}"]
    if new:
        parts.append(f"new: {_few(new)}")
    if unknown:
        parts.append(f"not used: {_few(unknown)}")
    return "; ".join(parts)


def _few(names: Sequence[str]) -> str:
    """The first five of some names, and how many there are."""
    listed = ", ".join(names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


# ---- weights that do not fit


def _check_built_alike(model: Model, source: str, implied: Implied) -> None:
    """Refuse weights for a model that has their tensors, but computes something else with them."""
    usual = defaults(model.name)
    differing = []
    if implied.output_stride not in (None, model.output_stride):
        differing.append(f"output_stride={implied.output_stride}")
    for option, value in implied.options.items():
        if model.options.get(option, usual[option]) != value:
            differing.append(f"options={{{option!r}: {value!r}}}")
    if differing:
        raise ModelError(
            f"{source} is for a {model.name} built with {', '.join(differing)}; this model has "
            f"output_stride={model.output_stride} and options={model.options}"
        )


def _check_fits(model: Model, weights: Weights, fit: _Fit, anew: _Renewed) -> None:
    """`ModelError` where anything but a head that starts anew differs."""
    differing = {*fit.missing, *fit.unexpected, *fit.wrong_shape} - anew.values.keys()
    if anew.values:
        differing -= {key for key in fit.unexpected if key.startswith("head.")}
    if differing:
        why = other_channels(fit.state, fit.ours, model.channels) or _diagnosis(model, weights)
        raise ModelError(f"{_misfit(model, weights.source, fit)}. {why}")


def _misfit(model: Model, source: str, fit: _Fit) -> str:
    """How many tensors do not fit, and the first few names."""
    count = len(counted(fit.ours))
    fitting = count - len(fit.missing) - len(counted(fit.wrong_shape))
    parts = [
        f"{source} does not fit {model.name} ({form_of(model)} form, {model.classes} classes): "
        f"{fitting} of {count} tensors fit ({fitting / max(count, 1):.0%})"
    ]
    shapes = []
    for key in fit.wrong_shape:
        theirs, ours = tuple(fit.state[key].shape), tuple(fit.ours[key].shape)
        shapes.append(f"{key} {theirs} instead of {ours}")
    lists = {"missing": fit.missing, "unexpected": fit.unexpected, "of wrong shape": shapes}
    for what, tensors in lists.items():
        if tensors:
            more = ", ..." if len(tensors) > 3 else ""
            parts.append(f"{len(tensors)} {what}: {', '.join(tensors[:3])}{more}")
    return "; ".join(parts)


def _diagnosis(model: Model, weights: Weights) -> str:
    """What weights that do not fit look like, and what to do."""
    plug_ins = {option: value for option, value in model.options.items() if option in PLUG_INS}
    if any(plug_ins.values()):
        return (
            "Weights of the network without what its options put into it go in before: "
            f"create_model({model.name!r}, weights=..., options={plug_ins})"
        )
    if weights.facts is not None and weights.facts.model != model.name:
        return f"This is a checkpoint of {weights.facts.model}"
    variant, form, share = looks_like(weights.state)
    if share < 0.3:
        return "These look like weights of none of our models"
    if variant != split_name(model.name)[1]:
        fitting = f"{form} form, {share:.0%} of the backbone's tensors fit"
        return f"These look like {variant} weights ({fitting})"
    if form == "deploy" and form_of(model) == "multi-branch":
        return (
            "These weights are in deploy form, and what is collapsed cannot be unfolded into "
            "branches: take the multi-branch weights, or create_model(name, weights=...), which "
            "builds the deploy form"
        )
    if form == "multi-branch" and form_of(model) == "deploy":
        return "These weights are in multi-branch form: load them into a new model, then call reparameterize"
    made, has = plan(model.name, weights.state).options, model.options
    if made != has:
        usual = "the default options"
        made_with = f"These are {model.name} weights made with {made or usual}"
        return f"{made_with}; this model has {has or usual}"
    size = " or for another size" if form == "deploy" else ""
    return f"These are {model.name} weights of the same form, but not whole, or changed{size}"
