"""The operators of an ONNX graph, computed by torch: of many pictures, and with gradients.

Our files are made for one picture. Of each map the first dimension is the batch, so where a graph
says the shape of a map, its leading 1 is taken for the number of pictures. `OPERATORS` has what the
graphs of our backbones and heads are made of, the choice of detections apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto

Attribute = int | float | bytes | list[int] | list[float]


@dataclass(frozen=True)
class Step:
    """A node of the graph."""

    operator: str
    name: str  # its module and operator, as in "backbone.stem/Conv"
    inputs: list[str]  # names of tensors; "" for one that is left out
    outputs: list[str]
    attributes: Mapping[str, Attribute]

    def whole(self, key: str, usual: int) -> int:
        return cast(int, self.attributes.get(key, usual))

    def real(self, key: str, usual: float) -> float:
        return float(cast(float, self.attributes.get(key, usual)))

    def wholes(self, key: str, usual: list[int]) -> list[int]:
        return list(cast(list[int], self.attributes.get(key, usual)))

    def word(self, key: str, usual: str) -> str:
        return cast(bytes, self.attributes.get(key, usual.encode())).decode()

    def cannot(self, what: str) -> ExportError:
        return ExportError(f"{self.name}: int8 in torch has no {self.operator} with {what}")


def steps_of(graph: "GraphProto") -> list[Step]:
    """The nodes of a graph in an order that they can be computed in.

    The quantizer appends what it adds.
    """
    import onnx

    steps = [
        Step(
            node.op_type,
            node.name or node.output[0],
            list(node.input),
            list(node.output),
            {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute},
        )
        for node in graph.node
    ]
    makers = {name: i for i, step in enumerate(steps) for name in step.outputs}
    needed = {
        i: {makers[name] for name in step.inputs if name in makers} for i, step in enumerate(steps)
    }
    return [steps[i] for i in TopologicalSorter(needed).static_order()]


# Layers with weights ----------------------------------------------------------------------------


def _conv(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, C, h, w), (O, C / groups, kh, kw) -> (N, O, h', w')"""
    if weight.ndim != 4:
        raise step.cannot(f"a kernel of {weight.ndim - 2} dimensions")
    top, left, bottom, right = step.wholes("pads", [0, 0, 0, 0])
    padding = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    return F.conv2d(
        x,
        weight,
        bias,
        step.wholes("strides", [1, 1]),
        padding,
        step.wholes("dilations", [1, 1]),
        step.whole("group", 1),
    )


