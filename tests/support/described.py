"""Small checkpoints and exported files, whose descriptions are recorded in `tests/golden/described`.

    python tests/support/described.py       # write the recordings again; only where the format changes

Each function writes one file into a folder. `tests/test_described.py` compares what it says of
itself with the recording, and reads the recording back into a file whose weights are random: so
files that were written before are read, and files that are written now can be read by older
versions.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "golden" / "described"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # run as a script

from support.tiny_backbone import Tiny  # noqa: E402
from zoo import randomize  # noqa: E402

from fleetnet import checkpoint  # noqa: E402
from fleetnet.backbones import fasternet  # noqa: E402
from fleetnet.deploy.export import export  # noqa: E402
from fleetnet.geometry import Place  # noqa: E402
from fleetnet.inputs.dataset import Batch  # noqa: E402
from fleetnet.int8._prepared import prepare  # noqa: E402
from fleetnet.int8._search import quantize  # noqa: E402
from fleetnet.preprocess import Preprocess  # noqa: E402
from fleetnet.reparam import reparameterize  # noqa: E402
from fleetnet.tasks import Option, build  # noqa: E402

Description = dict[str, Any]
CLASSES = ["café", "bus", "犬"]
SOURCE = {"weights": "hf-hub:timm/fasternet_t0.in1k", "license": "apache-2.0"}


# ---- checkpoints


def classification(path: Path) -> None:
    """As a training writes it: every key has a value, but for the ids of an annotation file."""
    options = {"mixing": "dwconv", "output_norm": True}
    model = build("fasternet_t0", 3, drop_path=0.1, output_stride=16, options=options)
    preprocess = Preprocess(
        (64, 96), crop=0.875, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
        channel_order="BGR", antialias=False, values=(0.0, 4095.0),
    )  # fmt: skip
    checkpoint.save(
        path,
        model,
        classes=CLASSES,
        preprocess=preprocess,
        settings={"data": "photos/", "lr": 0.05, "size": [64, 96], "mixup": None, "cache": True},
        metrics={"top1": 93.5, "top5": 100.0, "loss": None, "weights": "ema"},
        source=SOURCE,
    )


def ssd(path: Path) -> None:
    """Ids as in an annotation file; the score that was best on the validation set."""
    checkpoint.save(
        path,
        build("ssd/tiny", 3),
        classes=CLASSES,
        preprocess=Preprocess((80, 96), mode="stretch"),
        settings={"max_objects": 50, "nms": 0.55, "score": None},
        metrics={"mAP": 31.25, "AP50": 50.0, "score": 0.41, "weights": "raw"},
        source={"weights": "backbone.pth", "license": None},
        category_ids=[1, 17, 90],
    )


def yolo(path: Path) -> None:
    """Nothing to evaluate in the first epoch, so that the deciding figure is null; no source."""
    checkpoint.save(
        path,
        build("yolo/tiny", 3, options={"width": 0.25}),
        classes=CLASSES,
        preprocess=Preprocess((64, 64), mode="letterbox"),
        settings={"max_objects": 20, "nms": 0.6, "score": 0.1},
        metrics={"mAP": None, "weights": "raw"},
    )


def maskrcnn(path: Path) -> None:
    options = {"channels": 16, "hidden": 32, "proposals": 30, "anchor": 8}
    checkpoint.save(
        path,
        build("maskrcnn/tiny", 3, options=options),
        classes=CLASSES,
        preprocess=Preprocess((64, 96), mode="letterbox"),
        category_ids=[3, 2, 1],
    )


def deeplabv3_deploy(path: Path) -> None:
    """In deploy form, as `fleetnet reparam` writes it."""
    model = build("deeplabv3/fasternet_t0", 3, options={"channels": 16}).eval()
    preprocess = Preprocess((64, 64), mode="stretch")
    checkpoint.save(
        path,
        reparameterize(model, torch.zeros(1, 3, 64, 64)),
        classes=CLASSES,
        preprocess=preprocess,
        metrics={"mIoU": 61.5},
    )


# What version 0.1 did not write yet, and what another program wrote beside it.
ABSENT_BEFORE = ("category_ids", "size", "settings", "source")
OPTIONS_BEFORE: dict[str, Option] = {"classifier": "linear"}
ADDED_BY_OTHERS = {"comment": "kept as it is", "dataset": {"name": "photos", "pictures": [12, 3]}}


def version_0_1(path: Path) -> None:
    """As the first version wrote it: what the classifier is shows in the weights only."""
    model = build("timm/test_efficientnet", 3, options=OPTIONS_BEFORE)
    checkpoint.save(path, model, classes=CLASSES, preprocess=Preprocess((64, 64)))


def as_before(about: Description) -> Description:
    """The description of `version_0_1` as that version would have given it."""
    preprocess = {key: value for key, value in about["preprocess"].items() if key != "mode"}
    older = {key: value for key, value in about.items() if key not in (*ABSENT_BEFORE, "format")}
    return {**older, "preprocess": preprocess, "options": {}, **ADDED_BY_OTHERS}


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "classification": classification,
    "ssd": ssd,
    "yolo": yolo,
    "maskrcnn": maskrcnn,
    "deeplabv3_deploy": deeplabv3_deploy,
    "version_0_1": version_0_1,
}


# ---- exported files


def _small_classifier(folder: Path) -> Path:
    """A checkpoint of a tiny network, whose export takes a second."""
    torch.manual_seed(0)
    file = folder / "best.safetensors"
    checkpoint.save(
        file,
        randomize(build("tiny", 3), 1),
        classes=CLASSES,
        preprocess=Preprocess((64, 96), crop=0.875),
        settings={"lr": 0.05},
        metrics={"top1": 90.0, "weights": "raw"},
        source=SOURCE,
    )
    return file


def _small_detector(folder: Path) -> Path:
    torch.manual_seed(0)
    model = build("yolo/tiny", 3, options={"width": 0.25})
    anchors = {key: value.clone() for key, value in model.named_buffers() if "anchors" in key}
    randomize(model, 1).load_state_dict(anchors, strict=False)
    file = folder / "best.safetensors"
    checkpoint.save(
        file,
        model,
        classes=CLASSES,
        preprocess=Preprocess((64, 96), mode="letterbox"),
        settings={"max_objects": 20, "nms": 0.6, "score": None},
        metrics={"mAP": 12.5, "score": 0.35, "weights": "ema"},
        category_ids=[1, 17, 90],
    )
    return file


def onnx_classifier(path: Path) -> None:
    export(_small_classifier(path.parent), "onnx", path, classes=["a", "b", "c"])


def onnx_detector(path: Path) -> None:
    limits = {"max_objects": 10, "score": 0.05, "only": ["bus", "犬"]}
    export(_small_detector(path.parent), "onnx", path, limits=limits)


def onnx_embedded(path: Path) -> None:
    """The preprocessing and the decode are in the graph."""
    file = _small_detector(path.parent)
    export(file, "onnx", path, embed_preprocess=True, embed_decode=True, size=(64, 64))


def onnx_open(path: Path) -> None:
    """Number, height and width of the images are open."""
    export(_small_classifier(path.parent), "onnx", path, dynamic="batch,size")


def onnx_int8(path: Path) -> None:
    file = _small_classifier(path.parent)
    generator = torch.Generator().manual_seed(0)
    colors = torch.randn(16, 3, 1, 1, generator=generator)
    images = F.interpolate(colors + torch.randn(16, 3, 16, 24, generator=generator), (64, 96))
    labels = {"label": torch.arange(16) % 3}
    batch = Batch(images, labels, [], [*range(16)], [Place(64, 96)] * 16)
    prepared = prepare(file, images, [batch])
    quantize(prepared, "onnx", path, max_drop=100, facts={"source": "photos/"})


EXPORTED: dict[str, Callable[[Path], None]] = {
    "onnx_classifier": onnx_classifier,
    "onnx_detector": onnx_detector,
    "onnx_embedded": onnx_embedded,
    "onnx_open": onnx_open,
    "onnx_int8": onnx_int8,
}


# ---- what they say


def said_by_checkpoint(path: Path) -> Description:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fleetnet"])


def said_inside(path: Path) -> Description:
    """What an ONNX file itself says."""
    import onnx

    entries = onnx.load(path).metadata_props
    return json.loads(next(entry.value for entry in entries if entry.key == "fleetnet"))


def said_beside(path: Path) -> Description:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def recording(name: str) -> Description:
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def written(name: str, folder: Path) -> Description:
    """Write the file of this name into a folder; what it says of itself."""
    torch.manual_seed(0)
    if name in CHECKPOINTS:
        file = folder / "best.safetensors"
        CHECKPOINTS[name](file)
        about = said_by_checkpoint(file)
        return as_before(about) if name == "version_0_1" else about
    file = folder / "model.onnx"
    EXPORTED[name](file)
    return {"inside": said_inside(file), "beside": said_beside(file)}


def main() -> None:
    torch.set_num_threads(1)
    fasternet.VARIANTS["tiny"] = Tiny
    RECORDED.mkdir(parents=True, exist_ok=True)
    for name in (*CHECKPOINTS, *EXPORTED):
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(written(name, Path(folder)), indent=1, ensure_ascii=False)
        (RECORDED / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
