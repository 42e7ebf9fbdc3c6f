"""One layer for another in anybody's network: which layers can give way, which are meant, and the swap.

    sites     the layers that are of use, each with the shapes that it sees while an image of one
              size runs through the network
    obstacle  why a layer cannot give way; "" where it can
    where     which of them do: patterns of module names, or a function of name and module
    replace   all of these, or an error and no change

What takes the place of a layer is a `Kind`; `parc.py` and `pconv.py` have one each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from .errors import ModelError, UsageError, suggest

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
Size = int | tuple[int, int]  # of an image: both sides, or (height, width)
USUAL_SIZE = 224
# Methods of modules that are collapsed as a whole, in ours and in timm's networks: they read the
# weights of the convolutions that they hold.
COLLAPSING = "fuse", "fuse_at", "reparameterize", "switch_to_deploy"
CANNOT_RUN = (RuntimeError, AssertionError, ValueError, TypeError)
FEW = 3  # reasons in an error message


@dataclass(frozen=True)
class Site:
    """A layer of a network, and the shapes that it sees with a batch of one image."""

    name: str
    layer: nn.Module
    parents: tuple[nn.Module, ...]  # what holds it, the network first
    runs: int  # how often, in one pass of the network
    takes: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """What can take the place of a layer."""

    name: str
    # what it can replace, in words
    replaces: str
    # whether a layer is looked at at all; all others are passed over in silence
    concerns: Callable[[nn.Module], bool]
    # why a layer cannot be replaced; "" where it can
    obstacle: Callable[[Site], str]
    layer_for: Callable[[Site], nn.Module]


def replace(
    model: nn.Module,
    where: Where,
    kind: Kind,
    size: Size | None = None,
    forward: Callable[[Tensor], object] | None = None,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Put a new layer in the place of each that `where` names, in place; returns their names.

    `size` is that of the images the network will be trained with: unless given, what timm says of
    the network, else 224. `forward` runs the network, itself unless given; `names` are those by
    which `where` and the messages call modules, where these are not the network's own.
    """
    image = _example(model, size)
    sites = {
        (names or {}).get(site.name, site.name): site
        for site in _sites(model, kind, forward or model, image)
    }
    obstacles = {name: _obstacle(site, kind) for name, site in sites.items()}
    chosen = _Choice(kind, sites, obstacles).of(where)
    layers = {sites[name].name: _like(kind, sites[name]) for name in chosen}
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
    return chosen


# ---- which layers there are


def _example(model: nn.Module, size: Size | None) -> Tensor:
    """An image (1, C, H, W) of the size asked for, else of that which timm says of the network."""
    if size is None:
        of_timm = getattr(model, "pretrained_cfg", None) or {}
        height, width = of_timm.get("input_size", (3, USUAL_SIZE, USUAL_SIZE))[1:]
    else:
        height, width = (size, size) if isinstance(size, int) else size
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convs, None)
    if first is None:
        return torch.zeros(1, 3, height, width)
    like = first.weight
    return torch.zeros(1, first.in_channels, height, width, device=like.device, dtype=like.dtype)


