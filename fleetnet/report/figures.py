"""Figures of a run and of measurements: plain dicts and lists in, PNG files out.

matplotlib is drawn through its `Figure` objects, without pyplot: no window, no global state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..errors import UsageError
from ..files import replacing
from .draw import Rectangle, colors, overlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from PIL import Image

METRICS = {  # of evaluations, as they are called in the log -> in a figure, in the order of drawing
    "top1": "top-1",
    "top5": "top-5",
    "mask_AP": "mask AP",
    "mask_AP50": "mask AP at IoU 0.5",
    "AP": "box AP",
    "AP50": "box AP at IoU 0.5",
    "mIoU": "mean IoU",
    "accuracy": "accuracy",
}
NO_LOSS = ("images", "lr")  # numbers under "train" that are no losses
FORMS = {"raw": "raw weights", "ema": "averaged weights"}
RIGHT, WRONG = "#1a7f37", "#cf222e"
LEGEND = 20  # names in a legend at most
BARS = 60  # classes in one figure at most
PAIRS = 30  # of classes that are confused, in one figure at most
NUMBERED = 30  # classes of which a confusion matrix shows names and numbers
NOTHING = "(nothing)"

Shade = tuple[float, float, float]  # red, green, blue from 0 to 1
Horizontal = Literal["left", "center", "right"]
Vertical = Literal["bottom", "center", "top"]


def _flat(line: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Numbers by dotted name: {"raw": {"top1": 5}} -> {"raw.top1": 5}."""
    numbers: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            numbers |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + key] = value
    return numbers


def _figure(width: float, height: float) -> "Figure":
    """`width` and `height` in inches of 100 pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: "Figure", path: Path | str) -> None:
    with replacing(Path(path)) as file:
        figure.savefig(file, format=Path(path).suffix[1:] or "png")


def _as_text(name: str) -> str:
    """A name as matplotlib shows it: a pair of $ would be taken for a formula."""
    return name.replace("$", r"\$")


def _shades(count: int) -> list[Shade]:
    """`colors` as matplotlib takes them, from 0 to 1."""
    return [(red / 255, green / 255, blue / 255) for red, green, blue in colors(count)]


# Of a training ------------------------------------------------------------------------------------


def _panels(lines: Sequence[Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """What is drawn of the flat lines of a log.

    Title of a panel -> name of a number in the log -> name of its line.
    """
    names = list(dict.fromkeys(name for line in lines for name in line))
    # Where there are averaged weights, they are what is used.
    form = "ema" if any(name.startswith("ema.") for name in names) else "raw"
    losses = _losses(names)
    if f"{form}.loss" in names:
        losses[f"{form}.loss"] = "loss of evaluation"
    metrics = {}
    for metric, text in METRICS.items():
        for name in (f"{form}.{metric}", metric):
            if name in names:
                metrics[name] = text
    rates = {name: "learning rate" for name in names if name in ("train.lr", "lr")}
    panels = {
        "training": losses,
        f"evaluation, percent ({FORMS[form]})": metrics,
        "learning rate": rates,
    }
    return {title: named for title, named in panels.items() if named}


def _losses(names: Sequence[str]) -> dict[str, str]:
    """The names that are losses of a training -> how they are called in a figure."""
    losses = {}
    for name in names:
        first, _, loss = name.rpartition(".")
        if first == "train" and loss not in NO_LOSS:
            losses[name] = "all losses" if loss == "loss" else loss.replace("_", " ")
        elif name == "loss":
            losses[name] = "loss"
    if len(losses) <= 2 and "train.loss" in losses:  # a task of one loss: the sum is the same
        return {"train.loss": "loss"}
    return losses


def curves(log: Sequence[Mapping[str, object]], path: Path | str) -> None:
    """Losses, accuracies (AP, mIoU) and the learning rate over the epochs, as PNG.

    `log` has one dict an epoch, with "epoch" and numbers in any nesting, such as {"epoch": 1,
    "raw": {"top1": 51.2}}. Where there are averaged weights, evaluations are theirs. Epochs without
    a number (not evaluated) are skipped. Raises `UsageError` if there is nothing to draw.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [_flat(line) for line in log]
    panels = _panels(lines)
    if not panels:
        names = list(dict.fromkeys(name for line in lines for name in line))
        raise UsageError(
            f"no curve to draw: {len(lines)} epochs with {', '.join(names) or 'no numbers'}"
        )
    figure = _figure(5 * len(panels), 3.6)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    epochs = [line["epoch"] for line in lines]
    for axes, (title, named) in zip(all_axes, panels.items(), strict=True):
        for name, text in named.items():
            evaluated = [line for line in lines if name in line]
            xs = [line["epoch"] for line in evaluated]
            ys = [line[name] for line in evaluated]
            axes.plot(xs, ys, label=text, marker="." if len(xs) < 40 else None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if min(epochs) == max(epochs):
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)  # else the axis has fractions of an epoch
        axes.grid(alpha=0.3)
        if len(named) > 1:
            axes.legend(fontsize="small")
    _save(figure, path)


