"""`fleetnet predict`: images in; names, boxes, masks or label maps out, by a checkpoint or an exported file alike."""

import csv
import glob
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from ..errors import DataError, UsageError
from ._show import say, table

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from PIL import Image

    from ..predict import Predictor

EXAMPLE = "fleetnet predict --model runs/classification/fasternet_t0-photos new/*.jpg --out predictions"
ROWS, QUALITY = 50, 92  # of the table (classifiers: all); of drawn JPEGs


def arguments(parser: "ArgumentParser") -> None:
    parser.add_argument("source", nargs="*", type=str, help="image files, folders or patterns")
    parser.add_argument("--model", type=str, help="run folder, checkpoint (.safetensors) or exported file")
    parser.add_argument("--top", type=PositiveInt, help="classifiers: names an image (default: 3)")
    parser.add_argument("--threshold", type=NonNegativeFloat, help="detectors: lowest score, 0 to 1 (default: 0.3)")
    parser.add_argument(
        "--out", type=str,
        help="folder for predictions.json and, of classifiers predictions.csv and predictions.png, of others the "
        "pictures with what was found (drawn/), of segmentation also label maps (maps/)",
    )  # fmt: skip
    parser.add_argument("--threads", type=PositiveInt, help="CPU threads (default: 2)")


def run(given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("model"):
        raise UsageError(f"--model is missing; example: {EXAMPLE}")
    if not given.get("source"):
        raise UsageError(f"no image given; example: {EXAMPLE}")
    if given.get("threshold", 0) > 1:
        raise UsageError(f"threshold is {given['threshold']}; allowed: 0 to 1")

    import torch

    from ..find import find
    from ..predict import load

    torch.set_num_threads(given.get("threads", 2))
    predictor = load(given["model"], threads=given.get("threads", 2))
    paths, skipped = _images(given["source"])
    kind = find("tasks", predictor.task).TARGET
    if kind == "label":
        results = _classify(predictor, paths, skipped, given)
    elif kind == "semantic":
        results = _segment(predictor, paths, skipped, given)
    else:
        results = _detect(predictor, paths, skipped, given)
    document = {"model": given["model"], "results": results, "skipped": skipped}
    if given.get("out") and kind == "label":
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


def _each(
    paths: list[Path], skipped: list[str], make: "Callable[[Path, Image.Image], dict[str, Any]]"
) -> list[dict[str, Any]]:
    """What `make` says of each picture, one at a time; files that cannot be read are added to `skipped`, and shown."""
    from .. import images

    results = []
    for path in paths:
        try:
            picture = images.read(path)
        except DataError as error:
            skipped.append(str(error))
            continue
        results.append({"file": str(path), **make(path, picture)})
    for line in skipped:
        say(f"skipped {line}")
    if not results:
        raise DataError(f"no image could be read; {len(skipped)} skipped")
    return results


def _classify(
    predictor: "Predictor", paths: list[Path], skipped: list[str], given: dict[str, Any]
) -> list[dict[str, Any]]:
    def names(path: Path, picture: "Image.Image") -> dict[str, Any]:
        named = predictor.predict([picture], top=given.get("top", 3), threshold=given.get("threshold"))[0]
        return {"predictions": [{"name": name, "score": score} for name, score in named]}

    results = _each(paths, skipped, names)
    rows = [[r["file"], *(f"{p['name']} {p['score']:.3f}" for p in r["predictions"])] for r in results]
    if rows:
        table(f"{len(rows)} images", ["file", *(f"top {i}" for i in range(1, max(map(len, rows))))], rows)
    return results


def _detect(
    predictor: "Predictor", paths: list[Path], skipped: list[str], given: dict[str, Any]
) -> list[dict[str, Any]]:
    """Drawn boxes and masks, and predictions.json in the layout of a COCO annotation file, with scores.

    Annotations are written as they are found; only names, scores and boxes stay in memory.
    """
    from .. import report
    from ..files import replacing
    from ..tasks._coco import area, present, results

    threshold, out = given.get("threshold", 0.3), Path(given["out"]) if given.get("out") else None
    ids = predictor.facts.get("category_ids") or list(range(1, len(predictor.classes) + 1))
    stems, count = _stems(paths), 0
    images: list[dict[str, Any]] = []

    def boxes(path: Path, picture: "Image.Image") -> dict[str, Any]:
        nonlocal count
        prediction = predictor.predictions([picture])[0]
        good = prediction["scores"] >= threshold
        prediction = {key: value[good] for key, value in prediction.items()}
        if out is not None:
            drawn = f"drawn/{stems[path]}.jpg"
            report.save(report.draw(picture, prediction, predictor.classes), out / drawn, quality=QUALITY)
            size = {"width": picture.width, "height": picture.height}
            images.append({"id": len(images) + 1, "file_name": str(path), **size, "drawn": drawn})
            for item in results([prediction], [len(images)], ids):
                square = area(item["segmentation"]) if "segmentation" in item else item["bbox"][2] * item["bbox"][3]
                annotation = {"id": count + 1, **item, "area": square, "iscrowd": 0}
                file.write(f"{',' if count else ''}\n{json.dumps(annotation)}".encode())
                count += 1
        prediction.pop("masks", None)
        return {"objects": present(prediction, predictor.classes, threshold=threshold)}

    if out is None:
        found = _each(paths, skipped, boxes)
    else:
        (out / "drawn").mkdir(parents=True, exist_ok=True)
        with replacing(out / "predictions.json") as file:
            file.write(b'{"annotations": [')
            found = _each(paths, skipped, boxes)
            categories = [{"id": id, "name": name} for id, name in zip(ids, predictor.classes, strict=True)]
            file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n'.encode())
        say(f"written: {out}/predictions.json ({count} objects), and {len(images)} pictures in {out}/drawn")
    names = [Counter(item["label"] for item in image["objects"]).most_common() for image in found[:ROWS]]
    rows = [[f["file"], ", ".join(f"{n} {name}" for name, n in some)] for f, some in zip(found, names, strict=False)]
    _table(["file", f"found with a score of at least {threshold:g}"], rows, len(found))
    return found


def _segment(
    predictor: "Predictor", paths: list[Path], skipped: list[str], given: dict[str, Any]
) -> list[dict[str, Any]]:
    """Drawn classes, maps of class indices, and in predictions.json the share of each class."""
    from .. import report
    from ..files import write_text
    from ..find import find

    task, out, stems = find("tasks", predictor.task), Path(given["out"]) if given.get("out") else None, _stems(paths)
    settings = {"threshold": given["threshold"]} if "threshold" in given else {}
    for folder in [] if out is None else [out / "drawn", out / "maps"]:
        folder.mkdir(parents=True, exist_ok=True)

    def shares(path: Path, picture: "Image.Image") -> dict[str, Any]:
        prediction = predictor.predictions([picture])[0]
        result: dict[str, Any] = {"shares": task.present(prediction, predictor.classes, **settings)}
        if out is not None:
            result |= {"drawn": f"drawn/{stems[path]}.jpg", "map": f"maps/{stems[path]}.png"}
            report.save(report.draw(picture, prediction, predictor.classes), out / result["drawn"], quality=QUALITY)
            report.save(report.label_map(prediction["semantic"], predictor.classes), out / result["map"])
        return result

    found = _each(paths, skipped, shares)
    if out is not None:
        document = {"model": given["model"], "classes": predictor.classes, "results": found, "skipped": skipped}
        write_text(out / "predictions.json", json.dumps(document, indent=2) + "\n")
        say(f"written: {out}/predictions.json, and {len(found)} pictures in {out}/drawn and {out}/maps")
    most = [", ".join(f"{name} {100 * s:.1f}" for name, s in list(f["shares"].items())[:5]) for f in found[:ROWS]]
    rows = [[f["file"], text] for f, text in zip(found, most, strict=False)]
    _table(["file", "percent of the pixels"], rows, len(found))
    return found


def _table(columns: list[str], rows: list[list[str]], images: int) -> None:
    if rows:
        table(f"{images} images" + (f", the first {len(rows)}" if len(rows) < images else ""), columns, rows)


def _stems(paths: list[Path]) -> dict[Path, str]:
    """A name for what is written of each image: its own without the ending, numbered where another has it already."""
    used: set[str] = set()
    stems = {}
    for path in paths:
        tries = itertools.chain([path.stem], (f"{path.stem}-{i}" for i in itertools.count(2)))
        stems[path] = next(stem for stem in tries if stem.lower() not in used)
        used.add(stems[path].lower())
    return stems


def _write(folder: Path, document: dict[str, Any]) -> None:
    from .. import images, report
    from ..files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.json", json.dumps(document, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file", "rank", "name", "score"])
    for result in document["results"]:
        for rank, p in enumerate(result["predictions"], 1):
            writer.writerow([result["file"], rank, p["name"], f"{p['score']:.6f}"])
    write_text(folder / "predictions.csv", text.getvalue())
    shown = [result for result in document["results"] if result["predictions"]][:24]
    if shown:
        pictures = [images.read(r["file"]).resize((160, 160)) for r in shown]
        names = [f"{r['predictions'][0]['name']} {r['predictions'][0]['score']:.2f}" for r in shown]
        report.predictions(pictures, [None] * len(shown), names, folder / "predictions.png")
    say(f"written: {folder}/predictions.json, predictions.csv, predictions.png ({len(shown)} images)")
