"""Circular convolutions: four forms that compute and learn the same, and which of them is chosen."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from fleetnet import circular
from fleetnet.circular import (
    HEIGHT,
    WIDTH,
    added_by,
    chosen_form,
    circular_convolution,
    computed_as,
    form_for,
    prepare,
)
from fleetnet.reparam import difference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Every other form, and what it is proven against the convolution with: (form, dense).
OTHERS = [("product", False), ("blocks", False), ("fourier", False), ("fourier", True)]


def _inputs(
    dim: int,
    dense: bool,
    size: tuple[int, int],
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """A feature, which is half of the channels of a larger one, as in ParC; a kernel and a bias."""
    draw = torch.Generator().manual_seed(0)
    channels, length = 4, size[dim - HEIGHT]
    shape = (length, 1) if dim == HEIGHT else (1, length)
    whole = torch.randn(3, 2 * channels, *size, generator=draw, dtype=torch.float64)
    weight = torch.randn(channels, channels if dense else 1, *shape, generator=draw).double()
    bias = torch.randn(channels, generator=draw).double()
    x = whole.to(dtype).contiguous(memory_format=layout)[:, :channels]
    return [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]


def _learned(y: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """What is computed, and the gradients of input, kernel and bias."""
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(y, tensors, upstream.to(y))
    return [y.detach().double(), *(gradient.double() for gradient in gradients)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("size", "stride"),
    [((6, 6), (1, 1)), ((7, 20), (2, 3)), ((33, 5), (1, 1)), ((1, 8), (2, 2)), ((64, 2), (1, 1))],
    ids=str,
)
@pytest.mark.parametrize("dim", [HEIGHT, WIDTH], ids=["height", "width"])
@pytest.mark.parametrize(("form", "dense"), OTHERS)
def test_other_forms_compute_and_learn_the_same(form, dense, dim, size, stride, layout) -> None:
    def computed(form: str, dtype: torch.dtype) -> list[Tensor]:
        tensors = _inputs(dim, dense, size, layout, dtype)
        return _learned(circular_convolution(*tensors, dim, form, stride), tensors)

    plain = computed("convolution", torch.float64)
    with torch.no_grad():  # inference has spectra of its own
        inferred = circular_convolution(*_inputs(dim, dense, size, layout), dim, form, stride)
    assert difference([plain[0]], [inferred])[1] < 1e-12
    for ours, theirs in zip(computed(form, torch.float64), plain, strict=True):
        assert difference([theirs], [ours])[1] < 1e-12
    for ours, theirs in zip(computed(form, torch.float32), plain, strict=True):
        assert (
            difference([theirs], [ours])[1] < 3e-6
        )  # 2e-6 measured at most, of 1e-6 of the convolution


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("dim", [HEIGHT, WIDTH], ids=["height", "width"])
@pytest.mark.parametrize(("form", "dense"), OTHERS)
def test_a_position_is_added_before(form, dense, dim, learning) -> None:
    x, weight, bias = _inputs(dim, dense, (12, 10))
    position = torch.randn(1, 4, *(n if n > 1 else 1 for n in weight.shape[2:])).double()
    position.requires_grad_()
    with torch.set_grad_enabled(learning):
        y, plain = (
            circular_convolution(x, weight, bias, dim, form, (2, 1), position)
            for form in (form, "convolution")
        )
    assert difference([plain], [y])[1] < 1e-12
    if learning:
        tensors = [x, weight, bias, position]
        assert difference(_learned(plain, tensors), _learned(y, tensors))[1] < 1e-12


@pytest.mark.parametrize("dim", [HEIGHT, WIDTH], ids=["height", "width"])
@pytest.mark.parametrize("form", ["product", "blocks", "fourier"])
def test_a_result_is_written_where_it_shall_stand(form, dim) -> None:
    """Into half of the channels of a larger tensor, in either memory format and in 16 bits."""
    x, weight, bias = (tensor.detach() for tensor in _inputs(dim, False, (12, 10)))
    convolve = prepare(x, weight, added_by(weight, bias, None, dim), dim, form)
    expected = convolve(x)
    for layout, dtype, least in [
        (torch.contiguous_format, torch.float64, 1e-14),
        (torch.channels_last, torch.float64, 1e-14),
        (torch.contiguous_format, torch.bfloat16, 2e-2),
    ]:
        whole = torch.zeros(3, 8, 12, 10, dtype=dtype).contiguous(memory_format=layout)
        out = whole[:, 4:]
        assert convolve(x, out) is out
        assert difference([expected], [whole[:, 4:].double()])[1] < least
        assert not whole[:, :4].any()


@pytest.mark.parametrize("blocks", [2, 4, 6, 16])
def test_a_transform_over_blocks_has_its_inverse(blocks: int) -> None:
    there, back, _ = circular._transforms(blocks)
    assert abs(back @ there - np.eye(blocks)).max() < 1e-14


def test_blocks_are_as_many_as_rows_where_that_can_be() -> None:
    counts = {length: circular.block_count(length) for length in (64, 96, 100, 128, 256, 134, 127)}
    assert counts == {64: 8, 96: 12, 100: 10, 128: 16, 256: 16, 134: 2, 127: 0}


@pytest.mark.parametrize(("form", "dense"), OTHERS)
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all bfloat16"])
@pytest.mark.parametrize("dim", [HEIGHT, WIDTH], ids=["height", "width"])
def test_other_forms_in_bfloat16(form, dense, dim, autocast) -> None:
    """The type of what they give is a convolution's, that of gradients what they belong to has."""

    def computed(form: str, dtype: torch.dtype) -> list[Tensor]:
        tensors = _inputs(dim, dense, (12, 20), dtype=dtype)
        half = dtype != torch.float64
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and half):
            y = circular_convolution(*tensors, dim, form)
        assert y.dtype == (torch.bfloat16 if half else dtype)
        return _learned(y, tensors)

    plain = computed("convolution", torch.float64)
    other = computed(form, torch.float32 if autocast else torch.bfloat16)
    for ours, theirs in zip(other, plain, strict=True):
        assert difference([theirs], [ours])[1] < 0.03  # 8 bits, over sums of 20


