"""`fleetnet predict`: images in; names, boxes, masks or label maps out."""

import csv
import dataclasses
import glob
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from ..errors import DataError, UsageError
from ..reading import to_json
from ._arguments import OF_OPEN_SIZE, TRUST, check_outputs
from ._limits import DetectorLimits
from ._settings import About, switch
from ._show import say, table

if TYPE_CHECKING:
    from PIL import Image

    from ..deploy.predictor import Predictor
    from ..images import Picture
    from ..predictions import Detections, Prediction

EXAMPLE = (
    "fleetnet predict --model runs/classification/fasternet_t0-photos new/*.jpg --out predictions"
)
EMBED_EXAMPLE = (
    "fleetnet predict --embed --model runs/classification/fasternet_t0-photos new/ --out features"
)
ROWS, QUALITY = 50, 92  # of the table (classifiers: all); of drawn JPEGs
SHOWN = 24  # pictures in predictions.png
ADDRESS = ("http://", "https://")

Source = str | Path  # an address, or a file


@dataclass(frozen=True, kw_only=True)
class Predict:
    model: str = field(
        metadata=About(help="run folder, checkpoint (.safetensors) or exported file")
    )
    source: list[str] = field(
        metadata=About(
            help="image files, folders, patterns or http(s) addresses",
            positional=True,
            nargs="*",
            missing="no image given",
        )
    )
    size: str | None = field(
        default=None, metadata=About(help=OF_OPEN_SIZE, usual="as exported", null=True)
    )
    top: int = field(
        default=3, metadata=About(help="classifiers: names an image", kind=PositiveInt)
    )
    limits: DetectorLimits = field(
        default_factory=DetectorLimits,
        metadata=About(
            help="what a detector keeps",
            otherwise={
                "score": About(
                    help="lowest score that is shown, 0 to 1 (default, of detectors: that of the "
                    "best F1 on the validation set, or 0.3 where the model does not know it; of "
                    "tags 0.5)"
                )
            },
        ),
    )
    threshold: float | None = field(
        default=None, metadata=About(help="the same as --score", kind=NonNegativeFloat)
    )
    out: str | None = field(
        default=None,
        metadata=About(
            help="folder for predictions.json and, of classifiers predictions.csv and "
            "predictions.png, of others the pictures with what was found (drawn/), of "
            "segmentation also label maps (maps/)"
        ),
    )
    embed: bool = switch(
        "instead of predictions, write OUT/embeddings.npz: the backbone's features of each image, "
        "averaged over its height and width (of checkpoints)"
    )
    trust: bool = switch(TRUST)
    threads: int = field(default=2, metadata=About(help="CPU threads", kind=PositiveInt))

    @property
    def score(self) -> float | None:
        """The lowest score to show; None where it is left to the model."""
        return self.threshold if self.limits.score is None else self.limits.score


def run(settings: Predict) -> dict[str, object]:
    _check(settings)
    predictor = _predictor(settings)
    sources, skipped, missing = _images(settings.source)
    results = _way(settings, predictor)(predictor, sources, skipped, settings)
    document: dict[str, object] = {
        "model": settings.model,
        "results": results,
        "skipped": skipped,
    }
    failed = len(sources) - len(results) + missing
    if failed:
        every = len(sources) + missing
        say(
            f"{failed} of {every} images could not be read (see above); the exit code is "
            f"{DataError.exit_code}"
        )
        document["exit_code"] = DataError.exit_code
    return document


def _check(settings: Predict) -> None:
    """`UsageError` for a score out of range or given twice, `WriteError` for the folder."""
    if settings.threshold is not None and settings.threshold > 1:
        raise UsageError(f"threshold is {settings.threshold}; allowed: 0 to 1")
    if settings.threshold is not None and settings.limits.score is not None:
        raise UsageError("--threshold is the same as --score: give one of them")
    check_outputs({"--out": settings.out})


def _predictor(settings: Predict) -> "Predictor":
    import torch

    from ..deploy.predictor import load
    from ..sizes import parse_size

    torch.set_num_threads(settings.threads)
    # Of a score to show, a detector is told when it is known whether one that is lower has to be
    # found first.
    predictor = load(
        settings.model,
        threads=settings.threads,
        limits=dataclasses.replace(settings.limits, score=None).to_dict(),
        trust=settings.trust,
        size=parse_size(settings.size) if settings.size else None,
    )
    if settings.score is not None:
        predictor.show_from(settings.score)
    return predictor


