"""Tasks: what is made of the features, how it is trained, what it means. One file is one task.

A task keeps no state; `Task` says what its file holds. `create_model` puts a backbone and a head
together; the name says both: "fasternet_t0" is a classifier, "ssd/fasternet_t0" a detector.
"""

import inspect
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

from torch import Tensor, nn

from ..backbones import Backbone, Option, Recognized, State, backbone, family, variants
from ..backbones import check_name as check_backbone
from ..backbones import find as find_family
from ..boxes import Limits
from ..channels import RGB
from ..errors import ModelError, UsageError, suggest
from ..facts import Facts
from ..find import find as find_module
from ..find import names
from ..predictions import OfInput, Prediction
from ..preprocess import Mode, Preprocess
from ..synonyms import head, plain

# Of a network, by name, batch first; exported files have them under the same names.
Outputs = Mapping[str, Tensor]
# Of an evaluation: the decisive figure, others by name, and what is known of each class.
Result = dict[str, Any]
# (height, width) of a picture, and its boxes (n, 4) in pixels of the network's input.
Annotated = tuple[tuple[int, int], Tensor]

# tasks whose head is the backbone's own classifier
CLASSIFIERS = "classification", "multilabel"

# endings of files, not of names
WEIGHTS = ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".onnx", ".pt2"


class Metric(Protocol):
    """Counts predictions against the truth, both in the pixels of their pictures.

    The predictions are of the task's type; see `predictions.all_of`.
    """

    def add(self, predictions: Sequence[Prediction], targets: Mapping[str, Any]) -> None:
        """Count the predictions of some pictures; `targets` has a value a picture by each name."""

    def join(self, other: Self) -> None:
        """Count what another process has counted, of the pictures that come after the own ones."""

    def result(self) -> Result:
        """The figures by name, of which the first decides; "notes" are sentences about them."""


class Task(Protocol):
    """What the file of a task holds, all of it at its top level.

    What a task does not have is None where the contract allows that; a function that it has no use
    for comes from `_defaults`.
    """

    TARGET: str  # the annotation it learns from, of `data.TARGETS`
    MODE: Mode  # how a picture becomes the input, see `preprocess.Preprocess`
    AUGMENT: str  # the augmentation it is trained with, unless another is asked for; see `inputs.augment`
    OUTPUT_STRIDE: int  # of the backbone, unless another is asked for
    SIZE: tuple[int, int]  # height and width in pixels that it is usually trained at
    CLASSES: int  # how many it usually has
    OPTIONS: tuple[str, ...]  # arguments of `head` that a user may set, beside the backbone's
    SETTINGS: tuple[str, ...]  # settings of the training that `loss` takes
    CLASS_MAJOR: tuple[str, ...]  # how names of tensors begin whose rows go by class first

    @property
    def PREDICTION(self) -> type[Prediction]:
        """The type of what is found in a picture: of what `decode` gives, restored."""

    @property
    def LIMITS(self) -> Limits | None:
        """What a detector keeps of all that its network finds, unless other limits are given."""

    @property
    def DECODE(self) -> str | None:
        """How the outputs are to be read, in words; None where they are the answer."""

    @property
    def EMBEDDED(self) -> str | None:
        """The same where `embed` put the decode into the graph."""

    def head(self, backbone: Backbone, classes: int, *args: Any, **options: Any) -> nn.Module:
        """A head with random weights: forward(features, (height, width) of the input) -> outputs.

        Those of a classifier are a tensor, the logits; all others are tensors by name. The options
        are OPTIONS.
        """

    def loss(
        self,
        head: nn.Module,
        outputs: Outputs,
        targets: Mapping[str, Any],
        *args: Any,
        **settings: Any,
    ) -> dict[str, Tensor]:
        """Outputs in training mode -> scalars by name, to be minimized in sum.

        The settings are SETTINGS.
        """

    def decode(
        self,
        outputs: Outputs,
        size: tuple[int, int],
        limits: Limits | None = None,
    ) -> Sequence[OfInput]:
        """Outputs in eval mode -> a prediction a picture, in pixels of the input.

        The outputs may be those of `embed` too; `size` is (height, width) of the input. A detector
        keeps what `limits` say, LIMITS unless given; others have none.
        """

    def decoding(self, embedded: bool, limits: Limits | None = None) -> dict[str, object]:
        """`decode`, and `restore` of what it gives, in words and numbers, for apps.

        `embedded` is of a file with its decode inside.
        """

    def metric(self, classes: Sequence[str]) -> Metric:
        """What measures predictions of these classes."""

    @property
    def embed(self) -> Callable[[nn.Module, Limits | None], nn.Module] | None:
        """embed(model, limits) -> the model with `decode` in its graph.

        None where the outputs are the answer.
        """

    @property
    def limit(self) -> Callable[[nn.Module, Limits], None] | None:
        """limit(head, limits), before use: what a network is to keep that chooses itself.

        None of networks whose outputs `decode` chooses from.
        """

    def prepare(
        self,
        head: nn.Module,
        pictures: Iterable[Annotated],
        size: tuple[int, int],
    ) -> None:
        """Before training at a size: what the head takes from the data.

        The pictures are read one by one, and only where they are asked for.
        """

    def convert(self, state: State) -> State:
        """The authors' names of the head's tensors to ours; other names stay."""

    def recognize(self, state: State) -> Recognized | None:
        """What a state with such a head was made with; None of another's.

        The tensors of the backbone have our names by then; those of the head may have the authors'.
        """

    def stored(self, options: Mapping[str, Option], backbone: str) -> dict[str, Option]:
        """Options as a model on a backbone keeps them: checked, and text in place of files."""

    @property
    def from_file(self) -> Callable[[str], tuple[str, int, dict[str, Option]]] | None:
        """from_file(path) -> name, classes and options of the model in a layout file (.yaml)."""


