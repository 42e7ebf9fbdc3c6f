"""What is trained, with all that it is trained with: `set_up` makes a `Learner`, `fit` runs it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .. import tasks
from ..boxes import Limits
from ..checkpoint import size_of
from ..data import Split
from ..errors import UsageError
from ..inputs.augment import Augmentation
from ..inputs.dataset import ImageDataset
from ..inputs.loader import Batches, batches_of
from ..inputs.samplers import Order, OrderedBatches, SizedBatches
from ..inputs.workers import Say
from ..merged import set_merging
from ..norms import share_norms, unshare_norms
from ..preprocess import Preprocess
from ..processes import mean, rank, world
from ..tasks import Model
from .answers import StoredAnswers, is_store
from .config import TrainConfig
from .distill import objective_of
from .distributed import agree
from .evaluate import evaluate
from .freezing import freeze, freeze_norms
from .log import Result, State
from .objective import Objective, Targets
from .optimizer import average_of, clip_adaptively, lay_out_as_weights, optimizer_of
from .retrieval import evaluate_retrieval
from .run import Before, Training
from .schedule import Schedule
from .setup import (
    evaluation_limits,
    may_be_channels_last,
    order_of,
    sizes_and_boxes,
    sizes_of,
    training_set,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Learner:
    """A model, its data, and what changes its weights."""

    config: TrainConfig
    model: Model
    # the same, as accelerate wraps it: under autocast, and gradients are averaged over processes
    network: nn.Module
    accelerator: "Accelerator"
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objective: Objective
    average: AveragedModel | None
    order: Order  # in which the samples come
    batches: Batches  # of training
    val_batches: Batches
    preprocess: Preprocess
    classes: list[str]
    limits: Limits | None  # of what evaluation keeps of what a detector finds
    channels_last: bool
    frozen_norms: list[nn.Module] = field(default_factory=list)  # which stay in eval mode
    answers: StoredAnswers | None = None  # of a teacher that is not asked any more

    def begin(self, epoch: int, first: int = 0) -> None:
        """Bring all into the state in which an epoch (from 0) goes on with its batch `first`."""
        self.order.epoch = epoch
        cast(OrderedBatches | SizedBatches, self.batches.batch_sampler).first = first
        if self.answers is not None:
            self.answers.open(epoch)
        self.network.train()
        for norm in self.frozen_norms:
            norm.eval()
        if self.config.norm == "frozen":
            freeze_norms(self.model)

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """What is to be minimized of a batch, images (N, 3, H, W), in sum."""
        return self.objective.losses(self.network, self.laid_out(images), targets)

    def laid_out(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) as they lie in memory for the network."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=order)

    @contextmanager
    def group(self, *, ends: bool) -> Iterator[None]:
        """Around forward and backward of a batch; where a group `ends`, gradients are shared."""
        with nullcontext() if ends else self.accelerator.no_sync(self.network):
            yield

    def share_gradients(self) -> None:
        """Average them over the processes, where a group ended before its place in the epoch."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = mean(parameter.grad)

    def update(self, rate: float, decay: float) -> None:
        """Change the weights by the gradients that were summed, and the average with them.

        `decay` is a multiple of the weight decay of each group: none where there is none.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_multiple"]
            group["weight_decay"] = decay * group["decays"]
        if self.config.agc is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            clip_adaptively(self.model.parameters(), self.config.agc)
        if self.config.clip is not None:
            self._clip(self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _clip(self, largest: float) -> None:
        """Scale the whole gradient to a norm; accelerate would unscale it a second time."""
        parameters = self.network.parameters()
        if self.config.agc is None:
            self.accelerator.clip_grad_norm_(parameters, largest)
        else:
            nn.utils.clip_grad_norm_(parameters, largest)

    def forms(self) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        """What is evaluated: "raw" or "ema", the network to evaluate, the model to save."""
        wanted = self.config.evaluate
        agree(self.model, *([] if self.average is None else [self.average.module]))
        if wanted != "average" or self.average is None:
            yield "raw", self.model, self.model
        if wanted != "raw" and self.average is not None:
            yield "ema", self.average.module, self.average.module

    def is_evaluated_after(self, epoch: int) -> bool:
        """Whether an epoch (from 0) ends with an evaluation; the last one always does."""
        return (epoch + 1) % self.config.eval_every == 0 or epoch + 1 == self.config.epochs

    def evaluate(self, network: nn.Module, on_wait: Say | None = None) -> Result:
        device = self.accelerator.device
        if self.config.eval_mode == "retrieval":
            model = cast(Model, network)
            return evaluate_retrieval(model, self.val_batches, self.classes, on_wait, device)
        return evaluate(
            network,
            self.model.task,
            self.val_batches,
            self.classes,
            limits=self.limits,
            on_wait=on_wait,
            device=device,
        )

    def state(self) -> State:
        """All that changes from step to step; random numbers follow from epoch and step."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def bytes_kept(self) -> int:
        """Of the files that an epoch leaves, at most: its state, and each form of the weights."""
        forms = 2 if self.average is None else 3  # last, best, and the average
        return size_of(self.state()) + forms * size_of(self.model.state_dict())

    def load(self, state: State) -> None:
        """Go on from a `state`."""
        self.model.load_state_dict(state["model"])
        decays = [group["decays"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_as_weights(self.optimizer)
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["decays"] = decay  # which older states do not have
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def finish(self) -> None:
        """Leave the model as one that can be used without the run."""
        # takes autocast off model.forward
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        for form in (self.model, self.average):
            if form is not None:
                unshare_norms(form)
        self.model.preprocess = self.preprocess


def _check_own_parts(
    config: TrainConfig,
    objective: Objective | None,
    order: Order | None,
    augment: Augmentation | None,
) -> None:
    """`UsageError` where a setting says what was given to `fit` as an object."""
    if objective is not None and config.teacher is not None:
        raise UsageError(
            f"teacher is {config.teacher!r}, but `fit` was given an objective, which has no use "
            "for it: leave out one of them"
        )
    if order is not None and (config.balance or config.repeats > 1):
        raise UsageError(
            "balance and repeats say the order of the samples, and so does the order that `fit` "
            "was given: leave out one of them"
        )
    if (order is not None or augment is not None) and is_store(config.teacher):
        raise UsageError(
            f"teacher is {config.teacher}, whose answers are to pictures in the order and with the "
            "augmentation of the settings; `fit` was given one of its own: leave out one of them"
        )
    if augment is not None and (config.sizes or config.curriculum):
        raise UsageError(
            "sizes and curriculum need the augmentation at other sizes, which `augment` is not: "
            "leave out one of them"
        )


def _batches(
    model: Model,
    train: Split,
    val: Split,
    training: Training,
    order: Order,
    augment: Augmentation | None,
    answers: StoredAnswers | None,
) -> tuple[Batches, Batches]:
    """Those that are trained on, and those that are evaluated."""
    config, preprocess = training.config, training.preprocess
    task = tasks.find(model.task)
    # answers of a teacher are to the batches that there were when it was asked
    stand_ins = order if config.teacher is None else None
    data = training_set(model.task, train, preprocess, config, augment, stand_ins)
    data.answers = answers

    def batches(images: ImageDataset, order: Order | None = None) -> Batches:
        return batches_of(
            images,
            config.batch_size,
            order=order,
            sizes=sizes_of(config),
            workers=config.workers,
            minutes=config.timeout,
            pin_memory=torch.cuda.is_available() and config.device != "cpu",
            rank=rank(),
            world=world(),
        )

    return batches(data, order), batches(ImageDataset(val, preprocess, target=task.TARGET))


def set_up(
    model: Model,
    train: Split,
    val: Split,
    training: Training,
    accelerator: "Accelerator",
    *,
    objective: Objective | None = None,
    order: Order | None = None,
    augment: Augmentation | None = None,
    before: Before | None = None,
) -> Learner:
    """Everything that a run trains with, in the state that it had `before`.

    What the head wants to know of the data it is told at the start of a run alone: its state holds
    it.
    """
    config, preprocess = training.config, training.preprocess
    task = tasks.find(model.task)
    _check_own_parts(config, objective, order, augment)
    answers = None
    if is_store(config.teacher):
        answers = StoredAnswers.of_training(config, preprocess, train)
    if objective is None:
        objective = objective_of(model, config, train, preprocess, accelerator.device, answers)
    order = order_of(config, train) if order is None else order
    limits = evaluation_limits(config, model, train.classes)
    train_batches, val_batches = _batches(model, train, val, training, order, augment, answers)
    if config.norm == "frozen":
        freeze_norms(model)
    elif config.norm == "sync":
        share_norms(model)
    set_merging(model, config.merge_branches)
    if before is None:
        task.prepare(model.head, sizes_and_boxes(train, preprocess), preprocess.size)
    channels_last = config.channels_last and may_be_channels_last(model, accelerator.device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    frozen_norms = freeze(model, config.freeze) if config.freeze else []

    network, optimizer = accelerator.prepare(model, optimizer_of(model, config))
    learner = Learner(
        config=config,
        model=model,
        network=network,
        accelerator=accelerator,
        optimizer=optimizer,
        schedule=Schedule(config, len(train_batches)),
        objective=objective,
        average=(
            None if config.ema is None else average_of(model, config.ema, warmup=config.ema_warmup)
        ),
        order=order,
        batches=train_batches,
        val_batches=val_batches,
        preprocess=preprocess,
        classes=train.classes,
        limits=limits,
        channels_last=channels_last,
        frozen_norms=frozen_norms,
        answers=answers,
    )
    if before is not None:
        learner.load(before.state)
    return learner
