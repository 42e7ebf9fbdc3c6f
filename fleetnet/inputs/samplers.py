"""In which order an epoch goes through the samples, and in which batches.

Order            indices of samples: `Shuffled`, `Balanced`, `Weighted`, or one that a user gives
Draws            the same, with the epoch and how often a sample came up in it before
Following        those that come after one, which stand in for it where it cannot be read
OrderedBatches   what a process gets of each batch
SizedBatches     the same, where each step has a size and a number of images of its own
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..data import Split
from ..sizes import Size
from .randomness import Draw, choice, generator_of, of_order, of_size

T = TypeVar("T")
STAND_INS = 100  # samples that are tried for one: where none can be read, something else is wrong
NO_TAG = -1  # no class has this index


class Order(Protocol):
    """In which order an epoch goes through the samples: their indices.

    It may leave out some, and repeat some. It is a function of the epoch alone, so that a run that
    continues goes on as if it had never stopped. Processes that read get it too, since the next of
    the order stands in for a file that cannot be read: so it can be pickled.
    """

    epoch: int  # from 0; set before each pass

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class Shuffled(Sampler[int]):
    """All indices of `count` samples in an order that depends on the seed and `epoch` alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def generator(self) -> torch.Generator:
        return generator_of(of_order(self.seed, self.epoch))

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self.generator()).tolist())


class Repeated(Shuffled):
    """As many indices as there are samples, each several times in a row, in an order of each epoch.

    So a batch has a sample several times, each augmented on its own, and an epoch goes through a
    part of the samples: Hoffer et al., arXiv:1901.09335, as RepViT is trained.
    """

    def __init__(self, count: int, seed: int, times: int):
        super().__init__(count, seed)
        self.times = times

    def __iter__(self) -> Iterator[int]:
        repeated = (index for index in super().__iter__() for _ in range(self.times))
        return islice(repeated, self.count)


