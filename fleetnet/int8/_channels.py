"""Which channels of a network may be made smaller or larger together: `follow`.

A number s by which a channel is divided where it is made can be taken back where it is used, if all
that lies between commutes with a positive factor: ReLU, sums, joins and cuts of maps, pooling,
products with the same number for all. A sum has one s for both of its parts, so a channel of a
residual stream has one for as long as the stream goes on; a depthwise convolution begins anew, for
its kernels can take any s of what they get and give any other.

    GELU, SiLU, sigmoid ...     do not commute: s of what they take and of what they give is 1
    x * gate                    has the s of x where that of the gate is 1
    x + constant                the constant is divided by the s of x
    pictures and outputs        have 1, and so has all that is not known here
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
LAYERS = (*CONVOLUTIONS, aten.linear.default)
RELUS = (aten.relu.default, aten.relu_.default)
SPLITS = (
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.chunk.default,
)  # `_of_part` follows
# They give each channel what they took times a factor, if they took it times that factor.
COMMUTING = (
    *RELUS,
    *SPLITS,
    aten.expand.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
)
# So do these, where the channels are the second dimension.
POOLS = (
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
)
RESHAPES = (aten.flatten.using_ints, aten.view.default, aten.reshape.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor)
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
FIXED = 0  # the class of channels whose factor is 1


@dataclass(frozen=True, eq=False)
class Map:
    """A tensor of a network, or what is cut into several: the class of each of its channels."""

    classes: np.ndarray  # (C,) integers
    dimension: int  # which is that of the channels
    rank: int  # how many dimensions it has

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has these channels."""
        return len(shape) == self.rank and shape[self.dimension] == len(self.classes)

    def is_of_images(self) -> bool:
        """Whether it is (N, C, H, W), as operators of two dimensions take it."""
        return self.rank == 4 and self.dimension == 1


@dataclass
class Layer:
    """A convolution or linear layer, by the names of its parameters."""

    weight: str
    bias: str | None
    groups: int
    taken: np.ndarray  # classes of the channels that it takes, (C,)
    made: np.ndarray  # and gives, (O,)


@dataclass
class Followed:
    """What is known of the channels of a network; channels of one class have one factor."""

    program: fx.GraphModule  # takes one picture
    maps: dict[fx.Node, Map]
    layers: list[Layer]
    constants: dict[str, Map]  # parameters that are added to a map


def follow(model: nn.Module, example: Tensor) -> Followed:
    """The channels of a deploy form that gets pictures like `example`, (1, C, H, W)."""
    return _Following(torch.export.export(model, (example,)).module()).followed()


def _argument(node: fx.Node, index: int, name: str, default: object = None) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _whole(node: fx.Node, index: int, name: str, default: int) -> int:
    """An argument that is a whole number."""
    return cast(int, _argument(node, index, name, default))


def _shape(node: fx.Node) -> list[int] | None:
    """Of what a node gives, if that is one tensor."""
    value = node.meta.get("val")
    return list(value.shape) if isinstance(value, Tensor) else None


def _is_relu_alone(node: fx.Node) -> bool:
    """Whether ReLU is all that takes what this gives."""
    return bool(node.users) and all(reader.target in RELUS for reader in node.users)


