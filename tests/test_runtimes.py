"""Exported files compute what the multi-branch model computes, or are not handed over."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import FACTS

from fleetnet.deploy.package import deliver
from fleetnet.deploy.preprocessed import Preprocessed
from fleetnet.errors import ExportError, ModelError, UsageError
from fleetnet.facts import Exported, Facts, TensorFacts
from fleetnet.find import find, names
from fleetnet.layers import ConvBN, SqueezeExcite
from fleetnet.predictions import Detections, LabelMap
from fleetnet.proof.agreement import Meaning, compare
from fleetnet.proof.verify import verify
from fleetnet.reparam import WIDEST, as_conv, merge, reparameterize
from fleetnet.runtimes import Request, choice, files, load, onnx, title_of

ROOT = Path(__file__).parents[1]
BASE = {"executorch", "mnn", "ncnn", "onnx", "openvino", "pt2"}  # that make test installs
ONE_SIZE = {"executorch", "ncnn"}  # files take one number of images


class Branches(nn.Module):
    """A 3x3 and a 1x1 branch, each with its batch norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.large, self.small = ConvBN(inputs, outputs, 3), ConvBN(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    def fuse(self) -> nn.Conv2d:
        return as_conv(merge(self.large.kernel(), self.small.kernel()), like=self.large[0])


class Small(nn.Module):
    """Image (N, 3, H, W) -> logits (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Branches(3, 8), nn.GELU(), SqueezeExcite(8, 4), nn.Hardswish())
        self.classifier = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.body(image).mean((2, 3)))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = ConvBN(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(image)
        return x.mean((2, 3)), self.head(x)


def randomized(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something; gammas of both signs."""
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.weight, -1.5, 1.5)
            nn.init.normal_(m.bias)
    return model.eval()


@pytest.fixture
def model() -> nn.Module:
    return randomized(Small())


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def listing(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@pytest.mark.parametrize("name", names("runtimes"))
def test_every_runtime_keeps_the_contract(name):
    module = find("runtimes", name)
    assert module.suffix.startswith(".")
    assert all(0 < tolerance < 1 for tolerance in module.tolerances.values())
    assert callable(module.missing)
    assert module.inspect is not None or module.cannot_run() is None
    assert module.package
    assert module.default_opset is None or module.default_opset > 0
    assert callable(module.export)
    assert callable(module.load)
    assert callable(module.import_packages)
    assert module.kernels is None or callable(module.kernels)


def runs(name: str) -> bool:
    """Whether a runtime can be used here; those of `BASE` must be."""
    module = find("runtimes", name)
    away = module.missing() if module.inspect is None else module.cannot_run()
    assert not away or name not in BASE
    return not away


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", [name for name in names("runtimes") if runs(name)])
def test_deliver(name, dynamic, model, image, tmp_path, capfd):
    module = find("runtimes", name)
    suffix, before = (
        module.suffix,
        {key: value.clone() for key, value in model.state_dict().items()},
    )
    path = tmp_path / "new" / f"model{suffix}"
    if dynamic and name in ONE_SIZE:
        with pytest.raises(UsageError, match="dynamic"):
            deliver(model, image, path, name, FACTS, dynamic=True)
        return
    done = deliver(model, image, path, name, FACTS, dynamic=dynamic)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert listing(path.parent) == sorted(
        ["golden.npz", "model.json", *(file.name for file in files(path))]
    )
    assert done.parity.passed
    assert 0 < done.parity.relative <= next(iter(module.tolerances.values()))
    assert done.parity.top1_agreement == 1
    assert done.parity.images == (4 + 3 if dynamic else 4)

    sidecar = json.loads(done.sidecar.read_text(encoding="utf-8"))
    batch = "batch" if dynamic else 1
    assert sidecar["classes"] == FACTS.classes
    assert sidecar["form"] == "deploy"
    assert (sidecar["runtime"], sidecar["precision"]) == choice(name)
    hashed = hashlib.sha256(b"".join(file.read_bytes() for file in files(path)))
    assert sidecar["sha256"] == hashed.hexdigest()
    assert sidecar["inputs"] == [
        {"name": "image", "shape": [batch, 3, 16, 24], "dtype": "float32", "layout": "NCHW"}
    ]
    assert sidecar["outputs"] == [{"name": "logits", "shape": [batch, 5], "dtype": "float32"}]
    assert sidecar["parity"] == done.parity.to_dict()

    golden = np.load(done.golden)
    (logits,) = load(name, done.path, trust=True)(golden["image"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-3)
    assert np.array_equal(golden["logits"], model(image).detach().numpy())


def test_choice():
    assert choice("onnx") == ("onnx", "fp32")
    assert choice("mnn:fp16") == ("mnn", "fp16")
    assert title_of("mnn", "fp32") == "mnn"
    assert title_of(*choice("mnn:fp16")) == "mnn-fp16"
    with pytest.raises(UsageError, match="no runtime 'mn': did you mean 'mnn'"):
        choice("mn")
    with pytest.raises(UsageError, match="mnn has no precision 'fp61': did you mean 'fp16'"):
        choice("mnn:fp61")


def test_the_file_is_collapsed_and_says_what_it_is(model, image, tmp_path):
    import onnx as package

    path = deliver(model, image, tmp_path / "net.onnx", "onnx", FACTS, opset=18).path
    assert listing(tmp_path) == ["net.golden.npz", "net.json", "net.onnx"]
    proto = package.load(path)
    package.checker.check_model(proto)
    # the branches are one, and two in the gate
    assert sum(node.op_type == "Conv" for node in proto.graph.node) == 3
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [18]
    assert [value.name for value in proto.graph.output] == ["logits"]
    exported = Exported(outputs=(TensorFacts("logits", (1, 5), "float32"),))
    assert Facts.from_json(onnx.metadata(path), path) == replace(
        FACTS, form="deploy", exported=exported
    )
    assert json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))["opset"] == 18
    for place in (ROOT, Path(torch.__file__).parent, tmp_path):
        assert str(place).encode() not in path.read_bytes()  # no paths of this machine


