"""Any timm network as one of ours: "timm/mobilevit_s" (MobileViT, arXiv:2110.02178, is the papers' baseline).

timm (PyTorch Image Models, Wightman 2019, github.com/huggingface/pytorch-image-models) is an extra:
pip install timm.

    classification   image (N, C, H, W)  ->  timm's forward_features  ->  timm's forward_head  ->  logits (N, classes)
    other tasks      image (N, C, H, W)  ->  timm's features_only model  ->  its feature maps, channels first

A classifier is timm's whole network, cut in two where timm itself cuts it, so that every tensor of
timm's weights has a place and the logits are the same. The option {"classifier": "linear"} pools
and classifies the last of the feature maps instead; checkpoints of version 0.1 are built so.

The options {"parc": PATTERNS} and {"pconv": PATTERNS} put ParC or PConv in the place of layers by
the names that they have in timm's classifier: "blocks.5.*", or several with commas between them.
The learned lengths of ParC are those of the size of image that timm names for the network.

Differs from the authors' code: the deploy form is what timm's `reparameterize_model` makes of it,
with dtype and trainability kept.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .. import replacing
from ..errors import ModelError, UsageError, suggest
from ..parc import AS_PARC
from ..pconv import AS_PCONV
from ..preprocess import Preprocess
from . import Backbone, Implied, Option, Pretrained, Recognized, State
from ._defaults import convert as convert
from ._recognition import output_count

VARIANTS: dict[str, Callable[..., Backbone]] = {}  # timm's own names are not copied: see `make`
# what can be put into a network, by the option whose value says where
PLUG_INS = {"parc": AS_PARC, "pconv": AS_PCONV}
OPTIONS: tuple[str, ...] = ("classifier", *PLUG_INS)
VERSIONS = ()
WEIGHTS: dict[str, Pretrained] = {}
# timm's whole network; pooling and one linear layer on its feature maps
CLASSIFIERS = "own", "linear"
BUILD_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    AttributeError,
)

TRUNK, OWN_HEAD, LINEAR = "backbone.model.", "head.classifier.model.", "head.classifier.2"
OURS = (TRUNK, OWN_HEAD)  # how our names begin; no network of timm calls its own parts so


class _Info(Protocol):
    """What timm says of the feature maps of a network."""

    def channels(self) -> list[int]: ...
    def reduction(self) -> list[int]: ...


class _Features(Protocol):
    """timm's network of feature maps, as far as it is used here."""

    feature_info: _Info


class _Classifier(Protocol):
    """timm's whole network, as far as it is used here."""

    num_features: int
    pretrained_cfg: Mapping[str, Any]

    def forward_features(self, image: Tensor) -> Tensor: ...
    def forward_head(self, feature: Tensor) -> Tensor: ...


class Features(nn.Module):
    """image (N, C, H, W) -> the features of a timm features_only model, each (N, C_i, h_i, w_i)."""

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        self.name, self.model = name, model
        self.plugged: dict[str, list[str]] = {}
        info = cast("_Features", model).feature_info
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        self.channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        features = list(self.model(image))
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_last else features

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], classes)
        )

    def fuse(self) -> nn.Module:
        return _fused(self)


def check_name(name: str) -> None:
    """`ModelError` unless timm is installed and has a model of this name."""
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm/{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}: {nearest(name)}")


def nearest(name: str) -> str:
    """The end of an error message: timm's models that are called nearly so, as they are typed here."""
    import timm

    likely = get_close_matches(name.lower(), timm.list_models(), 4, 0.5)
    listed = "timm.list_models() lists all"
    return (
        f"nearest: {', '.join(f'timm/{model}' for model in likely)}; {listed}" if likely else listed
    )


