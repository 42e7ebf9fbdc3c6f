"""What says where the images of YOLO's text files are: a YAML file, darknet's obj.data, or the folders alone."""

import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

from ..errors import DataError
from ..images import find_images
from ..reading import head_of, is_below
from . import Notes, few, inside, parse_classes, shorten, text_of, whole
from ._conventions import (
    IMAGE_FOLDERS,
    NAME_FILES,
    by_split,
    children,
    file_called,
    files_in,
    images_in,
    same_form,
    split_and_kind,
    split_folders,
    split_lists,
    stored,
)
from ._places import Pictures, image_folders

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LABEL_FOLDERS = ("labels", "label", "annotations", "txt")
LOOKED_AT = 20  # pictures of a folder whose labels are looked for
HEAD = 4096  # bytes of a file that are looked at
LONG_HEAD = 1 << 20  # of a YAML file, whose names may go before its paths
_LINE = re.compile(rb"\s*\d+(\.0*)?([\s,]+[-+.\deE]+){4,}\s*(\n|$)")
_TEXT = re.compile(r".*?([^/\\]+)\.txt['\"]: not the extension", re.IGNORECASE)
_SHOWN = reprlib.Repr()  # of values in errors: aliases make some without end
_SHOWN.maxlevel = 3


class _Loader(yaml.SafeLoader):
    """Without merging of keys (`<<`), where few aliases make mappings without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Keep `<<` as a key, which is then refused."""


class Data(NamedTuple):
    """A data set, as the file or folder that describes it says."""

    file: Path  # that says so: the YAML file, obj.data, that of the names, or the folder
    bases: list[Path]  # the folders that paths may be relative to, most likely first
    described: "Described"


class Described(NamedTuple):
    """What the YAML file says."""

    classes: list[str]
    labels: list[int]  # of each class index: the same for names that are the same
    entries: dict[str, list[str]]  # split -> its folders of images, or lists of them
    path: str  # the folder that the entries are relative to, itself relative to the file's
    values: int  # of a pose, after the class; 0 where there are no keypoints


def parse_yaml(text: str, source: str) -> Described:
    """What the text of a YAML file says; `source` names it in errors."""
    try:
        described = yaml.load(text, _Loader)
    # A date that there is not is a ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(described, dict):
        raise DataError(f"{source}: expected names, train and val")
    names = _named(described.get("names"), source)
    if whole(described.get("nc", len(names))) != len(names):
        raise DataError(
            f"{source}: nc is {_SHOWN.repr(described['nc'])}, but there are {len(names)} names"
        )
    classes = list(dict.fromkeys(names))
    entries = _entries(described, source)
    base = described.get("path") or "."
    if not entries or not isinstance(base, str):
        raise DataError(f"{source}: has no paths under train, val or test")
    index = {name: label for label, name in enumerate(classes)}
    labels = [index[name] for name in names]
    return Described(classes, labels, entries, base, _pose(described, source))


def _entries(described: Mapping[object, object], source: str) -> dict[str, list[str]]:
    """The paths of each split."""
    keys = {key: key for key in described if isinstance(key, str) and described[key]}
    entries: dict[str, list[str]] = {}
    for split, key in by_split(keys).items():
        value = described[key]
        rows = value if isinstance(value, list) else [value]
        paths = [row for row in rows if isinstance(row, str)]
        if len(paths) < len(rows):
            raise DataError(
                f"{source}: {key} is {_SHOWN.repr(value)}; expected a path, or a list of them"
            )
        entries[split] = paths
    return entries


def _pose(described: Mapping[object, object], source: str) -> int:
    """The number of values of a pose: 4 of the box, and those of its keypoints; 0 without kpt_shape."""
    shape = described.get("kpt_shape")
    if shape is None:
        return 0
    sides = [whole(side) for side in shape] if isinstance(shape, list) and len(shape) == 2 else []
    points, dimensions = sides if len(sides) == 2 else (None, None)
    if points is None or not 0 < points < 1 << 31 or dimensions not in (2, 3):
        raise DataError(
            f"{source}: kpt_shape is {_SHOWN.repr(shape)}; expected [number of keypoints, 2 or 3]"
        )
    return 4 + points * dimensions


