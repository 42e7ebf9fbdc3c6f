"""Any step of a run once more: what the network saw, its losses and gradients, and what broke.

Nothing is stored for it. All that is random in a step follows from the seed and the place in the
run, so its batch is made at once. Its weights are those of the state that was saved last where that
is of an earlier step, and else those that the run began with; from there the run is trained again
up to the step, in memory. The run's folder is only read.

What several processes trained is computed in one: the batch is the same, and batch norms take the
statistics of all of it, which in the run only synchronized ones did.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data import Split
from ..errors import UsageError, named_arguments
from ..inputs.augment import Augmentation, check_augmentation
from ..inputs.dataset import Batch
from ..inputs.randomness import states_kept
from ..inputs.samplers import Order
from ..inputs.workers import Say, patient
from ..preprocess import Preprocess
from ..tasks import Model
from .config import AUTO, TrainConfig
from .epoch import inputs_of, is_too_small, losses_of, train_one_epoch
from .fingerprint import check_same
from .folder import STATE
from .hooks import Callbacks, Pace, Progress
from .keeping import Keeper
from .learner import Learner, set_up
from .log import Line, read_log
from .nonfinite import NotFinite, Watch, are_finite
from .objective import Objective, Targets
from .run import Before, state_of
from .setup import accelerator_of, order_of, steps_of, training_of
from .so_far import EpochSoFar


class Moment(NamedTuple):
    """A step of a run, both counted from 0; of two the earlier one is the smaller."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step + 1} of epoch {self.epoch + 1}"


@dataclass(frozen=True)
class Computed:
    """What came of a step."""

    came_from: str  # where its weights were taken from, in words
    trained: int  # steps that were trained from there on
    # Epochs on the way whose losses are not to the bit those in the run's log, in words.
    differing: list[str]
    loss: float  # the sum of `losses`
    losses: dict[str, float]
    lr: float
    # Of all gradients of the group of batches by now; None: no loss to go back from.
    gradient_norm: float | None
    output: NotFinite | None  # the first module whose output is not finite
    gradient: NotFinite | None  # and whose gradient is not
    weight: str | None  # that is not finite after the update, where there is one after this step


@dataclass(frozen=True)
class Replayed:
    """A step of a run as it was."""

    number: int  # of all steps of the run, from 1
    epoch: int  # from 1
    step: int  # of the epoch, from 1
    # What the network saw, (N, C, H, W); (0,) where no file could be read.
    images: Tensor
    targets: Targets
    preprocess: Preprocess
    indices: list[int]  # of the samples in the split
    skipped: list[str]  # a line for each file that could not be read, with the reason
    computed: Computed | None  # None: it was not wanted, or too few files could be read for a step


@named_arguments
def replay(
    model: Model,
    train: Split,
    config: TrainConfig,
    run: str | Path,
    step: int,
    *,
    epoch: int | None = None,
    preprocess: Preprocess | None = None,
    objective: Objective | None = None,
    order: Order | None = None,
    augment: Augmentation | None = None,
    only_batch: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_wait: Say | None = None,
) -> Replayed:
    """Compute a step of a run once more, with the weights that it began with.

    `model` and the arguments after it are those that the run began with: it is changed in place,
    and needs the starting weights only where no state of an earlier step was saved. `step` counts
    from 1, in the run or in the `epoch`. `only_batch` is what the network saw without computing
    anything, which needs no training up to there. `progress` is called after each step on the way.
    Raises `UsageError` for a step that the run does not have, `DataError` where the data are not
    those of that epoch, and `FleetnetError` where an earlier step has a loss that is not finite.
    """
    run = Path(run)
    if augment is not None:
        check_augmentation(augment)
    if config.batch_size == AUTO:
        raise UsageError("batch_size is auto, but a run has a number: see its config.yaml")
    accelerator = accelerator_of(config)
    order = order_of(config, train) if order is None else order
    moment = moment_of(step, epoch, config, order)
    saved = _saved(run)
    before = None if saved is None or _moment(saved) > moment else saved
    begun = Moment(0, 0) if before is None or only_batch else _moment(before)
    first = moment.epoch if only_batch else begun.epoch
    check_same(run, "train", train, range(first, moment.epoch + 1))
    learner = set_up(
        model,
        train,
        train,
        training_of(model, train, replace(config, cache=False), preprocess, None, saved),
        accelerator,
        objective=objective,
        order=order,
        augment=augment,
        before=before,
    )
    if only_batch:
        return _replayed(learner, moment, _Seen(learner, moment, on_wait), None)
    so_far = EpochSoFar(0) if before is None else before.so_far or EpochSoFar(before.epochs)
    differing = _train_up_to(learner, so_far, moment, _log_of(run, saved), progress, on_wait)
    seen = _Seen(learner, moment, on_wait)
    steps = len(learner.batches)
    computed = None
    if not is_too_small(seen.batch):
        computed = seen.computed(
            came_from="the start of the run" if before is None else f"the state before {begun}",
            trained=(moment.epoch - begun.epoch) * steps + moment.step - begun.step,
            differing=differing,
        )
    return _replayed(learner, moment, seen, computed)


def state_before(
    run: Path, train: Split, config: TrainConfig, step: int, epoch: int | None
) -> Before | None:
    """The state from which a step would be computed; None: the run is trained from its start."""
    saved = _saved(run)
    moment = moment_of(step, epoch, config, order_of(config, train))
    return None if saved is None or _moment(saved) > moment else saved