class Trunk(nn.Module):
    """image (N, in_channels, H, W) -> what timm's `forward_features` gives, as one feature.

    It is (N, C, h, w); tokens are (N, C, L, 1).
    """

    def __init__(self, name: str, drop_path: float, output_stride: int, in_channels: int):
        super().__init__()
        whole = create(name, drop_path, output_stride, in_chans=in_channels)
        self.name, self.cut = name, cut_of(name)
        self.plugged: dict[str, list[str]] = {}
        self.channels: list[int] = [self.cut.channels]
        self.strides: list[int] = [output_stride]
        self.model = _without(whole, self.cut.head_parts)

    def forward(self, image: Tensor) -> list[Tensor]:
        feature = cast("_Classifier", self.model).forward_features(image)
        if self.cut.layout == "NHWC":
            feature = feature.permute(0, 3, 1, 2)
        elif self.cut.layout == "NLC":
            feature = feature.transpose(1, 2)[..., None]
        return [feature]

    def classifier(self, classes: int) -> nn.Module:
        """What `forward_features` gives -> (N, classes), by timm's own head."""
        return TimmHead(self.name, classes)

    def fuse(self) -> nn.Module:
        return _fused(self)


class TimmHead(nn.Module):
    """The feature of `Trunk` -> logits (N, classes), by timm's `forward_head`."""

    def __init__(self, name: str, classes: int):
        super().__init__()
        whole = create(name, classes=classes)
        self.cut = cut_of(name)
        others = [child for child, _ in whole.named_children() if child not in self.cut.head_parts]
        self.model = _without(whole, others)
        self.model._parameters.clear()  # class tokens and positions, which belong to the features

    def forward(self, feature: Tensor) -> Tensor:
        if self.cut.layout == "NHWC":
            feature = feature.permute(0, 2, 3, 1)
        elif self.cut.layout == "NLC":
            feature = feature[..., 0].transpose(1, 2)
        return cast("_Classifier", self.model).forward_head(feature)

    def fuse(self) -> nn.Module:
        return _fused(self)


def _fused(module: nn.Module) -> nn.Module:
    """timm's own deploy form of `module.model`, where timm has one; its batch norms elsewhere stay."""
    from timm.utils.model import reparameterize_model

    trainable = {name: p.requires_grad for name, p in module.named_parameters()}
    example = next(module.parameters(), torch.zeros(()))
    fused, network = copy.copy(module), cast(nn.Module, module.model)
    # Layers that `reparameterize` collapses for their size stay the objects whose size it knows.
    sized = {id(layer): layer for layer in network.modules() if hasattr(type(layer), "fuse_at")}
    network = reparameterize_model(copy.deepcopy(network, sized), inplace=True)
    fused._modules = {"model": network.to(example.device, example.dtype)}
    for name, parameter in fused.named_parameters():  # timm freezes what it did not fuse
        parameter.requires_grad_(trainable.get(name, any(trainable.values())))
    return fused


def _without(whole: nn.Module, parts: Iterable[str]) -> nn.Module:
    """A network of timm's without some of its parts; its methods stay, and fail where they need one of these."""
    for part in parts:
        delattr(whole, part)
    return whole


@contextmanager
def _recording(model: nn.Module) -> Iterator[set[nn.Module]]:
    """The modules that are called meanwhile."""
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.add(module))
        for module in model.modules()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Cut:
    """Where timm divides a classifier: what lies behind, and the feature between."""

    # the children that `forward_head` calls and `forward_features` does not
    head_parts: frozenset[str]
    channels: int
    layout: str  # of the feature in timm: "NCHW", "NHWC", or "NLC" of tokens


