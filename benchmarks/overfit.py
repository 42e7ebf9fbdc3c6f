"""Whether each head can learn: train on 16 pictures of coco_mini and find them again.

    python benchmarks/overfit.py --data ../shared/data/coco_mini --out runs/overfit [HEAD/BACKBONE ...]

The first 16 with an object, for deeplabv3 the first 16 in which every class covers at least one
percent of the picture. The same pictures are for training, without augmentation, and for
evaluation. Expected: AP50 of at least 90 % (boxes), mask AP50 of at least 80 %, mIoU of at least 85
%. The last line of output is JSON. A run that is complete is not repeated.
"""

import argparse
import json
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import fleetnet
from fleetnet.data import IGNORE, Sample, Split
from fleetnet.find import find
from fleetnet.tasks import split_name

NAMES = ("ssd/fasternet_t0", "yolo/fasternet_t0", "maskrcnn/fasternet_t0", "deeplabv3/fasternet_t0")
WANTED = {
    "ssd": ("AP50", 90),
    "yolo": ("AP50", 90),
    "maskrcnn": ("mask_AP50", 80),
    "deeplabv3": ("mIoU", 85),
}
SETTINGS = {
    "epochs": 120, "size": 256, "batch_size": 4, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "clip": 5.0,
    "warmup_epochs": 3, "ema": 0.9, "augment": "none", "cache": True, "eval_every": 20,
}  # fmt: skip
EPOCHS = {"deeplabv3": 240, "maskrcnn": 80}
# All pictures in each step: the norm after the image pooling sees one value of each picture.
OTHER = {
    "deeplabv3": {
        "lr": 2e-3,
        "batch_size": 16,
        "output_stride": 8,
        "warmup_epochs": 10,
        "eval_every": 50,
    }
}
LEAST = 0.01  # share of the picture that each class must cover, for maps of classes: features are 8 pixels wide
OPTIONS = {
    "maskrcnn": {"channels": 128, "hidden": 512, "samples": 64, "proposals": 300, "anchor": 16},
    "deeplabv3": {"channels": 64},
}


def large(sample: Sample) -> bool:
    """Whether each class in a picture covers enough of it."""
    values, counts = np.unique(sample.semantic(), return_counts=True)
    return bool((counts[values != IGNORE] >= LEAST * counts.sum()).all())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="instead of 120, or fewer")
    args = parser.parse_args()
    results = {}
    for name in args.names:
        head, run = split_name(name)[0], args.out / name.replace("/", "-")
        task = find("tasks", head)
        if not (run / "result.json").exists():
            whole = fleetnet.load_data(args.data, "train", None, task.TARGET)
            shown = [
                s for s in whole.samples if s.objects is None or any(not o.crowd for o in s.objects)
            ]
            shown = list(islice(filter(large, shown) if task.TARGET == "semantic" else shown, 16))
            split = Split(shown, whole.classes, ids=whole.ids)
            config = fleetnet.TrainConfig(
                **{**SETTINGS, **OTHER.get(head, {}), "model": name, "data": args.data, "threads": args.threads,
                   "epochs": args.epochs or EPOCHS.get(head, SETTINGS["epochs"]),
                   "options": OPTIONS.get(head, {})}
            )  # fmt: skip
            torch.manual_seed(0)
            model = fleetnet.create_model(
                name, len(split.classes), output_stride=config.output_stride, options=config.options
            )
            began = time.process_time()
            best = fleetnet.fit(
                model, split, split, config, run,
                on_epoch=lambda line, name=name: print(name, json.dumps(line), flush=True),
            )  # fmt: skip
            numbers = {k: v for k, v in best.items() if isinstance(v, int | float)}
            result = {
                **numbers,
                "cpu_minutes": (time.process_time() - began) / 60,
                "epochs": config.epochs,
            }
            (run / "result.json").write_text(json.dumps(result))
        results[name] = json.loads((run / "result.json").read_text())
        metric, least = WANTED[head]
        print(f"{name}: {metric} {results[name][metric]:.1f} % (wanted: {least} %)", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
