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
    metric(classes) -> object                            add(predictions, targets); result() -> dict; the first decides

Outputs are a tensor or a dict of tensors by name, batch first; exported files have them under the same names. Optional:

    embed(model) -> nn.Module                    the model with `decode` in its graph; `decode` takes its outputs too
    prepare(head, pictures, size)                before training: what the head wants to know of the data
    convert(state) -> state                      the authors' names of the head's tensors to ours
    implied(state) -> dict                       arguments of `build`, and `preprocess`, for the authors' state
    from_file(path) -> (name, classes, options)  a model that a layout file (.yaml) describes
    stored(options, backbone) -> options         options as a model keeps them: text in place of files; checked

`create_model` puts a backbone and a head together; the name says both: "fasternet_t0" is a classifier,
"ssd/fasternet_t0" a detector.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..backbones import Backbone, Option, backbone
from ..errors import ModelError, choose
from ..find import find, names


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
    if not slash or first == "timm":
        return "classification", name
    if first not in names("tasks"):
        heads = [task for task in names("tasks") if task != "classification"]
        raise ModelError(f"no task {first!r} in {name!r}: {choose(first, [*heads, 'timm'])}")
    return first, rest


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
    if name.endswith((".yaml", ".yml")):
        task = next(task for task in map(partial(find, "tasks"), names("tasks")) if hasattr(task, "from_file"))
        name, of_file, described = task.from_file(name)
        classes, options = of_file if classes is None else classes, {**described, **(options or {})}
    if classes is None:
        classes = getattr(find("tasks", split_name(name)[0]), "CLASSES", 1000)
    if classes < 1:
        raise ModelError(f"classes is {classes}; a model needs at least 1")
    return Model(name, classes, drop_path, output_stride, options)


def named(outputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name; a bare tensor is "logits"."""
    return {"logits": outputs} if isinstance(outputs, Tensor) else dict(outputs)
