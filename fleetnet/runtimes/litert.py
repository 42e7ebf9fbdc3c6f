"""LiteRT (TensorFlow Lite), converted from torch in an environment of its own and run by ai-edge-litert on the CPU.

One file with the weights inside, input "image" (channels first, as everywhere here; inside they
come last), facts as JSON in the metadata under "fleetnet". The converter, litert-torch, asks for a
typing-extensions that is too old for others, so it lives apart (see `_isolated`); what runs the
file does not need it. Integers are 32 bits wide in the file. Differs from the documented path: two
operators are replaced by others of the same result, see `INSTEAD`.
"""

import importlib
import math
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from ..errors import ExportError, ModelError
from ..reading import Fields, from_json, to_json
from . import _isolated
from ._defaults import cannot_run as cannot_run
from ._guarded import Calls, Run, Traced
from ._input import Input, not_one_input
from ._kernels import Kernel, macs_of_convolution
from ._program import capture, quiet, silent
from ._request import Request

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.schema_py_generated import Model

suffix = ".tflite"
package = "ai-edge-litert"
default_opset = None
calls: Calls = "file"
one_pool = False
integers = "int32"
OPEN_SIZE = False
inspect = None
# As for ONNX, what rounding does in float32: 2.2e-6 to 1.0e-5 over all families and heads, with
# random batch norms.
tolerances = {"fp32": 1e-4}

# All but the first are what it was measured with; pip would look for versions that fit each other
# for minutes.
isolated: tuple[str, ...] = (
    "litert-torch==0.10.0", "ai-edge-litert==2.3.0", "litert-converter==0.5.0", "jax==0.10.2", "transformers==5.23.0",
    "pydantic==2.11.10", "typing-inspection==0.4.2", "anyio==4.14.2",
)  # fmt: skip
WORKER = Path(__file__).with_name("_litert_worker.py")
LACKING = dict.fromkeys(("nms", "roi_align"), "litert-torch does not know it")
DELEGATE = "DELEGATE"  # LiteRT's name for a piece that XNNPACK has
PRODUCTS = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
)
WEIGHTED = "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"
FACTS, OUTPUTS = "fleetnet", "fleetnet_outputs"  # of the metadata


def missing() -> str | None:
    if find_spec("ai_edge_litert") is None:
        return "ai-edge-litert is not installed: pip install 'fleetnet[litert]'"
    return _isolated.missing("litert")


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ImportError as error:
        raise ExportError(
            f"LiteRT is needed and not installed: pip install 'fleetnet[litert]' ({error})"
        ) from error


def _square(x: Tensor, exponent: float) -> Tensor:
    """LiteRT has no power of tensors of five dimensions, such as yolo's boxes."""
    return x * x if exponent == 2 else NotImplemented


def _spread(x: Tensor, size: Sequence[int], *, implicit: bool = False) -> Tensor:
    """litert-torch 0.10 forgets that channels come last where it repeats one pixel, as deeplabv3 does after pooling."""
    if x.ndim != 4 or not x.is_floating_point():
        return NotImplemented
    return x + x.new_zeros(
        [1 if wanted in (-1, had) else wanted for wanted, had in zip(size, x.shape, strict=True)]
    )


INSTEAD: dict[OpOverload, Callable[..., Tensor]] = {
    torch.ops.aten.pow.Tensor_Scalar: _square,
    torch.ops.aten.expand.default: _spread,
}


def export(request: Request) -> None:
    """Write one .tflite file. There are no operator sets.

    Raises `ExportError` with the command to give if the environment of the converter is not there,
    and if the model cannot be converted.
    """
    _isolated.check("litert")
    program = capture(request, INSTEAD, lacking=LACKING)
    notes = {
        FACTS: to_json(request.metadata, ensure_ascii=False),
        OUTPUTS: to_json(list(request.outputs)),
    }
    with tempfile.TemporaryDirectory() as work:
        saved, written_notes = Path(work, "program.pt2"), Path(work, "notes.json")
        with quiet():
            torch.export.save(program, saved)
        written_notes.write_text(to_json(notes), encoding="utf-8")
        target = request.path.absolute()
        try:
            _isolated.run("litert", WORKER, str(saved), str(written_notes), str(target))
        except ExportError as error:
            hint = ""
            if request.dynamic:
                hint = "; it may with a fixed number of images: leave dynamic out"
            raise ExportError(f"{error}{hint}") from error