@cache
def cut_of(name: str) -> Cut:
    """Where timm divides the classifier `name`, from one run of each half without values.

    Raises `ModelError` for a network that is not divided so.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            model = create(name).eval()
            image = torch.zeros(1, *cast("_Classifier", model).pretrained_cfg["input_size"])
            with _recording(model) as of_features:
                features = cast("_Classifier", model).forward_features(image)
            with _recording(model) as of_head:
                cast("_Classifier", model).forward_head(features)
    except BUILD_ERRORS as error:
        raise _no_own_classifier(name, str(error)) from error
    parts = {
        child
        for child, module in model.named_children()
        if of_head.intersection(module.modules()) and not of_features.intersection(module.modules())
    }
    if not any(True for part in parts for _ in cast(nn.Module, getattr(model, part)).parameters()):
        raise _no_own_classifier(name, "its head has no parameters of its own")
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise _no_own_classifier(
            name, f"its feature is {getattr(features, 'shape', type(features).__name__)}"
        )
    channels = cast("_Classifier", model).num_features
    if features.ndim == 3:
        return Cut(frozenset(parts), features.shape[-1], "NLC")
    if features.shape[1] != channels and features.shape[-1] == channels:
        return Cut(frozenset(parts), channels, "NHWC")
    return Cut(frozenset(parts), features.shape[1], "NCHW")


def _no_own_classifier(name: str, reason: str) -> ModelError:
    return ModelError(
        f"timm/{name} cannot be divided into features and head: {reason}. With "
        f"options={{'classifier': 'linear'}} (--options.classifier linear) its feature maps get a "
        "linear classifier"
    )


def create(
    name: str, drop_path: float = 0.0, output_stride: int = 32, classes: int = 2, **more: object
) -> nn.Module:
    """A network by timm's name, with random weights unless `more` says otherwise; `ModelError` in timm's words."""
    import timm

    settings: dict[str, Any] = {"num_classes": classes, **more}
    if more.get("features_only"):
        del settings["num_classes"]
    if drop_path:
        settings["drop_path_rate"] = drop_path
    if output_stride != 32:
        settings["output_stride"] = output_stride
    try:  # a setting that a model does not know is a TypeError or an assertion, deep inside timm
        return timm.create_model(name, **settings)
    except BUILD_ERRORS as error:
        asked = f"drop_path {drop_path}, output_stride {output_stride}"
        raise ModelError(f"timm/{name} cannot be built with {asked}: timm says {error}") from error


def make(
    name: str,
    drop_path: float,
    output_stride: int,
    options: Mapping[str, Option],
    in_channels: int = 3,
) -> Features | Trunk:
    """A timm network by its own name, with random weights.

    Raises `ModelError` if timm is not installed, has no such model, or if the model cannot give
    feature maps, drop path or the output stride asked for; `UsageError` for an unknown option.
    """
    check_name(name)
    for key in options:
        if key not in OPTIONS:
            raise UsageError(f"timm/{name} has no option {key!r}: {suggest(key, OPTIONS)}")
    classifier = options.get("classifier", "linear")
    if classifier not in CLASSIFIERS:
        raise UsageError(
            f"option classifier of timm/{name} is {classifier!r}: "
            f"{suggest(str(classifier), CLASSIFIERS)}"
        )
    backbone: Features | Trunk
    if classifier == "own":
        backbone = Trunk(name, drop_path, output_stride, in_channels)
    else:
        maps = create(name, drop_path, output_stride, features_only=True, in_chans=in_channels)
        backbone = Features(name, maps)
    plug_in(backbone, options)
    return backbone


# ---- ParC and PConv in the place of layers ---------------------------------------------------------------------------


def plug_in(backbone: Features | Trunk, options: Mapping[str, Option]) -> None:
    """Replace the layers that the options `parc` and `pconv` name, in place.

    Raises `UsageError` for a pattern that fits none, `ModelError` for a network that has none.
    """
    for option, kind in PLUG_INS.items():
        patterns = [part.strip() for part in str(options.get(option, "")).split(",")]
        if not any(patterns):
            continue
        backbone.plugged[option] = replacing.replace(
            backbone.model,
            patterns,
            kind,
            _published_size(backbone.name),
            forward=backbone,
            names=_module_names(backbone.name) if isinstance(backbone, Features) else None,
        )


@cache
def _published_size(name: str) -> tuple[int, int]:
    height, width = _configuration(name)["input_size"][1:]
    return height, width


@cache
def _module_names(name: str) -> Mapping[str, str]:
    """The names of modules in timm's features_only model -> those in the classifier."""
    names = {}
    for of_classifier, of_features in feature_names(name).items():
        classifier, features = of_classifier.split("."), of_features.split(".")
        while len(features) > 1 and len(classifier) > 1 and features[-1] == classifier[-1]:
            del features[-1], classifier[-1]
            names[".".join(features)] = ".".join(classifier)
    return names


# ---- weights ---------------------------------------------------------------------------------------------------------


