"""LiteRT's int8 files, converted from the same rounding in torch.

The converter reads torch's own operators for rounding, `quantized_decomposed`, so that every scale of
the file is the one that ONNX's has; maps are int8 there, each value 128 less. It is no quantizer of
its own: where nothing was fine-tuned, onnxruntime's ranges are written.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..runtimes import litert
from ..runtimes._request import Request
from . import Write
from ._fake import FakeQuantized, Layer, Map
from ._shared import module_of, quiet
from .onnx import quantized_of

package = "onnxruntime"
source = "onnx"
integer_weights = litert.integer_weights


class _Map(nn.Module):
    """A map's rounding, by the operators that the converter knows."""

    def __init__(self, of: Map):
        super().__init__()
        self.of = float(of.scale())
        self.zero = of.zero - 128

    def scale(self) -> Tensor:
        return torch.tensor(self.of)

    def forward(self, x: Tensor) -> Tensor:
        kind = self.of, self.zero, -128, 127, torch.int8
        operators = torch.ops.quantized_decomposed
        rounded = operators.quantize_per_tensor(x, *kind)
        return cast(Tensor, operators.dequantize_per_tensor(rounded, *kind))


class _Layer(nn.Module):
    """A layer's weights, by the operators that the converter knows; the bias it rounds itself."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    zero: Tensor

    def __init__(self, of: Layer, scale_of_map: Tensor):
        super().__init__()
        weight, bias = of(scale_of_map)
        scale = of.integers(scale_of_map).weight_scale
        self.axis, self.of_map = of.axis, of.of_map
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int64))

    def forward(self, scale_of_map: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        kind = self.scale, self.zero, self.axis, -127, 127, torch.int8
        operators = torch.ops.quantized_decomposed
        rounded = operators.quantize_per_channel(self.weight, *kind)
        return operators.dequantize_per_channel(rounded, *kind), self.bias


@torch.no_grad()
def _spelled(network: FakeQuantized) -> FakeQuantized:
    """A copy that rounds by the operators that the converter knows."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401  which defines them

    network = copy.deepcopy(network)
    scales = [network.map_of(cast(Layer, layer).of_map).scale() for layer in network.layers]
    pairs = zip(network.layers, scales, strict=True)
    network.layers = nn.ModuleList(_Layer(cast(Layer, layer), scale) for layer, scale in pairs)
    network.maps = nn.ModuleList(_Map(cast(Map, one)) for one in network.maps)
    return network.eval()


def _write(network: FakeQuantized, path: Path, facts: Mapping[str, object]) -> set[str]:
    """Write an int8 file that says these facts; its layers in int8.

    `ExportError` where the converter has left one of them in float.
    """
    example = torch.zeros(network.shape)
    request = Request(_spelled(network), example, path, outputs=network.outputs, metadata=facts)
    with quiet():
        litert.export(request)
    layers = {module_of(name) for name, _ in network.each_layer()}
    weights = litert.integer_weights(path)
    if len(weights) < len(layers):
        raise ExportError(
            f"{path}: LiteRT's converter made {len(weights)} of {len(layers)} layers int8"
        )
    return layers


def writer(float_file: Path, images: np.ndarray) -> Write:
    """By the pairs that onnxruntime's quantizer puts into its float file, calibrated once."""
    import onnx

    quantized = quantized_of(float_file, images, gates=True)
    floats = onnx.load(float_file).graph

    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        return _write(FakeQuantized(quantized(skip), floats), path, facts)

    return write


def computed(network: FakeQuantized) -> FakeQuantized:
    return network


def writer_of(network: FakeQuantized) -> Write:
    def write(skip: set[str], path: Path, facts: Mapping[str, object]) -> set[str]:
        return _write(network, path, facts)

    return write
