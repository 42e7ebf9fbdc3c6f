"""`fleetnet train`: data, model and run folder from the arguments, then `fit`."""

import contextlib
import dataclasses
import hashlib
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..claims import NAME as CLAIM
from ..config import TrainConfig, read_recipe
from ..errors import DataError, FleetnetError, ModelError, UsageError, WriteError, choose
from ..reading import SMALL, from_json, links_out, read_text, to_json
from . import Terminated, _pictures
from ._arguments import add_settings, check_types, flag
from ._data import say_data
from ._show import TrainingProgress, duration, say, shown, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from ..claims import Claim
    from ..data import Split
    from ..data._contents import Contents

STATE, CONFIG, ENVIRONMENT = "state/trainer.pt", "config.yaml", "environment.json"
HASHED = "# sha256 of the lines above: "  # at the end of config.yaml, so that half of it does not pass for all
FIRST_KEYS = (  # of config.yaml, from the first version on
    *("model", "data", "format", "weights", "epochs", "size", "batch_size", "accumulate", "optimizer", "lr"),
    *("momentum", "weight_decay", "warmup_epochs", "label_smoothing", "clip", "ema", "drop_path", "output_stride"),
    *("options", "head_lr", "norm", "augment", "mosaic", "plain_epochs", "multi_scale", "scale", "flip"),
    *("color_jitter", "auto_augment", "erasing", "mixup", "cutmix", "crop", "precision", "channels_last", "device"),
    *("threads", "workers", "cache", "eval_every", "seed"),
)
SHOWN = 3  # metrics a line, of COCO's twelve or twenty-four
EXAMPLE = "fleetnet train --model fasternet_t0 --data photos/ --size 128 --epochs 30"
AFTER_RESUME = (
    "epochs",
    "device",
    "threads",
    "eval_every",
    "patience",
    "timeout",
    "data",
    "format",
)  # what --resume lets one change


def arguments(parser: "ArgumentParser") -> None:
    add_settings(parser, TrainConfig, required=("model", "data"))
    parser.add_argument("--recipe", type=str, help="a YAML file of these settings; flags win over it")
    parser.add_argument("--run", type=str, help="run folder (default: runs/TASK/MODEL-DATA)")
    parser.add_argument(
        "--resume",
        type=str,
        help="continue the run in this folder exactly where it stopped; with --data if its data moved or changed",
    )


def run(given: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in given.items() if key != "json"}
    resume, recipe, folder = (given.pop(key, None) for key in ("resume", "recipe", "run"))
    path: Path | None
    if resume is not None:
        path = Path(resume)
        config = _resumed(path, given, recipe, folder)
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
        _check_start(config, path)

    import torch

    from .. import data, tasks
    from ..claims import claim
    from ..data._contents import check_usable, contents_of
    from ..data._names import by_name
    from ..data._record import to_continue
    from ..reparam import form_of
    from ..tasks import split_name
    from ..train import check_device, check_settings
    from ..weights import create_model

    task_name = split_name(config.model)[0]
    task = tasks.find(task_name)
    if resume is None:
        check_settings(config, task_name, given)
    check_device(config)
    begun = path is not None and (path / STATE).is_file()
    if path is not None and resume:
        train, val = to_continue(_place(path, config.data, "data" in given), config.format, task.TARGET, path)
    else:
        train, val = (data.load(config.data, split, config.format, task.TARGET) for split in ("train", "val"))
    val = by_name(val, train.classes, "the training data")
    contents = contents_of(train, task.TARGET), contents_of(val, task.TARGET)
    for name, split, content in zip(("train", "val"), (train, val), contents, strict=True):
        say_data(name, split, content)
        check_usable(split, content, config.max_bad, learn=name == "train")
    torch.manual_seed(config.seed)
    start = config.weights if path is None or not resume or config.weights is None else _file(path, config.weights)
    model = create_model(
        config.model, train.classes, None if begun else start,
        drop_path=config.drop_path, output_stride=config.output_stride, options=config.options,
    )  # fmt: skip
    if model.report is not None:
        say(model.report.summary())
    if form_of(model) == "deploy":
        raise ModelError(
            f"{config.weights} is in deploy form, which has no branches and batch norms to train; "
            "start from the multi-branch weights"
        )
    config = dataclasses.replace(config, options=model.options, output_stride=model.output_stride)  # weights decide too
    name = f"{config.model.replace('/', '-')}-{Path(config.data).name or 'data'}"
    usual = Path("runs") / model.task / name
    with _tidied(path or usual), _claim_free(usual) if path is None else claim(path) as mine:
        if resume is None:
            _check_unused(mine.folder, claimed=True)
        elif begun != (mine.folder / STATE).is_file():
            raise UsageError(f"another run trained in {mine.folder} in the meantime: try again")
        try:
            return _train(
                mine, model, train, val, contents, config,
                resume=begun, known=resume is not None, other_data="data" in given,
            )  # fmt: skip
        except Exception:  # whatever it was, a start that failed leaves no folder
            if resume is None and not (mine.folder / STATE).is_file():
                _clear(mine)
            raise


