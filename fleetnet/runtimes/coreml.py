"""Core ML, converted from torch by coremltools on any machine, run only on a Mac (and by apps on phones).

A folder with the program and the weights, an "ML program" for iOS 16 and macOS 13 or later; input
"image", facts as JSON in its metadata under "fleetnet". In "fp16" weights and arithmetic are 16
bits wide, as the neural engine computes; inputs and outputs stay float32, and integers are 32 bits
wide. Where it cannot be run it is read: `inspect` compares what every layer holds with the model,
and what the program says with what the model computes (see `_mil`).
"""

import importlib
import platform
import shutil
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ExportError, ModelError, UsageError
from ..proof.verify import verify
from ..reading import Fields, from_json, to_json
from . import _mil
from ._defaults import kernels as kernels
from ._guarded import Calls, Run
from ._input import Input, not_one_input
from ._program import capture, quiet, reason
from ._request import Request

if TYPE_CHECKING:
    from coremltools.models import MLModel

suffix = ".mlpackage"
package = "coremltools"
default_opset = None
calls: Calls = "file"
one_pool = False
integers = "int32"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
trace = None
# Of programs computed by torch (see `_mil`), with random batch norms: fp32 0 to 9.6e-7, since every
# operator has its like in torch; fp16 1.4e-3 to 2.2e-3, and 1.2e-2 for yolo, whose outputs hold
# pixels and probabilities. The neural engine rounds sums too, for which there is a factor of 4.
tolerances = {"fp16": 5e-2, "fp32": 1e-4}

FACTS, OUTPUTS, PRECISION = "fleetnet", "fleetnet_outputs", "fleetnet_precision"  # of the metadata
ARITHMETIC = {"fp16": "FLOAT16", "fp32": "FLOAT32"}  # precision -> coremltools' name
ROUNDING = {
    "fp16": 2**-10,
    "fp32": 1e-6,
}  # of weights: twice what casting does, for what was folded before
LACKING = {
    "nms": "Core ML's own pads what it finds, which nothing here could check",
    "roi_align": "coremltools does not know it",
}
DTYPES = {torch.int64: np.int32, torch.int32: np.int32}  # of outputs that are not floats


def missing() -> str | None:
    if find_spec("coremltools") is None:
        return "coremltools is not installed: pip install 'fleetnet[coreml]'"
    return None


def cannot_run() -> str | None:
    """None on a Mac, else the reason."""
    return (
        None
        if sys.platform == "darwin"
        else f"Core ML runs only on a Mac, and this is {platform.system()}"
    )


def _package() -> ModuleType:
    try:
        with quiet(stderr=True):
            return importlib.import_module("coremltools")
    except ImportError as error:
        raise ExportError(
            f"Core ML needs coremltools: pip install 'fleetnet[coreml]' ({error})"
        ) from error


