"""Masks of objects as pictures: every pixel of each mask, boxes, names and splits."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.layouts import HEIGHT, MANY, SPLITS, WIDTH, Shot, save, write

from fleetnet.data import Split, load
from fleetnet.data._masks import mask_of
from fleetnet.data.instances import SMALL_AREA, _areas
from fleetnet.errors import DataError
from fleetnet.images import read

Boxes = list[tuple[float, ...]]
Encode = Callable[[np.ndarray], Image.Image]
ALL = {"all": MANY}


def boxes(shots: Iterable[Shot]) -> dict[str, Boxes]:
    return {shot.name: sorted(thing[1:] for thing in shot.things) for shot in shots}


def seen(split: Split, with_masks: bool = True) -> dict[str, Boxes]:
    """The box of each object by the name of its picture; its mask is the rectangle of that."""
    names = {shot.gray: shot.name for shot in MANY}
    shown = {}
    for sample in split.samples:
        pixels = np.asarray(read(sample.image))
        rows = []
        for item in sample.objects or ():
            assert item.label == 0
            x0, y0, x1, y1 = map(int, item.box)
            assert item.area == (x1 - x0) * (y1 - y0)
            expected = np.zeros((HEIGHT, WIDTH), bool)
            expected[y0:y1, x0:x1] = True
            assert (item.segmentation is not None) == with_masks
            if item.segmentation is not None:
                assert (mask_of(item.segmentation, (HEIGHT, WIDTH)) == expected).all()
            rows.append((x0, y0, x1, y1))
        shown[names[round(float(np.median(pixels[61:63, 90:94])) / 3)]] = sorted(rows)
    assert len(shown) == len(split.samples)
    return shown


def ids(shot: Shot, step: int = 1) -> np.ndarray:
    numbers = np.zeros((HEIGHT, WIDTH), np.int32)
    for i, (_, x0, y0, x1, y1) in enumerate(shot.things, 1):
        numbers[y0:y1, x0:x1] = i * step
    return numbers


def gray(numbers: np.ndarray) -> Image.Image:
    return Image.fromarray(numbers.astype(np.uint8))


def sixteen(numbers: np.ndarray) -> Image.Image:
    return Image.fromarray((numbers * 1000).astype(np.uint16))


def colors(numbers: np.ndarray) -> Image.Image:
    table = np.array([(0, 0, 0), (9, 200, 0), (200, 9, 0), (0, 9, 200), (3, 3, 3)], np.uint8)
    return Image.fromarray(table[numbers])


def numbered(
    image: str, mask: str, encode: Encode = gray
) -> Callable[[Path, str, Sequence[Shot]], None]:
    def written(root: Path, word: str, shots: Sequence[Shot]) -> None:
        for shot in shots:
            save(root / image.format(word, n=shot.name), shot)
            file = root / mask.format(word, n=shot.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            encode(ids(shot)).save(file)

    return written


def apart(image: str, mask: str) -> Callable[[Path, str, Sequence[Shot]], None]:
    """One file an object."""

    def written(root: Path, word: str, shots: Sequence[Shot]) -> None:
        for shot in shots:
            save(root / image.format(word, n=shot.name), shot)
            for i in range(len(shot.things)):
                file = root / mask.format(word, n=shot.name, i=i)
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((ids(shot) == i + 1).astype(np.uint8) * 255).save(file)
            if not shot.things and "{n}/masks" in mask:
                (root / mask.format(word, n=shot.name, i=0)).parent.mkdir(parents=True)

    return written


CASES = {
    "PennFudan": (numbered("PNGImages/{n}.png", "PedMasks/{n}_mask.png"), ALL),
    "instance_ids": (numbered("images/{0}/{n}.png", "instance_ids/{0}/{n}.png"), SPLITS),
    "images and masks": (numbered("images/{0}/{n}.jpg", "masks/{0}/{n}.png"), SPLITS),
    "below the split": (numbered("{0}/images/{n}.jpg", "{0}/masks/{n}.png"), SPLITS),
    "in the folder of images": (numbered("{0}/{n}.png", "{0}/masks/{n}.png"), SPLITS),
    "beside the images": (numbered("{0}/{n}.png", "{0}/{n}_mask.png"), SPLITS),
    "16 bits": (numbered("images/{0}/{n}.jpg", "instances/{0}/{n}.png", sixteen), SPLITS),
    "a color each": (numbered("images/{0}/{n}.jpg", "instances/{0}/{n}.png", colors), SPLITS),
    "stage1_train": (apart("{n}/images/{n}.png", "{n}/masks/m{i}.png"), ALL),
    "stage1_train and stage1_test": (
        apart("stage1_{0}/{n}/images/{n}.png", "stage1_{0}/{n}/masks/m{i}.png"), SPLITS
    ),
    "a folder of masks a picture": (apart("images/{n}.jpg", "masks/{n}/{i}.png"), ALL),
    "masks with numbers": (apart("images/{0}/{n}.jpg", "masks/{0}/{n}_{i}.png"), SPLITS),
    "masks with words and numbers": (apart("images/{n}.jpg", "masks/{n}_mask_{i}.png"), ALL),
}  # fmt: skip

# where a picture that shows no object has no file of masks, and no folder for them
WITHOUT_FILES = (
    "a folder of masks a picture",
    "masks with numbers",
    "masks with words and numbers",
)


@pytest.mark.parametrize("target", ["masks", "boxes"])
@pytest.mark.parametrize("case", CASES)
def test_masks_of_objects_are_read(tmp_path, case, target):
    written, splits = CASES[case]
    for word, shots in splits.items():
        written(tmp_path, word, shots)
    write(tmp_path / "classes.txt", "background\nnucleus\n")
    parts = list(splits) if len(splits) > 1 else ["train", "val"]
    shown: dict[str, Boxes] = {}
    for word in parts:
        # Folders called masks may hold labels, where boxes are asked for.
        format = "instances" if target == "boxes" else None
        split = load(str(tmp_path), word, format, target)
        assert split.classes == ["nucleus"]
        empty = case in WITHOUT_FILES and any(not rows.objects for rows in split.samples)
        assert len(split.skipped) == int(empty)
        assert all("1 pictures have no mask in" in line for line in split.skipped)
        part = seen(split, target == "masks")
        if len(splits) > 1:
            assert part == boxes(splits[word])
        assert not shown.keys() & part.keys()
        shown |= part
    assert shown == boxes(shot for shots in splits.values() for shot in shots)


def test_masks_that_do_not_tell_objects_apart(tmp_path):
    numbered("images/{n}.jpg", "masks/{n}.png", lambda numbers: gray((numbers > 0) * 255))(
        tmp_path, "", MANY
    )
    with pytest.raises(DataError, match=r"do not tell them apart.*one file an object.*deeplabv3"):
        load(str(tmp_path), "train", target="masks")
    (tmp_path / "masks").rename(tmp_path / "instance_ids")
    assert load(str(tmp_path), "train", target="masks").classes == ["object"]


def test_faulty_masks(tmp_path):
    write_masks = numbered("images/{n}.jpg", "instance_ids/{n}.png")
    write_masks(tmp_path, "", MANY)
    Image.new("L", (5, 5)).save(tmp_path / "instance_ids" / "a1.png")
    with pytest.raises(DataError, match=r"a1.png' is 5x5, its image .* is 96x64"):
        load(str(tmp_path), "all", target="masks")
    (tmp_path / "instance_ids" / "a1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read mask .*a1.png"):
        load(str(tmp_path), "all", target="masks")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    with pytest.raises(DataError, match="has 2 classes besides the background"):
        load(str(tmp_path), "all", target="masks")


def test_an_empty_mask_is_dropped(tmp_path):
    apart("{n}/images/{n}.png", "{n}/masks/m{i}.png")(tmp_path, "", MANY)
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a1" / "masks" / "m9.png")
    split = load(str(tmp_path), "all", target="masks")
    assert split.annotations.dropped == {"without a pixel": 1}
    assert seen(split) == boxes(MANY)


def test_masks_elsewhere(tmp_path):
    numbered("pics/{0}/{n}.jpg", "drawn/{0}/{n}.png")(tmp_path, "train", SPLITS["train"])
    numbered("pics/{0}/{n}.jpg", "drawn/{0}/{n}.png")(tmp_path, "val", SPLITS["val"])
    pictures, maps = str(tmp_path / "pics"), str(tmp_path / "drawn")
    for word in ("train", "val"):
        split = load(pictures, word, None, "masks", masks=maps)
        assert seen(split) == boxes(SPLITS[word])


# ---- which mask is of which picture


def band(file: Path, *values: int) -> None:
    """A file of masks with a value in each of several bands from left to right."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.array([values], np.uint8), HEIGHT, 0).repeat(8, 1)).resize(
        (WIDTH, HEIGHT), Image.Resampling.NEAREST
    ).save(file)


