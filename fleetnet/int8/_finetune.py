"""Fine-tuning in int8: `fine_tune`, for an int8 file that loses nothing.

    deploy form -> float file, proven -> int8 file, calibrated -> its rounding in torch -> fine-tuned

It begins where the quantizer ends. The network is rounded in training as the file rounds it
(`_fake.py`), all of its layers, gates too, and learns to say what the float network says of the
training pictures, which are changed as they were in training. Annotations are not looked at. Every
branch sum is one kernel, so what is rounded in training is what is deployed. That kernel learns
itself, or with `Plan.branches` the branches that it is merged from, by the exact statistics of the
batch (`merged.py`) until the norms are frozen. RepQ (arXiv:2311.05317) rounds merged kernels too,
with statistics that are approximate; QARepVGG (arXiv:2212.01593) and RepAPQ (arXiv:2402.16121)
change the block instead.

What is random belongs to the seed, the epoch and the sample, as in training, so one seed gives one
file. Nothing is written until the end: where it is interrupted, it leaves nothing.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Split
from ..errors import DataError, NotFiniteError, UsageError
from ..facts import Facts
from ..inputs.dataset import ImageDataset
from ..inputs.loader import MINUTES, Batches, batches_of
from ..inputs.samplers import Order, Shuffled
from ..inputs.workers import patient
from ..merged import BranchSum
from ..tasks import named
from ..training.config import TrainConfig
from ..training.schedule import half_cosine
from ..training.setup import training_set
from ._fake import LARGEST, FakeQuantized
from ._prepared import Prepared, evaluated, float_file, job_of
from .onnx import quantized_of

RATE = 0.02  # steps of int8 that a weight changes by in an update, at first
BATCH = 32  # pictures of an update, at most
WARMUP = 0.1  # of the updates
FROZEN = 0.5  # of the updates, after which the batch norms of branches learn no more
SMALLEST = 1e-3  # largest value of a parameter, at least, for its rate
# Settings of the training that decide how its pictures are changed; its sizes, mixing and order
# are not those of a file that takes one size.
CHANGES = "augment", "mosaic", "scale", "flip", "color_jitter", "auto_augment", "erasing"


@dataclass(frozen=True)
class Plan:
    """How it is fine-tuned."""

    epochs: int  # passes over the training pictures
    rate: float = RATE
    seed: int = 0  # of the order and of what is done to the pictures
    branches: bool = False  # whether the branches behind a merged kernel learn in its place

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 < self.rate < math.inf:
            raise UsageError(
                f"fine-tuning for {self.epochs} epochs at a rate of {self.rate}; allowed: at least "
                "1 epoch, a rate above 0"
            )

    def share(self, update: int, updates: int) -> float:
        """Of the rate: a line up, then half a cosine down to 0."""
        warmup = max(1.0, WARMUP * updates)
        return min((update + 1) / warmup, half_cosine(max(0.0, update - warmup), updates - warmup))


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A network in int8 that was fine-tuned, for the files of any runtimes."""

    network: FakeQuantized  # which the files compute
    skipped: list[str]  # layers that the user left in float
    result: dict[str, object]  # of the task's metric, computed by torch
    logits: Tensor | None  # of the validation set, of a classifier: (N, classes)
    about: dict[str, object]  # how it was fine-tuned


def fine_tune(
    prepared: Prepared,
    train: Split,
    plan: Plan,
    *,
    skipped: Sequence[str] = (),
    workers: int = 0,
    minutes: float = MINUTES,
    report: Callable[[str], None] = lambda message: None,
) -> FineTuned:
    """Fine-tune what `prepare` made on the pictures of `train`, in int8 but for layers `skipped`.

    Raises `ExportError` where the float file does not compute what the network computes, or has
    operators that cannot be trained, `NotFiniteError` where the rate is too high.
    """
    sums = _sums(prepared.model) if plan.branches else {}
    network = begin(prepared, set(skipped))
    network.put_branches(sums, prepared.scales)
    order = Shuffled(len(train.samples), plan.seed)
    data = _pictures(train, prepared.facts, plan, order)
    batches = batches_of(data, BATCH, order=order, workers=workers, minutes=minutes)
    training = _Training(network, prepared.deployed, plan, prepared.facts.task, len(batches))
    losses, unreadable = [], list[str]()
    for epoch in range(plan.epochs):
        order.epoch = epoch
        losses.append(training.epoch(batches, epoch, unreadable))
        report(
            f"epoch {epoch + 1} of {plan.epochs}: {losses[-1]:.4g} from what the float network says"
        )
    network.eval()
    result, logits = evaluated(
        network, prepared.facts.task, prepared.batches, prepared.facts.classes, prepared.limits
    )
    about = {**asdict(plan), "pictures": len(data), "losses": losses, "skipped": unreadable}
    return FineTuned(network, list(skipped), result, logits, about)


