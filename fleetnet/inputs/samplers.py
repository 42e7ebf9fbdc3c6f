"""In which order an epoch goes through the samples."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

import torch
from torch.utils.data import Sampler

from ..data import Split


class Order(Protocol):
    """In which order an epoch goes through the samples: their indices.

    It may leave out some, and repeat some. It is a function of the epoch alone, so that a run that
    continues goes on as if it had never stopped.
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
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self.generator()).tolist())


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


def labels_of(split: Split) -> list[int]:
    """The class of each sample that has one."""
    return [sample.label for sample in split.samples if sample.label is not None]
