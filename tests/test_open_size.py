"""Files that leave height and width open (--dynamic size): what they compute at each size, and which are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from fleetnet.cli import export as verb
from fleetnet.cli import main
from fleetnet.cli._arguments import parse
from fleetnet.data import shapes
from fleetnet.deploy.export import export
from fleetnet.deploy.package import Delivered, deliver
from fleetnet.deploy.predictor import load
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.facts import check_values
from fleetnet.find import find
from fleetnet.preprocess import Preprocess
from fleetnet.proof.as_if_trained import as_if_trained
from fleetnet.proof.verify import Elsewhere
from fleetnet.runtimes import Request, Sizes, onnx, parse_open
from fleetnet.tasks import Model, build, named

SIZE = (64, 96)
# its own, the least, tall, larger, wide
OTHERS = [(64, 96), (32, 32), (96, 64), (160, 96), (128, 224)]
NETWORKS = {  # every family that can, and every head that can
    "ssd/fasternet_t0": {},
    "yolo/repvit_m0_6": {"width": 0.25},
    "deeplabv3/mobileone_s0": {"channels": 16},
}
STEPS = {"ssd/fasternet_t0": 32, "yolo/repvit_m0_6": 32, "deeplabv3/mobileone_s0": 16}
SHAPES = {
    "ssd/fasternet_t0": [[1, "count", 4], [1, "count", 4], [1, "count", 4]],
    "yolo/repvit_m0_6": [[1, "count", 8]],
    "deeplabv3/mobileone_s0": [[1, 3, "height", "width"]],
}


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, Delivered]]:
    """The model of a name and its file, made once."""
    made: dict[str, tuple[Model, Delivered]] = {}

    def make(name: str) -> tuple[Model, Delivered]:
        if name not in made:
            torch.manual_seed(0)
            model = as_if_trained(build(name, 3, options=NETWORKS[name]), SIZE)
            preprocess = Preprocess(SIZE, mode=find("tasks", model.task).MODE)
            file = tmp_path_factory.mktemp("files") / "model.onnx"
            made[name] = model, export(model, "onnx", file, preprocess=preprocess, dynamic="size")
        return made[name]

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_computes_what_its_model_computes_at_every_size(name, delivered):
    model, done = delivered(name)
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    for size in OTHERS:
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            expected = named(model(image))
        for (output, values), given in zip(
            expected.items(), session.run(None, {"image": image.numpy()}), strict=True
        ):
            assert values.shape == given.shape, (size, output)
            apart = (values - torch.from_numpy(given)).abs().max() / values.std()
            assert apart < 1e-4, (size, output)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_description_says_which_sizes_and_that_they_are_proven(name, delivered):
    _, done = delivered(name)
    about = json.loads(done.sidecar.read_text(encoding="utf-8"))
    step = STEPS[name]
    assert about["sizes"] == {"made_at": [64, 96], "step": step, "least": step, "largest": 4096}
    assert about["size"] == about["preprocessing"]["resize"]["size"] == [64, 96]
    assert about["inputs"][0]["shape"] == [1, 3, "height", "width"]
    assert [output["shape"] for output in about["outputs"]] == SHAPES[name]
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, "height", "width"]
    assert [output.shape for output in session.get_outputs()] == SHAPES[name]

    assert about["parity"]["passed"]
    assert len(about["parity_at"]) == len(done.elsewhere) == 4
    sizes = [tuple(map(int, text.split("x"))) for text in about["parity_at"]]
    assert min(sizes) < SIZE < max(sizes)
    assert any(height > width for height, width in sizes)
    assert all(proof["passed"] and proof["images"] == 4 for proof in about["parity_at"].values())
    with np.load(done.golden) as golden:
        assert golden["image"].shape == (1, 3, 64, 96)


def test_a_file_predicts_at_its_own_size_and_at_a_given_one(delivered):
    model, done = delivered("ssd/fasternet_t0")
    picture, task = shapes.draw(1).resize((150, 110)), find("tasks", "ssd")
    for size in (None, (128, 160)):
        predictor = load(done.path, size=size)
        preprocess = Preprocess(size or SIZE, mode="stretch")
        assert predictor.preprocess == preprocess
        with torch.no_grad():
            outputs = model(preprocess(picture)[None])
        (decoded,) = task.decode(outputs, preprocess.size)
        expected = decoded.restore(preprocess.place(110, 150))
        (found,) = predictor.predictions([picture])
        assert len(found) == len(expected) > 5
        assert (found.boxes - expected.boxes).abs().max() < 0.05
    with pytest.raises(
        UsageError,
        match=r"size is 100x160; .*multiples of 32 from 32 to 4096: the nearest is 96x160",
    ):
        load(done.path, size=(100, 160))
    with pytest.raises(UsageError, match=r"size is 64x5000; .*the nearest is 64x4096"):
        load(done.path, size=(64, 5000))
    # an array that did not go through the preprocessing
    with pytest.raises(UsageError, match="size is 40x64"):
        load(done.path).raw(np.zeros((1, 3, 40, 64), np.float32))


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("parcnet_xs", {}, ExportError, r"kernels of backbone.*\(ParC\) are frozen at the size"),
        ("maskrcnn/fasternet_t0", {}, ExportError, "detections are chosen in its graph"),
        (
            "ssd/fasternet_t0",
            {"embed_decode": True},
            ExportError,
            "detections are chosen in its graph",
        ),
        (
            "fasternet_t0",
            {"size": (80, 64)},
            UsageError,
            "size is 80x64; .*multiples of 32 .*the nearest is 64x64",
        ),
        (
            "fasternet_t0",
            {"dynamic": "size,width"},
            UsageError,
            "dynamic is 'size,width': .*batch, size",
        ),
        (
            "fasternet_t0",
            {"runtime": "pt2"},
            UsageError,
            "pt2 takes the size .*can be left open for onnx only",
        ),
        (
            "fasternet_t0",
            {"runtime": "ncnn"},
            UsageError,
            "ncnn takes the size .*can be left open for onnx only",
        ),
    ],
)
def test_what_cannot_be_open_is_refused_with_the_reason(name, settings, error, message, tmp_path):
    runtime = settings.get("runtime", "onnx")
    file = tmp_path / f"model{find('runtimes', runtime).suffix}"
    options = (
        {"channels": 16, "hidden": 32, "proposals": 30, "anchor": 8}
        if name.startswith("maskrcnn")
        else None
    )
    model = build(name, 3, options=options).eval()
    given = {"runtime": "onnx", "size": (64, 64), "dynamic": "size", **settings}
    with pytest.raises(error, match=message):
        export(model, path=file, **given)
    assert not list(tmp_path.iterdir())


def test_a_network_of_timm_for_one_size_is_refused(tmp_path):
    pytest.importorskip("timm")
    model = build("timm/vit_tiny_patch16_224", 3).eval()
    with pytest.raises(
        ExportError, match="cannot be left open: the network does not compute at 256x288"
    ):
        export(model, "onnx", tmp_path / "model.onnx", size=(224, 224), dynamic="size")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["noise", "error"])
def test_a_file_that_is_wrong_at_another_size_is_not_written(fault, model, tmp_path, monkeypatch):
    real = onnx.load

    def wrong(
        path: Path, threads: int = 1, *, trust: bool = False
    ) -> Callable[[np.ndarray], list[np.ndarray]]:
        run = real(path, threads)

        def at_its_own_size(image: np.ndarray) -> list[np.ndarray]:
            if image.shape[-2] == 16:
                return run(image)
            if fault == "error":
                raise ModelError("shapes do not fit")
            return [output + 1 for output in run(image)]

        return at_its_own_size

    monkeypatch.setattr(onnx, "load", wrong)
    sizes, image = Sizes(8, 8, 512), torch.randn(1, 3, 16, 24)
    elsewhere = [Elsewhere([torch.randn(1, 3, *size)]) for size in sizes.others((16, 24))]
    said = (
        "its outputs are not those" if fault == "noise" else "does not compute: .*shapes do not fit"
    )
    with pytest.raises(ExportError, match=f"at 8x32, another size than its own, .*{said}"):
        deliver(
            model, image, tmp_path / "model.onnx", "onnx", None, sizes=sizes, elsewhere=elsewhere
        )
    assert not list(tmp_path.iterdir())


def test_sizes_that_are_compared_are_smaller_larger_wide_and_tall():
    of_stride = Sizes.of_stride(32)
    assert of_stride.others((224, 224)) == [(96, 320), (320, 96), (96, 96), (320, 320)]
    assert of_stride.others((32, 32)) == [(32, 64), (64, 32), (64, 64)]
    assert of_stride.others((4096, 64)) == [(2048, 96), (4096, 32), (2048, 32), (4096, 96)]
    assert of_stride == Sizes(**of_stride.to_dict())


def test_words_of_dynamic():
    assert [parse_open(value) for value in (False, True, "batch", "size", "batch,size", "size, "
                                                                                        "batch")] == [
        (False, False), (True, False), (True, False), (False, True), (True, True), (True, True),
    ]  # fmt: skip
    settings = parse("export", "", verb, ["--dynamic", "--model", "m", "--to", "onnx"])
    assert settings.dynamic == "batch"


@pytest.mark.parametrize(
    "sizes", [[32], {"step": 0, "least": 32, "largest": 64}, {"step": 8, "least": 64, "largest": 8}]
)
def test_damaged_sizes_are_named(sizes):
    with pytest.raises(ModelError, match=r"says sizes is .*step, least and largest"):
        check_values({"sizes": sizes}, "model.json")


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_from_the_command_line(run, photos, tmp_path, capsys):
    words = [
        "export",
        "--model",
        str(run),
        "--out",
        str(tmp_path),
        "--to",
        "onnx",
        "--dynamic",
        "batch,size",
    ]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "multiples of 32" in printed.out
    assert "the same at 64x32: relative" in printed.err
    file = tmp_path / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.run(None, {"image": np.zeros((5, 3, 64, 96), np.float32)})[0].shape == (5, 3)
    assert main(["verify", str(file), "--model", str(run)]) == 0

    picture = str(next((photos / "val").rglob("*.png")))
    scores = []
    for size in ([], ["--size", "32"], ["--size", "64x96"]):
        assert main(["predict", "--model", str(file), picture, *size, "--json"]) == 0
        scores.append(last_json(capsys)["results"][0]["predictions"])
    assert scores[0] == scores[1] != scores[2]
    assert (
        main(["eval", "--model", str(file), "--data", str(photos), "--size", "64", "--json"]) == 0
    )
    assert last_json(capsys)["images"] == 12

    out = ["--out", str(tmp_path / "refused")]
    check = [
        "export",
        "--model",
        "parcnet_xs",
        "--size",
        "64",
        "--check",
        "--to",
        "onnx",
        "--dynamic",
        "size",
    ]
    refused = [
        (["predict", "--model", str(file), picture, "--size", "50"], 2, "the nearest is 64x64"),
        (["predict", "--model", str(run), picture, "--size", "64"], 2, "is a checkpoint"),
        (
            ["export", "--model", str(run), *out, "--to", "onnx,pt2", "--dynamic", "size"],
            2,
            "pt2 takes the size",
        ),
        (
            ["export", "--model", str(run), *out, "--to", "onnx", "--dynamic", "height"],
            2,
            "dynamic is 'height': ",
        ),
        (check, 5, "parcnet_xs cannot be handed over"),
    ]
    for command, code, said in refused:
        assert main(command) == code, command
        assert said in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_file_of_one_size_says_which(delivered, model, tmp_path):
    _, done = delivered("ssd/fasternet_t0")
    facts = {key: value for key, value in load(done.path).facts.to_json().items() if key != "sizes"}
    onnx.export(Request(model, torch.randn(1, 3, *SIZE), tmp_path / "model.onnx", metadata=facts))
    with pytest.raises(
        UsageError, match="takes images of 64x96 only: export it with its height and width open"
    ):
        load(tmp_path / "model.onnx", size=(64, 64))
