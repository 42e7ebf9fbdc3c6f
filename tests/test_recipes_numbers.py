"""The recipes of published runs, step by step, beside numbers that were read in papers and logs.

The numbers stand here as they are published, and where a formula is published as it comes out by
hand: rates and decays at steps of an epoch, sizes with images a process, strengths and what else
the tables of the papers have.
"""

from typing import NamedTuple

import pytest

from fleetnet import recipes
from fleetnet.inputs.samplers import Sizes
from fleetnet.sizes import parse_curriculum, parse_sizes
from fleetnet.training.config import TrainConfig, read_recipe
from fleetnet.training.schedule import Schedule

IMAGENET, COCO, VOC = 1_281_167, 117_266, 10_582  # training images; VOC with its extra annotations


class Step(NamedTuple):
    """What a run has at a step."""

    epoch: int  # from 0
    step: int  # of the epoch, from 0
    rate: float
    decay: float


def config_of(recipe: str) -> TrainConfig:
    return TrainConfig(**read_recipe(recipes.locate(recipe)))


def check_steps(recipe: str, images: int, steps: list[Step]) -> None:
    """Compare a recipe's rate and decay at some steps with the numbers."""
    config = config_of(recipe)
    schedule = Schedule(config, steps_of(config, images))
    for epoch, step, rate, decay in steps:
        assert schedule.rate(epoch, step) == pytest.approx(rate, rel=1e-5), (recipe, epoch, step)
        annealed = config.weight_decay * schedule.decay(epoch, step)
        assert annealed == pytest.approx(decay, rel=1e-5), (recipe, epoch, step)


def steps_of(config: TrainConfig, images: int) -> int:
    """Batches of an epoch."""
    if not config.sizes:
        return images // config.batch_size
    sizes = parse_sizes(config.sizes)
    return Sizes(sizes, config.size, config.batch_size, config.seed).steps(images)


# ParC-Net: 8 GPUs with 128 images of 256 pixels each; AdamW


@pytest.mark.parametrize(
    ("recipe", "decay"),
    [
        ("parcnet_xs_imagenet", 0.025),
        ("parcnet_s_imagenet", 0.025),
        ("parcnet_h_imagenet", 0.05),
    ],
)
def test_parc_net_on_imagenet(recipe: str, decay: float):
    """3000 steps from 4e-4 to 4e-3, then a cosine to 4e-4 by the epoch, counted from the start."""
    config = config_of(recipe)
    assert steps_of(config, IMAGENET) == 855
    steps = [
        Step(0, 0, 4e-4, decay),
        Step(1, 645, 2.2e-3, decay),  # the 1500th
        Step(3, 435, 3.999112e-3, decay),  # the 3000th, in epoch 3 of the cosine
        Step(75, 0, 3.472792e-3, decay),
        Step(75, 854, 3.472792e-3, decay),
        Step(150, 100, 2.2e-3, decay),
        Step(225, 0, 9.272078e-4, decay),
        Step(299, 854, 4.000987e-4, decay),
    ]
    check_steps(recipe, IMAGENET, steps)
    sizes = Sizes(parse_sizes(config.sizes), config.size, config.batch_size, 0)
    assert config.batch_size == 8 * 128
    images = {size: sizes.images(size) / 8 for size in sizes.sizes}
    expected = {160: 328, 192: 224, 256: 128, 288: 128, 320: 128}
    assert images == {(side, side): count for side, count in expected.items()}
    assert (config.epochs, config.label_smoothing, config.ema) == (300, 0.1, 0.9995)
    assert (config.scale, config.flip, config.color_jitter) == (0.08, 0.5, 0)
    assert (config.auto_augment, config.erasing, config.mixup, config.cutmix) == ("none", 0, 0, 0)
    assert config.decay_norms
    assert not config.ema_warmup
    assert (config.normalize, config.channel_order) == ("none", "BGR")
    assert round(256 / config.crop) == 288


