"""What an app waits for: slow layers are named, fresh processes measured, parts add up, limits kept.

No test compares times with each other: which kernel computed a layer is a matter of the file and of
the CPU, and the rest are stand-ins.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_backbone import offer_tiny, tiny
from torch import Tensor, nn

import fleetnet
from fleetnet import int8, resident
from fleetnet.cli import main
from fleetnet.cli._app import Speed
from fleetnet.errors import DataError, ExportError, ModelError
from fleetnet.measure import app, fresh, pipeline, throughput, tune
from fleetnet.measure.candidates import Subject
from fleetnet.measure.flops import count
from fleetnet.measure.latency import Row
from fleetnet.measure.tune import Limits, Measured, fastest
from fleetnet.runtimes import Kernel, Request, fast_share, kernels, litert, onnx, outside
from fleetnet.runtimes._cpu import is_x86

SIZE = 16


class Planted(nn.Module):
    """Image -> logits, by three convolutions of which the one in the middle may be of another kind."""

    def __init__(self, middle: nn.Module | None = None):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.middle = middle or nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 16, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        return self.last(self.middle(x).relu()).mean((2, 3))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 3, SIZE, SIZE), np.float32)


def written(model: nn.Module, runtime: str, folder: Path) -> Path:
    """The file of a model, as its runtime writes it."""
    torch.manual_seed(0)
    module = fleetnet.runtimes.find(runtime)
    path = folder / f"model{module.suffix}"
    module.export(Request(model.eval(), torch.randn(1, 3, SIZE, SIZE), path))
    return path


def slow_layers(runtime: str, path: Path, images: np.ndarray) -> tuple[float, list[Kernel]]:
    """The share of MACs in fast kernels, and the layers with MACs outside of them."""
    told = kernels(runtime, path, images[:1])
    assert told is not None
    share = fast_share(told)
    assert share is not None
    return share, [kernel for kernel in outside(told) if kernel.macs]


def macs_of(module: nn.Module, shape: tuple[int, ...]) -> int:
    return count(module, torch.zeros(shape)).macs


# ---- which kernels computed it ---------------------------------------------------------------------------------------


def test_a_float_layer_between_layers_in_int8_is_named(images, tmp_path: Path):
    path = written(Planted(), "onnx", tmp_path)
    write = int8.find("onnx").writer(path, images)
    whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
    write(set(), whole, {})
    write({"middle"}, part, {})
    assert slow_layers("onnx", path, images) == (1.0, [])
    assert slow_layers("onnx", whole, images) == (1.0, [])
    share, slow = slow_layers("onnx", part, images)
    # with it what makes the map that it takes, which would be rounded else
    assert [each.layer for each in slow] == ["middle/Conv", "stem/Conv"]
    assert {each.slow for each in slow} == {"in float between layers in int8"}
    assert all(each.ms is not None and each.ms > 0 for each in slow)
    stem, middle, last = (
        macs_of(module, shape)
        for module, shape in (
            (Planted().stem, (1, 3, SIZE, SIZE)),
            (Planted().middle, (1, 32, 8, 8)),
            (Planted().last, (1, 32, 8, 8)),
        )
    )
    assert [each.macs for each in slow] == [middle, stem]
    assert share == pytest.approx(last / (stem + middle + last))


@pytest.mark.skipif(not is_x86(), reason="other CPUs have kernels for groups")
@pytest.mark.parametrize(("groups", "fast"), [(32, True), (16, False)])
def test_groups_that_the_blocked_kernels_do_not_take_are_named(
    groups, fast, images, tmp_path: Path
):
    middle = nn.Conv2d(32, 32, 3, padding=1, groups=groups)
    share, slow = slow_layers("onnx", written(Planted(middle), "onnx", tmp_path), images)
    assert (share == 1) == fast
    assert [(each.layer, each.slow) for each in slow] == (
        []
        if fast
        else [("middle/Conv", "a convolution of 16 groups outside of the blocked kernels")]
    )


def test_macs_are_those_of_torch_whatever_the_runtime_makes_of_the_layers(images, tmp_path: Path):
    """Of 40 channels, which onnxruntime pads to whole blocks."""
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3, stride=2, padding=1),
        nn.Conv2d(40, 40, 3, padding=1, groups=40),
        nn.GELU(),
        nn.Conv2d(40, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    for runtime in ("onnx", "openvino"):
        module = fleetnet.runtimes.find(runtime)
        if module.missing():
            continue
        told = kernels(runtime, written(model, runtime, tmp_path), images[:1])
        assert sum(kernel.macs for kernel in told) == macs_of(model, (1, 3, SIZE, SIZE)), runtime
        assert fast_share(told) == 1, runtime


def test_what_litert_does_not_hand_to_xnnpack_is_named():
    """As its interpreter tells of operators, with the pieces that were handed over at the end."""
    operators = [
        {"index": number, "op_name": name, "inputs": taken, "outputs": [made]}
        for number, (name, taken, made) in enumerate(
            [
                ("CONV_2D", [0, 10], 1),  # in the first piece
                ("RESIZE_NEAREST_NEIGHBOR", [1, 11], 2),
                ("DEPTHWISE_CONV_2D", [2, 12], 3),  # in the second, with the next
                ("FULLY_CONNECTED", [3, 13], 4),
                ("DELEGATE", [0, 10], 1),
                ("DELEGATE", [2, 12, 13], 4),
            ]
        )
    ]
    assert litert._handed_over(operators) == {0, 2, 3}
    shapes = {0: [1, 8, 8, 3], 1: [1, 8, 8, 6], 2: [1, 16, 16, 6], 3: [1, 16, 16, 6], 4: [1, 5]}
    shapes |= {10: [6, 3, 3, 3], 11: [2], 12: [1, 5, 5, 6], 13: [5, 1536]}
    types = {0: [np.int8, np.int8], 1: [np.int8], 2: [np.float32, np.float32], 3: [np.int8]}
    for number, of_operator in types.items():
        operators[number]["operand_types"] = of_operator
    assert litert._in_int8(operators[0])
    assert not litert._in_int8(operators[2])
    assert [
        litert._why_slow(operator, {0, 2, 3}, int8_file=True) for operator in operators[:4]
    ] == ["", "not handed to XNNPACK", "in float between layers in int8", ""]
    assert litert._why_slow(operators[2], {0, 2, 3}, int8_file=False) == ""
    macs = [litert._macs(operator, shapes) for operator in operators[:4]]
    assert macs == [64 * 6 * 27, 0, 256 * 6 * 25, 5 * 1536]


def test_a_runtime_that_does_not_tell_is_said_not_to(images, tmp_path: Path):
    assert kernels("pt2", tmp_path / "none.pt2", images[:1]) is None
    speed = Speed("model (pt2)", "pt2", None)
    assert speed.share is None
    assert speed.why_refused(0.5) == ("model (pt2): it is not told which kernels pt2 computes with")


def test_what_is_damaged_is_said(images, tmp_path: Path, monkeypatch):
    bad = tmp_path / "model.onnx"
    bad.write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        kernels("onnx", bad, images[:1])
    opening = fresh.Opening("onnx", str(bad), 1, (1, 3, SIZE, SIZE))
    monkeypatch.setattr(fresh.sys, "executable", shutil.which("false"))
    opened, skipped = fresh.fresh({"bad": opening}, 2)
    assert opened == {}
    (line,) = skipped
    assert re.search(r"of bad: .*model\.onnx: a fresh process cannot open and run it", line)

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", fresh.TIMEOUT)

    monkeypatch.setattr(fresh.subprocess, "run", hangs)
    assert "did not open and run it within 600 s" in fresh.fresh({"bad": opening}, 1)[1][0]
    subject = Subject("m", "", "onnx", "onnx", 1, (SIZE, SIZE), lambda: None, file=bad)
    assert app.throughputs({"bad": subject})[0] == {}


def test_a_limit_of_memory_where_it_is_not_told(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr(resident, "HIGH_WATER", tmp_path / "none")
    words = ["--model", "m", "--to", "onnx", "--tune", "--data", "d", "--max-memory", "50"]
    assert main(["bench", *words]) == 2
    assert "which is Linux" in capsys.readouterr().err


# ---- onnxruntime's bfloat16, on a CPU that pretends to have it -------------------------------------------------------


def test_bf16_is_refused_where_the_cpu_has_none_and_asked_for_where_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import onnxruntime

    asked: list[tuple[str, str]] = []
    real = onnxruntime.SessionOptions

    class Options(real):  # type: ignore[misc, valid-type]
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked.append((key, value))
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    example = torch.randn(1, 3, SIZE, SIZE)
    request = Request(Planted().eval(), example, tmp_path / "model.onnx", precision="bf16")
    monkeypatch.setattr(onnx, "has_bf16_of_arm", lambda: False)
    with pytest.raises(ExportError, match=r"64-bit Arm CPUs with bf16 .* choose onnx:fp32"):
        onnx.export(request)
    monkeypatch.setattr(onnx, "has_bf16_of_arm", lambda: True)
    onnx.export(request)
    bf16 = onnx.load(request.path)(example.numpy())[0]
    assert (onnx.BF16, "1") in asked
    asked.clear()
    monkeypatch.setattr(onnx, "has_bf16_of_arm", lambda: False)
    assert np.array_equal(onnx.load(request.path)(example.numpy())[0], bf16)
    assert (onnx.BF16, "1") not in asked


@pytest.mark.parametrize(
    ("machine", "system", "features", "expected"),
    [
        ("aarch64", "Linux", {"bf16"}, True),
        ("aarch64", "Linux", {"neon"}, False),
        ("arm64", "Darwin", {"bf16"}, False),
        ("x86_64", "Linux", {"bf16"}, False),
    ],
)
def test_which_cpus_have_it(machine, system, features, expected, monkeypatch):
    from fleetnet.runtimes import _cpu

    monkeypatch.setattr(_cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr(_cpu.platform, "system", lambda: system)
    monkeypatch.setattr(_cpu, "_features", lambda: features)
    assert _cpu.has_bf16_of_arm() is expected


# ---- fresh processes, the pipeline, all cores ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proven ONNX file of a classifier of three classes."""
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        offer_tiny(patch)
        fleetnet.export(tiny("classification", 3).eval(), "onnx", path, classes=[*"abc"])
    return path


