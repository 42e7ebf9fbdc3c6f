"""Checkpoints: one safetensors file that describes itself, so that loading needs no recipe; trainer state beside it.

The file's metadata holds its `Facts` as JSON under "fleetnet": how to build the network and in which
form, what it tells apart, what it expects of an image, how it was trained from which weights, and
how well it did. An exported file carries the same facts. Every file is written beside its name and
then renamed, so that it is whole or not there.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from . import tasks
from .errors import FleetnetError, ModelError
from .facts import NO_CHECKPOINT, Facts, Figures, Source
from .files import replacing
from .preprocess import Preprocess
from .reading import to_json
from .reparam import form_of, reparameterize
from .tasks import Model, Option, build, limits_of
from .weights.identify import options_of_checkpoint
from .weights.read import check_finite, hash_tensors, locate, read_pickle, read_safetensors

STATE, STATE_HASH = "trainer.pt", "sha256"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    model: Model  # in eval mode, in the form of the file
    classes: list[str]
    preprocess: Preprocess
    metrics: Figures | None
    facts: Facts


def facts(
    model: nn.Module,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    settings: Mapping[str, object] | None = None,
    metrics: Mapping[str, object] | None = None,
    source: Source | Mapping[str, object] | None = None,
    form: Literal["multi-branch", "deploy"] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Facts:
    """What a checkpoint and an exported file say of themselves.

    `settings` are those of the training, `metrics` its results, `source` the starting weights and
    their license: those that `create_model` loaded unless given. `form` is found from the model
    unless given. `category_ids` are those of the annotation file, in the order of `classes`.
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"model is a {type(model).__name__}; only models of create_model can "
            "describe themselves"
        )
    if len(classes) != model.classes:
        raise ModelError(f"{len(classes)} class names for a model of {model.classes} classes")
    if preprocess.channels != model.channels:
        raise ModelError(
            f"a preprocessing for {preprocess.channels} channels (the length of its mean and std) "
            f"for a model that takes {model.channels}"
        )
    if source is None and model.report is not None:
        source = Source(model.report.source, model.report.license)
    if isinstance(source, Mapping):
        source = Source.from_json(source)
    return Facts(
        model=model.name,
        task=model.task,
        form=form_of(model) if form is None else form,
        classes=list(classes),
        category_ids=None if category_ids is None else list(category_ids),
        preprocess=preprocess,
        drop_path=model.drop_path,
        output_stride=model.output_stride,
        options=dict(model.options),
        settings=dict(settings or {}),
        metrics=dict(metrics or {}),
        source=source,
    )


