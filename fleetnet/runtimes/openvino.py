"""OpenVINO IR, converted from this library's ONNX file and run on the CPU, in float32 or bfloat16.

Two files, `<stem>.xml` with the graph and `<stem>.bin` with the weights, float32 in both
precisions: bfloat16 is what OpenVINO computes in, so the file says it and `load` asks for it. It
would take bfloat16 of its own accord wherever the CPU has it, so float32 is asked for too. Differs
from OpenVINO's guide: its direct conversion from torch takes the kernels of ParC for variables,
which its CPU plugin refuses, and reports to its makers; reading an ONNX file does not.
"""

import importlib
import math
import os
import statistics
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ExportError, FleetnetError, ModelError, SlowerWarning
from ..reading import from_json, to_json
from . import onnx
from ._cpu import onednn_saturates
from ._defaults import cannot_run as cannot_run
from ._guarded import Calls, Run, Traced
from ._input import Input, not_one_input
from ._int8 import overflowing, slower
from ._kernels import Kernel
from ._openvino_profile import WEIGHTED as WEIGHTED
from ._openvino_profile import kernels_of
from ._request import Request

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, Model, Node, Output

suffix = ".xml"
package = "openvino"
default_opset = onnx.default_opset  # of the ONNX file in between
calls: Calls = "file"
one_pool = False
integers = "int64"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
inspect = None
# Float32 rounding: 3.9e-7 to 3.0e-6 over {parcnet_s, fasternet_t0, repvit_m0_9, mobileone_s0,
# mobileone_s4, parc_convnext_xt} with random batch norms at 128 and 224 pixels, up to 8.1e-6 for
# classifiers trained on clothing10. A batch norm folded with an epsilon of 1e-3 for 1e-5 is at
# 2e-3. Bfloat16 has 8 bits: 1.4e-3 to 1.6e-2 over the same, 3.9e-3 to 7.5e-2 (mobileone_s0)
# trained, all with the same top-1; a weight with the wrong sign may hide in that.
tolerances = {"fp32": 1e-4, "bf16": 0.15}

# Kernels of ParC from this length on are products of matrices: of 128 values ParC takes half the
# time (benchmarks/parc.py). The file grows by the matrices.
PRODUCTS_FROM = 96
HINTS = {"fp32": "f32", "bf16": "bf16"}
FACTS, PRECISION = "fleetnet", "fleetnet_precision"  # of the file's rt_info
WATCHED = 5  # runs that are profiled, after one that is not


def missing() -> str | None:
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install 'fleetnet[openvino]'"
    return onnx.missing()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """For importing OpenVINO's packages, which otherwise report that to their makers: they do without the reporter."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def _package() -> ModuleType:
    try:
        with without_telemetry():
            return importlib.import_module("openvino")
    except ImportError as error:
        raise ExportError(
            f"OpenVINO is needed and not installed: pip install 'fleetnet[openvino]' ({error})"
        ) from error


def _reason(error: Exception) -> str:
    """Of OpenVINO's many lines the ones that say what is wrong, not where in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said)[:500] or repr(error)


@cache
def _core_of_this_process() -> tuple["Core", int]:
    """OpenVINO's `Core`, and the process that made it."""
    return _package().Core(), os.getpid()


def core() -> "Core":
    """OpenVINO's `Core`, one for the whole process.

    Each brings a stack of its own for signal handlers, and puts the one before it back as it goes.
    When two have gone in the order in which they came, that one is freed memory: the next Ctrl-C,
    or the end of a process that reads images, would be a segmentation fault.

    Raises `FleetnetError` in a fork of a process that has one: the threads that OpenVINO compiles
    with, however few it computes with later, are not in the fork, and now and then it waits for
    them forever. A second one there would wait as well.
    """
    made, process = _core_of_this_process()
    if process != os.getpid():
        raise FleetnetError(
            f"OpenVINO was used in process {process} and cannot be used in process {os.getpid()}, "
            "a fork of it that does not have its threads: start processes with "
            "multiprocessing.get_context('spawn')"
        )
    return made


# In the values of oneDNN's limit of instruction sets: those with bfloat16, or with all that there
# is.
WITH_BF16 = ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10", "AVX2_VNNI_2")


