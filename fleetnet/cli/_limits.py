"""Settings of what a detector keeps of all that it finds, of the verbs that have them."""

from dataclasses import dataclass, field

from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from ._settings import About


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
