"""A model as a program of torch.export, for converters that read it."""

import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from ..errors import ExportError
from ._guarded import lock_of
from ._request import Request


class Named(nn.Module):
    """The model with a mapping of outputs: its keys become the names in the file."""

    def __init__(self, model: nn.Module, outputs: Sequence[str]):
        super().__init__()
        self.model, self.outputs = model, list(outputs)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = self.model(image)
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        values = outputs.values() if isinstance(outputs, Mapping) else outputs
        return dict(zip(self.outputs, values, strict=True))


class Spelled(TorchFunctionMode):
    """While it is open, functions of torch that a format lacks are made of those that it has."""

    def __init__(self, others: Mapping[Callable[..., object], Callable[..., object]]):
        super().__init__()
        self.others = others  # what is called in place of a function

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return self.others.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def quiet(stderr: bool = False) -> Iterator[None]:
    """Without the warnings and log messages of packages about themselves, each other and versions of torch.

    With `stderr` also without what they write to `sys.stderr`, such as progress bars.
    """
    # levels, filters and streams belong to the process: two threads would mix them up
    with lock_of("output"):
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with (
                warnings.catch_warnings(),
                redirect_stderr(io.StringIO()) if stderr else nullcontext(),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)


@contextmanager
def silent() -> Iterator[None]:
    """Without what is printed, also from C++, to the standard output and error of the whole process: be brief."""

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        # where the C library cannot be had without its name
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)

    # a second thread would take the stream to nowhere for the one to come back to
    with lock_of("output"):
        flush()
        kept = [(number, os.dup(number)) for number in (1, 2)]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            for number, _ in kept:
                os.dup2(nowhere, number)
            yield
        finally:
            flush()
            for number, file in kept:
                os.dup2(file, number)
                os.close(file)
            os.close(nowhere)


def capture(
    request: Request,
    instead: Mapping[OpOverload, Callable[..., Tensor]] | None = None,
    lacking: Mapping[str, str] | None = None,
) -> torch.export.ExportedProgram:
    """The program of keyword "image" (N, C, H, W) -> mapping of the outputs; it writes into no tensor.

    `instead` maps operators to functions that compute the same of others,
    or return `NotImplemented`. `lacking` maps names of torchvision's operators that the format
    cannot hold to the reason. Raises `ExportError` for a model that has one of them, and if torch
    cannot capture the model.
    """
    shapes = {"image": {0: torch.export.Dim("batch")}} if request.dynamic else None
    network = Named(request.model, request.outputs).eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                network, (), {"image": request.traced}, dynamic_shapes=shapes, strict=False
            )
            _refuse(program, lacking or {})
            program = program.run_decompositions(dict(instead or {}))
    except ExportError:
        raise
    except Exception as error:  # whatever the model's operators and torch's checks of them raise
        raise ExportError(f"torch cannot capture this model: {reason(error)}") from error
    for node in program.graph.nodes:  # stack traces of the exporting machine, with its paths
        node.meta.pop("stack_trace", None)
    return program


def _refuse(program: torch.export.ExportedProgram, lacking: Mapping[str, str]) -> None:
    """Raise `ExportError` for the first operator that the format cannot hold, in milliseconds instead of minutes."""
    for node in program.graph.nodes:
        library, _, name = str(getattr(node.target, "name", lambda: "")()).partition("::")
        if node.op == "call_function" and library == "torchvision" and name in lacking:
            raise ExportError(
                f"the graph has torchvision's operator {name}, which this format cannot hold: "
                f"{lacking[name]}. A detector with raw outputs (without --embed-decode) has no "
                "such operator, a Mask R-CNN always"
            )


def reason(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or repr(error)).splitlines()[0]
