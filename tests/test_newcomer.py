"""What somebody types who comes from another tool: each mistake is answered with what to type here, before any work."""

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fleetnet
from fleetnet import synonyms
from fleetnet.backbones import pretrained, variants
from fleetnet.cli import VERBS, main
from fleetnet.cli import find as find_verb
from fleetnet.cli._arguments import new_parser
from fleetnet.cli._table import PUBLISHED, SIZES
from fleetnet.errors import ArgumentError, FleetnetError, UsageError, WriteError, suggest
from fleetnet.files import check_writable
from fleetnet.find import find, names
from fleetnet.training.config import KEYS

LINES = 8  # of a message, at most, at 100 characters
TRAIN = "train --model fasternet_t0 --data photos"
TYPED = [  # words, exit code, what the answer contains
    (f"{TRAIN} --imgsz 64", 2, ["'--size'", "fleetnet train --help"]),
    (f"{TRAIN} --batch 8", 2, ["'--batch-size'"]),
    (f"{TRAIN} -b 8", 2, ["'--batch-size'"]),
    (f"{TRAIN} --learning-rate 0.1", 2, ["'--lr'"]),
    (f"{TRAIN} --learning_rate=0.1", 2, ["'--lr'"]),
    (f"{TRAIN} --pretrained", 2, ["'--weights default'"]),
    (f"{TRAIN} --num-workers 4", 2, ["'--workers'"]),
    (f"{TRAIN} --amp", 2, ["'--precision bf16'"]),
    (f"{TRAIN} --config x.yaml", 2, ["'--recipe'"]),
    (f"{TRAIN} --project out --name x", 2, ["'--run'"]),
    (f"{TRAIN} --sched cosine", 2, ["did you mean '--schedule'"]),
    (f"{TRAIN} --nonsense 1", 2, ["nearest: ", "fleetnet train --help"]),
    (f"{TRAIN} --device 0", 2, ["--device", "'cuda'"]),
    (f"{TRAIN} --device cuda:0", 2, ["'cuda'"]),
    (f"{TRAIN} --device mps", 2, ["'cpu'"]),
    (f"{TRAIN} --lr 0,01", 2, ["--lr 0.01"]),
    (f"{TRAIN} --lr fast", 2, ["--lr is 'fast'", "a number"]),
    (f"{TRAIN} --epochs 1.5", 2, ["--epochs is '1.5'", "whole number"]),
    (f"{TRAIN} --clip much", 2, ["--clip is 'much'", "a number"]),
    (f"{TRAIN} --cache", 2, ["--cache needs a value: true or false"]),
    (f"{TRAIN} --lr", 2, ["--lr needs a value: a number"]),
    (f"{TRAIN} --optimizer adam", 2, ["'adamw'"]),
    (f"{TRAIN} --options mixing=conv", 2, ["--options.mixing conv"]),
    (f"{TRAIN} --size 64x64x3", 2, ["192x256", "192,256"]),
    (f"{TRAIN} -o Global.epochs=3 Optimizer.lr.learning_rate=0.1", 2, ["--epochs 3 --lr 0.1"]),
    (
        "train model=fasternet_t0 data=photos epochs=3",
        2,
        ["--model fasternet_t0 --data photos --epochs 3"],
    ),
    ("train fasternet_t0 --data photos", 2, ["--model fasternet_t0"]),
    ("train --model yolo --data photos", 4, ["'yolo/repvit_m0_9'"]),
    ("train --model yolov8n.pt --data photos", 4, ["'yolo/repvit_m0_9'"]),
    ("train --model yolo-fasternet_t0 --data photos", 4, ["'yolo/fasternet_t0'"]),
    ("train --model fasternet_t0/yolo --data photos", 4, ["yolo/fasternet_t0"]),
    ("train --model maskrcnn_resnet50_fpn --data photos", 4, ["'maskrcnn/repvit_m0_9'"]),
    ("train --model RepViT --data photos", 4, ["a family", "repvit_m0_9"]),
    ("train --model RepViT-M0.9 --data photos", 4, ["'repvit_m0_9'"]),
    ("train --model edgeformer_s --data photos", 4, ["'parcnet_s'"]),
    ("train --model resnet50 --data photos", 4, ["timm/resnet50"]),
    ("train --model timm/resnet5o --data photos", 4, ["timm/resnet50"]),
    ("train --model weights.safetensors --data photos", 4, ["--weights weights.safetensors"]),
    ("train --recipe keras.yaml", 2, ["keras.yaml", "'lr'", "fleetnet train --help"]),
    ("val --model x --data photos", 2, ["'eval'"]),
    ("infer x.jpg", 2, ["'predict'"]),
    ("detect train", 2, ["--model yolo/repvit_m0_9"]),
    ("predict --model x --conf 0.3 x.jpg", 2, ["'--score'"]),
    ("predict model=x source=x.jpg conf=0.3", 2, ["--model x x.jpg --score 0.3"]),
    ("predict --model x --top 1.5 x.jpg", 2, ["--top is '1.5'", "at least 1"]),
    ("predict --model fasternet_t0 x.jpg", 4, ["fleetnet train --model fasternet_t0"]),
    ("export --model x --to torchscript", 2, ["'pt2'"]),
    ("export --model x --to tensorrt", 2, ["--to onnx"]),
    ("export --model x --to tflite", 2, ["'litert'"]),
    ("export --model x --to onnx:fp32x", 2, ["'fp32'"]),
    ("export --model x --to onnx:int8", 2, ["fleetnet quantize"]),
    (
        "export --model fasternet_t0 --to onnx",
        4,
        ["fleetnet train --model fasternet_t0", "--check"],
    ),
    ("export --model x --format onnx", 2, ["--to onnx"]),
    ("quantize --model x --data photos --to tflite", 2, ["onnx, openvino"]),
    ("quantize --model x --data photos --to onnx --most 2", 2, ["--most is '2'", "from 0 to 1"]),
    ("verify nothing.onnx --model x", 4, ["nothing.onnx"]),
    ("eval --model x --data photos --batch-size 0", 2, ["--batch-size is '0'", "at least 1"]),
    ("flops --model fasternet_t0 --form dep", 2, ["'deploy'"]),
    ("models resnet*", 4, ["fleetnet models"]),
    ("models RepViT", 4, ["'repvit_m0_6'"]),
    ("models yolo", 4, ["yolo/repvit_m0_9"]),
]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe of another tool, and without data: they are not looked at before the message."""
    (tmp_path / "keras.yaml").write_text("learning_rate: 0.1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "code", "parts"), TYPED, ids=[words for words, _, _ in TYPED])
def test_what_a_newcomer_types_is_answered(
    words, code, parts, empty: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(shlex.split(words)) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in parts:
        assert part in shown.err
    assert "Traceback" not in shown.err
    assert "typing." not in shown.err
    assert "<class" not in shown.err
    assert sum(1 + len(line) // 100 for line in shown.err.splitlines()) <= LINES
    assert [path.name for path in empty.iterdir()] == ["keras.yaml"]


CALLS = [  # of Python, and what the answer contains
    (lambda: fleetnet.create_model("fasternet_t0", pretrained=True), "'weights=\"default\"'"),
    (lambda: fleetnet.create_model("fasternet_t0", num_classes=3), "'classes'"),
    (lambda: fleetnet.create_model("RepViT"), "repvit_m0_9"),
    (lambda: fleetnet.TrainConfig(learning_rate=0.1), "'lr'"),
    (lambda: fleetnet.TrainConfig(optimizer="adam"), "'adamw'"),
    (lambda: fleetnet.load_data("photos", "validation"), "'val'"),
    (lambda: fleetnet.load_data("photos", "val", fmt="coco"), "'format'"),
    (lambda: fleetnet.load("x.onnx", num_threads=2), "'threads'"),
    (lambda: fleetnet.export("x", "torchscript", "x.pt"), "'pt2'"),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_what_a_newcomer_calls_is_answered(number, empty: Path):
    call, part = CALLS[number]
    with pytest.raises(FleetnetError) as raised:
        call()
    assert part in str(raised.value)
    assert len(str(raised.value)) < 100 * LINES


def test_an_argument_that_is_not_there_is_a_type_error_as_in_python():
    with pytest.raises(TypeError, match="create_model has no argument 'num_classes'"):
        fleetnet.create_model("fasternet_t0", num_classes=3)
    assert issubclass(ArgumentError, UsageError)


def test_what_other_tools_words_mean_is_there():
    """Every word of ours that the table proposes is the name of something; every word on the left can be found."""
    flags = {
        action.dest for verb in VERBS for action in new_parser(verb, "", find_verb(verb))._actions
    }  # fmt: skip
    ours = flags | KEYS | {"classes"}
    for word, meanings in synonyms.SETTINGS.items():
        assert synonyms.plain(word) == word
        for meaning in meanings:
            assert meaning.partition("=")[0] in ours, word
    for word in (
        *synonyms.VALUES,
        *synonyms.HEADS,
        *(word for table in synonyms.INSTEAD.values() for word in table),
    ):
        assert synonyms.plain(word) == word
    assert set(synonyms.HEADS.values()) <= set(names("tasks"))


def test_many_names_are_not_listed():
    many = [f"name_{i}" for i in range(41)]
    assert suggest("something", many, "flag", "fleetnet x --help").count("name_") == 4
    assert "`fleetnet x --help` lists all 41" in suggest(
        "something", many, "flag", "fleetnet x --help"
    )
    assert suggest("a", ["b", "c"]) == "Allowed: b, c"


def test_models_answers_without_building_a_network():
    """In less than 2 seconds: torch alone takes as long to import."""
    code = "import sys; from fleetnet.cli import main; main(['models']); sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0
    assert all(name in found.stdout for name in SIZES)


def test_the_table_of_models_is_that_of_the_networks():
    """The sizes are compared where the networks are counted: tests/test_backbones.py."""
    assert list(SIZES) == list(variants())
    for name in SIZES:
        known = pretrained(name)
        assert PUBLISHED.get(name) == (
            known and (known.top1, known.measured_by, known.license, known.source)
        )


def test_help_shows_the_usual_size_and_classes_of_each_head(capsys: pytest.CaptureFixture[str]):
    usual = {
        task: (find("tasks", task).SIZE, find("tasks", task).CLASSES) for task in names("tasks")
    }
    own, classes = usual.pop("classification")
    for verb in ("train", "flops", "bench", "export"):
        assert main([verb, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        sizes = "; ".join(
            [f"{own[0]}", *(f"{task} {size[0]}" for task, (size, _) in usual.items())]
        )
        assert sizes in text, verb
        if verb == "flops":
            counts = "; ".join(
                [f"{classes}", *(f"{task} {count}" for task, (_, count) in usual.items())]
            )
            assert counts in text


# ---- outputs that cannot be written, and starts that fail -----------------------------------------------------------

OUTPUTS = [  # words before the path that is to be written, and whether it is a folder
    ("train --model fasternet_t0 --data shapes:40 --run", True),
    ("demo --run", True),
    ("eval --model {run} --data shapes:40 --plots", True),
    ("eval --model {run} --data shapes:40 --predictions", False),
    ("predict --model {run} x.jpg --out", True),
    ("reparam --model {run} --out", False),
    ("export --model {run} --to onnx --out", True),
    ("quantize --model {run} --data shapes:40 --to onnx --out", True),
    ("bench --model {run} --csv", False),
    ("bench --model {run} --plot", False),
    ("flops --model fasternet_t0 --csv", False),
]


@contextmanager
def as_nobody(*roots: Path) -> Iterator[None]:
    """Without the rights of root, so that permissions count; `roots` and what is above them stay searchable."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (folder for root in roots for folder in (root, *root.parents)):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(("words", "folder"), OUTPUTS, ids=[words for words, _ in OUTPUTS])
