"""report.html of a run: one file that needs no other, with all that one looks at after training.

What is on the page is a plain description, `Page`; where a part is empty, its heading is left out.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_text

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em; overflow-wrap: anywhere }
h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
figure { margin: 1em 0 } figcaption { color: #555 }
img { max-width: 100% }
.table { overflow-x: auto }
table { border-collapse: collapse } td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid #eee }
td:first-child, th:first-child { text-align: left }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 1em } dt { color: #555 } dd { margin: 0 }
"""


@dataclass(frozen=True)
class Page:
    """What report.html shows, from top to bottom."""

    title: str
    about: Mapping[str, object] = field(default_factory=dict)  # model, data, date, versions
    best: Mapping[str, object] = field(default_factory=dict)  # the figures of the best epoch
    notes: Sequence[str] = ()
    by_class: Sequence[Mapping[str, object]] = ()  # a row a class
    figures: Sequence[tuple[Path, str]] = ()  # PNG or JPEG files, and what each shows
    epochs: Sequence[Mapping[str, object]] = ()  # a row an epoch
    settings: Mapping[str, object] = field(default_factory=dict)


def write(page: Page, path: Path | str) -> None:
    """The page as one HTML file, with its pictures inside."""
    parts = [
        _pairs(page.about),
        _section("Best epoch", _pairs(page.best) + _notes(page.notes)),
        _section("By class", _table(page.by_class)),
        *(_section(None, _figure(file, caption)) for file, caption in page.figures),
        _section("Epochs", _table(page.epochs)),
        _section("Settings", _pairs(page.settings), folded=True),
    ]
    title = html.escape(page.title)
    text = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
    )
    write_text(path, text + "\n".join(part for part in parts if part) + "\n</html>\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _pairs(values: Mapping[str, object]) -> str:
    if not values:
        return ""
    rows = "".join(f"<dt>{_cell(key)}</dt><dd>{_cell(value)}</dd>" for key, value in values.items())
    return f"<dl>{rows}</dl>"


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p>{_cell(note)}</p>" for note in notes)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """A table with a column for every key of any row; empty where a row has it not."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{_cell(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{_cell(row[key]) if key in row else ''}</td>" for key in columns)
        + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _figure(file: Path, caption: str) -> str:
    kind = "jpeg" if file.suffix in (".jpg", ".jpeg") else "png"
    content = base64.b64encode(file.read_bytes()).decode()
    picture = f'<img alt="{html.escape(caption)}" src="data:image/{kind};base64,{content}">'
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{picture}</figure>"


def _section(heading: str | None, content: str, folded: bool = False) -> str:
    if not content:
        return ""
    if heading is None:
        return content
    if folded:
        return f"<details><summary>{heading}</summary>{content}</details>"
    return f"<h2>{heading}</h2>\n{content}"
