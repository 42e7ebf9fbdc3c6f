"""Which kind of annotation data have, where nobody says which is wanted."""

from ..errors import DataError
from ..find import names
from . import find
from ._recognition import NoFormat, format_of, no_format

# Annotation files say more of a picture than the folder that it lies in.
IN_TURN = ("boxes", "masks", "semantic", "label")


def targets_of(root: str, format: str | None = None, masks: str | None = None) -> list[str]:
    """The kinds of annotation that data can be read with, of `TARGETS`, the likeliest first.

    `masks` is a folder of label maps or masks that lie elsewhere. Raises `DataError` where nothing
    fits, and `UsageError` for an unknown format.
    """
    if format is not None:
        able = find(format).TARGETS
        return [target for target in IN_TURN if target in able]
    if masks is not None:
        return ["semantic", "masks", "boxes"]
    certain: list[str] = []
    fallback: list[str] = []
    refusals: list[DataError] = []
    for target in IN_TURN:
        try:
            name, _ = format_of(root, None, target)
        except DataError as error:
            refusals.append(error)
            continue
        (fallback if find(name).FALLBACK else certain).append(target)
    if all(isinstance(error, NoFormat) for error in refusals) and not certain and not fallback:
        raise NoFormat(no_format(root, names("data")))
    if not certain and not fallback:
        raise next(error for error in refusals if not isinstance(error, NoFormat))
    return certain or fallback
