"""Weights: a file, an address or a state dict into a model, strictly and with a report.

    read      safetensors, or a pickle of tensors and plain values (nothing else is unpickled); disk, hub or URL
    unwrap    {"model": ...}, {"state_dict_ema": ...}, "module.", "_orig_mod.", ...  ->  names and tensors
    convert   the authors' names and timm's  ->  ours; the files of backbones and tasks know their own
    place     every tensor has a place and every place a tensor, or a `ModelError` says what these weights look like

Only the head may differ. What depends on the number of classes starts anew where that is another; all of the head does
where the weights have none or that of another task, such as a classifier's for a detector. The report says so.
"""

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .backbones import Option, Pretrained, family, pretrained, variants
from .errors import FleetnetError, ModelError, choose, named_arguments
from .fetching import receive
from .files import replacing
from .find import find, names
from .reading import MEGABYTE, WEIGHTS, check_regular, from_json, hash_of, leads_out, open_regular
from .reparam import collapsible, reparameterize
from .tasks import Model, build, defaults, described_by, split_name

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Options = tuple[tuple[str, Option], ...]

FORMS = ("multi-branch", "deploy")
CLASSES = 100  # of the models that are built for their shapes alone
PICKLES = (".pt", ".pth", ".tar", ".bin", ".ckpt")
RAW = ("model", "state_dict", "model_state_dict")  # under which names training scripts keep the weights ...
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict")  # ... and their moving average
PREFIXES = ("module.", "model.")  # DataParallel and AveragedModel; Lightning
LARGEST_DOWNLOAD, LONGEST_DOWNLOAD = 4_000_000_000, 3600.0  # bytes; seconds
SILENCE = 30.0  # seconds that a server may send nothing


@dataclass(frozen=True)
class Report:
    """What `load_weights` did, by the names of tensors.

    `missing`, `unexpected` and `wrong_shape` are empty, or belong to a head that starts anew.
    """

    source: str
    form: str  # of the weights and of the model: "multi-branch" | "deploy"
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    by_class: tuple[str, ...] = ()  # of the head: rows of classes that both know are kept, those of others are new
    license: str | None = None  # of the weights, where it is known
    note: str = ""  # why the head starts anew; that a block was converted between its published versions

    def summary(self) -> str:
        """One line: "x.pth: 9 tensors loaded, 2 new (deploy form); head: re-initialized, 7 -> 5 classes"."""
        fresh = f", {len(self.reinitialized)} new" if self.reinitialized else ""
        partly = f", {len(self.by_class)} in part" if self.by_class else ""
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded{partly}{fresh} ({self.form} form)", self.note]
        return "; ".join(part for part in [*parts, f"license: {self.license}" if self.license else ""] if part)


