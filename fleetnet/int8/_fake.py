"""A network in int8 as torch computes it, with gradients: `FakeQuantized`.

It is made of the quantizer's own file: wherever that rounds, this does, with the file's scales. So
what is learned here is what the file computes, and nothing has to be matched afterwards; `to_proto`
puts it back. Values stay float32 and are rounded to those that int8 can hold.

    maps      uint8 with the zero that was calibrated; the scale is learned, as by LSQ (Esser et
              al., arXiv:1902.08153)
    weights   int8 with a scale for each output channel, which follows from the weights: the finest
              at which no CPU overflows 16 bits (`runtimes/_int8.py`). It cannot be learned: a finer
              one would cut two large weights off at 127 each, and their products would overflow
    biases    int32

Rounding has no gradient of its own; that of the value before it is taken (Bengio et al.,
arXiv:1308.3432). All that is learned is learned as a change in steps of int8, from 0 on, so that
one rate serves wide layers and narrow ones.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..merged import BranchSum
from ..runtimes import _int8
from ._equalize import Factors, Scales
from ._operators import OPERATORS, Step, steps_of
from ._shared import module_of
from .onnx import CLIPPING, WITH_WEIGHTS

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

QUANTIZED = "_quantized"  # what the quantizer adds to the name of a weight
LARGEST = 127  # of a weight; a map has 0 to 255
LARGEST_BIAS = 2**31 / 1.0001
BIAS_STEPS = 64  # a bias changes as its layer's output does if a weight changes by one step here


def safe_scales(weight: Tensor) -> Tensor:
    """`runtimes._int8.safe_scales` of each output channel: (channels, n) -> (channels,), float64."""
    return torch.from_numpy(_int8.safe_scales(weight.detach().numpy()))


class _ToSteps(torch.autograd.Function):
    """A map rounded to 256 steps, with gradients for the map and the scale.

    A value within the range moves with what it was before; the scale's gradient is, in steps, what
    rounding adds to it, or beyond the range the end of that.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero: int
    ) -> Tensor:
        at = torch.tensor(zero, dtype=torch.int32)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale.detach(), at, 0, 255)
        ctx.save_for_backward(x, rounded, scale)
        ctx.zero = zero  # type: ignore[attr-defined]
        return rounded

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        x, rounded, scale = cast(tuple[Tensor, ...], ctx.saved_tensors)  # type: ignore[attr-defined]
        zero = cast(int, ctx.zero)  # type: ignore[attr-defined]
        within = ((x >= -zero * scale) & (x <= (255 - zero) * scale)).to(x.dtype)
        of_x = gradient * within
        of_scale = ((rounded - x * within) * gradient).sum() / scale
        return of_x, of_scale, None


