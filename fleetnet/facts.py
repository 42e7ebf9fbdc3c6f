"""What a checkpoint or an exported file says of itself, checked key by key before anything is built of it.

Descriptions are JSON that anybody can edit, that older versions wrote, and that disks damage.
`check` holds each key to its type and range, so that a wrong one is a `ModelError` that names it,
and not a strange exception far from its cause or a network of the size of the memory. Keys that are
not known here stay as they are.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import ModelError
from .find import names
from .reading import from_json, to_json

FORMAT = 1  # of the facts; files with a larger number were written by a newer fleetnet
NO_CHECKPOINT = "weights without a description go into a model with create_model(name, weights=...) or load_weights"
NEEDED = (
    "model",
    "task",
    "form",
    "classes",
    "preprocess",
    "drop_path",
    "output_stride",
    "options",
    "metrics",
)
WHICH_WEIGHTS = "weights"  # among the metrics of a run's checkpoint: "raw" or "ema"
OWN_HASH = "description_sha256"  # of a sidecar: the hash of all its other keys
MOST_CLASSES, MOST_OUTPUTS, LONGEST_NAME = 1_000_000, 1000, 10_000
LARGEST_OPTION = 10_000


def _is_whole(value: Any, low: int = 0, high: int = 10**9) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_CLASSES
        and all(isinstance(name, str) for name in value)
    )


def _are_ids(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(_is_whole(id, -(2**53), 2**53) for id in value)
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_whole(side, 1) for side in value)


def _are_sizes(value: Any) -> bool:
    """Of a file that takes several: multiples of a step between two limits."""
    if not isinstance(value, dict) or not all(
        _is_whole(value.get(key), 1) for key in ("step", "least", "largest")
    ):
        return False
    return value["least"] <= value["largest"]


def _are_options(value: Any) -> bool:
    def fits(option: Any) -> bool:
        if isinstance(option, bool | str):
            return True
        return _is_number(option) and abs(option) <= LARGEST_OPTION

    return isinstance(value, dict) and all(map(fits, value.values()))


def _are_metrics(value: Any) -> bool:
    """The first metric decides between networks: a number, or None where there was nothing to measure.

    The last weights of an epoch without an evaluation have no metric, only which weights they are.
    """
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    figures = [figure for name, figure in value.items() if name != WHICH_WEIGHTS]
    return all(first is None or _is_number(first) for first in figures[:1])


def _are_tensors(value: Any) -> bool:
    def fits(tensor: Any) -> bool:
        if not isinstance(tensor, dict) or not _is_name(tensor.get("name")):
            return False
        shape = tensor.get("shape", [])
        return isinstance(shape, list) and all(
            isinstance(side, str) or _is_whole(side) for side in shape
        )

    return isinstance(value, list) and len(value) <= MOST_OUTPUTS and all(map(fits, value))


def _is_int8(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _are_metrics(value.get("int8")))


def _or_none(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "version": (_is_name, "text"),
    "model": (_is_name, "the name of a model"),
    "task": (_is_name, "the name of a task"),
    "form": (lambda value: value in ("multi-branch", "deploy"), "multi-branch or deploy"),
    "classes": (_are_classes, f"a list of 1 to {MOST_CLASSES:,} names"),
    "category_ids": (_are_ids, "null, or a list of whole numbers, as many as there are classes"),
    "size": (_is_size, "height and width, whole numbers from 1"),
    "sizes": (
        _or_none(_are_sizes),
        "null, or a mapping with step, least and largest, whole numbers from 1",
    ),
    "preprocess": (_is_mapping, "a mapping"),
    "drop_path": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "output_stride": (lambda value: value in (None, 8, 16, 32), "null, 8, 16 or 32"),
    "options": (
        _are_options,
        f"a mapping of switches, words, and numbers up to {LARGEST_OPTION:,}",
    ),
    "settings": (_or_none(_is_mapping), "a mapping"),
    "metrics": (_are_metrics, "null, or a mapping whose first value is a number or null"),
    "source": (_or_none(_is_mapping), "null, or a mapping"),
    "embedded_preprocess": (_is_switch, "true or false"),
    "embedded_decode": (_is_switch, "true or false"),
    "inputs": (_are_tensors, "a list of mappings with a name and a shape"),
    "outputs": (_are_tensors, "a list of mappings with a name and a shape"),
    "runtime": (_is_name, "the name of a runtime"),
    "precision": (_is_name, "the name of a precision"),
    "file": (_is_name, "the name of the file"),
    "golden": (_or_none(_is_name), "the name of a file"),
    "sha256": (_is_hash, "64 hexadecimal digits"),
    "checkpoint_sha256": (_is_hash, "64 hexadecimal digits"),
    "parity": (_or_none(_is_mapping), "null, or a mapping"),
    "int8": (_is_int8, "null, or a mapping"),
    OWN_HASH: (_is_hash, "64 hexadecimal digits"),
}


def check(about: Any, path: str | Path, version: str) -> dict[str, Any]:
    """The facts of a file, if they are whole and this `version` of fleetnet knows what they say; else `ModelError`."""
    if not isinstance(about, dict):
        raise ModelError(f"{path}: its description is no mapping, but {type(about).__name__}")
    if not about:
        raise ModelError(
            f"{path} was not written by fleetnet, or only holds weights: {NO_CHECKPOINT}"
        )
    format = about.get("format", 0)
    if not _is_whole(format):
        raise ModelError(
            f"{path}: its description says format is {_shown(format)}; allowed: a whole number"
        )
    if format > FORMAT:
        raise ModelError(
            f"{path} was written by fleetnet {str(about.get('version'))[:80]} (format {format}); "
            f"this is {version}, which reads up to format {FORMAT}: upgrade fleetnet"
        )
    if absent := [key for key in NEEDED if key not in about]:
        raise ModelError(f"{path}: its description lacks {', '.join(absent)}")
    check_values(about, path)
    if about["task"] not in names("tasks"):
        raise ModelError(
            f"{path} is of the task {_shown(about['task'])}, which is none of: "
            f"{', '.join(names('tasks'))}"
        )
    ids = about.get("category_ids")
    if ids is not None and len(ids) != len(about["classes"]):
        raise ModelError(
            f"{path}: its description has {len(ids)} category_ids for "
            f"{len(about['classes'])} classes"
        )
    return about


def check_values(about: dict[str, Any], path: str | Path) -> None:
    """`ModelError`, naming the key, for a value of a wrong type or out of its range."""
    for key, (rule, allowed) in RULES.items():
        if key in about and not rule(about[key]):
            raise ModelError(
                f"{path}: its description says {key} is {_shown(about[key])}; allowed: {allowed}"
            )


def _shown(value: Any) -> str:
    """A value in an error message: not more of it than a line."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def own_hash(about: dict[str, Any]) -> str:
    """The hash of a description, of all keys but the one that holds it, whatever the layout of the JSON."""
    others = {key: value for key, value in about.items() if key != OWN_HASH}
    return hashlib.sha256(to_json(others, sort_keys=True).encode()).hexdigest()


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it will be read again (keys are text, nothing is NaN), with the hash of itself."""
    read = from_json(to_json(about))
    return {**read, OWN_HASH: own_hash(read)}


def check_own_hash(about: dict[str, Any], path: str | Path) -> None:
    """`ModelError` for a description that is not as it was written; older ones hold no hash."""
    if OWN_HASH in about and about[OWN_HASH] != own_hash(about):
        raise ModelError(
            f"{path} is not as fleetnet wrote it: it is damaged, or was edited. To use what it "
            f"says, delete its key {OWN_HASH}"
        )