@dataclass(frozen=True)
class Weights:
    """What a source holds, by the names it uses; `facts` are those of our own checkpoints, else empty."""

    state: State
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    published: Pretrained | None = None

    @property
    def license(self) -> str | None:
        return (self.facts.get("source") or {}).get("license") if self.published is None else self.published.license

    @property
    def preprocess(self) -> dict[str, Any] | None:
        """What `transforms.Preprocess.from_dict` takes; None where it is not known."""
        return self.facts.get("preprocess") if self.published is None else _preprocess_of(self.published)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that a deploy form of ParC is for."""
        height, width = (self.preprocess or {"size": (256, 256)})["size"]
        return height, width


def _preprocess_of(published: Pretrained) -> dict[str, Any]:
    same = ("crop", "interpolation", "mean", "std", "channel_order", "antialias")
    return {"size": [published.size] * 2, **{key: getattr(published, key) for key in same}}


# ---- read ------------------------------------------------------------------------------------------------------------


def read(source: str | Path | Mapping[str, Tensor], name: str, ema: bool = False) -> Weights:
    """The tensors of a source, without wrappers; nothing is executed that a file contains.

    `source` is a state dict, a file (.safetensors, or a pickle: .pt, .pth, .pth.tar, .bin, .ckpt), a run folder,
    "hf-hub:owner/name" (or "...@revision"), an http address, or "default": the published weights of the model `name`.
    `ema` takes the moving average that a training checkpoint holds beside the weights. Raises `ModelError`.
    """
    if isinstance(source, Mapping):
        state, branch = unwrap(source, ema, "the state dict")
        return Weights(state, "state dict" + branch)
    address, backbone_name = str(source), split_name(name)[1]
    published = pretrained(backbone_name)
    if address == "default" and family(backbone_name) == "timm":
        of_timm, published = find("backbones", "timm").pretrained(backbone_name.removeprefix("timm/"))
        return Weights(of_timm, published.source, {}, published)
    if address == "default":
        if published is None:
            having = ", ".join(variant for variant in variants() if pretrained(variant) is not None)
            raise ModelError(f"no weights were published for {backbone_name!r}; there are for: {having}")
        address = published.source
    elif published is not None and address != published.source:
        published = None
    if address.startswith("hf-hub:"):
        path = _from_hub(address.removeprefix("hf-hub:"))
    elif address.startswith(("http://", "https://")):
        path = _download(address)
    else:
        path = locate(source if isinstance(source, Path) else Path(address))
    if path.suffix == ".safetensors":
        tensors, facts = read_safetensors(path)
        state, branch = unwrap(tensors, ema, address)
        return Weights(state, address + branch, facts, published)
    state, branch = unwrap(read_pickle(path), ema, address)
    return Weights(state, address + branch, {}, published)


def locate(path: Path) -> Path:
    """A weights file that exists: the path itself, or best.safetensors of a run folder."""
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.is_file():
            raise ModelError(f"{path} is a folder without best.safetensors; give a run folder or a file")
        check_inside(best, path)
        return best
    if not path.is_file() and str(path) in variants():
        raise ModelError(
            f"{str(path)!r} is the name of a network, and here a trained one is wanted: a run folder or a file. "
            f'`fleetnet train --model {path} --data DATA` makes one; create_model({str(path)!r}, weights="default") '
            "in Python has the published weights"
        )
    if not path.is_file():
        raise ModelError(f"no file {str(path)!r}: {files_beside(path, ('.safetensors', *PICKLES))}")
    return path


def files_beside(path: Path, suffixes: Sequence[str]) -> str:
    """The end of a message about weights or an exported file that is not there: those that are, by name."""
    files = path.parent.iterdir() if path.parent.is_dir() else ()
    near = sorted(p.name for p in files if p.suffix in suffixes or (p / "best.safetensors").is_file())
    return choose(path.name, near) if near else f"its folder has none that end in {', '.join(suffixes)}"


def check_inside(path: Path, run: Path, instead: str = "copy the file into it, or give the file itself") -> None:
    """`ModelError` if a file of a run folder is a link to a place outside of it: the run may be a stranger's.

    `instead` says what to do.
    """
    if leads_out(path, run):
        raise ModelError(
            f"{path} is a link that leads out of {run}, to {os.path.realpath(path)}: links in a run folder are not "
            f"followed, so {instead}"
        )


def read_safetensors(path: Path, tensors: bool = True) -> tuple[State, dict[str, Any]]:
    """Tensors by name, unless unwanted, and the facts of a checkpoint of ours; `ModelError` for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path, WEIGHTS)
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in (file.keys() if tensors else ())}
        text = notes.get("fleetnet", "{}")
        facts = dict(from_json(text))
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(f"{path} ({size} bytes) is damaged, cut short, or not safetensors: {error}") from error
    for key, what, found in (
        ("facts_sha256", "description", lambda: hashlib.sha256(text.encode()).hexdigest()),
        ("tensors_sha256", "tensors", lambda: hash_tensors(state) if tensors else None),
    ):
        expected = notes.get(key)  # older files have none
        if expected is not None and (hashed := found()) is not None and hashed != expected:
            raise ModelError(
                f"{path} is damaged, or was changed: the hash of its {what} is not the one that was written. If the "
                f"change was meant, leave {key} out of the file's metadata"
            )
    return state, facts


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU with their names, types and shapes, in hexadecimal digits."""
    hashed = hashlib.sha256()
    for key in sorted(state):
        value = state[key].contiguous()
        hashed.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode("utf-8", "backslashreplace"))
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, if it is tensors and plain values; `ModelError` if it is damaged or would run code."""
    if path.suffix not in PICKLES:
        raise ModelError(f"{path}: weights are read from .safetensors, {', '.join(PICKLES)}; this is {path.suffix!r}")
    try:
        with open_regular(path, WEIGHTS) as file:
            start = file.read(2)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if start == b"PK":
        _check_archive(path)
    if start not in (b"PK", b"\x80\x02"):  # what torch.save writes: a zip archive, or before 1.6 a pickle
        raise ModelError(f"{path} ({path.stat().st_size} bytes) is not a file of torch.save: it begins with {start!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that training scripts keep
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if needs := re.search(r"GLOBAL (\S+)|Trying to (?:instantiate|call) (\S+)", str(error)):
            raise ModelError(
                f"{path} was refused: it is a pickle that would run {needs[1] or needs[2]}, and only tensors and plain "
                "values are unpickled. If you trust it, write its state dict anew with torch.save, where it was made"
            ) from error
        reason = " ".join(str(error).partition("error:")[2].split()).partition(" Check the")[0]
        raise ModelError(f"{path} is a pickle that cannot be read: {reason}") from error
    except Exception as error:  # a damaged file may raise anything
        size = path.stat().st_size
        raise ModelError(f"{path} ({size} bytes) is damaged, cut short, or holds no state dict: {error}") from error


def _check_archive(path: Path) -> None:
    """`ModelError` for an archive that would take far more memory than it has bytes; torch compresses nothing."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} ({size} bytes) is damaged, cut short, or no archive: {error}") from error
    if unpacked > 2 * size + 64 * MEGABYTE:
        raise ModelError(
            f"{path} was refused: its {size / 1e6:.1f} MB unpack to {unpacked / 1e6:,.0f} MB. If you trust it, write "
            "its state dict anew with torch.save, which does not compress"
        )


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """`ModelError`, with their names, where weights or buffers are NaN or infinite."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        named = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise ModelError(
            f"{source} holds NaN or infinity in {len(bad)} of {len(state)} tensors: {named}. The training that made it "
            "diverged, or the file is damaged: take an earlier checkpoint"
        )


