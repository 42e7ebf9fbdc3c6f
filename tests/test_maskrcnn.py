"""Mask R-CNN against torchvision's own paths, with the same weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, roi_align

from fleetnet.errors import ModelError
from fleetnet.geometry import Place, paste
from fleetnet.predictions import Detections
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, onnx
from fleetnet.tasks import Model, build, maskrcnn

SIZE = (96, 128)
LIGHT = {"channels": 16, "hidden": 32, "anchor": 8, "samples": 32, "proposals": 100}


def model(backbone: str = "fasternet_t0", classes: int = 3, **options: int) -> Model:
    torch.manual_seed(0)
    return build(f"maskrcnn/{backbone}", classes, options={**LIGHT, **options})


@torch.no_grad()
def trained(backbone: str = "fasternet_t0", classes: int = 3) -> Model:
    """In eval mode, with batch norms that fit and with scores that differ, as after a training."""
    network = model(backbone, classes)
    for _ in range(5):
        network.backbone(torch.randn(2, 3, *SIZE))
    rpn, roi = network.head.rpn, network.head.roi_heads
    for layer, deviation in [
        (rpn.head.cls_logits, 0.5),
        (rpn.head.bbox_pred, 0.2),
        (roi.box_predictor.cls_score, 1.0),
    ]:
        nn.init.normal_(layer.weight, std=deviation)
    return network.eval()


def disks(*counts: int, side: int = 30) -> dict[str, list[Tensor]]:
    """For each image so many objects of SIZE, of three classes: ellipses of up to `side` pixels."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    targets: dict[str, list[Tensor]] = {"boxes": [], "labels": [], "masks": []}
    for count in counts:
        extent = (8 + (side - 8) * torch.rand(count, 2, generator=generator)).round()
        start = (
            torch.rand(count, 2, generator=generator) * (torch.tensor([SIZE[1], SIZE[0]]) - extent)
        ).round()
        center, half = start + extent / 2, extent[..., None, None] / 2
        inside = ((x - center[:, 0, None, None]) / half[:, 0]) ** 2 + (
            (y - center[:, 1, None, None]) / half[:, 1]
        ) ** 2
        targets["masks"].append((inside <= 1).to(torch.uint8))
        targets["boxes"].append(torch.cat([start, start + extent], 1))
        targets["labels"].append(torch.arange(count) % 3)
    return targets


@pytest.mark.parametrize("backbone", ["fasternet_t0", "parcnet_xs"])
@pytest.mark.parametrize("counts", [(4, 0), (0, 0)])
def test_every_parameter_learns(backbone: str, counts: tuple[int, ...]) -> None:
    network = model(backbone)
    outputs = network(torch.randn(2, 3, *SIZE))
    assert outputs["p2"].shape == (2, 16, 24, 32)
    assert outputs["size"].tolist() == list(SIZE)
    losses = maskrcnn.loss(network.head, outputs, disks(*counts))
    assert list(losses) == ["rpn_objectness", "rpn_box", "classifier", "box", "mask"]
    sum(losses.values()).backward()
    assert all(math.isfinite(value.item()) for value in losses.values()), losses
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    learned = {key for key, value in losses.items() if value.item() > 0}
    assert learned == (set(losses) if any(counts) else {"rpn_objectness", "classifier"})
    mask_learns = any(bool(p.grad.any()) for p in network.head.roi_heads.mask_head.parameters())
    assert mask_learns == any(counts)


def test_boxes_without_area_are_left_out() -> None:
    network, targets = model(), disks(2, 2)
    targets["boxes"][0][0, 2] = targets["boxes"][0][0, 0]
    losses = maskrcnn.loss(network.head, network(torch.randn(2, 3, *SIZE)), targets)
    assert all(math.isfinite(value.item()) for value in losses.values()), losses


def test_losses_are_torchvisions_but_for_the_cut_of_the_masks() -> None:
    network, targets = model(), disks(5, 2)
    outputs = network(torch.randn(2, 3, *SIZE))
    torch.manual_seed(3)
    ours = maskrcnn.loss(network.head, outputs, targets)
    maps = {key: value for key, value in outputs.items() if key != "size"}
    objects = [
        {"boxes": b, "labels": label + 1, "masks": m}
        for b, label, m in zip(targets["boxes"], targets["labels"], targets["masks"], strict=True)
    ]
    torch.manual_seed(3)
    proposals, rpn = network.head.rpn(ImageList(maps["p2"], [SIZE] * 2), maps, objects)
    _, roi = network.head.roi_heads(maps, proposals, [SIZE] * 2, objects)
    theirs = [
        rpn["loss_objectness"],
        rpn["loss_rpn_box_reg"],
        roi["loss_classifier"],
        roi["loss_box_reg"],
    ]
    assert [value.item() for value in ours.values()][:4] == pytest.approx(
        [value.item() for value in theirs], rel=1e-6
    )
    assert ours["mask"].item() == pytest.approx(roi["loss_mask"].item(), rel=0.1)