def save(
    path: str | Path,
    model: nn.Module,
    *,
    classes: Sequence[str],
    preprocess: Preprocess,
    settings: Mapping[str, object] | None = None,
    metrics: Mapping[str, object] | None = None,
    source: Source | Mapping[str, object] | None = None,
    form: Literal["multi-branch", "deploy"] | None = None,
    category_ids: Sequence[int] | None = None,
) -> None:
    """Write a checkpoint (.safetensors) with the `facts`; at any time the file at `path` is the old or the new one."""
    from safetensors.torch import save as serialize

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"a checkpoint ends in .safetensors, not {path.suffix!r}: {path}")
    about = facts(
        model,
        classes,
        preprocess,
        settings=settings,
        metrics=metrics,
        source=source,
        form=form,
        category_ids=category_ids,
    )
    state = {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:  # copies, since safetensors refuses tensors that share memory
        text = to_json(about.to_json())
        hashes = {
            "facts_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "tensors_sha256": hash_tensors(state),
        }
        file.write(serialize(state, {"fleetnet": text, "format": "pt", **hashes}))


def read_facts(path: str | Path) -> Facts:
    """The facts of a checkpoint (or of best.safetensors in a run folder), checked, without its model."""
    path = locate(Path(path))
    return Facts.from_json(read_safetensors(path, tensors=False)[1], path)


def load(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """The model of a checkpoint file, or of best.safetensors in a run folder, in eval mode and in the file's form.

    Raises `ModelError` for a file that is missing, damaged, not a checkpoint, of a newer version,
    or of another model, and for weights or buffers that are not finite.
    """
    path = locate(Path(path))
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: a checkpoint ends in .safetensors; {NO_CHECKPOINT}")
    state, description = read_safetensors(path)
    about = Facts.from_json(description, path)
    # Version 0.1 did not write all options.
    options = {**options_of_checkpoint(about.model, state), **about.options}
    # What a description asks for may be larger than the memory, so first without any.
    with torch.device("meta"):
        _check_fits(_built(about, options, path), state, path)
    check_finite(state, path)
    model = _built(about, options, path)
    _fill(model, state)
    limits, task = limits_of(about), tasks.find(model.task)
    if limits is not None and task.limit is not None:
        task.limit(model.head, limits)
    model.preprocess = about.preprocess
    return Checkpoint(model.to(device), about.classes, about.preprocess, about.metrics, about)


def _built(about: Facts, options: Mapping[str, Option], path: Path) -> Model:
    """The network that a description asks for, in eval mode and in its form."""
    try:
        model = build(
            about.model,
            len(about.classes),
            about.drop_path,
            about.output_stride,
            options,
            about.channels,
        ).eval()
        if about.form == "deploy":
            example = torch.zeros(1, about.channels, *about.size)
            model = cast(Model, reparameterize(model, example))
    except (
        FleetnetError,
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        KeyError,
    ) as error:  # or of torch's layers
        raise ModelError(
            f"{path}: the network of its description cannot be built: {error}"
        ) from error
    return model


def _check_fits(model: Model, state: Mapping[str, Tensor], path: Path) -> None:
    """`ModelError` unless a model and a state have the same tensors, of the same shapes."""
    ours = model.state_dict()
    wrong = [key for key in ours if key in state and ours[key].shape != state[key].shape]
    stray = [*sorted(ours.keys() ^ state.keys()), *wrong]
    if stray:
        raise ModelError(
            f"{path} says it is {model.name} in {form_of(model)} form, but {len(stray)} tensors "
            f"are missing, unexpected or of another shape: {', '.join(stray[:3])}"
        )


@torch.no_grad()
def _fill(model: Model, state: Mapping[str, Tensor]) -> None:
    """Load a state that fits, in its own dtypes (a checkpoint may be in half precision); shared tensors stay shared."""
    ours = model.state_dict(keep_vars=True)
    for key, value in state.items():
        ours[key].data = ours[key].data.to(value.dtype)
        ours[key].data.copy_(value)


# ---- trainer state ---------------------------------------------------------------------------------------------------


def save_state(folder: str | Path, state: Mapping[str, object]) -> None:
    """Write what a trainer needs to go on: tensors and plain values, in dicts, lists and tuples; else `ModelError`."""
    _check_plain(state, "state")
    path = Path(folder) / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save({**state, STATE_HASH: _digest(state)}, file)


def load_state(folder: str | Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; `ModelError` where there is none or it cannot be read."""
    path = Path(folder) / STATE
    if not path.is_file():
        raise ModelError(
            f"no trainer state in {str(folder)!r} ({STATE} is missing): nothing to resume"
        )
    state = read_pickle(path)
    if not isinstance(state, dict):
        raise ModelError(f"{path} is no trainer state: it holds a {type(state).__name__}")
    expected = state.pop(STATE_HASH, None)  # older ones have none
    if expected is not None and expected != _digest(state):
        raise ModelError(
            f"{path} is damaged: its content has another hash than when it was written"
        )
    return state


def size_of(value: object) -> int:
    """Bytes of the tensors in dicts, lists and tuples, which are nearly all of a state."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


def _digest(value: object) -> str:
    """A hash of tensors and plain values, in dicts, lists and tuples, with their structure."""
    hashed = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            hashed.update(hash_tensors({"": value.detach().cpu()}).encode())
        elif isinstance(value, dict):
            hashed.update(f"{{{len(value)}".encode())
            for key, item in value.items():
                hashed.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            hashed.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        else:
            hashed.update(repr(value).encode())

    add(value)
    return hashed.hexdigest()


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, torch.Size):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif not (
        value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor)
    ):
        raise ModelError(
            f"{where} is {type(value).__module__}.{type(value).__name__}, which could not be read "
            "again; allowed: tensors, numbers, strings, None, and dicts, lists and tuples of them"
        )