def _from_hub(repo: str) -> Path:
    """The weights file of a repository "owner/name" or "owner/name@revision", from the cache where it is there."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ModelError(f"hf-hub:{repo} needs huggingface_hub: pip install huggingface_hub") from error
    repo_id, _, revision = repo.partition("@")
    reason: Exception | None = None
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(repo_id, file, revision=revision or None, local_files_only=reason is not None))
        except errors.LocalEntryNotFoundError as error:  # offline, or not in the cache
            reason = reason or error
        except errors.EntryNotFoundError:  # the repository has no such file
            continue
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            raise ModelError(f"hf-hub:{repo} cannot be fetched: {' '.join(str(error).split())[:300]}") from error
    if reason is not None:
        raise ModelError(f"hf-hub:{repo} is not in the cache, and the hub cannot be reached") from reason
    raise ModelError(f"hf-hub:{repo} has neither model.safetensors nor pytorch_model.bin")


def _download(url: str) -> Path:
    """A file at an address, kept in torch's cache folder."""
    from http.client import HTTPException
    from urllib.parse import urldefrag

    try:
        address, fragment = urldefrag(url)
    except ValueError as error:  # brackets without their partner
        raise ModelError(f"{url!r} is no address: {error}") from error
    name, expected_hash = file_name(address), _hash_asked_for(fragment, url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"
    if path.is_file():
        _check_hash(path, expected_hash, f"{path}, fetched from {address} earlier,")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as file:
            receive(address, file, LARGEST_DOWNLOAD, LONGEST_DOWNLOAD, SILENCE)
            file.flush()
            _check_hash(Path(file.name), expected_hash, url)  # before it gets its name
    except FleetnetError:  # which is a ValueError too
        raise
    except (HTTPException, OSError, ValueError) as error:
        raise ModelError(f"{url} cannot be fetched: {error}; fetch it yourself and give the file") from error
    return path


def file_name(address: str) -> str:
    """The name of the file at an address, for a folder of ours: letters, digits and `._-`, and a suffix of weights.

    Raises `ModelError` for another suffix: what it is shall be known before anything is fetched.
    """
    from urllib.parse import unquote, urlsplit

    last = re.split(r"[/\\]", unquote(urlsplit(address).path))[-1]  # also of "..%2Fname", which is two parts
    stem, dot, suffix = last.rpartition(".")
    if f"{dot}{suffix}" not in (".safetensors", *PICKLES):
        raise ModelError(f"{address} names no file of weights; its path must end in .safetensors, {', '.join(PICKLES)}")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem).strip(".")
    return f"{stem[:100] or 'weights'}.{suffix}"


def _hash_asked_for(fragment: str, url: str) -> str | None:
    """The hash in "#sha256=..." of an address; None where there is no fragment."""
    if not fragment:
        return None
    key, _, value = fragment.partition("=")
    if key != "sha256" or not re.fullmatch("[0-9a-f]{64}", value.lower()):
        raise ModelError(f"{url}: after # stands {fragment!r}; allowed: sha256= and 64 digits of 0 to 9, a to f")
    return value.lower()


def _check_hash(path: Path, expected: str | None, what: str) -> None:
    if expected is not None and (found := hash_of([path])) != expected:
        raise ModelError(f"{what} has the hash {found}, not {expected} as asked for")


# ---- unwrap ----------------------------------------------------------------------------------------------------------


