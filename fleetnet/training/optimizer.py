"""What changes the weights: parameter groups, the optimizer, clipped gradients, the average."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..errors import UsageError, suggest
from .config import TrainConfig

_SHORT = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
SMALLEST_NORM = 1e-3  # of a unit's weights, for adaptive clipping: zeros may grow too
_BLOCK = re.compile(r"backbone\.(?:model\.)?\w+\.\d+(?:\.(?:[a-z]\w*\.)?\d+)?\.")


def layers_of(model: nn.Module) -> dict[str, int]:
    """How many blocks of the backbone come before that of each parameter, by its name.

    A block is what two numbers in a name stand for, such as backbone.stages.2.blocks.3. What is in
    no block counts with the one before it, and the head comes after all of them.
    """
    blocks: dict[str, int] = {}
    layers: dict[str, int] = {}
    for name, _ in model.named_parameters():
        block = _BLOCK.match(name)
        if block is not None:
            blocks.setdefault(block.group(), len(blocks) + 1)
        layers[name] = len(blocks) if block is None else blocks[block.group()]
    top = len(blocks) + 1
    return {name: top if name.startswith("head.") else layer for name, layer in layers.items()}


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    head_lr: float = 1.0,
    *,
    decay_norms: bool = False,
    layer_decay: float = 1.0,
) -> list[dict[str, object]]:
    """Trainable parameters, those of norms and biases (vectors) without weight decay.

    With `decay_norms` these decay too. `lr_multiple` of a group is 1, or `head_lr` for parameters
    of the head, times `layer_decay` for each block that comes after (arXiv:2106.08254).
    """
    layers = layers_of(model) if layer_decay < 1 else {}
    top = max(layers.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {
        (1.0, weight_decay): [],
        (1.0, 0.0): [],
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        multiple = head_lr if name.startswith("head.") else 1.0
        multiple *= layer_decay ** (top - layers.get(name, top))
        decay = weight_decay if decay_norms or parameter.ndim > 1 else 0.0
        groups.setdefault((multiple, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_multiple": multiple, "decays": decay}
        for (multiple, decay), parameters in groups.items()
    ]


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the settings, over all parameters that are trained."""
    groups = parameter_groups(
        model,
        config.weight_decay,
        config.head_lr,
        decay_norms=config.decay_norms,
        layer_decay=config.layer_decay,
    )
    options: dict[str, Any] = dict(config.optimizer_options)
    if config.optimizer == "sgd":
        options = {"momentum": config.momentum, "nesterov": config.momentum > 0} | options
    if config.optimizer == "adamw":
        options = {"betas": (config.momentum, 0.999)} | options
    kind: Callable[..., torch.optim.Optimizer] = _class_of(config.optimizer)
    if _may_be_fused(kind, options):
        options["fused"] = True
    return kind(groups, lr=config.lr, **options)


def _may_be_fused(kind: Callable[..., object], options: Mapping[str, object]) -> bool:
    """Whether an optimizer can change all weights in one go, and no option asks for another way."""
    others = "foreach", "fused", "differentiable", "sparse"
    of_torch = kind.__module__.startswith("torch.")
    takes_it = "fused" in inspect.signature(kind).parameters
    return of_torch and takes_it and not any(name in options for name in others)


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Bring what an optimizer keeps of each weight into the weight's own memory format.

    A fused one reads them side by side; a state that was loaded may have another format.
    """
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def check_optimizer(config: TrainConfig) -> None:
    """`UsageError` for an optimizer that there is not, and for options that it does not take."""
    kind = _class_of(config.optimizer)
    allowed = [
        name
        for name in inspect.signature(kind).parameters
        if name not in ("self", "params", "lr", "weight_decay")
    ]
    for name in config.optimizer_options:
        if name not in allowed:
            raise UsageError(
                f"optimizer_options.{name}: {config.optimizer} has no such option: "
                f"{suggest(name, allowed)}"
                + ("; give weight_decay itself" if name == "weight_decay" else "")
            )
    try:
        optimizer_of(nn.Linear(1, 1), config).step()
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"optimizer {config.optimizer} with {dict(config.optimizer_options)} cannot be used: "
            f"{error}"
        ) from error


def _class_of(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimizer: sgd, adamw, or by a dotted name such as timm.optim.Lamb."""
    if name in _SHORT:
        return _SHORT[name]
    place, _, kind = name.rpartition(".")
    try:
        module = importlib.import_module(place)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(
            f"optimizer is {name!r}, but {place!r} cannot be imported: {error}"
        ) from error
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    if kind not in classes:
        raise UsageError(f"optimizer is {name!r}: {suggest(kind, classes, place)}")
    return classes[kind]


