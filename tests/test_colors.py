"""Colors change as by torchvision's functions for tensors, to one level; crops are drawn as by its transforms."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fleetnet import images
from fleetnet.inputs import colors
from fleetnet.inputs.augment import RandomCrop, random_part
from fleetnet.inputs.decode import AnnotatedPicture
from fleetnet.inputs.layouts import to_decode
from fleetnet.preprocess import Preprocess
from fleetnet.resizing import tensor_of

STEPS = {
    "brightness": (colors.brighten, v2.functional.adjust_brightness),
    "contrast": (colors.contrast, v2.functional.adjust_contrast),
    "saturation": (colors.saturate, v2.functional.adjust_saturation),
    "hue": (colors.shift_hue, v2.functional.adjust_hue),
}


def picture_of(height: int = 40, width: int = 60) -> torch.Tensor:
    """Colors of every kind, with gray, black and white among them."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:4] = pixels[:4, :, :1]
    pixels[4], pixels[5] = 0, 255
    return tensor_of(pixels)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("amount", [-0.4, -0.05, 0.0, 0.1, 0.5])
def test_colors_are_torchvisions_to_one_level(name, amount):
    ours, theirs = STEPS[name]
    picture, value = picture_of(), amount if name == "hue" else 1 + amount
    before = picture.clone()
    changed = colors._bytes(ours(colors._floats(picture), value), picture)
    assert torch.equal(picture, before)
    assert changed.shape == picture.shape
    assert (changed.int() - theirs(picture, value).int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colors.Jitter(0.4), v2.ColorJitter(0.4, 0.4, 0.4)),
        (
            colors.Distortion(0.5),
            v2.RandomPhotometricDistort((0.8, 1.2), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)),
        ),
    ],
)
def test_the_numbers_are_torchvisions(ours, theirs):
    picture = picture_of()
    for seed in range(12):
        torch.manual_seed(seed)
        expected = theirs(picture).int()
        torch.manual_seed(seed)
        # a level of each step, which the next ones multiply by up to 1.5
        assert ((ours(picture).int() - expected).abs() <= 4).float().mean() > 0.98


def encoded(height: int, width: int) -> images.Encoded:
    content = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(content, "JPEG")
    looked = images.look(content.getvalue())
    assert isinstance(looked, images.Encoded)
    return looked


def test_crops_of_what_is_decoded_smaller_are_those_of_torchvision():
    """Moved by half a pixel of the input at most, so that areas and places are spread alike."""
    size, whole = (32, 32), (301, 402)
    annotated, moved = AnnotatedPicture(encoded(*whole), {}), []
    for seed in range(200):
        torch.manual_seed(seed)
        box = random_part(*whole, 0.08, torch.default_generator)
        height, width = box[3] - box[1], box[2] - box[0]
        by = annotated.reduction((height, width), size)
        ours = to_decode(box, annotated, size)
        scale = np.array([width / size[1], height / size[0]] * 2)
        inputs = (np.array(ours) - box) / scale  # in pixels of the input
        assert np.abs(inputs).max() <= 0.5
        at_edge = np.isin(ours, [0, *whole])
        assert all(at_edge | (np.array(ours) % by == 0))
        moved.append((by, *inputs))
    moved = np.array(moved)
    assert set(moved[:, 0]) == {2, 4, 8}
    assert np.abs(moved[:, 1:].mean(0)).max() < 0.06


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_crop_shows_what_its_place_says_at_every_scale(orientation):
    """A white square in a JPEG lies where its box is, whatever the decoder shrank the picture by."""
    pixels = np.zeros((240, 320, 3), np.uint8)
    pixels[48:144, 80:208] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95, exif=exif)
    looked = images.look(content.getvalue())
    white = looked.decoded().pixels[..., 0] > 128
    rows, columns = np.nonzero(white.any(1))[0], np.nonzero(white.any(0))[0]
    box = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]).float()
    for side in (16, 32, 64, 128):
        crop = RandomCrop(Preprocess((side, side)), 0.9)
        for seed in range(4):
            torch.manual_seed(seed)
            targets = {"boxes": box, "labels": torch.tensor([0])}
            made = crop([AnnotatedPicture(looked, targets)], torch.default_generator)
            # the share of each pixel that is white, summed: the sides of what is seen of the square
            shown = made.picture[0].float() / 255
            x0, y0, x1, y1 = made.targets["boxes"][0].tolist()
            assert shown.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.08)
            across = (shown.sum(0) * (torch.arange(side) + 0.5)).sum() / shown.sum()
            down = (shown.sum(1) * (torch.arange(side) + 0.5)).sum() / shown.sum()
            assert across == pytest.approx((x0 + x1) / 2, abs=0.35)
            assert down == pytest.approx((y0 + y1) / 2, abs=0.35)
