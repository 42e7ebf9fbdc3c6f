"""Train torchvision's own detector or segmenter as our recipe trains ours: only the network differs.

    python benchmarks/torchvision_heads.py --task ssd --data ../shared/data/bccd_voc --recipe NAME \
        --out runs/torchvision/ssd.json

    ssd         ssdlite320_mobilenet_v3_large
    maskrcnn    MaskRCNN on a feature pyramid of mobilenet_v3_large, of the maps at strides 4 to 32, as in ours
                (torchvision's default, two maps of stride 32, would be the weaker peer)
    deeplabv3   deeplabv3_mobilenet_v3_large

All start from random weights. Layers, initial values, matching, losses, NMS and the pasting of
masks are torchvision's; images, augmentation, schedule, optimizer, moving average, choice of the
best epoch and metric are those of `fleetnet.fit`, which runs both. torchvision's own resizing and
normalizing is taken out, so that both see the same tensors. Every setting of a recipe is also a
flag, which wins. Of the recipe's `options`, meant for our networks, those in OPTIONS are handed on.
Prints the conditions, a line an epoch, and as the last line the result, as JSON.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
from torchvision.ops import MultiScaleRoIAlign

import fleetnet
from fleetnet import data
from fleetnet.boxes import Limits
from fleetnet.cli._arguments import add_settings, check_types
from fleetnet.find import find
from fleetnet.geometry import Place, Scale
from fleetnet.predictions import WHOLE, Detections
from fleetnet.recipes import locate
from fleetnet.tasks import Model
from fleetnet.training.config import read_recipe

OPTIONS = {"ssd": (), "maskrcnn": ("anchor", "samples", "proposals"), "deeplabv3": ("auxiliary",)}


def ssd(classes: int) -> nn.Module:
    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes + 1
    )


def maskrcnn(
    classes: int, anchor: int = 32, samples: int = 512, proposals: int = 1000
) -> nn.Module:
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6,
        returned_layers=[1, 2, 3, 5],
    )  # fmt: skip
    return MaskRCNN(
        backbone, classes + 1, box_detections_per_img=100, box_batch_size_per_image=samples,
        rpn_anchor_generator=AnchorGenerator(tuple((anchor * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        rpn_pre_nms_top_n_train=2 * proposals, rpn_post_nms_top_n_train=2 * proposals,
        rpn_pre_nms_top_n_test=proposals, rpn_post_nms_top_n_test=proposals,
    )  # fmt: skip


def deeplabv3(classes: int, auxiliary: bool = False) -> nn.Module:
    return deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes, aux_loss=auxiliary
    )


NETWORKS = {"ssd": ssd, "maskrcnn": maskrcnn, "deeplabv3": deeplabv3}


class Untouched(nn.Module):
    """In place of torchvision's transform of images: they have their size and their values already."""

    def forward(self, images: Tensor, targets: Any = None) -> tuple[ImageList, Any]:
        return ImageList(images, [(images.shape[-2], images.shape[-1])] * len(images)), targets

    def postprocess(self, result: Any, image_sizes: Any, original_image_sizes: Any) -> Any:
        return result


class Peer(Model):
    """torchvision's network in the shape that `fit` takes; in training a detector gives its input, for `loss`."""

    def __init__(
        self, task: str, classes: int, output_stride: int | None, options: Mapping[str, Any]
    ):
        nn.Module.__init__(self)
        net = NETWORKS[task](
            classes, **{key: options[key] for key in OPTIONS[task] if key in options}
        )
        # 0.01 and 0.03 are for long runs: in 500 steps the statistics would not settle
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
        if task != "deeplabv3":
            net.transform = Untouched()
        self.name, self.task, self.classes = f"torchvision/{task}", task, classes
        self.drop_path, self.options = 0.0, dict(options)
        self.output_stride = (
            find("tasks", task).OUTPUT_STRIDE if output_stride is None else output_stride
        )
        self.report = self.preprocess = None
        self.backbone: Any = net._modules.pop("backbone")
        # for its own `forward`; as a part it has our name only
        net.__dict__["backbone"] = self.backbone
        self.head: nn.Module = net

    def forward(self, image: Tensor) -> Any:
        if self.task == "deeplabv3":
            outputs = self.head(image)
            names = {"out": "logits", "aux": "auxiliary"}
            return {
                names[key]: value for key, value in outputs.items() if self.training or key == "out"
            }
        return image if self.training else padded(self.head(image))


