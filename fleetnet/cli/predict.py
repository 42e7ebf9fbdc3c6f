"""`fleetnet predict`: images in, names and scores out, by a checkpoint or an exported file alike."""

import csv
import glob
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from ..errors import DataError, UsageError
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLE = "fleetnet predict --model runs/classification/fasternet_t0-photos new/*.jpg --out predictions"


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("source", nargs="*", type=str, help="image files, folders or patterns")
    parser.add_argument("--model", type=str, help="run folder, checkpoint (.safetensors) or exported file")
    parser.add_argument("--top", type=PositiveInt, help="names an image (default: 3)")
    parser.add_argument("--out", type=str, help="folder for predictions.json, predictions.csv and predictions.png")
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads (default: 2)")


def run(given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("model"):
        raise UsageError(f"--model is missing; example: {EXAMPLE}")
    if not given.get("source"):
        raise UsageError(f"no image given; example: {EXAMPLE}")

    import torch

    from .. import images
    from ..predict import load

    torch.set_num_threads(given.get("threads", 2))
    predictor = load(given["model"], threads=given.get("threads", 2))
    paths, skipped = _images(given["source"])
    results: list[dict[str, Any]] = []
    for path in paths:
        try:
            named = predictor.predict([images.read(path)], top=given.get("top", 3))[0]
        except DataError as error:
            skipped.append(str(error))
            continue
        results.append({"file": str(path), "predictions": [{"name": name, "score": score} for name, score in named]})
    rows = [[r["file"], *(f"{p['name']} {p['score']:.3f}" for p in r["predictions"])] for r in results]
    if rows:
        table(f"{len(rows)} images", ["file", *(f"top {i + 1}" for i in range(len(rows[0]) - 1))], rows)
    for line in skipped:
        say(f"skipped {line}")
    if not results:
        raise DataError(f"no image could be read; {len(skipped)} skipped")
    document = {"model": given["model"], "results": results, "skipped": skipped}
    if given.get("out"):
        _write(Path(given["out"]), document)
    return document


def _images(sources: list[str]) -> tuple[list[Path], list[str]]:
    """Image files of files, folders and patterns, each once; a source that holds none is a `DataError`."""
    from ..images import find_images

    paths: list[Path] = []
    skipped: list[str] = []
    for source in sources:
        here = Path(source)
        if here.is_dir():
            found, lost = find_images(here)
        else:
            found = (
                [here] if here.exists() or here.is_symlink() else sorted(map(Path, glob.glob(source, recursive=True)))
            )
            lost = []
        if not found:
            raise DataError(f"{source!r} is no image, no folder with images, and fits no file")
        paths += found
        skipped += lost
    return list(dict.fromkeys(paths)), skipped


def _write(folder: Path, document: dict[str, Any]) -> None:
    from .. import images, report
    from ..checkpoint import write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.json", json.dumps(document, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "rank", "name", "score"])
    for result in document["results"]:
        for rank, p in enumerate(result["predictions"], 1):
            writer.writerow([result["file"], rank, p["name"], f"{p['score']:.6f}"])
    write_text(folder / "predictions.csv", text.getvalue())
    shown = document["results"][:24]
    pictures = [images.read(r["file"]).resize((160, 160)) for r in shown]
    names = [f"{r['predictions'][0]['name']} {r['predictions'][0]['score']:.2f}" for r in shown]
    report.predictions(pictures, [None] * len(shown), names, folder / "predictions.png")
    say(f"written: {folder}/predictions.json, predictions.csv, predictions.png ({len(shown)} images)")
