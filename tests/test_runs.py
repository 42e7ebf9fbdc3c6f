"""A run folder from its claim to its end: two runs, kills, moved data, lost folders, full disks, signals."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import benchmark
from matplotlib.figure import Figure
from PIL import Image

import fleetnet
from fleetnet import checkpoint, data
from fleetnet.cli import main
from fleetnet.data import Split
from fleetnet.data._names import by_name
from fleetnet.errors import FleetnetError, UsageError
from fleetnet.find import find, names
from fleetnet.preprocess import Preprocess
from fleetnet.report import page
from fleetnet.tasks import build
from fleetnet.training import claims, fingerprint
from fleetnet.training import run as run_folder
from fleetnet.training.claims import claim, refuse_if_claimed
from fleetnet.training.config import TrainConfig
from fleetnet.training.log import read_log
from fleetnet.training.run import settled, state_of

SHORT = [
    "--model",
    "fasternet_t0",
    "--size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "2",
    "--device",
    "cpu",
]
equal = benchmark("kills").equal  # of nested values, tensors to the bit


def fit(photos: Path, run: Path, epochs: int = 2, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    splits = options.pop("splits", None) or [
        data.load(str(photos), split) for split in ("train", "val")
    ]
    config = TrainConfig(
        size=(32, 32), batch_size=8, epochs=epochs, device="cpu", optimizer="sgd", lr=0.05
    )
    return fleetnet.fit(build("fasternet_t0", 3), *splits, config, run, report=False, **options)


@pytest.fixture(scope="module", autouse=True)
def undrawn(run: Path) -> Iterator[None]:
    """Figures are written as files, but not drawn: it takes a third of a tiny run, and tests/test_report.py draws.

    Those of `run` were drawn before, since other tests have it too.
    """

    def savefig(self: Figure, file: Any, **_: Any) -> None:
        file.write(b"a figure")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """These take most of the time of a tiny run."""
    monkeypatch.setattr("fleetnet.training.fit.write_overview", lambda *_: None)


# Two runs in one folder


@pytest.fixture
def going_on(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder with a claim of another process that is alive."""
    code = "import sys, time; from pathlib import Path; from fleetnet.training.claims import claim"
    code += "; claim(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield tmp_path / "run", process.pid
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_in_a_folder_is_refused(
    going_on: tuple[Path, int], photos: Path, run: Path, capsys
):
    folder, process = going_on
    with pytest.raises(
        UsageError,
        match=f"belongs to a run that goes on: process {process} on .*give another --run",
    ):
        fit(photos, folder)
    # before the data are read
    assert main(["train", *SHORT, "--data", "nowhere", "--run", str(folder)]) == 2
    assert f"process {process} on {claims._host()}" in capsys.readouterr().err
    for path in run.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    shutil.copytree(run / "state", folder / "state")
    assert main(["train", "--resume", str(folder), "--epochs", "3"]) == 2
    assert f"process {process}" in capsys.readouterr().err
    (folder / "config.yaml").unlink()
    assert main(["demo", "--run", str(folder)]) == 2  # which would remove the folder
    assert (folder / "log.jsonl").exists()


def test_the_claim_of_a_process_that_is_gone_is_taken_over(going_on: tuple[Path, int]):
    folder, process = going_on
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (
        Path(f"/proc/{process}/stat").exists()
        and "Z" not in Path(f"/proc/{process}/stat").read_text()
    ):
        assert time.monotonic() < deadline
    (folder / f".best.safetensors.{process}.tmp").write_bytes(b"half")
    with claim(folder) as mine:  # though its parent has not asked how it ended
        mine.check()
        assert [path.name for path in folder.iterdir()] == ["claim.json"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, "belongs to a run that goes on"),
        ({"started": "another time"}, None),  # its number belongs to another process by now
        (
            {"host": "elsewhere", "process": 1},
            r"elsewhere, since .* cannot be known from here.* remove .*claim.json",
        ),
    ],
)
def test_whose_claim_it_is(changes: dict, refused: str | None, tmp_path: Path):
    claim(tmp_path)
    about = json.loads((tmp_path / "claim.json").read_text())
    (tmp_path / "claim.json").write_text(json.dumps({**about, **changes}))
    if refused is None:
        claim(tmp_path)
        assert json.loads((tmp_path / "claim.json").read_text())["started"] == about["started"]
        return
    with pytest.raises(UsageError, match=refused):
        claim(tmp_path)
    with pytest.raises(UsageError, match=refused):
        refuse_if_claimed(tmp_path)