def test_parc_net_detects():
    """SSD on COCO: 4 GPUs with 32 images each, 200 epochs from 9e-4 to 1e-6."""
    decay = 0.02
    steps = [
        Step(0, 0, 9e-5, decay),
        Step(0, 250, 4.95e-4, decay),
        Step(0, 500, 9e-4, decay),
        Step(50, 0, 7.683446e-4, decay),
        Step(100, 900, 4.505e-4, decay),
        Step(199, 0, 1.055451e-6, decay),
    ]
    check_steps("ssd_parcnet_s_coco", COCO, steps)
    config = config_of("ssd_parcnet_s_coco")
    assert (config.epochs, config.size, config.batch_size) == (200, (320, 320), 4 * 32)
    assert (config.ema, config.max_objects, config.nms, config.score) == (0.9995, 200, 0.5, 0.01)


def test_parc_net_segments():
    """DeepLabV3 on VOC: 4 GPUs with 8 images each, 50 epochs, the head ten times as fast."""
    decay = 0.01
    steps = [
        Step(0, 0, 9e-5, decay),
        Step(0, 250, 4.95e-4, decay),
        Step(2, 0, 8.964556e-4, decay),
        Step(25, 0, 4.505e-4, decay),
        Step(49, 300, 1.886986e-6, decay),
    ]
    check_steps("deeplabv3_parcnet_s_voc", VOC, steps)
    config = config_of("deeplabv3_parcnet_s_voc")
    assert (config.epochs, config.size, config.batch_size) == (50, (512, 512), 4 * 8)
    assert (config.head_lr, config.output_stride, config.ema) == (10, 16, 0.9995)


# MobileOne: 256 images a step in all; SGD, decay that falls along the cosine


@pytest.mark.parametrize("variant", ["s0", "s1", "s2", "s3", "s4"])
def test_mobileone(variant: str):
    """5 epochs from 1e-4 to 0.1, a cosine to 1e-6; decay from 1e-4 to 1e-5 over all 300 epochs."""
    recipe = f"mobileone_{variant}_imagenet"
    steps = [
        Step(0, 0, 1e-4, 1e-4),
        Step(2, 2502, 0.05005, 9.999013e-5),  # the half of the warm-up
        Step(5, 0, 0.1, 9.993832e-5),
        Step(75, 0, 0.08673884, 8.681981e-5),
        Step(150, 17, 0.05133151, 5.5e-5),
        Step(225, 0, 0.01511927, 2.318019e-5),
        Step(299, 5003, 3.835223e-6, 1.000247e-5),
    ]
    check_steps(recipe, IMAGENET, steps)
    config = config_of(recipe)
    assert (config.optimizer, config.momentum) == ("sgd", 0.9)
    assert (config.label_smoothing, config.ema, config.ema_warmup) == (0.1, 0.9995, False)
    curriculum = parse_curriculum(config.curriculum)
    if variant in ("s0", "s1"):
        assert curriculum is None
        assert config.auto_augment == "none"
        return
    assert config.auto_augment == "autoaugment"
    assert curriculum is not None
    expected = {0: (160, 0.3), 38: (160, 0.3), 39: (192, 0.6), 113: (192, 0.6)}
    expected |= {114: (224, 1.0), 299: (224, 1.0)}
    stages = {epoch: curriculum.at(epoch) for epoch in expected}
    assert {epoch: (stage.size[0], stage.strength) for epoch, stage in stages.items()} == expected


# RepViT: rates by the epoch, one behind; peaks as in the logs

REPVIT_300 = {  # of a peak: rates in epochs 2, 6, 150 and 299
    2e-3: (4.008e-4, 1.998636e-3, 1.015419e-3, 1.021823e-5),
    3e-3: (6.008e-4, 2.997951e-3, 1.520655e-3, 1.032788e-5),
    4e-3: (8.008e-4, 3.997266e-3, 2.025891e-3, 1.043754e-5),
}
REPVIT_PEAKS = {
    "m0_6": (4e-3, 4e-3), "m0_9": (3e-3, 4e-3), "m1_0": (4e-3, 4e-3), "m1_1": (4e-3, 4e-3),
    "m1_5": (4e-3, 4e-3), "m2_3": (2e-3, 2e-3), "m1": (4e-3, 4e-3), "m2": (4e-3, 4e-3),
    "m3": (4e-3, 4e-3),
}  # fmt: skip