def begin(prepared: Prepared, skipped: set[str]) -> FakeQuantized:
    """The int8 network that fine-tuning begins with: that of the quantizer, but with its gates."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        job = job_of(prepared, "onnx", Path(folder) / "model.onnx")
        file = float_file(job, Path(folder))
        quantized = quantized_of(file, prepared.images.numpy(), gates=True)
        return FakeQuantized(quantized(skipped), onnx.load(file).graph)


def _sums(model: nn.Module) -> dict[str, BranchSum]:
    """The sums of branches of a network, by name; `UsageError` where there is none."""
    sums = {name: one for name, one in model.named_modules() if isinstance(one, BranchSum)}
    if not sums:
        raise UsageError(
            "branches are to be fine-tuned, but the network has no sum of branches, as those of "
            "MobileOne and RepViT have"
        )
    return sums


def _pictures(train: Split, facts: Facts, plan: Plan, order: Order) -> ImageDataset:
    """The training pictures as the network learned from them, at the size of the file."""
    settings: dict[str, Any] = {
        key: facts.settings[key] for key in CHANGES if key in facts.settings
    }
    config = TrainConfig(**settings, epochs=plan.epochs, seed=plan.seed, plain_epochs=0)
    return training_set(facts.task, train, facts.preprocess, config, order=order)


class _Training:
    """A network that learns to say in int8 what its teacher says in float."""

    def __init__(
        self, network: FakeQuantized, teacher: nn.Module, plan: Plan, task: str, steps: int
    ):
        self.network, self.teacher, self.plan = network, teacher, plan
        self.task, self.steps = task, steps  # batches of an epoch
        self.optimizer = torch.optim.Adam(_groups(network, plan.rate), lr=plan.rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        network.train()

    def epoch(self, batches: Batches, epoch: int, unreadable: list[str]) -> float:
        """The mean loss of an epoch, from 0; the lines of pictures that could not be read are added."""
        losses: list[float] = []
        for step, batch in enumerate(patient(batches), epoch * self.steps):
            unreadable += [line for line in batch.skipped if line not in unreadable]
            if len(batch.images):
                losses.append(self._update(batch.inputs(), step))
        if not losses:
            raise DataError(f"no picture could be read to fine-tune on; the first: {unreadable[0]}")
        return sum(losses) / len(losses)

    def _update(self, images: Tensor, step: int) -> float:
        """Learn from a batch (N, C, H, W): the loss."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            taught = named(self.teacher(images))
        loss = distance(self.network(images), taught, self.task)
        if not math.isfinite(loss.item()):
            raise NotFiniteError(
                f"fine-tuning diverged: the loss is {loss.item()} at update {step + 1}, at a rate "
                f"of {self.plan.rate:g} steps; try a lower one"
            )
        self.optimizer.zero_grad()
        loss.backward()
        updates = self.plan.epochs * self.steps
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.plan.share(step, updates)
        self.optimizer.step()
        if step + 1 >= FROZEN * updates:
            self.network.freeze_norms()
        return loss.item()


def _groups(network: FakeQuantized, rate: float) -> list[dict[str, object]]:
    """What learns, with its rate: what is in steps of int8, and what is in units of its own.

    A step of these is a 127th of the largest value, as that of a channel is.
    """
    in_steps, groups = list[nn.Parameter](), list[dict[str, object]]()
    for name, parameter in network.named_parameters():
        if ".branches." in name:
            step = max(parameter.abs().max().item(), SMALLEST) / LARGEST
            groups.append({"params": [parameter], "lr": rate * step})
        else:
            in_steps.append(parameter)
    return [{"params": in_steps, "lr": rate}, *groups]


def distance(own: Mapping[str, Tensor], taught: Mapping[str, Tensor], task: str) -> Tensor:
    """How far outputs are from what they should be, at least 0.

    Of a classifier the Kullback-Leibler divergence from the teacher's probabilities; else of each
    output the mean square of the difference, as a share of the teacher's variance.
    """
    if task == "classification":
        (name,) = taught
        return F.kl_div(own[name].log_softmax(1), taught[name].softmax(1), reduction="batchmean")
    parts = [
        (own[name] - value).square().mean() / value.var().clamp(min=1e-12)
        for name, value in taught.items()
        if value.is_floating_point()
    ]
    return torch.stack(parts).sum()