class Balanced(Shuffled):
    """As many indices as there are samples, of each class equally often, up to one.

    Samples of a class come in turn, in an order of each epoch: those of a small class several times
    an epoch, those of a large one not in every epoch.
    """

    def __init__(self, labels: list[int], seed: int):
        super().__init__(len(labels), seed)
        self.of_class: dict[int, list[int]] = defaultdict(list)
        for index, label in enumerate(labels):
            self.of_class[label].append(index)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        turns = -(-self.count // len(self.of_class))  # of each class, rounded up
        chosen: list[int] = []
        for label in sorted(self.of_class):
            indices = self.of_class[label]
            rounds = -(-turns // len(indices))
            orders = [torch.randperm(len(indices), generator=generator) for _ in range(rounds)]
            chosen += [indices[place] for place in torch.cat(orders)[:turns].tolist()]
        order = torch.randperm(len(chosen), generator=generator)[: self.count]
        return iter([chosen[place] for place in order.tolist()])


class Weighted(Shuffled):
    """As many indices as there are samples, each as often as its weight says, up to one.

    Which of them come once more than others is drawn in each epoch.
    """

    def __init__(self, weights: Tensor, seed: int):
        super().__init__(len(weights), seed)
        # (N,) float64, how often each comes in an epoch on average
        self.times = weights.double() * (len(weights) / weights.double().sum())

    def __iter__(self) -> Iterator[int]:
        generator = self.generator()
        order = torch.randperm(self.count, generator=generator)
        # Samples lie one after the other on a line, each as long as often it comes, and there is a
        # mark in each unit of it (systematic sampling).
        ends = self.times[order].cumsum(0)
        shift = torch.rand((), generator=generator, dtype=torch.float64)
        marks = torch.arange(self.count) + shift
        places = torch.searchsorted(ends, marks, right=True).clamp(max=self.count - 1)
        chosen = order[places]
        return iter(chosen[torch.randperm(self.count, generator=generator)].tolist())


def of_rarest_tag(split: Split) -> Tensor:
    """A weight for each sample, (N,): 1 over the samples that have its rarest tag.

    Samples without a tag count as those of a tag of their own.
    """
    tags_of = [sample.tags or (NO_TAG,) for sample in split.samples]
    counts = Counter(chain.from_iterable(tags_of))
    rarest = [min(counts[tag] for tag in tags) for tags in tags_of]
    return 1 / torch.tensor(rarest, dtype=torch.float64)


def labels_of(split: Split) -> list[int]:
    """The class of each sample that has one."""
    return [sample.label for sample in split.samples if sample.label is not None]


# What a DataLoader asks for -----------------------------------------------------------------------


class Draws(Sampler[Draw]):
    """The samples of an order as keys that say all that their random numbers depend on."""

    def __init__(self, order: Order):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        return draws_of(self.order, self.order.epoch)


def draws_of(indices: Iterable[int], epoch: int) -> Iterator[Draw]:
    """Samples as keys of an epoch, each with how often it came up before."""
    turns: Counter[int] = Counter()
    for index in indices:
        yield Draw(epoch, index, turns[index])
        turns[index] += 1


class Following:
    """What comes after a sample in an order, which begins again at its end.

    It depends on the order and the epoch alone, so it is the same in whichever process.
    """

    def __init__(self, order: Order):
        self.order = order
        self.epoch = -1  # the one that was asked about last
        self.draws: list[Draw] = []  # all of it

    def __call__(self, draw: Draw) -> list[Draw]:
        """At most `STAND_INS` samples, at the size of this one; none where it is not of the order."""
        if self.epoch != draw.epoch:
            self.order.epoch = self.epoch = draw.epoch
            self.draws = list(draws_of(self.order, draw.epoch))
        places = [place for place, other in enumerate(self.draws) if other.sample == draw.sample]
        if not places:
            return []
        first = places[draw.turn % len(places)] + 1
        following = chain(range(first, len(self.draws)), range(first - 1))
        others = (self.draws[i] for i in following if self.draws[i].sample != draw.sample)
        return [other._replace(size=draw.size) for other in islice(others, STAND_INS)]


class OrderedBatches(Sampler[list[Draw]]):
    """What the process `rank` of `world` gets of each batch of `batch_size` samples.

    A smaller last batch is left out unless it is the only one. Batch b of an epoch has the same
    samples for any number of processes. The `first` is the batch that an epoch goes on with; its
    length counts those before it too.
    """

    first = 0

    def __init__(self, order: Order, batch_size: int, rank: int = 0, world: int = 1):
        self.draws = Draws(order)
        self.batch_size = batch_size
        self.drop_last = len(order) >= batch_size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(self.draws) // self.batch_size if self.drop_last else min(1, len(self.draws))

    def __iter__(self) -> Iterator[list[Draw]]:
        return islice(self._of_whole_epoch(), self.first, None)

    def _of_whole_epoch(self) -> Iterator[list[Draw]]:
        draws = iter(self.draws)
        while batch := list(islice(draws, self.batch_size)):
            if len(batch) < self.batch_size and self.drop_last:
                return
            yield list(share_of(batch, self.rank, self.world))


@dataclass(frozen=True)
class Sizes:
    """One of several sizes for each step of a training, and how many images it has there.

    ParC-Net is trained so (CVNets, arXiv:2206.02680, section B). It is a function of the place in
    the run, so a run that continues needs to remember nothing.
    `usual` and `batch` are the size and number of images that memory and learning rate are meant
    for: smaller sizes have as many more as have the same pixels, in multiples of a sixteenth of the
    batch (as CVNets has 128 images in each of 8 processes, in multiples of 8 each), and larger ones
    no fewer.
    """

    sizes: tuple[Size, ...]
    usual: Size
    batch: int
    seed: int

    def at(self, epoch: int, step: int) -> Size:
        """The size of a step, for all processes alike."""
        return choice(self.sizes, generator_of(of_size(self.seed, epoch, step)))

    def images(self, size: Size) -> int:
        """How many images a step of a size has, in all processes together."""
        wanted = self.usual[0] * self.usual[1] * self.batch / (size[0] * size[1])
        multiple = max(1, self.batch // 16)
        return max(self.batch, round(wanted / multiple) * multiple)

    def steps(self, count: int) -> int:
        """Of an epoch of so many samples, as if all sizes came equally often; at least one."""
        mean = sum(self.images(size) for size in self.sizes) / len(self.sizes)
        return max(1, int(count / mean))


class SizedBatches(Sampler[list[Draw]]):
    """What the process `rank` of each batch gets where each step has a size of its own.

    An epoch has always as many steps; where small sizes come up more often than others, the order
    begins again at its end, and where large ones do, a part of it is left out. The `first` is the
    batch that an epoch goes on with.
    """

    first = 0

    def __init__(self, order: Order, sizes: Sizes, rank: int = 0, world: int = 1):
        self.order = order
        self.sizes = sizes
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.sizes.steps(len(self.order))

    def __iter__(self) -> Iterator[list[Draw]]:
        return islice(self._of_whole_epoch(), self.first, None)

    def _of_whole_epoch(self) -> Iterator[list[Draw]]:
        epoch = self.order.epoch
        # the order again and again, while the turns count on
        draws = draws_of(chain.from_iterable(repeat(self.order)), epoch)
        for step in range(len(self)):
            size = self.sizes.at(epoch, step)
            batch = list(islice(draws, self.sizes.images(size)))
            yield [draw._replace(size=size) for draw in share_of(batch, self.rank, self.world)]


def share_of(batch: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """A part of a batch, for process `rank` of `world`: one after the other, they are the batch.

    Sizes differ by one at most.
    """
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]