def test_a_dynamic_file_takes_any_batch_and_a_static_one_says_what_it_takes(model, image, tmp_path):
    outputs = {}
    for name, dynamic in (("dynamic", True), ("static", False)):
        onnx.export(
            Request(reparameterize(model), image, tmp_path / f"{name}.onnx", dynamic=dynamic)
        )
        outputs[name] = onnx.load(tmp_path / f"{name}.onnx")
    five = np.random.default_rng(0).normal(size=(5, 3, 16, 24))  # float64, cast
    np.testing.assert_allclose(
        outputs["dynamic"](five)[0],
        np.concatenate([outputs["static"](five[i : i + 1])[0] for i in range(5)]),
        atol=1e-6,
    )
    with pytest.raises(
        ModelError, match=r"takes images of shape \(1, 3, 16, 24\), got \(5, 3, 16, 24\)"
    ):
        outputs["static"](five)
    with pytest.raises(ModelError, match=r"shape \('batch', 3, 16, 24\), got \(3, 16, 24\)"):
        outputs["dynamic"](five[0])


def test_a_dynamic_file_is_compared_at_another_batch_size(model, image, tmp_path, monkeypatch):
    seen = []

    def load(path: Path, threads: int = 1, *, trust: bool = False) -> object:
        run = real(path)
        return lambda batch: seen.append(len(batch)) or run(batch)

    real = onnx.load
    monkeypatch.setattr(onnx, "load", load)
    deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS, dynamic=True, examples=[image])
    assert seen == [1, 2, 1]  # the last for the tolerance of golden.npz