def _has_bf16() -> bool:
    """Whether this CPU computes in bfloat16, and oneDNN, which does it, may: OpenVINO does not ask about the second."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not any(name in allowed for name in WITH_BF16):
        return False
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def export(request: Request) -> None:
    """Write an IR file and its weights beside it, by an ONNX file of the request's `opset`.

    Raises what `runtimes.onnx.export` raises, `ExportError` too if OpenVINO cannot convert an
    operator, naming it, or this CPU cannot compute in the precision.
    """
    openvino, path = _package(), request.path
    if request.precision == "bf16" and not _has_bf16():
        raise ExportError(
            f"{path}: this CPU has no bfloat16, so nothing could be proven: choose openvino:fp32"
        )
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "model.onnx"
        of_onnx = replace(request, path=between, precision="fp32", metadata={})
        onnx.export(of_onnx, PRODUCTS_FROM)
        try:
            network = core().read_model(between)
        except RuntimeError as error:
            raise ExportError(
                f"{path}: OpenVINO cannot convert this model: {_reason(error)}"
            ) from error
        # Shapes are known now: a third of the graph, and of the time that loading takes, are
        # operators that find them.
        passes = importlib.import_module("openvino.passes")
        manager = passes.Manager()
        manager.register_pass(passes.ConstantFolding())
        manager.run_passes(network)
        network.set_rt_info(to_json(request.metadata, ensure_ascii=False), FACTS)
        network.set_rt_info(request.precision, PRECISION)
        openvino.save_model(network, path, compress_to_fp16=False)


def _read(path: Path | str) -> "Model":
    """The network in a file: one input of images, static but for the batch."""
    _package()  # a missing package is said before a missing file
    path = Path(path)
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise ModelError(f"{file}: no such file")
    # OpenVINO would try other formats, and print
    if not path.read_bytes().lstrip().startswith(b"<?xml"):
        raise ModelError(f"{path}: not an IR file")
    try:
        network = core().read_model(path)
    except RuntimeError as error:
        raise ModelError(f"{path}: OpenVINO cannot read this file: {_reason(error)}") from error
    if len(network.inputs) != 1:
        names = (f"{i.get_any_name()} {i.get_partial_shape()}" for i in network.inputs)
        raise not_one_input(path, names)
    return network


@dataclass(frozen=True)
class IntegerWeight:
    """The int8 weights of a layer: a constant, converted to float, multiplied by scales, and maybe reshaped."""

    layer: str
    values: np.ndarray  # int8
    scales: np.ndarray  # float32, of as many dimensions: 1 where all values share one
    constant: "Node"
    scaling: "Node"  # the one that multiplies

    def rows(self, values: np.ndarray | None = None) -> np.ndarray:
        """These values, or others of the same shape, by what shares a scale: an output channel. (channels, n)."""
        values = self.values if values is None else values
        own = [axis for axis, size in enumerate(self.scales.shape) if size > 1]
        channels = math.prod(self.scales.shape)
        return np.moveaxis(values, own, range(len(own))).reshape(channels, -1)


def _constant_of(node: "Node") -> np.ndarray:
    """The values of a constant, which may be reshaped."""
    shape = tuple(node.get_output_shape(0))
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return np.array(node.data).reshape(shape)


def integer_weights_of(network: "Model") -> list[IntegerWeight]:
    """The int8 weights of a network, in the order of its layers."""
    weights = []
    for node in network.get_ordered_ops():
        if node.get_type_name() not in WEIGHTED:
            continue
        chain = [node.input_value(1).get_node()]  # from the layer back to the constant
        while chain[-1].get_input_size():
            chain.append(chain[-1].input_value(0).get_node())
        constant = chain[-1]
        scaling = next((step for step in chain if step.get_type_name() == "Multiply"), None)
        if (
            constant.get_type_name() != "Constant"
            or constant.get_element_type().to_string() != "i8"
            or scaling is None
        ):
            continue
        values, scales = np.array(constant.data), _constant_of(scaling.input_value(1).get_node())
        scales = scales.reshape((1,) * (values.ndim - scales.ndim) + scales.shape)
        weights.append(IntegerWeight(node.get_friendly_name(), values, scales, constant, scaling))
    return weights


def integer_weights(path: Path | str) -> dict[str, np.ndarray]:
    """The int8 weights of a file by layer, (output channels, n) each; none of a float file.

    Raises `ModelError` if it is no IR file.
    """
    return {weight.layer: weight.rows() for weight in integer_weights_of(_read(path))}


def _with_float_weights(network: "Model") -> None:
    """Let the layers with int8 weights compute in float, in place: what they compute stays."""
    opset = importlib.import_module("openvino.opset8")
    for weight in integer_weights_of(network):
        whole = opset.constant(weight.values.astype(np.float32) * weight.scales)
        for reader in weight.scaling.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))


def _info(network: "Model", key: str) -> str | None:
    return network.get_rt_info([key]).value if network.has_rt_info([key]) else None


def _compiled(
    path: Path | str, network: "Model", threads: int, *, watched: bool = False
) -> "CompiledModel":
    """A network, ready to run, and with its kernels timed if it is `watched`."""
    hint = HINTS.get(_info(network, PRECISION) or "fp32", "f32")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint if hint != "bf16" or _has_bf16() else "f32",
        "ENABLE_CPU_PINNING": False,  # a thread that may not leave a core waits for whatever else runs there
        "PERF_COUNT": watched,
    }
    try:
        return core().compile_model(network, "CPU", settings)
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot run this network: {_reason(error)}") from error


def _input_of(path: Path | str, compiled: "CompiledModel") -> Input:
    """What a network takes."""
    sizes = compiled.inputs[0].get_partial_shape()
    shape = tuple("batch" if size.is_dynamic else size.get_length() for size in sizes)
    return Input(path, shape, np.dtype(compiled.inputs[0].get_element_type().to_dtype()))


def _runner(
    path: Path | str, network: "Model", threads: int
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function of one batch that gives all outputs of a network; `path` is for the messages."""
    openvino = _package()
    compiled = _compiled(path, network, threads)
    images = _input_of(path, compiled)
    request, numbers = compiled.create_infer_request(), range(len(compiled.outputs))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        image = images.check(batch)  # kept alive here: OpenVINO reads its memory
        request.set_input_tensor(0, openvino.Tensor(image, shared_memory=True))
        request.infer()
        return [np.array(request.get_output_tensor(i).data) for i in numbers]

    return run


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W) that runs the file and returns its outputs in order.

    The batch is cast to the file's floating type; a file of uint8 pixels takes only those. A
    bfloat16 file is computed in float32 on a CPU without bfloat16; int8 weights that this CPU would
    compute wrongly in float, with a `SlowerWarning`. For one thread at a time. Raises `ExportError`
    if OpenVINO is missing or cannot run the network, `ModelError` if a file is missing, damaged or
    has other inputs, and, on the call, for a batch of another shape or kind.
    """
    network = _read(path)
    layers = _overflowing_layers(network)
    if layers:
        warnings.warn(slower(path, layers), SlowerWarning, stacklevel=2)
        _with_float_weights(network)
    return _runner(path, network, threads)


def _overflowing_layers(network: "Model") -> list[str]:
    """The layers whose products of int8 this CPU would cut off."""
    weights = integer_weights_of(network) if onednn_saturates() else []
    return overflowing({weight.layer: weight.rows() for weight in weights})


def trace(path: Path | str, threads: int = 1, *, trust: bool = False) -> Traced:
    """A function of one batch that gives the float outputs of the file's layers by name, in the order of execution.

    What the conversion or OpenVINO adds of its own is left out. A layer with several outputs has
    them under "name", "name:1". Raises what `load` raises.
    """
    network = _read(path)

    def name(output: "Output") -> str:
        return output.get_node().get_friendly_name() + (
            f":{output.get_index()}" if output.get_index() else ""
        )

    inner = [
        output
        for layer in network.get_ordered_ops()
        if layer.get_type_name() not in ("Constant", "Parameter", "Result")
        for output in layer.outputs()
        if output.get_element_type().is_real()
        and output.get_names()  # those of the ONNX file have names
    ]
    order = [name(output) for output in inner]
    network.add_outputs(inner)  # but for those that are outputs already
    names = [name(output.get_node().input_value(0)) for output in network.outputs]
    run = _runner(path, network, threads)

    def traced(image: np.ndarray) -> dict[str, np.ndarray]:
        computed = dict(zip(names, run(image), strict=True))
        return {name: computed[name] for name in order}

    return traced


def import_packages() -> None:
    """OpenVINO, without the reporter that it brings."""
    _package()


def kernels(path: Path | str, batch: np.ndarray) -> list[Kernel]:
    """What computes each layer of the graph that OpenVINO makes of a file, and how long.

    By its own counters of some runs on one thread. Raises what `load` raises.
    """
    openvino, network = _package(), _read(path)
    if _overflowing_layers(network):
        _with_float_weights(network)
    compiled = _compiled(path, network, 1, watched=True)
    image = _input_of(path, compiled).check(batch)
    request, times = compiled.create_infer_request(), defaultdict(list)
    for run in range(1 + WATCHED):
        request.set_input_tensor(0, openvino.Tensor(image, shared_memory=True))
        request.infer()
        for info in request.get_profiling_info() if run else ():  # the first run is slower
            times[info.node_name].append(info.real_time.total_seconds() * 1000)
    medians = {name: statistics.median(of_layer) for name, of_layer in times.items()}
    return kernels_of(network, compiled.get_runtime_model(), medians)


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata; empty for a file of another program. `ModelError` if it is no IR file."""
    return from_json(_info(_read(path), FACTS) or "{}")
