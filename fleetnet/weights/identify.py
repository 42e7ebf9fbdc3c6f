"""Which model a state is of: its form, options, number of classes and head; and its tensors in our names."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import backbones, tasks
from ..backbones import Family, Option, family
from ..backbones.timm import convert_for, expected_of_image
from ..errors import FleetnetError
from ..find import names
from ..reparam import FORMS, reparameterize
from ..tasks import Model, build, defaults, split_name
from .read import State, Weights, preprocess_of

Shapes = Mapping[str, tuple[int, ...]]
Options = tuple[tuple[str, Option], ...]

CLASSES = 100  # of the models that are built for their shapes alone


def convert(name: str, state: State, expected: Mapping[str, Any]) -> State:
    """A state dict in any names that the files of backbone and task know -> our names; names unknown to them stay.

    Where a block was published in two versions (RepViT), the state becomes the one that `expected` has: equal in eval
    mode, though not in training.
    """
    renamed = in_our_names(name, state)
    states = [_attempt(change, renamed) for change in family_of(name).VERSIONS]
    return max([renamed, *states], key=lambda converted: len(converted.keys() & expected.keys()))  # the first of equals


def in_our_names(name: str, state: State) -> State:
    task, backbone_name = split_name(name)
    if family(backbone_name) == "timm":  # there the names depend on the network
        state = _attempt(convert_for(backbone_name.removeprefix("timm/"), task), state)
    state = _attempt(family_of(name).convert, state)
    return _attempt(tasks.find(task).convert, state)


def family_of(name: str) -> Family:
    """The file of a model's backbone."""
    return backbones.find(family(split_name(name)[1]))


def _attempt(change: Callable[[State], State], state: State) -> State:
    try:
        return change(state)
    except (KeyError, IndexError):  # another network's names that resemble this one's: `place` will report them
        return state


@cache
def shapes_of(
    name: str, form: str, output_stride: int | None = None, options: Options = (), classes: int = CLASSES
) -> Shapes:
    """Names and shapes of a model's tensors in a form, without memory for them; of ParC at 256x256."""
    with torch.device("meta"):
        model = build(name, classes, 0.0, output_stride, dict(options))
        if form == "deploy":
            model = deployed(model, (256, 256))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def deployed(model: Model, size: tuple[int, int]) -> Model:
    """A new model, in deploy form, in place. Its head does not see the example: with random weights it might fail."""
    model.eval()
    model.backbone = cast(Any, reparameterize(cast(nn.Module, model.backbone), torch.zeros(1, 3, *size)))
    model.head = reparameterize(model.head)
    return model


class Growth(NamedTuple):
    """How a tensor depends on the number of classes: its size in `dim` is per_class * classes + beside."""

    dim: int
    per_class: int
    beside: int

    def classes(self, shape: Sequence[int]) -> int:
        """The number of classes that such a tensor of a shape is for; 0 where it is for none."""
        count, rest = divmod((shape[self.dim] if self.dim < len(shape) else 0) - self.beside, self.per_class)
        return count if rest == 0 and count > 0 else 0

    def rows(self, classes: int, class_major: bool = False) -> Tensor:
        """Which rows of `dim` are each class's: (classes, per_class) indices, for a number of classes.

        Rows go by anchor, and by class within an anchor, after what is no class; or by class first (`class_major`).
        """
        offset = self.beside // self.per_class  # rows of no class, before the classes, for each of `per_class`
        index = torch.arange(self.per_class * (offset + classes))
        if class_major:
            return index.view(offset + classes, self.per_class)[offset:]
        return index.view(self.per_class, offset + classes)[:, offset:].T


@cache
def growing(name: str, form: str, output_stride: int | None = None, options: Options = ()) -> Mapping[str, Growth]:
    """The tensors of a model that depend on the number of classes."""
    shapes, larger = (shapes_of(name, form, output_stride, options, n) for n in (CLASSES, CLASSES + 1))
    found = {}
    for key, shape in shapes.items():
        for dim, (size, other) in enumerate(zip(shape, larger[key], strict=True)):
            if size != other:
                found[key] = Growth(dim, other - size, size - CLASSES * (other - size))
    return found


def counted(keys: Iterable[str]) -> set[str]:
    """Without the batch counters of batch norms, which not every writer keeps."""
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def names_of_backbone(keys: Iterable[str]) -> set[str]:
    return {key for key in counted(keys) if key.startswith("backbone.")}


def _common(state: State, expected: Shapes) -> float:
    """How much a state and a model have in common, 0 to 1: names in both of all names in either."""
    ours, theirs = counted(expected), counted(state)
    if not any(key.startswith("head.") for key in theirs):  # features only: says nothing about the head
        ours = {key for key in ours if not key.startswith("head.")}
    return len(ours & theirs) / max(len(ours | theirs), 1)


@dataclass(frozen=True)
class Plan:
    """The model that a state was made with, as far as the names and shapes of its tensors tell."""

    form: str
    options: dict[str, Option]
    classes: int | None  # None where the state has no classifier