def test_several_outputs_have_names(image, tmp_path):
    model = randomized(TwoOutputs())
    done = deliver(model, image, tmp_path / "model.onnx", "onnx", None, outputs=("pooled", "map"))
    described = json.loads(done.sidecar.read_text())["outputs"]
    assert [(o["name"], o["shape"], o.get("layout")) for o in described] == [
        ("pooled", [1, 4], None),
        ("map", [1, 2, 16, 24], "NCHW"),
    ]
    assert sorted(np.load(done.golden)) == ["image", "map", "pooled"]
    assert done.parity.top1_agreement is None


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_preprocessing_in_the_graph(order, dtype, model, tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    pixels = torch.randint(
        0, 256, (1, 3, 16, 24), dtype=dtype, generator=torch.Generator().manual_seed(2)
    )
    by_hand = pixels.flip(1) if order == "BGR" else pixels
    by_hand = (by_hand / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    done = deliver(
        Preprocessed(model, mean, std, order), pixels, tmp_path / "model.onnx", "onnx", None
    )
    run = onnx.load(done.path)
    np.testing.assert_allclose(run(pixels.numpy())[0], model(by_hand).detach(), atol=1e-5)
    assert json.loads(done.sidecar.read_text())["inputs"][0]["dtype"] == str(dtype).removeprefix(
        "torch."
    )
    if dtype == torch.uint8:
        with pytest.raises(ModelError, match="takes uint8, got float32"):
            run(by_hand.numpy())


def test_preprocessing_refuses_an_unknown_order(model):
    with pytest.raises(UsageError, match="channel_order is 'GBR'; allowed: 'RGB', 'BGR'"):
        Preprocessed(model, (0, 0, 0), (1, 1, 1), "GBR")


# What must not be handed over


def wrong_fuse(model: nn.Module, example: Tensor) -> nn.Module:
    """The deploy form with one sign in the algebra flipped."""
    fused = reparameterize(model, example)
    fused.body[0].bias.data.neg_()
    return fused


@pytest.mark.parametrize("old", [None, b"an older good file"])
def test_a_wrong_deploy_form_is_not_handed_over(old, model, image, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    if old:
        path.write_bytes(old)
    monkeypatch.setattr("fleetnet.deploy.package.reparameterize", wrong_fuse)
    monkeypatch.setattr("fleetnet.proof.verify.reparameterize", wrong_fuse)
    with pytest.raises(
        ExportError,
        match=r"not written.*relative .* \(allowed 0.0001\).*differs already in torch, in float64",
    ):
        deliver(model, image, path, "onnx", FACTS)
    assert listing(tmp_path) == (["model.onnx"] if old else [])
    assert not old or path.read_bytes() == old


def test_rounding_is_told_from_a_wrong_fuse(image, tmp_path):
    """Branches that cancel leave rounding alone: exact in float64, noise in float32."""
    model = Small().eval()
    for norm, sign in ((model.body[0].large[1], 1), (model.body[0].small[1], -1)):
        nn.init.constant_(norm.bias, sign * 1e7)
    with pytest.raises(ExportError, match=r"right in float64 .* amplify rounding"):
        deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS)
    assert listing(tmp_path) == []


def test_what_float32_leaves_of_the_weights_is_allowed_and_no_more(
    model, image, tmp_path, monkeypatch
):
    """A right network must not be refused on the CPU whose sums are in another order."""
    rough = Small().eval()
    for norm, sign in ((rough.body[0].large[1], 1), (rough.body[0].small[1], -1)):
        nn.init.constant_(norm.bias, sign * 1e5)
    parity = deliver(rough, image, tmp_path / "rough.onnx", "onnx", FACTS).parity
    assert onnx.tolerances["fp32"] < parity.relative < parity.tolerance <= WIDEST
    assert (
        json.loads((tmp_path / "rough.json").read_text())["parity"]["tolerance"] == parity.tolerance
    )

    export, off = onnx.export, 5e-4 * model(image).std().item()

    def wrong(request: Request) -> None:
        request.model.classifier.bias.data[0] += off
        export(request)
        request.model.classifier.bias.data[0] -= off

    monkeypatch.setattr(onnx, "export", wrong)
    with pytest.raises(ExportError, match=r"\(allowed 0\.0001\).* conversion to onnx"):
        deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS)


def test_a_wrong_conversion_is_not_handed_over(model, image, tmp_path, monkeypatch):
    export = onnx.export

    def wrong(request: Request) -> None:
        request.model.classifier.bias.data[0] += 1e-3
        export(request)
        request.model.classifier.bias.data[0] -= 1e-3

    monkeypatch.setattr(onnx, "export", wrong)
    with pytest.raises(ExportError, match=r"is right in torch .* conversion to onnx"):
        deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("to", "dynamic", "advice"),
    [
        ("onnx", False, "to onnx:fp32 changed it: try another opset"),
        ("onnx", True, "to onnx:fp32 changed it: try another opset, or a fixed batch size"),
        ("pt2", False, "to pt2:fp32 changed it"),
        ("pt2", True, "to pt2:fp32 changed it: try a fixed batch size"),
        ("mnn:int8", False, "to mnn:int8 changed it: try mnn:fp32"),
    ],
)
def test_the_advice_is_what_the_runtime_has(
    to, dynamic, advice, model, image, tmp_path, monkeypatch
):
    name, precision = choice(to)
    module = find("runtimes", name)
    monkeypatch.setattr(module, "export", lambda request: None)
    monkeypatch.setattr(
        module,
        "load",
        lambda *_, **__: lambda batch: [model(torch.from_numpy(batch)).detach().numpy() + 1],
    )
    with pytest.raises(ExportError) as error:
        deliver(
            model, image, tmp_path / f"model{module.suffix}", name, FACTS, precision=precision, dynamic=dynamic,
            explain=True,
        )  # fmt: skip
    said = str(error.value)
    assert f"the conversion {advice}. The layer that differs cannot be named: " in said
    assert said.endswith("no such file")


