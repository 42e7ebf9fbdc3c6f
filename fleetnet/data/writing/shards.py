"""Shards: tar files in WebDataset's naming, of at most 10,000 samples and 1 GB each.

FOLDER/train-000000.tar  FOLDER/train-000001.tar  FOLDER/dataset.json      (shards-000000.tar without splits)
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .. import Sample, Split
from .._shard_writer import write_into
from ._album import Album
from ._losses import EVERYTHING

FORMAT = "shards"
WRITES = "train-000000.tar, ... and dataset.json"
TARGETS: tuple[str, ...] = ("boxes", "masks", "semantic", "label", "tags")
HOLDS: tuple[str, ...] = EVERYTHING


def write(splits: Mapping[str, Split], folder: Path, album: Album) -> None:
    readable = {
        name: replace(split, samples=[one for one in split.samples if _has_map(one, album)])
        for name, split in splits.items()
    }

    def written(sample: Sample, member: str) -> None:
        album.was_put(sample, f"{folder}/{member}")

    write_into(readable, folder, written=written)


def _has_map(sample: Sample, album: Album) -> bool:
    """Whether a sample has its label map, where it is one of these."""
    return sample.semantic is None or album.label_map(sample) is not None
