"""MNN, converted from this library's ONNX file and run on the CPU: the papers' own path to phones.

One file. A text that MNN carries along ("bizCode") holds the facts, the input and the order of the
outputs, as JSON. The precisions are those of the stored weights: "fp16" halves the file (all
constants), "int8" makes it a quarter, with one scale for each output channel. A CPU computes in
float32 in all three. MNN's converter runs in a process of its own, since it prints, and a model
that it cannot convert may end the process.

MNN computes ONNX's operator Gelu by its tanh form, whose values differ by up to 5e-4. Below opset
20 the ONNX file spells GELU out and MNN computes it exactly, so opset=18 is for networks that
amplify such differences. It made fasternet_t0, repvit_m0_9 and parc_convnext_xt 1.4 to 1.5 times
slower (x86, one thread): it is not the default.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ExportError, ModelError, UsageError
from ..reading import Fields, from_json, to_json
from . import onnx
from ._defaults import cannot_run as cannot_run
from ._defaults import kernels as kernels
from ._guarded import Calls, Run, Traced
from ._input import Input
from ._program import silent
from ._request import Request

suffix = ".mnn"
package = "MNN"
default_opset = onnx.default_opset  # of the ONNX file in between
calls: Calls = "file"
one_pool = False
integers = "int32"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
inspect = None
# Over {parcnet_s, fasternet_t0, repvit_m0_9, mobileone_s0, mobileone_s4, parc_convnext_xt} with
# random batch norms at 128 and 224 pixels, and for classifiers trained on clothing10. Float32:
# 4.3e-7 to 5.3e-6 without GELU; with its tanh form up to 5.4e-5 random, 1.3e-3 trained
# (fasternet_t0). Float16 weights: 7.8e-4 to 1.6e-2 (mobileone_s0) trained. Int8 weights: 3.3e-3 to
# 4.1e-2; but 0.24 for mobileone_s0 trained, which takes some images for others: refused.
tolerances = {"fp32": 5e-3, "fp16": 3e-2, "int8": 0.1}

DTYPES = {"float32": "float", "uint8": "uint8"}  # of the image -> MNN's name
OPTIONS = {"fp32": [], "fp16": ["--fp16"], "int8": ["--weightQuantBits", "8"]}
SECONDS = 900  # that converting may take
# The converter is called below MNN.tools.mnnconvert, which reports each conversion to its makers
# and installs a package to do so. It says True whatever happens. Running the file finds what
# converts but cannot run.
CONVERT = """
import json, os, sys
import _tools
options, path, outputs, shapes, dtype, kind = json.load(sys.stdin)
_tools.mnnconvert(["mnnconvert", *options, "--MNNModel", path])
if not os.path.isfile(path):
    sys.exit(1)
import MNN, numpy
net = MNN.nn.load_module_from_file(path, ["image"], outputs)
for shape in shapes:
    image = MNN.expr.const(numpy.zeros(shape, dtype), shape, MNN.expr.NCHW, getattr(MNN.expr, kind))
    if len(net.forward([image])) < len(outputs):
        sys.exit(1)
