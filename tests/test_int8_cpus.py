"""Int8 files compute the same on every class of CPU; what does not is refused, or opened so that it does.

x86 without VNNI adds products of int8 in pairs in 16 bits, which saturate. That is emulated here on
the weights in the files, so that it is seen on any machine, and computed by oneDNN's own kernels
for AVX2, in a process of its own.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from test_quantize import images, prepared, tiny

import fleetnet
from fleetnet import int8
from fleetnet.cli import main
from fleetnet.errors import ExportError, SlowerWarning
from fleetnet.find import find
from fleetnet.int8._search import quantize
from fleetnet.runtimes import _cpu, _int8
from fleetnet.runtimes import onnx as onnx_runtime
from fleetnet.runtimes._cpu import Int8Class

RUNTIMES = ["onnx", "openvino"]
AVX2, VNNI = Int8Class(("AVX2",)), Int8Class(("AVX-512 VNNI", "AVX-512", "AVX2"))


def in_pairs(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products added as `vpmaddubsw` does: pairs of neighbors, cut off at 16 bits, the rest in 32 bits.

    `values` (k,) are unsigned, `weights` (channels, k) signed; gives (channels,).
    """
    products = values.astype(np.int64) * weights.astype(np.int64)
    products = np.pad(products, ((0, 0), (0, products.shape[1] % 2)))
    two = products[:, 0::2] + products[:, 1::2]
    return two.clip(-(2**15), 2**15 - 1).sum(1)


def worst(weights: np.ndarray) -> int:
    """How much is cut off at most: the largest weights of one sign are neighbors, and meet the largest values."""
    lost = 0
    for sign in (1, -1):
        ordered = sign * np.sort(-sign * weights.astype(np.int64), axis=1) * -1
        ordered = np.where(sign * ordered > 0, ordered, 0)
        values = np.full(weights.shape[1], 255)
        lost = max(lost, int(np.abs(in_pairs(values, ordered) - ordered @ values).max()))
    return lost


def path_in(folder: Path, runtime: str) -> Path:
    return folder / f"model{find('runtimes', runtime).suffix}"


def coarse_scales(weight: np.ndarray) -> np.ndarray:
    """The scales of earlier versions: all 8 bits."""
    return np.abs(weight).max(1) / 127