def pretrained(name: str) -> tuple[State, Pretrained]:
    """The weights published for a timm network, by timm's own hub code and in timm's names, and what they expect.

    Raises `ModelError` where timm has none or they cannot be fetched.
    """
    try:
        classes = _configuration(name)["num_classes"]
        state = create(name, classes=classes, pretrained=True).state_dict()
    except (ModelError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the published weights of timm/{name} cannot be had: {reason}") from error
    return state, published(name)


def _configuration(name: str) -> dict[str, Any]:
    """What timm keeps of the published weights of a network: size, mean, crop, license, address."""
    with torch.device("meta"):
        return dict(cast("_Classifier", create(name)).pretrained_cfg)


def published(name: str) -> Pretrained:
    """What timm says of the weights of a network: where they are, what they expect of an image, their license.

    timm keeps no accuracy in its code, so `top1` is NaN.
    """
    about = _configuration(name)
    hub = about.get("hf_hub_id")
    return Pretrained(
        source=f"hf-hub:{hub}" if hub else str(about.get("url") or f"timm/{name}"),
        license=about.get("license") or "not stated by timm",
        top1=float("nan"),
        measured_by="timm",
        preprocess=Preprocess(
            (about["input_size"][-1],) * 2,
            crop=min(about["crop_pct"], 1.0),  # the 1.15 of three networks pads, which we do not
            interpolation=about["interpolation"],
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
        ),
    )


def convert_for(name: str, classifies: bool) -> Callable[[State], State]:
    """What renames the tensors of a timm checkpoint of the network `name` for a model of a task.

    Of one that `classifies` every tensor has a place, in the features or in the head. Other tasks
    have the tensors of the feature maps under the names of timm's features_only model; the rest is
    of a classifier's head, and stays unused.
    """
    return _for_classifier(name) if classifies else _for_features(name)


def _for_classifier(name: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        if any(key.startswith(OURS) for key in state):  # the names are ours already
            return state
        in_head = tuple(f"{part}." for part in cut_of(name).head_parts)
        converted = {}
        for key, value in state.items():
            place = OWN_HEAD if key.startswith(in_head) else TRUNK
            converted[place + key] = value
        return converted

    return change


def _for_features(name: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        renamed = feature_names(name)
        converted = {}
        for key, value in state.items():
            of_timm = key.removeprefix(TRUNK).removeprefix(OWN_HEAD)
            if of_timm in renamed:
                key = TRUNK + renamed[of_timm]
            elif not key.startswith(("head.", TRUNK)) or (
                key.startswith(TRUNK) and of_timm in _classifier_names(name)
            ):
                key = OWN_HEAD + of_timm
            converted[key] = value
        return converted

    return change


def recognize(state: State) -> Recognized | None:
    """A state in our names is of some network of timm's; only a name tells of which."""
    if not any(key.startswith(TRUNK) for key in state):
        return None
    if _is_linear(state):
        implied = Implied(options={"classifier": "linear"})
        return Recognized(classes=output_count(state, LINEAR), implied=implied)
    return Recognized()


def _is_linear(state: State) -> bool:
    return f"{LINEAR}.weight" in state and any(key.startswith(TRUNK) for key in state)


def expected_of_image(name: str, state: State) -> Pretrained | None:
    """What a state of timm's own expects of an image: what timm says of the network; None where the state is ours."""
    if any(key.startswith(OURS) for key in state):
        return None
    return published(name)


@cache
def _classifier_names(name: str) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(create(name).state_dict())


@cache
def feature_names(name: str) -> Mapping[str, str]:
    """The names of a classifier's tensors in timm -> those of the same tensors in timm's features_only model.

    A features_only model keeps the names, or puts "model." before them, or joins the first two
    parts with a "_".
    """
    with torch.device("meta"):
        of_features = create(name, features_only=True).state_dict()
    of_classifier = _classifier_names(name)
    renamed = {}
    for key in of_features:
        first, _, rest = key.partition(".")
        words = first.split("_")
        joined = [
            "_".join(words[:i]) + "." + "_".join(words[i:]) + "." + rest
            for i in range(1, len(words))
        ]
        for original in (key, key.removeprefix("model."), *joined):
            if original in of_classifier:
                renamed[original] = key
                break
    return renamed
