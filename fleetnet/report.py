"""Figures, and one HTML page that holds them: plain dicts, lists and images in, files out.

matplotlib is drawn through its `Figure` objects, without pyplot: no window, no global state.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UsageError

PANELS = {  # title of a panel -> the last parts of the names that belong there
    "loss": ("loss", "cross_entropy"),
    "percent": ("top1", "top5"),
    "learning rate": ("lr",),
}
RIGHT, WRONG = "#1a7f37", "#cf222e"


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by dotted name: {"raw": {"top1": 5}} -> {"raw.top1": 5}."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = value
    return found


def _figure(width: float, height: float) -> Any:
    """`width` and `height` in inches of 100 pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def curves(log: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Losses, accuracies and the learning rate over the epochs, as PNG.

    `log` has one dict an epoch, with "epoch" and numbers in any nesting, such as {"epoch": 0, "raw": {"top1": 51.2}}.
    Epochs without a number (not evaluated) are skipped. Raises `UsageError` if there is nothing to draw.
    """
    lines = [_flat(line) for line in log]
    names = list(dict.fromkeys(name for line in lines for name in line))
    panels = {
        title: drawn
        for title, ends in PANELS.items()
        if (drawn := [name for name in names if name.split(".")[-1] in ends])
    }
    if not panels:
        raise UsageError(f"no curve to draw: {len(lines)} epochs with {', '.join(names) or 'no numbers'}")
    figure = _figure(5 * len(panels), 3.6)
    for axes, (title, drawn) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in drawn:
            points = [(line["epoch"] + 1, line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)


def predictions(images: Sequence[Any], truths: Sequence[str | None], names: Sequence[str], path: Path | str) -> None:
    """A sheet of images, each under its predicted name, as PNG: green if it is the truth, red with the truth if not.

    `images` are PIL images or arrays (H, W, 3), uint8; a truth of None (unknown) is drawn black. Raises `UsageError`
    if the numbers differ or are zero.
    """
    if not images or not len(images) == len(truths) == len(names):
        raise UsageError(f"{len(images)} images, {len(truths)} truths, {len(names)} names; allowed: equal, not 0")
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(2 * columns, 2.3 * rows)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            right, known = names[i] == truths[i], truths[i] is not None
            text = names[i] if right or not known else f"{names[i]}\n(is {truths[i]})"
            axes.imshow(images[i])
            color = "black" if not known else RIGHT if right else WRONG
            axes.set_title(text, color=color, fontsize=9, parse_math=False)
    figure.savefig(path)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path | str) -> None:
    """Counts [truth][prediction] as a PNG, shaded by the share of each truth; numbers in the cells up to 30 classes."""
    if not classes or len(matrix) != len(classes) or any(len(row) != len(classes) for row in matrix):
        raise UsageError(f"the confusion matrix has {len(matrix)} rows for {len(classes)} classes; allowed: square")
    side = min(max(4.0, 0.45 * len(classes) + 2), 16)
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="truth")
    if len(classes) <= 30:
        names = [name.replace("$", r"\$") for name in classes]  # a pair of $ would be taken for a formula
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        for y, row in enumerate(matrix):
            for x, count in enumerate(row):
                if count:
                    color = "white" if shares[y][x] > 0.5 else "black"
                    axes.text(x, y, str(count), ha="center", va="center", color=color)
    figure.savefig(path)


def page(
    title: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], figures: Sequence[Path], path: Path | str
) -> None:
    """One HTML file that needs no other: the summary, the PNG figures, and a table of the rows (an epoch each)."""

    def cell(value: Any) -> str:
        return html.escape(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value))

    columns = list(dict.fromkeys(key for row in rows for key in row))
    facts = "".join(f"<tr><th>{cell(key)}</th><td>{cell(value)}</td></tr>" for key, value in summary.items())
    pictures = "".join(
        f'<img alt="{html.escape(f.stem)}" src="data:image/png;base64,{base64.b64encode(f.read_bytes()).decode()}">'
        for f in figures
    )
    head = "".join(f"<th>{cell(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows)
    style = "body{font:14px sans-serif;margin:2em}img{max-width:100%;display:block}td,th{padding:2px 8px}"
    Path(path).write_text(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{style}</style>\n<h1>{html.escape(title)}</h1>\n<table>{facts}</table>\n{pictures}\n"
        f"<table><tr>{head}</tr>{body}</table></html>\n",
        encoding="utf-8",
    )
