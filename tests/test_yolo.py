"""The YOLO head: layout files, assignment, loss, anchors, and boxes in the right place at any input size."""

import math

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from fleetnet.errors import ModelError, UsageError
from fleetnet.reparam import reparameterize
from fleetnet.tasks import build, yolo

# The layout of the RepViT article: the last Concat takes map 5 where the stock layout takes map 6.
ARTICLE = (
    yolo.STOCK.replace("1, backbone,", "1, repvit_m1,")
    .replace("width_multiple: 0.5", "width_multiple: 0.25")
    .replace("[-1, 6]", "[-1, 5]")
)
SMALL = {"width": 0.25, "depth": 0.33}
BOXES = torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 20.0, 62.0, 60.0], [50.0, 4.0, 60.0, 16.0]])
TARGETS = {
    "objects": [(BOXES, torch.tensor([0, 2, 1])), (BOXES[:1], torch.tensor([1]))],
    "mixed": [
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
        (BOXES, torch.tensor([0, 2, 1])),
    ],
    "empty": [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))] * 2,
}


def targets(kind: str) -> dict[str, list[torch.Tensor]]:
    boxes, labels = zip(*TARGETS[kind], strict=True)
    return {"boxes": list(boxes), "labels": list(labels)}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return build("yolo/fasternet_t0", 3, options=SMALL)


