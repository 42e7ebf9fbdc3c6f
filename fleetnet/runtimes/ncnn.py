"""ncnn for phones and boards, converted from torch's trace by pnnx, its makers' tool, and run by ncnn on the CPU.

Two files, `<stem>.param` with the layers (text) and `<stem>.bin` with the weights, in float32 or
half precision; load() computes in float32 with both. A file takes one image, blob "in0", and puts
out "out0", "out1" and so on. ncnn knows neither a batch nor integers nor the size of its input, so
all of that stands in the line of the input layer: width, height and channels where ncnn has them
(0, 1, 2), type and shape of each output under numbers that ncnn passes over. Layers that have
weights are named by their modules, "backbone.stages.0.conv/Convolution".

It has no NMS, sorting or RoIAlign: what chooses boxes in the graph cannot live here, Mask R-CNN
among it.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ..errors import ExportError, ModelError, UsageError
from ._defaults import cannot_run as cannot_run
from ._defaults import kernels as kernels
from ._guarded import Calls, Run, Traced
from ._input import Input
from ._program import Spelled, quiet, reason
from ._request import Request

if TYPE_CHECKING:
    from ncnn import Extractor

suffix = ".param"
package = "ncnn"
default_opset = None
calls: Calls = "file"
one_pool = False
integers = "float32"
OPEN_SIZE = False
isolated: tuple[str, ...] = ()
metadata, inspect = None, None
# Over {parcnet_s, fasternet_t0, repvit_m0_9, mobileone_s0, mobileone_s4, parc_convnext_xt} at 224
# pixels, ssd, yolo and deeplabv3. Float32: 1.0e-6 to 3.1e-5 with random weights (collapsing alone:
# up to 1.8e-5), 1.0e-6 to 6.5e-6 trained; one weight of mobileone_s0 with the wrong sign is at
# 3.3e-4. Random weights that amplify rounding so that collapsing alone is beyond (yolo/repvit_m0_9:
# 1.2e-4) are refused, its trained ones are at 1.0e-6. Half weights: 3.7e-4 to 6.2e-3 trained,
# 2.1e-4 to 2.6e-2 random, about what rounding these weights does in torch (1.4e-2 for repvit_m0_9):
# that hides a weight of the wrong sign; one that is 10,000 times too large is at 9.5e-2.
tolerances = {"fp32": 1e-4, "fp16": 3e-2}

MAGIC = "7767517"  # first line of a .param file
SECONDS = 900  # that converting may take
TYPES = ("float32", "int64")  # of outputs, by the number that stands for them in the file
# of the input layer's parameters: that of out0; ncnn has 32 of them and uses those up to 11
OUTPUT = 20
NAMED = {  # a module with weights -> what pnnx may make of it
    "nn.Conv2d": ("Convolution", "ConvolutionDepthWise", "InnerProduct"),
    "nn.ConvTranspose2d": ("Deconvolution", "DeconvolutionDepthWise"),
    "nn.Linear": ("InnerProduct", "Gemm"),
    "nn.LayerNorm": ("LayerNorm",),
}
WEIGHTED = {layer for layers in NAMED.values() for layer in layers}


def missing() -> str | None:
    absent = [name for name in ("ncnn", "pnnx") if find_spec(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} not installed: pip install 'fleetnet[ncnn]'"


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ExportError(
            f"ncnn needs the package {name}: pip install 'fleetnet[ncnn]' ({error})"
        ) from error


class _Listed(nn.Module):
    """The model's outputs as a tuple, since pnnx takes no mappings."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.network(image)))


