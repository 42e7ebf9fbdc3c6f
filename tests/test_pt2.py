"""torch.export files: any network, any head with its decode, and every operator to look at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_heads import ready
from torch import Tensor, nn
from zoo import FACTS, image, random_model, randomize

import fleetnet
from fleetnet.data import shapes
from fleetnet.deploy.package import deliver
from fleetnet.deploy.preprocessed import Preprocessed
from fleetnet.errors import ExportError, ModelError
from fleetnet.layers import ConvBN, SqueezeExcite
from fleetnet.predictions import LabelMap
from fleetnet.proof.verify import verify
from fleetnet.reparam import reparameterize
from fleetnet.runtimes import Request, pt2

SIZE = (9, 14)


class Small(nn.Module):
    """Image (N, 3, H, W) -> a map, and what it says of the image; a constant as an SSD's anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.gate = ConvBN(3, 8, 3, stride=2), nn.GELU(), SqueezeExcite(8, 4)
        self.head = nn.Linear(8, 5)
        self.register_buffer("anchors", torch.zeros(3, 4))

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        x = self.gate(self.act(self.stem(picture)))
        anchors = self.anchors.expand(x.shape[0], -1, -1)
        return {
            "map": x,
            "logits": self.head(x.mean((2, 3))),
            "best": x.argmax(1),
            "anchors": anchors,
        }


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return randomize(Small(), 0)


