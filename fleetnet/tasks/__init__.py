"""Tasks: what is made of the features, how it is trained, what it means. One file is one task; it keeps no state.

    TARGET            the annotation it learns from: "label", "boxes", "masks" or "semantic" (see `data`)
    MODE              how a picture becomes the input: "crop", "stretch" or "letterbox" (see `transforms.Preprocess`)
    AUGMENT           the augmentation it trains with unless told otherwise (see `augment`)
    OUTPUT_STRIDE     of the backbone, unless told otherwise
    SIZE, CLASSES     height and width that it is usually trained at and how many classes, if not 224 and 1000
    OPTIONS           arguments of `head` that a user may set, beside those of the backbone
    SETTINGS          settings of the training that `loss` takes
    head(backbone, classes, **options) -> nn.Module      forward(features, (height, width) of the image) -> outputs
    loss(head, outputs, targets, **settings) -> dict     outputs in training mode -> named scalars, to minimize in sum
    decode(outputs, size) -> list[Prediction]            outputs in eval mode -> a prediction a picture, in input pixels
    restore(prediction, place) -> Prediction             the same in the pixels of the picture
    present(prediction, classes, ...) -> Any             the same in words, for a user
    decoding(embedded) -> dict                           `decode` and `restore` in words and numbers, for apps
    metric(classes) -> object                            add(predictions, targets); result() -> dict; the first decides

Outputs are a tensor or a dict of tensors by name, batch first; exported files have them under the same names. Optional:

    LIMITS                                       of detectors: what is kept of all that is found, see `boxes.Limits`;
                                                 then `decode` and `embed` take others as their argument `limits`
    limit(head, limits)                          before use, of a network that chooses what it keeps itself
    embed(model) -> nn.Module                    the model with `decode` in its graph; `decode` takes its outputs too
    prepare(head, pictures, size)                before training: what the head wants to know of the data
    convert(state) -> state                      the authors' names of the head's tensors to ours
    implied(state) -> dict                       arguments of `build`, and `preprocess`, for the authors' state
    from_file(path) -> (name, classes, options)  a model that a layout file (.yaml) describes
    CLASS_MAJOR                                  tensors of the head whose rows go by class before anything else
    stored(options, backbone) -> options         options as a model keeps them: text in place of files; checked

`create_model` puts a backbone and a head together; the name says both: "fasternet_t0" is a classifier,
"ssd/fasternet_t0" a detector.
"""

import inspect
import os
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..backbones import Backbone, Option, backbone, family, variants
from ..backbones import check_name as check_backbone
from ..boxes import Limits
from ..errors import ModelError, UsageError, choose
from ..find import find, names
from ..synonyms import head, plain

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".onnx", ".pt2")  # endings of files, not of names


