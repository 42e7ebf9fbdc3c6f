"""Every head on every kind of backbone: it learns, collapses to the same, and exports to a file that finds the same.

Sizes are a square and 3:2, neither a multiple of 32, since backbones round differently.
"""

from pathlib import Path

import pytest
import torch
from zoo import image, randomize

import fleetnet
from fleetnet.data import shapes
from fleetnet.errors import ExportError
from fleetnet.find import find
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import difference, reparameterize
from fleetnet.runtimes import Request, onnx
from fleetnet.tasks import Model, build, named

BACKBONES = (
    "parcnet_xs", "fasternet_t0", "repvit_m0_9", "mobileone_s0", "parc_mobilenetv2", "timm/mobilenetv3_small_100",
)  # fmt: skip
OPTIONS = {
    "ssd": {},
    "yolo": {"width": 0.25},
    "maskrcnn": {"channels": 32, "hidden": 64, "samples": 32, "proposals": 60, "anchor": 16},
    "deeplabv3": {"channels": 32, "auxiliary": True},
}
TABLE = [f"{head}/{backbone}" for head in OPTIONS for backbone in BACKBONES]
SQUARE, WIDE = (72, 72), (72, 108)


def made(name: str, classes: int = 3) -> Model:
    torch.manual_seed(0)
    return build(name, classes, options=OPTIONS[name.partition("/")[0]])


def annotation(size: tuple[int, int], some: bool) -> dict:
    """Targets of two images: the first with three objects, if `some`, the second with none."""
    boxes = torch.tensor([[4.0, 6, 30, 44], [40, 20, 70, 60], [10, 10, 22, 26]])[: 3 if some else 0]
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    semantic = torch.full((2, *size), 255)
    for i, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        masks[i, y0:y1, x0:x1] = 1
        semantic[0, y0:y1, x0:x1] = i
    labels = torch.tensor([0, 1, 2])[: len(boxes)]
    return {
        "boxes": [boxes, boxes[:0]], "labels": [labels, labels[:0]], "masks": [masks, masks[:0]], "semantic": semantic,
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_step_of_training(name: str):
    model, task = made(name).train(), find("tasks", name.partition("/")[0])
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for some, size in ((True, WIDE), (False, SQUARE)):
        optimizer.zero_grad()
        losses = task.loss(model.head, model(image(*size)), annotation(size, some))
        assert all(value.isfinite() for value in losses.values()), losses
        sum(losses.values()).backward()
        without = [
            key
            for key, p in model.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()
        ]
        assert not without
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_collapses_to_the_same(name: str):
    model = randomize(made(name), seed=0).double()
    pictures = image(*WIDE, batch=1, dtype=torch.float64)
    deploy = reparameterize(model, pictures)
    with torch.no_grad():
        ours, theirs = named(model(pictures)), named(deploy(pictures))
    assert ours.keys() == theirs.keys()
    assert difference(list(ours.values()), list(theirs.values()))[1] < 1e-7
    norms = [key for key, m in deploy.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(key.startswith("backbone.") and "timm" in name for key in norms), norms


def calibrate(model: Model, pictures: torch.Tensor) -> None:
    """Give batch norms the statistics of pictures, so that deep features differ from place to place.

    With random ones they hardly do: boxes of neighbors are the same but for their place, their
    scores within 1e-6, and rounding decides which of them the NMS keeps. A part stays random:
    random convolutions between exact statistics let rounding grow from layer to layer, as those of
    a trained network do not.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.85  # share of the pictures' statistics
        norm.train()
    model(pictures)
    model.eval()


def spread(model: Model, layer: torch.nn.Module, pictures: torch.Tensor, which: slice) -> None:
    """Scale a layer so that its channels `which` vary over pictures as those of a trained network do."""
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(pictures)
    hook.remove()
    # (channels, places)
    found = torch.cat([o.transpose(0, 1).flatten(1) if o.ndim == 4 else o.T for o in outputs], 1)
    mean, factor = found.mean(1)[which], 1 / found.std(1)[which]
    layer.weight[which] *= factor.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias[which] = (layer.bias[which] - mean) * factor


@torch.no_grad()
def ready(name: str, size: tuple[int, int], embedded: bool) -> Model:
    """With random weights, for export, but with real anchors and, where only classes of pixels are put out, with
    about as many pixels of each.
    """
    model = made(name)
    anchors = {
        key: value.clone() for key, value in model.named_buffers() if key.endswith("anchors")
    }
    randomize(model, seed=1).load_state_dict(anchors, strict=False)
    # of nearly equal scores rounding decides which the NMS keeps
    if name.startswith(("yolo", "maskrcnn")):
        head, preprocess = model.head, Preprocess(size, mode=find("tasks", model.task).MODE)
        seen = torch.cat(
            [image(*size), torch.stack([preprocess(shapes.draw(i)) for i in range(2, 6)])]
        )
        calibrate(model, seen)
        layers = [*head.detect.convs] if name.startswith("yolo") else [
            head.rpn.head.cls_logits, head.roi_heads.box_predictor.cls_score
        ]  # fmt: skip
        for layer in layers:  # of yolo the objectness: 5th of 8 numbers of an anchor
            spread(
                model, layer, seen, slice(4, None, 8) if name.startswith("yolo") else slice(None)
            )
    if name.startswith("deeplabv3") and embedded:
        model.head.classifier.bias -= model(image(*size))["logits"].mean((0, 2, 3))
    return model


# Raw and decoded take the same way through the backbone and the head, so that each pair is exported
# in one of the two forms, as on a chessboard: each head in both with three backbones, each backbone
# in both with two heads.
EXPORTED = [
    (f"{head}/{backbone}", bool((row + column) % 2))
    for row, head in enumerate(OPTIONS)
    for column, backbone in enumerate(BACKBONES)
]


@pytest.mark.parametrize(
    ("name", "embedded"),
    EXPORTED,
    ids=[f"{name}-{'decoded' if embedded else 'raw'}" for name, embedded in EXPORTED],
)
def test_exported_files_find_the_same(name: str, embedded: bool, tmp_path: Path):
    """A square with raw outputs, 3:2 with the decode in the graph: `export` compares what is found, and raises."""
    size = WIDE if embedded else SQUARE
    model, pictures = ready(name, size, embedded), [shapes.draw(i) for i in range(2)]
    done = fleetnet.export(
        model, "onnx", tmp_path / "m.onnx", size=size, embed_decode=embedded, pictures=pictures
    )
    found, agreement = fleetnet.load(done.path).predictions(pictures), done.parity.agreement
    if name.startswith("deeplabv3"):
        assert agreement.pixels >= 0.999
        assert not embedded or all(len(one.labels.unique()) > 1 for one in found)
    else:
        assert agreement.boxes > 20  # on four random images and the two pictures
        assert agreement.paired >= 0.98 * agreement.boxes
        assert agreement.score < 1e-4
        assert all(len(one) for one in found)


def test_a_file_that_finds_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The boxes in the written file are a hundredth too large."""
    write, model = onnx.export, ready("yolo/fasternet_t0", SQUARE, embedded=True)

    def wrong(request: Request) -> None:
        anchors = request.model.get_buffer("model.head.rows.20.anchors")
        right = anchors.clone()
        anchors *= 1.01
        write(request)
        anchors.copy_(right)

    monkeypatch.setattr(onnx, "export", wrong)
    with pytest.raises(
        ExportError, match=r"not written.*boxes without their like.*is right in torch"
    ):
        fleetnet.export(model, "onnx", tmp_path / "m.onnx", size=SQUARE, embed_decode=True)
    assert not list(tmp_path.iterdir())