# Gradients ----------------------------------------------------------------------------------------


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], largest: float) -> None:
    """Scale gradients down where they are large beside their weights (arXiv:2102.06171).

    Of each unit, that is each output channel of a weight and the whole of a vector, the norm of the
    gradient becomes at most `largest` times the norm of the weights.
    """
    for parameter in parameters:
        if parameter.grad is None:
            continue
        weights, gradient = _unit_norms(parameter), _unit_norms(parameter.grad)
        limit = weights.clamp(min=SMALLEST_NORM) * largest
        parameter.grad.mul_((limit / gradient.clamp(min=1e-6)).clamp(max=1.0))


def _unit_norms(values: Tensor) -> Tensor:
    """The norm of each unit, of a shape that goes with the values: (out, 1, ...) or ()."""
    if values.ndim <= 1:
        return torch.linalg.vector_norm(values)
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)


# The average --------------------------------------------------------------------------------------


def average_of(model: nn.Module, decay: float, *, warmup: bool = True) -> "Average":
    """A copy of a model that becomes the average of its weights and buffers."""
    return Average(model, decay, warmup=warmup)


class Average(AveragedModel):
    """torch's average of a model, which looks for the model's tensors once and not in each step.

    To look for them takes longer than to average them.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool):
        super().__init__(model, use_buffers=True)
        self.decay, self.warmup = decay, warmup
        self.places = _places_of(self.module), _places_of(model)
        self.source = (model,)  # in a tuple, so that it is no part of this module

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move each tensor toward that of the model; the first time become the same."""
        if model is not self.source[0]:
            self.places, self.source = (self.places[0], _places_of(model)), (model,)
        averages, current = (_tensors_at(places) for places in self.places)
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, current)
        else:
            move_averages(self.decay, averages, current, self.n_averaged, self.warmup)
        self.n_averaged += 1


# The tensors of a module by name, and the name of one of them: a buffer may be another one later.
Place = tuple[Mapping[str, Tensor | None], str]


def _places_of(model: nn.Module) -> list[Place]:
    """Where the parameters and buffers of a model are to be found, each once."""
    places: dict[int, Place] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    places.setdefault(id(tensor), (tensors, name))
    return list(places.values())


def _tensors_at(places: Sequence[Place]) -> list[Tensor]:
    return [cast(Tensor, tensors[name]) for tensors, name in places]


@torch.no_grad()
def move_averages(
    decay: float,
    averages: Sequence[Tensor],
    current: Sequence[Tensor],
    count: Tensor | int,
    warmup: bool = True,
) -> None:
    """Move each average toward the current value, which is the `count`-th after the first.

    With `warmup` early steps count more, so that the start is soon forgotten.
    """
    if warmup:
        decay = min(decay, (1 + int(count)) / (10 + int(count)))
    floats: tuple[list[Tensor], list[Tensor]] = [], []
    counters: tuple[list[Tensor], list[Tensor]] = [], []  # of batch norms
    for average, value in zip(averages, current, strict=True):
        kind = floats if average.is_floating_point() else counters
        kind[0].append(average)
        kind[1].append(value.to(average))
    if floats[0]:
        torch._foreach_lerp_(*floats, 1 - decay)
    if counters[0]:
        torch._foreach_copy_(*counters)
