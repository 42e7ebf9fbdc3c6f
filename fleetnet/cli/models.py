"""`fleetnet models`: every variant with its size in both forms and what was published for it."""

import dataclasses
from dataclasses import dataclass, field
from fnmatch import fnmatch

from ..errors import ModelError, suggest
from ..synonyms import head, plain
from ._settings import About
from ._show import say, table
from ._table import PUBLISHED, SIZE, SIZES

EXAMPLE = 'fleetnet models "repvit_*"'

LEAST = ("license", "weights", "deploy M")  # columns left out first where it is narrow


@dataclass(frozen=True, kw_only=True)
class Models:
    pattern: str | None = field(
        default=None,
        metadata=About(help="names to show, with * and ?", usual="all", positional=True, nargs="?"),
    )
    size: str = field(
        default=str(SIZE[0]), metadata=About(help="pixels for the MACs: 224, or 192x256")
    )


def run(settings: Models) -> dict[str, object]:
    from ..sizes import parse_size

    pattern = settings.pattern or "*"
    size = parse_size(settings.size or SIZE)
    names = [name for name in SIZES if fnmatch(name, pattern)]
    if not names:
        raise ModelError(f"no model fits {pattern!r}: {_meant(pattern)}")
    models = [_described(name, size) for name in names]
    rows = [
        [
            model.name,
            f"{model.parameters / 1e6:.2f}",
            f"{model.deploy_parameters / 1e6:.2f}",
            f"{model.deploy_macs / 1e6:.0f}",
            model.top1 or "-",
            model.license or "-",
            model.weights or "-",
        ]
        for model in models
    ]
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
    return {"models": [dataclasses.asdict(model) for model in models]}


@dataclass(frozen=True)
class Network:
    """What is shown of a network."""

    name: str
    parameters: int
    deploy_parameters: int
    deploy_macs: int
    top1: float | None  # published, in percent
    measured_by: str | None
    license: str | None
    weights: str | None


def _described(name: str, size: tuple[int, int]) -> Network:
    """What is known of a network; it is built only to count it at another size than the table's."""
    sizes = SIZES[name] if size == SIZE else _counted(name, size)
    published = PUBLISHED.get(name, (None, None, None, None))
    return Network(name, *sizes, *published)


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
    nearest = suggest(word, SIZES, "model", "fleetnet models")
    return f"{nearest}; networks of timm are named timm/NAME"
