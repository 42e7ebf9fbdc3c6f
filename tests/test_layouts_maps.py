"""Label maps in the layouts that people have them in: the class of every pixel, names and splits."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.layouts import CLASSES, HEIGHT, MANY, SPLITS, WIDTH, Shot, save, write

from fleetnet.cli import main
from fleetnet.data import IGNORE, Split, load
from fleetnet.data._contents import contents_of
from fleetnet.errors import DataError
from fleetnet.images import read
from fleetnet.review.usable import check_usable

NAMES = ["background", *CLASSES]
COLORS = {"background": (0, 0, 0), "bus": (250, 50, 83), "car": (51, 221, 255), "dog": (0, 250, 9)}
GRAYS = {"background": (0, 0, 0), "bus": (80, 80, 80), "car": (160, 160, 160), "dog": (255,) * 3}
TWO = ["background", "thing"]
Encode = Callable[[np.ndarray], Image.Image]
Maps = dict[str, np.ndarray]


def indices(shot: Shot) -> np.ndarray:
    """The label map of a picture: 0 background, then the classes; IGNORE in its mark."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, x0, y0, x1, y1 in shot.things:
        labels[y0:y1, x0:x1] = NAMES.index(name)
    return labels


def maps_seen(split: Split) -> Maps:
    """The class of each pixel, by the name of the picture, which its pixels say."""
    names = {shot.gray: shot.name for shot in MANY}
    words = np.array([*split.classes, *["-"] * (IGNORE + 1 - len(split.classes))])
    shown = {}
    for sample in split.samples:
        pixels = np.asarray(read(sample.image))
        assert sample.semantic is not None
        name = names[round(float(np.median(pixels[61:63, 90:94])) / 3)]
        assert name not in shown, "a picture is there twice"
        shown[name] = words[sample.semantic()]
    return shown


def assert_same(seen: Maps, expected: Maps) -> None:
    assert sorted(seen) == sorted(expected)
    for name, classes in expected.items():
        assert (seen[name] == classes).all(), name


# ---- how a label map may be stored


