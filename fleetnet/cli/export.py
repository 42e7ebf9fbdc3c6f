"""`fleetnet export`: the file for each runtime, in the deploy form, handed over only when proven equal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..find import names
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet export --model runs/classification/mobileone_s0-photos --to onnx"


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--model", type=str, help="run folder or checkpoint (.safetensors)")
    parser.add_argument(
        "--to",
        type=str,
        help="runtimes, separated by commas, each NAME or NAME:PRECISION, such as mnn:fp16: "
        + ", ".join(names("runtimes")),
    )
    parser.add_argument("--out", type=str, help="folder (default: export/ beside the checkpoint)")
    parser.add_argument(
        "--size", type=str | None, help="size to deploy at, 224 or 192x256 (default: of the checkpoint)"
    )
    parser.add_argument("--opset", type=int | None, help="ONNX operator set (default: the runtime's)")
    parser.add_argument("--dynamic", action="store_true", help="leave the number of images open")
    parser.add_argument("--embed-preprocess", action="store_true", help="take pixels 0 to 255, RGB; normalize inside")
    parser.add_argument(
        "--embed-decode", action="store_true", help="give boxes after NMS, masks or class maps instead of raw outputs"
    )
    parser.add_argument("--data", type=str, help="verify on images of this data too, not on random ones alone")
    parser.add_argument("--format", type=str | None, help="format of the data, where finding it out fails")


def run(given: dict[str, Any]) -> dict[str, Any]:
    for key in ("model", "to"):
        if not given.get(key):
            raise UsageError(f"--{key} is missing; example: {EXAMPLE}")
    from .. import checkpoint, data
    from ..config import parse_size
    from ..find import find
    from ..predict import export
    from ..runtimes import choice, label
    from ..weights import locate

    to = [choice(text) for text in given["to"].split(",")]
    path = locate(Path(given["model"]))
    pictures: list[Any] = []
    if given.get("data"):
        target = find("tasks", checkpoint.read_facts(path)["task"]).TARGET
        pictures = _spread(data.load(given["data"], "val", given.get("format"), target).samples)
    out = Path(given.get("out") or path.parent / "export")
    delivered, agreements = [], []
    for name, precision in to:
        title = label(name, precision)
        say(f"exporting {path} to {title}")
        done = export(
            path,
            name,
            out / title / f"model{find('runtimes', name).suffix}",
            size=parse_size(given["size"]) if given.get("size") else None,
            precision=precision,
            opset=given.get("opset"),
            dynamic=bool(given.get("dynamic")),
            embed_preprocess=bool(given.get("embed_preprocess")),
            embed_decode=bool(given.get("embed_decode")),
            pictures=pictures,
        )
        parity = done.parity.to_dict() if done.parity else {"passed": None}
        agreements.append(done.parity and done.parity.agreement)
        delivered.append(
            {"runtime": name, "precision": precision, "path": str(done.path), "sidecar": str(done.sidecar), **parity}
            | {"unverified": done.unverified}
        )
    rows = [
        [label(d["runtime"], d["precision"]), d["path"]]
        + (["not run here"] + [""] * 3 if d["unverified"] else [
            f"{d['max_abs']:.2e}", f"{d['relative']:.2e}", f"{d['tolerance']:.0e}", d["images"],
        ])
        for d in delivered
    ]  # fmt: skip
    columns = ["runtime", "file", "largest difference", "relative", "allowed", "images"]
    table("Exported and verified against the multi-branch model", columns, rows)
    for d, agreement in zip(delivered, agreements, strict=True):
        if agreement:
            say(f"{d['runtime']}: {agreement}")
        if d["unverified"]:
            say(f"{d['runtime']}: NOT VERIFIED, only inspected: {d['unverified']}")
    return {"model": str(path), "exported": delivered}


def _spread(samples: list[Any]) -> list[Any]:
    """Pictures of up to 16 samples, spread over the list."""
    return [sample.image() if callable(sample.image) else sample.image for sample in samples[:: -(-len(samples) // 16)]]
