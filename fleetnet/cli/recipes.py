"""`fleetnet recipes`: the settings of published runs, and of ours, that `train --recipe` takes."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import UsageError, suggest
from ._settings import About
from ._show import say, table

if TYPE_CHECKING:
    from ..recipes import Recipe

EXAMPLE = 'fleetnet recipes "repvit_*"'


@dataclass(frozen=True, kw_only=True)
class Recipes:
    pattern: str | None = field(
        default=None,
        metadata=About(help="names to show, with * and ?", usual="all", positional=True, nargs="?"),
    )


def run(settings: Recipes) -> dict[str, object]:
    from .. import recipes

    pattern = settings.pattern or "*"
    names = recipes.names(pattern) or recipes.names(f"*{pattern}*")
    if not names:
        raise UsageError(
            f"no recipe fits {pattern!r}: {suggest(pattern, recipes.names(), 'recipe')}"
        )
    chosen = [recipes.about(name) for name in names]
    if len(chosen) == 1:
        _show(chosen[0])
    else:
        rows = [[recipe.name, recipe.title.rstrip(".")] for recipe in chosen]
        table("Recipes", ["name", "what"], rows)
        say("fleetnet recipes NAME shows all of one; fleetnet train --recipe NAME trains with it")
    return {"recipes": [dataclasses.asdict(recipe) for recipe in chosen]}


def _show(recipe: "Recipe") -> None:
    """All that a recipe says, and its settings."""
    from .. import recipes
    from ..reading import SMALL, read_text

    print(recipe.title)
    source = "published" if recipe.is_published else "measured"
    lines = {
        "command": recipe.command,
        source: recipe.figure,
        "hardware": recipe.hardware,
        "differs": recipe.differs,
    }
    for word, text in lines.items():
        if text:
            print(f"{word}: {text}")
    print()
    settings = read_text(recipes.locate(recipe.name), SMALL).splitlines()
    print("\n".join(line for line in settings if not line.startswith("#")))
