"""Runtimes: the deploy form as a file that a device runs. One file is one runtime.

`Runtime` says what such a file holds. The precision that an exported file was written in is written
in the file or beside it: `load` gives what was proven.

Everything that runs a file calls `load` of this module: verifying compares two such calls, a
benchmark repeats one, a prediction is one and a decode. Call `load` and `trace` of this module,
never those of a runtime's own file: they add the lock that makes a file safe for many threads (see
`_guarded`). What makes a file of a model, with its proof, is `deploy.package`.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np

from ..errors import ExportError, FleetnetError, ModelError, UsageError, suggest
from ..facts import Facts
from ..find import constant, names
from ..find import find as find_module
from ._guarded import Calls, check_threads, lock_of
from ._guarded import Guarded as Guarded
from ._input import Input as Input
from ._kernels import Kernel as Kernel
from ._kernels import fast_share as fast_share
from ._kernels import outside as outside
from ._opened import attempt, opened
from ._opened import files as files
from ._opened import size_of as size_of
from ._program import reason as reason
from ._request import Request as Request
from ._sizes import Sizes as Sizes
from ._sizes import open_shape as open_shape
from ._sizes import parse_open as parse_open

Value = TypeVar("Value")
Opened = TypeVar("Opened", covariant=True)


class Opener(Protocol[Opened]):
    """`load` or `trace` of a runtime: an exported file -> a function of one batch (N, C, H, W).

    Raises `ModelError` for a file that is missing, damaged or has other inputs, `ExportError` where
    a package is missing. Reading some formats can run code that is hidden in the file: they refuse
    unless `trust` says that it comes from somebody who is trusted like a program.
    """

    def __call__(
        self, path: Path | str, threads: int = 1, *, trust: bool = False
    ) -> Callable[[np.ndarray], Opened]: ...


class Runtime(Protocol):
    """What the file of a runtime holds, all of it at its top level.

    What a runtime does not have is None where the contract allows that.
    """

    suffix: str  # of the exported file, such as ".onnx"; of two parts (".xml", ".bin") the first
    package: str  # the distribution that runs the file: its version goes into the sidecar
    # Precision -> largest difference allowed, relative to the standard deviation of the model's own
    # outputs, with the reason in a comment; the first precision is the default.
    tolerances: dict[str, float]
    # Of what `load` gives: "many" where any number of threads may call it at once, "file" where one
    # call of a file may run at a time, "process" where one call of all files of the runtime may.
    calls: Calls
    one_pool: bool  # whether all files of a process share one number of threads
    integers: (
        str  # the type of integer outputs in the file: "int64", or what the format has instead
    )
    OPEN_SIZE: (
        bool  # whether a file can leave height and width open; then `request.sizes` may say which
    )
    isolated: tuple[str, ...]  # what a converter needs that cannot live beside torch: `_isolated`

    @property
    def default_opset(self) -> int | None:
        """The operator set, unless another is asked for; None where the format has none."""

    def missing(self) -> str | None:
        """None, or what is not installed here, with the command that would add it."""

    def cannot_run(self) -> str | None:
        """None, or why this machine cannot run the file, which `inspect` looks at then."""

    def export(self, request: Request) -> None:
        """Write a file as it was asked for; nothing is verified here (see `deploy.package`).

        Raises `UsageError` for what the format cannot have, `ExportError` where a package is
        missing or the model cannot be converted.
        """

    @property
    def load(self) -> Opener[list[np.ndarray]]:
        """What runs a file: its outputs in their order."""

    @property
    def trace(self) -> Opener[dict[str, np.ndarray]] | None:
        """What a file's layers put out, by name, in the order of execution; None where hidden."""

    @property
    def metadata(self) -> Callable[[Path | str], dict[str, object]] | None:
        """metadata(path) -> the `request.metadata` that was written; None of a format that cannot hold it."""

    @property
    def inspect(self) -> Callable[[Request], str] | None:
        """inspect(request) -> what was looked at in the file that `export` wrote, in words.

        For machines that cannot run the file.

        Raises `ExportError` where the file is not what it should be. None of a format that every
        machine runs.
        """

    def import_packages(self) -> None:
        """Import what `load` needs, so that a fresh process can tell importing from opening a file.

        Raises `ExportError` where a package is missing.
        """

    @property
    def kernels(self) -> Callable[[Path | str, np.ndarray], list[Kernel]] | None:
        """kernels(path, batch) -> what computes each layer of the file, on one thread.

        None of a runtime that does not tell. Raises what `load` raises.
        """


