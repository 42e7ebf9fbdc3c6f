"""Figures show what they are given; a page needs no other file."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fleetnet.errors import UsageError
from fleetnet.report import draw, figures, page

LOG = [
    {"epoch": 1, "train": {"loss": 2.0, "lr": 0.1}, "skipped": [], "seconds": 3},
    {
        "epoch": 2,
        "train": {"loss": 1.5, "lr": 0.05},
        "raw": {"top1": 40.0, "loss": 1.7},
        "ema": {"top1": 41.0},
    },
    {
        "epoch": 3,
        "train": {"loss": 1.2, "lr": 0.0},
        "raw": {"top1": 55.0, "loss": 1.4},
        "ema": {"top1": 52.0},
    },
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures made during a test, to look inside."""
    made, make = [], figures._figure

    def keep(*size: float) -> object:
        made.append(make(*size))
        return made[-1]

    monkeypatch.setattr(figures, "_figure", keep)
    return made


def opened(path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_curves(tmp_path, drawn):
    figures.curves(LOG, tmp_path / "curves.png")
    assert opened(tmp_path / "curves.png").size == (1500, 360)
    lines = {
        axes.get_title(): {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in drawn[0].axes
    }
    assert list(lines) == ["training", "evaluation, percent (averaged weights)", "learning rate"]
    assert lines["training"] == {"loss": [[1, 2.0], [2, 1.5], [3, 1.2]]}
    assert lines["evaluation, percent (averaged weights)"] == {"top-1": [[2, 41.0], [3, 52.0]]}


def test_curves_of_detectors(tmp_path, drawn):
    """Every loss of a task, whatever its name; figures by class and counts are not drawn."""
    train = {"loss": 3.0, "boxes": 2.0, "objectness": 1.0, "lr": 0.1, "images": 16}
    evaluated = {
        "AP": 10.0,
        "AP50": 30.0,
        "APs": None,
        "mask_AP": 8.0,
        "per_class": {"cat": 3.0},
        "images": 4,
    }
    log = [
        {"epoch": 1, "train": train, "raw": evaluated, "seconds": 2},
        {"epoch": 2, "raw": {"mIoU": 50.0}},
    ]
    figures.curves(log, tmp_path / "curves.png")
    lines = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in drawn[0].axes}
    assert lines == {
        "training": ["all losses", "boxes", "objectness"],
        "evaluation, percent (raw weights)": ["mask AP", "box AP", "box AP at IoU 0.5", "mean IoU"],
        "learning rate": ["learning rate"],
    }


@pytest.mark.parametrize("log", [[], [{"epoch": 1, "seconds": 1.5}]])
def test_curves_of_nothing(log, tmp_path):
    with pytest.raises(UsageError, match=f"no curve to draw: {len(log)} epochs"):
        figures.curves(log, tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("truths", "expected"),
    [
        (["cat", "a$b"], [("cat", figures.RIGHT), ("a$b", figures.RIGHT)]),
        (["cat", "dog"], [("cat", figures.RIGHT), ("a$b\n(is dog)", figures.WRONG)]),
        ([None, "cat"], [("cat", "black"), ("a$b\n(is cat)", figures.WRONG)]),
    ],
)
def test_predictions_are_green_or_red(truths, expected, tmp_path, drawn):
    images = [Image.new("RGB", (20, 30), "gray"), np.full((8, 8, 3), 90, np.uint8)]
    figures.predictions(images, truths, ["cat", "a$b"], tmp_path / "sheet.png")
    assert opened(tmp_path / "sheet.png").size == (400, 230)
    assert [(axes.get_title(), axes.title.get_color()) for axes in drawn[0].axes] == expected


def test_many_predictions_fill_rows(tmp_path):
    figures.predictions(
        [Image.new("RGB", (9, 9))] * 8, ["x"] * 8, ["x"] * 8, tmp_path / "sheet.png"
    )
    assert opened(tmp_path / "sheet.png").size == (1200, 460)


@pytest.mark.parametrize("count", [0, 2])
def test_predictions_must_match(count, tmp_path):
    with pytest.raises(
        UsageError,
        match=f"{count} images, {count} truths, 1 names" if count else "0 images, 0 truths",
    ):
        figures.predictions(
            [None] * count, ["x"] * count, ["x"] * (1 if count else 0), tmp_path / "sheet.png"
        )


@pytest.mark.parametrize("classes", [1, 3, 40])
def test_confusion(classes, tmp_path, drawn):
    matrix = (np.eye(classes, dtype=int) * 7).tolist()
    matrix[0][-1] = 12
    figures.confusion(matrix, [f"$class {i}$" for i in range(classes)], tmp_path / "confusion.png")
    assert opened(tmp_path / "confusion.png").width >= 400
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "truth")
    shown = {text.get_text(): text.get_position() for text in axes.texts}
    # (column, row): the truth is the row
    assert shown.get("12") == ((classes - 1, 0) if classes <= 30 else None)


