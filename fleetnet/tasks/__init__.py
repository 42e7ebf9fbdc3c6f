"""Tasks: what is made of the features, how it is trained, what it means. One file is one task.

A task is a module with four functions and no state:

    head(backbone, classes) -> nn.Module              features list[(N, C_i, h_i, w_i)] -> raw outputs
    loss(outputs, targets) -> dict[str, Tensor]       named scalars, to minimize in sum
    decode(outputs, sizes) -> predictions             raw outputs -> what a user wants; outside the graph
    metric(classes) -> object                         add(outputs, targets); result() -> dict; its first entry decides

`create_model` puts a backbone and a head together; the name says both: "fasternet_t0" is a classifier,
"ssd/fasternet_t0" a detector.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..backbones import Backbone, Option, backbone
from ..errors import ModelError, choose
from ..find import find, names


class Model(nn.Module):
    """A backbone and a task's head: image (N, 3, H, W) -> the head's raw outputs.

    `name`, `classes`, `drop_path`, `output_stride` and `options` are all that is needed to build it again. Where
    weights were loaded, `report` says what and from where, and `preprocess` what they expect of an image, if known.
    """

    def __init__(
        self, name: str, classes: int, drop_path: float, output_stride: int, options: Mapping[str, Option] | None
    ):
        super().__init__()
        self.name, self.classes = name, classes
        self.drop_path, self.output_stride, self.options = drop_path, output_stride, dict(options or {})
        self.task, backbone_name = split_name(name)
        self.report: Any = None
        self.preprocess: dict[str, Any] | None = None
        self.backbone: Backbone = backbone(backbone_name, drop_path, output_stride, options)
        self.head: nn.Module = find("tasks", self.task).head(self.backbone, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))


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
    classes: int = 1000,
    drop_path: float = 0.0,
    output_stride: int = 32,
    options: Mapping[str, Option] | None = None,
) -> Model:
    """A model with random weights in training mode; see `backbones.backbone` for the arguments and errors."""
    if classes < 1:
        raise ModelError(f"classes is {classes}; a model needs at least 1")
    return Model(name, classes, drop_path, output_stride, options)
