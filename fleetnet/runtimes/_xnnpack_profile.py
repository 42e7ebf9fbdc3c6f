"""What ExecuTorch handed to XNNPACK of a file, and what its portable kernels compute, from the file itself.

Portable kernels are written to be small, not fast. The pieces that XNNPACK has are graphs in its
own format (`schema.fbs` of ExecuTorch), which the program flatc, part of ExecuTorch, turns into
JSON.
"""

import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..reading import Fields, from_json
from ._kernels import Kernel, macs_of_convolution

if TYPE_CHECKING:
    from executorch.exir.schema import ExecutionPlan, KernelCall

# Operators of products, and which of their arguments is the first factor.
PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::linear": 0, "aten::addmm": 1}
NO_BOUND = re.compile(rb"(:\s*)[-+]?(?:inf|nan)\b")  # flatc writes what JSON does not have
OURS = "not handed to XNNPACK"


def kernels_of(content: bytes) -> list[Kernel]:
    """Of the content of a file, the layers in the order of execution."""
    schema = import_module("executorch.exir.schema")
    program = import_module("executorch.exir._serialize._program").deserialize_pte_binary(content)
    plan = program.program.execution_plan[0]
    kernels: list[Kernel] = []
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if isinstance(call, schema.KernelCall):
                kernels.append(_of_call(plan, call, len(kernels)))
            elif isinstance(call, schema.DelegateCall):
                delegate = plan.delegates[call.delegate_index]
                data = program.program.backend_delegate_data[delegate.processed.index].data
                kernels += _of_piece(f"piece {call.delegate_index}", bytes(data))
    return kernels


def _of_call(plan: "ExecutionPlan", call: "KernelCall", number: int) -> Kernel:
    """A portable kernel. The file has no names of layers, so it gets its place in their order."""
    name = plan.operators[call.op_index].name
    sizes = [list(getattr(plan.values[i].val, "sizes", ())) for i in call.args]
    macs = 0
    if name == "aten::convolution":
        macs = macs_of_convolution(sizes[-1], sizes[1], sizes[1][0])
    elif name in PRODUCTS:
        macs = math.prod(sizes[-1]) * sizes[PRODUCTS[name]][-1]
    return Kernel(f"{name}_{number}", name, macs, OURS)


def _of_piece(title: str, data: bytes) -> Iterator[Kernel]:
    """The nodes of a graph that XNNPACK has."""
    graph = _graph(data)
    dims = {}
    for entry in graph["xvalues"]:
        value = entry["xvalue_union"]
        value = value.get("tensor_value", value)  # of a quantized one
        dims[value["id_out"]] = value.get("dims", [])
    for number, entry in enumerate(graph["xnodes"]):
        kind = entry["xnode_union_type"].removeprefix("XNN")
        yield Kernel(f"{title}, {kind}_{number}", kind, _macs(kind, entry["xnode_union"], dims))


def _macs(kind: str, node: Fields, dims: Mapping[int, Sequence[int]]) -> int:
    """Multiply-accumulates of a node of XNNPACK; maps have their channels last."""
    if kind in ("Conv2d", "DepthwiseConv2d"):
        window = node["kernel_height"] * node["kernel_width"] * node["group_input_channels"]
        return math.prod(dims[node["output_id"]]) * window
    if kind == "ConvTranspose2d":
        window = node["kernel_height"] * node["kernel_width"] * node["group_output_channels"]
        return math.prod(dims[node["input1_id"]]) * window
    if kind in ("FullyConnected", "BatchMatrixMultiply"):
        return math.prod(dims[node["output_id"]]) * dims[node["input1_id"]][-1]
    return 0


def _graph(data: bytes) -> Fields:
    """A graph of XNNPACK as JSON has it."""
    serialization = import_module(
        "executorch.backends.xnnpack.serialization.xnnpack_graph_serialize"
    )
    flatbuffer = import_module("executorch.exir._serialize._flatbuffer")
    header = serialization.XNNHeader.from_bytes(data[: serialization.XNNHeader.EXPECTED_LENGTH])
    begin, size = header.flatbuffer_offset, header.flatbuffer_size
    schema = resources.files("executorch.backends.xnnpack.serialization") / "schema.fbs"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schema.fbs").write_bytes(schema.read_bytes())
        (folder / "graph.bin").write_bytes(data[begin : begin + size])
        flatbuffer._flatc_decompile(
            name, str(folder / "schema.fbs"), str(folder / "graph.bin"), ["--raw-binary"]
        )
        return from_json(NO_BOUND.sub(rb"\1null", (folder / "graph.json").read_bytes()))