def unwrap(content: Any, ema: bool, where: str) -> tuple[State, str]:
    """The state dict in what a training script saved, and the entry it was in, such as "[model_ema]".

    Prefers the moving average if `ema`, else the weights themselves; `ModelError` if `ema` is asked for and not there.
    """
    branch = ""
    while isinstance(content, Mapping):
        found = [key for key in ((*AVERAGED, *RAW) if ema else (*RAW, *AVERAGED)) if _holds_state(content.get(key))]
        if not found:
            break
        content, branch, ema = content[found[0]], f"{branch}[{found[0]}]", ema and found[0] not in AVERAGED
    if ema:
        raise ModelError(f"{where} holds no moving average; allowed: ema=False, or a file with {', '.join(AVERAGED)}")
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        holds = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(f"{where} holds no state dict; it holds {holds}")
    state = {str(k).replace("_orig_mod.", ""): v for k, v in content.items() if isinstance(v, Tensor)}
    state.pop("n_averaged", None)  # torch's AveragedModel
    while state and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), "")):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, branch


def _holds_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor | Mapping) for v in value.values())


# ---- convert ---------------------------------------------------------------------------------------------------------


def convert(name: str, state: State, expected: Mapping[str, Any]) -> State:
    """A state dict in any names that the files of backbone and task know -> our names; names unknown to them stay.

    Where a block was published in two versions (RepViT), the state becomes the one that `expected` has: equal in eval
    mode, though not in training.
    """
    module, renamed = find("backbones", family(split_name(name)[1])), _renamed(name, state)
    states = [_attempt(getattr(module, to), renamed) for to in ("to_current", "to_v1") if hasattr(module, to)]
    return max([renamed, *states], key=lambda converted: len(converted.keys() & expected.keys()))  # the first of equals


def _renamed(name: str, state: State) -> State:
    task, backbone_name = split_name(name)
    for module in (find("backbones", family(backbone_name)), find("tasks", task)):
        if hasattr(module, "convert_for"):  # of timm, where the names depend on the network
            state = _attempt(module.convert_for(backbone_name.removeprefix("timm/"), task), state)
        if hasattr(module, "convert"):
            state = _attempt(module.convert, state)
    return state


def _attempt(change: Callable[[State], State], state: State) -> State:
    try:
        return change(state)
    except (KeyError, IndexError):  # another network's names that resemble this one's: `place` will report them
        return state


def form_of(model: nn.Module) -> str:
    """ "multi-branch" while any module can still be fused, else "deploy"."""
    return "multi-branch" if collapsible(model) else "deploy"


@cache
def shapes_of(
    name: str, form: str, output_stride: int | None = None, options: Options = (), classes: int = CLASSES
) -> Shapes:
    """Names and shapes of a model's tensors in a form, without memory for them; of ParC at 256x256."""
    with torch.device("meta"):
        model = build(name, classes, 0.0, output_stride, dict(options))
        if form == "deploy":
            model = _deploy(model, (256, 256))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _deploy(model: Model, size: tuple[int, int]) -> Model:
    """A new model, in deploy form, in place. Its head does not see the example: with random weights it might fail."""
    model.eval()
    model.backbone = cast(Any, reparameterize(cast(nn.Module, model.backbone), torch.zeros(1, 3, *size)))
    model.head = reparameterize(model.head)
    return model


class Growth(NamedTuple):
    """How a tensor depends on the number of classes: its size in `dim` is per_class * classes + beside."""

    dim: int
    per_class: int
    beside: int

    def classes(self, shape: Sequence[int]) -> int:
        """The number of classes that such a tensor of a shape is for; 0 where it is for none."""
        count, rest = divmod((shape[self.dim] if self.dim < len(shape) else 0) - self.beside, self.per_class)
        return count if rest == 0 and count > 0 else 0

    def rows(self, classes: int, class_major: bool = False) -> Tensor:
        """Which rows of `dim` are each class's: (classes, per_class) indices, for a number of classes.

        Rows go by anchor, and by class within an anchor, after what is no class; or by class first (`class_major`).
        """
        offset = self.beside // self.per_class  # rows of no class, before the classes, for each of `per_class`
        index = torch.arange(self.per_class * (offset + classes))
        if class_major:
            return index.view(offset + classes, self.per_class)[offset:]
        return index.view(self.per_class, offset + classes)[:, offset:].T


@cache
def growing(name: str, form: str, output_stride: int | None = None, options: Options = ()) -> Mapping[str, Growth]:
    """The tensors of a model that depend on the number of classes."""
    shapes, larger = (shapes_of(name, form, output_stride, options, n) for n in (CLASSES, CLASSES + 1))
    found = {}
    for key, shape in shapes.items():
        for dim, (size, other) in enumerate(zip(shape, larger[key], strict=True)):
            if size != other:
                found[key] = Growth(dim, other - size, size - CLASSES * (other - size))
    return found


def _counted(keys: Iterable[str]) -> set[str]:
    """Without the batch counters of batch norms, which not every writer keeps."""
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def _of_backbone(keys: Iterable[str]) -> set[str]:
    return {key for key in _counted(keys) if key.startswith("backbone.")}