def test_a_claim_without_content_is_stale_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    (tmp_path / "claim.json").write_text("")
    claim(tmp_path).check()


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_gets_the_folder(links: bool, tmp_path: Path):
    """Eight processes at once, half of the time over a stale claim; also where there are no hard links."""
    code = """
import os, sys, time
from pathlib import Path
from fleetnet.training import claims
from fleetnet.errors import UsageError
if sys.argv[2] == "False":
    def link(*_): raise OSError(95, "not supported")
    os.link = link
while time.time() < float(sys.argv[3]): pass
try:
    claims.claim(Path(sys.argv[1])); print("mine", flush=True)
except UsageError:
    print("refused", flush=True)
sys.stdin.read()
"""
    for stale in (False, True):
        folder = tmp_path / str(stale)
        if stale:
            folder.mkdir()
            gone = {"host": claims._host(), "process": 2**22 + 1, "started": "once", "token": "x"}
            (folder / "claim.json").write_text(json.dumps(gone))
        words = [sys.executable, "-c", code, str(folder), str(links), str(time.time() + 2)]
        processes = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(8)
        ]
        answers = [process.stdout.readline().strip() for process in processes if process.stdout]
        for process in processes:
            process.communicate()
        assert sorted(answers) == ["mine", *["refused"] * 7]


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_a_claim_does_not_outlive_an_error(error: BaseException, photos: Path, tmp_path: Path):
    def fail(line: dict) -> None:
        raise error

    with pytest.raises(type(error)):
        fit(photos, tmp_path / "run", on_epoch=fail)
    assert not (tmp_path / "run" / "claim.json").exists()
    fit(photos, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "claim.json").exists()


def test_a_failed_start_leaves_no_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fleetnet.training.fit.train_one_epoch",
        lambda *_, **__: (_ for _ in ()).throw(FleetnetError("no")),
    )
    assert main(["train", *SHORT, "--data", str(photos)]) == 1
    assert main(["train", *SHORT, "--data", str(photos), "--run", "here"]) == 1
    assert [
        path for path in tmp_path.rglob("*") if path.name not in ("runs", "classification")
    ] == []


def test_a_failed_start_leaves_a_folder_of_others_as_it_was(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(
        "fleetnet.training.learner.evaluate",
        lambda *_, **__: (_ for _ in ()).throw(FleetnetError("no")),
    )
    assert main(["train", *SHORT, "--data", str(photos), "--run", str(tmp_path / "run")]) == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "plots"] == [
        path for path in before if path.name != "plots"
    ]


def test_default_names_never_meet(tmp_path: Path):
    from fleetnet.cli.train import _claim_free

    folders = [_claim_free(tmp_path / "a" / "run").folder.name for _ in range(3)]
    assert folders == ["run", "run-2", "run-3"]


# To the end, after a kill


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *SHORT, "--data", str(photos), "--run", str(folder)]) == 0
    return folder


