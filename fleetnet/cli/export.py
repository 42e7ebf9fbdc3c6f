"""`fleetnet export`: the file for each runtime, in the deploy form, handed over only when proven equal."""
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, choose
from ..find import names
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet export --model runs/classification/mobileone_s0-photos --to onnx"


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("--model", type=str, help="run folder or checkpoint (.safetensors)")
    parser.add_argument("--to", type=str, help=f"runtimes, separated by commas: {', '.join(names('runtimes'))}")
    parser.add_argument("--out", type=str, help="folder (default: export/ beside the checkpoint)")
    parser.add_argument("--size", type=str | None, help="size to deploy at, 224 or 192x256 (default: of the checkpoint)")
    parser.add_argument("--opset", type=int | None, help="ONNX operator set (default: the runtime's)")
    parser.add_argument("--dynamic", action="store_true", help="leave the number of images open")
    parser.add_argument("--embed-preprocess", action="store_true", help="take pixels 0 to 255, RGB; normalize inside")
    parser.add_argument("--data", type=str, help="verify on images of this data too, not on random ones alone")


def run(given: dict[str, Any]) -> dict[str, Any]:
    for key in ("model", "to"):
        if not given.get(key):
            raise UsageError(f"--{key} is missing; example: {EXAMPLE}")
    to = given["to"].split(",")
    for name in to:
        if name not in names("runtimes"):
            raise UsageError(f"no runtime {name!r}: {choose(name, names('runtimes'))}")

    from ..checkpoint import load
    from ..config import parse_size
    from ..find import find
    from ..runtimes import Preprocessed, deliver
    from ..weights import locate

    path = locate(Path(given["model"]))
    loaded = load(path)
    size = parse_size(given["size"]) if given.get("size") else loaded.preprocess.size
    preprocess = dataclasses.replace(loaded.preprocess, size=size)
    examples = _examples(given.get("data"), preprocess, bool(given.get("embed_preprocess")))
    model: Any = loaded.model
    if given.get("embed_preprocess"):
        model = Preprocessed(model, preprocess.mean, preprocess.std, preprocess.channel_order).eval()
    facts = {
        **loaded.meta, "size": list(size), "preprocess": preprocess.to_dict(),
        "embedded_preprocess": bool(given.get("embed_preprocess")), "checkpoint": path.name, "checkpoint_sha256": _hash(path),
    }  # fmt: skip
    out = Path(given.get("out") or path.parent / "export")
    delivered = []
    for name in to:
        say(f"exporting to {name} at {size[0]}x{size[1]}")
        done = deliver(
            model, examples[0], out / name / f"model{find('runtimes', name).suffix}", name, facts,
            opset=given.get("opset"), dynamic=bool(given.get("dynamic")), examples=examples,
        )  # fmt: skip
        delivered.append({"runtime": name, "path": str(done.path), "sidecar": str(done.sidecar), **done.parity.to_dict()})
    rows = [
        [d["runtime"], d["path"], f"{d['max_abs']:.2e}", f"{d['relative']:.2e}", f"{d['tolerance']:.0e}", d["images"]]
        for d in delivered
    ]
    columns = ["runtime", "file", "largest difference", "relative", "allowed", "images"]
    table("Exported and verified against the multi-branch model", columns, rows)
    return {"model": str(path), "exported": delivered}


def _hash(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _examples(data: str | None, preprocess: Any, embed: bool) -> list[Any]:
    """Inputs (1, 3, H, W) to compare on: random ones, and up to 16 images of the data."""
    import torch

    from .. import data as formats
    from ..transforms import ImageDataset

    generator = torch.Generator().manual_seed(0)
    if embed:  # pixels instead of normalized values
        preprocess = dataclasses.replace(preprocess, mean=(0, 0, 0), std=(1, 1, 1), channel_order="RGB")
        inputs = [torch.rand(1, 3, *preprocess.size, generator=generator) for _ in range(4)]
    else:
        inputs = [torch.randn(1, 3, *preprocess.size, generator=generator) for _ in range(4)]
    if data is not None:
        split = formats.load(data, "val")
        step = max(1, len(split.samples) // 16)
        read = ImageDataset(dataclasses.replace(split, samples=split.samples[::step][:16]), preprocess)
        inputs += [item[0][None] for item in map(read.__getitem__, range(len(read))) if not isinstance(item, str)]
    return [image * 255 for image in inputs] if embed else inputs
