"""ONNX, written by torch's dynamo exporter and run by onnxruntime on the CPU.

One file with the weights inside, input "image", facts as JSON in the metadata under "fleetnet". In
"bf16" the weights stay float32, and onnxruntime may round to bfloat16 within its products, by an
option of the session: kernels that only 64-bit Arm has, on Linux. Nothing here has run on such a
CPU: its tests pretend one.
"""

import ast
import tempfile
import warnings
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..errors import ExportError, ModelError, SlowerWarning, UsageError
from ..parc import with_products
from ..reading import from_json, to_json
from . import _opset
from ._cpu import has_bf16_of_arm, int8_class
from ._defaults import cannot_run as cannot_run
from ._guarded import Calls, Run, Traced
from ._input import Input, not_one_input
from ._int8 import overflowing, slower
from ._kernels import Kernel
from ._onnx_profile import WEIGHTED, kernels_of
from ._program import quiet
from ._request import Request
from ._sizes import Sizes, open_name

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from onnxruntime import InferenceSession

suffix = ".onnx"
package = "onnxruntime"
default_opset = 20  # torch's default; the first with Gelu as one operator
calls: Calls = "many"  # onnxruntime allows it
one_pool = False
integers = "int64"
OPEN_SIZE = True
isolated: tuple[str, ...] = ()
inspect = None
# What rounding does in float32 to collapsing and to onnxruntime's own fusing together: 1.1e-6 to
# 3.5e-6 over all families with random batch norms at 224 pixels, 3.4e-5 where weights are drawn so
# that logits reach 1e6. A batch norm folded with an epsilon of 1e-3 for 1e-5 is at 2e-3. Float16,
# of 11 bits, in weights and arithmetic, as Core ML's (see there): with random weights at 64 pixels
# 6.2e-4 (parc_convnext_xt), 4.1e-3 (fasternet_t0), 1.8e-2 (repvit_m0_9), 2.2e-2 (yolo); 0.18 for
# parcnet_s, which amplifies rounding: refused.
# Bfloat16, of 8 bits, is OpenVINO's limit: no CPU that has these kernels was there to measure it.
tolerances = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 0.15}

# Kernels of ParC from this length on are products of matrices: of 128 values ParC takes half the
# time in onnxruntime, and deeplabv3/parcnet_s at 512 pixels (64 values and less) 6 % less. Of 32 to
# 63 it was 2 % more (benchmarks/parc.py).
PRODUCTS_FROM = 64

# Below 18 torch converts from 18 and, where an operator cannot be converted, quietly keeps 18: that
# is done here (see `_opset`). Above 23 it has no translations of its own.
OPSETS = range(_opset.LOWEST, 24)
LARGEST = 2**31 - 2**20  # bytes: protobuf stops at 2 GiB; some of it is for the graph
KEY = "fleetnet"  # of the metadata
PRECISION = "fleetnet_precision"  # of the metadata of a bf16 file, whose weights are float32
BF16 = "mlas.enable_gemm_fastmath_arm64_bfloat16"  # products of float32 may be of bfloat16
# scopes of the exporter: the network, open sizes
NO_MODULES = "", "_empty_nn_module_stack_from_metadata_hook"
OPTIMIZED = "optimized.onnx"
WATCHED = 5  # runs that are profiled, after one that is not
DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8,
}  # fmt: skip


def missing() -> str | None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            return f"{name} is not installed: pip install {name}"
    return None


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {name}, which is not installed: pip install {name}"
        ) from error


def _name_by_module(graph: "GraphProto") -> None:
    """Give nodes the names of their modules, "backbone.stages.0.conv/Conv", in place of what the exporter knows of
    them: numbers, and stack traces of the exporting machine with its paths.

    A layer with weights is named by these: where the exporter merged a batch norm into a
    convolution, it knows the convolution by the name of the norm.
    """
    constants = {tensor.name for tensor in graph.initializer}
    used: Counter[str] = Counter()
    for node in graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        # modules, then the node's own name
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        modules = [scope for scope in scopes[-2:-1] if scope not in NO_MODULES]
        weight = node.input[1] if node.op_type in WEIGHTED and len(node.input) > 1 else ""
        if weight in constants and weight.endswith(".weight"):
            modules = [weight.removesuffix(".weight")]
        name = "/".join([*modules, node.op_type])
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        del node.metadata_props[:]


