"""`fleetnet verify`: check an exported file against the checkpoint it was made from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ._arguments import TRUST
from ._show import say, table
from .export import LEAST, pictures_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet verify model.onnx --model runs/classification/mobileone_s0-photos --explain"


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "file", type=str, nargs="?", help="what `fleetnet export` wrote, with model.json beside it"
    )
    parser.add_argument(
        "--model", type=str, help="run folder or checkpoint (.safetensors) that it was made from"
    )
    parser.add_argument(
        "--data", type=str, help="compare on images of this data too, not on random ones alone"
    )
    parser.add_argument("--format", type=str | None, help="format of the data (default: found out)")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument(
        "--explain",
        action="store_true",
        help="where the file differs, name the first layer that does",
    )


def run(given: dict[str, Any]) -> dict[str, Any]:
    for key in ("file", "model"):
        if not given.get(key):
            raise UsageError(
                f"{'the file' if key == 'file' else '--model'} is missing; example: {EXAMPLE}"
            )

    from ..deploy.predictor import facts_of, verify
    from ..reading import hash_of
    from ..weights.read import locate

    file = Path(given["file"])
    runtime, facts = facts_of(file)
    path = locate(Path(given["model"]))
    made_from = facts.get("checkpoint_sha256")
    if made_from and made_from != hash_of([path]):
        say(f"{file} was made from another checkpoint than {path}")
    parity = verify(
        path,
        file,
        pictures=pictures_of(given, path),
        explain=bool(given.get("explain")),
        trust=bool(given.get("trust")),
    )
    row = [
        runtime, str(file), f"{parity.max_abs:.2e}", f"{parity.relative:.2e}", f"{parity.tolerance:.0e}", parity.images
    ]  # fmt: skip
    columns = ["runtime", "file", "largest difference", "relative", "allowed", "images"]
    table("Verified against the multi-branch model", columns, [row], LEAST)
    if parity.agreement:
        say(f"{runtime}: {parity.agreement}")
    return {"model": str(path), "file": str(file), "runtime": runtime, **parity.to_dict()}
