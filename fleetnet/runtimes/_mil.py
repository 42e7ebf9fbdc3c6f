"""Reads the program of a Core ML package (MIL, Apple's intermediate language), so that it can be checked anywhere.

    read       the package -> its program
    layers     the convolutions and linear layers of a program, in order
    used       those of a model in torch, in order
    evaluate   what the program says, computed by torch

`evaluate` rounds what each operator puts out to the type that the program gives it, and computes in
float32: what Core ML does, but for the order of sums. It knows the operators that this library's
networks need, by their documentation in coremltools.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..circular import computed_as
from ..errors import ExportError

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Function
    from coremltools.models import MLModel

WEIGHTED = {
    "conv": "convolution",
    "conv_transpose": "transposed convolution",
    "linear": "linear layer",
}
KINDS: dict[Callable[..., Tensor], str] = {
    torch.conv2d: "conv",
    torch.conv_transpose2d: "conv_transpose",
    F.linear: "linear",
}
DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}


@dataclass(frozen=True)
class Layer:
    """What a layer holds, in float64 or as the file has it."""

    name: str
    kind: str  # of WEIGHTED
    weight: np.ndarray
    bias: np.ndarray | None  # None: zeros


def read(package: "MLModel") -> "Function":
    """The program of a package, as coremltools opened it; raises whatever coremltools does for a damaged one."""
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = package.get_spec()
    program = load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=package.weights_dir
    )
    return program.functions["main"]


def layers(function: "Function") -> list[Layer]:
    """The layers with weights of a program, in order."""
    layers = []
    for op in function.operations:
        if op.op_type in WEIGHTED and op.weight.val is not None:
            bias = (
                None
                if op.bias is None or op.bias.val is None or not op.bias.val.any()
                else op.bias.val
            )
            layers.append(Layer(op.name, op.op_type, op.weight.val, bias))
    return layers


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


class _Recorder(TorchFunctionMode):
    """Collects the layers as they run."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.found: list[Layer] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        if func in KINDS:
            weight, bias = args[1], args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            name = self.names.get(id(weight), f"{KINDS[func]} {len(self.found)}").removesuffix(
                ".weight"
            )
            self.found.append(
                Layer(name, KINDS[func], _array(weight), None if bias is None else _array(bias))
            )
        return output


@torch.no_grad()
def used(model: nn.Module, image: Tensor) -> list[Layer]:
    """The layers that run for an image (N, C, H, W), in order; ParC as the file holds it."""
    with computed_as("convolution"), _Recorder(model) as mode:
        model(image)
    return mode.found