def export(request: Request) -> None:
    """Write a package. The number of images is fixed; there are no operator sets.

    Raises `ExportError` if coremltools is missing or cannot convert the model.
    """
    if request.dynamic:
        raise UsageError("a Core ML file takes a fixed number of images: leave dynamic out")
    ct = _package()
    program = capture(request, lacking=LACKING)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    nodes = zip(request.outputs, program.graph_signature.user_outputs, strict=True)
    kinds = {name: DTYPES.get(values[node].dtype, np.float32) for name, node in nodes}
    try:
        with quiet(stderr=True):
            converted = ct.convert(
                program,
                outputs=[ct.TensorType(name=name, dtype=kind) for name, kind in kinds.items()],
                minimum_deployment_target=ct.target.iOS16,
                compute_precision=getattr(ct.precision, ARITHMETIC[request.precision]),
                skip_model_load=True,
            )
            notes = {
                FACTS: request.metadata,
                OUTPUTS: list(request.outputs),
                PRECISION: request.precision,
            }
            for name, note in notes.items():
                converted.user_defined_metadata[name] = to_json(note, ensure_ascii=False)
            converted.save(str(request.path))
    except Exception as error:  # coremltools raises whatever its passes raise
        shutil.rmtree(request.path, ignore_errors=True)
        with quiet(
            stderr=True
        ):  # it leaves a temporary folder to Python's cleaning up, which warns
            traceback.clear_frames(error.__traceback__)
        raise ExportError(
            f"{request.path.name}: coremltools cannot convert this model: {reason(error)}"
        ) from error
    # Coremltools leaves this file beside the package's own.
    (request.path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _open(path: Path | str) -> tuple["MLModel", Fields]:
    """A package, not ready to run, and the metadata that `export` wrote into it."""
    ct = _package()
    if not Path(path).is_dir():
        raise ModelError(f"{path}: no such package")
    try:
        with quiet(stderr=True):
            opened = ct.models.MLModel(str(path), skip_model_load=True)
        texts = opened.user_defined_metadata
        return opened, {
            key: from_json(texts[key]) for key in (FACTS, OUTPUTS, PRECISION) if key in texts
        }
    except Exception as error:  # of protobuf, of coremltools, of JSON
        raise ModelError(f"{path}: not a readable Core ML package: {reason(error)}") from error


def _described(path: Path | str, package: "MLModel") -> tuple[tuple[int, ...], list[str]]:
    """The shape of the one input, which must be images, and the names of the outputs."""
    description = package.get_spec().description
    inputs = {i.name: tuple(i.type.multiArrayType.shape) for i in description.input}
    if list(inputs) != ["image"] or len(inputs["image"]) != 4:
        raise not_one_input(path, (f"{name} {shape}" for name, shape in inputs.items()))
    return inputs["image"], [output.name for output in description.output]


def inspect(request: Request) -> str:
    """Check what can be checked without a Mac in the package of a request; what that was, in words.

    The package is read; its input and the names and shapes of its outputs are looked at; every
    convolution and linear layer must hold the weights of that layer of the model (the deploy form),
    within rounding; and what the program says, computed by torch of the example, must be what the
    model computes, unless it has an operator that is not known here. Raises `ExportError`, naming
    the layer, where something is not as it should be.
    """
    path, model, image = request.path, request.model, request.example
    try:
        opened, notes = _open(path)
        shape, names = _described(path, opened)
        with quiet(stderr=True):
            program = _mil.read(opened)
    except Exception as error:  # besides ModelError what coremltools raises for damaged weights
        raise ExportError(f"the written file cannot be read back: {reason(error)}") from error
    order, precision = notes.get(OUTPUTS, names), notes.get(PRECISION, "fp32")
    if sorted(names) != sorted(order):
        raise ExportError(
            f"{path.name}: the outputs are {', '.join(names)}, not {', '.join(order)}"
        )
    of_file, of_model = _mil.layers(program), _mil.used(model, image)
    checked = _compare(path.name, of_file, of_model, ROUNDING[precision])
    unknown = _mil.unknown(program)
    if unknown:
        return f"{checked}; not computed, for its operators {', '.join(unknown)}"
    images = Input(path, shape, np.dtype(np.float32))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        values = _mil.evaluate(program, torch.from_numpy(images.check(batch)))
        return [values[name].numpy() for name in order]

    parity = verify(model, run, [image], tolerances[precision])
    if not parity.passed:
        raise ExportError(
            f"{path.name}: what the program says is not what the model computes: {parity}"
        )
    return f"{checked}; computed by torch from the program: {parity}"


def _compare(
    file: str, actual: Sequence[_mil.Layer], expected: Sequence[_mil.Layer], rounding: float
) -> str:
    """In words, that layers hold the same in the same order; `ExportError` naming the first that does not."""
    scaled = 0
    for there, here in zip(actual, expected, strict=False):
        if there.kind != here.kind or there.weight.shape != here.weight.shape:
            raise ExportError(
                f"{file}: where the model has {here.name}, a {_mil.WEIGHTED[here.kind]} of "
                f"{here.weight.shape}, the file has {there.name}, a {_mil.WEIGHTED[there.kind]} of "
                f"{there.weight.shape}"
            )
        axis = 1 if here.kind == "conv_transpose" else 0
        mine, its = (
            np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1) for w in (here.weight, there.weight)
        )
        its = its.astype(np.float64)
        wrong = _wrong("weight", mine, its, rounding)
        if wrong and _scaled(mine, its, rounding):
            # by a batch norm or a scale that follows, which is part of the layer in the file
            scaled += 1
            continue
        if here.bias is not None or there.bias is not None:
            mine, its = (
                np.zeros(len(mine)) if v is None else v.astype(np.float64)
                for v in (here.bias, there.bias)
            )
            wrong = wrong or _wrong("bias", mine, its, rounding)
        if wrong:
            raise ExportError(
                f"{file}: {here.name} (in the file {there.name!r}) is not the model's: {wrong}"
            )
    if len(actual) != len(expected):
        raise ExportError(
            f"{file}: the file has {len(actual)} layers with weights, the model has {len(expected)}"
        )
    but = f", {scaled} of them multiplied by channel by what follows them" if scaled else ""
    return f"{len(actual)} layers hold the model's weights{but}"


def _allowed(mine: np.ndarray, rounding: float) -> np.ndarray:
    return rounding * (np.abs(mine) + 2**-14)  # float16 has steps of 2**-24 next to zero


def _wrong(what: str, mine: np.ndarray, its: np.ndarray, rounding: float) -> str | None:
    """How values differ, if they do."""
    wrong = ~(np.abs(its - mine) <= _allowed(mine, rounding))
    if not wrong.any():
        return None
    return f"{wrong.sum()} of {wrong.size} values of its {what} differ, by up to {np.abs(its - mine).max():.3g}"


def _scaled(mine: np.ndarray, its: np.ndarray, rounding: float) -> bool:
    """Whether most output channels (rows) were multiplied by a number each, as no damage does."""
    largest = np.abs(mine).argmax(1)[:, None]
    its_largest, my_largest = (np.take_along_axis(values, largest, 1) for values in (its, mine))
    factor = np.divide(its_largest, my_largest, out=np.ones_like(my_largest), where=my_largest != 0)
    same = np.abs(its - factor * mine) <= 2 * _allowed(factor * mine, rounding)
    return bool(same.all() and (np.abs(factor - 1) > rounding).mean() > 0.5)


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W) that runs the file, only on a Mac, and returns its outputs in order.

    macOS chooses processor and `threads`. Raises `ExportError` if coremltools is missing or this is
    no Mac, `ModelError` if the package is missing, damaged or has other inputs, and, on the call,
    for a batch of another shape or kind.
    """
    opened, notes = _open(path)
    shape, names = _described(path, opened)
    cannot = cannot_run()
    if cannot:
        raise ExportError(f"{path}: {cannot}")
    try:
        with quiet(stderr=True):
            network = _package().models.MLModel(str(path))
    except Exception as error:  # of Core ML itself
        raise ModelError(f"{path}: Core ML cannot load this package: {reason(error)}") from error
    order = notes.get(OUTPUTS, names)
    images = Input(path, shape, np.dtype(np.float32))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = network.predict({"image": images.check(batch)})
        return [np.array(outputs[name]) for name in order]

    return run


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata; empty for a file of another program. `ModelError` if it is no package."""
    return _open(path)[1].get(FACTS, {})


def import_packages() -> None:
    """coremltools, which hands a file to macOS."""
    _package()
