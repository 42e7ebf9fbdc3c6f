"""Which class was taken for which: counts of (truth, prediction), and what follows from them for each class.

Up to DENSE classes the counts are one matrix. Beyond, a matrix would be far larger than what it
counts (20,000 classes: 3 GB), so that only the pairs that occur are kept.

A figure over nothing is None, never 0 or 100: the recall of a class without truth, the precision of
one that is never predicted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import Result

DENSE = 1000  # classes up to which the counts are a matrix: 8 MB
WAITING = 1 << 20  # pairs that are kept as they come before they are counted
LISTED = 100  # classes up to which the whole matrix is part of a result
CONFUSED = 50  # pairs of classes that a result names at most
NAMED = 10  # classes that a note names at most


class Pairs:
    """Counts of (truth, prediction), both class indices."""

    def __init__(self, classes: int):
        self.classes = classes
        self._matrix = (
            torch.zeros(classes * classes, dtype=torch.int64) if classes <= DENSE else None
        )
        # of the pairs counted so far: truth * classes + prediction
        self._codes = torch.zeros(0, dtype=torch.int64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[Tensor] = []
        # pairs in it; to add them up at each batch would take longer with each batch
        self._count_waiting = 0

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Count class indices (n,) int64 of the truth with those that were predicted."""
        codes = truth * self.classes + predicted
        if self._matrix is None:
            self._waiting.append(codes)
            self._count_waiting += len(codes)
            if self._count_waiting > WAITING:
                self._fold()
        elif len(codes) < len(self._matrix):
            self._matrix.index_add_(0, codes, torch.ones_like(codes))
        else:
            self._matrix += codes.bincount(minlength=len(self._matrix))

    def join(self, other: "Pairs") -> None:
        """Add the counts of another one of as many classes."""
        truth, predicted, counts = other.counted()
        codes = truth * self.classes + predicted
        if self._matrix is None:
            self._add(codes, counts)
        else:
            self._matrix.index_add_(0, codes, counts)

    def _fold(self) -> None:
        """Add what waits to the counted pairs."""
        self._add(*torch.cat(self._waiting).unique(return_counts=True))
        self._waiting, self._count_waiting = [], 0

    def _add(self, codes: Tensor, counts: Tensor) -> None:
        both = torch.cat([self._counts, counts])
        self._codes, place = torch.cat([self._codes, codes]).unique(return_inverse=True)
        self._counts = torch.zeros_like(self._codes).index_add_(0, place, both)

    def counted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Truth (k,), prediction (k,) and count (k,) of the pairs that occur, in the order of the classes."""
        if self._matrix is not None:
            codes = self._matrix.nonzero()[:, 0]
            counts = self._matrix[codes]
        else:
            if self._waiting:
                self._fold()
            codes, counts = self._codes, self._counts
        return codes // self.classes, codes % self.classes, counts

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each class (classes,): how often it was right, was the truth, was predicted."""
        truth, predicted, counts = self.counted()
        zero = torch.zeros(self.classes, dtype=torch.int64)
        right = truth == predicted
        return (
            zero.index_add(0, truth[right], counts[right]),
            zero.index_add(0, truth, counts),
            zero.index_add(0, predicted, counts),
        )

    def figures(self) -> Result:
        """ "confusion": the matrix [truth][prediction] as nested lists, of up to LISTED classes; "confused": the pairs
        of different classes that occur most, at most CONFUSED, as [truth, prediction, count] with
        class indices."""
        truth, predicted, counts = self.counted()
        wrong = truth != predicted
        order = counts[wrong].argsort(descending=True, stable=True)[:CONFUSED]
        confused = torch.stack([truth[wrong], predicted[wrong], counts[wrong]], 1)[order].tolist()
        if self.classes > LISTED:
            return {"confused": confused}
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        matrix[truth, predicted] = counts
        return {"confusion": matrix.tolist(), "confused": confused}


def scores(right: int, truth: int, predicted: int) -> dict[str, float | None]:
    """Precision, recall and F1 in percent; None over nothing: no prediction, no truth."""
    return {
        "precision": 100 * right / predicted if predicted else None,
        "recall": 100 * right / truth if truth else None,
        "F1": 200 * right / (truth + predicted) if truth else None,
    }


def by_class(
    classes: Sequence[str], counted: str, totals: tuple[Tensor, Tensor, Tensor]
) -> list[Result]:
    """For each class its name, how often it is the truth (under the word `counted`), and its `scores`."""
    rows = zip(classes, *(total.tolist() for total in totals), strict=True)
    return [
        {"class": name, counted: truth, "right": right, **scores(right, truth, predicted)}
        for name, right, truth, predicted in rows
    ]


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None if there is none."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def without_truth(rows: Sequence[Result], counted: str, thing: str) -> list[str]:
    """A note that names the classes that nothing was measured on; `thing` is what there is none of."""
    absent = [row["class"] for row in rows if not row[counted]]
    if not absent:
        return []
    more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
    return [
        f"{len(absent)} of {len(rows)} classes have no {thing} here, so no figures: "
        f"{', '.join(absent[:NAMED])}{more}"
    ]
