"""Every command and every line of Python that the README and docs/ show is run, with small data in place of photos/."""

import json
import re
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fleetnet.cli import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["--size", "32", "--epochs", "1", "--batch-size", "8"]  # flags given again win


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words after `fleetnet` of each command in code blocks, without the explanation that two blanks set off."""
    lines = [
        line
        for block in blocks(page, "")
        for line in block.splitlines()
        if line.startswith("fleetnet ")
    ]
    return [shlex.split(re.sub(r"(?<=\S) {2,}(?![ -]).*", "", line))[1:] for line in lines]


@pytest.fixture
def here(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(next(photos.glob("val/*/*.png")), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_commands_run_in_order(here: Path):
    found = commands(PAGES[0])
    assert {words[0] for words in found} >= {
        "train",
        "eval",
        "reparam",
        "export",
        "predict",
        "bench",
    }
    for words in found:
        extra = SMALL if words[0] == "train" else ["--runs", "5"] if words[0] == "bench" else []
        assert main([*words, *extra]) == 0, words


def test_readme_python_runs(here: Path, monkeypatch: pytest.MonkeyPatch):
    [block] = blocks(PAGES[0], "python")
    assert "size=128, epochs=30" in block
    scope: dict = {}
    exec(block.replace("size=128, epochs=30", "size=32, epochs=1, batch_size=8"), scope)
    assert (here / "model.onnx").exists()
    assert (here / "runs" / "mine" / "report.html").exists()
    assert 0 <= scope["best"]["top1"] <= 100
    assert len(scope["names"][0]) == 3  # classes of the photos
    counted = [sum(p.numel() for p in scope[name].parameters()) for name in ("model", "deploy")]
    assert (
        "{:.1f} M parameters become {:.1f} M".format(*(count / 1e6 for count in counted)) in block
    )


def test_python_page_runs(here: Path, capsys: pytest.CaptureFixture[str]):
    [block] = blocks(ROOT / "docs" / "python.md", "python")
    exec(block, {})
    said = capsys.readouterr().out
    assert "24 pictures of" in said
    assert re.search(
        r"epoch 2: loss \d+\.\d+, top-1 \d+\.\d %\nbest top-1 \d+\.\d % after epoch [12]\n", said
    )
    assert re.search(r"relative difference to the multi-branch model: \d\.\de-0\d\n", said)


def test_the_logger_of_the_architecture_page_runs(here: Path):
    received: list[dict] = []

    class Log(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object):
            """Nothing is printed."""

    logger, *_ = blocks(ROOT / "docs" / "architecture.md", "python")
    with HTTPServer(("localhost", 0), Log) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        exec(logger.replace("localhost:8000", f"localhost:{server.server_port}"), {})
        server.shutdown()
        thread.join()
    assert [line["epoch"] for line in received] == [1, 2]


def test_the_tracker_of_the_architecture_page_runs(here: Path):
    _, tracker, *_ = blocks(ROOT / "docs" / "architecture.md", "python")
    exec(tracker, {})
    lines = (here / "figures.txt").read_text().splitlines()
    assert lines[0].startswith("1 step/loss ")
    assert sum(" ema/top1 " in line for line in lines) == 2
    assert re.fullmatch(r"\d+ seconds \d+\.\d+", lines[-1])


def test_the_augmentation_of_the_architecture_page_runs(here: Path):
    _, _, augmentation, *_ = blocks(ROOT / "docs" / "architecture.md", "python")
    scope: dict = {}
    exec(augmentation, scope)
    assert 0 <= scope["best"]["top1"] <= 100
    environment = json.loads((here / "runs" / "gray" / "environment.json").read_text())
    assert environment["from_python"] == ["model", "augmentation"]


def test_the_runtime_of_the_architecture_page_is_the_one_that_is_tested():
    *_, runtime = blocks(ROOT / "docs" / "architecture.md", "python")
    assert runtime == (ROOT / "tests" / "entries" / "runtimes" / "reference.py").read_text()


def test_the_architecture_page_names_what_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.partition("## The tree")[2].split("```")[1]
    modules = set(re.findall(r"\b[a-z_0-9]+\.py\b", tree))
    assert modules >= {path.name for path in (ROOT / "fleetnet").glob("[a-z]*.py")}
    for path in re.findall(r"`((?:[a-z_0-9]+)/[a-z_/0-9]+\.py)`", page):
        assert (ROOT / path).exists() or (ROOT / "fleetnet" / path).exists(), path


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_docs_commands_run(page: Path, here: Path, run: Path):
    for words in commands(page):
        shutil.copytree(run, here / "RUN", dirs_exist_ok=True)
        words = [word.replace("RUN", str(here / "RUN")) for word in words]
        extra = SMALL if words[0] == "train" else ["--runs", "5"] if words[0] == "bench" else []
        assert main([*words, *extra]) == 0, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_real_verbs_flags_and_files(page: Path):
    text = page.read_text()
    for words in re.findall(r"`fleetnet ([a-z]+(?: [a-z]+)?)", text):
        assert {words, words.split()[0]} & VERBS.keys(), words
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