@pytest.fixture(scope="module")
def article(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    file = tmp_path_factory.mktemp("layout") / "article.yaml"
    file.write_text(ARTICLE)
    return build(str(file)).eval()


# Layout files


def test_article_has_its_parameters_and_predictions(article):
    assert (article.name, article.classes) == ("yolo/repvit_m1", 80)
    assert sum(p.numel() for p in article.backbone.parameters()) == 4_713_712
    assert sum(p.numel() for p in article.parameters()) == 5_853_741
    with torch.no_grad():
        predictions = article(torch.zeros(1, 3, 640, 640))["predictions"]
    assert predictions.shape == (1, 25_200, 85)
    assert 0 <= predictions[..., 4:].min() <= predictions[..., 4:].max() <= 1


@pytest.mark.parametrize("size", [(648, 648), (384, 640), (1000, 1000)])
def test_article_takes_any_size(article, size):
    with torch.no_grad():
        predictions = article(torch.zeros(1, 3, *size))["predictions"]
    cells = sum(math.ceil(size[0] / stride) * math.ceil(size[1] / stride) for stride in (8, 16, 32))
    assert predictions.shape == (1, 3 * cells, 85)
    assert predictions.isfinite().all()


@pytest.mark.parametrize(("name", "first"), [("parcnet_xs", 0), ("fasternet_t0", 1)])
def test_maps_of_the_backbone_stand_at_their_strides(name, first):
    head = build(f"yolo/{name}", 3, options=SMALL).head
    assert head.inputs == {number: number - first for number in range(first, 5)}


def test_model_needs_no_file_once_built(article, tmp_path):
    again = build(article.name, article.classes, options=article.options)
    again.load_state_dict(article.state_dict())
    assert article.options == {"layout": ARTICLE}


def test_file_with_another_backbone():
    model = build(
        "yolo/fasternet_t0", 3, options={"layout": ARTICLE.replace("repvit_m1", "fasternet_t0")}
    )
    stock = build(
        "yolo/fasternet_t0", 3, options={"layout": ARTICLE.replace("repvit_m1", "backbone")}
    )
    assert [p.shape for p in model.parameters()] == [p.shape for p in stock.parameters()]
    # of the features; SPPF takes the last: 1x1 to half, then from 4 halves to 256
    channels = [40, 80, 160, 320]
    assert model.head.rows["5"].reduce[0].conv.weight.shape == (channels[3] // 2, channels[3], 1, 1)
    assert model.head.rows["9"].past[0].conv.weight.shape[1] == channels[2] + 128


def test_layout_may_be_a_path_and_multiples_may_be_given(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(yolo.STOCK)
    model = build(
        "yolo/fasternet_t0", 3, options={"layout": str(file), "width": 0.26, "depth": 1.0}
    )
    assert model.options["layout"] == yolo.STOCK
    # 512 * 0.26 = 133.1, up to a multiple of 8
    assert model.head.rows["6"][0][0].conv.out_channels == 136
    assert len(model.head.rows["9"].through) == 1 + 3
    small = build("yolo/fasternet_t0", 3, options=SMALL)
    assert len(small.head.rows["9"].through) == 1 + 1  # round(3 * 0.33)


ROWS = [  # what is replaced in the stock layout, by what, and what the error says
    (
        "nn.Upsample, [None, 2, nearest]",
        "Focus, [64, 3]",
        r"row 3 \(map 7\).*'Focus'.*unknown.*Allowed: Conv, C3",
    ),
    ("SPPF, [1024, 5]", "fasternet_t0, [false]", r"row 1 \(map 5\).*a backbone only in row 0"),
    ("1, backbone, [false]", "1, repvit_m7, [false]", r"row 0 .*repvit_m7.*did you mean"),
    ("1, backbone, [false]", "1, backbone, [true]", r"row 0 .*weights"),
    ("1, backbone, [false]", "1, Conv, [false]", r"row 0 .*no backbone 'Conv'"),
    (
        "[[-1, 10], 1, Concat",
        "[[-1, 15], 1, Concat",
        r"row 11 \(map 15\).*from is \[-1, 15\].*0 to 14",
    ),
    ("[[-1, 10], 1, Concat", "[[-1, x], 1, Concat", r"row 11 \(map 15\).*from is"),
    (
        "[[-1, 2], 1, Concat",
        "[[-1, 3], 1, Concat",
        r"row 8 \(map 12\).*strides \[8, 16\]; they must be equal",
    ),
    (
        "[[-1, 2], 1, Concat",
        "[[-1, 0], 1, Concat",
        r"row 8 \(map 12\).*map 0 has stride 2; the backbone's strides",
    ),
    ("  - [[13, 16, 19], 1, Detect, [nc, anchors]]\n", "", r"no other row takes|last row must be"),
    (
        "Detect, [nc, anchors]]",
        "Detect, [nc, anchors]]\n  - [-1, 1, Conv, [8, 1, 1]]",
        r"Detect must be the last row",
    ),
    (
        "[13, 16, 19], 1, Detect",
        "[13, 16], 1, Detect",
        r"row 14 \(map 18\)|no other row takes|anchors for 3",
    ),
    (
        "[13, 16, 19], 1, Detect",
        "[19, 16, 13], 1, Detect",
        r"strides \[32, 16, 8\]; they must rise",
    ),
    ("[nc, anchors]", "[nc, other]", r"Detect.*allowed: \[nc, anchors\]"),
    (
        "[-1, 1, Conv, [512, 1, 1]]",
        "[-1, 1, Conv, [512, 1, 1, 0, 2]]",
        r"row 2 \(map 6\).*5 arguments",
    ),
    (
        "[-1, 1, Conv, [512, 1, 1]]",
        "[-1, 1, Conv, [many, 1, 1]]",
        r"row 2 \(map 6\).*argument 0 is 'many'",
    ),
    ("[-1, 1, Conv, [512, 1, 1]]", "[-1, 0, Conv, [512, 1, 1]]", r"row 2 \(map 6\).*number is 0"),
    (
        "[-1, 1, Conv, [512, 1, 1]]",
        "[-1, 1, Conv]",
        r"row 2 \(map 6\).*allowed: \[from, number, module, arguments\]",
    ),
    ("[-1, 1, Conv, [512, 1, 1]]", "Conv", r"row 2 \(map 6\) 'Conv'|row 2 \(map 6\) Conv"),
    (
        "[-1, 1, Conv, [512, 1, 1]]",
        "[[-1, 4], 1, Conv, [512, 1, 1]]",
        r"row 2 \(map 6\).*Conv takes one map",
    ),
    ("[-1, 1, Conv, [512, 1, 1]]", "[-1, 1, Conv, [512, 2, 1]]", r"row 2 \(map 6\).*odd"),
    ("SPPF, [1024, 5]", "SPPF, [1024, 4]", r"row 1 \(map 5\).*odd"),
    ("C3, [256, false]", "C3, [256, 1]", r"row 9 \(map 13\).*shortcut is 1"),
    ("2, nearest", "2, bilinear", r"row 3 \(map 7\).*nearest"),
    ("nc: 80", "nc: many", r"nc is 'many'"),
    ("nc: 80", "nc: 80\nch: 3", r"unknown key 'ch'"),
    ("nc: 80", "", r"lacks the key 'nc'"),
    ("width_multiple: 0.5", "width_multiple: 0", r"width_multiple is 0"),
    ("[10, 13, 16, 30, 33, 23]", "[10, 13, 16]", r"anchors is"),
    ("[10, 13, 16, 30, 33, 23]", "[10, 13, 16, 30]", r"anchors is"),
    ("backbone:\n", "backbone: [\n", r"not readable as YAML.*line"),
]


@pytest.mark.parametrize(("old", "new", "message"), ROWS, ids=[f"{i}" for i in range(len(ROWS))])
def test_error_names_the_row(old, new, message):
    assert yolo.STOCK.count(old) >= 1
    with pytest.raises(ModelError, match=f"(?s){message}"):
        build("yolo/fasternet_t0", 3, options={"layout": yolo.STOCK.replace(old, new, 1)})


def test_errors_of_the_whole_layout(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read the layout file 'missing.yaml'"):
        build("missing.yaml")
    with pytest.raises(ModelError, match="cannot read"):
        build("yolo/fasternet_t0", 3, options={"layout": "missing.txt"})
    with pytest.raises(ModelError, match="is a list"):
        build("yolo/fasternet_t0", 3, options={"layout": "- 1\n- 2\n"})
    with pytest.raises(
        ModelError, match=r"row 0 of the layout is 'repvit_m1', but the model is yolo/fasternet_t0"
    ):
        build("yolo/fasternet_t0", 3, options={"layout": ARTICLE})
    (tmp_path / "any.yml").write_text(yolo.STOCK)
    with pytest.raises(ModelError, match="takes any backbone"):
        build(str(tmp_path / "any.yml"))
    for width in (0, float("nan"), "half"):
        with pytest.raises(UsageError, match=f"width is {width!r}"):
            build("yolo/fasternet_t0", 3, options={"width": width})


# Sizes


@pytest.mark.parametrize("name", ["fasternet_t0", "repvit_m0_6"])  # rounds sizes down; up
@pytest.mark.parametrize("size", [(64, 64), (100, 100), (96, 64)])
def test_box_comes_back(name, size):
    """A box written by hand into the raw map where it belongs is the only one decoded, within 0.001 pixels."""
    model = build(f"yolo/{name}", 3, options=SMALL)
    with torch.no_grad():
        raw = model(torch.randn(2, 3, *size))
    detect = model.head.detect
    box = torch.tensor([17.0, 21.0, 55.0, 60.0])
    cx, cy, w, h = 36.0, 40.5, 38.0, 39.0
    for level, stride in enumerate((8, 16, 32)):
        filled = [torch.full_like(x, -20.0) for x in raw.values()]
        anchor = detect.anchors[level, 0]
        x, y = int(cx // stride), int(cy // stride)
        t = torch.tensor([(cx / stride - x + 0.5) / 2, (cy / stride - y + 0.5) / 2])
        t = torch.cat([t, (torch.tensor([w, h]) / anchor).sqrt() / 2])
        filled[level][1, 0, y, x] = torch.cat([t.logit(), torch.tensor([10.0, -20.0, -20.0, 10.0])])
        predictions = torch.cat([detect.predict(x, i) for i, x in enumerate(filled)], 1)
        none, found = yolo.decode({"predictions": predictions}, size)
        assert len(none.boxes) == 0
        assert found.labels.tolist() == [2]
        torch.testing.assert_close(found.boxes[0], box, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "name", ["fasternet_t0", "mobileone_s0"]
)  # 1500 pixels: 187, 93, 46 cells; 188, 94, 47
def test_cells_stand_at_the_nominal_stride(name):
    """A picture moved by 256 pixels moves what the network says by 256 / stride cells, and it says so where it is."""
    torch.manual_seed(0)
    model = build(f"yolo/{name}", 1, options=SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.01, 0.1)  # so that little is lost on the way
    for module in model.modules():
        # raw maps, though with the statistics of the batch norms
        module.training = module is model.head.detect
    image = torch.zeros(3, 3, 64, 1500)
    image[1, :, 16:48, 576:608] = image[2, :, 16:48, 832:864] = torch.randn(3, 32, 32)
    with torch.no_grad():
        raw = model(image)
    for x, stride in zip(raw.values(), (8, 16, 32), strict=True):
        seen = (x[1:] - x[:1]).double()  # (2, A, h, w, 6)
        shift = 256 // stride
        expected, found = seen[0, :, :, : -2 * shift], seen[1, :, :, shift:-shift]
        assert expected.abs().max() > 1e-4
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()
        energy = seen[0].square().sum((0, 1, 3))
        center = ((torch.arange(len(energy)) + 0.5) * energy).sum() / energy.sum() * stride
        assert abs(center - 592) < 16  # half a cell of the deepest map


def test_maps_are_cut_or_repeated_not_stretched():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert yolo.fit_size(x, 2, 3) is x
    assert yolo.fit_size(x, 1, 2).tolist() == [[[[0, 1]]]]
    assert yolo.fit_size(x, 3, 4).tolist() == [[[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]]]
    assert yolo.fit_size(x, 3, 2).tolist() == [[[[0, 1], [3, 4], [3, 4]]]]


# Training


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_assignment_equals_a_slow_one(height, width):
    """Every cell asks on its own whether it learns the box: its middle is less than a cell from the center."""
    torch.manual_seed(0)
    stride, anchors = 16, torch.tensor([[20.0, 30.0], [60.0, 25.0], [9.0, 9.0]])
    boxes = torch.rand(60, 4) * torch.tensor([width * 16 + 15, height * 16 + 15, 90, 90]) + 0.1
    expected = set()
    for n, (cx, cy, w, h) in enumerate(boxes.tolist()):
        for a, (aw, ah) in enumerate(anchors.tolist()):
            if max(w / aw, aw / w, h / ah, ah / h) >= 4:
                continue
            for y in range(height):
                for x in range(width):
                    dx, dy = abs(cx / stride - x - 0.5), abs(cy / stride - y - 0.5)
                    if cx >= width * stride:  # only the last cell stands for what lies beyond it
                        dx = 0.0 if x == width - 1 else 9.0
                    if cy >= height * stride:
                        dy = 0.0 if y == height - 1 else 9.0
                    if min(dx, dy) <= 0.5 and max(dx, dy) < 1:
                        expected.add((n, a, x, y))
    box, anchor, cell = yolo.assign(boxes, anchors, stride, height, width)
    found = list(zip(box.tolist(), anchor.tolist(), *cell.T.tolist(), strict=True))
    assert len(found) == len(set(found)) > 100
    assert set(found) == expected


@pytest.mark.parametrize("kind", TARGETS)
def test_loss_is_finite_and_reaches_every_parameter(small, kind):
    small.train().zero_grad()
    losses = yolo.loss(small.head, small(torch.randn(2, 3, 64, 96)), targets(kind))
    sum(losses.values()).backward()
    assert {name: value.isfinite().item() for name, value in losses.items()} == dict.fromkeys(
        losses, True
    )
    assert (losses["box"] > 0, losses["class"] > 0) == (kind != "empty", kind != "empty")
    bad = [
        name
        for name, p in small.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ]
    assert bad == []


def test_loss_of_right_outputs_is_zero_and_each_part_sees_its_own_error(small):
    """Raw maps that decode to the boxes, made by solving the formulas, at every cell and anchor that learns them."""
    detect = small.head.detect
    boxes = torch.tensor([[30.0, 40.0, 62.0, 90.0], [100.0, 20.0, 110.0, 32.0]])
    labels = torch.tensor([2, 0])
    centers = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    raw = {}
    for level, stride in enumerate((8, 16, 32)):
        x = torch.full((1, 3, 128 // stride, 128 // stride, 8), -30.0)
        anchors = detect.anchors[level]
        for n, a, (cx, cy) in zip(
            *yolo.assign(centers, anchors, stride, *x.shape[2:4]), strict=True
        ):
            xy = (centers[n, :2] / stride - torch.stack([cx, cy]) + 0.5) / 2
            wh = (centers[n, 2:] / anchors[a]).sqrt() / 2
            x[0, a, cy, cx, :5] = torch.cat([torch.cat([xy, wh]).logit(), torch.tensor([30.0])])
            x[0, a, cy, cx, 5 + labels[n]] = 30.0
        raw[f"level{level}"] = x
    truth = {"boxes": [boxes], "labels": [labels]}
    right = yolo.loss(small.head, raw, truth)
    assert all(value < 1e-4 for value in right.values()), right
    wrong = yolo.loss(small.head, raw, {**truth, "labels": [torch.tensor([1, 0])]})
    assert wrong["class"] > 0.05
    assert (wrong["box"], wrong["objectness"]) == (right["box"], right["objectness"])
    moved = yolo.loss(
        small.head, raw, {**truth, "boxes": [boxes + torch.tensor([2.0, 0.0, 2.0, 0.0])]}
    )
    assert moved["box"] > 0.005
    assert moved["objectness"] > right["objectness"]
    missed = {name: x.clone() for name, x in raw.items()}
    missed["level1"][..., 4] = -30.0
    assert yolo.loss(small.head, missed, truth)["objectness"] > 0.01


def test_loss_falls_on_one_batch():
    torch.manual_seed(0)
    model = build("yolo/fasternet_t0", 3, options=SMALL)
    image, truth = torch.randn(2, 3, 64, 64), targets("objects")
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals = []
    for _ in range(15):
        total = sum(yolo.loss(model.head, model(image), truth).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0], totals


# Anchors


def recall(boxes: torch.Tensor, anchors: torch.Tensor) -> float:
    good = 0
    for x0, y0, x1, y1 in boxes.tolist():
        ratios = [((x1 - x0) / w, (y1 - y0) / h) for w, h in anchors.view(-1, 2).tolist()]
        good += any(max(a, 1 / a, b, 1 / b) < 4 for a, b in ratios)
    return good / len(boxes)


def test_fitted_anchors_beat_the_stock_ones():
    torch.manual_seed(0)
    head = build("yolo/fasternet_t0", 3, options=SMALL).head
    stock = head.detect.anchors.clone()
    size = (
        torch.cat([torch.tensor([6.0, 140.0]), torch.tensor([300.0, 10.0])])
        .view(2, 2)
        .repeat(100, 1)
    )
    corner = torch.rand(200, 2) * 100
    boxes = torch.cat([corner, corner + size * (1 + 0.3 * torch.rand(200, 2))], 1)
    yolo.prepare(head, [((480, 640), b) for b in boxes.split(10)], (320, 320))
    fitted = head.detect.anchors
    assert recall(boxes, fitted) == 1 > 0.5 >= recall(boxes, stock)
    areas = fitted.prod(2).flatten()
    assert fitted.shape == stock.shape
    assert torch.equal(areas, areas.sort().values)
    assert torch.equal(head.state_dict()["rows.20.anchors"], fitted)


@pytest.mark.parametrize("boxes", [BOXES, torch.zeros(0, 4)], ids=["few", "none"])
def test_few_boxes_keep_the_anchors(boxes):
    head = build("yolo/fasternet_t0", 3, options=SMALL).head
    stock = head.detect.anchors.clone()
    yolo.prepare(head, [((64, 64), boxes)], (64, 64))
    assert torch.equal(head.detect.anchors, stock)


def test_anchors_that_fit_already_stay():
    head = build("yolo/fasternet_t0", 3, options=SMALL).head
    stock = head.detect.anchors.clone()
    sizes = stock.view(-1, 2).repeat_interleave(torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 30]), 0)
    yolo.prepare(head, [((640, 640), torch.cat([torch.zeros_like(sizes), sizes], 1))], (640, 640))
    assert torch.equal(head.detect.anchors, stock)


# Predictions


@pytest.fixture(scope="module")
def trained(small) -> nn.Module:
    """With batch norms that have seen something: fresh ones hide errors."""
    torch.manual_seed(1)
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return small.eval()


@pytest.mark.parametrize("size", [(64, 96), (100, 72)])
def test_collapsed_computes_the_same(trained, size):
    image = torch.randn(2, 3, *size)
    deploy = reparameterize(trained)
    assert not [m for m in deploy.head.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        expected, found = trained(image)["predictions"], deploy(image)["predictions"]
    assert ((found - expected).abs().amax((0, 1)) / expected.abs().amax((0, 1))).max() < 1e-5


def test_embedded_decode_equals_decode(trained):
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        padded, outputs = yolo.embed(trained)(image), trained(image)
    assert {key: tuple(value.shape) for key, value in padded.items()} == {
        "boxes": (2, 100, 4),
        "scores": (2, 100),
        "labels": (2, 100),
    }
    for a, b in zip(yolo.decode(padded, (64, 64)), yolo.decode(outputs, (64, 64)), strict=True):
        assert len(a) > 0
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_boxes_are_computed_in_float32_under_autocast(trained):
    x, raw = torch.randn(1, 3, 64, 520), []
    hooks = [
        conv.register_forward_hook(lambda _, __, y: raw.append(y))
        for conv in trained.head.detect.convs
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = trained(x)["predictions"]
    for hook in hooks:
        hook.remove()
    assert {y.dtype for y in raw} == {torch.bfloat16}
    assert found.dtype == torch.float32
    levels = [y.float().unflatten(1, (3, -1)).permute(0, 1, 3, 4, 2) for y in raw]
    by_hand = torch.cat([trained.head.detect.predict(y, i) for i, y in enumerate(levels)], 1)
    assert torch.equal(found, by_hand)


def test_decode_suppresses_within_a_class_only():
    row = torch.tensor(
        [
            [20.0, 20, 20, 20, 0.9, 0.9, 0.0],
            [21, 20, 20, 20, 0.8, 0.9, 0.5],
            [60, 60, 10, 10, 0.0, 1, 1],
        ]
    )
    (found,) = yolo.decode({"predictions": row[None]}, (64, 64))
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.81, 0.40]))
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30]]))
    assert box_iou(found.boxes[:1], found.boxes[1:]).item() > 0.65


def test_first_guesses_are_the_priors():
    detect = build("yolo/fasternet_t0", 20, options=SMALL).head.detect
    for conv, stride in zip(detect.convs, (8, 16, 32), strict=True):
        prior = conv.bias.detach().view(3, 25).sigmoid()
        assert prior[:, 4].tolist() == pytest.approx([8 * stride**2 / 640**2] * 3, rel=1e-4)
        assert prior[:, 5:].mean().item() == pytest.approx(0.6 / 20, rel=1e-4)
    assert math.isfinite(
        build("yolo/fasternet_t0", 1, options=SMALL).head.detect.convs[0].bias.sum().item()
    )
