"""The public names are a list, and naming them costs nothing until one is used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fleetnet

NAMES = [
    "DataError", "ExportError", "FleetnetError", "ModelError", "Preprocess", "Sample", "TrainConfig", "UsageError",
    "create_model", "evaluate", "export", "fit", "list_models", "load", "load_data", "load_weights", "reparameterize",
    "replay",
]  # fmt: skip
SLOW = (
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "timm",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "accelerate",
    "yaml",
)

LOOK = """
import json, sys, time
start = time.process_time()
import fleetnet
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""


def test_the_public_names_are_these() -> None:
    assert fleetnet.__all__ == NAMES
    assert dir(fleetnet) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(fleetnet, name)
    assert value.__name__ == ("load" if name == "load_data" else name)
    assert value.__doc__ or issubclass(value, fleetnet.FleetnetError)
    assert value.__module__.startswith("fleetnet.")
    assert getattr(fleetnet, name) is value


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'fleetnet' has no attribute 'creat_model'"):
        fleetnet.creat_model  # noqa: B018


def test_importing_loads_nothing_slow() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(found.stdout)
    assert not [name for name in SLOW if name in modules]
    assert [name for name in modules if name.startswith("fleetnet")] == [
        "fleetnet",
        "fleetnet.errors",
        "fleetnet.synonyms",
    ]
    assert seconds < 0.2


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    assert fleetnet.__version__ == project["version"]
