"""What tasks share around their networks: the decode in the graph, and the input of the authors' networks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..boxes import Limits
from ..preprocess import Preprocess


class Decoded(nn.Module):
    """image (N, C, H, W) -> what `decode(outputs, (H, W))` makes of the model's outputs; in the model's mode."""

    def __init__(
        self, model: nn.Module, decode: Callable[[Any, tuple[int, int]], dict[str, Tensor]]
    ):
        super().__init__()
        self.model, self.decode = model, decode
        self.train(model.training)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.decode(self.model(image), (image.shape[-2], image.shape[-1]))


BOXES = (  # how outputs are to be read that `select` chose, for the writer of an app
    "boxes: x0, y0, x1, y1 in pixels of the input; scores: 0 to 1, best first, 0 where there is no "
    "box; labels: index of the class"
)
TO_PICTURE = {  # from pixels of the input to those of the picture, with the places of "preprocessing"
    "x": "(x - left) / scale_x, clipped to 0 and the picture's width",
    "y": "(y - top) / scale_y, clipped to 0 and the picture's height",
    "dropped": "boxes that then have no width or no height",
}
CHOSEN: dict[str, object] = {  # what a graph puts out that chose its boxes itself
    "boxes": {"output": "boxes", "coding": "x0, y0, x1, y1 in pixels of the input"},
    "scores": {"output": "scores", "values": "0 to 1, best first; 0 where there is no box"},
    "labels": {"output": "labels", "values": "index of the class"},
    "nms": None,
    "boxes_to_picture": TO_PICTURE,
}


def suppression(limits: Limits) -> dict[str, object]:
    """How boxes are chosen, as `boxes.select` does it."""
    return {
        "only": None
        if limits.only is None
        else list(limits.only),  # indices of classes; the others are left out first
        "score_above": limits.score,
        "candidates": limits.candidates,
        "of_candidates": "pairs of a box and a class, those of the largest scores; equal ones by "
        "box, then class",
        "per_class": True,
        "iou": limits.iou,
        "rule": "by falling score: a box is dropped if its intersection over union with one that "
        "was kept, of the same class, is above iou; sides are x1 - x0 and y1 - y0",
        "max_objects": limits.count,
    }


def of_authors(size: tuple[int, int]) -> Preprocess:
    """What ParC-Net's networks with heads expect of an image: OpenCV's order and resizing, the picture squashed."""
    return Preprocess(
        size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        channel_order="BGR",
        antialias=False,
        mode="stretch",
    )
