"""The training loop in plain lines: `fleetnet.fit` has to compute the same weights.

No accelerate, no data loader, and nothing of `fleetnet.training` but the settings. Pictures,
augmentations, losses, metrics and torch's optimizers are used as they are. What a loop decides is
written out again: order, batches, groups, rates, clipping, the average, the sizes of multi-scale,
the last epochs without mosaic, and which weights are the best.
"""

import copy
import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetnet.inputs.dataset import Batch, Item, collate
from fleetnet.inputs.mixing import mix
from fleetnet.training.config import TrainConfig

Weights = dict[str, Tensor]


@dataclass
class Course:
    """What a run computed."""

    raw: Weights = field(default_factory=dict)
    average: Weights | None = None
    best: Weights = field(default_factory=dict)
    best_of: tuple[int, str, float] = (0, "", 0.0)  # epoch from 1, "raw" or "ema", score
    # of each epoch: loss, lr and images, and where it was evaluated the scores "raw" and "ema"
    log: list[dict[str, Any]] = field(default_factory=list)


def train_slowly(  # noqa: C901, PLR0915
    model: nn.Module,
    config: TrainConfig,
    count: int,
    read: Callable[[int, int, int, bool], Item | str],
    loss: Callable[[Any, Any], dict[str, Tensor]],
    score: Callable[[nn.Module], float],
    labels: list[int] | None = None,
    stand_ins: bool = True,
) -> Course:
    """Train `model` in place on `count` samples.

    `read(epoch, index, turn, mosaic)` makes an input of a sample, which comes up in this epoch for
    the first time in turn 0, and for the second in turn 1, `loss(outputs, targets)` has named parts,
    `score(model)` is the figure by which weights are the best, and `labels` are those of the
    samples, for `config.balance`. With `stand_ins` the next one that can be read takes the place of one
    that cannot.
    """
    frozen = frozen_parts(model, config)
    for part in frozen:
        part.requires_grad_(False)
    optimizer = optimizer_of(model, config)
    averaged = copy.deepcopy(model)
    averagings = 0
    course = Course()
    for epoch in range(config.epochs):
        order = order_of(count, config.seed, epoch)
        if config.balance:
            order = balanced_order(labels, config.seed, epoch)
        batches = chunks(with_turns(order), config.batch_size)
        if count >= config.batch_size:  # a smaller last one is left out
            batches = [batch for batch in batches if len(batch) == config.batch_size]
        mosaic = epoch < config.epochs - config.plain_epochs
        model.train()
        for part in frozen:
            part.eval()
        groups = chunks(batches, config.accumulate)
        sums: dict[str, float] = {}
        images, rate, decay, step = 0, 0.0, 0.0, -1
        for update, group in enumerate(groups):
            learned = False
            for samples in group:
                step += 1
                items = [read(epoch, index, turn, mosaic) for index, turn in samples]
                for place, item in enumerate(items):
                    if isinstance(item, str) and stand_ins:
                        items[place] = next_readable(
                            item, with_turns(order), samples[place], epoch, mosaic, read
                        )
                batch = collate(items)
                if len(batch.images) == 0 or (len(batch.images) == 1 and batch.lost):
                    continue  # of unreadable files
                learned = True
                rate = rate_of(epoch * len(groups) + update, len(groups), config)
                decay = decay_of(epoch * len(groups) + update, len(groups), config)
                seed_all(f"batch {config.seed} {epoch} {step}")
                inputs, targets = mixed_and_sized(batch, model.classes, config)
                seed_all(f"network {config.seed} {epoch} {step}")
                losses = loss(model(inputs), targets)
                total = torch.stack(list(losses.values())).sum()
                (total / config.accumulate).backward()  # of a last group with fewer batches too
                images += len(batch.images)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + len(batch.images) * value.item()
            if not learned:
                continue
            learned_from = [p for p in model.parameters() if p.grad is not None]
            if config.agc is not None:
                clip_by_unit(learned_from, config.agc)
            clip([p.grad for p in learned_from], config.clip)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate * parameters["multiple"]
                parameters["weight_decay"] = decay * parameters["decays"]
            optimizer.step()
            optimizer.zero_grad()
            if config.ema is not None:
                average(
                    averaged.state_dict(),
                    model.state_dict(),
                    config.ema,
                    averagings,
                    config.ema_warmup,
                )
                averagings += 1
        mean = sum(value / images for value in sums.values())
        line: dict[str, Any] = {"loss": mean, "lr": rate, "images": images}
        course.log.append(line)
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
            wanted = {"both": ("raw", "ema"), "raw": ("raw",), "average": ("ema",)}[config.evaluate]
            if config.ema is None:
                wanted = ("raw",)
            for form, net in (("raw", model), ("ema", averaged)):
                if form in wanted:
                    line[form] = score(net)
                    best = course.best_of[2]
                    if best == 0 or line[form] > best:  # of nothing right, the last
                        course.best_of = (epoch + 1, form, line[form])
                        course.best = copy.deepcopy(net.state_dict())
            if 0 < config.patience <= epoch + 1 - course.best_of[0]:
                break
    course.raw = model.state_dict()
    course.average = None if config.ema is None else averaged.state_dict()
    return course


def seed_all(place: str) -> None:
    """Seed all generators by the digest of what is drawn for, and where."""
    digest = hashlib.blake2b(place.encode(), digest_size=20).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    random.seed(int.from_bytes(digest[8:16], "little"))
    np.random.seed(int.from_bytes(digest[16:], "little"))


