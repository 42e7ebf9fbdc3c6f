"""`fleetnet flops`: parameters, MACs, FLOPs, activations and bytes of each module."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ..channels import RGB, parse_channels
from ..errors import ModelError, UsageError
from ..files import write_rows
from ._arguments import check_outputs, flag, usual_classes, usual_sizes
from ._settings import About
from ._show import say, table, tell

if TYPE_CHECKING:
    from torch import nn

    from ..measure.flops import Part
    from ..tasks import Model

EXAMPLE = "fleetnet flops --model fasternet_t0 --size 224 --depth 3"
FORMS = ("multi-branch", "deploy")
COLUMNS = [
    "module",
    "kind",
    "parameters",
    "MMACs (papers' FLOPs)",
    "MFLOPs (2 a MAC)",
    "K activations",
    "MB moved",
    "FLOPs/byte",
]
# left out first where it is narrow
LEAST = ("FLOPs/byte", "MB moved", "K activations", "MFLOPs (2 a MAC)", "kind")


@dataclass(frozen=True, kw_only=True)
class Flops:
    model: str = field(
        metadata=About(help="name of a model, run folder or checkpoint (.safetensors)")
    )
    size: str | None = field(
        default=None,
        metadata=About(
            help="pixels: 224, or 192x256",
            usual=f"of the checkpoint; of a name {usual_sizes()}",
            null=True,
        ),
    )
    depth: int = field(
        default=3,
        metadata=About(help="levels of modules, 0 for the sum alone", kind=NonNegativeInt),
    )
    form: Literal["both", "multi-branch", "deploy"] = field(default="both", metadata=About(help=""))
    style: Literal["table", "fvcore"] = field(
        default="table",
        metadata=About(
            help="fvcore: its layout and counting, which has batch norms and pooling in it"
        ),
    )
    classes: int | None = field(
        default=None,
        metadata=About(help="of a model given by name", usual=usual_classes(), kind=PositiveInt),
    )
    output_stride: int | None = field(
        default=None,
        metadata=About(help="of a model given by name: 8, 16 or 32", usual="the task's"),
    )
    channels: int | str | None = field(
        default=None,
        metadata=About(
            help="of a model given by name: gray, rgb, rgba, or a number such as 5",
            usual="3",
            null=True,
        ),
    )
    options: dict[str, bool | int | float | str] | None = field(
        default=None,
        metadata=About(help="of a model given by name: the family's own, as --options.mixing conv"),
    )
    csv: str | None = field(default=None, metadata=About(help="file for the table"))


def run(settings: Flops) -> dict[str, object]:
    check_outputs(files={"--csv": settings.csv})
    from ..measure.flops import fvcore_table, parts

    model, size = _model(settings)
    documents: dict[str, list[dict[str, object]]] = {}
    for form, network in _forms(settings, model, size).items():
        counted = parts(network, size, settings.depth)
        documents[form] = [_document(part) for part in counted]
        title = f"{settings.model}, {form}, one image of {size[0]}x{size[1]}"
        if settings.style == "fvcore":
            tell(f"{title}\n{fvcore_table(network, size, settings.depth)}")
        else:
            table(title, COLUMNS, [_line(part) for part in counted], LEAST)
    if settings.style == "table":
        say(
            "counted: convolutions, matrix products and attention; activations are what they "
            "write, bytes moved their inputs, weights and outputs, each once"
        )
    if settings.csv:
        _write(settings.csv, documents)
    return {"model": settings.model, "size": list(size), "forms": documents}


def _forms(settings: Flops, model: "Model", size: tuple[int, int]) -> "dict[str, nn.Module]":
    """The forms to count, by name; `ModelError` for branches of a model that has none."""
    import torch

    from ..reparam import form_of, reparameterize

    own = form_of(model)
    if own == "deploy" and settings.form == "multi-branch":
        raise ModelError(
            f"{settings.model} is in deploy form, which has no branches: leave --form out"
        )
    if settings.form != "both":
        names: Sequence[str] = (settings.form,)
    else:
        names = ("deploy",) if own == "deploy" else FORMS
    example = torch.zeros(1, model.channels, *size)
    return {name: model if name == own else reparameterize(model, example) for name in names}


def _document(part: "Part") -> dict[str, object]:
    return {
        "module": part.name,
        "kind": part.kind,
        **dataclasses.asdict(part.counts),
        "flops": part.counts.flops,
        "intensity": part.counts.intensity,
    }


def _line(part: "Part") -> list[str]:
    counts = part.counts
    return [
        part.name or "(all)",
        part.kind,
        f"{counts.parameters:,}",
        f"{counts.macs / 1e6:,.3f}",
        f"{counts.flops / 1e6:,.3f}",
        f"{counts.activations / 1e3:,.1f}",
        f"{counts.bytes / 1e6:,.3f}",
        f"{counts.intensity:.1f}",
    ]


def _write(path: str, documents: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
    """A file of the tables of all forms."""
    columns = ["form", *next(iter(documents.values()))[0]]
    rows = ({"form": form, **row} for form, table in documents.items() for row in table)
    write_rows(path, columns, rows)


def _model(settings: Flops) -> "tuple[Model, tuple[int, int]]":
    """The model in eval mode, and the size to count at."""
    from .. import checkpoint, tasks
    from ..sizes import parse_size
    from ..tasks import build

    size = parse_size(settings.size) if settings.size else None
    path = Path(settings.model)
    if path.suffix == ".safetensors" or (path.exists() and path.suffix not in (".yaml", ".yml")):
        of_a_name = {
            "classes": settings.classes,
            "output_stride": settings.output_stride,
            "options": settings.options,
            "channels": settings.channels,
        }
        for key, value in of_a_name.items():
            if value is not None:
                raise UsageError(
                    f"{flag(key)} is for models given by name; {settings.model} has its own"
                )
        loaded = checkpoint.load(path)
        return loaded.model, size or loaded.preprocess.size
    model = build(
        settings.model,
        settings.classes,
        output_stride=settings.output_stride,
        options=settings.options,
        channels=RGB if settings.channels is None else parse_channels(settings.channels),
    ).eval()
    return model, size or tasks.find(model.task).SIZE