def _common(state: State, expected: Shapes) -> float:
    """How much a state and a model have in common, 0 to 1: names in both of all names in either."""
    ours, theirs = _counted(expected), _counted(state)
    if not any(key.startswith("head.") for key in theirs):  # features only: says nothing about the head
        ours = {key for key in ours if not key.startswith("head.")}
    return len(ours & theirs) / max(len(ours | theirs), 1)


@dataclass(frozen=True)
class Plan:
    """The model that a state was made with, as far as the names and shapes of its tensors tell."""

    form: str
    options: dict[str, Option]
    classes: int | None  # None where the state has no classifier


def plan(
    name: str, state: State, output_stride: int | None = None, options: Mapping[str, Option] | None = None
) -> Plan:
    """Form, options and number of classes of a state for the model `name`; `options` are those that are settled."""

    def score(form: str, options: Mapping[str, Option]) -> float:
        expected = shapes_of(name, form, output_stride, tuple(options.items()))
        return _common(convert(name, state, expected), expected)

    chosen = dict(options or {})
    form, best = FORMS[0], score(FORMS[0], chosen)
    if best < 1 and (other := score(FORMS[1], chosen)) > best:
        form, best = FORMS[1], other
    for option, values in _alternatives(name, chosen).items():
        for value in values:
            if best < 1 and (other := score(form, {**chosen, option: value})) > best:
                best, chosen = other, {**chosen, option: value}
    settled = output_stride, tuple(chosen.items())
    state = convert(name, state, shapes_of(name, form, *settled))
    tensors = [(growth, state[key]) for key, growth in growing(name, form, *settled).items() if key in state]
    counts = [count for growth, tensor in tensors if (count := growth.classes(tensor.shape))]
    return Plan(form, chosen, counts[0] if counts else None)


def _alternatives(name: str, settled: Mapping[str, Option]) -> dict[str, list[Option]]:
    """Other values to try of the options that are not settled: of switches the other, of counts the small ones."""
    tried: dict[str, list[Option]] = {}
    for key, default in defaults(name).items():
        if key not in settled and isinstance(default, int) and default < 9:  # bool is an int
            tried[key] = [not default] if isinstance(default, bool) else [n for n in range(1, 9) if n != default]
    return tried


def _on(task: str, name: str) -> str:
    """The name of a model of another task on the backbone of `name`."""
    return split_name(name)[1] if task == "classification" else f"{task}/{split_name(name)[1]}"


def head_of(name: str, weights: Weights, options: Mapping[str, Option] | None = None) -> str | None:
    """The task whose head the weights have, on the backbone of the model `name`; None where names do not tell."""
    if "task" in weights.facts:
        return weights.facts["task"] if weights.facts["task"] in names("tasks") else None
    own = split_name(name)[0]
    best, found = 0.0, None
    for task in sorted(names("tasks"), key=lambda task: task != own):
        for form in FORMS:
            try:
                expected = shapes_of(_on(task, name), form, None, tuple((options or {}).items()) if task == own else ())
            except FleetnetError:  # this backbone cannot have that head
                continue
            converted = convert(_on(task, name), weights.state, expected)
            ours, theirs = ({key for key in _counted(s) if key.startswith("head.")} for s in (expected, converted))
            if not theirs and all(key.startswith("backbone.") for key in converted):
                return None
            if (share := len(ours & theirs) / max(len(ours | theirs), 1)) > best:
                best, found = share, task
        if best > 0.5:
            break
    return found


def _implied(name: str, state: State) -> dict[str, Any]:
    """The output stride and options that the authors' weights go with, as far as the model `name` has such options."""
    task_name, backbone_name = split_name(name)
    task = find("tasks", task_name)
    implied = dict(task.implied(state)) if hasattr(task, "implied") else {}
    implied["options"] = {**options_of_backbone(name, state), **implied.get("options", {})}
    if family(backbone_name) == "timm" and "preprocess" not in implied:
        published = find("backbones", "timm").expected_of_image(backbone_name.removeprefix("timm/"), state)
        implied["preprocess"] = None if published is None else _preprocess_of(published)
    return {**implied, "options": {k: v for k, v in implied.get("options", {}).items() if k in defaults(name)}}


def options_of_backbone(name: str, state: State) -> dict[str, Option]:
    """The options of the backbone that a state was made with, as far as the names of its tensors tell."""
    module = find("backbones", family(split_name(name)[1]))
    return module.options_of(state) if hasattr(module, "options_of") else {}


# ---- place -----------------------------------------------------------------------------------------------------------