@pytest.fixture(scope="module")
def written(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    return deliver(small, image(*SIZE, 1), path, "pt2", FACTS).path


@pytest.mark.parametrize("name", ["parcnet_xs", "repvit_m0_9"])
def test_classifiers(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    done = deliver(random_model(name), image(64, 96, 1), tmp_path / "model.pt2", "pt2", None)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["golden.npz", "model.json", "model.pt2"]
    assert done.parity.relative < 1e-5
    assert done.parity.top1_agreement == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["ssd/mobileone_s0", "maskrcnn/fasternet_t0", "deeplabv3/mobileone_s0"]
)
def test_heads_with_their_decode(name: str, tmp_path: Path):
    size, pictures = (72, 108), [shapes.draw(i) for i in range(2)]
    model = ready(name, size, True)
    done = fleetnet.export(
        model, "pt2", tmp_path / "m.pt2", size=size, embed_decode=True, pictures=pictures
    )
    agreement = done.parity.agreement
    assert agreement.pixels >= 0.999 if name.startswith("deeplabv3") else agreement.paired > 20
    found = fleetnet.load(done.path, trust=True).predictions(pictures)
    assert all(
        len(one.labels.unique()) > 1 if isinstance(one, LabelMap) else len(one) for one in found
    )


def test_outputs_are_the_callers_own_and_in_order(small: nn.Module, written: Path):
    batch = image(*SIZE, 1)
    expected = {name: value.detach().numpy() for name, value in small(batch).items()}
    run = pt2.load(written, trust=True)
    for value in run(batch.numpy()):
        value += 1  # also of what is a constant in the file
    found = run(batch.numpy())
    for name, value in zip(expected, found, strict=True):
        assert value.dtype == expected[name].dtype
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_an_open_number_of_images(small: nn.Module, tmp_path: Path):
    path = deliver(small, image(*SIZE, 1), tmp_path / "m.pt2", "pt2", None, dynamic=True).path
    run = pt2.load(path, trust=True)
    for count in (1, 3):
        batch = image(*SIZE, count)
        np.testing.assert_allclose(
            run(batch.numpy())[1], small(batch)["logits"].detach().numpy(), atol=1e-5
        )
    with pytest.raises(
        ModelError, match=r"takes images of shape \('batch', 3, 9, 14\), got \(1, 3, 9, 16\)"
    ):
        run(image(9, 16, 1).numpy())


def test_pixels(small: nn.Module, tmp_path: Path):
    """A file of uint8 pixels takes only those: normalized values would be cut to whole numbers."""
    network = Preprocessed(small, (0.5,) * 3, (0.2,) * 3).eval()
    pixels = torch.randint(
        0, 256, (1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    run = pt2.load(deliver(network, pixels, tmp_path / "m.pt2", "pt2", None).path, trust=True)
    np.testing.assert_allclose(
        run(pixels.numpy())[1], network(pixels)["logits"].detach().numpy(), atol=1e-5
    )
    with pytest.raises(ModelError, match=r"takes uint8, got float32"):
        run(pixels.float().numpy())


def test_threads_are_put_back(written: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run = pt2.load(written, threads=3, trust=True)
    assert not asked
    run(image(*SIZE, 1).numpy())
    assert asked == [3, 1]


def test_trace_shows_every_operator_by_its_module(small: nn.Module, written: Path):
    deploy, values = reparameterize(small, image(*SIZE, 1)), {}
    for name, module in deploy.named_modules():
        module.register_forward_hook(
            lambda _, args, output, name=name: values.__setitem__(name, output)
        )
    with torch.no_grad():
        deploy(image(*SIZE, 1))
    layers = pt2.trace(written, trust=True)(image(*SIZE, 1).numpy())
    names = [
        "stem/conv2d", "act/gelu", "gate/mean", "gate.reduce/conv2d", "gate/relu", "gate.expand/conv2d", "gate/sigmoid",
        "gate/mul", "expand", "mean", "head/linear", "argmax",
    ]  # fmt: skip
    assert list(layers) == names
    for name in ("stem/conv2d", "act/gelu", "gate.expand/conv2d", "gate/mul", "head/linear"):
        np.testing.assert_allclose(layers[name], values[name.partition("/")[0]].numpy(), atol=1e-5)


def test_a_changed_weight_is_found(tmp_path: Path):
    """The largest weight of a convolution in the middle has the other sign."""
    model, example = random_model("mobileone_s0"), image(64, 96, 1)
    pt2.export(Request(reparameterize(model, example), example, tmp_path / "right.pt2"))
    program = torch.export.load(tmp_path / "right.pt2")
    weight = program.state_dict["backbone.stages.2.4.branches.weight"].data.view(-1)
    weight[weight.abs().argmax()] *= -1
    torch.export.save(program, tmp_path / "wrong.pt2")
    files = [tmp_path / "right.pt2", tmp_path / "wrong.pt2"]
    right, wrong = (
        verify(model, pt2.load(file, trust=True), [example], pt2.tolerances["fp32"])
        for file in files
    )
    assert right.passed
    assert not wrong.passed
    before, after = (pt2.trace(file, trust=True)(example.numpy()) for file in files)
    first = next(name for name in before if not np.array_equal(before[name], after[name]))
    assert first == "backbone.stages.2.4.branches/conv2d"


def test_the_file_says_what_it_is_and_nothing_of_this_machine(written: Path):
    assert pt2.metadata(written)["classes"] == ["café", "bus"]
    for place in (Path(__file__).parents[1], Path(torch.__file__).parent, written.parent):
        assert str(place).encode() not in written.read_bytes()


def test_what_torch_cannot_capture(tmp_path: Path):
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="torch cannot capture this model"):
        pt2.export(Request(Branching().eval(), image(*SIZE), tmp_path / "m.pt2"))


def test_missing_and_damaged_files(written: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no such file"):
        pt2.load(tmp_path / "m.pt2", trust=True)
    with pytest.raises(ModelError, match="no such file"):
        pt2.metadata(tmp_path / "m.pt2")
    for content in (b"", b"no archive", written.read_bytes()[:3000]):
        (tmp_path / "m.pt2").write_bytes(content)
        with pytest.raises(ModelError, match="torch cannot load this file"):
            pt2.load(tmp_path / "m.pt2", trust=True)
        with pytest.raises(ModelError, match=r"not a readable file of torch\.export"):
            pt2.metadata(tmp_path / "m.pt2")
