"""Environments of their own for converters that cannot live beside the pinned torch: one venv each, never made unasked.

A runtime whose converter needs one names its requirements in `isolated`. It is made by `fleetnet
doctor --install NAME` and by `fleetnet export --isolated`, and lies in the folder of that name in
$FLEETNET_ENVS, or in ~/.cache/fleetnet/envs.

It installs into itself only what is not here or has another version here: it looks for packages in
its own folder first, then where this process has torch. So it stays small (torch with CUDA has
gigabytes), and both sides have the same torch, so that a program exported by one is read by the
other. `environment.json` in it says what it was made of; an environment that was made of something
else, or not to the end, does not count.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from ..errors import ExportError, UsageError, suggest
from ..find import names
from . import find

CARD = "environment.json"
SECONDS = 3600  # that a conversion, or the download of its packages, may take
SHARED = ("torch", "torchvision")


def converters() -> list[str]:
    """The runtimes whose converter has an environment of its own."""
    return [name for name in names("runtimes") if find(name).isolated]


def command(name: str) -> str:
    """What makes the environment."""
    return f"fleetnet doctor --install {name}"


def folder(name: str) -> Path:
    """Where the environment is, or would be."""
    root = os.environ.get("FLEETNET_ENVS")
    return (Path(root) if root else Path.home() / ".cache" / "fleetnet" / "envs") / name


def _python(name: str) -> Path:
    return folder(name) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _shared() -> list[str]:
    """The folders in which this process has torch and torchvision."""
    origins = [spec.origin for spec in map(find_spec, SHARED) if spec and spec.origin]
    return sorted({str(Path(origin).parents[1]) for origin in origins})


def _requirements(name: str) -> list[str]:
    """What a runtime asks for, and the torch that is here."""
    if name not in converters():
        raise UsageError(f"{name} needs no environment of its own: {suggest(name, converters())}")
    return [*find(name).isolated, *(f"{package}=={version(package)}" for package in SHARED)]


def _card(name: str) -> dict[str, object]:
    """What the environment is to be made of."""
    return {
        "requirements": _requirements(name),
        "shared": _shared(),
        "python": sys.version.split()[0],
    }


def missing(name: str) -> str | None:
    """None where the environment is ready, else what is wrong with it and the command that makes it."""
    place = folder(name)
    try:
        card = json.loads((place / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        how = "was not made to the end" if place.exists() else "is not there"
        return f"the environment that converts for {name} {how} ({place}): {command(name)}"
    expected = _card(name)
    other = [key for key in expected if card.get(key) != expected[key]]
    if other:
        return f"the environment that converts for {name} was made of other {', '.join(other)}: {command(name)}"
    return None


def create(name: str) -> Path:
    """Make the environment unless it is ready, in minutes; what was there is removed. Returns its folder.

    Raises `UsageError` for a runtime that needs none, `ExportError` with what pip says if it cannot
    be made.
    """
    requirements, place = _requirements(name), folder(name)
    if missing(name) is None:
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _call([sys.executable, "-m", "venv", str(place)], f"the environment {place} cannot be made")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = _call(
        [str(_python(name)), "-I", "-c", code], f"the environment {place} does not run"
    ).strip()
    Path(own, "fleetnet_shared.pth").write_text("\n".join(_shared()) + "\n", encoding="utf-8")
    pip = [
        str(_python(name)),
        "-I",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--quiet",
        *requirements,
    ]
    _call(pip, f"the environment {place} cannot be made")
    (place / CARD).write_text(json.dumps(_card(name), indent=1) + "\n", encoding="utf-8")
    return place


def check(name: str) -> None:
    """Raise `ExportError` with the command to give if the environment is not ready."""
    absent = missing(name)
    if absent:
        raise ExportError(
            f"{absent}   (once, in a few minutes; or give --isolated to fleetnet export)"
        )


def run(name: str, script: Path, *arguments: str) -> None:
    """Run a script of this library in the environment, with nothing of this process but its environment variables.

    Raises `ExportError` if the environment is not ready, or with the last line that the script
    wrote to standard error.
    """
    check(name)
    # -I: the script's folder does not come before the packages, since it has an onnx.py and others
    # of their names.
    _call([str(_python(name)), "-I", str(script), *arguments], f"{name} cannot convert this model")


def _call(words: Sequence[str], failed: str) -> str:
    """Standard output of a command; `ExportError` where it fails."""
    try:
        finished = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{failed}: it has not ended after {SECONDS} s") from error
    except OSError as error:
        raise ExportError(f"{failed}: {error}") from error
    if finished.returncode:
        said = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR:")] or said
        reason = errors[-1] if errors else f"it ended with code {finished.returncode}"
        raise ExportError(f"{failed}: {reason}")
    return finished.stdout