@pytest.mark.parametrize("form", ["product", "fourier"])
def test_second_derivatives_are_refused_and_not_wrong(form) -> None:
    x, weight, bias = _inputs(HEIGHT, False, (8, 3))
    y = circular_convolution(x, weight, bias, HEIGHT, form)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(
    ("conditions", "lengths"),
    [
        (
            {},
            "3 convolution, 4 product, 100 product, 104 blocks, 105 product, 225 fourier, 256 blocks",
        ),
        ({"dim": WIDTH}, "112 product, 113 product, 120 fourier, 226 product, 241 fourier"),
        (
            {"channels_last": True},
            "80 convolution, 81 fourier, 97 convolution, 101 product, 131 fourier",
        ),
        ({"learning": True}, "3 convolution, 4 product, 100 product, 113 product, 128 blocks"),
        ({"learning": True, "dim": WIDTH}, "80 product, 81 fourier, 113 product, 128 fourier"),
        (
            {"learning": True, "channels_last": True},
            "20 convolution, 21 fourier, 37 product, 127 product, 131 fourier",
        ),
        (
            {"learning": True, "channels_last": True, "images": 2},
            "3 convolution, 8 product, 40 product, 48 fourier",
        ),
        ({"half": True}, "3 convolution, 8 product, 256 product, 257 fourier, 288 blocks"),
        ({"half": True, "channels_last": True}, "63 convolution, 64 product, 288 fourier"),
        ({"depthwise": False}, "31 convolution, 32 fourier"),
        ({"depthwise": False, "learning": True}, "15 convolution, 16 fourier"),
    ],
    ids=str,
)
def test_the_form_is_the_fastest_of_its_size(conditions, lengths) -> None:
    """Where the borders are; the times behind them are of benchmarks/parc.py."""
    for text in lengths.split(", "):
        length, form = text.split()
        assert form_for(int(length), **{"dim": HEIGHT, **conditions}) == form, text


@pytest.mark.parametrize("form", circular.FORMS)
def test_shapes_alone_are_computed_too(form) -> None:
    """As `fleetnet flops` and the reading of a collapsed checkpoint do."""
    x, weight, bias = (tensor.to("meta") for tensor in _inputs(WIDTH, False, (3, 130)))
    assert circular_convolution(x, weight, bias, WIDTH, form, (2, 2)).shape == (3, 4, 2, 65)
    assert chosen_form(x, weight, WIDTH, (1, 1)) in circular.FORMS


def test_the_form_is_that_of_what_a_call_is_for() -> None:
    x, weight, _ = _inputs(HEIGHT, False, (40, 3), torch.channels_last, torch.float32)

    def form(x: Tensor = x, stride: tuple[int, int] = (1, 1)) -> str:
        return chosen_form(x, weight, HEIGHT, stride)

    assert form() == "product"  # learning, of a half of channels that is channels_last
    assert form(x[:1]) == "fourier"
    assert form(stride=(20, 1)) == "convolution"  # which gives the twentieth part
    with torch.no_grad():
        assert form() == "convolution"
        assert form(x.contiguous()) == "product"
    with computed_as("fourier"):
        assert form() == "fourier"
    assert form() == "product"
    large = x.expand(3, 4, 40, 3).repeat(1, 1, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen_form(large, weight, HEIGHT, (1, 1)) == "product"  # 120 long, in 16 bits
    assert chosen_form(large, weight, HEIGHT, (1, 1)) == "blocks"
    assert chosen_form(large.mT, weight.mT, WIDTH, (1, 1)) == "fourier"


@pytest.mark.parametrize("dim", [HEIGHT, WIDTH], ids=["height", "width"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_images_of_a_large_feature_by_themselves(dim, layout, monkeypatch) -> None:
    def computed() -> list[Tensor]:
        tensors = _inputs(dim, False, (12, 10), layout)
        with torch.no_grad():
            inferred = circular_convolution(*tensors, dim, "fourier")
        return [inferred, *_learned(circular_convolution(*tensors, dim, "fourier"), tensors)]

    whole = computed()
    monkeypatch.setattr(circular, "LARGE", 1)
    monkeypatch.setattr(circular, "LARGE_CHANNELS_LAST", 1)
    assert difference(whole, computed())[1] < 1e-13


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_decided_at_once_is_what_the_rule_says(learning: bool, channels_last: bool) -> None:
    for length, dim, images, half in product(range(1, 130), (HEIGHT, WIDTH), (1, 8), (False, True)):
        smooth = circular._is_smooth(length)
        conditions = (images, learning, channels_last, half)
        in_blocks = dim == HEIGHT and not channels_last and circular._falls_into_blocks(length)
        longest = circular._longest_product(
            smooth, images, channels_last, half, in_blocks, learning and dim == WIDTH
        )
        if length <= circular._longest_convolution(smooth, *conditions):
            expected = "convolution"
        elif length <= longest:
            expected = "product"
        else:
            expected = "blocks" if in_blocks else "fourier"
        given = {"images": images, "half": half, "learning": learning}
        form = form_for(length, dim, channels_last=channels_last, **given)
        assert form == expected, (length, dim, given)
