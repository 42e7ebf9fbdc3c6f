"""A format that a test adds: ROOT/SPLIT.pairs with a line `file = class` for each picture."""

from pathlib import Path

from ..errors import DataError
from . import USUAL, Places, Sample, Source, Split, check_images, text_of

EXPECTS = "ROOT/train.pairs and val.pairs with lines `file = class`"
TARGETS: tuple[str, ...] = ("label",)
FALLBACK = False
PLACES: tuple[str, ...] = ()


def detect(root: str, target: str = "label") -> bool:
    return (Path(root) / "train.pairs").is_file()


def load(root: str, split: str | None, target: str = "label", elsewhere: Places = USUAL) -> Split:
    split = split or "val"
    path = Path(root) / f"{split}.pairs"
    pairs = parse(text_of(path), str(path))
    classes = sorted(
        {name for _, name in parse(text_of(Path(root) / "train.pairs"), "train.pairs")}
    )
    samples = [Sample(Path(root) / file, classes.index(name)) for file, name in pairs]
    check_images([Path(root) / file for file, _ in pairs], str(path))
    return Split(samples, classes, source=Source(root, "pairs", split, str(path)))


def parse(text: str, source: str) -> list[tuple[str, str]]:
    """File and class of each line."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        file, sign, name = line.partition(" = ")
        if not sign:
            raise DataError(f"{source}, line {number}: {line!r} is not `file = class`")
        pairs.append((file, name))
    return pairs