def _spell_gates(onnx: ModuleType, graph: "GraphProto") -> None:
    """Hard sigmoids that something else is multiplied by, as min(max(x / 6 + 1 / 2, 0), 1), which is what they are.

    OpenCV's reader takes every product with a hard sigmoid for a hard swish, x * hard sigmoid(x),
    whatever it is of.
    """
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    values = {"gate_scale": 1 / 6, "gate_shift": 0.5, "gate_least": 0.0, "gate_most": 1.0}
    nodes, spelled = [], False
    for node in graph.node:
        if node.op_type != "HardSigmoid" or any(
            node.input[0] in user.input for user in users.get(node.output[0], [])
        ):
            nodes.append(node)
            continue
        taken, output, module = node.input[0], node.output[0], node.name.rpartition("/")[0]
        scaled, shifted = f"{output}_scaled", f"{output}_shifted"
        nodes += [
            onnx.helper.make_node(
                "Mul", [taken, "gate_scale"], [scaled], name=f"{module}/{scaled}"
            ),
            onnx.helper.make_node(
                "Add", [scaled, "gate_shift"], [shifted], name=f"{module}/{shifted}"
            ),
            onnx.helper.make_node(
                "Clip", [shifted, "gate_least", "gate_most"], [output], name=f"{module}/{output}"
            ),
        ]
        spelled = True
    if spelled:
        del graph.node[:]
        graph.node.extend(nodes)
        for name, value in values.items():
            graph.initializer.append(
                onnx.numpy_helper.from_array(np.array(value, np.float32), name)
            )


def _open_dimensions(
    dynamic: bool, sizes: Sizes | None
) -> tuple[dict[int, torch.export.Dim]] | None:
    """The dimensions of the image that torch is to leave open, as its exporter takes them; None of a fixed shape."""
    dimensions: dict[int, torch.export.Dim] = {}
    if dynamic:
        dimensions[0] = torch.export.Dim("batch")
    if sizes is not None:
        least, largest = sizes.least // sizes.step, sizes.largest // sizes.step
        for axis, name in ((2, "rows"), (3, "columns")):
            dimensions[axis] = sizes.step * torch.export.Dim(name, min=least, max=largest)
    return (dimensions,) if dimensions else None


def _check_open(graph: "GraphProto", dynamic: bool, sizes: Sizes | None) -> None:
    """`ExportError` for a dimension of the image that was to be open, and that a network made torch fix."""
    image = graph.input[0].type.tensor_type.shape.dim
    wanted = {0: "number of images"} if dynamic else {}
    wanted |= {2: "height", 3: "width"} if sizes is not None else {}
    for axis, name in wanted.items():
        if not image[axis].dim_param:
            raise ExportError(
                f"the {name} of this model cannot be left open: torch takes it for a constant"
            )