@named_arguments
def create_model(
    name: str,
    classes: int | Sequence[str] | None = None,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    *,
    drop_path: float = 0.0,
    output_stride: int | None = None,
    options: Mapping[str, Option] | None = None,
) -> Model:
    """A model by name, in training mode, with random weights or those of a file, the hub, or "default".

    `name` is a backbone ("fasternet_t0") or task and backbone; `classes` are those of the weights, or as many as
    usual (1000; of detectors 80, of segmenters 21), unless given: their number, or their names. With names, and weights
    that have some too, the head keeps what it has learned of each class that both know. `weights` are what `read`
    takes, in any names and either form: the model gets the form, the output stride and the options (heads, branches)
    that they were made with, unless these are given. Weights of another task give their backbone. `model.report` then
    tells what was loaded, and `model.preprocess` what the weights expect of an image, where that is known.
    Raises `ModelError` for an unknown model or weights that do not fit, `UsageError` for an unknown option.
    """
    class_names = None if classes is None or isinstance(classes, int) else list(classes)
    if class_names is not None:
        classes = len(class_names)
    classes = cast(int | None, classes)
    if weights is None:
        return build(name, classes, drop_path, output_stride, options)
    name, of_file, described = described_by(name)
    classes, options = of_file if classes is None else classes, {**described, **(options or {})}
    found = read(weights, name)
    state, settled, of_head = found.state, dict(options or {}), head_of(name, found, options)
    implied: dict[str, Any] = {}
    if of_head in (None, split_name(name)[0]):
        implied = _implied(name, state)
        settled = {**implied["options"], **settled}
        output_stride = implied.get("output_stride") if output_stride is None else output_stride
        if found.facts.get("model") == name:
            settled = {**found.facts["options"], **settled}
            output_stride = found.facts["output_stride"] if output_stride is None else output_stride
    else:
        expected = shapes_of(name, FORMS[0], output_stride, tuple(settled.items()))
        state, _ = _backbone_of(of_head, name, state, expected)
        if _same_backbone(found, name):
            of_backbone = defaults(split_name(name)[1]).keys() & defaults(name).keys()
            shared = {key: value for key, value in found.facts["options"].items() if key in of_backbone}
            settled = {**shared, **settled}
    made = plan(name, state, output_stride, settled)
    classes = made.classes if classes is None else classes
    model = build(name, classes, drop_path, output_stride, made.options)
    if made.form == "deploy":
        model = _deploy(model, found.size).train()
    model.report, model.preprocess = place(model, found, class_names), found.preprocess or implied.get("preprocess")
    return model


def _same_backbone(weights: Weights, name: str) -> bool:
    return "model" in weights.facts and split_name(weights.facts["model"])[1] == split_name(name)[1]