def _slice(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`narrow`, which pnnx leaves as it is; slices it knows."""
    dim, start = dim % x.ndim, int(start)
    return x[(slice(None),) * dim + (slice(start, start + int(length)),)]


def _argmax(x: Tensor, dim: int) -> Tensor:
    """Index of the largest value, the first of equal ones, as a float: ncnn's own argmax has no dimension."""
    count = int(x.shape[dim])
    rank = torch.arange(count, 0, -1, dtype=x.dtype).view(-1, *[1] * (x.ndim - 1 - dim % x.ndim))
    largest = ((x - x.amax(dim, keepdim=True)) * 1e30 + 1).clamp(0, 1)  # 1, elsewhere 0
    return count - (largest * rank).amax(dim)


def _pad(
    x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Padding; with repeated borders, which pnnx leaves as it is, by concatenation."""
    if mode != "replicate":
        return F.pad(x, pad, mode, value)
    for dim in range(1, len(pad) // 2 + 1):
        before, after = int(pad[2 * dim - 2]), int(pad[2 * dim - 1])
        first, last = _slice(x, -dim, 0, 1), _slice(x, -dim, int(x.shape[-dim]) - 1, 1)
        x = torch.cat([first] * before + [x] + [last] * after, -dim) if before or after else x
    return x


# What ncnn has only under other names, and what it is called by.
OTHERS: Mapping[Callable[..., object], Callable[..., object]] = {
    Tensor.narrow: _slice, torch.narrow: _slice, Tensor.argmax: _argmax, torch.argmax: _argmax,
    F.pad: _pad,
}  # fmt: skip


def _convert(
    model: nn.Module, example: Tensor, folder: Path, half: bool
) -> tuple[list[str], list[str], bytes]:
    """pnnx's own graph, ncnn's layers, both as lines, and the weights. Raises `ExportError` with what pnnx says."""
    try:
        # torch warns that tracing fixes sizes; here it is to do so
        with quiet(), torch.no_grad(), Spelled(OTHERS):
            torch.jit.trace(_Listed(model).eval(), example, check_trace=False).save(
                folder / "model.pt"
            )
    except Exception as error:  # what the model's operators raise
        raise ExportError(f"torch cannot trace this model: {reason(error)}") from error
    shape = ",".join(map(str, example.shape))
    command = [
        _package("pnnx").EXEC_PATH,
        "model.pt",
        f"inputshape=[{shape}]f32",
        f"fp16={int(half)}",
    ]
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"pnnx has not converted this model after {SECONDS} s") from error
    files = [folder / f"model.{name}" for name in ("pnnx.param", "ncnn.param", "ncnn.bin")]
    if process.returncode or not all(file.is_file() for file in files):
        said = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
        last = said[-1] if said else "it says nothing"
        raise ExportError(
            f"pnnx cannot convert this model (it ended with {process.returncode}): {last}"
        )
    graph, layers = (file.read_text(encoding="utf-8").splitlines() for file in files[:2])
    return graph, layers, files[2].read_bytes()


def _refuse_unknown(layers: Sequence[str]) -> None:
    """Operators that pnnx could not translate stand in the file as they were, and ncnn refuses the file."""
    ncnn = _package("ncnn")
    kinds = {line.split()[0] for line in layers[2:] if line.strip()}
    unknown = sorted(kind for kind in kinds if ncnn.layer_to_index(kind) < 0)
    unknown.sort(key=lambda kind: not kind.startswith("torchvision."))  # those that say most first
    if unknown:
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        raise ExportError(
            f"ncnn has no operator for {', '.join(unknown[:6])}{more} of this model. If they "
            "choose boxes in the graph, export without the decode; Mask R-CNN always chooses boxes "
            "in its graph: export it to onnx"
        )


def _name_by_module(layers: list[str], graph: Sequence[str]) -> None:
    """Give the layers that have weights the names of their modules, where they are as many and in the same order."""
    layers[2:] = [re.sub(r"^(\S+ +)network\.", r"\1", line) for line in layers[2:]]
    modules = [line.split()[:2] for line in graph[2:] if line.split()[0] in NAMED]
    places = [i for i, line in enumerate(layers) if line.split()[0] in WEIGHTED]
    kinds = [layers[i].split()[0] for i in places]
    if len(modules) != len(places) or any(
        k not in NAMED[m] for k, (m, _) in zip(kinds, modules, strict=True)
    ):
        return
    for i, kind, (_, name) in zip(places, kinds, modules, strict=True):
        name = f"{name.removeprefix('network.')}/{kind}"
        layers[i] = re.sub(r"^\S+ +\S+", f"{kind:<24} {name:<24}", layers[i])


def _describe(
    layers: list[str], example: Tensor, outputs: Sequence[Tensor], path: Path | str
) -> None:
    """Write sizes and types into the line of the input layer."""
    shown = [f"0={example.shape[3]} 1={example.shape[2]} 2={example.shape[1]}"]
    for i, output in enumerate(outputs):
        dtype = str(output.dtype).removeprefix("torch.")
        if dtype not in TYPES:
            raise ExportError(
                f"{path}: output {i} is {dtype}; ncnn files of this library hold {', '.join(TYPES)}"
            )
        numbers = [TYPES.index(dtype), *output.shape]
        shown.append(f"-{23300 + OUTPUT + i}={','.join(map(str, [len(numbers), *numbers]))}")
    place = next(i for i, line in enumerate(layers) if line.split()[0] == "Input")
    layers[place] = " ".join([layers[place].rstrip(), *shown])


def export(request: Request) -> None:
    """Write two files, for one image. There is no place for metadata and names of outputs.

    Raises `ExportError` if a package is missing, pnnx cannot convert the model, or ncnn lacks an
    operator of it, naming that.
    """
    model, example, path = request.model, request.example, request.path
    if request.dynamic or len(example) != 1:
        raise UsageError(
            "ncnn takes one image at a time: leave dynamic out, and give an example of one image"
        )
    if example.dtype != torch.float32:
        raise UsageError(
            f"ncnn takes images of float32, but the example is {example.dtype}: use model.float()"
        )
    with torch.no_grad():
        expected = [output for output in tree_leaves(model(example)) if isinstance(output, Tensor)]
    if len(expected) > 32 - OUTPUT:
        raise ExportError(
            f"{path}: {len(expected)} outputs; ncnn files of this library hold {32 - OUTPUT}"
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            half = request.precision == "fp16"
            graph, layers, weights = _convert(model, example, Path(folder), half)
            _refuse_unknown(layers)
        except ExportError as error:
            raise ExportError(f"{path}: {error}") from error
    _name_by_module(layers, graph)
    _describe(layers, example, expected, path)
    path.write_text("\n".join(layers) + "\n", encoding="utf-8")
    path.with_suffix(".bin").write_bytes(weights)


class _Network:
    """A file, loaded, with what its input layer says."""

    def __init__(self, path: Path, threads: int, light: bool):
        self.ncnn, self.path = _package("ncnn"), path
        for file in (path, path.with_suffix(".bin")):
            if not file.is_file():
                raise ModelError(
                    f"{file}: no such file; an ncnn network is a .param and a .bin "
                    "file of the same name"
                )
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        self.layers = [line.split() for line in lines[2:] if line.strip()]
        if lines[:1] != [MAGIC] or any(len(words) < 4 for words in self.layers):
            raise ModelError(
                f"{path}: not an ncnn file: its first line is not {MAGIC}, or a layer is cut off"
            )
        if unknown := sorted(
            {words[0] for words in self.layers if self.ncnn.layer_to_index(words[0]) < 0}
        ):
            raise ModelError(f"{path}: ncnn has no layers {', '.join(unknown)}")
        inputs = [
            dict(word.split("=", 1) for word in words[5:])
            for words in self.layers
            if words[0] == "Input"
        ]
        try:
            (numbers,) = inputs
            size = tuple(int(numbers[key]) for key in ("2", "1", "0"))  # (C, H, W)
            outputs = [numbers.get(f"-{23300 + i}") for i in range(OUTPUT, 32)]
            self.outputs = [[int(n) for n in text.split(",")][1:] for text in outputs if text]
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"{path}: the input layer does not say its size and outputs, as files of this "
                "library do"
            ) from error
        self.images = Input(path, ("N", *size), np.dtype(np.float32))
        self.net = self.ncnn.Net()
        options = self.net.opt
        options.num_threads, options.use_vulkan_compute, options.lightmode = threads, False, light
        # float32 throughout: half precision and bfloat16 are for storing or computing
        for name in dir(options):
            if name.startswith(("use_fp16_", "use_bf16_")):
                setattr(options, name, False)
        if self.net.load_param(str(path)) or self.net.load_model(str(path.with_suffix(".bin"))):
            raise ModelError(f"{path}: ncnn cannot load this file and the weights beside it")

    def start(self, image: np.ndarray) -> "Extractor":
        """An extractor for one image (C, H, W)."""
        extractor = self.net.create_extractor()
        extractor.input("in0", self.ncnn.Mat(image).clone())
        return extractor

    def extract(self, extractor: "Extractor", blob: str) -> np.ndarray:
        status, value = extractor.extract(blob)
        if status:
            raise ModelError(f"{self.path}: ncnn cannot compute {blob!r} (it says {status})")
        return np.array(value)


def load(path: Path | str, threads: int = 1, *, trust: bool = False) -> Run:
    """A function of a batch (N, C, H, W) that runs the file on one image after the other and returns its outputs.

    Raises `ExportError` if ncnn is missing, `ModelError` if a file is missing, damaged or not of
    this library, and, on the call, for images of another shape.
    """
    network = _Network(Path(path), threads, light=True)

    def one(image: np.ndarray) -> list[np.ndarray]:
        extractor, computed = network.start(image), []
        for i, (dtype, *shape) in enumerate(network.outputs):
            value = network.extract(extractor, f"out{i}")
            value = value.reshape(shape) if value.size == np.prod(shape) else value[None]
            computed.append(np.rint(value).astype(np.int64) if TYPES[dtype] == "int64" else value)
        return computed

    def run(images: np.ndarray) -> list[np.ndarray]:
        computed = [one(image) for image in network.images.check(images)]
        return (
            computed[0]
            if len(computed) == 1
            else [np.concatenate(parts) for parts in zip(*computed, strict=True)]
        )

    return run


def trace(path: Path | str, threads: int = 1, *, trust: bool = False) -> Traced:
    """A function of one image (1, C, H, W) that gives what every layer puts out, by its name, in order of execution.

    Further outputs of a layer have ":1" and so on behind its name. There is no dimension of the
    batch. Copies for several users of a blob are left out. Raises what `load` raises.
    """
    network = _Network(Path(path), threads, light=False)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        extractor, computed = network.start(network.images.check(images)[0]), {}
        for kind, name, inputs, outputs, *blobs in network.layers:
            if kind not in ("Input", "Split"):
                for i, blob in enumerate(blobs[int(inputs) : int(inputs) + int(outputs)]):
                    computed[f"{name}:{i}" if i else name] = network.extract(extractor, blob)
        return computed

    return run


def import_packages() -> None:
    """ncnn."""
    _package("ncnn")
