"""Samples as network inputs, and batches of them: `ImageDataset`, `collate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import images
from ..data import OF_PICTURES, Split
from ..errors import DataError, FleetnetError
from ..geometry import Place
from ..preprocess import Preprocess
from ..resizing import tensor_of
from ..sizes import Curriculum, Size
from .augment import Augmentation, as_input, draws_from_torch
from .cache import LIMIT, Kept, keep
from .decode import AnnotatedPicture, Targets, look_at, read_targets, reduced
from .randomness import Draw, generator_of, of_others, of_sample, seed_all, seed_torch, states_kept

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 1 << 20  # bytes of files that are read before the first of them is decoded
ANSWER = "answer"  # (N, bytes) uint8 among the targets: what a teacher found, where that is stored
# "label": (N,), or mixed (N, classes); "tags": (N, classes); "semantic": (N, H, W), in evaluation a
# list; of objects, lists of N tensors.
BatchTargets = dict[str, Any]


class Batch(NamedTuple):
    """What a network gets at once.

    In training targets are in pixels of the input, in evaluation in those of the picture.
    """

    # (N, C, H, W) uint8, channels last in memory; N is 0, and the shape (0,), if none of the files
    # could be read
    images: Tensor
    targets: BatchTargets
    skipped: list[str]  # a line for each file that could not be read, with the reason
    indices: list[int]  # of the samples in the split
    places: list[Place]  # where each picture lies in the input; empty in training
    preprocess: Preprocess | None = None  # how values are scaled; None where they are already
    lost: int = 0  # how many of the skipped files no other one stands in for

    def inputs(self) -> Tensor:
        """What the network gets, (N, C, H, W) float32, on the device that the images are on."""
        return self.images if self.preprocess is None else self.preprocess.normalize(self.images)

    def on(self, device: torch.device) -> "Batch":
        """The same on a device."""
        if device.type == "cpu":
            return self
        from accelerate.utils import send_to_device

        return cast(Batch, send_to_device(self, device, non_blocking=True))


class Item(NamedTuple):
    """One input of a batch."""

    image: Tensor  # (C, H, W) uint8
    targets: Targets
    sample: int  # its index in the split
    place: Place | None  # where the picture lies in the input; None in training
    preprocess: Preprocess | None = None
    instead_of: str = ""  # why the sample could not be read for which this one stands in


class Look(NamedTuple):
    """What is done to samples at one size of the input, in training."""

    preprocess: Preprocess
    augment: Augmentation
    only_torch: bool = False  # whether nothing draws from Python's generator, or NumPy's


class Looked(NamedTuple):
    """A sample in training whose files were read, most of them not decoded yet."""

    draw: Draw
    look: Look
    pictures: list[AnnotatedPicture]  # itself, then others


# Of a size, and the strength of the augmentation from 0 to 1.
MakeLook = Callable[[Size, float], Look]


# What a teacher found in a sample as it comes up, (bytes,) uint8; None: it was not asked about it.
AnswerOf = Callable[[Draw], Tensor | None]


class Watcher(Protocol):
    """What is told which sample is read, before it is."""

    def reads(self, index: int) -> None: ...


class ImageDataset(Dataset[Item | str]):
    """Samples of a split as network inputs, or as text the reason why there is none.

    `target` is the kind of annotation that comes with them (see `data`). With `augment` they are
    for training: its random changes move the annotation with the picture, into pixels of the input,
    and from the epoch `plain_from` on its plain form does. Without, they are for evaluation, and
    the annotation stays in the picture's pixels. Where sizes change in a training, by a
    `curriculum` or by the draw, `at` makes what is used at another size.

    In training one that cannot be read is replaced by the first of those `following` it that can, as
    it is in its own place, so that batches stay as large.

    Samples are asked for by their index, or in training by a `Draw`: random numbers are those of
    `seed` and the draw, in whichever process; of an index alone, those of its first in epoch 0.

    With `cache` pictures are kept in memory, as far as `limit` bytes hold them decoded or as their
    files (see `cache`): the same pixels, sooner. Processes of a DataLoader share the memory where
    they are forked (Linux); elsewhere each has a copy.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        augment: Augmentation | None = None,
        *,
        target: str = "label",
        seed: int = 0,
        plain_from: int | None = None,
        curriculum: Curriculum | None = None,
        at: MakeLook | None = None,
        cache: bool = False,
        limit: int = LIMIT,
        following: Callable[[Draw], Sequence[Draw]] | None = None,
    ):
        self.split = split
        self.preprocess = preprocess
        self.augment = augment
        self.plain_from = plain_from
        self.curriculum = curriculum
        self.at = at
        self.following = following
        self.looks: dict[tuple[Size, float, bool], Look] = {}  # those that were asked for
        self.target = target
        self.answers: AnswerOf | None = None  # where those of a teacher are stored
        self.seed = seed
        self.makes_pictures = any(callable(sample.image) for sample in split.samples)
        self.watcher: Watcher | None = None  # where worker processes read
        self.kept: list[Kept] = []  # of each sample; empty without a cache
        if cache:
            self.kept = keep(split.samples, self._read_to_keep, preprocess.size, limit)

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, key: int | Draw) -> Item | str:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | Draw]) -> list[Item | str]:
        """A batch, as a `DataLoader` asks for it; the global random states stay as they are."""
        draws = [key if isinstance(key, Draw) else Draw(0, key) for key in keys]
        if self.augment is None:
            return [or_reason(self._for_evaluation, draw.sample) for draw in draws]
        of_torch = all(self._look(draw).only_torch for draw in draws)
        only_torch = of_torch and not self.makes_pictures
        items: list[Item | str] = []
        with states_kept(only_torch=only_torch):
            for some in self._read_ahead(draws):
                items += [
                    one if isinstance(one, str) else or_reason(self._for_training, one)
                    for one in some
                ]
            pairs = zip(items, draws, strict=True)
            items = [
                self._instead(draw, item) if isinstance(item, str) else item for item, draw in pairs
            ]
        if self.answers is None:
            return items
        pairs = zip(items, draws, strict=True)
        return [_answered(item, draw, self.answers(draw)) for item, draw in pairs]

    def _instead(self, draw: Draw, reason: str) -> Item | str:
        """An item that stands in for one that cannot be read, else the `reason`."""
        for other in [] if self.following is None else self.following(draw):
            with suppress(DataError):  # named when it is an item itself
                return self._for_training(self._looked(other))._replace(instead_of=reason)
        return reason

    def _read_ahead(self, draws: Sequence[Draw]) -> Iterator[list[Looked | str]]:
        """Samples whose files were read, a few at a time.

        To read some and then to change some takes a twentieth less than to do both in turn: the
        caches of a CPU hold the code of the one or of the other.
        """
        some: list[Looked | str] = []
        size = 0  # bytes that are held
        for draw in draws:
            looked = or_reason(self._looked, draw)
            some.append(looked)
            if not isinstance(looked, str):
                size += sum(picture.size for picture in looked.pictures)
            if size > AHEAD:
                yield some
                some, size = [], 0
        yield some

    def _look(self, draw: Draw) -> Look:
        """What is done to a sample at the size and the strength that it comes up with."""
        stage = None if self.curriculum is None else self.curriculum.at(draw.epoch)
        size, strength = draw.size, 1.0
        if stage is not None:
            size, strength = stage.size, stage.strength
        is_plain = self.plain_from is not None and draw.epoch >= self.plain_from
        which = size or self.preprocess.size, strength, is_plain
        if which not in self.looks:
            self.looks[which] = self._new_look(*which)
        return self.looks[which]

    def _new_look(self, size: Size, strength: float, is_plain: bool) -> Look:
        look = Look(self.preprocess, cast(Augmentation, self.augment))
        if self.at is not None and (size, strength) != (self.preprocess.size, 1.0):
            look = self.at(size, strength)
        augment = look.augment.plain() if is_plain else look.augment
        only_torch = draws_from_torch(augment)
        return look._replace(augment=augment, only_torch=only_torch)

    def _for_evaluation(self, index: int) -> Item:
        picture = self._picture(index).decoded()
        place = self.preprocess.place(picture.height, picture.width)
        targets = self._targets(index, picture)
        return Item(self.preprocess.pixels(picture), targets, index, place, self.preprocess)

    def _looked(self, draw: Draw) -> Looked:
        look = self._look(draw)
        return Looked(draw, look, self._pictures(draw, look.augment.pictures))

    def _for_training(self, looked: Looked) -> Item:
        draw, look, pictures = looked
        if self.watcher is not None:  # others may have been read since
            self.watcher.reads(draw.sample)
        try:
            return self._augmented(draw, look, pictures)
        except DataError:
            if len(pictures) == 1:
                raise
            # One of them is a JPEG that is damaged behind its head. Where it is the sample's own,
            # it is named now; another one is named when it is an item itself.
            readable = [picture for picture in pictures[1:] if picture.is_readable()]
            return self._augmented(draw, look, [pictures[0], *readable])

    def _augmented(self, draw: Draw, look: Look, pictures: Sequence[AnnotatedPicture]) -> Item:
        seed = seed_torch if look.only_torch else seed_all
        generator = seed(of_sample(self.seed, draw))
        image, targets = as_input(look.augment, look.preprocess, pictures, generator)
        return Item(image, targets, draw.sample, None, look.preprocess)

    def _pictures(self, draw: Draw, count: int) -> list[AnnotatedPicture]:
        """The sample, and random others as far as they can be read."""
        if self.makes_pictures:  # what makes them may draw numbers
            seed_all(of_others(self.seed, draw))
        pictures = [self.annotated(draw.sample)]
        if count == 1:
            return pictures
        generator = generator_of(of_others(self.seed, draw))
        others = torch.randint(len(self), (count - 1,), generator=generator)
        for other in others.tolist():
            with suppress(DataError):  # named when it is an item itself
                pictures.append(self.annotated(other))
        return pictures

    def annotated(self, index: int) -> AnnotatedPicture:
        """The image of a sample with its annotation in the image's pixels.

        Raises `DataError` if it cannot be read.
        """
        picture = self._picture(index)
        targets = self._targets(index, picture)
        if isinstance(picture, images.Encoded):
            if picture.height * picture.width <= images.LARGE:
                return AnnotatedPicture(picture, targets)
            picture = picture.decoded()
        whole, smaller = (picture.height, picture.width), picture.pixels.shape[:2]
        if whole != smaller:  # of a large picture, a reduced copy
            targets = reduced(targets, whole, smaller)
        return AnnotatedPicture(tensor_of(picture.pixels), targets)

    def _targets(self, index: int, picture: images.Picture | images.Encoded) -> Targets:
        """In the picture's own pixels, also where its image is reduced."""
        return read_targets(
            self.split.samples[index],
            (picture.height, picture.width),
            self.target,
            classes=len(self.split.classes),
            learned=self.augment is not None,
        )

    def _picture(self, index: int) -> images.Picture | images.Encoded:
        kept = self.kept[index] if self.kept else None
        if isinstance(kept, images.Picture | images.Encoded):
            return kept
        if isinstance(kept, str):
            raise DataError(kept)
        return self._read(index, kept)

    def _read_to_keep(
        self, index: int, file: bytes | None = None
    ) -> images.Picture | images.Encoded:
        """As `_read`; what makes pictures may draw numbers, which are those of epoch 0."""
        if not callable(self.split.samples[index].image):
            return self._read(index, file)
        with states_kept():
            seed_all(of_others(self.seed, Draw(0, index)))
            return self._read(index, file)

    def _read(self, index: int, file: bytes | None = None) -> images.Picture | images.Encoded:
        """The picture of a sample, from the bytes of its `file` where these are at hand."""
        if self.watcher is not None:
            self.watcher.reads(index)
        preprocess, sample = self.preprocess, self.split.samples[index]
        values, channels = preprocess.values, preprocess.channels
        if file is not None:
            with suppress(DataError):  # which does not name the file, and reading it anew does
                looked = images.look(file, values, count=channels)
                if isinstance(looked, images.Encoded):
                    looked = looked._replace(name=repr(str(sample.image)))
                return looked
        return look_at(sample, values, channels)


