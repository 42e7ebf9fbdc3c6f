"""`fleetnet train`: data, model and run folder from the arguments, then `fit`."""

import csv
import dataclasses
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import KEYS_AND_DEFAULTS, TrainConfig, read_recipe
from ..errors import DataError, ModelError, UsageError, choose
from ._arguments import add_settings, check_types, flag
from ._show import TrainingProgress, duration, say, shown, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

STATE = "state/trainer.pt"
SHOWN = 3  # metrics a line, of COCO's twelve or twenty-four
EXAMPLE = "fleetnet train --model fasternet_t0 --data photos/ --size 128 --epochs 30"
AFTER_RESUME = ("epochs", "device", "threads", "eval_every")  # what --resume lets one change


def arguments(parser: "ArgumentParser") -> None:
    add_settings(parser, TrainConfig, required=("model", "data"))
    parser.add_argument("--recipe", type=str, help="a YAML file of these settings; flags win over it")
    parser.add_argument("--run", type=str, help="run folder (default: runs/TASK/MODEL-DATA)")
    parser.add_argument("--resume", type=str, help="continue the run in this folder exactly where it stopped")


def run(given: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in given.items() if key != "json"}
    resume, recipe, folder = (given.pop(key, None) for key in ("resume", "recipe", "run"))
    path: Path | None
    if resume is not None:
        config, path = _resumed(Path(resume), given, recipe, folder)
    else:
        settings = check_types(TrainConfig, read_recipe(recipe), recipe) if recipe else {}
        settings = {**settings, **given}
        if "model" in settings:
            settings |= _resolved(settings)
        config = TrainConfig(**settings)
        for key in ("model", "data"):
            if not getattr(config, key):
                raise UsageError(f"--{key} is missing; example: {EXAMPLE}")
        path = Path(folder) if folder else None

    import torch

    from .. import checkpoint, data, weights
    from ..data._names import by_name
    from ..find import find
    from ..tasks import split_name
    from ..train import check_settings, fit, read_log

    task_name = split_name(config.model)[0]
    task = find("tasks", task_name)
    if resume is None:
        check_settings(config, task_name, given)
    train, val = (data.load(config.data, split, config.format, task.TARGET) for split in ("train", "val"))
    val = by_name(val, train.classes, "the training data")
    for split, samples in (("train", train), ("val", val)):
        say(f"{split}: {len(samples.samples)} images, {len(samples.classes)} classes, {len(samples.skipped)} skipped")
        for line in samples.skipped[:10]:
            say(f"  skipped {line}")
    torch.manual_seed(config.seed)
    model = weights.create_model(
        config.model, train.classes, None if resume else config.weights,
        drop_path=config.drop_path, output_stride=config.output_stride, options=config.options,
    )  # fmt: skip
    if model.report is not None:
        say(model.report.summary())
    if weights.form_of(model) == "deploy":
        raise ModelError(
            f"{config.weights} is in deploy form, which has no branches and batch norms to train; "
            "start from the multi-branch weights"
        )
    config = dataclasses.replace(config, options=model.options, output_stride=model.output_stride)  # weights decide too
    if path is None:
        path = _free(Path("runs") / model.task / f"{config.model.replace('/', '-')}-{Path(config.data).name or 'data'}")
    _prepare(path, config, resume is not None)
    say(f"run folder: {path}")

    source = None
    if resume is not None:  # what the run began with, and what those weights expect, its last checkpoint knows
        facts = checkpoint.read_facts(path / "last.safetensors")
        source, model.preprocess = facts["source"], facts["preprocess"]
        if facts["classes"] != train.classes:
            raise DataError(
                f"{path} was trained on {', '.join(facts['classes'])}; the data has {', '.join(train.classes)}"
            )
    progress = TrainingProgress()
    try:
        best = fit(
            model, train, val, config, path, resume=resume is not None, source=source, progress=progress,
            on_epoch=_say_epoch,
        )  # fmt: skip
    except KeyboardInterrupt:
        if (path / STATE).exists():
            say(f"to continue: fleetnet train --resume {path}")
        raise
    finally:
        progress.close()
        _write_figures(path, train.classes)  # also of a run that stopped early
    log = read_log(path)
    told = {**best, "epoch": best["epoch"] + 1}  # the log counts from 0
    rows = [[k, shown(v)] for k, v in told.items() if not isinstance(v, list | dict)]
    table(f"Best of {len(log)} epochs: {path / 'best.safetensors'}", ["metric", "value"], rows)
    skipped = sorted({name for line in log for name in line["skipped"]})
    for note in best.get("notes", ()):
        say(f"note: {note}")
    if skipped:
        say(f"skipped {len(skipped)} unreadable images: " + "; ".join(skipped[:10]))
    say(f"next: fleetnet reparam --model {path}   or: fleetnet export --model {path} --to onnx")
    figures = {k: v for k, v in best.items() if k not in ("pr", "mask_pr")}  # curves of 101 points a class: see plots/
    return {"run": str(path), "best": figures, "epochs": len(log), "skipped": skipped}


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The model of a layout file by name and options, and the size that its task is usually trained at."""
    from ..find import find
    from ..tasks import check_name, described_by, split_name

    name, _, options = described_by(settings["model"])
    check_name(name)
    size = getattr(find("tasks", split_name(name)[0]), "SIZE", KEYS_AND_DEFAULTS["size"])
    return {"model": name, "size": settings.get("size", size), "options": {**options, **settings.get("options", {})}}


def _resumed(run: Path, given: dict[str, Any], recipe: str | None, folder: str | None) -> tuple[TrainConfig, Path]:
    """The settings of an earlier run, with those that may change; prints the schedule where it is new."""
    if not (run / "config.yaml").is_file():
        near = [str(p.parent) for p in run.parent.glob("*/config.yaml")] if run.parent.is_dir() else []
        raise UsageError(
            f"no run in {str(run)!r} (config.yaml is missing)" + (f": {choose(str(run), near)}" if near else "")
        )
    if not (run / STATE).is_file():
        raise UsageError(f"{run} has no {STATE}: it stopped before its first epoch ended, so start it again")
    if recipe or folder:
        raise UsageError("--resume takes its settings from the run; --recipe and --run do not go with it")
    for key in given:
        if key not in AFTER_RESUME:
            raise UsageError(
                f"--resume continues exactly, so {flag(key)} cannot change; allowed: {', '.join(AFTER_RESUME)}"
            )
    before = TrainConfig(**read_recipe(run / "config.yaml"))
    config = dataclasses.replace(before, **given)
    done = len((run / "log.jsonl").read_text().splitlines())
    if config.epochs <= done:
        raise UsageError(
            f"{run} has been trained for {done} epochs; --epochs is {config.epochs}, give more to continue"
        )
    if config.epochs != before.epochs:
        say(f"new schedule: cosine from {config.lr:g} to 0 over {config.epochs} epochs instead of {before.epochs}")
    return config, run


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist."""
    free, n = path, 1
    while free.exists():
        n += 1
        free = path.with_name(f"{path.name}-{n}")
    return free


