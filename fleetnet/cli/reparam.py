"""`fleetnet reparam`: collapse a checkpoint to its deploy form, proven equal."""

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import ExportError, ModelError
from ._settings import About
from ._show import say, table, tell

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..tasks import Model

EXAMPLE = "fleetnet reparam --model runs/classification/mobileone_s0-photos"
# relative, in float32: the rounding of up to 100 layers; a wrong sign gives about 1
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Reparam:
    model: str = field(metadata=About(help="run folder or checkpoint (.safetensors)"))
    size: str | None = field(
        default=None,
        metadata=About(
            help="size to deploy at, 224 or 192x256", usual="of the checkpoint", null=True
        ),
    )
    out: str | None = field(
        default=None,
        metadata=About(help="file to write", usual="deploy.safetensors beside the checkpoint"),
    )


@dataclass(frozen=True)
class Proof:
    """How far the deploy form is from the model, over all that both compute."""

    largest: float
    relative: float  # to the spread of an output
    tolerance: float


def run(settings: Reparam) -> dict[str, object]:
    import torch

    from .. import checkpoint
    from ..files import check_writable
    from ..reparam import reparameterize
    from ..sizes import parse_size
    from ..weights.read import locate

    path = locate(Path(settings.model))
    out = Path(settings.out or path.with_name("deploy.safetensors"))
    check_writable(out, "--out")
    loaded = checkpoint.load(path)
    if loaded.facts.form == "deploy":
        raise ModelError(f"{path} is in deploy form already; there is nothing to collapse")
    model = loaded.model.eval()
    size = parse_size(settings.size) if settings.size else loaded.preprocess.size
    shape = (4, model.channels, *size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    deploy = cast("Model", reparameterize(model, images))
    proof = _prove(model, deploy, images)
    before, after = _size(model, size), _size(deploy, size)
    rows = [[name.replace("_", " "), f"{before[name]:,}", f"{after[name]:,}"] for name in before]
    table(f"{path} at {size[0]}x{size[1]}", ["", "multi-branch", "deploy form"], rows)
    tell(
        f"largest difference {proof.largest:.3g}, relative {proof.relative:.3g} (allowed "
        f"{proof.tolerance:.1g}), on 4 random images"
    )
    checkpoint.save(
        out,
        deploy,
        classes=loaded.classes,
        preprocess=dataclasses.replace(loaded.preprocess, size=size),
        settings=loaded.facts.settings,
        metrics=loaded.metrics,
        source=loaded.facts.source,
        form="deploy",
        category_ids=loaded.facts.category_ids,
    )
    say(f"written: {out}")
    return {
        "model": str(path),
        "written": str(out),
        "largest_difference": proof.largest,
        "relative_difference": proof.relative,
        "tolerance": proof.tolerance,
        "before": before,
        "after": after,
    }


def _prove(model: "Model", deploy: "Model", images: "Tensor") -> Proof:
    """How far the forms are apart on images (N, 3, H, W); `ExportError` where that is too far."""
    from ..reparam import allowed, difference

    outputs = _computed(model, images)
    largest, relative = difference(outputs, _computed(deploy, images))
    tolerance = TOLERANCE
    if relative > tolerance:  # by a fault, or by what float32 leaves of these weights
        exact = _computed(copy.deepcopy(model).double(), images.double())
        tolerance = allowed(tolerance, exact, outputs)
    relative = max(relative, _of_detections(model, images))
    if not relative <= tolerance:
        raise ExportError(
            f"the deploy form differs by {relative:.3g} relative; allowed: {tolerance:.1g}; "
            "nothing is written"
        )
    return Proof(largest, relative, tolerance)


def _of_detections(model: "Model", images: "Tensor") -> float:
    """The relative difference of detections; 0 of a model that gives none.

    It is measured in float64: in float32, rounding may swap two of nearly equal score.
    """
    import torch

    from ..reparam import difference, reparameterize
    from ..tasks import named

    with torch.no_grad():
        if "scores" not in named(model(images[:1])):
            return 0.0
        exact, images = copy.deepcopy(model).double(), images.double()
        collapsed = reparameterize(exact, images)
        reference, outputs = (list(net(images).values()) for net in (exact, collapsed))
    return difference(reference, outputs)[1]


def _computed(model: "Model", images: "Tensor") -> "list[Tensor]":
    """Features and outputs, without detections: those are compared in float64."""
    import torch

    from ..tasks import named

    with torch.no_grad():
        outputs = named(model(images))
        return [*model.backbone(images), *(outputs.values() if "scores" not in outputs else ())]


def _size(model: "nn.Module", size: tuple[int, int]) -> dict[str, int]:
    """Numbers of parameters, of layers by kind, and of multiplications for an image of a size."""
    from torch import nn

    from ..measure.flops import count

    modules = list(model.modules())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "convolutions": sum(isinstance(module, nn.Conv2d) for module in modules),
        "linear_layers": sum(isinstance(module, nn.Linear) for module in modules),
        "batch_norms": sum(
            isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in modules
        ),
        "macs": count(model, size).macs,
    }
