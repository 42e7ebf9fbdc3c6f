"""Mask R-CNN with a feature pyramid: a box, a class and a mask for each object.

He et al., Mask R-CNN, arXiv:1703.06870; Lin et al., Feature Pyramid Networks, arXiv:1612.03144.

    features of strides 4 to 32  ->  pyramid of 4 maps, and a subsampled one of stride 64
        ->  region proposals: 3 anchors a cell, NMS within each level
        ->  RoIAlign 7x7, two linear layers: classes and boxes; NMS within each class
        ->  RoIAlign 14x14, four convolutions, one transposed: 28x28 mask of the box's own class

Layers, initial values, sampling and losses are torchvision's. Differs from it: anchors and RoIs use
the true strides of the backbone, where torchvision divides sizes and rounds, which is wrong for
maps that do not divide the image. Masks are cut out and pasted with pixel centers at halves, as in
Detectron2; torchvision is half a pixel off and rounds the boxes, so that a nucleus 12 pixels wide
comes back from its own target with an IoU of 0.84 (here 1.00). In eval mode all shapes are fixed,
so that the whole network can be exported: missing proposals and detections have a score of 0, and
at most the best 1000 pairs of a proposal and a class (10 for each detection, if that is more) enter
the last NMS. The network chooses its detections itself, so that `limit` is told to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import (
    FeaturePyramidNetwork,
    MultiScaleRoIAlign,
    clip_boxes_to_image,
    roi_align,
)
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from ..backbones import Backbone, Option, Recognized, State
from ..backbones._recognition import has, output_count
from ..boxes import Limits, best_after_nms, only_of, take
from ..errors import ModelError
from ..predictions import Detections
from ..preprocess import Mode
from ..processes import of_all
from . import Outputs
from ._coco import CocoMetric
from ._decoded import BOXES, CHOSEN
from ._defaults import convert as convert
from ._defaults import prepare as prepare
from ._defaults import stored as stored

TARGET, AUGMENT, OUTPUT_STRIDE = "masks", "jitter", 32
MODE: Mode = "letterbox"
SIZE = (512, 512)
CLASSES = 80
OPTIONS: tuple[str, ...] = ("channels", "hidden", "anchor", "samples", "proposals")
SETTINGS: tuple[str, ...] = ()
# The four regressions of a class are four rows in turn.
CLASS_MAJOR: tuple[str, ...] = ("head.roi_heads.box_predictor.bbox_pred.",)
from_file = None
PREDICTION = Detections

DECODE = (
    "The outputs are detections, padded to limits.max_objects: boxes x0, y0, x1, y1 in pixels of "
    "the input, best first, with scores (above limits.score; 0 where there is none), labels from "
    "0, and the 28x28 probabilities of the mask in the box. To paste one, scale it bilinearly to "
    "its box, pixel centers at halves, and take what is above 0.5."
)
EMBEDDED = f"{BOXES}; masks: probabilities, to be resized to the box, inside above 0.5"

STRIDES = [4, 8, 16, 32]
MAPS = ["p2", "p3", "p4", "p5"]  # 2^level is the stride
RATIOS = (0.5, 1.0, 2.0)  # height / width of an anchor
LIMITS = Limits(count=100, iou=0.5, score=0.05)  # of the last NMS
MASK = 28  # pixels


class Anchors(AnchorGenerator):
    """torchvision's anchors, one size a level, at the true strides: centered at multiples of the stride."""

    def __init__(self, smallest: int, strides: Sequence[int]):
        super().__init__(
            tuple((smallest * 2**i,) for i in range(len(strides))), (RATIOS,) * len(strides)
        )
        self.strides = list(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the same (A, 4): by level, row, column and ratio."""
        levels = []
        for (height, width), stride, size in zip(
            (m.shape[-2:] for m in feature_maps), self.strides, self.sizes, strict=True
        ):
            # bfloat16 has no pixel 257
            dtype = torch.promote_types(feature_maps[0].dtype, torch.float32)
            like: dict[str, Any] = {"dtype": dtype, "device": feature_maps[0].device}
            rows, columns = (
                torch.arange(height, **like) * stride,
                torch.arange(width, **like) * stride,
            )
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centers = torch.stack([x, y, x, y], 2).reshape(-1, 1, 4)
            levels.append((centers + self.generate_anchors(size, RATIOS, **like)).reshape(-1, 4))
        return [torch.cat(levels)] * len(image_list.image_sizes)


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's choice of the anchors that are learned from, whose losses are means over them."""

    count: Tensor | int = 0  # of the last batch

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = super().__call__(matched_idxs)
        self.count = sum(chosen.sum() for chosen in [*positive, *negative])
        return positive, negative


class MaskRCNN(nn.Module):
    """Features -> in training mode the pyramid, for `loss`; in eval mode padded detections, see `forward`."""

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        channels: int,
        hidden: int,
        anchor: int,
        samples: int,
        proposals: int,
    ):
        super().__init__()
        self.limits = LIMITS
        if missing := [stride for stride in STRIDES if stride not in backbone.strides]:
            raise ModelError(
                f"maskrcnn needs features of strides {STRIDES}; the backbone has none of stride "
                f"{missing[0]}"
            )
        self.used = [backbone.strides.index(stride) for stride in STRIDES]
        inputs = [backbone.channels[i] for i in self.used]
        self.fpn = FeaturePyramidNetwork(inputs, channels, LastLevelMaxPool())
        self.rpn = RegionProposalNetwork(
            Anchors(anchor, [*STRIDES, 64]),
            RPNHead(channels, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * proposals, "testing": proposals},
            post_nms_top_n={"training": 2 * proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        self.rpn.fg_bg_sampler = Sampler(256, 0.5)
        self.roi_heads = RoIHeads(
            box_roi_pool=_pool(7),
            box_head=TwoMLPHead(channels * 7 * 7, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes + 1),  # 0 is the background
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=LIMITS.score,
            nms_thresh=LIMITS.iou,
            detections_per_img=LIMITS.count,
            mask_roi_pool=_pool(MASK // 2),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(channels, channels, classes + 1),
        )

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """In training mode the maps p2 to p5 and "pool" (N, channels, h, w), and "size" (2,), of the image.

        In eval mode boxes (N, K, 4) in pixels, scores (N, K), labels (N, K) and masks (N, K, 28,
        28) of K = `limits.count`: probabilities of the box's own class.
        """
        maps = self.fpn({name: features[i] for name, i in zip(MAPS, self.used, strict=True)})
        if self.training:
            return {**maps, "size": torch.tensor([int(size[0]), int(size[1])])}
        device = features[0].device.type
        # a branch, since an exported graph can hold no autocast
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # bfloat16 would move boxes by pixels
                maps = {name: value.float() for name, value in maps.items()}
                return self.detect(maps, *self.propose(maps, size), size)
        return self.detect(maps, *self.propose(maps, size), size)

    def propose(self, maps: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, 4), best first, and which of them are there: (N, P). As torchvision's in eval mode."""
        rpn, first = self.rpn, maps[MAPS[0]]
        logits, deltas = rpn.head(list(maps.values()))
        counts = [o.shape[1] * o.shape[2] * o.shape[3] for o in logits]
        anchors = rpn.anchor_generator(ImageList(first, [size]), list(maps.values()))[0].split(
            counts
        )
        decoded, scores, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            logit = logit.permute(0, 2, 3, 1).flatten(1)  # (N, A_i)
            delta = delta.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # (N, A_i, 4)
            best, index = logit.topk(min(rpn.pre_nms_top_n(), logit.shape[1]))  # (N, T_i)
            delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
            boxes = rpn.box_coder.decode_single(delta.flatten(0, 1), anchor[index].flatten(0, 1))
            decoded.append(boxes.reshape(*index.shape, 4))
            scores.append(best.sigmoid())
            levels.append(index.new_full(index.shape[1:], level))
        level_of = torch.cat(levels)
        boxes = clip_boxes_to_image(torch.cat(decoded, 1), size)
        probability = _without_empty(boxes, torch.cat(scores, 1), rpn.min_size)
        chosen, there = [], []
        for b, p in zip(boxes, probability, strict=True):
            index = best_after_nms(
                b, p, level_of, len(counts), rpn.nms_thresh, rpn.post_nms_top_n()
            )
            there.append(take(p >= 0, index))
            chosen.append(take(b, index) * there[-1][:, None])
        return torch.stack(chosen), torch.stack(there)

    def detect(
        self, maps: dict[str, Tensor], proposals: Tensor, there: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Proposals (N, P, 4), of which some are `there` -> padded detections, as torchvision's in eval mode."""
        roi, sizes, limits = self.roi_heads, [size] * len(proposals), self.limits
        logits, deltas = roi.box_predictor(
            roi.box_head(roi.box_roi_pool(maps, list(proposals), sizes))
        )
        decoded = roi.box_coder.decode_single(deltas, proposals.flatten(0, 1))
        # without the background's
        decoded = decoded.reshape(len(proposals), -1, logits.shape[1], 4)[:, :, 1:]
        boxes = clip_boxes_to_image(decoded.flatten(1, 2), size)
        scores = only_of(logits.softmax(1)[:, 1:], limits)
        classes = scores.shape[1]
        # (N, P * classes)
        scores = (scores.reshape(*there.shape, classes) * there[..., None]).flatten(1)
        scores = _without_empty(boxes, scores.where(scores > limits.score, -1.0), 1e-2)
        kept: dict[str, list[Tensor]] = {"boxes": [], "scores": [], "labels": []}
        for b, s in zip(boxes, scores, strict=True):
            s, index = s.topk(min(limits.candidates, len(s)))
            b, label = b[index], index % classes
            keep = best_after_nms(b, s, label, classes, limits.iou, limits.count)
            s = take(s, keep).clamp(min=0)
            kept["boxes"].append(take(b, keep) * (s > 0)[:, None])
            kept["scores"].append(s)
            kept["labels"].append(take(label, keep) * (s > 0))
        outputs = {key: torch.stack(value) for key, value in kept.items()}
        masks = roi.mask_predictor(
            roi.mask_head(roi.mask_roi_pool(maps, list(outputs["boxes"]), sizes))
        )
        own = (outputs["labels"].flatten() + 1).view(-1, 1, 1, 1).expand(-1, 1, MASK, MASK)
        outputs["masks"] = (
            masks.gather(1, own).sigmoid().reshape(*outputs["labels"].shape, MASK, MASK)
        )
        return outputs


def _pool(size: int) -> MultiScaleRoIAlign:
    """RoIAlign on the map that suits the box's size, as in the FPN paper: 224 pixels are for stride 16."""
    pool = MultiScaleRoIAlign(MAPS, size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = initLevelMapper(2, 5)
    return pool


def _without_empty(boxes: Tensor, scores: Tensor, smallest: float) -> Tensor:
    """The scores (...,), -1 where a side of the box (..., 4) is shorter than `smallest` pixels."""
    return scores.where((boxes[..., 2:] - boxes[..., :2] >= smallest).all(-1), -1.0)


def head(
    backbone: Backbone,
    classes: int,
    channels: int = 256,
    hidden: int = 1024,
    anchor: int = 32,
    samples: int = 512,
    proposals: int = 1000,
) -> nn.Module:
    """`channels` of the pyramid and of the mask layers, `hidden` width of the box layers.

    `anchor` is the size in pixels of the smallest anchors, doubled at each of the five levels;
    `samples` RoIs an image are learned from; `proposals` an image are looked at (twice as many in
    training), before and after the NMS.
    """
    anchors_and_roi = {
        "channels": channels,
        "hidden": hidden,
        "anchor": anchor,
        "samples": samples,
        "proposals": proposals,
    }
    for key, value in anchors_and_roi.items():
        if value < 1:
            raise ModelError(f"{key} is {value}; maskrcnn needs at least 1")
    return MaskRCNN(backbone, classes, **anchors_and_roi)


def loss(head: nn.Module, outputs: Outputs, targets: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvision's five losses of the pyramid against targets["boxes"], ["labels"] and ["masks"], a list each.

    Boxes without an area are left out. Images without objects teach what is background.
    """
    network = cast(MaskRCNN, head)
    roi = network.roi_heads
    maps = {name: value for name, value in outputs.items() if name != "size"}
    height, width = outputs["size"].tolist()
    sizes = [(int(height), int(width))] * len(targets["boxes"])
    objects = []
    for boxes, labels, masks in zip(
        targets["boxes"], targets["labels"], targets["masks"], strict=True
    ):
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects.append({"boxes": boxes[solid], "labels": labels[solid] + 1, "masks": masks[solid]})
    proposals, rpn = network.rpn(ImageList(maps[MAPS[0]], sizes), maps, objects)
    proposals, matched, labels, deltas = roi.select_training_samples(proposals, objects)
    predicted = roi.box_predictor(roi.box_head(roi.box_roi_pool(maps, proposals, sizes)))
    classifier, box = fastrcnn_loss(*predicted, labels, deltas)

    positive = [label > 0 for label in labels]
    boxes = [b[chosen] for b, chosen in zip(proposals, positive, strict=True)]
    truth = [
        cut(o["masks"], b, i[chosen])
        for o, b, i, chosen in zip(objects, boxes, matched, positive, strict=True)
    ]
    # (all positives, classes + 1, ...)
    masks = roi.mask_predictor(roi.mask_head(roi.mask_roi_pool(maps, boxes, sizes)))
    own = masks[
        torch.arange(len(masks), device=masks.device), torch.cat(labels)[torch.cat(positive)]
    ]
    mask = (
        F.binary_cross_entropy_with_logits(own, torch.cat(truth)) if len(own) else masks.sum() * 0
    )
    anchors, rois = cast(Sampler, network.rpn.fg_bg_sampler).count, sum(map(len, labels))
    return {
        "rpn_objectness": of_all(rpn["loss_objectness"], anchors),
        "rpn_box": of_all(rpn["loss_rpn_box_reg"], anchors),
        "classifier": of_all(classifier, rois),
        "box": of_all(box, rois),
        "mask": of_all(mask, len(own)),
    }


def cut(masks: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
    """The part in each box (n, 4) of the mask (m, H, W) that `index` (n,) names: (n, 28, 28), 0 to 1.

    The inverse of `geometry.paste`.
    """
    rois = torch.cat([index[:, None].to(boxes), boxes], 1)
    return roi_align(masks[:, None].to(boxes), rois, MASK, aligned=True)[:, 0]


def decode(
    outputs: Outputs, size: tuple[int, int], limits: Limits | None = None
) -> list[Detections]:
    """Padded detections -> those of each image, with the probabilities of a mask within each box.

    Of `limits` all but the NMS is applied, which the network did by those that `limit` told it.
    """
    return [chosen.within(limits or LIMITS) for chosen in Detections.of_padded(outputs)]


def limit(head: nn.Module, limits: Limits) -> None:
    """Tell the network what to keep of what it finds."""
    cast(MaskRCNN, head).limits = limits


def decoding(embedded: bool, limits: Limits | None = None) -> dict[str, object]:
    """`decode` and `restore` in words and numbers; the graph chooses boxes itself, so it is always `embedded`."""
    return {
        **CHOSEN,
        "masks": {
            "output": "masks",
            "size": MASK,
            "values": "probabilities in the box, before that is clipped to the picture",
            "paste": "the center of the picture's pixel in row i, column j lies in the mask at row "
            "(i + 0.5 - y0) / (y1 - y0) * size - 0.5, column (j + 0.5 - x0) / (x1 - x0) * "
            "size - 0.5, with the box in pixels of the picture, unclipped; interpolate "
            "bilinearly, with 0 outside of the mask",
            "above": 0.5,
        },
    }


def metric(classes: Sequence[str]) -> CocoMetric:
    return CocoMetric(classes, masks=True)


def embed(model: nn.Module, limits: Limits | None = None) -> nn.Module:
    """The model itself: in eval mode its outputs are detections already, by the limits that it was told."""
    return model


def recognize(state: State) -> Recognized | None:
    """The parts are called as torchvision's. They have no batch norms: both forms are the same."""
    if not has(state, r"head\.(fpn|rpn|roi_heads)\."):
        return None
    layers = {"channels": "head.fpn.inner_blocks.0.0", "hidden": "head.roi_heads.box_head.fc6"}
    widths = {option: output_count(state, layer) for option, layer in layers.items()}
    options: dict[str, Option] = {option: width for option, width in widths.items() if width}
    with_background = output_count(state, "head.roi_heads.box_predictor.cls_score")
    return Recognized(classes=with_background - 1 if with_background else None, options=options)
