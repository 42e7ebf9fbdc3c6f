"""Which found objects are right at an IoU of 0.5: precision, recall and F1 at any score, and what was taken for what.

Found objects are matched with those of the truth as COCO does it (arXiv:1405.0312): the most
certain first, each with the free object of its class that it overlaps most; one that overlaps only
a crowd is neither right nor wrong. Because the most certain come first, leaving out all below some
score changes nothing above it: one matching serves any score. Unlike COCO's AP, which looks at 100
objects a picture and class, all that was found counts.
"""

from collections.abc import Sequence

import numpy as np
import torch

from . import Result
from ._counts import Pairs, by_class, scores, without_truth

IOU = 0.5
NONE, CROWD = -1, -2  # in place of a truth: there is none, it is a crowd
STEPS = 101  # scores from 0 to 1 of a curve
LISTED = 100  # classes up to which each has a curve of its own


def matched(overlaps: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """The object (n,) that each found one is matched with, or NONE, of overlaps (n, m), the most certain first.

    `crowd` (m,) tells the objects that are crowds: any number is matched with one, where no other
    object is left.
    """
    match = np.full(len(overlaps), NONE)
    if not overlaps.size:
        return match
    free = ~crowd
    for i in np.flatnonzero((overlaps >= IOU).any(1)):
        near = overlaps[i] >= IOU
        candidates = np.flatnonzero(near & free)
        if not len(candidates):
            candidates = np.flatnonzero(near & crowd)
        if len(candidates):
            candidates = candidates[::-1]  # of equal overlaps COCO takes the last
            match[i] = candidates[overlaps[i, candidates].argmax()]
            free[match[i]] = False  # a crowd was not free before
    return match


class Matches:
    """Found objects of all pictures added, each with its score, its class, and what it was matched with."""

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        # objects of each class that are no crowd
        self._truths = np.zeros(len(self.classes), np.int64)
        # For each found object: score, class, 1 if it is right, 0 if wrong, CROWD if neither; and
        # the class of the object it was matched with whatever the class, NONE or CROWD.
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self,
        overlaps: np.ndarray,
        score: np.ndarray,
        label: np.ndarray,
        truth: np.ndarray,
        crowd: np.ndarray,
    ) -> None:
        """One picture: overlaps (n, m) of n found objects with m true ones, by COCO's IoU, which knows of crowds;
        score (n,) and label (n,) of the found ones, label (m,) and crowd (m,) bool of the true
        ones."""
        self._truths += np.bincount(truth[~crowd], minlength=len(self.classes))
        order = np.argsort(-score, kind="stable")
        overlaps, score, label = (
            overlaps.reshape(len(score), len(truth))[order],
            score[order],
            label[order],
        )
        own = matched(np.where(label[:, None] == truth, overlaps, 0.0), crowd)
        any_class = matched(overlaps, crowd)
        # One more value, so that NONE (-1) is an index too.
        is_crowd, classes = np.append(crowd, False), np.append(truth, NONE)
        right = np.where(is_crowd[own], CROWD, own != NONE)
        taken = np.where(is_crowd[any_class], CROWD, classes[any_class])
        self._rows.append((score, label, right, taken))

    def join(self, other: "Matches") -> None:
        self._truths += other._truths
        self._rows += other._rows

    def result(self) -> Result:
        """Figures at the score where the F1 of all objects together is best, in percent; None over nothing.

        "score" is that score, from 0 to 1: what is found with at least this is kept. "by_class"
        has, in the order of the classes, precision, recall and F1 there, and "best_F1" at
        "best_score" of each class alone. "confusion" and "confused" are of all that is found from
        this score on (see `Pairs.figures`), with one more class, the last, for nothing: as truth,
        what was found where nothing is; as prediction, what was not found. "curves" has lists over
        101 scores, and the best one.
        """
        empty = (np.zeros(0), *(np.zeros(0, np.int64) for _ in range(3)))
        score, label, right, taken = (
            np.concatenate(parts) for parts in zip(empty, *self._rows, strict=True)
        )
        counts = right != CROWD
        truths = int(self._truths.sum())
        _, best = best_score(score[counts], right[counts], truths)
        kept = counts & (score >= (np.inf if best is None else best))
        many = len(self.classes)
        of_label = (
            np.bincount(label[kept & (right == 1)], minlength=many),
            np.bincount(label[kept], minlength=many),
        )
        totals = (
            torch.from_numpy(of_label[0]),
            torch.from_numpy(self._truths),
            torch.from_numpy(of_label[1]),
        )
        rows = by_class(self.classes, "objects", totals)
        groups = _groups(label, many)
        for row, group in zip(rows, groups, strict=True):
            some = group[counts[group]]
            row["best_F1"], row["best_score"] = best_score(score[some], right[some], row["objects"])
        together = scores(int(of_label[0].sum()), truths, int(kept.sum()))
        notes = without_truth(rows, "objects", "object")
        if truths and best is None:
            notes.append("nothing that was found is right, so there is no score of the best F1")
        return {
            "F1": together["F1"],
            "precision": together["precision"],
            "recall": together["recall"],
            "score": best,
            "by_class": rows,
            **self._confusion(score, label, taken, best),
            "curves": self._curves(score[counts], label[counts], right[counts], best),
            "notes": notes,
        }

    def _confusion(
        self, score: np.ndarray, label: np.ndarray, taken: np.ndarray, best: float | None
    ) -> Result:
        nothing = len(self.classes)
        kept = (taken != CROWD) & (score >= (np.inf if best is None else best))
        truth = np.where(taken[kept] == NONE, nothing, taken[kept])
        missed = self._truths - np.bincount(truth, minlength=nothing + 1)[:nothing]
        not_found = np.repeat(np.arange(nothing), missed)
        pairs = Pairs(nothing + 1)
        pairs.add(torch.from_numpy(truth), torch.from_numpy(label[kept]))
        pairs.add(torch.from_numpy(not_found), torch.full((len(not_found),), nothing))
        return pairs.figures()

    def _curves(
        self, score: np.ndarray, label: np.ndarray, right: np.ndarray, best: float | None
    ) -> Result:
        steps = np.linspace(0, 1, STEPS)
        # the best F1 may be a peak between two steps, and is what one looks for
        if best is not None:
            steps = np.unique(np.append(steps, best))
        curves = curve(score, right, int(self._truths.sum()), steps)
        if len(self.classes) <= LISTED:
            groups = _groups(label, len(self.classes))
            curves["F1_by_class"] = [
                curve(score[group], right[group], int(truths), steps)["F1"]
                for group, truths in zip(groups, self._truths, strict=True)
            ]
        return curves


