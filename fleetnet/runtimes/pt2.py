"""torch's own exported program, run by torch: a graph of its operators without the Python code that it came from.

One file with the weights inside, facts as JSON in it under "fleetnet.json". It is for servers that
have torch, and holds whatever the network holds. Torch reads this format in ways that can run code
hidden in it: load only files from people you trust, as with a Python program, and with `trust`.
"""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..errors import ExportError, ModelError
from ..reading import from_json, to_json
from ._defaults import cannot_run as cannot_run
from ._defaults import import_packages as import_packages
from ._defaults import kernels as kernels
from ._guarded import Calls, Run, Traced
from ._input import Input, not_one_input
from ._program import quiet, reason
from ._request import Request

suffix = ".pt2"
package = "torch"
default_opset = None
calls: Calls = "process"  # a call sets the number of threads of all of torch
one_pool = False
integers = "int64"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
inspect = None
# The same operators as in torch, so what is left is the rounding of collapsing: 2.9e-7 to 1.2e-5
# over all families and heads, trained ones among them, 1.8e-5 for a repvit_m0_9 with random
# weights. One weight of mobileone_s0 with the wrong sign is at 3.3e-4.
tolerances = {"fp32": 1e-4}

KEY = "fleetnet.json"  # of the files inside


def missing() -> str | None:
    """Nothing: torch runs it."""
    return None


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch has one number of threads for everything, so it is set for a call and put back after it."""
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def export(request: Request) -> None:
    """Write one file. There are no operator sets, and names of outputs only where the model gives a mapping.

    Raises `ExportError` if torch cannot capture the model.
    """
    shapes = ({0: torch.export.Dim("batch")},) if request.dynamic else None
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                request.model, (request.traced,), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # whatever the model's operators and torch's checks of them raise
        raise ExportError(
            f"{request.path}: torch cannot capture this model: {reason(error)}"
        ) from error
    for node in program.graph.nodes:  # stack traces of the exporting machine, with its paths
        node.meta.pop("stack_trace", None)
    notes = {KEY: to_json(request.metadata, ensure_ascii=False)}
    with quiet():
        torch.export.save(program, request.path, extra_files=notes)


def _read(path: Path | str, trust: bool) -> torch.export.ExportedProgram:
    if not trust:
        raise ModelError(
            f"{path} was not opened: a {suffix} file can hide code that runs when torch reads it, "
            "like a program. If it comes from somebody you trust, say so: --trust, in Python "
            "trust=True"
        )
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # of zip, JSON and what torch makes of them
        raise ModelError(f"{path}: torch cannot load this file: {reason(error)}") from error


def _network(
    path: Path | str, trust: bool
) -> tuple[fx.GraphModule, Callable[[np.ndarray], Tensor]]:
    """The file's graph, and what makes its input of a batch."""
    program = _read(path, trust)
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    if len(names) != 1 or inputs[0].ndim != 4:
        raise not_one_input(path, names)
    shape = tuple(size if isinstance(size, int) else "batch" for size in inputs[0].shape)
    dtype: torch.dtype = inputs[0].dtype
    in_numpy = torch.float32 if dtype == torch.bfloat16 else dtype  # which numpy does not have
    images = Input(path, shape, torch.empty(0, dtype=in_numpy).numpy().dtype)

    def prepare(batch: np.ndarray) -> Tensor:
        return torch.from_numpy(images.check(batch)).to(dtype)

    with quiet():
        return program.module(), prepare


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of one batch (N, C, H, W) that runs the file and returns its outputs in order.

    The batch is cast to the file's floating type; a file of uint8 pixels takes only those. During a
    call torch has `threads` threads, in all of the process. Reading such a file can run code that
    is hidden in it, so `trust` must say that it comes from somebody who is trusted like a program.
    Raises `ModelError` if it is not trusted, missing, damaged or has other inputs, and, on the
    call, for a batch of another shape or kind.
    """
    network, prepare = _network(path, trust)

    def run(image: np.ndarray) -> list[np.ndarray]:
        tensor = prepare(image)
        with torch.inference_mode(), _threads(threads):
            # some are constants of the file
            return [output.clone().numpy() for output in tree_leaves(network(tensor))]

    return run


class _Recorder(fx.Interpreter):
    """Runs a graph node by node and keeps what they put out, by module and operator."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.kept: dict[str, np.ndarray] = {}
        self.used: Counter[str] = Counter()

    def run_node(self, n: fx.Node) -> object:
        output = super().run_node(n)
        if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload):  # not `getitem`
            modules = [place for place, _ in n.meta.get("nn_module_stack", {}).values() if place]
            name = "/".join([*modules[-1:], n.target.overloadpacket.__name__])
            self.used[name] += 1
            name = name if self.used[name] == 1 else f"{name}_{self.used[name]}"
            for i, tensor in enumerate(t for t in tree_leaves(output) if isinstance(t, Tensor)):
                self.kept[f"{name}:{i}" if i else name] = tensor.clone().numpy()
        return output


def trace(path: Path | str, threads: int = 1, *, trust: bool = False) -> Traced:
    """A function of one batch that gives what every operator of the file puts out, in the order of execution.

    The names are those of module and operator, "backbone.stages.0.conv/conv2d"; further outputs of
    an operator have ":1" and so on behind them. Raises what `load` raises.
    """
    network, prepare = _network(path, trust)

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        recorder = _Recorder(network)
        with torch.inference_mode(), _threads(threads):
            recorder.run(prepare(image))
        return recorder.kept

    return run


def metadata(path: Path | str) -> dict[str, object]:
    """What `export` was given as metadata; empty for a file of another program. `ModelError` if it is no such file."""
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
            return from_json(archive.read(inside[0])) if inside else {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a readable file of torch.export: {error}") from error