def test_outputs_are_tried_before_the_work(
    words, folder, run: Path, tmp_path: Path, capsys, monkeypatch
):
    from fleetnet import data
    from fleetnet.deploy import predictor

    def working(*args: object, **keywords: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(data, "load", working)
    monkeypatch.setattr(predictor, "load", working)
    monkeypatch.chdir(tmp_path)
    locked, file = tmp_path / "locked", tmp_path / "a file"
    locked.mkdir(mode=0o555)
    file.write_text("kept")
    name = "x.png" if "--plot" in words.split() else "x"
    flag = words.split()[-1]
    given = words.format(run=run).split()
    wrong = [file / name, tmp_path / ("n" * 300 + name)] + ([file] if folder else [])
    for path in wrong:
        assert main([*given, str(path)]) in (1, 2)
        message = capsys.readouterr().err
        assert flag in message
        assert "Error" not in message
        assert len(message) < 100 * LINES
    with as_nobody(tmp_path, run):
        code = main([*given, str(locked / name)])
    assert code == 1
    message = capsys.readouterr().err
    assert f"{flag} is " in message
    assert "no permission" in message
    assert f"another {flag}" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "locked"]
    assert file.read_text() == "kept"


def test_a_full_disk_is_said_before_the_work(monkeypatch, tmp_path: Path):
    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *why: object) -> None:
            return None

        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(
        WriteError,
        match=r"--out is '.*', where nothing can be written: the disk is full .*free some",
    ):
        check_writable(tmp_path / "out", "--out", folder=True)