def _train(
    mine: "Claim",
    model: Any,
    train: "Split",
    val: "Split",
    contents: "tuple[Contents, Contents]",
    config: TrainConfig,
    resume: bool,
    known: bool,
    other_data: bool,
) -> dict[str, Any]:
    """Train in a claimed folder, and say how it went; `resume` goes on with the state that is there.

    `known`: the run was started before, by another command, whether or not it came to have a state.
    """
    from .. import checkpoint, fingerprint
    from ..data._record import describe
    from ..train import fit, read_log, settled, value_range

    path = mine.folder
    source = None
    if resume:  # what the run began with, its last checkpoint knows
        done = settled(path)["epochs"]
        facts = checkpoint.read_facts(path / "last.safetensors")
        source = facts["source"]
        if facts["classes"] != train.classes:
            raise DataError(
                f"{path} was trained on {', '.join(facts['classes'])}; the data has {', '.join(train.classes)}"
            )
        # here already, so that a refused command leaves the settings as they were
        fingerprint.check(path, {"train": train, "val": val}, done, other_data)
        if done == config.epochs:
            say(f"{path} has been trained for all of its {done} epochs; more with --epochs")
    if not resume:
        values, why = value_range(config.scale_values, train)
        if why:
            say(why)
        told = "full" if values is None else f"{values[0]:g},{values[1]:g}"
        config = dataclasses.replace(config, scale_values=told)  # so that config.yaml holds what was decided
    _prepare(path, config, known, other_data)
    say(f"run folder: {path}")
    progress = TrainingProgress()
    batches = None if resume else _pictures.TrainingBatches(path, train.classes)
    try:
        best = fit(
            model, train, val, config, path, resume=resume, source=source, contents=contents, progress=progress,
            on_epoch=_say_epoch, on_batch=batches, on_wait=say, claimed=mine, other_data=other_data,
        )  # fmt: skip
        mine.check()
        progress.close()
        _pictures.samples(path, val)
        log = read_log(path)
        _write_figures(path, train.classes, log, best)
    except (Exception, KeyboardInterrupt) as error:
        progress.close()
        _say_what_is_kept(path, error, train.classes)
        raise
    if len(log) < config.epochs:
        say(f"stopped after epoch {len(log)}: no better one since epoch {best['epoch']} (patience {config.patience})")
    rows = [[k, shown(v)] for k, v in best.items() if not isinstance(v, list | dict)]
    table(f"Best of {len(log)} epochs: {path / 'best.safetensors'}", ["metric", "value"], rows)
    skipped = sorted({name for line in log for name in line["skipped"]})
    for note in best.get("notes", ()):
        say(f"note: {note}")
    if skipped:
        say(f"skipped {len(skipped)} unreadable images: " + "; ".join(skipped[:10]))
    quoted = shlex.quote(str(path))
    say(f"next: fleetnet reparam --model {quoted}   or: fleetnet export --model {quoted} --to onnx")
    figures = {k: v for k, v in best.items() if k not in ("pr", "mask_pr")}  # curves of 101 points a class: see plots/
    read = {"train": describe(train, contents[0]), "val": describe(val, contents[1])}
    return {"run": str(path), "best": figures, "epochs": len(log), "skipped": skipped, "data": read}


def _say_what_is_kept(path: Path, error: BaseException, classes: list[str]) -> None:
    """After a run that stopped early: how to continue it, and its figures so far unless there is no time."""
    if not (path / CONFIG).is_file() or (not (path / STATE).is_file() and isinstance(error, Exception)):
        return
    in_haste = isinstance(error, Terminated)  # whoever sent that may kill soon; resuming writes the figures
    if (path / STATE).is_file() and not in_haste:
        from ..train import best_of, settled

        try:
            state = settled(path)
            _write_figures(path, classes, state["log"], best_of(path, state["best"] or {}))
        except FleetnetError as other:
            say(f"no figures: {other}")
    say(f"to continue: fleetnet train --resume {shlex.quote(str(path))}")