@pytest.mark.parametrize("fault", ["raises", "not onnx"])
def test_a_broken_exporter_leaves_nothing(fault, model, image, tmp_path, monkeypatch):
    def broken(request: Request) -> None:
        request.path.write_bytes(b"half a file")
        if fault == "raises":
            raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "export", broken)
    with pytest.raises(KeyboardInterrupt if fault == "raises" else ModelError):
        deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS)
    assert listing(tmp_path) == []


def test_a_model_that_computes_nan_is_not_handed_over(model, image, tmp_path):
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="NaN or infinity"):
        deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS)


def test_training_mode_is_refused(model, image, tmp_path):
    with pytest.raises(ModelError, match="training mode"):
        deliver(model.train(), image, tmp_path / "model.onnx", "onnx", FACTS)


@pytest.mark.parametrize(
    ("path", "runtime", "opset", "message"),
    [
        ("a.onnx", "onx", None, "did you mean 'onnx'"),
        ("a.mnn", "onnx", None, r"ends in \.onnx, not in \.mnn"),
        ("a.onnx", "onnx", 10, "opset is 10; allowed: 11 to 23"),
        ("a.onnx", "onnx", 24, "opset is 24; allowed: 11 to 23"),
    ],
)
def test_usage_errors(path, runtime, opset, message, model, image, tmp_path):
    with pytest.raises(UsageError, match=message):
        deliver(model, image, tmp_path / path, runtime, FACTS, opset=opset)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("opset", [onnx.OPSETS[0], onnx.OPSETS[-1]])
def test_both_ends_of_the_opsets_work(opset, model, image, tmp_path):
    assert deliver(model, image, tmp_path / "model.onnx", "onnx", FACTS, opset=opset).parity.passed


def test_weights_beyond_one_file_are_refused(model, image, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 100)
    with pytest.raises(ExportError, match="one ONNX file holds at most 2 GB"):
        onnx.export(Request(model, image, tmp_path / "model.onnx"))


def test_a_model_that_torch_cannot_export_gives_its_reason(image, tmp_path):
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        ExportError, match=r"model\.onnx: torch cannot write this model as ONNX: .*data-dependent"
    ):
        onnx.export(Request(Branching().eval(), image, tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_exporting_without_a_package_names_the_command(name, model, image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=f"pip install {name}"):
        onnx.export(Request(model, image, tmp_path / "model.onnx"))


def test_loading_without_onnxruntime_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="pip install onnxruntime"):
        onnx.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("read", [onnx.load, onnx.metadata])
@pytest.mark.parametrize("content", [None, b"", b"this is no ONNX file", b"\x08\x0a" * 40])
def test_damaged_files_are_named(content, read, tmp_path):
    path = tmp_path / "damaged.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged\.onnx: "):
        read(path)


# The comparison


def runner(change: float) -> object:
    return lambda image: [image.reshape(len(image), -1) + change]


@pytest.mark.parametrize(
    ("change", "passed"), [(0.0, True), (0.5e-4, True), (2e-4, False), (float("nan"), False)]
)
def test_verify_is_relative_to_the_spread(change, passed):
    images = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 100
    parity = verify(lambda x: x.flatten(1), runner(change * 100), images, tolerance=1e-4)
    assert parity.passed is passed
    assert parity.images == 6
    assert parity.to_dict()["passed"] is passed
    json.dumps(parity.to_dict(), allow_nan=False)
    if passed:
        assert parity.relative == pytest.approx(change, rel=0.05)
        assert parity.max_abs == pytest.approx(100 * change, rel=0.05)


