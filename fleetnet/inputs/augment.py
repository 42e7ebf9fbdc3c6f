"""What is done to a picture together with its annotation before a network learns from it.

`fleetnet.fit` takes any `Augmentation`, for every task. One of your own:

    class Gray(Augmentation):
        def __call__(self, pictures, generator):
            picture, targets = pictures[0]
            if torch.rand((), generator=generator) < 0.2:
                picture = rgb_to_grayscale(picture, 3)
            return AnnotatedPicture(picture, targets)

    fleetnet.fit(model, train, val, config, "runs/gray", augment=Gray())

Several become one by `InTurn`. The usual ones, which the setting `augment` names, are made of the
small ones below.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ..channels import RGB
from ..errors import UsageError, suggest
from ..geometry import Place
from ..preprocess import Preprocess, blank
from ..resizing import array_of, tensor_of
from .colors import Distortion, Jitter
from .decode import AnnotatedPicture, Targets
from .layouts import (
    Crop,
    Layout,
    Mosaic,
    Part,
    Zoom,
    draw,
    mirrored,
    move,
    resampled,
    to_decode,
    together,
)
from .randomness import whole

AUTO_AUGMENT = {
    "none": None,
    "randaugment": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
}
OF_TIMM = "rand-"  # how the names of its policies begin that are taken
TRIES = 10  # for a random part of a picture
WIDEST = math.log(4 / 3)  # of its shape, width / height
Recolor = Callable[[Tensor], Tensor]


class Augmentation(Protocol):
    """Changes pictures together with their annotation; inherit from it and write what differs."""

    pictures: int = 1  # how many it takes: the one that is learned from, then random others
    # Whether it gives pictures at the size of the network's input. Those of others are brought to
    # it afterwards as evaluation does.
    at_input_size: bool = False

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        """One picture, (C, h, w) uint8, with its annotation in its pixels; what came in stays as it is.

        There are fewer than `pictures` where files could not be read, and at least one. The
        annotation has the keys of the task, see `decode.Targets`. `generator` is torch's own, which
        torchvision's transforms draw from too: before each sample it, Python's `random` and NumPy
        are seeded by the run's seed, the epoch and the sample (`randomness.of_sample`), so that
        what is drawn from any of them belongs to the sample. So keep nothing between two calls.
        """
        ...

    def plain(self) -> "Augmentation":
        """What the last `plain_epochs` of a training use in its place."""
        return self


class InTurn(Augmentation):
    """Several, one after the other: the first takes all pictures, the others what came of them."""

    def __init__(self, *steps: Augmentation):
        for step in steps[1:]:
            if step.pictures > 1:
                raise UsageError(
                    f"{type(step).__name__} takes {step.pictures} pictures and gets one: only the "
                    "first step gets several, so put it first"
                )
        self.steps = steps
        self.pictures = steps[0].pictures if steps else 1
        self.at_input_size = any(step.at_input_size for step in steps)

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        for step in self.steps:
            pictures = [step(pictures, generator)]
        return pictures[0]

    def plain(self) -> Augmentation:
        return InTurn(*(step.plain() for step in self.steps))


class Arranged(Augmentation):
    """The input as a layout has it; gray where there is no picture."""

    at_input_size = True

    def __init__(self, preprocess: Preprocess, layout: Layout):
        self.preprocess = preprocess
        self.layout = layout
        self.pictures = layout.pictures

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        parts = self.layout(pictures, generator)
        size = self.preprocess.size
        canvas = blank(size, self.preprocess.channels)
        moved = []
        for annotated, part in zip(pictures, parts, strict=False):
            draw(canvas, annotated, part.place, self.preprocess.interpolation)
            moved.append(move(annotated.targets, part, size))
        return AnnotatedPicture(canvas, together(moved))

    def plain(self) -> Augmentation:
        return Arranged(self.preprocess, self.layout.plain())


def random_part(
    height: int, width: int, scale: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """A part of a picture as x0, y0, x1, y1: of `scale` to all of its area, 3:4 to 4:3 in shape.

    After ten tries that do not lie within the picture it is the largest one in the middle.
    """

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    for _ in range(TRIES):
        area = height * width * uniform(scale, 1.0)
        shape = math.exp(uniform(-WIDEST, WIDEST))  # width / height
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = (whole(0, room, generator) for room in (height - h, width - w))
            return left, top, left + w, top + h
    shape = min(max(width / height, math.exp(-WIDEST)), math.exp(WIDEST))
    w, h = min(width, round(height * shape)), min(height, round(width / shape))
    top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


class RandomCrop(Augmentation):
    """A part of a picture, of a random area and shape, stretched to the input.

    `scale` is its smallest area, as a share of the picture's. Parts are those of torchvision's
    RandomResizedCrop, from the same numbers, in a tenth of the time: it takes as long as a resize.
    """

    at_input_size = True

    def __init__(self, preprocess: Preprocess, scale: float):
        self.preprocess = preprocess
        self.scale = scale

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        annotated, size = pictures[0], self.preprocess.size
        whole = annotated.height, annotated.width
        part = random_part(*whole, self.scale, generator)  # in its pixels
        x0, y0, x1, y1 = to_decode(part, annotated, size)
        scale_y, scale_x = size[0] / (y1 - y0), size[1] / (x1 - x0)
        place = Place(*whole, scale_y, scale_x, -y0 * scale_y, -x0 * scale_x)
        part_of_input = 0, 0, size[1], size[0]  # all of it
        cropped = resampled(annotated, place, part_of_input, self.preprocess.interpolation)
        return AnnotatedPicture(cropped, move(annotated.targets, Part(place), size))


class Flip(Augmentation):
    """Mirrored left to right, with a probability."""

    def __init__(self, probability: float):
        # as torch would round it to compare it with what is drawn
        self.probability = torch.tensor(probability, dtype=torch.float32).item()

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        if torch.rand(1, generator=generator).item() >= self.probability:
            return pictures[0]
        picture, targets = pictures[0]
        return AnnotatedPicture(picture.flip(-1), mirrored(targets, picture.shape[-1]))


class Recolored(Augmentation):
    """The picture after a function of it; the annotation stays, so nothing should move."""

    def __init__(self, recolor: Recolor):
        self.recolor = recolor

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        return AnnotatedPicture(self.recolor(picture), targets)


class ByPillow:
    """A function of PIL images as one of tensors: its policies are twice as fast with them."""

    def __init__(self, change: Callable[[Image.Image], Image.Image]):
        self.change = change

    def __call__(self, picture: Tensor) -> Tensor:
        pixels = array_of(picture)
        if len(picture) == RGB:
            return tensor_of(np.array(self.change(Image.fromarray(pixels))))
        changed = self.change(Image.fromarray(pixels.repeat(RGB, axis=2)))  # of gray
        return tensor_of(np.array(changed.convert("L"))[..., None])


class Erased(Augmentation):
    """A rectangle of the picture without content, with a probability; the annotation stays.

    It gets the mean color, which is zero for the network.
    """

    def __init__(self, preprocess: Preprocess, probability: float):
        self.erase = v2.RandomErasing(probability, value=_mean_color(preprocess))

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        return AnnotatedPicture(self.erase(picture), targets)


def _mean_color(preprocess: Preprocess) -> list[int]:
    """What becomes zero for the network, in the picture's own order."""
    mean = preprocess.mean[::-1] if preprocess.channel_order == "BGR" else preprocess.mean
    return [round(255 * min(max(value, 0.0), 1.0)) for value in mean]


