"""Training: `fit` runs the epochs, `train_one_epoch` the steps, `evaluate` the metric; functions on accelerate.

Unusual here: the learning rate is a pure function of the step, and order and augmentation are seeded by the epoch, so
that a run resumed after any epoch continues exactly as if it had never stopped. Trainer state is one file, replaced
atomically once an epoch: killing the process loses at most the epoch in progress. No task is named in this file.
"""

import copy
import math
import random
import re
import resource
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from . import checkpoint, fingerprint, tasks
from .augment import augmentation, multi_scale
from .balance import Balanced, Shuffled, class_weights, labels_of
from .boxes import Limits, Prediction
from .claims import Claim, claim
from .config import KEYS_AND_DEFAULTS, Situation, TrainConfig, parse_values, unread
from .data import WORDS, Split
from .data._contents import Contents, check_usable, contents_of
from .data._names import by_name
from .data._record import RECORD, record
from .errors import DataError, FleetnetError, ModelError, UsageError, named_arguments
from .facts import OWN_HASH, WHICH_WEIGHTS, check_own_hash, sealed
from .files import append_line, write_text, writing
from .find import names
from .freezing import freeze
from .images import Range, measure
from .images import value_range as range_of_files
from .loading import Say, batches_of, patient
from .reading import HISTORY, from_json, read_text, to_json
from .tasks import Annotated, Limiting, Model, Outputs, Task, named
from .transforms import Batch, ImageDataset, Preprocess, mix, train_transform

LOG = "log.jsonl"
COUNTED = "epochs_from"  # in a line of the log: the number of the first epoch; version 0.1 counted from 0, unsaid
MADE_BEFORE = "`fit` trains the model as it is, so give this to create_model, or leave it out"
DETAILS = "best.json"  # in a run folder: the whole result of the best epoch, with what was found by class


@dataclass(frozen=True)
class Progress:
    """Where a run is, handed to the `progress` function of `fit` after every step."""

    epoch: int  # from 1
    epochs: int
    step: int  # of this epoch, from 1
    steps: int
    loss: float
    lr: float
    images_per_second: float
    memory: float  # MB, peak of the process or the GPU
    seconds_left: float


def learning_rate(step: float, steps: int, warmup: float, peak: float) -> float:
    """Linear from peak / (warmup + 1) to `peak` over `warmup` steps, then half a cosine to zero at `steps`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def parameter_groups(model: nn.Module, weight_decay: float, head_lr: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters, those of norms and biases (vectors) without weight decay.

    `lr_multiple` of a group is 1, or `head_lr` for parameters of the head where that differs.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, weight_decay): [], (1.0, 0.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (head_lr if name.startswith("head.") else 1.0, weight_decay if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_multiple": multiple}
        for (multiple, decay), parameters in groups.items()
    ]


def freeze_norms(model: Model) -> None:
    """Batch norms of the backbone as in eval mode, and not trained."""
    for module in cast(nn.Module, model.backbone).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval().requires_grad_(False)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@torch.no_grad()
def _average(decay: float, averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
    """Move each average toward the current value; early steps count more, so that the start is soon forgotten."""
    weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
    for average, value in zip(averages, current, strict=True):
        if average.is_floating_point():
            average.lerp_(value.to(average), weight)
        else:
            average.copy_(value)


def check_device(config: TrainConfig) -> bool:
    """Whether the GPU is used; `UsageError` for a device or a precision that is not to be had here."""
    gpu = torch.cuda.is_available() and config.device != "cpu"
    if config.device == "cuda" and not gpu:
        raise UsageError("device is cuda, but torch sees no GPU; allowed here: cpu, auto")
    if config.precision == "fp16" and not gpu:
        raise UsageError("precision is fp16, which needs a GPU with CUDA; allowed here: fp32, bf16")
    return gpu


def _check_batch(model: Model, config: TrainConfig, images: int) -> None:
    """`UsageError` where a batch norm would see a single value a channel: one image, no larger than the strides."""
    count, (height, width) = min(config.batch_size, images), config.size
    if count > 1:
        return
    network = copy.deepcopy(model).to("meta")  # shapes alone, without computing
    try:
        network.train()(torch.empty(count, 3, height, width, device="meta"))
    except ValueError as error:
        if not re.search("(more than 1|one) value per channel", str(error)):
            raise
        raise UsageError(
            f"{model.name} cannot be trained on batches of one image at {height}x{width}: its last feature is a single "
            "pixel, and a batch norm needs two. Give --batch-size 2 or more (and as many images), or a larger --size"
        ) from error
    except (NotImplementedError, RuntimeError):  # shapes that depend on values: proposals of Mask R-CNN
        return


def _accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    gpu = check_device(config)
    AcceleratorState._reset_state(reset_partial_state=True)  # a second run in one process may have another precision
    GradientState._reset_state()  # of another trainer, which may have been stopped within a group
    precision = "no" if config.precision == "fp32" else config.precision
    accelerator = Accelerator(cpu=not gpu, mixed_precision=precision)
    if accelerator.num_processes > 1:
        raise UsageError(f"started in {accelerator.num_processes} processes; allowed: one, on one device")
    return accelerator


def _channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether the memory format is safe: on CPU, a strided 1x1 convolution of an image corrupts memory in the backward
    pass (oneDNN, torch 2.13 to 2.14). Our networks have none; timm's MobileOne does."""
    strided = (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.stride != (1, 1))
    return device.type != "cpu" or all(m.kernel_size != (1, 1) for m in strided)


