"""Fine-tuning from a checkpoint of other classes: the rows of the head follow the names of the classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import randomize

from fleetnet import checkpoint
from fleetnet.cli import main
from fleetnet.errors import ModelError
from fleetnet.preprocess import Preprocess
from fleetnet.tasks import Model, build
from fleetnet.weights import create_model, load_weights

BEFORE = ["cat", "dog", "bird"]
SIZE = (64, 64)


def trained(name: str, folder: Path) -> tuple[Model, Path]:
    """A model with every value drawn at random, and its checkpoint, whose classes are BEFORE."""
    with torch.device("meta"):
        model = build(name, len(BEFORE)).to_empty(device="cpu")
    model = randomize(model, 0)
    path = folder / "before.safetensors"
    checkpoint.save(path, model, classes=BEFORE, preprocess=Preprocess(SIZE))
    return model, path


def by_class(model: Model, classes: list[str]) -> dict[str, Tensor]:
    """What the model says of each class on an image, and under "" what it says of none."""
    image = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    outputs: Any = model.eval()(image)
    if model.task == "classification":
        return {name: outputs[:, i] for i, name in enumerate(classes)}
    if model.task == "deeplabv3":
        return {name: outputs["logits"][:, i] for i, name in enumerate(classes)}
    if model.task == "ssd":
        shared = torch.cat([outputs["boxes"], outputs["logits"][..., :1]], -1)
        return {"": shared} | {
            name: outputs["logits"][..., 1 + i] for i, name in enumerate(classes)
        }
    shared = outputs["predictions"][..., :5]
    return {"": shared} | {
        name: outputs["predictions"][..., 5 + i] for i, name in enumerate(classes)
    }


@pytest.mark.parametrize("now", [["bird", "cow", "cat"], ["dog", "bird"]], ids=["as many", "fewer"])
@pytest.mark.parametrize("task", ["classification", "ssd", "yolo", "deeplabv3"])
@torch.no_grad()
def test_rows_follow_names(task: str, now: list[str], tmp_path: Path) -> None:
    name = "fasternet_t0" if task == "classification" else f"{task}/fasternet_t0"
    model, path = trained(name, tmp_path)
    before = by_class(model, BEFORE)
    tuned = create_model(name, now, weights=path)
    after = by_class(tuned, now)
    for same in before.keys() & after.keys():
        assert torch.allclose(after[same], before[same], rtol=1e-4, atol=1e-5), same
    if "cow" in now:
        assert not any(
            torch.allclose(after["cow"], value, rtol=1e-2) for name, value in before.items() if name
        )
        assert "new: cow" in tuned.report.summary()
    assert (
        "rows kept by name of " + ", ".join(name for name in now if name in BEFORE)
        in tuned.report.summary()
    )


@torch.no_grad()
def test_rows_of_boxes_and_masks_follow_names(tmp_path: Path) -> None:
    model, path = trained("maskrcnn/fasternet_t0", tmp_path)
    tuned = create_model("maskrcnn/fasternet_t0", ["bird", "cow", "cat"], weights=path)
    generator = torch.Generator().manual_seed(0)
    roi, other = model.head.roi_heads, tuned.head.roi_heads
    hidden = torch.randn(2, roi.box_predictor.cls_score.in_features, generator=generator)
    logits, boxes = roi.box_predictor(hidden)
    logits_now, boxes_now = other.box_predictor(hidden)
    maps = torch.randn(2, 256, 14, 14, generator=generator)[
        :, : roi.mask_predictor.conv5_mask.in_channels
    ]
    masks, masks_now = roi.mask_predictor(maps), other.mask_predictor(maps)
    for index, index_now in ((0, 0), (3, 1), (1, 3)):  # background, bird, cat
        assert torch.allclose(logits_now[:, index_now], logits[:, index], rtol=1e-4, atol=1e-5)
        assert torch.allclose(masks_now[:, index_now], masks[:, index], rtol=1e-4, atol=1e-5)
        regressions = slice(4 * index, 4 * index + 4)
        assert torch.allclose(
            boxes_now[:, 4 * index_now : 4 * index_now + 4],
            boxes[:, regressions],
            rtol=1e-4,
            atol=1e-5,
        )
    assert not torch.allclose(logits_now[:, 2], logits[:, 2], rtol=1e-2)


def test_names_that_are_the_same_or_unknown_change_nothing(tmp_path: Path) -> None:
    model, path = trained("fasternet_t0", tmp_path)
    key = next(k for k in model.state_dict() if k.startswith("head.") and k.endswith("weight"))
    for classes in (3, BEFORE, None):
        tuned = create_model("fasternet_t0", classes, weights=path)
        assert torch.equal(tuned.state_dict()[key], model.state_dict()[key])
        assert not tuned.report.by_class
    with pytest.raises(ModelError, match="2 class names for a model of 3 classes"):
        load_weights(model, path, classes=["a", "b"])


def test_train_says_which_rows_it_keeps(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = trained("fasternet_t0", tmp_path)
    names = sorted(folder.name for folder in (photos / "train").iterdir())
    facts = checkpoint.load(path)
    checkpoint.save(
        path, facts.model, classes=["zebra", names[2], "yak"], preprocess=facts.preprocess
    )
    words = f"train --model fasternet_t0 --size 32 --batch-size 8 --epochs 1 --data {photos} --weights {path}"
    assert main([*words.split(), "--run", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"rows kept by name of {names[2]}; new: {names[0]}, {names[1]}; not used: zebra, yak"
        in said
    )