@pytest.mark.parametrize("recipe", recipes.names("repvit_*_imagenet_*"))
def test_repvit(recipe: str):
    variant, kind = recipe.removeprefix("repvit_").split("_imagenet_")
    config = config_of(recipe)
    peak = REPVIT_PEAKS[variant][kind == "450e"]
    assert config.batch_size == config.lr_batch
    assert config.lr == peak
    assert config.epochs == (450 if kind == "450e" else 300)
    decay = 0.025
    steps = [Step(0, 0, 1e-6, decay), Step(1, 400, 1e-6, decay)]
    if kind != "450e":
        pairs = zip((2, 6, 150, 299), REPVIT_300[peak], strict=True)
        steps += [Step(epoch, 5, rate, decay) for epoch, rate in pairs]
    check_steps(recipe, IMAGENET, steps)
    assert (config.agc, config.repeats, config.label_smoothing) == (0.02, 3, 0.1)
    assert (config.mixup, config.cutmix, config.erasing) == (0.8, 1, 0.25)
    assert config.auto_augment == "rand-m9-mstd0.5-inc1"
    assert (config.ema, config.evaluate) == (0.99996, "raw")
    if kind == "plain":
        assert config.teacher is None
    else:
        assert config.teacher == "timm/regnety_160.deit_in1k"
        assert (config.distill, config.distill_weight) == ("hard", 0.5)


# FasterNet: rates by the epoch; 192 pixels, and 224 from epoch 280 on

FASTERNET = {  # peak, decay, drop path, magnitude of RandAugment, mixup, clip, images a step
    "t0": (4e-3, 0.005, 0.0, None, 0.05, None, 4096),
    "t1": (4e-3, 0.01, 0.02, 3, 0.1, None, 4096),
    "t2": (4e-3, 0.02, 0.05, 5, 0.1, None, 4096),
    "s": (4e-3, 0.03, 0.1, 7, 0.3, None, 4096),
    "m": (2e-3, 0.05, 0.2, 7, 0.5, 1, 2048),
    "l": (2e-3, 0.05, 0.3, 7, 0.7, 0.01, 2048),
}
FASTERNET_RATES = {  # of a peak: in epochs 10, 20, 150 and 299
    4e-3: (2.0005e-3, 3.956404e-3, 2.005e-3, 1.010939e-5),
    2e-3: (1.0005e-3, 1.978257e-3, 1.005e-3, 1.005456e-5),
}


@pytest.mark.parametrize("variant", FASTERNET)
def test_fasternet(variant: str):
    peak, decay, drop_path, magnitude, mixup, clip, images = FASTERNET[variant]
    recipe = f"fasternet_{variant}_imagenet"
    config = config_of(recipe)
    assert config.batch_size == images
    pairs = zip((10, 20, 150, 299), FASTERNET_RATES[peak], strict=True)
    steps = [Step(epoch, 3, rate, decay) for epoch, rate in pairs]
    check_steps(recipe, IMAGENET, [Step(0, 0, 1e-6, decay), *steps])
    curriculum = parse_curriculum(config.curriculum)
    assert curriculum is not None
    assert [curriculum.at(epoch).size[0] for epoch in (0, 279, 280, 299)] == [192, 192, 224, 224]
    policy = "none" if magnitude is None else f"rand-m{magnitude}-mstd0.5-inc1"
    assert (config.auto_augment, config.mixup, config.cutmix) == (policy, mixup, 1)
    assert (config.drop_path, config.clip, config.ema) == (drop_path, clip, None)
    assert (config.label_smoothing, config.crop, config.erasing) == (0.1, 0.9, 0)
    assert config.repeats == 1
    assert config.teacher is None