# What predictions.json says of a picture: its file, and what was found, by the task.
Entry = dict[str, Any]
Way = Callable[["Predictor", list[Source], list[str], Predict], list[Entry]]


def _way(settings: Predict, predictor: "Predictor") -> Way:
    """What makes the results of images: by what is asked for, and by what the task predicts."""
    from .. import tasks
    from ..predictions import Detections, LabelMap, Labels, Prediction, Tags

    if settings.embed:
        return _embed
    of_type: dict[type[Prediction], Way] = {
        Labels: _classify,
        Tags: _tag,
        Detections: _detect,
        LabelMap: _segment,
    }
    return of_type.get(tasks.find(predictor.task).PREDICTION, _present)


def _images(sources: list[str]) -> tuple[list[Source], list[str], int]:
    """Image files of files, folders and patterns, and addresses, each once; what was left out; how many hold none.

    `DataError` where all of them hold none.
    """
    from ..images import find_images

    images: list[Source] = []
    skipped: list[str] = []
    empty: list[str] = []
    for source in sources:
        here = Path(source)
        if source.startswith(ADDRESS):
            images.append(source)
            continue
        if here.is_dir():
            files, lost = find_images(here)
        else:
            files = (
                [here]
                if here.exists() or here.is_symlink()
                else sorted(map(Path, glob.glob(source, recursive=True)))
            )
            lost = []
        if not files:
            empty.append(_no_image(source))
        images += files
        skipped += lost
    if not images:
        raise DataError(empty[0])
    return list(dict.fromkeys(images)), [*skipped, *empty], len(empty)


def _no_image(source: str) -> str:
    """The message for a source that holds no image: what it is, and what is near it."""
    from ..data import check_exists

    if Path(source).is_dir():
        return f"no image in the folder {source!r}; allowed: image files, folders of such, patterns as 'photos/*.jpg'"
    if glob.has_magic(source):
        return f"no file fits the pattern {source!r}"
    try:
        check_exists(source)
    except DataError as error:
        return str(error)
    return f"{source!r} is no image"


def _each(
    predictor: "Predictor",
    sources: list[Source],
    skipped: list[str],
    make: "Callable[[Source, Picture], Entry]",
) -> list[Entry]:
    """What `make` says of each picture, one at a time; those that cannot be read are added to `skipped`, and shown."""
    from ..deploy.predictor import read_picture

    results = []
    for source in sources:
        try:
            preprocess = predictor.preprocess
            picture = read_picture(source, preprocess.values, count=preprocess.channels)
        except DataError as error:
            skipped.append(str(error))
            continue
        results.append({"file": str(source), **make(source, picture)})
    for line in skipped:
        say(f"skipped {line}")
    if not results:
        raise DataError(f"no image could be read; {len(skipped)} skipped")
    return results


def _embed(
    predictor: "Predictor", sources: list[Source], skipped: list[str], settings: Predict
) -> list[Entry]:
    """embeddings.npz: features (N, C) float32, files (N,), and model and preprocess as JSON."""
    import numpy as np

    from ..files import replacing

    if not settings.out:
        raise UsageError(
            f"--embed needs --out, the folder for embeddings.npz; example: {EMBED_EXAMPLE}"
        )
    predictor.check_embeds()
    features: list[np.ndarray] = []

    def embedded(source: Source, picture: "Picture") -> Entry:
        features.extend(predictor.embed(picture))
        return {"features": len(features[-1])}

    results = _each(predictor, sources, skipped, embedded)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "model": predictor.facts.model,
        "file": settings.model,
        "classes": predictor.classes,
    }
    with replacing(out / "embeddings.npz") as file:
        np.savez(
            file, features=np.stack(features), files=np.array([result["file"] for result in results]),
            model=np.array(to_json(facts)), preprocess=np.array(to_json(predictor.preprocess.to_dict())),
        )  # fmt: skip
    say(
        f"written: {out}/embeddings.npz: features {len(features)}x{len(features[0])}, files, "
        "model, preprocess"
    )
    return results


