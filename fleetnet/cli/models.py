"""`fleetnet models`: every variant with its size in both forms and what was published for it."""

from typing import TYPE_CHECKING, Any

from ..errors import ModelError, choose
from ._show import table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = 'fleetnet models "repvit_*"'


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("pattern", nargs="?", type=str, help="names to show, with * and ? (default: all)")
    parser.add_argument("--size", type=str, help="pixels for the MACs: 224, or 192x256 (default: 224)")


def run(given: dict[str, Any]) -> dict[str, Any]:
    import torch

    from ..backbones import pretrained, variants
    from ..config import parse_size
    from ..flops import count
    from ..reparam import reparameterize
    from ..tasks import build

    pattern = given.get("pattern") or "*"
    size = parse_size(given.get("size") or 224)
    names = list(variants(pattern))
    if not names:
        nearest = choose(pattern.strip("*?"), variants(), "model", "fleetnet models")
        raise ModelError(f"no model fits {pattern!r}: {nearest}; or timm/NAME")
    models: list[dict[str, Any]] = []
    for name in names:
        with torch.device("meta"):
            model = build(name).eval()
            example = torch.empty(1, 3, *size)
        deploy = reparameterize(model, example)
        known = pretrained(name)
        models.append(
            {
                "name": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "deploy_parameters": sum(p.numel() for p in deploy.parameters()),
                "deploy_macs": count(deploy, example).macs,
                "top1": known.top1 if known else None,
                "measured_by": known.measured_by if known else None,
                "license": known.license if known else None,
                "weights": known.source if known else None,
            }
        )
    rows = [
        [
            m["name"], f"{m['parameters'] / 1e6:.2f}", f"{m['deploy_parameters'] / 1e6:.2f}",
            f"{m['deploy_macs'] / 1e6:.0f}", m["top1"] or "-", m["license"] or "-", m["weights"] or "-",
        ]
        for m in models
    ]  # fmt: skip
    columns = ["model", "params M", "deploy M", f"MMACs @{size[0]}x{size[1]}", "ImageNet top-1 %", "license", "weights"]
    table("Backbones; each is a classifier by itself", columns, rows)
    return {"models": models}
