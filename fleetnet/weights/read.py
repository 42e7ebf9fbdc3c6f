"""A file, an address, a repository of the hub or a dict -> a state dict, without what was wrapped around it.

    read      safetensors, or a pickle of tensors and plain values (nothing else is unpickled); disk, hub or URL
    unwrap    {"model": ...}, {"state_dict_ema": ...}, "module.", "_orig_mod.", ...  ->  names and tensors

Nothing is executed that a file contains.
"""

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backbones import Pretrained, State, family, pretrained, variants
from ..backbones.timm import pretrained as pretrained_by_timm
from ..errors import FleetnetError, ModelError, suggest
from ..facts import Facts
from ..fetching import receive
from ..files import replacing
from ..preprocess import Preprocess
from ..reading import MEGABYTE, WEIGHTS, check_regular, from_json, hash_of, leads_out, open_regular
from ..tasks import split_name

PICKLES = (".pt", ".pth", ".tar", ".bin", ".ckpt")
# under which names training scripts keep the weights ...
RAW = "model", "state_dict", "model_state_dict"
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict")  # ... and their moving average
PREFIXES = ("module.", "model.")  # DataParallel and AveragedModel; Lightning
LARGEST_DOWNLOAD, LONGEST_DOWNLOAD = 4_000_000_000, 3600.0  # bytes; seconds
SILENCE = 30.0  # seconds that a server may send nothing


