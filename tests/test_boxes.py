"""Boxes: both ways between a picture and an input, and the selection of detections, in torch and in a graph."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from fleetnet.boxes import best_after_nms, select, take
from fleetnet.geometry import Place
from fleetnet.predictions import Detections
from fleetnet.runtimes import Request, onnx


def random_boxes(
    count: int, classes: int, seed: int = 0, start: float = -60.0
) -> tuple[Tensor, Tensor]:
    """Boxes of 1 to 120 pixels that overlap, some outside of the picture; scores that are all different."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 300 + start
    boxes = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 119], 1)
    scores = (torch.randperm(count * classes, generator=generator) + 1).view(count, classes) / (
        count * classes + 1
    )
    return boxes, scores


def by_hand(
    boxes: Tensor, scores: Tensor, iou: float, threshold: float, candidates: int
) -> list[tuple[int, int]]:
    """(box, class) of what greedy NMS within each class keeps, best first, one after another in Python."""
    order = scores.flatten().argsort(descending=True, stable=True)[:candidates].tolist()
    overlap, kept = box_iou(boxes.double(), boxes.double()), []
    for i in order:
        box, label = divmod(i, scores.shape[1])
        if scores[box, label] > threshold and all(
            overlap[box, b] <= iou for b, c in kept if c == label
        ):
            kept.append((box, label))
    return kept


@pytest.mark.parametrize(
    ("count", "classes", "iou", "threshold", "kept", "candidates"),
    [
        (300, 5, 0.5, 0.3, 100, 1000),
        (200, 80, 0.45, 0.001, 50, 400),
        (150, 1, 0.7, 0.9, 100, 1000),
        (5, 2, 0.5, 0, 20, 9),
    ],
)
@pytest.mark.parametrize("start", [-60.0, -500.0, 4000.0])
def test_select_is_greedy_nms_within_each_class(
    count, classes, iou, threshold, kept, candidates, start
):
    boxes, scores = random_boxes(count, classes, start=start)
    found, best, labels = select(
        boxes, scores, iou=iou, threshold=threshold, count=kept, candidates=candidates
    )
    assert [value.shape for value in (found, best, labels)] == [(kept, 4), (kept,), (kept,)]
    assert labels.dtype == torch.int64
    expected = by_hand(boxes, scores, iou, threshold, candidates)[:kept]
    index, label = torch.tensor(expected).unbind(1)
    n = len(expected)
    assert torch.equal(found[:n], boxes[index])
    assert torch.equal(best[:n], scores[index, label])
    assert torch.equal(labels[:n], label)
    assert not any(value[n:].any() for value in (found, best, labels))  # padding


def test_select_is_torchvisions_batched_nms():
    boxes, scores = random_boxes(1000, 3, seed=1)
    labels = scores.argmax(1)
    keep = batched_nms(boxes, scores.amax(1), labels, 0.5)
    single = torch.where(nn.functional.one_hot(labels, 3).bool(), scores, 0)
    found, best, chosen = select(boxes, single, iou=0.5, threshold=0, count=len(keep))
    assert torch.equal(found, boxes[keep])
    assert torch.equal(best, scores.amax(1)[keep])
    assert torch.equal(chosen, labels[keep])


def test_of_equal_scores_the_first_box_is_kept():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.5], [50, 50, 60, 60], [0, 0, 9.5, 10]])
    scores = torch.ones(4, 1)
    found, best, _ = select(boxes, scores, iou=0.5, threshold=0.5, count=3)
    assert found.tolist() == [boxes[0].tolist(), boxes[2].tolist(), [0, 0, 0, 0]]
    assert best.tolist() == [1, 1, 0]


def test_one_box_may_be_several_classes_and_nothing_may_be_found():
    boxes = torch.tensor([[5.0, 5, 20, 30]])
    _, best, labels = select(
        boxes, torch.tensor([[0.2, 0.9, 0.5]]), iou=0.5, threshold=0.3, count=4
    )
    assert best.tolist() == pytest.approx([0.9, 0.5, 0, 0])
    assert labels.tolist() == [1, 2, 0, 0]
    for number in (1, 0):
        nothing = select(
            boxes[:number], torch.full((number, 3), 0.3), iou=0.5, threshold=0.5, count=4
        )
        assert not any(value.any() for value in nothing)


