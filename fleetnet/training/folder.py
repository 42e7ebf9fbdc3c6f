"""The names of the files in a run folder, and what it says of where it was started."""

import hashlib
from pathlib import Path
from typing import TypedDict

from ..reading import SMALL, from_json, read_text
from .config import TrainConfig

BEST = "best.safetensors"  # the best epoch's weights
LAST = "last.safetensors"  # raw weights of the last epoch
AVERAGE = "ema.safetensors"  # averaged weights of the last epoch
# the whole result of the best epoch, with what the metric knows of each class
DETAILS = "best.json"
LOG = "log.jsonl"  # a line for each epoch
CONFIG = "config.yaml"  # the settings, resolved
ENVIRONMENT = "environment.json"  # versions, command, and where the data were
STATE = "state/trainer.pt"  # what is needed to go on
# at the end of CONFIG, so that half of it does not pass for all
HASHED = "# sha256 of the lines above: "


class Environment(TypedDict, total=False):
    """ENVIRONMENT: where and by what a run was started."""

    python: str
    platform: str
    command: list[str]
    folder: str  # the working folder
    versions: dict[str, str]
    launcher: str  # the process of torchrun that began the run, where one did
    from_python: list[str]  # the parts that no setting names
    data_path: str
    data_from_run: str  # the same, seen from the run folder
    # Where images and masks were that lie apart from their annotations.
    images_from_run: str
    masks_from_run: str


def config_text(config: TrainConfig) -> str:
    """CONFIG: all settings, and a hash of them."""
    import yaml

    text = yaml.safe_dump({**config.to_dict(), "size": list(config.size)}, sort_keys=False)
    return f"{text}{HASHED}{hashlib.sha256(text.encode()).hexdigest()}\n"


def environment_of(run: Path) -> Environment:
    """ENVIRONMENT of a run; empty where it cannot be read: it is a record, and nothing else."""
    try:
        environment: Environment = from_json(read_text(run / ENVIRONMENT, SMALL))
    except (OSError, ValueError):
        return {}
    return environment if isinstance(environment, dict) else {}