@dataclass(frozen=True)
class Weights:
    """What a source holds, by the names it uses; `facts` are those of our own checkpoints, else None."""

    state: State
    source: str
    facts: Facts | None = None
    published: Pretrained | None = None

    @property
    def license(self) -> str | None:
        if self.published is not None:
            return self.published.license
        source = None if self.facts is None else self.facts.source
        return None if source is None else source.license

    @property
    def preprocess(self) -> Preprocess | None:
        """What these weights expect of an image; None where it is not known."""
        if self.published is not None:
            return self.published.preprocess
        return None if self.facts is None else self.facts.preprocess

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that a deploy form of ParC is for."""
        return (256, 256) if self.preprocess is None else self.preprocess.size


# ---- read ------------------------------------------------------------------------------------------------------------


def read_weights(
    source: str | Path | Mapping[str, Tensor], name: str, ema: bool = False
) -> Weights:
    """The tensors of a source, without wrappers; nothing is executed that a file contains.

    `source` is a state dict, a file (.safetensors, or a pickle: .pt, .pth, .pth.tar, .bin, .ckpt),
    a run folder, "hf-hub:owner/name" (or "...@revision"), an http address, or "default": the
    published weights of the model `name`. `ema` takes the moving average that a training checkpoint
    holds beside the weights. Raises `ModelError`.
    """
    if isinstance(source, Mapping):
        state, branch = unwrap(source, ema, "the state dict")
        return Weights(state, "state dict" + branch)
    address, backbone_name = str(source), split_name(name)[1]
    published = pretrained(backbone_name)
    if address == "default" and family(backbone_name) == "timm":
        of_timm, published = pretrained_by_timm(backbone_name.removeprefix("timm/"))
        return Weights(of_timm, published.source, None, published)
    if address == "default":
        if published is None:
            having = ", ".join(variant for variant in variants() if pretrained(variant) is not None)
            raise ModelError(
                f"no weights were published for {backbone_name!r}; there are for: {having}"
            )
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
        tensors, description = read_safetensors(path)
        facts = Facts.from_json(description, path) if description else None
        state, branch = unwrap(tensors, ema, address)
        return Weights(state, address + branch, facts, published)
    state, branch = unwrap(read_pickle(path), ema, address)
    return Weights(state, address + branch, None, published)


def locate(path: Path) -> Path:
    """A weights file that exists: the path itself, or best.safetensors of a run folder."""
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.is_file():
            raise ModelError(
                f"{path} is a folder without best.safetensors; give a run folder or a file"
            )
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
    near = sorted(
        p.name for p in files if p.suffix in suffixes or (p / "best.safetensors").is_file()
    )
    return (
        suggest(path.name, near)
        if near
        else f"its folder has none that end in {', '.join(suffixes)}"
    )


def check_inside(
    path: Path, run: Path, instead: str = "copy the file into it, or give the file itself"
) -> None:
    """`ModelError` if a file of a run folder is a link to a place outside of it: the run may be a stranger's.

    `instead` says what to do.
    """
    if leads_out(path, run):
        raise ModelError(
            f"{path} is a link that leads out of {run}, to {os.path.realpath(path)}: links in a "
            f"run folder are not followed, so {instead}"
        )


def read_safetensors(path: Path, tensors: bool = True) -> tuple[State, dict[str, object]]:
    """Tensors by name, unless unwanted, and the facts of a checkpoint of ours; `ModelError` for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path, WEIGHTS)
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in (file.keys() if tensors else ())}
        text = notes.get("fleetnet", "{}")
        description = dict(from_json(text))
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path} ({size} bytes) is damaged, cut short, or not safetensors: {error}"
        ) from error
    for key, what, actual in (
        ("facts_sha256", "description", lambda: hashlib.sha256(text.encode()).hexdigest()),
        ("tensors_sha256", "tensors", lambda: hash_tensors(state) if tensors else None),
    ):
        expected = notes.get(key)  # older files have none
        if expected is not None and (hashed := actual()) is not None and hashed != expected:
            raise ModelError(
                f"{path} is damaged, or was changed: the hash of its {what} is not the one that "
                f"was written. If the change was meant, leave {key} out of the file's metadata"
            )
    return state, description


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU with their names, types and shapes, in hexadecimal digits."""
    hashed = hashlib.sha256()
    for key in sorted(state):
        value = state[key].contiguous()
        hashed.update(
            f"{key} {value.dtype} {tuple(value.shape)} ".encode("utf-8", "backslashreplace")
        )
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def read_pickle(path: Path) -> object:
    """What torch.save wrote, if it is tensors and plain values; `ModelError` if it is damaged or would run code."""
    if path.suffix not in PICKLES:
        raise ModelError(
            f"{path}: weights are read from .safetensors, {', '.join(PICKLES)}; this "
            f"is {path.suffix!r}"
        )
    try:
        with open_regular(path, WEIGHTS) as file:
            start = file.read(2)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if start == b"PK":
        _check_archive(path)
    # what torch.save writes: a zip archive, or before 1.6 a pickle
    if start not in (b"PK", b"\x80\x02"):
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) is not a file of torch.save: it "
            f"begins with {start!r}"
        )
    try:
        # the arguments that training scripts keep
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if needs := re.search(r"GLOBAL (\S+)|Trying to (?:instantiate|call) (\S+)", str(error)):
            raise ModelError(
                f"{path} was refused: it is a pickle that would run {needs[1] or needs[2]}, and "
                "only tensors and plain values are unpickled. If you trust it, write its state "
                "dict anew with torch.save, where it was made"
            ) from error
        reason = " ".join(str(error).partition("error:")[2].split()).partition(" Check the")[0]
        raise ModelError(f"{path} is a pickle that cannot be read: {reason}") from error
    except Exception as error:  # a damaged file may raise anything
        size = path.stat().st_size
        raise ModelError(
            f"{path} ({size} bytes) is damaged, cut short, or holds no state dict: {error}"
        ) from error


def _check_archive(path: Path) -> None:
    """`ModelError` for an archive that would take far more memory than it has bytes; torch compresses nothing."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} ({size} bytes) is damaged, cut short, or no archive: {error}"
        ) from error
    if unpacked > 2 * size + 64 * MEGABYTE:
        raise ModelError(
            f"{path} was refused: its {size / 1e6:.1f} MB unpack to {unpacked / 1e6:,.0f} MB. If "
            "you trust it, write its state dict anew with torch.save, which does not compress"
        )


def check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """`ModelError`, with their names, where weights or buffers are NaN or infinite."""
    bad = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        named = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise ModelError(
            f"{source} holds NaN or infinity in {len(bad)} of {len(state)} tensors: {named}. The "
            "training that made it diverged, or the file is damaged: take an earlier checkpoint"
        )