def test_a_fresh_process_opens_and_runs_a_file(images, tmp_path: Path):
    path = written(Planted(), "onnx", tmp_path)
    opening = fresh.Opening("onnx", str(path), 1, (1, 3, SIZE, SIZE))
    measured = fresh.fresh({"a": opening}, 1)[0]["a"]
    assert measured.import_ms > measured.cold_ms > 0  # torch alone takes a second
    assert measured.cold_ms == measured.open_ms + measured.first_ms
    assert measured.open_ms > 0 < measured.first_ms
    if resident.STATUS.exists():
        assert measured.memory_mb is not None
        assert 0 < measured.memory_mb < 200


def test_medians_of_processes_are_told_and_memory_only_where_it_is_known():
    several = [fresh.Fresh(9.0, 1.0, 5.0, 3.0), fresh.Fresh(8, 2, 4, None), fresh.Fresh(7, 3, 6, 4)]
    assert fresh._median(several) == fresh.Fresh(8, 2, 5, 3.5)
    assert fresh._median(several[1:2]).memory_mb is None


def test_the_parts_of_the_pipeline_are_what_predict_does(file: Path):
    predictor = fleetnet.load(file)
    content = pipeline.usual_picture()
    steps = pipeline.Steps(predictor, content)
    assert (steps.picture.width, steps.picture.height) == pipeline.SIZE
    prediction = steps.decode()
    (expected,) = predictor.predictions(content)
    assert prediction.present([*"abc"]) == expected.present([*"abc"])
    assert list(steps.calls()) == ["jpeg", "preprocess", "run", "decode"]
    assert pipeline.usual_picture() == content


