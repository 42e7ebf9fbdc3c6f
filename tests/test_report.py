"""Figures show what they are given; a page needs no other file."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fleetnet import report
from fleetnet.errors import UsageError

LOG = [
    {"epoch": 0, "train": {"loss": 2.0, "lr": 0.1}, "skipped": [], "seconds": 3},
    {"epoch": 1, "train": {"loss": 1.5, "lr": 0.05}, "raw": {"top1": 40.0, "loss": 1.7}, "ema": {"top1": 41.0}},
    {"epoch": 2, "train": {"loss": 1.2, "lr": 0.0}, "raw": {"top1": 55.0, "loss": 1.4}, "ema": {"top1": 52.0}},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures made during a test, to look inside."""
    figures, make = [], report._figure

    def keep(*size: float) -> object:
        figures.append(make(*size))
        return figures[-1]

    monkeypatch.setattr(report, "_figure", keep)
    return figures


def opened(path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_curves(tmp_path, drawn):
    report.curves(LOG, tmp_path / "curves.png")
    assert opened(tmp_path / "curves.png").size == (1500, 360)
    lines = {
        axes.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in drawn[0].axes
    }
    assert list(lines) == ["loss", "percent", "learning rate"]
    assert lines["loss"]["train.loss"] == [[1, 2.0], [2, 1.5], [3, 1.2]]
    assert lines["percent"] == {"raw.top1": [[2, 40.0], [3, 55.0]], "ema.top1": [[2, 41.0], [3, 52.0]]}


@pytest.mark.parametrize("log", [[], [{"epoch": 0, "seconds": 1.5}]])
def test_curves_of_nothing(log, tmp_path):
    with pytest.raises(UsageError, match=f"no curve to draw: {len(log)} epochs"):
        report.curves(log, tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("truths", "expected"),
    [
        (["cat", "a$b"], [("cat", report.RIGHT), ("a$b", report.RIGHT)]),
        (["cat", "dog"], [("cat", report.RIGHT), ("a$b\n(is dog)", report.WRONG)]),
        ([None, "cat"], [("cat", "black"), ("a$b\n(is cat)", report.WRONG)]),
    ],
)
def test_predictions_are_green_or_red(truths, expected, tmp_path, drawn):
    images = [Image.new("RGB", (20, 30), "gray"), np.full((8, 8, 3), 90, np.uint8)]
    report.predictions(images, truths, ["cat", "a$b"], tmp_path / "sheet.png")
    assert opened(tmp_path / "sheet.png").size == (400, 230)
    assert [(axes.get_title(), axes.title.get_color()) for axes in drawn[0].axes] == expected


def test_many_predictions_fill_rows(tmp_path):
    report.predictions([Image.new("RGB", (9, 9))] * 8, ["x"] * 8, ["x"] * 8, tmp_path / "sheet.png")
    assert opened(tmp_path / "sheet.png").size == (1200, 460)


@pytest.mark.parametrize("count", [0, 2])
def test_predictions_must_match(count, tmp_path):
    with pytest.raises(UsageError, match=f"{count} images, {count} truths, 1 names" if count else "0 images, 0 truths"):
        report.predictions([None] * count, ["x"] * count, ["x"] * (1 if count else 0), tmp_path / "sheet.png")


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_confusion(classes, tmp_path, drawn):
    matrix = (np.eye(classes, dtype=int) * 7).tolist()
    matrix[0][-1] = 12
    report.confusion(matrix, [f"$class {i}$" for i in range(classes)], tmp_path / "confusion.png")
    assert opened(tmp_path / "confusion.png").width >= 400
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "truth")
    shown = {text.get_text(): text.get_position() for text in axes.texts}
    assert shown.get("12") == ((classes - 1, 0) if classes <= 30 else None)  # (column, row): the truth is the row


@pytest.mark.parametrize("matrix", [[], [[1, 2]], [[1, 2], [3]]])
def test_confusion_must_be_square(matrix, tmp_path):
    with pytest.raises(UsageError, match="rows for 2 classes; allowed: square"):
        report.confusion(matrix, ["a", "b"], tmp_path / "confusion.png")


def test_page(tmp_path):
    report.curves(LOG, tmp_path / "curves.png")
    rows = [{"epoch": 0, "loss": 1.23456789}, {"epoch": 1, "top1": None}]
    report.page("<run>", {"model": "a & b"}, rows, [tmp_path / "curves.png"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>&lt;run&gt;</h1>" in text
    assert "<td>a &amp; b</td>" in text
    assert "<tr><th>epoch</th><th>loss</th><th>top1</th></tr>" in text
    assert "<tr><td>0</td><td>1.235</td><td></td></tr>" in text
    assert re.findall('src="(.{21})', text) == ["data:image/png;base64"]
    assert "http" not in text


def test_no_pyplot(tmp_path):
    code = (
        "import sys; from fleetnet import report; report.curves([{'epoch': 0, 'loss': 1.0}], sys.argv[1]); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "curves.png")]).returncode == 0
    assert (tmp_path / "curves.png").exists()
