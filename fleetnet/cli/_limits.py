"""Settings of what a detector keeps of all that it finds, of the verbs that have them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from ._settings import About

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

KEYS = ("max_objects", "nms", "score", "only")


@dataclass(frozen=True, kw_only=True)
class DetectorLimits:
    max_objects: int | None = field(
        default=None,
        metadata=About(
            help="detectors: objects of a picture that are kept, the best",
            usual="100",
            kind=PositiveInt,
        ),
    )
    nms: float | None = field(
        default=None,
        metadata=About(
            help="detectors: overlap (IoU) of two boxes of a class from which the less certain is "
            "dropped",
            usual="of the task; ssd and maskrcnn 0.5, yolo 0.65",
            kind=ClosedUnitInterval,
        ),
    )
    score: float | None = field(
        default=None,
        metadata=About(help="detectors: lowest score that is kept", kind=ClosedUnitInterval),
    )
    only: list[str] | None = field(
        default=None,
        metadata=About(
            help="detectors: only this class; may be given several times",
            repeated=True,
            metavar="CLASS",
        ),
    )

    def to_dict(self) -> dict[str, object]:
        """As `deploy.predictor.load` and `export` take them; None where nothing was given."""
        return {
            "max_objects": self.max_objects,
            "nms": self.nms,
            "score": self.score,
            "only": self.only,
        }


def add_limits(parser: "ArgumentParser", score: str) -> None:
    """The options; `score` is the help of --score."""
    parser.add_argument(
        "--max-objects",
        type=PositiveInt,
        help="detectors: objects of a picture that are kept, the best (default: 100)",
    )
    parser.add_argument(
        "--nms", type=ClosedUnitInterval,
        help="detectors: overlap (IoU) of two boxes of a class from which the less certain is "
             "dropped (default: of the task; ssd and maskrcnn 0.5, yolo 0.65)",
    )  # fmt: skip
    parser.add_argument("--score", type=ClosedUnitInterval, help=score)
    parser.add_argument(
        "--only",
        action="append",
        metavar="CLASS",
        help="detectors: only this class; may be given several times",
    )


def limits(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that were given, as `deploy.predictor.load` and `export` take them."""
    return {key: given[key] for key in KEYS if given.get(key) is not None}