def _sites(
    model: nn.Module, kind: Kind, forward: Callable[[Tensor], object], image: Tensor
) -> list[Site]:
    """The layers that a kind concerns, in the order of the network."""
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                shapes[name].append((tuple(inputs[0].shape), tuple(output.shape)))

        shapes[name] = []
        return layer.register_forward_hook(record)

    modules = dict(model.named_modules())
    concerned = {name: layer for name, layer in modules.items() if name and kind.concerns(layer)}
    hooks = [watch(name, layer) for name, layer in concerned.items()]
    try:
        with _predicting(model), torch.no_grad():
            forward(image)
    except CANNOT_RUN as error:
        height, width = image.shape[2:]
        raise ModelError(
            f"the network does not run with an image of {height}x{width}, which tells the sizes of "
            f"its features: {error}. Give the size that it takes, size=(HEIGHT, WIDTH)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    sites = []
    for name, layer in concerned.items():
        takes, gives = shapes[name][0] if shapes[name] else ((), ())
        parents = _parents(name, modules)
        sites.append(Site(name, layer, parents, len(shapes[name]), takes, gives))
    return sites


@contextmanager
def _predicting(model: nn.Module) -> Iterator[None]:
    """In eval mode meanwhile, so that a run leaves the statistics of batch norms alone."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True


def _parents(name: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, ...]:
    parts = name.split(".")
    return tuple(modules[".".join(parts[:depth])] for depth in range(len(parts)))


# ---- why a layer cannot be replaced


def _obstacle(site: Site, kind: Kind) -> str:
    if site.runs != 1:
        return f"it runs {site.runs} times in one pass of the network"
    for parent in site.parents[1:]:
        if any(callable(getattr(type(parent), method, None)) for method in COLLAPSING):
            return f"it is a part of {type(parent).__name__}, which is collapsed as a whole"
    return kind.obstacle(site)


def is_spatial(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that sees more than one pixel."""
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1


def is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels


def obstacle_of_conv(site: Site) -> str:
    """Why no other layer can stand for a convolution: one that keeps its channels, at any stride."""
    conv = cast(nn.Conv2d, site.layer)
    if conv.in_channels != conv.out_channels:
        return f"it makes {conv.out_channels} channels of {conv.in_channels}"
    if conv.groups != 1 and not is_depthwise(conv):
        return f"its {conv.groups} groups have {conv.in_channels // conv.groups} channels each"
    stride = stride_of(conv)
    of_stride = tuple(-(-side // step) for side, step in zip(site.takes[2:], stride, strict=True))
    if site.gives[2:] != of_stride:
        sizes = ["x".join(map(str, shape[2:])) for shape in (site.takes, site.gives)]
        return f"it makes {sizes[1]} of {sizes[0]} at stride {stride}"
    return ""


def stride_of(conv: nn.Conv2d) -> tuple[int, int]:
    return cast(tuple[int, int], tuple(conv.stride))


def has_plain_weights(conv: nn.Conv2d) -> bool:
    """Whether a convolution computes with its weights as they are; some of timm's standardize them."""
    return type(conv) is nn.Conv2d or type(conv).__name__ == "Conv2dSame"


# ---- which are meant


@dataclass(frozen=True)
class _Choice:
    """The sites of a network by name, with why each cannot be replaced ("": it can)."""

    kind: Kind
    sites: Mapping[str, Site]
    obstacles: Mapping[str, str]

    @property
    def free(self) -> list[str]:
        return [name for name in self.sites if not self.obstacles[name]]

    def of(self, where: Where) -> list[str]:
        """The names that `where` chooses, in the order of the network."""
        if not self.free:
            raise ModelError(f"nothing in this network can become {self.kind.name}: {self._why()}")
        if callable(where):
            chosen = [name for name in self.free if where(name, self.sites[name].layer)]
            if not chosen:
                raise UsageError(
                    f"where: the function is false for all {len(self.free)} layers that can become "
                    f"{self.kind.name}: {_few(self.free)}"
                )
            return chosen
        patterns = [where] if isinstance(where, str) else list(where)
        meant = {name for pattern in patterns for name in self._matching(pattern)}
        if not meant:
            raise UsageError(f"where: no pattern was given; such layers are {_few(self.free)}")
        return [name for name in self.free if name in meant]

    def _matching(self, pattern: str) -> list[str]:
        matching = [name for name in self.free if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"where {pattern!r}: {self._missed(pattern)}")
        return matching

    def _missed(self, pattern: str) -> str:
        """Why a pattern names nothing that can be replaced, and what was meant."""
        blocked = [name for name in self.sites if fnmatchcase(name, pattern)]
        if blocked:
            return f"{blocked[0]} cannot become {self.kind.name}: {self.obstacles[blocked[0]]}"
        if any(fnmatchcase(name, f"{pattern}.*") for name in self.free):
            return f"a module that holds others; did you mean '{pattern}.*'?"
        return f"no layer that can become {self.kind.name} has that name; {suggest(pattern, self.free)}"

    def _why(self) -> str:
        if not self.sites:
            return f"it has no {self.kind.replaces}"
        return "; ".join(f"{name}: {self.obstacles[name]}" for name in list(self.sites)[:FEW])


def _few(names: Sequence[str]) -> str:
    listed = ", ".join(names[:FEW])
    return listed if len(names) <= FEW else f"{listed} and {len(names) - FEW} more"


def _like(kind: Kind, site: Site) -> nn.Module:
    """The new layer, on the device, in the dtype and in the mode of the one it replaces."""
    like = next(site.layer.parameters())
    return kind.layer_for(site).to(like).train(site.layer.training)