def test_what_the_system_refuses_later_is_said_in_words(
    monkeypatch, capsys: pytest.CaptureFixture[str]
):
    from fleetnet.cli import doctor

    def refuse(settings: doctor.Doctor) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere/a.json")

    monkeypatch.setattr(doctor, "run", refuse)
    assert main(["doctor"]) == 1
    message = capsys.readouterr().err
    assert "somewhere/a.json: there is no permission" in message
    assert "PermissionError" not in message


FAILED = [  # starts of a training that fail, exit code, what is said
    ("--device cuda", 2, "torch sees no GPU"),
    ("--precision fp16", 2, "needs a GPU"),
    ("--weights nothing.safetensors", 4, "nothing.safetensors"),
    ("--options.mixin conv", 2, "'mixing'"),
    ("--output-stride 7", 2, "allowed: 8, 16, 32"),
    ("--drop-path 2", 2, "drop_path is 2"),
    ("--augment mosaic", 2, "mosaic"),
    ("--norm sync", 2, "sync"),
    ("--model mobileone_s0 --batch-size 1 --size 32", 2, "--batch-size 2"),
    ("--model timm/resnet10t --batch-size 1 --size 32", 2, "--batch-size 2"),
]


@pytest.mark.parametrize(("words", "code", "part"), FAILED, ids=[words for words, _, _ in FAILED])
def test_a_failed_start_leaves_no_folder(words, code, part, tmp_path: Path, monkeypatch, capsys):
    if "cuda" in words or "fp16" in words:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    start = "train --model fasternet_t0 --data shapes:40 --size 32 --epochs 1"
    assert main([*start.split(), *words.split()]) == code
    message = capsys.readouterr().err
    assert part in message
    assert "Error" not in message
    assert list(tmp_path.iterdir()) == []


