"""`fleetnet reparam`: collapse a checkpoint to its deploy form, prove it equal, show what became smaller."""

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError, ModelError, UsageError
from ._show import say, table, tell

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet reparam --model runs/classification/mobileone_s0-photos"
# relative, in float32: the rounding of up to 100 layers; a wrong sign gives about 1
TOLERANCE = 1e-4


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--model", type=str, help="run folder or checkpoint (.safetensors)")
    parser.add_argument(
        "--size",
        type=str | None,
        help="size to deploy at, 224 or 192x256 (default: of the checkpoint)",
    )
    parser.add_argument(
        "--out", type=str, help="file to write (default: deploy.safetensors beside the checkpoint)"
    )


def run(given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("model"):
        raise UsageError(f"--model is missing; example: {EXAMPLE}")

    import torch

    from .. import checkpoint
    from ..files import check_writable
    from ..measure.flops import count
    from ..reparam import allowed, difference, reparameterize
    from ..sizes import parse_size
    from ..tasks import named
    from ..weights.read import locate

    path = locate(Path(given["model"]))
    out = Path(given.get("out") or path.with_name("deploy.safetensors"))
    check_writable(out, "--out")
    loaded = checkpoint.load(path)
    if loaded.meta["form"] == "deploy":
        raise ModelError(f"{path} is in deploy form already; there is nothing to collapse")
    model = loaded.model.eval()
    height, width = parse_size(given["size"]) if given.get("size") else loaded.preprocess.size
    images = torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    deploy = reparameterize(model, images)
    outputs = _computed(model, images)
    largest, relative = difference(outputs, _computed(deploy, images))
    tolerance = TOLERANCE
    if relative > tolerance:  # by a fault, or by what float32 leaves of these weights
        tolerance = allowed(
            tolerance, _computed(copy.deepcopy(model).double(), images.double()), outputs
        )
    with torch.no_grad():
        detects = "scores" in named(model(images[:1]))
    if detects:  # in float32, rounding may swap two of nearly equal score
        exact = copy.deepcopy(model).double()
        nets = exact, reparameterize(exact, images.double())
        with torch.no_grad():
            relative = max(
                relative, difference(*(list(net(images.double()).values()) for net in nets))[1]
            )
    if not relative <= tolerance:
        raise ExportError(
            f"the deploy form differs by {relative:.3g} relative; allowed: {tolerance:.1g}; "
            "nothing is written"
        )
    before, after = ({**_size(m), "macs": count(m, (height, width)).macs} for m in (model, deploy))
    rows = [[name.replace("_", " "), f"{before[name]:,}", f"{after[name]:,}"] for name in before]
    table(f"{path} at {height}x{width}", ["", "multi-branch", "deploy form"], rows)
    tell(
        f"largest difference {largest:.3g}, relative {relative:.3g} (allowed {tolerance:.1g}), on "
        "4 random images"
    )
    checkpoint.save(
        out, deploy, classes=loaded.classes, preprocess=dataclasses.replace(loaded.preprocess, size=(height, width)),
        settings=loaded.meta.get("settings"), metrics=loaded.metrics, source=loaded.meta.get("source"), form="deploy",
        category_ids=loaded.meta.get("category_ids"),
    )  # fmt: skip
    say(f"written: {out}")
    return {
        "model": str(path), "written": str(out), "largest_difference": largest, "relative_difference": relative,
        "tolerance": tolerance, "before": before, "after": after,
    }  # fmt: skip


def _computed(model: Any, images: Any) -> list[Any]:
    """Features and outputs, without detections: those are compared in float64."""
    import torch

    from ..tasks import named

    with torch.no_grad():
        outputs = named(model(images))
        return [*model.backbone(images), *(outputs.values() if "scores" not in outputs else ())]


def _size(model: Any) -> dict[str, int]:
    from torch import nn

    kinds = {
        "convolutions": nn.Conv2d,
        "linear_layers": nn.Linear,
        "batch_norms": (nn.BatchNorm1d, nn.BatchNorm2d),
    }
    modules = list(model.modules())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: sum(isinstance(m, kind) for m in modules) for name, kind in kinds.items()},  # type: ignore[arg-type]
    }
