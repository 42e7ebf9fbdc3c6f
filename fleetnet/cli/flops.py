"""`fleetnet flops`: parameters, MACs, FLOPs, activations and bytes of each module, in both forms."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from ..errors import ModelError, UsageError
from ..files import write_rows
from ._arguments import check_outputs, usual_classes, usual_sizes
from ._show import say, table, tell

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from ..tasks import Model

EXAMPLE = "fleetnet flops --model fasternet_t0 --size 224 --depth 3"
FORMS = ("multi-branch", "deploy")
COLUMNS = [
    "module", "kind", "parameters", "MMACs (papers' FLOPs)", "MFLOPs (2 a MAC)", "K "
                                                                                 "activations", "MB "
                                                                                                "moved",
    "FLOPs/byte",
]  # fmt: skip

# left out first where it is narrow
LEAST = ("FLOPs/byte", "MB moved", "K activations", "MFLOPs (2 a MAC)", "kind")


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "--model", type=str, help="name of a model, run folder or checkpoint (.safetensors)"
    )
    parser.add_argument(
        "--size",
        type=str | None,
        help=f"pixels: 224, or 192x256 (default: of the checkpoint; of a name {usual_sizes()})",
    )
    parser.add_argument(
        "--depth", type=NonNegativeInt, help="levels of modules, 0 for the sum alone (default: 3)"
    )
    parser.add_argument(
        "--form", type=Literal["both", "multi-branch", "deploy"], help="(default: both)"
    )
    parser.add_argument(
        "--style",
        type=Literal["table", "fvcore"],
        help="fvcore: its layout and counting, which has batch norms and pooling in it (default: "
        "table)",
    )
    parser.add_argument(
        "--classes", type=PositiveInt, help=f"of a model given by name (default: {usual_classes()})"
    )
    parser.add_argument(
        "--output-stride",
        type=int,
        help="of a model given by name: 8, 16 or 32 (default: the task's)",
    )
    parser.add_argument(
        "--options", type=dict[str, bool | int | float | str],
        help="of a model given by name: the family's own, as --options.mixing conv",
    )  # fmt: skip
    parser.add_argument("--csv", type=str, help="file for the table")


def run(given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("model"):
        raise UsageError(f"--model is missing; example: {EXAMPLE}")
    check_outputs(given, files=("csv",))
    form, style, depth = (
        given.get("form", "both"),
        given.get("style", "table"),
        given.get("depth", 3),
    )

    import torch

    from ..measure.flops import fvcore_table, parts
    from ..reparam import form_of, reparameterize

    model, (height, width) = _model(given)
    wanted = (
        [form_of(model)]
        if form_of(model) == "deploy" and form == "both"
        else FORMS
        if form == "both"
        else [form]
    )
    if form_of(model) == "deploy" and form == "multi-branch":
        raise ModelError(
            f"{given['model']} is in deploy form, which has no branches: leave --form out"
        )
    forms: dict[str, list[dict[str, Any]]] = {}
    for name in wanted:
        network = (
            model
            if name == form_of(model)
            else reparameterize(model, torch.zeros(1, 3, height, width))
        )
        rows = [
            {"module": part.name, "kind": part.kind, **dataclasses.asdict(part.counts)}
            | {"flops": part.counts.flops, "intensity": part.counts.intensity}
            for part in parts(network, (height, width), depth)
        ]
        forms[name] = rows
        title = f"{given['model']}, {name}, one image of {height}x{width}"
        if style == "fvcore":
            tell(f"{title}\n{fvcore_table(network, (height, width), depth)}")
        else:
            table(title, COLUMNS, [_line(row) for row in rows], LEAST)
    if style == "table":
        say(
            "counted: convolutions, matrix products and attention; activations are what they "
            "write, bytes moved their inputs, weights and outputs, each once"
        )
    if given.get("csv"):
        columns = ["form", *next(iter(forms.values()))[0]]
        write_rows(
            given["csv"],
            columns,
            ({"form": name, **row} for name, rows in forms.items() for row in rows),
        )
    return {"model": given["model"], "size": [height, width], "forms": forms}


def _line(row: dict[str, Any]) -> list[str]:
    return [
        row["module"] or "(all)", row["kind"], f"{row['parameters']:,}", f"{row['macs'] / 1e6:,.3f}",
        f"{row['flops'] / 1e6:,.3f}", f"{row['activations'] / 1e3:,.1f}", f"{row['bytes'] / 1e6:,.3f}",
        f"{row['intensity']:.1f}",
    ]  # fmt: skip


def _model(given: dict[str, Any]) -> "tuple[Model, tuple[int, int]]":
    """The model in eval mode, and the size to count at."""
    from .. import checkpoint, tasks
    from ..sizes import parse_size
    from ..tasks import build

    size = parse_size(given["size"]) if given.get("size") else None
    path = Path(given["model"])
    if path.suffix == ".safetensors" or (path.exists() and path.suffix not in (".yaml", ".yml")):
        for key in ("classes", "output_stride", "options"):
            if given.get(key) is not None:
                raise UsageError(
                    f"--{key.replace('_', '-')} is for models given by name; "
                    f"{given['model']} has its own"
                )
        loaded = checkpoint.load(path)
        return loaded.model, size or loaded.preprocess.size
    model = build(
        given["model"],
        given.get("classes"),
        output_stride=given.get("output_stride"),
        options=given.get("options"),
    ).eval()
    return model, size or tasks.find(model.task).SIZE