def round_coarsely(patch: pytest.MonkeyPatch) -> None:
    """The quantizers take the scales of earlier versions."""
    for name in RUNTIMES:
        patch.setattr(int8.find(name), "safe_scales", coarse_scales)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each runtime the file of a small network as earlier versions wrote it, and as it is written now."""
    source, found = prepared(tiny()), {}
    for runtime in RUNTIMES:
        if runtime == "openvino" and not find_spec("nncf"):
            continue
        folder = tmp_path_factory.mktemp(runtime)
        with pytest.MonkeyPatch.context() as patch:
            round_coarsely(patch)
            patch.setattr("fleetnet.int8._search.overflowing", lambda weights: [])
            older = quantize(source, runtime, path_in(folder / "older", runtime), max_drop=30).path
        found[runtime] = (
            older,
            quantize(source, runtime, path_in(folder / "safe", runtime), max_drop=30).path,
        )
    return found


def of(files: dict[str, tuple[Path, Path]], runtime: str) -> tuple[Path, Path]:
    if runtime not in files:
        pytest.skip("int8 for OpenVINO needs nncf")
    return files[runtime]


def outputs(path: Path) -> np.ndarray:
    predictor = fleetnet.load(path)
    return predictor.raw(images(64, 2).numpy())[0]


def decibels(reference: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10((reference**2).sum() / max(((reference - other) ** 2).sum(), 1e-30))


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_the_emulation_saturates() -> None:
    weights = np.array([[127, 127, 127], [-127, -127, 1], [64, 64, 127]])
    sums = in_pairs(np.array([255, 255, 255]), weights)
    assert sums.tolist() == [32767 + 255 * 127, -32768 + 255, 255 * (64 + 64 + 127)]
    assert worst(np.array([[100, -100, 28, -28]])) == 0
    assert worst(np.array([[100, -100, 28, -29]])) == 255 * 129 - 32768
    assert worst(np.array([[29, -100, 100, -28]])) == 255 * 129 - 32767


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_weights_in_a_file_saturate(runtime: str, files: dict[str, tuple[Path, Path]]) -> None:
    """Neither in the worst order with the largest values, nor in their own with any."""
    older, path = of(files, runtime)
    weights = find("runtimes", runtime).integer_weights(older)
    # of 2**15: this is what has to be seen
    assert max(worst(rows) for rows in weights.values()) > 2**14
    weights = find("runtimes", runtime).integer_weights(path)
    assert len(weights) == (7 if runtime == "onnx" else 8)  # onnxruntime's gate is in float
    generator = np.random.default_rng(0)
    for name, rows in weights.items():
        assert rows.dtype == np.int8
        assert worst(rows) == 0, name
        values = generator.integers(0, 256, rows.shape[1])
        assert np.array_equal(in_pairs(values, rows), rows.astype(int) @ values), name
        # as fine as it can be: the two that are largest use what there is
        assert _int8.pairs(rows).min() >= _int8.LARGEST_PAIR - 2, name
    about = json.loads(path.with_suffix(".json").read_text())["int8"]
    assert about["cpus"].startswith("any")
    assert (
        _int8.LARGEST_PAIR - 2
        <= about["largest_pair"]
        <= about["largest_pair_allowed"]
        == _int8.LARGEST_PAIR
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_saturates_is_not_handed_over(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime == "openvino":
        pytest.importorskip("nncf")
    round_coarsely(monkeypatch)
    with pytest.raises(ExportError, match=r"pairs of products in .*pointwise.* leave 16 bits"):
        quantize(prepared(tiny()), runtime, path_in(tmp_path, runtime), max_drop=30)
    assert not list(tmp_path.iterdir())


def test_scales_are_the_finest_that_are_safe() -> None:
    generator = np.random.default_rng(0)
    for shape in ((40, 1), (40, 2), (40, 9), (40, 300)):
        weight = generator.standard_normal(shape) * np.logspace(-3, 3, 40)[:, None]
        scales = _int8.safe_scales(weight)
        rounded = np.round(weight / scales[:, None]).astype(int)
        assert _int8.pairs(rounded).max() <= _int8.LARGEST_PAIR
        assert _int8.pairs(np.round(weight / scales[:, None] * 1.02)).max() > _int8.LARGEST_PAIR - 1
        assert np.abs(rounded).max() <= 127
    assert np.round(
        np.array([3.0, -3.0]) / _int8.safe_scales(np.array([[3.0, -3.0]]))
    ).tolist() == [127, -127]
    assert _int8.safe_scales(np.zeros((2, 4))).min() > 0


def test_weights_of_other_operators_are_found(tmp_path: Path) -> None:
    """Matrices of (inputs, outputs), and operators of files that others quantized."""
    import onnx
    from onnx import TensorProto, helper

    def file(operator: str, weight: np.ndarray, **attributes: int) -> Path:
        held = [onnx.numpy_helper.from_array(weight, "w")]
        node = helper.make_node(operator, ["x", "w"], ["y"], name="layer", **attributes)
        graph = helper.make_graph(
            [node], "net", [helper.make_tensor_value_info("x", TensorProto.UINT8, None)],
            [helper.make_tensor_value_info("y", TensorProto.INT32, None)], held,
        )  # fmt: skip
        onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    matrix = np.array([[100, 1], [-100, 100], [1, 100]], np.int8)  # 3 inputs, 2 outputs
    assert (
        onnx_runtime.integer_weights(file("MatMulInteger", matrix))["layer"].tolist()
        == matrix.T.tolist()
    )
    assert _int8.overflowing(onnx_runtime.integer_weights(tmp_path / "net.onnx")) == ["layer"]
    assert _int8.overflowing(onnx_runtime.integer_weights(file("Gemm", matrix, transB=1))) == []
    images = np.full((2, 3, 1, 1), 100, np.int8)
    assert onnx_runtime.integer_weights(file("ConvInteger", images))["layer"].shape == (2, 3)
    # these do not saturate
    assert onnx_runtime.integer_weights(file("ConvInteger", images.astype(np.uint8))) == {}


# ---- opening ---------------------------------------------------------------------------------------------------------


def test_an_older_onnx_file_is_opened_with_kernels_of_32_bits(
    files: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    session = onnx_runtime._session

    def watched(*args: object, in_32_bits: bool = False) -> object:
        asked.append(in_32_bits)
        return session(*args, in_32_bits=in_32_bits)

    monkeypatch.setattr(onnx_runtime, "_session", watched)
    older, safe = files["onnx"]
    expected = outputs(older)
    assert not any(asked)
    monkeypatch.setattr(onnx_runtime, "int8_class", lambda: AVX2)
    with pytest.warns(
        SlowerWarning, match=r"in .*/Conv and \d+ more layers leave 16 bits.*fleetnet quantize"
    ):
        again = outputs(older)
    assert asked[-1]
    assert decibels(expected, again) > 40
    outputs(safe)  # without a warning
    assert not asked[-1]


PROGRAM = """
import json, sys, warnings
import numpy as np
import fleetnet
from fleetnet.errors import SlowerWarning
from fleetnet.runtimes import openvino
found = {}
for name, path in (("older", sys.argv[2]), ("safe", sys.argv[3])):
    batch = np.load(sys.argv[1])
    plain = openvino._runner(path, openvino._read(path), 1)
    found[name + " as it is"] = np.concatenate([plain(image[None])[0] for image in batch]).tolist()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predictor = fleetnet.load(path)
    found[name + " warned"] = [str(w.message) for w in said if w.category is SlowerWarning]
    found[name] = predictor.raw(batch)[0].tolist()