def _classify(
    predictor: "Predictor", sources: list[Source], skipped: list[str], settings: Predict
) -> list[Entry]:
    def names(source: Source, picture: "Picture") -> Entry:
        named = predictor.predict([picture], top=settings.top, threshold=settings.score)[0]
        if named and settings.out:
            of_class = small.setdefault(named[0][0], {})
            if len(of_class) < SHOWN and len(small) <= SHOWN:
                of_class[str(source)] = picture.image.resize((160, 160))
        return {"predictions": [{"name": name, "score": score} for name, score in named]}

    # class -> file -> the picture, of the first few of each class
    small: dict[str, dict[str, Image.Image]] = {}
    results = _each(predictor, sources, skipped, names)
    if settings.out:
        header = ["file", "rank", "name", "score"]
        lines = [
            [result["file"], rank, p["name"], f"{p['score']:.6f}"]
            for result in results
            for rank, p in enumerate(result["predictions"], 1)
        ]
        document = {"model": settings.model, "results": results, "skipped": skipped}
        shown = _of_all_classes(small)
        captions = {r["file"]: _caption(r["predictions"][:1], 1) for r in results}
        _write(Path(settings.out), document, [header, *lines], shown, captions)
    rows = [
        [r["file"], *(f"{p['name']} {p['score']:.3f}" for p in r["predictions"])] for r in results
    ]
    if rows:
        table(
            f"{len(rows)} images",
            ["file", *(f"top {i}" for i in range(1, max(map(len, rows))))],
            rows,
        )
    return results


def _tag(
    predictor: "Predictor", sources: list[Source], skipped: list[str], settings: Predict
) -> list[Entry]:
    """The tags of each picture, which may be none; predictions.csv can be read as tagged pictures."""
    small: dict[str, Image.Image] = {}  # file -> the picture, of the first

    def tags(source: Source, picture: "Picture") -> Entry:
        named = predictor.predict([picture], threshold=settings.score)[0]
        if settings.out and len(small) < SHOWN:
            small[str(source)] = picture.image.resize((160, 160))
        return {"predictions": [{"name": name, "score": score} for name, score in named]}

    results = _each(predictor, sources, skipped, tags)
    if settings.out:
        lines = [
            [
                result["file"],
                "|".join(p["name"] for p in result["predictions"]),
                "|".join(f"{p['score']:.6f}" for p in result["predictions"]),
            ]
            for result in results
        ]
        document = {"model": settings.model, "results": results, "skipped": skipped}
        captions = {r["file"]: _caption(r["predictions"], 3) or "no tag" for r in results}
        _write(Path(settings.out), document, [["file", "tags", "scores"], *lines], small, captions)
    rows = [
        [r["file"], ", ".join(f"{p['name']} {p['score']:.2f}" for p in r["predictions"])]
        for r in results[:ROWS]
    ]
    _table(["file", "tags"], rows, len(results))
    return results


def _of_all_classes(small: "Mapping[str, Mapping[str, Image.Image]]") -> "dict[str, Image.Image]":
    """At most SHOWN of the pictures: the first of each class, then the second of each, and so on."""
    in_turn = [
        (file, picture)
        for pictures in zip_longest(*(of_class.items() for of_class in small.values()))
        for file, picture in filter(None, pictures)
    ]
    return dict(in_turn[:SHOWN])


class CocoFile:
    """Detections in the layout of a COCO annotation file, with scores, and the pictures drawn beside it.

    They are written as they come: of all annotations only the number stays in memory.
    """

    def __init__(
        self, file: BinaryIO, folder: Path, stems: Mapping[Source, str], predictor: "Predictor"
    ) -> None:
        self.file = file
        self.folder = folder
        self.stems = stems
        self.classes = predictor.classes
        self.ids = predictor.facts.category_ids or list(range(1, len(predictor.classes) + 1))
        self.images: list[dict[str, object]] = []
        self.objects = 0
        file.write(b'{"annotations": [')

    def add(self, source: Source, picture: "Picture", detections: "Detections") -> None:
        from ..report.draw import save
        from ..rle import area

        drawn = f"drawn/{self.stems[source]}.jpg"
        save(_draw(picture, detections, self.classes), self.folder / drawn, quality=QUALITY)
        number = len(self.images) + 1
        image = {"id": number, "file_name": str(source), "width": picture.width}
        self.images.append({**image, "height": picture.height, "drawn": drawn})
        for item in detections.coco_items(number, self.ids, (picture.height, picture.width)):
            if "segmentation" in item:
                square = area(item["segmentation"])
            else:
                _, _, width, height = item["bbox"]
                square = width * height
            annotation = {"id": self.objects + 1, **item, "area": square, "iscrowd": 0}
            self.file.write(f"{',' if self.objects else ''}\n{to_json(annotation)}".encode())
            self.objects += 1

    def end(self) -> None:
        categories = [
            {"id": id, "name": name} for id, name in zip(self.ids, self.classes, strict=True)
        ]
        self.file.write(
            f'],\n"images": {to_json(self.images)},\n"categories": {to_json(categories)}}}\n'.encode()
        )