def loader(data: ImageDataset, config: TrainConfig, sampler: Shuffled | None) -> DataLoader[Any]:
    """Batches in the sampler's order, without a smaller last one; in the data's own order, whole, if there is none."""
    return batches_of(
        data,
        config.batch_size,
        workers=config.workers,
        minutes=config.timeout,
        sampler=sampler,
        drop_last=sampler is not None and len(data) >= config.batch_size,
        pin_memory=torch.cuda.is_available() and config.device != "cpu",
    )


@named_arguments
@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: str,
    batches: Any,
    classes: Sequence[str],
    on_prediction: Callable[[Prediction, int], None] | None = None,
    limits: Limits | None = None,
    on_wait: Say | None = None,
) -> dict[str, Any]:
    """The task's metric of a model over all batches; names of skipped images under "skipped".

    `model` takes images (N, 3, H, W) and may be a `Predictor`, so an exported file; its mode is restored. Predictions
    are compared in the pixels of each picture, as it is in its file; `on_prediction` receives each with the index of
    its sample; `on_wait` gets a line for each half minute that `batches` of several processes are waited for.
    `classes` are names. `limits` are what a detector keeps of what it finds: those of a `Predictor`, else the task's
    own, unless given; AP is of 100 objects a picture and class, as COCO has it, whatever they are. Raises `DataError`
    where there is nothing to measure the task's first figure on, and `ModelError` where the outputs are not finite.
    """
    of_task = tasks.find(task)
    metric, skipped, count = of_task.metric(classes), [], 0
    limits = limits or (model.limits if isinstance(model, Limiting) else None) or of_task.LIMITS
    reached = Reached()
    # Of these the predictions of one picture at a time are in memory.
    large = of_task.TARGET in ("masks", "semantic")
    training = model.training
    model.eval()
    try:
        for batch in patient(batches, on_wait):
            skipped += batch.skipped
            if len(batch.images) == 0:
                continue
            outputs = named(model(batch.images))
            _check_finite(outputs)
            height, width = batch.images.shape[-2:]
            decoded = of_task.decode(outputs, (height, width), limits)
            if limits is not None:
                reached.add(decoded, batch.targets["labels"], limits.count)
            at_once = 1 if large else len(decoded)
            for start in range(0, len(decoded), at_once):
                part = slice(start, start + at_once)
                pairs = zip(decoded[part], batch.places[part], strict=True)
                predictions = [of_task.restore(prediction, place) for prediction, place in pairs]
                metric.add(predictions, {key: value[part] for key, value in batch.targets.items()})
                if on_prediction is not None:
                    for prediction, sample in zip(predictions, batch.indices[part], strict=True):
                        on_prediction(prediction, sample)
            count += len(decoded)
    finally:
        model.train(training)
    if not count:
        raise DataError(f"no image could be read for evaluation; the first: {skipped[0] if skipped else 'none given'}")
    result = metric.result()
    if limits is not None:
        result |= reached.result(result["score"], limits.count, result["notes"])
    first = next(iter(result))
    if result[first] is None:
        raise DataError(f"nothing to measure {first} on in {count} images: {'; '.join(result['notes'])}")
    return {**result, "skipped": skipped}


