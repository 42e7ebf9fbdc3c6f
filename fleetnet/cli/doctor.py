"""`fleetnet doctor`: which runtimes, exporters and devices work here, and what would add others.

With --test each installed runtime gets a small network, converts it, runs the file and compares:
the proof that it works and is not merely there. Each does so in a process of its own, since a
broken one may take its process with it. What is missing or broken is reported; it is no failure of
this verb.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..find import names
from ._settings import About, switch
from ._show import say, table

if TYPE_CHECKING:
    from ..deploy.trial import Trial

EXAMPLE = "fleetnet doctor --test"
PACKAGES = {  # optional: module -> distribution, extra, what for
    "timm": ("timm", "timm", "backbones timm/NAME"),
    "huggingface_hub": ("huggingface_hub", "hub", "weights from a hub"),
    "tensorboard": ("tensorboard", "tensorboard", "train --log tensorboard"),
    "nncf": ("nncf", "quantize", "int8 for OpenVINO"),
}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    test: bool = switch("convert, run and compare a small network in each runtime")
    to: str | None = field(
        default=None,
        metadata=About(help="only these runtimes, separated by commas", usual="all"),
    )
    install: str | None = field(
        default=None,
        metadata=About(
            help="make the environment of its own that a runtime's converter needs, such as litert"
        ),
    )


@dataclass(frozen=True)
class State:
    """What is known of a runtime."""

    name: str
    suffix: str
    precisions: list[str]
    package: str
    version: str | None
    lacks: str | None  # what is missing, with the command that adds it
    cannot_run: str | None
    test: "Trial | None" = None

    def __str__(self) -> str:
        if self.lacks:
            return self.lacks
        if self.test is not None and not self.test.passed:
            return f"does not work: {self.test.said}"
        state = "installed" if self.test is None else f"works: {self.test.said}"
        return f"{state}; only converts: {self.cannot_run}" if self.cannot_run else state


@dataclass(frozen=True)
class Environment:
    """One of a converter that cannot live in ours."""

    name: str
    folder: str
    lacks: str | None


@dataclass(frozen=True)
class Package:
    """One that is optional."""

    name: str
    use: str
    version: str | None
    lacks: str | None

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "for": self.use,
            "version": self.version,
            "lacks": self.lacks,
        }


def run(settings: Doctor) -> dict[str, object]:
    from .. import __version__
    from ..runtimes import choice
    from ..runtimes._cpu import int8_class

    if settings.install:
        _install(settings.install)
    chosen = names("runtimes")
    if settings.to:
        chosen = [choice(name)[0] for name in settings.to.split(",")]
    machine, int8 = _machine(), int8_class()
    rows = [[key, value or "no"] for key, value in machine.items()]
    table(f"fleetnet {__version__} on this machine", ["", ""], rows)
    say(f"int8: {int8.meaning}")
    runtimes = [_runtime(name) for name in chosen]
    if settings.test:
        runtimes = [_tested(runtime) for runtime in runtimes]
    environments, packages = _environments(), _packages()
    _show(runtimes, environments, packages)
    if not settings.test:
        say("installed is not yet working: fleetnet doctor --test tries each")
    return {
        "version": __version__,
        "machine": machine,
        "int8": {"saturates": int8.saturates, "meaning": int8.meaning},
        "runtimes": [dataclasses.asdict(runtime) for runtime in runtimes],
        "environments": [dataclasses.asdict(environment) for environment in environments],
        "packages": [package.to_dict() for package in packages],
    }


def _install(name: str) -> None:
    from ..runtimes import _isolated

    say(f"making the environment that converts for {name}, in {_isolated.folder(name)}")
    _isolated.create(name)


def _show(
    runtimes: Sequence[State], environments: Sequence[Environment], packages: Sequence[Package]
) -> None:
    rows = [
        [
            runtime.name,
            runtime.suffix,
            ", ".join(runtime.precisions),
            f"{runtime.package} {runtime.version or '-'}",
            str(runtime),
        ]
        for runtime in runtimes
    ]
    columns = ["runtime", "file", "precisions", "package", "state"]
    table("Runtimes", columns, rows, ("precisions", "file"))
    if environments:
        title = "Environments of converters that cannot live in this one"
        rows = [[e.name, e.folder, "ready" if e.lacks is None else e.lacks] for e in environments]
        table(title, ["runtime", "folder", "state"], rows)
    rows = [[p.name, p.use, p.lacks or p.version or "installed"] for p in packages]
    table("Optional packages", ["package", "for", "state"], rows)


def _environments() -> list[Environment]:
    from ..runtimes import _isolated

    return [
        Environment(name, str(_isolated.folder(name)), _isolated.missing(name))
        for name in _isolated.converters()
    ]


def _packages() -> list[Package]:
    from ..measure.latency import version

    return [
        Package(
            name,
            use,
            version(name),
            None if _there(module) else f"pip install 'fleetnet[{extra}]'",
        )
        for module, (name, extra, use) in PACKAGES.items()
    ]


def _machine() -> dict[str, object]:
    """Processor, devices of torch, and versions."""
    import torch

    from ..measure.latency import card
    from ..runtimes._cpu import int8_class, onednn_saturates

    kind = int8_class()
    known = card(threads=1, packages=("torch", "torchvision"))
    cuda = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if _cuda() else []
    )
    capped: dict[str, str] = {}
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


def _runtime(name: str) -> State:
    """What is known of a runtime without running it."""
    from .. import runtimes
    from ..measure.latency import version

    module = runtimes.find(name)
    try:
        lacks = module.missing()
    except Exception as error:  # a package that is there in part
        lacks = f"cannot be looked at: {type(error).__name__}: {error}"
    return State(
        name=name,
        suffix=module.suffix,
        precisions=list(module.tolerances),
        package=module.package,
        version=version(module.package),
        lacks=lacks,
        cannot_run=module.cannot_run(),
    )


def _tested(runtime: State) -> State:
    """The runtime with what came of trying it, where nothing is missing."""
    from ..deploy.trial import try_runtime

    if runtime.lacks is not None:
        return runtime
    say(f"testing {runtime.name}")
    return dataclasses.replace(runtime, test=try_runtime(runtime.name))