print(json.dumps(found))
"""


def test_openvino_computes_the_same_with_the_kernels_of_avx2(
    tmp_path: Path, files: dict[str, tuple[Path, Path]]
) -> None:
    """Files of earlier versions do not, as they are: their weights are computed in float there."""
    older, safe = of(files, "openvino")
    batch = images(64, 2).numpy()
    np.save(tmp_path / "images.npy", batch)
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYTHONPATH": str(Path(fleetnet.__file__).parents[1]),
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "images.npy"), str(older), str(safe)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    exact = prepared(tiny()).logits.numpy()
    for name in ("older", "safe as it is", "safe"):
        assert decibels(exact, np.array(found[name])) > 18, name
    assert len(found["older warned"]) == 1
    assert "leave 16 bits" in found["older warned"][0]
    assert found["safe warned"] == []
    if "AVX2" in _cpu.int8_class().names:
        # 12 measured: what this is all about
        assert decibels(exact, np.array(found["older as it is"])) < 15
        assert decibels(np.array(found["safe"]), outputs(safe)) > 40  # there and here


def test_eval_says_it_in_one_line(
    tmp_path: Path,
    photos: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fleetnet.int8._search.overflowing", lambda weights: [])
    round_coarsely(monkeypatch)
    words = f"quantize --model {run} --data {photos} --to onnx --pictures 8 --max-drop 100 --threads 1 --out {tmp_path}"
    assert main(words.split()) == 0
    monkeypatch.setattr(onnx_runtime, "int8_class", lambda: AVX2)
    capsys.readouterr()
    path = tmp_path / "onnx-int8" / "model.onnx"
    assert main(["eval", "--model", str(path), "--data", str(photos), "--threads", "1"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1
    assert said[0].startswith(f"fleetnet: warning: {path}: products of int8")


# ---- the class of a CPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "features", "names", "saturates"),
    [
        ("x86_64", {"avx2", "avx", "sse4_1"}, ("AVX2",), True),
        ("x86_64", {"sse4_1"}, (), True),
        ("x86_64", {"avx2", "avx512_f", "avx512_bw"}, ("AVX-512", "AVX2"), True),
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, ("AVX-512 VNNI", "AVX-512", "AVX2"), False),
        ("AMD64", {"avx2", "avx_vnni"}, ("AVX-VNNI", "AVX2"), False),
        (
            "x86_64", {"avx2", "avx512_f", "avx512_vnni", "avx_vnni", "amx_int8"},
            ("AMX", "AVX-512 VNNI", "AVX-VNNI", "AVX-512", "AVX2"), False,
        ),
        ("aarch64", {"asimd", "asimddp"}, ("dot product", "NEON"), False),
        ("arm64", set(), ("NEON",), False),
        ("riscv64", set(), (), True),
    ],
)  # fmt: skip
def test_classes(
    machine: str,
    features: set[str],
    names: tuple[str, ...],
    saturates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_cpu, "_features", lambda: set(features))
    monkeypatch.setattr(_cpu.platform, "machine", lambda: machine)
    kind = _cpu.int8_class.__wrapped__()
    assert kind.names == names
    assert kind.saturates == saturates
    assert ("in 16 bits" in kind.meaning) == saturates
    assert str(kind) == (", ".join(names) or "unknown")


def test_instructions_without_torch_telling_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "cpu", ModuleType("older"))
    text = tmp_path / "cpuinfo"
    text.write_text("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    monkeypatch.setattr(_cpu, "Path", lambda path: text)
    assert {"avx2", "avx512_vnni"} <= _cpu._features()
    text.unlink()
    assert _cpu._features() == set()


def test_a_cap_on_onednn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "int8_class", lambda: VNNI)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert not _cpu.onednn_saturates()
    for cap, saturates in (
        ("AVX2", True),
        ("avx512_core", True),
        ("AVX512_CORE_VNNI", False),
        ("AVX2_VNNI", False),
    ):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
        assert _cpu.onednn_saturates() == saturates
    monkeypatch.setattr(_cpu, "int8_class", lambda: AVX2)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert _cpu.onednn_saturates()


def test_doctor_names_the_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in (AVX2, VNNI):
        monkeypatch.setattr(_cpu, "int8_class", lambda kind=kind: kind)
        assert main(["doctor", "--to", "onnx", "--json"]) == 0
        printed = capsys.readouterr()
        document = json.loads(printed.out.splitlines()[-1])
        assert document["machine"]["int8"] == str(kind)
        assert document["int8"] == {"saturates": kind.saturates, "meaning": kind.meaning}
        assert kind.meaning in printed.err
        assert str(kind) in printed.out
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert main(["doctor", "--to", "onnx"]) == 0
    assert "leaves it without VNNI" in capsys.readouterr().out


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_in_float_between_those_in_int8_are_named(runtime, files) -> None:
    told = fleetnet.runtimes.kernels(runtime, of(files, runtime)[1], images(1).numpy())
    assert told is not None
    slow = {kernel.layer: kernel for kernel in fleetnet.runtimes.outside(told)}
    assert {"Add", "Mul", "ReduceMean"} <= slow.keys()
    assert not {"stem/Conv", "depthwise/Conv", "last/Conv", "image"} & slow.keys()
    # onnxruntime's quantizer leaves gates in float
    products = [name for name, kernel in slow.items() if kernel.macs]
    assert products == (["gate/Conv"] if runtime == "onnx" else [])
    share = fleetnet.runtimes.fast_share(told)
    assert share is not None
    assert (share == 1) == (not products)