def padded(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """torchvision's detections of each image, filled up with zeros, as our tasks decode them."""
    count = max(1, *(len(one["scores"]) for one in found))
    outputs = {}
    for key in found[0]:
        values = [one[key] for one in found]
        # ours are without the background
        values = [v - 1 for v in values] if key == "labels" else values
        values = [v[:, 0] for v in values] if key == "masks" else values
        outputs[key] = torch.stack(
            [torch.cat([v, v.new_zeros(count - len(v), *v.shape[1:])]) for v in values]
        )
    return outputs


def loss(head: nn.Module, outputs: Tensor, targets: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvision's losses of images (N, 3, H, W), which are the `outputs` here."""
    objects = []
    for i in range(len(outputs)):
        solid = (targets["boxes"][i][:, 2:] > targets["boxes"][i][:, :2]).all(1)
        one = {
            key: targets[key][i][solid] for key in ("boxes", "labels", "masks") if key in targets
        }
        objects.append({**one, "labels": one["labels"] + 1})
    return head(outputs, objects)


class PastedAsLearned(Detections):
    """Ours, but with masks that are pasted as torchvision learns them."""

    def restore(self, place: Place, scale: Scale = WHOLE) -> Detections:
        boxes = place.back(self.boxes)
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        unclipped = place.back(self.boxes[solid], clip=False)
        probabilities = self.box_masks[solid][:, None]
        masks = paste_masks_in_image(probabilities, unclipped, (place.height, place.width))
        return Detections(boxes[solid], self.scores[solid], self.labels[solid], masks[:, 0] > 0.5)


def decode(
    outputs: Mapping[str, Tensor], size: tuple[int, int], limits: Limits | None = None
) -> list[PastedAsLearned]:
    usual = find("tasks", "maskrcnn").LIMITS
    return [chosen.within(limits or usual) for chosen in PastedAsLearned.of_padded(outputs)]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_settings(parser, fleetnet.TrainConfig)
    parser.add_argument("--task", choices=tuple(NETWORKS), required=True)
    parser.add_argument("--recipe", help="a recipe of ours; flags win over it")
    parser.add_argument(
        "--out", required=True, help="JSON file; the run's files go to a folder beside it"
    )
    given = dict(parser.parse_args(defaults=False).as_dict())
    task, recipe, out = given.pop("task"), given.pop("recipe", None), Path(given.pop("out"))
    settings = (
        check_types(fleetnet.TrainConfig, read_recipe(locate(recipe)), recipe) if recipe else {}
    )
    config = fleetnet.TrainConfig(**{**settings, **given, "model": f"torchvision/{task}"})
    if config.threads:
        torch.set_num_threads(config.threads)
    ours: Any = find("tasks", task)
    if task != "deeplabv3":
        ours.loss = loss
    if task == "maskrcnn":
        ours.decode = decode

    target = ours.TARGET
    train, val = (
        data.load(config.data, split, config.format, target) for split in ("train", "val")
    )
    torch.manual_seed(config.seed)
    model = Peer(task, len(train.classes), config.output_stride, config.options)
    conditions = {
        "network": model.name, "parameters": sum(p.numel() for p in model.parameters()),
        "train": len(train.samples), "val": len(val.samples), "classes": len(train.classes),
        "options_not_used": sorted(config.options.keys() - set(OPTIONS[task])),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "settings": config.to_dict(),
    }  # fmt: skip
    print(json.dumps(conditions), flush=True)
    began = time.monotonic()
    best = fleetnet.fit(
        model,
        train,
        val,
        config,
        out.with_suffix(""),
        on_epoch=lambda line: print(json.dumps(line), flush=True),
    )
    log = [
        json.loads(line) for line in (out.with_suffix("") / "log.jsonl").read_text().splitlines()
    ]
    plain = {
        k: v for k, v in best.items() if isinstance(v, int | float | str | None) and not _nan(v)
    }
    result = {
        **conditions, "best": plain, "last": {key: log[-1].get(key) for key in ("raw", "ema")},
        "images_seen": sum(line["train"]["images"] for line in log), "minutes": (time.monotonic() - began) / 60,
    }  # fmt: skip
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


if __name__ == "__main__":
    main()
