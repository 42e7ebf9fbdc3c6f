"""fleetnet: train a mobile vision network on your images, collapse it to its deploy form, and ship it with proof.

    model = fleetnet.create_model("repvit_m0_9", classes=10, weights="default")
    data = {split: fleetnet.load_data("photos/", split) for split in ("train", "val")}
    fleetnet.fit(model, data["train"], data["val"], config, "runs/x")
    fleetnet.export("runs/x", "onnx", "model.onnx")           collapsed, verified, then handed over
    fleetnet.load("model.onnx").predict(["a.jpg"])            [[("cat", 0.98), ...]]

These names are the public ones. They are loaded when first used: `import fleetnet` imports neither
torch nor anything else that is slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import DataError, ExportError, FleetnetError, ModelError, UsageError

if TYPE_CHECKING:
    from .data import Sample
    from .data import load as load_data
    from .deploy.export import export
    from .deploy.predictor import load
    from .preprocess import Preprocess
    from .reparam import reparameterize
    from .training.config import TrainConfig
    from .training.evaluate import evaluate
    from .training.fit import fit
    from .training.replay import replay
    from .weights import create_model, list_models, load_weights

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "ExportError",
    "FleetnetError",
    "ModelError",
    "Preprocess",
    "Sample",
    "TrainConfig",
    "UsageError",
    "create_model",
    "evaluate",
    "export",
    "fit",
    "list_models",
    "load",
    "load_data",
    "load_weights",
    "reparameterize",
    "replay",
]

_HOME = {  # of each name that is loaded when first used: its module, and its name there where that differs
    "Preprocess": "preprocess",
    "Sample": "data",
    "TrainConfig": "training.config",
    "create_model": "weights",
    "evaluate": "training.evaluate",
    "export": "deploy.export",
    "fit": "training.fit",
    "list_models": "weights",
    "load": "deploy.predictor",
    "load_data": "data:load",
    "load_weights": "weights",
    "reparameterize": "reparam",
    "replay": "training.replay",
}
# for `fleetnet.data.from_samples`, `fleetnet.parc.replace` and `fleetnet.pconv.replace`
_MODULES = "data", "parc", "pconv"


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _HOME[name].partition(":")
    value = getattr(import_module(f".{module}", __name__), there or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
