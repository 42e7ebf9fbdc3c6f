"""What one sees in a terminal: real pseudo-terminals of 80 and 120 columns, in which no name, figure or path is cut."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from fleetnet.cli import VERBS, _show, _training, _tune, demo, flops, main, quantize, sweep
from fleetnet.find import find, names

WIDTHS = (80, 120)
# title, columns, rows, columns of least importance
Call = tuple[str, list[str], list[list[str]], tuple[str, ...]]


def in_terminal(width: int, call: Callable[[], object]) -> list[str]:
    """The lines that a call prints in a process of its own whose terminal has `width` columns, without colors."""
    with warnings.catch_warnings():
        # of a fork beside threads: the child only prints
        warnings.simplefilter("ignore", DeprecationWarning)
        process, terminal = pty.fork()
    if process == 0:
        status = 1
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
            sys.stdout, sys.stderr = (
                os.fdopen(1, "w", encoding="utf-8"),
                os.fdopen(2, "w", encoding="utf-8"),
            )
            os.environ |= {"TERM": "xterm"}
            os.environ.pop("COLUMNS", None)
            call()
            sys.stdout.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says so where the other end has gone
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert os.waitpid(process, 0)[1] == 0, text
    return text.replace("\r\n", "\n").splitlines()


@pytest.fixture(scope="module")
def tables(
    run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Call]]:
    """Every table that each verb prints, with its real content; of the slow verbs, with figures made up."""
    folder = tmp_path_factory.mktemp("a rather long name of a folder, as people have them")
    tables: dict[str, list[Call]] = {}
    verb = ""

    def keep(
        title: str, columns: list[str], rows: list[list[object]], least: tuple[str, ...] = ()
    ) -> None:
        texts = [[str(cell) for cell in row] for row in rows]
        tables.setdefault(verb, []).append((title, list(columns), texts, tuple(least)))

    patch = pytest.MonkeyPatch()
    try:
        for module in (*(find("cli", name) for name in names("cli")), _training, _tune):
            if hasattr(module, "table"):
                patch.setattr(module, "table", keep)
        patch.setattr(sweep, "alone", lambda words: 0)  # which would train it
        exported = folder / "onnx" / "model.onnx"
        words = {
            "train": ["--model", "fasternet_t0", "--data", str(photos), "--size", "32", "--epochs", "1",
                      "--batch-size", "8", "--run", str(folder / "run")],
            "eval": ["--model", str(run), "--data", str(photos)],
            "predict": ["--model", str(run), str(photos / "val")],
            "reparam": ["--model", str(run), "--out", str(folder / "deploy.safetensors")],
            "export": ["--model", str(run), "--to", "onnx", "--out", str(folder)],
            "verify": [str(exported), "--model", str(run)],
            "bench": ["--model", str(run), str(exported), "--to", "none", "--runs", "3", "--warmup", "0"],
            "flops": ["--model", "fasternet_t0", "--depth", "3"],
            "models": [],
            "doctor": [],
            "recipes": [],
            "replay": [str(run), "--step", "1", "--only-batch"],
            "sweep": ["--trunk", str(run), "--set", "epochs=3", "--run", str(folder / "sweep")],
            "data check": ["--data", str(photos)],
            "data show": ["--data", str(photos), "--size", "32", "--out", str(folder / "sheet.png")],
            "data reinforce": ["--model", "fasternet_t0", "--data", str(photos), "--teacher", str(run), "--size", "32",
                               "--epochs", "1", "--out", str(folder / "answers")],
            "data convert": ["--data", str(photos), "--to", "list", "--out", str(folder / "list")],
        }  # fmt: skip
        for verb, given in words.items():
            assert main([*verb.split(), *given]) == 0, verb
        verb = "quantize"
        layer = SimpleNamespace(
            name="backbone.stages.2.blocks.11.token_mixer.conv", sqnr=12.34567, agreement=0.98
        )
        quantize._show_layers([layer])
        done = SimpleNamespace(
            path=folder / "onnx-int8" / "model.onnx", result={"top1": 71.23}, skipped=[], others=[], agreement=0.99,
            drop=0.1, sqnr=30.1, macs=0.98, layers=30, as_trained=SimpleNamespace(agreement=1.0, sqnr=40.2),
        )  # fmt: skip
        quantize._show("onnx", done, SimpleNamespace(result={"top1": 71.33}, metric="top1"))
        verb = "demo"
        demo.show_forms(
            "repvit_m0_6", [["multi-branch, torch", "98.9", "2,168,218", "31.6", "17.71"]]
        )
    finally:
        patch.undo()
    assert set(tables) == set(VERBS)
    return tables


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", VERBS)
def test_tables_are_never_cut(verb: str, width: int, tables: dict[str, list[Call]]):
    for title, columns, rows, least in tables[verb]:
        lines = in_terminal(width, lambda: _show.table(title, columns, rows, least))  # noqa: B023
        text = "\n".join(lines)
        assert "…" not in text
        assert title in "".join(lines), "the terminal itself wraps a title"
        omitted = re.search(r"not shown at this width: (.*) \(--json has all\)", " ".join(lines))
        missing = omitted[1].split(", ") if omitted else []
        assert set(missing) <= set(least)
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                if column in missing:
                    continue
                assert "/" not in cell or column not in least or verb == "models"
                for word in cell.split():
                    assert word in text, (column, cell)
        drawn = [line for line in lines if line.startswith(("│", "┃", "┏"))]
        assert all(cell_len(line) <= width for line in drawn)


def test_figures_of_flops_are_whole_at_80_columns():
    block = [
        "backbone.stages.2.blocks.11",
        "PConvBlock",
        "93,465,192",
        "15,494.384",
        "30,988.767",
        "23,905.1",
        "1",
        "5",
    ]
    text = "\n".join(
        in_terminal(80, lambda: _show.table("fasternet_l", flops.COLUMNS, [block], flops.LEAST))
    )
    for figure in ("backbone.stages.2.blocks.11", "93,465,192", "15,494.384"):
        assert figure in text
    assert "not shown at this width: FLOPs/byte" in text


def test_wide_tables_become_lines():
    path = "/".join(["a-folder-of-many"] * 8) + "/model.onnx"
    lines = in_terminal(
        80, lambda: _show.table("Files", ["runtime", "file", "size"], [["onnx", path, "32x32"]])
    )
    assert lines[1] == "onnx"
    assert path in "".join(lines)
    assert "  size: 32x32" in lines


def test_sentences_wrap_at_their_blanks_and_wide_letters_count_twice():
    sentence = "pip install 'fleetnet[mnn]' adds what is missing here, which is a rather long thing to say of it"
    rows = [["漢字の名前の長いクラス", sentence], ["b", "yes"]]
    lines = in_terminal(80, lambda: _show.table("Runtimes", ["class", "state"], rows))
    assert all(cell_len(line) <= 80 for line in lines)
    for word in sentence.split():
        assert word in "\n".join(lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_progress_fits_its_line(width: int):
    where = SimpleNamespace(
        epoch=99, epochs=300, step=1234, steps=5004, loss=12.345, lr=1e-3, images_per_second=1234.5, memory=12345.0,
        seconds_left=123456.0,
    )  # fmt: skip

    def draw() -> None:
        progress = _show.TrainingProgress()
        progress(where)
        progress.bar.refresh()
        progress.close()

    text = "\n".join(in_terminal(width, draw))
    assert "epoch 99/300 step 1234/5004 loss 12.345 left 34:17:36" in text
    assert "…" not in text
    assert ("12345 MB" in text) == (width == 120)


def test_rates_below_one_image_a_second():
    assert [_show.rate(r) for r in (123.4, 2.345, 0.25, 0.0)] == [
        "123 images/s", "2.3 images/s", "4.0 s/image", "- images/s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("epoch", "early", "closed"), [(1, False, False), (2, False, True), (1, True, True)]
)
def test_the_progress_line_ends_before_figures_are_drawn(epoch, early, closed):
    from types import SimpleNamespace

    from fleetnet.cli._training import Terminal

    terminal, ended = Terminal(), []
    terminal.progress = SimpleNamespace(close=lambda: ended.append(True))
    terminal.run = SimpleNamespace(epochs=epoch, stopped_early=lambda: early)
    terminal.epochs = 2
    terminal.epoch({"epoch": epoch, "train": {"loss": 1.0}, "skipped": [], "seconds": 1.0})
    assert bool(ended) is closed
