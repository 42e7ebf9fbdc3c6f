"""`fleetnet models`: every variant with its size in both forms and what was published for it."""

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, choose
from ..synonyms import head, plain
from ._show import say, table
from ._table import PUBLISHED, SIZE, SIZES

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = 'fleetnet models "repvit_*"'

LEAST = ("license", "weights", "deploy M")  # columns left out first where it is narrow


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "pattern", nargs="?", type=str, help="names to show, with * and ? (default: all)"
    )
    parser.add_argument(
        "--size", type=str, help="pixels for the MACs: 224, or 192x256 (default: 224)"
    )


def run(given: dict[str, Any]) -> dict[str, Any]:
    from ..sizes import parse_size

    pattern = given.get("pattern") or "*"
    size = parse_size(given.get("size") or SIZE)
    names = [name for name in SIZES if fnmatch(name, pattern)]
    if not names:
        raise ModelError(f"no model fits {pattern!r}: {_meant(pattern)}")
    models = [_described(name, size) for name in names]
    rows = [
        [
            m["name"], f"{m['parameters'] / 1e6:.2f}", f"{m['deploy_parameters'] / 1e6:.2f}",
            f"{m['deploy_macs'] / 1e6:.0f}", m["top1"] or "-", m["license"] or "-", m["weights"] or "-",
        ]
        for m in models
    ]  # fmt: skip
    columns = [
        "model",
        "params M",
        "deploy M",
        f"MMACs @{size[0]}x{size[1]}",
        "ImageNet top-1 %",
        "license",
        "weights",
    ]
    table("Backbones; each is a classifier by itself", columns, rows, LEAST)
    return {"models": models}


def _described(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """What is known of a network; it is built only to count it at another size than the table's."""
    parameters, of_deploy, macs = SIZES[name] if size == SIZE else _counted(name, size)
    top1, measured_by, license, weights = PUBLISHED.get(name, (None,) * 4)
    return {
        "name": name, "parameters": parameters, "deploy_parameters": of_deploy, "deploy_macs": macs, "top1": top1,
        "measured_by": measured_by, "license": license, "weights": weights,
    }  # fmt: skip


def _counted(name: str, size: tuple[int, int]) -> tuple[int, int, int]:
    """As a line of SIZES, for images of another size (height, width)."""
    import torch

    from ..measure.flops import count
    from ..reparam import reparameterize
    from ..tasks import build

    say(f"counting {name} at {size[0]}x{size[1]}")
    with torch.device("meta"):
        model, example = build(name).eval(), torch.empty(1, 3, *size)
    deploy = reparameterize(model, example)  # ParC's kernels depend on the size
    parameters, of_deploy = (sum(p.numel() for p in net.parameters()) for net in (model, deploy))
    return parameters, of_deploy, count(deploy, example).macs


def _meant(pattern: str) -> str:
    """What may have been looked for: a family, a head, or a network by nearly this name."""
    word = pattern.strip("*?")
    family = [name for name in SIZES if plain(word) and plain(name).startswith(plain(word))]
    if family:
        return f"did you mean {' or '.join(map(repr, family[:3]))}? `fleetnet models` lists all {len(SIZES)}"
    if head(word):
        return f"it is a head, which goes on any of the networks here, as {head(word)}/repvit_m0_9"
    nearest = choose(word, SIZES, "model", "fleetnet models")
    return f"{nearest}; networks of timm are named timm/NAME"