class AtTimes(Augmentation):
    """Another augmentation of one picture, with a probability."""

    def __init__(self, step: Augmentation, probability: float):
        self.step = step
        self.probability = probability

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        if torch.rand((), generator=generator) >= self.probability:
            return pictures[0]
        return self.step(pictures, generator)


def draws_from_torch(augment: Augmentation | None) -> bool:
    """Whether all that an augmentation draws is known to come from torch's generator.

    Then those of Python and NumPy are not seeded for each sample, which takes as long as a read.
    Of a class that inherits from one of these, nothing is known.
    """
    kind = type(augment)
    if isinstance(augment, InTurn) and kind is InTurn:
        return all(draws_from_torch(step) for step in augment.steps)
    if isinstance(augment, AtTimes) and kind is AtTimes:
        return draws_from_torch(augment.step)
    if isinstance(augment, Arranged) and kind is Arranged:
        return type(augment.layout) in (Crop, Mosaic, Zoom)
    if isinstance(augment, Recolored) and kind is Recolored:
        return type(augment.recolor) in (Distortion, Jitter)
    return augment is None or kind in (Erased, Flip, RandomCrop)


def check_augmentation(augment: object) -> None:
    """`UsageError` for what does not inherit from `Augmentation`, and so may lack a part of it."""
    if Augmentation not in type(augment).__mro__:
        name = type(augment).__name__
        raise UsageError(
            f"augment is a {name}, which does not inherit from Augmentation of "
            f"fleetnet.inputs.augment: write class {name}(Augmentation)"
        )