def gray(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(labels)


def colored(colors: Mapping[str, tuple[int, ...]], mode: str = "RGB") -> Encode:
    table = np.array([colors[name] for name in NAMES], np.uint8)
    return lambda labels: Image.fromarray(table[labels]).convert(mode)


def three(labels: np.ndarray) -> Image.Image:
    """As cv2.imwrite leaves an array of three equal channels."""
    return Image.fromarray(np.stack([labels] * 3, -1))


def four(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([labels, labels, labels, np.full_like(labels, 255)]))


def with_alpha(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([labels, np.full_like(labels, 255)], -1))


def sixteen(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(labels.astype(np.uint16))


def palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([value for name in NAMES for value in COLORS[name]])
    return image


def from_one(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(labels + 1)


# ---- layouts


@dataclass
class Layout:
    """Where pictures and maps are below the root; `{0}` is the word of the split, `{n}` the picture's name."""

    image: str
    labels: str
    encode: Encode = gray
    files: dict[str, str] = field(default_factory=lambda: {"classes.txt": "\n".join(NAMES)})
    named: str = "."
    words: Mapping[str, str] = field(default_factory=dict)  # split -> what it is called
    splits: Mapping[str, Sequence[Shot]] = field(default_factory=lambda: SPLITS)
    classes: Sequence[str] = tuple(NAMES)

    def write(self, root: Path) -> None:
        for split, shots in self.splits.items():
            word = self.words.get(split, split)
            for shot in shots:
                save(root / self.image.format(word, n=shot.name), shot)
                file = root / self.labels.format(word, n=shot.name)
                file.parent.mkdir(parents=True, exist_ok=True)
                self.encode(indices(shot)).save(file)
        for name, text in self.files.items():
            write(root / name, text)


LONG = {"train": "training", "val": "validation", "test": "testing"}
ONE = {"all": MANY}
LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLORS.items()
)
CLASS_DICT = "name,r,g,b\n" + "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in COLORS.items())
LABEL_COLORS = "".join(f"{r} {g} {b}\t\t{name}\n" for name, (r, g, b) in COLORS.items())
PIXEL_VALUES = "Pixel Value, Class\n" + "".join(f"{i}, {name}\n" for i, name in enumerate(NAMES))
LABELME = "__ignore__\n_background_\n" + "".join(f"{name}\n" for name in CLASSES)
IN_LABELME = ("_background_", *CLASSES)


def joined(image: str, labels: str, **more: object) -> Layout:
    return Layout(f"{image}/{{0}}/{{n}}.jpg", f"{labels}/{{0}}/{{n}}.png", **more)


LAYOUTS: dict[str, Layout] = {
    "maps in the folder of images": Layout("{0}/images/{n}.jpg", "{0}/images/masks/{n}.png"),
    "images and labels": joined("images", "labels"),
    "images and masks": joined("images", "masks"),
    "imgs and masks": joined("imgs", "masks"),
    "image and label": joined("image", "label"),
    "Images and gt": joined("Images", "gt"),
    "images and annotations": joined("images", "annotations"),
    "img_dir and ann_dir": joined("img_dir", "ann_dir"),
    "training and validation": joined("images", "annotations", words=LONG),
    "below the split": Layout("{0}/images/{n}.jpg", "{0}/masks/{n}.png"),
    "below the split, image and mask": Layout("{0}/image/{n}.jpg", "{0}/mask/{n}.png"),
    "below the split, capitals": Layout(
        "{0}/Images/{n}.jpg",
        "{0}/Labels/{n}.png",
        words={"train": "Train", "val": "Valid", "test": "Test"},
    ),
    "train and train_masks": Layout("{0}/{n}.jpg", "{0}_masks/{n}.png"),
    "train and train_labels": Layout("{0}/{n}.png", "{0}_labels/{n}_L.png"),
    "train and trainannot": Layout("{0}/{n}.png", "{0}annot/{n}.png"),
    "train_images and train_masks": Layout("{0}_images/{n}.jpg", "{0}_masks/{n}.png"),
    "images_train and masks_train": Layout("images_{0}/{n}.jpg", "masks_{0}/{n}.png"),
    "ISIC": Layout(
        "ISIC_{0}_Input/{n}.jpg",
        "ISIC_{0}_GroundTruth/{n}_segmentation.png",
        words={"train": "Training", "val": "Validation", "test": "Test"},
    ),
    "KITTI": Layout("training/image_2/{n}.png", "training/semantic/{n}.png", splits=ONE),
    "Original and Ground Truth": Layout("Original/{n}.jpg", "Ground Truth/{n}.png", splits=ONE),
    "raw and masks_machine": Layout("raw/{n}.jpg", "masks_machine/{n}.png", splits=ONE),
    "TrainImages": Layout(
        "{0}Images/{n}.jpg",
        "{0}Labels/{n}.png",
        words={"train": "Train", "val": "Val", "test": "Test"},
    ),
    "maps of all splits in one folder": Layout("images/{0}/{n}.jpg", "masks/{n}.png"),
    "a folder of a split is named": Layout(
        "{0}/images/{n}.jpg", "{0}/masks/{n}.png", named="train"
    ),
    "no splits": Layout("images/{n}.jpg", "masks/{n}.png", splits=ONE),
    "no splits, JPEGImages and SegmentationClassPNG": Layout(
        "JPEGImages/{n}.jpg", "SegmentationClassPNG/{n}.png", splits=ONE
    ),
    "one folder too much": Layout(
        "data/{0}/images/{n}.jpg",
        "data/{0}/masks/{n}.png",
        files={"data/classes.txt": "\n".join(NAMES)},
    ),
    "x_mask.png": Layout("images/{0}/{n}.jpg", "masks/{0}/{n}_mask.png"),
    "x_mask.gif of Carvana": Layout("images/{0}/{n}.jpg", "masks/{0}/{n}_mask.gif"),
    "x.jpg.png": Layout("images/{0}/{n}.jpg", "masks/{0}/{n}.jpg.png"),
    "x.PNG": Layout("images/{0}/{n}.JPG", "masks/{0}/{n}.PNG"),
    "x.bmp": Layout("images/{0}/{n}.jpg", "masks/{0}/{n}.bmp"),
    "x.tif": Layout("images/{0}/{n}.jpg", "masks/{0}/{n}.tif"),
    "Cityscapes": Layout(
        "leftImg8bit/{0}/bochum/{n}_leftImg8bit.png", "gtFine/{0}/bochum/{n}_gtFine_labelIds.png"
    ),
    "x_labelIds beside": Layout("images/{0}/{n}.png", "masks/{0}/{n}_labelIds.png"),
    "in one folder, of Roboflow": Layout(
        "{0}/{n}.jpg", "{0}/{n}_mask.png", files={"train/_classes.csv": PIXEL_VALUES}
    ),
    "in one folder, without splits": Layout("{n}.jpg", "{n}_mask.png", splits=ONE),
    "in one folder, x.jpg and x.png": Layout("{0}/{n}.jpg", "{0}/{n}.png"),
    "colors.txt": joined(
        "images", "labels", encode=colored(COLORS), files={"colors.txt": LABEL_COLORS}
    ),
    "label_colors.txt": joined(
        "images", "labels", encode=colored(COLORS), files={"label_colors.txt": LABEL_COLORS}
    ),
    "class_dict.csv": Layout(
        "{0}/{n}.png", "{0}_labels/{n}_L.png", colored(COLORS), {"class_dict.csv": CLASS_DICT}
    ),
    "labelmap.txt": joined(
        "images", "masks", encode=colored(COLORS), files={"labelmap.txt": LABELMAP}
    ),
    "colors with alpha": joined(
        "images", "masks", encode=colored(COLORS, "RGBA"), files={"labelmap.txt": LABELMAP}
    ),
    "palette": joined("images", "masks", encode=palette),
    "palette with its colors": joined(
        "images", "masks", encode=palette, files={"labelmap.txt": LABELMAP}
    ),
    "gray colors": joined(
        "images",
        "masks",
        encode=colored(GRAYS, "L"),
        files={"colors.txt": "".join(f"{r} {g} {b} {n}\n" for n, (r, g, b) in GRAYS.items())},
    ),
    "three equal channels": joined("images", "masks", encode=three),
    "three equal channels and alpha": joined("images", "masks", encode=four),
    "gray with alpha": joined("images", "masks", encode=with_alpha),
    "16 bits": joined("images", "masks", encode=sixteen),
    "labels.txt of labelme": Layout(
        "JPEGImages/{n}.jpg",
        "SegmentationClassPNG/{n}.png",
        files={"labels.txt": LABELME},
        splits=ONE,
        classes=IN_LABELME,
    ),
    "class_names.txt": joined(
        "images", "masks", files={"class_names.txt": "\n".join(IN_LABELME)}, classes=IN_LABELME
    ),
    "labels.txt": joined("images", "masks", files={"labels.txt": "\r\n".join(NAMES)}),
    "index and name": joined(
        "images", "masks", files={"classes.txt": "".join(f"{i} {n}\n" for i, n in enumerate(NAMES))}
    ),
    "index: name": joined(
        "images",
        "masks",
        files={"classes.txt": "".join(f"{i}: {n}\n" for i, n in enumerate(NAMES))},
    ),
    "names in the folder of maps": joined(
        "images", "masks", files={"masks/classes.txt": "\n".join(NAMES)}
    ),
    "obj_class_to_machine_color.json": joined(
        "images",
        "masks",
        encode=colored(COLORS),
        files={"obj_class_to_machine_color.json": json.dumps(COLORS)},
    ),
    "indices from 1": joined("images", "masks", encode=from_one),
    "ADE20K": Layout(
        "images/{0}/ADE_{n}.jpg",
        "annotations/{0}/ADE_{n}.png",
        words=LONG,
        files={
            "objectInfo150.txt": "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
            + "".join(f"{i}\t0.1\t1\t1\t0\t{name}\n" for i, name in enumerate(CLASSES, 1))
        },
        classes=("other", *CLASSES),
    ),
    "CVAT": Layout(
        "JPEGImages/{n}.jpg",
        "SegmentationClass/{n}.png",
        colored(COLORS),
        {
            "labelmap.txt": LABELMAP,
            "ImageSets/Segmentation/default.txt": "".join(f"{shot.name}\n" for shot in MANY),
        },
        splits=ONE,
    ),
    "CVAT, images elsewhere": Layout(
        "images/{n}.jpg",
        "SegmentationClass/{n}.png",
        colored(COLORS),
        {"labelmap.txt": LABELMAP},
        splits=ONE,
    ),
    "Oxford pets": Layout(
        "images/{n}.jpg",
        "annotations/trimaps/{n}.png",
        from_one,
        {
            "classes.txt": "\n".join(NAMES),
            "annotations/trainval.txt": "# Image CLASS-ID SPECIES BREED\n"
            + "".join(f"{shot.name} 1 1 1\n" for shot in SPLITS["train"]),
            "annotations/test.txt": "".join(f"{shot.name} 1 1 1\n" for shot in SPLITS["test"]),
            "annotations/xmls/a1.xml": "<annotation></annotation>",
        },
        splits={"train": SPLITS["train"], "test": SPLITS["test"]},
    ),
}
for _name, _form in {
    "pairs": "{i} {m}",
    "pairs, tabs": "{i}\t{m}",
    "pairs, commas": "{i},{m}",
    "stems": "{n}",
    "names": "{n}.jpg",
    "absolute": "./{i} ./{m}",
}.items():
    for _folders in (("images", "labels"), ("JPEGImages", "Annotations"), ("pics", "truth")):
        if _folders[0] == "pics" and not _name.startswith("pairs"):
            continue
        LAYOUTS[f"lists of {_name}, {_folders[0]}"] = Layout(
            f"{_folders[0]}/{{n}}.jpg",
            f"{_folders[1]}/{{n}}.png",
            files={
                "labels.txt": "\n".join(NAMES),
                **{
                    f"{split}.txt": "".join(
                        _form.format(
                            i=f"{_folders[0]}/{s.name}.jpg",
                            m=f"{_folders[1]}/{s.name}.png",
                            n=s.name,
                        )
                        + "\n"
                        for s in shots
                    )
                    for split, shots in SPLITS.items()
                },
            },
        )


@pytest.mark.parametrize("case", LAYOUTS)
def test_label_maps_are_read(tmp_path, case):
    layout = LAYOUTS[case]
    layout.write(tmp_path)
    root, names = str(tmp_path / layout.named), list(layout.classes)

    def expected(shots: Iterable[Shot]) -> Maps:
        return {shot.name: np.array(names)[indices(shot)] for shot in shots}

    if "all" in layout.splits:
        train, val = (load(root, split, target="semantic") for split in ("train", "val"))
        assert train.classes == val.classes == names
        assert len(val.samples) == 1
        assert_same(maps_seen(train) | maps_seen(val), expected(MANY))
        return
    for name, shots in layout.splits.items():
        split = load(root, name, target="semantic")
        assert split.classes == names
        assert_same(maps_seen(split), expected(shots))
        assert [line for line in split.skipped if "nothing but one folder" not in line] == []


def trimap(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(labels == 0, 2, np.where(labels == 3, 3, 1)).astype(np.uint8))


def test_trimaps_without_names(tmp_path):
    Layout("images/{n}.jpg", "annotations/trimaps/{n}.png", trimap, {}, splits=ONE).write(tmp_path)
    split = load(str(tmp_path), "all", target="semantic")
    assert split.classes == ["foreground", "background", "not classified"]
    names = np.array(["background", "foreground", "foreground", "not classified"])
    assert_same(maps_seen(split), {shot.name: names[indices(shot)] for shot in MANY})


# ---- two classes


def one_bit(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(labels > 0)


def black_and_white(labels: np.ndarray) -> Image.Image:
    return Image.fromarray((labels > 0).astype(np.uint8) * 255)


WHITE = "0 0 0 background\n255 255 255 thing\n"


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
@pytest.mark.parametrize(
    ("encode", "files"),
    [
        (one_bit, {"classes.txt": "\n".join(TWO)}),
        (one_bit, {"colors.txt": WHITE}),
        (black_and_white, {"colors.txt": WHITE}),
        (black_and_white, {"class_dict.csv": "name,r,g,b\nbackground,0,0,0\nthing,255,255,255\n"}),
        (lambda labels: black_and_white(labels).convert("RGB"), {"colors.txt": WHITE}),
    ],
)
def test_two_classes(tmp_path, encode, files, suffix):
    Layout("images/{0}/{n}.jpg", f"masks/{{0}}/{{n}}.{suffix}", encode, files).write(tmp_path)
    for word, shots in SPLITS.items():
        split = load(str(tmp_path), word, target="semantic")
        assert split.classes == TWO
        expected = {shot.name: np.array(TWO)[(indices(shot) > 0).astype(int)] for shot in shots}
        assert_same(maps_seen(split), expected)


@pytest.mark.parametrize("encode", [black_and_white, one_bit])
def test_two_classes_in_vocs_folders(tmp_path, encode):
    """With a file of colors; without one 255 is of no class, and the second look asks."""
    files = {"colors.txt": WHITE}
    Layout("JPEGImages/{n}.jpg", "SegmentationClass/{n}.png", encode, files, splits=ONE).write(
        tmp_path
    )
    split = load(str(tmp_path), "all", target="semantic")
    expected = {shot.name: np.array(TWO)[(indices(shot) > 0).astype(int)] for shot in MANY}
    assert split.classes == TWO
    assert_same(maps_seen(split), expected)
    (tmp_path / "colors.txt").rename(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("\n".join(TWO))
    split = load(str(tmp_path), "all", target="semantic")
    if encode is one_bit:
        assert_same(maps_seen(split), expected)
        return
    with pytest.raises(DataError, match=r"no pixel is of the class thing.*255 255 255 NAME"):
        check_usable(split, contents_of(split, "semantic"))


# ---- what is said


def test_maps_as_jpeg_are_refused(tmp_path):
    Layout("images/{0}/{n}.jpg", "masks/{0}/{n}.jpg", colored(COLORS)).write(tmp_path)
    with pytest.raises(
        DataError, match=r"masks/train/a1.jpg.*JPEG, which changes them; save them as PNG"
    ):
        load(str(tmp_path), "train", target="semantic")


def test_no_names(tmp_path):
    joined("images", "masks", files={}).write(tmp_path)
    with pytest.raises(DataError, match=r"no class names in .*classes\.txt"):
        load(str(tmp_path), "train", target="semantic")


def test_palette_of_another_order_is_an_error(tmp_path):
    other = "\n".join(LABELMAP.splitlines()[:1:-1])
    joined("images", "masks", encode=palette, files={"labelmap.txt": other}).write(tmp_path)
    split = load(str(tmp_path), "train", target="semantic")
    with pytest.raises(DataError, match="palette shows index"):
        maps_seen(split)


def test_indices_from_1_with_a_0_are_an_error(tmp_path):
    """Where 0 is there too, a value beyond the classes is no count from 1."""
    joined("images", "masks", encode=lambda labels: Image.fromarray(labels * 2)).write(tmp_path)
    split = load(str(tmp_path), "train", target="semantic")
    with pytest.raises(DataError, match="allowed: 0 to 3"):
        maps_seen(split)


@pytest.mark.parametrize("second", ["images/test/a1.png", "images/train/a1.png"])
def test_a_map_of_two_pictures_is_an_error(tmp_path, second):
    """Of two splits with one flat folder of maps, or of one name with two extensions."""
    Layout("images/{0}/{n}.jpg", "masks/{n}.png").write(tmp_path)
    save(tmp_path / second, MANY[0])
    with pytest.raises(DataError, match=r"a1.png' is by its name of two images"):
        load(str(tmp_path), "train", target="semantic")


# ---- lists


def write_lists(folder: Path) -> None:
    for word, shots in SPLITS.items():
        write(folder / f"{word}.txt", "\n".join(shot.name for shot in shots))


@pytest.mark.parametrize("folder", [".", "splits", "split", "lists", "meta", "ImageSets/Main"])
@pytest.mark.parametrize("images", ["images", "images/train"])
def test_lists_of_splits(tmp_path, folder, images):
    """Beside images without splits, and where the only folder of a split holds those of all."""
    maps = images.replace("images", "masks")
    Layout(f"{images}/{{n}}.jpg", f"{maps}/{{n}}.png").write(tmp_path)
    write_lists(tmp_path / folder)
    for word, shots in SPLITS.items():
        split = load(str(tmp_path), word, target="semantic")
        assert_same(maps_seen(split), {s.name: np.array(NAMES)[indices(s)] for s in shots})
        assert split.skipped == []


@pytest.mark.parametrize("folder", ["ImageSets/Segmentation", "ImageSets/Main", "ImageSets"])
def test_lists_of_splits_in_vocs_folders(tmp_path, folder):
    Layout("JPEGImages/{n}.jpg", "SegmentationClass/{n}.png").write(tmp_path)
    write_lists(tmp_path / folder)
    for word, shots in SPLITS.items():
        split = load(str(tmp_path), word, target="semantic")
        assert split.source is not None
        assert split.source.format == "voc"
        assert_same(maps_seen(split), {s.name: np.array(NAMES)[indices(s)] for s in shots})


@pytest.mark.parametrize("with_lists", [True, False])
@pytest.mark.parametrize("composed", [True, False])
def test_names_in_vocs_folders_may_end_in_capitals_and_compose_marks(
    tmp_path, with_lists, composed
):
    """Pictures and maps are stored in the one form of an umlaut, lists are written in the other."""
    forms = ("NFC", "NFD") if composed else ("NFD", "NFC")
    stored, listed = (unicodedata.normalize(form, "ä_{n}") for form in forms)
    Layout(f"JPEGImages/{stored}.JPG", f"SegmentationClass/{stored}.PNG").write(tmp_path)
    if with_lists:
        for word, shots in SPLITS.items():
            names = "\n".join(listed.format(n=shot.name) for shot in shots)
            write(tmp_path / f"ImageSets/Segmentation/{word}.txt", names)
    seen: Maps = {}
    for word in SPLITS if with_lists else ("train", "val"):
        split = load(str(tmp_path), word, target="semantic")
        assert split.source.format == "voc"
        seen |= maps_seen(split)
    shots = [shot for part in SPLITS.values() for shot in part]
    assert_same(seen, {shot.name: np.array(NAMES)[indices(shot)] for shot in shots})


def test_vocs_lists_of_boxes_name_pictures_without_maps(tmp_path):
    Layout("JPEGImages/{n}.jpg", "SegmentationClass/{n}.png").write(tmp_path)
    write_lists(tmp_path / "ImageSets" / "Main")
    (tmp_path / "SegmentationClass" / "a2.png").unlink()
    split = load(str(tmp_path), "train", target="semantic")
    assert sorted(maps_seen(split)) == ["a1", "a3", "a4"]
    (line,) = split.skipped
    assert "1 of 4 names have no label map" in line


def test_names_with_spaces_in_vocs_lists(tmp_path):
    """A last 1, 0 or -1 is VOC's mark of a class, unless the name has it."""
    for shot, name in zip(MANY, ("a", "a 1", "a b", "c"), strict=False):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", shot)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        gray(indices(shot)).save(tmp_path / "SegmentationClass" / f"{name}.png")
    write(tmp_path / "classes.txt", "\n".join(NAMES))
    write(tmp_path / "ImageSets" / "Segmentation" / "train.txt", "a 1\na b\nc -1\n")
    write(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "a\n")
    names = {
        word: load(str(tmp_path), word, target="semantic").samples for word in ("train", "val")
    }
    assert [sample.id for sample in names["train"]] == ["a 1", "a b", "c"]
    assert [sample.id for sample in names["val"]] == ["a"]


def test_folders_of_maps_that_are_not_read_are_said(tmp_path):
    joined("images", "labels").write(tmp_path)
    joined("images", "masks").write(tmp_path)
    (line,) = load(str(tmp_path), "train", target="semantic").skipped
    assert re.search(r"read from '.*labels.train'.*; not from '.*masks'", line)


# ---- numbers of classes


def one_class_from_1(labels: np.ndarray) -> Image.Image:
    """1 and 2 of three or more classes: a 0 nowhere, and the last class neither."""
    return Image.fromarray(np.where(labels > 0, 2, 1).astype(np.uint8))


@pytest.mark.parametrize(
    "line", ["{} {}", "{}: {}", "{}. {}", "{}) {}", "{} - {}", "{}={}", "[{}] {}", "{}\t{}"]
)
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_of_classes_with_any_mark(tmp_path, line, first):
    """Numbers in the file of names count, also where no map has the first or the last of them."""
    text = "\n".join(line.format(first + i, name) for i, name in enumerate(["x", *NAMES]))
    joined("images", "masks", encode=from_one, files={"classes.txt": text}).write(tmp_path)
    split = load(str(tmp_path), "train", target="semantic")
    names = ["x", *NAMES]
    assert split.classes == names
    expected = {shot.name: np.array(names[1 - first :])[indices(shot)] for shot in SPLITS["train"]}
    assert_same(maps_seen(split), expected)
    assert split.skipped == []


@pytest.mark.parametrize("line", ["{} {}", "{}: {}", "{}. {}", "[{}] {}"])
def test_numbers_of_classes_with_a_gap_are_an_error(tmp_path, line):
    text = "\n".join(line.format(n, name) for n, name in ((1, "cat"), (2, "dog"), (4, "bird")))
    joined("images", "masks", encode=from_one, files={"classes.txt": text}).write(tmp_path)
    with pytest.raises(DataError, match=r"classes.txt: no line for number 3; numbers have no gaps"):
        load(str(tmp_path), "train", target="semantic")


@pytest.mark.parametrize("names", [["10 euro", "20 euro"], ["2 wheels", "4 legs"], ["a 1", "b 3"]])
def test_numbers_that_belong_to_names(tmp_path, names):
    layout = joined("images", "masks", encode=black_and_white)
    layout.files = {"classes.txt": "\n".join(names)}
    layout.write(tmp_path)
    assert load(str(tmp_path), "train", target="semantic").classes == names


def test_values_that_may_count_from_1_are_said(tmp_path):
    """Names without numbers, and neither a 0 nor the last class in the maps: it may be either."""
    joined("images", "masks", encode=one_class_from_1).write(tmp_path)
    split = load(str(tmp_path), "train", target="semantic")
    (line,) = split.skipped
    assert "the largest value is 2" in line
    assert "1 is 'bus'" in line
    assert "`1 background`" in line


# ---- folders elsewhere


@pytest.mark.parametrize("by_split", [True, False])
@pytest.mark.parametrize("home", ["images", "masks"])
def test_masks_elsewhere(tmp_path, by_split, home):
    """Folders of any name; what is named as --data has the pictures or the maps, the other one has a flag."""
    word = "{0}/" if by_split else ""
    splits = SPLITS if by_split else ONE
    Layout(
        f"pics/{word}{{n}}.jpg", f"drawn here/{word}{{n}}_mask.png", files={}, splits=splits
    ).write(tmp_path)
    pictures, maps = str(tmp_path / "pics"), str(tmp_path / "drawn here")
    write(tmp_path / "pics" / "classes.txt", "\n".join(NAMES))
    roots = {"images": (pictures, None, maps), "masks": (maps, pictures, None)}
    root, images, masks = roots[home]
    format = None if home == "images" else "masks"
    shown: Maps = {}
    for split in splits if by_split else ("train", "val"):
        read_split = load(root, split, format, "semantic", images=images, masks=masks)
        assert read_split.classes == NAMES
        assert read_split.skipped == []
        shown |= maps_seen(read_split)
    everything = [shot for shots in splits.values() for shot in shots]
    assert_same(shown, {shot.name: np.array(NAMES)[indices(shot)] for shot in everything})


def test_masks_elsewhere_in_the_verbs(tmp_path, capsys):
    """Trained with --masks; measured where its settings say that they lie, or where --masks does."""
    Layout(
        "pics/{0}/{n}.jpg", "drawn/{0}/{n}.png", files={"pics/classes.txt": "\n".join(NAMES)}
    ).write(tmp_path)
    pictures, run = str(tmp_path / "pics"), str(tmp_path / "run")
    words = ["train", "--model", "deeplabv3/fasternet_t0", "--data", pictures]
    words += ["--masks", str(tmp_path / "drawn"), "--size", "64", "--epochs", "1"]
    words += ["--batch-size", "2", "--run", run]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["eval", "--model", run, "--data", pictures]) == 0, capsys.readouterr().err
    (tmp_path / "drawn").rename(tmp_path / "moved")
    assert main(["eval", "--model", run, "--data", pictures]) == 3
    words = ["eval", "--model", run, "--data", pictures, "--masks", str(tmp_path / "moved")]
    assert main(words) == 0, capsys.readouterr().err