@dataclass
class _Following:
    program: fx.GraphModule
    # of each class; a root's is its own
    parents: list[int] = field(default_factory=lambda: [FIXED])
    maps: dict[fx.Node, Map] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    constants: dict[str, Map] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = {name for name, _ in self.program.named_parameters()}

    def followed(self) -> Followed:
        for node in self.program.graph.nodes:
            made = self._made(node)
            if made is not None:
                self.maps[node] = made
        while self._fix_mixed():
            pass
        return Followed(
            self.program,
            {node: self._settled(one) for node, one in self.maps.items()},
            [
                Layer(
                    one.weight, one.bias, one.groups, self._roots(one.taken), self._roots(one.made)
                )
                for one in self.layers
            ],
            {name: self._settled(one) for name, one in self.constants.items()},
        )

    # ---- classes ----

    def _new(self, count: int) -> np.ndarray:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def _root(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def _roots(self, classes: np.ndarray) -> np.ndarray:
        return np.array([self._root(int(one)) for one in classes], dtype=np.int64)

    def _settled(self, one: Map) -> Map:
        return Map(self._roots(one.classes), one.dimension, one.rank)

    def _join(self, some: np.ndarray, others: np.ndarray) -> None:
        """Let channels have one factor, pair by pair; the smaller number is the root."""
        for one, other in zip(some, others, strict=True):
            first, second = sorted((self._root(int(one)), self._root(int(other))))
            self.parents[second] = first

    def _fix(self, one: Map | None) -> None:
        if one is not None:
            self._join(one.classes, np.full(len(one.classes), FIXED))

    def _is_fixed(self, one: Map | None) -> bool:
        return one is None or bool((self._roots(one.classes) == FIXED).all())

    def _fix_mixed(self) -> bool:
        """Fix maps of which some channels are fixed: the others have nothing to be like."""
        mixed = [
            one
            for one in self.maps.values()
            if not self._is_fixed(one) and (self._roots(one.classes) == FIXED).any()
        ]
        for one in mixed:
            self._fix(one)
        return bool(mixed)

    # ---- operators ----

    def _made(self, node: fx.Node) -> Map | None:
        """The channels of what a node gives; what is not known here fixes those that it takes."""
        made, shape = self._known(node), _shape(node)
        if made is not None and (shape is None or made.fits(shape)):
            return made
        inputs = self._inputs(node)
        for one in inputs:
            self._fix(one)
        return self._fixed(node, inputs)

    def _inputs(self, node: fx.Node) -> list[Map]:
        return [self.maps[one] for one in node.all_input_nodes if one in self.maps]

    def _fixed(self, node: fx.Node, inputs: Sequence[Map]) -> Map | None:
        """The fixed channels of a picture, or of what an operator gives that is not known here."""
        shape = _shape(node)
        if node.op == "placeholder" and shape is not None and len(shape) == 4:
            return Map(np.full(shape[1], FIXED), 1, 4)
        if len(inputs) == 1 and shape is not None and inputs[0].fits(shape):
            (one,) = inputs
            return Map(np.full(len(one.classes), FIXED), one.dimension, one.rank)
        return None

    def _known(self, node: fx.Node) -> Map | None:
        """The channels of what a node gives, where its operator is known."""
        if node.target in LAYERS:
            return self._of_layer(node)
        if node.target in SUMS:
            return self._of_sum(node)
        if node.target in PRODUCTS:
            return self._of_product(node)
        if node.target == aten.cat.default:
            return self._of_join(node)
        inputs = self._inputs(node)
        return self._of_one(node, inputs[0]) if len(inputs) == 1 else None

    def _is_parameter(self, node: object) -> bool:
        """Whether it is a parameter that nothing else takes; buffers stay as they are."""
        if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) > 1:
            return False
        return str(node.target) in self.parameters

    def _of_layer(self, node: fx.Node) -> Map | None:
        image, weight, bias = (
            _argument(node, i, n) for i, n in enumerate(("input", "weight", "bias"))
        )
        taken, shape = self._map_of(image), _shape(node)
        own = [weight] if bias is None else [weight, bias]
        if taken is None or shape is None or not all(map(self._is_parameter, own)):
            return None
        is_convolution = node.target in CONVOLUTIONS
        dimension = 1 if is_convolution else taken.rank - 1
        if taken.dimension != dimension or (is_convolution and not taken.is_of_images()):
            return None
        made = Map(self._new(shape[dimension]), dimension, taken.rank)
        names = [str(cast(fx.Node, one).target) for one in own]
        self.layers.append(
            Layer(
                weight=names[0],
                bias=names[1] if len(names) > 1 else None,
                groups=_whole(node, 6, "groups", 1) if is_convolution else 1,
                taken=taken.classes,
                made=made.classes,
            )
        )
        return made

    def _map_of(self, value: object) -> Map | None:
        return self.maps.get(value) if isinstance(value, fx.Node) else None

    def _of_sum(self, node: fx.Node) -> Map | None:
        first, second = (self._map_of(one) for one in node.args[:2])
        if first is not None and second is not None:
            if (first.rank, first.dimension) != (second.rank, second.dimension):
                return None
            if len(first.classes) != len(second.classes):
                return None
            self._join(first.classes, second.classes)
            return first
        for one, other in ((first, node.args[1]), (second, node.args[0])):
            if one is not None and self._is_constant_of(other, one, node):
                return one
        return None

    def _is_constant_of(self, other: object, one: Map, node: fx.Node) -> bool:
        """Whether a map gets a parameter added that has its channels; it is noted."""
        if not self._is_parameter(other) or len(_shape(node) or []) != one.rank:
            return False
        constant = cast(fx.Node, other)
        shape = _shape(constant) or []
        dimension = one.dimension - one.rank  # from the end, as shapes are matched
        if -dimension > len(shape) or shape[dimension] != len(one.classes):
            return False
        self.constants[str(constant.target)] = Map(one.classes, dimension, len(shape))
        return True

    def _of_product(self, node: fx.Node) -> Map | None:
        first, second = (self._map_of(one) for one in node.args[:2])
        shape = _shape(node) or []
        for one, other in ((first, second), (second, first)):
            if one is not None and self._is_fixed(other) and one.fits(shape):
                return one
        return None

    def _of_join(self, node: fx.Node) -> Map | None:
        parts = cast(Sequence[object], node.args[0])
        maps = [one for one in map(self._map_of, parts) if one is not None]
        places = {(one.dimension, one.rank) for one in maps}
        if len(maps) != len(parts) or len(places) != 1:
            return None
        ((dimension, rank),) = places
        if _whole(node, 1, "dim", 0) % rank == dimension:
            return Map(np.concatenate([one.classes for one in maps]), dimension, rank)
        for one in maps[1:]:
            self._join(maps[0].classes, one.classes)
        return maps[0]

    def _of_one(self, node: fx.Node, taken: Map) -> Map | None:
        """Of an operator that takes one map; None where it is not known."""
        if node.target in COMMUTING or (node.target in POOLS and taken.is_of_images()):
            return taken
        handler = _OF_ONE.get(node.target)
        return None if handler is None else handler(node, taken)


