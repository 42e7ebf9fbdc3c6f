"""YOLO: one-stage detection with anchors at strides 8, 16 and 32, in the layout of the YOLOv5 family.

The network is read from rows (see `_layout`); the stock layout is built in: SPPF on the deepest
map, then a top-down and a bottom-up pass of CSP blocks. Written from descriptions: Redmon &
Farhadi, "YOLOv3", arXiv:1804.02767 (anchors, objectness), Bochkovskiy et al., "YOLOv4",
arXiv:2004.10934 (CIoU, mosaic, cells beside the center), Wang et al., "CSPNet", arXiv:1911.11929
(C3), Liu et al., "PANet", arXiv:1803.01534 (the two passes), He et al., "Spatial pyramid pooling",
arXiv:1406.4729 (SPPF: the same pools, one after the other), and the public formulas of the later
versions:

    center = (2 sigmoid(t) - 0.5 + cell) * stride        size = (2 sigmoid(t))^2 * anchor        both in input pixels

An anchor learns an object if neither width nor height differs by more than a factor of 4. Beside
the cell of its center the horizontally and the vertically nearest cell learn it too; the formula
reaches that far.

Any input size works. Cell i stands at (i + 0.5) * stride whether a backbone rounds its sizes up
(padded strided convolutions sample every stride-th position from the first) or down (patches drop
pixels at the far edge), so the nominal stride is right and the ratio of the sizes is not. For the
same reason maps that differ by rounding are joined by cutting or repeating the last row or column,
never by stretching.

Differs from the family: the target of the objectness is CIoU; batch norms and the initial weights
are torch's; no weights per image; a fit of anchors is k-means by IoU (arXiv:1612.08242) without
evolution.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, complete_box_iou_loss

from ..backbones import Backbone, Option, Recognized, State
from ..backbones._recognition import class_count, form_by_norms, has, output_count, sizes
from ..boxes import Limits, select_within
from ..errors import ModelError, UsageError
from ..layers import ConvBN
from ..predictions import Detections
from ..preprocess import Mode
from ..processes import of_all
from . import Outputs
from ._coco import CocoMetric
from ._decoded import BOXES, CHOSEN, TO_PICTURE, Decoded, suppression
from ._defaults import convert as convert
from ._layout import ANY, STRIDES, Layout, Row, parse, read

TARGET, AUGMENT, OUTPUT_STRIDE = "boxes", "mosaic", 32
MODE: Mode = "letterbox"
SIZE = (640, 640)
CLASSES = 80
OPTIONS: tuple[str, ...] = ("depth", "width", "layout")
SETTINGS: tuple[str, ...] = ()
CLASS_MAJOR: tuple[str, ...] = ()
limit = None
PREDICTION = Detections
RATIO = 4.0  # an anchor learns objects up to so many times larger or smaller
# weight of the objectness at strides 8, 16, 32: cells are many and objects few at stride 8
BALANCE = 4.0, 1.0, 0.4
LIMITS = Limits(count=100, iou=0.65, score=0.001)
DECODE = (
    "predictions (N, A, 5 + classes): center x, center y, width and height in pixels of the input, "
    "then probabilities of an object and of each class. The score of a class is their product; "
    "scores above limits.score, of them the best 1000 (10 times limits.max_objects, if that is "
    "more), enter a non-maximum suppression within each class at an IoU of limits.nms; the best "
    "limits.max_objects are kept. Classes that limits.only does not name are left out before."
)
EMBEDDED = BOXES

STOCK = """
nc: 80
depth_multiple: 0.33
width_multiple: 0.5
anchors: [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
backbone:
  - [-1, 1, backbone, [false]]
  - [-1, 1, SPPF, [1024, 5]]  # 5
head:
  - [-1, 1, Conv, [512, 1, 1]]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 3], 1, Concat, [1]]
  - [-1, 3, C3, [512, false]]
  - [-1, 1, Conv, [256, 1, 1]]  # 10
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 3, C3, [256, false]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, 10], 1, Concat, [1]]  # 15
  - [-1, 3, C3, [512, false]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [[-1, 6], 1, Concat, [1]]
  - [-1, 3, C3, [1024, false]]
  - [[13, 16, 19], 1, Detect, [nc, anchors]]
"""


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU; (N, C, h, w) -> (N, outputs, ceil(h / stride), ceil(w / stride)) for odd sizes."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1):
        super().__init__(ConvBN(inputs, outputs, size, stride), nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, channels: int, shortcut: bool):
        super().__init__()
        self.convs = nn.Sequential(Conv(channels, channels, 1), Conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x) if self.shortcut else self.convs(x)


class C3(nn.Module):
    """CSP block of three 1x1 convolutions: half of the channels go through `number` bottlenecks, half past them."""

    def __init__(self, inputs: int, outputs: int, number: int, shortcut: bool):
        super().__init__()
        half = outputs // 2
        blocks = [Bottleneck(half, shortcut) for _ in range(number)]
        self.through = nn.Sequential(Conv(inputs, half), *blocks)
        self.past = Conv(inputs, half)
        self.join = Conv(2 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.through(x), self.past(x)], 1))


class SPPF(nn.Module):
    """Max pools of growing reach side by side: x, pool(x), pool(pool(x)), pool(pool(pool(x)))."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.reduce = Conv(inputs, inputs // 2)
        self.pool = nn.MaxPool2d(size, stride=1, padding=size // 2)
        self.join = Conv(inputs // 2 * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.join(torch.cat(maps, 1))


def fit_size(x: Tensor, height: int, width: int) -> Tensor:
    """(N, C, h, w) -> (N, C, height, width): cut at the bottom and right, or the last row and column repeated."""
    below, right = height - x.shape[2], width - x.shape[3]
    if below < 0 or right < 0:
        x = x[:, :, :height, :width]
    if below > 0 or right > 0:
        x = F.pad(x, (0, max(right, 0), 0, max(below, 0)), mode="replicate")
    return x


class Concat(nn.Module):
    """Maps of one stride side by side, at the size of map `main`."""

    def __init__(self, main: int):
        super().__init__()
        self.main = main

    def forward(self, maps: list[Tensor]) -> Tensor:
        height, width = maps[self.main].shape[2:]
        return torch.cat([fit_size(x, height, width) for x in maps], 1)


class Detect(nn.Module):
    """A 1x1 convolution for each level. Of each cell and anchor: box t (4), objectness, classes.

    Training: {"level0": (N, anchors, h, w, 5 + classes), ...}, raw. Eval: {"predictions": (N, sum
    anchors * h * w, 5 + classes)}: center x, center y, width and height in input pixels, then
    probabilities.
    """

    anchors: Tensor  # (levels, anchors, 2): width, height in input pixels

    def __init__(
        self, channels: list[int], strides: list[int], anchors: list[list[float]], classes: int
    ):
        super().__init__()
        self.strides, self.classes = strides, classes
        self.register_buffer("anchors", torch.tensor(anchors).view(len(anchors), -1, 2))
        count = self.anchors.shape[1]
        self.convs = nn.ModuleList([nn.Conv2d(c, count * (5 + classes), 1) for c in channels])
        for conv, stride in zip(self.convs, strides, strict=True):
            bias = torch.zeros(count, 5 + classes)
            # 8 objects in 640x640 pixels
            bias[:, 4] = torch.logit(torch.tensor(min(8 / (640 / stride) ** 2, 0.5)))
            bias[:, 5:] = math.log(0.6 / (classes - 0.6))  # of a found object: logit(0.6 / classes)
            conv.bias = nn.Parameter(bias.flatten())

    def boxes(self, raw: Tensor, level: int, cells: Tensor, anchors: Tensor) -> Tensor:
        """Raw (..., 4), x and y of the cell (..., 2), width and height of the anchor (..., 2) -> cx, cy, w, h."""
        t = 2 * raw.sigmoid()
        return torch.cat(
            [(t[..., :2] - 0.5 + cells) * self.strides[level], t[..., 2:] ** 2 * anchors], -1
        )

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        raw = []
        for conv, x in zip(self.convs, maps, strict=True):
            n, _, h, w = x.shape
            # (N, A, h, w, 5 + classes)
            raw.append(conv(x).view(n, -1, 5 + self.classes, h, w).permute(0, 1, 3, 4, 2))
        if self.training:
            return {f"level{i}": x for i, x in enumerate(raw)}
        return {
            "predictions": torch.cat([self.predict(x.float(), i) for i, x in enumerate(raw)], 1)
        }

    def predict(self, raw: Tensor, level: int) -> Tensor:
        """Raw (N, A, h, w, 5 + classes) -> (N, A * h * w, 5 + classes)."""
        n, _, h, w, _ = raw.shape
        x, y = torch.arange(w, device=raw.device), torch.arange(h, device=raw.device)
        cells = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).to(raw)  # (h, w, 2)
        boxes = self.boxes(raw[..., :4], level, cells, self.anchors[level, :, None, None].to(raw))
        return torch.cat([boxes, raw[..., 4:].sigmoid()], -1).reshape(n, -1, 5 + self.classes)


def _channels(count: int, multiple: float) -> int:
    return math.ceil(count * multiple / 8) * 8


@dataclass(frozen=True)
class _Map:
    """What is known of a map of features before any is computed."""

    channels: int
    stride: int
    # How often its size was computed from another map's: where a side is odd, sizes drift apart
    # by rounding, and the map nearest to the backbone is right.
    resized: int = 0


class Network(nn.Module):
    """The rows of a layout on a backbone's features; see `Detect` for what comes out."""

    def __init__(self, backbone: Backbone, classes: int, layout: Layout):
        super().__init__()
        # map -> feature
        self.inputs = {STRIDES.index(s): i for i, s in enumerate(backbone.strides) if s in STRIDES}
        self.plan = [(row.index, row.sources) for row in layout.rows]
        self.rows = nn.ModuleDict()
        maps = {m: _Map(backbone.channels[i], STRIDES[m]) for m, i in self.inputs.items()}
        for row in layout.rows:
            for source in row.sources:
                if source not in maps:
                    row.fail(
                        f"map {source} has stride {STRIDES[source]}; the backbone's strides: "
                        f"{backbone.strides}"
                    )
            sources = [maps[source] for source in row.sources]
            module, maps[row.index] = _module(row, sources, classes, layout)
            self.rows[str(row.index)] = module

    @property
    def detect(self) -> Detect:
        return cast(Detect, self.rows[str(self.plan[-1][0])])

    def forward(
        self, features: list[Tensor], size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        maps: dict[int, Any] = {m: features[i] for m, i in self.inputs.items()}
        for index, sources in self.plan:
            module = self.rows[str(index)]
            taken = [maps[source] for source in sources]
            maps[index] = module(taken if isinstance(module, Concat | Detect) else taken[0])
        return maps[index]


def _module(row: Row, sources: list[_Map], classes: int, layout: Layout) -> tuple[nn.Module, _Map]:
    """The module of a row, and the map that it makes."""
    if row.module == "Concat":
        return _concat(row, sources)
    if row.module == "Detect":
        strides = [source.stride for source in sources]
        if strides != sorted(set(strides)):
            row.fail(f"its maps have strides {strides}; they must rise")
        channels = [source.channels for source in sources]
        return Detect(channels, strides, layout.anchors, classes), _Map(0, strides[0])
    (source,) = sources
    if row.module == "nn.Upsample":
        return _upsample(row, source)
    return _convolutional(row, source, layout)


def _concat(row: Row, sources: list[_Map]) -> tuple[nn.Module, _Map]:
    strides = [source.stride for source in sources]
    if len(set(strides)) > 1:
        row.fail(f"its maps have strides {strides}; they must be equal")
    resized = [source.resized for source in sources]
    nearest = resized.index(min(resized))  # the others get its size
    channels = sum(source.channels for source in sources)
    return Concat(nearest), _Map(channels, strides[0], min(resized))


def _upsample(row: Row, source: _Map) -> tuple[nn.Module, _Map]:
    factor = row.args[0]
    if source.stride % factor:
        row.fail(f"a map of stride {source.stride} cannot be enlarged by {factor}")
    larger = _Map(source.channels, source.stride // factor, source.resized + 1)
    return nn.Upsample(scale_factor=factor, mode="nearest"), larger


def _convolutional(row: Row, source: _Map, layout: Layout) -> tuple[nn.Module, _Map]:
    """The module of a row Conv, C3 or SPPF."""
    outputs = _channels(row.args[0], layout.width)
    same = replace(source, channels=outputs)
    number = max(round(row.number * layout.depth), 1)
    if row.module == "C3":
        return C3(source.channels, outputs, number, row.args[1]), same
    if row.module == "SPPF":
        return SPPF(source.channels, outputs, row.args[1]), same
    convs = [Conv(outputs if i else source.channels, outputs, *row.args[1:]) for i in range(number)]
    strided = row.args[2]
    if strided == 1:
        return nn.Sequential(*convs), same
    smaller = _Map(outputs, source.stride * strided**row.number, source.resized + 1)
    return nn.Sequential(*convs), smaller


def head(
    backbone: Backbone,
    classes: int,
    depth: float | None = None,
    width: float | None = None,
    layout: str = STOCK,
) -> Network:
    """The rows of `layout` (text or file; the stock one if not given) on a backbone.

    `depth` and `width` multiply blocks and channels, in place of the layout's multiples (stock:
    0.33 and 0.5).
    """
    parsed = parse(read(layout))
    multiples = {"depth": depth, "width": width}
    for name, value in multiples.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise UsageError(f"{name} is {value!r}; allowed: a number above 0")
    asked = {name: float(value) for name, value in multiples.items() if value is not None}
    return Network(backbone, classes, Layout(**{**vars(parsed), **asked}))


def from_file(path: str) -> tuple[str, int, dict[str, Option]]:
    """The model that a layout file describes: ("yolo/repvit_m1", 80, {"layout": text}), as name, classes, options."""
    text = read(path)
    layout = parse(text)
    if layout.backbone == ANY:
        raise ModelError(
            f"row 0 of {path} takes any backbone: build yolo/BACKBONE with its text "
            "as the option layout"
        )
    return f"yolo/{layout.backbone}", layout.classes, {"layout": text}


def stored(options: Mapping[str, Option], backbone: str) -> dict[str, Option]:
    """The options with the text of the layout in place of its file; row 0 must name the model's own backbone."""
    if "layout" not in options:
        return dict(options)
    text = read(str(options["layout"]))
    named = parse(text).backbone
    if named not in (ANY, backbone):
        raise ModelError(
            f"row 0 of the layout is {named!r}, but the model is yolo/{backbone}: build "
            f"yolo/{named}, or write {backbone!r} in row 0 (or {ANY!r}, which takes any)"
        )
    return {**options, "layout": text}


# Training ------------------------------------------------------------------------------------------------------------


def assign(
    boxes: Tensor, anchors: Tensor, stride: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors of which cells of one level learn which box.

    boxes (n, 4) cx, cy, w, h and anchors (A, 2) in pixels -> index of the box (m,), of the anchor
    (m,), and the cell's (x, y) (m, 2). A center beyond the last cell (a backbone that rounds down)
    belongs to that cell.
    """
    ratio = boxes[:, None, 2:] / anchors  # (n, A, 2)
    box, anchor = (torch.maximum(ratio, 1 / ratio).amax(2) < RATIO).nonzero().unbind(1)
    limit = boxes.new_tensor([width, height]) - 1
    center = boxes[box, :2] / stride  # (m, 2), in cells
    own = center.floor().clamp(min=boxes.new_zeros(2), max=limit)
    toward = torch.where(center - own < 0.5, -1.0, 1.0)
    beside = [
        own + toward * toward.new_tensor(axis) for axis in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    ]
    cells = torch.cat(beside)
    inside = ((cells >= 0) & (cells <= limit)).all(1)
    return box.repeat(3)[inside], anchor.repeat(3)[inside], cells[inside].long()


def loss(
    head: nn.Module,
    outputs: Outputs,
    targets: Mapping[str, list[Tensor]],
    box_gain: float = 0.05,
    objectness_gain: float = 1.0,
    class_gain: float = 0.5,
) -> dict[str, Tensor]:
    """CIoU of the boxes, and binary cross-entropy of objectness (its target is the CIoU) and classes.

    The gains are for 3 levels, 640x640 pixels and 80 classes, and are scaled from there. An image
    without objects teaches only that there are none.
    """
    detect = cast(Network, head).detect
    labels = torch.cat(list(targets["labels"]))
    # of all images
    boxes = box_convert(torch.cat(list(targets["boxes"])).float(), "xyxy", "cxcywh")
    image = torch.cat([torch.full_like(x, i) for i, x in enumerate(targets["labels"])])
    raw = [x.float() for x in outputs.values()]
    balance = BALANCE if len(raw) == len(BALANCE) else (1.0,) * len(raw)
    zero = raw[0].sum() * 0
    box_loss, object_loss, class_loss = zero, zero, zero
    for level, x in enumerate(raw):
        stride, (height, width) = detect.strides[level], x.shape[2:4]
        anchors = detect.anchors[level].to(boxes)
        which, anchor, cell = assign(boxes, anchors, stride, height, width)
        objectness = x.new_zeros(x.shape[:4])  # contiguous, whatever x is
        of_boxes, of_classes = zero, zero
        if len(which):
            at = (image[which], anchor, cell[:, 1], cell[:, 0])
            learned = x[at]  # (m, 5 + classes)
            shift = cell * stride  # the loss sees boxes relative to the cell: float32 is then fine
            truth = torch.cat([boxes[which, :2] - shift, boxes[which, 2:]], 1)
            guess = detect.boxes(learned[:, :4], level, torch.zeros_like(cell), anchors[anchor])
            # pixels; of 0 / 0 there is no gradient
            guess = torch.cat([guess[:, :2], guess[:, 2:].clamp(min=1e-2)], 1)
            ciou = complete_box_iou_loss(
                *(box_convert(b, "cxcywh", "xyxy") for b in (guess, truth))
            )  # 1 - CIoU, (m,)
            of_boxes = ciou.mean()
            flat = ((at[0] * x.shape[1] + at[1]) * height + at[2]) * width + at[3]
            objectness.view(-1).scatter_reduce_(0, flat, (1 - ciou.detach()).clamp(0, 1), "amax")
            wanted = F.one_hot(labels[which], detect.classes).to(x)
            of_classes = F.binary_cross_entropy_with_logits(learned[:, 5:], wanted)
        box_loss = box_loss + of_all(of_boxes, len(which))
        class_loss = class_loss + of_all(of_classes, len(which))
        of_cells = F.binary_cross_entropy_with_logits(x[..., 4], objectness)
        object_loss = object_loss + balance[level] * of_all(of_cells, len(x))
    area = raw[0].shape[2] * raw[0].shape[3] * detect.strides[0] ** 2  # of the input, in pixels
    levels = 3 / len(raw)
    return {
        "box": box_loss * (box_gain * levels),
        "objectness": object_loss * (objectness_gain * levels * area / 640**2),
        "class": class_loss * (class_gain * levels * detect.classes / 80),
    }


# Anchors -------------------------------------------------------------------------------------------------------------


def anchor_fit(sizes: Tensor, anchors: Tensor) -> Tensor:
    """How well the best anchor (A, 2) fits each size (n, 2): the smaller of its two ratios, 0 to 1; (n,)."""
    ratio = sizes[:, None] / anchors
    return torch.minimum(ratio, 1 / ratio).amin(2).amax(1)


def fit_anchors(sizes: Tensor, count: int, rounds: int = 100) -> Tensor:
    """Widths and heights (n, 2) of boxes, n >= count -> (count, 2) of k-means by IoU, from small to large."""
    by_area = sizes[sizes.prod(1).argsort()]
    anchors = by_area[torch.linspace(0, len(sizes) - 1, count).round().long()]
    for _ in range(rounds):
        # two boxes with one corner in common
        shared = torch.minimum(sizes[:, None], anchors).prod(2)
        nearest = (shared / (sizes.prod(1)[:, None] + anchors.prod(1) - shared)).argmax(1)
        groups = [sizes[nearest == i] for i in range(count)]
        moved = torch.stack(
            [g.mean(0) if len(g) else a for g, a in zip(groups, anchors, strict=True)]
        )
        if torch.equal(moved, anchors):
            break
        anchors = moved
    return anchors[anchors.prod(1).argsort()]


@torch.no_grad()
def prepare(
    head: nn.Module, pictures: Iterable[tuple[tuple[int, int], Tensor]], size: tuple[int, int]
) -> None:
    """Fit the anchors to the boxes of the training data, where that fits better than the anchors there are.

    Better: no fewer boxes have an anchor within a factor of 4, and the mean fit is higher. Boxes
    under 2 pixels are left out; with fewer boxes than anchors the anchors stay.
    """
    old = cast(Network, head).detect.anchors
    sizes = torch.cat(
        [torch.zeros(0, 2), *[(b[:, 2:] - b[:, :2]).float().cpu() for _, b in pictures]]
    )
    sizes = sizes[(sizes >= 2).all(1)]
    count = old.shape[0] * old.shape[1]
    if len(sizes) < count:
        return
    new = fit_anchors(sizes, count)
    before, after = anchor_fit(sizes, old.flatten(0, 1).to(sizes)), anchor_fit(sizes, new)
    if (after > 1 / RATIO).sum() >= (before > 1 / RATIO).sum() and after.mean() > before.mean():
        old.copy_(new.view_as(old))


# Predictions ---------------------------------------------------------------------------------------------------------


def _padded(
    outputs: Outputs, size: tuple[int, int] | None = None, limits: Limits = LIMITS
) -> dict[str, Tensor]:
    """Predictions (N, A, 5 + classes) -> boxes (N, K, 4), scores (N, K), labels (N, K) of K = `limits.count`."""
    kept = []
    for row in outputs["predictions"]:
        boxes, scores = box_convert(row[:, :4], "cxcywh", "xyxy"), row[:, 4:5] * row[:, 5:]
        kept.append(select_within(boxes, scores, limits))
    return dict(
        zip(
            ("boxes", "scores", "labels"),
            (torch.stack(x) for x in zip(*kept, strict=True)),
            strict=True,
        )
    )


def decode(
    outputs: Tensor | Outputs, size: tuple[int, int] | None = None, limits: Limits | None = None
) -> list[Detections]:
    """Outputs, raw or those of `embed`, -> the best boxes of each picture within the limits, in input pixels."""
    if isinstance(outputs, Tensor):
        outputs = {"predictions": outputs}
    limits = limits or LIMITS
    if "scores" in outputs:
        return [chosen.within(limits) for chosen in Detections.of_padded(outputs)]
    return Detections.of_padded(_padded(outputs, size, limits))


def embed(model: nn.Module, limits: Limits | None = None) -> nn.Module:
    """The model with its decode and NMS in the graph: image -> boxes (N, K, 4), scores (N, K), labels (N, K)."""
    return Decoded(model, partial(_padded, limits=limits or LIMITS))


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    """`decode` and `restore` in words and numbers; of a file with its decode inside, what is left to do."""
    if embedded:
        return CHOSEN
    return {
        "boxes": {
            "output": "predictions",
            "columns": [0, 4],
            "coding": "center x, center y, width, height in pixels of the input; anchors and "
                      "strides are in the graph",
            "corners": "center - size / 2, center + size / 2, not clipped before the suppression",
        },
        "scores": {
            "output": "predictions", "activation": "none: "
                                                   "these are probabilities", "objectness": 4, "first_class": 5,
            "classes": "the score of class i of `classes` is column 4 * column 5 + i",
        },
        "nms": suppression(limits or LIMITS),
        "boxes_to_picture": TO_PICTURE,
    }  # fmt: skip


def metric(classes: Sequence[str]) -> CocoMetric:
    return CocoMetric(classes, masks=False)


def recognize(state: State) -> Recognized | None:
    """The head is the `rows` of a layout; the last has `anchors`. No tensor shows the layout."""
    if not has(state, r"head\.rows\.\d+\."):
        return None
    classes = None
    for row, anchors in sizes(state, r"head\.rows\.(\d+)\.anchors", dim=1).items():
        outputs = output_count(state, f"head.rows.{row}.convs.0")
        classes = class_count(outputs, anchors, beside=5)  # a box and an objectness
    return Recognized(form=form_by_norms(state, "head."), classes=classes)
