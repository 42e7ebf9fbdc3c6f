"""Which model a state is of and how that was built; its tensors in our names.

Every family and every head recognizes its own states, by names and shapes alone (`recognize` in
its file). A model is built only where these do not tell, as of a network of timm's, and then
without memory for its values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import backbones, tasks
from ..backbones import Backbone, Family, Implied, Option, Recognized, State, family
from ..backbones.timm import convert_for, expected_of_image, published
from ..find import names
from ..preprocess import Preprocess
from ..reparam import FORMS, Form, reparameterize
from ..tasks import Model, build, defaults, split_name
from .read import Weights

Shapes = Mapping[str, tuple[int, ...]]
Options = Mapping[str, Option]
CLASSES = 100  # of the models and heads that are built for their shapes alone


@dataclass(frozen=True)
class Identity:
    """What weights are, for a model that they are to go into."""

    state: State  # in our names where the model's files know theirs; without another task's head
    other_task: str | None  # whose head the weights have, where that is not the model's
    unused: tuple[str, ...]  # the tensors of that head
    implied: Implied  # nothing where the head is another task's


@dataclass(frozen=True)
class Plan:
    """How to build the model that a state was made with, as far as anything tells."""

    form: Form
    options: dict[str, Option]
    classes: int | None  # None where the state has no classifier
    output_stride: int | None = None  # None: the task's own
    preprocess: Preprocess | None = None  # what the authors' weights expect of an image


class Likeness(NamedTuple):
    """Which of our variants a state is most like."""

    variant: str  # "" where no family recognizes the state
    form: Form
    share: float  # of the backbone's tensors, ours and the state's: those that fit


# ---- names


def _family_of(name: str) -> Family:
    """The file of a model's backbone."""
    return backbones.find(family(split_name(name)[1]))


def _with_our_backbone(name: str, state: State) -> State:
    """A state in which the tensors of the backbone, and of its own classifier, have our names."""
    task, backbone_name = split_name(name)
    if family(backbone_name) == "timm":  # its names depend on the network and on the task
        state = convert_for(backbone_name.removeprefix("timm/"), task in tasks.CLASSIFIERS)(state)
    return _family_of(name).convert(state)


def counted(keys: Iterable[str]) -> set[str]:
    """Without the batch counters of batch norms, which not every writer keeps."""
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def _of_backbone(keys: Iterable[str]) -> set[str]:
    return {key for key in counted(keys) if key.startswith("backbone.")}


# ---- recognizing


def identify(name: str, weights: Weights) -> Identity:
    """What weights are for the model `name`."""
    own, _ = split_name(name)
    state = _with_our_backbone(name, weights.state)
    task = _task_of(own, weights, state)
    if task is None or task == own:
        implied = _implied(name, weights.state, _recognized(name, state))
        return Identity(tasks.find(own).convert(state), None, (), implied)
    state = tasks.find(task).convert(state)
    unused = sorted(key for key in counted(state) if key.startswith("head."))
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    return Identity(state, task, tuple(unused), Implied())


def _task_of(own: str, weights: Weights, state: State) -> str | None:
    """The task whose head the weights have, the model's `own` first; None where nothing tells.

    Two tasks may have the same head, as those that classify: what one has learned serves the other.
    """
    if tasks.find(own).recognize(state) is not None:
        return own
    if weights.facts is not None:
        return weights.facts.task
    others = (task for task in names("tasks") if task != own)
    return next((task for task in others if tasks.find(task).recognize(state) is not None), None)


def _recognized(name: str, state: State) -> Recognized:
    """What a state, with our names of the backbone, tells of the model `name`."""
    of_backbone = _family_of(name).recognize(state) or Recognized()
    of_head = tasks.find(split_name(name)[0]).recognize(state)
    if of_head is None:
        return replace(of_backbone, classes=None)
    implied = {**of_backbone.implied.options, **of_head.implied.options}
    return Recognized(
        variant=of_backbone.variant,
        form=of_backbone.form or of_head.form,
        classes=of_backbone.classes if of_head.classes is None else of_head.classes,
        options={**of_backbone.options, **of_head.options},
        implied=replace(of_head.implied, options=implied),
    )