def next_readable(
    reason: str,
    order: list[tuple[int, int]],
    lost: tuple[int, int],
    epoch: int,
    mosaic: bool,
    read: Callable[[int, int, int, bool], Item | str],
) -> Item | str:
    """The first input after a `lost` sample, (index, turn), in the order of an epoch, in a circle."""
    place = order.index(lost)
    for index, turn in order[place + 1 :] + order[:place]:
        item = read(epoch, index, turn, mosaic)
        if not isinstance(item, str):
            return item._replace(instead_of=reason)
    return reason


def with_turns(order: list[int]) -> list[tuple[int, int]]:
    """Each sample with how often it came up before."""
    before: Counter[int] = Counter()
    pairs = []
    for index in order:
        pairs.append((index, before[index]))
        before[index] += 1
    return pairs


def order_of(count: int, seed: int, epoch: int) -> list[int]:
    return shuffled(list(range(count)), generator_of(seed, epoch))


def balanced_order(labels: list[int], seed: int, epoch: int) -> list[int]:
    """As many indices as labels, of each class equally many, up to one, in a random order."""
    generator = generator_of(seed, epoch)
    classes = sorted(set(labels))
    turns = math.ceil(len(labels) / len(classes))
    drawn = []
    for label in classes:
        members = [index for index, other in enumerate(labels) if other == label]
        of_class = []
        while len(of_class) < turns:
            of_class += shuffled(members, generator)
        drawn += of_class[:turns]
    return shuffled(drawn, generator)[: len(labels)]


def shuffled(items: list[int], generator: torch.Generator) -> list[int]:
    return [items[place] for place in torch.randperm(len(items), generator=generator)]


def generator_of(seed: int, epoch: int) -> torch.Generator:
    digest = hashlib.blake2b(f"order {seed} {epoch}".encode(), digest_size=20).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def frozen_parts(model: nn.Module, config: TrainConfig) -> list[nn.Module]:
    pattern = config.freeze or ""
    parts = [part for name, part in model.named_modules() if pattern and fnmatchcase(name, pattern)]
    if config.norm == "frozen":
        parts += [part for part in model.backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    return parts


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [parameter],
            # not of norms and biases
            "weight_decay": config.weight_decay,
            "decays": parameter.ndim > 1 or config.decay_norms,
            "multiple": config.head_lr if name.startswith("head.") else 1.0,
        }
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    momentum = config.momentum
    # Fused ones round the last bit another way.
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, betas=(momentum, 0.999), fused=True)
    nesterov = momentum > 0
    return torch.optim.SGD(groups, config.lr, momentum=momentum, nesterov=nesterov, fused=True)


def rate_of(update: int, updates_an_epoch: int, config: TrainConfig) -> float:
    """Up in a line, for at most half of the run, then down in half a cosine."""
    updates = config.epochs * updates_an_epoch
    warmup = min(config.warmup_epochs * updates_an_epoch, updates / 2)
    if update < warmup:
        return config.lr * (update + 1) / (warmup + 1)
    share = (1 + math.cos(math.pi * (update - warmup) / (updates - warmup))) / 2
    return config.min_lr + (config.lr - config.min_lr) * share


def decay_of(update: int, updates_an_epoch: int, config: TrainConfig) -> float:
    """Weight decay, which may fall in half a cosine from the first update on."""
    end = config.weight_decay if config.decay_end is None else config.decay_end
    share = (1 + math.cos(math.pi * update / (config.epochs * updates_an_epoch))) / 2
    return end + (config.weight_decay - end) * share


def clip_by_unit(parameters: list[nn.Parameter], largest: float) -> None:
    """The norm of the gradient of each output channel, as a share of that of its weights."""
    for parameter in parameters:
        units = [parameter] if parameter.ndim == 1 else list(parameter)
        gradients = [parameter.grad] if parameter.ndim == 1 else list(parameter.grad)
        for unit, gradient in zip(units, gradients, strict=True):
            limit = largest * torch.linalg.vector_norm(unit.detach()).clamp(min=1e-3)
            norm = torch.linalg.vector_norm(gradient)
            if norm > limit:
                gradient.mul_(limit / norm)


def mixed_and_sized(
    batch: Batch, classes: int, config: TrainConfig
) -> tuple[Tensor, dict[str, Any]]:
    """What the network sees of a batch in training, and the targets that go with it."""
    images, targets = batch.inputs().contiguous(), dict(batch.targets)  # (N, 3, H, W)
    if config.mixup or config.cutmix:
        images, targets = mix(images, targets, classes, config.mixup, config.cutmix)
    if config.multi_scale:
        share = torch.rand((), dtype=torch.float64).item()
        ratio = 1 - config.multi_scale + 2 * config.multi_scale * share
        height, width = images.shape[-2:]
        size = [max(32, 32 * round(side * ratio / 32)) for side in (height, width)]
        if size != [height, width]:
            images = F.interpolate(images, size, mode="bilinear")  # (N, 3, *size)
        if "boxes" in targets:
            x, y = size[1] / width, size[0] / height
            targets["boxes"] = [boxes * torch.tensor([x, y, x, y]) for boxes in targets["boxes"]]
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, targets


def clip(gradients: list[Tensor], largest: float | None) -> None:
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if largest is not None and norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / (norm + 1e-6))


def average(
    averages: Weights, weights: Weights, decay: float, before: int, warmup: bool = True
) -> None:
    """Move averages toward weights: all of the way at first, then by less, down to 1 - `decay`.

    Without `warmup` by 1 - `decay` from the second time on.
    """
    share = 1 - min(decay, (1 + before) / (10 + before)) if warmup else 1 - decay
    if before == 0:
        share = 1.0
    for name, value in averages.items():
        if value.is_floating_point():
            value.lerp_(weights[name], share)
        else:
            value.copy_(weights[name])  # the counters of batch norms