@pytest.mark.parametrize("matrix", [[], [[1, 2]], [[1, 2], [3]]])
def test_confusion_must_be_square(matrix, tmp_path):
    with pytest.raises(UsageError, match="rows for 2 classes; allowed: square"):
        figures.confusion(matrix, ["a", "b"], tmp_path / "confusion.png")


def test_precision_recall(tmp_path, drawn):
    recalls = np.linspace(0, 1, 101)
    points = {
        "a$b$": np.stack([recalls, 1 - recalls], 1).tolist(),
        "none": [],
        "dog": [[0.0, 1.0], [1.0, 0.5]],
    }
    figures.precision_recall(points, tmp_path / "pr.png")
    lines = {line.get_label(): line for line in drawn[0].axes[0].lines}
    assert list(lines) == [r"a\$b\$", "dog", "mean"]
    np.testing.assert_allclose(lines["mean"].get_ydata(), 1 - 0.75 * recalls, atol=1e-9)
    assert lines["dog"].get_color() == pytest.approx(np.divide(draw.colors(3)[2], 255))
    with pytest.raises(UsageError, match="none of 1 classes has points"):
        figures.precision_recall({"none": []}, tmp_path / "pr.png")


@pytest.mark.parametrize("count", [1, 90])
def test_bars(count, tmp_path, drawn):
    values = {"none": None, **{f"$class {i}$": float(i) for i in range(count)}}
    figures.bars(values, "AP", tmp_path / "bars.png")
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0, *range(count)]
    assert [text.get_text() for text in axes.texts][:2] == ["-", "0.0"]
    assert opened(tmp_path / "bars.png").height > 15 * count
    with pytest.raises(UsageError, match="no values"):
        figures.bars({}, "AP", tmp_path / "bars.png")


def test_the_most_confused_pairs(tmp_path, drawn):
    pairs = [[0, 1, 9], *([1, 2, 3] for _ in range(40))]
    figures.confused(pairs, ["a", "b", "(nothing)"], tmp_path / "confused.png")
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [9, *[3] * 29]
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == [
        "a taken for b",
        "b not found",
    ]
    with pytest.raises(UsageError, match="nothing was confused"):
        figures.confused([], ["a"], tmp_path / "confused.png")


def test_figures_of_a_metric(tmp_path):
    points = [[0.0, 1.0], [1.0, 0.5]]
    result = {
        "AP": 1.0,
        "per_class": {"a": 1.0, "b": None},
        "pr": {"a": points, "b": []},
        "mask_pr": {"a": [], "b": []},
    }
    names = [file.name for file in figures.metrics(result, ["a", "b"], tmp_path / "x")]
    assert names == ["ap_by_class.png", "precision_recall.png"]
    result = {"iou": [None, 3.0], "confusion": [[1, 2], [3, 4]]}
    names = [file.name for file in figures.metrics(result, ["a", "b"], tmp_path / "x")]
    assert names == ["confusion.png", "iou_by_class.png"]
    curve = {
        "score": [0.0, 1.0],
        "precision": [50.0, None],
        "recall": [100.0, 0.0],
        "F1": [66.7, 0.0],
    }
    result = {  # of a detector: one class more, nothing
        "confusion": [[1, 0, 2], [0, 3, 0], [4, 0, 0]], "confused": [[2, 0, 4], [0, 2, 2]], "score": 0.5,
        "curves": {**curve, "F1_by_class": [[66.7, 0.0], [None, None]]},
    }  # fmt: skip
    names = [file.name for file in figures.metrics(result, ["a", "b"], tmp_path / "x")]
    assert names == ["confusion.png", "confused.png", "over_score.png"]
    assert all((tmp_path / "x" / name).stat().st_size for name in names)


@pytest.mark.parametrize("count", [3, 24])
def test_colors_differ(count):
    colors = np.array(draw.colors(count), int)
    away = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(count, dtype=int)
    assert away.min() >= (200 if count == 3 else 40)
    assert draw.colors(80)[:count] == [tuple(color) for color in colors]


GRAY = np.full((120, 200, 3), 128, np.uint8)


