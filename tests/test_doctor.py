"""`fleetnet doctor` tells what works here, whatever is missing or broken."""

import json
import os
from types import SimpleNamespace

import pytest

from fleetnet.cli import VERBS, doctor, main
from fleetnet.deploy import trial
from fleetnet.errors import UsageError
from fleetnet.find import names
from fleetnet.runtimes import _isolated, litert, onnx


@pytest.fixture(autouse=True)
def verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "doctor", VERBS.get("doctor", ""))


def crash(name: str) -> str:
    """In place of a package that ends its process."""
    os._exit(9)


def wrong(name: str) -> str:
    raise RuntimeError("version 3 of something\nwas expected")


def test_it_lists_everything(
    capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLEETNET_ENVS", str(tmp_path / "envs"))
    assert main(["doctor", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out.splitlines()[-1])
    assert [runtime["name"] for runtime in document["runtimes"]] == names("runtimes")
    found = {runtime["name"]: runtime for runtime in document["runtimes"]}
    assert found["onnx"]["lacks"] is None
    assert found["onnx"]["version"]
    assert found["onnx"]["precisions"] == ["fp32", "fp16", "bf16"]
    assert found["coreml"]["cannot_run"] == find_reason()
    (environment,) = document["environments"]
    assert environment["lacks"].endswith("fleetnet doctor --install litert")
    assert {package["name"] for package in document["packages"]} == {
        "timm",
        "huggingface_hub",
        "tensorboard",
        "nncf",
    }
    assert document["machine"]["processor"].endswith("cores")
    for word in ("onnxruntime", "CUDA", "fleetnet doctor --install litert", str(tmp_path), "timm"):
        assert word in printed.out
    assert "--test" in printed.err
    assert not (tmp_path / "envs").exists()


def find_reason() -> str | None:
    from fleetnet.runtimes import coreml

    return coreml.cannot_run()


def test_what_is_missing_is_said_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert main(["doctor", "--to", "onnx,pt2", "--test"]) == 0
    said = capsys.readouterr().out
    assert "onnx is not installed: pip install onnx" in said
    assert "works: relative difference" in said  # pt2, which is torch
    assert "pip install 'fleetnet[hub]'" in said


def test_what_is_broken_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def broken() -> None:
        raise ValueError("onnx.__spec__ is None")

    monkeypatch.setattr(onnx, "missing", broken)
    monkeypatch.setattr(trial, "convert_and_compare", crash)
    assert main(["doctor", "--to", "onnx,pt2", "--test", "--json"]) == 0
    said = capsys.readouterr().out
    assert "cannot be looked at: ValueError: onnx.__spec__ is None" in said
    assert "does not work: BrokenProcessPool" in said
    document = json.loads(said.splitlines()[-1])
    assert [runtime["test"] and runtime["test"]["passed"] for runtime in document["runtimes"]] == [
        None,
        False,
    ]


def test_what_a_trial_raises_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "convert_and_compare", wrong)
    assert trial.try_runtime("onnx") == trial.Trial(False, "RuntimeError: version 3 of something")


def test_a_trial_converts_and_compares():
    assert trial.convert_and_compare("onnx").startswith("relative difference ")


def test_installing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    made: list[str] = []
    monkeypatch.setattr(_isolated, "create", made.append)
    monkeypatch.setattr(_isolated, "missing", lambda name: None)
    monkeypatch.setattr(litert, "find_spec", lambda name: SimpleNamespace())
    assert main(["doctor", "--install", "litert", "--to", "litert"]) == 0
    assert made == ["litert"]
    assert "ready" in capsys.readouterr().out


def test_what_cannot_be_installed_or_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--install", "lite_rt"]) == UsageError.exit_code
    assert "did you mean 'litert'?" in capsys.readouterr().err
    assert main(["doctor", "--to", "onxx"]) == UsageError.exit_code
    assert "did you mean 'onnx'?" in capsys.readouterr().err
