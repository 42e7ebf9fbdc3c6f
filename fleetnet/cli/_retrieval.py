"""`fleetnet eval --eval-mode retrieval`: recall and mAP by the features of a checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError
from ._arguments import flag
from ._settings import About

if TYPE_CHECKING:
    from ..data import Split
    from ..deploy.predictor import Predictor
    from ..inputs.dataset import Batch
    from ..training.log import Result
    from ._data import Reading

EXAMPLE = "fleetnet eval --model RUN --data photos/ --eval-mode retrieval"


@dataclass(frozen=True, kw_only=True)
class Searched:
    """Settings of what is evaluated."""

    eval_mode: Literal["task", "retrieval"] = field(
        default="task",
        metadata=About(
            help="the answers of the task, or retrieval: whether the pictures most like one, by "
            "the features of a checkpoint, are of its class"
        ),
    )
    gallery: str | None = field(
        default=None,
        metadata=About(
            help="retrieval: what is searched, a folder, a list, or a split of --data",
            usual="the pictures themselves, each without itself",
        ),
    )
    recall_at: str | None = field(
        default=None,
        metadata=About(help="retrieval: first so many that one has to be right of", usual="1,5"),
    )

    def check(self, unread: dict[str, object]) -> None:
        """`UsageError` for settings that are given and have no use in this mode; `unread` by retrieval."""
        if self.eval_mode == "task":
            unread = {"gallery": self.gallery, "recall_at": self.recall_at}
        names = [flag(name) for name, value in unread.items() if value not in (None, [])]
        if names:
            other = "retrieval" if self.eval_mode == "task" else "task"
            raise UsageError(
                f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} read with --eval-mode "
                f"{other}; it is {self.eval_mode}. Example: {EXAMPLE}"
            )


def gallery_of(where: str, data: str, reading: "Reading") -> "Split":
    """The pictures of a split of `data`, or of other data."""
    from .. import data as formats

    if where in formats.SPLITS:
        return formats.load(data, where, reading.format, "label", *reading.elsewhere)
    return formats.load(where, None, None, "label")


def with_both_classes(queries: "Split", gallery: "Split") -> tuple["Split", "Split"]:
    """Both with the classes of both, by name: a network may never have learned any of them."""
    from ..data._names import by_name

    classes = list(dict.fromkeys([*queries.classes, *gallery.classes]))
    return by_name(queries, classes, "the queries"), by_name(gallery, classes, "the gallery")


def retrieve(
    predictor: "Predictor",
    queries: "Iterable[Batch]",
    gallery: "Iterable[Batch] | None",
    classes: list[str],
    recall_at: str | None,
) -> "Result":
    """The figures of retrieval, of batches that the queries and the gallery are read in."""
    from ..training.retrieval import RECALL_AT, embedded, parse_recall_at, retrieval
    from ._show import say

    ks = parse_recall_at(recall_at) if recall_at else RECALL_AT
    embed = predictor.check_embeds()
    asked = embedded(embed, queries, say)
    searched = None if gallery is None else embedded(embed, gallery, say)
    return retrieval(asked, searched, classes, ks)