def _name_open_dimensions(graph: "GraphProto") -> None:
    """Call open dimensions of inputs and outputs by names, "height", in place of the exporter's formulas, "32*rows".

    Formulas of what is between are left out: onnxruntime finds its own, and trusts those that it is
    given.
    """
    image = graph.input[0].type.tensor_type.shape.dim
    named: dict[Hashable, str] = {image[2].dim_param: "height", image[3].dim_param: "width"}
    if image[0].dim_param:
        named[image[0].dim_param] = image[0].dim_param
    for value in [*graph.input, *graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = open_name(named, dimension.dim_param)
    del graph.value_info[:]


def _check_size(model: nn.Module, path: Path) -> None:
    """`ExportError` for weights that are too many for one file."""
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    if size > LARGEST:
        raise ExportError(
            f"{path}: the weights are {size / 1e9:.2f} GB, and one ONNX file holds at most 2 GB: "
            "choose a smaller network"
        )


def _translated(request: Request, opset: int) -> "ModelProto":
    """The model as torch's exporter writes it, as protobuf: in this operator set, or in the earliest that torch has."""
    path, sizes, written_in = request.path, request.sizes, max(opset, _opset.WRITTEN)
    example = request.traced if sizes is None else sizes.trace(request.traced)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                request.model,
                (example,),
                input_names=["image"],
                output_names=list(request.outputs),
                opset_version=written_in,
                dynamic_shapes=_open_dimensions(request.dynamic, sizes),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever its passes raise; their cause says what went wrong
        reason = (str(error.__cause__ or error).strip() or repr(error)).splitlines()[0]
        how = "" if sizes is None else " with its height and width open"
        raise ExportError(
            f"{path}: torch cannot write this model as ONNX{how}: {reason}"
        ) from error
    proto: ModelProto = program.model_proto  # type: ignore[union-attr]
    written = {entry.domain: entry.version for entry in proto.opset_import}
    if written.get("") != written_in:
        raise ExportError(
            f"{path}: opset {opset} was asked for, but this model could only be "
            f"written as {written}"
        )
    return proto


def export(request: Request, products_from: int | None = None) -> None:
    """Write one ONNX file, which asks for the earliest IR version of its operator set.

    So runtimes of its time read it. `products_from` is the length from which on another runtime
    than onnxruntime gains by products. In "fp16" weights and arithmetic are float16; inputs, outputs
    and what a head makes of its numbers are float32. Raises `UsageError` for an opset that cannot
    be written, `ExportError` if a package is missing, the weights exceed the 2 GB of one file,
    torch cannot translate the model, an earlier opset lacks an operator of it, naming that, or this
    CPU cannot compute in the precision.
    """
    if request.products:
        least = PRODUCTS_FROM if products_from is None else products_from
        request = replace(request, model=with_products(request.model, least, compact=True)[0])
    model, path = request.model, request.path
    if request.precision == "bf16" and not has_bf16_of_arm():
        raise ExportError(
            f"{path}: onnxruntime computes in bfloat16 on 64-bit Arm CPUs with bf16 instructions, "
            "under Linux; this is none, so nothing could be proven: choose onnx:fp32"
        )
    opset = default_opset if request.opset is None else request.opset
    if opset not in OPSETS:
        raise UsageError(f"opset is {opset}; allowed: {OPSETS[0]} to {OPSETS[-1]}")
    onnx, _ = _package("onnx"), _package("onnxscript")
    _check_size(model, path)
    proto = _translated(request, opset)
    _name_by_module(proto.graph)
    if next(model.parameters(), request.example).dtype == torch.float32:
        _spell_gates(onnx, proto.graph)
    try:
        _check_open(proto.graph, request.dynamic, request.sizes)
        if opset < _opset.WRITTEN:
            _opset.lower(proto, opset)
        if request.precision == "fp16":
            proto = _opset.to_half(proto)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error
    if request.sizes is not None:
        _name_open_dimensions(proto.graph)
    _opset.ask_for_lowest_ir(proto)
    proto.metadata_props.add(key=KEY, value=to_json(request.metadata, ensure_ascii=False))
    if request.precision == "bf16":
        proto.metadata_props.add(key=PRECISION, value="bf16")
    onnx.save(proto, path)


def integer_weights(path: Path | str) -> dict[str, np.ndarray]:
    """The int8 weights of a file by layer, (output channels, n) each; none of a float file.

    Raises `ModelError` if it is no ONNX file.
    """
    onnx = _package("onnx")
    proto = _proto(path, with_weights=True)
    tensors = {
        tensor.name: tensor
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    }
    if not tensors:
        return {}
    whole = {
        node.output[0]: node.input[0]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear"
    }
    weights = {}
    for node in proto.graph.node:
        index = WEIGHTED.get(node.op_type, len(node.input))
        name = node.input[index] if index < len(node.input) else ""
        tensor = tensors.get(whole.get(name, name))
        if tensor is None:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if "Conv" not in node.op_type and not transposed:  # a matrix of (inputs, outputs)
            values = np.moveaxis(values, -1, 0)
        weights[node.name or node.output[0]] = values.reshape(len(values), -1)
    return weights


def _session(
    path: Path | str,
    threads: int,
    content: bytes | None = None,
    *,
    in_32_bits: bool = False,
    watched: Path | None = None,
) -> "InferenceSession":
    """onnxruntime's session of a file; of `content`, which is the file with changes, just as it stands.

    `in_32_bits` asks for kernels that add products of int8 without cutting them off, on any CPU.
    With `watched`, a folder, it writes its profile there, and as OPTIMIZED the graph that it runs.
    """
    onnxruntime = _package("onnxruntime")
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # else threads spin for 0.1 s after a call
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors, which are also raised
    if in_32_bits:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if has_bf16_of_arm() and _noted(path, PRECISION) == "bf16":
        options.add_session_config_entry(BF16, "1")
    if content is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if watched is not None:
        options.optimized_model_filepath = str(watched / OPTIMIZED)
        options.enable_profiling, options.profile_file_prefix = True, str(watched / "profile")
    try:
        return onnxruntime.InferenceSession(
            content or str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no other public base
        raise ModelError(
            f"{path}: onnxruntime cannot load this file: {str(error).strip().splitlines()[0]}"
        ) from error


def _input_of(session: "InferenceSession", path: Path | str) -> tuple[str, Input]:
    """The name of the one input, and what it takes; `ModelError` where there is no such."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES:
        raise not_one_input(path, (f"{i.name} {i.shape} {i.type}" for i in inputs))
    (image,) = inputs
    return image.name, Input(path, tuple(image.shape), np.dtype(DTYPES[image.type]))


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W) that runs the file and returns its outputs in order.

    The batch is cast to the file's floating type; a file of uint8 pixels takes only those. Int8
    weights that this CPU would compute wrongly get slower kernels, and a `SlowerWarning`; a bf16
    file is computed in float32 on a CPU without bfloat16. Raises
    `ExportError` if onnxruntime is missing, `ModelError` if the file is missing, damaged or has
    other inputs, and, on the call, for a batch of another shape or kind.
    """
    layers = overflowing(integer_weights(path)) if int8_class().saturates else []
    if layers:
        warnings.warn(slower(path, layers), SlowerWarning, stacklevel=2)
    session = _session(path, threads, in_32_bits=bool(layers))
    name, images = _input_of(session, path)

    def run(batch: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {name: images.check(batch)})

    return run


def trace(path: Path | str, threads: int = 1, *, trust: bool = False) -> Traced:
    """A function of one batch that gives what every node of the file puts out, by the node's name, in their order.

    Nothing is merged or left out, as `load` does. A node with several outputs has them under
    "name", "name:1". Raises what `load` raises.
    """
    onnx = _package("onnx")
    proto = _proto(path, with_weights=True)
    names = {
        output: f"{node.name or output}:{i}" if i else node.name or output
        for node in proto.graph.node
        for i, output in enumerate(node.output)
        if output
    }
    shown = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=output) for output in names if output not in shown
    )
    session = _session(path, threads, proto.SerializeToString())
    image, images = _input_of(session, path)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        values = session.run(list(names), {image: images.check(batch)})
        return {
            name: value
            for name, value in zip(names.values(), values, strict=True)
            if isinstance(value, np.ndarray)
        }

    return run