def moment_of(step: int, epoch: int | None, config: TrainConfig, order: Order) -> Moment:
    """Which step is meant; `UsageError` for one that the run does not have."""
    steps = steps_of(config, order)
    last = config.epochs * steps if epoch is None else steps
    if epoch is not None and not 1 <= epoch <= config.epochs:
        raise UsageError(f"epoch is {epoch}; allowed: 1 to {config.epochs}")
    if not 1 <= step <= last:
        where = f"{config.epochs} epochs of {steps}" if epoch is None else f"steps of epoch {epoch}"
        raise UsageError(f"step is {step}; allowed: 1 to {last}, {where}")
    if epoch is None:
        return Moment(*divmod(step - 1, steps))
    return Moment(epoch - 1, step - 1)


def _saved(run: Path) -> Before | None:
    """What the run left, to be read alone; None where no state was saved yet."""
    return Before.of(state_of(run), run) if (run / STATE).is_file() else None


def _moment(before: Before) -> Moment:
    """The step that a state goes on with."""
    so_far = before.so_far
    return Moment(before.epochs, 0 if so_far is None else so_far.step)


def _log_of(run: Path, saved: Before | None) -> dict[int, Line]:
    """The line of each epoch of a run, by its number from 1."""
    lines = read_log(run) if saved is None else saved.state["log"]
    return {line["epoch"]: line for line in lines}


# Up to the step -----------------------------------------------------------------------------------


class _Reached(Exception):
    """Raised before the step that is wanted."""


class _UpTo(Keeper):
    """Ends a training before its batch `step` of an epoch that goes on with its batch `first`."""

    def __init__(self, first: int, step: int):
        self.next = first
        self.step = step

    def group_goes_on(self) -> None:
        if self.next == self.step:
            raise _Reached
        self.next += 1


def _train_up_to(
    learner: Learner,
    so_far: EpochSoFar,
    moment: Moment,
    log: dict[int, Line],
    progress: Callable[[Progress], None] | None,
    on_wait: Say | None,
) -> list[str]:
    """Train from where the learner is up to a moment; which epochs came out otherwise, in words."""
    pace = Pace(so_far.epoch, moment.epoch + 1, len(learner.batches))
    hook = Callbacks(progress)
    differing = []
    while so_far.epoch < moment.epoch:
        train_one_epoch(learner, so_far, pace, hook, Keeper(), on_wait)
        logged = log.get(so_far.epoch + 1)
        result = so_far.result()
        if logged is not None and logged["train"]["loss"] != result["loss"]:
            differing.append(
                f"epoch {so_far.epoch + 1}: loss {result['loss']:.9g} here, "
                f"{logged['train']['loss']:.9g} in the run"
            )
        so_far = EpochSoFar(so_far.epoch + 1)
    if so_far.step < moment.step:
        keeper = _UpTo(so_far.step, moment.step)
        with suppress(_Reached):
            train_one_epoch(learner, so_far, pace, hook, keeper, on_wait)
    return differing


# The step itself ----------------------------------------------------------------------------------


class _Seen:
    """The batch of a step, as it was read and as the network sees it."""

    def __init__(self, learner: Learner, moment: Moment, on_wait: Say | None):
        self.learner = learner
        self.moment = moment
        learner.begin(*moment)
        self.batch = self._first_batch(on_wait)

    def _first_batch(self, on_wait: Say | None) -> Batch:
        for batch in patient(self.learner.batches, on_wait):
            return batch
        raise UsageError(f"there is no {self.moment}: the order of the samples ended before it")

    def inputs(self) -> tuple[Tensor, Targets]:
        """Images (N, C, H, W) and targets after mixing, at their size."""
        device = self.learner.accelerator.device
        with states_kept(device):
            return inputs_of(self.learner, self.batch.on(device), *self.moment)

    def computed(self, came_from: str, trained: int, differing: list[str]) -> Computed:
        """Losses and gradients of the step, and what of them is not finite."""
        learner, (epoch, step) = self.learner, self.moment
        accumulate = learner.config.accumulate
        rate = learner.schedule.rate(epoch, step // accumulate)
        decay = learner.schedule.decay(epoch, step // accumulate)
        norm, weight = None, None
        # not compiled: within compiled code no module is seen to be the first
        with torch.compiler.set_stance("force_eager"), Watch(learner.model) as watch:
            losses, _ = losses_of(learner, self.batch, epoch, step, Callbacks())
            own = torch.stack(list(losses.values()))
            if own.isfinite().all():
                learner.accelerator.backward(own.sum() / accumulate)
                norm = _gradient_norm(learner)
        if norm is not None and ((step + 1) % accumulate == 0 or step + 1 == len(learner.batches)):
            learner.update(rate, decay)
            weight = _broken_weight(learner.model)
        return Computed(
            came_from=came_from,
            trained=trained,
            differing=differing,
            loss=float(own.detach().sum()),
            losses=dict(zip(losses, own.detach().tolist(), strict=True)),
            lr=rate,
            gradient_norm=norm,
            output=watch.output,
            gradient=watch.gradient,
            weight=weight,
        )


def _gradient_norm(learner: Learner) -> float:
    learner.accelerator.unscale_gradients(learner.optimizer)
    gradients = [
        parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None
    ]
    return float(nn.utils.get_total_norm(gradients))


def _broken_weight(model: nn.Module) -> str | None:
    return next((name for name, value in model.named_parameters() if not are_finite(value)), None)


def _replayed(learner: Learner, moment: Moment, seen: _Seen, computed: Computed | None) -> Replayed:
    batch = seen.batch
    images, targets = seen.inputs() if batch.indices else (batch.images, batch.targets)
    return Replayed(
        number=moment.epoch * len(learner.batches) + moment.step + 1,
        epoch=moment.epoch + 1,
        step=moment.step + 1,
        images=images,
        targets=targets,
        preprocess=learner.preprocess,
        indices=batch.indices,
        skipped=batch.skipped,
        computed=computed,
    )