def plan(
    name: str, state: State, output_stride: int | None = None, options: Mapping[str, Option] | None = None
) -> Plan:
    """Form, options and number of classes of a state for the model `name`; `options` are those that are settled."""

    def score(form: str, options: Mapping[str, Option]) -> float:
        expected = shapes_of(name, form, output_stride, tuple(options.items()))
        return _common(convert(name, state, expected), expected)

    chosen = dict(options or {})
    form, best = FORMS[0], score(FORMS[0], chosen)
    if best < 1 and (other := score(FORMS[1], chosen)) > best:
        form, best = FORMS[1], other
    for option, values in _alternatives(name, chosen).items():
        for value in values:
            if best < 1 and (other := score(form, {**chosen, option: value})) > best:
                best, chosen = other, {**chosen, option: value}
    settled = output_stride, tuple(chosen.items())
    state = convert(name, state, shapes_of(name, form, *settled))
    tensors = [(growth, state[key]) for key, growth in growing(name, form, *settled).items() if key in state]
    counts = [count for growth, tensor in tensors if (count := growth.classes(tensor.shape))]
    return Plan(form, chosen, counts[0] if counts else None)


def _alternatives(name: str, settled: Mapping[str, Option]) -> dict[str, list[Option]]:
    """Other values to try of the options that are not settled: of switches the other, of counts the small ones."""
    tried: dict[str, list[Option]] = {}
    for key, default in defaults(name).items():
        if key not in settled and isinstance(default, int) and default < 9:  # bool is an int
            tried[key] = [not default] if isinstance(default, bool) else [n for n in range(1, 9) if n != default]
    return tried


def on(task: str, name: str) -> str:
    """The name of a model of another task on the backbone of `name`."""
    return split_name(name)[1] if task == "classification" else f"{task}/{split_name(name)[1]}"


def head_of(name: str, weights: Weights, options: Mapping[str, Option] | None = None) -> str | None:
    """The task whose head the weights have, on the backbone of the model `name`; None where names do not tell."""
    if "task" in weights.facts:
        return weights.facts["task"] if weights.facts["task"] in names("tasks") else None
    own = split_name(name)[0]
    best, found = 0.0, None
    for task in sorted(names("tasks"), key=lambda task: task != own):
        for form in FORMS:
            try:
                expected = shapes_of(on(task, name), form, None, tuple((options or {}).items()) if task == own else ())
            except FleetnetError:  # this backbone cannot have that head
                continue
            converted = convert(on(task, name), weights.state, expected)
            ours, theirs = ({key for key in counted(s) if key.startswith("head.")} for s in (expected, converted))
            if not theirs and all(key.startswith("backbone.") for key in converted):
                return None
            if (share := len(ours & theirs) / max(len(ours | theirs), 1)) > best:
                best, found = share, task
        if best > 0.5:
            break
    return found


def implied_by(name: str, state: State) -> dict[str, Any]:
    """The output stride and options that the authors' weights go with, as far as the model `name` has such options."""
    task_name, backbone_name = split_name(name)
    implied = tasks.find(task_name).implied(state)
    implied["options"] = {**options_of_backbone(name, state), **implied.get("options", {})}
    if family(backbone_name) == "timm" and "preprocess" not in implied:
        published = expected_of_image(backbone_name.removeprefix("timm/"), state)
        implied["preprocess"] = None if published is None else preprocess_of(published)
    return {**implied, "options": {k: v for k, v in implied.get("options", {}).items() if k in defaults(name)}}


def options_of_backbone(name: str, state: State) -> dict[str, Option]:
    """The options of the backbone that a state was made with, as far as the names of its tensors tell."""
    return family_of(name).options_of(state)


def backbone_of(task: str, name: str, state: State, expected: Mapping[str, Any]) -> tuple[State, list[str]]:
    """The tensors of a state of another task in our names without its head's, and the names of those."""
    converted = convert(on(task, name), state, expected)
    if family(split_name(name)[1]) == "timm":  # its classifiers and its feature maps have other names
        converted = in_our_names(name, converted)
    of_head = sorted(key for key in counted(converted) if key.startswith("head."))
    return {key: value for key, value in converted.items() if not key.startswith("head.")}, of_head


def looks_like(state: State) -> tuple[str, str, float]:
    """The variant whose backbone a state has most in common with, the form, and the share of tensors that fits."""

    def alike(ours: set[str], theirs: set[str]) -> float:
        return len(ours & theirs) / max(len(ours | theirs), 1)

    def pattern(keys: Iterable[str]) -> set[str]:
        return {re.sub(r"\d+", "#", key) for key in names_of_backbone(keys)}

    candidates = []  # of each family its first variant, in both forms: compare names without their numbers
    for file in names("backbones"):
        table = backbones.find(file).VARIANTS
        for name, form in ((name, form) for name in list(table)[:1] for form in FORMS):
            expected = shapes_of(name, form)
            candidates.append((alike(pattern(expected), pattern(convert(name, state, expected))), form, list(table)))
    _, form, of_family = max(candidates, key=lambda candidate: candidate[0])
    best, share = "", -1.0
    for name in of_family:
        expected = shapes_of(name, form)
        converted = convert(name, state, expected)
        ours, theirs = names_of_backbone(expected), names_of_backbone(converted)
        same = sum(1 for key in ours & theirs if tuple(converted[key].shape) == expected[key])
        if (now := same / max(len(ours | theirs), 1)) > share:
            best, share = name, now
    return best, form, share
