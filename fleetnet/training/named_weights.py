"""Weights of classes by their names: a list, as cat=2,dog=0.5, or a file.

    weights.yaml, weights.json     a mapping of names to weights
    weights.csv                    lines of a name and its weight, with a header or without

Names are text whatever they look like: no and 007 are classes too.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from ..errors import UsageError, suggest
from ..reading import SMALL, read_text, to_json

WORDS = "none", "balanced"
FILES = ".yaml", ".yml", ".json", ".csv"
OR_NAMES = f"weights by name, as cat=2,dog=0.5, or a file with them ({', '.join(FILES)})"
NAMED = 5  # classes that a message names at most


def is_file(text: str) -> bool:
    """Whether this is meant as the name of a file with weights."""
    return Path(text).suffix.lower() in FILES


def as_text(value: str | Mapping[str, float]) -> str:
    """The setting as a text: a word, the name of a file, or JSON of a list or a mapping.

    Raises `UsageError` for what is none of them.
    """
    if not isinstance(value, str):
        return to_json(_checked(value.items(), "class_weights"), ensure_ascii=False)
    if value in WORDS or is_file(value):
        return value
    if value.startswith("{"):
        return to_json(_mapping(value, "class_weights"), ensure_ascii=False)
    if "=" not in value:
        raise UsageError(f"class_weights is {value!r}: {suggest(value, WORDS)}, or {OR_NAMES}")
    pairs = [part.rpartition("=") for part in value.split(",")]
    of_names = [(name.strip(), weight) for name, _, weight in pairs]
    return to_json(_checked(of_names, "class_weights"), ensure_ascii=False)


def read(path: str | Path) -> str:
    """What a file of weights says, as `as_text` writes a list; `UsageError` where it says none."""
    path = Path(path)
    if not path.is_file():
        folder = path.parent
        beside = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        near = [name for name in sorted(beside) if is_file(name)]
        raise UsageError(
            f"class_weights is {str(path)!r}, which is no file: "
            + (suggest(path.name, near) if near else f"allowed: {', '.join(WORDS)}, {OR_NAMES}")
        )
    try:
        text = read_text(path, SMALL).removeprefix("\ufeff")
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: save it so") from error
    if path.suffix.lower() == ".csv":
        return to_json(_table(text, str(path)), ensure_ascii=False)
    return to_json(_mapping(text, str(path)), ensure_ascii=False)


def in_order(setting: str, classes: Sequence[str]) -> list[float]:
    """The weights of a list or a file, in the order of the classes.

    Raises `UsageError` unless each class has one and each weight a class.
    """
    text = read(setting) if is_file(setting) else as_text(setting)
    weights = cast(dict[str, float], json.loads(text))
    unknown = [name for name in weights if name not in classes]
    if unknown:
        raise UsageError(
            f"class_weights has {unknown[0]!r}, which is no class of the data: "
            f"{suggest(unknown[0], classes)}"
        )
    missing = [name for name in classes if name not in weights]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UsageError(
            f"class_weights has no weight for {', '.join(map(repr, missing[:NAMED]))}{more}; each "
            f"class needs one, 1 for what counts as usual: {missing[0]}=1"
        )
    return [weights[name] for name in classes]


def _mapping(text: str, where: str) -> dict[str, float]:
    """Of YAML or JSON, which is YAML too; all names and weights as they are written."""
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{where} has to be a mapping of names to weights, as cat: 2")
    return _checked(((key.value, value.value) for key, value in node.value), where)


def _table(text: str, where: str) -> dict[str, float]:
    """Of lines with a name and its weight; the first may be a header."""
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    for row in rows:
        if len(row) != 2:
            raise UsageError(
                f"{where} has the line {','.join(row)!r}; allowed: a name and its weight, as cat,2"
            )
    if rows and _number(rows[0][1]) is None:
        rows = rows[1:]
    return _checked(((name.strip(), weight) for name, weight in rows), where)


def _checked(pairs: Iterable[tuple[object, object]], where: str) -> dict[str, float]:
    """Names with their weights, as numbers; `UsageError`."""
    weights: dict[str, float] = {}
    for name, value in pairs:
        weight = _number(value)
        if isinstance(name, bool):
            raise UsageError(f"{where} has a class that YAML takes for {name}: write it in quotes")
        name = str(name)
        if weight is None or not name:
            raise UsageError(
                f"{where} has {value!r} as the weight of {name!r}; allowed: a name, and a number "
                "of at least 0"
            )
        if name in weights:
            raise UsageError(f"{where} has two weights for {name!r}: {weights[name]:g}, {weight:g}")
        weights[name] = weight
    if not any(weights.values()):
        raise UsageError(f"{where} has no weight above 0: nothing would be learned")
    return weights


def _number(value: object) -> float | None:
    """A weight, of a number or its text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        weight = float(value)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None
