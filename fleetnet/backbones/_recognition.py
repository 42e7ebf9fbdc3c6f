"""How families, and heads, look at the names and shapes of a state: parts of their `recognize`.

A state is of a family if it has names that only this family's blocks have. The variant is the one
most of whose widths and depths the state has, so that a damaged state is still called what it was:
whether all of it fits is for `weights` to say.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..reparam import Form


def has(state: Iterable[str], pattern: str) -> bool:
    """Whether the name of any tensor begins with what fits a pattern."""
    return any(re.match(pattern, key) for key in state)


def form_by_norms(state: Iterable[str], part: str) -> Form:
    """The form of a part of a model whose batch norms all collapse."""
    norms = (key for key in state if key.startswith(part) and key.endswith(".running_mean"))
    return "deploy" if next(norms, None) is None else "multi-branch"


def sizes(state: Mapping[str, Tensor], pattern: str, dim: int = 0) -> dict[int, int]:
    """How large tensors are in one dimension, by the number in their names: that of a stage.

    The pattern fits their whole names and has the number as its group.
    """
    by_stage: dict[int, int] = {}
    for key, value in state.items():
        match = re.fullmatch(pattern, key)
        if match and value.ndim > dim:
            by_stage[int(match[1])] = value.shape[dim]
    return by_stage


def depths(state: Iterable[str], pattern: str) -> dict[int, int]:
    """How many parts each stage has; the pattern's groups are the numbers of stage and part."""
    largest: dict[int, int] = {}
    for key in state:
        if match := re.match(pattern, key):
            stage, part = int(match[1]), int(match[2])
            largest[stage] = max(largest.get(stage, 0), part + 1)
    return largest


def closest(measured: Sequence[int | None], of_variants: Mapping[str, Sequence[int]]) -> str:
    """The variant that has most of the measured numbers at their positions; of equals the first."""

    def agreeing(variant: str) -> int:
        pairs = zip(measured, of_variants[variant], strict=True)
        return sum(one == other for one, other in pairs)

    return max(of_variants, key=agreeing)


def output_count(state: Mapping[str, Tensor], *layers: str) -> int | None:
    """The number of outputs, such as classes, of the first of some layers that is in a state."""
    for layer in layers:
        weight = state.get(f"{layer}.weight")
        if weight is not None and weight.ndim:
            return weight.shape[0]
    return None


def class_count(outputs: int | None, anchors: int, beside: int) -> int | None:
    """The classes of a layer that has an output for each, and some beside, at every anchor."""
    each, rest = divmod(outputs or 0, anchors)
    return each - beside if rest == 0 and each > beside else None