def _named(names: object, source: str) -> list[str]:
    """The class names, one for each index, as they stand."""
    if isinstance(names, dict):
        by_index = {whole(key): name for key, name in names.items()}
        if len(by_index) == len(names) and set(by_index) == set(range(len(names))):
            names = [by_index[i] for i in range(len(names))]
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, (str, int)) for name in names)
    ):
        shown = _SHOWN.repr(names)
        raise DataError(
            f"{source}: names is {shown}; expected a list of class names, or `0: name` and so on"
        )
    truth = next((name for name in names if isinstance(name, bool)), None)
    if truth is not None:  # and what was written is lost
        word = "yes, on or true" if truth else "no, off or false"
        raise DataError(
            f"{source}: names has {word} without quotes, which YAML takes for {truth}; "
            "put it in quotes"
        )
    return [str(name) for name in names]


def data_of(root: Path) -> Data | None:
    """What is at a path: a YAML file, darknet's file, or a folder with one of them or with images and labels."""
    if not os.path.isdir(root):
        return _of_file(root)
    file = _yaml_in(root) or file_called(root, ("obj.data",)) or _darknet_in(root)
    return _of_file(file) if file else _of_folders(root)


def detect(root: Path) -> bool:
    """Whether there is a file that describes such data, or a folder with images and lines of boxes."""
    if not os.path.isdir(root):
        return root.suffix.lower() in (".yaml", ".yml") or _is_darknet(root)
    if _yaml_in(root) or file_called(root, ("obj.data",)) or _darknet_in(root):
        return True
    return bool(_image_places(root))


def _of_file(file: Path) -> Data:
    if file.suffix.lower() == ".data":
        described = parse_darknet(text_of(file), file)
    else:
        described = parse_yaml(text_of(file), str(file))
    folder = file.parent
    paths = [folder / described.path, folder]
    if described.path not in (".", "./"):  # as Ultralytics reads it, from where the command runs
        paths.append(Path(described.path))
    return Data(file, [path for path in dict.fromkeys(paths) if os.path.isdir(path)], described)


def _of_folders(root: Path) -> Data | None:
    """Folders of images with labels, and the file of the class names, which must be there."""
    places = _image_places(root)
    if not places:
        return None
    beside = [folder for place in places.values() for folder in (place, place.parent)]
    labels = [
        folder
        for top in (root, *(place.parent for place in places.values()))
        for folder in children(top, LABEL_FOLDERS)
    ]
    deeper = [inner for folder in labels for inner in split_folders(folder).values()]
    names = (file_called(folder, NAME_FILES) for folder in (root, *labels, *beside, *deeper))
    file = next((file for file in names if file), None)
    if file is None:
        raise DataError(
            f"{str(root)!r} has YOLO's text files of boxes, but no names of their classes: write "
            "them into classes.txt there, one a line, in the order of the numbers, or give a "
            "data.yaml"
        )
    classes = parse_classes(text_of(file), str(file))
    entries = {split: [str(place)] for split, place in places.items()}
    return Data(file, [root], Described(classes, list(range(len(classes))), entries, ".", 0))


def _image_places(root: Path) -> dict[str, Path]:
    """The list or folder of images of each split; "" where one folder holds all, and none where nothing does."""
    lists = split_lists(root)
    if lists and all(_lists_images(root, path) for path in lists.values()):
        return lists
    for top in (*children(root, IMAGE_FOLDERS), root):
        folders = split_folders(top, IMAGE_FOLDERS)
        inner = {
            split: [*children(folder, IMAGE_FOLDERS), folder] for split, folder in folders.items()
        }
        if any(_has_labels(place, root) for places in inner.values() for place in places):
            # Beside it, empty files are labels too: the first pictures may show nothing.
            return {
                split: place
                for split, places in inner.items()
                if (place := next((p for p in places if _has_files(p, root)), None))
            }
        if _has_labels(top, root):
            return {"": top}
    return {}


