"""The figures of a model on annotated images, whatever computes it: `evaluate`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import tasks
from ..boxes import Limits
from ..errors import DataError, ModelError, named_arguments
from ..inputs.dataset import Batch
from ..inputs.workers import Say, patient
from ..predictions import Detections, OfInput, Prediction, all_of
from ..processes import by_first, gathered
from ..tasks import Limiting, Outputs, named
from .distributed import beat
from .log import Result


@named_arguments
@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: str,
    batches: Iterable[Batch],
    classes: Sequence[str],
    on_prediction: Callable[[Prediction, int], None] | None = None,
    limits: Limits | None = None,
    on_wait: Say | None = None,
    device: torch.device | None = None,
) -> Result:
    """The task's metric of a model over all batches; a line for each skipped image.

    `model` takes images (N, 3, H, W) and may be a `Predictor`, so an exported file; its mode is
    restored. Predictions are compared in the pixels of each picture, as it is in its file;
    `on_prediction` receives each with the index of its sample; `on_wait` gets a line for each half
    minute that `batches` of several processes are waited for. `classes` are names. `limits` are
    what a detector keeps of what it finds: those of a `Predictor`, else the task's own, unless
    given; AP is of 100 objects a picture and class, as COCO has it, whatever they are. Raises
    `DataError` where there is nothing to measure the task's first figure on, and `ModelError` where
    the outputs are not finite.
    """
    of_task = tasks.find(task)
    counted = Counted(of_task.metric(classes), Reached())
    metric, reached = counted.metric, counted.reached
    limits = limits or (model.limits if isinstance(model, Limiting) else None) or of_task.LIMITS
    training = model.training
    model.eval()
    try:
        for batch in patient(batches, on_wait):
            beat()
            counted.skipped += batch.skipped
            if len(batch.images) == 0:
                continue
            batch = batch if device is None else batch.on(device)
            outputs = named(model(batch.inputs().contiguous()))
            _check_finite(outputs)
            height, width = batch.images.shape[-2:]
            decoded = of_task.decode(outputs, (height, width), limits)
            if limits is not None:
                reached.add(decoded, batch.targets["labels"], limits.count)
            # Of those of pixels one picture at a time is in memory.
            at_once = 1 if any(one.per_pixel for one in decoded) else len(decoded)
            for start in range(0, len(decoded), at_once):
                part = slice(start, start + at_once)
                pairs = zip(decoded[part], batch.places[part], strict=True)
                predictions = [prediction.restore(place) for prediction, place in pairs]
                metric.add(predictions, {key: value[part] for key, value in batch.targets.items()})
                if on_prediction is not None:
                    for prediction, sample in zip(predictions, batch.indices[part], strict=True):
                        on_prediction(prediction, sample)
            counted.images += len(decoded)
    finally:
        model.train(training)
    of_all = gathered(counted)
    return by_first(lambda: joined(of_all).result(limits))


@dataclass
class Counted:
    """What an evaluation has counted, in one process."""

    metric: tasks.Metric
    reached: "Reached"
    skipped: list[str] = field(default_factory=list)  # a line for each image
    images: int = 0

    def result(self, limits: Limits | None) -> Result:
        if not self.images:
            first = self.skipped[0] if self.skipped else "none given"
            raise DataError(f"no image could be read for evaluation; the first: {first}")
        result = self.metric.result()
        if limits is not None:
            result |= self.reached.result(result["score"], limits.count, result["notes"])
        decisive = next(iter(result))
        if result[decisive] is None:
            notes = "; ".join(result["notes"])
            raise DataError(f"nothing to measure {decisive} on in {self.images} images: {notes}")
        return {**result, "skipped": self.skipped}


def joined(parts: Sequence[Counted]) -> Counted:
    """The counts of all processes, in the first of them."""
    first, *others = parts
    for other in others:
        first.metric.join(other.metric)
        first.reached.join(other.reached)
        first.skipped += other.skipped
        first.images += other.images
    return first


class Reached:
    """How many pictures have as many objects as are kept at most, so that there may be more."""

    def __init__(self) -> None:
        self.lowest: list[float] = []  # score that is kept in each picture with that many objects
        self.crowded = 0  # pictures with more objects in the truth

    def add(self, predictions: Sequence[OfInput], truths: Sequence[Tensor], most: int) -> None:
        """Predictions of a batch, and the labels (n,) of its pictures' objects."""
        full = [one.scores for one in all_of(Detections, predictions) if len(one) >= most]
        self.lowest += [scores.min().item() for scores in full]
        self.crowded += sum(len(labels) > most for labels in truths)

    def join(self, other: "Reached") -> None:
        self.lowest += other.lowest
        self.crowded += other.crowded

    def result(self, score: float | None, most: int, notes: Sequence[str]) -> Result:
        """ "at_limit": how many pictures may have more objects of at least a score; with a note."""
        at_limit = sum(score is not None and lowest >= score for lowest in self.lowest)
        all_notes = list(notes)
        if at_limit:
            all_notes.append(
                f"{at_limit} pictures have {most} objects of a score of at least {score:.2f}, "
                "which is all that is kept: there may be more, see --max-objects"
            )
        if self.crowded:
            all_notes.append(
                f"{self.crowded} pictures show more than the {most} objects that are kept: "
                "see --max-objects"
            )
        return {"at_limit": at_limit, "notes": all_notes}


def _check_finite(outputs: Outputs) -> None:
    """`ModelError` for outputs with NaN or infinity: compared, they would count as an answer."""
    for name, output in outputs.items():
        if output.is_floating_point() and not output.isfinite().all():
            raise ModelError(
                f"the network's output {name!r} has NaN or infinity, so nothing can be measured: "
                "its weights are damaged or diverged, or its precision is too small for it"
            )
