"""Recipes: settings of `fleetnet train` by name, those of published runs and some of ours.

A recipe is a YAML file of this folder that begins with comments. The first says what it trains, and
each of the others has a word before it; lines that go on are indented:

    # SSDLite with ParC-Net-S on blood cells (BCCD), from scratch, 192x256.
    # Command: fleetnet train --recipe bccd_ssd --data bccd/
    # Measured: AP 41.5, AP50 70.6 on 87 images; beside torchvision's in
    #   benchmarks/torchvision_heads.py
    # Hardware: one CPU thread, 20 minutes

`Published` in the place of `Measured` is a figure of the authors', with its source; then `Differs`
says what is not as they had it.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..errors import UsageError, suggest
from ..reading import SMALL, read_text

FOLDER = Path(__file__).parent
WORDS = "Command", "Measured", "Published", "Hardware", "Differs"


@dataclass(frozen=True)
class Recipe:
    """What the comments of a recipe say."""

    name: str
    title: str
    command: str
    figure: str  # published or measured, with its source
    is_published: bool
    hardware: str
    differs: str = ""


def names(pattern: str = "*") -> list[str]:
    """The recipes whose name fits a pattern with * and ?."""
    files = sorted(FOLDER.glob("*.yaml"))
    return [file.stem for file in files if fnmatch(file.stem, pattern)]


def locate(recipe: str) -> Path:
    """The file of a recipe: a path, or a name of this folder with or without .yaml.

    Raises `UsageError`, with the nearest name, where there is neither.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    ours = FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    if ours.is_file() and path.parent.name in ("", "recipes"):
        return ours
    beside = [file.stem for file in sorted(path.parent.glob("*.yaml"))]
    raise UsageError(
        f"no recipe {recipe!r}, neither a file nor a name: "
        f"{suggest(path.stem, [*beside, *names()], 'recipe', 'fleetnet recipes')}"
    )


def about(name: str) -> Recipe:
    """What the comments of a recipe of this folder say."""
    return parse(name, read_text(FOLDER / f"{name}.yaml", SMALL))


def parse(name: str, text: str) -> Recipe:
    """What the comments at the beginning of a recipe say; `UsageError` where a part is missing."""
    parts = {"": ""}
    word = ""
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        head = re.match(rf"# ({'|'.join(WORDS)}): ", line)
        if head is not None:
            word = head.group(1)
            parts[word] = line[head.end() :]
        else:
            parts[word] = f"{parts[word]} {line[2:].strip()}".strip()
    figure = parts.get("Published") or parts.get("Measured", "")
    for part, value in (("Command", parts.get("Command")), ("Published or Measured", figure)):
        if not value:
            raise UsageError(f"recipe {name}: its comments have no line '# {part}: ...'")
    return Recipe(
        name,
        parts[""],
        parts["Command"],
        figure,
        "Published" in parts,
        parts.get("Hardware", ""),
        parts.get("Differs", ""),
    )