# ---- commands to paste ----------------------------------------------------------------------------------------------


def pasted(text: str) -> list[list[str]]:
    """The words after `fleetnet` of each command that a message shows, as a shell takes them."""
    return [
        shlex.split(line)[1:] for line in re.findall(r"fleetnet [a-z]+ --.*?(?=   or: |\n|$)", text)
    ]


def test_closing_lines_can_be_pasted(run: Path, photos: Path, tmp_path: Path, capsys, monkeypatch):
    """Also where a path has blanks and quotes in it; what is shown is executed."""
    monkeypatch.chdir(tmp_path)
    where = "it's my run"
    shutil.copytree(run, where)
    assert main(["train", "--resume", where]) == 0  # finished: it only says what comes next
    reparam, export = pasted(capsys.readouterr().err)
    assert (reparam[0], export[0]) == ("reparam", "export")
    for shown in (reparam, [*export[:-1], "pt2"]):
        assert main(shown) == 0
    capsys.readouterr()
    assert main(["train", "--model", "fasternet_t0", "--run", where, "--data", str(photos)]) == 2
    [quoted] = re.findall(r"--resume (.*), or", capsys.readouterr().err)
    assert shlex.split(quoted) == [where]


def test_what_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]):
    from fleetnet.cli._training import say_epoch

    say_epoch(
        {
            "epoch": 1,
            "train": {"loss": 1.0},
            "raw": {"AP": None, "AP50": 1.5},
            "seconds": 1,
            "skipped": [],
        }
    )
    assert "raw AP - AP50 1.50" in capsys.readouterr().err


# ---- pictures that are not there ------------------------------------------------------------------------------------


def test_predict_says_what_it_takes(
    run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    predictor = fleetnet.load(run)
    with pytest.raises(
        UsageError, match=r"'photos' is a folder; allowed: files, as sorted\(Path\('photos'\)\.glob"
    ):
        predictor.predict("photos/")
    with pytest.raises(UsageError, match=r"'photos/\*.jpg' is a pattern; .*glob\('\*.jpg'\)"):
        predictor.predict("photos/*.jpg")
    with pytest.raises(UsageError, match="int is no picture; allowed: a path"):
        predictor.predict(7)
    answers = {
        "photoz/": "/photos'?",
        "photos": "no image in the folder 'photos'",
        "*.jpg": "the pattern '*.jpg'",
    }
    for source, part in answers.items():
        assert main(["predict", "--model", str(run), source]) == 3
        assert part in capsys.readouterr().err