def test_the_parts_add_up_in_each_round():
    """Each part but the last is slow in another round, and waits for a core in that one."""
    times = [(12.0, 1.0, 1.0), (1.0, 12.0, 1.0), (1.0, 1.0, 12.0), (2.0, 2.0, 2.0)]
    waited = [(2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0)]
    rows = {
        part: Row(part, of_part, of_waiting)
        for part, of_part, of_waiting in zip(pipeline.PARTS, times, waited, strict=True)
    }
    measured = pipeline.Pipeline.of(rows)
    assert measured.parts == {"jpeg": 1, "preprocess": 1, "run": 1, "decode": 2}
    assert measured.whole == 14  # of 10, 1, 1 and 2 in some order, each round


def test_each_stream_makes_all_its_calls_and_images_are_counted():
    made: list[str] = []
    calls = [lambda: made.append("a"), lambda: made.append("b")]
    streams = throughput.Streams(calls, images=4, threads=1)
    assert streams.throughput(3) > 0
    assert sorted(made) == ["a"] * 3 + ["b"] * 3
    [measured] = throughput.measure({"x": throughput.Streams(calls[:1], 1, 2)}, rounds=1).values()
    assert (measured.streams, measured.threads) == (1, 2)
    assert measured.images_per_second > 0


@pytest.mark.parametrize(
    ("calls", "streams", "threads", "opened"),
    [("many", 3, 1, 1), ("file", 3, 1, 3), ("process", 1, 3, 1)],
)
def test_all_cores_are_used_as_a_runtime_allows(calls, streams, threads, opened, monkeypatch):
    seen: list[int] = []

    def load(name: str, path: Path, threads: int, *, trust: bool) -> object:
        seen.append(threads)
        return lambda image: None

    monkeypatch.setattr(onnx, "calls", calls)
    monkeypatch.setattr(fleetnet.runtimes, "load", load)
    made = throughput.streams_of("onnx", "model.onnx", (1, 3, SIZE, SIZE), cores=3)
    assert (len(made.calls), made.threads, seen) == (streams, threads, [threads] * opened)