class Reached:
    """How many pictures have as many objects as are kept at most, so that there may be more."""

    def __init__(self) -> None:
        self.lowest: list[float] = []  # score that is kept in each picture where the number of objects is reached
        self.crowded = 0  # pictures with more objects in the truth

    def add(self, predictions: Sequence[Prediction], truths: Sequence[Tensor], most: int) -> None:
        """Predictions of a batch, and the labels (n,) of its pictures' objects."""
        full = [prediction["scores"] for prediction in predictions if len(prediction["scores"]) >= most]
        self.lowest += [scores.min().item() for scores in full]
        self.crowded += sum(len(labels) > most for labels in truths)

    def result(self, score: float | None, most: int, notes: Sequence[str]) -> dict[str, Any]:
        """ "at_limit": how many pictures may have more objects of at least a score; with a note where there are any."""
        at_limit = sum(score is not None and lowest >= score for lowest in self.lowest)
        told = list(notes)
        if at_limit:
            told.append(
                f"{at_limit} pictures have {most} objects of a score of at least {score:.2f}, which is all that is "
                "kept: there may be more, see --max-objects"
            )
        if self.crowded:
            told.append(f"{self.crowded} pictures show more than the {most} objects that are kept: see --max-objects")
        return {"at_limit": at_limit, "notes": told}


def _check_finite(outputs: Outputs) -> None:
    """`ModelError` for outputs with NaN or infinity: compared with anything they would count as an answer."""
    for name, output in outputs.items():
        if output.is_floating_point() and not output.isfinite().all():
            raise ModelError(
                f"the network's output {name!r} has NaN or infinity, so nothing can be measured: its weights are "
                "damaged or diverged, or its precision is too small for it"
            )