# ---- operators that take one map: the channels of what they give -----------------------------------------------------


def _of_mean(node: fx.Node, taken: Map) -> Map | None:
    dimensions, keeps = _argument(node, 1, "dim"), _argument(node, 2, "keepdim", False)
    gone = {one % taken.rank for one in cast(Sequence[int], dimensions or ())}
    if not gone or taken.dimension in gone:  # none means all of them
        return None
    if keeps:
        return taken
    before = sum(one < taken.dimension for one in gone)
    return Map(taken.classes, taken.dimension - before, taken.rank - len(gone))


def _of_reshape(node: fx.Node, taken: Map) -> Map | None:
    """As many values before the channels and as many channels as there were."""
    source, after = node.args[0], _shape(node)
    before = _shape(source) if isinstance(source, fx.Node) else None
    if before is None or after is None:
        return None
    outer = int(np.prod(before[: taken.dimension]))
    for dimension, size in enumerate(after):
        if size == len(taken.classes) and int(np.prod(after[:dimension])) == outer:
            return Map(taken.classes, dimension, len(after))
    return None


def _of_permute(node: fx.Node, taken: Map) -> Map | None:
    order = [one % taken.rank for one in cast(Sequence[int], node.args[1])]
    return Map(taken.classes, order.index(taken.dimension), taken.rank)


def _is_along(node: fx.Node, taken: Map, index: int) -> bool:
    """Whether a cut is one of channels; the argument of this index says along which dimension."""
    return _whole(node, index, "dim", 0) % taken.rank == taken.dimension


def _of_narrow(node: fx.Node, taken: Map) -> Map | None:
    if not _is_along(node, taken, 1):
        return taken
    start, length = _argument(node, 2, "start"), _argument(node, 3, "length")
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return None
    return Map(taken.classes[start : start + length], taken.dimension, taken.rank)


def _of_slice(node: fx.Node, taken: Map) -> Map | None:
    if not _is_along(node, taken, 1):
        return taken
    cut = [_argument(node, index, name) for index, name in enumerate(("start", "end", "step"), 2)]
    if not all(one is None or isinstance(one, int) for one in cut):
        return None
    return Map(taken.classes[slice(*cut)], taken.dimension, taken.rank)


def _of_part(node: fx.Node, taken: Map) -> Map | None:
    """One of the parts that the node before has cut."""
    whole, index = cast(tuple[fx.Node, object], node.args)
    if whole.target not in SPLITS or not isinstance(index, int):
        return None
    if not _is_along(whole, taken, 2):
        return taken
    sizes = [part.shape[taken.dimension] for part in whole.meta["val"]]
    start = sum(sizes[:index])
    return Map(taken.classes[start : start + sizes[index]], taken.dimension, taken.rank)


_OF_ONE: dict[object, Callable[[fx.Node, Map], Map | None]] = {
    aten.mean.dim: _of_mean,
    aten.permute.default: _of_permute,
    aten.narrow.default: _of_narrow,
    aten.slice.Tensor: _of_slice,
    **dict.fromkeys(RESHAPES, _of_reshape),
    operator.getitem: _of_part,
}


def rounded_maps(followed: Followed) -> Iterator[tuple[fx.Node, Map]]:
    """The maps that int8 has to hold: not those that become another through ReLU, nor parts."""
    for node, one in followed.maps.items():
        is_tensor = _shape(node) is not None
        if is_tensor and (one.classes != FIXED).any() and not _is_relu_alone(node):
            yield node, one