def test_nms_is_within_groups_and_pads():
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 0, 0]]
    )
    scores, groups = torch.tensor([0.5, 0.9, 0.4, 0.7, -1]), torch.tensor([0, 0, 2, 0, 1])
    index = best_after_nms(boxes, scores, groups, 3, 0.5, 6)
    assert index.tolist() == [1, 3, 2, 4, 5, 5]
    assert take(scores, index).tolist() == pytest.approx([0.9, 0.7, 0.4, -1, 0, 0])
    assert take(boxes, index)[[1, 4]].tolist() == [[20, 0, 30, 10], [0, 0, 0, 0]]
    assert take(scores >= 0, index).tolist() == [True] * 3 + [False] * 3


class Select(nn.Module):
    """Boxes (1, A, 4) and their scores (1, A, classes) as one "image", since a file has one input."""

    def __init__(self, **settings: float):
        super().__init__()
        self.settings = settings

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return select(image[0, :, :4], image[0, :, 4:], **self.settings)


@pytest.mark.parametrize(
    ("count", "classes", "settings"),
    [
        (400, 20, {"iou": 0.5, "threshold": 0.01, "count": 100}),  # full
        (150, 3, {"iou": 0.6, "threshold": 0.9, "count": 100}),  # padded
        (3, 1, {"iou": 0.5, "threshold": 0.5, "count": 10}),  # fewer candidates than places
    ],
)
def test_the_graph_selects_the_same(count, classes, settings, tmp_path: Path):
    def image(seed: int) -> Tensor:
        return torch.cat(random_boxes(count, classes, seed), 1)[None]

    model = Select(**settings).eval()
    onnx.export(
        Request(model, image(0), tmp_path / "select.onnx", outputs=("boxes", "scores", "labels"))
    )
    run = onnx.load(tmp_path / "select.onnx")
    tied, nothing = image(3), image(4)
    if count * classes <= 1000:  # else which of the equal ones are candidates is anyone's choice
        tied[..., 4:] = (tied[..., 4:] * 5).round() / 5
    nothing[..., 4:] = 0
    numbers = []
    for case in (image(1), image(2), tied, nothing):
        expected, given = model(case), run(case.numpy())
        for one, other in zip(expected, given, strict=True):
            assert torch.equal(one, torch.from_numpy(other))
        numbers.append(int((expected[1] > 0).sum()))
    assert numbers[0] > 0
    assert numbers[-1] == 0


def test_unpad_takes_the_padding_off():
    boxes, scores = torch.rand(2, 3, 4), torch.tensor([[0.9, 0.5, 0], [0, 0, 0]])
    labels, masks = torch.tensor([[4, 0, 0], [0, 0, 0]]), torch.rand(2, 3, 28, 28)
    padded = {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}
    one, none = Detections.of_padded(padded)
    assert torch.equal(one.boxes, boxes[0, :2])
    assert torch.equal(one.box_masks, masks[0, :2])
    assert one.labels.tolist() == [4, 0]
    values = none.boxes, none.scores, none.labels, none.box_masks
    assert [tuple(value.shape) for value in values] == [(0, 4), (0,), (0,), (0, 28, 28)]


@pytest.mark.parametrize(
    "place", [Place(100, 200), Place(375, 500, 0.5, 0.25, 12, 7), Place(50, 40, 3, 3.5, -20, -8)]
)
def test_into_the_input_and_back(place):
    # (box, corner, x and y)
    corners = torch.rand(20, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
    boxes = corners.flatten(1) * torch.tensor([place.width, place.height] * 2)
    there = place.into(boxes)
    x, y = boxes[3, 0].item(), boxes[3, 1].item()
    assert there[3, :2].tolist() == pytest.approx(
        [x * place.scale_x + place.left, y * place.scale_y + place.top], rel=1e-5, abs=1e-4
    )
    torch.testing.assert_close(place.back(there), boxes, atol=1e-3, rtol=0)
    beyond = boxes + torch.tensor([-600.0, -600, 600, 600])
    torch.testing.assert_close(
        place.back(place.into(beyond), clip=False), beyond, atol=1e-3, rtol=0
    )
    assert place.back(place.into(beyond)).tolist() == [[0, 0, place.width, place.height]] * 20


def test_restore_clips_and_drops_what_lies_outside():
    place = Place(100, 100, 0.5, 0.5, 10, 0)  # rows 0 to 10 of the input are padding
    boxes = torch.tensor([[10.0, 20, 30, 40], [0, 0, 20, 9], [40, 30, 90, 50]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 3])
    found = Detections(boxes, scores, labels).restore(place)
    assert found.boxes.tolist() == [[20, 20, 60, 60], [80, 40, 100, 80]]
    assert found.labels.tolist() == [1, 3]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
