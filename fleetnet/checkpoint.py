"""Checkpoints: one safetensors file that describes itself, so that loading needs no recipe; trainer state beside it.

The file's metadata holds `facts` as JSON under "fleetnet": how to build the network and in which form, what it tells
apart, what it expects of an image, how it was trained from which weights, and how well it did. An exported file carries
the same facts. Every file is written beside its name and then renamed, so that it is whole or not there.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from . import __version__
from .errors import ModelError
from .files import replacing
from .find import names
from .reparam import reparameterize
from .tasks import Model, build
from .transforms import Preprocess
from .weights import form_of, locate, options_of_backbone, read_pickle, read_safetensors

FORMAT = 1  # of the facts; files with a larger number were written by a newer fleetnet
STATE = "trainer.pt"
NO_CHECKPOINT = "weights without a description go into a model with create_model(name, weights=...) or load_weights"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory; `meta` are all of its facts."""

    model: Model  # in eval mode, in the form of the file
    classes: list[str]
    preprocess: Preprocess
    metrics: dict[str, Any]
    meta: dict[str, Any]


def facts(
    model: nn.Module,
    classes: Sequence[str],
    preprocess: Preprocess,
    *,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    form: str | None = None,
    category_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What a checkpoint and an exported file say of themselves; JSON.

    `settings` are those of the training, `metrics` its results, `source` the starting weights and their license: those
    that `create_model` loaded unless given. `form` is found from the model unless given. `category_ids` are those of
    the annotation file, in the order of `classes`.
    """
    if not isinstance(model, Model):
        raise ModelError(f"model is a {type(model).__name__}; only models of create_model can describe themselves")
    if len(classes) != model.classes:
        raise ModelError(f"{len(classes)} class names for a model of {model.classes} classes")
    if source is None and model.report is not None:
        source = {"weights": model.report.source, "license": model.report.license}
    return {
        "format": FORMAT,
        "version": __version__,
        "model": model.name,
        "task": model.task,
        "form": form_of(model) if form is None else form,
        "classes": list(classes),
        "category_ids": None if category_ids is None else list(category_ids),
        "size": list(preprocess.size),  # height, width
        "preprocess": preprocess.to_dict(),
        "drop_path": model.drop_path,
        "output_stride": model.output_stride,
        "options": dict(model.options),
        "settings": dict(settings or {}),
        "metrics": dict(metrics or {}),
        "source": None if source is None else dict(source),
    }


def save(
    path: str | Path,
    model: nn.Module,
    *,
    classes: Sequence[str],
    preprocess: Preprocess,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    form: str | None = None,
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
    state = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:  # copies, since safetensors refuses tensors that share memory
        file.write(serialize(state, {"fleetnet": json.dumps(about), "format": "pt"}))


def read_facts(path: str | Path) -> dict[str, Any]:
    """The facts of a checkpoint (or of best.safetensors in a run folder), checked, without its model."""
    path = locate(Path(path))
    return check_facts(read_safetensors(path, tensors=False)[1], path)


def load(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """The model of a checkpoint file, or of best.safetensors in a run folder, in eval mode and in the file's form.

    Raises `ModelError` for a file that is missing, damaged, not a checkpoint, of a newer version, or of another model.
    """
    path = locate(Path(path))
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: a checkpoint ends in .safetensors; {NO_CHECKPOINT}")
    state, about = read_safetensors(path)
    check_facts(about, path)
    preprocess = Preprocess.from_dict(about["preprocess"])
    options = {**options_of_backbone(about["model"], state), **about["options"]}  # of version 0.1: not all written
    model = build(about["model"], len(about["classes"]), about["drop_path"], about["output_stride"], options).eval()
    if about["form"] == "deploy":
        model = cast(Model, reparameterize(model, torch.zeros(1, 3, *preprocess.size)))
    _fill(model, state, path)
    model.preprocess = about["preprocess"]
    return Checkpoint(model.to(device), about["classes"], preprocess, about["metrics"], about)


def check_facts(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """The facts of a file, if they are whole and this version knows what they say; else `ModelError`."""
    if not about:
        raise ModelError(f"{path} was not written by fleetnet, or only holds weights: {NO_CHECKPOINT}")
    if about.get("format", 0) > FORMAT:
        raise ModelError(
            f"{path} was written by fleetnet {about.get('version')} (format {about['format']}); this is {__version__}, "
            f"which reads up to format {FORMAT}: upgrade fleetnet"
        )
    needed = ("model", "task", "form", "classes", "preprocess", "drop_path", "output_stride", "options", "metrics")
    if absent := [key for key in needed if key not in about]:
        raise ModelError(f"{path}: its description lacks {', '.join(absent)}")
    if about["task"] not in names("tasks"):
        raise ModelError(f"{path} is of the task {about['task']!r}, which is none of: {', '.join(names('tasks'))}")
    return about


@torch.no_grad()
def _fill(model: Model, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state strictly, in its own dtypes (a checkpoint may be in half precision); shared tensors stay shared."""
    ours = model.state_dict(keep_vars=True)
    wrong = [key for key in ours if key in state and ours[key].shape != state[key].shape]
    stray = [*sorted(ours.keys() ^ state.keys()), *wrong]
    if stray:
        raise ModelError(
            f"{path} says it is {model.name} in {form_of(model)} form, but {len(stray)} tensors are missing, "
            f"unexpected or of another shape: {', '.join(stray[:3])}"
        )
    for key, value in state.items():
        ours[key].data = ours[key].data.to(value.dtype)
        ours[key].data.copy_(value)


# ---- trainer state ---------------------------------------------------------------------------------------------------


def save_state(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Write what a trainer needs to go on: tensors and plain values, in dicts, lists and tuples; else `ModelError`."""
    _check_plain(state, "state")
    path = Path(folder) / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(dict(state), file)


def load_state(folder: str | Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; `ModelError` where there is none or it cannot be read."""
    path = Path(folder) / STATE
    if not path.is_file():
        raise ModelError(f"no trainer state in {str(folder)!r} ({STATE} is missing): nothing to resume")
    return read_pickle(path)


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, torch.Size):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif not (value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor)):
        raise ModelError(
            f"{where} is {type(value).__module__}.{type(value).__name__}, which could not be read again; allowed: "
            "tensors, numbers, strings, None, and dicts, lists and tuples of them"
        )
