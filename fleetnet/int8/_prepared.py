"""A trained network that is to be written in int8, and what it is measured by: `prepare`.

    checkpoint -> [batch norms on your images] -> deploy form -> [equalized]

What is in brackets is made where it is asked for. The checkpoint is read once, and evaluated once
on the validation set; every int8 file is then evaluated on the same batches.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import runtimes
from ..boxes import Limits
from ..deploy.export import Deployable, facts_of_use
from ..deploy.package import Job
from ..deploy.predictor import Predictor
from ..deploy.trained import Trained
from ..errors import DataError, ModelError
from ..facts import Facts
from ..images import Source as OfPicture
from ..inputs.dataset import Batch
from ..inputs.workers import patient
from ..predictions import Labels, Prediction
from ..preprocess import Preprocess
from ..proof.agreement import Meaning
from ..reading import Member
from ..reparam import reparameterize
from ..tasks import limits_of
from ..training.evaluate import evaluate
from ..weights.read import locate
from ._equalize import Scales, equalize
from ._norms import recalibrate
from ._sensitivity import BATCH, Layer, sensitivity

IMAGES = 128  # for calibration; of sixteen times as many values the extremes hardly change
COMPARED = 8  # of them, on which the float file is compared with the network


@dataclass
class Prepared:
    """A trained network that is to be written in int8, for any runtimes; see `prepare`."""

    facts: Facts  # of the checkpoint, and how its files are used
    model: nn.Module = field(repr=False)  # multi-branch, in float
    deployed: nn.Module = field(repr=False)  # what is written
    images: Tensor = field(repr=False)  # to calibrate on, (N, C, H, W)
    examples: Sequence[Tensor] = field(repr=False)  # the float file is compared on, (1, C, H, W)
    held: Tensor = field(repr=False)  # some of the validation set
    batches: Iterable[Batch] = field(repr=False)  # of the validation set
    result: dict[str, object] = field(repr=False)  # what the checkpoint reaches on it
    logits: Tensor | None = field(repr=False)  # and says, if it is a classifier
    meaning: Meaning | None = field(default=None, repr=False)  # of the outputs
    scales: Scales = field(default_factory=dict, repr=False)  # of layers, equalized
    recalibrated: bool = False  # batch norms
    measured: list[Layer] | None = field(default=None, init=False, repr=False)  # `sensitivity`

    @property
    def equalized(self) -> int:
        """How many layers take or give channels that were made alike."""
        return len(self.scales)

    @property
    def limits(self) -> Limits | None:
        """Of what is kept of what a detector finds."""
        return limits_of(self.facts)

    @property
    def metric(self) -> str:
        """The task's first figure, which decides; in percent."""
        return next(iter(self.result))

    @property
    def sensitivity(self) -> list[Layer]:
        """What int8 does to each layer alone, the worst first; measured when first asked for."""
        if self.measured is None:
            some = self.images[:: -(-len(self.images) // BATCH)]
            self.measured = sensitivity(self.deployed, some)
        return self.measured


def source_of(model: str | Path) -> Path:
    """The checkpoint file of a run folder, or itself; `ModelError` for what is none."""
    file = locate(Path(model))
    if file.suffix != ".safetensors":
        raise ModelError(
            f"{file} is no checkpoint: int8 is made from a run folder or its .safetensors"
        )
    return file


def calibration(
    sources: Sequence[Path | Member | Callable[[], OfPicture]],
    preprocess: Preprocess,
    count: int = IMAGES,
) -> Tensor:
    """Up to `count` pictures spread over all, as the network gets them: (N, C, H, W).

    Files that cannot be read are passed over; `DataError` if none can.
    """
    images, reason = [], "there are none"
    for i in range(min(count, len(sources))):
        source = sources[i * len(sources) // min(count, len(sources))]
        try:
            images.append(preprocess(preprocess.read(source() if callable(source) else source)))
        except DataError as error:
            reason = str(error)
    if not images:
        raise DataError(f"no pictures for the calibration: {reason}")
    return torch.stack(images)


def prepare(
    model: str | Path,
    images: Tensor,
    batches: Iterable[Batch],
    *,
    equalizing: bool = True,
    recalibrating: bool = False,
) -> Prepared:
    """The deploy form of a checkpoint, made easy to quantize, and what the checkpoint reaches.

    `images` (N, C, H, W) are preprocessed (see `calibration`); `batches` are those of the validation
    set, whose classes are the checkpoint's, and are gone through once for each evaluation.
    `recalibrating` gives the batch norms the statistics of the images before they are folded (see
    `recalibrate`), `equalizing` makes channels alike (see `_equalize.py`). Raises `ModelError` for
    what is no checkpoint.
    """
    trained = Trained.read(source_of(model))
    held: list[Tensor] = []

    def watched() -> Iterator[Batch]:
        for batch in patient(batches):
            # Of one picture: a part of all inputs would keep the memory of all.
            held.extend(batch._replace(images=batch.images[:1]).inputs())
            yield batch

    classes = trained.facts.classes
    predictor = Predictor(trained)
    result, logits = evaluated(predictor, predictor.task, watched(), classes)
    limits = limits_of(trained.facts)
    deployable = Deployable(trained.model, trained.preprocess, limits=limits)
    network: nn.Module = copy.deepcopy(deployable.network()).float()
    if recalibrating:
        network = recalibrate(network, images)
    deployed = reparameterize(network, images[:1])
    scales: Scales = {}
    if equalizing:
        deployed, scales = equalize(deployed, images)
    pictures = images[:: -(-len(images) // COMPARED)].split(1)
    return Prepared(
        facts_of_use(trained.facts, deployable),
        network,
        deployed,
        images,
        [*(example.float() for example in deployable.examples()), *pictures],
        torch.stack(held[:: -(-len(held) // BATCH)]),
        batches,
        result,
        logits,
        deployable.meaning(),
        scales,
        recalibrating,
    )


def job_of(prepared: Prepared, runtime: str, path: Path) -> Job:
    """What the float file of a runtime is made from, and compared on.

    Those are the same images, and the same rules, as of a file that is exported.
    """
    return Job(
        prepared.model,
        prepared.deployed,
        prepared.images[:1],
        path,
        runtime,
        "fp32",
        prepared.examples,
        prepared.meaning,
        explain=True,
    )


def float_file(job: Job, folder: Path) -> Path:
    """What int8 files are made from, proven equal to the network."""
    runtime = runtimes.find(job.runtime)
    request = job.request(folder / f"float{runtime.suffix}", {})
    request = replace(request, products=False)  # convolutions, whose kernels int8 can have
    runtime.export(request)
    job.prove(request)
    return request.path


def evaluated(
    network: nn.Module,
    task: str,
    batches: Iterable[Batch],
    classes: Sequence[str],
    limits: Limits | None = None,
) -> tuple[dict[str, object], Tensor | None]:
    """The task's figures, and of a classifier the logits of all images: (N, classes)."""
    logits: list[Tensor] = []

    def keep(prediction: Prediction, sample: int) -> None:
        if isinstance(prediction, Labels):
            logits.append(prediction.logits)

    result = evaluate(network, task, batches, classes, on_prediction=keep, limits=limits)
    return result, torch.stack(logits) if logits else None


def decisive(result: Mapping[str, Any]) -> float:
    """The first figure, which decides; `DataError` where there was nothing to measure it on."""
    name, value = next(iter(result.items()))
    if value is None:
        raise DataError(f"the validation set has nothing to measure {name} on")
    return float(value)


def figures(result: Mapping[str, object]) -> dict[str, float]:
    """The numbers among what a metric found."""
    return {key: value for key, value in result.items() if isinstance(value, int | float)}