def test_one_file_of_many_values_is_one_object_beside_others(tmp_path):
    """Smoothed edges are no objects: in ID/masks, and where another picture has several files."""
    for name in ("a1", "a2"):
        save(tmp_path / "apart" / name / "images" / f"{name}.png", MANY[0])
        save(tmp_path / "together" / "images" / f"{name}.png", MANY[0])
        band(tmp_path / "apart" / name / "masks" / "m0.png", 0, 64, 128, 255, 128, 0)
        band(tmp_path / "together" / "masks" / f"{name}_0.png", 0, 64, 128, 255, 128, 0)
    band(tmp_path / "together" / "masks" / "a2_1.png", 255, 0)
    for layout, objects in (("apart", [1, 1]), ("together", [1, 2])):
        split = load(str(tmp_path / layout), "all", target="masks")
        assert [len(sample.objects or ()) for sample in split.samples] == objects
        (line,) = split.skipped
        assert "2 masks have several values and are one object each" in line


def test_pictures_without_masks_and_masks_without_pictures(tmp_path):
    numbered("images/{n}.jpg", "instance_ids/{n}.png")(tmp_path, "", MANY)
    (tmp_path / "instance_ids" / "a1.png").rename(tmp_path / "instance_ids" / "A-1.png")
    split = load(str(tmp_path), "all", target="masks")
    assert len(split.samples) == len(MANY)
    first, second = split.skipped
    assert "1 pictures have no mask in" in first
    assert "a1.jpg" in first
    assert "1 masks are of no image in" in second
    assert "A-1.png" in second
    assert split.annotations.dropped == {"without an image of their name": 1}