class _Nearest(torch.autograd.Function):
    """Values as whole multiples of a unit, in the unit's dtype; the gradient is that of no rounding."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, unit: Tensor) -> Tensor:
        return (values.double() / unit.double()).round().to(unit.dtype) * unit

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Map(nn.Module):
    """The range of a feature map: 256 steps."""

    first: Tensor

    def __init__(self, scale: Tensor, zero: int):
        super().__init__()
        self.zero = zero
        self.register_buffer("first", scale)
        self.change = nn.Parameter(torch.zeros(()))  # 1: the range grows by one step of 127

    def scale(self) -> Tensor:
        return self.first * (self.change / LARGEST).exp()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _ToSteps.apply(x, self.scale(), self.zero))


@dataclass(frozen=True)
class Stored:
    """Which initializers of the file hold integers and their scale."""

    values: str
    scale: str


@dataclass(frozen=True)
class Integers:
    """A layer as the file holds it."""

    weight: Tensor  # int8
    weight_scale: Tensor  # float32, (channels,)
    bias: Tensor | None  # int32, (channels,)
    bias_scale: Tensor  # float32, (channels,)


class Changed(nn.Module):
    """A kernel that was there, and what it learned: weight and bias in float."""

    first: Tensor
    first_bias: Tensor | None
    unit: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, unit: Tensor):
        super().__init__()
        self.register_buffer("first", weight)
        self.register_buffer("first_bias", bias)
        self.register_buffer("unit", unit)  # a step of int8, in a shape that goes with the weight
        self.change = nn.Parameter(torch.zeros_like(weight))  # in units
        self.bias_change = None if bias is None else nn.Parameter(torch.zeros_like(bias))

    def forward(self, scale_of_map: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = self.first + self.unit * self.change
        if self.first_bias is None or self.bias_change is None:
            return weight, None
        unit = BIAS_STEPS * scale_of_map * self.unit.flatten()
        return weight, self.first_bias + unit * self.bias_change


class Merged(nn.Module):
    """A kernel that is merged from branches, which are what learns.

    While their norms learn, it follows from the statistics of the batch, as in training.
    `divided` are the factors of cross-layer equalization by which what it makes is divided, (O,);
    `multiplied` those by which what it takes was divided, (C,).
    """

    divided: Tensor
    multiplied: Tensor

    def __init__(self, branches: BranchSum, divided: Tensor, multiplied: Tensor):
        super().__init__()
        self.branches = branches
        self.register_buffer("divided", divided)
        self.register_buffer("multiplied", multiplied)

    def forward(self, scale_of_map: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = None if x is None else x * self.multiplied.view(-1, 1, 1)
        weight, bias = self.branches.merged_kernel(x)
        groups = self.branches.geometry().groups
        taken = self.multiplied.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
        factors = taken.flatten(0, 1) / self.divided[:, None]  # (O, C / groups)
        return (weight * factors[:, :, None, None]).float(), (bias / self.divided).float()


class Layer(nn.Module):
    """Weight and bias of a convolution or linear layer, rounded as the file holds them."""

    def __init__(self, weight: Tensor, bias: Tensor | None, axis: int, of_map: str):
        super().__init__()
        self.axis, self.of_map = axis, of_map  # of the output channels; the map that it takes
        unit = self._along(safe_scales(self._rows(weight)).to(weight), weight)
        self.kernel: nn.Module = Changed(weight, bias, unit)

    def _rows(self, weight: Tensor) -> Tensor:
        """(channels, n)"""
        return weight.movedim(self.axis, 0).flatten(1)

    def _along(self, scale: Tensor, like: Tensor) -> Tensor:
        """(channels,) in the shape that goes with a weight."""
        return scale.view([-1 if axis == self.axis else 1 for axis in range(like.ndim)])

    @torch.no_grad()
    def scale(self, weight: Tensor, bias: Tensor | None, scale_of_map: Tensor) -> Tensor:
        """Of the weights, (channels,): coarser where the bias would leave 32 bits."""
        scale = safe_scales(self._rows(weight))
        if bias is not None:
            scale = torch.maximum(scale, bias.abs().double() / LARGEST_BIAS / scale_of_map)
        return scale.to(weight)

    def forward(
        self, scale_of_map: Tensor, x: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as int8 and int32 hold them; x (N, C, h, w) is what the layer takes."""
        scale_of_map = scale_of_map.detach()
        weight, bias = self.kernel(scale_of_map, x)
        scale = self.scale(weight, bias, scale_of_map)
        rounded = torch.fake_quantize_per_channel_affine(
            weight, scale, torch.zeros_like(scale, dtype=torch.int32), self.axis, -LARGEST, LARGEST
        )
        if bias is None:
            return rounded, None
        return rounded, cast(Tensor, _Nearest.apply(bias, scale_of_map * scale))

    @torch.no_grad()
    def integers(self, scale_of_map: Tensor) -> Integers:
        rounded, bias = self(scale_of_map)
        exact, exact_bias = self.kernel(scale_of_map, None)
        scale = self.scale(exact, exact_bias, scale_of_map)
        weight = (rounded / self._along(scale, rounded)).round().to(torch.int8)
        unit = scale_of_map * scale
        whole = None if bias is None else (bias.double() / unit.double()).round().to(torch.int32)
        return Integers(weight, scale, whole, unit)

    @torch.no_grad()
    def put(self, kernel: Merged, name: str) -> None:
        """Let the branches of the layer of this name learn; `ExportError` for those of another."""
        before, after = self.kernel(torch.ones(()), None)[0], kernel(torch.ones(()), None)[0]
        if (after - before).abs().max() > 1e-3 * before.abs().max():
            raise ExportError(f"the branches of {name} do not merge to its kernel in the file")
        self.kernel = kernel


