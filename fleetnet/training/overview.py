"""What one looks at after a training: results.csv, plots/ and report.html of a run folder."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ..data._record import sources
from ..files import write_rows, writing
from ..reading import SMALL, Fields, read_text
from ..report import figures, page
from .folder import CONFIG, ENVIRONMENT
from .log import Line, Result
from .pictures import LOOKED_AT

# of plots/ on the page, before the others
FIRST = "curves.png", "samples.jpg", "mistakes.jpg", "training_batch_1.jpg", "training_batch_2.jpg"
CAPTIONS = {  # files of plots/ -> what they show
    "curves": "Losses, figures of the evaluation, and the learning rate",
    "training_batch_1": (
        "The first training batch as the network sees it: augmented, with its annotation"
    ),
    "training_batch_2": "The second training batch",
    "samples": "Validation pictures: the truth beside what the best weights find",
    "mistakes": (
        "The worst mistakes among the validation pictures that were looked at "
        f"(at most {LOOKED_AT})"
    ),
    "confusion": "Confusion: a row is what it is, a column what was said",
    "confused": "Pairs of classes that are confused most",
    "over_score": "Precision, recall and F1 over the lowest score that is kept",
    "precision_recall": "Precision over recall of each class; of boxes at an IoU of 0.5",
    "mask_precision_recall": "Precision over recall of masks at an IoU of 0.5",
}


def write_overview(run: Path, classes: Sequence[str], log: Sequence[Line], best: Result) -> None:
    """results.csv, plots/ and report.html from the lines of the log and the best result."""
    rows = [_in_a_row(line) for line in log]
    write_rows(run / "results.csv", list(dict.fromkeys(key for row in rows for key in row)), rows)
    with writing(run / "plots"):
        (run / "plots").mkdir(exist_ok=True)
    figures.curves(log, run / "plots" / "curves.png")
    written = [run / "plots" / "curves.png", *figures.metrics(best, classes, run / "plots")]
    config, environment = _read(run / CONFIG), _read(run / ENVIRONMENT)
    versions = [f"{name} {version}" for name, version in environment["versions"].items()]
    described = page.Page(
        title=run.name,
        about={
            "model": config.get("model"),
            "data": config.get("data"),
            **sources(run),
            "input": "x".join(map(str, config["size"])),
            "classes": len(classes),
            "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "versions": ", ".join(versions),
            "machine": environment["platform"],
            "command": shlex.join(environment["command"]),
        },
        best={key: value for key, value in best.items() if not isinstance(value, list | dict)},
        notes=best.get("notes", ()),
        by_class=best.get("by_class", ()),
        figures=_with_captions(run / "plots", written),
        epochs=rows,
        settings=config,
    )
    page.write(described, run / "report.html")


def _in_a_row(line: Line) -> dict[str, object]:
    """A line of the log without nesting: {"raw": {"top1": 5}} -> {"raw_top1": 5}."""
    scores = {
        f"{part}_{name}": value
        for part in ("train", "raw", "ema")
        for name, value in line.get(part, {}).items()
    }
    return {"epoch": line["epoch"], **scores}


def _with_captions(plots: Path, written: Sequence[Path]) -> list[tuple[Path, str]]:
    """What the page shows, in order, with captions: pictures that are there, then other figures."""
    files = [plots / name for name in FIRST if (plots / name).is_file()]
    files += [file for file in written if file not in files]
    return [(file, CAPTIONS.get(file.stem, file.stem.replace("_", " "))) for file in files]


def _read(file: Path) -> Fields:
    """A YAML or JSON file of the run folder."""
    import yaml

    values: Fields = yaml.safe_load(read_text(file, SMALL))
    return values