def test_masks_of_other_splits_in_the_same_folder_are_not_said(tmp_path):
    for word, shots in SPLITS.items():
        numbered("images/{0}/{n}.jpg", "instance_ids/{n}.png")(tmp_path, word, shots)
    assert load(str(tmp_path), "train", target="masks").skipped == []


def test_each_mask_is_of_one_picture(tmp_path):
    """The files of `a` with their numbers are called as `a_1` is, which has others."""
    for name in ("a", "a_1"):
        save(tmp_path / "images" / f"{name}.png", MANY[0])
    for name in ("a_1", "a_2", "a_3", "a_1_1", "a_1_2"):
        band(tmp_path / "masks" / f"{name}.png", 255, 0)
    split = load(str(tmp_path), "all", target="masks")
    assert [len(sample.objects or ()) for sample in split.samples] == [3, 2]


def test_frames_with_numbers_have_their_own_masks(tmp_path):
    for name in ("a", "a_1", "a_2"):
        save(tmp_path / "images" / f"{name}.png", MANY[0])
        band(tmp_path / "masks" / f"{name}.png", 0, 1, 2)
    split = load(str(tmp_path), "all", target="masks")
    assert [len(sample.objects or ()) for sample in split.samples] == [2, 2, 2]


@pytest.mark.parametrize("second", ["images/val/a1.png", "images/train/a1.png"])
def test_a_mask_of_two_pictures_is_an_error(tmp_path, second):
    """Of two splits with one flat folder of masks, or of one name with two extensions."""
    for word in ("train", "val"):
        numbered("images/{0}/{n}.jpg", "instance_ids/{n}.png")(tmp_path, word, SPLITS[word])
    save(tmp_path / second, MANY[0])
    with pytest.raises(DataError, match=r"a1.png' is by its name of two images"):
        load(str(tmp_path), "train", target="masks")


