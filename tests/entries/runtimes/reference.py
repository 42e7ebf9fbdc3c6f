"""A runtime that a test adds: our ONNX file, run by the slow evaluator of the onnx package."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ModelError
from . import onnx
from ._defaults import cannot_run as cannot_run
from ._defaults import import_packages as import_packages
from ._defaults import kernels as kernels
from ._guarded import Calls, Run
from ._request import Request

suffix = ".reference"
package = "onnx"
default_opset = onnx.default_opset
calls: Calls = "file"
one_pool = False
integers = "int64"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
trace, metadata, inspect = None, None, None
tolerances = {"fp32": 1e-4}


def missing() -> str | None:
    return onnx.missing()


def export(request: Request) -> None:
    onnx.export(replace(request, metadata={}))


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    from onnx.reference import ReferenceEvaluator

    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    evaluator = ReferenceEvaluator(str(path))

    def run(image: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(output) for output in evaluator.run(None, {"image": image})]

    return run