def _implied(name: str, state: State, recognized: Recognized) -> Implied:
    """How the model `name` has to be built for a state, in the names that were read."""
    backbone_name = split_name(name)[1]
    preprocess = recognized.implied.preprocess
    if preprocess is None and family(backbone_name) == "timm":
        published = expected_of_image(backbone_name.removeprefix("timm/"), state)
        preprocess = None if published is None else published.preprocess
    usual, implied = defaults(name), recognized.implied.options
    options = {option: value for option, value in implied.items() if option in usual}
    return Implied(recognized.implied.output_stride, options, preprocess)


def options_of_checkpoint(name: str, state: State) -> Options:
    """The options that checkpoints of version 0.1 did not say, by their tensors."""
    recognized = _family_of(name).recognize(state)
    return {} if recognized is None else recognized.implied.options


def looks_like(state: State) -> Likeness:
    """The variant of one of our families that a state in any names is of."""
    for file in names("backbones"):
        converted = backbones.find(file).convert(state)
        recognized = backbones.find(file).recognize(converted)
        if recognized is not None and recognized.variant:
            form = recognized.form or FORMS[0]
            expected = shapes_of(recognized.variant, form)
            ours, theirs = _of_backbone(expected), _of_backbone(converted)
            fitting = [key for key in ours & theirs if tuple(converted[key].shape) == expected[key]]
            return Likeness(recognized.variant, form, len(fitting) / max(len(ours | theirs), 1))
    return Likeness("", FORMS[0], 0.0)


# ---- plans


def plan(
    name: str,
    state: State,
    output_stride: int | None = None,
    options: Options | None = None,
) -> Plan:
    """How the model `name` is built for a state in any names; what is given is settled."""
    settled, usual = dict(options or {}), defaults(name)
    state = _with_our_backbone(name, state)
    recognized = _recognized(name, state)
    shown = {
        option: value
        for option, value in recognized.options.items()
        if option in usual and option not in settled and value != usual[option]
    }
    form = recognized.form or FORMS[0]
    made = Plan(form, {**settled, **shown}, recognized.classes, output_stride)
    if recognized.form is None:
        return _compared(name, tasks.find(split_name(name)[0]).convert(state), made)
    return made


def plan_for(
    name: str,
    weights: Weights,
    output_stride: int | None = None,
    options: Options | None = None,
) -> Plan:
    """How the model `name` is built for weights of any task; what is given is settled."""
    identity, settled = identify(name, weights), dict(options or {})
    if identity.other_task is not None:
        settled = {**_shared_options(name, weights), **settled}
        return plan(name, identity.state, output_stride, settled)
    settled = {**identity.implied.options, **settled}
    stride = identity.implied.output_stride
    if weights.facts is not None and weights.facts.model == name:
        settled = {**weights.facts.options, **settled}
        stride = weights.facts.output_stride if stride is None else stride
    stride = stride if output_stride is None else output_stride
    made = plan(name, weights.state, stride, settled)
    return replace(made, preprocess=identity.implied.preprocess)


def _shared_options(name: str, weights: Weights) -> dict[str, Option]:
    """The options of the backbone in our checkpoint, if the model `name` has that backbone."""
    backbone_name = split_name(name)[1]
    if weights.facts is None or split_name(weights.facts.model)[1] != backbone_name:
        return {}
    shared = defaults(backbone_name).keys() & defaults(name).keys()
    return {option: value for option, value in weights.facts.options.items() if option in shared}


def _compared(name: str, state: State, made: Plan) -> Plan:
    """A plan for a state, in our names, of unknown form: that whose names are more alike."""
    model = _without_values(name, FORMS[0], made.output_stride, made.options)
    share = _names_in_common(state, model)
    if share < 1:
        deploy = _without_values(name, FORMS[1], made.output_stride, made.options)
        if _names_in_common(state, deploy) > share:
            made, model = replace(made, form=FORMS[1]), deploy
    if made.classes is not None:
        return made
    for key, growth in growing(model, made.form).items():
        if key in state and (classes := growth.classes(state[key].shape)):
            return replace(made, classes=classes)
    return made