"""
# Operators whose outputs are views of others, which MNN may put elsewhere when they are asked for.
VIEWS = {
    "Const", "Input", "ConvertTensor", "Reshape", "Squeeze", "Unsqueeze", "Permute", "Transpose", "Slice", "SliceTf",
    "StridedSlice", "Concat", "Pack", "Unpack", "Raster", "Shape", "Rank",
}  # fmt: skip


def missing() -> str | None:
    if find_spec("MNN") is None:
        return "MNN is not installed: pip install 'fleetnet[mnn]'"
    return onnx.missing()


def _package() -> ModuleType:
    try:
        with silent():
            return importlib.import_module("MNN")
    except ImportError as error:
        raise ExportError(
            f"MNN cannot be imported: {error}: pip install 'fleetnet[mnn]'"
        ) from error


def _prepare(path: Path, precision: str) -> None:
    """Change an ONNX file into one that MNN converts to what is wanted."""
    package = importlib.import_module("onnx")
    proto = package.load(path)
    # MNN keeps the names of tensors only; those of nodes say the module.
    kept = {
        value.name for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    }
    new = {
        output: f"{node.name}_{i}" if i else node.name
        for node in proto.graph.node
        for i, output in enumerate(node.output)
        if output and output not in kept and node.name
    }
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    del proto.graph.value_info[:]
    # Its converter cuts off what float16 cannot hold: weights shrink, and in a deep network that
    # adds up to ten times the error of rounding to the nearest. It leaves biases, which have one
    # dimension, as they are.
    for tensor in proto.graph.initializer if precision == "fp16" else ():
        values = package.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            limit = float(np.finfo(np.float16).max)
            nearest = values.clip(-limit, limit).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(package.numpy_helper.from_array(nearest, tensor.name))
    package.save(proto, path)


def export(request: Request) -> None:
    """Write one MNN file, by an ONNX file of the request's `opset`.

    Raises what `runtimes.onnx.export` raises, `UsageError` too for an example that is neither
    float32 nor uint8, `ExportError` too if MNN cannot convert or run an operator, naming it.
    """
    _package()
    example, outputs, path = request.example, list(request.outputs), request.path
    dtype = str(example.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"MNN takes images of {' or '.join(DTYPES)}, not of {dtype}: export a float32 model"
        )
    shape = list(example.shape)
    about = {
        "fleetnet": dict(request.metadata),
        "precision": request.precision,
        "shape": [None if request.dynamic else len(example), *shape[1:]],
        "dtype": dtype,
        "outputs": outputs,
    }
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "model.onnx"
        path.unlink(missing_ok=True)  # an older file would pass for the new one
        plain = replace(request, path=between, precision="fp32", metadata={}, products=False)
        onnx.export(plain)
        _prepare(between, request.precision)
        options = [
            "-f",
            "ONNX",
            "--modelFile",
            str(between),
            "--bizCode",
            to_json(about),
            *OPTIONS[request.precision],
        ]
        shapes = [shape]
        if request.dynamic:
            shapes.append([len(example) + 1, *shape[1:]])
        _convert(options, path, outputs, shapes, dtype)


def _convert(
    options: Sequence[str],
    path: Path,
    outputs: Sequence[str],
    shapes: Sequence[Sequence[int]],
    dtype: str,
) -> None:
    """Write the file and run it once for each of `shapes`."""
    request = to_json([options, str(path), outputs, shapes, dtype, DTYPES[dtype]])
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", CONVERT], input=request, capture_output=True, text=True, errors="replace",
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{path}: MNN has not converted this model after {SECONDS} s") from error
    if process.returncode == 0:
        return
    said = process.stdout + process.stderr
    missing = sorted(set(re.findall(r"ONNX::(\w+)", said)))
    if missing:
        raise ExportError(
            f"{path}: MNN has no operator {', '.join(missing)}: the model cannot be converted"
        )
    wrong = [
        line.strip()
        for line in said.splitlines()
        if re.search("error|fail|not support", line, re.IGNORECASE)
    ]
    reason = "; ".join(wrong[:3]) or (
        f"its process ended with signal {-process.returncode}"
        if process.returncode < 0
        else said.strip()[-300:]
    )
    what = "run the file that it made of this model" if path.is_file() else "convert this model"
    raise ExportError(f"{path}: MNN cannot {what}: {reason}")


def _about(path: Path | str) -> Fields:
    """What `export` wrote into the file about it."""
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    mnn = _package()
    try:
        with silent():
            text = mnn.nn.load_module_from_file(str(path), [], []).get_info()["bizCode"]
    except SystemError as error:  # MNN's only exception
        raise ModelError(f"{path}: not a readable MNN file") from error
    try:
        about = from_json(text)
        return {key: about[key] for key in ("fleetnet", "precision", "shape", "dtype", "outputs")}
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: an MNN file of another program: it does not say what it takes and gives"
        ) from error


def _network(
    path: Path | str, outputs: Sequence[str], threads: int
) -> Callable[[np.ndarray], list[np.ndarray | None]]:
    """A function of a checked image that gives the named outputs; None for one of no values."""
    mnn = _package()
    f = mnn.expr
    kinds = {"float32": f.float, "uint8": f.uint8}
    with silent():
        # With a runtime of its own it is a tenth faster than with these settings as arguments of
        # loading.
        manager = mnn.nn.create_runtime_manager(
            ({"backend": 0, "numThread": threads, "precision": "high"},)
        )
        network = mnn.nn.load_module_from_file(
            str(path), ["image"], list(outputs), runtime_manager=manager
        )
    taken: list[Any] = []

    def array(output: Any) -> np.ndarray | None:
        try:
            # its own layout has channels in packs of four
            values = np.array(f.convert(output, f.NCHW).read())
        except SystemError:
            return None
        return values.astype(np.int64) if values.dtype == np.int32 else values  # MNN has no int64

    def run(image: np.ndarray) -> list[np.ndarray | None]:
        if not taken or taken[0].shape != list(image.shape):
            taken[:] = [f.placeholder(list(image.shape), f.NCHW, kinds[image.dtype.name])]
        taken[0].write(image)
        computed = network.forward(taken)
        if len(computed) < len(outputs):
            raise ModelError(
                f"{path}: MNN could not run this file on images of shape {image.shape}"
            )
        return [array(output) for output in computed]

    return run


def _input(path: Path | str, about: Fields) -> Input:
    shape = tuple("batch" if size is None else size for size in about["shape"])
    return Input(path, shape, np.dtype(about["dtype"]))


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W) that runs the file and returns its outputs in order, integers as int64.

    The batch is cast to float32; a file of uint8 pixels takes only those. For one thread at a time.
    Raises `ExportError` if MNN is missing, `ModelError` if the file is missing, damaged or of
    another program, and, on the call, for a batch of another shape or kind.
    """
    about = _about(path)
    images, names = _input(path, about), about["outputs"]
    network = _network(path, names, threads)

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = [output for output in network(images.check(batch)) if output is not None]
        if len(outputs) < len(names):
            raise ModelError(f"{path}: MNN gave {len(outputs)} of the outputs {', '.join(names)}")
        return outputs

    return run


def trace(path: Path | str, threads: int = 1, *, trust: bool = False) -> Traced:
    """A function of one batch that gives the float outputs of the file's layers by name, in the order of execution.

    Layers that only move or view values are left out, as are those that the converter merged with
    others. Raises what `load` raises.
    """
    about = _about(path)
    mnn = _package()
    with silent():
        layers = [
            layer.name for layer in mnn.expr.load_as_list(str(path)) if layer.op_type not in VIEWS
        ]
    names = list(dict.fromkeys([*layers, *about["outputs"]]))
    images, network = _input(path, about), _network(path, names, threads)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        values = zip(names, network(images.check(batch)), strict=True)
        return {
            name: value for name, value in values if value is not None and value.dtype == np.float32
        }

    return run


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata. `ModelError` if it is no MNN file of this library."""
    return _about(path)["fleetnet"]


def import_packages() -> None:
    """MNN."""
    _package()