def find(name: str) -> Task:
    """The file of a task; `UsageError` with the nearest name if there is none."""
    return cast(Task, find_module("tasks", name))


class Limiting(nn.Module):
    """A network that says itself what is to be kept of what it finds; `evaluate` keeps to it."""

    limits: Limits | None  # None: no detector


class Model(nn.Module):
    """A backbone and a task's head: image (N, channels, H, W) -> the head's outputs.

    `name`, `classes`, `drop_path`, `output_stride`, `options` and `channels` are all that is needed
    to build it again. Where weights were loaded, `report` says what and from where, and `preprocess` what they
    expect of an image, if known.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        drop_path: float = 0.0,
        output_stride: int | None = None,
        options: Mapping[str, Option] | None = None,
        channels: int = RGB,
    ):
        super().__init__()
        self.channels = channels
        self.name, self.classes, self.drop_path, self.options = (
            name,
            classes,
            drop_path,
            dict(options or {}),
        )
        self.task, backbone_name = split_name(name)
        check_options(name, self.options)
        self.report: Any = None
        self.preprocess: Preprocess | None = None
        task = find(self.task)
        self.options = task.stored(self.options, backbone_name)
        self.output_stride: int = task.OUTPUT_STRIDE if output_stride is None else output_stride
        of_head = {key: value for key, value in self.options.items() if key in task.OPTIONS}
        of_backbone = {key: value for key, value in self.options.items() if key not in task.OPTIONS}
        self.backbone: Backbone = backbone(
            backbone_name, drop_path, self.output_stride, of_backbone, channels
        )
        self.head: nn.Module = task.head(self.backbone, classes, **of_head)

    def forward(self, image: Tensor) -> object:
        return self.head(self.backbone(image), image.shape[-2:])

    def embed(self, image: Tensor) -> Tensor:
        """The last feature (N, C, h, w) of the backbone, averaged: (N, C) float32."""
        return self.backbone(image)[-1].float().mean((2, 3))


def split_name(name: str) -> tuple[str, str]:
    """The task and the backbone of a model name: "ssd/parcnet_s" -> ("ssd", "parcnet_s")."""
    first, slash, rest = name.partition("/")
    whole = not slash or first not in (*names("tasks"), "timm")  # no task stands before a slash
    if whole and head(name) and not variants(name) and not Path(name).exists():
        raise ModelError(
            f"{name!r} is a head, which needs a backbone: write {_on_backbone(name)!r}"
        )
    if whole and _is_file(name):
        raise ModelError(
            f"{name!r} is a file or a folder; a model is given by its name, as `fleetnet models` "
            f"lists them, and its weights beside it: --model NAME --weights {shlex.quote(name)}"
        )
    if not slash or first == "timm":
        return "classification", name
    if first not in names("tasks"):
        heads = [task for task in names("tasks") if task != "classification"]
        meant = f"write {rest}/{first}" if rest in heads else suggest(first, [*heads, "timm"])
        raise ModelError(f"no task {first!r} in {name!r}: {meant}")
    return first, rest


def _is_file(name: str) -> bool:
    """Whether a name is rather that of weights; a folder that is called as a network is not."""
    return Path(name).exists() if os.sep in name else Path(name).suffix in WEIGHTS


def _on_backbone(name: str) -> str:
    """A model name for a head that was named without its backbone, or with another sign between them."""
    backbones = [variant for variant in variants() if plain(name).endswith(plain(variant))]
    return f"{head(name)}/{max(backbones, key=len, default='repvit_m0_9')}"


def check_name(name: str) -> None:
    """`ModelError` unless there is a model of this name; builds nothing, so that it is said before anything is read."""
    check_backbone(split_name(name)[1])


def build(
    name: str,
    classes: int | None = None,
    drop_path: float = 0.0,
    output_stride: int | None = None,
    options: Mapping[str, Option] | None = None,
    channels: int = RGB,
) -> Model:
    """A model with random weights in training mode; see `backbones.backbone` for the arguments and errors.

    `name` may also be a layout file (.yaml). There are as many classes as usual, or those of the
    file, unless given; `output_stride` is the task's own unless given. `options` may be of the head
    and of the backbone.
    """
    name, of_file, described = described_by(name)
    classes, options = of_file if classes is None else classes, {**described, **(options or {})}
    if classes is None:
        classes = find(split_name(name)[0]).CLASSES
    if classes < 1:
        raise ModelError(f"classes is {classes}; a model needs at least 1")
    return Model(name, classes, drop_path, output_stride, options, channels)


def described_by(name: str) -> tuple[str, int | None, dict[str, Option]]:
    """Name, number of classes and options of the model in a layout file (.yaml); of any other name itself."""
    if not name.endswith((".yaml", ".yml")):
        return name, None, {}
    readers = [task.from_file for task in map(find, names("tasks")) if task.from_file is not None]
    return readers[0](name)


def defaults(name: str) -> dict[str, Option]:
    """The options of a model with their defaults: first those of its backbone, then those of its head."""
    task_name, backbone_name = split_name(name)
    task = find(task_name)
    made: list[tuple[Callable[..., object], tuple[str, ...]]] = [(task.head, task.OPTIONS)]
    of_family = find_family(family(backbone_name)).OPTIONS
    usual: dict[str, Option] = {}
    if family(backbone_name) != "timm":
        made.insert(0, (variants()[backbone_name], of_family))
    else:
        usual = dict.fromkeys(of_family, "")
        usual["classifier"] = "own"
        if task_name not in CLASSIFIERS:
            del usual["classifier"]  # of timm's networks; the other tasks have no use for it
    arguments = [(inspect.signature(make).parameters, keys) for make, keys in made]
    return usual | {
        key: parameters[key].default
        for parameters, keys in arguments
        for key in keys
        if key in parameters
    }


def check_options(name: str, options: Mapping[str, Option]) -> None:
    """`UsageError` for an option that the model does not have, or of another kind than its default."""
    allowed = defaults(name)
    for key, value in options.items():
        if key not in allowed:
            raise UsageError(
                f"{name} has no option {key!r}: {suggest(key, allowed) if allowed else 'it has none'}"
            )
        kinds = (float, int) if isinstance(allowed[key], float) else (type(allowed[key]),)
        if allowed[key] is not None and type(value) not in kinds:  # bool is an int, but no number
            raise UsageError(
                f"option {key} of {name} is {value!r}; allowed: {kinds[0].__name__}, "
                f"as {allowed[key]!r}"
            )


def limits_of(about: Facts) -> Limits | None:
    """What a checkpoint or an exported file keeps of what its network finds; None where it is no detector.

    Those it was exported with, else those it was trained with, else those of the task.
    """
    usual = find(about.task).LIMITS
    if usual is None:
        return None
    of_training = {key: about.settings.get(key) for key in ("max_objects", "nms", "score")}
    limits = of_training if about.limits is None else about.limits.to_json()
    try:
        return usual.changed(limits, about.classes)
    except (UsageError, AttributeError, TypeError) as error:
        raise ModelError(
            f"the limits that the file's description gives are damaged: {error}"
        ) from error


def named(outputs: Tensor | Outputs) -> dict[str, Tensor]:
    """Outputs by name; a bare tensor is "logits"."""
    return {"logits": outputs} if isinstance(outputs, Tensor) else dict(outputs)
