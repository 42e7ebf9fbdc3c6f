"""Files of strangers: addresses, hidden code, links out of a run, control characters; and damaged files of our own."""

import http.server
import json
import os
import re
import shutil
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import benchmark
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fleetnet
from fleetnet import checkpoint, runtimes
from fleetnet.cli import VERBS, main
from fleetnet.cli import find as find_verb
from fleetnet.cli._arguments import new_parser
from fleetnet.cli._show import printable, table
from fleetnet.errors import ModelError, SlowerWarning
from fleetnet.find import find
from fleetnet.reading import hash_of
from fleetnet.reparam import form_of
from fleetnet.runtimes import pt2
from fleetnet.weights.read import file_name, read_weights

ROOT = Path(fleetnet.__file__).parent


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its ONNX and its .pt2 file."""
    folder = copied(run, tmp_path_factory.mktemp("exported"))
    for name in ("onnx", "pt2"):
        fleetnet.export(
            folder, name, folder / "export" / name / f"model{find('runtimes', name).suffix}"
        )
    return folder


def test_a_sample_of_the_campaign(exported: Path) -> None:
    damaged = benchmark("damaged")
    cases = damaged.cases_of(exported, 48, 7)
    assert {case.change for case in cases} == {"bits", "cut", "zeros", "value", "forged", "alone"}
    bad = [outcome for outcome in damaged.campaign(exported, cases) if not outcome.good]
    assert not bad, bad


def test_one_flipped_bit_in_an_exported_file(
    exported: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    folder = Path(shutil.copytree(exported / "export" / "onnx", tmp_path / "onnx"))
    file = folder / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)
    assert main(["predict", "--model", str(file), str(photos / "val")]) == 4
    assert "its hash is another" in capsys.readouterr().err
    (folder / "model.json").unlink()  # nothing to compare with: what the file says of itself counts
    assert fleetnet.load(file).task == "classification"


def test_files_without_hashes_still_load(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "run"))
    beside = folder / "export" / "onnx" / "model.json"
    about = {
        key: value for key, value in json.loads(beside.read_text()).items() if "sha256" not in key
    }
    beside.write_text(json.dumps(about))
    assert fleetnet.load(beside.with_suffix(".onnx")).classes == about["classes"]
    with safe_open(folder / "best.safetensors", "pt") as file:
        notes = {key: value for key, value in file.metadata().items() if "sha256" not in key}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
    save_file(state, folder / "best.safetensors", notes)
    assert checkpoint.load(folder).classes == about["classes"]


def test_tensors_of_another_hash_are_refused(run: Path, tmp_path: Path) -> None:
    file = copied(run, tmp_path) / "best.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1  # of the last tensor: rounding, to a parser
    file.write_bytes(content)
    with pytest.raises(ModelError, match="the hash of its tensors is not the one that was written"):
        checkpoint.load(file)
    with pytest.raises(ModelError, match="the hash of its tensors"):
        fleetnet.create_model("fasternet_t0", weights=file)


def poisoned(run: Path, path: Path, value: float, what: str) -> Path:
    """A checkpoint with one value that is not finite, in a weight or in a buffer, its hashes right."""
    loaded = checkpoint.load(run)
    state = (
        dict(loaded.model.named_buffers())
        if what == "buffer"
        else dict(loaded.model.named_parameters())
    )
    name = next(
        key for key, tensor in state.items() if tensor.is_floating_point() and tensor.numel() > 1
    )
    state[name].data.flatten()[1] = value
    checkpoint.save(path, loaded.model, classes=loaded.classes, preprocess=loaded.preprocess)
    return path


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "weight"), (float("inf"), "buffer")])
def test_weights_that_are_not_finite_are_refused_by_every_verb(
    value: float, what: str, run: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    bad = str(poisoned(run, tmp_path / "bad.safetensors", value, what))
    for words in (
        ["eval", "--model", bad, "--data", str(photos)],
        ["predict", "--model", bad, str(photos / "val")],
        ["export", "--model", bad, "--to", "onnx", "--out", str(tmp_path / "out")],
        ["reparam", "--model", bad],
        ["quantize", "--model", bad, "--data", str(photos), "--to", "onnx"],
        ["bench", "--model", bad, "--to", "none"],
        ["flops", "--model", bad],
        ["train", "--model", "fasternet_t0", "--weights", bad, "--data", str(photos), "--size", "32",
         "--run", str(tmp_path / "run")],
    ):  # fmt: skip
        assert main(words) == 4, words
        said = capsys.readouterr().err
        assert re.search(r"holds NaN or infinity in 1 of \d+ tensors: [\w.]+", said), (words, said)


def test_a_model_in_memory_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    model = fleetnet.create_model("fasternet_t0", 3).eval()
    with torch.no_grad():
        next(model.parameters()).flatten()[0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinity"):
        fleetnet.export(model, "onnx", tmp_path / "m.onnx", size=(32, 32))


def test_a_layer_that_is_called_fuse_does_not_make_a_model_multi_branch() -> None:
    model = nn.Sequential()
    model.add_module("fuse", nn.Conv2d(3, 3, 1))
    model.add_module("fuse_at", nn.Conv2d(3, 3, 1))
    assert form_of(model) == "deploy"
    assert form_of(fleetnet.create_model("mobileone_s0", 2)) == "multi-branch"


def test_a_small_file_of_weights_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/data/0", bytes(100_000_000))
    assert (tmp_path / "a.pth").stat().st_size < 200_000
    with pytest.raises(ModelError, match="unpack to 100 MB"):
        read_weights(tmp_path / "a.pth", "fasternet_t0")


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "name"),
    {
        "http://h/a/model.pth": "model.pth",
        "http://h/..%2F..%2F.profile.pth": "profile.pth",
        "http://h/%2e%2e%2f%2e%2e%2fx.safetensors": "x.safetensors",
        "http://h/a%5C..%5Cx.pt": "x.pt",
        "http://h/a%00%1b%5B2Jb%0A.pth": "a___2Jb_.pth",
        "http://h/%E2%80%AEx.bin": "_x.bin",
        "http://h/...pth": "weights.pth",
        f"http://h/{'a' * 999}.pth": f"{'a' * 100}.pth",
        "http://h/x.pth?download=1": "x.pth",
    }.items(),
)
def test_names_from_addresses_stay_in_the_folder(address: str, name: str) -> None:
    assert file_name(address) == name


@pytest.mark.parametrize(
    "address",
    [
        "http://h/..%2F..%2F.profile",
        "http://h/",
        "http://h/..",
        "http://h/x.pth/",
        "http://h/x.pt2",
    ],
)
def test_addresses_of_no_weights_are_refused_before_anything_is_fetched(address: str) -> None:
    with pytest.raises(ModelError, match=r"must end in \.safetensors"):
        read_weights(address, "fasternet_t0")


class Answer(http.server.BaseHTTPRequestHandler):
    content = b""
    length: str | None = None

    def do_GET(self) -> None:
        self.send_response(200)
        if self.length is not None:
            self.send_header("Content-Length", self.length)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_what_is_fetched_has_the_length_and_hash_that_were_said(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (run / "best.safetensors").read_bytes()
    monkeypatch.setattr(Answer, "content", content)
    monkeypatch.setattr("fleetnet.weights.read.LARGEST_DOWNLOAD", len(content) - 1)
    for length in (str(len(content)), None, "nonsense"):  # before it is read, and while it is read
        monkeypatch.setattr(Answer, "length", length)
        with pytest.raises(ModelError, match="fetch it yourself"):
            read_weights(f"{server}/a.safetensors", "fasternet_t0")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    monkeypatch.setattr("fleetnet.weights.read.LARGEST_DOWNLOAD", len(content))
    right = hash_of([run / "best.safetensors"])
    with pytest.raises(ModelError, match="has the hash"):
        read_weights(f"{server}/a.safetensors#sha256={'0' * 64}", "fasternet_t0")
    with pytest.raises(ModelError, match="allowed: sha256="):
        read_weights(f"{server}/a.safetensors#md5=0", "fasternet_t0")
    assert (
        read_weights(f"{server}/a.safetensors#sha256={right}", "fasternet_t0").facts.model
        == "fasternet_t0"
    )
    with pytest.raises(
        ModelError, match=r"fetched from .* earlier, has the hash"
    ):  # from the cache
        read_weights(f"{server}/a.safetensors#sha256={'0' * 64}", "fasternet_t0")
    assert [path.parent for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [
        tmp_path / "cache" / "checkpoints"
    ]


# ---- hidden code -----------------------------------------------------------------------------------------------------


def test_every_entry_that_reaches_hidden_code_asks_for_trust(
    exported: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    path = exported / "export" / "pt2" / "model.pt2"
    file, run = str(path), str(exported)
    from fleetnet.proof.explain import explain

    calls = {
        "load": lambda **trust: fleetnet.load(path, **trust),
        "Predictor": lambda **trust: fleetnet.deploy.predictor.Predictor(path, **trust),
        "verify": lambda **trust: fleetnet.deploy.export.verify(exported, path, **trust),
        "runtimes.load": lambda **trust: runtimes.load("pt2", path, **trust),
        "runtimes.trace": lambda **trust: runtimes.trace("pt2", path, **trust),
        "pt2.load": lambda **trust: pt2.load(path, **trust),
        "pt2.trace": lambda **trust: pt2.trace(path, **trust),
        "explain": lambda **trust: explain(
            nn.Identity(), runtimes.File("pt2", path, **trust), [torch.zeros(1, 3, 32, 32)], 1.0
        ),
    }
    for name, call in calls.items():
        with pytest.raises(ModelError, match=r"--trust.*trust=True"):
            call()
        if name != "explain":
            assert call(trust=True) is not None
    for words in (
        ["eval", "--model", file, "--data", str(photos)],
        ["predict", "--model", file, str(photos / "val")],
        ["verify", file, "--model", run],
        ["bench", "--model", file, "--runs", "1", "--warmup", "0"],
    ):
        assert main(words) == 4, words
        assert "--trust" in capsys.readouterr().err
        assert main([*words, "--trust"]) == 0, words
        capsys.readouterr()
    assert (
        main(["bench", "--tune", "--model", run, file, "--data", str(photos), "--to", "onnx"]) == 4
    )
    assert "--trust" in capsys.readouterr().err
    readers = [
        p.name
        for p in ROOT.rglob("*.py")
        if re.search(r"export\.load\(|weights_only=False", p.read_text())
    ]
    assert sorted(readers) == [
        "_litert_worker.py",
        "pt2.py",
    ]  # the first reads what this process has just written


# ---- links out of a run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["state", "config.yaml", "log.jsonl", "plots", "results.csv", "export", "data.json"]
)
def test_a_run_with_a_link_that_leads_out_is_not_continued(
    name: str, run: Path, tmp_path: Path, capsys
) -> None:
    folder, outside = copied(run, tmp_path), tmp_path / "outside"
    if (folder / name).exists():
        shutil.move(folder / name, outside)
    else:
        outside.mkdir()
    (folder / name).symlink_to(outside)
    before = {path: path.stat().st_mtime_ns for path in (outside, *outside.rglob("*"))}
    assert main(["train", "--resume", str(folder), "--epochs", "3"]) == 4
    assert f"{folder / name} is a link that leads out" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (outside, *outside.rglob("*"))} == before


def test_weights_of_a_run_are_not_read_through_a_link_that_leads_out(
    run: Path, tmp_path: Path
) -> None:
    folder = copied(run, tmp_path)
    shutil.move(folder / "best.safetensors", tmp_path / "elsewhere.safetensors")
    (folder / "best.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    for call in (fleetnet.load, checkpoint.load, checkpoint.read_facts):
        with pytest.raises(ModelError, match="leads out of"):
            call(folder)
    (folder / "best.safetensors").unlink()
    (folder / "best.safetensors").symlink_to("last.safetensors")  # within the run
    assert checkpoint.load(folder).classes


@pytest.mark.parametrize(
    "words",
    [["export", "--to", "onnx"], ["quantize", "--to", "onnx", "--data", "shapes:40"], ["reparam"]],
    ids=str,
)
def test_nothing_is_written_through_a_link_of_a_run(
    words: list[str], run: Path, tmp_path: Path
) -> None:
    folder, outside = copied(run, tmp_path), tmp_path / "outside"
    outside.mkdir()
    (outside / "deploy.safetensors").write_text("mine")
    (folder / "export").symlink_to(outside)
    (folder / "deploy.safetensors").symlink_to(outside / "deploy.safetensors")
    code = main([words[0], "--model", str(folder), *words[1:]])
    assert (outside / "deploy.safetensors").read_text() == "mine"
    assert os.listdir(outside) == ["deploy.safetensors"]
    assert code == (0 if words[0] == "reparam" else 4)  # it replaces the link


def test_a_damaged_result_of_the_best_epoch_is_left_out_of_the_report(
    run: Path, tmp_path: Path
) -> None:
    from fleetnet.training.run import best_of

    folder = copied(run, tmp_path)
    best = checkpoint.load_state(folder / "state")["best"]
    assert len(best_of(folder, best)) > len(best)
    details = json.loads((folder / "best.json").read_text())
    (folder / "best.json").write_text(json.dumps({**details, "confusion": 1.5}))
    assert best_of(folder, best) == best


# ---- the terminal ----------------------------------------------------------------------------------------------------

HOSTILE = "a\x1b[2J\x1b]0;x\x07\r\x9b1mb\u202eexe.jpg\udcff"


def test_control_characters_do_not_reach_the_terminal(run: Path, tmp_path: Path, capsys) -> None:
    assert printable("plain ü 漢\n\t") == "plain ü 漢\n\t"
    table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, "x\ny"]])
    assert main(["predict", "--model", f"{tmp_path}/{HOSTILE}.onnx", "x.jpg"]) == 4
    assert main([f"pre{HOSTILE}"]) == 2
    loaded = checkpoint.load(run)
    classes = [f"{HOSTILE[:-1]}{i}" for i in range(len(loaded.classes))]
    checkpoint.save(
        tmp_path / "a.safetensors", loaded.model, classes=classes, preprocess=loaded.preprocess
    )
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "x\x1b[31m.png")
    assert (
        main(["predict", "--model", str(tmp_path / "a.safetensors"), str(tmp_path), "--json"]) == 0
    )
    said = "".join(capsys.readouterr())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)
    assert r"\x1b[2J" in said


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_takes_a_number_that_is_not_finite(verb: str, capsys) -> None:
    parser = new_parser(verb, "", find_verb(verb))
    for action in parser._actions:
        kind = str(getattr(action, "_typehint", None) or action.type)
        if action.option_strings and "loat" in kind and "dict" not in kind:
            for value in ("inf", "-inf", "nan", ".inf", ".nan"):
                assert main([*verb.split(), f"{action.option_strings[0]}={value}"]) == 2, (
                    action.option_strings,
                    value,
                )


@pytest.mark.parametrize("where", ["error", "warning"])
def test_names_in_errors_and_warnings_are_printable(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Names of files are a stranger's: neither the system's errors nor warnings write them as they are."""

    def dispatch(words: list[str]) -> int:
        if where == "error":
            raise PermissionError(13, "Permission denied", "a\x1b[2J.png")
        warnings.warn("a\x1b[2J.onnx is slow", SlowerWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("fleetnet.cli._dispatch", dispatch)
    assert main(["predict"]) == (where == "error")
    assert "a\\x1b[2J." in capsys.readouterr().err
