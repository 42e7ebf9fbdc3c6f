"""Settings of a training run: defaults < recipe (YAML) < command line.

Unknown keys are errors with the nearest name.

One frozen dataclass is the whole list: its field names are the recipe's keys and, with dashes, the
flags of `fleetnet train`; the `help` beside each field is what `fleetnet train --help` shows.

To add a setting:
1. Add a line to `TrainConfig`:
   `patience: int = _field(0, "epochs without a better one before training stops")`.
2. If some tasks or other settings leave it unread, say when it is read, by one or more
   `Condition`s: `_field(0.0, "probability of ...", LABELS, AUGMENTED)`. All of them have to hold;
   else the setting is refused where it was given (`checks.check_settings`: the command line,
   recipes and `fit`). Zero, null and "none" are never refused: they ask for nothing. A condition
   sees a `Situation`: the whole config, the task's file, the number of processes.
3. If it changes what a network sees of a sample, name it in `SEEN`.
4. Add its range to the rules in `__post_init__`, and a value other than the default to VALUES in
   tests/test_settings.py: that test trains with it for every task and shows that it is refused or
   used.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin, get_type_hints

from ..channels import parse_channels
from ..errors import UsageError, named_arguments, suggest
from ..reading import SMALL, read_text
from ..sizes import parse_curriculum, parse_size, parse_sizes
from ..synonyms import translated
from . import named_weights

if TYPE_CHECKING:
    import yaml

AUTO = -1  # batch_size until `fit` knows how many images fit, as other tools write it too
MOST_LINES = 12  # of another tool's file that are shown by our names
LONGEST_WAIT = 10_000.0  # minutes: a week; torch counts in seconds, and cannot count much longer


class Trained(Protocol):
    """What a task says that decides whether settings are read.

    It is a part of `tasks.Task`, which stands above this file.
    """

    TARGET: str
    AUGMENT: str
    SETTINGS: tuple[str, ...]

    @property
    def MODE(self) -> str: ...

    @property
    def LIMITS(self) -> object | None: ...


@dataclass(frozen=True)
class Situation:
    """What decides whether a setting is read."""

    config: "TrainConfig"
    task: Trained
    processes: int = 1

    @property
    def augment(self) -> str:
        return self.task.AUGMENT if self.config.augment == "default" else self.config.augment


@dataclass(frozen=True)
class Condition:
    """When a setting is read; `words` follow "it is read"."""

    words: str
    holds: Callable[[Situation], bool]


LABELS = Condition(
    "by tasks that learn one label of an image", lambda now: now.task.TARGET == "label"
)
PICTURES = Condition(
    "by tasks that learn what a whole image shows",
    lambda now: now.task.TARGET in ("label", "tags"),
)
CROPPED = Condition(
    "by tasks that crop the picture in evaluation", lambda now: now.task.MODE == "crop"
)
SMOOTHED = Condition(
    "by losses that can smooth labels", lambda now: "label_smoothing" in now.task.SETTINGS
)
FOCUSED = Condition(
    "by losses of what a whole picture shows", lambda now: "focal" in now.task.SETTINGS
)
WEIGHTED = Condition(
    "by losses over the classes of an image or a pixel",
    lambda now: "class_weights" in now.task.SETTINGS,
)
DETECTED = Condition("by detectors", lambda now: now.task.LIMITS is not None)
AUGMENTED = Condition("with every augmentation but none", lambda now: now.augment != "none")
MOSAIC = Condition("with the augmentation mosaic", lambda now: now.augment == "mosaic")
TAUGHT = Condition("where there is a teacher", lambda now: now.config.teacher is not None)
OTHER_PROCESSES = Condition(
    "where workers is above 0, and by several processes that train together",
    lambda now: now.config.workers > 0 or now.processes > 1,
)
STEPS = Condition("with schedule step", lambda now: now.config.schedule == "step")
WSD = Condition("with schedule wsd", lambda now: now.config.schedule == "wsd")
SOME_MOSAIC = Condition("where mosaic is above 0", lambda now: now.config.mosaic > 0)
SEVERAL_IF_SYNC = Condition(
    "as sync only by several processes; allowed here: train, frozen",
    lambda now: now.config.norm != "sync" or now.processes > 1,
)


def _field(default: object, help: str, *read: Condition, kind: object = None) -> Any:
    metadata: dict[str, object] = {"help": help, "read": read, "null": True}
    if kind is not None:  # of what may be typed, where that is more than the type of the field
        metadata["kind"] = kind
    if default is None:
        metadata["usual"] = "null"
    return dataclasses.field(default=default, metadata=metadata)


def parse_values(value: str) -> tuple[float, float] | None:
    """(0.0, 4095.0) from "0,4095"; None from "auto" and "full"."""
    if value in ("auto", "full"):
        return None
    parts = value.split(",")
    try:
        low, high = map(float, parts)
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"scale_values is {value!r}; allowed: auto, full, or LOWEST,HIGHEST such as 0,4095"
        )
    return low, high


def _options(help: str = "the family's own, as --options.mixing conv") -> Any:
    return dataclasses.field(
        default_factory=dict, metadata={"help": help, "read": (), "null": True}
    )


def parse_epochs(text: str) -> list[float]:
    """[30.0, 60.0] from "30,60"; [] from ""."""
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    try:
        epochs = [float(part) for part in parts]
    except ValueError:
        epochs = [-1.0]
    if epochs != sorted(epochs) or any(not (epoch > 0) for epoch in epochs):
        raise UsageError(
            f"step_epochs is {text!r}; allowed: rising numbers of epochs, such as 30,60,90"
        )
    return epochs


# Settings that decide what a network sees of a sample, beside the preprocessing: stored answers of
# a teacher are to what these make, and `fleetnet data show` shows it.
SEEN = (
    "augment",
    "mosaic",
    "sizes",
    "curriculum",
    "multi_scale",
    "scale",
    "flip",
    "color_jitter",
    "auto_augment",
    "erasing",
    "mixup",
    "cutmix",
    "balance",
    "repeats",
    "seed",
)
OPTIMIZERS = "sgd", "adamw"
POLICIES = "none", "randaugment", "trivial", "autoaugment"
OF_SCHEDULES = {  # which schedules read a setting
    "min_lr": ("cosine", "wsd"),
    "cosine_from": ("cosine",),
}
# Settings, what their values have to be, and how an error says that.
RANGES: list[tuple[str, Callable[[float], bool], str]] = [
    (
        "epochs accumulate repeats eval_every max_objects",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "batch_size",
        lambda value: value >= 1 or value == AUTO,
        "at least 1, or auto",
    ),
    (
        "weight_decay warmup_epochs mixup cutmix color_jitter workers threads patience "
        "plain_epochs decay_end warmup_steps warmup_lr min_lr rate_lag cooldown_epochs lr_batch "
        "save_every",
        lambda value: value >= 0,
        "at least 0",
    ),
    (
        "timeout",
        lambda value: 0 < value <= LONGEST_WAIT,
        f"above 0, at most {LONGEST_WAIT:g} minutes",
    ),
    # below 1 the loss has no gradient where a probability is 1
    ("focal", lambda value: value == 0 or value >= 1, "0, or at least 1"),
    ("lr head_lr clip agc step_factor distill_temperature", lambda value: value > 0, "positive"),
    ("label_smoothing momentum multi_scale", lambda value: 0 <= value < 1, "from 0 to below 1"),
    (
        "flip erasing mosaic max_bad nms score distill_weight",
        lambda value: 0 <= value <= 1,
        "from 0 to 1",
    ),
    ("scale crop layer_decay", lambda value: 0 < value <= 1, "above 0, at most 1"),
    ("ema", lambda value: 0 < value < 1, "between 0 and 1"),
]


@dataclass(frozen=True)
class TrainConfig:
    """What `fit` needs to know; every value is checked on construction."""

    model: str = _field("", "name of a model, as listed by `fleetnet models`")
    data: str = _field("", "folder, list, CSV table or annotation file, or `shapes` (generated)")
    format: str | None = _field(None, "format of the data, where finding it out fails")
    images: str | None = _field(
        None, "folder of the images, where they lie apart from their annotations"
    )
    masks: str | None = _field(
        None, "folder of the label maps, where they lie apart from the images"
    )
    max_bad: float = _field(
        0.5, "largest share of the annotations that may be unusable; 1 takes what is left"
    )
    weights: str | None = _field(
        None, "starting weights: a file, hf-hub:OWNER/NAME, or `default` (published)"
    )
    teacher: str | None = _field(
        None,
        "classifier that is learned from beside the labels: a run, a checkpoint, timm/NAME "
        "(published weights), or a folder of `fleetnet data reinforce`",
        LABELS,
    )
    distill: Literal["hard", "soft"] = _field(
        "hard", "what is learned of the teacher: its most probable class, or probabilities", TAUGHT
    )
    distill_weight: float = _field(0.5, "share of the teacher in the loss", TAUGHT)
    distill_temperature: float = _field(
        1.0, "what logits are divided by for soft distillation", TAUGHT
    )
    epochs: int = _field(30, "passes over the training images")
    channels: int | str | None = _field(
        None,
        "of the pictures: gray, rgb, rgba, or a number such as 5; null: those of the weights, or 3",
    )
    size: tuple[int, int] = _field((224, 224), "pixels: 224, or 192x256 for height x width")
    batch_size: int = _field(
        32,
        "images a step, of all devices together; auto: as many as there is memory for",
        kind=int | Literal["auto"] | None,
    )
    accumulate: int = _field(1, "steps whose gradients are summed before an update")
    optimizer: str = _field(
        "adamw",
        "sgd (with Nesterov momentum), adamw, or the dotted name of a class, such as "
        "torch.optim.RMSprop or timm.optim.Lamb",
    )
    optimizer_options: dict[str, bool | int | float | str] = _options(  # noqa: RUF009  (it returns a field)
        "the optimizer's own, as --optimizer-options.eps 1e-6"
    )
    lr: float = _field(1e-3, "peak learning rate, for the batch size as given")
    lr_batch: int = _field(
        0, "images an update that lr is for: it grows with them; 0: lr as it is given"
    )
    momentum: float = _field(0.9, "of sgd; the first beta of adamw")
    weight_decay: float = _field(0.05, "not applied to norms and biases")
    decay_norms: bool = _field(False, "apply weight_decay to norms and biases too")
    decay_end: float | None = _field(
        None, "weight decay of the last step, to which it goes along half a cosine; null: no change"
    )
    schedule: Literal["cosine", "step", "wsd", "constant"] = _field(
        "cosine", "of the learning rate after the warm-up; wsd: constant, then a cooldown"
    )
    warmup_epochs: float = _field(
        2.0, "epochs of linear warm-up, at most half of all, before the schedule"
    )
    warmup_steps: int = _field(
        0, "updates of linear warm-up, in place of warmup_epochs; 0 for none"
    )
    warmup_lr: float | None = _field(
        None, "learning rate at which the warm-up begins; null: one step's share of the peak"
    )
    min_lr: float = _field(0.0, "learning rate at the end of cosine and wsd")
    cosine_from: Literal["warmup", "start"] = _field(
        "warmup", "where the cosine begins: after the warm-up, or at the start, hidden by it"
    )
    rate_by: Literal["step", "epoch", "epoch_after_warmup"] = _field(
        "step", "how often learning rate and weight decay move"
    )
    rate_lag: int = _field(0, "epochs by which learning rate and weight decay run behind")
    step_epochs: str = _field(
        "", "epochs after which schedule step lowers the rate, as 30,60,90", STEPS
    )
    step_factor: float = _field(0.1, "what schedule step multiplies the rate with", STEPS)
    cooldown_epochs: float = _field(
        0.0, "last epochs of schedule wsd, in which the rate falls", WSD
    )
    label_smoothing: float = _field(0.1, "share of the target given to all classes alike", SMOOTHED)
    focal: float = _field(
        0.0,
        "gamma of the focal loss, usually 2, which counts what is already right less; "
        "0: cross-entropy",
        FOCUSED,
    )
    clip: float | None = _field(None, "largest norm of the gradient")
    agc: float | None = _field(
        None, "adaptive clipping: largest norm of a unit's gradient, as a share of its weights'"
    )
    ema: float | None = _field(0.99, "decay a step of the averaged weights; null for none")
    ema_warmup: bool = _field(True, "forget the first weights soon: a lower decay in early steps")
    drop_path: float = _field(0.0, "largest probability of stochastic depth")
    output_stride: int | None = _field(
        None, "8 and 16 dilate instead of striding; null: the task's own"
    )
    options: dict[str, bool | int | float | str] = _options()  # noqa: RUF009  (it returns a field)
    head_lr: float = _field(1.0, "learning rate of the head, as a multiple of lr")
    layer_decay: float = _field(
        1.0, "learning rate of a block of the backbone, as a multiple of that of the next one"
    )
    norm: Literal["train", "frozen", "sync"] = _field(
        "train",
        "batch norms of the backbone: frozen keeps them as they are, "
        "sync takes the statistics of all processes together",
        SEVERAL_IF_SYNC,
    )
    freeze: str | None = _field(
        None,
        "what is not trained: globs of names of modules or parameters, "
        "such as backbone.stages.[0-2].*,head.x",
    )
    patience: int = _field(
        0, "epochs without a better one before training stops early; 0 for never"
    )
    class_weights: str = _field(
        "none",
        "in the loss; balanced: in inverse proportion to the samples or pixels of a class; of "
        "tags, where one is there, images without to images with; or by name, as cat=2,dog=0.5, "
        "or a YAML, JSON or CSV file of names and weights",
        WEIGHTED,
        kind=str | dict[str, float],
    )
    balance: bool = _field(
        False,
        "draw each class equally often; of tags, an image as often as its rarest one asks for",
        PICTURES,
    )
    augment: Literal["default", "none", "classify", "ssd", "jitter", "segment", "mosaic"] = _field(
        "default", "of the training images; default: the task's own"
    )
    mosaic: float = _field(
        1.0, "probability of joining four images, where the augmentation is mosaic", MOSAIC
    )
    plain_epochs: int = _field(0, "last epochs without mosaic", MOSAIC, SOME_MOSAIC)
    curriculum: str = _field(
        "",
        "sizes of the input by epoch, and strengths of auto_augment from 0 to 1, as "
        "0:160:0.3,39:192:0.6,114:224",
    )
    sizes: str = _field(
        "",
        "sizes of which each step has one by chance, with as many images as have the pixels of "
        "batch_size at size, as 160,192,256",
    )
    repeats: int = _field(
        1, "how often a sample stands in a batch, each time augmented anew; an epoch has fewer"
    )
    multi_scale: float = _field(
        0.0, "each step at a size of its own, at most this share smaller or larger"
    )
    scale: float | None = _field(
        None,
        "smallest area of a random crop, as a share of the image; null: the usual one",
        AUGMENTED,
    )
    flip: float = _field(0.5, "probability of a horizontal flip", AUGMENTED)
    color_jitter: float | None = _field(
        None, "range of brightness, contrast and saturation; null: the usual one", AUGMENTED
    )
    auto_augment: str = _field(
        "none",
        "none, torchvision's randaugment, trivial or autoaugment, or timm's RandAugment, such as "
        "rand-m9-mstd0.5-inc1",
        PICTURES,
        AUGMENTED,
    )
    erasing: float = _field(0.0, "probability of erasing a rectangle", AUGMENTED)
    mixup: float = _field(0.0, "alpha of mixup; 0 for none", PICTURES)
    cutmix: float = _field(0.0, "alpha of cutmix; 0 for none", PICTURES)
    crop: float = _field(1.0, "share of the shorter side kept in evaluation", CROPPED)
    interpolation: Literal["bilinear", "bicubic"] | None = _field(
        None, "how pictures are resized; null: as for the starting weights, else bilinear"
    )
    normalize: Literal["imagenet", "none"] | None = _field(
        None,
        "mean and std that are taken off the values; none: they stay from 0 to 1; null: those of "
        "the starting weights, else imagenet",
    )
    channel_order: Literal["RGB", "BGR"] | None = _field(
        None, "of the network's input; null: that of the starting weights, else RGB"
    )
    max_objects: int | None = _field(
        None, "objects of a picture that evaluation keeps, the best; null: 100", DETECTED
    )
    nms: float | None = _field(
        None,
        "overlap of two boxes of a class from which the less certain is dropped; "
        "null: the task's own",
        DETECTED,
    )
    score: float | None = _field(
        None, "lowest score that evaluation keeps; null: the task's own", DETECTED
    )
    precision: Literal["fp32", "bf16", "fp16"] = _field("fp32", "of autocast; fp16 needs a GPU")
    channels_last: bool = _field(True, "memory format")
    device: Literal["auto", "cpu", "cuda"] = _field("auto", "auto takes the GPU where there is one")
    merge_branches: Literal["auto", "on", "off"] = _field(
        "auto",
        "train each sum of branches (MobileOne, RepViT) as one convolution, equal but for "
        "rounding; auto where it is faster",
    )
    compile: bool = _field(
        False,
        "train by torch.compile: minutes before the first step; what is evaluated and saved is "
        "not compiled",
    )
    threads: int = _field(0, "CPU threads; 0 leaves them as they are")
    workers: int = _field(0, "processes that read images")
    timeout: float = _field(
        5.0,
        "minutes that these may take for a batch, and processes that train together for a step, "
        "before the run ends with an error",
        OTHER_PROCESSES,
    )
    scale_values: str = _field(
        "auto",
        "range of values in files of more than 8 bits, as 0,4095, which becomes 0 to 255; "
        "full: all of 16 bits, floats from 0 to 1; auto: what the training images have",
    )
    cache: bool = _field(
        False, "keep images in memory, decoded or as their files, as far as 4 GiB hold them"
    )
    evaluate: Literal["average", "raw", "both"] = _field(
        "average", "which weights are evaluated: their average where there is one, else the others"
    )
    eval_mode: Literal["task", "retrieval"] = _field(
        "task",
        "what is evaluated: the answers of the task, or retrieval, whether the pictures most like "
        "one are of its class",
        LABELS,
    )
    eval_every: int = _field(1, "epochs between evaluations; the last is always evaluated")
    save_every: float = _field(
        10.0, "minutes between states that are saved within an epoch; 0: only at its end"
    )
    log: str = _field(
        "",
        "trackers that get the figures too, separated by commas: tensorboard, wandb, mlflow and "
        "whatever else accelerate has",
    )
    seed: int = _field(0, "of weights, order and augmentation")

    def __post_init__(self) -> None:
        hints = get_type_hints(TrainConfig)
        for key, hint in hints.items():
            value, allowed_values = getattr(self, key), get_args(hint)
            if type(value) is int and float in (hint, *allowed_values):
                value = float(value)  # as 1 in YAML; torch takes no int for some of them
                object.__setattr__(self, key, value)
            if get_origin(hint) is Literal and value not in allowed_values:
                raise UsageError(f"{key} is {value!r}: {suggest(str(value), allowed_values)}")
            if value is None and type(None) not in allowed_values:
                raise UsageError(
                    f"{key} is null; allowed: a value such as {KEYS_AND_DEFAULTS[key]!r}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{key} is {value}; allowed: a finite number")
        self._check_optimizer()
        self._parse()
        for keys, is_allowed, allowed in RANGES:
            for key in keys.split():
                null = ", or null" if type(None) in get_args(hints[key]) else ""
                self._check_range(key, is_allowed, f"{allowed}{null}")
        self._check_schedule()
        self._check_order()
        if self.balance and self.class_weights != "none":
            raise UsageError(
                "balance and class_weights both make up for classes of few samples: "
                "give one of them"
            )

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS and "." not in self.optimizer:
            raise UsageError(
                f"optimizer is {self.optimizer!r}: {suggest(self.optimizer, OPTIMIZERS)}, or the "
                "dotted name of a class, such as torch.optim.RMSprop or timm.optim.Lamb"
            )
        for mapping in ("options", "optimizer_options"):
            for key, value in getattr(self, mapping).items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise UsageError(f"{mapping}.{key} is {value}; allowed: a finite number")

    def _check_order(self) -> None:
        """`UsageError` where two settings say the same thing of the samples or of their size."""
        curriculum = parse_curriculum(self.curriculum)
        stages = curriculum.stages if curriculum is not None else ()
        if self.auto_augment == "none" and any(stage.strength != 1 for stage in stages):
            raise UsageError(
                f"curriculum is {self.curriculum!r}, with strengths of auto_augment, which is "
                "none: give a policy, or leave the strengths out"
            )
        if parse_sizes(self.sizes) and curriculum is not None:
            raise UsageError("sizes and curriculum both say the size of a step: give one of them")
        if self.auto_augment not in POLICIES and not self.auto_augment.startswith("rand-"):
            raise UsageError(
                f"auto_augment is {self.auto_augment!r}: {suggest(self.auto_augment, POLICIES)}, "
                "or timm's RandAugment, such as rand-m9-mstd0.5-inc1"
            )
        if self.balance and self.repeats > 1:
            raise UsageError("balance and repeats both say the order of the samples: give one")

    def _check_schedule(self) -> None:
        """`UsageError` for settings of a schedule that is not this one, or that lacks its own."""
        for key, schedules in OF_SCHEDULES.items():
            value = getattr(self, key)
            if value != KEYS_AND_DEFAULTS[key] and self.schedule not in schedules:
                raise UsageError(
                    f"{key} is {value}, but schedule is {self.schedule}, which has no use for it: "
                    f"it is read by {' and '.join(schedules)}"
                )
        if self.schedule == "step" and not self.steps_after:
            raise UsageError("schedule is step; give step_epochs, such as 30,60,90")
        if self.schedule == "wsd":
            warmup = 0 if self.warmup_steps else self.warmup_epochs
            if not 0 < self.cooldown_epochs <= self.epochs - warmup:
                raise UsageError(
                    f"schedule is wsd and cooldown_epochs {self.cooldown_epochs:g}; allowed: above "
                    f"0, at most the epochs without the warm-up, {self.epochs - warmup:g}"
                )
        if self.min_lr > self.lr:
            raise UsageError(f"min_lr is {self.min_lr:g}; allowed: at most lr, {self.lr:g}")

    @property
    def steps_after(self) -> list[float]:
        """The epochs after which schedule step lowers the rate."""
        return parse_epochs(self.step_epochs)

    def _parse(self) -> None:
        """Read what is written as a text; `UsageError` for what is not written so."""
        object.__setattr__(self, "size", parse_size(self.size))
        if str(self.batch_size) == "auto":
            object.__setattr__(self, "batch_size", AUTO)
        if self.channels is not None:
            object.__setattr__(self, "channels", parse_channels(self.channels))
        object.__setattr__(self, "class_weights", named_weights.as_text(self.class_weights))
        parse_values(self.scale_values)

    def _check_range(self, key: str, is_allowed: Callable[[float], bool], allowed: str) -> None:
        value = getattr(self, key)
        if value is not None and not is_allowed(value):
            raise UsageError(f"{key} is {value}; allowed: {allowed}")

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


TrainConfig.__init__ = named_arguments(TrainConfig.__init__)  # type: ignore[method-assign]
KEYS_AND_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
KEYS = set(KEYS_AND_DEFAULTS)
READ: dict[str, tuple[Condition, ...]] = {
    field.name: field.metadata["read"] for field in dataclasses.fields(TrainConfig)
}


def unread(key: str, now: Situation) -> Condition | None:
    """The condition by which nothing reads a setting here; None: read, or asking for nothing."""
    if getattr(now.config, key) in (0, None, "none"):
        return None
    return next((condition for condition in READ[key] if not condition.holds(now)), None)


def plain_yaml() -> "type[yaml.SafeLoader]":
    """A loader of YAML without aliases: a few lines of them can stand for all of the memory."""
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: "yaml.Node | None", index: int) -> "yaml.Node | None":
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read; write the value out")
            return super().compose_node(parent, index)

    return Plain


def read_recipe(path: str | Path) -> dict[str, object]:
    """The settings that a recipe file gives; keys may have dashes or underscores.

    Raises `UsageError` for a missing file, YAML that is not a mapping, and an unknown key (with the
    nearest name).
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        near = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UsageError(
            f"no recipe {str(path)!r}: "
            + (suggest(path.stem, near) if near else "the folder has none")
        )
    try:
        values = yaml.load(read_text(path, SMALL), plain_yaml())
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a date that there is not is a ValueError
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{path}: a recipe is a mapping of keys to values, but this is {type(values).__name__}"
        )
    recipe = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key, value in recipe.items():
        if key not in KEYS:
            nested = _by_our_names(values) if isinstance(value, Mapping) else ""
            nearest = suggest(key, KEYS, "key", "fleetnet train --help")
            raise UsageError(f"{path}: unknown key {key!r}: {nested or nearest}")
    return recipe


def _by_our_names(values: Mapping[str, object]) -> str:
    """What a file of another tool, which has sections, would be as a recipe of ours, in part."""
    settings = translated(values, KEYS)
    lines = "; ".join(f"{name}: {value}" for name, value in list(settings.items())[:MOST_LINES])
    return f"a recipe has no sections. By our names it has {lines}" if lines else ""