def _gemm(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, I), (O, I) or (I, O) -> (N, O)"""
    scaled = step.real("alpha", 1.0) != 1 or step.real("beta", 1.0) != 1
    if scaled or step.whole("transA", 0):
        raise step.cannot("alpha, beta or transA")
    return F.linear(x, weight if step.whole("transB", 0) else weight.T, bias)


# Shapes -----------------------------------------------------------------------------------------


def _of_batch(x: Tensor, shape: Tensor) -> list[int]:
    """A shape of the graph, for as many pictures as there are."""
    first, *others = cast(list[int], shape.tolist())
    return [len(x) if first == 1 else first, *others]


def _reshape(step: Step, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _of_batch(x, shape)
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def _flatten(step: Step, x: Tensor) -> Tensor:
    """Two dimensions: those before an axis, and those from it on."""
    axis = step.whole("axis", 1)
    return x.reshape(x.shape[:axis].numel(), -1)


def _expand(step: Step, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _of_batch(x, shape)
    return x.expand([x.shape[i] if size == 1 else size for i, size in enumerate(sizes)])


def _split(step: Step, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = step.whole("axis", 0)
    if sizes is None:
        return x.chunk(len(step.outputs), axis)
    return x.split(cast(list[int], sizes.tolist()), axis)


def _slice(
    step: Step,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    strides: Tensor | None = None,
) -> Tensor:
    count = len(starts)
    every = range(count) if axes is None else axes.tolist()
    by = [1] * count if strides is None else strides.tolist()
    if min(by) < 1:
        raise step.cannot("steps backward")
    place = [slice(None)] * x.ndim
    for axis, start, end, stride in zip(every, starts.tolist(), ends.tolist(), by, strict=True):
        place[axis] = slice(start, end, stride)
    return x[tuple(place)]


def _squeeze(step: Step, x: Tensor, axes: Tensor) -> Tensor:
    return x.squeeze(cast(list[int], axes.tolist()))


def _unsqueeze(step: Step, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _pad(
    step: Step, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    if step.word("mode", "constant") != "constant" or axes is not None:
        raise step.cannot("a mode or axes")
    before, after = pads.view(2, -1).tolist()
    sides = [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair]
    return F.pad(x, sides, value=0.0 if value is None else float(value))


# Pooling and other sizes ------------------------------------------------------------------------


def _reduce_mean(step: Step, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = step.wholes("axes", []) if axes is None else axes.tolist()
    return x.mean(over, keepdim=bool(step.whole("keepdims", 1)))


class _Pool(NamedTuple):
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    ceil: bool


def _pool(step: Step) -> _Pool:
    """What torch's pooling takes; `ExportError` for what it does not know."""
    top, left, bottom, right = step.wholes("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or step.wholes("dilations", [1, 1]) != [1, 1]:
        raise step.cannot("padding of one side, or dilation")
    kernel, stride = step.wholes("kernel_shape", []), step.wholes("strides", [1, 1])
    return _Pool(kernel, stride, [top, left], bool(step.whole("ceil_mode", 0)))


def _max_pool(step: Step, x: Tensor) -> Tensor:
    pool = _pool(step)
    return F.max_pool2d(x, pool.kernel, pool.stride, pool.padding, ceil_mode=pool.ceil)


def _average_pool(step: Step, x: Tensor) -> Tensor:
    pool, counted = _pool(step), bool(step.whole("count_include_pad", 0))
    return F.avg_pool2d(x, pool.kernel, pool.stride, pool.padding, pool.ceil, counted)


def _resize(
    step: Step,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """(N, C, h, w) -> (N, C, h', w')"""
    mode, places = step.word("mode", "nearest"), step.word("coordinate_transformation_mode", "")
    if sizes is not None and sizes.numel():
        size = sizes.tolist()[-2:]
    elif scales is not None and scales.numel() == 4:
        size = [int(n * s) for n, s in zip(x.shape[-2:], scales.tolist()[-2:], strict=True)]
    else:
        raise step.cannot("sizes of some axes")
    if mode == "nearest" and places == "asymmetric":
        return F.interpolate(x, size=size)
    if mode == "linear" and places in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        corners = places == "align_corners"
        return F.interpolate(x, size=size, mode="bilinear", align_corners=corners)
    raise step.cannot(f"mode {mode} at {places}")


# Value by value ---------------------------------------------------------------------------------


def _gelu(step: Step, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=step.word("approximate", "none"))


def _clip(step: Step, x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
    return x.clamp(least, most)


def _hard_sigmoid(step: Step, x: Tensor) -> Tensor:
    return (step.real("alpha", 0.2) * x + step.real("beta", 0.5)).clamp(0, 1)


def _cast(step: Step, x: Tensor) -> Tensor:
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(step.whole("to", 1))
    return x.to(getattr(torch, str(kind)))


def _batch_norm(
    step: Step, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, eps=step.real("epsilon", 1e-5))


def _layer_norm(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = step.whole("axis", -1)
    return F.layer_norm(x, x.shape[axis:], weight, bias, step.real("epsilon", 1e-5))


Compute = Callable[..., Tensor | Sequence[Tensor]]  # a step, then its inputs
OPERATORS: dict[str, Compute] = {
    "Add": lambda step, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda step, *parts: torch.cat(parts, step.whole("axis", 0)),
    "Conv": _conv,
    "Div": lambda step, a, b: a / b,
    "Erf": lambda step, x: x.erf(),
    "Exp": lambda step, x: x.exp(),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda step, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda step, x: F.hardswish(x),
    "Identity": lambda step, x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda step, x: F.leaky_relu(x, step.real("alpha", 0.01)),
    "MatMul": lambda step, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda step, a, b: a * b,
    "Pad": _pad,
    "Pow": lambda step, a, b: a**b,
    "ReduceMean": _reduce_mean,
    "Relu": lambda step, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda step, x: x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda step, x: x.softmax(step.whole("axis", -1)),
    "Split": _split,
    "Sqrt": lambda step, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda step, a, b: a - b,
    "Tanh": lambda step, x: x.tanh(),
    "Transpose": lambda step, x: x.permute(step.wholes("perm", [])),
    "Unsqueeze": _unsqueeze,
}