# ---- label maps in the folder of masks


def write_bands(root: Path, folder: str, *values: int) -> None:
    for shot in MANY:
        save(root / "images" / f"{shot.name}.jpg", shot)
        band(root / folder / f"{shot.name}.png", *values)


def test_numbers_of_classes_are_no_objects(tmp_path):
    """The same numbers in each file, each in several places; a folder's name may say that they are objects."""
    write_bands(tmp_path, "masks", 0, 1, 0, 2, 0, 1, 0, 2)
    with pytest.raises(DataError, match=r"are of classes, not of objects.*deeplabv3.*instance_ids"):
        load(str(tmp_path), "train", target="masks")
    pictures, masks = tmp_path / "images", tmp_path / "masks"
    with pytest.raises(DataError, match=r"are of classes, not of objects"):
        load(str(pictures), "train", None, "masks", masks=str(masks))
    masks = masks.rename(tmp_path / "instance_ids")
    assert load(str(pictures), "all", None, "masks", masks=str(masks)).skipped == []
    split = load(str(tmp_path), "all", target="masks")
    assert split.skipped == []
    assert {len(sample.objects or ()) for sample in split.samples} == {2}


def test_numbers_that_may_be_of_classes_are_said(tmp_path):
    write_bands(tmp_path, "masks", 0, 1, 0, 2, 0)
    (line,) = load(str(tmp_path), "all", target="masks").skipped
    assert "each number is taken for an object, all of one class" in line
    write(tmp_path / "classes.txt", "nucleus\n")
    assert load(str(tmp_path), "all", target="masks").skipped == []


def test_some_objects_in_several_parts_are_no_classes(tmp_path):
    """One of three is behind another one; specks are no parts."""
    write_bands(tmp_path, "masks", 0, 1, 2, 1, 0, 3, 0, 4)
    write(tmp_path / "classes.txt", "nucleus\n")
    for shot in MANY:
        file = tmp_path / "masks" / f"{shot.name}.png"
        with_speck = np.asarray(Image.open(file)).copy()
        with_speck[0, 0] = 3
        with_speck[0, 1] = 4
        Image.fromarray(with_speck).save(file)
    split = load(str(tmp_path), "all", target="masks")
    assert {len(sample.objects or ()) for sample in split.samples} == {4}


def test_areas_of_numbers():
    """Whatever their shape: compared with areas that are filled one after the other."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        ids = generator.integers(0, 3, (12, 17))
        assert _areas_one_by_one(ids) == _areas(ids)


def _areas_one_by_one(ids: np.ndarray) -> dict[int, int]:
    sizes: dict[int, list[int]] = {}
    left = {(y, x) for y, x in np.ndindex(*ids.shape) if ids[y, x]}
    while left:
        waiting, size = [left.pop()], 0
        number = int(ids[waiting[0]])
        while waiting:
            y, x = waiting.pop()
            size += 1
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            reached = [place for place in around if ids[place] == number]
            left -= set(reached)
            waiting += reached
        sizes.setdefault(number, []).append(size)
    return {
        number: sum(size >= SMALL_AREA * max(all_) for size in all_)
        for number, all_ in sizes.items()
    }
