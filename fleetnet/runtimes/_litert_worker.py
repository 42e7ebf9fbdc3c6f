"""What `litert` runs in the environment of its own: a program of torch.export, in a file, becomes a .tflite file.

    python _litert_worker.py PROGRAM.pt2 NOTES.json MODEL.tflite

The program takes keyword arguments, which become the inputs' names, and gives a mapping, whose keys
become the names of the outputs. NOTES are texts by name for the file's metadata. Imports nothing of
fleetnet, which that environment need not have. The last line on standard error says what went
wrong.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    model = litert_torch.convert(exported.module(), sample_kwargs=images, dynamic_shapes=dynamic)
    read = flatbuffer_utils.read_model_from_bytearray(bytearray(model.model_content()))
    read.metadata = list(read.metadata or [])
    for name, text in json.loads(Path(notes).read_text(encoding="utf-8")).items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry.name, entry.buffer = name, len(read.buffers)
        read.buffers.append(buffer)
        read.metadata.append(entry)
    flatbuffer_utils.write_model(read, target)


def is_open(exported: "ExportedProgram") -> bool:
    """Whether the number of images is open, by the last input of the graph, behind all weights."""
    *_, images = (node for node in exported.graph.nodes if node.op == "placeholder")
    return not isinstance(images.meta["val"].shape[0], int)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(" ".join(str(error).split())[:2000] or repr(error))
