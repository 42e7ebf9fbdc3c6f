"""The pictures of a run: training batches as the network sees them, samples with the truth beside
what was found, and the worst mistakes among them.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .. import checkpoint, tasks
from ..boxes import Limits
from ..data import Sample, Split
from ..errors import DataError
from ..files import writing
from ..images import visible
from ..inputs.dataset import ImageDataset
from ..predictions import Judged, Prediction
from ..preprocess import Preprocess
from ..report.draw import captioned, grid
from ..resizing import array_of
from ..tasks import limits_of, named
from .folder import BEST
from .hooks import Hook
from .objective import Targets

TRAINING_BATCHES = ("plots/training_batch_1.jpg", "plots/training_batch_2.jpg")  # in a run folder
SHOWN = 12  # pictures in one sheet
LOOKED_AT = 48  # validation pictures among which mistakes are looked for
SECONDS = 30.0  # for looking, at most: heads with masks take long
SIDE = 320  # pixels of one picture in a sheet
USUAL_SCORE = 0.3  # from which objects are shown, where F1 says nothing


class TrainingBatches(Hook):
    """Draws the first batches of a training into plots/ of its `run`."""

    may_stop = True

    def __init__(
        self, run: Path, kind: type[Prediction], classes: Sequence[str], *, new: bool = True
    ):
        """`kind` is the type of the task's predictions, which knows how to draw its annotation.

        Of a run that is not `new` only those that were not drawn before.
        """
        files = [run / name for name in TRAINING_BATCHES]
        self.files = [file for file in files if new or not file.is_file()]
        self.kind, self.classes = kind, classes

    def batch(self, images: Tensor, targets: Targets, preprocess: Preprocess) -> None:
        if not self.files:  # all are drawn
            return
        file = self.files.pop(0)
        sheet = drawn(images[:SHOWN], targets, self.kind, self.classes, preprocess)
        with writing(file.parent):
            file.parent.mkdir(exist_ok=True)  # a run folder that is gone is not made again
        grid(sheet, 4, file)


def drawn(
    images: Tensor,
    targets: Targets,
    kind: type[Prediction],
    classes: Sequence[str],
    preprocess: Preprocess,
) -> list[Image.Image]:
    """Each image (N, 3, H, W) of a batch with its annotation on it, and that in words above it."""
    pairs = annotated(images, targets, kind, classes, preprocess)
    return [captioned(picture, words, SIDE) for picture, words in pairs]


def annotated(
    images: Tensor,
    targets: Targets,
    kind: type[Prediction],
    classes: Sequence[str],
    preprocess: Preprocess,
) -> Iterator[tuple[Image.Image, str]]:
    """Each image (N, 3, H, W) of a batch with its annotation on it, and that in words."""
    for i, image in enumerate(images):
        picture = preprocess.picture_of(image.detach().cpu())
        truth = {key: value[i].cpu() for key, value in targets.items()}
        yield kind.show(picture, truth, classes, SIDE)


def samples(run: Path, val: Split) -> None:
    """plots/samples.jpg and plots/mistakes.jpg: the best weights on some validation pictures."""
    best = checkpoint.load(run / BEST)
    task = tasks.find(best.model.task)
    limits = limits_of(best.facts)
    if limits is not None and task.limit is not None:
        task.limit(best.model.head, limits)
    data = ImageDataset(val, best.preprocess, target=task.TARGET)
    best_score = best.facts.best_score  # where F1 was best
    threshold = USUAL_SCORE if best_score is None else best_score
    looked: list[Judged] = []
    began = time.monotonic()
    for index in _spread(val, LOOKED_AT):
        if time.monotonic() - began > SECONDS:
            break
        try:
            pixels, truth = data.annotated(index)
        except DataError:  # named when it was evaluated
            continue
        picture = visible(array_of(pixels))
        prediction = _found(best, pixels, limits)
        looked.append(prediction.judge(picture, truth, best.classes, threshold, SIDE))
    if not looked:
        return
    columns = 4 // len(looked[0].pictures)
    worst = sorted((one for one in looked if one.mistake > 0), key=lambda one: -one.mistake)
    with writing(run / "plots"):
        (run / "plots").mkdir(exist_ok=True)  # it may have been removed, or be left out of a copy
    for name, chosen in (("samples", looked[:SHOWN]), ("mistakes", worst[:SHOWN])):
        path = run / "plots" / f"{name}.jpg"
        path.unlink(missing_ok=True)
        if chosen:
            sheet = [
                captioned(picture, caption, SIDE)
                for one in chosen
                for picture, caption in zip(one.pictures, one.captions, strict=True)
            ]
            grid(sheet, columns * len(looked[0].pictures), path)


@torch.inference_mode()
def _found(best: checkpoint.Checkpoint, picture: Tensor, limits: Limits | None) -> Prediction:
    """What the weights find in a picture (C, height, width) uint8, in its pixels."""
    outputs = named(best.model(best.preprocess(picture)[None]))
    (decoded,) = tasks.find(best.model.task).decode(outputs, best.preprocess.size, limits)
    height, width = picture.shape[1:]
    return decoded.restore(best.preprocess.place(height, width))


def spread(split: Split, count: int) -> list[Sample]:
    """At most `count` samples: one of each class in turn, where classes are known, then others."""
    return [split.samples[i] for i in _spread(split, count)]


def _spread(split: Split, count: int) -> list[int]:
    """The indices of what `spread` gives."""
    by_class: dict[int, list[int]] = {}
    for index, sample in enumerate(split.samples):
        for label in sorted(set(sample.labels())):
            by_class.setdefault(label, []).append(index)
    longest = max(map(len, by_class.values()), default=0)
    in_turn = [
        indices[i]
        for i in range(longest)
        for _, indices in sorted(by_class.items())
        if i < len(indices)
    ]
    step = max(1, len(split.samples) // count)
    return list(dict.fromkeys([*in_turn, *range(0, len(split.samples), step)]))[:count]
