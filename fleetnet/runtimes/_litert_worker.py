"""What `litert` runs in the environment of its own: a program of torch.export, in a file, becomes a .tflite file.

    python _litert_worker.py PROGRAM.pt2 NOTES.json MODEL.tflite

The program takes keyword arguments, which become the inputs' names, and gives a mapping, whose keys
become the names of the outputs. NOTES are texts by name for the file's metadata. Imports nothing of
fleetnet, which that environment need not have. The last line on standard error says what went
wrong.
"""

import copy
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ai_edge_litert.schema_py_generated import ModelT
    from litert_torch.quantize.quant_config import QuantConfig
    from torch.export import ExportedProgram


def main(program: str, notes: str, target: str) -> None:
    import litert_torch
    import numpy as np
    import torch
    import torchvision  # noqa: F401  its operators, such as NMS, may be in the program
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    torch.set_num_threads(1)
    exported = torch.export.load(program)
    images = exported.example_inputs[1]
    dynamic = None
    if is_open(exported):
        dynamic = {name: {0: torch.export.Dim("batch")} for name in images}
    model = litert_torch.convert(
        exported.module(), sample_kwargs=images, dynamic_shapes=dynamic, **how_to_round(exported)
    )
    read = flatbuffer_utils.read_model_from_bytearray(bytearray(model.model_content()))
    give_float_ends(read)
    read.metadata = list(read.metadata or [])
    for name, text in json.loads(Path(notes).read_text(encoding="utf-8")).items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry.name, entry.buffer = name, len(read.buffers)
        read.buffers.append(buffer)
        read.metadata.append(entry)
    flatbuffer_utils.write_model(read, target)


def how_to_round(exported: "ExportedProgram") -> "dict[str, QuantConfig]":
    """For a program that rounds its maps, the setting by which the converter computes in integers.

    It is that of a quantizer which is not asked for anything: the scales are in the program.
    """
    if not any("quantized_decomposed" in str(node.target) for node in exported.graph.nodes):
        return {}
    from litert_torch.quantize import pt2e_quantizer
    from litert_torch.quantize.quant_config import QuantConfig

    static = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    return {"quant_config": QuantConfig(pt2e_quantizer.PT2EQuantizer().set_global(static))}


def give_float_ends(model: "ModelT") -> None:
    """Let a graph that takes and gives int8 take and give float32, as all files here do."""
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = model.subgraphs
    ends = [(graph.inputs, i, "QUANTIZE") for i in range(len(graph.inputs))]
    ends += [(graph.outputs, i, "DEQUANTIZE") for i in range(len(graph.outputs))]
    for places, i, kind in ends:
        whole = int(places[i])
        if graph.tensors[whole].type != schema.TensorType.INT8:
            continue
        tensor = copy.deepcopy(graph.tensors[whole])
        tensor.type, tensor.quantization, tensor.buffer = schema.TensorType.FLOAT32, None, 0
        graph.tensors[whole].name += b"_int8"
        graph.tensors.append(tensor)
        places[i] = len(graph.tensors) - 1
        operator = schema.OperatorT()
        operator.opcodeIndex = code_of(model, getattr(schema.BuiltinOperator, kind))
        operator.inputs, operator.outputs = [places[i]], [whole]
        if kind == "QUANTIZE":
            graph.operators.insert(0, operator)
        else:
            operator.inputs, operator.outputs = operator.outputs, operator.inputs
            graph.operators.append(operator)
        for signature in model.signatureDefs:
            for named in [*signature.inputs, *signature.outputs]:
                named.tensorIndex = places[i] if named.tensorIndex == whole else named.tensorIndex


def code_of(model: "ModelT", operator: int) -> int:
    """The place of an operator among those of the file, which it is added to where it is not."""
    from ai_edge_litert import schema_py_generated as schema

    for i, code in enumerate(model.operatorCodes):
        if code.builtinCode == operator:
            return i
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def is_open(exported: "ExportedProgram") -> bool:
    """Whether the number of images is open, by the last input of the graph, behind all weights."""
    *_, images = (node for node in exported.graph.nodes if node.op == "placeholder")
    return not isinstance(images.meta["val"].shape[0], int)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(" ".join(str(error).split())[:2000] or repr(error))