MOMENTS = {  # at which call a run is killed: module, name, epochs that the state has by then
    "before the checkpoints": (checkpoint, "save", 1),
    "before the state": (checkpoint, "save_state", 1),
    "after the state": (run_folder, "_deliver", 2),
    "before the log": (run_folder, "append_line", 2),
    "before the report": (page, "write", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_comes_to_its_end(
    moment: str, whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module, name, epochs = MOMENTS[moment]
    run, function = tmp_path / "run", getattr(module, name)

    def killed(*arguments: Any, **options: Any) -> Any:
        if (run / "state" / "trainer.pt").exists() and state_of(run)["epochs"] == epochs:
            raise Killed
        return function(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        patch.setattr(claims.Claim, "release", lambda self: None)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            main(["train", *SHORT, "--data", str(photos), "--run", str(run)])
    about = json.loads((run / "claim.json").read_text())
    (run / "claim.json").write_text(json.dumps({**about, "started": "before"}))
    half = run / f".last.safetensors.{os.getpid()}.tmp"
    half.write_bytes(b"half")
    os.utime(half, (1, 1))  # of a process that had this number before
    assert main(["train", "--resume", str(run)]) == 0
    assert same(run, whole)


def same(run: Path, whole: Path) -> bool:
    """Whether two runs have the same files, with the same weights and state in them."""
    assert {p.relative_to(run) for p in run.rglob("*")} == {
        p.relative_to(whole) for p in whole.rglob("*")
    }
    states = [settled(folder) for folder in (run, whole)]
    for state in states:
        state["log"] = [{**line, "seconds": 0} for line in state["log"]]
    logs = [[{**line, "seconds": 0} for line in read_log(folder)] for folder in (run, whole)]
    weights = [
        checkpoint.load(folder / f"{name}.safetensors").model.state_dict()
        for name in ("best", "last", "ema")
        for folder in (run, whole)
    ]
    return (
        logs[0] == logs[1] and equal(*states) and all(equal(*weights[i : i + 2]) for i in (0, 2, 4))
    )


def test_a_run_killed_in_its_first_epoch_starts_again(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch
):
    run = tmp_path / "run"

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fleetnet.training.fit.train_one_epoch", killed)
        patch.setattr(claims.Claim, "release", lambda self: None)
        with pytest.raises(Killed):
            main(["train", *SHORT, "--data", str(photos), "--run", str(run)])
    (run / "claim.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert same(run, whole)


def test_a_log_that_was_lost_comes_from_the_state(whole: Path, photos: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "run")
    for name in ("log.jsonl", "results.csv", "report.html"):
        (tmp_path / "run" / name).unlink()
    for picture in (tmp_path / "run" / "plots").iterdir():
        # these show the first steps, which are over
        if not picture.name.startswith("training_batch"):
            picture.unlink()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize("what", ["deleted", "renamed", "replaced"])
def test_a_folder_that_goes_while_training_is_an_error(
    what: str, photos: Path, tmp_path: Path, capsys, monkeypatch
):
    run = tmp_path / "run"

    def take(line: dict) -> None:
        if line["epoch"] > 1:
            return
        run.rename(tmp_path / "renamed")
        if what == "deleted":
            shutil.rmtree(tmp_path / "renamed")
        if what == "replaced":
            (tmp_path / "renamed" / "claim.json").unlink()
            claim(run)
            (run / "config.yaml").write_text("of another run")

    monkeypatch.setattr("fleetnet.cli._training.say_epoch", take)
    assert main(["train", *SHORT, "--data", str(photos), "--run", str(run)]) == 1
    shown = capsys.readouterr()
    expected = (
        "was taken over by process"
        if what == "replaced"
        else "was deleted or renamed while this run was writing"
    )
    assert expected in shown.err
    assert "Best of" not in shown.out
    assert run.exists() == (what == "replaced")
    assert not run.exists() or sorted(path.name for path in run.iterdir()) == [
        "claim.json",
        "config.yaml",
    ]
    if what == "renamed":
        about = json.loads((tmp_path / "renamed" / "claim.json").read_text())
        (tmp_path / "renamed" / "claim.json").write_text(json.dumps({**about, "started": "before"}))
        monkeypatch.undo()
        assert main(["train", "--resume", str(tmp_path / "renamed")]) == 0


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full, which is always full, on this system"
)
@pytest.mark.parametrize("name", ["state/trainer.pt", "plots/curves.png"])
def test_a_full_disk_stops_a_run_that_can_go_on(
    name: str, whole: Path, photos: Path, tmp_path: Path, capsys, monkeypatch
):
    run = tmp_path / "run"

    def fill(line: dict) -> None:
        if line["epoch"] == 1:
            path = run / name
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")

    monkeypatch.setattr("fleetnet.cli._training.say_epoch", fill)
    assert main(["train", *SHORT, "--data", str(photos), "--run", str(run)]) == 1
    shown = capsys.readouterr().err
    assert f"{name} cannot be written: the disk is full" in shown
    assert f"to continue: fleetnet train --resume {run}" in shown
    assert not list(run.rglob("*.tmp"))
    assert not list(run.glob("state/next-*"))
    monkeypatch.undo()
    assert main(["train", "--resume", str(run)]) == 0
    assert same(run, whole)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 130, "terminated (SIGTERM)"), (signal.SIGINT, 130, "interrupted")],
)
def test_signals_keep_the_last_epoch_and_say_so(
    number: int,
    code: int,
    word: str,
    photos: Path,
    whole: Path,
    tmp_path: Path,
    capsys,
    monkeypatch,
):
    run = tmp_path / "run"
    monkeypatch.setattr(
        "fleetnet.cli._training.say_epoch", lambda line: os.kill(os.getpid(), number)
    )
    assert main(["train", *SHORT, "--data", str(photos), "--run", str(run)]) == code
    shown = capsys.readouterr().err
    assert f"to continue: fleetnet train --resume {run}" in shown
    assert f"fleetnet: {word}" in shown
    assert not (run / "claim.json").exists()
    assert not list(run.rglob("*.tmp"))
    assert state_of(run)["epochs"] == 1
    # who terminates may kill soon
    assert (run / "report.html").exists() == (number == signal.SIGINT)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert main(["train", "--resume", str(run)]) == 0
    assert same(run, whole)


# The data that a run goes on with


def copy_of(photos: Path, folder: Path) -> Path:
    shutil.copytree(photos, folder)
    return folder


def add(root: Path) -> str:
    picture = next(root.glob("train/*/*.png"))
    shutil.copy(picture, picture.with_name("new.png"))
    return "1 added"


def remove(root: Path) -> str:
    picture = next(root.glob("train/*/*.png"))
    picture.unlink()
    return "1 gone"


def enlarge(root: Path) -> str:
    Image.new("RGB", (50, 50)).save(next(root.glob("val/*/*.png")))
    return "val: 1 of another size or annotation"


@pytest.mark.parametrize("change", [add, remove, enlarge])
def test_other_data_are_refused_unless_named_anew(
    change: Callable[[Path], str],
    photos: Path,
    whole: Path,
    tmp_path: Path,
    capsys,
    without_figures: None,
):
    root, run = copy_of(photos, tmp_path / "photos"), tmp_path / "run"
    shutil.copytree(whole, run)
    # a copy is the same
    assert main(["train", "--resume", str(run), "--epochs", "3", "--data", str(root)]) == 0
    assert len(fingerprint.read(run)) == 1
    words = change(root)
    assert main(["train", "--resume", str(run), "--epochs", "4"]) == 3
    shown = capsys.readouterr().err
    assert words in shown
    assert "name them anew with --data" in shown
    assert state_of(run)["epochs"] == 3
    assert main(["train", "--resume", str(run), "--epochs", "4", "--data", str(root)]) == 0
    assert [record["from_epoch"] for record in fingerprint.read(run)] == [1, 4]
    assert main(["train", "--resume", str(run), "--epochs", "5"]) == 0  # these count from now on


def test_a_touched_file_is_the_same(photos: Path, tmp_path: Path):
    root = copy_of(photos, tmp_path / "photos")
    before = fingerprint.lines_of(data.load(str(root), "train"))
    for picture in root.rglob("*.png"):
        os.utime(picture, (1, 1))
    root.rename(tmp_path / "elsewhere")
    assert fingerprint.lines_of(data.load(str(tmp_path / "elsewhere"), "train")) == before


def test_a_run_continues_from_another_folder_and_after_its_data_moved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, without_figures: None
):
    project = tmp_path / "project"
    copy_of(photos, project / "photos")
    monkeypatch.chdir(project)
    assert main(["train", *SHORT, "--data", "photos", "--run", "runs/a"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "project/runs/a", "--epochs", "3"]) == 0
    project.rename(tmp_path / "moved")  # both together
    assert main(["train", "--resume", "moved/runs/a", "--epochs", "4"]) == 0
    (tmp_path / "moved" / "photos").rename(tmp_path / "pictures")
    assert main(["train", "--resume", "moved/runs/a", "--epochs", "5"]) == 3
    assert (
        f"the data of moved/runs/a were at {project / 'photos'}, and are not there"
        in capsys.readouterr().err
    )
    assert main(["train", "--resume", "moved/runs/a", "--epochs", "5", "--data", "pictures"]) == 0
    monkeypatch.chdir(tmp_path / "moved")
    assert main(["train", "--resume", "runs/a", "--epochs", "6"]) == 0
    assert len(fingerprint.read(tmp_path / "moved" / "runs" / "a")) == 1