def predictions(
    images: Sequence["Image.Image | np.ndarray"],
    truths: Sequence[str | None],
    names: Sequence[str],
    path: Path | str,
) -> None:
    """A sheet of images, each under its predicted name, as PNG.

    A name is green if it is the truth, and red with the truth beside it if not. `images` are PIL
    images or arrays (H, W, 3), uint8; a truth of None (unknown) is drawn black. Raises `UsageError`
    if the numbers differ or are zero.
    """
    if not images or not len(images) == len(truths) == len(names):
        raise UsageError(
            f"{len(images)} images, {len(truths)} truths, {len(names)} names; allowed: equal, not 0"
        )
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(2 * columns, 2.3 * rows)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in all_axes:
        axes.axis("off")
    for axes, image, truth, name in zip(all_axes, images, truths, names, strict=False):
        axes.imshow(image)
        text, color = name, "black"
        if truth is not None:
            color = RIGHT if name == truth else WRONG
            text = name if name == truth else f"{name}\n(is {truth})"
        axes.set_title(text, color=color, fontsize=9, parse_math=False)
    _save(figure, path)


# Of an evaluation ---------------------------------------------------------------------------------


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path | str) -> None:
    """Counts [truth][prediction] as a PNG, shaded by the share of each truth.

    Up to NUMBERED classes the counts are written into the cells.
    """
    sides = [len(matrix), *(len(row) for row in matrix)]
    if not classes or any(side != len(classes) for side in sides):
        raise UsageError(
            f"the confusion matrix has {len(matrix)} rows for {len(classes)} classes; "
            "allowed: square"
        )
    side = min(max(4.0, 0.45 * len(classes) + 2), 16)
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="truth")
    if len(classes) <= NUMBERED:
        names = [_as_text(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        cells = ((x, y, count) for y, row in enumerate(matrix) for x, count in enumerate(row))
        for x, y, count in cells:
            if count:
                color = "white" if shares[y][x] > 0.5 else "black"
                axes.text(x, y, str(count), ha="center", va="center", color=color)
    _save(figure, path)


def precision_recall(points: Mapping[str, Sequence[Sequence[float]]], path: Path | str) -> None:
    """Precision over recall of each class, and their mean in black, as PNG.

    `points` are [[recall, precision], ...] from 0 to 1. Classes without points are left out. Raises
    `UsageError` if none has any.
    """
    lines = {name: np.asarray(line) for name, line in points.items() if len(line)}  # (n, 2)
    if not lines:
        raise UsageError(f"no precision to draw: none of {len(points)} classes has points")
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for name, shade in zip(points, _shades(len(points)), strict=True):
        if name in lines:
            recall, precision = lines[name].T
            axes.plot(recall, precision, label=_as_text(name), color=shade, linewidth=1)
    recalls = np.linspace(0, 1, 101)
    mean = np.mean([np.interp(recalls, *line.T) for line in lines.values()], axis=0)
    axes.plot(recalls, mean, label="mean", color="black", linewidth=2)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if len(lines) <= LEGEND:
        figure.legend(loc="outside right upper", fontsize="small")
    _save(figure, path)


def bars(values: Mapping[str, float | None], title: str, path: Path | str) -> None:
    """A bar of 0 to 100 percent for each name, and the number beside it; "-" for None. As PNG."""
    if not values:
        raise UsageError("no bar to draw: there are no values")
    figure = _figure(6, min(max(2.0, 0.25 * len(values) + 1), 60))
    axes = figure.subplots()
    names = [_as_text(name) for name in values]
    places = range(len(names))  # by place, not by name: bars of equal names would be drawn as one
    axes.barh(places, [value or 0 for value in values.values()], color=_shades(len(names)))
    for y, value in enumerate(values.values()):
        text = "-" if value is None else f"{value:.1f}"
        axes.text((value or 0) + 1, y, text, va="center", fontsize=8)
    axes.set_yticks(places, names)
    axes.set(title=title, xlim=(0, 110), ylim=(len(names) - 0.4, -0.6))
    _save(figure, path)


def confused(pairs: Sequence[Sequence[int]], classes: Sequence[str], path: Path | str) -> None:
    """A bar for each of the most confused pairs of classes, [truth, prediction, count], as PNG.

    Raises `UsageError` if there is no pair.
    """
    if not pairs:
        raise UsageError("no pair to draw: nothing was confused")
    shown = pairs[:PAIRS]
    figure = _figure(8, 0.25 * len(shown) + 1)
    axes = figure.subplots()
    places = range(len(shown))
    counts = [count for _, _, count in shown]
    axes.barh(places, counts, color=WRONG)
    for y, count in enumerate(counts):
        axes.text(count, y, f" {count}", va="center", fontsize=8)
    names = [
        _as_text(_mistake(classes[truth], classes[predicted])) for truth, predicted, _ in shown
    ]
    axes.set_yticks(places, names)
    axes.set(title="most confused", xlim=(0, 1.15 * max(counts)), ylim=(len(shown) - 0.4, -0.6))
    _save(figure, path)


def _mistake(truth: str, predicted: str) -> str:
    """A pair of classes in words; of detectors one of the two may be NOTHING."""
    if truth == NOTHING:
        return f"{predicted} where nothing is"
    if predicted == NOTHING:
        return f"{truth} not found"
    return f"{truth} taken for {predicted}"


def over_score(
    curves: Mapping[str, Any], classes: Sequence[str], best: float | None, path: Path | str
) -> None:
    """Precision, recall and F1 of all objects over the score, and F1 of each class, as PNG.

    `curves` is what a detector's metric gives: lists over the scores, in percent, None where
    nothing is measured. `best` is the score where the F1 of all is best.
    """
    figure = _figure(7, 4.5)
    axes = figure.subplots()

    def line(values: Sequence[float | None], **style: Any) -> None:
        measured = [np.nan if value is None else value for value in values]
        axes.plot(curves["score"], measured, **style)

    by_class = curves.get("F1_by_class", [])
    named = len(by_class) <= LEGEND
    for name, values, shade in zip(classes, by_class, _shades(len(by_class)), strict=False):
        label = _as_text(f"F1 of {name}") if named and any(values) else None
        line(values, label=label, color=shade, linewidth=0.8)
    line(curves["precision"], label="precision", color="black", linestyle="dotted")
    line(curves["recall"], label="recall", color="black", linestyle="dashed")
    line(curves["F1"], label="F1", color="black", linewidth=2)
    if best is not None:
        axes.axvline(best, color="gray", linewidth=1)
        axes.text(best, 101, f"best F1 at {best:.2f}", ha="center", va="bottom", fontsize=8)
    axes.set(xlabel="lowest score that is kept", ylabel="percent", xlim=(0, 1), ylim=(0, 106))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    _save(figure, path)


def metrics(result: Mapping[str, Any], classes: Sequence[str], folder: Path) -> list[Path]:
    """The figures that a task's metric has data for, into `folder`; their files.

    Of more than BARS classes the lowest are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def file(name: str) -> Path:
        written.append(folder / f"{name}.png")
        return written[-1]

    # Detectors have one class more: what they saw where nothing is, and what they did not find.
    of_confusion = [*classes, NOTHING]
    if matrix := result.get("confusion"):
        confusion(matrix, of_confusion[: len(matrix)], file("confusion"))
    if pairs := result.get("confused"):
        confused(pairs, of_confusion, file("confused"))
    for title, values in _by_class(result, classes).items():
        shown, which = _lowest(values)
        name = f"{title.lower().replace(' ', '_')}_by_class"
        bars(shown, f"{title}, percent{which}", file(name))
    for kind in ("", "mask_"):
        points = result.get(f"{kind}pr", {})
        if any(points.values()):
            precision_recall(points, file(f"{kind}precision_recall"))
    if "curves" in result:
        over_score(result["curves"], classes, result["score"], file("over_score"))
    return written


def _by_class(
    result: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Mapping[str, float | None]]:
    """What was measured of each class apart, in percent: title -> values by class."""
    measured = {"AP": result.get("per_class"), "mask AP": result.get("mask_per_class")}
    if "iou" in result:
        measured["IoU"] = dict(zip(classes, result["iou"], strict=True))
    if "top1" in result and "by_class" in result:
        measured["F1"] = {row["class"]: row["F1"] for row in result["by_class"]}
    return {title: values for title, values in measured.items() if values}


def _lowest(values: Mapping[str, float | None]) -> tuple[Mapping[str, float | None], str]:
    """All, or the BARS lowest of those that were measured, and words for a title about it."""
    if len(values) <= BARS:
        return values, ""
    measured = {name: value for name, value in values.items() if value is not None}
    lowest = sorted(measured, key=lambda name: measured[name])[:BARS]
    return {name: measured[name] for name in lowest}, f": the {BARS} lowest of {len(values)}"


# Of measurements ----------------------------------------------------------------------------------


class Point(NamedTuple):
    """A measured network in a plot."""

    name: str
    group: str  # of one color, such as a runtime
    milliseconds: float
    accuracy: float  # percent


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.milliseconds for point in points], [point.accuracy for point in points]


def pareto(points: Sequence[Point], path: Path | str, accuracy: str = "accuracy, %") -> list[Point]:
    """Accuracy over latency as a PNG, with a line through the front.

    Returns the points of the front, the fastest first: those that nothing as fast is more accurate
    than. Raises `UsageError` if there is no point.
    """
    if not points:
        raise UsageError("no point to draw: there are no accuracies")
    from matplotlib.ticker import LogLocator, NullFormatter

    front = _front(points)
    figure = _figure(9, 5.5)
    axes = figure.subplots()
    xs, ys = _coordinates(front)
    axes.plot(xs, ys, color="gray", linewidth=1, drawstyle="steps-post", zorder=0)
    groups = list(dict.fromkeys(point.group for point in points))
    for group, shade in zip(groups, _shades(len(groups)), strict=True):
        of_group = [point for point in points if point.group == group]
        xs, ys = _coordinates(of_group)
        axes.scatter(xs, ys, color=shade, label=_as_text(group), s=24)
    axes.set(xlabel="latency of one image, ms", ylabel=accuracy, xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.12)  # room for names beside the points
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    _name_points(figure, axes, points, front)
    _save(figure, path)
    return front


def _front(points: Sequence[Point]) -> list[Point]:
    """Those that nothing as fast is more accurate than, the fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.milliseconds, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


# Where a name may stand beside its point: offset in points of type, and how the text is aligned
# there.
BESIDE: list[tuple[int, int, Horizontal, Vertical]] = [
    (5, 0, "left", "center"),
    (-5, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 6, "left", "bottom"),
    (5, -6, "left", "top"),
    (-5, 6, "right", "bottom"),
    (-5, -6, "right", "top"),
    (14, 16, "left", "bottom"),
    (14, -16, "left", "top"),
    (-14, 16, "right", "bottom"),
    (-14, -16, "right", "top"),
    (24, 30, "left", "bottom"),
    (24, -30, "left", "top"),
    (-24, 30, "right", "bottom"),
    (-24, -30, "right", "top"),
]
LINE = {"arrowstyle": "-", "color": "gray", "linewidth": 0.5}  # from a point to a name far from it


def _name_points(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[Point],
    front: Sequence[Point],
) -> None:
    """The name of each point where it covers neither another name nor a point.

    It stays inside of the axes. Those on the front come first. A name without such a place is left
    out: the printed table has it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # places everything else
    frame = axes.get_window_extent()
    at = [axes.transData.transform((point.milliseconds, point.accuracy)) for point in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at]
    for point in sorted(points, key=lambda point: point not in front):
        where = point.milliseconds, point.accuracy
        weight = "bold" if point in front else "normal"
        for dx, dy, horizontal, vertical in BESIDE:
            far = abs(dy) > 10
            text = axes.annotate(
                _as_text(point.name),
                where,
                (dx, dy),
                textcoords="offset points",
                fontsize=7,
                fontweight=weight,
                ha=horizontal,
                va=vertical,
                arrowprops=LINE if far else None,
            )
            x0, y0, x1, y1 = place = _text_extent(canvas, text)  # without its line
            inside = frame.x0 <= x0 and x1 <= frame.x1 and frame.y0 <= y0 and y1 <= frame.y1
            if inside and not any(overlap(place, other) for other in taken):
                taken.append(place)
                break
            text.remove()


def _text_extent(canvas: "FigureCanvasAgg", text: "Annotation") -> Rectangle:
    """The rectangle of an annotation's text alone, in pixels of the figure."""
    from matplotlib.text import Text

    text.update_positions(canvas.get_renderer())
    x0, y0, x1, y1 = Text.get_window_extent(text, canvas.get_renderer()).extents
    return x0, y0, x1, y1