@pytest.mark.parametrize(
    ("backbone", "sizes"), [("fasternet_t0", (25, 12, 6, 3)), ("parcnet_xs", (25, 13, 7, 4))]
)
def test_anchors_and_rois_are_at_the_true_strides(backbone: str, sizes: tuple[int, ...]) -> None:
    network = model(backbone)
    maps = network(torch.randn(2, 3, 100, 100))
    maps.pop("size")
    assert [m.shape[-1] for m in maps.values()] == [*sizes, -(-sizes[-1] // 2)]
    first, second = network.head.rpn.anchor_generator(
        ImageList(maps["p2"], [(100, 100)] * 2), list(maps.values())
    )
    assert torch.equal(first, second)
    expected = [
        (column * stride, row * stride, 2 * stride)
        for size, stride in zip([*sizes, -(-sizes[-1] // 2)], [4, 8, 16, 32, 64], strict=True)
        for row in range(size)
        for column in range(size)
        for _ in range(3)
    ]
    centers, extents = (first[:, :2] + first[:, 2:]) / 2, first[:, 2:] - first[:, :2]
    x, y, side = torch.tensor(expected, dtype=torch.float32).T
    assert torch.equal(centers, torch.stack([x, y], 1))
    # torchvision rounds the corners to whole pixels
    assert ((extents.prod(1).sqrt() / side - 1).abs() < 0.1).all()
    for pool in (network.head.roi_heads.box_roi_pool, network.head.roi_heads.mask_roi_pool):
        found = pool(
            maps,
            [torch.tensor([[0.0, 0.0, 99.0, 99.0], [0.0, 0.0, 300.0, 300.0]])] * 2,
            [(100, 100)] * 2,
        )
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        for i, box in enumerate((99.0, 300.0)):  # at 112 pixels begins stride 8, at 224 stride 16
            level, stride = (0, 4) if box < 112 else (2, 16)
            rois = torch.tensor([[0.0, 0.0, 0.0, box, box]])
            expected = roi_align(maps[f"p{level + 2}"], rois, pool.output_size, 1 / stride, 2)
            torch.testing.assert_close(found[i : i + 1], expected)


def test_detections_are_torchvisions() -> None:
    network = trained()
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        outputs = network(image)
        features = network.backbone(image)
        maps = network.head.fpn(dict(zip(maskrcnn.MAPS, features, strict=True)))
        proposals, _ = network.head.rpn(ImageList(image, [SIZE] * 2), maps)
        theirs, _ = network.head.roi_heads(maps, proposals, [SIZE] * 2)
        ours, there = network.head.propose(maps, SIZE)
    for reference, found, real in zip(proposals, ours, there, strict=True):
        assert 20 < len(reference) == int(real.sum())
        torch.testing.assert_close(found[real], reference, rtol=0, atol=1e-4)
    for i, (reference, found) in enumerate(
        zip(theirs, maskrcnn.decode(outputs, SIZE), strict=True)
    ):
        assert 10 < len(reference["boxes"]) == len(found)
        torch.testing.assert_close(found.scores, reference["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes, reference["boxes"], rtol=0, atol=1e-3)
        assert torch.equal(found.labels, reference["labels"] - 1)
        torch.testing.assert_close(found.box_masks, reference["masks"][:, 0], rtol=0, atol=1e-4)
        assert {key: value.shape[1:] for key, value in outputs.items()} == {
            "boxes": (100, 4), "scores": (100,), "labels": (100,), "masks": (100, 28, 28)
        }, i  # fmt: skip


def test_few_candidates_are_padded() -> None:
    network = trained()
    network.head.roi_heads.box_predictor.cls_score.bias.data[0] = 1e4  # background everywhere
    outputs = network(torch.randn(1, 3, *SIZE))
    assert outputs["boxes"].shape == (1, 100, 4)
    assert not outputs["scores"].any()
    assert not outputs["boxes"].any()
    assert len(maskrcnn.decode(outputs, SIZE)[0]) == 0
    found = maskrcnn.decode(outputs, SIZE)[0].restore(Place(*SIZE)).restore(Place(*SIZE))
    assert found.masks.shape == (0, *SIZE)


def test_boxes_are_computed_in_float32_under_autocast() -> None:
    """In bfloat16 a corner at pixel 500 is up to two pixels off."""
    network, image = trained(), torch.randn(1, 3, 96, 520)
    seen = []
    network.head.rpn.anchor_generator.register_forward_hook(
        lambda _, inputs, outputs: seen.append(outputs[0])
    )
    kept = {}
    network.head.fpn.register_forward_hook(lambda _, inputs, maps: kept.update(maps))
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(image)
        maps = {name: value.float() for name, value in kept.items()}
        assert all(value.dtype == torch.bfloat16 for value in kept.values())
        reference = network.head.detect(maps, *network.head.propose(maps, (96, 520)), (96, 520))
        anchors = network.head.rpn.anchor_generator(
            ImageList(image, [(96, 520)]), list(kept.values())
        )[0]
    assert all(value.dtype == torch.float32 for value in (*seen, anchors))
    assert all(torch.equal(value, seen[1]) for value in (*seen, anchors))
    assert (reference["scores"] > 0).sum() > 10
    assert all(torch.equal(value, reference[name]) for name, value in found.items())


def test_paste_is_bilinear_with_centers_at_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = F.interpolate(
        torch.rand(6, 1, 7, 7, generator=generator), size=(28, 28), mode="bicubic"
    )[:, 0]
    start = torch.rand(6, 2, generator=generator) * 60 - 10  # some reach outside
    b = torch.cat([start, start + 4 + 50 * torch.rand(6, 2, generator=generator)], 1)
    masks = paste(probabilities, b, (50, 70))
    x = ((torch.arange(70) + 0.5 - b[:, 0, None]) / (b[:, 2] - b[:, 0])[:, None] * 2 - 1)[
        :, None
    ].expand(6, 50, 70)
    y = ((torch.arange(50) + 0.5 - b[:, 1, None]) / (b[:, 3] - b[:, 1])[:, None] * 2 - 1)[
        ..., None
    ].expand(6, 50, 70)
    values = F.grid_sample(probabilities[:, None], torch.stack([x, y], 3), align_corners=False)[
        :, 0
    ]
    clear = (values - 0.5).abs() > 1e-5
    assert masks.dtype == torch.bool
    assert torch.equal(masks[clear], (values > 0.5)[clear])
    assert clear.float().mean() > 0.99


def test_masks_survive_being_cut_and_pasted() -> None:
    targets = disks(40, side=16)
    masks, b = targets["masks"][0], targets["boxes"][0]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    again = paste(maskrcnn.cut(masks, b[order], order), b[order], SIZE)
    truth = masks[order].bool()
    overlap = (again & truth).sum((1, 2)) / (again | truth).sum((1, 2))
    assert overlap.min() > 0.97, overlap.min()  # torchvision's way: 0.84 for nuclei of 12 pixels


def test_restore_undoes_the_letterbox() -> None:
    place = Place(height=48, width=80, scale_y=1.5, scale_x=1.5, top=12.0, left=4.0)
    b = torch.tensor([[34.0, 42.0, 64.0, 72.0], [4.0, 0.0, 64.0, 42.0], [10.0, 0.0, 50.0, 11.0]])
    decoded = Detections(
        b,
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([0, 1, 2]),
        box_masks=torch.ones(3, 28, 28),
    )
    found = decoded.restore(place)
    assert found.labels.tolist() == [0, 1]  # the third is in the padding
    assert found.boxes.tolist() == [[20, 20, 40, 40], [0, 0, 40, 20]]
    truth = np.zeros((2, 48, 80), dtype=bool)
    truth[0, 20:40, 20:40] = truth[1, :20, :40] = True
    assert np.array_equal(found.masks.numpy(), truth)
    assert found.box_masks is None


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"strides \[4, 8, 16, 32\].*none of stride 32"):
        build("maskrcnn/fasternet_t0", 2, output_stride=16)
    with pytest.raises(ModelError, match="samples is 0"):
        model(samples=0)


def test_the_exported_deploy_form_finds_the_same(tmp_path: Path) -> None:
    network = trained()
    image = torch.randn(1, 3, *SIZE)
    deploy = reparameterize(network, image)
    onnx.export(
        Request(deploy, image, tmp_path / "m.onnx", outputs=("boxes", "scores", "labels", "masks"))
    )
    run = onnx.load(tmp_path / "m.onnx")
    for seed in range(3):
        image = (1 + seed) * torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            trained_form, reference = network(image), deploy(image)
        outputs: dict[str, Any] = dict(
            zip(reference, map(torch.from_numpy, run(image.numpy())), strict=True)
        )
        assert (reference["scores"] > 0).sum() > 10
        for other in (trained_form, outputs):
            assert torch.equal(other["labels"], reference["labels"])
            torch.testing.assert_close(other["scores"], reference["scores"], rtol=0, atol=1e-5)
            torch.testing.assert_close(other["masks"], reference["masks"], rtol=0, atol=1e-4)
            real = reference["scores"][0] > 0
            assert (
                box_iou(other["boxes"][0, real], reference["boxes"][0, real]).diagonal().min()
                > 0.9999
            )