class _Given(dict[str, Any]):
    """What an operator is given, by name: tensors, or plain constants; as attributes None where nothing was given."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def numbers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        value = self.get(name)
        return list(default) if value is None else torch.as_tensor(value).flatten().tolist()


def _float(x: Any) -> Any:
    """Sums of half precision are computed in float32, and rounded once."""
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def _padded(g: _Given, fill: float) -> Tensor:
    """x with its border, which is given as before and after the height, before and after the width."""
    if g.pad_type not in ("valid", "custom"):
        raise ExportError(f"{g.pad_type!r}, a way of padding in Core ML, is not known here")
    top, bottom, left, right = g.numbers("pad", [0] * 4) if g.pad_type == "custom" else [0] * 4
    return F.pad(_float(g.x), [left, right, top, bottom], value=fill)


def _conv(g: _Given) -> Tensor:
    strides, dilations = g.numbers("strides", [1, 1]), g.numbers("dilations", [1, 1])
    return F.conv2d(
        _padded(g, 0), _float(g.weight), _float(g.bias), strides, 0, dilations, g.groups or 1
    )


def _max_pool(g: _Given) -> Tensor:
    size, strides = g.numbers("kernel_sizes"), g.numbers("strides", [1, 1])
    return F.max_pool2d(_padded(g, -torch.inf), size, strides, ceil_mode=bool(g.ceil_mode))


def _slice(g: _Given) -> Tensor:
    x, rank = g.x, g.x.ndim
    begin, end, stride = g.numbers("begin"), g.numbers("end"), g.numbers("stride", [1] * rank)
    masks = [g.numbers(f"{name}_mask", [0] * rank) for name in ("begin", "end", "squeeze")]
    for dim, (first, last, step, from_start, to_end, single) in enumerate(
        zip(begin, end, stride, *masks, strict=True)
    ):
        length = x.shape[dim]
        if single:
            x = x.narrow(dim, first % length, 1)
        else:
            picked = range(length)[None if from_start else first : None if to_end else last : step]
            x = x.index_select(dim, torch.tensor(list(picked), dtype=torch.int64))
    return x.squeeze([dim for dim, single in enumerate(masks[2]) if single]) if any(masks[2]) else x


def _reshape(g: _Given) -> Tensor:
    wanted = g.numbers("shape")
    return g.x.reshape([g.x.shape[i] if size == 0 else size for i, size in enumerate(wanted)])


def _split(g: _Given) -> Sequence[Tensor]:
    sizes = g.numbers("split_sizes")
    return g.x.split(sizes, g.axis) if sizes else g.x.chunk(int(g.num_splits), g.axis)


def _layer_norm(g: _Given) -> Tensor:
    x, axes = _float(g.x), g.numbers("axes", range(g.x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    shape = [
        size if dim in [axis % x.ndim for axis in axes] else 1 for dim, size in enumerate(x.shape)
    ]
    x = (x - mean) * (variance + (1e-5 if g.epsilon is None else g.epsilon)).rsqrt()
    x = x if g.gamma is None else x * _float(g.gamma).reshape(shape)
    return x if g.beta is None else x + _float(g.beta).reshape(shape)


def _enlarge(g: _Given, mode: str) -> Tensor:
    height, width = (
        float(1 if f is None else f) for f in (g.scale_factor_height, g.scale_factor_width)
    )
    # factors are rounded
    size = (int(g.x.shape[-2] * height + 1e-3), int(g.x.shape[-1] * width + 1e-3))
    if mode == "nearest":
        return F.interpolate(_float(g.x), size, mode=mode)
    return F.interpolate(_float(g.x), size, mode=mode, align_corners=g.align_corners is not False)


def _matmul(g: _Given) -> Tensor:
    x, y = _float(g.x), _float(g.y)
    return (x.mT if g.transpose_x else x) @ (y.mT if g.transpose_y else y)


def _of_two(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[_Given], Tensor]:
    return lambda g: compute(torch.as_tensor(_float(g.x)), _float(g.y))


OPERATORS: dict[str, Callable[[_Given], Tensor | Sequence[Tensor]]] = {
    "conv": _conv,
    "linear": lambda g: F.linear(_float(g.x), _float(g.weight), _float(g.bias)),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "layer_norm": _layer_norm,
    "reduce_mean": lambda g: _float(g.x).mean(g.numbers("axes"), keepdim=bool(g.keep_dims)),
    "reduce_argmax": lambda g: g.x.argmax(g.axis, keepdim=bool(g.keep_dims)),
    "add": _of_two(torch.add),
    "sub": _of_two(torch.sub),
    "mul": _of_two(torch.mul),
    "pow": _of_two(torch.pow),
    "relu": lambda g: g.x.relu(),
    "silu": lambda g: F.silu(_float(g.x)),
    "sigmoid": lambda g: _float(g.x).sigmoid(),
    "softmax": lambda g: _float(g.x).softmax(-1 if g.axis is None else g.axis),
    "gelu": lambda g: F.gelu(
        _float(g.x), approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[g.mode]
    ),
    "sigmoid_hard": lambda g: (_float(g.x) * float(g.alpha) + float(g.beta)).clamp(0, 1),
    "thresholded_relu": lambda g: g.x.where(g.x >= float(g.alpha), 0),
    "cast": lambda g: g.x,  # to what the program says of the result
    "concat": lambda g: torch.cat(g["values"], g.axis),
    "split": _split,
    "slice_by_index": _slice,
    "reshape": _reshape,
    "transpose": lambda g: g.x.permute(g.numbers("perm")),
    "squeeze": lambda g: g.x.squeeze(tuple(g.numbers("axes", range(g.x.ndim)))),
    "tile": lambda g: g.x.repeat(g.numbers("reps")),
    "upsample_nearest_neighbor": lambda g: _enlarge(g, "nearest"),
    "upsample_bilinear": lambda g: _enlarge(g, "bilinear"),
}


def unknown(function: "Function") -> list[str]:
    """The operators of a program that `evaluate` does not know."""
    return sorted({op.op_type for op in function.operations} - OPERATORS.keys() - {"const"})


@torch.no_grad()
def evaluate(function: "Function", image: Tensor) -> dict[str, Tensor]:
    """The outputs of a program, whose operators must be known, for an image (N, C, H, W)."""
    from coremltools.converters.mil.mil.types import builtin_to_string

    values: dict[str, Any] = dict.fromkeys(function.inputs, image)

    def value(variable: Any) -> Any:
        if isinstance(variable, list | tuple):
            return [value(one) for one in variable]
        if variable is None or variable.name in values:
            return None if variable is None else values[variable.name]
        constant = variable.val
        if isinstance(constant, np.ndarray):
            return torch.from_numpy(constant.copy())
        return constant.item() if isinstance(constant, np.generic) else constant

    for op in function.operations:
        if op.op_type == "const":
            continue
        made = OPERATORS[op.op_type](
            _Given({name: value(variable) for name, variable in op.inputs.items()})
        )
        for variable, tensor in zip(
            op.outputs, made if isinstance(made, list | tuple) else [made], strict=True
        ):
            values[variable.name] = tensor.to(DTYPES[builtin_to_string(variable.dtype)])
    return {variable.name: torch.as_tensor(value(variable)) for variable in function.outputs}