def _prepare(run: Path, config: TrainConfig, resume: bool) -> None:
    """config.yaml and environment.json of the run folder."""
    import yaml

    from .. import bench
    from ..files import write_text

    if not resume and (run / STATE).is_file():
        raise UsageError(f"{run} holds a run already: continue it with --resume {run}, or give another --run")
    run.mkdir(parents=True, exist_ok=True)
    values = {**config.to_dict(), "size": list(config.size)}
    write_text(run / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    if resume:
        return  # environment.json stays that of the start
    names = ("fleetnet", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors")
    environment = {
        "python": platform.python_version(), "platform": platform.platform(), "command": sys.argv,
        "versions": {name: bench.version(name) for name in names},
    }  # fmt: skip
    write_text(run / "environment.json", json.dumps(environment, indent=2) + "\n")


def _say_epoch(line: dict[str, Any]) -> None:
    scores = [
        f"{form} " + " ".join([f"{k} {v:.2f}" for k, v in line[form].items() if isinstance(v, float)][:SHOWN])
        for form in ("raw", "ema")
        if form in line
    ]
    lost = f"  skipped {len(line['skipped'])} unreadable" if line["skipped"] else ""
    loss, seconds = line["train"]["loss"], duration(line["seconds"])
    say(f"epoch {line['epoch'] + 1}: loss {loss:.4f}  {'  '.join(scores)}  {seconds}{lost}")


def _write_figures(run: Path, classes: list[str]) -> None:
    """results.csv, plots/ and report.html from the log and the state; nothing before the first epoch's end."""
    from .. import report
    from ..checkpoint import load_state
    from ..train import best_of, read_log

    if not (run / STATE).is_file():
        return
    log, best = read_log(run), best_of(run, load_state(run / "state")["best"] or {})
    flat = [
        {
            "epoch": e["epoch"],
            **{f"{part}_{k}": v for part in ("train", "raw", "ema") for k, v in e.get(part, {}).items()},
        }
        for e in log
    ]
    with (run / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for row in flat for k in row)))
        writer.writeheader()
        writer.writerows(flat)
    (run / "plots").mkdir(exist_ok=True)
    report.curves(log, run / "plots" / "curves.png")
    figures = [run / "plots" / "curves.png", *report.metrics(best, classes, run / "plots")]
    summary = {k: v for k, v in best.items() if not isinstance(v, list | dict)}
    report.page(run.name, summary, flat, figures, run / "report.html")