def _lists_images(root: Path, path: Path) -> bool:
    """Whether one of the first lines of a text file is the path of an image that has labels."""
    lines = [line.strip() for line in text_of(path).split("\n") if line.strip()]
    images = Pictures(root, [root], "").all_of(lines[:LOOKED_AT])
    return any(image and next(_labels_there(image, root), None) for image in images)


def _has_labels(folder: Path, root: Path) -> bool:
    """Whether one of the first images of a folder has a file of lines with boxes."""
    for image in images_in(folder)[:LOOKED_AT]:
        for file in _labels_there(image, root):
            if _begins_so(file):
                return True
    return False


def _has_files(folder: Path, root: Path) -> bool:
    """Whether one of the first images of a folder has a file of lines with boxes, or an empty one."""
    files = (file for image in images_in(folder)[:LOOKED_AT] for file in _labels_there(image, root))
    return any(_begins_so(file) or not text_of(file).strip() for file in files)


def _labels_there(image: Path, root: Path) -> Iterator[Path]:
    likely = labels_of(image, root)
    return (file for path in likely if (file := stored(path.parent, path.name)))


def _begins_so(file: Path) -> bool:
    """Whether the first line of a file is a class and at least four numbers."""
    return _LINE.match(head_of(file, HEAD).removeprefix(b"\xef\xbb\xbf")) is not None


def labels_of(image: Path, root: Path) -> list[Path]:
    """Where the labels of an image may be, most likely first.

    "labels" stands for the last folder of images in its path; above the folder `root` of the data,
    names mean nothing. The labels may also lie beside the image.
    """
    *folders, name = Path(os.path.relpath(image, root)).parts
    text = Path(name).with_suffix(".txt")
    usual = {folder.lower() for folder in IMAGE_FOLDERS}
    at = [i for i, folder in enumerate(folders) if folder.lower() in usual]
    files: list[Path] = []
    # A folder below that of the images may be called like one, as images/train/photos.
    for place in reversed(at):
        above, below = root.joinpath(*folders[:place]), folders[place + 1 :]
        labels = [above / name for name in _label_folders(above)]
        files += [folder.joinpath(*below, text) for folder in labels]
        files += [folder / text for folder in labels if below]
    if at and not files:
        missing = root.joinpath(*folders[: at[-1]], LABEL_FOLDERS[0])
        files = [missing.joinpath(*folders[at[-1] + 1 :], text)]
    if not at and folders and (labels_of_split := _beside_split(root.joinpath(*folders))):
        files = [labels_of_split / text]
    return [*files, root.joinpath(*folders, text)]


