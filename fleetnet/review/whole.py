"""The whole second look at data, as `fleetnet data check` shows it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..channels import RGB
from ..data import Split
from ..data._contents import Contents, contents_of
from ..data._names import by_name
from ..data._record import describe
from ..errors import DataError
from ..images import value_range
from . import Finding, by_level
from .annotated import annotated
from .copies import copies
from .look import Progress, look_at
from .pictures import Sizes, deep_values, few_pixels, pictures, pixels_of, sizes_of, small_pictures


@dataclass(frozen=True)
class Review:
    """What data are, and what does not make sense in them."""

    target: str  # the kind of annotation that was read
    splits: Mapping[str, Split]  # "train", "val" and "test", as there are
    contents: Mapping[str, Contents]  # of each split; of label maps, all pixels
    sizes: Mapping[str, Sizes | None]
    findings: list[Finding]  # errors first

    @property
    def is_wrong(self) -> bool:
        """Whether a training on these data would be wrong."""
        return any(one.level == "error" for one in self.findings)

    def to_dict(self) -> dict[str, object]:
        splits = {}
        for name, split in self.splits.items():
            sizes = self.sizes[name]
            splits[name] = {
                **describe(split, self.contents[name]),
                "sizes": None if sizes is None else asdict(sizes),
            }
        return {
            "target": self.target,
            "splits": splits,
            "findings": [one.to_dict() for one in self.findings],
            "wrong": self.is_wrong,
        }


def review(
    splits: Mapping[str, Split],
    target: str,
    size: tuple[int, int],
    max_bad: float = 0.5,
    workers: int = 0,
    on_progress: Progress | None = None,
    channels: int = RGB,
) -> Review:
    """Read every picture of some splits, "train" first, and say what they are.

    `target` is the kind of annotation of `data.load`, `size` the (height, width) of the input of
    the network that is to be trained, `max_bad` the largest share of bad annotations or pictures,
    `channels` those of its pictures.
    """
    splits = _of_one_order(splits)
    train = next(iter(splits.values()))
    files = [sample.image for sample in train.samples if not callable(sample.image)]
    values, why = value_range(files)
    samples = [sample for split in splits.values() for sample in split.samples]
    classes = max(len(split.classes) for split in splits.values())
    looked = look_at(samples, target, classes, values, workers, on_progress, channels)
    in_turn = iter(looked)
    looks = {name: [next(in_turn) for _ in split.samples] for name, split in splits.items()}
    contents = {
        name: pixels_of(split, looks[name]) if target == "semantic" else contents_of(split, target)
        for name, split in splits.items()
    }
    findings = annotated(splits, contents, max_bad)
    for name, split in splits.items():
        findings += pictures(name, split, looks[name], size, max_bad)
    if "train" in splits:
        learned = splits["train"]
        findings += few_pixels(learned, contents["train"])
        findings += small_pictures(learned, looks["train"], size)
    findings += [*copies(splits, looks), *deep_values(values, why)]
    sizes = {name: sizes_of(looks[name]) for name in splits}
    return Review(target, splits, contents, sizes, by_level(findings))


def _of_one_order(splits: Mapping[str, Split]) -> dict[str, Split]:
    """The splits with the first one's classes, as a training takes them; behind these, what only another has.

    So the same label is the same class in all of them, and those that are not learned keep a name.
    """
    first = next(iter(splits.values())).classes
    ordered = {}
    for name, split in splits.items():
        try:
            ordered[name] = by_name(split, first, "the training data")
        except DataError:  # a finding of `annotated`
            unknown = [one for one in split.classes if one not in first]
            ordered[name] = by_name(split, [*first, *unknown], "all")
    return ordered
