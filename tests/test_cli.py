"""The command line as a user meets it: the way from images to a verified file, and what errors say."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetnet import cli
from fleetnet.cli import main
from fleetnet.cli._arguments import parse
from fleetnet.find import names
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_verbs_are_files():
    assert sorted(verb.replace(" ", "_") for verb in cli.VERBS) == names("cli")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_shows_defaults_and_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example:\n  fleetnet {verb}" in out
    assert "default" in out


def test_help_loads_no_torch():
    code = "import sys; from fleetnet.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "16000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_of_torch_sleep_soon_unless_told_otherwise(given: dict, expected: str):
    code = (
        "import os, sys; sys.argv[1:] = ['--help']; from fleetnet.cli import main; main(); "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    names = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    kept = {name: value for name, value in os.environ.items() if name not in names}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **given}
    )
    assert ran.stdout.splitlines()[-1] == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize(
    ("variables", "is_kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, False),
    ],
)
def test_freed_memory_is_kept_unless_told_otherwise(variables: dict[str, str], is_kept: bool):
    """By the resident memory before and after 256 MiB, larger than any threshold of malloc."""
    code = (
        "import numpy, os\n"
        "from fleetnet.cli._process import keep_freed_memory\n"
        "print(keep_freed_memory())\n"
        "pages = lambda: int(open('/proc/self/statm').read().split()[1])\n"
        "before = pages()\n"
        "block = numpy.ones(256 << 20, numpy.uint8)\n"
        "del block\n"
        "print((pages() - before) * os.sysconf('SC_PAGE_SIZE') >> 20)"
    )
    names = "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"
    others = {name: value for name, value in os.environ.items() if name not in names}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**others, **variables}
    )
    said, kept = ran.stdout.split()
    assert said == str(is_kept)
    assert int(kept) > 200 if is_kept else int(kept) < 50


@pytest.mark.parametrize(("verb", "is_kept"), [("train", True), ("eval", False)])
def test_only_what_trains_keeps_freed_memory(
    verb: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls: list[bool] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(cli, "wait_without_spinning", lambda: None)
    monkeypatch.setattr(sys, "argv", ["fleetnet", verb, "--help"])
    assert main() == 0
    assert bool(calls) == is_kept


def test_run_folder_is_complete(run: Path):
    files = "config.yaml environment.json log.jsonl results.csv report.html best.safetensors last.safetensors"
    for name in (
        *files.split(),
        "ema.safetensors",
        "state",
        "plots/curves.png",
        "plots/confusion.png",
    ):
        assert (run / name).exists(), name


def test_one_top1_all_the_way(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """train -> eval -> reparam -> export -> eval of the file: the same images right, to the image."""
    best = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert main(["eval", "--model", str(run), "--data", str(photos), "--json"]) == 0
    checkpoint = last_json(capsys)
    assert (
        main(
            [
                "reparam",
                "--model",
                str(run),
                "--out",
                str(tmp_path / "deploy.safetensors"),
                "--json",
            ]
        )
        == 0
    )
    folded = last_json(capsys)
    assert folded["relative_difference"] < 1e-5
    assert folded["after"]["batch_norms"] == 0 < folded["before"]["batch_norms"]
    assert (
        main(
            [
                "export",
                "--model",
                str(run),
                "--to",
                "onnx",
                "--out",
                str(tmp_path),
                "--data",
                str(photos),
                "--json",
            ]
        )
        == 0
    )
    exported = last_json(capsys)["exported"][0]
    assert exported["passed"]
    assert exported["images"] == 4 + 12
    results = [checkpoint]
    for model in (tmp_path / "deploy.safetensors", exported["path"]):
        assert main(["eval", "--model", str(model), "--data", str(photos), "--json"]) == 0
        results.append(last_json(capsys))
    assert len({str(r["confusion"]) for r in results}) == 1
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert checkpoint["correct"] == max(line["ema"]["correct"] for line in logged)
    assert best["epoch"] == 2


def test_embedded_preprocessing_gives_the_same(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert (
        main(
            [
                "export",
                "--model",
                str(run),
                "--to",
                "onnx",
                "--out",
                str(tmp_path),
                "--embed-preprocess",
            ]
        )
        == 0
    )
    scores = []
    for model in (run, tmp_path / "onnx" / "model.onnx"):
        capsys.readouterr()
        assert main(["predict", "--model", str(model), str(photos / "val"), "--json"]) == 0
        results = last_json(capsys)["results"]
        scores.append(
            {(r["file"], p["name"]): p["score"] for r in results for p in r["predictions"]}
        )
    assert len(scores[0]) == 36
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
    assert max(scores[0].values()) - min(scores[0].values()) > 0.01  # pictures do differ


def test_export_says_what_it_replaces(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    words = ["export", "--model", str(run), "--to", "pt2", "--out", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr()
    assert "32x32" in first.out
    assert "before" not in first.err
    assert main([*words, "--size", "64"]) == 0
    assert (
        "was a file for 32x32 before, and is one for 64x64 now"
        in capsys.readouterr().err.replace("\n", " ")
    )


def test_predict_names_what_it_skips(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = next(photos.glob("val/*/*.png"))
    shutil.copy(good, tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:60])
    assert (
        main(
            [
                "predict",
                "--model",
                str(run),
                str(tmp_path),
                "--out",
                str(tmp_path / "out"),
                "--json",
            ]
        )
        == 3
    )
    found = last_json(capsys)
    assert [Path(r["file"]).name for r in found["results"]] == ["good.png"]
    assert "broken.png" in found["skipped"][0]
    assert sum(p["score"] for p in found["results"][0]["predictions"]) == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 4
    assert (tmp_path / "out" / "predictions.png").exists()


def test_bench_measures_all_forms(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert (
        main(
            [
                "bench",
                "--model",
                str(run),
                "--runs",
                "6",
                "--warmup",
                "1",
                "--csv",
                str(tmp_path / "t.csv"),
                "--json",
            ]
        )
        == 0
    )
    rows = last_json(capsys)["rows"]
    assert [row["name"].split(maxsplit=1)[1] for row in rows] == [
        "multi-branch (torch)",
        "deploy (torch)",
        "deploy (onnx)",
    ]
    assert all(row["runs"] == 6 and row["median_ms"] > 0 for row in rows)
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 4


def test_models(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "mobileone_s0", "--json"]) == 0
    [model] = last_json(capsys)["models"]
    assert (model["parameters"], model["deploy_parameters"]) == (5_293_272, 2_078_504)
    assert model["license"]


RECIPES = {"typo": "epoch: 3\n", "value": "epochs: many\n", "list": "- 1\n", "broken": "a: [\n"}


@pytest.fixture
def place(tmp_path: Path, photos: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of good and bad things, the working folder of the error tests."""
    for name, text in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(photos, tmp_path / "hollow")
    (tmp_path / "hollow" / "train" / "zebra").mkdir()
    shutil.copytree(next((photos / "train").iterdir()), tmp_path / "lonely" / "only")
    assert (
        main(["reparam", "--model", str(run), "--out", str(tmp_path / "deploy.safetensors")]) == 0
    )
    (tmp_path / "half.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:5000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = "train --model fasternet_t0 --data photos --size 32 --epochs 1"
ERRORS = [  # words, exit code, parts of the message
    ("", 2, []),
    ("trian", 2, ["'trian'", "did you mean 'train'"]),
    ("train --modle fasternet_t0", 2, ["--modle", "did you mean '--model'"]),
    ("train --data photos", 2, ["--model is missing", "example"]),
    (f"{TRAIN} --epochs many", 2, ["epochs", "many"]),
    (f"{TRAIN} --epochs 0", 2, ["epochs is 0", "at least 1"]),
    (f"{TRAIN} --size 32x", 2, ["size is '32x'", "HEIGHTxWIDTH"]),
    (f"{TRAIN} --recipe typo.yaml", 2, ["typo.yaml", "'epoch'", "did you mean 'epochs'"]),
    (f"{TRAIN} --recipe value.yaml", 2, ["value.yaml", "epochs", "many"]),
    (f"{TRAIN} --recipe list.yaml", 2, ["list.yaml", "mapping"]),
    (f"{TRAIN} --recipe broken.yaml", 2, ["broken.yaml", "YAML"]),
    (f"{TRAIN} --recipe typ.yaml", 2, ["typ.yaml", "did you mean 'typo'"]),
    (f"{TRAIN} --options.mixin conv", 2, ["'mixin'", "did you mean 'mixing'"]),
    (f"{TRAIN} --format foldr", 2, ["'foldr'", "did you mean 'folder'"]),
    (f"{TRAIN} --precision fp16", 2, ["fp16", "GPU"]),
    ("train --resume nowhere", 2, ["nowhere", "config.yaml"]),
    ("train --resume run --lr 1", 2, ["--lr", "epochs"]),
    ("train --resume run --epochs 2", 2, ["trained for 2 epochs"]),
    ("train --resume run --data photos --format foldr", 2, ["'foldr'", "did you mean 'folder'"]),
    ("demo --run run", 2, ["run holds a training run"]),
    ("eval --model run --data photos --threads 0", 2, ["threads"]),
    ("bench --model run --runs -1", 2, ["runs"]),
    (f"{TRAIN} --device gpu", 2, ["gpu"]),
    (f"{TRAIN} --weights deploy.safetensors", 4, ["deploy.safetensors is in "
                                                  "deploy form", "multi-branch"]),
    ("reparam --model deploy.safetensors", 4, ["in deploy form already"]),
    ("train --model fasternet_t0 --data lonely --size 32", 3, ["lonely", "two or more classes"]),
    (f"{TRAIN} --run run", 2, ["--resume"]),
    ("train --model fasternet_t0 --data photo", 3, ["photo", "photos"]),
    ("train --model fasternet_t0 --data hollow", 3, ["zebra"]),
    ("train --model fasternet_to --data photos", 4, ["'fasternet_to'", "did you mean "
                                                                       "'fasternet_t0'"]),
    ("train --model sdd/fasternet_t0 --data photos", 4, ["'sdd'"]),
    ("train --model mobileone_s1 --data photos --size 32 --weights "
     "run/best.safetensors", 4, ["fasternet"]),
    ("eval --model half.safetensors --data photos", 4, ["half.safetensors"]),
    ("eval --model nothing.onnx --data photos", 4, ["nothing.onnx"]),
    ("eval --model foreign.onnx --data photos", 4, ["foreign.onnx", "fleetnet"]),
    ("eval --model pose.onnx --data photos", 4, ["pose.onnx", "'pose'"]),
    ("eval --model run --data hollow --split train", 3, ["zebra"]),
    ("eval --model run --data shapes", 3, ["circle"]),
    ("export --model run --to onix", 2, ["'onix'", "did you mean 'onnx'"]),
    ("export --model run --to onnx --opset 3", 2, ["opset", "3"]),
    ("predict --model run nothing/*.jpg", 3, ["nothing/*.jpg"]),
    ("models resnet*", 4, ["resnet*"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "parts"), ERRORS, ids=[words or "nothing" for words, _, _ in ERRORS]
)
def test_errors(
    words: str, code: int, parts: list[str], place: Path, capsys: pytest.CaptureFixture[str]
):
    if ".onnx" in words:
        plant_onnx(place)
    assert main(words.split()) == code
    message = capsys.readouterr().err
    for part in parts:
        assert part in message
    assert "Traceback" not in message


def plant_onnx(place: Path) -> None:
    """An ONNX file of another program, and one that says it is of a task that there is not."""
    from fleetnet import checkpoint
    from fleetnet.runtimes import onnx

    net, example = torch.nn.Conv2d(3, 3, 1).eval(), torch.zeros(1, 3, 32, 32)
    onnx.export(Request(net, example, place / "foreign.onnx"))
    facts = {**checkpoint.read_facts(place / "run").to_json(), "task": "pose"}
    onnx.export(Request(net, example, place / "pose.onnx", metadata=facts))


def test_training_skips_and_names_broken_images(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    victim = next(root.glob("train/*/*.png"))
    victim.write_bytes(b"\0" * 100)
    words = (
        f"train --model fasternet_t0 --size 32 --batch-size 8 --epochs 1 --data {root} --run "
        f"{tmp_path / 'r'} --json"
    )
    assert main(words.split()) == 0
    skipped = last_json(capsys)["skipped"]
    assert len(skipped) == 1
    assert victim.name in skipped[0]


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="trian"):
        main(["trian", "--debug"])


def test_golden_pair_tests_the_file(run: Path, tmp_path: Path):
    assert main(["export", "--model", str(run), "--to", "onnx", "--out", str(tmp_path)]) == 0
    from fleetnet.runtimes import onnx

    golden = np.load(tmp_path / "onnx" / "golden.npz")
    [logits] = onnx.load(tmp_path / "onnx" / "model.onnx")(golden["image"])
    assert np.abs(logits - golden["logits"]).max() < 1e-4 * golden["logits"].std()


def test_reparam_judges_a_network_by_what_float32_leaves_of_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With a tolerance that rounding exceeds, as with the sums of another CPU, a right one is accepted."""
    monkeypatch.setattr("fleetnet.cli.reparam.TOLERANCE", 1e-9)
    assert (
        main(
            [
                "reparam",
                "--model",
                str(run),
                "--out",
                str(tmp_path / "deploy.safetensors"),
                "--json",
            ]
        )
        == 0
    )
    folded = last_json(capsys)
    assert 1e-9 < folded["relative_difference"] <= folded["tolerance"] < 1e-3

    def wrong(*args: object) -> torch.nn.Module:
        deploy = reparameterize(*args)
        deploy.head.classifier[-1].bias.data[0] += 1e-3
        return deploy

    monkeypatch.setattr("fleetnet.reparam.reparameterize", wrong)
    assert main(["reparam", "--model", str(run), "--out", str(tmp_path / "wrong.safetensors")]) == 5
    assert "nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "wrong.safetensors").exists()


def test_a_verb_of_two_words_is_found_by_both(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "--help"]) == 0
    listed = capsys.readouterr().out
    assert "data check" in listed
    assert "doctor" not in listed
    assert main(["data"]) == 2
    assert capsys.readouterr().out == listed
    assert main(["data", "chek"]) == 2
    assert "data has no action 'chek': did you mean 'check'?" in capsys.readouterr().err
    assert main(["dta", "check"]) == 2
    assert "no verb 'dta': did you mean 'data'?" in capsys.readouterr().err


def test_numbers_with_bounds_are_plain_ones_in_the_settings():
    """A run keeps its settings in files, which hold no classes of a parser."""
    typed = parse("demo", "", cli.find("demo"), ["--epochs", "1", "--threads", "1"])
    assert {type(value) for value in (typed.epochs, typed.threads)} == {int}
    words = ["--model", "x", "--data", "y", "--max-bad", "0.5"]
    assert type(parse("eval", "", cli.find("eval"), words).max_bad) is float