def test_a_run_killed_in_its_first_epoch_starts_again_from_another_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_figures: None
):
    """More than once: what its paths are relative to is not forgotten by the first try."""
    project = tmp_path / "project"
    copy_of(photos, project / "photos")
    monkeypatch.chdir(project)
    with monkeypatch.context() as patch:
        patch.setattr(
            "fleetnet.training.fit.train_one_epoch",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        assert main(["train", *SHORT, "--data", "photos", "--run", "run"]) == 130
        monkeypatch.chdir(tmp_path)
        assert main(["train", "--resume", "project/run"]) == 130
    assert main(["train", "--resume", "project/run"]) == 0


def test_a_run_continues_between_evaluations(photos: Path, tmp_path: Path, capsys):
    """After an epoch that was not evaluated there are no metrics, and no best weights yet."""
    words = [
        "--data",
        str(photos),
        "--run",
        str(tmp_path / "run"),
        "--epochs",
        "3",
        "--eval-every",
        "3",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fleetnet.cli._training.say_epoch", lambda line: os.kill(os.getpid(), signal.SIGINT)
        )
        assert main(["train", *SHORT, *words]) == 130
    assert "no figures" not in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "run" / "last.safetensors").metrics == {"weights": "raw"}
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_fit_resumes_with_the_preprocessing_that_the_run_began_with(photos: Path, tmp_path: Path):
    """Also of a model made anew, which knows nothing of it."""
    with pytest.raises(KeyboardInterrupt):
        fit(
            photos, tmp_path / "run", 2, on_epoch=lambda _: (_ for _ in ()).throw(KeyboardInterrupt),
            preprocess=Preprocess((32, 32), mean=(0.5, 0.5, 0.5), values=(0, 4095)),
        )  # fmt: skip
    fit(photos, tmp_path / "run", 2, resume=True)
    preprocess = checkpoint.load(tmp_path / "run" / "last.safetensors").preprocess
    assert (preprocess.mean, preprocess.values) == ((0.5, 0.5, 0.5), (0, 4095))


