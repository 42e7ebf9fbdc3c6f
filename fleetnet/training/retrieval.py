"""Retrieval by the features of a network: do pictures that are most like one show the same?

A picture is the direction of its pooled feature, so that the cosine says how much alike two are.
Each picture that is a query is compared with all of a gallery, or of its own split:

    recall@k   share of the queries that have a picture of their class among the first k
    mAP        mean over the queries of the average precision, as scikit-learn has it

Unusual here: a picture is no answer to itself, wherever else it lies. Two are the same if the
network is shown the same pixels. Of pictures that are equally like a query, those of other classes
come first, so that a network that tells nothing apart has a recall of 0.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, ModelError, UsageError
from ..inputs.dataset import Batch
from ..inputs.workers import Say, patient
from ..processes import by_first, gathered
from ..tasks import Model
from .distributed import beat
from .log import Result

RECALL_AT = (1, 5)
EQUAL = 1e-9  # cosines that differ by less are equal: sums of float64 in another order do
AT_ONCE = 1 << 21  # cosines in memory, which take 100 MB with what is computed of them
NAMED = 10  # classes that a note names at most


@dataclass(frozen=True)
class Embedded:
    """Pictures by the features of a network."""

    directions: Tensor  # (N, C) float64, of length 1; 0 where a feature is 0
    labels: Tensor  # (N,) int64
    pixels: list[bytes]  # a hash of what the network is shown of each
    indices: list[int]  # of the samples in their split
    skipped: list[str]  # a line for each file that could not be read

    def __len__(self) -> int:
        return len(self.labels)


class Ranked(NamedTuple):
    """What a search finds for some queries."""

    before: Tensor  # (n,) int64: of other classes, at least as like as the first of the own
    precision: Tensor  # (n,) float64: average precision, 0 to 1
    answers: Tensor  # (n,) int64: how many of the gallery are of the class
    copies: int  # pairs of a query and itself


@torch.no_grad()
def embedded(
    embed: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    on_wait: Say | None = None,
    device: torch.device | None = None,
) -> Embedded:
    """All pictures of batches by what `embed` makes of images (N, C, H, W): features (N, D).

    Raises `ModelError` for features that are not finite.
    """
    directions, labels = [torch.zeros(0)], [torch.zeros(0, dtype=torch.int64)]
    pixels: list[bytes] = []
    indices: list[int] = []
    skipped: list[str] = []
    for batch in patient(batches, on_wait):
        beat()
        skipped += batch.skipped
        if len(batch.images) == 0:
            continue
        pixels += [_hash(image) for image in batch.images]
        indices += batch.indices
        labels.append(batch.targets["label"])
        batch = batch if device is None else batch.on(device)
        features = embed(batch.inputs().contiguous()).double().cpu()
        if not features.isfinite().all():
            raise ModelError(
                "the network's features have NaN or infinity, so nothing can be compared: its "
                "weights are damaged or diverged"
            )
        directions.append(F.normalize(features))
    return Embedded(_joined(directions), torch.cat(labels), pixels, indices, skipped)


def _hash(image: Tensor) -> bytes:
    return blake2b(image.contiguous().numpy().tobytes(), digest_size=16).digest()


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """Parts (n, C) one after the other, (N, C); a part without a row has no C."""
    with_rows = [part for part in rows if len(part)]
    return torch.cat(with_rows) if with_rows else torch.zeros(0, 0, dtype=torch.float64)


def joined(parts: Sequence[Embedded]) -> Embedded:
    """What all processes have, in the order of the samples."""
    indices = [index for part in parts for index in part.indices]
    pixels = [one for part in parts for one in part.pixels]
    order = sorted(range(len(indices)), key=lambda place: indices[place])
    return Embedded(
        _joined([part.directions for part in parts])[order],
        torch.cat([part.labels for part in parts])[order],
        [pixels[place] for place in order],
        [indices[place] for place in order],
        [line for part in parts for line in part.skipped],
    )


def evaluate_retrieval(
    model: Model,
    batches: Iterable[Batch],
    classes: Sequence[str],
    on_wait: Say | None = None,
    device: torch.device | None = None,
) -> Result:
    """`retrieval` among the pictures of the batches of all processes; the mode is restored."""
    training = model.training
    model.eval()
    try:
        mine = embedded(model.embed, batches, on_wait, device)
    finally:
        model.train(training)
    of_all = gathered(mine)
    return by_first(lambda: retrieval(joined(of_all), None, classes))


def retrieval(
    queries: Embedded,
    gallery: Embedded | None,
    classes: Sequence[str],
    recall_at: Sequence[int] = RECALL_AT,
) -> Result:
    """Recall at each of `recall_at` and mAP in percent, of queries in a gallery, or in each other.

    Labels of both index `classes`. Queries of classes that the gallery has no other picture of are
    left out and counted. "by_class" has the classes that there are queries of. A recall at as many
    as there are to choose from is None. Raises `DataError` where no query is left, and where the
    first recall is None.
    """
    alone = gallery is None
    gallery = queries if gallery is None else gallery
    for name, part in (("query", queries), ("picture of the gallery", gallery)):
        if not len(part):
            first = part.skipped[0] if part.skipped else "none given"
            raise DataError(f"no {name} could be read; the first: {first}")
    choices = len(gallery) - alone
    if recall_at[0] >= choices:
        raise DataError(f"nothing to measure recall{recall_at[0]} on: {_no_choice(choices)}")
    ranked = search(queries, gallery)
    measured = ranked.answers > 0
    if not measured.any():
        raise DataError(
            f"none of the {len(queries)} queries has a picture of its class in the gallery, but "
            "itself: nothing to measure"
        )
    before, precision = ranked.before[measured], ranked.precision[measured]
    figures = {
        f"recall{k}": 100 * (before < k).double().mean().item() if k < choices else None
        for k in recall_at
    }
    skipped = queries.skipped if alone else [*queries.skipped, *gallery.skipped]
    return {
        **figures,
        "mAP": 100 * precision.mean().item(),
        "queries": len(precision),
        "gallery": len(gallery),
        "left_out": len(queries) - len(precision),
        "by_class": _by_class(classes, queries.labels[measured], before, precision, recall_at[0]),
        "notes": [
            *(
                f"{name} is not measured: {_no_choice(choices)}"
                for name, figure in figures.items()
                if figure is None
            ),
            *_left_out(classes, queries.labels[~measured]),
            *_copies(ranked.copies - (len(queries) if alone else 0)),
        ],
        "skipped": skipped,
    }


def search(queries: Embedded, gallery: Embedded, at_once: int = AT_ONCE) -> Ranked:
    """What each query finds, for some of them at a time: `at_once` cosines are in memory."""
    numbers = {pixels: i for i, pixels in enumerate({*queries.pixels, *gallery.pixels})}
    asking, there = (
        torch.tensor([numbers[pixels] for pixels in part.pixels]) for part in (queries, gallery)
    )
    blocks: list[Ranked] = []
    # a row is a query
    for rows in _slices(len(queries), max(1, at_once // len(gallery))):
        beat()
        # (n, M), in steps of EQUAL
        alike = (queries.directions[rows] @ gallery.directions.T / EQUAL).round_()
        others = asking[rows, None] != there  # (n, M): not the query itself
        right = (queries.labels[rows, None] == gallery.labels) & others
        blocks.append(_ranked(alike, right, others))
    before, precision, answers, copies = zip(*blocks, strict=True)
    return Ranked(torch.cat(before), torch.cat(precision), torch.cat(answers), sum(copies))


def _slices(count: int, rows: int) -> Iterator[slice]:
    for start in range(0, count, rows):
        yield slice(start, start + rows)


def _ranked(alike: Tensor, right: Tensor, others: Tensor) -> Ranked:
    """What queries find; of (n, M) each: how much alike, whether right, whether it is another."""
    alike = alike.masked_fill(~others, -torch.inf)  # behind all others
    best = alike.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    before = ((alike >= best) & others & ~right).sum(1)
    sorted_alike, order = alike.sort(descending=True)
    right = right.gather(1, order)
    places = torch.arange(1, alike.shape[1] + 1)
    precision = right.cumsum(1) / places.double()  # (n, M), among the first 1, 2, ...
    # Pictures that are equally like a query come together: the precision of each is that at the
    # last of them.
    is_last = torch.ones_like(right)
    is_last[:, :-1] = sorted_alike[:, 1:] != sorted_alike[:, :-1]
    last = torch.where(is_last, places - 1, alike.shape[1]).flip(1).cummin(1).values.flip(1)
    answers = right.sum(1)
    summed = (precision.gather(1, last) * right).sum(1)
    return Ranked(before, summed / answers.clamp(min=1), answers, int((~others).sum()))


def _by_class(
    classes: Sequence[str], labels: Tensor, before: Tensor, precision: Tensor, k: int
) -> list[Result]:
    """Of each class of queries: how many, recall at `k`, and their mean average precision."""
    rows = []
    for label in labels.unique().tolist():
        of_class = labels == label
        rows.append(
            {
                "class": classes[label],
                "images": int(of_class.sum()),
                f"recall{k}": 100 * (before[of_class] < k).double().mean().item(),
                "AP": 100 * precision[of_class].mean().item(),
            }
        )
    return rows


def _no_choice(choices: int) -> str:
    return f"there are {choices} pictures to choose from"


def _left_out(classes: Sequence[str], labels: Tensor) -> list[str]:
    """A note that names the classes of queries that have nothing to find."""
    if not len(labels):
        return []
    counts = Counter(classes[label] for label in labels.tolist())
    names = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:NAMED])
    more = f" and {len(counts) - NAMED} more" if len(counts) > NAMED else ""
    return [
        f"{len(labels)} queries are left out, since the gallery has no other picture of their "
        f"class: {names}{more}"
    ]


def _copies(pairs: int) -> list[str]:
    """A note on queries that lie in the gallery too."""
    if not pairs:
        return []
    return [f"{pairs} pictures of the gallery have the pixels of a query, and are no answer to it"]


def parse_recall_at(text: str) -> tuple[int, ...]:
    """(1, 5, 10) from "1,5,10"."""
    try:
        ks = [int(part) for part in text.split(",")]
    except ValueError:
        ks = []
    if not ks or ks != sorted(set(ks)) or ks[0] < 1:
        raise UsageError(
            f"recall_at is {text!r}; allowed: rising whole numbers from 1 on, such as 1,5,10"
        )
    return tuple(ks)
