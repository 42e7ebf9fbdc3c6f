"""Weights: a file, an address or a state dict into a model, strictly and with a report.

    read        a file, an address or a dict  ->  a state: tensors by the names of whoever wrote it
    identify    which model the state is of; the authors' names and timm's  ->  ours
    place       into the model, whole, or an error that says what these weights look like

These three are the parts; what is here is public.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from torch import Tensor

from ..backbones import Option, family, variants
from ..backbones.timm import PLUG_INS, Features, Trunk, plug_in
from ..channels import RGB, parse_channels
from ..errors import named_arguments
from ..tasks import Model, build, described_by, split_name
from .identify import deployed, has_backbone, plan_for
from .place import Report as Report
from .place import place_weights
from .read import Weights, read_weights


@named_arguments
def create_model(
    name: str,
    classes: int | Sequence[str] | None = None,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    *,
    drop_path: float = 0.0,
    output_stride: int | None = None,
    options: Mapping[str, Option] | None = None,
    channels: int | str | None = None,
) -> Model:
    """A model by name, in training mode, with random weights or those of a file, the hub, or "default".

    `name` is a backbone ("fasternet_t0") or task and backbone; `classes` are those of the weights,
    or as many as usual (1000; of detectors 80, of segmenters 21), unless given: their number, or
    their names. With names, and weights that have some too, the head keeps what it has learned of
    each class that both know. `weights` are what `read_weights` takes, in any names and either
    form: the model gets the form, the output stride and the options (heads, branches) that they
    were made with, unless these are given. Weights of another task give their backbone. `channels`
    are those of the pictures, 1 to 512, "gray", "rgb" or "rgba": those of the weights, or 3, unless
    given; weights for RGB are adapted to any other number (see `weights.adapt`).
    `model.report` then tells what was loaded, and `model.preprocess` what the weights expect of an
    image, where that is known. Raises `ModelError` for an unknown model or weights that do not fit,
    `UsageError` for an unknown option.
    """
    class_names = None if classes is None or isinstance(classes, int) else list(classes)
    count = classes if classes is None or isinstance(classes, int) else len(classes)
    asked = None if channels is None else parse_channels(channels)
    if weights is None:
        return build(name, count, drop_path, output_stride, options, asked or RGB)
    name, of_file, described = described_by(name)
    source = read_weights(weights, name)
    settled = {**described, **(options or {})}
    later = _plugged_later(name, source, settled)
    built_with = {option: value for option, value in settled.items() if option not in later}
    made = plan_for(name, source, output_stride, built_with)
    counts = [number for number in (count, of_file, made.classes) if number is not None]
    model = build(
        name,
        counts[0] if counts else None,
        drop_path,
        made.output_stride,
        made.options,
        asked or (RGB if source.preprocess is None else source.preprocess.channels),
    )
    if made.form == "deploy":
        model = deployed(model, source.size).train()
    model.report = place_weights(model, source, class_names)
    if later:
        plug_in(cast(Features | Trunk, model.backbone), later)
        model.options.update(later)
    expected = source.preprocess or made.preprocess
    model.preprocess = None if expected is None else expected.for_channels(model.channels)
    return model


def _plugged_later(name: str, source: Weights, options: Mapping[str, Option]) -> dict[str, Option]:
    """The options of a network of timm's that put ParC or PConv into it once it has its weights.

    Weights of the network without them have none for ParC, which begins with what it replaces.
    """
    plug_ins = {option: value for option, value in options.items() if option in PLUG_INS and value}
    if not plug_ins or family(split_name(name)[1]) != "timm":
        return {}
    if source.facts is not None:
        of_weights = source.facts.options
        return {key: value for key, value in plug_ins.items() if not of_weights.get(key)}
    without = {option: value for option, value in options.items() if option not in plug_ins}
    return plug_ins if has_backbone(name, source.state, without) else {}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` takes and that fit a pattern such as "repvit_*"; beside them, timm/NAME."""
    return list(variants(pattern))


@named_arguments
def load_weights(
    model: Model,
    source: str | Path | Mapping[str, Tensor],
    *,
    ema: bool = False,
    classes: Sequence[str] | None = None,
) -> Report:
    """Load weights into `model` in place, all of them or none, and report; see `read_weights` for `source` and `ema`.

    Names may be ours, the authors' or timm's; the model keeps its dtype and device. `classes` are
    the names of the model's classes: where the weights have names too, rows of the head follow
    them. Otherwise what depends on the number of classes starts anew if that differs, and the whole
    head if the weights have none or another task's. The first convolution of weights for RGB is
    adapted to a model of another number of channels (see `weights.adapt`). Anything else that is
    missing, left over or of another shape is a `ModelError`, and so are weights of the other form
    (collapse after loading, since what is collapsed cannot be unfolded) and a model built otherwise
    than the authors'.
    """
    return place_weights(model, read_weights(source, model.name, ema), classes)