class Model(nn.Module):
    """A backbone and a task's head: image (N, 3, H, W) -> the head's outputs.

    `name`, `classes`, `drop_path`, `output_stride` and `options` are all that is needed to build it again. Where
    weights were loaded, `report` says what and from where, and `preprocess` what they expect of an image, if known.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        drop_path: float = 0.0,
        output_stride: int | None = None,
        options: Mapping[str, Option] | None = None,
    ):
        super().__init__()
        self.name, self.classes, self.drop_path, self.options = name, classes, drop_path, dict(options or {})
        self.task, backbone_name = split_name(name)
        check_options(name, self.options)
        self.report: Any = None
        self.preprocess: dict[str, Any] | None = None
        task = find("tasks", self.task)
        if hasattr(task, "stored"):
            self.options = task.stored(self.options, backbone_name)
        self.output_stride: int = task.OUTPUT_STRIDE if output_stride is None else output_stride
        of_head = {key: value for key, value in self.options.items() if key in task.OPTIONS}
        of_backbone = {key: value for key, value in self.options.items() if key not in task.OPTIONS}
        self.backbone: Backbone = backbone(backbone_name, drop_path, self.output_stride, of_backbone)
        self.head: nn.Module = task.head(self.backbone, classes, **of_head)

    def forward(self, image: Tensor) -> Any:
        return self.head(self.backbone(image), image.shape[-2:])


def split_name(name: str) -> tuple[str, str]:
    """The task and the backbone of a model name: "ssd/parcnet_s" -> ("ssd", "parcnet_s")."""
    first, slash, rest = name.partition("/")
    whole = not slash or first not in (*names("tasks"), "timm")  # no task stands before a slash
    if whole and head(name) and not variants(name) and not Path(name).exists():
        raise ModelError(f"{name!r} is a head, which needs a backbone: write {_on_backbone(name)!r}")
    if whole and _is_file(name):
        raise ModelError(
            f"{name!r} is a file or a folder; a model is given by its name, as `fleetnet models` lists them, and its "
            f"weights beside it: --model NAME --weights {shlex.quote(name)}"
        )
    if not slash or first == "timm":
        return "classification", name
    if first not in names("tasks"):
        heads = [task for task in names("tasks") if task != "classification"]
        meant = f"write {rest}/{first}" if rest in heads else choose(first, [*heads, "timm"])
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
) -> Model:
    """A model with random weights in training mode; see `backbones.backbone` for the arguments and errors.

    `name` may also be a layout file (.yaml). There are as many classes as usual, or those of the file, unless given;
    `output_stride` is the task's own unless given. `options` may be of the head and of the backbone.
    """
    name, of_file, described = described_by(name)
    classes, options = of_file if classes is None else classes, {**described, **(options or {})}
    if classes is None:
        classes = getattr(find("tasks", split_name(name)[0]), "CLASSES", 1000)
    if classes < 1:
        raise ModelError(f"classes is {classes}; a model needs at least 1")
    return Model(name, classes, drop_path, output_stride, options)


def described_by(name: str) -> tuple[str, int | None, dict[str, Option]]:
    """Name, number of classes and options of the model in a layout file (.yaml); of any other name itself."""
    if not name.endswith((".yaml", ".yml")):
        return name, None, {}
    task = next(task for task in map(partial(find, "tasks"), names("tasks")) if hasattr(task, "from_file"))
    return task.from_file(name)


def defaults(name: str) -> dict[str, Option]:
    """The options of a model with their defaults: first those of its backbone, then those of its head."""
    task_name, backbone_name = split_name(name)
    task = find("tasks", task_name)
    made = [(task.head, task.OPTIONS)]
    if family(backbone_name) != "timm":
        made.insert(0, (variants()[backbone_name], find("backbones", family(backbone_name)).OPTIONS))
    elif task_name == "classification":
        return {"classifier": "own"}  # of timm's networks; the other tasks have no use for their classifier
    arguments = [(inspect.signature(make).parameters, options) for make, options in made]
    return {key: known[key].default for known, options in arguments for key in options if key in known}


def check_options(name: str, options: Mapping[str, Option]) -> None:
    """`UsageError` for an option that the model does not have, or of another kind than its default."""
    known = defaults(name)
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{name} has no option {key!r}: {choose(key, known) if known else 'it has none'}")
        kinds = (float, int) if isinstance(known[key], float) else (type(known[key]),)
        if known[key] is not None and type(value) not in kinds:  # bool is an int, but no number
            raise UsageError(f"option {key} of {name} is {value!r}; allowed: {kinds[0].__name__}, as {known[key]!r}")


def limits_of(about: Mapping[str, Any]) -> Limits | None:
    """What a checkpoint or an exported file keeps of what its network finds; None where it is no detector.

    Those it was exported with ("limits" of its facts), else those it was trained with, else those of the task.
    """
    usual = getattr(find("tasks", about["task"]), "LIMITS", None)
    if usual is None:
        return None
    settings = about.get("settings") or {}
    try:
        given = about.get("limits") or {key: settings.get(key) for key in ("max_objects", "nms", "score")}
        return usual.changed(given, about["classes"])
    except (UsageError, AttributeError, TypeError) as error:
        raise ModelError(f"the limits that the file's description gives are damaged: {error}") from error


def named(outputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name; a bare tensor is "logits"."""
    return {"logits": outputs} if isinstance(outputs, Tensor) else dict(outputs)