def _detect(
    predictor: "Predictor", sources: list[Source], skipped: list[str], settings: Predict
) -> list[Entry]:
    """Drawn boxes and masks, and predictions.json in the layout of a COCO annotation file."""
    from ..files import replacing
    from ..predictions import Detections, all_of

    threshold = predictor.score
    most = predictor.limits.count if predictor.limits else 0  # a detector has limits
    say(f"lowest score: {threshold:.2f}, {predictor.score_from} (--score changes it)")
    full = 0  # pictures with as many objects as are kept
    coco: CocoFile | None = None

    def objects(source: Source, picture: "Picture") -> Entry:
        nonlocal full
        (detections,) = all_of(Detections, predictor.predictions([picture]))
        detections = detections.from_score(threshold)
        full += len(detections) >= most
        if coco is not None:
            coco.add(source, picture, detections)
        without_masks = dataclasses.replace(detections, masks=None)
        return {"objects": without_masks.present(predictor.classes, threshold=threshold)}

    if settings.out:
        out = Path(settings.out)
        (out / "drawn").mkdir(parents=True, exist_ok=True)
        with replacing(out / "predictions.json") as file:
            coco = CocoFile(file, out, _stems(sources), predictor)
            results = _each(predictor, sources, skipped, objects)
            coco.end()
        say(
            f"written: {out}/predictions.json ({coco.objects} objects), and {len(coco.images)} "
            f"pictures in {out}/drawn"
        )
    else:
        results = _each(predictor, sources, skipped, objects)
    if full:
        say(
            f"{full} pictures have the {most} objects that are kept at most, so there may be more: "
            "see --max-objects"
        )
    rows = [[result["file"], _counted(result["objects"])] for result in results[:ROWS]]
    _table(["file", f"found with a score of at least {threshold:.3g}"], rows, len(results))
    return results


def _counted(objects: Iterable[Mapping[str, object]]) -> str:
    """How many objects there are of each class: "3 cat, 1 dog"."""
    counts = Counter(item["label"] for item in objects).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts)


def _segment(
    predictor: "Predictor", sources: list[Source], skipped: list[str], settings: Predict
) -> list[Entry]:
    """Drawn classes, maps of class indices, and in predictions.json the share of each class."""
    from ..files import write_text
    from ..predictions import LabelMap, all_of
    from ..report.draw import label_map as draw_labels
    from ..report.draw import save

    stems = _stems(sources)
    out = Path(settings.out) if settings.out else None
    lowest = settings.score or 0.0  # share of the pixels
    for folder in [] if out is None else [out / "drawn", out / "maps"]:
        folder.mkdir(parents=True, exist_ok=True)

    def shares(source: Source, picture: "Picture") -> Entry:
        (label_map,) = all_of(LabelMap, predictor.predictions([picture]))
        shares_of = label_map.present(predictor.classes, threshold=lowest)
        result: Entry = {"shares": shares_of}
        if out is not None:
            result |= {"drawn": f"drawn/{stems[source]}.jpg", "map": f"maps/{stems[source]}.png"}
            save(
                _draw(picture, label_map, predictor.classes),
                out / result["drawn"],
                quality=QUALITY,
            )
            save(draw_labels(label_map.labels, predictor.classes), out / result["map"])
        return result

    results = _each(predictor, sources, skipped, shares)
    if out is not None:
        document = {
            "model": settings.model,
            "classes": predictor.classes,
            "results": results,
            "skipped": skipped,
        }
        write_text(out / "predictions.json", to_json(document, indent=2) + "\n")
        say(
            f"written: {out}/predictions.json, and {len(results)} pictures in {out}/drawn and "
            f"{out}/maps"
        )
    rows = [[result["file"], _largest(result["shares"])] for result in results[:ROWS]]
    _table(["file", "percent of the pixels"], rows, len(results))
    return results


