"""Backbones: an image in, a list of feature maps out. One file is one paper: a family.

`Family` says what such a file holds. The names in its table VARIANTS are the names users type, so
that a search for "fasternet_t0" finds the line that defines it.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import Any, Protocol, cast

from torch import Tensor, nn

from ..channels import RGB
from ..errors import ModelError, UsageError, suggest
from ..find import find as find_module
from ..find import names
from ..preprocess import Preprocess
from ..reparam import Form
from ..synonyms import plain

Option = bool | int | float | str
State = dict[str, Tensor]
OF_TIMM = "resne|wideresne|efficient|mobilenet|mobilevit|vit|swin|convnext|regnet|ghostnet|levit|deit|vgg|densenet"
# What most networks that were trained on ImageNet expect of an image.
OF_IMAGENET = Preprocess((224, 224), crop=0.875)


class Backbone(Protocol):
    channels: list[int]  # of each feature, shallow to deep
    # of each feature; feature i is (N, channels[i], ~H / strides[i], ~W / strides[i])
    strides: list[int]

    def __call__(self, image: Tensor) -> list[Tensor]: ...

    def classifier(self, classes: int) -> nn.Module:
        """The paper's own classification head: the last feature (N, C, h, w) -> (N, classes)."""


@dataclass(frozen=True)
class Pretrained:
    """Published ImageNet-1k weights of one variant: where they are, what they need, what they reach."""

    source: str  # "hf-hub:owner/name" or the address of the authors' file
    license: str
    top1: float  # percent on ImageNet-1k val
    measured_by: str  # who published that figure
    preprocess: Preprocess = OF_IMAGENET


@dataclass(frozen=True)
class Implied:
    """How a model has to be built for weights whose tensors would also go into others.

    And what these weights expect of an image.
    """

    output_stride: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Recognized:
    """What names and shapes of tensors tell of the backbone, or the head, that they are of."""

    variant: str = ""  # of a backbone; "" of a head, and where only a name tells, as of timm's
    form: Form | None = None  # None where names do not tell
    classes: int | None = None  # None where no tensor depends on them
    options: Mapping[str, Option] = field(default_factory=dict)  # that shapes show, usual or not
    implied: Implied = Implied()


class Family(Protocol):
    """What the file of a family holds, all of it at its top level.

    What a family has no use for is an empty table; a function comes from `_defaults`.
    """

    @property
    def VARIANTS(self) -> Mapping[str, Callable[..., Backbone]]:
        """The constructors by name; they take `drop_path`, `output_stride` and some of OPTIONS.

        And `in_channels`, if they are to take images of another number of channels than three.
        """

    @property
    def OPTIONS(self) -> tuple[str, ...]:
        """Arguments of the constructors that a user may set."""

    @property
    def WEIGHTS(self) -> Mapping[str, Pretrained]:
        """What was published for a variant, by its name."""

    @property
    def VERSIONS(self) -> tuple[Callable[[State], State], ...]:
        """Of blocks that were published in versions: a state in our names -> each of these."""

    def convert(self, state: State) -> State:
        """The authors' names of tensors, and timm's, to ours; other names stay."""

    def recognize(self, state: State) -> Recognized | None:
        """What a state in our names was made with; None of a state of another family."""


def find(name: str) -> Family:
    """The file of a family; `UsageError` with the nearest name if there is none."""
    return cast(Family, find_module("backbones", name))


def _files() -> list[str]:
    return [file for file in names("backbones") if file != "timm"]


def variants(pattern: str = "*") -> dict[str, Callable[..., Backbone]]:
    """The constructors of our own variants by name, in the order of the files: variants("repvit_*")."""
    tables = [find(file).VARIANTS for file in _files()]
    return {
        name: make for table in tables for name, make in table.items() if fnmatch(name, pattern)
    }


def family(name: str) -> str:
    """The file that defines a variant: family("fasternet_t0") -> "fasternet"; `ModelError` if none does."""
    if name.startswith("timm/"):
        return "timm"
    for file in _files():
        if name in find(file).VARIANTS:
            return file
    raise ModelError(f"no backbone {name!r}: {_meant(name)}")


def _meant(name: str) -> str:
    """What may have been meant by a name that no file defines: ours otherwise written, a family, or one of timm's."""
    for file in _files():
        if plain(name) == plain(file):
            return f"it is a family; its networks are {', '.join(find(file).VARIANTS)}"
    if re.match(OF_TIMM, plain(name)) and find_spec("timm") is not None:
        from .timm import nearest

        return f"ours are listed by `fleetnet models`; of timm's: {nearest(name)}"
    return f"{suggest(name, variants(), 'model', 'fleetnet models')}; networks of timm are named timm/NAME"


def check_name(name: str) -> None:
    """`ModelError` unless there is a backbone of this name; builds nothing."""
    if family(name) == "timm":
        from .timm import check_name as check_name_of_timm

        check_name_of_timm(name.removeprefix("timm/"))


def pretrained(name: str) -> Pretrained | None:
    """What was published for a variant; None where nothing was."""
    return find(family(name)).WEIGHTS.get(name)


def backbone(
    name: str,
    drop_path: float = 0.0,
    output_stride: int = 32,
    options: Mapping[str, Option] | None = None,
    channels: int = RGB,
) -> Backbone:
    """Build one backbone with random weights.

    `drop_path` is the largest drop probability of stochastic depth, in [0, 1); `output_stride` 32,
    16 or 8 (dilated instead of strided below 32); `options` are the family's own, such as
    {"mixing": "conv"} of FasterNet; `channels` are those of the image. Raises `ModelError` for an
    unknown name, `UsageError` for an unknown option.
    """
    if output_stride not in (8, 16, 32):
        raise UsageError(f"output_stride is {output_stride}; allowed: 8, 16, 32")
    if not 0 <= drop_path < 1:
        raise UsageError(f"drop_path is {drop_path}; allowed: 0 <= drop_path < 1")
    if family(name) == "timm":
        from .timm import make as make_of_timm

        of_timm = name.removeprefix("timm/")
        return make_of_timm(of_timm, drop_path, output_stride, options or {}, channels)
    make = variants()[name]
    of_family = find(family(name)).OPTIONS
    allowed = [key for key in inspect.signature(make).parameters if key in of_family]
    for key in options or {}:
        if key not in allowed:
            raise UsageError(
                f"{name} has no option {key!r}: "
                f"{suggest(key, allowed) if allowed else 'it has none'}"
            )
    settings: dict[str, Any] = {"drop_path": drop_path, "output_stride": output_stride}
    if channels != RGB:
        _check_channels(name, make, channels)
        settings["in_channels"] = channels
    return make(**settings, **(options or {}))


def _check_channels(name: str, make: Callable[..., Backbone], channels: int) -> None:
    """`ModelError` for a network that is written for images of three channels only."""
    if "in_channels" not in inspect.signature(make).parameters:
        raise ModelError(
            f"{name} takes images of {RGB} channels, not {channels}: its constructor has no "
            "argument in_channels"
        )