# ---- fleetnet bench --app, --require-fast and the limits of --tune ---------------------------------------------------


def last_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_bench_shows_what_an_app_waits_for(file: Path, capsys, monkeypatch):
    opened: list[str] = []

    def once(
        openings: dict[str, fresh.Opening], processes: int = 1
    ) -> tuple[dict[str, fresh.Fresh], list[str]]:
        opened.extend(openings)
        return {name: fresh.Fresh(900.0, 30.0, 2.0, 12.5) for name in openings}, []

    monkeypatch.setattr(fresh, "fresh", once)
    monkeypatch.setattr(throughput, "SECONDS", 0.01)
    words = ["--model", str(file), "fasternet_t0", "--to", "none", "--forms", "deploy"]
    short = ["--size", "32", "--runs", "2", "--warmup", "0", "--json"]
    assert main(["bench", *words, *short, "--app", "--require-fast", "1"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(shown.splitlines()[-1])
    ours, torchs = found["rows"]
    assert opened == [ours["name"]]
    assert {key: ours[key] for key in ("cold_ms", "open_ms", "first_ms", "memory_mb")} == {
        "cold_ms": 32.0,
        "open_ms": 30.0,
        "first_ms": 2.0,
        "memory_mb": 12.5,
    }
    assert all(ours[f"{part}_ms"] > 0 for part in (*pipeline.PARTS, "pipeline"))
    assert ours["fast_share"] == 1
    assert {torchs[key] for key in app.FIGURES} == {None}
    assert ours["images_per_second_of_all_cores"] > 0
    assert [each["outside"] for each in found["kernels"]] == [[]]
    for column in ("cold ms", "memory MB", "jpeg ms", "decode ms", "fast MACs", "100.0%"):
        assert column in shown
    assert "each file has at least 100.00% of its MACs in fast kernels" in shown


def test_a_planted_slow_layer_is_named_and_refused(tmp_path: Path, capsys, file: Path):
    part = tmp_path / "part" / "model.onnx"
    part.parent.mkdir()
    facts = onnx.metadata(file)
    int8.find("onnx").writer(file, images_of(file))({"backbone.stages.2.0"}, part, facts)
    words = ["bench", "--model", str(part), "--runs", "2", "--warmup", "0"]
    assert main([*words, "--require-fast", "0.99"]) == ExportError.exit_code
    shown = capsys.readouterr().out
    assert (
        "99.00% were required; outside are backbone.stages.1.0/Conv, backbone.stages.2.0/Conv"
        in shown
    )
    assert "in float between layers in int8" in shown
    assert main([*words, "--require-fast", "0.01", "--json"]) == 0
    found = last_json(capsys)
    assert found["too_slow"] == []
    slow = [each["layer"] for each in found["kernels"][0]["outside"] if each["macs"]]
    assert slow == ["backbone.stages.1.0/Conv", "backbone.stages.2.0/Conv"]
    assert "cold_ms" not in found["rows"][0]  # not asked for


def images_of(file: Path) -> np.ndarray:
    """Images of the size that a file takes, to calibrate on."""
    size = fleetnet.load(file).preprocess.size
    return np.random.default_rng(0).standard_normal((4, 3, *size), np.float32)


def test_what_is_no_jpeg_is_said(tmp_path: Path):
    from fleetnet.cli._app import jpeg

    other = tmp_path / "p.jpg"
    other.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"p\.jpg is no JPEG"):
        jpeg(str(other))


LIMITS = [  # limits, what is measured (points, ms, MB, MB of memory), what is said
    (Limits(1.0), Measured(1.0, 9.0), []),
    (Limits(1.0), Measured(1.1, 9.0), ["loses too much"]),
    (Limits(1.0, max_ms=5.0), Measured(0.0, 5.1), ["too slow"]),
    (Limits(1.0, max_ms=5.0), Measured(0.0, 5.0), []),
    (Limits(1.0, max_mb=4.0), Measured(0.0, 9.0, 4.1), ["file too large"]),
    (Limits(1.0, max_mb=4.0), Measured(0.0, 9.0), ["not told whether file too large"]),
    (Limits(1.0, max_memory=50.0), Measured(0.0, 9.0, 4.0, 51.0), ["too much memory"]),
    (Limits(0.0, 1.0, 1.0, 1.0), Measured(1.0, 2.0, 2.0, 2.0), 4),
]


@pytest.mark.parametrize(("limits", "measured", "expected"), LIMITS)
def test_what_a_candidate_is_beyond_is_said(limits: Limits, measured: Measured, expected):
    beyond = limits.beyond(measured)
    assert (len(beyond) if isinstance(expected, int) else beyond) == expected


def test_limits_are_said_in_words():
    assert str(Limits(1.0)) == "loses no more than 1 points"
    assert str(Limits(0.5, 2, 3.5, 40)) == (
        "loses no more than 0.5 points, takes no more than 2 ms, has no more than 3.5 MB, needs no "
        "more than 40 MB of memory"
    )


def test_int8_is_not_chosen_where_it_is_slower():
    """As on x86 without VNNI, where a file in int8 may take longer than in float."""
    rows = [Row("float", (3.0,) * 20), Row("int8", (4.0,) * 20)]
    assert fastest(rows, ["float", "int8"]) == ("float", [])
    assert fastest([Row("float", (3.0,) * 20), Row("int8", (2.0,) * 20)], ["float", "int8"]) == (
        "int8",
        [],
    )


def test_tune_keeps_to_its_limits(run: Path, photos: Path, capsys, monkeypatch):
    made, candidates = [], tune.candidates

    def kept(*words: object, **settings: object) -> tune.Candidates:
        made.append(candidates(*words, **settings))
        return made[0]

    memory = {"onnx, 1 thread": 21.0}
    monkeypatch.setattr(tune, "memory_of", lambda by_name, say: memory)
    monkeypatch.setattr(tune, "candidates", kept)
    words = ["bench", "--model", str(run), "--tune", "--data", str(photos), "--to", "onnx"]
    words += ["--threads", "1", "--runs", "2", "--warmup", "1", "--json"]
    assert main([*words, "--max-memory", "25", "--max-mb", "100", "--max-ms", "10000"]) == 0
    found = last_json(capsys)
    by_name = {row["name"]: row for row in found["rows"]}
    assert found["fastest"] == "onnx, 1 thread"
    assert by_name["torch, 1 thread"]["beyond"] == "not told whether too much memory"
    assert (found["max_memory"], found["max_mb"]) == (25, 100)
    assert by_name["onnx, 1 thread"]["memory_mb"] == 21
    assert by_name["onnx, 1 thread"]["file_mb"] > 1
    monkeypatch.setattr(tune, "candidates", lambda *_, **__: made[0])
    assert main([*words, "--max-mb", "0.001"]) == ExportError.exit_code
    shown = capsys.readouterr().out
    assert "nothing loses no more than 1 points, has no more than 0.001 MB" in shown
    assert json.loads(shown.splitlines()[-1])["fastest"] is None