def or_reason(make: Callable[[T], R], of: T) -> R | str:
    """What is made, or as text the reason why it cannot be."""
    try:
        return make(of)
    except DataError as error:
        return str(error)


def _answered(item: Item | str, draw: Draw, answer: Tensor | None) -> Item | str:
    """An item with a teacher's answer; `FleetnetError` where there is the one without the other."""
    if isinstance(item, str):
        if answer is None:
            return item
        raise FleetnetError(
            f"{item}; it could be read when the teacher was asked, and the stored answers are to "
            "the same batches: mend the file, or make them anew with fleetnet data reinforce"
        )
    if answer is None:
        raise FleetnetError(
            f"the stored answers of the teacher have none to sample {draw.sample} in epoch "
            f"{draw.epoch + 1}: its file could not be read when they were made. Make them anew with "
            "fleetnet data reinforce"
        )
    return item._replace(targets={**item.targets, ANSWER: answer})


def collate(items: Sequence[Item | str]) -> Batch:
    """A batch of what `ImageDataset` gives.

    Files that could not be read are named in `skipped`; those that no other one stands in for make
    it smaller.
    """
    good = [item for item in items if not isinstance(item, str)]
    reasons = [item if isinstance(item, str) else item.instead_of for item in items]
    skipped, lost = [reason for reason in reasons if reason], len(items) - len(good)
    if not good:
        return Batch(torch.empty(0), {}, skipped, [], [], lost=lost)
    places = [item.place for item in good if item.place is not None]
    targets: BatchTargets = {}
    for key in good[0].targets:
        of_items = [item.targets[key] for item in good]
        # In evaluation label maps have the sizes of their pictures.
        same_size = key in (*OF_PICTURES, ANSWER) or (key == "semantic" and not places)
        targets[key] = torch.stack(of_items) if same_size else of_items
    # (N, H, W, C): stacked as they lie in memory
    rows = torch.stack([item.image.permute(1, 2, 0) for item in good])
    indices = [item.sample for item in good]
    images, preprocess = rows.permute(0, 3, 1, 2), good[0].preprocess
    return Batch(images, targets, skipped, indices, places, preprocess, lost)