def test_verify_counts_agreement():
    def swapped(image: np.ndarray) -> list[np.ndarray]:
        return [image[:, ::-1] if image[0, 0] < 0 else image]

    parity = verify(
        lambda x: x,
        swapped,
        torch.tensor([[[1.0, 2.0]], [[-1.0, 2.0]], [[3.0, 1.0]], [[-2.0, 1.0]]]),
        1e-4,
    )
    assert parity.top1_agreement == 0.5


@pytest.mark.parametrize("outputs", [lambda x: [x[:, :2]], lambda x: [x, x], lambda x: []])
def test_verify_refuses_other_shapes(outputs):
    with pytest.raises(ExportError, match=r"outputs have shapes \[\(1, 4\)\], the exported file's"):
        verify(lambda x: x, outputs, [torch.randn(1, 4)], 1e-4)


# Outputs by name, and what they mean


class Named(nn.Module):
    """Image -> a float map and its class map by name, not in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 4, 3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        return {"values": x, "classes": x.argmax(1)}


def test_outputs_by_name_keep_their_names(image, tmp_path):
    import onnx as package

    done = deliver(randomized(Named()), image, tmp_path / "model.onnx", "onnx", None)
    assert [value.name for value in package.load(done.path).graph.output] == ["values", "classes"]
    sidecar = json.loads(done.sidecar.read_text())
    described = [(o["name"], o["shape"], o["dtype"]) for o in sidecar["outputs"]]
    assert described == [("values", [1, 4, 16, 24], "float32"), ("classes", [1, 16, 24], "int64")]
    assert onnx.metadata(done.path)["outputs"] == sidecar["outputs"]
    assert sidecar["parity"]["agreement"]["pixels"] == done.parity.agreement.pixels >= 0.999
    assert sorted(np.load(done.golden)) == ["classes", "image", "values"]


@pytest.mark.parametrize(
    ("name", "dtype"), [("mnn", "int32"), ("ncnn", "float32"), ("executorch", "int64")]
)
def test_integers_are_described_as_the_file_has_them(name, dtype, image, tmp_path):
    assert runs(name)
    done = deliver(
        randomized(Named()), image, tmp_path / f"model{find('runtimes', name).suffix}", name, None
    )
    described = json.loads(done.sidecar.read_text())["outputs"]
    assert [(o["name"], o["dtype"]) for o in described] == [
        ("values", "float32"),
        ("classes", dtype),
    ]


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False)])
def test_class_maps_agree_on_999_of_1000_pixels(wrong, passed):
    truth = torch.arange(1000).view(1, 20, 50) % 7
    other = truth.clone()
    other.view(-1)[:wrong] += 1
    parity = verify(
        lambda x: {"semantic": truth}, lambda x: [other.numpy()], [torch.zeros(1)], 1e-4
    )
    assert parity.passed is passed
    assert parity.agreement.pixels == pytest.approx(1 - wrong / 1000)

    def logits(classes: Tensor) -> Tensor:  # so near to each other that other classes are rounding
        return (1e-5 * nn.functional.one_hot(classes, 9) - torch.eye(9)[8]).movedim(-1, 1)

    parity = verify(
        lambda x: {"logits": logits(truth)},
        lambda x: [logits(other).numpy()],
        [torch.zeros(1)],
        1e-4,
        Meaning(lambda outputs: [LabelMap(one.argmax(0)) for one in outputs["logits"]]),
    )
    assert parity.passed is passed


SOME = Detections(  # four boxes of two classes, two of them nearly equal in score
    boxes=torch.tensor(
        [[10.0, 10, 60, 50], [100, 20, 160, 90], [12, 70, 40, 120], [90, 100, 100, 104]]
    ),
    scores=torch.tensor([0.9, 0.5, 0.499999, 0.02]),
    labels=torch.tensor([0, 1, 1, 0]),
)


def changed(
    key: str | None = None, row: int = 0, by: object = 0.0, keep: object = slice(None)
) -> Detections:
    """SOME with one value changed and only some of its rows."""
    other = SOME
    if key:
        values = getattr(SOME, key).clone()
        values[row] += torch.tensor(by).to(values)
        other = replace(SOME, **{key: values})
    return other.at(keep)


@pytest.mark.parametrize(
    ("other", "cut", "unpaired"),
    [
        (changed(), 0, 0),
        (changed(keep=[0, 2, 1, 3]), 0, 0),  # near ties in the other order
        (changed("boxes", by=[0.1, 0, 0, 0.1]), 0, 0),
        (changed("boxes", by=[2.0, 0, 0, 0]), 0, 2),
        (changed("boxes", 3, by=[0.009, 0, 0, 0.009]), 0, 0),
        (
            changed("boxes", 3, by=[0.2, 0, 0, 0.2]),
            2,
            0,
        ),  # not the same, but each may be below the other's limit
        (changed("scores", by=5e-4), 0, 0),
        (changed("scores", by=-2e-3), 0, 2),
        (changed("labels", by=1), 0, 2),
        (changed("boxes", by=float("nan")), 0, 2),
        (changed("scores", by=float("nan")), 0, 2),
        (changed(keep=[0, 1, 2]), 1, 0),  # below the limit
        (changed(keep=[1, 2, 3]), 0, 1),  # the best is missing
        (changed(keep=[0, 0, 1, 2, 3]), 0, 1),  # found twice
        (changed(keep=[]), 1, 3),
    ],
)
def test_boxes_agree_as_sets(other, cut, unpaired):
    for sides in ([SOME], [other]), ([other], [SOME]):
        agreement = compare(*sides, Meaning(lambda _: [], score=0.019995), 1e-2)
        assert (agreement.cut, agreement.unpaired) == (cut, unpaired)
        assert agreement.paired == agreement.boxes - cut - unpaired
        assert agreement.passed is (unpaired == 0)


@pytest.mark.parametrize("low", [0.0100001, 0.012])
def test_unrelated_boxes_of_scores_at_the_limit_do_not_agree(low):
    """Neither those between the limits of two full lists, nor those that rounding could have pushed over the limit."""
    generator = torch.Generator().manual_seed(0)

    def side() -> list[Detections]:
        found = []
        for _ in range(4):
            corner = torch.rand(100, 2, generator=generator) * 200
            scores = low + (5e-4 if low > 0.011 else 5e-6) * torch.rand(100, generator=generator)
            boxes = torch.cat([corner, corner + 20], 1)
            found.append(Detections(boxes, scores, torch.zeros(100, dtype=torch.long)))
        return found

    one, other = side(), side()
    agreement = compare(one, other, Meaning(lambda _: [], score=0.01, count=100), 1e-4)
    assert (agreement.boxes, agreement.paired) == (800, 0)
    assert agreement.cut == (800 if low < 0.011 else agreement.cut)
    assert not agreement.passed
    assert compare(one, one, Meaning(lambda _: [], score=0.01, count=100), 1e-4).passed


def test_boxes_well_above_a_limit_are_not_excused():
    """The boxes at the limit are a fifth, but rounding does not change a score by half of a thousandth."""
    boxes = torch.arange(10.0)[:, None] * 30 + torch.tensor([0.0, 0, 20, 20])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0105, 0.0105])
    some = Detections(boxes, scores, torch.zeros(10, dtype=torch.long))
    fewer = some.at(torch.arange(8))
    assert compare([some], [fewer], Meaning(lambda _: [], score=0.01), 1e-4).unpaired == 2
    assert compare([some], [fewer], Meaning(lambda _: [], score=0.010495), 1e-4).cut == 2


def test_a_full_list_may_end_with_another_box():
    other = changed("boxes", 2, by=[0.0, 0, 30, 0])
    first = [side.at(torch.arange(3)) for side in (SOME, other)]
    full, open_ended = (
        compare(first[:1], first[1:], Meaning(lambda _: [], count=count), 1e-4)
        for count in (3, 100)
    )
    assert (full.cut, full.unpaired) == (2, 0)
    assert (open_ended.cut, open_ended.unpaired) == (0, 2)


def test_one_box_in_a_hundred_may_be_chosen_otherwise():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 500
    scores = torch.rand(200, generator=generator) + 0.1
    many = Detections(torch.cat([corner, corner + 30], 1), scores, torch.arange(200))
    for missing in (2, 3):
        fewer = many.at(torch.arange(missing, 200))
        agreement = compare([many], [fewer], Meaning(lambda _: []), 1e-4)
        assert (agreement.boxes, agreement.unpaired, agreement.passed) == (
            200,
            missing,
            missing == 2,
        )


def test_a_small_error_in_all_boxes_is_a_fault():
    drifted = replace(SOME, scores=SOME.scores + 5e-4)
    agreement, loose = (
        compare([SOME], [drifted], Meaning(lambda _: []), tolerance) for tolerance in (1e-4, 1e-2)
    )
    assert (agreement.unpaired, agreement.passed, loose.passed) == (0, False, True)
    spread = SOME.scores.std(correction=0).item()
    assert [agreement.drift, agreement.score] == pytest.approx([5e-4 / spread, 5e-4], rel=1e-3)
    other = replace(SOME, boxes=SOME.boxes + 0.012)
    moved = compare([SOME], [other], Meaning(lambda _: []), 1e-4)
    assert (moved.unpaired, moved.passed) == (0, False)
    assert moved.drift == pytest.approx(0.012 / SOME.boxes.std().item(), rel=1e-3)


def test_masks_agree_as_sets():
    masks = torch.zeros(4, 30, 30, dtype=torch.bool)
    masks[:, 5:25, 5:25] = True  # 400 pixels
    pixels = {}
    for flipped in (0, 2, 4, 5):
        other = masks.clone()
        other[1, 5, 5 : 5 + flipped] = False
        agreement = compare(
            [replace(SOME, masks=masks)], [replace(SOME, masks=other)], Meaning(lambda _: []), 1e-4
        )
        pixels[flipped] = agreement.unpaired, agreement.mask_iou
    assert pixels == {0: (0, 1.0), 2: (0, 1.0), 4: (0, 0.99), 5: (2, 1.0)}


def padded(prediction: Detections, count: int = 6) -> dict[str, Tensor]:
    """A batch of one, with zeros up to `count`."""
    outputs = {}
    for name in ("boxes", "scores", "labels"):
        value = getattr(prediction, name)
        zeros = value.new_zeros(count - len(value), *value.shape[1:])
        outputs[name] = torch.cat([value, zeros])[None]
    return outputs


def test_padded_detections_are_compared_as_sets():
    def given(prediction: Detections) -> object:
        return lambda _: [value.numpy() for value in padded(prediction).values()]

    example = [torch.zeros(1, 3, 8, 8)]
    swapped = verify(lambda _: padded(SOME), given(changed(keep=[0, 2, 1, 3])), example, 1e-4)
    assert swapped.passed
    assert (swapped.agreement.boxes, swapped.images) == (4, 1)
    missing = verify(lambda _: padded(SOME), given(changed(keep=[1, 2, 3])), example, 1e-4)
    assert not missing.passed
    assert "1 of 4 boxes without their like" in str(missing)
    json.dumps(missing.to_dict(), allow_nan=False)


def test_a_detector_that_finds_nothing_is_not_proven():
    nothing = padded(changed(keep=[]))
    with pytest.raises(
        ExportError, match=r"finds nothing on the examples.* give pictures \(--data\) with objects"
    ):
        verify(
            lambda _: nothing,
            lambda _: [value.numpy() for value in nothing.values()],
            [torch.zeros(1, 3, 8, 8)],
            1e-4,
            Meaning(Detections.of_padded),
        )


@pytest.mark.parametrize(("others", "proven"), [(0, False), (2, False), (3, True)])
def test_a_class_map_of_one_class_is_not_proven(others, proven):
    """One class on 999 of 1000 pixels: a file that always answers it would pass."""
    maps = torch.full((2, 1, 20, 50), 3)  # of two examples
    maps[1].view(-1)[:others] = 1
    sides = {"reference": lambda x: {"semantic": x}, "runner": lambda x: [x]}
    if proven:
        assert verify(**sides, examples=maps, tolerance=1e-4).passed
    else:
        with pytest.raises(
            ExportError, match=r"same class all over the examples.* give pictures \(--data\)"
        ):
            verify(**sides, examples=maps, tolerance=1e-4)
