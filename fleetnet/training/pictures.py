"""The pictures of a run: training batches as the network sees them, samples with the truth beside
what was found, and the worst mistakes among them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from .. import tasks
from ..data import IGNORE, Sample, Split
from ..deploy.predictor import load
from ..errors import DataError
from ..files import writing
from ..inputs.dataset import ImageDataset
from ..preprocess import Preprocess
from ..report.draw import captioned, draw, grid
from .folder import BEST
from .hooks import Hook
from .objective import Targets

TRAINING_BATCHES = ("plots/training_batch_1.jpg", "plots/training_batch_2.jpg")  # in a run folder
SHOWN = 12  # pictures in one sheet
LOOKED_AT = 48  # validation pictures among which mistakes are looked for
SECONDS = 30.0  # for looking, at most: heads with masks take long
SIDE = 320  # pixels of one picture in a sheet
OVERLAP = 0.5  # IoU from which an object counts as found
USUAL_SCORE = 0.3  # from which objects are shown, where F1 says nothing


class TrainingBatches(Hook):
    """Draws the first batches of a training into plots/ of its `run`."""

    may_stop = True

    def __init__(self, run: Path, classes: Sequence[str]):
        self.files, self.classes = [run / name for name in TRAINING_BATCHES], classes

    def batch(self, images: Tensor, targets: Targets, preprocess: Preprocess) -> None:
        if not self.files:  # all are drawn
            return
        file = self.files.pop(0)
        sheet = []
        for i, image in enumerate(images[:SHOWN]):
            picture = preprocess.picture_of(image.detach().cpu())
            truth = {key: value[i] for key, value in targets.items()}
            sheet.append(
                captioned(
                    _with_truth(picture, truth, self.classes), _words(truth, self.classes), SIDE
                )
            )
        with writing(file.parent):
            file.parent.mkdir(exist_ok=True)  # a run folder that is gone is not made again
        grid(sheet, 4, file)


@dataclass(frozen=True)
class _Looked:
    """A validation picture with its truth and what was found, in words and drawn."""

    pictures: tuple[Image.Image, ...]  # one, or truth and prediction
    captions: tuple[str, ...]
    mistake: float  # how bad; 0 where all is right


def samples(run: Path, val: Split) -> None:
    """plots/samples.jpg and plots/mistakes.jpg: the best weights on some validation pictures."""
    predictor = load(run / BEST)
    task = tasks.find(predictor.task)
    data = ImageDataset(val, predictor.preprocess, target=task.TARGET)
    best_score = predictor.facts.best_score  # where F1 was best
    threshold = USUAL_SCORE if best_score is None else best_score
    looked: list[_Looked] = []
    began = time.monotonic()
    for index in _spread(val, LOOKED_AT):
        if time.monotonic() - began > SECONDS:
            break
        try:
            picture, truth = data.annotated(index)
        except DataError:  # named when it was evaluated
            continue
        prediction = predictor.predictions([picture])[0]
        looked.append(_look(picture, truth, prediction, predictor.classes, threshold))
    if not looked:
        return
    columns = 4 // len(looked[0].pictures)
    worst = sorted((one for one in looked if one.mistake > 0), key=lambda one: -one.mistake)
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


def spread(split: Split, count: int) -> list[Sample]:
    """At most `count` samples: one of each class in turn, where classes are known, then others."""
    return [split.samples[i] for i in _spread(split, count)]


def _spread(split: Split, count: int) -> list[int]:
    """The indices of what `spread` gives."""
    by_class: dict[int, list[int]] = {}
    for index, sample in enumerate(split.samples):
        if sample.label is not None:
            labels = [sample.label]
        else:
            labels = sorted({item.label for item in sample.objects or ()})
        for label in labels:
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


def _look(
    picture: Image.Image,
    truth: Mapping[str, Tensor],
    prediction: Mapping[str, Tensor],
    classes: Sequence[str],
    threshold: float,
) -> _Looked:
    if "label" in truth:
        right = int(truth["label"])
        probabilities = prediction["logits"].softmax(0)
        found = int(probabilities.argmax())
        said = f"{classes[found]} {probabilities[found]:.2f}"
        if found == right:
            return _Looked((picture,), (said,), 0.0)
        caption = f"{said}, is {classes[right]}"
        return _Looked(
            (picture,), (caption,), 1 + float(probabilities[found] - probabilities[right])
        )
    drawn = draw(*_enlarged(picture, prediction), classes, threshold)
    pictures = (_with_truth(picture, truth, classes), drawn)
    if "semantic" in truth:
        known = truth["semantic"] != IGNORE
        share = (
            float((prediction["semantic"].cpu() == truth["semantic"])[known].float().mean())
            if known.any()
            else 1.0
        )
        return _Looked(pictures, ("truth", f"{share:.1%} of the pixels right"), 1 - share)
    missed, wrong = _missed_and_wrong(truth, prediction, threshold)
    return _Looked(
        pictures, (_words(truth, classes), f"{missed} missed, {wrong} wrong"), float(missed + wrong)
    )


def _missed_and_wrong(
    truth: Mapping[str, Tensor], prediction: Mapping[str, Tensor], threshold: float
) -> tuple[int, int]:
    """Objects that were missed, and boxes that are no object of their class; crowds are neither."""
    kept = prediction["scores"] >= threshold
    boxes, labels = prediction["boxes"][kept], prediction["labels"][kept]
    single = ~truth["crowd"] if "crowd" in truth else truth["labels"] >= 0
    overlap = box_iou(boxes.float(), truth["boxes"].float())  # (found, true)
    overlap = overlap * (labels[:, None] == truth["labels"][None])
    free = single.clone()
    wrong = 0
    for i in prediction["scores"][kept].argsort(descending=True).tolist():
        of_free = overlap[i] * free
        if len(of_free) and of_free.max() >= OVERLAP:
            free[int(of_free.argmax())] = False
        elif not (overlap[i][~single] > 0).any():
            wrong += 1
    return int(free.sum()), wrong


def _with_truth(
    picture: Image.Image, truth: Mapping[str, Tensor], classes: Sequence[str]
) -> Image.Image:
    drawable = {
        key: value
        for key, value in truth.items()
        if key in ("boxes", "labels", "masks", "semantic")
    }
    return draw(*_enlarged(picture, drawable), classes) if drawable else picture


def _enlarged(
    picture: Image.Image, drawable: Mapping[str, Tensor]
) -> tuple[Image.Image, dict[str, Tensor]]:
    """A small picture at the size of its place in a sheet, so that names do not cover it."""
    factor = SIDE // max(picture.size)
    if factor < 2:
        return picture, dict(drawable)
    larger = picture.resize((picture.width * factor, picture.height * factor))
    moved = dict(drawable)
    if "boxes" in moved:
        moved["boxes"] = moved["boxes"] * factor
    for key in ("masks", "semantic"):
        if key in moved:
            rows = moved[key].repeat_interleave(factor, -2)
            moved[key] = rows.repeat_interleave(factor, -1)
    return larger, moved


def _words(truth: Mapping[str, "Tensor"], classes: Sequence[str]) -> str:
    """The annotation of one picture in a few words."""
    if "label" in truth:
        label = truth["label"]
        if label.ndim == 0:
            return classes[int(label)]
        # mixed pictures
        shares = [(float(share), classes[i]) for i, share in enumerate(label) if share > 0.01]
        return " + ".join(f"{share:.2f} {name}" for share, name in sorted(shares, reverse=True))
    if "boxes" in truth:
        count = len(truth["boxes"])
        return f"truth: {count} object{'' if count == 1 else 's'}"
    return "truth"
