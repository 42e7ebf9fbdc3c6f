"""Parts of a model that are not trained, by patterns of their names."""

from fnmatch import fnmatchcase
from typing import cast

from torch import nn

from ..errors import UsageError, suggest
from ..tasks import Model


def freeze(model: nn.Module, patterns: str) -> list[nn.Module]:
    """Stop the training of modules and parameters whose name fits a pattern; their batch norms.

    `patterns` are globs of names such as "backbone.stages.[0-2].*", several separated by commas;
    `*` stands for any text, dots too, and a module stands for all that is in it. The batch norms
    have to stay in eval mode, so that their statistics stay as well: put them there again whenever
    the model was put into training mode. Raises `UsageError` for a pattern that nothing fits, or if
    nothing is left to train.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    del modules[""]
    frozen: set[str] = set()  # names of modules
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        of_modules = [name for name in modules if fnmatchcase(name, pattern)]
        of_parameters = [name for name in parameters if fnmatchcase(name, pattern)]
        if not of_modules and not of_parameters:
            raise UsageError(
                f"freeze is {pattern!r}, which no module or parameter fits: {_near(pattern, model)}"
            )
        frozen.update(of_modules)
        for name in of_parameters:
            parameters[name].requires_grad_(False)
        for name in of_modules:
            modules[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError(f"freeze is {patterns!r}, which leaves nothing to train")
    inside = {
        name
        for name in modules
        if any(name == other or name.startswith(f"{other}.") for other in frozen)
    }
    return [
        modules[name] for name in modules if name in inside and isinstance(modules[name], _NORM)
    ]


_NORM = nn.modules.batchnorm._BatchNorm


def freeze_norms(model: Model) -> None:
    """Batch norms of the backbone as in eval mode, and not trained."""
    for module in cast(nn.Module, model.backbone).modules():
        if isinstance(module, _NORM):
            module.eval().requires_grad_(False)


def _near(pattern: str, model: nn.Module) -> str:
    """Names to choose from: those beside the first part of the pattern that is none."""
    module, path = model, ""
    for part in pattern.split("."):
        children = dict(module.named_children())
        if part not in children:
            break
        module, path = children[part], f"{path}{part}."
    return suggest(
        pattern, [f"{path}{name}.*" for name, _ in module.named_children()] or [f"{path}*"]
    )
