"""ONNX, written by torch's dynamo exporter and run by onnxruntime on the CPU.

One file with the weights inside, input "image", facts as JSON in the metadata under "fleetnet".
"""

import ast
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError, ModelError, UsageError
from ..reading import from_json, to_json
from ._program import quiet

suffix = ".onnx"
package = "onnxruntime"
calls = "many"  # onnxruntime allows it
default_opset = 20  # torch's default; the first with Gelu as one operator
# What rounding does in float32 to collapsing and to onnxruntime's own fusing together: 1.1e-6 to 3.5e-6 over all
# families with random batch norms at 224 pixels, 3.4e-5 where weights are drawn so that logits reach 1e6. A batch norm
# folded with an epsilon of 1e-3 for 1e-5 is at 2e-3.
tolerances = {"fp32": 1e-4}

# Below 18 torch converts from 18 and, where an operator cannot be converted, quietly keeps 18; above 23 it has no
# translations of its own.
OPSETS = range(18, 24)
LARGEST = 2**31 - 2**20  # bytes: protobuf stops at 2 GiB; some of it is for the graph
KEY = "fleetnet"  # of the metadata
DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(uint8)": np.uint8,
}  # fmt: skip


def lacks() -> str | None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            return f"{name} is not installed: pip install {name}"
    return None


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ExportError(f"ONNX needs the package {name}, which is not installed: pip install {name}") from error


def _name_by_module(graph: Any) -> None:
    """Give nodes the names of their modules, "backbone.stages.0.conv/Conv", in place of what the exporter knows of
    them: numbers, and stack traces of the exporting machine with its paths.
    """
    used: Counter[str] = Counter()
    for node in graph.node:
        known = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(known.get("pkg.torch.onnx.name_scopes", "[]"))  # modules, then the node's own name
        name = "/".join([*[scope for scope in scopes[-2:-1] if scope], node.op_type])
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        del node.metadata_props[:]


def export(
    model: nn.Module,
    example: Tensor,
    path: Path | str,
    *,
    opset: int | None = None,
    dynamic: bool = False,
    metadata: Mapping[str, object] | None = None,
    outputs: Sequence[str] = ("logits",),
    precision: str = "fp32",
) -> None:
    """Write `model` as it is, in eval mode, to one ONNX file; nothing is verified here (see `runtimes.deliver`).

    `example` (N, 3, H, W) fixes the size; `dynamic` leaves N open. `metadata` must be JSON. `outputs` names the outputs
    in their order. Raises `UsageError` for an opset that torch cannot write, `ExportError` if a package is missing, the
    weights exceed the 2 GB of one file, or torch cannot translate the model.
    """
    chosen = default_opset if opset is None else opset
    if chosen not in OPSETS:
        raise UsageError(f"opset is {chosen}; allowed: {OPSETS[0]} to {OPSETS[-1]}")
    onnx, _ = _package("onnx"), _package("onnxscript")
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    if size > LARGEST:
        raise ExportError(
            f"{path}: the weights are {size / 1e9:.2f} GB, and one ONNX file holds at most 2 GB: "
            "choose a smaller network"
        )
    if dynamic and len(example) == 1:
        example = torch.cat([example, example])  # torch.export takes a size of 1 for a constant
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["image"],
                output_names=list(outputs),
                opset_version=chosen,
                dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its passes raise; their cause says what went wrong
        reason = (str(error.__cause__ or error).strip() or repr(error)).splitlines()[0]
        raise ExportError(f"{path}: torch cannot write this model as ONNX: {reason}") from error
    proto: Any = program.model_proto  # type: ignore[union-attr]
    written = {entry.domain: entry.version for entry in proto.opset_import}
    if written.get("") != chosen:
        raise ExportError(f"{path}: opset {chosen} was asked for, but this model could only be written as {written}")
    _name_by_module(proto.graph)
    proto.metadata_props.add(key=KEY, value=to_json(metadata or {}, ensure_ascii=False))
    onnx.save(proto, path)


def _session(path: Path | str, threads: int, content: bytes | None = None) -> Any:
    """onnxruntime's session of a file; of `content`, which is the file with changes, just as it stands."""
    onnxruntime = _package("onnxruntime")
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else threads spin for 0.1 s after a call
    options.log_severity_level = 3  # errors, which are also raised
    if content is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other public base
        raise ModelError(f"{path}: onnxruntime cannot load this file: {str(error).strip().splitlines()[0]}") from error


def load(path: Path | str, threads: int = 1) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function of one batch (N, 3, H, W) that runs the file and returns its outputs in order.

    The batch is cast to the file's floating type; a file of uint8 pixels takes only those. Raises `ExportError` if
    onnxruntime is missing, `ModelError` if the file is missing, damaged or has other inputs, and, on the call, for a
    batch of another shape or kind.
    """
    session = _session(path, threads)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES:
        listed = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
        raise ModelError(f"{path}: expected one input of images, found {listed or 'none'}")
    name, shape, dtype = inputs[0].name, inputs[0].shape, DTYPES[inputs[0].type]

    def run(image: np.ndarray) -> list[np.ndarray]:
        fits = len(image.shape) == len(shape) and all(
            want == got for want, got in zip(shape, image.shape, strict=True) if isinstance(want, int)
        )
        if not fits:
            raise ModelError(f"{path}: takes images of shape {tuple(shape)}, got {image.shape}")
        if not np.can_cast(image.dtype, dtype, "same_kind"):  # normalized values would be cut to whole pixels
            raise ModelError(f"{path}: takes {np.dtype(dtype)}, got {image.dtype}")
        return session.run(None, {name: np.ascontiguousarray(image, dtype)})

    return run


def trace(path: Path | str, threads: int = 1) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function of one batch that gives what every node of the file puts out, by the node's name, in their order.

    Nothing is merged or left out, as `load` does. A node with several outputs has them under "name", "name:1". Raises
    what `load` raises.
    """
    onnx = _package("onnx")
    metadata(path)  # refuses what is no ONNX file
    proto = onnx.load(path)
    names = {
        output: f"{node.name or output}:{i}" if i else node.name or output
        for node in proto.graph.node
        for i, output in enumerate(node.output)
        if output
    }
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=output) for output in names if output not in known)
    session = _session(path, threads, proto.SerializeToString())
    (image,) = session.get_inputs()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        values = session.run(list(names), {image.name: np.ascontiguousarray(batch, DTYPES[image.type])})
        return {
            name: value for name, value in zip(names.values(), values, strict=True) if isinstance(value, np.ndarray)
        }

    return run


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata; empty for a file of another program. `ModelError` if it is no ONNX file."""
    onnx = _package("onnx")
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        proto = onnx.load(path, load_external_data=False)
        found = [from_json(entry.value) for entry in proto.metadata_props if entry.key == KEY]
    except Exception as error:  # protobuf's DecodeError; JSON that is none
        raise ModelError(f"{path}: not a readable ONNX file: {error}") from error
    if not proto.graph.node:  # to protobuf, an empty file is an empty message
        raise ModelError(f"{path}: not an ONNX file, or one without a network")
    return found[0] if found else {}
