"""`fleetnet verify`: check an exported file against the checkpoint it was made from."""

from dataclasses import dataclass, field
from pathlib import Path

from ._arguments import TRUST
from ._data import Reading, pictures_of
from ._settings import About, switch
from ._show import say, table

EXAMPLE = "fleetnet verify model.onnx --model runs/classification/mobileone_s0-photos --explain"
LEAST = ("images", "largest difference", "allowed")  # left out first where it is narrow


@dataclass(frozen=True, kw_only=True)
class Verify:
    file: str = field(
        metadata=About(
            help="what `fleetnet export` wrote, with model.json beside it",
            positional=True,
            nargs="?",
            missing="the file is missing",
        )
    )
    model: str = field(
        metadata=About(help="run folder or checkpoint (.safetensors) that it was made from")
    )
    data: str | None = field(
        default=None,
        metadata=About(help="compare on images of this data too, not on random ones alone"),
    )
    reading: Reading = field(default_factory=Reading, metadata=About(help="how the data are read"))
    trust: bool = switch(TRUST)
    explain: bool = switch("where the file differs, name the first layer that does")


def run(settings: Verify) -> dict[str, object]:
    from ..deploy.export import facts_of, verify
    from ..reading import hash_of
    from ..weights.read import locate

    file = Path(settings.file)
    runtime, facts = facts_of(file)
    path = locate(Path(settings.model))
    made_from = None if facts.exported is None else facts.exported.checkpoint_sha256
    if made_from and made_from != hash_of([path]):
        say(f"{file} was made from another checkpoint than {path}")
    parity = verify(
        path,
        file,
        pictures=pictures_of(settings.data, settings.reading, path),
        explain=settings.explain,
        trust=settings.trust,
    )
    row = [
        runtime,
        str(file),
        f"{parity.max_abs:.2e}",
        f"{parity.relative:.2e}",
        f"{parity.tolerance:.0e}",
        parity.images,
    ]
    columns = ["runtime", "file", "largest difference", "relative", "allowed", "images"]
    table("Verified against the multi-branch model", columns, [row], LEAST)
    if parity.agreement:
        say(f"{runtime}: {parity.agreement}")
    return {"model": str(path), "file": str(file), "runtime": runtime, **parity.to_dict()}