def _from_hub(repo: str) -> Path:
    """The weights file of a repository "owner/name" or "owner/name@revision", from the cache where it is there."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ModelError(
            f"hf-hub:{repo} needs huggingface_hub: pip install huggingface_hub"
        ) from error
    repo_id, _, revision = repo.partition("@")
    reason: Exception | None = None
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(
                hf_hub_download(
                    repo_id, file, revision=revision or None, local_files_only=reason is not None
                )
            )
        except errors.LocalEntryNotFoundError as error:  # offline, or not in the cache
            reason = reason or error
        except errors.EntryNotFoundError:  # the repository has no such file
            continue
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            raise ModelError(
                f"hf-hub:{repo} cannot be fetched: {' '.join(str(error).split())[:300]}"
            ) from error
    if reason is not None:
        raise ModelError(
            f"hf-hub:{repo} is not in the cache, and the hub cannot be reached"
        ) from reason
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
    path = (
        Path(torch.hub.get_dir())
        / "checkpoints"
        / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{name}"
    )
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
        raise ModelError(
            f"{url} cannot be fetched: {error}; fetch it yourself and give the file"
        ) from error
    return path


def file_name(address: str) -> str:
    """The name of the file at an address, for a folder of ours: letters, digits and `._-`, and a suffix of weights.

    Raises `ModelError` for another suffix: what it is shall be known before anything is fetched.
    """
    from urllib.parse import unquote, urlsplit

    # also of "..%2Fname", which is two parts
    last = re.split(r"[/\\]", unquote(urlsplit(address).path))[-1]
    stem, dot, suffix = last.rpartition(".")
    if f"{dot}{suffix}" not in (".safetensors", *PICKLES):
        raise ModelError(
            f"{address} names no file of weights; its path must end in .safetensors, "
            f"{', '.join(PICKLES)}"
        )
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem).strip(".")
    return f"{stem[:100] or 'weights'}.{suffix}"


def _hash_asked_for(fragment: str, url: str) -> str | None:
    """The hash in "#sha256=..." of an address; None where there is no fragment."""
    if not fragment:
        return None
    key, _, value = fragment.partition("=")
    if key != "sha256" or not re.fullmatch("[0-9a-f]{64}", value.lower()):
        raise ModelError(
            f"{url}: after # stands {fragment!r}; allowed: sha256= and 64 digits of 0 to 9, a to f"
        )
    return value.lower()


def _check_hash(path: Path, expected: str | None, what: str) -> None:
    if expected is not None and (actual := hash_of([path])) != expected:
        raise ModelError(f"{what} has the hash {actual}, not {expected} as asked for")


# ---- unwrap ----------------------------------------------------------------------------------------------------------


def unwrap(content: object, ema: bool, where: str) -> tuple[State, str]:
    """The state dict in what a training script saved, and the entry it was in, such as "[model_ema]".

    Prefers the moving average if `ema`, else the weights themselves; `ModelError` if `ema` is asked
    for and not there.
    """
    branch = ""
    while isinstance(content, Mapping):
        keys = [
            key
            for key in ((*AVERAGED, *RAW) if ema else (*RAW, *AVERAGED))
            if _holds_state(content.get(key))
        ]
        if not keys:
            break
        content, branch, ema = (
            content[keys[0]],
            f"{branch}[{keys[0]}]",
            ema and keys[0] not in AVERAGED,
        )
    if ema:
        raise ModelError(
            f"{where} holds no moving average; allowed: ema=False, or a file with "
            f"{', '.join(AVERAGED)}"
        )
    if not isinstance(content, Mapping) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        holds = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise ModelError(f"{where} holds no state dict; it holds {holds}")
    state = {
        str(k).replace("_orig_mod.", ""): v for k, v in content.items() if isinstance(v, Tensor)
    }
    state.pop("n_averaged", None)  # torch's AveragedModel
    while state and (
        prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), "")
    ):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, branch


def _holds_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(v, Tensor | Mapping) for v in value.values()
    )