def test_draw_boxes_and_masks():
    masks = np.zeros((3, 120, 200), bool)
    masks[0, 50:90, 20:60] = True
    masks[2, 60:100, 100:180] = True
    prediction = {
        "boxes": np.array([[20, 50, 60.0, 90], [0, 0, 200, 120], [100, 60, 180, 100]]), "masks": masks,
        "labels": np.array([0, 1, 1]), "scores": np.array([0.9, 0.2, 0.5]),
    }  # fmt: skip
    picture = Image.fromarray(GRAY)
    drawn = np.asarray(draw.draw_objects(picture, classes=["a", "b"], threshold=0.3, **prediction))
    first, second = np.array(draw.colors(2))
    assert (np.asarray(picture) == GRAY).all()
    assert (drawn[50:90, 20] == first).all()
    assert (drawn[89, 20:60] == first).all()
    assert (drawn[60:100, 179] == second).all()
    # the mask, half covering
    assert np.abs(drawn[70, 40].astype(int) - (first + 128) // 2).max() <= 1
    assert np.abs(drawn[80, 150].astype(int) - (second + 128) // 2).max() <= 1
    assert (drawn[110:, 190:] == 128).all()  # the whole picture's box is below the threshold
    assert (drawn[50 - 8 : 50, 21] == first).all()  # the name stands on the box
    plain = {key: value for key, value in prediction.items() if key != "masks"}
    assert (
        np.asarray(draw.draw_objects(picture, classes=["a", "b"], threshold=0.3, **plain))[70, 40]
        == 128
    ).all()
    assert (
        np.asarray(draw.draw_objects(picture, classes=["a", "b"], threshold=1, **plain)) == GRAY
    ).all()


@pytest.mark.parametrize(("count", "shown"), [(2, False), (60, True)])
def test_many_boxes_get_a_legend(count, shown):
    boxes = torch.tensor([[100.0, 60, 110, 70]]).repeat(count, 1)
    prediction = {
        "boxes": boxes,
        "labels": torch.ones(count, dtype=torch.int64),
        "scores": torch.ones(count),
    }
    drawn = np.asarray(
        draw.draw_objects(Image.fromarray(GRAY), classes=["ant", "bee"], **prediction)
    )
    color = draw.colors(2)[1]
    assert (drawn[0, :8] == color).all() == shown
    assert (drawn[50:60, 100] == color).all() != shown  # the name on the box
    assert (drawn[60, 100:110] == color).all()


def test_names_do_not_cover_each_other(monkeypatch):
    """Twelve boxes on and beside each other: each name has a place of its own, or none and there is a legend."""
    written = []
    tag = draw._tag

    def record(pen, x, y, text, color, font):
        width, height = draw._tag_size(pen, text, font)
        written.append((text, (x, y, x + width, y + height)))
        return tag(pen, x, y, text, color, font)

    monkeypatch.setattr(draw, "_tag", record)
    corners = [(30 * i % 150, 40 + 17 * i % 200) for i in range(12)]
    boxes = np.array([[x, y, x + 60.0, y + 40] for x, y in corners])
    prediction = {"boxes": boxes, "labels": np.arange(12) % 2, "scores": np.linspace(0.9, 0.3, 12)}
    picture = Image.new("RGB", (400, 300), "gray")
    draw.draw_objects(picture, classes=["ant", "bee"], **prediction)
    names = [place for text, place in written if " x " not in text]
    assert len(names) >= 6
    for i, one in enumerate(names):
        assert 0 <= one[0] <= one[2] <= 400
        assert 0 <= one[1] <= one[3] <= 300
        assert not any(draw.overlap(one, other) for other in names[:i])
    assert (len(names) < 12) == any(" x " in text for text, _ in written)


def test_instances_of_a_class_have_colors_of_their_own():
    masks = np.zeros((2, 120, 200), bool)
    masks[0, 20:60, 20:60] = masks[1, 20:60, 100:140] = True
    boxes = np.array([[20, 20, 60.0, 60], [100, 20, 140, 60]])
    prediction = {
        "boxes": boxes,
        "masks": masks,
        "labels": np.array([0, 0]),
        "scores": np.array([0.9, 0.8]),
    }
    drawn = np.asarray(draw.draw_objects(Image.fromarray(GRAY), classes=["cell"], **prediction))
    assert (drawn[50, 40] != drawn[50, 120]).any()
    without = {key: value for key, value in prediction.items() if key != "masks"}
    drawn = np.asarray(draw.draw_objects(Image.fromarray(GRAY), classes=["cell"], **without))
    assert (drawn[59, 40] == drawn[59, 120]).all()  # boxes have that of their class


def test_names_of_points_do_not_cover_each_other(tmp_path, drawn):
    points = [
        figures.Point(f"network_{i}", group, 5 + i * 0.3, 70 + 0.2 * i)
        for i in range(9)
        for group in ("onnx", "torch")
    ]
    figures.pareto(points, tmp_path / "plot.png")
    (axes,) = drawn[0].axes
    frame = axes.get_window_extent()
    places = [figures._text_extent(drawn[0].canvas, text) for text in axes.texts]
    assert len(places) >= 9  # those on the front at least
    for i, one in enumerate(places):
        assert frame.x0 <= one[0] <= one[2] <= frame.x1
        assert frame.y0 <= one[1] <= one[3] <= frame.y1
        assert not any(draw.overlap(one, other) for other in places[:i])


@pytest.mark.parametrize(
    "box", [[0, 0, 3, 3], [196, 0, 200, 2], [190, 116, 200, 120], [5, 5, 5.2, 5.1]]
)
def test_draw_at_the_edges(box):
    """Names stay within the picture, and boxes of less than a pixel do not fail."""
    prediction = {
        "boxes": torch.tensor([box]),
        "labels": torch.tensor([0]),
        "scores": torch.tensor([0.5]),
    }
    drawn = np.asarray(
        draw.draw_objects(Image.fromarray(GRAY), classes=["a long name"], **prediction)
    )
    assert np.count_nonzero((drawn == draw.colors(1)[0]).all(-1)) > 300  # of the name's background


def test_draw_label_map():
    labels = np.zeros((120, 200), np.uint8)
    labels[60:, :100], labels[60:, 100:] = 1, 255
    drawn = np.asarray(
        draw.draw_pixels(Image.fromarray(GRAY), labels, ["background", "sky", "tree"])
    )
    sky = np.array(draw.colors(3)[1])
    assert np.abs(drawn[60:, :100].astype(int) - (sky + 128) // 2).max() <= 1
    assert (drawn[60:, 100:] == 128).all()
    assert (drawn[0, :8] == sky).all()  # the legend
    assert (drawn[30:60] == 128).all()
    map_ = draw.label_map(labels, ["background", "sky", "tree"])
    assert (np.asarray(map_) == labels).all()
    assert map_.convert("RGB").getpixel((3, 70)) == tuple(sky)


def test_grid(tmp_path):
    red, blue = (Image.new("RGB", (30, 20), color) for color in ("red", "blue"))
    draw.grid([red, blue, blue], 2, tmp_path / "s.png")
    shown = opened(tmp_path / "s.png")
    assert shown.size == (2 * 36 + 6, 2 * 26 + 6)
    assert [shown.getpixel(at) for at in ((6, 6), (38, 6), (42, 6), (6, 32))] == [
        (255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 0, 255),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no picture"):
        draw.grid([], 2, tmp_path / "s.png")


def test_page(tmp_path):
    figures.curves(LOG, tmp_path / "curves.png")
    described = page.Page(
        title="<run>",
        about={"model": "a & b"},
        best={"top1": None},
        notes=["no image of <cat>"],
        by_class=[{"class": "cat", "F1": 12.3456}],
        figures=[(tmp_path / "curves.png", "Losses & more")],
        epochs=[{"epoch": 1, "loss": 1.23456789}, {"epoch": 2, "top1": None}],
        settings={"lr": 0.1},
    )
    page.write(described, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>&lt;run&gt;</h1>" in text
    assert "<dt>model</dt><dd>a &amp; b</dd>" in text
    assert "<dt>top1</dt><dd>-</dd>" in text
    assert "<p>no image of &lt;cat&gt;</p>" in text
    assert "<tr><th>class</th><th>F1</th></tr><tr><td>cat</td><td>12.35</td></tr>" in text
    assert "<tr><th>epoch</th><th>loss</th><th>top1</th></tr>" in text
    assert (
        "<tr><td>1</td><td>1.235</td><td></td></tr><tr><td>2</td><td></td><td>-</td></tr>" in text
    )
    assert "<figcaption>Losses &amp; more</figcaption>" in text
    assert re.findall('src="(.{21})', text) == ["data:image/png;base64"]
    assert "http" not in text
    assert "<details><summary>Settings</summary><dl><dt>lr</dt><dd>0.1</dd></dl></details>" in text


def test_no_pyplot(tmp_path):
    code = (
        "import sys; from fleetnet.report import figures; figures.curves([{'epoch': 1, 'loss': 1.0}], "
        "sys.argv[1]); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "curves.png")]).returncode == 0
    )
    assert (tmp_path / "curves.png").exists()
