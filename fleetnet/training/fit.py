"""Training from the first check to the last figure: `fit`.

Unusual here: the learning rate is a pure function of the step, and so is every random number of
the place that it is drawn for (`inputs/randomness.py`), so that a run resumed after any epoch
continues exactly as if it had never stopped, and one resumed within an epoch too.
The state of a run is one file, replaced atomically at the end of each epoch and every few minutes
within: killing the process loses at most these. No task is named in this folder.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from ..data import Split
from ..data._contents import Contents
from ..data._names import by_name
from ..errors import named_arguments
from ..inputs.augment import Augmentation, check_augmentation
from ..inputs.samplers import Order
from ..inputs.workers import Say
from ..norms import has_own_norms
from ..preprocess import Preprocess
from ..processes import by_first, from_first, gathered, is_first, world
from ..tasks import Model
from ..tasks import find as find_task
from .checks import check
from .claims import Claim, claim
from .config import AUTO, TrainConfig
from .distributed import Follower, explained, held_by_first, join, watched
from .epoch import train_one_epoch
from .folder import AVERAGE, LAST
from .hooks import Callbacks, Hook, Hooks, Pace, Progress
from .keeping import StateKeeper, check_weights
from .learner import Learner, set_up
from .log import COUNTED, Line, Result, figures_of, read_log
from .memory import room_for, with_batch_size
from .objective import Objective, Targets
from .overview import write_overview
from .pictures import TrainingBatches, samples
from .run import Before, Run, best_of
from .setup import accelerator_of, preprocess_of, training_of
from .signals import Signals
from .so_far import EpochSoFar
from .trackers import trackers_of


@named_arguments
def fit(
    model: Model,
    train: Split,
    val: Split,
    config: TrainConfig,
    run: str | Path,
    *,
    preprocess: Preprocess | None = None,
    resume: bool = False,
    source: Mapping[str, object] | None = None,
    contents: tuple[Contents, Contents] | None = None,
    objective: Objective | None = None,
    order: Order | None = None,
    augment: Augmentation | None = None,
    hooks: Sequence[Hook] = (),
    progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[Line], None] | None = None,
    on_batch: Callable[[Tensor, Targets, Preprocess], None] | None = None,
    on_wait: Say | None = None,
    report: bool = True,
    claimed: Claim | None = None,
    restart: bool = False,
    other_data: bool = False,
) -> Result:
    """Train `model` in place and return the figures of the best epoch; `run` is a folder for all.

    It is the folder that `fleetnet train` leaves (docs/training.md), with pictures and a page;
    unless `report`, without what describes and shows the run: config.yaml, environment.json,
    results.csv, plots/ and report.html. It belongs to this call alone until the end, unless whoever
    calls has `claimed` it.

    Labels of `val` go by the names of the classes: it may lack some, or have them in another order.
    `contents` are what `contents_of` counted in train and val, where that is known. The
    preprocessing, unless given, is what the starting weights expect, or ImageNet's mean and std, at
    the configured size; afterwards `model.preprocess` holds it. `source` describes the starting
    weights. The loss is the task's own unless there is an `objective`, the order of the samples
    that of the settings unless there is an `order`, and what is done to pictures before they are
    learned from is what the settings name unless there is an `augment`. `progress` is called after
    every step, `on_batch` gets what the network sees in it, `on_epoch` each line of the log,
    `on_wait` a line for each half minute that the workers are waited for and for a hook that
    failed. `hooks` get the steps, batches and epochs too; their errors do not end the run, those of
    functions do.

    `resume` goes on with a run: with its preprocessing, and its samples unless `other_data`;
    `restart` is for one that was stopped before its first epoch ended. Raises `UsageError` where
    another run goes on in the folder, `DataError` for other samples and for data with too little to
    learn from or to measure on, `WriteError` when the folder is gone or the disk full, and
    `FleetnetError` when the loss or a weight is not finite or a worker died; then the state that
    was saved last is kept. Ctrl-C and SIGTERM finish the step and save the state first.
    """
    if augment is not None:
        check_augmentation(augment)
    val = by_name(val, train.classes, "the training data")
    join(config)
    accelerator = accelerator_of(config)
    counted = check(
        model,
        train,
        val,
        config,
        resume=resume,
        contents=contents,
        processes=accelerator.num_processes,
        samples=None if order is None else len(order),
    )

    if config.batch_size == AUTO:
        begun_with = preprocess or preprocess_of(model, train, config)
        config = with_batch_size(
            config,
            model,
            train,
            begun_with,
            accelerator,
            resume=resume,
            objective=objective,
            order=order,
            say=on_wait,
        )

    def hold() -> AbstractContextManager[Claim]:
        return claim(Path(run)) if claimed is None else nullcontext(claimed)

    with explained(), room_for(config), held_by_first(hold) as mine:
        before = by_first(lambda: Before.read(mine.folder) if resume else None)
        training = training_of(model, train, config, preprocess, source, before)
        own_parts = {
            "objective": objective,
            "order": order,
            "augmentation": augment,
            "preprocess": preprocess,
        }
        from_python = ["model", *(name for name, part in own_parts.items() if part is not None)]
        with (Run if is_first() else Follower)(
            mine,
            training,
            before,
            restart=restart,
            from_python=from_python if claimed is None else (),
        ) as this_run:
            by_first(lambda: this_run.begin(train, val, other_data=other_data, described=report))
            pictures = []
            if report and not this_run.epochs and is_first():
                kind = find_task(model.task).PREDICTION
                pictures = [TrainingBatches(mine.folder, kind, train.classes, new=not resume)]
            trackers = trackers_of(config, mine.folder) if is_first() else []
            own_hooks = [Callbacks(progress, on_epoch, on_batch), *pictures, *trackers, *hooks]
            hook = Hooks(own_hooks if is_first() else [], say=on_wait)
            hook.start(this_run, training.config)
            learner = set_up(
                model,
                train,
                val,
                training,
                accelerator,
                objective=objective,
                order=order,
                augment=augment,
                before=before,
            )
            this_run.record(train, val, counted)
            this_run.so_far = from_first(this_run.so_far)
            _say_of_norms(learner, on_wait)
            pace = Pace(this_run.epochs, config.epochs, len(learner.batches))
            with Signals() as signals, watched(config.timeout):
                keeper = StateKeeper(learner, this_run, signals, config.save_every)
                while this_run.epochs < config.epochs and not this_run.stopped_early():
                    hook.epoch(_epoch(learner, this_run, keeper, pace, hook, on_wait))
            learner.finish()
            best = by_first(lambda: best_of(mine.folder, this_run.best or {}))
            if report and is_first():
                this_run.claim.check()
                samples(mine.folder, val)
                write_overview(mine.folder, train.classes, read_log(mine.folder), best)
            hook.end(best)
    return best


def _say_of_norms(learner: Learner, say: Say | None) -> None:
    """Say that one process would learn something else, where norms see a part of the batch each."""
    if say is None or world() == 1 or not is_first() or not has_own_norms(learner.model):
        return
    images = learner.config.batch_size
    say(
        f"batch norms take their statistics of a part of the {images} images, as each of the "
        f"{world()} processes has one; with --norm sync of all"
    )


def _epoch(
    learner: Learner,
    run: Run,
    keeper: StateKeeper,
    pace: Pace,
    hook: Hook,
    on_wait: Say | None,
) -> Line:
    """Train an epoch, or the rest of one, evaluate and keep it; its line of the log."""
    so_far = run.so_far
    results: list[tuple[str, nn.Module, Result]] = []
    with keeper.stoppable(so_far):
        train_one_epoch(learner, so_far, pace, hook, keeper, on_wait)
        keeper.signals.let_go()
        check_weights(learner, so_far, keeper.again(so_far.epoch + 1, so_far.step))
        if learner.is_evaluated_after(so_far.epoch):
            for form, network, weights in learner.forms():
                results.append((form, weights, learner.evaluate(network, on_wait)))
    with keeper.signals.holding():
        return _keep(learner, run, so_far, results)


def _keep(
    learner: Learner, run: Run, so_far: EpochSoFar, results: Sequence[tuple[str, nn.Module, Result]]
) -> Line:
    """Write the files of an epoch with what was measured after it; its line of the log."""
    skipped = set(chain.from_iterable(gathered(so_far.skipped)))
    line: Line = {"epoch": so_far.epoch + 1, COUNTED: 1, "train": so_far.result()}
    with run.staging(learner.bytes_kept):
        for form, weights, result in results:
            skipped |= set(result.pop("skipped"))
            line[form] = figures_of(result)
            run.compare(result, weights, form)
        line |= {"skipped": sorted(skipped), "seconds": round(so_far.elapsed(), 3)}
        run.save(LAST, learner.model, line.get("raw", {}), "raw")
        if learner.average is not None:
            run.save(AVERAGE, learner.average.module, line.get("ema", {}), "ema")
        run.save_state(learner.model, learner.state(), line)
    run.deliver()
    return line
