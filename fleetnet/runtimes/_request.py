"""What `export` of a runtime is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ._sizes import Sizes


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class Request:
    """A model, as it is, in a file at `path`.

    What a format has no place for, its runtime passes over. What it cannot have (an open number of
    images, say), its runtime refuses with a `UsageError`.
    """

    model: nn.Module  # in eval mode
    example: Tensor  # (N, C, H, W): the size of the file, unless it is left open by `sizes`
    path: Path
    outputs: Sequence[str] = ("logits",)  # the names of the outputs, in their order
    precision: str = "fp32"  # one of those in the runtime's `tolerances`
    opset: int | None = None  # the operator set; None for the runtime's `default_opset`
    dynamic: bool = False  # whether the number of images is left open
    sizes: Sizes | None = None  # height and width left open, of a runtime with OPEN_SIZE
    products: bool = True  # long kernels of ParC as products of matrices, where it gains by them
    metadata: Mapping[str, object] = field(default_factory=dict)  # JSON, to be read from the file

    @property
    def traced(self) -> Tensor:
        """The example for torch.export: two images where N is open, since a size of 1 is a constant."""
        if self.dynamic and len(self.example) == 1:
            return torch.cat([self.example, self.example])  # (2, C, H, W)
        return self.example
