"""Class folders: one folder of images a class, with or without folders for the splits above them.

    root/train/CLASS/*.jpg  root/val/CLASS/*.jpg        or                root/CLASS/*.jpg

Classes are numbered by name, as torchvision's ImageFolder does. Without folders for the splits, every tenth image of
each class, by name, is held out for "val". The folder of "val" may also be called valid, validation or, if there is no
such folder, test.
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError, choose
from ..images import EXTENSIONS, find_images, hidden
from . import SPLIT_NAMES, Sample, Split, check_exists, hold_out

EXPECTS = "ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg with two or more classes"
TARGETS = ("label",)


def detect(root: str) -> bool:
    """True for a folder with folders of splits that hold folders, or with several folders of which one holds images."""
    path = Path(root)
    if not path.is_dir():
        return False
    splits = [name for names in SPLIT_NAMES.values() for name in names if (path / name).is_dir()]
    if splits:
        return any(_folders(path / name) for name in splits)
    folders = _folders(path)
    return len(folders) > 1 and any(_holds_image(folder) for folder in folders)


def load(root: str, split: str, target: str = "label") -> Split:
    """The samples of a split: classes of the train folder, in every split.

    Raises `DataError` naming the folder that is missing, empty, or of a class that the train folder does not have.
    """
    check_exists(root)
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"{root!r} is not a folder; expected {EXPECTS}")
    present = [name for name in SPLIT_NAMES["train"] + SPLIT_NAMES["val"] if (path / name).is_dir()]
    if split == "all" and len(present) > 1:
        raise DataError(f"{root!r} has the splits {', '.join(present)}: choose one")
    first = path / present[0] if present else path
    classes = [folder.name for folder in _folders(first)]
    if not classes:
        raise DataError(f"no class folders in {str(first)!r}; expected {EXPECTS}")
    # with one folder for all (only train/, or none) the split is ours
    own = len(present) < 2 and (not present or present[0] == "train")
    if own:
        folder = first
    else:
        folder = next((path / name for name in SPLIT_NAMES.get(split, present) if name in present), path)
        if folder == path:
            raise DataError(f"no folder for {split!r} in {root!r}; there is {', '.join(present)}")
    found, skipped = _scan(folder, classes, str(first))
    return Split(parse(found, classes, split if own else "all"), classes, skipped)


def parse(found: Sequence[tuple[str, Sequence[Path]]], classes: Sequence[str], split: str) -> list[Sample]:
    """Samples from (class name, its images); of each class those that `hold_out` gives to the split."""
    index = {name: i for i, name in enumerate(classes)}
    return [Sample(path, index[name]) for name, paths in found for path in hold_out(paths, split)]


def _scan(folder: Path, classes: list[str], first: str) -> tuple[list[tuple[str, list[Path]]], list[str]]:
    """The images of each class below `folder`, and what was left out."""
    found, skipped = [], []
    for child in _folders(folder):
        if child.name not in classes:
            near = choose(child.name, classes)
            raise DataError(f"class folder {str(child)!r} has no folder of that name in {first!r}: {near}")
        images, left_out = find_images(child)
        skipped += left_out
        if not images:
            reason = f"; left out: {left_out[0]}" if left_out else ""
            raise DataError(f"class folder {str(child)!r} has no images{reason}. Add images or delete the folder")
        found.append((child.name, images))
    for child in sorted(folder.iterdir()):
        if not child.is_dir() and not hidden(child.name):
            skipped.append(f"{str(child)!r}: not in a class folder")
    return found, skipped


def _folders(path: Path) -> list[Path]:
    try:
        return sorted((c for c in path.iterdir() if c.is_dir() and not hidden(c.name)), key=lambda c: c.name)
    except OSError as error:
        raise DataError(f"cannot list folder {str(path)!r}: {error.strerror}") from error


def _holds_image(folder: Path) -> bool:
    return any(c.suffix.lower() in EXTENSIONS and not hidden(c.name) for c in folder.iterdir())
