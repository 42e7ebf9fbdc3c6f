"""What is done to a picture together with its annotation before a network learns from it.

`fleetnet.fit` takes any `Augmentation`, for every task. One of your own:

    class Gray(Augmentation):
        def __call__(self, pictures, generator):
            picture, targets = pictures[0]
            if torch.rand((), generator=generator) < 0.2:
                picture = picture.convert("L").convert("RGB")
            return AnnotatedPicture(picture, targets)

    fleetnet.fit(model, train, val, config, "runs/gray", augment=Gray())

Several become one by `InTurn`. The usual ones, which the setting `augment` names, are made of the
small ones below.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ..errors import UsageError, suggest
from ..geometry import Place
from ..preprocess import INTERPOLATION, PADDING, Preprocess
from .decode import AnnotatedPicture, Targets
from .layouts import Crop, Layout, Mosaic, Part, Zoom, draw, mirrored, move, together

AUTO_AUGMENT = {
    "none": None,
    "randaugment": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
}
Recolor = Callable[[Image.Image], Image.Image]


class Augmentation(Protocol):
    """Changes pictures together with their annotation; inherit from it and write what differs."""

    pictures: int = 1  # how many it takes: the one that is learned from, then random others
    # Whether it gives pictures at the size of the network's input. Those of others are brought to
    # it afterwards as evaluation does.
    at_input_size: bool = False

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        """One picture, RGB, with its annotation in its pixels; what came in stays as it is.

        There are fewer than `pictures` where files could not be read, and at least one. The
        annotation has the keys of the task, see `decode.Targets`. `generator` is torch's own, which
        torchvision's transforms draw from too: before each sample it, Python's `random` and NumPy
        are seeded by the run's seed, the epoch and the sample (`randomness.of_sample`), so that
        what is drawn from any of them belongs to the sample. So keep nothing between two calls.
        """
        ...

    def finish(self, image: Tensor) -> Tensor:
        """The last step, after scaling of values: the network's input (3, H, W) float32."""
        return image

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

    def finish(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step.finish(image)
        return image

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
        height, width = self.preprocess.size
        canvas = Image.new("RGB", (width, height), (PADDING,) * 3)
        moved = []
        for (picture, targets), part in zip(pictures, parts, strict=False):
            draw(canvas, picture, part.place, INTERPOLATION[self.preprocess.interpolation])
            moved.append(move(targets, part, (height, width)))
        return AnnotatedPicture(canvas, together(moved))

    def plain(self) -> Augmentation:
        return Arranged(self.preprocess, self.layout.plain())


class RandomCrop(Augmentation):
    """A part of a picture, of a random area and shape, stretched to the input: torchvision's.

    `scale` is its smallest area, as a share of the picture's.
    """

    at_input_size = True

    def __init__(self, preprocess: Preprocess, scale: float):
        self.size = preprocess.size
        interpolation = v2.InterpolationMode(preprocess.interpolation)
        self.crop = v2.RandomResizedCrop(self.size, (scale, 1.0), interpolation=interpolation)

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        part = self.crop.make_params([picture])  # top, left, height, width, in its pixels
        scale_y, scale_x = self.size[0] / part["height"], self.size[1] / part["width"]
        top, left = -part["top"] * scale_y, -part["left"] * scale_x
        place = Place(picture.height, picture.width, scale_y, scale_x, top, left)
        cropped: Image.Image = self.crop.transform(picture, part)
        return AnnotatedPicture(cropped, move(targets, Part(place), self.size))


class Flip(Augmentation):
    """Mirrored left to right, with a probability."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        if torch.rand(1, generator=generator) >= self.probability:
            return pictures[0]
        mirror = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return AnnotatedPicture(mirror, mirrored(targets, picture.width))


class Recolored(Augmentation):
    """The picture after a function of it; the annotation stays, so nothing should move."""

    def __init__(self, recolor: Recolor):
        self.recolor = recolor

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        picture, targets = pictures[0]
        return AnnotatedPicture(self.recolor(picture), targets)


class Erased(Augmentation):
    """A rectangle of the input without content, with a probability; the annotation stays."""

    def __init__(self, probability: float):
        self.erase = v2.RandomErasing(probability)

    def __call__(
        self, pictures: Sequence[AnnotatedPicture], generator: torch.Generator
    ) -> AnnotatedPicture:
        return pictures[0]

    def finish(self, image: Tensor) -> Tensor:
        erased: Tensor = self.erase(image)
        return erased


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
    """The network's input (3, H, W) float32 that an augmentation makes, and its annotation.

    The annotation is in pixels of the input, of what is visible of the objects; there may be none.
    """
    height, width = preprocess.size
    picture, targets = augment(pictures, generator)
    if not augment.at_input_size:
        part = Part(preprocess.place(picture.height, picture.width))
        targets = move(targets, part, (height, width))
        picture = preprocess.picture(picture)
    elif picture.size != (width, height):
        raise UsageError(
            f"augment gave a picture of {picture.height}x{picture.width}, and says that it is at "
            f"the input's size, {height}x{width}: leave out at_input_size"
        )
    return augment.finish(preprocess.tensor(picture)), targets


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
) -> Augmentation:
    """One of DEFAULTS for inputs as `preprocess` makes them.

    flip          probability of a horizontal flip
    scale         smallest share of a picture's area that fills the input; above 0, 1 for none
    color_jitter  range of brightness, contrast and saturation around 1; 0 for none
    erasing       probability of erasing a rectangle
    mosaic        probability of four pictures in one
    auto_augment  one of AUTO_AUGMENT; with "classify" alone, since boxes would not move with it

    "none" shows what evaluation sees, whatever the settings are. Raises `UsageError` for unknown
    names.
    """
    _check_names(name, auto_augment or "none")
    if name == "none":
        return InTurn()
    if scale is None:
        scale = DEFAULTS[name]["scale"]
    if color_jitter is None:
        color_jitter = DEFAULTS[name]["color_jitter"]
    if name == "classify":
        steps = _cropped(preprocess, scale, flip, auto_augment or "none")
    else:
        layout = layout_of(name, preprocess, scale, mosaic)
        steps = [Arranged(preprocess, layout), Flip(flip)]
    if color_jitter:
        steps.append(Recolored(_colors(name, color_jitter)))
    if erasing:
        steps.append(Erased(erasing))
    return InTurn(*steps)


def _check_names(name: str, policy: str) -> None:
    if name not in DEFAULTS:
        raise UsageError(f"no augmentation {name!r}: {suggest(name, DEFAULTS)}")
    if policy not in AUTO_AUGMENT:
        raise UsageError(f"no auto_augment {policy!r}: {suggest(policy, AUTO_AUGMENT)}")
    if policy != "none" and name not in ("classify", "none"):
        raise UsageError(f"auto_augment is {policy!r}; allowed with boxes and masks: none")


def _cropped(preprocess: Preprocess, scale: float, flip: float, policy: str) -> list[Augmentation]:
    """The first steps of "classify"."""
    steps: list[Augmentation] = [RandomCrop(preprocess, scale)]
    if flip:
        steps.append(Flip(flip))
    make_policy = AUTO_AUGMENT[policy]
    if make_policy is not None:
        steps.append(Recolored(make_policy()))
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


def _colors(name: str, strength: float) -> Recolor:
    """SSD's photometric distortion, at a strength of 0.5 as ParC-Net has it, or plain jitter."""
    around = (max(0.0, 1 - strength), 1 + strength)
    if name == "ssd":
        lights = (max(0.0, 1 - 0.4 * strength), 1 + 0.4 * strength)
        hue = min(0.1 * strength, 0.5)
        distort: Recolor = v2.RandomPhotometricDistort(lights, around, around, (-hue, hue))
        return distort
    # No hue: that takes longer than all the rest.
    jitter: Recolor = v2.ColorJitter(strength, strength, strength)
    return jitter