class FakeQuantized(nn.Module):
    """A network of the quantizer's, in torch: pictures (N, C, H, W) -> outputs by name."""

    def __init__(self, network: "ModelProto", floats: "GraphProto"):
        """`network` has pairs of QuantizeLinear and DequantizeLinear; `floats` are its weights
        before rounding.

        Raises `ExportError` for what cannot be trained: an operator that torch is not told how to
        compute, or weights that two layers share.
        """
        super().__init__()
        self.proto = network
        image = network.graph.input[0].type.tensor_type.shape.dim
        self.shape = [dimension.dim_value for dimension in image]  # (1, C, H, W)
        self.outputs = [output.name for output in network.graph.output]
        self.constants = _tensors(network.graph)
        every = steps_of(network.graph)
        self.makers = {name: step for step in every for name in step.outputs}
        self.steps = [step for step in every if not self._is_constant(step)]
        self.maps, self.map_names = nn.ModuleList(), dict[str, int]()  # by the name of the scale
        self.layers, self.layer_names = nn.ModuleList(), dict[str, int]()  # by the step's name
        self.stored: list[tuple[Stored, Stored | None]] = []  # of each layer
        # maps that a Relu or Clip makes, where the quantizer let a range do that
        makers = {name: node.op_type for node in floats.node for name in node.output}
        self.cut_off = {
            name
            for name, step in self.makers.items()
            if makers.get(name, step.operator) in CLIPPING and step.operator not in CLIPPING
        }
        weights = _tensors(floats)
        for step in self.steps:
            if step.operator == "QuantizeLinear":
                self._add_map(step)
            elif step.operator in WITH_WEIGHTS and self._integers_of(step, 1):
                self._add_layer(step, weights)
            elif step.operator not in OPERATORS and step.operator != "DequantizeLinear":
                raise ExportError(
                    f"int8 in torch, by which networks are fine-tuned and written for LiteRT, does "
                    f"not know how to compute {step.operator} ({step.name}); for onnx and openvino "
                    "fleetnet quantize writes such a network without --finetune"
                )
        self.last_uses = self._find_last_uses()
        # maps, by the names that they have when they are rounded, that are not rounded after all
        self.passed: set[str] = set()

    def _is_constant(self, step: Step) -> bool:
        """Whether it gives a constant as float, which is computed now."""
        if step.operator != "DequantizeLinear" or step.inputs[0] not in self.constants:
            return False
        values, scale, zero = (self.constants[name] for name in step.inputs)
        if scale.ndim:
            axis = step.whole("axis", 1)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            scale, zero = scale.view(shape), zero.view(shape)
        self.constants[step.outputs[0]] = (values.to(scale) - zero) * scale
        return True

    def _add_map(self, step: Step) -> None:
        _, scale, zero = step.inputs
        if scale in self.map_names:
            return
        at = self.constants[zero]
        if at.dtype != torch.uint8 or at.numel() != 1:
            raise step.cannot(f"a map of {at.dtype} or several scales")
        self.map_names[scale] = len(self.maps)
        self.maps.append(Map(self.constants[scale].reshape(()).clone(), int(at)))

    def _integers_of(self, step: Step, index: int) -> Stored | None:
        """Where the weight (1) or bias (2) of a layer is stored, if in integers."""
        maker = self.makers.get(step.inputs[index]) if index < len(step.inputs) else None
        if maker is None or maker.operator != "DequantizeLinear":
            return None
        values, scale = maker.inputs[:2]
        return Stored(values, scale) if values in self.constants else None

    def _add_layer(self, step: Step, floats: Mapping[str, Tensor]) -> None:
        stored, bias = cast(Stored, self._integers_of(step, 1)), self._integers_of(step, 2)
        if any(stored == other for other, _ in self.stored):
            raise step.cannot("the weights of another layer: it knows networks that share none")
        of_map = self.makers[step.inputs[0]].inputs[1]  # behind the pair that rounds the map
        axis = self.makers[step.inputs[1]].whole("axis", 1)
        whole = None if bias is None else _before(bias, floats)
        layer = Layer(_before(stored, floats), whole, axis, of_map)
        self.layer_names[step.name] = len(self.layers)
        self.layers.append(layer)
        self.stored.append((stored, bias))

    def _find_last_uses(self) -> dict[int, list[str]]:
        """The tensors that no step after this one takes, by the number of the step."""
        last = {name: i for i, step in enumerate(self.steps) for name in step.inputs}
        made = {name for step in self.steps for name in step.outputs}
        uses: dict[int, list[str]] = {}
        for name, i in last.items():
            if name in made and name not in self.outputs:
                uses.setdefault(i, []).append(name)
        return uses

    def map_of(self, scale: str) -> Map:
        return cast(Map, self.maps[self.map_names[scale]])

    def each_layer(self) -> Iterator[tuple[str, Layer]]:
        """Layers with the names of their steps, "backbone.stem/Conv"."""
        for name, index in self.layer_names.items():
            yield name, cast(Layer, self.layers[index])

    def put_branches(self, sums: Mapping[str, BranchSum], scales: Scales) -> None:
        """Let the branches of these modules learn in place of the kernels that they merge to.

        `scales` are those of equalization. Raises `ExportError` where they merge to other kernels.
        """
        for name, layer in self.each_layer():
            module = module_of(name)
            if module in sums:
                branches = copy.deepcopy(sums[module]).requires_grad_()
                conv = branches.geometry()
                ones = Factors(torch.ones(conv.in_channels), torch.ones(conv.out_channels))
                factors = scales.get(module, ones)
                layer.put(Merged(branches, factors.divided, factors.multiplied), module)

    def freeze_norms(self) -> None:
        """Let the norms of branches learn no more."""
        for layer in self.layers:
            cast(Layer, layer).kernel.eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tensors = {"image": image}
        for i, step in enumerate(self.steps):
            made = self._computed(step, tensors)
            several = [made] if isinstance(made, Tensor) else made
            tensors.update(zip(step.outputs, several, strict=True))
            for name in self.last_uses.get(i, ()):
                del tensors[name]
        for name in self.outputs:
            if name in self.constants:  # the same for every picture, as anchors are
                constant = self.constants[name]
                tensors[name] = constant.expand(len(image), *constant.shape[1:])
        return {name: tensors[name] for name in self.outputs}

    def _computed(self, step: Step, tensors: Mapping[str, Tensor]) -> "Tensor | list[Tensor]":
        if step.outputs[0] in self.passed:
            return tensors[step.inputs[0]]
        if step.operator == "QuantizeLinear":
            return self.map_of(step.inputs[1])(tensors[step.inputs[0]])
        if step.operator == "DequantizeLinear":  # it is rounded already
            return tensors[step.inputs[0]]
        inputs = [tensors.get(name, self.constants.get(name)) for name in step.inputs]
        if step.name in self.layer_names:
            layer = cast(Layer, self.layers[self.layer_names[step.name]])
            weight, bias = layer(self.map_of(layer.of_map).scale(), inputs[0])
            inputs = [inputs[0], weight] if bias is None else [inputs[0], weight, bias]
        return cast("Tensor | list[Tensor]", OPERATORS[step.operator](step, *inputs))

    def maps_between(self) -> set[str]:
        """The rounded maps, by their names, that no layer takes as they are.

        Outputs are not among them, and what takes the place of a ReLU or a Clip is not.
        """
        readers: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in step.inputs:
                readers.setdefault(name, []).append(step)

        def is_taken(rounding: Step) -> bool:
            pairs = readers.get(rounding.outputs[0], [])
            is_output = any(pair.outputs[0] in self.outputs for pair in pairs)
            return is_output or any(
                reader.name in self.layer_names
                for pair in pairs
                for reader in readers.get(pair.outputs[0], [])
            )

        return {
            step.outputs[0]
            for step in self.steps
            if step.operator == "QuantizeLinear"
            and step.inputs[0] not in self.cut_off
            and not is_taken(step)
        }

    def without(self, maps: set[str]) -> "FakeQuantized":
        """The same network, with the same weights, which does not round these maps."""
        other = copy.copy(self)
        other.passed = maps
        return other

    @torch.no_grad()
    def to_proto(self) -> "ModelProto":
        """The file with what was learned, which computes what this does."""
        import onnx

        values: dict[str, Tensor | None] = {}
        for name in self.map_names:
            values[name] = self.map_of(name).scale()
        for layer, (weight, bias) in zip(self.layers, self.stored, strict=True):
            own = cast(Layer, layer)
            integers = own.integers(self.map_of(own.of_map).scale())
            values |= {weight.values: integers.weight, weight.scale: integers.weight_scale}
            if bias is not None:
                values |= {bias.values: integers.bias, bias.scale: integers.bias_scale}
        proto = copy.deepcopy(self.proto)
        for tensor in proto.graph.initializer:
            value = values.get(tensor.name)
            if value is not None:
                array = value.numpy().reshape(tuple(tensor.dims))
                tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(order="C"), tensor.name))
        _leave_out(proto.graph, self.passed)
        return proto


def _leave_out(graph: "GraphProto", maps: set[str]) -> None:
    """Take the pairs out that round these maps."""
    before: dict[str, str] = {}
    pairs = []
    for node in graph.node:
        if node.output[0] in maps:
            before[node.output[0]] = node.input[0]
            pairs.append(node)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in before:
            before[node.output[0]] = before[node.input[0]]
            pairs.append(node)
    for node in pairs:
        graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = before.get(name, name)


def _tensors(graph: "GraphProto") -> dict[str, Tensor]:
    """The constants of a graph by name."""
    import onnx

    return {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }


def _before(stored: Stored, floats: Mapping[str, Tensor]) -> Tensor:
    """What was rounded; `ExportError` where the quantizer has split it up."""
    name = stored.values.removesuffix(QUANTIZED)
    if name not in floats:
        raise ExportError(f"int8 in torch does not know {name}, which layers may share")
    return floats[name]
