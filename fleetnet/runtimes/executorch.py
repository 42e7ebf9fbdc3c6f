"""ExecuTorch for phones, lowered from torch.export and run by its own runtime on the CPU, in float32 by XNNPACK.

One file with the weights inside; it takes the number of images that it was exported with. XNNPACK
gets all of our classifiers as one piece, since splits, hard sigmoids and layer norms, which it does
not know, are spelled with operators that it knows (fewer pieces, fewer copies: on one thread 4 %
faster for fasternet_t0, 6 % for parcnet_s, 8 % for parc_convnext_xt at 64 pixels). Of the heads
ExecuTorch's portable kernels run what XNNPACK lacks: the nearest upsampling of yolo, the spreading
of the mean in deeplabv3 and its argmax. Neither has NMS or RoIAlign: what chooses boxes in the
graph cannot live here, Mask R-CNN among it.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ExportError, ModelError, UsageError
from ..parc import with_products
from ._defaults import cannot_run as cannot_run
from ._guarded import Calls, Run
from ._input import Input, not_one_input
from ._kernels import Kernel
from ._program import Spelled, quiet, reason
from ._request import Request
from ._xnnpack_profile import kernels_of

if TYPE_CHECKING:
    from executorch.runtime import Method

suffix = ".pte"
package = "executorch"
default_opset = None
calls: Calls = "process"  # a call may exchange the pool of all files
one_pool = True
integers = "int64"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
trace, metadata, inspect = None, None, None
# What XNNPACK's own order of sums does in float32: 1.9e-6 to 3e-5 over all families and heads with
# random weights (collapsing alone: up to 1.8e-5), 1.0e-6 to 9.6e-6 trained. One weight of
# mobileone_s0 with the wrong sign is at 3.3e-4.
tolerances = {"fp32": 1e-4}

# XNNPACK has depthwise kernels of up to 25 values; longer ones go the way of any convolution. As a
# product of matrices a ParC of 26 to 32 is 3 to 5 times as fast, one of 7 to 25 a half to a third
# as fast (benchmarks/forms.py).
TAPS = 25

MISSING = "executorch is not installed: pip install 'fleetnet[executorch]'"
# paths, slow to copy along
DEBUGGING = "stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"


def missing() -> str | None:
    return None if find_spec("executorch") else MISSING


def _module(name: str) -> ModuleType:
    try:
        with quiet(stderr=True):
            return import_module(name)
    except ImportError as error:
        raise ExportError(f"{MISSING} ({error})") from error


def _split(x: Tensor, size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    length = x.shape[dim]
    if isinstance(size, int):
        sizes = [min(size, length - start) for start in range(0, length, size)]
    else:
        sizes = list(size)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True))


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    # as floats: of integers a copy to float remains in the graph
    return (x + 3.0).clamp(0.0, 6.0) / 6.0


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """XNNPACK has means only over the last two of four dimensions."""
    if len(shape) != 1 or weight is None or bias is None:
        return F.layer_norm(x, shape, weight, bias, eps)
    y = x.reshape(x.shape[0], -1, 1, x.shape[-1])
    y = y - y.mean((2, 3), keepdim=True)
    y = y * ((y * y).mean((2, 3), keepdim=True) + eps).rsqrt()
    return (y * weight + bias).reshape(x.shape)


# What XNNPACK lacks, and what it is made of here.
OTHERS: Mapping[Callable[..., object], Callable[..., object]] = {
    Tensor.split: _split, torch.split: _split, Tensor.chunk: _chunk, torch.chunk: _chunk,
    F.hardsigmoid: _hardsigmoid, F.layer_norm: _layer_norm,
}  # fmt: skip


def _refuse(operators: Sequence[str], path: Path | str) -> None:
    """Operators without a kernel, by name: the file would be written, and refused by the runtime."""
    kernels = _module("executorch.runtime").Runtime.get().operator_registry.operator_names
    bases = {name.partition(".")[0] for name in kernels}
    unknown = sorted(
        {name for name in operators if name not in kernels and name.partition(".")[0] not in bases}
    )
    if unknown:
        raise ExportError(
            f"{path}: ExecuTorch has no operator for {', '.join(unknown)} of this model. If they "
            "choose boxes in the graph, export without the decode; Mask R-CNN always chooses boxes "
            "in its graph: export it to onnx"
        )


def export(request: Request) -> None:
    """Write one file. The number of images is fixed; there is no place for metadata and names of outputs.

    Raises `ExportError` if the package is missing, torch or ExecuTorch cannot translate the model,
    or the runtime lacks an operator of it, naming that.
    """
    path, example = request.path, request.example
    if request.dynamic:
        raise UsageError(
            "executorch takes the number of images that it was exported with: leave dynamic out"
        )
    if example.dtype != torch.float32:
        raise UsageError(
            f"executorch takes images of float32, but the example is {example.dtype}: "
            "use model.float()"
        )
    exir = _module("executorch.exir")
    partition = _module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model = with_products(request.model, TAPS + 1)[0]
    try:
        with quiet(stderr=True), torch.no_grad(), Spelled(OTHERS):
            program = torch.export.export(model, (example,), strict=False)
    except Exception as error:  # whatever the model's operators and torch's checks of them raise
        raise ExportError(f"{path}: torch cannot capture this model: {reason(error)}") from error
    called = [
        node.target
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]
    # torch's own are rewritten by what follows
    _refuse([op._schema.name for op in called if op.namespace != "aten"], path)
    for node in program.graph.nodes:
        for key in DEBUGGING:
            node.meta.pop(key, None)
    try:
        with quiet(stderr=True), torch.no_grad():
            config = exir.EdgeCompileConfig(_check_ir_validity=False)
            partitioner = partition.XnnpackPartitioner()
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[partitioner], compile_config=config
            )
            lowered = edge.to_executorch()
    except Exception as error:  # whatever its passes raise
        raise ExportError(
            f"{path}: ExecuTorch cannot translate this model: {reason(error)}"
        ) from error
    plan = lowered.executorch_program.execution_plan[0]
    _refuse([f"{op.name}.{op.overload}" if op.overload else op.name for op in plan.operators], path)
    lowered.save(str(path))


class _Pool:
    """The one pool of threads of the process. Networks hold on to the pool that they were loaded with, also after it
    gave way to one of another size, and crash with it: they must then be loaded anew.
    """

    threads: int | None = None
    age = 0

    @classmethod
    def use(cls, threads: int) -> int:
        """Make it one of `threads`; returns a number that changes with the pool."""
        if cls.threads != threads:
            with quiet(stderr=True):
                _module("executorch.extension.pybindings.portable_lib")._unsafe_reset_threadpool(
                    threads
                )
            cls.threads, cls.age = threads, cls.age + 1
        return cls.age


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W), of the N of the file, that runs it and returns its outputs in order.

    ExecuTorch has one pool of threads for all files. A call makes it one of `threads`; if it was of
    another size, the file is then read anew, which takes longer than a call: measure different
    numbers in different processes. Raises `ExportError` if executorch is missing, `ModelError` if
    the file is missing, damaged or has other inputs, and, on the call, for a batch of another
    shape.
    """
    runtime = _module("executorch.runtime").Runtime.get()
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    data = Path(path).read_bytes()

    def read() -> "Method":
        try:
            with quiet(stderr=True):
                return runtime.load_program(data).load_method("forward")
        except Exception as error:  # RuntimeError with a code; KeyError without that method
            raise ModelError(
                f"{path}: ExecuTorch cannot load this file: {reason(error)}"
            ) from error

    age = _Pool.use(threads)
    method = read()
    if method.metadata.num_inputs() != 1 or len(method.metadata.input_tensor_meta(0).sizes()) != 4:
        raise not_one_input(path, [method.metadata])
    shape = tuple(method.metadata.input_tensor_meta(0).sizes())
    images = Input(path, shape, np.dtype(np.float32))

    def run(batch: np.ndarray) -> list[np.ndarray]:
        nonlocal age, method
        image = torch.from_numpy(images.check(batch))
        if _Pool.use(threads) != age:
            age, method = _Pool.age, read()
        return [output.numpy() for output in method.execute([image])]

    return run


def import_packages() -> None:
    """ExecuTorch's runtime, and what sets its number of threads."""
    _module("executorch.runtime"), _module("executorch.extension.pybindings.portable_lib")


def kernels(path: Path | str, batch: np.ndarray) -> list[Kernel]:
    """What XNNPACK computes of a file, and what ExecuTorch's portable kernels, which are slow.

    From the file alone, without a time. Raises what `load` raises.
    """
    load(path)
    with quiet(stderr=True):
        return kernels_of(Path(path).read_bytes())