def _names_in_common(state: State, model: Model) -> float:
    """How much a state and a model have in common, 0 to 1: names in both of all names in either."""
    ours, theirs = counted(model.state_dict()), counted(state)
    if not any(key.startswith("head.") for key in theirs):  # features alone say nothing of a head
        ours = {key for key in ours if not key.startswith("head.")}
    return len(ours & theirs) / max(len(ours | theirs), 1)


def has_backbone(name: str, state: State, options: Options) -> bool:
    """Whether a state in any names has the tensors of the backbone of the model `name`, made with `options`."""
    model = _without_values(name, FORMS[0], None, options)
    return _of_backbone(model.state_dict()) == _of_backbone(_with_our_backbone(name, state))


# ---- models without values, heads with initial ones


def shapes_of(
    name: str,
    form: Form,
    output_stride: int | None = None,
    options: Options | None = None,
    classes: int = CLASSES,
) -> Shapes:
    """Names and shapes of a model's tensors in a form; of ParC at 256x256, or timm's size for a network."""
    return _shapes(_without_values(name, form, output_stride, options, classes))


def _without_values(
    name: str,
    form: Form,
    output_stride: int | None,
    options: Options | None,
    classes: int = CLASSES,
) -> Model:
    with torch.device("meta"):
        model = build(name, classes, 0.0, output_stride, options)
        return deployed(model, _example_size(name)) if form == "deploy" else model


def _example_size(name: str) -> tuple[int, int]:
    """A size of image that a model runs at: some of timm's networks run at one only."""
    backbone_name = split_name(name)[1]
    if family(backbone_name) != "timm":
        return 256, 256
    return published(backbone_name.removeprefix("timm/")).preprocess.size


def _shapes(module: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def deployed(model: Model, size: tuple[int, int]) -> Model:
    """A new model, in deploy form, in place.

    Its head does not see the example: with random weights it might fail.
    """
    example = torch.zeros(1, model.channels, *size)
    model.eval()
    model.backbone = cast(Backbone, reparameterize(cast(nn.Module, model.backbone), example))
    model.head = reparameterize(model.head)
    return model


def new_head(model: Model, form: Form, classes: int) -> nn.Module:
    """A head with initial values for the model's backbone, in a form."""
    task = tasks.find(model.task)
    options = {option: value for option, value in model.options.items() if option in task.OPTIONS}
    head: nn.Module = task.head(model.backbone, classes, **options)
    return reparameterize(head.eval()) if form == "deploy" else head


# ---- what depends on the number of classes


class Growth(NamedTuple):
    """How a tensor depends on the number of classes.

    Its size in `dim` is per_class * classes + beside.
    """

    dim: int
    per_class: int
    beside: int

    def size(self, classes: int) -> int:
        return self.per_class * classes + self.beside

    def classes(self, shape: Sequence[int]) -> int:
        """The number of classes that such a tensor of a shape is for; 0 where it is for none."""
        size = shape[self.dim] if self.dim < len(shape) else 0
        count, rest = divmod(size - self.beside, self.per_class)
        return count if rest == 0 and count > 0 else 0

    def rows(self, classes: int, class_major: bool = False) -> Tensor:
        """Which rows of `dim` are each class's: (classes, per_class) indices.

        Rows go by anchor, and by class within an anchor, after what is no class; or by class first
        (`class_major`).
        """
        offset = self.beside // self.per_class  # rows of no class, for each of `per_class`
        index = torch.arange(self.per_class * (offset + classes))
        if class_major:
            return index.view(offset + classes, self.per_class)[offset:]
        return index.view(self.per_class, offset + classes)[:, offset:].T


def growing(model: Model, form: Form) -> dict[str, Growth]:
    """The tensors that depend on the number of classes: those that differ between two heads."""
    with torch.device("meta"):
        smaller = _shapes(new_head(model, form, CLASSES))
        larger = _shapes(new_head(model, form, CLASSES + 1))
    growths = {}
    for key, shape in smaller.items():
        for dim, (size, other) in enumerate(zip(shape, larger[key], strict=True)):
            if size != other:
                per_class = other - size
                growths[f"head.{key}"] = Growth(dim, per_class, size - CLASSES * per_class)
    return growths
