"""Masks as COCO's run-length encoding: {"size": [height, width], "counts": str}.

As pixels, the masks of a whole data set would not fit in memory.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

Rle = dict[str, object]


def encode(masks: Tensor) -> list[Rle]:
    """Masks (n, height, width) bool -> RLE of each."""
    from faster_coco_eval.core import mask

    if not len(masks):
        return []
    # (n, width, height): the encoding goes by columns.
    columns = masks.detach().cpu().byte().transpose(1, 2).contiguous().numpy()
    return [
        {"size": rle["size"], "counts": rle["counts"].decode()}
        for rle in mask.encode(columns.transpose(2, 1, 0))
    ]


def encode_enlarged(mask: Tensor, size: tuple[int, int]) -> Rle:
    """A mask (rows, columns) bool -> the RLE of the same at `size` (height, width), nearest pixels.

    Without the pixels of the large mask: where a column of the mask changes, each column of the
    large one does.
    """
    from faster_coco_eval.core import mask as coco

    (height, width), (rows, columns) = size, mask.shape
    small = mask.detach().cpu().numpy()
    # the first row of the large mask that shows each row
    starts = -(-np.arange(rows + 1) * height // rows)
    # the column that each column of the large mask shows
    shown = np.arange(width) * columns // width
    edges = np.diff(small.astype(np.int8), axis=0, prepend=0, append=0) != 0  # (rows + 1, columns)
    changes = {
        column: starts[np.flatnonzero(edges[:, column])]
        for column in np.flatnonzero(small.any(0)).tolist()
    }
    parts = [
        changes[column] + i * height for i, column in enumerate(shown.tolist()) if column in changes
    ]
    at, times = np.unique(np.concatenate([*parts, np.empty(0, np.int64)]), return_counts=True)
    at = at[times == 1]  # one column ends where the next begins
    counts = np.diff(at, prepend=0, append=height * width)
    # the mask ends with the last pixel
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    (rle,) = coco.frPyObjects(
        [{"size": [height, width], "counts": counts.astype(int).tolist()}], height, width
    )
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def area(rle: Mapping[str, object]) -> float:
    """Pixels of a mask."""
    from faster_coco_eval.core import mask

    return float(mask.area(rle))