def _open(path: Path | str, threads: int, **settings: object) -> "Interpreter":
    """An interpreter of the file, ready to run."""
    interpreter = _package("interpreter")
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        with silent():
            opened = interpreter.Interpreter(str(path), num_threads=threads, **settings)
            opened.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: LiteRT cannot load this file: {str(error).strip()}") from error
    inputs = opened.get_input_details()
    if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
        raise not_one_input(path, (f"{i['name']} {tuple(i['shape'])}" for i in inputs))
    return opened


def _feed(path: Path | str, opened: "Interpreter") -> Callable[[np.ndarray], None]:
    """What checks a batch and runs the network on it."""
    (details,) = opened.get_input_details()
    shape = tuple("batch" if size == -1 else int(size) for size in details["shape_signature"])
    images = Input(path, shape, np.dtype(details["dtype"]))

    def feed(batch: np.ndarray) -> None:
        image = images.check(batch)
        if image.shape != tuple(opened.get_input_details()[0]["shape"]):
            opened.resize_tensor_input(details["index"], image.shape)
            with silent():
                opened.allocate_tensors()
        opened.set_tensor(details["index"], image)
        opened.invoke()

    return feed


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W) that runs the file and returns its outputs in order.

    The batch is cast to the file's floating type. Raises `ExportError` if ai-edge-litert is
    missing, `ModelError` if the file is missing, damaged or has other inputs, and, on the call, for
    a batch of another shape or kind.
    """
    opened = _open(path, threads)
    feed = _feed(path, opened)
    (signature,) = opened.get_signature_list() or [None]
    if signature is None:
        # a file of another program
        order = [output["index"] for output in opened.get_output_details()]
    else:
        named = opened.get_signature_runner(signature).get_output_details()
        order = [named[name]["index"] for name in _notes(path).get(OUTPUTS, named)]

    def run(image: np.ndarray) -> list[np.ndarray]:
        feed(image)
        return [opened.get_tensor(index) for index in order]  # copies

    return run


def trace(path: Path | str, threads: int = 1, *, trust: bool = False) -> Traced:
    """A function of one batch that gives what every operator of the file puts out, in the order of execution.

    Run by LiteRT's own kernels instead of the faster ones of XNNPACK, which keep nothing between
    operators. Raises what `load` raises.
    """
    plain = _package("interpreter").OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    opened = _open(
        path, threads, experimental_op_resolver_type=plain, experimental_preserve_all_tensors=True
    )
    feed = _feed(path, opened)

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        feed(image)
        kept = {}
        for number, operator in enumerate(opened._get_ops_details()):
            for index in operator["outputs"]:
                kept[f"{operator['op_name'].lower()}_{number}"] = opened.get_tensor(index)
        return kept

    return run


def import_packages() -> None:
    """What runs a file, and what reads the order of its outputs."""
    _package("interpreter"), _package("schema_py_generated")


def kernels(path: Path | str, batch: np.ndarray) -> list[Kernel]:
    """What XNNPACK computes of a file, which LiteRT hands as much as it takes, and what LiteRT's own kernels.

    Without times. Raises what `load` raises.
    """
    opened = _open(path, 1)
    _feed(path, opened)(batch)
    operators = opened._get_ops_details()
    handed_over, int8_file = _handed_over(operators), any(map(_in_int8, operators))
    shapes = {
        tensor["index"]: [int(size) for size in tensor["shape"]]
        for tensor in opened.get_tensor_details()
    }
    return [
        Kernel(
            f"{operator['op_name'].lower()}_{operator['index']}",
            operator["op_name"],
            _macs(operator, shapes),
            _why_slow(operator, handed_over, int8_file=int8_file),
        )
        for operator in operators
        if operator["op_name"] != DELEGATE
    ]


def _in_int8(operator: Fields) -> bool:
    """Whether its products are of int8."""
    return operator["op_name"] in PRODUCTS and np.int8 in operator["operand_types"]


def _why_slow(operator: Fields, handed_over: set[int], *, int8_file: bool) -> str:
    """Why it is outside of the fast kernels; empty inside of them."""
    if operator["index"] not in handed_over:
        return "not handed to XNNPACK"
    converts = operator["op_name"] in ("QUANTIZE", "DEQUANTIZE")
    if int8_file and not converts and np.float32 in operator["operand_types"]:
        return "in float between layers in int8"
    return ""


def _handed_over(operators: Sequence[Fields]) -> set[int]:
    """The operators, by number, between what goes into a piece of XNNPACK and what comes out of it."""
    pieces = [operator for operator in operators if operator["op_name"] == DELEGATE]
    makers = {
        output: operator
        for operator in operators
        if operator["op_name"] != DELEGATE
        for output in operator["outputs"]
    }
    inside = set()
    for piece in pieces:
        ahead, taken = list(piece["outputs"]), set(piece["inputs"])
        while ahead:
            tensor = ahead.pop()
            maker = makers.get(tensor)
            if maker is None or tensor in taken or maker["index"] in inside:
                continue
            inside.add(maker["index"])
            ahead += list(maker["inputs"])
    return inside


def _macs(operator: Fields, shapes: Mapping[int, Sequence[int]]) -> int:
    """Multiply-accumulates of an operator; maps have their channels last."""
    kind = operator["op_name"]
    if kind not in PRODUCTS:
        return 0
    output = shapes[operator["outputs"][0]]
    if kind == "BATCH_MATMUL":
        return math.prod(output) * shapes[operator["inputs"][0]][-1]
    weight = shapes[operator["inputs"][1]]  # (O, H, W, I), (1, H, W, O) or (O, I)
    if kind == "TRANSPOSE_CONV":  # each value of its third input meets the weights of one channel
        return macs_of_convolution(shapes[operator["inputs"][2]], weight, weight[-1])
    channels = weight[-1] if kind == "DEPTHWISE_CONV_2D" else weight[0]
    return macs_of_convolution(output, weight, channels)


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    """`ModelError` for a file in which flatbuffers finds something else than it should."""
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        yield
    except (
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        struct.error,
    ) as error:  # of flatbuffers
        raise ModelError(f"{path}: not a readable LiteRT file: {error}") from error


def _model(path: Path | str) -> "Model":
    schema, content = _package("schema_py_generated"), Path(path).read_bytes()
    if not schema.Model.ModelBufferHasIdentifier(content, 0):
        raise ModelError(f"{path}: not a LiteRT file")
    return cast("Model", schema.Model.GetRootAs(content))


def _notes(path: Path | str) -> Fields:
    """The metadata that `export` wrote, by name."""
    with _reading(path):
        model = _model(path)
        entries = [model.Metadata(i) for i in range(model.MetadataLength())]
        texts = {e.Name().decode(): model.Buffers(e.Buffer()).DataAsNumpy() for e in entries}
        return {key: from_json(bytes(texts[key])) for key in (FACTS, OUTPUTS) if key in texts}


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata; empty for a file of another program. `ModelError` if it is no such file."""
    return _notes(path).get(FACTS, {})


def integer_weights(path: Path | str) -> dict[str, np.ndarray]:
    """The int8 weights of a file by layer, (output channels, n) each; none of a float file.

    The file does not know its layers by name: they are "conv_2d_3", by operator and its number.
    Raises `ModelError` if it is no LiteRT file.
    """
    schema = _package("schema_py_generated")
    kinds = {getattr(schema.BuiltinOperator, name): name.lower() for name in WEIGHTED}
    weights = {}
    with _reading(path):
        model = _model(path)
        graph = model.Subgraphs(0)
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            kind = kinds.get(model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode())
            tensor = None if kind is None else graph.Tensors(operator.Inputs(1))
            if tensor is None or tensor.Type() != schema.TensorType.INT8:
                continue
            values = model.Buffers(tensor.Buffer()).DataAsNumpy().view(np.int8)
            values = values.reshape(tensor.ShapeAsNumpy())
            channels = np.moveaxis(values, tensor.Quantization().QuantizedDimension(), 0)
            weights[f"{kind}_{i}"] = channels.reshape(len(channels), -1)
    return weights
