"""What a checkpoint or an exported file says of itself: one typed value, checked before anything is built of it.

    Facts         everything; the file of a checkpoint has neither `exported` nor `file`
    Source        in it: the weights that a training started from
    Exported      in it: what the graph of an exported file takes, gives and has built in
    FileFacts     in it: the file itself, as the description beside it says
    Int8          in that: what an int8 file kept of the accuracy

In files it is JSON of one level, which anybody can edit, which older versions wrote, and which
disks damage. `Facts.from_json` holds each key to its type and range, so that a wrong one is a
`ModelError` that names it, and not a strange exception far from its cause or a network of the size
of the memory. Keys that are not known here are kept in `others`, and written again as they were.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from . import __version__
from .errors import ModelError
from .find import names
from .preprocess import Preprocess
from .reading import Fields, from_json, to_json
from .sizes import Sizes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
OTHERS = "others"  # the field of a part that keeps the keys that are not known here
OWN_HASH = "description_sha256"  # of a sidecar: the hash of all its other keys
MOST_CLASSES, MOST_OUTPUTS, LONGEST_NAME = 1_000_000, 1000, 10_000
LARGEST_OPTION = 10_000
Figures = Mapping[str, object]  # of the task's metric, by name; the first one decides
Json = dict[str, object]
Rule = Callable[[object], bool]  # whether a value is allowed


def _fields_of(kind: "type[DataclassInstance]", about: Fields) -> dict[str, Any]:
    """The items of a description that are fields of a dataclass."""
    names_of_fields = {each.name for each in fields(kind)} - {OTHERS}
    return {key: value for key, value in about.items() if key in names_of_fields}


def _without(about: Fields, kind: "type[DataclassInstance]") -> dict[str, Any]:
    """The items of a description that are no fields of a dataclass."""
    names_of_fields = {each.name for each in fields(kind)} - {OTHERS}
    return {key: value for key, value in about.items() if key not in names_of_fields}


@dataclass(frozen=True)
class Source:
    """The weights that a training started from."""

    weights: str | None = None  # a path, an address, a repository of the hub
    license: str | None = None
    others: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_json(cls, about: Fields) -> "Source":
        """Whatever somebody says of weights is kept; what is no text, with the other keys."""
        texts = {
            name: about[name] for name in ("weights", "license") if isinstance(about.get(name), str)
        }
        others = {key: value for key, value in about.items() if key not in texts}
        return cls(**texts, others=others)

    def to_json(self) -> Json:
        return {"weights": self.weights, "license": self.license, **self.others}


@dataclass(frozen=True)
class TensorFacts:
    """What goes into an exported file or comes out of it."""

    name: str
    shape: tuple[int | str, ...] | None = None  # with a name for each dimension that is open
    dtype: str | None = None
    layout: str | None = None  # "NCHW" of what has four dimensions
    others: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_json(cls, about: Fields) -> "TensorFacts":
        values = _fields_of(cls, about) | {"others": _without(about, cls)}
        if values.get("shape") is not None:
            values["shape"] = tuple(values["shape"])
        return cls(**values)

    def to_json(self) -> Json:
        shape = None if self.shape is None else list(self.shape)
        said = {"name": self.name, "shape": shape, "dtype": self.dtype, "layout": self.layout}
        return {**{key: value for key, value in said.items() if value is not None}, **self.others}


@dataclass(frozen=True)
class KeptObjects:
    """What a detector keeps of all that it finds, under the names of the options; None is as usual."""

    max_objects: int | None = None
    nms: float | None = None  # the overlap from which the less certain of two boxes is dropped
    score: float | None = None
    only: tuple[str, ...] | None = None  # names of classes; None: of all

    @classmethod
    def from_json(cls, about: Fields) -> "KeptObjects":
        values = _fields_of(cls, about)
        if values.get("only") is not None:
            values["only"] = tuple(values["only"])
        return cls(**values)

    def to_json(self) -> Json:
        only = None if self.only is None else list(self.only)
        return {
            "max_objects": self.max_objects,
            "nms": self.nms,
            "score": self.score,
            "only": only,
        }


@dataclass(frozen=True)
class Exported:
    """What the graph of an exported file takes, gives and has built in: also inside the file, where the format can."""

    checkpoint: str | None = None  # the file it was made from; None where a model was given
    checkpoint_sha256: str | None = None
    embedded_preprocess: bool = False  # the file takes RGB pixels, 0 to 255
    embedded_decode: bool = False
    limits: KeptObjects | None = None  # None where it is no detector
    # For apps: the decode in a sentence; from picture to input, and from outputs to answers.
    decode: str | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    decoding: Mapping[str, object] = field(default_factory=dict)
    outputs: tuple[TensorFacts, ...] = ()  # in the order of the file
    sizes: Sizes | None = None  # that a file of open height and width takes
    made_at: tuple[int, int] | None = None  # height and width of its export, where they are open

    @classmethod
    def from_json(cls, about: Fields) -> "Exported | None":
        """None of a checkpoint, which says nothing of this."""
        values = _fields_of(cls, about)
        values.pop("made_at", None)  # stands among the sizes
        if not values:
            return None
        limits = about.get("limits")
        values["limits"] = KeptObjects.from_json(limits) if limits else None
        values["outputs"] = tuple(map(TensorFacts.from_json, about.get("outputs", ())))
        if open_sizes := about.get("sizes"):
            values["sizes"] = Sizes(**_fields_of(Sizes, open_sizes))
            made_at = open_sizes.get("made_at")
            values["made_at"] = None if made_at is None else (made_at[0], made_at[1])
        for text in ("preprocessing", "decoding"):
            values[text] = about.get(text) or {}
        return cls(**values)

    def to_json(self) -> Json:
        about: Json = {}
        if self.checkpoint is not None:
            about["checkpoint"] = self.checkpoint
        if self.checkpoint_sha256 is not None:
            about["checkpoint_sha256"] = self.checkpoint_sha256
        about |= {
            "embedded_preprocess": self.embedded_preprocess,
            "embedded_decode": self.embedded_decode,
            "limits": None if self.limits is None else self.limits.to_json(),
            "decode": self.decode,
            "preprocessing": self.preprocessing,
            "decoding": self.decoding,
            "outputs": [output.to_json() for output in self.outputs],
        }
        if self.sizes is not None:
            made_at = {} if self.made_at is None else {"made_at": list(self.made_at)}
            about["sizes"] = {**made_at, **self.sizes.to_dict()}
        return about


@dataclass(frozen=True)
class Int8:
    """What an int8 file kept of the accuracy; how it came about is in `others`."""

    figures: Figures | None = None  # of the file, on the validation set
    figures_of_float: Figures | None = None  # of the checkpoint, on the same
    others: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_json(cls, about: Fields) -> "Int8":
        others = {key: value for key, value in about.items() if key not in ("int8", "float")}
        return cls(about.get("int8"), about.get("float"), others)

    def to_json(self) -> Json:
        return {"float": self.figures_of_float, "int8": self.figures, **self.others}


@dataclass(frozen=True)
class FileFacts:
    """An exported file, as the description beside it says."""

    name: str | None = None
    sha256: str | None = None
    golden: str | None = None  # the name of the file with an input and its outputs
    # How far the file may be from them on another machine, relative to the standard deviation.
    golden_tolerance: float | None = None
    runtime: str | None = None
    runtime_version: str | None = None
    precision: str | None = None
    opset: int | None = None
    inputs: tuple[TensorFacts, ...] = ()
    parity: Mapping[str, object] | None = None  # None where it was not compared
    parity_at: Mapping[str, object] = field(default_factory=dict)  # at other sizes, by their text
    unverified: str | None = None  # why this machine could not compare it
    int8: Int8 | None = None
    created: str | None = None  # time in ISO 8601

    @classmethod
    def from_json(cls, about: Fields) -> "FileFacts | None":
        """None of a checkpoint, and of what an exported file says inside."""
        values = _fields_of(cls, about)
        values.pop("name", None)  # is called file there
        if "file" in about:
            values["name"] = about["file"]
        if not values:
            return None
        values["inputs"] = tuple(map(TensorFacts.from_json, about.get("inputs", ())))
        values["parity_at"] = about.get("parity_at") or {}
        if values.get("int8") is not None:
            values["int8"] = Int8.from_json(values["int8"])
        return cls(**values)

    def to_json(self) -> Json:
        about: Json = {
            "file": self.name,
            "sha256": self.sha256,
            "golden": self.golden,
            **(
                {} if self.golden_tolerance is None else {"golden_tolerance": self.golden_tolerance}
            ),
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "precision": self.precision,
            "opset": self.opset,
            "inputs": [each.to_json() for each in self.inputs],
            "parity": self.parity,
        }
        if self.parity_at:
            about["parity_at"] = self.parity_at
        about["unverified"] = self.unverified
        if self.int8 is not None:
            about["int8"] = self.int8.to_json()
        about["created"] = self.created
        return about


@dataclass(frozen=True)
class Facts:
    """What a checkpoint or an exported file says of itself; see `from_json` for what is checked."""

    # The network: all that is needed to build it again.
    model: str
    task: str
    form: Literal["multi-branch", "deploy"]  # of its structure; `reparam.form_of` finds it
    classes: list[str]
    preprocess: Preprocess
    drop_path: float = 0.0
    output_stride: int | None = None
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    # The training: its settings, its results, and the weights that it started from.
    category_ids: list[int] | None = None  # of the annotation file, in the order of `classes`
    settings: Mapping[str, object] = field(default_factory=dict)
    # None where nothing was measured: of what an int8 file says inside.
    metrics: Figures | None = field(default_factory=dict)
    source: Source | None = None
    # Of exported files; `Trained.read` also notes the name and hash of a checkpoint here.
    exported: Exported | None = None
    file: FileFacts | None = None
    # Who wrote it.
    version: str = __version__
    format: int = FORMAT
    others: Mapping[str, object] = field(default_factory=dict)  # keys that are not known here

    @classmethod
    def from_json(cls, about: object, path: str | Path) -> "Facts":
        """The facts of a file, if they are whole and this version knows what they say; else `ModelError`."""
        checked = _check(about, path)
        values = _fields_of(cls, checked)
        values["preprocess"] = _preprocess(checked, path)
        values["settings"] = checked.get("settings") or {}
        source = checked.get("source")
        values["source"] = None if source is None else Source.from_json(source)
        values["exported"] = Exported.from_json(checked)
        values["file"] = FileFacts.from_json(checked)
        values["version"] = checked.get("version", "unknown")
        values["format"] = checked.get("format", 0)
        values["others"] = {key: value for key, value in checked.items() if key not in RULES}
        return cls(**values)

    def to_json(self) -> Json:
        """One mapping of plain values; `from_json` makes the same facts of it."""
        return {
            "format": self.format,
            "version": self.version,
            "model": self.model,
            "task": self.task,
            "form": self.form,
            "classes": self.classes,
            "category_ids": self.category_ids,
            "size": list(self.size),
            "preprocess": self.preprocess.to_dict(),
            "drop_path": self.drop_path,
            "output_stride": self.output_stride,
            "options": self.options,
            "settings": self.settings,
            "metrics": self.metrics,
            "source": None if self.source is None else self.source.to_json(),
            **({} if self.exported is None else self.exported.to_json()),
            **({} if self.file is None else self.file.to_json()),
            **self.others,
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.preprocess.size

    @property
    def channels(self) -> int:
        """Of the pictures: 1 is gray, 3 RGB."""
        return self.preprocess.channels

    @property
    def best_score(self) -> float | None:
        """The score of the best F1 on the validation set, of a detector that was measured."""
        score = (self.metrics or {}).get("score")
        return score if isinstance(score, int | float) else None

    @property
    def output_names(self) -> list[str]:
        """Of an exported file, in its order; older files do not say them."""
        return [] if self.exported is None else [output.name for output in self.exported.outputs]

    @property
    def embedded_preprocess(self) -> bool:
        return self.exported is not None and self.exported.embedded_preprocess

    @property
    def embedded_decode(self) -> bool:
        return self.exported is not None and self.exported.embedded_decode

    @property
    def precision(self) -> str | None:
        """Of an exported file, as the description beside it says."""
        return None if self.file is None else self.file.precision

    @property
    def limits(self) -> KeptObjects | None:
        """Those that a detector was exported with."""
        return None if self.exported is None else self.exported.limits


# What is allowed ----------------------------------------------------------------------------------


def _is_whole(value: object, low: int = 0, high: int = 10**9) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _are_classes(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_CLASSES
        and all(isinstance(name, str) for name in value)
    )


def _are_ids(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and all(_is_whole(id, -(2**53), 2**53) for id in value)
    )


def _is_size(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_whole(side, 1) for side in value)


def _are_sizes(value: object) -> bool:
    """Of a file that takes several: multiples of a step between two limits."""
    if not isinstance(value, dict) or not all(
        _is_whole(value.get(key), 1) for key in ("step", "least", "largest")
    ):
        return False
    made_at = value.get("made_at")
    return value["least"] <= value["largest"] and (made_at is None or _is_size(made_at))


def _are_limits(value: object) -> bool:
    """Of objects to keep, each null or of its type; their ranges are for the task to check."""
    if not isinstance(value, dict):
        return False
    only = value.get("only")
    return (
        value.keys() <= {"max_objects", "nms", "score", "only"}
        and all(
            number is None or _is_number(number)
            for number in map(value.get, ("max_objects", "nms", "score"))
        )
        and (only is None or (isinstance(only, list) and all(map(_is_text, only))))
    )


def _are_options(value: object) -> bool:
    def fits(option: object) -> bool:
        if isinstance(option, bool | str):
            return True
        return _is_number(option) and abs(option) <= LARGEST_OPTION

    return isinstance(value, dict) and all(map(fits, value.values()))


def _are_metrics(value: object) -> bool:
    """The first metric decides between networks: a number, or None where there was nothing to measure.

    The last weights of an epoch without an evaluation have no metric, only which weights they are.
    """
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    figures = [figure for name, figure in value.items() if name != WHICH_WEIGHTS]
    return all(first is None or _is_number(first) for first in figures[:1])


def _are_tensors(value: object) -> bool:
    def fits(tensor: object) -> bool:
        if not isinstance(tensor, dict) or not _is_name(tensor.get("name")):
            return False
        shape, texts = tensor.get("shape", []), map(tensor.get, ("dtype", "layout"))
        return (
            isinstance(shape, list)
            and all(isinstance(side, str) or _is_whole(side) for side in shape)
            and all(text is None or _is_text(text) for text in texts)
        )

    return isinstance(value, list) and len(value) <= MOST_OUTPUTS and all(map(fits, value))


def _is_int8(value: object) -> bool:
    return value is None or (
        isinstance(value, dict) and all(_are_metrics(value.get(key)) for key in ("int8", "float"))
    )


def _or_none(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


RULES: dict[str, tuple[Rule, str]] = {
    "format": (_is_whole, "a whole number"),
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
    "checkpoint": (_is_name, "the name of the checkpoint"),
    "embedded_preprocess": (_is_switch, "true or false"),
    "embedded_decode": (_is_switch, "true or false"),
    "limits": (
        _or_none(_are_limits),
        "null, or a mapping with max_objects, nms, score and only",
    ),
    "decode": (_or_none(_is_text), "null, or text"),
    "preprocessing": (_or_none(_is_mapping), "null, or a mapping"),
    "decoding": (_or_none(_is_mapping), "null, or a mapping"),
    "inputs": (_are_tensors, "a list of mappings with a name and a shape"),
    "outputs": (_are_tensors, "a list of mappings with a name and a shape"),
    "runtime": (_is_name, "the name of a runtime"),
    "runtime_version": (_or_none(_is_text), "null, or text"),
    "opset": (_or_none(_is_whole), "null, or a whole number"),
    "precision": (_is_name, "the name of a precision"),
    "file": (_is_name, "the name of the file"),
    "golden": (_or_none(_is_name), "the name of a file"),
    "golden_tolerance": (_or_none(_is_number), "null, or a number"),
    "sha256": (_is_hash, "64 hexadecimal digits"),
    "checkpoint_sha256": (_is_hash, "64 hexadecimal digits"),
    "parity": (_or_none(_is_mapping), "null, or a mapping"),
    "parity_at": (_or_none(_is_mapping), "null, or a mapping"),
    "unverified": (_or_none(_is_text), "null, or text"),
    "created": (_or_none(_is_text), "null, or text"),
    "int8": (_is_int8, "null, or a mapping"),
    OWN_HASH: (_is_hash, "64 hexadecimal digits"),
}


def _check(about: object, path: str | Path) -> dict[str, Any]:
    """A description that is whole and that this version knows; else `ModelError`."""
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
            f"this is {__version__}, which reads up to format {FORMAT}: upgrade fleetnet"
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


def check_values(about: Fields, path: str | Path) -> None:
    """`ModelError`, naming the key, for a value of a wrong type or out of its range."""
    for key, (rule, allowed) in RULES.items():
        if key in about and not rule(about[key]):
            raise ModelError(
                f"{path}: its description says {key} is {_shown(about[key])}; allowed: {allowed}"
            )


def _preprocess(about: Fields, path: str | Path) -> Preprocess:
    try:
        return Preprocess.from_dict(about["preprocess"])
    except ModelError as error:
        raise ModelError(f"{path}: its description is wrong: {error}") from error


def _shown(value: object) -> str:
    """A value in an error message: not more of it than a line."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


# Whether a description is as it was written -------------------------------------------------------


def own_hash(about: Mapping[str, object]) -> str:
    """The hash of a description, of all keys but the one that holds it, whatever the layout of the JSON."""
    others = {key: value for key, value in about.items() if key != OWN_HASH}
    return hashlib.sha256(to_json(others, sort_keys=True).encode()).hexdigest()


def sealed(about: Mapping[str, object]) -> dict[str, object]:
    """A description as it will be read again (keys are text, nothing is NaN), with the hash of itself."""
    read = from_json(to_json(about))
    return {**read, OWN_HASH: own_hash(read)}


def check_own_hash(about: Mapping[str, object], path: str | Path) -> None:
    """`ModelError` for a description that is not as it was written; older ones hold no hash."""
    if OWN_HASH in about and about[OWN_HASH] != own_hash(about):
        raise ModelError(
            f"{path} is not as fleetnet wrote it: it is damaged, or was edited. To use what it "
            f"says, delete its key {OWN_HASH}"
        )