def as_input(
    augment: Augmentation,
    preprocess: Preprocess,
    pictures: Sequence[AnnotatedPicture],
    generator: torch.Generator = torch.default_generator,
) -> tuple[Tensor, Targets]:
    """The network's input (C, H, W) that an augmentation makes, as bytes, and its annotation.

    The annotation is in pixels of the input, of what is visible of the objects; there may be none.
    """
    height, width = preprocess.size
    made = augment(pictures, generator)
    if not augment.at_input_size:
        part = Part(preprocess.place(made.height, made.width))
        return preprocess.pixels(made.picture), move(made.targets, part, (height, width))
    if (made.height, made.width) != (height, width):
        raise UsageError(
            f"augment gave a picture of {made.height}x{made.width}, and says that it is at "
            f"the input's size, {height}x{width}: leave out at_input_size"
        )
    return made.picture, made.targets


# The usual ones -----------------------------------------------------------------------------------

# What the papers use where a setting is not given: SSD and DeepLabV3 as ParC-Net trains them
# (arXiv:2203.03952).
DEFAULTS: dict[str, dict[str, float]] = {
    "none": {},
    "classify": {"scale": 0.35, "color_jitter": 0.2},
    "ssd": {"scale": 0.09, "color_jitter": 0.5},
    "jitter": {"scale": 0.35, "color_jitter": 0.2},
    "segment": {"scale": 1 / 1.5**2, "color_jitter": 0.0},
    "mosaic": {"scale": 0.35, "color_jitter": 0.4},
}


def augmentation(
    name: str,
    preprocess: Preprocess,
    *,
    flip: float = 0.5,
    scale: float | None = None,
    color_jitter: float | None = None,
    erasing: float = 0.0,
    mosaic: float = 1.0,
    auto_augment: str | None = None,
    strength: float = 1.0,
) -> Augmentation:
    """One of DEFAULTS for inputs as `preprocess` makes them.

    flip          probability of a horizontal flip
    scale         smallest share of a picture's area that fills the input; above 0, 1 for none
    color_jitter  range of brightness, contrast and saturation around 1; 0 for none. Saturation,
                  and hue of "ssd", are those of RGB
    erasing       probability of erasing a rectangle
    mosaic        probability of four pictures in one
    auto_augment  one of AUTO_AUGMENT, or timm's RandAugment, as rand-m9-mstd0.5-inc1; with
                  "classify" alone, since boxes would not move with it
    strength      share of the pictures that a policy changes, from 0 to 1; timm's changes all of
                  them, by this share of its magnitude

    "none" shows what evaluation sees, whatever the settings are. Raises `UsageError` for unknown
    names.
    """
    _check_names(name, auto_augment or "none", preprocess.channels)
    if name == "none":
        return InTurn()
    if scale is None:
        scale = DEFAULTS[name]["scale"]
    if color_jitter is None:
        color_jitter = DEFAULTS[name]["color_jitter"]
    if name == "classify":
        steps = _cropped(preprocess, scale, flip, auto_augment or "none", strength)
    else:
        layout = layout_of(name, preprocess, scale, mosaic)
        steps = [Arranged(preprocess, layout), Flip(flip)]
    if color_jitter:
        recolor = Distortion(color_jitter) if name == "ssd" else Jitter(color_jitter)
        steps.append(Recolored(recolor))
    if erasing:
        steps.append(Erased(preprocess, erasing))
    return InTurn(*steps)