def _check_start(config: TrainConfig, folder: Path | None) -> None:
    """What can be known to be wrong before the data are read and a folder is made."""
    from ..files import check_writable
    from ..tasks import check_options
    from ..weights.read import locate

    check_options(config.model, config.options)
    weights = config.weights or "default"
    if weights != "default" and not weights.startswith(("hf-hub:", "http://", "https://")):
        locate(Path(weights))
    check_writable(folder or Path("runs"), "--run", folder=True)
    if folder is not None:
        _check_unused(folder)


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The model of a layout file by name and options, and the size that its task is usually trained at."""
    from .. import tasks
    from ..tasks import check_name, described_by, split_name

    name, _, options = described_by(settings["model"])
    check_name(name)
    size = tasks.find(split_name(name)[0]).SIZE
    return {"model": name, "size": settings.get("size", size), "options": {**options, **settings.get("options", {})}}


def _resumed(run: Path, given: dict[str, Any], recipe: str | None, folder: str | None) -> TrainConfig:
    """The settings of an earlier run, with those that may change; prints the schedule where it is new.

    A run that stopped before its first epoch ended has no state, and starts anew with the same settings.
    """
    from ..claims import refuse_if_claimed

    if not (run / CONFIG).is_file():
        near = [str(p.parent) for p in run.parent.glob("*/config.yaml")] if run.parent.is_dir() else []
        raise UsageError(
            f"no run in {str(run)!r} (config.yaml is missing)" + (f": {choose(str(run), near)}" if near else "")
        )
    if out := links_out(run):
        raise ModelError(
            f"{out[0]} is a link that leads out of the run folder, and --resume would write there: replace it by what "
            "it stands for, or delete it"
        )
    if recipe or folder:
        raise UsageError("--resume takes its settings from the run; --recipe and --run do not go with it")
    for key in given:
        if key not in AFTER_RESUME:
            raise UsageError(
                f"--resume continues exactly, so {flag(key)} cannot change; allowed: {', '.join(AFTER_RESUME)}"
            )
    if "format" in given and "data" not in given:
        raise UsageError("with --resume, --format goes with --data: it says how the data named anew are to be read")
    refuse_if_claimed(run)
    before = _read_config(run)
    config = dataclasses.replace(before, **given)
    if not (run / STATE).is_file():
        say(f"{run} stopped before its first epoch ended: it starts from the beginning")
        return config
    if "epochs" in given:
        from ..train import epochs_of

        done = epochs_of(run)
        if config.epochs <= done:
            raise UsageError(
                f"{run} has been trained for {done} epochs; --epochs is {config.epochs}, give more to continue"
            )
    if config.epochs != before.epochs:
        say(f"new schedule: cosine from {config.lr:g} to 0 over {config.epochs} epochs instead of {before.epochs}")
    return config


def _read_config(run: Path) -> TrainConfig:
    """The settings in config.yaml of a run, all of them; `ModelError` for a file that is damaged or not whole."""
    path = run / CONFIG
    try:
        text = read_text(path, SMALL)
        settings = check_types(TrainConfig, read_recipe(path), str(path))
        config = TrainConfig(**settings)
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (UsageError, ValueError) as error:
        raise ModelError(f"{path} is damaged, so the run cannot be continued: {error}") from error
    body, mark, hashed = text.rpartition(HASHED)
    if mark and hashlib.sha256(body.encode()).hexdigest() != hashed.strip():
        raise ModelError(
            f"{path} is not as the run wrote it, and --resume continues exactly: undo the change, or delete its last "
            "line to go on with what it says"
        )
    if absent := [key for key in FIRST_KEYS if key not in settings]:
        raise ModelError(f"{path} is only a part of what the run wrote: it lacks {', '.join(absent[:5])}")
    return config


def _check_unused(run: Path, claimed: bool = False) -> None:
    """`UsageError` if a folder holds a run, or if one is going on in it and we have not claimed it."""
    from ..claims import refuse_if_claimed

    if not claimed:
        refuse_if_claimed(run)
    if (run / STATE).is_file() or (run / "best.safetensors").is_file():
        continued = f"continue it with --resume {shlex.quote(str(run))}, or " if (run / STATE).is_file() else ""
        raise UsageError(f"{run} holds a run already: {continued}give another --run")


def _claim_free(path: Path) -> "Claim":
    """The claim of the path, or of the first of path-2, path-3, ... that does not exist."""
    from ..claims import claim
    from ..files import writing

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while True:
        try:
            with writing(free):
                free.mkdir()
        except WriteError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            number += 1
            free = path.with_name(f"{path.name}-{number}")
            continue
        return dataclasses.replace(claim(free), made=True)


@contextlib.contextmanager
def _tidied(run: Path) -> Iterator[None]:
    """Folders above a run that were made for it go again where nothing is in them at the end."""
    made = [folder for folder in run.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()


def _clear(mine: "Claim") -> None:
    """Remove what this command wrote into the folder of a run that failed before its first epoch ended.

    All of it where the folder was made for the run; else what a run writes first, for something of others may be there.
    Nothing where the folder is gone, or belongs to another run by now.
    """
    run = mine.folder
    try:
        mine.check()
    except WriteError:
        return
    if mine.made:
        for entry in run.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != CLAIM:
                entry.unlink()
        return
    written = [CONFIG, ENVIRONMENT, "data.json", "split.json", "log.jsonl", "state/samples.json"]
    for name in (*written, *_pictures.TRAINING_BATCHES):
        (run / name).unlink(missing_ok=True)
    for name in ("state", "plots"):
        with contextlib.suppress(OSError):  # there is something else in it, or it is not there
            (run / name).rmdir()


def _place(run: Path, given: str, anew: bool) -> str:
    """Where the data of a run are: as named with --data, else where they were, also from another working folder.

    They may have moved together with the run. Raises `DataError` where they are not.
    """
    path = _environment(run).get("data_path")
    if anew or path is None:  # of a version that kept no record, or generated
        return given
    with_run = os.path.normpath(run / _environment(run).get("data_from_run", "."))
    for place in (path, with_run):
        if os.path.exists(place):
            return place
    raise DataError(f"the data of {run} were at {path}, and are not there: say where they are now with --data")


def _file(run: Path, name: str) -> str:
    """A file of the settings of a run, which are relative to the folder that the run was started in."""
    return str(there) if (there := Path(_environment(run).get("folder", "."), name)).exists() else name


def _environment(run: Path) -> dict[str, Any]:
    try:
        environment = from_json(read_text(run / ENVIRONMENT, SMALL))
    except (OSError, ValueError):  # it is a record; the data are compared by what they are
        return {}
    return environment if isinstance(environment, dict) else {}


def _prepare(run: Path, config: TrainConfig, known: bool, other_data: bool) -> None:
    """environment.json and config.yaml of the run folder; the second is there only if the first is.

    Of a run that is `known` the first stays that of the start, by which paths in the second are relative.
    """
    import yaml

    from .. import bench
    from ..files import write_text

    names = ("fleetnet", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors")
    environment = {
        "python": platform.python_version(), "platform": platform.platform(), "command": sys.argv,
        "folder": os.getcwd(), "versions": {name: bench.version(name) for name in names},
    }  # fmt: skip
    if known:
        environment = _environment(run) or environment
    if (not known or other_data or "data_path" not in environment) and os.path.exists(config.data):
        place = os.path.abspath(config.data)
        environment |= {"data_path": place, "data_from_run": os.path.relpath(place, run)}
    write_text(run / ENVIRONMENT, to_json(environment, indent=2) + "\n")
    values = {**config.to_dict(), "size": list(config.size)}
    text = yaml.safe_dump(values, sort_keys=False)
    write_text(run / CONFIG, f"{text}{HASHED}{hashlib.sha256(text.encode()).hexdigest()}\n")


def _is_figure(value: Any) -> bool:
    """Whether a value of a metric is a figure, measured or, as None, not to be had."""
    return value is None or isinstance(value, float)


def _say_epoch(line: dict[str, Any]) -> None:
    scores = [
        f"{form} " + " ".join([f"{k} {shown(v)}" for k, v in line[form].items() if _is_figure(v)][:SHOWN])
        for form in ("raw", "ema")
        if form in line
    ]
    lost = f"  skipped {len(line['skipped'])} unreadable" if line["skipped"] else ""
    loss, seconds = line["train"]["loss"], duration(line["seconds"])
    say(f"epoch {line['epoch']}: loss {loss:.4f}  {'  '.join(scores)}  {seconds}{lost}")


def _write_figures(run: Path, classes: list[str], log: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """results.csv, plots/ and report.html from the lines of the log and the best result."""
    from .. import page, report
    from ..data._record import sources
    from ..files import write_rows, writing

    flat = [
        {
            "epoch": e["epoch"],
            **{f"{part}_{k}": v for part in ("train", "raw", "ema") for k, v in e.get(part, {}).items()},
        }
        for e in log
    ]
    write_rows(run / "results.csv", list(dict.fromkeys(k for row in flat for k in row)), flat)
    with writing(run / "plots"):
        (run / "plots").mkdir(exist_ok=True)
    report.curves(log, run / "plots" / "curves.png")
    written = [run / "plots" / "curves.png", *report.metrics(best, classes, run / "plots")]
    config, environment = _readable(run / CONFIG), _readable(run / ENVIRONMENT)
    described = page.Page(
        title=run.name,
        about={
            "model": config.get("model"), "data": config.get("data"), **sources(run),
            "input": "x".join(map(str, config["size"])),
            "classes": len(classes), "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
            "machine": environment["platform"], "command": shlex.join(environment["command"]),
        },
        best={key: value for key, value in best.items() if not isinstance(value, list | dict)},
        notes=best.get("notes", ()),
        by_class=best.get("by_class", ()),
        figures=_pictures.figures(run / "plots", written),
        epochs=flat,
        settings=config,
    )  # fmt: skip
    page.write(described, run / "report.html")


def _readable(file: Path) -> dict[str, Any]:
    """A YAML or JSON file of the run folder."""
    import yaml

    return yaml.safe_load(read_text(file, SMALL))