def train_one_epoch(
    model: nn.Module,
    batches: Any,
    optimizer: Any,
    accelerator: Any,
    loss_of: Callable[[nn.Module, Batch], dict[str, Tensor]],
    rate: Callable[[int], float],
    after_update: Callable[[], None],
    report: Callable[[int, float, float, int], None],
    accumulate: int = 1,
    clip: float | None = None,
    frozen: Callable[[], None] | None = None,
    kept: str = "",
    on_wait: Say | None = None,
) -> dict[str, Any]:
    """One pass over the batches: means of the losses, images seen, names of skipped images.

    The model is put into training mode; then `frozen` may take parts out of it. Gradients are
    summed over groups of `accumulate` batches; the last group of an epoch may have fewer.
    `rate(group)` is the learning rate of a group, counted from 0; `after_update` runs after each
    optimizer step; `report(step, loss, lr, images)` after each batch. `kept` is what the message of
    an error says of earlier epochs.
    Raises `FleetnetError` at the first loss that is not finite, before it reaches the weights.
    """
    model.train()
    if frozen is not None:
        frozen()
    totals: dict[str, float] = {}
    images, skipped, lr = 0, [], 0.0
    summed = False  # whether there are gradients of a group that has had no update yet
    for step, batch in enumerate(patient(batches, on_wait)):
        skipped += batch.skipped
        # one image that is left of several is not enough for batch norms of one value a channel
        usable = len(batch.images) > 1 or (len(batch.images) == 1 and not batch.skipped)
        if usable:
            lr = rate(step // accumulate)
            losses = loss_of(model, batch)  # only the model itself is under autocast: boxes need float32
            total = torch.stack(list(losses.values())).sum()
            value = total.item()
            if not math.isfinite(value):
                raise FleetnetError(
                    f"the loss is {value} at step {step + 1} of this epoch, at learning rate {lr:.3g}{kept}. "
                    "Try a lower lr, a longer warm-up, clip: 1.0, or precision: fp32"
                )
            accelerator.backward(total / accumulate)
            summed = True
            n = len(batch.images)
            images += n
            for name, item in losses.items():
                totals[name] = totals.get(name, 0.0) + n * item.item()
        # a group ends by its place in the epoch, so that batches without an image move no other's
        group_ends = (step + 1) % accumulate == 0 or step + 1 == len(batches)
        if group_ends and summed:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_multiple"]
            if clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            after_update()
            summed = False
        if usable:
            report(step + 1, value, lr, n)
    if not images:
        raise DataError(f"no image could be read for training; the first: {skipped[0] if skipped else 'none given'}")
    losses_mean = {name: total / images for name, total in totals.items()}
    return {"loss": sum(losses_mean.values()), **losses_mean, "lr": lr, "images": images, "skipped": skipped}


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@named_arguments
def fit(
    model: Model,
    train: Split,
    val: Split,
    config: TrainConfig,
    run: Path,
    *,
    preprocess: Preprocess | None = None,
    resume: bool = False,
    source: dict[str, Any] | None = None,
    contents: tuple[Contents, Contents] | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_batch: Callable[[Tensor, Mapping[str, Any], Preprocess], None] | None = None,
    on_wait: Say | None = None,
    claimed: Claim | None = None,
    other_data: bool = False,
) -> dict[str, Any]:
    """Train `model` in place and return the metrics of the best epoch; files go to the folder `run`.

    Labels of `val` go by the names of the classes: it may lack some, or have them in another order.
    `run` receives log.jsonl (a line an epoch), last.safetensors (raw weights), ema.safetensors (averaged weights),
    best.safetensors (whichever of the two was best by the task's first metric), best.json (all that was measured of it,
    by class too), data.json (which samples), split.json (what was read, of which classes, and held back) and state/
    (for `resume`). It belongs to this call alone until the end, unless whoever calls has `claimed` it. A run that is
    resumed goes on with the samples it began with, or with others if `other_data`; one that has all its epochs is
    finished: the model gets its last weights. The preprocessing, unless given, is what the starting weights expect, or
    ImageNet's mean and std, at the configured size, and in a run that is resumed what it began with; afterwards
    `model.preprocess` holds it. `source` describes the starting weights and is kept in the checkpoints; `contents` are
    what `contents_of` counted in train and val, where that is known. `progress` is called after every step, `on_batch`
    gets the images and targets of each step as the network sees them, `on_epoch` each line of the log, whose epochs
    count from 1, and `on_wait` a line for each half minute that the workers are waited for. Raises `UsageError` where
    another run goes on in the folder, `DataError` for other samples and for data with too little left to learn from or
    to measure on, `WriteError` when the folder is gone or the disk full, and `FleetnetError` when the loss or a weight
    is not finite or a worker died; the state of the last whole epoch is kept.
    """
    run = Path(run)
    val = by_name(val, train.classes, "the training data")
    if model.classes != len(train.classes):
        raise DataError(f"the model has {model.classes} classes, the data {len(train.classes)}")
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = _accelerator(config)
    task = tasks.find(model.task)
    if not resume:
        check_settings(config, model.task, processes=accelerator.num_processes)
        _check_made(config, model)
    _check_batch(model, config, len(train.samples))
    for split in (train, val):
        _check_annotated(split, task.TARGET)
    counted = contents or (contents_of(train, task.TARGET), contents_of(val, task.TARGET))
    check_usable(train, counted[0], config.max_bad)
    check_usable(val, counted[1], config.max_bad, learn=False)

    with claim(run) if claimed is None else nullcontext(claimed) as mine:
        return _train(
            model, train, val, config, run, preprocess=preprocess, resume=resume, source=source, progress=progress,
            on_epoch=on_epoch, on_batch=on_batch, on_wait=on_wait, mine=mine, other_data=other_data,
            accelerator=accelerator, counted=counted,
        )  # fmt: skip


def _train(
    model: Model,
    train: Split,
    val: Split,
    config: TrainConfig,
    run: Path,
    *,
    preprocess: Preprocess | None,
    resume: bool,
    source: dict[str, Any] | None,
    progress: Callable[[Progress], None] | None,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    on_batch: Callable[[Tensor, Mapping[str, Any], Preprocess], None] | None,
    on_wait: Say | None,
    mine: Claim,
    other_data: bool,
    accelerator: Any,
    counted: tuple[Contents, Contents],
) -> dict[str, Any]:
    """`fit` in a folder that is claimed, with settings that were checked."""
    task = tasks.find(model.task)
    settings = {key: getattr(config, key) for key in task.SETTINGS if key != "class_weights"}
    if config.class_weights != "none":
        settings["class_weights"] = class_weights(train, task.TARGET)
    limits = _limits(config, task, train.classes)
    if limits is not None and task.limit is not None:
        task.limit(model.head, limits)
    state_of_run = settled(run) if resume else None
    if preprocess is None:
        preprocess = _preprocess(model, train, config, run if resume else None)
    start = state_of_run["epochs"] if state_of_run else 0
    if config.epochs < start:
        raise UsageError(f"{run} has been trained for {start} epochs; give at least as many to continue")
    with writing(run / "state"):
        (run / "state").mkdir(exist_ok=True)
    fingerprint.check(run, {"train": train, "val": val}, start, other_data)
    augment = _augmentation(config.augment, task, preprocess, config)
    cache = preprocess.size if config.cache else None
    train_data = ImageDataset(train, augment, cache, target=task.TARGET, values=preprocess.values)
    val_data = ImageDataset(val, preprocess, target=task.TARGET)
    sampler = Balanced(labels_of(train), config.seed) if config.balance else Shuffled(len(train_data), config.seed)
    if config.norm == "frozen":
        freeze_norms(model)
    elif config.norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if not resume:
        task.prepare(model.head, _pictures(train_data, preprocess), preprocess.size)
    channels_last = config.channels_last and _channels_last(model, accelerator.device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    frozen_norms = freeze(model, config.freeze) if config.freeze else []
    optimizer: torch.optim.Optimizer
    groups = parameter_groups(model, config.weight_decay, config.head_lr)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    else:
        optimizer = torch.optim.AdamW(groups, config.lr, betas=(config.momentum, 0.999))
    wrapped, optimizer, batches, val_batches = accelerator.prepare(
        model, optimizer, loader(train_data, config, sampler), loader(val_data, config, None)
    )
    average: AveragedModel | None = None
    if config.ema is not None:
        average = AveragedModel(model, multi_avg_fn=partial(_average, config.ema), use_buffers=True)
    updates = math.ceil(len(batches) / config.accumulate)

    best: dict[str, Any] | None = None
    log: list[dict[str, Any]] = []
    if state_of_run:
        model.load_state_dict(state_of_run["model"])
        optimizer.load_state_dict(state_of_run["optimizer"])
        if average is not None:
            average.load_state_dict(state_of_run["average"])
        if state_of_run["scaler"] is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state_of_run["scaler"])
        best, log = state_of_run["best"], state_of_run["log"]
    else:
        _forget(run)
    write_text(run / RECORD, to_json(record(train, val, counted)) + "\n")
    write_text(run / LOG, "".join(to_json(line) + "\n" for line in log))

    def loss_of(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images, targets = batch.images, batch.targets
        if config.mixup or config.cutmix:
            images, targets = mix(images, targets, model.classes, config.mixup, config.cutmix)
        if config.multi_scale:
            ratio = random.uniform(1 - config.multi_scale, 1 + config.multi_scale)
            images, targets = multi_scale(images, targets, ratio)
        if on_batch is not None:
            on_batch(images, targets, preprocess)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return task.loss(model.head, named(net(images)), targets, **settings)

    began, seen = time.monotonic(), 0

    def report(epoch: int, step: int, loss: float, lr: float, n: int) -> None:
        nonlocal seen
        seen += n
        if progress is not None:
            elapsed = time.monotonic() - began
            part = (epoch - start + step / len(batches)) / max(config.epochs - start, 1)
            left = elapsed * (1 - part) / max(part, 1e-9)
            rate = seen / max(elapsed, 1e-9)
            progress(Progress(epoch + 1, config.epochs, step, len(batches), loss, lr, rate, _memory(), left))

    def save(name: str, net: nn.Module, metrics: dict[str, Any], form: str) -> None:
        mine.check()
        checkpoint.save(
            _staged(run, epoch + 1) / name, net, classes=train.classes, preprocess=preprocess,
            settings=config.to_dict(), metrics={**metrics, WHICH_WEIGHTS: form}, source=source, category_ids=train.ids,
        )  # fmt: skip

    def keep_frozen() -> None:
        for norm in frozen_norms:
            norm.eval()
        if config.norm == "frozen":
            freeze_norms(model)

    for epoch in range(start, config.epochs):
        if stopped_early(log, best, config.patience):
            break
        _seed(config.seed * 1_000_003 + epoch)
        sampler.epoch = epoch
        if config.epochs - epoch <= config.plain_epochs:
            train_data.transform = _augmentation(config.augment, task, preprocess, replace(config, mosaic=0.0))
        epoch_began = time.monotonic()
        kept = f"; the state of epoch {epoch} is kept" if epoch else "; no epoch has ended, so nothing is kept"
        trained = train_one_epoch(
            wrapped, batches, optimizer, accelerator, loss_of,
            rate=lambda group, e=epoch: learning_rate(  # type: ignore[misc]
                e * updates + group, config.epochs * updates,
                min(config.warmup_epochs, config.epochs / 2) * updates, config.lr,
            ),
            after_update=lambda: None if average is None else average.update_parameters(model),
            report=partial(report, epoch), accumulate=config.accumulate, clip=config.clip,
            frozen=keep_frozen, kept=kept, on_wait=on_wait,
        )  # fmt: skip
        figures = {key: value for key, value in trained.items() if key != "skipped"}
        line: dict[str, Any] = {"epoch": epoch + 1, COUNTED: 1, "train": figures}
        skipped = trained["skipped"]
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise FleetnetError(
                f"a weight is not finite after epoch {epoch + 1}, though the losses were{kept}. "
                "Try a lower lr or clip: 1.0"
            )
        try:
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                forms: list[tuple[str, nn.Module]] = [("raw", wrapped)]
                forms += [] if average is None else [("ema", average.module)]
                for form, net in forms:
                    result = evaluate(net, model.task, val_batches, train.classes, limits=limits, on_wait=on_wait)
                    skipped = skipped + result.pop("skipped")
                    line[form] = _figures(result)
                    key = next(iter(result))  # the task's first metric decides
                    if best is None or not best[key] or result[key] > best[key]:  # of nothing right, the last
                        which = {"epoch": epoch + 1, WHICH_WEIGHTS: form}
                        best = {**line[form], **which}
                        save("best.safetensors", model if form == "raw" else net, line[form], form)
                        details = to_json(sealed({**result, **which}), ensure_ascii=False)
                        write_text(_staged(run, epoch + 1) / DETAILS, details + "\n")
            line |= {"skipped": sorted(set(skipped)), "seconds": round(time.monotonic() - epoch_began, 3)}
            save("last.safetensors", model, line.get("raw", {}), "raw")
            if average is not None:
                save("ema.safetensors", average.module, line.get("ema", {}), "ema")
            log.append(line)
            mine.check()
            checkpoint.save_state(
                run / "state",
                {
                    "epochs": epoch + 1, "best": best, "log": log, "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": None if average is None else average.state_dict(),
                    "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                },
            )  # fmt: skip
        except Exception:  # such as a full disk: what is half there would take the space
            shutil.rmtree(_staged(run, epoch + 1), ignore_errors=True)
            raise
        _deliver(run, epoch + 1)
        append_line(run / LOG, to_json(line))
        mine.check()
        if on_epoch is not None:
            on_epoch(line)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes autocast off model.forward
    model.preprocess = preprocess.to_dict()
    return best_of(run, best or {})


def stopped_early(log: Sequence[dict[str, Any]], best: dict[str, Any] | None, patience: int) -> bool:
    """Whether the last evaluation came `patience` epochs or more after the best one; never for a patience of 0."""
    evaluated = [line["epoch"] for line in log if "raw" in line]
    return bool(patience and best and evaluated and evaluated[-1] - best["epoch"] >= patience)


def _limits(config: TrainConfig, task: Task, classes: Sequence[str]) -> Limits | None:
    """What evaluation keeps of what a detector finds; None for other tasks."""
    if task.LIMITS is None:
        return None
    given = {"max_objects": config.max_objects, "nms": config.nms, "score": config.score}
    return task.LIMITS.changed(given, classes)


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result, for the log, the checkpoints and the state: nothing that grows with the classes."""
    return {key: value for key, value in result.items() if value is None or isinstance(value, int | float)}


def best_of(run: Path, best: dict[str, Any]) -> dict[str, Any]:
    """The best result that the trainer's state knows, with what the metric found by class, from DETAILS.

    The figures alone where the file is missing, damaged or of another epoch (a kill between the two).
    """
    try:
        details = from_json(read_text(run / DETAILS, HISTORY))
        check_own_hash(details, run / DETAILS)
        details.pop(OWN_HASH, None)
        of_best = (details["epoch"], details["weights"]) == (best["epoch"], best["weights"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # a wrong hash is a ValueError too
        return best
    return {**details, **best} if of_best else best


def check_settings(config: TrainConfig, task: str, given: Collection[str] = (), processes: int = 1) -> None:
    """`UsageError` for a setting that nothing reads where this task is trained, naming what reads it.

    Looked at are settings other than their default, and those that were `given` whatever their value.
    """
    for key, default in KEYS_AND_DEFAULTS.items():
        value = getattr(config, key)
        if value == default and key not in given:
            continue
        condition = unread(key, Situation(config, tasks.find(task), processes))
        if condition is None:
            continue
        readers = [
            name for name in names("tasks") if unread(key, Situation(config, tasks.find(name), processes)) is None
        ]
        augment = "" if config.augment == "default" else f" with augment {config.augment}"
        named_readers = f" ({', '.join(readers)})" if readers else ""
        raise UsageError(
            f"{key} is {value}, but {task}{augment} has no use for it: "
            f"it is read {condition.words}{named_readers}; leave it out"
        )


def _preprocess(model: Model, train: Split, config: TrainConfig, begun: Path | None) -> Preprocess:
    """What the starting weights expect of an image at the configured size; of a run that has `begun`, as it began."""
    known = model.preprocess
    if begun is not None:
        known = checkpoint.read_facts(begun / "last.safetensors")["preprocess"]
    preprocess = Preprocess.from_dict(known) if known else Preprocess(config.size)
    values = preprocess.values if begun is not None else value_range(config.scale_values, train)[0]
    mode = tasks.find(model.task).MODE
    return replace(preprocess, size=config.size, crop=config.crop, mode=mode, values=values)


def _check_made(config: TrainConfig, model: Model) -> None:
    """`UsageError` for a setting of how a model is made that the given one was not made with."""
    for key in ("drop_path", "output_stride"):
        wanted, made = getattr(config, key), getattr(model, key)
        if wanted and wanted != made:
            raise UsageError(f"{key} is {wanted}, but the model was made with {made}: {MADE_BEFORE}")
    if missing := sorted(config.options.keys() - model.options.keys()):
        raise UsageError(f"options have {', '.join(missing)}, but the model was made without: {MADE_BEFORE}")
    if config.weights is not None and model.report is None:
        raise UsageError(f"weights is {config.weights!r}, but none were loaded into the model: {MADE_BEFORE}")


def _check_annotated(split: Split, target: str) -> None:
    """`DataError` unless every sample has the annotation that a task learns from."""
    key = {"boxes": "objects", "masks": "objects"}.get(target, target)
    for sample in split.samples:
        if getattr(sample, key) is None:
            raise DataError(f"{sample.image} has no {WORDS[target]}: load the data with target={target!r}")


def value_range(setting: str, split: Split) -> tuple[Range | None, str]:
    """What `scale_values` means for these training pictures, for `Preprocess.values`, and a sentence that says why.

    `setting` is "auto", "full" or "LOWEST,HIGHEST". The sentence is empty where nothing is unusual.
    """
    files = [sample.image for sample in split.samples if not callable(sample.image)]
    decided, why = range_of_files(files) if setting == "auto" else (parse_values(setting), "")
    if decided is None:
        return None, ""
    kept = f"{decided[0]:g} to {decided[1]:g} becomes 0 to 255, here and wherever the model is used (--scale-values)"
    return decided, f"{why}: {kept}" if why else f"values of files with more than 8 bits: {kept}"


def _augmentation(name: str, task: Task, preprocess: Preprocess, config: TrainConfig) -> Any:
    """The function of `ImageDataset` that a setting of `augment` names."""
    name = task.AUGMENT if name == "default" else name
    if (name == "classify") != (task.TARGET == "label") and name != "none":
        raise UsageError(f"augment is {name!r}, which does not go with {WORDS[task.TARGET]}; allowed: {task.AUGMENT}")
    if name == "classify":
        return train_transform(
            preprocess, scale=(0.35 if config.scale is None else config.scale, 1.0), flip=config.flip,
            color_jitter=0.2 if config.color_jitter is None else config.color_jitter,
            auto_augment=config.auto_augment, erasing=config.erasing,
        )  # fmt: skip
    if task.TARGET == "label":
        return preprocess.__call__
    return augmentation(name, preprocess, config.to_dict())


def _pictures(data: ImageDataset, preprocess: Preprocess) -> Iterator[Annotated]:
    """For each readable picture its (height, width) and its boxes in pixels of the input."""
    for index in range(len(data)):
        sample = data.split.samples[index]
        try:
            width, height = sample.image().size if callable(sample.image) else measure(sample.image)
        except DataError:  # counted when it is met in training
            continue
        boxes = torch.tensor([item.box for item in sample.objects or () if not item.crowd]).view(-1, 4)
        yield (height, width), preprocess.place(height, width).into(boxes)


# The files of a run ---------------------------------------------------------------------------------------------------
#
# At the end of an epoch the checkpoints are written into state/next-EPOCH/, then the state with the whole log in it,
# and only then the checkpoints are moved to their places and the log gets its line. So a kill at any moment leaves
# files that the state can bring in order: those of an epoch that it knows are moved, others removed.


def _staged(run: Path, epochs: int) -> Path:
    return run / "state" / f"next-{epochs}"


def _forget(run: Path) -> None:
    """Remove what an earlier run in this folder left to be resumed."""
    (run / "state" / checkpoint.STATE).unlink(missing_ok=True)
    for folder in (run / "state").glob("next-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _deliver(run: Path, epochs: int) -> None:
    """Move the checkpoints of an epoch that the state knows to their places."""
    folder = _staged(run, epochs)
    for path in sorted(folder.iterdir()):
        with writing(run / path.name):
            path.replace(run / path.name)
    folder.rmdir()


def settled(run: Path) -> dict[str, Any]:
    """The state of a run, after its files were made those of the state; epochs in it count from 1.

    "epochs" are those trained, "log" is a line of each. Raises `ModelError` where there is no state.
    """
    state = checkpoint.load_state(run / "state")
    if "epochs" not in state:  # as version 0.1 wrote it
        epochs = state.pop("epoch") + 1
        best = None if state["best"] is None else {**state["best"], "epoch": state["best"]["epoch"] + 1}
        log = [line for line in read_log(run) if line["epoch"] <= epochs]
        state |= {"epochs": epochs, "best": best, "log": log}
    for folder in (run / "state").glob("next-*"):
        if folder == _staged(run, state["epochs"]):
            _deliver(run, state["epochs"])
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return state


def epochs_of(run: Path) -> int:
    """How many epochs a run has been trained for, by its state."""
    state = checkpoint.load_state(run / "state")
    return state["epochs"] if "epochs" in state else state["epoch"] + 1


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl in a run folder, with epochs from 1; a last line that a kill cut short is left out.

    Raises `ModelError`, naming the line, for a file that is damaged otherwise.
    """
    path = run / LOG
    if not path.exists():
        return []
    try:
        *lines, rest = read_text(path, HISTORY).split("\n")
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is damaged: it is not UTF-8 text") from error
    if "\x00" in rest:  # which no kill leaves, but a disk
        raise ModelError(f"{path}, line {len(lines) + 1} is damaged: it holds zeros")
    entries = [_entry(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return [line if COUNTED in line else {**line, "epoch": line["epoch"] + 1, COUNTED: 1} for line in entries]


def _entry(line: str, where: str) -> dict[str, Any]:
    """What a line of the log says, if it is one that `fit` wrote."""
    try:
        entry = from_json(line)
    except ValueError as error:
        raise ModelError(f"{where} is damaged: not JSON: {error}") from error
    entry = entry if isinstance(entry, dict) else {}
    epoch, skipped = entry.get("epoch"), entry.get("skipped", [])
    parts = [entry.get("train"), *(entry[form] for form in ("raw", "ema") if form in entry)]
    whole = isinstance(epoch, int) and epoch >= 0 and isinstance(skipped, list)
    if not whole or not all(isinstance(part, dict) and all(map(_is_figure, part.values())) for part in parts):
        raise ModelError(f"{where} is damaged: a line has an epoch, skipped files, and figures of train, raw and ema")
    return entry


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