def _groups(label: np.ndarray, many: int) -> list[np.ndarray]:
    """For each class the indices of the found objects of it."""
    order = np.argsort(label, kind="stable")
    return np.split(order, np.cumsum(np.bincount(label, minlength=many))[:-1])


def best_score(
    score: np.ndarray, right: np.ndarray, truths: int
) -> tuple[float | None, float | None]:
    """The best F1, in percent, and from which score on objects are to be kept for it.

    score (n,) and right (n,), 1 or 0, of what was found, `truths` the number of objects. The score
    is halfway to the next lower one, so that rounding does not move what is kept. (0, None) where
    nothing is right, (None, None) where there is no object.
    """
    if not truths:
        return None, None
    if not (right == 1).any():
        return 0.0, None
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(right[order])
    # of equal scores: all are kept, or none
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    f1 = 2 * hits[last] / (last + 1 + truths)
    best = int(f1.argmax())
    lowest = score[last[best]]
    next_lower = score[last[best] + 1] if last[best] + 1 < len(score) else lowest
    return 100 * float(f1[best]), float((lowest + next_lower) / 2)


def curve(score: np.ndarray, right: np.ndarray, truths: int, steps: np.ndarray) -> Result:
    """ "score", "precision", "recall" and "F1" (percent; None over nothing) where all of at least a score are kept.

    `steps` are these scores, rising.
    """
    order = np.argsort(score, kind="stable")
    # hits[k]: of the k most certain
    rising, hits = (score[order], np.append(0, np.cumsum(right[order][::-1])))
    kept = len(rising) - np.searchsorted(rising, steps, side="left")
    rows = [scores(int(hits[k]), truths, int(k)) for k in kept]
    return {
        "score": [round(step, 4) for step in steps.tolist()],
        **{name: [row[name] for row in rows] for name in rows[0]},
    }
