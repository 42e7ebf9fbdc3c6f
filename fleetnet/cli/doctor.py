"""`fleetnet doctor`: which runtimes, exporters and devices work here, and for each that does not, what would add it.

With --test each installed runtime gets a small network, converts it, runs the file and compares:
the proof that it works and is not merely there. Each does so in a process of its own, since a
broken one may take its process with it. What is missing or broken is reported; it is no failure of
this verb.
"""

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..find import names
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet doctor --test"
PACKAGES = {  # optional: module -> distribution, extra, what for
    "timm": ("timm", "timm", "backbones timm/NAME"),
    "huggingface_hub": ("huggingface_hub", "hub", "weights from a hub"),
    "nncf": ("nncf", "quantize", "int8 for OpenVINO"),
}


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "--test",
        action="store_true",
        help="convert, run and compare a small network in each runtime",
    )
    parser.add_argument(
        "--to", type=str, help="only these runtimes, separated by commas (default: all)"
    )
    parser.add_argument(
        "--install",
        type=str,
        help="make the environment of its own that a runtime's converter needs, such as litert",
    )


def run(given: dict[str, Any]) -> dict[str, Any]:
    from .. import __version__
    from ..measure.latency import version
    from ..runtimes import _isolated, choice
    from ..runtimes._cpu import int8_class

    if given.get("install"):
        say(
            f"making the environment that converts for {given['install']}, in "
            f"{_isolated.folder(given['install'])}"
        )
        _isolated.create(given["install"])
    chosen = (
        [choice(name)[0] for name in given["to"].split(",")]
        if given.get("to")
        else names("runtimes")
    )
    machine, int8 = _machine(), int8_class()
    table(
        f"fleetnet {__version__} on this machine",
        ["", ""],
        [[key, value or "no"] for key, value in machine.items()],
    )

    say(f"int8: {int8.meaning}")

    runtimes = [_runtime(name) for name in chosen]
    for runtime in runtimes if given.get("test") else ():
        if runtime["lacks"] is None:
            say(f"testing {runtime['name']}")
            runtime["test"] = _tested(runtime["name"])
    rows = [
        [
            r["name"],
            r["suffix"],
            ", ".join(r["precisions"]),
            f"{r['package']} {r['version'] or '-'}",
            _state(r),
        ]
        for r in runtimes
    ]
    table(
        "Runtimes",
        ["runtime", "file", "precisions", "package", "state"],
        rows,
        ("precisions", "file"),
    )

    environments = [
        {"name": name, "folder": str(_isolated.folder(name)), "lacks": _isolated.missing(name)}
        for name in _isolated.converters()
    ]
    if environments:
        rows = [
            [e["name"], e["folder"], "ready" if e["lacks"] is None else e["lacks"]]
            for e in environments
        ]
        table(
            "Environments of converters that cannot live in this one",
            ["runtime", "folder", "state"],
            rows,
        )
    packages = [
        {
            "name": name,
            "for": what,
            "version": version(name),
            "lacks": None if _there(module) else f"pip install 'fleetnet[{extra}]'",
        }
        for module, (name, extra, what) in PACKAGES.items()
    ]
    rows = [[p["name"], p["for"], p["lacks"] or p["version"] or "installed"] for p in packages]
    table("Optional packages", ["package", "for", "state"], rows)
    if not given.get("test"):
        say("installed is not yet working: fleetnet doctor --test tries each")
    return {
        "version": __version__, "machine": machine, "int8": {"saturates": int8.saturates, "meaning": int8.meaning},
        "runtimes": runtimes, "environments": environments, "packages": packages,
    }  # fmt: skip


def _machine() -> dict[str, Any]:
    """Processor, devices of torch, and versions."""
    import torch

    from ..measure.latency import card
    from ..runtimes._cpu import int8_class, onednn_saturates

    kind = int8_class()
    known = card(threads=1, packages=("torch", "torchvision"))
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if _cuda() else []
    )
    capped = {}
    if onednn_saturates() and not kind.saturates:
        capped = {
            "int8, OpenVINO": f"ONEDNN_MAX_CPU_ISA={os.environ['ONEDNN_MAX_CPU_ISA']} leaves "
            "it without VNNI"
        }
    return {
        "processor": f"{known['cpu']}, {known['cores']} cores",
        "int8": str(kind),
        **capped,
        "CUDA": ", ".join(cuda),
        "MPS": "yes" if torch.backends.mps.is_available() else "",
        "system": known["platform"],
        "python": known["python"],
        "torch": known["torch"],
        "torchvision": known["torchvision"],
    }


def _cuda() -> bool:
    import warnings

    import torch

    with warnings.catch_warnings():  # about a driver that is too old
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # half removed
        return False


def _runtime(name: str) -> dict[str, Any]:
    """What is known of a runtime without running it."""
    from .. import runtimes
    from ..measure.latency import version

    module = runtimes.find(name)
    try:
        lacks = module.missing()
    except Exception as error:  # a package that is there in part
        lacks = f"cannot be looked at: {type(error).__name__}: {error}"
    return {
        "name": name,
        "suffix": module.suffix,
        "precisions": list(module.tolerances),
        "package": module.package,
        "version": version(module.package),
        "lacks": lacks,
        "cannot_run": module.cannot_run(),
        "test": None,
    }


def _state(runtime: dict[str, Any]) -> str:
    """In words."""
    if runtime["lacks"]:
        return str(runtime["lacks"])
    test = runtime["test"]
    if test is not None and not test["passed"]:
        return f"does not work: {test['said']}"
    state = "installed" if test is None else f"works: {test['said']}"
    return f"{state}; only converts: {runtime['cannot_run']}" if runtime["cannot_run"] else state


def _tested(name: str) -> dict[str, Any]:
    """What came of `_trial` in a process of its own: {"passed": bool, "said": str}."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return {"passed": True, "said": pool.submit(_trial, name).result()}
    except Exception as error:  # of any kind that a package can have; a process that was killed is BrokenProcessPool
        said = str(error).strip().splitlines() or [""]
        return {"passed": False, "said": f"{type(error).__name__}: {said[0]}"}


def _trial(name: str) -> str:
    """Convert a small network, run the file, compare; how far they are apart."""
    import torch
    from torch import nn

    from .. import runtimes
    from ..deploy.package import deliver

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{runtimes.find(name).suffix}"
        done = deliver(model, torch.randn(1, 3, 16, 16), path, name, None)
    if done.parity is None:
        return f"converted and inspected in {done.seconds:.1f} s"
    return f"relative difference {done.parity.relative:.1g}, converted in {done.seconds:.1f} s"