def _largest(shares: Mapping[str, float]) -> str:
    """The first five classes, with their shares in percent."""
    return ", ".join(f"{name} {100 * share:.1f}" for name, share in list(shares.items())[:5])


def _present(
    predictor: "Predictor", sources: list[Source], skipped: list[str], settings: Predict
) -> list[Entry]:
    """Predictions of any other type: what they say in words in predictions.json, and drawn."""
    from ..files import write_text
    from ..report.draw import save

    stems, lowest = _stems(sources), settings.score or 0.0
    out = Path(settings.out) if settings.out else None
    if out is not None:
        (out / "drawn").mkdir(parents=True, exist_ok=True)

    def words(source: Source, picture: "Picture") -> Entry:
        (prediction,) = predictor.predictions([picture])
        if out is not None:
            drawn = out / "drawn" / f"{stems[source]}.jpg"
            save(_draw(picture, prediction, predictor.classes), drawn, quality=QUALITY)
        return {"prediction": prediction.present(predictor.classes, threshold=lowest)}

    results = _each(predictor, sources, skipped, words)
    if out is not None:
        document = {"model": settings.model, "results": results, "skipped": skipped}
        write_text(out / "predictions.json", to_json(document, indent=2) + "\n")
        say(f"written: {out}/predictions.json, and {len(results)} pictures in {out}/drawn")
    rows = [[result["file"], str(result["prediction"])] for result in results[:ROWS]]
    _table(["file", "prediction"], rows, len(results))
    return results


def _draw(picture: "Picture", prediction: "Prediction", classes: list[str]) -> "Image.Image":
    """A prediction on the image of a picture: of a large one, that is a reduced copy."""
    from ..predictions import Detections

    image = picture.image
    if isinstance(prediction, Detections) and image.height < picture.height:
        image = image.reduce(2)  # there is no room for several copies as large
    scale = image.height / picture.height, image.width / picture.width
    return prediction.draw(image, classes, scale=scale)


def _table(columns: list[str], rows: list[list[str]], images: int) -> None:
    if rows:
        table(
            f"{images} images" + (f", the first {len(rows)}" if len(rows) < images else ""),
            columns,
            rows,
        )


def _stems(sources: list[Source]) -> dict[Source, str]:
    """A name for what is written of each image: its own without the ending, numbered where another has it already."""
    used: set[str] = set()
    stems: dict[Source, str] = {}
    for source in sources:
        name = source.stem if isinstance(source, Path) else _name_at(source)
        tries = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
        stems[source] = next(stem for stem in tries if stem.lower() not in used)
        used.add(stems[source].lower())
    return stems


def _name_at(address: str) -> str:
    """The name of a picture at an address, without its ending, of letters, digits, `-` and `_` alone."""
    last = unquote(urlsplit(address).path).rpartition("/")[2].rpartition(".")
    return re.sub("[^A-Za-z0-9_-]", "_", last[0] or last[2])[:100] or "picture"


def _write(
    folder: Path,
    document: Mapping[str, Any],
    lines: list[list[Any]],
    small: "dict[str, Image.Image]",
    captions: dict[str, str],
) -> None:
    """predictions.json, the lines as .csv, and .png of the pictures in `small`, by file with captions."""
    from ..files import write_text
    from ..report import figures

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.json", to_json(document, indent=2) + "\n")
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    write_text(folder / "predictions.csv", text.getvalue())
    if small:
        names = [captions[file] for file in small]
        figures.predictions(
            list(small.values()), [None] * len(small), names, folder / "predictions.png"
        )
    say(
        f"written: {folder}/predictions.json, predictions.csv, predictions.png ({len(small)} "
        "images)"
    )


def _caption(predictions: list[dict[str, Any]], most: int) -> str:
    """The most probable names, one a line."""
    lines = [f"{p['name']} {p['score']:.2f}" for p in predictions[:most]]
    more = len(predictions) - most
    return "\n".join(lines) + (f" and {more} more" if more > 0 else "")