def _backbone_of(task: str, name: str, state: State, expected: Mapping[str, Any]) -> tuple[State, list[str]]:
    """The tensors of a state of another task in our names without its head's, and the names of those."""
    converted = convert(_on(task, name), state, expected)
    if family(split_name(name)[1]) == "timm":  # its classifiers and its feature maps have other names
        converted = _renamed(name, converted)
    of_head = sorted(key for key in _counted(converted) if key.startswith("head."))
    return {key: value for key, value in converted.items() if not key.startswith("head.")}, of_head


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` takes and that fit a pattern such as "repvit_*"; beside them, timm/NAME."""
    return list(variants(pattern))


@named_arguments
def load_weights(
    model: Model,
    source: str | Path | Mapping[str, Tensor],
    *,
    ema: bool = False,
    classes: Sequence[str] | None = None,
) -> Report:
    """Load weights into `model` in place, all of them or none, and report; see `read` for `source` and `ema`.

    Names may be ours, the authors' or timm's; the model keeps its dtype and device. `classes` are the names of the
    model's classes: where the weights have names too, rows of the head follow them. Otherwise what depends on the
    number of classes starts anew if that differs, and the whole head if the weights have none or another task's.
    Anything else that is missing, left over or of another shape is a `ModelError`, and so are weights of the other form
    (collapse after loading, since what is collapsed cannot be unfolded) and a model built otherwise than the authors'.
    """
    return place(model, read(source, model.name, ema), classes)


@torch.no_grad()
def place(model: Model, weights: Weights, classes: Sequence[str] | None = None) -> Report:
    """What `load_weights` does, for weights that have been read."""
    if classes is not None and len(classes) != model.classes:
        raise ModelError(f"{len(classes)} class names for a model of {model.classes} classes")
    ours = model.state_dict()
    of_head = head_of(model.name, weights, model.options)
    unused: list[str] = []  # the head of another task
    if of_head in (None, model.task):
        state = convert(model.name, weights.state, ours)
        _check_built_alike(model, weights)
    else:
        state, unused = _backbone_of(of_head, model.name, weights.state, ours)
    missing = sorted(_counted(ours) - state.keys())
    unexpected = sorted(_counted(state) - ours.keys())
    wrong = sorted(key for key in ours.keys() & state.keys() if ours[key].shape != state[key].shape)
    fresh, note = _fresh_head(model, ours, state, missing, wrong)
    excused = {key for key in unexpected if fresh and key.startswith("head.")} | fresh.keys()
    if {*missing, *unexpected, *wrong} - excused:
        raise ModelError(_misfit(model, weights, state, missing, unexpected, wrong))
    if unused:
        note = (
            f"backbone: {len(_counted(state))} tensors of a {of_head} checkpoint used; "
            f"its head ({len(unused)} tensors) not used; head: {len(_counted(fresh))} tensors initialized anew"
        )
    by_class: State = {}
    before = None if unused else weights.facts.get("classes")
    if classes is not None and before and list(before) != list(classes):
        by_class, note = _rows_by_name(model, state, list(before), list(classes))
    fresh = {key: value for key, value in fresh.items() if key not in by_class}
    values = {key: value for key, value in {**state, **fresh, **by_class}.items() if key in ours}
    check_finite(values, weights.source)
    for key, value in values.items():
        ours[key].copy_(value)
    if _has_versions(model) and _of_backbone(state) != _of_backbone(_renamed(split_name(model.name)[1], weights.state)):
        note = "; ".join(filter(None, (note, "blocks converted between published versions, equal in eval mode only")))
    return Report(
        weights.source,
        form_of(model),
        tuple(key for key in ours if key in values and key not in fresh and key not in by_class),
        tuple(missing),
        (*unexpected, *unused),
        tuple(wrong),
        tuple(fresh),
        tuple(by_class),
        weights.license,
        note,
    )


def _has_versions(model: Model) -> bool:
    """Whether the blocks of the model's backbone were published in two versions."""
    return hasattr(find("backbones", family(split_name(model.name)[1])), "to_v1")


def _fresh_head(model: Model, ours: State, state: State, missing: list[str], wrong: list[str]) -> tuple[State, str]:
    """Initial values of the head's tensors that the weights do not fit, and a note of why; or nothing."""
    growths = growing(model.name, form_of(model), model.output_stride, tuple(model.options.items())) if wrong else {}

    def of_other_classes(key: str) -> bool:
        """Whether all that is wrong with a tensor is its number of classes."""
        growth, shape = growths[key], list(state[key].shape)
        return growth.classes(shape) > 0 and _resized(shape, growth, model.classes) == list(ours[key].shape)

    resized = [key for key in wrong if key in growths and of_other_classes(key)]
    if resized:
        keys = [*resized, *(key for key in missing if key.startswith("head."))]
        before = growths[resized[0]].classes(state[resized[0]].shape)
        note = f"head: re-initialized, {before} -> {model.classes} classes"
    elif not any(key.startswith("head.") for key in state):
        keys = [key for key in ours if key.startswith("head.")]
        note = "head: re-initialized, the weights have none"
    else:
        return {}, ""
    values = _new_head(model)
    return {key: values[key] for key in keys}, note


def _new_head(model: Model) -> State:
    """Initial values of all of a model's head."""
    task = find("tasks", model.task)
    options = {key: value for key, value in model.options.items() if key in task.OPTIONS}
    head: nn.Module = task.head(model.backbone, model.classes, **options)
    if form_of(model) == "deploy":
        head = reparameterize(head.eval())
    return {f"head.{key}": value for key, value in head.state_dict().items()}


def _rows_by_name(model: Model, state: State, before: list[str], now: list[str]) -> tuple[State, str]:
    """The head's tensors that depend on classes, with the rows of each class where its name is now; and a note.

    `before` and `now` are the class names of the weights and of the model. Rows of classes that the weights do not know
    are initial values; rows of no class (background, boxes) are those of the weights.
    """
    labels_before, labels_now = ({name: label for label, name in enumerate(names)} for names in (before, now))
    kept = [name for name in now if name in labels_before]
    new = [name for name in now if name not in labels_before]
    of_kept = [labels_before[name] for name in kept], [labels_now[name] for name in kept]
    initial = _new_head(model)
    tensors: State = {}
    for key, growth in growing(model.name, form_of(model), model.output_stride, tuple(model.options.items())).items():
        if key not in state or growth.classes(state[key].shape) != len(before):
            continue
        inner = key.startswith(getattr(find("tasks", model.task), "CLASS_MAJOR", ("\0",)))
        rows_before, rows_now = growth.rows(len(before), inner), growth.rows(len(now), inner)
        tensor = initial[key].clone().movedim(growth.dim, 0)
        source = state[key].to(tensor).movedim(growth.dim, 0)
        shared_before = sorted(set(range(len(source))) - set(rows_before.flatten().tolist()))
        shared_now = sorted(set(range(len(tensor))) - set(rows_now.flatten().tolist()))
        tensor[shared_now] = source[shared_before]
        tensor[rows_now[of_kept[1]]] = source[rows_before[of_kept[0]]]
        tensors[key] = tensor.movedim(0, growth.dim)
    note = f"head: rows kept by name of {_few(kept)}" if kept else "head: no class name in common"
    if new:
        note += f"; new: {_few(new)}"
    unknown = [name for name in before if name not in labels_now]
    return tensors, note + (f"; not used: {_few(unknown)}" if unknown else "")


def _few(names: Sequence[str]) -> str:
    """The first five of some names, and how many there are."""
    listed = ", ".join(names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


def _resized(shape: Sequence[int], growth: Growth, classes: int) -> list[int]:
    """The shape that a tensor would have for another number of classes."""
    return [*shape[: growth.dim], growth.per_class * classes + growth.beside, *shape[growth.dim + 1 :]]


def _check_built_alike(model: Model, weights: Weights) -> None:
    """Refuse the authors' weights for a model that has their tensors, but computes something else with them."""
    implied, usual = _implied(model.name, weights.state), defaults(model.name)
    differ = [f"options={{{k!r}: {v!r}}}" for k, v in implied["options"].items() if model.options.get(k, usual[k]) != v]
    if (stride := implied.get("output_stride", model.output_stride)) != model.output_stride:
        differ.insert(0, f"output_stride={stride}")
    if differ:
        raise ModelError(
            f"{weights.source} is for a {model.name} built with {', '.join(differ)}; this model has "
            f"output_stride={model.output_stride} and options={model.options}"
        )


def _misfit(
    model: Model, weights: Weights, state: State, missing: list[str], unexpected: list[str], wrong: list[str]
) -> str:
    """An error message: the numbers, the first few names, and what the weights look like."""
    ours = model.state_dict()
    fit = len(_counted(ours)) - len(missing) - len(_counted(wrong))
    parts = [
        f"{weights.source} does not fit {model.name} ({form_of(model)} form, {model.classes} classes): "
        f"{fit} of {len(_counted(ours))} tensors fit ({fit / max(len(_counted(ours)), 1):.0%})"
    ]
    sizes = [f"{key} {tuple(state[key].shape)} instead of {tuple(ours[key].shape)}" for key in wrong]
    for label, found in (("missing", missing), ("unexpected", unexpected), ("of wrong shape", sizes)):
        if found:
            parts.append(f"{len(found)} {label}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}")
    return "; ".join(parts) + ". " + _diagnosis(model, weights)


def _diagnosis(model: Model, weights: Weights) -> str:
    if weights.facts.get("model", model.name) != model.name:
        return f"This is a checkpoint of {weights.facts['model']}"
    name, form, share = _looks_like(weights.state)
    if share < 0.3:
        return "These look like weights of none of our models"
    if name != split_name(model.name)[1]:
        return f"These look like {name} weights ({form} form, {share:.0%} of the backbone's tensors fit)"
    if form == "deploy" and form_of(model) == "multi-branch":
        return (
            "These weights are in deploy form, and what is collapsed cannot be unfolded into branches: take the "
            "multi-branch weights, or create_model(name, weights=...), which builds the deploy form"
        )
    if form == "multi-branch" and form_of(model) == "deploy":
        return "These weights are in multi-branch form: load them into a new model, then call reparameterize"
    made, has = plan(model.name, weights.state).options, model.options
    if made != has:
        default = "the default options"
        return f"These are {model.name} weights made with {made or default}; this model has {has or default}"
    size = " or for another size" if form == "deploy" else ""
    return f"These are {model.name} weights of the same form, but not whole, or changed{size}"


def _looks_like(state: State) -> tuple[str, str, float]:
    """The variant whose backbone a state has most in common with, the form, and the share of tensors that fits."""

    def alike(ours: set[str], theirs: set[str]) -> float:
        return len(ours & theirs) / max(len(ours | theirs), 1)

    def pattern(keys: Iterable[str]) -> set[str]:
        return {re.sub(r"\d+", "#", key) for key in _of_backbone(keys)}

    candidates = []  # of each family its first variant, in both forms: compare names without their numbers
    for file in names("backbones"):
        table = getattr(find("backbones", file), "VARIANTS", {})
        for name, form in ((name, form) for name in list(table)[:1] for form in FORMS):
            expected = shapes_of(name, form)
            candidates.append((alike(pattern(expected), pattern(convert(name, state, expected))), form, list(table)))
    _, form, table = max(candidates, key=lambda candidate: candidate[0])
    best, share = "", -1.0
    for name in table:
        expected = shapes_of(name, form)
        converted = convert(name, state, expected)
        ours, theirs = _of_backbone(expected), _of_backbone(converted)
        same = sum(1 for key in ours & theirs if tuple(converted[key].shape) == expected[key])
        if (now := same / max(len(ours | theirs), 1)) > share:
            best, share = name, now
    return best, form, share