@pytest.mark.parametrize("task", names("tasks"))
def test_labels_and_annotations_belong_to_the_fingerprint(task: str):
    target = find("tasks", task).TARGET
    split = data.load("shapes:20", "train", None, target)
    again = data.load("shapes:20", "train", None, target)
    assert fingerprint.lines_of(split) == fingerprint.lines_of(again)
    other = data.load("shapes:21", "train", None, target).samples
    changed = Split([*split.samples[:-1], other[-1]], split.classes)
    assert fingerprint.lines_of(split) != fingerprint.lines_of(changed)
    assert fingerprint.lines_of(split) != fingerprint.lines_of(
        Split(split.samples[:-1], split.classes)
    )


def test_label_maps_in_another_order_belong_to_the_fingerprint():
    split = data.load("shapes:20", "train", None, "semantic")
    classes = split.classes[::-1]
    last = replace(split.samples[-1], semantic=split.samples[0].semantic)  # the same picture
    other = Split([*split.samples[:-1], last], split.classes)
    assert fingerprint.lines_of(by_name(split, classes, "x")) != fingerprint.lines_of(
        by_name(other, classes, "x")
    )
    assert fingerprint.lines_of(by_name(split, classes, "x")) != fingerprint.lines_of(split)


def test_starting_weights_are_found_from_another_folder(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch
):
    """A run that was killed in its first epoch starts again with the weights that it was given."""
    (tmp_path / "project").mkdir()
    shutil.copy(whole / "best.safetensors", tmp_path / "project" / "start.safetensors")
    monkeypatch.chdir(tmp_path / "project")
    with monkeypatch.context() as patch:
        patch.setattr(
            "fleetnet.training.fit.train_one_epoch",
            lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        words = ["--data", str(photos), "--weights", "start.safetensors", "--run", "run"]
        assert main(["train", *SHORT, *words]) == 130
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "project/run"]) == 0
    assert checkpoint.read_facts(tmp_path / "project" / "run").source.weights.endswith(
        "start.safetensors"
    )


# Epochs


def test_epochs_count_from_one_everywhere(photos: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SHORT, "--data", str(photos), "--run", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out.splitlines()[-1])
    with (run / "results.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert [line["epoch"] for line in read_log(run)] == [1, 2]
    assert [json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]
    assert [line.split(":")[0] for line in shown.err.splitlines() if line.startswith("epoch")] == [
        "epoch 1",
        "epoch 2",
    ]
    best = document["best"]["epoch"]
    assert best in (1, 2)
    assert re.search(rf"epoch +│ +{best} ", shown.out)
    html = (run / "report.html").read_text()
    assert f"<dt>epoch</dt><dd>{best}</dd>" in html
    assert "<tr><td>1</td>" in html
    assert "<tr><td>0</td>" not in html
    seen: list[tuple[int, int]] = []
    fit(photos, tmp_path / "other", progress=lambda now: seen.append((now.epoch, now.epochs)))
    assert set(seen) == {(1, 2), (2, 2)}


def test_a_run_of_the_first_version_continues(whole: Path, tmp_path: Path):
    """Its log and state count from 0, and it has no record of its data."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    state = checkpoint.load_state(run / "state")
    old = {key: value for key, value in state.items() if key not in ("epochs", "log")}
    old |= {"epoch": 1, "best": {**state["best"], "epoch": state["best"]["epoch"] - 1}}
    checkpoint.save_state(run / "state", old)
    lines = [{**line, "epoch": line["epoch"] - 1} for line in state["log"]]
    for line in lines:
        del line["epochs_from"]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("data.json", "state/samples.json"):
        (run / name).unlink()
    assert [line["epoch"] for line in read_log(run)] == [1, 2]
    assert settled(run)["best"] == state["best"]
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    assert [line["epoch"] for line in read_log(run)] == [1, 2, 3]
    assert fingerprint.read(run)[0]["from_epoch"] == 3