def import_packages() -> None:
    """onnxruntime, and onnx, by which some CPUs look at int8 weights before they open a file."""
    _package("onnx"), _package("onnxruntime")


def kernels(path: Path | str, batch: np.ndarray) -> list[Kernel]:
    """What computes each node of the graph that onnxruntime makes of a file, and how long.

    By the profile of some runs on one thread. Raises what `load` raises.
    """
    in_32_bits = int8_class().saturates and bool(overflowing(integer_weights(path)))
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, 1, in_32_bits=in_32_bits, watched=Path(folder))
        name, images = _input_of(session, path)
        image = images.check(batch)
        for _ in range(1 + WATCHED):
            session.run(None, {name: image})
        events = from_json(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = _proto(Path(folder) / OPTIMIZED, with_weights=True).graph
    return kernels_of(graph, events, image, _proto(path).graph)


def _proto(path: Path | str, *, with_weights: bool = False) -> "ModelProto":
    """The file as protobuf reads it, `with_weights` also those in files beside it. `ModelError` if it is none."""
    onnx = _package("onnx")
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        proto = onnx.load(path, load_external_data=with_weights)
    except Exception as error:  # protobuf's DecodeError
        raise ModelError(f"{path}: not a readable ONNX file: {error}") from error
    if not proto.graph.node:  # to protobuf, an empty file is an empty message
        raise ModelError(f"{path}: not an ONNX file, or one without a network")
    return proto


def _noted(path: Path | str, key: str) -> str | None:
    """What the metadata of a file have under a key."""
    return next((e.value for e in _proto(path).metadata_props if e.key == key), None)


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata; empty for a file of another program. `ModelError` if it is no ONNX file."""
    text = _noted(path, KEY)
    try:
        return {} if text is None else from_json(text)
    except ValueError as error:
        raise ModelError(f"{path}: its metadata are no JSON: {error}") from error