def _check_names(name: str, policy: str, channels: int) -> None:
    if name not in DEFAULTS:
        raise UsageError(f"no augmentation {name!r}: {suggest(name, DEFAULTS)}")
    check_policy(policy)
    if policy != "none" and name not in ("classify", "none"):
        raise UsageError(f"auto_augment is {policy!r}; allowed with boxes and masks: none")
    if policy != "none" and channels not in (1, RGB):
        raise UsageError(
            f"auto_augment is {policy!r}, which changes colors; allowed with {channels} channels: "
            "none"
        )


def check_policy(policy: str) -> None:
    """`UsageError` for a policy that there is not, or that timm would have to be there for."""
    if not policy.startswith(OF_TIMM):
        if policy not in AUTO_AUGMENT:
            raise UsageError(f"no auto_augment {policy!r}: {suggest(policy, AUTO_AUGMENT)}")
        return
    try:
        from timm.data.auto_augment import rand_augment_transform  # here: an extra
    except ImportError as error:
        raise UsageError(
            f"auto_augment {policy!r} is timm's: pip install 'fleetnet[timm]', or take randaugment"
        ) from error
    try:
        rand_augment_transform(policy, {})
    except (AssertionError, ValueError, KeyError) as error:
        raise UsageError(
            f"auto_augment is {policy!r}, which timm does not read ({error}); allowed: such as "
            "rand-m9-mstd0.5-inc1"
        ) from error


def timm_policy(
    policy: str, preprocess: Preprocess, strength: float
) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment by its name (arXiv:1909.13719), its magnitude times a strength."""
    from timm.data import auto_augment

    color = tuple(_mean_color(preprocess))
    shortest = min(preprocess.size)
    change = auto_augment.rand_augment_transform(
        policy, {"translate_const": int(0.45 * shortest), "img_mean": color}
    )
    for operation in change.ops:
        operation.magnitude *= strength
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = partial(_posterized, auto_augment.posterize)
    return cast(Callable[[Image.Image], Image.Image], change)


def _posterized(
    posterize: Callable[..., Image.Image], picture: Image.Image, bits: int, **more: object
) -> Image.Image:
    """timm's posterize, which may ask for no bits at all: Pillow takes 1 to 8 since version 13."""
    return posterize(picture, max(bits, 1), **more)


def _cropped(
    preprocess: Preprocess, scale: float, flip: float, policy: str, strength: float
) -> list[Augmentation]:
    """The first steps of "classify"."""
    steps: list[Augmentation] = [RandomCrop(preprocess, scale)]
    if flip:
        steps.append(Flip(flip))
    if policy.startswith(OF_TIMM):
        steps.append(Recolored(ByPillow(timm_policy(policy, preprocess, strength))))
    elif (make_policy := AUTO_AUGMENT[policy]) is not None:
        recolored = Recolored(ByPillow(make_policy()))
        steps.append(recolored if strength == 1 else AtTimes(recolored, strength))
    return steps


def layout_of(name: str, preprocess: Preprocess, scale: float, mosaic: float) -> Layout:
    """Of "ssd", "jitter", "segment" or "mosaic"; `scale` is of an area, a layout's of a side."""
    side = math.sqrt(scale)
    if name == "ssd":
        return Crop(preprocess, side)
    if name == "segment":
        return Zoom(preprocess, max(side, 0.75), 1 / side, cover=True)
    zoom = Zoom(preprocess, side, 1 / side)
    return Mosaic(zoom, mosaic) if name == "mosaic" and mosaic > 0 else zoom