def find(name: str) -> Runtime:
    """The file of a runtime; `UsageError` with the nearest name if there is none."""
    return cast(Runtime, find_module("runtimes", name))


def choice(text: str) -> tuple[str, str]:
    """What "mnn" or "mnn:fp16" stands for: a runtime and its precision, the first unless given.

    Raises `UsageError` for unknown ones, with the nearest.
    """
    name, _, precision = text.strip().partition(":")
    if name not in names("runtimes"):
        raise UsageError(f"no runtime {name!r}: {suggest(name, names('runtimes'), 'runtime')}")
    allowed = list(find(name).tolerances)
    if precision and precision not in allowed:
        raise UsageError(
            f"{name} has no precision {precision!r}: {suggest(precision, allowed, 'precision')}"
        )
    return name, precision or allowed[0]


def by_suffix() -> dict[str, str]:
    """The runtime of an exported file, by the suffix of its name."""
    return {str(constant("runtimes", name, "suffix")): name for name in names("runtimes")}


def title_of(name: str, precision: str) -> str:
    """The folder and the title of a runtime's file: "mnn", or "mnn-fp16" for a precision that is not the default."""
    return name if precision == next(iter(find(name).tolerances)) else f"{name}-{precision}"


def _guard(
    name: str,
    opener: Opener[Value],
    path: Path | str,
    threads: int,
    trust: bool,
) -> Guarded[np.ndarray, Value]:
    """What a runtime's `load` or `trace` makes of a file, for many threads."""
    check_threads(str(path), threads)
    lock = {"many": None, "process": lock_of(name), "file": threading.RLock()}[find(name).calls]
    with lock or nullcontext(), lock_of("loading"):
        run = opened(name, lambda: opener(path, threads, trust=trust), Path(path))
        return Guarded(run, str(path), lock)


def load(
    name: str, path: Path | str, threads: int = 1, *, trust: bool = False
) -> Guarded[np.ndarray, list[np.ndarray]]:
    """A function of one batch (N, C, H, W) that runs a file in a runtime and returns its outputs in order.

    Any number of threads of this process may call it; a fork of the process may not. Raises what
    the runtime's own `load` raises, and `FleetnetError` for several `threads` in a fork of a
    process that has computed.
    """
    return _guard(name, find(name).load, path, threads, trust)


def trace(
    name: str, path: Path | str, threads: int = 1, *, trust: bool = False
) -> Guarded[np.ndarray, dict[str, np.ndarray]]:
    """A function of one batch that gives what the layers of a file put out.

    Threads may call it as that of `load`. Raises `ExportError` for a runtime that hides its layers,
    else what `load` raises.
    """
    opener = find(name).trace
    if opener is None:
        raise ExportError(f"{name} cannot show what its layers put out")
    return _guard(name, opener, path, threads, trust)


def kernels(name: str, path: Path | str, batch: np.ndarray) -> list[Kernel] | None:
    """What computes each layer of a file, found out with one batch (N, C, H, W).

    None of a runtime that does not tell. Raises what `load` raises.
    """
    tell = find(name).kernels
    if tell is None:
        return None
    with lock_of(name), lock_of("loading"):
        return attempt(name, Path(path), lambda: tell(path, batch))


@dataclass(frozen=True)
class File:
    """An exported file, not opened yet, with the runtime that runs it; `trust` as for `load`."""

    runtime: str
    path: Path
    trust: bool = False

    def load(self) -> Guarded[np.ndarray, list[np.ndarray]]:
        """See `load` of this module."""
        return load(self.runtime, self.path, trust=self.trust)

    def trace(self) -> Guarded[np.ndarray, dict[str, np.ndarray]]:
        """See `trace` of this module."""
        return trace(self.runtime, self.path, trust=self.trust)


def metadata(name: str, path: Path) -> Facts | None:
    """The facts that a file holds itself, None if the format holds none.

    Raises `ModelError` where they cannot be read.
    """
    read = find(name).metadata
    if read is None:
        return None
    try:
        return Facts.from_json(read(path), path)
    except FleetnetError:
        raise
    except Exception as error:  # parsers of damaged files raise nearly anything
        said = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path}: its description cannot be read: {said}") from error


def version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return _version(package)
    except PackageNotFoundError:
        return None


def check_open_size(name: str) -> None:
    """`UsageError` for a runtime whose files cannot leave height and width open."""
    if not find(name).OPEN_SIZE:
        able = [other for other in names("runtimes") if find(other).OPEN_SIZE]
        raise UsageError(
            f"{name} takes the size that a file was exported at: height and width can be left open "
            f"for {', '.join(able)} only; leave size out of dynamic, or export a file for each size"
        )