def _label_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders of labels in a folder, as they are written."""
    return _names_of_labels(str(folder), os.stat(folder).st_mtime_ns)


@lru_cache(maxsize=256)
def _names_of_labels(folder: str, changed: int) -> tuple[str, ...]:
    """As above; `changed` makes it another call where the folder is another one by now."""
    return tuple(child.name for child in children(Path(folder), LABEL_FOLDERS))


def _beside_split(images: Path) -> Path | None:
    """The folder of labels beside one of images, both called by their split: train_images, train_labels."""
    split = split_and_kind(images.name, IMAGE_FOLDERS)
    return split_folders(images.parent, LABEL_FOLDERS).get(split) if split else None


def _yaml_in(folder: Path) -> Path | None:
    """The YAML file of the data in a folder: one of the usual name, else the only one with names and a split."""
    usual = file_called(folder, YAML_FILES)
    if usual:
        return usual
    fits = [file for file in files_in(folder, ".yaml", ".yml") if _describes(file)]
    if len(fits) > 1:
        raise DataError(
            f"{str(folder)!r} has {len(fits)} YAML files with names and paths, "
            f"{few(file.name for file in fits)}: name one with --data"
        )
    return fits[0] if fits else None


def _describes(file: Path) -> bool:
    head = head_of(file, LONG_HEAD)
    return bool(re.search(rb"^names\s*:", head, re.MULTILINE)) and bool(
        re.search(rb"^(train|val|valid|validation|test)\s*:", head, re.MULTILINE)
    )


def _darknet_in(folder: Path) -> Path | None:
    fits = [file for file in files_in(folder, ".data") if _is_darknet(file)]
    return fits[0] if len(fits) == 1 else None


def _is_darknet(file: Path) -> bool:
    if file.suffix.lower() != ".data" or not os.path.isfile(file):
        return False
    return re.search(rb"^\s*(names|train)\s*=", head_of(file, HEAD), re.MULTILINE) is not None


def parse_darknet(text: str, file: Path) -> Described:
    """What darknet's obj.data says: `train = data/train.txt`, `valid = ...`, `names = data/obj.names`.

    The paths are as seen from darknet's folder, so their ends count. The file of the names is read.
    """
    pairs = [line.partition("=")[::2] for line in text.split("\n") if "=" in line]
    rows = {key.strip(): value.strip() for key, value in pairs if not key.lstrip().startswith("#")}
    names = rows.get("names", "obj.names")
    places = (file.parent / names, file.parent / Path(names).name, file.parent / "obj.names")
    there = next((path for path in places if os.path.isfile(path)), None)
    if there is None:
        raise DataError(f"{file}: no file {shorten(names)!r} of class names")
    inside(there, file.parent, f"{file}, names")
    classes = parse_classes(text_of(there), str(there))
    entries = {split: [path] for split, path in by_split(_without_empty(rows)).items()}
    if not entries:
        entries = {split: [path.name] for split, path in split_lists(file.parent).items()}
    if not entries:
        raise DataError(f"{file}: has no paths under train or valid")
    return Described(classes, list(range(len(classes))), entries, ".", 0)


def _without_empty(rows: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in rows.items() if value}


def place_of(entry: str, data: Data) -> tuple[Path, Path]:
    """The folder or list of an entry, and the folder of the data that it belongs to.

    The user's own file may point anywhere. Where nothing is there, the path is one of another
    machine or of another folder's view, and its end counts, below the folder of the file.
    """
    written = entry.replace("\\", "/") if "\\" in entry else entry
    parts = Path(written).parts
    ends = [Path(*parts[i:]) for i in range(1, len(parts)) if ".." not in parts[i:]]
    home = data.bases[-1:] if len(data.bases) == 1 else data.bases[:2]
    if parts and parts[0] == ".." and data.described.path in (".", "./"):
        # as Roboflow writes, from a folder that it does not have
        places = [(base / end, base) for base in home for end in ends[:1]]
    else:
        places = []
    places += [(base / written, base) for base in data.bases]
    places += [(base / end, base) for base in home for end in ends]
    for place, base in places:
        if os.path.exists(place):
            return place, base if is_below(place, base) else _root_of(place)
    raise DataError(f"{data.file}: no such file or folder: {shorten(entry)!r}, {_looked(data)}")


def _looked(data: Data) -> str:
    return f"as seen from {few(repr(str(base)) for base in data.bases)}"


def _root_of(place: Path) -> Path:
    """The folder of data elsewhere: above the last folder of images in the path, or the place itself."""
    folder = place if os.path.isdir(place) else place.parent
    parts = Path(os.path.abspath(folder)).parts
    usual = {name.lower() for name in IMAGE_FOLDERS}
    at = [i for i, part in enumerate(parts) if part.lower() in usual and i > 0]
    return Path(*parts[: at[-1]]) if at else folder


def _there(entry: str, data: Data, elsewhere: str, split: str) -> tuple[Path, Path]:
    """The folder of an entry below `elsewhere`, or its list, and `elsewhere`."""
    top = Path(elsewhere)
    parts = Path(entry.replace("\\", "/")).parts
    ends = [Path(*parts[i:]) for i in range(len(parts)) if ".." not in parts[i:]]
    lists = (base / end for base in data.bases for end in ends)
    file = next((path for path in lists if os.path.isfile(path)), None)
    if file is not None:
        return file, top
    folders = [top / end for end in ends] + image_folders(top, split)
    place = next((path for path in folders if os.path.isdir(path) and find_images(path)[0]), top)
    return place, top


def labels_elsewhere(image: Path, images: Path, home: Path, split: str) -> list[Path]:
    """Where the labels of an image below another folder than that of the data, `home`, may be in it."""
    usual = {folder.lower() for folder in IMAGE_FOLDERS}
    path = Path(os.path.relpath(image, images)).with_suffix(".txt")
    inner = Path(*(part for part in path.parts if part.lower() not in usual))
    tops = children(home, LABEL_FOLDERS)
    of_split = split_folders(home)
    if split in of_split:
        tops += [*children(of_split[split], LABEL_FOLDERS), of_split[split]]
    tops.append(home)
    return [
        top / name
        for top in tops
        for name in (inner, Path(inner.name), *([Path(split) / inner.name] if split else []))
    ]


def _place(entry: str, data: Data, split: str, elsewhere: str | None) -> tuple[Path, Path]:
    """The folder or list of an entry, and the folder of its data; below `elsewhere` where that is given."""
    return place_of(entry, data) if elsewhere is None else _there(entry, data, elsewhere, split)


def check_apart(data: Data, elsewhere: str | None) -> None:
    """`DataError` where different entries end in one place here: val would be train."""
    entries: dict[str, tuple[str, str]] = {}  # place -> the split and entry that it is of
    for split, rows in data.described.entries.items():
        for entry in rows:
            try:
                place, _ = _place(entry, data, split, elsewhere)
            except DataError:  # said where it is read
                continue
            other, same = entries.setdefault(os.path.abspath(place), (split, entry))
            if other != split and os.path.normpath(same) != os.path.normpath(entry):
                raise DataError(
                    f"{data.file}: {other} is {shorten(same)!r} and {split} is {shorten(entry)!r}, "
                    f"and here both would be {str(place)!r}: write the folder of each"
                )


def _without_labels(left_out: list[str], images: list[Path], entry: str) -> list[str]:
    """The lines of what is no image, without those of labels; one line for text files of no image."""
    texts = [(line, _TEXT.match(line)) for line in left_out]
    stems = {same_form(image.stem) for image in images}
    alone = [
        match[1]
        for _, match in texts
        if match and same_form(match[1]) not in stems and f"{match[1]}.txt" not in NAME_FILES
    ]
    lines = [line for line, match in texts if match is None]
    if alone:
        lines.append(f"{entry}: {len(alone)} text files are of no image: {few(alone)}")
    return lines


def images_of(
    entry: str, data: Data, split: str, notes: Notes, elsewhere: str | None
) -> tuple[list[Path], Path]:
    """The images of one entry, a folder's or those that a text file lists, and the folder of their data.

    They lie below `elsewhere` where that is given.
    """
    place, root = _place(entry, data, split, elsewhere)
    if os.path.isdir(place):
        images, left_out = find_images(place)
        notes.lines += _without_labels(left_out, images, entry)
        if not images:
            raise DataError(f"{data.file}: no images in {str(place)!r}")
        return images, root
    names = [line.strip() for line in text_of(place).split("\n") if line.strip()]
    folders = [root, place.parent, *image_folders(root, split)]
    pictures = Pictures(root, folders, split)
    paths = pictures.all_of(names)
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing and len(missing) == len(names):
        raise DataError(f"{place}: {pictures.missing(missing[0])}")
    if missing:
        notes.say(
            f"{place}: {len(missing)} of {len(names)} images are not there and are left out: "
            f"{few(missing)}"
        )
    return [path for path in paths if path is not None], root
